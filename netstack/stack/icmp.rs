//! ICMP: RFC 792, RFC 4443, and neighbour discovery, RFC 4861.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::checksum;

use super::Stack;
use super::counters::Icmp;
use super::iface::{Interface, Route};
use super::input::Arrival;
use super::packet::{Header, ICMP, ICMPV6, Packet};
use super::settings::Number;
use crate::errno::Errno;

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO: u8 = 8;
const V6_UNREACHABLE: u8 = 1;
const V6_ECHO: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Where the checksum of ICMPv6 lies.
const CHECKSUM: u16 = 2;
/// How much of a packet an error quotes: with its own headers it stays below the smallest MTU.
const QUOTED: usize = 548;
const QUOTED_V6: usize = 1232;

impl Stack {
    pub(super) fn input_icmp(&self, packet: &Packet<'_>) {
        let Some((&[kind, code], rest)) = self.count_icmp(packet) else { return };
        match kind {
            ECHO if self.settings.is_set(Number::EchoIgnoreAll) => {}
            ECHO if self.interfaces.is_local(packet.destination) => self.echo(packet, ICMP, ECHO_REPLY),
            UNREACHABLE => {
                let error = match code {
                    0 => Errno::ENETUNREACH,
                    2 => Errno::EPROTONOSUPPORT,
                    3 => Errno::ECONNREFUSED,
                    // Fragmentation needed: the path's MTU is the interface's here.
                    4 => return,
                    _ => Errno::EHOSTUNREACH,
                };
                self.transport_error(rest.get(6..).unwrap_or_default(), error);
            }
            _ => {}
        }
    }

