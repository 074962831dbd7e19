//! Changes to the tree of a tmpfs.
//!
//! Every change holds the file system's `tree` lock, and under it the locks of the directories concerned, in any order:
//! who reads takes only one of them. Nothing under these locks calls the host.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;

use super::names::Names;
use super::node::{ENTRY_SIZE, TmpNode};
use crate::errno::{Errno, Result};
use crate::vfs::inode::{NewNode, NodeType, RenameFlags};

/// The longest name of one component.
pub(crate) const NAME_MAX: usize = 255;

const S_ISGID: u32 = libc::S_ISGID;

/// The entries of a directory.
#[derive(Default)]
pub struct Dir {
    pub(super) names: Names<Arc<TmpNode>>,
    /// Removed: nothing can be made in it any more.
    pub(super) dead: bool,
}

/// The node to make in a directory with the attributes `perm` and `gid`: a set-group-ID directory gives its group, and
/// to directories the bit too.
pub(crate) fn inherit<'a>(node: &NewNode<'a>, perm: u32, gid: u32) -> NewNode<'a> {
    let mut node = *node;
    if perm & S_ISGID != 0 {
        node.gid = gid;
        if node.kind == NodeType::Directory {
            node.perm |= S_ISGID;
        }
    }
    node
}

/// `ENAMETOOLONG` for names that are.
pub(crate) fn check_length(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
}

fn is_dir(node: &TmpNode) -> bool {
    node.kind() == NodeType::Directory
}

impl TmpNode {
    pub(super) fn find(&self, name: &[u8]) -> Result<Arc<TmpNode>> {
        let dir = self.dir()?;
        check_length(name)?;
        dir.read().names.get(name).cloned().ok_or(Errno::ENOENT)
    }

    pub(super) fn make(&self, name: &[u8], node: &NewNode<'_>) -> Result<Arc<TmpNode>> {
        let dir = self.dir()?;
        check_length(name)?;
        let _tree = self.fs.tree.lock();
        {
            let entries = dir.read();
            if entries.names.get(name).is_some() {
                return Err(Errno::EEXIST);
            }
            if entries.dead {
                return Err(Errno::ENOENT);
            }
        }
        let (perm, gid) = self.with_attr(|attr| (attr.perm, attr.gid));
        let made = TmpNode::new(&self.fs, None, &inherit(node, perm, gid), false)?;
        dir.write().names.insert(name, made.clone());
        self.entries_changed(1, if is_dir(&made) { 1 } else { 0 });
        Ok(made)
    }

    pub(super) fn add_link(&self, name: &[u8], target: Arc<TmpNode>) -> Result<()> {
        let dir = self.dir()?;
        check_length(name)?;
        let _tree = self.fs.tree.lock();
        let mut entries = dir.write();
        if entries.names.get(name).is_some() {
            return Err(Errno::EEXIST);
        }
        if is_dir(&target) {
            return Err(Errno::EPERM);
        }
        if entries.dead {
            return Err(Errno::ENOENT);
        }
        let linkable = target.linkable.swap(false, Ordering::Relaxed);
        target.with_attr(|attr| match attr.nlink {
            0 if !linkable => Err(Errno::ENOENT),
            u32::MAX => Err(Errno::EMLINK),
            _ => {
                attr.nlink += 1;
                Ok(())
            }
        })?;
        target.changed();
        entries.names.insert(name, target);
        drop(entries);
        self.entries_changed(1, 0);
        Ok(())
    }

    pub(super) fn remove(&self, name: &[u8], directory: bool) -> Result<()> {
        let dir = self.dir()?;
        check_length(name)?;
        let _tree = self.fs.tree.lock();
        let node = dir.read().names.get(name).cloned().ok_or(Errno::ENOENT)?;
        match (directory, is_dir(&node)) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            _ => {}
        }
        node.bury()?;
        dir.write().names.remove(name);
        self.entries_changed(-1, if directory { -1 } else { 0 });
        Ok(())
    }

    /// Takes one link from a node whose name goes; a directory must be empty, and gets no entries any more.
    fn bury(&self) -> Result<()> {
        if let Ok(dir) = self.dir() {
            let mut entries = dir.write();
            if !entries.names.is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            entries.dead = true;
        }
        let gone = if is_dir(self) { 2 } else { 1 };
        self.with_attr(|attr| attr.nlink = attr.nlink.saturating_sub(gone));
        self.changed();
        Ok(())
    }

    /// Accounts for entries that came or went, of which `subdirs` were directories.
    fn entries_changed(&self, entries: i64, subdirs: i32) {
        self.with_attr(|attr| {
            attr.size = attr.size.saturating_add_signed(entries * ENTRY_SIZE as i64);
            attr.nlink = attr.nlink.saturating_add_signed(subdirs);
        });
        self.modified();
    }

    pub(super) fn move_to(&self, old: &[u8], to: Arc<TmpNode>, new: &[u8], flags: RenameFlags) -> Result<()> {
        let (from_dir, to_dir) = (self.dir()?, to.dir()?);
        check_length(old)?;
        check_length(new)?;
        if flags.contains(RenameFlags::EXCHANGE) && flags != RenameFlags::EXCHANGE {
            return Err(Errno::EINVAL);
        }
        let _tree = self.fs.tree.lock();
        let node = from_dir.read().names.get(old).cloned().ok_or(Errno::ENOENT)?;
        let target = to_dir.read().names.get(new).cloned();
        if to_dir.read().dead {
            return Err(Errno::ENOENT);
        }
        if flags.contains(RenameFlags::NOREPLACE) && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if flags.contains(RenameFlags::EXCHANGE) {
            let target = target.ok_or(Errno::ENOENT)?;
            return self.exchange((old, node), &to, (new, target), [from_dir, to_dir]);
        }
        if let Some(target) = &target {
            if Arc::ptr_eq(target, &node) {
                return Ok(());
            }
            match (is_dir(&node), is_dir(target)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ => {}
            }
        }
        let whiteout = flags.contains(RenameFlags::WHITEOUT).then(|| self.whiteout()).transpose()?;
        if let Some(target) = &target {
            target.bury()?;
        }
        let directory = i32::from(is_dir(&node));
        to_dir.write().names.insert(new, node.clone());
        to.entries_changed(if target.is_some() { 0 } else { 1 }, if target.is_some() { 0 } else { directory });
        from_dir.write().names.remove(old);
        self.entries_changed(-1, -directory);
        if let Some(whiteout) = whiteout {
            from_dir.write().names.insert(old, whiteout);
            self.entries_changed(1, 0);
        }
        node.changed();
        Ok(())
    }

    /// A character device 0:0, which an overlay takes for a deleted name.
    fn whiteout(&self) -> Result<Arc<TmpNode>> {
        let kind = NodeType::CharDevice;
        TmpNode::new(&self.fs, None, &NewNode { kind, perm: 0, uid: 0, gid: 0, rdev: 0, target: b"" }, false)
    }

    fn exchange(
        &self,
        (old, node): (&[u8], Arc<TmpNode>),
        to: &TmpNode,
        (new, target): (&[u8], Arc<TmpNode>),
        [from_dir, to_dir]: [&RwLock<Dir>; 2],
    ) -> Result<()> {
        let moved = i32::from(is_dir(&node)) - i32::from(is_dir(&target));
        node.changed();
        target.changed();
        to_dir.write().names.insert(new, node);
        from_dir.write().names.insert(old, target);
        to.entries_changed(0, moved);
        self.entries_changed(0, -moved);
        Ok(())
    }
}
