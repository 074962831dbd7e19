//! What the stub answers by itself: clocks that the vDSO tells, `sched_yield`.

use std::time::{Duration, Instant};

use super::free::{is_free, set_free};
use super::*;

const CLOCK: u64 = 228;
const YIELD: u64 = 24;

/// Asks for the number in `r13` and then for 39: `1: mov %r13d,%eax; movups (%r14),%xmm3; nopl 0(%rax,%rax); syscall; mov %rax,%r15;
/// mov $39,%eax; syscall; jmp 1b`.
const ASK: &[u8] = &[
    0x44, 0x89, 0xe8, 0x41, 0x0f, 0x10, 0x1e, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0x0f, 0x05, 0x49, 0x89, 0xc7, 0xb8, 39, 0,
    0, 0, 0x0f, 0x05, 0xeb, 0xe6,
];

/// Behind the first call, and behind the second.
const FIRST: u64 = CODE + 14;
const SECOND: u64 = CODE + 24;

/// A free thread that asks for `number`, whose sites are rewritten.
fn asking(platform: &SystrapPlatform, number: u64) -> Box<dyn UserThread> {
    let mut user = text_thread(platform, ASK);
    (user.regs_mut().r13, user.regs_mut().r14) = (39, DATA + 0x100);
    set_free(&mut *user);
    while user.regs().rip != SECOND {
        expect_syscall(&mut *user);
    }
    let answers = [(YIELD as usize, Answer::Platforms), (CLOCK as usize, Answer::Platforms)];
    user.set_answers(&answers);
    user.regs_mut().r13 = number;
    user
}

/// Runs it to the next call that is not answered by the stub. Which one that is.
fn next(user: &mut dyn UserThread) -> u64 {
    let number = expect_syscall(user);
    assert_eq!(user.regs().rip, if number == 39 { SECOND } else { FIRST });
    user.regs_mut().rax = 0;
    number
}

fn time(user: &dyn UserThread, at: u64) -> Duration {
    let mut bytes = [0; 16];
    user.space().read(at, &mut bytes).unwrap();
    let [seconds, nanoseconds] = [0, 8].map(|at| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap()));
    Duration::new(seconds, nanoseconds.try_into().unwrap())
}

fn host_time(clock: i32) -> Duration {
    nix::time::clock_gettime(clock.into()).unwrap().into()
}

/// Sets registers apart, to see that they are kept.
fn mark(user: &mut dyn UserThread, turn: u64) -> crate::platform::Regs {
    let word = |n: u64| turn << 32 | n;
    let regs = user.regs_mut();
    (regs.rbx, regs.rbp, regs.rdx, regs.r8) = (word(1), word(2), word(3), word(4));
    (regs.r9, regs.r10, regs.r12) = (word(5), word(6), word(7));
    regs.eflags = [0x202, 0x203, 0x206, 0x212, 0x242, 0x282, 0xa02, 0x602, 0xed7, 0x202][turn as usize % 10];
    *regs
}

fn assert_kept(given: &crate::platform::Regs, now: &crate::platform::Regs) {
    assert_eq!([now.rbx, now.rbp, now.rdx, now.r8], [given.rbx, given.rbp, given.rdx, given.r8]);
    assert_eq!([now.r9, now.r10, now.r12, now.r13], [given.r9, given.r10, given.r12, given.r13]);
    assert_eq!([now.rdi, now.rsi, now.rsp, now.r14], [given.rdi, given.rsi, given.rsp, given.r14]);
    assert_eq!((now.fs_base, now.gs_base), (given.fs_base, 0));
    assert_eq!(now.eflags & 0xcd5, given.eflags & 0xcd5);
}

#[test]
fn clocks_are_told_without_asking() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = asking(&platform, CLOCK);
    let clocks = [
        libc::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_MONOTONIC_RAW,
        libc::CLOCK_REALTIME_COARSE,
        libc::CLOCK_MONOTONIC_COARSE,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_TAI,
    ];
    for turn in 0..200u64 {
        let clock = clocks[turn as usize % clocks.len()];
        user.space().write(DATA + 0x100, &[turn as u8; 16]).unwrap();
        (user.regs_mut().rdi, user.regs_mut().rsi) = (clock as u64 | turn << 32, DATA + 0x200 + turn * 8);
        let given = mark(&mut *user, turn);
        let before = host_time(clock);
        assert_eq!(next(&mut *user), 39, "{clock}");
        let after = host_time(clock);
        assert_kept(&given, user.regs());
        assert_eq!(user.regs().r15, 0);
        let told = time(&*user, given.rsi);
        assert!(before <= told && told <= after, "{clock}: {before:?} {told:?} {after:?}");
        assert_eq!(user.xstate().unwrap()[160 + 3 * 16..][..16], [turn as u8; 16]);
    }
    assert!(is_free(&*user));
}

