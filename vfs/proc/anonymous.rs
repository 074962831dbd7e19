//! Where a magic link to a file without a name leads: a place in a file system of its own, which the walk can end at.

use std::any::Any;
use std::sync::Arc;

use super::namespace::{Namespace, NamespaceFile};
use crate::errno::{Errno, Result};
use crate::vfs::Path;
use crate::vfs::file::{File, OpenFile};
use crate::vfs::host::HostFile;
use crate::vfs::inode::{Attr, FileSystem, Inode, SetAttr, StatFs};
use crate::vfs::mount::Mount;
use crate::vfs::pipe::{Pipe, PipeEnd};
use crate::vfs::tmpfs::TmpFile;

/// Where a link to `file` leads: its path, if it has one. `ENOENT` when it is nothing that `stat(2)` could tell of.
pub fn destination(file: &OpenFile) -> Result<Path> {
    if let Some(path) = file.path() {
        return Ok(path.clone());
    }
    let object = file.object();
    let attr = object.anonymous_attr().ok_or(Errno::ENOENT)?;
    // The place must not keep the description alive, which would hold up the other end of a pipe.
    let again = if let Some(end) = object.as_any().downcast_ref::<PipeEnd>() {
        Again::Pipe(end.pipe().clone())
    } else if let Some(namespace) = object.as_any().downcast_ref::<NamespaceFile>() {
        Again::Namespace(namespace.0.clone())
    } else if object.as_any().is::<HostFile>() || object.as_any().is::<TmpFile>() {
        Again::Same(object.clone())
    } else {
        Again::Never
    };
    place(Anonymous { attr, again })
}

/// Where a link to a namespace leads.
pub fn namespace(namespace: Namespace) -> Result<Path> {
    place(Anonymous { attr: namespace.attr(), again: Again::Namespace(namespace) })
}

fn place(node: Anonymous) -> Result<Path> {
    let fs: Arc<dyn FileSystem> = Arc::new(AnonymousFs(Arc::new(node)));
    Ok(Path::root_of(Mount::of_one_file(&fs)?))
}

/// What opening it anew gives.
#[derive(Clone)]
enum Again {
    /// Another end.
    Pipe(Arc<Pipe>),
    /// The namespace.
    Namespace(Namespace),
    /// The same object: a host descriptor cannot be opened again, a memfd's holds nothing of its opener.
    Same(Arc<dyn File>),
    /// An anonymous inode or a socket cannot be opened.
    Never,
}

#[derive(Clone)]
struct Anonymous {
    attr: Attr,
    again: Again,
}

impl Inode for Anonymous {
    fn attr(&self) -> Result<Attr> {
        match &self.again {
            Again::Same(object) => object.anonymous_attr().ok_or(Errno::ENOENT),
            _ => Ok(self.attr),
        }
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        match &self.again {
            Again::Same(object) => object.set_anonymous_attr(set),
            _ => Err(Errno::EPERM),
        }
    }

    fn open(self: Arc<Self>, flags: i32) -> Result<Arc<dyn File>> {
        Ok(match &self.again {
            Again::Pipe(pipe) => PipeEnd::open(pipe, flags),
            Again::Namespace(namespace) => Arc::new(NamespaceFile(namespace.clone())),
            Again::Same(object) => object.clone(),
            Again::Never => return Err(Errno::ENXIO),
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct AnonymousFs(Arc<Anonymous>);

impl FileSystem for AnonymousFs {
    fn type_name(&self) -> &'static str {
        "anon_inodefs"
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.0.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        let magic = match self.0.again {
            Again::Pipe(_) => 0x5049_5045,
            Again::Namespace(_) => 0x6e73_6673,
            _ => 0x0904_1934,
        };
        Ok(StatFs { magic, bsize: 4096, namelen: 255, ..StatFs::default() })
    }
}
