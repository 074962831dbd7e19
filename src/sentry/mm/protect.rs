//! `mprotect(2)` and `pkey_mprotect(2)`.

use std::ops::Range;

use super::area::{Area, AreaFlags, PROT_ALL};
use super::user::PAGE;
use super::{Inner, MemLimits, MemoryManager};
use crate::errno::{Errno, Result};
use crate::platform::UserThread;

const PROT_SEM: i32 = 8;

impl MemoryManager {
    /// `mprotect(2)`. With an error the part before the offending page has been changed, as on Linux.
    pub fn mprotect(
        &self,
        thread: &mut dyn UserThread,
        addr: u64,
        len: u64,
        prot: i32,
        read_implies_exec: bool,
        limits: &MemLimits,
    ) -> Result<()> {
        let grows = prot & (libc::PROT_GROWSDOWN | libc::PROT_GROWSUP);
        let mut prot = prot & !grows;
        if grows == libc::PROT_GROWSDOWN | libc::PROT_GROWSUP || !addr.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(());
        }
        let mut range = self.checked_range(addr, len).ok_or(Errno::ENOMEM)?;
        if prot & !(PROT_ALL | PROT_SEM) != 0 {
            return Err(Errno::EINVAL);
        }
        prot &= PROT_ALL;
        let mut inner = self.lock();
        let first = inner.map.find_from(addr).ok_or(Errno::ENOMEM)?;
        if grows == libc::PROT_GROWSDOWN {
            if first.start >= range.end {
                return Err(Errno::ENOMEM);
            }
            if !first.flags.contains(AreaFlags::GROWSDOWN) {
                return Err(Errno::EINVAL);
            }
            range.start = first.start;
        } else if first.start > addr {
            return Err(Errno::ENOMEM);
        } else if grows != 0 {
            // No area grows upwards on this architecture.
            return Err(Errno::EINVAL);
        }
        let (reached, outcome) = inner.protectable(&range, prot, read_implies_exec, limits);
        let mut done = range.start;
        while done < reached {
            done = inner.protect_run(thread, &(done..reached), prot, read_implies_exec)?;
        }
        outcome
    }

    /// `pkey_alloc(2)` on a processor without protection keys.
    pub fn pkey_alloc(&self, flags: u64, rights: u64) -> Result<i32> {
        // PKEY_DISABLE_ACCESS and PKEY_DISABLE_WRITE.
        if flags != 0 || rights & !3 != 0 { Err(Errno::EINVAL) } else { Err(Errno::ENOSPC) }
    }

    /// `pkey_free(2)`: none was ever allocated.
    pub fn pkey_free(&self, _key: i32) -> Result<()> {
        Err(Errno::EINVAL)
    }
}

/// What `prot` becomes for `area`.
fn effective(area: &Area, prot: i32, read_implies_exec: bool) -> i32 {
    let exec = read_implies_exec && prot & libc::PROT_READ != 0 && area.max_prot & libc::PROT_EXEC != 0;
    if exec { prot | libc::PROT_EXEC } else { prot }
}

impl Inner {
    /// How far into `range` the change is allowed, and the error at that place.
    fn protectable(&self, range: &Range<u64>, prot: i32, rie: bool, limits: &MemLimits) -> (u64, Result<()>) {
        let (mut reached, mut more_data) = (range.start, 0);
        for area in self.map.overlapping(range) {
            if area.start > reached {
                return (reached, Err(Errno::ENOMEM));
            }
            let new = Area { prot: effective(area, prot, rie), ..area.part(range) };
            if new.prot & !area.max_prot != 0 {
                return (reached, Err(Errno::EACCES));
            }
            if new.is_data() && !area.is_data() {
                more_data += new.len();
                if self.map.totals().data.checked_add(more_data).is_none_or(|sum| sum > limits.data) {
                    return (reached, Err(Errno::ENOMEM));
                }
            }
            reached = new.end;
        }
        (reached, if reached < range.end { Err(Errno::ENOMEM) } else { Ok(()) })
    }

    /// Changes the longest run from `range.start` on that gets the same protection: one host call. Returns its end.
    fn protect_run(&mut self, thread: &mut dyn UserThread, range: &Range<u64>, prot: i32, rie: bool) -> Result<u64> {
        let mut run: Option<(i32, u64)> = None;
        let mut before = Vec::new();
        for area in self.map.overlapping(range) {
            let new = effective(area, prot, rie);
            if run.is_some_and(|(prot, _)| prot != new) {
                break;
            }
            let part = area.part(range);
            run = Some((new, part.end));
            before.push((part.range(), part.prot));
        }
        let Some((new, end)) = run else { return Ok(range.end) };
        if before.iter().all(|(_, prot)| *prot == new) {
            return Ok(end);
        }
        if let Err(error) = thread.protect(range.start, end - range.start, new) {
            // The host may have changed the first mappings before it failed.
            for (part, old) in before {
                if let Err(error) = thread.protect(part.start, part.end - part.start, old) {
                    log::debug!("restoring the protection of {part:x?}: {error}");
                }
            }
            return Err(error);
        }
        self.map.update(&(range.start..end), |area| area.prot = new);
        Ok(end)
    }
}
