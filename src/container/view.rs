//! `runsc mount`: a container's files as its sentry sees them, shown on the host through FUSE, for reading alone.
//!
//! ```text
//! ls DIR ── host kernel ── /dev/fuse ── runsc-view (this) ── files: attr, open, read … ── sentry: its mounts, memory layers
//! ```
//!
//! The process behind it is the operator's: what the sentry answers is checked (`files`), and the host's kernel is told to
//! follow none of the container's symbolic links, which would lead out of the directory, and to open none of its devices.
//! Nothing is remembered from one question to the next, so that what is seen is what is there.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr,
    Request,
};
use parking_lot::Mutex;

use super::files::Client;
use crate::errno::{Errno, Result};
use crate::gofer::codec::{MAX_PATH, Stat, is_name};
use crate::vfs::inode::{NodeType, TimeSpec};

/// How long the kernel believes what it was told.
const NOT_AT_ALL: Duration = Duration::ZERO;

/// The kernel's number of the root.
const ROOT: u64 = 1;

/// An inode number that is only known once the name is looked up: `FUSE_UNKNOWN_INO` of libfuse.
const UNKNOWN: INodeNo = INodeNo(0xffff_ffff);

/// The file system.
pub struct View(Mutex<State>);

struct State {
    client: Client,
    nodes: Nodes,
}

/// The kernel's numbers for files, which stand for their names.
struct Nodes {
    named: HashMap<u64, Node>,
    numbers: HashMap<(u64, Vec<u8>), u64>,
    last: u64,
}

struct Node {
    parent: u64,
    name: Vec<u8>,
    kind: NodeType,
    /// How often the kernel was given it and has not given it back.
    count: u64,
}

impl Nodes {
    fn new() -> Nodes {
        Nodes { named: HashMap::new(), numbers: HashMap::new(), last: ROOT }
    }

    /// The path from the root. `ESTALE` for a number that is none; `ENAMETOOLONG`.
    fn path(&self, mut number: u64) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        let mut length = 0;
        while number != ROOT {
            let node = self.named.get(&number).ok_or(Errno::ESTALE)?;
            names.push(node.name.as_slice());
            number = node.parent;
            length += node.name.len() + 1;
            if length > MAX_PATH {
                return Err(Errno::ENAMETOOLONG);
            }
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// The path of a name in a directory. `ENOENT` for what is no name.
    fn path_of(&self, parent: u64, name: &[u8]) -> Result<Vec<u8>> {
        if !is_name(name) {
            return Err(Errno::ENOENT);
        }
        let mut path = self.path(parent)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if path.len() > MAX_PATH { Err(Errno::ENAMETOOLONG) } else { Ok(path) }
    }

    /// The number for a name that the kernel is told of. A name that has become a file of another type gets another number.
    fn give(&mut self, parent: u64, name: &[u8], kind: NodeType) -> u64 {
        let place = (parent, name.to_vec());
        let known = self.numbers.get(&place).copied();
        if let Some(number) = known
            && let Some(node) = self.named.get_mut(&number).filter(|node| node.kind == kind)
        {
            node.count += 1;
            return number;
        }
        self.last += 1;
        self.named.insert(self.last, Node { parent, name: name.to_vec(), kind, count: 1 });
        self.numbers.insert(place, self.last);
        self.last
    }

    fn take_back(&mut self, number: u64, count: u64) {
        let Some(node) = self.named.get_mut(&number) else { return };
        node.count = node.count.saturating_sub(count);
        if node.count > 0 {
            return;
        }
        if let Some(node) = self.named.remove(&number) {
            let place = (node.parent, node.name);
            if self.numbers.get(&place) == Some(&number) {
                self.numbers.remove(&place);
            }
        }
    }

    fn kind(&self, number: u64) -> Option<NodeType> {
        if number == ROOT { Some(NodeType::Directory) } else { self.named.get(&number).map(|node| node.kind) }
    }
}

impl State {
    fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<FileAttr> {
        let path = self.nodes.path_of(parent, name)?;
        let stat = self.client.attr(&path)?;
        let number = self.nodes.give(parent, name, stat.kind);
        Ok(attributes(number, &stat))
    }

    fn attr(&mut self, number: u64) -> Result<FileAttr> {
        let stat = self.client.attr(&self.nodes.path(number)?)?;
        // Another file has taken its name.
        if self.nodes.kind(number) == Some(stat.kind) { Ok(attributes(number, &stat)) } else { Err(Errno::ESTALE) }
    }

    fn read_dir(&mut self, file: u64, mut from: u64, reply: &mut ReplyDirectory) -> Result<()> {
        loop {
            let entries = self.client.read_dir(file, from)?;
            if entries.is_empty() {
                return Ok(());
            }
            for entry in entries {
                let name = OsStr::from_bytes(&entry.name);
                if reply.add(UNKNOWN, entry.next, file_type(entry.kind), name) {
                    return Ok(());
                }
                from = entry.next;
            }
        }
    }
}

impl View {
    /// Asks by way of `client`.
    pub fn new(client: Client) -> View {
        View(Mutex::new(State { client, nodes: Nodes::new() }))
    }

    /// Does something with the path of a file.
    fn with<T>(&self, ino: INodeNo, work: impl FnOnce(&mut Client, &[u8]) -> Result<T>) -> Result<T> {
        let State { client, nodes } = &mut *self.0.lock();
        work(client, &nodes.path(ino.0)?)
    }

