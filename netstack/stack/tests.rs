//! What is counted, and what the settings do.

use std::sync::Arc;

use super::counters::{Ext, Icmp, Ip, Local, Slot, Tcp, Udp};
use super::settings::{Buffer, Number};
use super::*;
use crate::netstack::testing::*;
use crate::netstack::{Ancillary, SockAddr};
use crate::wait::Events;

fn send_to(file: &Arc<dyn File>, bytes: &[u8], to: &str) -> Result<usize> {
    file.sock().send(&mut &*bytes, Some(&at(to)), Ancillary::default(), 0)
}

fn counts<const N: usize>(stack: &Stack, slots: [Slot; N]) -> [u64; N] {
    slots.map(|slot| stack.counters().get(slot))
}

/// Waits until a counter says so; `file` is one that gets the event that comes with it.
fn until_count(stack: &Stack, slot: impl Into<Slot>, expected: u64) {
    let slot = slot.into();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while stack.counters().get(slot) != expected {
        assert!(std::time::Instant::now() < end, "{slot:?} is {}", stack.counters().get(slot));
        std::thread::yield_now();
    }
}

#[test]
fn connections_are_counted() {
    for wire in [true, false] {
        let (one, two) = if wire { pair(true) } else { (lonely(), lonely()) };
        let (server_stack, address) = if wire { (&two, "10.0.0.2:80") } else { (&one, "127.0.0.1:80") };
        assert_eq!(connect(&tcp(&one), &at(address)), Err(Errno::ECONNREFUSED));
        assert_eq!(counts(&one, [Tcp::ActiveOpens.into(), Tcp::AttemptFails.into()]), [1, 1]);
        assert_eq!(counts(server_stack, [Tcp::OutRsts.into(), Tcp::PassiveOpens.into()]), [1, 0]);
        let listening = listener(server_stack, address, 5);
        let client = tcp(&one);
        connect(&client, &at(address)).unwrap();
        let server = accept(&listening);
        assert_eq!(counts(server_stack, [Tcp::PassiveOpens.into()]), [1]);
        let both = if wire { 1 } else { 2 };
        assert_eq!(counts(&one, [Tcp::ActiveOpens.into(), Tcp::CurrEstab.into()]), [2, both]);
        let before = [one.counters().tcp(Tcp::OutSegs), server_stack.counters().tcp(Tcp::InSegs)];
        write_all(&client, b"hello").unwrap();
        read_exact(&server, 5);
        let after = [one.counters().tcp(Tcp::OutSegs), server_stack.counters().tcp(Tcp::InSegs)];
        assert!(after[0] > before[0] && after[1] > before[1], "{before:?} {after:?}");
        drop(client);
        assert_eq!(read(&server, 1).unwrap(), b"");
        drop(server);
        until_count(&one, Tcp::CurrEstab, 0);
        until_count(server_stack, Tcp::CurrEstab, 0);
        assert_eq!(counts(&one, [Tcp::EstabResets.into(), Tcp::RetransSegs.into()]), [0, 0]);
    }
}

#[test]
fn a_reset_is_counted_on_both_sides() {
    for wire in [true, false] {
        let (one, two) = if wire { pair(true) } else { (lonely(), lonely()) };
        let (server_stack, address) = if wire { (&two, "10.0.0.2:80") } else { (&one, "127.0.0.1:80") };
        let listening = listener(server_stack, address, 5);
        let client = tcp(&one);
        connect(&client, &at(address)).unwrap();
        let server = accept(&listening);
        write_all(&client, b"unread").unwrap();
        wait(&server, Events::IN);
        drop(server);
        until(&client, Events::ERR, || client.poll().contains(Events::ERR).then_some(()));
        assert_eq!(counts(&one, [Tcp::EstabResets.into()]), [if wire { 1 } else { 2 }]);
        assert_eq!(counts(server_stack, [Tcp::EstabResets.into()]), [if wire { 1 } else { 2 }]);
        assert_eq!(counts(&one, [Tcp::CurrEstab.into()]), [0]);
    }
}

#[test]
fn connections_without_room_are_counted() {
    let (one, two) = pair(true);
    let _listening = listener(&two, "10.0.0.2:80", 0);
    let first = tcp(&one);
    connect(&first, &at("10.0.0.2:80")).unwrap();
    let second = tcp(&one);
    assert_eq!(second.sock().connect(&at("10.0.0.2:80")), Err(Errno::EINPROGRESS));
    until_count(&two, Ext::ListenOverflows, 1);
    until_count(&two, Ext::ListenDrops, 1);
}

