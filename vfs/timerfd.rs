//! `timerfd_create(2)`: timers that are read.
//!
//! How often a timer has expired is computed from the clock when somebody looks; the [`TimerQueue`] is needed only to wake
//! those who wait. An interval that nobody reads therefore wakes the sandbox once, not for ever, as on Linux.
//!
//! Lock order: `state` > the timer queue's lock.

use std::any::Any;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::io::Sink;
use crate::timer::clock::{self, Clock, ClockWatcher};
use crate::timer::{TimerId, TimerQueue, TimerTarget};
use crate::vfs::anon;
use crate::vfs::file::File;
use crate::vfs::inode::Attr;
use crate::wait::{Events, WaitQueue};

/// `struct itimerspec` in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerSpec {
    /// Until (or, when it is set with `TFD_TIMER_ABSTIME`, at) the first expiry; 0 disarms.
    pub value: u64,
    /// Between expiries; 0 for only one.
    pub interval: u64,
}

/// A timer.
pub struct TimerFd {
    me: Weak<TimerFd>,
    clock: Clock,
    timers: Arc<TimerQueue>,
    state: Mutex<State>,
    queue: WaitQueue,
}

#[derive(Default)]
struct State {
    /// What the deadline is on: a relative timer on the wall clock does not care when that is set.
    running_on: Option<Clock>,
    /// The first expiry that `ticks` does not count.
    next: Option<u64>,
    interval: u64,
    /// Expiries that nobody has read.
    ticks: u64,
    armed: Option<TimerId>,
    /// `TFD_TIMER_CANCEL_ON_SET` on an absolute timer of the wall clock.
    cancel_on_set: bool,
    /// The clock was set since, and nobody was told.
    canceled: bool,
    watches_clock: bool,
    /// Flags of the last `timerfd_settime`.
    flags: i32,
}

impl State {
    /// Counts the expiries up to now.
    fn advance(&mut self) {
        let (Some(next), Some(clock)) = (self.next, self.running_on) else { return };
        let now = clock.now();
        if now < next {
            return;
        }
        // The first, and those of whole intervals since; without an interval there is just the first.
        match (now - next).checked_div(self.interval) {
            None => {
                self.ticks += 1;
                self.next = None;
            }
            Some(more) => {
                let periods = more.saturating_add(1);
                self.ticks = self.ticks.saturating_add(periods);
                self.next = Some(next.saturating_add(periods.saturating_mul(self.interval)));
            }
        }
    }

    /// Reports once that the clock was set.
    fn take_canceled(&mut self) -> bool {
        self.cancel_on_set && std::mem::take(&mut self.canceled)
    }

    fn spec(&self) -> TimerSpec {
        let left = match (self.next, self.running_on) {
            // Due this very moment is not disarmed: at least one nanosecond.
            (Some(next), Some(clock)) => next.saturating_sub(clock.now()).max(1),
            _ => 0,
        };
        TimerSpec { value: left, interval: self.interval }
    }
}

impl TimerFd {
    /// A disarmed timer on `clock`. (`CLOCK_*_ALARM` are these clocks for callers with `CAP_WAKE_ALARM`.)
    pub fn new(clock: Clock, timers: Arc<TimerQueue>) -> Arc<TimerFd> {
        Arc::new_cyclic(|me| TimerFd {
            me: me.clone(),
            clock,
            timers,
            state: Mutex::default(),
            queue: WaitQueue::new(),
        })
    }

    /// `timerfd_settime(2)`: returns what was set before. `EINVAL` for unknown flags; `ECANCELED` as `read` gives it, the
    /// timer being set all the same.
    pub fn set(&self, flags: i32, spec: TimerSpec) -> Result<TimerSpec> {
        if flags & !(libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET) != 0 {
            return Err(Errno::EINVAL);
        }
        let absolute = flags & libc::TFD_TIMER_ABSTIME != 0;
        let on = if absolute || self.clock != Clock::Realtime { self.clock } else { Clock::Monotonic };
        let mut state = self.state.lock();
        if on == Clock::Realtime && spec.value != 0 && !state.watches_clock {
            clock::watch(self.me.clone() as Weak<dyn ClockWatcher>)?;
            state.watches_clock = true;
        }
        state.advance();
        let old = state.spec();
        self.disarm(&mut state);
        let was_canceled = state.canceled;
        state.cancel_on_set = absolute && self.clock == Clock::Realtime && flags & libc::TFD_TIMER_CANCEL_ON_SET != 0;
        state.ticks = 0;
        state.flags = flags;
        state.interval = spec.interval;
        state.running_on = Some(on);
        state.next = match spec.value {
            0 => None,
            value if absolute => Some(value),
            value => Some(on.now().saturating_add(value)),
        };
        self.arm(&mut state);
        state.canceled = was_canceled && state.cancel_on_set;
        if state.next.is_some() && state.take_canceled() {
            return Err(Errno::ECANCELED);
        }
        Ok(old)
    }

