//! The way in: from an Ethernet frame to the protocol that takes it. Every byte may be hostile.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress, checksum};

use super::Stack;
use super::counters::{Icmp, Ip, Slot, Tcp, Udp};
use super::iface::{Interface, LOOPBACK};
use super::packet::{self, Fault, Fragment, ICMP, ICMPV6, Packet, TCP, UDP};
use super::reassembly::Outcome;
use crate::errno::Errno;
use crate::netstack::device::vnet;
use crate::netstack::device::{ETHERNET_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Received};
use crate::netstack::{raw, tcp, udp};
use crate::timer::clock::monotonic;
use crate::timer::{TimerId, TimerTarget};

/// Gives up packets that did not become whole.
struct FragmentTimer(Weak<Stack>);

impl TimerTarget for FragmentTimer {
    fn expired(&self, _id: TimerId) {
        if let Some(stack) = self.0.upgrade() {
            stack.expire_fragments();
        }
    }
}

/// A packet's link-layer side.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The sender's link-layer address; zero from this host.
    pub mac: [u8; 6],
    /// The interface's index.
    pub interface: u32,
    /// The transport checksum needs no look.
    pub valid: bool,
    /// It is several UDP datagrams with one header, each but the last with so many bytes.
    pub datagrams: Option<NonZeroU16>,
}

