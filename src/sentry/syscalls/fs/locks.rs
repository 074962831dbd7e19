//! Record locks of `fcntl(2)`, and `flock(2)`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::errno::{Errno, Result};
use crate::sentry::mm::user::UserPtr;
use crate::sentry::namespaces::Pid;
use crate::sentry::syscalls::fs::path::attr_of;
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::file::OpenFile;
use crate::vfs::locks::{FileLocks, Lock, LockKind, LockOwner, RecordLock};
use crate::wait::Events;

/// `struct flock` of x86_64.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, PartialEq, Eq)]
#[repr(C)]
pub struct RawLock {
    kind: i16,
    whence: i16,
    pad: u32,
    start: i64,
    len: i64,
    pid: i32,
    pad2: u32,
}

const F_RDLCK: i16 = libc::F_RDLCK as i16;
const F_WRLCK: i16 = libc::F_WRLCK as i16;
const F_UNLCK: i16 = libc::F_UNLCK as i16;

/// The bytes that a lock is about, first and last, where `base` is what its `whence` counts from. `EINVAL` (before the
/// start), `EOVERFLOW`.
fn range(base: i64, start: i64, len: i64) -> Result<(u64, u64)> {
    let start = base.checked_add(start).ok_or(Errno::EOVERFLOW)?;
    let (first, last) = match len {
        0 => (start, i64::MAX),
        1.. => (start, start.checked_add(len - 1).ok_or(Errno::EOVERFLOW)?),
        _ => (start.checked_add(len).ok_or(Errno::EINVAL)?, start - 1),
    };
    match (u64::try_from(first), u64::try_from(last)) {
        (Ok(first), Ok(last)) => Ok((first, last)),
        _ => Err(Errno::EINVAL),
    }
}

/// A request, decoded: the range, and the kind unless it is to unlock.
struct Request {
    first: u64,
    last: u64,
    kind: Option<LockKind>,
}

fn decode(file: &OpenFile, raw: &RawLock) -> Result<Request> {
    let kind = match raw.kind {
        F_RDLCK => Some(LockKind::Shared),
        F_WRLCK => Some(LockKind::Exclusive),
        F_UNLCK => None,
        _ => return Err(Errno::EINVAL),
    };
    let base = match i32::from(raw.whence) {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => *file.position() as i64,
        libc::SEEK_END => attr_of(file)?.size as i64,
        _ => return Err(Errno::EINVAL),
    };
    let (first, last) = range(base, raw.start, raw.len)?;
    Ok(Request { first, last, kind })
}

/// Whose lock it is, and which process `F_GETLK` of others reports.
fn owner(cur: &Current, file: &OpenFile, of_description: bool, raw: &RawLock) -> Result<(LockOwner, Option<Pid>)> {
    if !of_description {
        return Ok((LockOwner::Process(cur.files()?.id()), Some(cur.scoped_pid())));
    }
    if raw.pid != 0 { Err(Errno::EINVAL) } else { Ok((LockOwner::Description(file.id()), None)) }
}

/// `F_GETLK`, `F_OFD_GETLK`.
pub fn get(cur: &Current, file: &OpenFile, arg: UserPtr<RawLock>, of_description: bool) -> SysResult {
    let mut raw = arg.read(cur.space())?;
    let request = decode(file, &raw)?;
    let kind = match request.kind {
        Some(kind) => kind,
        // Whether nobody locks it exclusively; only for descriptions, and since Linux 6.10.
        None if of_description => LockKind::Exclusive,
        None => return Err(Errno::EINVAL),
    };
    let (owner, pid) = owner(cur, file, of_description, &raw)?;
    let wanted = RecordLock { kind, start: request.first, last: request.last, owner, pid };
    match file.locks().conflict(&wanted) {
        None => raw.kind = F_UNLCK,
        Some(held) => {
            raw.kind = if held.kind == LockKind::Shared { F_RDLCK } else { F_WRLCK };
            raw.whence = libc::SEEK_SET as i16;
            raw.start = held.start as i64;
            let to_end = held.last >= i64::MAX as u64;
            raw.len = if to_end { 0 } else { (held.last - held.start + 1) as i64 };
            raw.pid = held.pid_seen_from(cur.kernel.pid_namespace);
        }
    }
    arg.write(cur.space(), &raw).map(|()| 0)
}

