//! `open(2)`, `openat2(2)`.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::vfs::dentry::Dentry;
use crate::vfs::deny::get_write;
use crate::vfs::file::{File, OpenFile};
use crate::vfs::inode::{Attr, Inode, NodeType, SetAttr};
use crate::vfs::mount::MountFlags;
use crate::vfs::names::{Request, may_create};
use crate::vfs::path::{Path, notify_at};
use crate::vfs::perm::{Access, may, owner, writable_mount};
use crate::vfs::pipe::{FifoOpening, FifoState};
use crate::vfs::walk::{Components, Last, LookupFlags, Resolver, Walk};
use crate::wait::WaitQueue;

/// `struct open_how`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenHow {
    /// `O_*`.
    pub flags: i32,
    /// Permissions of a file that is made, before the umask.
    pub mode: u32,
    /// `RESOLVE_*`; the other bits are set by [`Walk::open`] itself.
    pub resolve: LookupFlags,
}

/// What `open(2)` led to.
pub enum Opened {
    /// An open file.
    File(Arc<OpenFile>),
    /// A FIFO whose other side the caller must wait for.
    Fifo(PendingFifo),
}

/// A FIFO that is being opened. Wait on [`PendingFifo::wait_queue`] until [`PendingFifo::is_ready`], then
/// [`PendingFifo::finish`]; drop it when interrupted.
pub struct PendingFifo {
    opening: FifoOpening,
    path: Path,
    flags: i32,
}

impl PendingFifo {
    /// Whether the other side has come.
    pub fn is_ready(&self) -> bool {
        self.opening.is_ready()
    }

    /// Announces the other side, as [`Events::IN`](crate::wait::Events::IN) among others.
    pub fn wait_queue(&self) -> &WaitQueue {
        self.opening.wait_queue()
    }

    /// The open file.
    pub fn finish(self) -> Arc<OpenFile> {
        notify_at(&self.path, libc::IN_OPEN);
        OpenFile::new(self.opening.into_file(), Some(self.path), self.flags)
    }
}

/// What an `O_PATH` descriptor refers to: a place, with nothing that could be read or written.
pub struct PathOnly;

impl File for PathOnly {
    fn read(&self, _offset: u64, _sink: &mut dyn crate::io::Sink) -> Result<usize> {
        Err(Errno::EBADF)
    }

    fn write(&self, _offset: u64, _source: &mut dyn crate::io::Source) -> Result<usize> {
        Err(Errno::EBADF)
    }

