//! Rewritten call sites whose memory changes, which many threads use, or which a program steps through.

use std::io::Write;
use std::os::fd::AsRawFd;

use std::sync::atomic::AtomicU32;

use super::*;
use crate::platform::systrap::tests::{LOOP_BEHIND, LOOP_BETWEEN};
use crate::platform::{Backing, MapRequest};

const TEXT: u64 = 0x80_0000;

fn file_of(code: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    let mut pages = vec![0xcc; code.len().next_multiple_of(0x1000)];
    pages[..code.len()].copy_from_slice(code);
    file.write_all(&pages).unwrap();
    file
}

fn map_text(user: &mut dyn UserThread, file: &std::fs::File, addr: u64, shared: bool) {
    let len = file.metadata().unwrap().len();
    let backing = Backing::File { fd: file.as_raw_fd(), offset: 0 };
    let prot = libc::PROT_READ | libc::PROT_EXEC;
    user.map(&MapRequest { addr, len, prot, shared, flags: 0, backing }).unwrap();
}

fn bytes_at(user: &dyn UserThread, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    assert_eq!(user.space().read(addr, &mut bytes), Ok(len));
    bytes
}

/// Calls until the site is rewritten.
fn until_rewritten(user: &mut dyn UserThread, addr: u64, before: &[u8]) {
    for _ in 0..200 {
        expect_syscall(user);
        user.regs_mut().rax = 0;
        if bytes_at(user, addr, before.len()) != before {
            return;
        }
    }
    panic!("the site is not rewritten");
}

#[test]
fn two_mappings_of_a_file_are_two_sites() {
    let platform = SystrapPlatform::new().unwrap();
    let file = file_of(LOOP);
    let mut user = thread(&platform, LOOP);
    for addr in [TEXT, TEXT + 0x1000] {
        map_text(&mut *user, &file, addr, false);
    }
    user.regs_mut().rip = TEXT;
    until_rewritten(&mut *user, TEXT, LOOP);
    assert_eq!(bytes_at(&*user, TEXT + 0x1000, LOOP.len()), LOOP);
    user.regs_mut().rip = TEXT + 0x1000;
    until_rewritten(&mut *user, TEXT + 0x1000, LOOP);
    // One goes; the other stays as it is.
    user.unmap(TEXT, 0x1000).unwrap();
    for _ in 0..100 {
        assert_eq!((expect_syscall(&mut *user), user.regs().rip), (39, TEXT + 0x1007));
    }
}

#[test]
fn shared_and_writable_code_is_left_alone() {
    let platform = SystrapPlatform::new().unwrap();
    let file = file_of(LOOP);
    let mut user = thread(&platform, LOOP);
    map_text(&mut *user, &file, TEXT, true);
    user.regs_mut().rip = TEXT;
    for _ in 0..100 {
        assert_eq!(expect_syscall(&mut *user), 39);
    }
    assert_eq!(bytes_at(&*user, TEXT, LOOP.len()), LOOP);
    map_text(&mut *user, &file, TEXT, false);
    until_rewritten(&mut *user, TEXT, LOOP);
    // Writable, changed by the program, executable again: its own code counts.
    user.protect(TEXT, 0x1000, libc::PROT_READ | libc::PROT_WRITE).unwrap();
    assert_eq!(bytes_at(&*user, TEXT, LOOP.len()), LOOP);
    user.space().write(TEXT + 1, &[60]).unwrap();
    user.protect(TEXT, 0x1000, libc::PROT_READ | libc::PROT_EXEC).unwrap();
    user.regs_mut().rip = TEXT;
    for _ in 0..100 {
        assert_eq!(expect_syscall(&mut *user), 60);
    }
}

/// The platform's rooms and contexts are not the container's; but it may map over a room, whose sites are put back.
#[test]
fn rooms_that_are_mapped_over() {
    let platform = SystrapPlatform::new().unwrap();
    for code in [LOOP, LOOP_BEHIND, LOOP_BETWEEN] {
        let mut user = text_thread(&platform, code);
        let mut room = None;
        for _ in 0..200 {
            if let Some(near) = user.wants_room() {
                let at = (near.start - 0x10_0000) & !0xfff;
                user.take_room(at).unwrap();
                room = Some(at);
            }
            while !matches!(user.run(), Event::Syscall) {}
            user.regs_mut().rax = 7;
        }
        assert_ne!(bytes_at(&*user, CODE, code.len()), code);
        let (rbx, behind) = (user.regs().rbx, user.regs().rip);
        // The call is under way: it comes back through the room, were that still there.
        user.map(&anonymous(room.unwrap(), 0x1_0000, libc::PROT_READ)).unwrap();
        assert_eq!(bytes_at(&*user, CODE, code.len()), code);
        user.regs_mut().rax = 1;
        expect_syscall(&mut *user);
        assert_eq!((user.regs().rip, user.regs().rbx), (behind, rbx + 1));
    }
}

