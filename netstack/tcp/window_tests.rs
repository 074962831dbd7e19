//! What a connection does when its peer has no room. The peer is made of segments, so that it says what it has to say just
//! when that hurts, and what it says can be lost.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::segment::{ACK, FIN, SYN, Segment};
use crate::errno::Errno;
use crate::netstack::Stack;
use crate::netstack::device::{ETHERNET_LEN, vnet};
use crate::netstack::stack::packet::{self, Packet};
use crate::netstack::stack::settings::Number;
use crate::netstack::testing::*;
use crate::vfs::file::File;

const PORT: u16 = 1000;
/// What the peer's window is to begin with.
const WINDOW: u16 = 500;

/// Somebody at 10.0.0.1 who is connected to port 80.
struct Peer {
    stack: Arc<Stack>,
    mac: [u8; 6],
    wire: UnixDatagram,
    /// The sequence number of the first byte for it.
    start: u32,
}

impl Peer {
    /// Connects, and gives the socket on the other side; `prepare` does something to the stack before.
    fn connected(prepare: impl FnOnce(&Stack)) -> (Peer, Arc<dyn File>) {
        let (stack, mac, wire) = deaf();
        prepare(&stack);
        wire.set_read_timeout(Some(PATIENCE)).unwrap();
        let listening = listener(&stack, "10.0.0.2:80", 5);
        let mut peer = Peer { stack, mac, wire, start: 0 };
        peer.introduce();
        peer.tell(0, 0, SYN, WINDOW);
        let (answer, _) = peer.hear();
        assert!(answer.has(SYN));
        peer.start = answer.end();
        peer.say(0, WINDOW);
        (peer, accept(&listening))
    }

