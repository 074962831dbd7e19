//! Programs that attack their own stub. Whatever they do, the sentry neither hangs nor panics, nothing reaches the host, and
//! other processes do not notice.

mod ends;
mod fuzz;
mod rest;
mod sites;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::tests::{CODE, DATA, LOOP, anonymous, expect_syscall, text_thread, thread};
use super::*;
use crate::platform::{Event, Interrupter, UserThread};

/// Pseudo-random numbers, the same at each run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A word that means something to somebody, often.
    fn word(&mut self) -> u64 {
        match self.below(12) {
            0 => 0,
            1 => u64::MAX,
            2 => context::WINDOW,
            3 => context::WINDOW + self.below(0x8000),
            4 => DATA + self.below(0x2000),
            5 => CODE + self.below(0x20),
            6 => stub::STUB + self.below(0x1000),
            7 => 0x8000_0000_0000 + self.next() % 0x1000,
            8 => self.below(8),
            9 => 1 << self.below(64),
            10 => self.below(400),
            _ => self.next(),
        }
    }
}

/// Runs `body` on a thread of its own, and fails when that takes longer than `limit`: a sentry thread that hangs.
fn bounded<T: Send + 'static>(limit: Duration, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, outcome) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        let _ = done.send(body());
    });
    match outcome.recv_timeout(limit) {
        Ok(value) => {
            worker.join().unwrap();
            value
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => std::panic::resume_unwind(worker.join().err().unwrap()),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the sentry thread hangs"),
    }
}

/// Kicks a thread every now and then until dropped.
struct Kicks {
    /// Taken when dropped: that ends the kicks at once.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Kicks {
    fn new(interrupter: Arc<dyn Interrupter>, every: Duration) -> Kicks {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
                interrupter.interrupt();
            }
        });
        Kicks { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Kicks {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(|thread| thread.join());
    }
}

/// Another process of the container, which calls and calls, and must not notice.
struct Bystander {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Bystander {
    fn new(platform: &Arc<SystrapPlatform>) -> Bystander {
        let stop = Arc::new(AtomicBool::new(false));
        let (platform, stopped) = (platform.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut user = text_thread(&platform, LOOP);
            let mut calls = 0;
            while !stopped.load(Ordering::Relaxed) {
                assert_eq!(expect_syscall(&mut *user), 39);
                assert_eq!((user.regs().rbx, user.regs().rip), (calls, CODE + 7));
                user.regs_mut().rax = 1;
                calls += 1;
                std::thread::yield_now();
            }
            calls
        });
        Bystander { stop, thread: Some(thread) }
    }

    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.thread.take().unwrap().join().expect("another process noticed") > 0);
    }
}

/// Has a thread call until it runs free.
fn set_free(user: &mut dyn UserThread) {
    for _ in 0..40 {
        assert_eq!(expect_syscall(user), 39);
        user.regs_mut().rax = 0;
    }
}

/// The instruction that loads register `register` from `DATA + offset`.
fn load(register: u8, offset: u32) -> Vec<u8> {
    let mut code = vec![0x48 | (register >> 3) << 2, 0x8b, 0x04 | (register & 7) << 3, 0x25];
    code.extend_from_slice(&(DATA as u32 + offset).to_le_bytes());
    code
}

const REGISTERS: u32 = 0x700;
const GS: u32 = 0x780;
const FLAGS: u32 = 0x788;
const TARGET: u32 = 0x790;
const SPRING: u64 = CODE + 0x400;

/// Code that loads all registers, flags and the base of `%gs` from memory and jumps.
fn spring() -> Vec<u8> {
    let absolute = |offset: u32| (DATA as u32 + offset).to_le_bytes();
    let mut code = load(0, GS);
    // wrgsbase %rax; push; popfq; all registers; jmp
    code.extend_from_slice(&[0xf3, 0x48, 0x0f, 0xae, 0xd8, 0xff, 0x34, 0x25]);
    code.extend_from_slice(&absolute(FLAGS));
    code.push(0x9d);
    for register in 0..16u8 {
        code.extend(load(register, REGISTERS + 8 * u32::from(register)));
    }
    code.extend_from_slice(&[0xff, 0x24, 0x25]);
    code.extend_from_slice(&absolute(TARGET));
    code
}

