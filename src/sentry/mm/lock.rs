//! `mlock(2)` and its kin: accounting only. Container memory is never locked on the host; what is locked is faulted in.

use std::ops::Range;

use super::area::AreaFlags;
use super::{MemLimits, MemoryManager, page_down, page_up};
use crate::errno::{Errno, Result};
use crate::platform::UserThread;

const MLOCK_ONFAULT: i32 = 1;

fn may_lock(limits: &MemLimits) -> Result<()> {
    if limits.memlock == 0 && !limits.ipc_lock { Err(Errno::EPERM) } else { Ok(()) }
}

impl MemoryManager {
    /// `mlock2(2)`; `mlock(2)` with no flags. `EINVAL`, `EPERM`, `ENOMEM`.
    pub fn mlock(
        &self,
        thread: &mut dyn UserThread,
        addr: u64,
        len: u64,
        flags: i32,
        limits: &MemLimits,
    ) -> Result<()> {
        if flags & !MLOCK_ONFAULT != 0 {
            return Err(Errno::EINVAL);
        }
        may_lock(limits)?;
        let range = widened(addr, len)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut inner = self.lock();
        // What is locked already is not counted twice.
        let locked: u64 = inner
            .map
            .overlapping(&range)
            .filter(|area| area.flags.contains(AreaFlags::LOCKED))
            .map(|area| area.part(&range).len())
            .sum();
        if !inner.check_lock(range.end - range.start - locked, limits) {
            return Err(Errno::ENOMEM);
        }
        let reached = inner.map.covered_prefix(&range);
        if reached > range.start {
            inner.map.update(&(range.start..reached), |area| {
                if !area.is_special() {
                    area.flags.insert(AreaFlags::LOCKED);
                }
            });
        }
        if reached < range.end {
            return Err(Errno::ENOMEM);
        }
        if flags & MLOCK_ONFAULT == 0 {
            // A page that cannot be had (beyond a file's end, without access) is an error of its own.
            match thread.advise(range.start, range.end - range.start, libc::MADV_POPULATE_READ) {
                // An older host cannot: the pages come when they are touched.
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(error) => return Err(if error == Errno::EAGAIN { error } else { Errno::ENOMEM }),
            }
        }
        Ok(())
    }

    /// `munlock(2)`. `EINVAL`, `ENOMEM`.
    pub fn munlock(&self, addr: u64, len: u64) -> Result<()> {
        let range = widened(addr, len)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut inner = self.lock();
        let reached = inner.map.covered_prefix(&range);
        if reached > range.start {
            inner.map.update(&(range.start..reached), |area| area.flags.remove(AreaFlags::LOCKED));
        }
        if reached < range.end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// `mlockall(2)`. `EINVAL`, `EPERM`, `ENOMEM`.
    pub fn mlockall(&self, flags: i32, limits: &MemLimits) -> Result<()> {
        let known = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
        if flags == 0 || flags & !known != 0 || flags == libc::MCL_ONFAULT {
            return Err(Errno::EINVAL);
        }
        may_lock(limits)?;
        let mut inner = self.lock();
        if flags & libc::MCL_CURRENT != 0 {
            if !limits.ipc_lock && inner.map.totals().total > limits.memlock {
                return Err(Errno::ENOMEM);
            }
            inner.map.update(&self.range, |area| {
                if !area.is_special() {
                    area.flags.insert(AreaFlags::LOCKED);
                }
            });
        }
        inner.lock_future = flags & libc::MCL_FUTURE != 0;
        Ok(())
    }

    /// `munlockall(2)`.
    pub fn munlockall(&self) {
        let mut inner = self.lock();
        inner.lock_future = false;
        inner.map.update(&self.range, |area| area.flags.remove(AreaFlags::LOCKED));
    }
}

/// The pages that `addr..addr + len` touches.
fn widened(addr: u64, len: u64) -> Result<Range<u64>> {
    let start = page_down(addr);
    // A length that wraps counts as none, as on Linux.
    let len = len.checked_add(addr - start).and_then(page_up).unwrap_or(0);
    Ok(start..start.checked_add(len).ok_or(Errno::EINVAL)?)
}
