//! Wait queues: how anything in the sandbox learns that something became ready.
//!
//! An object whose readiness can change (pipe, socket, timer, child process) owns a [`WaitQueue`] and calls
//! [`WaitQueue::wake`] with what became possible. Whoever waits adds a [`Wakeable`]: a task's own [`Parker`], or an epoll
//! instance. Objects never block: they return `EAGAIN`, and the system-call layer waits on their queue and tries again.
//!
//! Registration comes before the last look, so that a change between the two is not missed:
//!
//! ```text
//! waiter                          object
//! add to queue
//! look: not ready                 becomes ready
//! park  <------ wake ------------ queue.wake(IN)
//! ```
//!
//! Lock order: an object's own lock may be held while calling `wake`; a `Wakeable::wake` takes only leaf locks (the
//! parker's futex, an epoll's ready list and, beneath it, that epoll's own queue).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bitflags::bitflags;
use parking_lot::{Condvar, Mutex};

bitflags! {
    /// What a file is ready for: the bits of `poll(2)` and `epoll_ctl(2)`, which have the same values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Events: u32 {
        const IN = 0x001;
        const PRI = 0x002;
        const OUT = 0x004;
        const ERR = 0x008;
        const HUP = 0x010;
        const NVAL = 0x020;
        const RDNORM = 0x040;
        const RDBAND = 0x080;
        const WRNORM = 0x100;
        const WRBAND = 0x200;
        const MSG = 0x400;
        const RDHUP = 0x2000;
    }
}

impl Events {
    /// Readable, in the two spellings that Linux always sets together.
    pub const READ: Events = Events::IN.union(Events::RDNORM);
    /// Writable, in the two spellings that Linux always sets together.
    pub const WRITE: Events = Events::OUT.union(Events::WRNORM);
    /// Reported whether asked for or not.
    pub const ALWAYS: Events = Events::ERR.union(Events::HUP);
}

/// Something that a queue can wake.
pub trait Wakeable: Send + Sync {
    /// Called, often under the object's lock, when `events` may have become possible. Must not block and must not take
    /// locks other than its own leaf locks. Returns whether this used up an exclusive wake-up.
    fn wake(&self, events: Events) -> bool;
}

/// What a registration on a [`WaitQueue`] is undone by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitKey {
    slot: usize,
    serial: u64,
}

struct Entry {
    serial: u64,
    mask: Events,
    exclusive: bool,
    target: Arc<dyn Wakeable>,
}

#[derive(Default)]
struct Entries {
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
    next_serial: u64,
}

/// The waiters of one object. Adding and removing are O(1); waking with nobody there is one atomic load.
#[derive(Default)]
pub struct WaitQueue {
    /// How many entries there are: lets `wake` skip the lock. Written under `entries`' lock.
    len: AtomicUsize,
    entries: Mutex<Entries>,
}

impl WaitQueue {
    /// An empty queue.
    pub const fn new() -> WaitQueue {
        WaitQueue {
            len: AtomicUsize::new(0),
            entries: Mutex::new(Entries { slots: Vec::new(), free: Vec::new(), next_serial: 0 }),
        }
    }

    /// Registers `target` for any of `mask` (errors and hang-ups are always included). With `exclusive`, one wake-up
    /// reaches only one of the exclusive waiters (`EPOLLEXCLUSIVE`, `accept(2)`).
    pub fn add(&self, target: Arc<dyn Wakeable>, mask: Events, exclusive: bool) -> WaitKey {
        let mut entries = self.entries.lock();
        let serial = entries.next_serial;
        entries.next_serial += 1;
        let entry = Entry { serial, mask: mask | Events::ALWAYS, exclusive, target };
        let slot = match entries.free.pop() {
            Some(slot) => {
                entries.slots[slot] = Some(entry);
                slot
            }
            None => {
                entries.slots.push(Some(entry));
                entries.slots.len() - 1
            }
        };
        // SeqCst pairs with `wake`: either the waker sees this entry, or the waiter's look that follows sees the change.
        self.len.fetch_add(1, Ordering::SeqCst);
        WaitKey { slot, serial }
    }

    /// Undoes [`WaitQueue::add`]; does nothing if that was done already.
    pub fn remove(&self, key: WaitKey) {
        let mut entries = self.entries.lock();
        let Some(slot) = entries.slots.get_mut(key.slot) else { return };
        if slot.as_ref().is_some_and(|entry| entry.serial == key.serial) {
            let gone = slot.take();
            entries.free.push(key.slot);
            self.len.fetch_sub(1, Ordering::SeqCst);
            drop(entries);
            drop(gone); // its destructor may take other locks
        }
    }

    /// Wakes those that wait for any of `events`: all that are not exclusive, and the first exclusive one that takes it.
    pub fn wake(&self, events: Events) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.len.load(Ordering::SeqCst) == 0 {
            return;
        }
        let entries = self.entries.lock();
        let mut exclusive_done = false;
        for entry in entries.slots.iter().flatten().filter(|entry| entry.mask.intersects(events)) {
            if entry.exclusive {
                exclusive_done = exclusive_done || entry.target.wake(events);
            } else {
                entry.target.wake(events);
            }
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::SeqCst) == 0
    }
}

