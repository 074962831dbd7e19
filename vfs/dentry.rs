//! The name cache.
//!
//! A directory's dentry knows its children weakly; a child keeps its parent. What keeps a name that nobody uses is the
//! cache's bounded list of recently used ones, a clock: a name that was used since the hand passed last time is passed
//! over once more. A warm lookup takes one shared lock of one directory's table and touches nothing global.
//!
//! A dentry never changes between negative and positive, or from one inode to another: it is replaced in its directory.
//! So its inode and type are read without a lock. Its place (parent and name) changes on rename.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::{Mutex, RwLock};

use crate::errno::{Errno, Result};
use crate::vfs::inode::{Caching, FileSystem, Inode, NodeType};
use crate::vfs::lease::{Leases, Stamp};

/// How many unused names are kept unless [`set_cache_limit`] says otherwise.
pub const DEFAULT_CACHE_LIMIT: usize = 64 << 10;

/// A file system that is mounted somewhere, with what all its mounts share.
pub struct Superblock {
    /// The file system.
    pub fs: Arc<dyn FileSystem>,
    pub(super) caching: Caching,
    /// [`FileSystem::forgets`].
    forgets: bool,
    /// Mounted read-only as a whole (`MS_RDONLY` of `mount` or a remount without `MS_BIND`).
    pub(super) read_only: AtomicBool,
    /// Held while a directory moves, so that two moves cannot make a loop.
    pub(super) rename: Mutex<()>,
    root: Mutex<Weak<Dentry>>,
}

impl Superblock {
    /// The superblock of `fs`: the same one for every mount of it.
    pub fn of(fs: &Arc<dyn FileSystem>) -> Arc<Superblock> {
        let mut all = ALL.lock();
        if let Some(known) = all.get(&address(fs)).and_then(Weak::upgrade) {
            return known;
        }
        let made = Superblock::alone(fs);
        all.insert(address(fs), Arc::downgrade(&made));
        made
    }

    /// A superblock of its own: for a file system that is mounted once and by its maker only.
    pub(super) fn alone(fs: &Arc<dyn FileSystem>) -> Arc<Superblock> {
        Arc::new(Superblock {
            fs: fs.clone(),
            caching: fs.caching(),
            forgets: fs.forgets(),
            read_only: AtomicBool::new(false),
            rename: Mutex::new(()),
            root: Mutex::default(),
        })
    }

    /// The root's dentry.
    pub fn root(self: &Arc<Self>) -> Result<Arc<Dentry>> {
        let mut root = self.root.lock();
        if let Some(root) = root.upgrade() {
            return Ok(root);
        }
        let made = Dentry::new(self.clone(), None, Arc::from(&b"/"[..]), Some(self.fs.root()))?;
        *root = Arc::downgrade(&made);
        Ok(made)
    }

    /// Whether nothing of it may be changed.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }
}

/// All superblocks, by the addresses of their file systems, which they keep. Leaf lock.
static ALL: LazyLock<Mutex<HashMap<usize, Weak<Superblock>>>> = LazyLock::new(Mutex::default);

fn address(fs: &Arc<dyn FileSystem>) -> usize {
    Arc::as_ptr(fs).addr()
}

impl Drop for Superblock {
    fn drop(&mut self) {
        let mut all = ALL.lock();
        // Another one of the same file system may have taken the place since this one was given up.
        if all.get(&address(&self.fs)).is_some_and(|known| std::ptr::eq(known.as_ptr(), self)) {
            all.remove(&address(&self.fs));
        }
    }
}

/// What the cache knows of a name.
pub(super) enum Known {
    /// Nothing.
    No,
    /// What it meant once: to be asked about.
    Doubtful(Arc<Dentry>),
    /// What it means.
    Good(Arc<Dentry>),
}

/// Something is mounted here, in some namespace.
const MOUNTED: u8 = 1;
/// Removed: the name is no longer in its directory.
const DELETED: u8 = 2;
/// This or something beneath is a mount point: kept even where names are not cached.
const PINNED: u8 = 4;
/// Used since the clock's hand passed.
const USED: u8 = 8;
/// Made without a name (`O_TMPFILE`) and still linkable.
const UNNAMED: u8 = 16;

