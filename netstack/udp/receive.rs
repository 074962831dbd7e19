//! Receiving datagrams: who gets one, the queue, and what is told of each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::{HEADER, UdpSocket};
use crate::errno::{Errno, Result};
use crate::io::Sink;
use crate::netstack::stack::Stack;
use crate::netstack::stack::counters::Udp as Counter;
use crate::netstack::stack::input::Arrival;
use crate::netstack::stack::packet::{Packet, be16};
use crate::netstack::{Ancillary, Message, RecvFlags, addr};
use crate::wait::Events;

/// What Linux counts for a datagram beside its bytes.
const OVERHEAD: usize = 768;

/// A datagram that was received.
#[derive(Clone)]
pub struct Datagram {
    /// Its sender.
    pub from: SocketAddr,
    /// The address that it was sent to.
    pub to: IpAddr,
    /// The interface's index.
    pub interface: u32,
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Takes a UDP packet, its checksum verified.
pub fn input(stack: &Stack, packet: &Packet<'_>, arrival: Arrival) {
    let malformed = || stack.counters().count(Counter::InErrors.of(packet.source.is_ipv6()));
    let Some(header) = packet.payload.first_chunk::<HEADER>() else { return malformed() };
    let len = usize::from(be16(header, 4));
    let Some(bytes) = packet.payload.get(HEADER..len) else { return malformed() };
    let deliver_one = |bytes: &[u8]| {
        let datagram = Datagram {
            from: (packet.source, be16(header, 0)).into(),
            to: packet.destination,
            interface: arrival.interface,
            ttl: packet.ttl,
            tos: packet.tos,
            bytes: bytes.to_vec(),
        };
        deliver(stack, datagram, be16(header, 2))
    };
    let delivered = match arrival.datagrams {
        Some(size) if !bytes.is_empty() => bytes.chunks(size.get().into()).filter(|one| !deliver_one(one)).count() == 0,
        _ => deliver_one(bytes),
    };
    if !delivered {
        stack.port_unreachable(packet);
    }
}

/// Puts a datagram into the queue of the socket that it is for, or of all of a group. Whether there was one.
pub fn deliver(stack: &Stack, datagram: Datagram, port: u16) -> bool {
    let sockets = stack.udp.at(port);
    let count = |counter: Counter| stack.counters().count(counter.of(datagram.to.is_ipv6()));
    let group = datagram.to.is_multicast() || stack.interfaces().is_broadcast(datagram.to);
    if group {
        let mut taken = false;
        // A group that nobody here is in is not listened to.
        let heard = !datagram.to.is_multicast() || stack.udp.groups.has(&(datagram.to, datagram.interface));
        let sockets = if heard { sockets } else { Vec::new() };
        for socket in sockets.iter().filter(|socket| socket.suits(&datagram) > 0) {
            socket.enqueue(datagram.clone());
            taken = true;
        }
        if !taken {
            count(Counter::IgnoredMulti);
        }
        return true; // nobody is told that a group is empty
    }
    let best = sockets.iter().map(|socket| socket.suits(&datagram)).max().unwrap_or(0);
    if best == 0 {
        count(Counter::NoPorts);
        return false;
    }
    let suitable: Vec<&Arc<UdpSocket>> = sockets.iter().filter(|socket| socket.suits(&datagram) == best).collect();
    // Several share a port: one sender's datagrams go to the same of them.
    let nth = usize::from(datagram.from.port()) % suitable.len().max(1);
    if let Some(socket) = suitable.get(nth) {
        socket.enqueue(datagram);
    }
    true
}

/// A datagram of ours did not arrive: RFC 1122, 4.1.3.3.
pub fn unreachable(stack: &Stack, local: SocketAddr, remote: SocketAddr, error: Errno) {
    for socket in stack.udp.at(local.port()) {
        let mut state = socket.state.lock();
        if state.peer == Some(remote) && state.addr == Some(local.ip()) {
            // Only refusals are for certain; the rest is told to those who ask.
            let certain = matches!(error, Errno::ECONNREFUSED | Errno::EPROTONOSUPPORT);
            if certain || socket.is_set(libc::IPPROTO_IP, libc::IP_RECVERR) {
                state.error = Some(error);
                drop(state);
                socket.waiters.wake(Events::ERR);
            }
        }
    }
}

impl UdpSocket {
    /// How well a datagram suits it: 0 not at all, else the more the better.
    fn suits(&self, datagram: &Datagram) -> u8 {
        let state = self.state.lock();
        let Some(lease) = &state.lease else { return 0 };
        let (ip, all_groups) = {
            let options = self.options.lock();
            (options.ip, options.takes_all_groups(datagram.to))
        };
        if !ip.takes_from(datagram.interface) {
            return 0;
        }
        let group = datagram.to.is_multicast();
        let wildcard = match state.addr {
            Some(addr) if addr != datagram.to => return 0,
            Some(_) => false,
            None if !lease.binding.takes(datagram.to) => return 0,
            None => true,
        };
        if group && !all_groups && !state.groups.contains(&(datagram.to, datagram.interface)) {
            return 0;
        }
        if state.peer.is_some_and(|peer| peer != datagram.from) {
            return 0;
        }
        1 + u8::from(!wildcard) * 2
            + u8::from(state.peer.is_some()) * 4
            + u8::from(self.domain == libc::AF_INET)
            + u8::from(ip.device.is_some()) * 8
    }

