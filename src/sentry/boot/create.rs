//! Making a container in the sandbox, the first one as any further one.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::Spec;

use super::containers::{Container, Containers};
use super::init::{self, Names};
use super::peer::wait_for;
use super::{Doing, Outcome, kernel, mounts};
use crate::container::boot::{ContainerConfig, NamedFile, take};
use crate::container::control::{Served, Shares};
use crate::container::report;
use crate::errno::Errno;
use crate::sentry::counters::HostCounters;
use crate::sentry::home::Home;
use crate::sentry::namespaces::UtsNamespace;

/// Host memory for the stack of a thread.
const STACK: usize = 128 << 10;

/// What a container is made of.
pub struct NewContainer {
    /// Its name.
    pub id: String,
    /// What to run, checked.
    pub spec: Spec,
    /// What become its descriptors 0, 1, 2 and so on.
    pub files: Vec<OwnedFd>,
    /// The file that gets its exit status.
    pub exit: OwnedFd,
    /// Its gofer; the first connection is for the root.
    pub gofers: Vec<GoferConnection>,
    /// The files of its cgroup; none when it is in the sandbox's.
    pub cgroups: Vec<OwnedFd>,
    /// Whether the root gets a writable layer in memory.
    pub overlay: bool,
    /// Whether it gets a terminal of its own in place of the operator's, on standard input and output.
    pub console: bool,
    /// Whether the sentry is told of new sizes of the operator's terminal.
    pub controls_terminal: bool,
    /// Files of its cgroup, if its processes are there.
    pub counters: Vec<NamedFile>,
}

/// One tree of files that the gofer serves.
pub struct GoferConnection {
    /// The connection.
    pub socket: OwnedFd,
    /// Where it is mounted in the container; `/` for the root.
    pub destination: PathBuf,
    /// Whether the gofer refuses every change.
    pub read_only: bool,
    /// Whether what the host mounts there later is served too.
    pub follows: bool,
}

impl NewContainer {
    /// The sandbox's first one.
    pub fn first(config: ContainerConfig, counters: Vec<NamedFile>) -> NewContainer {
        let connection = |mount: crate::container::boot::GoferMount| GoferConnection {
            socket: take(mount.fd),
            destination: mount.destination,
            read_only: mount.read_only,
            follows: mount.follows,
        };
        NewContainer {
            id: config.id,
            spec: config.spec,
            files: config.stdio.into_iter().chain(config.preserved).map(take).collect(),
            exit: take(config.exit_fd),
            gofers: config.gofer_fds.into_iter().map(connection).collect(),
            cgroups: Vec::new(),
            overlay: config.overlay,
            console: config.console,
            controls_terminal: config.controls_terminal,
            counters,
        }
    }

    /// A further one. `fds` are those of [`Request::Create`](crate::container::control::Request::Create).
    pub fn further(
        id: String,
        spec: Spec,
        (served, cgroups): (Vec<Served>, usize),
        overlay: bool,
        fds: Vec<OwnedFd>,
    ) -> Outcome<NewContainer> {
        let missing = || format!("create {id:?}: descriptors are missing");
        let mut fds = fds.into_iter();
        let mut files: Vec<OwnedFd> = fds.by_ref().take(3).collect();
        let exit = fds.next().ok_or_else(missing)?;
        let connection = |(mount, socket): (Served, OwnedFd)| GoferConnection {
            socket,
            destination: mount.destination,
            read_only: mount.read_only,
            follows: mount.follows,
        };
        let count = served.len();
        let gofers: Vec<GoferConnection> = served.into_iter().zip(fds.by_ref().take(count)).map(connection).collect();
        let places: Vec<OwnedFd> = fds.by_ref().take(cgroups).collect();
        if gofers.len() < count || places.len() < cgroups {
            return Err(missing());
        }
        files.extend(fds);
        let console = spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
        Ok(NewContainer {
            id,
            spec,
            files,
            exit,
            gofers,
            cgroups: places,
            overlay,
            console,
            controls_terminal: false,
            counters: Vec::new(),
        })
    }
}

/// Makes it and loads its program, which waits to be let go.
pub fn create(containers: &Arc<Containers>, mut new: NewContainer, shares: &Shares) -> Outcome<Arc<Container>> {
    let with = |id: &Option<String>| id.as_deref().map(|id| containers.live(id)).transpose();
    let (pid, ipc, uts) = (with(&shares.pid)?, with(&shares.ipc)?, with(&shares.uts)?);
    let shared = &containers.shared;
    let tree = pid.map_or_else(Arc::default, |other| other.kernel.tree.clone());
    let ipc = ipc.map_or_else(Arc::default, |other| other.kernel.ipc.clone());
    let uts = match uts {
        Some(other) => {
            // As runc does in a namespace that it joins.
            new.spec.hostname().iter().for_each(|name| other.uts.set_host(name.as_bytes()));
            new.spec.domainname().iter().for_each(|name| other.uts.set_domain(name.as_bytes()));
            other.uts.clone()
        }
        None => UtsNamespace::new(
            new.spec.hostname().as_deref().unwrap_or("runsc").as_bytes(),
            new.spec.domainname().as_deref().unwrap_or("(none)").as_bytes(),
        ),
    };
    let kernel = kernel(shared, tree, ipc);
    let _ = kernel.counters.set(HostCounters::new(std::mem::take(&mut new.counters))); // the first time
    if !new.cgroups.is_empty() {
        let procs = std::mem::take(&mut new.cgroups).into_iter().map(File::from).collect();
        let _ = kernel.home.set(Home::new(procs)); // it is new
    }
    let exit = new.exit.try_clone().map_err(Errno::from).doing(|| "the file for the exit status".into())?;
    let root = new.gofers.first().ok_or("the gofer serves no root")?;
    let gofer = root.socket.try_clone().map_err(Errno::from).doing(|| "the connection to the gofer".into())?;
    let container = containers.add(&new.id, kernel.clone(), uts.clone(), exit)?;
    let names = Names { uts, unix: shared.unix.clone() };
    let made = mounts::build(&kernel, &mut new, &shared.volumes)
        .and_then(|mounts| init::start(&kernel, new, mounts, names))
        .and_then(|()| watch_gofer(&container, gofer));
    match made {
        Ok(()) => Ok(container),
        Err(problem) => {
            containers.remove(&container);
            Err(problem)
        }
    }
}

/// Starts a thread that ends the container when its gofer goes: without files it cannot go on.
fn watch_gofer(container: &Arc<Container>, gofer: OwnedFd) -> Outcome<()> {
    let container = container.clone();
    let main = move || {
        let kernel = &container.kernel;
        if !wait_for(&kernel.ended_queue, || kernel.ended().is_some(), Some(gofer.as_fd())) {
            let problem = format!("the gofer of container {:?} has gone", container.id);
            if container.is_root() {
                report::failed(&problem)
            } else {
                log::error!("{problem}")
            }
            kernel.kill();
        }
    };
    let started = std::thread::Builder::new().name("gofer".into()).stack_size(STACK).spawn(main);
    started.map(drop).map_err(Errno::from).doing(|| "watch the gofer".into())
}
