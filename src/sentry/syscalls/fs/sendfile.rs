//! `sendfile(2)`, `copy_file_range(2)`: from one file to another without container memory.
//!
//! A piece of up to 256 KiB costs one host read, of the descriptor that was donated for the file, and one write.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::io::{Bounce, SliceSink};
use crate::sentry::mm::user::{MAX_RW, UserPtr};
use crate::sentry::syscalls::fs::io::{How, is_killed, write_from, write_room};
use crate::sentry::syscalls::fs::path::attr_of;
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::file::OpenFile;
use crate::vfs::inode::NodeType;
use crate::wait::Events;

/// Moves up to `count` bytes of `from` at `at` to `to`. What was moved before something failed counts.
fn copy(cur: &Current, from: &OpenFile, at: u64, to: &OpenFile, to_at: Option<u64>, count: usize) -> SysResult {
    let mut buf = Bounce::take();
    let mut done = 0;
    while done < count {
        // What cannot be written need not be read.
        let full = !to.object().seekable() && !to.object().poll().intersects(Events::WRITE | Events::ALWAYS);
        if full && to.nonblocking() {
            return if done > 0 { Ok(done as u64) } else { Err(Errno::EAGAIN) };
        }
        match copy_piece(cur, from, at + done as u64, to, to_at.map(|at| at + done as u64), count - done, &mut buf) {
            Ok((read, written)) => {
                done += written;
                if read == 0 || written < read || is_killed(cur) {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done as u64)
}

/// One piece: how much was read, and how much of it written.
fn copy_piece(
    cur: &Current,
    from: &OpenFile,
    at: u64,
    to: &OpenFile,
    to_at: Option<u64>,
    limit: usize,
    buf: &mut [u8],
) -> Result<(usize, usize)> {
    let how = How { at: to_at, flags: 0 };
    let limit = write_room(cur, to, limit.min(buf.len()), how)?;
    let mut sink = SliceSink::new(&mut buf[..limit]);
    let n = from.object().read(at, &mut sink)?;
    if n == 0 {
        return Ok((0, 0));
    }
    let written = write_from(cur, to, &mut &buf[..n], how)?;
    Ok((n, written as usize))
}

/// The place in a file that a call takes from memory, or from the file's position when the pointer is NULL. `ESPIPE`,
/// `EINVAL`.
fn place(cur: &Current, file: &OpenFile, offset: UserPtr<i64>) -> Result<u64> {
    match offset.non_null() {
        None => Ok(*file.position()),
        Some(_) if !file.object().seekable() => Err(Errno::ESPIPE),
        Some(offset) => u64::try_from(offset.read(cur.space())?).map_err(|_| Errno::EINVAL),
    }
}

/// Moves the place that [`place`] gave.
fn set_place(cur: &Current, file: &OpenFile, offset: UserPtr<i64>, at: u64) -> Result<()> {
    match offset.non_null() {
        None => *file.position() = at,
        Some(offset) => offset.write(cur.space(), &(at as i64))?,
    }
    Ok(())
}

/// `sendfile(2)`. `EINVAL`: `from` cannot be read at a place, or `to` appends.
pub fn sendfile(cur: &mut Current, to: Fd, from: Fd, offset: UserPtr<i64>, count: usize) -> SysResult {
    let from = cur.file(from)?;
    if !from.readable() {
        return Err(Errno::EBADF);
    }
    let at = place(cur, &from, offset)?;
    let to = cur.file(to)?;
    if !to.writable() {
        return Err(Errno::EBADF);
    }
    if isize::try_from(count).is_err() || to.flags() & libc::O_APPEND != 0 {
        return Err(Errno::EINVAL);
    }
    let directory = from.path().is_some_and(|path| path.dentry.is_dir());
    if !from.object().seekable() || directory {
        return Err(Errno::EINVAL);
    }
    let done = copy(cur, &from, at, &to, None, count.min(MAX_RW))?;
    from.notify(libc::IN_ACCESS);
    set_place(cur, &from, offset, at + done)?;
    Ok(done)
}

/// What `copy_file_range(2)` asks of both files.
fn regular(file: &OpenFile) -> Result<()> {
    match attr_of(file)?.kind {
        NodeType::Directory => Err(Errno::EISDIR),
        NodeType::Regular if file.object().seekable() => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

/// `copy_file_range(2)`. `EXDEV` between two file systems; `EINVAL`: the ranges overlap.
pub fn copy_file_range(
    cur: &mut Current,
    from: Fd,
    from_offset: UserPtr<i64>,
    to: Fd,
    to_offset: UserPtr<i64>,
    len: usize,
    flags: u32,
) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let (from, to) = (cur.file(from)?, cur.file(to)?);
    let at = place(cur, &from, from_offset)?;
    let to_at = place(cur, &to, to_offset)?;
    if !from.readable() || !to.writable() || to.flags() & libc::O_APPEND != 0 {
        return Err(Errno::EBADF);
    }
    regular(&from)?;
    regular(&to)?;
    let (Some(one), Some(two)) = (from.path(), to.path()) else { return Err(Errno::EXDEV) };
    if !Arc::ptr_eq(one.mount.superblock(), two.mount.superblock()) {
        return Err(Errno::EXDEV);
    }
    let size = one.attr()?.size;
    let len = len.min(MAX_RW).min(usize::try_from(size.saturating_sub(at)).unwrap_or(MAX_RW));
    let (Some(end), Some(to_end)) = (at.checked_add(len as u64), to_at.checked_add(len as u64)) else {
        return Err(Errno::EOVERFLOW);
    };
    if one.attr()?.ino == two.attr()?.ino && at < to_end && to_at < end {
        return Err(Errno::EINVAL);
    }
    let done = copy(cur, &from, at, &to, Some(to_at), len)?;
    set_place(cur, &from, from_offset, at + done)?;
    set_place(cur, &to, to_offset, to_at + done)?;
    Ok(done)
}
