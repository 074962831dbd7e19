//! TCP over a wire between two stacks, and within one.

use super::*;
use crate::netstack::stack::settings::Number;
use crate::netstack::testing::*;
use crate::netstack::{SockAddr, SocketOption};
use crate::vfs::file::File;

/// Stacks and two sockets.
type Connected = (Vec<Arc<Stack>>, Arc<dyn File>, Arc<dyn File>);

/// A connected pair, from the first stack to the second; over the wire or within one.
fn connected(wire: bool) -> Connected {
    let stacks = if wire {
        let (one, two) = pair(true);
        vec![one, two]
    } else {
        vec![lonely()]
    };
    let server = stacks.last().unwrap();
    let address = if wire { "10.0.0.2:80" } else { "127.0.0.1:80" };
    let listening = listener(server, address, 5);
    let client = tcp(&stacks[0]);
    connect(&client, &at(address)).unwrap();
    let accepted = accept(&listening);
    (stacks, client, accepted)
}

fn both(test: impl Fn(bool)) {
    test(true);
    test(false);
}

#[test]
fn bytes_go_both_ways() {
    both(|wire| {
        let (_stacks, client, server) = connected(wire);
        write_all(&client, b"question").unwrap();
        assert_eq!(read(&server, 100).unwrap(), b"question");
        write_all(&server, b"answer").unwrap();
        assert_eq!(read_exact(&client, 3), b"ans");
        assert_eq!(read_exact(&client, 3), b"wer");
        assert_eq!(read_now(&client, 10), Err(Errno::EAGAIN));
        assert_eq!(client.sock().peer_name(), server.sock().local_name());
        assert_eq!(client.sock().local_name(), server.sock().peer_name());
    });
}

#[test]
fn much_goes_through_whole() {
    for (wire, header) in [(true, true), (true, false), (false, false)] {
        let (_stacks, client, server) = if wire && !header {
            let (one, two) = pair(false);
            let listening = listener(&two, "10.0.0.2:80", 5);
            let client = tcp(&one);
            connect(&client, &at("10.0.0.2:80")).unwrap();
            let accepted = accept(&listening);
            (vec![one, two], client, accepted)
        } else {
            connected(wire)
        };
        let bytes = pattern(5 << 20);
        let copy = bytes.clone();
        let writer = std::thread::spawn(move || {
            write_all(&client, &copy).unwrap();
            client.sock().shutdown(libc::SHUT_WR).unwrap();
            assert_eq!(read(&client, 10).unwrap(), b"");
        });
        let got = read_exact(&server, bytes.len());
        assert!(got == bytes, "wire {wire} header {header}");
        assert_eq!(read(&server, 10).unwrap(), b"");
        drop(server);
        writer.join().unwrap();
    }
}

#[test]
fn over_ipv6() {
    let (one, two) = pair(true);
    let listening = listener(&two, "[::]:80", 5);
    let client = socket(&one, libc::AF_INET6, libc::SOCK_STREAM);
    connect(&client, &at("[fd00::2]:80")).unwrap();
    let server = accept(&listening);
    let bytes = pattern(1 << 20);
    let copy = bytes.clone();
    let writer = std::thread::spawn(move || write_all(&client, &copy).map(|()| client));
    assert!(read_exact(&server, bytes.len()) == bytes);
    drop(writer.join().unwrap().unwrap());
    // The same listener takes IPv4 and shows it as mapped.
    let client = tcp(&one);
    connect(&client, &at("10.0.0.2:80")).unwrap();
    let SockAddr::V6(peer) = accept(&listening).sock().peer_name().unwrap() else { panic!() };
    assert_eq!(peer.ip().to_ipv4_mapped(), Some("10.0.0.1".parse().unwrap()));
}

