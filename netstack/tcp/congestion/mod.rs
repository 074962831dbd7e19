//! How much may be under way: congestion control. RFC 5681 with Reno's and CUBIC's (RFC 9438) windows, an initial window of ten
//! segments (RFC 6928), growth by the bytes that are acknowledged (RFC 3465), and a slow start that ends when round trips
//! become longer rather than when packets are lost (HyStart++, RFC 9406).
//!
//! Everything is in bytes and microseconds. Who sends what, and what is lost, is [`sender`](super::sender)'s to find out.

mod cubic;
mod hystart;

use self::cubic::Cubic;
use self::hystart::HyStart;

/// Which window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// RFC 9438.
    Cubic,
    /// RFC 5681.
    Reno,
}

/// By name. The first is what connections start with.
const CONTROLS: [(&str, Control); 2] = [("cubic", Control::Cubic), ("reno", Control::Reno)];

impl Control {
    /// What connections start with.
    pub const DEFAULT: Control = CONTROLS[0].1;

    /// The names of all, the default's first: `tcp_available_congestion_control`.
    pub fn names() -> impl Iterator<Item = &'static str> {
        CONTROLS.iter().map(|(name, _)| *name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        CONTROLS.iter().find(|(_, control)| *control == self).map_or("", |(name, _)| name)
    }

    /// By name.
    pub fn named(name: &[u8]) -> Option<Control> {
        CONTROLS.iter().find(|(known, _)| known.as_bytes() == name).map(|(_, control)| *control)
    }
}

/// Segments that may be sent before anything is acknowledged: RFC 6928.
const INITIAL_SEGMENTS: usize = 10;
/// A slow start with fewer segments goes on, whatever its round trips: as Linux's `hystart_low_window`.
const LOW_WINDOW: usize = 16;
/// `ssthresh` before anything was lost.
const NO_THRESHOLD: usize = usize::MAX;

/// The window of a connection.
#[derive(Debug)]
pub struct Congestion {
    control: Control,
    mss: usize,
    window: usize,
    threshold: usize,
    cubic: Cubic,
    hystart: HyStart,
    /// Whether bytes were acknowledged already.
    started: bool,
}

impl Congestion {
    /// Of a connection whose segments have `mss` bytes.
    pub fn new(control: Control, mss: usize) -> Congestion {
        let mss = mss.max(1);
        Congestion {
            control,
            mss,
            window: INITIAL_SEGMENTS * mss,
            threshold: NO_THRESHOLD,
            cubic: Cubic::default(),
            hystart: HyStart::default(),
            started: false,
        }
    }

    /// The segment size turned out to be another.
    pub fn set_mss(&mut self, mss: usize) {
        self.mss = mss.max(1);
        if !self.started {
            self.window = INITIAL_SEGMENTS * self.mss;
        }
    }

    /// Goes on with another control and the same window.
    pub fn set_control(&mut self, control: Control) {
        if control != self.control {
            (self.control, self.cubic) = (control, Cubic::default());
        }
    }

    /// Bytes that may be under way.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Below this the window grows fast: `ssthresh`. `None` before there was any loss.
    pub fn threshold(&self) -> Option<usize> {
        (self.threshold != NO_THRESHOLD).then_some(self.threshold)
    }

    fn slow_start(&self) -> bool {
        self.window < self.threshold
    }

    /// `acked` bytes were acknowledged, of `flight` that were under way. `round_trip` is the smoothed one.
    pub fn acknowledged(&mut self, acked: usize, flight: usize, now: i64, round_trip: u32) {
        self.started = true;
        // What is not used up needs not grow: `tcp_is_cwnd_limited` of Linux.
        let used = if self.slow_start() {
            self.window < flight.saturating_mul(2)
        } else {
            flight.saturating_add(self.mss.max(self.window / 8)) >= self.window
        };
        if !used {
            return;
        }
        let mut acked = acked;
        if self.slow_start() {
            let growth = self.hystart.growth(acked);
            let room = self.threshold - self.window;
            self.window = self.window.saturating_add(growth.min(room));
            if growth <= room {
                return;
            }
            acked = growth - room;
        }
        let grown = match self.control {
            Control::Cubic => self.cubic.grown(self.window, acked, self.mss, now, round_trip),
            Control::Reno => self.window + (self.mss * acked / self.window.max(1)).max(1),
        };
        self.window = grown.max(self.mss);
    }