struct Place {
    /// `None` for the root of a file system.
    parent: Option<Arc<Dentry>>,
    name: Arc<[u8]>,
}

/// A cached name.
pub struct Dentry {
    superblock: Arc<Superblock>,
    /// What the name means; `None` when there is no such name.
    node: Option<(Arc<dyn Inode>, NodeType)>,
    flags: AtomicU8,
    /// How many mounts, in all namespaces, sit here.
    mounts: AtomicUsize,
    place: RwLock<Place>,
    children: RwLock<HashMap<Arc<[u8]>, Weak<Dentry>>>,
    /// When the file system last said that the name means this: a [`Stamp`], with [`Caching::Lease`].
    asked: AtomicU64,
    /// Shared while a name is looked up in the file system, exclusive while names of this directory change.
    pub(super) dir: RwLock<()>,
}

impl Dentry {
    fn new(
        superblock: Arc<Superblock>,
        parent: Option<Arc<Dentry>>,
        name: Arc<[u8]>,
        inode: Option<Arc<dyn Inode>>,
    ) -> Result<Arc<Dentry>> {
        let node = match inode {
            Some(inode) => {
                let kind = inode.attr()?.kind;
                Some((inode, kind))
            }
            None => None,
        };
        Ok(Arc::new(Dentry {
            superblock,
            node,
            flags: AtomicU8::new(0),
            mounts: AtomicUsize::new(0),
            place: RwLock::new(Place { parent, name }),
            children: RwLock::default(),
            asked: AtomicU64::new(0),
            dir: RwLock::new(()),
        }))
    }

    /// A file without a name (`O_TMPFILE`), made in `dir`.
    pub(super) fn unnamed(dir: &Arc<Dentry>, inode: Arc<dyn Inode>, linkable: bool) -> Result<Arc<Dentry>> {
        let name = format!("#{}", inode.attr()?.ino).into_bytes();
        let made = Dentry::new(dir.superblock.clone(), Some(dir.clone()), name.into(), Some(inode))?;
        made.flags.fetch_or(DELETED | if linkable { UNNAMED } else { 0 }, Ordering::Relaxed);
        Ok(made)
    }

    /// The file system it belongs to.
    pub fn superblock(&self) -> &Arc<Superblock> {
        &self.superblock
    }

    /// What the name means. `ENOENT` for a name that is known not to be there.
    pub fn inode(&self) -> Result<&Arc<dyn Inode>> {
        self.node.as_ref().map(|(inode, _)| inode).ok_or(Errno::ENOENT)
    }

    /// The type of the node; `None` for a name that is known not to be there.
    pub fn kind(&self) -> Option<NodeType> {
        self.node.as_ref().map(|&(_, kind)| kind)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == Some(NodeType::Directory)
    }

    /// Its name in its directory; `/` for the root of a file system.
    pub fn name(&self) -> Arc<[u8]> {
        self.place.read().name.clone()
    }

