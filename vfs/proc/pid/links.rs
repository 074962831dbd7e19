//! Links that lead to a place whatever its name is: `cwd`, `root`, `exe`, and those of `ns`.

use std::any::Any;
use std::sync::Arc;

use super::attr_of;
use crate::errno::{Errno, Result};
use crate::sentry::task::{self, Task};
use crate::vfs::file::{File, OpenFile};
use crate::vfs::inode::{Attr, Inode, NodeType};
use crate::vfs::kernfs::EmitEntry;
use crate::vfs::proc::anonymous;
use crate::vfs::proc::namespace::{KINDS, Namespace};
use crate::vfs::proc::subject::Subject;
use crate::vfs::{Path, path_string};

/// A link of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The working directory.
    Cwd,
    /// The root directory.
    Root,
    /// The program.
    Exe,
}

impl Link {
    /// Where it leads. `ENOENT`: the process has ended, or has no program; `EACCES`.
    pub fn destination(self, subject: &Subject) -> Result<Path> {
        let task = traceable(subject)?;
        // What has ended has let go of its memory and files.
        let mm = task.mm().map_err(|_| Errno::ENOENT)?;
        match self {
            Link::Cwd => Ok(task.fs().get().cwd),
            Link::Root => Ok(task.fs().get().root),
            Link::Exe => {
                let exe = mm.exe().ok_or(Errno::ENOENT)?;
                anonymous::destination(&exe)
            }
        }
    }

    /// What `readlink(2)` shows.
    pub fn text(self, subject: &Subject) -> Result<Vec<u8>> {
        if self == Link::Exe {
            let task = traceable(subject)?;
            let exe = task.mm().ok().and_then(|mm| mm.exe()).ok_or(Errno::ENOENT)?;
            return Ok(file_name(&reader_root(&task), &exe));
        }
        let destination = self.destination(subject)?;
        let task = subject.task()?;
        Ok(path_string(&reader_root(&task), &destination))
    }
}

/// The task, for a link: what is gone is not there.
fn traceable(subject: &Subject) -> Result<Arc<Task>> {
    subject.traceable().map_err(|error| if error == Errno::ESRCH { Errno::ENOENT } else { error })
}

/// The root that names are shown from: the reader's.
pub fn reader_root(task: &Task) -> Path {
    match task::current() {
        Some(reader) => reader.fs().get().root,
        None => task.fs().get().root,
    }
}

/// What a link to an open file shows: its path, or what an anonymous one calls itself.
pub fn file_name(root: &Path, file: &OpenFile) -> Vec<u8> {
    match (file.object().anonymous_name(), file.path()) {
        (Some(name), _) => name.into_bytes(),
        (None, Some(path)) => path_string(root, path),
        (None, None) => b"anon_inode:[unknown]".to_vec(),
    }
}

/// The slots of namespaces' links; the table's are below.
const SLOTS: u32 = 0x8000;

struct NamespaceLink {
    subject: Subject,
    index: usize,
}

/// A name in `ns`.
pub fn lookup_namespace(subject: &Subject, name: &[u8]) -> Result<Arc<dyn Inode>> {
    let index = KINDS.iter().position(|(known, _)| known.as_bytes() == name).ok_or(Errno::ENOENT)?;
    Ok(Arc::new(NamespaceLink { subject: subject.clone(), index }))
}

/// The names in `ns`.
pub fn list_namespaces(subject: &Subject, from: u64, emit: &mut EmitEntry<'_>) {
    for (at, (name, _)) in (0u32..).zip(KINDS).skip_while(|(at, _)| u64::from(*at) < from) {
        if !emit(name.as_bytes(), subject.ino(SLOTS + at), NodeType::Symlink, u64::from(at) + 1) {
            return;
        }
    }
}

impl NamespaceLink {
    fn namespace(&self) -> Result<Namespace> {
        let task = traceable(&self.subject)?;
        Ok(Namespace::of(KINDS[self.index].1, &task))
    }
}

impl Inode for NamespaceLink {
    fn attr(&self) -> Result<Attr> {
        attr_of(&self.subject, SLOTS + self.index as u32, NodeType::Symlink, 0o777)
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        Ok(self.namespace()?.name().into_bytes())
    }

    fn magic_link(&self) -> Option<Result<Path>> {
        Some(self.namespace().and_then(anonymous::namespace))
    }

    fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
        Err(Errno::ELOOP)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
