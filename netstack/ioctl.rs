//! `ioctl(2)` on sockets: queues, and interfaces (`netdevice(7)`).

use std::net::IpAddr;

use crate::errno::{Errno, Result};
use crate::netstack::stack::iface::{Interface, mask_v4};
use crate::netstack::stack::{Interfaces, Stack};
use crate::vfs::file::IoctlMemory;

/// `struct ifreq`.
const REQUEST: usize = 40;
const NAME: usize = libc::IFNAMSIZ;
/// `ARPHRD_ETHER`, `ARPHRD_LOOPBACK`.
const ETHERNET: u16 = 1;
const LOOPBACK: u16 = 772;

/// An ioctl of an Internet socket that has `queued.0` bytes to read and `queued.1` not sent or not acknowledged.
pub fn ioctl(stack: &Stack, mem: &dyn IoctlMemory, cmd: u32, arg: u64, queued: (usize, usize)) -> Result<u64> {
    let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX).to_ne_bytes();
    match u64::from(cmd) {
        libc::FIONREAD => mem.write(arg, &count(queued.0))?,
        libc::TIOCOUTQ => mem.write(arg, &count(queued.1))?,
        _ => return stack.interface_ioctl(mem, cmd, arg),
    }
    Ok(0)
}

fn answer(interface: &Interface, cmd: u64, request: &mut [u8; REQUEST]) -> Result<()> {
    let value = &mut request[NAME..];
    let first = interface.addresses().find_map(|prefix| match prefix.addr {
        IpAddr::V4(addr) => Some((u32::from(addr), mask_v4(prefix.len))),
        IpAddr::V6(_) => None,
    });
    let addr = first.ok_or(Errno::EADDRNOTAVAIL);
    match cmd {
        libc::SIOCGIFADDR | libc::SIOCGIFDSTADDR => put_address(value, addr?.0),
        libc::SIOCGIFNETMASK => put_address(value, addr?.1),
        libc::SIOCGIFBRDADDR => {
            let (own, mask) = addr?;
            put_address(value, if interface.is_loopback() { 0 } else { own | !mask });
        }
        libc::SIOCGIFFLAGS => value[..2].copy_from_slice(&(interface.flags() as u16).to_ne_bytes()),
        libc::SIOCGIFHWADDR => {
            value.fill(0);
            let kind = if interface.is_loopback() { LOOPBACK } else { ETHERNET };
            value[..2].copy_from_slice(&kind.to_ne_bytes());
            value[2..8].copy_from_slice(&interface.mac);
        }
        libc::SIOCGIFMTU => value[..4].copy_from_slice(&interface.mtu.to_ne_bytes()),
        libc::SIOCGIFINDEX => value[..4].copy_from_slice(&interface.index.to_ne_bytes()),
        libc::SIOCGIFTXQLEN => value[..4].copy_from_slice(&1000u32.to_ne_bytes()),
        _ => value[..4].fill(0),
    }
    Ok(())
}

/// A `struct sockaddr_in` without a port.
fn put_address(value: &mut [u8], addr: u32) {
    value[..16].fill(0);
    value[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    value[4..8].copy_from_slice(&addr.to_be_bytes());
}

fn write_name(request: &mut [u8; REQUEST], interface: &Interface) {
    request[..NAME].fill(0);
    let name = interface.name.as_bytes();
    request[..name.len()].copy_from_slice(name);
}

/// `SIOCGIFCONF`: every IPv4 address, as many as there is room for; without a buffer, how much room that takes.
fn list(interfaces: &Interfaces, mem: &dyn IoctlMemory, arg: u64) -> Result<()> {
    let mut head = [0; 16];
    mem.read(arg, &mut head)?;
    let room = i32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
    let mut buffer = [0; 8];
    buffer.copy_from_slice(&head[8..]);
    let buffer = u64::from_ne_bytes(buffer);
    let mut requests = Vec::new();
    for interface in interfaces.iter() {
        for prefix in interface.addresses() {
            if let IpAddr::V4(addr) = prefix.addr {
                let mut request = [0; REQUEST];
                write_name(&mut request, interface);
                put_address(&mut request[NAME..], addr.into());
                requests.extend_from_slice(&request);
            }
        }
    }
    let mut len = requests.len();
    if buffer != 0 {
        let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
        len = len.min(room / REQUEST * REQUEST);
        mem.write(buffer, &requests[..len])?;
    }
    mem.write(arg, &(len as i32).to_ne_bytes())
}

impl Stack {
    /// An ioctl that concerns interfaces, of a socket of any family. `ENOTTY`, `ENODEV`, `EADDRNOTAVAIL`.
    pub fn interface_ioctl(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        let interfaces = self.interfaces();
        match u64::from(cmd) {
            libc::SIOCGIFCONF => list(interfaces, mem, arg)?,
            libc::SIOCGIFNAME => {
                let mut request = [0; REQUEST];
                mem.read(arg, &mut request)?;
                let index = i32::from_ne_bytes([request[16], request[17], request[18], request[19]]);
                let found = u32::try_from(index).ok().and_then(|index| interfaces.get(index)).ok_or(Errno::ENODEV)?;
                write_name(&mut request, found);
                mem.write(arg, &request)?;
            }
            libc::SIOCGIFADDR
            | libc::SIOCGIFNETMASK
            | libc::SIOCGIFBRDADDR
            | libc::SIOCGIFDSTADDR
            | libc::SIOCGIFFLAGS
            | libc::SIOCGIFHWADDR
            | libc::SIOCGIFMTU
            | libc::SIOCGIFINDEX
            | libc::SIOCGIFMETRIC
            | libc::SIOCGIFTXQLEN => {
                let mut request = [0; REQUEST];
                mem.read(arg, &mut request)?;
                let end = request[..NAME].iter().position(|&byte| byte == 0).unwrap_or(NAME - 1);
                let interface = interfaces.by_name(&request[..end]).ok_or(Errno::ENODEV)?;
                answer(interface, u64::from(cmd), &mut request)?;
                mem.write(arg, &request)?;
            }
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }
}
