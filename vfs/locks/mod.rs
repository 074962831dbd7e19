//! File locks: record locks of processes and of open file descriptions (`fcntl(2)`), and `flock(2)`.
//!
//! The locks of a file hang on its inode. Nothing here blocks: a lock that conflicts is `EAGAIN`, and the caller waits on
//! [`FileLocks::wait_queue`], having announced itself with [`FileLocks::begin_wait`], which detects deadlocks of
//! processes.
//!
//! Lock order: a file's `state` > the table of waiting processes; both are leaves otherwise.

mod ranges;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::sentry::namespaces::Pid;
use crate::vfs::inode::Inode;
use crate::wait::{Events, WaitQueue};

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LockOwner {
    /// A process (its table of descriptors): `F_SETLK`.
    Process(u64),
    /// An open file description, by [`OpenFile::id`](super::file::OpenFile::id): `F_OFD_SETLK`, `flock(2)`.
    Description(u64),
}

/// What a lock allows others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// `F_RDLCK`, `LOCK_SH`.
    Shared,
    /// `F_WRLCK`, `LOCK_EX`.
    Exclusive,
}

/// One record lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLock {
    /// Its kind.
    pub kind: LockKind,
    /// The first byte.
    pub start: u64,
    /// The last byte; `i64::MAX` is the end of the file, wherever that is.
    pub last: u64,
    /// Who holds it.
    pub owner: LockOwner,
    /// The process that took it; `None` for the lock of an open file description.
    pub pid: Option<Pid>,
}

impl RecordLock {
    /// What `F_GETLK` reports to a process of `namespace`; as [`Lock::pid_seen_from`].
    pub fn pid_seen_from(&self, namespace: u64) -> i32 {
        self.pid.map_or(-1, |pid| pid.seen_from(namespace))
    }
}

/// A lock as `/proc/locks` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// `fcntl(2)`.
    Record(RecordLock),
    /// `flock(2)`.
    Whole {
        /// Its kind.
        kind: LockKind,
        /// The process that took it.
        pid: Pid,
    },
}

impl Lock {
    /// The process that `namespace` sees it to be of: -1 for an open file description's, 0 for a process of another namespace.
    pub fn pid_seen_from(&self, namespace: u64) -> i32 {
        match self {
            Lock::Record(lock) => lock.pid_seen_from(namespace),
            Lock::Whole { pid, .. } => pid.seen_from(namespace),
        }
    }

    fn conflicts(&self, held: &Lock) -> bool {
        let kind = |lock: &Lock| match lock {
            Lock::Record(lock) => lock.kind,
            Lock::Whole { kind, .. } => *kind,
        };
        let overlap = match (self, held) {
            (Lock::Record(one), Lock::Record(two)) => {
                one.owner != two.owner && one.start <= two.last && two.start <= one.last
            }
            (Lock::Whole { .. }, Lock::Whole { .. }) => true,
            _ => false,
        };
        overlap && (kind(self) == LockKind::Exclusive || kind(held) == LockKind::Exclusive)
    }
}

/// How many record locks one file may carry.
pub const LOCKS_MAX: usize = 16_384;

#[derive(Default)]
struct State {
    records: ranges::Ranges,
    /// `flock(2)`, by description, with the process that took it.
    whole: HashMap<u64, (LockKind, Pid)>,
    /// Who waits, by number.
    announced: Vec<(u64, Lock)>,
    next: u64,
}

/// The locks of one file.
#[derive(Default)]
pub struct FileLocks {
    state: Mutex<State>,
    queue: WaitQueue,
}

/// For each process that waits, those that hold what it wants. A process with several threads may wait several times.
static WAITING: Mutex<Option<HashMap<LockOwner, Vec<LockOwner>>>> = Mutex::new(None);

/// A process that waits for a record lock, until this is dropped.
#[derive(Debug)]
pub struct Waiting {
    owner: LockOwner,
    holder: LockOwner,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = WAITING.lock();
        let Some(table) = waiting.as_mut() else { return };
        let Some(holders) = table.get_mut(&self.owner) else { return };
        if let Some(at) = holders.iter().position(|holder| *holder == self.holder) {
            holders.swap_remove(at);
        }
        if holders.is_empty() {
            table.remove(&self.owner);
        }
    }
}

/// Somebody waits for a lock, as `/proc/locks` tells, until this is dropped.
pub struct Announced<'a> {
    locks: &'a FileLocks,
    number: u64,
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.locks.state.lock().announced.retain(|(number, _)| *number != self.number);
    }
}

/// Whether `from` waits, through others, for `owner`.
fn waits_for(table: &HashMap<LockOwner, Vec<LockOwner>>, from: LockOwner, owner: LockOwner) -> bool {
    let mut seen = HashSet::new();
    let mut left = vec![from];
    while let Some(at) = left.pop() {
        if at == owner {
            return true;
        }
        if seen.insert(at) {
            left.extend(table.get(&at).into_iter().flatten());
        }
    }
    false
}

impl FileLocks {
    /// The locks of `inode`. `ENOLCK` where the file system has no place for them.
    pub fn of(inode: &Arc<dyn Inode>) -> Result<Arc<FileLocks>> {
        let attachments = inode.attachments().ok_or(Errno::ENOLCK)?;
        Ok(attachments.get_or_insert(FileLocks::default))
    }

