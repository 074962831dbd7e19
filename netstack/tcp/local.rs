//! Connections within this host: two rings, no packets. What a program can see is TCP's.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use smoltcp::storage::RingBuffer;

use super::conn::{ALL, Tuple};
use super::listen::Listener;
use super::memory::{Lent, MEMORY};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::netstack::stack::Stack;
use crate::netstack::stack::counters::{Local, Tcp as Counter};
use crate::wait::{Events, WaitQueue};

/// A TCP header, when it comes to counting.
const HEADER: usize = 20;
/// How much one direction holds.
const RING: usize = 512 << 10;
/// How much of that the receiver has, when it is asked what has arrived there; the rest is with the sender still.
const RECEIVED: usize = RING / 2;

/// Bytes on their way. The memory is there from the first byte on.
struct Ring {
    bytes: RingBuffer<'static, u8>,
    /// After the ring, which is dropped first.
    _memory: Lent,
}

impl Ring {
    fn new() -> Result<Ring> {
        let mut memory = MEMORY.lend(RING)?;
        // SAFETY: once, and the ring is dropped before the memory, being before it in the struct.
        let bytes = RingBuffer::new(unsafe { memory.bytes() });
        Ok(Ring { bytes, _memory: memory })
    }
}

/// One end's half of the state.
#[derive(Default)]
struct Half {
    /// What it has to read.
    incoming: Option<Ring>,
    /// Nothing more comes: the peer's `SHUT_WR` or close.
    ended: bool,
    /// `SHUT_RD`.
    shut_read: bool,
    /// `SHUT_WR`.
    shut_write: bool,
    /// Its descriptor is gone.
    closed: bool,
    /// A reset came.
    reset: bool,
    error: Option<Errno>,
    queue: Arc<WaitQueue>,
    /// How much it may have under way.
    limit: usize,
    /// Bytes received and sent.
    bytes: (u64, u64),
    /// Whether it counts no longer among the connections that there are: `CurrEstab`.
    left: bool,
    /// The listener that offers it once something has come: `TCP_DEFER_ACCEPT`.
    deferred: Option<Weak<Listener>>,
}

impl Half {
    fn unread(&self) -> usize {
        self.incoming.as_ref().map_or(0, |ring| ring.bytes.len())
    }

    /// Bytes for it that are with the sender still.
    fn not_arrived(&self) -> usize {
        if self.closed || self.reset { 0 } else { self.unread().saturating_sub(RECEIVED) }
    }

    /// The listener that can offer it now.
    fn no_longer_deferred(&mut self) -> Option<Arc<Listener>> {
        if self.unread() == 0 && !self.ended && !self.reset {
            return None;
        }
        self.deferred.take().and_then(|listener| listener.upgrade())
    }

    fn done_reading(&self) -> bool {
        self.ended || self.shut_read || self.reset
    }

    fn done_writing(&self) -> bool {
        self.shut_write || self.reset
    }

    /// Counts that it is no longer established, when that is new.
    fn count(&mut self, stack: &Weak<Stack>) {
        if self.left || !(self.reset || self.shut_write) {
            return;
        }
        self.left = true;
        if let Some(stack) = stack.upgrade() {
            stack.counters().less(Counter::CurrEstab);
            if self.reset {
                stack.counters().count(Counter::EstabResets);
            }
        }
    }

    fn fail(&mut self, error: Errno) {
        if !self.reset {
            (self.reset, self.error) = (true, Some(error));
        }
    }
}

/// What both ends share.
struct Link(Mutex<[Half; 2]>);

/// One end.
pub struct LocalEnd {
    link: Arc<Link>,
    side: usize,
    /// Both ends' addresses, as this one sees them.
    pub tuple: Tuple,
    /// Who waits for it.
    pub queue: Arc<WaitQueue>,
    stack: Weak<Stack>,
}

impl LocalEnd {
    /// Two connected ends: the one that connects, with `queue`, and the one to be accepted.
    pub fn pair(stack: &Stack, tuple: Tuple, queue: Arc<WaitQueue>, limit: usize) -> (LocalEnd, LocalEnd) {
        let other_queue: Arc<WaitQueue> = Arc::default();
        let half = |queue: &Arc<WaitQueue>| Half { queue: queue.clone(), limit: limit.min(RING), ..Half::default() };
        let link = Arc::new(Link(Mutex::new([half(&queue), half(&other_queue)])));
        let reverse = Tuple { local: tuple.remote, remote: tuple.local };
        stack.counters().add(Counter::CurrEstab, 2);
        let end = |side, tuple, queue| LocalEnd { link: link.clone(), side, tuple, queue, stack: stack.me.clone() };
        (end(0, tuple, queue), end(1, reverse, other_queue))
    }

