//! Where bytes go to and come from in a read or write: container memory or a buffer of the sentry's own, one interface.
//!
//! A file fills a [`Sink`] and drains a [`Source`] slice by slice, so that what lies in a socket's ring or a mapped file
//! moves in one copy. Both may stop early: a bad pointer part-way gives the bytes before it, `EFAULT` only with none.

use crate::errno::{Errno, Result};

/// The destination of a read.
pub trait Sink {
    /// How many more bytes it takes.
    fn room(&self) -> usize;

    /// Takes a prefix of `bytes` and returns its length: less than all when the room ends or the rest of the destination
    /// is not writable. `EFAULT` when not one byte could be stored though `room` and `bytes` were not empty.
    fn put(&mut self, bytes: &[u8]) -> Result<usize>;

    /// Takes a prefix of `slices`, which follow one another, under the rules of [`Sink::put`]. For what lies in pieces
    /// (a pipe, a socket's queue): a sink in container memory stores them all with one host call.
    fn put_slices(&mut self, slices: &[&[u8]]) -> Result<usize> {
        let mut done = 0;
        for slice in slices.iter().filter(|slice| !slice.is_empty()) {
            match self.put(slice) {
                Ok(n) => {
                    done += n;
                    if n < slice.len() {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Lets a host descriptor fill the sink: `preadv` when `offset` is given, else `readv`. Returns 0 at its end.
    fn put_from_fd(&mut self, fd: std::os::fd::BorrowedFd<'_>, offset: Option<u64>, limit: usize) -> Result<usize> {
        let wanted = self.room().min(limit).min(BOUNCE);
        if wanted <= SMALL {
            let mut buf = [0; SMALL];
            let n = host_read(fd, &mut buf[..wanted], offset)?;
            return self.put(&buf[..n]);
        }
        let mut buf = Bounce::take();
        let n = host_read(fd, &mut buf[..wanted], offset)?;
        self.put(&buf[..n])
    }
}

/// How much is moved at a time through the sentry's memory.
pub const BOUNCE: usize = 256 << 10;

/// What goes over the stack instead.
const SMALL: usize = 4096;

/// A buffer of [`BOUNCE`] bytes, whatever they are: fresh ones cost as much to clear as a host call does to fill them, so a
/// few are kept.
pub struct Bounce(Option<Box<[u8]>>);

static KEPT: parking_lot::Mutex<Vec<Box<[u8]>>> = parking_lot::Mutex::new(Vec::new());

/// How many are kept for later.
const KEPT_MAX: usize = 8;

impl Bounce {
    /// One that was kept, or a new one.
    pub fn take() -> Bounce {
        let kept = KEPT.lock().pop();
        Bounce(Some(kept.unwrap_or_else(|| vec![0; BOUNCE].into_boxed_slice())))
    }
}

impl std::ops::Deref for Bounce {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl std::ops::DerefMut for Bounce {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        let mut kept = KEPT.lock();
        if kept.len() < KEPT_MAX {
            kept.extend(self.0.take());
        }
    }
}

/// The origin of a write.
pub trait Source {
    /// How many more bytes it gives.
    fn left(&self) -> usize;

    /// Fills a prefix of `buf` with what comes next and returns its length: less than all when the source ends or the rest of
    /// it is not readable. `EFAULT` when not one byte could be fetched though `left` and `buf` were not empty.
    fn peek(&mut self, buf: &mut [u8]) -> Result<usize>;

    /// Takes the next `n` bytes, which were peeked at.
    fn skip(&mut self, n: usize);

    /// Takes what [`Source::peek`] fills `buf` with.
    fn take(&mut self, buf: &mut [u8]) -> Result<usize> {
        let n = self.peek(buf)?;
        self.skip(n);
        Ok(n)
    }

    /// Takes at most `limit` bytes as a vector.
    fn take_vec(&mut self, limit: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0u8; self.left().min(limit)];
        let n = self.take(&mut buf)?;
        buf.truncate(n);
        Ok(buf)
    }
}

/// `pread(2)` or `read(2)` on a host descriptor that the sandbox owns.
pub fn host_read(fd: std::os::fd::BorrowedFd<'_>, buf: &mut [u8], offset: Option<u64>) -> Result<usize> {
    use std::os::fd::AsRawFd;
    // SAFETY: `buf` is valid for writes of its length for the whole call.
    let n = unsafe {
        match offset {
            Some(offset) => libc::pread(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), offset as libc::off_t),
            None => libc::read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()),
        }
    };
    usize::try_from(n).map_err(|_| Errno::last())
}

/// `pwrite(2)` or `write(2)` on a host descriptor that the sandbox owns.
pub fn host_write(fd: std::os::fd::BorrowedFd<'_>, buf: &[u8], offset: Option<u64>) -> Result<usize> {
    use std::os::fd::AsRawFd;
    // SAFETY: `buf` is valid for reads of its length for the whole call.
    let n = unsafe {
        match offset {
            Some(offset) => libc::pwrite(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len(), offset as libc::off_t),
            None => libc::write(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len()),
        }
    };
    usize::try_from(n).map_err(|_| Errno::last())
}

/// A sink in the sentry's memory, bounded by the slice.
pub struct SliceSink<'a> {
    buf: &'a mut [u8],
    filled: usize,
}

impl<'a> SliceSink<'a> {
    /// Fills `buf` from its start.
    pub fn new(buf: &'a mut [u8]) -> Self {
        SliceSink { buf, filled: 0 }
    }