    /// The directory that holds it; `None` for the root of a file system.
    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.place.read().parent.clone()
    }

    /// Directory and name at one moment.
    pub fn place(&self) -> (Option<Arc<Dentry>>, Arc<[u8]>) {
        let place = self.place.read();
        (place.parent.clone(), place.name.clone())
    }

    /// Whether the name was removed.
    pub fn is_deleted(&self) -> bool {
        self.has(DELETED)
    }

    /// Whether something is mounted here in some namespace: one load.
    pub fn is_mount_point(&self) -> bool {
        self.has(MOUNTED)
    }

    /// Whether it was made by `O_TMPFILE` and may still get a name through `linkat(2)`.
    pub(super) fn is_linkable_unnamed(&self) -> bool {
        self.has(UNNAMED)
    }

    /// Whether `self` is `other` or lies above it.
    pub fn is_ancestor_of(self: &Arc<Self>, other: &Arc<Dentry>) -> bool {
        let mut at = other.clone();
        loop {
            if Arc::ptr_eq(self, &at) {
                return true;
            }
            let Some(parent) = at.parent() else { return false };
            at = parent;
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    /// Counts a mount that comes to sit here, and pins the names above.
    pub(super) fn add_mount(self: &Arc<Self>) {
        self.mounts.fetch_add(1, Ordering::Relaxed);
        self.flags.fetch_or(MOUNTED, Ordering::Relaxed);
        let mut at = Some(self.clone());
        while let Some(dentry) = at {
            dentry.flags.fetch_or(PINNED, Ordering::Relaxed);
            at = dentry.parent();
        }
    }

    /// Undoes one [`Dentry::add_mount`]. Mounting is serialised per namespace only, hence the second look.
    pub(super) fn remove_mount(&self) {
        if self.mounts.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.flags.fetch_and(!MOUNTED, Ordering::SeqCst);
            if self.mounts.load(Ordering::SeqCst) > 0 {
                self.flags.fetch_or(MOUNTED, Ordering::SeqCst);
            }
        }
    }

    /// A child that is in the cache, whatever the caching of the file system.
    fn cached(&self, name: &[u8]) -> Option<Arc<Dentry>> {
        self.children.read().get(name).and_then(Weak::upgrade)
    }

    /// What is known of the child `name`, without asking the file system. Marks what is good as used.
    pub(super) fn known(&self, name: &[u8]) -> Known {
        let Some(child) = self.cached(name) else { return Known::No };
        let fresh = match self.superblock.caching {
            Caching::Forever => true,
            Caching::Lease => self.leases().is_fresh(Stamp(child.asked.load(Ordering::Relaxed))),
            Caching::Revalidate => false,
            Caching::Never => return Known::No,
        };
        if fresh {
            child.mark_used();
            return Known::Good(child);
        }
        // Of a name that was not there nobody can say whether that is still so: it is looked up.
        if child.node.is_some() { Known::Doubtful(child) } else { Known::No }
    }

    /// The child `name` from the cache, if need be after asking the file system whether it is still the same. `None` when it
    /// must be looked up.
    pub(super) fn lookup_cached(&self, name: &[u8]) -> Option<Arc<Dentry>> {
        let child = match self.known(name) {
            Known::Good(child) => return Some(child),
            Known::Doubtful(child) => child,
            Known::No => return None,
        };
        let stamp = self.stamp();
        let (Ok(dir), Ok(inode)) = (self.inode(), child.inode()) else { return None };
        if !dir.revalidate(name, inode) {
            return None;
        }
        child.asked.store(stamp.0, Ordering::Relaxed);
        child.mark_used();
        Some(child)
    }

    fn mark_used(&self) {
        if !self.has(USED) {
            self.flags.fetch_or(USED, Ordering::Relaxed);
        }
    }

    fn leases(&self) -> &Leases {
        self.superblock.fs.leases()
    }

    /// To be taken before the file system is asked. Means something with [`Caching::Lease`] only.
    fn stamp(&self) -> Stamp {
        if self.superblock.caching == Caching::Lease { self.leases().stamp() } else { Stamp::default() }
    }

    /// The child `name`, from the cache or the file system; a negative dentry when there is none. Takes the directory's
    /// lock in shared mode.
    pub(super) fn lookup(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Dentry>> {
        match self.lookup_cached(name) {
            Some(child) => Ok(child),
            None => {
                let _shared = self.dir.read();
                self.lookup_locked(name)
            }
        }
    }

    /// [`Dentry::lookup`] with the directory's lock held.
    pub(super) fn lookup_locked(self: &Arc<Self>, name: &[u8]) -> Result<Arc<Dentry>> {
        if let Some(child) = self.lookup_cached(name) {
            return Ok(child);
        }
        let stamp = self.stamp();
        let inode = match self.inode()?.lookup(name) {
            Ok(inode) => Some(inode),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error),
        };
        if self.is_deleted() && inode.is_none() {
            return Err(Errno::ENOENT);
        }
        if let Some(stale) = self.cached(name).filter(|stale| stale.has(PINNED) && inode.is_some()) {
            return Ok(stale); // what is mounted beneath must stay reachable
        }
        self.insert(name, inode, stamp)
    }

    /// Puts a new dentry for `name` into the table, in the place of an old one. When another thread looked up the same
    /// name at the same time, its dentry is the one that both use.
    fn insert(self: &Arc<Self>, name: &[u8], inode: Option<Arc<dyn Inode>>, stamp: Stamp) -> Result<Arc<Dentry>> {
        let made = Dentry::new(self.superblock.clone(), Some(self.clone()), name.into(), inode)?;
        made.asked.store(stamp.0, Ordering::Relaxed);
        let caching = self.superblock.caching;
        if made.node.is_none() && !matches!(caching, Caching::Forever | Caching::Lease) {
            return Ok(made);
        }
        let mut children = self.children.write();
        let raced = children.get(name).and_then(Weak::upgrade);
        if let Some(raced) = raced {
            if caching == Caching::Forever {
                drop(children);
                return Ok(raced);
            }
            drop_later(&mut children, raced);
        }
        children.insert(made.place.read().name.clone(), Arc::downgrade(&made));
        drop(children);
        if caching != Caching::Never && !self.superblock.forgets {
            CLOCK.keep(&made);
        }
        Ok(made)
    }

    /// Records that `name` now means `inode`: after `create`, `link`. With the directory's lock held exclusively.
    pub(super) fn instantiate(self: &Arc<Self>, name: &[u8], inode: Arc<dyn Inode>) -> Result<Arc<Dentry>> {
        self.children.write().remove(name);
        self.insert(name, Some(inode), self.stamp())
    }

    /// Records that `name` is gone: after `unlink`, `rmdir`. With the directory's lock held exclusively.
    pub(super) fn forget(&self, name: &[u8], child: &Arc<Dentry>) {
        child.flags.fetch_or(DELETED, Ordering::Relaxed);
        self.children.write().remove(name);
    }

    /// Moves `child` to `name` in `new_dir`, in the place of what was there. With the locks of both directories held
    /// exclusively.
    pub(super) fn moved(self: &Arc<Self>, child: &Arc<Dentry>, new_dir: &Arc<Dentry>, name: &[u8]) {
        let old_name = child.name();
        {
            let mut children = self.children.write();
            if children.get(&*old_name).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(child))) {
                children.remove(&*old_name);
            }
        }
        child.asked.store(self.stamp().0, Ordering::Relaxed);
        let name: Arc<[u8]> = name.into();
        let old_parent = {
            let mut place = child.place.write();
            place.name = name.clone();
            place.parent.replace(new_dir.clone())
        };
        new_dir.children.write().insert(name, Arc::downgrade(child));
        drop(old_parent);
        if child.has(PINNED) {
            child.pin_ancestors();
        }
    }

    fn pin_ancestors(&self) {
        let mut at = self.parent();
        while let Some(dentry) = at {
            dentry.flags.fetch_or(PINNED, Ordering::Relaxed);
            at = dentry.parent();
        }
    }
}

