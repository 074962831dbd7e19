//! Bounds for what is kept in case it is wanted again. The second-chance rule: what was used since it was last looked at
//! goes to the back of the queue instead of out, so that use costs one store and no lock.

use std::collections::VecDeque;

/// A queue of things with weights, bounded by the sum of those.
pub struct Warm<T> {
    queue: VecDeque<T>,
    total: usize,
    limit: usize,
}

impl<T> Warm<T> {
    /// Keeps things of up to `limit` in all.
    pub fn new(limit: usize) -> Warm<T> {
        Warm { queue: VecDeque::new(), total: 0, limit }
    }

    /// Adds a thing, if it is given, and weight. Returns what has to go: `release` says of a thing that was not used
    /// lately what it weighs, and `None` of one that was.
    pub fn add(&mut self, thing: Option<T>, weight: usize, release: impl Fn(&T) -> Option<usize>) -> Vec<T> {
        self.queue.extend(thing);
        self.total += weight;
        let mut out = Vec::new();
        let mut chances = 2 * self.queue.len();
        while self.total > self.limit && chances > 0 {
            chances -= 1;
            let Some(oldest) = self.queue.pop_front() else { break };
            match release(&oldest) {
                Some(weight) => {
                    self.total = self.total.saturating_sub(weight);
                    out.push(oldest);
                }
                None => self.queue.push_back(oldest),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_used_stays_and_the_oldest_of_the_rest_goes() {
        let used = [Cell::new(true), Cell::new(false), Cell::new(false)];
        let release = |&index: &usize| if used[index].replace(false) { None } else { Some(1) };
        let mut warm = Warm::new(2);
        assert!(warm.add(Some(0), 1, release).is_empty());
        assert!(warm.add(Some(1), 1, release).is_empty());
        assert_eq!(warm.add(Some(2), 1, release), [1]);
        // Its second chance is used up.
        assert_eq!(warm.add(None, 1, release), [2]);
        assert_eq!(warm.add(None, 1, release), [0]);
    }
}
