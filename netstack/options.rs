//! Options that all Internet sockets have: `socket(7)`, `ip(7)`, `ipv6(7)`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::errno::{Errno, Result};
use crate::netstack::stack::settings::{Number, Settings};
use crate::netstack::stack::{Interfaces, SocketCred};
use crate::netstack::{SocketOption, Stack};

/// Switches of `SOL_SOCKET`, `IPPROTO_IP` and `IPPROTO_IPV6` that are kept and read back. Those with an effect are looked
/// at by [`Common::is_set`].
const SWITCHES: [(i32, i32); 35] = [
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_DONTROUTE),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_DEBUG),
    (libc::SOL_SOCKET, libc::SO_NO_CHECK),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
    (libc::SOL_SOCKET, libc::SO_ZEROCOPY),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IP, libc::IP_RECVTTL),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IP, libc::IP_RECVOPTS),
    (libc::IPPROTO_IP, libc::IP_RETOPTS),
    (libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL),
    (libc::IPPROTO_IP, libc::IP_HDRINCL),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    (libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL),
    (libc::IPPROTO_IPV6, IPV6_FREEBIND),
    (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVRTHDR),
    (libc::IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL),
];
/// From `asm-generic/socket.h`.
const SO_BINDTOIFINDEX: i32 = 62;
/// From `linux/in6.h`.
const IPV6_MULTICAST_ALL: i32 = 29;
const IPV6_FREEBIND: i32 = 78;

/// Values of `IP_MTU_DISCOVER` and `IPV6_MTU_DISCOVER`: `linux/in.h`.
mod discover {
    pub const DONT: i32 = 0;
    pub const WANT: i32 = 1;
    pub const DO: i32 = 2;
    pub const PROBE: i32 = 3;
    pub const INTERFACE: i32 = 4;
    pub const OMIT: i32 = 5;
}

/// What a socket's packets have in their IP header, and where they may go. IPv4's and IPv6's are apart, also in one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpOptions {
    /// `IP_TTL` and `IPV6_UNICAST_HOPS`.
    hops: [u8; 2],
    /// `IP_TOS` and `IPV6_TCLASS`.
    tos: [u8; 2],
    /// `IP_MTU_DISCOVER` and `IPV6_MTU_DISCOVER`.
    discover: [i32; 2],
    /// `SO_BINDTODEVICE`: an interface's index.
    pub device: Option<u32>,
}

impl Default for IpOptions {
    fn default() -> IpOptions {
        IpOptions { hops: [64, 64], tos: [0, 0], discover: [discover::WANT; 2], device: None }
    }
}

impl IpOptions {
    /// Time to live or hop limit of packets to `remote`, which is no group.
    pub fn hops(&self, remote: IpAddr) -> u8 {
        self.hops[usize::from(remote.is_ipv6())]
    }

    /// Type of service or traffic class of packets to `remote`.
    pub fn tos(&self, remote: IpAddr) -> u8 {
        self.tos[usize::from(remote.is_ipv6())]
    }

    /// Whether a router may not cut packets that fit the interface.
    pub fn dont_fragment(&self, remote: IpAddr) -> bool {
        matches!(self.discover[usize::from(remote.is_ipv6())], discover::WANT | discover::DO | discover::PROBE)
    }

    /// Whether packets that do not fit the interface are refused (`EMSGSIZE`) rather than cut.
    pub fn whole(&self, remote: IpAddr) -> bool {
        matches!(self.discover[usize::from(remote.is_ipv6())], discover::DO | discover::PROBE | discover::INTERFACE)
    }

    /// Whether what arrives on `interface` is for this socket.
    pub fn takes_from(&self, interface: u32) -> bool {
        self.device.is_none_or(|device| device == interface)
    }
}

