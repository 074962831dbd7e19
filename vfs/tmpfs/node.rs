//! The nodes of a tmpfs: attributes, content, extended attributes.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};

use super::Shared;
use super::content::{F_SEAL_EXEC, MemFile};
use super::dir::Dir;
use super::open::{TmpDirFile, TmpFile};
use super::xattr::Xattrs;
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::vfs::file::File;
use crate::vfs::inode::{Attachments, Attr, Inode, NewNode, NodeType, RenameFlags, SetAttr, TimeSpec};

/// The size that an entry adds to its directory's.
pub(super) const ENTRY_SIZE: u64 = 20;

/// A file, directory or other node of a [`TmpFs`](super::TmpFs).
pub struct TmpNode {
    pub(super) fs: Arc<Shared>,
    kind: NodeType,
    /// Leaf lock. The size and blocks of regular files are the content's.
    attr: Mutex<Attr>,
    pub(super) body: Body,
    xattrs: Xattrs,
    attachments: Attachments,
    /// Made without a name, and may get one: `O_TMPFILE`.
    pub(super) linkable: AtomicBool,
}

pub(super) enum Body {
    File(MemFile),
    Dir(RwLock<Dir>),
    Symlink(Box<[u8]>),
    Special,
}

/// The attributes of a regular file that the content decides.
fn measure(attr: &mut Attr, content: &MemFile) {
    let (size, pages) = content.usage();
    attr.size = size;
    attr.blocks = pages.saturating_mul(8);
}

impl TmpNode {
    /// A node without a name that takes one of the file system's inodes; `ino` `None` numbers it. `ENOSPC`.
    pub(super) fn new(fs: &Arc<Shared>, ino: Option<u64>, node: &NewNode<'_>, sealing: bool) -> Result<Arc<TmpNode>> {
        fs.space.take_inode()?;
        Ok(TmpNode::build(fs, ino, node, sealing))
    }

    /// The node for an inode that was taken.
    pub(super) fn build(fs: &Arc<Shared>, ino: Option<u64>, node: &NewNode<'_>, sealing: bool) -> Arc<TmpNode> {
        let mut attr = Attr::new(fs.dev, ino.unwrap_or_else(|| fs.next_ino()), node.kind, node.perm);
        (attr.uid, attr.gid, attr.rdev) = (node.uid, node.gid, node.rdev);
        let body = match node.kind {
            NodeType::Regular => Body::File(MemFile::new(fs.space.clone(), sealing)),
            NodeType::Directory => {
                attr.size = 2 * ENTRY_SIZE;
                Body::Dir(RwLock::default())
            }
            NodeType::Symlink => {
                attr.size = node.target.len() as u64;
                Body::Symlink(node.target.into())
            }
            _ => Body::Special,
        };
        Arc::new(TmpNode {
            fs: fs.clone(),
            kind: node.kind,
            attr: Mutex::new(attr),
            body,
            xattrs: Xattrs::new(fs.space.clone()),
            attachments: Attachments::default(),
            linkable: AtomicBool::new(false),
        })
    }

    /// Its type.
    pub fn kind(&self) -> NodeType {
        self.kind
    }

