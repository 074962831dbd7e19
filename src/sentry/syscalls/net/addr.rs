//! `struct sockaddr_*` and [`SockAddr`]: `bind(2)`, `getsockname(2)`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use crate::errno::{Errno, Result};
use crate::netstack::SockAddr;

/// The size of `struct sockaddr_storage`: no address is longer.
pub const MAX: usize = 128;
/// The size of `struct sockaddr_un`.
const UNIX_MAX: usize = 110;
/// The sizes of the other structures; of `sockaddr_in6` that without the scope, which is as much as must be there.
const IN: usize = 16;
const IN6_MIN: usize = 24;
const NETLINK: usize = 12;
const PACKET: usize = 20;

/// The `N` bytes at `at`; `EINVAL` when the address is too short for them.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Errno::EINVAL)
}

fn long_enough(bytes: &[u8], len: usize) -> Result<()> {
    if bytes.len() < len { Err(Errno::EINVAL) } else { Ok(()) }
}

/// What an address that a container passed means to a socket of `domain`. `EINVAL`: too short or too long for its family, or
/// not a UNIX address for a UNIX socket; `EAFNOSUPPORT`: a family that there is not.
pub fn decode(bytes: &[u8], domain: i32) -> Result<SockAddr> {
    let family = i32::from(u16::from_ne_bytes(field(bytes, 0)?));
    match family {
        libc::AF_UNSPEC => Ok(SockAddr::Unspecified),
        libc::AF_UNIX if domain == libc::AF_UNIX => decode_unix(bytes),
        _ if domain == libc::AF_UNIX => Err(Errno::EINVAL),
        libc::AF_INET => decode_v4(bytes),
        libc::AF_INET6 => {
            long_enough(bytes, IN6_MIN)?;
            let port = u16::from_be_bytes(field(bytes, 2)?);
            let flow = u32::from_ne_bytes(field(bytes, 4)?);
            let scope = field(bytes, 24).map_or(0, u32::from_ne_bytes);
            Ok(SockAddr::V6(SocketAddrV6::new(Ipv6Addr::from(field::<16>(bytes, 8)?), port, flow, scope)))
        }
        libc::AF_NETLINK => {
            long_enough(bytes, NETLINK)?;
            let port = u32::from_ne_bytes(field(bytes, 4)?);
            Ok(SockAddr::Netlink { port, groups: u32::from_ne_bytes(field(bytes, 8)?) })
        }
        libc::AF_PACKET => {
            long_enough(bytes, PACKET)?;
            let [packet_type, hardware_len] = field(bytes, 10)?;
            Ok(SockAddr::Packet {
                protocol: u16::from_be_bytes(field(bytes, 2)?),
                ifindex: i32::from_ne_bytes(field(bytes, 4)?),
                packet_type,
                hardware: field(bytes, 12)?,
                hardware_len,
            })
        }
        _ => {
            // The length is looked at first.
            long_enough(bytes, if domain == libc::AF_INET6 { IN6_MIN } else { IN })?;
            Err(Errno::EAFNOSUPPORT)
        }
    }
}

/// A `struct sockaddr_in`, whatever its family says: older programs leave that zero. `EINVAL`.
pub fn decode_v4(bytes: &[u8]) -> Result<SockAddr> {
    long_enough(bytes, IN)?;
    let port = u16::from_be_bytes(field(bytes, 2)?);
    Ok(SockAddr::V4(SocketAddrV4::new(Ipv4Addr::from(field::<4>(bytes, 4)?), port)))
}

fn decode_unix(bytes: &[u8]) -> Result<SockAddr> {
    if bytes.len() > UNIX_MAX {
        return Err(Errno::EINVAL);
    }
    let name = &bytes[2..];
    // An abstract name is all that the length says; a path ends at its NUL.
    let end = match name.first() {
        Some(0) | None => name.len(),
        Some(_) => name.iter().position(|&byte| byte == 0).unwrap_or(name.len()),
    };
    Ok(SockAddr::Unix(name[..end].to_vec()))
}