    fn enqueue(&self, datagram: Datagram) {
        let room = self.options.lock().receive_buf;
        let mut state = self.state.lock();
        let size = datagram.bytes.len() + OVERHEAD;
        if state.shut_read {
            return;
        }
        if state.queued + size > room && !state.queue.is_empty() {
            state.dropped += 1;
            drop(state);
            let v6 = datagram.to.is_ipv6();
            self.stack.counters().count(Counter::RcvbufErrors.of(v6));
            return self.stack.counters().count(Counter::InErrors.of(v6));
        }
        state.queued += size;
        state.queue.push_back(datagram);
        drop(state);
        self.waiters.wake(Events::READ);
    }

    pub(super) fn receive(&self, sink: &mut dyn Sink, flags: RecvFlags) -> Result<Message> {
        if flags.contains(RecvFlags::OOB) {
            return Err(Errno::EOPNOTSUPP);
        }
        if flags.contains(RecvFlags::ERRQUEUE) {
            return Err(Errno::EAGAIN);
        }
        let mut state = self.state.lock();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        let datagram = if flags.contains(RecvFlags::PEEK) {
            state.queue.front().cloned()
        } else {
            let first = state.queue.pop_front();
            let size = first.as_ref().map_or(0, |datagram| datagram.bytes.len() + OVERHEAD);
            state.queued = state.queued.saturating_sub(size);
            first
        };
        let Some(datagram) = datagram else {
            return if state.shut_read { Ok(Message::default()) } else { Err(Errno::EAGAIN) };
        };
        drop(state);
        if !flags.contains(RecvFlags::PEEK) {
            self.stack.counters().count(Counter::InDatagrams.of(datagram.to.is_ipv6()));
        }
        let len = datagram.bytes.len().min(sink.room());
        let stored = if len > 0 { sink.put(&datagram.bytes[..len])? } else { 0 };
        if stored < len {
            return Err(Errno::EFAULT);
        }
        let cut = len < datagram.bytes.len();
        Ok(Message {
            len: if flags.contains(RecvFlags::TRUNC) { datagram.bytes.len() } else { len },
            from: Some(addr::to_user(self.domain, datagram.from, datagram.interface)),
            ancillary: Ancillary { other: self.control(&datagram), ..Ancillary::default() },
            flags: if cut { libc::MSG_TRUNC } else { 0 },
        })
    }

    /// The control messages that were asked for.
    fn control(&self, datagram: &Datagram) -> Vec<(i32, i32, Vec<u8>)> {
        let options = self.options.lock();
        let mut all = Vec::new();
        let interface = datagram.interface.to_ne_bytes();
        if options.is_set(libc::SOL_SOCKET, libc::SO_TIMESTAMP)
            || options.is_set(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)
        {
            let now = crate::vfs::inode::TimeSpec::now();
            let nanos = options.is_set(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS);
            let fraction = if nanos { i64::from(now.nsec) } else { i64::from(now.nsec / 1000) };
            let kind = if nanos { libc::SO_TIMESTAMPNS } else { libc::SO_TIMESTAMP };
            all.push((libc::SOL_SOCKET, kind, [now.sec.to_ne_bytes(), fraction.to_ne_bytes()].concat()));
        }
        match datagram.to {
            IpAddr::V4(to) => {
                if options.is_set(libc::IPPROTO_IP, libc::IP_PKTINFO) {
                    let info = [interface, to.octets(), to.octets()].concat();
                    all.push((libc::IPPROTO_IP, libc::IP_PKTINFO, info));
                }
                if options.is_set(libc::IPPROTO_IP, libc::IP_RECVTTL) {
                    all.push((libc::IPPROTO_IP, libc::IP_TTL, i32::from(datagram.ttl).to_ne_bytes().to_vec()));
                }
                if options.is_set(libc::IPPROTO_IP, libc::IP_RECVTOS) {
                    all.push((libc::IPPROTO_IP, libc::IP_TOS, vec![datagram.tos]));
                }
                if self.domain == libc::AF_INET6 && options.is_set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO) {
                    let info = [&to.to_ipv6_mapped().octets()[..], &interface].concat();
                    all.push((libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info));
                }
            }
            IpAddr::V6(to) => {
                let hops = i32::from(datagram.ttl).to_ne_bytes().to_vec();
                let class = i32::from(datagram.tos).to_ne_bytes().to_vec();
                let info = [&to.octets()[..], &interface].concat();
                for (asked, kind, value) in [
                    (libc::IPV6_RECVPKTINFO, libc::IPV6_PKTINFO, info),
                    (libc::IPV6_RECVHOPLIMIT, libc::IPV6_HOPLIMIT, hops),
                    (libc::IPV6_RECVTCLASS, libc::IPV6_TCLASS, class),
                ] {
                    if options.is_set(libc::IPPROTO_IPV6, asked) {
                        all.push((libc::IPPROTO_IPV6, kind, value));
                    }
                }
            }
        }
        all
    }
}

/// The source address that control messages ask for. `EINVAL`.
pub fn source_of(ancillary: &Ancillary) -> Result<Option<IpAddr>> {
    for (level, kind, value) in &ancillary.other {
        let addr: IpAddr = match (*level, *kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let octets: [u8; 4] = *value.get(4..).and_then(|rest| rest.first_chunk()).ok_or(Errno::EINVAL)?;
                Ipv4Addr::from(octets).into()
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let octets: [u8; 16] = *value.first_chunk().ok_or(Errno::EINVAL)?;
                let addr = Ipv6Addr::from(octets);
                addr.to_ipv4_mapped().map_or(addr.into(), IpAddr::V4)
            }
            _ => continue,
        };
        return Ok((!addr.is_unspecified()).then_some(addr));
    }
    Ok(None)
}
