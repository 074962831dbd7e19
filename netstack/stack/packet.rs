//! IP packets: taken apart on arrival, put together to be sent. RFC 791, RFC 8200.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::checksum;

/// Protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMPv6.
pub const ICMPV6: u8 = 58;

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// How many IPv6 extension headers are looked through: no honest packet has more.
const MAX_EXTENSIONS: usize = 8;

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// The packet's identification.
    pub id: u32,
    /// In bytes.
    pub offset: usize,
    /// Whether it is not the last.
    pub more: bool,
}

/// A packet that was received, its IP header checked.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// What the payload is.
    pub protocol: u8,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// Type of service, traffic class.
    pub tos: u8,
    /// The whole packet, without padding after it.
    pub bytes: &'a [u8],
    /// What follows the IP header and its extensions.
    pub payload: &'a [u8],
    /// When it is a part of a packet.
    pub fragment: Option<Fragment>,
}

impl<'a> Packet<'a> {
    /// Takes `bytes` apart, which may be anything; `None` when it is no IP packet.
    pub fn parse(bytes: &'a [u8]) -> Option<Packet<'a>> {
        match bytes.first()? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => None,
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Option<Packet<'a>> {
        let header = bytes.get(..IPV4_LEN)?;
        let header_len = usize::from(header[0] & 15) * 4;
        let total = usize::from(be16(header, 2));
        if header_len < IPV4_LEN || total < header_len {
            return None;
        }
        let bytes = bytes.get(..total)?;
        if checksum::data(&bytes[..header_len]) != !0 {
            return None;
        }
        let (flags, offset) = (header[6] >> 5, usize::from(be16(header, 6) & 0x1fff) * 8);
        let more = flags & 1 != 0;
        let fragment = (more || offset != 0).then(|| Fragment { id: u32::from(be16(header, 4)), offset, more });
        Some(Packet {
            source: v4(&header[12..16]),
            destination: v4(&header[16..20]),
            protocol: header[9],
            ttl: header[8],
            tos: header[1],
            bytes,
            payload: &bytes[header_len..],
            fragment,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Option<Packet<'a>> {
        let header = bytes.get(..IPV6_LEN)?;
        let bytes = bytes.get(..IPV6_LEN + usize::from(be16(header, 4)))?;
        let mut packet = Packet {
            source: v6(&header[8..24]),
            destination: v6(&header[24..40]),
            protocol: header[6],
            ttl: header[7],
            tos: header[0] << 4 | header[1] >> 4,
            bytes,
            payload: &bytes[IPV6_LEN..],
            fragment: None,
        };
        for _ in 0..MAX_EXTENSIONS {
            let rest = packet.payload;
            let len = match packet.protocol {
                // Hop-by-hop options, destination options; a routing header with no segments left.
                0 | 60 => (usize::from(*rest.get(1)?) + 1) * 8,
                43 if *rest.get(3)? == 0 => (usize::from(*rest.get(1)?) + 1) * 8,
                44 => {
                    let word = be16(rest.get(..8)?, 2);
                    let id = u32::from_be_bytes(*rest[4..8].first_chunk()?);
                    let (offset, more) = (usize::from(word & !7), word & 1 != 0);
                    packet.fragment = (more || offset != 0).then_some(Fragment { id, offset, more });
                    8
                }
                _ => return Some(packet),
            };
            packet.protocol = *rest.first()?;
            packet.payload = rest.get(len..)?;
            if packet.fragment.is_some() {
                return Some(packet); // what follows may begin in another fragment
            }
        }
        None
    }

    /// The length of what is before the payload.
    pub fn header_len(&self) -> usize {
        self.bytes.len() - self.payload.len()
    }
}

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its header is not complete, or says what cannot be.
    Header,
    /// The checksum of an IPv4 header is wrong.
    Checksum,
    /// It is shorter than its header says.
    Truncated,
}

/// What Linux finds wrong first with bytes that [`Packet::parse`] refuses.
pub fn fault(bytes: &[u8], v6: bool) -> Fault {
    if v6 {
        let whole = bytes.get(..IPV6_LEN).map(|header| IPV6_LEN + usize::from(be16(header, 4)));
        return if whole.is_some_and(|whole| bytes.len() < whole) { Fault::Truncated } else { Fault::Header };
    }
    let Some(header) = bytes.get(..IPV4_LEN) else { return Fault::Header };
    let header_len = usize::from(header[0] & 15) * 4;
    match bytes.get(..header_len.max(IPV4_LEN)) {
        Some(whole) if header_len >= IPV4_LEN && header[0] >> 4 == 4 => {
            if checksum::data(whole) != !0 {
                Fault::Checksum
            } else if bytes.len() < usize::from(be16(header, 2)) {
                Fault::Truncated
            } else {
                Fault::Header
            }
        }
        _ => Fault::Header,
    }
}

/// An IP header to be written.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// From.
    pub source: IpAddr,
    /// To, of the same family.
    pub destination: IpAddr,
    /// What the payload is.
    pub protocol: u8,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// Type of service, traffic class.
    pub tos: u8,
    /// IPv4 identification; 0 sets "do not fragment".
    pub id: u16,
    /// It is refused rather than cut when it does not fit the interface.
    pub whole: bool,
}

impl Header {
    /// How long it is.
    pub fn size(&self) -> usize {
        if self.source.is_ipv4() { IPV4_LEN } else { IPV6_LEN }
    }

