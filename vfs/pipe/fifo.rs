//! FIFOs: pipes that are opened by name, each side waiting for the other.

use std::sync::Arc;

use super::{Pipe, PipeEnd};
use crate::errno::{Errno, Result};
use crate::vfs::file::File;
use crate::wait::WaitQueue;

/// The pipe of a FIFO. It hangs on the inode: `attachments.get_or_insert(FifoState::default)`.
pub struct FifoState {
    pipe: Arc<Pipe>,
}

impl Default for FifoState {
    fn default() -> Self {
        FifoState { pipe: Arc::new(Pipe::new(None)) }
    }
}

impl FifoState {
    /// Begins `open(2)` with `flags`. The end counts from now on, so that the other side's `open` can proceed; the caller
    /// waits on [`FifoOpening::wait_queue`] until [`FifoOpening::is_ready`], or drops the opening when interrupted.
    ///
    /// `ENXIO`: `O_WRONLY | O_NONBLOCK` and nobody reads. `EINVAL`: no access mode that exists.
    pub fn open(&self, flags: i32) -> Result<FifoOpening> {
        let nonblocking = flags & libc::O_NONBLOCK != 0;
        let pipe = &self.pipe;
        match flags & libc::O_ACCMODE {
            libc::O_RDONLY => {
                let mut end = PipeEnd::new(pipe, true, false, flags);
                let state = pipe.state.lock();
                let (writers, writers_ever) = (state.writers, state.writers_ever);
                drop(state);
                let alone = writers == 0;
                end.writers_before = (nonblocking && alone).then_some(writers_ever);
                let seen = (!nonblocking && alone).then_some(writers_ever);
                Ok(FifoOpening { end: Arc::new(end), seen })
            }
            libc::O_WRONLY => {
                if nonblocking && pipe.state.lock().readers == 0 {
                    return Err(Errno::ENXIO);
                }
                let end = PipeEnd::new(pipe, false, true, flags);
                let state = pipe.state.lock();
                let seen = (!nonblocking && state.readers == 0).then_some(state.readers_ever);
                drop(state);
                Ok(FifoOpening { end: Arc::new(end), seen })
            }
            libc::O_RDWR => Ok(FifoOpening { end: Arc::new(PipeEnd::new(pipe, true, true, flags)), seen: None }),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// A FIFO that is being opened.
pub struct FifoOpening {
    end: Arc<PipeEnd>,
    /// While waiting: how many of the other side there had ever been when we came.
    seen: Option<u64>,
}

impl FifoOpening {
    /// Whether the other side has come (it may have gone again since) or is not waited for.
    pub fn is_ready(&self) -> bool {
        let Some(seen) = self.seen else { return true };
        let state = self.end.pipe.state.lock();
        let now = if self.end.read { state.writers_ever } else { state.readers_ever };
        now != seen
    }

    /// Announces the other side, as [`Events::IN`](crate::wait::Events::IN) among others.
    pub fn wait_queue(&self) -> &WaitQueue {
        self.end.pipe.wait_queue()
    }

    /// The open end.
    pub fn into_file(self) -> Arc<dyn File> {
        self.end
    }
}
