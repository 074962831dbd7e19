//! What a connection has under way, what of it is lost, and how much more may go: RFC 5681, RFC 6298, the acknowledgements of
//! RFC 2018 as RFC 6675 reads them, and RFC 6937 for the time of a recovery.
//!
//! smoltcp keeps the bytes and sends them in order, as one tells it from outside:
//!
//! ```text
//!   acknowledgements ──> Sender ── which window? ──> the machine's view of its peer's window
//!                               ── is anything lost? ──> its timer, early: it goes back to the first byte
//!   what it sends    ──>        ── which of it? ──> the wire
//! ```
//!
//! - The window that the peer offers reaches the machine only as far as there may be more under way.
//! - Acknowledgements that say nothing new are kept from it, or it would send again by itself.
//! - When something is lost the machine is led to believe that its timer has expired, at which it goes back and sends
//!   everything again. Of that only what is lost reaches the wire; what the peer has, or what may still arrive, does not.
//!
//! ```text
//!   first                     rescued          lost                     last
//!     ├─ acknowledged soon ─────┼── to be sent ──┼─ may still arrive ─────┤   but for what the peer has of it (sacked)
//!                  edge: where the machine is
//! ```
//!
//! Sequence numbers are those of the wire, times are microseconds.

use std::collections::VecDeque;

use super::congestion::{Congestion, Control};
use super::segment::{ACK, FIN, RST, SYN, Segment, option};
use crate::netstack::stack::packet::be16;

/// Copies of an acknowledgement that mean a loss.
const DUPLICATES: u32 = 3;
/// `TCP_RTO_MIN`, `TCP_RTO_MAX`, and what there is before anything was measured.
const LEAST_TIMEOUT: i64 = 200_000;
const MOST_TIMEOUT: i64 = 120_000_000;
const FIRST_TIMEOUT: i64 = 1_000_000;
/// Ranges and times that are kept at most.
const MOST_RANGES: usize = 128;
const MOST_TIMED: usize = 512;
/// The largest shift of windows: RFC 7323.
const MOST_SCALE: u8 = 14;

/// Options of a header: RFC 7323, RFC 2018.
pub const OPTION_SCALE: u8 = 3;
const OPTION_SACK_PERMITTED: u8 = 4;
const OPTION_SACK: u8 = 5;

/// How far `a` is beyond `b`, which may be less than nothing.
fn ahead(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// `a - b`, when that is not less than nothing.
fn distance(a: u32, b: u32) -> usize {
    usize::try_from(ahead(a, b)).unwrap_or(0)
}

fn later(a: u32, b: u32) -> u32 {
    if ahead(a, b) > 0 { a } else { b }
}

fn earlier(a: u32, b: u32) -> u32 {
    if ahead(a, b) < 0 { a } else { b }
}

/// What goes wrong.
#[derive(Debug)]
enum Trouble {
    /// Nothing.
    None,
    /// Something is lost, and is made up for.
    Recovery(Recovery),
    /// Nothing was heard for long: everything before `end` counts as lost.
    Loss { end: u32 },
}

/// RFC 6937.
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

/// What of a segment that the machine sends goes to the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// These ranges of sequence numbers, in order; perhaps none.
    Ranges(Vec<(u32, u32)>),
}

/// The sending side.
#[derive(Debug)]
pub struct Sender {
    congestion: Congestion,
    mss: usize,
    /// The first byte that is not acknowledged, and that after the last that was ever sent; once a SYN was sent.
    edges: Option<(u32, u32)>,
    /// Up to here the machine has come, since it went back last.
    edge: u32,
    /// What the peer has beyond the first byte that it lacks, in order, apart from each other.
    sacked: Vec<(u32, u32)>,
    /// What the peer lacks before this is lost.
    lost: u32,
    /// What of that was sent again lies before this.
    rescued: u32,
    duplicates: u32,
    trouble: Trouble,
    /// Whether the peer tells what it has out of order.
    tells: bool,
    /// Ends of what was sent, and when. None sent twice: Karn's rule.
    timed: VecDeque<(u32, i64)>,
    /// Where the next round of round trips begins.
    round: u32,
    /// Smoothed round trip and its variation.
    round_trip: Option<(u32, u32)>,
    backoff: u32,
    /// When the timer was last set.
    since: i64,
    /// By how many bits the peer's windows are shifted, and those that the machine is told of.
    scale: u8,
    own_scale: u8,
    /// The window that the peer offers.
    offered: usize,
    /// The window that the machine believes in.
    told: usize,
    /// The end of a byte that was sent though the peer offers no window, to hear of it.
    probe: Option<u32>,
}

