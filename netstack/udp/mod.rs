//! UDP: `udp(7)`, RFC 768. Within this host a datagram goes from queue to queue.

mod groups;
mod receive;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use self::groups::{Groups, Membership, Request};
pub use self::receive::{Datagram, deliver, input, unreachable};

use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::netstack::options::Common;
use crate::netstack::stack::counters::Udp as Counter;
use crate::netstack::stack::packet::{self, Header, UDP};
use crate::netstack::stack::ports::{Binding, Lease, Protocol};
use crate::netstack::stack::settings::Number;
use crate::netstack::stack::{Route, SocketCred, Stack};
use crate::netstack::{Ancillary, Endpoint, Message, RecvFlags, SockAddr, Socket, SocketOption, addr, dns};
use crate::vfs::anon::{AnonAttr, DEV_SOCKET};
use crate::vfs::file::IoctlMemory;
use crate::vfs::inode::NodeType;
use crate::wait::{Events, WaitQueue};

/// The most that fits into a datagram, with its header.
const MAX_DATAGRAM: usize = 65_535;
const HEADER: usize = 8;

/// The sockets with a port, and the groups that they are in. All locks are leaves.
#[derive(Default)]
pub struct Table {
    ports: RwLock<HashMap<u16, Vec<Weak<UdpSocket>>>>,
    groups: Groups,
}

impl Table {
    fn enter(&self, port: u16, socket: &Weak<UdpSocket>) {
        self.ports.write().entry(port).or_default().push(socket.clone());
    }

    fn leave(&self, port: u16, socket: &Weak<UdpSocket>) {
        let mut table = self.ports.write();
        if let Some(all) = table.get_mut(&port) {
            all.retain(|known| !known.ptr_eq(socket));
            if all.is_empty() {
                table.remove(&port);
            }
        }
    }

    /// All sockets with a port.
    fn at(&self, port: u16) -> Vec<Arc<UdpSocket>> {
        let table = self.ports.read();
        table.get(&port).map(|all| all.iter().filter_map(Weak::upgrade).collect()).unwrap_or_default()
    }

    /// Every socket, for `/proc/net/udp`.
    pub fn all(&self) -> Vec<Arc<UdpSocket>> {
        self.ports.read().values().flatten().filter_map(Weak::upgrade).collect()
    }
}

#[derive(Default)]
struct State {
    /// The own address, when bound or connected.
    addr: Option<IpAddr>,
    /// Whether `bind` chose that.
    addr_bound: bool,
    /// Whether `bind` chose the port.
    port_bound: bool,
    lease: Option<Lease>,
    peer: Option<SocketAddr>,
    queue: VecDeque<Datagram>,
    /// Bytes in the queue, with Linux's overhead.
    queued: usize,
    error: Option<Errno>,
    shut_read: bool,
    shut_write: bool,
    groups: Vec<Membership>,
    /// Datagrams that found no room.
    dropped: u64,
}

/// A UDP socket.
pub struct UdpSocket {
    me: Weak<UdpSocket>,
    stack: Arc<Stack>,
    domain: i32,
    cred: SocketCred,
    attr: AnonAttr,
    waiters: WaitQueue,
    state: Mutex<State>,
    /// Leaf lock.
    options: Mutex<Common>,
}

impl UdpSocket {
    /// `socket(2)`.
    pub fn new(stack: &Arc<Stack>, domain: i32, cred: SocketCred) -> Arc<UdpSocket> {
        Arc::new_cyclic(|me| UdpSocket {
            me: me.clone(),
            stack: stack.clone(),
            domain,
            cred,
            attr: AnonAttr::new(DEV_SOCKET, NodeType::Socket, 0o777, (cred.uid, cred.gid)),
            waiters: WaitQueue::new(),
            state: Mutex::default(),
            options: Mutex::new(Common::new(stack.settings(), stack.settings().default_buffers())),
        })
    }

    fn is_set(&self, level: i32, name: i32) -> bool {
        self.options.lock().is_set(level, name)
    }

    fn binding(&self, addr: Option<IpAddr>) -> Binding {
        let v6_only = self.is_set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
        Binding {
            addr,
            v4: addr.map_or(self.domain == libc::AF_INET || !v6_only, |addr| addr.is_ipv4()),
            v6: addr.map_or(self.domain == libc::AF_INET6, |addr| addr.is_ipv6()),
            reuse_addr: self.is_set(libc::SOL_SOCKET, libc::SO_REUSEADDR),
            reuse_port: self.is_set(libc::SOL_SOCKET, libc::SO_REUSEPORT),
            uid: self.cred.uid,
            listening: false,
            device: self.options.lock().ip.device,
        }
    }

