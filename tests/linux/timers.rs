//! Clocks, sleeping and timers.

use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use libc::{c_int, c_void, clockid_t, siginfo_t};

use crate::common::*;

static COUNT: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: c_int) {
    COUNT.fetch_add(1, Ordering::SeqCst);
}

fn counted() -> u32 {
    COUNT.load(Ordering::SeqCst)
}

unsafe fn now(clock: clockid_t) -> Duration {
    unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        ok(libc::clock_gettime(clock, &mut time));
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}

fn itimer(first: Duration, interval: Duration) -> libc::itimerval {
    let timeval =
        |time: Duration| libc::timeval { tv_sec: time.as_secs() as i64, tv_usec: i64::from(time.subsec_micros()) };
    libc::itimerval { it_value: timeval(first), it_interval: timeval(interval) }
}

const CLOCKS: [clockid_t; 9] = [
    libc::CLOCK_REALTIME,
    libc::CLOCK_MONOTONIC,
    libc::CLOCK_PROCESS_CPUTIME_ID,
    libc::CLOCK_THREAD_CPUTIME_ID,
    libc::CLOCK_MONOTONIC_RAW,
    libc::CLOCK_REALTIME_COARSE,
    libc::CLOCK_MONOTONIC_COARSE,
    libc::CLOCK_BOOTTIME,
    libc::CLOCK_TAI,
];

#[test]
fn every_clock_runs_forward() {
    isolated(|| unsafe {
        for clock in CLOCKS {
            let mut last = now(clock);
            for _ in 0..1000 {
                let next = now(clock);
                assert!(next >= last, "clock {clock}: {next:?} after {last:?}");
                last = next;
            }
            assert!(last > Duration::ZERO || clock == libc::CLOCK_PROCESS_CPUTIME_ID);
        }
    });
}

#[test]
fn clock_calls_of_library_and_kernel_agree() {
    isolated(|| unsafe {
        let clocks = [
            libc::CLOCK_REALTIME,
            libc::CLOCK_MONOTONIC,
            libc::CLOCK_MONOTONIC_RAW,
            libc::CLOCK_REALTIME_COARSE,
            libc::CLOCK_MONOTONIC_COARSE,
            libc::CLOCK_BOOTTIME,
            libc::CLOCK_TAI,
            libc::CLOCK_PROCESS_CPUTIME_ID,
            libc::CLOCK_THREAD_CPUTIME_ID,
        ];
        // Often enough for the call to be answered in whatever way is the fastest.
        for clock in clocks.into_iter().cycle().take(2000) {
            let before = now(clock);
            let mut time: libc::timespec = std::mem::zeroed();
            ok(libc::syscall(libc::SYS_clock_gettime, clock, &mut time));
            let between = Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
            let after = now(clock);
            assert!(before <= between && between <= after, "{clock}: {before:?} {between:?} {after:?}");
        }
    });
}

#[test]
fn time_and_gettimeofday_agree_with_the_realtime_clock() {
    isolated(|| unsafe {
        let before = now(libc::CLOCK_REALTIME);
        let mut time: libc::timeval = std::mem::zeroed();
        ok(libc::gettimeofday(&mut time, ptr::null_mut()));
        let between = Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
        assert!(between + Duration::from_micros(1) >= before && between <= now(libc::CLOCK_REALTIME));
        assert!(libc::time(ptr::null_mut()).abs_diff(time.tv_sec) <= 1);
    });
}

#[test]
fn clock_errors() {
    isolated(|| unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        fails(libc::clock_gettime(99, &mut time), libc::EINVAL);
        fails(libc::clock_getres(99, &mut time), libc::EINVAL);
        for _ in 0..200 {
            fails(libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_REALTIME, 8), libc::EFAULT);
            fails(libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, usize::MAX - 8), libc::EFAULT);
            fails(libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_TAI, 0), libc::EFAULT);
            fails(libc::syscall(libc::SYS_clock_gettime, 99, &mut time), libc::EINVAL);
            fails(libc::syscall(libc::SYS_clock_gettime, 10, &mut time), libc::EINVAL);
        }
        fails(libc::clock_settime(libc::CLOCK_MONOTONIC, &time), libc::EINVAL);
        ok(libc::clock_getres(libc::CLOCK_MONOTONIC, &mut time));
        assert_eq!((time.tv_sec, time.tv_nsec), (0, 1));
        ok(libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &mut time));
        assert!(time.tv_nsec >= 1_000_000);
    });
}

