//! Directories: listing them, the working directory, making and removing them.

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{UserSlice, UserStr};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::file::{DirEntry, OpenFile};
use crate::vfs::perm::{Access, may};
use crate::vfs::{LookupFlags, path_string};

/// How much one call lists at most: what a larger buffer could hold comes with the next call.
const LISTED_MAX: usize = 256 << 10;

/// The two layouts of an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// `struct linux_dirent`: the type is the last byte.
    Old,
    /// `struct linux_dirent64`: the type is before the name.
    New,
}

/// Packs entries one behind the other.
struct Packer {
    layout: Layout,
    bytes: Vec<u8>,
    room: usize,
    /// An entry did not fit.
    full: bool,
}

impl Packer {
    fn new(layout: Layout, room: usize) -> Packer {
        let room = room.min(LISTED_MAX);
        Packer { layout, bytes: Vec::with_capacity(room.min(4096)), room, full: false }
    }

    /// Adds an entry, unless there is no room for it.
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        // Before the name: ino, off, reclen and, in the new layout, the type; behind it a NUL and, in the old one, the type.
        let (head, tail) = if self.layout == Layout::New { (19, 1) } else { (18, 2) };
        let len = (head + entry.name.len() + tail).next_multiple_of(8);
        let start = self.bytes.len();
        let Ok(reclen) = u16::try_from(len) else { return true };
        if len > self.room - start {
            self.full = true;
            return false;
        }
        self.bytes.extend_from_slice(&entry.ino.to_ne_bytes());
        self.bytes.extend_from_slice(&entry.next.to_ne_bytes());
        self.bytes.extend_from_slice(&reclen.to_ne_bytes());
        if self.layout == Layout::New {
            self.bytes.push(entry.kind as u8);
        }
        self.bytes.extend_from_slice(entry.name);
        self.bytes.resize(start + len, 0);
        if self.layout == Layout::Old
            && let Some(last) = self.bytes.last_mut()
        {
            *last = entry.kind as u8;
        }
        true
    }
}

/// `getdents(2)`.
pub fn getdents(cur: &mut Current, fd: Fd, buf: UserSlice) -> SysResult {
    list(cur, fd, buf, Layout::Old)
}

/// `getdents64(2)`. `ENOTDIR`, `ENOENT` (it was removed), `EINVAL` (no room for one entry).
pub fn getdents64(cur: &mut Current, fd: Fd, buf: UserSlice) -> SysResult {
    list(cur, fd, buf, Layout::New)
}

fn list(cur: &Current, fd: Fd, buf: UserSlice, layout: Layout) -> SysResult {
    let file = cur.io_file(fd)?;
    let path = file.path().filter(|path| path.dentry.is_dir()).ok_or(Errno::ENOTDIR)?;
    if path.dentry.is_deleted() {
        return Err(Errno::ENOENT);
    }
    let mut packer = Packer::new(layout, buf.len());
    let before = *file.position();
    // The two dots come first; what `..` is, the file system does not know at a mount point.
    let parent = if before < 2 { parent_ino(cur, &file).ok() } else { None };
    file.read_dir(&mut |entry| {
        let ino = parent.filter(|_| entry.name == b"..").unwrap_or(entry.ino);
        packer.add(&DirEntry { ino, ..entry })
    })?;
    if packer.bytes.is_empty() {
        return if packer.full { Err(Errno::EINVAL) } else { Ok(0) };
    }
    match buf.write_truncated(cur.space(), &packer.bytes) {
        Ok(n) => Ok(n as u64),
        Err(error) => {
            *file.position() = before;
            Err(error)
        }
    }
}

/// The number of the directory that `..` is for the caller.
fn parent_ino(cur: &Current, file: &OpenFile) -> Result<u64> {
    let root = cur.fs().get().root;
    let parent = file.path().ok_or(Errno::ENOTDIR)?.dot_dot(&root);
    Ok(parent.attr()?.ino)
}

/// `getcwd(2)`: the length with the NUL. `ERANGE`, `ENOENT` (it was removed).
pub fn getcwd(cur: &mut Current, buf: UserSlice) -> SysResult {
    let state = cur.fs().get();
    if state.cwd.dentry.is_deleted() {
        return Err(Errno::ENOENT);
    }
    let mut text = path_string(&state.root, &state.cwd);
    text.push(0);
    if text.len() > buf.len() {
        return Err(Errno::ERANGE);
    }
    buf.write_truncated(cur.space(), &text).map(|n| n as u64)
}

