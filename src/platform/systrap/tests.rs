//! Tests with hand-assembled programs: what the ptrace platform's tests do, and what only free threads can get wrong.

mod deputy;
mod free;
mod own;

use super::*;
use crate::errno::Errno;
use crate::platform::{Answer, Backing, Event, MapRequest, UserThread};

pub const CODE: u64 = 0x40_0000;
pub const DATA: u64 = 0x50_0000;

pub fn anonymous(addr: u64, len: u64, prot: i32) -> MapRequest {
    MapRequest { addr, len, prot, shared: false, flags: 0, backing: Backing::Anonymous }
}

/// A thread that is to run `code`, with two pages of data.
pub fn thread(platform: &SystrapPlatform, code: &[u8]) -> Box<dyn UserThread> {
    let mut user = platform.spawn().unwrap().attach().unwrap();
    let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    user.map(&anonymous(CODE, 0x1000, rwx)).unwrap();
    user.map(&anonymous(DATA, 0x2000, libc::PROT_READ | libc::PROT_WRITE)).unwrap();
    user.space().write(CODE, code).unwrap();
    (user.regs_mut().rip, user.regs_mut().rsp) = (CODE, DATA + 0x1000);
    user
}

/// A thread whose code is a file's, so that its calls are rewritten.
pub fn text_thread(platform: &SystrapPlatform, code: &[u8]) -> Box<dyn UserThread> {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    let mut file = tempfile::tempfile().unwrap();
    let mut page = vec![0xcc; 0x1000];
    page[..code.len()].copy_from_slice(code);
    file.write_all(&page).unwrap();
    let mut user = platform.spawn().unwrap().attach().unwrap();
    let backing = Backing::File { fd: file.as_raw_fd(), offset: 0 };
    let prot = libc::PROT_READ | libc::PROT_EXEC;
    user.map(&MapRequest { addr: CODE, len: 0x1000, prot, shared: false, flags: 0, backing }).unwrap();
    user.map(&anonymous(DATA, 0x2000, libc::PROT_READ | libc::PROT_WRITE)).unwrap();
    (user.regs_mut().rip, user.regs_mut().rsp) = (CODE, DATA + 0x1000);
    user
}

/// The process is gone, with all its threads.
#[track_caller]
pub fn assert_gone(pid: i32) {
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::kill(pid, 0) }, -1, "the process is gone");
}

pub fn run(user: &mut dyn UserThread) -> Event {
    loop {
        if let Some(near) = user.wants_room() {
            user.take_room((near.start - 0x10_0000) & !0xfff).unwrap();
        }
        match user.run() {
            Event::Interrupted => {}
            event => return event,
        }
    }
}

pub fn expect_syscall(user: &mut dyn UserThread) -> u64 {
    match run(user) {
        Event::Syscall => user.regs().orig_rax,
        Event::Fault(info) => panic!("fault {} at {:#x}", info.si_signo, user.regs().rip),
        _ => panic!("no system call"),
    }
}

/// `1: mov $39,%eax; syscall; add %rax,%rbx; jmp 1b`.
pub const LOOP: &[u8] = &[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x48, 0x01, 0xc3, 0xeb, 0xf4];

/// `1: xor %eax,%eax; syscall; cmp $-4095,%rax; lea 1(%rbx),%rbx; jmp 1b`.
pub const LOOP_BEHIND: &[u8] =
    &[0x31, 0xc0, 0x0f, 0x05, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff, 0x48, 0x8d, 0x5b, 1, 0xeb, 0xf0];

/// `1: mov $39,%eax; mov %rbx,%r14; xor %edx,%edx; syscall; add %rax,%rbx; jmp 1b`.
pub const LOOP_BETWEEN: &[u8] =
    &[0xb8, 39, 0, 0, 0, 0x49, 0x89, 0xde, 0x31, 0xd2, 0x0f, 0x05, 0x48, 0x01, 0xc3, 0xeb, 0xef];

#[test]
fn calls_are_answered_in_every_mode() {
    let platform = SystrapPlatform::new().unwrap();
    for text in [false, true] {
        let mut user = if text { text_thread(&platform, LOOP) } else { thread(&platform, LOOP) };
        let mut sum = 0;
        for turn in 0..20_000u64 {
            assert_eq!(expect_syscall(&mut *user), 39);
            assert_eq!((user.regs().rip, user.regs().rbx, user.regs().rsp), (CODE + 7, sum, DATA + 0x1000), "{turn}");
            assert_eq!((user.regs().rcx, user.regs().gs_base), (CODE + 7, 0));
            user.regs_mut().rax = turn;
            sum += turn;
        }
    }
}

