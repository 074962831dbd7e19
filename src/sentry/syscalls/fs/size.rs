//! The size of files, and the space behind it: `truncate(2)`, `fallocate(2)`.

use crate::errno::{Errno, Result};
use crate::sentry::limits::INFINITY;
use crate::sentry::mm::user::UserStr;
use crate::sentry::signal::Signal;
use crate::sentry::syscalls::fs::path::{attr_of, is_regular};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::LookupFlags;
use crate::vfs::inode::{NodeType, SetAttr};
use crate::vfs::ops;

/// `truncate(2)`.
pub fn truncate(cur: &mut Current, path: UserStr, len: i64) -> SysResult {
    let len = u64::try_from(len).map_err(|_| Errno::EINVAL)?;
    let path = cur.lookup(Fd(libc::AT_FDCWD), path, LookupFlags::FOLLOW)?;
    let attr = path.attr()?;
    if attr.kind == NodeType::Regular {
        may_grow(cur, attr.size, len)?;
    }
    ops::truncate(&path, &cur.creds(), len).map(|()| 0)
}

/// `ftruncate(2)`. `EINVAL`: not a regular file, or not open for writing.
pub fn ftruncate(cur: &mut Current, fd: Fd, len: i64) -> SysResult {
    let len = u64::try_from(len).map_err(|_| Errno::EINVAL)?;
    let file = cur.io_file(fd)?;
    if !file.writable() || !is_regular(&file) {
        return Err(Errno::EINVAL);
    }
    may_grow(cur, attr_of(&file)?.size, len)?;
    match file.path() {
        Some(path) => ops::set_size(path, &cur.creds(), len)?,
        None => file.object().set_anonymous_attr(&SetAttr { size: Some(len), ..SetAttr::default() })?,
    }
    Ok(0)
}

/// RLIMIT_FSIZE. `EFBIG`, with SIGXFSZ.
fn may_grow(cur: &Current, size: u64, new: u64) -> Result<()> {
    let limit = cur.limit(libc::RLIMIT_FSIZE);
    if new > size && limit != INFINITY && new > limit {
        cur.raise(Signal::XFSZ);
        return Err(Errno::EFBIG);
    }
    Ok(())
}

const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE;

/// The combinations of flags that there are, as `fallocate(2)` lists them.
fn mode_exists(mode: i32) -> bool {
    match mode & !KEEP_SIZE {
        0 | libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_UNSHARE_RANGE => true,
        PUNCH_HOLE => mode & KEEP_SIZE != 0,
        libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE => mode & KEEP_SIZE == 0,
        _ => false,
    }
}

/// `fallocate(2)`. `EOPNOTSUPP`: flags, or nothing that this file system does; `ENODEV`: not a regular file.
pub fn fallocate(cur: &mut Current, fd: Fd, mode: i32, offset: i64, len: i64) -> SysResult {
    let file = cur.io_file(fd)?;
    let (Ok(start), Ok(len)) = (u64::try_from(offset), u64::try_from(len)) else { return Err(Errno::EINVAL) };
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    if !mode_exists(mode) {
        return Err(Errno::EOPNOTSUPP);
    }
    if !file.writable() {
        return Err(Errno::EBADF);
    }
    let attr = attr_of(&file)?;
    match attr.kind {
        NodeType::Fifo => return Err(Errno::ESPIPE),
        NodeType::Directory => return Err(Errno::EISDIR),
        NodeType::Regular => {}
        _ => return Err(Errno::ENODEV),
    }
    let end = start.checked_add(len).filter(|&end| i64::try_from(end).is_ok()).ok_or(Errno::EFBIG)?;
    if mode & (KEEP_SIZE | PUNCH_HOLE) == 0 {
        may_grow(cur, attr.size, end)?;
    }
    file.remove_privileges(&cur.creds())?;
    file.object().allocate(mode, start, len)?;
    file.notify(libc::IN_MODIFY);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_exclude_each_other() {
        assert!([0, KEEP_SIZE, KEEP_SIZE | PUNCH_HOLE, 0x10, 0x10 | KEEP_SIZE, 8, 0x20].into_iter().all(mode_exists));
        assert!(![PUNCH_HOLE, 8 | KEEP_SIZE, 8 | 0x20, 0x1000, 0x10 | 8].into_iter().any(mode_exists));
    }
}
