//! Futexes: `futex(2)`.
//!
//! ```text
//! FUTEX_WAIT: lock bucket, load word, equal? queue ──▶ unlock ──▶ park
//! FUTEX_WAKE: lock bucket, take waiters off         ──▶ unlock ──▶ unpark each
//! ```
//!
//! A waiter is on exactly one queue, that of its key, or has been woken; which of the two is decided under the lock of the
//! key's bucket. So a wait that is given up ([`FutexWaiter::cancel`]) learns whether a wake-up was spent on it.
//!
//! Costs: a wait is one copy of the word (a host call, made under the bucket's lock) and a park (a host futex); a wake with
//! nobody there is a lock and a look-up, and each one woken a host futex call, 25 to 50 us until it runs when that is on
//! another CPU. Requeueing wakes nobody and is much cheaper. Priority inheritance is not done: a PI futex has its rules of
//! ownership ([`pi`]), not a boost.
//!
//! Lock order: a bucket (two in the order of their index) > a waiter's place > the table of PI owners. Words are loaded and
//! exchanged under the bucket's lock; parkers are woken without it.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::errno::{Errno, Result};
use crate::platform::UserThread;
use crate::sentry::mm::user::UserPtr;
use crate::wait::Parker;

pub mod op;
pub mod pi;
pub mod robust;

pub use op::WakeOp;

/// `FUTEX_BITSET_MATCH_ANY`.
pub const MATCH_ANY: u32 = !0;

pub use crate::sentry::mm::fault::FutexKey;

/// A futex word, as the operations that change it need it.
pub trait Word {
    /// Its value. `EFAULT`.
    fn load(&mut self) -> Result<u32>;

    /// Atomically: `expected` becomes `new`. Returns what was there. `EFAULT`.
    fn compare_exchange(&mut self, expected: u32, new: u32) -> Result<u32>;
}

/// A word in the memory of a thread, through that thread: an exchange costs two switches to it.
pub struct ThreadWord<'a> {
    /// The thread, which is the caller's own.
    pub thread: &'a mut dyn UserThread,
    /// The word's address.
    pub addr: u64,
}

impl Word for ThreadWord<'_> {
    fn load(&mut self) -> Result<u32> {
        UserPtr::<u32>::new(self.addr).read(&**self.thread.space())
    }

    fn compare_exchange(&mut self, expected: u32, new: u32) -> Result<u32> {
        self.thread.compare_exchange(self.addr, expected, new)
    }
}

/// Changes a word by `change`, which returns `None` to leave it. Returns the value that it was computed from.
fn update(word: &mut dyn Word, mut change: impl FnMut(u32) -> Result<Option<u32>>) -> Result<u32> {
    let mut value = word.load()?;
    loop {
        let Some(new) = change(value)? else { return Ok(value) };
        let found = word.compare_exchange(value, new)?;
        if found == value {
            return Ok(value);
        }
        value = found;
    }
}

/// What kind of wait.
#[derive(Clone, Copy)]
enum Kind {
    Plain,
    /// For the lock at its key.
    Pi(pi::Locker),
    /// `FUTEX_WAIT_REQUEUE_PI`: for a signal that comes with a move to the lock at the second key.
    RequeuePi(pi::Locker, FutexKey),
}

const WAITING: u8 = 0;
const WOKEN: u8 = 1;
/// Woken as the heir of a PI lock whose owner has died: the word is still to be written.
const HEIR: u8 = 2;

struct Waiter {
    parker: Arc<Parker>,
    bitset: u32,
    state: AtomicU8,
    /// Where it is queued. Written under the bucket's lock (both buckets' when it moves).
    place: Mutex<Place>,
}

#[derive(Clone, Copy)]
struct Place {
    key: FutexKey,
    serial: u64,
    kind: Kind,
}

type Queue = BTreeMap<u64, Arc<Waiter>>;

#[derive(Default)]
struct Bucket {
    queues: HashMap<FutexKey, Queue>,
    /// Who has inherited a PI lock, and has not written the word yet.
    heirs: HashMap<FutexKey, pi::Locker>,
}

