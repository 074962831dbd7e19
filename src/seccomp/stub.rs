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

/// Size of `struct prctl_mm_map`, `prctl(2)`.
pub const TITLE_MAP_SIZE: u64 = 104;

/// `prctl` calls by which a stub ends with the sentry, and takes on its program's name and arguments. (That the map of `PR_SET_MM_MAP` names no file,
/// a filter cannot see; one takes a privilege that stubs do not have.)
pub(super) fn titles() -> Result<Vec<SeccompRule>, BackendError> {
    let is = |argument, value: u64| SeccompCondition::new(argument, Len::Qword, Op::Eq, value);
    Ok(vec![
        SeccompRule::new(vec![is(0, libc::PR_SET_PDEATHSIG as u64)?, is(1, libc::SIGKILL as u64)?])?,
        SeccompRule::new(vec![is(0, libc::PR_SET_NAME as u64)?])?,
        SeccompRule::new(vec![
            is(0, libc::PR_SET_MM as u64)?,
            is(1, libc::PR_SET_MM_MAP as u64)?,
            is(3, TITLE_MAP_SIZE)?,
            is(4, 0)?,
        ])?,
    ])
}

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
    rules.insert(libc::SYS_prctl, titles()?);
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
    filter.try_into()
}
