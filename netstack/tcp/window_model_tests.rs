//! smoltcp with [`PeerWindow`] before it, on a clock of the test's own, and a peer that takes its window back and loses what
//! it says: whatever they did to each other, bytes and end arrive once the peer only answers.

use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket as Machine, SocketBuffer, State as Phase};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpEndpoint};

use super::adapt::adapted;
use super::segment::{ACK, FIN, SYN, Segment};
use super::window::PeerWindow;
use crate::netstack::stack::packet::{Header, Packet, TCP, fill_ipv4_checksum};
use crate::netstack::testing::pattern;

/// What is given to smoltcp, and what it gives.
#[derive(Default)]
struct Line {
    to: Option<Vec<u8>>,
    from: Vec<u8>,
}

impl Device for Line {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: Instant) -> Option<(In, Out<'_>)> {
        self.to.take().map(|bytes| (In(bytes), Out(&mut self.from)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Out<'_>> {
        Some(Out(&mut self.from))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        (capabilities.medium, capabilities.max_transmission_unit) = (Medium::Ip, 1500);
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

struct In(Vec<u8>);

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Out<'a>(&'a mut Vec<u8>);

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.resize(len, 0);
        f(self.0)
    }
}

/// What the peer is like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// It loses what it gets and says, and its window does as it likes.
    Mean,
    /// It loses nothing, and has the room that it was given.
    Exact,
    /// It loses nothing, and always has room.
    Kind,
}

/// A connection from 10.0.0.2 to a peer.
struct Model {
    random: u64,
    clock: i64,
    line: Line,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    window: PeerWindow,
    written: usize,
    shut: bool,
    /// The first byte's sequence number.
    start: u32,
    taken: Vec<u8>,
    /// The peer has our end, we have its.
    ended: (bool, bool),
    room: usize,
    said: VecDeque<(u8, u32, u16)>,
    mood: Mood,
    scale: u8,
}

