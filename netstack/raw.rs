//! Raw sockets (`raw(7)`) and ping sockets (`SOCK_DGRAM` with `IPPROTO_ICMP` or `IPPROTO_ICMPV6`, `icmp(7)`).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use smoltcp::wire::checksum;

use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::netstack::options::Common;
use crate::netstack::stack::packet::{Header, ICMP, ICMPV6, Packet, be16, fill_ipv4_checksum, identification};
use crate::netstack::stack::{SocketCred, Stack, random_u64};
use crate::netstack::{Ancillary, Endpoint, Message, RecvFlags, SockAddr, Socket, SocketOption, addr};
use crate::vfs::anon::{AnonAttr, DEV_SOCKET};
use crate::vfs::file::IoctlMemory;
use crate::vfs::inode::NodeType;
use crate::wait::{Events, WaitQueue};

/// What Linux counts for a packet beside its bytes.
const OVERHEAD: usize = 768;
const IPV4_LEN: usize = 20;
/// `SOL_RAW`'s `ICMP_FILTER`; `SOL_ICMPV6`'s `ICMPV6_FILTER`; `IPPROTO_RAW`'s `IPV6_CHECKSUM`.
const ICMP_FILTER: i32 = 1;
const SOL_RAW: i32 = 255;
const IPV6_CHECKSUM: i32 = 7;

/// The raw and ping sockets.
#[derive(Default)]
pub struct Table {
    /// How many there are: most sandboxes have none.
    count: AtomicUsize,
    all: RwLock<Vec<Weak<RawSocket>>>,
}

struct Received {
    from: IpAddr,
    ttl: u8,
    interface: u32,
    to: IpAddr,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct State {
    addr: Option<IpAddr>,
    peer: Option<IpAddr>,
    queue: VecDeque<Received>,
    queued: usize,
    error: Option<Errno>,
    /// Bit n: ICMP type n is not wanted.
    icmp_filter: u32,
    /// The same for ICMPv6, in its own form.
    icmpv6_filter: [u8; 32],
    shut_read: bool,
}

/// A raw or ping socket.
pub struct RawSocket {
    me: Weak<RawSocket>,
    stack: Arc<Stack>,
    domain: i32,
    protocol: u8,
    /// The identifier of a ping socket's echo requests.
    ident: Option<u16>,
    cred: SocketCred,
    attr: AnonAttr,
    waiters: WaitQueue,
    state: Mutex<State>,
    /// Leaf lock.
    options: Mutex<Common>,
}

/// Gives a packet to every raw and ping socket that wants it. Whether one did.
pub fn input(stack: &Stack, packet: &Packet<'_>, interface: u32) -> bool {
    if stack.raw.count.load(Ordering::Relaxed) == 0 {
        return false;
    }
    let mut taken = false;
    let sockets: Vec<Arc<RawSocket>> = stack.raw.all.read().iter().filter_map(Weak::upgrade).collect();
    for socket in sockets.iter().filter(|socket| socket.wants(packet, interface)) {
        taken = true;
        let bytes = if packet.source.is_ipv4() && socket.ident.is_none() { packet.bytes } else { packet.payload };
        socket.enqueue(Received {
            from: packet.source,
            ttl: packet.ttl,
            interface,
            to: packet.destination,
            bytes: bytes.to_vec(),
        });
    }
    taken
}

impl RawSocket {
    /// `socket(2)`. A ping socket when `ping`.
    pub fn new(stack: &Arc<Stack>, domain: i32, protocol: u8, ping: bool, cred: SocketCred) -> Arc<RawSocket> {
        let made = Arc::new_cyclic(|me| RawSocket {
            me: me.clone(),
            stack: stack.clone(),
            domain,
            protocol,
            ident: ping.then(|| random_u64() as u16),
            cred,
            attr: AnonAttr::new(DEV_SOCKET, NodeType::Socket, 0o777, (cred.uid, cred.gid)),
            waiters: WaitQueue::new(),
            state: Mutex::default(),
            options: Mutex::new(Common::new(stack.settings(), stack.settings().default_buffers())),
        });
        stack.raw.all.write().push(made.me.clone());
        stack.raw.count.fetch_add(1, Ordering::Relaxed);
        made
    }