    /// `timerfd_gettime(2)`: what is left, and the interval.
    pub fn get(&self) -> TimerSpec {
        let mut state = self.state.lock();
        state.advance();
        self.arm(&mut state);
        state.spec()
    }

    /// Unread expiries and the flags last set: for `/proc/PID/fdinfo`.
    pub fn unread(&self) -> (u64, i32) {
        let mut state = self.state.lock();
        state.advance();
        (state.ticks, state.flags)
    }

    /// The clock it is on.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    fn disarm(&self, state: &mut State) {
        if let Some(id) = state.armed.take() {
            self.timers.cancel(id);
        }
    }

    /// Has the next expiry wake those who wait, unless that is arranged already.
    fn arm(&self, state: &mut State) {
        let (Some(next), Some(clock), None) = (state.next, state.running_on, state.armed) else { return };
        if let Some(me) = self.me.upgrade() {
            state.armed = Some(self.timers.add(clock.to_monotonic(next), Arc::new(Expiry(Arc::downgrade(&me)))));
        }
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        if let Some(id) = self.state.get_mut().armed.take() {
            self.timers.cancel(id);
        }
    }
}

/// Refers weakly: a timer whose last descriptor is closed is disarmed.
struct Expiry(Weak<TimerFd>);

impl TimerTarget for Expiry {
    fn expired(&self, id: TimerId) {
        let Some(timer) = self.0.upgrade() else { return };
        let mut state = timer.state.lock();
        if state.armed != Some(id) {
            return;
        }
        state.armed = None;
        state.advance();
        let due = state.ticks > 0;
        if !due {
            timer.arm(&mut state); // its clock was set back meanwhile
        }
        drop(state);
        if due {
            timer.queue.wake(Events::READ);
        }
    }
}

impl ClockWatcher for TimerFd {
    fn clock_was_set(&self) {
        let mut state = self.state.lock();
        if state.running_on != Some(Clock::Realtime) || (state.next.is_none() && !state.cancel_on_set) {
            return;
        }
        if state.cancel_on_set {
            state.canceled = true;
            state.ticks = state.ticks.saturating_add(1);
        }
        self.disarm(&mut state);
        self.arm(&mut state);
        let canceled = state.canceled;
        drop(state);
        if canceled {
            self.queue.wake(Events::READ);
        }
    }
}

