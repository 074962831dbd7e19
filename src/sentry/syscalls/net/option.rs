//! `getsockopt(2)`, `setsockopt(2)`.

use super::{socket_file, socket_of, ucred};
use crate::errno::{Errno, Result};
use crate::netstack::unix::UnixSocket;
use crate::netstack::{Socket, SocketOption};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{UserPtr, UserSlice};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;

/// No option is longer.
const VALUE_MAX: usize = 16 << 10;

fn get(socket: &dyn Socket, option: SocketOption, room: usize) -> Result<Vec<u8>> {
    let (domain, socket_type, protocol) = socket.domain();
    let value = match (option.level, option.name) {
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => domain,
        (libc::SOL_SOCKET, libc::SO_TYPE) => socket_type,
        (libc::SOL_SOCKET, libc::SO_PROTOCOL) => protocol,
        _ => return socket.get_option(option, room),
    };
    Ok(value.to_ne_bytes().to_vec())
}

/// `getsockopt(2)`. `EBADF`, `ENOTSOCK`, `EINVAL`, `ENOPROTOOPT`, `EOPNOTSUPP`, `EFAULT`.
pub fn getsockopt(cur: &mut Current, fd: Fd, level: i32, name: i32, value: u64, len: UserPtr<i32>) -> SysResult {
    let file = socket_file(cur, fd)?;
    let room = usize::try_from(len.read(cur.space())?).map_err(|_| Errno::EINVAL)?;
    let found = match file.downcast::<UnixSocket>() {
        Some(socket) if (level, name) == (libc::SOL_SOCKET, libc::SO_PEERCRED) => ucred(cur, socket.peer_cred()),
        _ => get(socket_of(&file)?, SocketOption { level, name }, room)?,
    };
    let stored = UserSlice::new(value, room).write_truncated(cur.space(), &found)?;
    len.write(cur.space(), &(stored as i32)).map(|()| 0)
}

/// `setsockopt(2)`. `EBADF`, `ENOTSOCK`, `EINVAL`, `EDOM`, `ENOPROTOOPT`, `EOPNOTSUPP`, `EPERM`, `EFAULT`.
pub fn setsockopt(cur: &mut Current, fd: Fd, level: i32, name: i32, value: u64, len: i32) -> SysResult {
    let file = socket_file(cur, fd)?;
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
    let value = UserSlice::new(value, len.min(VALUE_MAX)).read(cur.space())?;
    if level == libc::SOL_SOCKET && matches!(name, libc::SO_DOMAIN | libc::SO_TYPE | libc::SO_PROTOCOL) {
        return Err(Errno::ENOPROTOOPT);
    }
    let socket = socket_of(&file)?;
    if level == libc::SOL_SOCKET && socket.domain().0 == libc::AF_UNIX {
        check_unix(cur, name, &value)?;
    }
    socket.set_option(SocketOption { level, name }, &value).map(|()| 0)
}

/// What of `SOL_SOCKET` takes a capability. (Sockets of other families know who made them.)
fn check_unix(cur: &Current, name: i32, value: &[u8]) -> Result<()> {
    let int = value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL)?;
    let allowed = match name {
        libc::SO_PRIORITY => (0..=6).contains(&int) || cur.has_cap(Caps::NET_RAW) || cur.has_cap(Caps::NET_ADMIN),
        libc::SO_SNDBUFFORCE | libc::SO_RCVBUFFORCE => cur.has_cap(Caps::NET_ADMIN),
        _ => true,
    };
    if allowed { Ok(()) } else { Err(Errno::EPERM) }
}
