//! Sending and receiving whole messages: datagrams and sequenced packets.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::rights::Rights;
use super::side::{Message, Phase, Side, State, charge};
use super::{Kind, UnixSocket, name_of};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::netstack::{Ancillary, Message as Received, RecvFlags};
use crate::wait::Events;

impl UnixSocket {
    /// Sends all of `source` as one message, to `target` or the peer.
    pub(super) fn send_packet(
        &self,
        target: Option<Arc<Side>>,
        source: &mut dyn Source,
        ancillary: Ancillary,
    ) -> Result<usize> {
        let side = self.side();
        if self.kind() == Kind::Dgram && self.pass_cred.load(Ordering::Relaxed) {
            self.autobind()?;
        }
        let target = target.or_else(|| side.peer()).ok_or(Errno::ENOTCONN)?;
        let len = source.left();
        if len > side.send_buf.load(Ordering::Relaxed).saturating_sub(32) {
            return Err(Errno::EMSGSIZE);
        }
        if let Some(error) = side.take_error() {
            return Err(error);
        }
        if side.state.lock().no_send {
            return Err(Errno::EPIPE);
        }
        if !side.may_send() {
            return Err(Errno::EAGAIN);
        }
        self.check_target(&target)?;
        let cred = self.sender_cred(&ancillary);
        let (rights, posting) = Rights::post(ancillary.files)?;
        let data = source.take_vec(len)?;
        if data.len() < len {
            drop(posting);
            return Err(Errno::EFAULT);
        }
        let charge = charge(len);
        side.sent.fetch_add(charge, Ordering::Relaxed);
        let message = Message { data, start: 0, charge, sender: side.clone(), cred, rights };
        let mut state = target.state.lock();
        if state.closed || state.no_receive {
            let error = if state.closed && self.kind() == Kind::Dgram { Errno::ECONNREFUSED } else { Errno::EPIPE };
            drop(state);
            drop(posting); // the message's files take the registry as they go
            return Err(error);
        }
        state.bytes += len;
        state.messages.push_back(message);
        drop(state);
        drop(posting);
        target.queue.wake(Events::READ);
        Ok(len)
    }

    /// Whether `target` takes a message from here. A datagram socket whose peer is gone is disconnected on the way.
    fn check_target(&self, target: &Arc<Side>) -> Result<()> {
        let mut state = target.state.lock();
        let theirs = match &state.phase {
            Phase::Connected(peer) => Some(peer.clone()),
            _ => None,
        };
        let mutual = theirs.as_ref().is_some_and(|peer| Arc::ptr_eq(peer, self.side()));
        if state.closed && self.kind() == Kind::Dgram {
            drop(state);
            self.leave(target);
            return Err(Errno::ECONNREFUSED);
        }
        if theirs.is_some() && !mutual {
            return Err(Errno::EPERM);
        }
        if state.closed || state.no_receive {
            return Err(Errno::EPIPE);
        }
        if !mutual && state.is_full() {
            state.block(self.side());
            return Err(Errno::EAGAIN);
        }
        Ok(())
    }

    /// Forgets `gone` if it is what this one is connected to.
    fn leave(&self, gone: &Arc<Side>) {
        let mut state = self.side().state.lock();
        let connected = matches!(&state.phase, Phase::Connected(peer) if Arc::ptr_eq(peer, gone));
        if connected {
            state.phase = Phase::Idle;
        }
        drop(state);
        if connected {
            self.part_from(gone);
        }
    }

    /// Whether `peer`'s queue keeps this one from sending; if so, this one is woken when it is shorter.
    pub(super) fn is_held_up_by(&self, peer: &Arc<Side>) -> bool {
        if self.kind() != Kind::Dgram {
            return false;
        }
        let mut state = peer.state.lock();
        let mutual = matches!(&state.phase, Phase::Connected(theirs) if Arc::ptr_eq(theirs, self.side()));
        let held_up = !mutual && state.is_full() && !state.closed;
        if held_up {
            state.block(self.side());
        }
        held_up
    }

    /// Receives one message; what does not fit is lost, and `MSG_TRUNC` says so. Without a message, 0 after a shutdown.
    /// (On Linux a datagram socket that must not wait gets `EAGAIN` there; whether it waits is not known here.)
    pub(super) fn recv_packet(&self, sink: &mut dyn Sink, flags: RecvFlags) -> Result<Received> {
        if flags.contains(RecvFlags::OOB) {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut state = self.side().state.lock();
        if self.kind() == Kind::SeqPacket {
            self.check_connected(&state, Errno::ENOTCONN)?;
        }
        if flags.contains(RecvFlags::ERRQUEUE) {
            return Err(Errno::EAGAIN);
        }
        let Some(message) = state.messages.front() else { return self.nothing_there(state) };
        let len = message.data.len();
        let fits = len.min(sink.room());
        if fits > 0 && sink.put(&message.data[..fits])? < fits {
            return Err(Errno::EFAULT);
        }
        let mut received = Received { from: name_of(&message.sender), ..Received::default() };
        received.len = if flags.contains(RecvFlags::TRUNC) { len } else { fits };
        received.flags = if fits < len { libc::MSG_TRUNC } else { 0 };
        received.ancillary.credentials = self.visible_cred(message.cred);
        received.ancillary.files = message.rights.as_ref().map_or(Vec::new(), Rights::duplicate);
        if flags.contains(RecvFlags::PEEK) {
            return Ok(received);
        }
        let message = state.messages.pop_front();
        state.bytes -= len;
        let waiting = state.unblock();
        drop(state);
        drop(message);
        waiting.iter().for_each(|side| side.queue.wake(super::WRITE));
        Ok(received)
    }

    /// `error` unless the socket has, or had, a peer.
    pub(super) fn check_connected(&self, state: &State, error: Errno) -> Result<()> {
        if matches!(state.phase, Phase::Connected(_)) { Ok(()) } else { Err(error) }
    }

    /// `SIOCINQ`: unread bytes, of a datagram socket those of the first message. `EINVAL` when it listens.
    pub(super) fn readable_bytes(&self) -> Result<usize> {
        let state = self.side().state.lock();
        match (&state.phase, self.kind()) {
            (Phase::Listening { .. }, _) => Err(Errno::EINVAL),
            (_, Kind::Dgram) => Ok(state.messages.front().map_or(0, |message| message.data.len())),
            _ => Ok(state.bytes),
        }
    }
}
