//! Interfaces, addresses and routes. Those beside `lo` are attached once, before any program runs, so looking at them takes
//! no lock. What changes is whether they have IPv6 ([`v6`](super::v6)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::neighbour::Neighbours;
use super::v6::{V6Settings, V6Switch};
use crate::container::network::{Link, Prefix};
use crate::errno::{Errno, Result};
use crate::netstack::device::{Stats, Tap};

/// The MTU of `lo`, as on Linux.
const LOOPBACK_MTU: u32 = 65_536;
/// The index of `lo`.
pub const LOOPBACK: u32 = 1;
/// How many devices a stack waits on.
pub const MAX_DEVICES: usize = 32;

/// A network interface.
pub struct Interface {
    /// From 1.
    pub index: u32,
    /// `lo`, `eth0`.
    pub name: String,
    /// Zero for `lo`.
    pub mac: [u8; 6],
    /// The longest packet, without an Ethernet header.
    pub mtu: u32,
    /// The addresses that it was attached with.
    all_addresses: Vec<Prefix>,
    /// Whether those of IPv6 are in force.
    pub v6: V6Switch,
    /// The device, if it is not `lo`.
    pub tap: Option<Arc<Tap>>,
    /// Who is at the other end of its wire.
    pub neighbours: Neighbours,
    /// `lo` counts here; others in their device.
    own_stats: Stats,
}

impl Interface {
    fn loopback(v6_off: bool) -> Interface {
        Interface {
            index: LOOPBACK,
            name: "lo".into(),
            mac: [0; 6],
            mtu: LOOPBACK_MTU,
            all_addresses: vec![
                Prefix { addr: Ipv4Addr::LOCALHOST.into(), len: 8 },
                Prefix { addr: Ipv6Addr::LOCALHOST.into(), len: 128 },
            ],
            v6: V6Switch::new(v6_off),
            tap: None,
            neighbours: Neighbours::default(),
            own_stats: Stats::default(),
        }
    }

    fn external(link: &Link, device: OwnedFd, v6_off: bool) -> Interface {
        let neighbours = Neighbours::default();
        link.neighbours.iter().for_each(|(addr, mac)| neighbours.set_permanent(*addr, mac.0));
        Interface {
            index: link.index,
            name: link.name.clone(),
            mac: link.mac.0,
            mtu: link.mtu,
            all_addresses: link.addresses.clone(),
            v6: V6Switch::new(v6_off),
            tap: Some(Arc::new(Tap::new(device, link.header))),
            neighbours,
            own_stats: Stats::default(),
        }
    }

    /// Its own addresses.
    pub fn addresses(&self) -> impl Iterator<Item = &Prefix> {
        self.all_addresses.iter().filter(|prefix| self.v6.allows(prefix.addr))
    }

    /// Whether it has an address.
    pub fn has(&self, addr: IpAddr) -> bool {
        self.addresses().any(|prefix| prefix.addr == addr)
    }

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

    /// The own address to talk to `peer` with: one of its network, else the first of its family and scope.
    pub fn source_for(&self, peer: IpAddr) -> Option<IpAddr> {
        let candidates = || self.addresses().filter(|prefix| prefix.addr.is_ipv4() == peer.is_ipv4());
        let same_network = candidates().find(|prefix| contains(prefix, peer));
        let same_scope = || candidates().find(|prefix| is_link_local(prefix.addr) == is_link_local(peer));
        same_network.or_else(same_scope).or_else(|| candidates().next()).map(|prefix| prefix.addr)
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

/// An entry of the main routing table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// The interface's index.
    pub interface: u32,
    /// What it says.
    pub route: crate::container::network::Route,
}

struct Table {
    /// `lo` first.
    all: Vec<Interface>,
    /// The longest prefix first, then the lowest metric, then the order in which they were given.
    routes: Vec<RouteEntry>,
}

/// All interfaces.
pub struct Interfaces {
    /// Before anything is attached.
    alone: Table,
    attached: OnceLock<Table>,
    /// Leaf lock.
    v6: Mutex<V6Settings>,
}

impl Default for Interfaces {
    /// `lo`.
    fn default() -> Interfaces {
        let alone = Table { all: vec![Interface::loopback(false)], routes: Vec::new() };
        Interfaces { alone, attached: OnceLock::new(), v6: Mutex::default() }
    }
}

impl Interfaces {
    /// Adds interfaces, each with its device, once. `EBUSY` when there are some, `EINVAL` when two have one name or number,
    /// `ENOSPC` when there are more than [`MAX_DEVICES`].
    pub(super) fn attach(&self, links: Vec<(Link, OwnedFd)>) -> Result<()> {
        if links.len() > MAX_DEVICES {
            return Err(Errno::ENOSPC);
        }
        let v6 = self.v6.lock();
        let lo = Interface::loopback(self.alone.all[0].v6.is_off());
        let mut table = Table { all: vec![lo], routes: Vec::new() };
        for (link, device) in links {
            if table.all.iter().any(|known| known.name == link.name || known.index == link.index) {
                return Err(Errno::EINVAL);
            }
            table.routes.extend(link.routes.iter().map(|route| RouteEntry { interface: link.index, route: *route }));
            let off = v6.of(&link.name);
            table.all.push(Interface::external(&link, device, off));
        }
        table.routes.sort_by_key(|entry| (u8::MAX - entry.route.destination.len, entry.route.metric));
        self.attached.set(table).map_err(|_| Errno::EBUSY)
    }

