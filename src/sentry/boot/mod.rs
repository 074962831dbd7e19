//! From a configuration to a running container.
//!
//! ```text
//! main thread     platform, file systems, mounts, first task ──▶ waits for the container's end
//! task threads    one for each container thread
//! control thread  answers the commands of the runtime
//! ```

mod console;
mod control;
mod init;
pub(in crate::sentry) mod mounts;
pub(in crate::sentry) mod network;

pub use console::Console;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::container::boot::{BootConfig, take};
use crate::container::report;
use crate::errno::{Errno, Result};
use crate::netstack::stack::Stack;
use crate::netstack::unix::UnixNamespace;
use crate::platform::ptrace::PtracePlatform;
use crate::sentry::bootlog::BootLog;
use crate::sentry::kernel::{Kernel, KernelParts};
use crate::sentry::strace::Tracer;
use crate::sentry::task::jobctl::Processes;
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

/// Runs the container until its first process ends; its exit status, or 128 plus the signal that killed it.
pub fn run(config: BootConfig) -> i32 {
    match start(config) {
        Ok(kernel) => {
            let status = kernel.wait_ended().shell_status();
            if let Some(console) = kernel.console.get() {
                console.finish();
            }
            status
        }
        Err(problem) => {
            report::failed(&problem);
            // Nothing is to be reported after a failure; the other threads end with the process.
            std::process::exit(128);
        }
    }
}

fn start(mut config: BootConfig) -> Outcome<Arc<Kernel>> {
    // First of all, while the process is small: the stubs begin as copies of it.
    let platform = PtracePlatform::new().doing(|| "start the platform".into())?;
    let boot_log = boot_log(&config);
    let timers = TimerQueue::new();
    let processes = Arc::new(Processes::default());
    let terminals = Terminals::new(processes.clone(), timers.clone());
    let ptys = Arc::new(DevPts::new(mounts::next_dev(), DevPtsOptions::default(), terminals.clone()));
    let devices = Arc::new(DeviceTable::new());
    dev::register(&devices, &boot_log, &ptys, dev::controlling_terminal(&terminals), None);
    let net = Stack::new(&config.network, config.tap_fd.map(take), timers.clone());
    let links = std::mem::take(&mut config.links).into_iter().map(|(link, fd)| (link, take(fd))).collect();
    network::attach(&net, links, config.dns_fd.map(take))?;
    let tracer = config.strace.then(|| tracer(&config)).transpose()?;
    let kernel =
        Kernel::new(KernelParts { platform: Box::new(platform), timers, boot_log, net, devices, terminals, tracer });
    processes.set_kernel(&kernel);
    let mounts = mounts::build(&kernel, &mut config, &ptys)?;
    control::serve(&kernel, take(config.control_fd), &config.id)?;
    init::start(&kernel, &config, mounts, UnixNamespace::new(), &ptys)?;
    Ok(kernel)
}

/// The log that `dmesg(1)` shows begins with what the sandbox is made of.
fn boot_log(config: &BootConfig) -> Arc<BootLog> {
    let log = Arc::new(BootLog::new());
    log.push(&format!("Starting runsc {}...", env!("CARGO_PKG_VERSION")));
    log.push(&format!("Platform: {}, {} CPUs", config.platform, crate::platform::placement::count()));
    log.push(&format!("Root file system: {}", if config.overlay { "overlay in memory" } else { "gofer" }));
    let names: Vec<&str> =
        config.tap_fd.map(|_| "eth0").into_iter().chain(config.links.iter().map(|(link, _)| &*link.name)).collect();
    let interfaces = if names.is_empty() { "none but lo".into() } else { names.join(", ") };
    log.push(&format!("Network: smoltcp, interfaces: {interfaces}"));
    log.push(&format!("Container {} is being created", config.id));
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
