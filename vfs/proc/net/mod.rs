//! `/proc/net`: `proc_pid_net(5)`.
//!
//! Sockets are found through the descriptors of all processes, which is where their inode numbers and owners are; one that
//! is only on its way in a message is not shown. Reading these files costs time in the number of descriptors.

mod interfaces;
mod sockets;

use std::sync::{Arc, Weak};

use super::system::from_kernel;
use crate::sentry::kernel::Kernel;
use crate::vfs::kernfs::{Dir, Tree};

/// Makes a file's content.
type Show = fn(&Kernel) -> String;

/// The directory, for a mount of `kernel`'s tasks.
pub fn dir(tree: &Arc<Tree>, kernel: &Weak<Kernel>) -> Arc<Dir> {
    let dir = Dir::new(tree, 0o555, None);
    let files: [(&str, Show); 18] = [
        ("arp", interfaces::arp),
        ("dev", interfaces::dev),
        ("if_inet6", interfaces::if_inet6),
        ("ipv6_route", interfaces::ipv6_route),
        ("route", interfaces::route),
        ("netlink", sockets::netlink),
        ("netstat", |_| counters(&NETSTAT)),
        ("packet", |_| "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n".into()),
        ("raw", |kernel| sockets::datagrams(kernel, libc::AF_INET, libc::SOCK_RAW)),
        ("raw6", |kernel| sockets::datagrams(kernel, libc::AF_INET6, libc::SOCK_RAW)),
        ("snmp", |_| counters(&SNMP)),
        ("sockstat", sockets::sockstat),
        ("sockstat6", sockets::sockstat6),
        ("tcp", |kernel| sockets::streams(kernel, libc::AF_INET)),
        ("tcp6", |kernel| sockets::streams(kernel, libc::AF_INET6)),
        ("udp", |kernel| sockets::datagrams(kernel, libc::AF_INET, libc::SOCK_DGRAM)),
        ("udp6", |kernel| sockets::datagrams(kernel, libc::AF_INET6, libc::SOCK_DGRAM)),
        ("unix", sockets::unix),
    ];
    for (name, show) in files {
        dir.add_content(name, 0o444, from_kernel(show, kernel));
    }
    dir
}

/// A table of counters: what it counts, their names, and the values of those that are not counts.
type Counters = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const SNMP: [Counters; 5] = [
    (
        "Ip",
        "Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors ForwDatagrams InUnknownProtos InDiscards InDelivers \
         OutRequests OutDiscards OutNoRoutes ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs FragFails FragCreates \
         OutTransmits",
        &[("Forwarding", "2"), ("DefaultTTL", "64")],
    ),
    (
        "Icmp",
        "InMsgs InErrors InCsumErrors InDestUnreachs InTimeExcds InParmProbs InSrcQuenchs InRedirects InEchos InEchoReps \
         InTimestamps InTimestampReps InAddrMasks InAddrMaskReps OutMsgs OutErrors OutRateLimitGlobal OutRateLimitHost \
         OutDestUnreachs OutTimeExcds OutParmProbs OutSrcQuenchs OutRedirects OutEchos OutEchoReps OutTimestamps \
         OutTimestampReps OutAddrMasks OutAddrMaskReps",
        &[],
    ),
    (
        "Tcp",
        "RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs \
         RetransSegs InErrs OutRsts InCsumErrors",
        &[("RtoAlgorithm", "1"), ("RtoMin", "200"), ("RtoMax", "120000"), ("MaxConn", "-1")],
    ),
    (
        "Udp",
        "InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors",
        &[],
    ),
    (
        "UdpLite",
        "InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors",
        &[],
    ),
];

const NETSTAT: [Counters; 2] = [
    (
        "TcpExt",
        "SyncookiesSent SyncookiesRecv SyncookiesFailed EmbryonicRsts TW ListenOverflows ListenDrops TCPTimeouts",
        &[],
    ),
    ("IpExt", "InNoRoutes InTruncatedPkts InMcastPkts OutMcastPkts InBcastPkts OutBcastPkts InOctets OutOctets", &[]),
];

/// `snmp` and `netstat`. The stack counts nothing of it yet: all are 0.
fn counters(tables: &[Counters]) -> String {
    let one = |(prefix, names, known): &Counters| {
        let values = names.split(' ').map(|name| known.iter().find(|(known, _)| *known == name).map_or("0", |it| it.1));
        format!("{prefix}: {names}\n{prefix}: {}\n", values.collect::<Vec<_>>().join(" "))
    };
    tables.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_a_value() {
        let text = counters(&SNMP);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 10);
        for pair in lines.chunks(2) {
            assert_eq!(pair[0].split(' ').count(), pair[1].split(' ').count(), "{}", pair[0]);
        }
        assert!(lines[5].starts_with("Tcp: 1 200 120000 -1 0 "));
    }
}
