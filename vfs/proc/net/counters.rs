//! What the stack counts: `snmp`, `snmp6`, `netstat`. What each counter is, and which cannot be known and stay 0, is said
//! in [`counters`](crate::netstack::stack::counters).

use std::fmt::Write;

use crate::netstack::Stack;
use crate::netstack::stack::counters::{Ext, Icmp, Ip, Tcp, Udp};
use crate::netstack::stack::settings::Number;
use crate::sentry::kernel::Kernel;

// `write!` to a String cannot fail.

const IP: &str = "Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors ForwDatagrams InUnknownProtos InDiscards InDelivers \
                  OutRequests OutDiscards OutNoRoutes ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs FragFails \
                  FragCreates OutTransmits";
const ICMP: &str = "InMsgs InErrors InCsumErrors InDestUnreachs InTimeExcds InParmProbs InSrcQuenchs InRedirects InEchos \
                    InEchoReps InTimestamps InTimestampReps InAddrMasks InAddrMaskReps OutMsgs OutErrors \
                    OutRateLimitGlobal OutRateLimitHost OutDestUnreachs OutTimeExcds OutParmProbs OutSrcQuenchs \
                    OutRedirects OutEchos OutEchoReps OutTimestamps OutTimestampReps OutAddrMasks OutAddrMaskReps";
const TCP: &str = "RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs \
                   OutSegs RetransSegs InErrs OutRsts InCsumErrors";
const UDP: &str =
    "InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors";
const TCP_EXT: &str = "SyncookiesSent SyncookiesRecv SyncookiesFailed EmbryonicRsts PruneCalled RcvPruned OfoPruned TW \
                       ListenOverflows ListenDrops TCPTimeouts TCPAbortOnData TCPAbortOnClose TCPAbortOnTimeout TCPRcvQDrop";
const IP_EXT: &str = "InNoRoutes InTruncatedPkts InMcastPkts OutMcastPkts InBcastPkts OutBcastPkts InOctets OutOctets \
                      InMcastOctets OutMcastOctets InBcastOctets OutBcastOctets InCsumErrors InNoECTPkts InECT1Pkts \
                      InECT0Pkts InCEPkts ReasmOverlaps";
const IP6: &str = "InReceives InHdrErrors InTooBigErrors InNoRoutes InAddrErrors InUnknownProtos InTruncatedPkts InDiscards \
                   InDelivers OutForwDatagrams OutRequests OutDiscards OutNoRoutes ReasmTimeout ReasmReqds ReasmOKs \
                   ReasmFails FragOKs FragFails FragCreates InMcastPkts OutMcastPkts InOctets OutOctets InMcastOctets \
                   OutMcastOctets InBcastOctets OutBcastOctets InNoECTPkts InECT1Pkts InECT0Pkts InCEPkts OutTransmits";
const ICMP6: &str = "InMsgs InErrors OutMsgs OutErrors InCsumErrors";

/// Types of ICMP messages by the name of their counters: RFC 792, RFC 950.
const TYPES: [(&str, u8); 11] = [
    ("DestUnreachs", 3),
    ("TimeExcds", 11),
    ("ParmProbs", 12),
    ("SrcQuenchs", 4),
    ("Redirects", 5),
    ("Echos", 8),
    ("EchoReps", 0),
    ("Timestamps", 13),
    ("TimestampReps", 14),
    ("AddrMasks", 17),
    ("AddrMaskReps", 18),
];
/// Those of ICMPv6: RFC 4443, RFC 4861, RFC 3810.
const TYPES6: [(&str, u8); 15] = [
    ("DestUnreachs", 1),
    ("PktTooBigs", 2),
    ("TimeExcds", 3),
    ("ParmProblems", 4),
    ("Echos", 128),
    ("EchoReplies", 129),
    ("GroupMembQueries", 130),
    ("GroupMembResponses", 131),
    ("GroupMembReductions", 132),
    ("RouterSolicits", 133),
    ("RouterAdvertisements", 134),
    ("NeighborSolicits", 135),
    ("NeighborAdvertisements", 136),
    ("Redirects", 137),
    ("MLDv2Reports", 143),
];

/// `snmp`.
pub fn snmp(kernel: &Kernel) -> String {
    let net = &*kernel.net;
    let mut text = table("Ip", IP, |name| match name {
        "Forwarding" => 2, // not-forwarding, RFC 1213
        "DefaultTTL" => net.settings().get(Number::DefaultTtl).into(),
        name => ip(net, false, name),
    });
    text += &table("Icmp", ICMP, |name| icmp(net, name));
    text += &icmp_types(net);
    text += &table("Tcp", TCP, |name| match name {
        "RtoAlgorithm" => 1, // other, RFC 4022
        "RtoMin" => 200,
        "RtoMax" => 120_000,
        "MaxConn" => -1i64 as u64, // no limit
        name => Tcp::named(name).map_or(0, |counter| net.counters().tcp(counter)),
    });
    text += &table("Udp", UDP, |name| udp(net, false, name));
    text + &table("UdpLite", UDP, |_| 0)
}

