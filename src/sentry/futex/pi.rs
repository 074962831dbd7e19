//! PI futexes: words that name their owner. `futex(2)`, "Priority-inheritance futexes".
//!
//! The word is 0 when free, else the owner's thread id, with [`WAITERS`] when the owner must ask the kernel to unlock.
//! Unlocking hands the lock to the first waiter; a waiter that is woken owns it already.
//!
//! A lock whose owner ends goes to its first waiter with [`OWNER_DIED`]: that waiter writes the word itself
//! ([`FutexWaiter::own`]), since only it is sure to have the word mapped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{
    Bucket, FutexKey, FutexTable, FutexWaiter, HEIR, Kind, MATCH_ANY, Pair, Requeued, WOKEN, Waiter, Word, update,
};
use crate::errno::{Errno, Result};
use crate::wait::Parker;

/// `FUTEX_WAITERS`.
pub const WAITERS: u32 = 0x8000_0000;
/// `FUTEX_OWNER_DIED`.
pub const OWNER_DIED: u32 = 0x4000_0000;
/// `FUTEX_TID_MASK`.
pub const TID_MASK: u32 = 0x3fff_ffff;

/// A thread as PI futexes know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locker {
    /// Its id as its own words have it: that of its PID namespace.
    pub tid: i32,
    /// Its number in the sandbox, never used again.
    pub thread: u64,
}

impl Locker {
    fn word(self) -> u32 {
        self.tid as u32 & TID_MASK
    }
}

/// Finds the thread with this id in the caller's PID namespace; `None` when there is none, or it has begun to exit.
pub type FindThread<'a> = &'a dyn Fn(i32) -> Option<u64>;

/// What came of a try to lock.
pub enum PiLock {
    /// The caller owns it.
    Acquired,
    /// The caller waits; once woken it owns the lock.
    Waiting(FutexWaiter),
}

/// Which locks with waiters each thread owns, and who owns each.
#[derive(Default)]
pub(super) struct Owners {
    by_key: HashMap<FutexKey, u64>,
    by_thread: HashMap<u64, HashSet<FutexKey>>,
}

impl Owners {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.by_thread.is_empty()
    }

    fn set(&mut self, key: FutexKey, thread: Option<u64>) {
        if let Some(old) = self.by_key.remove(&key)
            && let Some(keys) = self.by_thread.get_mut(&old)
        {
            keys.remove(&key);
            if keys.is_empty() {
                self.by_thread.remove(&old);
            }
        }
        if let Some(thread) = thread {
            self.by_key.insert(key, thread);
            self.by_thread.entry(thread).or_default().insert(key);
        }
    }
}

/// What is known of a lock beside its word.
#[derive(Clone, Copy, PartialEq)]
enum LockState {
    NotWaited,
    Waited,
    Inherited(Locker),
}

enum Claim {
    Acquired,
    /// Somebody owns it, and has been told by [`WAITERS`].
    Owned(u64),
}

/// Takes the lock if it is free, else marks it as waited for. `EDEADLK`: the caller owns it; `ESRCH`: its owner does not
/// exist; `EINVAL`: the word says free, and there are waiters. Until an heir has written the word, that counts for nothing.
fn claim(word: &mut dyn Word, locker: Locker, state: LockState, more: bool, find: FindThread<'_>) -> Result<Claim> {
    let waited = match state {
        LockState::Inherited(heir) if heir == locker => return Err(Errno::EDEADLK),
        LockState::Inherited(heir) => return Ok(Claim::Owned(heir.thread)),
        LockState::Waited => true,
        LockState::NotWaited => false,
    };
    let old = update(word, |value| match value & TID_MASK {
        owner if owner == locker.word() => Err(Errno::EDEADLK),
        0 if waited => Err(Errno::EINVAL),
        0 => Ok(Some(value & OWNER_DIED | locker.word() | if more { WAITERS } else { 0 })),
        _ if value & WAITERS != 0 => Ok(None),
        _ => Ok(Some(value | WAITERS)),
    })?;
    match old & TID_MASK {
        0 => Ok(Claim::Acquired),
        owner => find(owner as i32).map(Claim::Owned).ok_or(Errno::ESRCH),
    }
}

