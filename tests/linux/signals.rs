//! Signals: handlers, masks, queues, interruption and restarting, stopping.

use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use libc::{c_int, c_void, siginfo_t};

use crate::common::*;

static COUNT: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: c_int) {
    COUNT.fetch_add(1, Ordering::SeqCst);
}

fn counted() -> u32 {
    COUNT.load(Ordering::SeqCst)
}

/// What the last handler with three arguments was told.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static PID: AtomicI32 = AtomicI32::new(0);
static VALUE: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a valid structure.
    unsafe {
        SIGNAL.store(signal, Ordering::SeqCst);
        CODE.store((*info).si_code, Ordering::SeqCst);
        PID.store((*info).si_pid(), Ordering::SeqCst);
        VALUE.store((*info).si_value().sival_ptr as usize as i32, Ordering::SeqCst);
    }
    COUNT.fetch_add(1, Ordering::SeqCst);
}

fn noted() -> (c_int, c_int, c_int) {
    (SIGNAL.load(Ordering::SeqCst), CODE.load(Ordering::SeqCst), PID.load(Ordering::SeqCst))
}

unsafe fn queue(pid: c_int, signal: c_int, value: usize) -> c_int {
    unsafe { libc::sigqueue(pid, signal, libc::sigval { sival_ptr: value as *mut c_void }) }
}

fn pending(signal: c_int) -> bool {
    // SAFETY: the set is valid.
    unsafe {
        let mut pending = set(&[]);
        ok(libc::sigpending(&mut pending));
        libc::sigismember(&pending, signal) == 1
    }
}

/// A thread that signals the calling thread as soon as it sleeps.
fn signal_when_asleep(signal: c_int) -> std::thread::JoinHandle<()> {
    // SAFETY: no memory is involved.
    let (pid, tid) = unsafe { (libc::getpid(), libc::gettid()) };
    std::thread::spawn(move || {
        block(&[signal]);
        let path = format!("/proc/{pid}/task/{tid}/stat");
        eventually(|| std::fs::read_to_string(&path).unwrap().contains(") S "));
        // SAFETY: no memory is involved.
        ok(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) });
    })
}

#[test]
fn handler_runs_before_kill_returns() {
    isolated(|| unsafe {
        handle(libc::SIGUSR1, count, 0);
        ok(libc::kill(libc::getpid(), libc::SIGUSR1));
        assert_eq!(counted(), 1);
        ok(libc::raise(libc::SIGUSR1));
        assert_eq!(counted(), 2);
    });
}

#[test]
fn sigaction_returns_the_old_action() {
    isolated(|| unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        action.sa_flags = libc::SA_NODEFER | libc::SA_RESTART;
        action.sa_mask = set(&[libc::SIGHUP]);
        ok(libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()));
        let mut old: libc::sigaction = std::mem::zeroed();
        ok(libc::sigaction(libc::SIGUSR1, ptr::null(), &mut old));
        assert_eq!(old.sa_sigaction, action.sa_sigaction);
        assert_eq!(old.sa_flags & 0x5000_0000, libc::SA_NODEFER | libc::SA_RESTART);
        assert_eq!(libc::sigismember(&old.sa_mask, libc::SIGHUP), 1);
        assert_eq!(libc::sigismember(&old.sa_mask, libc::SIGINT), 0);
    });
}

#[test]
fn sigaction_errors() {
    isolated(|| unsafe {
        let action: libc::sigaction = std::mem::zeroed();
        for signal in [0, 65, -1, libc::SIGKILL, libc::SIGSTOP] {
            let result = libc::syscall(libc::SYS_rt_sigaction, signal, &action, 0, 8);
            fails(result, libc::EINVAL);
        }
        ok(libc::syscall(libc::SYS_rt_sigaction, libc::SIGKILL, 0, 0, 8));
        fails(libc::syscall(libc::SYS_rt_sigaction, libc::SIGHUP, 0, 0, 4), libc::EINVAL);
        fails(libc::syscall(libc::SYS_rt_sigaction, libc::SIGHUP, 8, 0, 8), libc::EFAULT);
        fails(libc::syscall(libc::SYS_rt_sigprocmask, 5, &action, 0, 8), libc::EINVAL);
        fails(libc::syscall(libc::SYS_rt_sigprocmask, 0, 8, 0, 8), libc::EFAULT);
    });
}