#[test]
fn cpu_clock_counts_work_and_not_sleep() {
    isolated(|| unsafe {
        let start = now(libc::CLOCK_THREAD_CPUTIME_ID);
        std::thread::sleep(Duration::from_millis(50));
        assert!(now(libc::CLOCK_THREAD_CPUTIME_ID) - start < Duration::from_millis(40));
        while now(libc::CLOCK_THREAD_CPUTIME_ID) - start < Duration::from_millis(50) {}
        assert!(now(libc::CLOCK_PROCESS_CPUTIME_ID) >= Duration::from_millis(50));
        let mut clock = 0;
        assert_eq!(libc::clock_getcpuclockid(0, &mut clock), 0);
        assert!(now(clock) >= Duration::from_millis(50));
    });
}

#[test]
fn nanosleep_sleeps_at_least_its_time() {
    isolated(|| unsafe {
        let start = now(libc::CLOCK_MONOTONIC);
        ok(libc::nanosleep(&timespec(Duration::from_millis(20)), ptr::null_mut()));
        assert!(now(libc::CLOCK_MONOTONIC) - start >= Duration::from_millis(20));
    });
}

#[test]
fn nanosleep_errors() {
    isolated(|| unsafe {
        let bad = |sec, nsec| libc::nanosleep(&libc::timespec { tv_sec: sec, tv_nsec: nsec }, ptr::null_mut());
        fails(bad(0, 1_000_000_000), libc::EINVAL);
        fails(bad(-1, 0), libc::EINVAL);
        fails(bad(0, -1), libc::EINVAL);
        ok(bad(0, 0));
        fails(libc::syscall(libc::SYS_nanosleep, 8, 0), libc::EFAULT);
        let time = timespec(Duration::ZERO);
        assert_eq!(libc::clock_nanosleep(libc::CLOCK_THREAD_CPUTIME_ID, 0, &time, ptr::null_mut()), libc::EINVAL);
        assert_eq!(libc::clock_nanosleep(99, 0, &time, ptr::null_mut()), libc::EINVAL);
    });
}

#[test]
fn absolute_sleep_ends_at_its_time_and_not_for_the_past() {
    isolated(|| unsafe {
        for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME] {
            let end = now(clock) + Duration::from_millis(10);
            assert_eq!(libc::clock_nanosleep(clock, libc::TIMER_ABSTIME, &timespec(end), ptr::null_mut()), 0);
            assert!(now(clock) >= end);
            let past = timespec(Duration::from_secs(1));
            assert_eq!(libc::clock_nanosleep(clock, libc::TIMER_ABSTIME, &past, ptr::null_mut()), 0);
        }
    });
}

#[test]
fn alarm_signals_and_returns_what_was_left() {
    isolated(|| unsafe {
        handle(libc::SIGALRM, count, 0);
        assert_eq!(libc::alarm(100), 0);
        let left = libc::alarm(1);
        assert!((90..=100).contains(&left), "{left}");
        fails(libc::pause(), libc::EINTR);
        assert_eq!(counted(), 1);
        libc::alarm(100);
        assert!(libc::alarm(0) >= 90);
        assert_eq!(libc::alarm(0), 0);
    });
}

#[test]
fn alarm_is_not_inherited_by_fork() {
    isolated(|| unsafe {
        libc::alarm(100);
        in_child(|| assert_eq!(libc::alarm(0), 0));
        assert_ne!(libc::alarm(0), 0);
    });
}

#[test]
fn real_interval_timer_repeats() {
    isolated(|| unsafe {
        handle(libc::SIGALRM, count, libc::SA_RESTART);
        let every = Duration::from_millis(2);
        ok(libc::setitimer(libc::ITIMER_REAL, &itimer(every, every), ptr::null_mut()));
        let start = Instant::now();
        eventually(|| counted() >= 10);
        assert!(start.elapsed() >= Duration::from_millis(19));
        let mut old = itimer(Duration::ZERO, Duration::ZERO);
        ok(libc::setitimer(libc::ITIMER_REAL, &itimer(Duration::ZERO, Duration::ZERO), &mut old));
        assert_eq!(old.it_interval.tv_usec, 2000);
        let last = counted();
        ok(libc::getitimer(libc::ITIMER_REAL, &mut old));
        assert_eq!((old.it_value.tv_sec, old.it_value.tv_usec), (0, 0));
        assert_eq!(counted(), last);
    });
}

