//! Who gets a segment: connections by both ends, listeners by port, and connections that are over but linger.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::conn::{Conn, Tuple};
use super::cookie::Cookies;
use super::engine::Engines;
use super::listen::Listener;
use super::options::tcp_state;
use super::segment::{ACK, RST, SYN, Segment};
use crate::errno::Errno;
use crate::netstack::stack::Stack;
use crate::netstack::stack::counters::{Ext, Tcp as Counter};
use crate::netstack::stack::packet::{Header, Packet, TCP};
use crate::netstack::stack::settings::Buffer;
use crate::timer::clock::monotonic;
use crate::timer::{TimerId, TimerTarget};

/// How long the ends of a connection that is over are not used again: `TCP_TIMEWAIT_LEN`.
const TIME_WAIT: Duration = Duration::from_secs(60);
/// `/proc/sys/net/ipv4/tcp_max_tw_buckets`.
const MAX_TIME_WAIT: usize = 16_384;

/// What is known of a pair of ends.
#[derive(Clone)]
pub enum Flow {
    /// A connection over the wire.
    Wire(Arc<Conn>),
    /// A connection within this host.
    Local,
    /// It is over: next sequence numbers, ours and the peer's.
    TimeWait(u32, u32),
}

#[derive(Default)]
struct Lingering {
    /// In the order of their end.
    queue: VecDeque<(Instant, Tuple)>,
    has_timer: bool,
}

/// TCP's tables. All locks are leaves.
#[derive(Default)]
pub struct Tables {
    /// State machines.
    pub engines: Engines,
    flows: RwLock<HashMap<Tuple, Flow>>,
    listeners: RwLock<HashMap<u16, Vec<Arc<Listener>>>>,
    lingering: Mutex<Lingering>,
    hasher: RandomState,
    /// SYN cookies.
    pub cookies: Cookies,
}

impl Tables {
    /// What is known of these ends.
    pub fn find(&self, tuple: &Tuple) -> Option<Flow> {
        self.flows.read().get(tuple).cloned()
    }

    /// Whether these ends are in use.
    pub fn is_used(&self, tuple: &Tuple) -> bool {
        self.flows.read().contains_key(tuple)
    }

    /// Enters a connection. Whether its ends were not in use.
    pub fn remember(&self, conn: &Arc<Conn>) -> bool {
        self.enter(conn.tuple, Flow::Wire(conn.clone()))
    }

    /// Enters a connection within this host. Whether its ends were not in use.
    pub fn remember_local(&self, tuple: Tuple) -> bool {
        self.enter(tuple, Flow::Local)
    }

    fn enter(&self, tuple: Tuple, flow: Flow) -> bool {
        match self.flows.write().entry(tuple) {
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(flow);
                true
            }
        }
    }

    /// A connection is over. Whether it was known until now.
    pub fn forget(&self, conn: &Conn) -> bool {
        let mut flows = self.flows.write();
        let own = matches!(flows.get(&conn.tuple), Some(Flow::Wire(known)) if std::ptr::eq(&**known, conn));
        let gone = if own { flows.remove(&conn.tuple) } else { None };
        drop(flows);
        gone.is_some()
    }

    /// A connection within this host is over.
    pub fn forget_local(&self, tuple: &Tuple) {
        let mut flows = self.flows.write();
        if matches!(flows.get(tuple), Some(Flow::Local)) {
            flows.remove(tuple);
        }
    }

    /// A connection's user is done with it, and its peer may not know yet.
    pub fn begin_time_wait(&self, stack: &Stack, conn: &Conn, (seq, ack): (u32, u32)) {
        let gone = self.flows.write().insert(conn.tuple, Flow::TimeWait(seq, ack));
        drop(gone);
        let mut lingering = self.lingering.lock();
        lingering.queue.push_back((Instant::now() + TIME_WAIT, conn.tuple));
        let over = (lingering.queue.len() > MAX_TIME_WAIT).then(|| lingering.queue.pop_front()).flatten();
        let arm = !std::mem::replace(&mut lingering.has_timer, true);
        drop(lingering);
        if let Some((_, tuple)) = over {
            self.end_time_wait(&tuple);
        }
        if arm {
            stack.timers.add(monotonic() + TIME_WAIT.as_nanos() as u64, Arc::new(TimeWaitTimer(stack.me.clone())));
        }
    }

    fn end_time_wait(&self, tuple: &Tuple) {
        let mut flows = self.flows.write();
        if matches!(flows.get(tuple), Some(Flow::TimeWait(..))) {
            flows.remove(tuple);
        }
    }

    /// Enters a listener.
    pub fn listen(&self, listener: &Arc<Listener>) {
        self.listeners.write().entry(listener.port).or_default().push(listener.clone());
    }

    /// Removes a listener.
    pub fn stop_listening(&self, listener: &Arc<Listener>) {
        let mut listeners = self.listeners.write();
        if let Some(all) = listeners.get_mut(&listener.port) {
            all.retain(|known| !Arc::ptr_eq(known, listener));
            if all.is_empty() {
                listeners.remove(&listener.port);
            }
        }
    }

    /// The listener for a connection that comes by `interface`. Of several with `SO_REUSEPORT` each gets its share.
    pub fn listener(&self, tuple: &Tuple, interface: u32) -> Option<Arc<Listener>> {
        let listeners = self.listeners.read();
        let all = listeners.get(&tuple.local.port())?;
        let best = all.iter().map(|listener| listener.suits(tuple.local, interface)).max().filter(|&best| best > 0)?;
        let suitable = || all.iter().filter(|listener| listener.suits(tuple.local, interface) == best);
        let count = suitable().count();
        let nth = if count > 1 { self.hasher.hash_one(tuple) as usize % count } else { 0 };
        suitable().nth(nth).cloned()
    }

    /// Connections and listeners now.
    fn snapshot(&self) -> (Vec<(Tuple, Flow)>, Vec<Arc<Listener>>) {
        let flows = self.flows.read().iter().map(|(tuple, flow)| (*tuple, flow.clone())).collect();
        let listeners = self.listeners.read().values().flatten().cloned().collect();
        (flows, listeners)
    }
}

