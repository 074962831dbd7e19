//! Interfaces, addresses and routes. They are fixed when the sandbox starts, so looking at them takes no lock.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::container::network::{Mac, NetConfig, Prefix};
use crate::errno::{Errno, Result};
use crate::netstack::device::{Stats, Tap};

/// The index of `lo`.
const LOOPBACK: u32 = 1;
/// The MTU of `lo`, as on Linux.
const LOOPBACK_MTU: u32 = 65_536;

/// A network interface.
pub struct Interface {
    /// From 1.
    pub index: u32,
    /// `lo`, `eth0`.
    pub name: &'static str,
    /// Zero for `lo`.
    pub mac: [u8; 6],
    /// The longest packet, without an Ethernet header.
    pub mtu: u32,
    /// Own addresses.
    pub addresses: Vec<Prefix>,
    /// The device, if it is not `lo`.
    pub tap: Option<Arc<Tap>>,
    /// `lo` counts here; others in their device.
    own_stats: Stats,
}

impl Interface {
    /// What happened on it.
    pub fn stats(&self) -> &Stats {
        self.tap.as_ref().map_or(&self.own_stats, |tap| &tap.stats)
    }

    /// `IFF_*` of `netdevice(7)`.
    pub fn flags(&self) -> u32 {
        let flags = match self.is_loopback() {
            true => libc::IFF_UP | libc::IFF_RUNNING | libc::IFF_LOOPBACK,
            false => libc::IFF_UP | libc::IFF_RUNNING | libc::IFF_BROADCAST | libc::IFF_MULTICAST,
        };
        flags as u32
    }

    /// Whether it is `lo`.
    pub fn is_loopback(&self) -> bool {
        self.tap.is_none()
    }
}

/// How a packet reaches its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The interface's index.
    pub interface: u32,
    /// The source address, when the sender has no other.
    pub source: IpAddr,
    /// Whom to hand it to: the destination itself or a gateway.
    pub next_hop: IpAddr,
    /// It does not leave the sandbox.
    pub local: bool,
    /// To more than one host.
    pub broadcast: bool,
    /// Where it seems to arrive when it does not leave the sandbox: as on Linux the interface that has the address.
    pub arrives: u32,
}

impl Route {
    /// Whether packets leave the sandbox: neither those to this host nor those to neighbours of `lo` do.
    pub fn leaves(&self) -> bool {
        !self.local && self.interface != LOOPBACK
    }
}

/// All interfaces.
pub struct Interfaces {
    all: Vec<Interface>,
    gateways: Vec<IpAddr>,
}

impl Interfaces {
    /// `lo` and, when there is a device, `eth0`.
    pub fn new(config: &NetConfig, tap: Option<Arc<Tap>>) -> Interfaces {
        let loopback = Interface {
            index: 1,
            name: "lo",
            mac: [0; 6],
            mtu: LOOPBACK_MTU,
            addresses: vec![
                Prefix { addr: Ipv4Addr::LOCALHOST.into(), len: 8 },
                Prefix { addr: Ipv6Addr::LOCALHOST.into(), len: 128 },
            ],
            tap: None,
            own_stats: Stats::default(),
        };
        let mut all = vec![loopback];
        if let Some(tap) = tap {
            let mac = config.mac.unwrap_or_else(random_mac).0;
            let mut addresses = config.addresses.clone();
            if addresses.iter().any(|prefix| prefix.addr.is_ipv6()) {
                addresses.push(Prefix { addr: link_local(mac).into(), len: 64 });
            }
            let mtu = u32::from(config.mtu.unwrap_or(1500)).max(576);
            all.push(Interface {
                index: 2,
                name: "eth0",
                mac,
                mtu,
                addresses,
                tap: Some(tap),
                own_stats: Stats::default(),
            });
        }
        Interfaces { all, gateways: config.gateways.clone() }
    }