/// A page's end is between the jump and the call: with the call's page go the call and what is before it there.
#[test]
fn a_site_whose_second_page_is_replaced() {
    let platform = SystrapPlatform::new().unwrap();
    // Where the site begins, and where the page of the rest.
    for (code, cut) in [(LOOP, 5), (LOOP_BETWEEN, 8), (LOOP_BEHIND, 7)] {
        let before = vec![0x90; 0x1000 - cut];
        let file = file_of(&[&before[..], code].concat());
        let start = TEXT + before.len() as u64;
        let mut user = thread(&platform, LOOP);
        map_text(&mut *user, &file, TEXT, false);
        user.regs_mut().rip = start;
        until_rewritten(&mut *user, start, code);
        let rest = file_of(&[0x31, 0xf6, 0xeb, 0xfe]);
        map_text(&mut *user, &rest, TEXT + 0x1000, false);
        assert_eq!(bytes_at(&*user, start, cut), code[..cut], "{code:x?}");
    }
}

/// What a slot does in place of the program may need the stack.
#[test]
fn a_stack_that_is_gone() {
    let platform = SystrapPlatform::new().unwrap();
    // 1: mov 8(%rsp),%rax; mov 16(%rsp),%esi; syscall; add %rax,%rbx; jmp 1b
    // 1: mov 8(%rsp),%eax; syscall; mov %rax,8(%rsp); jmp 1b
    let before = [0x48, 0x8b, 0x44, 0x24, 8, 0x8b, 0x74, 0x24, 16, 0x0f, 0x05, 0x48, 0x01, 0xc3, 0xeb, 0xf0];
    let behind = [0x8b, 0x44, 0x24, 8, 0x0f, 0x05, 0x48, 0x89, 0x44, 0x24, 8, 0xeb, 0xf3];
    for code in [&before[..], &behind] {
        let mut user = text_thread(&platform, code);
        let stack = user.regs().rsp;
        user.space().write(stack + 8, &39u64.to_le_bytes()).unwrap();
        for turn in 0..200 {
            assert_eq!(expect_syscall(&mut *user), 39);
            user.regs_mut().rax = 39;
            if turn < 100 || turn % 10 != 0 {
                continue;
            }
            assert_ne!(bytes_at(&*user, CODE, code.len()), code);
            user.regs_mut().rsp = 0x1000;
            let event = run_a_while(&mut *user);
            assert!(matches!(event, Event::Fault(info) if info.si_signo == libc::SIGSEGV), "{}", told(&*user, &event));
            (user.regs_mut().rsp, user.regs_mut().rip) = (stack, CODE);
        }
    }
}

/// A room is mapped over by another thread while the call sleeps.
#[test]
fn a_room_that_another_thread_maps_over() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP_BEHIND);
    let mut room = 0;
    for _ in 0..200 {
        if let Some(near) = user.wants_room() {
            room = (near.start - 0x10_0000) & !0xfff;
            user.take_room(room).unwrap();
        }
        while !matches!(user.run(), Event::Syscall) {}
        user.regs_mut().rax = 7;
    }
    let seed = user.spawn_thread().unwrap();
    for _ in 0..100 {
        expect_syscall(&mut *user);
        user.regs_mut().rax = 7;
    }
    let rbx = user.regs().rbx;
    let other = std::thread::spawn(move || {
        let mut other = seed.attach().unwrap();
        other.map(&anonymous(room, 0x1_0000, libc::PROT_READ)).unwrap();
        other.space().host_pid()
    });
    other.join().unwrap();
    assert_eq!((expect_syscall(&mut *user), user.regs().rbx, user.regs().rip), (0, rbx + 1, CODE + 4));
}

