//! `send(2)`, `recv(2)` and their kin.
//!
//! `sendto` and `recvfrom` without an address, the usual calls on a connection, cost one attempt on the socket and one copy.

use std::time::Instant;

use super::control::{self, ControlWriter};
use super::{addr, cred, deadline, interrupted, read_addr, socket_file, socket_of, ucred, unix, write_addr};
use crate::errno::{Errno, Result};
use crate::io::Source;
use crate::netstack::unix::{Cred, MAX_FILES, UnixSocket};
use crate::netstack::{Ancillary, Message, RecvFlags, SockAddr, Socket};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{IOV_MAX, UserBuffers, UserPtr, UserSlice, write_all};
use crate::sentry::namespaces::Pid;
use crate::sentry::signal::{SigInfo, Signal};
use crate::sentry::syscalls::signal::{deadline_after, timespec};
use crate::sentry::syscalls::time::Time;
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::file::OpenFile;
use crate::wait::Events;

/// The longest control buffer that is read: `/proc/sys/net/core/optmem_max`.
const CONTROL_MAX: usize = 128 << 10;

/// A message's fields in `struct msghdr`.
type RawHeader = [u64; 7];

/// `struct msghdr`.
struct Header {
    name: u64,
    name_len: i32,
    iov: u64,
    iov_len: usize,
    control: UserSlice,
}

impl Header {
    /// `EMSGSIZE`: too many buffers; `EINVAL`, `EFAULT`.
    fn read(cur: &Current, at: UserPtr<RawHeader>) -> Result<Header> {
        let [name, name_len, iov, iov_len, control, control_len, _] = at.read(cur.space())?;
        let name_len = if name == 0 { 0 } else { name_len as i32 };
        if name_len < 0 {
            return Err(Errno::EINVAL);
        }
        let iov_len = usize::try_from(iov_len).ok().filter(|&len| len <= IOV_MAX).ok_or(Errno::EMSGSIZE)?;
        let control = UserSlice::new(control, usize::try_from(control_len).map_err(|_| Errno::ENOBUFS)?);
        // Longer names are cut, as Linux does here and only here.
        Ok(Header { name, name_len: name_len.min(addr::MAX as i32), iov, iov_len, control })
    }
}

/// Where a message goes.
enum Target {
    /// To the peer.
    Peer,
    /// To an address.
    Address(SockAddr),
    /// To a UNIX socket with a path.
    Path(std::sync::Arc<crate::netstack::unix::BoundSocket>),
}

fn target(cur: &Current, socket: &dyn Socket, at: u64, len: i32) -> Result<Target> {
    let (domain, socket_type, _) = socket.domain();
    // A connection does not look at addresses; a UNIX stream refuses them.
    if at == 0 || len == 0 || (socket_type == libc::SOCK_STREAM && domain != libc::AF_UNIX) {
        return Ok(Target::Peer);
    }
    let bytes = read_addr(cur, at, len)?;
    match addr::decode(&bytes, domain)? {
        SockAddr::Unspecified if domain == libc::AF_INET => addr::decode_v4(&bytes).map(Target::Address),
        SockAddr::Unspecified if domain == libc::AF_UNIX => Err(Errno::EINVAL),
        SockAddr::Unix(name) if name.is_empty() => Err(Errno::EINVAL),
        SockAddr::Unix(path) if unix::is_path(&path) && socket_type == libc::SOCK_DGRAM => {
            unix::find(cur, &path).map(Target::Path)
        }
        name => Ok(Target::Address(name)),
    }
}

