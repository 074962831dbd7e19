//! UNIX sockets: `unix(7)`. Stream, datagram and sequenced-packet.
//!
//! ```text
//!  A: UnixSocket ── Side ──Phase::Connected──> Side of B ── its queue of messages ──> recv on B
//!                    └ bytes sent and unread <── each message counts here until it is received
//! ```
//!
//! A side is what peers share; it knows its own peer and nothing of descriptors. The [`UnixSocket`] around it is what an
//! open file refers to, and when it goes the peer is told. Paths are the system-call layer's: it makes the node and hangs
//! the [`BoundSocket`] on it, and hands what it finds on a node to [`UnixSocket::connect_to`] and
//! [`UnixSocket::send_to`]. Abstract names are in a table of the network namespace ([`UnixNamespace`]).
//!
//! The caller passes the sender's credentials with every message (`Ancillary::credentials`), asked for or not: whether the
//! receiver sees them is the receiver's choice (`SO_PASSCRED`).
//!
//! Lock order: the registry of files in flight > a side's state (never two sides at once) > wait queues. Messages with
//! files are dropped without locks.

mod connect;
mod names;
mod options;
mod packet;
mod rights;
mod side;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;

pub use self::names::{BoundSocket, UnixNamespace};
pub use self::rights::{MAX_FILES, MAX_IN_FLIGHT};

use self::options::Options;
use self::side::{ALL, Phase, Side, WRITE};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::netstack::{Ancillary, Endpoint, Message, RecvFlags, SockAddr, Socket, SocketOption};
use crate::sentry::namespaces::Pid;
use crate::vfs::Path;
use crate::vfs::anon::{AnonAttr, DEV_SOCKET};
use crate::vfs::file::{File, IoctlMemory};
use crate::vfs::inode::NodeType;
use crate::wait::{Events, WaitQueue};

/// The three types of UNIX sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `SOCK_STREAM`.
    Stream,
    /// `SOCK_DGRAM`.
    Dgram,
    /// `SOCK_SEQPACKET`.
    SeqPacket,
}

impl Kind {
    /// From a socket type without flags; `SOCK_RAW` is a datagram socket here, as on Linux. `ESOCKTNOSUPPORT`.
    pub fn from_type(socket_type: i32) -> Result<Kind> {
        match socket_type {
            libc::SOCK_STREAM => Ok(Kind::Stream),
            libc::SOCK_DGRAM | libc::SOCK_RAW => Ok(Kind::Dgram),
            libc::SOCK_SEQPACKET => Ok(Kind::SeqPacket),
            _ => Err(Errno::ESOCKTNOSUPPORT),
        }
    }

    fn socket_type(self) -> i32 {
        match self {
            Kind::Stream => libc::SOCK_STREAM,
            Kind::Dgram => libc::SOCK_DGRAM,
            Kind::SeqPacket => libc::SOCK_SEQPACKET,
        }
    }
}

/// Who a process is to its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cred {
    /// Process id.
    pub pid: Pid,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A UNIX socket.
pub struct UnixSocket {
    me: Weak<UnixSocket>,
    side: Arc<Side>,
    ns: Arc<UnixNamespace>,
    attr: AnonAttr,
    /// The node that it is bound to, which is kept: it is found by what hangs there.
    node: OnceLock<Path>,
    /// The maker's, or who called `connect` or `listen`; leaf lock.
    cred: Mutex<Cred>,
    /// `SO_PASSCRED`.
    pass_cred: AtomicBool,
    /// Made by `connect` and not accepted yet.
    embryo: AtomicBool,
    /// Leaf lock.
    options: Mutex<Options>,
}

impl UnixSocket {
    /// `socket(2)`. `cred` is the maker's identity.
    pub fn new(kind: Kind, ns: &Arc<UnixNamespace>, cred: Cred) -> Arc<UnixSocket> {
        Self::with_side(Side::new(kind, ns.settings.default_buffers()[1]), ns, cred, false)
    }

    fn with_side(side: Arc<Side>, ns: &Arc<UnixNamespace>, cred: Cred, embryo: bool) -> Arc<UnixSocket> {
        Arc::new_cyclic(|me| UnixSocket {
            me: me.clone(),
            side,
            ns: ns.clone(),
            node: OnceLock::new(),
            attr: AnonAttr::new(DEV_SOCKET, NodeType::Socket, 0o777, (cred.uid, cred.gid)),
            cred: Mutex::new(cred),
            pass_cred: AtomicBool::new(false),
            embryo: AtomicBool::new(embryo),
            options: Mutex::new(Options::new(ns.settings.default_buffers()[0])),
        })
    }

