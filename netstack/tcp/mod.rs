//! TCP: `tcp(7)`, RFC 9293.
//!
//! ```text
//!  TcpSocket ── Phase::Wire ───> Conn ── smoltcp's state machine, alone in its set <── flow table <── packets
//!      │     ── Phase::Local ──> LocalEnd ── two rings ── LocalEnd of the peer
//!      └──── Phase::Listening ─> Listener ── queue of connections to accept
//! ```
//!
//! The socket is what descriptors refer to and holds what Linux has beyond a protocol: options, names, errors. A connection
//! outlives it, until the peer has everything.

mod conn;
mod engine;
mod listen;
mod local;
mod memory;
mod options;
mod segment;
mod tables;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use smoltcp::socket::tcp::State as Machine;

pub use self::tables::{Row, Tables, input, rows, unreachable};

use self::conn::{ALL, Conn, Tuple};
use self::listen::{Listener, Ready};
use self::local::LocalEnd;
use self::options::TcpOptions;
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::netstack::options::Common;
use crate::netstack::stack::ports::{Binding, Lease, Protocol};
use crate::netstack::stack::{SocketCred, Stack};
use crate::netstack::{Ancillary, Message, RecvFlags, SockAddr, Socket, SocketOption, addr};
use crate::vfs::anon::{AnonAttr, DEV_SOCKET};
use crate::vfs::file::{File, IoctlMemory};
use crate::vfs::inode::{Attr, NodeType, SetAttr};
use crate::wait::{Events, WaitQueue};

/// What `SO_RCVBUF` and `SO_SNDBUF` show before they are set: the middle values of `tcp_rmem` and `tcp_wmem`.
const RECEIVE_BUF: usize = 131_072;
const SEND_BUF: usize = 16_384;
/// The first port that anybody may bind to.
const FIRST_FREE_PORT: u16 = 1024;

/// All options of a socket.
#[derive(Clone)]
struct Options {
    common: Common,
    tcp: TcpOptions,
}

impl Options {
    /// What a connection has to know.
    fn for_connection(&self) -> TcpOptions {
        let common = &self.common;
        TcpOptions {
            ttl: common.ttl,
            tos: common.tos,
            keep_alive: common.is_set(libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            receive_ring: common.receive_buf_set.then_some(common.receive_buf),
            send_ring: common.send_buf_set.then_some(common.send_buf),
            ..self.tcp.clone()
        }
    }
}

enum Phase {
    /// Neither connected nor listening.
    Idle,
    /// After `listen`.
    Listening(Arc<Listener>),
    /// A connection over the wire, made or in the making; `known` after `connect` has told of it.
    Wire { conn: Arc<Conn>, known: bool },
    /// A connection within this host.
    Local(LocalEnd),
    /// A connection within this host, to a listener that has no room yet.
    Waiting(Tuple),
}

/// What a socket is bound to.
#[derive(Clone)]
struct Bound {
    addr: Option<IpAddr>,
    lease: Arc<Lease>,
}

/// A TCP socket.
pub struct TcpSocket {
    me: Weak<TcpSocket>,
    stack: Arc<Stack>,
    domain: i32,
    cred: SocketCred,
    attr: AnonAttr,
    queue: Arc<WaitQueue>,
    phase: Mutex<Phase>,
    /// Leaf lock.
    bound: Mutex<Option<Bound>>,
    /// Leaf lock.
    options: Mutex<Options>,
    /// `SO_ERROR` of what has no connection; leaf lock.
    error: Mutex<Option<Errno>>,
}

impl TcpSocket {
    /// `socket(2)`.
    pub fn new(stack: &Arc<Stack>, domain: i32, cred: SocketCred) -> Arc<TcpSocket> {
        let options = Options { common: Common::new(RECEIVE_BUF, SEND_BUF), tcp: TcpOptions::default() };
        Self::with(stack, domain, cred, Phase::Idle, Arc::default(), options)
    }

