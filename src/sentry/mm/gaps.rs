//! The free ranges of an address space, by address and by size, so that a place is found without walking the areas.
//!
//! Gaps are kept in classes by the power of two of their page count. Every gap of a higher class than the length asked for
//! is long enough, so one look a class finds the highest; only the length's own class holds gaps that may be too short.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::user::PAGE;

const CLASSES: usize = 48;

/// How many gaps of one class are looked at before the class is given up.
const PROBES: usize = 1024;

/// The free ranges.
#[derive(Clone)]
pub struct Gaps {
    /// Start to end.
    by_start: BTreeMap<u64, u64>,
    /// Starts, by size.
    classes: Vec<BTreeSet<u64>>,
}

fn class(len: u64) -> usize {
    ((len / PAGE).max(1).ilog2() as usize).min(CLASSES - 1)
}

impl Gaps {
    /// All of `range` is free.
    pub fn new(range: Range<u64>) -> Gaps {
        let mut gaps = Gaps { by_start: BTreeMap::new(), classes: vec![BTreeSet::new(); CLASSES] };
        gaps.add(range);
        gaps
    }

    fn add(&mut self, range: Range<u64>) {
        if range.start < range.end {
            self.classes[class(range.end - range.start)].insert(range.start);
            self.by_start.insert(range.start, range.end);
        }
    }

    fn drop_gap(&mut self, start: u64, end: u64) {
        self.by_start.remove(&start);
        self.classes[class(end - start)].remove(&start);
    }

    /// `range`, which was free, is in use.
    pub fn occupy(&mut self, range: &Range<u64>) {
        let Some((&start, &end)) = self.by_start.range(..=range.start).next_back() else { return };
        debug_assert!(end >= range.end, "the range was free");
        self.drop_gap(start, end);
        self.add(start..range.start);
        self.add(range.end..end);
    }

    /// `range`, which was in use, is free.
    pub fn release(&mut self, range: &Range<u64>) {
        let mut free = range.clone();
        if let Some((&start, &end)) = self.by_start.range(..range.start).next_back()
            && end == range.start
        {
            self.drop_gap(start, end);
            free.start = start;
        }
        if let Some(&end) = self.by_start.get(&range.end) {
            self.drop_gap(range.end, end);
            free.end = end;
        }
        self.add(free);
    }

    /// The highest place for `len` bytes in `within`. `usable` cuts a gap to what may be used of it.
    pub fn highest(&self, len: u64, within: &Range<u64>, usable: impl Fn(Range<u64>) -> Range<u64>) -> Option<u64> {
        let mut best: Option<u64> = None;
        for starts in &self.classes[class(len)..] {
            for start in starts.range(..within.end).rev().take(PROBES) {
                let Some(&end) = self.by_start.get(start) else { continue };
                if best.is_some_and(|best| end <= best) {
                    break;
                }
                let gap = usable(*start..end);
                let (low, high) = (gap.start.max(within.start), gap.end.min(within.end));
                if high.checked_sub(low).is_some_and(|room| room >= len) {
                    best = best.max(Some(high - len));
                    break;
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_gap_that_fits() {
        let mut gaps = Gaps::new(0x1000..0x10_0000);
        let find = |gaps: &Gaps, len| gaps.highest(len, &(0..u64::MAX), |gap| gap);
        assert_eq!(find(&gaps, 0x3000), Some(0xf_d000));
        gaps.occupy(&(0xf_d000..0x10_0000));
        gaps.occupy(&(0xf_8000..0xf_b000));
        assert_eq!(find(&gaps, 0x2000), Some(0xf_b000));
        assert_eq!(find(&gaps, 0x3000), Some(0xf_5000));
        assert_eq!(gaps.highest(0x1000, &(0..0x8000), |gap| gap), Some(0x7000));
        assert_eq!(find(&gaps, 0x10_0000), None);
        gaps.release(&(0xf_8000..0xf_b000));
        assert_eq!(find(&gaps, 0x5000), Some(0xf_8000));
        gaps.release(&(0xf_d000..0x10_0000));
        assert_eq!(find(&gaps, 0xf_f000), Some(0x1000));
    }
}