    /// Every interface, in the order of their index.
    pub fn iter(&self) -> std::slice::Iter<'_, Interface> {
        self.all.iter()
    }

    /// By index.
    pub fn get(&self, index: u32) -> Option<&Interface> {
        self.all.iter().find(|interface| interface.index == index)
    }

    /// By name.
    pub fn by_name(&self, name: &[u8]) -> Option<&Interface> {
        self.all.iter().find(|interface| interface.name.as_bytes() == name)
    }

    /// `lo`.
    pub fn loopback(&self) -> &Interface {
        &self.all[0]
    }

    /// The one with the TAP device.
    pub fn external(&self) -> Option<&Interface> {
        self.all.get(1)
    }

    /// Default gateways.
    pub fn gateways(&self) -> &[IpAddr] {
        &self.gateways
    }

    /// Whether packets to `addr` end here.
    pub fn is_local(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(v4) if v4.is_loopback() => true,
            _ => self.all.iter().flat_map(|interface| &interface.addresses).any(|prefix| prefix.addr == addr),
        }
    }

    /// Whether `addr` is a broadcast address here.
    pub fn is_broadcast(&self, addr: IpAddr) -> bool {
        let IpAddr::V4(v4) = addr else { return false };
        v4.is_broadcast()
            || self.all.iter().flat_map(|interface| &interface.addresses).any(|prefix| {
                let IpAddr::V4(own) = prefix.addr else { return false };
                prefix.len < 31 && u32::from(own) | !mask_v4(prefix.len) == u32::from(v4)
            })
    }

    /// Whether a socket may be bound to it.
    pub fn may_bind(&self, addr: IpAddr) -> bool {
        self.is_local(addr) || addr.is_multicast() || self.is_broadcast(addr)
    }

    /// The way to `destination`. `ENETUNREACH`.
    pub fn route(&self, destination: IpAddr) -> Result<Route> {
        // To the unspecified address means to this host.
        let destination = match destination {
            IpAddr::V4(addr) if addr.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(addr) if addr.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            other => other,
        };
        if self.is_local(destination) {
            let source = match destination {
                IpAddr::V4(addr) if addr.is_loopback() => Ipv4Addr::LOCALHOST.into(),
                other => other,
            };
            let arrives = self.owner(destination).unwrap_or(1);
            return Ok(Route { interface: 1, source, next_hop: destination, local: true, broadcast: false, arrives });
        }
        self.outward(destination)
    }

    /// The way to `destination` by way of `device` when that is given: `SO_BINDTODEVICE`, `IP_MULTICAST_IF`.
    ///
    /// As on Linux an IPv4 address that no route by that device leads to is taken to be its neighbour; of `lo`'s neighbours
    /// there are none, and what is sent to them is gone. `ENETUNREACH` for IPv6, and for a device that is not there.
    pub fn route_by(&self, destination: IpAddr, device: Option<u32>) -> Result<Route> {
        let Some(device) = device else { return self.route(destination) };
        let interface = self.get(device).ok_or(Errno::ENETUNREACH)?;
        let local = self.is_local(destination) || destination.is_unspecified();
        if !interface.is_loopback() {
            let lo_only = local && self.route(destination)?.arrives == 1;
            return match destination {
                _ if !lo_only => self.route(destination),
                IpAddr::V4(_) => self.outward(destination),
                IpAddr::V6(_) => Err(Errno::ENETUNREACH),
            };
        }
        if local {
            return Ok(Route { arrives: device, ..self.route(destination)? });
        }
        let source = match destination {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) if destination.is_multicast() => Ipv6Addr::LOCALHOST.into(),
            IpAddr::V6(_) => return Err(Errno::ENETUNREACH),
        };
        let group = destination.is_multicast();
        Ok(Route { interface: device, source, next_hop: destination, local: group, broadcast: group, arrives: device })
    }

    /// The interface that has an address: its index.
    pub fn owner(&self, addr: IpAddr) -> Option<u32> {
        let loopback = matches!(addr, IpAddr::V4(v4) if v4.is_loopback());
        let has = |interface: &&Interface| interface.addresses.iter().any(|prefix| prefix.addr == addr);
        if loopback { Some(1) } else { self.all.iter().find(has).map(|interface| interface.index) }
    }

    /// The way out of the sandbox.
    fn outward(&self, destination: IpAddr) -> Result<Route> {
        let interface = self.external().ok_or(Errno::ENETUNREACH)?;
        let broadcast = self.is_broadcast(destination);
        let everybody = broadcast || destination.is_multicast();
        let on_link = || interface.addresses.iter().any(|prefix| contains(prefix, destination));
        let next_hop = if everybody || is_link_local(destination) || on_link() {
            destination
        } else {
            let gateway = self.gateways.iter().find(|gateway| gateway.is_ipv4() == destination.is_ipv4());
            *gateway.ok_or(Errno::ENETUNREACH)?
        };
        let source = source_for(interface, next_hop).ok_or(Errno::ENETUNREACH)?;
        let arrives = interface.index;
        Ok(Route { interface: arrives, source, next_hop, local: false, broadcast: everybody, arrives })
    }
}

