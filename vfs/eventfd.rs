//! `eventfd(2)`: a counter that reads take and writes add to.

use std::any::Any;

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::vfs::anon;
use crate::vfs::file::File;
use crate::vfs::inode::Attr;
use crate::wait::{Events, WaitQueue};

/// The highest count; one more is the overflow that only the kernel itself can cause.
const MAX: u64 = u64::MAX - 1;

/// An event counter.
pub struct EventFd {
    /// The lock is a leaf.
    count: Mutex<u64>,
    semaphore: bool,
    queue: WaitQueue,
}

impl EventFd {
    /// A counter that starts at `initial`; with `semaphore` each read takes one only (`EFD_SEMAPHORE`).
    pub fn new(initial: u32, semaphore: bool) -> EventFd {
        EventFd { count: Mutex::new(initial.into()), semaphore, queue: WaitQueue::new() }
    }

    /// The count now, for `/proc/PID/fdinfo`.
    pub fn count(&self) -> u64 {
        *self.count.lock()
    }

    /// Adds `n` from within the sentry (completions of asynchronous I/O): stops at the overflow value instead of waiting.
    pub fn signal(&self, n: u64) {
        let mut count = self.count.lock();
        *count = count.saturating_add(n);
        drop(count);
        self.queue.wake(Events::READ);
    }
}

impl File for EventFd {
    /// Exactly 8 bytes are stored; a buffer that is too small is `EINVAL`.
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        if sink.room() < 8 {
            return Err(Errno::EINVAL);
        }
        let mut count = self.count.lock();
        if *count == 0 {
            return Err(Errno::EAGAIN);
        }
        let taken = if self.semaphore { 1 } else { *count };
        *count -= taken;
        drop(count);
        self.queue.wake(Events::WRITE);
        match sink.put(&taken.to_ne_bytes())? {
            8 => Ok(8),
            _ => Err(Errno::EFAULT),
        }
    }

    /// Exactly 8 bytes are taken: any other length is `EINVAL`, as is the value 2^64 - 1.
    fn write(&self, _offset: u64, source: &mut dyn Source) -> Result<usize> {
        if source.left() != 8 {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; 8];
        if source.take(&mut bytes)? != 8 {
            return Err(Errno::EFAULT);
        }
        let add = u64::from_ne_bytes(bytes);
        if add == u64::MAX {
            return Err(Errno::EINVAL);
        }
        let mut count = self.count.lock();
        if MAX.saturating_sub(*count) < add {
            return Err(Errno::EAGAIN);
        }
        *count += add;
        drop(count);
        self.queue.wake(Events::READ);
        Ok(8)
    }

    fn poll(&self) -> Events {
        let count = *self.count.lock();
        let mut events = Events::empty();
        events.set(Events::IN, count > 0);
        events.set(Events::OUT, count < MAX);
        events.set(Events::ERR, count == u64::MAX);
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        Some(anon::shared_attr())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:[eventfd]".into())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SliceSink;

    fn read(file: &EventFd) -> Result<u64> {
        let mut buf = [0; 16];
        let n = file.read(0, &mut SliceSink::new(&mut buf))?;
        assert_eq!(n, 8);
        Ok(u64::from_ne_bytes(buf[..8].try_into().expect("8 bytes")))
    }

    fn write(file: &EventFd, value: u64) -> Result<usize> {
        file.write(0, &mut &value.to_ne_bytes()[..])
    }

    #[test]
    fn counts_and_empties() {
        let file = EventFd::new(3, false);
        assert_eq!(write(&file, 4), Ok(8));
        assert_eq!(read(&file), Ok(7));
        assert_eq!(read(&file), Err(Errno::EAGAIN));
        assert_eq!(file.poll(), Events::OUT);
    }

    #[test]
    fn a_semaphore_gives_one_at_a_time() {
        let file = EventFd::new(2, true);
        assert_eq!((read(&file), read(&file), read(&file)), (Ok(1), Ok(1), Err(Errno::EAGAIN)));
    }

    #[test]
    fn the_count_does_not_overflow() {
        let file = EventFd::new(0, false);
        assert_eq!(write(&file, u64::MAX), Err(Errno::EINVAL));
        assert_eq!(write(&file, MAX), Ok(8));
        assert_eq!(write(&file, 1), Err(Errno::EAGAIN));
        assert_eq!(file.poll(), Events::IN);
        file.signal(5);
        assert_eq!(file.poll(), Events::IN | Events::ERR);
    }

    #[test]
    fn sizes_other_than_eight_are_refused() {
        let file = EventFd::new(1, false);
        assert_eq!(file.write(0, &mut &[0u8; 7][..]), Err(Errno::EINVAL));
        assert_eq!(file.write(0, &mut &[0u8; 9][..]), Err(Errno::EINVAL));
        assert_eq!(file.read(0, &mut SliceSink::new(&mut [0; 7])), Err(Errno::EINVAL));
        assert_eq!(file.count(), 1);
    }
}
