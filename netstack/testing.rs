//! What the tests of sockets need: stacks joined by a wire, and waiting.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::SndBufForce};

use crate::container::network::{Mac, NetConfig};
use crate::errno::{Errno, Result};
use crate::io::SliceSink;
use crate::netstack::stack::packet::Header;
use crate::netstack::{SockAddr, Socket, SocketCred, Stack};
use crate::timer::TimerQueue;
use crate::vfs::file::File;
use crate::wait::{Events, Parker};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const ROOT: SocketCred = SocketCred { uid: 0, gid: 0, net_raw: true, net_admin: true, net_bind: true, pid: 1 };

/// A stack with `lo` only.
pub fn lonely() -> Arc<Stack> {
    Stack::new(&NetConfig::default(), None, TimerQueue::new())
}

/// A configuration with the addresses 10.0.0.`host` and fd00::`host`.
pub fn config(host: u8, vnet_header: bool) -> NetConfig {
    NetConfig {
        addresses: vec![format!("10.0.0.{host}/24").parse().unwrap(), format!("fd00::{host}/64").parse().unwrap()],
        vnet_header,
        ..NetConfig::default()
    }
}

/// Two stacks on a wire, 10.0.0.1 and 10.0.0.2.
pub fn pair(vnet_header: bool) -> (Arc<Stack>, Arc<Stack>) {
    let (one, two) = UnixDatagram::pair().unwrap();
    let make = |host, fd: UnixDatagram| {
        fd.set_nonblocking(true).unwrap();
        // Best effort: without the right to do so there is less room, and losses.
        let _ = setsockopt(&fd.as_fd(), SndBufForce, &(64 << 20));
        Stack::new(&config(host, vnet_header), Some(fd.into()), TimerQueue::new())
    };
    (make(1, one), make(2, two))
}

/// A stack with the address 10.0.0.2 and a virtio-net header, its link-layer address, and the other end of its wire.
pub fn deaf() -> (Arc<Stack>, [u8; 6], UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut config = config(2, true);
    let mac = [2, 0, 0, 0, 0, 1];
    config.mac = Some(Mac(mac));
    (Stack::new(&config, Some(theirs.into()), TimerQueue::new()), mac, ours)
}

/// A frame for [`deaf`] with an IPv4 packet from 10.0.0.1.
pub fn frame(mac: [u8; 6], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2".parse().unwrap(),
        protocol,
        ttl: 64,
        tos: 3,
        id: 7,
        whole: false,
    };
    let mut packet = vec![0; 20];
    packet.extend_from_slice(payload);
    header.write(&mut packet);
    [&mac[..], &[2, 0, 0, 0, 0, 9, 8, 0], &packet].concat()
}

pub fn socket(stack: &Arc<Stack>, domain: i32, kind: i32) -> Arc<dyn File> {
    stack.socket(domain, kind, 0, ROOT).unwrap()
}

pub fn tcp(stack: &Arc<Stack>) -> Arc<dyn File> {
    socket(stack, libc::AF_INET, libc::SOCK_STREAM)
}

pub fn udp(stack: &Arc<Stack>) -> Arc<dyn File> {
    socket(stack, libc::AF_INET, libc::SOCK_DGRAM)
}

/// An address.
pub fn at(text: &str) -> SockAddr {
    match text.parse().unwrap() {
        SocketAddr::V4(addr) => SockAddr::V4(addr),
        SocketAddr::V6(addr) => SockAddr::V6(addr),
    }
}

pub trait AsSocket {
    fn sock(&self) -> &dyn Socket;
}

impl AsSocket for Arc<dyn File> {
    fn sock(&self) -> &dyn Socket {
        self.as_socket().unwrap()
    }
}

/// Waits until `file` has one of `events`.
pub fn wait(file: &Arc<dyn File>, events: Events) -> Events {
    until(file, events, || Some(file.poll()).filter(|ready| ready.intersects(events | Events::ALWAYS)))
}

/// Waits until `look` finds something; `events` say when to look again.
pub fn until<T>(file: &Arc<dyn File>, events: Events, mut look: impl FnMut() -> Option<T>) -> T {
    let parker = Arc::new(Parker::new());
    let queue = file.wait_queue().unwrap();
    let key = queue.add(parker.clone(), events, false);
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            queue.remove(key);
            return found;
        }
        assert!(parker.park(Some(end)), "nothing happened; ready: {:?}", file.poll());
    }
}

/// Does `work` again while it would block.
pub fn block<T>(file: &Arc<dyn File>, events: Events, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    until(file, events, || match work() {
        Err(Errno::EAGAIN) => None,
        result => Some(result),
    })
}

pub fn connect(file: &Arc<dyn File>, to: &SockAddr) -> Result<()> {
    match file.sock().connect(to) {
        Err(Errno::EINPROGRESS) => {
            wait(file, Events::OUT);
            match error(file) {
                0 => Ok(()),
                error => Err(Errno::from_raw(error)),
            }
        }
        result => result,
    }
}

/// `SO_ERROR`.
pub fn error(file: &Arc<dyn File>) -> i32 {
    int(file, libc::SOL_SOCKET, libc::SO_ERROR).unwrap()
}

pub fn int(file: &Arc<dyn File>, level: i32, name: i32) -> Result<i32> {
    let value = file.sock().get_option(crate::netstack::SocketOption { level, name }, 4)?;
    Ok(i32::from_ne_bytes(value[..4].try_into().unwrap()))
}

pub fn set(file: &Arc<dyn File>, level: i32, name: i32, value: i32) -> Result<()> {
    file.sock().set_option(crate::netstack::SocketOption { level, name }, &value.to_ne_bytes())
}

pub fn accept(listener: &Arc<dyn File>) -> Arc<dyn File> {
    block(listener, Events::IN, || listener.sock().accept()).unwrap()
}

/// A socket that listens on `addr`.
pub fn listener(stack: &Arc<Stack>, addr: &str, backlog: i32) -> Arc<dyn File> {
    let domain = if matches!(at(addr), SockAddr::V4(_)) { libc::AF_INET } else { libc::AF_INET6 };
    let file = socket(stack, domain, libc::SOCK_STREAM);
    file.sock().bind(&at(addr)).unwrap();
    file.sock().listen(backlog).unwrap();
    file
}

pub fn write_all(file: &Arc<dyn File>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        block(file, Events::OUT, || {
            let mut source = bytes;
            let n = file.write(0, &mut source)?;
            bytes = &bytes[n..];
            Ok(())
        })?;
    }
    Ok(())
}

/// Reads once, at most `most` bytes.
pub fn read(file: &Arc<dyn File>, most: usize) -> Result<Vec<u8>> {
    block(file, Events::IN, || read_now(file, most))
}

pub fn read_now(file: &Arc<dyn File>, most: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; most];
    let n = file.read(0, &mut SliceSink::new(&mut buf))?;
    buf.truncate(n);
    Ok(buf)
}

/// Reads exactly `len` bytes.
pub fn read_exact(file: &Arc<dyn File>, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        let more = read(file, len - all.len()).unwrap();
        assert!(!more.is_empty(), "the end after {} bytes", all.len());
        all.extend(more);
    }
    all
}

/// Bytes that are not alike.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
}
