//! The nodes of an overlay.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};

use super::Shared;
use super::dir::Dir;
use super::lower::{Hit, Key, LowerDirs, overlay_ino};
use super::open::{OverlayDir, OverlayFile};
use crate::errno::{Errno, Result};
use crate::vfs::file::File;
use crate::vfs::inode::{Attachments, Attr, Inode, NewNode, NodeType, RenameFlags, SetAttr};
use crate::vfs::tmpfs::TmpNode;

/// A file, directory or other node of an [`OverlayFs`](super::OverlayFs).
pub struct Node {
    pub(super) fs: Arc<Shared>,
    pub(super) me: Weak<Node>,
    kind: NodeType,
    ino: u64,
    pub(super) lower: Lower,
    /// Which lower node it is, or is topmost.
    pub(super) key: Option<Key>,
    /// The lower has several names for it.
    pub(super) hard: bool,
    /// Where in the lower tree it was found, until its attributes are copied up.
    pub(super) origin: Mutex<Option<Origin>>,
    /// Its attributes and, with `copied`, its data. Set under `tree`, with the parent's slot.
    pub(super) upper: OnceLock<Arc<TmpNode>>,
    /// Whether the data is the upper's.
    pub(super) copied: AtomicBool,
    /// Held while data is copied.
    pub(super) copying: Mutex<()>,
    /// Its only name was removed before anything was copied up.
    pub(super) gone: AtomicBool,
    /// Made without a name, and may get one: `O_TMPFILE`.
    pub(super) linkable: AtomicBool,
    dir: Option<Box<RwLock<Dir>>>,
    attachments: Attachments,
}

/// A directory, and a name that its lower layers have.
pub(super) type Origin = (Arc<Node>, Arc<[u8]>);

/// What a node is made of below.
pub(super) enum Lower {
    None,
    Node(Arc<dyn Inode>),
    Dirs(LowerDirs),
}

static NO_DIRS: LowerDirs = Vec::new();

impl Node {
    /// The node of what was found in the lower layers (at least one hit) as `origin`.
    pub(super) fn from_lower(fs: &Arc<Shared>, hits: Vec<Hit>, origin: Option<Origin>) -> Arc<Node> {
        let (key, attr, layer) = (hits[0].key(), hits[0].attr, hits[0].layer);
        let directory = attr.kind == NodeType::Directory;
        let hard = !directory && attr.nlink > 1;
        let lower = if directory {
            Lower::Dirs(hits.into_iter().map(|hit| (hit.layer, hit.inode)).collect())
        } else {
            hits.into_iter().next().map_or(Lower::None, |hit| Lower::Node(hit.inode))
        };
        Arc::new_cyclic(|me| Node {
            fs: fs.clone(),
            me: me.clone(),
            kind: attr.kind,
            ino: overlay_ino(layer, attr.ino),
            lower,
            key: Some(key),
            hard,
            origin: Mutex::new(origin.filter(|_| !hard)),
            upper: OnceLock::new(),
            copied: AtomicBool::new(attr.kind != NodeType::Regular),
            copying: Mutex::new(()),
            gone: AtomicBool::new(false),
            linkable: AtomicBool::new(false),
            dir: directory.then(Box::default),
            attachments: Attachments::default(),
        })
    }

    /// A new node, of the upper only. `ENOSPC`.
    pub(super) fn make(fs: &Arc<Shared>, node: &NewNode<'_>) -> Result<Arc<Node>> {
        let ino = fs.next_ino();
        let upper = fs.upper.node(Some(ino), node)?;
        Ok(Arc::new_cyclic(|me| Node {
            fs: fs.clone(),
            me: me.clone(),
            kind: node.kind,
            ino,
            lower: Lower::None,
            key: None,
            hard: false,
            origin: Mutex::new(None),
            upper: OnceLock::from(upper),
            copied: AtomicBool::new(true),
            copying: Mutex::new(()),
            gone: AtomicBool::new(false),
            linkable: AtomicBool::new(false),
            dir: (node.kind == NodeType::Directory).then(Box::default),
            attachments: Attachments::default(),
        }))
    }

    /// Its type.
    pub fn kind(&self) -> NodeType {
        self.kind
    }

    /// Its inode number.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == NodeType::Directory
    }

    /// Itself, counted. `ESTALE` cannot happen while somebody calls it through an `Arc`.
    pub(super) fn arc(&self) -> Result<Arc<Node>> {
        self.me.upgrade().ok_or(Errno::ESTALE)
    }

    /// Whether its data is the upper's.
    pub(super) fn is_copied(&self) -> bool {
        self.copied.load(Ordering::Acquire)
    }

    pub(super) fn dir(&self) -> Result<&RwLock<Dir>> {
        self.dir.as_deref().ok_or(Errno::ENOTDIR)
    }

    pub(super) fn lower_dirs(&self) -> &LowerDirs {
        match &self.lower {
            Lower::Dirs(dirs) => dirs,
            _ => &NO_DIRS,
        }
    }

    /// The lower inode, or the topmost. `EIO` without one, which no caller has.
    pub(super) fn lower_inode(&self) -> Result<&Arc<dyn Inode>> {
        match &self.lower {
            Lower::Node(inode) => Some(inode),
            Lower::Dirs(dirs) => dirs.first().map(|(_, inode)| inode),
            Lower::None => None,
        }
        .ok_or(Errno::EIO)
    }

    /// What holds its attributes now.
    fn holder(&self) -> Result<&dyn Inode> {
        match self.upper.get() {
            Some(upper) => Ok(upper.as_ref()),
            None => self.lower_inode().map(|inode| inode.as_ref()),
        }
    }

    /// Attributes. Of a merged directory the links are not counted, as on Linux.
    pub(super) fn stat(&self) -> Result<Attr> {
        let mut attr = self.holder()?.attr()?;
        if self.upper.get().is_some() && !self.is_copied() {
            let lower = self.lower_inode()?.attr()?;
            // The copy may have been made just now.
            if self.is_copied() {
                return self.holder()?.attr();
            }
            (attr.size, attr.blocks) = (lower.size, lower.blocks);
        }
        (attr.dev, attr.ino) = (self.fs.upper.dev(), self.ino);
        if self.upper.get().is_none() && self.gone.load(Ordering::Relaxed) {
            attr.nlink = 0;
        } else if self.lower_dirs().len() > 1 {
            attr.nlink = attr.nlink.min(1);
        }
        Ok(attr)
    }
}

