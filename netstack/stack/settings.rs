//! What of a network namespace can be set through `/proc/sys/net` and `linux.sysctl`: `ip(7)`, `tcp(7)`, and Linux's
//! `Documentation/networking/ip-sysctl.rst`, which say what each means.
//!
//! A number that is a default is taken over by sockets that are made afterwards.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::errno::{Errno, Result};

/// The longest ring of a connection, whatever `tcp_rmem` and `tcp_wmem` say.
const MAX_RING: u32 = 64 << 20;
/// Seconds that Linux can count in ticks, of which there are a thousand a second.
const MAX_SECONDS: u32 = i32::MAX as u32 / 1000;
/// `SOCK_MIN_RCVBUF` and `SOCK_MIN_SNDBUF`: no buffer is smaller.
pub const MIN_RECEIVE_BUF: u32 = 2304;
/// See [`MIN_RECEIVE_BUF`].
pub const MIN_SEND_BUF: u32 = 4608;
/// `TCP_RTO_MIN` and `TCP_RTO_MAX`, milliseconds.
const MIN_TIMEOUT: u64 = 200;
const MAX_TIMEOUT: u64 = 120_000;

/// A setting that is one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// `net.core.rmem_default`: `SO_RCVBUF` of new sockets but TCP's, bytes.
    ReceiveDefault,
    /// `net.core.rmem_max`: the most that `SO_RCVBUF` may ask for, before it is doubled.
    ReceiveMax,
    /// `net.core.wmem_default`: `SO_SNDBUF` of new sockets but TCP's, bytes.
    SendDefault,
    /// `net.core.wmem_max`: the most that `SO_SNDBUF` may ask for, before it is doubled.
    SendMax,
    /// `net.core.somaxconn`: the most that `listen(2)` may ask for.
    Somaxconn,
    /// `net.ipv4.icmp_echo_ignore_all`.
    EchoIgnoreAll,
    /// `net.ipv4.ip_default_ttl`.
    DefaultTtl,
    /// `net.ipv4.ip_nonlocal_bind`.
    NonlocalBind,
    /// `net.ipv4.ip_unprivileged_port_start`: ports from here on need no `CAP_NET_BIND_SERVICE`.
    PortStart,
    /// `net.ipv4.tcp_fin_timeout`, seconds.
    FinTimeout,
    /// `net.ipv4.tcp_keepalive_intvl`, seconds.
    KeepaliveInterval,
    /// `net.ipv4.tcp_keepalive_probes`.
    KeepaliveProbes,
    /// `net.ipv4.tcp_keepalive_time`, seconds.
    KeepaliveTime,
    /// `net.ipv4.tcp_orphan_retries`: how often data that nobody has open any more is sent again; 0 stands for 8.
    OrphanRetries,
    /// `net.ipv4.tcp_retries2`: how often data is sent again.
    Retries,
    /// `net.ipv4.tcp_syncookies`: 1 where a listener has too many handshakes, 2 always.
    Syncookies,
    /// `net.ipv4.tcp_synack_retries`.
    SynAckRetries,
    /// `net.ipv4.tcp_syn_retries`.
    SynRetries,
    /// `net.ipv6.bindv6only`: what `IPV6_V6ONLY` is at first.
    V6Only,
}