/// What the options set.
#[derive(Clone)]
pub struct Common {
    /// `SO_RCVTIMEO`.
    pub receive_timeout: Option<Duration>,
    /// `SO_SNDTIMEO`.
    pub send_timeout: Option<Duration>,
    /// `SO_RCVBUF`, doubled.
    pub receive_buf: usize,
    /// Whether it was set.
    pub receive_buf_set: bool,
    /// `SO_SNDBUF`, doubled.
    pub send_buf: usize,
    /// Whether it was set.
    pub send_buf_set: bool,
    /// `SO_RCVLOWAT`.
    pub low_water: i32,
    /// `SO_LINGER`.
    pub linger: [u8; 8],
    /// What goes into the IP header.
    pub ip: IpOptions,
    /// `IP_MULTICAST_TTL`, `IPV6_MULTICAST_HOPS`.
    multicast_hops: [u8; 2],
    /// `IP_MULTICAST_IF`, `IPV6_MULTICAST_IF`: the interface, and the address that was given for IPv4's.
    multicast_interface: [u32; 2],
    multicast_addr: Ipv4Addr,
    /// `SO_PRIORITY`: `lo` and the TAP device have no queue here in which one packet could go before another.
    priority: i32,
    /// `SO_MARK`: there are neither rules that route by it nor filters that look at it.
    mark: i32,
    /// Bit n is [`SWITCHES`]`[n]`.
    switches: u64,
}

impl Common {
    /// What `settings` have new sockets start with, with these sizes of the buffers, that to receive first.
    pub fn new(settings: &Settings, [receive_buf, send_buf]: [usize; 2]) -> Common {
        let mut common = Common {
            receive_timeout: None,
            send_timeout: None,
            receive_buf,
            receive_buf_set: false,
            send_buf,
            send_buf_set: false,
            low_water: 1,
            linger: [0; 8],
            ip: IpOptions::default(),
            multicast_hops: [1, 1],
            multicast_interface: [0, 0],
            multicast_addr: Ipv4Addr::UNSPECIFIED,
            priority: 0,
            mark: 0,
            switches: 0,
        };
        for on in [libc::IP_MULTICAST_LOOP, libc::IP_MULTICAST_ALL] {
            common.switch(libc::IPPROTO_IP, on, true);
        }
        for on in [libc::IPV6_MULTICAST_LOOP, IPV6_MULTICAST_ALL] {
            common.switch(libc::IPPROTO_IPV6, on, true);
        }
        common.switch(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, settings.is_set(Number::V6Only));
        common.ip.hops[0] = default_ttl(settings);
        common
    }

    /// Whether a switch is on.
    pub fn is_set(&self, level: i32, name: i32) -> bool {
        let bit = SWITCHES.iter().position(|&switch| switch == (level, name));
        bit.is_some_and(|bit| self.switches >> bit & 1 != 0)
    }

    /// Turns a switch. Whether it is one.
    fn switch(&mut self, level: i32, name: i32, on: bool) -> bool {
        let Some(bit) = SWITCHES.iter().position(|&switch| switch == (level, name)) else { return false };
        self.switches = self.switches & !(1 << bit) | u64::from(on) << bit;
        true
    }

