//! Open files and directories of the gofer.

use std::any::Any;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::listing::Listing;
use super::node::Node;
use crate::errno::{Errno, Result, check};
use crate::gofer::codec::stat_fd;
use crate::gofer::protocol::Request;
use crate::io::{Sink, Source, host_write};
use crate::vfs::file::{DirEntry, File, Mapping};
use crate::vfs::inode::NodeType;

/// How much is written at once.
const CHUNK: usize = 256 << 10;

/// A regular file: everything goes to the donated descriptor.
pub struct GoferFile {
    node: Arc<Node>,
    fd: Arc<OwnedFd>,
    writable: bool,
    /// Whether anything was read.
    read: AtomicBool,
}

impl GoferFile {
    pub(super) fn new(node: Arc<Node>, fd: Arc<OwnedFd>, writable: bool) -> GoferFile {
        if writable {
            node.changed(); // from now on its descriptor tells its attributes
        }
        GoferFile { node, fd, writable, read: AtomicBool::new(false) }
    }

    /// Writes what the source gives, chunk by chunk, through `put`, which is told how much went before.
    fn write_chunks(&self, source: &mut dyn Source, put: impl Fn(&[u8], u64) -> Result<usize>) -> Result<usize> {
        if !self.writable {
            return Err(Errno::EBADF);
        }
        let mut done = 0;
        while source.left() > 0 {
            let step = source.take_vec(CHUNK).and_then(|bytes| Ok((bytes.len(), put(&bytes, done as u64)?)));
            match step {
                Ok((taken, n)) => {
                    done += n;
                    if n < taken || taken == 0 {
                        break;
                    }
                }
                Err(error) if done == 0 => {
                    self.node.changed();
                    return Err(error);
                }
                Err(_) => break,
            }
        }
        self.node.changed();
        Ok(done)
    }
}

impl File for GoferFile {
    fn read(&self, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        if !self.read.load(Ordering::Relaxed) {
            self.read.store(true, Ordering::Relaxed);
        }
        sink.put_from_fd(self.fd.as_fd(), Some(offset), usize::MAX)
    }

    fn write(&self, offset: u64, source: &mut dyn Source) -> Result<usize> {
        self.write_chunks(source, |bytes, before| {
            let at = offset.checked_add(before).filter(|&at| i64::try_from(at).is_ok()).ok_or(Errno::EFBIG)?;
            host_write(self.fd.as_fd(), bytes, Some(at))
        })
    }

    /// The host finds the end, so that writers outside the sandbox are not overwritten; the lock is for those inside, so
    /// that the size afterwards tells where this one was.
    fn append(&self, source: &mut dyn Source) -> Result<(u64, usize)> {
        let _one_at_a_time = self.node.identity().append.lock();
        let n = self.write_chunks(source, |bytes, _| append(&self.fd, bytes))?;
        let end = stat_fd(self.fd.as_fd())?.size;
        Ok((end.saturating_sub(n as u64), n))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn size(&self) -> Result<u64> {
        if self.node.shared.immutable() {
            return self.node.stat().map(|stat| stat.size);
        }
        stat_fd(self.fd.as_fd()).map(|stat| stat.size)
    }

    fn seek_data(&self, offset: u64, data: bool) -> Result<u64> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::ENXIO)?;
        let whence = if data { libc::SEEK_DATA } else { libc::SEEK_HOLE };
        // The descriptor's own position is used by nobody.
        // SAFETY: takes numbers alone.
        check(unsafe { libc::lseek(self.fd.as_raw_fd(), offset, whence) })
    }

    fn mapping(&self, shared: bool, writable: bool) -> Result<Mapping> {
        if shared && writable && !self.writable {
            return Err(Errno::EACCES);
        }
        Ok(Mapping { fd: self.fd.clone(), writable: self.writable })
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: both take a descriptor alone.
        let ret = unsafe { if data_only { libc::fdatasync(fd) } else { libc::fsync(fd) } };
        check(ret.into()).map(drop)
    }

    fn sync_range(&self, offset: i64, len: i64, flags: u32) -> Result<()> {
        // SAFETY: takes numbers alone.
        check(unsafe { libc::sync_file_range(self.fd.as_raw_fd(), offset, len, flags) }.into()).map(drop)
    }

    fn advise(&self, offset: i64, len: i64, advice: i32) -> Result<()> {
        // SAFETY: takes numbers alone; returns an errno.
        match unsafe { libc::posix_fadvise(self.fd.as_raw_fd(), offset, len, advice) } {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno)),
        }
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        if !self.writable {
            return Err(Errno::EBADF);
        }
        let number = |value| libc::off_t::try_from(value).map_err(|_| Errno::EFBIG);
        // SAFETY: takes numbers alone.
        let ret = unsafe { libc::fallocate(self.fd.as_raw_fd(), mode, number(offset)?, number(len)?) };
        let done = check(ret.into()).map(drop);
        self.node.changed();
        done
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for GoferFile {
    fn drop(&mut self) {
        if self.writable {
            self.node.changed();
        } else if *self.read.get_mut() {
            self.node.was_read();
        }
    }
}

/// Writes at the end of the file wherever that is, `pwritev2(2)` with `RWF_APPEND`.
fn append(fd: &OwnedFd, bytes: &[u8]) -> Result<usize> {
    let slice = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the kernel reads one slice, as long as said. Offset 0 leaves the descriptor's position alone.
    let n = unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const slice, 1, 0, libc::RWF_APPEND) };
    check(n as i64).map(|n| n as usize)
}

/// An open directory: positions are indices into what it held when it was read first or read again from the start.
pub struct GoferDir {
    node: Arc<Node>,
    listing: Mutex<Option<Arc<Listing>>>,
}

impl GoferDir {
    pub(super) fn new(node: Arc<Node>) -> GoferDir {
        GoferDir { node, listing: Mutex::default() }
    }

    fn listing(&self, pos: u64) -> Result<Arc<Listing>> {
        let kept = self.listing.lock().clone();
        match kept {
            Some(listing) if pos != 0 => Ok(listing),
            _ => {
                let listing = self.node.list()?;
                *self.listing.lock() = Some(listing.clone());
                Ok(listing)
            }
        }
    }
}

/// The positions of `.` and `..`.
const DOTS: [&[u8]; 2] = [b".", b".."];

impl File for GoferDir {
    fn seekable(&self) -> bool {
        true
    }

    fn read(&self, _offset: u64, _sink: &mut dyn Sink) -> Result<usize> {
        Err(Errno::EISDIR)
    }

    fn read_dir(&self, pos: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let listing = self.listing(pos)?;
        let (_, own) = self.node.key;
        for (index, name) in DOTS.into_iter().enumerate().skip(usize::try_from(pos).unwrap_or(usize::MAX)) {
            if !emit(DirEntry { name, ino: own, kind: NodeType::Directory, next: index as u64 + 1 }) {
                return Ok(());
            }
        }
        let first = usize::try_from(pos.saturating_sub(DOTS.len() as u64)).unwrap_or(usize::MAX);
        for index in first..listing.len() {
            let Some((name, stat)) = listing.get(index) else { break };
            let next = (index + DOTS.len() + 1) as u64;
            if !emit(DirEntry { name, ino: stat.ino, kind: stat.kind, next }) {
                break;
            }
        }
        Ok(())
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        if self.node.shared.read_only {
            return Ok(());
        }
        self.node.shared.connection.call(&Request::Sync(Some(self.node.target()?.borrow()))).map(drop)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
