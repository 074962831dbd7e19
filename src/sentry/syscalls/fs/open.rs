//! `open(2)`, `openat2(2)`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::errno::{Errno, Result};
use crate::sentry::mm::user::{UserPtr, UserStr, read_exact};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::open::PendingFifo;
use crate::vfs::{LookupFlags, OpenHow, Opened};
use crate::wait::Events;

/// `O_LARGEFILE`, which is set for every file that is opened by name on x86_64 (libc calls it 0 there).
pub const O_LARGEFILE: i32 = 0o100_000;

/// The flags that exist. `open(2)` ignores others, `openat2(2)` does not.
const KNOWN: i32 = libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_EXCL
    | libc::O_NOCTTY
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_ASYNC
    | libc::O_DIRECT
    | O_LARGEFILE
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NOATIME
    | libc::O_CLOEXEC
    | libc::O_PATH
    | libc::O_TMPFILE;

/// The flags that mean something together with `O_PATH`.
const KNOWN_WITH_PATH: i32 = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;

/// `open(2)`.
pub fn open(cur: &mut Current, path: UserStr, flags: i32, mode: u32) -> SysResult {
    openat(cur, Fd(libc::AT_FDCWD), path, flags, mode)
}

/// `creat(2)`.
pub fn creat(cur: &mut Current, path: UserStr, mode: u32) -> SysResult {
    openat(cur, Fd(libc::AT_FDCWD), path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode)
}

/// `openat(2)`.
pub fn openat(cur: &mut Current, dir: Fd, path: UserStr, flags: i32, mode: u32) -> SysResult {
    let flags = flags & KNOWN | O_LARGEFILE;
    let path = path.read_path(cur.space())?;
    open_with(cur, dir, &path, &OpenHow { flags, mode: mode & 0o7777, resolve: LookupFlags::empty() })
}

/// `struct open_how`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// `openat2(2)`. `E2BIG` for a structure from the future that says something.
pub fn openat2(cur: &mut Current, dir: Fd, path: UserStr, how: UserPtr<u64>, size: usize) -> SysResult {
    const PAGE: usize = 4096;
    match size {
        ..24 => return Err(Errno::EINVAL),
        _ if size > PAGE => return Err(Errno::E2BIG),
        _ => {}
    }
    let mut bytes = vec![0; size];
    read_exact(cur.space(), how.addr(), &mut bytes)?;
    let (raw, rest) = RawHow::read_from_prefix(&bytes).map_err(|_| Errno::EINVAL)?;
    if rest.iter().any(|&byte| byte != 0) {
        return Err(Errno::E2BIG);
    }
    let how = check_how(&raw)?;
    let path = path.read_path(cur.space())?;
    open_with(cur, dir, &path, &how)
}

fn check_how(raw: &RawHow) -> Result<OpenHow> {
    let flags = i32::try_from(raw.flags).ok().filter(|flags| flags & !KNOWN == 0).ok_or(Errno::EINVAL)?;
    let mode = u32::try_from(raw.mode).map_err(|_| Errno::EINVAL)?;
    let makes = flags & libc::O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE;
    if mode & !0o7777 != 0 || (mode != 0 && !makes) {
        return Err(Errno::EINVAL);
    }
    if flags & libc::O_PATH != 0 && flags & !KNOWN_WITH_PATH != 0 {
        return Err(Errno::EINVAL);
    }
    let resolve = resolve_flags(raw.resolve)?;
    if resolve.contains(LookupFlags::CACHED) && (makes || flags & libc::O_TRUNC != 0) {
        return Err(Errno::EAGAIN);
    }
    let flags = if flags & libc::O_PATH == 0 { flags | O_LARGEFILE } else { flags };
    Ok(OpenHow { flags, mode, resolve })
}

/// `RESOLVE_*`.
fn resolve_flags(raw: u64) -> Result<LookupFlags> {
    const FLAGS: [(u64, LookupFlags); 6] = [
        (1, LookupFlags::NO_XDEV),
        (2, LookupFlags::NO_MAGICLINKS),
        (4, LookupFlags::NO_SYMLINKS.union(LookupFlags::NO_MAGICLINKS)),
        (8, LookupFlags::BENEATH),
        (16, LookupFlags::IN_ROOT),
        (32, LookupFlags::CACHED),
    ];
    let resolve = FLAGS.iter().filter(|(bit, _)| raw & bit != 0).map(|(_, flag)| *flag).collect::<LookupFlags>();
    if raw >= 64 || resolve.contains(LookupFlags::BENEATH | LookupFlags::IN_ROOT) {
        return Err(Errno::EINVAL);
    }
    Ok(resolve)
}

fn open_with(cur: &Current, dir: Fd, path: &[u8], how: &OpenHow) -> SysResult {
    let slot = cur.reserve_fd()?;
    let scoped = how.resolve.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT);
    let opened = if scoped {
        cur.with_walk_from(dir, |walk| walk.open(path, how))?
    } else {
        cur.with_walk(dir, path, |walk| walk.open(path, how))?
    };
    let file = match opened {
        Opened::File(file) => file,
        Opened::Fifo(pending) => {
            wait_for_other_side(cur, &pending)?;
            pending.finish()
        }
    };
    Ok(slot.fill(file, how.flags & libc::O_CLOEXEC != 0) as u64)
}

/// `fifo(7)`: blocks until the other side is opened.
fn wait_for_other_side(cur: &Current, pending: &PendingFifo) -> Result<()> {
    let events = Events::READ | Events::WRITE;
    cur.task.wait_on(pending.wait_queue(), events, None, &mut || {
        if pending.is_ready() { Ok(()) } else { Err(Errno::EAGAIN) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how(flags: i32, mode: u64, resolve: u64) -> Result<OpenHow> {
        check_how(&RawHow { flags: flags as u64, mode, resolve })
    }

    #[test]
    fn openat2_refuses_what_open_ignores() {
        assert_eq!(how(libc::O_RDONLY, 0, 0), Ok(OpenHow { flags: O_LARGEFILE, ..OpenHow::default() }));
        assert_eq!(how(1 << 28, 0, 0), Err(Errno::EINVAL));
        assert_eq!(how(libc::O_RDONLY, 0o600, 0), Err(Errno::EINVAL), "a mode without a file to make");
        assert_eq!(how(libc::O_CREAT, 0o600, 0).map(|how| how.mode), Ok(0o600));
        assert_eq!(how(libc::O_CREAT, 0o100_600, 0), Err(Errno::EINVAL));
        assert_eq!(how(libc::O_PATH | libc::O_RDWR, 0, 0), Err(Errno::EINVAL));
        assert_eq!(how(0, 0, 64), Err(Errno::EINVAL));
        assert_eq!(how(0, 0, 8 | 16), Err(Errno::EINVAL), "beneath and in-root exclude each other");
        assert_eq!(how(libc::O_TRUNC | libc::O_WRONLY, 0, 32), Err(Errno::EAGAIN));
        let all = how(0, 0, 1 | 4 | 8).map(|how| how.resolve);
        let named = LookupFlags::NO_XDEV | LookupFlags::NO_SYMLINKS | LookupFlags::NO_MAGICLINKS | LookupFlags::BENEATH;
        assert_eq!(all, Ok(named));
    }
}
