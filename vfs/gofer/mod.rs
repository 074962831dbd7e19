//! Host files, as the gofer serves them.
//!
//! A round trip to the gofer costs two wake-ups on another CPU (50 us where this was measured), so the point is to have
//! few. What a tree is decides what may be kept:
//!
//! ```text
//! immutable   served read-only and changed by nobody: names, their absence, attributes, link texts, descriptors are
//!             kept; files are named to the gofer by their paths, and it keeps nothing
//! shared      may change: each file that the sentry knows is a node that the gofer keeps open, so that it stays the same
//!             file whatever happens to its name; attributes are asked for, or read from a descriptor that is open
//! leased      a shared tree that others change rarely: names, their absence, attributes and descriptors for reading are
//!             kept and believed for a while (`vfs::lease`); what this sentry changes it forgets at once
//! ```
//!
//! In a leased tree an answer that was on its way while something changed is not kept: questions and changes draw numbers
//! from one counter, a question before it is sent, a change after it is made (`Asked`, `Node::changed`).
//!
//! What a file carries inside the sandbox (locks, pipes, sockets, watches) is shared by all trees that show it: `identity`.
//!
//! A shared tree may *follow* what the host mounts in it (`rslave`). The host must be able to unmount that again, which it cannot
//! while the gofer keeps anything of it: nothing is kept then that nobody uses, and it is given back at once.
//!
//! Content never passes through the gofer: a regular file is read, written and mapped through a descriptor that the
//! gofer has opened and donated.
//!
//! Lock order: `Identity::append`; `Node::names`, `Node::place`, `Node::fds`; `Shared::warm`, `Shared::fds`;
//! `Shared::nodes`; the connection's. No lock but the connection's is held over a round trip. An `Arc<Node>` is not dropped
//! under `Shared::nodes`.

mod ahead;
mod connection;
mod file;
mod identity;
mod inode;
#[cfg(test)]
mod lease_tests;
mod listing;
mod node;
#[cfg(test)]
mod tests;
mod warm;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::errno::Result;
use crate::gofer::codec::Stat;
use crate::gofer::protocol::{NONE, Place, ROOT, Request, Target};
use crate::vfs::inode::{Caching, FileSystem, Inode, StatFs};
use crate::vfs::lease::{Leases, Stamp};
use ahead::Ahead;
use connection::Connection;
use node::{Node, Seen};
use warm::Warm;

/// How many names with attributes are kept of an immutable tree beyond those that somebody holds; some 150 bytes each.
const WARM_NAMES: usize = 256 << 10;

/// How many open descriptors are kept of an immutable tree beyond those of open files.
const WARM_FDS: usize = 1024;

/// For how long what one call of a thread has just asked is good for the next step of that same call.
const AHEAD: Duration = Duration::from_millis(2);

/// A host device and an inode number on it: which file it is.
type Key = (u64, u64);

/// A tree of host files.
pub struct GoferFs {
    shared: Arc<Shared>,
    root: Arc<Node>,
}

/// What the nodes of a tree have in common.
struct Shared {
    connection: Connection,
    read_only: bool,
    caching: Caching,
    /// Whether it follows what the host mounts.
    follows: bool,
    leases: Arc<Leases>,
    /// Every node that exists, by host device and inode number: two names of one file are one node.
    nodes: Mutex<HashMap<Key, Weak<Node>>>,
    /// Nodes of an immutable tree with what they know.
    warm: Mutex<Warm<Arc<Node>>>,
    /// Nodes of an immutable or leased tree that keep a descriptor.
    fds: Mutex<Warm<Weak<Node>>>,
    /// Descriptors of files that were just made and are about to be opened.
    made: Mutex<VecDeque<Made>>,
    /// What a walk of a shared or leased tree found ahead of its single steps.
    ahead: Mutex<Option<Ahead>>,
    /// Counts changes by this sentry: what was found before one is good for nothing after it.
    changes: AtomicU64,
    /// What questions and changes of a leased tree draw their numbers from.
    ticks: AtomicU64,
    /// The highest number of a change to a node that is gone: a new node may be the same file.
    gone: AtomicU64,
}

