//! `fcntl(2)`.

use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::UserPtr;
use crate::sentry::syscalls::fs::{locks, path::attr_of};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::file::OpenFile;
use crate::vfs::perm;
use crate::vfs::pipe::PipeEnd;
use crate::vfs::tmpfs::TmpFile;

// What the libc crate does not name: `asm-generic/fcntl.h`, `linux/fcntl.h`.
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_DUPFD_QUERY: i32 = 1027;
const F_OWNER_TID: i32 = 0;
const F_OWNER_PID: i32 = 1;
const F_OWNER_PGRP: i32 = 2;

/// `struct f_owner_ex`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct OwnerEx {
    kind: i32,
    id: i32,
}

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
        libc::F_SETFL => set_flags(cur, &file, arg as i32).map(|()| 0),
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
            owner(cur, &file, cmd, arg)
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
fn set_flags(cur: &Current, file: &OpenFile, flags: i32) -> Result<()> {
    let gains = flags & !file.flags();
    if gains & libc::O_NOATIME != 0 {
        perm::owner(&attr_of(file)?, &cur.creds())?;
    }
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

/// Who is told of readiness, and by which signal.
pub(super) fn owner(cur: &Current, file: &OpenFile, cmd: i32, arg: u64) -> SysResult {
    let owner = file.extra().lock().owner;
    match cmd {
        libc::F_GETOWN => Ok(match owner {
            Some((F_OWNER_PGRP, id)) => i64::from(-id) as u64,
            Some((_, id)) => id as u64,
            None => 0,
        }),
        libc::F_SETOWN => {
            let id = arg as i32;
            let owner = match id {
                i32::MIN => return Err(Errno::EINVAL),
                0.. => (F_OWNER_PID, id),
                _ => (F_OWNER_PGRP, -id),
            };
            set_owner(cur, file, owner)
        }
        F_GETOWN_EX => {
            let (kind, id) = owner.unwrap_or((F_OWNER_PID, 0));
            UserPtr::new(arg).write(cur.space(), &OwnerEx { kind, id }).map(|()| 0)
        }
        F_SETOWN_EX => {
            let raw = UserPtr::<OwnerEx>::new(arg).read(cur.space())?;
            if !(F_OWNER_TID..=F_OWNER_PGRP).contains(&raw.kind) {
                return Err(Errno::EINVAL);
            }
            set_owner(cur, file, (raw.kind, raw.id))
        }
        F_GETSIG => Ok(file.extra().lock().signal as u64),
        _ => {
            let signal = i32::try_from(arg).ok().filter(|signal| (0..=64).contains(signal)).ok_or(Errno::EINVAL)?;
            file.extra().lock().signal = signal;
            Ok(0)
        }
    }
}

/// `ESRCH`: there is nobody of that number.
fn set_owner(cur: &Current, file: &OpenFile, (kind, id): (i32, i32)) -> SysResult {
    if id == 0 {
        file.extra().lock().owner = None;
        return Ok(0);
    }
    let exists = {
        let tree = cur.kernel.tree.lock();
        match kind {
            F_OWNER_PGRP => tree.members(id).next().is_some(),
            F_OWNER_TID => tree.thread(id).is_some(),
            _ => tree.node(id).is_some(),
        }
    };
    if !exists {
        return Err(Errno::ESRCH);
    }
    file.extra().lock().owner = Some((kind, id));
    Ok(0)
}
