//! `/dev/kmsg`.

use std::any::Any;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::sentry::bootlog::BootLog;
use crate::vfs::file::File;
use crate::wait::Events;

/// Facility 1 (user), level 4 (warning): what a line without a priority gets.
const USER_WARNING: u8 = 12;
/// The longest line that is taken.
const WRITE_MAX: usize = 976;

/// One reader of the log: each read gives one record.
pub struct Kmsg {
    log: Arc<BootLog>,
    next: Mutex<u64>,
}

impl Kmsg {
    /// A reader that begins with the oldest record.
    pub fn new(log: Arc<BootLog>) -> Kmsg {
        Kmsg { log, next: Mutex::new(0) }
    }
}

impl File for Kmsg {
    /// `EPIPE` when records were lost since the last read, `EINVAL` when the record does not fit, `EAGAIN` at the end.
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        let mut next = self.next.lock();
        let record = self.log.from(*next).ok_or(Errno::EAGAIN)?;
        if record.sequence > *next && *next > 0 {
            *next = record.sequence;
            return Err(Errno::EPIPE);
        }
        let line = record.kmsg_line();
        if line.len() > sink.room() {
            return Err(Errno::EINVAL);
        }
        if sink.put(line.as_bytes())? < line.len() {
            return Err(Errno::EFAULT);
        }
        *next = record.sequence + 1;
        Ok(line.len())
    }

    /// A line, with `<priority>` before it if it likes. A program cannot speak as the kernel: facility 0 becomes 1.
    fn write(&self, _offset: u64, source: &mut dyn Source) -> Result<usize> {
        if source.left() > WRITE_MAX {
            return Err(Errno::EINVAL);
        }
        let bytes = source.take_vec(WRITE_MAX)?;
        let text = String::from_utf8_lossy(&bytes);
        let (priority, line) = split_priority(&text).unwrap_or((USER_WARNING, &text));
        self.log.push_with(priority, line);
        Ok(bytes.len())
    }

    fn poll(&self) -> Events {
        let readable = self.log.from(*self.next.lock()).is_some();
        if readable { Events::READ | Events::WRITE } else { Events::WRITE }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn split_priority(text: &str) -> Option<(u8, &str)> {
    let (number, line) = text.strip_prefix('<')?.split_once('>')?;
    let number: u8 = number.parse().ok()?;
    Some((if number < 8 { number | 8 } else { number }, line))
}