/// A question to the gofer, before it is sent.
#[derive(Clone, Copy)]
struct Asked {
    stamp: Stamp,
    tick: u64,
}

/// A file that was just made, open for reading and writing.
type Made = (Key, Arc<OwnedFd>);

/// When and by whom something of a shared tree was asked. It is good for the next step of the same system call, which
/// is told by its thread, by nothing having been changed, and by little time having passed.
#[derive(Clone, Copy)]
struct Moment {
    by: ThreadId,
    at: Instant,
    changes: u64,
}

impl GoferFs {
    /// As [`GoferFs::connect`], for a shared tree that follows what the host mounts.
    pub fn connect_following(socket: OwnedFd, read_only: bool) -> Result<Arc<GoferFs>> {
        GoferFs::new(Connection::prompt(socket), (read_only, true), Caching::Revalidate, Leases::sandbox().clone())
    }

    /// Takes a connection to the gofer. `read_only` is what it was told too; with [`Caching::Forever`] it makes the tree
    /// immutable, [`Caching::Lease`] leased. `EIO` when the gofer does not answer.
    pub fn connect(socket: OwnedFd, read_only: bool, caching: Caching) -> Result<Arc<GoferFs>> {
        GoferFs::with_leases(socket, read_only, caching, Leases::sandbox().clone())
    }

    fn with_leases(socket: OwnedFd, read_only: bool, caching: Caching, leases: Arc<Leases>) -> Result<Arc<GoferFs>> {
        GoferFs::new(Connection::new(socket), (read_only, false), caching, leases)
    }

    fn new(
        connection: Connection,
        (read_only, follows): (bool, bool),
        caching: Caching,
        leases: Arc<Leases>,
    ) -> Result<Arc<GoferFs>> {
        let shared = Arc::new(Shared {
            connection,
            read_only,
            caching,
            follows,
            leases,
            nodes: Mutex::default(),
            warm: Mutex::new(Warm::new(WARM_NAMES)),
            fds: Mutex::new(Warm::new(WARM_FDS)),
            made: Mutex::default(),
            ahead: Mutex::default(),
            changes: AtomicU64::new(0),
            ticks: AtomicU64::new(1),
            gone: AtomicU64::new(0),
        });
        let asked = shared.ask();
        let target = Target { node: ROOT, at: Place { node: ROOT, path: b"" } };
        let stat = shared.connection.call(&Request::Attr(target))?.parse(Stat::get)?;
        let root = shared.node(&stat, None, ROOT, asked);
        Ok(Arc::new(GoferFs { shared, root }))
    }

    /// How many round trips to the gofer there have been.
    pub fn round_trips(&self) -> u64 {
        self.shared.connection.round_trips()
    }
}

impl FileSystem for GoferFs {
    fn type_name(&self) -> &'static str {
        "9p"
    }

    fn root(&self) -> Arc<dyn Inode> {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        self.shared.connection.call(&Request::StatFs)?.parse(|fields| {
            Ok(StatFs {
                magic: fields.u64()? as i64,
                bsize: fields.u64()? as i64,
                blocks: fields.u64()?,
                bfree: fields.u64()?,
                bavail: fields.u64()?,
                files: fields.u64()?,
                ffree: fields.u64()?,
                namelen: fields.u64()? as i64,
            })
        })
    }

    fn caching(&self) -> Caching {
        self.shared.caching
    }

    fn forgets(&self) -> bool {
        self.shared.follows
    }

    fn leases(&self) -> &Arc<Leases> {
        &self.shared.leases
    }

    fn sync(&self) -> Result<()> {
        if self.shared.read_only {
            return Ok(());
        }
        self.shared.connection.call(&Request::Sync(None)).map(drop)
    }
}

