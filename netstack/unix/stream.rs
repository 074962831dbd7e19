//! Sending and receiving on streams.

use std::sync::atomic::Ordering;

use super::rights::Rights;
use super::side::{Message, PIECE_MAX, State, charge};
use super::{Cred, UnixSocket, name_of};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::netstack::{Ancillary, Message as Received, RecvFlags};
use crate::vfs::file::OpenFile;
use crate::wait::Events;
use std::sync::Arc;

/// The most messages that are copied out with one call.
const GATHER: usize = 16;

impl UnixSocket {
    /// Sends as much as the buffer takes. Files go with the first piece. `EPIPE`, `EAGAIN`, `ENOTCONN`.
    pub(super) fn send_stream(&self, source: &mut dyn Source, mut ancillary: Ancillary) -> Result<usize> {
        let cred = self.sender_cred(&ancillary);
        let mut done = 0;
        loop {
            let left = source.left();
            if left == 0 {
                return Ok(done);
            }
            match self.send_piece(source, left, cred, std::mem::take(&mut ancillary.files)) {
                Ok(n) => done += n,
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            }
        }
    }

    fn send_piece(&self, source: &mut dyn Source, left: usize, cred: Cred, files: Vec<Arc<OpenFile>>) -> Result<usize> {
        let side = self.side();
        let peer = side.peer().ok_or(Errno::ENOTCONN)?;
        {
            let state = peer.state.lock();
            if state.no_receive || state.closed {
                return Err(Errno::EPIPE);
            }
        }
        if !side.may_send() {
            return Err(Errno::EAGAIN);
        }
        // Two pieces fit into the buffer, so that one can be received while the next is sent.
        let most = (side.send_buf.load(Ordering::Relaxed) / 2).saturating_sub(64).clamp(1, PIECE_MAX);
        let (rights, posting) = Rights::post(files)?;
        let data = source.take_vec(left.min(most))?;
        let (n, charge) = (data.len(), charge(data.len()));
        side.sent.fetch_add(charge, Ordering::Relaxed);
        let message = Message { data, start: 0, charge, sender: side.clone(), cred, rights };
        let mut state = peer.state.lock();
        if state.no_receive || state.closed {
            drop(state);
            drop(posting); // the message's files take the registry as they go
            return Err(Errno::EPIPE);
        }
        state.bytes += n;
        state.messages.push_back(message);
        drop(state);
        drop(posting);
        peer.queue.wake(Events::READ);
        Ok(n)
    }

    /// Receives what is there, up to the end of a message with files, or (with `SO_PASSCRED`) of one sender's bytes. 0 at
    /// the end of the stream.
    pub(super) fn recv_stream(&self, sink: &mut dyn Sink, flags: RecvFlags) -> Result<Received> {
        if flags.contains(RecvFlags::OOB) {
            return Err(Errno::EINVAL);
        }
        let mut state = self.side().state.lock();
        self.check_connected(&state, Errno::EINVAL)?;
        if flags.contains(RecvFlags::ERRQUEUE) {
            return Err(Errno::EAGAIN);
        }
        if state.messages.is_empty() {
            return self.nothing_there(state);
        }
        let mut received = Received::default();
        if let Some(first) = state.messages.front() {
            received.from = name_of(&first.sender);
            received.ancillary.credentials = self.visible_cred(first.cred);
        }
        if flags.contains(RecvFlags::PEEK) {
            let run = self.copy_run(&state, sink)?;
            received.len = run.bytes;
            received.ancillary.files = run.files;
            return Ok(received);
        }
        let first_cred = state.messages.front().map(|message| message.cred);
        let mut dropped = Vec::new();
        while sink.room() > 0 && !state.messages.is_empty() {
            if self.tells_senders_apart() && state.messages.front().map(|message| message.cred) != first_cred {
                break;
            }
            match self.copy_run(&state, sink) {
                Ok(run) => {
                    state.consume(run.bytes, &mut dropped);
                    received.len += run.bytes;
                    received.ancillary.files = run.files;
                    if run.over {
                        break;
                    }
                }
                Err(_) if received.len > 0 => break,
                Err(error) => return Err(error),
            }
        }
        drop(state);
        drop(dropped); // files that this was the last message of
        Ok(received)
    }

    fn tells_senders_apart(&self) -> bool {
        self.pass_cred.load(Ordering::Relaxed)
    }

    /// Copies from the first messages with one call, as far as they go together.
    fn copy_run(&self, state: &State, sink: &mut dyn Sink) -> Result<Run> {
        let mut slices: [&[u8]; GATHER] = [&[]; GATHER];
        let (mut count, mut left) = (0, sink.room());
        let mut with_files = None;
        let mut before = 0; // bytes before the message with files
        let first_cred = state.messages.front().map(|message| message.cred);
        for message in &state.messages {
            let another = self.tells_senders_apart() && Some(message.cred) != first_cred;
            if left == 0 || count == GATHER || with_files.is_some() || another {
                break;
            }
            let rest = message.rest();
            slices[count] = &rest[..rest.len().min(left)];
            left -= slices[count].len();
            if let Some(rights) = &message.rights {
                with_files = Some(rights);
            } else {
                before += slices[count].len();
            }
            count += 1;
        }
        let bytes = sink.put_slices(&slices[..count])?;
        let wanted: usize = slices[..count].iter().map(|slice| slice.len()).sum();
        let files = match with_files {
            Some(rights) if bytes > before => rights.duplicate(),
            _ => Vec::new(),
        };
        // After a fault, or behind files, there is no more to copy now.
        Ok(Run { bytes, over: bytes < wanted || with_files.is_some(), files })
    }

    /// What `recv` says when no message is there.
    pub(super) fn nothing_there(&self, mut state: parking_lot::MutexGuard<'_, State>) -> Result<Received> {
        match state.error.take() {
            Some(error) => Err(error),
            None if state.no_receive => Ok(Received::default()),
            None => Err(Errno::EAGAIN),
        }
    }
}

/// What one copy of several messages did.
struct Run {
    bytes: usize,
    /// Nothing more is to be copied now.
    over: bool,
    files: Vec<Arc<OpenFile>>,
}

impl State {
    /// Takes the first `n` bytes away. Files go with the first byte of their message; what held them is put into
    /// `dropped`, to be dropped without locks.
    fn consume(&mut self, mut n: usize, dropped: &mut Vec<Rights>) {
        self.bytes -= n.min(self.bytes);
        while n > 0 {
            let Some(first) = self.messages.front_mut() else { return };
            dropped.extend(first.rights.take());
            let here = n.min(first.rest().len());
            first.start += here;
            n -= here;
            if first.rest().is_empty() {
                self.messages.pop_front();
            }
        }
    }
}
