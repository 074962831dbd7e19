//! Link-layer addresses of neighbours: ARP (RFC 826) and neighbour discovery (RFC 4861).
//!
//! A packet to a neighbour that is not known waits here, a few of them for each, while the question is out. Three
//! questions a second apart without an answer, and the packets' senders get `EHOSTUNREACH`.
//!
//! Lock order: the table is a leaf.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How many neighbours are remembered; the network decides how many there are, so there is a bound.
const MAX_NEIGHBOURS: usize = 1024;
/// How many bytes wait for one neighbour: enough for a datagram in fragments.
const MAX_WAITING: usize = 128 << 10;
/// How many neighbours are asked for at a time; packets to more are dropped.
const MAX_ASKED: usize = 128;
/// How often a neighbour is asked for.
const MAX_QUESTIONS: u32 = 3;
/// Between questions.
pub const RETRY: Duration = Duration::from_secs(1);
/// An answer older than this is asked for again, while it is still used.
const FRESH: Duration = Duration::from_secs(60);

/// A packet that waits: an IP packet and what the device is to do with it.
pub struct Waiting {
    /// From the IP header on.
    pub packet: Vec<u8>,
    /// What is left to do with it.
    pub offload: crate::netstack::device::vnet::Offload,
}

enum Entry {
    Asked {
        at: Instant,
        questions: u32,
        waiting: Vec<Waiting>,
    },
    Known {
        mac: [u8; 6],
        confirmed: Instant,
        asked: Instant,
    },
    /// Set by the operator: never asked for, never changed.
    Permanent {
        mac: [u8; 6],
    },
}

/// What to do with a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send it there.
    Known([u8; 6]),
    /// Send it there, and ask whether that is still right.
    Stale([u8; 6]),
    /// Ask, and call [`Neighbours::retry`] after [`RETRY`]; the packet waits.
    Ask,
    /// The packet waits, or was dropped.
    Wait,
}

/// What is to be done when the time for an answer is over.
pub enum Retry {
    /// Ask again, and come back.
    Ask,
    /// Nobody answered: these packets cannot be delivered.
    Failed(Vec<Waiting>),
    /// There is an answer.
    Done,
}

/// The neighbours.
#[derive(Default)]
pub struct Neighbours(Mutex<HashMap<IpAddr, Entry>>);

impl Neighbours {
    /// Where a packet to `addr` is to go; `packet` makes a copy of it when it must wait.
    pub fn resolve(&self, addr: IpAddr, packet: impl FnOnce() -> Waiting) -> Answer {
        let now = Instant::now();
        let mut table = self.0.lock();
        match table.get_mut(&addr) {
            Some(Entry::Known { mac, confirmed, asked }) => {
                if now - *confirmed < FRESH || now - *asked < RETRY {
                    return Answer::Known(*mac);
                }
                *asked = now;
                Answer::Stale(*mac)
            }
            Some(Entry::Permanent { mac }) => Answer::Known(*mac),
            Some(Entry::Asked { waiting, .. }) => {
                if waiting.iter().map(|waiting| waiting.packet.len()).sum::<usize>() < MAX_WAITING {
                    waiting.push(packet());
                }
                Answer::Wait
            }
            None => {
                if table.values().filter(|entry| matches!(entry, Entry::Asked { .. })).count() >= MAX_ASKED {
                    return Answer::Wait;
                }
                if table.len() >= MAX_NEIGHBOURS {
                    make_room(&mut table);
                }
                table.insert(addr, Entry::Asked { at: now, questions: 1, waiting: vec![packet()] });
                Answer::Ask
            }
        }
    }

    /// `addr` is at `mac`. What waited for it is to be sent. With `add` it is remembered even if nobody asked.
    pub fn learn(&self, addr: IpAddr, mac: [u8; 6], add: bool) -> Vec<Waiting> {
        let now = Instant::now();
        let known = Entry::Known { mac, confirmed: now, asked: now };
        let mut table = self.0.lock();
        match table.get_mut(&addr) {
            Some(Entry::Permanent { .. }) => Vec::new(),
            Some(entry) => match std::mem::replace(entry, known) {
                Entry::Asked { waiting, .. } => waiting,
                Entry::Known { .. } | Entry::Permanent { .. } => Vec::new(),
            },
            None => {
                if add {
                    if table.len() >= MAX_NEIGHBOURS {
                        make_room(&mut table);
                    }
                    table.insert(addr, known);
                }
                Vec::new()
            }
        }
    }

