//! smoltcp as a TCP state machine that any thread may run.
//!
//! What smoltcp calls an interface is here a context without a network: it routes nothing, knows no neighbours and takes
//! every address as its own. So any of them will do for any connection, a few are kept, and the connection's set holds its
//! one socket. Checksums are left to the device; segments are as long as an IP packet can be.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::HardwareAddress;

use crate::netstack::device::{Frame, MAX_PACKET};
use crate::netstack::stack::random_u64;
use crate::timer::clock::monotonic;

/// How many engines are kept.
const MAX_POOLED: usize = 16;

/// The time in smoltcp's form.
pub fn now() -> Instant {
    Instant::from_micros((monotonic() / 1000) as i64)
}

/// A context and a frame for what it sends.
pub struct Engine {
    interface: Interface,
    /// What is to be sent, after a step that says so.
    pub frame: Frame,
    segmentation: bool,
}

impl Engine {
    fn new(segmentation: bool) -> Engine {
        let mut frame = Frame::default();
        let interface = context(&mut frame, segmentation);
        Engine { interface, frame, segmentation }
    }

    /// Forgets the state of its random numbers, so that the next connection's sequence numbers tell nobody of others'.
    pub fn reseed(&mut self) {
        self.interface = context(&mut self.frame, self.segmentation);
    }

    /// Gives `packet` to the set's socket. Returns whether there is an answer in the frame.
    pub fn receive(&mut self, sockets: &mut SocketSet<'static>, packet: &[u8]) -> bool {
        self.frame.clear();
        let mut wire = Wire { packet: Some(packet), frame: &mut self.frame, segmentation: self.segmentation };
        self.interface.poll_ingress_single(now(), &mut wire, sockets);
        !self.frame.is_empty()
    }

    /// Lets the set's socket send a segment. Returns whether there is one in the frame.
    pub fn transmit(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        self.transmit_at(sockets, now())
    }

    /// [`Engine::transmit`], with the socket believing in another time.
    pub fn transmit_at(&mut self, sockets: &mut SocketSet<'static>, time: Instant) -> bool {
        self.frame.clear();
        let mut wire = Wire { packet: None, frame: &mut self.frame, segmentation: self.segmentation };
        self.interface.poll_egress(time, &mut wire, sockets);
        !self.frame.is_empty()
    }

    /// When the set's socket wants to run again.
    pub fn poll_at(&mut self, sockets: &SocketSet<'static>) -> Option<Instant> {
        self.interface.poll_at(now(), sockets)
    }

    /// For opening a connection.
    pub fn context(&mut self) -> &mut smoltcp::iface::Context {
        self.interface.context()
    }
}

fn context(frame: &mut Frame, segmentation: bool) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = random_u64();
    let mut interface = Interface::new(config, &mut Wire { packet: None, frame, segmentation }, now());
    interface.set_any_ip(true);
    interface
}

/// Engines that are not in use.
#[expect(clippy::vec_box, reason = "an engine is kilobytes long, and moves with each packet")]
#[derive(Default)]
pub struct Engines {
    segmentation: AtomicBool,
    unused: Mutex<Vec<Box<Engine>>>,
    /// How often a connection was looked at: what a test of cost counts.
    #[cfg(test)]
    pub looks: std::sync::atomic::AtomicUsize,
}

impl Engines {
    /// Whether the devices cut long segments. To be said before the first connection.
    pub fn set_segmentation(&self, segmentation: bool) {
        self.segmentation.store(segmentation, Ordering::Relaxed);
        self.unused.lock().clear();
    }

    /// Lends an engine to `work`.
    pub fn with<R>(&self, work: impl FnOnce(&mut Engine) -> R) -> R {
        let unused = self.unused.lock().pop();
        let mut engine = unused.unwrap_or_else(|| Box::new(Engine::new(self.segmentation.load(Ordering::Relaxed))));
        let result = work(&mut engine);
        let mut unused = self.unused.lock();
        if unused.len() < MAX_POOLED {
            unused.push(engine);
        }
        result
    }
}

/// smoltcp's device: one packet in, one out.
struct Wire<'a> {
    packet: Option<&'a [u8]>,
    frame: &'a mut Frame,
    segmentation: bool,
}

impl Device for Wire<'_> {
    type RxToken<'a>
        = Incoming<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a>
    where
        Self: 'a;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        self.packet.take().map(|packet| (Incoming(packet), Outgoing(self.frame)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(self.frame))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MAX_PACKET;
        capabilities.checksum = ChecksumCapabilities::ignored();
        if self.segmentation {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(MAX_PACKET);
            capabilities.segmentation.tcpv6 = NonZeroUsize::new(MAX_PACKET);
        }
        capabilities
    }
}

struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Outgoing<'a>(&'a mut Frame);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        f(self.0.start(len))
    }
}
