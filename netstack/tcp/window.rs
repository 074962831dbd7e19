//! The peer's window, where smoltcp has to hear something else than the peer says.
//!
//! What is lost on the way is sent again by one of two timers, of which smoltcp has one at a time: that for what is under way,
//! and that for probes of a closed window (RFC 9293, 3.8.6.1). A peer that closes its window with bytes under way, as one
//! does that rounds a scaled window down (RFC 7323, 2.4), is in between, and there smoltcp 0.14 falls silent for ever:
//!
//! ```text
//! window closed, nothing acknowledged ── the first timer comes, finds no room, and is not set again
//! window closed, a part acknowledged ─── the second takes its place: probes of the next byte, of which there is none;
//!                                        it ends when the window opens, and nobody has what was under way in mind
//! only the end (FIN) under way ───────── three equal acknowledgements are a loss, of bytes, of which there are none;
//!                                        the first timer is over
//! window closed, a probe took the rest ─ the second goes on, in a state without probes: no end of empty segments
//! ```
//!
//! So smoltcp hears of the smallest windows there are while something is under way, and at the end. What was under way is then
//! sent again, a few bytes of it, ever more rarely: a probe by another name, as on Linux. They are two in turn, since equal
//! ones would make the peer's answers to that look like those that tell of a loss.

use std::time::Duration;

use super::options::TcpOptions;
use super::segment::{ACK, FIN, RST, SYN, Segment};

/// The longest that smoltcp waits between probes, us.
const MAX_WAIT: i64 = 60_000_000;

/// A window of none.
#[derive(Clone, Copy, Default)]
struct Closed {
    /// When it was first probed (monotonic, us).
    since: Option<i64>,
    /// When it was first probed after the peer last spoke.
    asked: Option<i64>,
}

/// What a segment of the peer's is to smoltcp.
#[derive(Default)]
pub struct Heard {
    /// The window that it is to read there, if another.
    pub window: Option<u16>,
    /// There is room again, for bytes that were sent when there was none. Three more of the same make smoltcp send them now:
    /// its timer may be a minute away.
    pub opened: bool,
}

/// What the peer has room for.
#[derive(Default)]
pub struct PeerWindow {
    /// What smoltcp heard last.
    told: u16,
    closed: Option<Closed>,
    /// The sequence number after all that was sent, but for probes that smoltcp knows as such.
    next: Option<u32>,
    /// The sequence number of the first byte that smoltcp keeps for sending it again.
    first: Option<u32>,
}

impl PeerWindow {
    /// A segment of ours is on its way at `now`.
    pub fn sending(&mut self, segment: &Segment, now: i64) {
        let end = segment.end();
        self.first.get_or_insert(if segment.has(SYN) { end } else { segment.seq });
        if segment.len > 0
            && let Some(closed) = &mut self.closed
        {
            closed.since.get_or_insert(now);
            closed.asked.get_or_insert(now);
            if self.told == 0 {
                return;
            }
        }
        if self.next.is_none_or(|next| is_before(next, end)) {
            self.next = Some(end);
        }
    }

    /// A segment came while `queued` bytes were not acknowledged; with `ended` nor was our end, which follows them.
    pub fn hear(&mut self, segment: &Segment, queued: usize, ended: bool) -> Heard {
        if let Some(closed) = &mut self.closed {
            closed.asked = None;
        }
        let answer = (segment.has(ACK) && !segment.has(SYN)).then_some(segment.ack);
        let gain = answer.zip(self.first).map_or(0, |(ack, first)| ack.wrapping_sub(first) as usize);
        if segment.has(RST) || !segment.has(ACK | SYN) || gain > queued + usize::from(ended) {
            return Heard::default(); // as smoltcp ignores it
        }
        let shut = segment.window == 0;
        let was_closed = self.closed.is_some();
        self.closed = shut.then(|| self.closed.unwrap_or_default());
        let under_way = answer.is_some_and(|ack| self.next.is_some_and(|next| is_before(ack, next)));
        let only_end = under_way && queued == 0 && segment.len == 0;
        let at_end = gain > queued;
        let other = only_end || (shut && (under_way || at_end));
        let window = other.then_some(if self.told == 1 { 2 } else { 1 });
        self.told = window.unwrap_or(segment.window);
        let opened = was_closed && !shut && under_way && queued > 0 && segment.len == 0 && !segment.has(FIN);
        Heard { window, opened }
    }

    /// smoltcp has made of a segment that `bytes` more bytes were acknowledged.
    pub fn taken(&mut self, bytes: usize) {
        self.first = self.first.map(|first| first.wrapping_add(bytes as u32));
    }

    /// Whether the peer has no room.
    pub fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// How long a peer may have been silent, who last spoke at `heard`, while something is queued. `None`: for ever.
    ///
    /// Who has no room and says so whenever asked is not silent in the time between; only `TCP_USER_TIMEOUT` ends that.
    pub fn patience(&self, options: &TcpOptions, heard: i64) -> Option<Duration> {
        let wait = |at: i64| Duration::from_micros(at.saturating_sub(heard).clamp(0, MAX_WAIT) as u64);
        match (self.closed, options.user_timeout) {
            (None, limit) => Some(limit.unwrap_or(options.retransmit_timeout)),
            (Some(Closed { asked, .. }), None) => asked.map(|at| options.retransmit_timeout + wait(at)),
            (Some(Closed { since, .. }), Some(limit)) => {
                let before = since.map_or(0, |since| heard.saturating_sub(since).max(0));
                Some(limit.saturating_sub(Duration::from_micros(before as u64)))
            }
        }
    }
}

/// Whether a sequence number comes before another.
fn is_before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}
