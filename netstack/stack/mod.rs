//! The network stack of a sandbox: interfaces, ports, and the way of a packet in and out.
//!
//! ```text
//!         device ──receive──> Ethernet ──> IP ──┬─> TCP: flow table ──> the connection's own smoltcp socket
//!             ^                 │ARP, NDP       ├─> UDP: port table ──> the socket's queue
//!             │                 v               └─> ICMP, raw
//!             └──transmit── neighbours <── IP <──── a task that sends
//! ```
//!
//! A connection is found in a hash table, its smoltcp socket is alone in its set, and what smoltcp calls an interface is
//! a context that any thread borrows ([`tcp`]): no work grows with the number of sockets, and two connections
//! share no lock on their way. Nothing here is a thread of its own but the [`poller`]'s stand-in.
//!
//! Lock order: a socket's state > a connection's state > a listener's state > flow, port, neighbour and socket tables
//! (leaves) > wait queues.

pub mod counters;
mod icmp;
pub mod iface;
pub(super) mod input;
pub mod neighbour;
mod output;
pub mod packet;
pub mod poller;
pub mod ports;
mod reassembly;
pub mod settings;
#[cfg(test)]
mod tests;
mod v6;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, Weak};

use self::counters::{Counters, Local};
pub use self::iface::{Interface, Interfaces, Route};
use self::poller::Poller;
use self::ports::Ports;
use self::reassembly::Reassembly;
use super::device::FramePool;
use super::{SockAddr, addr, dns, netlink, raw, tcp, udp};
use crate::container::network::{Link, NetConfig};
use crate::errno::{Errno, Result};
use crate::timer::TimerQueue;
use crate::vfs::file::File;

/// Who makes a socket, as far as the stack cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketCred {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// `CAP_NET_RAW`.
    pub net_raw: bool,
    /// `CAP_NET_ADMIN`.
    pub net_admin: bool,
    /// `CAP_NET_BIND_SERVICE`.
    pub net_bind: bool,
    /// Thread group: the first port id that a netlink socket tries.
    pub pid: i32,
}

/// A network stack: one network namespace's.
pub struct Stack {
    pub(super) me: Weak<Stack>,
    pub(super) interfaces: Interfaces,
    pub(super) timers: Arc<TimerQueue>,
    pub(super) frames: FramePool,
    pub(super) ports: Ports,
    pub(super) tcp: tcp::Tables,
    pub(super) udp: udp::Table,
    pub(super) raw: raw::Table,
    /// Docker's name server, where there is one.
    pub(super) dns: OnceLock<Arc<dns::Relay>>,
    reassembly: Reassembly,
    poller: Poller,
    settings: Arc<settings::Settings>,
    counters: Counters,
}

/// A neighbour, as `ip neigh` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The index of the interface that it is at.
    pub interface: u32,
    /// Its address.
    pub addr: IpAddr,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Whether the operator set it.
    pub permanent: bool,
}

impl Stack {
    /// A stack with `lo`, and `eth0` when `tap` (non-blocking) is given. Without it, interfaces may be
    /// [attached](Self::attach) later.
    pub fn new(config: &NetConfig, tap: Option<OwnedFd>, timers: Arc<TimerQueue>) -> Arc<Stack> {
        let stack = Arc::new_cyclic(|me| Stack {
            me: me.clone(),
            interfaces: Interfaces::default(),
            timers,
            frames: FramePool::default(),
            ports: Ports::default(),
            tcp: tcp::Tables::default(),
            udp: udp::Table::default(),
            raw: raw::Table::default(),
            reassembly: Reassembly::default(),
            poller: Poller::default(),
            settings: Arc::default(),
            dns: OnceLock::new(),
            counters: Counters::default(),
        });
        if let Some(tap) = tap
            && let Err(error) = stack.attach(vec![(config.link(), tap)])
        {
            log::error!("attach the TAP device: {error}"); // cannot be: it is the first
        }
        stack
    }

    /// Adds interfaces, each with its device (non-blocking, one frame a call, see [`device`](super::device)), before
    /// any program uses the stack. It may be done once.
    ///
    /// `EBUSY` when there are some, `EINVAL` when two have one name or number, `ENOSPC` when there are too many.
    pub fn attach(self: &Arc<Stack>, links: Vec<(Link, OwnedFd)>) -> Result<()> {
        if links.is_empty() {
            return Ok(());
        }
        self.interfaces.attach(links)?;
        let mut taps = self.interfaces.devices().iter().filter_map(|interface| interface.tap.as_ref());
        self.tcp.engines.set_segmentation(taps.all(|tap| tap.offloads()));
        poller::start(self);
        Ok(())
    }

    /// Answers what the sandbox asks of Docker's name server, 127.0.0.11, by way of `server`, a UDP socket connected to
    /// it. `EBUSY` when there is one already, `EAGAIN` when there can be no thread for it.
    pub fn relay_dns(self: &Arc<Stack>, server: OwnedFd) -> Result<()> {
        let relay = dns::Relay::start(self, server)?;
        self.dns.set(relay).map_err(|_| Errno::EBUSY)
    }

    /// The interfaces.
    pub fn interfaces(&self) -> &Interfaces {
        &self.interfaces
    }

