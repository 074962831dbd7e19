//! Names of an overlay: lookup, and every change.
//!
//! A change first does what may ask the lower layers (lookups, copying attributes up), then takes `tree` and looks again:
//! the lower does not change, so only slots can differ. Nothing under `tree` asks the lower.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::lower::{self, LowerNames};
use super::node::Node;
use crate::errno::{Errno, Result};
use crate::vfs::inode::{NewNode, RenameFlags};
use crate::vfs::tmpfs::{Names, check_length, inherit};

/// A changed name.
#[derive(Clone)]
pub(super) struct Slot {
    /// What it means; `None` for a whiteout.
    pub(super) node: Option<Arc<Node>>,
    /// Whether the lower has the name too: it is listed in the lower's place, and leaves a whiteout.
    pub(super) over_lower: bool,
}

/// The changes of a directory.
#[derive(Default)]
pub(super) struct Dir {
    pub(super) slots: Names<Slot>,
    /// Removed: nothing can be made in it any more.
    dead: bool,
    /// The lower's names, while somebody uses them.
    pub(super) lower_names: Weak<LowerNames>,
}

impl Node {
    /// What `name` means here.
    pub(super) fn find(&self, name: &[u8]) -> Result<Slot> {
        let dir = self.dir()?;
        check_length(name)?;
        if let Some(slot) = dir.read().slots.get(name) {
            return Ok(slot.clone());
        }
        let hits = lower::lookup(self.lower_dirs(), name)?;
        let entries = dir.read();
        if let Some(slot) = entries.slots.get(name) {
            return Ok(slot.clone());
        }
        let Some(first) = hits.first() else { return Ok(Slot { node: None, over_lower: false }) };
        let key = first.key();
        let origin = (self.arc()?, name.into());
        let mut nodes = self.fs.nodes.lock();
        if let Some(node) = nodes.get(&key).and_then(Weak::upgrade) {
            return Ok(Slot { node: Some(node), over_lower: true });
        }
        let node = Node::from_lower(&self.fs, hits, Some(origin));
        nodes.insert(key, Arc::downgrade(&node));
        Ok(Slot { node: Some(node), over_lower: true })
    }

    /// Under `tree`: what `name` means now, after it meant `seen`.
    fn look_again(&self, name: &[u8], seen: &Slot) -> Result<Slot> {
        Ok(match self.dir()?.read().slots.get(name) {
            Some(slot) => slot.clone(),
            None if seen.over_lower => seen.clone(),
            None => Slot { node: None, over_lower: false },
        })
    }

    /// Under `tree`: makes `name` mean `node`, or nothing.
    fn put(&self, name: &[u8], node: Option<Arc<Node>>, over_lower: bool) -> Result<()> {
        let mut entries = self.dir()?.write();
        let old = if node.is_none() && !over_lower {
            entries.slots.remove(name)
        } else {
            entries.slots.insert(name, Slot { node, over_lower })
        };
        drop(entries);
        drop(old);
        Ok(())
    }

    /// Under `tree`: an entry came or went, which changed the number of directories in it by `subdirs`.
    fn entries_changed(&self, subdirs: i32) -> Result<()> {
        let upper = self.upper.get().ok_or(Errno::EIO)?;
        upper.with_attr(|attr| attr.nlink = attr.nlink.saturating_add_signed(subdirs));
        upper.modified();
        Ok(())
    }

    fn alive(&self) -> Result<()> {
        if self.dir()?.read().dead { Err(Errno::ENOENT) } else { Ok(()) }
    }

    pub(super) fn make_in(&self, name: &[u8], node: &NewNode<'_>) -> Result<Arc<Node>> {
        let seen = self.find(name)?;
        if seen.node.is_some() {
            return Err(Errno::EEXIST);
        }
        let upper = self.copy_up()?;
        let _tree = self.fs.tree.lock();
        let now = self.look_again(name, &seen)?;
        if now.node.is_some() {
            return Err(Errno::EEXIST);
        }
        self.alive()?;
        let (perm, gid) = upper.with_attr(|attr| (attr.perm, attr.gid));
        let made = Node::make(&self.fs, &inherit(node, perm, gid))?;
        self.put(name, Some(made.clone()), now.over_lower)?;
        self.entries_changed(i32::from(made.is_dir()))?;
        Ok(made)
    }

    pub(super) fn add_link(&self, name: &[u8], target: &Arc<Node>) -> Result<()> {
        let seen = self.find(name)?;
        if seen.node.is_some() {
            return Err(Errno::EEXIST);
        }
        if target.is_dir() {
            return Err(Errno::EPERM);
        }
        self.copy_up()?;
        let upper = target.copy_up()?;
        let _tree = self.fs.tree.lock();
        let now = self.look_again(name, &seen)?;
        if now.node.is_some() {
            return Err(Errno::EEXIST);
        }
        self.alive()?;
        let linkable = target.linkable.swap(false, Ordering::Relaxed);
        upper.with_attr(|attr| match attr.nlink {
            0 if !linkable => Err(Errno::ENOENT),
            u32::MAX => Err(Errno::EMLINK),
            _ => {
                attr.nlink += 1;
                Ok(())
            }
        })?;
        upper.changed();
        self.put(name, Some(target.clone()), now.over_lower)?;
        self.entries_changed(0)
    }

