//! Making a sandbox: names, descriptors, processes. What happens to it afterwards is in `watch`.
//!
//! A [`Sandbox`] owns its two processes and the container's state: dropping it kills, reaps and removes, so every error
//! path cleans up by returning. A command that is killed cannot do that: its processes wait to begin until they are written
//! down (`boot::hold`), and go when it has gone before.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::pipe2;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::Serialize;

use super::boot::{BootConfig, ContainerConfig, GoferMount, LogTarget, go};
use super::cgroup::{self, Cgroup};
use super::control;
use super::error::{Context, Error, Result};
use super::gofer::{GoferConfig, Tree};
use super::hooks::{self, Point};
use super::life::Container;
use super::network::{self, NetConfig, Tap, find_tap, open_tap};
use super::pod::infra;
use super::pod::pinned::Pinned;
use super::report::Reader;
use super::spawn::{Child, spawn_in};
use super::spec::volumes::volumes;
use super::spec::{Bundle, Problem, is_bind};
use super::state::{HostProcess, Record, StateDir, Status};
use super::terminal;
use super::watch::{self, Progress};
use crate::logging::{self, Format};

/// What the operator chose, beyond the bundle.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where state is kept.
    pub state_root: PathBuf,
    /// Whether cgroups are asked of systemd.
    pub systemd_cgroup: bool,
    /// The platform's name.
    pub platform: String,
    /// Trace system calls.
    pub strace: bool,
    /// Log debug lines.
    pub debug: bool,
    /// The pattern of `--debug-log`; see [`logging::expand`].
    pub debug_log: Option<String>,
    /// The format of the debug log.
    pub debug_log_format: Format,
    /// Give the root a writable layer in memory.
    pub overlay: bool,
    /// Whether there may be a network beyond loopback.
    pub interface: bool,
    /// The TAP device's name; when not given, it is looked for in the specification's network namespace.
    pub tap: Option<String>,
    /// What goes on it.
    pub network: NetConfig,
    /// Whether the sandbox ends with this command.
    pub attached: bool,
    /// Whether this command's standard input and output are a terminal that the container's own is to appear on.
    pub console: bool,
    /// Who gets the master of the container's terminal, if that is to be a new one.
    pub console_socket: Option<PathBuf>,
    /// Descriptors of this command that become the container's from 3 on.
    pub preserved: Vec<RawFd>,
    /// How many of them, the first ones, are sockets that the container's program is told of.
    pub listening: u32,
    /// Whether the container is one that only pauses, for others: see [`infra`].
    pub infra: bool,
}

/// A sandbox whose first container this command has made. Unless detached it ends with this value.
pub struct Sandbox {
    // In the order of dropping: the processes go before the cgroups and the state that they can be found by.
    pub(super) sentry: Child,
    pub(super) gofer: Child,
    pub(super) claim: Claim,
    pub(super) sentry_reports: Option<Reader>,
    pub(super) gofer_reports: Option<Reader>,
    pub(super) signals: SignalFd,
    pub(super) progress: Progress,
}

