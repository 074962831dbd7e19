//! `fcntl(2)`.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::UserPtr;
use crate::sentry::syscalls::fs::owner::{F_GETOWN_EX, F_GETSIG, F_SETOWN_EX, F_SETSIG};
use crate::sentry::syscalls::fs::{locks, owner, path::attr_of};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::file::OpenFile;
use crate::vfs::perm;
use crate::vfs::pipe::PipeEnd;
use crate::vfs::tmpfs::TmpFile;

// What the libc crate does not name: `linux/fcntl.h`.
const F_DUPFD_QUERY: i32 = 1027;

/// `fcntl(2)`. `EBADF`, also for most commands on an `O_PATH` descriptor; `EINVAL`: no such command.
pub fn fcntl(cur: &mut Current, fd: Fd, cmd: i32, arg: u64) -> SysResult {
    let file = cur.file(fd)?;
    match cmd {
        libc::F_DUPFD => return duplicate(cur, file, arg, false),
        libc::F_DUPFD_CLOEXEC => return duplicate(cur, file, arg, true),
        F_DUPFD_QUERY => return cur.file(Fd(arg as i32)).map(|other| Arc::ptr_eq(&file, &other).into()),
        libc::F_GETFD => return cur.files()?.get_with_flags(fd.0).map(|(_, cloexec)| cloexec.into()),
        libc::F_SETFD => return cur.files()?.set_cloexec(fd.0, arg as i32 & libc::FD_CLOEXEC != 0).map(|()| 0),
        libc::F_GETFL => return Ok(file.flags() as u64),
        _ if file.is_path_only() => return Err(Errno::EBADF),
        _ => {}
    }
    match cmd {
        libc::F_SETFL => set_flags(cur, &file, fd, arg as i32).map(|()| 0),
        libc::F_GETLK => locks::get(cur, &file, UserPtr::new(arg), false),
        libc::F_SETLK => locks::set(cur, &file, UserPtr::new(arg), false, false),
        libc::F_SETLKW => locks::set(cur, &file, UserPtr::new(arg), false, true),
        libc::F_OFD_GETLK => locks::get(cur, &file, UserPtr::new(arg), true),
        libc::F_OFD_SETLK => locks::set(cur, &file, UserPtr::new(arg), true, false),
        libc::F_OFD_SETLKW => locks::set(cur, &file, UserPtr::new(arg), true, true),
        libc::F_GETPIPE_SZ | libc::F_SETPIPE_SZ => pipe_size(cur, &file, cmd, arg),
        libc::F_GET_SEALS | libc::F_ADD_SEALS => seals(&file, cmd, arg as i32),
        // No lease can be taken here, as on a file system that does not support them.
        libc::F_GETLEASE => Ok(libc::F_UNLCK as u64),
        libc::F_SETLEASE => Err(Errno::EINVAL),
        libc::F_GETOWN | libc::F_SETOWN | F_GETOWN_EX | F_SETOWN_EX | F_GETSIG | F_SETSIG => {
            owner::owner(cur, &file, cmd, arg)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `F_DUPFD`. `EINVAL`: the lowest number is beyond the limit; `EMFILE`.
fn duplicate(cur: &Current, file: Arc<OpenFile>, from: u64, cloexec: bool) -> SysResult {
    let limit = cur.limit(libc::RLIMIT_NOFILE);
    // The kernel takes it as an unsigned int.
    let from = u64::from(from as u32);
    if from >= limit {
        return Err(Errno::EINVAL);
    }
    cur.files()?.add(file, cloexec, from, limit).map(|fd| fd as u64)
}

/// `F_SETFL`. `EPERM`: `O_NOATIME` is for the owner.
fn set_flags(cur: &Current, file: &OpenFile, fd: Fd, flags: i32) -> Result<()> {
    let gains = flags & !file.flags();
    if gains & libc::O_NOATIME != 0 {
        perm::owner(&attr_of(file)?, &cur.creds())?;
    }
    owner::set_async(cur, file, fd.0, flags & libc::O_ASYNC != 0)?;
    file.set_flags(flags)
}

fn pipe_size(cur: &Current, file: &OpenFile, cmd: i32, arg: u64) -> SysResult {
    let pipe = file.downcast::<PipeEnd>().ok_or(Errno::EBADF)?.pipe();
    if cmd == libc::F_GETPIPE_SZ {
        return Ok(pipe.size() as u64);
    }
    pipe.set_size(arg as u32, cur.has_cap(Caps::SYS_RESOURCE)).map(|size| size as u64)
}

/// Seals of memfds and files of tmpfs. `EINVAL` for others, `EPERM` for what is not open for writing.
fn seals(file: &OpenFile, cmd: i32, seals: i32) -> SysResult {
    let node = file.downcast::<TmpFile>().ok_or(Errno::EINVAL)?.node();
    if cmd == libc::F_GET_SEALS {
        return Ok(node.content()?.seals() as u64);
    }
    if !file.writable() {
        return Err(Errno::EPERM);
    }
    node.add_seals(seals).map(|()| 0)
}