/// A number, its path beneath `/proc/sys`, what it is at first, and what it may be.
type Description = (Number, &'static str, u32, RangeInclusive<u32>);

/// In the order of [`Number`].
const NUMBERS: [Description; 19] = [
    (Number::ReceiveDefault, "net/core/rmem_default", 212_992, MIN_RECEIVE_BUF..=i32::MAX as u32),
    (Number::ReceiveMax, "net/core/rmem_max", 4 << 20, MIN_RECEIVE_BUF..=i32::MAX as u32),
    (Number::SendDefault, "net/core/wmem_default", 212_992, MIN_SEND_BUF..=i32::MAX as u32),
    (Number::SendMax, "net/core/wmem_max", 4 << 20, MIN_SEND_BUF..=i32::MAX as u32),
    (Number::Somaxconn, "net/core/somaxconn", 4096, 0..=i32::MAX as u32),
    (Number::EchoIgnoreAll, "net/ipv4/icmp_echo_ignore_all", 0, 0..=1),
    (Number::DefaultTtl, "net/ipv4/ip_default_ttl", 64, 1..=255),
    (Number::NonlocalBind, "net/ipv4/ip_nonlocal_bind", 0, 0..=1),
    (Number::PortStart, "net/ipv4/ip_unprivileged_port_start", 1024, 0..=65_535),
    (Number::FinTimeout, "net/ipv4/tcp_fin_timeout", 60, 0..=MAX_SECONDS),
    (Number::KeepaliveInterval, "net/ipv4/tcp_keepalive_intvl", 75, 1..=MAX_SECONDS),
    (Number::KeepaliveProbes, "net/ipv4/tcp_keepalive_probes", 9, 0..=255),
    (Number::KeepaliveTime, "net/ipv4/tcp_keepalive_time", 7200, 1..=MAX_SECONDS),
    (Number::OrphanRetries, "net/ipv4/tcp_orphan_retries", 0, 0..=255),
    (Number::Retries, "net/ipv4/tcp_retries2", 15, 0..=255),
    (Number::Syncookies, "net/ipv4/tcp_syncookies", 1, 0..=2),
    (Number::SynAckRetries, "net/ipv4/tcp_synack_retries", 5, 0..=255),
    (Number::SynRetries, "net/ipv4/tcp_syn_retries", 6, 1..=127),
    (Number::V6Only, "net/ipv6/bindv6only", 0, 0..=1),
];

impl Number {
    /// All, with their paths beneath `/proc/sys`.
    pub fn all() -> impl Iterator<Item = (Number, &'static str)> {
        NUMBERS.iter().map(|(number, path, ..)| (*number, *path))
    }
}

/// Which of a connection's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// `net.ipv4.tcp_rmem`.
    Receive,
    /// `net.ipv4.tcp_wmem`.
    Send,
}

/// The settings of a stack. All locks are leaves.
pub struct Settings {
    numbers: [AtomicU32; NUMBERS.len()],
    /// `net.ipv4.ip_local_port_range`: the first port in the upper half, the last in the lower.
    ports: AtomicU32,
    /// `net.ipv4.ip_local_reserved_ports`: ranges in order, none of which touches the next.
    reserved: RwLock<Vec<(u16, u16)>>,
    /// `net.ipv4.ping_group_range`: whose members may make ping sockets; none where the first is above the last.
    ping_groups: Mutex<(u32, u32)>,
    /// Of [`Buffer`]: the smallest, which has no effect as memory is never so short, the one shown at first, the longest.
    buffers: Mutex<[[u32; 3]; 2]>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            numbers: NUMBERS.map(|(_, _, first, _)| AtomicU32::new(first)),
            ports: AtomicU32::new(32_768 << 16 | 60_999),
            reserved: RwLock::default(),
            ping_groups: Mutex::new((0, i32::MAX as u32)),
            buffers: Mutex::new([[4096, 131_072, 1 << 20], [4096, 16_384, 2 << 20]]),
        }
    }
}

impl Settings {
    /// A number.
    pub fn get(&self, number: Number) -> u32 {
        self.numbers[number as usize].load(Ordering::Relaxed)
    }