    /// Runs `work` on this end and the other, and wakes the other for what it returns.
    fn with<R>(&self, work: impl FnOnce(&mut Half, &mut Half) -> (R, Events)) -> R {
        let mut halves = self.link.0.lock();
        let [one, two] = &mut *halves;
        let (mine, theirs) = if self.side == 0 { (one, two) } else { (two, one) };
        let (result, events) = work(mine, theirs);
        mine.count(&self.stack);
        theirs.count(&self.stack);
        // Woken without the lock: who is woken may run at once in the place of the calling thread, and would wait for that.
        let waiting = (!events.is_empty() && !theirs.queue.is_empty()).then(|| theirs.queue.clone());
        let listener = theirs.no_longer_deferred();
        drop(halves);
        waiting.inspect(|queue| queue.wake(events));
        if let Some(listener) = listener {
            listener.came(|end| Arc::ptr_eq(&end.link, &self.link));
        }
        result
    }

    /// Has `listener` offer it only when something has come.
    pub fn defer(&self, listener: Weak<Listener>) {
        self.with(|mine, _| (mine.deferred = Some(listener), Events::empty()));
    }

    /// Whether a reset came.
    pub fn is_reset(&self) -> bool {
        self.with(|mine, _| (mine.reset, Events::empty()))
    }

    /// Sends no more, for one who then waits until the peer has everything ([`LocalEnd::has_arrived`]). Not when bytes are
    /// unread, which is for [`LocalEnd::close`] to tell the peer.
    pub fn begin_end(&self) -> bool {
        let begun = self.with(|mine, _| (mine.unread() == 0 && !mine.reset, Events::empty()));
        if begun {
            self.shutdown(false, true);
        }
        begun
    }

    /// Whether the peer has everything, or never will.
    pub fn has_arrived(&self) -> bool {
        self.with(|_, theirs| (theirs.not_arrived() == 0, Events::empty()))
    }

    /// Takes what fits from `source`. `EAGAIN`, `EPIPE`.
    pub fn send(&self, source: &mut dyn Source) -> Result<usize> {
        let sent = self.with(|mine, theirs| match mine.send(theirs, source) {
            Ok((n, events)) => (Ok(n), events),
            Err(error) => (Err(error), Events::empty()),
        });
        if let (Ok(1..), Some(stack)) = (&sent, self.stack.upgrade()) {
            let v6 = self.tuple.remote.is_ipv6();
            stack.count_local(v6, sent.unwrap_or(0) + HEADER);
            stack.counters().count(Local::Segments.of(v6));
        }
        sent
    }

    /// Gives what was received. 0 at the end; `EAGAIN`, `ECONNRESET`.
    pub fn receive_into(&self, sink: &mut dyn Sink, peek: bool) -> Result<usize> {
        self.with(|mine, theirs| {
            let (before, missing) = (mine.unread(), mine.not_arrived());
            let result = mine.receive(sink, peek);
            let limit = theirs.limit;
            // Worth telling only when the room becomes what counts as writable.
            let room = |unread: usize| limit.saturating_sub(unread) * 2 >= unread && unread < limit;
            let wake = !room(before) && room(mine.unread());
            let mut events = if wake { Events::WRITE } else { Events::empty() };
            // Whoever lingers waits for that.
            events.set(Events::HUP, theirs.shut_write && missing > 0 && mine.not_arrived() == 0);
            (result, events)
        })
    }

    /// `shutdown(2)`.
    pub fn shutdown(&self, read: bool, write: bool) {
        self.with(|mine, theirs| {
            mine.shut_read |= read;
            if !write || mine.shut_write {
                return ((), Events::empty());
            }
            mine.shut_write = true;
            theirs.ended = true;
            ((), ALL)
        });
        self.queue.wake(ALL);
    }

    /// The last descriptor is closed. With `reset`, or with unread bytes, the peer's connection is reset.
    pub fn close(&self, reset: bool) {
        self.with(|mine, theirs| {
            let unread = mine.unread() > 0;
            (mine.closed, mine.shut_write, mine.incoming) = (true, true, None);
            if (reset || unread) && !mine.reset && !theirs.closed {
                mine.reset = true;
                theirs.fail(Errno::ECONNRESET);
            }
            theirs.ended = true;
            ((), ALL)
        });
        if let Some(stack) = self.stack.upgrade() {
            stack.tcp.forget_local(&self.tuple);
        }
    }

