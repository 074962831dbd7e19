//! A connection over the wire: a smoltcp socket, what Linux knows beyond it, and its timer.
//!
//! Every step is the same: lock, do something to the socket, [`Conn::pump`] what it wants to send, [`Conn::settle`] what
//! that changed (state, readiness, deadline). Packets are written to the device under the connection's lock, so that they
//! keep their order; nothing else is locked meanwhile.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket as Machine, SocketBuffer, State as Phase};
use smoltcp::wire::IpEndpoint;

use super::adapt::{adapted, forgotten_syn};
use super::engine::{Engine, now};
use super::listen::Listener;
use super::memory::{Lent, MEMORY};
use super::meter::{Clamp, Meter};
use super::options::{TcpOptions, retry_time};
use super::segment::{ACK, RST, SYN, Segment, mss_option};
use super::window::PeerWindow;
use crate::errno::{Errno, Result};
use crate::netstack::device::vnet::{self, Offload, Partial, Segmentation};
use crate::netstack::stack::counters::{Ext, Ip, Tcp as Counter};
use crate::netstack::stack::packet::{self, Packet, TCP};
use crate::netstack::stack::settings::{Buffer, Number};
use crate::netstack::stack::{Stack, ports::Lease};
use crate::timer::{TimerId, TimerTarget};
use crate::wait::{Events, WaitQueue};

/// The longest ring, as smoltcp's windows go.
const MAX_RING: usize = 512 << 20;
/// What a peer that says nothing takes: RFC 9293, 3.7.1.
pub const DEFAULT_MSS: u16 = 536;
/// How many times as long as for a silent peer a closed connection waits for one that answers, but has no room.
const PATIENCE_WITHOUT_ROOM: u32 = 3;
/// Delayed acknowledgements, as Linux starts with.
const ACK_DELAY: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(40);

/// Both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Ours.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
}

/// What wakes everybody.
pub const ALL: Events = Events::READ.union(Events::WRITE).union(Events::ALWAYS).union(Events::RDHUP);

/// What a connection's lock guards.
pub struct State {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// The rings' memory: after the sockets, which are dropped first.
    _memory: [Lent; 2],
    /// `SO_ERROR`.
    pub error: Option<Errno>,
    /// The phase when last settled.
    pub phase: Phase,
    /// Whether it was established at some time.
    pub established: bool,
    /// What was ready when last settled.
    pub readable: usize,
    pub writable: bool,
    /// The listener to be told when it is established.
    pub listener: Option<Weak<Listener>>,
    /// `shutdown(SHUT_RD)`.
    pub shut_read: bool,
    /// `shutdown(SHUT_WR)` or `close`.
    pub shut_write: bool,
    /// No descriptor is left.
    pub orphan: bool,
    /// When it is given up, whatever happens (monotonic, microseconds).
    pub deadline: Option<i64>,
    /// Until when a closed connection goes on at most, whatever the peer says, if that is not that it takes something.
    pub last_call: i64,
    pub timer: Option<TimerId>,
    /// Segments are held back until then.
    pub corked_until: Option<i64>,
    /// It is offered to its listener then, though nothing has come: `TCP_DEFER_ACCEPT`.
    deferred_until: Option<i64>,
    pub peer_mss: u16,
    send_limit: usize,
    /// How much larger our sequence numbers are on the wire than smoltcp's: not 0 where it came of a cookie.
    shift: u32,
    /// The interface's index, and who is next on the way. A neighbour of `lo`, of whom there is none, gets nothing.
    way: Option<(u32, IpAddr)>,
    /// As last sent: what a TIME_WAIT goes on with.
    pub sent: (u32, u32),
    pub options: TcpOptions,
    /// The local port, when it was bound for this connection alone.
    pub lease: Option<Arc<Lease>>,
    /// Segments received and sent, for `TCP_INFO`.
    pub segments: (u32, u32),
    /// What was sent and how soon it was acknowledged.
    pub meter: Meter,
    /// What the peer has room for.
    window: PeerWindow,
    /// `TCP_WINDOW_CLAMP`'s view of our window.
    clamp: Clamp,
    /// When a segment last came (monotonic, microseconds).
    heard: i64,
    /// Bytes received and sent.
    pub bytes: (u64, u64),
}