    pub(super) fn remove(&self, name: &[u8], directory: bool) -> Result<()> {
        loop {
            let seen = self.find(name)?;
            let node = seen.node.clone().ok_or(Errno::ENOENT)?;
            match (directory, node.is_dir()) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ => {}
            }
            let names = node.prepare_burial()?;
            self.copy_up()?;
            let _tree = self.fs.tree.lock();
            let now = self.look_again(name, &seen)?;
            if !now.node.as_ref().is_some_and(|now| Arc::ptr_eq(now, &node)) {
                continue;
            }
            node.bury(names.as_deref())?;
            self.put(name, None, now.over_lower)?;
            return self.entries_changed(-i32::from(directory));
        }
    }

    /// Before `tree` is taken: what [`Node::bury`] needs of the lower. A directory's names; the count of a file's links.
    fn prepare_burial(&self) -> Result<Option<Arc<LowerNames>>> {
        if self.is_dir() {
            return self.lower_names().map(Some);
        }
        if self.hard {
            self.copy_up()?;
        }
        Ok(None)
    }

    /// Under `tree`: takes one link from a node whose name goes; a directory must be empty, and gets no entries any more.
    fn bury(&self, lower_names: Option<&LowerNames>) -> Result<()> {
        if let Ok(dir) = self.dir() {
            let mut entries = dir.write();
            let used = entries.slots.values().any(|slot| slot.node.is_some());
            let mut lower = lower_names.into_iter().flatten();
            if used || lower.any(|lower| entries.slots.get(&lower.name).is_none()) {
                return Err(Errno::ENOTEMPTY);
            }
            entries.dead = true;
        }
        let Some(upper) = self.upper.get() else {
            self.gone.store(true, Ordering::Relaxed);
            return Ok(());
        };
        let links = upper.with_attr(|attr| {
            attr.nlink = if self.is_dir() { 0 } else { attr.nlink.saturating_sub(1) };
            attr.nlink
        });
        upper.changed();
        if let Some(key) = self.key.filter(|_| self.hard && links == 0) {
            let unpinned = self.fs.pinned.lock().remove(&key);
            drop(unpinned);
        }
        Ok(())
    }

    pub(super) fn move_to(&self, old: &[u8], to: &Arc<Node>, new: &[u8], flags: RenameFlags) -> Result<()> {
        // As Linux has it: an overlay cannot be another overlay's upper layer.
        if flags.contains(RenameFlags::WHITEOUT) || (flags.contains(RenameFlags::EXCHANGE) && flags.bits() != 2) {
            return Err(Errno::EINVAL);
        }
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        loop {
            let (seen_old, seen_new) = (self.find(old)?, to.find(new)?);
            let node = seen_old.node.clone().ok_or(Errno::ENOENT)?;
            let target = seen_new.node.clone();
            check_target(&node, target.as_deref(), flags)?;
            if target.as_ref().is_some_and(|target| Arc::ptr_eq(target, &node)) {
                return Ok(());
            }
            self.copy_up()?;
            to.copy_up()?;
            node.copy_up()?;
            let names = match &target {
                Some(target) if exchange => target.copy_up().map(|_| None)?,
                Some(target) => target.prepare_burial()?,
                None => None,
            };
            let _tree = self.fs.tree.lock();
            let (now_old, now_new) = (self.look_again(old, &seen_old)?, to.look_again(new, &seen_new)?);
            if !same(&now_old.node, &seen_old.node) || !same(&now_new.node, &seen_new.node) {
                continue;
            }
            to.alive()?;
            let subdir = i32::from(node.is_dir());
            match target {
                Some(target) if exchange => {
                    let moved = subdir - i32::from(target.is_dir());
                    target.upper.get().ok_or(Errno::EIO)?.changed();
                    self.put(old, Some(target), now_old.over_lower)?;
                    self.entries_changed(-moved)?;
                    to.entries_changed(moved)?;
                }
                target => {
                    if let Some(target) = &target {
                        target.bury(names.as_deref())?;
                    }
                    self.put(old, None, now_old.over_lower)?;
                    self.entries_changed(-subdir)?;
                    to.entries_changed(if target.is_some() { 0 } else { subdir })?;
                }
            }
            node.upper.get().ok_or(Errno::EIO)?.changed();
            return to.put(new, Some(node), now_new.over_lower);
        }
    }
}

fn same(a: &Option<Arc<Node>>, b: &Option<Arc<Node>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// Whether `node` may take the place of `target`: `rename(2)`.
fn check_target(node: &Node, target: Option<&Node>, flags: RenameFlags) -> Result<()> {
    match target {
        None if flags.contains(RenameFlags::EXCHANGE) => Err(Errno::ENOENT),
        Some(_) if flags.contains(RenameFlags::NOREPLACE) => Err(Errno::EEXIST),
        Some(target) if !flags.contains(RenameFlags::EXCHANGE) => match (node.is_dir(), target.is_dir()) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}