/// The structure for an address.
pub fn encode(addr: &SockAddr) -> Vec<u8> {
    let family = |family: i32| (family as u16).to_ne_bytes();
    match addr {
        SockAddr::Unspecified => family(libc::AF_UNSPEC).to_vec(),
        SockAddr::V4(addr) => {
            [&family(libc::AF_INET)[..], &addr.port().to_be_bytes(), &addr.ip().octets(), &[0; 8]].concat()
        }
        SockAddr::V6(addr) => [
            &family(libc::AF_INET6)[..],
            &addr.port().to_be_bytes(),
            &addr.flowinfo().to_ne_bytes(),
            &addr.ip().octets(),
            &addr.scope_id().to_ne_bytes(),
        ]
        .concat(),
        SockAddr::Unix(name) => {
            let nul: &[u8] = if name.first().is_none_or(|&byte| byte == 0) { &[] } else { &[0] };
            [&family(libc::AF_UNIX)[..], name, nul].concat()
        }
        SockAddr::Netlink { port, groups } => {
            [&family(libc::AF_NETLINK)[..], &[0; 2], &port.to_ne_bytes(), &groups.to_ne_bytes()].concat()
        }
        SockAddr::Packet { protocol, ifindex, packet_type, hardware, hardware_len } => {
            const ETHER: u16 = libc::ARPHRD_ETHER;
            [
                &family(libc::AF_PACKET)[..],
                &protocol.to_be_bytes(),
                &ifindex.to_ne_bytes(),
                &ETHER.to_ne_bytes(),
                &[*packet_type, *hardware_len],
                hardware,
            ]
            .concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(addr: SockAddr, domain: i32, len: usize) {
        let bytes = encode(&addr);
        assert_eq!(bytes.len(), len);
        assert_eq!(decode(&bytes, domain), Ok(addr));
    }

    #[test]
    fn addresses_come_back() {
        round_trip(SockAddr::V4("10.1.2.3:80".parse().unwrap()), libc::AF_INET, 16);
        let v6 = SocketAddrV6::new("fe80::1".parse().unwrap(), 443, 7, 2);
        round_trip(SockAddr::V6(v6), libc::AF_INET6, 28);
        round_trip(SockAddr::Netlink { port: 5, groups: 1 }, libc::AF_NETLINK, 12);
        let (hardware, hardware_len) = ([1, 2, 3, 4, 5, 6, 0, 0], 6);
        let packet = SockAddr::Packet { protocol: 0x800, ifindex: 2, packet_type: 1, hardware, hardware_len };
        round_trip(packet, libc::AF_PACKET, 20);
        round_trip(SockAddr::Unix(Vec::new()), libc::AF_UNIX, 2);
        round_trip(SockAddr::Unix(b"/run/x".to_vec()), libc::AF_UNIX, 9);
        round_trip(SockAddr::Unix(b"\0abc\0".to_vec()), libc::AF_UNIX, 7);
        round_trip(SockAddr::Unix(vec![b'x'; 107]), libc::AF_UNIX, 110);
    }

    #[test]
    fn bytes_are_where_the_structures_have_them() {
        let v4 = encode(&SockAddr::V4("1.2.3.4:258".parse().unwrap()));
        assert_eq!(v4, [2, 0, 1, 2, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn lengths_are_checked() {
        let v4 = encode(&SockAddr::V4("1.2.3.4:5".parse().unwrap()));
        assert_eq!(decode(&v4[..15], libc::AF_INET), Err(Errno::EINVAL));
        assert_eq!(decode(&v4, libc::AF_UNIX), Err(Errno::EINVAL));
        assert_eq!(decode(&[1], libc::AF_UNIX), Err(Errno::EINVAL));
        assert_eq!(decode(&[99, 0, 1], libc::AF_INET), Err(Errno::EINVAL));
        assert_eq!(decode(&[99; 16], libc::AF_INET), Err(Errno::EAFNOSUPPORT));
        assert_eq!(decode(&[99; 16], libc::AF_INET6), Err(Errno::EINVAL));
        let mut long = vec![b'x'; 109 + 2];
        long[..2].copy_from_slice(&[1, 0]);
        assert_eq!(decode(&long, libc::AF_UNIX), Err(Errno::EINVAL));
        assert_eq!(decode(&long[..110], libc::AF_UNIX), Ok(SockAddr::Unix(vec![b'x'; 108])));
        let short_v6 = &encode(&SockAddr::V6("[::1]:9".parse().unwrap()))[..24];
        assert_eq!(decode(short_v6, libc::AF_INET6), Ok(SockAddr::V6("[::1]:9".parse().unwrap())));
        assert_eq!(decode(b"\x01\0/a\0b", libc::AF_UNIX), Ok(SockAddr::Unix(b"/a".to_vec())));
    }
}