    /// How many bytes were put.
    pub fn filled(&self) -> usize {
        self.filled
    }
}

impl Sink for SliceSink<'_> {
    fn room(&self) -> usize {
        self.buf.len() - self.filled
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize> {
        let n = bytes.len().min(self.room());
        self.buf[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
        self.filled += n;
        Ok(n)
    }

    /// Without a copy in between.
    fn put_from_fd(&mut self, fd: std::os::fd::BorrowedFd<'_>, offset: Option<u64>, limit: usize) -> Result<usize> {
        let end = self.filled + self.room().min(limit);
        let n = host_read(fd, &mut self.buf[self.filled..end], offset)?;
        self.filled += n;
        Ok(n)
    }
}

/// Several slices, one behind the other, as a source.
pub struct Slices<'a> {
    slices: &'a [&'a [u8]],
    /// How much of the first was taken.
    taken: usize,
}

impl<'a> Slices<'a> {
    /// All of them.
    pub fn new(slices: &'a [&'a [u8]]) -> Slices<'a> {
        Slices { slices, taken: 0 }
    }
}

impl Source for Slices<'_> {
    fn left(&self) -> usize {
        self.slices.iter().map(|slice| slice.len()).sum::<usize>() - self.taken
    }

    fn peek(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        for (index, slice) in self.slices.iter().enumerate() {
            let piece = if index == 0 { &slice[self.taken..] } else { slice };
            let n = piece.len().min(buf.len() - filled);
            buf[filled..filled + n].copy_from_slice(&piece[..n]);
            filled += n;
            if filled == buf.len() {
                break;
            }
        }
        Ok(filled)
    }

    fn skip(&mut self, n: usize) {
        self.taken += n;
        while let Some((first, rest)) = self.slices.split_first().filter(|(first, _)| self.taken >= first.len()) {
            (self.slices, self.taken) = (rest, self.taken - first.len());
        }
    }
}

/// A source in the sentry's memory.
impl Source for &[u8] {
    fn left(&self) -> usize {
        self.len()
    }

    fn peek(&mut self, buf: &mut [u8]) -> Result<usize> {
        let n = self.len().min(buf.len());
        buf[..n].copy_from_slice(&self[..n]);
        Ok(n)
    }

    fn skip(&mut self, n: usize) {
        *self = &self[n.min(self.len())..];
    }
}

/// A source that keeps back what is over `limit`.
pub struct Limited<'a> {
    inner: &'a mut dyn Source,
    limit: usize,
}

impl<'a> Limited<'a> {
    /// Gives at most `limit` bytes of `inner`.
    pub fn new(inner: &'a mut dyn Source, limit: usize) -> Self {
        Limited { inner, limit }
    }
}

impl Source for Limited<'_> {
    fn left(&self) -> usize {
        self.inner.left().min(self.limit)
    }

    fn peek(&mut self, buf: &mut [u8]) -> Result<usize> {
        let n = buf.len().min(self.limit);
        self.inner.peek(&mut buf[..n])
    }

    fn skip(&mut self, n: usize) {
        self.inner.skip(n);
        self.limit -= n.min(self.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_follow_one_another() {
        let parts: [&[u8]; 4] = [b"ab", b"", b"cde", b"f"];
        let mut source = Slices::new(&parts);
        let mut buf = [0; 3];
        assert_eq!((source.left(), source.take(&mut buf), &buf), (6, Ok(3), b"abc"));
        assert_eq!((source.left(), source.take(&mut buf[..1]), buf[0]), (3, Ok(1), b'd'));
        assert_eq!((source.take(&mut buf), &buf[..2], source.left()), (Ok(2), &b"ef"[..], 0));
        assert_eq!(source.take(&mut buf), Ok(0));
    }
}
