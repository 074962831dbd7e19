//! What every socket can do, whatever its family.

use std::any::Any;
use std::net::{SocketAddrV4, SocketAddrV6};
use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::netstack::unix::Cred;
use crate::vfs::anon::AnonAttr;
use crate::vfs::file::{File, IoctlMemory, OpenFile};
use crate::vfs::inode::{Attr, SetAttr};
use crate::wait::{Events, WaitQueue};

/// A socket address, decoded from or encoded to `struct sockaddr_*` by the system-call layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SockAddr {
    /// `AF_UNSPEC`: dissolves an association in `connect(2)`.
    Unspecified,
    /// `AF_INET`.
    V4(SocketAddrV4),
    /// `AF_INET6`.
    V6(SocketAddrV6),
    /// `AF_UNIX`: empty when unnamed, a leading NUL when abstract, else a path (the system-call layer has resolved it).
    Unix(Vec<u8>),
    /// `AF_NETLINK`: port id and groups.
    Netlink {
        /// `nl_pid`.
        port: u32,
        /// `nl_groups`.
        groups: u32,
    },
    /// `AF_PACKET`.
    Packet {
        /// Ethernet type, host byte order.
        protocol: u16,
        /// Interface index.
        ifindex: i32,
        /// `sll_pkttype`.
        packet_type: u8,
        /// Link-layer address.
        hardware: [u8; 8],
        /// How much of it counts.
        hardware_len: u8,
    },
}

/// Control data that travels with a message.
#[derive(Clone, Default)]
pub struct Ancillary {
    /// `SCM_RIGHTS`.
    pub files: Vec<Arc<OpenFile>>,
    /// `SCM_CREDENTIALS`: the sender.
    pub credentials: Option<Cred>,
    /// Other control messages, already in wire form: `(level, type, data)`.
    pub other: Vec<(i32, i32, Vec<u8>)>,
}

/// What was received.
#[derive(Default)]
pub struct Message {
    /// Bytes stored (with `MSG_TRUNC` among the receive flags: the datagram's whole length).
    pub len: usize,
    /// Who sent it; `None` for connected streams.
    pub from: Option<SockAddr>,
    /// Control data.
    pub ancillary: Ancillary,
    /// `msg_flags`: `MSG_TRUNC`, `MSG_EOR`, `MSG_CTRUNC`, `MSG_ERRQUEUE`.
    pub flags: i32,
}

bitflags::bitflags! {
    /// Flags of `recvmsg(2)` that the socket itself must know. Waiting (`MSG_DONTWAIT`, `MSG_WAITALL`) is the
    /// system-call layer's.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RecvFlags: i32 {
        /// Leave it in the queue.
        const PEEK = libc::MSG_PEEK;
        /// Return the real length of a datagram.
        const TRUNC = libc::MSG_TRUNC;
        /// Urgent data.
        const OOB = libc::MSG_OOB;
        /// From the error queue.
        const ERRQUEUE = libc::MSG_ERRQUEUE;
    }
}

/// An option, named as `setsockopt(2)` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOption {
    /// `SOL_SOCKET`, `IPPROTO_TCP`, …
    pub level: i32,
    /// `SO_REUSEADDR`, `TCP_NODELAY`, …
    pub name: i32,
}

/// A socket. As with every [`File`], nothing blocks: `EAGAIN`, and `EINPROGRESS` from `connect`, and a wake-up later.
pub trait Socket: File {
    /// `AF_*`, `SOCK_*`, protocol.
    fn domain(&self) -> (i32, i32, i32);

    /// `bind(2)`.
    fn bind(&self, addr: &SockAddr) -> Result<()>;

    /// `connect(2)`. `EINPROGRESS` when it takes time: [`Events::OUT`](crate::wait::Events::OUT) tells the end, and
    /// `SO_ERROR` the outcome; calling again gives `EALREADY` or `EISCONN`.
    fn connect(&self, addr: &SockAddr) -> Result<()>;