impl Sandbox {
    /// Claims the name, makes the sandbox and returns once the container's program is loaded, or with the reason why it
    /// cannot be. Nothing is left behind then.
    pub fn create(id: &str, bundle: &Bundle, options: &Options, pinned: &Pinned) -> Result<Sandbox> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::Usage("must be run as root: rootless sandboxes are not supported yet".into()));
        }
        // From here on a signal is read when it can be dealt with; it cannot leave half a sandbox behind.
        let signals = watch::take_signals()?;
        let tap = open_interface(bundle, options)?;
        if options.interface && tap.is_none() {
            refuse_hosts_network(bundle)?;
        }
        let mut record = new_record(id, bundle);
        // Nobody can put an interface into a new namespace of a sandbox that only this command knows of, but hooks.
        let known = bundle.network_namespace().is_some() || bundle.spec.hooks().is_some() || !options.attached;
        record.takes_interfaces = options.interface && tap.is_none() && known;
        record.infra = options.infra;
        let mut claim = Claim::new(&options.state_root, record, bundle)?;
        if options.infra {
            infra::make_root(claim.dir()?)?;
        }
        let (to_gofer, trees) = connections(bundle, options)?;
        let mut cgroup = claim.make_cgroup(bundle, options)?;
        // Both processes set themselves up at the same time, once they are written down.
        let (gofer, gofer_pipes) = start_gofer(id, bundle, options, trees)?;
        let (sentry, sentry_pipes) = start_sentry(id, bundle, options, &claim, to_gofer, (tap, pinned))?;
        let container = claim.container()?;
        container.record.sentry = HostProcess::of(sentry.pid());
        container.record.gofer = HostProcess::of(gofer.pid());
        container.directory.save(&container.record)?;
        claim.enter_cgroup(&mut cgroup, &[sentry.pid(), gofer.pid()])?;
        // It goes with the claim now.
        cgroup.release();
        let gofer_reports = gofer_pipes.go(&[])?;
        let before = [Point::Prestart, Point::CreateRuntime, Point::CreateContainer];
        hooks::run_all(&bundle.spec, &before, &claim.container()?.record)?;
        let sentry_reports = sentry_pipes.go(&claim.container()?.record.cgroup.counters())?;
        let mut sandbox = Sandbox {
            sentry,
            gofer,
            claim,
            sentry_reports: Some(sentry_reports),
            gofer_reports: Some(gofer_reports),
            signals,
            progress: Progress::default(),
        };
        sandbox.wait_started()?;
        let process = bundle.spec.process().as_ref();
        cgroup::oom::expose_stubs(sandbox.sentry.pid(), process.and_then(|process| process.oom_score_adj()))?;
        sandbox.claim.container()?.save_status(Status::Created)?;
        Ok(sandbox)
    }

    /// Lets the container's program go.
    pub fn start(&mut self) -> Result<()> {
        self.claim.container()?.start()?;
        self.claim.container()?.directory.unlock();
        Ok(())
    }

    /// The sentry's process number, which stands for the container's on the host.
    pub fn pid(&self) -> i32 {
        self.sentry.pid()
    }

    /// Lets the sandbox run on without this command.
    pub fn detach(self) {
        let Sandbox { sentry, gofer, mut claim, .. } = self;
        sentry.release();
        gofer.release();
        claim.give_up();
    }
}

/// A container that this command makes. It is destroyed when dropped, unless given up.
pub(super) struct Claim(Option<Container>);

impl Claim {
    /// Claims the record's name.
    pub(super) fn new(root: &Path, record: Record, bundle: &Bundle) -> Result<Claim> {
        let directory = StateDir::create(root, &record)?;
        let claim = Claim(Some(Container { directory, record }));
        claim.dir()?.save_spec(&bundle.spec)?;
        Ok(claim)
    }

    pub(super) fn container(&mut self) -> Result<&mut Container> {
        self.0.as_mut().ok_or_else(|| Error::Usage("the container has been given up".into()))
    }

    pub(super) fn dir(&self) -> Result<&StateDir> {
        let container = self.0.as_ref().map(|container| &container.directory);
        container.ok_or_else(|| Error::Usage("the container has been given up".into()))
    }

    /// Makes its cgroups, which the record names before they are there.
    pub(super) fn make_cgroup(&mut self, bundle: &Bundle, options: &Options) -> Result<cgroup::Held> {
        let container = self.container()?;
        let plan = Cgroup::plan(&bundle.spec, &container.record.id, options.systemd_cgroup)?;
        container.record.cgroup = plan.cgroup().clone();
        container.directory.save(&container.record)?;
        let held = plan.make()?;
        container.record.cgroup = held.cgroup();
        Ok(held)
    }

