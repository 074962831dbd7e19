//! Memory for rings: address space that costs no page until it is written, recycled.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::errno::{Errno, Result};

/// How many unused regions of a size are kept, with the pages that they have.
const MAX_POOLED: usize = 32;

/// A region of zero pages.
struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the region is owned memory like a `Box<[u8]>`.
unsafe impl Send for Region {}

impl Region {
    fn new(len: usize) -> Result<Region> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::ENOBUFS);
        }
        NonNull::new(start.cast()).map(|start| Region { start, len }).ok_or(Errno::ENOBUFS)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The memory of all rings of a stack, with a bound.
pub struct Memory {
    /// Bytes lent out.
    used: AtomicUsize,
    /// Leaf lock.
    unused: Mutex<Vec<Region>>,
}

/// Above this new rings are [`SMALL`].
const PLENTY: usize = 4 << 30;
/// Above this there are none.
const LIMIT: usize = 8 << 30;
/// A ring's size when memory is short.
const SMALL: usize = 64 << 10;

impl Memory {
    /// Nothing used.
    pub const fn new() -> Memory {
        Memory { used: AtomicUsize::new(0), unused: Mutex::new(Vec::new()) }
    }

    /// Lends a region of `len` bytes, or less when memory is short. `ENOBUFS`.
    pub fn lend(&'static self, len: usize) -> Result<Lent> {
        let used = self.used.load(Ordering::Relaxed);
        if used > LIMIT {
            return Err(Errno::ENOBUFS);
        }
        let len = if used > PLENTY { len.min(SMALL) } else { len };
        let found = {
            let mut unused = self.unused.lock();
            unused.iter().rposition(|region| region.len == len).map(|at| unused.swap_remove(at))
        };
        let region = match found {
            Some(region) => region,
            None => Region::new(len)?,
        };
        self.used.fetch_add(len, Ordering::Relaxed);
        Ok(Lent { memory: self, region: Some(region) })
    }
}

/// Memory of all stacks: what counts is the process's.
pub static MEMORY: Memory = Memory::new();

/// A region that goes back.
pub struct Lent {
    memory: &'static Memory,
    region: Option<Region>,
}

impl Lent {
    /// Its bytes: whatever an earlier user left there.
    ///
    /// # Safety
    ///
    /// Called once, and the result must not be used after `self` is dropped.
    pub unsafe fn bytes(&mut self) -> &'static mut [u8] {
        match &self.region {
            // SAFETY: the region is mapped for reads and writes for its whole length, any bytes are valid, and the caller
            // promises that this is the only reference and does not outlive it.
            Some(region) => unsafe { std::slice::from_raw_parts_mut(region.start.as_ptr(), region.len) },
            None => &mut [],
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(region) = self.region.take() else { return };
        self.memory.used.fetch_sub(region.len, Ordering::Relaxed);
        let mut unused = self.memory.unused.lock();
        if unused.len() < MAX_POOLED {
            unused.push(region);
        }
    }
}