/// Sends `source`: all of it on a blocking stream.
fn send(
    cur: &Current,
    file: &OpenFile,
    source: &mut dyn Source,
    target: &Target,
    mut ancillary: Ancillary,
    flags: i32,
) -> SysResult {
    let socket = socket_of(file)?;
    let own = file.downcast::<UnixSocket>();
    if own.is_some() && ancillary.credentials.is_none() {
        ancillary.credentials = Some(cred(cur));
    }
    let nonblocking = file.nonblocking() || flags & libc::MSG_DONTWAIT != 0;
    let stream = socket.domain().1 == libc::SOCK_STREAM;
    let deadline = deadline(socket, true);
    let mut done = 0;
    loop {
        let attempt = || match (target, own) {
            (Target::Path(to), Some(own)) => own.send_to(to, source, ancillary.clone(), flags),
            (Target::Path(_), None) => Err(Errno::EINVAL),
            (Target::Address(to), _) => socket.send(source, Some(to), ancillary.clone(), flags),
            (Target::Peer, _) => socket.send(source, None, ancillary.clone(), flags),
        };
        match cur.wait_file(&**file.object(), Events::WRITE, nonblocking, deadline, attempt) {
            Ok(n) => {
                done += n;
                if !stream || n == 0 || source.left() == 0 {
                    return Ok(done as u64);
                }
                ancillary.files.clear();
            }
            Err(Errno::EAGAIN) => {
                file.note_full();
                return if done > 0 { Ok(done as u64) } else { Err(Errno::EAGAIN) };
            }
            Err(_) if done > 0 => return Ok(done as u64),
            Err(error) => {
                if error == Errno::EPIPE && stream && flags & libc::MSG_NOSIGNAL == 0 {
                    let info = SigInfo::user(Signal::PIPE, cur.pid(), cur.creds().ruid);
                    cur.group.send(info, Some(&cur.task));
                }
                return Err(interrupted(error, deadline));
            }
        }
    }
}

/// `sendto(2)`. `EBADF`, `ENOTSOCK`, `EAGAIN`, `ENOTCONN`, `EDESTADDRREQ`, `EMSGSIZE`, `EPIPE`, `ECONNRESET`, `EFAULT`, `EINTR`,
/// those of addresses.
pub fn sendto(cur: &mut Current, fd: Fd, buf: UserSlice, flags: i32, at: u64, len: i32) -> SysResult {
    let file = socket_file(cur, fd)?;
    let target = target(cur, socket_of(&file)?, at, len)?;
    send(cur, &file, &mut UserBuffers::one(cur.space(), buf), &target, Ancillary::default(), flags)
}

/// `sendmsg(2)`. As `sendto`; and `EINVAL`, `EPERM`, `ETOOMANYREFS` for control messages.
pub fn sendmsg(cur: &mut Current, fd: Fd, message: UserPtr<RawHeader>, flags: i32) -> SysResult {
    let file = socket_file(cur, fd)?;
    send_message(cur, &file, message, flags)
}

fn send_message(cur: &Current, file: &OpenFile, message: UserPtr<RawHeader>, flags: i32) -> SysResult {
    let header = Header::read(cur, message)?;
    let socket = socket_of(file)?;
    let target = target(cur, socket, header.name, header.name_len)?;
    let mut buffers = UserBuffers::iovecs(cur.space(), header.iov, header.iov_len)?;
    let ancillary = match header.control.is_empty() {
        true => Ancillary::default(),
        false if header.control.len() > CONTROL_MAX => return Err(Errno::ENOBUFS),
        false => decode_control(cur, socket.domain().0, &header.control.read(cur.space())?)?,
    };
    send(cur, file, &mut buffers, &target, ancillary, flags)
}