    fn wants(&self, packet: &Packet<'_>, interface: u32) -> bool {
        let v4 = packet.source.is_ipv4();
        if v4 != (self.domain == libc::AF_INET) || packet.protocol != self.protocol {
            return false;
        }
        if !self.options.lock().ip.takes_from(interface) {
            return false;
        }
        let state = self.state.lock();
        if state.addr.is_some_and(|addr| addr != packet.destination)
            || state.peer.is_some_and(|peer| peer != packet.source)
        {
            return false;
        }
        let Some(&kind) = packet.payload.first() else { return self.ident.is_none() };
        if let Some(ident) = self.ident {
            let reply = if v4 { 0 } else { 129 };
            return kind == reply && packet.payload.len() >= 8 && be16(packet.payload, 4) == ident;
        }
        match self.protocol {
            ICMP => kind >= 32 || state.icmp_filter >> kind & 1 == 0,
            ICMPV6 => {
                let word = usize::from(kind >> 5) * 4;
                let bits =
                    state.icmpv6_filter[word..word + 4].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
                bits >> (kind & 31) & 1 == 0
            }
            _ => true,
        }
    }

    fn enqueue(&self, received: Received) {
        let room = self.options.lock().receive_buf;
        let mut state = self.state.lock();
        let size = received.bytes.len() + OVERHEAD;
        if state.shut_read || (state.queued + size > room && !state.queue.is_empty()) {
            return;
        }
        state.queued += size;
        state.queue.push_back(received);
        drop(state);
        self.waiters.wake(Events::READ);
    }

    fn transmit(&self, remote: IpAddr, data: &mut dyn Source) -> Result<usize> {
        let len = data.left();
        let own = self.state.lock().addr;
        let options = self.options.lock().clone();
        let header_included = self.domain == libc::AF_INET
            && (options.is_set(libc::IPPROTO_IP, libc::IP_HDRINCL) || i32::from(self.protocol) == libc::IPPROTO_RAW);
        let mut route = self.stack.way_out(remote, options.device(remote))?;
        if route.broadcast && !remote.is_multicast() && !options.is_set(libc::SOL_SOCKET, libc::SO_BROADCAST) {
            return Err(Errno::EACCES);
        }
        route.broadcast &= !remote.is_multicast() || options.loops(remote);
        let header = Header {
            source: own.or(options.multicast_source(remote)).unwrap_or(route.source),
            destination: if remote.is_unspecified() { route.next_hop } else { remote },
            protocol: self.protocol,
            ttl: options.hops(remote),
            tos: options.ip.tos(remote),
            id: if options.ip.dont_fragment(remote) { 0 } else { identification() },
            // A packet with its own header is never cut.
            whole: header_included || options.ip.whole(remote),
        };
        let bytes = data.take_vec(len)?;
        if bytes.len() < len {
            return Err(Errno::EFAULT);
        }
        if header_included {
            return self.transmit_whole(&header, &route, bytes).map(|()| len);
        }
        let checksum_at = (self.protocol == ICMPV6).then_some(2);
        let bytes = match self.ident {
            Some(ident) => self.echo_request(bytes, ident)?,
            None => bytes,
        };
        self.stack.send_packet(&route, &header, bytes.len(), checksum_at, |to| {
            to.copy_from_slice(&bytes);
            if checksum_at.is_some() && to.len() < 4 {
                return Err(Errno::EINVAL);
            }
            Ok(())
        })?;
        Ok(len)
    }

