//! `seccomp(2)`: filters of a program's own.

use std::fs;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc;

use libc::{c_int, c_long, c_ulong, sock_filter, sock_fprog};

use crate::common::*;

const LD_W_ABS: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JEQ_K: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RET_K: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn insn(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// A program that answers `call` with `value` and allows the others.
fn answers(call: c_long, value: u32) -> [sock_filter; 4] {
    [
        insn(LD_W_ABS, 0, 0, 0),
        insn(JEQ_K, 0, 1, call as u32),
        insn(RET_K, 0, 0, value),
        insn(RET_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

unsafe fn install(filter: &[sock_filter], flags: c_ulong) -> c_long {
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) }
}

unsafe fn set_no_new_privs() {
    ok(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) });
}

unsafe fn getppid() -> c_long {
    unsafe { libc::syscall(libc::SYS_getppid) }
}

fn status(field: &str) -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
}

#[test]
fn errno_and_inheritance() {
    isolated(|| unsafe {
        // Whatever runs the tests may have filters of its own.
        let before: u32 = status("Seccomp_filters").parse().unwrap();
        ok(install(&answers(libc::SYS_getppid, libc::SECCOMP_RET_ERRNO | 77), 0));
        fails(getppid(), 77);
        assert_eq!((status("Seccomp"), status("Seccomp_filters")), ("2".into(), (before + 1).to_string()));
        assert_eq!(ok(libc::prctl(libc::PR_GET_SECCOMP)), 2);
        in_child(|| fails(getppid(), 77));
        let thread = std::thread::spawn(|| fails(getppid(), 77));
        thread.join().unwrap();
        // A success without the call is an answer like any, and the later one.
        ok(install(&answers(libc::SYS_getppid, libc::SECCOMP_RET_ERRNO), 0));
        assert_eq!(getppid(), 0);
    });
}

#[test]
fn the_last_of_equal_actions_tells_the_data() {
    isolated(|| unsafe {
        ok(install(&answers(libc::SYS_getppid, libc::SECCOMP_RET_ERRNO | 5), 0));
        ok(install(&answers(libc::SYS_getppid, libc::SECCOMP_RET_ERRNO | 6), 0));
        fails(getppid(), 6);
        ok(install(&answers(libc::SYS_getppid, libc::SECCOMP_RET_TRACE), 0));
        fails(getppid(), 6);
        ok(install(&answers(libc::SYS_getuid, libc::SECCOMP_RET_TRACE), 0));
        fails(libc::syscall(libc::SYS_getuid), libc::ENOSYS);
        ok(install(&answers(libc::SYS_getgid, libc::SECCOMP_RET_LOG), 0));
        ok(libc::syscall(libc::SYS_getgid));
        ok(install(&answers(libc::SYS_gettid, libc::SECCOMP_RET_ERRNO | 0xffff), 0));
        fails(libc::syscall(libc::SYS_gettid), 4095);
    });
}