#[test]
fn nobody_listens() {
    let (one, _two) = pair(true);
    assert_eq!(connect(&tcp(&one), &at("10.0.0.2:80")), Err(Errno::ECONNREFUSED));
    assert_eq!(connect(&tcp(&one), &at("127.0.0.1:80")), Err(Errno::ECONNREFUSED));
    assert_eq!(connect(&tcp(&one), &at("8.8.8.8:80")), Err(Errno::ENETUNREACH));
    let client = tcp(&one);
    assert_eq!(client.sock().connect(&at("10.0.0.2:80")), Err(Errno::EINPROGRESS));
    assert_eq!(
        wait(&client, Events::OUT) & (Events::ERR | Events::HUP | Events::OUT | Events::IN),
        Events::ERR | Events::HUP | Events::OUT | Events::IN
    );
    assert_eq!(client.sock().connect(&at("10.0.0.2:80")), Err(Errno::ECONNREFUSED));
    let _listening = listener(&_two, "10.0.0.2:80", 1);
    connect(&client, &at("10.0.0.2:80")).unwrap();
}

#[test]
fn no_neighbour() {
    let (one, _two) = pair(true);
    assert_eq!(connect(&tcp(&one), &at("10.0.0.77:80")), Err(Errno::EHOSTUNREACH));
}

#[test]
fn half_closed() {
    both(|wire| {
        let (_stacks, client, server) = connected(wire);
        client.sock().shutdown(libc::SHUT_WR).unwrap();
        let ready = until(&server, Events::RDHUP, || Some(server.poll()).filter(|e| e.contains(Events::RDHUP)));
        assert!(ready.contains(Events::IN | Events::OUT) && !ready.intersects(Events::HUP | Events::ERR));
        assert_eq!(read(&server, 10).unwrap(), b"");
        write_all(&server, b"still").unwrap();
        assert_eq!(read(&client, 10).unwrap(), b"still");
        assert_eq!(write_all(&client, b"x"), Err(Errno::EPIPE));
        server.sock().shutdown(libc::SHUT_WR).unwrap();
        let both_ends = |file: &Arc<dyn File>| {
            until(file, Events::HUP, || Some(file.poll()).filter(|e| e.contains(Events::HUP)));
        };
        both_ends(&client);
        both_ends(&server);
        assert_eq!(read(&client, 10).unwrap(), b"");
        assert_eq!((error(&client), error(&server)), (0, 0));
    });
}

#[test]
fn closing_with_unread_bytes_resets() {
    both(|wire| {
        let (_stacks, client, server) = connected(wire);
        write_all(&client, b"unread").unwrap();
        wait(&server, Events::IN);
        drop(server);
        let ready = until(&client, Events::ERR, || Some(client.poll()).filter(|e| e.contains(Events::ERR)));
        assert!(ready.contains(Events::HUP | Events::IN | Events::OUT | Events::RDHUP));
        assert_eq!(read(&client, 10), Err(Errno::ECONNRESET));
        assert_eq!(read(&client, 10).unwrap(), b"");
        assert_eq!(write_all(&client, b"x"), Err(Errno::EPIPE));
    });
}

#[test]
fn bytes_before_a_reset_can_be_read() {
    both(|wire| {
        let (_stacks, client, server) = connected(wire);
        write_all(&server, b"last words").unwrap();
        wait(&client, Events::IN);
        let linger = [1i32.to_ne_bytes(), 0i32.to_ne_bytes()].concat();
        let option = SocketOption { level: libc::SOL_SOCKET, name: libc::SO_LINGER };
        server.sock().set_option(option, &linger).unwrap();
        drop(server);
        until(&client, Events::ERR, || Some(()).filter(|()| client.poll().contains(Events::ERR)));
        assert_eq!(read(&client, 100).unwrap(), b"last words");
        assert_eq!(read(&client, 100), Err(Errno::ECONNRESET));
    });
}

#[test]
fn writing_to_one_who_is_gone() {
    both(|wire| {
        let (_stacks, client, server) = connected(wire);
        drop(server);
        assert_eq!(read(&client, 10).unwrap(), b"");
        write_all(&client, b"into the void").unwrap();
        until(&client, Events::ERR, || Some(()).filter(|()| client.poll().contains(Events::ERR)));
        assert_eq!(error(&client), libc::EPIPE);
        assert_eq!(write_all(&client, b"x"), Err(Errno::EPIPE));
    });
}