    fn opened(&self, ino: INodeNo, reply: ReplyOpen) {
        // Without the kernel's cache: files of /proc have no size, and others may change.
        match self.with(ino, Client::open) {
            Ok(file) => reply.opened(FileHandle(file), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(for_kernel(error)),
        }
    }
}

impl Filesystem for View {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Where the kernel has it, files that bypass its cache can still be mapped.
        let _ = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.0.lock().lookup(parent.0, name.as_bytes()) {
            Ok(attr) => reply.entry(&NOT_AT_ALL, &attr, Generation(0)),
            Err(error) => reply.error(for_kernel(error)),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.0.lock().nodes.take_back(ino.0, count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.lock().attr(ino.0) {
            Ok(attr) => reply.attr(&NOT_AT_ALL, &attr),
            Err(error) => reply.error(for_kernel(error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.with(ino, Client::read_link) {
            Ok(text) => reply.data(&text),
            Err(error) => reply.error(for_kernel(error)),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.opened(ino, reply);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.lock().client.read(file.0, offset, size) {
            Ok(content) => reply.data(&content),
            Err(error) => reply.error(for_kernel(error)),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.lock().client.close(file.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.opened(ino, reply);
    }

    fn readdir(&self, _: &Request, _: INodeNo, file: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.0.lock().read_dir(file.0, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(for_kernel(error)),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, file: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.lock().client.close(file.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.with(ino, Client::statfs) {
            Ok([_, block, blocks, free, available, files, files_free, name]) => {
                let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
                reply.statfs(blocks, free, available, files, files_free, small(block), small(name), small(block));
            }
            Err(error) => reply.error(for_kernel(error)),
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        attribute(self.with(ino, |client, path| client.get_xattr(path, name.as_bytes())), size, reply);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        attribute(self.with(ino, Client::list_xattr), size, reply);
    }
}

/// Answers with an attribute or with its size, where that is what was asked for.
fn attribute(value: Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(for_kernel(error)),
    }
}

fn for_kernel(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw())
}

fn file_type(kind: NodeType) -> FileType {
    match kind {
        NodeType::Fifo => FileType::NamedPipe,
        NodeType::CharDevice => FileType::CharDevice,
        NodeType::Directory => FileType::Directory,
        NodeType::BlockDevice => FileType::BlockDevice,
        NodeType::Symlink => FileType::Symlink,
        NodeType::Socket => FileType::Socket,
        NodeType::Regular | NodeType::Anonymous => FileType::RegularFile,
    }
}

/// What the kernel is told. The inode number is the kernel's own: the container's file systems have the same ones for different
/// files, and here they are all on one.
fn attributes(number: u64, stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: stat.size.min(i64::MAX as u64),
        blocks: stat.blocks,
        atime: time(stat.atime),
        mtime: time(stat.mtime),
        ctime: time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind),
        perm: (stat.perm & 0o7777) as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: device(stat.rdev),
        blksize: stat.blksize,
        flags: 0,
    }
}

/// As the kernel encodes the number of a device: `new_encode_dev`.
fn device(rdev: u64) -> u32 {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

fn time(time: TimeSpec) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let seconds = if time.sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    seconds.and_then(|seconds| seconds.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_for_names_until_they_are_given_back() {
        let mut nodes = Nodes::new();
        let usr = nodes.give(ROOT, b"usr", NodeType::Directory);
        let bin = nodes.give(usr, b"bin", NodeType::Directory);
        assert_eq!(nodes.path(bin), Ok(b"usr/bin".to_vec()));
        assert_eq!(nodes.path(ROOT), Ok(Vec::new()));
        assert_eq!(nodes.path_of(bin, b"sh"), Ok(b"usr/bin/sh".to_vec()));
        assert_eq!(nodes.give(usr, b"bin", NodeType::Directory), bin);
        // Another type, another number; the old one still has its name.
        let file = nodes.give(usr, b"bin", NodeType::Regular);
        assert_ne!(file, bin);
        nodes.take_back(bin, 1);
        assert_eq!(nodes.kind(bin), Some(NodeType::Directory));
        nodes.take_back(bin, 1);
        assert_eq!(nodes.path(bin), Err(Errno::ESTALE));
        assert_eq!(nodes.give(usr, b"bin", NodeType::Regular), file);
        nodes.take_back(file, 2);
        nodes.take_back(usr, 7);
        assert!(nodes.named.is_empty() && nodes.numbers.is_empty());
    }

    #[test]
    fn names_that_lead_elsewhere_do_not_exist() {
        let mut nodes = Nodes::new();
        for name in ["", ".", "..", "a/b"] {
            assert_eq!(nodes.path_of(ROOT, name.as_bytes()), Err(Errno::ENOENT), "{name:?}");
        }
        let mut at = ROOT;
        for _ in 0..20 {
            at = nodes.give(at, &[b'a'; 255], NodeType::Directory);
        }
        assert_eq!(nodes.path(at), Err(Errno::ENAMETOOLONG));
    }

    #[test]
    fn times_of_any_value() {
        let at = |sec, nsec| time(TimeSpec { sec, nsec });
        assert_eq!(at(1, 5), UNIX_EPOCH + Duration::new(1, 5));
        assert_eq!(at(-1, 500_000_000), UNIX_EPOCH - Duration::from_millis(500));
        at(i64::MAX, 999_999_999);
        at(i64::MIN, 0);
    }
}
