//! Listening, connecting and accepting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::side::{ALL, Phase, Side, WRITE};
use super::{BoundSocket, Kind, UnixSocket};
use crate::errno::{Errno, Result};
use crate::wait::Events;

impl UnixSocket {
    /// `connect(2)` to a path: `target` is what the caller found on the node (`ECONNREFUSED` is its answer when there is
    /// nothing). `ECONNREFUSED` (closed, or does not listen), `EPROTOTYPE` (of another type), `EAGAIN` (the backlog is
    /// full; see [`connect`](crate::netstack::Socket::connect)), `EISCONN`, `EINVAL` (this one listens).
    pub fn connect_to(&self, target: &BoundSocket) -> Result<()> {
        let target = target.socket().ok_or(Errno::ECONNREFUSED)?;
        if target.kind() != self.kind() {
            return Err(Errno::EPROTOTYPE);
        }
        self.connect_socket(&target)
    }

    pub(super) fn connect_socket(&self, target: &Arc<UnixSocket>) -> Result<()> {
        if self.pass_cred.load(Ordering::Relaxed) {
            self.autobind()?; // credentials are for those who can answer
        }
        if self.kind() == Kind::Dgram {
            return self.set_destination(Some(target));
        }
        self.begin_connecting()?;
        let connected = self.enter_backlog(target);
        let listener_cred = target.side().state.lock().peer_cred;
        let mut state = self.side().state.lock();
        match connected {
            Ok(peer) => {
                state.phase = Phase::Connected(peer);
                state.peer_cred = listener_cred;
                Ok(())
            }
            Err(error) => {
                state.phase = Phase::Idle;
                Err(error)
            }
        }
    }

    fn begin_connecting(&self) -> Result<()> {
        let mut state = self.side().state.lock();
        match state.phase {
            Phase::Idle => state.phase = Phase::Connecting,
            Phase::Connecting => return Err(Errno::EALREADY),
            Phase::Connected(_) => return Err(Errno::EISCONN),
            Phase::Listening { .. } => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// Makes the other end of the connection and queues it with the listener.
    fn enter_backlog(&self, listener: &Arc<UnixSocket>) -> Result<Arc<Side>> {
        let cred = *self.cred.lock();
        let end = Side::new(self.kind(), self.ns.settings.default_buffers()[1]);
        {
            let mut state = end.state.lock();
            state.phase = Phase::Connected(self.side().clone());
            state.peer_cred = Some(cred);
        }
        if let Some(name) = listener.side().name.get() {
            // The new side has no name yet, so this does not fail.
            let _ = end.name.set(name.clone());
        }
        let listener_cred = *listener.cred.lock();
        let made = UnixSocket::with_side(end.clone(), &listener.ns, listener_cred, true);
        made.pass_cred.store(listener.pass_cred.load(Ordering::Relaxed), Ordering::Relaxed);
        let refused = push_pending(listener, made, self.side());
        match refused {
            None => {
                listener.side().queue.wake(Events::READ);
                Ok(end)
            }
            Some((error, made)) => {
                // It was never connected: closing it must not reset this one.
                made.side().state.lock().phase = Phase::Idle;
                Err(error)
            }
        }
    }

    pub(super) fn start_listening(&self, backlog: i32) -> Result<()> {
        if self.kind() == Kind::Dgram {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.side().name.get().is_none() {
            return Err(Errno::EINVAL);
        }
        let limit = usize::try_from(backlog).unwrap_or(0);
        let cred = *self.cred.lock();
        let mut state = self.side().state.lock();
        match &mut state.phase {
            Phase::Idle => state.phase = Phase::Listening { backlog: limit, pending: VecDeque::new() },
            Phase::Listening { backlog, .. } => *backlog = limit,
            Phase::Connecting | Phase::Connected(_) => return Err(Errno::EINVAL),
        }
        state.peer_cred = Some(cred);
        let waiting = state.unblock();
        drop(state);
        waiting.iter().for_each(|side| side.queue.wake(WRITE));
        Ok(())
    }

    pub(super) fn accept_one(&self) -> Result<Arc<UnixSocket>> {
        if self.kind() == Kind::Dgram {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut state = self.side().state.lock();
        let shut = state.no_receive;
        let Phase::Listening { pending, .. } = &mut state.phase else { return Err(Errno::EINVAL) };
        let Some(socket) = pending.pop_front() else {
            return Err(if shut { Errno::EINVAL } else { Errno::EAGAIN });
        };
        let waiting = state.unblock();
        drop(state);
        waiting.iter().for_each(|side| side.queue.wake(WRITE));
        socket.embryo.store(false, Ordering::Relaxed);
        Ok(socket)
    }

    /// `connect(2)` with `AF_UNSPEC` on a datagram socket.
    pub(super) fn disconnect(&self) -> Result<()> {
        self.set_destination(None)
    }

    /// Makes `target` what a datagram socket sends to and receives from. `EPERM` when that receives from another only.
    fn set_destination(&self, target: Option<&Arc<UnixSocket>>) -> Result<()> {
        if let Some(target) = target {
            let theirs = target.side().peer();
            if theirs.is_some_and(|theirs| !Arc::ptr_eq(&theirs, self.side())) {
                return Err(Errno::EPERM);
            }
        }
        let phase = target.map_or(Phase::Idle, |target| Phase::Connected(target.side().clone()));
        let mut state = self.side().state.lock();
        let old = std::mem::replace(&mut state.phase, phase);
        let (same, old) = match (old, &state.phase) {
            (Phase::Connected(old), Phase::Connected(new)) => (Arc::ptr_eq(&old, new), Some(old)),
            (Phase::Connected(old), _) => (false, Some(old)),
            _ => (false, None),
        };
        drop(state);
        if let Some(old) = old.filter(|_| !same) {
            self.part_from(&old);
        }
        self.side().queue.wake(ALL);
        Ok(())
    }

    /// After a datagram socket has left `old`: what it sent is gone, and if it was connected here it is told.
    pub(super) fn part_from(&self, old: &Arc<Side>) {
        let mut state = self.side().state.lock();
        let purged = std::mem::take(&mut state.messages);
        state.bytes = 0;
        let waiting = state.unblock();
        drop(state);
        if !purged.is_empty() && old.is_connected_to(self.side()) {
            let mut state = old.state.lock();
            if !state.closed {
                state.error = Some(Errno::ECONNRESET);
            }
            drop(state);
            old.queue.wake(ALL);
        }
        waiting.iter().for_each(|side| side.queue.wake(WRITE));
        drop(purged);
    }
}

/// Queues `made` with the listener, or gives it back with the reason why not.
fn push_pending(
    listener: &UnixSocket,
    made: Arc<UnixSocket>,
    connecting: &Arc<Side>,
) -> Option<(Errno, Arc<UnixSocket>)> {
    let mut state = listener.side().state.lock();
    let shut = state.no_receive;
    match &mut state.phase {
        Phase::Listening { pending, backlog } if !shut => {
            if pending.len() <= *backlog {
                pending.push_back(made);
                return None;
            }
        }
        _ => return Some((Errno::ECONNREFUSED, made)),
    }
    state.block(connecting);
    Some((Errno::EAGAIN, made))
}
