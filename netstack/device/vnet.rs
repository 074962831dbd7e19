//! The virtio-net header in front of each frame, and checksums done here where the device does none.

use std::num::NonZeroU16;

use smoltcp::wire::IpAddress;
use smoltcp::wire::checksum;

/// `struct virtio_net_hdr_v1`.
pub const LEN: usize = 12;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// A checksum to be filled in: it covers the packet from `start` to its end, and its field, which holds the sum of the
/// pseudo header, lies `offset` bytes further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// From the start of the IP packet.
    pub start: u16,
    /// From `start`.
    pub offset: u16,
}

/// A TCP segment to be cut into several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Whether it is IPv6.
    pub v6: bool,
    /// Bytes of payload in each.
    pub size: u16,
    /// IP and TCP headers' length.
    pub headers: u16,
}

/// What is left to do with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum to fill in.
    pub partial: Option<Partial>,
    /// Segments to make.
    pub segmentation: Option<Segmentation>,
    /// On reception: the checksum is known to be right, or was never wrong since it has not been made yet.
    pub valid: bool,
    /// On reception: it is several UDP datagrams with one header, each but the last with so many bytes.
    pub datagrams: Option<NonZeroU16>,
}

impl Offload {
    /// In the host's byte order, as TUN/TAP devices have it. Offsets there count from the Ethernet header.
    pub fn encode(&self) -> [u8; LEN] {
        let mut header = [0; LEN];
        let ethernet = super::ETHERNET_LEN as u16;
        if let Some(partial) = self.partial {
            header[0] = F_NEEDS_CSUM;
            header[6..8].copy_from_slice(&partial.start.saturating_add(ethernet).to_ne_bytes());
            header[8..10].copy_from_slice(&partial.offset.to_ne_bytes());
        }
        if let Some(segmentation) = self.segmentation {
            header[1] = if segmentation.v6 { GSO_TCPV6 } else { GSO_TCPV4 };
            header[2..4].copy_from_slice(&segmentation.headers.saturating_add(ethernet).to_ne_bytes());
            header[4..6].copy_from_slice(&segmentation.size.to_ne_bytes());
        }
        header
    }

    /// What the header of a received frame, if there is one, says of its checksum and of datagrams in it. TCP segments need
    /// no telling: a long one is as good as several.
    pub fn decode(header: &[u8]) -> Offload {
        let Some(&[flags, kind, _, _, a, b]) = header.first_chunk::<6>() else { return Offload::default() };
        let datagrams = if kind == GSO_UDP_L4 { NonZeroU16::new(u16::from_ne_bytes([a, b])) } else { None };
        Offload { valid: flags & (F_NEEDS_CSUM | F_DATA_VALID) != 0, datagrams, ..Offload::default() }
    }

    /// Does the checksum here.
    pub fn complete(&self, packet: &mut [u8]) {
        let Some(partial) = self.partial else { return };
        let (start, field) = (usize::from(partial.start), usize::from(partial.start) + usize::from(partial.offset));
        if packet.len() < field + 2 {
            return;
        }
        // Both forms of zero are one number; in UDP the other one means that there is no checksum.
        let sum = match !checksum::data(&packet[start..]) {
            0 => u16::MAX,
            sum => sum,
        };
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The sum of a pseudo header, as it stands in the checksum field before the checksum is made.
pub fn pseudo_header(source: IpAddress, destination: IpAddress, protocol: u8, len: usize) -> u16 {
    checksum::pseudo_header(&source, &destination, protocol.into(), len as u32)
}

/// Whether the checksum of a transport packet is right.
pub fn verify(source: IpAddress, destination: IpAddress, protocol: u8, data: &[u8]) -> bool {
    checksum::combine(&[pseudo_header(source, destination, protocol, data.len()), checksum::data(data)]) == !0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_made_here_is_right() {
        let (source, destination) = (IpAddress::v4(10, 0, 0, 1), IpAddress::v4(10, 0, 0, 2));
        let mut packet = vec![0x45; 20];
        packet.extend((0..33).map(|byte| byte * 7));
        let sum = pseudo_header(source, destination, 17, 33);
        packet[26..28].copy_from_slice(&sum.to_be_bytes());
        Offload { partial: Some(Partial { start: 20, offset: 6 }), ..Offload::default() }.complete(&mut packet);
        assert!(verify(source, destination, 17, &packet[20..]));
        packet[40] ^= 1;
        assert!(!verify(source, destination, 17, &packet[20..]));
    }

    #[test]
    fn offsets_count_from_the_ethernet_header() {
        let offload = Offload {
            partial: Some(Partial { start: 20, offset: 16 }),
            segmentation: Some(Segmentation { v6: false, size: 1460, headers: 40 }),
            ..Offload::default()
        };
        let header = offload.encode();
        assert_eq!((header[0], header[1]), (1, 1));
        let words: Vec<u16> = header[2..10].chunks(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]])).collect();
        assert_eq!(words, [54, 1460, 34, 16]);
    }
}
