//! The ordered map of areas. It knows nothing of the platform: the callers carry out what they change here.

use std::collections::BTreeMap;
use std::ops::Range;

use super::area::{Area, AreaFlags};
use super::gaps::Gaps;
use super::user::PAGE;

/// The free space that must stay below an area that grows down: Linux's `stack_guard_gap`.
pub const GUARD_GAP: u64 = 256 * PAGE;

/// Sums over areas, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// All: `VmSize`, what `RLIMIT_AS` limits.
    pub total: u64,
    /// Private and writable: what `RLIMIT_DATA` limits.
    pub data: u64,
    /// Growing down: `VmStk`.
    pub stack: u64,
    /// Executable and not writable: `VmExe` and `VmLib`.
    pub exec: u64,
    /// Locked: `VmLck`, what `RLIMIT_MEMLOCK` limits.
    pub locked: u64,
}

impl Totals {
    fn change(&mut self, area: &Area, add: bool) {
        let len = area.len();
        let step = |sum: &mut u64| *sum = if add { sum.saturating_add(len) } else { sum.saturating_sub(len) };
        step(&mut self.total);
        if area.is_data() {
            step(&mut self.data);
        }
        if area.flags.contains(AreaFlags::GROWSDOWN) {
            step(&mut self.stack);
        }
        if area.prot & (libc::PROT_EXEC | libc::PROT_WRITE) == libc::PROT_EXEC {
            step(&mut self.exec);
        }
        if area.flags.contains(AreaFlags::LOCKED) {
            step(&mut self.locked);
        }
    }
}

/// Areas by address. None overlap; neighbours that could be one are one.
#[derive(Clone)]
pub struct AreaMap {
    areas: BTreeMap<u64, Area>,
    gaps: Gaps,
    totals: Totals,
    /// How many areas are to be left out of, or emptied in, a forked child.
    fork_special: usize,
}

fn fork_special(area: &Area) -> usize {
    area.flags.intersects(AreaFlags::DONTFORK | AreaFlags::WIPEONFORK).into()
}

impl AreaMap {
    /// An empty map of `range`.
    pub fn new(range: Range<u64>) -> AreaMap {
        AreaMap { areas: BTreeMap::new(), gaps: Gaps::new(range), totals: Totals::default(), fork_special: 0 }
    }

    /// The sums.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How many areas there are.
    pub fn count(&self) -> usize {
        self.areas.len()
    }

    /// Whether `fork(2)` must treat an area specially.
    pub fn has_fork_special(&self) -> bool {
        self.fork_special > 0
    }

    /// All areas, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Area> {
        self.areas.values()
    }

    /// The area that holds `addr`.
    pub fn find(&self, addr: u64) -> Option<&Area> {
        self.areas.range(..=addr).next_back().map(|(_, area)| area).filter(|area| addr < area.end)
    }

    /// The first area that ends above `addr`.
    pub fn find_from(&self, addr: u64) -> Option<&Area> {
        self.find(addr).or_else(|| self.areas.range(addr..).next().map(|(_, area)| area))
    }

    /// The last area that starts below `addr`.
    pub fn find_below(&self, addr: u64) -> Option<&Area> {
        self.areas.range(..addr).next_back().map(|(_, area)| area)
    }

    /// The areas that overlap `range`, in order.
    pub fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = &Area> {
        let first = self.find(range.start).map_or(range.start, |area| area.start);
        let end = range.end.max(first);
        self.areas.range(first..end).map(|(_, area)| area)
    }

    /// Whether nothing is in `range`.
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        self.overlapping(range).next().is_none()
    }

    /// Whether all of `range` is mapped.
    pub fn is_covered(&self, range: &Range<u64>) -> bool {
        self.covered_prefix(range) == range.end
    }

    /// Where the first hole in `range` begins; its end when there is none.
    pub fn covered_prefix(&self, range: &Range<u64>) -> u64 {
        let mut reached = range.start;
        for area in self.overlapping(range) {
            if area.start > reached {
                break;
            }
            reached = area.end.min(range.end);
        }
        reached
    }

    /// The highest free place for `len` bytes in `within`, clear of the guard gaps of areas that grow down.
    pub fn place(&self, len: u64, within: &Range<u64>) -> Option<u64> {
        self.gaps.highest(len, within, |gap| gap.start..gap.end.saturating_sub(self.guard_below(gap.end)))
    }

    /// How much must stay free below the area that starts at `addr`.
    pub fn guard_below(&self, addr: u64) -> u64 {
        match self.areas.get(&addr) {
            Some(area) if area.flags.contains(AreaFlags::GROWSDOWN) => GUARD_GAP,
            _ => 0,
        }
    }

    /// Makes `addr` a boundary between areas, if it lies in one.
    fn split(&mut self, addr: u64) {
        let Some(area) = self.find(addr).filter(|area| area.start < addr) else { return };
        let (start, upper) = (area.start, area.part(&(addr..area.end)));
        self.fork_special += fork_special(&upper);
        if let Some(lower) = self.areas.get_mut(&start) {
            lower.end = addr;
        }
        self.areas.insert(addr, upper);
    }

    /// Joins the areas that meet at `addr`, if they can be one.
    fn join(&mut self, addr: u64) {
        let Some(upper) = self.areas.get(&addr) else { return };
        let Some((&start, lower)) = self.areas.range(..addr).next_back() else { return };
        if lower.continues_in(upper) {
            self.fork_special -= fork_special(upper);
            let end = upper.end;
            self.areas.remove(&addr);
            if let Some(lower) = self.areas.get_mut(&start) {
                lower.end = end;
            }
        }
    }

    /// Enters an area where nothing is.
    pub fn insert(&mut self, area: Area) {
        let range = area.range();
        debug_assert!(self.is_free(&range));
        self.gaps.occupy(&range);
        self.totals.change(&area, true);
        self.fork_special += fork_special(&area);
        self.areas.insert(area.start, area);
        self.join(range.start);
        self.join(range.end);
    }

    /// Takes out what is in `range`.
    pub fn remove(&mut self, range: &Range<u64>) {
        self.split(range.start);
        self.split(range.end);
        let starts: Vec<u64> = self.areas.range(range.clone()).map(|(&start, _)| start).collect();
        for start in starts {
            if let Some(area) = self.areas.remove(&start) {
                self.totals.change(&area, false);
                self.fork_special -= fork_special(&area);
                self.gaps.release(&area.range());
            }
        }
    }

    /// Changes the areas in `range`, cut to it. `change` must leave their addresses alone.
    pub fn update(&mut self, range: &Range<u64>, mut change: impl FnMut(&mut Area)) {
        self.split(range.start);
        self.split(range.end);
        let mut starts = Vec::new();
        for (&start, area) in self.areas.range_mut(range.clone()) {
            self.totals.change(area, false);
            self.fork_special -= fork_special(area);
            change(area);
            self.totals.change(area, true);
            self.fork_special += fork_special(area);
            starts.push(start);
        }
        for start in starts {
            self.join(start);
        }
        self.join(range.end);
    }
}