impl FutexTable {
    /// `FUTEX_LOCK_PI`, `FUTEX_LOCK_PI2`. A waiter that was woken calls [`FutexWaiter::own`].
    /// `EDEADLK`: the caller owns it; `ESRCH`: its owner does not exist; `EINVAL`: the word and the waiters do not agree;
    /// `EFAULT`.
    ///
    /// A thread that exits must not be found by `find` any more before it calls [`FutexTable::exit_pi`].
    pub fn lock_pi(
        self: &Arc<Self>,
        key: FutexKey,
        word: &mut dyn Word,
        locker: Locker,
        parker: &Arc<Parker>,
        find: FindThread<'_>,
    ) -> Result<PiLock> {
        let mut bucket = self.bucket(key);
        let state = check_pi(&bucket, key)?;
        match claim(word, locker, state, false, find)? {
            Claim::Acquired => Ok(PiLock::Acquired),
            Claim::Owned(owner) => {
                let waiter = self.enqueue(&mut bucket, key, MATCH_ANY, Kind::Pi(locker), parker);
                self.owners.lock().set(key, Some(owner));
                drop(bucket);
                // The owner may have gone through its locks just before this one was entered; an heir's was entered before.
                let inherited = matches!(state, LockState::Inherited(_));
                if inherited || find((word.load()? & TID_MASK) as i32).is_some() {
                    return Ok(PiLock::Waiting(waiter));
                }
                // It did, unless the lock was handed to the caller meanwhile.
                let mut waiter = waiter;
                if waiter.leave() { Ok(PiLock::Waiting(waiter)) } else { Err(Errno::ESRCH) }
            }
        }
    }

    /// `FUTEX_TRYLOCK_PI`: `EAGAIN` when somebody owns it.
    pub fn trylock_pi(&self, key: FutexKey, word: &mut dyn Word, locker: Locker) -> Result<()> {
        let bucket = self.bucket(key);
        let state = check_pi(&bucket, key)?;
        update(word, |value| match value & TID_MASK {
            owner if owner == locker.word() => Err(Errno::EDEADLK),
            0 if state == LockState::NotWaited => Ok(Some(value & OWNER_DIED | locker.word())),
            _ => Err(Errno::EAGAIN),
        })
        .map(drop)
    }

    /// `FUTEX_UNLOCK_PI`: gives the lock to its first waiter, or frees it. `EPERM`: the caller does not own it; `EINVAL`:
    /// those who wait there do not wait for a PI lock.
    pub fn unlock_pi(&self, key: FutexKey, word: &mut dyn Word, locker: Locker) -> Result<()> {
        let mut bucket = self.bucket(key);
        let owned = |value: u32| if value & TID_MASK == locker.word() { Ok(()) } else { Err(Errno::EPERM) };
        owned(word.load()?)?;
        let Some(heir) = bucket.first(key) else {
            return update(word, |value| owned(value).map(|()| Some(0))).map(drop);
        };
        let place = *heir.place.lock();
        let Kind::Pi(next) = place.kind else { return Err(Errno::EINVAL) };
        update(word, |value| owned(value).map(|()| Some(next.word() | WAITERS)))?;
        self.hand_over(&mut bucket, key, &heir, next, WOKEN);
        drop(bucket);
        heir.parker.unpark();
        Ok(())
    }

    /// For a thread that ends, after its robust list: its locks go to their first waiters.
    pub fn exit_pi(&self, thread: u64) {
        let keys: Vec<_> = match self.owners.lock().by_thread.get(&thread) {
            Some(keys) => keys.iter().copied().collect(),
            None => return,
        };
        for key in keys {
            let mut bucket = self.bucket(key);
            if self.owners.lock().by_key.get(&key) != Some(&thread) {
                continue;
            }
            // It may itself be an heir that did not come to write the word.
            bucket.heirs.remove(&key);
            let Some(heir) = bucket.first(key) else {
                self.owners.lock().set(key, None);
                continue;
            };
            let place = *heir.place.lock();
            if let Kind::Pi(next) = place.kind {
                self.hand_over(&mut bucket, key, &heir, next, HEIR);
                drop(bucket);
                heir.parker.unpark();
            }
        }
    }

    /// `FUTEX_WAIT_REQUEUE_PI`: waits at `key` until [`FutexTable::cmp_requeue_pi`] has it wait for, or own, the lock at
    /// `target`. Errors as for [`FutexTable::wait`]; `EINVAL`: the two are the same.
    #[allow(clippy::too_many_arguments, reason = "the system call's own")]
    pub fn wait_requeue_pi(
        self: &Arc<Self>,
        key: FutexKey,
        bitset: u32,
        expected: u32,
        target: FutexKey,
        locker: Locker,
        parker: &Arc<Parker>,
        load: &mut dyn FnMut() -> Result<u32>,
    ) -> Result<FutexWaiter> {
        if key == target {
            return Err(Errno::EINVAL);
        }
        self.wait_kind(key, bitset, expected, Kind::RequeuePi(locker, target), parker, load)
    }

