//! Clocks and sleeping: `clock_gettime(2)`, `clock_nanosleep(2)`. Most programs read clocks from the vDSO and never come here.

pub mod timers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::UserPtr;
use crate::sentry::syscalls::SysResult;
use crate::sentry::syscalls::signal::timespec;
use crate::sentry::task::Current;
use crate::sentry::task::block::{Waits, Woken};
use crate::sentry::time::{self, ClockId, TimeBase};
use crate::timer::clock::{self, Clock, ClockWatcher};
use crate::wait::Parker;

/// `struct timespec` and `struct timeval`.
pub type Time = [i64; 2];

const SEC: u64 = 1_000_000_000;

/// Nanoseconds as a `struct timespec`.
pub fn to_timespec(ns: u64) -> Time {
    [(ns / SEC) as i64, (ns % SEC) as i64]
}

/// Nanoseconds as a `struct timeval`.
pub fn to_timeval(ns: u64) -> Time {
    [(ns / SEC) as i64, (ns % SEC / 1000) as i64]
}

/// A `struct timespec` in nanoseconds; what is beyond all clocks is the end of time. `EINVAL`.
pub fn from_timespec(time: Time) -> Result<u64> {
    timespec(time).map(saturated)
}

/// A `struct timeval` in nanoseconds. `EINVAL`.
pub fn from_timeval(time: Time) -> Result<u64> {
    if !(0..1_000_000).contains(&time[1]) {
        return Err(Errno::EINVAL);
    }
    from_timespec([time[0], time[1] * 1000])
}

