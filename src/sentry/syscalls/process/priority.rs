//! Priorities: the nice value, which the host's threads have too, and that of input and output.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::sched::may_schedule;
use crate::errno::{Errno, Result};
use crate::platform::placement;
use crate::sentry::creds::Caps;
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::{Current, Task};

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
    let nice = tasks.iter().map(|task| task.scheduling.nice()).min().unwrap_or(0);
    Ok((20 - nice) as u64)
}

/// Whether `task` may have the better nice value `nice`: by `RLIMIT_NICE` or `CAP_SYS_NICE`, and not if the host would
/// not let the sandbox's threads have it.
pub(super) fn may_improve(cur: &Current, task: &Task, nice: i32) -> bool {
    let best = 20 - i32::try_from(task.limit(libc::RLIMIT_NICE)).unwrap_or(40).min(40);
    nice >= placement::best_nice() && (nice >= best || cur.has_cap(Caps::SYS_NICE))
}

fn set_nice(cur: &Current, task: &Arc<Task>, nice: i32) -> Result<()> {
    may_schedule(cur, task)?;
    if nice < task.scheduling.nice() && !may_improve(cur, task, nice) {
        return Err(Errno::EACCES);
    }
    task.reschedule(|scheduling| scheduling.set_nice(nice));
    Ok(())
}

/// `setpriority(2)`. One task that may not be changed does not keep the others from it. `EINVAL`, `ESRCH`, `EPERM`, `EACCES`.
pub fn setpriority(cur: &mut Current, which: i32, who: i32, nice: i32) -> SysResult {
    let nice = nice.clamp(-20, 19);
    let mut result = Ok(0);
    for task in priority_targets(cur, which, who)? {
        if let Err(error) = set_nice(cur, &task, nice) {
            result = Err(error);
        }
    }
    result
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
