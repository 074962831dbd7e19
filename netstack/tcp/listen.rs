//! Listeners: the queue of connections that wait to be accepted, and those still in their handshake.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::TcpSocket;
use super::conn::{Conn, Tuple};
use super::local::LocalEnd;
use super::options::TcpOptions;
use super::segment::Segment;
use crate::errno::{Errno, Result};
use crate::netstack::stack::Stack;
use crate::netstack::stack::counters::Ext;
use crate::netstack::stack::packet::Packet;
use crate::netstack::stack::ports::Binding;
use crate::wait::{Events, WaitQueue};

/// The most, `/proc/sys/net/ipv4/tcp_max_syn_backlog`.
const MAX_HANDSHAKES: usize = 4096;
/// The fewest handshakes at a time, whatever the backlog.
const MIN_HANDSHAKES: usize = 8;

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
    closed: bool,
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
    state: Mutex<State>,
}

impl Listener {
    /// With an empty queue.
    pub fn new(binding: Binding, port: u16, queue: Arc<WaitQueue>, options: TcpOptions, backlog: i32) -> Arc<Listener> {
        let listener = Listener { binding, port, queue, options: Mutex::new(options), state: Mutex::default() };
        listener.set_backlog(backlog);
        Arc::new(listener)
    }

    /// `listen(2)` again. `net.core.somaxconn` is looked at by the system call.
    pub fn set_backlog(&self, backlog: i32) {
        self.state.lock().backlog = usize::try_from(backlog).unwrap_or(0);
    }

    /// Whether no more connections may wait. As on Linux there is room for one more than the backlog.
    pub fn is_full(&self) -> bool {
        let state = self.state.lock();
        state.closed || state.ready.len() > state.backlog
    }

    /// How many connections wait, and how many may: `TCP_INFO`.
    pub fn waiting(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.ready.len(), state.backlog)
    }

    /// A SYN from the network. It is dropped when there is no room.
    pub fn syn(self: &Arc<Listener>, stack: &Stack, tuple: Tuple, packet: &Packet<'_>, segment: &Segment) {
        {
            let mut state = self.state.lock();
            let most = state.backlog.clamp(MIN_HANDSHAKES, MAX_HANDSHAKES);
            if state.ready.len() > state.backlog {
                stack.counters().count(Ext::ListenOverflows);
            }
            if state.closed || state.ready.len() > state.backlog || state.handshakes >= most {
                return stack.counters().count(Ext::ListenDrops);
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
    pub fn connect_local(&self, waiter: &Weak<TcpSocket>, make: impl FnOnce() -> LocalEnd) -> Result<()> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Errno::ECONNREFUSED);
        }
        if state.ready.len() > state.backlog {
            if !state.waiting.iter().any(|known| known.ptr_eq(waiter)) {
                state.waiting.push_back(waiter.clone());
            }
            return Err(Errno::EAGAIN);
        }
        state.ready.push_back(Ready::Local(make()));
        drop(state);
        self.queue.wake(Events::READ);
        Ok(())
    }

    /// The next connection, and a socket of this host that may now try again. `EAGAIN`.
    pub fn accept(&self) -> Result<(Ready, Option<Weak<TcpSocket>>)> {
        let mut state = self.state.lock();
        let ready = state.ready.pop_front().ok_or(Errno::EAGAIN)?;
        Ok((ready, state.waiting.pop_front()))
    }

    /// Whether there is a connection to accept.
    pub fn has_ready(&self) -> bool {
        !self.state.lock().ready.is_empty()
    }

    /// Ends it: who waits for acceptance is reset.
    pub fn close(&self) {
        let (ready, waiting) = {
            let mut state = self.state.lock();
            state.closed = true;
            (std::mem::take(&mut state.ready), std::mem::take(&mut state.waiting))
        };
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