/// What happened, for a test that expected something else.
fn told(user: &dyn UserThread, event: &Event) -> String {
    let what = match event {
        Event::Syscall => format!("call {}", user.regs().orig_rax),
        Event::Fault(info) => format!("fault {} of code {}", info.si_signo, info.si_code),
        Event::Interrupted => "interrupted".into(),
        Event::Lost => "lost".into(),
    };
    format!("{what} at {:#x}", user.regs().rip)
}

/// A free thread that is about to jump to `target` with these registers.
fn prepare(user: &mut dyn UserThread, registers: &[u64; 16], gs: u64, flags: u64, target: u64) {
    let words: Vec<u8> = registers.iter().chain([&gs, &flags, &target]).flat_map(|word| word.to_ne_bytes()).collect();
    assert_eq!(user.space().write(DATA + u64::from(REGISTERS), &words), Ok(words.len()));
    (user.regs_mut().rip, user.regs_mut().rsp) = (SPRING, DATA + 0x1000);
}

fn free_thread(platform: &SystrapPlatform) -> Box<dyn UserThread> {
    let mut user = thread(platform, LOOP);
    user.space().write(SPRING, &spring()).unwrap();
    set_free(&mut *user);
    user
}

/// Where container code may jump that is ours.
fn our_code() -> impl Iterator<Item = u64> {
    (stub::STUB..stub::STUB + 0x60).chain(code::range())
}

/// Runs until something other than an interruption happens, or for a few of those.
fn run_a_while(user: &mut dyn UserThread) -> Event {
    for _ in 0..4 {
        match user.run() {
            Event::Interrupted => {}
            event => return event,
        }
    }
    Event::Interrupted
}

/// Runs until something other than an interruption happens.
fn run_on(user: &mut dyn UserThread) -> Event {
    loop {
        match user.run() {
            Event::Interrupted => {}
            event => return event,
        }
    }
}

#[test]
fn jumps_into_the_stubs_page_while_free() {
    bounded(Duration::from_secs(120), || {
        let platform = Arc::new(SystrapPlatform::new().unwrap());
        let bystander = Bystander::new(&platform);
        let mut random = Random(0x1234_5678);
        let mut user = free_thread(&platform);
        let mut kicks = Kicks::new(user.interrupter(), Duration::from_millis(1));
        for target in our_code() {
            for gs in [context::WINDOW, 0, context::WINDOW + 0x10_0000, random.next() >> 17] {
                let registers = std::array::from_fn(|_| random.word());
                let flags = random.next() & 0x4_4cd5 | 2;
                prepare(&mut *user, &registers, gs, flags, target);
                let begun = Instant::now();
                let event = run_a_while(&mut *user);
                assert!(begun.elapsed() < Duration::from_secs(2), "{target:#x} {gs:#x} {registers:x?}");
                // Whatever it is now: once more from the start, or a new one.
                user.regs_mut().eflags = 0x202;
                user.regs_mut().rip = CODE;
                let lost = matches!(event, Event::Lost);
                if lost || !(0..64).any(|_| matches!(user.run(), Event::Syscall) && user.regs().orig_rax == 39) {
                    drop(kicks);
                    drop(user);
                    user = free_thread(&platform);
                    kicks = Kicks::new(user.interrupter(), Duration::from_millis(1));
                }
            }
        }
        drop(kicks);
        drop(user);
        bystander.finish();
    });
}