impl Sender {
    /// Of a connection that has sent nothing and never has more than `most` bytes under way.
    pub fn new(control: Control, mss: usize, most: usize) -> Sender {
        let needed = (0..MOST_SCALE).find(|&scale| usize::from(u16::MAX) << scale >= most);
        Sender {
            congestion: Congestion::new(control, mss),
            mss: mss.max(1),
            edges: None,
            edge: 0,
            sacked: Vec::new(),
            lost: 0,
            rescued: 0,
            duplicates: 0,
            trouble: Trouble::None,
            tells: false,
            timed: VecDeque::new(),
            round: 0,
            round_trip: None,
            backoff: 0,
            since: 0,
            scale: 0,
            own_scale: needed.unwrap_or(MOST_SCALE),
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
        self.edges.map_or(0, |(first, last)| distance(last, first))
    }

    /// The congestion window, `ssthresh`, and the state that `TCP_INFO` names: open, disorder, recovery, loss.
    pub fn shown(&self) -> (usize, Option<usize>, u8) {
        let state = match (&self.trouble, self.duplicates) {
            (Trouble::Recovery(_), _) => 3,
            (Trouble::Loss { .. }, _) => 4,
            (Trouble::None, 1..) => 1,
            (Trouble::None, 0) => 0,
        };
        (self.congestion.window(), self.congestion.threshold(), state)
    }

    /// Bytes that the peer has out of order.
    pub fn sacked(&self) -> usize {
        self.sacked.iter().map(|(start, end)| distance(*end, *start)).sum()
    }

    /// The smoothed round trip and its variation; 0 before they were measured.
    pub fn round_trip(&self) -> (u32, u32) {
        self.round_trip.unwrap_or_default()
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

    /// The first byte that is not acknowledged.
    pub fn first(&self) -> Option<u32> {
        self.edges.map(|(first, _)| first)
    }
}

// What is sent.
impl Sender {
    /// The machine sends a segment at `now`. What of it goes to the wire.
    pub fn sending(&mut self, segment: &Segment, now: i64) -> Part {
        let end = segment.end();
        if end == segment.seq {
            return Part::Whole;
        }
        let Some((first, last)) = self.edges else {
            (self.edges, self.edge, self.round, self.since) = (Some((segment.seq, end)), end, end, now);
            (self.lost, self.rescued) = (segment.seq, segment.seq);
            self.timed.push_back((end, now));
            return Part::Whole;
        };
        if segment.has(SYN) {
            // Once more: nobody knows yet how long that takes.
            self.timed.clear();
            self.since = now;
            return Part::Whole;
        }
        if self.offered == 0 && segment.len == 1 && segment.seq == last {
            self.probe = Some(end);
            return Part::Whole;
        }
        if first == last {
            if ahead(segment.seq, last) < 0 {
                return Part::Whole; // to keep the connection alive
            }
            self.since = now;
        }
        if ahead(segment.seq, self.edge) < 0 {
            self.timed_out(now); // the machine's own timer
            self.goes_back();
        }
        self.edge = later(self.edge, end);
        if ahead(end, last) > 0 {
            self.edges = Some((first, end));
            if self.timed.len() < MOST_TIMED {
                self.timed.push_back((end, now));
            }
        }
        let ranges = if ahead(segment.seq, last) >= 0 { vec![(segment.seq, end)] } else { self.wanting(segment.seq, end, last) };
        let bytes = ranges.iter().map(|(from, to)| distance(*to, *from)).sum();
        if let Trouble::Recovery(recovery) = &mut self.trouble {
            recovery.out += bytes;
            recovery.allowed = recovery.allowed.saturating_sub(bytes);
        }
        if ranges == [(segment.seq, end)] { Part::Whole } else { Part::Ranges(ranges) }
    }

    /// What of a segment must be sent again, or was never sent, `last` being the end of what was; it then counts as sent.
    fn wanting(&mut self, start: u32, end: u32, last: u32) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for (from, to) in self.lacking(start, earlier(end, last)) {
            let (from, to) = (later(from, self.rescued), earlier(to, self.lost));
            if ahead(to, from) > 0 {
                ranges.push((from, to));
            }
        }
        if let Some((_, to)) = ranges.last() {
            self.rescued = later(self.rescued, *to);
            self.timed.clear();
        }
        if ahead(end, last) > 0 {
            match ranges.last_mut() {
                Some(range) if range.1 == last => range.1 = end,
                _ => ranges.push((last, end)),
            }
        }
        ranges
    }

    /// What the peer lacks from `start` to `end`.
    fn lacking(&self, start: u32, end: u32) -> Vec<(u32, u32)> {
        let mut holes = Vec::new();
        let mut at = start;
        for (from, to) in &self.sacked {
            if ahead(*from, at) > 0 && ahead(end, at) > 0 {
                holes.push((at, earlier(*from, end)));
            }
            at = later(at, *to);
        }
        if ahead(end, at) > 0 {
            holes.push((at, end));
        }
        holes
    }

    /// Bytes that are on their way: neither with the peer nor lost.
    fn pipe(&self) -> usize {
        let Some((first, last)) = self.edges else { return 0 };
        let on_its_way = |(from, to): (u32, u32)| {
            distance(to, later(from, self.lost)) + distance(earlier(to, earlier(self.lost, self.rescued)), from)
        };
        self.lacking(first, last).into_iter().map(on_its_way).sum()
    }

    /// How much may go to the wire now.
    fn allowed(&self) -> usize {
        let window = self.congestion.window();
        match &self.trouble {
            Trouble::Recovery(recovery) => recovery.allowed,
            Trouble::Loss { .. } => window.saturating_sub(self.pipe()),
            // RFC 3042: what arrived out of order lets as much follow.
            Trouble::None => {
                let arrived = if self.tells { self.sacked() } else { self.duplicates as usize * self.mss };
                window.saturating_sub(self.flight().saturating_sub(arrived))
            }
        }
    }

    /// As whole segments, of which there is one at least where nothing is under way.
    fn whole(&self, bytes: usize) -> usize {
        let whole = bytes / self.mss * self.mss;
        if whole == 0 && self.flight() == 0 { bytes } else { whole }
    }

    /// How far the machine may go.
    fn target(&self) -> u32 {
        let Some((_, last)) = self.edges else { return 0 };
        let mut allowed = self.allowed();
        for (from, to) in self.lacking(self.edge, last) {
            let (from, to) = (later(from, self.rescued), earlier(to, self.lost));
            let len = distance(to, from);
            if len > allowed {
                return from.wrapping_add(self.whole(allowed) as u32);
            }
            allowed -= len;
        }
        last.wrapping_add(self.whole(allowed) as u32)
    }

    /// Whether something is lost that is behind the machine, and may be sent: it is to go back.
    pub fn must_go_back(&self) -> bool {
        let Some((first, last)) = self.edges else { return false };
        if ahead(self.lost, self.rescued) <= 0 || ahead(self.edge, self.rescued) <= 0 {
            return false;
        }
        let from = later(self.rescued, first);
        let next = self.lacking(from, earlier(self.lost, last)).into_iter().next();
        next.is_some_and(|(from, to)| {
            ahead(self.edge, from) > 0 && self.allowed() >= distance(to, from).min(self.mss) && self.allowed() > 0
        })
    }

    /// The machine goes back.
    pub fn goes_back(&mut self) {
        if let Some((first, _)) = self.edges {
            self.edge = first;
        }
    }

    /// It did not.
    pub fn did_not_go_back(&mut self) {
        if let Some((_, last)) = self.edges {
            (self.edge, self.rescued) = (last, later(self.rescued, self.lost));
        }
    }

    /// Whether the machine has come further than the first byte since it went back.
    pub fn has_moved(&self) -> bool {
        self.edges.is_some_and(|(first, _)| ahead(self.edge, first) > 0)
    }

    /// Everything that is under way counts as lost.
    pub fn timed_out(&mut self, now: i64) {
        let Some((first, last)) = self.edges else { return };
        let pipe = self.pipe().max(self.mss);
        self.congestion.timed_out(pipe, self.backoff > 0);
        self.backoff = (self.backoff + 1).min(16);
        self.trouble = Trouble::Loss { end: last };
        self.duplicates = 0;
        self.timed.clear();
        (self.lost, self.rescued, self.since) = (last, first, now);
        // It has forgotten what it said: RFC 2018, 8.
        if self.backoff > 1 || self.sacked.first().is_some_and(|(start, _)| *start == first) {
            self.sacked.clear();
        }
    }
}

// What is received.
impl Sender {
    /// A segment with `header`, of TCP, came at `now`. What is to become of it.
    pub fn received(&mut self, segment: &Segment, header: &[u8], now: i64) -> Feed {
        let Some(field) = header.get(14..16).map(|field| usize::from(be16(field, 0))) else { return Feed::Pass };
        if segment.has(SYN) {
            self.received_syn(segment, header, field, now);
            return Feed::Pass;
        }
        let Some((first, last)) = self.edges.filter(|_| segment.has(ACK) && !segment.has(RST)) else {
            return Feed::Pass;
        };
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
        if first == last {
            return Feed::Pass;
        }
        let bare = segment.len == 0 && !segment.has(FIN);
        let arrived = self.sacked().saturating_sub(before);
        if arrived > 0 || (bare && !changed) {
            self.duplicate(if arrived > 0 { arrived } else { self.mss });
        }
        if bare { Feed::Absorb } else { Feed::Pass }
    }