    fn with(
        stack: &Arc<Stack>,
        domain: i32,
        cred: SocketCred,
        phase: Phase,
        queue: Arc<WaitQueue>,
        options: Options,
    ) -> Arc<TcpSocket> {
        Arc::new_cyclic(|me| TcpSocket {
            me: me.clone(),
            stack: stack.clone(),
            domain,
            cred,
            attr: AnonAttr::new(DEV_SOCKET, NodeType::Socket, 0o777, (cred.uid, cred.gid)),
            queue,
            phase: Mutex::new(phase),
            bound: Mutex::new(None),
            options: Mutex::new(options),
            error: Mutex::new(None),
        })
    }

    /// The terms on which it would take a port at `addr`.
    fn binding(&self, addr: Option<IpAddr>, listening: bool) -> Binding {
        let options = self.options.lock();
        let is_set = |name| options.common.is_set(libc::SOL_SOCKET, name);
        let v6_only = options.common.is_set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
        Binding {
            addr,
            v4: addr.map_or(self.domain == libc::AF_INET || !v6_only, |addr| addr.is_ipv4()),
            v6: addr.map_or(self.domain == libc::AF_INET6, |addr| addr.is_ipv6()),
            reuse_addr: is_set(libc::SO_REUSEADDR),
            reuse_port: is_set(libc::SO_REUSEPORT),
            uid: self.cred.uid,
            listening,
        }
    }

    /// The ends of a connection to `remote`, for which a port is taken if there is none.
    fn ends(&self, remote: SocketAddr) -> Result<(Tuple, bool)> {
        let route = self.stack.interfaces().route(remote.ip())?;
        if route.broadcast {
            return Err(Errno::ENETUNREACH);
        }
        let mut bound = self.bound.lock();
        let chosen = bound.as_ref().and_then(|bound| bound.addr);
        let source = chosen.unwrap_or(route.source);
        if source.is_ipv4() != remote.is_ipv4() {
            return Err(if chosen.is_some() { Errno::EINVAL } else { Errno::ENETUNREACH });
        }
        if source.is_loopback() && !route.local {
            return Err(Errno::EINVAL);
        }
        let tuple = |port| Tuple { local: SocketAddr::new(source, port), remote };
        let port = match &*bound {
            Some(bound) => bound.lease.port,
            None => {
                let binding = Binding { addr: Some(source), ..self.binding(Some(source), false) };
                let fits = |port| !self.stack.tcp.is_used(&tuple(port));
                let lease = self.stack.lease_where(Protocol::Tcp, 0, binding, fits);
                let lease = Arc::new(lease.map_err(|_| Errno::EADDRNOTAVAIL)?);
                let port = lease.port;
                *bound = Some(Bound { addr: None, lease });
                port
            }
        };
        Ok((tuple(port), route.local))
    }

    fn connect_to(&self, phase: &mut Phase, remote: SocketAddr) -> Result<()> {
        let (tuple, local) = self.ends(remote)?;
        if local {
            return self.connect_local(phase, tuple);
        }
        let options = self.options.lock().for_connection();
        let conn = Conn::new(&self.stack, tuple, self.queue.clone(), &options)?;
        conn.lock().lease = self.bound.lock().as_ref().map(|bound| bound.lease.clone());
        if !self.stack.tcp.remember(&conn) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        *phase = Phase::Wire { conn: conn.clone(), known: false };
        conn.connect(&self.stack)?;
        Err(Errno::EINPROGRESS)
    }

    fn connect_local(&self, phase: &mut Phase, tuple: Tuple) -> Result<()> {
        let reverse = Tuple { local: tuple.remote, remote: tuple.local };
        let Some(listener) = self.stack.tcp.listener(&reverse) else {
            *phase = Phase::Idle;
            return Err(Errno::ECONNREFUSED);
        };
        if matches!(phase, Phase::Idle) && !self.stack.tcp.remember_local(tuple) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let limit = self.options.lock().for_connection().send_ring.unwrap_or(usize::MAX);
        let mut mine = None;
        let entered = listener.connect_local(&self.me, || {
            let (one, two) = LocalEnd::pair(&self.stack, tuple, self.queue.clone(), limit);
            mine = Some(one);
            two
        });
        match (entered, mine) {
            (Ok(()), Some(end)) => {
                *phase = Phase::Local(end);
                Ok(())
            }
            (Err(Errno::EAGAIN), _) => {
                *phase = Phase::Waiting(tuple);
                Err(Errno::EINPROGRESS)
            }
            (result, _) => {
                self.stack.tcp.forget_local(&tuple);
                *phase = Phase::Idle;
                result
            }
        }
    }