/// Lets go of `old` after the table is unlocked would be needed if it were the last reference: its destructor takes the
/// table's lock. Taking its entry out first makes the destructor find nothing, so the lock is given up around the drop.
fn drop_later(children: &mut parking_lot::RwLockWriteGuard<'_, HashMap<Arc<[u8]>, Weak<Dentry>>>, old: Arc<Dentry>) {
    parking_lot::RwLockWriteGuard::unlocked(children, || drop(old));
}

impl Drop for Dentry {
    /// Takes the name out of its directory's table. Parents are let go in a loop: a deep tree must not use up the stack.
    fn drop(&mut self) {
        let place = self.place.get_mut();
        let name = place.name.clone();
        let mut next = place.parent.take();
        let mut gone: *const Dentry = self;
        let mut name = name;
        while let Some(parent) = next {
            {
                let mut children = parent.children.write();
                if children.get(&*name).is_some_and(|known| std::ptr::eq(known.as_ptr(), gone)) {
                    children.remove(&*name);
                }
            }
            let Some(mut last) = Arc::into_inner(parent) else { return };
            let place = last.place.get_mut();
            // `last` is emptied here, so its own destructor has nothing to walk; its entry is found by name alone, since
            // its address is not the table's any more: the entry's weak reference is dead, or another's.
            next = place.parent.take();
            name = place.name.clone();
            gone = std::ptr::null();
            if let Some(parent) = &next {
                let mut children = parent.children.write();
                if children.get(&*name).is_some_and(|known| known.strong_count() == 0) {
                    children.remove(&*name);
                }
            }
        }
    }
}

