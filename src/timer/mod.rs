//! Everything that happens at a time: one ordered queue and one host thread that sleeps until the first deadline.
//!
//! ```text
//! timerfd, setitimer, timer_create, TCP ──add──> TimerQueue ──deadline──> TimerTarget::expired
//! ```
//!
//! Deadlines are on the host's `CLOCK_MONOTONIC`, in nanoseconds. What runs on another clock converts when it arms, and
//! looks at its own clock again when it expires ([`clock`]). The thread exists from the first timer on; with none armed it
//! sleeps without end. A cancelled deadline may cost one wake-up that finds nothing to do.
//!
//! Lock order: the queue's lock is a leaf. Targets run on the timer thread without it, so they may add and cancel; a
//! target may thus run once though it was cancelled at that moment, and must check that it is still due.

pub mod clock;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// What a deadline does.
pub trait TimerTarget: Send + Sync {
    /// The deadline that `id` stood for has passed. Runs on the timer thread: short, and without waiting.
    fn expired(&self, id: TimerId);
}

/// An armed deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerId {
    deadline: u64,
    serial: u64,
}

impl TimerId {
    /// When it is due: `CLOCK_MONOTONIC`, nanoseconds.
    pub fn deadline(self) -> u64 {
        self.deadline
    }
}

#[derive(Default)]
struct State {
    armed: BTreeMap<TimerId, Arc<dyn TimerTarget>>,
    next_serial: u64,
    has_thread: bool,
    /// The queue is gone: the thread is to end.
    closed: bool,
    /// What the thread sleeps until; `u64::MAX` without end, 0 while it runs.
    sleeps_until: u64,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

/// The deadlines of one sandbox.
#[derive(Default)]
pub struct TimerQueue {
    inner: Arc<Inner>,
}

impl TimerQueue {
    /// An empty queue, without a thread.
    pub fn new() -> Arc<TimerQueue> {
        Arc::default()
    }

    /// Arms `target` for `deadline` (`CLOCK_MONOTONIC`, nanoseconds; one in the past is due at once). O(log n).
    pub fn add(&self, deadline: u64, target: Arc<dyn TimerTarget>) -> TimerId {
        let mut state = self.inner.state.lock();
        let id = TimerId { deadline, serial: state.next_serial };
        state.next_serial += 1;
        state.armed.insert(id, target);
        if !state.has_thread {
            state.has_thread = self.start_thread();
        }
        let wake = deadline < state.sleeps_until;
        if wake {
            state.sleeps_until = 0; // one notification is enough
        }
        drop(state);
        if wake {
            self.inner.changed.notify_one();
        }
        id
    }

    /// Disarms. Returns whether it was still armed; if not, its target has run, runs now or is about to.
    pub fn cancel(&self, id: TimerId) -> bool {
        let gone = self.inner.state.lock().armed.remove(&id);
        gone.is_some() // and dropped without the lock
    }

    /// How many deadlines are armed.
    pub fn len(&self) -> usize {
        self.inner.state.lock().armed.len()
    }

    /// Whether none is armed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn start_thread(&self) -> bool {
        let inner = self.inner.clone();
        match std::thread::Builder::new().name("timer".into()).stack_size(256 << 10).spawn(move || run(&inner)) {
            Ok(_) => true,
            Err(error) => {
                log::error!("no thread for timers, they are late until one can be made: {error}");
                false
            }
        }
    }
}

impl Drop for TimerQueue {
    fn drop(&mut self) {
        self.inner.state.lock().closed = true;
        self.inner.changed.notify_one();
    }
}

/// The timer thread.
fn run(inner: &Inner) {
    crate::platform::placement::serve_all();
    // The default slack delays each wake-up by 50 us. A host that refuses the setting costs just that.
    let _ = nix::sys::prctl::set_timerslack(1);
    let mut state = inner.state.lock();
    while !state.closed {
        let first = state.armed.first_key_value().map(|(id, _)| *id);
        let now = clock::monotonic();
        match first {
            Some(id) if id.deadline <= now => {
                let target = state.armed.remove(&id);
                state.sleeps_until = 0;
                drop(state);
                if let Some(target) = target {
                    target.expired(id);
                }
                state = inner.state.lock();
            }
            Some(id) => {
                state.sleeps_until = id.deadline;
                let until = Instant::now() + Duration::from_nanos(id.deadline - now);
                inner.changed.wait_until(&mut state, until);
            }
            None => {
                state.sleeps_until = u64::MAX;
                inner.changed.wait(&mut state);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Report(mpsc::Sender<TimerId>);

    impl TimerTarget for Report {
        fn expired(&self, id: TimerId) {
            self.0.send(id).expect("the test listens");
        }
    }

    fn report() -> (Arc<Report>, mpsc::Receiver<TimerId>) {
        let (sender, receiver) = mpsc::channel();
        (Arc::new(Report(sender)), receiver)
    }

    #[test]
    fn deadlines_come_in_order_and_not_early() {
        let (target, expired) = report();
        let timers = TimerQueue::new();
        let start = clock::monotonic();
        let late = timers.add(start + 20_000_000, target.clone());
        let soon = timers.add(start + 5_000_000, target.clone());
        let past = timers.add(0, target);
        let order: Vec<_> = (0..3).map(|_| expired.recv().expect("expires")).collect();
        assert_eq!(order, [past, soon, late]);
        assert!(clock::monotonic() >= late.deadline());
        assert!(timers.is_empty());
    }

    #[test]
    fn what_is_cancelled_does_not_happen() {
        let (target, expired) = report();
        let timers = TimerQueue::new();
        let start = clock::monotonic();
        let cancelled = timers.add(start + 10_000_000, target.clone());
        let kept = timers.add(start + 20_000_000, target);
        assert!(timers.cancel(cancelled));
        assert!(!timers.cancel(cancelled));
        assert_eq!(expired.recv(), Ok(kept));
        assert!(!timers.cancel(kept));
    }

    #[test]
    fn there_is_no_thread_before_the_first_timer() {
        let timers = TimerQueue::new();
        assert!(!timers.inner.state.lock().has_thread);
        assert_eq!(Arc::strong_count(&timers.inner), 1);
    }

    #[test]
    fn an_expiry_may_arm_again() {
        struct Repeat {
            me: std::sync::Weak<Repeat>,
            timers: Arc<TimerQueue>,
            left: Mutex<u32>,
            done: mpsc::Sender<u64>,
        }
        impl TimerTarget for Repeat {
            fn expired(&self, id: TimerId) {
                let mut left = self.left.lock();
                match left.checked_sub(1) {
                    None => self.done.send(id.deadline()).expect("the test listens"),
                    Some(rest) => {
                        *left = rest;
                        self.timers.add(id.deadline() + 1000, self.me.upgrade().expect("held by the test"));
                    }
                }
            }
        }
        let timers = TimerQueue::new();
        let (done, finished) = mpsc::channel();
        let repeat = Arc::new_cyclic(|me| Repeat { me: me.clone(), timers: timers.clone(), left: Mutex::new(3), done });
        let start = clock::monotonic();
        timers.add(start, repeat.clone());
        assert_eq!(finished.recv(), Ok(start + 3000));
        assert!(timers.is_empty());
    }
}
