//! How a connection has smoltcp's machine send what its [`Sender`](super::sender::Sender) decides: by what it gives to it as
//! coming from the peer.

use std::borrow::Cow;
use std::sync::Arc;

use smoltcp::socket::tcp::State as Phase;

use super::conn::{Conn, State, endpoint, later};
use super::engine::{Engine, now};
use super::listen::Listener;
use super::options::retry_time;
use super::segment::{ACK, FIN, RST, SYN, Segment};
use crate::netstack::stack::Stack;
use crate::netstack::stack::packet::{self, Packet, TCP};
use crate::netstack::stack::settings::Number;

impl Conn {
    /// Gives a segment to the machine: with the peer's segment size as our way takes it, the machine's own sequence numbers,
    /// and no more window than there may be under way.
    pub fn feed(&self, stack: &Stack, engine: &mut Engine, state: &mut State, packet: &Packet<'_>, segment: &Segment) {
        let start = packet.header_len();
        let bare = segment.len == 0 && segment.flags & (SYN | FIN | RST) == 0;
        let expected = segment.seq == state.peer_next();
        let offered = packet.payload.get(14..16).map_or(0, |field| packet::be16(field, 0));
        let window = if bare { state.sender.patch() } else { offered };
        let patched = if segment.has(SYN) {
            state.peer_start = segment.seq;
            Some(self.note_mss(state, packet, segment))
        } else {
            (state.shift != 0 || window != offered).then(|| packet.bytes.to_vec())
        };
        let bytes = match patched {
            Some(mut bytes) => {
                if segment.has(ACK)
                    && let Some(field) = bytes.get_mut(start + 8..).and_then(|rest| rest.first_chunk_mut::<4>())
                {
                    *field = segment.ack.wrapping_sub(state.shift).to_be_bytes();
                }
                if let Some(field) = bytes.get_mut(start + 14..).and_then(|rest| rest.first_chunk_mut::<2>()) {
                    *field = window.to_be_bytes();
                }
                Cow::Owned(bytes)
            }
            None => Cow::Borrowed(packet.bytes),
        };
        if !segment.has(SYN) {
            state.sender.told(expected.then_some(window));
        }
        if engine.receive(&mut state.sockets, &bytes) {
            self.flush(stack, engine, state);
        }
    }

    /// Has the machine believe that its peer acknowledged what it has once more, with a window of `field`.
    fn tell(&self, engine: &mut Engine, state: &mut State, field: u16) {
        let Some(first) = state.sender.first() else { return };
        let header = packet::Header {
            source: self.tuple.remote.ip(),
            destination: self.tuple.local.ip(),
            protocol: TCP,
            ttl: 64,
            tos: 0,
            id: 0,
            whole: false,
        };
        let mut bytes = [0; 60];
        let bytes = &mut bytes[..header.size() + 20];
        header.write(bytes);
        let tcp = &mut bytes[header.size()..];
        tcp[..2].copy_from_slice(&self.tuple.remote.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&self.tuple.local.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&state.peer_next().to_be_bytes());
        tcp[8..12].copy_from_slice(&first.wrapping_sub(state.shift).to_be_bytes());
        (tcp[12], tcp[13]) = (5 << 4, ACK);
        tcp[14..16].copy_from_slice(&field.to_be_bytes());
        if engine.receive(&mut state.sockets, bytes) {
            log::debug!("smoltcp does not take an acknowledgement of ours");
        }
        state.sender.told(Some(field));
    }

    /// Has the machine know how much may be under way, and go back when something is lost.
    pub fn steer(&self, stack: &Stack, engine: &mut Engine, state: &mut State) {
        if !state.established || matches!(state.tcp_phase(), Phase::Closed | Phase::TimeWait) {
            return;
        }
        if state.sender.must_go_back() {
            self.go_back(stack, engine, state);
        } else {
            self.narrow(engine, state);
        }
    }

    /// Tells the machine of another window, where it believes in one that makes a difference.
    pub fn narrow(&self, engine: &mut Engine, state: &mut State) {
        if state.established
            && let Some(field) = state.sender.correction(state.unsent())
        {
            self.tell(engine, state, field);
        }
    }

