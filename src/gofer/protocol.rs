//! What the sentry asks and how.
//!
//! ```text
//! request  version u8, operation u8, its fields          Forget has no answer, everything else has one
//! reply    version u8, operation u8, errno u32, and with errno 0 its fields; a descriptor with those that open
//! ```
//!
//! Files are named in two ways. A *path* is relative to a node that the gofer keeps open, the root being node 0; of a tree
//! that nobody changes that is all it takes. A *node* is what [`Walk`](Request::Walk) left open for the sentry, until it
//! is forgotten: it stays the same file whatever becomes of its names. Since a node is open with `O_PATH` only, what
//! needs the file's content goes by its path as well, and fails with `ESTALE` when that has become another file.

use super::codec::{Decoded, Get, Malformed, Put};
use crate::vfs::inode::{NodeType, SetAttr};

/// Changes with every change of what is sent.
pub const VERSION: u8 = 2;

/// The root of the tree.
pub const ROOT: u32 = 0;

/// No node.
pub const NONE: u32 = u32::MAX;

/// How many nodes a connection may keep; each is a descriptor of the gofer's.
pub const MAX_NODES: usize = 1 << 17;

/// How many nodes one message forgets at most.
pub const MAX_FORGET: usize = 4096;

/// The most bytes of a message that is not the payload: entries of a directory, an attribute's value.
pub const HEADROOM: usize = 1024;

/// A file by path: components, separated by `/`, from a directory on; the node itself when there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Where the path starts.
    pub node: u32,
    /// The path: never `.`, `..` or through a symbolic link.
    pub path: &'a [u8],
}

/// A file that exists: by node where there is one, and where its content can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Which file it must be, or [`NONE`]: whatever is at `at`.
    pub node: u32,
    /// Where it was last seen.
    pub at: Place<'a>,
}

/// A name in a directory, which need not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The directory.
    pub dir: Place<'a>,
    /// The name.
    pub name: &'a [u8],
}

/// What [`Request::Create`] makes; as [`NewNode`](crate::vfs::inode::NewNode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of NewNode")]
pub struct New<'a> {
    pub kind: NodeType,
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub target: &'a [u8],
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $number:literal),* $(,)?) => {
        /// The operation's number, second byte of request and reply.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the names are those of Request")]
        pub enum Op { $($name = $number),* }

        impl Op {
            /// From its number.
            pub fn from_number(number: u8) -> Option<Op> {
                match number { $($number => Some(Op::$name),)* _ => None }
            }
        }
    };
}

operations! {
    Walk = 1, Open = 2, Attr = 3, ReadDir = 4, ReadLink = 5, StatFs = 6, GetXattr = 7, ListXattr = 8, Forget = 9,
    Sync = 10, Create = 20, Link = 21, Unlink = 22, Rename = 23, SetAttr = 24, SetXattr = 25, RemoveXattr = 26,
}

