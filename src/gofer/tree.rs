//! The tree of one connection: its nodes, and what only looks at it.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::RootFile;
use super::codec::{Put, Stat, stat_at, stat_fd};
use super::host;
use super::protocol::{HEADROOM, MAX_NODES, NONE, Place, ROOT, Target};
use super::server::Answer;
use super::wire::MAX_MESSAGE;
use crate::errno::{Errno, Result, check};
use crate::vfs::inode::NodeType;

/// A tree and the state of its connection.
pub struct Tree {
    /// By number; the root is the first and stays.
    nodes: Vec<Option<Arc<OwnedFd>>>,
    /// Numbers below `nodes.len()` that are free.
    free: Vec<u32>,
    root_file: Option<RootFile>,
    writable: bool,
    /// See [`Export::follows`](super::Export).
    follows: bool,
    /// The directory that was read last and is not at its end: positions in some file systems' directories are worth
    /// more to the descriptor that they come from.
    reading: Option<Reading>,
}

/// A directory that is being read.
struct Reading {
    key: (u64, u64),
    cookie: u64,
    dir: OwnedFd,
}

impl Tree {
    /// The tree beneath `root`.
    pub fn new(root: OwnedFd, root_file: Option<RootFile>, (writable, follows): (bool, bool)) -> Result<Tree> {
        Ok(Tree { nodes: vec![Some(Arc::new(root))], free: Vec::new(), root_file, writable, follows, reading: None })
    }

    /// Whether changes are allowed.
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// A node by number. `EBADF`.
    fn node(&self, number: u32) -> Result<Arc<OwnedFd>> {
        self.nodes.get(number as usize).and_then(Clone::clone).ok_or(Errno::EBADF)
    }

    /// Keeps a descriptor as a node. `ENFILE` when there are too many.
    pub fn keep(&mut self, fd: Arc<OwnedFd>) -> Result<u32> {
        if let Some(number) = self.free.pop() {
            self.nodes[number as usize] = Some(fd);
            return Ok(number);
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(Errno::ENFILE);
        }
        self.nodes.push(Some(fd));
        Ok((self.nodes.len() - 1) as u32)
    }

    /// Keeps all of them or none. `ENFILE`.
    fn keep_all(&mut self, fds: Vec<Arc<OwnedFd>>) -> Result<Vec<u32>> {
        let mut kept = Vec::with_capacity(fds.len());
        for fd in fds {
            match self.keep(fd) {
                Ok(number) => kept.push(number),
                Err(error) => {
                    kept.into_iter().for_each(|number| self.forget(number));
                    return Err(error);
                }
            }
        }
        Ok(kept)
    }

    /// Gives a node back. A number that is none is ignored, as is the root's.
    pub fn forget(&mut self, number: u32) {
        let Some(node) = self.nodes.get_mut(number as usize).filter(|_| number != ROOT) else { return };
        if node.take().is_some() {
            self.free.push(number);
        }
    }

    /// A descriptor, `O_PATH`, for what is at a place.
    pub fn resolve(&self, place: &Place<'_>) -> Result<Arc<OwnedFd>> {
        let start = self.node(place.node)?;
        if place.path.is_empty() {
            return Ok(start);
        }
        host::open((*start).as_fd(), place.path, host::PATH, 0).map(Arc::new)
    }

    /// A descriptor, `O_PATH`, for a file.
    pub fn find(&self, target: &Target<'_>) -> Result<Arc<OwnedFd>> {
        if target.node == NONE { self.resolve(&target.at) } else { self.node(target.node) }
    }