#[test]
fn what_is_between_the_number_and_the_call_is_carried_out() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP_BETWEEN);
    for turn in 0..2000 {
        user.regs_mut().rdx = 5;
        assert_eq!(expect_syscall(&mut *user), 39);
        let regs = user.regs();
        assert_eq!((regs.rip, regs.rbx, regs.r14, regs.rdx), (CODE + 12, turn, turn, 0));
        user.regs_mut().rax = 1;
        // As if something had jumped there: what is between is still in its place.
        if turn > 1000 && turn % 10 == 0 {
            user.regs_mut().rax = 39;
            user.regs_mut().rip = CODE + 5;
            assert_eq!(expect_syscall(&mut *user), 39);
            assert_eq!((user.regs().rip, user.regs().r14), (CODE + 12, turn));
            user.regs_mut().rax = 1;
        }
    }
    let mut code = [0; 12];
    user.space().read(CODE, &mut code).unwrap();
    assert_eq!((code[0], &code[5..]), (0xe9, &LOOP_BETWEEN[5..12]), "the jump, and the rest");
}

#[test]
fn what_comes_behind_a_call_is_carried_out() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP_BEHIND);
    for turn in 0..2000 {
        assert_eq!(expect_syscall(&mut *user), 0);
        assert_eq!((user.regs().rip, user.regs().rbx), (CODE + 4, turn));
        user.regs_mut().rax = 7;
        // As if a handler had been called there: the thread comes back behind the call.
        if turn % 100 == 50 {
            user.regs_mut().rbp = turn;
        }
    }
}

#[test]
fn the_file_is_not_changed_and_the_site_is_put_back() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP);
    for _ in 0..100 {
        expect_syscall(&mut *user);
    }
    let mut now = [0; 12];
    user.space().read(CODE, &mut now).unwrap();
    assert_eq!((now[0], &now[5..]), (0xe9, &LOOP[5..]), "the call itself stays");
    user.protect(CODE, 0x1000, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC).unwrap();
    user.space().read(CODE, &mut now).unwrap();
    assert_eq!(now, LOOP);
    assert_eq!(expect_syscall(&mut *user), 39);
}

#[test]
fn answers_are_given_without_asking() {
    let platform = SystrapPlatform::new().unwrap();
    // 1: mov $39,%eax; syscall; inc %ebx; cmp $1000,%ebx; jne 1b; mov $60,%eax; syscall
    let code = [
        0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xff, 0xc3, 0x81, 0xfb, 0xe8, 3, 0, 0, 0x75, 0xef, 0x89, 0xc7, 0xb8, 60, 0, 0,
        0, 0x0f, 0x05,
    ];
    let mut user = text_thread(&platform, &code);
    user.set_answers(&[(39, Answer::Is(4711))]);
    let mut asked = 0;
    while expect_syscall(&mut *user) == 39 {
        asked += 1;
        user.regs_mut().rax = 4711;
    }
    assert_eq!((user.regs().rbx, user.regs().rdi), (1000, 4711));
    assert!(asked < 100, "asked {asked} times");
}

#[test]
fn flags_survive_a_call() {
    let platform = SystrapPlatform::new().unwrap();
    // 1: push %rbx; popfq; mov $39,%eax; syscall; pushfq; pop %rdi; mov $60,%eax; syscall; jmp 1b
    let code = [0x53, 0x9d, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x9c, 0x5f, 0xb8, 60, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xec];
    let mut user = text_thread(&platform, &code);
    // Arithmetic flags, and the direction of string operations.
    for turn in 0..400u64 {
        let flags = [0x202, 0x203, 0x206, 0x212, 0x242, 0x282, 0xa02, 0x602, 0xed7][turn as usize % 9];
        user.regs_mut().rbx = flags;
        // The first `push` is behind us at the first turn only.
        if turn == 0 {
            user.regs_mut().rip = CODE;
        }
        assert_eq!(expect_syscall(&mut *user), 39);
        assert_eq!(user.regs().eflags & 0xed5, flags & 0xed5, "{turn}");
        assert_eq!(expect_syscall(&mut *user), 60);
        assert_eq!(user.regs().rdi & 0xed5, flags & 0xed5, "{turn}");
    }
}