/// What a control buffer asks for. `EINVAL`, `EBADF`, `EPERM`.
fn decode_control(cur: &Current, domain: i32, bytes: &[u8]) -> Result<Ancillary> {
    let mut ancillary = Ancillary::default();
    for message in control::decode(bytes)? {
        match (message.level, message.kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) if domain == libc::AF_UNIX => {
                for fd in message.data.as_chunks::<4>().0 {
                    if ancillary.files.len() == MAX_FILES {
                        return Err(Errno::EINVAL);
                    }
                    ancillary.files.push(cur.file(Fd(i32::from_ne_bytes(*fd)))?);
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if domain == libc::AF_UNIX => {
                ancillary.credentials = Some(decode_credentials(cur, message.data)?);
            }
            (libc::SOL_SOCKET, _) if domain == libc::AF_UNIX => return Err(Errno::EINVAL),
            // Other levels mean nothing to a UNIX socket, and are not looked at.
            _ if domain == libc::AF_UNIX => {}
            (level, kind) => ancillary.other.push((level, kind, message.data.to_vec())),
        }
    }
    Ok(ancillary)
}

/// `struct ucred`, of ids that the sender has or may take. `EINVAL`, `EPERM`.
fn decode_credentials(cur: &Current, data: &[u8]) -> Result<Cred> {
    let ([pid, uid, gid], []) = data.as_chunks::<4>() else { return Err(Errno::EINVAL) };
    let (pid, uid, gid) = (i32::from_ne_bytes(*pid), u32::from_ne_bytes(*uid), u32::from_ne_bytes(*gid));
    let creds = cur.creds();
    let allowed = (pid == cur.pid() || creds.has(Caps::SYS_ADMIN))
        && ([creds.ruid, creds.euid, creds.suid].contains(&uid) || creds.has(Caps::SETUID))
        && ([creds.rgid, creds.egid, creds.sgid].contains(&gid) || creds.has(Caps::SETGID));
    let pid = Pid { number: pid, namespace: cur.kernel.pid_namespace };
    if allowed { Ok(Cred { pid, uid, gid }) } else { Err(Errno::EPERM) }
}

/// `sendmmsg(2)`: how many were sent; an error only when none was.
pub fn sendmmsg(cur: &mut Current, fd: Fd, messages: UserPtr<[u64; 8]>, count: u32, flags: i32) -> SysResult {
    let file = socket_file(cur, fd)?;
    many(count, |at| {
        let message = messages.index(at);
        let n = send_message(cur, &file, message.cast(), flags)?;
        store_length(cur, message, n)
    })
}

fn many(count: u32, mut one: impl FnMut(usize) -> Result<()>) -> SysResult {
    let count = (count as usize).min(IOV_MAX);
    for at in 0..count {
        match one(at) {
            Ok(()) => {}
            Err(error) if at == 0 => return Err(error),
            Err(_) => return Ok(at as u64),
        }
    }
    Ok(count as u64)
}

/// `msg_len` of a `struct mmsghdr`.
fn store_length(cur: &Current, message: UserPtr<[u64; 8]>, n: u64) -> Result<()> {
    UserPtr::new(message.addr().wrapping_add(56)).write(cur.space(), &(n as u32))
}

/// Receives: with `MSG_WAITALL` on a stream until all is there, the stream ends or a signal comes.
fn receive(cur: &Current, file: &OpenFile, sink: &mut UserBuffers<'_>, flags: i32) -> Result<Message> {
    let socket = socket_of(file)?;
    let at_once = libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE | libc::MSG_OOB;
    let nonblocking = file.nonblocking() || flags & at_once != 0;
    let wants = RecvFlags::from_bits_truncate(flags);
    let whole = flags & (libc::MSG_WAITALL | libc::MSG_PEEK) == libc::MSG_WAITALL
        && socket.domain().1 == libc::SOCK_STREAM
        && !wants.contains(RecvFlags::OOB);
    let low_water = if nonblocking { 1 } else { socket.low_water() };
    let deadline = deadline(socket, false);
    // As on Linux a datagram wakes one of those who wait for it, bytes of a stream wake all.
    let alone = socket.domain().1 != libc::SOCK_STREAM;
    let once = |sink: &mut UserBuffers<'_>| {
        let object = &**file.object();
        let attempt = || socket.recv(sink, wants);
        match alone {
            true => cur.wait_file_alone(object, Events::READ, nonblocking, deadline, attempt),
            false => cur.wait_file(object, Events::READ, nonblocking, deadline, attempt),
        }
    };
    let mut message = once(sink).map_err(|error| interrupted(error, deadline))?;
    let plain = |message: &Message| message.ancillary.files.is_empty();
    // Without MSG_WAITALL: until SO_RCVLOWAT is reached. Bytes that are only looked at are counted by that look.
    let enough = |message: &Message| message.len >= low_water || flags & libc::MSG_PEEK != 0;
    while (whole || !enough(&message)) && message.len > 0 && sink.remaining() > 0 && plain(&message) {
        match once(sink) {
            Ok(more) if more.len > 0 => {
                message.len += more.len;
                message.ancillary.files = more.ancillary.files;
            }
            _ => break,
        }
    }
    Ok(message)
}

/// `recvfrom(2)`. `EBADF`, `ENOTSOCK`, `EAGAIN`, `ENOTCONN`, `ECONNREFUSED`, `ECONNRESET`, `EINVAL`, `EFAULT`, `EINTR`.
pub fn recvfrom(cur: &mut Current, fd: Fd, buf: UserSlice, flags: i32, at: u64, len: UserPtr<i32>) -> SysResult {
    let file = socket_file(cur, fd)?;
    let message = receive(cur, &file, &mut UserBuffers::one(cur.space(), buf), flags)?;
    if at != 0 {
        write_addr(cur, at, len, message.from.as_ref())?;
    }
    Ok(message.len as u64)
}

