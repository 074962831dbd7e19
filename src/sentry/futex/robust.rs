//! Robust futexes: what a thread held when it ended: `set_robust_list(2)`, `get_robust_list(2)`.

use super::pi::{OWNER_DIED, TID_MASK, WAITERS};
use crate::errno::{Errno, Result};
use crate::platform::AddressSpace;
use crate::sentry::mm::user::UserPtr;

/// `ROBUST_LIST_LIMIT`: a list may be a circle.
const LIMIT: usize = 2048;

/// The size of `struct robust_list_head`, which `set_robust_list(2)` insists on.
pub const HEAD_SIZE: usize = 24;

/// Marks all locks on a dying thread's list: `OWNER_DIED` instead of its id, and one waiter is woken.
///
/// `tid` is the thread's own id as its words have it; `exchange` compares and exchanges the word at an address; `wake` wakes
/// one waiter of the futex at an address. One host call an entry, and an exchange for each lock that is held. A list that
/// cannot be read ends there.
pub fn exit_robust_list(
    head: u64,
    tid: i32,
    space: &dyn AddressSpace,
    exchange: &mut dyn FnMut(u64, u32, u32) -> Result<u32>,
    wake: &mut dyn FnMut(u64),
) {
    let mut list = List { tid: tid as u32 & TID_MASK, space, exchange, wake };
    if let Err(error) = list.walk(head) {
        log::debug!("the robust list of thread {tid} ends early: {error}");
    }
}

struct List<'a> {
    tid: u32,
    space: &'a dyn AddressSpace,
    exchange: &'a mut dyn FnMut(u64, u32, u32) -> Result<u32>,
    wake: &'a mut dyn FnMut(u64),
}

/// A pointer to an entry; bit 0 says that it is a PI lock.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Link(u64);

impl Link {
    fn addr(self) -> u64 {
        self.0 & !1
    }

    fn is_pi(self) -> bool {
        self.0 & 1 != 0
    }
}

impl List<'_> {
    fn walk(&mut self, head: u64) -> Result<()> {
        let [first, offset, pending] = UserPtr::<[u64; 3]>::new(head).read(self.space)?;
        let pending = Link(pending);
        let mut link = Link(first);
        let mut walked = self.walk_from(&mut link, head, offset, pending);
        if pending.addr() != 0 {
            let word = pending.addr().wrapping_add(offset);
            walked = walked.and(self.release(word, pending.is_pi(), true, None));
        }
        walked
    }

    fn walk_from(&mut self, link: &mut Link, head: u64, offset: u64, pending: Link) -> Result<()> {
        for _ in 0..LIMIT {
            if link.addr() == head {
                return Ok(());
            }
            // The next one first: the entry may go as soon as its lock is free.
            let word = link.addr().wrapping_add(offset);
            let mut both = [0; 12];
            let n = self.space.read_vectored(&[(link.addr(), 8), (word, 4)], &mut both)?;
            let value = (n == 12).then(|| u32::from_ne_bytes([both[8], both[9], both[10], both[11]]));
            if n < 8 {
                return Err(Errno::EFAULT);
            }
            let [a, b, c, d, e, f, g, h, ..] = both;
            // The one being locked or unlocked comes last, once.
            if link.addr() != pending.addr() {
                self.release(word, link.is_pi(), false, Some(value.ok_or(Errno::EFAULT)?))?;
            }
            *link = Link(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
        }
        Err(Errno::ELOOP)
    }

    fn release(&mut self, word: u64, pi: bool, pending: bool, value: Option<u32>) -> Result<()> {
        if !word.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        let mut value = match value {
            Some(value) => value,
            None => UserPtr::<u32>::new(word).read(self.space)?,
        };
        loop {
            // Unlocked in user space, and the thread died before it could wake somebody.
            if pending && !pi && value == 0 {
                (self.wake)(word);
                return Ok(());
            }
            if value & TID_MASK != self.tid {
                return Ok(());
            }
            let found = (self.exchange)(word, value, value & WAITERS | OWNER_DIED)?;
            if found == value {
                break;
            }
            value = found;
        }
        // Of a PI lock the first waiter becomes the owner: `FutexTable::exit_pi`.
        if !pi && value & WAITERS != 0 {
            (self.wake)(word);
        }
        Ok(())
    }
}