#[test]
fn kill_errors() {
    isolated(|| unsafe {
        fails(libc::kill(libc::getpid(), 65), libc::EINVAL);
        fails(libc::kill(0x3f_ffff, libc::SIGTERM), libc::ESRCH);
        fails(libc::kill(-0x3f_ffff, 0), libc::ESRCH);
        fails(libc::syscall(libc::SYS_tgkill, libc::getpid(), 0x3f_ffff, 0), libc::ESRCH);
        fails(libc::syscall(libc::SYS_tgkill, 0, libc::gettid(), 0), libc::EINVAL);
        fails(libc::syscall(libc::SYS_tkill, -1, 0), libc::EINVAL);
        ok(libc::kill(libc::getpid(), 0));
    });
}

#[test]
fn kill_of_another_users_process_gives_eperm() {
    isolated(|| unsafe {
        let root = libc::getpid();
        as_user(1234, || {
            fails(libc::kill(root, 0), libc::EPERM);
            fails(libc::kill(root, libc::SIGTERM), libc::EPERM);
            ok(libc::kill(libc::getpid(), 0));
        });
    });
}

#[test]
fn siginfo_of_kill_names_the_sender() {
    isolated(|| unsafe {
        handle_info(libc::SIGUSR1, note, 0);
        let parent = libc::getpid();
        let pid = child(|| libc::kill(parent, libc::SIGUSR1));
        wait(pid);
        assert_eq!(noted(), (libc::SIGUSR1, libc::SI_USER, pid));
    });
}

#[test]
fn siginfo_of_tgkill_and_sigqueue() {
    isolated(|| unsafe {
        handle_info(libc::SIGUSR1, note, 0);
        let pid = libc::getpid();
        ok(libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGUSR1));
        assert_eq!(noted(), (libc::SIGUSR1, libc::SI_TKILL, pid));
        ok(queue(pid, libc::SIGUSR1, 77));
        assert_eq!(noted(), (libc::SIGUSR1, libc::SI_QUEUE, pid));
        assert_eq!(VALUE.load(Ordering::SeqCst), 77);
    });
}

#[test]
fn blocked_signal_waits_and_comes_once() {
    isolated(|| unsafe {
        handle(libc::SIGUSR1, count, 0);
        block(&[libc::SIGUSR1]);
        for _ in 0..3 {
            libc::raise(libc::SIGUSR1);
        }
        assert!(pending(libc::SIGUSR1));
        assert_eq!(counted(), 0);
        unblock(&[libc::SIGUSR1]);
        assert_eq!(counted(), 1);
        assert!(!pending(libc::SIGUSR1));
    });
}

#[test]
fn kill_and_stop_cannot_be_blocked() {
    isolated(|| unsafe {
        block(&[libc::SIGKILL, libc::SIGSTOP, libc::SIGUSR1]);
        let mut mask = set(&[]);
        ok(libc::sigprocmask(libc::SIG_BLOCK, ptr::null(), &mut mask));
        assert_eq!(libc::sigismember(&mask, libc::SIGKILL), 0);
        assert_eq!(libc::sigismember(&mask, libc::SIGSTOP), 0);
        assert_eq!(libc::sigismember(&mask, libc::SIGUSR1), 1);
    });
}

#[test]
fn ignoring_discards_what_is_pending() {
    isolated(|| unsafe {
        block(&[libc::SIGUSR1]);
        libc::raise(libc::SIGUSR1);
        libc::signal(libc::SIGUSR1, libc::SIG_IGN);
        assert!(!pending(libc::SIGUSR1));
    });
}

