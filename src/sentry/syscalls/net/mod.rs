//! Sockets: making, naming and connecting them. Messages are in [`message`].

pub mod addr;
pub mod control;
pub mod message;
pub mod option;
mod unix;

use std::sync::Arc;
use std::time::Instant;

use crate::errno::{Errno, Result};
use crate::netstack::stack::SocketCred;
use crate::netstack::stack::settings::Number;
use crate::netstack::unix::{Cred, Kind, UnixSocket};
use crate::netstack::{SockAddr, Socket};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{UserPtr, UserSlice, write_all};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::file::{File, OpenFile};
use crate::wait::Events;

/// The bits of a socket's type that are the type.
const TYPE_MASK: i32 = 0xf;

/// A descriptor's open file, which is a socket. `EBADF`, `ENOTSOCK`.
pub(super) fn socket_file(cur: &Current, fd: Fd) -> Result<Arc<OpenFile>> {
    let file = cur.io_file(fd)?;
    if file.object().as_socket().is_none() { Err(Errno::ENOTSOCK) } else { Ok(file) }
}

/// The socket behind an open file. `ENOTSOCK`.
pub(super) fn socket_of(file: &OpenFile) -> Result<&dyn Socket> {
    file.object().as_socket().ok_or(Errno::ENOTSOCK)
}

/// The caller, as a UNIX socket's peer is told.
pub(in crate::sentry::syscalls) fn cred(cur: &Current) -> Cred {
    let creds = cur.creds();
    Cred { pid: cur.scoped_pid(), uid: creds.euid, gid: creds.egid }
}

/// `struct ucred`, as the caller sees a peer.
pub(super) fn ucred(cur: &Current, cred: Cred) -> Vec<u8> {
    let pid = cred.pid.seen_from(cur.kernel.pid_namespace);
    [pid.to_ne_bytes(), cred.uid.to_ne_bytes(), cred.gid.to_ne_bytes()].concat()
}

/// When a call with `SO_RCVTIMEO` or (with `send`) `SO_SNDTIMEO` gives up.
pub(super) fn deadline(socket: &dyn Socket, send: bool) -> Option<Instant> {
    socket.timeout(send).and_then(|timeout| Instant::now().checked_add(timeout))
}

/// `signal(7)`: with a timeout, a call on a socket is not restarted.
pub(super) fn interrupted(error: Errno, deadline: Option<Instant>) -> Errno {
    if error == Errno::ERESTARTSYS && deadline.is_some() { Errno::EINTR } else { error }
}

/// `socket(2)` for TCP/IP, netlink and packets. `EAFNOSUPPORT`, `EACCES` (ping sockets).
fn inet_socket(cur: &Current, domain: i32, socket_type: i32, protocol: i32) -> Result<Arc<dyn File>> {
    let creds = cur.creds();
    let ping = matches!(protocol, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) && socket_type == libc::SOCK_DGRAM;
    let mut groups = creds.groups.iter().copied().chain([creds.egid]);
    if ping && !cur.kernel.net.settings().may_ping(&mut groups) {
        return Err(Errno::EACCES);
    }
    let cred = SocketCred {
        uid: creds.euid,
        gid: creds.egid,
        net_raw: creds.has(Caps::NET_RAW),
        net_admin: creds.has(Caps::NET_ADMIN),
        net_bind: creds.has(Caps::NET_BIND_SERVICE),
        pid: cur.pid(),
    };
    cur.kernel.net.socket(domain, socket_type, protocol, cred)
}

/// Splits off the flags of a type. `EINVAL`.
fn split_type(socket_type: i32) -> Result<(i32, i32)> {
    /// `SOCK_MAX`.
    const TYPES: i32 = 11;
    let (kind, flags) = (socket_type & TYPE_MASK, socket_type & !TYPE_MASK);
    if kind >= TYPES {
        return Err(Errno::EINVAL);
    }
    check_flags(flags).map(|()| (kind, flags))
}

fn check_flags(flags: i32) -> Result<()> {
    if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 { Err(Errno::EINVAL) } else { Ok(()) }
}

fn unix_kind(kind: i32, protocol: i32) -> Result<Kind> {
    match protocol {
        0 | libc::PF_UNIX => Kind::from_type(kind),
        _ => Err(Errno::EPROTONOSUPPORT),
    }
}

fn open(object: Arc<dyn File>, flags: i32) -> Arc<OpenFile> {
    OpenFile::anonymous(object, libc::O_RDWR | (flags & libc::SOCK_NONBLOCK))
}

