//! The end of threads and processes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sentry::signal::{ChildExit, SIG_IGN, SigAction, SigInfo, Signal};
use crate::sentry::syscalls;
use crate::sentry::task::tree::{ExitStatus, StopReport, TaskTree};
use crate::sentry::task::usage::Usage;
use crate::sentry::task::wait::What;
use crate::sentry::task::{Attention, Current, Task, TaskState, ThreadGroup};
use crate::wait::Events;

impl ThreadGroup {
    /// Has every thread end; the first status wins. Returns the one that holds.
    pub fn end(&self, status: ExitStatus) -> ExitStatus {
        let mut signals = self.signals.lock();
        if let Some(earlier) = signals.ending {
            return earlier;
        }
        signals.ending = Some(status);
        for task in &signals.threads {
            task.notify(Attention::KILL);
        }
        status
    }
}

/// Ends the calling thread. `status` is the process's when it is the last one and nothing else was decided.
pub fn end_thread(mut cur: Current, status: ExitStatus) {
    let task = cur.task.clone();
    let group = task.group.clone();
    syscalls::futex::exit_thread(&mut cur);
    task.release_vfork_parent();
    // Files close, and record locks go, before anybody can learn that the process has ended.
    let files = task.files.write().take();
    if let Some(files) = files {
        drop(files);
    }
    let mm = task.mm.write().take();
    // The stub goes with its last thread; one that others survive may be of use to them.
    let goes_on = {
        let signals = group.signals.lock();
        signals.ending.is_none() && !signals.execing
    };
    if goes_on {
        cur.user.retire();
    }
    drop(cur);
    task.clocks.ended();
    let max_rss_kib = mm.as_ref().map_or(0, |mm| mm.sizes().peak_resident / 1024);
    drop(mm);
    group.clocks.leave(&task.clocks, Usage { max_rss_kib, ..task.usage() });
    finish(&task, status);
}

/// What others can see of the end of a thread, and of its process if it was the last one.
fn finish(task: &Arc<Task>, status: ExitStatus) {
    let group = task.group.clone();
    task.set_state(TaskState::Zombie);
    *task.interrupter.lock() = None;
    let tid = task.tid();
    let mut tree = task.kernel.tree.lock();
    let (last, stopped, status) = {
        let mut signals = group.signals.lock();
        let stopped = signals.leave(task);
        (signals.threads.is_empty(), stopped, signals.ending.unwrap_or(status))
    };
    if tid != group.pid() {
        tree.remove_thread(tid);
    }
    let session_leader = tree.node(group.pid()).is_some_and(|node| node.sid == group.pid());
    death_signals(&tree, &group, tid, last);
    if last {
        end_process(&mut tree, &group, status);
    }
    drop(tree);
    group.thread_events.wake(Events::READ);
    if let Some(signal) = stopped {
        group.report_stop(StopReport::Stopped(signal));
    }
    if last {
        if session_leader {
            task.kernel.terminals.session_ended(group.pid());
        }
        group.timers.clear();
        group.itimers.clear();
        task.kernel.ipc.sem.process_ended(group.sem_owner());
        if group.pid() == task.kernel.first_pid() {
            task.kernel.container_ended(status);
            if group.pid() != 1 {
                // Its parent is outside, and has been told.
                let gone = task.kernel.tree.lock().remove_process(group.pid());
                drop(gone);
            }
        }
    }
}

/// `PR_SET_PDEATHSIG` of the children that thread `tid` made.
fn death_signals(tree: &TaskTree, group: &Arc<ThreadGroup>, tid: i32, last: bool) {
    let Some(node) = tree.node(group.pid()) else { return };
    for child in node.children.iter().filter_map(|&pid| tree.node(pid)) {
        let concerned = child.parent_tid == tid || last;
        if concerned
            && child.zombie.is_none()
            && let Ok(signal) = Signal::new(child.death_signal)
        {
            child.group.send(SigInfo::user(signal, group.pid(), group.uid()), None);
        }
    }
}

/// The process has no thread left: its children get a new parent, its own parent is told.
fn end_process(tree: &mut TaskTree, group: &Arc<ThreadGroup>, status: ExitStatus) {
    let pid = group.pid();
    orphan_children(tree, pid);
    let Some(node) = tree.node_mut(pid) else { return };
    node.zombie = Some(status);
    node.report = None;
    let (pgid, sid, parent) = (node.pgid, node.sid, node.parent);
    group.exited.store(true, Ordering::SeqCst);
    group.exit_queue.wake(Events::READ);
    // A group that only this process connected to its session is orphaned now.
    if connects(tree, parent, pgid, sid) {
        hang_up_if_orphaned(tree, pgid, pid);
    }
    if parent != 0 && notify_parent(tree, pid) {
        tree.remove_process(pid);
    }
}