#[test]
fn faults_and_interruptions_of_a_free_thread() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = thread(&platform, LOOP);
    for _ in 0..100 {
        expect_syscall(&mut *user);
    }
    // mov (%rsi),%rdi
    user.space().write(CODE + 0x100, &[0x48, 0x8b, 0x3e, 0xeb, 0xfe]).unwrap();
    user.regs_mut().rip = CODE + 0x100;
    user.regs_mut().rsi = 0x1234;
    let Event::Fault(info) = run(&mut *user) else { panic!("no fault") };
    // SAFETY: a SIGSEGV's siginfo has an address.
    assert_eq!(
        (info.si_signo, unsafe { info.si_addr() } as u64, user.regs().rip),
        (libc::SIGSEGV, 0x1234, CODE + 0x100)
    );
    user.regs_mut().rsi = DATA;
    user.space().write(DATA, &4711u64.to_ne_bytes()).unwrap();
    let interrupter = user.interrupter();
    // A kick may come before the first instruction, but not for ever.
    for turn in 0.. {
        let other = interrupter.clone();
        let kicker = std::thread::spawn(move || other.interrupt());
        assert!(matches!(user.run(), Event::Interrupted));
        kicker.join().unwrap();
        if turn > 100 && user.regs().rip == CODE + 0x103 {
            break;
        }
    }
    assert_eq!((user.regs().rdi, user.regs().rip), (4711, CODE + 0x103));
}

/// Interruptions at any moment of a program that calls and calls: no call is lost, none is made twice.
#[test]
fn interruptions_lose_no_call() {
    let platform = SystrapPlatform::new().unwrap();
    for text in [false, true] {
        let mut user = if text { text_thread(&platform, LOOP) } else { thread(&platform, LOOP) };
        let interrupter = user.interrupter();
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stop = done.clone();
        let kicker = std::thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                interrupter.interrupt();
                std::thread::yield_now();
            }
        });
        let (mut calls, mut interruptions) = (0u64, 0);
        while calls < 3000 || interruptions < 100 {
            match user.run() {
                Event::Syscall => {
                    assert_eq!((user.regs().orig_rax, user.regs().rbx, user.regs().rip), (39, calls, CODE + 7));
                    user.regs_mut().rax = 1;
                    calls += 1;
                }
                Event::Interrupted => interruptions += 1,
                Event::Fault(info) => panic!("fault {} at {:#x}", info.si_signo, user.regs().rip),
                Event::Lost => panic!("lost"),
            }
            if let Some(near) = user.wants_room() {
                user.take_room((near.start - 0x10_0000) & !0xfff).unwrap();
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        kicker.join().unwrap();
    }
}

/// `vaddps` and its like go on where they were: extended state is kept across calls, faults and changes of mode.
#[test]
fn extended_state_is_kept() {
    let platform = SystrapPlatform::new().unwrap();
    // movups (%rsi),%xmm5; 1: mov $39,%eax; syscall; movups %xmm5,(%rdx); jmp 1b
    let code = [0x0f, 0x10, 0x2e, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x0f, 0x11, 0x2a, 0xeb, 0xf4];
    let mut user = thread(&platform, &code);
    user.space().write(DATA, b"sixteen bytes...").unwrap();
    (user.regs_mut().rsi, user.regs_mut().rdx) = (DATA, DATA + 64);
    for turn in 0..300 {
        assert_eq!(expect_syscall(&mut *user), 39);
        if turn % 50 == 49 {
            let image = user.xstate().unwrap();
            assert_eq!(&image[160 + 5 * 16..][..16], b"sixteen bytes...");
        }
        let mut stored = [0; 16];
        user.space().read(DATA + 64, &mut stored).unwrap();
        assert!(turn == 0 || &stored == b"sixteen bytes...", "{turn}");
        user.space().write(DATA + 64, &[0; 16]).unwrap();
    }
}