impl State {
    /// The state machine.
    pub fn machine(&mut self) -> &mut Machine<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub fn view(&self) -> &Machine<'static> {
        self.sockets.get(self.handle)
    }

    /// The TCP state.
    pub fn tcp_phase(&self) -> Phase {
        self.view().state()
    }

    /// Bytes to be read.
    pub fn readable(&self) -> usize {
        self.view().recv_queue()
    }

    /// Bytes not acknowledged.
    pub fn unsent(&self) -> usize {
        self.view().send_queue()
    }

    /// The peer sends no more: its end was received, or the connection is gone.
    pub fn finished_reading(&self) -> bool {
        let phase = self.tcp_phase();
        self.shut_read
            || matches!(phase, Phase::CloseWait | Phase::LastAck | Phase::Closing | Phase::TimeWait | Phase::Closed)
    }

    pub fn finished_writing(&self) -> bool {
        self.shut_write || self.tcp_phase() == Phase::Closed
    }

    pub fn room(&self) -> usize {
        let machine = self.view();
        self.send_limit.min(machine.send_capacity()).saturating_sub(machine.send_queue())
    }

    /// Linux's rule for `EPOLLOUT`: at least half as much room as is in use.
    pub fn is_writable(&self) -> bool {
        self.view().may_send()
            && self.room() > 0
            && self.room() * 2 >= self.view().send_queue()
            && !self.has_enough_not_sent()
    }

    /// Bytes of the send buffer that were not sent even once.
    pub fn not_sent(&self) -> usize {
        usize::try_from(self.bytes.1.saturating_sub(self.meter.sent)).unwrap_or(usize::MAX)
    }

    /// Whether `TCP_NOTSENT_LOWAT` wants no more.
    pub fn has_enough_not_sent(&self) -> bool {
        let low = self.options.not_sent_low_water as usize;
        low != 0 && self.not_sent() >= low
    }

    /// Whether there is as much to read as `SO_RCVLOWAT` asks for, or as there can be.
    pub fn has_enough_to_read(&self) -> bool {
        let readable = self.readable();
        readable > 0 && (readable >= self.options.low_water || readable * 2 >= self.view().recv_capacity())
    }

    /// The receive window, the send ring's size, the peer's segment size: for `TCP_INFO`.
    pub fn sizes(&self) -> (usize, usize, u16) {
        (self.view().recv_capacity() - self.view().recv_queue(), self.view().send_capacity(), self.peer_mss)
    }
}

/// A connection.
pub struct Conn {
    pub me: Weak<Conn>,
    pub stack: Weak<Stack>,
    /// Both ends.
    pub tuple: Tuple,
    /// Who waits for it.
    pub queue: Arc<WaitQueue>,
    /// The longest segment that its way takes.
    mss: u16,
    state: Mutex<State>,
}

impl Conn {
    /// A closed connection, to be opened either way.
    pub fn new(stack: &Stack, tuple: Tuple, queue: Arc<WaitQueue>, options: &TcpOptions) -> Result<Arc<Conn>> {
        let route = stack.interfaces().route_by(tuple.remote.ip(), options.ip.device)?;
        let mtu = stack.interfaces().get(route.interface).map_or(1500, |interface| interface.mtu).min(65_535);
        let headers = if tuple.remote.is_ipv4() { 40 } else { 60 };
        let mss = (mtu - headers) as u16;
        let mss = options.max_segment.map_or(mss, |most| mss.min(most));
        let mut memory = [
            MEMORY
                .lend(options.receive_ring.unwrap_or_else(|| stack.settings().ring(Buffer::Receive)).min(MAX_RING))?,
            MEMORY.lend(
                options.send_ring.unwrap_or_else(|| stack.settings().ring(Buffer::Send)).clamp(16 << 10, MAX_RING),
            )?,
        ];
        // SAFETY: once for each, and the socket with the rings is dropped before the memory, being before it in `State`.
        let [receive, send] = memory.each_mut().map(|lent| SocketBuffer::new(unsafe { lent.bytes() }));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let send_limit = send.capacity();
        let handle = sockets.add(Machine::new(receive, send));
        let mut state = State {
            sockets,
            handle,
            _memory: memory,
            error: None,
            phase: Phase::Closed,
            established: false,
            readable: 0,
            writable: false,
            listener: None,
            shut_read: false,
            shut_write: false,
            orphan: false,
            deadline: None,
            last_call: 0,
            timer: None,
            corked_until: None,
            deferred_until: None,
            peer_mss: DEFAULT_MSS,
            send_limit,
            shift: 0,
            way: route.leaves().then_some((route.interface, route.next_hop)),
            sent: (0, 0),
            options: options.clone(),
            lease: None,
            segments: (0, 0),
            bytes: (0, 0),
            meter: Meter::default(),
            window: PeerWindow::default(),
            clamp: Clamp::default(),
            heard: now().total_micros(),
        };
        state.apply_options(tuple.remote.ip());
        Ok(Arc::new_cyclic(|me| Conn {
            me: me.clone(),
            stack: stack.me.clone(),
            tuple,
            queue,
            mss,
            state: Mutex::new(state),
        }))
    }