    /// Its content. `EISDIR` for a directory, `EINVAL` for others that have none.
    pub fn content(&self) -> Result<&MemFile> {
        match &self.body {
            Body::File(content) => Ok(content),
            Body::Dir(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Attributes.
    pub fn stat(&self) -> Attr {
        let mut attr = *self.attr.lock();
        if let Body::File(content) = &self.body {
            measure(&mut attr, content);
        }
        attr
    }

    /// Changes its attributes outright, without a change of `ctime`.
    pub(crate) fn with_attr<R>(&self, change: impl FnOnce(&mut Attr) -> R) -> R {
        change(&mut self.attr.lock())
    }

    /// Content or entries changed: `mtime` and `ctime` are now.
    pub(crate) fn modified(&self) {
        let now = TimeSpec::now();
        self.with_attr(|attr| (attr.mtime, attr.ctime) = (now, now));
    }

    /// The inode changed: `ctime` is now.
    pub(crate) fn changed(&self) {
        self.with_attr(|attr| attr.ctime = TimeSpec::now());
    }

    /// It was read: `relatime` of `mount(8)`, which moves `atime` only past the last change, or once a day.
    pub(crate) fn accessed(&self) {
        const DAY: i64 = 24 * 60 * 60;
        let now = TimeSpec::now();
        self.with_attr(|attr| {
            let stale = now.sec.saturating_sub(attr.atime.sec) >= DAY;
            if attr.atime <= attr.mtime || attr.atime <= attr.ctime || stale {
                attr.atime = now;
            }
        });
    }

    /// Reads its content, and moves `atime` unless `noatime`.
    pub(crate) fn read_at(&self, offset: u64, sink: &mut dyn Sink, noatime: bool) -> Result<usize> {
        let n = self.content()?.read(offset, sink)?;
        if !noatime {
            self.accessed();
        }
        Ok(n)
    }

    /// Writes its content at `offset`, or at the end; returns where it began and how much.
    pub(crate) fn write_at(&self, offset: Option<u64>, source: &mut dyn Source) -> Result<(u64, usize)> {
        let (start, n) = self.content()?.write(offset, source)?;
        if n > 0 {
            self.modified();
        }
        Ok((start, n))
    }

    /// `fallocate(2)`.
    pub(crate) fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.content()?.allocate(mode, offset, len)?;
        self.modified();
        Ok(())
    }

    /// `fcntl(F_ADD_SEALS)`. `F_SEAL_EXEC` on an executable file seals its content too.
    pub fn add_seals(&self, seals: i32) -> Result<()> {
        let executable = self.with_attr(|attr| attr.perm & 0o111 != 0);
        let content = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE;
        let implied = if seals & F_SEAL_EXEC != 0 && executable { content } else { 0 };
        self.content()?.add_seals(seals | implied)
    }

    /// The entries, of a directory. `ENOTDIR`.
    pub(super) fn dir(&self) -> Result<&RwLock<Dir>> {
        match &self.body {
            Body::Dir(dir) => Ok(dir),
            _ => Err(Errno::ENOTDIR),
        }
    }
}

impl Inode for TmpNode {
    fn attr(&self) -> Result<Attr> {
        Ok(self.stat())
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        if let (Some(perm), Body::File(content)) = (set.perm, &self.body) {
            let execute = self.with_attr(|attr| (attr.perm ^ perm) & 0o111);
            if execute != 0 && content.seals() & F_SEAL_EXEC != 0 {
                return Err(Errno::EPERM);
            }
        }
        if let Some(size) = set.size {
            self.content()?.truncate(size)?;
        }
        let now = TimeSpec::now();
        self.with_attr(|attr| {
            attr.perm = set.perm.map_or(attr.perm, |perm| perm & 0o7777);
            attr.uid = set.uid.unwrap_or(attr.uid);
            attr.gid = set.gid.unwrap_or(attr.gid);
            attr.atime = set.atime.unwrap_or(attr.atime);
            attr.mtime = set.mtime.unwrap_or(if set.size.is_some() { now } else { attr.mtime });
            attr.ctime = now;
        });
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        self.find(name).map(|node| node as Arc<dyn Inode>)
    }

    fn create(&self, name: &[u8], node: &NewNode<'_>) -> Result<Arc<dyn Inode>> {
        self.make(name, node).map(|node| node as Arc<dyn Inode>)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        self.add_link(name, own(target, &self.fs)?)
    }

    fn unlink(&self, name: &[u8]) -> Result<()> {
        self.remove(name, false)
    }

    fn rmdir(&self, name: &[u8]) -> Result<()> {
        self.remove(name, true)
    }

    fn rename(&self, old: &[u8], new_dir: &Arc<dyn Inode>, new: &[u8], flags: RenameFlags) -> Result<()> {
        self.move_to(old, own(new_dir, &self.fs)?, new, flags)
    }

    fn create_unnamed(&self, node: &NewNode<'_>) -> Result<Arc<dyn Inode>> {
        self.dir()?;
        let made = TmpNode::new(&self.fs, None, node, false)?;
        made.with_attr(|attr| attr.nlink = 0);
        made.linkable.store(true, Ordering::Relaxed);
        Ok(made)
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        match &self.body {
            Body::Symlink(target) => {
                self.accessed();
                Ok(target.to_vec())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn open(self: Arc<Self>, flags: i32) -> Result<Arc<dyn File>> {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        match self.body {
            Body::File(_) => Ok(Arc::new(TmpFile::new(self, flags))),
            Body::Dir(_) if write => Err(Errno::EISDIR),
            Body::Dir(_) => Ok(Arc::new(TmpDirFile::new(self, flags))),
            Body::Symlink(_) => Err(Errno::ELOOP),
            Body::Special => Err(Errno::ENXIO),
        }
    }

    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        Ok(self.xattrs.list())
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.xattrs.get(name)
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.xattrs.set(name, value, flags)?;
        self.changed();
        Ok(())
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.xattrs.remove(name)?;
        self.changed();
        Ok(())
    }

    fn attachments(&self) -> Option<&Attachments> {
        Some(&self.attachments)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `inode` as a node of `fs`. `EXDEV` when it is another's.
pub(super) fn own(inode: &Arc<dyn Inode>, fs: &Arc<Shared>) -> Result<Arc<TmpNode>> {
    let any: Arc<dyn Any + Send + Sync> = inode.clone();
    let node = any.downcast::<TmpNode>().map_err(|_| Errno::EXDEV)?;
    if Arc::ptr_eq(&node.fs, fs) { Ok(node) } else { Err(Errno::EXDEV) }
}

impl Drop for TmpNode {
    fn drop(&mut self) {
        self.fs.space.give_inode();
        // A deep tree goes node by node: as many nested drops would overflow the stack.
        let mut rest = self.take_children();
        while let Some(child) = rest.pop() {
            if let Some(mut child) = Arc::into_inner(child) {
                rest.append(&mut child.take_children());
            }
        }
    }
}

impl TmpNode {
    fn take_children(&mut self) -> Vec<Arc<TmpNode>> {
        match &mut self.body {
            Body::Dir(dir) => dir.get_mut().names.drain(),
            _ => Vec::new(),
        }
    }
}
