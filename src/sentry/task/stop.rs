//! Job control's stops: SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU and SIGCONT.

use std::sync::Arc;

use crate::sentry::signal::{SIG_IGN, SigAction, Signal};
use crate::sentry::task::exit::child_info;
use crate::sentry::task::tree::StopReport;
use crate::sentry::task::wait::What;
use crate::sentry::task::{Attention, Current, Task, TaskState, ThreadGroup};
use crate::wait::Events;

/// A stop of a thread group.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// The signal that caused it.
    pub signal: i32,
    /// Which stop of the group it is: a thread that has not woken since the one before counts anew.
    serial: u64,
    /// How many threads have come to rest.
    resting: usize,
    /// Whether the parent has been told.
    pub reported: bool,
}

impl Stop {
    /// The signal to tell the parent of, once all `threads` rest.
    pub(super) fn complete(&mut self, threads: usize) -> Option<i32> {
        let complete = self.resting >= threads && threads > 0 && !self.reported;
        self.reported |= complete;
        complete.then_some(self.signal)
    }
}

impl ThreadGroup {
    /// Has all threads stop, unless SIGCONT was sent since `task` took the signal.
    pub(super) fn stop(&self, task: &Task, signal: i32) {
        let mut signals = self.signals.lock();
        let taken = std::mem::take(&mut task.signals.lock().stop_taken);
        if !taken || signals.stop.is_some() || signals.ending.is_some() {
            return;
        }
        signals.stops += 1;
        signals.stop = Some(Stop { signal, serial: signals.stops, resting: 0, reported: false });
        for task in &signals.threads {
            task.notify(Attention::STOP);
        }
    }

    /// Notes a stop or its end for the parent's `wait4(2)`, and sends SIGCHLD unless SA_NOCLDSTOP.
    pub(super) fn report_stop(self: &Arc<Self>, report: StopReport) {
        let mut tree = self.kernel.tree.lock();
        let Some(node) = tree.node_mut(self.pid()).filter(|node| node.zombie.is_none()) else { return };
        node.report = Some(report);
        let parent = node.parent;
        let Some(parent) = tree.node(parent) else { return };
        let what = match report {
            StopReport::Stopped(signal) => What::Stopped(signal),
            StopReport::Continued => What::Continued,
        };
        let action = parent.group.handlers().get(Signal::CHLD);
        if action.handler != SIG_IGN && !action.has(SigAction::NOCLDSTOP) {
            parent.group.send(child_info(self, what), None);
        }
        parent.group.child_events.wake(Events::READ);
    }
}

impl Current {
    /// Rests while the group is stopped. Returns when it goes on, or the thread must end.
    pub(super) fn rest(&mut self) {
        let group = self.task.group.clone();
        let mut counted = None;
        while self.count_stop(&group, &mut counted) {
            self.task.set_state(TaskState::Stopped);
            let blocking = crate::platform::placement::blocking();
            self.task.parker.park(None);
            drop(blocking);
        }
        self.task.set_state(TaskState::Running);
        let continued = std::mem::take(&mut group.signals.lock().continued);
        if continued {
            group.report_stop(StopReport::Continued);
        }
    }

    /// Notes that the thread rests, which the last one tells the parent. Returns whether it is to go on resting. `counted`:
    /// the stop that it is counted in.
    fn count_stop(&self, group: &Arc<ThreadGroup>, counted: &mut Option<u64>) -> bool {
        let report = {
            let mut signals = group.signals.lock();
            let threads = signals.threads.len();
            let killed = self.task.attention().contains(Attention::KILL);
            let Some(stop) = &mut signals.stop else {
                self.task.clear_attention(Attention::STOP);
                return false;
            };
            if killed {
                stop.resting -= usize::from(*counted == Some(stop.serial));
                return false;
            }
            if *counted == Some(stop.serial) {
                return true;
            }
            *counted = Some(stop.serial);
            stop.resting += 1;
            self.task.set_state(TaskState::Stopped);
            stop.complete(threads)
        };
        if let Some(signal) = report {
            group.report_stop(StopReport::Stopped(signal));
        }
        true
    }
}
