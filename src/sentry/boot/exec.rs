//! Further processes of a running container: what `runsc exec` asks for.
//!
//! Such a process has no parent in the container, a session of its own, and the first process's mounts and names. It belongs
//! to the connection that it was asked for on: that connection learns how it ended, however late it asks, and when it closes
//! the process is killed. So nothing is kept of a process for which nobody is left.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use oci_spec::runtime::Process;
use parking_lot::Mutex;

use super::console::Console;
use super::peer::wait_for;
use super::{Doing, Outcome, init};
use crate::errno::Errno;
use crate::sentry::fdtable::FdTable;
use crate::sentry::fs::{FsContext, FsState};
use crate::sentry::kernel::Kernel;
use crate::sentry::signal::SignalHandlers;
use crate::sentry::task::exec::Exec;
use crate::sentry::task::run::start_program;
use crate::sentry::task::tree::ExitStatus;
use crate::sentry::task::{Parts, Task, ThreadGroup};
use crate::vfs::walk::Walk;
use crate::wait::{Events, Parker};

/// runc's words.
const STOPPED: &str = "cannot exec in a stopped container";

/// The processes of a container that `exec` has started and whose connections are open, by their numbers.
#[derive(Default)]
pub struct FurtherProcesses(Mutex<HashMap<i32, Arc<Further>>>);

impl FurtherProcesses {
    /// One of them.
    pub fn get(&self, pid: i32) -> Option<Arc<Further>> {
        self.0.lock().get(&pid).cloned()
    }
}

/// One such process.
pub struct Further {
    group: Arc<ThreadGroup>,
    console: Option<Console>,
}

/// Whoever asked for a process. Dropping it kills the process and forgets how it ended.
pub struct Owner(Arc<Further>);

/// Starts a process in the container. `fds` are its standard input, output and error, and more that become descriptors from
/// 3 on. With `process.terminal` the first two are the keyboard and the screen.
pub fn start(kernel: &Arc<Kernel>, process: &Process, fds: Vec<OwnedFd>) -> Outcome<Owner> {
    if kernel.ended().is_some() {
        return Err(STOPPED.into());
    }
    if fds.len() < 3 {
        return Err("exec: standard descriptors are missing".into());
    }
    let first = kernel.first_process().ok().and_then(|group| group.leader());
    let namespaces = first.ok_or("cannot exec in a stopped container")?.namespaces();
    let creds = init::credentials(process)?;
    let root = namespaces.mounts.root();
    let umask = process.user().umask().unwrap_or(0o022);
    let cwd = init::working_directory(kernel, process, &root, &creds)?;
    let files = FdTable::new();
    for (number, fd) in fds.into_iter().enumerate() {
        init::give(&files, number, fd).doing(|| format!("descriptor {number}"))?;
    }
    let exec = init::program(kernel, process, &root, &cwd, &creds)?;
    let console = match process.terminal() {
        Some(true) => {
            let walk = Walk { root: &root, start: &root, creds: &creds, umask, devices: &kernel.devices };
            Some(init::terminal(kernel, process, &files, &walk)?)
        }
        _ => None,
    };
    let fs = FsContext::new(FsState { root, cwd, umask });
    let parts = Parts { mm: None, fs, files, creds: Arc::new(creds), namespaces };
    let task = make_task(kernel, process, parts);
    let task = task.inspect_err(|_| console.iter().for_each(Console::hang_up))?;
    launch(kernel, process, task, console, exec)
}

/// The task and its place in the tree. It does not run yet.
fn make_task(kernel: &Arc<Kernel>, process: &Process, parts: Parts) -> Outcome<Arc<Task>> {
    let limits = init::limits(process)?;
    let uid = parts.creds.ruid;
    let mut tree = kernel.tree.lock();
    let pid = tree.allocate_id().map_err(|error| match error {
        // Its first process has ended meanwhile.
        Errno::ENOMEM => STOPPED.to_owned(),
        error => format!("process id: {error}"),
    })?;
    let group = ThreadGroup::new(kernel, pid, Arc::new(SignalHandlers::new()), limits, uid);
    if let Some(adjustment) = process.oom_score_adj() {
        group.oom_score_adj.store(adjustment, Ordering::Relaxed);
    }
    let task = Arc::new(Task::new(pid, group, parts));
    init::schedule(&task, process)?;
    tree.add_process(&task, (0, 0), None, 0);
    task.group.add_first(&task);
    task.freeze_if_paused();
    Ok(task)
}

