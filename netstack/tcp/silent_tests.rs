//! What a connection does when its peer says nothing, and how it paces itself.

use std::time::Duration;

use crate::errno::Errno;
use crate::netstack::SocketOption;
use crate::netstack::stack::counters::Tcp as Counter;
use crate::netstack::testing::*;
use crate::wait::Events;

const TCP: i32 = libc::IPPROTO_TCP;

fn linger(seconds: i32) -> Vec<u8> {
    [1i32.to_ne_bytes(), seconds.to_ne_bytes()].concat()
}

#[test]
fn probes_without_answer_end_a_connection() {
    let (one, two) = pair(true);
    let listening = listener(&two, "10.0.0.2:80", 5);
    let client = tcp(&one);
    for (level, name, value) in [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (TCP, libc::TCP_KEEPIDLE, 1),
        (TCP, libc::TCP_KEEPINTVL, 1),
        (TCP, libc::TCP_KEEPCNT, 1),
    ] {
        set(&client, level, name, value).unwrap();
    }
    connect(&client, &at("10.0.0.2:80")).unwrap();
    let _server = accept(&listening);
    let _silence = two.hold_packets();
    assert_eq!(read(&client, 1), Err(Errno::ETIMEDOUT));
    assert_eq!(read(&client, 1).unwrap(), b"", "told once");
}

#[test]
fn data_without_acknowledgement_ends_a_connection() {
    let (one, two) = pair(true);
    let listening = listener(&two, "10.0.0.2:80", 5);
    let client = tcp(&one);
    set(&client, TCP, libc::TCP_USER_TIMEOUT, 300).unwrap();
    connect(&client, &at("10.0.0.2:80")).unwrap();
    let _server = accept(&listening);
    let _silence = two.hold_packets();
    write_all(&client, b"anybody there?").unwrap();
    assert_eq!(read(&client, 1), Err(Errno::ETIMEDOUT));
}

#[test]
fn connecting_ends_after_as_many_tries() {
    let (one, two) = pair(true);
    let listening = listener(&two, "10.0.0.2:80", 5);
    // So that the neighbour is known: nobody answers for it later.
    connect(&tcp(&one), &at("10.0.0.2:80")).unwrap();
    accept(&listening);
    let _silence = two.hold_packets();
    let client = tcp(&one);
    set(&client, TCP, libc::TCP_SYNCNT, 1).unwrap();
    let before = one.counters().get(Counter::AttemptFails);
    assert_eq!(connect(&client, &at("10.0.0.2:80")), Err(Errno::ETIMEDOUT));
    assert_eq!(one.counters().get(Counter::AttemptFails), before + 1);
}

#[test]
fn lingering_waits_for_the_peer() {
    let (one, two) = pair(true);
    let listening = listener(&two, "10.0.0.2:80", 5);
    let client = tcp(&one);
    connect(&client, &at("10.0.0.2:80")).unwrap();
    let server = accept(&listening);
    let option = SocketOption { level: libc::SOL_SOCKET, name: libc::SO_LINGER };
    client.sock().set_option(option, &linger(30)).unwrap();
    let silence = two.hold_packets();
    write_all(&client, b"last words").unwrap();
    assert_eq!(client.sock().linger(), Some(Duration::from_secs(30)));
    assert!(!client.sock().has_lingered());
    drop(silence);
    until(&client, Events::HUP, || client.sock().has_lingered().then_some(()));
    assert_eq!(read_exact(&server, 10), b"last words");
}

#[test]
fn little_is_kept_that_was_not_sent() {
    let (one, two) = pair(true);
    let listening = listener(&two, "10.0.0.2:80", 5);
    let client = tcp(&one);
    set(&client, TCP, libc::TCP_NOTSENT_LOWAT, 1000).unwrap();
    connect(&client, &at("10.0.0.2:80")).unwrap();
    let server = accept(&listening);
    let silence = two.hold_packets();
    let chunk = pattern(10_000);
    let mut sent = 0;
    let error = loop {
        match client.write(0, &mut &chunk[..]) {
            Ok(n) => sent += n,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Errno::EAGAIN);
    assert!(!client.poll().contains(Events::OUT), "{sent} bytes are enough");
    drop(silence);
    let reader = std::thread::spawn(move || read_exact(&server, sent).len());
    wait(&client, Events::OUT);
    assert_eq!(reader.join().unwrap(), sent);
}

#[test]
fn congestion_controls_carry_everything() {
    for name in [&b"reno"[..], b"cubic"] {
        let (one, two) = pair(true);
        let listening = listener(&two, "10.0.0.2:80", 5);
        let client = tcp(&one);
        client.sock().set_option(SocketOption { level: TCP, name: libc::TCP_CONGESTION }, name).unwrap();
        connect(&client, &at("10.0.0.2:80")).unwrap();
        let server = accept(&listening);
        let bytes = pattern(3 << 20);
        let copy = bytes.clone();
        let writer = std::thread::spawn(move || write_all(&client, &copy).map(|()| client));
        assert!(read_exact(&server, bytes.len()) == bytes, "{}", String::from_utf8_lossy(name));
        drop(writer.join().unwrap().unwrap());
    }
}