    /// The listener of a connection within this host has room, or is gone.
    fn retry_local(&self) {
        let mut phase = self.phase.lock();
        let Phase::Waiting(tuple) = *phase else { return };
        match self.connect_local(&mut phase, tuple) {
            Err(Errno::EINPROGRESS) => return,
            Err(error) => *self.error.lock() = Some(error),
            Ok(()) => {}
        }
        drop(phase);
        self.queue.wake(ALL);
    }

    fn dissolve(&self, phase: &mut Phase) {
        match std::mem::replace(phase, Phase::Idle) {
            Phase::Wire { conn, .. } => conn.close(true),
            Phase::Local(end) => end.close(true),
            Phase::Waiting(tuple) => self.stack.tcp.forget_local(&tuple),
            Phase::Listening(listener) => {
                self.stack.tcp.stop_listening(&listener);
                listener.close();
            }
            Phase::Idle => {}
        }
    }

    fn take_error(&self) -> Option<Errno> {
        let own = self.error.lock().take();
        own.or_else(|| match &*self.phase.lock() {
            Phase::Wire { conn, .. } => conn.lock().error.take(),
            Phase::Local(end) => end.take_error(),
            _ => None,
        })
    }

    fn tuple(&self) -> Option<Tuple> {
        match &*self.phase.lock() {
            Phase::Wire { conn, .. } => Some(conn.tuple),
            Phase::Local(end) => Some(end.tuple),
            Phase::Waiting(tuple) => Some(*tuple),
            Phase::Idle | Phase::Listening(_) => None,
        }
    }

    fn sink_all(&self, sink: &mut dyn Sink, flags: RecvFlags) -> Result<usize> {
        let phase = self.phase.lock();
        let peek = flags.contains(RecvFlags::PEEK);
        match &*phase {
            Phase::Wire { conn, .. } => {
                let conn = conn.clone();
                drop(phase);
                if flags.contains(RecvFlags::TRUNC) {
                    return conn.receive_into(&mut Discard(sink.room()), peek);
                }
                conn.receive_into(sink, peek)
            }
            Phase::Local(end) if flags.contains(RecvFlags::TRUNC) => end.receive_into(&mut Discard(sink.room()), peek),
            Phase::Local(end) => end.receive_into(sink, peek),
            Phase::Waiting(_) => Err(Errno::EAGAIN),
            Phase::Idle | Phase::Listening(_) => {
                drop(phase);
                Err(self.error.lock().take().unwrap_or(Errno::ENOTCONN))
            }
        }
    }
}

/// `MSG_TRUNC` on a stream: bytes are received and thrown away.
struct Discard(usize);

impl Sink for Discard {
    fn room(&self) -> usize {
        self.0
    }

    fn put(&mut self, bytes: &[u8]) -> Result<usize> {
        let n = bytes.len().min(self.0);
        self.0 -= n;
        Ok(n)
    }
}

impl Drop for TcpSocket {
    fn drop(&mut self) {
        let reset = self.options.get_mut().common.lingers_not();
        match std::mem::replace(self.phase.get_mut(), Phase::Idle) {
            Phase::Wire { conn, .. } => conn.close(reset),
            Phase::Local(end) => end.close(reset),
            Phase::Waiting(tuple) => self.stack.tcp.forget_local(&tuple),
            Phase::Listening(listener) => {
                self.stack.tcp.stop_listening(&listener);
                listener.close();
            }
            Phase::Idle => {}
        }
    }
}

impl File for TcpSocket {
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        self.sink_all(sink, RecvFlags::empty())
    }

