//! File locks: record locks of processes and of open file descriptions (`fcntl(2)`), and `flock(2)`.
//!
//! The locks of a file hang on its inode. Nothing here blocks: a lock that conflicts is `EAGAIN`, and the caller waits on
//! [`FileLocks::wait_queue`], having announced itself with [`FileLocks::begin_wait`], which detects deadlocks of
//! processes.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::vfs::inode::Inode;
use crate::wait::WaitQueue;

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
    /// What `F_GETLK` reports: the process, -1 for an open file description.
    pub pid: i32,
}

/// The locks of one file.
#[derive(Default)]
pub struct FileLocks {
    queue: WaitQueue,
}

/// A process that waits for a record lock, until this is dropped.
pub struct Waiting {}

impl FileLocks {
    /// The locks of `inode`. `ENOLCK` where the file system has no place for them.
    pub fn of(inode: &Arc<dyn Inode>) -> Result<Arc<FileLocks>> {
        let attachments = inode.attachments().ok_or(Errno::ENOLCK)?;
        Ok(attachments.get_or_insert(FileLocks::default))
    }

    /// `F_GETLK`: the first lock that `wanted` conflicts with.
    pub fn conflict(&self, wanted: &RecordLock) -> Option<RecordLock> {
        let _ = wanted;
        None
    }

    /// `F_SETLK`: takes a lock, merging it with those of its owner. `EAGAIN` when it conflicts, `ENOLCK` (too many).
    pub fn lock(&self, wanted: &RecordLock) -> Result<()> {
        let _ = wanted;
        Err(Errno::ENOSYS)
    }

    /// `F_UNLCK`: frees `start..=last` of what `owner` holds.
    pub fn unlock(&self, owner: LockOwner, start: u64, last: u64) -> Result<()> {
        let _ = (owner, start, last);
        Err(Errno::ENOSYS)
    }

    /// Before waiting for `wanted`: `EDEADLK` when the holder waits, through others, for this owner. `None` when it does not
    /// conflict any more. Ask again after each wake-up.
    pub fn begin_wait(&self, wanted: &RecordLock) -> Result<Option<Waiting>> {
        let _ = wanted;
        Err(Errno::ENOSYS)
    }

    /// `flock(2)` by the description `id`. `EAGAIN`.
    pub fn flock(&self, id: u64, kind: LockKind) -> Result<()> {
        let _ = (id, kind);
        Err(Errno::ENOSYS)
    }

    /// `flock(LOCK_UN)`.
    pub fn funlock(&self, id: u64) {
        let _ = id;
    }

    /// A process closed a descriptor of this file: its record locks go (`fcntl(2)`).
    pub fn process_closed(&self, owner: u64) {
        let _ = owner;
    }

    /// Announces locks that went, as [`Events::IN`](crate::wait::Events::IN).
    pub fn wait_queue(&self) -> &WaitQueue {
        &self.queue
    }
}