    /// Puts processes there. A systemd that makes the cgroup needs some for it, so that it is known only then.
    pub(super) fn enter_cgroup(&mut self, cgroup: &mut cgroup::Held, processes: &[i32]) -> Result<()> {
        cgroup.enter(processes)?;
        let container = self.container()?;
        if container.record.cgroup != cgroup.cgroup() {
            container.record.cgroup = cgroup.cgroup();
            container.directory.save(&container.record)?;
        }
        Ok(())
    }

    /// Leaves it to later commands.
    pub(super) fn give_up(&mut self) {
        self.0 = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(container) = self.0.take()
            && let Err(error) = container.destroy()
        {
            log::warn!("{error}");
        }
    }
}

/// The command line's ends of a process's pipes.
pub(super) struct Pipes {
    /// What it reports.
    reports: OwnedFd,
    hold: UnixStream,
}

impl Pipes {
    /// Lets the process begin, with some files; see [`super::boot::hold`].
    pub(super) fn go(self, files: &[(&'static str, File)]) -> Result<Reader> {
        go(self.hold, files)?;
        Ok(Reader::new(self.reports))
    }
}

pub(super) fn new_record(id: &str, bundle: &Bundle) -> Record {
    Record {
        id: id.to_owned(),
        oci_version: bundle.spec.version().clone(),
        status: Status::Creating,
        bundle: bundle.path.clone(),
        created: logging::rfc3339(SystemTime::now()),
        rootfs: bundle.root().to_owned(),
        owner: owner(),
        sentry: None,
        gofer: None,
        sandbox: None,
        stand_in: None,
        takes_interfaces: false,
        infra: false,
        annotations: bundle.spec.annotations().clone().unwrap_or_default().into_iter().collect(),
        cgroup: Default::default(),
    }
}

/// Who gives this command.
fn owner() -> String {
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// The host's own network has interfaces that no sandbox may take, as the host would lose them. Who asks for it, by its path or
/// by naming namespaces but none for the network (`docker run --network=host`), is told so, rather than given loopback alone.
fn refuse_hosts_network(bundle: &Bundle) -> Result<()> {
    let listed = bundle.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let network = listed.iter().position(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    let (field, what) = match (network, bundle.network_namespace()) {
        (None, _) if listed.is_empty() => return Ok(()),
        (None, _) => ("linux.namespaces".to_owned(), "none for the network means".to_owned()),
        (Some(index), Some(path)) if network::is_hosts_own(path)? => {
            (format!("linux.namespaces[{index}].path"), format!("{} is", path.display()))
        }
        _ => return Ok(()),
    };
    let text = format!("{what} the host's own network, which a sandbox cannot have (see --network=none)");
    Err(Problem::new(field, text).at(&bundle.path.join("config.json")))
}

/// The TAP device that was named, or the one of the specification's network namespace.
fn open_interface(bundle: &Bundle, options: &Options) -> Result<Option<Tap>> {
    let namespace = bundle.network_namespace();
    let found = match (&options.tap, namespace) {
        (Some(name), _) => Some(name.clone()),
        (None, Some(path)) if options.interface => find_tap(path)?,
        (None, _) => None,
    };
    match found {
        Some(name) => open_tap(&name, namespace).map(Some),
        None if options.network.needs_interface() => {
            Err(Error::Usage("--ip, --gateway, --mtu and --mac need a device: --tap=NAME".into()))
        }
        None => Ok(None),
    }
}

/// The sentry's side of a connection to the gofer, with what it carries.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) mount: GoferMount,
}

/// The gofer's side.
pub(super) struct Served {
    socket: OwnedFd,
    tree: Tree,
}

/// Connects the two processes: once for the root, once for each bind mount.
pub(super) fn connections(bundle: &Bundle, options: &Options) -> Result<(Vec<Connection>, Vec<Served>)> {
    let root_writable = !bundle.root_read_only() && !options.overlay;
    let root = (bundle.root().to_owned(), PathBuf::from("/"), (true, root_writable, false));
    let binds = bundle.spec.mounts().iter().flatten().filter(|mount| is_bind(mount)).filter_map(|mount| {
        let has = |wanted: &str| mount.options().iter().flatten().any(|option| option == wanted);
        let source = mount.source().clone()?;
        let follows = (has("slave") || has("rslave")) && source.is_dir();
        Some((source, mount.destination().clone(), (has("rbind"), !has("ro"), follows)))
    });
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for (source, destination, (recursive, writable, follows)) in std::iter::once(root).chain(binds) {
        let (sentry, gofer) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(io::Error::from)
            .doing(|| "connect the sentry to the gofer")?;
        let mount = GoferMount { fd: sentry.as_raw_fd(), destination, read_only: !writable, follows };
        ours.push(Connection { socket: sentry, mount });
        let tree = Tree { source, recursive, writable, follows, executable: options.infra, socket: gofer.as_raw_fd() };
        theirs.push(Served { tree, socket: gofer });
    }
    Ok((ours, theirs))
}

pub(super) fn start_gofer(id: &str, bundle: &Bundle, options: &Options, served: Vec<Served>) -> Result<(Child, Pipes)> {
    let (reports, report) = pipe()?;
    let (held, hold) = UnixStream::pair().doing(|| "make a pair of sockets")?;
    let log = open_log(options, "gofer", id)?;
    let (sockets, trees): (Vec<OwnedFd>, Vec<Tree>) = served.into_iter().map(|one| (one.socket, one.tree)).unzip();
    let own_mounts = bundle.spec.mounts().iter().flatten().filter(|mount| !is_bind(mount));
    let config = GoferConfig {
        trees,
        covered: own_mounts.map(|mount| mount.destination().clone()).collect(),
        report_fd: report.as_raw_fd(),
        hold_fd: held.as_raw_fd(),
        log: log.as_ref().map(|file| log_target(file, options)),
        attached: options.attached,
    };
    let mut donated = vec![report.as_raw_fd(), held.as_raw_fd()];
    donated.extend(log.as_ref().map(AsRawFd::as_raw_fd));
    donated.extend(sockets.iter().map(AsRawFd::as_raw_fd));
    Ok((start_process("gofer", id, &config, donated, Vec::new())?, Pipes { reports, hold }))
}

/// The specification as the sentry is told it: a program that is handed sockets finds them by two variables,
/// `sd_listen_fds(3)`. The process is the first of its container, as in runc.
pub(super) fn for_sentry(bundle: &Bundle, options: &Options) -> Spec {
    let mut spec = bundle.spec.clone();
    if let Some(process) = spec.process_mut().as_mut().filter(|_| options.listening > 0) {
        let mut env = process.env().clone().unwrap_or_default();
        env.retain(|entry| !entry.starts_with("LISTEN_FDS=") && !entry.starts_with("LISTEN_PID="));
        env.extend([format!("LISTEN_FDS={}", options.listening), "LISTEN_PID=1".to_owned()]);
        process.set_env(Some(env));
    }
    spec
}

fn start_sentry(
    id: &str,
    bundle: &Bundle,
    options: &Options,
    claim: &Claim,
    to_gofer: Vec<Connection>,
    (tap, pinned): (Option<Tap>, &Pinned),
) -> Result<(Child, Pipes)> {
    let control = claim.dir()?.short_path(control::SOCKET);
    let process = bundle.spec.process().as_ref().filter(|process| process.terminal() == Some(true));
    let terminal = match (process, &options.console_socket) {
        (Some(process), Some(socket)) => Some(terminal::make(process, socket)?),
        _ => None,
    };
    let control = UnixListener::bind(&control).doing(|| "make the control socket")?;
    let (reports, report) = pipe()?;
    let (held, hold) = UnixStream::pair().doing(|| "make a pair of sockets")?;
    let exit = claim.dir()?.make_exit()?;
    let log = open_log(options, "boot", id)?;
    let mut network = options.network.clone();
    if let Some(tap) = &tap {
        network.vnet_header = true;
        network.mtu = network.mtu.or(Some(tap.mtu));
    }
    let (sockets, gofer_fds): (Vec<OwnedFd>, Vec<GoferMount>) =
        to_gofer.into_iter().map(|one| (one.socket, one.mount)).unzip();
    let config = BootConfig {
        container: ContainerConfig {
            id: id.to_owned(),
            spec: for_sentry(bundle, options),
            gofer_fds,
            stdio: terminal.as_ref().map_or([0, 1, 2], |terminal| [terminal.as_raw_fd(); 3]),
            preserved: options.preserved.clone(),
            exit_fd: exit.as_raw_fd(),
            overlay: options.overlay,
            console: options.console || terminal.is_some(),
            controls_terminal: terminal.is_some(),
        },
        volumes: volumes(&bundle.spec).map_err(|problem| problem.at(&bundle.path.join("config.json")))?,
        platform: options.platform.clone(),
        strace: options.strace,
        debug: options.debug,
        control_fd: control.as_raw_fd(),
        report_fd: report.as_raw_fd(),
        hold_fd: held.as_raw_fd(),
        tap_fd: tap.as_ref().map(|tap| tap.fd.as_raw_fd()),
        network,
        log: log.as_ref().map(|file| log_target(file, options)),
        strace_fd: log.as_ref().map_or(2, AsRawFd::as_raw_fd),
        attached: options.attached,
    };
    let mut donated = vec![control.as_raw_fd(), report.as_raw_fd(), held.as_raw_fd(), exit.as_raw_fd()];
    donated.extend(config.tap_fd);
    donated.extend(&options.preserved);
    donated.extend(terminal.as_ref().map(AsRawFd::as_raw_fd));
    donated.extend(log.as_ref().map(AsRawFd::as_raw_fd));
    donated.extend(sockets.iter().map(AsRawFd::as_raw_fd));
    // The sentry is in the container's network namespace: hooks and plugins look for it by the sentry's number.
    let network = bundle
        .network_namespace()
        .map(|path| File::open(path).doing(|| format!("open network namespace {}", path.display())));
    let network = network.transpose()?;
    let joined: Vec<(RawFd, i32)> =
        network.iter().map(|file| (file.as_raw_fd(), libc::CLONE_NEWNET)).chain(pinned.namespaces()).collect();
    Ok((start_process("boot", id, &config, donated, joined)?, Pipes { reports, hold }))
}

/// Starts `runsc COMMAND` with its configuration in a memory file.
fn start_process(
    command: &str,
    id: &str,
    config: &impl Serialize,
    mut donated: Vec<RawFd>,
    joined: Vec<(RawFd, i32)>,
) -> Result<Child> {
    let doing = || format!("pass the configuration to runsc {command}");
    let text = serde_json::to_vec(config).map_err(io::Error::from).doing(doing)?;
    let memory = memfd_create("runsc-config", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from).doing(doing)?;
    let mut memory = File::from(memory);
    memory.write_all(&text).doing(doing)?;
    donated.push(memory.as_raw_fd());
    let descriptor = format!("--config-fd={}", memory.as_raw_fd());
    let name = if command == "boot" { "runsc-sandbox" } else { "runsc-gofer" };
    // The name is for the reader of a process list only.
    spawn_in(joined, &[name, command, &descriptor, "--id", id], &donated)
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).doing(|| "make a pipe")
}

fn open_log(options: &Options, command: &str, id: &str) -> Result<Option<File>> {
    let Some(pattern) = &options.debug_log else { return Ok(None) };
    let path = logging::expand(pattern, command, id, SystemTime::now());
    logging::open(&path).doing(|| format!("open {}", path.display())).map(Some)
}

fn log_target(file: &File, options: &Options) -> LogTarget {
    LogTarget { fd: file.as_raw_fd(), format: options.debug_log_format, debug: options.debug }
}
