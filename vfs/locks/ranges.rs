//! The record locks of one file, as ranges of bytes.

use super::{LockKind, LockOwner, RecordLock};

/// Record locks in the order of their starts. Those of one owner do not overlap.
#[derive(Default)]
pub(super) struct Ranges(Vec<RecordLock>);

impl Ranges {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &RecordLock> {
        self.0.iter()
    }

    /// The first lock of another owner that excludes `wanted`.
    pub(super) fn conflict(&self, wanted: &RecordLock) -> Option<RecordLock> {
        let excludes = |held: &&RecordLock| {
            held.owner != wanted.owner
                && held.start <= wanted.last
                && wanted.start <= held.last
                && (held.kind == LockKind::Exclusive || wanted.kind == LockKind::Exclusive)
        };
        self.0.iter().find(excludes).copied()
    }

    /// Gives `owner`'s locks within `start..=last` up. Returns whether there were any.
    pub(super) fn clear(&mut self, owner: LockOwner, start: u64, last: u64) -> bool {
        let mut rests = Vec::new();
        let before = self.0.len();
        self.0.retain(|held| {
            if held.owner != owner || held.last < start || last < held.start {
                return true;
            }
            if held.start < start {
                rests.push(RecordLock { last: start - 1, ..*held });
            }
            if held.last > last {
                rests.push(RecordLock { start: last + 1, ..*held });
            }
            false
        });
        let changed = self.0.len() != before;
        rests.into_iter().for_each(|rest| self.insert(rest));
        changed
    }

    /// Gives `wanted.owner` the lock, in the place of what it holds there, merged with its neighbours of the same kind.
    pub(super) fn set(&mut self, wanted: &RecordLock) {
        self.clear(wanted.owner, wanted.start, wanted.last);
        let mut merged = *wanted;
        self.0.retain(|held| {
            let alike = held.owner == wanted.owner && held.kind == wanted.kind;
            let before = held.last.checked_add(1) == Some(merged.start);
            let behind = merged.last.checked_add(1) == Some(held.start);
            if !alike || !(before || behind) {
                return true;
            }
            merged.start = merged.start.min(held.start);
            merged.last = merged.last.max(held.last);
            false
        });
        self.insert(merged);
    }

    fn insert(&mut self, lock: RecordLock) {
        let at = self.0.partition_point(|held| held.start < lock.start);
        self.0.insert(at, lock);
    }
}
