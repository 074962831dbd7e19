//! Packets as smoltcp is to see them.

use super::segment::{ACK, SYN, Segment};
use crate::netstack::stack::packet::{self, Packet, TCP};

/// A packet as smoltcp is to see it: its acknowledgement less by `shift`, and with another `window`. `None`: as it is.
pub fn adapted(packet: &Packet<'_>, segment: &Segment, shift: u32, window: Option<u16>) -> Option<Vec<u8>> {
    let shift = if segment.has(ACK) { shift } else { 0 };
    if shift == 0 && window.is_none() {
        return None;
    }
    let mut bytes = packet.bytes.to_vec();
    let header = bytes.get_mut(packet.header_len()..).and_then(|rest| rest.first_chunk_mut::<20>())?;
    header[8..12].copy_from_slice(&segment.ack.wrapping_sub(shift).to_be_bytes());
    header[14..16].copy_from_slice(&window.unwrap_or(segment.window).to_be_bytes());
    Some(bytes)
}

/// The SYN that `packet` follows, with the one option that a cookie tells.
pub fn forgotten_syn(packet: &Packet<'_>, segment: &Segment, mss: u16) -> Vec<u8> {
    const LEN: usize = 24;
    let header = packet::Header {
        source: packet.source,
        destination: packet.destination,
        protocol: TCP,
        ttl: packet.ttl,
        tos: packet.tos,
        id: 0,
        whole: false,
    };
    let mut bytes = vec![0; header.size() + LEN];
    header.write(&mut bytes);
    let tcp = &mut bytes[header.size()..];
    tcp[..2].copy_from_slice(&segment.source.to_be_bytes());
    tcp[2..4].copy_from_slice(&segment.destination.to_be_bytes());
    tcp[4..8].copy_from_slice(&segment.seq.wrapping_sub(1).to_be_bytes());
    (tcp[12], tcp[13]) = ((LEN as u8 / 4) << 4, SYN);
    tcp[14..16].copy_from_slice(&segment.window.to_be_bytes());
    tcp[20..22].copy_from_slice(&[2, 4]);
    tcp[22..24].copy_from_slice(&mss.to_be_bytes());
    bytes
}
