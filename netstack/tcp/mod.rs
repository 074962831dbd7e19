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

mod adapt;
mod calls;
mod conn;
mod cookie;
mod engine;
mod listen;
mod local;
mod memory;
mod meter;
mod options;
mod segment;
#[cfg(test)]
mod silent_tests;
mod tables;
#[cfg(test)]
mod tests;
mod transfer;
mod window;
#[cfg(test)]
mod window_model_tests;
#[cfg(test)]
mod window_tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

pub use self::options::congestion_controls;
pub use self::tables::{Row, Tables, input, rows, unreachable};

use self::conn::{ALL, Conn, Tuple};
use self::listen::Listener;
use self::local::LocalEnd;
use self::options::TcpOptions;
use crate::errno::{Errno, Result};
use crate::io::Sink;
use crate::netstack::options::Common;
use crate::netstack::stack::counters::{Ext, Tcp as Counter};
use crate::netstack::stack::ports::{Binding, Lease, Protocol};
use crate::netstack::stack::settings::Buffer;
use crate::netstack::stack::{SocketCred, Stack};
use crate::netstack::{Endpoint, RecvFlags, Socket, dns};
use crate::vfs::anon::{AnonAttr, DEV_SOCKET};
use crate::vfs::file::IoctlMemory;
use crate::vfs::inode::NodeType;
use crate::wait::{Events, WaitQueue};