    /// `FUTEX_CMP_REQUEUE_PI` with `nr_wake` 1, the only value allowed: the first waiter of `from` gets the lock at `to`, whose
    /// word is `word`, if it is free; up to `requeue` more, and it if not, wait for that. `EAGAIN`: the word at `from`,
    /// which `load` gives, is not `expected`; `EINVAL`: a waiter that does not wait for a move to `to`; errors of
    /// [`FutexTable::lock_pi`].
    pub fn cmp_requeue_pi(
        &self,
        (from, to): (FutexKey, FutexKey),
        requeue: usize,
        expected: u32,
        load: &mut dyn FnMut() -> Result<u32>,
        word: &mut dyn Word,
        find: FindThread<'_>,
    ) -> Result<Requeued> {
        if from == to {
            return Err(Errno::EINVAL);
        }
        let mut done = Requeued::default();
        let mut pair = self.both(from, to);
        if load()? != expected {
            return Err(Errno::EAGAIN);
        }
        let Some((first, locker)) = next_to_move(&mut pair, from, to)? else { return Ok(done) };
        let state = check_pi(pair.second(), to)?;
        let more = requeue > 0 && pair.first().queues.get(&from).is_some_and(|queue| queue.len() > 1);
        let mut limit = requeue;
        let owner = match claim(word, locker, state, more, find)? {
            Claim::Acquired => {
                let serial = first.place.lock().serial;
                pair.first().remove(from, serial);
                first.state.store(WOKEN, Ordering::Release);
                done.woken = 1;
                locker.thread
            }
            Claim::Owned(owner) => {
                limit = limit.saturating_add(1);
                owner
            }
        };
        while done.moved < limit
            && let Ok(Some((waiter, locker))) = next_to_move(&mut pair, from, to)
        {
            self.move_waiter(&mut pair, waiter, to, Kind::Pi(locker));
            done.moved += 1;
        }
        if done.moved > 0 {
            self.owners.lock().set(to, Some(owner));
        }
        drop(pair);
        if done.woken > 0 {
            first.parker.unpark();
        }
        Ok(done)
    }

    fn hand_over(&self, bucket: &mut Bucket, key: FutexKey, heir: &Arc<Waiter>, next: Locker, state: u8) {
        let serial = heir.place.lock().serial;
        bucket.remove(key, serial);
        heir.state.store(state, Ordering::Release);
        let inherited = state == HEIR;
        if inherited {
            bucket.heirs.insert(key, next);
        }
        let owner = (inherited || bucket.queues.contains_key(&key)).then_some(next.thread);
        self.owners.lock().set(key, owner);
    }

    /// After a waiter has left: a lock that nobody waits for has no owner here.
    pub(super) fn forget_owner(&self, bucket: &Bucket, key: FutexKey) {
        if !bucket.queues.contains_key(&key) && !bucket.heirs.contains_key(&key) {
            self.owners.lock().set(key, None);
        }
    }
}

/// Whether anybody waits for the lock at `key`. `EINVAL` when they wait for something else.
fn check_pi(bucket: &Bucket, key: FutexKey) -> Result<LockState> {
    match (bucket.heirs.get(&key), bucket.first(key)) {
        (Some(heir), _) => Ok(LockState::Inherited(*heir)),
        (None, None) => Ok(LockState::NotWaited),
        (None, Some(waiter)) if matches!(waiter.place.lock().kind, Kind::Pi(_)) => Ok(LockState::Waited),
        (None, Some(_)) => Err(Errno::EINVAL),
    }
}

/// The first waiter of `from`, which waits for a move to `to`.
fn next_to_move(pair: &mut Pair<'_>, from: FutexKey, to: FutexKey) -> Result<Option<(Arc<Waiter>, Locker)>> {
    let Some(waiter) = pair.first().first(from) else { return Ok(None) };
    let place = *waiter.place.lock();
    match place.kind {
        Kind::RequeuePi(locker, target) if target == to => Ok(Some((waiter, locker))),
        _ => Err(Errno::EINVAL),
    }
}

impl FutexWaiter {
    /// For a waiter for a PI lock that was woken: makes the word say so when the last owner has died. `word` is the lock's.
    pub fn own(&self, word: &mut dyn Word) -> Result<()> {
        if self.waiter.state.load(Ordering::Acquire) != HEIR {
            return Ok(());
        }
        let place = *self.waiter.place.lock();
        let Kind::Pi(locker) = place.kind else { return Ok(()) };
        let mut bucket = self.table.bucket(place.key);
        if bucket.heirs.remove(&place.key).is_none() {
            return Ok(()); // done before
        }
        let waited = bucket.queues.contains_key(&place.key);
        let flags = OWNER_DIED | if waited { WAITERS } else { 0 };
        let written = update(word, |value| Ok(Some(locker.word() | flags | value & WAITERS)));
        self.table.forget_owner(&bucket, place.key);
        written.map(drop)
    }
}