    /// The time for an answer is over.
    pub fn retry(&self, addr: IpAddr) -> Retry {
        let mut table = self.0.lock();
        match table.get_mut(&addr) {
            Some(Entry::Asked { questions, at, .. }) if *questions < MAX_QUESTIONS => {
                *questions += 1;
                *at = Instant::now();
                Retry::Ask
            }
            Some(Entry::Asked { .. }) => match table.remove(&addr) {
                Some(Entry::Asked { waiting, .. }) => Retry::Failed(waiting),
                _ => Retry::Done,
            },
            _ => Retry::Done,
        }
    }

    /// `addr` is at `mac`, and that does not change.
    pub fn set_permanent(&self, addr: IpAddr, mac: [u8; 6]) {
        self.0.lock().insert(addr, Entry::Permanent { mac });
    }

    /// All that are known, for `ip neigh`; whether they are permanent.
    pub fn list(&self) -> Vec<(IpAddr, [u8; 6], bool)> {
        let table = self.0.lock();
        let known = table.iter().filter_map(|(addr, entry)| match entry {
            Entry::Known { mac, .. } => Some((*addr, *mac, false)),
            Entry::Permanent { mac } => Some((*addr, *mac, true)),
            Entry::Asked { .. } => None,
        });
        known.collect()
    }
}

/// Forgets those that have been silent for the longest time.
fn make_room(table: &mut HashMap<IpAddr, Entry>) {
    let mut times: Vec<Instant> = table.values().filter_map(Entry::time).collect();
    if times.is_empty() {
        return;
    }
    let middle = times.len() / 2;
    let (_, median, _) = times.select_nth_unstable(middle);
    let median = *median;
    table.retain(|_, entry| entry.time().is_none_or(|time| time > median));
}

impl Entry {
    /// When it was last heard of, if it may be forgotten.
    fn time(&self) -> Option<Instant> {
        match self {
            Entry::Asked { at, .. } => Some(*at),
            Entry::Known { confirmed, .. } => Some(*confirmed),
            Entry::Permanent { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netstack::device::vnet::Offload;

    fn waiting() -> Waiting {
        Waiting { packet: vec![1], offload: Offload::default() }
    }

    #[test]
    fn packets_wait_for_the_answer() {
        let neighbours = Neighbours::default();
        let addr = "10.0.0.1".parse().unwrap();
        assert_eq!(neighbours.resolve(addr, waiting), Answer::Ask);
        let long = || Waiting { packet: vec![0; 60_000], offload: Offload::default() };
        for _ in 0..10 {
            assert_eq!(neighbours.resolve(addr, long), Answer::Wait);
        }
        assert_eq!(neighbours.learn(addr, [1; 6], false).len(), 4, "as much as there is room for");
        assert_eq!(neighbours.resolve(addr, waiting), Answer::Known([1; 6]));
        assert!(matches!(neighbours.retry(addr), Retry::Done));
    }

    #[test]
    fn silence_fails_after_three_questions() {
        let neighbours = Neighbours::default();
        let addr = "10.0.0.1".parse().unwrap();
        neighbours.resolve(addr, waiting);
        assert!(matches!(neighbours.retry(addr), Retry::Ask));
        assert!(matches!(neighbours.retry(addr), Retry::Ask));
        assert!(matches!(neighbours.retry(addr), Retry::Failed(packets) if packets.len() == 1));
        assert_eq!(neighbours.resolve(addr, waiting), Answer::Ask);
    }

    #[test]
    fn the_table_is_bounded() {
        let neighbours = Neighbours::default();
        for n in 0..5000u32 {
            neighbours.learn(IpAddr::V4(n.into()), [2; 6], true);
        }
        assert!(neighbours.list().len() <= MAX_NEIGHBOURS);
        for n in 0..5000u32 {
            neighbours.resolve(IpAddr::V4((n << 8).into()), waiting);
        }
        let table = neighbours.0.lock();
        assert_eq!(table.values().filter(|entry| matches!(entry, Entry::Asked { .. })).count(), MAX_ASKED);
        drop(table);
        assert!(neighbours.learn("1.1.1.1".parse().unwrap(), [3; 6], false).is_empty());
    }
}
