//! Docker's name server, 127.0.0.11, as the sandbox sees it.
//!
//! On a user-defined network `dockerd` listens on that address inside the container's network namespace, of which the
//! sandbox sees the wires and no loopback. So the command line gives the sentry a UDP socket connected to it, and questions
//! that the sandbox sends there are passed on:
//!
//! ```text
//! a socket of the sandbox ── question ──> Relay: another identification ──> the socket ──> dockerd
//!                         <── answer ──── who asked this question?  <────── the "dns" thread
//! ```
//!
//! It is the one socket of the host's that the sentry has. What may come out of it is what the sandbox could ask `dockerd`
//! anyway: the socket is connected, so it reaches nobody else, and the sentry's filter lets it be connected to nothing new.
//! What comes in is given to the asker of the same question only. Identifications are random, so that a sandbox
//! cannot guess another's answers; questions are bounded in number and time.

mod stream;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use self::stream::destination;

use super::stack::iface::LOOPBACK;
use super::stack::{Stack, random_u64};
use super::udp;
use crate::errno::{Errno, Result};
use crate::io::{host_read, host_write};

/// Where it listens.
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const ADDRESS: IpAddr = IpAddr::V4(SERVER);
const PORT: u16 = 53;
/// How many questions are open at a time; the oldest gives way.
const MAX_OPEN: usize = 512;
/// How long an answer may take: a resolver asks again long before.
const PATIENCE: Duration = Duration::from_secs(30);
/// The header of a message: RFC 1035, 4.1.1.
const HEADER: usize = 12;

/// A question that was passed on.
struct Question {
    /// The asker's identification.
    id: [u8; 2],
    /// What is asked: the question section.
    text: Vec<u8>,
    asker: Asker,
    asked: Instant,
}

/// Who asks.
enum Asker {
    /// A UDP socket.
    Socket(SocketAddr),
    /// The thread that serves a TCP connection.
    Connection(SyncSender<Vec<u8>>),
}

#[derive(Default)]
struct Open {
    /// By the identification that it was passed on with.
    questions: HashMap<[u8; 2], Question>,
    /// In the order of asking; some of them are answered.
    order: VecDeque<([u8; 2], Instant)>,
}

/// Passes questions on and answers back.
pub struct Relay {
    stack: Weak<Stack>,
    server: OwnedFd,
    /// Where it listens for connections within the sandbox, once it does.
    port: OnceLock<u16>,
    /// Leaf lock.
    open: Mutex<Open>,
}

/// Whether a datagram to `remote` is a question for the relay.
pub fn is_server(remote: SocketAddr) -> bool {
    remote == SocketAddr::new(ADDRESS, PORT)
}

impl Relay {
    /// By way of `server`, a UDP socket connected to the name server, non-blocking. `EAGAIN` when there can be no thread.
    pub(super) fn start(stack: &Arc<Stack>, server: OwnedFd) -> Result<Arc<Relay>> {
        let relay =
            Arc::new(Relay { stack: Arc::downgrade(stack), server, port: OnceLock::new(), open: Mutex::default() });
        let thread = std::thread::Builder::new().name("dns".into()).stack_size(256 << 10);
        let listening = relay.clone();
        thread.spawn(move || listening.listen()).map_err(|_| Errno::EAGAIN)?;
        let _ = relay.port.set(stream::listen(stack, &relay)?); // it is new
        Ok(relay)
    }

    /// Passes on a question that a UDP socket of the sandbox asks.
    pub(super) fn datagram(&self, from: SocketAddr, message: Vec<u8>) {
        self.ask(Asker::Socket(from), message);
    }

    /// Passes a question on. What is no question is dropped, as a name server does.
    fn ask(&self, asker: Asker, mut message: Vec<u8>) {
        let Some(text) = question_of(&message).map(<[u8]>::to_vec) else { return };
        let (own, theirs) = {
            let mut open = self.open.lock();
            let id = [message[0], message[1]];
            let Some(own) = open.enter(Question { id, text, asker, asked: Instant::now() }) else { return };
            (own, id)
        };
        message[..2].copy_from_slice(&own);
        if let Err(error) = host_write(self.server.as_fd(), &message, None) {
            log::debug!("name server: question {theirs:?} not sent: {error}");
        }
    }

