//! The POSIX timers of a process: `timer_create(2)`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{SignalTimer, TimeBase, TimerSignalTarget};
use crate::errno::{Errno, Result};
use crate::sentry::signal::{PendingCount, Signal};
use crate::timer::TimerQueue;
use crate::vfs::timerfd::TimerSpec;

/// `struct sigevent`: how an expiry is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigEvent {
    /// `SIGEV_NONE`: not at all.
    None,
    /// `SIGEV_SIGNAL`.
    Signal {
        /// SIGALRM when the caller passed no `sigevent`.
        signal: Signal,
        /// `sigev_value`; the timer's id when the caller passed no `sigevent`.
        value: Option<u64>,
    },
    /// `SIGEV_THREAD_ID`: to a thread of the process. The caller has checked that it is one.
    Thread {
        /// As given.
        tid: i32,
        /// The signal.
        signal: Signal,
        /// `sigev_value`.
        value: u64,
    },
}

impl SigEvent {
    /// From the fields of a `struct sigevent`. `EINVAL`: an unknown kind, a signal that there is not.
    pub fn decode(notify: i32, signo: i32, tid: i32, value: u64) -> Result<SigEvent> {
        match notify {
            libc::SIGEV_NONE => Ok(SigEvent::None),
            // SIGEV_THREAD is the C library's own affair: the kernel sends a signal.
            libc::SIGEV_SIGNAL | libc::SIGEV_THREAD => {
                Ok(SigEvent::Signal { signal: Signal::new(signo)?, value: Some(value) })
            }
            libc::SIGEV_THREAD_ID => Ok(SigEvent::Thread { tid, signal: Signal::new(signo)?, value }),
            _ => Err(Errno::EINVAL),
        }
    }
}

#[derive(Default)]
struct Table {
    timers: BTreeMap<i32, Arc<SignalTimer>>,
    next_id: i32,
}

/// The timers of a process. Not inherited by a child; [`PosixTimers::clear`] on `execve(2)` and at the end.
#[derive(Default)]
pub struct PosixTimers {
    table: Mutex<Table>,
}

impl PosixTimers {
    /// None.
    pub fn new() -> PosixTimers {
        PosixTimers::default()
    }

    /// `timer_create(2)`: returns the id. A timer that sends a signal has its place in the queue from now on: `EAGAIN` when
    /// `limit` (RLIMIT_SIGPENDING) is reached.
    pub fn create(
        &self,
        base: TimeBase,
        event: SigEvent,
        target: Weak<dyn TimerSignalTarget>,
        timers: &Arc<TimerQueue>,
        count: &Arc<PendingCount>,
        limit: u64,
    ) -> Result<i32> {
        let charge = count.charge(limit).ok_or(Errno::EAGAIN)?;
        let mut table = self.table.lock();
        let mut id = table.next_id;
        // Bounded by the number of timers, which is bounded by the limit.
        while table.timers.contains_key(&id) {
            id = id.checked_add(1).unwrap_or(0);
        }
        table.next_id = id.checked_add(1).unwrap_or(0);
        let timer = SignalTimer::new(base, event.sends(id), target, timers.clone(), Some(charge));
        table.timers.insert(id, timer);
        Ok(id)
    }

    /// A timer. `EINVAL` when there is none with this id.
    pub fn get(&self, id: i32) -> Result<Arc<SignalTimer>> {
        self.table.lock().timers.get(&id).cloned().ok_or(Errno::EINVAL)
    }

    /// `timer_delete(2)`. A signal that is queued stays. `EINVAL`.
    pub fn delete(&self, id: i32) -> Result<()> {
        let timer = self.table.lock().timers.remove(&id).ok_or(Errno::EINVAL)?;
        timer.set(TimerSpec::default(), false).map(drop)
    }

