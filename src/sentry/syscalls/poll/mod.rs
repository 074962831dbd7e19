//! `poll(2)` and `select(2)`.
//!
//! Files are looked at once without registering anywhere; only a call that has to sleep registers on each file's queue, as
//! those calls cost on Linux too.

pub mod epoll;
pub mod select;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::errno::{Errno, Result};
use crate::sentry::mm::user::UserPtr;
use crate::sentry::signal::SigSet;
use crate::sentry::syscalls::signal::{deadline_after, timespec};
use crate::sentry::syscalls::time::Time;
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::sentry::task::block::{Waits, Woken};
use crate::vfs::file::OpenFile;
use crate::wait::Events;

/// How long a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// Not at all.
    Now,
    /// Until then; `None` is for ever.
    Until(Option<Instant>),
}

impl Timeout {
    /// After `span`; `None` is never.
    pub fn after(span: Option<Duration>) -> Timeout {
        match span {
            None => Timeout::Until(None),
            Some(Duration::ZERO) => Timeout::Now,
            Some(span) => Timeout::Until(deadline_after(span)),
        }
    }
}

/// A file to be looked at and what for; `None` for one that is left out.
pub(super) type Watched = Option<(Arc<OpenFile>, Events)>;

/// Looks at all files until `tell` has something: it gets each one's place and events, those asked for and errors, and says
/// whether that counts. Returns how many do: 0 when the time is over. `ERESTARTNOHAND` for a signal.
pub(super) fn wait_for(
    cur: &Current,
    files: &[Watched],
    timeout: Timeout,
    tell: &mut dyn FnMut(usize, Events) -> usize,
) -> Result<usize> {
    let mut look = || {
        let mut count = 0;
        for (at, watched) in files.iter().enumerate() {
            if let Some((file, wanted)) = watched {
                count += tell(at, file.object().poll() & (*wanted | Events::ALWAYS));
            }
        }
        count
    };
    let count = look();
    let deadline = match timeout {
        _ if count > 0 => return Ok(count),
        _ if cur.interrupted() => return Err(Errno::ERESTARTNOHAND),
        Timeout::Now => return Ok(0),
        Timeout::Until(deadline) => deadline,
    };
    let mut waits = Waits::new(&cur.task);
    for (file, wanted) in files.iter().flatten() {
        if let Some(queue) = file.object().wait_queue() {
            waits.add(queue, *wanted, false);
        }
    }
    loop {
        let count = look();
        if count > 0 {
            return Ok(count);
        }
        match cur.sleep_for_packets(deadline) {
            Woken::Event => cur.parker.reset(),
            Woken::Deadline => return Ok(look()),
            Woken::Signal => {
                return match look() {
                    0 => Err(Errno::ERESTARTNOHAND),
                    count => Ok(count),
                };
            }
        }
    }
}

/// `struct pollfd`: the descriptor, the events asked for, those found.
type PollFd = [u8; 8];

fn split(entry: PollFd) -> (i32, Events) {
    let [f0, f1, f2, f3, e0, e1, ..] = entry;
    let events = u32::from(u16::from_ne_bytes([e0, e1]));
    (i32::from_ne_bytes([f0, f1, f2, f3]), Events::from_bits_truncate(events))
}

fn set_found(entry: &mut PollFd, found: Events) {
    [entry[6], entry[7]] = (found.bits() as u16).to_ne_bytes();
}

fn poll_fds(cur: &Current, fds: UserPtr<PollFd>, count: u32, timeout: Timeout) -> SysResult {
    let count = count as usize;
    if count as u64 > cur.limit(libc::RLIMIT_NOFILE) {
        return Err(Errno::EINVAL);
    }
    let mut entries = fds.read_array(cur.space(), count)?;
    let mut invalid = 0;
    let mut files: Vec<Watched> = Vec::with_capacity(count);
    for entry in &mut entries {
        let (fd, wanted) = split(*entry);
        set_found(entry, Events::empty());
        files.push(match fd {
            ..0 => None,
            fd => match cur.io_file(Fd(fd)) {
                Ok(file) => Some((file, wanted)),
                Err(_) => {
                    set_found(entry, Events::NVAL);
                    invalid += 1;
                    None
                }
            },
        });
    }
    let timeout = if invalid > 0 { Timeout::Now } else { timeout };
    let found = wait_for(cur, &files, timeout, &mut |at, found| {
        if let Some(entry) = entries.get_mut(at) {
            set_found(entry, found);
        }
        usize::from(!found.is_empty())
    });
    let found = match found {
        Err(_) if invalid > 0 => 0,
        found => found?,
    };
    fds.write_array(cur.space(), &entries)?;
    Ok((found + invalid) as u64)
}

