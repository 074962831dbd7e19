//! The way out: IP, neighbours, the device.

use std::net::IpAddr;
use std::sync::Weak;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::Stack;
use super::counters::Ip;
use super::iface::{Interface, Route};
use super::neighbour::{Answer, RETRY, Retry, Waiting};
use super::packet::{self, Header, ICMP, ICMPV6};
use crate::errno::{Errno, Result};
use crate::netstack::device::vnet::{self, Offload, Partial};
use crate::netstack::device::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Frame, MAX_PACKET};
use crate::timer::clock::monotonic;
use crate::timer::{TimerId, TimerTarget};

const BROADCAST: [u8; 6] = [0xff; 6];

/// Asks for a neighbour again, or gives up.
struct NeighbourTimer {
    stack: Weak<Stack>,
    interface: u32,
    addr: IpAddr,
}

impl TimerTarget for NeighbourTimer {
    fn expired(&self, _id: TimerId) {
        let Some(stack) = self.stack.upgrade() else { return };
        let Some(interface) = stack.interfaces.get(self.interface) else { return };
        match interface.neighbours.retry(self.addr) {
            Retry::Ask => stack.ask_for(interface, self.addr, None),
            Retry::Failed(packets) => {
                for waiting in packets {
                    stack.transport_error(&waiting.packet, Errno::EHOSTUNREACH);
                }
                return;
            }
            Retry::Done => return,
        }
        stack.ask_again_later(interface, self.addr);
    }
}

impl Stack {
    /// Sends the IP packet in `frame`, which is not for this host, out of an interface by way of `next_hop`.
    pub fn transmit(&self, frame: &mut Frame, interface: u32, next_hop: IpAddr, offload: Offload) {
        let Some(interface) = self.interfaces.get(interface) else { return };
        if next_hop.is_ipv6() && interface.v6.is_off() {
            return self.counters.count(Ip::OutDiscards.of(true));
        }
        let mac = match link_layer_broadcast(self, next_hop) {
            Some(mac) => mac,
            None => {
                let waiting = || Waiting { packet: frame.packet().to_vec(), offload };
                match interface.neighbours.resolve(next_hop, waiting) {
                    Answer::Known(mac) => mac,
                    Answer::Stale(mac) => {
                        self.ask_for(interface, next_hop, Some(mac));
                        mac
                    }
                    Answer::Ask => {
                        self.ask_for(interface, next_hop, None);
                        return self.ask_again_later(interface, next_hop);
                    }
                    Answer::Wait => return,
                }
            }
        };
        send_to(interface, frame, mac, offload);
    }

    fn ask_again_later(&self, interface: &Interface, addr: IpAddr) {
        let timer = NeighbourTimer { stack: self.me.clone(), interface: interface.index, addr };
        self.timers.add(monotonic() + RETRY.as_nanos() as u64, std::sync::Arc::new(timer));
    }

    /// Sends what waited for a neighbour that has answered.
    pub(super) fn send_waiting(&self, interface: &Interface, packets: Vec<Waiting>, mac: [u8; 6]) {
        for waiting in packets {
            self.frames.with(|frame| {
                frame.start(waiting.packet.len()).copy_from_slice(&waiting.packet);
                send_to(interface, frame, mac, waiting.offload);
            });
        }
    }

    /// Asks everybody for a neighbour, or `mac` whether it still is that.
    fn ask_for(&self, interface: &Interface, addr: IpAddr, mac: Option<[u8; 6]>) {
        match addr {
            IpAddr::V4(target) => {
                let Some(IpAddr::V4(source)) = interface.source_for(addr) else { return };
                self.send_arp(
                    interface,
                    &ArpRepr::EthernetIpv4 {
                        operation: ArpOperation::Request,
                        source_hardware_addr: EthernetAddress(interface.mac),
                        source_protocol_addr: source,
                        target_hardware_addr: EthernetAddress(mac.unwrap_or(BROADCAST)),
                        target_protocol_addr: target,
                    },
                );
            }
            IpAddr::V6(target) => self.solicit(interface, target),
        }
    }