#[test]
fn datagrams_are_counted() {
    let (one, two) = pair(true);
    let server = udp(&two);
    server.sock().bind(&at("10.0.0.2:53")).unwrap();
    let client = udp(&one);
    send_to(&client, &pattern(4000), "10.0.0.2:53").unwrap();
    read_exact(&server, 4000);
    assert_eq!(
        counts(&one, [Udp::OutDatagrams.of(false), Ip::FragOKs.of(false), Ip::FragCreates.of(false)]),
        [1, 1, 3]
    );
    assert_eq!(counts(&two, [Udp::InDatagrams.of(false), Ip::ReasmReqds.of(false), Ip::ReasmOKs.of(false)]), [1, 3, 1]);
    client.sock().connect(&at("10.0.0.2:54")).unwrap();
    client.write(0, &mut &b"x"[..]).unwrap();
    wait(&client, Events::ERR);
    assert_eq!(counts(&two, [Udp::NoPorts.of(false), Icmp::OutMsgs.of(false)]), [1, 1]);
    assert_eq!((two.counters().icmp_messages(false, true, 3), one.counters().icmp_messages(false, false, 3)), (1, 1));
    assert_eq!(counts(&two, [Ip::InReceives.of(false), Ip::InDelivers.of(false)]), [4, 2]);
    assert_eq!(counts(&one, [Udp::OutDatagrams.of(true)]), [0], "the other family has its own");
}

#[test]
fn datagrams_within_a_host_are_packets_of_lo() {
    let stack = lonely();
    let server = udp(&stack);
    server.sock().bind(&at("127.0.0.1:53")).unwrap();
    set(&server, libc::SOL_SOCKET, libc::SO_RCVBUF, 1).unwrap();
    let client = udp(&stack);
    for _ in 0..3 {
        send_to(&client, &[0; 1000], "127.0.0.1:53").unwrap();
    }
    send_to(&client, &[0; 1000], "127.0.0.1:54").unwrap();
    read(&server, 1000).unwrap();
    let udp = [Udp::OutDatagrams, Udp::InDatagrams, Udp::RcvbufErrors, Udp::InErrors, Udp::NoPorts];
    assert_eq!(counts(&stack, udp.map(|counter| counter.of(false))), [4, 1, 2, 2, 1]);
    assert_eq!(stack.counters().ip(false, Ip::InReceives), 4);
    assert_eq!(stack.counters().ip(false, Ip::OutOctets), 4 * 1028);
    assert_eq!(counts(&stack, [Local::Packets.of(true)]), [0]);
    let sent = &stack.interfaces().loopback().stats().tx_bytes;
    assert_eq!(sent.load(std::sync::atomic::Ordering::Relaxed), 4 * 1028);
}

#[test]
fn a_handshake_that_the_peer_resets_is_counted() {
    let (stack, mac, _wire) = deaf();
    let _listening = listener(&stack, "10.0.0.2:80", 5);
    stack.inject(&mut frame(mac, packet::TCP, &segment(5000, 1000, 0, 2)));
    assert_eq!(counts(&stack, [Ext::EmbryonicRsts.into(), Tcp::AttemptFails.into()]), [0, 0]);
    stack.inject(&mut frame(mac, packet::TCP, &segment(5000, 1001, 0, 4)));
    assert_eq!(counts(&stack, [Ext::EmbryonicRsts.into(), Tcp::AttemptFails.into()]), [1, 1]);
}

/// A segment from 10.0.0.1 to port 80.
fn segment(port: u16, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0];
    bytes[..2].copy_from_slice(&port.to_be_bytes());
    bytes[4..8].copy_from_slice(&seq.to_be_bytes());
    bytes[8..12].copy_from_slice(&ack.to_be_bytes());
    bytes
}

#[test]
fn too_many_handshakes_are_answered_by_cookies() {
    let (stack, mac, _wire) = deaf();
    let _listening = listener(&stack, "10.0.0.2:80", 5);
    let cookies = || counts(&stack, [Ext::SyncookiesSent, Ext::SyncookiesFailed, Ext::ListenDrops].map(Slot::from));
    for port in 1000..1010 {
        stack.inject(&mut frame(mac, packet::TCP, &segment(port, 7, 0, 2)));
    }
    assert_eq!(cookies(), [2, 0, 0], "eight are remembered");
    let resets = stack.counters().get(Tcp::OutRsts);
    stack.inject(&mut frame(mac, packet::TCP, &segment(1009, 8, 99, 16)));
    assert_eq!(cookies(), [2, 1, 0], "a guess");
    assert_eq!(stack.counters().get(Tcp::OutRsts), resets + 1);
    stack.settings().set(Number::Syncookies, 0).unwrap();
    stack.inject(&mut frame(mac, packet::TCP, &segment(1010, 7, 0, 2)));
    assert_eq!(cookies(), [2, 1, 1]);
}