#[test]
fn filters_are_kept_over_exec() {
    isolated(|| unsafe {
        ok(install(&answers(libc::SYS_getcwd, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32), 0));
        let output =
            std::process::Command::new("/bin/sh").args(["-c", "cd /; grep ^Seccomp: /proc/self/status"]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        assert_eq!(text.trim(), "Seccomp:\t2");
    });
}

#[test]
fn arguments_are_seen() {
    isolated(|| unsafe {
        let filter = [
            insn(LD_W_ABS, 0, 0, 4),
            insn(JEQ_K, 0, 4, 0xc000_003e),
            insn(LD_W_ABS, 0, 0, 0),
            insn(JEQ_K, 0, 2, libc::SYS_getpgid as u32),
            insn(LD_W_ABS, 0, 0, 16 + 4), // the upper half of the first argument
            insn(JEQ_K, 1, 0, 7),
            insn(RET_K, 0, 0, libc::SECCOMP_RET_ALLOW),
            insn(RET_K, 0, 0, libc::SECCOMP_RET_ERRNO | 9),
        ];
        ok(install(&filter, 0));
        ok(libc::syscall(libc::SYS_getpgid, 0u64));
        ok(libc::syscall(libc::SYS_getpgid, 6u64 << 32));
        fails(libc::syscall(libc::SYS_getpgid, 7u64 << 32), 9);
    });
}

static SEEN: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

extern "C" fn on_sigsys(_: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    /// The part of `siginfo_t` that SIGSYS has: `sigaction(2)`.
    #[repr(C)]
    struct Sys {
        signo: c_int,
        errno: c_int,
        code: c_int,
        pad: c_int,
        call_addr: u64,
        syscall: c_int,
        arch: u32,
    }
    // SAFETY: the kernel's own structures.
    unsafe {
        let sys = &*info.cast::<Sys>();
        let context = &mut *context.cast::<libc::ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        let values = [
            sys.errno as u64,
            sys.code as u64,
            sys.syscall as u64,
            u64::from(sys.arch),
            u64::from(rip == sys.call_addr && registers[libc::REG_RAX as usize] == libc::SYS_getppid),
        ];
        for (place, value) in SEEN.iter().zip(values) {
            place.store(value, Ordering::SeqCst);
        }
        registers[libc::REG_RAX as usize] = 4321;
    }
}

#[test]
fn trap_raises_sigsys_with_the_call() {
    isolated(|| unsafe {
        handle_info(libc::SIGSYS, on_sigsys, 0);
        ok(install(&answers(libc::SYS_getppid, libc::SECCOMP_RET_TRAP | 55), 0));
        assert_eq!(getppid(), 4321, "the handler sets the result");
        let seen = SEEN.each_ref().map(|place| place.load(Ordering::SeqCst));
        assert_eq!(seen, [55, 1, libc::SYS_getppid as u64, 0xc000_003e, 1]);
    });
}

#[test]
fn trap_that_is_blocked_kills() {
    isolated(|| unsafe {
        let pid = child(|| {
            block(&[libc::SIGSYS]);
            ok(install(&answers(libc::SYS_getppid, libc::SECCOMP_RET_TRAP), 0));
            getppid();
            0
        });
        assert_eq!(wait(pid), Status::Killed(libc::SIGSYS));
    });
}

#[test]
fn kill_process_kills_all_threads() {
    isolated(|| unsafe {
        let pid = child(|| {
            std::thread::spawn(|| {
                ok(install(&answers(libc::SYS_getppid, libc::SECCOMP_RET_KILL_PROCESS), 0));
                getppid();
            });
            loop {
                libc::pause();
            }
        });
        assert_eq!(wait(pid), Status::Killed(libc::SIGSYS));
    });
}

#[test]
fn kill_thread_kills_one() {
    isolated(|| unsafe {
        let pid = child(|| {
            let (begun, started) = mpsc::channel();
            let id = std::thread::spawn(move || {
                let _ = begun.send(libc::syscall(libc::SYS_gettid));
                ok(install(&answers(libc::SYS_getppid, libc::SECCOMP_RET_KILL_THREAD), 0));
                getppid();
            });
            std::mem::forget(id);
            let tid = started.recv().unwrap();
            eventually(|| libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, 0) == -1);
            7
        });
        assert_eq!(wait(pid), Status::Exited(7));
        // The only thread: the process.
        let pid = child(|| {
            ok(install(&answers(libc::SYS_getppid, libc::SECCOMP_RET_KILL_THREAD), 0));
            getppid();
            0
        });
        assert_eq!(wait(pid), Status::Killed(libc::SIGSYS));
    });
}

#[test]
fn exit_can_be_denied() {
    isolated(|| unsafe {
        ok(install(&answers(libc::SYS_exit, libc::SECCOMP_RET_ERRNO | 3), 0));
        fails(libc::syscall(libc::SYS_exit, 0), 3);
    });
}

#[test]
fn strict_mode_leaves_four_calls() {
    isolated(|| unsafe {
        let filtered = ok(libc::prctl(libc::PR_GET_SECCOMP)) != 0;
        let (reader, writer) = pipe();
        let pid = child(|| {
            let set = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_STRICT, 0, 0);
            if set != 0 {
                return 9; // a filter is in force already
            }
            libc::syscall(libc::SYS_write, writer, b"x".as_ptr(), 1);
            libc::syscall(libc::SYS_exit, 5);
            0
        });
        assert_eq!(wait(pid), Status::Exited(if filtered { 9 } else { 5 }));
        if !filtered {
            assert_eq!(read_some(reader, 8), b"x");
            let pid = child(|| {
                ok(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT));
                getppid();
                0
            });
            assert_eq!(wait(pid), Status::Killed(libc::SIGKILL));
        }
    });
}

#[test]
fn installing_needs_a_right() {
    isolated(|| unsafe {
        as_user(1000, || {
            let filter = answers(libc::SYS_getppid, libc::SECCOMP_RET_ERRNO | 4);
            fails(install(&filter, 0), libc::EACCES);
            fails(install(&[], 0), libc::EINVAL);
            set_no_new_privs();
            ok(install(&filter, 0));
            fails(getppid(), 4);
        });
    });
}

