//! Scheduling: what programs ask of it, and the host does ([`placement`]): CPUs, and the policies of ordinary programs.

use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::priority::may_improve;
use crate::errno::{Errno, Result};
use crate::platform::placement;
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{UserPtr, UserSlice};
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::{Current, Task};

/// Flags of `sched_setattr(2)`.
const KEEP_POLICY: u64 = 0x08;
const KEEP_PARAMS: u64 = 0x10;
/// `SCHED_FLAG_RESET_ON_FORK`, `SCHED_FLAG_RECLAIM`, `SCHED_FLAG_DL_OVERRUN` and those above.
const PLAIN_FLAGS: u64 = 0x07 | KEEP_POLICY | KEEP_PARAMS;
/// `SCHED_FLAG_UTIL_CLAMP`.
const UTIL_CLAMP: u64 = 0x60;
const SCHED_DEADLINE: i32 = 6;

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
    let bytes = allowed(&task.scheduling.affinity());
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
    task.reschedule(|scheduling| scheduling.set_affinity(bytes));
    Ok(0)
}

/// `EPERM` unless the caller has the user of `task` or `CAP_SYS_NICE`.
pub(super) fn may_schedule(cur: &Current, task: &Task) -> Result<()> {
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
    target(cur, tid).map(|task| task.scheduling.policy() as u64)
}

/// `sched_setscheduler(2)`: the ordinary policies. `EPERM` for realtime ones, as with a limit of 0; `EINVAL`, `ESRCH`, `EFAULT`.
pub fn sched_setscheduler(cur: &mut Current, tid: i32, policy: i32, param: UserPtr<i32>) -> SysResult {
    if param.is_null() || policy < 0 {
        return Err(Errno::EINVAL);
    }
    let priority = param.read(cur.space())?;
    let task = target(cur, tid)?;
    set_policy(cur, &task, policy, priority, task.scheduling.nice())
}

/// Gives `task` a policy, perhaps with `SCHED_RESET_ON_FORK`, and a nice value.
fn set_policy(cur: &Current, task: &Arc<Task>, policy: i32, priority: i32, nice: i32) -> SysResult {
    let reset = policy & libc::SCHED_RESET_ON_FORK;
    match policy & !libc::SCHED_RESET_ON_FORK {
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE if priority == 0 => {}
        libc::SCHED_FIFO | libc::SCHED_RR if (1..=99).contains(&priority) => return Err(Errno::EPERM),
        _ => return Err(Errno::EINVAL),
    }
    let (old, old_nice) = (task.scheduling.policy(), task.scheduling.nice());
    let is_idle = |policy: i32| policy & !libc::SCHED_RESET_ON_FORK == libc::SCHED_IDLE;
    let nice = if is_idle(policy) { old_nice } else { nice };
    may_schedule(cur, task)?;
    // What is idle has less than any nice value.
    let better = nice < old_nice || (is_idle(old) && !is_idle(policy));
    let frees = old & libc::SCHED_RESET_ON_FORK != 0 && reset == 0;
    if (better && !may_improve(cur, task, nice)) || (frees && !cur.has_cap(Caps::SYS_NICE)) {
        return Err(Errno::EPERM);
    }
    task.reschedule(|scheduling| {
        scheduling.set_nice(nice);
        scheduling.set_policy(policy);
    });
    Ok(0)
}

/// `struct sched_attr` of `linux/sched/types.h`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Attr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Runtime, deadline and period: of `SCHED_DEADLINE`.
    deadline: [u64; 3],
    util: [u32; 2],
}

/// `SCHED_ATTR_SIZE_VER0`.
const FIRST_SIZE: u32 = 48;
const ATTR_SIZE: u32 = size_of::<Attr>() as u32;
const PAGE: u32 = 4096;

/// `sched_setattr(2)`: as `sched_setscheduler(2)`, and the nice value. `E2BIG` with the size that is known for a structure
/// from the future that says something; `EOPNOTSUPP` for clamped utilisation; `EINVAL`, `ESRCH`, `EPERM`, `EFAULT`.
pub fn sched_setattr(cur: &mut Current, tid: i32, attr: UserPtr<u32>, flags: u32) -> SysResult {
    if attr.is_null() || tid < 0 || flags != 0 {
        return Err(Errno::EINVAL);
    }
    let size = match attr.read(cur.space())? {
        0 => FIRST_SIZE,
        size => size,
    };
    let known = (FIRST_SIZE..=PAGE).contains(&size).then(|| UserSlice::new(attr.addr(), size as usize));
    let bytes = known.map(|slice| slice.read(cur.space())).transpose()?;
    let bytes = bytes.filter(|bytes| bytes.iter().skip(ATTR_SIZE as usize).all(|&byte| byte == 0));
    let Some(mut bytes) = bytes else {
        attr.write(cur.space(), &ATTR_SIZE)?;
        return Err(Errno::E2BIG);
    };
    bytes.resize(ATTR_SIZE as usize, 0);
    let asked = Attr::read_from_bytes(&bytes).map_err(|_| Errno::EINVAL)?;
    if asked.flags & UTIL_CLAMP != 0 && size < ATTR_SIZE || i32::try_from(asked.policy).is_err() {
        return Err(Errno::EINVAL);
    }
    let task = target(cur, tid)?;
    apply_attr(cur, &task, &asked)
}

