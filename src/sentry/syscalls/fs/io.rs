//! `read(2)`, `write(2)` and their kin, and `lseek(2)`.
//!
//! The usual call costs one look into the descriptor table and one attempt on the file. More is done only when that has
//! moved less than asked: reads of big regular files come in pieces, and writes to pipes and streams go on, waiting, until
//! all is written.

use std::time::Instant;

use crate::errno::{Errno, Result};
use crate::io::Source;
use crate::netstack::unix::UnixSocket;
use crate::netstack::{Ancillary, Socket};
use crate::sentry::mm::user::{UserBuffers, UserSlice};
use crate::sentry::signal::Signal;
use crate::sentry::syscalls::fs::path::{attr_of, is_regular};
use crate::sentry::syscalls::{Fd, SysResult, net};
use crate::sentry::task::{Attention, Current};
use crate::vfs::file::{File, OpenFile};
use crate::vfs::pipe::PipeEnd;
use crate::vfs::tty::{Master, Slave};
use crate::wait::Events;

/// Regular files may move a long read or write in pieces, of at least this many bytes each.
const PIECE: usize = 64 << 10;

/// `RWF_HIPRI`.
const HIPRI: i32 = 1;
/// `RWF_DSYNC`.
const DSYNC: i32 = 2;
/// `RWF_SYNC`.
const SYNC: i32 = 4;
/// `RWF_NOWAIT`.
const NOWAIT: i32 = 8;
/// `RWF_APPEND`.
const APPEND: i32 = 16;
/// `RWF_NOAPPEND`.
const NOAPPEND: i32 = 32;

/// How one read or write goes.
#[derive(Clone, Copy, Default)]
pub struct How {
    /// Where; `None` is the position.
    pub at: Option<u64>,
    /// `RWF_*`.
    pub flags: i32,
}

impl How {
    /// At an offset. `EINVAL` when it is negative.
    pub fn at(offset: i64) -> Result<How> {
        let at = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        Ok(How { at: Some(at), flags: 0 })
    }

    /// At the position, without waiting.
    pub fn nowait() -> How {
        How { at: None, flags: NOWAIT }
    }

    /// `preadv2(2)`: -1 is the position. `EOPNOTSUPP`: flags that do not exist.
    fn with_flags(offset: i64, flags: i32, known: i32) -> Result<How> {
        if flags & !known != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if flags & (APPEND | NOAPPEND) == APPEND | NOAPPEND {
            return Err(Errno::EINVAL);
        }
        let how = if offset == -1 { How::default() } else { How::at(offset)? };
        Ok(How { flags, ..how })
    }

    /// The place of what comes `done` bytes later.
    fn after(self, done: usize) -> How {
        How { at: self.at.map(|at| at.saturating_add(done as u64)), ..self }
    }
}

/// The deadline of a socket's `SO_RCVTIMEO` or (with `send`) `SO_SNDTIMEO`.
fn deadline(object: &dyn File, send: bool) -> Option<Instant> {
    let timeout = object.as_socket()?.timeout(send)?;
    Instant::now().checked_add(timeout)
}

/// `signal(7)`: with a timeout, a call on a socket is not restarted.
fn interrupted(error: Errno, deadline: Option<Instant>) -> Errno {
    if error == Errno::ERESTARTSYS && deadline.is_some() { Errno::EINTR } else { error }
}

/// Reads into `sink`, waiting if need be.
pub fn read_file(cur: &Current, file: &OpenFile, sink: &mut UserBuffers<'_>, how: How) -> SysResult {
    let done = read_all(cur, file, sink, how);
    cur.clocks.has_read(done.unwrap_or(0));
    done
}

fn read_all(cur: &Current, file: &OpenFile, sink: &mut UserBuffers<'_>, how: How) -> SysResult {
    let object = &**file.object();
    let nonblocking = file.nonblocking() || how.flags & NOWAIT != 0;
    let deadline = deadline(object, false);
    let low_water = object.as_socket().filter(|_| !nonblocking).map_or(0, |socket| socket.low_water());
    let mut done = 0;
    loop {
        let how = how.after(done);
        let once = cur.wait_file(object, Events::READ, nonblocking, deadline, || match how.at {
            None => file.read(sink),
            Some(at) => file.read_at(at, sink),
        });
        match once {
            Ok(n) => {
                done += n;
                if n > 0 && done < low_water && sink.remaining() > 0 {
                    continue;
                }
                if n < PIECE || sink.remaining() == 0 || !object.seekable() || is_killed(cur) {
                    return Ok(done as u64);
                }
            }
            Err(_) if done > 0 => return Ok(done as u64),
            Err(error) => return Err(interrupted(error, deadline)),
        }
    }
}