impl Model {
    fn new(seed: u64) -> Model {
        let mut line = Line::default();
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut line, Instant::ZERO);
        interface.set_any_ip(true);
        let ring = || SocketBuffer::new(vec![0; 4096]);
        let mut machine = Machine::new(ring(), ring());
        machine.set_ack_delay(None);
        machine.set_nagle_enabled(seed & 1 == 0);
        let address = |host, port| IpEndpoint::new(std::net::IpAddr::from([10, 0, 0, host]).into(), port);
        machine.connect(interface.context(), address(1, 80), address(2, 1000)).unwrap();
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(machine);
        let mut model = Model {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            clock: 0,
            line,
            interface,
            sockets,
            handle,
            window: PeerWindow::default(),
            written: 0,
            shut: false,
            start: 0,
            taken: vec![],
            ended: (false, false),
            room: 600,
            said: VecDeque::new(),
            mood: Mood::Kind,
            scale: (seed % 3 * 2) as u8,
        };
        model.run();
        assert_eq!(model.machine().state(), Phase::Established);
        model
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 16) % bound as u64) as usize
    }

    fn machine(&mut self) -> &mut Machine<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Lets both sides talk until each waits for something.
    fn run(&mut self) {
        for turn in 0.. {
            assert!(turn < 1000, "they go on and on");
            self.line.from.clear();
            if let Some(said) = self.said.pop_front() {
                let (bytes, opened) = self.heard(said);
                let queued = self.machine().send_queue();
                self.give(bytes.clone());
                let left = self.machine().send_queue();
                self.window.taken(queued - left);
                if opened && self.machine().send_queue() > 0 {
                    (0..3).for_each(|_| self.give(bytes.clone()));
                }
            } else {
                let now = Instant::from_micros(self.clock);
                self.interface.poll_egress(now, &mut self.line, &mut self.sockets);
                if self.line.from.is_empty() {
                    return;
                }
            }
            let mut sent = std::mem::take(&mut self.line.from);
            if sent.is_empty() {
                continue;
            }
            fill_ipv4_checksum(&mut sent);
            let packet = Packet::parse(&sent).unwrap();
            let segment = Segment::parse(packet.payload).unwrap();
            self.window.sending(&segment, self.clock);
            if self.mood != Mood::Mean || self.below(4) > 0 {
                self.take(&segment, &packet.payload[segment.header_len..]);
            }
        }
    }

    /// Gives smoltcp a packet.
    fn give(&mut self, bytes: Vec<u8>) {
        self.line.to = Some(bytes);
        self.interface.poll_ingress_single(Instant::from_micros(self.clock), &mut self.line, &mut self.sockets);
    }

    /// What the peer said, as smoltcp hears it, and whether more than once.
    fn heard(&mut self, (flags, ack, window): (u8, u32, u16)) -> (Vec<u8>, bool) {
        let addresses = [[10, 0, 0, 1], [10, 0, 0, 2]].map(std::net::IpAddr::from);
        let [source, destination] = addresses;
        let header = Header { source, destination, protocol: TCP, ttl: 64, tos: 0, id: 0, whole: false };
        let options: &[u8] = if flags & SYN != 0 { &[1, 3, 3, self.scale] } else { &[] };
        let mut bytes = vec![0; 40 + options.len()];
        header.write(&mut bytes);
        bytes[20..24].copy_from_slice(&[0, 80, 3, 232]);
        let seq = if flags & SYN != 0 { 0 } else { 1 + u32::from(self.ended.1 && flags & FIN == 0) };
        bytes[24..28].copy_from_slice(&seq.to_be_bytes());
        bytes[28..32].copy_from_slice(&ack.to_be_bytes());
        (bytes[32], bytes[33]) = ((5 + options.len() as u8 / 4) << 4, flags);
        bytes[34..36].copy_from_slice(&window.to_be_bytes());
        bytes[40..].copy_from_slice(options);
        let packet = Packet::parse(&bytes).unwrap();
        let segment = Segment::parse(packet.payload).unwrap();
        let ended = matches!(self.machine().state(), Phase::FinWait1 | Phase::LastAck | Phase::Closing);
        let queued = self.machine().send_queue();
        let heard = self.window.hear(&segment, queued, ended);
        (adapted(&packet, &segment, 0, heard.window).unwrap_or(bytes), heard.opened)
    }

    /// The peer gets a segment.
    fn take(&mut self, segment: &Segment, bytes: &[u8]) {
        if segment.has(SYN) {
            self.start = segment.end();
            return self.say(SYN | ACK, false);
        }
        let at = segment.seq.wrapping_sub(self.start) as i32 as isize;
        let here = self.taken.len() as isize;
        let room = self.room >> self.scale << self.scale;
        if at <= here && !self.ended.0 {
            let fresh = bytes.get((here - at) as usize..).unwrap_or_default();
            let fits = fresh.len().min(room);
            self.taken.extend_from_slice(&fresh[..fits]);
            self.room -= fits;
            let all = at + bytes.len() as isize <= self.taken.len() as isize;
            self.ended.0 = segment.has(FIN) && all && room > 0;
        }
        let expected = (at - here) as usize <= room.saturating_sub(1) || at == here;
        if !bytes.is_empty() || segment.has(FIN) || !expected {
            self.say(ACK, true);
        }
    }

    /// The peer says what it has; that may be lost.
    fn say(&mut self, flags: u8, may_change: bool) {
        if self.mood == Mood::Kind {
            self.room = 2000;
        } else if self.mood == Mood::Mean && may_change && self.below(3) == 0 {
            self.room = [0, 0, 3, 20, 700][self.below(5)];
        }
        let shift = if flags & SYN == 0 { self.scale } else { 0 };
        let ack = self.start.wrapping_add(self.taken.len() as u32 + u32::from(self.ended.0));
        let said = (flags, ack, (self.room >> shift) as u16);
        if self.mood != Mood::Mean || self.below(4) > 0 {
            self.said.push_back(said);
        }
    }

    /// Hands smoltcp as much as it takes of `len` more bytes.
    fn write(&mut self, len: usize) {
        let (bytes, from) = (pattern(self.written + len), self.written);
        self.written += self.machine().send_slice(&bytes[from..]).unwrap();
    }

    fn step(&mut self) {
        match self.below(8) {
            0..3 => {
                let len = [1, 20, 300, 1500][self.below(4)];
                if self.machine().may_send() {
                    self.write(len);
                }
            }
            3 | 4 => self.say(ACK, true),
            5 if self.below(10) == 0 => {
                self.machine().close();
                self.shut = true;
            }
            6 if self.below(10) == 0 && !self.ended.1 => {
                self.ended.1 = true;
                let said = self.start.wrapping_add(self.taken.len() as u32 + u32::from(self.ended.0));
                self.said.push_back((FIN | ACK, said, (self.room >> self.scale) as u16));
            }
            _ => self.wait(),
        }
        self.run();
    }

    fn wait(&mut self) {
        let at = self.interface.poll_at(Instant::from_micros(self.clock), &self.sockets);
        self.clock = at.map_or(self.clock, |at| self.clock.max(at.total_micros()));
    }

    fn is_done(&mut self) -> bool {
        let phase = self.machine().state();
        let end = matches!(phase, Phase::FinWait2 | Phase::TimeWait | Phase::Closed);
        self.machine().send_queue() == 0 && (!self.shut || end)
    }

    /// From now on the peer is kind, but speaks only when it is spoken to.
    fn finish(mut self, seed: u64) {
        (self.mood, self.room) = (Mood::Kind, 2000);
        self.said.clear();
        let end = self.clock + 600_000_000;
        while !self.is_done() {
            let before = self.clock;
            self.wait();
            self.run();
            let phase = self.machine().state();
            let queued = self.machine().send_queue();
            let at = self.interface.poll_at(Instant::from_micros(self.clock), &self.sockets);
            assert!(self.is_done() || at.is_some(), "{seed}: silent in {phase} with {queued} bytes since {before} us");
            assert!(self.clock < end, "{seed}: nothing gets better in {phase} with {queued} bytes");
        }
        assert!(self.taken == pattern(self.written), "{seed}: other bytes");
        assert!(!self.shut || self.ended.0, "{seed}: no end");
    }
}

#[test]
fn everything_arrives_in_the_end() {
    for seed in 0..3000 {
        let mut model = Model::new(seed);
        model.mood = Mood::Mean;
        for _ in 0..20 + model.below(60) {
            model.step();
        }
        model.finish(seed);
    }
}

#[test]
fn nothing_is_asked_after_the_end() {
    let mut model = Model::new(0);
    model.mood = Mood::Exact;
    model.write(model.room + 1);
    model.run();
    assert_eq!((model.room, model.machine().send_queue()), (0, 1));
    model.machine().close();
    model.run();
    // The probe has the last byte and the end, and finds room; there is none again after it.
    model.room = 1;
    model.wait();
    model.run();
    assert_eq!((model.machine().state(), model.ended.0, model.room), (Phase::FinWait2, true, 0));
    model.wait();
    model.run();
    assert_eq!(model.interface.poll_at(Instant::from_micros(model.clock), &model.sockets), None);
}
