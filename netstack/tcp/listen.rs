//! Listeners: the queue of connections that wait to be accepted, those still in their handshake, and those of this host
//! that `TCP_DEFER_ACCEPT` keeps back until their peer has said something or the time for that is over.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::TcpSocket;
use super::conn::{Conn, DEFAULT_MSS, Tuple};
use super::cookie;
use super::local::LocalEnd;
use super::options::TcpOptions;
use super::segment::{Segment, mss_option};
use crate::errno::{Errno, Result};
use crate::netstack::stack::Stack;
use crate::netstack::stack::counters::Ext;
use crate::netstack::stack::packet::Packet;
use crate::netstack::stack::ports::Binding;
use crate::netstack::stack::settings::Number;
use crate::timer::clock::monotonic;
use crate::timer::{TimerId, TimerTarget};
use crate::wait::{Events, WaitQueue};

/// The most, `/proc/sys/net/ipv4/tcp_max_syn_backlog`.
const MAX_HANDSHAKES: usize = 4096;
/// The fewest handshakes at a time, whatever the backlog.
const MIN_HANDSHAKES: usize = 8;

/// `tcp_syncookies`: cookies also where there is room.
const ALWAYS: u32 = 2;

/// A connection to be accepted.
pub enum Ready {
    /// From the network.
    Wire(Arc<Conn>),
    /// From this host.
    Local(LocalEnd),
}

#[derive(Default)]
struct State {
    backlog: usize,
    handshakes: usize,
    ready: VecDeque<Ready>,
    /// Sockets of this host that found it full.
    waiting: VecDeque<Weak<TcpSocket>>,
    /// Connections of this host that are kept back, in the order they came.
    deferred: Vec<Deferred>,
    /// When a SYN was last answered by a cookie.
    cookie: Option<Instant>,
    closed: bool,
}

/// A connection that is kept back.
struct Deferred {
    end: LocalEnd,
    /// When it is offered even so.
    timer: TimerId,
    /// It is to be offered, and the queue was full.
    due: bool,
}

impl State {
    /// No more connections may wait. As on Linux there is room for one more than the backlog.
    fn is_full(&self) -> bool {
        self.ready.len() > self.backlog
    }

    /// Connections that are not ready to be accepted are so many at most.
    fn most_handshakes(&self) -> usize {
        self.backlog.clamp(MIN_HANDSHAKES, MAX_HANDSHAKES)
    }
}

/// A listening socket, as the network sees it.
pub struct Listener {
    /// What it takes.
    pub binding: Binding,
    /// Its port.
    pub port: u16,
    /// Who waits for connections.
    pub queue: Arc<WaitQueue>,
    /// What new connections start with.
    pub options: Mutex<TcpOptions>,
    stack: Weak<Stack>,
    state: Mutex<State>,
}

impl Listener {
    /// With an empty queue.
    pub fn new(
        stack: &Stack,
        binding: Binding,
        port: u16,
        queue: Arc<WaitQueue>,
        options: TcpOptions,
        backlog: i32,
    ) -> Arc<Listener> {
        let (options, stack) = (Mutex::new(options), stack.me.clone());
        let listener = Listener { binding, port, queue, options, stack, state: Mutex::default() };
        listener.set_backlog(backlog);
        Arc::new(listener)
    }

    /// `listen(2)` again. `net.core.somaxconn` is looked at by the system call.
    pub fn set_backlog(&self, backlog: i32) {
        self.state.lock().backlog = usize::try_from(backlog).unwrap_or(0);
    }

    /// Whether no more connections may wait.
    pub fn is_full(&self) -> bool {
        let state = self.state.lock();
        state.closed || state.is_full()
    }

