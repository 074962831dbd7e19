//! Answers of the route family: links, addresses, routes, neighbours. `rtnetlink(7)`.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use super::message::{Request, address};
use crate::errno::{Errno, Result};
use crate::netstack::stack::Stack;
use crate::netstack::stack::iface::{Interface, RouteEntry, is_link_local, mask_v4};

const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const GETNEIGH: u16 = 30;
const GETRULE: u16 = 34;
const NEWRULE: u16 = 32;

/// `struct ifinfomsg`, `rtmsg`: the lengths of family headers.
const LINK_HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;

/// Tables, protocols, scopes and types of routes: `linux/rtnetlink.h`.
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;
const PROTOCOL_KERNEL: u8 = 2;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;
const TYPE_UNICAST: u8 = 1;
const TYPE_LOCAL: u8 = 2;

/// The datagrams that answer `request`. `EOPNOTSUPP`, `EPERM`, `ENODEV`, `EINVAL`.
pub fn answer(stack: &Stack, request: &Request<'_>, port: u32) -> Result<Vec<Vec<u8>>> {
    let family = request.body.first().copied().unwrap_or(0);
    let mut all = Vec::new();
    match request.kind {
        GETLINK if request.is_dump() => {
            stack.interfaces().iter().for_each(|interface| link(request, &mut all, port, interface));
        }
        GETLINK => {
            let index =
                request.body.get(4..8).and_then(|bytes| bytes.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b));
            let name =
                request.attribute(LINK_HEADER, 3).map(|name| name.split(|&byte| byte == 0).next().unwrap_or_default());
            let found = match name {
                Some(name) if index == 0 => stack.interfaces().by_name(name),
                _ => stack.interfaces().get(index),
            };
            link(request, &mut all, port, found.ok_or(Errno::ENODEV)?);
        }
        GETADDR if request.is_dump() => {
            stack.interfaces().iter().for_each(|interface| addresses(request, &mut all, port, interface, family));
        }
        GETROUTE if request.is_dump() => routes(stack, request, &mut all, port, family),
        GETROUTE => one_route(stack, request, &mut all, port, family)?,
        GETNEIGH if request.is_dump() => neighbours(stack, request, &mut all, port, family),
        GETRULE if request.is_dump() => rules(request, &mut all, port, family),
        // Everything else changes something, or asks for what is not there.
        kind if kind % 4 != 2 => return Err(Errno::EPERM),
        kind => {
            log::debug!("netlink: request {kind} is not implemented");
            return Err(Errno::EOPNOTSUPP);
        }
    }
    let mut datagrams = Vec::new();
    if !all.is_empty() {
        datagrams.push(all);
    }
    if request.is_dump() {
        datagrams.push(request.done(port));
    }
    Ok(datagrams)
}

fn link(request: &Request<'_>, all: &mut Vec<u8>, port: u32, interface: &Interface) {
    let mut message = request.reply(all, NEWLINK, port);
    let kind: u16 = if interface.is_loopback() { 772 } else { 1 };
    const LOWER_UP: u32 = 1 << 16;
    message.put(&[0, 0]);
    message.put(&kind.to_ne_bytes());
    message.put(&interface.index.to_ne_bytes());
    message.put(&(interface.flags() | LOWER_UP).to_ne_bytes());
    message.put(&[0; 4]);
    message.attribute(3, &[interface.name.as_bytes(), &[0]].concat());
    message.attribute(13, &1000u32.to_ne_bytes());
    // Unknown for lo, as on Linux; up.
    message.attribute(16, &[if interface.is_loopback() { 0 } else { 6 }]);
    message.attribute(17, &[0]);
    message.attribute(4, &interface.mtu.to_ne_bytes());
    message.attribute(27, &0u32.to_ne_bytes());
    message.attribute(6, if interface.is_loopback() { b"noqueue\0" } else { b"pfifo_fast\0" });
    message.attribute(1, &interface.mac);
    message.attribute(2, &if interface.is_loopback() { [0; 6] } else { [0xff; 6] });
    let stats = interface.stats();
    let mut counters = [0u64; 24];
    for (at, counter) in [
        (0, &stats.rx_packets),
        (1, &stats.tx_packets),
        (2, &stats.rx_bytes),
        (3, &stats.tx_bytes),
        (6, &stats.rx_dropped),
        (7, &stats.tx_dropped),
    ] {
        counters[at] = counter.load(Ordering::Relaxed);
    }
    let bytes: Vec<u8> = counters.iter().flat_map(|counter| counter.to_ne_bytes()).collect();
    message.attribute(23, &bytes);
    message.finish();
}