    /// Its state, locked.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        #[cfg(test)]
        if let Some(stack) = self.stack.upgrade() {
            stack.tcp.engines.looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        self.state.lock()
    }

    /// Begins to connect.
    pub fn connect(&self, stack: &Stack) -> Result<()> {
        let mut state = self.lock();
        stack.tcp.engines.with(|engine| {
            engine.reseed();
            let (local, remote) = (endpoint(self.tuple.local), endpoint(self.tuple.remote));
            let opened = state.machine().connect(engine.context(), remote, local);
            opened.map_err(|_| Errno::EADDRNOTAVAIL)?;
            state.deadline = Some(later(state.options.connect_timeout()));
            stack.counters().count(Counter::ActiveOpens);
            self.pump(stack, engine, &mut state);
            self.settle(stack, engine, &mut state, None);
            Ok(())
        })
    }

    /// Takes the SYN that a listener got.
    pub fn accept_syn(&self, stack: &Stack, listener: &Arc<Listener>, packet: &Packet<'_>, segment: &Segment) {
        let mut state = self.lock();
        state.listener = Some(Arc::downgrade(listener));
        state.deadline = Some(later(retry_time(stack.settings().get(Number::SynAckRetries))));
        if state.machine().listen(endpoint(self.tuple.local)).is_err() {
            return;
        }
        self.receive(stack, &mut state, packet, segment, true);
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
        self.receive(stack, &mut state, packet, segment, false);
    }

    /// Takes a segment.
    pub fn input(&self, stack: &Stack, packet: &Packet<'_>, segment: &Segment) {
        let mut state = self.lock();
        if state.tcp_phase() == Phase::SynReceived && segment.has(ACK) && !segment.has(RST) {
            // As Linux: the last step of the handshake is ignored while there is no room to accept it.
            let listener = state.listener.as_ref().and_then(Weak::upgrade);
            if listener.is_some_and(|listener| listener.is_full()) {
                stack.counters().count(Ext::ListenOverflows);
                stack.counters().count(Ext::ListenDrops);
                return;
            }
        }
        if state.orphan && segment.len > 0 && matches!(state.tcp_phase(), Phase::FinWait1 | Phase::FinWait2) {
            // Data that nobody will read: RFC 9293, 3.10.7.4 by way of RFC 1122, 4.2.2.13.
            stack.counters().count(Ext::TCPAbortOnData);
            return self.abort_locked(stack, &mut state);
        }
        self.receive(stack, &mut state, packet, segment, false);
    }