impl Bucket {
    fn remove(&mut self, key: FutexKey, serial: u64) -> Option<Arc<Waiter>> {
        let queue = self.queues.get_mut(&key)?;
        let waiter = queue.remove(&serial);
        if queue.is_empty() {
            self.queues.remove(&key);
        }
        waiter
    }

    fn first(&self, key: FutexKey) -> Option<Arc<Waiter>> {
        self.queues.get(&key)?.first_key_value().map(|(_, waiter)| waiter.clone())
    }

    /// Takes off up to `count` waiters of `key` that wait for a bit of `bitset`, and marks them woken. `EINVAL` at one
    /// that waits for a PI lock, which only its owner may give away.
    fn take(&mut self, key: FutexKey, count: usize, bitset: u32, woken: &mut Vec<Arc<Waiter>>) -> Result<()> {
        let Some(queue) = self.queues.get(&key) else { return Ok(()) };
        let mut chosen = Vec::new();
        let mut misused = false;
        for (serial, waiter) in queue {
            if chosen.len() >= count {
                break;
            }
            misused = !matches!(waiter.place.lock().kind, Kind::Plain);
            if misused {
                break;
            }
            if waiter.bitset & bitset != 0 {
                chosen.push(*serial);
            }
        }
        for serial in chosen {
            if let Some(waiter) = self.remove(key, serial) {
                waiter.state.store(WOKEN, Ordering::Release);
                woken.push(waiter);
            }
        }
        if misused { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

/// How many buckets: far more than threads that use futexes at one moment.
const BUCKETS: usize = 256;

/// The futexes of a sandbox.
pub struct FutexTable {
    buckets: Box<[Mutex<Bucket>]>,
    hasher: RandomState,
    next_serial: AtomicU64,
    owners: Mutex<pi::Owners>,
}

impl Default for FutexTable {
    fn default() -> Self {
        FutexTable {
            buckets: (0..BUCKETS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            next_serial: AtomicU64::new(0),
            owners: Mutex::default(),
        }
    }
}

/// One or two locked buckets.
struct Pair<'a> {
    first: MutexGuard<'a, Bucket>,
    second: Option<MutexGuard<'a, Bucket>>,
}

impl Pair<'_> {
    fn first(&mut self) -> &mut Bucket {
        &mut self.first
    }

    fn second(&mut self) -> &mut Bucket {
        self.second.as_deref_mut().unwrap_or(&mut self.first)
    }
}

/// What a requeueing did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requeued {
    /// How many were woken.
    pub woken: usize,
    /// How many wait at the other futex now.
    pub moved: usize,
}

impl FutexTable {
    /// No waiters.
    pub fn new() -> Arc<FutexTable> {
        Arc::default()
    }

    fn index(&self, key: FutexKey) -> usize {
        self.hasher.hash_one(key) as usize % BUCKETS
    }

    fn bucket(&self, key: FutexKey) -> MutexGuard<'_, Bucket> {
        self.buckets[self.index(key)].lock()
    }

