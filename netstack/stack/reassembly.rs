//! Fragments put together: RFC 791, 3.2; RFC 8200, 4.5. Overlapping pieces end the packet, RFC 5722.
//!
//! The table is a leaf lock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::packet::{Fragment, Header, Packet};
use crate::netstack::device::MAX_PACKET;

/// How long the pieces of a packet wait for the rest: `/proc/sys/net/ipv4/ipfrag_time`.
const LIFETIME: Duration = Duration::from_secs(30);
/// How many unfinished packets there are at most, and how many pieces of each.
const MAX_UNFINISHED: usize = 64;
const MAX_PIECES: usize = 128;

type Key = (IpAddr, IpAddr, u8, u32);

struct Unfinished {
    since: Instant,
    /// Offset and bytes, in order.
    pieces: Vec<(usize, Vec<u8>)>,
    /// Known from the last piece on.
    total: Option<usize>,
    ttl: u8,
    tos: u8,
}

/// Unfinished packets.
#[derive(Default)]
pub struct Reassembly(Mutex<HashMap<Key, Unfinished>>);

impl Reassembly {
    /// Adds a piece. The whole packet, with a new IP header, when it was the missing one.
    pub fn add(&self, packet: &Packet<'_>, fragment: Fragment) -> Option<Vec<u8>> {
        let key = (packet.source, packet.destination, packet.protocol, fragment.id);
        let (start, end) = (fragment.offset, fragment.offset + packet.payload.len());
        if end > MAX_PACKET - 60
            || packet.payload.is_empty()
            || (fragment.more && !packet.payload.len().is_multiple_of(8))
        {
            return None;
        }
        let now = Instant::now();
        let mut table = self.0.lock();
        if !table.contains_key(&key) {
            if table.len() >= MAX_UNFINISHED {
                table.retain(|_, unfinished| now - unfinished.since < LIFETIME);
            }
            if table.len() >= MAX_UNFINISHED {
                let oldest = table.iter().min_by_key(|(_, unfinished)| unfinished.since).map(|(key, _)| *key);
                oldest.map(|key| table.remove(&key));
            }
        }
        let unfinished = table.entry(key).or_insert_with(|| Unfinished {
            since: now,
            pieces: Vec::new(),
            total: None,
            ttl: packet.ttl,
            tos: packet.tos,
        });
        if now - unfinished.since > LIFETIME {
            (unfinished.pieces, unfinished.total, unfinished.since) = (Vec::new(), None, now);
        }
        let at = unfinished.pieces.partition_point(|(offset, _)| *offset < start);
        let before = at.checked_sub(1).map_or(0, |n| unfinished.pieces[n].0 + unfinished.pieces[n].1.len());
        let after = unfinished.pieces.get(at).map_or(usize::MAX, |(offset, _)| *offset);
        let beyond = unfinished.total.is_some_and(|total| end > total || !fragment.more);
        if before > start || after < end || beyond || unfinished.pieces.len() >= MAX_PIECES {
            table.remove(&key);
            return None;
        }
        if !fragment.more {
            unfinished.total = Some(end);
        }
        unfinished.pieces.insert(at, (start, packet.payload.to_vec()));
        let total = unfinished.total?;
        let have: usize = unfinished.pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        if have != total {
            return None;
        }
        let whole = table.remove(&key)?;
        drop(table);
        let header = Header {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            ttl: whole.ttl,
            tos: whole.tos,
            id: 0,
            whole: false,
        };
        let mut bytes = vec![0; header.size()];
        whole.pieces.iter().for_each(|(_, piece)| bytes.extend_from_slice(piece));
        header.write(&mut bytes);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(payload: &[u8], id: u32, offset: usize, more: bool) -> (Vec<u8>, Fragment) {
        let header = Header {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            protocol: 17,
            ttl: 9,
            tos: 0,
            id: 1,
            whole: false,
        };
        let mut bytes = vec![0; 20];
        bytes.extend_from_slice(payload);
        header.write(&mut bytes);
        (bytes, Fragment { id, offset, more })
    }

    fn add(table: &Reassembly, (bytes, fragment): (Vec<u8>, Fragment)) -> Option<Vec<u8>> {
        table.add(&Packet::parse(&bytes).unwrap(), fragment)
    }

    #[test]
    fn pieces_in_any_order() {
        let table = Reassembly::default();
        assert!(add(&table, piece(b"tail", 1, 16, false)).is_none());
        assert!(add(&table, piece(b"another.", 2, 0, true)).is_none());
        assert!(add(&table, piece(b"01234567", 1, 0, true)).is_none());
        let whole = add(&table, piece(b"89abcdef", 1, 8, true)).unwrap();
        let packet = Packet::parse(&whole).unwrap();
        assert_eq!((packet.payload, packet.ttl), (&b"0123456789abcdeftail"[..], 9));
    }

    #[test]
    fn overlaps_end_the_packet() {
        let table = Reassembly::default();
        assert!(add(&table, piece(b"0123456789abcdef", 1, 0, true)).is_none());
        assert!(add(&table, piece(b"xxxxxxxx", 1, 8, true)).is_none());
        assert!(add(&table, piece(b"rest", 1, 16, false)).is_none(), "the first piece is gone");
        assert_eq!(table.0.lock().len(), 1);
    }

    #[test]
    fn unfinished_packets_are_bounded() {
        let table = Reassembly::default();
        for id in 0..1000 {
            add(&table, piece(b"01234567", id, 8, true));
        }
        assert_eq!(table.0.lock().len(), MAX_UNFINISHED);
    }
}