#[test]
fn full_buffers_hold_the_writer() {
    both(|wire| {
        let (_stacks, client, server) = connected(wire);
        let chunk = pattern(100_000);
        let mut sent = 0;
        loop {
            match client.write(0, &mut &chunk[..]) {
                Ok(n) => sent += n,
                Err(Errno::EAGAIN) if !wire || sent > 2 << 20 => break,
                // The peer's stack takes bytes meanwhile.
                Err(Errno::EAGAIN) => drop(wait(&client, Events::OUT)),
                Err(error) => panic!("{error}"),
            }
            assert!(sent < 16 << 20);
        }
        let mut got = 0;
        while got < sent {
            got += read(&server, 1 << 20).unwrap().len();
        }
        wait(&client, Events::OUT);
        assert!(client.poll().contains(Events::OUT));
    });
}

#[test]
fn peeking() {
    both(|wire| {
        let (_stacks, client, server) = connected(wire);
        write_all(&client, b"look").unwrap();
        wait(&server, Events::IN);
        let mut buf = [0; 10];
        let peeked = server.sock().recv(&mut crate::io::SliceSink::new(&mut buf), RecvFlags::PEEK).unwrap();
        assert_eq!(&buf[..peeked.len], b"look");
        assert_eq!(read(&server, 10).unwrap(), b"look");
    });
}

#[test]
fn the_backlog_is_bounded() {
    let (one, two) = pair(true);
    let listening = listener(&two, "10.0.0.2:80", 1);
    let clients: Vec<_> = (0..2).map(|_| tcp(&one)).collect();
    for client in &clients {
        connect(client, &at("10.0.0.2:80")).unwrap();
    }
    until(&listening, Events::IN, || Some(()).filter(|()| listening.poll().contains(Events::IN)));
    // One more than the backlog is in; the next waits, with its SYN sent again after a second.
    let late = tcp(&one);
    assert_eq!(late.sock().connect(&at("10.0.0.2:80")), Err(Errno::EINPROGRESS));
    accept(&listening);
    accept(&listening);
    wait(&late, Events::OUT);
    assert_eq!(error(&late), 0);
    accept(&listening);
}

#[test]
fn the_backlog_within_a_host() {
    let stack = lonely();
    let listening = listener(&stack, "127.0.0.1:80", 0);
    let (first, second) = (tcp(&stack), tcp(&stack));
    connect(&first, &at("127.0.0.1:80")).unwrap();
    assert_eq!(second.sock().connect(&at("127.0.0.1:80")), Err(Errno::EINPROGRESS));
    assert_eq!(second.sock().connect(&at("127.0.0.1:80")), Err(Errno::EALREADY));
    assert!(!second.poll().contains(Events::OUT));
    accept(&listening);
    wait(&second, Events::OUT);
    assert_eq!(error(&second), 0);
    drop(listening);
    assert_eq!(read(&second, 10), Err(Errno::ECONNRESET), "never accepted");
    assert_eq!(connect(&tcp(&stack), &at("127.0.0.1:80")), Err(Errno::ECONNREFUSED));
}

#[test]
fn a_listener_that_goes_resets_who_waits() {
    let (one, two) = pair(true);
    let listening = listener(&two, "10.0.0.2:80", 5);
    let client = tcp(&one);
    connect(&client, &at("10.0.0.2:80")).unwrap();
    wait(&listening, Events::IN);
    drop(listening);
    assert_eq!(read(&client, 10), Err(Errno::ECONNRESET));
    until(&client, Events::ERR, || Some(()).filter(|()| two.tcp_table().is_empty()));
    assert_eq!(connect(&tcp(&one), &at("10.0.0.2:80")), Err(Errno::ECONNREFUSED));
}