/// `netstat`.
pub fn netstat(kernel: &Kernel) -> String {
    let net = &*kernel.net;
    let ext = table("TcpExt", TCP_EXT, |name| Ext::named(name).map_or(0, |counter| net.counters().get(counter)));
    ext + &table("IpExt", IP_EXT, |name| ip(net, false, name))
}

/// `snmp6`.
pub fn snmp6(kernel: &Kernel) -> String {
    let net = &*kernel.net;
    let mut text = String::new();
    let mut line = |prefix: &str, name: &str, value: u64| {
        let _ = writeln!(text, "{:<32}\t{value}", format!("{prefix}{name}"));
    };
    IP6.split(' ').for_each(|name| line("Ip6", name, ip(net, true, name)));
    for name in ICMP6.split(' ') {
        line("Icmp6", name, Icmp::named(name).map_or(0, |counter| net.counters().get(counter.of(true))));
    }
    for (direction, sent) in [("In", false), ("Out", true)] {
        for (name, kind) in TYPES6 {
            line("Icmp6", &format!("{direction}{name}"), net.counters().icmp_messages(true, sent, kind));
        }
    }
    for (direction, sent) in [("In", false), ("Out", true)] {
        for kind in 0..=255 {
            match net.counters().icmp_messages(true, sent, kind) {
                0 => {}
                some => line("Icmp6", &format!("{direction}Type{kind}"), some),
            }
        }
    }
    UDP.split(' ').filter(|name| *name != "IgnoredMulti").for_each(|name| line("Udp6", name, udp(net, true, name)));
    UDP.split(' ').filter(|name| *name != "IgnoredMulti").for_each(|name| line("UdpLite6", name, 0));
    text
}

/// Two lines: names and values.
fn table(prefix: &str, names: &str, value: impl Fn(&str) -> u64) -> String {
    // They are signed on the way out, which shows in `MaxConn`.
    let values: Vec<String> = names.split(' ').map(|name| (value(name) as i64).to_string()).collect();
    format!("{prefix}: {names}\n{prefix}: {}\n", values.join(" "))
}

fn ip(net: &Stack, v6: bool, name: &str) -> u64 {
    Ip::named(name).map_or(0, |counter| net.counters().ip(v6, counter))
}

fn udp(net: &Stack, v6: bool, name: &str) -> u64 {
    Udp::named(name).map_or(0, |counter| net.counters().get(counter.of(v6)))
}

fn icmp(net: &Stack, name: &str) -> u64 {
    if let Some(counter) = Icmp::named(name) {
        return net.counters().get(counter.of(false));
    }
    let (sent, rest) = match name.strip_prefix("In") {
        Some(rest) => (false, rest),
        None => (true, name.trim_start_matches("Out")),
    };
    let kind = TYPES.iter().find(|(known, _)| *known == rest);
    kind.map_or(0, |&(_, kind)| net.counters().icmp_messages(false, sent, kind))
}

/// `IcmpMsg`: the types that there were; no line where there were none.
fn icmp_types(net: &Stack) -> String {
    let both = [("In", false), ("Out", true)].into_iter();
    let all = both.flat_map(|(direction, sent)| (0..=255).map(move |kind| (direction, sent, kind)));
    let there = all.map(|(direction, sent, kind)| (direction, kind, net.counters().icmp_messages(false, sent, kind)));
    let there: Vec<_> = there.filter(|(.., count)| *count > 0).collect();
    if there.is_empty() {
        return String::new();
    }
    let names: Vec<String> = there.iter().map(|(direction, kind, _)| format!("{direction}Type{kind}")).collect();
    let values: Vec<String> = there.iter().map(|(.., count)| count.to_string()).collect();
    format!("IcmpMsg: {}\nIcmpMsg: {}\n", names.join(" "), values.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_two_lines_of_the_same_length() {
        let text = table("Tcp", TCP, |name| if name == "MaxConn" { -1i64 as u64 } else { 7 });
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "Tcp: 7 7 7 -1 7 7 7 7 7 7 7 7 7 7 7");
        assert_eq!(lines[0].split(' ').count(), lines[1].split(' ').count());
    }

    #[test]
    fn messages_are_found_by_the_names_of_their_types() {
        let net = crate::netstack::testing::lonely();
        assert_eq!(icmp_types(&net), "");
        net.counters().icmp(false, false, 8);
        net.counters().icmp(false, true, 0);
        assert_eq!(["InMsgs", "InEchos", "OutEchoReps", "OutEchos"].map(|name| icmp(&net, name)), [1, 1, 1, 0]);
        assert_eq!(icmp_types(&net), "IcmpMsg: InType8 OutType0\nIcmpMsg: 1 1\n");
    }
}
