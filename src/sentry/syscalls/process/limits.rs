//! `getrlimit(2)`, `setrlimit(2)`, `prlimit(2)`.

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::limits::Limit;
use crate::sentry::mm::user::UserPtr;
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::{Current, Task};

/// `struct rlimit`.
type Rlimit = [u64; 2];

fn get(task: &Task, which: u32) -> Result<Rlimit> {
    let limit = task.group.limits.lock().get(which)?;
    Ok([limit.soft, limit.hard])
}

fn set(cur: &Current, task: &Task, which: u32, new: Rlimit) -> Result<()> {
    let privileged = cur.has_cap(Caps::SYS_RESOURCE);
    let [soft, hard] = new;
    task.group.limits.lock().set(which, Limit { soft, hard }, privileged)?;
    if which == libc::RLIMIT_CPU {
        task.group.watch_cpu_limit();
    }
    Ok(())
}

/// `getrlimit(2)`. `EINVAL`, `EFAULT`.
pub fn getrlimit(cur: &mut Current, which: u32, limit: UserPtr<Rlimit>) -> SysResult {
    limit.write(cur.space(), &get(cur, which)?).map(|()| 0)
}

/// `setrlimit(2)`. `EINVAL`, `EPERM`, `EFAULT`.
pub fn setrlimit(cur: &mut Current, which: u32, limit: UserPtr<Rlimit>) -> SysResult {
    let new = limit.read(cur.space())?;
    set(cur, &cur.task, which, new).map(|()| 0)
}

/// `prlimit(2)`. `EINVAL`, `EPERM`, `ESRCH`, `EFAULT`.
pub fn prlimit(cur: &mut Current, pid: i32, which: u32, new: UserPtr<Rlimit>, old: UserPtr<Rlimit>) -> SysResult {
    let task = if pid == 0 { cur.task.clone() } else { cur.kernel.thread(pid)? };
    let new = new.non_null().map(|new| new.read(cur.space())).transpose()?;
    let (own, other) = (cur.creds(), task.creds());
    let same = [other.ruid, other.euid, other.suid].iter().all(|&uid| uid == own.ruid)
        && [other.rgid, other.egid, other.sgid].iter().all(|&gid| gid == own.rgid);
    if !std::sync::Arc::ptr_eq(&task.group, &cur.group) && !same && !own.has(Caps::SYS_RESOURCE) {
        return Err(Errno::EPERM);
    }
    let before = get(&task, which)?;
    if let Some(new) = new {
        set(cur, &task, which, new)?;
    }
    old.write_if(cur.space(), &before).map(|()| 0)
}
