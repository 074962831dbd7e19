//! What the network counts, and its kernel parameters: `proc_pid_net(5)`, `/proc/sys/net`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use crate::common::*;

/// Counters of `snmp` or `netstat` now.
fn counter(file: &str, table: &str, name: &str) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/net/{file}")).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter_map(|line| line.strip_prefix(table)?.strip_prefix(": "))
        .map(|rest| rest.split(' ').collect())
        .collect();
    assert_eq!(rows.len(), 2, "{table} in {text}");
    assert_eq!(rows[0].len(), rows[1].len(), "{table}");
    let place = rows[0].iter().position(|known| *known == name).unwrap_or_else(|| panic!("no {table} {name}"));
    rows[1][place].parse().unwrap()
}

/// A counter of `snmp6`.
fn counter6(name: &str) -> i64 {
    let text = std::fs::read_to_string("/proc/net/snmp6").unwrap();
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_else(|| panic!("no {name}")).split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs `work`, and fails unless each counter has grown by so much at least: others may use the network meanwhile.
#[track_caller]
fn grows(wanted: &[(&str, &str, i64)], work: impl FnOnce()) {
    let now = || -> Vec<i64> { wanted.iter().map(|(table, name, _)| counter("snmp", table, name)).collect() };
    let before = now();
    work();
    for ((before, after), (table, name, least)) in before.iter().zip(now()).zip(wanted) {
        assert!(after >= before + least, "{table} {name} went from {before} to {after}");
    }
}

#[test]
fn datagrams_are_counted() {
    isolated(|| {
        let (one, two) = (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let wanted = [
            ("Udp", "OutDatagrams", 4),
            ("Udp", "InDatagrams", 3),
            ("Udp", "NoPorts", 1),
            ("Ip", "InReceives", 4),
            ("Ip", "InDelivers", 4),
            ("Ip", "OutRequests", 4),
        ];
        grows(&wanted, || {
            for _ in 0..3 {
                one.send_to(b"hello", two.local_addr().unwrap()).unwrap();
                two.recv(&mut [0; 10]).unwrap();
            }
            one.send_to(b"nobody", closed).unwrap();
        });
        assert_eq!(counter("snmp", "Ip", "DefaultTTL"), 64);
    });
}

#[test]
fn datagrams_of_ipv6_are_counted_apart() {
    isolated(|| {
        let (one, two) = (UdpSocket::bind("[::1]:0").unwrap(), UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap());
        let names = ["Ip6InReceives", "Ip6OutRequests", "Udp6InDatagrams", "Udp6OutDatagrams"];
        let before = names.map(counter6);
        one.send_to(b"hello", two.local_addr().unwrap()).unwrap();
        two.recv(&mut [0; 10]).unwrap();
        for ((name, before), after) in names.iter().zip(before).zip(names.map(counter6)) {
            assert!(after > before, "{name} is still {after}");
        }
    });
}

/// An IPv4 packet of the experimental protocol 253 from and to this host: a part of one that is longer.
fn fragment(id: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 253, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1];
    bytes[4..6].copy_from_slice(&id.to_be_bytes());
    bytes[6..8].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn fragments_that_overlap_are_counted() {
    isolated(|| unsafe {
        let fd = ok(libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW));
        let to = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
        let send = |packet: Vec<u8>| {
            let sent = libc::sendto(fd, packet.as_ptr().cast(), packet.len(), 0, (&raw const to).cast(), 16);
            assert_eq!(ok(sent) as usize, packet.len());
        };
        let overlaps = counter("netstat", "IpExt", "ReasmOverlaps");
        grows(&[("Ip", "ReasmReqds", 3), ("Ip", "ReasmFails", 1)], || {
            send(fragment(7, 0, true, &[1; 16]));
            send(fragment(7, 0, true, &[1; 16]));
            send(fragment(7, 8, true, &[2; 16]));
        });
        assert!(counter("netstat", "IpExt", "ReasmOverlaps") > overlaps);
        grows(&[("Ip", "ReasmReqds", 2), ("Ip", "ReasmOKs", 1)], || {
            send(fragment(8, 8, false, &[2; 5]));
            send(fragment(8, 0, true, &[1; 8]));
        });
    });
}

#[test]
fn what_has_no_way_is_counted() {
    isolated(|| {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        // SAFETY: the name is as long as it says.
        ok(unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, c"lo".as_ptr().cast(), 3)
        });
        let before = counter6("Ip6OutNoRoutes");
        let error = socket.send_to(b"x", "[2001:db8::1]:9").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
        assert!(counter6("Ip6OutNoRoutes") > before);
    });
}

#[test]
fn connections_are_counted() {
    isolated(|| {
        let wanted =
            [("Tcp", "ActiveOpens", 2), ("Tcp", "PassiveOpens", 1), ("Tcp", "AttemptFails", 1), ("Tcp", "OutSegs", 2)];
        grows(&wanted, || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            assert!(counter("snmp", "Tcp", "CurrEstab") >= 2);
            client.write_all(b"question").unwrap();
            server.read_exact(&mut [0; 8]).unwrap();
            server.write_all(b"answer").unwrap();
            client.read_exact(&mut [0; 6]).unwrap();
            let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            TcpStream::connect(closed).unwrap_err();
        });
        assert_eq!(counter("snmp", "Tcp", "MaxConn"), -1);
        assert!(counter("netstat", "TcpExt", "ListenOverflows") >= 0);
    });
}

#[test]
fn bytes_of_lo_are_counted() {
    isolated(|| {
        let bytes = || -> (u64, u64) {
            let text = std::fs::read_to_string("/proc/net/dev").unwrap();
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix("lo:")).unwrap();
            let fields: Vec<u64> = line.split_whitespace().map(|field| field.parse().unwrap()).collect();
            assert_eq!(fields.len(), 16);
            (fields[0], fields[8])
        };
        let before = bytes();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let writer = std::thread::spawn(move || client.write_all(&[7; 1_000_000]).unwrap());
        let mut all = Vec::new();
        server.read_to_end(&mut all).unwrap();
        writer.join().unwrap();
        let after = bytes();
        assert_eq!(all.len(), 1_000_000);
        assert!(after.0 >= before.0 + 1_000_000 && after.1 >= before.1 + 1_000_000, "{before:?} {after:?}");
    });
}

#[test]
fn a_backlog_is_no_longer_than_somaxconn() {
    isolated(|| {
        let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let most: u32 = text.trim().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for (backlog, expected) in [(1, 1), (i32::MAX, most), (-1, most)] {
            // SAFETY: no memory is involved.
            ok(unsafe { libc::listen(listener.as_raw_fd(), backlog) });
            let (mut info, mut len) = ([0u32; 26], 104);
            // SAFETY: both are valid.
            let result = unsafe {
                libc::getsockopt(
                    listener.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_INFO,
                    info.as_mut_ptr().cast(),
                    &mut len,
                )
            };
            ok(result);
            // `tcpi_sacked`: of a listener its backlog.
            assert_eq!(info[7], expected, "after {backlog}");
        }
    });
}

#[test]
fn ports_for_connections_are_of_the_range() {
    isolated(|| {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let range: Vec<u16> = text.split_whitespace().map(|port| port.parse().unwrap()).collect();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!((range[0]..=range[1]).contains(&socket.local_addr().unwrap().port()), "{range:?}");
    });
}
