//! `fork(2)`, `vfork(2)`, `clone(2)`, `clone3(2)`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{Errno, Result};
use crate::platform::{Seed, placement};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::UserPtr;
use crate::sentry::mm::{ForkImage, MemoryManager};
use crate::sentry::signal::AltStack;
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::pidfd::PidFd;
use crate::sentry::task::run::{Birth, start};
use crate::sentry::task::tree::{StopReport, TaskTree};
use crate::sentry::task::{Attention, Current, Parts, Task, TaskState, ThreadGroup};
use crate::vfs::file::OpenFile;
use crate::wait::{Events, WaitQueue};

/// What `clone3(2)` takes, as far as it applies.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    /// `CLONE_*`, without a signal.
    pub flags: u64,
    /// Where the pidfd goes.
    pub pidfd: u64,
    /// `CLONE_CHILD_SETTID`, `CLONE_CHILD_CLEARTID`.
    pub child_tid: u64,
    /// `CLONE_PARENT_SETTID`.
    pub parent_tid: u64,
    /// What the parent gets at the end; 0 for nothing.
    pub exit_signal: i32,
    /// The stack's upper end; 0 for the parent's.
    pub stack_top: u64,
    /// `CLONE_SETTLS`.
    pub tls: u64,
}

/// Where the parent of a `vfork(2)` waits.
#[derive(Default)]
pub struct VforkDone {
    done: AtomicBool,
    queue: WaitQueue,
}

impl VforkDone {
    pub(super) fn finish(&self) {
        self.done.store(true, Ordering::SeqCst);
        self.queue.wake(Events::READ);
    }
}

const fn bits(flags: i32) -> u64 {
    flags as u32 as u64
}

const VM: u64 = bits(libc::CLONE_VM);
const FS: u64 = bits(libc::CLONE_FS);
const FILES: u64 = bits(libc::CLONE_FILES);
const SIGHAND: u64 = bits(libc::CLONE_SIGHAND);
const PIDFD: u64 = bits(libc::CLONE_PIDFD);
const VFORK: u64 = bits(libc::CLONE_VFORK);
const PARENT: u64 = bits(libc::CLONE_PARENT);
const THREAD: u64 = bits(libc::CLONE_THREAD);
const NEWNS: u64 = bits(libc::CLONE_NEWNS);
const SETTLS: u64 = bits(libc::CLONE_SETTLS);
const PARENT_SETTID: u64 = bits(libc::CLONE_PARENT_SETTID);
const CHILD_CLEARTID: u64 = bits(libc::CLONE_CHILD_CLEARTID);
const CHILD_SETTID: u64 = bits(libc::CLONE_CHILD_SETTID);
const NEWUTS: u64 = bits(libc::CLONE_NEWUTS);
/// `CLONE_CLEAR_SIGHAND` of `clone3(2)`.
pub const CLEAR_SIGHAND: u64 = 1 << 32;
/// Namespaces that the sandbox has one of.
const SINGLE: u64 = bits(libc::CLONE_NEWUSER)
    | bits(libc::CLONE_NEWPID)
    | bits(libc::CLONE_NEWNET)
    | bits(libc::CLONE_NEWIPC)
    | bits(libc::CLONE_NEWCGROUP)
    | 0x80; // CLONE_NEWTIME

fn check(cur: &Current, args: &CloneArgs) -> Result<()> {
    let has = |flag| args.flags & flag != 0;
    let needs_vm = has(SIGHAND) && !has(VM);
    let needs_sighand = has(THREAD) && !has(SIGHAND);
    let two_views = has(FS) && has(NEWNS);
    let clear_and_share = has(CLEAR_SIGHAND) && has(SIGHAND);
    if needs_vm || needs_sighand || two_views || clear_and_share || !(0..=64).contains(&args.exit_signal) {
        return Err(Errno::EINVAL);
    }
    if has(PIDFD) && has(THREAD) {
        return Err(Errno::EINVAL);
    }
    // The first process has no parent to share.
    if has(PARENT) && cur.pid() == 1 {
        return Err(Errno::EINVAL);
    }
    if has(SINGLE) {
        log::warn!("clone with namespaces {:#x} is not supported", args.flags & SINGLE);
        // As of a kernel that is configured without them.
        return Err(Errno::EINVAL);
    }
    if has(NEWNS | NEWUTS) {
        cur.require(Caps::SYS_ADMIN)?;
    }
    Ok(())
}

