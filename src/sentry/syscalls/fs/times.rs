//! Time stamps of files: `utimensat(2)` and what was before it.

use crate::errno::{Errno, Result};
use crate::sentry::mm::user::{UserPtr, UserStr};
use crate::sentry::syscalls::fs::path::{Target, lookup_flags};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::inode::{SetAttr, TimeSpec};
use crate::vfs::ops::{self, SetTime};

const CWD: Fd = Fd(libc::AT_FDCWD);

/// Seconds and a fraction: `struct timespec`, `struct timeval`.
type Raw = [i64; 2];

/// `utimensat(2)`; a NULL path is `dir` itself.
pub fn utimensat(cur: &mut Current, dir: Fd, path: UserStr, times: UserPtr<[Raw; 2]>, flags: i32) -> SysResult {
    let times = match times.non_null() {
        None => [SetTime::Now; 2],
        Some(times) => {
            let [atime, mtime] = times.read(cur.space())?;
            [from_timespec(atime)?, from_timespec(mtime)?]
        }
    };
    set(cur, dir, path, times, flags)
}

/// `utime(2)`: whole seconds.
pub fn utime(cur: &mut Current, path: UserStr, times: UserPtr<[i64; 2]>) -> SysResult {
    let times = match times.non_null() {
        None => [SetTime::Now; 2],
        Some(times) => times.read(cur.space())?.map(|sec| SetTime::At(TimeSpec { sec, nsec: 0 })),
    };
    set_existing(cur, CWD, path, times)
}

/// `utimes(2)`.
pub fn utimes(cur: &mut Current, path: UserStr, times: UserPtr<[Raw; 2]>) -> SysResult {
    futimesat(cur, CWD, path, times)
}

/// `futimesat(2)`; a NULL path is `dir` itself.
pub fn futimesat(cur: &mut Current, dir: Fd, path: UserStr, times: UserPtr<[Raw; 2]>) -> SysResult {
    let times = match times.non_null() {
        None => [SetTime::Now; 2],
        Some(times) => {
            let [atime, mtime] = times.read(cur.space())?;
            [from_timeval(atime)?, from_timeval(mtime)?]
        }
    };
    set(cur, dir, path, times, 0)
}

fn from_timespec([sec, nsec]: Raw) -> Result<SetTime> {
    match nsec {
        libc::UTIME_NOW => Ok(SetTime::Now),
        libc::UTIME_OMIT => Ok(SetTime::Omit),
        0..=999_999_999 => Ok(SetTime::At(TimeSpec { sec, nsec: nsec as u32 })),
        _ => Err(Errno::EINVAL),
    }
}

fn from_timeval([sec, usec]: Raw) -> Result<SetTime> {
    match usec {
        0..=999_999 => Ok(SetTime::At(TimeSpec { sec, nsec: usec as u32 * 1000 })),
        _ => Err(Errno::EINVAL),
    }
}

fn set(cur: &Current, dir: Fd, path: UserStr, times: [SetTime; 2], flags: i32) -> SysResult {
    if times == [SetTime::Omit; 2] {
        return Ok(0);
    }
    if !path.is_null() || dir == CWD || flags & libc::AT_EMPTY_PATH != 0 {
        let target = cur.target(dir, path, lookup_flags(flags, 0)?)?;
        return apply(cur, target, times);
    }
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let file = cur.io_file(dir)?;
    apply(cur, Target::of(file), times)
}

fn set_existing(cur: &Current, dir: Fd, path: UserStr, times: [SetTime; 2]) -> SysResult {
    let target = cur.target(dir, path, lookup_flags(0, 0)?)?;
    apply(cur, target, times)
}

fn apply(cur: &Current, target: Target, [atime, mtime]: [SetTime; 2]) -> SysResult {
    let creds = cur.creds();
    let now = TimeSpec::now();
    let value = |time| match time {
        SetTime::Omit => None,
        SetTime::Now => Some(now),
        SetTime::At(time) => Some(time),
    };
    let set = SetAttr { atime: value(atime), mtime: value(mtime), ..SetAttr::default() };
    target.change(&creds, &set, |path| ops::set_times(path, &creds, atime, mtime)).map(|()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_have_a_range() {
        assert_eq!(from_timespec([5, libc::UTIME_NOW]), Ok(SetTime::Now));
        assert_eq!(from_timespec([5, libc::UTIME_OMIT]), Ok(SetTime::Omit));
        assert_eq!(from_timespec([-5, 999_999_999]), Ok(SetTime::At(TimeSpec { sec: -5, nsec: 999_999_999 })));
        assert_eq!(from_timespec([5, 1_000_000_000]), Err(Errno::EINVAL));
        assert_eq!(from_timeval([5, 999_999]), Ok(SetTime::At(TimeSpec { sec: 5, nsec: 999_999_000 })));
        assert_eq!([from_timeval([5, 1_000_000]), from_timeval([5, -1])], [Err(Errno::EINVAL); 2]);
    }
}