#[test]
fn jumps_into_the_stubs_page_while_traced() {
    bounded(Duration::from_secs(120), || {
        let platform = Arc::new(SystrapPlatform::new().unwrap());
        let bystander = Bystander::new(&platform);
        let mut random = Random(0x8765_4321);
        let mut user = thread(&platform, LOOP);
        for target in our_code() {
            for gs in [context::WINDOW, 0, random.next() >> 17] {
                let regs = user.regs_mut();
                let words = [
                    &mut regs.rax,
                    &mut regs.rbx,
                    &mut regs.rcx,
                    &mut regs.rdx,
                    &mut regs.rsi,
                    &mut regs.rdi,
                    &mut regs.rbp,
                    &mut regs.rsp,
                    &mut regs.r8,
                    &mut regs.r9,
                    &mut regs.r10,
                    &mut regs.r11,
                    &mut regs.r12,
                    &mut regs.r13,
                ];
                words.into_iter().for_each(|word| *word = random.word());
                (regs.rip, regs.gs_base, regs.eflags) = (target, gs, 0x202);
                let kicks = Kicks::new(user.interrupter(), Duration::from_millis(1));
                let event = run_a_while(&mut *user);
                drop(kicks);
                // Too many calls in a row would set it free.
                user.unmap(DATA + 0x10_0000, 0x1000).unwrap_or(());
                if matches!(event, Event::Lost) {
                    user = thread(&platform, LOOP);
                }
            }
        }
        drop(user);
        bystander.finish();
    });
}

fn host_maps(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default()
}

/// The host calls of the stub's page are of no use without the seal.
#[test]
fn host_calls_without_the_seal() {
    bounded(Duration::from_secs(120), || {
        let platform = Arc::new(SystrapPlatform::new().unwrap());
        let bystander = Bystander::new(&platform);
        let mut random = Random(99);
        let numbers = [
            libc::SYS_mmap,
            libc::SYS_munmap,
            libc::SYS_mprotect,
            libc::SYS_mremap,
            libc::SYS_madvise,
            libc::SYS_clone,
            libc::SYS_prctl,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_sigaltstack,
            libc::SYS_openat,
            libc::SYS_write,
            libc::SYS_kill,
        ];
        for place in stub::sealed_calls().into_iter().chain([code::yielding()]) {
            for number in numbers {
                let mut user = free_thread(&platform);
                let pid = user.space().host_pid();
                // Not while it is on its way: traced, it could not even try.
                let kicks = Kicks::new(user.interrupter(), Duration::from_secs(1));
                let mut registers: [u64; 16] = std::array::from_fn(|_| random.next());
                // A mapping of nothing at a place where nothing is; a clone as the sentry makes it.
                let first = match number {
                    libc::SYS_clone => crate::seccomp::stub::CLONE_PROCESS,
                    libc::SYS_prctl => libc::PR_SET_NAME as u64,
                    libc::SYS_exit | libc::SYS_exit_group => 0,
                    _ => 0x6000_0000,
                };
                registers[0] = number as u64;
                (registers[7], registers[6]) = (first, 0x1000);
                registers[2] = random.next() << 32 | 3;
                registers[10] = random.next() << 32 | 0x32;
                (registers[8], registers[9]) = (u64::MAX, random.next());
                prepare(&mut *user, &registers, 0, 0x202, place - 2);
                // Interrupted before, it goes on traced, and it is a call like any.
                let event = run_on(&mut *user);
                assert!(matches!(event, Event::Lost | Event::Syscall), "call {number} at {place:#x} is the end");
                assert!(!host_maps(pid).contains("60000000-"), "call {number} at {place:#x}");
                drop(kicks);
            }
        }
        for place in code::futexes() {
            for address in [DATA, stub::STUB, 0x7ffe_ffff_f000, context::WINDOW_END] {
                let mut user = free_thread(&platform);
                let mut registers = [0; 16];
                (registers[0], registers[7]) = (202, address);
                prepare(&mut *user, &registers, 0, 0x202, place - 2);
                let _kicks = Kicks::new(user.interrupter(), Duration::from_millis(5));
                let inside = address >> 32 == context::WINDOW >> 32;
                let event = if inside { run_a_while(&mut *user) } else { run_on(&mut *user) };
                assert!(inside || matches!(event, Event::Lost | Event::Syscall), "futex at {address:#x}");
            }
        }
        bystander.finish();
    });
}

