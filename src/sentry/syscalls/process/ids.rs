//! Process, thread, group and session ids.

use std::sync::atomic::Ordering;

use crate::errno::Errno;
use crate::sentry::mm::user::UserPtr;
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::Current;

/// `getpid(2)`.
pub fn getpid(cur: &mut Current) -> SysResult {
    Ok(cur.pid() as u64)
}

/// `gettid(2)`.
pub fn gettid(cur: &mut Current) -> SysResult {
    Ok(cur.tid() as u64)
}

/// `getppid(2)`: 0 for the first process.
pub fn getppid(cur: &mut Current) -> SysResult {
    Ok(cur.kernel.tree.lock().node(cur.pid()).map_or(0, |node| node.parent) as u64)
}

/// `getpgid(2)`. `ESRCH`.
pub fn getpgid(cur: &mut Current, pid: i32) -> SysResult {
    let pid = if pid == 0 { cur.pid() } else { pid };
    cur.kernel.tree.lock().node(pid).map(|node| node.pgid as u64).ok_or(Errno::ESRCH)
}

/// `getpgrp(2)`.
pub fn getpgrp(cur: &mut Current) -> SysResult {
    getpgid(cur, 0)
}

/// `getsid(2)`. `ESRCH`.
pub fn getsid(cur: &mut Current, pid: i32) -> SysResult {
    let pid = if pid == 0 { cur.pid() } else { pid };
    cur.kernel.tree.lock().node(pid).map(|node| node.sid as u64).ok_or(Errno::ESRCH)
}

/// `setpgid(2)`. `EACCES`, `EINVAL`, `EPERM`, `ESRCH`.
pub fn setpgid(cur: &mut Current, pid: i32, pgid: i32) -> SysResult {
    cur.kernel.tree.lock().set_pgid(cur.pid(), pid, pgid).map(|()| 0)
}

/// `setsid(2)`. `EPERM`.
pub fn setsid(cur: &mut Current) -> SysResult {
    cur.kernel.tree.lock().set_sid(cur.pid()).map(|sid| sid as u64)
}

/// `set_tid_address(2)`.
pub fn set_tid_address(cur: &mut Current, addr: u64) -> SysResult {
    cur.clear_child_tid.store(addr, Ordering::Relaxed);
    Ok(cur.tid() as u64)
}

const ARCH_SET_GS: i32 = 0x1001;
const ARCH_SET_FS: i32 = 0x1002;
const ARCH_GET_FS: i32 = 0x1003;
const ARCH_GET_GS: i32 = 0x1004;
const ARCH_GET_CPUID: i32 = 0x1011;

/// `arch_prctl(2)`. `EINVAL`, `EPERM` (a base outside user space), `EFAULT`.
pub fn arch_prctl(cur: &mut Current, op: i32, addr: u64) -> SysResult {
    let outside = || !cur.space().range().contains(&addr) && addr != 0;
    match op {
        ARCH_SET_FS if outside() => Err(Errno::EPERM),
        ARCH_SET_GS if outside() => Err(Errno::EPERM),
        ARCH_SET_FS => {
            cur.user.regs_mut().fs_base = addr;
            Ok(0)
        }
        ARCH_SET_GS => {
            cur.user.regs_mut().gs_base = addr;
            Ok(0)
        }
        ARCH_GET_FS => UserPtr::new(addr).write(cur.space(), &cur.user.regs().fs_base).map(|()| 0),
        ARCH_GET_GS => UserPtr::new(addr).write(cur.space(), &cur.user.regs().gs_base).map(|()| 0),
        ARCH_GET_CPUID => Ok(1),
        _ => Err(Errno::EINVAL),
    }
}
