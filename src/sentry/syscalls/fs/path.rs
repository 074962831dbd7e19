//! From a directory descriptor and a path to a place or an open file: what all calls with paths have in common.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::creds::Credentials;
use crate::sentry::mm::user::UserStr;
use crate::sentry::signal::{SigInfo, Signal};
use crate::sentry::syscalls::Fd;
use crate::sentry::task::Current;
use crate::vfs::deny::deny_write;
use crate::vfs::file::OpenFile;
use crate::vfs::inode::{Attr, NodeType, SetAttr};
use crate::vfs::perm::{self, Access};
use crate::vfs::{LookupFlags, MountFlags, Path, Walk, ops};

/// What a call with a path or with `AT_EMPTY_PATH` acts on.
pub enum Target {
    /// A node in a file system.
    Node(Path),
    /// A pipe, socket or other file without a name.
    Anonymous(Arc<OpenFile>),
}

impl Target {
    /// What an open file is to calls on nodes.
    pub fn of(file: Arc<OpenFile>) -> Target {
        match file.path() {
            Some(path) => Target::Node(path.clone()),
            None => Target::Anonymous(file),
        }
    }

    /// Its attributes.
    pub fn attr(&self) -> Result<Attr> {
        match self {
            Target::Node(path) => path.attr(),
            Target::Anonymous(file) => file.object().anonymous_attr().ok_or(Errno::EBADF),
        }
    }

    /// The node. `EOPNOTSUPP` for what has none, which is what Linux's own internal file systems mostly answer.
    pub fn node(self) -> Result<Path> {
        match self {
            Target::Node(path) => Ok(path),
            Target::Anonymous(_) => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Changes attributes: `node` is how the VFS does it to a node, `set` what is changed of an anonymous file, which its
    /// owner may do. `EPERM`.
    pub fn change(self, creds: &Credentials, set: &SetAttr, node: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        match self {
            Target::Node(path) => node(&path),
            Target::Anonymous(file) => {
                let attr = file.object().anonymous_attr().ok_or(Errno::EPERM)?;
                perm::owner(&attr, creds)?;
                file.object().set_anonymous_attr(set)
            }
        }
    }
}

/// The attributes of an open file, of whatever sort.
pub fn attr_of(file: &OpenFile) -> Result<Attr> {
    match file.path() {
        Some(path) => path.attr(),
        None => file.object().anonymous_attr().ok_or(Errno::EBADF),
    }
}

/// Whether an open file is a regular file.
pub fn is_regular(file: &OpenFile) -> bool {
    match file.path() {
        Some(path) => path.dentry.kind() == Some(NodeType::Regular),
        None => file.object().seekable(),
    }
}

/// `AT_SYMLINK_NOFOLLOW` and `AT_EMPTY_PATH` as lookup flags. `EINVAL` for flags that are neither these nor in `others`.
pub fn lookup_flags(flags: i32, others: i32) -> Result<LookupFlags> {
    if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | others) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut lookup = LookupFlags::empty();
    lookup.set(LookupFlags::FOLLOW, flags & libc::AT_SYMLINK_NOFOLLOW == 0);
    lookup.set(LookupFlags::EMPTY_PATH, flags & libc::AT_EMPTY_PATH != 0);
    Ok(lookup)
}

impl Current {
    /// Copies a path in. With `AT_EMPTY_PATH` among `lookup` NULL is the empty path. `EFAULT`, `ENAMETOOLONG`.
    pub fn path_arg(&self, path: UserStr, lookup: LookupFlags) -> Result<Vec<u8>> {
        if path.is_null() && lookup.contains(LookupFlags::EMPTY_PATH) {
            return Ok(Vec::new());
        }
        path.read_path(self.space())
    }