/// `recvmsg(2)`. As `recvfrom`.
pub fn recvmsg(cur: &mut Current, fd: Fd, message: UserPtr<RawHeader>, flags: i32) -> SysResult {
    let file = socket_file(cur, fd)?;
    receive_message(cur, &file, message, flags)
}

fn receive_message(cur: &Current, file: &OpenFile, at: UserPtr<RawHeader>, flags: i32) -> SysResult {
    let header = Header::read(cur, at)?;
    let mut buffers = UserBuffers::iovecs(cur.space(), header.iov, header.iov_len)?;
    let message = receive(cur, file, &mut buffers, flags)?;
    let mut control = ControlWriter::new(header.control.len());
    encode_control(cur, &mut control, message.ancillary, flags & libc::MSG_CMSG_CLOEXEC != 0);
    let mut found = message.flags | (flags & libc::MSG_CMSG_CLOEXEC);
    if control.truncated {
        found |= libc::MSG_CTRUNC;
    }
    write_all(cur.space(), header.control.addr(), control.bytes())?;
    // The control buffer's length and the flags lie side by side.
    let mut end = [0; 12];
    end[..8].copy_from_slice(&(control.bytes().len() as u64).to_ne_bytes());
    end[8..].copy_from_slice(&found.to_ne_bytes());
    write_all(cur.space(), at.addr().wrapping_add(40), &end)?;
    if header.name != 0 {
        let name = message.from.as_ref().map(addr::encode).unwrap_or_default();
        let room = usize::try_from(header.name_len).unwrap_or(0);
        write_all(cur.space(), header.name, &name[..name.len().min(room)])?;
        UserPtr::new(at.addr().wrapping_add(8)).write(cur.space(), &(name.len() as i32))?;
    }
    Ok(message.len as u64)
}

/// Control messages in the order that Linux has them. Files that there is no room for, or no descriptor, are closed.
fn encode_control(cur: &Current, control: &mut ControlWriter, ancillary: Ancillary, cloexec: bool) {
    for (level, kind, data) in ancillary.other {
        control.put(level, kind, &data);
    }
    if let Some(cred) = ancillary.credentials {
        control.put(libc::SOL_SOCKET, libc::SCM_CREDENTIALS, &ucred(cur, cred));
    }
    let sent = ancillary.files.len();
    if sent == 0 {
        return;
    }
    let room = control.room_for_fds();
    let mut fds = Vec::new();
    for file in ancillary.files.into_iter().take(room) {
        match cur.add_file(file, cloexec) {
            Ok(fd) => fds.extend_from_slice(&(fd as i32).to_ne_bytes()),
            Err(_) => break,
        }
    }
    control.truncated |= fds.len() < sent * size_of::<i32>();
    if !fds.is_empty() {
        control.put(libc::SOL_SOCKET, libc::SCM_RIGHTS, &fds);
    }
}

/// `recvmmsg(2)`: how many were received; an error only when none was. The time is looked at after each message, as Linux
/// does. `EINVAL`.
pub fn recvmmsg(
    cur: &mut Current,
    fd: Fd,
    messages: UserPtr<[u64; 8]>,
    count: u32,
    flags: i32,
    timeout: UserPtr<Time>,
) -> SysResult {
    let file = socket_file(cur, fd)?;
    let span = timeout.non_null().map(|at| at.read(cur.space()).and_then(timespec)).transpose()?;
    let until = span.and_then(deadline_after);
    let over = || until.is_some_and(|until| until <= Instant::now());
    let received = many(count, |at| {
        if at > 0 && over() {
            return Err(Errno::EAGAIN);
        }
        let wait_for_one = flags & libc::MSG_WAITFORONE != 0 && at > 0;
        let flags = flags & !libc::MSG_WAITFORONE | if wait_for_one { libc::MSG_DONTWAIT } else { 0 };
        let message = messages.index(at);
        let n = receive_message(cur, &file, message.cast(), flags)?;
        store_length(cur, message, n)
    })?;
    if let Some(until) = until {
        let left = until.saturating_duration_since(Instant::now());
        timeout.write(cur.space(), &[left.as_secs() as i64, left.subsec_nanos().into()])?;
    }
    Ok(received)
}