/// The recently used names, of all file systems. Leaf lock; nothing is dropped under it.
struct Clock {
    kept: Mutex<VecDeque<Arc<Dentry>>>,
    limit: AtomicUsize,
}

static CLOCK: Clock = Clock::new(DEFAULT_CACHE_LIMIT);

/// How many names are passed over at most to find one to let go.
const SECOND_CHANCES: usize = 32;

impl Clock {
    const fn new(limit: usize) -> Clock {
        Clock { kept: Mutex::new(VecDeque::new()), limit: AtomicUsize::new(limit) }
    }

    fn keep(&self, dentry: &Arc<Dentry>) {
        let limit = self.limit.load(Ordering::Relaxed);
        let mut gone = [None, None];
        {
            let mut kept = self.kept.lock();
            kept.push_back(dentry.clone());
            for slot in &mut gone {
                if kept.len() > limit {
                    *slot = advance(&mut kept);
                }
            }
        }
        drop(gone);
    }
}

/// Takes out the next name that was not used since the hand passed, within a few steps.
fn advance(kept: &mut VecDeque<Arc<Dentry>>) -> Option<Arc<Dentry>> {
    for _ in 0..SECOND_CHANCES {
        let first = kept.pop_front()?;
        if first.flags.fetch_and(!USED, Ordering::Relaxed) & USED == 0 {
            return Some(first);
        }
        kept.push_back(first);
    }
    kept.pop_front()
}

/// How many names are kept by the cache now.
pub fn cached_names() -> usize {
    CLOCK.kept.lock().len()
}

/// Sets how many unused names are kept, and lets go of those that are too many.
pub fn set_cache_limit(limit: usize) {
    CLOCK.limit.store(limit, Ordering::Relaxed);
    let gone: Vec<_> = {
        let mut kept = CLOCK.kept.lock();
        let too_many = kept.len().saturating_sub(limit);
        kept.drain(..too_many).collect()
    };
    drop(gone);
}

/// Lets go of every unused name of `superblock`: it is unmounted, or memory is wanted (`drop_caches`, `None`: of all).
pub fn shrink(superblock: Option<&Arc<Superblock>>) {
    let gone: Vec<_> = {
        let mut kept = CLOCK.kept.lock();
        let all = std::mem::take(&mut *kept);
        let (gone, rest): (VecDeque<_>, VecDeque<_>) =
            all.into_iter().partition(|dentry| superblock.is_none_or(|only| Arc::ptr_eq(only, &dentry.superblock)));
        *kept = rest;
        gone.into()
    };
    drop(gone);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::tests::memory::Memory;

    #[test]
    fn the_clock_is_bounded_and_gives_used_names_a_second_chance() {
        let (fs, _) = Memory::with_counter(Caching::Forever);
        let root = Superblock::of(&fs).root().unwrap();
        let clock = Clock::new(10);
        let name = |n: u32| -> Arc<[u8]> { n.to_string().into_bytes().into() };
        let add = |n| {
            let made = Dentry::new(root.superblock.clone(), Some(root.clone()), name(n), None).unwrap();
            root.children.write().insert(name(n), Arc::downgrade(&made));
            clock.keep(&made);
        };
        (0..10).for_each(add);
        assert!(root.lookup_cached(b"0").is_some(), "marks it used");
        (10..15).for_each(add);
        assert_eq!(clock.kept.lock().len(), 10);
        assert!(root.cached(b"0").is_some());
        assert!((1..6).all(|n| root.cached(&name(n)).is_none()));
        assert_eq!(root.children.read().len(), 10, "what is let go leaves its directory");
    }
}
