//! A timer that sends a signal: of `setitimer(2)` and of `timer_create(2)`.
//!
//! Its signal is queued at most once. After it has expired it is armed again only when the signal is delivered, which is
//! also when the expiries in between are counted: an interval that nobody takes notice of costs nothing.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{SigEvent, TimeBase};
use crate::errno::Result;
use crate::sentry::signal::{Charge, DeliveryHook, SigInfo, Signal};
use crate::timer::clock::{self, Clock, ClockWatcher};
use crate::timer::{TimerId, TimerQueue, TimerTarget};
use crate::vfs::timerfd::TimerSpec;

/// Who gets the signals of timers: a process.
pub trait TimerSignalTarget: Send + Sync {
    /// Makes `info` pending with its hook (`PendingQueue::enqueue_hooked`): for the process, or the thread `tid` of it
    /// (an id as `timer_create(2)` was given). A signal that is not queued (ignored, no such thread) must be told to
    /// `hook.discarded()`.
    fn send_timer_signal(&self, tid: Option<i32>, info: SigInfo, hook: Arc<dyn DeliveryHook>);
}

/// A tick of Linux: how often CPU time is looked at, and how soon an ignored timer expires again.
const TICK: u64 = 4_000_000;
/// The longest pause between looks at CPU time that does not grow.
const IDLE_PAUSE: u64 = 16 * TICK;
/// The longest pause between looks at CPU time that grows.
const LONG_PAUSE: u64 = 1_000_000_000;

/// A timer.
pub struct SignalTimer {
    me: Weak<SignalTimer>,
    base: TimeBase,
    /// What is sent to which thread; nothing with `SIGEV_NONE`.
    sends: Option<(Option<i32>, SigInfo)>,
    target: Weak<dyn TimerSignalTarget>,
    timers: Arc<TimerQueue>,
    state: Mutex<State>,
    /// Its place in the signal queue, for RLIMIT_SIGPENDING.
    _charge: Option<Charge>,
}

struct State {
    /// What `next` is on: a relative timer on the wall clock does not care when that is set.
    base: TimeBase,
    /// The expiry that is waited for, or, when `fired`, the one that was signalled.
    next: Option<u64>,
    interval: u64,
    armed: Option<TimerId>,
    /// This setting has expired, and its signal has not been delivered.
    fired: bool,
    /// A signal, of this or an earlier setting, is queued.
    queued: bool,
    /// `timer_getoverrun(2)`.
    overrun: i32,
    /// The CPU time at the last look, and the pause before the next.
    looked: (u64, u64),
}

impl SignalTimer {
    /// A disarmed timer.
    pub(super) fn new(
        base: TimeBase,
        sends: Option<(Option<i32>, SigInfo)>,
        target: Weak<dyn TimerSignalTarget>,
        timers: Arc<TimerQueue>,
        charge: Option<Charge>,
    ) -> Arc<SignalTimer> {
        let state = State {
            base: base.clone(),
            next: None,
            interval: 0,
            armed: None,
            fired: false,
            queued: false,
            overrun: 0,
            looked: (0, TICK),
        };
        Arc::new_cyclic(|me| SignalTimer {
            me: me.clone(),
            base,
            sends,
            target,
            timers,
            state: Mutex::new(state),
            _charge: charge,
        })
    }

    /// For `setitimer(2)`: `ITIMER_REAL` is SIGALRM on the monotonic clock, `ITIMER_VIRTUAL` SIGVTALRM and `ITIMER_PROF`
    /// SIGPROF on CPU time of the process.
    pub fn interval_timer(
        base: TimeBase,
        signal: Signal,
        target: Weak<dyn TimerSignalTarget>,
        timers: Arc<TimerQueue>,
    ) -> Arc<SignalTimer> {
        SignalTimer::new(base, Some((None, SigInfo::kernel(signal))), target, timers, None)
    }

    /// `timer_settime(2)`, `setitimer(2)`: returns what was set before. Fails as the host when its clock cannot be watched.
    pub fn set(&self, spec: TimerSpec, absolute: bool) -> Result<TimerSpec> {
        if absolute && matches!(self.base, TimeBase::Clock(Clock::Realtime)) && spec.value != 0 {
            clock::watch(self.me.clone() as Weak<dyn ClockWatcher>)?;
        }
        let mut state = self.state.lock();
        let old = self.spec(&state);
        if let Some(id) = state.armed.take() {
            self.timers.cancel(id);
        }
        state.base = match &self.base {
            TimeBase::Clock(Clock::Realtime) if !absolute => TimeBase::Clock(Clock::Monotonic),
            base => base.clone(),
        };
        let now = state.base.now();
        let next = if absolute { spec.value } else { now.saturating_add(spec.value) };
        state.next = (spec.value != 0).then_some(next);
        state.interval = if spec.value != 0 { spec.interval } else { 0 };
        (state.fired, state.overrun) = (false, 0);
        state.looked = (now, TICK);
        self.arm(&mut state);
        Ok(old)
    }

