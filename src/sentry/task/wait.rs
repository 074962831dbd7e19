//! `wait4(2)` and `waitid(2)`: what becomes of children.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::task::tree::{ExitStatus, Node, StopReport, TaskTree};
use crate::sentry::task::usage::Usage;
use crate::sentry::task::{Current, Task, ThreadGroup};
use crate::wait::Events;

/// Which children are meant.
#[derive(Clone, Debug)]
pub enum Which {
    /// Any.
    Any,
    /// One.
    Process(i32),
    /// Those of a process group.
    Group(i32),
}

/// What happened to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It ended.
    Ended(ExitStatus),
    /// It was stopped by this signal.
    Stopped(i32),
    /// It was continued.
    Continued,
}

impl What {
    /// As `wait4(2)` stores it.
    pub fn wait_status(self) -> i32 {
        match self {
            What::Ended(status) => status.wait_status(),
            What::Stopped(signal) => (signal << 8) | 0x7f,
            What::Continued => 0xffff,
        }
    }

    /// `si_code` and `si_status` of `waitid(2)` and SIGCHLD.
    pub fn code_and_status(self) -> (i32, i32) {
        match self {
            What::Ended(ExitStatus::Exited(code)) => (libc::CLD_EXITED, code & 0xff),
            What::Ended(ExitStatus::Killed { signal, core: false }) => (libc::CLD_KILLED, signal),
            What::Ended(ExitStatus::Killed { signal, core: true }) => (libc::CLD_DUMPED, signal),
            What::Stopped(signal) => (libc::CLD_STOPPED, signal),
            What::Continued => (libc::CLD_CONTINUED, libc::SIGCONT),
        }
    }
}

/// A child that something happened to.
#[derive(Clone, Debug)]
pub struct Waited {
    /// Its process id.
    pub pid: i32,
    /// Its real user id.
    pub uid: u32,
    /// What.
    pub what: What,
    /// What it has used.
    pub usage: Usage,
}

/// `WNOHANG`, `WEXITED`, `__WALL` and their kin.
pub type WaitOptions = i32;

fn matches(node: &Node, which: &Which, options: WaitOptions, task: &Task) -> bool {
    let by_id = match *which {
        Which::Any => true,
        Which::Process(pid) => node.group.pid() == pid,
        Which::Group(pgid) => node.pgid == pgid,
    };
    // A child that ends with another signal than SIGCHLD is a "clone" child.
    let is_clone = node.exit_signal != libc::SIGCHLD;
    let by_kind = options & libc::__WALL != 0 || (options & libc::__WCLONE != 0) == is_clone;
    let by_thread = options & libc::__WNOTHREAD == 0 || node.parent_tid == task.tid();
    by_id && by_kind && by_thread
}

fn happened(node: &Node, options: WaitOptions) -> Option<What> {
    if let Some(status) = node.zombie {
        return (options & libc::WEXITED != 0).then_some(What::Ended(status));
    }
    match node.report? {
        StopReport::Stopped(signal) if options & libc::WSTOPPED != 0 => Some(What::Stopped(signal)),
        StopReport::Continued if options & libc::WCONTINUED != 0 => Some(What::Continued),
        _ => None,
    }
}

/// Looks once. `EAGAIN`: nothing yet; `ECHILD`: there is no such child.
fn look(task: &Task, which: &Which, options: WaitOptions) -> Result<Waited> {
    let mut tree = task.kernel.tree.lock();
    let me = tree.node(task.pid()).ok_or(Errno::ECHILD)?;
    let mut any = false;
    let mut found = None;
    // One child by its id is looked up; all are looked through only when any will do.
    let candidates: Box<dyn Iterator<Item = i32> + '_> = match which {
        Which::Process(pid) => Box::new(me.children.get(pid).copied().into_iter()),
        _ => Box::new(me.children.iter().copied()),
    };
    for pid in candidates {
        let Some(node) = tree.node(pid).filter(|node| matches(node, which, options, task)) else { continue };
        any = true;
        if let Some(what) = happened(node, options) {
            found = Some((pid, what));
            break;
        }
    }
    let Some((pid, what)) = found else {
        return Err(if any { Errno::EAGAIN } else { Errno::ECHILD });
    };
    take(&mut tree, task.pid(), pid, what, options & libc::WNOWAIT != 0)
}

/// Reports on a child, and unless `leave` reaps it or notes that it was reported.
fn take(tree: &mut TaskTree, parent: i32, pid: i32, what: What, leave: bool) -> Result<Waited> {
    let node = tree.node_mut(pid).ok_or(Errno::ECHILD)?;
    let waited = Waited { pid, uid: node.group.uid(), what, usage: node.group.usage().plus(node.children_usage) };
    if leave {
        return Ok(waited);
    }
    match what {
        What::Ended(_) => {
            let gone = tree.remove_process(pid);
            if let Some(parent) = tree.node_mut(parent) {
                parent.children_usage = parent.children_usage.plus(waited.usage);
            }
            drop(gone);
        }
        What::Stopped(_) | What::Continued => node.report = None,
    }
    Ok(waited)
}

impl Current {
    /// Waits for something to happen to a child. `None` with `WNOHANG` when nothing has. `ECHILD`, `ERESTARTSYS`.
    pub fn wait_child(&self, which: &Which, options: WaitOptions) -> Result<Option<Waited>> {
        match look(&self.task, which, options) {
            Err(Errno::EAGAIN) if options & libc::WNOHANG != 0 => return Ok(None),
            Err(Errno::EAGAIN) => {}
            done => return done.map(Some),
        }
        let group: &Arc<ThreadGroup> = &self.task.group;
        self.task.wait_on(&group.child_events, Events::READ, None, &mut || look(&self.task, which, options)).map(Some)
    }
}
