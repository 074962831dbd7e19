//! Questions over TCP: RFC 7766. Each message has its length in front.
//!
//! The relay has one UDP socket, so these go the same way, and say that they take long answers (RFC 6891): on a loopback
//! device a datagram is as long as a TCP message. `dockerd` directs connections to 127.0.0.11:53 to a port of its own, and so
//! does the stack here: the container may itself listen on port 53.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::{Asker, PATIENCE, Relay, SERVER};
use crate::errno::{Errno, Result};
use crate::io::SliceSink;
use crate::netstack::SockAddr;
use crate::netstack::stack::{SocketCred, Stack};
use crate::vfs::file::File;
use crate::wait::{Events, Parker};

/// How many connections there are at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may say nothing: what `dockerd` gives it.
const IDLE: Duration = Duration::from_secs(8);
/// Host memory for the stack of a thread that serves a connection.
const STACK: usize = 256 << 10;

/// Listens within the sandbox; the port. `EAGAIN` when there can be no thread for it.
pub(super) fn listen(stack: &Arc<Stack>, relay: &Arc<Relay>) -> Result<u16> {
    let cred = SocketCred { net_bind: true, ..SocketCred::default() };
    let listener = stack.socket(libc::AF_INET, libc::SOCK_STREAM, 0, cred)?;
    let socket = listener.as_socket().ok_or(Errno::EOPNOTSUPP)?;
    socket.bind(&SockAddr::V4(SocketAddrV4::new(SERVER, 0)))?;
    socket.listen(MAX_CONNECTIONS as i32)?;
    let SockAddr::V4(own) = socket.local_name()? else { return Err(Errno::EAFNOSUPPORT) };
    let relay = relay.clone();
    let thread = std::thread::Builder::new().name("dns".into()).stack_size(STACK);
    thread.spawn(move || accept_all(&relay, &listener)).map_err(|_| Errno::EAGAIN)?;
    Ok(own.port())
}

fn accept_all(relay: &Arc<Relay>, listener: &Arc<dyn File>) {
    let count = Arc::new(AtomicUsize::new(0));
    let accept = || listener.as_socket().ok_or(Errno::EOPNOTSUPP)?.accept();
    while let Ok(connection) = block(listener, Events::IN, None, accept) {
        if count.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        count.fetch_add(1, Ordering::Relaxed);
        let (relay, served) = (relay.clone(), count.clone());
        let serve = move || {
            // An error is the end of the connection.
            let _ = serve(&relay, &connection);
            served.fetch_sub(1, Ordering::Relaxed);
        };
        if let Err(error) = std::thread::Builder::new().name("dns".into()).stack_size(STACK).spawn(serve) {
            count.fetch_sub(1, Ordering::Relaxed);
            log::warn!("no thread for a question over TCP: {error}");
        }
    }
}

fn serve(relay: &Relay, connection: &Arc<dyn File>) -> Result<()> {
    loop {
        let mut len = [0; 2];
        read_exact(connection, &mut len)?;
        let mut message = vec![0; u16::from_be_bytes(len).into()];
        read_exact(connection, &mut message)?;
        let widened = widen(&mut message);
        let (sender, receiver) = mpsc::sync_channel(1);
        relay.ask(Asker::Connection(sender), message);
        let mut answer = receiver.recv_timeout(PATIENCE).map_err(|_| Errno::ETIMEDOUT)?;
        if widened {
            strip(&mut answer);
        }
        let len = u16::try_from(answer.len()).map_err(|_| Errno::EMSGSIZE)?;
        let whole = [&len.to_be_bytes()[..], &answer].concat();
        let mut rest = &whole[..];
        while !rest.is_empty() {
            let n = block(connection, Events::OUT, Some(IDLE), || connection.write(0, &mut { rest }))?;
            rest = &rest[n..];
        }
    }
}

/// Fills `buf`. `ECONNRESET` when the peer ends before that.
fn read_exact(connection: &Arc<dyn File>, buf: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < buf.len() {
        let rest = &mut buf[filled..];
        let n = block(connection, Events::IN, Some(IDLE), || connection.read(0, &mut SliceSink::new(rest)))?;
        if n == 0 {
            return Err(Errno::ECONNRESET);
        }
        filled += n;
    }
    Ok(())
}