fn apply_attr(cur: &Current, task: &Arc<Task>, asked: &Attr) -> SysResult {
    let own = &task.scheduling;
    if asked.flags & !(PLAIN_FLAGS | UTIL_CLAMP) != 0 {
        return Err(Errno::EINVAL);
    }
    let keeps = |flag| asked.flags & flag != 0;
    let (mut policy, reset) = if keeps(KEEP_POLICY) {
        (own.policy() & !libc::SCHED_RESET_ON_FORK, own.policy() & libc::SCHED_RESET_ON_FORK != 0)
    } else {
        (asked.policy as i32, asked.flags & 1 != 0)
    };
    if policy == SCHED_DEADLINE {
        let [runtime, deadline, period] = asked.deadline;
        let sound = runtime >= 1024 && runtime <= deadline && (period == 0 || deadline <= period);
        return Err(if sound { Errno::EPERM } else { Errno::EINVAL });
    }
    let (priority, nice) =
        if keeps(KEEP_PARAMS) { (0, own.nice()) } else { (asked.priority, asked.nice.clamp(-20, 19)) };
    if keeps(KEEP_PARAMS) {
        if !matches!(policy, libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE) {
            return Err(Errno::EINVAL);
        }
        // The policy is one of what Linux keeps.
        policy = own.policy() & !libc::SCHED_RESET_ON_FORK;
    }
    let priority = i32::try_from(priority).map_err(|_| Errno::EINVAL)?;
    if asked.flags & UTIL_CLAMP != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    set_policy(cur, task, policy | if reset { libc::SCHED_RESET_ON_FORK } else { 0 }, priority, nice)
}

/// `sched_getattr(2)`. `EINVAL`, `ESRCH`, `EFAULT`.
pub fn sched_getattr(cur: &mut Current, tid: i32, attr: UserPtr<u8>, size: u32, flags: u32) -> SysResult {
    if attr.is_null() || tid < 0 || flags != 0 || !(FIRST_SIZE..=PAGE).contains(&size) {
        return Err(Errno::EINVAL);
    }
    let task = target(cur, tid)?;
    let policy = task.scheduling.policy();
    let own = Attr {
        size: size.min(ATTR_SIZE),
        policy: (policy & !libc::SCHED_RESET_ON_FORK) as u32,
        flags: (policy & libc::SCHED_RESET_ON_FORK != 0).into(),
        nice: task.scheduling.nice(),
        priority: 0,
        deadline: [0; 3],
        util: [0; 2],
    };
    let mut bytes = own.as_bytes().to_vec();
    bytes.resize(size as usize, 0);
    attr.write_array(cur.space(), &bytes).map(|()| 0)
}

/// `sched_getparam(2)`: 0. `EINVAL`, `ESRCH`, `EFAULT`.
pub fn sched_getparam(cur: &mut Current, tid: i32, param: UserPtr<i32>) -> SysResult {
    if param.is_null() {
        return Err(Errno::EINVAL);
    }
    target(cur, tid)?;
    param.write(cur.space(), &0).map(|()| 0)
}

/// `sched_setparam(2)`: priority 0 is the only one of the ordinary policies. `EINVAL`, `ESRCH`, `EPERM`, `EFAULT`.
pub fn sched_setparam(cur: &mut Current, tid: i32, param: UserPtr<i32>) -> SysResult {
    if param.is_null() {
        return Err(Errno::EINVAL);
    }
    let priority = param.read(cur.space())?;
    let task = target(cur, tid)?;
    set_policy(cur, &task, task.scheduling.policy(), priority, task.scheduling.nice())
}

fn is_realtime(policy: i32) -> Result<bool> {
    match policy {
        libc::SCHED_FIFO | libc::SCHED_RR => Ok(true),
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE | SCHED_DEADLINE => Ok(false),
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