#[test]
fn a_fork_has_rewritten_sites_of_its_own() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP);
    for _ in 0..100 {
        expect_syscall(&mut *user);
    }
    let changed = bytes_at(&*user, CODE, 12);
    assert_ne!(changed, LOOP);
    let seed = user.fork().unwrap();
    std::thread::spawn(move || {
        let mut child = seed.attach().unwrap();
        assert_eq!(bytes_at(&*child, CODE, 12), changed);
        child.protect(CODE, 0x1000, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC).unwrap();
        assert_eq!(bytes_at(&*child, CODE, 12), LOOP);
        (0..100).for_each(|_| assert_eq!(expect_syscall(&mut *child), 39));
    })
    .join()
    .unwrap();
    assert_ne!(bytes_at(&*user, CODE, 12), LOOP);
    (0..100).for_each(|_| assert_eq!(expect_syscall(&mut *user), 39));
}

/// How often each site is gone through before the next: often enough to be rewritten meanwhile.
const TURNS: u64 = 5;

/// Thousands of sites of several shapes, each with its own number, which count themselves in `rbx`.
struct Sites {
    code: Vec<u8>,
    /// Where each call ends, and its number.
    calls: Vec<(u64, u64)>,
}

fn sites(count: u32) -> Sites {
    let (mut code, mut calls) = (Vec::new(), Vec::new());
    for index in 0..count {
        let number = index % 300 + 1;
        // mov $TURNS,%r12d
        code.extend_from_slice(&[0x41, 0xbc, TURNS as u8, 0, 0, 0]);
        let start = code.len();
        let load = [&[0xb8][..], &number.to_le_bytes()].concat();
        match index % 5 {
            0 => code.extend_from_slice(&[&load[..], &[0x0f, 0x05]].concat()),
            1 => code.extend_from_slice(&[&[0x48, 0xc7, 0xc0][..], &number.to_le_bytes(), &[0x0f, 0x05]].concat()),
            // Behind: cmp $-4095,%rax; mov %rax,%rsi
            2 => code.extend_from_slice(&[&load[..], &[0x90, 0x0f, 0x05, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff]].concat()),
            // Between: mov %rbx,%r14; mov $7,%esi
            4 => code.extend_from_slice(&[&load[..], &[0x49, 0x89, 0xde, 0xbe, 7, 0, 0, 0, 0x0f, 0x05]].concat()),
            _ => code.extend_from_slice(&[&load[..], &[0x90, 0x0f, 0x05, 0x48, 0x89, 0xc6]].concat()),
        }
        let end = code.windows(2).rposition(|pair| pair == [0x0f, 0x05]).unwrap() + 2;
        calls.push((TEXT + end as u64, number.into()));
        // inc %rbx; dec %r12d; jnz
        code.extend_from_slice(&[0x48, 0xff, 0xc3, 0x41, 0xff, 0xcc, 0x75]);
        code.push((start as i32 - code.len() as i32 - 1) as u8);
    }
    // jmp back
    code.push(0xe9);
    code.extend_from_slice(&(-(code.len() as i32 + 4)).to_le_bytes());
    Sites { code, calls }
}

/// Goes once through all sites.
fn walk(user: &mut dyn UserThread, sites: &Sites, kicked: bool) {
    for &(end, number) in sites.calls.iter().flat_map(|call| std::iter::repeat_n(call, TURNS as usize)) {
        let rbx = user.regs().rbx;
        let event = loop {
            if let Some(near) = user.wants_room() {
                lend(user, &near);
            }
            match user.run() {
                Event::Interrupted if kicked => {}
                event => break event,
            }
        };
        assert!(matches!(event, Event::Syscall), "{}", told(user, &event));
        assert_eq!((user.regs().orig_rax, user.regs().rip), (number, end));
        assert!(user.regs().rbx == rbx + 1 || rbx == 0);
        user.regs_mut().rax = number;
    }
}

static LENT: AtomicU32 = AtomicU32::new(0);

fn lend(user: &mut dyn UserThread, near: &std::ops::Range<u64>) {
    let index = LENT.fetch_add(1, Ordering::Relaxed);
    user.take_room(near.end + 0x100_0000 + u64::from(index) * 0x1_0000).unwrap();
}