fn addresses(request: &Request<'_>, all: &mut Vec<u8>, port: u32, interface: &Interface, family: u8) {
    for prefix in interface.addresses() {
        let own = family_of(prefix.addr);
        if family != 0 && family != own {
            continue;
        }
        let scope = match prefix.addr {
            addr if addr.is_loopback() => SCOPE_HOST,
            addr if is_link_local(addr) => SCOPE_LINK,
            _ => SCOPE_UNIVERSE,
        };
        const PERMANENT: u8 = 0x80;
        let mut message = request.reply(all, NEWADDR, port);
        message.put(&[own, prefix.len, PERMANENT, scope]);
        message.put(&interface.index.to_ne_bytes());
        message.attribute(1, &octets(prefix.addr));
        if let IpAddr::V4(addr) = prefix.addr {
            message.attribute(2, &addr.octets());
            if !interface.is_loopback() && prefix.len < 31 {
                message.attribute(4, &(u32::from(addr) | !mask_v4(prefix.len)).to_be_bytes());
            }
            message.attribute(3, &[interface.name.as_bytes(), &[0]].concat());
        }
        message.attribute(8, &u32::from(PERMANENT).to_ne_bytes());
        let for_ever = u32::MAX.to_ne_bytes();
        message.attribute(6, &[for_ever, for_ever, [0; 4], [0; 4]].concat());
        message.finish();
    }
}

/// A route to be told.
struct Entry {
    destination: Option<IpAddr>,
    len: u8,
    table: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    metric: u32,
    interface: u32,
}

fn write_route(request: &Request<'_>, all: &mut Vec<u8>, port: u32, family: u8, entry: &Entry) {
    let mut message = request.reply(all, NEWROUTE, port);
    message.put(&[family, entry.len, 0, 0, entry.table, entry.protocol, entry.scope, entry.kind, 0, 0, 0, 0]);
    message.attribute(15, &u32::from(entry.table).to_ne_bytes());
    if let Some(destination) = entry.destination {
        message.attribute(1, &octets(destination));
    }
    if let Some(source) = entry.source {
        message.attribute(7, &octets(source));
    }
    if let Some(gateway) = entry.gateway {
        message.attribute(5, &octets(gateway));
    }
    if entry.metric > 0 {
        message.attribute(6, &entry.metric.to_ne_bytes());
    }
    message.attribute(4, &entry.interface.to_ne_bytes());
    message.finish();
}

fn routes(stack: &Stack, request: &Request<'_>, all: &mut Vec<u8>, port: u32, family: u8) {
    let interfaces = stack.interfaces();
    let wanted = |addr: IpAddr| family == 0 || family == family_of(addr);
    for RouteEntry { interface, route } in interfaces.routes().filter(|one| wanted(one.route.destination.addr)) {
        let v4 = route.destination.addr.is_ipv4();
        let entry = Entry {
            destination: (route.destination.len > 0).then_some(route.destination.addr),
            len: route.destination.len,
            table: TABLE_MAIN,
            protocol: route.protocol,
            scope: if v4 && route.gateway.is_none() { SCOPE_LINK } else { SCOPE_UNIVERSE },
            kind: TYPE_UNICAST,
            gateway: route.gateway,
            source: route.source,
            metric: route.metric,
            interface: *interface,
        };
        write_route(request, all, port, family_of(route.destination.addr), &entry);
    }
    for interface in interfaces.iter() {
        for prefix in interface.addresses().filter(|prefix| wanted(prefix.addr)) {
            let v4 = prefix.addr.is_ipv4();
            let own = Entry {
                destination: Some(prefix.addr),
                len: if v4 { 32 } else { 128 },
                table: TABLE_LOCAL,
                protocol: PROTOCOL_KERNEL,
                scope: if v4 { SCOPE_HOST } else { SCOPE_UNIVERSE },
                kind: TYPE_LOCAL,
                gateway: None,
                source: v4.then_some(prefix.addr),
                metric: 0,
                interface: interface.index,
            };
            write_route(request, all, port, family_of(prefix.addr), &own);
        }
    }
}

/// `ip route get`.
fn one_route(stack: &Stack, request: &Request<'_>, all: &mut Vec<u8>, port: u32, family: u8) -> Result<()> {
    let destination = request.attribute(ROUTE_HEADER, 1).and_then(address).ok_or(Errno::EINVAL)?;
    if family_of(destination) != family {
        return Err(Errno::EINVAL);
    }
    let route = stack.interfaces().route(destination)?;
    let entry = Entry {
        destination: Some(destination),
        len: if destination.is_ipv4() { 32 } else { 128 },
        table: if route.local { TABLE_LOCAL } else { TABLE_MAIN },
        protocol: 0,
        scope: SCOPE_UNIVERSE,
        kind: if route.local { TYPE_LOCAL } else { TYPE_UNICAST },
        gateway: (route.next_hop != destination && !route.local).then_some(route.next_hop),
        source: Some(route.source),
        metric: 0,
        interface: route.interface,
    };
    write_route(request, all, port, family, &entry);
    Ok(())
}

