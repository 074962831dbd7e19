//! RLIMIT_CPU: `setrlimit(2)`.
//!
//! As with timers on CPU time the host tells nobody when a process has used so much, so what it has used is looked at from
//! time to time, by processes with a limit alone.

use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::sentry::limits::{INFINITY, Limit};
use crate::sentry::signal::{SigInfo, Signal};
use crate::sentry::task::ThreadGroup;
use crate::sentry::task::signals::Origin;
use crate::sentry::time::{CpuKind, CpuUsage};
use crate::timer::clock::monotonic;
use crate::timer::{TimerId, TimerTarget};

const SECOND: u64 = 1_000_000_000;
/// The shortest pause between two looks: a tick of Linux.
const TICK: u64 = 4_000_000;

/// The watch over a process's limit, made when it first has one.
#[derive(Default)]
pub struct CpuLimit(OnceLock<Arc<Watch>>);

struct Watch {
    group: Weak<ThreadGroup>,
    /// Before the process's limits and clocks, and the timer queue.
    state: Mutex<State>,
}

struct State {
    armed: Option<TimerId>,
    /// The CPU time at the last look, and the pause before this one.
    looked: (u64, u64),
}

/// What a process that has used `used` nanoseconds is due: a signal, and the soft limit from then on.
fn due(limit: Limit, used: u64) -> Option<(Signal, u64)> {
    let seconds = used / SECOND;
    if seconds >= limit.hard {
        return Some((Signal::KILL, limit.soft));
    }
    (seconds >= limit.soft).then(|| (Signal::XCPU, limit.soft.saturating_add(1).min(limit.hard)))
}

impl ThreadGroup {
    /// Watches over RLIMIT_CPU, which was set or inherited.
    pub(in crate::sentry) fn watch_cpu_limit(self: &Arc<Self>) {
        if self.cpu_limit().soft == INFINITY {
            return;
        }
        let watch = self.cpu_limit.0.get_or_init(|| {
            let state = State { armed: None, looked: (0, TICK) };
            Arc::new(Watch { group: Arc::downgrade(self), state: Mutex::new(state) })
        });
        let mut state = watch.state.lock();
        if let Some(id) = state.armed.take() {
            self.kernel.timers.cancel(id);
        }
        watch.arm(self, &mut state);
    }

    fn cpu_limit(&self) -> Limit {
        self.limits.lock().get(libc::RLIMIT_CPU).unwrap_or(Limit { soft: INFINITY, hard: INFINITY })
    }
}

impl Watch {
    /// Has the timer queue call at the soonest moment at which the limit can be reached, less often while the process
    /// sleeps.
    fn arm(self: &Arc<Self>, group: &ThreadGroup, state: &mut State) {
        let used = CpuKind::Both.of(group as &dyn CpuUsage);
        let (before, pause) = state.looked;
        let pause = if used == before { (pause * 2).min(SECOND) } else { TICK };
        state.looked = (used, pause);
        let left = group.cpu_limit().soft.saturating_mul(SECOND).saturating_sub(used);
        let soonest = left / crate::platform::placement::count().max(1) as u64;
        let deadline = monotonic().saturating_add(soonest.clamp(pause, SECOND));
        state.armed = Some(group.kernel.timers.add(deadline, self.clone()));
    }
}

impl TimerTarget for Watch {
    fn expired(&self, id: TimerId) {
        let Some(group) = self.group.upgrade() else { return };
        let mut state = self.state.lock();
        if state.armed != Some(id) || group.exited.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        state.armed = None;
        let used = CpuKind::Both.of(&*group as &dyn CpuUsage);
        let due = {
            let mut limits = group.limits.lock();
            let limit = limits.get(libc::RLIMIT_CPU).ok();
            let due = limit.and_then(|limit| due(limit, used));
            if let (Some((_, soft)), Some(limit)) = (due, limit) {
                // Up to the hard limit nobody is refused.
                let _ = limits.set(libc::RLIMIT_CPU, Limit { soft, ..limit }, false);
            }
            due
        };
        if group.cpu_limit().soft != INFINITY
            && let Some(watch) = group.cpu_limit.0.get()
        {
            watch.arm(&group, &mut state);
        }
        drop(state);
        match due {
            // The first process is not spared either.
            Some((Signal::KILL, _)) => {
                let _ = group.try_send(SigInfo::kernel(Signal::KILL), None, Origin::Runtime);
            }
            Some((signal, _)) => group.send(SigInfo::kernel(signal), None),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_come_each_second_from_the_soft_limit_on() {
        let limit = Limit { soft: 1, hard: 3 };
        assert_eq!(due(limit, SECOND - 1), None);
        assert_eq!(due(limit, SECOND), Some((Signal::XCPU, 2)));
        let next = Limit { soft: 2, ..limit };
        assert_eq!(due(next, 2 * SECOND - 1), None);
        assert_eq!(due(next, 2 * SECOND), Some((Signal::XCPU, 3)));
        assert_eq!(due(Limit { soft: 3, ..limit }, 3 * SECOND), Some((Signal::KILL, 3)));
        assert_eq!(due(Limit { soft: INFINITY, hard: INFINITY }, u64::MAX), None);
    }
}
