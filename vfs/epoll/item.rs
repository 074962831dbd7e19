//! One registration of an epoll instance.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Core, EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT, Epoll, Key, MODE_BITS, Quota, Watched};
use crate::errno::{Errno, Result};
use crate::vfs::file::{CloseWatcher, File, OpenFile};
use crate::wait::{Events, WaitKey, WaitQueue, Wakeable};

/// A watched file.
pub(super) struct Item {
    me: Weak<Item>,
    key: Key,
    /// For the file's closing.
    epoll: Weak<Epoll>,
    /// For wake-ups.
    core: Arc<Core>,
    file: Weak<OpenFile>,
    /// Events that are waited for, the mode bits left out; 0 while a one-shot item is spent. A copy of what `state` says,
    /// for wake-ups, which must not take `state`.
    interest: AtomicU32,
    /// Whether it is on the ready list. Written under that list's lock.
    pub(super) queued: AtomicBool,
    /// Whether it was deleted. Written under the ready list's lock.
    pub(super) dead: AtomicBool,
    state: Mutex<State>,
    _quota: Quota,
}

struct State {
    events: u32,
    data: u64,
    /// What a one-shot item waited for before its last report.
    spent: u32,
    /// The registration with the file.
    wait: Option<WaitKey>,
}

/// What there is to report of an item.
pub(super) enum Outcome {
    /// It is not ready after all.
    Nothing,
    /// These events, with this data; it is off the list.
    Once(u32, u64),
    /// The same, and it goes back on the list: level-triggered.
    Again(u32, u64),
}

impl Item {
    /// A registration that is not attached yet. `ENOSPC` when there are too many.
    pub(super) fn new(epoll: &Epoll, key: Key, file: &Arc<OpenFile>, events: u32, data: u64) -> Result<Arc<Item>> {
        let quota = Quota::take()?;
        Ok(Arc::new_cyclic(|me| Item {
            me: me.clone(),
            key,
            epoll: epoll.me.clone(),
            core: epoll.core.clone(),
            file: Arc::downgrade(file),
            interest: AtomicU32::new(events & !MODE_BITS),
            queued: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            state: Mutex::new(State { events, data, spent: 0, wait: None }),
            _quota: quota,
        }))
    }

    /// Registers with the file's queue, for all events: which of them matter may change without the queue's knowledge.
    pub(super) fn attach(self: &Arc<Self>, queue: &WaitQueue, exclusive: bool) {
        let key = queue.add(self.clone(), Events::all(), exclusive);
        self.state.lock().wait = Some(key);
    }

    /// Undoes [`Item::attach`].
    pub(super) fn detach(&self, queue: Option<&WaitQueue>) {
        self.interest.store(0, Ordering::SeqCst);
        let wait = self.state.lock().wait.take();
        if let (Some(queue), Some(wait)) = (queue, wait) {
            queue.remove(wait);
        }
    }

    /// The open file, unless it is closed.
    pub(super) fn file(&self) -> Option<Arc<OpenFile>> {
        self.file.upgrade()
    }

    pub(super) fn modify(&self, events: u32, data: u64) -> Result<()> {
        let mut state = self.state.lock();
        if state.events & EPOLLEXCLUSIVE != 0 {
            return Err(Errno::EINVAL);
        }
        (state.events, state.data, state.spent) = (events, data, 0);
        self.interest.store(events & !MODE_BITS, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn is_wanted(&self, events: Events) -> bool {
        self.interest.load(Ordering::SeqCst) & events.bits() != 0
    }

    /// Whether its file is ready now.
    pub(super) fn is_ready(&self) -> bool {
        self.file().is_some_and(|file| self.is_wanted(file.object().poll()))
    }

    /// Asks the file, and spends a one-shot item. The lock makes sure that two threads do not both report it.
    pub(super) fn report(&self) -> Outcome {
        // Declared first, so dropped last: closing the file here comes back to this item and takes its lock.
        let Some(file) = self.file() else { return Outcome::Nothing };
        let mut state = self.state.lock();
        let events = file.object().poll().bits() & self.interest.load(Ordering::SeqCst);
        if events == 0 {
            return Outcome::Nothing;
        }
        if state.events & EPOLLONESHOT != 0 {
            state.spent = state.events;
            state.events &= MODE_BITS;
            self.interest.store(0, Ordering::SeqCst);
        }
        if state.events & (EPOLLONESHOT | EPOLLET) != 0 {
            Outcome::Once(events, state.data)
        } else {
            Outcome::Again(events, state.data)
        }
    }

    /// Takes a report back that nobody got: a one-shot item waits again.
    pub(super) fn unreport(&self, events: u32, data: u64) -> bool {
        let mut state = self.state.lock();
        if state.data != data {
            return false;
        }
        if state.spent & events != 0 {
            state.events = std::mem::take(&mut state.spent);
            self.interest.store(state.events & !MODE_BITS, Ordering::SeqCst);
        }
        true
    }

    pub(super) fn watched(&self, fd: i32) -> Watched {
        let state = self.state.lock();
        Watched { fd, events: state.events, data: state.data }
    }
}

impl Wakeable for Item {
    fn wake(&self, events: Events) -> bool {
        let mut bits = events.bits();
        // Linux's wake-ups name both spellings; an object here may name one.
        if events.contains(Events::IN) {
            bits |= Events::RDNORM.bits();
        }
        if events.contains(Events::OUT) {
            bits |= Events::WRNORM.bits();
        }
        if self.interest.load(Ordering::SeqCst) & bits == 0 {
            return false;
        }
        // An exclusive wake-up is used up only by an epoll that somebody sleeps in: not by one whose threads are about to look
        // for an earlier event.
        !self.queued.load(Ordering::SeqCst) && self.me.upgrade().is_some_and(|me| self.core.make_ready(&me))
    }
}

impl CloseWatcher for Item {
    fn closed(&self, object: &Arc<dyn File>) {
        if let Some(epoll) = self.epoll.upgrade() {
            let item = epoll.items.lock().remove(&self.key);
            if let Some(item) = item {
                epoll.let_go(&item, object);
            }
        } else {
            self.detach(object.wait_queue());
        }
    }
}
