//! Directories.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{Content, ContentFile, Link, Tree, change};
use crate::errno::{Errno, Result};
use crate::vfs::file::{DirEntry, File};
use crate::vfs::inode::{Attachments, Attr, Inode, NewNode, NodeType, SetAttr};

/// Takes one child: name, inode number, type and the position that follows. Returns whether it wants more.
pub type EmitEntry<'a> = dyn FnMut(&[u8], u64, NodeType, u64) -> bool + 'a;

/// Children that come and go by themselves: processes, network interfaces.
pub trait Entries: Send + Sync {
    /// The child `name`. `ENOENT`.
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>>;

    /// Gives the children from position `from` (0 at first; below 2^62) on to `emit` until it returns `false`.
    fn list(&self, from: u64, emit: &mut EmitEntry<'_>);
}

/// A directory.
pub struct Dir {
    tree: Arc<Tree>,
    attr: Mutex<Attr>,
    fixed: RwLock<BTreeMap<Vec<u8>, Arc<dyn Inode>>>,
    dynamic: Option<Arc<dyn Entries>>,
    attachments: Attachments,
}

impl Dir {
    /// An empty directory, not yet in another, with what `dynamic` adds.
    pub fn new(tree: &Arc<Tree>, perm: u32, dynamic: Option<Arc<dyn Entries>>) -> Arc<Dir> {
        Arc::new(Dir {
            tree: tree.clone(),
            attr: Mutex::new(tree.attr(NodeType::Directory, perm)),
            fixed: RwLock::default(),
            dynamic,
            attachments: Attachments::default(),
        })
    }

    /// The tree it belongs to.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Adds or replaces a child.
    pub fn add(&self, name: &str, inode: Arc<dyn Inode>) {
        let old = self.fixed.write().insert(name.as_bytes().to_vec(), inode);
        drop(old);
    }

    /// Takes a child out.
    pub fn remove(&self, name: &str) {
        let old = self.fixed.write().remove(name.as_bytes());
        drop(old);
    }

    /// The directory at `path` beneath this one, made with permissions 0555 where it is missing.
    pub fn make_dirs(self: &Arc<Self>, path: &str) -> Arc<Dir> {
        let mut at = self.clone();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let known = at.fixed.read().get(name.as_bytes()).cloned();
            let known = known.and_then(|inode| {
                let any: Arc<dyn Any + Send + Sync> = inode;
                any.downcast::<Dir>().ok()
            });
            let next = known.unwrap_or_else(|| {
                let made = Dir::new(&at.tree, 0o555, None);
                at.add(name, made.clone());
                at.attr.lock().nlink += 1;
                made
            });
            at = next;
        }
        at
    }

    /// A file whose content is made by `read`.
    pub fn add_file(&self, name: &str, perm: u32, read: impl Fn() -> Vec<u8> + Send + Sync + 'static) {
        self.add(name, ContentFile::new(&self.tree, perm, Arc::new(read)));
    }

    /// A file with a fixed text.
    pub fn add_text(&self, name: &str, perm: u32, text: &str) {
        let text = text.as_bytes().to_vec();
        self.add_file(name, perm, move || text.clone());
    }

    /// A file with content of its own kind, which may be written to.
    pub fn add_content(&self, name: &str, perm: u32, content: Arc<dyn Content>) {
        self.add(name, ContentFile::new(&self.tree, perm, content));
    }

    /// A symbolic link.
    pub fn add_link(&self, name: &str, target: &str) {
        self.add(name, Link::new(&self.tree, target.as_bytes()));
    }
}

impl Inode for Dir {
    fn attr(&self) -> Result<Attr> {
        Ok(*self.attr.lock())
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        change(&self.attr, set);
        Ok(())
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        if let Some(inode) = self.fixed.read().get(name) {
            return Ok(inode.clone());
        }
        self.dynamic.as_ref().ok_or(Errno::ENOENT)?.lookup(name)
    }

    /// Where names come by themselves none is free to be taken, it only does not exist. Elsewhere as the default.
    fn create(&self, _name: &[u8], node: &NewNode<'_>) -> Result<Arc<dyn Inode>> {
        Err(match node.kind {
            _ if self.tree.transient => Errno::ENOENT,
            NodeType::Regular => Errno::EACCES,
            _ => Errno::EPERM,
        })
    }

    fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
        Ok(Arc::new(OpenDir(self)))
    }

    fn attachments(&self) -> Option<&Attachments> {
        Some(&self.attachments)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct OpenDir(Arc<Dir>);

/// Where the positions of dynamic children begin; before are the two dots and the fixed children in order.
const DYNAMIC: u64 = 1 << 32;

impl File for OpenDir {
    fn read(&self, _offset: u64, _sink: &mut dyn crate::io::Sink) -> Result<usize> {
        Err(Errno::EISDIR)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn read_dir(&self, pos: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let own = self.0.attr.lock().ino;
        let fixed = || -> Vec<(Vec<u8>, u64, NodeType)> {
            let dot = |name: &[u8]| (name.to_vec(), own, NodeType::Directory);
            let children: Vec<_> =
                self.0.fixed.read().iter().map(|(name, inode)| (name.clone(), inode.clone())).collect();
            let known = children.into_iter().filter_map(|(name, inode)| {
                let attr = inode.attr().ok()?;
                Some((name, attr.ino, attr.kind))
            });
            [dot(b"."), dot(b"..")].into_iter().chain(known).collect()
        };
        if pos < DYNAMIC {
            for (at, (name, ino, kind)) in (0u64..).zip(fixed()).skip_while(|(at, _)| *at < pos) {
                if !emit(DirEntry { name: &name, ino, kind, next: at + 1 }) {
                    return Ok(());
                }
            }
        }
        if let Some(dynamic) = &self.0.dynamic {
            dynamic.list(pos.saturating_sub(DYNAMIC), &mut |name, ino, kind, next| {
                emit(DirEntry { name, ino, kind, next: DYNAMIC.saturating_add(next) })
            });
        }
        Ok(())
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
