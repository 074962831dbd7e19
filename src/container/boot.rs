//! `runsc boot`: from a freshly executed process to the sentry's main loop.
//!
//! Order matters: what needs the host (reading the configuration, raising limits) first, then the mounts, then the
//! identity, and the seccomp filter last, before any thread exists.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use oci_spec::runtime::{Capabilities, PosixRlimitType, Spec};
use serde::{Deserialize, Serialize};

use super::control::Channel;
use super::error::{Context, Error, Result};
use super::isolate::Capability;
use super::network::NetConfig;
use super::spec::volumes::Volume;
use super::{isolate, report, terminal};
use crate::logging::{self, Format, Sink};
use crate::seccomp;

/// Everything the sentry is told. Descriptors are numbers in the sentry's process; it owns them.
#[derive(Debug, Serialize, Deserialize)]
pub struct BootConfig {
    /// The first container.
    pub container: ContainerConfig,
    /// Volumes of its containers that its annotations describe.
    pub volumes: Vec<Volume>,
    /// The platform's name: `ptrace`.
    pub platform: String,
    /// Whether system calls are traced.
    pub strace: bool,
    /// Whether debug lines are logged.
    pub debug: bool,
    /// The listening control socket; see [`control`](super::control).
    pub control_fd: RawFd,
    /// Where [`report`] writes.
    pub report_fd: RawFd,
    /// Says when to begin; see [`hold`].
    pub hold_fd: RawFd,
    /// The TAP device, when there is a network beyond loopback. Non-blocking.
    pub tap_fd: Option<RawFd>,
    /// How the interface on it is set up.
    pub network: NetConfig,
    /// Where the `log` crate's records go, if anywhere.
    pub log: Option<LogTarget>,
    /// Where `strace` lines go: the debug log, or else standard error.
    pub strace_fd: RawFd,
    /// Whether the sandbox ends with the command that made it.
    pub attached: bool,
}

/// What the sentry is told of a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Its name.
    pub id: String,
    /// What to run.
    pub spec: Spec,
    /// What the gofer serves; the first is the root.
    pub gofer_fds: Vec<GoferMount>,
    /// Its standard input, output and error. The first container's are the process's own until they are moved away: its 0
    /// and 1 are /dev/null then, and 2 too unless the sandbox is attached and its last words are heard.
    pub stdio: [RawFd; 3],
    /// What become its descriptors from 3 on.
    pub preserved: Vec<RawFd>,
    /// The file that gets its exit status.
    pub exit_fd: RawFd,
    /// Whether the root gets a writable layer in memory. Otherwise writes go to the host, or fail if it is read-only.
    pub overlay: bool,
    /// Whether it gets a terminal of its own in place of the operator's, on standard input and output.
    pub console: bool,
    /// Whether that one was made for the container alone, in `stdio` three times: the sentry is told of its sizes.
    pub controls_terminal: bool,
}

/// One tree of files that the gofer serves.
#[derive(Debug, Serialize, Deserialize)]
pub struct GoferMount {
    /// The connection.
    pub fd: RawFd,
    /// Where it is mounted in the container; `/` for the root.
    pub destination: PathBuf,
    /// Whether the gofer refuses every change.
    pub read_only: bool,
    /// Whether what the host mounts there later is served too.
    pub follows: bool,
}

/// An open log file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LogTarget {
    /// Open for appending.
    pub fd: RawFd,
    /// How lines look.
    pub format: Format,
    /// Whether debug lines are wanted.
    pub debug: bool,
}

impl LogTarget {
    /// Starts logging there. Takes the descriptor.
    pub fn init(self, command: &str) {
        let level = if self.debug { log::LevelFilter::Debug } else { log::LevelFilter::Info };
        logging::init(command, vec![Sink { file: take(self.fd).into(), format: self.format, level }]);
    }
}

/// The process behind `runsc boot`. Returns its exit status, which only matters when no report could be sent.
pub fn main(config_fd: RawFd) -> i32 {
    end_on_panic();
    match prepare(config_fd) {
        Ok((config, counters)) => {
            let status = crate::sentry::boot::run(config, counters);
            report::exited(status);
            status
        }
        Err(error) => {
            report::failed(&error.to_string());
            128
        }
    }
}

/// A panic is a bug of the sentry's: what it holds cannot be trusted any more. The sandbox ends with it, and its stubs,
/// which die with their tracer.
fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log::error!("{panic}");
        print(panic);
        report::failed(&format!("bug: {panic}").replace('\n', ": "));
        // SAFETY: ends the process at once; other threads must not go on.
        unsafe { libc::_exit(128) }
    }));
}

