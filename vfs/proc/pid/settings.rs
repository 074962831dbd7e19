//! What a task has or may be told: its name, limits, mounts, identity maps, and how ready it is to be killed for memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::limits::{INFINITY, Limits};
use crate::sentry::task::{self, Task};
use crate::vfs::MountInfo;
use crate::vfs::proc::subject::Subject;

/// `comm`.
pub fn comm(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    Ok([&task.name()[..], b"\n"].concat())
}

/// Sets `comm`: a thread of the same process may. `EINVAL`.
pub fn set_comm(_: &Subject, task: &Arc<Task>, bytes: &[u8]) -> Result<()> {
    let same = task::current().is_none_or(|caller| Arc::ptr_eq(&caller.group, &task.group));
    if !same {
        return Err(Errno::EINVAL);
    }
    let cut = &bytes[..bytes.len().min(15)];
    let end = cut.iter().position(|&byte| byte == 0).unwrap_or(cut.len());
    task.set_name(&cut[..end]);
    Ok(())
}

/// `uid_map` and `gid_map`: the one user namespace.
pub fn id_map(_: &Subject, _: &Arc<Task>) -> Result<Vec<u8>> {
    Ok(format!("{:10} {:10} {:10}\n", 0, 0, u32::MAX).into_bytes())
}

/// `limits`.
pub fn limits(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    let limits = *task.group.limits.lock();
    Ok(limits_text(&limits).into_bytes())
}

/// The lines of `limits`: number, name, unit.
const LIMITS: [(u32, &str, &str); 16] = [
    (libc::RLIMIT_CPU, "Max cpu time", "seconds"),
    (libc::RLIMIT_FSIZE, "Max file size", "bytes"),
    (libc::RLIMIT_DATA, "Max data size", "bytes"),
    (libc::RLIMIT_STACK, "Max stack size", "bytes"),
    (libc::RLIMIT_CORE, "Max core file size", "bytes"),
    (libc::RLIMIT_RSS, "Max resident set", "bytes"),
    (libc::RLIMIT_NPROC, "Max processes", "processes"),
    (libc::RLIMIT_NOFILE, "Max open files", "files"),
    (libc::RLIMIT_MEMLOCK, "Max locked memory", "bytes"),
    (libc::RLIMIT_AS, "Max address space", "bytes"),
    (libc::RLIMIT_LOCKS, "Max file locks", "locks"),
    (libc::RLIMIT_SIGPENDING, "Max pending signals", "signals"),
    (libc::RLIMIT_MSGQUEUE, "Max msgqueue size", "bytes"),
    (libc::RLIMIT_NICE, "Max nice priority", ""),
    (libc::RLIMIT_RTPRIO, "Max realtime priority", ""),
    (libc::RLIMIT_RTTIME, "Max realtime timeout", "us"),
];

/// `limits` of a process.
pub fn limits_text(limits: &Limits) -> String {
    let number = |value: u64| if value == INFINITY { "unlimited".to_owned() } else { value.to_string() };
    let mut text = format!("{:<25} {:<20} {:<20} {:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    for (which, name, unit) in LIMITS {
        let Ok(limit) = limits.get(which) else { continue };
        text.push_str(&format!("{name:<25} {:<20} {:<20} ", number(limit.soft), number(limit.hard)));
        if !unit.is_empty() {
            text.push_str(&format!("{unit:<10}"));
        }
        text.push('\n');
    }
    text
}

fn of_mounts(task: &Task, line: fn(&MountInfo) -> Vec<u8>) -> Result<Vec<u8>> {
    // Only the list is seen from the task's own root, so that it is the same for all who read it.
    let root = task.fs().get().root;
    Ok(task.namespaces().mounts.list(&root).iter().flat_map(line).collect())
}

/// `mounts`. `EINVAL` once the task has ended.
pub fn mounts(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    of_mounts(task, MountInfo::mounts_line)
}

/// `mountinfo`.
pub fn mountinfo(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    of_mounts(task, MountInfo::mountinfo_line)
}

/// `mountstats`: `device SOURCE mounted on PLACE with fstype TYPE`.
pub fn mountstats(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    of_mounts(task, |info| {
        let line = info.mounts_line();
        let mut fields = line.split(|&byte| byte == b' ');
        let mut next = || String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
        let (source, place, kind) = (next(), next(), next());
        let device = if source == "none" { "no device".to_owned() } else { format!("device {source}") };
        format!("{device} mounted on {place} with fstype {kind}\n").into_bytes()
    })
}