    /// Sends an ARP packet to its target's link-layer address.
    pub(super) fn send_arp(&self, interface: &Interface, repr: &ArpRepr) {
        let Some(tap) = &interface.tap else { return };
        let ArpRepr::EthernetIpv4 { target_hardware_addr, .. } = repr else { return };
        self.frames.with(|frame| {
            repr.emit(&mut ArpPacket::new_unchecked(frame.start(repr.buffer_len())));
            let ethernet =
                Ethernet { destination: target_hardware_addr.0, source: interface.mac, ethertype: ETHERTYPE_ARP };
            tap.send(frame, &ethernet, Offload::default());
        });
    }

    /// Builds an IP packet whose payload of `len` bytes `fill` writes, and sends it to a route: out, or back in. When
    /// `checksum` is given, that field (an offset in the payload) gets the Internet checksum with a pseudo header.
    ///
    /// `EMSGSIZE` when it is longer than a packet can be, or than fits the interface while `header` forbids to cut it.
    pub fn send_packet(
        &self,
        route: &Route,
        header: &Header,
        len: usize,
        checksum: Option<u16>,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let start = header.size();
        if start + len > MAX_PACKET {
            return Err(Errno::EMSGSIZE);
        }
        let mtu = self.interfaces.get(route.interface).map_or(1500, |interface| interface.mtu as usize);
        if header.whole && start + len > mtu {
            self.counters.count(Ip::FragFails.of(header.source.is_ipv6()));
            return Err(Errno::EMSGSIZE);
        }
        self.frames.with(|frame| {
            let bytes = frame.start(start + len);
            header.write(bytes);
            fill(&mut bytes[start..])?;
            self.count_request(header, start + len);
            if let (ICMP | ICMPV6, Some(&kind)) = (header.protocol, bytes.get(start)) {
                self.counters.icmp(header.source.is_ipv6(), true, kind);
            }
            let mut offload = Offload::default();
            if let Some(offset) = checksum {
                let field = start + usize::from(offset);
                let sum = vnet::pseudo_header(header.source.into(), header.destination.into(), header.protocol, len);
                bytes.get_mut(field..field + 2).ok_or(Errno::EINVAL)?.copy_from_slice(&sum.to_be_bytes());
                offload.partial = Some(Partial { start: start as u16, offset });
            }
            if route.local || route.broadcast {
                offload.complete(frame.packet_mut());
                offload.partial = None;
                self.loop_back(frame.packet());
            }
            // What goes to a neighbour of `lo` has arrived, and nobody takes it.
            if !route.leaves() {
                return Ok(());
            }
            if frame.len() > mtu {
                offload.complete(frame.packet_mut());
                return self.send_fragments(route, header, frame.packet(), mtu);
            }
            self.transmit(frame, route.interface, route.next_hop, offload);
            Ok(())
        })
    }

    /// Sends a complete IPv4 packet as it is to a route: out, or back in. `header` says for whom it counts.
    ///
    /// `EMSGSIZE` when it does not fit the interface.
    pub fn send_whole(&self, route: &Route, header: &Header, bytes: &[u8]) -> Result<()> {
        let mtu = self.interfaces.get(route.interface).map_or(1500, |interface| interface.mtu as usize);
        if bytes.len() > mtu {
            return Err(Errno::EMSGSIZE);
        }
        self.frames.with(|frame| {
            frame.start(bytes.len()).copy_from_slice(bytes);
            self.count_request(header, bytes.len());
            if let (Some(&protocol), Some(&kind)) = (bytes.get(9), bytes.get(header.size()))
                && protocol == ICMP
            {
                self.counters.icmp(false, true, kind);
            }
            if route.local || route.broadcast {
                self.loop_back(frame.packet());
            }
            if route.leaves() {
                self.transmit(frame, route.interface, route.next_hop, Offload::default());
            }
            Ok(())
        })
    }

