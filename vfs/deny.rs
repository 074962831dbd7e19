//! Who writes to a file and who runs it: `ETXTBSY`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::errno::{Errno, Result};
use crate::vfs::inode::Inode;

/// Writers of an inode when positive, those that forbid writing when negative. Attached to it.
#[derive(Default)]
struct Writers(AtomicI64);

impl Writers {
    fn of(inode: &Arc<dyn Inode>) -> Option<Arc<Writers>> {
        inode.attachments().map(|attachments| attachments.get_or_insert(Writers::default))
    }

    fn change(&self, allowed: impl Fn(i64) -> bool, by: i64) -> Result<()> {
        let next = |count: i64| if allowed(count) { count.checked_add(by) } else { None };
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).map(drop).map_err(|_| Errno::ETXTBSY)
    }
}

/// The right to write to a file; while there is one, the file cannot be run.
pub struct WriteAccess(Option<Arc<Writers>>);

/// A file is being run: nobody can open it for writing until this is dropped.
pub struct WriteDenied(Option<Arc<Writers>>);

/// For `open(2)` with write access and `truncate(2)`. `ETXTBSY` when it is being run.
pub fn get_write(inode: &Arc<dyn Inode>) -> Result<WriteAccess> {
    let writers = Writers::of(inode);
    if let Some(writers) = &writers {
        writers.change(|count| count >= 0, 1)?;
    }
    Ok(WriteAccess(writers))
}

/// For `execve(2)`. `ETXTBSY` when somebody has it open for writing. A file system without attachments denies nothing.
pub fn deny_write(inode: &Arc<dyn Inode>) -> Result<WriteDenied> {
    let writers = Writers::of(inode);
    if let Some(writers) = &writers {
        writers.change(|count| count <= 0, -1)?;
    }
    Ok(WriteDenied(writers))
}

impl Drop for WriteAccess {
    fn drop(&mut self) {
        if let Some(writers) = &self.0 {
            writers.0.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for WriteDenied {
    fn drop(&mut self) {
        if let Some(writers) = &self.0 {
            writers.0.fetch_add(1, Ordering::AcqRel);
        }
    }
}
