//! What a connection's segments tell beyond what smoltcp does: how much was sent, sent again, and how soon it was
//! acknowledged (RFC 6298); and the window that `TCP_WINDOW_CLAMP` allows to be offered.

use super::segment::{ACK, FIN, SYN, Segment};

/// Counts what is sent and times its acknowledgements.
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
    /// A segment that is timed: the sequence number after it, and when it was sent (us). Karn's rule: none sent twice.
    timed: Option<(u32, i64)>,
    /// Smoothed round-trip time and its variation, us.
    round_trip: Option<(u32, u32)>,
}

impl Meter {
    /// A segment of ours is on its way at `now` (monotonic, us).
    pub fn sending(&mut self, segment: &Segment, now: i64) {
        let end = segment.end();
        if end == segment.seq {
            return;
        }
        let before = self.next.unwrap_or(segment.seq);
        let fresh = end.wrapping_sub(before) as i32;
        if fresh <= 0 {
            self.timed = None;
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
            self.timed = None;
        } else if self.timed.is_none() {
            self.timed = Some((end, now));
        }
    }

    /// The peer has everything up to `ack`, it says at `now`.
    pub fn acknowledged(&mut self, ack: u32, now: i64) {
        let Some((end, then)) = self.timed.filter(|(end, _)| ack.wrapping_sub(*end) as i32 >= 0) else { return };
        let _ = end;
        self.timed = None;
        let sample = u32::try_from(now.saturating_sub(then)).unwrap_or(u32::MAX);
        self.round_trip = Some(match self.round_trip {
            None => (sample, sample / 2),
            Some((smoothed, variation)) => {
                let off = u64::from(smoothed.abs_diff(sample));
                let mix = |old: u32, new: u64, weight: u64| ((u64::from(old) * (weight - 1) + new) / weight) as u32;
                (mix(smoothed, sample.into(), 8), mix(variation, off, 4))
            }
        });
    }

    /// The smoothed round-trip time, us; 0 before it was measured.
    pub fn smoothed_us(&self) -> u32 {
        self.round_trip.map_or(0, |(smoothed, _)| smoothed)
    }

    /// The round-trip time's variation, us.
    pub fn variation_us(&self) -> u32 {
        self.round_trip.map_or(0, |(_, variation)| variation)
    }
}

/// Our window: no longer than `TCP_WINDOW_CLAMP` says, and never taken back.
///
/// smoltcp rounds the room that there is down to what a scaled window can say, and takes no byte beyond that: as bytes come,
/// the end of the window goes back and forth by up to a unit. Whoever used the window up would find that his last bytes were
/// not taken (RFC 7323, 2.4, forbids that) and wait for his timer. So a unit is kept back.
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
            self.shift = tcp.get(20..segment.header_len).and_then(window_scale).unwrap_or(0).min(14);
        }
        if !segment.has(ACK) {
            return;
        }
        let Some([high, low]) = tcp.get_mut(14..16) else { return };
        // The window of a SYN is never shifted.
        let shift = if segment.has(SYN) { 0 } else { self.shift };
        let room = segment.window.saturating_sub(u16::from(shift > 0));
        let mut window = u32::from(room) << shift;
        if clamp > 0 {
            let promised = self.edge.map_or(0, |edge| edge.wrapping_sub(segment.ack) as i32).max(0) as u32;
            window = window.min(clamp.max(promised));
            self.edge = Some(segment.ack.wrapping_add(window));
        }
        [*high, *low] = u16::try_from(window >> shift).unwrap_or(u16::MAX).to_be_bytes();
    }
}

/// The window scale among a header's options.
fn window_scale(mut options: &[u8]) -> Option<u8> {
    loop {
        match *options {
            [1, ref rest @ ..] => options = rest,
            [3, 3, shift, ..] => return Some(shift),
            [0, ..] | [] | [_] => return None,
            [_, len, ..] => options = options.get(usize::from(len).max(2)..)?,
        }
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
    fn bytes_count_once_and_round_trips_are_timed() {
        let mut meter = Meter::default();
        let start = u32::MAX - 50;
        meter.sending(&segment(start, 0, SYN, 0, &[], 0).1, 0);
        meter.acknowledged(start.wrapping_add(1), 1000);
        assert_eq!((meter.sent, meter.smoothed_us()), (0, 1000));
        let first = start.wrapping_add(1);
        meter.sending(&segment(first, 1, ACK, 100, &[], 0).1, 2000);
        assert_eq!((meter.sent, meter.resent), (100, 0), "the numbers wrap");
        meter.sending(&segment(first, 1, ACK, 100, &[], 0).1, 9000);
        assert_eq!((meter.sent, meter.resent, meter.resent_segments), (100, 100, 1));
        meter.acknowledged(first.wrapping_add(100), 10_000);
        assert_eq!(meter.smoothed_us(), 1000, "what was sent twice says nothing");
        meter.sending(&segment(first.wrapping_add(50), 1, ACK | FIN, 100, &[], 0).1, 11_000);
        assert_eq!((meter.sent, meter.resent), (150, 150));
    }

    #[test]
    fn what_was_offered_is_taken() {
        let mut clamp = Clamp::default();
        let (mut bytes, syn) = segment(1, 9, SYN | ACK, 0, &[1, 3, 3, 7], 60_000);
        clamp.apply(&mut bytes, &syn, 0);
        // The room ends at one place whatever has come; smoltcp takes what fits in whole units.
        let end = 100_000;
        let mut offered = 0;
        for ack in (10..end).step_by(37) {
            let units = ((end - ack) >> 7) as u16;
            assert!(offered <= ack + (u32::from(units) << 7), "at {ack}");
            let (mut bytes, segment) = segment(2, ack, ACK, 0, &[], units);
            clamp.apply(&mut bytes, &segment, 0);
            offered = offered.max(ack + (u32::from(u16::from_be_bytes([bytes[14], bytes[15]])) << 7));
        }
        assert!(end - offered < 256);
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
        assert_eq!(offer(10, 0), 96_000 - 16, "a unit is kept back");
        assert_eq!(offer(10, 32_000), 32_000);
        assert_eq!(offer(1610, 3200), 30_400, "what is left of the promise");
        assert_eq!(offer(32_010, 3200), 3200);
    }
}
