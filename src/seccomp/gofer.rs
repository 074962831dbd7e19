//! The gofer's allow-list: files beneath the trees that it holds, the connections that it has, its own memory and
//! threads. It opens paths through `openat2(2)` alone, whose confinement its code asks for at one place.
//!
//! There is no making of sockets, mounts, namespaces or processes, no program to run, no other process to look at.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use crate::container::{Context, Result};

/// Allowed whatever the arguments.
const ALLOWED: &[libc::c_long] = &[
    // Connections, the log, the reports.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_poll,
    // Looking at files.
    libc::SYS_openat2,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_fstatfs,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_close,
    // Changing them.
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_syncfs,
    libc::SYS_fchownat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat2,
    libc::SYS_utimensat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_fsetxattr,
    libc::SYS_fremovexattr,
    // Memory and threads.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
];

/// What libraries try and can do without: glibc's `pthread_create` goes on to `clone`, whose flags can be looked at; a
/// backtrace wants the program and the working directory.
const SOFT: &[libc::c_long] = &[
    libc::SYS_clone3,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_getcwd,
    libc::SYS_read,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
];

/// A thread: everything is shared.
const THREAD: u64 =
    (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;

/// No namespace is new.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Installs the filter in the calling thread, and so in all threads made from it. `no_new_privs` must be set.
pub fn install() -> Result<()> {
    let doing = || "install the gofer's seccomp filter";
    for program in [soft_program(), program()] {
        let program = program.map_err(io::Error::other).doing(doing)?;
        seccompiler::apply_filter(&program).map_err(io::Error::other).doing(doing)?;
    }
    Ok(())
}

fn soft_program() -> std::result::Result<BpfProgram, BackendError> {
    let rules = SOFT.iter().map(|&number| (number, Vec::new())).collect();
    let no_such_call = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, no_such_call, TargetArch::x86_64)?.try_into()
}

fn program() -> std::result::Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().chain(SOFT).map(|&number| (number, Vec::new())).collect();
    let rule = |argument, op, value| SeccompRule::new(vec![SeccompCondition::new(argument, Len::Dword, op, value)?]);
    rules.insert(libc::SYS_clone, vec![rule(0, Op::MaskedEq(THREAD | NAMESPACES), THREAD)?]);
    // No new code.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, Op::MaskedEq(libc::PROT_EXEC as u64), 0)?]);
    }
    // A root that is a file is donated as a duplicate.
    rules.insert(
        libc::SYS_fcntl,
        vec![rule(1, Op::Eq, libc::F_DUPFD_CLOEXEC as u64)?, rule(1, Op::Eq, libc::F_GETFD as u64)?],
    );
    // The name of a thread.
    rules.insert(
        libc::SYS_prctl,
        vec![rule(0, Op::Eq, libc::PR_SET_NAME as u64)?, rule(0, Op::Eq, libc::PR_SET_VMA as u64)?],
    );
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}
