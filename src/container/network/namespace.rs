//! What a network namespace holds: the links that a container is to have, with their addresses, routes and permanent
//! neighbours, as CNI plugins and Docker leave them.

use std::io;
use std::net::IpAddr;

use super::rtnetlink::{Netlink, half, word};
use super::{Link, Mac, Prefix, Route, VnetHeader};
use crate::container::error::{Context, Result};
use crate::netstack::netlink::message::{address, attributes};

/// Lengths of the family headers: `struct ifinfomsg`, `ifaddrmsg`, `rtmsg`, `ndmsg`.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const NEIGHBOUR_HEADER: usize = 12;

/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;
const TABLE_MAIN: u32 = 254;
const UNICAST: u8 = 1;

/// The links of the thread's network namespace that packets go through, in the order of their index: Ethernet, up, with an
/// address, not a port of a bridge or bond, and not a TAP device, which has its own way in.
pub fn read() -> Result<Vec<Link>> {
    let doing = |what: &'static str| move || format!("read the {what} of the network namespace");
    let mut netlink = Netlink::open().doing(doing("interfaces"))?;
    let dump = |netlink: &mut Netlink, kind: u16, header: usize| netlink.dump(kind, &vec![0; header]);
    let found = dump(&mut netlink, libc::RTM_GETLINK, LINK_HEADER).doing(doing("interfaces"))?;
    let mut links: Vec<Link> = found.iter().filter_map(|body| link(body)).collect();
    for message in dump(&mut netlink, libc::RTM_GETADDR, ADDRESS_HEADER).doing(doing("addresses"))? {
        add_address(&mut links, &message);
    }
    links.retain(|link| {
        if link.addresses.is_empty() {
            log::info!("{} has no address and stays out of the container", link.name);
        }
        !link.addresses.is_empty()
    });
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family as u8;
        let routes = netlink.dump(libc::RTM_GETROUTE, &header);
        // A kernel may be without IPv6.
        let routes = routes.or_else(|error| unless_unknown(error, Vec::new())).doing(doing("routes"))?;
        routes.iter().for_each(|message| add_route(&mut links, message));
    }
    for message in dump(&mut netlink, libc::RTM_GETNEIGH, NEIGHBOUR_HEADER).doing(doing("neighbours"))? {
        add_neighbour(&mut links, &message);
    }
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// `otherwise` when the error means that the kernel does not have such a thing.
pub fn unless_unknown<T>(error: io::Error, otherwise: T) -> io::Result<T> {
    match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => Ok(otherwise),
        _ => Err(error),
    }
}

fn link(body: &[u8]) -> Option<Link> {
    const ADDRESS: u16 = 1;
    const NAME: u16 = 3;
    const MTU: u16 = 4;
    const MASTER: u16 = 10;
    const INFO: u16 = 18;
    const INFO_KIND: u16 = 1;
    let flags = word(body, 8) as libc::c_int;
    if half(body, 2) != ETHERNET || flags & libc::IFF_UP == 0 || flags & libc::IFF_LOOPBACK != 0 {
        return None;
    }
    let (mut name, mut mac, mut mtu) = (None, None, 1500);
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match kind {
            NAME => name = Some(String::from_utf8_lossy(value.split(|&byte| byte == 0).next()?).into_owned()),
            ADDRESS => mac = value.first_chunk::<6>().map(|bytes| Mac(*bytes)),
            MTU => mtu = word(value, 0),
            MASTER => return None,
            INFO if attributes(value).any(|(kind, value)| kind == INFO_KIND && value.starts_with(b"tun")) => {
                return None;
            }
            _ => {}
        }
    }
    Some(Link {
        index: word(body, 4),
        name: name?,
        mac: mac?,
        mtu,
        header: VnetHeader::None,
        addresses: Vec::new(),
        routes: Vec::new(),
        neighbours: Vec::new(),
    })
}

fn with_index(links: &mut [Link], index: u32) -> Option<&mut Link> {
    links.iter_mut().find(|link| link.index == index)
}

fn add_address(links: &mut [Link], body: &[u8]) {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    let Some(link) = with_index(links, word(body, 4)) else { return };
    let mut addr = None;
    for (kind, value) in attributes(body.get(ADDRESS_HEADER..).unwrap_or_default()) {
        match kind {
            LOCAL => addr = address(value),
            // Of a point-to-point link this is the peer's.
            ADDRESS if addr.is_none() => addr = address(value),
            _ => {}
        }
    }
    if let Some(addr) = addr {
        link.addresses.push(Prefix { addr, len: body[1] });
    }
}