/// Writes `source`, waiting if need be. `EPIPE` comes with SIGPIPE, `EFBIG` at the limit of a file's size with SIGXFSZ.
pub fn write_file(cur: &Current, file: &OpenFile, source: &mut UserBuffers<'_>, how: How) -> SysResult {
    let wanted = source.remaining();
    source.truncate(write_room(cur, file, wanted, how)?);
    write_from(cur, file, source, how)
}

/// [`write_file`] from anywhere; the limit of a file's size is the caller's to look at ([`write_room`]).
pub fn write_from(cur: &Current, file: &OpenFile, source: &mut dyn Source, how: How) -> SysResult {
    let done = write_all(cur, file, source, how);
    cur.clocks.has_written(done.unwrap_or(0));
    done
}

fn write_all(cur: &Current, file: &OpenFile, source: &mut dyn Source, how: How) -> SysResult {
    let object = &**file.object();
    if file.writable() && object.seekable() && source.left() > 0 {
        file.remove_privileges(&cur.creds())?;
    }
    let nonblocking = file.nonblocking() || how.flags & NOWAIT != 0;
    let deadline = deadline(object, true);
    let mut done = 0;
    loop {
        let how = how.after(done);
        match cur.wait_file(object, Events::WRITE, nonblocking, deadline, || attempt_write(cur, file, source, how)) {
            Ok(n) => {
                done += n;
                if n == 0 || source.left() == 0 || !goes_on(object, n) || is_killed(cur) {
                    break;
                }
            }
            Err(error) => {
                if error == Errno::EAGAIN {
                    file.note_full();
                }
                if error == Errno::EPIPE && raises_sigpipe(object) {
                    cur.raise(Signal::PIPE);
                }
                if done == 0 {
                    return Err(interrupted(error, deadline));
                }
                break;
            }
        }
    }
    if how.flags & (DSYNC | SYNC) != 0 && done > 0 {
        object.sync(how.flags & SYNC == 0)?;
    }
    Ok(done as u64)
}

fn attempt_write(cur: &Current, file: &OpenFile, source: &mut dyn Source, how: How) -> Result<usize> {
    let object = file.object();
    if let (Some(socket), None) = (file.downcast::<UnixSocket>(), how.at) {
        // The writer's credentials go with it, not those of the socket's maker.
        let credentials = Some(net::cred(cur));
        return socket.send(source, None, Ancillary { credentials, ..Ancillary::default() }, 0);
    }
    let special = how.flags & (APPEND | NOAPPEND) != 0 && object.seekable();
    if !special {
        return match how.at {
            None => file.write(source),
            Some(at) => file.write_at(at, source),
        };
    }
    if !file.writable() {
        return Err(Errno::EBADF);
    }
    let mut position = file.position();
    let (start, n) = if how.flags & APPEND != 0 {
        object.append(source)?
    } else {
        let at = how.at.unwrap_or(*position);
        (at, object.write(at, source)?)
    };
    if how.at.is_none() {
        *position = start + n as u64;
    }
    drop(position);
    file.notify(libc::IN_MODIFY);
    Ok(n)
}

/// Whether a write that took `n` bytes, but not all, is to go on: streams wait for room, long writes come in pieces. Other
/// files take what makes sense to them (an eventfd eight bytes).
fn goes_on(object: &dyn File, n: usize) -> bool {
    (n >= PIECE && object.seekable()) || is_stream(object)
}

/// Nobody will look at what is still to be moved.
pub fn is_killed(cur: &Current) -> bool {
    cur.task.attention().contains(Attention::KILL)
}

fn is_stream(object: &dyn File) -> bool {
    if let Some(socket) = object.as_socket() {
        return socket.domain().1 == libc::SOCK_STREAM;
    }
    let any = object.as_any();
    any.is::<PipeEnd>() || any.is::<Slave>() || any.is::<Master>()
}

/// Datagram sockets give `EPIPE` without a signal.
fn raises_sigpipe(object: &dyn File) -> bool {
    object.as_socket().is_none_or(|socket| socket.domain().1 == libc::SOCK_STREAM)
}

