//! The socket calls on a TCP socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use smoltcp::socket::tcp::State as Machine;

use super::conn::ALL;
use super::listen::{Listener, Ready};
use super::{Bound, Phase, TcpSocket};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::netstack::stack::ports::Protocol;
use crate::netstack::stack::settings::{Buffer, Number};
use crate::netstack::{Ancillary, Message, RecvFlags, SockAddr, Socket, SocketOption, addr};
use crate::vfs::file::File;

impl Socket for TcpSocket {
    fn domain(&self) -> (i32, i32, i32) {
        (self.domain, libc::SOCK_STREAM, libc::IPPROTO_TCP)
    }

    fn bind(&self, addr: &SockAddr) -> Result<()> {
        let addr = addr::from_user(self.domain, addr)?;
        let ip = (!addr.ip().is_unspecified()).then(|| addr.ip());
        let free = self.options.lock().common.is_set(libc::IPPROTO_IP, libc::IP_FREEBIND)
            || self.stack.settings().is_set(Number::NonlocalBind);
        if ip.is_some_and(|ip| !free && (!self.stack.interfaces().may_bind(ip) || ip.is_multicast())) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if self.stack.settings().is_privileged(addr.port()) && !self.cred.net_bind {
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
                    return Err(error.unwrap_or(Errno::ECONNABORTED));
                }
                _ if std::mem::replace(known, true) => return Err(Errno::EISCONN),
                _ => return Ok(()),
            }
        }
        match &mut *phase {
            Phase::Idle => {}
            Phase::Failed => {
                *phase = Phase::Idle;
                return Err(self.error.lock().take().unwrap_or(Errno::ECONNABORTED));
            }
            Phase::Waiting(_) => return Err(Errno::EALREADY),
            Phase::Local { known, .. } => {
                return if std::mem::replace(known, true) { Err(Errno::EISCONN) } else { Ok(()) };
            }
            Phase::Listening(_) | Phase::Wire { .. } => return Err(Errno::EISCONN),
        }
        let remote = addr::to_connect(addr::from_user(self.domain, addr)?);
        if remote.port() == 0 {
            return Err(Errno::ECONNREFUSED);
        }
        let result = self.connect_to(&mut phase, remote);
        if matches!(*phase, Phase::Local { .. } | Phase::Failed) {
            drop(phase);
            self.queue.wake(ALL);
        }
        result
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
        let queue = self.queue.clone();
        let listener = Listener::new(&self.stack, binding, lease.port, queue, options, backlog);
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
                (Phase::Local { end, known: true }, queue)
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
            Phase::Local { end, .. } if end.is_over() => return Err(Errno::ENOTCONN),
            Phase::Local { end, .. } => end.shutdown(read, write),
            Phase::Wire { conn, .. } => {
                let conn = conn.clone();
                drop(phase);
                {
                    let mut state = conn.lock();
                    if matches!(state.tcp_phase(), Machine::Closed | Machine::TimeWait) {
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
            Phase::Idle | Phase::Failed | Phase::Waiting(_) => return Err(Errno::ENOTCONN),
        }
        Ok(())
    }

    fn local_name(&self) -> Result<SockAddr> {
        if let Some(tuple) = self.tuple() {
            return Ok(self.stack.shown(self.domain, tuple.local));
        }
        let bound = self.bound.lock();
        let port = bound.as_ref().map_or(0, |bound| bound.lease.port);
        Ok(match bound.as_ref().and_then(|bound| bound.addr) {
            Some(ip) => self.stack.shown(self.domain, SocketAddr::new(ip, port)),
            None => addr::unspecified(self.domain, port),
        })
    }

    fn peer_name(&self) -> Result<SockAddr> {
        let over = match &*self.phase.lock() {
            Phase::Wire { conn, .. } => {
                matches!(conn.lock().tcp_phase(), Machine::SynSent | Machine::Closed | Machine::TimeWait)
            }
            Phase::Local { end, .. } => end.is_over(),
            _ => false,
        };
        if over { Err(Errno::ENOTCONN) } else { self.accepted_from() }
    }

    /// Also of a connection that has ended meanwhile.
    fn accepted_from(&self) -> Result<SockAddr> {
        let tuple = self.tuple().ok_or(Errno::ENOTCONN)?;
        Ok(self.stack.shown(self.domain, tuple.remote))
    }

    fn send(&self, source: &mut dyn Source, to: Option<&SockAddr>, _ancillary: Ancillary, flags: i32) -> Result<usize> {
        let _ = to; // ignored by a connected TCP socket, as on Linux
        if flags & libc::MSG_OOB != 0 {
            log::debug!("send: urgent data is not implemented");
            return Err(Errno::EOPNOTSUPP);
        }
        if flags & libc::MSG_FASTOPEN != 0 && matches!(*self.phase.lock(), Phase::Idle | Phase::Failed) {
            return Err(Errno::EOPNOTSUPP); // `tcp_fastopen` is 0
        }
        let phase = self.phase.lock();
        match &*phase {
            Phase::Wire { conn, .. } => {
                let conn = conn.clone();
                drop(phase);
                conn.send(source, flags & libc::MSG_MORE != 0)
            }
            Phase::Local { end, .. } => end.send(source),
            Phase::Waiting(_) => Err(Errno::EAGAIN),
            Phase::Idle | Phase::Failed | Phase::Listening(_) => {
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

    fn get_option(&self, option: SocketOption, room: usize) -> Result<Vec<u8>> {
        let value = match (option.level, option.name) {
            (libc::IPPROTO_TCP, name) => return self.tcp_option(name),
            (libc::SOL_SOCKET, libc::SO_ERROR) => self.take_error().map_or(0, Errno::raw),
            (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => matches!(*self.phase.lock(), Phase::Listening(_)).into(),
            (libc::IPPROTO_IPV6, _) if self.domain != libc::AF_INET6 => return Err(Errno::EOPNOTSUPP),
            (libc::IPPROTO_IP, libc::IP_MTU) | (libc::IPPROTO_IPV6, libc::IPV6_MTU) => {
                let tuple = self.tuple().ok_or(Errno::ENOTCONN)?;
                let interfaces = self.stack.interfaces();
                let route = interfaces.route_by(tuple.remote.ip(), self.options.lock().common.ip.device)?;
                interfaces.get(route.interface).map_or(1500, |interface| interface.mtu) as i32
            }
            _ => return self.options.lock().common.get_on(&self.stack, option, room),
        };
        Ok(value.to_ne_bytes().to_vec())
    }

    fn set_option(&self, option: SocketOption, value: &[u8]) -> Result<()> {
        match (option.level, option.name) {
            (libc::IPPROTO_TCP, name) => return self.set_tcp_option(name, value),
            (libc::SOL_SOCKET, libc::SO_ERROR | libc::SO_ACCEPTCONN | libc::SO_SNDLOWAT) => {
                return Err(Errno::ENOPROTOOPT);
            }
            (libc::IPPROTO_IPV6, _) if self.domain != libc::AF_INET6 => return Err(Errno::ENOPROTOOPT),
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) if self.bound.lock().is_some() => return Err(Errno::EINVAL),
            _ => {}
        }
        let (before, device) = {
            let mut options = self.options.lock();
            let before = options.common.ip.device;
            options.common.set_on(&self.stack, &self.cred, libc::SOCK_STREAM, option, value)?;
            options.common.clear_congestion_bits();
            // As on Linux: half of the longest receive buffer at most.
            let most = self.stack.settings().ring(Buffer::Receive) / 2;
            options.common.low_water = options.common.low_water.min(most as i32);
            (before, options.common.ip.device)
        };
        if device != before
            && let Some(bound) = &*self.bound.lock()
        {
            self.stack.rebind(&bound.lease, device);
        }
        self.push_options();
        Ok(())
    }

    fn linger(&self) -> Option<Duration> {
        let time = self.options.lock().common.lingers().filter(|time| !time.is_zero())?;
        let conn = match &*self.phase.lock() {
            Phase::Wire { conn, .. } => Some(conn.clone()),
            Phase::Local { end, .. } if end.begin_end() => None,
            _ => return None,
        };
        let begun = conn.is_none_or(|conn| conn.begin_end());
        (begun && !self.has_lingered()).then_some(time)
    }

    fn has_lingered(&self) -> bool {
        match &*self.phase.lock() {
            Phase::Wire { conn, .. } => {
                !matches!(conn.lock().tcp_phase(), Machine::FinWait1 | Machine::Closing | Machine::LastAck)
            }
            Phase::Local { end, .. } => end.has_arrived(),
            _ => true,
        }
    }

    fn low_water(&self) -> usize {
        usize::try_from(self.options.lock().common.low_water).unwrap_or(1)
    }

    fn timeout(&self, send: bool) -> Option<Duration> {
        let options = self.options.lock();
        if send { options.common.send_timeout } else { options.common.receive_timeout }
    }
}
