//! How long what was learnt of a tree that others may change, but rarely do, is good: for a second, and no longer than until
//! the next command of the runtime.
//!
//! A container's writable root is changed from outside by `docker cp` and the like, and by nobody else. Whoever does that
//! and then looks from inside does so with a command that enters the sandbox (`exec`, `resume`), which begins a new *epoch*:
//! nothing that was learnt before is believed any more. What changes without any command is seen a second later.
//!
//! ```text
//! Stamp = the epoch and the time when something was asked       fresh = same epoch, less than a second ago
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// How long something is believed, in milliseconds: a second, less what passes between an answer and its use.
pub const LIFETIME: u64 = 998;

/// Bits of a stamp that hold the time in milliseconds, which are enough for centuries.
const TIME_BITS: u32 = 44;

/// When something was asked. The default is never: not fresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp(pub(super) u64);

/// The epochs and the clock of a sandbox.
pub struct Leases {
    /// Counts from 1.
    epoch: AtomicU64,
    clock: Clock,
}

enum Clock {
    /// The host's, from then on.
    Since(Instant),
    /// A test's, in milliseconds.
    Manual(AtomicU64),
}

impl Leases {
    /// The sandbox's own.
    pub fn sandbox() -> &'static Arc<Leases> {
        static SANDBOX: OnceLock<Arc<Leases>> = OnceLock::new();
        SANDBOX.get_or_init(|| Leases::with_clock(Clock::Since(Instant::now())))
    }

    /// With a clock that only [`Leases::advance`] moves: for tests.
    pub fn manual() -> Arc<Leases> {
        Leases::with_clock(Clock::Manual(AtomicU64::new(0)))
    }

    fn with_clock(clock: Clock) -> Arc<Leases> {
        Arc::new(Leases { epoch: AtomicU64::new(1), clock })
    }

    /// Nothing that was learnt before is good any more: a command has entered the sandbox, and what its sender did before
    /// must be seen.
    pub fn new_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Moves a manual clock by so many milliseconds; the host's goes by itself.
    pub fn advance(&self, millis: u64) {
        if let Clock::Manual(now) = &self.clock {
            now.fetch_add(millis, Ordering::SeqCst);
        }
    }

    /// To be taken before asking.
    pub fn stamp(&self) -> Stamp {
        Stamp(self.epoch.load(Ordering::SeqCst) << TIME_BITS | self.millis())
    }

    /// Whether what was asked then is still good.
    pub fn is_fresh(&self, stamp: Stamp) -> bool {
        let now = self.stamp().0;
        now >> TIME_BITS == stamp.0 >> TIME_BITS && now.wrapping_sub(stamp.0) < LIFETIME
    }

    fn millis(&self) -> u64 {
        let millis = match &self.clock {
            Clock::Since(start) => start.elapsed().as_millis() as u64,
            Clock::Manual(now) => now.load(Ordering::SeqCst),
        };
        millis & ((1 << TIME_BITS) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_good_for_a_second_of_its_epoch() {
        let leases = Leases::manual();
        assert!(!leases.is_fresh(Stamp::default()));
        let stamp = leases.stamp();
        assert!(leases.is_fresh(stamp));
        leases.advance(LIFETIME - 1);
        assert!(leases.is_fresh(stamp));
        leases.advance(1);
        assert!(!leases.is_fresh(stamp));
        let stamp = leases.stamp();
        leases.new_epoch();
        assert!(!leases.is_fresh(stamp));
        assert!(leases.is_fresh(leases.stamp()));
    }
}
