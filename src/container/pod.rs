//! Containers of a Kubernetes pod: all live in the sandbox of the pod's first one.
//!
//! containerd and CRI-O say by annotations which container is the pod's first and which belong to it. Docker and Podman say
//! no more than whose network a container joins (`--network container:NAME`), by the path of that one's namespace: since the
//! network is its sentry's, the container is made there too. A further one has a state directory, a gofer and a cgroup of
//! its own; its processes are the sandbox's sentry's. On the host a stand-in is its first process ([`stand_in`]).
//!
//! ```text
//! pod     runsc-sandbox (sentry) ─ runsc-gofer     cgroup of pod: sentry, stubs, gofer
//! web     runsc-stand-in         ─ runsc-gofer     cgroup of web: stand-in, stubs, gofer
//! ```
//!
//! All share network and abstract UNIX sockets. System V IPC, host name and process numbers are shared where the
//! specification names a namespace of the pod or of another of its containers, by path: those that the sandbox has are the
//! sentry's, so the paths stand for them and are taken out before the specification is checked.
//!
//! CRI-O makes the network, IPC and UTS namespaces of a pod before its first container and pins them to files; the sentry
//! joins them ([`pinned`]). It may leave the first container out altogether ([`infra`]).
//!
//! Stubs are the sentry's children. Those of a further container are put into its own cgroup, for which the sentry is given
//! files; what the sentry itself uses for a container counts in the pod's. The limit of processes is kept by the sentry.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::signalfd::SignalFd;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};

use super::cgroup::{Held, oom};
use super::control::{Client, Request, Served, Shares};
use super::error::{Error, Result};
use super::hooks::{self, Point};
use super::report::{Reader, Report};
use super::sandbox::{Claim, Connection, Options, connections, for_sentry, new_record, start_gofer};
use super::spawn::Child;
use super::spec::{Bundle, Problem};
use super::stand_in::{self, Stood};
use super::state::{self, HostProcess, Record, Status};
use super::terminal;
use super::watch;
use super::{Context, life};
use infra::Infra;
use pinned::Pinned;

pub mod infra;
pub mod pinned;

/// What a specification says, or what is wrong with it.
type Found<T> = std::result::Result<T, Problem>;

/// Annotations that say what a container is: `sandbox` or `container`; and those that name its pod's first one.
const ANNOTATIONS: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];

/// What a container is to a pod.
#[derive(Debug)]
pub enum Role {
    /// One without a pod, or a pod's first one.
    First(Pinned),
    /// A further one.
    Member(Membership),
}

/// What makes a container one of a pod, besides the first.
#[derive(Debug)]
pub struct Membership {
    sandbox: Joined,
    shares: Shares,
}

/// The sandbox that a container joins.
#[derive(Debug)]
enum Joined {
    /// That of the pod's first container.
    First(Box<Record>),
    /// That of a pod whose containers have none that is the first.
    Infra(Infra),
}

/// What the container of a specification is to a pod. The namespaces of the pod that it names are taken out of it.
pub fn role(root: &Path, spec: &mut Spec) -> Found<Role> {
    let annotations = spec.annotations().clone().unwrap_or_default();
    let field = |name: &str| format!("annotations[{name:?}]");
    let named = ANNOTATIONS.iter().find_map(|(kind, id)| Some((*kind, annotations.get(*kind)?, *id)));
    let Some((kind, value, id)) = named else {
        let joined = joined(root, spec)?;
        return Ok(joined.map_or_else(|| Role::First(Pinned::default()), Role::Member));
    };
    match value.as_str() {
        "sandbox" => return Pinned::take(spec).map(Role::First),
        "container" => {}
        other => return Err(Problem::new(field(kind), format!("{other:?} is neither \"sandbox\" nor \"container\""))),
    }
    let name = annotations.get(id).ok_or_else(|| Problem::new(field(id), "is missing"))?;
    let wrong = |text: String| Problem::new(field(id), text);
    let sandbox = match state::load(root, name) {
        // Only CRI-O leaves it out.
        Err(Error::NotFound(_)) if kind == ANNOTATIONS[1].0 => None,
        found => Some(found.map_err(|error| wrong(error.to_string()))?),
    };
    let sandbox = match sandbox {
        Some(sandbox) if !sandbox.infra => sandbox,
        sandbox => return infra(root, spec, name, sandbox),
    };
    if sandbox.sandbox.is_some() {
        return Err(wrong(format!("container {name:?} is not the first of a pod")));
    }
    let others = state::list(root).map_err(|error| wrong(error.to_string()))?;
    member_of(root, sandbox, &others, &field(id), spec).map(Role::Member)
}