/// `socket(2)`. `EINVAL`, `EAFNOSUPPORT`, `EPROTONOSUPPORT`, `ESOCKTNOSUPPORT`, `EPERM`, `EMFILE`.
pub fn socket(cur: &mut Current, domain: i32, socket_type: i32, protocol: i32) -> SysResult {
    let (kind, flags) = split_type(socket_type)?;
    let object = match domain {
        libc::AF_UNIX => {
            UnixSocket::new(unix_kind(kind, protocol)?, &cur.namespaces().unix, cred(cur)) as Arc<dyn File>
        }
        _ => inet_socket(cur, domain, kind, protocol)?,
    };
    cur.add_file(open(object, flags), flags & libc::SOCK_CLOEXEC != 0)
}

/// `socketpair(2)`. `EINVAL`, `EAFNOSUPPORT`, `EOPNOTSUPP`, `EPROTONOSUPPORT`, `EMFILE`, `EFAULT`.
pub fn socketpair(
    cur: &mut Current,
    domain: i32,
    socket_type: i32,
    protocol: i32,
    fds: UserPtr<[i32; 2]>,
) -> SysResult {
    let (kind, flags) = split_type(socket_type)?;
    match domain {
        libc::AF_UNIX => {}
        libc::AF_INET | libc::AF_INET6 | libc::AF_NETLINK => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EAFNOSUPPORT),
    }
    let (one, two) = UnixSocket::pair(unix_kind(kind, protocol)?, &cur.namespaces().unix, cred(cur));
    let cloexec = flags & libc::SOCK_CLOEXEC != 0;
    let first = cur.add_file(open(one, flags), cloexec)? as i32;
    let stored = cur.add_file(open(two, flags), cloexec).and_then(|second| {
        let second = second as i32;
        let stored = fds.write(cur.space(), &[first, second]);
        stored.inspect_err(|_| take_back(cur, second))
    });
    stored.inspect_err(|_| take_back(cur, first)).map(|()| 0)
}

/// Closes a descriptor that nobody was told of.
pub(super) fn take_back(cur: &Current, fd: i32) {
    // Another thread may have closed it already.
    let _ = cur.files().and_then(|files| files.remove(fd));
}

/// Copies an address in. `EINVAL`: a length that none has; `EFAULT`.
pub(super) fn read_addr(cur: &Current, at: u64, len: i32) -> Result<Vec<u8>> {
    let len = usize::try_from(len).ok().filter(|&len| len <= addr::MAX).ok_or(Errno::EINVAL)?;
    UserSlice::new(at, len).read(cur.space())
}

/// Stores an address and its length: as much as there is room for, and the whole length. `EINVAL`, `EFAULT`.
pub(super) fn write_addr(cur: &Current, at: u64, len: UserPtr<i32>, name: Option<&SockAddr>) -> Result<()> {
    let room = usize::try_from(len.read(cur.space())?).map_err(|_| Errno::EINVAL)?;
    let bytes = name.map(addr::encode).unwrap_or_default();
    write_all(cur.space(), at, &bytes[..bytes.len().min(room)])?;
    len.write(cur.space(), &(bytes.len() as i32))
}

/// `bind(2)`. `EBADF`, `ENOTSOCK`, `EINVAL`, `EADDRINUSE`, `EACCES`, `EAFNOSUPPORT`, `EADDRNOTAVAIL`, `EFAULT`, those of paths.
pub fn bind(cur: &mut Current, fd: Fd, at: u64, len: i32) -> SysResult {
    let file = socket_file(cur, fd)?;
    let socket = socket_of(&file)?;
    let bytes = read_addr(cur, at, len)?;
    let domain = socket.domain().0;
    let name = match (addr::decode(&bytes, domain)?, domain) {
        (SockAddr::Unspecified, libc::AF_UNIX) => return Err(Errno::EINVAL),
        // Programs that leave the family out may bind to any address, as bind(2) always let them.
        (SockAddr::Unspecified, libc::AF_INET) => match addr::decode_v4(&bytes)? {
            SockAddr::V4(any) if any.ip().is_unspecified() => SockAddr::V4(any),
            _ => return Err(Errno::EAFNOSUPPORT),
        },
        (SockAddr::Unspecified, _) => return Err(Errno::EAFNOSUPPORT),
        (name, _) => name,
    };
    match (file.downcast::<UnixSocket>(), &name) {
        (Some(socket), SockAddr::Unix(path)) if unix::is_path(path) => unix::bind(cur, socket, path)?,
        _ => socket.bind(&name)?,
    }
    Ok(0)
}

/// `listen(2)`. `EBADF`, `ENOTSOCK`, `EOPNOTSUPP`, `EINVAL`, `EADDRINUSE`.
pub fn listen(cur: &mut Current, fd: Fd, backlog: i32) -> SysResult {
    let file = socket_file(cur, fd)?;
    if let Some(socket) = file.downcast::<UnixSocket>() {
        socket.set_cred(cred(cur));
    }
    // One below 0 is as good as the longest.
    let most = cur.kernel.net.settings().get(Number::Somaxconn);
    let backlog = (backlog as u32).min(most) as i32;
    socket_of(&file)?.listen(backlog).map(|()| 0)
}