/// From `asm-generic/sockios.h`.
const SIOCATMARK: u64 = 0x8905;

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
            ip: common.ip,
            low_water: usize::try_from(common.low_water).unwrap_or(1),
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
    /// A connection within this host; `known` after `connect` has told of it.
    Local { end: LocalEnd, known: bool },
    /// A connection within this host, to a listener that has no room yet.
    Waiting(Tuple),
    /// After a connection within this host was refused, until `connect` has told of it.
    Failed,
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
        let settings = stack.settings();
        let sizes = [Buffer::Receive, Buffer::Send].map(|which| settings.buffer(which)[1] as usize);
        let options = Options { common: Common::new(settings, sizes), tcp: TcpOptions::new(settings) };
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
            device: options.common.ip.device,
        }
    }

    /// The ends of a connection to `remote`, for which a port is taken if there is none.
    fn ends(&self, remote: SocketAddr) -> Result<(Tuple, bool)> {
        let device = self.options.lock().common.ip.device;
        let route = self.stack.way_out(remote.ip(), device)?;
        if route.broadcast {
            return Err(Errno::ENETUNREACH);
        }
        let mut bound = self.bound.lock();
        let chosen = bound.as_ref().and_then(|bound| bound.addr);
        let source = chosen.unwrap_or(route.source);
        if source.is_ipv4() != remote.is_ipv4() {
            return Err(if chosen.is_some() { Errno::EINVAL } else { Errno::ENETUNREACH });
        }
        if source.is_loopback() && route.leaves() {
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
            // As on Linux the answer comes after `connect` has begun, if only by the time that takes: who waits finds it
            // there, who does not is told that it is on its way.
            return Err(match self.connect_local(phase, tuple) {
                Ok(()) => Errno::EINPROGRESS,
                Err(Errno::ECONNREFUSED) => {
                    self.failed(phase, Errno::ECONNREFUSED);
                    Errno::EINPROGRESS
                }
                Err(error) => error,
            });
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

    /// The next `connect`, or `SO_ERROR`, tells of `error`.
    fn failed(&self, phase: &mut Phase, error: Errno) {
        *phase = Phase::Failed;
        *self.error.lock() = Some(error);
    }

    fn connect_local(&self, phase: &mut Phase, tuple: Tuple) -> Result<()> {
        let reverse = Tuple { local: dns::destination(&self.stack, tuple.remote), remote: tuple.local };
        let device = self.options.lock().common.ip.device;
        let arrives = self.stack.interfaces().route_by(tuple.remote.ip(), device)?.arrives;
        let Some(listener) = self.stack.tcp.listener(&reverse, arrives) else {
            *phase = Phase::Idle;
            self.stack.counters().count(Counter::ActiveOpens);
            self.stack.counters().count(Counter::AttemptFails);
            self.stack.counters().count(Counter::OutRsts);
            return Err(Errno::ECONNREFUSED);
        };
        if matches!(phase, Phase::Idle) && !self.stack.tcp.remember_local(tuple) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let limit =
            self.options.lock().for_connection().send_ring.unwrap_or_else(|| self.stack.settings().ring(Buffer::Send));
        let mut mine = None;
        let entered = listener.connect_local(&self.stack, &self.me, || {
            let (one, two) = LocalEnd::pair(&self.stack, tuple, self.queue.clone(), limit);
            mine = Some(one);
            two
        });
        match (entered, mine) {
            (Ok(()), Some(end)) => {
                *phase = Phase::Local { end, known: false };
                self.stack.counters().count(Counter::ActiveOpens);
                self.stack.counters().count(Counter::PassiveOpens);
                Ok(())
            }
            (Err(Errno::EAGAIN), _) => {
                self.stack.counters().count(Ext::ListenOverflows);
                self.stack.counters().count(Ext::ListenDrops);
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
            Err(error) => self.failed(&mut phase, error),
            Ok(()) => {}
        }
        drop(phase);
        self.queue.wake(ALL);
    }

    fn dissolve(&self, phase: &mut Phase) {
        match std::mem::replace(phase, Phase::Idle) {
            Phase::Wire { conn, .. } => conn.close(true),
            Phase::Local { end, .. } => end.close(true),
            Phase::Waiting(tuple) => self.stack.tcp.forget_local(&tuple),
            Phase::Listening(listener) => {
                self.stack.tcp.stop_listening(&listener);
                listener.close();
            }
            Phase::Idle | Phase::Failed => {}
        }
    }

    fn take_error(&self) -> Option<Errno> {
        let own = self.error.lock().take();
        own.or_else(|| match &*self.phase.lock() {
            Phase::Wire { conn, .. } => conn.lock().error.take(),
            Phase::Local { end, .. } => end.take_error(),
            _ => None,
        })
    }

    fn tuple(&self) -> Option<Tuple> {
        match &*self.phase.lock() {
            Phase::Wire { conn, .. } => Some(conn.tuple),
            Phase::Local { end, .. } => Some(end.tuple),
            Phase::Waiting(tuple) => Some(*tuple),
            Phase::Idle | Phase::Failed | Phase::Listening(_) => None,
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
            Phase::Local { end, .. } if flags.contains(RecvFlags::TRUNC) => {
                end.receive_into(&mut Discard(sink.room()), peek)
            }
            Phase::Local { end, .. } => end.receive_into(sink, peek),
            Phase::Waiting(_) => Err(Errno::EAGAIN),
            Phase::Idle | Phase::Failed | Phase::Listening(_) => {
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
        let reset = self.options.get_mut().common.lingers() == Some(std::time::Duration::ZERO);
        match std::mem::replace(self.phase.get_mut(), Phase::Idle) {
            Phase::Wire { conn, .. } => conn.close(reset),
            Phase::Local { end, .. } => end.close(reset),
            Phase::Waiting(tuple) => self.stack.tcp.forget_local(&tuple),
            Phase::Listening(listener) => {
                self.stack.tcp.stop_listening(&listener);
                listener.close();
            }
            Phase::Idle | Phase::Failed => {}
        }
    }
}

impl Endpoint for TcpSocket {
    fn attr(&self) -> &AnonAttr {
        &self.attr
    }

    fn waiters(&self) -> &WaitQueue {
        &self.queue
    }

    fn take(&self, sink: &mut dyn Sink) -> Result<usize> {
        self.sink_all(sink, RecvFlags::empty())
    }

    fn readiness(&self) -> Events {
        let pending = self.error.lock().is_some();
        let phase = self.phase.lock();
        let mut events = match &*phase {
            Phase::Idle | Phase::Failed => Events::WRITE | Events::HUP,
            Phase::Waiting(_) => Events::empty(),
            Phase::Listening(listener) => {
                if listener.has_ready() {
                    Events::READ
                } else {
                    Events::empty()
                }
            }
            Phase::Wire { conn, .. } => conn.poll(),
            Phase::Local { end, .. } => end.poll(self.low_water()),
        };
        if pending {
            events |= Events::ERR | Events::READ | Events::RDHUP;
        }
        events
    }

    fn control(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        if u64::from(cmd) == SIOCATMARK {
            // There is no urgent data, so that what is read next is none.
            return mem.write(arg, &0i32.to_ne_bytes()).map(|()| 0);
        }
        let queued = match &*self.phase.lock() {
            Phase::Wire { conn, .. } => {
                let state = conn.lock();
                (state.readable(), state.unsent())
            }
            Phase::Local { end, .. } => end.queued(),
            Phase::Listening(_) if u64::from(cmd) == libc::FIONREAD => return Err(Errno::EINVAL),
            _ => (0, 0),
        };
        crate::netstack::ioctl::ioctl(&self.stack, mem, cmd, arg, queued)
    }
}