    /// Gives answers to those who asked, until the stack is gone.
    fn listen(&self) {
        let mut buffer = vec![0; 65_535];
        loop {
            let mut entry = libc::pollfd { fd: self.server.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, which lives through the call.
            unsafe { libc::poll(&raw mut entry, 1, -1) };
            let Some(stack) = self.stack.upgrade() else { return };
            match host_read(self.server.as_fd(), &mut buffer, None) {
                Ok(len) => self.answered(&stack, &buffer[..len]),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                // Nobody listened there when a question came: its asker asks again.
                Err(Errno::ECONNREFUSED) => log::debug!("name server: nobody listens"),
                Err(error) => return log::error!("name server: {error}"),
            }
        }
    }

    fn answered(&self, stack: &Stack, message: &[u8]) {
        let Some(text) = question_of(message) else { return };
        let question = {
            let mut open = self.open.lock();
            let id = [message[0], message[1]];
            let known = open.questions.get(&id);
            if known.is_none_or(|question| !question.text.eq_ignore_ascii_case(text)) {
                return;
            }
            open.questions.remove(&id)
        };
        let Some(question) = question.filter(|question| question.asked.elapsed() < PATIENCE) else { return };
        let mut bytes = message.to_vec();
        bytes[..2].copy_from_slice(&question.id);
        match question.asker {
            Asker::Socket(to) => {
                let from = SocketAddr::new(ADDRESS, PORT);
                let datagram = udp::Datagram { from, to: to.ip(), interface: LOOPBACK, ttl: 64, tos: 0, bytes };
                udp::deliver(stack, datagram, to.port());
            }
            // A thread that waits no longer has closed its connection.
            Asker::Connection(sender) => drop(sender.try_send(bytes)),
        }
    }
}

impl Open {
    /// Finds an identification that is free and makes room.
    fn enter(&mut self, question: Question) -> Option<[u8; 2]> {
        let now = question.asked;
        while let Some(&(id, asked)) = self.order.front()
            && (now.duration_since(asked) >= PATIENCE || self.order.len() >= MAX_OPEN)
        {
            self.order.pop_front();
            if self.questions.get(&id).is_some_and(|known| known.asked == asked) {
                self.questions.remove(&id);
            }
        }
        // At most 1 in 128 is taken.
        let mut ids = random_u64().to_ne_bytes().as_chunks::<2>().0.to_vec().into_iter();
        let id = ids.find(|id| !self.questions.contains_key(id))?;
        self.order.push_back((id, now));
        self.questions.insert(id, question);
        Some(id)
    }
}

/// The question section of a message with one question; `None` when it is no such message. RFC 1035, 4.1.2.
fn question_of(message: &[u8]) -> Option<&[u8]> {
    let header: &[u8; HEADER] = message.first_chunk()?;
    if header[4..6] != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            0 => break,
            len @ 1..=63 => at += 1 + len,
            _ => return None, // nothing to point back to yet
        }
    }
    message.get(HEADER..at + 5)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::netstack::testing::*;

    pub fn message(id: u16, name: &[u8], more: &[u8]) -> Vec<u8> {
        let mut message = id.to_be_bytes().to_vec();
        message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8]);
        message.extend(name);
        message.extend([0, 0, 1, 0, 1]);
        message.extend(more);
        message
    }

    #[test]
    fn a_question_is_found_in_any_bytes() {
        let whole = message(7, b"db", b"rest");
        assert_eq!(question_of(&whole), Some(&whole[12..20]));
        for len in 0..20 {
            assert_eq!(question_of(&whole[..len]), None);
        }
        assert_eq!(question_of(&[0xff; 64]), None);
    }

    /// A stack and the server that it relays to.
    fn relaying() -> (Arc<Stack>, UdpSocket) {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to_server = UdpSocket::bind("127.0.0.1:0").unwrap();
        to_server.connect(server.local_addr().unwrap()).unwrap();
        to_server.set_nonblocking(true).unwrap();
        let stack = lonely();
        stack.relay_dns(to_server.into()).unwrap();
        (stack, server)
    }

    #[test]
    fn askers_get_their_own_answers() {
        let (stack, server) = relaying();
        let one = udp(&stack);
        let two = udp(&stack);
        for (socket, name) in [(&one, b"one"), (&two, b"two")] {
            socket.sock().connect(&at("127.0.0.11:53")).unwrap();
            // Both with the same identification.
            socket.write(0, &mut &message(7, name, b"")[..]).unwrap();
        }
        let mut buf = [0; 512];
        let mut questions = Vec::new();
        for _ in 0..2 {
            let (len, from) = server.recv_from(&mut buf).unwrap();
            questions.push((buf[..len].to_vec(), from));
        }
        assert_ne!(questions[0].0[..2], questions[1].0[..2]);
        // An answer to another question, then the right ones in reverse.
        let (first, from) = &questions[0];
        let id = u16::from_be_bytes([first[0], first[1]]);
        server.send_to(&message(id, b"six", b"wrong"), from).unwrap();
        for (question, from) in questions.iter().rev() {
            server.send_to(&[question, &b"yes"[..]].concat(), from).unwrap();
        }
        assert_eq!(read(&one, 512).unwrap(), message(7, b"one", b"yes"));
        assert_eq!(read(&two, 512).unwrap(), message(7, b"two", b"yes"));
    }

    #[test]
    fn questions_are_bounded() {
        let mut open = Open::default();
        for n in 0..5000u16 {
            let asker = Asker::Socket(SocketAddr::new(ADDRESS, n));
            open.enter(Question { id: [0, 0], text: Vec::new(), asker, asked: Instant::now() });
        }
        assert!(open.questions.len() <= MAX_OPEN && open.order.len() <= MAX_OPEN);
    }

    #[test]
    fn long_answers_come_over_tcp() {
        let (stack, server) = relaying();
        let client = tcp(&stack);
        connect(&client, &at("127.0.0.11:53")).unwrap();
        assert_eq!(client.sock().peer_name().unwrap(), at("127.0.0.11:53"));
        let answerer = std::thread::spawn(move || {
            let mut buf = [0; 512];
            for _ in 0..2 {
                let (len, from) = server.recv_from(&mut buf).unwrap();
                assert_eq!(buf[len - 11..len - 6], [0, 0, 41, 0xfd, 0xe8], "it takes long answers");
                let record = [&[0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 0, 0x9c, 0x40][..], &vec![7; 40_000]].concat();
                let mut answer = message(u16::from_be_bytes([buf[0], buf[1]]), b"long", &record);
                answer[7] = 1;
                server.send_to(&answer, from).unwrap();
            }
        });
        for id in [7, 8] {
            let question = message(id, b"long", b"");
            write_all(&client, &(question.len() as u16).to_be_bytes()).unwrap();
            write_all(&client, &question).unwrap();
            let len = read_exact(&client, 2);
            let answer = read_exact(&client, u16::from_be_bytes([len[0], len[1]]).into());
            assert!(answer.len() > 40_000 && answer[..2] == id.to_be_bytes());
        }
        answerer.join().unwrap();
    }
}
