//! `brk(2)`.

use super::area::{Area, AreaFlags};
use super::{MemLimits, MemoryManager, page_up};
use crate::platform::UserThread;

impl MemoryManager {
    /// `brk(2)` as the system call: returns the break that is in force afterwards, which is the old one after a failure.
    pub fn brk(&self, thread: &mut dyn UserThread, brk: u64, limits: &MemLimits) -> u64 {
        let mut inner = self.lock();
        let (start, current) = (inner.layout.start_brk, inner.layout.brk);
        if brk < start || brk > self.range.end {
            return current;
        }
        let data = inner.layout.end_data.saturating_sub(inner.layout.start_data);
        if limits.data != super::UNLIMITED && (brk - start).saturating_add(data) > limits.data {
            return current;
        }
        let (Some(old_end), Some(new_end)) = (page_up(current), page_up(brk)) else { return current };
        let changed = if new_end > old_end {
            inner.grow_heap(thread, old_end, new_end, limits)
        } else {
            new_end == old_end || inner.unmap(thread, &(new_end..old_end)).is_ok()
        };
        if changed {
            inner.layout.brk = brk;
        }
        inner.layout.brk
    }
}

impl super::Inner {
    fn grow_heap(&mut self, thread: &mut dyn UserThread, from: u64, to: u64, limits: &MemLimits) -> bool {
        let len = to - from;
        let room = self
            .map
            .find_from(from)
            .is_none_or(|next| next.start.saturating_sub(self.map.guard_below(next.start)) >= to);
        let allowed = room
            && self.map.count() < super::MAX_MAP_COUNT
            && self.check_expand(len, true, limits).is_ok()
            && (!self.lock_future || self.check_lock(len, limits));
        if !allowed {
            return false;
        }
        let flags = if self.lock_future { AreaFlags::LOCKED } else { AreaFlags::empty() };
        let populate = if self.lock_future { libc::MAP_POPULATE } else { 0 };
        let area = Area::anonymous(from..to, libc::PROT_READ | libc::PROT_WRITE, flags);
        self.map_over(thread, area, populate).is_ok()
    }
}