fn restartable(cur: &mut Current, fds: UserPtr<PollFd>, count: u32, timeout: Timeout) -> SysResult {
    let result = poll_fds(cur, fds, count, timeout);
    if result == Err(Errno::ERESTARTNOHAND) {
        cur.restart_block = Some(Box::new(move |cur| restartable(cur, fds, count, timeout)));
        return Err(Errno::ERESTART_RESTARTBLOCK);
    }
    result
}

/// `poll(2)`. `EINVAL`, `EFAULT`, `EINTR`.
pub fn poll(cur: &mut Current, fds: UserPtr<PollFd>, count: u32, timeout: i32) -> SysResult {
    let span = u64::try_from(timeout).ok().map(Duration::from_millis);
    restartable(cur, fds, count, Timeout::after(span))
}

/// `ppoll(2)`. As `poll`; the time that is left is stored, as Linux does.
pub fn ppoll(
    cur: &mut Current,
    fds: UserPtr<PollFd>,
    count: u32,
    timeout: UserPtr<Time>,
    mask: UserPtr<u64>,
    size: usize,
) -> SysResult {
    let span = timeout.non_null().map(|at| at.read(cur.space()).and_then(timespec)).transpose()?;
    let mask = read_mask(cur, mask, size)?;
    with_mask(cur, mask, |cur| {
        let timeout_at = Timeout::after(span);
        let result = poll_fds(cur, fds, count, timeout_at);
        store_left(cur, timeout, timeout_at, 1);
        result
    })
}

/// The mask of a call that takes one. `EINVAL`, `EFAULT`.
fn read_mask(cur: &Current, mask: UserPtr<u64>, size: usize) -> Result<Option<SigSet>> {
    let Some(mask) = mask.non_null() else { return Ok(None) };
    if size != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    mask.read(cur.space()).map(|set| Some(SigSet(set)))
}

/// Makes a call with another mask. The signal that ends it still sees that mask.
fn with_mask(cur: &mut Current, mask: Option<SigSet>, call: impl FnOnce(&Current) -> SysResult) -> SysResult {
    if let Some(mask) = mask {
        cur.set_temporary_mask(mask);
    }
    let result = call(cur);
    if result != Err(Errno::ERESTARTNOHAND) {
        cur.drop_temporary_mask();
    }
    result
}

/// Stores how much time is left, in units of `unit` nanoseconds behind the second. As on Linux a place that cannot be
/// written is no error.
fn store_left(cur: &Current, at: UserPtr<Time>, timeout: Timeout, unit: u32) {
    let Some(at) = at.non_null() else { return };
    let left = match timeout {
        Timeout::Now => Duration::ZERO,
        // Given, but beyond all clocks: that does not get less.
        Timeout::Until(None) => return,
        Timeout::Until(Some(deadline)) => deadline.saturating_duration_since(Instant::now()),
    };
    let left = [left.as_secs() as i64, i64::from(left.subsec_nanos() / unit)];
    let _ = at.write(cur.space(), &left);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pollfd_keeps_its_question_beside_the_answer() {
        let mut entry = [7, 0, 0, 0, 5, 0x20, 0xff, 0xff];
        assert_eq!(split(entry), (7, Events::IN | Events::OUT | Events::RDHUP));
        set_found(&mut entry, Events::HUP);
        assert_eq!(entry, [7, 0, 0, 0, 5, 0x20, 0x10, 0]);
    }
}
