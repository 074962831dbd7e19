//! The sentry's allow-list. Stubs inherit it, and narrow it further with their own filter, so what the sentry runs inside
//! a stub (mappings, clone) is here too.
//!
//! Nothing here opens a path, makes a network socket, runs a program or changes identity: a sentry that has been taken
//! over by its container holds its descriptors and its stubs, and that is all. Two filters are stacked, of which the
//! kernel takes the stricter answer (seccomp(2)):
//!
//! ```text
//! SOFT     calls that libraries try and can do without      ENOSYS
//! ALLOWED  what the sentry does, some with conditions       allowed; all else: SIGSYS, which is reported by name
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use crate::container::report;
use crate::container::{Context, Result};

macro_rules! calls {
    ($($name:ident)*) => {
        &[$((libc::$name, stringify!($name))),*]
    };
}

/// A system call's number and its name, with `SYS_` before it.
type Call = (libc::c_long, &'static str);

/// Allowed whatever the arguments.
const ALLOWED: &[Call] = calls! {
    // Descriptors that the sentry has.
    SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2
    SYS_lseek SYS_close SYS_close_range SYS_dup SYS_dup2 SYS_dup3 SYS_fcntl SYS_fstat SYS_fstatfs SYS_ftruncate
    SYS_fallocate SYS_fsync SYS_fdatasync SYS_sendfile SYS_splice SYS_copy_file_range SYS_fadvise64 SYS_flock
    SYS_sync_file_range
    // New ones that lead nowhere on the host.
    SYS_memfd_create SYS_eventfd2 SYS_pipe2 SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime SYS_signalfd4
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_wait SYS_epoll_pwait SYS_epoll_pwait2 SYS_poll SYS_ppoll SYS_select
    SYS_pselect6
    // The gofer, the control socket, sockets that the container was given, what is accepted there.
    SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg SYS_sendto SYS_recvfrom SYS_accept4 SYS_listen SYS_shutdown
    SYS_getsockopt SYS_setsockopt SYS_getsockname SYS_getpeername
    // Memory, its own and the stubs'.
    SYS_mmap SYS_munmap SYS_mprotect SYS_mremap SYS_madvise SYS_brk SYS_msync SYS_mincore SYS_mlock SYS_mlock2
    SYS_munlock SYS_membarrier SYS_process_vm_readv SYS_process_vm_writev SYS_pkey_mprotect
    // Threads and stubs. Signals reach no further than the sandbox's PID namespace.
    SYS_futex SYS_sched_yield SYS_sched_getaffinity SYS_sched_setaffinity SYS_getcpu SYS_set_tid_address
    SYS_set_robust_list SYS_get_robust_list SYS_rseq SYS_arch_prctl SYS_ptrace SYS_wait4 SYS_waitid SYS_kill SYS_tkill
    SYS_tgkill SYS_exit SYS_exit_group SYS_seccomp SYS_getpid SYS_getppid SYS_gettid SYS_prlimit64 SYS_getrlimit
    SYS_getrusage SYS_getpriority SYS_setpriority
    // Signals.
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigtimedwait SYS_rt_sigsuspend SYS_rt_sigpending
    SYS_sigaltstack SYS_restart_syscall SYS_pause
    // Time, randomness, the machine.
    SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday SYS_time SYS_times
    SYS_getrandom SYS_sysinfo SYS_uname SYS_getuid SYS_geteuid SYS_getgid SYS_getegid
    // Conditions are in `conditions`.
    SYS_clone SYS_socketpair SYS_ioctl SYS_prctl SYS_statx SYS_newfstatat SYS_sched_setscheduler
};

/// Tried by libraries, which do without when it fails: glibc's `pthread_create` goes on to `clone`, whose flags can be
/// looked at; Rust and glibc read files below /proc and /sys, and for a backtrace the program and the working directory.
const SOFT: &[Call] = calls! {
    SYS_clone3 SYS_open SYS_openat SYS_access SYS_faccessat SYS_faccessat2 SYS_readlink SYS_readlinkat SYS_stat SYS_lstat
    SYS_getcwd
};

/// Some that are refused, for their names.
const REFUSED: &[Call] = calls! {
    SYS_socket SYS_connect SYS_bind SYS_accept SYS_execve SYS_execveat SYS_fork SYS_vfork SYS_openat2
    SYS_open_by_handle_at SYS_name_to_handle_at SYS_getdents SYS_getdents64 SYS_chdir SYS_fchdir SYS_mkdir
    SYS_mkdirat SYS_unlink SYS_unlinkat SYS_rename SYS_renameat SYS_renameat2 SYS_link SYS_linkat SYS_symlink
    SYS_symlinkat SYS_mknod SYS_mknodat SYS_chmod SYS_fchmod SYS_fchmodat SYS_chown SYS_fchown SYS_fchownat SYS_umask
    SYS_utimensat SYS_truncate SYS_statfs SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_setns SYS_unshare
    SYS_setuid SYS_setgid SYS_setresuid SYS_setresgid SYS_setgroups SYS_capset SYS_capget SYS_setsid SYS_setpgid
    SYS_pidfd_open SYS_pidfd_getfd SYS_pidfd_send_signal SYS_process_madvise SYS_io_uring_setup SYS_io_uring_enter
    SYS_bpf SYS_perf_event_open SYS_userfaultfd SYS_keyctl SYS_add_key SYS_request_key SYS_init_module
    SYS_finit_module SYS_kexec_load SYS_reboot SYS_timer_create SYS_setitimer SYS_alarm SYS_tee SYS_vmsplice SYS_sync
    SYS_syncfs SYS_readahead SYS_inotify_init1 SYS_fanotify_init
    SYS_sched_getparam SYS_sched_getscheduler SYS_sched_setattr SYS_personality SYS_shmget SYS_msgget SYS_semget
    SYS_fgetxattr SYS_fsetxattr SYS_flistxattr SYS_getgroups SYS_getsid SYS_getpgid SYS_setrlimit SYS_mlockall
    SYS_futex_waitv SYS_memfd_secret SYS_pkey_alloc SYS_pkey_free SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_syslog
    SYS_eventfd SYS_pipe SYS_epoll_create SYS_inotify_init SYS_signalfd SYS_clock_settime SYS_settimeofday
};

/// Every flag of `clone(2)` that makes a namespace.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// On terminals and pipes that the container was given, and what Rust's standard library asks of sockets.
const IOCTLS: &[u64] = &[
    libc::FIONREAD,
    libc::FIONBIO,
    libc::FIOCLEX,
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TCFLSH,
    libc::TCSBRK,
    libc::TCXONC,
    libc::TIOCGWINSZ,
    libc::TIOCSWINSZ,
    libc::TIOCOUTQ,
];

/// What a process may say of itself without gaining anything. The filter of the stubs is installed through
/// `PR_SET_SECCOMP` or `seccomp(2)`, which can only forbid more.
const PRCTLS: &[libc::c_int] = &[
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_PDEATHSIG,
    libc::PR_GET_PDEATHSIG,
    libc::PR_GET_DUMPABLE,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_SET_SECCOMP,
    libc::PR_SET_TIMERSLACK,
    libc::PR_SET_THP_DISABLE,
    libc::PR_SET_VMA,
    libc::PR_SET_TSC,
    libc::PR_SET_SPECULATION_CTRL,
    libc::PR_GET_SPECULATION_CTRL,
];

/// Where a violation is reported; -1 for standard error.
static REPORT_FD: AtomicI32 = AtomicI32::new(-1);

/// Installs the filters in the calling thread, and so in all threads and processes made from it. There must be no other
/// thread yet. `no_new_privs` is set on the way.
pub fn install() -> Result<()> {
    let doing = || "install the sentry's seccomp filter";
    REPORT_FD.store(report::raw_fd().unwrap_or(-1), Ordering::Relaxed);
    let handler = SigAction::new(SigHandler::SigAction(on_violation), SaFlags::SA_SIGINFO, SigSet::all());
    // SAFETY: the handler makes only system calls and touches only its own stack and constants.
    unsafe { sigaction(Signal::SIGSYS, &handler) }.map_err(io::Error::from).doing(doing)?;
    for program in [soft_program(), program()] {
        let mut program = program.map_err(io::Error::other).doing(doing)?;
        trap_foreign_calls(&mut program);
        seccompiler::apply_filter(&program).map_err(io::Error::other).doing(doing)?;
    }
    Ok(())
}

/// Calls through entries of 32-bit programs are trapped and not the end of the process: stubs inherit the filter, and
/// container code may use any instruction.
fn trap_foreign_calls(program: &mut BpfProgram) {
    let kill = (libc::BPF_RET | libc::BPF_K) as u16;
    for line in program.iter_mut().filter(|line| line.code == kill && line.k == libc::SECCOMP_RET_KILL_PROCESS) {
        line.k = libc::SECCOMP_RET_TRAP;
    }
}

fn soft_program() -> std::result::Result<BpfProgram, BackendError> {
    let rules: BTreeMap<i64, Vec<SeccompRule>> = SOFT.iter().map(|&(number, _)| (number, Vec::new())).collect();
    let no_such_call = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, no_such_call, TargetArch::x86_64)?.try_into()
}