    fn write(&self, _offset: u64, source: &mut dyn Source) -> Result<usize> {
        self.send(source, None, Ancillary::default(), 0)
    }

    fn poll(&self) -> Events {
        let pending = self.error.lock().is_some();
        let phase = self.phase.lock();
        let mut events = match &*phase {
            Phase::Idle => Events::WRITE | Events::HUP,
            Phase::Waiting(_) => Events::empty(),
            Phase::Listening(listener) => {
                if listener.has_ready() {
                    Events::READ
                } else {
                    Events::empty()
                }
            }
            Phase::Wire { conn, .. } => conn.poll(),
            Phase::Local(end) => end.poll(),
        };
        if pending {
            events |= Events::ERR | Events::READ | Events::RDHUP;
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn ioctl(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        let queued = match &*self.phase.lock() {
            Phase::Wire { conn, .. } => {
                let state = conn.lock();
                (state.readable(), state.unsent())
            }
            Phase::Local(end) => end.queued(),
            Phase::Listening(_) if u64::from(cmd) == libc::FIONREAD => return Err(Errno::EINVAL),
            _ => (0, 0),
        };
        crate::netstack::ioctl::ioctl(&self.stack, mem, cmd, arg, queued)
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        Some(self.attr.get())
    }

    fn set_anonymous_attr(&self, set: &SetAttr) -> Result<()> {
        self.attr.set(set);
        Ok(())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some(format!("socket:[{}]", self.attr.ino))
    }

    fn as_socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Socket for TcpSocket {
    fn domain(&self) -> (i32, i32, i32) {
        (self.domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)
    }

    fn bind(&self, addr: &SockAddr) -> Result<()> {
        let addr = addr::from_user(self.domain, addr)?;
        let ip = (!addr.ip().is_unspecified()).then(|| addr.ip());
        let free = self.options.lock().common.is_set(libc::IPPROTO_IP, libc::IP_FREEBIND);
        if ip.is_some_and(|ip| !free && (!self.stack.interfaces().may_bind(ip) || ip.is_multicast())) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if (1..FIRST_FREE_PORT).contains(&addr.port()) && !self.cred.net_bind {
            return Err(Errno::EACCES);
        }
        let phase = self.phase.lock();
        let mut bound = self.bound.lock();
        if bound.is_some() || !matches!(*phase, Phase::Idle) {
            return Err(Errno::EINVAL);
        }
        let lease = self.stack.lease(Protocol::Tcp, addr.port(), self.binding(ip, false))?;
        *bound = Some(Bound { addr: ip, lease: Arc::new(lease) });
        Ok(())
    }

    fn connect(&self, addr: &SockAddr) -> Result<()> {
        let mut phase = self.phase.lock();
        if *addr == SockAddr::Unspecified {
            self.dissolve(&mut phase);
            *self.bound.lock() = None;
            return Ok(());
        }
        if let Phase::Wire { conn, known } = &mut *phase {
            let mut state = conn.lock();
            match state.tcp_phase() {
                Machine::SynSent | Machine::SynReceived => return Err(Errno::EALREADY),
                Machine::Closed if !*known => {
                    let error = state.error.take();
                    drop(state);
                    self.dissolve(&mut phase);
                    if let Some(error) = error {
                        return Err(error);
                    }
                }
                _ if std::mem::replace(known, true) => return Err(Errno::EISCONN),
                _ => return Ok(()),
            }
        }
        match &*phase {
            Phase::Idle => {}
            Phase::Waiting(_) => return Err(Errno::EALREADY),
            Phase::Local(_) | Phase::Listening(_) | Phase::Wire { .. } => return Err(Errno::EISCONN),
        }
        if let Some(error) = self.error.lock().take() {
            return Err(error);
        }
        let remote = addr::to_connect(addr::from_user(self.domain, addr)?);
        if remote.port() == 0 {
            return Err(Errno::ECONNREFUSED);
        }
        self.connect_to(&mut phase, remote)
    }

    fn listen(&self, backlog: i32) -> Result<()> {
        let mut phase = self.phase.lock();
        match &*phase {
            Phase::Idle => {}
            Phase::Listening(listener) => {
                listener.set_backlog(backlog);
                return Ok(());
            }
            _ => return Err(Errno::EINVAL),
        }
        let mut bound = self.bound.lock();
        let addr = bound.as_ref().and_then(|bound| bound.addr);
        let binding = self.binding(addr, true);
        let lease = match bound.take() {
            // The lease is this socket's alone: it has not connected yet.
            Some(Bound { lease, .. }) => match Arc::try_unwrap(lease) {
                Ok(mut lease) => {
                    let renewed = self.stack.renew(&mut lease, binding);
                    *bound = Some(Bound { addr, lease: Arc::new(lease) });
                    renewed?;
                    bound.as_ref().map(|bound| bound.lease.clone())
                }
                Err(shared) => {
                    *bound = Some(Bound { addr, lease: shared });
                    return Err(Errno::EINVAL);
                }
            },
            None => {
                let lease = Arc::new(self.stack.lease(Protocol::Tcp, 0, binding)?);
                *bound = Some(Bound { addr: None, lease: lease.clone() });
                Some(lease)
            }
        };
        let Some(lease) = lease else { return Err(Errno::EADDRINUSE) };
        let options = self.options.lock().for_connection();
        let listener = Listener::new(binding, lease.port, self.queue.clone(), options, backlog);
        self.stack.tcp.listen(&listener);
        *phase = Phase::Listening(listener);
        Ok(())
    }

    fn accept(&self) -> Result<Arc<dyn File>> {
        let listener = match &*self.phase.lock() {
            Phase::Listening(listener) => listener.clone(),
            _ => return Err(Errno::EINVAL),
        };
        let (ready, waiter) = listener.accept()?;
        if let Some(waiter) = waiter.and_then(|waiter| waiter.upgrade()) {
            waiter.retry_local();
        }
        let options = self.options.lock().clone();
        let (phase, queue) = match ready {
            Ready::Wire(conn) => {
                let queue = conn.queue.clone();
                (Phase::Wire { conn, known: true }, queue)
            }
            Ready::Local(end) => {
                let queue = end.queue.clone();
                (Phase::Local(end), queue)
            }
        };
        Ok(Self::with(&self.stack, self.domain, self.cred, phase, queue, options))
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let (read, write) = match how {
            libc::SHUT_RD => (true, false),
            libc::SHUT_WR => (false, true),
            libc::SHUT_RDWR => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        let mut phase = self.phase.lock();
        match &*phase {
            Phase::Local(end) => end.shutdown(read, write),
            Phase::Wire { conn, .. } => {
                let conn = conn.clone();
                drop(phase);
                {
                    let mut state = conn.lock();
                    if state.tcp_phase() == Machine::Closed {
                        return Err(Errno::ENOTCONN);
                    }
                    state.shut_read |= read;
                }
                if write {
                    conn.shut_write();
                }
                conn.queue.wake(ALL);
            }
            Phase::Listening(_) if read => {
                self.dissolve(&mut phase);
                drop(phase);
                self.queue.wake(ALL);
            }
            Phase::Listening(_) => {}
            Phase::Idle | Phase::Waiting(_) => return Err(Errno::ENOTCONN),
        }
        Ok(())
    }

    fn local_name(&self) -> Result<SockAddr> {
        if let Some(tuple) = self.tuple() {
            return Ok(addr::to_user(self.domain, tuple.local, 2));
        }
        let bound = self.bound.lock();
        let port = bound.as_ref().map_or(0, |bound| bound.lease.port);
        Ok(match bound.as_ref().and_then(|bound| bound.addr) {
            Some(ip) => addr::to_user(self.domain, SocketAddr::new(ip, port), 2),
            None => addr::unspecified(self.domain, port),
        })
    }

    fn peer_name(&self) -> Result<SockAddr> {
        if let Phase::Wire { conn, .. } = &*self.phase.lock()
            && matches!(conn.lock().tcp_phase(), Machine::SynSent | Machine::Closed)
        {
            return Err(Errno::ENOTCONN);
        }
        let tuple = self.tuple().ok_or(Errno::ENOTCONN)?;
        Ok(addr::to_user(self.domain, tuple.remote, 2))
    }

    fn send(&self, source: &mut dyn Source, to: Option<&SockAddr>, _ancillary: Ancillary, flags: i32) -> Result<usize> {
        let _ = to; // ignored by a connected TCP socket, as on Linux
        if flags & libc::MSG_OOB != 0 {
            log::debug!("send: urgent data is not implemented");
            return Err(Errno::EOPNOTSUPP);
        }
        let phase = self.phase.lock();
        match &*phase {
            Phase::Wire { conn, .. } => {
                let conn = conn.clone();
                drop(phase);
                conn.send(source, flags & libc::MSG_MORE != 0)
            }
            Phase::Local(end) => end.send(source),
            Phase::Waiting(_) => Err(Errno::EAGAIN),
            Phase::Idle | Phase::Listening(_) => {
                drop(phase);
                Err(self.error.lock().take().unwrap_or(Errno::EPIPE))
            }
        }
    }

    fn recv(&self, sink: &mut dyn Sink, flags: RecvFlags) -> Result<Message> {
        if flags.contains(RecvFlags::OOB) {
            return Err(Errno::EINVAL); // there is none
        }
        if flags.contains(RecvFlags::ERRQUEUE) {
            return Err(Errno::EAGAIN);
        }
        Ok(Message { len: self.sink_all(sink, flags)?, ..Message::default() })
    }

    fn get_option(&self, option: SocketOption, _room: usize) -> Result<Vec<u8>> {
        let value = match (option.level, option.name) {
            (libc::IPPROTO_TCP, name) => return self.tcp_option(name),
            (libc::SOL_SOCKET, libc::SO_ERROR) => self.take_error().map_or(0, Errno::raw),
            (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => matches!(*self.phase.lock(), Phase::Listening(_)).into(),
            (libc::IPPROTO_IPV6, _) if self.domain != libc::AF_INET6 => return Err(Errno::EOPNOTSUPP),
            (libc::IPPROTO_IP, libc::IP_MTU) | (libc::IPPROTO_IPV6, libc::IPV6_MTU) => {
                let tuple = self.tuple().ok_or(Errno::ENOTCONN)?;
                let interfaces = self.stack.interfaces();
                let route = interfaces.route(tuple.remote.ip())?;
                interfaces.get(route.interface).map_or(1500, |interface| interface.mtu) as i32
            }
            _ => return self.options.lock().common.get(option),
        };
        Ok(value.to_ne_bytes().to_vec())
    }

    fn set_option(&self, option: SocketOption, value: &[u8]) -> Result<()> {
        match (option.level, option.name) {
            (libc::IPPROTO_TCP, name) => return self.set_tcp_option(name, value),
            (libc::SOL_SOCKET, libc::SO_ERROR | libc::SO_ACCEPTCONN | libc::SO_SNDLOWAT) => {
                return Err(Errno::ENOPROTOOPT);
            }
            (libc::SOL_SOCKET, libc::SO_BINDTODEVICE) => self.stack.check_device(value)?,
            (libc::SOL_SOCKET, libc::SO_MARK) if !self.cred.net_admin => return Err(Errno::EPERM),
            (libc::IPPROTO_IPV6, _) if self.domain != libc::AF_INET6 => return Err(Errno::ENOPROTOOPT),
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) if self.bound.lock().is_some() => return Err(Errno::EINVAL),
            _ => {}
        }
        self.options.lock().common.set(option, value)?;
        self.push_options();
        Ok(())
    }

    fn timeout(&self, send: bool) -> Option<Duration> {
        let options = self.options.lock();
        if send { options.common.send_timeout } else { options.common.receive_timeout }
    }
}