/// The own address to talk to `peer` with: one of its network, else the first of its family and scope.
fn source_for(interface: &Interface, peer: IpAddr) -> Option<IpAddr> {
    let candidates = || interface.addresses.iter().filter(|prefix| prefix.addr.is_ipv4() == peer.is_ipv4());
    let same_network = candidates().find(|prefix| contains(prefix, peer));
    let same_scope = || candidates().find(|prefix| is_link_local(prefix.addr) == is_link_local(peer));
    same_network.or_else(same_scope).or_else(|| candidates().next()).map(|prefix| prefix.addr)
}

/// Whether `addr` is an IPv6 link-local address.
pub fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80)
}

/// Whether `addr` belongs to the network of `prefix`.
pub fn contains(prefix: &Prefix, addr: IpAddr) -> bool {
    match (prefix.addr, addr) {
        (IpAddr::V4(own), IpAddr::V4(addr)) => (u32::from(own) ^ u32::from(addr)) & mask_v4(prefix.len) == 0,
        (IpAddr::V6(own), IpAddr::V6(addr)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.len.min(128))).unwrap_or(0);
            (u128::from(own) ^ u128::from(addr)) & mask == 0
        }
        _ => false,
    }
}

/// The netmask of a prefix length.
pub fn mask_v4(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0)
}

/// RFC 4291, appendix A.
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// A locally administered unicast address.
fn random_mac() -> Mac {
    let [a, b, c, d, e, ..] = super::random_u64().to_ne_bytes();
    Mac([2, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces() -> Interfaces {
        let (fd, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let config = NetConfig {
            addresses: vec!["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            ..NetConfig::default()
        };
        Interfaces::new(&config, Some(Arc::new(Tap::new(fd.into(), true))))
    }

    #[test]
    fn routes() {
        let all = interfaces();
        let way =
            |to: &str| all.route(to.parse().unwrap()).map(|r| (r.local, r.next_hop.to_string(), r.source.to_string()));
        let ok = |local, hop: &str, source: &str| Ok((local, hop.to_string(), source.to_string()));
        assert_eq!(way("127.5.5.5"), ok(true, "127.5.5.5", "127.0.0.1"));
        assert_eq!(way("0.0.0.0"), ok(true, "127.0.0.1", "127.0.0.1"));
        assert_eq!(way("10.0.0.2"), ok(true, "10.0.0.2", "10.0.0.2"));
        assert_eq!(way("10.0.0.9"), ok(false, "10.0.0.9", "10.0.0.2"));
        assert_eq!(way("8.8.8.8"), ok(false, "10.0.0.1", "10.0.0.2"));
        assert_eq!(way("fd00::9"), ok(false, "fd00::9", "fd00::2"));
        assert_eq!(way("2001::1"), Err(Errno::ENETUNREACH), "no gateway of that family");
        assert!(all.route("10.0.0.255".parse().unwrap()).unwrap().broadcast);
        assert!(all.may_bind("10.0.0.255".parse().unwrap()) && !all.may_bind("10.0.0.7".parse().unwrap()));
    }

    #[test]
    fn devices_restrict_routes() {
        let all = interfaces();
        let way = |to: &str, device| all.route_by(to.parse().unwrap(), Some(device)).map(|r| (r.local, r.arrives));
        assert_eq!(way("127.0.0.1", 1), Ok((true, 1)));
        assert_eq!(way("127.0.0.1", 2), Ok((false, 2)), "taken for a neighbour");
        assert_eq!(way("::1", 2), Err(Errno::ENETUNREACH));
        assert_eq!(way("10.0.0.2", 2), Ok((true, 2)));
        assert_eq!(way("10.0.0.2", 1), Ok((true, 1)));
        assert_eq!(way("8.8.8.8", 1), Ok((false, 1)));
        assert_eq!(way("2001::1", 1), Err(Errno::ENETUNREACH));
        assert_eq!(way("239.1.2.3", 1), Ok((true, 1)));
        assert_eq!(way("10.0.0.1", 9), Err(Errno::ENETUNREACH));
    }

    #[test]
    fn without_a_device_there_is_only_loopback() {
        let all = Interfaces::new(&NetConfig::default(), None);
        assert_eq!(all.route("10.0.0.9".parse().unwrap()), Err(Errno::ENETUNREACH));
        assert!(all.route("::1".parse().unwrap()).unwrap().local);
    }
}