#[test]
fn many_threads_use_sites_that_are_being_rewritten() {
    bounded(Duration::from_secs(120), || {
        let platform = SystrapPlatform::new().unwrap();
        let sites = Arc::new(sites(3000));
        let file = file_of(&sites.code);
        let mut user = thread(&platform, LOOP);
        map_text(&mut *user, &file, TEXT, false);
        (user.regs_mut().rip, user.regs_mut().rbx) = (TEXT, 0);
        let threads: Vec<_> = (0..3)
            .map(|index| {
                let (seed, sites) = (user.spawn_thread().unwrap(), sites.clone());
                std::thread::spawn(move || {
                    let mut user = seed.attach().unwrap();
                    let _kicks = (index == 0).then(|| Kicks::new(user.interrupter(), Duration::from_micros(300)));
                    (0..2).for_each(|_| walk(&mut *user, &sites, index == 0));
                })
            })
            .collect();
        (0..2).for_each(|_| walk(&mut *user, &sites, false));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_ne!(bytes_at(&*user, TEXT, sites.code.len()), sites.code);
        user.protect(TEXT, sites.code.len().next_multiple_of(0x1000) as u64, libc::PROT_READ).unwrap();
        assert_eq!(bytes_at(&*user, TEXT, sites.code.len()), sites.code);
    });
}

/// A site is put back, and rewritten again, while another thread goes through it.
#[test]
fn a_site_that_is_put_back_while_it_is_used() {
    bounded(Duration::from_secs(60), || {
        let platform = SystrapPlatform::new().unwrap();
        for code in [LOOP, LOOP_BEHIND, LOOP_BETWEEN] {
            let file = file_of(code);
            let mut user = thread(&platform, LOOP);
            map_text(&mut *user, &file, TEXT, false);
            let seed = user.spawn_thread().unwrap();
            let done = Arc::new(AtomicBool::new(false));
            let over = done.clone();
            let caller = std::thread::spawn(move || {
                let mut other = seed.attach().unwrap();
                (other.regs_mut().rip, other.regs_mut().rbx) = (TEXT, 0);
                let mut calls = 0;
                while !over.load(Ordering::Relaxed) {
                    while let Some(near) = other.wants_room() {
                        lend(&mut *other, &near);
                    }
                    let event = other.run();
                    match event {
                        Event::Syscall => {
                            assert_eq!(other.regs().rbx, calls);
                            other.regs_mut().rax = 1;
                            calls += 1;
                        }
                        Event::Interrupted => {}
                        _ => panic!("{}", told(&*other, &event)),
                    }
                }
            });
            let end = Instant::now() + Duration::from_secs(2);
            while Instant::now() < end && !caller.is_finished() {
                map_text(&mut *user, &file, TEXT, false);
                std::thread::sleep(Duration::from_micros(500));
                user.protect(TEXT, 0x1000, libc::PROT_READ | libc::PROT_EXEC).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            caller.join().unwrap();
        }
    });
}

/// A call that was made just before a kick is told, at once or later, whatever is done with the thread between.
#[test]
fn kicks_between_a_call_and_its_signal() {
    bounded(Duration::from_secs(60), || {
        let platform = SystrapPlatform::new().unwrap();
        for text in [None, Some(LOOP), Some(LOOP_BEHIND), Some(LOOP_BETWEEN)] {
            let mut user = text.map_or_else(|| thread(&platform, LOOP), |code| text_thread(&platform, code));
            let kicks = Kicks::new(user.interrupter(), Duration::from_micros(20));
            let end = Instant::now() + Duration::from_secs(2);
            let (mut calls, mut kicked) = (0, 0);
            while Instant::now() < end {
                if let Some(near) = user.wants_room() {
                    lend(&mut *user, &near);
                }
                let event = user.run();
                match event {
                    Event::Syscall => {
                        assert_eq!(user.regs().rbx, calls);
                        user.regs_mut().rax = 1;
                        calls += 1;
                    }
                    Event::Interrupted => {
                        kicked += 1;
                        // As if a signal's handler were called and had returned.
                        if kicked % 4 == 0 {
                            user.protect(DATA, 0x1000, libc::PROT_READ | libc::PROT_WRITE).unwrap();
                        }
                    }
                    _ => panic!("{}", told(&*user, &event)),
                }
            }
            drop(kicks);
            assert!(calls > 100 && kicked > 100);
        }
    });
}

/// The trap flag: each instruction of the program traps, none of ours does.
#[test]
fn a_program_that_steps_itself_does_not_see_our_code() {
    bounded(Duration::from_secs(60), || {
        let platform = SystrapPlatform::new().unwrap();
        for code in [LOOP, LOOP_BEHIND, LOOP_BETWEEN] {
            let mut user = text_thread(&platform, code);
            for _ in 0..200 {
                expect_syscall(&mut *user);
                user.regs_mut().rax = 0;
            }
            user.regs_mut().eflags |= 0x100;
            let (mut calls, mut traps) = (0, 0);
            while calls < 60 {
                match user.run() {
                    Event::Syscall => {
                        calls += 1;
                        assert_ne!(user.regs().eflags & 0x100, 0);
                        user.regs_mut().rax = 0;
                    }
                    Event::Fault(info) => {
                        assert_eq!(info.si_signo, libc::SIGTRAP);
                        traps += 1;
                    }
                    Event::Interrupted => continue,
                    Event::Lost => panic!("lost"),
                }
                assert!((CODE..CODE + 0x20).contains(&user.regs().rip), "{:#x}", user.regs().rip);
            }
            assert!(traps >= calls, "{traps} traps");
            user.regs_mut().eflags &= !0x100;
            for _ in 0..200 {
                expect_syscall(&mut *user);
                assert_eq!(user.regs().eflags & 0x100, 0);
            }
        }
    });
}

/// A kick while the stub's code stores the flags does not leave the tracer's trap flag behind.
#[test]
fn a_stop_in_the_stubs_code_leaves_no_trap_flag() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP);
    for _ in 0..200 {
        expect_syscall(&mut *user);
        user.regs_mut().rax = 0;
    }
    let kicks = Kicks::new(user.interrupter(), Duration::from_micros(30));
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let event = user.run();
        match event {
            Event::Syscall => user.regs_mut().rax = 0,
            Event::Interrupted => {}
            _ => panic!("{}", told(&*user, &event)),
        }
        assert_eq!(user.regs().eflags & 0x100, 0);
    }
    drop(kicks);
}