    fn received_syn(&mut self, segment: &Segment, header: &[u8], field: usize, now: i64) {
        // Neither is its own window scaled, nor are others unless both sides say so, as ours always does.
        let scale = option(header, OPTION_SCALE).and_then(|shift| shift.first().copied());
        if scale.is_none() {
            self.own_scale = 0;
        }
        self.scale = scale.unwrap_or(0).min(MOST_SCALE);
        self.tells = option(header, OPTION_SACK_PERMITTED).is_some();
        (self.offered, self.told) = (field, field);
        if let Some((first, last)) = self.edges
            && segment.has(ACK)
            && ahead(segment.ack, first) > 0
            && ahead(segment.ack, last) <= 0
        {
            self.move_to(segment.ack, last);
            self.since = now;
            self.measure(segment.ack, now);
        }
    }

    /// The first byte that is not acknowledged is another.
    fn move_to(&mut self, first: u32, last: u32) {
        self.edges = Some((first, last));
        self.edge = later(self.edge, first);
        self.lost = later(self.lost, first);
        self.rescued = later(self.rescued, first);
    }

    /// The peer has everything before `ack`. `sacked` is what it had out of order before.
    fn advance(&mut self, ack: u32, sacked: usize, now: i64) {
        let Some((first, last)) = self.edges else { return };
        let (acked, pipe) = (distance(ack, first), self.pipe());
        self.move_to(ack, last);
        self.measure(ack, now);
        (self.duplicates, self.backoff, self.since) = (0, 0, now);
        match &self.trouble {
            Trouble::Recovery(recovery) if ahead(ack, recovery.end) < 0 => {
                self.note_lost(true);
                // What had arrived out of order was counted when it did.
                let delivered = (acked + self.sacked()).saturating_sub(sacked).max(1);
                self.deliver(delivered);
                return self.allow_first();
            }
            Trouble::Recovery(_) => self.trouble = Trouble::None,
            Trouble::Loss { end } if ahead(ack, *end) >= 0 => self.trouble = Trouble::None,
            Trouble::Loss { .. } | Trouble::None => {}
        }
        let round_trip = self.round_trip().0;
        self.congestion.acknowledged(acked, pipe.max(acked), now, round_trip);
    }

