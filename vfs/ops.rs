//! What is done to a node that is resolved already, whether by a path or through a descriptor.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::errno::{Errno, Result};
use crate::sentry::creds::{Caps, Credentials};
use crate::vfs::deny::get_write;
use crate::vfs::inode::{Attr, NodeType, SetAttr, StatFs, TimeSpec};
use crate::vfs::mount::MountFlags;
use crate::vfs::path::{Path, notify_at};
use crate::vfs::perm::{self, Access, may, may_at, writable_mount};

/// A time to set: `utimensat(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// `UTIME_OMIT`.
    Omit,
    /// `UTIME_NOW`.
    Now,
    /// A time.
    At(TimeSpec),
}

impl SetTime {
    fn value(self, now: TimeSpec) -> Option<TimeSpec> {
        match self {
            SetTime::Omit => None,
            SetTime::Now => Some(now),
            SetTime::At(time) => Some(time),
        }
    }
}

/// `chmod(2)`. `EPERM`, `EROFS`; `EOPNOTSUPP` for a symbolic link. Who is not in the file's group loses set-group-ID.
pub fn chmod(path: &Path, creds: &Credentials, mode: u32) -> Result<()> {
    writable_mount(path)?;
    let attr = path.attr()?;
    if attr.kind == NodeType::Symlink {
        return Err(Errno::EOPNOTSUPP);
    }
    perm::owner(&attr, creds)?;
    let mut mode = mode & 0o7777;
    if !creds.in_group(attr.gid) && !creds.has(Caps::FSETID) {
        mode &= !libc::S_ISGID;
    }
    change(path, &SetAttr { perm: Some(mode), ..SetAttr::default() })?;
    if mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
        privileges_given();
    }
    Ok(())
}

/// `chown(2)`; `None` leaves an id as it is. Clears set-id bits and capabilities of what is no directory, whoever asks. `EPERM`, `EROFS`.
pub fn chown(path: &Path, creds: &Credentials, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    writable_mount(path)?;
    let attr = path.attr()?;
    let owns = creds.fsuid == attr.uid;
    let uid_allowed = uid.is_none_or(|uid| owns && uid == attr.uid);
    let gid_allowed = gid.is_none_or(|gid| owns && (gid == attr.gid || creds.in_group(gid)));
    let allowed = (uid_allowed && gid_allowed) || creds.has(Caps::CHOWN);
    if !allowed {
        return Err(Errno::EPERM);
    }
    let set_ids = lost_set_ids(&attr, creds);
    let directory = attr.kind == NodeType::Directory;
    let perm = (!directory && set_ids != 0).then_some(attr.perm & !set_ids);
    change(path, &SetAttr { perm, uid, gid, ..SetAttr::default() })?;
    if directory { Ok(()) } else { remove_capability(path) }
}

/// `utimensat(2)`. Times of one's choice are for the owner (`EPERM`); now is also for who may write (`EACCES`). `EROFS`.
pub fn set_times(path: &Path, creds: &Credentials, atime: SetTime, mtime: SetTime) -> Result<()> {
    if (atime, mtime) == (SetTime::Omit, SetTime::Omit) {
        return Ok(());
    }
    writable_mount(path)?;
    let attr = path.attr()?;
    if (atime, mtime) == (SetTime::Now, SetTime::Now) {
        if perm::owner(&attr, creds).is_err() {
            may(&attr, creds, Access::WRITE)?;
        }
    } else {
        perm::owner(&attr, creds)?;
    }
    let now = TimeSpec::now();
    change(path, &SetAttr { atime: atime.value(now), mtime: mtime.value(now), ..SetAttr::default() })
}

/// `truncate(2)`, with its permission check. `EISDIR`, `EINVAL`, `ETXTBSY`, `EACCES`, `EROFS`.
pub fn truncate(path: &Path, creds: &Credentials, len: u64) -> Result<()> {
    match path.attr()?.kind {
        NodeType::Directory => return Err(Errno::EISDIR),
        NodeType::Regular => {}
        _ => return Err(Errno::EINVAL),
    }
    may_at(path, creds, Access::WRITE)?;
    let _write = get_write(path.inode()?)?;
    set_size(path, creds, len)
}