    fn table(&self) -> &Table {
        self.attached.get().unwrap_or(&self.alone)
    }

    /// Every interface, `lo` first.
    pub fn iter(&self) -> std::slice::Iter<'_, Interface> {
        self.table().all.iter()
    }

    /// Those with a device.
    pub fn devices(&self) -> &[Interface] {
        &self.table().all[1..]
    }

    /// By index.
    pub fn get(&self, index: u32) -> Option<&Interface> {
        self.iter().find(|interface| interface.index == index)
    }

    /// By name.
    pub fn by_name(&self, name: &[u8]) -> Option<&Interface> {
        self.iter().find(|interface| interface.name.as_bytes() == name)
    }

    /// `lo`.
    pub fn loopback(&self) -> &Interface {
        &self.table().all[0]
    }

    /// The main routing table: the longest prefix first.
    pub fn routes(&self) -> impl Iterator<Item = &RouteEntry> {
        let in_force = |entry: &&RouteEntry| {
            let interface = self.get(entry.interface);
            interface.is_none_or(|interface| interface.v6.allows(entry.route.destination.addr))
        };
        self.table().routes.iter().filter(in_force)
    }

    /// Whether IPv6 is off: of an interface, of `all` as last set, or by `default` of those to come. `None` when there is
    /// nothing of that name.
    pub fn v6_is_off(&self, name: &str) -> Option<bool> {
        match name {
            "all" => Some(self.v6.lock().all),
            "default" => Some(self.v6.lock().default),
            name => self.by_name(name.as_bytes()).map(|interface| interface.v6.is_off()),
        }
    }

    /// Turns IPv6 off or on: of an interface, which may be one to come, of `all` there are and are to come, or by `default` of
    /// those to come.
    pub fn set_v6_off(&self, name: &str, off: bool) {
        let mut settings = self.v6.lock();
        match name {
            "all" => {
                (settings.all, settings.default) = (off, off);
                settings.named.clear();
                self.iter().for_each(|interface| interface.v6.set_off(off));
            }
            "default" => settings.default = off,
            name => match self.by_name(name.as_bytes()) {
                Some(interface) => interface.v6.set_off(off),
                None => {
                    settings.named.insert(name.to_owned(), off);
                }
            },
        }
    }

    /// The scope that a link-local address is shown with: where packets to it go.
    pub fn scope_of(&self, addr: IpAddr) -> u32 {
        match is_link_local(addr) {
            true => {
                let own = self.iter().find(|one| one.has(addr));
                own.map(|one| one.index).or_else(|| self.route(addr).ok().map(|route| route.interface)).unwrap_or(0)
            }
            false => 0,
        }
    }

