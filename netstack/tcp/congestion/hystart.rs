//! HyStart++: RFC 9406. Slow start ends when the round trips of a round are clearly longer than those of the one before: a
//! queue is filling up, and would overflow. First it goes on more slowly for some rounds, in case that was something else.

/// Samples that a round must have to count.
const SAMPLES: u32 = 8;
/// How much longer is clearly longer, us: an eighth, within these.
const LEAST: u32 = 4_000;
const MOST: u32 = 16_000;
/// How much more slowly it goes on.
const DIVISOR: usize = 4;
/// For how many rounds.
const ROUNDS: u32 = 5;

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
}

impl HyStart {
    /// How much the window grows for `acked` bytes.
    pub fn growth(&self, acked: usize) -> usize {
        if self.slower.is_some() { acked / DIVISOR } else { acked }
    }

    /// Notes a round trip, us. `round`: it is the first of a new round. Whether slow start is over.
    pub fn sample(&mut self, sample: u32, round: bool) -> bool {
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

    /// A round of ten samples. Whether slow start is over.
    fn round(hystart: &mut HyStart, sample: u32) -> bool {
        (0..10).any(|n| hystart.sample(sample + n * 100, n == 0))
    }

    #[test]
    fn longer_round_trips_end_it_after_some_rounds() {
        let mut hystart = HyStart::default();
        assert!(!round(&mut hystart, 20_000) && !round(&mut hystart, 21_000));
        assert_eq!(hystart.growth(1000), 1000);
        assert!(!round(&mut hystart, 26_000));
        assert_eq!(hystart.growth(1000), 250);
        let over: Vec<bool> = (0..5).map(|_| round(&mut hystart, 27_000)).collect();
        assert_eq!(over, [false, false, false, false, true]);
    }

    #[test]
    fn one_long_round_is_nothing() {
        let mut hystart = HyStart::default();
        round(&mut hystart, 20_000);
        round(&mut hystart, 30_000);
        assert_eq!(hystart.growth(1000), 250);
        round(&mut hystart, 20_000);
        assert_eq!(hystart.growth(1000), 1000);
    }

    #[test]
    fn a_few_samples_say_nothing() {
        let mut hystart = HyStart::default();
        for n in 0..100 {
            assert!(!hystart.sample(10_000 * (n + 1), true));
        }
        assert_eq!(hystart.growth(1000), 1000);
    }
}