impl Shared {
    /// Whether nobody changes the tree.
    fn immutable(&self) -> bool {
        self.read_only && self.caching == Caching::Forever
    }

    /// Whether what is known of the tree is believed for a while.
    fn leased(&self) -> bool {
        self.caching == Caching::Lease
    }

    /// To be called before a question that others' changes may cross.
    fn ask(&self) -> Asked {
        Asked { stamp: self.leases.stamp(), tick: self.tick() }
    }

    fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }

    /// The node of a file that was found at `place` and, in a shared tree, kept by the gofer as `number`.
    fn node(
        self: &Arc<Shared>,
        stat: &Stat,
        place: Option<(Arc<Node>, &[u8])>,
        number: u32,
        asked: Asked,
    ) -> Arc<Node> {
        let place = place.map(|(dir, name)| Seen { dir, name: name.into() });
        let mut nodes = self.nodes.lock();
        let known = nodes.get(&stat.key()).and_then(Weak::upgrade);
        let Some(known) = known else {
            let made = Node::new(self.clone(), stat, place, number, asked);
            nodes.insert(stat.key(), Arc::downgrade(&made));
            return made;
        };
        drop(nodes);
        self.give_back(number);
        if !self.immutable() {
            known.saw(stat, place, asked);
        }
        known
    }

    /// Gives back a node that the gofer keeps and that nobody needs.
    fn give_back(&self, number: u32) {
        if number != NONE && number != ROOT {
            self.connection.forget(number);
        }
    }

    /// The node of a file, if there is one.
    fn known(&self, key: Key) -> Option<Arc<Node>> {
        self.nodes.lock().get(&key).and_then(Weak::upgrade)
    }

    /// Notes that `node` of an immutable tree knows `weight` names more, and lets go of what has not been used lately.
    fn keep_warm(&self, node: &Arc<Node>, weight: usize) {
        let new = node.warm.enter(weight);
        let out = self.warm.lock().add(new.then(|| node.clone()), weight, |node| node.warm.leave());
        out.into_iter().for_each(|node| node.cool());
    }

    /// Notes that `node` of an immutable or leased tree keeps a descriptor, and closes others.
    fn keep_open(&self, node: &Arc<Node>) {
        let release = |node: &Weak<Node>| match node.upgrade() {
            Some(node) if node.fd_used.swap(false, Ordering::Relaxed) => None,
            _ => Some(1),
        };
        let out = self.fds.lock().add(Some(Arc::downgrade(node)), 1, release);
        out.iter().filter_map(Weak::upgrade).for_each(|node| node.close());
    }

    /// Keeps the descriptor of a new file for a moment.
    fn keep_made(&self, key: Key, fd: OwnedFd) {
        const MADE: usize = 16;
        if self.follows {
            return;
        }
        let mut made = self.made.lock();
        made.push_back((key, Arc::new(fd)));
        if made.len() > MADE {
            made.pop_front();
        }
    }

    fn take_made(&self, key: Key) -> Option<Arc<OwnedFd>> {
        let mut made = self.made.lock();
        let at = made.iter().position(|(of, _)| *of == key)?;
        made.remove(at).map(|(_, fd)| fd)
    }

    /// Makes what was found until now no longer good, as names or attributes have changed or a new call begins.
    fn changing(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    fn now(&self) -> Moment {
        let changes = self.changes.load(Ordering::Relaxed);
        Moment { by: std::thread::current().id(), at: Instant::now(), changes }
    }

    fn is_now(&self, moment: Moment) -> bool {
        moment.changes == self.changes.load(Ordering::Relaxed) && moment.is_recent()
    }
}

impl Moment {
    /// Whether it is the calling thread's, and little time has passed.
    fn is_recent(&self) -> bool {
        self.by == std::thread::current().id() && self.at.elapsed() < AHEAD
    }
}
