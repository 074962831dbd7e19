//! [`Inode`] for files of the gofer.

use std::any::Any;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::Shared;
use super::ahead::Found;
use super::connection::Connection;
use super::file::{GoferDir, GoferFile};
use super::listing::Listing;
use super::node::{Node, Seen};
use crate::errno::{Errno, Result, check};
use crate::gofer::codec::{MAX_PATH, Stat, is_name};
use crate::gofer::protocol::{Entry, NONE, New, Request};
use crate::vfs::file::File;
use crate::vfs::inode::{Attachments, Attr, Inode, NewNode, NodeType, RenameFlags, SetAttr};

/// After how many lookups that had to ask an immutable directory is read as a whole.
pub(super) const LOOKUPS: u32 = 8;

/// How many round trips that may take; a directory with more names is asked name by name.
const LIST_TRIPS: usize = 4;

/// The reply to [`Request::Walk`].
pub struct Walked {
    /// Of where it started.
    pub start: Stat,
    /// Of each component that was reached.
    pub stats: Vec<Stat>,
    pub stopped: Option<Errno>,
    pub nodes: Vec<u32>,
    pub text: Vec<u8>,
    pub fd: Option<OwnedFd>,
}

impl Walked {
    pub fn ask(connection: &Connection, walk: &Request<'_>) -> Result<Walked> {
        let mut reply = connection.call(walk)?;
        let fd = reply.fd.take();
        reply.parse(|fields| {
            let count = fields.u32()?;
            let start = Stat::get(fields)?;
            let stats = (0..count).map(|_| Stat::get(fields)).collect::<std::result::Result<Vec<_>, _>>()?;
            let stopped = Some(fields.u32()?).filter(|&errno| errno != 0).map(|errno| Errno::from_raw(errno as i32));
            let count = fields.u32()?;
            let nodes = (0..count).map(|_| fields.u32()).collect::<std::result::Result<Vec<_>, _>>()?;
            Ok(Walked { start, stats, stopped, nodes, text: fields.bytes()?.to_vec(), fd })
        })
    }
}

impl Node {
    fn must_be_directory(&self) -> Result<()> {
        if self.kind == NodeType::Directory { Ok(()) } else { Err(Errno::ENOTDIR) }
    }