    /// Counts a message that arrived, its checksum verified: its type and code, and what follows.
    fn count_icmp<'a>(&self, packet: &Packet<'a>) -> Option<(&'a [u8; 2], &'a [u8])> {
        let v6 = packet.source.is_ipv6();
        let parts = packet.payload.split_first_chunk::<2>().filter(|_| packet.payload.len() >= 8);
        match parts {
            Some((&[kind, _], _)) => self.counters.icmp(v6, false, kind),
            None => {
                self.counters.count(Icmp::InMsgs.of(v6));
                self.counters.count(Icmp::InErrors.of(v6));
            }
        }
        parts
    }

    pub(super) fn input_icmpv6(&self, packet: &Packet<'_>, arrival: Arrival) {
        let Some((&[kind, code], rest)) = self.count_icmp(packet) else { return };
        match kind {
            V6_ECHO if self.interfaces.is_local(packet.destination) => self.echo(packet, ICMPV6, V6_ECHO_REPLY),
            V6_UNREACHABLE => {
                let error = match code {
                    0 => Errno::ENETUNREACH,
                    1 => Errno::EACCES,
                    4 => Errno::ECONNREFUSED,
                    _ => Errno::EHOSTUNREACH,
                };
                self.transport_error(rest.get(6..).unwrap_or_default(), error);
            }
            // A hop limit below 255 means that it crossed a router, which these never do.
            SOLICITATION if packet.ttl == 255 => self.input_solicitation(packet, arrival),
            ADVERTISEMENT if packet.ttl == 255 => {
                let Some(target) = address_at(packet.payload, 8) else { return };
                let mac = link_layer_option(packet.payload.get(24..).unwrap_or_default(), 2).unwrap_or(arrival.mac);
                let Some(interface) = self.interfaces.get(arrival.interface) else { return };
                if !self.interfaces.is_local(target) && mac[0] & 1 == 0 {
                    let waiting = interface.neighbours.learn(target, mac, false);
                    self.send_waiting(interface, waiting, mac);
                }
            }
            _ => {}
        }
    }

    fn echo(&self, packet: &Packet<'_>, protocol: u8, reply: u8) {
        let Ok(route) = self.interfaces.route(packet.source) else { return };
        if route.broadcast {
            return;
        }
        let header = Header {
            source: packet.destination,
            destination: packet.source,
            protocol,
            ttl: self.default_hops(packet.source.is_ipv6()),
            tos: packet.tos,
            id: 0,
            whole: false,
        };
        let fill = |to: &mut [u8]| {
            to.copy_from_slice(packet.payload);
            (to[0], to[2], to[3]) = (reply, 0, 0);
            if protocol == ICMP {
                let sum = !checksum::data(to);
                to[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            Ok(())
        };
        let sum = (protocol == ICMPV6).then_some(CHECKSUM);
        let _ = self.send_packet(&route, &header, packet.payload.len(), sum, fill);
    }

    /// Tells the sender of a UDP packet that nobody has its port.
    pub fn port_unreachable(&self, packet: &Packet<'_>) {
        if !self.interfaces.is_local(packet.destination) {
            return; // never for a multicast or broadcast: RFC 1122, 3.2.2
        }
        let Ok(route) = self.interfaces.route(packet.source) else { return };
        let v4 = packet.source.is_ipv4();
        let (protocol, kind, code, most) =
            if v4 { (ICMP, UNREACHABLE, 3, QUOTED) } else { (ICMPV6, V6_UNREACHABLE, 4, QUOTED_V6) };
        let quoted = &packet.bytes[..packet.bytes.len().min(most)];
        let header = Header {
            source: packet.destination,
            destination: packet.source,
            protocol,
            ttl: self.default_hops(packet.source.is_ipv6()),
            tos: 0xc0,
            id: 0,
            whole: false,
        };
        let fill = |to: &mut [u8]| {
            to[..8].copy_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
            to[8..].copy_from_slice(quoted);
            if v4 {
                let sum = !checksum::data(to);
                to[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            Ok(())
        };
        let _ = self.send_packet(&route, &header, 8 + quoted.len(), (!v4).then_some(CHECKSUM), fill);
    }

    fn input_solicitation(&self, packet: &Packet<'_>, arrival: Arrival) {
        let Some(interface) = self.interfaces.get(arrival.interface) else { return };
        let Some(target) = address_at(packet.payload, 8) else { return };
        if !interface.has(target) {
            return;
        }
        let mac = link_layer_option(packet.payload.get(24..).unwrap_or_default(), 1).unwrap_or(arrival.mac);
        if mac[0] & 1 != 0 {
            return;
        }
        // Without a source it asks whether the address is taken, and everybody is told.
        let anonymous = packet.source.is_unspecified();
        let destination = if anonymous { Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into() } else { packet.source };
        if !anonymous {
            let waiting = interface.neighbours.learn(packet.source, mac, true);
            self.send_waiting(interface, waiting, mac);
        }
        let flags = if anonymous { 0x20 } else { 0x60 };
        self.send_discovery(ADVERTISEMENT, flags, (target, destination), target, (interface, 2));
    }

    /// Asks for a neighbour.
    pub(super) fn solicit(&self, interface: &Interface, target: Ipv6Addr) {
        let Some(source) = interface.source_for(target.into()) else { return };
        let [.., a, b, c] = target.octets();
        let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
        self.send_discovery(SOLICITATION, 0, (source, group.into()), target.into(), (interface, 1));
    }

    fn send_discovery(
        &self,
        kind: u8,
        flags: u8,
        (source, destination): (IpAddr, IpAddr),
        target: IpAddr,
        (interface, option): (&Interface, u8),
    ) {
        let IpAddr::V6(target) = target else { return };
        // No copy for ourselves, and never by way of a router.
        let (local, broadcast) = (false, false);
        let arrives = interface.index;
        let route = Route { interface: arrives, source, next_hop: destination, local, broadcast, arrives };
        let header = Header { source, destination, protocol: ICMPV6, ttl: 255, tos: 0, id: 0, whole: false };
        let fill = |to: &mut [u8]| {
            to[..8].copy_from_slice(&[kind, 0, 0, 0, flags, 0, 0, 0]);
            to[8..24].copy_from_slice(&target.octets());
            to[24..26].copy_from_slice(&[option, 1]);
            to[26..32].copy_from_slice(&interface.mac);
            Ok(())
        };
        let _ = self.send_packet(&route, &header, 32, Some(CHECKSUM), fill);
    }
}

fn address_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = *bytes.get(at..)?.first_chunk()?;
    let addr = Ipv6Addr::from(octets);
    (!addr.is_multicast() && !addr.is_unspecified()).then_some(addr.into())
}

/// The link-layer address in the options of neighbour discovery.
fn link_layer_option(mut options: &[u8], wanted: u8) -> Option<[u8; 6]> {
    while let Some((&[kind, units], _)) = options.split_first_chunk::<2>() {
        if units == 0 {
            return None;
        }
        if kind == wanted {
            return options.get(2..)?.first_chunk().copied();
        }
        options = options.get(usize::from(units) * 8..)?;
    }
    None
}
