//! Options that all Internet sockets have: `socket(7)`, `ip(7)`, `ipv6(7)`.

use std::time::Duration;

use crate::errno::{Errno, Result};
use crate::netstack::SocketOption;

/// `/proc/sys/net/core/rmem_max` and `wmem_max`, before doubling.
const MAX_BUF: usize = 212_992;
/// The smallest after doubling.
const MIN_SEND_BUF: usize = 4608;
const MIN_RECEIVE_BUF: usize = 2304;

/// Switches of `SOL_SOCKET`, `IPPROTO_IP` and `IPPROTO_IPV6` that are kept and read back. Those with an effect are looked
/// at by [`Common::is_set`].
const SWITCHES: [(i32, i32); 34] = [
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
    (libc::IPPROTO_IPV6, IPV6_FREEBIND),
    (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVRTHDR),
    (libc::IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL),
];
/// From `linux/in6.h`.
const IPV6_FREEBIND: i32 = 78;

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
    /// `IP_TOS`, `IPV6_TCLASS`.
    pub tos: u8,
    /// `IP_TTL`, `IPV6_UNICAST_HOPS`.
    pub ttl: u8,
    /// `IP_MULTICAST_TTL`, `IPV6_MULTICAST_HOPS`.
    pub multicast_ttl: u8,
    /// `SO_BINDTODEVICE`: an interface's name.
    pub device: Vec<u8>,
    priority: i32,
    mark: i32,
    mtu_discover: [i32; 2],
    /// Bit n is [`SWITCHES`]`[n]`.
    switches: u64,
}

impl Common {
    /// With these buffer sizes.
    pub fn new(receive_buf: usize, send_buf: usize) -> Common {
        let mut common = Common {
            receive_timeout: None,
            send_timeout: None,
            receive_buf,
            receive_buf_set: false,
            send_buf,
            send_buf_set: false,
            low_water: 1,
            linger: [0; 8],
            tos: 0,
            ttl: 64,
            multicast_ttl: 1,
            device: Vec::new(),
            priority: 0,
            mark: 0,
            mtu_discover: [1, 1],
            switches: 0,
        };
        for on in [libc::IP_MULTICAST_LOOP, libc::IP_MULTICAST_ALL] {
            common.switch(libc::IPPROTO_IP, on, true);
        }
        common.switch(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, true);
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
            (libc::SOL_SOCKET, libc::SO_BINDTODEVICE) => {
                let end: &[u8] = if self.device.is_empty() { &[] } else { &[0] };
                return Ok([&self.device, end].concat());
            }
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => self.tos.into(),
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => self.ttl.into(),
            (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS) => {
                self.multicast_ttl.into()
            }
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) => self.mtu_discover[0],
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) => self.mtu_discover[1],
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
            (libc::SOL_SOCKET, libc::SO_SNDBUF | libc::SO_SNDBUFFORCE) => {
                (self.send_buf, self.send_buf_set) = (doubled(int()?).max(MIN_SEND_BUF), true);
            }
            (libc::SOL_SOCKET, libc::SO_RCVBUF | libc::SO_RCVBUFFORCE) => {
                (self.receive_buf, self.receive_buf_set) = (doubled(int()?).max(MIN_RECEIVE_BUF), true);
            }
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => {
                let int = int()?;
                self.low_water = if int < 0 { i32::MAX } else { int.max(1) };
            }
            (libc::SOL_SOCKET, libc::SO_PRIORITY) => self.priority = int()?,
            (libc::SOL_SOCKET, libc::SO_MARK) => self.mark = int()?,
            (libc::SOL_SOCKET, libc::SO_LINGER) => self.linger = *value.first_chunk().ok_or(Errno::EINVAL)?,
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => self.receive_timeout = timeout(value)?,
            (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => self.send_timeout = timeout(value)?,
            (libc::SOL_SOCKET, libc::SO_BINDTODEVICE) => {
                let name = value.split(|&byte| byte == 0).next().unwrap_or_default();
                self.device = name[..name.len().min(libc::IFNAMSIZ - 1)].to_vec();
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => self.tos = int()? as u8,
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => self.tos = byte(int()?, 0)?,
            (libc::IPPROTO_IP, libc::IP_TTL) => match int()? {
                -1 => self.ttl = 64,
                ttl @ 1..=255 => self.ttl = ttl as u8,
                _ => return Err(Errno::EINVAL),
            },
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => self.ttl = byte(int()?, 64)?,
            (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS) => {
                self.multicast_ttl = byte(int()?, 1)?;
            }
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) => self.mtu_discover[0] = discovery(int()?)?,
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) => self.mtu_discover[1] = discovery(int()?)?,
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

    /// Whether `SO_LINGER` asks for a reset.
    pub fn lingers_not(&self) -> bool {
        let word = |at: usize| {
            i32::from_ne_bytes([self.linger[at], self.linger[at + 1], self.linger[at + 2], self.linger[at + 3]])
        };
        word(0) != 0 && word(4) == 0
    }
}

fn discovery(value: i32) -> Result<i32> {
    if (0..=5).contains(&value) { Ok(value) } else { Err(Errno::EINVAL) }
}

/// Linux doubles what is asked for, to make room for its own overhead.
fn doubled(asked: i32) -> usize {
    usize::try_from(asked).unwrap_or(MAX_BUF).min(MAX_BUF) * 2
}

fn timeval(timeout: Option<Duration>) -> Vec<u8> {
    let timeout = timeout.unwrap_or(Duration::ZERO);
    let sec = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    [sec.to_ne_bytes(), i64::from(timeout.subsec_micros()).to_ne_bytes()].concat()
}

/// `socket(7)`: zero waits for ever; Linux takes a negative time as none at all. `EDOM` for bad microseconds.
fn timeout(value: &[u8]) -> Result<Option<Duration>> {
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