/// `chdir(2)`.
pub fn chdir(cur: &mut Current, path: UserStr) -> SysResult {
    let path = path.read_path(cur.space())?;
    let dir = cur.with_walk(Fd(libc::AT_FDCWD), &path, |walk| walk.lookup_dir(&path, LookupFlags::FOLLOW))?;
    cur.fs().update(|state| state.cwd = dir);
    Ok(0)
}

/// `fchdir(2)`. `EBADF`, `ENOTDIR`, `EACCES`.
pub fn fchdir(cur: &mut Current, fd: Fd) -> SysResult {
    let file = cur.file(fd)?;
    let dir = file.path().filter(|path| path.dentry.is_dir()).ok_or(Errno::ENOTDIR)?;
    may(&dir.attr()?, &cur.creds(), Access::EXEC)?;
    cur.fs().update(|state| state.cwd = dir.clone());
    Ok(0)
}

/// `chroot(2)`. `EPERM` without `CAP_SYS_CHROOT`.
pub fn chroot(cur: &mut Current, path: UserStr) -> SysResult {
    let path = path.read_path(cur.space())?;
    let dir = cur.with_walk(Fd(libc::AT_FDCWD), &path, |walk| walk.lookup_dir(&path, LookupFlags::FOLLOW))?;
    cur.require(Caps::SYS_CHROOT)?;
    cur.fs().update(|state| state.root = dir);
    Ok(0)
}

/// `umask(2)`: the mask before.
pub fn umask(cur: &mut Current, mask: u32) -> SysResult {
    let mut before = 0;
    cur.fs().update(|state| before = std::mem::replace(&mut state.umask, mask & 0o777));
    Ok(before.into())
}

/// `mkdir(2)`.
pub fn mkdir(cur: &mut Current, path: UserStr, mode: u32) -> SysResult {
    mkdirat(cur, Fd(libc::AT_FDCWD), path, mode)
}

/// `mkdirat(2)`.
pub fn mkdirat(cur: &mut Current, dir: Fd, path: UserStr, mode: u32) -> SysResult {
    let path = path.read_path(cur.space())?;
    cur.with_walk(dir, &path, |walk| walk.mkdir(&path, mode)).map(|_| 0)
}

/// `rmdir(2)`.
pub fn rmdir(cur: &mut Current, path: UserStr) -> SysResult {
    let path = path.read_path(cur.space())?;
    cur.with_walk(Fd(libc::AT_FDCWD), &path, |walk| walk.rmdir(&path)).map(|()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::inode::NodeType;

    fn entry(name: &[u8]) -> DirEntry<'_> {
        DirEntry { name, ino: 0x0102_0304_0506_0708, kind: NodeType::Fifo, next: 9 }
    }

    #[test]
    fn entries_are_packed_on_eight_bytes() {
        let mut packer = Packer::new(Layout::New, 64);
        assert!(packer.add(&entry(b"abcd")), "19 + 4 + 1 are 24");
        assert!(packer.add(&entry(b"abcde")), "19 + 5 + 1 are 25, so 32");
        assert!(!packer.add(&entry(b"a")), "8 bytes are left");
        assert!(packer.full);
        let bytes = &packer.bytes;
        assert_eq!((bytes.len(), &bytes[16..24]), (56, &b"\x18\0\x01abcd\0"[..]));
        assert_eq!(&bytes[24 + 16..24 + 25], b"\x20\0\x01abcde\0");
        assert_eq!(&bytes[8..16], &9u64.to_ne_bytes());
    }

    #[test]
    fn the_old_layout_ends_with_the_type() {
        let mut packer = Packer::new(Layout::Old, 32);
        assert!(packer.add(&entry(b"abcde")));
        assert_eq!(&packer.bytes[16..], b"\x20\0abcde\0\0\0\0\0\0\0\0\x01");
        assert!(!packer.add(&entry(b"")));
    }

    #[test]
    fn the_host_reads_what_is_packed() {
        let mut packer = Packer::new(Layout::New, 4096);
        packer.add(&entry(b"name"));
        let host = &packer.bytes;
        assert_eq!(u64::from_ne_bytes(host[..8].try_into().unwrap()), 0x0102_0304_0506_0708);
        let reclen = std::mem::offset_of!(libc::dirent64, d_reclen);
        assert_eq!(u16::from_ne_bytes([host[reclen], host[reclen + 1]]), 24);
        assert_eq!(host[std::mem::offset_of!(libc::dirent64, d_type)], libc::DT_FIFO);
        assert_eq!(&host[std::mem::offset_of!(libc::dirent64, d_name)..][..5], b"name\0");
    }
}