/// `F_SETLK` and `F_SETLKW`, `F_OFD_SETLK` and `F_OFD_SETLKW`. `EBADF`: the file is not open for that; `EAGAIN`, `EDEADLK`,
/// `ENOLCK`.
pub fn set(cur: &Current, file: &OpenFile, arg: UserPtr<RawLock>, of_description: bool, wait: bool) -> SysResult {
    let raw = arg.read(cur.space())?;
    let request = decode(file, &raw)?;
    let (owner, pid) = owner(cur, file, of_description, &raw)?;
    let locks = file.locks();
    let Some(kind) = request.kind else {
        return locks.unlock(owner, request.first, request.last).map(|()| 0);
    };
    let allowed = if kind == LockKind::Shared { file.readable() } else { file.writable() };
    if !allowed {
        return Err(Errno::EBADF);
    }
    let wanted = RecordLock { kind, start: request.first, last: request.last, owner, pid };
    if of_description {
        file.note_lock();
    } else {
        cur.files()?.note_lock();
    }
    match locks.lock(&wanted) {
        Err(Errno::EAGAIN) if wait => wait_for(cur, &locks, &wanted).map(|()| 0),
        done => done.map(|()| 0),
    }
}

/// Waits for a record lock. As long as it waits it counts in the search for deadlocks.
fn wait_for(cur: &Current, locks: &FileLocks, wanted: &RecordLock) -> Result<()> {
    let _announced = locks.announce(Lock::Record(*wanted));
    let mut waiting = None;
    cur.task.wait_on(locks.wait_queue(), Events::IN, None, &mut || {
        drop(waiting.take());
        match locks.lock(wanted) {
            Err(Errno::EAGAIN) => {
                waiting = locks.begin_wait(wanted)?;
                if waiting.is_some() { Err(Errno::EAGAIN) } else { locks.lock(wanted) }
            }
            done => done,
        }
    })
}

/// `flock(2)`. `EINVAL`, `EWOULDBLOCK`, `ENOLCK` (the file is in no file system that keeps locks).
pub fn flock(cur: &mut Current, fd: Fd, operation: i32) -> SysResult {
    let file = cur.io_file(fd)?;
    let kind = match operation & !libc::LOCK_NB {
        libc::LOCK_SH => LockKind::Shared,
        libc::LOCK_EX => LockKind::Exclusive,
        libc::LOCK_UN => {
            file.locks().funlock(file.id());
            return Ok(0);
        }
        _ => return Err(Errno::EINVAL),
    };
    let locks = file.locks();
    file.note_lock();
    let pid = cur.scoped_pid();
    match locks.flock(file.id(), kind, pid) {
        Err(Errno::EAGAIN) if operation & libc::LOCK_NB == 0 => {}
        done => return done.map(|()| 0),
    }
    let _announced = locks.announce(Lock::Whole { kind, pid });
    let mut attempt = || locks.flock(file.id(), kind, pid);
    cur.task.wait_on(locks.wait_queue(), Events::IN, None, &mut attempt).map(|()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_fcntl() {
        assert_eq!(range(0, 10, 5), Ok((10, 14)));
        assert_eq!(range(100, -10, 0), Ok((90, i64::MAX as u64)), "no length is to the end, however far that is");
        assert_eq!(range(100, 0, -10), Ok((90, 99)), "a negative length is what lies before");
        assert_eq!(range(0, 5, -10), Err(Errno::EINVAL));
        assert_eq!(range(0, -1, 1), Err(Errno::EINVAL));
        assert_eq!(range(0, i64::MAX, 1), Ok((i64::MAX as u64, i64::MAX as u64)));
        assert_eq!(range(0, i64::MAX, 2), Err(Errno::EOVERFLOW));
        assert_eq!(range(1, i64::MAX, 0), Err(Errno::EOVERFLOW));
        assert_eq!(range(0, 0, -1), Err(Errno::EINVAL));
        assert_eq!(size_of::<RawLock>(), size_of::<libc::flock>());
    }
}