    /// What `/proc/sys/net` sets.
    pub fn settings(&self) -> &Arc<settings::Settings> {
        &self.settings
    }

    /// What `/proc/net/snmp` and others count.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Time to live or hop limit of what no socket sends.
    pub(super) fn default_hops(&self, v6: bool) -> u8 {
        if v6 { 64 } else { u8::try_from(self.settings.get(settings::Number::DefaultTtl)).unwrap_or(64) }
    }

    /// The way of a socket's packets to `destination` ([`Interfaces::route_by`]). That there is none is counted.
    pub(super) fn way_out(&self, destination: IpAddr, device: Option<u32>) -> Result<Route> {
        self.interfaces.route_by(destination, device).inspect_err(|error| {
            if *error == Errno::ENETUNREACH {
                self.counters.count(counters::Ip::OutNoRoutes.of(destination.is_ipv6()));
            }
        })
    }

    /// Counts what went from buffer to buffer within this host: `len` bytes, transport header included.
    pub(super) fn count_local(&self, v6: bool, len: usize) {
        let bytes = len + if v6 { 40 } else { 20 };
        let stats = self.interfaces.loopback().stats();
        stats.sent(bytes);
        stats.received(bytes);
        self.counters.count(Local::Packets.of(v6));
        self.counters.add(Local::Octets.of(v6), bytes as u64);
    }

    /// Every TCP socket now: `/proc/net/tcp`.
    pub fn tcp_table(&self) -> Vec<tcp::Row> {
        tcp::rows(self)
    }

    /// Every UDP socket with a port now: `/proc/net/udp`.
    pub fn udp_table(&self) -> Vec<udp::Row> {
        self.udp.all().iter().map(|socket| socket.row()).collect()
    }

    /// An address as a socket of `domain` shows it.
    pub(super) fn shown(&self, domain: i32, addr: SocketAddr) -> SockAddr {
        addr::to_user(domain, addr, self.interfaces.scope_of(addr.ip()))
    }

    /// The neighbours that are known, of every interface.
    pub fn neighbours(&self) -> Vec<Neighbour> {
        let of = |interface: &Interface| {
            let index = interface.index;
            let list = interface.neighbours.list().into_iter();
            list.map(move |(addr, mac, permanent)| Neighbour { interface: index, addr, mac, permanent })
        };
        self.interfaces.devices().iter().flat_map(of).collect()
    }

    /// `socket(2)` of the families `AF_INET`, `AF_INET6`, `AF_NETLINK` and `AF_PACKET`. `socket_type` is without flags.
    ///
    /// `EAFNOSUPPORT`, `EPROTONOSUPPORT`, `ESOCKTNOSUPPORT`, `EPERM`.
    pub fn socket(
        self: &Arc<Stack>,
        domain: i32,
        socket_type: i32,
        protocol: i32,
        cred: SocketCred,
    ) -> Result<Arc<dyn File>> {
        match domain {
            libc::AF_INET | libc::AF_INET6 => self.inet_socket(domain, socket_type, protocol, cred),
            libc::AF_NETLINK => Ok(netlink::NetlinkSocket::new(self, socket_type, protocol, cred)?),
            libc::AF_PACKET if !cred.net_raw => Err(Errno::EPERM),
            libc::AF_PACKET => {
                log::warn!("socket: packet sockets are not implemented");
                Err(Errno::EAFNOSUPPORT)
            }
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    fn inet_socket(
        self: &Arc<Stack>,
        domain: i32,
        socket_type: i32,
        protocol: i32,
        cred: SocketCred,
    ) -> Result<Arc<dyn File>> {
        if !(0..=255).contains(&protocol) && protocol != 262 {
            return Err(Errno::EINVAL);
        }
        match (socket_type, protocol) {
            (libc::SOCK_STREAM, 0 | libc::IPPROTO_TCP) => Ok(tcp::TcpSocket::new(self, domain, cred)),
            (libc::SOCK_DGRAM, 0 | libc::IPPROTO_UDP) => Ok(udp::UdpSocket::new(self, domain, cred)),
            (libc::SOCK_DGRAM, libc::IPPROTO_ICMP) if domain == libc::AF_INET => {
                Ok(raw::RawSocket::new(self, domain, packet::ICMP, true, cred))
            }
            (libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6) if domain == libc::AF_INET6 => {
                Ok(raw::RawSocket::new(self, domain, packet::ICMPV6, true, cred))
            }
            (libc::SOCK_STREAM | libc::SOCK_DGRAM, _) => Err(Errno::EPROTONOSUPPORT),
            (libc::SOCK_RAW, 0) => Err(Errno::EPROTONOSUPPORT),
            (libc::SOCK_RAW, _) if !cred.net_raw => Err(Errno::EPERM),
            (libc::SOCK_RAW, _) => {
                let protocol = u8::try_from(protocol).map_err(|_| Errno::EPROTONOSUPPORT)?;
                Ok(raw::RawSocket::new(self, domain, protocol, false, cred))
            }
            _ => Err(Errno::ESOCKTNOSUPPORT),
        }
    }
}

/// Eight bytes that nobody can guess.
pub(super) fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is valid for writes of its length.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Eight bytes are never cut short, and the pool is ready long before a sandbox starts.
    debug_assert_eq!(n, 8);
    u64::from_ne_bytes(bytes)
}