    fn both(&self, first: FutexKey, second: FutexKey) -> Pair<'_> {
        let (a, b) = (self.index(first), self.index(second));
        match a.cmp(&b) {
            std::cmp::Ordering::Equal => Pair { first: self.buckets[a].lock(), second: None },
            std::cmp::Ordering::Less => {
                let first = self.buckets[a].lock();
                Pair { first, second: Some(self.buckets[b].lock()) }
            }
            std::cmp::Ordering::Greater => {
                let second = self.buckets[b].lock();
                Pair { first: self.buckets[a].lock(), second: Some(second) }
            }
        }
    }

    fn enqueue(
        self: &Arc<Self>,
        bucket: &mut Bucket,
        key: FutexKey,
        bitset: u32,
        kind: Kind,
        parker: &Arc<Parker>,
    ) -> FutexWaiter {
        let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
        let place = Mutex::new(Place { key, serial, kind });
        let waiter = Arc::new(Waiter { parker: parker.clone(), bitset, state: AtomicU8::new(WAITING), place });
        bucket.queues.entry(key).or_default().insert(serial, waiter.clone());
        FutexWaiter { table: self.clone(), waiter, active: true }
    }

    /// `FUTEX_WAIT`, `FUTEX_WAIT_BITSET`: queues the caller if `load` gives `expected`. It then parks on `parker` until
    /// [`FutexWaiter::is_woken`]. `EAGAIN`: another value; `EINVAL`: an empty bitset; what `load` fails with.
    pub fn wait(
        self: &Arc<Self>,
        key: FutexKey,
        bitset: u32,
        expected: u32,
        parker: &Arc<Parker>,
        load: &mut dyn FnMut() -> Result<u32>,
    ) -> Result<FutexWaiter> {
        self.wait_kind(key, bitset, expected, Kind::Plain, parker, load)
    }

    fn wait_kind(
        self: &Arc<Self>,
        key: FutexKey,
        bitset: u32,
        expected: u32,
        kind: Kind,
        parker: &Arc<Parker>,
        load: &mut dyn FnMut() -> Result<u32>,
    ) -> Result<FutexWaiter> {
        if bitset == 0 {
            return Err(Errno::EINVAL);
        }
        let mut bucket = self.bucket(key);
        if load()? != expected {
            return Err(Errno::EAGAIN);
        }
        Ok(self.enqueue(&mut bucket, key, bitset, kind, parker))
    }

    /// `futex_waitv(2)`: waits at all of `futexes`, `(key, expected)`, `load` giving the value of the one with that index.
    /// An error from one undoes all, unless one was woken meanwhile: `Ok` then, as always when one is
    /// ([`first_woken`]).
    pub fn wait_all(
        self: &Arc<Self>,
        futexes: &[(FutexKey, u32)],
        parker: &Arc<Parker>,
        load: &mut dyn FnMut(usize) -> Result<u32>,
    ) -> Result<Vec<FutexWaiter>> {
        let mut waiters = Vec::with_capacity(futexes.len());
        for (index, &(key, expected)) in futexes.iter().enumerate() {
            match self.wait(key, MATCH_ANY, expected, parker, &mut || load(index)) {
                Ok(waiter) => waiters.push(waiter),
                Err(_) if first_woken(&waiters).is_some() => break,
                Err(error) => return cancel_all(waiters).ok_or(error),
            }
        }
        Ok(waiters)
    }

    /// `FUTEX_WAKE`, `FUTEX_WAKE_BITSET`: wakes up to `count` waiters, first come first. Returns how many. `EINVAL`: an
    /// empty bitset, or a waiter for a PI lock with none woken before it.
    pub fn wake(&self, key: FutexKey, count: usize, bitset: u32) -> Result<usize> {
        if bitset == 0 {
            return Err(Errno::EINVAL);
        }
        let mut woken = Vec::new();
        let taken = self.bucket(key).take(key, count, bitset, &mut woken);
        finish(woken, taken)
    }

    /// `FUTEX_REQUEUE` and, with `compare` (the expected value and how to load it), `FUTEX_CMP_REQUEUE`: wakes up to `wake`
    /// waiters of `from`, and has up to `requeue` more wait at `to`. Linux returns the sum. `EAGAIN`: another value.
    pub fn requeue(
        &self,
        from: FutexKey,
        to: FutexKey,
        wake: usize,
        requeue: usize,
        compare: Option<(u32, &mut dyn FnMut() -> Result<u32>)>,
    ) -> Result<Requeued> {
        let mut woken = Vec::new();
        let mut moved = 0;
        let taken = {
            let mut pair = self.both(from, to);
            if let Some((expected, load)) = compare
                && load()? != expected
            {
                return Err(Errno::EAGAIN);
            }
            pair.first().take(from, wake, MATCH_ANY, &mut woken).and_then(|()| {
                moved = self.move_waiters(&mut pair, from, to, requeue)?;
                Ok(())
            })
        };
        let woken = match finish(woken, taken) {
            Err(_) if moved > 0 => 0,
            result => result?,
        };
        Ok(Requeued { woken, moved })
    }

    fn move_waiters(&self, pair: &mut Pair<'_>, from: FutexKey, to: FutexKey, count: usize) -> Result<usize> {
        let mut moved = 0;
        // Those that are moved onto the queue they are on stay where they are.
        if from == to {
            return Ok(pair.first().queues.get(&from).map_or(0, |queue| queue.len().min(count)));
        }
        while moved < count {
            let Some(waiter) = pair.first().first(from) else { break };
            if !matches!(waiter.place.lock().kind, Kind::Plain) {
                return if moved > 0 { Ok(moved) } else { Err(Errno::EINVAL) };
            }
            self.move_waiter(pair, waiter, to, Kind::Plain);
            moved += 1;
        }
        Ok(moved)
    }

    fn move_waiter(&self, pair: &mut Pair<'_>, waiter: Arc<Waiter>, to: FutexKey, kind: Kind) {
        let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
        let old = std::mem::replace(&mut *waiter.place.lock(), Place { key: to, serial, kind });
        pair.first().remove(old.key, old.serial);
        pair.second().queues.entry(to).or_default().insert(serial, waiter);
    }

    /// `FUTEX_WAKE_OP`: changes `word`, which is the second futex's; wakes up to `count` waiters of `first` and, if the old
    /// value compares, up to `second_count` of `second`. Returns how many.
    pub fn wake_op(
        &self,
        (first, count): (FutexKey, usize),
        (second, second_count): (FutexKey, usize),
        op: WakeOp,
        word: &mut dyn Word,
    ) -> Result<usize> {
        let mut woken = Vec::new();
        let taken = {
            let mut pair = self.both(first, second);
            let old = update(word, |value| Ok(Some(op.apply(value))))?;
            let taken = pair.first().take(first, count, MATCH_ANY, &mut woken);
            match taken {
                Ok(()) if op.compares(old) => pair.second().take(second, second_count, MATCH_ANY, &mut woken),
                other => other,
            }
        };
        finish(woken, taken)
    }

    /// How many wait at `key`.
    pub fn waiters(&self, key: FutexKey) -> usize {
        self.bucket(key).queues.get(&key).map_or(0, BTreeMap::len)
    }
}