    /// Something was acknowledged at `now`, perhaps with a round trip that took so long; a round of them has begun, if `round`.
    pub fn heard(&mut self, round_trip: Option<u32>, round: bool, now: i64) {
        let over = self.hystart.heard(round_trip, round, now);
        if over && self.slow_start() && self.window >= LOW_WINDOW * self.mss {
            self.threshold = self.window;
        }
    }

    /// Something was lost of `flight` bytes under way. The window that recovery ends with; it is in force at once.
    pub fn lost(&mut self, flight: usize) {
        self.threshold = self.reduced(flight);
        self.window = self.threshold;
    }

    /// Nothing was heard for so long that all of `flight` counts as lost; `again` when nothing was acknowledged since that was
    /// said last.
    pub fn timed_out(&mut self, flight: usize, again: bool) {
        if !again {
            self.threshold = self.reduced(flight);
        }
        self.cubic.forget_epoch();
        self.window = self.mss;
    }

    fn reduced(&mut self, flight: usize) -> usize {
        let reduced = match self.control {
            Control::Cubic => self.cubic.reduced(self.window, flight, self.mss),
            Control::Reno => flight / 2,
        };
        reduced.max(2 * self.mss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: usize = 1000;

    /// Acknowledges windows in full, a round trip of 50 ms each.
    fn rounds(congestion: &mut Congestion, from: i64, count: i64) {
        for round in 0..count {
            let flight = congestion.window();
            for part in 0..flight / (2 * MSS) {
                let _ = part;
                congestion.acknowledged(2 * MSS, flight, from + round * 50_000, 50_000);
            }
        }
    }

    #[test]
    fn slow_start_doubles_and_what_is_not_used_does_not_grow() {
        for control in [Control::Cubic, Control::Reno] {
            let mut congestion = Congestion::new(control, MSS);
            assert_eq!(congestion.window(), 10 * MSS);
            congestion.set_mss(500);
            assert_eq!(congestion.window(), 5000);
            congestion.set_mss(MSS);
            rounds(&mut congestion, 0, 3);
            assert_eq!(congestion.window(), 80 * MSS);
            congestion.acknowledged(MSS, MSS, 0, 50_000);
            assert_eq!((congestion.window(), congestion.threshold()), (80 * MSS, None));
        }
    }

    #[test]
    fn reno_halves_and_grows_by_a_segment_a_round_trip() {
        let mut congestion = Congestion::new(Control::Reno, MSS);
        congestion.lost(40 * MSS);
        assert_eq!((congestion.window(), congestion.threshold()), (20 * MSS, Some(20 * MSS)));
        rounds(&mut congestion, 0, 10);
        assert!((29 * MSS..=31 * MSS).contains(&congestion.window()), "{}", congestion.window());
    }

    #[test]
    fn a_timeout_begins_anew_and_keeps_its_threshold() {
        let mut congestion = Congestion::new(Control::Cubic, MSS);
        rounds(&mut congestion, 0, 3);
        congestion.timed_out(80 * MSS, false);
        congestion.timed_out(MSS, true);
        assert_eq!((congestion.window(), congestion.threshold()), (MSS, Some(56 * MSS)));
        rounds(&mut congestion, 0, 1);
        congestion.acknowledged(MSS, MSS, 0, 50_000);
        assert_eq!(congestion.window(), 2 * MSS);
    }

    #[test]
    fn names_lead_to_controls_and_back() {
        for name in Control::names() {
            assert_eq!(Control::named(name.as_bytes()).map(Control::name), Some(name));
        }
        assert_eq!((Control::named(b"none"), Control::DEFAULT), (None, Control::Cubic));
    }
}
