//! Bytes on their way from one end of a connection within this host to the other. One writes and one reads at a time, and
//! neither waits for the other: both copy from and to their program's memory at once, on two processors.
//!
//! ```text
//!        read                 written                read + length
//!   ───────┼──────── unread ─────┼──────── free ──────────┼───
//!          └ moved by the reader └ moved by the writer     (all of them modulo the length)
//! ```
//!
//! The locks of the two sides are held while memory is copied, which may take as long as a page fault, and nothing else is
//! locked meanwhile but the queues of those who wait.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use parking_lot::Mutex;

use super::memory::{Lent, MEMORY};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::wait::{Events, WaitQueue};

/// How much one direction holds.
pub const SIZE: usize = 512 << 10;
/// How much is copied at a time: then the other side hears of it.
const PIECE: usize = 128 << 10;

/// One direction.
pub struct Ring {
    start: NonNull<u8>,
    len: usize,
    /// How many bytes were ever written. Changed under the writer's lock.
    written: AtomicUsize,
    /// How many bytes were ever read. Changed under the reader's lock.
    read: AtomicUsize,
    /// How much may be unread.
    limit: AtomicUsize,
    /// Nothing more is written.
    sealed: AtomicBool,
    /// A writer found no room, or less than it is told of.
    starved: AtomicBool,
    writer: Mutex<()>,
    reader: Mutex<()>,
    /// Who waits for room.
    writers: Arc<WaitQueue>,
    /// Who waits for bytes.
    readers: Arc<WaitQueue>,
    _memory: Lent,
}