#[test]
fn copies_of_a_free_thread_stop_at_the_page_that_is_missing() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP);
    for turn in 0..5000 {
        expect_syscall(&mut *user);
        if turn % 1000 < 990 {
            continue;
        }
        let space = user.space().clone();
        let mut buf = [0u8; 0x900];
        assert_eq!(space.write(DATA + 0x10, b"hello"), Ok(5));
        assert_eq!((space.read(DATA + 0x10, &mut buf[..5]), &buf[..5]), (Ok(5), &b"hello"[..]));
        assert_eq!(space.read(DATA + 0x1f00, &mut buf), Ok(0x100));
        assert_eq!(space.write(DATA + 0x1fff, &[1, 2, 3]), Ok(1));
        assert_eq!(space.read(DATA + 0x2000, &mut buf), Err(Errno::EFAULT));
        assert_eq!(space.write(CODE, &[1]), Err(Errno::EFAULT));
        assert_eq!(space.read(stub::STUB, &mut buf[..1]), Err(Errno::EFAULT));
        assert_eq!(space.read(context::WINDOW, &mut buf[..1]), Err(Errno::EFAULT));
        assert_eq!(space.write(DATA + 0x20, &[0; 4]), Ok(4));
        assert_eq!(user.compare_exchange(DATA + 0x20, 0, 5), Ok(0));
        assert_eq!(user.compare_exchange(DATA + 0x20, 0, 6), Ok(5));
        assert_eq!(user.compare_exchange(DATA + 0x2000, 0, 6), Err(Errno::EFAULT));
    }
}

#[test]
fn forks_and_threads_of_a_free_thread() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP);
    for _ in 0..200 {
        expect_syscall(&mut *user);
        user.regs_mut().rax = 0;
    }
    user.space().write(DATA, b"parent").unwrap();
    let seeds = [user.fork().unwrap(), user.spawn_thread().unwrap()];
    user.space().write(DATA, b"change").unwrap();
    let expected = [b"parent", b"change"];
    let children: Vec<_> = seeds
        .into_iter()
        .zip(expected)
        .map(|(seed, expected)| {
            std::thread::spawn(move || {
                let mut child = seed.attach().unwrap();
                let mut bytes = [0; 6];
                child.space().read(DATA, &mut bytes).unwrap();
                assert_eq!(&bytes, expected);
                for _ in 0..2000 {
                    assert_eq!(expect_syscall(&mut *child), 39);
                    child.regs_mut().rax = 0;
                }
                assert_eq!(child.regs().rbx, 0);
            })
        })
        .collect();
    for _ in 0..2000 {
        assert_eq!(expect_syscall(&mut *user), 39);
        user.regs_mut().rax = 0;
    }
    children.into_iter().for_each(|child| child.join().unwrap());
    let pid = user.space().host_pid();
    drop(user);
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::kill(pid, 0) }, -1, "the process is gone and reaped");
}

/// What a call costs in each mode. Not a test: `cargo test -- --ignored --nocapture round_trips`.
#[test]
#[ignore = "a measurement"]
fn round_trips() {
    let platform = SystrapPlatform::new().unwrap();
    let traced = crate::platform::ptrace::PtracePlatform::new().unwrap();
    let time = |name: &str, user: &mut dyn UserThread| {
        for _ in 0..2000 {
            expect_syscall(user);
        }
        let turns = 50_000;
        let begun = std::time::Instant::now();
        for _ in 0..turns {
            expect_syscall(user);
            user.regs_mut().rax = 0;
        }
        println!("{name}: {:.3} us", begun.elapsed().as_secs_f64() * 1e6 / f64::from(turns));
    };
    time("by signal", &mut *thread(&platform, LOOP));
    time("rewritten", &mut *text_thread(&platform, LOOP));
    let mut user = platform_thread(&traced);
    time("ptrace", &mut *user);
    let mut user = text_thread(&platform, LOOP);
    time("rewritten", &mut *user);
    let begun = std::time::Instant::now();
    let mut byte = [0];
    for _ in 0..50_000 {
        let _ = user.space().read(DATA, &mut byte);
    }
    println!("copy: {:.3} us", begun.elapsed().as_secs_f64() * 1e6 / 50_000.0);
}

#[cfg(test)]
fn platform_thread(platform: &dyn Platform) -> Box<dyn UserThread> {
    let mut user = platform.spawn().unwrap().attach().unwrap();
    let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    user.map(&anonymous(CODE, 0x1000, rwx)).unwrap();
    user.space().write(CODE, LOOP).unwrap();
    user.regs_mut().rip = CODE;
    user
}

/// An entry of 32-bit programs is none of a free thread's either.
#[test]
fn entries_of_32_bit_programs_fault() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = thread(&platform, LOOP);
    for _ in 0..100 {
        assert_eq!(expect_syscall(&mut *user), 39);
    }
    // mov $20,%eax; int $0x80
    user.space().write(CODE + 0x100, &[0xb8, 20, 0, 0, 0, 0xcd, 0x80]).unwrap();
    user.regs_mut().rip = CODE + 0x100;
    let Event::Fault(info) = run(&mut *user) else { panic!("no fault") };
    assert_eq!((info.si_signo, info.si_code, user.regs().rip), (libc::SIGSEGV, 0x80, CODE + 0x105));
    assert_eq!(user.regs().rax as u32, 20);
}

