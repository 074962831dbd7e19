//! What a connection has under way, what of it is lost, and how much more may go: RFC 5681, RFC 6582, RFC 6298, the
//! acknowledgements of RFC 2018, and RFC 6937 for the time of a recovery.
//!
//! smoltcp keeps the bytes, sends them in order and sends them again, all as one tells it from outside:
//!
//! ```text
//!   acknowledgements ──> Sender ── which window? ──> the machine's view of its peer's window
//!   what was sent    ──>        ── what is lost? ──> three copies of one acknowledgement, or its timer, early
//! ```
//!
//! - The window that the peer offers reaches the machine only as far as the [congestion window](Congestion) goes.
//! - Acknowledgements that say nothing new are kept from the machine. When they mean that a segment is lost, it gets three
//!   of them at once, at which it sends its first segment again. After each part of what was under way that arrives, it gets
//!   three more for the next hole.
//! - Its own timer waits for a second at least. This one's waits as long as Linux does, and then has the machine believe
//!   that so much time has passed: it goes back and sends everything again, as far as the window goes.
//!
//! Sequence numbers are those of the wire, times are microseconds.

use std::collections::VecDeque;

use super::congestion::{Congestion, Control};
use super::segment::{ACK, RST, SYN, Segment, option};
use crate::netstack::stack::packet::be16;

/// Copies of an acknowledgement that mean a loss.
const DUPLICATES: u32 = 3;
/// `TCP_RTO_MIN`, `TCP_RTO_MAX`, and what there is before anything was measured.
const LEAST_TIMEOUT: i64 = 200_000;
const MOST_TIMEOUT: i64 = 120_000_000;
const FIRST_TIMEOUT: i64 = 1_000_000;
/// Ranges and times that are kept at most.
const MOST_RANGES: usize = 64;
const MOST_TIMED: usize = 512;

/// Window scale and selective acknowledgements among a header's options: RFC 7323, RFC 2018.
const OPTION_SCALE: u8 = 3;
const OPTION_SACK: u8 = 5;

/// How far `a` is beyond `b`, which may be less than nothing.
fn ahead(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// `a - b`, when that is not less than nothing.
fn distance(a: u32, b: u32) -> usize {
    usize::try_from(ahead(a, b)).unwrap_or(0)
}

/// A time in which what was lost is made up for: RFC 6937.
#[derive(Debug)]
struct Recovery {
    /// It is over when everything before is acknowledged.
    end: u32,
    /// What was under way when it began.
    flight: usize,
    /// Bytes that arrived since then, and those that were sent.
    delivered: usize,
    out: usize,
    /// How much may be sent now.
    allowed: usize,
}

/// What is to become of a segment that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// The machine gets it.
    Pass,
    /// It says nothing that the machine must know.
    Absorb,
}

/// The sending side.
#[derive(Debug)]
pub struct Sender {
    congestion: Congestion,
    mss: usize,
    /// The first byte that is not acknowledged, and that after the last that was ever sent; once a SYN was sent.
    edges: Option<(u32, u32)>,
    /// What is being sent now ends here: before the last, after a timeout.
    edge: u32,
    /// What the peer has beyond the first byte that it lacks, in order, apart from each other.
    sacked: Vec<(u32, u32)>,
    duplicates: u32,
    recovery: Option<Recovery>,
    /// No recovery begins before this is acknowledged: what comes back from before a timeout is no loss.
    settled: Option<u32>,
    /// The machine is about to be told to send its first segment again.
    resend: bool,
    /// Ends of what was sent, and when. None sent twice: Karn's rule.
    timed: VecDeque<(u32, i64)>,
    /// Where the next round of round trips begins.
    round: u32,
    /// Smoothed round trip and its variation.
    round_trip: Option<(u32, u32)>,
    backoff: u32,
    /// When the timer was last set.
    since: i64,
    /// By how many bits the peer's windows are shifted.
    scale: u8,
    /// The window that the peer offers.
    offered: usize,
    /// The window that the machine believes in.
    told: usize,
    /// The end of a byte that was sent though the peer offers no window, to hear of it.
    probe: Option<u32>,
}

impl Sender {
    /// Of a connection that has sent nothing.
    pub fn new(control: Control, mss: usize) -> Sender {
        Sender {
            congestion: Congestion::new(control, mss),
            mss: mss.max(1),
            edges: None,
            edge: 0,
            sacked: Vec::new(),
            duplicates: 0,
            recovery: None,
            settled: None,
            resend: false,
            timed: VecDeque::new(),
            round: 0,
            round_trip: None,
            backoff: 0,
            since: 0,
            scale: 0,
            offered: 0,
            told: 0,
            probe: None,
        }
    }