    /// Opens a file or directory for its content. `ESTALE` when the target's place has become another file; `ENXIO` for
    /// what is neither regular file nor directory.
    pub fn open_content(&self, target: &Target<'_>, flags: i32) -> Result<(OwnedFd, Stat)> {
        let wanted = match target.node {
            NONE => None,
            number => {
                let node = self.node(number)?;
                let stat = stat_fd((*node).as_fd())?;
                if stat.kind == NodeType::Directory {
                    return Ok((host::open((*node).as_fd(), b"", flags | host::CONTENT | libc::O_DIRECTORY, 0)?, stat));
                }
                Some(stat.key())
            }
        };
        let start = self.node(target.at.node)?;
        let opened = if target.at.path.is_empty() && stat_fd((*start).as_fd())?.kind != NodeType::Directory {
            self.open_root_file(target.at.node, flags)?
        } else {
            let missing_is_stale =
                |error| if error == Errno::ENOENT && wanted.is_some() { Errno::ESTALE } else { error };
            if self.follows {
                self.must_have_content(&start, target.at.path).map_err(missing_is_stale)?;
            }
            host::open((*start).as_fd(), target.at.path, flags | host::CONTENT, 0).map_err(missing_is_stale)?
        };
        let stat = stat_fd(opened.as_fd())?;
        if wanted.is_some_and(|key| key != stat.key()) {
            return Err(Errno::ESTALE);
        }
        match stat.kind {
            NodeType::Regular | NodeType::Directory => Ok((opened, stat)),
            _ => Err(Errno::ENXIO),
        }
    }

    /// Where the kernel may allow devices: opening one would do something to it, before it is seen what it is. (A container that
    /// exchanges a file of its own for a device of the host's in between gets no more than that: what was opened is looked at.)
    fn must_have_content(&self, start: &OwnedFd, path: &[u8]) -> Result<()> {
        let node = host::open(start.as_fd(), path, host::PATH, 0)?;
        match stat_fd(node.as_fd())?.kind {
            NodeType::Regular | NodeType::Directory => Ok(()),
            NodeType::Symlink => Err(Errno::ELOOP),
            _ => Err(Errno::ENXIO),
        }
    }

    fn open_root_file(&self, node: u32, flags: i32) -> Result<OwnedFd> {
        if node != ROOT {
            return Err(Errno::ESTALE);
        }
        let file = self.root_file.as_ref().ok_or(Errno::ENXIO)?;
        let fd = if flags & libc::O_ACCMODE == libc::O_RDONLY { Some(&file.read) } else { file.write.as_ref() };
        Ok(fd.ok_or(Errno::EROFS)?.try_clone()?)
    }

    /// [`Request::Open`](super::protocol::Request::Open).
    pub fn open_file(&self, target: &Target<'_>, write: bool) -> Result<OwnedFd> {
        let (fd, stat) = self.open_content(target, if write { libc::O_RDWR } else { libc::O_RDONLY })?;
        match stat.kind {
            NodeType::Regular => Ok(fd),
            NodeType::Directory if write => Err(Errno::EISDIR),
            // A directory's descriptor is nothing to give away: paths could be opened from it.
            _ => Err(Errno::ENXIO),
        }
    }

    /// [`Request::Walk`](super::protocol::Request::Walk).
    pub fn walk(&mut self, from: &Place<'_>, path: &[u8], (keep, open): (bool, bool), reply: &mut Vec<u8>) -> Answer {
        let start = self.resolve(from)?;
        let mut stats = Vec::new();
        let mut reached = Vec::new();
        let mut at = start.clone();
        let mut stopped = 0;
        let components: Vec<&[u8]> =
            path.split(|&byte| byte == b'/').filter(|component| !component.is_empty()).collect();
        for component in &components {
            match walk_one(&at, component) {
                Ok((next, stat)) => {
                    at = Arc::new(next);
                    stats.push(stat);
                    reached.push(at.clone());
                    // The kernel would say ENOTDIR or ELOOP for the next component; the sentry follows links itself.
                    if (stats.len() + 2) * (Stat::MAX_LEN + size_of::<u32>())
                        > MAX_MESSAGE - HEADROOM - libc::PATH_MAX as usize
                    {
                        break;
                    }
                }
                Err(error) => {
                    stopped = error.raw() as u32;
                    break;
                }
            }
        }
        let complete = stats.len() == components.len();
        let first = stat_fd((*start).as_fd())?;
        let last = *stats.last().unwrap_or(&first);
        let target = if last.kind == NodeType::Symlink { host::read_link((*at).as_fd())? } else { Vec::new() };
        let regular = complete && open && last.kind == NodeType::Regular;
        let opened = if regular { open_walked((*start).as_fd(), path, &last) } else { None };
        reply.u32(stats.len() as u32);
        first.put(reply);
        stats.iter().for_each(|stat| stat.put(reply));
        reply.u32(stopped);
        if components.is_empty() {
            reached.push(at);
        }
        let kept = if keep { self.keep_all(reached)? } else { Vec::new() };
        reply.u32(kept.len() as u32);
        kept.iter().for_each(|&node| reply.u32(node));
        reply.bytes(&target);
        Ok(opened)
    }

