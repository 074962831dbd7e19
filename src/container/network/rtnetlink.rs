//! Asking the host's kernel about a network namespace: `rtnetlink(7)`, dumps and single requests, blocking.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// The kernel's dumps come in datagrams of at most 32 KiB.
const BUFFER: usize = 64 << 10;
/// How often a dump is asked for again that a change of the namespace has spoilt.
const TRIES: usize = 8;

/// A connection to the route family of the thread's network namespace.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Connects.
    pub fn open() -> io::Result<Netlink> {
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// All that there is of `kind` (`RTM_GET*`), each from its family header on; `body` begins with one.
    pub fn dump(&mut self, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..TRIES {
            self.send(kind, libc::NLM_F_DUMP as u16, body)?;
            if let Some(all) = self.collect()? {
                return Ok(all);
            }
        }
        Err(io::Error::other("it keeps changing"))
    }

    /// Makes a change.
    pub fn change(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, flags | libc::NLM_F_ACK as u16, body)?;
        self.collect().map(drop)
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// The messages up to the end of the answer; `None` when they do not fit together.
    fn collect(&mut self) -> io::Result<Option<Vec<Vec<u8>>>> {
        const INTERRUPTED: u16 = 0x10;
        let mut buffer = vec![0; BUFFER];
        let mut all = Vec::new();
        let mut whole = true;
        loop {
            let n = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..n];
            while rest.len() >= HEADER {
                let len = word(rest, 0) as usize;
                let (kind, flags) = (half(rest, 4), half(rest, 6));
                let body = rest.get(HEADER..len).ok_or(io::ErrorKind::InvalidData)?;
                let ours = word(rest, 8) == self.sequence;
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
                if !ours {
                    continue;
                }
                whole &= flags & INTERRUPTED == 0;
                match libc::c_int::from(kind) {
                    libc::NLMSG_DONE => return Ok(whole.then_some(all)),
                    libc::NLMSG_ERROR => match word(body, 0) as i32 {
                        0 => return Ok(whole.then_some(all)),
                        error => return Err(io::Error::from_raw_os_error(error.wrapping_neg())),
                    },
                    _ => all.push(body.to_vec()),
                }
            }
        }
    }
}

/// Appends an attribute.
pub fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend((4 + value.len() as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The number at an offset; 0 beyond the end.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// The short number at an offset; 0 beyond the end.
pub fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netstack::netlink::message::attributes;

    #[test]
    fn attributes_are_padded_and_bounded() {
        let mut bytes = Vec::new();
        put(&mut bytes, 3, b"eth0\0");
        put(&mut bytes, 0x8001, &[7]);
        assert_eq!(bytes.len(), 12 + 8);
        let all: Vec<_> = attributes(&bytes).collect();
        assert_eq!(all, [(3, &b"eth0\0"[..]), (1, &[7][..])]);
        for len in 0..bytes.len() {
            assert!(attributes(&bytes[..len]).count() <= 2);
        }
        assert_eq!(attributes(&[0; 16]).count(), 0, "an attribute of no length ends them");
    }
}