/// A wait that the stub's code can be made to do never keeps the sentry from stopping the thread.
#[test]
fn a_futex_wait_that_nobody_ends_can_be_interrupted() {
    bounded(Duration::from_secs(20), || {
        let platform = SystrapPlatform::new().unwrap();
        let [_, wait] = code::futexes();
        for back in [2, 0] {
            let mut user = free_thread(&platform);
            // A word of the context's buffer that is zero and stays so.
            let mut registers = [0; 16];
            (registers[0], registers[7], registers[3]) = (202, context::WINDOW + 0x1800, context::WINDOW);
            prepare(&mut *user, &registers, 0, 0x202, wait - 2 - back * 5);
            let kicks = Kicks::new(user.interrupter(), Duration::from_millis(5));
            for _ in 0..10 {
                let begun = Instant::now();
                let event = user.run();
                assert!(matches!(event, Event::Interrupted | Event::Fault(_) | Event::Syscall));
                assert!(begun.elapsed() < Duration::from_secs(1));
            }
            user.regs_mut().rip = CODE;
            drop(kicks);
            assert_eq!(expect_syscall(&mut *user), 39);
        }
    });
}

/// A signal frame that the container has made: `ucontext` as the host's kernel takes it.
struct Forged {
    bytes: [u8; 0x400],
}

impl Forged {
    fn new(rip: u64, rsp: u64) -> Forged {
        let mut frame = Forged { bytes: [0; 0x400] };
        frame.word(16, rip);
        frame.word(15, rsp);
        frame.word(17, 0x202);
        frame.word(18, 0x002b_0000_0000_0033);
        // UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS; no alternate stack.
        frame.put(0, 6);
        frame.put(24, 2);
        frame
    }

