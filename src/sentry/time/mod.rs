//! Clocks and the timers that send signals: `clock_gettime(2)`, `setitimer(2)`, `timer_create(2)`.
//!
//! Timers on CPU time are looked at from time to time while they are armed, since the host tells nobody when a stub has used
//! so much: after what is left divided by the number of CPUs, at least 4 ms (a tick of Linux) and, as long as the process
//! uses none, up to 64 ms.
//!
//! CPU time on the host: the clock of a stub *process* can be read from outside ([`host_process_cpu_time`], no `/proc`
//! needed); that of a single thread only within its own process (`EINVAL` else), which goes for the sentry's own
//! ([`host_thread_cpu_time`]).
//!
//! Lock order: the owner of a signal queue > a timer's state > the timer queue. Signals are sent without a timer's lock.

use std::sync::Arc;

use crate::errno::{Errno, Result, check};
use crate::timer::clock::Clock;

mod posix;
mod timer;

pub use posix::{PosixTimers, SigEvent};
pub use timer::{SignalTimer, TimerSignalTarget};

/// CPU time of a task or a process.
pub trait CpuUsage: Send + Sync {
    /// What was used up to now in user mode and by the kernel, in nanoseconds.
    fn cpu_time(&self) -> (u64, u64);
}

/// Finds whose CPU time a clock is.
pub trait CpuClocks {
    /// A process by its id in the caller's namespace; `None` for the caller's own. `None` when there is none.
    fn process(&self, pid: Option<i32>) -> Option<Arc<dyn CpuUsage>>;

    /// A thread of the caller's process; `None` for the caller.
    fn thread(&self, tid: Option<i32>) -> Option<Arc<dyn CpuUsage>>;
}

/// What of the CPU time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuKind {
    /// User and system: `ITIMER_PROF`, `CLOCK_*_CPUTIME_ID`.
    Both,
    /// User: `ITIMER_VIRTUAL`.
    User,
}

impl CpuKind {
    /// Its part of what was used, in nanoseconds.
    pub fn of(self, usage: &dyn CpuUsage) -> u64 {
        let (user, system) = usage.cpu_time();
        match self {
            CpuKind::Both => user.saturating_add(system),
            CpuKind::User => user,
        }
    }
}

/// A `clockid_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockId {
    /// A clock that timers can be on.
    Plain(Clock),
    /// `CLOCK_REALTIME_ALARM`, `CLOCK_BOOTTIME_ALARM`: wakes the machine.
    Alarm(Clock),
    /// One to be read only: the host's own number (raw, coarse, TAI).
    ReadOnly(i32),
    /// CPU time of a process; `None` for the caller's.
    Process(Option<i32>, CpuKind),
    /// CPU time of a thread; `None` for the caller.
    Thread(Option<i32>, CpuKind),
}

impl ClockId {
    /// From the number. Negative ones encode a process or a thread: `clock_getcpuclockid(3)`. `EINVAL`: there is no such
    /// clock, or it is that of a device.
    pub fn decode(id: i32) -> Result<ClockId> {
        Ok(match id {
            libc::CLOCK_REALTIME => ClockId::Plain(Clock::Realtime),
            libc::CLOCK_MONOTONIC => ClockId::Plain(Clock::Monotonic),
            libc::CLOCK_BOOTTIME => ClockId::Plain(Clock::Boottime),
            libc::CLOCK_REALTIME_ALARM => ClockId::Alarm(Clock::Realtime),
            libc::CLOCK_BOOTTIME_ALARM => ClockId::Alarm(Clock::Boottime),
            libc::CLOCK_MONOTONIC_RAW
            | libc::CLOCK_REALTIME_COARSE
            | libc::CLOCK_MONOTONIC_COARSE
            | libc::CLOCK_TAI => ClockId::ReadOnly(id),
            libc::CLOCK_PROCESS_CPUTIME_ID => ClockId::Process(None, CpuKind::Both),
            libc::CLOCK_THREAD_CPUTIME_ID => ClockId::Thread(None, CpuKind::Both),
            ..0 => {
                let kind = match id & 3 {
                    0 | 2 => CpuKind::Both,
                    1 => CpuKind::User,
                    _ => return Err(Errno::EINVAL),
                };
                let who = !(id >> 3);
                let who = (who != 0).then_some(who);
                if id & 4 != 0 { ClockId::Thread(who, kind) } else { ClockId::Process(who, kind) }
            }
            _ => return Err(Errno::EINVAL),
        })
    }