fn launch(
    kernel: &Arc<Kernel>,
    process: &Process,
    task: Arc<Task>,
    console: Option<Console>,
    exec: Exec,
) -> Outcome<Owner> {
    let (pid, group) = (task.pid(), task.group.clone());
    if let Some(console) = &console {
        console.give_to(pid);
    }
    // Entered first: who loads the program may be told of a new size of the terminal.
    let further = Arc::new(Further { group, console });
    kernel.further.0.lock().insert(pid, further.clone());
    let owner = Owner(further);
    let seed = kernel.platform.spawn().doing(|| "make a stub process".into());
    let seed = seed.inspect_err(|_| crate::sentry::task::exit::abandon(&task))?;
    let name = process.args().iter().flatten().next().cloned().unwrap_or_default();
    start_program(task, seed, exec).map_err(|error| init::exec_problem(&name, error))?;
    Ok(owner)
}

impl Owner {
    /// The process.
    pub fn process(&self) -> &Arc<Further> {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let group = &self.0.group;
        match &self.0.console {
            // Others may write to it still.
            Some(console) if self.0.has_ended() => console.let_go(),
            Some(console) => console.hang_up(),
            None => {}
        }
        group.end(ExitStatus::Killed { signal: libc::SIGKILL, core: false });
        self.0.wait_end(None);
        group.kernel.further.0.lock().remove(&group.pid());
        group.kernel.tree.lock().remove_process(group.pid());
    }
}

impl Further {
    /// Its number in the container.
    pub fn pid(&self) -> i32 {
        self.group.pid()
    }

    fn has_ended(&self) -> bool {
        self.group.exited.load(Ordering::SeqCst)
    }

    /// Waits for its end, and until what it has written to its terminal is shown. `None` when `peer` closes its end first.
    pub fn wait(&self, peer: BorrowedFd<'_>) -> Option<ExitStatus> {
        if !self.wait_end(Some(peer)) {
            return None;
        }
        if let Some(console) = &self.console {
            console.finish();
        }
        self.group.kernel.tree.lock().node(self.pid()).and_then(|node| node.zombie)
    }

    /// Waits for its end, but not beyond `deadline`: `None` then.
    pub fn wait_until(&self, deadline: Option<Instant>) -> Option<ExitStatus> {
        let parker = Arc::new(Parker::new());
        let key = self.group.exit_queue.add(parker.clone(), Events::READ, false);
        while !self.has_ended() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            parker.park(deadline);
        }
        self.group.exit_queue.remove(key);
        if !self.has_ended() {
            return None;
        }
        self.group.kernel.tree.lock().node(self.pid()).and_then(|node| node.zombie)
    }

    /// Whether it has ended, rather than `peer` closed.
    fn wait_end(&self, peer: Option<BorrowedFd<'_>>) -> bool {
        wait_for(&self.group.exit_queue, || self.has_ended(), peer)
    }
}

/// Gives the terminal of a process that `exec` has started, or else of the first, a size; with 0 columns the one that the
/// host's terminal has now. `ESRCH`, `ENOTTY` without a terminal.
pub fn resize(kernel: &Kernel, pid: Option<i32>, rows: u16, columns: u16) -> Result<(), Errno> {
    let set = |console: &Console| match columns {
        0 => {
            console.take_size();
            Ok(())
        }
        _ => console.set_size(rows, columns),
    };
    match pid {
        None => set(kernel.console.get().ok_or(Errno::ENOTTY)?),
        Some(pid) if pid == kernel.first_pid() => resize(kernel, None, rows, columns),
        Some(pid) => set(kernel.further.get(pid).ok_or(Errno::ESRCH)?.console.as_ref().ok_or(Errno::ENOTTY)?),
    }
}
