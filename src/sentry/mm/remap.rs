//! `mremap(2)`.

use std::ops::Range;

use super::area::{Area, AreaFlags, Backing};
use super::user::PAGE;
use super::{Inner, MemLimits, MemoryManager, page_up};
use crate::errno::{Errno, Result};
use crate::platform::UserThread;

/// The arguments of `mremap(2)`.
#[derive(Clone, Copy, Debug)]
pub struct MremapArgs {
    /// The old address.
    pub old: u64,
    /// The old length; 0 makes another mapping of shared pages.
    pub old_len: u64,
    /// The new length.
    pub new_len: u64,
    /// `MREMAP_*`.
    pub flags: i32,
    /// The new address, with `MREMAP_FIXED`; a hint with `MREMAP_DONTUNMAP`.
    pub new: u64,
}

impl MremapArgs {
    fn has(&self, flag: i32) -> bool {
        self.flags & flag != 0
    }
}

impl MemoryManager {
    /// `mremap(2)`. Errors as there.
    pub fn mremap(&self, thread: &mut dyn UserThread, args: MremapArgs, limits: &MemLimits) -> Result<u64> {
        let known = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        let moves = args.has(libc::MREMAP_MAYMOVE);
        let old_len = page_up(args.old_len).ok_or(Errno::EINVAL)?;
        let new_len = page_up(args.new_len).ok_or(Errno::EINVAL)?;
        let args = MremapArgs { old_len, new_len, ..args };
        if args.flags & !known != 0
            || (args.has(libc::MREMAP_FIXED) && !moves)
            || (args.has(libc::MREMAP_DONTUNMAP) && (!moves || old_len != new_len))
            || !args.old.is_multiple_of(PAGE)
            || new_len == 0
        {
            return Err(Errno::EINVAL);
        }
        let mut inner = self.lock();
        if inner.map.find(args.old).is_none() {
            return Err(Errno::EFAULT);
        }
        if args.has(libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP) {
            return self.remap_to(&mut inner, thread, &args, limits);
        }
        if old_len >= new_len {
            let old = self.checked_range(args.old, old_len).ok_or(Errno::EINVAL)?;
            inner.unmap(thread, &(old.start + new_len..old.end))?;
            return Ok(args.old);
        }
        let area = inner.check_resize(&args, limits)?;
        if old_len != 0 && args.old + old_len == area.end {
            let grown = area.end..area.end.checked_add(new_len - old_len).ok_or(Errno::ENOMEM)?;
            if grown.end <= self.range.end && inner.fits_behind(&grown) {
                return inner.grow(thread, &args, &area, grown);
            }
        }
        if !moves {
            return Err(Errno::ENOMEM);
        }
        let to = inner.place(new_len, 0, false, &self.range)?;
        inner.transfer(thread, &args, &area, to)
    }

    /// With `MREMAP_FIXED`, `MREMAP_DONTUNMAP` or both.
    fn remap_to(
        &self,
        inner: &mut Inner,
        thread: &mut dyn UserThread,
        args: &MremapArgs,
        limits: &MemLimits,
    ) -> Result<u64> {
        let fixed = args.has(libc::MREMAP_FIXED);
        if fixed {
            let to = self.checked_range(args.new, args.new_len).ok_or(Errno::EINVAL)?;
            let from_end = args.old.checked_add(args.old_len).ok_or(Errno::EINVAL)?;
            if to.start < from_end && args.old < to.end {
                return Err(Errno::EINVAL);
            }
            if to.start < self.range.start {
                return Err(Errno::EPERM);
            }
        }
        // A shrinking move begins by unmapping the tail.
        let mut args = *args;
        let area = if fixed && args.old_len > args.new_len {
            let old = self.checked_range(args.old, args.old_len).ok_or(Errno::EINVAL)?;
            inner.unmap(thread, &(old.start + args.new_len..old.end))?;
            args.old_len = args.new_len;
            inner.check_resize(&args, limits)?
        } else {
            inner.check_resize(&args, limits)?
        };
        let to = match fixed {
            true => args.new..args.new + args.new_len,
            false => inner.place(args.new_len, args.new, false, &self.range)?,
        };
        inner.transfer(thread, &args, &area, to)
    }
}

impl Inner {
    /// Whether the area at the old address can become what is asked for. Returns it.
    fn check_resize(&self, args: &MremapArgs, limits: &MemLimits) -> Result<Area> {
        let area = self.map.find(args.old).ok_or(Errno::EFAULT)?;
        if args.old_len == 0 && !area.shared {
            return Err(Errno::EINVAL);
        }
        if args.has(libc::MREMAP_DONTUNMAP) && area.flags.contains(AreaFlags::DONTEXPAND) {
            return Err(Errno::EINVAL);
        }
        if args.old_len > area.end - args.old {
            return Err(Errno::EFAULT);
        }
        let more = args.new_len.saturating_sub(args.old_len);
        if more > 0 {
            if area.offset_of(args.old).checked_add(args.new_len).is_none() {
                return Err(Errno::EINVAL);
            }
            if area.flags.contains(AreaFlags::DONTEXPAND) {
                return Err(Errno::EFAULT);
            }
            if area.flags.contains(AreaFlags::LOCKED) && !self.check_lock(more, limits) {
                return Err(Errno::EAGAIN);
            }
            self.check_expand(more, area.is_data(), limits)?;
        }
        if args.has(libc::MREMAP_DONTUNMAP) {
            self.check_expand(args.new_len, area.is_data(), limits)?;
        }
        Ok(area.clone())
    }

    /// Whether an area may be grown to cover `range`.
    fn fits_behind(&self, range: &Range<u64>) -> bool {
        self.map
            .find_from(range.start)
            .is_none_or(|next| next.start.saturating_sub(self.map.guard_below(next.start)) >= range.end)
    }

    /// Grows `area` where it is.
    fn grow(&mut self, thread: &mut dyn UserThread, args: &MremapArgs, area: &Area, grown: Range<u64>) -> Result<u64> {
        thread.remap(args.old, args.old_len, args.old, args.new_len, 0)?;
        let more = Area { start: grown.start, end: grown.end, offset: area.offset_of(area.end), ..area.clone() };
        self.map.insert(more);
        self.note_peak();
        Ok(args.old)
    }

    /// Moves, or with an old length of 0 maps again, the pages at the old address to `to`.
    fn transfer(&mut self, thread: &mut dyn UserThread, args: &MremapArgs, area: &Area, to: Range<u64>) -> Result<u64> {
        let keep = args.flags & libc::MREMAP_DONTUNMAP;
        if let Err(error) = thread.remap(args.old, args.old_len, to.start, args.new_len, keep) {
            self.give_up(thread, &to);
            return Err(error);
        }
        let moved = Area { start: to.start, end: to.end, offset: area.offset_of(args.old), ..area.clone() };
        self.map.remove(&to);
        let old = args.old..args.old + args.old_len;
        if keep == 0 {
            self.map.remove(&old);
        } else {
            self.map.update(&old, |area| area.flags.remove(AreaFlags::LOCKED));
        }
        debug_assert!(!matches!(moved.backing, Backing::Anonymous) || moved.offset == 0);
        self.map.insert(moved);
        self.note_peak();
        Ok(to.start)
    }
}