    /// Takes a free port, when there is none.
    fn autobind(&self, state: &mut State) -> Result<u16> {
        if let Some(lease) = &state.lease {
            return Ok(lease.port);
        }
        let lease = self.stack.lease(Protocol::Udp, 0, self.binding(None)).map_err(|_| Errno::EAGAIN)?;
        let port = lease.port;
        state.lease = Some(lease);
        self.stack.udp.enter(port, &self.me);
        Ok(port)
    }

    fn disconnect(&self) {
        let mut state = self.state.lock();
        state.peer = None;
        if !state.addr_bound {
            state.addr = None;
        }
        let lease = if state.port_bound { None } else { state.lease.take() };
        drop(state);
        if let Some(lease) = lease {
            self.stack.udp.leave(lease.port, &self.me);
        }
    }

    /// The way to `remote` and the source address to use. `EACCES`: a broadcast that was not allowed.
    fn way(&self, state: &State, remote: SocketAddr, source: Option<IpAddr>) -> Result<(Route, IpAddr)> {
        let (device, group_source) = {
            let options = self.options.lock();
            (options.device(remote.ip()), options.multicast_source(remote.ip()))
        };
        let route = self.stack.way_out(remote.ip(), device)?;
        if route.broadcast && !remote.ip().is_multicast() && !self.is_set(libc::SOL_SOCKET, libc::SO_BROADCAST) {
            return Err(Errno::EACCES);
        }
        let own = state.addr.filter(|addr| !addr.is_multicast() && !self.stack.interfaces().is_broadcast(*addr));
        let source = source.or(own).or(group_source).unwrap_or(route.source);
        if source.is_ipv4() != remote.is_ipv4() {
            return Err(Errno::ENETUNREACH);
        }
        if source.is_loopback() && route.leaves() {
            return Err(Errno::EINVAL);
        }
        Ok((route, source))
    }

    fn transmit(&self, remote: SocketAddr, source_addr: Option<IpAddr>, data: &mut dyn Source) -> Result<usize> {
        let len = data.left();
        let mut state = self.state.lock();
        let port = self.autobind(&mut state)?;
        let (mut route, source) = self.way(&state, remote, source_addr)?;
        drop(state);
        if len + HEADER + if remote.is_ipv4() { 20 } else { 0 } > MAX_DATAGRAM {
            return Err(Errno::EMSGSIZE);
        }
        let ip = remote.ip();
        let (tos, ttl, dont_fragment, whole) = {
            let options = self.options.lock();
            route.broadcast &= !ip.is_multicast() || options.loops(ip);
            let whole =
                options.ip.whole(ip) || (ip.is_ipv6() && options.is_set(libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG));
            (options.ip.tos(ip), options.hops(ip), options.ip.dont_fragment(ip), whole)
        };
        if route.local {
            let bytes = data.take_vec(len)?;
            if bytes.len() < len {
                return Err(Errno::EFAULT);
            }
            if dns::is_server(remote)
                && let Some(relay) = self.stack.dns.get()
            {
                relay.datagram(SocketAddr::new(source, port), bytes);
                return Ok(len);
            }
            let datagram = Datagram {
                from: SocketAddr::new(source, port),
                to: if remote.ip().is_unspecified() { route.next_hop } else { remote.ip() },
                interface: route.arrives,
                ttl,
                tos,
                bytes,
            };
            self.stack.count_local(remote.is_ipv6(), len + HEADER);
            self.stack.counters().count(Counter::OutDatagrams.of(remote.is_ipv6()));
            if !receive::deliver(&self.stack, datagram, remote.port()) {
                let mut state = self.state.lock();
                if state.peer == Some(remote) {
                    state.error = Some(Errno::ECONNREFUSED);
                    drop(state);
                    self.waiters.wake(Events::ERR);
                }
            }
            return Ok(len);
        }
        let id = if dont_fragment { 0 } else { packet::identification() };
        let header = Header { source, destination: ip, protocol: UDP, ttl, tos, id, whole };
        let fill = |to: &mut [u8]| {
            to[..2].copy_from_slice(&port.to_be_bytes());
            to[2..4].copy_from_slice(&remote.port().to_be_bytes());
            to[4..6].copy_from_slice(&((len + HEADER) as u16).to_be_bytes());
            let n = data.take(&mut to[HEADER..])?;
            if n < len { Err(Errno::EFAULT) } else { Ok(()) }
        };
        self.stack.send_packet(&route, &header, len + HEADER, Some(6), fill)?;
        self.stack.counters().count(Counter::OutDatagrams.of(remote.is_ipv6()));
        Ok(len)
    }