    fn put(&mut self, offset: usize, value: u64) {
        self.bytes[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
    }

    fn word(&mut self, index: usize, value: u64) {
        self.put(40 + index * 8, value);
    }

    /// Blocks these signals.
    fn mask(mut self, signals: u64) -> Forged {
        self.put(296, signals);
        self
    }

    /// Another alternate stack.
    fn stack(mut self, start: u64, len: u64) -> Forged {
        self.put(16, start);
        self.put(24, 0);
        self.put(32, len);
        self
    }
}

/// Has a free thread go through `rt_sigreturn` with a frame of its own making.
fn forge(user: &mut dyn UserThread, frame: &Forged) {
    assert_eq!(user.space().write(DATA + 0x1400, &frame.bytes), Ok(frame.bytes.len()));
    let mut registers = [0; 16];
    (registers[0], registers[4]) = (15, DATA + 0x1400);
    prepare(user, &registers, 0, 0x202, code::sigreturn() - 2);
}

/// Whether the event is the stub's own `rt_sigreturn`, which a traced thread has jumped to.
fn is_sigreturn(user: &dyn UserThread, event: &Event) -> bool {
    matches!(event, Event::Syscall) && user.regs().rip == code::sigreturn()
}

#[test]
fn blocked_signals_do_not_keep_kicks_away() {
    bounded(Duration::from_secs(30), || {
        let platform = SystrapPlatform::new().unwrap();
        let mut user = free_thread(&platform);
        user.space().write(CODE + 0x200, &[0xeb, 0xfe]).unwrap();
        let own = (context::WINDOW + context::STACK, context::SIZE - context::STACK);
        let frame = Forged::new(CODE + 0x200, DATA + 0x800).mask(u64::MAX).stack(own.0, own.1);
        forge(&mut *user, &frame);
        // Free, then traced: the kick is a signal there.
        let mut turn = 0;
        while turn < 10 {
            let kicks = Kicks::new(user.interrupter(), Duration::from_millis(5));
            let begun = Instant::now();
            let event = user.run();
            drop(kicks);
            if turn == 0 && is_sigreturn(&*user, &event) {
                // Traced already, as a copy of the frame was late: a call that is answered like any other.
                user.regs_mut().rip = CODE;
                set_free(&mut *user);
                forge(&mut *user, &frame);
                continue;
            }
            assert!(matches!(event, Event::Interrupted), "{turn}: {}", told(&*user, &event));
            assert!(begun.elapsed() < Duration::from_secs(1));
            if turn > 2 {
                assert_eq!(user.regs().rip, CODE + 0x200);
            }
            turn += 1;
        }
        // Nor is it left so: the thread goes on as any other.
        user.regs_mut().rip = CODE;
        set_free(&mut *user);
    });
}

#[test]
fn forged_frames_harm_their_process_alone() {
    bounded(Duration::from_secs(120), || {
        let platform = Arc::new(SystrapPlatform::new().unwrap());
        let bystander = Bystander::new(&platform);
        let mut random = Random(4711);
        for turn in 0..300 {
            let mut user = free_thread(&platform);
            let mut frame = Forged::new(CODE, DATA + 0x800);
            match turn % 10 {
                0 => frame.word(16, 0x8000_0000_0000 + random.next() % 0x1000),
                1 => frame.word(18, random.next()),
                2 => frame = frame.mask(random.next()),
                3 => frame = frame.stack(DATA, 0x1000),
                4 => frame = frame.stack(CODE, 0x1000),
                5 => frame = frame.stack(random.word() & !0xfff, 0x2000),
                6 => frame.word(23, random.word()),
                7 => frame.word(17, random.next()),
                8 => frame.word(18, 0x002b_0000_0000_0023),
                _ => (0..64).for_each(|_| frame.put(random.below(0x70) as usize * 8, random.word())),
            }
            forge(&mut *user, &frame);
            let kicks = Kicks::new(user.interrupter(), Duration::from_millis(1));
            for _ in 0..60 {
                let begun = Instant::now();
                let event = user.run();
                assert!(begun.elapsed() < Duration::from_secs(2), "{turn}");
                if matches!(event, Event::Lost) {
                    break;
                }
                if random.below(8) == 0 {
                    let _ = user.xstate();
                }
                user.regs_mut().rip = CODE;
            }
            drop(kicks);
        }
        bystander.finish();
    });
}

/// Stores into a stub as its own code could.
fn scribble(pid: i32, address: u64, bytes: &[u8]) {
    let local = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut _, iov_len: bytes.len() };
    // SAFETY: the vectors describe a slice and another process's memory.
    unsafe { libc::process_vm_writev(pid, &local, 1, &remote, 1, 0) };
}

/// All that the sentry does with a thread.
fn use_thread(user: &mut dyn UserThread, random: &mut Random) {
    let mut buf = [0u8; 256];
    let space = user.space().clone();
    for _ in 0..4 {
        let begun = Instant::now();
        match random.below(12) {
            0..4 => drop(space.read(DATA + random.below(0x1800), &mut buf)),
            4..7 => drop(space.write(DATA + 0x100 + random.below(0x200), &buf)),
            7 | 8 => drop(user.compare_exchange(DATA + 0x40, 0, 1)),
            9 => drop(user.map(&anonymous(DATA + 0x10_0000, 0x1000, libc::PROT_READ))),
            10 => drop(user.xstate()),
            _ => drop(user.protect(DATA, 0x1000, libc::PROT_READ | libc::PROT_WRITE)),
        }
        assert!(begun.elapsed() < Duration::from_secs(2));
    }
}

