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
use nix::sys::eventfd::{EfdFlags, EventFd};
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
    /// Called, often under the object's lock, when `events` may have become possible, and perhaps for a little while after its
    /// entry was removed. Must not block and must not take locks other than its own leaf locks. Returns whether this used up an
    /// exclusive wake-up. Who takes one and then leaves without having looked must pass it on.
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

    /// Wakes those that wait for any of `events`: all that are not exclusive, and the first exclusive one that takes it. An
    /// end or an error is everybody's.
    pub fn wake(&self, events: Events) {
        self.wake_any(events);
    }

    /// As [`WaitQueue::wake`]. Returns whether anybody took it: who was about to look anyway does not.
    pub fn wake_any(&self, events: Events) -> bool {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.len.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let entries = self.entries.lock();
        let mut taken = false;
        let for_all = events.intersects(Events::ALWAYS | Events::RDHUP);
        let mut exclusive_done = false;
        // The first is the only one, most often. It is woken without the lock: it may run at once in the place of the calling
        // thread, and would wait for that.
        let (mut first, mut others) = (None, Vec::new());
        for entry in entries.slots.iter().flatten().filter(|entry| entry.mask.intersects(events)) {
            if entry.exclusive {
                exclusive_done = exclusive_done || (entry.target.wake(events) && !for_all);
            } else if first.is_none() {
                first = Some(entry.target.clone());
            } else {
                others.push(entry.target.clone());
            }
        }
        drop(entries);
        for target in first.into_iter().chain(others) {
            taken |= target.wake(events);
        }
        taken || exclusive_done
    }

    /// Wakes one exclusive waiter for any of `events`: what a waiter does that leaves with a wake-up it did not use.
    pub fn pass_on(&self, events: Events) {
        let entries = self.entries.lock();
        let mut exclusive =
            entries.slots.iter().flatten().filter(|entry| entry.exclusive && entry.mask.intersects(events));
        exclusive.any(|entry| entry.target.wake(events));
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::SeqCst) == 0
    }
}

/// Where one thread sleeps. A token: a wake-up that comes first makes the next `park` return at once.
#[derive(Default)]
pub struct Parker {
    token: Mutex<bool>,
    condvar: Condvar,
    /// Wakes it when it sleeps in [`Parker::park_with`]; made for the first such sleep.
    event: OnceLock<OwnedFd>,
    /// Which thread is in [`Parker::park_with`]; 0 for none.
    outside: AtomicUsize,
}

impl Parker {
    /// A parker with no token.
    pub fn new() -> Parker {
        Parker::default()
    }

    /// Sleeps until the token is there, and takes it. Returns `false` when `deadline` came first.
    pub fn park(&self, deadline: Option<Instant>) -> bool {
        let mut token = self.token.lock();
        while !*token {
            match deadline {
                None => self.condvar.wait(&mut token),
                Some(deadline) => {
                    if self.condvar.wait_until(&mut token, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        std::mem::take(&mut *token)
    }

    /// Takes the token away, if any: done before the last look at the condition.
    pub fn reset(&self) {
        *self.token.lock() = false;
    }

    /// Gives the token. Returns whether it was not there before.
    pub fn unpark(&self) -> bool {
        let mut token = self.token.lock();
        let fresh = !std::mem::replace(&mut *token, true);
        drop(token);
        if fresh {
            self.condvar.notify_one();
            let outside = self.outside.load(Ordering::SeqCst);
            // A thread that wakes itself looks at the token before it sleeps.
            if outside != 0
                && outside != thread_mark()
                && let Some(event) = self.event.get()
            {
                let _ = crate::io::host_write(event.as_fd(), &1u64.to_ne_bytes(), None);
            }
        }
        fresh
    }

    /// Whether the token is there.
    pub fn has_token(&self) -> bool {
        *self.token.lock()
    }

    /// As [`Parker::park`], but it is `sleep` that waits: until [`Parker::has_token`], the descriptor that it is given is
    /// readable, or a deadline of its own. It returns whether the descriptor is readable. For one who has something useful
    /// to do meanwhile. A late write may end a sleep early: `false` does not mean that a deadline has passed.
    pub fn park_with(&self, sleep: impl FnOnce(BorrowedFd<'_>) -> bool) -> crate::errno::Result<bool> {
        let event = match self.event.get() {
            Some(event) => event,
            None => {
                let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
                let made = EventFd::from_value_and_flags(0, flags)?;
                self.event.get_or_init(|| made.into())
            }
        };
        // SeqCst pairs with `unpark`: either that sees where we are, or we see its token.
        self.outside.store(thread_mark(), Ordering::SeqCst);
        let readable = !self.has_token() && sleep(event.as_fd());
        self.outside.store(0, Ordering::SeqCst);
        if readable {
            let _ = crate::io::host_read(event.as_fd(), &mut [0; 8], None);
        }
        Ok(std::mem::take(&mut *self.token.lock()))
    }
}

/// A number for the calling thread, other than 0.
fn thread_mark() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
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

    /// Who is woken runs at once, on a machine with one CPU, and takes its place out of the queue.
    #[test]
    fn a_waiter_is_woken_without_the_queues_lock() {
        struct Looker(Arc<WaitQueue>, AtomicUsize);
        impl Wakeable for Looker {
            fn wake(&self, _events: Events) -> bool {
                self.1.fetch_add(usize::from(self.0.entries.try_lock().is_some()), Ordering::Relaxed);
                true
            }
        }
        let queue = Arc::new(WaitQueue::new());
        let looker = Arc::new(Looker(queue.clone(), AtomicUsize::new(0)));
        let keys = [(); 3].map(|()| queue.add(looker.clone(), Events::IN, false));
        assert!(queue.wake_any(Events::IN));
        assert_eq!(looker.1.load(Ordering::Relaxed), 3);
        keys.into_iter().for_each(|key| queue.remove(key));
        assert!(!queue.wake_any(Events::IN));
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
        queue.wake(Events::IN | Events::HUP);
        assert_eq!(woken(&parkers), 3, "an end is for all");
    }

    #[test]
    fn an_unused_wake_up_is_passed_on() {
        let queue = WaitQueue::new();
        let parkers: Vec<_> = (0..3).map(|_| Arc::new(Parker::new())).collect();
        let first = queue.add(parkers[0].clone(), Events::IN, true);
        queue.add(parkers[1].clone(), Events::IN, true);
        queue.add(parkers[2].clone(), Events::IN, false);
        queue.remove(first);
        queue.pass_on(Events::OUT);
        assert!(!parkers[1].has_token());
        queue.pass_on(Events::IN);
        assert!(parkers[1].has_token() && !parkers[2].has_token(), "one exclusive waiter, and nobody else");
    }

    #[test]
    fn a_sleeper_elsewhere_is_woken() {
        let parker = Arc::new(Parker::new());
        let waker = parker.clone();
        let token = parker.park_with(|event| {
            let thread = std::thread::spawn(move || waker.unpark());
            let mut fds = [nix::poll::PollFd::new(event, nix::poll::PollFlags::POLLIN)];
            assert_eq!(nix::poll::poll(&mut fds, 10_000u16), Ok(1));
            thread.join().unwrap()
        });
        assert_eq!(token, Ok(true));
        parker.unpark();
        assert_eq!(parker.park_with(|_| panic!("the token was there")), Ok(true));
        let waker = parker.clone();
        assert_eq!(parker.park_with(|_| !waker.unpark()), Ok(true), "by itself, without the descriptor");
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