    fn receive(&self, stack: &Stack, state: &mut State, packet: &Packet<'_>, segment: &Segment, fresh: bool) {
        let queued = state.unsent();
        let ended = matches!(state.tcp_phase(), Phase::FinWait1 | Phase::LastAck | Phase::Closing);
        let heard = state.window.hear(segment, queued, ended);
        let patched = if segment.has(SYN) {
            Some(self.note_mss(state, packet, segment))
        } else {
            adapted(packet, segment, state.shift, heard.window)
        };
        let bytes = patched.as_deref().unwrap_or(packet.bytes);
        state.segments.0 = state.segments.0.wrapping_add(1);
        // More than one segment in one: acknowledge at once, or a peer whose window is still small waits.
        let at_once = segment.len > usize::from(self.mss.min(state.peer_mss)) || state.options.quick_ack == Some(true);
        state.heard = now().total_micros();
        if segment.has(ACK) {
            state.meter.acknowledged(segment.ack, state.heard);
        }
        if state.options.keep_alive {
            // A probe comes when the peer was silent for that long from now on.
            let idle = smoltcp::time::Duration::from_secs(state.options.keep_idle.into());
            state.machine().set_keep_alive(Some(idle));
        }
        state.machine().set_ack_delay((!at_once).then_some(ACK_DELAY));
        stack.tcp.engines.with(|engine| {
            if fresh {
                engine.reseed();
            }
            let before = state.tcp_phase();
            if engine.receive(&mut state.sockets, bytes) {
                self.flush(stack, engine, state);
            }
            let taken = queued.saturating_sub(state.unsent());
            state.window.taken(taken);
            if state.orphan {
                state.wait_for_peer(stack, taken > 0);
            }
            if heard.opened && state.unsent() > 0 {
                for _ in 0..3 {
                    engine.receive(&mut state.sockets, bytes);
                }
            }
            let reset = (segment.has(RST) && before != state.tcp_phase()).then_some(before);
            if reset == Some(Phase::SynReceived) && state.listener.is_some() {
                stack.counters().count(Ext::EmbryonicRsts);
            }
            self.pump(stack, engine, state);
            self.settle(stack, engine, state, reset.map(reset_error));
        });
    }

    /// Notes the peer's segment size, and makes sure that it is one that our way takes.
    fn note_mss(&self, state: &mut State, packet: &Packet<'_>, segment: &Segment) -> Vec<u8> {
        let mut bytes = packet.bytes.to_vec();
        let start = packet.header_len();
        let header = bytes.get_mut(start..start + segment.header_len).unwrap_or_default();
        if let Some(option) = mss_option(header) {
            let theirs = u16::from_be_bytes(*option);
            // smoltcp takes 0 for no option, and no less than 48.
            let usable = if theirs == 0 { DEFAULT_MSS } else { theirs.max(48) }.min(self.mss.max(48));
            *option = usable.to_be_bytes();
            if matches!(state.tcp_phase(), Phase::Listen | Phase::SynSent) {
                state.peer_mss = usable;
            }
        }
        bytes
    }

    /// Sends whatever may be sent.
    fn pump(&self, stack: &Stack, engine: &mut Engine, state: &mut State) {
        // A TIME_WAIT has nothing to say but the acknowledgement of the peer's end, after which smoltcp would in time
        // throw away what was not read yet.
        if state.phase == Phase::TimeWait && state.tcp_phase() == Phase::TimeWait {
            return;
        }
        state.set_timeout();
        while engine.transmit(&mut state.sockets) {
            self.flush(stack, engine, state);
        }
        if state.window.is_closed() {
            // How long an answer may take counts from the probe that was just sent.
            state.set_timeout();
        }
    }

