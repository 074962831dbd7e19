//! Internet addresses as sockets of either family see them. Inside, an IPv4-mapped IPv6 address is an IPv4 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::errno::{Errno, Result};
use crate::netstack::SockAddr;

/// The address that a socket of `domain` was given. `EAFNOSUPPORT`.
pub fn from_user(domain: i32, addr: &SockAddr) -> Result<SocketAddr> {
    match (domain, addr) {
        (libc::AF_INET, SockAddr::V4(addr)) => Ok(SocketAddr::V4(*addr)),
        (libc::AF_INET6, SockAddr::V6(addr)) => Ok(match addr.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::V4(SocketAddrV4::new(v4, addr.port())),
            None => SocketAddr::V6(SocketAddrV6::new(*addr.ip(), addr.port(), 0, 0)),
        }),
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

/// An address as a socket of `domain` shows it; `interface` is the scope of a link-local one.
pub fn to_user(domain: i32, addr: SocketAddr, interface: u32) -> SockAddr {
    match (domain, addr) {
        (libc::AF_INET, SocketAddr::V4(addr)) => SockAddr::V4(addr),
        (_, SocketAddr::V4(addr)) => {
            // All of IPv6 is shown as such, all of IPv4 as mapped.
            SockAddr::V6(SocketAddrV6::new(addr.ip().to_ipv6_mapped(), addr.port(), 0, 0))
        }
        (_, SocketAddr::V6(addr)) => {
            let scope = if addr.ip().segments()[0] & 0xffc0 == 0xfe80 { interface } else { 0 };
            SockAddr::V6(SocketAddrV6::new(*addr.ip(), addr.port(), 0, scope))
        }
    }
}

/// The unspecified address of a family.
pub fn unspecified(domain: i32, port: u16) -> SockAddr {
    if domain == libc::AF_INET {
        SockAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))
    } else {
        SockAddr::V6(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0))
    }
}

/// `addr`, with the unspecified one being this host's loopback address, as it is in `connect(2)`.
pub fn to_connect(addr: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}