#[test]
fn realtime_signals_queue_in_order_with_values() {
    isolated(|| unsafe {
        let (low, high) = (libc::SIGRTMIN(), libc::SIGRTMIN() + 1);
        block(&[low, high]);
        for (signal, value) in [(high, 1), (low, 2), (high, 3), (low, 4)] {
            ok(queue(libc::getpid(), signal, value));
        }
        let mut info: siginfo_t = std::mem::zeroed();
        let mut order = Vec::new();
        for _ in 0..4 {
            order.push((ok(libc::sigwaitinfo(&set(&[low, high]), &mut info)), info.si_value().sival_ptr as usize));
        }
        assert_eq!(order, [(low, 2), (low, 4), (high, 1), (high, 3)]);
    });
}

#[test]
fn queue_has_a_limit() {
    isolated(|| unsafe {
        let limit = libc::rlimit { rlim_cur: 8, rlim_max: 8 };
        as_user(54_321, || {
            ok(libc::setrlimit(libc::RLIMIT_SIGPENDING, &limit));
            block(&[libc::SIGRTMIN()]);
            let pid = libc::getpid();
            let queued = (0..20).take_while(|_| queue(pid, libc::SIGRTMIN(), 0) == 0).count();
            assert_eq!(queued, 8);
            fails(queue(pid, libc::SIGRTMIN(), 0), libc::EAGAIN);
            ok(libc::kill(pid, libc::SIGRTMIN()));
        });
    });
}

#[test]
fn own_signal_is_blocked_in_its_handler() {
    isolated(|| unsafe {
        static DEPTH: AtomicU32 = AtomicU32::new(0);
        static DEEPEST: AtomicU32 = AtomicU32::new(0);
        extern "C" fn nest(signal: c_int) {
            let depth = DEPTH.fetch_add(1, Ordering::SeqCst) + 1;
            DEEPEST.fetch_max(depth, Ordering::SeqCst);
            if COUNT.fetch_add(1, Ordering::SeqCst) < 2 {
                // SAFETY: a signal with a handler.
                unsafe { libc::raise(signal) };
            }
            DEPTH.fetch_sub(1, Ordering::SeqCst);
        }
        handle(libc::SIGUSR1, nest, 0);
        libc::raise(libc::SIGUSR1);
        assert_eq!((counted(), DEEPEST.load(Ordering::SeqCst)), (3, 1));
        COUNT.store(0, Ordering::SeqCst);
        handle(libc::SIGUSR1, nest, libc::SA_NODEFER);
        libc::raise(libc::SIGUSR1);
        assert_eq!((counted(), DEEPEST.load(Ordering::SeqCst)), (3, 3));
    });
}

