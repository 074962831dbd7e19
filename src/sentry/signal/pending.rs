//! Signals that wait to be delivered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{SigInfo, SigSet, Signal};
use crate::errno::{Errno, Result};

/// How many signals of a user are queued, for RLIMIT_SIGPENDING.
#[derive(Default, Debug)]
pub struct PendingCount(AtomicU64);

impl PendingCount {
    /// For one user.
    pub fn new() -> Arc<PendingCount> {
        Arc::default()
    }

    /// How many there are.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more, unless that would exceed `limit`.
    pub fn charge(self: &Arc<Self>, limit: u64) -> Option<Charge> {
        let charge = Charge(self.clone());
        // A charge that is refused takes itself back when dropped.
        (self.0.fetch_add(1, Ordering::Relaxed) < limit).then_some(charge)
    }
}

/// One signal's part of a [`PendingCount`], until dropped.
#[derive(Debug)]
pub struct Charge(Arc<PendingCount>);

impl Drop for Charge {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who wants to know when its signal leaves the queue: a timer, which counts expiries meanwhile. Called with the queue's
/// lock held.
pub trait DeliveryHook: Send + Sync {
    /// The signal is being delivered: a last word on what it tells.
    fn delivered(&self, info: &mut SigInfo);

    /// The signal was flushed.
    fn discarded(&self);
}

struct Entry {
    info: SigInfo,
    _charge: Option<Charge>,
    hook: Option<Arc<dyn DeliveryHook>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(hook) = self.hook.take() {
            hook.discarded();
        }
    }
}

/// The pending signals of a process or of a thread. Adding and taking are O(log n) in the number of different signals.
#[derive(Default)]
pub struct PendingQueue {
    /// A signal in the set without an entry was sent when the limit was reached: nothing is known of it.
    set: SigSet,
    entries: BTreeMap<Signal, VecDeque<Entry>>,
}

impl PendingQueue {
    /// An empty queue.
    pub const fn new() -> PendingQueue {
        PendingQueue { set: SigSet::EMPTY, entries: BTreeMap::new() }
    }

    /// What is pending.
    pub fn set(&self) -> SigSet {
        self.set
    }

    /// Makes a signal pending. `false`: a standard signal that was pending already, and changes nothing. `EAGAIN`: a
    /// realtime signal not from `kill(2)` or the kernel, beyond `limit` (RLIMIT_SIGPENDING of the receiver, whose user
    /// `count` is); other signals become pending all the same, without what is known of them.
    pub fn enqueue(&mut self, info: SigInfo, count: &Arc<PendingCount>, limit: u64) -> Result<bool> {
        let signal = info.signal();
        if !signal.is_realtime() && self.set.contains(signal) {
            return Ok(false);
        }
        // Standard signals of the kernel, kill(2) and faults keep what is known of them whatever the limit.
        let limit = if !signal.is_realtime() && info.code() >= 0 { u64::MAX } else { limit };
        match count.charge(limit) {
            Some(charge) => self.push(Entry { info, _charge: Some(charge), hook: None }),
            None if signal.is_realtime() && info.code() != libc::SI_USER => return Err(Errno::EAGAIN),
            None => self.set.insert(signal),
        }
        Ok(true)
    }

    /// Makes a timer's signal pending: it was charged when the timer was made, and its owner sees to it that it is queued
    /// only once. `false` as for [`PendingQueue::enqueue`]; the hook then hears that it was discarded.
    pub fn enqueue_hooked(&mut self, info: SigInfo, hook: Arc<dyn DeliveryHook>) -> bool {
        let signal = info.signal();
        if !signal.is_realtime() && self.set.contains(signal) {
            hook.discarded();
            return false;
        }
        self.push(Entry { info, _charge: None, hook: Some(hook) });
        true
    }

    fn push(&mut self, entry: Entry) {
        let signal = entry.info.signal();
        self.set.insert(signal);
        self.entries.entry(signal).or_default().push_back(entry);
    }