    fn ioctl(&self, _mem: &dyn crate::vfs::file::IoctlMemory, _cmd: u32, _arg: u64) -> Result<u64> {
        Err(Errno::EBADF)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Err(Errno::EBADF)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The bits of `O_TMPFILE` without `O_DIRECTORY`, which it includes.
const TMPFILE_BIT: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// How often a file that is made and removed meanwhile by others is tried again.
const RACES_MAX: usize = 64;

impl Walk<'_> {
    /// `openat2(2)`: all of `open(2)` that concerns names. With an empty path and `EMPTY_PATH` in `resolve` it opens the
    /// start again. Waiting is the caller's: see [`Opened`].
    pub fn open(&self, path: &[u8], how: &OpenHow) -> Result<Opened> {
        match self.open_once(path, how) {
            // The name has come to mean another file behind the sentry's back, between finding and opening it: as Linux does
            // then, once more and with nothing believed.
            Err(Errno::ESTALE) => {
                self.root.dentry.superblock().fs.leases().new_epoch();
                self.open_once(path, how)
            }
            done => done,
        }
    }

    fn open_once(&self, path: &[u8], how: &OpenHow) -> Result<Opened> {
        let mut flags = how.flags;
        if flags & libc::O_PATH != 0 {
            flags &= libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        }
        let mut lookup = how.resolve;
        lookup.set(LookupFlags::DIRECTORY, flags & libc::O_DIRECTORY != 0);
        lookup.set(LookupFlags::FOLLOW, flags & libc::O_NOFOLLOW == 0);
        if flags & TMPFILE_BIT != 0 {
            return self.open_unnamed(path, how, lookup);
        }
        if flags & libc::O_CREAT == 0 {
            return self.open_path(self.lookup(path, lookup)?, flags, false);
        }
        if flags & libc::O_DIRECTORY != 0 {
            return Err(Errno::EINVAL);
        }
        if lookup.contains(LookupFlags::CACHED) {
            return Err(Errno::EAGAIN);
        }
        self.open_or_make(path, how, lookup)
    }

    /// `O_CREAT`. A symbolic link at the end is followed to where it leads, even when nothing is there yet.
    fn open_or_make(&self, path: &[u8], how: &OpenHow, lookup: LookupFlags) -> Result<Opened> {
        let exclusive = how.flags & libc::O_EXCL != 0;
        let request = Request { kind: NodeType::Regular, mode: how.mode, rdev: 0, target: b"" };
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        let mut resolver = Resolver::begin(self, path, lookup)?;
        let mut text = Cow::Borrowed(path);
        let mut races = 0;
        loop {
            let (name, slash) = match resolver.resolve_parent(&text)? {
                Last::Name(name, slash) => (name, slash),
                _ if exclusive => return Err(Errno::EEXIST),
                _ => return Err(Errno::EISDIR),
            };
            if slash {
                return Err(Errno::EISDIR);
            }
            let child = resolver.child(&name, &Components(b""))?;
            match child.kind() {
                Some(_) if exclusive => return Err(Errno::EEXIST),
                Some(NodeType::Symlink) if !lookup.contains(LookupFlags::FOLLOW) => return Err(Errno::ELOOP),
                Some(NodeType::Symlink) => match resolver.enter(&child)? {
                    Some(next) => text = Cow::Owned(next),
                    None => return self.open_path(resolver.at, how.flags, false),
                },
                Some(_) => {
                    resolver.at.dentry = child;
                    if resolver.at.cross_down() && lookup.contains(LookupFlags::NO_XDEV) {
                        return Err(Errno::EXDEV);
                    }
                    return self.open_path(resolver.at, how.flags, false);
                }
                None => match self.make_at(&resolver.at, &name, false, &request) {
                    Ok(made) => return self.open_path(made, how.flags, true),
                    Err(Errno::EEXIST) if !exclusive && races < RACES_MAX => {
                        races += 1;
                        // That there was no such name may have been believed from earlier.
                        resolver.at.dentry.superblock().fs.leases().new_epoch();
                        text = Cow::Owned(name);
                    }
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// `O_TMPFILE`: a file without a name in the directory `path`.
    fn open_unnamed(&self, path: &[u8], how: &OpenHow, lookup: LookupFlags) -> Result<Opened> {
        let complete = how.flags & libc::O_TMPFILE == libc::O_TMPFILE;
        let writable = matches!(how.flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR);
        if !complete || !writable || how.flags & libc::O_CREAT != 0 {
            return Err(Errno::EINVAL);
        }
        let dir = self.lookup(path, lookup)?;
        let attr = dir.attr()?;
        may_create(&dir, &attr, self.creds)?;
        let request = Request { kind: NodeType::Regular, mode: how.mode, rdev: 0, target: b"" };
        let inode = dir.inode()?.create_unnamed(&request.node(&attr, self.creds, self.umask))?;
        let dentry = Dentry::unnamed(&dir.dentry, inode, how.flags & libc::O_EXCL == 0)?;
        self.open_path(Path { mount: dir.mount, dentry }, how.flags & !libc::O_EXCL, true)
    }

    /// Opens a node that is resolved: what [`Walk::open`] found, or a descriptor's own place (`/proc/self/fd`). Checks
    /// permissions for the access mode unless the caller has just `created` it.
    pub fn open_path(&self, path: Path, flags: i32, created: bool) -> Result<Opened> {
        if flags & libc::O_PATH != 0 {
            return Ok(Opened::File(OpenFile::new(Arc::new(PathOnly), Some(path), flags)));
        }
        let inode = path.inode()?.clone();
        let attr = inode.attr()?;
        let access = access_of(flags);
        self.check_kind(&path, &attr, flags, access)?;
        let regular = attr.kind == NodeType::Regular;
        if !created {
            if access.contains(Access::WRITE) && (regular || attr.kind == NodeType::Directory) {
                writable_mount(&path)?;
            }
            may(&attr, self.creds, access)?;
            if flags & libc::O_NOATIME != 0 {
                owner(&attr, self.creds)?;
            }
        }
        let write = if regular && access.contains(Access::WRITE) { Some(get_write(&inode)?) } else { None };
        // A pipe without a name (`/proc/PID/fd`) knows itself how it is opened again.
        if attr.kind == NodeType::Fifo && inode.attachments().is_some() {
            return open_fifo(path, inode, flags);
        }
        if regular && flags & libc::O_TRUNC != 0 && !created {
            inode.set_attr(&SetAttr {
                size: Some(0),
                perm: super::ops::without_set_ids(&attr, self.creds),
                ..SetAttr::default()
            })?;
            super::ops::remove_capability(&path)?;
            notify_at(&path, libc::IN_MODIFY);
        }
        let object = match inode.clone().open(flags) {
            Err(Errno::ENXIO) if matches!(attr.kind, NodeType::CharDevice | NodeType::BlockDevice) => {
                self.devices.open(attr.kind, attr.rdev, flags)?
            }
            other => other?,
        };
        notify_at(&path, libc::IN_OPEN);
        Ok(Opened::File(OpenFile::with_write_access(object, Some(path), flags, write)))
    }

    /// What cannot be opened, or not like this, whoever asks.
    fn check_kind(&self, path: &Path, attr: &Attr, flags: i32, access: Access) -> Result<()> {
        match attr.kind {
            NodeType::Symlink => Err(Errno::ELOOP),
            NodeType::Directory if access.contains(Access::WRITE) || flags & libc::O_CREAT != 0 => Err(Errno::EISDIR),
            NodeType::CharDevice | NodeType::BlockDevice if path.mount.flags().contains(MountFlags::NODEV) => {
                Err(Errno::EACCES)
            }
            NodeType::Socket => Err(Errno::ENXIO),
            NodeType::Directory => Ok(()),
            _ if flags & libc::O_DIRECTORY != 0 && flags & TMPFILE_BIT == 0 => Err(Errno::ENOTDIR),
            _ => Ok(()),
        }
    }
}

/// The permissions that an access mode needs; mode 3 needs both and gives neither.
fn access_of(flags: i32) -> Access {
    let access = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => Access::READ,
        libc::O_WRONLY => Access::WRITE,
        _ => Access::READ | Access::WRITE,
    };
    if flags & libc::O_TRUNC != 0 { access | Access::WRITE } else { access }
}

fn open_fifo(path: Path, inode: Arc<dyn Inode>, flags: i32) -> Result<Opened> {
    let attachments = inode.attachments().ok_or(Errno::ENXIO)?;
    let opening = attachments.get_or_insert(FifoState::default).open(flags)?;
    let pending = PendingFifo { opening, path, flags };
    if pending.is_ready() { Ok(Opened::File(pending.finish())) } else { Ok(Opened::Fifo(pending)) }
}