    /// Deletes all.
    pub fn clear(&self) {
        let timers = std::mem::take(&mut self.table.lock().timers);
        for timer in timers.into_values() {
            // Disarming watches no clock, so it cannot fail.
            let _old = timer.set(TimerSpec::default(), false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    use super::*;
    use crate::sentry::signal::{DeliveryHook, PendingQueue, SigInfo, SigSet};
    use crate::sentry::time::{CpuKind, CpuUsage};
    use crate::timer::clock::Clock;

    struct Process {
        queue: Mutex<PendingQueue>,
        sent: Mutex<mpsc::Sender<Option<i32>>>,
    }

    impl TimerSignalTarget for Process {
        fn send_timer_signal(&self, tid: Option<i32>, info: SigInfo, hook: Arc<dyn DeliveryHook>) {
            self.queue.lock().enqueue_hooked(info, hook);
            self.sent.lock().send(tid).unwrap();
        }
    }

    struct Setup {
        process: Arc<Process>,
        sent: mpsc::Receiver<Option<i32>>,
        timers: Arc<TimerQueue>,
        posix: PosixTimers,
        count: Arc<PendingCount>,
    }

    impl Setup {
        fn new() -> Setup {
            let (sender, sent) = mpsc::channel();
            let process = Arc::new(Process { queue: Mutex::default(), sent: Mutex::new(sender) });
            let (timers, posix, count) = (TimerQueue::new(), PosixTimers::new(), PendingCount::new());
            Setup { process, sent, timers, posix, count }
        }

        fn target(&self) -> Weak<dyn TimerSignalTarget> {
            let weak: Weak<Process> = Arc::downgrade(&self.process);
            weak
        }

        fn create(&self, base: TimeBase, event: SigEvent) -> Result<i32> {
            self.posix.create(base, event, self.target(), &self.timers, &self.count, 2)
        }

        fn take(&self) -> Option<SigInfo> {
            self.process.queue.lock().dequeue(SigSet::ALL)
        }
    }

    const MONOTONIC: TimeBase = TimeBase::Clock(Clock::Monotonic);

    #[test]
    fn a_signal_is_queued_once_and_counts_the_rest() {
        let setup = Setup::new();
        let event = SigEvent::Thread { tid: 5, signal: Signal::USR1, value: 77 };
        let id = setup.create(MONOTONIC, event).unwrap();
        let timer = setup.posix.get(id).unwrap();
        let start = Clock::Monotonic.now();
        let spec = TimerSpec { value: start.saturating_sub(9_500_000_000).max(1), interval: 1_000_000_000 };
        timer.set(spec, true).unwrap();
        assert_eq!(setup.sent.recv(), Ok(Some(5)));
        assert!(setup.timers.is_empty(), "not armed before the signal is delivered");
        let info = setup.take().unwrap();
        assert_eq!((info.signal(), info.code(), info.value()), (Signal::USR1, libc::SI_TIMER, 77));
        assert!(info.overrun() >= 1 && info.overrun() == timer.overrun(), "{}", info.overrun());
        assert_eq!(setup.timers.len(), 1);
        assert!(timer.get().value <= 1_000_000_000 && timer.get().interval == 1_000_000_000);
        setup.posix.delete(id).unwrap();
        assert!(setup.timers.is_empty());
        assert_eq!(setup.posix.delete(id), Err(Errno::EINVAL));
    }

    #[test]
    fn one_shots_end_and_places_are_limited() {
        let setup = Setup::new();
        let event = SigEvent::Signal { signal: Signal::ALRM, value: None };
        let first = setup.create(MONOTONIC, event).unwrap();
        let second = setup.create(TimeBase::Clock(Clock::Realtime), event).unwrap();
        assert_eq!(setup.create(MONOTONIC, SigEvent::None), Err(Errno::EAGAIN));
        let timer = setup.posix.get(second).unwrap();
        timer.set(TimerSpec { value: 1_000_000, interval: 0 }, false).unwrap();
        assert_eq!(setup.sent.recv(), Ok(None));
        assert_eq!(setup.take().map(|info| (info.value(), info.overrun())), Some((second as u64, 0)));
        assert_eq!(timer.get(), TimerSpec::default());
        drop(timer);
        assert_ne!(first, second);
        setup.posix.clear();
        // The timer thread may hold the timer that has just expired for a moment longer.
        let late = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while setup.count.get() != 0 && std::time::Instant::now() < late {
            std::thread::yield_now();
        }
        assert_eq!(setup.count.get(), 0);
    }

    #[test]
    fn cpu_time_is_looked_at_until_it_is_used() {
        #[derive(Default)]
        struct Busy(AtomicU64);
        impl CpuUsage for Busy {
            fn cpu_time(&self) -> (u64, u64) {
                // 3 ms more at each look.
                (self.0.fetch_add(3_000_000, Ordering::Relaxed), 0)
            }
        }
        let setup = Setup::new();
        let base = TimeBase::Cpu(Arc::new(Busy::default()), CpuKind::User);
        let timer = SignalTimer::interval_timer(base, Signal::VTALRM, setup.target(), setup.timers.clone());
        timer.set(TimerSpec { value: 20_000_000, interval: 0 }, false).unwrap();
        assert_eq!(setup.sent.recv(), Ok(None));
        let info = setup.take().unwrap();
        assert_eq!((info.signal(), info.overrun()), (Signal::VTALRM, 0));
        assert_eq!(timer.get().value, 0);
    }
}
