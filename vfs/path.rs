//! Places in the tree of mounts.

use std::sync::Arc;

use crate::errno::Result;
use crate::vfs::dentry::Dentry;
use crate::vfs::inode::{Attr, Inode};
use crate::vfs::inotify::{is_active, notify_both};
use crate::vfs::mount::Mount;

/// A place in the tree of mounts: a name, seen through a mount.
#[derive(Clone)]
pub struct Path {
    /// The mount.
    pub mount: Arc<Mount>,
    /// The name in it.
    pub dentry: Arc<Dentry>,
}

impl PartialEq for Path {
    fn eq(&self, other: &Path) -> bool {
        Arc::ptr_eq(&self.mount, &other.mount) && Arc::ptr_eq(&self.dentry, &other.dentry)
    }
}

impl Eq for Path {}

impl Path {
    /// The root of a mount.
    pub fn root_of(mount: Arc<Mount>) -> Path {
        let dentry = mount.root().clone();
        Path { mount, dentry }
    }

    /// What is there. `ENOENT` for a name that is known not to be there (which lookups do not return).
    pub fn inode(&self) -> Result<&Arc<dyn Inode>> {
        self.dentry.inode()
    }

    /// Its attributes.
    pub fn attr(&self) -> Result<Attr> {
        self.inode()?.attr()
    }

    /// Its name in its directory; `/` for the root of a file system.
    pub fn name(&self) -> Arc<[u8]> {
        self.dentry.name()
    }

    /// What is mounted here, if anything, and what is mounted on that, to the top.
    pub(super) fn cross_down(&mut self) -> bool {
        let mut crossed = false;
        while self.dentry.is_mount_point() {
            let Some(mount) = self.mount.child_at(&self.dentry) else { break };
            *self = Path::root_of(mount);
            crossed = true;
        }
        crossed
    }

    /// From the root of a mount to where it is mounted, through mounts that sit on one another. `false` when this is not
    /// the root of a mount, or the mount is mounted nowhere.
    pub(super) fn cross_up(&mut self, root: &Path) -> bool {
        let mut crossed = false;
        while Arc::ptr_eq(&self.dentry, self.mount.root()) && self != root {
            let Some(at) = self.mount.mountpoint() else { break };
            *self = at;
            crossed = true;
        }
        crossed
    }

    /// `..`, for a process whose root is `root`; at a root, the place itself.
    pub fn dot_dot(&self, root: &Path) -> Path {
        if self == root {
            return self.clone();
        }
        let mut at = self.clone();
        at.cross_up(root);
        if at == *root {
            at.cross_down();
            return at;
        }
        let Some(parent) = at.dentry.parent() else { return self.clone() };
        at.dentry = parent;
        at.cross_down();
        at
    }
}

/// The path of `path` for a process whose root is `root`: `getcwd(2)`, `/proc/PID/fd`. Ends with ` (deleted)` when the
/// name was removed, begins with `(unreachable)` when `path` does not lie beneath `root`.
pub fn path_string(root: &Path, path: &Path) -> Vec<u8> {
    let mut names: Vec<Arc<[u8]>> = Vec::new();
    let mut at = path.clone();
    let mut reached = false;
    loop {
        if at == *root {
            reached = true;
            break;
        }
        at.cross_up(root);
        if at == *root {
            reached = true;
            break;
        }
        match at.dentry.place() {
            (Some(parent), name) => {
                names.push(name);
                at.dentry = parent;
            }
            (None, _) => break,
        }
    }
    let mut text = Vec::new();
    if !reached {
        text.extend_from_slice(b"(unreachable)");
    }
    for name in names.iter().rev() {
        text.push(b'/');
        text.extend_from_slice(name);
    }
    if names.is_empty() {
        text.push(b'/');
    }
    if path.dentry.is_deleted() {
        text.extend_from_slice(b" (deleted)");
    }
    text
}

/// Reports that `mask` (`IN_*`) happened to what is at `path`, there and in its directory. One load when nobody watches.
pub fn notify_at(path: &Path, mask: u32) {
    if !is_active() {
        return;
    }
    let Ok(inode) = path.inode() else { return };
    let mask = if path.dentry.is_dir() { mask | libc::IN_ISDIR } else { mask };
    let (parent, name) = path.dentry.place();
    // What was removed is not reported in its directory any more.
    let parent = parent.filter(|_| !path.dentry.is_deleted());
    let parent = parent.as_ref().and_then(|parent| parent.inode().ok());
    notify_both(parent.map(|parent| (&**parent, &*name)), &**inode, mask);
}
