//! `ioctl(2)`: what concerns descriptors and every file; the rest is the file's own.

use std::any::Any;

use crate::errno::{Errno, Result};
use crate::netstack::unix::UnixSocket;
use crate::sentry::mm::user::{UserPtr, read_exact, write_all};
use crate::sentry::syscalls::fs::owner;
use crate::sentry::syscalls::fs::path::{attr_of, is_regular};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::file::{IoctlMemory, OpenFile};
use crate::vfs::inode::NodeType;

const FIONBIO: u32 = libc::FIONBIO as u32;
const FIOASYNC: u32 = libc::FIOASYNC as u32;
const FIOCLEX: u32 = libc::FIOCLEX as u32;
const FIONCLEX: u32 = libc::FIONCLEX as u32;
/// Who gets SIGIO and SIGURG of a socket: `asm-generic/sockios.h`.
const FIOSETOWN: u32 = 0x8901;
const SIOCSPGRP: u32 = 0x8902;
const FIOGETOWN: u32 = 0x8903;
const SIOCGPGRP: u32 = 0x8904;
const FIONREAD: u32 = libc::FIONREAD as u32;
/// Total size: `asm-generic/ioctls.h`.
const FIOQSIZE: u32 = 0x5460;
/// Block size: `linux/fs.h`.
const FIGETBSZ: u32 = 2;
/// Sharing of extents between files, and a map of them, are for file systems that have extents.
const UNSUPPORTED: [u32; 3] = [0x4004_9409, 0x4020_940d, 0xc020_660b];

/// The memory is the caller's, and [`IoctlMemory::caller`] its `Arc<Task>`.
impl IoctlMemory for Current {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        read_exact(self.space(), addr, buf)
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        write_all(self.space(), addr, bytes)
    }

    fn caller(&self) -> &dyn Any {
        &self.task
    }
}

/// `ioctl(2)`. `ENOTTY`: nothing that the file knows.
pub fn ioctl(cur: &mut Current, fd: Fd, cmd: u32, arg: u64) -> SysResult {
    let file = cur.io_file(fd)?;
    match cmd {
        FIOCLEX | FIONCLEX => cur.files()?.set_cloexec(fd.0, cmd == FIOCLEX)?,
        FIONBIO => set_nonblocking(cur, &file, arg)?,
        FIOASYNC => {
            let on = UserPtr::<i32>::new(arg).read(cur.space())? != 0;
            if !owner::set_async(cur, &file, fd.0, on)? {
                return Err(Errno::ENOTTY);
            }
        }
        FIONREAD if file.path().is_some() && is_regular(&file) => {
            let left = attr_of(&file)?.size as i64 - *file.position() as i64;
            UserPtr::new(arg).write(cur.space(), &(left as i32))?;
        }
        FIOQSIZE => {
            let attr = attr_of(&file)?;
            if !matches!(attr.kind, NodeType::Regular | NodeType::Directory | NodeType::Symlink) {
                return Err(Errno::ENOTTY);
            }
            UserPtr::new(arg).write(cur.space(), &attr.size)?;
        }
        FIGETBSZ => UserPtr::new(arg).write(cur.space(), &(attr_of(&file)?.blksize as i32))?,
        FIOSETOWN | SIOCSPGRP if file.object().as_socket().is_some() => {
            let id = UserPtr::<i32>::new(arg).read(cur.space())?;
            return owner::owner(cur, &file, libc::F_SETOWN, id as u64);
        }
        FIOGETOWN | SIOCGPGRP if file.object().as_socket().is_some() => {
            let id = owner::owner(cur, &file, libc::F_GETOWN, 0)?;
            UserPtr::new(arg).write(cur.space(), &(id as i32))?;
        }
        _ if UNSUPPORTED.contains(&cmd) && is_regular(&file) => return Err(Errno::EOPNOTSUPP),
        _ => {
            return match file.object().ioctl(cur, cmd, arg) {
                Err(Errno::ENOTTY) if is_unix(&file) => cur.kernel.net.interface_ioctl(cur, cmd, arg),
                result => result,
            };
        }
    }
    Ok(0)
}

/// UNIX sockets, too, tell of the network's interfaces: `if_nametoindex(3)` asks one.
fn is_unix(file: &OpenFile) -> bool {
    file.downcast::<UnixSocket>().is_some()
}

fn set_nonblocking(cur: &Current, file: &OpenFile, arg: u64) -> Result<()> {
    let on = UserPtr::<i32>::new(arg).read(cur.space())? != 0;
    let flags = if on { file.flags() | libc::O_NONBLOCK } else { file.flags() & !libc::O_NONBLOCK };
    file.set_flags(flags)
}
