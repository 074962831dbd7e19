//! Descriptors: closing and duplicating them.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::fdtable::FdTable;
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::file::OpenFile;
use crate::wait::Events;

/// `CLOSE_RANGE_UNSHARE`.
const UNSHARE: u32 = 2;
/// `CLOSE_RANGE_CLOEXEC`.
const CLOEXEC: u32 = 4;

/// `close(2)`. `EBADF`, and what flushing the file gives; the descriptor is free in any case.
pub fn close(cur: &mut Current, fd: Fd) -> SysResult {
    let files = cur.files()?;
    let file = files.remove(fd.0)?;
    let closed = files.closed(&file);
    linger(cur, &file);
    closed.map(|()| 0)
}

/// Has what closes a socket with `SO_LINGER` wait for the peer, if `file` is the last reference to it. A signal ends that, as
/// the time does, and the socket is closed all the same. (A process that ends does not wait: `inet_release` of Linux.)
pub fn linger(cur: &Current, file: &Arc<OpenFile>) {
    if Arc::strong_count(file) > 1 {
        return;
    }
    let object = &**file.object();
    let Some(socket) = object.as_socket() else { return };
    let Some(time) = socket.linger() else { return };
    let gone = || if socket.has_lingered() { Ok(()) } else { Err(Errno::EAGAIN) };
    let deadline = std::time::Instant::now().checked_add(time);
    let _ = cur.wait_file(object, Events::HUP, false, deadline, gone);
}

/// Closes files that were taken off `files`, as [`close`] does, whatever flushing says.
pub fn close_all(cur: &Current, files: &FdTable, closed: impl IntoIterator<Item = Arc<OpenFile>>) {
    for file in closed {
        let _ = files.closed(&file);
        linger(cur, &file);
    }
}

/// `close_range(2)`. `EINVAL`.
pub fn close_range(cur: &mut Current, first: u32, last: u32, flags: u32) -> SysResult {
    if flags & !(UNSHARE | CLOEXEC) != 0 || first > last {
        return Err(Errno::EINVAL);
    }
    if flags & UNSHARE != 0 {
        // One reference is the task's, one ours.
        let shared = cur.files()?;
        if Arc::strong_count(&shared) > 2 {
            cur.replace_files(shared.fork());
        }
    }
    let files = cur.files()?;
    if flags & CLOEXEC != 0 {
        files.set_cloexec_range(first, last);
    } else {
        close_all(cur, &files, files.remove_range(first, last));
    }
    Ok(0)
}

/// `dup(2)`. `EBADF`, `EMFILE`.
pub fn dup(cur: &mut Current, fd: Fd) -> SysResult {
    let file = cur.file(fd)?;
    cur.add_file(file, false)
}

/// `dup2(2)`. `EBADF`.
pub fn dup2(cur: &mut Current, old: Fd, new: Fd) -> SysResult {
    if old == new {
        cur.file(old)?;
        return Ok(new.0 as u64);
    }
    duplicate(cur, old, new, false)
}

/// `dup3(2)`. `EBADF`; `EINVAL`: flags, or twice the same descriptor.
pub fn dup3(cur: &mut Current, old: Fd, new: Fd, flags: i32) -> SysResult {
    if flags & !libc::O_CLOEXEC != 0 || old == new {
        return Err(Errno::EINVAL);
    }
    duplicate(cur, old, new, flags & libc::O_CLOEXEC != 0)
}

fn duplicate(cur: &Current, old: Fd, new: Fd, cloexec: bool) -> SysResult {
    let files = cur.files()?;
    let file = files.get(old.0)?;
    let replaced = files.replace(new.0, file, cloexec, cur.limit(libc::RLIMIT_NOFILE))?;
    close_all(cur, &files, replaced);
    Ok(new.0 as u64)
}

/// Gives a task descriptors for two files at once, lets `use_them` hand the numbers out, and takes them back if that
/// fails: `pipe(2)`, `socketpair(2)`.
pub fn add_two(
    cur: &Current,
    one: Arc<OpenFile>,
    two: Arc<OpenFile>,
    cloexec: bool,
    use_them: impl FnOnce([i32; 2]) -> Result<()>,
) -> SysResult {
    let files = cur.files()?;
    let limit = cur.limit(libc::RLIMIT_NOFILE);
    let first = files.add(one, cloexec, 0, limit)?;
    let undo = |fd: i32| {
        // Another thread may have closed it meanwhile.
        let _ = files.remove(fd);
    };
    let second = match files.add(two, cloexec, 0, limit) {
        Ok(second) => second,
        Err(error) => {
            undo(first);
            return Err(error);
        }
    };
    if let Err(error) = use_them([first, second]) {
        undo(first);
        undo(second);
        return Err(error);
    }
    Ok(0)
}
