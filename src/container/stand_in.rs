//! A host process that stands for a process of a container, for whoever knows containers by their host processes
//! (containerd's shim does): it ends with that process's status, passes every signal on, and takes the process with it when
//! it is killed.
//!
//! It holds the connection to the sentry on which the process was asked for; the sentry kills the process when that closes.
//! With a terminal it leads the session that the host's end of it controls, so that it is told of new sizes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};

use super::boot::{read_config, take};
use super::control::{Client, Exit, Request, Target};
use super::error::{Context, Error, Result};
use super::spawn::{Child, Manner, spawn_as};
use super::terminal;

/// How long the sentry may take to accept a signal.
const GRACE: Duration = Duration::from_secs(5);

/// The status of a process whose sentry has gone: it was killed.
const KILLED: i32 = 128 + libc::SIGKILL;

/// What `runsc stand-in` is told. Descriptors are numbers in its process; it owns them.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    id: String,
    pid: Option<i32>,
    /// The connection that the process belongs to.
    connection: RawFd,
    /// The directory of the control socket.
    directory: RawFd,
    /// The slave of the terminal, if it has one.
    terminal: Option<RawFd>,
}

/// The process of a container that is stood for.
pub struct Stood {
    /// The container.
    pub id: String,
    /// Its number in the container; the first process when not given.
    pub pid: Option<i32>,
    /// The connection that it belongs to.
    pub connection: Client,
    /// A path to the control socket, for further connections.
    pub socket: PathBuf,
    /// Whether SIGWINCH means that the terminal has a new size.
    pub terminal: bool,
}

/// Starts a stand-in, which takes over the connection. `directory` is the one of the control socket. Must be called while
/// the process has one thread only.
pub fn start(stood: Stood, directory: &impl AsFd, terminal: Option<&OwnedFd>) -> Result<Child> {
    let doing = || "start the stand-in";
    let connection = stood.connection.into_stream()?;
    let config = Config {
        id: stood.id,
        pid: stood.pid,
        connection: connection.as_raw_fd(),
        directory: directory.as_fd().as_raw_fd(),
        terminal: terminal.map(AsRawFd::as_raw_fd),
    };
    let text = serde_json::to_vec(&config).map_err(io::Error::from).doing(doing)?;
    let memory = memfd_create("runsc-config", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from).doing(doing)?;
    let mut memory = File::from(memory);
    memory.write_all(&text).doing(doing)?;
    let mut inherited = vec![config.connection, config.directory, memory.as_raw_fd()];
    inherited.extend(config.terminal);
    let descriptor = format!("--config-fd={}", memory.as_raw_fd());
    // No signal may get lost between its birth and its first look.
    let manner = Manner { namespaces: 0, joined: Vec::new(), blocked: SigSet::all(), silent: true };
    spawn_as(&manner, &["runsc-stand-in", "stand-in", &descriptor, "--id", &config.id], &inherited)
}

/// The process behind `runsc stand-in`. Returns its exit status, which is that of the process it stands for.
pub fn main(config_fd: RawFd) -> i32 {
    match prepare(config_fd).and_then(|(stood, signals)| stood.wait(&signals)) {
        Ok(status) => status,
        Err(error) => {
            log::error!("{error}");
            KILLED
        }
    }
}

fn prepare(config_fd: RawFd) -> Result<(Stood, SignalFd)> {
    let config: Config = read_config(config_fd)?;
    let signals = take_all_signals()?;
    // Nobody's working directory is kept busy.
    nix::unistd::chdir("/").map_err(io::Error::from).doing(|| "change to /")?;
    if let Some(fd) = config.terminal {
        // One that has hung up already has no more sizes; the sentry tells the process.
        if let Err(error) = terminal::control(fd) {
            log::debug!("{error}");
        }
        drop(take(fd));
    }
    let stood = Stood {
        id: config.id,
        pid: config.pid,
        connection: Client::from_stream(take(config.connection).into()),
        socket: format!("/proc/self/fd/{}/{}", config.directory, super::control::SOCKET).into(),
        terminal: config.terminal.is_some(),
    };
    if stood.terminal {
        // It may have changed before this process was told of changes.
        stood.tell(&stood.resize());
    }
    Ok((stood, signals))
}

/// Blocks every signal and reads them from a descriptor instead.
pub fn take_all_signals() -> Result<SignalFd> {
    let doing = || "prepare to forward signals";
    let set = SigSet::all();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).map_err(io::Error::from).doing(doing)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(io::Error::from).doing(doing)
}

impl Stood {
    /// Passes signals on until the process ends, and returns its status.
    pub fn wait(mut self, signals: &SignalFd) -> Result<i32> {
        self.connection.wait_for_ever()?;
        self.connection.send(&Request::Wait { id: self.id.clone(), pid: self.pid }, &[])?;
        loop {
            let (connection, signal) = (self.connection.as_fd(), signals.as_fd());
            let mut fds = [PollFd::new(connection, PollFlags::POLLIN), PollFd::new(signal, PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                ready => ready.map_err(io::Error::from).doing(|| "wait for the process")?,
            };
            let (ended, signalled) = (fds[0].any() == Some(true), fds[1].any() == Some(true));
            if signalled {
                self.pass_on(signals)?;
            } else if ended {
                return match self.connection.answer::<Exit>() {
                    Ok(exit) => Ok(exit.status),
                    // The sandbox is gone, and the process with it.
                    Err(Error::Io { .. }) => Ok(KILLED),
                    Err(error) => Err(error),
                };
            }
        }
    }

    fn pass_on(&self, signals: &SignalFd) -> Result<()> {
        /// From the kernel, not from a process: `sigaction(2)`.
        const SI_KERNEL: i32 = 0x80;
        while let Some(info) = signals.read_signal().map_err(io::Error::from).doing(|| "read a signal")? {
            let signal = info.ssi_signo as i32;
            match signal {
                libc::SIGWINCH if self.terminal => self.tell(&self.resize()),
                // What a terminal that hangs up tells the leader of its session, the sentry tells the container's.
                libc::SIGHUP | libc::SIGCONT if self.terminal && info.ssi_code == SI_KERNEL => {}
                // This process's own affairs.
                libc::SIGCHLD | libc::SIGPIPE => {}
                _ => self.tell(&Request::Signal { id: self.id.clone(), signal, target: self.target() }),
            }
        }
        Ok(())
    }

    fn target(&self) -> Target {
        self.pid.map_or(Target::Init, Target::Process)
    }

    /// The sentry looks at the terminal itself.
    fn resize(&self) -> Request {
        Request::Resize { id: self.id.clone(), pid: self.pid, rows: 0, columns: 0 }
    }

    /// On a connection of its own: the other one is busy waiting.
    fn tell(&self, request: &Request) {
        if let Err(error) = tell(&self.socket, request) {
            log::warn!("{error}");
        }
    }
}

fn tell(socket: &Path, request: &Request) -> Result<()> {
    Client::connect_within(socket, GRACE)?.call(request)
}