#[test]
fn broken_packets_are_counted_by_what_is_wrong() {
    let (stack, mac, _wire) = deaf();
    let whole = frame(mac, packet::UDP, &[0; 30]);
    stack.inject(&mut whole[..whole.len() - 1].to_vec());
    stack.inject(&mut whole[..30].to_vec());
    let mut changed = whole.clone();
    changed[14 + 12] ^= 1;
    stack.inject(&mut changed);
    let ip = [Ip::InTruncatedPkts, Ip::InHdrErrors, Ip::InCsumErrors, Ip::InReceives, Ip::InCEPkts];
    assert_eq!(counts(&stack, ip.map(|counter| counter.of(false))), [1, 2, 1, 3, 0]);
    stack.inject(&mut whole.clone());
    assert_eq!(counts(&stack, [Ip::InCEPkts.of(false), Ip::InNoECTPkts.of(false)]), [1, 0]);
}

#[test]
fn what_has_no_way_is_counted() {
    let stack = lonely();
    assert_eq!(send_to(&udp(&stack), b"x", "192.0.2.1:9"), Err(Errno::ENETUNREACH));
    assert_eq!(connect(&tcp(&stack), &at("192.0.2.1:9")), Err(Errno::ENETUNREACH));
    assert_eq!(counts(&stack, [Ip::OutNoRoutes.of(false), Ip::OutNoRoutes.of(true)]), [2, 0]);
}

#[test]
fn new_sockets_start_with_the_settings() {
    let stack = lonely();
    let settings = stack.settings();
    for (number, value) in [
        (Number::KeepaliveTime, 100),
        (Number::KeepaliveInterval, 10),
        (Number::KeepaliveProbes, 3),
        (Number::SynRetries, 2),
        (Number::FinTimeout, 7),
        (Number::DefaultTtl, 9),
        (Number::V6Only, 1),
        (Number::ReceiveDefault, 60_000),
        (Number::ReceiveMax, 70_000),
        (Number::SendDefault, 80_000),
    ] {
        settings.set(number, value).unwrap();
    }
    settings.set_buffer(Buffer::Receive, [1000, 50_000, 1 << 22]).unwrap();
    settings.set_ports(2000, 2000).unwrap();
    let file = tcp(&stack);
    let tcp_options = [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT, libc::TCP_SYNCNT, libc::TCP_LINGER2];
    assert_eq!(tcp_options.map(|name| int(&file, libc::IPPROTO_TCP, name).unwrap()), [100, 10, 3, 2, 7]);
    assert_eq!(int(&file, libc::IPPROTO_IP, libc::IP_TTL), Ok(9));
    set(&file, libc::IPPROTO_IP, libc::IP_TTL, 30).unwrap();
    set(&file, libc::IPPROTO_IP, libc::IP_TTL, -1).unwrap();
    assert_eq!(int(&file, libc::IPPROTO_IP, libc::IP_TTL), Ok(9));
    assert_eq!(int(&file, libc::SOL_SOCKET, libc::SO_RCVBUF), Ok(50_000));
    let six = socket(&stack, libc::AF_INET6, libc::SOCK_DGRAM);
    assert_eq!(int(&six, libc::SOL_SOCKET, libc::SO_RCVBUF), Ok(60_000));
    assert_eq!(int(&six, libc::SOL_SOCKET, libc::SO_SNDBUF), Ok(80_000));
    set(&six, libc::SOL_SOCKET, libc::SO_RCVBUF, 1 << 20).unwrap();
    assert_eq!(int(&six, libc::SOL_SOCKET, libc::SO_RCVBUF), Ok(140_000));
    assert_eq!(int(&six, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY), Ok(1));
    file.sock().bind(&at("127.0.0.1:0")).unwrap();
    assert_eq!(file.sock().local_name(), Ok(at("127.0.0.1:2000")));
    let other = tcp(&stack);
    assert_eq!(other.sock().bind(&at("127.0.0.1:0")), Err(Errno::EADDRINUSE));
    assert_eq!(other.sock().bind(&at("192.0.2.1:80")), Err(Errno::EADDRNOTAVAIL));
    settings.set(Number::NonlocalBind, 1).unwrap();
    assert_eq!(other.sock().bind(&at("192.0.2.1:80")), Ok(()));
    assert!(matches!(other.sock().local_name(), Ok(SockAddr::V4(_))));
}