    /// What a timer on this clock counts. `EPERM`: an alarm clock without `CAP_WAKE_ALARM`; `EOPNOTSUPP`: no timers on it;
    /// `EINVAL`: no such process or thread.
    pub fn time_base(self, clocks: &dyn CpuClocks, may_wake: bool) -> Result<TimeBase> {
        match self {
            ClockId::Plain(clock) => Ok(TimeBase::Clock(clock)),
            ClockId::Alarm(clock) if may_wake => Ok(TimeBase::Clock(clock)),
            ClockId::Alarm(_) => Err(Errno::EPERM),
            ClockId::ReadOnly(_) => Err(Errno::EOPNOTSUPP),
            ClockId::Process(pid, kind) => clocks.process(pid).map(|who| TimeBase::Cpu(who, kind)).ok_or(Errno::EINVAL),
            ClockId::Thread(tid, kind) => clocks.thread(tid).map(|who| TimeBase::Cpu(who, kind)).ok_or(Errno::EINVAL),
        }
    }
}

/// What a timer counts.
#[derive(Clone)]
pub enum TimeBase {
    /// A clock.
    Clock(Clock),
    /// CPU time.
    Cpu(Arc<dyn CpuUsage>, CpuKind),
}

impl TimeBase {
    /// Nanoseconds on it now.
    pub fn now(&self) -> u64 {
        match self {
            TimeBase::Clock(clock) => clock.now(),
            TimeBase::Cpu(who, kind) => kind.of(&**who),
        }
    }
}

/// `clock_gettime(2)`, in nanoseconds. `EINVAL`.
pub fn clock_gettime(id: i32, clocks: &dyn CpuClocks) -> Result<u64> {
    match ClockId::decode(id)? {
        ClockId::ReadOnly(host) => host_clock(host),
        id => id.time_base(clocks, true).map(|base| base.now()),
    }
}

/// `clock_getres(2)`, in nanoseconds. `EINVAL`.
pub fn clock_getres(id: i32, clocks: &dyn CpuClocks) -> Result<u64> {
    match ClockId::decode(id)? {
        ClockId::ReadOnly(host) => {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: `time` is valid for writes.
            check(unsafe { libc::clock_getres(host, &mut time) }.into())?;
            Ok(nanoseconds(&time))
        }
        id => id.time_base(clocks, true).map(|_| 1),
    }
}

fn nanoseconds(time: &libc::timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

fn host_clock(id: i32) -> Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes.
    check(unsafe { libc::clock_gettime(id, &mut time) }.into())?;
    Ok(nanoseconds(&time))
}

/// CPU time that a host process (a stub) has used, user and system together, in nanoseconds. `EINVAL` when it is gone.
pub fn host_process_cpu_time(pid: i32) -> Result<u64> {
    const SCHED: i32 = 2;
    host_clock(!pid << 3 | SCHED)
}

/// CPU time that the calling host thread has used, in nanoseconds.
pub fn host_thread_cpu_time() -> u64 {
    host_clock(libc::CLOCK_THREAD_CPUTIME_ID).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u64, u64);

    impl CpuUsage for Fixed {
        fn cpu_time(&self) -> (u64, u64) {
            (self.0, self.1)
        }
    }

    struct Clocks;

    impl CpuClocks for Clocks {
        fn process(&self, pid: Option<i32>) -> Option<Arc<dyn CpuUsage>> {
            pid.is_none_or(|pid| pid == 7).then(|| Arc::new(Fixed(100, 20)) as Arc<dyn CpuUsage>)
        }

        fn thread(&self, tid: Option<i32>) -> Option<Arc<dyn CpuUsage>> {
            tid.is_none_or(|tid| tid == 8).then(|| Arc::new(Fixed(10, 2)) as Arc<dyn CpuUsage>)
        }
    }

    #[test]
    fn clock_numbers_name_processes_and_threads() {
        let time = |id| clock_gettime(id, &Clocks);
        assert_eq!(time(libc::CLOCK_PROCESS_CPUTIME_ID), Ok(120));
        assert_eq!(time(libc::CLOCK_THREAD_CPUTIME_ID), Ok(12));
        assert_eq!(time(!7 << 3 | 2), Ok(120));
        assert_eq!(time(!7 << 3 | 1), Ok(100));
        assert_eq!(time(!8 << 3 | 6), Ok(12));
        assert_eq!(time(!9 << 3 | 6), Err(Errno::EINVAL));
        assert_eq!(time(!7 << 3 | 3), Err(Errno::EINVAL));
        assert_eq!((time(10), time(12)), (Err(Errno::EINVAL), Err(Errno::EINVAL)));
        assert!(time(libc::CLOCK_MONOTONIC_RAW).is_ok_and(|now| now > 0));
        assert_eq!(clock_getres(libc::CLOCK_MONOTONIC, &Clocks), Ok(1));
        assert!(clock_getres(libc::CLOCK_REALTIME_COARSE, &Clocks).is_ok_and(|step| step >= 1_000_000));
        let alarm = ClockId::decode(libc::CLOCK_REALTIME_ALARM).unwrap();
        assert_eq!(alarm.time_base(&Clocks, false).err(), Some(Errno::EPERM));
    }

    #[test]
    fn the_host_tells_the_cpu_time_of_another_process() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        assert!(host_process_cpu_time(child.id() as i32).is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(host_process_cpu_time(child.id() as i32), Err(Errno::EINVAL));
        assert!(host_thread_cpu_time() > 0);
    }
}
