//! Which pages of a file are in memory: what a write adds to the account, without asking the host.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of page numbers, kept as ranges that neither touch nor overlap. A file written front to back is one range; there
/// are never more ranges than pages.
#[derive(Default)]
pub struct PageSet {
    ranges: BTreeMap<u64, u64>,
}

impl PageSet {
    /// How many of `range` it lacks.
    pub fn missing(&self, range: Range<u64>) -> u64 {
        let mut missing = range.end.saturating_sub(range.start);
        for (start, end) in self.overlapping(&range) {
            missing -= end.min(range.end) - start.max(range.start);
        }
        missing
    }

    /// Adds `range`; returns how many were not there.
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let added = self.missing(range.clone());
        if added == 0 {
            return 0;
        }
        let mut merged = range.clone();
        // A neighbour that touches is merged too, hence one page more on each side.
        let around = range.start.saturating_sub(1)..range.end.saturating_add(1);
        let touching: Vec<(u64, u64)> = self.overlapping(&around).collect();
        for (start, end) in touching {
            self.ranges.remove(&start);
            merged = merged.start.min(start)..merged.end.max(end);
        }
        self.ranges.insert(merged.start, merged.end);
        added
    }

    /// Removes `range`; returns how many were there.
    pub fn remove(&mut self, range: Range<u64>) -> u64 {
        let mut removed = 0;
        let touched: Vec<(u64, u64)> = self.overlapping(&range).collect();
        for (start, end) in touched {
            self.ranges.remove(&start);
            if start < range.start {
                self.ranges.insert(start, range.start);
            }
            if end > range.end {
                self.ranges.insert(range.end, end);
            }
            removed += end.min(range.end) - start.max(range.start);
        }
        removed
    }

    fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, u64)> + '_ {
        let range = range.clone();
        let below = self.ranges.range(..range.start).next_back().filter(|&(_, &end)| end > range.start);
        let from = if range.is_empty() { range.start..range.start } else { range };
        below.into_iter().chain(self.ranges.range(from)).map(|(&start, &end)| (start, end))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn agrees_with_a_set_of_numbers() {
        let (mut pages, mut model) = (PageSet::default(), BTreeSet::new());
        let mut seed = 12345u64;
        for _ in 0..4000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let start = (seed >> 33) % 100;
            let range = start..start + (seed >> 45) % 12;
            if seed >> 63 == 0 {
                let before = model.len();
                model.extend(range.clone());
                assert_eq!(pages.missing(range.clone()), (model.len() - before) as u64);
                assert_eq!(pages.insert(range), (model.len() - before) as u64);
            } else {
                let before = model.len();
                model.retain(|page| !range.contains(page));
                assert_eq!(pages.remove(range), (before - model.len()) as u64);
            }
            assert_eq!(pages.ranges.iter().map(|(start, end)| end - start).sum::<u64>(), model.len() as u64);
        }
        assert!(pages.ranges.iter().zip(pages.ranges.iter().skip(1)).all(|((_, end), (start, _))| end < start));
    }
}