impl Inode for Node {
    fn attr(&self) -> Result<Attr> {
        self.stat()
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        match (set.size, self.kind) {
            (None, _) => self.copy_up()?.set_attr(set),
            (Some(size), NodeType::Regular) => self.copy_data(size)?.set_attr(set),
            (Some(_), NodeType::Directory) => Err(Errno::EISDIR),
            (Some(_), _) => Err(Errno::EINVAL),
        }
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let found = self.find(name)?.node.ok_or(Errno::ENOENT)?;
        Ok(found)
    }

    /// Hands on to the lower layers what no slot decides: names below a changed directory are its node's.
    fn prefetch(&self, components: &[&[u8]], known: bool) {
        let (Some(dir), Some((first, rest))) = (&self.dir, components.split_first()) else { return };
        let slot = dir.read().slots.get(first).cloned();
        match slot.map(|slot| slot.node) {
            Some(Some(node)) => node.prefetch(rest, known),
            Some(None) => {}
            None => self.lower_dirs().iter().for_each(|(_, lower)| lower.prefetch(components, known)),
        }
    }

    fn create(&self, name: &[u8], node: &NewNode<'_>) -> Result<Arc<dyn Inode>> {
        self.make_in(name, node).map(|node| node as Arc<dyn Inode>)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        self.add_link(name, &own(target, &self.fs)?)
    }

    fn unlink(&self, name: &[u8]) -> Result<()> {
        self.remove(name, false)
    }

    fn rmdir(&self, name: &[u8]) -> Result<()> {
        self.remove(name, true)
    }

    fn rename(&self, old: &[u8], new_dir: &Arc<dyn Inode>, new: &[u8], flags: RenameFlags) -> Result<()> {
        self.move_to(old, &own(new_dir, &self.fs)?, new, flags)
    }

    fn create_unnamed(&self, node: &NewNode<'_>) -> Result<Arc<dyn Inode>> {
        self.dir()?;
        let made = Node::make(&self.fs, node)?;
        made.copy_up()?.with_attr(|attr| attr.nlink = 0);
        made.linkable.store(true, Ordering::Relaxed);
        Ok(made)
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        self.holder()?.read_link()
    }

    fn open(self: Arc<Self>, flags: i32) -> Result<Arc<dyn File>> {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        match self.kind {
            NodeType::Regular => Ok(Arc::new(OverlayFile::open(self, flags)?)),
            NodeType::Directory if write => Err(Errno::EISDIR),
            NodeType::Directory => Ok(Arc::new(OverlayDir::new(self, flags))),
            NodeType::Symlink => Err(Errno::ELOOP),
            _ => Err(Errno::ENXIO),
        }
    }

    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        self.holder()?.list_xattr()
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.holder()?.get_xattr(name)
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.copy_up()?.set_xattr(name, value, flags)
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.get_xattr(name)?;
        self.copy_up()?.remove_xattr(name)
    }

    fn attachments(&self) -> Option<&Attachments> {
        Some(&self.attachments)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `inode` as a node of this overlay. `EXDEV` when it is another's.
fn own(inode: &Arc<dyn Inode>, fs: &Arc<Shared>) -> Result<Arc<Node>> {
    let any: Arc<dyn Any + Send + Sync> = inode.clone();
    let node = any.downcast::<Node>().map_err(|_| Errno::EXDEV)?;
    if Arc::ptr_eq(&node.fs, fs) { Ok(node) } else { Err(Errno::EXDEV) }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let mut nodes = self.fs.nodes.lock();
            // Another may have been made for it since.
            if nodes.get(&key).is_some_and(|node| node.strong_count() == 0) {
                nodes.remove(&key);
            }
        }
        // Deep trees go node by node, down as well as up: as many nested drops would overflow the stack.
        let mut up = self.origin.get_mut().take();
        while let Some(mut parent) = up.and_then(|(parent, _)| Arc::into_inner(parent)) {
            up = parent.origin.get_mut().take();
        }
        let mut rest = self.take_children();
        while let Some(child) = rest.pop() {
            if let Some(mut child) = Arc::into_inner(child) {
                rest.append(&mut child.take_children());
            }
        }
    }
}

impl Node {
    fn take_children(&mut self) -> Vec<Arc<Node>> {
        let slots = self.dir.as_mut().map(|dir| dir.get_mut().slots.drain());
        slots.into_iter().flatten().filter_map(|slot| slot.node).collect()
    }
}