    /// Asks for the stack's link-layer address, by which the stack learns this one's.
    fn introduce(&self) {
        let mut question = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        question.extend_from_slice(&[2, 0, 0, 0, 0, 9, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        self.stack.inject(&mut question);
    }

    fn tell(&self, seq: u32, ack: u32, flags: u8, window: u16) {
        let mut bytes = vec![0; 20];
        bytes[..2].copy_from_slice(&PORT.to_be_bytes());
        bytes[2..4].copy_from_slice(&80u16.to_be_bytes());
        bytes[4..8].copy_from_slice(&seq.to_be_bytes());
        bytes[8..12].copy_from_slice(&ack.to_be_bytes());
        (bytes[12], bytes[13]) = (5 << 4, flags);
        bytes[14..16].copy_from_slice(&window.to_be_bytes());
        self.stack.inject(&mut frame(self.mac, packet::TCP, &bytes));
    }

    /// Says that it has `bytes` bytes and room for `window` more.
    fn say(&self, bytes: u32, window: u16) {
        self.tell(1, self.start.wrapping_add(bytes), ACK, window);
    }

    /// The next segment that comes, and its bytes.
    fn hear(&self) -> (Segment, Vec<u8>) {
        let mut buf = vec![0; 4096];
        loop {
            let len = self.wire.recv(&mut buf).expect("nothing comes");
            let Some(packet) = buf.get(vnet::LEN + ETHERNET_LEN..len).and_then(Packet::parse) else { continue };
            if let Some(segment) = Segment::parse(packet.payload) {
                return (segment, packet.payload[segment.header_len..].to_vec());
            }
        }
    }

    /// The next segment with bytes or an end: where it begins, and its bytes.
    fn next(&self) -> (u32, Vec<u8>, bool) {
        loop {
            let (segment, bytes) = self.hear();
            if !bytes.is_empty() || segment.has(FIN) {
                return (segment.seq.wrapping_sub(self.start), bytes, segment.has(FIN));
            }
        }
    }

    /// Takes bytes, the first of which is the one at `from`, until there are `len`.
    fn take(&self, from: usize, len: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while from + got.len() < len {
            let (at, bytes, _) = self.next();
            let known = (from + got.len()).checked_sub(at as usize).expect("nothing is left out");
            got.extend_from_slice(bytes.get(known..).unwrap_or_default());
            self.say((from + got.len()) as u32, 5000);
        }
        got
    }
}

/// The peer has taken `taken` bytes of `len` and has no room, what was under way is lost, and so is what it says later.
fn is_asked_again(len: usize, taken: usize) {
    let (peer, file) = Peer::connected(|_| ());
    let bytes = pattern(len);
    write_all(&file, &bytes).unwrap();
    assert_eq!(peer.next().1, bytes[..WINDOW.into()]);
    peer.say(taken as u32, 0);
    let mut last = Instant::now();
    let mut waits = Vec::new();
    for _ in 0..3 {
        let (at, probe, _) = peer.next();
        assert!(at as usize == taken && !probe.is_empty(), "{} bytes at {at}", probe.len());
        waits.push(last.elapsed().as_secs_f32());
        last = Instant::now();
        peer.say(taken as u32, 0);
    }
    assert!(waits[2] > waits[1] * 1.5, "{waits:?}");
    peer.say(taken as u32, 5000);
    assert_eq!(peer.take(taken, len), bytes[taken..]);
}

#[test]
fn a_closed_window_is_asked_about() {
    // Some bytes were never sent; some, or all of the window's, were sent but found no room.
    let cases = [(700, 500), (500, 480), (700, 480), (500, 0)];
    std::thread::scope(|scope| {
        for (len, taken) in cases {
            scope.spawn(move || is_asked_again(len, taken));
        }
    });
}

#[test]
fn what_found_no_room_is_sent_again() {
    let (peer, file) = Peer::connected(|_| ());
    let bytes = pattern(500);
    write_all(&file, &bytes).unwrap();
    peer.next();
    peer.say(480, 0);
    peer.say(480, 5000);
    assert_eq!(peer.take(480, 500), bytes[480..]);
}

#[test]
fn an_end_that_finds_no_room_is_told_again() {
    let (peer, file) = Peer::connected(|_| ());
    write_all(&file, &pattern(500)).unwrap();
    peer.next();
    peer.say(500, 0);
    file.sock().shutdown(libc::SHUT_WR).unwrap();
    assert_eq!(peer.next(), (500, vec![], true));
    // As Linux answers an end that comes when it has no room.
    for _ in 0..3 {
        peer.say(500, 0);
    }
    assert_eq!(peer.next(), (500, vec![], true));
    peer.say(501, 0);
}

#[test]
fn a_peer_without_room_may_say_so_for_ever() {
    // Data may stay unacknowledged for 600 ms; a peer that answers is not such a case, though it is asked less and less.
    let (peer, file) = Peer::connected(|stack| stack.settings().set(Number::Retries, 1).unwrap());
    write_all(&file, &pattern(700)).unwrap();
    peer.next();
    peer.say(500, 0);
    assert_eq!(peer.next().0, 500);
    peer.say(500, 0);
    assert_eq!(peer.next().0, 500, "two seconds later");
    assert_eq!(read(&file, 1), Err(Errno::ETIMEDOUT), "once it is silent");
}

/// A closed connection is given up 1.4 s after the peer last took something. It is first asked after a second.
fn soon_given_up(stack: &Stack) {
    stack.settings().set(Number::OrphanRetries, 2).unwrap();
}

#[test]
fn a_closed_connection_goes_on_while_the_peer_takes_something() {
    let (peer, file) = Peer::connected(soon_given_up);
    let bytes = pattern(3 * usize::from(WINDOW));
    write_all(&file, &bytes).unwrap();
    drop(file);
    let begun = Instant::now();
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        let end = got.len() + usize::from(WINDOW);
        while got.len() < end {
            let (at, more, _) = peer.next();
            let known = got.len().checked_sub(at as usize).expect("nothing is left out");
            got.extend_from_slice(more.get(known..).unwrap_or_default());
        }
        // It has no room until it is asked.
        peer.say(end as u32, 0);
        let (at, ..) = peer.next();
        assert_eq!(at as usize, end);
        peer.say(end as u32, WINDOW);
    }
    assert_eq!(got, bytes);
    assert!(begun.elapsed() > Duration::from_millis(1400), "{:?}", begun.elapsed());
}

#[test]
fn a_closed_connection_is_given_up_when_nothing_moves() {
    for answers in [false, true] {
        let (peer, file) = Peer::connected(soon_given_up);
        write_all(&file, &pattern(700)).unwrap();
        drop(file);
        peer.next();
        peer.say(500, 0);
        let begun = Instant::now();
        while peer.hear().0.flags & super::segment::RST == 0 {
            if answers {
                peer.say(500, 0);
            }
        }
        // Who answers is waited for a little longer, after the first question.
        let limit = if answers { 2200 } else { 1300 };
        assert!(begun.elapsed() > Duration::from_millis(limit), "{answers}: {:?}", begun.elapsed());
    }
}

#[test]
fn who_asked_for_it_is_told_of_a_closed_window() {
    let (peer, file) = Peer::connected(|_| ());
    set(&file, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 2500).unwrap();
    write_all(&file, &pattern(700)).unwrap();
    peer.next();
    peer.say(500, 0);
    let answering = std::thread::spawn(move || {
        while peer.hear().0.flags & super::segment::RST == 0 {
            peer.say(500, 0);
        }
    });
    assert_eq!(read(&file, 1), Err(Errno::ETIMEDOUT));
    answering.join().unwrap();
}
