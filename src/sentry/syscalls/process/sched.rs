//! Scheduling: what programs ask of it. The CPUs asked for are kept to; priorities and policies are kept and shown, and the
//! host shares out the time: to raise a priority again takes a privilege that the sentry does not have.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::errno::{Errno, Result};
use crate::platform::placement;
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{UserPtr, UserSlice};
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::{Current, Task};

fn target(cur: &Current, tid: i32) -> Result<Arc<Task>> {
    match tid {
        0 => Ok(cur.task.clone()),
        tid if tid < 0 => Err(Errno::EINVAL),
        tid => cur.kernel.thread(tid),
    }
}

/// `sched_yield(2)`.
pub fn sched_yield(_cur: &mut Current) -> SysResult {
    std::thread::yield_now();
    Ok(0)
}

/// Bytes of a set of all CPUs, in words as the kernel counts.
fn set_len() -> usize {
    placement::count().div_ceil(64) * 8
}

/// The CPUs of a mask that the sandbox may use now.
fn allowed(mask: &[u8]) -> Vec<u8> {
    let mut set = vec![0u8; set_len()];
    for cpu in (0..placement::available()).filter(|&cpu| placement::allows(mask, cpu)) {
        set[cpu / 8] |= 1 << (cpu % 8);
    }
    set
}

/// `sched_getaffinity(2)`: returns the bytes stored. `EINVAL`, `ESRCH`, `EFAULT`.
pub fn sched_getaffinity(cur: &mut Current, tid: i32, len: u32, set: UserPtr<u8>) -> SysResult {
    let set = UserSlice::new(set.addr(), len as usize);
    if set.len() < set_len() || !set.len().is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let task = target(cur, tid)?;
    let bytes = allowed(&task.affinity.get());
    set.write_truncated(cur.space(), &bytes).map(|n| n as u64)
}

/// `sched_setaffinity(2)`: threads run where the platform places them among these. `EINVAL`: no CPU of the sandbox in
/// the set; `EPERM`, `ESRCH`, `EFAULT`.
pub fn sched_setaffinity(cur: &mut Current, tid: i32, len: u32, set: UserPtr<u8>) -> SysResult {
    let set = UserSlice::new(set.addr(), len as usize);
    let mut bytes = set.limit(set_len()).read(cur.space())?;
    bytes.resize(set_len(), 0);
    let task = target(cur, tid)?;
    may_schedule(cur, &task)?;
    for (byte, all) in bytes.iter_mut().zip(allowed(&[])) {
        *byte &= all;
    }
    if bytes.iter().all(|&byte| byte == 0) {
        return Err(Errno::EINVAL);
    }
    task.set_affinity(bytes);
    Ok(0)
}

fn may_schedule(cur: &Current, task: &Task) -> Result<()> {
    let (own, other) = (cur.creds(), task.creds());
    let same = own.euid == other.euid || own.euid == other.ruid;
    if same || own.has(Caps::SYS_NICE) { Ok(()) } else { Err(Errno::EPERM) }
}

/// `getcpu(2)`.
pub fn getcpu(cur: &mut Current, cpu: UserPtr<u32>, node: UserPtr<u32>) -> SysResult {
    cpu.write_if(cur.space(), &(placement::here().unwrap_or(0) as u32))?;
    node.write_if(cur.space(), &0u32).map(|()| 0)
}

/// `sched_getscheduler(2)`: with `SCHED_RESET_ON_FORK`. `EINVAL`, `ESRCH`.
pub fn sched_getscheduler(cur: &mut Current, tid: i32) -> SysResult {
    target(cur, tid).map(|task| task.policy.load(Ordering::Relaxed) as u64)
}

