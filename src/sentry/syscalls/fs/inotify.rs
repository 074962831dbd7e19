//! `inotify(7)`.

use crate::errno::{Errno, Result};
use crate::sentry::mm::user::UserStr;
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::LookupFlags;
use crate::vfs::file::OpenFile;
use crate::vfs::inotify::Inotify;
use crate::vfs::perm::{Access, may};

/// `inotify_init(2)`.
pub fn inotify_init(cur: &mut Current) -> SysResult {
    inotify_init1(cur, 0)
}

/// `inotify_init1(2)`. `EINVAL`, `EMFILE`.
pub fn inotify_init1(cur: &mut Current, flags: i32) -> SysResult {
    if flags & !(libc::IN_CLOEXEC | libc::IN_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = OpenFile::anonymous(Inotify::new(), libc::O_RDONLY | flags & libc::IN_NONBLOCK);
    cur.add_file(file, flags & libc::IN_CLOEXEC != 0)
}

fn instance(file: &OpenFile) -> Result<&Inotify> {
    file.downcast::<Inotify>().ok_or(Errno::EINVAL)
}

/// `inotify_add_watch(2)`. `EACCES`: what is watched must be readable.
pub fn inotify_add_watch(cur: &mut Current, fd: Fd, path: UserStr, mask: u32) -> SysResult {
    let known = libc::IN_ALL_EVENTS
        | libc::IN_DONT_FOLLOW
        | libc::IN_EXCL_UNLINK
        | libc::IN_MASK_ADD
        | libc::IN_MASK_CREATE
        | libc::IN_ONESHOT
        | libc::IN_ONLYDIR;
    if mask & known == 0 {
        return Err(Errno::EINVAL);
    }
    let file = cur.io_file(fd)?;
    let inotify = instance(&file)?;
    let mut lookup = LookupFlags::empty();
    lookup.set(LookupFlags::FOLLOW, mask & libc::IN_DONT_FOLLOW == 0);
    lookup.set(LookupFlags::DIRECTORY, mask & libc::IN_ONLYDIR != 0);
    let path = cur.lookup(Fd(libc::AT_FDCWD), path, lookup)?;
    may(&path.attr()?, &cur.creds(), Access::READ)?;
    inotify.add_watch(path.inode()?, mask).map(|wd| wd as u64)
}

/// `inotify_rm_watch(2)`.
pub fn inotify_rm_watch(cur: &mut Current, fd: Fd, wd: i32) -> SysResult {
    let file = cur.io_file(fd)?;
    instance(&file)?.remove_watch(wd).map(|()| 0)
}
