//! Host sockets that the container was given: `LISTEN_FDS`, `--preserve-fds`.
//!
//! What a server needs of a socket that it is handed: accepting, sending, receiving, shutting down, and options that are plain
//! numbers. Making one, binding and connecting it was done outside, and no descriptor travels over one: that would be one of
//! the host's.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::HostFile;
use crate::errno::{Errno, Result, check};
use crate::io::{BOUNCE, Bounce, Sink, Source};
use crate::netstack::options::{timeout, timeval};
use crate::netstack::{Ancillary, Message, RecvFlags, SockAddr, Socket, SocketOption};
use crate::sentry::syscalls::net::addr;
use crate::vfs::file::File;
use crate::vfs::inode::NodeType;

/// What is known of a host socket.
pub(super) struct Known {
    domain: i32,
    socket_type: i32,
    protocol: i32,
    /// `SO_RCVTIMEO`, `SO_SNDTIMEO`: the sentry's to keep, as the host never waits. Leaf lock.
    timeouts: Mutex<[Option<Duration>; 2]>,
}

impl Known {
    /// Of a descriptor; `None` when it is no socket.
    pub(super) fn of(fd: &OwnedFd, kind: NodeType) -> Option<Known> {
        let number = |name| get_number(fd, libc::SOL_SOCKET, name).ok();
        (kind == NodeType::Socket).then_some(())?;
        Some(Known {
            domain: number(libc::SO_DOMAIN)?,
            socket_type: number(libc::SO_TYPE)?,
            protocol: number(libc::SO_PROTOCOL)?,
            timeouts: Mutex::default(),
        })
    }
}

/// Options whose value is one number, which mean nothing beyond the socket: may they be changed?
const NUMBERS: &[(i32, i32, bool)] = &[
    (libc::SOL_SOCKET, libc::SO_ACCEPTCONN, false),
    (libc::SOL_SOCKET, libc::SO_BROADCAST, true),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE, false),
    (libc::SOL_SOCKET, libc::SO_ERROR, false),
    (libc::SOL_SOCKET, libc::SO_INCOMING_CPU, false),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE, true),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE, true),
    (libc::SOL_SOCKET, libc::SO_RCVBUF, true),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT, true),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR, true),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT, false),
    (libc::SOL_SOCKET, libc::SO_SNDBUF, true),
    (libc::SOL_SOCKET, libc::SO_SNDLOWAT, false),
    (libc::IPPROTO_TCP, libc::TCP_CORK, true),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, true),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN, true),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, true),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, true),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, true),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2, true),
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG, false),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, true),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK, true),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT, true),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, true),
    (libc::IPPROTO_IP, libc::IP_TOS, true),
    (libc::IPPROTO_IP, libc::IP_TTL, true),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, true),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, true),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, false),
];

/// Flags of `send(2)` that are the host's to heed.
const SEND_FLAGS: i32 = libc::MSG_OOB | libc::MSG_MORE | libc::MSG_EOR | libc::MSG_DONTROUTE | libc::MSG_CONFIRM;

impl HostFile {
    fn known(&self) -> Result<&Known> {
        self.socket.as_ref().ok_or(Errno::ENOTSOCK)
    }

    fn is_stream(&self) -> bool {
        self.socket.as_ref().is_some_and(|known| known.socket_type == libc::SOCK_STREAM)
    }

    /// A host call that never waits; once more when the socket is watched, as it may have become ready before.
    fn attempt<T>(&self, mut call: impl FnMut() -> Result<T>) -> Result<T> {
        match call() {
            Err(Errno::EAGAIN) => {
                self.watch();
                call()
            }
            done => done,
        }
    }

    fn name(
        &self,
        call: unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32,
    ) -> Result<SockAddr> {
        let mut name = [0u8; addr::MAX];
        let mut len = name.len() as libc::socklen_t;
        // SAFETY: the kernel stores at most `len` bytes.
        check(unsafe { call(self.fd.as_raw_fd(), name.as_mut_ptr().cast(), &raw mut len) }.into())?;
        self.decode(&name, len as usize)
    }