    /// `TCP_CONGESTION`.
    pub fn set_control(&mut self, control: Control) {
        self.congestion.set_control(control);
    }

    /// The segment size that both sides have agreed on.
    pub fn set_mss(&mut self, mss: usize) {
        self.mss = mss.max(1);
        self.congestion.set_mss(self.mss);
    }

    /// Bytes (and marks) that are sent and not acknowledged.
    pub fn flight(&self) -> usize {
        self.edges.map_or(0, |(first, _)| distance(self.edge, first))
    }

    /// The congestion window, `ssthresh`, and the state that `TCP_INFO` names: open, disorder, recovery, loss.
    pub fn shown(&self) -> (usize, Option<usize>, u8) {
        let state = match (&self.recovery, self.backoff, self.duplicates) {
            (Some(_), ..) => 3,
            (None, 1.., _) => 4,
            (None, 0, 1..) => 1,
            (None, 0, 0) => 0,
        };
        (self.congestion.window(), self.congestion.threshold(), state)
    }

    /// Bytes that the peer has out of order.
    pub fn sacked(&self) -> usize {
        self.sacked.iter().map(|(start, end)| distance(*end, *start)).sum()
    }

    /// How long an answer is waited for.
    pub fn timeout(&self) -> i64 {
        let plain = match self.round_trip {
            Some((smoothed, variation)) => i64::from(smoothed) + LEAST_TIMEOUT.max(4 * i64::from(variation)),
            None => FIRST_TIMEOUT,
        };
        plain.saturating_mul(1 << self.backoff.min(10)).min(MOST_TIMEOUT)
    }

    /// When everything under way counts as lost; `None` when nothing is under way. One who offers no window is asked by the
    /// machine.
    pub fn deadline(&self) -> Option<i64> {
        (self.flight() > 0 && self.offered > 0).then(|| self.since + self.timeout())
    }

    /// A segment of ours is sent at `now`.
    pub fn sending(&mut self, segment: &Segment, now: i64) {
        let end = segment.end();
        if end == segment.seq {
            return;
        }
        let Some((first, last)) = self.edges else {
            (self.edges, self.edge, self.round, self.since) = (Some((segment.seq, end)), end, end, now);
            self.timed.push_back((end, now));
            return;
        };
        if segment.has(SYN) {
            // Once more: nobody knows yet how long that takes.
            self.timed.clear();
            self.since = now;
            return;
        }
        if self.offered == 0 && segment.len == 1 && segment.seq == last {
            self.probe = Some(end);
            return;
        }
        if self.flight() == 0 {
            self.since = now;
        }
        if ahead(end, last) > 0 {
            self.edges = Some((first, end));
            if self.timed.len() < MOST_TIMED {
                self.timed.push_back((end, now));
            }
        }
        if ahead(segment.seq, self.edge) < 0 {
            self.timed.clear();
            if !std::mem::take(&mut self.resend) && segment.seq == first {
                // The machine's own timer.
                self.timed_out(now);
                self.edge = end;
            }
        }
        if ahead(end, self.edge) > 0 {
            self.edge = end;
        }
        if let Some(recovery) = &mut self.recovery {
            let len = distance(end, segment.seq);
            recovery.out += len;
            recovery.allowed = recovery.allowed.saturating_sub(len);
        }
    }

    /// Everything that is under way counts as lost.
    pub fn timed_out(&mut self, now: i64) {
        let Some((first, last)) = self.edges else { return };
        let flight = self.flight().max(self.mss);
        self.congestion.timed_out(flight, self.backoff > 0);
        self.backoff = (self.backoff + 1).min(16);
        (self.recovery, self.resend, self.duplicates) = (None, false, 0);
        self.sacked.clear();
        self.timed.clear();
        (self.edge, self.settled, self.since) = (first, Some(last), now);
    }