/// A line of `/proc/net/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Our end.
    pub local: SocketAddr,
    /// The peer's; unspecified for a listener.
    pub remote: SocketAddr,
    /// `TCP_ESTABLISHED` (1) and others, `tcp_states.h`.
    pub state: u8,
    /// Bytes not acknowledged.
    pub sending: usize,
    /// Bytes to be read; of a listener, connections to be accepted.
    pub receiving: usize,
}

/// Every connection and listener now. Takes time in the number of them.
pub fn rows(stack: &Stack) -> Vec<Row> {
    let (flows, listeners) = stack.tcp.snapshot();
    let mut rows: Vec<Row> = Vec::with_capacity(flows.len() + listeners.len());
    for listener in listeners {
        let v6 = listener.binding.v6;
        let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let local = SocketAddr::new(listener.binding.addr.unwrap_or(any), listener.port);
        let remote = SocketAddr::new(if local.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { any }, 0);
        rows.push(Row { local, remote, state: 10, sending: 0, receiving: listener.waiting().0 });
    }
    for (Tuple { local, remote }, flow) in flows {
        let (state, sending, receiving) = match flow {
            Flow::Wire(conn) => {
                let state = conn.lock();
                (tcp_state(state.tcp_phase()), state.unsent(), state.readable())
            }
            // Ends within this host are seen from the one that connected.
            Flow::Local => (1, 0, 0),
            Flow::TimeWait(..) => (6, 0, 0),
        };
        rows.push(Row { local, remote, state, sending, receiving });
    }
    rows
}

struct TimeWaitTimer(Weak<Stack>);

impl TimerTarget for TimeWaitTimer {
    fn expired(&self, _id: TimerId) {
        let Some(stack) = self.0.upgrade() else { return };
        let tables = &stack.tcp;
        let now = Instant::now();
        let mut over = Vec::new();
        let next = {
            let mut lingering = tables.lingering.lock();
            while lingering.queue.front().is_some_and(|(end, _)| *end <= now) {
                over.extend(lingering.queue.pop_front().map(|(_, tuple)| tuple));
            }
            let next = lingering.queue.front().map(|(end, _)| *end - now);
            lingering.has_timer = next.is_some();
            next
        };
        over.iter().for_each(|tuple| tables.end_time_wait(tuple));
        stack.counters().add(Ext::TW, over.len() as u64);
        if let Some(next) = next {
            // A second's worth at a time.
            let next = next.max(Duration::from_secs(1)).as_nanos() as u64;
            stack.timers.add(monotonic() + next, Arc::new(TimeWaitTimer(self.0.clone())));
        }
    }
}

/// Takes a TCP packet that came by `interface`, its checksum verified.
pub fn input(stack: &Stack, packet: &Packet<'_>, interface: u32) {
    stack.counters().count(Counter::InSegs);
    let Some(segment) = Segment::parse(packet.payload) else { return stack.counters().count(Counter::InErrs) };
    // Neither a group nor nobody is an end of a connection: RFC 9293, 3.9.2.3.
    let source = packet.source;
    if source.is_unspecified()
        || stack.interfaces().is_broadcast(source)
        || !stack.interfaces().is_local(packet.destination)
    {
        return;
    }
    let tuple =
        Tuple { local: (packet.destination, segment.destination).into(), remote: (source, segment.source).into() };
    match stack.tcp.find(&tuple) {
        Some(Flow::Wire(conn)) => conn.input(stack, packet, &segment),
        Some(Flow::TimeWait(seq, ack)) => input_time_wait(stack, &tuple, packet, &segment, (seq, ack), interface),
        Some(Flow::Local) | None => input_unknown(stack, tuple, packet, &segment, interface),
    }
}

