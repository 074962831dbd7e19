//! Docker's name server. On a user-defined network `dockerd` listens within the container's network namespace, on
//! 127.0.0.11, where NAT rules of that namespace lead; the container's `/etc/resolv.conf` names it.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::container::error::{Context, Result};
use crate::container::spec::{Bundle, is_bind};

const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;

/// Whether the file that becomes the container's `/etc/resolv.conf` names it.
pub fn is_named(bundle: &Bundle) -> bool {
    let mounts = bundle.spec.mounts().iter().flatten().filter(|mount| is_bind(mount));
    let mut sources = mounts.filter(|mount| mount.destination() == Path::new("/etc/resolv.conf"));
    let source = sources.next_back().and_then(|mount| mount.source().clone());
    let text = source.and_then(|source| fs::read_to_string(source).ok()).unwrap_or_default();
    names_server(&text)
}

fn names_server(resolv_conf: &str) -> bool {
    let mut servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver") { words.next()?.parse::<Ipv4Addr>().ok() } else { None }
    });
    servers.any(|server| server == SERVER)
}

/// A socket connected to it, made in the thread's network namespace; non-blocking.
pub fn connect() -> Result<OwnedFd> {
    let doing = || format!("connect to the name server {SERVER} of the network namespace");
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).doing(doing)?;
    socket.connect((SERVER, PORT)).doing(doing)?;
    socket.set_nonblocking(true).doing(doing)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_resolv_conf() {
        assert!(names_server("search local\nnameserver 127.0.0.11\noptions ndots:0\n"));
        assert!(names_server("nameserver 8.8.8.8\nnameserver\t127.0.0.11"));
        assert!(!names_server("# nameserver 127.0.0.11\nnameserver 127.0.0.1\nnameserver\n"));
    }
}
