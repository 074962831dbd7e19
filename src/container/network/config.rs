//! What goes on the sandbox's interfaces.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address and the length of its network's prefix: `192.168.10.2/24`, `fd00::2/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// The address.
    pub addr: IpAddr,
    /// The prefix length in bits.
    pub len: u8,
}

impl Prefix {
    /// With the host part of the address zero.
    pub fn network(self) -> Prefix {
        let addr = match self.addr {
            IpAddr::V4(addr) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.len.min(32))).unwrap_or(0);
                IpAddr::V4((u32::from(addr) & mask).into())
            }
            IpAddr::V6(addr) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.len.min(128))).unwrap_or(0);
                IpAddr::V6((u128::from(addr) & mask).into())
            }
        };
        Prefix { addr, len: self.len }
    }
}

impl NetConfig {
    /// The interface that this describes: `eth0`, with routes to its networks and by its gateways, and an IPv6 link-local
    /// address if it has any of IPv6.
    pub fn link(&self) -> Link {
        let mac = self.mac.unwrap_or_else(Mac::random);
        let mut addresses = self.addresses.clone();
        if addresses.iter().any(|prefix| prefix.addr.is_ipv6()) {
            addresses.push(Prefix { addr: link_local(mac).into(), len: 64 });
        }
        let to_networks = addresses.iter().map(|prefix| Route {
            destination: prefix.network(),
            gateway: None,
            source: prefix.addr.is_ipv4().then_some(prefix.addr),
            metric: if prefix.addr.is_ipv4() { 0 } else { 256 },
            protocol: PROTOCOL_KERNEL,
        });
        let by_gateways = self.gateways.iter().map(|gateway| Route {
            destination: Prefix { addr: *gateway, len: 0 }.network(),
            gateway: Some(*gateway),
            source: None,
            metric: if gateway.is_ipv4() { 0 } else { 1024 },
            protocol: PROTOCOL_BOOT,
        });
        Link {
            index: 2,
            name: "eth0".into(),
            mac,
            mtu: u32::from(self.mtu.unwrap_or(1500)).max(576),
            header: if self.vnet_header { VnetHeader::Full } else { VnetHeader::None },
            routes: by_gateways.chain(to_networks).collect(),
            neighbours: Vec::new(),
            addresses,
        }
    }

    /// Whether anything was asked for that needs an interface.
    pub fn needs_interface(&self) -> bool {
        *self != NetConfig::default()
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Prefix, String> {
        let (addr, len) = text.split_once('/').ok_or("expected ADDRESS/PREFIX, such as 192.168.10.2/24")?;
        let addr: IpAddr = addr.parse().map_err(|_| format!("{addr:?} is not an IP address"))?;
        let most = if addr.is_ipv4() { 32 } else { 128 };
        match len.parse() {
            Ok(len) if len <= most => Ok(Prefix { addr, len }),
            _ => Err(format!("{len:?} is not a prefix length from 0 to {most}")),
        }
    }
}

/// An Ethernet address: `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered unicast address.
    fn random() -> Mac {
        let mut bytes = [0u8; 6];
        // SAFETY: the buffer is valid for writes of its length. So few bytes are never cut short.
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        bytes[0] = 2;
        Mac(bytes)
    }
}

/// RFC 4291, appendix A.
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Mac, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or("expected XX:XX:XX:XX:XX:XX")?;
        }
        match (parts.next(), bytes[0] & 1) {
            (Some(_), _) => Err("expected XX:XX:XX:XX:XX:XX".into()),
            (None, 1) => Err("is a multicast address (the lowest bit of its first byte is set)".into()),
            (None, _) => Ok(Mac(bytes)),
        }
    }
}

/// How the sandbox's network stack is to be set up. Loopback is always there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// Addresses of the interface.
    pub addresses: Vec<Prefix>,
    /// Default gateways, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// Largest packet in bytes, without the Ethernet header; the TAP device's when not given.
    pub mtu: Option<u16>,
    /// The interface's Ethernet address; made up when not given.
    pub mac: Option<Mac>,
    /// Whether frames of the TAP device carry a `struct virtio_net_hdr_v1` (12 bytes), with checksum and segmentation
    /// offloads switched on.
    pub vnet_header: bool,
}

/// Who made a route, `rtnetlink(7)`: the kernel with an address; the operator.
const PROTOCOL_KERNEL: u8 = 2;
const PROTOCOL_BOOT: u8 = 3;

/// The virtio-net header in front of each frame of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VnetHeader {
    /// None: no offloads.
    #[default]
    None,
    /// `struct virtio_net_hdr`, 10 bytes.
    Short,
    /// `struct virtio_net_hdr_v1`, 12 bytes.
    Full,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; the host part is zero.
    pub destination: Prefix,
    /// By way of; on the link itself when not given.
    pub gateway: Option<IpAddr>,
    /// The source address to prefer.
    pub source: Option<IpAddr>,
    /// The lowest is taken.
    pub metric: u32,
    /// Who made it: `RTPROT_*` of `rtnetlink(7)`.
    pub protocol: u8,
}

/// An interface, as the sentry's stack is to have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its number, above that of `lo`, which is 1.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: Mac,
    /// The longest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// What precedes each frame of its device.
    pub header: VnetHeader,
    /// Its addresses.
    pub addresses: Vec<Prefix>,
    /// The routes out of it.
    pub routes: Vec<Route>,
    /// Permanent neighbours.
    pub neighbours: Vec<(IpAddr, Mac)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        assert_eq!("10.0.0.2/24".parse(), Ok(Prefix { addr: [10, 0, 0, 2].into(), len: 24 }));
        assert!("fd00::2/64".parse::<Prefix>().is_ok());
        for bad in ["10.0.0.2", "10.0.0.2/33", "fd00::2/129", "x/24", "10.0.0.2/", "10.0.0.2/-1"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn macs() {
        assert_eq!("02:00:00:00:00:fE".parse(), Ok(Mac([2, 0, 0, 0, 0, 0xfe])));
        for bad in
            ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "2:0:0:0:0:1", "01:00:00:00:00:00", "+2:00:00:00:00:00"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
