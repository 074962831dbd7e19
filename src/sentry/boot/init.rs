//! The container's first process.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use oci_spec::runtime::{LinuxCapabilities, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process};

use super::console::{Console, Replace};
use super::create::NewContainer;
use super::{Doing, Outcome, console};
use crate::errno::{Errno, Result};
use crate::io::SliceSink;
use crate::netstack::unix::UnixNamespace;
use crate::platform::placement;
use crate::sentry::creds::{Caps, Credentials};
use crate::sentry::fdtable::{FdTable, NR_OPEN};
use crate::sentry::fs::{FsContext, FsState};
use crate::sentry::kernel::Kernel;
use crate::sentry::limits::{Limit, Limits};
use crate::sentry::namespaces::{Namespaces, UtsNamespace};
use crate::sentry::signal::SignalHandlers;
use crate::sentry::task::exec::{Exec, open_exec};
use crate::sentry::task::run::start_program;
use crate::sentry::task::{Parts, Task, ThreadGroup};
use crate::vfs::file::OpenFile;
use crate::vfs::host::HostFile;
use crate::vfs::inode::NodeType;
use crate::vfs::mount::MountNamespace;
use crate::vfs::walk::{LookupFlags, Walk};

/// Starts the first process: returns when its program is loaded, or says why not.
pub fn start(kernel: &Arc<Kernel>, new: NewContainer, mounts: Arc<MountNamespace>, names: Names) -> Outcome<()> {
    let NewContainer { spec, files: given, console, controls_terminal, .. } = new;
    let process = spec.process().as_ref().ok_or("process is missing")?;
    let creds = credentials(process)?;
    super::linux::apply(kernel, &spec, &names.uts)?;
    let root = mounts.root();
    let umask = process.user().umask().unwrap_or(0o022);
    let cwd = working_directory(kernel, process, &root, &creds)?;
    let files = FdTable::new();
    for (number, fd) in given.into_iter().enumerate() {
        give(&files, number, fd).doing(|| format!("descriptor {number}"))?;
    }
    if console {
        let walk = Walk { root: &root, start: &root, creds: &creds, umask, devices: &kernel.devices };
        let console = terminal(kernel, process, &files, &walk)?;
        if process.terminal() == Some(true) {
            name_console(&mounts, &console, kernel).doing(|| "name the terminal /dev/console".into())?;
        }
        let _ = kernel.console.set(console); // there is one first process
        if controls_terminal {
            console::watch_size(kernel).doing(|| "watch the terminal's size".into())?;
        }
    }
    let fs = FsContext::new(FsState { root: root.clone(), cwd: cwd.clone(), umask });
    let namespaces = Arc::new(Namespaces { mounts, uts: names.uts, unix: names.unix });
    let exec = program(kernel, process, &root, &cwd, &creds)?;
    let parts = Parts { mm: None, fs, files, creds: Arc::new(creds), namespaces };
    let task = enter(kernel, process, parts)?;
    if let Some(console) = kernel.console.get() {
        console.give_to(task.pid());
    }
    let seed = kernel.platform.spawn().doing(|| "make a stub process".into());
    let seed = seed.inspect_err(|_| crate::sentry::task::exit::abandon(&task))?;
    let name = process.args().iter().flatten().next().cloned().unwrap_or_default();
    start_program(task, seed, exec).map_err(|error| exec_problem(&name, error))
}

/// What the first process has the names of.
pub struct Names {
    /// Host and domain name.
    pub uts: Arc<UtsNamespace>,
    /// Abstract UNIX sockets.
    pub unix: Arc<UnixNamespace>,
}

/// Puts the first task into the tree. It does not run yet.
fn enter(kernel: &Arc<Kernel>, process: &Process, parts: Parts) -> Outcome<Arc<Task>> {
    let limits = limits(process)?;
    let uid = parts.creds.ruid;
    let mut tree = kernel.tree.lock();
    let id = tree.allocate_id().doing(|| "the first process id".into())?;
    kernel.set_first_pid(id);
    let group = ThreadGroup::new(kernel, id, Arc::new(SignalHandlers::new()), limits, uid);
    group.oom_score_adj.store(process.oom_score_adj().unwrap_or(0), Ordering::Relaxed);
    let task = Arc::new(Task::new(id, group, parts));
    schedule(&task, process)?;
    tree.add_process(&task, (0, 0), None, 0);
    task.group.add_first(&task);
    Ok(task)
}