    /// Its line of `/proc/net/udp`.
    pub fn row(&self) -> Row {
        let state = self.state.lock();
        let port = state.lease.as_ref().map_or(0, |lease| lease.port);
        let any: IpAddr = if self.domain == libc::AF_INET {
            std::net::Ipv4Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        Row {
            local: SocketAddr::new(state.addr.unwrap_or(any), port),
            remote: state.peer,
            queued: state.queued,
            uid: self.cred.uid,
            ino: self.attr.ino,
            dropped: state.dropped,
        }
    }
}

/// A line of `/proc/net/udp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its own end.
    pub local: SocketAddr,
    /// Its peer, when connected.
    pub remote: Option<SocketAddr>,
    /// Bytes to be received.
    pub queued: usize,
    /// Its owner.
    pub uid: u32,
    /// Its inode number.
    pub ino: u64,
    /// Datagrams that found no room.
    pub dropped: u64,
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        let State { lease, groups, .. } = self.state.get_mut();
        let lease = lease.take();
        while self.stack.udp.groups.leave(groups, |_| true).is_ok() {}
        if let Some(lease) = lease {
            self.stack.udp.leave(lease.port, &self.me);
        }
    }
}

impl Endpoint for UdpSocket {
    fn attr(&self) -> &AnonAttr {
        &self.attr
    }

    fn waiters(&self) -> &WaitQueue {
        &self.waiters
    }

    fn readiness(&self) -> Events {
        let state = self.state.lock();
        let mut events = Events::WRITE | Events::WRBAND;
        if !state.queue.is_empty() || state.shut_read {
            events |= Events::READ;
        }
        events.set(Events::RDHUP, state.shut_read);
        events.set(Events::HUP, state.shut_read && state.shut_write);
        events.set(Events::ERR, state.error.is_some());
        events
    }

    fn control(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        let first = self.state.lock().queue.front().map_or(0, |datagram| datagram.bytes.len());
        crate::netstack::ioctl::ioctl(&self.stack, mem, cmd, arg, (first, 0))
    }
}

impl Socket for UdpSocket {
    fn domain(&self) -> (i32, i32, i32) {
        (self.domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP)
    }

    fn bind(&self, addr: &SockAddr) -> Result<()> {
        let addr = addr::from_user(self.domain, addr)?;
        let ip = (!addr.ip().is_unspecified()).then(|| addr.ip());
        let free =
            self.is_set(libc::IPPROTO_IP, libc::IP_FREEBIND) || self.stack.settings().is_set(Number::NonlocalBind);
        if ip.is_some_and(|ip| !free && !self.stack.interfaces().may_bind(ip)) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        if self.stack.settings().is_privileged(addr.port()) && !self.cred.net_bind {
            return Err(Errno::EACCES);
        }
        let mut state = self.state.lock();
        if state.lease.is_some() {
            return Err(Errno::EINVAL);
        }
        let lease = self.stack.lease(Protocol::Udp, addr.port(), self.binding(ip))?;
        let port = lease.port;
        (state.lease, state.addr, state.addr_bound) = (Some(lease), ip, ip.is_some());
        state.port_bound = addr.port() != 0;
        self.stack.udp.enter(port, &self.me);
        Ok(())
    }

    fn connect(&self, addr: &SockAddr) -> Result<()> {
        if *addr == SockAddr::Unspecified {
            self.disconnect();
            return Ok(());
        }
        let remote = addr::to_connect(addr::from_user(self.domain, addr)?);
        let mut state = self.state.lock();
        let without = State { addr: state.addr.filter(|_| state.addr_bound), ..State::default() };
        let (_, source) = self.way(&without, remote, None)?;
        self.autobind(&mut state)?;
        (state.addr, state.peer) = (Some(source), Some(remote));
        Ok(())
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let mut state = self.state.lock();
        let connected = state.peer.is_some();
        match how {
            libc::SHUT_RD => state.shut_read = true,
            libc::SHUT_WR => state.shut_write = true,
            libc::SHUT_RDWR => (state.shut_read, state.shut_write) = (true, true),
            _ => return Err(Errno::EINVAL),
        }
        drop(state);
        self.waiters.wake(Events::READ | Events::WRITE | Events::RDHUP | Events::HUP);
        if connected { Ok(()) } else { Err(Errno::ENOTCONN) }
    }

    fn local_name(&self) -> Result<SockAddr> {
        let state = self.state.lock();
        let port = state.lease.as_ref().map_or(0, |lease| lease.port);
        Ok(match state.addr {
            Some(ip) => self.stack.shown(self.domain, SocketAddr::new(ip, port)),
            None => addr::unspecified(self.domain, port),
        })
    }