/// How many of `wanted` bytes RLIMIT_FSIZE lets a write to a regular file have. `EFBIG`, with SIGXFSZ.
pub fn write_room(cur: &Current, file: &OpenFile, wanted: usize, how: How) -> Result<usize> {
    if !file.object().seekable() || !file.writable() {
        return Ok(wanted);
    }
    let limit = cur.limit(libc::RLIMIT_FSIZE);
    if wanted == 0 || limit == crate::sentry::limits::INFINITY || !is_regular(file) {
        return Ok(wanted);
    }
    let appends = (file.flags() & libc::O_APPEND != 0 || how.flags & APPEND != 0) && how.flags & NOAPPEND == 0;
    let at = match how.at {
        _ if appends => attr_of(file)?.size,
        Some(at) => at,
        None => *file.position(),
    };
    if at >= limit {
        cur.raise(Signal::XFSZ);
        return Err(Errno::EFBIG);
    }
    Ok(usize::try_from(limit - at).map_or(wanted, |left| wanted.min(left)))
}

/// `EFAULT`: no memory is so long that its length would be negative when taken as signed.
fn checked(buf: UserSlice) -> Result<UserSlice> {
    if isize::try_from(buf.len()).is_err() { Err(Errno::EFAULT) } else { Ok(buf) }
}

/// `read(2)`.
pub fn read(cur: &mut Current, fd: Fd, buf: UserSlice) -> SysResult {
    let file = cur.file(fd)?;
    read_file(cur, &file, &mut UserBuffers::one(cur.space(), checked(buf)?), How::default())
}

/// `write(2)`.
pub fn write(cur: &mut Current, fd: Fd, buf: UserSlice) -> SysResult {
    let file = cur.file(fd)?;
    write_file(cur, &file, &mut UserBuffers::one(cur.space(), checked(buf)?), How::default())
}

/// `pread64(2)`. `ESPIPE`, `EINVAL` (a negative offset).
pub fn pread64(cur: &mut Current, fd: Fd, buf: UserSlice, offset: i64) -> SysResult {
    let how = How::at(offset)?;
    let file = cur.file(fd)?;
    read_file(cur, &file, &mut UserBuffers::one(cur.space(), checked(buf)?), how)
}

/// `pwrite64(2)`. `ESPIPE`, `EINVAL` (a negative offset).
pub fn pwrite64(cur: &mut Current, fd: Fd, buf: UserSlice, offset: i64) -> SysResult {
    let how = How::at(offset)?;
    let file = cur.file(fd)?;
    write_file(cur, &file, &mut UserBuffers::one(cur.space(), checked(buf)?), how)
}

fn read_vector(cur: &Current, fd: Fd, iov: UserSlice, how: How) -> SysResult {
    let file = cur.file(fd)?;
    if !file.readable() {
        return Err(Errno::EBADF);
    }
    // What comes in two registers is an array of structures here: an address and a count.
    read_file(cur, &file, &mut UserBuffers::iovecs(cur.space(), iov.addr(), iov.len())?, how)
}

fn write_vector(cur: &Current, fd: Fd, iov: UserSlice, how: How) -> SysResult {
    let file = cur.file(fd)?;
    if !file.writable() {
        return Err(Errno::EBADF);
    }
    write_file(cur, &file, &mut UserBuffers::iovecs(cur.space(), iov.addr(), iov.len())?, how)
}

/// `readv(2)`.
pub fn readv(cur: &mut Current, fd: Fd, iov: UserSlice) -> SysResult {
    read_vector(cur, fd, iov, How::default())
}

/// `writev(2)`.
pub fn writev(cur: &mut Current, fd: Fd, iov: UserSlice) -> SysResult {
    write_vector(cur, fd, iov, How::default())
}

/// `preadv(2)`.
pub fn preadv(cur: &mut Current, fd: Fd, iov: UserSlice, offset: i64) -> SysResult {
    read_vector(cur, fd, iov, How::at(offset)?)
}

/// `pwritev(2)`.
pub fn pwritev(cur: &mut Current, fd: Fd, iov: UserSlice, offset: i64) -> SysResult {
    write_vector(cur, fd, iov, How::at(offset)?)
}

/// `preadv2(2)`. The upper half of the offset is for 32-bit programs.
pub fn preadv2(cur: &mut Current, fd: Fd, iov: UserSlice, offset: i64, _high: u64, flags: i32) -> SysResult {
    read_vector(cur, fd, iov, How::with_flags(offset, flags, HIPRI | DSYNC | SYNC | NOWAIT)?)
}

/// `pwritev2(2)`.
pub fn pwritev2(cur: &mut Current, fd: Fd, iov: UserSlice, offset: i64, _high: u64, flags: i32) -> SysResult {
    write_vector(cur, fd, iov, How::with_flags(offset, flags, HIPRI | DSYNC | SYNC | NOWAIT | APPEND | NOAPPEND)?)
}

/// `lseek(2)`.
pub fn lseek(cur: &mut Current, fd: Fd, offset: i64, whence: i32) -> SysResult {
    cur.file(fd)?.seek(offset, whence)
}