/// Gives the children of `pid` to its reaper.
fn orphan_children(tree: &mut TaskTree, pid: i32) {
    let children = tree.node_mut(pid).map(|node| std::mem::take(&mut node.children)).unwrap_or_default();
    let reaper = tree.reaper_of(pid);
    for child in children {
        let Some(node) = tree.node_mut(child) else { continue };
        (node.parent, node.parent_tid) = (reaper, reaper);
        let (pgid, sid, zombie) = (node.pgid, node.sid, node.zombie.is_some());
        match tree.node_mut(reaper).filter(|node| node.group.pid() != pid) {
            Some(node) => {
                node.children.insert(child);
            }
            // The first process itself has ended; everything is killed.
            None => continue,
        }
        if zombie {
            if notify_parent(tree, child) {
                tree.remove_process(child);
            }
        } else if connects(tree, pid, pgid, sid) {
            hang_up_if_orphaned(tree, pgid, pid);
        }
    }
}

/// Whether a member of process group `pgid` whose parent is `parent` keeps the group from being orphaned: only if it did
/// can the end of either orphan it now.
fn connects(tree: &TaskTree, parent: i32, pgid: i32, sid: i32) -> bool {
    tree.node(parent).is_some_and(|parent| parent.pgid != pgid && parent.sid == sid)
}

/// SIGHUP and SIGCONT to a newly orphaned process group with stopped members: `setpgid(2)`, POSIX.
fn hang_up_if_orphaned(tree: &TaskTree, pgid: i32, leaving: i32) {
    if !tree.is_orphaned(pgid, Some(leaving)) {
        return;
    }
    let stopped = |group: &Arc<ThreadGroup>| group.signals.lock().stop.is_some();
    if tree.members(pgid).any(|node| node.zombie.is_none() && stopped(&node.group)) {
        for node in tree.members(pgid) {
            node.group.send(SigInfo::kernel(Signal::HUP), None);
            node.group.send(SigInfo::kernel(Signal::CONT), None);
        }
    }
}

/// Tells the parent of the zombie `pid`. Returns whether it does not want to wait for it: it is to be reaped at once.
fn notify_parent(tree: &TaskTree, pid: i32) -> bool {
    let Some(node) = tree.node(pid) else { return false };
    let Some(parent) = tree.node(node.parent) else { return false };
    let Some(status) = node.zombie else { return false };
    let action = parent.group.handlers().get(Signal::CHLD);
    let is_sigchld = node.exit_signal == libc::SIGCHLD;
    let ignored = action.handler == SIG_IGN;
    let unwanted = is_sigchld && (ignored || action.has(SigAction::NOCLDWAIT));
    if let Some(signal) = Signal::new(node.exit_signal).ok().filter(|_| !(is_sigchld && ignored)) {
        parent.group.send(child_info(&node.group, What::Ended(status)).with_signal(signal), None);
    }
    parent.group.child_events.wake(Events::READ);
    unwanted
}

/// What SIGCHLD says of a child.
pub fn child_info(group: &ThreadGroup, what: What) -> SigInfo {
    const NS_PER_TICK: u64 = 10_000_000;
    let (code, status) = what.code_and_status();
    let usage = group.usage();
    SigInfo::child(&ChildExit {
        code,
        pid: group.pid(),
        uid: group.uid(),
        status,
        utime: (usage.user_ns / NS_PER_TICK) as i64,
        stime: (usage.system_ns / NS_PER_TICK) as i64,
    })
}

impl Task {
    /// Lets the parent of a `vfork(2)` child go on.
    pub(super) fn release_vfork_parent(&self) {
        if let Some(done) = self.vfork_done.lock().take() {
            done.finish();
        }
    }
}

/// Ends a task that could not start, or whose thread has panicked, with its process. Everything that `end_thread` may have
/// done already is done at most once.
pub(in crate::sentry) fn abandon(task: &Arc<Task>) {
    let status = ExitStatus::Killed { signal: libc::SIGKILL, core: false };
    task.group.end(status);
    task.release_vfork_parent();
    let files = task.files.write().take();
    drop(files);
    let mm = task.mm.write().take();
    drop(mm);
    task.clocks.ended();
    task.group.clocks.leave(&task.clocks, task.usage());
    let entered = task.group.signals.lock().threads.iter().any(|other| Arc::ptr_eq(other, task));
    if entered {
        finish(task, status);
    }
}
