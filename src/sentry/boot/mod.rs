//! From a configuration to a running container.
//!
//! ```text
//! main thread     platform, file systems, mounts, first task ──▶ waits for the container's end
//! task threads    one for each container thread
//! control thread  answers the commands of the runtime
//! ```

mod console;
mod containers;
mod control;
mod create;
mod exec;
mod files;
mod hooks;
mod init;
mod linux;
pub(crate) mod mounts;
pub(in crate::sentry) mod network;
mod peer;

pub use console::{Console, hold_back_new_sizes};
pub use exec::FurtherProcesses;
pub use hooks::StartHooks;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use parking_lot::Mutex;

use self::containers::{Container, Containers};
use self::create::NewContainer;
use self::mounts::volumes::Volumes;
use crate::container::boot::{BootConfig, NamedFile, take};
use crate::container::control::Shares;
use crate::container::report;
use crate::errno::{Errno, Result};
use crate::netstack::stack::Stack;
use crate::netstack::unix::UnixNamespace;
use crate::platform::Platform;
use crate::platform::ptrace::PtracePlatform;
use crate::platform::systrap::SystrapPlatform;
use crate::sentry::bootlog::BootLog;
use crate::sentry::futex::FutexTable;
use crate::sentry::ipc::Ipc;
use crate::sentry::kernel::{Kernel, KernelParts};
use crate::sentry::strace::Tracer;
use crate::sentry::task::jobctl::Processes;
use crate::sentry::task::tree::TaskTree;
use crate::timer::TimerQueue;
use crate::vfs::tty::{DevPts, DevPtsOptions, Terminals};
use crate::vfs::{DeviceTable, dev};

/// What could be done, or what could not, in words for the operator.
type Outcome<T> = std::result::Result<T, String>;

/// Says what was being done when a call failed.
trait Doing<T> {
    /// `what: the error`.
    fn doing(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T> Doing<T> for Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error: Errno| format!("{}: {error}", what()))
    }
}

/// What the containers of a sandbox share.
#[derive(Clone)]
struct Shared {
    platform: Arc<dyn Platform>,
    timers: Arc<TimerQueue>,
    futexes: Arc<FutexTable>,
    boot_log: Arc<BootLog>,
    net: Arc<Stack>,
    unix: Arc<UnixNamespace>,
    volumes: Arc<Volumes>,
    tracer: Option<Arc<Tracer>>,
}

/// Runs the sandbox until the first process of its root container ends; its exit status, or 128 plus the signal that
/// killed it.
/// `counters`: files of the container's cgroup.
pub fn run(config: BootConfig, counters: Vec<NamedFile>) -> i32 {
    match start(config, counters) {
        Ok((root, containers)) => {
            let status = root.wait_ended();
            containers.end_others();
            if let Some(console) = root.kernel.console.get() {
                console.finish();
            }
            containers.wait_told();
            status
        }
        Err(problem) => {
            report::failed(&problem);
            // Nothing is to be reported after a failure; the other threads end with the process.
            std::process::exit(128);
        }
    }
}

fn start(config: BootConfig, counters: Vec<NamedFile>) -> Outcome<(Arc<Container>, Arc<Containers>)> {
    // First of all, while the process is small: the stubs begin as copies of it.
    let platform = platform(&config.platform)?;
    let timers = TimerQueue::new();
    let tracer = config.strace.then(|| tracer(&config).map(Arc::new)).transpose()?;
    let net = Stack::new(&config.network, config.tap_fd.map(take), timers.clone());
    let shared = Shared {
        platform,
        futexes: FutexTable::new(),
        boot_log: boot_log(&config),
        unix: UnixNamespace::new(net.settings()),
        net,
        volumes: Arc::new(Volumes::new(config.volumes)?),
        timers,
        tracer,
    };
    let containers = Arc::new(Containers::new(shared));
    let root = create::create(&containers, NewContainer::first(config.container, counters), &Shares::default())?;
    control::serve(&containers, take(config.control_fd))?;
    report::started();
    Ok((root, containers))
}

/// The platform that the command line has named.
fn platform(name: &str) -> Outcome<Arc<dyn Platform>> {
    let doing = || format!("start the platform {name}");
    Ok(match name {
        "ptrace" => Arc::new(PtracePlatform::new().doing(doing)?),
        _ => Arc::new(SystrapPlatform::new().doing(doing)?),
    })
}

/// A kernel for one container, with its own processes and System V IPC or another's.
fn kernel(shared: &Shared, tree: Arc<Mutex<TaskTree>>, ipc: Arc<Ipc>) -> Arc<Kernel> {
    let processes = Arc::new(Processes::default());
    let terminals = Terminals::new(processes.clone(), shared.timers.clone());
    let ptys = Arc::new(DevPts::new(mounts::next_dev(), DevPtsOptions::default(), terminals.clone()));
    let devices = Arc::new(DeviceTable::new());
    dev::register(&devices, &shared.boot_log, &ptys, dev::controlling_terminal(&terminals), None);
    let kernel = Kernel::new(KernelParts {
        tree,
        platform: shared.platform.clone(),
        timers: shared.timers.clone(),
        futexes: shared.futexes.clone(),
        boot_log: shared.boot_log.clone(),
        net: shared.net.clone(),
        devices,
        terminals,
        ptys,
        ipc,
        tracer: shared.tracer.clone(),
    });
    processes.set_kernel(&kernel);
    kernel
}

/// The log that `dmesg(1)` shows begins with what the sandbox is made of.
fn boot_log(config: &BootConfig) -> Arc<BootLog> {
    let log = Arc::new(BootLog::new());
    log.push(&format!("Starting runsc {}...", env!("CARGO_PKG_VERSION")));
    log.push(&format!("Platform: {}, {} CPUs", config.platform, crate::platform::placement::count()));
    log.push(&format!("Root file system: {}", if config.container.overlay { "overlay in memory" } else { "gofer" }));
    log.push(&format!("Network: smoltcp, interfaces: {}", if config.tap_fd.is_some() { "lo, eth0" } else { "lo" }));
    log.push(&format!("Container {} is being created", config.container.id));
    log
}

/// `--strace` without a debug log goes to standard error, which the container has too.
fn tracer(config: &BootConfig) -> Outcome<Tracer> {
    // SAFETY: duplicates a descriptor; no memory is passed.
    let fd = unsafe { libc::fcntl(config.strace_fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
    if fd < 0 {
        return Err(format!("duplicate the descriptor for strace: {}", Errno::last()));
    }
    Ok(Tracer::new(take(fd)))
}
