//! What alters a tree. The server has refused all of it for a tree that is served read-only, whose mount is read-only
//! besides.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::codec::{Put, stat_at, stat_fd};
use super::host::{self, c_string, done};
use super::protocol::{Entry, HEADROOM, New, Target};
use super::server::Answer;
use super::tree::Tree;
use super::wire::MAX_MESSAGE;
use crate::errno::{Errno, Result, check};
use crate::vfs::inode::{NodeType, SetAttr, TimeSpec};

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`, xattr(7).
const XATTR_MAX: usize = 64 << 10;
const _: () = assert!(XATTR_MAX + HEADROOM < MAX_MESSAGE);

impl Tree {
    /// [`Request::Create`](super::protocol::Request::Create).
    pub fn create(&mut self, entry: &Entry<'_>, new: &New<'_>, reply: &mut Vec<u8>) -> Answer {
        let dir = self.resolve(&entry.dir)?;
        let dir = (*dir).as_fd();
        let content = make(dir, entry.name, new)?;
        let finished = finish(dir, entry.name, new).and_then(|node| {
            stat_fd(node.as_fd())?.put(reply);
            reply.u32(self.keep(Arc::new(node))?);
            Ok(())
        });
        if let Err(error) = finished {
            // Nothing half made stays behind.
            let _ = remove(dir, entry.name, new.kind == NodeType::Directory);
            return Err(error);
        }
        Ok(content)
    }

    /// [`Request::Link`](super::protocol::Request::Link).
    pub fn link(&self, entry: &Entry<'_>, target: &Target<'_>, reply: &mut Vec<u8>) -> Answer {
        let (dir, from, name) = (self.resolve(&entry.dir)?, self.find(target)?, c_string(entry.name)?);
        let (dir, empty) = (dir.as_raw_fd(), c"".as_ptr());
        // SAFETY: names are NUL-terminated.
        done(unsafe { libc::linkat(from.as_raw_fd(), empty, dir, name.as_ptr(), libc::AT_EMPTY_PATH) })?;
        stat_fd((*from).as_fd())?.put(reply);
        Ok(None)
    }

    /// [`Request::Unlink`](super::protocol::Request::Unlink).
    pub fn unlink(&self, entry: &Entry<'_>, directory: bool) -> Answer {
        remove((*self.resolve(&entry.dir)?).as_fd(), entry.name, directory).map(|()| None)
    }

    /// [`Request::Rename`](super::protocol::Request::Rename).
    pub fn rename(&self, old: &Entry<'_>, new: &Entry<'_>, flags: u32, reply: &mut Vec<u8>) -> Answer {
        let (from, to) = (self.resolve(&old.dir)?, self.resolve(&new.dir)?);
        let (old, new) = (c_string(old.name)?, c_string(new.name)?);
        // SAFETY: names are NUL-terminated.
        done(unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                from.as_raw_fd(),
                old.as_ptr(),
                to.as_raw_fd(),
                new.as_ptr(),
                flags as libc::c_uint,
            )
        })?;
        stat_at((*to).as_fd(), &new, 0)?.put(reply);
        Ok(None)
    }

    /// [`Request::SetAttr`](super::protocol::Request::SetAttr). The size first, as it may fail; the owner before the
    /// permissions, as it clears set-id bits; times last, as everything changes them.
    pub fn set_attr(&self, target: &Target<'_>, set: &SetAttr, reply: &mut Vec<u8>) -> Answer {
        let node = self.find(target)?;
        let node = (*node).as_fd();
        if let Some(size) = set.size {
            let (file, _) = self.open_content(target, libc::O_WRONLY)?;
            let size = libc::off_t::try_from(size).map_err(|_| Errno::EFBIG)?;
            // SAFETY: takes numbers alone.
            done(unsafe { libc::ftruncate(file.as_raw_fd(), size) })?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            change_owner(node, set.uid.unwrap_or(u32::MAX), set.gid.unwrap_or(u32::MAX))?;
        }
        if let Some(perm) = set.perm {
            self.change_mode(target, node, perm)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            change_times(node, set.atime, set.mtime)?;
        }
        stat_fd(node)?.put(reply);
        Ok(None)
    }

    fn change_mode(&self, target: &Target<'_>, node: BorrowedFd<'_>, perm: u32) -> Result<()> {
        match change_mode(node, perm) {
            // Before Linux 6.6.
            Err(Errno::ENOSYS) => {
                let (file, _) = self.open_content(target, libc::O_RDONLY).map_err(|_| Errno::EOPNOTSUPP)?;
                // SAFETY: takes numbers alone.
                done(unsafe { libc::fchmod(file.as_raw_fd(), perm) })
            }
            changed => changed,
        }
    }

    /// [`Request::GetXattr`](super::protocol::Request::GetXattr).
    pub fn get_xattr(&self, target: &Target<'_>, name: &[u8], reply: &mut Vec<u8>) -> Answer {
        let (file, name) = (self.open_for_xattr(target)?, c_string(name)?);
        let mut value = vec![0u8; XATTR_MAX];
        // SAFETY: the name is NUL-terminated, the buffer as long as said.
        let n = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(check(n as i64)? as usize);
        reply.bytes(&value);
        Ok(None)
    }

    /// [`Request::ListXattr`](super::protocol::Request::ListXattr).
    pub fn list_xattr(&self, target: &Target<'_>, reply: &mut Vec<u8>) -> Answer {
        let file = self.open_for_xattr(target)?;
        let mut names = vec![0u8; XATTR_MAX];
        // SAFETY: the buffer is as long as said.
        let n = unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
        names.truncate(check(n as i64)? as usize);
        reply.bytes(&names);
        Ok(None)
    }

    /// [`Request::SetXattr`](super::protocol::Request::SetXattr).
    pub fn set_xattr(&self, target: &Target<'_>, name: &[u8], value: &[u8], flags: u32) -> Answer {
        if value.len() > XATTR_MAX {
            return Err(Errno::E2BIG);
        }
        let (file, name) = (self.open_for_xattr(target)?, c_string(name)?);
        let (fd, name, len) = (file.as_raw_fd(), name.as_ptr(), value.len());
        // SAFETY: the name is NUL-terminated and still owned above, the value as long as said.
        done(unsafe { libc::fsetxattr(fd, name, value.as_ptr().cast(), len, flags as libc::c_int) }).map(|()| None)
    }

    /// [`Request::RemoveXattr`](super::protocol::Request::RemoveXattr).
    pub fn remove_xattr(&self, target: &Target<'_>, name: &[u8]) -> Answer {
        let (file, name) = (self.open_for_xattr(target)?, c_string(name)?);
        // SAFETY: the name is NUL-terminated.
        done(unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) }).map(|()| None)
    }

    /// A descriptor that extended attributes can be had of. Not of links and special files: they have none of the
    /// `user` sort (xattr(7)), and nothing but a path reaches the others.
    fn open_for_xattr(&self, target: &Target<'_>) -> Result<OwnedFd> {
        match self.open_content(target, libc::O_RDONLY) {
            Ok((file, _)) => Ok(file),
            Err(Errno::ENXIO | Errno::ELOOP) => Err(Errno::EOPNOTSUPP),
            Err(error) => Err(error),
        }
    }
}

/// Makes a node; the descriptor is of a regular file.
fn make(dir: BorrowedFd<'_>, name: &[u8], new: &New<'_>) -> Result<Option<OwnedFd>> {
    let path = c_string(name)?;
    let (fd, path) = (dir.as_raw_fd(), path.as_ptr());
    match new.kind {
        NodeType::Anonymous => return Err(Errno::EINVAL),
        NodeType::Regular => {
            let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | host::CONTENT;
            return host::open(dir, name, flags, new.perm).map(Some);
        }
        // SAFETY: the name is NUL-terminated, and owned above.
        NodeType::Directory => done(unsafe { libc::mkdirat(fd, path, new.perm) })?,
        NodeType::Symlink => {
            let text = c_string(new.target)?;
            // SAFETY: both are NUL-terminated.
            done(unsafe { libc::symlinkat(text.as_ptr(), fd, path) })?;
        }
        NodeType::Fifo | NodeType::Socket | NodeType::CharDevice | NodeType::BlockDevice => {
            // SAFETY: the name is NUL-terminated, and owned above.
            done(unsafe { libc::mknodat(fd, path, new.kind.mode_bits() | new.perm, new.rdev) })?;
        }
    }
    Ok(None)
}

/// Gives a new node to its owner, with the permissions that making it leaves out or the new owner has cleared.
fn finish(dir: BorrowedFd<'_>, name: &[u8], new: &New<'_>) -> Result<OwnedFd> {
    let node = host::open(dir, name, host::PATH, 0)?;
    let stat = stat_fd(node.as_fd())?;
    if stat.kind != new.kind {
        return Err(Errno::ESTALE);
    }
    if (stat.uid, stat.gid) != (new.uid, new.gid) {
        change_owner(node.as_fd(), new.uid, new.gid)?;
    }
    if new.kind != NodeType::Symlink && stat_fd(node.as_fd())?.perm != new.perm {
        match change_mode(node.as_fd(), new.perm) {
            Err(Errno::ENOSYS) if matches!(new.kind, NodeType::Regular | NodeType::Directory) => {
                let file = host::open(dir, name, libc::O_RDONLY | host::CONTENT, 0)?;
                // SAFETY: takes numbers alone.
                done(unsafe { libc::fchmod(file.as_raw_fd(), new.perm) })?;
            }
            changed => changed?,
        }
    }
    Ok(node)
}

fn remove(dir: BorrowedFd<'_>, name: &[u8], directory: bool) -> Result<()> {
    let name = c_string(name)?;
    let flags = if directory { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: the name is NUL-terminated.
    done(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) })
}

/// `u32::MAX` leaves one as it is.
fn change_owner(node: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
    // SAFETY: the name is NUL-terminated.
    done(unsafe { libc::fchownat(node.as_raw_fd(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) })
}

/// `fchmodat2(2)`, which alone takes an `O_PATH` descriptor.
fn change_mode(node: BorrowedFd<'_>, perm: u32) -> Result<()> {
    let (fd, empty) = (node.as_raw_fd(), c"".as_ptr());
    // SAFETY: the name is NUL-terminated.
    done(unsafe { libc::syscall(libc::SYS_fchmodat2, fd, empty, perm, libc::AT_EMPTY_PATH) })
}

fn change_times(node: BorrowedFd<'_>, atime: Option<TimeSpec>, mtime: Option<TimeSpec>) -> Result<()> {
    let host_time = |time: Option<TimeSpec>| match time {
        Some(time) => libc::timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() },
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
    };
    let times = [host_time(atime), host_time(mtime)];
    // SAFETY: the name is NUL-terminated, and there are two times.
    done(unsafe { libc::utimensat(node.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) })
}
