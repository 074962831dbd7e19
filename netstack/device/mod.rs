//! The device, a TAP device or a packet socket: whole Ethernet frames behind a virtio-net header, up to 64 KiB of TCP a host
//! call both ways.
//!
//! ```text
//!  0            12          26
//!  | vnet header | Ethernet  | IP packet ...        one Frame, written with one write(2)
//! ```
//!
//! The header says what the host still has to do: fill in a checksum, cut a long TCP segment into packets
//! (<https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html>, 5.1.6). The host's own packets arrive the same
//! way. A packet socket of an older kernel has a header without its last field, of 10 bytes. A device without the header gets
//! finished checksums and no long segments. Frames are pooled: a packet costs no allocation.

pub mod vnet;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::container::network::VnetHeader;
use crate::errno::Errno;
use crate::io::{host_read, host_write};

/// Bytes before the IP packet in a [`Frame`].
pub const HEADROOM: usize = vnet::LEN + ETHERNET_LEN;
/// An Ethernet header's length.
pub const ETHERNET_LEN: usize = 14;
/// The longest IP packet.
pub const MAX_PACKET: usize = 65_535;
/// How many unused frames are kept.
const MAX_POOLED: usize = 32;

/// Ethernet types.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// ARP, RFC 826.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// A packet to be sent, with room for the headers in front of it.
pub struct Frame {
    buf: Box<[u8]>,
    len: usize,
}

impl Default for Frame {
    fn default() -> Frame {
        Frame { buf: vec![0; HEADROOM + MAX_PACKET].into_boxed_slice(), len: 0 }
    }
}

impl Frame {
    /// The IP packet's length; 0 when there is none.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no packet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes it empty.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Makes it a packet of `len` bytes (at most [`MAX_PACKET`]), to be filled in.
    pub fn start(&mut self, len: usize) -> &mut [u8] {
        self.len = len.min(MAX_PACKET);
        &mut self.buf[HEADROOM..HEADROOM + self.len]
    }

    /// The IP packet.
    pub fn packet(&self) -> &[u8] {
        &self.buf[HEADROOM..HEADROOM + self.len]
    }

    /// The IP packet.
    pub fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.buf[HEADROOM..HEADROOM + self.len]
    }

    /// Writes the two headers in front of the packet and returns all; the first `len` bytes of the virtio-net header lie
    /// just before the Ethernet header.
    fn finish(&mut self, ethernet: &Ethernet, offload: &vnet::Offload, len: usize) -> &[u8] {
        self.buf[vnet::LEN - len..vnet::LEN].copy_from_slice(&offload.encode()[..len]);
        let header = &mut self.buf[vnet::LEN..HEADROOM];
        header[..6].copy_from_slice(&ethernet.destination);
        header[6..12].copy_from_slice(&ethernet.source);
        header[12..].copy_from_slice(&ethernet.ethertype.to_be_bytes());
        &self.buf[..HEADROOM + self.len]
    }
}

/// An Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// To.
    pub destination: [u8; 6],
    /// From.
    pub source: [u8; 6],
    /// What follows.
    pub ethertype: u16,
}

/// What `/proc/net/dev` counts.
#[derive(Default)]
pub struct Stats {
    /// Frames received.
    pub rx_packets: AtomicU64,
    /// Their bytes.
    pub rx_bytes: AtomicU64,
    /// Frames received that were malformed or for nobody.
    pub rx_dropped: AtomicU64,
    /// Frames sent.
    pub tx_packets: AtomicU64,
    /// Their bytes.
    pub tx_bytes: AtomicU64,
    /// Frames that the device did not take.
    pub tx_dropped: AtomicU64,
}

impl Stats {
    /// Counts a frame that arrived.
    pub fn received(&self, bytes: usize) {
        self.rx_packets.fetch_add(1, Ordering::Relaxed);
        self.rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a frame that left.
    pub fn sent(&self, bytes: usize) {
        self.tx_packets.fetch_add(1, Ordering::Relaxed);
        self.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// An open TAP device, packet socket, or anything else that takes and gives a frame a call.
pub struct Tap {
    fd: OwnedFd,
    /// Bytes of the virtio-net header; 0 when there is none.
    header: usize,
    /// What happened on it.
    pub stats: Stats,
}

impl Tap {
    /// `fd` is non-blocking.
    pub fn new(fd: OwnedFd, header: VnetHeader) -> Tap {
        let header = match header {
            VnetHeader::None => 0,
            VnetHeader::Short => vnet::LEN - 2,
            VnetHeader::Full => vnet::LEN,
        };
        Tap { fd, header, stats: Stats::default() }
    }

    /// Whether the host does checksums and segmentation.
    pub fn offloads(&self) -> bool {
        self.header > 0
    }

    /// The descriptor, for waiting.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends a frame. What the device does not take is lost, as on a wire.
    pub fn send(&self, frame: &mut Frame, ethernet: &Ethernet, offload: vnet::Offload) {
        let offload = if self.offloads() {
            offload
        } else {
            offload.complete(frame.packet_mut());
            vnet::Offload::default()
        };
        let len = frame.len + ETHERNET_LEN;
        let bytes = &frame.finish(ethernet, &offload, self.header)[vnet::LEN - self.header..];
        match host_write(self.fd.as_fd(), bytes, None) {
            Ok(_) => self.stats.sent(len),
            Err(error) => {
                self.stats.tx_dropped.fetch_add(1, Ordering::Relaxed);
                if error != Errno::EAGAIN {
                    log::debug!("network device: {} bytes not sent: {error}", bytes.len());
                }
            }
        }
    }

    /// Receives a frame into `buf`. `None` when there is none.
    pub fn receive<'a>(&self, buf: &'a mut RxBuffer) -> io::Result<Option<Received<'a>>> {
        let start = vnet::LEN - self.header;
        let n = match host_read(self.fd.as_fd(), &mut buf.0[start..], None) {
            Ok(n) => n + start,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(io::Error::from_raw_os_error(error.raw())),
        };
        self.stats.received(n.saturating_sub(vnet::LEN));
        let header = buf.0.get(start..n.min(vnet::LEN)).unwrap_or_default();
        let offload = vnet::Offload::decode(header);
        Ok(Some(Received { frame: buf.0.get_mut(vnet::LEN..n).unwrap_or_default(), offload }))
    }
}

/// Where frames are received.
pub struct RxBuffer(Box<[u8]>);

impl Default for RxBuffer {
    fn default() -> RxBuffer {
        RxBuffer(vec![0; HEADROOM + MAX_PACKET + 64].into_boxed_slice())
    }
}

/// A frame that arrived: from the Ethernet header on.
pub struct Received<'a> {
    /// The frame; may be of any length and content.
    pub frame: &'a mut [u8],
    /// What the host left to do.
    pub offload: vnet::Offload,
}

/// Frames that are not in use.
#[derive(Default)]
pub struct FramePool(Mutex<Vec<Frame>>);

impl FramePool {
    /// Lends an empty frame to `work`.
    pub fn with<R>(&self, work: impl FnOnce(&mut Frame) -> R) -> R {
        let unused = self.0.lock().pop();
        let mut frame = unused.unwrap_or_default();
        frame.clear();
        let result = work(&mut frame);
        let mut pool = self.0.lock();
        if pool.len() < MAX_POOLED {
            pool.push(frame);
        }
        result
    }
}
