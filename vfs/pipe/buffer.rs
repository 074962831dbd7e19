//! What a pipe holds: bytes in pages, counted as Linux counts them.
//!
//! Linux gives a pipe a number of page slots. Whether it is full, whether a write is atomic and when `poll` says
//! writable all follow from slots, not bytes, so slots are counted here too. The bytes of one write lie in one
//! [`Segment`], however many pages it spans, so that it is copied in, and mostly out, with one call.

use std::collections::VecDeque;

use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};

/// The size of a slot, which is also `PIPE_BUF`: a write up to it is atomic.
pub const PAGE: usize = 4096;

/// Slots of a new pipe: 64 KiB.
pub const DEFAULT_SLOTS: usize = 16;

/// The most segments that one read copies with one call.
const GATHER: usize = 16;

struct Segment {
    /// A page grid lies on this from index 0.
    data: Vec<u8>,
    /// Bytes before it are read already.
    start: usize,
    /// Written with `O_DIRECT`: one read takes it, all or a part, and the rest is lost.
    packet: bool,
}

impl Segment {
    fn unread(&self) -> &[u8] {
        &self.data[self.start..]
    }

    /// The pages that it still occupies.
    fn slots(&self) -> usize {
        if self.start == self.data.len() { 0 } else { self.data.len().div_ceil(PAGE) - self.start / PAGE }
    }

    /// Whether `n` more bytes go into its last page.
    fn takes(&self, n: usize) -> bool {
        let in_page = self.data.len() % PAGE;
        !self.packet && in_page != 0 && in_page + n <= PAGE
    }
}

/// The content of a pipe.
pub struct Buffer {
    segments: VecDeque<Segment>,
    /// Unread bytes in all segments.
    bytes: usize,
    /// Slots that the segments occupy.
    used: usize,
    /// Slots that there are.
    slots: usize,
}

impl Buffer {
    /// An empty one of the default size. Allocates nothing.
    pub const fn new() -> Buffer {
        Buffer { segments: VecDeque::new(), bytes: 0, used: 0, slots: DEFAULT_SLOTS }
    }

    /// Unread bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether no slot is free.
    pub fn is_full(&self) -> bool {
        self.used >= self.slots
    }

    /// Slots that there are.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes that certainly fit.
    pub fn room(&self) -> usize {
        (self.slots - self.used.min(self.slots)) * PAGE
    }

    /// Changes the number of slots. `EBUSY` when what is held does not fit.
    pub fn resize(&mut self, slots: usize) -> Result<()> {
        if slots < self.used {
            return Err(Errno::EBUSY);
        }
        self.slots = slots;
        Ok(())
    }

    /// Forgets everything, for when the last end is closed.
    pub fn reset(&mut self) {
        *self = Buffer::new();
    }

    /// Takes as much of `source` as fits. Up to [`PAGE`] bytes go in whole or not at all. `EAGAIN` when nothing fits.
    pub fn write(&mut self, source: &mut dyn Source) -> Result<usize> {
        let mut done = 0;
        // What exceeds whole pages comes first and joins the last page, if it has the room: as Linux fills it.
        let odd = source.left() % PAGE;
        if odd != 0
            && let Some(last) = self.segments.back_mut()
            && last.takes(odd)
        {
            let old = last.data.len();
            last.data.resize(old + odd, 0);
            let taken = source.take(&mut last.data[old..]);
            last.data.truncate(old + *taken.as_ref().unwrap_or(&0));
            done = taken?;
            self.bytes += done;
            if done < odd || source.left() == 0 {
                return Ok(done);
            }
        }
        if self.is_full() {
            return if done > 0 { Ok(done) } else { Err(Errno::EAGAIN) };
        }
        match source.take_vec(self.room()) {
            Ok(data) => {
                done += data.len();
                self.push(data, false);
                Ok(done)
            }
            Err(_) if done > 0 => Ok(done),
            Err(error) => Err(error),
        }
    }

    /// Takes as much of `source` as fits, as packets of at most [`PAGE`] bytes. `EAGAIN` when nothing fits.
    pub fn write_packets(&mut self, source: &mut dyn Source) -> Result<usize> {
        let mut done = 0;
        while source.left() > 0 {
            if self.is_full() {
                return if done > 0 { Ok(done) } else { Err(Errno::EAGAIN) };
            }
            match source.take_vec(PAGE) {
                Ok(data) => {
                    done += data.len();
                    self.push(data, true);
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Appends bytes that fit into [`Buffer::room`].
    pub fn push(&mut self, data: Vec<u8>, packet: bool) {
        if !data.is_empty() {
            self.bytes += data.len();
            self.used += data.len().div_ceil(PAGE);
            self.segments.push_back(Segment { data, start: 0, packet });
        }
    }

    /// Moves bytes to `sink` until it is full, the pipe is empty or a packet has ended.
    pub fn read(&mut self, sink: &mut dyn Sink) -> Result<usize> {
        let mut done = 0;
        while sink.room() > 0 && !self.is_empty() {
            let (wanted, packet) = (sink.room(), self.first_packet());
            match self.take_with(wanted, &mut |slices| sink.put_slices(slices)) {
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
            if packet {
                break;
            }
        }
        Ok(done)
    }

    /// Whether a packet is next.
    fn first_packet(&self) -> bool {
        self.segments.front().is_some_and(|segment| segment.packet)
    }

    /// Shows up to `limit` of the first bytes to `f` (at most one packet, at most [`GATHER`] pieces) and drops as many as
    /// `f` says it used; a packet is dropped whole.
    pub fn take_with(&mut self, limit: usize, f: &mut dyn FnMut(&[&[u8]]) -> Result<usize>) -> Result<usize> {
        let packet = self.first_packet();
        let n = self.peek(limit, f)?;
        if packet {
            let gone = self.segments.front().map_or(0, |segment| segment.unread().len());
            self.consume(gone);
        } else {
            self.consume(n);
        }
        Ok(n)
    }

    /// Shows up to `limit` of the first bytes to `f`, in pieces, and leaves them.
    pub fn peek(&self, limit: usize, f: &mut dyn FnMut(&[&[u8]]) -> Result<usize>) -> Result<usize> {
        let mut slices: [&[u8]; GATHER] = [&[]; GATHER];
        let (mut left, mut count) = (limit, 0);
        for segment in &self.segments {
            if left == 0 || count == GATHER || (segment.packet && count > 0) {
                break;
            }
            let unread = segment.unread();
            slices[count] = &unread[..unread.len().min(left)];
            left -= slices[count].len();
            count += 1;
            if segment.packet {
                break;
            }
        }
        f(&slices[..count])
    }

    /// Drops the first `n` bytes.
    pub fn consume(&mut self, mut n: usize) {
        self.bytes -= n.min(self.bytes);
        while n > 0 {
            let Some(first) = self.segments.front_mut() else { return };
            let before = first.slots();
            let here = n.min(first.unread().len());
            first.start += here;
            n -= here;
            self.used -= before - first.slots();
            if first.start == first.data.len() {
                self.segments.pop_front();
            }
        }
    }

    /// Copies of the first segments up to `limit` bytes: for `tee(2)`.
    pub fn copy(&self, limit: usize) -> Vec<(Vec<u8>, bool)> {
        let mut left = limit;
        let mut copies = Vec::new();
        for segment in &self.segments {
            if left == 0 {
                break;
            }
            let unread = segment.unread();
            let piece = &unread[..unread.len().min(left)];
            left -= piece.len();
            copies.push((piece.to_vec(), segment.packet));
        }
        copies
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer::new()
    }
}