fn saturated(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// `clock_gettime(2)`. `EINVAL`, `EFAULT`.
pub fn clock_gettime(cur: &mut Current, id: i32, time: UserPtr<Time>) -> SysResult {
    let now = time::clock_gettime(id, &*cur)?;
    time.write(cur.space(), &to_timespec(now)).map(|()| 0)
}

/// `clock_getres(2)`. `EINVAL`, `EFAULT`.
pub fn clock_getres(cur: &mut Current, id: i32, step: UserPtr<Time>) -> SysResult {
    let ns = time::clock_getres(id, &*cur)?;
    step.write_if(cur.space(), &to_timespec(ns)).map(|()| 0)
}

/// `clock_settime(2)`: `EPERM`, the clocks are the host's; `EINVAL` for those that nobody can set.
pub fn clock_settime(cur: &mut Current, id: i32, time: UserPtr<Time>) -> SysResult {
    match ClockId::decode(id)? {
        ClockId::Plain(Clock::Realtime) => {
            timespec(time.read(cur.space())?)?;
            Err(Errno::EPERM)
        }
        ClockId::Process(..) | ClockId::Thread(..) => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

/// `gettimeofday(2)`. `EFAULT`.
pub fn gettimeofday(cur: &mut Current, time: UserPtr<Time>, zone: UserPtr<[i32; 2]>) -> SysResult {
    time.write_if(cur.space(), &to_timeval(Clock::Realtime.now()))?;
    zone.write_if(cur.space(), &[0, 0]).map(|()| 0)
}

/// `settimeofday(2)`: `EPERM`; `EINVAL`, `EFAULT`.
pub fn settimeofday(cur: &mut Current, time: UserPtr<Time>, zone: UserPtr<[i32; 2]>) -> SysResult {
    if let Some(time) = time.non_null() {
        from_timeval(time.read(cur.space())?)?;
    }
    if let Some(zone) = zone.non_null() {
        zone.read(cur.space())?;
    }
    Err(Errno::EPERM)
}

/// `time(2)`. `EFAULT`.
pub fn time(cur: &mut Current, at: UserPtr<i64>) -> SysResult {
    let seconds = Clock::Realtime.now() / SEC;
    at.write_if(cur.space(), &(seconds as i64))?;
    Ok(seconds)
}

/// `struct timex` as words.
type Timex = [u64; 26];

/// `adjtimex(2)`. `EPERM` for changes.
pub fn adjtimex(cur: &mut Current, timex: UserPtr<Timex>) -> SysResult {
    /// `ADJ_OFFSET_SS_READ`.
    const READ_OFFSET: u32 = 0xa001;
    let mut words = timex.read(cur.space())?;
    let modes = words[0] as u32;
    if modes != 0 && modes != READ_OFFSET {
        if cur.has_cap(Caps::SYS_TIME) {
            log::debug!("adjtimex: the clock is the host's");
        }
        return Err(Errno::EPERM);
    }
    // What Linux says of a clock that nobody has disciplined.
    const MAX_ERROR: u64 = 16_000_000;
    const UNSYNCHRONISED: u64 = 0x40;
    const TOLERANCE: u64 = 500 << 16;
    let now = to_timeval(Clock::Realtime.now());
    words[1..].fill(0);
    (words[3], words[4], words[5]) = (MAX_ERROR, MAX_ERROR, UNSYNCHRONISED);
    (words[6], words[7], words[8]) = (2, 1, TOLERANCE);
    (words[9], words[10], words[11]) = (now[0] as u64, now[1] as u64, 10_000);
    timex.write(cur.space(), &words)?;
    const TIME_ERROR: u64 = 5;
    Ok(TIME_ERROR)
}

/// `clock_adjtime(2)`: `EOPNOTSUPP` for clocks other than the wall clock. `EINVAL`.
pub fn clock_adjtime(cur: &mut Current, id: i32, timex: UserPtr<Timex>) -> SysResult {
    match ClockId::decode(id)? {
        ClockId::Plain(Clock::Realtime) => adjtimex(cur, timex),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// `nanosleep(2)`. `EINVAL`, `EFAULT`, `EINTR`.
pub fn nanosleep(cur: &mut Current, span: UserPtr<Time>, left: UserPtr<Time>) -> SysResult {
    let span = from_timespec(span.read(cur.space())?)?;
    let clock = Clock::Monotonic;
    sleep(cur, Sleep { base: TimeBase::Clock(clock), until: clock.now().saturating_add(span), left: left.non_null() })
}

/// `clock_nanosleep(2)`. `EINVAL`, `EOPNOTSUPP`, `EFAULT`, `EINTR`.
pub fn clock_nanosleep(cur: &mut Current, id: i32, flags: i32, span: UserPtr<Time>, left: UserPtr<Time>) -> SysResult {
    let id = ClockId::decode(id)?;
    if matches!(id, ClockId::Thread(None, _)) {
        return Err(Errno::EINVAL);
    }
    let base = id.time_base(&*cur, cur.has_cap(Caps::WAKE_ALARM))?;
    let span = from_timespec(span.read(cur.space())?)?;
    if flags & libc::TIMER_ABSTIME != 0 {
        return sleep_until(cur, &base, span, true).map_err(|_| Errno::ERESTARTNOHAND).map(|()| 0);
    }
    let base = match base {
        // Setting the wall clock does not concern a span.
        TimeBase::Clock(Clock::Realtime) => TimeBase::Clock(Clock::Monotonic),
        base => base,
    };
    let until = base.now().saturating_add(span);
    sleep(cur, Sleep { base, until, left: left.non_null() })
}

/// A sleep for a span.
struct Sleep {
    base: TimeBase,
    until: u64,
    left: Option<UserPtr<Time>>,
}

fn sleep(cur: &mut Current, sleep: Sleep) -> SysResult {
    if sleep_until(cur, &sleep.base, sleep.until, false).is_ok() {
        return Ok(0);
    }
    let rest = sleep.until.saturating_sub(sleep.base.now());
    if rest == 0 {
        return Ok(0);
    }
    if let Some(left) = sleep.left {
        left.write(cur.space(), &to_timespec(rest))?;
    }
    cur.restart_block = Some(Box::new(move |cur| self::sleep(cur, sleep)));
    Err(Errno::ERESTART_RESTARTBLOCK)
}

struct ClockSet(Arc<Parker>);

impl ClockWatcher for ClockSet {
    fn clock_was_set(&self) {
        self.0.unpark();
    }
}

/// When a moment of the monotonic clock is, for a sleep; `None` when that is beyond all clocks.
pub fn instant(monotonic_ns: u64) -> Option<Instant> {
    let span = monotonic_ns.saturating_sub(clock::monotonic());
    Instant::now().checked_add(Duration::from_nanos(span))
}

/// Sleeps until `base` shows `until`. Fails for a signal.
fn sleep_until(cur: &Current, base: &TimeBase, until: u64, absolute: bool) -> Result<()> {
    /// CPU time is looked at this often at least, for the host tells nobody when it is used up.
    const LOOK: u64 = 64_000_000;
    let moves = absolute && matches!(base, TimeBase::Clock(Clock::Realtime));
    let watcher = moves.then(|| Arc::new(ClockSet(cur.parker.clone())));
    if let Some(watcher) = &watcher {
        clock::watch(Arc::downgrade(watcher) as std::sync::Weak<dyn ClockWatcher>)?;
    }
    let _waits = Waits::new(&cur.task);
    loop {
        let now = base.now();
        if now >= until {
            return Ok(());
        }
        let deadline = match base {
            TimeBase::Clock(clock) => clock.to_monotonic(until),
            TimeBase::Cpu(..) => clock::monotonic().saturating_add((until - now).clamp(4_000_000, LOOK)),
        };
        match cur.sleep(instant(deadline)) {
            Woken::Event => cur.parker.reset(),
            Woken::Deadline => {}
            Woken::Signal => return Err(Errno::ERESTARTSYS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_converted_and_checked() {
        assert_eq!(from_timespec([1, 5]), Ok(SEC + 5));
        assert_eq!(from_timespec([i64::MAX, 0]), Ok(u64::MAX));
        assert_eq!(from_timespec([-1, 0]), Err(Errno::EINVAL));
        assert_eq!(from_timespec([0, SEC as i64]), Err(Errno::EINVAL));
        assert_eq!(from_timeval([1, 999_999]), Ok(1_999_999_000));
        assert_eq!(from_timeval([1, 1_000_000]), Err(Errno::EINVAL));
        assert_eq!(from_timeval([0, i64::MIN]), Err(Errno::EINVAL));
        assert_eq!(to_timespec(2 * SEC + 7), [2, 7]);
        assert_eq!(to_timeval(2 * SEC + 7999), [2, 7]);
    }
}