/// Wakes those who were taken off, with no lock held. Their number, or the error if there are none.
fn finish(woken: Vec<Arc<Waiter>>, taken: Result<()>) -> Result<usize> {
    for waiter in &woken {
        waiter.parker.unpark();
    }
    match (woken.len(), taken) {
        (0, Err(error)) => Err(error),
        (count, _) => Ok(count),
    }
}

/// The first of several waits that has been woken.
pub fn first_woken(waiters: &[FutexWaiter]) -> Option<usize> {
    waiters.iter().position(FutexWaiter::is_woken)
}

/// Gives several waits up; with one woken meanwhile, gives them back instead.
fn cancel_all(mut waiters: Vec<FutexWaiter>) -> Option<Vec<FutexWaiter>> {
    let mut woken = false;
    for waiter in &mut waiters {
        woken |= waiter.leave();
    }
    woken.then_some(waiters)
}

/// A wait. Dropping it gives it up.
pub struct FutexWaiter {
    table: Arc<FutexTable>,
    waiter: Arc<Waiter>,
    active: bool,
}

impl FutexWaiter {
    /// Whether it is over: it was woken or, waiting for a PI lock, has been given that (see [`FutexWaiter::own`]).
    pub fn is_woken(&self) -> bool {
        self.waiter.state.load(Ordering::Acquire) != WAITING
    }

    /// Gives the wait up (a signal, the timeout). Returns whether it had been woken before: then a wake-up was spent on it
    /// and the call must succeed.
    pub fn cancel(mut self) -> bool {
        self.leave()
    }

    fn leave(&mut self) -> bool {
        self.active = false;
        while !self.is_woken() {
            let place = *self.waiter.place.lock();
            let mut bucket = self.table.bucket(place.key);
            // It may have been moved or woken before the bucket was locked.
            if self.is_woken() || self.waiter.place.lock().serial != place.serial {
                continue;
            }
            bucket.remove(place.key, place.serial);
            if let Kind::Pi(_) = place.kind {
                self.table.forget_owner(&bucket, place.key);
            }
            return false;
        }
        true
    }
}

impl Drop for FutexWaiter {
    fn drop(&mut self) {
        if self.active {
            self.leave();
        }
    }
}

#[cfg(test)]
mod tests;