    /// Has the machine go back to what was not acknowledged, of which it sends the first.
    pub fn go_back(&self, stack: &Stack, engine: &mut Engine, state: &mut State) {
        const TRIES: usize = 3;
        state.sender.goes_back();
        let field = state.sender.patch();
        self.tell(engine, state, field);
        for _ in 0..TRIES {
            // Its own timer would come later, others of its timers perhaps earlier.
            let Some(time) = engine.poll_at(&state.sockets) else { break };
            if engine.transmit_at(&mut state.sockets, time.max(now())) {
                self.flush(stack, engine, state);
            }
            if state.sender.has_moved() {
                return;
            }
        }
        log::debug!("smoltcp does not go back to what is lost");
        state.sender.did_not_go_back();
    }

    /// Becomes the connection whose handshake a cookie stood for, and which `packet` completes: as if the peer's SYN, with the
    /// segment size `mss`, had been taken and answered by `cookie`.
    pub fn accept_cookie(
        &self,
        stack: &Stack,
        listener: &Arc<Listener>,
        packet: &Packet<'_>,
        segment: &Segment,
        (cookie, mss): (u32, u16),
    ) {
        let mut state = self.lock();
        state.listener = Some(Arc::downgrade(listener));
        state.deadline = Some(later(retry_time(stack.settings().get(Number::SynAckRetries))));
        if state.machine().listen(endpoint(self.tuple.local)).is_err() {
            return;
        }
        let syn = forgotten_syn(packet, segment, mss);
        state.peer_mss = mss.min(self.mss.max(48));
        state.peer_start = segment.seq.wrapping_sub(1);
        let size = state.peer_mss;
        state.sender.set_mss(size.into());
        let header = &syn[syn.len() - 24..];
        if let Some(syn) = Segment::parse(header) {
            state.sender.received(&syn, header, now().total_micros());
        }
        let start = if self.tuple.remote.is_ipv4() { 20 } else { 40 };
        let answer = stack.tcp.engines.with(|engine| {
            engine.reseed();
            engine.receive(&mut state.sockets, &syn);
            let answers = engine.transmit(&mut state.sockets);
            let bytes = engine.frame.packet_mut();
            bytes.get(start..).and_then(Segment::parse).filter(|answer| answers && answer.has(SYN))
        });
        state.phase = state.tcp_phase();
        let Some(answer) = answer else { return self.gone(stack, &mut state) };
        state.shift = cookie.wrapping_sub(answer.seq);
        state.sender.sending(&Segment { seq: cookie, ..answer }, now().total_micros());
        self.receive(stack, &mut state, packet, segment, false);
    }
}

impl State {
    /// The sequence number that the peer's next byte has.
    fn peer_next(&self) -> u32 {
        let received = self.bytes.0 + self.readable().saturating_sub(self.readable) as u64;
        let ended =
            matches!(self.tcp_phase(), Phase::CloseWait | Phase::LastAck | Phase::Closing | Phase::TimeWait);
        self.peer_start.wrapping_add(1 + u32::from(ended)).wrapping_add(received as u32)
    }
}

/// The SYN that `packet` follows, with the one option that a cookie tells.
fn forgotten_syn(packet: &Packet<'_>, segment: &Segment, mss: u16) -> Vec<u8> {
    const LEN: usize = 24;
    let header = packet::Header {
        source: packet.source,
        destination: packet.destination,
        protocol: TCP,
        ttl: packet.ttl,
        tos: packet.tos,
        id: 0,
        whole: false,
    };
    let mut bytes = vec![0; header.size() + LEN];
    header.write(&mut bytes);
    let (tcp, window) = (&mut bytes[header.size()..], packet.payload.get(14..16).unwrap_or(&[0xff; 2]));
    tcp[..2].copy_from_slice(&segment.source.to_be_bytes());
    tcp[2..4].copy_from_slice(&segment.destination.to_be_bytes());
    tcp[4..8].copy_from_slice(&segment.seq.wrapping_sub(1).to_be_bytes());
    (tcp[12], tcp[13]) = ((LEN as u8 / 4) << 4, SYN);
    tcp[14..16].copy_from_slice(window);
    tcp[20..22].copy_from_slice(&[2, 4]);
    tcp[22..24].copy_from_slice(&mss.to_be_bytes());
    bytes
}
