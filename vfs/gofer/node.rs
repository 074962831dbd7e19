//! A file of the tree as the sentry knows it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::identity::{self, Identity};
use super::listing::Names;
use super::{Asked, Moment, Shared};
use crate::errno::{Errno, Result};
use crate::gofer::codec::{Stat, stat_fd};
use crate::gofer::protocol::{NONE, Place, ROOT, Request, Target};
use crate::vfs::inode::{Attr, NodeType, TimeSpec};
use crate::vfs::lease::Stamp;

/// A path from a node on that grows beyond this has the gofer keep a node on the way.
const LONG_PATH: usize = 3000;

/// A file.
pub struct Node {
    pub(super) me: Weak<Node>,
    pub(super) shared: Arc<Shared>,
    /// The host's device and inode number.
    pub(super) key: (u64, u64),
    /// The device number in the sandbox.
    dev: u64,
    pub(super) kind: NodeType,
    /// The gofer's number for it, or [`NONE`]; set once.
    number: AtomicU32,
    /// Where it was last seen; `None` for the root. One entry in an immutable tree, for ever.
    place: Mutex<Option<Seen>>,
    attributes: Mutex<Attributes>,
    /// The number of the last change by this sentry, in a leased tree.
    changed: AtomicU64,
    /// Open descriptors.
    pub(super) fds: Mutex<Fds>,
    /// What is known of an immutable directory.
    pub(super) names: Mutex<Names>,
    /// A symbolic link's text, which never changes.
    pub(super) text: OnceLock<Vec<u8>>,
    /// Names of the extended attributes in an immutable tree.
    pub(super) xattrs: OnceLock<Result<Vec<Vec<u8>>>>,
    /// The same in a leased tree.
    pub(super) leased_xattrs: Mutex<Option<(Asked, Vec<Vec<u8>>)>>,
    identity: OnceLock<Arc<Identity>>,
    pub(super) warm: Warmth,
    pub(super) fd_used: AtomicBool,
}

/// What is known of a file's attributes.
struct Attributes {
    stat: Stat,
    /// In a shared tree: the call that has found them and is still going on.
    found: Option<Moment>,
    /// In a leased tree: when they were asked for, if nothing has changed them since.
    asked: Stamp,
}

/// A directory, and a name in it.
pub struct Seen {
    pub dir: Arc<Node>,
    pub name: Box<[u8]>,
}

/// Descriptors of a regular file. Shared by all who have it open; an immutable or leased tree keeps one beyond that.
#[derive(Default)]
pub struct Fds {
    pub kept: Option<Arc<OwnedFd>>,
    pub read: Weak<OwnedFd>,
    pub write: Weak<OwnedFd>,
}

/// A node's part in [`Shared::warm`].
#[derive(Default)]
pub struct Warmth {
    weight: AtomicUsize,
    used: AtomicBool,
}

impl Warmth {
    /// Adds weight; whether there was none.
    pub fn enter(&self, weight: usize) -> bool {
        self.used.store(true, Ordering::Relaxed);
        self.weight.fetch_add(weight, Ordering::Relaxed) == 0
    }

    /// Notes a use.
    pub fn touch(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Gives the weight up, unless it was used since this was last asked.
    pub fn leave(&self) -> Option<usize> {
        if self.used.swap(false, Ordering::Relaxed) { None } else { Some(self.weight.swap(0, Ordering::Relaxed)) }
    }
}

/// [`Place`], owned.
pub struct OwnedPlace {
    pub node: u32,
    pub path: Vec<u8>,
}

impl OwnedPlace {
    pub fn borrow(&self) -> Place<'_> {
        Place { node: self.node, path: &self.path }
    }

    /// The place of a name in this directory.
    pub fn join(mut self, name: &[u8]) -> OwnedPlace {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        self
    }
}

/// [`Target`], owned.
pub struct OwnedTarget {
    node: u32,
    at: OwnedPlace,
}

impl OwnedTarget {
    pub fn borrow(&self) -> Target<'_> {
        Target { node: self.node, at: self.at.borrow() }
    }
}

impl Node {
    pub(super) fn new(shared: Arc<Shared>, stat: &Stat, place: Option<Seen>, number: u32, asked: Asked) -> Arc<Node> {
        let found = (!shared.immutable()).then(|| shared.now());
        let changed = shared.gone.load(Ordering::SeqCst);
        let asked = if changed < asked.tick { asked.stamp } else { Stamp::default() };
        Arc::new_cyclic(|me| Node {
            me: me.clone(),
            shared,
            key: stat.key(),
            dev: identity::device(stat.dev),
            kind: stat.kind,
            number: AtomicU32::new(number),
            place: Mutex::new(place),
            attributes: Mutex::new(Attributes { stat: *stat, found, asked }),
            changed: AtomicU64::new(changed),
            fds: Mutex::default(),
            names: Mutex::default(),
            text: OnceLock::new(),
            xattrs: OnceLock::new(),
            leased_xattrs: Mutex::default(),
            identity: OnceLock::new(),
            warm: Warmth::default(),
            fd_used: AtomicBool::new(false),
        })
    }