    /// `socketpair(2)`.
    pub fn pair(kind: Kind, ns: &Arc<UnixNamespace>, cred: Cred) -> (Arc<UnixSocket>, Arc<UnixSocket>) {
        let (one, two) = (Self::new(kind, ns, cred), Self::new(kind, ns, cred));
        for (socket, peer) in [(&one, &two), (&two, &one)] {
            let mut state = socket.side.state.lock();
            state.phase = Phase::Connected(peer.side.clone());
            state.peer_cred = Some(cred);
        }
        (one, two)
    }

    /// The caller of `connect` or `listen`, when it may be another than the socket's maker: to be set before.
    pub fn set_cred(&self, cred: Cred) {
        *self.cred.lock() = cred;
    }

    /// The socket's inode number, as `socket:[5]` and `/proc/net/unix` show it.
    pub fn ino(&self) -> u64 {
        self.attr.ino
    }

    fn kind(&self) -> Kind {
        self.side.kind
    }

    fn side(&self) -> &Arc<Side> {
        &self.side
    }

    /// `sendmsg(2)` to an address in the file system: the socket found on the node. Otherwise as [`Socket::send`].
    pub fn send_to(
        &self,
        target: &BoundSocket,
        source: &mut dyn Source,
        ancillary: Ancillary,
        flags: i32,
    ) -> Result<usize> {
        if flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.kind() != Kind::Dgram {
            return self.send_connected(true, source, ancillary);
        }
        let target = target.socket().ok_or(Errno::ECONNREFUSED)?;
        if target.kind() != Kind::Dgram {
            return Err(Errno::EPROTOTYPE);
        }
        self.send_packet(Some(target.side.clone()), source, ancillary)
    }

    /// `addressed`: the caller gave an address, which a stream refuses and a sequenced-packet socket ignores.
    fn send_connected(&self, addressed: bool, source: &mut dyn Source, ancillary: Ancillary) -> Result<usize> {
        let connected = self.side.peer().is_some();
        match (self.kind(), connected) {
            (Kind::Stream, true) if addressed => Err(Errno::EISCONN),
            (Kind::Stream, false) if addressed => Err(Errno::EOPNOTSUPP),
            (_, false) => Err(Errno::ENOTCONN),
            (Kind::Stream, true) => self.send_stream(source, ancillary),
            (_, true) => self.send_packet(None, source, ancillary),
        }
    }

    /// The credentials that go with a message: those given, else the socket's own.
    fn sender_cred(&self, ancillary: &Ancillary) -> Cred {
        ancillary.credentials.unwrap_or_else(|| *self.cred.lock())
    }

    /// What the receiver is told of the sender.
    fn visible_cred(&self, cred: Cred) -> Option<Cred> {
        self.pass_cred.load(Ordering::Relaxed).then_some(cred)
    }
}

/// The sender's name, if it has one.
fn name_of(side: &Side) -> Option<SockAddr> {
    side.name.get().map(|name| SockAddr::Unix(name.to_vec()))
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        self.ns.forget(self);
        let mut state = self.side.state.lock();
        state.closed = true;
        state.bytes = 0;
        let unread = std::mem::take(&mut state.messages);
        let phase = std::mem::take(&mut state.phase);
        let blocked = state.unblock();
        drop(state);
        if let Phase::Connected(peer) = &phase
            && self.kind() != Kind::Dgram
        {
            let mut state = peer.state.lock();
            (state.no_receive, state.no_send) = (true, true);
            if !unread.is_empty() || *self.embryo.get_mut() {
                state.error = Some(Errno::ECONNRESET);
            }
            drop(state);
            peer.queue.wake(ALL);
        }
        for waiter in blocked {
            waiter.queue.wake(WRITE);
        }
        drop((unread, phase)); // may close other sockets: no lock is held
        rights::after_close();
    }
}

impl Endpoint for UnixSocket {
    fn attr(&self) -> &AnonAttr {
        &self.attr
    }

    fn waiters(&self) -> &WaitQueue {
        &self.side.queue
    }

    fn readiness(&self) -> Events {
        let state = self.side.state.lock();
        let mut events = Events::empty();
        let (mut pending, mut listening) = (false, false);
        let mut peer = None;
        match &state.phase {
            Phase::Listening { pending: queue, .. } => (pending, listening) = (!queue.is_empty(), true),
            Phase::Connected(side) => peer = Some(side.clone()),
            Phase::Idle | Phase::Connecting => events.set(Events::HUP, self.kind() != Kind::Dgram),
        }
        if pending || !state.messages.is_empty() || state.no_receive {
            events |= Events::READ;
        }
        events.set(Events::ERR, state.error.is_some());
        events.set(Events::RDHUP, state.no_receive);
        if state.no_receive && state.no_send {
            events |= Events::HUP;
        }
        drop(state);
        if !listening && self.side.is_writable() && !peer.is_some_and(|peer| self.is_held_up_by(&peer)) {
            events |= WRITE;
        }
        events
    }

