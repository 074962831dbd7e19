//! `open(2)`, `openat2(2)`.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::vfs::file::{File, OpenFile};
use crate::vfs::path::Path;
use crate::vfs::pipe::FifoOpening;
use crate::vfs::walk::{LookupFlags, Walk};
use crate::wait::WaitQueue;

/// `struct open_how`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenHow {
    /// `O_*`.
    pub flags: i32,
    /// Permissions of a file that is made, before the umask.
    pub mode: u32,
    /// `RESOLVE_*`; the other bits are set by [`Walk::open`] itself.
    pub resolve: LookupFlags,
}

/// What `open(2)` led to.
pub enum Opened {
    /// An open file.
    File(Arc<OpenFile>),
    /// A FIFO whose other side the caller must wait for.
    Fifo(PendingFifo),
}

/// A FIFO that is being opened. Wait on [`PendingFifo::wait_queue`] until [`PendingFifo::is_ready`], then
/// [`PendingFifo::finish`]; drop it when interrupted.
pub struct PendingFifo {
    opening: FifoOpening,
    path: Path,
    flags: i32,
}

impl PendingFifo {
    /// Whether the other side has come.
    pub fn is_ready(&self) -> bool {
        self.opening.is_ready()
    }

    /// Announces the other side, as [`Events::IN`](crate::wait::Events::IN) among others.
    pub fn wait_queue(&self) -> &WaitQueue {
        self.opening.wait_queue()
    }

    /// The open file.
    pub fn finish(self) -> Arc<OpenFile> {
        OpenFile::new(self.opening.into_file(), Some(self.path), self.flags)
    }
}

impl Walk<'_> {
    /// `openat2(2)`: all of `open(2)` that concerns names. With an empty path and `EMPTY_PATH` in `resolve` it opens the
    /// start again. Waiting is the caller's: see [`Opened`].
    pub fn open(&self, path: &[u8], how: &OpenHow) -> Result<Opened> {
        let _ = (path, how);
        Err(Errno::ENOSYS)
    }

    /// Opens a node that is resolved: `/proc/self/fd` links, `execve(2)`, `O_TMPFILE`. Checks permissions for the access
    /// mode unless `created`.
    pub fn open_path(&self, path: Path, flags: i32, created: bool) -> Result<Opened> {
        let _ = (path, flags, created);
        Err(Errno::ENOSYS)
    }
}