fn neighbours(stack: &Stack, request: &Request<'_>, all: &mut Vec<u8>, port: u32, family: u8) {
    const REACHABLE: u16 = 2;
    const PERMANENT: u16 = 0x80;
    for neighbour in stack.neighbours().into_iter().filter(|one| family == 0 || family == family_of(one.addr)) {
        let state = if neighbour.permanent { PERMANENT } else { REACHABLE };
        let mut message = request.reply(all, NEWNEIGH, port);
        message.put(&[family_of(neighbour.addr), 0, 0, 0]);
        message.put(&neighbour.interface.to_ne_bytes());
        message.put(&state.to_ne_bytes());
        message.put(&[0, TYPE_UNICAST]);
        message.attribute(1, &octets(neighbour.addr));
        message.attribute(2, &neighbour.mac);
        message.finish();
    }
}

/// The three rules that are always there, `ip rule`.
fn rules(request: &Request<'_>, all: &mut Vec<u8>, port: u32, family: u8) {
    let family = if family == 0 { libc::AF_INET as u8 } else { family };
    for (table, priority) in [(TABLE_LOCAL, 0u32), (TABLE_MAIN, 32_766), (253, 32_767)] {
        let mut message = request.reply(all, NEWRULE, port);
        message.put(&[family, 0, 0, 0, table, 0, 0, 1, 0, 0, 0, 0]);
        message.attribute(15, &u32::from(table).to_ne_bytes());
        message.attribute(6, &priority.to_ne_bytes());
        message.finish();
    }
}

fn family_of(addr: IpAddr) -> u8 {
    (if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use crate::netstack::testing::*;
    use crate::netstack::{SockAddr, Stack};
    use std::sync::Arc;

    /// Asks, and returns the types of the answers.
    fn ask(stack: &Arc<Stack>, kind: u16, flags: u16, body: &[u8]) -> Vec<u16> {
        let file = stack.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE, ROOT).unwrap();
        file.sock().bind(&SockAddr::Netlink { port: 0, groups: 0 }).unwrap();
        let mut request = Vec::new();
        request.extend((16 + body.len() as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((flags | 1).to_ne_bytes());
        request.extend([7, 0, 0, 0, 0, 0, 0, 0]);
        request.extend(body);
        file.write(0, &mut &request[..]).unwrap();
        let mut kinds = Vec::new();
        while let Ok(datagram) = read_now(&file, 60_000) {
            let mut rest = &datagram[..];
            while rest.len() >= 16 {
                let len = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
                assert_eq!(rest[8], 7, "the request's number");
                kinds.push(u16::from_ne_bytes(rest[4..6].try_into().unwrap()));
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            }
        }
        kinds
    }

    #[test]
    fn dumps_and_refusals() {
        let (stack, _other) = pair(true);
        const DUMP: u16 = 0x300;
        assert_eq!(ask(&stack, super::GETLINK, DUMP, &[0; 16]), [16, 16, 3]);
        assert_eq!(ask(&stack, super::GETADDR, DUMP, &[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0]), [20, 20, 3]);
        assert_eq!(ask(&stack, super::GETADDR, DUMP, &[0; 8]), [20, 20, 20, 20, 20, 3]);
        assert!(ask(&stack, super::GETROUTE, DUMP, &[0; 12]).ends_with(&[24, 3]));
        assert_eq!(ask(&stack, super::GETNEIGH, DUMP, &[0; 12]), [3]);
        let mut by_index = [0; 16];
        by_index[4] = 2;
        assert_eq!(ask(&stack, super::GETLINK, 0, &by_index), [16]);
        by_index[4] = 9;
        assert_eq!(ask(&stack, super::GETLINK, 0, &by_index), [2]);
        assert_eq!(ask(&stack, super::NEWLINK, 0, &by_index), [2], "not to be changed");
    }

    #[test]
    fn malformed_requests() {
        let (stack, _other) = pair(true);
        for len in 0..20 {
            for kind in [super::GETLINK, super::GETADDR, super::GETROUTE, super::GETNEIGH, 99] {
                for flags in [0, 0x300] {
                    ask(&stack, kind, flags, &vec![0xff; len]);
                }
            }
        }
    }
}