#[test]
fn mask_of_the_action_holds_during_the_handler() {
    isolated(|| unsafe {
        static SEEN: AtomicU32 = AtomicU32::new(99);
        extern "C" fn outer(_: c_int) {
            // SAFETY: a signal with a handler.
            unsafe { libc::raise(libc::SIGUSR2) };
            SEEN.store(COUNT.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = outer as *const () as usize;
        action.sa_mask = set(&[libc::SIGUSR2]);
        ok(libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()));
        handle(libc::SIGUSR2, count, 0);
        libc::raise(libc::SIGUSR1);
        assert_eq!(SEEN.load(Ordering::SeqCst), 0);
        assert_eq!(counted(), 1);
        let mut mask = set(&[]);
        libc::sigprocmask(libc::SIG_BLOCK, ptr::null(), &mut mask);
        assert_eq!(libc::sigismember(&mask, libc::SIGUSR2), 0);
    });
}

#[test]
fn resethand_runs_once() {
    isolated(|| unsafe {
        let pid = child(|| {
            handle(libc::SIGUSR1, count, libc::SA_RESETHAND);
            libc::raise(libc::SIGUSR1);
            assert_eq!(counted(), 1);
            libc::raise(libc::SIGUSR1);
            0
        });
        assert_eq!(wait(pid), Status::Killed(libc::SIGUSR1));
    });
}

#[test]
fn handlers_nest_across_signals() {
    isolated(|| unsafe {
        static TRACE: AtomicU32 = AtomicU32::new(0);
        extern "C" fn outer(_: c_int) {
            TRACE.fetch_add(1, Ordering::SeqCst);
            // SAFETY: a signal with a handler.
            unsafe { libc::raise(libc::SIGUSR2) };
            TRACE.fetch_add(100, Ordering::SeqCst);
        }
        extern "C" fn inner(_: c_int) {
            TRACE.store(TRACE.load(Ordering::SeqCst) * 10, Ordering::SeqCst);
        }
        handle(libc::SIGUSR1, outer, 0);
        handle(libc::SIGUSR2, inner, 0);
        libc::raise(libc::SIGUSR1);
        assert_eq!(TRACE.load(Ordering::SeqCst), 110);
    });
}

static STACK_POINTER: AtomicUsize = AtomicUsize::new(0);
static STACK_FLAGS: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note_stack(_: c_int) {
    let here = 0;
    STACK_POINTER.store(&raw const here as usize, Ordering::SeqCst);
    // SAFETY: an all-zero stack is valid, and the kernel fills it.
    unsafe {
        let mut stack: libc::stack_t = std::mem::zeroed();
        libc::sigaltstack(ptr::null(), &mut stack);
        STACK_FLAGS.store(stack.ss_flags, Ordering::SeqCst);
        if stack.ss_flags == libc::SS_ONSTACK {
            fails(libc::sigaltstack(&stack, ptr::null_mut()), libc::EPERM);
        }
    }
}

#[test]
fn alternate_stack_is_used_when_asked_for() {
    isolated(|| unsafe {
        let size = 64 * 1024;
        let memory = anonymous(size, libc::MAP_PRIVATE);
        let stack = libc::stack_t { ss_sp: memory.cast(), ss_flags: 0, ss_size: size };
        ok(libc::sigaltstack(&stack, ptr::null_mut()));
        let inside = || {
            let at = STACK_POINTER.load(Ordering::SeqCst);
            (memory as usize..memory as usize + size).contains(&at)
        };
        handle(libc::SIGUSR1, note_stack, libc::SA_ONSTACK);
        libc::raise(libc::SIGUSR1);
        assert!(inside());
        assert_eq!(STACK_FLAGS.load(Ordering::SeqCst), libc::SS_ONSTACK);
        handle(libc::SIGUSR1, note_stack, 0);
        libc::raise(libc::SIGUSR1);
        assert!(!inside());
        assert_eq!(STACK_FLAGS.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn alternate_stack_errors() {
    isolated(|| unsafe {
        let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 1024 };
        fails(libc::sigaltstack(&stack, ptr::null_mut()), libc::ENOMEM);
        stack.ss_size = 65536;
        stack.ss_flags = 0x40;
        fails(libc::sigaltstack(&stack, ptr::null_mut()), libc::EINVAL);
        let mut old: libc::stack_t = std::mem::zeroed();
        ok(libc::sigaltstack(ptr::null(), &mut old));
        assert_eq!(old.ss_flags, libc::SS_DISABLE);
    });
}

#[test]
fn read_is_interrupted_without_restart() {
    isolated(|| {
        handle(libc::SIGUSR1, count, 0);
        let (reader, _writer) = pipe();
        let thread = signal_when_asleep(libc::SIGUSR1);
        fails(read(reader, &mut [0]), libc::EINTR);
        thread.join().unwrap();
        assert_eq!(counted(), 1);
    });
}

#[test]
fn read_restarts_with_sa_restart() {
    isolated(|| {
        static WRITER: AtomicI32 = AtomicI32::new(-1);
        extern "C" fn feed(_: c_int) {
            write(WRITER.load(Ordering::SeqCst), b"fed");
        }
        handle(libc::SIGUSR1, feed, libc::SA_RESTART);
        let (reader, writer) = pipe();
        WRITER.store(writer, Ordering::SeqCst);
        let thread = signal_when_asleep(libc::SIGUSR1);
        assert_eq!(read_some(reader, 9), b"fed");
        thread.join().unwrap();
    });
}

#[test]
fn wait_restarts_with_sa_restart() {
    isolated(|| unsafe {
        static WRITER: AtomicI32 = AtomicI32::new(-1);
        extern "C" fn release(_: c_int) {
            write(WRITER.load(Ordering::SeqCst), b"x");
        }
        let (reader, writer) = pipe();
        WRITER.store(writer, Ordering::SeqCst);
        let pid = child(|| read(reader, &mut [0]) as c_int);
        handle(libc::SIGUSR1, release, libc::SA_RESTART);
        let thread = signal_when_asleep(libc::SIGUSR1);
        assert_eq!(libc::waitpid(pid, ptr::null_mut(), 0), pid);
        thread.join().unwrap();
    });
}

#[test]
fn wait_is_interrupted_without_restart() {
    isolated(|| unsafe {
        let pid = child(|| libc::pause());
        handle(libc::SIGUSR1, count, 0);
        let thread = signal_when_asleep(libc::SIGUSR1);
        fails(libc::waitpid(pid, ptr::null_mut(), 0), libc::EINTR);
        thread.join().unwrap();
        libc::kill(pid, libc::SIGKILL);
    });
}

#[test]
fn poll_select_and_epoll_never_restart() {
    isolated(|| unsafe {
        handle(libc::SIGUSR1, count, libc::SA_RESTART);
        let thread = signal_when_asleep(libc::SIGUSR1);
        fails(libc::poll(ptr::null_mut(), 0, 60_000), libc::EINTR);
        thread.join().unwrap();
        let thread = signal_when_asleep(libc::SIGUSR1);
        let none = ptr::null_mut();
        fails(libc::select(0, none, none, none, ptr::null_mut()), libc::EINTR);
        thread.join().unwrap();
        let epoll = ok(libc::epoll_create1(0));
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let thread = signal_when_asleep(libc::SIGUSR1);
        fails(libc::epoll_wait(epoll, &mut event, 1, -1), libc::EINTR);
        thread.join().unwrap();
    });
}

#[test]
fn nanosleep_gives_the_remainder() {
    isolated(|| unsafe {
        handle(libc::SIGUSR1, count, libc::SA_RESTART);
        let thread = signal_when_asleep(libc::SIGUSR1);
        let mut left: libc::timespec = std::mem::zeroed();
        fails(libc::nanosleep(&timespec(Duration::from_secs(100)), &mut left), libc::EINTR);
        thread.join().unwrap();
        assert!((30..=100).contains(&left.tv_sec), "{}", left.tv_sec);
    });
}

#[test]
fn ignored_signal_does_not_interrupt() {
    isolated(|| {
        // SAFETY: no memory is involved.
        unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
        let (reader, writer) = pipe();
        let signaller = signal_when_asleep(libc::SIGUSR1);
        let writing = std::thread::spawn(move || {
            signaller.join().unwrap();
            write(writer, b"x");
        });
        assert_eq!(read_some(reader, 2), b"x");
        writing.join().unwrap();
    });
}

#[test]
fn stop_and_continue_do_not_interrupt_a_read() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        let pid = child(|| read(reader, &mut [0; 4]) as c_int);
        until_asleep(pid);
        ok(libc::kill(pid, libc::SIGSTOP));
        assert_eq!(wait_for(pid, libc::WUNTRACED), Status::Stopped(libc::SIGSTOP));
        assert_eq!(state(pid), Some('T'));
        ok(libc::kill(pid, libc::SIGCONT));
        assert_eq!(wait_for(pid, libc::WCONTINUED), Status::Continued);
        write(writer, b"ok");
        assert_eq!(wait(pid), Status::Exited(2));
    });
}

#[test]
fn stopped_process_dies_by_sigkill_only() {
    isolated(|| unsafe {
        let pid = child(|| libc::pause());
        libc::kill(pid, libc::SIGSTOP);
        wait_for(pid, libc::WUNTRACED);
        libc::kill(pid, libc::SIGTERM);
        assert_eq!(libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG), 0);
        libc::kill(pid, libc::SIGCONT);
        assert_eq!(wait(pid), Status::Killed(libc::SIGTERM));
    });
}