/// `sched_setscheduler(2)`: the ordinary policies, kept and shown; `EPERM` for realtime ones, as with a limit of 0. `EINVAL`, `ESRCH`, `EFAULT`.
pub fn sched_setscheduler(cur: &mut Current, tid: i32, policy: i32, param: UserPtr<i32>) -> SysResult {
    if param.is_null() {
        return Err(Errno::EINVAL);
    }
    let priority = param.read(cur.space())?;
    let task = target(cur, tid)?;
    const RESET_ON_FORK: i32 = 0x4000_0000;
    match policy & !RESET_ON_FORK {
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE if priority == 0 => {
            may_schedule(cur, &task)?;
            task.policy.store(policy, Ordering::Relaxed);
            Ok(0)
        }
        libc::SCHED_FIFO | libc::SCHED_RR if (1..=99).contains(&priority) => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

/// `sched_getparam(2)`: 0. `EINVAL`, `ESRCH`, `EFAULT`.
pub fn sched_getparam(cur: &mut Current, tid: i32, param: UserPtr<i32>) -> SysResult {
    if param.is_null() {
        return Err(Errno::EINVAL);
    }
    target(cur, tid)?;
    param.write(cur.space(), &0).map(|()| 0)
}

/// `sched_setparam(2)`: priority 0 is the only one of `SCHED_OTHER`. `EINVAL`, `ESRCH`, `EFAULT`.
pub fn sched_setparam(cur: &mut Current, tid: i32, param: UserPtr<i32>) -> SysResult {
    if param.is_null() {
        return Err(Errno::EINVAL);
    }
    target(cur, tid)?;
    if param.read(cur.space())? == 0 { Ok(0) } else { Err(Errno::EINVAL) }
}

fn is_realtime(policy: i32) -> Result<bool> {
    match policy {
        libc::SCHED_FIFO | libc::SCHED_RR => Ok(true),
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE | 6 => Ok(false),
        _ => Err(Errno::EINVAL),
    }
}

/// `sched_get_priority_max(2)`. `EINVAL`.
pub fn sched_get_priority_max(_cur: &mut Current, policy: i32) -> SysResult {
    is_realtime(policy).map(|realtime| if realtime { 99 } else { 0 })
}

/// `sched_get_priority_min(2)`. `EINVAL`.
pub fn sched_get_priority_min(_cur: &mut Current, policy: i32) -> SysResult {
    is_realtime(policy).map(Into::into)
}

/// `sched_rr_get_interval(2)`: of `SCHED_OTHER` a time slice. `ESRCH`, `EFAULT`.
pub fn sched_rr_get_interval(cur: &mut Current, tid: i32, interval: UserPtr<[i64; 2]>) -> SysResult {
    target(cur, tid)?;
    interval.write(cur.space(), &[0, 4_000_000]).map(|()| 0)
}

/// Which tasks `getpriority(2)` means.
fn priority_targets(cur: &Current, which: i32, who: i32) -> Result<Vec<Arc<Task>>> {
    let tree = cur.kernel.tree.lock();
    let found: Vec<Arc<Task>> = match which {
        0 => tree.thread(if who == 0 { cur.tid() } else { who }).cloned().into_iter().collect(),
        1 => {
            let pgid = if who == 0 { tree.node(cur.pid()).map_or(0, |node| node.pgid) } else { who };
            tree.members(pgid).flat_map(|node| node.group.threads()).collect()
        }
        2 => {
            let uid = if who == 0 { cur.creds().ruid } else { who as u32 };
            let groups = tree.nodes().filter(|(_, node)| node.group.uid() == uid);
            groups.flat_map(|(_, node)| node.group.threads()).collect()
        }
        _ => return Err(Errno::EINVAL),
    };
    if found.is_empty() { Err(Errno::ESRCH) } else { Ok(found) }
}

/// `getpriority(2)`: the system call returns 20 minus the nice value. `EINVAL`, `ESRCH`.
pub fn getpriority(cur: &mut Current, which: i32, who: i32) -> SysResult {
    let tasks = priority_targets(cur, which, who)?;
    let nice = tasks.iter().map(|task| task.nice.load(Ordering::Relaxed)).min().unwrap_or(0);
    Ok((20 - nice) as u64)
}

/// `setpriority(2)`: kept and shown. `EINVAL`, `ESRCH`, `EPERM`, `EACCES`.
pub fn setpriority(cur: &mut Current, which: i32, who: i32, nice: i32) -> SysResult {
    let nice = nice.clamp(-20, 19);
    let tasks = priority_targets(cur, which, who)?;
    let floor = 20 - i32::try_from(cur.limit(libc::RLIMIT_NICE)).unwrap_or(40).min(40);
    for task in tasks {
        may_schedule(cur, &task)?;
        let raised = nice < task.nice.load(Ordering::Relaxed);
        if raised && nice < floor && !cur.has_cap(Caps::SYS_NICE) {
            return Err(Errno::EACCES);
        }
        task.nice.store(nice, Ordering::Relaxed);
    }
    Ok(0)
}

/// `ioprio_set(2)`: kept and shown; the host's devices serve the sandbox as one. `EINVAL`, `ESRCH`, `EPERM`.
pub fn ioprio_set(cur: &mut Current, which: i32, who: i32, priority: i32) -> SysResult {
    // Above the level are hints for devices, which are kept as they are.
    let (class, level) = ((priority >> 13) & 7, priority & 7);
    match class {
        0 if level == 0 => {}
        1 if !cur.has_cap(Caps::SYS_ADMIN) && !cur.has_cap(Caps::SYS_NICE) => return Err(Errno::EPERM),
        1..=3 => {}
        _ => return Err(Errno::EINVAL),
    }
    // Counted from 1, where `setpriority(2)` counts from 0.
    for task in priority_targets(cur, which.wrapping_sub(1), who)? {
        let (own, other) = (cur.creds(), task.creds());
        if ![own.euid, own.ruid].contains(&other.ruid) && !own.has(Caps::SYS_NICE) {
            return Err(Errno::EPERM);
        }
        task.io_priority.store(priority & 0xffff, Ordering::Relaxed);
    }
    Ok(0)
}

/// `ioprio_get(2)`: of several tasks the best. `EINVAL`, `ESRCH`.
pub fn ioprio_get(cur: &mut Current, which: i32, who: i32) -> SysResult {
    let tasks = priority_targets(cur, which.wrapping_sub(1), who)?;
    let all = tasks.iter().map(|task| task.io_priority.load(Ordering::Relaxed));
    // No class is worse than every other.
    Ok(all.min_by_key(|&priority| if priority >> 13 == 0 { i32::MAX } else { priority }).unwrap_or(0) as u64)
}
