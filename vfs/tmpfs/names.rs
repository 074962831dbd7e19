//! A directory's names: found by name, listed by cookie.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Names and what they mean. Each has a cookie, given in the order of their making and never used again: a listing that
/// goes on from a cookie sees every name that was there all the time exactly once, whatever came and went meanwhile.
pub struct Names<T> {
    by_name: HashMap<Arc<[u8]>, (u64, T)>,
    by_cookie: BTreeMap<u64, Arc<[u8]>>,
    next: u64,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Names { by_name: HashMap::new(), by_cookie: BTreeMap::new(), next: 0 }
    }
}

impl<T> Names<T> {
    /// What `name` means.
    pub fn get(&self, name: &[u8]) -> Option<&T> {
        self.by_name.get(name).map(|(_, value)| value)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Gives `name` a meaning; returns an earlier one, whose place in the order it keeps.
    pub fn insert(&mut self, name: &[u8], value: T) -> Option<T> {
        if let Some((_, old)) = self.by_name.get_mut(name) {
            return Some(std::mem::replace(old, value));
        }
        let name: Arc<[u8]> = name.into();
        let cookie = self.next;
        self.next += 1;
        self.by_cookie.insert(cookie, name.clone());
        self.by_name.insert(name, (cookie, value));
        None
    }

    /// Takes `name` away.
    pub fn remove(&mut self, name: &[u8]) -> Option<T> {
        let (cookie, value) = self.by_name.remove(name)?;
        self.by_cookie.remove(&cookie);
        Some(value)
    }

    /// From `cookie` on, in order.
    pub fn from(&self, cookie: u64) -> impl Iterator<Item = (u64, &Arc<[u8]>, &T)> {
        let found = self.by_cookie.range(cookie..);
        found.filter_map(|(&cookie, name)| self.by_name.get(name).map(|(_, value)| (cookie, name, value)))
    }

    /// All meanings, in no order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.by_name.values().map(|(_, value)| value)
    }

    /// Takes everything away.
    pub fn drain(&mut self) -> Vec<T> {
        self.by_cookie.clear();
        self.by_name.drain().map(|(_, (_, value))| value).collect()
    }
}