/// A request; what is in the reply is said of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Follows the path as far as it goes. Reply: how many components exist (u32); the attributes of the start, then of each;
    /// what stopped it (errno u32, 0 at the path's end); how many nodes were kept (u32) and their numbers; the text of the
    /// last component if it is a symbolic link.
    Walk {
        /// Where it starts.
        from: Place<'a>,
        /// The path to follow from there.
        path: &'a [u8],
        /// Keep each component that exists open as a node; the start, when the path is empty.
        keep: bool,
        /// Open the end for reading if it is a regular file: a descriptor comes along.
        open: bool,
    },
    /// Opens a regular file. Reply: a descriptor. `ENXIO` for others.
    Open {
        /// The file.
        target: Target<'a>,
        /// For reading and writing, not reading alone.
        write: bool,
    },
    /// Reply: attributes.
    Attr(Target<'a>),
    /// Reads a directory. Reply: where to go on (u64), whether that is the end (bool), then for each entry its
    /// attributes and name up to the message's end.
    ReadDir {
        /// The directory.
        target: Target<'a>,
        /// Where an earlier reply said to go on; 0 from the start.
        cookie: u64,
    },
    /// Reply: a symbolic link's text.
    ReadLink(Target<'a>),
    /// Reply: the seven numbers of `statfs(2)` and the longest name, u64 each.
    StatFs,
    /// Reply: the value.
    GetXattr(Target<'a>, &'a [u8]),
    /// Reply: names, each with a NUL behind.
    ListXattr(Target<'a>),
    /// Gives nodes back. No reply.
    Forget(Vec<u32>),
    /// `syncfs(2)` of the root's file system, or `fsync(2)` of a file or directory. Reply: nothing.
    Sync(Option<Target<'a>>),
    /// Makes a node. Reply: attributes, node, and for a regular file a descriptor open for reading and writing.
    Create(Entry<'a>, New<'a>),
    /// Reply: the attributes of what has one name more.
    Link(Entry<'a>, Target<'a>),
    /// `unlink(2)`, or `rmdir(2)` if it is a directory. Reply: nothing.
    Unlink(Entry<'a>, bool),
    /// `renameat2(2)`. Reply: the attributes of what was renamed.
    Rename(Entry<'a>, Entry<'a>, u32),
    /// Reply: attributes.
    SetAttr(Target<'a>, SetAttr),
    /// Reply: nothing.
    SetXattr {
        /// The file.
        target: Target<'a>,
        /// The attribute's name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
        /// `XATTR_CREATE`, `XATTR_REPLACE`.
        flags: u32,
    },
    /// Reply: nothing.
    RemoveXattr(Target<'a>, &'a [u8]),
}

impl<'a> Request<'a> {
    /// Which it is.
    pub fn op(&self) -> Op {
        match self {
            Request::Walk { .. } => Op::Walk,
            Request::Open { .. } => Op::Open,
            Request::Attr(_) => Op::Attr,
            Request::ReadDir { .. } => Op::ReadDir,
            Request::ReadLink(_) => Op::ReadLink,
            Request::StatFs => Op::StatFs,
            Request::GetXattr(..) => Op::GetXattr,
            Request::ListXattr(_) => Op::ListXattr,
            Request::Forget(_) => Op::Forget,
            Request::Sync(_) => Op::Sync,
            Request::Create(..) => Op::Create,
            Request::Link(..) => Op::Link,
            Request::Unlink(..) => Op::Unlink,
            Request::Rename(..) => Op::Rename,
            Request::SetAttr(..) => Op::SetAttr,
            Request::SetXattr { .. } => Op::SetXattr,
            Request::RemoveXattr(..) => Op::RemoveXattr,
        }
    }

    /// Whether it changes files: refused with `EROFS` on a tree that is served read-only.
    pub fn changes(&self) -> bool {
        self.op() as u8 >= Op::Create as u8 || matches!(self, Request::Open { write: true, .. })
    }

    /// As a message.
    pub fn encode(&self) -> Vec<u8> {
        let mut m = vec![VERSION, self.op() as u8];
        match self {
            Request::Walk { from, path, keep, open } => {
                from.put(&mut m);
                m.bytes(path);
                m.bool(*keep);
                m.bool(*open);
            }
            Request::Open { target, write } => {
                target.put(&mut m);
                m.bool(*write);
            }
            Request::Attr(target) | Request::ReadLink(target) | Request::ListXattr(target) => target.put(&mut m),
            Request::ReadDir { target, cookie } => {
                target.put(&mut m);
                m.u64(*cookie);
            }
            Request::StatFs => {}
            Request::GetXattr(target, name) | Request::RemoveXattr(target, name) => {
                target.put(&mut m);
                m.bytes(name);
            }
            Request::Forget(nodes) => nodes.iter().for_each(|&node| m.u32(node)),
            Request::Sync(target) => m.option(target.as_ref(), |m, target| target.put(m)),
            Request::Create(entry, new) => {
                entry.put(&mut m);
                new.put(&mut m);
            }
            Request::Link(entry, target) => {
                entry.put(&mut m);
                target.put(&mut m);
            }
            Request::Unlink(entry, directory) => {
                entry.put(&mut m);
                m.bool(*directory);
            }
            Request::Rename(old, new, flags) => {
                old.put(&mut m);
                new.put(&mut m);
                m.u32(*flags);
            }
            Request::SetAttr(target, set) => {
                target.put(&mut m);
                put_set(set, &mut m);
            }
            Request::SetXattr { target, name, value, flags } => {
                target.put(&mut m);
                m.bytes(name);
                m.bytes(value);
                m.u32(*flags);
            }
        }
        m
    }

    /// From a message.
    pub fn decode(message: &'a [u8]) -> Decoded<Request<'a>> {
        let mut m = Get::new(message);
        if m.u8()? != VERSION {
            return Err(Malformed);
        }
        let op = Op::from_number(m.u8()?).ok_or(Malformed)?;
        let request = match op {
            Op::Walk => Request::Walk { from: Place::get(&mut m)?, path: m.path()?, keep: m.bool()?, open: m.bool()? },
            Op::Open => Request::Open { target: Target::get(&mut m)?, write: m.bool()? },
            Op::Attr => Request::Attr(Target::get(&mut m)?),
            Op::ReadDir => Request::ReadDir { target: Target::get(&mut m)?, cookie: m.u64()? },
            Op::ReadLink => Request::ReadLink(Target::get(&mut m)?),
            Op::StatFs => Request::StatFs,
            Op::GetXattr => Request::GetXattr(Target::get(&mut m)?, xattr_name(&mut m)?),
            Op::ListXattr => Request::ListXattr(Target::get(&mut m)?),
            Op::Forget => Request::Forget(forgotten(&mut m)?),
            Op::Sync => Request::Sync(m.option(Target::get)?),
            Op::Create => Request::Create(Entry::get(&mut m)?, New::get(&mut m)?),
            Op::Link => Request::Link(Entry::get(&mut m)?, Target::get(&mut m)?),
            Op::Unlink => Request::Unlink(Entry::get(&mut m)?, m.bool()?),
            Op::Rename => Request::Rename(Entry::get(&mut m)?, Entry::get(&mut m)?, m.u32()?),
            Op::SetAttr => Request::SetAttr(Target::get(&mut m)?, get_set(&mut m)?),
            Op::SetXattr => Request::SetXattr {
                target: Target::get(&mut m)?,
                name: xattr_name(&mut m)?,
                value: m.bytes()?,
                flags: m.u32()?,
            },
            Op::RemoveXattr => Request::RemoveXattr(Target::get(&mut m)?, xattr_name(&mut m)?),
        };
        m.end()?;
        Ok(request)
    }
}

impl<'a> Place<'a> {
    fn put(&self, m: &mut Vec<u8>) {
        m.u32(self.node);
        m.bytes(self.path);
    }

    fn get(m: &mut Get<'a>) -> Decoded<Place<'a>> {
        Ok(Place { node: m.u32()?, path: m.path()? })
    }
}

impl<'a> Target<'a> {
    fn put(&self, m: &mut Vec<u8>) {
        m.u32(self.node);
        self.at.put(m);
    }

    fn get(m: &mut Get<'a>) -> Decoded<Target<'a>> {
        Ok(Target { node: m.u32()?, at: Place::get(m)? })
    }
}

impl<'a> Entry<'a> {
    fn put(&self, m: &mut Vec<u8>) {
        self.dir.put(m);
        m.bytes(self.name);
    }

    fn get(m: &mut Get<'a>) -> Decoded<Entry<'a>> {
        Ok(Entry { dir: Place::get(m)?, name: m.name()? })
    }
}

impl<'a> New<'a> {
    fn put(&self, m: &mut Vec<u8>) {
        m.u32(self.kind.mode_bits() | self.perm);
        m.u32(self.uid);
        m.u32(self.gid);
        m.u64(self.rdev);
        m.bytes(self.target);
    }

    fn get(m: &mut Get<'a>) -> Decoded<New<'a>> {
        let mode = m.u32()?;
        let (uid, gid, rdev, target) = (m.u32()?, m.u32()?, m.u64()?, m.bytes()?);
        let kind = NodeType::from_mode(mode).ok_or(Malformed)?;
        if target.len() >= libc::PATH_MAX as usize || target.contains(&0) {
            return Err(Malformed);
        }
        Ok(New { kind, perm: mode & 0o7777, uid, gid, rdev, target })
    }
}

fn put_set(set: &SetAttr, m: &mut Vec<u8>) {
    m.option(set.perm, Put::u32);
    m.option(set.uid, Put::u32);
    m.option(set.gid, Put::u32);
    m.option(set.size, Put::u64);
    m.option(set.atime, Put::time);
    m.option(set.mtime, Put::time);
}

fn get_set(m: &mut Get<'_>) -> Decoded<SetAttr> {
    Ok(SetAttr {
        perm: m.option(Get::u32)?,
        uid: m.option(Get::u32)?,
        gid: m.option(Get::u32)?,
        size: m.option(Get::u64)?,
        atime: m.option(Get::time)?,
        mtime: m.option(Get::time)?,
    })
}

/// `XATTR_NAME_MAX` is that of a file's name.
fn xattr_name<'a>(m: &mut Get<'a>) -> Decoded<&'a [u8]> {
    let name = m.bytes()?;
    let fits = !name.is_empty() && name.len() <= super::codec::MAX_NAME && !name.contains(&0);
    if fits { Ok(name) } else { Err(Malformed) }
}

fn forgotten(m: &mut Get<'_>) -> Decoded<Vec<u32>> {
    let mut nodes = Vec::new();
    while !m.is_empty() {
        if nodes.len() == MAX_FORGET {
            return Err(Malformed);
        }
        nodes.push(m.u32()?);
    }
    Ok(nodes)
}
