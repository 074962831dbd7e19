//! What is done to names: `mkdir(2)`, `link(2)`, `unlink(2)`, `rename(2)` and their kin.
//!
//! Each resolves the directory, takes its lock, looks the name up under it, checks, calls the file system, brings the
//! cache up to date, and reports the change when the lock is given up.

use std::sync::Arc;

use parking_lot::RwLockWriteGuard;

use crate::errno::{Errno, Result};
use crate::sentry::creds::{Caps, Credentials};
use crate::vfs::dentry::Dentry;
use crate::vfs::inode::{Attr, NewNode, NodeType, RenameFlags};
use crate::vfs::inotify::{next_cookie, notify};
use crate::vfs::path::Path;
use crate::vfs::perm::{Access, may, may_delete, writable_mount};
use crate::vfs::walk::{Last, LookupFlags, PATH_MAX, Walk};

/// A node to make, as a program asks for it.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub kind: NodeType,
    /// Before the umask.
    pub mode: u32,
    pub rdev: u64,
    pub target: &'a [u8],
}

impl<'a> Request<'a> {
    /// What the file system is told: the umask, and the rules of a set-group-ID directory with attributes `dir`.
    pub(super) fn node(&self, dir: &Attr, creds: &Credentials, umask: u32) -> NewNode<'a> {
        let mut perm = if self.kind == NodeType::Symlink { 0o777 } else { self.mode & 0o7777 & !umask };
        let inherits = dir.perm & libc::S_ISGID != 0;
        let gid = if inherits { dir.gid } else { creds.fsgid };
        let runs_as_group = libc::S_ISGID | libc::S_IXGRP;
        if inherits && self.kind == NodeType::Directory {
            perm |= libc::S_ISGID;
        } else if inherits && perm & runs_as_group == runs_as_group && !creds.in_group(gid) && !creds.has(Caps::FSETID)
        {
            perm &= !libc::S_ISGID;
        }
        NewNode { kind: self.kind, perm, uid: creds.fsuid, gid, rdev: self.rdev, target: self.target }
    }
}

fn dir_bit(dentry: &Dentry) -> u32 {
    if dentry.is_dir() { libc::IN_ISDIR } else { 0 }
}

/// Whether names may be added to `dir`: `EROFS`, `ENOENT` (removed), `EACCES`.
pub(super) fn may_create(dir: &Path, attr: &Attr, creds: &Credentials) -> Result<()> {
    writable_mount(dir)?;
    if dir.dentry.is_deleted() {
        return Err(Errno::ENOENT);
    }
    may(attr, creds, Access::WRITE | Access::EXEC)
}

