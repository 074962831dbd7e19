//! Timers that send signals: `alarm(2)`, `setitimer(2)`, `timer_create(2)`.

use std::sync::{Arc, Weak};

use super::{Time, from_timespec, from_timeval, to_timespec, to_timeval};
use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::UserPtr;
use crate::sentry::signal::Signal;
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::{Current, ThreadGroup};
use crate::sentry::time::{ClockId, SigEvent, TimerSignalTarget};
use crate::vfs::timerfd::TimerSpec;

/// `struct itimerval` and `struct itimerspec`: the interval, then the value.
pub type Itimer = [i64; 4];

/// From a `struct itimerspec`. `EINVAL`.
pub fn from_itimerspec(timer: Itimer) -> Result<TimerSpec> {
    let value = from_timespec([timer[2], timer[3]])?;
    Ok(TimerSpec { value, interval: from_timespec([timer[0], timer[1]])? })
}

/// As a `struct itimerspec`.
pub fn to_itimerspec(spec: TimerSpec) -> Itimer {
    let (interval, value) = (to_timespec(spec.interval), to_timespec(spec.value));
    [interval[0], interval[1], value[0], value[1]]
}

fn to_itimerval(spec: TimerSpec) -> Itimer {
    // A timer that is about to expire is not disarmed.
    let value: Time = if (1..1000).contains(&spec.value) { [0, 1] } else { to_timeval(spec.value) };
    let interval = to_timeval(spec.interval);
    [interval[0], interval[1], value[0], value[1]]
}

/// `alarm(2)`.
pub fn alarm(cur: &mut Current, seconds: u32) -> SysResult {
    let timer = cur.group.interval_timer(libc::ITIMER_REAL)?;
    let old = timer.set(TimerSpec { value: u64::from(seconds) * 1_000_000_000, interval: 0 }, false)?;
    Ok(whole_seconds(old.value))
}

/// As Linux rounds what `alarm(2)` returns: to the nearest, but never to nothing.
fn whole_seconds(ns: u64) -> u64 {
    match ns {
        0 => 0,
        _ => (ns.saturating_add(500_000_000) / 1_000_000_000).max(1),
    }
}

/// `getitimer(2)`. `EINVAL`, `EFAULT`.
pub fn getitimer(cur: &mut Current, which: i32, old: UserPtr<Itimer>) -> SysResult {
    let spec = cur.group.interval_timer(which)?.get();
    old.write(cur.space(), &to_itimerval(spec)).map(|()| 0)
}

/// `setitimer(2)`. `EINVAL`, `EFAULT`. NULL disarms, as Linux has it.
pub fn setitimer(cur: &mut Current, which: i32, new: UserPtr<Itimer>, old: UserPtr<Itimer>) -> SysResult {
    let spec = match new.non_null() {
        None => TimerSpec::default(),
        Some(new) => {
            let [interval, micros, value, value_micros] = new.read(cur.space())?;
            TimerSpec { value: from_timeval([value, value_micros])?, interval: from_timeval([interval, micros])? }
        }
    };
    let before = cur.group.interval_timer(which)?.set(spec, false)?;
    old.write_if(cur.space(), &to_itimerval(before)).map(|()| 0)
}

/// `struct sigevent`: the value, the signal and how it is told, the thread.
fn decode_event(cur: &Current, event: UserPtr<[u64; 8]>) -> Result<SigEvent> {
    let Some(event) = event.non_null() else { return Ok(SigEvent::Signal { signal: Signal::ALRM, value: None }) };
    let words = event.read(cur.space())?;
    let (signo, notify, tid) = (words[1] as i32, (words[1] >> 32) as i32, words[2] as i32);
    let event = SigEvent::decode(notify, signo, tid, words[0])?;
    if let SigEvent::Thread { tid, .. } = event
        && !cur.group.threads().iter().any(|task| task.tid() == tid)
    {
        return Err(Errno::EINVAL);
    }
    Ok(event)
}

/// `timer_create(2)`. `EINVAL`, `EOPNOTSUPP`, `EPERM`, `EAGAIN`, `EFAULT`.
pub fn timer_create(cur: &mut Current, clock: i32, event: UserPtr<[u64; 8]>, id: UserPtr<i32>) -> SysResult {
    let base = ClockId::decode(clock)?.time_base(&*cur, cur.has_cap(Caps::WAKE_ALARM))?;
    let event = decode_event(cur, event)?;
    let group: Weak<ThreadGroup> = Arc::downgrade(&cur.group);
    let target: Weak<dyn TimerSignalTarget> = group;
    let count = cur.kernel.pending_signals(cur.creds().ruid);
    let limit = cur.limit(libc::RLIMIT_SIGPENDING);
    let made = cur.group.timers.create(base, event, target, &cur.kernel.timers, &count, limit)?;
    if let Err(error) = id.write(cur.space(), &made) {
        cur.group.timers.delete(made)?;
        return Err(error);
    }
    Ok(0)
}

/// `timer_settime(2)`. `EINVAL`, `EFAULT`.
pub fn timer_settime(cur: &mut Current, id: i32, flags: i32, new: UserPtr<Itimer>, old: UserPtr<Itimer>) -> SysResult {
    if new.is_null() {
        return Err(Errno::EINVAL);
    }
    let spec = from_itimerspec(new.read(cur.space())?)?;
    let before = cur.group.timers.get(id)?.set(spec, flags & libc::TIMER_ABSTIME != 0)?;
    old.write_if(cur.space(), &to_itimerspec(before)).map(|()| 0)
}

/// `timer_gettime(2)`. `EINVAL`, `EFAULT`.
pub fn timer_gettime(cur: &mut Current, id: i32, spec: UserPtr<Itimer>) -> SysResult {
    let now = cur.group.timers.get(id)?.get();
    spec.write(cur.space(), &to_itimerspec(now)).map(|()| 0)
}

/// `timer_getoverrun(2)`. `EINVAL`.
pub fn timer_getoverrun(cur: &mut Current, id: i32) -> SysResult {
    cur.group.timers.get(id).map(|timer| timer.overrun() as u64)
}

/// `timer_delete(2)`. `EINVAL`.
pub fn timer_delete(cur: &mut Current, id: i32) -> SysResult {
    cur.group.timers.delete(id).map(|()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_round_as_on_linux() {
        assert_eq!([0, 1, 499_999_999, 1_499_999_999, 1_500_000_000].map(whole_seconds), [0, 1, 1, 1, 2]);
    }

    #[test]
    fn what_is_left_of_an_armed_timer_is_never_nothing() {
        assert_eq!(to_itimerval(TimerSpec { value: 1, interval: 2_000_000_000 }), [2, 0, 0, 1]);
        assert_eq!(to_itimerval(TimerSpec::default()), [0; 4]);
        let spec = TimerSpec { value: 3_000_000_004, interval: 1_000_000_002 };
        assert_eq!(from_itimerspec(to_itimerspec(spec)), Ok(spec));
    }
}
