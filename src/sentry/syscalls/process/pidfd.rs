//! `pidfd_open(2)`, `pidfd_send_signal(2)`, `pidfd_getfd(2)`.

use std::sync::atomic::Ordering;

use crate::errno::Errno;
use crate::sentry::mm::user::UserPtr;
use crate::sentry::signal::{SigInfo, Signal};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::sentry::task::pidfd::PidFd;
use crate::sentry::task::signals::Origin;
use crate::vfs::file::OpenFile;

/// `pidfd_open(2)`. `EINVAL`: flags, or no process's id; `ESRCH`; `EMFILE`.
pub fn pidfd_open(cur: &mut Current, pid: i32, flags: u32) -> SysResult {
    if flags & !(libc::O_NONBLOCK as u32) != 0 || pid <= 0 {
        return Err(Errno::EINVAL);
    }
    let group = {
        let tree = cur.kernel.tree.lock();
        match tree.node(pid) {
            Some(node) => node.group.clone(),
            None if tree.thread(pid).is_some() => return Err(Errno::EINVAL),
            None => return Err(Errno::ESRCH),
        }
    };
    let file = OpenFile::anonymous(PidFd::new(group), libc::O_RDWR | flags as i32);
    cur.add_file(file, true)
}

/// `pidfd_send_signal(2)`. `EBADF`, `EINVAL`, `EPERM`, `ESRCH`, `EFAULT`.
pub fn pidfd_send_signal(cur: &mut Current, fd: Fd, signal: i32, info: UserPtr<[u8; 128]>, flags: u32) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let file = cur.file(fd)?;
    let group = file.downcast::<PidFd>().ok_or(Errno::EBADF)?.group().clone();
    let to_self = group.pid() == cur.pid();
    let target = group.leader();
    if let Some(task) = &target {
        cur.may_signal(task, signal)?;
    }
    if group.exited.load(Ordering::SeqCst) {
        return Err(Errno::ESRCH);
    }
    if signal == 0 {
        return Ok(0);
    }
    let signal = Signal::new(signal)?;
    let info = match info.non_null() {
        None => SigInfo::user(signal, cur.pid(), cur.creds().ruid),
        Some(info) => {
            let bytes = info.read(cur.space())?;
            if i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) != signal.number() {
                return Err(Errno::EINVAL);
            }
            SigInfo::from_user(bytes, signal, to_self)?
        }
    };
    group.try_send(info, None, Origin::Inside).map(|()| 0)
}

/// `pidfd_getfd(2)`. `EBADF`, `EINVAL`, `EMFILE`, `EPERM`, `ESRCH`.
pub fn pidfd_getfd(cur: &mut Current, fd: Fd, target: i32, flags: u32) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let file = cur.file(fd)?;
    let group = file.downcast::<PidFd>().ok_or(Errno::EBADF)?.group().clone();
    let task = group.leader().ok_or(Errno::ESRCH)?;
    cur.may_trace(&task)?;
    let found = task.files()?.get(target)?;
    cur.add_file(found, true)
}