    /// `getsockopt(2)` of what is common. `ENOPROTOOPT`.
    pub fn get(&self, option: SocketOption) -> Result<Vec<u8>> {
        let value = match (option.level, option.name) {
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => self.send_buf as i32,
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => self.receive_buf as i32,
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => self.low_water,
            (libc::SOL_SOCKET, libc::SO_SNDLOWAT) => 1,
            (libc::SOL_SOCKET, libc::SO_PRIORITY) => self.priority,
            (libc::SOL_SOCKET, libc::SO_MARK) => self.mark,
            (libc::SOL_SOCKET, libc::SO_INCOMING_CPU) => -1,
            (libc::SOL_SOCKET, libc::SO_LINGER) => return Ok(self.linger.to_vec()),
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => return Ok(timeval(self.receive_timeout)),
            (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => return Ok(timeval(self.send_timeout)),
            (libc::SOL_SOCKET, SO_BINDTOIFINDEX) => self.ip.device.unwrap_or(0) as i32,
            (libc::IPPROTO_IP, libc::IP_TOS) => self.ip.tos[0].into(),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => self.ip.tos[1].into(),
            (libc::IPPROTO_IP, libc::IP_TTL) => self.ip.hops[0].into(),
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => self.ip.hops[1].into(),
            (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL) => self.multicast_hops[0].into(),
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS) => self.multicast_hops[1].into(),
            (libc::IPPROTO_IP, libc::IP_MULTICAST_IF) => return Ok(self.multicast_addr.octets().to_vec()),
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF) => self.multicast_interface[1] as i32,
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) => self.ip.discover[0],
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) => self.ip.discover[1],
            (level, name) if SWITCHES.contains(&(level, name)) => self.is_set(level, name).into(),
            (level, name) => {
                log::debug!("getsockopt: level {level} option {name} is not known");
                return Err(Errno::ENOPROTOOPT);
            }
        };
        Ok(value.to_ne_bytes().to_vec())
    }

    /// `setsockopt(2)` of what is common. `ENOPROTOOPT`, `EINVAL`, `EDOM`.
    pub fn set(&mut self, option: SocketOption, value: &[u8]) -> Result<()> {
        let int = || match option.level {
            // IP's options may also be one byte long.
            libc::IPPROTO_IP if (1..4).contains(&value.len()) => Ok(i32::from(value[0])),
            _ => value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL),
        };
        let byte = |int: i32, default: u8| match int {
            -1 => Ok(default),
            0..=255 => Ok(int as u8),
            _ => Err(Errno::EINVAL),
        };
        match (option.level, option.name) {
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => {
                let int = int()?;
                self.low_water = if int < 0 { i32::MAX } else { int.max(1) };
            }
            (libc::SOL_SOCKET, libc::SO_PRIORITY) => self.priority = int()?,
            (libc::SOL_SOCKET, libc::SO_MARK) => self.mark = int()?,
            (libc::SOL_SOCKET, libc::SO_LINGER) => self.linger = *value.first_chunk().ok_or(Errno::EINVAL)?,
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => self.receive_timeout = timeout(value)?,
            (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => self.send_timeout = timeout(value)?,
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                self.ip.tos[0] = int()? as u8;
                self.priority = priority_of(self.ip.tos[0]);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => self.ip.tos[1] = byte(int()?, 0)?,
            (libc::IPPROTO_IP, libc::IP_TTL) => match int()? {
                -1 => self.ip.hops[0] = 64,
                ttl @ 1..=255 => self.ip.hops[0] = ttl as u8,
                _ => return Err(Errno::EINVAL),
            },
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => self.ip.hops[1] = byte(int()?, 64)?,
            (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL) => self.multicast_hops[0] = byte(int()?, 1)?,
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS) => self.multicast_hops[1] = byte(int()?, 1)?,
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP) if !(0..=1).contains(&int()?) => return Err(Errno::EINVAL),
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) => self.ip.discover[0] = discovery(int()?)?,
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) => self.ip.discover[1] = discovery(int()?)?,
            (level, name) => {
                if !SWITCHES.contains(&(level, name)) {
                    log::debug!("setsockopt: level {level} option {name} is not known");
                    return Err(Errno::ENOPROTOOPT);
                }
                self.switch(level, name, int()? != 0);
            }
        }
        Ok(())
    }

    /// [`Common::get`], with what needs to know the interfaces. `room` is the length of the user's buffer.
    pub fn get_on(&self, stack: &Stack, option: SocketOption, room: usize) -> Result<Vec<u8>> {
        if (option.level, option.name) != (libc::SOL_SOCKET, libc::SO_BINDTODEVICE) {
            return self.get(option);
        }
        let Some(interface) = self.ip.device.and_then(|device| stack.interfaces().get(device)) else {
            return Ok(Vec::new());
        };
        if room < libc::IFNAMSIZ {
            return Err(Errno::EINVAL);
        }
        Ok([interface.name.as_bytes(), &[0]].concat())
    }

    /// [`Common::set`] on a socket of type `kind`, with what needs capabilities or the interfaces: `EPERM`, `ENODEV`,
    /// `EADDRNOTAVAIL`, and `ENOPROTOOPT` or `EINVAL` for what sockets of that type do not have.
    pub fn set_on(
        &mut self,
        stack: &Stack,
        cred: &SocketCred,
        kind: i32,
        option: SocketOption,
        value: &[u8],
    ) -> Result<()> {
        let admin = cred.net_admin || cred.net_raw;
        let int = value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL);
        let interfaces = stack.interfaces();
        match (option.level, option.name) {
            (libc::SOL_SOCKET, libc::SO_BINDTODEVICE) => {
                let name = value.split(|&byte| byte == 0).next().unwrap_or_default();
                let name = &name[..name.len().min(libc::IFNAMSIZ - 1)];
                let found = interfaces.by_name(name).map(|interface| interface.index);
                let device = if name.is_empty() { None } else { Some(found.ok_or(Errno::ENODEV)?) };
                self.bind_to_device(device, cred)?;
            }
            (libc::SOL_SOCKET, SO_BINDTOIFINDEX) => {
                let index = u32::try_from(int?).map_err(|_| Errno::EINVAL)?;
                self.bind_to_device((index != 0).then_some(index), cred)?;
            }
            (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE | libc::SO_RCVBUFFORCE) if !cred.net_admin => {
                return Err(Errno::EPERM);
            }
            (libc::SOL_SOCKET, libc::SO_SNDBUF | libc::SO_SNDBUFFORCE) => {
                let force = option.name == libc::SO_SNDBUFFORCE;
                (self.send_buf, self.send_buf_set) = (stack.settings().buffer_size(true, int?, force), true);
            }
            (libc::SOL_SOCKET, libc::SO_RCVBUF | libc::SO_RCVBUFFORCE) => {
                let force = option.name == libc::SO_RCVBUFFORCE;
                (self.receive_buf, self.receive_buf_set) = (stack.settings().buffer_size(false, int?, force), true);
            }
            (libc::IPPROTO_IP, libc::IP_TTL) if value.len() >= 4 && int? == -1 => {
                self.ip.hops[0] = default_ttl(stack.settings());
            }
            (libc::SOL_SOCKET, libc::SO_MARK) if !admin => return Err(Errno::EPERM),
            (libc::SOL_SOCKET, libc::SO_PRIORITY) if !admin && !(0..=6).contains(&int?) => return Err(Errno::EPERM),
            (libc::IPPROTO_IP, libc::IP_HDRINCL) if kind != libc::SOCK_RAW => return Err(Errno::ENOPROTOOPT),
            (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL | libc::IP_MULTICAST_IF) if kind == libc::SOCK_STREAM => {
                return Err(Errno::EINVAL);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS | libc::IPV6_MULTICAST_IF) if kind == libc::SOCK_STREAM => {
                return Err(Errno::ENOPROTOOPT);
            }
            (libc::IPPROTO_IP, libc::IP_MULTICAST_IF) => self.set_multicast_v4(interfaces, value)?,
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF) => {
                let index = int?;
                let found = u32::try_from(index).ok().filter(|&index| index == 0 || interfaces.get(index).is_some());
                self.multicast_interface[1] = found.ok_or(Errno::ENODEV)?;
            }
            _ => return self.set(option, value),
        }
        if matches!(option.name, libc::SO_MARK | libc::SO_PRIORITY) && option.level == libc::SOL_SOCKET {
            return self.set(option, value);
        }
        Ok(())
    }

    /// As Linux since 5.7: anybody may bind a socket to a device, but only the privileged may undo it. `EPERM`.
    fn bind_to_device(&mut self, device: Option<u32>, cred: &SocketCred) -> Result<()> {
        if self.ip.device.is_some() && !cred.net_raw {
            return Err(Errno::EPERM);
        }
        self.ip.device = device;
        Ok(())
    }

    /// `IP_MULTICAST_IF`: an address, a `struct ip_mreq` or a `struct ip_mreqn`. `EINVAL`, `EADDRNOTAVAIL`.
    fn set_multicast_v4(&mut self, interfaces: &Interfaces, value: &[u8]) -> Result<()> {
        let octets = |at: usize| value.get(at..).and_then(|rest| rest.first_chunk::<4>()).copied();
        let (addr, index) = match (octets(0), octets(4), octets(8)) {
            (_, Some(addr), Some(index)) => (Ipv4Addr::from(addr), u32::from_ne_bytes(index)),
            (_, Some(addr), None) => (Ipv4Addr::from(addr), 0),
            (Some(addr), None, _) => (Ipv4Addr::from(addr), 0),
            _ => return Err(Errno::EINVAL),
        };
        let found = match (index, addr.is_unspecified()) {
            (0, true) => 0,
            (0, false) => interfaces.owner(addr.into()).ok_or(Errno::EADDRNOTAVAIL)?,
            (index, _) => interfaces.get(index).ok_or(Errno::EADDRNOTAVAIL)?.index,
        };
        (self.multicast_interface[0], self.multicast_addr) = (found, addr);
        Ok(())
    }

    /// Time to live or hop limit of packets to `remote`.
    pub fn hops(&self, remote: IpAddr) -> u8 {
        if remote.is_multicast() { self.multicast_hops[usize::from(remote.is_ipv6())] } else { self.ip.hops(remote) }
    }

    /// The interface that packets to `remote` must take.
    pub fn device(&self, remote: IpAddr) -> Option<u32> {
        let group = Some(self.multicast_interface[usize::from(remote.is_ipv6())]);
        self.ip.device.or(group.filter(|&index| index != 0 && remote.is_multicast()))
    }

    /// The source address that `IP_MULTICAST_IF` gives packets to `remote`.
    pub fn multicast_source(&self, remote: IpAddr) -> Option<IpAddr> {
        let given = remote.is_ipv4() && remote.is_multicast() && !self.multicast_addr.is_unspecified();
        given.then_some(self.multicast_addr.into())
    }

    /// Whether packets to the group `remote` come back to this host: `IP_MULTICAST_LOOP`, `IPV6_MULTICAST_LOOP`.
    pub fn loops(&self, remote: IpAddr) -> bool {
        match remote {
            IpAddr::V4(_) => self.is_set(libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
            IpAddr::V6(_) => self.is_set(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
        }
    }

    /// Whether packets to a group come to this socket though it is not in it, another of this host being: `IP_MULTICAST_ALL`,
    /// `IPV6_MULTICAST_ALL`.
    pub fn takes_all_groups(&self, group: IpAddr) -> bool {
        match group {
            IpAddr::V4(_) => self.is_set(libc::IPPROTO_IP, libc::IP_MULTICAST_ALL),
            IpAddr::V6(_) => self.is_set(libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL),
        }
    }

    /// TCP's own bits of the type of service are not the user's: RFC 3168.
    pub fn clear_congestion_bits(&mut self) {
        self.ip.tos = self.ip.tos.map(|tos| tos & !3);
    }

    /// How long `SO_LINGER` has `close` wait; zero asks for a reset.
    pub fn lingers(&self) -> Option<Duration> {
        let [on, seconds] = *self.linger.as_chunks::<4>().0 else { return None };
        let seconds = u64::from(u32::from_ne_bytes(seconds));
        (i32::from_ne_bytes(on) != 0).then(|| Duration::from_secs(seconds))
    }
}

/// The queueing class of a type of service: `rt_tos2priority`, RFC 1349.
fn priority_of(tos: u8) -> i32 {
    const BEST_EFFORT: i32 = 0;
    const BULK: i32 = 2;
    const INTERACTIVE_BULK: i32 = 4;
    const INTERACTIVE: i32 = 6;
    match (tos & 0x10 != 0, tos & 0x08 != 0) {
        (false, false) => BEST_EFFORT,
        (false, true) => BULK,
        (true, false) => INTERACTIVE,
        (true, true) => INTERACTIVE_BULK,
    }
}

/// `net.ipv4.ip_default_ttl`, which is never above 255.
fn default_ttl(settings: &Settings) -> u8 {
    u8::try_from(settings.get(Number::DefaultTtl)).unwrap_or(64)
}

fn discovery(value: i32) -> Result<i32> {
    if (discover::DONT..=discover::OMIT).contains(&value) { Ok(value) } else { Err(Errno::EINVAL) }
}

/// `struct timeval` of a timeout; zero is none.
pub fn timeval(timeout: Option<Duration>) -> Vec<u8> {
    let timeout = timeout.unwrap_or(Duration::ZERO);
    let sec = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    [sec.to_ne_bytes(), i64::from(timeout.subsec_micros()).to_ne_bytes()].concat()
}

/// `socket(7)`: zero waits for ever; Linux takes a negative time as none at all. `EDOM` for bad microseconds.
pub fn timeout(value: &[u8]) -> Result<Option<Duration>> {
    let word = |at: usize| value.get(at..at + 8).and_then(|bytes| bytes.first_chunk()).map(|b| i64::from_ne_bytes(*b));
    let (Some(sec), Some(usec)) = (word(0), word(8)) else { return Err(Errno::EINVAL) };
    if !(0..1_000_000).contains(&usec) {
        return Err(Errno::EDOM);
    }
    match (u64::try_from(sec), usec) {
        (Err(_), _) => Ok(Some(Duration::ZERO)),
        (Ok(0), 0) => Ok(None),
        (Ok(sec), usec) => Ok(Some(Duration::new(sec, usec as u32 * 1000))),
    }
}
