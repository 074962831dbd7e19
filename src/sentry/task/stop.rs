//! Job control's stops: SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU and SIGCONT.

use std::sync::Arc;

use crate::sentry::signal::{SIG_IGN, SigAction, Signal};
use crate::sentry::task::exit::child_info;
use crate::sentry::task::tree::StopReport;
use crate::sentry::task::wait::What;
use crate::sentry::task::{Attention, Current, TaskState, ThreadGroup};
use crate::wait::Events;

/// A stop of a thread group.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// The signal that caused it.
    pub signal: i32,
    /// How many threads have come to rest.
    pub resting: usize,
    /// Whether the parent has been told.
    pub reported: bool,
}

impl ThreadGroup {
    /// Has all threads stop.
    pub(super) fn stop(&self, signal: i32) {
        let mut signals = self.signals.lock();
        if signals.stop.is_some() || signals.ending.is_some() {
            return;
        }
        signals.stop = Some(Stop { signal, resting: 0, reported: false });
        for task in &signals.threads {
            task.notify(Attention::STOP);
        }
    }

    /// Notes a stop or its end for the parent's `wait4(2)`, and sends SIGCHLD unless SA_NOCLDSTOP.
    fn report_stop(self: &Arc<Self>, report: StopReport) {
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
        let report = {
            let mut signals = group.signals.lock();
            let threads = signals.threads.len();
            let Some(stop) = &mut signals.stop else { return self.task.clear_attention(Attention::STOP) };
            stop.resting += 1;
            let complete = stop.resting >= threads && !stop.reported;
            stop.reported |= complete;
            complete.then_some(stop.signal)
        };
        if let Some(signal) = report {
            group.report_stop(StopReport::Stopped(signal));
        }
        self.task.set_state(TaskState::Stopped);
        let blocking = crate::platform::placement::blocking();
        while self.task.attention().contains(Attention::STOP) && !self.task.attention().contains(Attention::KILL) {
            self.task.parker.park(None);
        }
        drop(blocking);
        self.task.set_state(TaskState::Running);
        let continued = std::mem::take(&mut group.signals.lock().continued);
        if continued {
            group.report_stop(StopReport::Continued);
        }
    }
}
