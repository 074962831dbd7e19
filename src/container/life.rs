//! What commands do to a container that is there: starting, signalling, ending it.
//!
//! A container is found by its record. Any command may have been killed at any point, so that none relies on the one
//! before it having finished: what is written down is checked against the processes that are there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use oci_spec::runtime::Spec;

use super::cgroup::Cgroup;
use super::control::{Client, Exit, PATIENCE, Request, State, Target};
use super::error::{Error, Result};
use super::hooks::{self, Point};
use super::pod::infra;
use super::spec::Bundle;
use super::state::{self, Record, StateDir, Status};
use super::{network, spawn};

/// How long the sentry may take to say how a container is, before what is written down is believed.
const LOOK: Duration = Duration::from_secs(1);

/// A container, locked: nobody else changes it meanwhile.
pub struct Container {
    /// Where its state is kept.
    pub directory: StateDir,
    /// What is known of it.
    pub record: Record,
}

impl Container {
    /// The container `id`, once no other command changes it.
    pub fn open(root: &Path, id: &str) -> Result<Container> {
        let directory = StateDir::open(root, id)?;
        let record = directory.load()?;
        Ok(Container { directory, record })
    }

    /// How it is now.
    pub fn status(&self) -> Status {
        status(self.root(), &self.record)
    }

    fn root(&self) -> &Path {
        self.directory.path().parent().unwrap_or(Path::new("."))
    }

    /// A connection to its sentry, whose answers may take as long as they need while it answers at all.
    pub fn connect(&self) -> Result<Client> {
        state::connect(self.root(), &self.record)
    }

    /// Asks its sentry; the answer must come soon.
    pub fn call<T: for<'de> serde::Deserialize<'de>>(&self, request: &Request) -> Result<T> {
        state::connect_within(self.root(), &self.record, PATIENCE)?.call(request)
    }

    /// Writes down that it has come further, as far as the disk has room: the sentry, which [`status`] asks, knows it too.
    pub fn note_status(&mut self, status: Status) {
        if let Err(error) = self.save_status(status) {
            log::warn!("{error}");
        }
    }

    /// Writes down that it has come further.
    pub fn save_status(&mut self, status: Status) -> Result<()> {
        self.record.status = status;
        self.directory.save(&self.record)
    }

    /// Lets the program of a created container go.
    pub fn start(&mut self) -> Result<()> {
        let refuse = |text: &str| Err(Error::Usage(text.into()));
        match self.status() {
            Status::Created => {}
            Status::Stopped => return refuse("cannot start a container that has stopped"),
            Status::Creating => return refuse("cannot start a container whose creation was interrupted: delete it"),
            Status::Running | Status::Paused => return refuse("cannot start an already running container"),
        }
        let spec = self.directory.spec()?;
        if let Err(error) = self.let_go(&spec) {
            // As after a failed hook of `create`, but the state is for `delete` to remove.
            if let Err(error) = self.kill(libc::SIGKILL, Target::Init) {
                log::debug!("{error}");
            }
            return Err(error);
        }
        self.note_status(Status::Running);
        hooks::run_all(&spec, &[Point::Poststart], &self.record)
    }

    fn let_go(&self, spec: &Spec) -> Result<()> {
        let id = || self.record.id.clone();
        // Hooks may take their time.
        let mut client = self.connect()?;
        if self.record.takes_interfaces {
            self.hand_over_network(spec, &mut client)?;
        }
        if spec.hooks().as_ref().is_some_and(|hooks| !Point::StartContainer.of(hooks).is_empty()) {
            client.call::<()>(&Request::StartHooks { id: id(), state: Box::new(hooks::state(&self.record)?) })?;
        }
        client.call(&Request::Start { id: id() })
    }

    /// Sends a signal. The text of the error for a container that has ended is what containerd looks for.
    pub fn kill(&self, signal: i32, target: Target) -> Result<()> {
        let not_running = || Error::Usage("container not running".into());
        // As far as processes tell: a sentry that does not answer any more must be killable at once.
        if matches!(self.record.status(), Status::Stopped | Status::Creating) {
            // Nothing is left to be signalled.
            return if target == Target::All { Ok(()) } else { Err(not_running()) };
        }
        match self.call::<()>(&Request::Signal { id: self.record.id.clone(), signal, target }) {
            Ok(()) => Ok(()),
            Err(_) if self.record.status() == Status::Stopped => Err(not_running()),
            // A sentry that does not listen any more.
            Err(Error::Io { .. }) if signal == libc::SIGKILL && target != Target::Foreground => {
                self.record.process().map_or(Ok(()), spawn::kill_and_wait)
            }
            Err(error) => Err(error),
        }
    }