/// `accept(2)`. As `accept4`.
pub fn accept(cur: &mut Current, fd: Fd, at: u64, len: UserPtr<i32>) -> SysResult {
    accept4(cur, fd, at, len, 0)
}

/// `accept4(2)`. `EBADF`, `ENOTSOCK`, `EOPNOTSUPP`, `EINVAL`, `EAGAIN`, `ECONNABORTED`, `EMFILE`, `EFAULT`, `EINTR`.
pub fn accept4(cur: &mut Current, fd: Fd, at: u64, len: UserPtr<i32>, flags: i32) -> SysResult {
    check_flags(flags)?;
    let file = socket_file(cur, fd)?;
    let socket = socket_of(&file)?;
    let deadline = deadline(socket, false);
    let slot = cur.reserve_fd()?;
    let made = cur
        .wait_file_alone(&**file.object(), Events::READ, file.nonblocking(), deadline, || socket.accept())
        .map_err(|error| interrupted(error, deadline))?;
    if at != 0 {
        // The other side may have gone meanwhile.
        let peer = made.as_socket().ok_or(Errno::ENOTSOCK)?.accepted_from().map_err(|_| Errno::ECONNABORTED)?;
        write_addr(cur, at, len, Some(&peer))?;
    }
    Ok(slot.fill(open(made, flags), flags & libc::SOCK_CLOEXEC != 0) as u64)
}

/// `connect(2)`. `EBADF`, `ENOTSOCK`, `EINVAL`, `EAFNOSUPPORT`, `EISCONN`, `EALREADY`, `EINPROGRESS`, `ECONNREFUSED`,
/// `ETIMEDOUT`, `ENETUNREACH`, `EAGAIN`, `EACCES`, `EFAULT`, `EINTR`, those of paths.
pub fn connect(cur: &mut Current, fd: Fd, at: u64, len: i32) -> SysResult {
    let file = socket_file(cur, fd)?;
    let socket = socket_of(&file)?;
    let bytes = read_addr(cur, at, len)?;
    let name = addr::decode(&bytes, socket.domain().0)?;
    let deadline = deadline(socket, true);
    let attempt = match (file.downcast::<UnixSocket>(), &name) {
        (Some(own), name) => {
            own.set_cred(cred(cur));
            unix::connect(cur, &file, own, name, deadline)
        }
        (None, name) => socket.connect(name),
    };
    let result = match attempt {
        Err(Errno::EINPROGRESS | Errno::EALREADY) if !file.nonblocking() => finish_connect(cur, &file, &name, deadline),
        result => result,
    };
    result.map_err(|error| interrupted(error, deadline)).map(|()| 0)
}

/// Waits until a connection stands or has failed. `EINPROGRESS` at the deadline.
fn finish_connect(cur: &Current, file: &OpenFile, name: &SockAddr, deadline: Option<Instant>) -> Result<()> {
    let object = &**file.object();
    let settled = || {
        let done = object.poll().intersects(Events::OUT | Events::ALWAYS);
        if done { Ok(()) } else { Err(Errno::EAGAIN) }
    };
    match cur.wait_file(object, Events::WRITE, false, deadline, settled) {
        Err(Errno::EAGAIN) => return Err(Errno::EINPROGRESS),
        settled => settled?,
    }
    match socket_of(file)?.connect(name) {
        // Another thread that waited for it was told first.
        Err(Errno::EISCONN) => Ok(()),
        outcome => outcome,
    }
}

/// `shutdown(2)`. `EBADF`, `ENOTSOCK`, `EINVAL`, `ENOTCONN`.
pub fn shutdown(cur: &mut Current, fd: Fd, how: i32) -> SysResult {
    let file = socket_file(cur, fd)?;
    if !(libc::SHUT_RD..=libc::SHUT_RDWR).contains(&how) {
        return Err(Errno::EINVAL);
    }
    socket_of(&file)?.shutdown(how).map(|()| 0)
}

/// `getsockname(2)`. `EBADF`, `ENOTSOCK`, `EINVAL`, `EFAULT`.
pub fn getsockname(cur: &mut Current, fd: Fd, at: u64, len: UserPtr<i32>) -> SysResult {
    let name = socket_of(&*socket_file(cur, fd)?)?.local_name()?;
    write_addr(cur, at, len, Some(&name)).map(|()| 0)
}

/// `getpeername(2)`. `EBADF`, `ENOTSOCK`, `ENOTCONN`, `EINVAL`, `EFAULT`.
pub fn getpeername(cur: &mut Current, fd: Fd, at: u64, len: UserPtr<i32>) -> SysResult {
    let name = socket_of(&*socket_file(cur, fd)?)?.peer_name()?;
    write_addr(cur, at, len, Some(&name)).map(|()| 0)
}
