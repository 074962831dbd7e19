//! The sandbox's network as the operator describes it, and the TAP device behind it.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use super::error::{Context, Error, Result};

/// An address and the length of its network's prefix: `192.168.10.2/24`, `fd00::2/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// The address.
    pub addr: IpAddr,
    /// The prefix length in bits.
    pub len: u8,
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

/// An open TAP device.
pub struct Tap {
    /// Reads and writes one Ethernet frame a call, each with its virtio-net header. Non-blocking.
    pub fd: OwnedFd,
    /// The device's MTU.
    pub mtu: u16,
}

/// `struct virtio_net_hdr_v1`, <https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html>, 5.1.6.
static VNET_HEADER_LEN: libc::c_int = 12;
const TUN_F_CSUM: libc::c_uint = 1;
const TUN_F_TSO4: libc::c_uint = 2;
const TUN_F_TSO6: libc::c_uint = 4;

/// Opens the existing TAP device `name` in the network namespace at `namespace`, or in the caller's.
pub fn open_tap(name: &str, namespace: Option<&Path>) -> Result<Tap> {
    within(namespace, || {
        let exists = nix::net::if_::if_nametoindex(name).is_ok();
        if !exists {
            let place = namespace.map_or("this network namespace".into(), |path| path.display().to_string());
            let hint = "make it with: ip tuntap add dev NAME mode tap";
            return Err(Error::Usage(format!("--tap={name}: no such device in {place}; {hint}")));
        }
        attach(name)
    })
}

/// Runs `work` in the network namespace at `path`, on a thread of its own since a thread cannot surely go back.
fn within<T: Send>(path: Option<&Path>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let Some(path) = path else { return work() };
    let namespace = File::open(path).doing(|| format!("open network namespace {}", path.display()))?;
    let enter_and_work = || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .doing(|| format!("enter network namespace {}", path.display()))?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter_and_work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Attaches to the device with `TUNSETIFF`,
/// <https://www.kernel.org/doc/html/latest/networking/tuntap.html>.
fn attach(name: &str) -> Result<Tap> {
    let doing = || format!("attach to TAP device {name}");
    let device = File::options().read(true).write(true).open("/dev/net/tun").doing(|| "open /dev/net/tun")?;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    let fd = device.as_raw_fd();
    // SAFETY: each ioctl reads (and SIOCGIFMTU writes) the structure or integer that it is passed, which lives on.
    unsafe {
        check(libc::ioctl(fd, libc::TUNSETIFF, &raw mut request)).doing(doing)?;
        check(libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const VNET_HEADER_LEN)).doing(doing)?;
        let offloads = libc::c_ulong::from(TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6);
        check(libc::ioctl(fd, libc::TUNSETOFFLOAD, offloads)).doing(doing)?;
        check(libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK)).doing(doing)?;
    }
    Ok(Tap { fd: device.into(), mtu: device_mtu(name)? })
}

fn device_mtu(name: &str) -> Result<u16> {
    let doing = || format!("read the MTU of {name}");
    let mut request = interface_request(name)?;
    // Any socket will do; a UNIX one needs nothing of the namespace.
    let socket = std::os::unix::net::UnixDatagram::unbound().doing(doing)?;
    // SAFETY: SIOCGIFMTU reads the name from and writes the number to the request.
    let mtu = unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request)).doing(doing)?;
        request.ifr_ifru.ifru_mtu
    };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn check(ret: libc::c_int) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A `struct ifreq` with the name filled in.
fn interface_request(name: &str) -> Result<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(Error::Usage(format!("{name:?} is not an interface name: 1 to {} bytes", libc::IFNAMSIZ - 1)));
    }
    // SAFETY: all-zero is a valid ifreq: integers and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
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
