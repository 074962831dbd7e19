//! `/proc/net`: `proc_pid_net(5)`.
//!
//! Sockets are found through the descriptors of all processes, which is where their inode numbers and owners are; one that
//! is only on its way in a message is not shown. Reading these files costs time in the number of descriptors.
//!
//! Of a connection's line in `tcp` these columns are not known here: `tr`, `tm->when` and `retrnsmt` are 0, and the timeouts,
//! the congestion window and the slow start threshold at the end are what a new connection has on Linux; smoltcp tells
//! neither its timer nor its window.

mod counters;
mod interfaces;
mod sockets;

use std::sync::{Arc, Weak};

use super::system::from_kernel;
use crate::sentry::kernel::Kernel;
use crate::vfs::kernfs::{Dir, Tree};

/// Makes a file's content.
type Show = fn(&Kernel) -> String;

/// The directory, for a mount of `kernel`'s tasks.
pub fn dir(tree: &Arc<Tree>, kernel: &Weak<Kernel>) -> Arc<Dir> {
    let dir = Dir::new(tree, 0o555, None);
    let files: [(&str, Show); 19] = [
        ("arp", interfaces::arp),
        ("dev", interfaces::dev),
        ("if_inet6", interfaces::if_inet6),
        ("ipv6_route", interfaces::ipv6_route),
        ("route", interfaces::route),
        ("netlink", sockets::netlink),
        ("netstat", counters::netstat),
        ("packet", |_| "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n".into()),
        ("raw", |kernel| sockets::datagrams(kernel, libc::AF_INET, libc::SOCK_RAW)),
        ("raw6", |kernel| sockets::datagrams(kernel, libc::AF_INET6, libc::SOCK_RAW)),
        ("snmp", counters::snmp),
        ("snmp6", counters::snmp6),
        ("sockstat", sockets::sockstat),
        ("sockstat6", sockets::sockstat6),
        ("tcp", |kernel| sockets::streams(kernel, libc::AF_INET)),
        ("tcp6", |kernel| sockets::streams(kernel, libc::AF_INET6)),
        ("udp", |kernel| sockets::datagrams(kernel, libc::AF_INET, libc::SOCK_DGRAM)),
        ("udp6", |kernel| sockets::datagrams(kernel, libc::AF_INET6, libc::SOCK_DGRAM)),
        ("unix", sockets::unix),
    ];
    for (name, show) in files {
        dir.add_content(name, 0o444, from_kernel(show, kernel));
    }
    dir
}
