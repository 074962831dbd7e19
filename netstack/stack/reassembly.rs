//! Fragments put together: RFC 791, 3.2; RFC 8200, 4.5. Overlapping pieces end the packet, RFC 5722; one that comes twice
//! does not, as on Linux.
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

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It waits for others. With `timer`, somebody has to see to it that [`Reassembly::expire`] is called.
    Waits {
        /// Nobody sees to it yet.
        timer: bool,
    },
    /// It was the missing one: the whole packet, with a new IP header.
    Whole(Vec<u8>),
    /// It is of no use, and what there was of its packet is gone.
    Failed {
        /// Because it overlaps another.
        overlap: bool,
    },
}

/// Packets that were given up, of IPv4 and of IPv6.
#[derive(Debug)]
pub struct Expired {
    /// Because they waited for too long.
    pub timed_out: [u64; 2],
    /// To make room for others, before this.
    pub displaced: [u64; 2],
    /// How long it is until more are due, if there are any.
    pub next: Option<Duration>,
}

/// Unfinished packets.
#[derive(Default)]
struct Table {
    packets: HashMap<Key, Unfinished>,
    has_timer: bool,
    /// Those that went to make room, since they were last counted: of IPv4 and of IPv6.
    displaced: [u64; 2],
}

/// Packets of which some pieces are there.
#[derive(Default)]
pub struct Reassembly(Mutex<Table>);

impl Reassembly {
    /// Throws away what waited for too long.
    pub fn expire(&self) -> Expired {
        let now = Instant::now();
        let mut table = self.0.lock();
        let mut timed_out = [0; 2];
        table.packets.retain(|(source, ..), unfinished| {
            let stays = now - unfinished.since < LIFETIME;
            timed_out[usize::from(source.is_ipv6())] += u64::from(!stays);
            stays
        });
        let next = table.packets.values().map(|unfinished| unfinished.since).min();
        table.has_timer = next.is_some();
        let next = next.map(|since| LIFETIME.saturating_sub(now - since));
        Expired { timed_out, displaced: std::mem::take(&mut table.displaced), next }
    }

    /// Adds a piece.
    pub fn add(&self, packet: &Packet<'_>, fragment: Fragment) -> Outcome {
        let key = (packet.source, packet.destination, packet.protocol, fragment.id);
        let (start, end) = (fragment.offset, fragment.offset + packet.payload.len());
        if end > MAX_PACKET - 60
            || packet.payload.is_empty()
            || (fragment.more && !packet.payload.len().is_multiple_of(8))
        {
            return Outcome::Failed { overlap: false };
        }
        let now = Instant::now();
        let mut table = self.0.lock();
        let table = &mut *table;
        if !table.packets.contains_key(&key) && table.packets.len() >= MAX_UNFINISHED {
            let oldest = table.packets.iter().min_by_key(|(_, unfinished)| unfinished.since).map(|(key, _)| *key);
            if let Some(key) = oldest {
                table.packets.remove(&key);
                table.displaced[usize::from(key.0.is_ipv6())] += 1;
            }
        }
        let unfinished = table.packets.entry(key).or_insert_with(|| Unfinished {
            since: now,
            pieces: Vec::new(),
            total: None,
            ttl: packet.ttl,
            tos: packet.tos,
        });
        let again = |(offset, bytes): &(usize, Vec<u8>)| *offset <= start && end <= offset + bytes.len();
        if unfinished.pieces.iter().any(again) {
            return Outcome::Waits { timer: false };
        }
        let at = unfinished.pieces.partition_point(|(offset, _)| *offset < start);
        let before = at.checked_sub(1).map_or(0, |n| unfinished.pieces[n].0 + unfinished.pieces[n].1.len());
        let after = unfinished.pieces.get(at).map_or(usize::MAX, |(offset, _)| *offset);
        let beyond = unfinished.total.is_some_and(|total| end > total || !fragment.more);
        let overlap = before > start || after < end;
        if overlap || beyond || unfinished.pieces.len() >= MAX_PIECES {
            table.packets.remove(&key);
            return Outcome::Failed { overlap };
        }
        if !fragment.more {
            unfinished.total = Some(end);
        }
        unfinished.pieces.insert(at, (start, packet.payload.to_vec()));
        let have: usize = unfinished.pieces.iter().map(|(_, bytes)| bytes.len()).sum();
        let whole = if unfinished.total == Some(have) { table.packets.remove(&key) } else { None };
        let Some(whole) = whole else {
            return Outcome::Waits { timer: !std::mem::replace(&mut table.has_timer, true) };
        };
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
        Outcome::Whole(bytes)
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

    fn add(table: &Reassembly, (bytes, fragment): (Vec<u8>, Fragment)) -> Outcome {
        table.add(&Packet::parse(&bytes).unwrap(), fragment)
    }

    const WAITS: Outcome = Outcome::Waits { timer: false };

    #[test]
    fn pieces_in_any_order() {
        let table = Reassembly::default();
        assert_eq!(add(&table, piece(b"tail", 1, 16, false)), Outcome::Waits { timer: true });
        assert_eq!(add(&table, piece(b"another.", 2, 0, true)), WAITS);
        assert_eq!(add(&table, piece(b"01234567", 1, 0, true)), WAITS);
        assert_eq!(add(&table, piece(b"01234567", 1, 0, true)), WAITS, "once more");
        let Outcome::Whole(whole) = add(&table, piece(b"89abcdef", 1, 8, true)) else { panic!("not whole") };
        let packet = Packet::parse(&whole).unwrap();
        assert_eq!((packet.payload, packet.ttl), (&b"0123456789abcdeftail"[..], 9));
        let expired = table.expire();
        assert_eq!((expired.timed_out, expired.displaced), ([0, 0], [0, 0]));
        assert!(expired.next.is_some_and(|next| next <= LIFETIME));
    }

    #[test]
    fn overlaps_end_the_packet() {
        let table = Reassembly::default();
        add(&table, piece(b"0123456789abcdef", 1, 8, true));
        assert_eq!(add(&table, piece(b"xxxxxxxxxxxxxxxx", 1, 0, true)), Outcome::Failed { overlap: true });
        assert_eq!(add(&table, piece(b"rest", 1, 24, false)), WAITS, "the first piece is gone");
        assert_eq!(add(&table, piece(b"odd", 1, 0, true)), Outcome::Failed { overlap: false });
        assert_eq!(table.0.lock().packets.len(), 1);
    }

    #[test]
    fn unfinished_packets_are_bounded() {
        let table = Reassembly::default();
        for id in 0..1000 {
            add(&table, piece(b"01234567", id, 8, true));
        }
        assert_eq!(table.0.lock().packets.len(), MAX_UNFINISHED);
        assert_eq!(table.expire().displaced, [1000 - MAX_UNFINISHED as u64, 0]);
    }
}