    /// How many connections wait, and how many may: `TCP_INFO`.
    pub fn waiting(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.ready.len(), state.backlog)
    }

    /// A SYN from the network. It is dropped when there is no room; where only handshakes are too many, it may be answered
    /// by a cookie.
    pub fn syn(self: &Arc<Listener>, stack: &Stack, tuple: Tuple, packet: &Packet<'_>, segment: &Segment) {
        let cookies = stack.settings().get(Number::Syncookies);
        {
            let mut state = self.state.lock();
            if state.is_full() {
                stack.counters().count(Ext::ListenOverflows);
            }
            if state.closed || state.is_full() {
                return stack.counters().count(Ext::ListenDrops);
            }
            if state.handshakes >= state.most_handshakes() || cookies == ALWAYS {
                if cookies == 0 {
                    return stack.counters().count(Ext::ListenDrops);
                }
                state.cookie = Some(Instant::now());
                drop(state);
                return answer_by_cookie(stack, &tuple, packet, segment);
            }
            state.handshakes += 1;
        }
        let options = self.options.lock().clone();
        let made = Conn::new(stack, tuple, Arc::default(), &options);
        match made {
            Ok(conn) if stack.tcp.remember(&conn) => conn.accept_syn(stack, self, packet, segment),
            _ => self.failed(),
        }
    }

    /// An acknowledgement that belongs to no connection. Whether it was taken: it brings a cookie back.
    pub fn cookie(self: &Arc<Listener>, stack: &Stack, tuple: Tuple, packet: &Packet<'_>, segment: &Segment) -> bool {
        if stack.settings().get(Number::Syncookies) == 0
            || self.state.lock().cookie.is_none_or(|last| last.elapsed() > cookie::VALID)
        {
            return false;
        }
        let cookie = segment.ack.wrapping_sub(1);
        let Some(mss) = stack.tcp.cookies.check(&tuple, segment.seq.wrapping_sub(1), cookie) else {
            stack.counters().count(Ext::SyncookiesFailed);
            return false;
        };
        stack.counters().count(Ext::SyncookiesRecv);
        {
            let mut state = self.state.lock();
            if state.closed || state.is_full() {
                stack.counters().count(Ext::ListenOverflows);
                stack.counters().count(Ext::ListenDrops);
                return true; // its peer sends it again
            }
            state.handshakes += 1;
        }
        let options = self.options.lock().clone();
        match Conn::new(stack, tuple, Arc::default(), &options) {
            Ok(conn) if stack.tcp.remember(&conn) => {
                conn.accept_cookie(stack, self, packet, segment, (cookie, mss));
            }
            _ => self.failed(),
        }
        true
    }

    /// A handshake is complete. Whether the connection waits to be accepted: not when the listener was closed meanwhile.
    pub fn established(&self, conn: Arc<Conn>) -> bool {
        let mut state = self.state.lock();
        state.handshakes = state.handshakes.saturating_sub(1);
        if state.closed {
            return false;
        }
        state.ready.push_back(Ready::Wire(conn));
        drop(state);
        self.queue.wake(Events::READ);
        true
    }

    /// A handshake came to nothing.
    pub fn failed(&self) {
        let mut state = self.state.lock();
        state.handshakes = state.handshakes.saturating_sub(1);
    }

    /// A connection from this host: its other end, given to `make` when there is room. `EAGAIN` when it must wait its
    /// turn; `ECONNREFUSED` when the listener is gone.
    pub fn connect_local(
        self: &Arc<Listener>,
        stack: &Stack,
        waiter: &Weak<TcpSocket>,
        make: impl FnOnce() -> LocalEnd,
    ) -> Result<()> {
        let (defer, seconds) = {
            let options = self.options.lock();
            (options.defer_accept, options.defer_seconds)
        };
        let mut state = self.state.lock();
        if state.closed {
            return Err(Errno::ECONNREFUSED);
        }
        if state.is_full() || (defer && state.deferred.len() >= state.most_handshakes()) {
            if !state.waiting.iter().any(|known| known.ptr_eq(waiter)) {
                state.waiting.push_back(waiter.clone());
            }
            return Err(Errno::EAGAIN);
        }
        let end = make();
        if defer {
            end.defer(Arc::downgrade(self));
            let time = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            let deadline = monotonic().saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            let timer = stack.timers.add(deadline, Arc::new(DeferTimer(Arc::downgrade(self))));
            state.deferred.push(Deferred { end, timer, due: false });
            return Ok(());
        }
        state.ready.push_back(Ready::Local(end));
        drop(state);
        self.queue.wake(Events::READ);
        Ok(())
    }

    /// The peer of a connection that is kept back has said something.
    pub fn came(&self, is_it: impl Fn(&LocalEnd) -> bool) {
        self.offer(|deferred| is_it(&deferred.end));
    }

    /// Offers those that are kept back and `chosen`, as far as there is room; who has been reset is let go.
    fn offer(&self, chosen: impl Fn(&Deferred) -> bool) {
        let (mut over, mut timers) = (Vec::new(), Vec::new());
        let mut offered = false;
        let freed = {
            let mut state = self.state.lock();
            let mut at = 0;
            while at < state.deferred.len() {
                let one = &mut state.deferred[at];
                let reset = chosen(one).then(|| one.end.is_reset());
                match reset {
                    Some(false) if state.is_full() => state.deferred[at].due = true,
                    Some(reset) => {
                        let Deferred { end, timer, .. } = state.deferred.remove(at);
                        timers.push(timer);
                        if reset {
                            over.push(end);
                        } else {
                            state.ready.push_back(Ready::Local(end));
                            offered = true;
                        }
                        continue;
                    }
                    None => {}
                }
                at += 1;
            }
            if over.is_empty() { None } else { state.waiting.pop_front() }
        };
        if offered {
            self.queue.wake(Events::READ);
        }
        over.iter().for_each(|end| end.close(true));
        let Some(stack) = self.stack.upgrade() else { return };
        for timer in timers {
            stack.timers.cancel(timer);
        }
        // Who found no room may have it now. By way of the timer, as sockets are locked here and that may be one of them.
        if let Some(waiter) = freed {
            stack.timers.add(0, Arc::new(Retry(waiter)));
        }
    }

    /// The next connection, and a socket of this host that may now try again. `EAGAIN`.
    pub fn accept(&self) -> Result<(Ready, Option<Weak<TcpSocket>>)> {
        let (ready, waiter) = {
            let mut state = self.state.lock();
            let ready = state.ready.pop_front().ok_or(Errno::EAGAIN)?;
            (ready, state.waiting.pop_front())
        };
        self.offer(|deferred| deferred.due);
        Ok((ready, waiter))
    }

    /// Whether there is a connection to accept.
    pub fn has_ready(&self) -> bool {
        !self.state.lock().ready.is_empty()
    }

    /// Ends it: who waits for acceptance is reset.
    pub fn close(&self) {
        let (ready, deferred, waiting) = {
            let mut state = self.state.lock();
            state.closed = true;
            let (ready, waiting) = (std::mem::take(&mut state.ready), std::mem::take(&mut state.waiting));
            (ready, std::mem::take(&mut state.deferred), waiting)
        };
        for one in deferred {
            self.stack.upgrade().map(|stack| stack.timers.cancel(one.timer));
            one.end.close(true);
        }
        for connection in ready {
            match connection {
                Ready::Wire(conn) => conn.close(true),
                Ready::Local(end) => end.close(true),
            }
        }
        for socket in waiting.iter().filter_map(Weak::upgrade) {
            socket.retry_local();
        }
    }

    /// How well it suits a connection to `local` that comes by `interface`: 0 not at all, else the more the better.
    pub fn suits(&self, local: SocketAddr, interface: u32) -> u8 {
        let ip = self.options.lock().ip;
        if !ip.takes_from(interface) {
            return 0;
        }
        let addressed = match (self.binding.takes(local.ip()), self.binding.addr, self.binding.v6 && self.binding.v4) {
            (false, ..) => 0,
            (true, Some(_), _) => 3,
            (true, None, false) => 2,
            (true, None, true) => 1,
        };
        if addressed == 0 { 0 } else { addressed + if ip.device.is_some() { 4 } else { 0 } }
    }
}

/// Answers a SYN, and remembers nothing of it.
fn answer_by_cookie(stack: &Stack, tuple: &Tuple, packet: &Packet<'_>, segment: &Segment) {
    let mut header = packet.payload.get(..segment.header_len).unwrap_or_default().to_vec();
    let theirs = mss_option(&mut header).map_or(DEFAULT_MSS, |option| u16::from_be_bytes(*option));
    let cookie = stack.tcp.cookies.make(tuple, segment.seq, theirs);
    super::tables::answer_syn(stack, packet, segment, cookie);
    stack.counters().count(Ext::SyncookiesSent);
}

/// Offers what was kept back for as long as `TCP_DEFER_ACCEPT` says.
struct DeferTimer(Weak<Listener>);

impl TimerTarget for DeferTimer {
    fn expired(&self, id: TimerId) {
        if let Some(listener) = self.0.upgrade() {
            listener.offer(|deferred| deferred.timer == id);
        }
    }
}

/// Has a socket that found a listener's queue full try again.
struct Retry(Weak<TcpSocket>);

impl TimerTarget for Retry {
    fn expired(&self, _id: TimerId) {
        if let Some(socket) = self.0.upgrade() {
            socket.retry_local();
        }
    }
}
