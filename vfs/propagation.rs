//! Shared mounts: `mount_namespaces(7)`, "Shared subtrees".
//!
//! ```text
//! peer group 1:  A ── B ── C      what is mounted on, or unmounted from, one of them is so on all
//!                     │
//!                     ▼ slaves
//!                D, and E ── F = peer group 2 whose master is 1: what happens in 1 happens here too, not the other way
//! ```
//!
//! Copies of a mount (`MS_BIND`, a new mount namespace) join its group and have its master. What is mounted on a shared
//! mount becomes shared itself, its copies on the peers are its peers, those on slaves its slaves.
//!
//! All of this changes with the lock of all trees held; the locks here are leaves.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::errno::Result;
use crate::vfs::dentry::Dentry;
use crate::vfs::mount::{Mount, copy_tree};
use crate::vfs::path::Path;

/// The propagation type of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// `MS_SHARED`.
    Shared,
    /// `MS_SLAVE`.
    Slave,
    /// `MS_PRIVATE`.
    Private,
    /// `MS_UNBINDABLE`.
    Unbindable,
}

impl Propagation {
    /// From a name of mount(8), which OCI's `rootfsPropagation` and mount options use, with whether it is for all mounts
    /// beneath as well (`rshared`). `None` for other words.
    pub fn from_option(option: &str) -> Option<(Propagation, bool)> {
        Some(match option {
            "shared" => (Propagation::Shared, false),
            "rshared" => (Propagation::Shared, true),
            "slave" => (Propagation::Slave, false),
            "rslave" => (Propagation::Slave, true),
            "private" => (Propagation::Private, false),
            "rprivate" => (Propagation::Private, true),
            "unbindable" => (Propagation::Unbindable, false),
            "runbindable" => (Propagation::Unbindable, true),
            _ => return None,
        })
    }
}

type Mounts = Mutex<BTreeMap<u64, Weak<Mount>>>;

/// Mounts that share what is mounted on them.
pub(super) struct PeerGroup {
    id: u64,
    members: Mounts,
    /// Mounts whose master this is.
    slaves: Mounts,
}

impl PeerGroup {
    fn new() -> Arc<PeerGroup> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(PeerGroup { id, members: Mutex::default(), slaves: Mutex::default() })
    }
}

fn alive(mounts: &Mounts) -> Vec<Arc<Mount>> {
    mounts.lock().values().filter_map(Weak::upgrade).collect()
}

/// A mount's part in propagation; private by default.
#[derive(Clone, Default)]
pub(super) struct Role {
    group: Option<Arc<PeerGroup>>,
    master: Option<Arc<PeerGroup>>,
    pub(super) unbindable: bool,
}

/// What a copy of a mount is to the original.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kinship {
    /// The same: peer if the original is shared, slave of its master if it has one.
    Twin,
    /// A slave of the original's group; shared as well, in a group of its own, or not.
    Slave(bool),
}

impl Mount {
    fn group(&self) -> Option<Arc<PeerGroup>> {
        self.role.lock().group.clone()
    }

    fn master(&self) -> Option<Arc<PeerGroup>> {
        self.role.lock().master.clone()
    }

    /// Whether it is in a peer group.
    pub fn is_shared(&self) -> bool {
        self.role.lock().group.is_some()
    }

    /// Whether it cannot be bound elsewhere.
    pub fn is_unbindable(&self) -> bool {
        self.role.lock().unbindable
    }

    /// The numbers of its peer group and of its master, if any.
    pub fn peer_groups(&self) -> (Option<u64>, Option<u64>) {
        let role = self.role.lock();
        (role.group.as_ref().map(|group| group.id), role.master.as_ref().map(|master| master.id))
    }

    /// The nearest group above it that has a mount which `is_visible`.
    pub(super) fn dominating_group(&self, is_visible: impl Fn(&Arc<Mount>) -> bool) -> Option<u64> {
        let mut above = self.master();
        while let Some(group) = above {
            let members = alive(&group.members);
            if members.iter().any(&is_visible) {
                return Some(group.id);
            }
            above = members.first().and_then(|member| member.master());
        }
        None
    }

    fn join(self: &Arc<Self>, group: Arc<PeerGroup>) {
        group.members.lock().insert(self.id(), Arc::downgrade(self));
        self.role.lock().group = Some(group);
    }

    fn set_master(self: &Arc<Self>, master: Option<Arc<PeerGroup>>) {
        let before = std::mem::replace(&mut self.role.lock().master, master.clone());
        if let Some(before) = before {
            before.slaves.lock().remove(&self.id());
        }
        if let Some(master) = master {
            master.slaves.lock().insert(self.id(), Arc::downgrade(self));
        }
    }

    /// Leaves the peer group. Returns it if others stay in it; of one that ends, the slaves get its master.
    fn leave(self: &Arc<Self>) -> Option<Arc<PeerGroup>> {
        let group = self.role.lock().group.take()?;
        group.members.lock().remove(&self.id());
        if !alive(&group.members).is_empty() {
            return Some(group);
        }
        let master = self.master();
        alive(&group.slaves).into_iter().for_each(|slave| slave.set_master(master.clone()));
        None
    }

