//! `splice(2)`, `tee(2)`, `vmsplice(2)`.

use std::cell::Cell;
use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::io::{SliceSink, Slices};
use crate::sentry::mm::user::{MAX_RW, UserBuffers, UserPtr, UserSlice};
use crate::sentry::signal::Signal;
use crate::sentry::syscalls::fs::io::{How, read_file, write_file};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::file::{File, OpenFile};
use crate::vfs::pipe::{Pipe, PipeEnd};
use crate::wait::Events;

/// `SPLICE_F_NONBLOCK`.
const NONBLOCK: u32 = 2;
/// `SPLICE_F_MOVE`, `SPLICE_F_NONBLOCK`, `SPLICE_F_MORE`, `SPLICE_F_GIFT`.
const KNOWN: u32 = 15;

fn pipe_of(file: &OpenFile) -> Option<&Arc<Pipe>> {
    file.downcast::<PipeEnd>().map(PipeEnd::pipe)
}

/// Waits until a file is ready for any of `events`. `EAGAIN` at once when it is not to be waited for.
fn wait_ready(cur: &Current, file: &OpenFile, events: Events, nonblocking: bool) -> Result<()> {
    let object: &dyn File = &**file.object();
    cur.wait_file(object, events, nonblocking, None, || {
        if object.poll().intersects(events | Events::ALWAYS) { Ok(()) } else { Err(Errno::EAGAIN) }
    })
}

/// Where a side that is no pipe reads or writes: its own position unless an offset is given, which is moved afterwards.
struct Place {
    at: Option<u64>,
    offset: UserPtr<i64>,
}

impl Place {
    /// `ESPIPE` on a pipe; `EINVAL`: there are no places in the file, or a negative one.
    fn of(cur: &Current, file: &OpenFile, offset: UserPtr<i64>) -> Result<Place> {
        if offset.is_null() {
            return Ok(Place { at: None, offset });
        }
        if pipe_of(file).is_some() {
            return Err(Errno::ESPIPE);
        }
        if !file.object().seekable() {
            return Err(Errno::EINVAL);
        }
        let at = u64::try_from(offset.read(cur.space())?).map_err(|_| Errno::EINVAL)?;
        Ok(Place { at: Some(at), offset })
    }

    fn after(&self, done: usize) -> Option<u64> {
        self.at.map(|at| at.saturating_add(done as u64))
    }

    fn store(&self, cur: &Current, done: usize) -> SysResult {
        if let Some(at) = self.after(done) {
            self.offset.write(cur.space(), &(at as i64))?;
        }
        Ok(done as u64)
    }
}

/// `splice(2)`. `EINVAL`: neither is a pipe, both are the same, or the target appends.
pub fn splice(
    cur: &mut Current,
    from: Fd,
    from_offset: UserPtr<i64>,
    to: Fd,
    to_offset: UserPtr<i64>,
    len: usize,
    flags: u32,
) -> SysResult {
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let len = len.min(MAX_RW);
    let (from, to) = (cur.file(from)?, cur.file(to)?);
    if !from.readable() || !to.writable() {
        return Err(Errno::EBADF);
    }
    let from_place = Place::of(cur, &from, from_offset)?;
    let to_place = Place::of(cur, &to, to_offset)?;
    let nonblocking = flags & NONBLOCK != 0;
    match (pipe_of(&from), pipe_of(&to)) {
        (Some(_), Some(_)) => transfer(cur, &from, &to, len, nonblocking, false),
        (Some(pipe), None) => {
            if to.flags() & libc::O_APPEND != 0 {
                return Err(Errno::EINVAL);
            }
            let done = drain(cur, (&from, pipe), &to, &to_place, len, nonblocking)?;
            to_place.store(cur, done)
        }
        (None, Some(pipe)) => {
            if from.path().is_some_and(|path| path.dentry.is_dir()) {
                return Err(Errno::EINVAL);
            }
            let done = fill(cur, &from, &from_place, (&to, pipe), len, nonblocking)?;
            from_place.store(cur, done)
        }
        (None, None) => Err(Errno::EINVAL),
    }
}