// SAFETY: the memory behind `start` is the ring's own. Of what two threads may reach at once, the free part is touched under
// the writer's lock alone and the unread part under the reader's.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// An empty one that holds up to `limit` bytes. Its memory has no pages before there are bytes. `ENOBUFS`.
    pub fn new(limit: usize, writers: &Arc<WaitQueue>, readers: &Arc<WaitQueue>) -> Result<Arc<Ring>> {
        let mut memory = MEMORY.lend(SIZE)?;
        // SAFETY: once, and what is made of it is gone before the memory, which is dropped with the ring.
        let bytes = unsafe { memory.bytes() };
        let len = bytes.len();
        let start = NonNull::new(bytes.as_mut_ptr()).filter(|_| len > 0).ok_or(Errno::ENOBUFS)?;
        Ok(Arc::new(Ring {
            start,
            len,
            written: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            sealed: AtomicBool::new(false),
            starved: AtomicBool::new(false),
            writer: Mutex::new(()),
            reader: Mutex::new(()),
            writers: writers.clone(),
            readers: readers.clone(),
            _memory: memory,
        }))
    }

    /// Bytes that were not read yet.
    pub fn unread(&self) -> usize {
        // In this order: a reader that is faster in between makes it too large, never less than nothing.
        let read = self.read.load(Ordering::SeqCst);
        self.written.load(Ordering::SeqCst).wrapping_sub(read)
    }

    /// Bytes that were ever written.
    pub fn total(&self) -> u64 {
        self.written.load(Ordering::Relaxed) as u64
    }

    /// Changes how much may be unread.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Nothing more is written from now on.
    pub fn seal(&self) {
        self.sealed.store(true, Ordering::SeqCst);
    }

    fn room(&self) -> usize {
        self.limit.load(Ordering::Relaxed).min(self.len).saturating_sub(self.unread())
    }

    /// Linux's rule: at least half as much room as is in use.
    fn has_room(&self) -> bool {
        let room = self.room();
        room > 0 && room * 2 >= self.unread()
    }

    /// Whether a program that waits for it may write. If not, it is told when it may.
    pub fn is_writable(&self) -> bool {
        if self.has_room() {
            return true;
        }
        self.starved.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.has_room()
    }

    /// Takes what fits from `source`. `EAGAIN` when nothing does: then the writers are told when there is room.
    pub fn write(&self, source: &mut dyn Source) -> Result<usize> {
        let _alone = self.writer.lock();
        let mut done = 0;
        while source.left() > 0 && !self.sealed.load(Ordering::SeqCst) {
            let room = self.room();
            if room == 0 {
                if self.is_full() {
                    break;
                }
                continue;
            }
            match self.write_piece(source, room.min(PIECE)) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            self.readers.wake(Events::READ);
        }
        match (done, self.sealed.load(Ordering::SeqCst)) {
            (0, true) => Err(Errno::EPIPE),
            (0, false) if source.left() > 0 => Err(Errno::EAGAIN),
            _ => Ok(done),
        }
    }

    /// Whether there is no room, of which the writers are then told when there is some.
    fn is_full(&self) -> bool {
        self.starved.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.room() == 0
    }

    /// One copy, under the writer's lock.
    fn write_piece(&self, source: &mut dyn Source, most: usize) -> Result<usize> {
        let written = self.written.load(Ordering::Relaxed);
        let at = written % self.len;
        let len = most.min(self.len - at).min(source.left());
        // SAFETY: within the memory, of which bytes are valid whatever they are. They are free, as there is room for so many:
        // nobody but the holder of the writer's lock touches them before `written` is beyond.
        let free = unsafe { std::slice::from_raw_parts_mut(self.start.add(at).as_ptr(), len) };
        let n = source.take(free)?.min(len);
        self.written.store(written.wrapping_add(n), Ordering::SeqCst);
        Ok(n)
    }

    /// Gives what is unread to `sink`, and with `peek` leaves it there. 0 when there is nothing.
    pub fn read(&self, sink: &mut dyn Sink, peek: bool) -> Result<usize> {
        let _alone = self.reader.lock();
        if peek {
            let unread = self.unread();
            let first = self.unread_part(0, unread);
            let second = self.unread_part(first.len(), unread);
            return sink.put_slices(&[first, second]);
        }
        let mut done = 0;
        while sink.room() > 0 {
            let part = self.unread_part(0, self.unread().min(PIECE));
            if part.is_empty() {
                break;
            }
            match sink.put(part) {
                Ok(0) => break,
                Ok(n) => {
                    self.read.fetch_add(n, Ordering::SeqCst);
                    done += n;
                    self.tell_writers();
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// The first stretch of what is unread, up to `end` bytes behind the place to read, without its first `from` bytes. Under
    /// the reader's lock.
    fn unread_part(&self, from: usize, end: usize) -> &[u8] {
        let at = self.read.load(Ordering::Relaxed).wrapping_add(from) % self.len;
        let len = end.saturating_sub(from).min(self.len - at);
        // SAFETY: within the memory, and written: nobody touches it but to read before `read` is beyond, which the holder of
        // the reader's lock alone moves.
        unsafe { std::slice::from_raw_parts(self.start.add(at).as_ptr(), len) }
    }

    fn tell_writers(&self) {
        fence(Ordering::SeqCst);
        if self.starved.load(Ordering::SeqCst) && self.has_room() && self.starved.swap(false, Ordering::SeqCst) {
            self.writers.wake(Events::WRITE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SliceSink;

    fn ring(limit: usize) -> Arc<Ring> {
        Ring::new(limit, &Arc::default(), &Arc::default()).unwrap()
    }

    fn read(ring: &Ring, most: usize, peek: bool) -> Vec<u8> {
        let mut buffer = vec![0; most];
        let n = ring.read(&mut SliceSink::new(&mut buffer), peek).unwrap();
        buffer.truncate(n);
        buffer
    }

    #[test]
    fn bytes_come_out_as_they_went_in_round_and_round() {
        let ring = ring(SIZE);
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n * 7 / 3) as u8).collect();
        for _ in 0..10 {
            assert_eq!(ring.write(&mut &bytes[..]), Ok(bytes.len()));
            assert_eq!(read(&ring, SIZE, true), bytes);
            assert_eq!(read(&ring, 1, false), bytes[..1]);
            assert_eq!(read(&ring, SIZE, false), bytes[1..]);
            assert_eq!(read(&ring, 10, false), b"");
        }
        assert_eq!((ring.unread(), ring.total()), (0, 3_000_000));
    }

    #[test]
    fn there_is_room_for_as_much_as_is_allowed() {
        let ring = ring(1000);
        assert!(ring.is_writable());
        assert_eq!(ring.write(&mut &[1; 1500][..]), Ok(1000));
        assert_eq!(ring.write(&mut &[2; 10][..]), Err(Errno::EAGAIN));
        assert!(!ring.is_writable());
        read(&ring, 200, false);
        assert_eq!((ring.is_writable(), ring.write(&mut &[3; 300][..])), (false, Ok(200)));
        read(&ring, 600, false);
        assert!(ring.is_writable());
        ring.seal();
        assert_eq!(ring.write(&mut &[4; 10][..]), Err(Errno::EPIPE));
        assert_eq!(read(&ring, 1000, false).len(), 400);
    }

    #[test]
    fn both_sides_at_once() {
        let ring = ring(100_000);
        let total = 50_000_000usize;
        let writer = std::thread::spawn({
            let ring = ring.clone();
            move || {
                let bytes: Vec<u8> = (0..70_000u32).map(|n| n as u8).collect();
                let mut sent = 0;
                while sent < total {
                    let at = sent % 256;
                    let end = bytes.len().min(at + total - sent);
                    match ring.write(&mut &bytes[at..end]) {
                        Ok(n) => sent += n,
                        Err(_) => std::thread::yield_now(),
                    }
                }
            }
        });
        let mut got = 0usize;
        while got < total {
            let bytes = read(&ring, 60_000, false);
            assert!(bytes.iter().enumerate().all(|(n, &byte)| byte == (got + n) as u8));
            got += bytes.len();
        }
        writer.join().unwrap();
        assert_eq!(ring.unread(), 0);
    }
}