    /// An acknowledgement said nothing new but that so many bytes arrived.
    fn duplicate(&mut self, arrived: usize) {
        self.duplicates += 1;
        match &self.trouble {
            Trouble::Recovery(_) => {
                self.note_lost(false);
                self.deliver(arrived);
            }
            Trouble::Loss { .. } => {}
            Trouble::None if self.duplicates >= DUPLICATES || self.sacked() > DUPLICATES as usize * self.mss => {
                self.recover(arrived);
            }
            Trouble::None => {}
        }
    }

    fn recover(&mut self, arrived: usize) {
        let Some((first, last)) = self.edges else { return };
        let flight = self.flight();
        self.congestion.lost(flight);
        self.trouble =
            Trouble::Recovery(Recovery { end: last, flight, delivered: 0, out: 0, allowed: 0 });
        (self.lost, self.rescued) = (first, first);
        self.note_lost(true);
        self.deliver(self.sacked().max(arrived));
        self.allow_first();
    }

    /// What is lost and holds up everything else is sent again in any case.
    fn allow_first(&mut self) {
        let first = self.first();
        if let Trouble::Recovery(recovery) = &mut self.trouble
            && first == Some(self.rescued)
            && ahead(self.lost, self.rescued) > 0
        {
            recovery.allowed = recovery.allowed.max(self.mss);
        }
    }