/// As [`role`], without annotations: a container that joins the network of another by the path of one of its processes.
fn joined(root: &Path, spec: &mut Spec) -> Found<Option<Membership>> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
    let processes: Vec<_> = namespaces.iter().map(|namespace| process_of(namespace.path().as_deref()?)).collect();
    if processes.iter().all(Option::is_none) {
        return Ok(None);
    }
    let records = state::list(root).map_err(|error| Problem::new("linux.namespaces", error.to_string()))?;
    let is = |record: &&Record, pid| record.process().is_some_and(|process| process.pid == pid && process.is_alive());
    let owner = |pid: i32| records.iter().find(|record| is(record, pid));
    let owners: Vec<_> = processes.into_iter().map(|pid| owner(pid?)).collect();
    let network = namespaces.iter().position(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    let Some((index, target)) = network.and_then(|index| Some((index, owners[index]?))) else {
        return alone(&namespaces, &owners).map_or(Ok(None), Err);
    };
    let field = format!("linux.namespaces[{index}].path");
    let first = target.sandbox.as_deref().unwrap_or(&target.id);
    let sandbox = records.iter().find(|record| record.id == first).cloned();
    let gone = || Problem::new(&field, format!("container {first:?} does not exist"));
    member_of(root, sandbox.ok_or_else(gone)?, &records, &field, spec).map(Some)
}

/// A namespace of another kind than the network alone: the sentry that has it has its own network too, and one that the
/// container did not ask for.
fn alone(namespaces: &[LinuxNamespace], owners: &[Option<&Record>]) -> Option<Problem> {
    let (index, owner) = owners.iter().enumerate().find_map(|(index, owner)| Some((index, (*owner)?)))?;
    let kind = namespaces[index].typ();
    let text = format!("the {kind} namespace of container {:?} can be joined only along with its network", owner.id);
    Some(Problem::new(format!("linux.namespaces[{index}].path"), text))
}

/// The process in `/proc/PID/ns/KIND`.
fn process_of(path: &Path) -> Option<i32> {
    let (pid, rest) = path.to_str()?.strip_prefix("/proc/")?.split_once('/')?;
    if rest.starts_with("ns/") { pid.parse().ok() } else { None }
}

/// `field`: what names the sandbox.
fn member_of(root: &Path, sandbox: Record, others: &[Record], field: &str, spec: &mut Spec) -> Found<Membership> {
    let status = life::status(root, &sandbox);
    if matches!(status, Status::Creating | Status::Stopped) {
        return Err(Problem::new(field, format!("container {:?} is {status}", sandbox.id)));
    }
    let shares = Pod { sandbox: &sandbox, others }.take_namespaces(spec, Network::Now)?;
    Ok(Membership { sandbox: Joined::First(Box::new(sandbox)), shares })
}

/// The part of a container in a pod that has no first one. Its sandbox may be there already.
fn infra(root: &Path, spec: &mut Spec, name: &str, sandbox: Option<Record>) -> Found<Role> {
    let pinned = Pinned::take(spec)?;
    let others = state::list(root).unwrap_or_default();
    let mut shares = match &sandbox {
        Some(sandbox) => Pod { sandbox, others: &others }.take_namespaces(spec, Network::Later)?,
        None => Shares::default(),
    };
    let of_pod = |pinned: bool| pinned.then(|| name.to_owned());
    shares.ipc = of_pod(pinned.has_ipc()).or(shares.ipc);
    shares.uts = of_pod(pinned.has_uts()).or(shares.uts);
    Ok(Role::Member(Membership { sandbox: Joined::Infra(Infra { name: name.to_owned(), pinned }), shares }))
}

impl Joined {
    fn name(&self) -> &str {
        match self {
            Joined::First(record) => &record.id,
            Joined::Infra(infra) => &infra.name,
        }
    }
}

/// When it is seen to that a container names the pod's network.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Network {
    Now,
    /// With [`Infra::ready`]: the sandbox may be just being made.
    Later,
}

/// The containers whose namespaces can be joined.
struct Pod<'a> {
    sandbox: &'a Record,
    others: &'a [Record],
}

