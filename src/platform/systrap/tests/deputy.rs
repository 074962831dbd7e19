//! What is done for a thread by its deputy, while it waits without a tracer.

use super::free::{both, is_free, set_free, status, threads};
use super::*;

const PLACE: u64 = 0x7000_0000;

/// Changes its memory until it has a deputy, and lets it go free.
fn give_deputy(user: &mut dyn UserThread) {
    for _ in 0..70 {
        user.map(&anonymous(PLACE, 0x1000, libc::PROT_READ)).unwrap();
    }
    set_free(user);
    assert_eq!((is_free(user), threads(user)), (true, 2));
}

#[test]
fn a_thread_whose_memory_is_changed_often_stays_free() {
    let platform = SystrapPlatform::new().unwrap();
    for mut user in both(&platform, LOOP) {
        set_free(&mut *user);
        let space = user.space().clone();
        for turn in 0..50 {
            assert_eq!(space.write(PLACE, b"x"), Err(Errno::EFAULT));
            user.map(&anonymous(PLACE, 0x3000, libc::PROT_READ | libc::PROT_WRITE)).unwrap();
            assert_eq!(space.write(PLACE + 0xfff, b"two pages"), Ok(9));
            user.advise(PLACE, 0x1000, libc::MADV_DONTNEED).unwrap();
            let mut byte = [1; 2];
            assert_eq!((space.read(PLACE + 0xfff, &mut byte), &byte), (Ok(2), b"\0w"));
            user.protect(PLACE + 0x1000, 0x1000, libc::PROT_NONE).unwrap();
            assert_eq!(space.read(PLACE + 0xfff, &mut byte), Ok(1));
            user.remap(PLACE, 0x1000, PLACE + 0x10000, 0x2000, 0).unwrap();
            assert_eq!(space.write(PLACE + 0x11000, b"x"), Ok(1));
            user.sync(PLACE + 0x10000, 0x1000, libc::MS_ASYNC).unwrap();
            user.unmap(PLACE, 0x20000).unwrap();
            assert_eq!(user.unmap(PLACE + 1, 0x1000), Err(Errno::EINVAL), "the host's errors are told");
            assert_eq!(is_free(&*user), turn >= 3, "{turn}");
            for _ in 0..10 {
                user.regs_mut().rax = 0;
                assert_eq!(expect_syscall(&mut *user), 39, "{turn}");
                assert!(is_free(&*user), "{turn}");
            }
        }
        assert_eq!(threads(&*user), 2);
        let pid = space.host_pid();
        drop((user, space));
        assert_gone(pid);
    }
}

/// A site is put back, before its memory is another, without a stop of the thread that waits in its slot.
#[test]
fn a_site_is_put_back_by_the_deputy() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP);
    give_deputy(&mut *user);
    let mut now = [0; 12];
    user.space().read(CODE, &mut now).unwrap();
    assert_eq!(now[0], 0xe9);
    user.protect(CODE, 0x1000, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC).unwrap();
    assert!(is_free(&*user));
    user.space().read(CODE, &mut now).unwrap();
    assert_eq!(now, LOOP);
    for turn in 1..20 {
        user.regs_mut().rax = 1;
        assert_eq!(expect_syscall(&mut *user), 39);
        assert_eq!((user.regs().rip, user.regs().rbx), (CODE + 7, turn));
    }
}

#[test]
fn a_new_program_has_no_deputy_of_the_old_one() {
    let platform = SystrapPlatform::new().unwrap();
    for mut user in both(&platform, LOOP) {
        give_deputy(&mut *user);
        let pid = user.space().host_pid();
        user.renew().unwrap();
        assert_eq!((user.space().host_pid(), threads(&*user)), (pid, 1), "and the same process");
    }
}

