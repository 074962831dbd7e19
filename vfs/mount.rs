//! Mounts and mount namespaces: `mount(2)`, `umount(2)`, `pivot_root(2)`, `mount_namespaces(7)`.
//!
//! A mount holds what is mounted on it, by dentry; a child knows its parent weakly. So a path walk finds what is mounted
//! without the namespace, and only where the dentry says that there is something (one load). Changes to all trees are
//! serialised by one lock, as a change in one may spread to others: [`propagation`](super::propagation).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bitflags::bitflags;
use parking_lot::{Mutex, RwLock};

use crate::errno::{Errno, Result};
use crate::vfs::dentry::{Dentry, Superblock, shrink};
use crate::vfs::inode::{FileSystem, NodeType};
use crate::vfs::path::Path;
use crate::vfs::propagation::{Kinship, Placed, Propagation, Role, copies_for_followers, followers};

bitflags! {
    /// Flags of one mount, with the values of `mount(2)`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    #[allow(missing_docs, reason = "the names are mount(2)'s, without MS_")]
    pub struct MountFlags: u64 {
        const RDONLY = 1;
        const NOSUID = 2;
        const NODEV = 4;
        const NOEXEC = 8;
        const SYNCHRONOUS = 16;
        const DIRSYNC = 128;
        const NOSYMFOLLOW = 256;
        const NOATIME = 1024;
        const NODIRATIME = 2048;
        const RELATIME = 1 << 21;
        const STRICTATIME = 1 << 24;
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A mounted file system, or part of one.
pub struct Mount {
    superblock: Arc<Superblock>,
    root: Arc<Dentry>,
    flags: AtomicU64,
    source: String,
    id: u64,
    /// The namespace; `None` when it is in none (yet, or any more). Leaf lock.
    namespace: Mutex<Option<Arc<Population>>>,
    /// Where it is mounted; `None` for the root of a namespace and what was detached.
    place: RwLock<Option<(Weak<Mount>, Arc<Dentry>)>>,
    /// What is mounted here, by the address of the dentry, which each child keeps alive.
    children: RwLock<HashMap<usize, Arc<Mount>>>,
    pub(super) role: Mutex<Role>,
}

/// The number of a namespace, and how many mounts it has.
struct Population {
    namespace: u64,
    count: AtomicUsize,
}

/// Serialises changes of all trees of mounts. What is taken out of a tree is dropped after this is given up.
static TREES: Mutex<()> = Mutex::new(());

impl Mount {
    fn new(superblock: Arc<Superblock>, root: Arc<Dentry>, flags: MountFlags, source: &str) -> Arc<Mount> {
        Arc::new(Mount {
            superblock,
            root,
            flags: AtomicU64::new(flags.bits()),
            source: source.to_owned(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            namespace: Mutex::default(),
            place: RwLock::default(),
            children: RwLock::default(),
            role: Mutex::default(),
        })
    }

    /// A mount that is in no namespace: for the sentry's own files (`memfd`, System V segments).
    pub fn detached(fs: &Arc<dyn FileSystem>, flags: MountFlags, source: &str) -> Result<Arc<Mount>> {
        let superblock = Superblock::of(fs);
        let root = superblock.root()?;
        Ok(Mount::new(superblock, root, flags, source))
    }

    /// As [`Mount::detached`], for a file system that nobody else mounts: the end of a magic link. Nothing is registered.
    pub(super) fn of_one_file(fs: &Arc<dyn FileSystem>) -> Result<Arc<Mount>> {
        let superblock = Superblock::alone(fs);
        let root = superblock.root()?;
        Ok(Mount::new(superblock, root, MountFlags::empty(), "none"))
    }

    /// What is mounted.
    pub fn superblock(&self) -> &Arc<Superblock> {
        &self.superblock
    }

    /// The file system.
    pub fn fs(&self) -> &Arc<dyn FileSystem> {
        &self.superblock.fs
    }

    /// The directory (or file) of the file system that is seen at the mount point.
    pub fn root(&self) -> &Arc<Dentry> {
        &self.root
    }

    /// Its flags.
    pub fn flags(&self) -> MountFlags {
        MountFlags::from_bits_truncate(self.flags.load(Ordering::Relaxed))
    }

    /// Whether nothing may be changed through it.
    pub fn is_read_only(&self) -> bool {
        self.flags().contains(MountFlags::RDONLY) || self.superblock.is_read_only()
    }

    /// What was given as its source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its number, unique in the sandbox: `mnt_id`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it is mounted; `None` for the root of a namespace and what was detached.
    pub fn mountpoint(&self) -> Option<Path> {
        let place = self.place.read();
        let (parent, dentry) = place.as_ref()?;
        Some(Path { mount: parent.upgrade()?, dentry: dentry.clone() })
    }

    /// What is mounted on this dentry of this mount.
    pub(super) fn child_at(&self, dentry: &Arc<Dentry>) -> Option<Arc<Mount>> {
        self.children.read().get(&(Arc::as_ptr(dentry) as usize)).cloned()
    }

    /// Whether it is in a namespace.
    pub(super) fn is_attached(&self) -> bool {
        self.namespace.lock().is_some()
    }

    /// The number of its namespace; 0 for none.
    pub(super) fn namespace_id(&self) -> u64 {
        self.namespace.lock().as_ref().map_or(0, |population| population.namespace)
    }

    /// How many mounts its namespace may get.
    pub(super) fn room(&self) -> usize {
        let count = self.namespace.lock().as_ref().map_or(MOUNT_MAX, |own| own.count.load(Ordering::Relaxed));
        MOUNT_MAX.saturating_sub(count)
    }

    fn enter(&self, population: &Arc<Population>) {
        self.leave_namespace();
        population.count.fetch_add(1, Ordering::Relaxed);
        *self.namespace.lock() = Some(population.clone());
    }

    fn leave_namespace(&self) {
        if let Some(population) = self.namespace.lock().take() {
            population.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn children(&self) -> Vec<Arc<Mount>> {
        let mut children: Vec<_> = self.children.read().values().cloned().collect();
        children.sort_by_key(|child| child.id);
        children
    }
}

/// A task's view of what is mounted where.
pub struct MountNamespace {
    id: u64,
    root: Mutex<Arc<Mount>>,
    population: Arc<Population>,
}

bitflags! {
    /// `umount2(2)`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct UmountFlags: u32 {
        /// Accepted: there is no request that could be cut off.
        const FORCE = 1;
        /// Detach now, clean up when no longer busy.
        const DETACH = 2;
        /// Accepted with `EAGAIN` the first time on Linux; not supported (`EINVAL`).
        const EXPIRE = 4;
        /// For the path walk: do not follow a symbolic link.
        const NOFOLLOW = 8;
    }
}

/// How many mounts a namespace may have: `/proc/sys/fs/mount-max`.
pub const MOUNT_MAX: usize = 100_000;

static NEXT_NAMESPACE: AtomicU64 = AtomicU64::new(1);

impl MountNamespace {
    /// A namespace whose root is the root of `fs`.
    pub fn new(fs: &Arc<dyn FileSystem>, flags: MountFlags, source: &str) -> Result<Arc<MountNamespace>> {
        Ok(MountNamespace::with_root(Mount::detached(fs, flags, source)?))
    }

    fn with_root(root: Arc<Mount>) -> Arc<MountNamespace> {
        let id = NEXT_NAMESPACE.fetch_add(1, Ordering::Relaxed);
        let population = Arc::new(Population { namespace: id, count: AtomicUsize::new(0) });
        root.enter(&population);
        Arc::new(MountNamespace { id, root: Mutex::new(root), population })
    }

    /// Its number, unique in the sandbox.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The root, with what is mounted on it.
    pub fn root(&self) -> Path {
        let mut root = Path::root_of(self.root.lock().clone());
        root.cross_down();
        root
    }

    /// Mounts `fs` at `at`. The caller has the right to (`CAP_SYS_ADMIN`). `EINVAL` (`at` is not in this namespace),
    /// `ENOENT` (it was removed), `ENOTDIR`, `ENOSPC` (too many).
    pub fn mount(&self, fs: &Arc<dyn FileSystem>, at: &Path, flags: MountFlags, source: &str) -> Result<Arc<Mount>> {
        let mount = Mount::detached(fs, flags, source)?;
        self.attach_new(vec![mount.clone()], at)?;
        Ok(mount)
    }

    /// `mount(MS_BIND)`, with `MS_REC` also what is mounted beneath `source`, but for what is unbindable. Errors as
    /// [`MountNamespace::mount`]; `EINVAL` also for an unbindable source, or one that is not in this namespace.
    pub fn bind(&self, source: &Path, at: &Path, recursive: bool) -> Result<Arc<Mount>> {
        self.bind_if(source, at, recursive, || self.check(source))
    }

    /// As [`MountNamespace::bind`], for one of the sentry's own files, in a mount that is in no namespace.
    pub fn bind_own(&self, source: &Path, at: &Path) -> Result<Arc<Mount>> {
        self.bind_if(source, at, false, || Ok(()))
    }

    /// `check` is asked while the trees stand still.
    fn bind_if(
        &self,
        source: &Path,
        at: &Path,
        recursive: bool,
        check: impl FnOnce() -> Result<()>,
    ) -> Result<Arc<Mount>> {
        let copies = {
            let _trees = TREES.lock();
            check()?;
            if source.mount.is_unbindable() {
                return Err(Errno::EINVAL);
            }
            copy_tree(source, recursive, self.room(), Kinship::Twin)?
        };
        let top = copies.first().map(|(_, copy)| copy.clone()).ok_or(Errno::EINVAL)?;
        self.attach_new(copies.into_iter().map(|(_, copy)| copy).collect(), at)?;
        Ok(top)
    }

    /// `mount(MS_MOVE)`. `EINVAL` (not a mount point, the root, into itself, or from a shared mount; something unbindable to a
    /// shared one), `ENOTDIR`, `ELOOP`, `ENOSPC`.
    pub fn move_mount(&self, from: &Path, at: &Path) -> Result<()> {
        let _trees = TREES.lock();
        self.check(from)?;
        let mut at = at.clone();
        at.cross_down();
        self.check_target(&at, from.mount.root())?;
        let parent = from.mount.mountpoint().ok_or(Errno::EINVAL)?.mount;
        if !Arc::ptr_eq(&from.dentry, from.mount.root()) || parent.is_shared() {
            return Err(Errno::EINVAL);
        }
        let tree = tree_of(&from.mount);
        if at.mount.is_shared() && tree.iter().any(|mount| mount.is_unbindable()) {
            return Err(Errno::EINVAL);
        }
        let mut above = Some(at.mount.clone());
        while let Some(mount) = above {
            if Arc::ptr_eq(&mount, &from.mount) {
                return Err(Errno::ELOOP);
            }
            above = mount.mountpoint().map(|place| place.mount);
        }
        let copies = copies_for_followers(&tree, &at, self.room())?;
        detach(&from.mount);
        attach(&from.mount, &at);
        copies.into_iter().for_each(attach_copy);
        Ok(())
    }

    /// `umount2(2)` of what is mounted at `target`, which is taken over so that its own reference does not count, and of what
    /// is mounted there in the mounts that follow. `EINVAL` (not a mount point, or the root), `EBUSY` (in use; not with
    /// `DETACH`).
    pub fn umount(&self, mut target: Path, flags: UmountFlags) -> Result<()> {
        if flags.contains(UmountFlags::EXPIRE) {
            return Err(Errno::EINVAL);
        }
        target.cross_down();
        let trees = TREES.lock();
        self.check(&target)?;
        let mount = target.mount;
        let place = mount.mountpoint().ok_or(Errno::EINVAL)?;
        if !Arc::ptr_eq(&target.dentry, &mount.root) {
            return Err(Errno::EINVAL);
        }
        drop(target.dentry);
        // Two references are the parent's and ours.
        let mut busy = Arc::strong_count(&mount) > 2 || !mount.children.read().is_empty();
        for follower in followers(&place.mount) {
            let copy = follower.child_at(&place.dentry);
            busy |= copy.is_some_and(|copy| copy.children.read().is_empty() && Arc::strong_count(&copy) > 2);
        }
        if busy && !flags.contains(UmountFlags::DETACH) {
            return Err(Errno::EBUSY);
        }
        drop(place);
        let mut gone = Vec::new();
        for mount in tree_of(&mount).into_iter().rev() {
            gone.extend(unmount_in_followers(&mount));
        }
        detach(&mount);
        let superblock = mount.superblock.clone();
        gone.extend(dissolve(mount));
        drop(trees);
        drop(gone);
        if !busy {
            // The superblock, this mount's root, and nothing else: no other mount shows it.
            shrink(Some(&superblock));
        }
        Ok(())
    }

    /// `mount(MS_SHARED)` and the like: the propagation type of the mount at `at`, with `recursive` of all beneath. `EINVAL`
    /// when `at` is not a mount point. OCI's `rootfsPropagation`: with [`MountNamespace::root`].
    pub fn set_propagation(&self, at: &Path, to: Propagation, recursive: bool) -> Result<()> {
        let _trees = TREES.lock();
        self.check_mount_point(at)?;
        let mounts = if recursive { tree_of(&at.mount) } else { vec![at.mount.clone()] };
        mounts.iter().for_each(|mount| mount.set_role(to));
        Ok(())
    }

    /// `mount(MS_REMOUNT)`: new flags for the mount and, unless `bind`, whether the file system is read-only.
    /// `EINVAL` when `at` is not a mount point.
    pub fn remount(&self, at: &Path, flags: MountFlags, bind: bool) -> Result<()> {
        let _trees = TREES.lock();
        self.check_mount_point(at)?;
        at.mount.flags.store(flags.bits(), Ordering::Relaxed);
        if !bind {
            at.mount.superblock.read_only.store(flags.contains(MountFlags::RDONLY), Ordering::Relaxed);
        }
        Ok(())
    }

    /// `pivot_root(2)` for a process whose root is `root`. The caller then replaces the root and working directory of
    /// every task that had `root` by `new_root`. `EBUSY`, `EINVAL` (shared mounts among others), `ENOTDIR`.
    pub fn pivot_root(&self, new_root: &Path, put_old: &Path, root: &Path) -> Result<()> {
        let _trees = TREES.lock();
        for path in [new_root, put_old, root] {
            self.check(path)?;
        }
        if !new_root.dentry.is_dir() || !put_old.dentry.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        if Arc::ptr_eq(&new_root.mount, &root.mount) || Arc::ptr_eq(&put_old.mount, &root.mount) {
            return Err(Errno::EBUSY);
        }
        let is_top = |path: &Path| Arc::ptr_eq(&path.dentry, path.mount.root());
        let old_place = root.mount.mountpoint();
        let new_place = new_root.mount.mountpoint();
        let shared = |place: &Option<Path>| place.as_ref().is_some_and(|place| place.mount.is_shared());
        if put_old.mount.is_shared() || shared(&old_place) || shared(&new_place) {
            return Err(Errno::EINVAL);
        }
        if !is_top(new_root) || !is_top(root) || new_root.mount.mountpoint().is_none() || !beneath(new_root, put_old) {
            return Err(Errno::EINVAL);
        }
        let mut namespace_root = self.root.lock();
        let was_top = Arc::ptr_eq(&namespace_root, &root.mount);
        if (!was_top && old_place.is_none()) || !beneath(root, new_root) {
            return Err(Errno::EINVAL);
        }
        detach(&new_root.mount);
        if let Some(place) = old_place {
            detach(&root.mount);
            attach(&new_root.mount, &place);
        } else {
            *namespace_root = new_root.mount.clone();
        }
        attach(&root.mount, put_old);
        Ok(())
    }

    /// A copy for `unshare(CLONE_NEWNS)`. Each of `paths` (the task's root and working directory) is moved to the copy of
    /// its mount.
    pub fn copy(&self, paths: &mut [&mut Path]) -> Result<Arc<MountNamespace>> {
        let _one_moment = TREES.lock();
        let copies = copy_all(&Path::root_of(self.root.lock().clone()), MOUNT_MAX)?;
        let root = copies.first().map(|(_, copy)| copy.clone()).ok_or(Errno::EINVAL)?;
        let made = MountNamespace::with_root(root);
        for (original, copy) in &copies {
            copy.enter(&made.population);
            for path in paths.iter_mut().filter(|path| Arc::ptr_eq(&path.mount, original)) {
                path.mount = copy.clone();
            }
        }
        Ok(made)
    }

    /// Every mount, in the order in which they were made.
    pub(super) fn mounts(&self) -> Vec<Arc<Mount>> {
        let _one_moment = TREES.lock();
        let mut mounts = tree_of(&self.root.lock());
        mounts.sort_by_key(|mount| mount.id);
        mounts
    }

    /// Whether a path lies in this namespace. `EINVAL`.
    fn check(&self, path: &Path) -> Result<()> {
        if path.mount.namespace_id() == self.id { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Whether a path is a mount point of this namespace. `EINVAL`.
    fn check_mount_point(&self, path: &Path) -> Result<()> {
        self.check(path)?;
        if Arc::ptr_eq(&path.dentry, path.mount.root()) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// How many mounts may be added.
    fn room(&self) -> usize {
        MOUNT_MAX.saturating_sub(self.population.count.load(Ordering::Relaxed))
    }

    fn check_target(&self, at: &Path, root: &Arc<Dentry>) -> Result<()> {
        self.check(at)?;
        if at.dentry.is_deleted() {
            return Err(Errno::ENOENT);
        }
        let directory = |dentry: &Dentry| dentry.kind() == Some(NodeType::Directory);
        if directory(root) == directory(&at.dentry) { Ok(()) } else { Err(Errno::ENOTDIR) }
    }

    /// Attaches a tree of new mounts, of which the first is the top, here and in the mounts that follow.
    fn attach_new(&self, mounts: Vec<Arc<Mount>>, at: &Path) -> Result<()> {
        let trees = TREES.lock();
        let top = mounts.first().ok_or(Errno::EINVAL)?;
        let mut at = at.clone();
        at.cross_down();
        let prepared = self.check_target(&at, top.root()).and_then(|()| {
            let room = self.room().checked_sub(mounts.len()).ok_or(Errno::ENOSPC)?;
            copies_for_followers(&mounts, &at, room)
        });
        let copies = match prepared {
            Ok(copies) => copies,
            Err(error) => {
                let gone = dissolve(top.clone());
                drop(trees);
                drop(gone);
                return Err(error);
            }
        };
        for mount in &mounts {
            mount.enter(&self.population);
        }
        attach(top, &at);
        copies.into_iter().for_each(attach_copy);
        Ok(())
    }
}

impl Drop for MountNamespace {
    fn drop(&mut self) {
        let trees = TREES.lock();
        let gone = dissolve(self.root.get_mut().clone());
        drop(trees);
        drop(gone);
    }
}

/// A mount and all beneath it, those above first.
fn tree_of(top: &Arc<Mount>) -> Vec<Arc<Mount>> {
    let mut tree = vec![top.clone()];
    let mut next = 0;
    while let Some(mount) = tree.get(next).cloned() {
        tree.extend(mount.children());
        next += 1;
    }
    tree
}

/// Attaches what was copied for a follower. What is mounted there already comes to sit on top.
fn attach_copy((tree, at): Placed) {
    let Some(top) = tree.first() else { return };
    if let Some(population) = at.mount.namespace.lock().clone() {
        tree.iter().for_each(|mount| mount.enter(&population));
    }
    let above = at.mount.child_at(&at.dentry);
    if let Some(above) = &above {
        detach(above);
    }
    attach(top, &at);
    if let Some(above) = above {
        let mut place = Path::root_of(top.clone());
        place.cross_down();
        attach(&above, &place);
    }
}

/// Unmounts in the mounts that follow what corresponds to `mount`, unless other things are mounted there. Returns what is
/// gone.
fn unmount_in_followers(mount: &Arc<Mount>) -> Vec<Arc<Mount>> {
    let Some(place) = mount.mountpoint() else { return Vec::new() };
    let mut gone = Vec::new();
    for follower in followers(&place.mount) {
        let Some(copy) = follower.child_at(&place.dentry) else { continue };
        let children = copy.children();
        match children.as_slice() {
            [] => detach(&copy),
            // Only covered, by something that takes its place.
            [cover] if cover.mountpoint().is_some_and(|at| Arc::ptr_eq(&at.dentry, copy.root())) => {
                detach(cover);
                detach(&copy);
                attach(cover, &Path { mount: follower, dentry: place.dentry.clone() });
            }
            _ => continue,
        }
        gone.extend(dissolve(copy));
    }
    gone
}

/// Whether `path` lies beneath `top` or is it, through mounts.
fn beneath(top: &Path, path: &Path) -> bool {
    let mut at = path.clone();
    while !Arc::ptr_eq(&at.mount, &top.mount) {
        match at.mount.mountpoint() {
            Some(place) => at = place,
            None => return false,
        }
    }
    top.dentry.is_ancestor_of(&at.dentry)
}

fn attach(mount: &Arc<Mount>, at: &Path) {
    at.dentry.add_mount();
    *mount.place.write() = Some((Arc::downgrade(&at.mount), at.dentry.clone()));
    at.mount.children.write().insert(Arc::as_ptr(&at.dentry) as usize, mount.clone());
}

/// Takes a mount from where it is mounted; what is mounted on it stays on it.
fn detach(mount: &Arc<Mount>) {
    let Some((parent, dentry)) = mount.place.write().take() else { return };
    dentry.remove_mount();
    if let Some(parent) = parent.upgrade() {
        parent.children.write().remove(&(Arc::as_ptr(&dentry) as usize));
    }
}

/// Takes a tree of mounts apart, so that each goes when its last user does. In a loop: the tree may be deep. Returns them, to
/// be dropped without locks.
pub(super) fn dissolve(top: Arc<Mount>) -> Vec<Arc<Mount>> {
    let all = tree_of(&top);
    for mount in &all {
        mount.leave_namespace();
        mount.set_role(Propagation::Private);
        mount.children().iter().for_each(detach);
    }
    all
}

/// Copies a mount as seen from `source` down and, if `recursive`, what is mounted beneath and is bindable. Pairs of original
/// and copy, the top first. `ENOSPC` when there are more than `limit`.
pub(super) fn copy_tree(
    source: &Path,
    recursive: bool,
    limit: usize,
    kinship: Kinship,
) -> Result<Vec<(Arc<Mount>, Arc<Mount>)>> {
    copy_those(source, limit, kinship, &|mount| recursive && !mount.is_unbindable())
}

/// Copies a mount and everything beneath, for another namespace.
fn copy_all(source: &Path, limit: usize) -> Result<Vec<(Arc<Mount>, Arc<Mount>)>> {
    copy_those(source, limit, Kinship::Twin, &|_| true)
}

fn copy_those(
    source: &Path,
    limit: usize,
    kinship: Kinship,
    wanted: &dyn Fn(&Mount) -> bool,
) -> Result<Vec<(Arc<Mount>, Arc<Mount>)>> {
    let copy = |mount: &Arc<Mount>, root: &Arc<Dentry>| {
        let made = Mount::new(mount.superblock.clone(), root.clone(), mount.flags(), &mount.source);
        made.inherit(mount, kinship);
        made
    };
    if limit == 0 {
        return Err(Errno::ENOSPC);
    }
    let mut copies = vec![(source.mount.clone(), copy(&source.mount, &source.dentry))];
    let mut next = 0;
    while next < copies.len() {
        let (original, copied) = copies[next].clone();
        next += 1;
        for child in original.children().into_iter().filter(|child| wanted(child)) {
            let Some(place) = child.mountpoint() else { continue };
            if !copied.root.is_ancestor_of(&place.dentry) {
                continue;
            }
            if copies.len() >= limit {
                dissolve(copies[0].1.clone());
                return Err(Errno::ENOSPC);
            }
            let made = copy(&child, &child.root);
            attach(&made, &Path { mount: copied.clone(), dentry: place.dentry });
            copies.push((child, made));
        }
    }
    Ok(copies)
}