#[test]
fn states_of_a_fresh_socket() {
    let stack = lonely();
    let file = tcp(&stack);
    assert_eq!(file.poll(), Events::WRITE | Events::HUP);
    assert_eq!(read_now(&file, 1), Err(Errno::ENOTCONN));
    assert_eq!(write_all(&file, b"x"), Err(Errno::EPIPE));
    assert_eq!(file.sock().accept().err(), Some(Errno::EINVAL));
    assert_eq!(file.sock().peer_name(), Err(Errno::ENOTCONN));
    assert_eq!(file.sock().shutdown(libc::SHUT_RDWR), Err(Errno::ENOTCONN));
    assert_eq!(file.sock().bind(&at("10.1.1.1:80")), Err(Errno::EADDRNOTAVAIL));
    assert_eq!(file.sock().bind(&at("[::1]:80")), Err(Errno::EAFNOSUPPORT));
    file.sock().listen(3).unwrap();
    assert_eq!(file.poll(), Events::empty());
    assert_eq!(int(&file, libc::SOL_SOCKET, libc::SO_ACCEPTCONN), Ok(1));
}

#[test]
fn options_are_read_back() {
    let (_stacks, client, server) = connected(true);
    for (name, value) in [
        (libc::TCP_NODELAY, 1),
        (libc::TCP_CORK, 1),
        (libc::TCP_KEEPIDLE, 11),
        (libc::TCP_KEEPCNT, 3),
        (libc::TCP_KEEPINTVL, 7),
    ] {
        set(&client, libc::IPPROTO_TCP, name, value).unwrap();
        assert_eq!(int(&client, libc::IPPROTO_TCP, name), Ok(value));
    }
    set(&client, libc::SOL_SOCKET, libc::SO_SNDBUF, 10_000).unwrap();
    assert_eq!(int(&client, libc::SOL_SOCKET, libc::SO_SNDBUF), Ok(20_000));
    assert_eq!(int(&client, libc::IPPROTO_TCP, libc::TCP_MAXSEG), Ok(1460));
    assert_eq!(set(&client, libc::IPPROTO_TCP, 9999, 1), Err(Errno::ENOPROTOOPT));
    // Corked: a short segment is held back until the cork is out.
    write_all(&client, b"held").unwrap();
    assert_eq!(read_now(&server, 10), Err(Errno::EAGAIN));
    set(&client, libc::IPPROTO_TCP, libc::TCP_CORK, 0).unwrap();
    assert_eq!(read(&server, 10).unwrap(), b"held");
}

#[test]
fn a_cookie_stands_for_a_handshake() {
    for (address, any) in [("10.0.0.2:80", "0.0.0.0:80"), ("[fd00::2]:80", "[::]:80")] {
        let (one, two) = pair(true);
        two.settings().set(Number::Syncookies, 2).unwrap();
        let listening = listener(&two, any, 5);
        let domain = if address.starts_with('[') { libc::AF_INET6 } else { libc::AF_INET };
        let client = socket(&one, domain, libc::SOCK_STREAM);
        connect(&client, &at(address)).unwrap();
        let data = pattern(1 << 20);
        let sent = data.clone();
        let server = std::thread::spawn({
            let client = client.clone();
            move || write_all(&client, &sent).unwrap()
        });
        let accepted = accept(&listening);
        assert_eq!(read_exact(&accepted, data.len()), data);
        server.join().unwrap();
        let answer = std::thread::spawn({
            let (accepted, data) = (accepted.clone(), data.clone());
            move || write_all(&accepted, &data).unwrap()
        });
        assert_eq!(read_exact(&client, data.len()), data);
        answer.join().unwrap();
        drop(client);
        assert_eq!(read(&accepted, 1).unwrap(), b"");
        let counted = [Ext::SyncookiesSent, Ext::SyncookiesRecv, Ext::SyncookiesFailed];
        assert_eq!(counted.map(|counter| two.counters().get(counter)), [1, 1, 0]);
    }
}
