//! Interfaces, routes and neighbours: `dev`, `route`, `ipv6_route`, `if_inet6`, `arp`.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering;

use crate::netstack::stack::iface::{RouteEntry, is_link_local, mask_v4};
use crate::sentry::kernel::Kernel;

// `write!` to a String cannot fail.

/// `dev`.
pub fn dev(kernel: &Kernel) -> String {
    let mut text = String::from(
        "Inter-|   Receive                                                |  Transmit\n \
         face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier \
         compressed\n",
    );
    for interface in kernel.net.interfaces().iter() {
        let stats = interface.stats();
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let _ = writeln!(
            text,
            "{:>6}: {:7} {:7} {:4} {:4} {:4} {:5} {:10} {:9} {:8} {:7} {:4} {:4} {:4} {:5} {:7} {:10}",
            interface.name,
            of(&stats.rx_bytes),
            of(&stats.rx_packets),
            0,
            of(&stats.rx_dropped),
            0,
            0,
            0,
            0,
            of(&stats.tx_bytes),
            of(&stats.tx_packets),
            0,
            of(&stats.tx_dropped),
            0,
            0,
            0,
            0
        );
    }
    text
}

/// An address as `route` shows it: the bytes of network order as the machine reads them.
fn hex_v4(addr: Ipv4Addr) -> String {
    format!("{:08X}", u32::from_ne_bytes(addr.octets()))
}

fn hex_v6(addr: Ipv6Addr) -> String {
    format!("{:032x}", u128::from(addr))
}

/// `RTF_UP`, `RTF_GATEWAY`.
const UP: u32 = 1;
const GATEWAY: u32 = 2;

/// `route`.
pub fn route(kernel: &Kernel) -> String {
    let mut rows =
        vec!["Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT".to_owned()];
    let interfaces = kernel.net.interfaces();
    for RouteEntry { interface, route } in interfaces.routes() {
        let IpAddr::V4(to) = route.destination.addr else { continue };
        let (via, flags) = match route.gateway {
            Some(IpAddr::V4(gateway)) => (gateway, UP | GATEWAY),
            _ => (Ipv4Addr::UNSPECIFIED, UP),
        };
        let name = interfaces.get(*interface).map_or("*", |interface| &interface.name);
        let (to, via, mask) = (hex_v4(to), hex_v4(via), hex_v4(mask_v4(route.destination.len).into()));
        rows.push(format!("{name}\t{to}\t{via}\t{flags:04X}\t0\t0\t{}\t{mask}\t0\t0\t0", route.metric));
    }
    rows.iter().map(|row| format!("{row:<127}\n")).collect()
}

/// `ipv6_route`.
pub fn ipv6_route(kernel: &Kernel) -> String {
    let mut text = String::new();
    let none = hex_v6(Ipv6Addr::UNSPECIFIED);
    let mut row = |to: Ipv6Addr, len: u8, via: Ipv6Addr, metric: u32, flags: u32, name: &str| {
        let (to, via) = (hex_v6(to), hex_v6(via));
        let _ = writeln!(text, "{to} {len:02x} {none} 00 {via} {metric:08x} 00000001 00000000 {flags:08x} {name:>8}");
    };
    /// `RTF_LOCAL`, besides `RTF_NONEXTHOP`.
    const LOCAL: u32 = 0x8020_0001;
    let interfaces = kernel.net.interfaces();
    for RouteEntry { interface, route } in interfaces.routes() {
        let IpAddr::V6(to) = route.destination.addr else { continue };
        let (via, flags) = match route.gateway {
            Some(IpAddr::V6(gateway)) => (gateway, UP | GATEWAY),
            _ => (Ipv6Addr::UNSPECIFIED, UP),
        };
        let name = interfaces.get(*interface).map_or("*", |interface| &interface.name);
        row(to, route.destination.len, via, route.metric, flags, name);
    }
    for interface in interfaces.iter() {
        for prefix in interface.addresses() {
            let IpAddr::V6(addr) = prefix.addr else { continue };
            row(addr, 128, Ipv6Addr::UNSPECIFIED, 0, LOCAL, &interface.name);
        }
    }
    text
}

/// `if_inet6`.
pub fn if_inet6(kernel: &Kernel) -> String {
    let mut text = String::new();
    for interface in kernel.net.interfaces().iter() {
        for prefix in interface.addresses() {
            let IpAddr::V6(addr) = prefix.addr else { continue };
            // IPV6_ADDR_LOOPBACK, IPV6_ADDR_LINKLOCAL, or global; IFA_F_PERMANENT.
            let scope = match () {
                () if addr.is_loopback() => 0x10,
                () if is_link_local(prefix.addr) => 0x20,
                () => 0,
            };
            let (addr, index, len) = (hex_v6(addr), interface.index, prefix.len);
            let _ = writeln!(text, "{addr} {index:02x} {len:02x} {scope:02x} 80 {:>8}", interface.name);
        }
    }
    text
}

/// `arp`.
pub fn arp(kernel: &Kernel) -> String {
    let mut text = String::from("IP address       HW type     Flags       HW address            Mask     Device\n");
    for neighbour in kernel.net.neighbours() {
        let IpAddr::V4(addr) = neighbour.addr else { continue };
        let mac = neighbour.mac.map(|byte| format!("{byte:02x}")).join(":");
        let name = kernel.net.interfaces().get(neighbour.interface).map_or("*", |interface| &interface.name);
        // ARPHRD_ETHER; ATF_COM, ATF_PERM.
        let flags = if neighbour.permanent { 6 } else { 2 };
        let _ = writeln!(text, "{:<17}0x{:<10}0x{flags:<10}{mac}     *        {name}", addr.to_string(), 1);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_as_the_machine_reads_them() {
        assert_eq!(hex_v4(Ipv4Addr::new(192, 0, 2, 1)), "010200C0");
        assert_eq!(hex_v6(Ipv6Addr::LOCALHOST), "00000000000000000000000000000001");
    }
}
