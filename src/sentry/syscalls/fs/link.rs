//! Names: links, symbolic links, device nodes, renaming and removing.

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{UserSlice, UserStr};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::LookupFlags;
use crate::vfs::inode::{NodeType, RenameFlags};

const CWD: Fd = Fd(libc::AT_FDCWD);

/// `unlink(2)`.
pub fn unlink(cur: &mut Current, path: UserStr) -> SysResult {
    unlinkat(cur, CWD, path, 0)
}

/// `unlinkat(2)`.
pub fn unlinkat(cur: &mut Current, dir: Fd, path: UserStr, flags: i32) -> SysResult {
    if flags & !libc::AT_REMOVEDIR != 0 {
        return Err(Errno::EINVAL);
    }
    let path = path.read_path(cur.space())?;
    let removes_dir = flags & libc::AT_REMOVEDIR != 0;
    cur.with_walk(dir, &path, |walk| if removes_dir { walk.rmdir(&path) } else { walk.unlink(&path) }).map(|()| 0)
}

/// `rename(2)`.
pub fn rename(cur: &mut Current, old: UserStr, new: UserStr) -> SysResult {
    renameat2(cur, CWD, old, CWD, new, 0)
}

/// `renameat(2)`.
pub fn renameat(cur: &mut Current, old_dir: Fd, old: UserStr, new_dir: Fd, new: UserStr) -> SysResult {
    renameat2(cur, old_dir, old, new_dir, new, 0)
}

/// `renameat2(2)`.
pub fn renameat2(cur: &mut Current, old_dir: Fd, old: UserStr, new_dir: Fd, new: UserStr, flags: u32) -> SysResult {
    let flags = RenameFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
    let old = old.read_path(cur.space())?;
    let new = new.read_path(cur.space())?;
    cur.with_walk(old_dir, &old, |from| cur.with_walk(new_dir, &new, |to| from.rename(&old, to, &new, flags)))?;
    Ok(0)
}

/// `link(2)`.
pub fn link(cur: &mut Current, old: UserStr, new: UserStr) -> SysResult {
    linkat(cur, CWD, old, CWD, new, 0)
}

/// `linkat(2)`. `AT_EMPTY_PATH` without `CAP_DAC_READ_SEARCH` is `ENOENT`.
pub fn linkat(cur: &mut Current, old_dir: Fd, old: UserStr, new_dir: Fd, new: UserStr, flags: i32) -> SysResult {
    if flags & !(libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut lookup = LookupFlags::empty();
    lookup.set(LookupFlags::FOLLOW, flags & libc::AT_SYMLINK_FOLLOW != 0);
    lookup.set(LookupFlags::EMPTY_PATH, flags & libc::AT_EMPTY_PATH != 0);
    if lookup.contains(LookupFlags::EMPTY_PATH) && !cur.has_cap(Caps::DAC_READ_SEARCH) {
        return Err(Errno::ENOENT);
    }
    let source = cur.target(old_dir, old, lookup)?.node().map_err(|_| Errno::EXDEV)?;
    let new = new.read_path(cur.space())?;
    cur.with_walk(new_dir, &new, |walk| walk.link(&source, &new)).map(|()| 0)
}

/// `symlink(2)`.
pub fn symlink(cur: &mut Current, target: UserStr, path: UserStr) -> SysResult {
    symlinkat(cur, target, CWD, path)
}

/// `symlinkat(2)`.
pub fn symlinkat(cur: &mut Current, target: UserStr, dir: Fd, path: UserStr) -> SysResult {
    let target = target.read_path(cur.space())?;
    let path = path.read_path(cur.space())?;
    cur.with_walk(dir, &path, |walk| walk.symlink(&target, &path)).map(|()| 0)
}

/// `readlink(2)`.
pub fn readlink(cur: &mut Current, path: UserStr, buf: UserSlice) -> SysResult {
    readlinkat(cur, CWD, path, buf)
}

/// `readlinkat(2)`. `EINVAL`: an empty buffer, not a symbolic link; `ENOENT`: an empty path and `dir` is none.
pub fn readlinkat(cur: &mut Current, dir: Fd, path: UserStr, buf: UserSlice) -> SysResult {
    // The size is an int.
    if buf.len() as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let path = path.read_path(cur.space())?;
    let link = cur.with_walk(dir, &path, |walk| walk.lookup(&path, LookupFlags::EMPTY_PATH))?;
    if link.dentry.kind() != Some(NodeType::Symlink) {
        return Err(if path.is_empty() { Errno::ENOENT } else { Errno::EINVAL });
    }
    let text = link.inode()?.read_link()?;
    buf.write_truncated(cur.space(), &text).map(|n| n as u64)
}

/// `mknod(2)`.
pub fn mknod(cur: &mut Current, path: UserStr, mode: u32, dev: u32) -> SysResult {
    mknodat(cur, CWD, path, mode, dev)
}

/// `mknodat(2)`. `EPERM`: a directory, or a device without `CAP_MKNOD`; `EINVAL`: no type.
pub fn mknodat(cur: &mut Current, dir: Fd, path: UserStr, mode: u32, dev: u32) -> SysResult {
    let kind = node_type(mode)?;
    let path = path.read_path(cur.space())?;
    let device = matches!(kind, NodeType::CharDevice | NodeType::BlockDevice);
    let rdev = if device { device_number(dev) } else { 0 };
    cur.with_walk(dir, &path, |walk| walk.mknod(&path, kind, mode & 0o7777, rdev)).map(|_| 0)
}

/// No type is a regular file.
fn node_type(mode: u32) -> Result<NodeType> {
    if mode & libc::S_IFMT == 0 {
        return Ok(NodeType::Regular);
    }
    NodeType::from_mode(mode).ok_or(Errno::EINVAL)
}

/// The 32-bit form of a device number: 12 bits of major between 8 and 12 of minor.
fn device_number(dev: u32) -> u64 {
    let major = (dev >> 8) & 0xfff;
    let minor = dev & 0xff | (dev >> 12) & 0xf_ff00;
    libc::makedev(major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_what_makedev_packs() {
        for (major, minor) in [(1, 3), (8, 0xfffff), (0xfff, 300), (136, 5)] {
            let packed = libc::makedev(major, minor) as u32;
            assert_eq!(device_number(packed), libc::makedev(major, minor));
        }
    }
}
