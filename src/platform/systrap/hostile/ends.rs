//! Stubs that are killed, sentries that are killed, and what one program leaves to the next.

use std::io::BufRead;

use super::*;

fn kill(pid: i32) {
    // SAFETY: no pointers; a process that this test made and nobody has reaped.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
}

/// Runs until it is lost, and says how long that took from `killed` on.
fn until_lost(user: &mut dyn UserThread, killed: Instant) -> Duration {
    loop {
        if matches!(user.run(), Event::Lost) {
            return killed.elapsed();
        }
    }
}

#[test]
fn a_killed_stub_is_lost_while_the_sentry_sleeps() {
    bounded(Duration::from_secs(30), || {
        let platform = SystrapPlatform::new().unwrap();
        let mut user = free_thread(&platform);
        user.space().write(CODE + 0x200, &[0xeb, 0xfe]).unwrap();
        user.regs_mut().rip = CODE + 0x200;
        let pid = user.space().host_pid();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            kill(pid);
            Instant::now()
        });
        let lost = until_lost(&mut *user, Instant::now());
        let took = killer.join().unwrap().elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}, {lost:?}");
    });
}

/// The sentry threads of the others are busy elsewhere: nobody has reaped those.
#[test]
fn a_killed_thread_among_others_is_lost() {
    bounded(Duration::from_secs(30), || {
        let platform = SystrapPlatform::new().unwrap();
        let mut user = free_thread(&platform);
        user.space().write(CODE + 0x200, &[0xeb, 0xfe]).unwrap();
        let seed = user.spawn_thread().unwrap();
        let (attached, ready) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            let _other = seed.attach().unwrap();
            attached.send(()).unwrap();
            let _ = released.recv();
        });
        ready.recv().unwrap();
        set_free(&mut *user);
        user.regs_mut().rip = CODE + 0x200;
        let pid = user.space().host_pid();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            kill(pid);
            Instant::now()
        });
        until_lost(&mut *user, Instant::now());
        let took = killer.join().unwrap().elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        drop(release);
        other.join().unwrap();
    });
}

#[test]
fn a_killed_stub_is_lost_while_the_sentry_looks_or_copies() {
    bounded(Duration::from_secs(60), || {
        let platform = SystrapPlatform::new().unwrap();
        for turn in 0..20u32 {
            let mut user = text_thread(&platform, LOOP);
            set_free(&mut *user);
            let pid = user.space().host_pid();
            let killer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(500 + 137 * u64::from(turn)));
                kill(pid);
                Instant::now()
            });
            let mut buf = [0; 64];
            let mut worst = Duration::ZERO;
            loop {
                let begun = Instant::now();
                if matches!(user.run(), Event::Lost) {
                    break;
                }
                if turn % 2 == 0 {
                    (0..10).for_each(|_| {
                        let _ = user.space().read(DATA, &mut buf);
                    });
                    let _ = user.compare_exchange(DATA, 0, 0);
                }
                worst = worst.max(begun.elapsed());
                user.regs_mut().rax = 0;
            }
            let took = killer.join().unwrap().elapsed();
            assert!(took < Duration::from_secs(1), "{took:?} {worst:?}");
        }
    });
}

/// A stub that is told to copy and does not is stopped: it copies nothing later.
#[test]
fn a_copy_that_is_late_is_not_made() {
    bounded(Duration::from_secs(60), || {
        let platform = SystrapPlatform::new().unwrap();
        let mut user = free_thread(&platform);
        let pid = user.space().host_pid();
        // The container says that its stub looks, which in truth runs: orders stay where they are.
        user.space().write(CODE + 0x200, &[0xeb, 0xfe]).unwrap();
        for turn in 0..20u32 {
            user.regs_mut().rip = CODE + 0x200;
            let done = Arc::new(AtomicBool::new(false));
            let over = done.clone();
            let liar = std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    scribble(pid, context::WINDOW, &context::state::TRAP.to_ne_bytes());
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let kicks = Kicks::new(user.interrupter(), Duration::from_millis(50));
            let _event = user.run();
            done.store(true, Ordering::Relaxed);
            liar.join().unwrap();
            let begun = Instant::now();
            assert_eq!(user.space().write(DATA, b"first"), Ok(5));
            assert_eq!(user.space().write(DATA, b"again"), Ok(5));
            assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
            assert_eq!(user.compare_exchange(DATA + 0x40, turn, turn + 1), Ok(turn));
            drop(kicks);
            user.regs_mut().rip = CODE;
            set_free(&mut *user);
            let mut bytes = [0; 5];
            user.space().read(DATA, &mut bytes).unwrap();
            assert_eq!(&bytes, b"again");
        }
    });
}