/// Has a process of the runtime's making scheduled as `process.scheduler` says, which was checked.
pub(super) fn schedule(task: &Task, process: &Process) -> Outcome<()> {
    let Some(asked) = process.scheduler() else { return Ok(()) };
    let policy = match asked.policy() {
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        _ => libc::SCHED_OTHER,
    };
    let reset = asked.flags().iter().flatten().any(|flag| *flag == LinuxSchedulerFlag::SchedResetOnFork);
    let nice = asked.nice().unwrap_or(0);
    if nice < placement::ordinary_nice().min(placement::best_nice()) {
        return Err(format!("process.scheduler.nice: the host does not allow {nice}"));
    }
    task.scheduling.set_nice(nice);
    task.scheduling.set_policy(policy | if reset { libc::SCHED_RESET_ON_FORK } else { 0 });
    Ok(())
}

/// The process's terminal: in place of the standard descriptors that are one of the host's, or of all if it asks for one.
pub(super) fn terminal(kernel: &Kernel, process: &Process, files: &Arc<FdTable>, walk: &Walk<'_>) -> Outcome<Console> {
    let replace = if process.terminal() == Some(true) { Replace::All } else { Replace::Terminals };
    Console::attach(&kernel.ptys, files, walk, replace).doing(|| "make the container's terminal".into())
}

/// Binds the terminal over `/dev/console`, as runtimes do for a container whose first process has one.
fn name_console(mounts: &Arc<MountNamespace>, console: &Console, kernel: &Kernel) -> Result<()> {
    const NAME: &[u8] = b"/dev/console";
    let (root, creds) = (mounts.root(), Credentials::root());
    let walk = Walk { root: &root, start: &root, creds: &creds, umask: 0, devices: &kernel.devices };
    let slave = match walk.lookup(console.path().as_bytes(), LookupFlags::FOLLOW) {
        // Without devpts it has no name to give.
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        found => found?,
    };
    match walk.mknod(NAME, NodeType::Regular, 0o666, 0) {
        Ok(_) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error),
    }
    let at = walk.lookup(NAME, LookupFlags::empty())?;
    mounts.bind(&slave, &at, false).map(drop)
}

/// The directory that the process starts in.
pub(super) fn working_directory(
    kernel: &Kernel,
    process: &Process,
    root: &crate::vfs::Path,
    creds: &Credentials,
) -> Outcome<crate::vfs::Path> {
    let walk = Walk { root, start: root, creds, umask: 0, devices: &kernel.devices };
    let path = process.cwd().as_os_str().as_encoded_bytes();
    walk.lookup_dir(path, LookupFlags::FOLLOW).doing(|| format!("process.cwd: {}", process.cwd().display()))
}

/// Why there is no program of that name, in the words of runc, by which Docker tells statuses 127 and 126.
fn not_found(name: &str, error: Errno) -> String {
    match error {
        Errno::ENOENT if !name.contains('/') => format!("exec: {name:?}: executable file not found in $PATH"),
        Errno::ENOENT | Errno::ENOTDIR => format!("exec: {name:?}: stat {name}: no such file or directory"),
        Errno::EACCES => format!("exec: {name:?}: permission denied"),
        error => format!("exec: {name:?}: {error}"),
    }
}

/// Why a program that is there does not start, in the words of runc.
pub(super) fn exec_problem(name: &str, error: Errno) -> String {
    match error {
        // Its interpreter is missing.
        Errno::ENOENT => format!("exec {name}: no such file or directory"),
        Errno::ENOEXEC => format!("exec {name}: exec format error"),
        Errno::EACCES => format!("exec {name}: permission denied"),
        error => format!("exec {name}: {error}"),
    }
}

pub(super) fn give(files: &Arc<FdTable>, number: usize, fd: OwnedFd) -> Result<()> {
    // SAFETY: only asks about a descriptor.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    let file = HostFile::new(fd)?;
    let access = if flags < 0 { libc::O_RDWR } else { flags & (libc::O_ACCMODE | libc::O_APPEND) };
    let open = OpenFile::anonymous(file, access);
    files.replace(number as i32, open, false, NR_OPEN).map(drop)
}

/// Opens the program: a name without a slash is looked for in `PATH`.
pub(super) fn program(
    kernel: &Kernel,
    process: &Process,
    root: &crate::vfs::Path,
    cwd: &crate::vfs::Path,
    creds: &Credentials,
) -> Outcome<Exec> {
    let args = process.args().clone().unwrap_or_default();
    let mut env = process.env().clone().unwrap_or_default();
    let name = args.first().cloned().unwrap_or_default();
    let walk = Walk { root, start: cwd, creds, umask: 0o022, devices: &kernel.devices };
    let (file, path) = find_program(&walk, &name, &env).map_err(|error| not_found(&name, error))?;
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home(&walk, creds.ruid)));
    }
    let bytes = |words: Vec<String>| words.into_iter().map(String::into_bytes).collect();
    Ok(Exec { file, path, argv: bytes(args), envp: bytes(env), path_inaccessible: false })
}