impl Pod<'_> {
    fn take_namespaces(&self, spec: &mut Spec, network: Network) -> Found<Shares> {
        let mut shares = Shares::default();
        let Some(linux) = spec.linux_mut() else { return Ok(shares) };
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        for (index, namespace) in namespaces.iter_mut().enumerate() {
            let path = namespace.path().clone().filter(|path| !path.as_os_str().is_empty());
            let (typ, of) = (namespace.typ(), path.as_deref().and_then(|path| self.owner(namespace.typ(), path)));
            let share = match typ {
                LinuxNamespaceType::Network if of.is_none() && network == Network::Now => {
                    let text = "a container of a pod has the pod's network and no other";
                    return Err(Problem::new(format!("linux.namespaces[{index}].path"), text));
                }
                LinuxNamespaceType::Network => continue,
                LinuxNamespaceType::Pid => &mut shares.pid,
                LinuxNamespaceType::Ipc => &mut shares.ipc,
                LinuxNamespaceType::Uts => &mut shares.uts,
                _ => continue,
            };
            if of.is_some() {
                *share = of;
                namespace.set_path(None);
            }
        }
        linux.set_namespaces(Some(namespaces));
        Ok(shares)
    }

    /// The container of the pod that a path to a namespace stands for: by the number of a host process of its own, or as the
    /// sentry's.
    fn owner(&self, typ: LinuxNamespaceType, path: &Path) -> Option<String> {
        let file = match typ {
            LinuxNamespaceType::Network => "net",
            LinuxNamespaceType::Pid => "pid",
            LinuxNamespaceType::Ipc => "ipc",
            LinuxNamespaceType::Uts => "uts",
            _ => return None,
        };
        let sandbox = self.sandbox.id.as_str();
        let of_process = |record: &Record| {
            let process = record.process().filter(|process| process.is_alive());
            process.is_some_and(|process| path == Path::new(&format!("/proc/{}/ns/{file}", process.pid)))
        };
        let members = self.others.iter().filter(|other| other.sandbox.as_deref() == Some(sandbox));
        if let Some(member) = members.into_iter().find(|member| of_process(member)) {
            return Some(member.id.clone());
        }
        let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let own = identity(Path::new(&format!("/proc/{}/ns/{file}", self.sandbox.sentry?.pid)));
        (own.is_some() && identity(path) == own).then(|| sandbox.to_owned())
    }
}

/// A container of a pod that this command has made. Unless detached it ends with this value.
pub struct Member {
    // In the order of dropping, as with a sandbox.
    life: Life,
    gofer: Child,
    claim: Claim,
    signals: SignalFd,
    /// Where the control socket is.
    _sandbox: File,
}

/// What the container's life hangs on.
enum Life {
    /// A process that goes on without this command.
    StandIn(Child),
    /// This command itself.
    Own(Stood),
    /// It is over.
    None,
}

impl Member {
    /// Claims the name, makes the container in its pod's sandbox and returns once its program is loaded, or with the reason
    /// why it cannot be. Nothing is left behind then.
    pub fn create(id: &str, bundle: &Bundle, options: &Options, membership: Membership) -> Result<Member> {
        if options.tap.is_some() || options.network.needs_interface() {
            let text = "--tap, --ip, --gateway, --mtu and --mac: a container of a pod has the pod's network";
            return Err(Error::Usage(text.into()));
        }
        let signals = if options.attached { stand_in::take_all_signals()? } else { watch::take_signals()? };
        let Membership { sandbox, shares } = membership;
        let mut record = new_record(id, bundle);
        record.sandbox = Some(sandbox.name().to_owned());
        let mut claim = Claim::new(&options.state_root, record, bundle)?;
        let sandbox = match sandbox {
            Joined::First(record) => *record,
            Joined::Infra(infra) => infra.ready(bundle, options)?,
        };
        claim.container()?.record.sentry = sandbox.sentry;
        let (to_gofer, trees) = connections(bundle, options)?;
        let mut cgroup = claim.make_cgroup(bundle, options)?;
        let (gofer, pipes) = start_gofer(id, bundle, options, trees)?;
        let container = claim.container()?;
        container.record.gofer = HostProcess::of(gofer.pid());
        container.directory.save(&container.record)?;
        claim.enter_cgroup(&mut cgroup, &[gofer.pid()])?;
        let reports = pipes.go(&[])?;
        let before = [Point::Prestart, Point::CreateRuntime, Point::CreateContainer];
        hooks::run_all(&bundle.spec, &before, &claim.container()?.record)?;
        wait_started(reports)?;
        let directory = state::sandbox_directory(&options.state_root, &sandbox)?;
        let making = Making { id, bundle, options, sandbox: &directory };
        let life = making.make(&mut claim, to_gofer, shares, cgroup)?;
        expose(&sandbox, bundle)?;
        claim.container()?.save_status(Status::Created)?;
        Ok(Member { life, gofer, claim, signals, _sandbox: directory })
    }

    /// Lets the container's program go.
    pub fn start(&mut self) -> Result<()> {
        self.claim.container()?.start()?;
        self.claim.container()?.directory.unlock();
        Ok(())
    }

    /// The number of the host process that stands for its first one.
    pub fn pid(&self) -> i32 {
        match &self.life {
            Life::StandIn(child) => child.pid(),
            _ => std::process::id() as i32,
        }
    }

