//! One side of a connection: what was sent to a socket and not received yet, and what its peers must reach.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::rights::Rights;
use super::{Cred, Kind, UnixSocket};
use crate::errno::Errno;
use crate::wait::{Events, WaitQueue};

/// Datagrams that one receiver queues for senders that it is not connected to: `/proc/sys/net/unix/max_dgram_qlen`. As on
/// Linux one more than this goes in.
pub(super) const MAX_DGRAM_QLEN: usize = 10;

/// What wakes everybody.
pub(super) const ALL: Events = Events::READ.union(WRITE).union(Events::ALWAYS).union(Events::RDHUP);

/// What UNIX sockets report when they are writable.
pub(super) const WRITE: Events = Events::WRITE.union(Events::WRBAND);

/// A message, or a piece of a stream.
pub(super) struct Message {
    pub data: Vec<u8>,
    /// Bytes before it have been received.
    pub start: usize,
    /// What it counts against the sender's buffer.
    pub charge: usize,
    pub sender: Arc<Side>,
    pub cred: Cred,
    pub rights: Option<Rights>,
}

impl Message {
    /// The bytes not received yet.
    pub fn rest(&self) -> &[u8] {
        &self.data[self.start..]
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.sender.uncharge(self.charge);
    }
}

/// What a socket is, beyond its type.
#[derive(Default)]
pub(super) enum Phase {
    /// Not connected and not listening.
    #[default]
    Idle,
    /// In `connect`.
    Connecting,
    /// After `listen`.
    Listening { backlog: usize, pending: VecDeque<Arc<UnixSocket>> },
    /// Has a peer: for a datagram socket, where it sends to.
    Connected(Arc<Side>),
}

/// What a side's lock guards.
#[derive(Default)]
pub(super) struct State {
    pub phase: Phase,
    pub messages: VecDeque<Message>,
    /// Unread bytes of all messages.
    pub bytes: usize,
    /// Nothing more is received: our `SHUT_RD`, or the peer's `SHUT_WR`.
    pub no_receive: bool,
    /// Nothing more is sent: our `SHUT_WR`, or the peer's `SHUT_RD`.
    pub no_send: bool,
    /// The socket's last descriptor is closed.
    pub closed: bool,
    /// `SO_ERROR`.
    pub error: Option<Errno>,
    /// Those who found this one's queue full.
    pub blocked: Vec<Weak<Side>>,
    /// Who connected or listened: `SO_PEERCRED`.
    pub peer_cred: Option<Cred>,
}

/// What a socket shares with its peers. It outlives the socket as long as a peer refers to it.
pub(super) struct Side {
    pub kind: Kind,
    pub state: Mutex<State>,
    /// Bytes sent and not received, with Linux's overhead.
    pub sent: AtomicUsize,
    pub send_buf: AtomicUsize,
    pub queue: WaitQueue,
    /// The bound address; empty bytes never.
    pub name: OnceLock<Arc<[u8]>>,
}

impl Side {
    /// One of a socket that is made. `send_buf` is `SO_SNDBUF`.
    pub fn new(kind: Kind, send_buf: usize) -> Arc<Side> {
        Arc::new(Side {
            kind,
            state: Mutex::default(),
            sent: AtomicUsize::new(0),
            send_buf: AtomicUsize::new(send_buf),
            queue: WaitQueue::new(),
            name: OnceLock::new(),
        })
    }

    /// The peer, if connected.
    pub fn peer(&self) -> Option<Arc<Side>> {
        match &self.state.lock().phase {
            Phase::Connected(peer) => Some(peer.clone()),
            _ => None,
        }
    }

    /// Whether `other` is what it is connected to.
    pub fn is_connected_to(&self, other: &Arc<Side>) -> bool {
        matches!(&self.state.lock().phase, Phase::Connected(peer) if Arc::ptr_eq(peer, other))
    }

    /// Whether another message may be sent: the rule of `sock_alloc_send_skb`, which looks at what is there before.
    pub fn may_send(&self) -> bool {
        self.sent.load(Ordering::Relaxed) < self.send_buf.load(Ordering::Relaxed)
    }

    /// What `poll` calls writable: at most a quarter of the buffer in use.
    pub fn is_writable(&self) -> bool {
        self.sent.load(Ordering::Relaxed) * 4 <= self.send_buf.load(Ordering::Relaxed)
    }

    fn uncharge(&self, charge: usize) {
        self.sent.fetch_sub(charge, Ordering::Relaxed);
        if self.is_writable() {
            self.queue.wake(WRITE);
        }
    }

    /// `SO_ERROR`, which it clears.
    pub fn take_error(&self) -> Option<Errno> {
        self.state.lock().error.take()
    }
}

impl State {
    /// Whether a sender that is not the receiver's own peer finds the queue full.
    pub fn is_full(&self) -> bool {
        self.messages.len() > MAX_DGRAM_QLEN
    }

    /// Notes that `side` found the queue full.
    pub fn block(&mut self, side: &Arc<Side>) {
        let side = Arc::downgrade(side);
        if !self.blocked.iter().any(|known| known.ptr_eq(&side)) {
            self.blocked.push(side);
        }
    }

    /// Those who found the queue full: to be woken, after it has become shorter.
    pub fn unblock(&mut self) -> Vec<Arc<Side>> {
        std::mem::take(&mut self.blocked).iter().filter_map(Weak::upgrade).collect()
    }
}

/// The size classes of the kernel's allocator that matter here, its header for data and its descriptor of a buffer.
const SHARED_INFO: usize = 320;
const DESCRIPTOR: usize = 256;
const PAGE: usize = 4096;
/// What fits into one page beside the header.
const LINEAR_MAX: usize = PAGE - SHARED_INFO;
/// The most bytes of one stream piece: a page of linear data and eight more.
pub(super) const PIECE_MAX: usize = LINEAR_MAX + 8 * PAGE;

/// How much Linux counts for a message of `len` bytes. Programs see it in `SIOCOUTQ`, and in how much they can send
/// before `EAGAIN`.
pub(super) fn charge(len: usize) -> usize {
    let in_pages = if len > LINEAR_MAX { (len - LINEAR_MAX).next_multiple_of(PAGE).min(len) } else { 0 };
    let linear = len - in_pages;
    DESCRIPTOR + (linear + SHARED_INFO).next_power_of_two().max(512) + in_pages.next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    /// What Linux 6.18 shows in `SIOCOUTQ` after one write.
    #[test]
    fn charges_are_those_of_linux() {
        assert_eq!(super::charge(1), 768);
        assert_eq!(super::charge(100), 768);
        assert_eq!(super::charge(4096), 4864);
        assert_eq!(super::charge(super::PIECE_MAX), 37_120);
    }
}