#[test]
fn bad_programs_and_operations_are_refused() {
    isolated(|| unsafe {
        let seccomp = |operation: u32, flags: c_ulong, args: *const libc::c_void| {
            libc::syscall(libc::SYS_seccomp, operation, flags, args)
        };
        let null = std::ptr::null();
        fails(seccomp(77, 0, null), libc::EINVAL);
        fails(seccomp(libc::SECCOMP_SET_MODE_STRICT, 1, null), libc::EINVAL);
        fails(seccomp(libc::SECCOMP_SET_MODE_FILTER, 0, null), libc::EFAULT);
        fails(seccomp(libc::SECCOMP_SET_MODE_FILTER, 1 << 20, null), libc::EINVAL);
        let wild = sock_fprog { len: 1, filter: 8 as *mut _ };
        fails(seccomp(libc::SECCOMP_SET_MODE_FILTER, 0, (&raw const wild).cast()), libc::EFAULT);
        let long = vec![insn(RET_K, 0, 0, libc::SECCOMP_RET_ALLOW); 4097];
        fails(install(&long, 0), libc::EINVAL);
        fails(install(&[insn(LD_W_ABS, 0, 0, 64), insn(RET_K, 0, 0, 0)], 0), libc::EINVAL);
        fails(install(&[insn(JEQ_K, 9, 0, 0), insn(RET_K, 0, 0, 0)], 0), libc::EINVAL);
        fails(install(&[insn(LD_W_ABS, 0, 0, 0)], 0), libc::EINVAL);
        // The extensions of socket filters are none of seccomp's.
        fails(install(&[insn(LD_W_ABS, 0, 0, 0xffff_f000), insn(RET_K, 0, 0, 0)], 0), libc::EINVAL);
        for action in [libc::SECCOMP_RET_KILL_PROCESS, libc::SECCOMP_RET_TRAP, libc::SECCOMP_RET_LOG] {
            ok(seccomp(libc::SECCOMP_GET_ACTION_AVAIL, 0, (&raw const action).cast()));
        }
        let unknown = 0x1234_0000u32;
        fails(seccomp(libc::SECCOMP_GET_ACTION_AVAIL, 0, (&raw const unknown).cast()), libc::EOPNOTSUPP);
        fails(libc::prctl(libc::PR_SET_SECCOMP, 7), libc::EINVAL);
    });
}

#[test]
fn filters_are_limited_in_total() {
    isolated(|| unsafe {
        let long = vec![insn(RET_K, 0, 0, libc::SECCOMP_RET_ALLOW); 4096];
        let installed = (0..).take_while(|_| install(&long, 0) == 0).count();
        assert_eq!(errno(), libc::ENOMEM);
        // By seccomp(2) seven fit. Linux counts what it has translated them to, which is more.
        assert!((3..=7).contains(&installed), "{installed}");
    });
}

static THREAD_RESULT: AtomicI32 = AtomicI32::new(0);

#[test]
fn tsync_reaches_all_threads_or_none() {
    isolated(|| unsafe {
        let (go, wait_go) = mpsc::channel::<()>();
        let (done, wait_done) = mpsc::channel();
        let other = std::thread::spawn(move || {
            let tid = libc::syscall(libc::SYS_gettid);
            done.send(tid).unwrap();
            wait_go.recv().unwrap();
            THREAD_RESULT.store(if getppid() == -1 { errno() } else { 0 }, Ordering::SeqCst);
            // A filter of its own: from now on it is no ancestor's.
            ok(install(&answers(libc::SYS_getuid, libc::SECCOMP_RET_ERRNO | 1), 0));
            done.send(libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0).into()).unwrap();
            wait_go.recv().unwrap();
        });
        let tid = wait_done.recv().unwrap();
        set_no_new_privs();
        ok(install(&answers(libc::SYS_getppid, libc::SECCOMP_RET_ERRNO | 8), libc::SECCOMP_FILTER_FLAG_TSYNC));
        go.send(()).unwrap();
        assert_eq!(wait_done.recv().unwrap(), 1, "no_new_privs goes along");
        assert_eq!(THREAD_RESULT.load(Ordering::SeqCst), 8);
        let more = answers(libc::SYS_getgid, libc::SECCOMP_RET_ERRNO | 2);
        assert_eq!(install(&more, libc::SECCOMP_FILTER_FLAG_TSYNC), tid, "the thread that has another");
        let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
        fails(install(&more, flags), libc::ESRCH);
        ok(libc::syscall(libc::SYS_getgid));
        go.send(()).unwrap();
        other.join().unwrap();
    });
}
