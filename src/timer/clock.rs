//! Clocks in nanoseconds, and the news that somebody has set the wall clock.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::errno::{Errno, Result};

/// A clock that a deadline can be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// `CLOCK_REALTIME`: the wall clock, which can be set.
    Realtime,
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// `CLOCK_BOOTTIME`: goes on while the machine sleeps.
    Boottime,
}

impl Clock {
    /// Nanoseconds on it now.
    pub fn now(self) -> u64 {
        let id = match self {
            Clock::Realtime => libc::CLOCK_REALTIME,
            Clock::Monotonic => libc::CLOCK_MONOTONIC,
            Clock::Boottime => libc::CLOCK_BOOTTIME,
        };
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for writes. The call cannot fail for these clocks.
        unsafe { libc::clock_gettime(id, &mut time) };
        u64::try_from(time.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
    }

    /// When `deadline` of this clock is, on `CLOCK_MONOTONIC`, as long as nobody sets this one.
    pub fn to_monotonic(self, deadline: u64) -> u64 {
        match self {
            Clock::Monotonic => deadline,
            other => monotonic().saturating_add(deadline.saturating_sub(other.now())),
        }
    }
}

/// `CLOCK_MONOTONIC` now, in nanoseconds.
pub fn monotonic() -> u64 {
    Clock::Monotonic.now()
}

/// A count that grows evenly and is read in half the time of a clock: the processor's time-stamp counter where that does
/// not depend on the processor's state, nanoseconds elsewhere. See [`ticks_to_ns`].
pub fn ticks() -> u64 {
    match base() {
        // SAFETY: the instruction is part of x86_64.
        Some(_) => unsafe { std::arch::x86_64::_rdtsc() },
        None => monotonic(),
    }
}

/// How long a number of [`ticks`] is. The two clocks are compared over the first moments of the process, after which the
/// rate is settled, so that times never go backwards.
pub fn ticks_to_ns(count: u64) -> u64 {
    const SETTLED_NS: u64 = 50_000_000;
    static RATE: OnceLock<(u64, u64)> = OnceLock::new();
    let Some((tsc, ns)) = base() else { return count };
    let (elapsed_ns, elapsed) = RATE.get().copied().unwrap_or_else(|| {
        let rate = (monotonic() - ns, ticks().saturating_sub(tsc).max(1));
        if rate.0 < SETTLED_NS { rate } else { *RATE.get_or_init(|| rate) }
    });
    (u128::from(count) * u128::from(elapsed_ns) / u128::from(elapsed)) as u64
}

/// What both clocks said when first asked.
fn base() -> Option<(u64, u64)> {
    static BASE: OnceLock<Option<(u64, u64)>> = OnceLock::new();
    *BASE.get_or_init(|| {
        /// "Invariant TSC", AMD's and Intel's manuals, leaf 8000_0007h.
        const INVARIANT: u32 = 1 << 8;
        let invariant = std::arch::x86_64::__cpuid(0x8000_0000).eax >= 0x8000_0007
            && std::arch::x86_64::__cpuid(0x8000_0007).edx & INVARIANT != 0;
        // SAFETY: as above.
        invariant.then(|| unsafe { (std::arch::x86_64::_rdtsc(), monotonic()) })
    })
}

/// Who must know when the wall clock is set: deadlines on it move.
pub trait ClockWatcher: Send + Sync {
    /// `CLOCK_REALTIME` has jumped. Runs on a thread of its own.
    fn clock_was_set(&self);
}

#[derive(Default)]
struct Watchers {
    all: Vec<Weak<dyn ClockWatcher>>,
    watching: bool,
}

static WATCHERS: Mutex<Watchers> = Mutex::new(Watchers { all: Vec::new(), watching: false });

/// Tells `watcher`, as long as it lives, when the wall clock is set. The first call starts a thread that sleeps in the
/// host's own `TFD_TIMER_CANCEL_ON_SET`. Fails with what the host says to that.
pub fn watch(watcher: Weak<dyn ClockWatcher>) -> Result<()> {
    let mut watchers = WATCHERS.lock();
    if !watchers.watching {
        let timer = far_timer()?;
        std::thread::Builder::new()
            .name("clock".into())
            .stack_size(128 << 10)
            .spawn(move || wait_for_changes(&timer))
            .map_err(Errno::from)?;
        watchers.watching = true;
    }
    if watchers.all.len() == watchers.all.capacity() {
        watchers.all.retain(|watcher| watcher.strong_count() > 0);
    }
    watchers.all.push(watcher);
    Ok(())
}

/// Tells all watchers. Also for whoever sets a clock of the sandbox's own.
pub fn notify() {
    let alive: Vec<Arc<dyn ClockWatcher>> = WATCHERS.lock().all.iter().filter_map(Weak::upgrade).collect();
    for watcher in alive {
        watcher.clock_was_set();
    }
}

/// A host timer that never expires, but is cancelled when the clock is set.
fn far_timer() -> Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, libc::TFD_CLOEXEC) };
    crate::errno::check(fd.into())?;
    // SAFETY: the descriptor was just made and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    arm_far(&fd)?;
    Ok(fd)
}

fn arm_far(fd: &OwnedFd) -> Result<()> {
    let never = libc::timespec { tv_sec: i64::MAX / 2_000_000_000, tv_nsec: 0 };
    let spec = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
    let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
    // SAFETY: `spec` is valid for reads, and no old value is asked for.
    let ret = unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, &spec, std::ptr::null_mut()) };
    crate::errno::check(ret.into()).map(drop)
}

fn wait_for_changes(timer: &OwnedFd) {
    let mut count = [0; 8];
    loop {
        match crate::io::host_read(timer.as_fd(), &mut count, None) {
            Err(Errno::ECANCELED) => notify(),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                log::error!("the host's clock cannot be watched: {error}");
                WATCHERS.lock().watching = false;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn deadlines_are_converted_by_what_is_left() {
        let second = 1_000_000_000;
        for clock in [Clock::Realtime, Clock::Monotonic, Clock::Boottime] {
            let before = monotonic();
            let converted = clock.to_monotonic(clock.now() + second);
            assert!(converted >= before && converted <= monotonic() + second, "{clock:?}");
        }
        assert!(Clock::Realtime.to_monotonic(5) <= monotonic(), "the past is due at once");
    }

    #[test]
    fn watchers_are_told_while_they_live() {
        #[derive(Default)]
        struct Count(AtomicUsize);
        impl ClockWatcher for Count {
            fn clock_was_set(&self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count::default());
        watch(Arc::downgrade(&count) as Weak<dyn ClockWatcher>).expect("the host has timers");
        notify();
        assert!(count.0.load(Ordering::Relaxed) >= 1);
        drop(count);
        notify();
    }
}