impl Stack {
    /// Takes a frame from an interface's device.
    pub(super) fn input_frame(&self, interface: &Interface, received: Received<'_>) {
        let frame = &*received.frame;
        let Some((header, payload)) = frame.split_first_chunk::<ETHERNET_LEN>() else { return };
        let destination: [u8; 6] = header[..6].try_into().unwrap_or_default();
        let mac: [u8; 6] = header[6..12].try_into().unwrap_or_default();
        if destination != interface.mac && destination[0] & 1 == 0 {
            return;
        }
        let arrival = Arrival {
            mac,
            interface: interface.index,
            valid: received.offload.valid,
            datagrams: received.offload.datagrams,
        };
        match u16::from_be_bytes([header[12], header[13]]) {
            ETHERTYPE_ARP => self.input_arp(interface, payload),
            ETHERTYPE_IPV4 => self.input_packet(payload, arrival, false),
            ETHERTYPE_IPV6 => self.input_packet(payload, arrival, true),
            _ => {
                interface.stats().rx_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn input_packet(&self, bytes: &[u8], arrival: Arrival, v6: bool) {
        self.counters.count(Ip::InReceives.of(v6));
        if v6 && self.interfaces.get(arrival.interface).is_some_and(|interface| interface.v6.is_off()) {
            return self.counters.count(Ip::InDiscards.of(v6));
        }
        let Some(packet) = Packet::parse(bytes).filter(|packet| packet.source.is_ipv6() == v6) else {
            return self.count_broken(bytes, v6);
        };
        let ours = self.interfaces.is_local(packet.destination);
        // Loopback addresses never come from a wire, and nobody else sends from ours: RFC 1122, 3.2.1.3.
        let spoofed = self.interfaces.is_local(packet.source) || packet.source.is_multicast();
        let loopback = packet.destination.is_loopback();
        let group = packet.destination.is_multicast() || self.interfaces.is_broadcast(packet.destination);
        self.count_arrival(&packet);
        if spoofed || loopback || !(ours || group) {
            return self.counters.count(Ip::InAddrErrors.of(v6));
        }
        self.dispatch(&packet, arrival);
    }

    /// Counts what is no packet by what is wrong with it first.
    fn count_broken(&self, bytes: &[u8], v6: bool) {
        let counter = match packet::fault(bytes, v6) {
            Fault::Header => Ip::InHdrErrors,
            Fault::Checksum => {
                self.counters.count(Ip::InCsumErrors.of(v6));
                Ip::InHdrErrors
            }
            Fault::Truncated => Ip::InTruncatedPkts,
        };
        self.counters.count(counter.of(v6));
    }

    fn count_arrival(&self, packet: &Packet<'_>) {
        let (v6, bytes) = (packet.source.is_ipv6(), packet.bytes.len() as u64);
        self.counters.add(Ip::InOctets.of(v6), bytes);
        // RFC 3168, 5.
        let codepoints = [Ip::InNoECTPkts, Ip::InECT1Pkts, Ip::InECT0Pkts, Ip::InCEPkts];
        self.counters.count(codepoints[usize::from(packet.tos & 3)].of(v6));
        if packet.destination.is_multicast() {
            self.counters.count(Ip::InMcastPkts.of(v6));
            self.counters.add(Ip::InMcastOctets.of(v6), bytes);
        } else if self.interfaces.is_broadcast(packet.destination) {
            self.counters.count(Ip::InBcastPkts.of(v6));
            self.counters.add(Ip::InBcastOctets.of(v6), bytes);
        }
    }

    /// A packet of this host's to itself.
    pub(super) fn loop_back(&self, bytes: &[u8]) {
        let Some(packet) = Packet::parse(bytes) else { return };
        let stats = self.interfaces.loopback().stats();
        stats.sent(bytes.len());
        stats.received(bytes.len());
        self.counters.count(Ip::InReceives.of(packet.source.is_ipv6()));
        self.count_arrival(&packet);
        self.dispatch(&packet, Arrival { mac: [0; 6], interface: LOOPBACK, valid: true, datagrams: None });
    }

    fn dispatch(&self, packet: &Packet<'_>, arrival: Arrival) {
        if let Some(fragment) = packet.fragment {
            let Some(whole) = self.reassemble(packet, fragment) else { return };
            if let Some(packet) = Packet::parse(&whole).filter(|packet| packet.fragment.is_none()) {
                self.dispatch(&packet, Arrival { valid: false, datagrams: None, ..arrival });
            }
            return;
        }
        let v6 = packet.source.is_ipv6();
        let taken = raw::input(self, packet, arrival.interface);
        let known = match packet.protocol {
            TCP | UDP => true,
            ICMP => !v6,
            ICMPV6 => v6,
            _ => false,
        };
        self.counters.count(if known || taken { Ip::InDelivers } else { Ip::InUnknownProtos }.of(v6));
        let right = || arrival.valid || checksum_is_right(packet);
        match packet.protocol {
            TCP if right() => tcp::input(self, packet, arrival.interface),
            TCP => self.wrong_checksum(Tcp::InErrs.into(), Tcp::InCsumErrors.into()),
            UDP if right() => udp::input(self, packet, arrival),
            UDP => self.wrong_checksum(Udp::InErrors.of(v6), Udp::InCsumErrors.of(v6)),
            ICMP if !v6 && checksum::data(packet.payload) == !0 => self.input_icmp(packet),
            ICMPV6 if v6 && right() => self.input_icmpv6(packet, arrival),
            ICMP | ICMPV6 if known => {
                self.counters.count(Icmp::InMsgs.of(v6));
                self.wrong_checksum(Icmp::InErrors.of(v6), Icmp::InCsumErrors.of(v6));
            }
            _ => {}
        }
    }

    /// Adds a fragment to what there is of its packet; that packet, when it is complete.
    fn reassemble(&self, packet: &Packet<'_>, fragment: Fragment) -> Option<Vec<u8>> {
        let v6 = packet.source.is_ipv6();
        self.counters.count(Ip::ReasmReqds.of(v6));
        match self.reassembly.add(packet, fragment) {
            Outcome::Whole(whole) => {
                self.counters.count(Ip::ReasmOKs.of(v6));
                return Some(whole);
            }
            Outcome::Failed { overlap } => {
                if overlap {
                    self.counters.count(Ip::ReasmOverlaps.of(v6));
                }
                self.counters.count(Ip::ReasmFails.of(v6));
            }
            Outcome::Waits { timer: true } => self.expire_fragments(),
            Outcome::Waits { timer: false } => {}
        }
        None
    }

    /// Gives up packets whose pieces did not come, and does so again when more are due.
    fn expire_fragments(&self) {
        let expired = self.reassembly.expire();
        for v6 in [false, true] {
            let (timed_out, displaced) = (expired.timed_out[usize::from(v6)], expired.displaced[usize::from(v6)]);
            self.counters.add(Ip::ReasmTimeout.of(v6), timed_out);
            self.counters.add(Ip::ReasmFails.of(v6), timed_out + displaced);
        }
        if let Some(next) = expired.next {
            let timer = Arc::new(FragmentTimer(self.me.clone()));
            self.timers.add(monotonic() + next.as_nanos() as u64, timer);
        }
    }

    fn wrong_checksum(&self, errors: Slot, checksums: Slot) {
        self.counters.count(errors);
        self.counters.count(checksums);
    }

    fn input_arp(&self, interface: &Interface, payload: &[u8]) {
        let Ok(arp) = ArpPacket::new_checked(payload) else { return };
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = ArpRepr::parse(&arp)
        else {
            return;
        };
        let source = IpAddr::V4(source_protocol_addr);
        let usable = source_hardware_addr.is_unicast() && !source_protocol_addr.is_multicast();
        if !usable || self.interfaces.is_local(source) || self.interfaces.is_broadcast(source) {
            return;
        }
        let for_us = !target_protocol_addr.is_loopback() && self.interfaces.is_local(target_protocol_addr.into());
        let asks = operation == ArpOperation::Request;
        if !source_protocol_addr.is_unspecified() {
            let waiting = interface.neighbours.learn(source, source_hardware_addr.0, for_us && asks);
            self.send_waiting(interface, waiting, source_hardware_addr.0);
        }
        if for_us && asks {
            self.send_arp(
                interface,
                &ArpRepr::EthernetIpv4 {
                    operation: ArpOperation::Reply,
                    source_hardware_addr: EthernetAddress(interface.mac),
                    source_protocol_addr: target_protocol_addr,
                    target_hardware_addr: source_hardware_addr,
                    target_protocol_addr: source_protocol_addr,
                },
            );
        }
    }

    /// A packet of ours, of which `bytes` is the beginning, could not be delivered: tells its sender.
    pub(super) fn transport_error(&self, bytes: &[u8], error: Errno) {
        let Some((source, destination, protocol, payload)) = parse_quoted(bytes) else { return };
        let Some(ports) = payload.first_chunk::<4>() else { return };
        let local = (source, u16::from_be_bytes([ports[0], ports[1]])).into();
        let remote = (destination, u16::from_be_bytes([ports[2], ports[3]])).into();
        match protocol {
            TCP => tcp::unreachable(self, local, remote, error),
            UDP => udp::unreachable(self, local, remote, error),
            _ => {}
        }
    }
}

/// The beginning of a packet, as an ICMP error quotes it: addresses, protocol, and what follows.
fn parse_quoted(bytes: &[u8]) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    match bytes.first()? >> 4 {
        4 => {
            let header: &[u8; 20] = bytes.first_chunk()?;
            let source: [u8; 4] = *header[12..].first_chunk()?;
            let destination: [u8; 4] = *header[16..].first_chunk()?;
            let payload = bytes.get(usize::from(header[0] & 15) * 4..)?;
            Some((source.into(), destination.into(), header[9], payload))
        }
        6 => {
            let header: &[u8; 40] = bytes.first_chunk()?;
            let source: [u8; 16] = *header[8..].first_chunk()?;
            let destination: [u8; 16] = *header[24..].first_chunk()?;
            Some((source.into(), destination.into(), header[6], &bytes[40..]))
        }
        _ => None,
    }
}

fn checksum_is_right(packet: &Packet<'_>) -> bool {
    // A UDP sender may do without, in IPv4.
    let none = packet.protocol == UDP && packet.source.is_ipv4() && packet.payload.get(6..8) == Some(&[0, 0]);
    none || vnet::verify(packet.source.into(), packet.destination.into(), packet.protocol, packet.payload)
}

#[cfg(test)]
impl Stack {
    /// A frame, its checksums vouched for, as if the device had given it.
    pub fn inject(&self, frame: &mut [u8]) {
        let offload = vnet::Offload { valid: true, ..vnet::Offload::default() };
        if let Some(interface) = self.interfaces.devices().first() {
            self.input_frame(interface, Received { frame, offload });
        }
    }
}