/// A number as the kernel's own parser takes it: decimal, octal or hexadecimal, with white space around. `EINVAL`.
pub fn parse_number(bytes: &[u8]) -> Result<i64> {
    let text = std::str::from_utf8(bytes).map_err(|_| Errno::EINVAL)?.trim_matches(['\0', '\n', ' ', '\t']);
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let digits = if negative { digits } else { digits.strip_prefix('+').unwrap_or(digits) };
    let value = if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        i64::from_str_radix(hex, 16)
    } else if digits.len() > 1 && digits.starts_with('0') {
        i64::from_str_radix(&digits[1..], 8)
    } else {
        digits.parse()
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let value = value.ok().filter(|_| plain).ok_or(Errno::EINVAL)?;
    Ok(if negative { -value } else { value })
}

/// The range of `oom_score_adj`.
const ADJ_MAX: i32 = 1000;

/// `oom_score_adj`. Kept and shown; the host decides who is killed when there is no memory.
pub fn oom_score_adj(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    Ok(format!("{}\n", task.group.oom_score_adj.load(Ordering::Relaxed)).into_bytes())
}

/// Sets `oom_score_adj`. `EINVAL`; `EACCES`: lowered without `CAP_SYS_RESOURCE`.
pub fn set_oom_score_adj(_: &Subject, task: &Arc<Task>, bytes: &[u8]) -> Result<()> {
    let value = parse_number(bytes)?;
    let value = i32::try_from(value).ok().filter(|value| value.abs() <= ADJ_MAX).ok_or(Errno::EINVAL)?;
    adjust(task, value)
}

fn adjust(task: &Task, value: i32) -> Result<()> {
    let old = task.group.oom_score_adj.load(Ordering::Relaxed);
    let may_lower = task::current().is_none_or(|caller| caller.has_cap(Caps::SYS_RESOURCE));
    if value < old && !may_lower {
        return Err(Errno::EACCES);
    }
    task.group.oom_score_adj.store(value, Ordering::Relaxed);
    Ok(())
}

/// The range of the older `oom_adj`, and the value that spares a process altogether.
const OLD_MAX: i32 = 15;
const OLD_MIN: i32 = -16;
const OLD_DISABLE: i32 = -17;

/// `oom_adj`: `oom_score_adj` on its old scale.
pub fn oom_adj(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    let value = task.group.oom_score_adj.load(Ordering::Relaxed);
    Ok(format!("{}\n", old_scale(value)).into_bytes())
}

fn old_scale(value: i32) -> i32 {
    if value == ADJ_MAX { OLD_MAX } else { value * -OLD_DISABLE / ADJ_MAX }
}

/// Sets `oom_adj`. `EINVAL`, `EACCES`.
pub fn set_oom_adj(_: &Subject, task: &Arc<Task>, bytes: &[u8]) -> Result<()> {
    let value = i32::try_from(parse_number(bytes)?).map_err(|_| Errno::EINVAL)?;
    if value != OLD_DISABLE && !(OLD_MIN..=OLD_MAX).contains(&value) {
        return Err(Errno::EINVAL);
    }
    adjust(task, if value == OLD_MAX { ADJ_MAX } else { value * ADJ_MAX / -OLD_DISABLE })
}

/// `oom_score`: Linux's scale, the share of memory in use in thousandths on which the adjustment is laid.
pub fn oom_score(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    let adj = i64::from(task.group.oom_score_adj.load(Ordering::Relaxed));
    let used = task.mm().map_or(0, |mm| mm.sizes().resident) / 1024;
    let all = super::super::system::Memory::of_machine().total_kib.max(1);
    let points = i64::try_from(used.saturating_mul(1000) / all).unwrap_or(1000).min(1000);
    let score = if adj == -i64::from(ADJ_MAX) { 0 } else { (1000 + points + adj).max(0) * 2 / 3 };
    Ok(format!("{score}\n").into_bytes())
}

/// `timerslack_ns`. `EPERM`: another's, without `CAP_SYS_NICE`.
pub fn timer_slack(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    may_see_slack(task)?;
    Ok(format!("{}\n", task.timer_slack.load(Ordering::Relaxed)).into_bytes())
}

/// Sets `timerslack_ns`; 0 goes back to what Linux starts with. `EINVAL`, `EPERM`.
pub fn set_timer_slack(_: &Subject, task: &Arc<Task>, bytes: &[u8]) -> Result<()> {
    const DEFAULT: u64 = 50_000;
    let value = u64::try_from(parse_number(bytes)?).map_err(|_| Errno::EINVAL)?;
    may_see_slack(task)?;
    task.timer_slack.store(if value == 0 { DEFAULT } else { value }, Ordering::Relaxed);
    Ok(())
}

fn may_see_slack(task: &Arc<Task>) -> Result<()> {
    let allowed = task::current().is_none_or(|caller| Arc::ptr_eq(&caller, task) || caller.has_cap(Caps::SYS_NICE));
    if allowed { Ok(()) } else { Err(Errno::EPERM) }
}