/// Does `work` again while it would block. `ETIMEDOUT` after `patience`.
fn block<T>(
    file: &Arc<dyn File>,
    events: Events,
    patience: Option<Duration>,
    mut work: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = patience.map(|patience| Instant::now() + patience);
    let queue = file.wait_queue().ok_or(Errno::EOPNOTSUPP)?;
    let parker = Arc::new(Parker::new());
    let key = queue.add(parker.clone(), events, false);
    let result = loop {
        match work() {
            Err(Errno::EAGAIN) => {}
            result => break result,
        }
        if !parker.park(deadline) {
            break Err(Errno::ETIMEDOUT);
        }
    };
    queue.remove(key);
    result
}

/// `OPT` of RFC 6891, with the longest answer in place of a class.
const OPT: u16 = 41;
const LONGEST: u16 = 65_000;
const OPT_RECORD: [u8; 11] = [0, 0, OPT as u8, (LONGEST >> 8) as u8, LONGEST as u8, 0, 0, 0, 0, 0, 0];

/// Makes a question say that it takes long answers. Whether it did not say anything of that before.
fn widen(message: &mut Vec<u8>) -> bool {
    let Some(end) = super::question_of(message).map(|text| super::HEADER + text.len()) else { return false };
    let [answers, authorities, additional] = [6, 8, 10].map(|at| u16::from_be_bytes([message[at], message[at + 1]]));
    if answers > 0 || authorities > 0 {
        return false;
    }
    let mut at = end;
    for _ in 0..additional {
        let Some((kind, next)) = record(message, at) else { return false };
        if kind == OPT && message[at] == 0 {
            message[at + 3..at + 5].copy_from_slice(&LONGEST.to_be_bytes());
            return false;
        }
        at = next;
    }
    message.truncate(at);
    message.extend(OPT_RECORD);
    message[10..12].copy_from_slice(&(additional.saturating_add(1)).to_be_bytes());
    true
}

/// Takes away an `OPT` record at the end, for an asker that does not know of it.
fn strip(message: &mut Vec<u8>) {
    let Some(end) = super::question_of(message).map(|text| super::HEADER + text.len()) else { return };
    let counts = [6, 8, 10].map(|at| usize::from(u16::from_be_bytes([message[at], message[at + 1]])));
    let mut at = end;
    for nth in 1..=counts.iter().sum() {
        let Some((kind, next)) = record(message, at) else { return };
        if kind == OPT && next == message.len() && nth > counts[0] + counts[1] {
            message.truncate(at);
            message[10..12].copy_from_slice(&((counts[2] - 1) as u16).to_be_bytes());
            return;
        }
        at = next;
    }
}

/// The type of the record at `at`, and where it ends. RFC 1035, 4.1.3.
fn record(message: &[u8], mut at: usize) -> Option<(u16, usize)> {
    loop {
        match usize::from(*message.get(at)?) {
            0 => break at += 1,
            len @ 1..=63 => at += 1 + len,
            0xc0.. => break at += 2,
            _ => return None,
        }
    }
    let fixed: &[u8; 10] = message.get(at..)?.first_chunk()?;
    let len = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let end = at + 10 + len;
    (end <= message.len()).then_some((u16::from_be_bytes([fixed[0], fixed[1]]), end))
}

/// Where a connection within the sandbox really goes.
pub fn destination(stack: &Stack, remote: SocketAddr) -> SocketAddr {
    match stack.dns.get() {
        Some(relay) if super::is_server(remote) => match relay.port.get() {
            Some(port) => SocketAddr::new(IpAddr::V4(SERVER), *port),
            None => remote,
        },
        _ => remote,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::message;
    use super::*;

    #[test]
    fn a_question_takes_long_answers_and_the_answer_does_not_tell() {
        let plain = message(7, b"db", b"");
        let mut question = plain.clone();
        assert!(widen(&mut question));
        assert_eq!(question[10..12], [0, 1]);
        assert!(question.ends_with(&OPT_RECORD));
        assert!(!widen(&mut question), "it does already");
        strip(&mut question);
        assert_eq!(question, plain);
        let mut with_answer = message(7, b"db", &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 1]);
        with_answer[7] = 1;
        let before = with_answer.clone();
        with_answer.extend(OPT_RECORD);
        with_answer[11] = 1;
        for len in 0..with_answer.len() {
            strip(&mut with_answer[..len].to_vec());
            widen(&mut with_answer[..len].to_vec());
        }
        strip(&mut with_answer);
        assert_eq!(with_answer, before);
    }
}
