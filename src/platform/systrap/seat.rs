//! How a sentry thread waits for its free stub: looking from another CPU, or asleep on the stub's own.
//!
//! Looking pays when calls come quickly and a CPU has nothing else to do. What says so is cheap to know: how long the stub
//! took from one call to the next, whether another pair runs on that CPU, and whether the host has taken the CPU away while
//! the thread looked, which means that somebody else wants it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::context::state;
use crate::platform::placement::{Place, has_slept};

/// How many calls must come quickly before the thread looks.
const EAGER: u32 = 24;

/// What is quick: from answer to next call, a futex hand-over included.
const QUICK: Duration = Duration::from_micros(20);

/// How long a thread looks: about what it costs to be woken on another CPU.
const PATIENCE: Duration = Duration::from_micros(50);

/// How often it looks between two glances at the clock.
const LOOKS: u32 = 64;

/// That long without looking means that the host ran somebody else.
const INTERRUPTED: Duration = Duration::from_micros(300);

/// How often the stub looks for its answer: some 40 us.
const STUB_LOOKS: u32 = 2000;

const SHORTEST_BREAK: Duration = Duration::from_millis(2);
const LONGEST_BREAK: Duration = Duration::from_millis(500);

/// How many times in a row a thread must have slept after few calls before it stays with its stub.
const NAPS: u32 = 2;

/// What a sentry thread knows of its stub's habits.
pub struct Seat {
    quick: u32,
    /// Calls since it last slept for something that was not there.
    awake: u32,
    /// How often in a row it slept after few of them.
    naps: u32,
    /// No looking before this.
    not_before: Instant,
    pause: Duration,
    /// When it last went to another CPU.
    spread_at: Instant,
    /// When the stub was last told to go on.
    told: Instant,
}

/// Why a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// The word has changed.
    Changed,
    /// It has not, and it is time to sleep.
    Enough,
}

impl Seat {
    /// Of a thread of which nothing is known.
    pub fn new() -> Seat {
        let now = Instant::now();
        Seat { quick: 0, awake: 0, naps: 0, not_before: now, pause: SHORTEST_BREAK, spread_at: now, told: now }
    }

    /// How often the stub shall look for its answer.
    pub fn stub_patience(place: &Place) -> u32 {
        if place.is_spread() { STUB_LOOKS } else { 0 }
    }

    /// The stub is about to be told to go on; `slept`: it had given up looking; `together`: to look costs more than it saves.
    /// Decides where the thread is to wait.
    pub fn settle(&mut self, place: &mut Place, slept: bool, together: bool) {
        let blocked = has_slept();
        let together = together || self.naps_often(blocked);
        if place.is_spread() && (slept || together || place.is_in_the_way()) {
            place.join();
            self.quick = 0;
        }
        if blocked || together {
            // One that often waits for others has no use for a CPU that looks either.
            self.quick = 0;
        }
        if place.is_spread() {
            // The clock costs as much as the hand-over: `look` reads it when it must.
            return;
        }
        self.told = Instant::now();
        if self.quick < EAGER || self.told < self.not_before {
            return;
        }
        if place.spread() {
            // Moving takes time, which is not the stub's.
            self.told = Instant::now();
            self.spread_at = self.told;
        } else {
            self.not_before = self.told + SHORTEST_BREAK;
        }
    }

    /// Whether the thread sleeps so often that it must not be away from its stub: that looks for an answer meanwhile, and keeps
    /// its CPU from whoever is to bring it.
    fn naps_often(&mut self, blocked: bool) -> bool {
        if !blocked {
            self.awake = self.awake.saturating_add(1);
            return false;
        }
        self.naps = if self.awake < EAGER { self.naps.saturating_add(1) } else { 0 };
        self.awake = 0;
        self.naps >= NAPS
    }

    /// The stub has called.
    pub fn called(&mut self, place: &Place) {
        if place.is_spread() {
            return;
        }
        let quick = self.told.elapsed() < QUICK;
        self.quick = if quick { self.quick.saturating_add(1) } else { 0 };
    }

    /// The thread is about to sleep: on its stub's CPU.
    pub fn gives_up(&mut self, place: &mut Place) {
        if place.is_spread() {
            self.quick = 0;
            place.join();
        }
    }

    /// Looks whether `word` has changed from [`state::RUN`], for as long as is sensible.
    pub fn look(&mut self, place: &Place, word: &AtomicU32, stop: impl Fn() -> bool) -> Looked {
        let (mut last, mut began): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            for _ in 0..LOOKS {
                if word.load(Ordering::Acquire) != state::RUN {
                    return Looked::Changed;
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            let first = *began.get_or_insert(now);
            if last.is_some_and(|last| now - last > INTERRUPTED) {
                // A CPU that somebody else needs now and then is good for long stretches.
                let long = now - self.spread_at > self.pause * 10;
                self.pause = if long { SHORTEST_BREAK } else { (self.pause * 2).min(LONGEST_BREAK) };
                self.not_before = now + self.pause;
                return Looked::Enough;
            }
            last = Some(now);
            if now - first > PATIENCE || stop() || place.is_in_the_way() {
                return Looked::Enough;
            }
        }
    }
}