/// Makes a task. Returns its id. Errors: `EINVAL`, `EPERM`, `EAGAIN` (limits), `EFAULT` (the pidfd's place), `ENOMEM`.
pub fn clone(cur: &mut Current, args: &CloneArgs) -> SysResult {
    check(cur, args)?;
    let mm = cur.mm()?;
    // Before anything of the host's is used: a limit that is reached costs nothing.
    let (task, vfork) = make_task(cur, args, (args.flags & VM != 0).then(|| mm.clone()))?;
    let tid = task.tid();
    set_off(cur, args, &task, &mm).inspect_err(|_| undo(cur, &task))?;
    if let Some(done) = vfork {
        wait_vfork(&cur.task, &done);
    }
    Ok(tid as u64)
}

/// Gives the task a stub, and has it run. What is stored for the parent is not in the child's copy of the memory.
fn set_off(cur: &mut Current, args: &CloneArgs, task: &Arc<Task>, mm: &MemoryManager) -> Result<()> {
    let (image, seed) = match args.flags & VM != 0 {
        true => (None, cur.user.spawn_thread()?),
        false => {
            let (image, seed) = mm.fork_with(|| cur.user.fork())?;
            (Some(image), seed)
        }
    };
    let pidfd = if args.flags & PIDFD != 0 { Some(add_pidfd(cur, args, task)?) } else { None };
    if args.flags & PARENT_SETTID != 0 {
        // Linux does not fail for a bad pointer here.
        let _ = UserPtr::new(args.parent_tid).write(cur.space(), &task.tid());
    }
    launch(cur, args, task, seed, image).inspect_err(|_| {
        if let Some(fd) = pidfd {
            let _ = cur.files().and_then(|files| files.remove(fd));
        }
    })
}

fn launch(cur: &Current, args: &CloneArgs, task: &Arc<Task>, seed: Seed, image: Option<ForkImage>) -> Result<()> {
    let has = |flag| args.flags & flag != 0;
    let birth = Birth {
        stack_top: (args.stack_top != 0).then_some(args.stack_top),
        tls: has(SETTLS).then_some(args.tls),
        set_tid: has(CHILD_SETTID).then_some(args.child_tid),
        memory: image,
        // A thread that shares the memory must not share the stack.
        altstack: if has(VM) && !has(VFORK) { AltStack::default() } else { cur.altstack },
    };
    if has(CHILD_CLEARTID) {
        task.clear_child_tid.store(args.child_tid, Ordering::Relaxed);
    }
    start(task.clone(), seed, birth)
}

/// The task and its place in the tree. It does not run yet.
fn make_task(
    cur: &Current,
    args: &CloneArgs,
    mm: Option<Arc<MemoryManager>>,
) -> Result<(Arc<Task>, Option<Arc<VforkDone>>)> {
    let has = |flag| args.flags & flag != 0;
    let fs = if has(FS) { cur.fs() } else { cur.fs().fork() };
    let files = cur.files()?;
    let files = if has(FILES) { files } else { files.fork() };
    let mut namespaces = cur.namespaces();
    if has(NEWNS | NEWUTS) {
        namespaces = Arc::new(namespaces.fork(has(NEWNS), has(NEWUTS), &fs)?);
    }
    let vfork = has(VFORK).then(Arc::<VforkDone>::default);
    let parts = Parts { mm, fs, files, creds: cur.creds(), namespaces };
    let mut tree = cur.kernel.tree.lock();
    let id = cur.kernel.allocate_id(&mut tree, &cur.task)?;
    let group = if has(THREAD) { cur.group.clone() } else { child_group(cur, args, id) };
    let task = Task::new(id, group, parts);
    task.inherit(&cur.task);
    *task.vfork_done.lock() = vfork.clone();
    let task = Arc::new(task);
    if has(THREAD) {
        join_group(cur, &mut tree, &task)?
    } else {
        enter_process(cur, args, &mut tree, &task)
    }
    task.freeze_if_paused();
    Ok((task, vfork))
}

