//! The timers of a process: `setitimer(2)`, and where timers' signals go.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::sentry::signal::{DeliveryHook, SigInfo, Signal};
use crate::sentry::task::{Current, Task, ThreadGroup};
use crate::sentry::time::{CpuClocks, CpuKind, CpuUsage, SignalTimer, TimeBase, TimerSignalTarget};
use crate::timer::clock::Clock;

/// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`, made when first armed; leaf lock.
#[derive(Default)]
pub struct IntervalTimers(Mutex<[Option<Arc<SignalTimer>>; 3]>);

impl IntervalTimers {
    /// Disarms all.
    pub fn clear(&self) {
        let timers = std::mem::take(&mut *self.0.lock());
        for timer in timers.into_iter().flatten() {
            // Disarming watches no clock, so it cannot fail.
            let _old = timer.set(crate::vfs::timerfd::TimerSpec::default(), false);
        }
    }
}

impl ThreadGroup {
    /// The timer `which` (`ITIMER_*`). `EINVAL`.
    pub fn interval_timer(self: &Arc<Self>, which: i32) -> Result<Arc<SignalTimer>> {
        let usage = || self.clone() as Arc<dyn CpuUsage>;
        let (base, signal) = match which {
            libc::ITIMER_REAL => (TimeBase::Clock(Clock::Monotonic), Signal::ALRM),
            libc::ITIMER_VIRTUAL => (TimeBase::Cpu(usage(), CpuKind::User), Signal::VTALRM),
            libc::ITIMER_PROF => (TimeBase::Cpu(usage(), CpuKind::Both), Signal::PROF),
            _ => return Err(Errno::EINVAL),
        };
        let mut timers = self.itimers.0.lock();
        let timer = timers[which as usize].get_or_insert_with(|| {
            let me: Weak<ThreadGroup> = Arc::downgrade(self);
            SignalTimer::interval_timer(base, signal, me, self.kernel.timers.clone())
        });
        Ok(timer.clone())
    }
}

impl TimerSignalTarget for ThreadGroup {
    fn send_timer_signal(&self, tid: Option<i32>, info: SigInfo, hook: Arc<dyn DeliveryHook>) {
        let target = match tid {
            None => None,
            Some(tid) => match self.threads().into_iter().find(|task| task.tid() == tid) {
                Some(task) => Some(task),
                None => return hook.discarded(),
            },
        };
        self.send_hooked(info, target.as_ref(), hook);
    }
}

impl CpuClocks for Current {
    fn process(&self, pid: Option<i32>) -> Option<Arc<dyn CpuUsage>> {
        let group = match pid {
            None => self.group.clone(),
            Some(pid) => self.kernel.process(pid).ok()?,
        };
        Some(group)
    }

    fn thread(&self, tid: Option<i32>) -> Option<Arc<dyn CpuUsage>> {
        let task: Arc<Task> = match tid {
            None => self.task.clone(),
            Some(tid) => self.kernel.thread(tid).ok().filter(|task| Arc::ptr_eq(&task.group, &self.group))?,
        };
        Some(task)
    }
}