    /// Lets it run on without this command.
    pub fn detach(self) {
        let Member { life, gofer, mut claim, .. } = self;
        if let Life::StandIn(child) = life {
            child.release();
        }
        gofer.release();
        claim.give_up();
    }

    /// Passes signals on until the container ends, and returns its exit status. Nothing of it is left afterwards, except with
    /// `keep` a stopped container.
    pub fn wait(mut self, keep: bool) -> Result<i32> {
        let status = match std::mem::replace(&mut self.life, Life::None) {
            Life::Own(stood) => stood.wait(&self.signals)?,
            _ => return Err(Error::Usage("the container has been left to others".into())),
        };
        if keep {
            let container = self.claim.container()?;
            container.record.stand_in = None;
            container.save_status(Status::Stopped)?;
            self.claim.give_up();
        }
        Ok(status)
    }
}

/// The gofer has opened what it serves, or says why not.
fn wait_started(mut reports: Reader) -> Result<()> {
    let failed = |problem: String| Err(Error::Process { process: "gofer", problem });
    while let Some(said) = reports.read().doing(|| "wait for the gofer")? {
        for report in said {
            match report {
                Report::Started => return Ok(()),
                Report::Failed(problem) => return failed(problem),
                Report::Exited(_) => {}
            }
        }
    }
    failed("ended before it had begun".into())
}

/// Gives the sandbox's stubs the container's `process.oomScoreAdj`, where that makes them go earlier: a sentry makes stubs for
/// all its containers, and one that is needed by all (Kubernetes protects the first) must not protect the others.
fn expose(sandbox: &Record, bundle: &Bundle) -> Result<()> {
    let Some(sentry) = sandbox.sentry else { return Ok(()) };
    let process = bundle.spec.process().as_ref();
    oom::raise_stubs(sentry.pid, process.and_then(|process| process.oom_score_adj()))
}

/// The making of a container, as far as the sentry is concerned.
struct Making<'a> {
    id: &'a str,
    bundle: &'a Bundle,
    options: &'a Options,
    /// The directory of the control socket.
    sandbox: &'a File,
}

impl Making<'_> {
    fn make(&self, claim: &mut Claim, to_gofer: Vec<Connection>, shares: Shares, mut cgroup: Held) -> Result<Life> {
        let slave = match (self.bundle.spec.process(), &self.options.console_socket) {
            (Some(process), Some(socket)) => Some(terminal::make(process, socket)?),
            _ => None,
        };
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let mut fds: Vec<BorrowedFd<'_>> = match &slave {
            Some(slave) => vec![slave.as_fd(); 3],
            None => vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        };
        let exit = claim.dir()?.make_exit()?;
        fds.push(exit.as_fd());
        fds.extend(to_gofer.iter().map(|connection| connection.socket.as_fd()));
        let cgroups = claim.container()?.record.cgroup.entrances()?;
        fds.extend(cgroups.iter().map(AsFd::as_fd));
        // SAFETY: the command line has found them open, and nothing in this process closes them.
        fds.extend(self.options.preserved.iter().map(|&fd| unsafe { BorrowedFd::borrow_raw(fd) }));
        let mounts = to_gofer.iter().map(|connection| Served {
            destination: connection.mount.destination.clone(),
            read_only: connection.mount.read_only,
            follows: connection.mount.follows,
        });
        let request = Request::Create {
            id: self.id.to_owned(),
            spec: Box::new(for_sentry(self.bundle, self.options)),
            mounts: mounts.collect(),
            cgroups: cgroups.len(),
            overlay: self.options.overlay,
            shares,
        };
        let socket = state::socket_in(self.sandbox);
        let mut connection = Client::connect(self.sandbox)?;
        connection.call_with_fds::<()>(&request, &fds)?;
        let stood = Stood {
            id: self.id.to_owned(),
            pid: None,
            connection,
            socket: PathBuf::from(&socket),
            terminal: slave.is_some(),
        };
        let life = if self.options.attached {
            // On a terminal of the command's own, the command is told of new sizes.
            Life::Own(Stood { terminal: self.options.console, ..stood })
        } else {
            Life::StandIn(stand_in::start(stood, self.sandbox, slave.as_ref())?)
        };
        let container = claim.container()?;
        let pid = match &life {
            Life::StandIn(child) => child.pid(),
            _ => std::process::id() as i32,
        };
        container.record.stand_in = HostProcess::of(pid);
        container.directory.save(&container.record)?;
        if let Life::StandIn(_) = life {
            cgroup.enter(&[pid])?;
        }
        cgroup.release();
        Ok(life)
    }
}