    /// What it is ready for, when fewer than `low_water` bytes (or half of what fits) are nothing to read.
    pub fn poll(&self, low_water: usize) -> Events {
        self.with(|mine, theirs| {
            let mut events = Events::empty();
            let (no_read, no_write) = (mine.done_reading(), mine.done_writing());
            if no_read || mine.unread() >= low_water.clamp(1, RING / 2) {
                events |= Events::READ;
            }
            let unread = theirs.unread();
            if no_write || (mine.limit.saturating_sub(unread) * 2 >= unread && unread < mine.limit) {
                events |= Events::WRITE;
            }
            events.set(Events::ERR, mine.error.is_some());
            events.set(Events::RDHUP, no_read);
            events.set(Events::HUP, no_read && no_write);
            (events, Events::empty())
        })
    }

    /// `SO_ERROR`, which it clears.
    pub fn take_error(&self) -> Option<Errno> {
        self.with(|mine, _| (mine.error.take(), Events::empty()))
    }

    /// Changes how much may be under way: `SO_SNDBUF`.
    pub fn set_limit(&self, limit: usize) {
        self.with(|mine, _| (mine.limit = limit.clamp(1, RING), Events::empty()));
    }

    /// Bytes to be read, and bytes that the peer has not got yet.
    pub fn queued(&self) -> (usize, usize) {
        self.with(|mine, theirs| ((mine.unread(), theirs.not_arrived()), Events::empty()))
    }

    /// Bytes received and sent.
    pub fn bytes(&self) -> (u64, u64) {
        self.with(|mine, _| (mine.bytes, Events::empty()))
    }

    /// Whether both directions have ended, or a reset came: nothing is left of the connection but what is unread.
    pub fn is_over(&self) -> bool {
        self.with(|mine, _| (mine.reset || (mine.ended && mine.shut_write), Events::empty()))
    }

    /// The state that `TCP_INFO` and `/proc/net/tcp` show: `TCP_ESTABLISHED` and others.
    pub fn tcp_state(&self) -> u8 {
        self.with(|mine, _| {
            let state = match (mine.reset, mine.ended, mine.shut_write) {
                (true, ..) => 7,
                (_, false, false) => 1,
                (_, true, false) => 8,
                (_, false, true) => 5,
                (_, true, true) => 7,
            };
            (state, Events::empty())
        })
    }
}

impl Half {
    fn send(&mut self, peer: &mut Half, source: &mut dyn Source) -> Result<(usize, Events)> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.done_writing() {
            return Err(Errno::EPIPE);
        }
        if peer.closed {
            // On a network the first segment to a closed socket is sent, and its answer is a reset.
            self.fail(Errno::EPIPE);
            let n = source.take_vec(RING)?.len();
            self.queue.wake(ALL);
            return Ok((n, Events::empty()));
        }
        let mut room = self.limit.saturating_sub(peer.unread());
        if source.left() == 0 {
            return Ok((0, Events::empty()));
        }
        if room == 0 {
            return Err(Errno::EAGAIN);
        }
        if peer.incoming.is_none() {
            peer.incoming = Some(Ring::new()?);
        }
        let Some(ring) = &mut peer.incoming else { return Err(Errno::ENOBUFS) };
        let (mut done, mut failed) = (0, None);
        while room > 0 && source.left() > 0 && failed.is_none() {
            let (n, ()) = ring.bytes.enqueue_many_with(|free| {
                let len = free.len().min(room);
                match source.take(&mut free[..len]) {
                    Ok(n) => (n, ()),
                    Err(error) => {
                        failed = Some(error);
                        (0, ())
                    }
                }
            });
            if n == 0 {
                break;
            }
            done += n;
            room -= n;
        }
        match (done, failed) {
            (0, Some(error)) => Err(error),
            (0, None) => Err(Errno::EAGAIN),
            _ => {
                self.bytes.1 += done as u64;
                peer.bytes.0 += done as u64;
                Ok((done, Events::READ))
            }
        }
    }

    fn receive(&mut self, sink: &mut dyn Sink, peek: bool) -> Result<usize> {
        if self.unread() == 0 {
            if let Some(error) = self.error.take() {
                return Err(error);
            }
            return if self.done_reading() { Ok(0) } else { Err(Errno::EAGAIN) };
        }
        let Some(ring) = &mut self.incoming else { return Err(Errno::EAGAIN) };
        if peek {
            let first = ring.bytes.get_allocated(0, sink.room());
            let second = ring.bytes.get_allocated(first.len(), sink.room() - first.len());
            return sink.put_slices(&[first, second]);
        }
        let (mut done, mut failed) = (0, None);
        while sink.room() > 0 && failed.is_none() {
            let (n, ()) = ring.bytes.dequeue_many_with(|bytes| match sink.put(bytes) {
                Ok(n) => (n, ()),
                Err(error) => {
                    failed = Some(error);
                    (0, ())
                }
            });
            if n == 0 {
                break;
            }
            done += n;
        }
        match (done, failed) {
            (0, Some(error)) => Err(error),
            _ => Ok(done),
        }
    }
}