    /// Writes it for a packet that fills `packet` (which includes the header).
    pub fn write(&self, packet: &mut [u8]) {
        let total = packet.len().min(usize::from(u16::MAX));
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = &mut packet[..IPV4_LEN];
                header.fill(0);
                (header[0], header[1], header[8], header[9]) = (0x45, self.tos, self.ttl, self.protocol);
                header[2..4].copy_from_slice(&(total as u16).to_be_bytes());
                header[4..6].copy_from_slice(&self.id.to_be_bytes());
                header[6] = if self.id == 0 { 0x40 } else { 0 };
                header[12..16].copy_from_slice(&source.octets());
                header[16..20].copy_from_slice(&destination.octets());
                fill_ipv4_checksum(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = &mut packet[..IPV6_LEN];
                header.fill(0);
                (header[0], header[1]) = (0x60 | self.tos >> 4, self.tos << 4);
                header[4..6].copy_from_slice(&((total - IPV6_LEN) as u16).to_be_bytes());
                (header[6], header[7]) = (self.protocol, self.ttl);
                header[8..24].copy_from_slice(&source.octets());
                header[24..40].copy_from_slice(&destination.octets());
            }
            _ => debug_assert!(false, "addresses of two families"),
        }
    }
}

/// Makes the checksum of an IPv4 header without options.
pub fn fill_ipv4_checksum(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = !checksum::data(&packet[..IPV4_LEN]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Lets routers cut an IPv4 packet, which gets an identification for that; its checksum is to be made anew.
pub fn allow_fragments(packet: &mut [u8]) {
    packet[4..6].copy_from_slice(&identification().to_be_bytes());
    packet[6] &= !0x40;
}

/// An identification of a packet that may be cut: not 0.
pub fn identification() -> u16 {
    super::random_u64() as u16 | 1
}

/// Sets the type of service of a packet without IPv4 options.
pub fn set_tos(packet: &mut [u8], tos: u8) {
    if packet[0] >> 4 == 4 {
        packet[1] = tos;
    } else {
        (packet[0], packet[1]) = (0x60 | tos >> 4, tos << 4 | packet[1] & 15);
    }
}

/// A big-endian number at `at`, which must be within `bytes`.
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn v4(bytes: &[u8]) -> IpAddr {
    let octets: [u8; 4] = bytes.first_chunk().copied().unwrap_or_default();
    IpAddr::V4(Ipv4Addr::from(octets))
}

fn v6(bytes: &[u8]) -> IpAddr {
    let octets: [u8; 16] = bytes.first_chunk().copied().unwrap_or_default();
    IpAddr::V6(Ipv6Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(source: &str, destination: &str) -> Header {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Header { source, destination, protocol: UDP, ttl: 64, tos: 0x10, id: 0, whole: false }
    }

    #[test]
    fn what_is_written_is_read() {
        for header in [header("10.0.0.1", "10.0.0.2"), header("fd00::1", "fd00::2")] {
            let mut bytes = vec![7; header.size() + 5];
            header.write(&mut bytes);
            bytes.extend([0; 9]); // padding
            let packet = Packet::parse(&bytes).unwrap();
            assert_eq!((packet.source, packet.destination), (header.source, header.destination));
            assert_eq!((packet.protocol, packet.ttl, packet.tos), (UDP, 64, 0x10));
            assert_eq!(packet.payload, [7; 5]);
            assert!(packet.fragment.is_none());
        }
    }

    #[test]
    fn broken_headers_are_refused() {
        let header = header("10.0.0.1", "10.0.0.2");
        let mut bytes = vec![0; 30];
        header.write(&mut bytes);
        assert!(Packet::parse(&bytes[..29]).is_none(), "shorter than it says");
        assert_eq!([fault(&bytes[..29], false), fault(&bytes[..19], false)], [Fault::Truncated, Fault::Header]);
        bytes[16] ^= 1;
        assert!(Packet::parse(&bytes).is_none(), "checksum");
        assert_eq!(fault(&bytes, false), Fault::Checksum);
        let mut six = vec![0; 45];
        self::header("fd00::1", "fd00::2").write(&mut six);
        assert_eq!([fault(&six[..44], true), fault(&six[..39], true)], [Fault::Truncated, Fault::Header]);
        assert!(Packet::parse(&[]).is_none());
        assert!(Packet::parse(&[0x4f; 20]).is_none());
    }
}