#[test]
fn continuing_discards_pending_stops_and_runs_a_handler() {
    isolated(|| unsafe {
        block(&[libc::SIGTSTP, libc::SIGCONT]);
        libc::raise(libc::SIGTSTP);
        assert!(pending(libc::SIGTSTP));
        handle(libc::SIGCONT, count, 0);
        libc::raise(libc::SIGCONT);
        assert!(!pending(libc::SIGTSTP));
        unblock(&[libc::SIGTSTP, libc::SIGCONT]);
        assert_eq!(counted(), 1);
    });
}

#[test]
fn sigchld_tells_of_exit_kill_and_stop() {
    isolated(|| unsafe {
        handle_info(libc::SIGCHLD, note, 0);
        block(&[libc::SIGCHLD]);
        let mut info: siginfo_t = std::mem::zeroed();
        let pid = child(|| 5);
        assert_eq!(ok(libc::sigwaitinfo(&set(&[libc::SIGCHLD]), &mut info)), libc::SIGCHLD);
        assert_eq!((info.si_pid(), info.si_code, info.si_status()), (pid, libc::CLD_EXITED, 5));
        wait(pid);
        let pid = child(|| libc::pause());
        libc::kill(pid, libc::SIGSTOP);
        ok(libc::sigwaitinfo(&set(&[libc::SIGCHLD]), &mut info));
        assert_eq!((info.si_pid(), info.si_code, info.si_status()), (pid, libc::CLD_STOPPED, libc::SIGSTOP));
        libc::kill(pid, libc::SIGKILL);
        ok(libc::sigwaitinfo(&set(&[libc::SIGCHLD]), &mut info));
        assert_eq!((info.si_pid(), info.si_code, info.si_status()), (pid, libc::CLD_KILLED, libc::SIGKILL));
    });
}

