//! Pipes and FIFOs: `pipe(7)`, `fifo(7)`.
//!
//! A [`Pipe`] is the buffer and the counts of its ends; a [`PipeEnd`] is what a descriptor refers to and takes part in
//! the counts as long as it lives. A FIFO is a pipe that hangs on an inode ([`FifoState`]) and makes ends as it is opened.
//!
//! Lock order: a pipe's lock is a leaf but for what the source or sink of a copy takes. Two pipes (`tee`, `splice`) are
//! locked in the order of their addresses.

mod buffer;
mod fifo;
mod splice;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

pub use self::fifo::{FifoOpening, FifoState};

use self::buffer::{Buffer, PAGE};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::vfs::anon::{AnonAttr, DEV_PIPE};
use crate::vfs::file::{File, IoctlMemory};
use crate::vfs::inode::{Attachments, Attr, NodeType, SetAttr};
use crate::wait::{Events, WaitQueue};

/// `PIPE_BUF`: writes up to so many bytes are atomic.
pub const PIPE_BUF: usize = PAGE;

/// `/proc/sys/fs/pipe-max-size`: what `F_SETPIPE_SZ` grants without `CAP_SYS_RESOURCE`.
pub const PIPE_MAX_SIZE: usize = 1 << 20;

/// Everything that may wake someone: after an end has come or gone.
const ALL: Events = Events::READ.union(Events::WRITE).union(Events::ALWAYS);

/// A pipe.
pub struct Pipe {
    state: Mutex<State>,
    queue: WaitQueue,
    /// `None` for a FIFO, whose inode has the attributes.
    attr: Option<AnonAttr>,
    attachments: Attachments,
}

struct State {
    buffer: Buffer,
    readers: usize,
    writers: usize,
    /// How many read ends there ever were: tells who waits in `open` that one came, though it may have gone again.
    readers_ever: u64,
    /// How many write ends there ever were.
    writers_ever: u64,
}

impl Pipe {
    fn new(attr: Option<AnonAttr>) -> Pipe {
        let state = State { buffer: Buffer::new(), readers: 0, writers: 0, readers_ever: 0, writers_ever: 0 };
        Pipe { state: Mutex::new(state), queue: WaitQueue::new(), attr, attachments: Attachments::default() }
    }

    /// `pipe2(2)`: the read end and the write end of a new pipe. `owner` is the maker's user and group; `flags` may hold
    /// `O_DIRECT` (packets).
    pub fn create(owner: (u32, u32), flags: i32) -> (Arc<PipeEnd>, Arc<PipeEnd>) {
        let attr = AnonAttr::new(DEV_PIPE, NodeType::Fifo, 0o600, owner);
        let pipe = Arc::new(Pipe::new(Some(attr)));
        (Arc::new(PipeEnd::new(&pipe, true, false, flags)), Arc::new(PipeEnd::new(&pipe, false, true, flags)))
    }

    /// `F_GETPIPE_SZ`, in bytes.
    pub fn size(&self) -> usize {
        self.state.lock().buffer.slots() * PAGE
    }

    /// `F_SETPIPE_SZ`: at least `size` bytes, rounded up to a power of two of pages; returns what it is now. `privileged`
    /// is `CAP_SYS_RESOURCE`. `EINVAL` (above 2 GiB), `EPERM` (above [`PIPE_MAX_SIZE`]), `EBUSY` (holds more).
    pub fn set_size(&self, size: u32, privileged: bool) -> Result<usize> {
        if size > 1 << 31 {
            return Err(Errno::EINVAL);
        }
        let size = (size as usize).max(PAGE).next_power_of_two();
        let slots = size / PAGE;
        let mut state = self.state.lock();
        if slots > state.buffer.slots() && size > PIPE_MAX_SIZE && !privileged {
            return Err(Errno::EPERM);
        }
        let was_full = state.buffer.is_full();
        state.buffer.resize(slots)?;
        let freed = was_full && !state.buffer.is_full();
        drop(state);
        if freed {
            self.queue.wake(Events::WRITE);
        }
        Ok(size)
    }