/// What is not as it should be the sentry sees.
#[test]
fn clocks_that_the_vdso_does_not_tell_are_asked_for() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = asking(&platform, CLOCK);
    let places = [
        (libc::CLOCK_PROCESS_CPUTIME_ID as u64, DATA),
        (libc::CLOCK_THREAD_CPUTIME_ID as u64, DATA),
        (libc::CLOCK_REALTIME_ALARM as u64, DATA),
        (12, DATA),
        (32, DATA),
        (u64::from(u32::MAX), DATA),
        (1, 0),
        (1, 0x7000_0000),
        (1, DATA + 0x1ff8),
        (1, CODE),
        (1, u64::MAX - 7),
        (1, 0x8000_0000_0000),
    ];
    for (turn, (clock, place)) in places.into_iter().cycle().take(100).enumerate() {
        (user.regs_mut().rdi, user.regs_mut().rsi) = (clock, place);
        let given = mark(&mut *user, turn as u64);
        assert_eq!(next(&mut *user), CLOCK, "{clock} {place:#x}");
        assert_kept(&given, user.regs());
        assert_eq!(next(&mut *user), 39);
        assert_kept(&given, user.regs());
    }
    assert!(is_free(&*user));
}

#[test]
fn a_clock_is_asked_for_where_the_vdso_is_gone() {
    let platform = SystrapPlatform::new().unwrap();
    for protect in [false, true] {
        let mut user = asking(&platform, CLOCK);
        (user.regs_mut().rdi, user.regs_mut().rsi) = (1, DATA);
        assert_eq!(next(&mut *user), 39);
        let vdso = user.space().vdso().0;
        let len = vdso.end - vdso.start;
        match protect {
            true => user.protect(vdso.start, len, libc::PROT_NONE).unwrap(),
            false => user.unmap(vdso.start, len).unwrap(),
        }
        for _ in 0..50 {
            assert_eq!((next(&mut *user), next(&mut *user)), (CLOCK, 39));
        }
        // So it is in a copy of the process, which the first thread waits for.
        let child = user.fork().unwrap();
        let child = std::thread::spawn(move || {
            let mut child = child.attach().unwrap();
            for _ in 0..100 {
                assert_eq!((next(&mut *child), next(&mut *child)), (CLOCK, 39));
            }
        });
        child.join().unwrap();
    }
}

#[test]
fn a_yield_is_not_asked_for() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = asking(&platform, YIELD);
    for turn in 0..200 {
        user.space().write(DATA + 0x100, &[turn as u8; 16]).unwrap();
        user.regs_mut().r15 = 4711;
        let given = mark(&mut *user, turn);
        assert_eq!(next(&mut *user), 39);
        assert_kept(&given, user.regs());
        assert_eq!(user.regs().r15, 0);
        assert_eq!(user.xstate().unwrap()[160 + 3 * 16..][..16], [turn as u8; 16]);
    }
    assert!(is_free(&*user));
    user.set_answers(&[]);
    assert_eq!((next(&mut *user), next(&mut *user)), (YIELD, 39));
}

/// Whenever it is stopped, what is seen of a thread is its own code.
#[test]
fn a_thread_that_is_stopped_while_the_stub_answers_is_followed_out() {
    let platform = SystrapPlatform::new().unwrap();
    for number in [CLOCK, YIELD] {
        let mut user = asking(&platform, number);
        let interrupter = user.interrupter();
        (user.regs_mut().rdi, user.regs_mut().rsi) = (1, DATA);
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let kicks = {
            let over = over.clone();
            std::thread::spawn(move || {
                let mut random = 12345u64;
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let until = Instant::now() + Duration::from_nanos(random >> 33 & 0x3fff);
                    while Instant::now() < until {
                        std::hint::spin_loop();
                    }
                    interrupter.interrupt();
                }
            })
        };
        let end = Instant::now() + Duration::from_secs(2);
        let mut interruptions = 0;
        while Instant::now() < end {
            if let Some(near) = user.wants_room() {
                user.take_room((near.start - 0x10_0000) & !0xfff).unwrap();
            }
            match user.run() {
                Event::Syscall => user.regs_mut().rax = 0,
                Event::Interrupted => interruptions += 1,
                Event::Fault(info) => panic!("signal {} at {:#x}", info.si_signo, user.regs().rip),
                Event::Lost => panic!("its process is gone"),
            }
            let regs = user.regs();
            assert!((CODE..CODE + ASK.len() as u64).contains(&regs.rip), "{:#x}", regs.rip);
            assert_eq!((regs.rsp, regs.r13, regs.gs_base), (DATA + 0x1000, number, 0));
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        kicks.join().unwrap();
        assert!(interruptions > 10, "{interruptions}");
    }
}
