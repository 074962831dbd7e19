//! What is done with a thread while it waits without a tracer.

use super::*;

/// Calls until the thread is free, its sites rewritten where they can be.
pub fn set_free(user: &mut dyn UserThread) {
    for _ in 0..100 {
        assert_eq!(expect_syscall(user), 39);
        user.regs_mut().rax = 0;
    }
}

pub fn status(pid: i32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim().parse().unwrap()
}

/// Whether the first thread of its process has no tracer.
pub fn is_free(user: &dyn UserThread) -> bool {
    status(user.space().host_pid(), "TracerPid") == 0
}

pub fn both(platform: &SystrapPlatform, code: &[u8]) -> [Box<dyn UserThread>; 2] {
    [thread(platform, code), text_thread(platform, code)]
}

#[test]
fn all_registers_can_be_given() {
    let platform = SystrapPlatform::new().unwrap();
    for mut user in both(&platform, LOOP) {
        set_free(&mut *user);
        for turn in 0..200u64 {
            let word = |n: u64| turn << 32 | n;
            let regs = user.regs_mut();
            (regs.rip, regs.rsp, regs.fs_base) = (CODE, DATA + 0x800 + turn * 8, DATA + turn * 16);
            (regs.rbx, regs.rcx, regs.rdx, regs.rsi) = (word(1), word(2), word(3), word(4));
            (regs.rdi, regs.rbp, regs.r8, regs.r9) = (word(5), word(6), word(7), word(8));
            (regs.r10, regs.r11, regs.r12, regs.r13) = (word(9), word(10), word(11), word(12));
            (regs.r14, regs.r15) = (word(13), word(14));
            regs.eflags = [0x202, 0x203, 0x206, 0x212, 0x242, 0x282, 0xa02, 0x602, 0xed7, 0x10202][turn as usize % 10];
            let given = *regs;
            assert_eq!(expect_syscall(&mut *user), 39);
            let now = *user.regs();
            assert_eq!((now.rip, now.rsp, now.fs_base, now.gs_base), (CODE + 7, given.rsp, given.fs_base, 0));
            assert_eq!([now.rbx, now.rdx, now.rsi, now.rdi], [given.rbx, given.rdx, given.rsi, given.rdi]);
            assert_eq!([now.rbp, now.r8, now.r9, now.r10], [given.rbp, given.r8, given.r9, given.r10]);
            assert_eq!([now.r12, now.r13, now.r14, now.r15], [given.r12, given.r13, given.r14, given.r15]);
            assert_eq!(now.eflags & 0xcd5, given.eflags & 0xcd5, "{turn}");
        }
        assert!(is_free(&*user));
    }
}

/// What the instruction `syscall` takes away is given back where the sentry says so: behind `rt_sigreturn` above all.
#[test]
fn registers_that_calls_take_away_can_be_given() {
    let platform = SystrapPlatform::new().unwrap();
    // mov $39,%eax; syscall; jmp: twice. Then: mov %rcx,%rdi; mov %r11,%rsi; jmp to the beginning.
    let mut code = LOOP.to_vec();
    code.resize(0x20, 0xcc);
    code.extend_from_slice(&[0x48, 0x89, 0xcf, 0x4c, 0x89, 0xde, 0xeb, 0xd8]);
    for mut user in both(&platform, &code) {
        set_free(&mut *user);
        for turn in 0..50 {
            let regs = user.regs_mut();
            (regs.rip, regs.rcx, regs.r11) = (CODE + 0x20, 4711 + turn, 4712 + turn);
            assert_eq!(expect_syscall(&mut *user), 39);
            assert_eq!((user.regs().rdi, user.regs().rsi), (4711 + turn, 4712 + turn));
        }
        assert!(is_free(&*user));
    }
}

#[test]
fn registers_that_make_no_sense_are_given_with_a_tracer() {
    let platform = SystrapPlatform::new().unwrap();
    for (mut user, rewritten) in both(&platform, LOOP).into_iter().zip([false, true]) {
        for rip in [0x8000_0000_0000, u64::MAX, 0xffff_8000_0000_0000] {
            set_free(&mut *user);
            user.regs_mut().rip = rip;
            let Event::Fault(info) = run(&mut *user) else { panic!("no fault") };
            assert_eq!((info.si_signo, user.regs().rip), (libc::SIGSEGV, rip));
            user.regs_mut().rip = CODE;
        }
        // One instruction, then a trap.
        set_free(&mut *user);
        (user.regs_mut().rip, user.regs_mut().eflags) = (CODE, 0x302);
        let event = run(&mut *user);
        if rewritten {
            // The instruction and the call are one.
            assert!(matches!(event, Event::Syscall));
            continue;
        }
        let Event::Fault(info) = event else { panic!("no trap") };
        assert_eq!((info.si_signo, user.regs().rip), (libc::SIGTRAP, CODE + 5));
    }
}