/// What a call brings with it and takes back is the memory's, whatever else is read and stored meanwhile.
#[test]
fn luggage_is_what_the_memory_holds() {
    let platform = SystrapPlatform::new().unwrap();
    // 1: mov $1,%eax; syscall; mov $4,%eax; syscall; mov $39,%eax; syscall; jmp 1b
    let code = [0xb8, 1, 0, 0, 0, 0x0f, 0x05, 0xb8, 4, 0, 0, 0, 0x0f, 0x05, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xe9];
    let mut user = text_thread(&platform, &code);
    let space = user.space().clone();
    space.write(DATA, b"a path\0 and more").unwrap();
    let regs = user.regs_mut();
    (regs.rdi, regs.rsi, regs.rdx) = (DATA, DATA + 0x100, 64);
    (regs.r8, regs.r9, regs.r10, regs.r12) = (8, 9, 10, 12);
    (regs.r13, regs.r14, regs.r15, regs.rbp, regs.rbx) = (13, 14, 15, 16, 17);
    for turn in 0..3000u32 {
        // write: the buffer at the second argument.
        assert_eq!(expect_syscall(&mut *user), 1);
        let mut word = [0; 4];
        assert_eq!(space.read(DATA + 0x100, &mut word), Ok(4));
        assert_eq!(u32::from_ne_bytes(word), turn.wrapping_mul(7), "{turn}");
        let regs = user.regs();
        assert_eq!([regs.rdi, regs.rsi, regs.rdx], [DATA, DATA + 0x100, 64]);
        assert_eq!([regs.r8, regs.r9, regs.r10, regs.r12], [8, 9, 10, 12], "{turn}");
        assert_eq!([regs.r13, regs.r14, regs.r15, regs.rbp, regs.rbx], [13, 14, 15, 16, 17], "{turn}");
        // A store in between is seen.
        assert_eq!(space.write(DATA + 0x102, &[1, 2]), Ok(2));
        assert_eq!((space.read(DATA + 0x100, &mut word), &word[2..]), (Ok(4), &[1, 2][..]));
        // stat: a path at the first argument, and a place for the result at the second.
        assert_eq!(expect_syscall(&mut *user), 4);
        let mut path = [0; 256];
        let n = space.read(DATA, &mut path).unwrap();
        assert!(path[..n].starts_with(b"a path\0"), "{turn}");
        assert_eq!(space.write(DATA + 0x100, &(turn + 1).wrapping_mul(7).to_ne_bytes()), Ok(4));
        assert_eq!(space.write(DATA + 0x104, &[turn as u8; 100]), Ok(100));
        // The sentry sees what it has left, too.
        assert_eq!((space.read(DATA + 0x104, &mut word), word), (Ok(4), [turn as u8; 4]));
        assert_eq!(space.write(DATA + 0x110, &[9; 4]), Ok(4));
        if turn % 64 == 63 {
            // And nothing is lost on the way to the other mode.
            user.advise(DATA + 0x1000, 0x1000, libc::MADV_WILLNEED).unwrap();
        }
        assert_eq!(expect_syscall(&mut *user), 39);
        let mut all = [0; 104];
        assert_eq!(space.read(DATA + 0x100, &mut all), Ok(104));
        assert_eq!((all[4], &all[16..20], all[103]), (turn as u8, &[9; 4][..], turn as u8), "{turn}");
    }
    // Places that are not there do no harm.
    let regs = user.regs_mut();
    (regs.rdi, regs.rsi) = (0x1234, DATA + 0x1fff);
    for _ in 0..200 {
        assert_eq!(expect_syscall(&mut *user), 1);
        assert_eq!(space.read(DATA + 0x1fff, &mut [0; 2]), Ok(1));
        assert_eq!(expect_syscall(&mut *user), 4);
        assert_eq!(space.read(0x1234, &mut [0; 2]), Err(Errno::EFAULT));
        assert_eq!(space.write(DATA + 0x1fff, &[0; 2]), Ok(1));
        assert_eq!(expect_syscall(&mut *user), 39);
    }
}
