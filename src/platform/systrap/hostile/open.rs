//! Host calls that need no seal, and threads that rest: what a program can make of them.

use super::*;
use crate::platform::systrap::code;

/// Jumps to the call that needs no seal. What comes of it: a thread that has become traced makes a call like any.
fn call(user: &mut dyn UserThread, number: i64, args: [u64; 6]) -> Event {
    let mut registers = [0; 16];
    registers[0] = number as u64;
    (registers[7], registers[6], registers[2]) = (args[0], args[1], args[2]);
    (registers[10], registers[8], registers[9]) = (args[3], args[4], args[5]);
    // The context, as far as the code behind the call goes.
    registers[3] = context::WINDOW;
    prepare(user, &registers, context::WINDOW, 0x202, code::open_call() - 2);
    run_on(user)
}

#[test]
fn what_is_not_open_is_the_end() {
    bounded(Duration::from_secs(120), || {
        let platform = Arc::new(SystrapPlatform::new().unwrap());
        let bystander = Bystander::new(&platform);
        let vdso = thread(&platform, LOOP).space().vdso().0;
        let (place, len) = (0x6000_0000, 0x1000);
        let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
        let (shared, growing) = (private ^ 3, private | libc::MAP_GROWSDOWN as u64);
        let map = |prot: u64, flags: u64| (libc::SYS_mmap, [place, len, prot, flags, u64::MAX, 0]);
        let mut calls = vec![
            map(4, private),
            map(7, private),
            map(1, private & !(libc::MAP_FIXED as u64)),
            map(1, shared),
            map(3, growing),
            map(3 | 1 << 32, private),
            map(3, private | 1 << 32),
            // A file: the contexts'.
            (libc::SYS_mmap, [place, len, 3, (libc::MAP_SHARED | libc::MAP_FIXED) as u64, 5, 0]),
            (libc::SYS_mmap, [place, len, 3, (libc::MAP_PRIVATE | libc::MAP_FIXED) as u64, 5, 0]),
            (libc::SYS_mprotect, [DATA, len, 7, 0, 0, 0]),
            (libc::SYS_mremap, [DATA, len, len, 3, place, 0]),
            (libc::SYS_madvise, [DATA, len, libc::MADV_REMOVE as u64, 0, 0, 0]),
            (libc::SYS_madvise, [DATA, len, libc::MADV_DOFORK as u64, 0, 0, 0]),
            (libc::SYS_clone, [crate::seccomp::stub::CLONE_THREAD, 0, 0, 0, 0, 0]),
            (libc::SYS_exit, [0; 6]),
            (libc::SYS_exit_group, [0; 6]),
            (libc::SYS_openat, [0; 6]),
            (libc::SYS_kill, [0, 9, 0, 0, 0, 0]),
            (libc::SYS_rt_sigreturn, [0; 6]),
            (libc::SYS_futex, [context::WINDOW, 0, 0, 0, 0, 0]),
        ];
        let ours = [
            (stub::STUB, len),
            (stub::STUB - 0x1000, 0x3000),
            (0x1_f000, 0x2000),
            (vdso.start, len),
            (vdso.end - 0x1000, len),
            (vdso.start - 0x1000, vdso.end - vdso.start + 0x2000),
            (context::WINDOW, len),
            (context::WINDOW - 0x1000, 0x2000),
            (context::WINDOW_END, len),
            (place, 1 << 32),
            (place, u64::MAX - place + 1),
            ((1 << 32) - 0x1000, 0x2000),
            (0x7ffd_ffff_f000, 0x2000),
        ];
        for (addr, len) in ours {
            calls.push((libc::SYS_munmap, [addr, len, 0, 0, 0, 0]));
            calls.push((libc::SYS_madvise, [addr, len, libc::MADV_DONTNEED as u64, 0, 0, 0]));
            calls.push((libc::SYS_mmap, [addr, len, 3, private, u64::MAX, 0]));
        }
        for (number, args) in calls {
            let mut user = free_thread(&platform);
            let pid = user.space().host_pid();
            let kicks = Kicks::new(user.interrupter(), Duration::from_secs(1));
            let event = call(&mut *user, number, args);
            drop(kicks);
            assert!(matches!(event, Event::Lost | Event::Syscall), "{number} {args:x?}: {}", told(&*user, &event));
            assert!(!host_maps(pid).contains("60000000-"), "{number} {args:x?}");
        }
        bystander.finish();
    });
}