    /// `listen(2)`.
    fn listen(&self, backlog: i32) -> Result<()> {
        let _ = backlog;
        Err(Errno::EOPNOTSUPP)
    }

    /// `accept(2)`: the new socket. Its peer is its [`Socket::peer_name`].
    fn accept(&self) -> Result<Arc<dyn File>> {
        Err(Errno::EOPNOTSUPP)
    }

    /// `shutdown(2)`: `SHUT_RD`, `SHUT_WR`, `SHUT_RDWR`.
    fn shutdown(&self, how: i32) -> Result<()>;

    /// `getsockname(2)`.
    fn local_name(&self) -> Result<SockAddr>;

    /// `getpeername(2)`. `ENOTCONN`.
    fn peer_name(&self) -> Result<SockAddr>;

    /// Who connected, as `accept(2)` tells. `ENOTCONN`.
    fn accepted_from(&self) -> Result<SockAddr> {
        self.peer_name()
    }

    /// `sendmsg(2)`. SIGPIPE is the system-call layer's, on `EPIPE`. `flags`: `MSG_OOB`, `MSG_MORE`, `MSG_CONFIRM`, …
    fn send(&self, source: &mut dyn Source, to: Option<&SockAddr>, ancillary: Ancillary, flags: i32) -> Result<usize>;

    /// `recvmsg(2)`.
    fn recv(&self, sink: &mut dyn Sink, flags: RecvFlags) -> Result<Message>;

    /// `getsockopt(2)`: the value, which the caller truncates to the user's length. `room` is that length, for options
    /// whose answer depends on it. `SO_TYPE`, `SO_DOMAIN`, `SO_PROTOCOL` are the caller's.
    fn get_option(&self, option: SocketOption, room: usize) -> Result<Vec<u8>>;

    /// `setsockopt(2)`.
    fn set_option(&self, option: SocketOption, value: &[u8]) -> Result<()>;

    /// What the last `close(2)` does before it lets go: begins to end the connection, and says how long to wait for the
    /// peer to have everything (`SO_LINGER`), which [`Socket::has_lingered`] tells. `None` when there is nothing to wait for.
    fn linger(&self) -> Option<std::time::Duration> {
        None
    }

    /// Whether the peer has everything, or never will.
    fn has_lingered(&self) -> bool {
        true
    }

    /// `SO_RCVLOWAT` of a stream: a blocking read waits for as many bytes, or as many as there is room for.
    fn low_water(&self) -> usize {
        1
    }

    /// `SO_RCVTIMEO` or (with `send`) `SO_SNDTIMEO`; `None` waits for ever.
    fn timeout(&self, send: bool) -> Option<std::time::Duration> {
        let _ = send;
        None
    }
}

/// What makes a [`Socket`] a [`File`]: the rest is the same for all families.
pub trait Endpoint: Socket + Sized + 'static {
    /// Owner, mode and inode number.
    fn attr(&self) -> &AnonAttr;

    /// [`File::wait_queue`].
    fn waiters(&self) -> &WaitQueue;

    /// [`File::poll`].
    fn readiness(&self) -> Events;

    /// [`File::ioctl`].
    fn control(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64>;

    /// `read(2)`, which knows neither addresses nor control data.
    fn take(&self, sink: &mut dyn Sink) -> Result<usize> {
        self.recv(sink, RecvFlags::empty()).map(|message| message.len)
    }
}

impl<S: Endpoint> File for S {
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        self.take(sink)
    }

    fn write(&self, _offset: u64, source: &mut dyn Source) -> Result<usize> {
        self.send(source, None, Ancillary::default(), 0)
    }

    fn poll(&self) -> Events {
        self.readiness()
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(self.waiters())
    }

    fn ioctl(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        self.control(mem, cmd, arg)
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        Some(self.attr().get())
    }

    fn set_anonymous_attr(&self, set: &SetAttr) -> Result<()> {
        self.attr().set(set);
        Ok(())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some(format!("socket:[{}]", self.attr().ino))
    }

    fn as_socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
