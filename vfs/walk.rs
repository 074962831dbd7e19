//! Path resolution: `path_resolution(7)`, `openat2(2)`.

use std::sync::Arc;

use bitflags::bitflags;

use crate::errno::{Errno, Result};
use crate::sentry::creds::Credentials;
use crate::vfs::dentry::{Dentry, Known};
use crate::vfs::devices::DeviceTable;
use crate::vfs::inode::{Caching, NodeType};
use crate::vfs::mount::MountFlags;
use crate::vfs::path::Path;
use crate::vfs::perm::{Access, may};

/// The longest path, its NUL included.
pub const PATH_MAX: usize = 4096;
/// The longest name.
pub const NAME_MAX: usize = 255;
/// How many symbolic links one resolution follows.
pub const LINKS_MAX: u32 = 40;

bitflags! {
    /// How a path is resolved.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct LookupFlags: u32 {
        /// Follow a symbolic link at the end.
        const FOLLOW = 1;
        /// `ENOTDIR` unless it leads to a directory.
        const DIRECTORY = 2;
        /// `AT_EMPTY_PATH`: an empty path means the start.
        const EMPTY_PATH = 4;
        /// `RESOLVE_NO_SYMLINKS`: `ELOOP` at any symbolic link.
        const NO_SYMLINKS = 8;
        /// `RESOLVE_NO_MAGICLINKS`: `ELOOP` at a link that leads somewhere without a text.
        const NO_MAGICLINKS = 16;
        /// `RESOLVE_BENEATH`: `EXDEV` on leaving the start.
        const BENEATH = 32;
        /// `RESOLVE_IN_ROOT`: the start is the root.
        const IN_ROOT = 64;
        /// `RESOLVE_NO_XDEV`: `EXDEV` at a mount point.
        const NO_XDEV = 128;
        /// `RESOLVE_CACHED`: `EAGAIN` where the file system would have to be asked.
        const CACHED = 256;
    }
}

/// Who resolves a path, and from where.
#[derive(Clone, Copy)]
pub struct Walk<'a> {
    /// The process's root.
    pub root: &'a Path,
    /// Where relative paths start: the working directory or the directory of an `*at` call. Need not be a directory
    /// (`ENOTDIR`), which an empty path or an absolute one does not look at.
    pub start: &'a Path,
    /// In whose name.
    pub creds: &'a Credentials,
    /// Taken off the permissions of what is made.
    pub umask: u32,
    /// What device nodes open.
    pub devices: &'a DeviceTable,
}

/// The end of a path whose directory is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Last {
    /// A name in the directory, with whether slashes follow it.
    Name(Vec<u8>, bool),
    /// `.`
    Dot,
    /// `..`
    DotDot,
    /// The path was all slashes.
    Root,
}

impl<'a> Walk<'a> {
    /// Resolves a path. What is returned exists.
    pub fn lookup(&self, path: &[u8], flags: LookupFlags) -> Result<Path> {
        if path.is_empty() {
            if !flags.contains(LookupFlags::EMPTY_PATH) {
                return Err(Errno::ENOENT);
            }
            if flags.contains(LookupFlags::DIRECTORY) && !self.start.dentry.is_dir() {
                return Err(Errno::ENOTDIR);
            }
            return Ok(self.start.clone());
        }
        let mut resolver = Resolver::begin(self, path, flags)?;
        resolver.resolve(path, flags.contains(LookupFlags::FOLLOW))?;
        let found = resolver.at;
        found.inode()?;
        if flags.contains(LookupFlags::DIRECTORY) && !found.dentry.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        Ok(found)
    }

    /// Resolves a path to a directory that may be searched: `chdir(2)`, `chroot(2)`. `ENOTDIR`, `EACCES`.
    pub fn lookup_dir(&self, path: &[u8], flags: LookupFlags) -> Result<Path> {
        let found = self.lookup(path, flags | LookupFlags::DIRECTORY)?;
        may(&found.attr()?, self.creds, Access::EXEC)?;
        Ok(found)
    }

    /// Resolves all but the last name of a path. Symbolic links before it are followed.
    pub fn lookup_parent(&self, path: &[u8], flags: LookupFlags) -> Result<(Path, Last)> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        let mut resolver = Resolver::begin(self, path, flags)?;
        let last = resolver.resolve_parent(path)?;
        Ok((resolver.at, last))
    }
}

