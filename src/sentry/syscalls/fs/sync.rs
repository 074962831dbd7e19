//! Writing back, and advice on what will be read.

use std::collections::HashSet;
use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::syscalls::fs::path::attr_of;
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::inode::NodeType;

/// `fsync(2)`.
pub fn fsync(cur: &mut Current, fd: Fd) -> SysResult {
    cur.io_file(fd)?.object().sync(false).map(|()| 0)
}

/// `fdatasync(2)`.
pub fn fdatasync(cur: &mut Current, fd: Fd) -> SysResult {
    cur.io_file(fd)?.object().sync(true).map(|()| 0)
}

/// `sync(2)`: all file systems that the caller can see. Always succeeds.
pub fn sync(cur: &mut Current) -> SysResult {
    let mounts = cur.namespaces().mounts.clone();
    let mut done = HashSet::new();
    for info in mounts.list(&mounts.root()) {
        let superblock = info.mount.superblock();
        if done.insert(Arc::as_ptr(superblock))
            && let Err(error) = superblock.fs.sync()
        {
            log::debug!("sync of a {} failed: {error}", superblock.fs.type_name());
        }
    }
    Ok(0)
}

/// `syncfs(2)`. What has no file system of its own needs nothing.
pub fn syncfs(cur: &mut Current, fd: Fd) -> SysResult {
    let file = cur.io_file(fd)?;
    file.path().map_or(Ok(()), |path| path.mount.fs().sync()).map(|()| 0)
}

/// `sync_file_range(2)`: the host's, where it has the pages. `EINVAL`; `ESPIPE`: neither a file nor a directory.
pub fn sync_file_range(cur: &mut Current, fd: Fd, offset: i64, len: i64, flags: u32) -> SysResult {
    const KNOWN: u32 =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let file = cur.io_file(fd)?;
    if flags & !KNOWN != 0 || offset < 0 || len < 0 || offset.checked_add(len).is_none() {
        return Err(Errno::EINVAL);
    }
    match attr_of(&file)?.kind {
        NodeType::Regular => file.object().sync_range(offset, len, flags).map(|()| 0),
        NodeType::BlockDevice | NodeType::Directory | NodeType::Symlink => Ok(0),
        _ => Err(Errno::ESPIPE),
    }
}

/// `readahead(2)`, as advice to the host. `EINVAL`: not a regular file.
pub fn readahead(cur: &mut Current, fd: Fd, offset: i64, count: usize) -> SysResult {
    let file = cur.file(fd)?;
    if !file.readable() {
        return Err(Errno::EBADF);
    }
    match attr_of(&file)?.kind {
        NodeType::Regular | NodeType::BlockDevice => {}
        _ => return Err(Errno::EINVAL),
    }
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    // A place that cannot be read ahead is no error.
    if offset >= 0 && count > 0 {
        file.object().advise(offset, count, libc::POSIX_FADV_WILLNEED)?;
    }
    Ok(0)
}

/// `posix_fadvise(2)`: the host is told where it has the pages. `ESPIPE`: a pipe.
pub fn fadvise64(cur: &mut Current, fd: Fd, offset: i64, len: i64, advice: i32) -> SysResult {
    let file = cur.io_file(fd)?;
    check_advice(attr_of(&file)?.kind, len, advice)?;
    file.object().advise(offset, len, advice).map(|()| 0)
}

fn check_advice(kind: NodeType, len: i64, advice: i32) -> Result<()> {
    if kind == NodeType::Fifo {
        return Err(Errno::ESPIPE);
    }
    let known = libc::POSIX_FADV_NORMAL..=libc::POSIX_FADV_NOREUSE;
    if len < 0 || !known.contains(&advice) { Err(Errno::EINVAL) } else { Ok(()) }
}
