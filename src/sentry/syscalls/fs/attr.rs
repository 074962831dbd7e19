//! Owners and permissions.

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::UserStr;
use crate::sentry::syscalls::fs::path::{Target, lookup_flags};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::LookupFlags;
use crate::vfs::inode::SetAttr;
use crate::vfs::ops;
use crate::vfs::perm::{self, Access};

const CWD: Fd = Fd(libc::AT_FDCWD);

/// `access(2)`.
pub fn access(cur: &mut Current, path: UserStr, mode: u32) -> SysResult {
    faccessat2(cur, CWD, path, mode, 0)
}

/// `faccessat(2)`, the system call, which has no flags.
pub fn faccessat(cur: &mut Current, dir: Fd, path: UserStr, mode: u32) -> SysResult {
    faccessat2(cur, dir, path, mode, 0)
}

/// `faccessat2(2)`. Without `AT_EACCESS` the path is resolved, too, as the real user.
pub fn faccessat2(cur: &mut Current, dir: Fd, path: UserStr, mode: u32, flags: i32) -> SysResult {
    let wanted = Access::from_bits(mode).ok_or(Errno::EINVAL)?;
    let lookup = lookup_flags(flags, libc::AT_EACCESS)?;
    let creds = cur.creds();
    let real;
    let creds = if flags & libc::AT_EACCESS != 0 {
        &*creds
    } else {
        real = perm::real_credentials(&creds);
        &real
    };
    let path = cur.path_arg(path, lookup)?;
    let target = if path.is_empty() && lookup.contains(LookupFlags::EMPTY_PATH) && dir != CWD {
        Target::of(cur.file(dir)?)
    } else {
        let found = cur.with_walk(dir, &path, |walk| crate::vfs::Walk { creds, ..*walk }.lookup(&path, lookup))?;
        Target::Node(found)
    };
    match target {
        Target::Node(path) => ops::access(&path, creds, wanted)?,
        Target::Anonymous(_) => perm::may(&target.attr()?, creds, wanted)?,
    }
    Ok(0)
}

/// `chmod(2)`.
pub fn chmod(cur: &mut Current, path: UserStr, mode: u32) -> SysResult {
    fchmodat2(cur, CWD, path, mode, 0)
}

/// `fchmodat(2)`, the system call, which has no flags.
pub fn fchmodat(cur: &mut Current, dir: Fd, path: UserStr, mode: u32) -> SysResult {
    fchmodat2(cur, dir, path, mode, 0)
}

/// `fchmodat2(2)`.
pub fn fchmodat2(cur: &mut Current, dir: Fd, path: UserStr, mode: u32, flags: i32) -> SysResult {
    let target = cur.target(dir, path, lookup_flags(flags, 0)?)?;
    change_mode(cur, target, mode)
}

/// `fchmod(2)`.
pub fn fchmod(cur: &mut Current, fd: Fd, mode: u32) -> SysResult {
    let file = cur.io_file(fd)?;
    change_mode(cur, Target::of(file), mode)
}

fn change_mode(cur: &Current, target: Target, mode: u32) -> SysResult {
    let creds = cur.creds();
    let set = SetAttr { perm: Some(mode & 0o7777), ..SetAttr::default() };
    target.change(&creds, &set, |path| ops::chmod(path, &creds, mode)).map(|()| 0)
}

/// `chown(2)`.
pub fn chown(cur: &mut Current, path: UserStr, uid: u32, gid: u32) -> SysResult {
    fchownat(cur, CWD, path, uid, gid, 0)
}

/// `lchown(2)`.
pub fn lchown(cur: &mut Current, path: UserStr, uid: u32, gid: u32) -> SysResult {
    fchownat(cur, CWD, path, uid, gid, libc::AT_SYMLINK_NOFOLLOW)
}

/// `fchownat(2)`.
pub fn fchownat(cur: &mut Current, dir: Fd, path: UserStr, uid: u32, gid: u32, flags: i32) -> SysResult {
    let target = cur.target(dir, path, lookup_flags(flags, 0)?)?;
    change_owner(cur, target, uid, gid).map(|()| 0)
}

/// `fchown(2)`.
pub fn fchown(cur: &mut Current, fd: Fd, uid: u32, gid: u32) -> SysResult {
    let file = cur.io_file(fd)?;
    change_owner(cur, Target::of(file), uid, gid).map(|()| 0)
}

/// -1 leaves an id as it is.
fn change_owner(cur: &Current, target: Target, uid: u32, gid: u32) -> Result<()> {
    let creds = cur.creds();
    let [uid, gid] = [uid, gid].map(|id| (id != u32::MAX).then_some(id));
    if let Target::Anonymous(file) = &target {
        // The rules of nodes, but that there is no mount to ask.
        let attr = file.object().anonymous_attr().ok_or(Errno::EPERM)?;
        let owns = creds.fsuid == attr.uid;
        let uid_allowed = uid.is_none_or(|uid| owns && uid == attr.uid);
        let gid_allowed = gid.is_none_or(|gid| owns && (gid == attr.gid || creds.in_group(gid)));
        let own_business = uid_allowed && gid_allowed;
        if !own_business && !creds.has(Caps::CHOWN) {
            return Err(Errno::EPERM);
        }
        return file.object().set_anonymous_attr(&SetAttr { uid, gid, ..SetAttr::default() });
    }
    ops::chown(&target.node()?, &creds, uid, gid)
}