#[test]
fn nocldstop_keeps_stops_quiet() {
    isolated(|| unsafe {
        handle(libc::SIGCHLD, count, libc::SA_NOCLDSTOP);
        let pid = child(|| libc::pause());
        libc::kill(pid, libc::SIGSTOP);
        wait_for(pid, libc::WUNTRACED);
        libc::kill(pid, libc::SIGCONT);
        wait_for(pid, libc::WCONTINUED);
        assert_eq!(counted(), 0);
        libc::kill(pid, libc::SIGKILL);
        wait(pid);
        assert_eq!(counted(), 1);
    });
}

#[test]
fn nocldwait_signals_and_leaves_nothing_to_wait_for() {
    isolated(|| unsafe {
        handle(libc::SIGCHLD, count, libc::SA_NOCLDWAIT | libc::SA_RESTART);
        let pid = child(|| 0);
        fails(libc::waitpid(pid, ptr::null_mut(), 0), libc::ECHILD);
        eventually(|| counted() == 1);
    });
}

#[test]
fn sigtimedwait_times_out_with_eagain() {
    isolated(|| unsafe {
        block(&[libc::SIGUSR1]);
        let wanted = set(&[libc::SIGUSR1]);
        fails(libc::sigtimedwait(&wanted, ptr::null_mut(), &timespec(Duration::from_millis(5))), libc::EAGAIN);
        fails(libc::sigtimedwait(&wanted, ptr::null_mut(), &timespec(Duration::ZERO)), libc::EAGAIN);
        let bad = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
        fails(libc::sigtimedwait(&wanted, ptr::null_mut(), &bad), libc::EINVAL);
        libc::raise(libc::SIGUSR1);
        let zero = timespec(Duration::ZERO);
        assert_eq!(libc::sigtimedwait(&wanted, ptr::null_mut(), &zero), libc::SIGUSR1);
    });
}

