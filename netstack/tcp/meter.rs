//! What a connection's segments tell beyond what smoltcp does: how much was sent and sent again; and the window that
//! `TCP_WINDOW_CLAMP` allows to be offered.

use super::segment::{ACK, FIN, SYN, Segment, option};

/// Window scale: RFC 7323.
const OPTION_SCALE: u8 = 3;

/// Counts what is sent.
#[derive(Default)]
pub struct Meter {
    /// Bytes sent, each counted once.
    pub sent: u64,
    /// Segments with bytes that were sent before.
    pub resent_segments: u32,
    /// Bytes sent again.
    pub resent: u64,
    /// The sequence number after all that was sent, once there was something.
    next: Option<u32>,
}

impl Meter {
    /// A segment of ours is on its way.
    pub fn sending(&mut self, segment: &Segment) {
        let end = segment.end();
        if end == segment.seq {
            return;
        }
        let before = self.next.unwrap_or(segment.seq);
        let fresh = end.wrapping_sub(before) as i32;
        if fresh <= 0 {
            self.resent_segments = self.resent_segments.saturating_add(1);
            self.resent += segment.len as u64;
            return;
        }
        self.next = Some(end);
        // The ends of a connection have numbers as bytes have.
        let marks = i64::from(segment.has(SYN)) + i64::from(segment.has(FIN));
        let bytes = u64::try_from(i64::from(fresh) - marks).unwrap_or(0).min(segment.len as u64);
        self.sent += bytes;
        if bytes < segment.len as u64 {
            self.resent_segments = self.resent_segments.saturating_add(1);
            self.resent += segment.len as u64 - bytes;
        }
    }
}

/// `TCP_WINDOW_CLAMP`: the window in our segments is no longer than it says, and never takes back what was offered.
#[derive(Default)]
pub struct Clamp {
    /// By how many bits windows are shifted: RFC 7323, as our SYN says.
    shift: u8,
    /// The sequence number up to which the peer was allowed to send.
    edge: Option<u32>,
}

impl Clamp {
    /// Looks at a segment of ours and shortens the window in its header, `tcp`, to `clamp` bytes unless that is 0.
    pub fn apply(&mut self, tcp: &mut [u8], segment: &Segment, clamp: u32) {
        if segment.has(SYN) {
            let scale = tcp.get(..segment.header_len).and_then(|header| option(header, OPTION_SCALE));
            self.shift = scale.and_then(|value| value.first().copied()).unwrap_or(0).min(14);
        }
        if clamp == 0 || !segment.has(ACK) {
            return;
        }
        let Some([high, low]) = tcp.get_mut(14..16) else { return };
        // The window of a SYN is never shifted.
        let shift = if segment.has(SYN) { 0 } else { self.shift };
        let offered = u32::from(u16::from_be_bytes([*high, *low])) << shift;
        let promised = self.edge.map_or(0, |edge| edge.wrapping_sub(segment.ack) as i32).max(0) as u32;
        let window = offered.min(clamp.max(promised));
        self.edge = Some(segment.ack.wrapping_add(window));
        [*high, *low] = u16::try_from(window >> shift).unwrap_or(u16::MAX).to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment of ours of `len` bytes.
    fn segment(seq: u32, ack: u32, flags: u8, len: usize, options: &[u8], window: u16) -> (Vec<u8>, Segment) {
        let mut bytes = vec![0; 20];
        bytes[4..8].copy_from_slice(&seq.to_be_bytes());
        bytes[8..12].copy_from_slice(&ack.to_be_bytes());
        bytes[12] = ((20 + options.len()) as u8 / 4) << 4;
        bytes[13] = flags;
        bytes[14..16].copy_from_slice(&window.to_be_bytes());
        bytes.extend_from_slice(options);
        bytes.resize(bytes.len() + len, 0);
        let parsed = Segment::parse(&bytes).unwrap();
        (bytes, parsed)
    }

    #[test]
    fn bytes_count_once() {
        let mut meter = Meter::default();
        let start = u32::MAX - 50;
        meter.sending(&segment(start, 0, SYN, 0, &[], 0).1);
        assert_eq!(meter.sent, 0);
        let first = start.wrapping_add(1);
        meter.sending(&segment(first, 1, ACK, 100, &[], 0).1);
        assert_eq!((meter.sent, meter.resent), (100, 0), "the numbers wrap");
        meter.sending(&segment(first, 1, ACK, 100, &[], 0).1);
        assert_eq!((meter.sent, meter.resent, meter.resent_segments), (100, 100, 1));
        meter.sending(&segment(first.wrapping_add(50), 1, ACK | FIN, 100, &[], 0).1);
        assert_eq!((meter.sent, meter.resent), (150, 150));
    }

    #[test]
    fn windows_are_clamped_and_never_taken_back() {
        let mut clamp = Clamp::default();
        let window = |bytes: &[u8]| u16::from_be_bytes([bytes[14], bytes[15]]);
        let (mut bytes, syn) = segment(1, 9, SYN | ACK, 0, &[2, 4, 5, 0xb4, 1, 3, 3, 4], 60_000);
        clamp.apply(&mut bytes, &syn, 0);
        assert_eq!(window(&bytes), 60_000);
        let mut offer = |ack, limit| {
            let (mut bytes, segment) = segment(2, ack, ACK, 0, &[], 6000);
            clamp.apply(&mut bytes, &segment, limit);
            u32::from(window(&bytes)) << 4
        };
        assert_eq!(offer(10, 0), 96_000);
        assert_eq!(offer(10, 32_000), 32_000);
        assert_eq!(offer(1610, 3200), 30_400, "what is left of the promise");
        assert_eq!(offer(32_010, 3200), 3200);
    }
}