    /// Sends the segment in the engine's frame.
    fn flush(&self, stack: &Stack, engine: &mut Engine, state: &mut State) {
        let bytes = engine.frame.packet_mut();
        let start = if self.tuple.remote.is_ipv4() { 20 } else { 40 };
        if state.shift != 0
            && let Some(seq) = bytes.get_mut(start + 4..).and_then(|rest| rest.first_chunk_mut::<4>())
        {
            *seq = u32::from_be_bytes(*seq).wrapping_add(state.shift).to_be_bytes();
        }
        let Some(segment) = bytes.get(start..).and_then(Segment::parse) else { return };
        state.segments.1 = state.segments.1.wrapping_add(1);
        if segment.flags & (SYN | RST) != RST {
            state.sent = (segment.end(), segment.ack);
        }
        let resent = state.meter.resent_segments;
        let micros = now().total_micros();
        state.meter.sending(&segment, micros);
        state.window.sending(&segment, micros);
        self.count_sent(stack, state, &segment, bytes.len(), state.meter.resent_segments != resent);
        state.clamp.apply(&mut bytes[start..], &segment, state.options.window_clamp);
        packet::set_tos(bytes, state.options.ip.tos(self.tuple.remote.ip()));
        if start == 20 && !state.options.ip.dont_fragment(self.tuple.remote.ip()) {
            packet::allow_fragments(bytes);
        }
        if start == 20 {
            packet::fill_ipv4_checksum(bytes);
        }
        if segment.has(SYN)
            && let Some(option) = mss_option(&mut bytes[start..start + segment.header_len])
        {
            *option = self.mss.to_be_bytes();
        }
        let len = bytes.len() - start;
        let sum = vnet::pseudo_header(self.tuple.local.ip().into(), self.tuple.remote.ip().into(), TCP, len);
        bytes[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
        let size = usize::from(state.peer_mss) + 20 - segment.header_len;
        let offload = Offload {
            partial: Some(Partial { start: start as u16, offset: 16 }),
            segmentation: (segment.len > size).then_some(Segmentation {
                v6: start == 40,
                size: size as u16,
                headers: (start + segment.header_len) as u16,
            }),
            ..Offload::default()
        };
        if let Some((interface, next_hop)) = state.way {
            stack.transmit(&mut engine.frame, interface, next_hop, offload);
        }
    }

    /// Counts a segment, which the device may cut into several.
    fn count_sent(&self, stack: &Stack, state: &State, segment: &Segment, len: usize, again: bool) {
        let (counters, v6) = (stack.counters(), self.tuple.remote.is_ipv6());
        counters.count(Ip::OutRequests.of(v6));
        counters.count(Ip::OutTransmits.of(v6));
        counters.add(Ip::OutOctets.of(v6), len as u64);
        let pieces = segment.len.div_ceil(usize::from(state.peer_mss).max(1)).max(1) as u64;
        counters.add(if again { Counter::RetransSegs } else { Counter::OutSegs }, pieces);
        if segment.has(RST) {
            counters.count(Counter::OutRsts);
        }
    }

    /// Draws the conclusions from what has changed. `error` is what a reset meant.
    fn settle(&self, stack: &Stack, engine: &mut Engine, state: &mut State, error: Option<Errno>) {
        let phase = state.tcp_phase();
        let before = std::mem::replace(&mut state.phase, phase);
        let mut events = Events::empty();
        if before != phase {
            self.count_change(stack, before, phase);
            events = self.phase_changed(stack, state, before, error);
        }
        let (readable, writable) = (state.readable(), state.is_writable());
        if readable > state.readable {
            events |= Events::READ;
            state.bytes.0 += (readable - state.readable) as u64;
        }
        if writable && !state.writable {
            events |= Events::WRITE;
        }
        (state.readable, state.writable) = (readable, writable);
        self.offer(state);
        if !events.is_empty() {
            self.queue.wake(events);
        }
        self.arm(stack, engine, state);
    }

    fn count_change(&self, stack: &Stack, before: Phase, phase: Phase) {
        let is_current = |phase| matches!(phase, Phase::Established | Phase::CloseWait);
        match (is_current(before), is_current(phase)) {
            (false, true) => stack.counters().count(Counter::CurrEstab),
            (true, false) => stack.counters().less(Counter::CurrEstab),
            _ => {}
        }
        if is_current(before) && phase == Phase::Closed {
            stack.counters().count(Counter::EstabResets);
        }
    }

    fn phase_changed(&self, stack: &Stack, state: &mut State, before: Phase, error: Option<Errno>) -> Events {
        let phase = state.phase;
        if !state.established && !matches!(phase, Phase::Closed | Phase::Listen | Phase::SynSent | Phase::SynReceived) {
            state.established = true;
            state.deadline = None;
            if state.listener.is_some() {
                stack.counters().count(Counter::PassiveOpens);
            }
        }
        match phase {
            Phase::Closed | Phase::Listen => {
                // smoltcp turns a refused handshake back to listening; here the listener is somebody else.
                if phase == Phase::Listen && before == Phase::Closed {
                    return Events::empty();
                }
                let timed_out = (!state.orphan && before != Phase::LastAck && before != Phase::TimeWait)
                    .then_some(Errno::ETIMEDOUT);
                state.error = state.error.or(error).or(timed_out);
                self.gone(stack, state);
                ALL
            }
            Phase::TimeWait if state.orphan => {
                stack.tcp.begin_time_wait(stack, self, state.sent);
                self.gone(stack, state);
                ALL
            }
            Phase::CloseWait | Phase::Closing | Phase::TimeWait => ALL,
            Phase::Established => Events::WRITE,
            // Whoever lingers waits for that.
            Phase::FinWait2 if !state.orphan => Events::HUP,
            Phase::FinWait2 if state.orphan => {
                // Without `TCP_LINGER2`'s wait the timer, due at once, ends it.
                let patience = state.options.linger2.unwrap_or_default();
                state.deadline = Some(later(patience));
                ALL
            }
            _ => Events::empty(),
        }
    }

    /// Hands an established connection to its listener.
    fn offer(&self, state: &mut State) {
        if !state.established || state.listener.is_none() {
            return;
        }
        if state.options.defer_accept && state.readable == 0 && !state.finished_reading() {
            let patience = Duration::from_secs(u64::try_from(state.options.defer_seconds).unwrap_or(0));
            if now().total_micros() < *state.deferred_until.get_or_insert_with(|| later(patience)) {
                return; // the timer looks again
            }
        }
        state.deferred_until = None;
        let listener = state.listener.take().and_then(|listener| listener.upgrade());
        let waits = match (listener, self.me.upgrade()) {
            (Some(listener), Some(me)) => listener.established(me),
            _ => false,
        };
        if !waits {
            // Nobody will ever accept it: the timer, due at once, resets it.
            (state.orphan, state.deadline) = (true, Some(0));
        }
    }

    /// It is no longer in the table of connections, and its timer is of no use.
    pub fn gone(&self, stack: &Stack, state: &mut State) {
        if stack.tcp.forget(self) && !state.established {
            stack.counters().count(Counter::AttemptFails);
        }
        if let Some(listener) = state.listener.take().and_then(|listener| listener.upgrade()) {
            listener.failed();
        }
        state.deadline = None;
        state.timer.take().map(|timer| stack.timers.cancel(timer));
        if state.orphan {
            state.lease = None;
        }
    }

    /// Makes sure that the timer comes in time. One that comes too early costs less than arming it anew with each packet.
    fn arm(&self, stack: &Stack, engine: &mut Engine, state: &mut State) {
        let wanted = match state.phase {
            Phase::TimeWait | Phase::Closed | Phase::Listen => None,
            _ => engine.poll_at(&state.sockets).map(|at| at.total_micros()),
        };
        let wanted = [wanted, state.deadline, state.corked_until, state.deferred_until].into_iter().flatten().min();
        let Some(wanted) = wanted.map(|micros| u64::try_from(micros).unwrap_or(0) * 1000) else { return };
        if state.timer.is_some_and(|timer| timer.deadline() <= wanted) {
            return;
        }
        let Some(me) = self.me.upgrade() else { return };
        let timer = stack.timers.add(wanted, me);
        if let Some(late) = state.timer.replace(timer) {
            stack.timers.cancel(late);
        }
    }

    /// Gives the connection up with `error`, without a word to the peer.
    pub fn fail(&self, error: Errno) {
        let Some(stack) = self.stack.upgrade() else { return };
        let mut state = self.lock();
        if state.established || state.tcp_phase() == Phase::Closed {
            return;
        }
        state.error = Some(error);
        state.machine().abort();
        state.phase = Phase::Closed;
        self.gone(&stack, &mut state);
        self.queue.wake(ALL);
    }

    pub fn abort_locked(&self, stack: &Stack, state: &mut State) {
        state.machine().abort();
        stack.tcp.engines.with(|engine| {
            self.pump(stack, engine, state);
            self.settle(stack, engine, state, Some(Errno::ECONNRESET));
        });
    }

    /// Takes the socket's options as they are now.
    pub fn set_options(&self, options: TcpOptions) {
        let mut state = self.lock();
        if options.ip.device != state.options.ip.device
            && let Some(stack) = self.stack.upgrade()
        {
            let route = stack.interfaces().route_by(self.tuple.remote.ip(), options.ip.device);
            state.way = route.ok().filter(|route| route.leaves()).map(|route| (route.interface, route.next_hop));
        }
        state.options = options;
        self.step(&mut state, |state| state.apply_options(self.tuple.remote.ip()));
    }

    /// Runs a step of the user's and what follows from it.
    pub fn step<R>(&self, state: &mut State, work: impl FnOnce(&mut State) -> R) -> R {
        let result = work(state);
        if let Some(stack) = self.stack.upgrade() {
            stack.tcp.engines.with(|engine| {
                self.pump(&stack, engine, state);
                self.settle(&stack, engine, state, None);
            });
        }
        result
    }
}

impl State {
    /// Hands the options that smoltcp knows to it.
    pub fn apply_options(&mut self, remote: IpAddr) {
        let options = self.options.clone();
        let machine = self.machine();
        machine.set_nagle_enabled(!options.no_delay);
        machine.set_hop_limit(Some(options.ip.hops(remote).max(1)));
        if machine.congestion_control() != options.congestion {
            machine.set_congestion_control(options.congestion);
        }
        let idle = options.keep_alive.then(|| smoltcp::time::Duration::from_secs(options.keep_idle.into()));
        machine.set_keep_alive(idle);
        if let Some(limit) = options.send_ring {
            self.send_limit = limit;
        }
    }