    /// Unread bytes: `FIONREAD`.
    pub fn len(&self) -> usize {
        self.state.lock().buffer.len()
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where changes are announced.
    pub fn wait_queue(&self) -> &WaitQueue {
        &self.queue
    }

    fn read(&self, sink: &mut dyn Sink) -> Result<usize> {
        if sink.room() == 0 {
            return Ok(0);
        }
        let mut state = self.state.lock();
        if state.buffer.is_empty() {
            return if state.writers == 0 { Ok(0) } else { Err(Errno::EAGAIN) };
        }
        let was_full = state.buffer.is_full();
        let n = state.buffer.read(sink);
        let freed = was_full && !state.buffer.is_full();
        drop(state);
        if freed {
            self.queue.wake(Events::WRITE);
        }
        n
    }

    fn write(&self, source: &mut dyn Source, packets: bool) -> Result<usize> {
        if source.left() == 0 {
            return Ok(0);
        }
        let mut state = self.state.lock();
        if state.readers == 0 {
            return Err(Errno::EPIPE);
        }
        let n = if packets { state.buffer.write_packets(source) } else { state.buffer.write(source) }?;
        drop(state);
        // Linux wakes those that use epoll on every write, empty before or not: edge-triggered readers rely on it.
        self.queue.wake(Events::READ);
        Ok(n)
    }

    fn add_end(&self, read: bool, write: bool) {
        let mut state = self.state.lock();
        if read {
            state.readers += 1;
            state.readers_ever += 1;
        }
        if write {
            state.writers += 1;
            state.writers_ever += 1;
        }
        drop(state);
        if self.attr.is_none() {
            self.queue.wake(ALL); // somebody may wait for it in open(2)
        }
    }

    fn remove_end(&self, read: bool, write: bool) {
        let mut state = self.state.lock();
        state.readers -= usize::from(read);
        state.writers -= usize::from(write);
        let one_sided = (state.readers == 0) != (state.writers == 0);
        if state.readers == 0 && state.writers == 0 {
            state.buffer.reset();
        }
        drop(state);
        if one_sided {
            self.queue.wake(ALL);
        }
    }
}

/// One end of a pipe, or both (a FIFO opened with `O_RDWR`). The read and write rights are the open file's; here they
/// decide which readiness is reported and which count it holds up.
pub struct PipeEnd {
    pipe: Arc<Pipe>,
    read: bool,
    write: bool,
    /// `O_DIRECT`: writes are packets.
    packets: AtomicBool,
    /// For a FIFO opened for reading without waiting: as long as no writer has come since, there is no hang-up.
    writers_before: Option<u64>,
}

impl PipeEnd {
    fn new(pipe: &Arc<Pipe>, read: bool, write: bool, flags: i32) -> PipeEnd {
        pipe.add_end(read, write);
        let packets = AtomicBool::new(flags & libc::O_DIRECT != 0);
        PipeEnd { pipe: pipe.clone(), read, write, packets, writers_before: None }
    }

    /// Another end of a pipe, with the access mode of `flags`: opening `/proc/PID/fd/N`.
    pub fn open(pipe: &Arc<Pipe>, flags: i32) -> Arc<PipeEnd> {
        let mode = flags & libc::O_ACCMODE;
        Arc::new(PipeEnd::new(pipe, mode != libc::O_WRONLY, mode != libc::O_RDONLY, flags))
    }

    /// The pipe.
    pub fn pipe(&self) -> &Arc<Pipe> {
        &self.pipe
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        self.pipe.remove_end(self.read, self.write);
    }
}

impl File for PipeEnd {
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        self.pipe.read(sink)
    }

    /// `EPIPE` without readers; SIGPIPE is the caller's.
    fn write(&self, _offset: u64, source: &mut dyn Source) -> Result<usize> {
        self.pipe.write(source, self.packets.load(Ordering::Relaxed))
    }

    fn poll(&self) -> Events {
        let state = self.pipe.state.lock();
        let mut events = Events::empty();
        if self.read {
            events.set(Events::READ, !state.buffer.is_empty());
            events.set(Events::HUP, state.writers == 0 && self.writers_before != Some(state.writers_ever));
        }
        if self.write {
            events.set(Events::WRITE, !state.buffer.is_full());
            events.set(Events::ERR, state.readers == 0);
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.pipe.queue)
    }

    fn ioctl(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        match u64::from(cmd) {
            libc::FIONREAD => {
                let len = i32::try_from(self.pipe.len()).unwrap_or(i32::MAX);
                mem.write(arg, &len.to_ne_bytes())?;
                Ok(0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        self.pipe.attr.as_ref().map(AnonAttr::get)
    }

    fn attachments(&self) -> Option<&Attachments> {
        Some(&self.pipe.attachments)
    }

    fn set_anonymous_attr(&self, set: &SetAttr) -> Result<()> {
        self.pipe.attr.as_ref().ok_or(Errno::EPERM)?.set(set);
        Ok(())
    }

    fn anonymous_name(&self) -> Option<String> {
        self.pipe.attr.as_ref().map(|attr| format!("pipe:[{}]", attr.ino))
    }

    fn async_events(&self) -> Option<Events> {
        let mut events = Events::empty();
        events.set(Events::READ, self.read);
        events.set(Events::WRITE, self.write);
        Some(events)
    }

    fn flags_changed(&self, flags: i32) -> Result<()> {
        self.packets.store(flags & libc::O_DIRECT != 0, Ordering::Relaxed);
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