    /// Ends it and removes all that is left of it, however far it had come.
    pub fn destroy(self) -> Result<()> {
        let own_sandbox = self.record.sandbox.is_none();
        if !own_sandbox && self.record.sentry.is_some_and(|sentry| sentry.is_alive()) {
            // A sandbox that ends meanwhile takes the container with it.
            if let Err(error) = self.call::<()>(&Request::Destroy { id: self.record.id.clone() }) {
                log::debug!("{error}");
            }
        }
        let sentry = self.record.sentry.filter(|_| own_sandbox);
        // A command that stands for a container itself is about to end.
        let stand_in = self.record.stand_in.filter(|process| process.pid != std::process::id() as i32);
        for process in [sentry, stand_in, self.record.gofer].into_iter().flatten() {
            spawn::kill_and_wait(process)?;
        }
        // A command that was killed may not have come to writing it.
        if let Ok(spec) = self.directory.spec() {
            hooks::run_all(&spec, &[Point::Poststop], &self.record)?;
        }
        self.record.cgroup.destroy()?;
        let root = self.root().to_owned();
        self.directory.remove()?;
        if own_sandbox { Ok(()) } else { infra::retire(&root) }
    }
}

/// Ends and removes a container whose record cannot be read. Its sentry is found by a file of the state directory that no
/// other process writes, and its cgroups by its specification; the gofer and the stand-ins end when the sentry does.
/// `systemd`: whether its cgroups are systemd's.
pub fn destroy_damaged(root: &Path, id: &str, systemd: bool) -> Result<()> {
    let directory = StateDir::open(root, id)?;
    for process in directory.users()? {
        spawn::kill_and_wait(process)?;
    }
    if let Ok(spec) = directory.spec() {
        Cgroup::left_by(&spec, id, systemd)?.destroy()?;
    }
    directory.remove()?;
    infra::retire(root)
}

impl Container {
    /// Gives the sandbox what engines and plugins have put into its network namespace by now.
    fn hand_over_network(&self, spec: &Spec, client: &mut Client) -> Result<()> {
        let Some(sentry) = self.record.sentry else { return Ok(()) };
        let namespace = PathBuf::from(format!("/proc/{}/ns/net", sentry.pid));
        let bundle = Bundle { path: self.record.bundle.clone(), spec: spec.clone() };
        let taken = network::take_over(&namespace, &bundle)?;
        if taken.links.is_empty() && taken.dns.is_none() {
            return Ok(());
        }
        let (links, devices): (Vec<_>, Vec<_>) = taken.links.into_iter().unzip();
        let fds: Vec<BorrowedFd<'_>> = devices.iter().chain(&taken.dns).map(AsFd::as_fd).collect();
        let request = Request::Network { id: self.record.id.clone(), links, dns: taken.dns.is_some() };
        client.call_with_fds(&request, &fds)
    }
}

/// How a container is now. That is the sentry's to know: the command that started or paused it may have been killed, or
/// have found no room on the disk, before it could write that down. One that does not answer (it may be stopped) is not waited
/// for: what is written down says it then, with the exit status, which the sentry writes itself.
pub fn status(root: &Path, record: &Record) -> Status {
    let known = record.status();
    if matches!(known, Status::Creating | Status::Stopped) {
        return known;
    }
    let asked = || -> Result<Status> {
        let mut client = state::connect_within(root, record, LOOK)?;
        Ok(client.call::<State>(&Request::State { id: record.id.clone() })?.status)
    };
    asked().unwrap_or_else(|_| match StateDir::exit_status_in(root, &record.id) {
        Some(_) => Status::Stopped,
        // It may have ended just now.
        None => record.status(),
    })
}

/// How each of several containers is now, asked at once.
pub fn statuses(root: &Path, records: &[Record]) -> Vec<Status> {
    /// As many as are asked at a time.
    const AT_ONCE: usize = 64;
    let ask = |some: &[Record]| {
        thread::scope(|scope| {
            let spawn = |record| thread::Builder::new().spawn_scoped(scope, move || status(root, record));
            let asked: Vec<_> = some.iter().map(|record| (record, spawn(record))).collect();
            // Without a thread for it, one after the other.
            let answer = |(record, asked): (&Record, io::Result<ScopedJoinHandle<'_, Status>>)| match asked {
                Ok(asked) => asked.join().unwrap_or_else(|_| record.status()),
                Err(_) => status(root, record),
            };
            asked.into_iter().map(answer).collect::<Vec<Status>>()
        })
    };
    records.chunks(AT_ONCE).flat_map(ask).collect()
}

/// Waits for the end of a container's process and returns its exit status, or 128 plus the signal that killed it. The
/// container is not locked meanwhile. A container's own status stays known until it is deleted.
pub fn wait(root: &Path, id: &str, pid: Option<i32>) -> Result<i32> {
    let record = state::load(root, id)?;
    let known = || StateDir::exit_status_in(root, id).filter(|_| pid.is_none());
    let unknown = || Error::Usage(format!("container {id:?} has ended, nobody knows how"));
    if status(root, &record) == Status::Stopped {
        return known().ok_or_else(unknown);
    }
    let asked = state::connect(root, &record).and_then(|mut client: Client| {
        // A sentry that is stopped has not ended.
        client.wait_for_ever()?;
        client.call::<Exit>(&Request::Wait { id: id.to_owned(), pid })
    });
    match asked {
        Ok(exit) => Ok(exit.status),
        // The sandbox ended before it could answer, or nothing can be asked of it any more.
        Err(Error::Io { .. }) if pid.is_none() => {
            record.process().map_or(Ok(()), spawn::wait_for)?;
            known().ok_or_else(unknown)
        }
        Err(error) => Err(error),
    }
}