/// Where one thread sleeps. A token: a wake-up that comes first makes the next `park` return at once.
///
/// The thread sleeps on a host futex, or, when it waits for a device meanwhile ([`Parker::park_on`]), on an eventfd that is
/// made when first needed.
#[derive(Default)]
pub struct Parker {
    token: Mutex<Token>,
    condvar: Condvar,
    event: OnceLock<OwnedFd>,
}

#[derive(Default)]
struct Token {
    given: bool,
    /// Whether the thread sleeps on the eventfd.
    polling: bool,
}

impl Parker {
    /// A parker with no token.
    pub fn new() -> Parker {
        Parker::default()
    }

    /// Sleeps until the token is there, and takes it. Returns `false` when `deadline` came first.
    pub fn park(&self, deadline: Option<Instant>) -> bool {
        let mut token = self.token.lock();
        while !token.given {
            match deadline {
                None => self.condvar.wait(&mut token),
                Some(deadline) => {
                    if self.condvar.wait_until(&mut token, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        std::mem::take(&mut token.given)
    }

    /// Sleeps in `sleep`, which must return soon after the descriptor that it is given becomes readable, and takes the
    /// token. Returns whether it was there; `None`, without sleeping, when the host has no descriptor left.
    pub fn park_on(&self, sleep: impl FnOnce(BorrowedFd<'_>)) -> Option<bool> {
        let event = match self.event.get() {
            Some(event) => event,
            None => {
                let event = nix::sys::eventfd::EventFd::from_flags(
                    nix::sys::eventfd::EfdFlags::EFD_CLOEXEC | nix::sys::eventfd::EfdFlags::EFD_NONBLOCK,
                );
                let event: OwnedFd = event.ok()?.into();
                self.event.get_or_init(|| event)
            }
        };
        let mut token = self.token.lock();
        if !token.given {
            token.polling = true;
            drop(token);
            sleep(event.as_fd());
            token = self.token.lock();
            token.polling = false;
            if token.given {
                // The count that woke us, or is about to: nobody adds to it before we sleep again.
                let mut count = [0; 8];
                let _ = nix::unistd::read(event, &mut count);
            }
        }
        Some(std::mem::take(&mut token.given))
    }

    /// Whether the token is there.
    pub fn is_unparked(&self) -> bool {
        self.token.lock().given
    }

    /// Takes the token away, if any: done before the last look at the condition.
    pub fn reset(&self) {
        self.token.lock().given = false;
    }

    /// Gives the token. Returns whether it was not there before.
    pub fn unpark(&self) -> bool {
        let mut token = self.token.lock();
        let fresh = !std::mem::replace(&mut token.given, true);
        if fresh && token.polling {
            if let Some(event) = self.event.get() {
                // With the lock held, so that the sleeper that takes the token has the count to read.
                let _ = nix::unistd::write(event, &1u64.to_ne_bytes());
            }
            return true;
        }
        drop(token);
        if fresh {
            self.condvar.notify_one();
        }
        fresh
    }
}

impl Wakeable for Parker {
    fn wake(&self, _events: Events) -> bool {
        self.unpark()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_only_whom_the_events_concern() {
        let queue = WaitQueue::new();
        let (reader, writer) = (Arc::new(Parker::new()), Arc::new(Parker::new()));
        queue.add(reader.clone(), Events::IN, false);
        let key = queue.add(writer.clone(), Events::OUT, false);
        queue.wake(Events::IN);
        assert!(reader.park(Some(Instant::now())));
        assert!(!writer.park(Some(Instant::now())));
        queue.remove(key);
        queue.remove(key);
        queue.wake(Events::OUT);
        assert!(!writer.park(Some(Instant::now())));
    }

    #[test]
    fn one_exclusive_waiter_takes_a_wake_up() {
        let queue = WaitQueue::new();
        let parkers: Vec<_> = (0..3).map(|_| Arc::new(Parker::new())).collect();
        for parker in &parkers {
            queue.add(parker.clone(), Events::IN, true);
        }
        let woken = |parkers: &[Arc<Parker>]| parkers.iter().filter(|p| p.park(Some(Instant::now()))).count();
        queue.wake(Events::IN);
        assert_eq!(woken(&parkers), 1);
        queue.wake(Events::IN);
        queue.wake(Events::IN);
        assert_eq!(woken(&parkers), 2, "a waiter that has its token already does not use up another wake-up");
    }

    #[test]
    fn errors_reach_everybody() {
        let queue = WaitQueue::new();
        let parker = Arc::new(Parker::new());
        queue.add(parker.clone(), Events::empty(), false);
        queue.wake(Events::HUP);
        assert!(parker.park(Some(Instant::now())));
    }
}