    /// [`Request::Attr`](super::protocol::Request::Attr).
    pub fn attr(&self, target: &Target<'_>, reply: &mut Vec<u8>) -> Answer {
        stat_fd((*self.find(target)?).as_fd())?.put(reply);
        Ok(None)
    }

    /// [`Request::ReadLink`](super::protocol::Request::ReadLink).
    pub fn read_link(&self, target: &Target<'_>, reply: &mut Vec<u8>) -> Answer {
        let link = self.find(target)?;
        if stat_fd((*link).as_fd())?.kind != NodeType::Symlink {
            return Err(Errno::EINVAL);
        }
        reply.bytes(&host::read_link((*link).as_fd())?);
        Ok(None)
    }

    /// [`Request::StatFs`](super::protocol::Request::StatFs).
    pub fn statfs(&self, reply: &mut Vec<u8>) -> Answer {
        let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
        // SAFETY: the structure is the kernel's to fill.
        host::done(unsafe { libc::fstatfs(self.node(ROOT)?.as_raw_fd(), found.as_mut_ptr()) })?;
        // SAFETY: zeroes are a valid value of this plain structure, and the call has filled it in.
        let found = unsafe { found.assume_init() };
        for number in [found.f_type as u64, found.f_bsize as u64, found.f_blocks, found.f_bfree, found.f_bavail] {
            reply.u64(number);
        }
        for number in [found.f_files, found.f_ffree, found.f_namelen as u64] {
            reply.u64(number);
        }
        Ok(None)
    }

    /// [`Request::Sync`](super::protocol::Request::Sync).
    pub fn sync(&self, target: Option<&Target<'_>>) -> Answer {
        let root = Target { node: ROOT, at: Place { node: ROOT, path: b"" } };
        let (fd, _) = self.open_content(target.unwrap_or(&root), libc::O_RDONLY)?;
        // SAFETY: both take a descriptor alone.
        let ret = unsafe { if target.is_some() { libc::fsync(fd.as_raw_fd()) } else { libc::syncfs(fd.as_raw_fd()) } };
        host::done(ret).map(|()| None)
    }

    /// [`Request::ReadDir`](super::protocol::Request::ReadDir).
    pub fn read_dir(&mut self, target: &Target<'_>, cookie: u64, reply: &mut Vec<u8>) -> Answer {
        let dir = self.directory(target, cookie)?;
        let at = reply.len();
        reply.u64(cookie);
        reply.bool(false);
        let (next, end) = read_entries(dir.dir.as_fd(), cookie, reply)?;
        let mut head = Vec::new();
        head.u64(next);
        head.bool(end);
        reply[at..at + head.len()].copy_from_slice(&head);
        // What is kept open cannot be unmounted on the host.
        self.reading = (!end && !self.follows).then_some(Reading { cookie: next, ..dir });
        Ok(None)
    }