impl File for TimerFd {
    /// The expiries since the last read, in 8 bytes. `ECANCELED` when the clock was set and that was to be told.
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        if sink.room() < 8 {
            return Err(Errno::EINVAL);
        }
        let mut state = self.state.lock();
        state.advance();
        if state.take_canceled() {
            state.ticks = 0;
            return Err(Errno::ECANCELED);
        }
        let ticks = std::mem::take(&mut state.ticks);
        self.arm(&mut state);
        drop(state);
        if ticks == 0 {
            return Err(Errno::EAGAIN);
        }
        match sink.put(&ticks.to_ne_bytes())? {
            8 => Ok(8),
            _ => Err(Errno::EFAULT),
        }
    }

    fn poll(&self) -> Events {
        let mut state = self.state.lock();
        state.advance();
        if state.ticks > 0 { Events::IN } else { Events::empty() }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        Some(anon::shared_attr())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:[timerfd]".into())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SliceSink;
    use crate::wait::Parker;

    const MS: u64 = 1_000_000;

    fn timer(clock: Clock) -> Arc<TimerFd> {
        TimerFd::new(clock, TimerQueue::new())
    }

    fn read(timer: &TimerFd) -> Result<u64> {
        let mut buf = [0; 8];
        timer.read(0, &mut SliceSink::new(&mut buf))?;
        Ok(u64::from_ne_bytes(buf))
    }

    fn wait(timer: &TimerFd) -> u64 {
        let parker = Arc::new(Parker::new());
        let key = timer.queue.add(parker.clone(), Events::IN, false);
        loop {
            match read(timer) {
                Err(Errno::EAGAIN) => assert!(parker.park(None)),
                other => {
                    timer.queue.remove(key);
                    return other.expect("expires");
                }
            }
        }
    }

    #[test]
    fn a_single_expiry_is_read_once() {
        for clock in [Clock::Realtime, Clock::Monotonic, Clock::Boottime] {
            let timer = timer(clock);
            assert_eq!((read(&timer), timer.get()), (Err(Errno::EAGAIN), TimerSpec::default()));
            let start = clock.now();
            timer.set(libc::TFD_TIMER_ABSTIME, TimerSpec { value: start + 3 * MS, interval: 0 }).expect("set");
            assert_eq!(wait(&timer), 1);
            assert!(clock.now() >= start + 3 * MS);
            assert_eq!((read(&timer), timer.get().value), (Err(Errno::EAGAIN), 0));
        }
    }

    #[test]
    fn intervals_are_counted_from_the_clock() {
        let timer = timer(Clock::Monotonic);
        let now = clock::monotonic();
        let spec = TimerSpec { value: now - 10 * 60_000 * MS, interval: 60_000 * MS };
        timer.set(libc::TFD_TIMER_ABSTIME, spec).expect("set");
        assert_eq!(timer.poll(), Events::IN);
        assert_eq!(read(&timer), Ok(11), "ten minutes late, and the first");
        let left = timer.get();
        assert!(left.value <= 60_000 * MS && left.value > 30_000 * MS, "{left:?}");
        assert_eq!(left.interval, 60_000 * MS);
        assert_eq!(timer.timers.len(), 1, "armed for the next");
    }

    #[test]
    fn an_unread_interval_wakes_once() {
        let timer = timer(Clock::Monotonic);
        timer.set(0, TimerSpec { value: 1, interval: MS }).expect("set");
        let parker = Arc::new(Parker::new());
        timer.queue.add(parker.clone(), Events::IN, false);
        while timer.state.lock().ticks == 0 {
            parker.park(Some(std::time::Instant::now() + std::time::Duration::from_millis(1)));
        }
        assert!(timer.timers.is_empty());
        assert!(read(&timer).is_ok_and(|ticks| ticks > 0));
        assert_eq!(timer.timers.len(), 1);
    }

    #[test]
    fn setting_returns_the_old_and_forgets_expiries() {
        let timer = timer(Clock::Monotonic);
        timer.set(libc::TFD_TIMER_ABSTIME, TimerSpec { value: 1, interval: 0 }).expect("set");
        let old = timer.set(0, TimerSpec { value: 3_600_000 * MS, interval: 5 }).expect("set");
        assert_eq!(old, TimerSpec::default(), "expired");
        assert_eq!(read(&timer), Err(Errno::EAGAIN));
        let old = timer.set(0, TimerSpec::default()).expect("disarm");
        assert!(old.interval == 5 && old.value > 3_500_000 * MS, "{old:?}");
        assert!(timer.timers.is_empty());
        assert_eq!(timer.set(8, TimerSpec::default()), Err(Errno::EINVAL));
    }

    #[test]
    fn setting_the_clock_cancels() {
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        let spec = TimerSpec { value: Clock::Realtime.now() + 3_600_000 * MS, interval: 0 };
        let timer = timer(Clock::Realtime);
        timer.set(flags, spec).expect("set");
        timer.clock_was_set();
        assert_eq!(timer.poll(), Events::IN);
        assert_eq!(read(&timer), Err(Errno::ECANCELED));
        assert_eq!(read(&timer), Err(Errno::EAGAIN));
        timer.clock_was_set();
        assert_eq!(timer.set(flags, spec), Err(Errno::ECANCELED));
        timer.set(libc::TFD_TIMER_ABSTIME, spec).expect("set");
        timer.clock_was_set();
        assert_eq!(read(&timer), Err(Errno::EAGAIN), "not asked to be told");
    }

    #[test]
    fn closing_disarms() {
        let timer = timer(Clock::Monotonic);
        let timers = timer.timers.clone();
        timer.set(0, TimerSpec { value: 3_600_000 * MS, interval: 0 }).expect("set");
        drop(timer);
        assert!(timers.is_empty());
    }
}
