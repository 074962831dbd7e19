//! The smallest file system that has everything the path walk asks for.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::vfs::file::File;
use crate::vfs::inode::{
    Attachments, Attr, Caching, FileSystem, Inode, NewNode, NodeType, RenameFlags, SetAttr, StatFs,
};

pub struct Memory {
    root: Arc<Node>,
    caching: Caching,
}

/// How many lookups reached any file system of the calling test.
#[derive(Default)]
pub struct Counter(pub AtomicUsize);

pub struct Node {
    attr: Mutex<Attr>,
    names: Mutex<BTreeMap<Vec<u8>, Arc<Node>>>,
    target: Vec<u8>,
    attachments: Attachments,
    lookups: Arc<Counter>,
}

impl Memory {
    pub fn with_counter(caching: Caching) -> (Arc<dyn FileSystem>, Arc<Counter>) {
        let lookups = Arc::new(Counter::default());
        let node = NewNode { kind: NodeType::Directory, perm: 0o755, uid: 0, gid: 0, rdev: 0, target: b"" };
        let root = Node::new(&node, lookups.clone());
        (Arc::new(Memory { root, caching }), lookups)
    }
}

impl FileSystem for Memory {
    fn type_name(&self) -> &'static str {
        "memory"
    }
    fn root(&self) -> Arc<dyn Inode> {
        self.root.clone()
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs::default())
    }
    fn caching(&self) -> Caching {
        self.caching
    }
}

impl Node {
    fn new(node: &NewNode<'_>, lookups: Arc<Counter>) -> Arc<Node> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut attr = Attr::new(77, NEXT.fetch_add(1, Ordering::Relaxed), node.kind, node.perm);
        (attr.uid, attr.gid, attr.rdev) = (node.uid, node.gid, node.rdev);
        let target = node.target.to_vec();
        Arc::new(Node {
            attr: Mutex::new(attr),
            names: Mutex::default(),
            target,
            attachments: Attachments::default(),
            lookups,
        })
    }

    fn take(&self, name: &[u8], directory: bool) -> Result<()> {
        let mut names = self.names.lock();
        let node = names.get(name).ok_or(Errno::ENOENT)?;
        match (node.attr.lock().kind == NodeType::Directory, directory) {
            (true, false) => return Err(Errno::EISDIR),
            (false, true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        if !node.names.lock().is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        node.attr.lock().nlink -= 1;
        names.remove(name);
        Ok(())
    }
}

fn own(inode: &Arc<dyn Inode>) -> &Node {
    inode.as_any().downcast_ref().expect("a node of this file system")
}

impl Inode for Node {
    fn attr(&self) -> Result<Attr> {
        Ok(*self.attr.lock())
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        let mut attr = self.attr.lock();
        attr.perm = set.perm.unwrap_or(attr.perm);
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        attr.size = set.size.unwrap_or(attr.size);
        Ok(())
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        self.lookups.0.fetch_add(1, Ordering::Relaxed);
        self.names.lock().get(name).cloned().map(|node| node as Arc<dyn Inode>).ok_or(Errno::ENOENT)
    }
    fn revalidate(&self, name: &[u8], child: &Arc<dyn Inode>) -> bool {
        self.names.lock().get(name).is_some_and(|node| std::ptr::eq(&**node, own(child)))
    }
    fn create(&self, name: &[u8], node: &NewNode<'_>) -> Result<Arc<dyn Inode>> {
        let made = Node::new(node, self.lookups.clone());
        self.names.lock().insert(name.to_vec(), made.clone());
        Ok(made)
    }
    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let target: Arc<dyn Any + Send + Sync> = target.clone();
        let target = target.downcast::<Node>().map_err(|_| Errno::EXDEV)?;
        target.attr.lock().nlink += 1;
        self.names.lock().insert(name.to_vec(), target);
        Ok(())
    }
    fn unlink(&self, name: &[u8]) -> Result<()> {
        self.take(name, false)
    }
    fn rmdir(&self, name: &[u8]) -> Result<()> {
        self.take(name, true)
    }
    fn rename(&self, old: &[u8], new_dir: &Arc<dyn Inode>, new: &[u8], flags: RenameFlags) -> Result<()> {
        let to = own(new_dir);
        let node = self.names.lock().get(old).cloned().ok_or(Errno::ENOENT)?;
        let there = to.names.lock().get(new).cloned();
        if flags.contains(RenameFlags::EXCHANGE) {
            self.names.lock().insert(old.to_vec(), there.ok_or(Errno::ENOENT)?);
        } else {
            if let Some(there) = there {
                let directory = there.attr.lock().kind == NodeType::Directory;
                to.take(new, directory)?;
            }
            self.names.lock().remove(old);
        }
        to.names.lock().insert(new.to_vec(), node);
        Ok(())
    }
    fn create_unnamed(&self, node: &NewNode<'_>) -> Result<Arc<dyn Inode>> {
        let made = Node::new(node, self.lookups.clone());
        made.attr.lock().nlink = 0;
        Ok(made)
    }
    fn read_link(&self) -> Result<Vec<u8>> {
        if self.attr.lock().kind == NodeType::Symlink { Ok(self.target.clone()) } else { Err(Errno::EINVAL) }
    }
    fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
        match self.attr.lock().kind {
            NodeType::Regular | NodeType::Directory => Ok(Arc::new(Opened)),
            _ => Err(Errno::ENXIO),
        }
    }
    fn attachments(&self) -> Option<&Attachments> {
        Some(&self.attachments)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Opened;

impl File for Opened {
    fn as_any(&self) -> &dyn Any {
        self
    }
}