fn program() -> std::result::Result<BpfProgram, BackendError> {
    let mut rules = BTreeMap::new();
    for &(number, _) in ALLOWED.iter().chain(SOFT) {
        rules.insert(number, conditions(number)?);
    }
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// The argument rules of an allowed call, one of which must hold; none for a call that is allowed outright.
fn conditions(number: libc::c_long) -> std::result::Result<Vec<SeccompRule>, BackendError> {
    let one = |argument, op, value| SeccompRule::new(vec![SeccompCondition::new(argument, Len::Dword, op, value)?]);
    // Only on a descriptor: the path must be allowed to be empty. One that is not leads into an empty root.
    let on_descriptor = |argument| one(argument, Op::MaskedEq(libc::AT_EMPTY_PATH as u64), libc::AT_EMPTY_PATH as u64);
    match number {
        libc::SYS_clone => Ok(vec![one(0, Op::MaskedEq(NAMESPACES), 0)?]),
        libc::SYS_socketpair => Ok(vec![one(0, Op::Eq, libc::AF_UNIX as u64)?]),
        libc::SYS_ioctl => IOCTLS.iter().map(|&request| one(1, Op::Eq, request)).collect(),
        libc::SYS_prctl => {
            let own = PRCTLS.iter().map(|&operation| one(0, Op::Eq, operation as u64));
            // The stubs inherit this filter.
            own.chain(super::stub::titles()?.into_iter().map(Ok)).collect()
        }
        // The policies of ordinary programs.
        libc::SYS_sched_setscheduler => [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE]
            .iter()
            .map(|&policy| one(1, Op::Eq, policy as u64))
            .collect(),
        libc::SYS_statx => Ok(vec![on_descriptor(2)?]),
        libc::SYS_newfstatat => Ok(vec![on_descriptor(3)?]),
        _ => Ok(Vec::new()),
    }
}

/// The handler of SIGSYS: says which call was refused and ends the process, and with it the sandbox.
extern "C" fn on_violation(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    /// The part of `siginfo_t` that sigaction(2) describes for SIGSYS.
    #[repr(C)]
    struct SysInfo {
        signal: [libc::c_int; 4],
        address: *const libc::c_void,
        number: libc::c_int,
    }
    // SAFETY: for SIGSYS from a filter the kernel has filled in these fields, which lie within a siginfo_t.
    let number = unsafe { (*info.cast::<SysInfo>()).number };
    let mut line = Line::default();
    line.push(b"{\"failed\":\"seccomp: system call ");
    line.push_number(number.unsigned_abs());
    if let Some(name) = name(number.into()) {
        line.push(b" (");
        line.push(name.as_bytes());
        line.push(b")");
    }
    line.push(b" is not allowed to the sentry\"}\n");
    let bytes = &line.bytes[..line.len];
    let report = REPORT_FD.load(Ordering::Relaxed);
    // SAFETY: writes from this function's own memory, then does not return.
    unsafe {
        if libc::write(report, bytes.as_ptr().cast(), bytes.len()) < 0 {
            libc::write(2, bytes.as_ptr().cast(), bytes.len());
        }
        libc::syscall(libc::SYS_exit_group, 128);
    }
}

/// The name of a call, if it is in one of the lists.
fn name(number: libc::c_long) -> Option<&'static str> {
    let all = [ALLOWED, SOFT, REFUSED];
    let (_, name) = all.into_iter().flatten().find(|(listed, _)| *listed == number)?;
    name.strip_prefix("SYS_")
}