#[test]
fn extended_state_is_read_and_given() {
    let platform = SystrapPlatform::new().unwrap();
    // movups %xmm5,(%rdx); movups (%rsi),%xmm5; mov $39,%eax; syscall; jmp
    let code = [0x0f, 0x11, 0x2a, 0x0f, 0x10, 0x2e, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf1];
    for mut user in both(&platform, &code) {
        (user.regs_mut().rsi, user.regs_mut().rdx) = (DATA, DATA + 64);
        set_free(&mut *user);
        let traced = {
            let mut other = thread(&platform, LOOP);
            other.xstate().unwrap()
        };
        for turn in 0..100u8 {
            user.space().write(DATA, &[turn; 16]).unwrap();
            assert_eq!(expect_syscall(&mut *user), 39);
            let mut image = user.xstate().unwrap();
            assert_eq!((image.len(), &image[464..512]), (traced.len(), &traced[464..512]));
            assert_eq!(&image[160 + 5 * 16..][..16], [turn; 16]);
            image[160 + 5 * 16..][..16].fill(turn ^ 0xff);
            // Round to zero.
            image[25] = 0x7f;
            user.set_xstate(&image).unwrap();
            assert_eq!(user.xstate().unwrap(), image, "what was given is there");
            if turn % 3 == 1 {
                // With a tracer after all.
                user.sync(DATA, 0x1000, libc::MS_ASYNC).unwrap();
            }
            assert_eq!(expect_syscall(&mut *user), 39);
            let mut stored = [0; 16];
            user.space().read(DATA + 64, &mut stored).unwrap();
            assert_eq!(stored, [turn ^ 0xff; 16], "{turn}");
            assert_eq!(user.xstate().unwrap()[25], 0x7f);
            let mut bad = image.clone();
            bad[27] = 0xff;
            assert!(user.set_xstate(&bad).is_err(), "MXCSR has reserved bits");
        }
    }
}

/// What only a tracer can have a thread do does not keep it from being free.
#[test]
fn a_thread_is_free_again_when_its_memory_has_been_changed() {
    let platform = SystrapPlatform::new().unwrap();
    for mut user in both(&platform, LOOP) {
        set_free(&mut *user);
        user.map(&anonymous(0x7000_0000, 0x3000, libc::PROT_READ)).unwrap();
        assert!(!is_free(&*user));
        for _ in 0..10 {
            user.regs_mut().rax = 0;
            assert_eq!(expect_syscall(&mut *user), 39);
            assert!(is_free(&*user));
        }
    }
}

/// How many threads its process has on the host, once the one that has just ended is gone there.
pub fn threads(user: &dyn UserThread) -> u64 {
    status(user.space().host_pid(), "Threads")
}

#[test]
fn threads_rest_and_get_up() {
    let platform = SystrapPlatform::new().unwrap();
    for mut user in both(&platform, LOOP) {
        for turn in 0..40u64 {
            set_free(&mut *user);
            let mut image = user.xstate().unwrap();
            image[160..176].fill(turn as u8 + 1);
            // x87 and SSE are not as they are at first.
            image[512] |= 3;
            user.set_xstate(&image).unwrap();
            user.regs_mut().rbx = turn;
            user.regs_mut().fs_base = DATA;
            let seed = user.spawn_thread().unwrap();
            let child = std::thread::spawn(move || {
                let mut child = seed.attach().unwrap();
                assert_eq!((child.regs().rax, child.regs().rbx, child.regs().rip), (0, turn, CODE + 7));
                assert_eq!(child.xstate().unwrap()[160..176], [turn as u8 + 1; 16]);
                let regs = child.regs_mut();
                (regs.rsp, regs.fs_base) = (DATA + 0x1800, DATA + 0x1000);
                // Few enough for it to be traced still, the first time, or many.
                for call in 0..[3, 300][turn as usize / 2 % 2] {
                    assert_eq!(expect_syscall(&mut *child), 39);
                    let regs = *child.regs();
                    assert_eq!((regs.rbx, regs.rsp, regs.fs_base), (turn + call, DATA + 0x1800, DATA + 0x1000));
                    child.regs_mut().rax = 1;
                }
                assert_eq!(child.xstate().unwrap()[160..176], [turn as u8 + 1; 16]);
                child.retire();
            });
            for _ in 0..20 {
                assert_eq!(expect_syscall(&mut *user), 39);
                assert_eq!((user.regs().rbx, user.regs().fs_base), (turn, DATA));
                user.regs_mut().rax = 0;
            }
            child.join().unwrap();
            assert_eq!(threads(&*user), 2, "the same one each time");
        }
        let pid = user.space().host_pid();
        drop(user);
        assert_gone(pid);
    }
}

#[test]
fn a_thread_that_is_called_up_for_nothing_rests_again() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP);
    set_free(&mut *user);
    for _ in 0..20 {
        let seed = user.spawn_thread().unwrap();
        drop(seed);
        set_free(&mut *user);
    }
    let seed = user.spawn_thread().unwrap();
    std::thread::spawn(move || {
        let mut child = seed.attach().unwrap();
        set_free(&mut *child);
        child.retire();
    })
    .join()
    .unwrap();
    let before = threads(&*user);
    for _ in 0..20 {
        drop(user.spawn_thread().unwrap());
        set_free(&mut *user);
    }
    // On a busy machine one may have been too slow to tell its state, which another is then made for.
    assert!(threads(&*user) < before + 10);
}

/// The first thread can rest too, and the process ends with the last that does not.
#[test]
fn the_first_thread_rests() {
    let platform = SystrapPlatform::new().unwrap();
    let mut first = text_thread(&platform, LOOP);
    set_free(&mut *first);
    let pid = first.space().host_pid();
    let seed = first.spawn_thread().unwrap();
    first.retire();
    drop(first);
    std::thread::spawn(move || {
        let mut second = seed.attach().unwrap();
        set_free(&mut *second);
        // In the stub of the first.
        let third = second.spawn_thread().unwrap();
        second.retire();
        drop(second);
        let third = std::thread::spawn(move || {
            let mut third = third.attach().unwrap();
            set_free(&mut *third);
            // A new program has a process of its own.
            third.renew().unwrap();
            assert_ne!(third.space().host_pid(), pid);
        });
        third.join().unwrap();
    })
    .join()
    .unwrap();
    assert_gone(pid);
}