/// A segment of a connection that is over: RFC 9293, 3.10.7.4; RFC 6191 for a new one in its place.
fn input_time_wait(
    stack: &Stack,
    tuple: &Tuple,
    packet: &Packet<'_>,
    segment: &Segment,
    (seq, ack): (u32, u32),
    interface: u32,
) {
    let newer = segment.seq.wrapping_sub(ack) as i32 >= 0;
    if segment.has(SYN) && !segment.has(ACK) && newer {
        stack.tcp.end_time_wait(tuple);
        input_unknown(stack, *tuple, packet, segment, interface);
    } else if !segment.has(RST) && (segment.len > 0 || segment.end() != segment.seq) {
        reply(stack, packet, segment, seq, ack, ACK);
    }
}

fn input_unknown(stack: &Stack, tuple: Tuple, packet: &Packet<'_>, segment: &Segment, interface: u32) {
    if segment.has(RST) {
        return;
    }
    if segment.has(SYN)
        && !segment.has(ACK)
        && let Some(listener) = stack.tcp.listener(&tuple, interface)
    {
        return listener.syn(stack, tuple, packet, segment);
    }
    if segment.has(ACK)
        && !segment.has(SYN)
        && let Some(listener) = stack.tcp.listener(&tuple, interface)
        && listener.cookie(stack, tuple, packet, segment)
    {
        return;
    }
    // RFC 9293, 3.10.7.1.
    if segment.has(ACK) {
        reply(stack, packet, segment, segment.ack, 0, RST);
    } else {
        reply(stack, packet, segment, 0, segment.end(), RST | ACK);
    }
}

/// Answers with a bare header.
fn reply(stack: &Stack, packet: &Packet<'_>, segment: &Segment, seq: u32, ack: u32, flags: u8) {
    send_header(stack, packet, segment, (seq, ack), flags, None);
}

/// Answers a SYN with the sequence number `seq`, the segment size of the interface and a window that needs no scaling.
pub fn answer_syn(stack: &Stack, packet: &Packet<'_>, segment: &Segment, seq: u32) {
    let window = stack.settings().ring(Buffer::Receive).min(usize::from(u16::MAX)) as u16;
    send_header(stack, packet, segment, (seq, segment.seq.wrapping_add(1)), SYN | ACK, Some(window));
}

/// Answers with a header and, when there is a `window`, with an option that tells the segment size.
fn send_header(
    stack: &Stack,
    packet: &Packet<'_>,
    segment: &Segment,
    (seq, ack): (u32, u32),
    flags: u8,
    window: Option<u16>,
) {
    let Ok(route) = stack.interfaces().route(packet.source) else { return };
    let header = Header {
        source: packet.destination,
        destination: packet.source,
        protocol: TCP,
        ttl: stack.default_hops(packet.source.is_ipv6()),
        tos: 0,
        id: 0,
        whole: false,
    };
    let mtu = stack.interfaces().get(route.interface).map_or(1500, |interface| interface.mtu as usize);
    let mss = u16::try_from(mtu.saturating_sub(header.size() + 20)).unwrap_or(u16::MAX);
    let len = if window.is_some() { 24 } else { 20 };
    let fill = |to: &mut [u8]| {
        to.fill(0);
        to[..2].copy_from_slice(&segment.destination.to_be_bytes());
        to[2..4].copy_from_slice(&segment.source.to_be_bytes());
        to[4..8].copy_from_slice(&seq.to_be_bytes());
        to[8..12].copy_from_slice(&ack.to_be_bytes());
        (to[12], to[13]) = ((to.len() as u8 / 4) << 4, flags);
        if let Some(window) = window {
            to[14..16].copy_from_slice(&window.to_be_bytes());
            to[20..22].copy_from_slice(&[2, 4]);
            to[22..24].copy_from_slice(&mss.to_be_bytes());
        }
        Ok(())
    };
    if stack.send_packet(&route, &header, len, Some(16), fill).is_ok() {
        stack.counters().count(Counter::OutSegs);
        if flags & RST != 0 {
            stack.counters().count(Counter::OutRsts);
        }
    }
}

/// A segment of ours did not arrive: matters while connecting only, RFC 5927.
pub fn unreachable(stack: &Stack, local: SocketAddr, remote: SocketAddr, error: Errno) {
    if let Some(Flow::Wire(conn)) = stack.tcp.find(&Tuple { local, remote }) {
        conn.fail(error);
    }
}
