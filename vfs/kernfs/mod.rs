//! Trees that the sentry itself makes, as `/sys` and the fixed part of `/proc` are: directories with fixed and dynamic
//! children, files whose content is made when they are read, symbolic links.
//!
//! A file's content is made anew when a description reads at offset 0 and kept by the description, so that a reader in
//! small pieces sees one state (as `seq_file` does).

mod dir;
mod file;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

pub use self::dir::{Dir, EmitEntry, Entries};
pub use self::file::{Content, ContentFile, open_content};

use crate::errno::{Errno, Result};
use crate::vfs::file::File;
use crate::vfs::inode::{Attr, Caching, FileSystem, Inode, NodeType, SetAttr, StatFs, TimeSpec};

/// One such file system.
pub struct KernFs {
    type_name: &'static str,
    magic: i64,
    caching: Caching,
    root: Arc<Dir>,
}

/// What the nodes of one tree share.
pub struct Tree {
    dev: u64,
    next_ino: AtomicU64,
    /// Names come and go by themselves.
    transient: bool,
}

impl KernFs {
    /// An empty tree of device `dev`, whose root has permissions 0555. `caching` is `Never` when names come and go by
    /// themselves.
    pub fn new(type_name: &'static str, magic: i64, dev: u64, caching: Caching) -> KernFs {
        let tree = Arc::new(Tree::new(dev, caching));
        KernFs { type_name, magic, caching, root: Dir::new(&tree, 0o555, None) }
    }

    /// [`KernFs::new`] whose root has children that come and go besides.
    pub fn with_entries(
        type_name: &'static str,
        magic: i64,
        dev: u64,
        caching: Caching,
        entries: impl FnOnce(&Arc<Tree>) -> Arc<dyn Entries>,
    ) -> KernFs {
        let tree = Arc::new(Tree::new(dev, caching));
        let entries = entries(&tree);
        KernFs { type_name, magic, caching, root: Dir::new(&tree, 0o555, Some(entries)) }
    }

    /// The root, to add to.
    pub fn dir(&self) -> &Arc<Dir> {
        &self.root
    }
}

impl FileSystem for KernFs {
    fn type_name(&self) -> &'static str {
        self.type_name
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: self.magic, bsize: 4096, namelen: 255, ..StatFs::default() })
    }

    fn caching(&self) -> Caching {
        self.caching
    }
}

impl Tree {
    fn new(dev: u64, caching: Caching) -> Tree {
        Tree { dev, next_ino: AtomicU64::new(1), transient: caching == Caching::Never }
    }

    /// The device number.
    pub fn dev(&self) -> u64 {
        self.dev
    }

    /// Attributes of a new node.
    pub fn attr(&self, kind: NodeType, perm: u32) -> Attr {
        let mut attr = Attr::new(self.dev, self.next_ino.fetch_add(1, Ordering::Relaxed), kind, perm);
        attr.btime = None;
        attr
    }
}

/// Changes what may be changed of such a node. A size is accepted and ignored: programs open with `O_TRUNC`.
fn change(attr: &Mutex<Attr>, set: &SetAttr) {
    let mut attr = attr.lock();
    attr.perm = set.perm.map_or(attr.perm, |perm| perm & 0o7777);
    attr.uid = set.uid.unwrap_or(attr.uid);
    attr.gid = set.gid.unwrap_or(attr.gid);
    attr.atime = set.atime.unwrap_or(attr.atime);
    attr.mtime = set.mtime.unwrap_or(attr.mtime);
    attr.ctime = TimeSpec::now();
}

/// A symbolic link with a fixed text.
pub struct Link {
    attr: Attr,
    target: Vec<u8>,
}

impl Link {
    /// A link to `target`.
    pub fn new(tree: &Tree, target: &[u8]) -> Arc<Link> {
        let mut attr = tree.attr(NodeType::Symlink, 0o777);
        attr.size = target.len() as u64;
        Arc::new(Link { attr, target: target.to_vec() })
    }
}

impl Inode for Link {
    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        Ok(self.target.clone())
    }

    fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
        Err(Errno::ELOOP)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