fn prepare(config_fd: RawFd) -> Result<(BootConfig, Vec<NamedFile>)> {
    let mut config: BootConfig = read_config(config_fd)?;
    report::init(take(config.report_fd));
    if let Some(log) = config.log {
        log.init("boot");
    }
    let counters = hold(config.hold_fd)?;
    config.container.stdio = move_stdio(config.container.stdio, config.attached)?;
    if config.container.controls_terminal {
        terminal::control(config.container.stdio[0])?;
        crate::sentry::boot::hold_back_new_sizes()?;
    }
    if config.strace_fd == 2 {
        config.strace_fd = config.container.stdio[2];
    }
    isolate::raise_limits()?;
    crate::platform::ptrace::prepare().map_err(std::io::Error::from).doing(|| "look for the vDSO")?;
    isolate::private_mounts()?;
    isolate::empty_root(0)?;
    isolate::become_nobody(needed(&config.container.spec))?;
    if config.attached {
        isolate::die_with_parent()?;
    }
    seccomp::sentry::install()?;
    isolate::give_back_memory();
    log::debug!("sandbox of {} is set up", config.container.id);
    Ok((config, counters))
}

/// An open file, by its name.
pub type NamedFile = (String, OwnedFd);

/// The capabilities that the sentry must keep: that to make threads less nice, where the container may ask for that and the
/// host did not let [`isolate::raise_limits`] raise the limit that allows it as well.
fn needed(spec: &Spec) -> &'static [Capability] {
    let asks = spec.process().as_ref().is_some_and(|process| {
        let sets = process.capabilities().as_ref();
        let has =
            |set: &Option<Capabilities>| set.iter().flatten().any(|one| *one == oci_spec::runtime::Capability::SysNice);
        let capable = sets.is_some_and(|sets| has(sets.bounding()) || has(sets.permitted()) || has(sets.effective()));
        let limits = process.rlimits().iter().flatten();
        capable || limits.into_iter().any(|limit| limit.typ() == PosixRlimitType::RlimitNice && limit.hard() > 0)
    });
    if asks && !isolate::may_be_less_nice() { &[Capability::SysNice] } else { &[] }
}

/// Waits until the command line says to begin: it has by then written down that this process is there, and has put it in
/// its cgroup, some of whose files it may pass on. A command line that was killed before leaves nothing that nobody knows
/// of.
pub fn hold(fd: RawFd) -> Result<Vec<NamedFile>> {
    let doing = || "wait for the command that made this process";
    let said = Channel::new(take(fd).into()).receive().doing(doing)?;
    let (names, fds) = said.ok_or_else(|| Error::Usage("the command that made this process is gone".into()))?;
    let names: Vec<String> = serde_json::from_slice(&names).map_err(io::Error::from).doing(doing)?;
    Ok(names.into_iter().zip(fds).collect())
}

/// Has a process go on that waits in [`hold`] at the other end. One that has failed already tells so itself.
pub fn go(hold: UnixStream, files: &[(&'static str, File)]) -> Result<()> {
    let doing = || "start the sandbox's processes";
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let names = serde_json::to_vec(&names).map_err(io::Error::from).doing(doing)?;
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(|(_, file)| file.as_fd()).collect();
    match Channel::new(hold).send(names, &fds) {
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
        sent => sent.doing(doing),
    }
}

/// Reads the configuration that the command line left in a memory file.
pub fn read_config<T: for<'de> Deserialize<'de>>(fd: RawFd) -> Result<T> {
    let mut file = File::from(take(fd));
    let mut text = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut text)).doing(|| "read the configuration")?;
    serde_json::from_slice(&text).map_err(io::Error::from).doing(|| "read the configuration")
}

/// Owns a descriptor that the command line passed by number.
pub fn take(fd: RawFd) -> OwnedFd {
    // SAFETY: the command line made this descriptor for this process and named it once in its configuration.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Moves the container's standard descriptors above 2, so that the sentry can close them like any other and so that
/// nothing of the sentry's own ends up in them.
fn move_stdio(given: [RawFd; 3], attached: bool) -> Result<[RawFd; 3]> {
    let mut moved = given;
    for fd in &mut moved {
        // SAFETY: duplicates a descriptor; no memory is passed.
        *fd = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 3) };
        if *fd < 0 {
            return Err(Error::last_os("duplicate standard input and output"));
        }
    }
    if given[0] > 2 {
        drop(take(given[0])); // a terminal, three times
    }
    isolate::silence(if attached { &[0, 1] } else { &[0, 1, 2] })?;
    Ok(moved)
}