/// A program that changes its memory without the sentry's knowing harms itself alone.
#[test]
fn memory_that_goes_away_unasked() {
    bounded(Duration::from_secs(60), || {
        let platform = Arc::new(SystrapPlatform::new().unwrap());
        let bystander = Bystander::new(&platform);
        let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as u64;
        let calls = [
            (libc::SYS_munmap, [DATA + 0x1000, 0x1000, 0, 0, 0, 0]),
            (libc::SYS_mmap, [DATA + 0x1000, 0x1000, 0, private, u64::MAX, 0]),
            (libc::SYS_madvise, [DATA + 0x1000, 0x1000, libc::MADV_DONTNEED as u64, 0, 0, 0]),
            (libc::SYS_munmap, [CODE, 0x1000, 0, 0, 0, 0]),
            (libc::SYS_munmap, [0x2_0000, 0x5f_f000_0000, 0, 0, 0, 0]),
        ];
        for (number, args) in calls {
            let mut user = free_thread(&platform);
            let kicks = Kicks::new(user.interrupter(), Duration::from_millis(20));
            for _ in 0..5 {
                let begun = Instant::now();
                let event = user.run();
                assert!(begun.elapsed() < Duration::from_secs(2));
                if matches!(event, Event::Lost) {
                    break;
                }
            }
            let _ = call(&mut *user, number, args);
            let space = user.space().clone();
            let _ = (space.read(DATA + 0x1000, &mut [0; 16]), space.write(DATA + 0x1ff8, &[0; 16]));
            let _ = user.map(&anonymous(DATA, 0x2000, libc::PROT_READ | libc::PROT_WRITE));
            let _ = (user.xstate(), user.protect(CODE, 0x1000, libc::PROT_READ));
            drop(kicks);
            drop(user);
        }
        bystander.finish();
    });
}

/// The context of a thread that rests is written over, and the thread called up again and again.
#[test]
fn threads_that_find_no_rest() {
    bounded(Duration::from_secs(120), || {
        let platform = Arc::new(SystrapPlatform::new().unwrap());
        let bystander = Bystander::new(&platform);
        let mut random = Random(0xbed);
        for turn in 0..60 {
            let mut user = free_thread(&platform);
            let pid = user.space().host_pid();
            for _ in 0..5 {
                let Ok(seed) = user.spawn_thread() else { break };
                let child = std::thread::spawn(move || {
                    let Ok(mut child) = seed.attach() else { return };
                    let kicks = Kicks::new(child.interrupter(), Duration::from_millis(2));
                    for _ in 0..20 {
                        let begun = Instant::now();
                        let event = child.run();
                        assert!(begun.elapsed() < Duration::from_secs(2));
                        if matches!(event, Event::Lost) {
                            return;
                        }
                        child.regs_mut().rip = CODE;
                    }
                    drop(kicks);
                    child.retire();
                });
                child.join().unwrap();
                // Whichever context it has.
                for _ in 0..random.below(20) {
                    let address = context::WINDOW + context::SIZE + random.below(0x40) * 8;
                    let word = if turn % 3 == 0 { random.below(10) } else { random.word() };
                    scribble(pid, address, &word.to_ne_bytes());
                }
                let begun = Instant::now();
                if matches!(run_a_while(&mut *user), Event::Lost) {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(2));
                user.regs_mut().rip = CODE;
            }
            drop(user);
            // SAFETY: no pointers.
            assert_eq!(unsafe { libc::kill(pid, 0) }, -1, "the process is gone");
        }
        bystander.finish();
    });
}