fn enter_process(cur: &Current, args: &CloneArgs, tree: &mut TaskTree, task: &Arc<Task>) {
    let me = tree.node(cur.pid());
    let (parent, exit_signal) = match me.filter(|_| args.flags & PARENT != 0) {
        Some(node) => ((node.parent, node.parent_tid), node.exit_signal),
        None => ((cur.pid(), cur.tid()), args.exit_signal),
    };
    tree.add_process(task, parent, Some(cur.pid()), exit_signal);
    task.group.signals.lock().threads.push(task.clone());
}

/// A group that is ending or executing another program takes no new threads: the caller is about to end too.
fn join_group(cur: &Current, tree: &mut TaskTree, task: &Arc<Task>) -> Result<()> {
    let mut signals = task.group.signals.lock();
    if signals.ending.is_some() || signals.execing {
        return Err(Errno::ERESTARTNOINTR);
    }
    if signals.stop.is_some() {
        task.notify(Attention::STOP);
    }
    // Again, under the lock that filters are put on all threads with: none is missed.
    task.seccomp.inherit(&cur.seccomp);
    signals.threads.push(task.clone());
    tree.add_thread(task);
    Ok(())
}

fn child_group(cur: &Current, args: &CloneArgs, id: i32) -> Arc<ThreadGroup> {
    let mut handlers = cur.group.handlers();
    if args.flags & SIGHAND == 0 {
        let copy = handlers.fork();
        if args.flags & CLEAR_SIGHAND != 0 {
            copy.reset_for_exec();
        }
        handlers = Arc::new(copy);
    }
    let limits = *cur.group.limits.lock();
    let group = ThreadGroup::new(&cur.kernel, id, handlers, limits, cur.group.uid());
    group.oom_score_adj.store(cur.group.oom_score_adj.load(Ordering::Relaxed), Ordering::Relaxed);
    group
}

/// Takes off a task that never ran. Others may have seen it, and wait for it.
fn undo(cur: &Current, task: &Arc<Task>) {
    let mut tree = task.kernel.tree.lock();
    let stopped = task.group.signals.lock().leave(task);
    tree.remove_thread(task.tid());
    if task.tid() == task.pid() {
        tree.remove_process(task.pid());
    }
    drop(tree);
    cur.group.child_events.wake(Events::READ);
    task.group.thread_events.wake(Events::READ);
    if let Some(signal) = stopped {
        task.group.report_stop(StopReport::Stopped(signal));
    }
}

fn add_pidfd(cur: &Current, args: &CloneArgs, task: &Arc<Task>) -> Result<i32> {
    let file = OpenFile::anonymous(PidFd::new(task.group.clone()), libc::O_RDWR);
    let fd = cur.add_file(file, true)? as i32;
    UserPtr::new(args.pidfd).write(cur.space(), &fd).inspect_err(|_| {
        let _ = cur.files().and_then(|files| files.remove(fd));
    })?;
    Ok(fd)
}

/// The parent sleeps until the child has let go of the memory. Only being killed ends that early.
fn wait_vfork(task: &Arc<Task>, done: &VforkDone) {
    task.parker.reset();
    let key = done.queue.add(task.parker.clone(), Events::READ, false);
    // A container can be paused meanwhile, with the child at rest.
    task.set_state(TaskState::Sleeping);
    while !done.done.load(Ordering::SeqCst) && !task.attention().contains(Attention::KILL) {
        let blocking = placement::blocking();
        task.parker.park(None);
        drop(blocking);
    }
    task.set_state(TaskState::Running);
    done.queue.remove(key);
}