/// The user's home directory by the container's `/etc/passwd`, `/` where that has none: what `HOME` is, as with runc, when
/// the specification does not tell.
fn home(walk: &Walk<'_>, uid: u32) -> String {
    // More is no sane file, and memory is bounded.
    const MOST: usize = 1 << 20;
    let root = Credentials::root();
    let walk = Walk { start: walk.root, creds: &root, ..*walk };
    let read = || -> Result<Vec<u8>> {
        let found = walk.lookup(b"/etc/passwd", LookupFlags::FOLLOW)?;
        // Another kind, such as a pipe, could block.
        if found.attr()?.kind != NodeType::Regular {
            return Err(Errno::EINVAL);
        }
        let file = found.inode()?.clone().open(libc::O_RDONLY)?;
        let mut bytes = vec![0; MOST];
        let mut filled = 0;
        while filled < MOST {
            match file.read(filled as u64, &mut SliceSink::new(&mut bytes[filled..]))? {
                0 => break,
                more => filled += more,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    };
    let text = read().unwrap_or_default();
    home_in(&String::from_utf8_lossy(&text), uid).unwrap_or("/").to_owned()
}

/// The directory of a user in the text of a `passwd(5)`.
fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    let entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = entries.into_iter().find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid));
    found.and_then(|fields| fields.get(5).copied()).filter(|home| !home.is_empty())
}

fn find_program(walk: &Walk<'_>, name: &str, env: &[String]) -> Result<(Arc<OpenFile>, Vec<u8>)> {
    if name.contains('/') {
        return Ok((open_exec(walk, name.as_bytes(), LookupFlags::FOLLOW)?, name.into()));
    }
    const DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT);
    let mut error = Errno::ENOENT;
    for dir in path.split(':') {
        let candidate = format!("{}/{name}", if dir.is_empty() { "." } else { dir }).into_bytes();
        match open_exec(walk, &candidate, LookupFlags::FOLLOW) {
            Ok(file) => return Ok((file, candidate)),
            // A file that may not be run is the reason to tell, if none is found that may.
            Err(Errno::EACCES) => error = Errno::EACCES,
            Err(_) => {}
        }
    }
    Err(error)
}

fn caps(names: &Option<oci_spec::runtime::Capabilities>) -> Outcome<Caps> {
    let mut set = Caps::empty();
    for name in names.iter().flatten() {
        let name = name.to_string();
        let short = name.strip_prefix("CAP_").unwrap_or(&name);
        set |= Caps::from_name(short).ok_or_else(|| format!("process.capabilities: {name} is not known"))?;
    }
    Ok(set)
}

pub(super) fn credentials(process: &Process) -> Outcome<Credentials> {
    let user = process.user();
    let groups = user.additional_gids().clone().unwrap_or_default();
    let mut creds = Credentials::new(user.uid(), user.gid(), &groups, Caps::empty());
    let default = LinuxCapabilities::default();
    let sets = process.capabilities().as_ref();
    let sets = match sets {
        Some(sets) => sets,
        None => &default,
    };
    creds.effective = caps(sets.effective())?;
    creds.permitted = caps(sets.permitted())? | creds.effective;
    creds.inheritable = caps(sets.inheritable())?;
    creds.bounding = caps(sets.bounding())?;
    creds.ambient = caps(sets.ambient())?;
    creds.no_new_privs = process.no_new_privileges().unwrap_or(false);
    Ok(creds)
}

pub(super) fn limits(process: &Process) -> Outcome<Limits> {
    let mut limits = Limits::default();
    for limit in process.rlimits().iter().flatten() {
        let name = limit.typ().to_string();
        let which = limit_number(&name).ok_or_else(|| format!("process.rlimits: {name} is not known"))?;
        limits
            .set(which, Limit { soft: limit.soft(), hard: limit.hard() }, true)
            .doing(|| format!("process.rlimits: {name}"))?;
    }
    Ok(limits)
}

fn limit_number(name: &str) -> Option<u32> {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let short = name.strip_prefix("RLIMIT_")?;
    NAMES.iter().position(|known| *known == short).map(|at| at as u32)
}

#[cfg(test)]
mod tests {
    use super::home_in;

    #[test]
    fn home_directories_are_those_of_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\n:::\nwww:x:33:33::/var/www:/bin/false\nnone:x:5:5:::\n";
        assert_eq!(home_in(passwd, 0), Some("/root"));
        assert_eq!(home_in(passwd, 33), Some("/var/www"));
        assert_eq!(home_in(passwd, 5), None);
        assert_eq!(home_in(passwd, 7), None);
    }
}
