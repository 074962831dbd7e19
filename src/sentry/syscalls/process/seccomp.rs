//! `seccomp(2)`, and `prctl(PR_SET_SECCOMP)`.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{UserPtr, UserSlice};
use crate::sentry::seccomp::bpf::{Insn, MAX_LEN, Program};
use crate::sentry::seccomp::{Filter, action};
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::{Current, Task};

const SET_MODE_STRICT: u32 = 0;
const SET_MODE_FILTER: u32 = 1;
const GET_ACTION_AVAIL: u32 = 2;

const TSYNC: u32 = 1;
const LOG: u32 = 1 << 1;
/// Mitigations of the processor's speculation are the host's.
const SPEC_ALLOW: u32 = 1 << 2;
const TSYNC_ESRCH: u32 = 1 << 4;

/// `seccomp(2)`. Errors: `EINVAL` (operations and flags that there are not, listeners among them; a bad program; another
/// mode is in force), `EACCES` (neither `CAP_SYS_ADMIN` nor `PR_SET_NO_NEW_PRIVS`), `EFAULT`, `ENOMEM` (too many filters),
/// `EOPNOTSUPP` (`SECCOMP_GET_ACTION_AVAIL`: not there), `ESRCH` (`SECCOMP_FILTER_FLAG_TSYNC_ESRCH`).
pub fn seccomp(cur: &mut Current, operation: u32, flags: u32, args: u64) -> SysResult {
    match operation {
        SET_MODE_STRICT if flags == 0 && args == 0 => cur.seccomp.set_strict().map(|()| 0),
        SET_MODE_FILTER => set_filter(cur, flags, args),
        GET_ACTION_AVAIL if flags == 0 => {
            let wanted: u32 = UserPtr::new(args).read(cur.space())?;
            if AVAILABLE.contains(&wanted) { Ok(0) } else { Err(Errno::EOPNOTSUPP) }
        }
        _ => {
            log::debug!("seccomp: operation {operation} with flags {flags:#x} is not there");
            Err(Errno::EINVAL)
        }
    }
}

/// Actions that have their effect: not `SECCOMP_RET_USER_NOTIF`, for which there are no listeners.
const AVAILABLE: [u32; 7] =
    [action::KILL_PROCESS, action::KILL_THREAD, action::TRAP, action::ERRNO, action::TRACE, action::LOG, action::ALLOW];

/// `prctl(PR_SET_SECCOMP)`: the older way to the same.
pub fn prctl(cur: &mut Current, mode: u64, program: u64) -> SysResult {
    match mode as u32 {
        libc::SECCOMP_MODE_STRICT => seccomp(cur, SET_MODE_STRICT, 0, 0),
        libc::SECCOMP_MODE_FILTER => seccomp(cur, SET_MODE_FILTER, 0, program),
        _ => Err(Errno::EINVAL),
    }
}

fn set_filter(cur: &mut Current, flags: u32, program: u64) -> SysResult {
    if flags & !(TSYNC | LOG | SPEC_ALLOW | TSYNC_ESRCH) != 0 {
        log::info!("seccomp: flags {flags:#x} are not supported");
        return Err(Errno::EINVAL);
    }
    let program = read_program(cur, program)?;
    if !cur.seccomp.takes_filters() {
        return Err(Errno::EINVAL);
    }
    let group = cur.group.clone();
    let signals = group.signals.lock();
    if flags & TSYNC != 0 {
        let own = cur.seccomp.filter();
        let others = signals.threads.iter().filter(|task| !Arc::ptr_eq(task, &cur.task) && !task.is_exiting());
        if let Some(odd) = others.clone().find(|task| !task.seccomp.may_sync(own.as_deref())) {
            return if flags & TSYNC_ESRCH != 0 { Err(Errno::ESRCH) } else { Ok(odd.tid() as u64) };
        }
    }
    let filter = Filter::new(program, flags & LOG != 0, cur.seccomp.filter())?;
    cur.seccomp.install(filter.clone());
    if flags & TSYNC != 0 {
        let bound = cur.creds().no_new_privs;
        for task in signals.threads.iter().filter(|task| !Arc::ptr_eq(task, &cur.task)) {
            sync(task, &filter, bound);
        }
    }
    Ok(0)
}

fn sync(task: &Task, filter: &Arc<Filter>, no_new_privs: bool) {
    // First, so that no program with more rights is ever run under the filter.
    if no_new_privs {
        task.impose_no_new_privs();
    }
    task.seccomp.install(filter.clone());
    // The platform may be answering for it.
    task.kick();
}

/// `struct sock_fprog`, checked.
fn read_program(cur: &Current, addr: u64) -> Result<Program> {
    let [len, insns]: [u64; 2] = UserPtr::new(addr).read(cur.space())?;
    let len = usize::from(len as u16); // what is behind is padding
    if len == 0 || len > MAX_LEN {
        return Err(Errno::EINVAL);
    }
    if !cur.creds().no_new_privs && !cur.has_cap(Caps::SYS_ADMIN) {
        return Err(Errno::EACCES);
    }
    let bytes = UserSlice::new(insns, len * 8).read(cur.space())?;
    let (insns, _) = bytes.as_chunks::<8>();
    Program::new(insns.iter().map(|insn| Insn::from_bytes(*insn)).collect())
}