/// What the file system was told of the names to come: see [`Inode::prefetch`](crate::vfs::inode::Inode::prefetch).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Announced {
    Nothing,
    /// They are known, and to be asked about.
    Known,
    /// They are to be looked up.
    All,
}

/// A resolution on its way.
pub(super) struct Resolver<'a> {
    walk: &'a Walk<'a>,
    flags: LookupFlags,
    /// Where `/` and `..` end: the process's root, or the start with `IN_ROOT`.
    root: &'a Path,
    links: u32,
    announced: Announced,
    pub(super) at: Path,
}

impl<'a> Resolver<'a> {
    /// Goes to where `path` begins. `ENAMETOOLONG`.
    pub(super) fn begin(walk: &'a Walk<'a>, path: &[u8], flags: LookupFlags) -> Result<Resolver<'a>> {
        if path.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let scoped = flags.intersects(LookupFlags::IN_ROOT);
        let root = if scoped { walk.start } else { walk.root };
        let mut resolver =
            Resolver { walk, flags, root, links: 0, announced: Announced::Nothing, at: walk.start.clone() };
        if path.first() == Some(&b'/') {
            resolver.jump_to_root()?;
        }
        Ok(resolver)
    }

    fn jump_to_root(&mut self) -> Result<()> {
        if self.flags.contains(LookupFlags::BENEATH) {
            return Err(Errno::EXDEV);
        }
        self.jump(self.root.clone())
    }

    fn jump(&mut self, to: Path) -> Result<()> {
        if self.flags.contains(LookupFlags::NO_XDEV) && !Arc::ptr_eq(&to.mount, &self.at.mount) {
            return Err(Errno::EXDEV);
        }
        self.at = to;
        Ok(())
    }

    /// Resolves all of `path` from where it stands; a symbolic link at the end is followed if `follow` or slashes follow.
    pub(super) fn resolve(&mut self, path: &[u8], follow: bool) -> Result<()> {
        let mut rest = Components(path);
        while let Some(name) = rest.next() {
            let end = rest.is_end();
            let follow = follow || !end || rest.has_slash();
            self.step(name, &rest, follow)?;
        }
        if path.ends_with(b"/") && self.at.dentry.kind() != Some(NodeType::Directory) {
            self.at.inode()?;
            return Err(Errno::ENOTDIR);
        }
        Ok(())
    }

    /// Resolves `path` up to its last component.
    pub(super) fn resolve_parent(&mut self, path: &[u8]) -> Result<Last> {
        let mut rest = Components(path);
        while let Some(name) = rest.next() {
            if rest.is_end() {
                self.announce_doubtful(name, &rest)?;
                self.may_search()?;
                return match name {
                    b"." => Ok(Last::Dot),
                    b".." => Ok(Last::DotDot),
                    _ if name.len() > NAME_MAX => Err(Errno::ENAMETOOLONG),
                    _ => Ok(Last::Name(name.to_vec(), rest.has_slash())),
                };
            }
            self.step(name, &rest, true)?;
        }
        Ok(Last::Root)
    }

    /// One component. A name that does not exist is `ENOENT`.
    fn step(&mut self, name: &[u8], rest: &Components<'_>, follow: bool) -> Result<()> {
        self.announce_doubtful(name, rest)?;
        self.may_search()?;
        match name {
            b"." => return Ok(()),
            b".." => return self.step_up(),
            _ => {}
        }
        let child = self.child(name, rest)?;
        let kind = child.kind().ok_or(Errno::ENOENT)?;
        if kind == NodeType::Symlink && follow {
            return self.follow(&child);
        }
        self.at.dentry = child;
        if self.at.cross_down() && self.flags.contains(LookupFlags::NO_XDEV) {
            return Err(Errno::EXDEV);
        }
        Ok(())
    }

    fn may_search(&self) -> Result<()> {
        if !self.at.dentry.is_dir() {
            self.at.inode()?;
            return Err(Errno::ENOTDIR);
        }
        may(&self.at.attr()?, self.walk.creds, Access::EXEC)
    }

    fn step_up(&mut self) -> Result<()> {
        if self.flags.contains(LookupFlags::BENEATH) && self.at == *self.walk.start {
            return Err(Errno::EXDEV);
        }
        let up = self.at.dot_dot(self.root);
        self.jump(up)
    }

    /// The dentry of `name` here, negative if there is no such name.
    pub(super) fn child(&mut self, name: &[u8], rest: &Components<'_>) -> Result<Arc<Dentry>> {
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let known = self.at.dentry.known(name);
        let doubtful = match known {
            Known::Good(child) => return Ok(child),
            Known::Doubtful(_) => true,
            Known::No => false,
        };
        if self.flags.contains(LookupFlags::CACHED) {
            return Err(Errno::EAGAIN);
        }
        if doubtful {
            self.announce(name, rest, Announced::Known)?;
            if let Some(child) = self.at.dentry.lookup_cached(name) {
                return Ok(child);
            }
        }
        self.announce(name, rest, Announced::All)?;
        self.at.dentry.lookup(name)
    }

    /// In a leased tree announces a name that is not known to be good, before the directory's attributes are asked for: they
    /// come with the answer.
    fn announce_doubtful(&mut self, name: &[u8], rest: &Components<'_>) -> Result<()> {
        let leased = self.at.dentry.superblock().caching == Caching::Lease;
        if !leased || self.announced == Announced::All || matches!(name, b"." | b"..") || !self.at.dentry.is_dir() {
            return Ok(());
        }
        if self.flags.contains(LookupFlags::CACHED) {
            return Ok(());
        }
        match self.at.dentry.known(name) {
            Known::Good(_) => Ok(()),
            Known::Doubtful(_) => self.announce(name, rest, Announced::Known),
            Known::No => self.announce(name, rest, Announced::All),
        }
    }

    /// Tells the file system what is about to be asked about or looked up, once each between two symbolic links.
    fn announce(&mut self, name: &[u8], rest: &Components<'_>, what: Announced) -> Result<()> {
        let leased = self.at.dentry.superblock().caching == Caching::Lease;
        if self.announced < what && (leased || !rest.is_end()) {
            self.announced = what;
            let names = rest.clone().take_while(|name| *name != b"..").filter(|name| *name != b".");
            let names: Vec<&[u8]> = std::iter::once(name).chain(names).collect();
            self.at.dentry.inode()?.prefetch(&names, what == Announced::Known);
        }
        Ok(())
    }

    /// Goes where the symbolic link `link`, a name in the present directory, leads.
    fn follow(&mut self, link: &Arc<Dentry>) -> Result<()> {
        match self.enter(link)? {
            Some(text) => {
                self.resolve(&text, true)?;
                // What follows the link was not announced with what leads to it.
                self.announced = Announced::Nothing;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Begins to follow a symbolic link: its text, having gone to where that begins; `None` for a magic link, having gone
    /// to its destination.
    pub(super) fn enter(&mut self, link: &Arc<Dentry>) -> Result<Option<Vec<u8>>> {
        self.links += 1;
        let forbidden =
            self.flags.contains(LookupFlags::NO_SYMLINKS) || self.at.mount.flags().contains(MountFlags::NOSYMFOLLOW);
        if self.links > LINKS_MAX || forbidden {
            return Err(Errno::ELOOP);
        }
        let inode = link.inode()?;
        if let Some(destination) = inode.magic_link() {
            if self.flags.contains(LookupFlags::NO_MAGICLINKS) {
                return Err(Errno::ELOOP);
            }
            if self.flags.intersects(LookupFlags::BENEATH | LookupFlags::IN_ROOT) {
                return Err(Errno::EXDEV);
            }
            self.jump(destination?)?;
            return Ok(None);
        }
        let text = inode.read_link()?;
        self.announced = Announced::Nothing;
        if text.is_empty() {
            return Err(Errno::ENOENT);
        }
        if text.first() == Some(&b'/') {
            self.jump_to_root()?;
        }
        Ok(Some(text))
    }
}

/// The names of a path: what is between slashes.
#[derive(Clone)]
pub(super) struct Components<'p>(pub(super) &'p [u8]);

impl Components<'_> {
    /// Whether there is no further name.
    pub(super) fn is_end(&self) -> bool {
        self.0.iter().all(|&byte| byte == b'/')
    }

    /// Whether a slash follows the last name taken.
    fn has_slash(&self) -> bool {
        self.0.first() == Some(&b'/')
    }
}

impl<'p> Iterator for Components<'p> {
    type Item = &'p [u8];

    fn next(&mut self) -> Option<&'p [u8]> {
        let start = self.0.iter().position(|&byte| byte != b'/')?;
        let path = &self.0[start..];
        let end = path.iter().position(|&byte| byte == b'/').unwrap_or(path.len());
        self.0 = &path[end..];
        Some(&path[..end])
    }
}
