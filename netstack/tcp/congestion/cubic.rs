//! CUBIC: RFC 9438. The window after a loss follows a cubic function of the time since then, flat where it was when packets
//! were lost.

/// How fast it grows, segments a second cubed: RFC 9438, 5.
const C: f64 = 0.4;
/// What is left of the window after a loss.
const BETA: f64 = 0.7;

/// Its state. All sizes in bytes.
#[derive(Debug, Default)]
pub struct Cubic {
    /// The window when packets were last lost.
    most: f64,
    epoch: Option<Epoch>,
}

/// A time of growth.
#[derive(Debug)]
struct Epoch {
    /// Its beginning, us.
    start: i64,
    /// Where the curve is flat: seconds after the beginning, bytes.
    k: f64,
    origin: f64,
    /// What Reno would have.
    estimate: f64,
    /// The window before the loss that began it.
    before: f64,
}

impl Cubic {
    /// The window after `acked` bytes more.
    pub fn grown(&mut self, window: usize, acked: usize, mss: usize, now: i64, round_trip: u32) -> usize {
        let (own, mss) = (window as f64, mss as f64);
        let most = self.most;
        let epoch = self.epoch.get_or_insert_with(|| {
            let (k, origin) = if own < most { (((most - own) / mss / C).cbrt(), most) } else { (0.0, own) };
            Epoch { start: now, k, origin, estimate: own, before: most }
        });
        // 4.3: as Reno with such a reduction, until the window is what it was before.
        let alpha = if epoch.estimate >= epoch.before { 1.0 } else { 3.0 * (1.0 - BETA) / (1.0 + BETA) };
        epoch.estimate += alpha * mss * acked as f64 / own;
        // 4.2: where the curve will be after a round trip, and no faster than slow start.
        let ahead = (now - epoch.start + i64::from(round_trip)) as f64 / 1e6;
        let target = epoch.origin + C * mss * (ahead - epoch.k).powi(3);
        let target = target.clamp(own, 1.5 * own);
        let curve = own + (target - own) / own * acked as f64;
        curve.max(epoch.estimate) as usize
    }

    /// The window after a loss, with `flight` bytes under way.
    pub fn reduced(&mut self, window: usize, flight: usize, mss: usize) -> usize {
        let window = window as f64;
        // 4.7: one who lost earlier than last time makes room for others.
        self.most = if window + (mss as f64) < self.most { window * (1.0 + BETA) / 2.0 } else { window };
        self.epoch = None;
        (flight as f64 * BETA) as usize
    }

    /// Growth begins anew with the next acknowledgement: RFC 9438, 4.8.
    pub fn forget_epoch(&mut self) {
        self.epoch = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: usize = 1000;

    /// The window after a number of seconds, with a round trip of 100 ms.
    fn after(cubic: &mut Cubic, mut window: usize, seconds: usize) -> usize {
        for round in 0..seconds * 10 {
            let flight = window;
            for _ in 0..flight / MSS {
                window = cubic.grown(window, MSS, MSS, round as i64 * 100_000, 100_000);
            }
        }
        window
    }

    #[test]
    fn the_window_comes_back_to_where_it_was_and_then_goes_on() {
        let mut cubic = Cubic::default();
        let window = cubic.reduced(1000 * MSS, 1000 * MSS, MSS);
        assert_eq!(window, 700 * MSS);
        // K = cbrt(300 / 0.4) = 9.1 seconds.
        let half = after(&mut cubic, window, 5);
        assert!((900 * MSS..1000 * MSS).contains(&half), "{half}");
        let mut cubic = Cubic::default();
        let window = cubic.reduced(1000 * MSS, 1000 * MSS, MSS);
        let flat = after(&mut cubic, window, 9);
        assert!((985 * MSS..1010 * MSS).contains(&flat), "{flat}");
        let mut cubic = Cubic::default();
        let window = cubic.reduced(1000 * MSS, 1000 * MSS, MSS);
        let beyond = after(&mut cubic, window, 15);
        assert!(beyond > 1050 * MSS, "{beyond}");
    }

    #[test]
    fn a_small_window_grows_as_renos() {
        let mut cubic = Cubic::default();
        let window = cubic.reduced(10 * MSS, 10 * MSS, MSS);
        // A segment a round trip would be 50; CUBIC's own share is about half of that until the window is what it was.
        let grown = after(&mut cubic, window, 5);
        assert!((30 * MSS..60 * MSS).contains(&grown), "{grown}");
    }

    #[test]
    fn an_earlier_loss_makes_room() {
        let mut cubic = Cubic::default();
        cubic.reduced(1000 * MSS, 1000 * MSS, MSS);
        cubic.reduced(800 * MSS, 800 * MSS, MSS);
        assert_eq!(cubic.most as usize, 680 * MSS);
    }
}
