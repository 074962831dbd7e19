//! The memory of all contexts of a sandbox: one file without a name, of which the sentry maps all and each stub process
//! its own threads' pieces.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

use super::context::SIZE;
use crate::errno::{Errno, Result, check};

/// How many contexts there can be: 1 GiB of addresses, of which what is touched takes memory.
const MOST: usize = 32768;

/// The memory.
pub struct Arena {
    file: OwnedFd,
    start: *mut u8,
    free: Mutex<Free>,
}

// SAFETY: the mapping is shared memory, accessed through atomics and copies, by whoever holds a slab.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

#[derive(Default)]
struct Free {
    /// Pieces given back, last first: their pages are there.
    returned: Vec<usize>,
    /// Pieces from this one on have never been used.
    fresh: usize,
}

impl Arena {
    /// Makes the file and maps it. `ENOMEM`, `EMFILE`.
    pub fn new() -> Result<Arc<Arena>> {
        let len = MOST * SIZE as usize;
        // SAFETY: a name and flags; the descriptor is ours alone. The mapping is new memory.
        unsafe {
            let fd = check(libc::memfd_create(c"contexts".as_ptr(), libc::MFD_CLOEXEC).into())?;
            let file = OwnedFd::from_raw_fd(fd as i32);
            check(libc::ftruncate(file.as_raw_fd(), len as i64).into())?;
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
            let start = libc::mmap(std::ptr::null_mut(), len, access, flags, file.as_raw_fd(), 0);
            if start == libc::MAP_FAILED {
                return Err(Errno::last());
            }
            Ok(Arc::new(Arena { file, start: start.cast(), free: Mutex::default() }))
        }
    }

    /// The file, to map a piece of it.
    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// A piece for one context, all zeros. `EAGAIN` when there are no more.
    pub fn take(self: &Arc<Self>) -> Result<Slab> {
        let mut free = self.free.lock();
        let index = match free.returned.pop() {
            Some(index) => index,
            None if free.fresh < MOST => {
                free.fresh += 1;
                free.fresh - 1
            }
            None => return Err(Errno::EAGAIN),
        };
        Ok(Slab { arena: self.clone(), index })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: ours, and no slab is left: each holds the arena.
        unsafe { libc::munmap(self.start.cast(), MOST * SIZE as usize) };
    }
}

/// A piece of the arena. It may be given to another process only when no process has it mapped any more.
pub struct Slab {
    arena: Arc<Arena>,
    index: usize,
}

impl Slab {
    /// Where it is in this process.
    pub fn start(&self) -> *mut u8 {
        // SAFETY: the index is below `MOST`.
        unsafe { self.arena.start.add(self.index * SIZE as usize) }
    }

    /// Where it is in the arena's file.
    pub fn offset(&self) -> u64 {
        self.index as u64 * SIZE
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // Nothing of one process is shown to the next, and its memory is the host's again.
        // SAFETY: within the mapping, whose pages nobody refers to by reference here.
        let punched = unsafe { libc::madvise(self.start().cast(), SIZE as usize, libc::MADV_REMOVE) } == 0;
        if !punched {
            // SAFETY: as above.
            unsafe { std::ptr::write_bytes(self.start(), 0, SIZE as usize) };
        }
        self.arena.free.lock().returned.push(self.index);
    }
}
