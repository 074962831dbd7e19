//! The bytes of a regular file.
//!
//! A file of up to [`INLINE_MAX`] bytes lies in the sentry's heap: a read or write is one copy between it and the
//! container, one host call. When it grows, is mapped or sealed, it moves to a memfd for good: then a read costs what
//! [`Sink::put_from_fd`] costs (`pread` and the copy), a write one copy and one `pwrite` for each 64 KiB.
//!
//! The account is kept beside it, page by page, so that a write needs no `fstat`. Only a file that was mapped shared, where
//! stores make pages behind our back, is counted by `fstat` when it is changed or looked at; such stores may exceed the
//! file system's size.
//!
//! Lock order: a file's lock is a leaf but for what a source or sink takes.

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use parking_lot::RwLock;

use super::pages::PageSet;
use super::space::{
    PAGE, Space, forget_memfd, host_allocate, host_pages, host_seek, host_truncate, new_memfd, pages_of,
};
use crate::errno::{Errno, Result, check};
use crate::io::{Sink, Source, host_read, host_write};
use crate::vfs::file::Mapping;

/// The longest file that is kept in the heap. A memfd costs 1.5 us to make and give up, and each call that reads or writes
/// it 0.2 us for 1 KiB to 0.6 us for 16 KiB more than the heap; from there on the copies outweigh the call.
pub const INLINE_MAX: u64 = 16 << 10;

/// Bytes of one `pwrite`: stays in the CPU's cache between the two copies.
const CHUNK: usize = 64 << 10;

/// The end of the largest file.
const MAX_SIZE: u64 = i64::MAX as u64;

/// `F_SEAL_EXEC`, which libc lacks.
pub const F_SEAL_EXEC: i32 = 0x20;
const SEALS: i32 = libc::F_SEAL_SEAL
    | libc::F_SEAL_SHRINK
    | libc::F_SEAL_GROW
    | libc::F_SEAL_WRITE
    | libc::F_SEAL_FUTURE_WRITE
    | F_SEAL_EXEC;
const SEALS_WRITE: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE;