    fn decode(&self, name: &[u8], len: usize) -> Result<SockAddr> {
        let name = name.get(..len).unwrap_or(name);
        // A UNIX socket without a name has no more than a family, or nothing at all.
        if name.len() < 2 { Ok(SockAddr::Unix(Vec::new())) } else { addr::decode(name, self.known()?.domain) }
    }

    fn send_once(&self, bytes: &[u8], to: Option<&[u8]>, flags: i32) -> Result<usize> {
        let flags = flags & SEND_FLAGS | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let (name, len) = to.map_or((std::ptr::null(), 0), |name| (name.as_ptr(), name.len()));
        let (fd, buf) = (self.fd.as_raw_fd(), bytes.as_ptr().cast());
        // SAFETY: both are as long as said.
        let n = unsafe { libc::sendto(fd, buf, bytes.len(), flags, name.cast(), len as libc::socklen_t) };
        check(n as i64).map(|n| n as usize)
    }

    /// How much came, how much of it is in `buf`, from whom, and the flags.
    fn receive_once(&self, buf: &mut [u8], flags: i32) -> Result<(usize, Option<SockAddr>, i32)> {
        let mut name = [0u8; addr::MAX];
        let mut slice = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        // SAFETY: all zero is a valid header, with nothing in it.
        let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = name.len() as libc::socklen_t;
        header.msg_iov = &raw mut slice;
        header.msg_iovlen = 1;
        let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the header's name and slice are as long as they say; there is no room for control data.
        let n = check(unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, flags) } as i64)? as usize;
        let from = if header.msg_namelen > 0 { self.decode(&name, header.msg_namelen as usize).ok() } else { None };
        Ok((n, from, header.msg_flags))
    }
}

impl Socket for HostFile {
    fn domain(&self) -> (i32, i32, i32) {
        self.socket.as_ref().map_or((0, 0, 0), |known| (known.domain, known.socket_type, known.protocol))
    }

