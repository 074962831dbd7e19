//! UDP over a wire between two stacks, and within one.

use super::*;
use crate::io::SliceSink;
use crate::netstack::testing::*;
use crate::vfs::file::File;

fn send_to(file: &Arc<dyn File>, bytes: &[u8], to: &str) -> Result<usize> {
    file.sock().send(&mut &*bytes, Some(&at(to)), Ancillary::default(), 0)
}

fn receive(file: &Arc<dyn File>, room: usize) -> (Vec<u8>, Message) {
    let mut buf = vec![0; room];
    let message =
        block(file, Events::IN, || file.sock().recv(&mut SliceSink::new(&mut buf), RecvFlags::empty())).unwrap();
    buf.truncate(message.len);
    (buf, message)
}

fn bound(stack: &Arc<Stack>, addr: &str) -> Arc<dyn File> {
    let file = udp(stack);
    file.sock().bind(&at(addr)).unwrap();
    file
}

#[test]
fn datagrams_keep_their_limits() {
    let (one, two) = pair(true);
    for (from, to, address) in [(&one, &two, "10.0.0.2:53"), (&two, &two, "10.0.0.2:54"), (&one, &one, "127.0.0.1:53")]
    {
        let server = bound(to, address);
        let client = bound(from, "0.0.0.0:0");
        assert_eq!(send_to(&client, b"first", address), Ok(5));
        assert_eq!(send_to(&client, b"", address), Ok(0));
        assert_eq!(receive(&server, 3).1.flags, libc::MSG_TRUNC);
        let (bytes, message) = receive(&server, 10);
        assert!(bytes.is_empty());
        server.sock().send(&mut &b"back"[..], message.from.as_ref(), Ancillary::default(), 0).unwrap();
        assert_eq!(receive(&client, 10).0, b"back");
    }
}

#[test]
fn long_ones_are_cut_and_put_together() {
    for header in [true, false] {
        let (one, two) = pair(header);
        let bytes = pattern(9_000);
        let server = bound(&two, "10.0.0.2:53");
        assert_eq!(send_to(&bound(&one, "0.0.0.0:0"), &bytes, "10.0.0.2:53"), Ok(9_000));
        assert!(receive(&server, 10_000).0 == bytes);
        let (server, client) =
            (socket(&two, libc::AF_INET6, libc::SOCK_DGRAM), socket(&one, libc::AF_INET6, libc::SOCK_DGRAM));
        server.sock().bind(&at("[::]:54")).unwrap();
        assert_eq!(send_to(&client, &bytes, "[fd00::2]:54"), Ok(9_000));
        assert!(receive(&server, 10_000).0 == bytes);
        assert_eq!(send_to(&client, &vec![0; 65_530], "[fd00::2]:54"), Err(Errno::EMSGSIZE));
    }
}

#[test]
fn a_refusal_reaches_a_connected_socket() {
    let (one, _two) = pair(true);
    for address in ["10.0.0.2:53", "127.0.0.1:53"] {
        let client = udp(&one);
        client.sock().connect(&at(address)).unwrap();
        assert_eq!(client.write(0, &mut &b"x"[..]), Ok(1));
        wait(&client, Events::ERR);
        assert_eq!(read_now(&client, 1), Err(Errno::ECONNREFUSED));
        assert_eq!(read_now(&client, 1), Err(Errno::EAGAIN));
    }
}

#[test]
fn a_connected_socket_hears_its_peer_only() {
    let stack = lonely();
    let (peer, stranger) = (bound(&stack, "127.0.0.1:1"), bound(&stack, "127.0.0.1:2"));
    let client = bound(&stack, "127.0.0.1:3");
    client.sock().connect(&at("127.0.0.1:1")).unwrap();
    send_to(&stranger, b"no", "127.0.0.1:3").unwrap();
    send_to(&peer, b"yes", "127.0.0.1:3").unwrap();
    assert_eq!(receive(&client, 10).0, b"yes");
    client.sock().connect(&SockAddr::Unspecified).unwrap();
    send_to(&stranger, b"now", "127.0.0.1:3").unwrap();
    assert_eq!(receive(&client, 10).0, b"now");
}

#[test]
fn broadcasts_must_be_allowed() {
    let (one, two) = pair(true);
    let server = bound(&two, "0.0.0.0:67");
    let client = bound(&one, "0.0.0.0:68");
    assert_eq!(send_to(&client, b"x", "10.0.0.255:67"), Err(Errno::EACCES));
    set(&client, libc::SOL_SOCKET, libc::SO_BROADCAST, 1).unwrap();
    send_to(&client, b"x", "10.0.0.255:67").unwrap();
    assert_eq!(receive(&server, 10).0, b"x");
}

#[test]
fn the_queue_is_bounded() {
    let stack = lonely();
    let (server, client) = (bound(&stack, "127.0.0.1:1"), bound(&stack, "127.0.0.1:2"));
    for _ in 0..10_000 {
        send_to(&client, &[0; 1000], "127.0.0.1:1").unwrap();
    }
    let mut count = 0;
    while read_now(&server, 1000).is_ok() {
        count += 1;
    }
    assert!((50..300).contains(&count), "{count}");
}

#[test]
fn what_was_asked_for_is_told() {
    let stack = lonely();
    let (server, client) = (bound(&stack, "0.0.0.0:1"), bound(&stack, "127.0.0.1:2"));
    set(&server, libc::IPPROTO_IP, libc::IP_PKTINFO, 1).unwrap();
    set(&server, libc::IPPROTO_IP, libc::IP_RECVTTL, 1).unwrap();
    send_to(&client, b"x", "127.0.0.9:1").unwrap();
    let (_, message) = receive(&server, 10);
    let info = [&1u32.to_ne_bytes()[..], &[127, 0, 0, 9], &[127, 0, 0, 9]].concat();
    let ttl = 64i32.to_ne_bytes().to_vec();
    assert_eq!(
        message.ancillary.other,
        [(libc::IPPROTO_IP, libc::IP_PKTINFO, info), (libc::IPPROTO_IP, libc::IP_TTL, ttl)]
    );
}