    /// Draws the line before which what the peer lacks is lost: behind it it has some segments' worth. `first`: its first
    /// segment is lost in any case, if it has others or does not tell.
    fn note_lost(&mut self, first: bool) {
        let Some((start, last)) = self.edges else { return };
        if let Some((_, highest)) = self.sacked.last() {
            let sure = highest.wrapping_sub(DUPLICATES * self.mss as u32);
            self.lost = later(self.lost, sure);
        }
        if first && (!self.tells || !self.sacked.is_empty()) {
            let end = start.wrapping_add(self.mss as u32);
            let hole = self.sacked.first().map_or(last, |(from, _)| *from);
            self.lost = later(self.lost, earlier(end, earlier(hole, last)));
        }
    }

    /// So many bytes arrived in a recovery: about as many may follow, fewer while more is under way than is to be.
    fn deliver(&mut self, bytes: usize) {
        let (pipe, target) = (self.pipe(), self.congestion.window());
        let Trouble::Recovery(recovery) = &mut self.trouble else { return };
        recovery.delivered += bytes;
        recovery.allowed = if pipe > target {
            let share = recovery.delivered as u128 * target as u128 / recovery.flight.max(1) as u128;
            usize::try_from(share).unwrap_or(usize::MAX).saturating_sub(recovery.out)
        } else {
            let limit = recovery.delivered.saturating_sub(recovery.out).max(bytes) + self.mss;
            limit.min(target - pipe)
        };
    }

    /// Notes the ranges that an acknowledgement tells of, and forgets those that it makes unnecessary.
    fn note_sacked(&mut self, header: &[u8], ack: u32, last: u32) {
        self.sacked.retain_mut(|(start, end)| {
            *start = later(*start, ack);
            ahead(*end, *start) > 0
        });
        let Some(blocks) = option(header, OPTION_SACK).filter(|_| self.tells) else { return };
        for block in blocks.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *block;
            let (start, end) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
            // What the peer was sent twice (RFC 2883) is before `ack`.
            if ahead(start, ack) > 0 && ahead(end, start) > 0 && ahead(end, last) <= 0 {
                self.add_range(start, end);
            }
        }
    }

    fn add_range(&mut self, mut start: u32, mut end: u32) {
        self.sacked.retain(|(from, to)| {
            let apart = ahead(*from, end) > 0 || ahead(start, *to) > 0;
            if !apart {
                (start, end) = (earlier(start, *from), later(end, *to));
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
        let round = ahead(ack, self.round) >= 0;
        if round && let Some((_, last)) = self.edges {
            self.round = last;
        }
        let sample = sent.map(|sent| u32::try_from(now.saturating_sub(sent)).unwrap_or(u32::MAX / 2).max(1));
        self.congestion.heard(sample, round, now);
        let Some(sample) = sample else { return };
        self.round_trip = Some(match self.round_trip {
            None => (sample, sample / 2),
            Some((smoothed, variation)) => {
                let off = u64::from(smoothed.abs_diff(sample));
                let mix = |old: u32, new: u64, weight: u64| ((u64::from(old) * (weight - 1) + new) / weight) as u32;
                (mix(smoothed, sample.into(), 8), mix(variation, off, 4))
            }
        });
    }
}

// What the machine is told.
impl Sender {
    /// By how many bits the machine is to shift the windows that it is told of, when windows are shifted.
    pub fn own_scale(&self) -> u8 {
        self.own_scale
    }

    /// The window that the machine is to believe in, as a multiple of what a field can say.
    fn wanted(&self) -> usize {
        let Some((first, _)) = self.edges else { return self.offered };
        let bytes = distance(self.target(), first).min(self.offered);
        let unit = 1 << self.own_scale;
        // None at all it believes only if the peer says so.
        let most = usize::from(u16::MAX) << self.own_scale;
        if self.offered == 0 { 0 } else { (bytes & !(unit - 1)).clamp(unit, most) }
    }

    /// The field of a header by which the machine, with `queued` bytes to send or on their way, learns what it is to believe;
    /// `None` when that makes no difference to it.
    pub fn correction(&self, queued: usize) -> Option<u16> {
        let wanted = self.wanted();
        let matters = wanted != self.told && queued > wanted.min(self.told);
        matters.then(|| self.field(wanted))
    }

    /// The field that an acknowledgement gets on its way to the machine.
    pub fn patch(&self) -> u16 {
        self.field(self.wanted())
    }

    fn field(&self, window: usize) -> u16 {
        u16::try_from(window >> self.own_scale).unwrap_or(u16::MAX)
    }

    /// The machine got a header with this field, which was no SYN's. `None` when it may not have looked at it.
    pub fn told(&mut self, field: Option<u16>) {
        self.told = field.map_or(usize::MAX, |field| usize::from(field) << self.own_scale);
    }
}

#[cfg(test)]
mod tests;