    /// `F_GETLK`: the first lock that `wanted` conflicts with.
    pub fn conflict(&self, wanted: &RecordLock) -> Option<RecordLock> {
        self.state.lock().records.conflict(wanted)
    }

    /// `F_SETLK`: takes a lock, merging it with those of its owner. `EAGAIN` when it conflicts, `ENOLCK` (too many).
    pub fn lock(&self, wanted: &RecordLock) -> Result<()> {
        let mut state = self.state.lock();
        if state.records.conflict(wanted).is_some() {
            return Err(Errno::EAGAIN);
        }
        // One lock may cut another in two.
        if state.records.len() + 2 > LOCKS_MAX {
            return Err(Errno::ENOLCK);
        }
        let weaker = wanted.kind == LockKind::Shared;
        state.records.set(wanted);
        drop(state);
        if weaker {
            self.queue.wake(Events::IN); // an exclusive lock of ours may have become shared
        }
        Ok(())
    }

    /// `F_UNLCK`: frees `start..=last` of what `owner` holds. `ENOLCK` (too many pieces).
    pub fn unlock(&self, owner: LockOwner, start: u64, last: u64) -> Result<()> {
        let mut state = self.state.lock();
        if state.records.len() + 2 > LOCKS_MAX && (start, last) != (0, i64::MAX as u64) {
            return Err(Errno::ENOLCK);
        }
        state.records.clear(owner, start, last);
        drop(state);
        self.queue.wake(Events::IN);
        Ok(())
    }

    /// Before waiting for `wanted`: `EDEADLK` when the holder waits, through others, for this owner. `None` when it does not
    /// conflict any more. Ask again after each wake-up; the wait counts until what is returned is dropped.
    pub fn begin_wait(&self, wanted: &RecordLock) -> Result<Option<Waiting>> {
        let state = self.state.lock();
        let Some(holder) = state.records.conflict(wanted) else { return Ok(None) };
        let mut waiting = WAITING.lock();
        let table = waiting.get_or_insert_default();
        let (owner, holder) = (wanted.owner, holder.owner);
        // As on Linux, only among processes: descriptions are not anybody's.
        if matches!(owner, LockOwner::Process(_)) && waits_for(table, holder, owner) {
            return Err(Errno::EDEADLK);
        }
        table.entry(owner).or_default().push(holder);
        Ok(Some(Waiting { owner, holder }))
    }

    /// All record locks and `flock(2)` locks, each with those that wait for it (and for none before it): for `/proc/locks`.
    pub fn show(&self) -> Vec<(Lock, Vec<Lock>)> {
        let state = self.state.lock();
        let records = state.records.iter().map(|lock| Lock::Record(*lock));
        let whole = state.whole.values().map(|&(kind, pid)| Lock::Whole { kind, pid });
        let mut all: Vec<(Lock, Vec<Lock>)> = records.chain(whole).map(|lock| (lock, Vec::new())).collect();
        for (_, waiter) in &state.announced {
            if let Some((_, waiters)) = all.iter_mut().find(|(held, _)| waiter.conflicts(held)) {
                waiters.push(*waiter);
            }
        }
        all
    }

    /// Has `/proc/locks` tell of somebody who waits for `lock`.
    pub fn announce(&self, lock: Lock) -> Announced<'_> {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.announced.push((number, lock));
        Announced { locks: self, number }
    }

    /// `flock(2)` by the process `pid` for the description `id`, which must have noted it ([`OpenFile::note_lock`](super::file::OpenFile::note_lock)).
    /// As on Linux a lock that is converted is let go first. `EAGAIN`.
    pub fn flock(&self, id: u64, kind: LockKind, pid: Pid) -> Result<()> {
        let mut state = self.state.lock();
        if state.whole.get(&id).is_some_and(|held| held.0 == kind) {
            return Ok(());
        }
        let had = state.whole.remove(&id).is_some();
        let conflicts = |held: &(LockKind, Pid)| kind == LockKind::Exclusive || held.0 == LockKind::Exclusive;
        let free = !state.whole.values().any(conflicts);
        if free {
            state.whole.insert(id, (kind, pid));
        }
        drop(state);
        if had {
            self.queue.wake(Events::IN);
        }
        if free { Ok(()) } else { Err(Errno::EAGAIN) }
    }

    /// `flock(LOCK_UN)`.
    pub fn funlock(&self, id: u64) {
        let had = self.state.lock().whole.remove(&id).is_some();
        if had {
            self.queue.wake(Events::IN);
        }
    }

    /// A process closed a descriptor of this file: its record locks go (`fcntl(2)`).
    pub fn process_closed(&self, owner: u64) {
        self.release(LockOwner::Process(owner));
    }

    /// An open file description ends: all its locks go.
    pub fn description_closed(&self, id: u64) {
        self.funlock(id);
        self.release(LockOwner::Description(id));
    }

    fn release(&self, owner: LockOwner) {
        let had = self.state.lock().records.clear(owner, 0, u64::MAX);
        if had {
            self.queue.wake(Events::IN);
        }
    }

    /// Announces locks that went, as [`Events::IN`].
    pub fn wait_queue(&self) -> &WaitQueue {
        &self.queue
    }
}