#[test]
fn cpu_interval_timers_count_cpu_time() {
    isolated(|| unsafe {
        for (timer, signal) in [(libc::ITIMER_VIRTUAL, libc::SIGVTALRM), (libc::ITIMER_PROF, libc::SIGPROF)] {
            COUNT.store(0, Ordering::SeqCst);
            handle(signal, count, 0);
            ok(libc::setitimer(timer, &itimer(Duration::from_millis(10), Duration::ZERO), ptr::null_mut()));
            let start = Instant::now();
            while counted() == 0 {
                assert!(start.elapsed() < Duration::from_secs(30));
            }
        }
    });
}

#[test]
fn interval_timer_errors() {
    isolated(|| unsafe {
        let mut value = itimer(Duration::ZERO, Duration::ZERO);
        fails(libc::syscall(libc::SYS_getitimer, 3, &mut value), libc::EINVAL);
        value.it_value.tv_usec = 1_000_000;
        fails(libc::setitimer(libc::ITIMER_REAL, &value, ptr::null_mut()), libc::EINVAL);
    });
}

static VALUE: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a valid structure.
    unsafe {
        CODE.store((*info).si_code, Ordering::SeqCst);
        VALUE.store((*info).si_value().sival_ptr as usize as i32, Ordering::SeqCst);
    }
    COUNT.fetch_add(1, Ordering::SeqCst);
}

unsafe fn timer(clock: clockid_t, signal: c_int, value: usize) -> libc::timer_t {
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = signal;
        event.sigev_value.sival_ptr = value as *mut c_void;
        let mut timer: libc::timer_t = ptr::null_mut();
        ok(libc::timer_create(clock, &mut event, &mut timer));
        timer
    }
}

fn itimerspec(first: Duration, interval: Duration) -> libc::itimerspec {
    libc::itimerspec { it_value: timespec(first), it_interval: timespec(interval) }
}

#[test]
fn posix_timer_signals_with_its_value() {
    isolated(|| unsafe {
        handle_info(libc::SIGUSR1, note, 0);
        let timer = timer(libc::CLOCK_MONOTONIC, libc::SIGUSR1, 55);
        let once = itimerspec(Duration::from_millis(1), Duration::ZERO);
        ok(libc::timer_settime(timer, 0, &once, ptr::null_mut()));
        eventually(|| counted() == 1);
        assert_eq!((CODE.load(Ordering::SeqCst), VALUE.load(Ordering::SeqCst)), (libc::SI_TIMER, 55));
        ok(libc::timer_delete(timer));
        fails(libc::timer_delete(timer), libc::EINVAL);
    });
}

#[test]
fn posix_timer_counts_overruns() {
    isolated(|| unsafe {
        block(&[libc::SIGUSR1]);
        let timer = timer(libc::CLOCK_MONOTONIC, libc::SIGUSR1, 1);
        let every = itimerspec(Duration::from_millis(1), Duration::from_millis(1));
        ok(libc::timer_settime(timer, 0, &every, ptr::null_mut()));
        std::thread::sleep(Duration::from_millis(30));
        ok(libc::sigwaitinfo(&set(&[libc::SIGUSR1]), ptr::null_mut()));
        assert!(ok(libc::timer_getoverrun(timer)) >= 20);
    });
}

#[test]
fn posix_timer_gettime_and_disarm() {
    isolated(|| unsafe {
        let timer = timer(libc::CLOCK_REALTIME, libc::SIGUSR1, 1);
        let mut value = itimerspec(Duration::ZERO, Duration::ZERO);
        ok(libc::timer_gettime(timer, &mut value));
        assert_eq!((value.it_value.tv_sec, value.it_value.tv_nsec), (0, 0));
        let long = itimerspec(Duration::from_secs(100), Duration::from_secs(7));
        ok(libc::timer_settime(timer, 0, &long, ptr::null_mut()));
        ok(libc::timer_gettime(timer, &mut value));
        assert!((90..=100).contains(&value.it_value.tv_sec));
        assert_eq!(value.it_interval.tv_sec, 7);
        let off = itimerspec(Duration::ZERO, Duration::ZERO);
        ok(libc::timer_settime(timer, 0, &off, &mut value));
        assert!(value.it_value.tv_sec >= 90);
        in_child(|| fails(libc::timer_gettime(timer, &mut value), libc::EINVAL));
    });
}

