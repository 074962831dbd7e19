//! The list of items that may be ready: first come, first served.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::item::Item;

#[derive(Default)]
struct List {
    /// With the serial number of the appending.
    items: VecDeque<(u64, Arc<Item>)>,
    /// The next serial number.
    next: u64,
    /// How many of them were deleted since.
    dead: usize,
}

/// A leaf lock around the list. Each item is on it at most once.
#[derive(Default)]
pub(super) struct ReadyList(Mutex<List>);

impl ReadyList {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().items.is_empty()
    }

    /// A mark behind the last one: see [`ReadyList::pop`].
    pub(super) fn mark(&self) -> u64 {
        self.0.lock().next
    }

    /// How many places there are, those of deleted items included.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.0.lock().items.len()
    }

    /// Appends `item` unless it is there or deleted. Returns whether it was appended.
    pub(super) fn push(&self, item: &Arc<Item>) -> bool {
        let mut list = self.0.lock();
        if item.dead.load(Ordering::Relaxed) || item.queued.swap(true, Ordering::SeqCst) {
            return false;
        }
        let serial = list.next;
        list.next += 1;
        list.items.push_back((serial, item.clone()));
        true
    }

    /// The first that is not deleted, of those before `mark`. From now on a wake-up puts it back: so its file is to be
    /// asked after this.
    pub(super) fn pop(&self, mark: u64) -> Option<Arc<Item>> {
        let mut list = self.0.lock();
        loop {
            let (_, item) = list.items.pop_front_if(|(serial, _)| *serial < mark)?;
            item.queued.store(false, Ordering::SeqCst);
            if !item.dead.load(Ordering::Relaxed) {
                return Some(item);
            }
            list.dead -= 1;
        }
    }

    /// The first that is not deleted, left where it is.
    pub(super) fn first(&self) -> Option<Arc<Item>> {
        let mut list = self.0.lock();
        loop {
            let (_, item) = list.items.front()?;
            if !item.dead.load(Ordering::Relaxed) {
                return Some(item.clone());
            }
            list.items.pop_front();
            list.dead -= 1;
        }
    }

    /// Takes `item` off if it is the first.
    pub(super) fn pop_if(&self, item: &Arc<Item>) {
        let mut list = self.0.lock();
        if list.items.front().is_some_and(|(_, first)| Arc::ptr_eq(first, item)) {
            list.items.pop_front();
            item.queued.store(false, Ordering::SeqCst);
            list.dead -= usize::from(item.dead.load(Ordering::Relaxed));
        }
    }

    /// Takes all off, for the end.
    pub(super) fn clear(&self) {
        let gone = std::mem::take(&mut *self.0.lock());
        drop(gone);
    }

    /// Deletes `item`: it is never appended again. Its place is taken out once half of the list is such places.
    pub(super) fn remove(&self, item: &Item) {
        let mut list = self.0.lock();
        if item.dead.swap(true, Ordering::SeqCst) || !item.queued.load(Ordering::Relaxed) {
            return;
        }
        list.dead += 1;
        if list.dead > 16 && list.dead * 2 > list.items.len() {
            list.items.retain(|(_, item)| !item.dead.load(Ordering::Relaxed));
            list.dead = 0;
        }
    }
}