    /// With the socket's own identifier. `EINVAL` when it is no echo request.
    fn echo_request(&self, mut bytes: Vec<u8>, ident: u16) -> Result<Vec<u8>> {
        let request = if self.domain == libc::AF_INET { 8 } else { 128 };
        if bytes.len() < 8 || bytes[0] != request || bytes[1] != 0 {
            return Err(Errno::EINVAL);
        }
        bytes[4..6].copy_from_slice(&ident.to_be_bytes());
        bytes[2..4].fill(0);
        if self.domain == libc::AF_INET {
            let sum = !checksum::data(&bytes);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        Ok(bytes)
    }

    /// A packet with its IPv4 header: length and checksum are filled in, and the source and the identification when there is
    /// none. Where it goes, `route` says and not its header.
    fn transmit_whole(&self, header: &Header, route: &crate::netstack::stack::Route, mut bytes: Vec<u8>) -> Result<()> {
        if bytes.len() < IPV4_LEN || bytes[0] != 0x45 {
            return Err(Errno::EINVAL); // options in the header are not supported
        }
        let len = u16::try_from(bytes.len()).map_err(|_| Errno::EMSGSIZE)?;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        if bytes[4..6] == [0, 0] {
            bytes[4..6].copy_from_slice(&identification().to_be_bytes());
        }
        if let (IpAddr::V4(source), [0, 0, 0, 0]) = (header.source, [bytes[12], bytes[13], bytes[14], bytes[15]]) {
            bytes[12..16].copy_from_slice(&source.octets());
        }
        fill_ipv4_checksum(&mut bytes);
        self.stack.send_whole(route, header, &bytes)
    }

    fn control(&self, received: &Received) -> Vec<(i32, i32, Vec<u8>)> {
        let options = self.options.lock();
        let mut all = Vec::new();
        if options.is_set(libc::SOL_SOCKET, libc::SO_TIMESTAMP) {
            let now = crate::vfs::inode::TimeSpec::now();
            let value = [now.sec.to_ne_bytes(), i64::from(now.nsec / 1000).to_ne_bytes()].concat();
            all.push((libc::SOL_SOCKET, libc::SO_TIMESTAMP, value));
        }
        let hops = i32::from(received.ttl).to_ne_bytes().to_vec();
        match received.to {
            IpAddr::V4(_) if options.is_set(libc::IPPROTO_IP, libc::IP_RECVTTL) => {
                all.push((libc::IPPROTO_IP, libc::IP_TTL, hops));
            }
            IpAddr::V6(to) => {
                if options.is_set(libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT) {
                    all.push((libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, hops));
                }
                if options.is_set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO) {
                    let info = [&to.octets()[..], &received.interface.to_ne_bytes()].concat();
                    all.push((libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info));
                }
            }
            IpAddr::V4(_) => {}
        }
        all
    }
}

impl Drop for RawSocket {
    fn drop(&mut self) {
        self.stack.raw.all.write().retain(|known| !known.ptr_eq(&self.me));
        self.stack.raw.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Endpoint for RawSocket {
    fn attr(&self) -> &AnonAttr {
        &self.attr
    }

    fn waiters(&self) -> &WaitQueue {
        &self.waiters
    }

    fn readiness(&self) -> Events {
        let state = self.state.lock();
        let mut events = Events::WRITE;
        if !state.queue.is_empty() || state.shut_read {
            events |= Events::READ;
        }
        events.set(Events::RDHUP, state.shut_read);
        events.set(Events::ERR, state.error.is_some());
        events
    }

    fn control(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        let first = self.state.lock().queue.front().map_or(0, |received| received.bytes.len());
        crate::netstack::ioctl::ioctl(&self.stack, mem, cmd, arg, (first, 0))
    }
}

impl Socket for RawSocket {
    fn domain(&self) -> (i32, i32, i32) {
        let kind = if self.ident.is_some() { libc::SOCK_DGRAM } else { libc::SOCK_RAW };
        (self.domain, kind, self.protocol.into())
    }

    fn bind(&self, addr: &SockAddr) -> Result<()> {
        let addr = addr::from_user(self.domain, addr)?.ip();
        if !addr.is_unspecified() && !self.stack.interfaces().may_bind(addr) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        self.state.lock().addr = (!addr.is_unspecified()).then_some(addr);
        Ok(())
    }

    fn connect(&self, addr: &SockAddr) -> Result<()> {
        if *addr == SockAddr::Unspecified {
            self.state.lock().peer = None;
            return Ok(());
        }
        let remote = addr::to_connect(addr::from_user(self.domain, addr)?).ip();
        let device = self.options.lock().device(remote);
        let route = self.stack.interfaces().route_by(remote, device)?;
        let mut state = self.state.lock();
        state.peer = Some(remote);
        state.addr.get_or_insert(route.source);
        Ok(())
    }

    fn shutdown(&self, how: i32) -> Result<()> {
        let mut state = self.state.lock();
        if state.peer.is_none() {
            return Err(Errno::ENOTCONN);
        }
        state.shut_read |= how != libc::SHUT_WR;
        drop(state);
        self.waiters.wake(Events::READ | Events::RDHUP);
        Ok(())
    }

    fn local_name(&self) -> Result<SockAddr> {
        let port = self.ident.unwrap_or(self.protocol.into());
        Ok(match self.state.lock().addr {
            Some(ip) => self.stack.shown(self.domain, SocketAddr::new(ip, port)),
            None => addr::unspecified(self.domain, port),
        })
    }

    fn peer_name(&self) -> Result<SockAddr> {
        let peer = self.state.lock().peer.ok_or(Errno::ENOTCONN)?;
        Ok(self.stack.shown(self.domain, SocketAddr::new(peer, 0)))
    }

    fn send(&self, source: &mut dyn Source, to: Option<&SockAddr>, _ancillary: Ancillary, flags: i32) -> Result<usize> {
        if flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let peer = {
            let mut state = self.state.lock();
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            state.peer
        };
        let remote = match to {
            Some(to) => addr::from_user(self.domain, to)?.ip(),
            None => peer.ok_or(Errno::EDESTADDRREQ)?,
        };
        if remote.is_ipv4() != (self.domain == libc::AF_INET) {
            return Err(Errno::ENETUNREACH);
        }
        self.transmit(remote, source)
    }

    fn recv(&self, sink: &mut dyn Sink, flags: RecvFlags) -> Result<Message> {
        if flags.contains(RecvFlags::OOB) {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut state = self.state.lock();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        let received = if flags.contains(RecvFlags::ERRQUEUE) { None } else { state.queue.pop_front() };
        let Some(received) = received else {
            return if state.shut_read { Ok(Message::default()) } else { Err(Errno::EAGAIN) };
        };
        if flags.contains(RecvFlags::PEEK) {
            let copy = Received { bytes: received.bytes.clone(), ..received };
            state.queue.push_front(copy);
        } else {
            state.queued = state.queued.saturating_sub(received.bytes.len() + OVERHEAD);
        }
        drop(state);
        let len = received.bytes.len().min(sink.room());
        if len > 0 && sink.put(&received.bytes[..len])? < len {
            return Err(Errno::EFAULT);
        }
        Ok(Message {
            len: if flags.contains(RecvFlags::TRUNC) { received.bytes.len() } else { len },
            from: Some(addr::to_user(self.domain, SocketAddr::new(received.from, 0), received.interface)),
            ancillary: Ancillary { other: self.control(&received), ..Ancillary::default() },
            flags: if len < received.bytes.len() { libc::MSG_TRUNC } else { 0 },
        })
    }

    fn get_option(&self, option: SocketOption, room: usize) -> Result<Vec<u8>> {
        match (option.level, option.name) {
            (libc::SOL_SOCKET, libc::SO_ERROR) => {
                Ok(self.state.lock().error.take().map_or(0, Errno::raw).to_ne_bytes().to_vec())
            }
            (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => Ok(vec![0; 4]),
            (SOL_RAW, ICMP_FILTER) if self.protocol == ICMP => Ok(self.state.lock().icmp_filter.to_ne_bytes().to_vec()),
            (libc::SOL_ICMPV6, ICMP_FILTER) if self.protocol == ICMPV6 => Ok(self.state.lock().icmpv6_filter.to_vec()),
            _ => self.options.lock().get_on(&self.stack, option, room),
        }
    }

    fn set_option(&self, option: SocketOption, value: &[u8]) -> Result<()> {
        match (option.level, option.name) {
            (SOL_RAW, ICMP_FILTER) if self.protocol == ICMP => {
                let bits = value.first_chunk().ok_or(Errno::EINVAL)?;
                self.state.lock().icmp_filter = u32::from_ne_bytes(*bits);
                Ok(())
            }
            (libc::SOL_ICMPV6, ICMP_FILTER) if self.protocol == ICMPV6 => {
                let mut filter = [0; 32];
                let len = value.len().min(32);
                filter[..len].copy_from_slice(&value[..len]);
                self.state.lock().icmpv6_filter = filter;
                Ok(())
            }
            // The kernel makes ICMPv6's checksum anyway, where it must be.
            (SOL_RAW | libc::IPPROTO_IPV6, IPV6_CHECKSUM) if self.domain == libc::AF_INET6 => {
                let at = value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL)?;
                if self.protocol == ICMPV6 && at == 2 { Ok(()) } else { Err(Errno::EINVAL) }
            }
            (libc::SOL_SOCKET, libc::SO_ERROR | libc::SO_ACCEPTCONN | libc::SO_SNDLOWAT) => Err(Errno::ENOPROTOOPT),
            _ => {
                let kind = if self.ident.is_some() { libc::SOCK_DGRAM } else { libc::SOCK_RAW };
                self.options.lock().set_on(&self.stack, &self.cred, kind, option, value)
            }
        }
    }

    fn timeout(&self, send: bool) -> Option<Duration> {
        let options = self.options.lock();
        if send { options.send_timeout } else { options.receive_timeout }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netstack::testing::*;

    fn request(kind: u8) -> Vec<u8> {
        [&[kind, 0, 0, 0, 0, 0, 0, 7], &b"payload"[..]].concat()
    }

    #[test]
    fn ping_sockets_get_their_own_answers() {
        let (one, _two) = pair(true);
        for (domain, protocol, kind, reply, targets) in [
            (libc::AF_INET, libc::IPPROTO_ICMP, 8, 0, ["10.0.0.2:0", "127.0.0.1:0"]),
            (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128, 129, ["[fd00::2]:0", "[::1]:0"]),
        ] {
            let other = one.socket(domain, libc::SOCK_DGRAM, protocol, ROOT).unwrap();
            let file = one.socket(domain, libc::SOCK_DGRAM, protocol, ROOT).unwrap();
            for target in targets {
                file.sock().send(&mut &request(kind)[..], Some(&at(target)), Ancillary::default(), 0).unwrap();
                let answer = read(&file, 100).unwrap();
                assert_eq!((answer[0], &answer[6..]), (reply, &request(kind)[6..]));
            }
            assert_eq!(read_now(&other, 100), Err(Errno::EAGAIN));
            assert!(file.sock().send(&mut &request(0)[..], Some(&at(targets[0])), Ancillary::default(), 0).is_err());
        }
    }

    #[test]
    fn raw_sockets_see_packets_and_are_for_the_privileged() {
        let (one, two) = pair(true);
        let nobody = SocketCred { net_raw: false, ..ROOT };
        assert_eq!(one.socket(libc::AF_INET, libc::SOCK_RAW, 1, nobody).err(), Some(Errno::EPERM));
        let file = one.socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP, ROOT).unwrap();
        let watcher = two.socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP, ROOT).unwrap();
        let mut echo = request(8);
        let sum = !checksum::data(&echo);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        file.sock().send(&mut &echo[..], Some(&at("10.0.0.2:0")), Ancillary::default(), 0).unwrap();
        let seen = read(&watcher, 100).unwrap();
        assert_eq!((seen[0], &seen[20..]), (0x45, &echo[..]));
        assert_eq!(read(&file, 100).unwrap()[20], 0);
    }
}
