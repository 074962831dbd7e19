//! TAP devices: found by name or in a namespace, and opened with a virtio-net header.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{check, within};
use crate::container::error::{Context, Error, Result};

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
        if !is_tap(name) {
            return Err(Error::Usage(format!("--tap={name}: not a TAP device")));
        }
        attach(name)
    })
}

/// The TAP device in the network namespace at `path`; `None` when there is none. With several the operator must choose.
pub fn find_tap(path: &Path) -> Result<Option<String>> {
    within(Some(path), || {
        let interfaces = nix::net::if_::if_nameindex().map_err(io::Error::from).doing(|| "list interfaces")?;
        let names = interfaces.iter().filter_map(|interface| interface.name().to_str().ok().map(str::to_owned));
        let mut taps: Vec<String> = names.filter(|name| is_tap(name)).collect();
        match taps.len() {
            0 | 1 => Ok(taps.pop()),
            _ => {
                let taps = taps.join(", ");
                Err(Error::Usage(format!("{} has several TAP devices: choose one with --tap: {taps}", path.display())))
            }
        }
    })
}

/// Whether an interface is a TAP device: its driver, asked through `SIOCETHTOOL`, says so.
fn is_tap(name: &str) -> bool {
    /// `struct ethtool_drvinfo` of `linux/ethtool.h`.
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; 32],
        version: [u8; 32],
        firmware: [u8; 32],
        bus: [u8; 32],
        rest: [u32; 16],
    }
    const ETHTOOL_GDRVINFO: u32 = 3;
    let (Ok(mut request), Ok(socket)) = (interface_request(name), UnixDatagram::unbound()) else { return false };
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rest: [0; 16],
    };
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the kernel writes at most a `struct ethtool_drvinfo`, 196 bytes, through the pointer in the request; `info`
    // has that size and lives on.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request) };
    asked == 0 && info.driver.starts_with(b"tun\0") && info.bus.starts_with(b"tap\0")
}

/// Attaches to the device with `TUNSETIFF`,
/// <https://www.kernel.org/doc/html/latest/networking/tuntap.html>.
fn attach(name: &str) -> Result<Tap> {
    let doing = || format!("attach to TAP device {name}");
    let device = File::options().read(true).write(true).open("/dev/net/tun").doing(|| "open /dev/net/tun")?;
    let mut request = interface_request(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let fd = device.as_raw_fd();
    let mut set_interface = |flags: libc::c_int| {
        request.ifr_ifru.ifru_flags = flags as i16;
        // SAFETY: TUNSETIFF reads and writes the request, which lives on.
        check(unsafe { libc::ioctl(fd, libc::TUNSETIFF, &raw mut request) })
    };
    retry_while_busy(|| set_interface(flags))
        .or_else(|error| match error.raw_os_error() {
            // It was made with several queues, of which this takes one.
            Some(libc::EINVAL) => set_interface(flags | libc::IFF_MULTI_QUEUE),
            _ => Err(error),
        })
        .doing(doing)?;
    // SAFETY: the first ioctl reads an integer that lives on, the others take numbers.
    unsafe {
        check(libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const VNET_HEADER_LEN)).doing(doing)?;
        let offloads = libc::c_ulong::from(TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6);
        check(libc::ioctl(fd, libc::TUNSETOFFLOAD, offloads)).doing(doing)?;
        check(libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK)).doing(doing)?;
    }
    Ok(Tap { fd: device.into(), mtu: device_mtu(name)? })
}

/// A sandbox that has just ended lets go of its device when the last of its processes is gone, which may take moments.
fn retry_while_busy(mut attach: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match attach() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}

fn device_mtu(name: &str) -> Result<u16> {
    let doing = || format!("read the MTU of {name}");
    let mut request = interface_request(name)?;
    // Any socket will do; a UNIX one needs nothing of the namespace.
    let socket = UnixDatagram::unbound().doing(doing)?;
    // SAFETY: SIOCGIFMTU reads the name from and writes the number to the request.
    let mtu = unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request)).doing(doing)?;
        request.ifr_ifru.ifru_mtu
    };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
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
    use nix::sched::CloneFlags;

    /// Runs `test` in a network namespace of its own, given the path to it.
    fn in_own_namespace(test: impl FnOnce(&Path) + Send) {
        let enter = || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("run as root");
            let namespace = File::open("/proc/thread-self/ns/net").unwrap();
            test(Path::new(&format!("/proc/self/fd/{}", namespace.as_raw_fd())));
        };
        std::thread::scope(|scope| scope.spawn(enter).join().unwrap());
    }

    /// Makes a device that stays.
    fn make_tap(name: &str) {
        make(name, libc::IFF_TAP);
    }

    fn make(name: &str, kind: libc::c_int) {
        let device = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = interface_request(name).unwrap();
        request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI) as i16;
        // SAFETY: the request lives on; TUNSETPERSIST takes a number.
        unsafe {
            check(libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request)).unwrap();
            check(libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, 1)).unwrap();
        }
    }

    #[test]
    fn a_tap_is_found_and_opened_in_another_namespace() {
        in_own_namespace(|namespace| {
            assert_eq!(find_tap(namespace).unwrap(), None);
            make_tap("first");
            // From a thread that is elsewhere.
            std::thread::scope(|scope| {
                let elsewhere = scope.spawn(|| {
                    nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
                    assert_eq!(find_tap(namespace).unwrap().as_deref(), Some("first"));
                    assert!(open_tap("first", None).is_err(), "not in this namespace");
                    let tap = open_tap("first", Some(namespace)).unwrap();
                    assert_eq!(tap.mtu, 1500);
                    assert!(open_tap("first", Some(namespace)).is_err(), "busy");
                });
                elsewhere.join().unwrap();
            });
            make_tap("second");
            assert!(find_tap(namespace).unwrap_err().to_string().contains("first, second"));
        });
    }

    #[test]
    fn other_kinds_of_devices() {
        in_own_namespace(|namespace| {
            make("queues", libc::IFF_TAP | libc::IFF_MULTI_QUEUE);
            make("tun", libc::IFF_TUN);
            assert_eq!(find_tap(namespace).unwrap().as_deref(), Some("queues"));
            open_tap("queues", None).unwrap();
            for not_tap in ["tun", "lo"] {
                let error = open_tap(not_tap, None).err().map(|error| error.to_string());
                assert_eq!(error, Some(format!("--tap={not_tap}: not a TAP device")));
            }
        });
    }
}