    fn bind(&self, _addr: &SockAddr) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn connect(&self, _addr: &SockAddr) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Of one that listens: servers say how many may wait, whoever made the socket.
    fn listen(&self, backlog: i32) -> Result<()> {
        if get_number(&self.fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        // SAFETY: takes numbers alone.
        check(unsafe { libc::listen(self.fd.as_raw_fd(), backlog) }.into()).map(drop)
    }

    /// Others may have the socket too and be quicker, and accepting has no flag for not waiting: so it is made one that never
    /// waits, which whoever hands a socket to a server has to expect.
    fn accept(&self) -> Result<Arc<dyn File>> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: takes numbers alone.
        let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) }.into())? as i32;
        if flags & libc::O_NONBLOCK == 0 {
            // SAFETY: as above.
            check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }.into())?;
        }
        let accepted = self.attempt(|| {
            // SAFETY: no address is asked for.
            check(unsafe { libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) }.into())
        })?;
        // SAFETY: a descriptor that was just made.
        let accepted = unsafe { OwnedFd::from_raw_fd(accepted as i32) };
        Ok(HostFile::new(accepted)?)
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        // SAFETY: takes numbers alone.
        check(unsafe { libc::shutdown(self.fd.as_raw_fd(), how) }.into()).map(drop)
    }

    fn local_name(&self) -> Result<SockAddr> {
        self.name(libc::getsockname)
    }

    fn peer_name(&self) -> Result<SockAddr> {
        self.name(libc::getpeername)
    }

    fn send(&self, source: &mut dyn Source, to: Option<&SockAddr>, ancillary: Ancillary, flags: i32) -> Result<usize> {
        if !ancillary.files.is_empty() || !ancillary.other.is_empty() {
            return Err(Errno::EOPNOTSUPP);
        }
        let to = to.map(addr::encode);
        let mut buf = Bounce::take();
        if !self.is_stream() {
            if source.left() > BOUNCE {
                return Err(Errno::EMSGSIZE);
            }
            let n = if source.left() > 0 { source.peek(&mut buf)? } else { 0 };
            let sent = self.attempt(|| self.send_once(&buf[..n], to.as_deref(), flags))?;
            source.skip(sent);
            return Ok(sent);
        }
        let mut done = 0;
        while source.left() > 0 {
            let sent = source.peek(&mut buf).and_then(|n| {
                let more = if n < source.left() { libc::MSG_MORE } else { 0 };
                self.attempt(|| self.send_once(&buf[..n], to.as_deref(), flags | more)).map(|sent| (sent, n))
            });
            match sent {
                Ok((sent, wanted)) => {
                    source.skip(sent);
                    done += sent;
                    if sent < wanted {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn recv(&self, sink: &mut dyn Sink, flags: RecvFlags) -> Result<Message> {
        // Of a stream MSG_TRUNC throws away instead of storing: what is in the buffer then is not the sender's.
        let flags = if self.is_stream() { flags - RecvFlags::TRUNC } else { flags };
        let mut buf = Bounce::take();
        let room = sink.room().min(buf.len());
        let (n, from, found) = self.attempt(|| self.receive_once(&mut buf[..room], flags.bits()))?;
        let stored = n.min(room);
        if stored > 0 {
            sink.put(&buf[..stored])?;
        }
        let from = from.filter(|_| !self.is_stream());
        let told = libc::MSG_TRUNC | libc::MSG_CTRUNC | libc::MSG_EOR | libc::MSG_OOB | libc::MSG_ERRQUEUE;
        Ok(Message { len: n, from, ancillary: Ancillary::default(), flags: found & told })
    }

    fn get_option(&self, option: SocketOption, _room: usize) -> Result<Vec<u8>> {
        let SocketOption { level, name } = option;
        let timeouts = self.known()?.timeouts.lock();
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => Ok(timeval(timeouts[0])),
            (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => Ok(timeval(timeouts[1])),
            (libc::SOL_SOCKET, libc::SO_LINGER) => get_bytes::<8>(&self.fd, level, name).map(Vec::from),
            _ if NUMBERS.iter().any(|known| (known.0, known.1) == (level, name)) => {
                get_number(&self.fd, level, name).map(|value| value.to_ne_bytes().to_vec())
            }
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn set_option(&self, option: SocketOption, value: &[u8]) -> Result<()> {
        let SocketOption { level, name } = option;
        let mut timeouts = self.known()?.timeouts.lock();
        let len = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => {
                timeouts[0] = timeout(value)?;
                return Ok(());
            }
            (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => {
                timeouts[1] = timeout(value)?;
                return Ok(());
            }
            (libc::SOL_SOCKET, libc::SO_LINGER) => 8,
            _ if NUMBERS.contains(&(level, name, true)) => 4,
            _ => return Err(Errno::ENOPROTOOPT),
        };
        let value = value.get(..len).ok_or(Errno::EINVAL)?;
        // SAFETY: the value is as long as said.
        let set = unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t)
        };
        check(set.into()).map(drop)
    }

    fn timeout(&self, send: bool) -> Option<Duration> {
        self.socket.as_ref()?.timeouts.lock()[usize::from(send)]
    }
}

fn get_number(fd: &OwnedFd, level: i32, name: i32) -> Result<i32> {
    get_bytes(fd, level, name).map(i32::from_ne_bytes)
}

fn get_bytes<const N: usize>(fd: &OwnedFd, level: i32, name: i32) -> Result<[u8; N]> {
    let mut value = [0u8; N];
    let mut len = N as libc::socklen_t;
    // SAFETY: the kernel stores at most `len` bytes.
    let got = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    check(got.into()).map(|_| value)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;
    use crate::io::SliceSink;
    use crate::wait::Events;

    fn received(file: &HostFile, room: usize, flags: RecvFlags) -> Result<(Vec<u8>, Message)> {
        let mut buf = vec![0; room];
        let mut sink = SliceSink::new(&mut buf);
        let message = file.recv(&mut sink, flags)?;
        let filled = sink.filled();
        buf.truncate(filled);
        Ok((buf, message))
    }

    fn until<T>(mut attempt: impl FnMut() -> Result<T>) -> T {
        loop {
            match attempt() {
                Err(Errno::EAGAIN) => std::thread::yield_now(),
                done => return done.unwrap(),
            }
        }
    }

    #[test]
    fn a_listening_socket_accepts_and_what_it_accepts_talks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let listener = HostFile::new(listener.into()).unwrap();
        assert_eq!(listener.accept().err(), Some(Errno::EAGAIN));
        listener.listen(5).unwrap();
        assert_eq!(listener.domain(), (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP));
        let mut client = TcpStream::connect(address).unwrap();
        let accepted = until(|| listener.accept());
        let accepted = accepted.as_any().downcast_ref::<HostFile>().unwrap();
        let SockAddr::V4(peer) = accepted.peer_name().unwrap() else { panic!("another family") };
        assert_eq!(peer.port(), client.local_addr().unwrap().port());
        assert_eq!(accepted.read(0, &mut SliceSink::new(&mut [0; 9])), Err(Errno::EAGAIN));
        client.write_all(b"hello").unwrap();
        let (bytes, message) = until(|| received(accepted, 9, RecvFlags::TRUNC));
        assert_eq!((&bytes[..], message.len, message.from), (&b"hello"[..], 5, None));
        // More than the connection holds: what is not taken stays with the sender.
        let much = vec![7u8; 16 << 20];
        let mut source = &much[..];
        let mut sent = accepted.send(&mut source, None, Ancillary::default(), 0).unwrap();
        assert!(sent < much.len() && source.len() == much.len() - sent);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            client.read_to_end(&mut all).map(|_| all)
        });
        while !source.is_empty() {
            sent += until(|| accepted.send(&mut source, None, Ancillary::default(), 0));
        }
        accepted.shutdown(libc::SHUT_WR).unwrap();
        assert_eq!((sent, reader.join().unwrap().unwrap()), (much.len(), much));
        assert!(accepted.poll().contains(Events::RDHUP) || accepted.poll().contains(Events::IN));
    }

    #[test]
    fn datagrams_have_senders_and_lengths() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        other.send_to(b"datagram", socket.local_addr().unwrap()).unwrap();
        let socket = HostFile::new(socket.into()).unwrap();
        let (bytes, message) = until(|| received(&socket, 4, RecvFlags::TRUNC));
        assert_eq!((&bytes[..], message.len, message.flags), (&b"data"[..], 8, libc::MSG_TRUNC));
        let from = message.from.unwrap();
        assert_eq!(socket.send(&mut &b"back"[..], Some(&from), Ancillary::default(), 0), Ok(4));
        let mut buf = [0; 9];
        assert_eq!(other.recv(&mut buf).unwrap(), 4);
        assert_eq!(socket.send(&mut &[0; BOUNCE + 1][..], Some(&from), Ancillary::default(), 0), Err(Errno::EMSGSIZE));
    }

    #[test]
    fn options_are_those_that_concern_the_socket_alone() {
        let socket = HostFile::new(UdpSocket::bind("127.0.0.1:0").unwrap().into()).unwrap();
        let option = |level, name| SocketOption { level, name };
        let broadcast = option(libc::SOL_SOCKET, libc::SO_BROADCAST);
        socket.set_option(broadcast, &1i32.to_ne_bytes()).unwrap();
        assert_eq!(socket.get_option(broadcast, 4), Ok(1i32.to_ne_bytes().to_vec()));
        assert_eq!(socket.set_option(broadcast, &[1]), Err(Errno::EINVAL));
        let receive = option(libc::SOL_SOCKET, libc::SO_RCVTIMEO);
        socket.set_option(receive, &timeval(Some(Duration::from_millis(1500)))).unwrap();
        assert_eq!((socket.timeout(false), socket.timeout(true)), (Some(Duration::from_millis(1500)), None));
        // One that is told an address in the sentry's memory.
        let filter = option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
        assert_eq!(socket.set_option(filter, &[0; 16]), Err(Errno::ENOPROTOOPT));
        assert_eq!(socket.bind(&SockAddr::Unspecified), Err(Errno::EOPNOTSUPP));
    }
}