#[test]
fn sigtimedwait_is_interrupted_by_another_signal() {
    isolated(|| unsafe {
        block(&[libc::SIGUSR1]);
        handle(libc::SIGUSR2, count, libc::SA_RESTART);
        let thread = signal_when_asleep(libc::SIGUSR2);
        fails(libc::sigwaitinfo(&set(&[libc::SIGUSR1]), ptr::null_mut()), libc::EINTR);
        thread.join().unwrap();
    });
}

#[test]
fn sigsuspend_waits_with_another_mask_and_restores() {
    isolated(|| unsafe {
        handle(libc::SIGUSR1, count, 0);
        block(&[libc::SIGUSR1]);
        libc::raise(libc::SIGUSR1);
        fails(libc::sigsuspend(&set(&[])), libc::EINTR);
        assert_eq!(counted(), 1);
        libc::raise(libc::SIGUSR1);
        assert!(pending(libc::SIGUSR1));
    });
}

#[test]
fn ppoll_and_pselect_swap_the_mask() {
    isolated(|| unsafe {
        handle(libc::SIGUSR1, count, 0);
        block(&[libc::SIGUSR1]);
        libc::raise(libc::SIGUSR1);
        fails(libc::ppoll(ptr::null_mut(), 0, ptr::null(), &set(&[])), libc::EINTR);
        assert_eq!(counted(), 1);
        libc::raise(libc::SIGUSR1);
        let none = ptr::null_mut();
        fails(libc::pselect(0, none, none, none, ptr::null(), &set(&[])), libc::EINTR);
        assert_eq!(counted(), 2);
        libc::raise(libc::SIGUSR1);
        let zero = timespec(Duration::ZERO);
        assert_eq!(libc::ppoll(ptr::null_mut(), 0, &zero, ptr::null()), 0);
        assert!(pending(libc::SIGUSR1));
    });
}

#[test]
fn pause_returns_after_a_handler() {
    isolated(|| unsafe {
        handle(libc::SIGUSR1, count, libc::SA_RESTART);
        let thread = signal_when_asleep(libc::SIGUSR1);
        fails(libc::pause(), libc::EINTR);
        thread.join().unwrap();
    });
}

#[test]
fn default_actions() {
    isolated(|| unsafe {
        for signal in [libc::SIGHUP, libc::SIGPIPE, libc::SIGALRM, libc::SIGUSR1, libc::SIGRTMIN(), libc::SIGIO] {
            assert_eq!(wait(child(|| libc::raise(signal))), Status::Killed(signal));
        }
        for signal in [libc::SIGCHLD, libc::SIGURG, libc::SIGWINCH, libc::SIGCONT] {
            assert_eq!(wait(child(|| libc::raise(signal))), Status::Exited(0));
        }
        for signal in [libc::SIGQUIT, libc::SIGABRT, libc::SIGSEGV, libc::SIGSYS, libc::SIGXCPU] {
            assert_eq!(wait(child(|| libc::raise(signal))), Status::Killed(signal));
        }
    });
}

#[test]
fn tgkill_reaches_the_thread_and_kill_any() {
    isolated(|| unsafe {
        static HANDLED_BY: AtomicI32 = AtomicI32::new(0);
        extern "C" fn by(_: c_int) {
            // SAFETY: no memory is involved.
            HANDLED_BY.store(unsafe { libc::gettid() }, Ordering::SeqCst);
        }
        handle(libc::SIGUSR1, by, 0);
        static TID: AtomicI32 = AtomicI32::new(0);
        let thread = std::thread::spawn(|| {
            TID.store(libc::gettid(), Ordering::SeqCst);
            while HANDLED_BY.load(Ordering::SeqCst) == 0 {
                libc::sched_yield();
            }
        });
        eventually(|| TID.load(Ordering::SeqCst) != 0);
        let tid = TID.load(Ordering::SeqCst);
        ok(libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGUSR1));
        thread.join().unwrap();
        assert_eq!(HANDLED_BY.load(Ordering::SeqCst), tid);
    });
}

