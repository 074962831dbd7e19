//! When slow start has found what the path takes, before packets are lost.
//!
//! - Round trips become clearly longer from one round to the next: a queue is filling up. HyStart++, RFC 9406: slow start then
//!   goes on more slowly for some rounds, in case that was something else.
//! - Acknowledgements of one round follow each other for half a round trip: the path is half full, and would be full with the
//!   next doubling. That is the other half of HyStart (S. Ha, I. Rhee, "Taming the elephants", 2011), which Linux has too.

/// Samples that a round must have to count.
const SAMPLES: u32 = 8;
/// How much longer is clearly longer, us: an eighth, within these.
const LEAST: u32 = 4_000;
const MOST: u32 = 16_000;
/// How much more slowly it goes on.
const DIVISOR: usize = 4;
/// For how many rounds.
const ROUNDS: u32 = 5;
/// How close acknowledgements follow each other in a train, us.
const CLOSE: i64 = 2_000;

/// Round trips of a round.
#[derive(Clone, Copy, Debug)]
struct Round {
    shortest: u32,
    samples: u32,
}

impl Default for Round {
    fn default() -> Round {
        Round { shortest: u32::MAX, samples: 0 }
    }
}

/// The state of a slow start.
#[derive(Debug, Default)]
pub struct HyStart {
    last: Round,
    this: Round,
    /// While it goes on slowly: what round trips were when that began, and the rounds since.
    slower: Option<(u32, u32)>,
    /// The shortest round trip of all.
    shortest: Option<u32>,
    /// When the round began, and its last acknowledgement that followed closely.
    train: Option<(i64, i64)>,
}

impl HyStart {
    /// How much the window grows for `acked` bytes.
    pub fn growth(&self, acked: usize) -> usize {
        if self.slower.is_some() { acked / DIVISOR } else { acked }
    }

    /// Notes an acknowledgement at `now`, and the round trip that it tells, us. `round`: it is the first of a new round. Whether
    /// slow start is over.
    pub fn heard(&mut self, round_trip: Option<u32>, round: bool, now: i64) -> bool {
        if let Some(sample) = round_trip {
            self.shortest = Some(self.shortest.map_or(sample, |shortest| shortest.min(sample)));
        }
        let full = self.coupled(round, now);
        let longer = self.longer(round_trip, round);
        full || longer
    }

    /// Whether the acknowledgements of this round are a train as long as half a round trip.
    fn coupled(&mut self, round: bool, now: i64) -> bool {
        if round {
            self.train = Some((now, now));
            return false;
        }
        let (Some((start, last)), Some(shortest)) = (&mut self.train, self.shortest) else { return false };
        if now - *last > CLOSE {
            return false;
        }
        *last = now;
        // A path within a host or a rack is full at once, and has nothing to overflow.
        i64::from(shortest) > CLOSE && now - *start > i64::from(shortest / 2)
    }

    /// Whether round trips have become longer, and stayed so.
    fn longer(&mut self, round_trip: Option<u32>, round: bool) -> bool {
        if round {
            self.last = std::mem::take(&mut self.this);
            if let Some((_, rounds)) = &mut self.slower {
                *rounds += 1;
                if *rounds >= ROUNDS {
                    self.slower = None;
                    return true;
                }
            }
        }
        let Some(sample) = round_trip else { return false };
        self.this.shortest = self.this.shortest.min(sample);
        self.this.samples += 1;
        if self.this.samples < SAMPLES {
            return false;
        }
        match self.slower {
            // It was something else.
            Some((longest, _)) if self.this.shortest < longest => self.slower = None,
            Some(_) => {}
            None if self.last.shortest != u32::MAX => {
                let clearly = (self.last.shortest / 8).clamp(LEAST, MOST);
                if self.this.shortest >= self.last.shortest.saturating_add(clearly) {
                    self.slower = Some((self.this.shortest, 0));
                }
            }
            None => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round of ten samples, far apart from each other. Whether slow start is over.
    fn round(hystart: &mut HyStart, now: &mut i64, sample: u32) -> bool {
        (0..10).any(|n| {
            *now += 5_000;
            hystart.heard(Some(sample + n * 100), n == 0, *now)
        })
    }

    #[test]
    fn longer_round_trips_end_it_after_some_rounds() {
        let (mut hystart, mut now) = (HyStart::default(), 0);
        assert!(!round(&mut hystart, &mut now, 20_000) && !round(&mut hystart, &mut now, 21_000));
        assert_eq!(hystart.growth(1000), 1000);
        assert!(!round(&mut hystart, &mut now, 26_000));
        assert_eq!(hystart.growth(1000), 250);
        let over: Vec<bool> = (0..5).map(|_| round(&mut hystart, &mut now, 27_000)).collect();
        assert_eq!(over, [false, false, false, false, true]);
    }

    #[test]
    fn one_long_round_is_nothing() {
        let (mut hystart, mut now) = (HyStart::default(), 0);
        round(&mut hystart, &mut now, 20_000);
        round(&mut hystart, &mut now, 30_000);
        assert_eq!(hystart.growth(1000), 250);
        round(&mut hystart, &mut now, 20_000);
        assert_eq!(hystart.growth(1000), 1000);
    }

    #[test]
    fn a_few_samples_say_nothing() {
        let mut hystart = HyStart::default();
        for n in 0..100 {
            assert!(!hystart.heard(Some(10_000 * (n + 1)), true, i64::from(n) * 1_000_000));
        }
        assert_eq!(hystart.growth(1000), 1000);
    }

    #[test]
    fn a_train_of_half_a_round_trip_fills_the_path() {
        let mut hystart = HyStart::default();
        assert!(!hystart.heard(Some(20_000), true, 0));
        assert!((1..=10).all(|n| !hystart.heard(None, false, n * 1_000)));
        assert!(hystart.heard(None, false, 11_000));
        // With a gap it is none.
        assert!(!hystart.heard(Some(20_000), true, 20_000));
        assert!((1..=100).all(|n| !hystart.heard(None, false, 25_000 + n * 1_000)));
        // Nor within a host.
        let mut hystart = HyStart::default();
        assert!(!hystart.heard(Some(100), true, 0));
        assert!((1..=100).all(|n| !hystart.heard(Some(100), false, n * 10)));
    }
}