    /// The signal of `wanted` that is next: one that an instruction raised before all others, then the lowest.
    pub fn next(&self, wanted: SigSet) -> Option<Signal> {
        let ready = self.set & wanted;
        (ready & SigSet::SYNCHRONOUS).lowest().or_else(|| ready.lowest())
    }

    /// Takes the next signal of `wanted` off: for delivery that is what is not blocked.
    pub fn dequeue(&mut self, wanted: SigSet) -> Option<SigInfo> {
        let signal = self.next(wanted)?;
        let queue = self.entries.get_mut(&signal);
        let entry = queue.and_then(VecDeque::pop_front);
        if self.entries.get(&signal).is_none_or(VecDeque::is_empty) {
            self.entries.remove(&signal);
            self.set.remove(signal);
        }
        // Nothing is known of a signal that was beyond the limit.
        let Some(mut entry) = entry else { return Some(SigInfo::user(signal, 0, 0)) };
        let mut info = entry.info;
        if let Some(hook) = entry.hook.take() {
            hook.delivered(&mut info);
        }
        Some(info)
    }

    /// Forgets the pending signals of `which`: those that have become ignored, `SIGCONT` before a stop, the stops before
    /// a `SIGCONT`.
    pub fn flush(&mut self, which: SigSet) {
        for signal in (self.set & which).iter() {
            self.entries.remove(&signal);
        }
        self.set = self.set.without(which);
    }

