//! tmpfs: files in memory, `tmpfs(5)`. Also the store of everything else that lives in memory: the overlay's upper layer
//! takes its nodes from here, and `memfd_create(2)`, shared anonymous memory and System V shared memory their files.
//!
//! ```text
//! TmpFs ── Shared: limits, inode numbers, the tree lock
//!   └ TmpNode ── attributes, extended attributes
//!       ├ Dir: names, by name and by cookie
//!       └ MemFile: heap up to 16 KiB, then one memfd; the account of its pages
//! ```
//!
//! Lock order: `tree` (all changes of names), directories, then a node's attributes, content, extended attributes: leaves.
//!
//! Host descriptors: one for each file that has grown past 16 KiB or was mapped, at most half of `RLIMIT_NOFILE` in the
//! whole sentry; then `ENOSPC`.

mod content;
mod dir;
mod names;
mod node;
mod open;
mod options;
mod pages;
mod space;
#[cfg(test)]
pub(crate) mod tests;
mod xattr;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

pub use self::content::{F_SEAL_EXEC, INLINE_MAX, MemFile};
pub use self::node::TmpNode;
pub use self::open::{TmpDirFile, TmpFile, anonymous};
pub use self::options::TmpfsOptions;

pub(crate) use self::dir::{check_length, inherit};
pub(crate) use self::names::Names;
pub(crate) use self::open::{BATCH, FIRST, emit_dots};

use self::space::{PAGE, Space};
use crate::errno::Result;
use crate::vfs::inode::{FileSystem, Inode, NewNode, NodeType, StatFs};

/// `TMPFS_MAGIC`.
const MAGIC: i64 = 0x0102_1994;

/// What the nodes of one file system share.
pub(crate) struct Shared {
    pub(crate) dev: u64,
    space: Arc<Space>,
    next_ino: AtomicU64,
    /// Held over every change of names.
    tree: Mutex<()>,
}

impl Shared {
    fn next_ino(&self) -> u64 {
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }
}

/// A tmpfs.
pub struct TmpFs {
    shared: Arc<Shared>,
    root: Arc<TmpNode>,
    options: Mutex<TmpfsOptions>,
    /// Bytes of memory, of which the limits are a part by default.
    ram: u64,
}

impl TmpFs {
    /// An empty one with device number `dev`. Without a `size=` it may take half of `ram` bytes, without `nr_inodes=` as
    /// many inodes as half of its pages.
    pub fn new(dev: u64, options: &TmpfsOptions, ram: u64) -> Arc<TmpFs> {
        let limits = options.limits(ram);
        let space = Arc::new(Space::new(limits.pages, limits.inodes));
        let shared = Arc::new(Shared { dev, space, next_ino: AtomicU64::new(1), tree: Mutex::new(()) });
        let (kind, perm) = (NodeType::Directory, options.mode & 0o7777);
        let node = NewNode { kind, perm, uid: options.uid, gid: options.gid, rdev: 0, target: b"" };
        shared.space.force_inode();
        let root = TmpNode::build(&shared, None, &node, false);
        Arc::new(TmpFs { shared, root, options: Mutex::new(*options), ram })
    }

    /// `mount(2)` with `MS_REMOUNT`: changes the limits; the root's owner and mode stay as they are. `EINVAL` when more is in
    /// use already, when a limit is to come or to go, and for options that do not exist.
    pub fn remount(&self, data: &str) -> Result<()> {
        let mut options = self.options.lock();
        let changed = options.changed_by(data, self.ram)?;
        let limits = changed.limits(self.ram);
        self.shared.space.limit(limits.pages, limits.inodes)?;
        (options.size, options.inodes) = (changed.size, changed.inodes);
        Ok(())
    }

    /// A node without a name, numbered `ino`, or as the next: what an overlay keeps of a node that was changed. `ENOSPC`.
    pub(crate) fn node(&self, ino: Option<u64>, node: &NewNode<'_>) -> Result<Arc<TmpNode>> {
        TmpNode::new(&self.shared, ino, node, false)
    }

    /// Its device number.
    pub fn dev(&self) -> u64 {
        self.shared.dev
    }
}

impl FileSystem for TmpFs {
    fn type_name(&self) -> &'static str {
        "tmpfs"
    }

    fn remount(&self, data: &str) -> Result<()> {
        TmpFs::remount(self, data)
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        let (blocks, bfree) = self.shared.space.pages();
        let (files, ffree) = self.shared.space.inodes();
        let bsize = PAGE as i64;
        Ok(StatFs { magic: MAGIC, bsize, blocks, bfree, bavail: bfree, files, ffree, namelen: 255 })
    }

    fn options(&self) -> String {
        self.options.lock().show(self.ram)
    }
}