    /// The directory to go on reading at `cookie`: the one that was read last, or opened and moved there.
    fn directory(&mut self, target: &Target<'_>, cookie: u64) -> Result<Reading> {
        if let Some(reading) = self.reading.take()
            && cookie != 0
            && reading.cookie == cookie
            && stat_fd((*self.find(target)?).as_fd())?.key() == reading.key
        {
            return Ok(reading);
        }
        let (dir, stat) = self.open_content(target, libc::O_RDONLY | libc::O_DIRECTORY)?;
        if cookie != 0 {
            seek(dir.as_fd(), cookie)?;
        }
        Ok(Reading { key: stat.key(), cookie, dir })
    }
}

/// Opens one component, and says what it is.
fn walk_one(dir: &OwnedFd, name: &[u8]) -> Result<(OwnedFd, Stat)> {
    let fd = host::open(dir.as_fd(), name, host::PATH, 0)?;
    let stat = stat_fd(fd.as_fd())?;
    Ok((fd, stat))
}

/// Opens the regular file that a walk has ended at, if it is still there. Whoever needs it and did not get it asks again.
fn open_walked(start: BorrowedFd<'_>, path: &[u8], last: &Stat) -> Option<OwnedFd> {
    // A walk of no step may have started at a file, which cannot be opened beneath itself.
    let fd = host::open(start, path, libc::O_RDONLY | host::CONTENT, 0).ok()?;
    let stat = stat_fd(fd.as_fd()).ok()?;
    (stat.key() == last.key() && stat.kind == NodeType::Regular).then_some(fd)
}

fn seek(dir: BorrowedFd<'_>, cookie: u64) -> Result<()> {
    // SAFETY: lseek(2) takes numbers alone.
    check(unsafe { libc::lseek(dir.as_raw_fd(), cookie as libc::off_t, libc::SEEK_SET) }).map(drop)
}

/// Appends entries, with attributes, as long as there is space; where to go on, and whether that is the end.
fn read_entries(dir: BorrowedFd<'_>, from: u64, reply: &mut Vec<u8>) -> Result<(u64, bool)> {
    const ENTRY: usize = Stat::MAX_LEN + 4 + super::codec::MAX_NAME;
    let mut buf = vec![0u8; 32 << 10];
    let mut next = from;
    loop {
        // SAFETY: the buffer is as long as said.
        let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buf.as_mut_ptr(), buf.len()) };
        let n = check(n)? as usize;
        if n == 0 {
            return Ok((next, true));
        }
        for entry in Entries(&buf[..n]) {
            if reply.len() + ENTRY > MAX_MESSAGE - HEADROOM {
                // The rest of what was read is read again.
                seek(dir, next)?;
                return Ok((next, false));
            }
            next = entry.next;
            let bytes = entry.name.to_bytes();
            if matches!(bytes, b"." | b"..") {
                continue;
            }
            // Gone since, or of a type that nobody knows.
            let Ok(stat) = stat_at(dir, entry.name, 0) else { continue };
            stat.put(reply);
            reply.bytes(bytes);
        }
    }
}

/// `struct linux_dirent64`, getdents64(2), one after another.
struct Entries<'a>(&'a [u8]);

struct DirEntry<'a> {
    next: u64,
    name: &'a CStr,
}

impl<'a> Iterator for Entries<'a> {
    type Item = DirEntry<'a>;

    fn next(&mut self) -> Option<DirEntry<'a>> {
        // d_ino u64, d_off u64, d_reclen u16, d_type u8, d_name.
        let next = u64::from_ne_bytes(self.0.get(8..16)?.try_into().ok()?);
        let len = u16::from_ne_bytes(self.0.get(16..18)?.try_into().ok()?);
        let (entry, rest) = self.0.split_at_checked(usize::from(len))?;
        self.0 = rest;
        Some(DirEntry { next, name: CStr::from_bytes_until_nul(entry.get(19..)?).ok()? })
    }
}