    /// This node, to be kept. It exists, as somebody called a method of it.
    pub(super) fn arc(&self) -> Result<Arc<Node>> {
        self.me.upgrade().ok_or(Errno::EIO)
    }

    /// What it has in common with the nodes of other trees that are the same file.
    pub(super) fn identity(&self) -> &Identity {
        let make = || if self.shared.immutable() { Identity::alone() } else { Identity::of(self.key) };
        self.identity.get_or_init(make)
    }

    fn number(&self) -> u32 {
        self.number.load(Ordering::Relaxed)
    }

    /// Notes what a file of a shared or leased tree has just been found to be, and where.
    pub(super) fn saw(&self, stat: &Stat, place: Option<Seen>, asked: Asked) {
        let written = self.shared.leased() && self.fds.lock().write.strong_count() > 0;
        {
            let mut known = self.attributes.lock();
            // With the lock held: `changed` makes its number known before it takes it.
            let good = !written && self.is_unchanged_since(asked);
            let asked = if good { asked.stamp } else { Stamp::default() };
            *known = Attributes { stat: *stat, found: Some(self.shared.now()), asked };
        }
        self.moved(place);
    }

    /// Whether this sentry has changed nothing of it since.
    pub(super) fn is_unchanged_since(&self, asked: Asked) -> bool {
        self.changed.load(Ordering::SeqCst) < asked.tick
    }

    /// Notes where a file of a shared tree is now.
    pub(super) fn moved(&self, place: Option<Seen>) {
        if place.is_some() && self.number() != ROOT {
            let old = std::mem::replace(&mut *self.place.lock(), place);
            drop(old);
        }
    }

    /// Where it starts, for what is beneath it.
    pub(super) fn place(&self) -> Result<OwnedPlace> {
        match self.number() {
            NONE => self.path(),
            node => Ok(OwnedPlace { node, path: Vec::new() }),
        }
    }

    fn seen(&self) -> Result<(Arc<Node>, Box<[u8]>)> {
        self.place.lock().as_ref().map(|seen| (seen.dir.clone(), seen.name.clone())).ok_or(Errno::ESTALE)
    }

    /// The path from the nearest directory that the gofer keeps; on a long way it is asked to keep one.
    fn path(&self) -> Result<OwnedPlace> {
        let (mut dir, name) = self.seen()?;
        let mut len = name.len();
        let mut names = vec![name];
        while dir.number() == NONE && len < LONG_PATH {
            let (up, name) = dir.seen()?;
            len += name.len() + 1;
            names.push(name);
            dir = up;
        }
        let node = match dir.number() {
            NONE => dir.bind()?,
            node => node,
        };
        names.reverse();
        Ok(OwnedPlace { node, path: names.join(&b'/') })
    }

    /// Has the gofer keep this directory of an immutable tree.
    fn bind(&self) -> Result<u32> {
        let place = self.path()?;
        let walk = Request::Walk { from: place.borrow(), path: b"", keep: true, open: false };
        let walked = super::inode::Walked::ask(&self.shared.connection, &walk)?;
        let kept = *walked.nodes.first().ok_or(Errno::ESTALE)?;
        match self.number.compare_exchange(NONE, kept, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Ok(kept),
            Err(earlier) => {
                self.shared.give_back(kept);
                Ok(earlier)
            }
        }
    }

    /// How to name this file to the gofer.
    pub(super) fn target(&self) -> Result<OwnedTarget> {
        match self.number() {
            ROOT => Ok(OwnedTarget { node: ROOT, at: OwnedPlace { node: ROOT, path: Vec::new() } }),
            _ if self.shared.immutable() => Ok(OwnedTarget { node: NONE, at: self.place()? }),
            node => {
                let (dir, name) = self.seen()?;
                Ok(OwnedTarget { node, at: dir.place()?.join(&name) })
            }
        }
    }

    /// Attributes: those that are kept, those of an open descriptor, or the gofer's.
    pub(super) fn stat(&self) -> Result<Stat> {
        if self.shared.immutable() {
            return Ok(self.attributes.lock().stat);
        }
        if self.shared.leased() {
            return self.leased_stat();
        }
        if let Some(fd) = self.any_fd() {
            return stat_fd(fd.as_fd());
        }
        let (stat, found) = {
            let mut known = self.attributes.lock();
            (known.stat, known.found.take())
        };
        if found.is_some_and(|moment| self.shared.is_now(moment)) {
            return Ok(stat);
        }
        self.shared.connection.call(&Request::Attr(self.target()?.borrow()))?.parse(Stat::get)
    }

