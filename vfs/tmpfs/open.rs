//! Open files and directories of a tmpfs, and files without a name.

use std::any::Any;
use std::sync::Arc;

use super::node::TmpNode;
use super::{TmpFs, TmpfsOptions};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::vfs::file::{DirEntry, File, Mapping};
use crate::vfs::inode::{Attachments, Attr, Inode, NewNode, NodeType, SetAttr};

/// An open regular file.
pub struct TmpFile {
    node: Arc<TmpNode>,
    noatime: bool,
    /// What `/proc/self/fd` shows, and that it has attributes of its own: a memfd.
    name: Option<String>,
}

impl TmpFile {
    pub(super) fn new(node: Arc<TmpNode>, flags: i32) -> TmpFile {
        TmpFile { node, noatime: flags & libc::O_NOATIME != 0, name: None }
    }

    /// The node: its seals are `node().content()?.seals()` and `node().add_seals()`.
    pub fn node(&self) -> &Arc<TmpNode> {
        &self.node
    }
}

/// A file without a name in any file system: `memfd_create(2)` with `name`, and what `MAP_SHARED | MAP_ANONYMOUS` and
/// `shmget(2)` map. `owner` is its user and group. Its content counts against no file system.
pub fn anonymous(name: &str, owner: (u32, u32), perm: u32, allow_sealing: bool) -> Result<Arc<TmpFile>> {
    /// The kernel's own tmpfs mount, which shows as device 0:1 in `stat(2)`.
    const DEV: u64 = 1;
    static FS: std::sync::OnceLock<Arc<TmpFs>> = std::sync::OnceLock::new();
    let fs =
        FS.get_or_init(|| TmpFs::new(DEV, &TmpfsOptions { size: Some(0), inodes: Some(0), ..Default::default() }, 0));
    let node = NewNode { kind: NodeType::Regular, perm, uid: owner.0, gid: owner.1, rdev: 0, target: b"" };
    let node = TmpNode::new(&fs.shared, None, &node, allow_sealing)?;
    node.with_attr(|attr| attr.nlink = 0);
    Ok(Arc::new(TmpFile { node, noatime: false, name: Some(format!("/memfd:{name} (deleted)")) }))
}

impl File for TmpFile {
    fn read(&self, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        self.node.read_at(offset, sink, self.noatime)
    }

    fn write(&self, offset: u64, source: &mut dyn Source) -> Result<usize> {
        self.node.write_at(Some(offset), source).map(|(_, n)| n)
    }

    fn append(&self, source: &mut dyn Source) -> Result<(u64, usize)> {
        self.node.write_at(None, source)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn attachments(&self) -> Option<&Attachments> {
        self.node.attachments()
    }

    fn size(&self) -> Result<u64> {
        Ok(self.node.content()?.size())
    }

    fn seek_data(&self, offset: u64, data: bool) -> Result<u64> {
        self.node.content()?.seek_data(offset, data)
    }

    fn mapping(&self, shared: bool, writable: bool) -> Result<Mapping> {
        self.node.content()?.mapping(shared, writable)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.node.allocate(mode, offset, len)
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        self.name.is_some().then(|| self.node.stat())
    }

    fn set_anonymous_attr(&self, set: &SetAttr) -> Result<()> {
        self.node.set_attr(set)
    }

    fn anonymous_name(&self) -> Option<String> {
        self.name.clone()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An open directory.
pub struct TmpDirFile {
    node: Arc<TmpNode>,
    noatime: bool,
}

impl TmpDirFile {
    pub(super) fn new(node: Arc<TmpNode>, flags: i32) -> TmpDirFile {
        TmpDirFile { node, noatime: flags & libc::O_NOATIME != 0 }
    }
}

/// How many entries are looked up under one hold of a directory's lock.
pub(crate) const BATCH: usize = 256;

/// The position of the first entry after the two dots.
pub(crate) const FIRST: u64 = 2;

/// Gives the two dots, where `pos` has not passed them. Returns whether to go on.
pub(crate) fn emit_dots(pos: u64, ino: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> bool {
    let dots: [&[u8]; 2] = [b".", b".."];
    let kind = NodeType::Directory;
    let mut left = (0u64..).zip(dots).skip_while(|(at, _)| *at < pos);
    left.all(|(at, name)| emit(DirEntry { name, ino, kind, next: at + 1 }))
}

impl File for TmpDirFile {
    fn read(&self, _offset: u64, _sink: &mut dyn Sink) -> Result<usize> {
        Err(Errno::EISDIR)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn size(&self) -> Result<u64> {
        Ok(self.node.stat().size)
    }

    /// Positions: 0 and 1 are the two dots, then the cookies.
    fn read_dir(&self, pos: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let dir = self.node.dir()?;
        if !self.noatime {
            self.node.accessed();
        }
        if !emit_dots(pos, self.node.stat().ino, emit) {
            return Ok(());
        }
        let mut cookie = pos.saturating_sub(FIRST);
        loop {
            let entries = dir.read();
            let batch: Vec<(u64, Arc<[u8]>, Arc<TmpNode>)> = entries
                .names
                .from(cookie)
                .take(BATCH)
                .map(|(cookie, name, node)| (cookie, name.clone(), node.clone()))
                .collect();
            drop(entries);
            if batch.is_empty() {
                return Ok(());
            }
            for (at, name, node) in batch {
                cookie = at + 1;
                let (ino, kind) = (node.with_attr(|attr| attr.ino), node.kind());
                if !emit(DirEntry { name: &name, ino, kind, next: FIRST + cookie }) {
                    return Ok(());
                }
            }
        }
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