    /// Whether packets to `addr` end here.
    pub fn is_local(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(v4) if v4.is_loopback() => true,
            _ => self.iter().any(|interface| interface.has(addr)),
        }
    }

    /// Whether `addr` is a broadcast address here.
    pub fn is_broadcast(&self, addr: IpAddr) -> bool {
        let IpAddr::V4(v4) = addr else { return false };
        v4.is_broadcast()
            || self.iter().flat_map(Interface::addresses).any(|prefix| {
                let IpAddr::V4(own) = prefix.addr else { return false };
                prefix.len < 31 && u32::from(own) | !mask_v4(prefix.len) == u32::from(v4)
            })
    }

    /// Whether a socket may be bound to it.
    pub fn may_bind(&self, addr: IpAddr) -> bool {
        self.is_local(addr) || addr.is_multicast() || self.is_broadcast(addr)
    }

    /// The way to `destination`. `ENETUNREACH`; `EADDRNOTAVAIL` for IPv6 where no interface has an address of it.
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
            let arrives = self.owner(destination).unwrap_or(LOOPBACK);
            return Ok(Route {
                interface: LOOPBACK,
                source,
                next_hop: destination,
                local: true,
                broadcast: false,
                arrives,
            });
        }
        self.outward(destination, None)
    }

    /// Why there is no way to `destination`.
    fn no_way(&self, destination: IpAddr) -> Errno {
        let same = |prefix: &Prefix| prefix.addr.is_ipv4() == destination.is_ipv4();
        if self.iter().flat_map(Interface::addresses).any(same) { Errno::ENETUNREACH } else { Errno::EADDRNOTAVAIL }
    }

    /// The way to `destination` by way of `device` when that is given: `SO_BINDTODEVICE`, `IP_MULTICAST_IF`.
    ///
    /// As on Linux an IPv4 address that no route by that device leads to is taken to be its neighbour; of `lo`'s neighbours
    /// there are none, and what is sent to them is gone. `ENETUNREACH` for IPv6, and for a device that is not there.
    pub fn route_by(&self, destination: IpAddr, device: Option<u32>) -> Result<Route> {
        let Some(device) = device else { return self.route(destination) };
        let interface = self.get(device).ok_or(Errno::ENETUNREACH)?;
        let local = self.is_local(destination) || destination.is_unspecified();
        let own = if local { Some(self.route(destination)?) } else { None };
        if !interface.is_loopback() {
            return match own {
                Some(route) if route.arrives == device => Ok(route),
                _ => self.outward(destination, Some(device)),
            };
        }
        if let Some(route) = own {
            return Ok(Route { arrives: device, ..route });
        }
        let source = match destination {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) if destination.is_multicast() && !interface.v6.is_off() => Ipv6Addr::LOCALHOST.into(),
            IpAddr::V6(_) => return Err(self.no_way(destination)),
        };
        let group = destination.is_multicast();
        Ok(Route { interface: device, source, next_hop: destination, local: group, broadcast: group, arrives: device })
    }

    /// The interface that has an address: its index.
    pub fn owner(&self, addr: IpAddr) -> Option<u32> {
        let loopback = matches!(addr, IpAddr::V4(v4) if v4.is_loopback());
        let has = |interface: &&Interface| interface.has(addr);
        if loopback { Some(LOOPBACK) } else { self.iter().find(has).map(|interface| interface.index) }
    }

    /// The way out of the sandbox, by way of `device` when that is given.
    fn outward(&self, destination: IpAddr, device: Option<u32>) -> Result<Route> {
        let everybody = self.is_broadcast(destination) || destination.is_multicast();
        let mut routes = self.routes().filter(|entry| device.is_none_or(|device| entry.interface == device));
        let entry = routes.find(|entry| contains(&entry.route.destination, destination));
        // These need no route: somebody on the first wire.
        let neighbour = everybody || is_link_local(destination);
        let interface = match (entry, device) {
            (Some(entry), _) => self.get(entry.interface),
            (None, Some(device)) if neighbour || destination.is_ipv4() => self.get(device),
            (None, None) if neighbour => self.devices().first(),
            (None, _) => None,
        };
        let interface = interface.filter(|interface| destination.is_ipv4() || !interface.v6.is_off());
        let interface = interface.ok_or_else(|| self.no_way(destination))?;
        let gateway = entry.and_then(|entry| entry.route.gateway).filter(|_| !everybody);
        let next_hop = gateway.unwrap_or(destination);
        let source = entry.and_then(|entry| entry.route.source).or_else(|| interface.source_for(next_hop));
        let source = source.ok_or_else(|| self.no_way(destination))?;
        let arrives = interface.index;
        Ok(Route { interface: arrives, source, next_hop, local: false, broadcast: everybody, arrives })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::network::{NetConfig, Route as Config};

    fn device() -> OwnedFd {
        std::os::unix::net::UnixDatagram::pair().unwrap().0.into()
    }

    fn interfaces() -> Interfaces {
        let config = NetConfig {
            addresses: vec!["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            ..NetConfig::default()
        };
        let all = Interfaces::default();
        all.attach(vec![(config.link(), device())]).unwrap();
        all
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
    fn what_takes_no_part_in_ipv6_has_neither_addresses_nor_routes() {
        let all = Interfaces::default();
        all.set_v6_off("eth1", true);
        let link = |index: u32, addr: &str| {
            let config = NetConfig { addresses: vec![addr.parse().unwrap()], ..NetConfig::default() };
            Link { index, name: format!("eth{index}"), ..config.link() }
        };
        all.attach(vec![(link(2, "fd00::2/64"), device()), (link(3, "fd01::2/64"), device())]).unwrap();
        let way = |to: &str| all.route(to.parse().unwrap()).map(|route| route.interface);
        let local = || ["fd00::2", "fd01::2", "::1"].map(|addr| all.is_local(addr.parse().unwrap()));
        assert_eq!((local(), way("fd01::9")), ([true; 3], Ok(3)));
        all.set_v6_off("eth3", true);
        assert_eq!((local(), way("fd01::9")), ([true, false, true], Err(Errno::ENETUNREACH)));
        assert_eq!(all.v6_is_off("eth3"), Some(true));
        all.set_v6_off("all", true);
        assert_eq!((local(), way("fd00::9")), ([false; 3], Err(Errno::EADDRNOTAVAIL)));
        assert_eq!((all.v6_is_off("default"), all.v6_is_off("eth1")), (Some(true), None));
        all.set_v6_off("all", false);
        assert_eq!(local(), [false, false, true], "what is lost is lost");
    }

    #[test]
    fn an_interface_begins_as_was_set_before() {
        let all = Interfaces::default();
        all.set_v6_off("default", true);
        all.set_v6_off("eth0", false);
        all.set_v6_off("lo", true);
        let config = NetConfig { addresses: vec!["fd00::2/64".parse().unwrap()], ..NetConfig::default() };
        let other = Link { index: 3, name: "eth1".into(), ..config.link() };
        all.attach(vec![(config.link(), device()), (other, device())]).unwrap();
        assert_eq!(["lo", "eth0", "eth1"].map(|name| all.v6_is_off(name)), [true, false, true].map(Some));
    }

    #[test]
    fn without_a_device_there_is_only_loopback() {
        let all = Interfaces::default();
        assert_eq!(all.route("10.0.0.9".parse().unwrap()), Err(Errno::ENETUNREACH));
        assert!(all.route("::1".parse().unwrap()).unwrap().local);
    }

    #[test]
    fn the_longest_prefix_then_the_lowest_metric() {
        let link = |index: u32, addr: &str, routes: &[(&str, Option<&str>, u32)]| {
            let routes = routes.iter().map(|(destination, gateway, metric)| Config {
                destination: destination.parse().unwrap(),
                gateway: gateway.map(|gateway| gateway.parse().unwrap()),
                source: None,
                metric: *metric,
                protocol: 3,
            });
            let config = NetConfig { addresses: vec![addr.parse().unwrap()], ..NetConfig::default() };
            Link { index, name: format!("eth{index}"), routes: routes.collect(), ..config.link() }
        };
        let all = Interfaces::default();
        let one = link(2, "10.0.0.2/24", &[("10.0.0.0/24", None, 0), ("0.0.0.0/0", Some("10.0.0.1"), 100)]);
        let two = link(
            7,
            "10.1.0.2/24",
            &[("10.1.0.0/24", None, 0), ("0.0.0.0/0", Some("10.1.0.1"), 50), ("192.0.2.0/24", Some("10.1.0.9"), 0)],
        );
        all.attach(vec![(one, device()), (two, device())]).unwrap();
        let way = |to: &str| all.route(to.parse().unwrap()).map(|r| (r.interface, r.next_hop.to_string()));
        assert_eq!(way("10.0.0.9"), Ok((2, "10.0.0.9".into())));
        assert_eq!(way("8.8.8.8"), Ok((7, "10.1.0.1".into())));
        assert_eq!(way("192.0.2.4"), Ok((7, "10.1.0.9".into())));
        assert_eq!(way("10.0.0.255"), Ok((2, "10.0.0.255".into())));
        assert_eq!(way("224.0.0.9"), Ok((7, "224.0.0.9".into())), "by the default route's interface");
        assert_eq!(all.attach(Vec::new()), Err(Errno::EBUSY));
    }
}
