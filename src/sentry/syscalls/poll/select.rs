//! `select(2)`, `pselect(2)`: bitmaps of descriptors.

use std::time::Duration;

use super::{Timeout, Watched, read_mask, store_left, wait_for, with_mask};
use crate::errno::{Errno, Result};
use crate::sentry::fdtable::NR_OPEN;
use crate::sentry::mm::user::UserPtr;
use crate::sentry::syscalls::signal::timespec;
use crate::sentry::syscalls::time::Time;
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::wait::Events;

/// What makes a descriptor readable, writable, exceptional.
const KINDS: [Events; 3] = [
    Events::READ.union(Events::RDBAND).union(Events::ALWAYS),
    Events::WRITE.union(Events::WRBAND).union(Events::ERR),
    Events::PRI,
];

/// The three sets of a call, as words.
struct Sets([Option<Vec<u64>>; 3]);

impl Sets {
    /// Which of the sets a descriptor is in.
    fn wanted(&self, fd: usize) -> Events {
        let is_in = |set: &Option<Vec<u64>>| {
            set.as_ref().and_then(|words| words.get(fd / 64)).is_some_and(|word| word >> (fd % 64) & 1 != 0)
        };
        let kinds = self.0.iter().zip(KINDS).filter(|(set, _)| is_in(set));
        kinds.fold(Events::empty(), |all, (_, kind)| all | kind)
    }

    /// Descriptors below `count` that are in any set.
    fn members(&self, count: usize) -> Vec<usize> {
        let words = count.div_ceil(64);
        let any = |at: usize| self.0.iter().flatten().fold(0, |all, set| all | set.get(at).copied().unwrap_or(0));
        let bits =
            (0..words).flat_map(|at| (0..64).filter(move |bit| any(at) >> bit & 1 != 0).map(move |bit| at * 64 + bit));
        bits.filter(|&fd| fd < count).collect()
    }

    /// As many empty sets.
    fn emptied(&self) -> Sets {
        Sets([0, 1, 2].map(|at| self.0[at].as_ref().map(|words| vec![0; words.len()])))
    }

    /// Puts `fd` into the sets that `asked` has it in and `found` is for. Returns into how many.
    fn answer(&mut self, asked: &Sets, fd: usize, found: Events) -> usize {
        let mut count = 0;
        for ((set, asked), kind) in self.0.iter_mut().zip(&asked.0).zip(KINDS) {
            let (Some(set), Some(asked)) = (set, asked) else { continue };
            let bit = 1 << (fd % 64);
            let was_asked = asked.get(fd / 64).is_some_and(|word| word & bit != 0);
            if was_asked
                && found.intersects(kind)
                && let Some(word) = set.get_mut(fd / 64)
            {
                *word |= bit;
                count += 1;
            }
        }
        count
    }
}

fn select_fds(cur: &Current, count: i32, at: [UserPtr<u64>; 3], timeout: Timeout) -> SysResult {
    // No descriptor is beyond that, as Linux looks no further than the table goes.
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?.min(NR_OPEN as usize);
    let words = count.div_ceil(64);
    let read = |at: UserPtr<u64>| at.non_null().map(|at| at.read_array(cur.space(), words)).transpose();
    let asked = Sets([read(at[0])?, read(at[1])?, read(at[2])?]);
    let members = asked.members(count);
    let watch = |&fd: &usize| cur.io_file(Fd(fd as i32)).map(|file| Some((file, asked.wanted(fd))));
    let files: Vec<Watched> = members.iter().map(watch).collect::<Result<_>>()?;
    let mut answer = asked.emptied();
    let found = wait_for(cur, &files, timeout, &mut |at, found| {
        members.get(at).map_or(0, |&fd| answer.answer(&asked, fd, found))
    })?;
    for (at, set) in at.iter().zip(&answer.0) {
        if let Some(set) = set {
            at.write_array(cur.space(), set)?;
        }
    }
    Ok(found as u64)
}

/// `select(2)`. `EBADF`, `EINVAL`, `EFAULT`, `EINTR`; the time that is left is stored.
pub fn select(
    cur: &mut Current,
    count: i32,
    read: UserPtr<u64>,
    write: UserPtr<u64>,
    except: UserPtr<u64>,
    timeout: UserPtr<Time>,
) -> SysResult {
    let span = timeout.non_null().map(|at| at.read(cur.space()).and_then(loose_timeval)).transpose()?;
    let until = Timeout::after(span);
    let result = select_fds(cur, count, [read, write, except], until);
    store_left(cur, timeout, until, 1000);
    result
}

/// A `struct timeval` whose microseconds may be more than a second, as `select(2)` takes it. `EINVAL`.
fn loose_timeval([sec, usec]: Time) -> Result<Duration> {
    const MICROS: i64 = 1_000_000;
    timespec([sec.saturating_add(usec / MICROS), usec % MICROS * 1000])
}

/// `pselect6(2)`: the last argument is the address of a mask and its size. As `select`.
pub fn pselect6(
    cur: &mut Current,
    count: i32,
    read: UserPtr<u64>,
    write: UserPtr<u64>,
    except: UserPtr<u64>,
    timeout: UserPtr<Time>,
    mask: UserPtr<[u64; 2]>,
) -> SysResult {
    let mask = match mask.non_null() {
        None => None,
        Some(mask) => {
            let [addr, size] = mask.read(cur.space())?;
            read_mask(cur, UserPtr::new(addr), size as usize)?
        }
    };
    let span = timeout.non_null().map(|at| at.read(cur.space()).and_then(timespec)).transpose()?;
    with_mask(cur, mask, |cur| {
        let until = Timeout::after(span);
        let result = select_fds(cur, count, [read, write, except], until);
        store_left(cur, timeout, until, 1);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_into_the_sets_that_asked() {
        let asked = Sets([Some(vec![1 << 3, 1 << 1]), None, Some(vec![1 << 3, 0])]);
        assert_eq!(asked.members(66), [3, 65]);
        assert_eq!(asked.members(65), [3], "only those below the count");
        assert_eq!(asked.wanted(3), KINDS[0] | KINDS[2]);
        let mut answer = asked.emptied();
        assert_eq!(answer.answer(&asked, 3, Events::IN | Events::OUT), 1);
        assert_eq!(answer.answer(&asked, 65, Events::HUP | Events::PRI), 1, "not asked for exceptions");
        assert_eq!(answer.0, [Some(vec![1 << 3, 1 << 1]), None, Some(vec![0, 0])]);
    }

    #[test]
    fn microseconds_may_be_many() {
        assert_eq!(loose_timeval([1, 2_500_000]), Ok(Duration::from_millis(3500)));
        assert_eq!(loose_timeval([1, -1]), Err(Errno::EINVAL));
        assert_eq!(loose_timeval([-1, 0]), Err(Errno::EINVAL));
    }
}
