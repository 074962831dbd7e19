//! The copy-up file system: an immutable lower tree, and above it what the container changed, in memory.
//!
//! ```text
//! OverlayFs ── Shared: the tree lock, nodes of lower files by identity
//!   └ Node ── upper: a tmpfs node (attributes, extended attributes, content), once it was changed
//!       │     lower: the lower inode, or the lower directories that are merged, topmost first
//!       └ Dir: a slot for each changed name: a node, or a whiteout
//! ```
//!
//! A name without a slot is the lower's. A node that was changed is kept by its name's slot in the parent, which is so
//! changed itself, up to the root; one that was not is forgotten when nobody holds it, and keeps its parent while somebody
//! does. A slot keeps the node whatever its name was in the lower tree: so a directory is renamed without being copied, and
//! a new directory over a whiteout merges with nothing.
//!
//! *Copy-up* comes in two steps. Attributes are copied by any change (no data is: `chown -R` of an image costs no memory);
//! data by the first open for writing or `truncate(2)`. A descriptor that was opened for reading before sees the new
//! content afterwards; what it has mapped keeps the lower's pages.
//!
//! A lower file with several names is one node whichever of them is used, changed or not: nodes are found by the lower's
//! device and inode number, and a changed one is pinned until its last name is gone. Inode numbers are the lower's (with
//! the layer's number mixed in from the second on) and do not change with copy-up; new nodes count up from 2^62.
//!
//! Lock order: a node's `copying`, `tree` (all changes of names), directories (more than one only under `tree`), `origin`,
//! `nodes` and `pinned`; then tmpfs's. The lower is asked under `copying` only.

mod copy_up;
mod dir;
mod lower;
#[cfg(test)]
mod model;
mod node;
mod open;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

pub use self::node::Node;
pub use self::open::{OverlayDir, OverlayFile};

use self::lower::Key;
use crate::errno::{Errno, Result};
use crate::vfs::inode::{FileSystem, Inode, NodeType, StatFs};
use crate::vfs::tmpfs::TmpFs;

/// `OVERLAYFS_SUPER_MAGIC`.
const MAGIC: i64 = 0x794c_7630;
/// The first inode number of nodes that are not in the lower tree.
const FIRST_INO: u64 = 1 << 62;

/// What the nodes of one overlay share.
struct Shared {
    upper: Arc<TmpFs>,
    next_ino: AtomicU64,
    /// Held over every change of names.
    tree: Mutex<()>,
    /// Living nodes of the lower tree.
    nodes: Mutex<HashMap<Key, Weak<Node>>>,
    /// Changed nodes that have several names in the lower tree.
    pinned: Mutex<HashMap<Key, Arc<Node>>>,
}

impl Shared {
    fn next_ino(&self) -> u64 {
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }
}

/// An overlay.
pub struct OverlayFs {
    shared: Arc<Shared>,
    root: Arc<Node>,
}

impl OverlayFs {
    /// Over `lower`, which must not change. What is changed counts against `upper`'s limits and has its device number; the
    /// names in `upper` are not looked at. Errors: those of the lower's root.
    pub fn new(lower: Arc<dyn FileSystem>, upper: Arc<TmpFs>) -> Result<Arc<OverlayFs>> {
        OverlayFs::layered(&[lower], upper)
    }

    /// Over several trees, topmost first, in which whiteouts (character devices 0:0) and opaque directories
    /// (`trusted.overlay.opaque`) hide what is below. `EINVAL` without one.
    pub fn layered(lowers: &[Arc<dyn FileSystem>], upper: Arc<TmpFs>) -> Result<Arc<OverlayFs>> {
        let shared = Arc::new(Shared {
            upper,
            next_ino: AtomicU64::new(FIRST_INO),
            tree: Mutex::new(()),
            nodes: Mutex::default(),
            pinned: Mutex::default(),
        });
        let mut hits = Vec::new();
        for (layer, lower) in lowers.iter().enumerate() {
            hits.push(lower::Hit::new(layer, lower.root())?);
        }
        if hits.first().ok_or(Errno::EINVAL)?.attr.kind != NodeType::Directory {
            return Err(Errno::ENOTDIR);
        }
        let root = Node::from_lower(&shared, hits, None);
        Ok(Arc::new(OverlayFs { shared, root }))
    }
}

impl FileSystem for OverlayFs {
    fn type_name(&self) -> &'static str {
        "overlay"
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: MAGIC, ..self.shared.upper.statfs()? })
    }
}

impl Drop for OverlayFs {
    fn drop(&mut self) {
        // They hold what holds them.
        let pinned = std::mem::take(&mut *self.shared.pinned.lock());
        drop(pinned);
    }
}
