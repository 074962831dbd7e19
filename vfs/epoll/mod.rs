//! `epoll(7)`: waits for many files and tells which are ready, at a cost that follows the ready ones.
//!
//! ```text
//! file's WaitQueue ──wake──> Item (interest, an atomic) ──> Epoll.ready ──wake──> Epoll.queue ──> a thread, or the
//!                                                            a list of items                      Item of an outer epoll
//! ```
//!
//! A wake-up puts the item on the ready list and asks nothing of the file; [`Epoll::wait`] takes items off, asks their
//! files, and puts level-triggered ones back at the end, so that all get their turn when `maxevents` is small. An item
//! refers weakly to its open file, and the file tells it when the last descriptor is gone ([`CloseWatcher`]).
//!
//! Of several threads in `epoll_wait(2)` one is woken for one ready item: they wait exclusively, and each that takes something
//! and leaves something wakes the next.
//!
//! Lock order: `nesting` (all epolls) > `items` > an item's `state` > the file's own locks > its wait queue > `ready` >
//! the epoll's wait queue > an outer epoll's `ready`, and so on outwards: nesting has no cycles.

mod item;
mod nesting;
mod ready;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use self::item::{Item, Outcome};
use self::ready::ReadyList;
use crate::errno::{Errno, Result};
use crate::vfs::anon;
use crate::vfs::file::{CloseWatcher, File, OpenFile};
use crate::vfs::inode::Attr;
use crate::wait::{Events, WaitQueue};

/// Only one of several epolls that watch a file is woken.
pub const EPOLLEXCLUSIVE: u32 = 1 << 28;
/// Keeps the machine awake; means nothing here, and is dropped as for callers without `CAP_BLOCK_SUSPEND`.
pub const EPOLLWAKEUP: u32 = 1 << 29;
/// Report once, then wait for `EPOLL_CTL_MOD`.
pub const EPOLLONESHOT: u32 = 1 << 30;
/// Report changes, not states.
pub const EPOLLET: u32 = 1 << 31;

/// The bits that say how to report, and are no events.
const MODE_BITS: u32 = EPOLLEXCLUSIVE | EPOLLWAKEUP | EPOLLONESHOT | EPOLLET;
/// What may go with `EPOLLEXCLUSIVE`: `epoll_ctl(2)`.
const EXCLUSIVE_OK: u32 =
    Events::IN.bits() | Events::OUT.bits() | Events::ALWAYS.bits() | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;

/// The most registrations in the sandbox: `/proc/sys/fs/epoll/max_user_watches`.
pub const MAX_WATCHES: usize = 1 << 18;

static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// What a registration is found by: a descriptor's number, and the open file it meant then.
type Key = (i32, usize);

/// What wake-ups reach. Items own it, so that a wake-up, which runs under a file's locks, can never be the one that drops
/// the [`Epoll`] itself and with it all registrations.
#[derive(Default)]
struct Core {
    ready: ReadyList,
    queue: WaitQueue,
}

impl Core {
    /// Puts `item` on the ready list and wakes. Returns whether anybody took the wake-up.
    fn make_ready(&self, item: &Arc<Item>) -> bool {
        self.ready.push(item) && self.queue.wake_any(Events::READ)
    }
}

/// An epoll instance.
pub struct Epoll {
    me: Weak<Epoll>,
    items: Mutex<BTreeMap<Key, Arc<Item>>>,
    core: Arc<Core>,
    /// Epolls that watch this one. Guarded by the nesting lock as well, which makes looking at several consistent.
    parents: Mutex<Vec<Weak<Epoll>>>,
}

/// One registration, for `/proc/PID/fdinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The descriptor's number when it was added.
    pub fd: i32,
    /// `epoll_event.events`; 0 after a one-shot report but for the mode bits.
    pub events: u32,
    /// `epoll_event.data`.
    pub data: u64,
}

impl Epoll {
    /// `epoll_create1(2)`.
    pub fn new() -> Arc<Epoll> {
        Arc::new_cyclic(|me| Epoll {
            me: me.clone(),
            items: Mutex::default(),
            core: Arc::default(),
            parents: Mutex::default(),
        })
    }

    /// `EPOLL_CTL_ADD`. `EPERM` (the file cannot be polled), `EINVAL` (itself; modes that exclude each other), `EEXIST`,
    /// `ELOOP` (a cycle of epolls, or more than five in a chain), `ENOSPC` (too many in the sandbox).
    pub fn add(&self, fd: i32, file: &Arc<OpenFile>, events: u32, data: u64) -> Result<()> {
        let queue = self.check_target(file)?;
        let inner = file.downcast::<Epoll>();
        let events = (events & !EPOLLWAKEUP) | Events::ALWAYS.bits();
        let exclusive = events & EPOLLEXCLUSIVE != 0;
        if exclusive && (inner.is_some() || events & !EXCLUSIVE_OK != 0) {
            return Err(Errno::EINVAL);
        }
        let nesting = inner.map(|inner| (inner, nesting::lock()));
        if let Some((inner, _)) = &nesting {
            nesting::check(self, inner)?;
        }
        let key = key(fd, file);
        let mut items = self.items.lock();
        if items.contains_key(&key) {
            return Err(Errno::EEXIST);
        }
        let item = Item::new(self, key, file, events, data)?;
        file.extra().lock().watchers.push(Arc::downgrade(&item) as Weak<dyn CloseWatcher>);
        item.attach(queue, exclusive);
        items.insert(key, item.clone());
        drop(items);
        if let Some((inner, _)) = nesting {
            inner.parents.lock().push(self.me.clone());
        }
        self.queue_if_ready(&item, file);
        Ok(())
    }