    /// A segment with `header`, of TCP, came at `now`. What is to become of it.
    pub fn received(&mut self, segment: &Segment, header: &[u8], now: i64) -> Feed {
        let Some(field) = header.get(14..16).map(|field| usize::from(be16(field, 0))) else { return Feed::Pass };
        if segment.has(SYN) {
            // Neither is it scaled itself, nor are others unless both sides say so, as ours always does.
            self.scale = option(header, OPTION_SCALE).and_then(|shift| shift.first().copied()).unwrap_or(0).min(14);
            (self.offered, self.told) = (field, field);
            self.acknowledged_syn(segment, now);
            return Feed::Pass;
        }
        let Some((first, last)) = self.edges.filter(|_| segment.has(ACK) && !segment.has(RST)) else { return Feed::Pass };
        if self.probe == Some(segment.ack) {
            (self.edges, self.edge, self.probe) = (Some((first, segment.ack)), segment.ack, None);
            return self.received(segment, header, now);
        }
        if ahead(segment.ack, first) < 0 || ahead(segment.ack, last) > 0 {
            return Feed::Pass; // of the past, or a lie
        }
        let window = field << self.scale;
        let changed = std::mem::replace(&mut self.offered, window) != window;
        let before = self.sacked();
        self.note_sacked(header, segment.ack, last);
        if segment.ack != first {
            self.advance(segment.ack, before, now);
            return Feed::Pass;
        }
        let says_more = segment.end() != segment.seq || changed;
        let arrived = self.sacked().saturating_sub(before);
        if self.flight() == 0 || (says_more && arrived == 0) {
            return Feed::Pass;
        }
        self.duplicate(if arrived == 0 { self.mss } else { arrived });
        if says_more { Feed::Pass } else { Feed::Absorb }
    }

    fn acknowledged_syn(&mut self, segment: &Segment, now: i64) {
        if let Some((first, last)) = self.edges
            && segment.has(ACK)
            && ahead(segment.ack, first) > 0
            && ahead(segment.ack, last) <= 0
        {
            (self.edges, self.edge, self.since) = (Some((segment.ack, last)), segment.ack, now);
            self.measure(segment.ack, now);
        }
    }

    /// The peer has everything before `ack`. `sacked` is what it had out of order before.
    fn advance(&mut self, ack: u32, sacked: usize, now: i64) {
        let Some((first, last)) = self.edges else { return };
        let (acked, flight) = (distance(ack, first), self.flight());
        self.edges = Some((ack, last));
        if ahead(ack, self.edge) > 0 {
            self.edge = ack;
        }
        self.measure(ack, now);
        (self.duplicates, self.backoff, self.since) = (0, 0, now);
        if self.settled.is_some_and(|settled| ahead(ack, settled) >= 0) {
            self.settled = None;
        }
        match &mut self.recovery {
            Some(recovery) if ahead(ack, recovery.end) >= 0 => self.recovery = None,
            Some(_) => {
                // What had arrived out of order was counted when it did.
                let now_sacked = self.sacked();
                self.deliver((acked + now_sacked).saturating_sub(sacked).max(1));
                self.resend = true;
            }
            None => {
                let round_trip = self.round_trip.map_or(0, |(smoothed, _)| smoothed);
                self.congestion.acknowledged(acked, flight, now, round_trip);
            }
        }
    }

    fn duplicate(&mut self, delivered: usize) {
        self.duplicates += 1;
        if self.recovery.is_some() {
            return self.deliver(delivered);
        }
        let lost = self.duplicates >= DUPLICATES || self.sacked() > DUPLICATES as usize * self.mss;
        let (Some((_, last)), true, None) = (self.edges, lost, self.settled) else { return };
        let flight = self.flight();
        self.congestion.lost(flight);
        let delivered = self.sacked().max(delivered);
        self.recovery = Some(Recovery { end: last, flight, delivered: 0, out: 0, allowed: 0 });
        self.resend = true;
        self.deliver(delivered);
    }

    /// So many bytes arrived in a recovery: about as many may follow, fewer while more is under way than is to be.
    fn deliver(&mut self, bytes: usize) {
        let (sacked, flight, target) = (self.sacked(), self.flight(), self.congestion.window());
        let lost = self.lost();
        let Some(recovery) = &mut self.recovery else { return };
        recovery.delivered += bytes;
        let pipe = flight.saturating_sub(sacked + lost);
        recovery.allowed = if pipe > target {
            let share = recovery.delivered as u128 * target as u128 / recovery.flight.max(1) as u128;
            usize::try_from(share).unwrap_or(usize::MAX).saturating_sub(recovery.out)
        } else {
            let limit = recovery.delivered.saturating_sub(recovery.out).max(bytes) + self.mss;
            limit.min(target - pipe)
        };
    }

    /// Bytes that did not arrive though many after them did: RFC 6675's guess.
    fn lost(&self) -> usize {
        let (Some((first, _)), Some((_, highest))) = (self.edges, self.sacked.last()) else {
            return if self.recovery.is_some() { self.mss } else { 0 };
        };
        let sure = highest.wrapping_sub(DUPLICATES * self.mss as u32);
        let mut at = first;
        let mut lost = 0;
        for (start, end) in &self.sacked {
            let hole = if ahead(*start, sure) < 0 { *start } else { sure };
            lost += distance(hole, at);
            at = *end;
        }
        lost
    }