    fn control(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        let value = match u64::from(cmd) {
            libc::FIONREAD => self.readable_bytes()?,
            libc::TIOCOUTQ => self.side.sent.load(Ordering::Relaxed),
            _ => return Err(Errno::ENOTTY),
        };
        mem.write(arg, &i32::try_from(value).unwrap_or(i32::MAX).to_ne_bytes())?;
        Ok(0)
    }
}

impl Socket for UnixSocket {
    fn domain(&self) -> (i32, i32, i32) {
        (libc::AF_UNIX, self.kind().socket_type(), 0)
    }

    /// To an abstract name, or with an empty address to a free one (autobind). Paths: [`UnixSocket::bind_path`].
    fn bind(&self, addr: &SockAddr) -> Result<()> {
        match addr {
            SockAddr::Unix(name) if name.is_empty() => self.autobind(),
            SockAddr::Unix(name) if name[0] == 0 => self.bind_abstract(name),
            _ => Err(Errno::EINVAL),
        }
    }

    /// To an abstract name, or for a datagram socket `AF_UNSPEC`. Paths: [`UnixSocket::connect_to`].
    ///
    /// `EAGAIN` when the backlog is full: [`Events::OUT`] on this socket's queue says when to try again.
    fn connect(&self, addr: &SockAddr) -> Result<()> {
        match addr {
            SockAddr::Unspecified if self.kind() == Kind::Dgram => self.disconnect(),
            SockAddr::Unix(name) if name.first() == Some(&0) => {
                let target = self.ns.find(self.kind(), name).ok_or(Errno::ECONNREFUSED)?;
                self.connect_socket(&target)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn listen(&self, backlog: i32) -> Result<()> {
        self.start_listening(backlog)
    }

    fn accept(&self) -> Result<Arc<dyn File>> {
        self.accept_one().map(|socket| socket as Arc<dyn File>)
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let (receive, send) = match how {
            libc::SHUT_RD => (true, false),
            libc::SHUT_WR => (false, true),
            libc::SHUT_RDWR => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        let mut state = self.side.state.lock();
        state.no_receive |= receive;
        state.no_send |= send;
        let blocked = state.unblock();
        drop(state);
        if let Some(peer) = self.side.peer()
            && self.kind() != Kind::Dgram
        {
            let mut state = peer.state.lock();
            state.no_receive |= send;
            state.no_send |= receive;
            drop(state);
            peer.queue.wake(ALL);
        }
        self.side.queue.wake(ALL);
        blocked.iter().for_each(|waiter| waiter.queue.wake(WRITE));
        Ok(())
    }

    fn local_name(&self) -> Result<SockAddr> {
        Ok(name_of(&self.side).unwrap_or(SockAddr::Unix(Vec::new())))
    }

    fn peer_name(&self) -> Result<SockAddr> {
        let peer = self.side.peer().ok_or(Errno::ENOTCONN)?;
        Ok(name_of(&peer).unwrap_or(SockAddr::Unix(Vec::new())))
    }

    /// Takes what fits. On `EAGAIN` nothing was taken from `source`, and the caller passes `ancillary` again; after a part
    /// of a stream was taken it passes no files again. Addresses here are abstract; paths: [`UnixSocket::send_to`].
    fn send(&self, source: &mut dyn Source, to: Option<&SockAddr>, ancillary: Ancillary, flags: i32) -> Result<usize> {
        if flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.kind() != Kind::Dgram {
            return self.send_connected(to.is_some(), source, ancillary);
        }
        let target = match to {
            None => None,
            Some(SockAddr::Unix(name)) if name.first() == Some(&0) => {
                Some(self.ns.find(Kind::Dgram, name).ok_or(Errno::ECONNREFUSED)?.side.clone())
            }
            Some(_) => return Err(Errno::EINVAL),
        };
        self.send_packet(target, source, ancillary)
    }

    fn recv(&self, sink: &mut dyn Sink, flags: RecvFlags) -> Result<Message> {
        match self.kind() {
            Kind::Stream => self.recv_stream(sink, flags),
            Kind::Dgram | Kind::SeqPacket => self.recv_packet(sink, flags),
        }
    }

    fn get_option(&self, option: SocketOption, _room: usize) -> Result<Vec<u8>> {
        self.option(option)
    }

    fn set_option(&self, option: SocketOption, value: &[u8]) -> Result<()> {
        self.change_option(option, value)
    }

    fn low_water(&self) -> usize {
        let stream = self.kind() == Kind::Stream;
        if stream { usize::try_from(self.options.lock().low_water).unwrap_or(1) } else { 1 }
    }

    fn timeout(&self, send: bool) -> Option<Duration> {
        let options = self.options.lock();
        if send { options.send_timeout } else { options.receive_timeout }
    }
}
