//! What the stack counts: `/proc/net/snmp`, `snmp6` and `netstat`, with Linux's names (RFC 1213, RFC 4293, RFC 4022, RFC 4113).
//!
//! Each is an atomic that is bumped where the thing happens, and nothing else depends on it. Bytes that go from buffer to
//! buffer within this host are counted as the packets that they stand for: one each time that bytes are handed over, as a
//! segment of `lo` on Linux is as long as what was written. Acknowledgements, of which there are none, are not counted.
//!
//! Of what Linux counts this cannot be known here, and stays 0: what smoltcp does within a segment's handling (segments out
//! of order or outside the window, duplicate acknowledgements, what it recovers by, delayed acknowledgements), and what
//! there is not (fast open, timestamps, pruning: `TCPRcvQDrop` and others of a receive buffer that is
//! overrun, which the offered window rules out). A segment that the device put together of several is counted as one.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

macro_rules! group {
    ($(#[$meta:meta])* $group:ident, $base:expr, $families:literal; $($name:ident)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $group { $(#[doc = concat!("Linux's `", stringify!($name), "`.")] $name),* }

        impl $group {
            const ALL: &'static [($group, &'static str)] = &[$(($group::$name, stringify!($name))),*];
            const END: usize = $base + $families * Self::ALL.len();

            /// By Linux's name.
            pub fn named(name: &str) -> Option<$group> {
                Self::ALL.iter().find(|(_, known)| *known == name).map(|(counter, _)| *counter)
            }

            /// That of IPv4, or of IPv6.
            pub fn of(self, v6: bool) -> Slot {
                let family = usize::from(v6 && $families > 1);
                Slot($base + family * Self::ALL.len() + self as usize)
            }
        }
    };
}

group! { /// Of IP.
Ip, 0, 2;
    InReceives InHdrErrors InAddrErrors InUnknownProtos InTruncatedPkts InDiscards InDelivers OutRequests OutDiscards
    OutNoRoutes OutTransmits ReasmTimeout ReasmReqds ReasmOKs ReasmFails ReasmOverlaps FragOKs FragFails FragCreates
    InMcastPkts OutMcastPkts InBcastPkts OutBcastPkts
    InOctets OutOctets InMcastOctets OutMcastOctets InBcastOctets OutBcastOctets
    InCsumErrors InNoECTPkts InECT1Pkts InECT0Pkts InCEPkts }

group! { /// Of UDP.
Udp, Ip::END, 2;
    InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors InCsumErrors IgnoredMulti }

group! { /// Of ICMP; messages by their type are counted besides.
Icmp, Udp::END, 2;
    InMsgs InErrors InCsumErrors OutMsgs }

group! { /// Of TCP.
Tcp, Icmp::END, 1;
    ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors }

group! { /// Of TCP, those of `netstat`.
Ext, Tcp::END, 1;
    SyncookiesSent SyncookiesRecv SyncookiesFailed EmbryonicRsts TW ListenOverflows ListenDrops TCPTimeouts TCPAbortOnData TCPAbortOnClose TCPAbortOnTimeout }

group! { /// What went from buffer to buffer.
Local, Ext::END, 2;
    Packets Octets Segments }

impl From<Tcp> for Slot {
    fn from(counter: Tcp) -> Slot {
        counter.of(false)
    }
}

impl From<Ext> for Slot {
    fn from(counter: Ext) -> Slot {
        counter.of(false)
    }
}

/// Messages of an ICMP, by their type.
type ByType = [AtomicU64; 256];

/// All counters of a stack.
pub struct Counters {
    slots: [AtomicU64; Local::END],
    /// Those received and those sent, of IPv4 and of IPv6.
    icmp: Box<[[ByType; 2]; 2]>,
}

impl Default for Counters {
    fn default() -> Counters {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        let pair = || [zeros(), zeros()];
        Counters { slots: std::array::from_fn(|_| AtomicU64::new(0)), icmp: Box::new([pair(), pair()]) }
    }
}

impl Counters {
    /// Counts one.
    pub fn count(&self, slot: impl Into<Slot>) {
        self.add(slot, 1);
    }

    /// Counts `n`.
    pub fn add(&self, slot: impl Into<Slot>, n: u64) {
        self.slots[slot.into().0].fetch_add(n, Ordering::Relaxed);
    }

    /// One less of what there is now: `CurrEstab`.
    pub fn less(&self, slot: impl Into<Slot>) {
        self.slots[slot.into().0].fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts an ICMP message.
    pub fn icmp(&self, v6: bool, sent: bool, kind: u8) {
        self.count(if sent { Icmp::OutMsgs } else { Icmp::InMsgs }.of(v6));
        self.icmp[usize::from(v6)][usize::from(sent)][usize::from(kind)].fetch_add(1, Ordering::Relaxed);
    }

    /// How many messages of a type were received or sent.
    pub fn icmp_messages(&self, v6: bool, sent: bool, kind: u8) -> u64 {
        self.icmp[usize::from(v6)][usize::from(sent)][usize::from(kind)].load(Ordering::Relaxed)
    }

    /// What a counter says, without what went from buffer to buffer.
    pub fn get(&self, slot: impl Into<Slot>) -> u64 {
        self.slots[slot.into().0].load(Ordering::Relaxed)
    }

    /// One of IP's.
    pub fn ip(&self, v6: bool, counter: Ip) -> u64 {
        let local = match counter {
            Ip::InReceives | Ip::InDelivers | Ip::OutRequests | Ip::OutTransmits | Ip::InNoECTPkts => {
                self.get(Local::Packets.of(v6))
            }
            Ip::InOctets | Ip::OutOctets => self.get(Local::Octets.of(v6)),
            _ => 0,
        };
        self.get(counter.of(v6)) + local
    }

    /// One of TCP's.
    pub fn tcp(&self, counter: Tcp) -> u64 {
        let local = match counter {
            Tcp::InSegs | Tcp::OutSegs => [false, true].map(|v6| self.get(Local::Segments.of(v6))).iter().sum(),
            _ => 0,
        };
        self.get(counter) + local
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_has_a_place_of_its_own() {
        let mut places: Vec<usize> = Vec::new();
        for v6 in [false, true] {
            places.extend(Ip::ALL.iter().map(|(counter, _)| counter.of(v6).0));
            places.extend(Udp::ALL.iter().map(|(counter, _)| counter.of(v6).0));
            places.extend(Icmp::ALL.iter().map(|(counter, _)| counter.of(v6).0));
            places.extend(Local::ALL.iter().map(|(counter, _)| counter.of(v6).0));
        }
        places.extend(Tcp::ALL.iter().map(|(counter, _)| Slot::from(*counter).0));
        places.extend(Ext::ALL.iter().map(|(counter, _)| Slot::from(*counter).0));
        places.sort_unstable();
        assert!(places.iter().copied().eq(0..Local::END));
        assert_eq!(Ip::named("ReasmOKs"), Some(Ip::ReasmOKs));
        assert_eq!(Ip::named("Forwarding"), None);
    }

    #[test]
    fn what_never_was_a_packet_counts_as_one() {
        let counters = Counters::default();
        counters.count(Ip::InReceives.of(true));
        counters.add(Local::Packets.of(true), 2);
        assert_eq!((counters.ip(true, Ip::InReceives), counters.ip(true, Ip::OutRequests)), (3, 2));
        assert_eq!(counters.ip(false, Ip::InReceives), 0);
    }
}