#[test]
fn posix_timer_for_a_thread() {
    isolated(|| unsafe {
        static BY: AtomicI32 = AtomicI32::new(0);
        extern "C" fn by(_: c_int) {
            // SAFETY: no memory is involved.
            BY.store(unsafe { libc::gettid() }, Ordering::SeqCst);
        }
        handle(libc::SIGUSR1, by, 0);
        std::thread::spawn(|| {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGUSR1;
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer: libc::timer_t = ptr::null_mut();
            ok(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer));
            let once = itimerspec(Duration::from_millis(1), Duration::ZERO);
            ok(libc::timer_settime(timer, 0, &once, ptr::null_mut()));
            eventually(|| BY.load(Ordering::SeqCst) == libc::gettid());
        })
        .join()
        .unwrap();
    });
}

#[test]
fn times_and_getrusage_count() {
    isolated(|| unsafe {
        while now(libc::CLOCK_PROCESS_CPUTIME_ID) < Duration::from_millis(60) {}
        let mut times: libc::tms = std::mem::zeroed();
        ok(libc::times(&mut times));
        assert!(times.tms_utime + times.tms_stime >= 3);
        let mut usage: libc::rusage = std::mem::zeroed();
        ok(libc::getrusage(libc::RUSAGE_SELF, &mut usage));
        let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
        assert!(micros(usage.ru_utime) + micros(usage.ru_stime) >= 30_000);
        assert!(usage.ru_maxrss > 0);
        ok(libc::getrusage(libc::RUSAGE_THREAD, &mut usage));
        fails(libc::getrusage(5, &mut usage), libc::EINVAL);
    });
}

#[test]
fn timerfd_reads_expirations() {
    isolated(|| unsafe {
        let fd = ok(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC));
        fails(read(fd, &mut [0; 8]), libc::EAGAIN);
        fails(read(fd, &mut [0; 7]), libc::EINVAL);
        let every = itimerspec(Duration::from_millis(1), Duration::from_millis(1));
        ok(libc::timerfd_settime(fd, 0, &every, ptr::null_mut()));
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        assert_eq!(ok(libc::poll(&mut poll, 1, -1)), 1);
        std::thread::sleep(Duration::from_millis(20));
        let count = u64::from_ne_bytes(read_some(fd, 8).try_into().unwrap());
        assert!(count >= 15, "{count}");
        let mut value = itimerspec(Duration::ZERO, Duration::ZERO);
        ok(libc::timerfd_gettime(fd, &mut value));
        assert_eq!(value.it_interval.tv_nsec, 1_000_000);
    });
}

#[test]
fn timerfd_absolute_in_the_past_is_due_at_once() {
    isolated(|| unsafe {
        let fd = ok(libc::timerfd_create(libc::CLOCK_REALTIME, 0));
        let past = itimerspec(Duration::from_secs(1), Duration::ZERO);
        ok(libc::timerfd_settime(fd, libc::TFD_TIMER_ABSTIME, &past, ptr::null_mut()));
        assert_eq!(read_some(fd, 8), 1u64.to_ne_bytes());
    });
}

#[test]
fn timerfd_errors() {
    isolated(|| unsafe {
        fails(libc::timerfd_create(99, 0), libc::EINVAL);
        fails(libc::timerfd_create(libc::CLOCK_MONOTONIC, 1), libc::EINVAL);
        let zero = itimerspec(Duration::ZERO, Duration::ZERO);
        fails(libc::timerfd_settime(77, 0, &zero, ptr::null_mut()), libc::EBADF);
        fails(libc::timerfd_settime(pipe().0, 0, &zero, ptr::null_mut()), libc::EINVAL);
        let fd = ok(libc::timerfd_create(libc::CLOCK_MONOTONIC, 0));
        fails(libc::timerfd_settime(fd, 0x100, &zero, ptr::null_mut()), libc::EINVAL);
        fails(write(fd, &[0; 8]), libc::EINVAL);
    });
}