    /// Makes it shared, if it is not, in a group of its own.
    pub(super) fn share(self: &Arc<Self>) {
        self.role.lock().unbindable = false;
        if !self.is_shared() {
            self.join(PeerGroup::new());
        }
    }

    /// Changes its type.
    pub(super) fn set_role(self: &Arc<Self>, to: Propagation) {
        match to {
            Propagation::Shared => return self.share(),
            // What is not shared stays what it is.
            Propagation::Slave => {
                if let Some(group) = self.leave() {
                    self.set_master(Some(group));
                }
                return;
            }
            Propagation::Private | Propagation::Unbindable => {}
        }
        self.leave();
        self.set_master(None);
        self.role.lock().unbindable = to == Propagation::Unbindable;
    }

    /// Gives a copy its role.
    pub(super) fn inherit(self: &Arc<Self>, original: &Mount, kinship: Kinship) {
        let role = original.role.lock().clone();
        match (kinship, role.group) {
            (Kinship::Slave(shared), Some(group)) => {
                self.set_master(Some(group));
                if shared {
                    self.share();
                }
            }
            (_, group) => {
                if let Some(group) = group {
                    self.join(group);
                }
                self.set_master(role.master);
                self.role.lock().unbindable = role.unbindable;
            }
        }
    }
}

/// A tree of mounts, the top first, and where it goes.
pub(super) type Placed = (Vec<Arc<Mount>>, Path);

/// Copies of the tree `top`, which is about to be mounted at `at`, for all that follow what happens there. The tree becomes
/// shared if `at` is. `ENOSPC` with more than `limit` mounts.
pub(super) fn copies_for_followers(tree: &[Arc<Mount>], at: &Path, limit: usize) -> Result<Vec<Placed>> {
    let (Some(group), Some(top)) = (at.mount.group(), tree.first()) else { return Ok(Vec::new()) };
    tree.iter().for_each(Mount::share);
    let mut copier =
        Copier { at: &at.dentry, seen: HashSet::from([at.mount.id()]), made: Vec::new(), left: limit, planned: 0 };
    let mut groups = HashSet::from([group.id]);
    let mut work = vec![(group, top.clone())];
    while let Some((group, source)) = work.pop() {
        for peer in alive(&group.members) {
            copier.copy(&source, &peer, Kinship::Twin)?;
        }
        for slave in alive(&group.slaves) {
            let Some(own) = slave.group() else {
                copier.copy(&source, &slave, Kinship::Slave(false))?;
                continue;
            };
            if !groups.insert(own.id) {
                continue;
            }
            // The first peer gets a slave of ours, the others its twins. Where none can, their slaves follow us directly.
            let mut first = None;
            for peer in alive(&own.members) {
                if first.is_none() {
                    first = copier.copy(&source, &peer, Kinship::Slave(true))?;
                }
            }
            work.push((own, first.unwrap_or_else(|| source.clone())));
        }
    }
    Ok(copier.made)
}

struct Copier<'a> {
    /// Where it is mounted.
    at: &'a Arc<Dentry>,
    /// Mounts that have their copy, or need none.
    seen: HashSet<u64>,
    made: Vec<Placed>,
    left: usize,
    /// How many mounts were made, whatever namespace they are for.
    planned: usize,
}

impl Copier<'_> {
    /// A copy for `follower`: its top, or `None` where the place is not to be seen in that mount.
    fn copy(&mut self, source: &Arc<Mount>, follower: &Arc<Mount>, kinship: Kinship) -> Result<Option<Arc<Mount>>> {
        // What is in no namespace is only being made.
        let reached = follower.is_attached() && follower.root().is_ancestor_of(self.at);
        if !reached || !self.seen.insert(follower.id()) {
            return Ok(None);
        }
        let room = self.left.min(follower.room().saturating_sub(self.planned));
        let copies = match copy_tree(&Path::root_of(source.clone()), true, room, kinship) {
            Ok(copies) => copies,
            Err(error) => {
                for (tree, _) in self.made.drain(..) {
                    tree.first().cloned().map(super::mount::dissolve);
                }
                return Err(error);
            }
        };
        self.left -= copies.len();
        self.planned += copies.len();
        let tree: Vec<_> = copies.into_iter().map(|(_, copy)| copy).collect();
        let top = tree.first().cloned();
        self.made.push((tree, Path { mount: follower.clone(), dentry: self.at.clone() }));
        Ok(top)
    }
}

/// All mounts where that happens too which happens at `mount`.
pub(super) fn followers(mount: &Mount) -> Vec<Arc<Mount>> {
    let Some(group) = mount.group() else { return Vec::new() };
    let mut groups = HashSet::from([group.id]);
    let mut seen = HashSet::from([mount.id()]);
    let mut found = Vec::new();
    let mut work = vec![group];
    while let Some(group) = work.pop() {
        for follower in alive(&group.members).into_iter().chain(alive(&group.slaves)) {
            if let Some(own) = follower.group()
                && groups.insert(own.id)
            {
                work.push(own);
            }
            if seen.insert(follower.id()) {
                found.push(follower);
            }
        }
    }
    found
}