/// Text made without allocating.
struct Line {
    bytes: [u8; 128],
    len: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { bytes: [0; 128], len: 0 }
    }
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for (to, from) in self.bytes[self.len..].iter_mut().zip(text) {
            *to = *from;
            self.len += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.push(&[b'0' + (number % 10) as u8]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    /// What standard error got from a process that installs the filter and then does `work`, and what `work` returned.
    fn filtered(work: fn() -> io::Result<()>) -> (String, io::Result<std::process::Output>) {
        let mut command = Command::new("/bin/true");
        let filter_and_work = move || {
            install().map_err(io::Error::other)?;
            work()
        };
        // SAFETY: what runs in the child is `install`, which allocates; glibc makes that safe after fork(2).
        unsafe { command.pre_exec(filter_and_work) };
        let outcome = command.stderr(Stdio::piped()).spawn().and_then(|child| child.wait_with_output());
        let stderr = outcome.as_ref().map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        (stderr.unwrap_or_default(), outcome)
    }

    /// An error that nothing else gives, as the sign that `work` got this far.
    const REACHED: i32 = 4242;

    fn reached() -> io::Result<()> {
        Err(io::Error::from_raw_os_error(REACHED))
    }

    #[test]
    fn a_program_cannot_be_run_and_the_report_says_so() {
        let (stderr, outcome) = filtered(|| Ok(()));
        assert!(stderr.contains("system call 59 (execve) is not allowed"), "{stderr}");
        assert_eq!(outcome.unwrap().status.code(), Some(128));
    }

    #[test]
    fn arguments_count() {
        let (stderr, _) = filtered(|| {
            // SAFETY: no memory is passed.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
            reached()
        });
        assert!(stderr.contains("(prctl)"), "{stderr}");
        let (stderr, _) = filtered(|| {
            // SAFETY: as fork(2): without CLONE_VM no memory is shared.
            unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER, 0, 0, 0, 0) };
            reached()
        });
        assert!(stderr.contains("(clone)"), "{stderr}");
    }

    #[test]
    fn ordinary_work_goes_on() {
        let (stderr, outcome) = filtered(|| {
            let opened = std::fs::File::open("/etc/passwd").map_err(|error| error.raw_os_error());
            assert_eq!(opened.err(), Some(Some(libc::ENOSYS)));
            let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
            std::fs::File::from(read).metadata()?;
            let thread = std::thread::Builder::new().name("named".into()).spawn(move || drop(write))?;
            thread.join().map_err(|_| io::ErrorKind::Other)?;
            assert!(!std::backtrace::Backtrace::force_capture().to_string().is_empty());
            reached()
        });
        assert_eq!(outcome.err().and_then(|error| error.raw_os_error()), Some(REACHED), "{stderr}");
    }

    #[test]
    fn no_call_is_in_two_lists() {
        let mut all: Vec<Call> = [ALLOWED, SOFT, REFUSED].concat();
        let before = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), before);
        assert_eq!(name(libc::SYS_socket), Some("socket"));
    }
}