    /// A closed connection goes on as long as its peer takes something, now and then: as Linux does, which counts retries in a
    /// row. A peer without room may say so for a while.
    pub fn wait_for_peer(&mut self, stack: &Stack, moved: bool) {
        if !matches!(self.tcp_phase(), Phase::FinWait1 | Phase::Closing | Phase::LastAck) {
            return;
        }
        let patience = stack.settings().orphan_timeout();
        if moved {
            self.last_call = later(patience * PATIENCE_WITHOUT_ROOM);
        }
        if moved || self.window.is_closed() {
            self.deadline = Some(later(patience).min(self.last_call));
        }
    }

    /// Data that stays unacknowledged, or a silent peer with `SO_KEEPALIVE`, ends the connection. smoltcp's limit counts
    /// for idle connections too, so it is there only when it is meant.
    fn set_timeout(&mut self) {
        let options = &self.options;
        let dead = Duration::from_secs(
            u64::from(options.keep_idle) + u64::from(options.keep_interval) * u64::from(options.keep_count),
        );
        let dead = options.user_timeout.map_or(dead, |limit| limit.max(Duration::from_secs(options.keep_idle.into())));
        // Unanswered probes follow each other faster than the first follows the peer's last word.
        let silent = now().total_micros().saturating_sub(self.heard);
        let probing = options.keep_alive && silent >= i64::from(options.keep_idle) * 1_000_000;
        let interval = smoltcp::time::Duration::from_secs(options.keep_interval.into());
        let limit = if self.view().send_queue() > 0 {
            self.window.patience(options, self.heard)
        } else {
            options.keep_alive.then_some(dead)
        };
        let limit = limit.map(|limit| smoltcp::time::Duration::from_micros(limit.as_micros() as u64));
        if probing {
            self.machine().set_keep_alive(Some(interval));
        }
        self.machine().set_timeout(limit);
    }
}

impl TimerTarget for Conn {
    fn expired(&self, id: TimerId) {
        let Some(stack) = self.stack.upgrade() else { return };
        let mut state = self.lock();
        if state.timer == Some(id) {
            state.timer = None;
        }
        let micros = now().total_micros();
        if state.corked_until.is_some_and(|until| until <= micros) {
            state.corked_until = None;
        }
        if state.deadline.is_some_and(|deadline| deadline <= micros) {
            state.deadline = None;
            if !state.established {
                state.error = Some(Errno::ETIMEDOUT);
                state.phase = Phase::Closed;
                state.machine().abort();
                self.gone(&stack, &mut state);
                self.queue.wake(ALL);
            } else if state.phase == Phase::FinWait2 && state.options.linger2.is_some() {
                state.phase = Phase::Closed;
                stack.tcp.begin_time_wait(&stack, self, state.sent);
                self.gone(&stack, &mut state);
            } else {
                self.abort_locked(&stack, &mut state);
            }
            return;
        }
        let resent = state.meter.resent_segments;
        let (limit, before) = (state.unsent(), state.tcp_phase());
        self.step(&mut state, |_| ());
        if state.meter.resent_segments != resent {
            stack.counters().count(Ext::TCPTimeouts);
        }
        if limit > 0 && before != Phase::Closed && state.tcp_phase() == Phase::Closed {
            stack.counters().count(Ext::TCPAbortOnTimeout);
        }
    }
}

/// What a reset means to the user: `tcp_reset` of Linux.
fn reset_error(phase: Phase) -> Errno {
    match phase {
        Phase::SynSent => Errno::ECONNREFUSED,
        Phase::CloseWait => Errno::EPIPE,
        _ => Errno::ECONNRESET,
    }
}

fn endpoint(addr: SocketAddr) -> IpEndpoint {
    IpEndpoint::new(addr.ip().into(), addr.port())
}

/// Microseconds of the monotonic clock.
pub fn later(after: Duration) -> i64 {
    now().total_micros().saturating_add(after.as_micros() as i64)
}