    fn must_be_writable(&self) -> Result<()> {
        if self.shared.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// Another inode of this tree. `EXDEV` for one of another.
    fn of_this_tree<'a>(&self, inode: &'a Arc<dyn Inode>) -> Result<&'a Node> {
        let node = inode.as_any().downcast_ref::<Node>().ok_or(Errno::EXDEV)?;
        if Arc::ptr_eq(&node.shared, &self.shared) { Ok(node) } else { Err(Errno::EXDEV) }
    }

    /// The whole directory, from the cache or read.
    pub(super) fn list(&self) -> Result<Arc<Listing>> {
        if !self.shared.immutable() {
            return self.read_listing(usize::MAX)?.ok_or(Errno::EIO);
        }
        self.warm.touch();
        if let Some(listing) = self.names.lock().listing.clone() {
            return Ok(listing);
        }
        let listing = self.read_listing(usize::MAX)?.ok_or(Errno::EIO)?;
        self.learn_all(&listing);
        Ok(listing)
    }

    fn read_listing(&self, max_trips: usize) -> Result<Option<Arc<Listing>>> {
        let listing = Listing::read(&self.shared.connection, self.target()?.borrow(), max_trips)?;
        self.was_read();
        Ok(listing.map(Arc::new))
    }

    fn learn_all(&self, listing: &Arc<Listing>) {
        self.names.lock().learn_all(listing.clone());
        if let Some(me) = self.me.upgrade() {
            self.shared.keep_warm(&me, listing.len() + 1);
        }
    }

    fn learn(&self, name: &[u8], meaning: Option<Stat>) {
        let more = self.names.lock().learn(name, meaning);
        if more && let Some(me) = self.me.upgrade() {
            self.shared.keep_warm(&me, 1);
        }
    }

    /// Finds a name in an immutable directory.
    fn find(&self, name: &[u8]) -> Result<Arc<Node>> {
        self.warm.touch();
        let (known, list) = {
            let mut names = self.names.lock();
            let known = names.find(name);
            names.asked += u32::from(known.is_none());
            (known, names.asked > LOOKUPS && !names.too_big)
        };
        match known {
            Some(meaning) => return self.child(name, meaning),
            None if list => {}
            None => return self.ask(&[name]),
        }
        match self.read_listing(LIST_TRIPS)? {
            Some(listing) => {
                self.learn_all(&listing);
                self.child(name, listing.find(name).copied())
            }
            None => {
                self.names.lock().too_big = true;
                self.ask(&[name])
            }
        }
    }

    /// The node behind a name whose meaning is known.
    fn child(&self, name: &[u8], meaning: Option<Stat>) -> Result<Arc<Node>> {
        Ok(self.shared.node(&meaning.ok_or(Errno::ENOENT)?, Some((self.arc()?, name)), NONE, self.shared.ask()))
    }

    /// Walks several names down from an immutable directory in one round trip and keeps all that it says; the node at
    /// the end.
    fn ask(&self, names: &[&[u8]]) -> Result<Arc<Node>> {
        let (place, path) = (self.place()?, names.join(&b'/'));
        let walk = Request::Walk { from: place.borrow(), path: &path, keep: false, open: true };
        let walked = Walked::ask(&self.shared.connection, &walk)?;
        let mut at = self.arc()?;
        for (name, stat) in names.iter().zip(&walked.stats) {
            at.learn(name, Some(*stat));
            at = at.child(name, Some(*stat))?;
        }
        at.learn_content((!walked.text.is_empty()).then_some(walked.text), walked.fd.map(Arc::new));
        if walked.stats.len() == names.len() {
            // So that whoever asked ahead finds it still there.
            if names.len() > 1 {
                self.shared.keep_warm(&at, 1);
            }
            return Ok(at);
        }
        let error = walked.stopped.unwrap_or(Errno::EIO);
        if error == Errno::ENOENT
            && at.kind == NodeType::Directory
            && let Some(missing) = names.get(walked.stats.len())
        {
            at.learn(missing, None);
        }
        Err(error)
    }

    /// Walks down an immutable tree as far as it is known, and asks for the rest if that is several names: a single one is
    /// the lookup's.
    fn ask_unknown(&self, names: &[&[u8]]) -> Result<()> {
        let mut at = self.arc()?;
        for (depth, name) in names.iter().enumerate() {
            let known = at.names.lock().find(name);
            match known {
                Some(meaning) => at = at.child(name, meaning)?,
                None if depth + 1 < names.len() => return at.ask(&names[depth..]).map(drop),
                None => break,
            }
        }
        Ok(())
    }

    /// Finds a name in a directory of a shared or leased tree, and has the gofer keep the file.
    fn find_and_keep(&self, name: &[u8]) -> Result<Arc<Node>> {
        match self.shared.found_ahead(self, name) {
            Some(Found::Missing) => return Err(Errno::ENOENT),
            Some(Found::Step(step)) if step.node != NONE => {
                let node = self.shared.node(&step.stat, Some((self.arc()?, name)), step.node, step.asked);
                self.shared.equip(&node);
                return Ok(node);
            }
            // It was to be asked about only, and is looked up nevertheless.
            Some(Found::Step(_)) | None => {}
        }
        let (place, asked) = (self.place()?, self.shared.ask());
        let walk = Request::Walk { from: place.borrow(), path: name, keep: true, open: self.shared.leased() };
        let walked = Walked::ask(&self.shared.connection, &walk)?;
        let stat = walked.stats.last().ok_or(walked.stopped.unwrap_or(Errno::EIO))?;
        let number = *walked.nodes.last().ok_or(Errno::EIO)?;
        let node = self.shared.node(stat, Some((self.arc()?, name)), number, asked);
        node.learn_content((!walked.text.is_empty()).then_some(walked.text), walked.fd.map(Arc::new));
        Ok(node)
    }

    /// Notes that a rename has put a file in its new place.
    fn renamed(shared: &Shared, stat: &Stat, dir: &Node, name: &[u8]) -> Result<()> {
        if let Some(node) = shared.known(stat.key()) {
            node.changed();
            node.moved(Some(Seen { dir: dir.arc()?, name: name.into() }));
        }
        Ok(())
    }

    fn xattr_names(&self) -> Result<Vec<Vec<u8>>> {
        let ask = || {
            let reply = self.shared.connection.call(&Request::ListXattr(self.target()?.borrow()))?;
            let names = reply.parse(|fields| fields.bytes().map(<[u8]>::to_vec))?;
            Ok(names.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
        };
        if self.shared.immutable() {
            return self.xattrs.get_or_init(ask).clone();
        }
        if !self.shared.leased() {
            return ask();
        }
        if let Some((asked, names)) = &*self.leased_xattrs.lock()
            && self.shared.leases.is_fresh(asked.stamp)
            && self.is_unchanged_since(*asked)
        {
            return Ok(names.clone());
        }
        let asked = self.shared.ask();
        let names = ask()?;
        *self.leased_xattrs.lock() = Some((asked, names.clone()));
        Ok(names)
    }
}

