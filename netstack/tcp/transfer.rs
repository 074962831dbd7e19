//! A connection as its socket uses it: bytes in and out, its ends, its readiness.

use std::time::Duration;

use smoltcp::socket::tcp::State as Phase;

use super::conn::{ALL, Conn, State, later};
use super::engine::now;
use crate::errno::{Errno, Result};
use crate::netstack::stack::Stack;
use crate::netstack::stack::counters::Ext;
use crate::wait::Events;

/// How long `TCP_CORK` holds back.
const CORK_TIMEOUT: Duration = Duration::from_millis(200);

impl Conn {
    /// Takes what fits from `source`. `EAGAIN`, `EPIPE`. With `more` a last short segment is held back.
    pub fn send(&self, source: &mut dyn crate::io::Source, more: bool) -> Result<usize> {
        let mut state = self.lock();
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        if state.finished_writing() {
            return Err(Errno::EPIPE);
        }
        if source.left() == 0 {
            return Ok(0);
        }
        let (mut done, mut failed) = (0, None);
        while state.view().may_send() && failed.is_none() && !state.has_enough_not_sent() {
            let limit = state.room().min(source.left());
            if limit == 0 {
                break;
            }
            let taken = state.machine().send(|ring| {
                let len = ring.len().min(limit);
                match source.take(&mut ring[..len]) {
                    Ok(n) => (n, n),
                    Err(error) => {
                        failed = Some(error);
                        (0, 0)
                    }
                }
            });
            match taken {
                Ok(n) if n > 0 => {
                    done += n;
                    state.bytes.1 += n as u64;
                }
                _ => break,
            }
        }
        if done == 0 {
            state.writable = false; // to be told of a change
            return Err(failed.unwrap_or(Errno::EAGAIN));
        }
        let held = (more || state.options.cork) && state.unsent() < usize::from(state.peer_mss);
        if held {
            let until = *state.corked_until.get_or_insert_with(|| later(CORK_TIMEOUT));
            if let Some(stack) = self.stack.upgrade()
                && now().total_micros() < until
            {
                self.arm_cork(&stack, &mut state);
                return Ok(done);
            }
        }
        state.corked_until = None;
        self.step(&mut state, |_| ());
        state.writable = state.is_writable();
        Ok(done)
    }

    fn arm_cork(&self, stack: &Stack, state: &mut State) {
        let Some(until) = state.corked_until else { return };
        let until = u64::try_from(until).unwrap_or(0) * 1000;
        if state.timer.is_none_or(|timer| timer.deadline() > until)
            && let Some(me) = self.me.upgrade()
            && let Some(late) = state.timer.replace(stack.timers.add(until, me))
        {
            stack.timers.cancel(late);
        }
    }

    /// Gives what was received. 0 at the end; `EAGAIN`, or why the connection ended.
    pub fn receive_into(&self, sink: &mut dyn crate::io::Sink, peek: bool) -> Result<usize> {
        let mut state = self.lock();
        let queued = state.readable();
        if queued == 0 {
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            return if state.finished_reading() { Ok(0) } else { Err(Errno::EAGAIN) };
        }
        if sink.room() == 0 {
            return Ok(0);
        }
        if peek {
            let mut bytes = vec![0; queued.min(sink.room())];
            let n = state.machine().peek_slice(&mut bytes).unwrap_or(0);
            return sink.put(&bytes[..n]);
        }
        let (mut done, mut failed) = (0, None);
        while failed.is_none() && sink.room() > 0 {
            let taken = state.machine().recv(|ring| match sink.put(ring) {
                Ok(n) => (n, n),
                Err(error) => {
                    failed = Some(error);
                    (0, 0)
                }
            });
            match taken {
                Ok(n) if n > 0 => done += n,
                _ => break,
            }
        }
        state.readable = state.readable();
        if done == 0 {
            return Err(failed.unwrap_or(Errno::EAGAIN));
        }
        // The peer need not hear of room that it could not use yet.
        if queued * 4 >= state.view().recv_capacity() {
            self.step(&mut state, |_| ());
        }
        Ok(done)
    }

    /// `shutdown(SHUT_WR)`.
    pub fn shut_write(&self) {
        let mut state = self.lock();
        state.shut_write = true;
        state.corked_until = None;
        self.step(&mut state, |state| state.machine().close());
        self.queue.wake(ALL);
    }

    /// Ends the connection on this side, for one who then waits for the peer to have everything. Not when bytes are unread,
    /// which is for [`Conn::close`] to tell the peer.
    pub fn begin_end(&self) -> bool {
        let mut state = self.lock();
        let open =
            matches!(state.tcp_phase(), Phase::Established | Phase::CloseWait | Phase::FinWait1 | Phase::LastAck);
        if !open || state.readable() > 0 {
            return false;
        }
        state.shut_write = true;
        state.corked_until = None;
        self.step(&mut state, |state| state.machine().close());
        true
    }

    /// The last descriptor is closed. `linger` is `SO_LINGER`'s zero: a reset instead of an end.
    pub fn close(&self, linger: bool) {
        let Some(stack) = self.stack.upgrade() else { return };
        let mut state = self.lock();
        state.orphan = true;
        state.corked_until = None;
        match state.tcp_phase() {
            Phase::SynSent => {
                state.phase = Phase::Closed;
                self.gone(&stack, &mut state);
            }
            Phase::Closed => self.gone(&stack, &mut state),
            Phase::TimeWait => {
                stack.tcp.begin_time_wait(&stack, self, state.sent);
                self.gone(&stack, &mut state);
            }
            _ if linger || state.readable() > 0 => {
                if !linger {
                    stack.counters().count(Ext::TCPAbortOnClose);
                }
                self.abort_locked(&stack, &mut state);
            }
            _ => {
                if state.tcp_phase() == Phase::FinWait2 {
                    state.deadline = Some(later(state.options.linger2.unwrap_or_default()));
                }
                self.step(&mut state, |state| {
                    state.machine().close();
                    state.wait_for_peer(&stack, true);
                });
            }
        }
    }

    /// What it is ready for.
    pub fn poll(&self) -> Events {
        let state = self.lock();
        let phase = state.tcp_phase();
        let mut events = Events::empty();
        events.set(Events::ERR, state.error.is_some());
        if matches!(phase, Phase::SynSent | Phase::SynReceived) && !state.established {
            return events;
        }
        let (no_read, no_write) = (state.finished_reading(), state.finished_writing());
        if no_read || state.has_enough_to_read() {
            events |= Events::READ;
        }
        events.set(Events::RDHUP, no_read);
        events.set(Events::HUP, no_read && no_write);
        if no_write || state.is_writable() {
            events |= Events::WRITE;
        }
        events
    }
}