    /// `EPOLL_CTL_MOD`: `ENOENT`, `EINVAL` (`EPOLLEXCLUSIVE` now or when it was added).
    pub fn modify(&self, fd: i32, file: &Arc<OpenFile>, events: u32, data: u64) -> Result<()> {
        self.check_target(file)?;
        if events & EPOLLEXCLUSIVE != 0 {
            return Err(Errno::EINVAL);
        }
        let item = self.items.lock().get(&key(fd, file)).cloned().ok_or(Errno::ENOENT)?;
        item.modify((events & !EPOLLWAKEUP) | Events::ALWAYS.bits(), data)?;
        self.queue_if_ready(&item, file);
        Ok(())
    }

    /// `EPOLL_CTL_DEL`: `ENOENT`.
    pub fn delete(&self, fd: i32, file: &Arc<OpenFile>) -> Result<()> {
        self.check_target(file)?;
        let item = self.items.lock().remove(&key(fd, file)).ok_or(Errno::ENOENT)?;
        self.let_go(&item, file.object());
        let gone: *const Item = Arc::as_ptr(&item);
        file.extra().lock().watchers.retain(|watcher| !std::ptr::addr_eq(watcher.as_ptr(), gone));
        Ok(())
    }

    /// The part of `epoll_wait(2)` that does not wait: reports up to `max` ready files through `emit` (events, data) and
    /// returns how many. With none, the caller waits on [`File::wait_queue`] and calls again.
    pub fn wait(&self, max: usize, emit: &mut dyn FnMut(u32, u64)) -> usize {
        let mut count = 0;
        let mark = self.core.ready.mark(); // those put back while we go are for the next call
        while count < max {
            let Some(item) = self.core.ready.pop(mark) else { break };
            match item.report() {
                Outcome::Nothing => {}
                Outcome::Once(events, data) => {
                    emit(events, data);
                    count += 1;
                }
                Outcome::Again(events, data) => {
                    emit(events, data);
                    count += 1;
                    self.core.ready.push(&item);
                }
            }
        }
        if count > 0 && !self.core.ready.is_empty() {
            self.core.queue.wake(Events::READ); // another thread may take the next
        }
        count
    }

    /// Takes back a report (events, data) that could not be given to whoever waited (`EFAULT`): its item is ready as before.
    pub fn unreport(&self, events: u32, data: u64) {
        let items: Vec<_> = self.items.lock().values().cloned().collect();
        for item in items {
            if item.unreport(events, data)
                && let Some(file) = item.file()
            {
                self.queue_if_ready(&item, &file);
            }
        }
    }

    /// All registrations, for `/proc/PID/fdinfo`.
    pub fn watched(&self) -> Vec<Watched> {
        self.items.lock().iter().map(|(key, item)| item.watched(key.0)).collect()
    }

    /// What all operations of `epoll_ctl(2)` require of the file.
    fn check_target<'a>(&self, file: &'a Arc<OpenFile>) -> Result<&'a WaitQueue> {
        let queue = file.object().wait_queue().ok_or(Errno::EPERM)?;
        let itself = file.downcast::<Epoll>().is_some_and(|other| std::ptr::eq(other, self));
        if itself { Err(Errno::EINVAL) } else { Ok(queue) }
    }

    fn queue_if_ready(&self, item: &Arc<Item>, file: &OpenFile) {
        if item.is_wanted(file.object().poll()) {
            self.core.make_ready(item);
        }
    }

    /// Undoes a registration that is out of `items` already.
    fn let_go(&self, item: &Arc<Item>, object: &Arc<dyn File>) {
        item.detach(object.wait_queue());
        self.core.ready.remove(item);
        if let Some(inner) = object.as_any().downcast_ref::<Epoll>() {
            nesting::forget_parent(inner, self);
        }
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        for item in std::mem::take(self.items.get_mut()).into_values() {
            if let Some(file) = item.file() {
                self.let_go(&item, file.object());
                let gone: *const Item = Arc::as_ptr(&item);
                file.extra().lock().watchers.retain(|watcher| !std::ptr::addr_eq(watcher.as_ptr(), gone));
            } else {
                self.core.ready.remove(&item); // its file is being closed, which detaches it
            }
        }
        self.core.ready.clear(); // items own the core: a cycle otherwise
    }
}

fn key(fd: i32, file: &Arc<OpenFile>) -> Key {
    (fd, Arc::as_ptr(file).addr())
}

impl File for Epoll {
    /// Readable when some watched file is ready. What is found not to be leaves the ready list.
    fn poll(&self) -> Events {
        // An item stays on the list while it is asked: another thread's look must not find the list empty.
        while let Some(item) = self.core.ready.first() {
            if item.is_ready() {
                return Events::READ;
            }
            self.core.ready.pop_if(&item);
            if item.is_ready() {
                self.core.make_ready(&item); // it became so in between, and its wake-up found it on the list
            }
        }
        Events::empty()
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.core.queue)
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        Some(anon::shared_attr())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:[eventpoll]".into())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Counts a registration against [`MAX_WATCHES`] as long as it lives.
struct Quota;

impl Quota {
    fn take() -> Result<Quota> {
        let within = |count: usize| (count < MAX_WATCHES).then_some(count + 1);
        match WATCHES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within) {
            Ok(_) => Ok(Quota),
            Err(_) => Err(Errno::ENOSPC),
        }
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        WATCHES.fetch_sub(1, Ordering::Relaxed);
    }
}