    fn leased_stat(&self) -> Result<Stat> {
        {
            let known = self.attributes.lock();
            if self.shared.leases.is_fresh(known.asked) {
                return Ok(known.stat);
            }
        }
        let asked = self.shared.ask();
        let stat = match self.any_fd() {
            Some(fd) => stat_fd(fd.as_fd())?,
            None => self.shared.connection.call(&Request::Attr(self.target()?.borrow()))?.parse(Stat::get)?,
        };
        self.saw(&stat, None, asked);
        Ok(stat)
    }

    /// Notes a change by this sentry, after it: attributes that were found before may be untrue, as may answers that are
    /// on their way.
    pub(super) fn changed(&self) {
        self.shared.changing();
        if self.shared.leased() {
            self.changed.fetch_max(self.shared.tick(), Ordering::SeqCst);
            self.attributes.lock().asked = Stamp::default();
        }
    }

    /// Notes that it was read, which changes the time of the last access: `relatime`, mount(8).
    pub(super) fn was_read(&self) {
        const DAY: i64 = 24 * 60 * 60;
        if !self.shared.leased() {
            return;
        }
        let stat = self.attributes.lock().stat;
        let old = TimeSpec::now().sec - stat.atime.sec >= DAY;
        if old || stat.atime <= stat.mtime || stat.atime <= stat.ctime {
            self.changed();
        }
    }

    /// Takes over a symbolic link's text or a file's descriptor, found on the way.
    pub(super) fn learn_content(&self, text: Option<Vec<u8>>, fd: Option<Arc<OwnedFd>>) {
        if let Some(text) = text.filter(|_| self.kind == NodeType::Symlink) {
            let _ = self.text.set(text);
        }
        if let Some(fd) = fd
            && self.fds.lock().kept.is_none()
        {
            self.opened(&fd);
        }
    }

    /// As `stat(2)` tells it.
    pub(super) fn to_attr(&self, stat: &Stat) -> Attr {
        Attr {
            dev: self.dev,
            ino: stat.ino,
            kind: stat.kind,
            perm: stat.perm,
            nlink: stat.nlink,
            uid: stat.uid,
            gid: stat.gid,
            rdev: stat.rdev,
            size: stat.size,
            blksize: stat.blksize,
            blocks: stat.blocks,
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime,
            btime: stat.btime,
        }
    }

    /// A descriptor that happens to be open.
    pub(super) fn any_fd(&self) -> Option<Arc<OwnedFd>> {
        let fds = self.fds.lock();
        fds.kept.clone().or_else(|| fds.write.upgrade()).or_else(|| fds.read.upgrade())
    }

    /// A descriptor for reading, or for both.
    pub(super) fn fd(&self, write: bool) -> Result<Arc<OwnedFd>> {
        let open = {
            let fds = self.fds.lock();
            let readable = || fds.kept.clone().or_else(|| fds.read.upgrade());
            fds.write.upgrade().or_else(|| if write { None } else { readable() })
        };
        if let Some(fd) = open {
            self.fd_used.store(true, Ordering::Relaxed);
            return Ok(fd);
        }
        if let Some(made) = self.shared.take_made(self.key) {
            self.fds.lock().write = Arc::downgrade(&made);
            return Ok(made);
        }
        let request = self.target()?;
        let reply = self.shared.connection.call(&Request::Open { target: request.borrow(), write })?;
        let fd = Arc::new(reply.fd.ok_or(Errno::EIO)?);
        if write {
            self.fds.lock().write = Arc::downgrade(&fd);
        } else {
            self.opened(&fd);
        }
        Ok(fd)
    }

    /// Notes a descriptor for reading.
    pub(super) fn opened(&self, fd: &Arc<OwnedFd>) {
        let keep = self.shared.immutable() || self.shared.leased();
        let first = {
            let mut fds = self.fds.lock();
            fds.read = Arc::downgrade(fd);
            keep && fds.kept.replace(fd.clone()).is_none()
        };
        if first && let Some(me) = self.me.upgrade() {
            self.shared.keep_open(&me);
        }
    }

    /// Lets go of the descriptor that is kept; open files have it still.
    pub(super) fn close(&self) {
        let kept = self.fds.lock().kept.take();
        drop(kept);
    }

    /// Lets go of what is known of an immutable directory's names.
    pub(super) fn cool(&self) {
        let names = std::mem::take(&mut *self.names.lock());
        drop(names);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.gone.fetch_max(*self.changed.get_mut(), Ordering::SeqCst);
        {
            let mut nodes = self.shared.nodes.lock();
            if nodes.get(&self.key).is_some_and(|node| node.strong_count() == 0) {
                nodes.remove(&self.key);
            }
        }
        self.shared.give_back(self.number());
        // Directories that only this one held, one after another: the container decides how deep they are nested.
        let mut above = self.place.get_mut().take();
        while let Some(mut node) = above.and_then(|seen| Arc::into_inner(seen.dir)) {
            above = node.place.get_mut().take();
        }
    }
}