#[test]
fn process_signal_goes_to_a_thread_that_does_not_block_it() {
    isolated(|| unsafe {
        handle(libc::SIGUSR1, count, 0);
        let thread = std::thread::spawn(|| {
            while counted() == 0 {
                libc::sched_yield();
            }
        });
        block(&[libc::SIGUSR1]);
        ok(libc::kill(libc::getpid(), libc::SIGUSR1));
        thread.join().unwrap();
        assert_eq!(counted(), 1);
    });
}

#[test]
fn thread_inherits_the_mask_but_not_pending() {
    isolated(|| unsafe {
        block(&[libc::SIGUSR1]);
        ok(libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGUSR1));
        std::thread::spawn(|| {
            let mut mask = set(&[]);
            libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &mut mask);
            assert_eq!(libc::sigismember(&mask, libc::SIGUSR1), 1);
            assert!(!pending(libc::SIGUSR1));
        })
        .join()
        .unwrap();
        in_child(|| assert!(!pending(libc::SIGUSR1)));
        assert!(pending(libc::SIGUSR1));
    });
}

#[test]
fn context_can_change_where_the_program_goes_on() {
    isolated(|| unsafe {
        extern "C" fn skip(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
            // SAFETY: the kernel passes a valid context.
            let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
            registers[libc::REG_RIP as usize] += 2;
            registers[libc::REG_RAX as usize] = 1234;
        }
        handle_info(libc::SIGILL, skip, 0);
        let value: u64;
        std::arch::asm!("ud2", inlateout("rax") 0u64 => value);
        assert_eq!(value, 1234);
    });
}

#[test]
fn mask_in_the_context_is_restored() {
    isolated(|| unsafe {
        extern "C" fn change(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
            // SAFETY: the kernel passes a valid context.
            unsafe { libc::sigaddset(&mut (*context.cast::<libc::ucontext_t>()).uc_sigmask, libc::SIGHUP) };
        }
        handle_info(libc::SIGUSR1, change, 0);
        libc::raise(libc::SIGUSR1);
        let mut mask = set(&[]);
        libc::sigprocmask(libc::SIG_BLOCK, ptr::null(), &mut mask);
        assert_eq!(libc::sigismember(&mask, libc::SIGHUP), 1);
    });
}

#[test]
fn errno_and_registers_survive_a_storm_of_signals() {
    isolated(|| unsafe {
        handle(libc::SIGALRM, count, libc::SA_RESTART);
        let every = libc::timeval { tv_sec: 0, tv_usec: 200 };
        ok(libc::setitimer(
            libc::ITIMER_REAL,
            &libc::itimerval { it_interval: every, it_value: every },
            ptr::null_mut(),
        ));
        let (mut hash, mut rounds) = (0u64, 0u64);
        while counted() < 200 {
            let mut check = 0u64;
            for n in 0..10_000u64 {
                check = check.rotate_left(5) ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            }
            assert!(rounds == 0 || hash == check);
            hash = check;
            rounds += 1;
        }
    });
}

#[test]
fn handler_of_one_thread_interrupts_another_only_when_sent_there() {
    isolated(|| unsafe {
        static SEEN: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
        extern "C" fn mark(_: c_int) {
            // SAFETY: no memory is involved.
            SEEN.store(unsafe { libc::pthread_self() } as *mut c_void, Ordering::SeqCst);
        }
        handle(libc::SIGUSR1, mark, 0);
        let own = libc::pthread_self();
        std::thread::spawn(move || assert_eq!(libc::pthread_kill(own, libc::SIGUSR1), 0)).join().unwrap();
        assert_eq!(SEEN.load(Ordering::SeqCst) as libc::pthread_t, own);
    });
}