fn add_route(links: &mut [Link], body: &[u8]) {
    const DESTINATION: u16 = 1;
    const INTERFACE: u16 = 4;
    const GATEWAY: u16 = 5;
    const PRIORITY: u16 = 6;
    const PREFERRED_SOURCE: u16 = 7;
    const MULTIPATH: u16 = 9;
    const TABLE: u16 = 15;
    const VIA: u16 = 18;
    let Some((&[family, len, _, _, table, protocol, _, kind, ..], rest)) = body.split_first_chunk::<ROUTE_HEADER>()
    else {
        return;
    };
    let any: IpAddr = if i32::from(family) == libc::AF_INET { [0u8; 4].into() } else { [0u8; 16].into() };
    let mut table = u32::from(table);
    let mut destination = any;
    let (mut gateway, mut source, mut metric) = (None, None, 0);
    let (mut index, mut several, mut other_family) = (0, &[][..], false);
    for (kind, value) in attributes(rest) {
        match kind {
            DESTINATION => destination = address(value).unwrap_or(any),
            INTERFACE => index = word(value, 0),
            GATEWAY => gateway = address(value),
            PRIORITY => metric = word(value, 0),
            PREFERRED_SOURCE => source = address(value),
            MULTIPATH => several = value,
            TABLE => table = word(value, 0),
            VIA => other_family = true,
            _ => {}
        }
    }
    if table != TABLE_MAIN {
        return; // the local table follows from the addresses
    }
    let destination = Prefix { addr: destination, len };
    if kind != UNICAST || other_family {
        log::warn!("the route to {}/{len} is of a kind that the sandbox does not have: left out", destination.addr);
        return;
    }
    let mut add = |index: u32, gateway: Option<IpAddr>| {
        if let Some(link) = with_index(links, index) {
            link.routes.push(Route { destination, gateway, source, metric, protocol });
        }
    };
    if several.is_empty() {
        return add(index, gateway);
    }
    // `struct rtnexthop`: length, flags, hops, interface; attributes. The first that is usable is used.
    while several.len() >= 8 {
        let len = usize::from(half(several, 0));
        let Some(attrs) = several.get(8..len) else { return };
        let gateway = attributes(attrs).find(|(kind, _)| *kind == GATEWAY).and_then(|(_, value)| address(value));
        add(word(several, 4), gateway);
        several = several.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn add_neighbour(links: &mut [Link], body: &[u8]) {
    const DESTINATION: u16 = 1;
    const LINK_ADDRESS: u16 = 2;
    const PERMANENT: u16 = 0x80;
    if half(body, 8) & PERMANENT == 0 {
        return;
    }
    let Some(link) = with_index(links, word(body, 4)) else { return };
    let rest = body.get(NEIGHBOUR_HEADER..).unwrap_or_default();
    let find = |wanted: u16| attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    if let (Some(addr), Some(mac)) =
        (find(DESTINATION).and_then(address), find(LINK_ADDRESS).and_then(|value| value.first_chunk()))
    {
        link.neighbours.push((addr, Mac(*mac)));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn ip(words: &str) {
        let output = Command::new("ip").args(words.split(' ')).output().expect("ip(8)");
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn a_namespace_is_read_as_it_was_set_up() {
        let test = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("run as root");
            for words in [
                "link add eth0 type veth peer name far0",
                "link set eth0 address 02:00:00:00:00:0a mtu 1400 up",
                "link set far0 up",
                "addr add 10.1.0.2/24 dev eth0",
                "addr add fd00:1::2/64 dev eth0 nodad",
                "route add default via 10.1.0.1",
                "-6 route add default via fd00:1::1",
                "route add 192.0.2.0/24 via 10.1.0.9 metric 7",
                "neigh add 10.1.0.1 lladdr 02:00:00:00:00:01 nud permanent dev eth0",
                "tuntap add dev tap0 mode tap",
                "link set tap0 up",
                "addr add 10.2.0.2/24 dev tap0",
                "link add eth1 type veth peer name far1",
            ] {
                ip(words);
            }
            let links = read().unwrap();
            let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
            assert!(!names.contains(&"tap0") && !names.contains(&"eth1") && !names.contains(&"lo"), "{names:?}");
            let eth0 = links.iter().find(|link| link.name == "eth0").expect("it is up and has addresses");
            assert_eq!((eth0.mac.0, eth0.mtu), ([2, 0, 0, 0, 0, 0x0a], 1400));
            let has = |prefix: &str| eth0.addresses.contains(&prefix.parse().unwrap());
            assert!(has("10.1.0.2/24") && has("fd00:1::2/64"), "{eth0:?}");
            let route = |to: &str| eth0.routes.iter().find(|route| route.destination == to.parse().unwrap());
            assert_eq!(route("0.0.0.0/0").unwrap().gateway, "10.1.0.1".parse().ok());
            assert_eq!(route("::/0").unwrap().gateway, "fd00:1::1".parse().ok());
            assert_eq!(route("192.0.2.0/24").unwrap().metric, 7);
            assert_eq!(route("10.1.0.0/24").unwrap().source, "10.1.0.2".parse().ok());
            assert_eq!(eth0.neighbours, [("10.1.0.1".parse().unwrap(), Mac([2, 0, 0, 0, 0, 1]))]);
        };
        std::thread::scope(|scope| scope.spawn(test).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}
