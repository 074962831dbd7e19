//! Epolls that watch epolls: no cycles, and chains of at most five (`epoll_ctl(2)`, `ELOOP`).

use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use super::Epoll;
use crate::errno::{Errno, Result};

/// The most edges in a chain.
const MAX_EDGES: usize = 4;

/// Held while an edge is added, so that two threads cannot close a cycle together.
static NESTING: Mutex<()> = Mutex::new(());

/// Takes the lock.
pub(super) fn lock() -> MutexGuard<'static, ()> {
    NESTING.lock()
}

/// Whether `outer` may watch `inner`. `ELOOP` otherwise.
pub(super) fn check(outer: &Epoll, inner: &Epoll) -> Result<()> {
    let above = levels(outer, &mut |epoll| epoll.parents.lock().iter().filter_map(Weak::upgrade).collect(), None)?;
    let below = levels(inner, &mut children, Some(outer))?;
    if above + 1 + below > MAX_EDGES { Err(Errno::ELOOP) } else { Ok(()) }
}

/// `outer` watches `inner` no longer.
pub(super) fn forget_parent(inner: &Epoll, outer: &Epoll) {
    let mut parents = inner.parents.lock();
    let found = parents.iter().position(|parent| std::ptr::eq(parent.as_ptr(), outer));
    if let Some(at) = found {
        parents.swap_remove(at);
    }
}

/// The epolls that `epoll` watches.
fn children(epoll: &Epoll) -> Vec<Arc<Epoll>> {
    let items: Vec<_> = epoll.items.lock().values().cloned().collect();
    items
        .iter()
        .filter_map(|item| item.file())
        .filter_map(|file| file.object().clone().as_any().downcast_ref::<Epoll>().and_then(|inner| inner.me.upgrade()))
        .collect()
}

/// How many edges the longest chain from `start` has. Goes level by level, looking at each epoll once a level, so that
/// many ways to the same one cost nothing. `ELOOP` when it is too long or meets `forbidden`.
fn levels(start: &Epoll, next: &mut dyn FnMut(&Epoll) -> Vec<Arc<Epoll>>, forbidden: Option<&Epoll>) -> Result<usize> {
    let meets = |epoll: &Epoll| forbidden.is_some_and(|forbidden| std::ptr::eq(forbidden, epoll));
    let mut level = next(start);
    let mut depth = 0;
    while !level.is_empty() {
        depth += 1;
        if depth > MAX_EDGES || level.iter().any(|epoll| meets(epoll)) {
            return Err(Errno::ELOOP);
        }
        level = level.iter().flat_map(|epoll| next(epoll)).collect();
        level.sort_by_key(|epoll| Arc::as_ptr(epoll).addr());
        level.dedup_by_key(|epoll| Arc::as_ptr(epoll).addr());
    }
    Ok(depth)
}