    fn peer_name(&self) -> Result<SockAddr> {
        let peer = self.state.lock().peer.ok_or(Errno::ENOTCONN)?;
        Ok(self.stack.shown(self.domain, peer))
    }

    fn send(&self, source: &mut dyn Source, to: Option<&SockAddr>, ancillary: Ancillary, flags: i32) -> Result<usize> {
        if flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut state = self.state.lock();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        if state.shut_write {
            return Err(Errno::EPIPE);
        }
        let peer = state.peer;
        drop(state);
        let remote = match to {
            Some(SockAddr::Unspecified) | None => peer.ok_or(Errno::EDESTADDRREQ)?,
            // An IPv6 socket sends to IPv4 addresses too.
            Some(SockAddr::V4(to)) => addr::to_connect(SocketAddr::V4(*to)),
            Some(to) => addr::to_connect(addr::from_user(self.domain, to)?),
        };
        if remote.port() == 0 {
            return Err(Errno::EINVAL);
        }
        if remote.is_ipv4() && self.domain == libc::AF_INET6 && self.is_set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) {
            return Err(Errno::ENETUNREACH);
        }
        let source_addr = receive::source_of(&ancillary)?;
        if source_addr.is_some_and(|addr| !self.stack.interfaces().is_local(addr)) {
            return Err(Errno::EINVAL);
        }
        self.transmit(remote, source_addr, source)
    }

    fn recv(&self, sink: &mut dyn Sink, flags: RecvFlags) -> Result<Message> {
        self.receive(sink, flags)
    }

    fn get_option(&self, option: SocketOption, room: usize) -> Result<Vec<u8>> {
        let value = match (option.level, option.name) {
            (libc::SOL_SOCKET, libc::SO_ERROR) => self.state.lock().error.take().map_or(0, Errno::raw),
            (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => 0,
            (libc::IPPROTO_TCP, _) => return Err(Errno::EOPNOTSUPP),
            (libc::IPPROTO_IPV6, _) if self.domain != libc::AF_INET6 => return Err(Errno::EOPNOTSUPP),
            (libc::IPPROTO_IP, libc::IP_MTU) | (libc::IPPROTO_IPV6, libc::IPV6_MTU) => {
                let peer = self.state.lock().peer.ok_or(Errno::ENOTCONN)?;
                let interfaces = self.stack.interfaces();
                let route = interfaces.route_by(peer.ip(), self.options.lock().ip.device)?;
                interfaces.get(route.interface).map_or(1500, |interface| interface.mtu) as i32
            }
            _ => return self.options.lock().get_on(&self.stack, option, room),
        };
        Ok(value.to_ne_bytes().to_vec())
    }

    fn set_option(&self, option: SocketOption, value: &[u8]) -> Result<()> {
        match (option.level, option.name) {
            (libc::SOL_SOCKET, libc::SO_ERROR | libc::SO_ACCEPTCONN | libc::SO_SNDLOWAT) => {
                return Err(Errno::ENOPROTOOPT);
            }
            (libc::IPPROTO_TCP, _) => return Err(Errno::ENOPROTOOPT),
            (libc::IPPROTO_IPV6, _) if self.domain != libc::AF_INET6 => return Err(Errno::ENOPROTOOPT),
            (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP) | (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP) => {
                let interfaces = self.stack.interfaces();
                let membership = Request::parse(interfaces, option.level, value)?.membership(interfaces)?;
                return self.stack.udp.groups.join(&mut self.state.lock().groups, membership);
            }
            (libc::IPPROTO_IP, libc::IP_DROP_MEMBERSHIP) | (libc::IPPROTO_IPV6, libc::IPV6_DROP_MEMBERSHIP) => {
                let interfaces = self.stack.interfaces();
                let wanted = Request::parse(interfaces, option.level, value)?.to_leave(interfaces)?;
                return self.stack.udp.groups.leave(&mut self.state.lock().groups, wanted);
            }
            _ => {}
        }
        let (before, device) = {
            let mut options = self.options.lock();
            let before = options.ip.device;
            options.set_on(&self.stack, &self.cred, libc::SOCK_DGRAM, option, value)?;
            (before, options.ip.device)
        };
        if device != before
            && let Some(lease) = &self.state.lock().lease
        {
            self.stack.rebind(lease, device);
        }
        Ok(())
    }

    fn timeout(&self, send: bool) -> Option<Duration> {
        let options = self.options.lock();
        if send { options.send_timeout } else { options.receive_timeout }
    }
}