impl Inode for Node {
    fn attr(&self) -> Result<Attr> {
        self.stat().map(|stat| self.to_attr(&stat))
    }

    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        self.must_be_writable()?;
        let size_alone = SetAttr { size: set.size, ..SetAttr::default() } == *set;
        let write = self.fds.lock().write.upgrade();
        if let (true, Some(size), Some(fd)) = (size_alone, set.size, write) {
            let size = libc::off_t::try_from(size).map_err(|_| Errno::EFBIG)?;
            // SAFETY: takes numbers alone.
            let done = check(unsafe { libc::ftruncate(fd.as_raw_fd(), size) }.into()).map(drop);
            self.changed();
            return done;
        }
        let done = self.shared.connection.call(&Request::SetAttr(self.target()?.borrow(), *set)).map(drop);
        self.changed();
        done
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        self.must_be_directory()?;
        if name.len() > crate::gofer::codec::MAX_NAME {
            return Err(Errno::ENAMETOOLONG);
        }
        if !is_name(name) {
            return Err(Errno::EINVAL);
        }
        Ok(if self.shared.immutable() { self.find(name)? } else { self.find_and_keep(name)? })
    }

    fn prefetch(&self, components: &[&[u8]], known: bool) {
        // A new call begins.
        self.shared.changing();
        // What cannot be asked in one message, or is none of the gofer's business, is found step by step.
        let names: Vec<&[u8]> = components.iter().copied().take_while(|name| is_name(name)).take(256).collect();
        let len: usize = names.iter().map(|name| name.len() + 1).sum();
        let few = if self.shared.leased() { names.is_empty() } else { names.len() < 2 };
        if few || len > MAX_PATH / 4 || self.kind != NodeType::Directory || self.shared.follows {
            return;
        }
        // Errors are met again by the lookup that they concern.
        if self.shared.immutable() {
            let _ = self.ask_unknown(&names);
        } else {
            let _ = self.look_ahead(&names, known);
        }
    }

    fn revalidate(&self, name: &[u8], child: &Arc<dyn Inode>) -> bool {
        if self.shared.immutable() {
            return true;
        }
        let Ok(child) = self.of_this_tree(child) else { return false };
        let ask = || {
            let (place, asked) = (self.place()?, self.shared.ask());
            let walk = Request::Walk { from: place.borrow(), path: name, keep: false, open: false };
            let stat = Walked::ask(&self.shared.connection, &walk)?.stats.last().copied().ok_or(Errno::ENOENT)?;
            Ok::<_, Errno>((stat, asked))
        };
        let found = match self.shared.found_ahead(self, name) {
            Some(Found::Missing) => return false,
            Some(Found::Step(step)) => {
                self.shared.give_back(step.node);
                Ok((step.stat, step.asked))
            }
            None => ask(),
        };
        let Ok((stat, asked)) = found else { return false };
        let same = stat.key() == child.key;
        if same && let Ok(dir) = self.arc() {
            child.saw(&stat, Some(Seen { dir, name: name.into() }), asked);
        }
        same
    }

    fn create(&self, name: &[u8], node: &NewNode<'_>) -> Result<Arc<dyn Inode>> {
        self.must_be_directory()?;
        self.must_be_writable()?;
        let NewNode { kind, perm, uid, gid, rdev, target } = *node;
        let dir = self.place()?;
        let request = Request::Create(Entry { dir: dir.borrow(), name }, New { kind, perm, uid, gid, rdev, target });
        let asked = self.shared.ask();
        let reply = self.shared.connection.call(&request)?;
        let (stat, number) = reply.parse(|fields| Ok((Stat::get(fields)?, fields.u32()?)))?;
        self.changed();
        let made = self.shared.node(&stat, Some((self.arc()?, name)), number, asked);
        if let Some(fd) = reply.fd {
            self.shared.keep_made(made.key, fd);
        }
        Ok(made)
    }

    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        self.must_be_directory()?;
        self.must_be_writable()?;
        let node = self.of_this_tree(target)?;
        let (dir, target) = (self.place()?, node.target()?);
        let request = Request::Link(Entry { dir: dir.borrow(), name }, target.borrow());
        self.shared.connection.call(&request)?.parse(Stat::get)?;
        self.changed();
        node.changed();
        node.moved(Some(Seen { dir: self.arc()?, name: name.into() }));
        Ok(())
    }

    fn unlinked(&self) {
        self.changed();
        if self.shared.leased() {
            // A descriptor that is kept would keep the file's blocks when its last name is gone.
            self.close();
        }
    }

    fn unlink(&self, name: &[u8]) -> Result<()> {
        self.remove(name, false)
    }

    fn rmdir(&self, name: &[u8]) -> Result<()> {
        self.remove(name, true)
    }

    fn rename(&self, old: &[u8], new_dir: &Arc<dyn Inode>, new: &[u8], flags: RenameFlags) -> Result<()> {
        self.must_be_directory()?;
        self.must_be_writable()?;
        let to = self.of_this_tree(new_dir)?;
        let (from_place, to_place) = (self.place()?, to.place()?);
        let (old_entry, new_entry) =
            (Entry { dir: from_place.borrow(), name: old }, Entry { dir: to_place.borrow(), name: new });
        let request = Request::Rename(old_entry, new_entry, flags.bits());
        let stat = self.shared.connection.call(&request)?.parse(Stat::get)?;
        self.changed();
        to.changed();
        Node::renamed(&self.shared, &stat, to, new)?;
        if flags.contains(RenameFlags::EXCHANGE) {
            let walk = Request::Walk { from: from_place.borrow(), path: old, keep: false, open: false };
            if let Some(stat) = Walked::ask(&self.shared.connection, &walk)?.stats.last() {
                Node::renamed(&self.shared, stat, self, old)?;
            }
        }
        Ok(())
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        if self.kind != NodeType::Symlink {
            return Err(Errno::EINVAL);
        }
        if let Some(text) = self.text.get() {
            return Ok(text.clone());
        }
        let reply = self.shared.connection.call(&Request::ReadLink(self.target()?.borrow()))?;
        let text = reply.parse(|fields| fields.bytes().map(<[u8]>::to_vec))?;
        Ok(self.text.get_or_init(|| text).clone())
    }

    fn open(self: Arc<Self>, flags: i32) -> Result<Arc<dyn File>> {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        match self.kind {
            NodeType::Directory if write => Err(Errno::EISDIR),
            NodeType::Directory => Ok(Arc::new(GoferDir::new(self))),
            NodeType::Symlink => Err(Errno::ELOOP),
            NodeType::Regular if flags & libc::O_DIRECTORY != 0 => Err(Errno::ENOTDIR),
            NodeType::Regular => {
                if write {
                    self.must_be_writable()?;
                }
                let fd = self.fd(write)?;
                Ok(Arc::new(GoferFile::new(self, fd, write)))
            }
            _ => Err(Errno::ENXIO),
        }
    }

    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        self.xattr_names()
    }

    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        // Listing leaves out `trusted` names, which the gofer lacks the right to read as well.
        let kept = self.shared.immutable() || self.shared.leased();
        if kept && !self.xattr_names()?.iter().any(|known| known == name) {
            return Err(Errno::ENODATA);
        }
        let reply = self.shared.connection.call(&Request::GetXattr(self.target()?.borrow(), name))?;
        reply.parse(|fields| fields.bytes().map(<[u8]>::to_vec))
    }

    /// The host takes it off itself, at the write: asking would cost a round trip for each file that is written to.
    fn has_capability(&self) -> bool {
        false
    }

    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        self.must_be_writable()?;
        let target = self.target()?;
        let request = Request::SetXattr { target: target.borrow(), name, value, flags: flags as u32 };
        let done = self.shared.connection.call(&request).map(drop);
        self.changed();
        done
    }

    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.must_be_writable()?;
        let done = self.shared.connection.call(&Request::RemoveXattr(self.target()?.borrow(), name)).map(drop);
        self.changed();
        done
    }

    fn attachments(&self) -> Option<&Attachments> {
        Some(&self.identity().attachments)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Node {
    fn remove(&self, name: &[u8], directory: bool) -> Result<()> {
        self.must_be_directory()?;
        self.must_be_writable()?;
        let dir = self.place()?;
        self.shared.connection.call(&Request::Unlink(Entry { dir: dir.borrow(), name }, directory))?;
        self.changed();
        Ok(())
    }
}