    /// Sets it. `EINVAL`: it may not be that.
    pub fn set(&self, number: Number, value: u32) -> Result<()> {
        let (.., range) = &NUMBERS[number as usize];
        // As on Linux: ports for outgoing connections are never privileged.
        let inside =
            range.contains(&value) && (number != Number::PortStart || value <= u32::from(*self.ports().start()));
        if !inside {
            return Err(Errno::EINVAL);
        }
        self.numbers[number as usize].store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a switch is on.
    pub fn is_set(&self, number: Number) -> bool {
        self.get(number) != 0
    }

    /// A time in seconds.
    pub fn seconds(&self, number: Number) -> Duration {
        Duration::from_secs(self.get(number).into())
    }

    /// Whether binding to `port` needs `CAP_NET_BIND_SERVICE`.
    pub fn is_privileged(&self, port: u16) -> bool {
        port != 0 && u32::from(port) < self.get(Number::PortStart)
    }

    /// The ports that are given to sockets that ask for none.
    pub fn ports(&self) -> RangeInclusive<u16> {
        let both = self.ports.load(Ordering::Relaxed);
        (both >> 16) as u16..=both as u16
    }

    /// Sets them. `EINVAL`: there are none, or privileged ones.
    pub fn set_ports(&self, first: u32, last: u32) -> Result<()> {
        let right = (1..=65_535).contains(&first) && (first..=65_535).contains(&last);
        if !right || first < self.get(Number::PortStart) {
            return Err(Errno::EINVAL);
        }
        self.ports.store(first << 16 | last, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a port is given only to who asks for it.
    pub fn is_reserved(&self, port: u16) -> bool {
        self.reserved.read().iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// The reserved ports: `8080,9000-9010`.
    pub fn reserved_ports(&self) -> String {
        let one = |&(first, last): &(u16, u16)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        self.reserved.read().iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// Sets them from such a list. `EINVAL`.
    pub fn set_reserved_ports(&self, text: &str) -> Result<()> {
        let port = |text: &str| text.parse::<u16>().map_err(|_| Errno::EINVAL);
        let mut ranges = Vec::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (port(first)?, port(last)?);
            if first > last {
                return Err(Errno::EINVAL);
            }
            ranges.push((first, last));
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        *self.reserved.write() = merged;
        Ok(())
    }

    /// The first and the last group whose members may make ping sockets.
    pub fn ping_groups(&self) -> (u32, u32) {
        *self.ping_groups.lock()
    }

    /// Sets them.
    pub fn set_ping_groups(&self, first: u32, last: u32) {
        *self.ping_groups.lock() = (first, last);
    }

    /// Whether a member of one of `groups` may make a ping socket.
    pub fn may_ping(&self, mut groups: impl Iterator<Item = u32>) -> bool {
        let (first, last) = self.ping_groups();
        groups.any(|group| (first..=last).contains(&group))
    }

    /// Three sizes in bytes: the smallest, what new sockets show, and how much a connection's ring holds.
    pub fn buffer(&self, which: Buffer) -> [u32; 3] {
        self.buffers.lock()[which as usize]
    }

    /// Sets them. `EINVAL`: one is 0 or none of `int`.
    pub fn set_buffer(&self, which: Buffer, sizes: [u32; 3]) -> Result<()> {
        if sizes.iter().any(|size| !(1..=i32::MAX as u32).contains(size)) {
            return Err(Errno::EINVAL);
        }
        self.buffers.lock()[which as usize] = sizes;
        Ok(())
    }

    /// What `SO_RCVBUF` and `SO_SNDBUF` of new sockets are, but TCP's.
    pub fn default_buffers(&self) -> [usize; 2] {
        [Number::ReceiveDefault, Number::SendDefault].map(|number| self.get(number) as usize)
    }

    /// What becomes of a size that `SO_RCVBUF` (or with `send` `SO_SNDBUF`) asks for, by force or not: doubled, as Linux makes
    /// room for its own overhead.
    pub fn buffer_size(&self, send: bool, asked: i32, force: bool) -> usize {
        let (limit, least) = if send {
            (self.get(Number::SendMax), MIN_SEND_BUF)
        } else {
            (self.get(Number::ReceiveMax), MIN_RECEIVE_BUF)
        };
        let asked = match force {
            true => u32::try_from(asked).unwrap_or(0),
            // What is negative counts as more than anybody may have.
            false => (asked as u32).min(limit),
        };
        (asked.min(i32::MAX as u32 / 2) * 2).max(least) as usize
    }

    /// The ring of a connection whose socket did not ask for a size.
    pub fn ring(&self, which: Buffer) -> usize {
        self.buffer(which)[2].clamp(4096, MAX_RING) as usize
    }

    /// How long data may stay unacknowledged: the time of `tcp_retries2` retransmissions, the first after 200 ms, each
    /// after twice the time of that before, two minutes at most.
    pub fn retransmit_timeout(&self) -> Duration {
        data_retry_time(self.get(Number::Retries))
    }

    /// The same for data that nobody has open any more.
    pub fn orphan_timeout(&self) -> Duration {
        match self.get(Number::OrphanRetries) {
            0 => data_retry_time(8),
            retries => data_retry_time(retries),
        }
    }
}

fn data_retry_time(retries: u32) -> Duration {
    Duration::from_millis((0..=retries).map(|n| (MIN_TIMEOUT << n.min(20)).min(MAX_TIMEOUT)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_in_their_order() {
        for (place, (number, path, first, range)) in NUMBERS.iter().enumerate() {
            assert_eq!(*number as usize, place, "{path}");
            assert!(range.contains(first), "{path}");
        }
    }

    #[test]
    fn buffers_are_doubled_and_bounded() {
        let settings = Settings::default();
        settings.set(Number::ReceiveMax, 300_000).unwrap();
        assert_eq!(settings.buffer_size(false, 100_000, false), 200_000);
        assert_eq!(settings.buffer_size(false, 400_000, false), 600_000);
        assert_eq!(settings.buffer_size(false, -1, false), 600_000);
        assert_eq!(settings.buffer_size(false, 400_000, true), 800_000);
        assert_eq!(settings.buffer_size(false, i32::MAX, true), i32::MAX as usize - 1);
        assert_eq!(settings.buffer_size(false, -1, true), MIN_RECEIVE_BUF as usize);
        assert_eq!(settings.buffer_size(true, 0, false), MIN_SEND_BUF as usize);
        assert_eq!(settings.set(Number::SendMax, MIN_SEND_BUF - 1), Err(Errno::EINVAL));
    }

    #[test]
    fn reserved_ports_are_a_list_of_ranges() {
        let settings = Settings::default();
        settings.set_reserved_ports("9000-9010,8080,9005-9020,8081\n").unwrap();
        assert_eq!(settings.reserved_ports(), "8080-8081,9000-9020");
        assert!(settings.is_reserved(9015) && !settings.is_reserved(8082));
        for wrong in ["1-", "2-1", "65536", "a", "1 2"] {
            assert_eq!(settings.set_reserved_ports(wrong), Err(Errno::EINVAL), "{wrong}");
        }
        settings.set_reserved_ports("\n").unwrap();
        assert_eq!(settings.reserved_ports(), "");
    }

    #[test]
    fn privileged_ports_are_never_chosen() {
        let settings = Settings::default();
        assert_eq!(settings.set_ports(1000, 2000), Err(Errno::EINVAL));
        settings.set_ports(2000, 2000).unwrap();
        assert_eq!(settings.ports(), 2000..=2000);
        assert_eq!(settings.set(Number::PortStart, 2001), Err(Errno::EINVAL));
        settings.set(Number::PortStart, 0).unwrap();
        settings.set_ports(1, 65_535).unwrap();
        for (first, last) in [(0, 5), (5, 4), (5, 65_536)] {
            assert_eq!(settings.set_ports(first, last), Err(Errno::EINVAL));
        }
    }

    #[test]
    fn retransmissions_take_as_long_as_on_linux() {
        let settings = Settings::default();
        assert_eq!(settings.retransmit_timeout(), Duration::from_millis(924_600));
        settings.set(Number::Retries, 3).unwrap();
        assert_eq!(settings.retransmit_timeout(), Duration::from_millis(3000));
        assert_eq!(settings.set(Number::Retries, 256), Err(Errno::EINVAL));
    }
}