/// Instructions that a program may not use, or that mean something to us.
#[test]
fn odd_instructions_of_a_free_thread() {
    bounded(Duration::from_secs(60), || {
        let platform = SystrapPlatform::new().unwrap();
        let mut user = free_thread(&platform);
        let cases: [(&[u8], i32); 6] = [
            (&[0xcc], libc::SIGTRAP),
            (&[0xf4], libc::SIGSEGV),
            (&[0x0f, 0x0b], libc::SIGILL),
            (&[0xfa], libc::SIGSEGV),
            (&[0xcd, 0x80], libc::SIGSEGV),
            // xor %edx,%edx; xor %ecx,%ecx; div %ecx
            (&[0x31, 0xd2, 0x31, 0xc9, 0xf7, 0xf1], libc::SIGFPE),
        ];
        for (code, signal) in cases.into_iter().cycle().take(60) {
            set_free(&mut *user);
            user.space().write(CODE + 0x200, code).unwrap();
            user.regs_mut().rip = CODE + 0x200;
            let event = run_a_while(&mut *user);
            assert!(matches!(event, Event::Fault(info) if info.si_signo == signal), "{}", told(&*user, &event));
            assert!((CODE + 0x200..CODE + 0x208).contains(&user.regs().rip));
            user.regs_mut().rip = CODE;
        }
        // sysenter: the host returns where it likes, as a call that faults or an instruction that is none.
        user.space().write(CODE + 0x200, &[0x0f, 0x34]).unwrap();
        user.regs_mut().rip = CODE + 0x200;
        let event = run_a_while(&mut *user);
        assert!(matches!(event, Event::Fault(_) | Event::Lost), "{}", told(&*user, &event));
    });
}

/// Bases of `%fs` and `%gs` as no kernel would set them, calls through rewritten sites, and the end of such a thread.
#[test]
fn bases_that_are_no_addresses() {
    bounded(Duration::from_secs(60), || {
        let platform = SystrapPlatform::new().unwrap();
        // wrfsbase %r12; wrgsbase %r13; 1: mov $39,%eax; syscall; add %rax,%rbx; jmp 1b
        let code = [&[0xf3, 0x49, 0x0f, 0xae, 0xd4, 0xf3, 0x49, 0x0f, 0xae, 0xdd][..], LOOP].concat();
        for base in [0xffff_8000_0000_0000, 0x7fff_ffff_f000, 0x1234, context::WINDOW + 0x4_0000] {
            let mut user = text_thread(&platform, &code);
            let seed = user.spawn_thread().unwrap();
            std::thread::spawn(move || {
                let mut user = seed.attach().unwrap();
                (user.regs_mut().r12, user.regs_mut().r13) = (base, base);
                for _ in 0..100 {
                    let event = run_a_while(&mut *user);
                    match event {
                        Event::Syscall => user.regs_mut().rax = 0,
                        Event::Lost => break,
                        // A context that is not there.
                        Event::Fault(_) | Event::Interrupted => user.regs_mut().gs_base = 0,
                    }
                }
            })
            .join()
            .unwrap();
            set_free(&mut *user);
        }
    });
}