thread_local! {
    /// Between the container's memory and a memfd: one for each thread, so that a write does not clear one first.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The content of one file.
pub struct MemFile {
    space: Arc<Space>,
    state: RwLock<State>,
}

enum Data {
    Heap(Vec<u8>),
    Fd(Arc<OwnedFd>),
}

struct State {
    data: Data,
    size: u64,
    /// Pages that the memfd has, as far as our own calls made them.
    pages: PageSet,
    /// Pages taken from the space.
    charged: u64,
    /// Whether it was ever mapped shared.
    mapped: bool,
    seals: i32,
}

impl MemFile {
    /// An empty file, to which seals may be added if `sealing`.
    pub fn new(space: Arc<Space>, sealing: bool) -> MemFile {
        let seals = if sealing { 0 } else { libc::F_SEAL_SEAL };
        let data = Data::Heap(Vec::new());
        MemFile {
            space,
            state: RwLock::new(State { data, size: 0, pages: PageSet::default(), charged: 0, mapped: false, seals }),
        }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.state.read().size
    }

    /// Its size in bytes and how many pages it has.
    pub fn usage(&self) -> (u64, u64) {
        let state = self.state.read();
        if !state.mapped {
            return (state.size, state.charged);
        }
        drop(state);
        let mut state = self.state.write();
        self.recount(&mut state);
        (state.size, state.charged)
    }

    /// Reads at `offset`; 0 at the end.
    pub fn read(&self, mut offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        let state = self.state.read();
        let mut done = 0;
        while offset < state.size && sink.room() > 0 {
            let limit = usize::try_from(state.size - offset).unwrap_or(usize::MAX).min(sink.room());
            let n = match &state.data {
                Data::Heap(bytes) => sink.put(bytes.get(offset as usize..).unwrap_or_default()),
                Data::Fd(fd) => sink.put_from_fd(fd.as_fd(), Some(offset), limit),
            };
            match n {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    offset += n as u64;
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Writes at `offset`, or at the end; returns where it began and how much. `ENOSPC`, `EFBIG`, `EPERM` (sealed).
    pub fn write(&self, offset: Option<u64>, source: &mut dyn Source) -> Result<(u64, usize)> {
        let mut state = self.state.write();
        let start = offset.unwrap_or(state.size);
        if source.left() == 0 {
            return Ok((start, 0));
        }
        if start >= MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        let limit = usize::try_from(MAX_SIZE - start).unwrap_or(usize::MAX).min(source.left());
        let end = start + limit as u64;
        if state.seals & SEALS_WRITE != 0 || (state.seals & libc::F_SEAL_GROW != 0 && end > state.size) {
            return Err(Errno::EPERM);
        }
        let n = if end <= INLINE_MAX && matches!(state.data, Data::Heap(_)) {
            self.write_heap(&mut state, start, limit, source)?
        } else {
            let fd = self.memfd(&mut state)?;
            SCRATCH.with(|scratch| {
                let mut buf = scratch.take();
                let n = self.write_fd(&mut state, &fd, start, limit, source, &mut buf);
                scratch.replace(buf);
                n
            })?
        };
        Ok((start, n))
    }

    fn write_heap(&self, state: &mut State, start: u64, limit: usize, source: &mut dyn Source) -> Result<usize> {
        let before = state.size;
        let end = start + limit as u64;
        self.resize_heap(state, before.max(end))?;
        let Data::Heap(bytes) = &mut state.data else { return Err(Errno::EIO) };
        let taken = source.take(&mut bytes[start as usize..end as usize]);
        let n = *taken.as_ref().unwrap_or(&0);
        if n < limit {
            let reached = if n == 0 { before } else { before.max(start + n as u64) };
            self.resize_heap(state, reached)?;
        }
        taken
    }

    /// Sets the length of what is in the heap, and its account. `ENOSPC`, only to grow.
    fn resize_heap(&self, state: &mut State, size: u64) -> Result<()> {
        let Data::Heap(bytes) = &mut state.data else { return Err(Errno::EIO) };
        let pages = pages_of(size);
        if pages > state.charged {
            self.space.take_pages(pages - state.charged)?;
        } else {
            self.space.give_pages(state.charged - pages);
        }
        bytes.resize(size as usize, 0);
        if size == 0 {
            bytes.shrink_to_fit();
        }
        state.charged = pages;
        state.size = size;
        Ok(())
    }

    fn write_fd(
        &self,
        state: &mut State,
        fd: &OwnedFd,
        start: u64,
        limit: usize,
        source: &mut dyn Source,
        buf: &mut Vec<u8>,
    ) -> Result<usize> {
        let mut done = 0;
        while done < limit && source.left() > 0 {
            let at = start + done as u64;
            let n = (limit - done).min(CHUNK);
            if buf.len() < n {
                buf.resize(n, 0);
            }
            match self.write_chunk(state, fd, at, source, &mut buf[..n]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        if state.mapped {
            self.recount(state);
        }
        Ok(done)
    }

    /// Pages are taken before bytes are, so that nothing is taken from the source that finds no room.
    fn write_chunk(
        &self,
        state: &mut State,
        fd: &OwnedFd,
        at: u64,
        source: &mut dyn Source,
        buf: &mut [u8],
    ) -> Result<usize> {
        let mut n = buf.len();
        let range = |n: usize| at / PAGE..pages_of(at + n as u64);
        let mut taken = state.pages.missing(range(n));
        if self.space.take_pages(taken).is_err() {
            n = n.min((PAGE - at % PAGE) as usize);
            taken = state.pages.missing(range(n));
            self.space.take_pages(taken)?;
        }
        let written = source.take(&mut buf[..n]).and_then(|n| host_write(fd.as_fd(), &buf[..n], Some(at)));
        let added = match written {
            Ok(n) if n > 0 => state.pages.insert(range(n)),
            _ => 0,
        };
        state.charged += added;
        self.space.give_pages(taken - added);
        let n = written?;
        state.size = state.size.max(at + n as u64);
        Ok(n)
    }

    /// Moves it to a memfd, where it is not in one already.
    fn memfd(&self, state: &mut State) -> Result<Arc<OwnedFd>> {
        let bytes = match &mut state.data {
            Data::Fd(fd) => return Ok(fd.clone()),
            Data::Heap(bytes) => bytes,
        };
        let fd = new_memfd()?;
        let mut at = 0;
        while at < bytes.len() {
            match host_write(fd.as_fd(), &bytes[at..], Some(at as u64)) {
                Ok(n) if n > 0 => at += n,
                _ => {
                    forget_memfd();
                    return Err(Errno::ENOSPC);
                }
            }
        }
        let fd = Arc::new(fd);
        state.data = Data::Fd(fd.clone());
        state.pages.insert(0..state.charged);
        Ok(fd)
    }

    /// `truncate(2)`. `EPERM` (sealed), `EFBIG`, `ENOSPC`.
    pub fn truncate(&self, size: u64) -> Result<()> {
        let mut state = self.state.write();
        let sealed = (size < state.size && state.seals & libc::F_SEAL_SHRINK != 0)
            || (size > state.size && state.seals & libc::F_SEAL_GROW != 0);
        if sealed {
            return Err(Errno::EPERM);
        }
        if size > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        if size <= INLINE_MAX && matches!(state.data, Data::Heap(_)) {
            return self.resize_heap(&mut state, size);
        }
        let fd = self.memfd(&mut state)?;
        host_truncate(&fd, size)?;
        state.size = size;
        self.release(&mut state, pages_of(size)..u64::MAX);
        Ok(())
    }

    /// Pages are no more.
    fn release(&self, state: &mut State, range: std::ops::Range<u64>) {
        let removed = state.pages.remove(range);
        if state.mapped {
            self.recount(state);
        } else {
            state.charged -= removed;
            self.space.give_pages(removed);
        }
    }

    /// Brings the account to what the host counts.
    fn recount(&self, state: &mut State) {
        let Data::Fd(fd) = &state.data else { return };
        let Ok(pages) = host_pages(fd) else { return };
        if pages > state.charged {
            self.space.force_pages(pages - state.charged);
        } else {
            self.space.give_pages(state.charged - pages);
        }
        state.charged = pages;
    }

    /// `fallocate(2)`: allocating, `FALLOC_FL_KEEP_SIZE`, `FALLOC_FL_PUNCH_HOLE`, `FALLOC_FL_ZERO_RANGE`; `EOPNOTSUPP` for
    /// other modes.
    pub fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        let keep = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let end = offset.checked_add(len).filter(|&end| end <= MAX_SIZE).ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let mut state = self.state.write();
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE if keep => self.punch(&mut state, offset, end),
            0 => self.reserve(&mut state, offset, end, keep),
            libc::FALLOC_FL_ZERO_RANGE => {
                self.punch(&mut state, offset, end)?;
                self.reserve(&mut state, offset, end, keep)
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn punch(&self, state: &mut State, offset: u64, end: u64) -> Result<()> {
        if state.seals & SEALS_WRITE != 0 {
            return Err(Errno::EPERM);
        }
        match &mut state.data {
            Data::Heap(bytes) => {
                let end = usize::try_from(end).unwrap_or(usize::MAX).min(bytes.len());
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(end);
                bytes[start..end].fill(0);
            }
            Data::Fd(fd) => {
                host_allocate(fd, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, end - offset)?;
                self.release(state, pages_of(offset)..(end / PAGE).max(pages_of(offset)));
            }
        }
        Ok(())
    }

    fn reserve(&self, state: &mut State, offset: u64, end: u64, keep: bool) -> Result<()> {
        if !keep && end > state.size && state.seals & libc::F_SEAL_GROW != 0 {
            return Err(Errno::EPERM);
        }
        if end <= INLINE_MAX && matches!(state.data, Data::Heap(_)) {
            let size = if keep { state.size } else { end.max(state.size) };
            return self.resize_heap(state, size);
        }
        let fd = self.memfd(state)?;
        let range = offset / PAGE..pages_of(end);
        let taken = state.pages.missing(range.clone());
        self.space.take_pages(taken)?;
        let mode = if keep { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
        if let Err(error) = host_allocate(&fd, mode, offset, end - offset) {
            self.space.give_pages(taken);
            return Err(error);
        }
        state.charged += state.pages.insert(range);
        if !keep {
            state.size = state.size.max(end);
        }
        if state.mapped {
            self.recount(state);
        }
        Ok(())
    }

    /// `SEEK_DATA` and `SEEK_HOLE`.
    pub fn seek_data(&self, offset: u64, data: bool) -> Result<u64> {
        let state = self.state.read();
        if offset >= state.size {
            return Err(Errno::ENXIO);
        }
        match (&state.data, data) {
            (Data::Heap(_), true) => Ok(offset),
            (Data::Heap(_), false) => Ok(state.size),
            (Data::Fd(fd), true) => host_seek(fd, offset, libc::SEEK_DATA),
            (Data::Fd(fd), false) => host_seek(fd, offset, libc::SEEK_HOLE),
        }
    }

    /// What `mmap(2)` maps. `ENOSPC` when no descriptor is left for it; `EPERM` when a shared, writable one is sealed.
    pub fn mapping(&self, shared: bool, writable: bool) -> Result<Mapping> {
        let mut state = self.state.write();
        let sealed = state.seals & SEALS_WRITE != 0;
        if shared && writable && sealed {
            return Err(Errno::EPERM);
        }
        let fd = self.memfd(&mut state)?;
        // A shared one may become writable later, by mprotect(2).
        state.mapped |= shared && !sealed;
        Ok(Mapping { fd, writable: !sealed })
    }

    /// `fcntl(F_GET_SEALS)`.
    pub fn seals(&self) -> i32 {
        self.state.read().seals
    }

    /// `fcntl(F_ADD_SEALS)`: `EPERM` when sealed against it, `EBUSY` when writable mappings forbid `F_SEAL_WRITE`,
    /// `EINVAL` for unknown seals.
    pub fn add_seals(&self, seals: i32) -> Result<()> {
        if seals & !SEALS != 0 {
            return Err(Errno::EINVAL);
        }
        let mut state = self.state.write();
        if state.seals & libc::F_SEAL_SEAL != 0 {
            return Err(Errno::EPERM);
        }
        // The host's own seals know of the mappings that exist, and bind those that come.
        let host = seals & !(libc::F_SEAL_SEAL | F_SEAL_EXEC);
        if host != 0 {
            let fd = self.memfd(&mut state)?;
            // SAFETY: no memory is passed.
            check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, host) }.into())?;
        }
        state.seals |= seals;
        Ok(())
    }

    /// Fills a new, empty file with the first `len` bytes of the host file `from`; where that has holes, so will this if
    /// `sparse`. One `sendfile(2)` for each stretch of data.
    pub fn fill_from_fd(&self, from: &OwnedFd, len: u64, sparse: bool) -> Result<()> {
        let mut state = self.state.write();
        if len <= INLINE_MAX && matches!(state.data, Data::Heap(_)) {
            self.resize_heap(&mut state, len)?;
            let Data::Heap(bytes) = &mut state.data else { return Err(Errno::EIO) };
            let mut at = 0;
            while at < bytes.len() {
                match host_read(from.as_fd(), &mut bytes[at..], Some(at as u64))? {
                    0 => break,
                    n => at += n,
                }
            }
            return Ok(());
        }
        let fd = self.memfd(&mut state)?;
        host_truncate(&fd, len)?;
        state.size = len;
        let mut at = 0;
        while at < len {
            let stretch = if sparse { next_data(from, at, len)? } else { at..len };
            if stretch.is_empty() {
                break;
            }
            let range = stretch.start / PAGE..pages_of(stretch.end);
            let taken = state.pages.missing(range.clone());
            self.space.take_pages(taken)?;
            state.charged += state.pages.insert(range);
            copy_range(from, &fd, stretch.clone())?;
            at = stretch.end;
        }
        Ok(())
    }
}

/// The first stretch of data at or after `at`; empty when there is none.
fn next_data(fd: &OwnedFd, at: u64, end: u64) -> Result<std::ops::Range<u64>> {
    let start = match host_seek(fd, at, libc::SEEK_DATA) {
        Ok(start) => start.min(end),
        Err(Errno::ENXIO) => return Ok(end..end),
        Err(error) => return Err(error),
    };
    Ok(start..host_seek(fd, start, libc::SEEK_HOLE).unwrap_or(end).min(end))
}

/// Copies between host files at the same offsets. Stops without an error where `from` ends early.
fn copy_range(from: &OwnedFd, to: &OwnedFd, range: std::ops::Range<u64>) -> Result<()> {
    host_seek(to, range.start, libc::SEEK_SET)?;
    let mut offset = libc::off_t::try_from(range.start).map_err(|_| Errno::EFBIG)?;
    while (offset as u64) < range.end {
        let count = (range.end - offset as u64).min(1 << 30) as usize;
        // SAFETY: `offset` is valid for the call.
        let n = unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), &mut offset, count) };
        if check(n as i64)? == 0 {
            break;
        }
    }
    Ok(())
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        self.space.give_pages(state.charged);
        if matches!(state.data, Data::Fd(_)) {
            forget_memfd();
        }
    }
}
