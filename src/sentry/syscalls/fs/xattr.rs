//! Extended attributes: `xattr(7)`.

use crate::errno::{Errno, Result};
use crate::sentry::mm::user::{UserSlice, UserStr};
use crate::sentry::syscalls::fs::path::Target;
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::LookupFlags;
use crate::vfs::xattr::{self, NAME_MAX, SIZE_MAX};

/// `XATTR_LIST_MAX`.
const LIST_MAX: usize = 64 << 10;

/// `ERANGE`: empty, or too long.
fn name_arg(cur: &Current, name: UserStr) -> Result<Vec<u8>> {
    let name = name.read(cur.space(), NAME_MAX + 1)?.ok_or(Errno::ERANGE)?;
    if name.is_empty() { Err(Errno::ERANGE) } else { Ok(name) }
}

fn by_path(cur: &Current, path: UserStr, follow: bool) -> Result<Target> {
    let lookup = if follow { LookupFlags::FOLLOW } else { LookupFlags::empty() };
    cur.lookup(Fd(libc::AT_FDCWD), path, lookup).map(Target::Node)
}

fn by_fd(cur: &Current, fd: Fd) -> Result<Target> {
    cur.io_file(fd).map(Target::of)
}

/// Gives the caller `bytes`, or with no room only their number. `ERANGE` when the room is too small.
fn give(cur: &Current, bytes: &[u8], buf: UserSlice) -> SysResult {
    if buf.is_empty() {
        return Ok(bytes.len() as u64);
    }
    if bytes.len() > buf.len() {
        return Err(Errno::ERANGE);
    }
    buf.write_truncated(cur.space(), bytes).map(|n| n as u64)
}

fn get(cur: &Current, target: Target, name: UserStr, buf: UserSlice) -> SysResult {
    let name = name_arg(cur, name)?;
    match target {
        Target::Node(path) => give(cur, &xattr::get(&path, &cur.creds(), &name)?, buf),
        Target::Anonymous(_) => Err(Errno::ENODATA),
    }
}

fn list(cur: &Current, target: Target, buf: UserSlice) -> SysResult {
    let Target::Node(path) = target else { return Ok(0) };
    let names = xattr::list(&path, &cur.creds())?;
    let joined: Vec<u8> = names.iter().flat_map(|name| name.iter().copied().chain([0])).collect();
    if joined.len() > LIST_MAX {
        return Err(Errno::E2BIG);
    }
    give(cur, &joined, buf)
}

fn remove(cur: &Current, target: Target, name: UserStr) -> SysResult {
    let name = name_arg(cur, name)?;
    match target {
        Target::Node(path) => xattr::remove(&path, &cur.creds(), &name).map(|()| 0),
        Target::Anonymous(_) => Err(Errno::EPERM),
    }
}

/// What is to be set, read from the caller's memory once.
struct Setting {
    name: Vec<u8>,
    value: Vec<u8>,
    flags: i32,
}

fn setting(cur: &Current, name: UserStr, value: UserSlice, flags: i32) -> Result<Setting> {
    if flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) != 0 {
        return Err(Errno::EINVAL);
    }
    let name = name_arg(cur, name)?;
    if value.len() > SIZE_MAX {
        return Err(Errno::E2BIG);
    }
    let value = if value.is_empty() { Vec::new() } else { value.read(cur.space())? };
    Ok(Setting { name, value, flags })
}

fn set(cur: &Current, target: Target, setting: &Setting) -> SysResult {
    match target {
        Target::Node(path) => xattr::set(&path, &cur.creds(), &setting.name, &setting.value, setting.flags).map(|()| 0),
        Target::Anonymous(_) => Err(Errno::EPERM),
    }
}

/// `getxattr(2)`.
pub fn getxattr(cur: &mut Current, path: UserStr, name: UserStr, buf: UserSlice) -> SysResult {
    let target = by_path(cur, path, true)?;
    get(cur, target, name, buf)
}

/// `lgetxattr(2)`.
pub fn lgetxattr(cur: &mut Current, path: UserStr, name: UserStr, buf: UserSlice) -> SysResult {
    let target = by_path(cur, path, false)?;
    get(cur, target, name, buf)
}

/// `fgetxattr(2)`.
pub fn fgetxattr(cur: &mut Current, fd: Fd, name: UserStr, buf: UserSlice) -> SysResult {
    let target = by_fd(cur, fd)?;
    get(cur, target, name, buf)
}

/// `setxattr(2)`.
pub fn setxattr(cur: &mut Current, path: UserStr, name: UserStr, value: UserSlice, flags: i32) -> SysResult {
    let setting = setting(cur, name, value, flags)?;
    let target = by_path(cur, path, true)?;
    set(cur, target, &setting)
}

/// `lsetxattr(2)`.
pub fn lsetxattr(cur: &mut Current, path: UserStr, name: UserStr, value: UserSlice, flags: i32) -> SysResult {
    let setting = setting(cur, name, value, flags)?;
    let target = by_path(cur, path, false)?;
    set(cur, target, &setting)
}

/// `fsetxattr(2)`.
pub fn fsetxattr(cur: &mut Current, fd: Fd, name: UserStr, value: UserSlice, flags: i32) -> SysResult {
    let target = by_fd(cur, fd)?;
    let setting = setting(cur, name, value, flags)?;
    set(cur, target, &setting)
}

/// `listxattr(2)`.
pub fn listxattr(cur: &mut Current, path: UserStr, buf: UserSlice) -> SysResult {
    let target = by_path(cur, path, true)?;
    list(cur, target, buf)
}

/// `llistxattr(2)`.
pub fn llistxattr(cur: &mut Current, path: UserStr, buf: UserSlice) -> SysResult {
    let target = by_path(cur, path, false)?;
    list(cur, target, buf)
}

/// `flistxattr(2)`.
pub fn flistxattr(cur: &mut Current, fd: Fd, buf: UserSlice) -> SysResult {
    let target = by_fd(cur, fd)?;
    list(cur, target, buf)
}

/// `removexattr(2)`.
pub fn removexattr(cur: &mut Current, path: UserStr, name: UserStr) -> SysResult {
    let target = by_path(cur, path, true)?;
    remove(cur, target, name)
}

/// `lremovexattr(2)`.
pub fn lremovexattr(cur: &mut Current, path: UserStr, name: UserStr) -> SysResult {
    let target = by_path(cur, path, false)?;
    remove(cur, target, name)
}

/// `fremovexattr(2)`.
pub fn fremovexattr(cur: &mut Current, fd: Fd, name: UserStr) -> SysResult {
    let target = by_fd(cur, fd)?;
    remove(cur, target, name)
}
