//! The sentry's end of a connection to the gofer.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::gofer::codec::{Get, Malformed};
use crate::gofer::protocol::{MAX_FORGET, Request, VERSION};
use crate::gofer::wire::{self, MAX_MESSAGE};

/// A connection, and the nodes that it still has to give back. Lock order: `channel`, `forgotten`.
pub struct Connection {
    /// Held from a request to its reply.
    channel: Mutex<Channel>,
    /// Sent before the next request, or when there are many.
    forgotten: Mutex<Vec<u32>>,
    /// Set when the gofer is gone or has sent nonsense: what would come next answers nothing that was asked.
    broken: AtomicBool,
    /// Whether nodes are given back at once.
    prompt: bool,
    round_trips: AtomicU64,
}

struct Channel {
    socket: OwnedFd,
    buf: Vec<u8>,
}

/// What the gofer answered.
pub struct Reply {
    /// The fields.
    pub body: Vec<u8>,
    /// A descriptor, with the answers that open something.
    pub fd: Option<OwnedFd>,
}

impl Reply {
    /// Takes the fields apart. `EIO` when they are not what they should be.
    pub fn parse<T>(&self, get: impl FnOnce(&mut Get<'_>) -> std::result::Result<T, Malformed>) -> Result<T> {
        let mut fields = Get::new(&self.body);
        get(&mut fields).and_then(|value| fields.end().map(|()| value)).map_err(|Malformed| {
            log::error!("a reply of the gofer does not follow the protocol");
            Errno::EIO
        })
    }
}

impl Connection {
    /// Over a `SOCK_SEQPACKET` socket.
    pub fn new(socket: OwnedFd) -> Connection {
        Connection::with(socket, false)
    }

    /// One that gives nodes back at once, not with the next request.
    pub fn prompt(socket: OwnedFd) -> Connection {
        Connection::with(socket, true)
    }

    fn with(socket: OwnedFd, prompt: bool) -> Connection {
        Connection {
            prompt,
            channel: Mutex::new(Channel { socket, buf: vec![0; MAX_MESSAGE] }),
            forgotten: Mutex::default(),
            broken: AtomicBool::new(false),
            round_trips: AtomicU64::new(0),
        }
    }

    /// How many requests have been answered.
    pub fn round_trips(&self) -> u64 {
        self.round_trips.load(Ordering::Relaxed)
    }

    /// One round trip. The gofer's errno, or `EIO` when there is no gofer.
    pub fn call(&self, request: &Request<'_>) -> Result<Reply> {
        let reply = self.ask(request);
        if self.prompt {
            self.give_back();
        }
        reply
    }

    fn ask(&self, request: &Request<'_>) -> Result<Reply> {
        let message = request.encode();
        let mut channel = self.channel.lock();
        self.send_forgotten(&channel)?;
        self.send(&channel, &message)?;
        let Channel { socket, buf } = &mut *channel;
        let received = wire::receive(socket.as_fd(), buf, true).map_err(|error| self.broke(&error))?;
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        let (n, fd) = received;
        let mut reply = Get::new(buf.get(..n).unwrap_or_default());
        let header = (reply.u8(), reply.u8(), reply.u32());
        match header {
            (Ok(VERSION), Ok(op), Ok(0)) if op == request.op() as u8 => {
                Ok(Reply { body: buf.get(6..n).unwrap_or_default().to_vec(), fd })
            }
            (Ok(VERSION), Ok(op), Ok(errno)) if op == request.op() as u8 => Err(Errno::from_raw(errno as i32)),
            _ => Err(self.broke(&"no answer")),
        }
    }

    /// Gives a node back, with the next request.
    pub fn forget(&self, node: u32) {
        let waiting = {
            let mut forgotten = self.forgotten.lock();
            forgotten.push(node);
            forgotten.len()
        };
        if self.prompt {
            self.give_back();
        } else if waiting >= MAX_FORGET / 16
            && let Some(channel) = self.channel.try_lock()
        {
            // A gofer that is gone needs no telling.
            let _ = self.send_forgotten(&channel);
        }
    }

    /// Gives back what waits for it, now. Whoever has the channel does so when it has it no more, as everybody does who calls
    /// this: so that nothing stays.
    fn give_back(&self) {
        while !self.forgotten.lock().is_empty() {
            let Some(channel) = self.channel.try_lock() else { return };
            if self.send_forgotten(&channel).is_err() {
                return;
            }
        }
    }

    fn send_forgotten(&self, channel: &Channel) -> Result<()> {
        let nodes = std::mem::take(&mut *self.forgotten.lock());
        nodes.chunks(MAX_FORGET).try_for_each(|some| self.send(channel, &Request::Forget(some.to_vec()).encode()))
    }

    fn send(&self, channel: &Channel, message: &[u8]) -> Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(Errno::EIO);
        }
        match wire::send(channel.socket.as_fd(), message, None) {
            // Longer than the socket takes; nothing was sent.
            Err(Errno::EMSGSIZE) => Err(Errno::E2BIG),
            sent => sent.map_err(|error| self.broke(&error)),
        }
    }

    fn broke(&self, why: &dyn std::fmt::Display) -> Errno {
        if !self.broken.swap(true, Ordering::Relaxed) {
            log::error!("the connection to the gofer has ended: {why}");
        }
        Errno::EIO
    }
}