impl Walk<'_> {
    /// `mkdir(2)`.
    pub fn mkdir(&self, path: &[u8], mode: u32) -> Result<Path> {
        self.make(path, &Request { kind: NodeType::Directory, mode: mode & 0o1777, rdev: 0, target: b"" })
    }

    /// `mknod(2)`, and the node of a socket that is bound to a path (for which `EEXIST` becomes `EADDRINUSE`). `EPERM`
    /// for a directory or, without `CAP_MKNOD`, a device.
    pub fn mknod(&self, path: &[u8], kind: NodeType, mode: u32, rdev: u64) -> Result<Path> {
        match kind {
            NodeType::Directory => return Err(Errno::EPERM),
            NodeType::Symlink => return Err(Errno::EINVAL),
            _ => {}
        }
        self.make(path, &Request { kind, mode, rdev, target: b"" })
    }

    /// `symlink(2)`.
    pub fn symlink(&self, target: &[u8], path: &[u8]) -> Result<()> {
        match target.len() {
            0 => return Err(Errno::ENOENT),
            PATH_MAX.. => return Err(Errno::ENAMETOOLONG),
            _ => {}
        }
        self.make(path, &Request { kind: NodeType::Symlink, mode: 0o777, rdev: 0, target }).map(drop)
    }

    fn make(&self, path: &[u8], request: &Request<'_>) -> Result<Path> {
        let (dir, last) = self.lookup_parent(path, LookupFlags::empty())?;
        let Last::Name(name, slash) = last else { return Err(Errno::EEXIST) };
        self.make_at(&dir, &name, slash, request)
    }

    /// Makes `name` in `dir`. `EEXIST`; `ENOENT` when slashes follow what is no directory.
    pub(super) fn make_at(&self, dir: &Path, name: &[u8], slash: bool, request: &Request<'_>) -> Result<Path> {
        let lock = dir.dentry.dir.write();
        if dir.dentry.lookup_locked(name)?.kind().is_some() {
            return Err(Errno::EEXIST);
        }
        if slash && request.kind != NodeType::Directory {
            return Err(Errno::ENOENT);
        }
        let attr = dir.attr()?;
        may_create(dir, &attr, self.creds)?;
        let device = matches!(request.kind, NodeType::CharDevice | NodeType::BlockDevice);
        let whiteout = request.kind == NodeType::CharDevice && request.rdev == 0;
        if device && !whiteout && !self.creds.has(Caps::MKNOD) {
            return Err(Errno::EPERM);
        }
        let inode = dir.inode()?.create(name, &request.node(&attr, self.creds, self.umask))?;
        let dentry = dir.dentry.instantiate(name, inode)?;
        drop(lock);
        notify(&**dir.inode()?, libc::IN_CREATE | dir_bit(&dentry), name, 0);
        Ok(Path { mount: dir.mount.clone(), dentry })
    }

    /// `linkat(2)`: another name, `path`, for `source`, which is resolved. `EXDEV`, `EPERM` (a directory), `ENOENT` (a file
    /// whose last name is gone).
    pub fn link(&self, source: &Path, path: &[u8]) -> Result<()> {
        let (dir, last) = self.lookup_parent(path, LookupFlags::empty())?;
        let Last::Name(name, slash) = last else { return Err(Errno::EEXIST) };
        let lock = dir.dentry.dir.write();
        if dir.dentry.lookup_locked(&name)?.kind().is_some() {
            return Err(Errno::EEXIST);
        }
        if slash {
            return Err(Errno::ENOENT);
        }
        if !Arc::ptr_eq(&dir.mount, &source.mount) {
            return Err(Errno::EXDEV);
        }
        may_create(&dir, &dir.attr()?, self.creds)?;
        if source.dentry.is_dir() {
            return Err(Errno::EPERM);
        }
        if source.attr()?.nlink == 0 && !source.dentry.is_linkable_unnamed() {
            return Err(Errno::ENOENT);
        }
        let inode = source.inode()?;
        dir.inode()?.link(&name, inode)?;
        dir.dentry.instantiate(&name, inode.clone())?;
        drop(lock);
        notify(&**inode, libc::IN_ATTRIB, b"", 0);
        notify(&**dir.inode()?, libc::IN_CREATE, &name, 0);
        Ok(())
    }

    /// `unlink(2)`. `EISDIR`, `EBUSY` (a mount point).
    pub fn unlink(&self, path: &[u8]) -> Result<()> {
        let (dir, last) = self.lookup_parent(path, LookupFlags::empty())?;
        let Last::Name(name, slash) = last else { return Err(Errno::EISDIR) };
        let lock = dir.dentry.dir.write();
        let victim = dir.dentry.lookup_locked(&name)?;
        let kind = victim.kind().ok_or(Errno::ENOENT)?;
        if slash {
            return Err(if kind == NodeType::Directory { Errno::EISDIR } else { Errno::ENOTDIR });
        }
        self.check_victim(&dir, &victim)?;
        if kind == NodeType::Directory {
            return Err(Errno::EISDIR);
        }
        if victim.is_mount_point() {
            return Err(Errno::EBUSY);
        }
        dir.inode()?.unlink(&name)?;
        victim.inode()?.unlinked();
        dir.dentry.forget(&name, &victim);
        drop(lock);
        report_removed(&victim);
        notify(&**dir.inode()?, libc::IN_DELETE, &name, 0);
        Ok(())
    }

    /// `rmdir(2)`. `ENOTDIR`, `ENOTEMPTY`, `EINVAL` (`.`), `EBUSY` (a mount point, the root).
    pub fn rmdir(&self, path: &[u8]) -> Result<()> {
        let (dir, last) = self.lookup_parent(path, LookupFlags::empty())?;
        let name = match last {
            Last::Name(name, _) => name,
            Last::Dot => return Err(Errno::EINVAL),
            Last::DotDot => return Err(Errno::ENOTEMPTY),
            Last::Root => return Err(Errno::EBUSY),
        };
        let lock = dir.dentry.dir.write();
        let victim = dir.dentry.lookup_locked(&name)?;
        victim.inode()?;
        self.check_victim(&dir, &victim)?;
        if !victim.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        if victim.is_mount_point() {
            return Err(Errno::EBUSY);
        }
        // Nothing may be made in it from here on: makers hold its lock and look at `is_deleted`.
        let inner = victim.dir.write();
        dir.inode()?.rmdir(&name)?;
        victim.inode()?.unlinked();
        dir.dentry.forget(&name, &victim);
        drop(inner);
        drop(lock);
        notify(&**victim.inode()?, libc::IN_DELETE_SELF | libc::IN_ISDIR, b"", 0);
        notify(&**dir.inode()?, libc::IN_DELETE | libc::IN_ISDIR, &name, 0);
        Ok(())
    }

    fn check_victim(&self, dir: &Path, victim: &Dentry) -> Result<()> {
        writable_mount(dir)?;
        may_delete(&dir.attr()?, &victim.inode()?.attr()?, self.creds)
    }

    /// `renameat2(2)`: `old` from here to `new` as seen from `to`, a walk of the same process with another start.
    pub fn rename(&self, old: &[u8], to: &Walk<'_>, new: &[u8], flags: RenameFlags) -> Result<()> {
        let unlike = RenameFlags::NOREPLACE | RenameFlags::WHITEOUT;
        if flags.contains(RenameFlags::EXCHANGE) && flags.intersects(unlike) {
            return Err(Errno::EINVAL);
        }
        if flags.contains(RenameFlags::WHITEOUT) && !self.creds.has(Caps::MKNOD) {
            return Err(Errno::EPERM);
        }
        let (old_dir, old_last) = self.lookup_parent(old, LookupFlags::empty())?;
        let (new_dir, new_last) = to.lookup_parent(new, LookupFlags::empty())?;
        if !Arc::ptr_eq(&old_dir.mount, &new_dir.mount) {
            return Err(Errno::EXDEV);
        }
        let Last::Name(old_name, old_slash) = old_last else { return Err(Errno::EBUSY) };
        let Last::Name(new_name, new_slash) = new_last else {
            return Err(if flags.contains(RenameFlags::NOREPLACE) { Errno::EEXIST } else { Errno::EBUSY });
        };
        writable_mount(&old_dir)?;
        let rename = Rename { creds: self.creds, old_dir, old_name, new_dir, new_name, flags };
        rename.run(old_slash, new_slash)
    }
}