/// What one program leaves in its context does not answer for the next, which may have other rights.
#[test]
fn a_new_program_finds_no_answers_of_the_old_one() {
    let platform = SystrapPlatform::new().unwrap();
    let mut user = text_thread(&platform, LOOP);
    set_free(&mut *user);
    let pid = user.space().host_pid();
    scribble(pid, context::WINDOW + (context::field::ANSWERS + 39 * 8) as u64, &(1u64 << 63 | 4711).to_ne_bytes());
    user.renew().unwrap();
    assert_eq!(user.space().host_pid(), pid, "the same process");
    let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // The call goes through the stub as a rewritten site's does: lea 1f(%rip),%rcx; mov $39,%eax; jmp ENTRY; 1: …; jmp back
    user.map(&anonymous(CODE, 0x1000, rwx)).unwrap();
    user.map(&anonymous(DATA, 0x2000, libc::PROT_READ | libc::PROT_WRITE)).unwrap();
    user.space().write(CODE, LOOP).unwrap();
    (user.regs_mut().rip, user.regs_mut().rsp) = (CODE, DATA + 0x1000);
    set_free(&mut *user);
    let mut code = vec![0x48, 0x8d, 0x0d, 14, 0, 0, 0, 0xb8, 39, 0, 0, 0, 0x41, 0xbb];
    code.extend_from_slice(&(code::entry() as u32).to_le_bytes());
    code.extend_from_slice(&[0x41, 0xff, 0xe3, 0x48, 0x89, 0xc3, 0xeb, 0xe6]);
    user.space().write(CODE + 0x200, &code).unwrap();
    user.regs_mut().rip = CODE + 0x200;
    for _ in 0..20 {
        assert_eq!((expect_syscall(&mut *user), user.regs().rip), (39, CODE + 0x215));
        user.regs_mut().rax = 1;
    }
}

/// A process without room for one more mapping stays traced, and goes on.
#[test]
fn a_context_that_cannot_be_mapped() {
    bounded(Duration::from_secs(60), || {
        let platform = SystrapPlatform::new().unwrap();
        let mut user = thread(&platform, LOOP);
        let start = 0x1_0000_0000;
        let limit: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
        user.map(&anonymous(start, (limit + 2) * 0x1000, libc::PROT_READ)).unwrap();
        let full = (0..limit / 2 + 1).any(|page| user.protect(start + page * 0x2000, 0x1000, libc::PROT_NONE).is_err());
        // A mapping may be one more than there may be by splitting.
        let other = |page: u64| anonymous(0x2_0000_0000 + page * 0x2000, 0x1000, libc::PROT_READ);
        let full = full && (0..8).any(|page| user.map(&other(page)).is_err());
        assert!(full, "the host gives no more mappings");
        let calls = |user: &mut dyn UserThread| {
            for _ in 0..3000 {
                assert_eq!(expect_syscall(user), 39);
                user.regs_mut().rax = 0;
            }
        };
        calls(&mut *user);
        user.unmap(start, limit * 0x1000).unwrap();
        calls(&mut *user);
    });
}

/// Copies of a process never have a context of it, at whatever moment they are made.
#[test]
fn a_fork_has_no_context() {
    bounded(Duration::from_secs(120), || {
        let platform = SystrapPlatform::new().unwrap();
        let mut user = free_thread(&platform);
        for _ in 0..60 {
            let seed = user.spawn_thread().unwrap();
            let other = std::thread::spawn(move || set_free(&mut *seed.attach().unwrap()));
            for _ in 0..6 {
                let child = user.fork().unwrap();
                let checked = std::thread::spawn(move || {
                    let child = child.attach().unwrap();
                    let maps = host_maps(child.space().host_pid());
                    assert!(!maps.contains("contexts"), "{maps}");
                });
                checked.join().unwrap();
            }
            other.join().unwrap();
        }
    });
}

const VICTIM: &str = "RUNSC_TEST_VICTIM";

/// The other half of the next test: a sentry with stubs of every kind, which waits to be killed.
#[test]
fn a_victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let platform = SystrapPlatform::new().unwrap();
    let mut user = free_thread(&platform);
    // One free and running, one thread free, one child that nobody has attached.
    user.space().write(CODE + 0x200, &[0xeb, 0xfe]).unwrap();
    user.regs_mut().rip = CODE + 0x200;
    let _child = user.fork().unwrap();
    let seed = user.spawn_thread().unwrap();
    std::thread::spawn(move || {
        let mut other = seed.attach().unwrap();
        other.regs_mut().rip = CODE;
        set_free(&mut *other);
        // SAFETY: no pointers.
        println!("sentry {}", unsafe { libc::getpid() });
        loop {
            expect_syscall(&mut *other);
        }
    });
    loop {
        let _ = user.run();
    }
}

/// The processes whose parent is `parent`.
fn children(parent: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|&pid| status(pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// A process's state and parent.
fn status(pid: i32) -> Option<(String, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = stat.rsplit_once(") ")?.1.split(' ');
    Some((words.next()?.into(), words.next()?.parse().ok()?))
}

#[test]
fn nothing_outlives_a_sentry_that_is_killed() {
    let path = format!("{}::a_victim", module_path!().split_once("::").unwrap().1);
    let mut sentry = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &path, "--nocapture"])
        .env(VICTIM, "1")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(sentry.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("sentry "))), "it has started");
    let stubs = children(sentry.id() as i32);
    assert!(stubs.len() >= 3, "template, process, child: {stubs:?}");
    // A child that has not run yet has not asked for its end: all have run, and all but the one that runs sleep.
    let runs = |pid: &&i32| status(**pid).is_some_and(|(state, _)| state == "R");
    let is_new = |pid: &i32| {
        let turns = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
        turns.split_whitespace().nth(2) == Some("0")
    };
    while stubs.iter().filter(runs).count() > 1 || stubs.iter().any(is_new) {
        std::thread::yield_now();
    }
    sentry.kill().unwrap();
    sentry.wait().unwrap();
    let ended = |pid: &i32| status(*pid).is_none_or(|(state, _)| state == "Z" || state == "X");
    let limit = Instant::now() + Duration::from_secs(5);
    while !stubs.iter().all(ended) {
        let left: Vec<_> = stubs.iter().filter(|pid| !ended(pid)).collect();
        assert!(Instant::now() < limit, "{left:?} of {stubs:?} live on");
        std::thread::yield_now();
    }
}