/// `ftruncate(2)` of a descriptor that is open for writing: no permission check. `EINVAL` for what is no regular file.
pub fn set_size(path: &Path, creds: &Credentials, len: u64) -> Result<()> {
    let attr = path.attr()?;
    if attr.kind != NodeType::Regular || i64::try_from(len).is_err() {
        return Err(Errno::EINVAL);
    }
    path.inode()?.set_attr(&SetAttr { size: Some(len), perm: without_set_ids(&attr, creds), ..SetAttr::default() })?;
    remove_capability(path)?;
    notify_at(path, libc::IN_MODIFY);
    Ok(())
}

/// The permissions of a file whose content changes: set-id bits go, unless `creds` may keep them. `None` when nothing
/// changes.
pub fn without_set_ids(attr: &Attr, creds: &Credentials) -> Option<u32> {
    let set_ids = lost_set_ids(attr, creds);
    let loses = attr.kind == NodeType::Regular && set_ids != 0 && !creds.has(Caps::FSETID);
    loses.then_some(attr.perm & !set_ids)
}

/// Which of its set-id bits a file loses: set-group-ID without the right to execute for the group (once mandatory locking)
/// stays for who is in the group.
fn lost_set_ids(attr: &Attr, creds: &Credentials) -> u32 {
    let runs_as_group = attr.perm & libc::S_IXGRP != 0;
    let group = runs_as_group || !(creds.in_group(attr.gid) || creds.has(Caps::FSETID));
    attr.perm & if group { libc::S_ISUID | libc::S_ISGID } else { libc::S_ISUID }
}

const CAPABILITY: &[u8] = b"security.capability";

/// How often files were given set-id bits or capabilities, from 1 on.
static PRIVILEGES: AtomicU64 = AtomicU64::new(1);

/// A number that changes whenever a file is given set-id bits or capabilities: what was found to have none before has none
/// as long as it stays the same.
pub fn privileges_epoch() -> u64 {
    PRIVILEGES.load(Ordering::SeqCst)
}

/// A file has been given set-id bits or capabilities.
pub fn privileges_given() {
    PRIVILEGES.fetch_add(1, Ordering::SeqCst);
}

/// Takes off a file's capabilities, as every change of its content or owner does, whoever makes it.
pub(in crate::vfs) fn remove_capability(path: &Path) -> Result<()> {
    let inode = path.inode()?;
    if inode.has_capability() { inode.remove_xattr(CAPABILITY) } else { Ok(()) }
}

/// What a write takes from a file, before it is made: set-id bits, unless `creds` may keep them, and capabilities. Returns
/// whether something is left for other writers to take.
pub fn remove_privileges(path: &Path, creds: &Credentials) -> Result<bool> {
    let attr = path.attr()?;
    if attr.kind != NodeType::Regular {
        return Ok(false);
    }
    remove_capability(path)?;
    let perm = without_set_ids(&attr, creds);
    if perm.is_some() {
        change(path, &SetAttr { perm, ..SetAttr::default() })?;
    }
    Ok(perm.unwrap_or(attr.perm) & (libc::S_ISUID | libc::S_ISGID) != 0)
}

/// `access(2)`: with [`perm::real_credentials`] unless `AT_EACCESS`; no bits ask only whether it exists. `EACCES`, `EROFS`.
pub fn access(path: &Path, creds: &Credentials, access: Access) -> Result<()> {
    let noexec = path.mount.flags().contains(MountFlags::NOEXEC);
    if access.contains(Access::EXEC) && noexec && path.dentry.kind() == Some(NodeType::Regular) {
        return Err(Errno::EACCES);
    }
    // As on Linux a permission that is missing anyway is said before a read-only mount.
    let attr = path.attr()?;
    may(&attr, creds, access)?;
    may_at(path, creds, access)
}

/// `statfs(2)`: with the mount's flags, of which `f_flags` is made.
pub fn statfs(path: &Path) -> Result<(StatFs, MountFlags)> {
    let mut flags = path.mount.flags();
    flags.set(MountFlags::RDONLY, path.mount.is_read_only());
    Ok((path.mount.fs().statfs()?, flags))
}

fn change(path: &Path, set: &SetAttr) -> Result<()> {
    path.inode()?.set_attr(set)?;
    notify_at(path, libc::IN_ATTRIB);
    Ok(())
}