    /// What sending `signal` does to the queues of the receiving process, whether the signal is blocked, ignored or caught:
    /// SIGCONT flushes stops, a stop flushes SIGCONT.
    pub fn flush_opposite(&mut self, signal: Signal) {
        if signal == Signal::CONT {
            self.flush(SigSet::STOPS);
        } else if SigSet::STOPS.contains(signal) {
            self.flush(Signal::CONT.set());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rt(number: i32, value: u64) -> SigInfo {
        SigInfo::queued(Signal::new(number).unwrap(), libc::SI_QUEUE, 1, 1, value)
    }

    #[test]
    fn standard_signals_coalesce_and_realtime_ones_queue() {
        let (mut queue, count) = (PendingQueue::new(), PendingCount::new());
        assert_eq!(queue.enqueue(SigInfo::user(Signal::TERM, 1, 0), &count, 10), Ok(true));
        assert_eq!(queue.enqueue(SigInfo::user(Signal::TERM, 2, 0), &count, 10), Ok(false));
        for value in 0..3 {
            queue.enqueue(rt(40, value), &count, 10).unwrap();
        }
        queue.enqueue(rt(35, 9), &count, 10).unwrap();
        queue.enqueue(SigInfo::fault(Signal::SEGV, 1, 0), &count, 10).unwrap();
        queue.enqueue(SigInfo::user(Signal::HUP, 1, 0), &count, 10).unwrap();
        assert_eq!(count.get(), 7);
        let order: Vec<_> = std::iter::from_fn(|| queue.dequeue(SigSet::ALL)).collect();
        let numbers: Vec<_> = order.iter().map(|info| info.signal().number()).collect();
        assert_eq!(numbers, [11, 1, 15, 35, 40, 40, 40]);
        assert_eq!(order[4..].iter().map(SigInfo::value).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(order[2].pid(), 1, "the first sender is remembered");
        assert_eq!((count.get(), queue.set()), (0, SigSet::EMPTY));
    }

    #[test]
    fn the_limit_refuses_only_what_may_be_refused() {
        let (mut queue, count) = (PendingQueue::new(), PendingCount::new());
        queue.enqueue(rt(40, 1), &count, 1).unwrap();
        assert_eq!(queue.enqueue(rt(40, 2), &count, 1), Err(Errno::EAGAIN));
        assert_eq!(queue.enqueue(SigInfo::user(Signal::new(41).unwrap(), 5, 0), &count, 1), Ok(true));
        assert_eq!(queue.enqueue(SigInfo::user(Signal::HUP, 5, 0), &count, 1), Ok(true));
        let queued = SigInfo::queued(Signal::INT, libc::SI_QUEUE, 5, 0, 6);
        assert_eq!(queue.enqueue(queued, &count, 1), Ok(true));
        assert_eq!(count.get(), 2);
        let taken: Vec<_> = std::iter::from_fn(|| queue.dequeue(SigSet::ALL)).collect();
        let told: Vec<_> = taken.iter().map(|info| (info.signal().number(), info.code(), info.pid())).collect();
        assert_eq!(told, [(1, 0, 5), (2, 0, 0), (40, libc::SI_QUEUE, 1), (41, 0, 0)]);
    }

    #[test]
    fn blocked_signals_stay_and_opposites_go() {
        let (mut queue, count) = (PendingQueue::new(), PendingCount::new());
        for signal in [Signal::TSTP, Signal::STOP, Signal::USR1] {
            queue.enqueue(SigInfo::user(signal, 1, 0), &count, 10).unwrap();
        }
        assert_eq!(queue.dequeue(!(Signal::USR1.set() | SigSet::STOPS)), None);
        queue.flush_opposite(Signal::CONT);
        assert_eq!(queue.set(), Signal::USR1.set());
        queue.enqueue(SigInfo::user(Signal::CONT, 1, 0), &count, 10).unwrap();
        queue.flush_opposite(Signal::TTIN);
        assert_eq!((queue.set(), count.get()), (Signal::USR1.set(), 1));
    }

    #[test]
    fn hooks_hear_what_became_of_their_signal() {
        #[derive(Default)]
        struct Hook(AtomicU64, AtomicU64);
        impl DeliveryHook for Hook {
            fn delivered(&self, info: &mut SigInfo) {
                info.set_overrun(3);
                self.0.fetch_add(1, Ordering::Relaxed);
            }
            fn discarded(&self) {
                self.1.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (mut queue, hook) = (PendingQueue::new(), Arc::new(Hook::default()));
        assert!(queue.enqueue_hooked(SigInfo::timer(Signal::ALRM, 1, 2), hook.clone()));
        assert!(!queue.enqueue_hooked(SigInfo::timer(Signal::ALRM, 2, 2), hook.clone()));
        assert_eq!(queue.dequeue(SigSet::ALL).map(|info| info.overrun()), Some(3));
        queue.enqueue_hooked(SigInfo::timer(Signal::ALRM, 1, 2), hook.clone());
        queue.flush(SigSet::ALL);
        queue.enqueue_hooked(SigInfo::timer(Signal::ALRM, 1, 2), hook.clone());
        drop(queue);
        assert_eq!((hook.0.load(Ordering::Relaxed), hook.1.load(Ordering::Relaxed)), (1, 3));
    }

    /// Compares with a plain list, as the man page words it.
    #[test]
    fn the_order_is_that_of_a_plain_list() {
        let (mut queue, count) = (PendingQueue::new(), PendingCount::new());
        let mut list: Vec<(i32, u64)> = Vec::new();
        let mut random = 12345u64;
        for value in 0..5000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (random >> 33) as i32 % 64 + 1;
            let wanted = SigSet(random.rotate_left(17) | random);
            if random >> 60 < 9 {
                queue.enqueue(rt(number, value), &count, u64::MAX).unwrap();
                if number >= 32 || list.iter().all(|entry| entry.0 != number) {
                    list.push((number, value));
                }
            } else {
                let ready = list.iter().enumerate().filter(|(_, entry)| wanted.0 & 1 << (entry.0 - 1) != 0);
                let rank = |number: i32| (SigSet::SYNCHRONOUS.0 & 1 << (number - 1) == 0, number);
                let expected = ready.min_by_key(|(at, entry)| (rank(entry.0), *at)).map(|(at, _)| at);
                let expected = expected.map(|at| list.remove(at));
                let got = queue.dequeue(wanted).map(|info| (info.signal().number(), info.value()));
                assert_eq!(got, expected);
            }
        }
        assert_eq!(count.get(), list.len() as u64);
    }
}