    /// Calls `f` with a walk that resolves `path` for an `*at` call: relative to `dir`, with the task's root, credentials and
    /// umask. `EBADF` (`dir`, for a relative path), `ENOTDIR` (it has no path).
    pub fn with_walk<T>(&self, dir: Fd, path: &[u8], f: impl FnOnce(&Walk<'_>) -> Result<T>) -> Result<T> {
        let absolute = path.first() == Some(&b'/');
        self.with_walk_from(if absolute { Fd(libc::AT_FDCWD) } else { dir }, f)
    }

    /// [`Current::with_walk`] for whatever path; `dir` is looked at even if that is absolute.
    pub fn with_walk_from<T>(&self, dir: Fd, f: impl FnOnce(&Walk<'_>) -> Result<T>) -> Result<T> {
        let fs = self.fs().get();
        let creds = self.creds();
        let file;
        let start = if dir.0 == libc::AT_FDCWD {
            &fs.cwd
        } else {
            file = self.file(dir)?;
            file.path().ok_or(Errno::ENOTDIR)?
        };
        f(&Walk { root: &fs.root, start, creds: &creds, umask: fs.umask, devices: &self.kernel.devices })
    }

    /// Resolves a path argument to a place.
    pub fn lookup(&self, dir: Fd, path: UserStr, flags: LookupFlags) -> Result<Path> {
        let path = self.path_arg(path, flags)?;
        self.with_walk(dir, &path, |walk| walk.lookup(&path, flags))
    }

    /// Resolves a path argument to what a call acts on: with `AT_EMPTY_PATH` and an empty path that is whatever `dir` refers
    /// to.
    pub fn target(&self, dir: Fd, path: UserStr, flags: LookupFlags) -> Result<Target> {
        let path = self.path_arg(path, flags)?;
        if path.is_empty() && flags.contains(LookupFlags::EMPTY_PATH) && dir.0 != libc::AT_FDCWD {
            return self.file(dir).map(Target::of);
        }
        self.with_walk(dir, &path, |walk| walk.lookup(&path, flags)).map(Target::Node)
    }

    /// Opens a program for `execve(2)`. `flags` are those of `execveat(2)`. As long as the open file lives nobody can open
    /// the program for writing. `EACCES` (not a regular file, no permission, a `noexec` mount), `ETXTBSY`, `EINVAL`, `ELOOP`
    /// (a symbolic link that is not to be followed).
    pub fn open_exec(&self, dir: Fd, path: &[u8], flags: i32) -> Result<Arc<OpenFile>> {
        let lookup = lookup_flags(flags, 0)?;
        let place = if path.is_empty() && lookup.contains(LookupFlags::EMPTY_PATH) && dir.0 != libc::AT_FDCWD {
            let file = self.file(dir)?;
            match file.path() {
                Some(path) => path.clone(),
                None => return self.exec_anonymous(&file),
            }
        } else {
            self.with_walk(dir, path, |walk| walk.lookup(path, lookup))?
        };
        match place.dentry.kind() {
            Some(NodeType::Regular) => {}
            Some(NodeType::Symlink) => return Err(Errno::ELOOP),
            _ => return Err(Errno::EACCES),
        }
        if place.mount.flags().contains(MountFlags::NOEXEC) {
            return Err(Errno::EACCES);
        }
        ops::access(&place, &self.creds(), Access::EXEC)?;
        let inode = place.inode()?.clone();
        let denied = deny_write(&inode)?;
        let object = inode.open(libc::O_RDONLY)?;
        let file = OpenFile::executable(object, place, denied);
        file.notify(libc::IN_OPEN);
        Ok(file)
    }

    /// A program without a name: a memfd.
    fn exec_anonymous(&self, file: &OpenFile) -> Result<Arc<OpenFile>> {
        let attr = attr_of(file)?;
        if attr.kind != NodeType::Regular || !file.object().seekable() {
            return Err(Errno::EACCES);
        }
        perm::may(&attr, &self.creds(), Access::EXEC)?;
        Ok(OpenFile::anonymous(file.object().clone(), libc::O_RDONLY))
    }

    /// Sends the calling thread a signal for what it did itself (SIGPIPE, SIGXFSZ): it seems to come from its own process,
    /// as on Linux.
    pub fn raise(&self, signal: Signal) {
        let info = SigInfo::user(signal, self.pid(), self.creds().ruid);
        self.group.send(info, Some(&self.task));
    }
}