#[test]
fn processes_and_threads_that_a_deputy_makes_have_their_parents_state() {
    let platform = SystrapPlatform::new().unwrap();
    for mut user in both(&platform, LOOP) {
        give_deputy(&mut *user);
        for turn in 1..20u8 {
            let mut image = user.xstate().unwrap();
            image[160..176].fill(turn);
            image[512] |= 3;
            user.set_xstate(&image).unwrap();
            (user.regs_mut().rbx, user.regs_mut().fs_base) = (turn.into(), DATA);
            let space = user.space().clone();
            space.write(DATA, &[turn]).unwrap();
            let process = turn % 2 == 0;
            let seed = if process { user.fork() } else { user.spawn_thread() }.unwrap();
            assert!(is_free(&*user), "{turn}");
            let child = std::thread::spawn(move || {
                let mut child = seed.attach().unwrap();
                assert_eq!((child.regs().rax, child.regs().rbx, child.regs().rip), (0, turn.into(), CODE + 7));
                assert_eq!((child.regs().fs_base, child.xstate().unwrap()[160..176].to_vec()), (DATA, vec![turn; 16]));
                child.regs_mut().rsp = DATA + 0x1800;
                for _ in 0..100 {
                    child.regs_mut().rax = 0;
                    assert_eq!(expect_syscall(&mut *child), 39);
                    assert_eq!(child.regs().rbx, u64::from(turn));
                }
                assert_eq!(child.xstate().unwrap()[160..176], [turn; 16]);
                child.space().write(DATA, &[turn + 1]).unwrap();
                if process {
                    assert_eq!(threads(&*child), 1, "the deputy stays behind");
                }
            });
            set_free(&mut *user);
            child.join().unwrap();
            let mut byte = [0];
            space.read(DATA, &mut byte).unwrap();
            assert_eq!(byte[0], turn + u8::from(!process));
            assert_eq!(user.xstate().unwrap()[160..176], [turn; 16]);
        }
    }
}

/// Threads that come and go use the same one.
#[test]
fn a_deputy_waits_for_the_next_thread() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP);
    give_deputy(&mut *user);
    for turn in 0..20 {
        let seed = user.spawn_thread().unwrap();
        let child = std::thread::spawn(move || {
            let mut child = seed.attach().unwrap();
            child.regs_mut().rsp = DATA + 0x1800;
            set_free(&mut *child);
            let maps = if turn == 0 { 70 } else { 2 };
            for _ in 0..maps {
                child.map(&anonymous(PLACE + 0x10000, 0x1000, libc::PROT_READ)).unwrap();
                expect_syscall(&mut *child);
            }
            set_free(&mut *child);
            child.unmap(PLACE + 0x10000, 0x1000).unwrap();
            let space = child.space().clone();
            child.retire();
            drop(child);
            assert_eq!(space.write(PLACE + 0x10000, b"x"), Err(Errno::EFAULT));
        });
        child.join().unwrap();
        set_free(&mut *user);
        assert_eq!(threads(&*user), 4, "two that rest or wait: {turn}");
    }
    let pid = user.space().host_pid();
    user.renew().unwrap();
    assert_ne!(user.space().host_pid(), pid);
    assert_gone(pid);
}

/// Who waits for a process's first thread, with a tracer, hears of its end while the deputy is there too.
#[test]
fn the_end_of_a_traced_thread_with_a_deputy_is_told() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = thread(&platform, LOOP);
    give_deputy(&mut *user);
    user.space().write(CODE + 0x200, &[0xeb, 0xfe]).unwrap();
    // A base of its own is given with a tracer.
    (user.regs_mut().rip, user.regs_mut().gs_base) = (CODE + 0x200, 8);
    let pid = user.space().host_pid();
    let killer = std::thread::spawn(move || {
        let is_running = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") R ");
        while !is_running() || status(pid, "TracerPid") == 0 {
            std::thread::yield_now();
        }
        // SAFETY: no pointers; the process is not reaped.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    });
    assert!(matches!(run(&mut *user), Event::Lost));
    killer.join().unwrap();
    drop(user);
    assert_gone(pid);
}

/// The host ends the process, as when memory runs out: nobody waits for the deputy for ever.
#[test]
fn a_process_ends_with_its_deputies() {
    let platform = SystrapPlatform::new().unwrap();
    for turn in 0..6 {
        let mut user = text_thread(&platform, LOOP);
        give_deputy(&mut *user);
        let pid = user.space().host_pid();
        if turn % 3 == 1 {
            // It stays behind.
            user.advise(PLACE, 0x1000, libc::MADV_DONTNEED).unwrap();
        }
        if turn % 3 == 2 {
            // Another thread with one of its own.
            let seed = user.spawn_thread().unwrap();
            let other = std::thread::spawn(move || {
                let mut other = seed.attach().unwrap();
                other.regs_mut().rsp = DATA + 0x1800;
                for _ in 0..70 {
                    other.map(&anonymous(PLACE + 0x10000, 0x1000, libc::PROT_READ)).unwrap();
                }
                set_free(&mut *other);
                assert!(threads(&*other) >= 4);
                if turn == 5 {
                    other.retire();
                }
            });
            other.join().unwrap();
            assert_eq!(threads(&*user), if turn == 5 { 4 } else { 2 });
        }
        // SAFETY: no pointers; the process is not reaped.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        if turn % 2 == 0 {
            assert!(user.map(&anonymous(PLACE, 0x1000, libc::PROT_READ)).is_err());
            assert!(matches!(run(&mut *user), Event::Lost));
        }
        drop(user);
        assert_gone(pid);
    }
}
