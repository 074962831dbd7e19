//! `/proc/PID/fd`: a link for each descriptor.

use std::any::Any;
use std::sync::Arc;

use super::{attr_of, links};
use crate::errno::{Errno, Result};
use crate::sentry::task::Task;
use crate::vfs::Path;
use crate::vfs::file::{File, OpenFile};
use crate::vfs::inode::{Attr, Inode, NodeType};
use crate::vfs::proc::subject::Subject;
use crate::vfs::proc::{anonymous, number};

/// The slot of a descriptor's node in `fd` (`link`) or `fdinfo`.
pub fn slot(fd: i32, link: bool) -> u32 {
    0x1_0000 + (fd as u32).saturating_mul(2) + u32::from(!link)
}

/// The open file behind a name. `ENOENT`.
pub fn find(subject: &Subject, fd: i32) -> Result<(Arc<Task>, Arc<OpenFile>)> {
    let task = subject.task().map_err(|_| Errno::ENOENT)?;
    let file = task.files().and_then(|files| files.get(fd)).map_err(|_| Errno::ENOENT)?;
    Ok((task, file))
}

/// A name in `fd`.
pub fn lookup(subject: &Subject, name: &[u8]) -> Result<Arc<dyn Inode>> {
    let fd = number(name).ok_or(Errno::ENOENT)?;
    find(subject, fd)?;
    Ok(Arc::new(FdLink { subject: subject.clone(), fd }))
}

struct FdLink {
    subject: Subject,
    fd: i32,
}

impl FdLink {
    /// The task and the file, if the caller may look into the task.
    fn allowed(&self) -> Result<(Arc<Task>, Arc<OpenFile>)> {
        match self.subject.traceable() {
            Err(Errno::EACCES) => Err(Errno::EACCES),
            _ => find(&self.subject, self.fd),
        }
    }
}

impl Inode for FdLink {
    /// The owner's permission bits tell what the file was opened for.
    fn attr(&self) -> Result<Attr> {
        let (_, file) = find(&self.subject, self.fd)?;
        let read = if file.readable() { 0o500 } else { 0 };
        let write = if file.writable() { 0o300 } else { 0 };
        let mut attr = attr_of(&self.subject, slot(self.fd, true), NodeType::Symlink, read | write)?;
        attr.size = 64;
        Ok(attr)
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        let (task, file) = self.allowed()?;
        Ok(links::file_name(&links::reader_root(&task), &file))
    }

    fn magic_link(&self) -> Option<Result<Path>> {
        Some(self.allowed().and_then(|(_, file)| anonymous::destination(&file)))
    }

    fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
        Err(Errno::ELOOP)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
