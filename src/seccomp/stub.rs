//! The stubs' filter: the second wall behind ptrace. Container code never gets as far as its own system calls; what the
//! sentry makes a stub do is all that is allowed here.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Flags of the clone that makes a process: a copy of the caller's memory.
pub const CLONE_PROCESS: u64 = (libc::CLONE_FILES | libc::CLONE_PARENT | libc::SIGCHLD) as u64;

/// Flags of the clone that makes a thread.
pub const CLONE_THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;

/// Builds the filter.
pub fn filter() -> Result<BpfProgram, BackendError> {
    let free = [
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_msync,
        libc::SYS_pause,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_restart_syscall,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = free.iter().map(|&call| (call, Vec::new())).collect();
    let clone = [CLONE_PROCESS, CLONE_THREAD]
        .iter()
        .map(|&flags| SeccompRule::new(vec![SeccompCondition::new(0, Len::Qword, Op::Eq, flags)?]))
        .collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_clone, clone);
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
    filter.try_into()
}