/// A thread whose context `attack` writes over all the time, from outside. It is used in every way meanwhile.
fn under_attack(seconds: u64, seed: u64, attack: impl Fn(i32, &mut Random) + Send + Sync + 'static) {
    bounded(Duration::from_secs(seconds + 60), move || {
        let platform = Arc::new(SystrapPlatform::new().unwrap());
        let bystander = Bystander::new(&platform);
        // Held during an attack: a store that is under way holds the memory beyond the end of its process.
        let pid = parking_lot::Mutex::new(0);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = Random(seed);
                while !done.load(Ordering::Relaxed) {
                    let pid = pid.lock();
                    match *pid {
                        0 => std::thread::yield_now(),
                        pid => attack(pid, &mut random),
                    }
                    parking_lot::MutexGuard::unlock_fair(pid);
                }
            });
            let mut random = Random(seed ^ 0xffff);
            let end = Instant::now() + Duration::from_secs(seconds);
            while Instant::now() < end {
                let mut user = free_thread(&platform);
                *pid.lock() = user.space().host_pid();
                let kicks = Kicks::new(user.interrupter(), Duration::from_millis(2));
                for _ in 0..200 {
                    let begun = Instant::now();
                    let event = user.run();
                    assert!(begun.elapsed() < Duration::from_secs(2));
                    if matches!(event, Event::Lost) {
                        break;
                    }
                    use_thread(&mut *user, &mut random);
                    user.regs_mut().rip = CODE;
                }
                *pid.lock() = 0;
                drop(kicks);
            }
            done.store(true, Ordering::Relaxed);
        });
        bystander.finish();
    });
}

#[test]
fn a_context_of_random_words() {
    under_attack(4, 1, |pid, random| {
        for _ in 0..16 {
            let offset = match random.below(3) {
                0 => random.below(0x40),
                1 => random.below(0x100),
                _ => random.below(0x1000),
            };
            scribble(pid, context::WINDOW + offset * 8, &random.word().to_ne_bytes());
        }
    });
}

#[test]
fn a_state_of_every_value() {
    under_attack(4, 2, |pid, random| {
        let state = (random.below(9) as u32).to_ne_bytes();
        (0..random.below(30)).for_each(|_| scribble(pid, context::WINDOW, &state));
    });
}

#[test]
fn registers_and_frames_that_change_under_the_sentrys_eyes() {
    under_attack(4, 3, |pid, random| {
        let word = random.word().to_ne_bytes();
        let field = [context::field::FRAME, context::field::INFO, context::field::SIGNAL, context::field::KIND];
        scribble(pid, context::WINDOW + field[random.below(4) as usize] as u64, &word);
        // Frames are at the stack's upper end.
        (0..32).for_each(|_| scribble(pid, context::WINDOW + 0x6000 + random.below(0x400) * 8, &word));
        scribble(pid, context::WINDOW + context::field::FS_BASE as u64, &random.word().to_ne_bytes());
    });
}

/// Threads of one process, of which one floods the other's context with the fastest loop that there is.
#[test]
fn a_thread_that_floods_anothers_state() {
    for value in 0..7u8 {
        bounded(Duration::from_secs(60), move || {
            let platform = SystrapPlatform::new().unwrap();
            let mut user = free_thread(&platform);
            // 1: mov %eax,(%rdi); jmp 1b
            user.space().write(CODE + 0x200, &[0x89, 0x07, 0xeb, 0xfc]).unwrap();
            let seed = user.spawn_thread().unwrap();
            let done = Arc::new(AtomicBool::new(false));
            let over = done.clone();
            let flooder = std::thread::spawn(move || {
                let mut other = seed.attach().unwrap();
                let _kicks = Kicks::new(other.interrupter(), Duration::from_millis(5));
                while !over.load(Ordering::Relaxed) {
                    (other.regs_mut().rip, other.regs_mut().rdi) = (CODE + 0x200, context::WINDOW);
                    other.regs_mut().rax = u64::from(value);
                    if matches!(other.run(), Event::Lost) {
                        break;
                    }
                }
            });
            let kicks = Kicks::new(user.interrupter(), Duration::from_millis(2));
            let mut random = Random(5 + u64::from(value));
            let end = Instant::now() + Duration::from_millis(500);
            while Instant::now() < end {
                let begun = Instant::now();
                let event = user.run();
                assert!(begun.elapsed() < Duration::from_secs(1), "{value}");
                if matches!(event, Event::Lost) {
                    break;
                }
                use_thread(&mut *user, &mut random);
                user.regs_mut().rip = CODE;
            }
            drop(kicks);
            done.store(true, Ordering::Relaxed);
            flooder.join().unwrap();
        });
    }
}