    /// Notes the ranges that an acknowledgement tells of, and forgets those that it makes unnecessary.
    fn note_sacked(&mut self, header: &[u8], ack: u32, last: u32) {
        self.sacked.retain_mut(|(start, end)| {
            if ahead(ack, *start) > 0 {
                *start = ack;
            }
            ahead(*end, *start) > 0
        });
        let Some(blocks) = option(header, OPTION_SACK) else { return };
        for block in blocks.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *block;
            let (start, end) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
            // What the peer has already been asked for twice (RFC 2883) is before `ack`.
            if ahead(start, ack) > 0 && ahead(end, start) > 0 && ahead(end, last) <= 0 {
                self.add_range(start, end);
            }
        }
    }

    fn add_range(&mut self, mut start: u32, mut end: u32) {
        self.sacked.retain(|(from, to)| {
            let apart = ahead(*from, end) > 0 || ahead(start, *to) > 0;
            if !apart {
                start = if ahead(*from, start) < 0 { *from } else { start };
                end = if ahead(*to, end) > 0 { *to } else { end };
            }
            apart
        });
        if self.sacked.len() < MOST_RANGES {
            let at = self.sacked.partition_point(|(from, _)| ahead(*from, start) < 0);
            self.sacked.insert(at, (start, end));
        }
    }

    fn measure(&mut self, ack: u32, now: i64) {
        let mut sent = None;
        while self.timed.front().is_some_and(|(end, _)| ahead(ack, *end) >= 0) {
            sent = self.timed.pop_front().map(|(_, then)| then);
        }
        let Some(sent) = sent else { return };
        let sample = u32::try_from(now.saturating_sub(sent)).unwrap_or(u32::MAX / 2).max(1);
        self.round_trip = Some(match self.round_trip {
            None => (sample, sample / 2),
            Some((smoothed, variation)) => {
                let off = u64::from(smoothed.abs_diff(sample));
                let mix = |old: u32, new: u64, weight: u64| ((u64::from(old) * (weight - 1) + new) / weight) as u32;
                (mix(smoothed, sample.into(), 8), mix(variation, off, 4))
            }
        });
        let round = ahead(ack, self.round) >= 0;
        if round && let Some((_, last)) = self.edges {
            self.round = last;
        }
        self.congestion.round_trip(sample, round);
    }

    /// The smoothed round trip and its variation; 0 before they were measured.
    pub fn round_trip(&self) -> (u32, u32) {
        self.round_trip.unwrap_or_default()
    }

    /// The window that the machine is to believe in.
    fn wanted(&self) -> usize {
        let flight = self.flight();
        let own = match &self.recovery {
            Some(recovery) => flight + recovery.allowed,
            // RFC 3042: the first copies of an acknowledgement let a segment each follow.
            None => self.congestion.window() + self.duplicates as usize * self.mss,
        };
        // In units of the field, of which there is one at least; what was offered is a multiple of them.
        own.max(1).next_multiple_of(1 << self.scale).min(self.offered)
    }

    /// The field of a header by which the machine, with `queued` bytes to send or on their way, learns what it is to believe;
    /// `None` when that makes no difference to it.
    pub fn correction(&self, queued: usize) -> Option<u16> {
        let wanted = self.wanted();
        let matters = wanted != self.told && queued > wanted.min(self.told);
        matters.then(|| self.field(wanted))
    }

    /// The field that a bare acknowledgement gets on its way to the machine.
    pub fn patch(&self) -> u16 {
        self.field(self.wanted())
    }

    fn field(&self, window: usize) -> u16 {
        u16::try_from(window >> self.scale).unwrap_or(u16::MAX)
    }

    /// The machine got a header with this field, which was no SYN's. `None` when it may not have looked at it.
    pub fn told(&mut self, field: Option<u16>) {
        self.told = field.map_or(usize::MAX, |field| usize::from(field) << self.scale);
    }

    /// Whether the machine is to send its first segment again, which is then to be seen to.
    pub fn wants_resend(&self) -> bool {
        self.resend
    }

    /// The first byte that is not acknowledged.
    pub fn first(&self) -> Option<u32> {
        self.edges.map(|(first, _)| first)
    }

    /// The machine has not gone back to what was not acknowledged: it is still under way.
    pub fn give_up_going_back(&mut self) {
        if let Some((_, last)) = self.edges {
            self.edge = last;
        }
    }

    /// The machine did not do so.
    pub fn give_up_resend(&mut self) {
        self.resend = false;
    }
}

#[cfg(test)]
mod tests;