/// From one pipe to another: waits for bytes in the one or room in the other, whichever is missing.
fn transfer(cur: &Current, from: &OpenFile, to: &OpenFile, len: usize, nonblocking: bool, keep: bool) -> SysResult {
    let (Some(source), Some(target)) = (pipe_of(from), pipe_of(to)) else { return Err(Errno::EINVAL) };
    loop {
        match source.transfer(target, len, keep) {
            Err(Errno::EAGAIN) => {}
            Err(Errno::EPIPE) => {
                cur.raise(Signal::PIPE);
                return Err(Errno::EPIPE);
            }
            done => return done.map(|n| n as u64),
        }
        wait_ready(cur, from, Events::READ, nonblocking || from.nonblocking())?;
        wait_ready(cur, to, Events::WRITE, nonblocking || to.nonblocking())?;
    }
}

/// From a pipe to a file that is none: what is there, at least something.
fn drain(
    cur: &Current,
    (from, pipe): (&OpenFile, &Arc<Pipe>),
    to: &OpenFile,
    place: &Place,
    len: usize,
    nonblocking: bool,
) -> Result<usize> {
    if to.writable() && to.object().seekable() {
        to.remove_privileges(&cur.creds())?;
    }
    let mut done = 0;
    while done < len {
        let reached = Cell::new(false);
        let moved = pipe.splice_out(len - done, &mut |slices| {
            reached.set(true);
            let mut source = Slices::new(slices);
            match place.after(done) {
                Some(at) => to.write_at(at, &mut source),
                None => to.write(&mut source),
            }
        });
        match moved {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(_) if done > 0 => break,
            Err(Errno::EAGAIN) if reached.get() => wait_ready(cur, to, Events::WRITE, to.nonblocking())?,
            Err(Errno::EAGAIN) => wait_ready(cur, from, Events::READ, nonblocking || from.nonblocking())?,
            Err(Errno::EPIPE) => {
                cur.raise(Signal::PIPE);
                return Err(Errno::EPIPE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// From a file that is no pipe to a pipe: once, as much as fits.
fn fill(
    cur: &Current,
    from: &OpenFile,
    place: &Place,
    (to, pipe): (&OpenFile, &Arc<Pipe>),
    len: usize,
    nonblocking: bool,
) -> Result<usize> {
    loop {
        let reached = Cell::new(false);
        let moved = pipe.splice_in(len, &mut |fits| {
            reached.set(true);
            let mut data = vec![0; fits];
            let mut sink = SliceSink::new(&mut data);
            let n = match place.at {
                Some(at) => from.read_at(at, &mut sink)?,
                None => from.read(&mut sink)?,
            };
            data.truncate(n);
            Ok(data)
        });
        match moved {
            Err(Errno::EAGAIN) if reached.get() => {
                wait_ready(cur, from, Events::READ, nonblocking || from.nonblocking())?;
            }
            Err(Errno::EAGAIN) => wait_ready(cur, to, Events::WRITE, nonblocking || to.nonblocking())?,
            Err(Errno::EPIPE) => {
                cur.raise(Signal::PIPE);
                return Err(Errno::EPIPE);
            }
            done => return done,
        }
    }
}

/// `tee(2)`: copies, and leaves the bytes where they are. `EINVAL`: not two different pipes.
pub fn tee(cur: &mut Current, from: Fd, to: Fd, len: usize, flags: u32) -> SysResult {
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(0);
    }
    let (from, to) = (cur.file(from)?, cur.file(to)?);
    if !from.readable() || !to.writable() {
        return Err(Errno::EBADF);
    }
    transfer(cur, &from, &to, len.min(MAX_RW), flags & NONBLOCK != 0, true)
}

/// `vmsplice(2)`: pages are copied, in either direction; what a gift would save is not worth sharing memory for.
pub fn vmsplice(cur: &mut Current, fd: Fd, iov: UserSlice, flags: u32) -> SysResult {
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let file = cur.file(fd)?;
    let mut buffers = UserBuffers::iovecs(cur.space(), iov.addr(), iov.len())?;
    if buffers.remaining() == 0 {
        return Ok(0);
    }
    if pipe_of(&file).is_none() {
        return Err(Errno::EBADF);
    }
    let how = if flags & NONBLOCK != 0 { How::nowait() } else { How::default() };
    if file.writable() { write_file(cur, &file, &mut buffers, how) } else { read_file(cur, &file, &mut buffers, how) }
}