/// Reports that one name of a file that is no directory went, and the file when that was its last.
fn report_removed(victim: &Dentry) {
    let Ok(inode) = victim.inode() else { return };
    notify(&**inode, libc::IN_ATTRIB, b"", 0);
    if inode.attr().is_ok_and(|attr| attr.nlink == 0) {
        notify(&**inode, libc::IN_DELETE_SELF, b"", 0);
    }
}

/// A rename whose directories are resolved.
struct Rename<'a> {
    creds: &'a Credentials,
    old_dir: Path,
    old_name: Vec<u8>,
    new_dir: Path,
    new_name: Vec<u8>,
    flags: RenameFlags,
}

impl Rename<'_> {
    fn run(&self, old_slash: bool, new_slash: bool) -> Result<()> {
        let (old_dir, new_dir) = (&self.old_dir.dentry, &self.new_dir.dentry);
        let same_dir = Arc::ptr_eq(old_dir, new_dir);
        // Between two directories the tree must keep its shape while ancestors are compared.
        let shape = (!same_dir).then(|| old_dir.superblock().rename.lock());
        let locks = lock_two(old_dir, new_dir);
        let old = old_dir.lookup_locked(&self.old_name)?;
        old.inode()?;
        let new = new_dir.lookup_locked(&self.new_name)?;
        let exchange = self.flags.contains(RenameFlags::EXCHANGE);
        match new.kind() {
            Some(_) if self.flags.contains(RenameFlags::NOREPLACE) => return Err(Errno::EEXIST),
            None if exchange => return Err(Errno::ENOENT),
            _ => {}
        }
        let slash_on_file = !old.is_dir() && (old_slash || (!exchange && new_slash));
        if slash_on_file || (exchange && new_slash && !new.is_dir()) {
            return Err(Errno::ENOTDIR);
        }
        if old.is_ancestor_of(new_dir) {
            return Err(Errno::EINVAL);
        }
        if new.is_ancestor_of(old_dir) {
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if Arc::ptr_eq(&old, &new) || self.same_node(&old, &new)? {
            return Ok(());
        }
        self.check(&old, &new, same_dir, exchange)?;
        // A directory that is replaced must stay empty until it is gone.
        let inner = (new.is_dir() && !exchange).then(|| new.dir.write());
        self.old_dir.inode()?.rename(&self.old_name, self.new_dir.inode()?, &self.new_name, self.flags)?;
        if exchange {
            old_dir.moved(&old, new_dir, &self.new_name);
            new_dir.moved(&new, old_dir, &self.old_name);
        } else {
            if let Ok(replaced) = new.inode() {
                replaced.unlinked();
            }
            new_dir.forget(&self.new_name, &new);
            old_dir.moved(&old, new_dir, &self.new_name);
        }
        drop(inner);
        drop(locks);
        drop(shape);
        self.report(&old, &new, exchange)
    }

    /// Whether both names are of one file: nothing is done then.
    fn same_node(&self, old: &Dentry, new: &Dentry) -> Result<bool> {
        let (Ok(old), Ok(new)) = (old.inode(), new.inode()) else { return Ok(false) };
        let (old, new) = (old.attr()?, new.attr()?);
        Ok((old.dev, old.ino) == (new.dev, new.ino))
    }

    fn check(&self, old: &Arc<Dentry>, new: &Arc<Dentry>, same_dir: bool, exchange: bool) -> Result<()> {
        let creds = self.creds;
        let (from, to, moved) = (self.old_dir.attr()?, self.new_dir.attr()?, old.inode()?.attr()?);
        may_delete(&from, &moved, creds)?;
        match new.inode() {
            Err(_) => may_create(&self.new_dir, &to, creds)?,
            Ok(inode) => {
                let victim = inode.attr()?;
                may_delete(&to, &victim, creds)?;
                match (old.is_dir(), new.is_dir()) {
                    _ if exchange => {}
                    (true, false) => return Err(Errno::ENOTDIR),
                    (false, true) => return Err(Errno::EISDIR),
                    _ => {}
                }
                if exchange && new.is_dir() && !same_dir {
                    may(&victim, creds, Access::WRITE)?;
                }
            }
        }
        // A directory that gets another parent has its `..` written.
        if old.is_dir() && !same_dir {
            may(&moved, creds, Access::WRITE)?;
        }
        if old.is_mount_point() || new.is_mount_point() {
            return Err(Errno::EBUSY);
        }
        Ok(())
    }

    fn report(&self, old: &Dentry, new: &Dentry, exchange: bool) -> Result<()> {
        let (old_dir, new_dir) = (self.old_dir.inode()?, self.new_dir.inode()?);
        let cookie = next_cookie();
        notify(&**old_dir, libc::IN_MOVED_FROM | dir_bit(old), &self.old_name, cookie);
        notify(&**new_dir, libc::IN_MOVED_TO | dir_bit(old), &self.new_name, cookie);
        notify(&**old.inode()?, libc::IN_MOVE_SELF, b"", 0);
        if exchange {
            let cookie = next_cookie();
            notify(&**new_dir, libc::IN_MOVED_FROM | dir_bit(new), &self.new_name, cookie);
            notify(&**old_dir, libc::IN_MOVED_TO | dir_bit(new), &self.old_name, cookie);
            notify(&**new.inode()?, libc::IN_MOVE_SELF, b"", 0);
        } else if new.kind().is_some() {
            report_removed(new);
        }
        Ok(())
    }
}

type DirLock<'a> = RwLockWriteGuard<'a, ()>;

/// Locks one or two directories: an ancestor before its descendant, else by address.
fn lock_two<'a>(one: &'a Arc<Dentry>, other: &'a Arc<Dentry>) -> (DirLock<'a>, Option<DirLock<'a>>) {
    if Arc::ptr_eq(one, other) {
        return (one.dir.write(), None);
    }
    let one_first = if one.is_ancestor_of(other) {
        true
    } else if other.is_ancestor_of(one) {
        false
    } else {
        Arc::as_ptr(one) < Arc::as_ptr(other)
    };
    let (first, second) = if one_first { (one, other) } else { (other, one) };
    let first = first.dir.write();
    (first, Some(second.dir.write()))
}