    /// `timer_gettime(2)`, `getitimer(2)`.
    pub fn get(&self) -> TimerSpec {
        self.spec(&self.state.lock())
    }

    /// `timer_getoverrun(2)`: of the signal that was delivered last.
    pub fn overrun(&self) -> i32 {
        self.state.lock().overrun
    }

    fn spec(&self, state: &State) -> TimerSpec {
        let Some(next) = state.next else { return TimerSpec { value: 0, interval: state.interval } };
        let now = state.base.now();
        let value = match (next.checked_sub(now), (now.saturating_sub(next)).checked_rem(state.interval)) {
            (Some(left @ 1..), _) => left,
            (_, Some(past)) => state.interval - past,
            (_, None) if self.sends.is_none() => 0,
            // Due this very moment is not disarmed.
            (_, None) => 1,
        };
        TimerSpec { value, interval: state.interval }
    }

    /// Has the timer queue call when it is to be looked at again.
    fn arm(&self, state: &mut State) {
        let (Some(next), Some(_), Some(me)) = (state.next, &self.sends, self.me.upgrade()) else { return };
        let deadline = match &state.base {
            TimeBase::Clock(clock) => clock.to_monotonic(next),
            TimeBase::Cpu(..) => {
                let now = state.base.now();
                let (before, pause) = state.looked;
                let pause = if now == before { (pause * 2).min(IDLE_PAUSE) } else { TICK };
                state.looked = (now, pause);
                let soonest = next.saturating_sub(now) / crate::platform::placement::count() as u64;
                clock::monotonic().saturating_add(soonest.clamp(pause, LONG_PAUSE.max(pause)))
            }
        };
        state.armed = Some(self.timers.add(deadline, me));
    }

    /// Goes on to the first expiry behind `now`; returns how many there were up to it.
    fn advance(state: &mut State, now: u64) -> u64 {
        let Some(next) = state.next.filter(|next| *next <= now) else { return 0 };
        let Some(more) = (now - next).checked_div(state.interval) else {
            state.next = None;
            return 1;
        };
        let expiries = more.saturating_add(1);
        state.next = Some(next.saturating_add(expiries.saturating_mul(state.interval)));
        expiries
    }

    /// The signal has left the queue: expiries up to `now` are over, and the timer runs again.
    fn rearm(&self, state: &mut State, now: u64) -> u64 {
        state.queued = false;
        if !std::mem::take(&mut state.fired) {
            return 0;
        }
        let expiries = Self::advance(state, now);
        self.arm(state);
        expiries
    }
}

impl TimerTarget for SignalTimer {
    fn expired(&self, id: TimerId) {
        let mut state = self.state.lock();
        if state.armed != Some(id) {
            return;
        }
        state.armed = None;
        let Some(next) = state.next else { return };
        if state.base.now() < next {
            return self.arm(&mut state);
        }
        state.fired = true;
        // A signal of an earlier setting that is still queued stands for this one too.
        let send = !std::mem::replace(&mut state.queued, true);
        drop(state);
        let (Some((tid, info)), true) = (self.sends, send) else { return };
        if let (Some(target), Some(me)) = (self.target.upgrade(), self.me.upgrade()) {
            target.send_timer_signal(tid, info, me);
        }
    }
}

impl DeliveryHook for SignalTimer {
    fn delivered(&self, info: &mut SigInfo) {
        let mut state = self.state.lock();
        let now = state.base.now();
        let expiries = self.rearm(&mut state, now);
        state.overrun = i32::try_from(expiries.saturating_sub(1)).unwrap_or(i32::MAX);
        if info.code() == libc::SI_TIMER {
            info.set_overrun(state.overrun);
        }
    }

    fn discarded(&self) {
        let mut state = self.state.lock();
        // Not before the next tick: an interval of a nanosecond would keep the timer thread busy.
        let now = state.base.now().saturating_add(if state.interval < TICK { TICK } else { 0 });
        self.rearm(&mut state, now);
    }
}

impl ClockWatcher for SignalTimer {
    fn clock_was_set(&self) {
        let mut state = self.state.lock();
        if let Some(id) = state.armed.take() {
            self.timers.cancel(id);
            self.arm(&mut state);
        }
    }
}

impl SigEvent {
    /// What a timer with this `id` sends.
    pub(super) fn sends(self, id: i32) -> Option<(Option<i32>, SigInfo)> {
        match self {
            SigEvent::None => None,
            SigEvent::Signal { signal, value } => Some((None, SigInfo::timer(signal, id, value.unwrap_or(id as u64)))),
            SigEvent::Thread { tid, signal, value } => Some((Some(tid), SigInfo::timer(signal, id, value))),
        }
    }
}