    /// Counts a packet that is about to be sent.
    pub(in crate::netstack) fn count_request(&self, header: &Header, len: usize) {
        let (v6, bytes) = (header.source.is_ipv6(), len as u64);
        self.counters.count(Ip::OutRequests.of(v6));
        self.counters.count(Ip::OutTransmits.of(v6));
        self.counters.add(Ip::OutOctets.of(v6), bytes);
        if header.destination.is_multicast() {
            self.counters.count(Ip::OutMcastPkts.of(v6));
            self.counters.add(Ip::OutMcastOctets.of(v6), bytes);
        } else if self.interfaces.is_broadcast(header.destination) {
            self.counters.count(Ip::OutBcastPkts.of(v6));
            self.counters.add(Ip::OutBcastOctets.of(v6), bytes);
        }
    }

    /// Cuts a packet into pieces that fit `mtu`. `EMSGSIZE` where that is not allowed.
    fn send_fragments(&self, route: &Route, header: &Header, whole: &[u8], mtu: usize) -> Result<()> {
        let start = header.size();
        let (extra, id) = match header.source {
            IpAddr::V4(_) => (0, super::random_u64() as u32 | 1),
            IpAddr::V6(_) => (8, super::random_u64() as u32),
        };
        let room = mtu.saturating_sub(start + extra) & !7;
        if room == 0 {
            return Err(Errno::EMSGSIZE);
        }
        let payload = &whole[start..];
        let v6 = header.source.is_ipv6();
        self.counters.count(Ip::FragOKs.of(v6));
        self.counters.add(Ip::FragCreates.of(v6), payload.len().div_ceil(room) as u64);
        for (n, piece) in payload.chunks(room).enumerate() {
            let offset = n * room;
            let more = offset + piece.len() < payload.len();
            self.frames.with(|frame| {
                let bytes = frame.start(start + extra + piece.len());
                bytes[start + extra..].copy_from_slice(piece);
                if extra == 0 {
                    header.write(bytes);
                    bytes[4..6].copy_from_slice(&(id as u16).to_be_bytes());
                    let word = (offset / 8) as u16 | u16::from(more) << 13;
                    bytes[6..8].copy_from_slice(&word.to_be_bytes());
                    packet::fill_ipv4_checksum(bytes);
                } else {
                    Header { protocol: 44, ..*header }.write(bytes);
                    bytes[start..start + 2].copy_from_slice(&[header.protocol, 0]);
                    bytes[start + 2..start + 4].copy_from_slice(&(offset as u16 | u16::from(more)).to_be_bytes());
                    bytes[start + 4..start + 8].copy_from_slice(&id.to_be_bytes());
                }
                self.transmit(frame, route.interface, route.next_hop, Offload::default());
            });
        }
        Ok(())
    }
}

fn send_to(interface: &Interface, frame: &mut Frame, mac: [u8; 6], offload: Offload) {
    let Some(tap) = &interface.tap else { return };
    let v4 = frame.packet().first().is_some_and(|byte| byte >> 4 == 4);
    let ethertype = if v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    tap.send(frame, &Ethernet { destination: mac, source: interface.mac, ethertype }, offload);
}

/// The link-layer address of a broadcast or multicast address: RFC 1112, 6.4; RFC 2464, 7.
fn link_layer_broadcast(stack: &Stack, addr: IpAddr) -> Option<[u8; 6]> {
    match addr {
        _ if stack.interfaces.is_broadcast(addr) => Some(BROADCAST),
        IpAddr::V4(v4) if v4.is_multicast() => {
            let [_, b, c, d] = v4.octets();
            Some([1, 0, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(v6) if v6.is_multicast() => {
            let [.., a, b, c, d] = v6.octets();
            Some([0x33, 0x33, a, b, c, d])
        }
        _ => None,
    }
}
