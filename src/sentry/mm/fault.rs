//! Faults that the host cannot answer by itself (stacks that grow), and what futexes are known by.

use super::area::{Area, AreaFlags, Backing};
use super::map::GUARD_GAP;
use super::{MemLimits, MemoryManager, page_down};
use crate::errno::{Errno, Result};
use crate::platform::UserThread;

/// What two threads must agree on to mean the same futex: `futex(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FutexKey {
    /// A word of one memory ([`MemoryManager::id`]).
    Private {
        /// The memory.
        mm: u64,
        /// The word's address.
        addr: u64,
    },
    /// A word of shared anonymous memory.
    Anonymous {
        /// The memory object.
        object: u64,
        /// Bytes from its start.
        offset: u64,
    },
    /// A word of a file that is mapped shared.
    File {
        /// The host file's device and inode number.
        host_file: (u64, u64),
        /// Bytes from its start.
        offset: u64,
    },
}

/// How much a stack grows at a time at least: fewer faults than page by page.
const STACK_STEP: u64 = 128 << 10;

impl MemoryManager {
    /// After `SIGSEGV` at `addr`: grows the stack that ends above it, if there is one and its limit allows. `true` when the
    /// access may be tried again.
    pub fn handle_fault(&self, thread: &mut dyn UserThread, addr: u64, write: bool, limits: &MemLimits) -> bool {
        let page = page_down(addr);
        let mut inner = self.lock();
        let Some(next) = inner.map.find_from(page) else { return false };
        let needed = if write { libc::PROT_WRITE } else { libc::PROT_READ };
        if next.prot & needed == 0 || page < self.range.start {
            return false;
        }
        if next.start <= page {
            // Another thread has grown it meanwhile: only then is a stack's page accessible though it has just faulted.
            return next.flags.contains(AreaFlags::GROWSDOWN);
        }
        if !next.flags.contains(AreaFlags::GROWSDOWN) || next.end - page > limits.stack {
            return false;
        }
        let next = next.clone();
        // No nearer to what is below than the guard gap, unless nobody can touch that, or it is a stack's lower part.
        let floor = inner.map.find_below(next.start).map_or(self.range.start, |below| {
            let touching = below.flags.contains(AreaFlags::GROWSDOWN) || below.prot == 0;
            below.end + if touching { 0 } else { GUARD_GAP }
        });
        if page < floor {
            return false;
        }
        let lowest = floor.max(next.end.saturating_sub(page_down(limits.stack)));
        let start = page.min(next.start.saturating_sub(STACK_STEP).max(lowest));
        let len = next.start - start;
        if inner.check_expand(len, false, limits).is_err()
            || (next.flags.contains(AreaFlags::LOCKED) && !inner.check_lock(len, limits))
        {
            return false;
        }
        let grown = Area { start, end: next.start, ..next };
        inner.map_over(thread, grown, 0).is_ok()
    }

    /// What the futex word at `addr` is known by. `EINVAL` unless aligned; `EFAULT` for a shared one that is not mapped.
    pub fn futex_key(&self, addr: u64, private: bool) -> Result<FutexKey> {
        if !addr.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        if addr >= self.range.end {
            return Err(Errno::EFAULT);
        }
        let own = FutexKey::Private { mm: self.id, addr };
        if private {
            return Ok(own);
        }
        let inner = self.lock();
        let area = inner.map.find(addr).ok_or(Errno::EFAULT)?;
        if area.prot & (libc::PROT_READ | libc::PROT_WRITE) == 0 {
            return Err(Errno::EFAULT);
        }
        let offset = area.offset_of(addr);
        Ok(match &area.backing {
            Backing::SharedAnonymous(object) => FutexKey::Anonymous { object: *object, offset },
            Backing::File(file) if area.shared => FutexKey::File { host_file: file.host_file, offset },
            _ => own,
        })
    }

    /// The word at `addr`, read once. `EFAULT`.
    pub fn load_u32(&self, addr: u64) -> Result<u32> {
        super::user::UserPtr::<u32>::new(addr).read(&*self.space)
    }
}
