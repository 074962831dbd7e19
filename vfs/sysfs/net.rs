//! `/sys/class/net`: a link for each interface of the network to its directory in `/sys/devices/virtual/net`, whose files are
//! those that Linux has for a virtual device. Nothing can be set here: the files are for reading alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::netstack::Stack;
use crate::netstack::device::Stats;
use crate::netstack::stack::Interface;
use crate::vfs::inode::{Inode, NodeType};
use crate::vfs::kernfs::{Content, Dir, EmitEntry, Entries, Link, Tree};

/// `ARPHRD_ETHER` and `ARPHRD_LOOPBACK`.
const ETHERNET: u32 = 1;
const LOOPBACK: u32 = 772;

/// Adds both directories to `root`.
pub fn add(root: &Arc<Dir>, net: &Arc<Stack>) {
    let tree = root.tree();
    for (parent, name, links) in [("devices/virtual", "net", false), ("class", "net", true)] {
        let entries = NetEntries { tree: tree.clone(), net: net.clone(), links, made: Mutex::default() };
        root.make_dirs(parent).add(name, Dir::new(tree, 0o555, Some(Arc::new(entries))));
    }
}

/// The interfaces, as directories or as links to those.
struct NetEntries {
    tree: Arc<Tree>,
    net: Arc<Stack>,
    links: bool,
    /// What was looked up once, by the interface's index. Leaf lock.
    made: Mutex<HashMap<u32, Arc<dyn Inode>>>,
}

impl NetEntries {
    fn node(&self, interface: &Interface) -> Arc<dyn Inode> {
        let make = || -> Arc<dyn Inode> {
            match self.links {
                true => Link::new(&self.tree, format!("../../devices/virtual/net/{}", interface.name).as_bytes()),
                false => directory(&self.tree, &self.net, interface.index),
            }
        };
        self.made.lock().entry(interface.index).or_insert_with(make).clone()
    }
}

impl Entries for NetEntries {
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        self.net.interfaces().by_name(name).map(|interface| self.node(interface)).ok_or(Errno::ENOENT)
    }

    fn list(&self, from: u64, emit: &mut EmitEntry<'_>) {
        let kind = if self.links { NodeType::Symlink } else { NodeType::Directory };
        for (at, interface) in (0u64..).zip(self.net.interfaces().iter()).skip_while(|(at, _)| *at < from) {
            let ino = self.node(interface).attr().map_or(0, |attr| attr.ino);
            if !emit(interface.name.as_bytes(), ino, kind, at + 1) {
                return;
            }
        }
    }
}

/// A file about an interface.
struct Attribute {
    net: Arc<Stack>,
    index: u32,
    show: fn(&Interface) -> Result<String>,
}

impl Content for Attribute {
    fn read(&self) -> Result<Vec<u8>> {
        let interface = self.net.interfaces().get(self.index).ok_or(Errno::ENODEV)?;
        (self.show)(interface).map(|text| format!("{text}\n").into_bytes())
    }
}

/// A counter of an interface.
struct Counter {
    net: Arc<Stack>,
    index: u32,
    value: fn(&Stats) -> &AtomicU64,
}

impl Content for Counter {
    fn read(&self) -> Result<Vec<u8>> {
        let interface = self.net.interfaces().get(self.index).ok_or(Errno::ENODEV)?;
        Ok(format!("{}\n", (self.value)(interface.stats()).load(Ordering::Relaxed)).into_bytes())
    }
}

/// Files that always say the same.
const CONSTANT: [(&str, &str); 15] = [
    ("addr_assign_type", "0"),
    ("addr_len", "6"),
    ("carrier", "1"),
    ("carrier_changes", "0"),
    ("carrier_down_count", "0"),
    ("carrier_up_count", "0"),
    ("dev_id", "0x0"),
    ("dev_port", "0"),
    ("dormant", "0"),
    ("ifalias", ""),
    ("link_mode", "0"),
    ("netdev_group", "0"),
    ("proto_down", "0"),
    ("testing", "0"),
    ("tx_queue_len", "1000"),
];

/// A file, and what it shows of an interface.
type Shown = (&'static str, fn(&Interface) -> Result<String>);

/// A file, and which of an interface's counters it shows.
type Counted = (&'static str, fn(&Stats) -> &AtomicU64);

/// Files that depend on the interface.
const ATTRIBUTES: [Shown; 12] = [
    ("address", |interface| Ok(link_address(interface.mac))),
    ("broadcast", |interface| Ok(link_address(if interface.is_loopback() { [0; 6] } else { [0xff; 6] }))),
    ("duplex", |interface| not_of_loopback(interface, "full")),
    // As Linux shows them here: without IFF_RUNNING, which is made up for whoever asks.
    ("flags", |interface| Ok(format!("{:#x}", interface.flags() & !(libc::IFF_RUNNING as u32)))),
    ("ifindex", |interface| Ok(interface.index.to_string())),
    ("iflink", |interface| Ok(interface.index.to_string())),
    ("mtu", |interface| Ok(interface.mtu.to_string())),
    // NET_NAME_PREDICTABLE, NET_NAME_USER.
    ("name_assign_type", |interface| Ok(if interface.is_loopback() { "2" } else { "3" }.into())),
    ("operstate", |interface| Ok(if interface.is_loopback() { "unknown" } else { "up" }.into())),
    // That of a virtual Ethernet device, in Mbit/s.
    ("speed", |interface| not_of_loopback(interface, "10000")),
    ("type", |interface| Ok(if interface.is_loopback() { LOOPBACK } else { ETHERNET }.to_string())),
    ("uevent", |interface| Ok(format!("INTERFACE={}\nIFINDEX={}", interface.name, interface.index))),
];

const COUNTERS: [Counted; 6] = [
    ("rx_bytes", |stats| &stats.rx_bytes),
    ("rx_dropped", |stats| &stats.rx_dropped),
    ("rx_packets", |stats| &stats.rx_packets),
    ("tx_bytes", |stats| &stats.tx_bytes),
    ("tx_dropped", |stats| &stats.tx_dropped),
    ("tx_packets", |stats| &stats.tx_packets),
];

/// Counters of what does not happen to a device without a wire.
const NEVER: [&str; 18] = [
    "collisions",
    "multicast",
    "rx_compressed",
    "rx_crc_errors",
    "rx_errors",
    "rx_fifo_errors",
    "rx_frame_errors",
    "rx_length_errors",
    "rx_missed_errors",
    "rx_nohandler",
    "rx_over_errors",
    "tx_aborted_errors",
    "tx_carrier_errors",
    "tx_compressed",
    "tx_errors",
    "tx_fifo_errors",
    "tx_heartbeat_errors",
    "tx_window_errors",
];

fn directory(tree: &Arc<Tree>, net: &Arc<Stack>, index: u32) -> Arc<Dir> {
    let dir = Dir::new(tree, 0o555, None);
    for (name, text) in CONSTANT {
        dir.add_text(name, 0o444, &format!("{text}\n"));
    }
    for (name, show) in ATTRIBUTES {
        dir.add_content(name, 0o444, Arc::new(Attribute { net: net.clone(), index, show }));
    }
    let statistics = dir.make_dirs("statistics");
    for (name, value) in COUNTERS {
        statistics.add_content(name, 0o444, Arc::new(Counter { net: net.clone(), index, value }));
    }
    for name in NEVER {
        statistics.add_text(name, 0o444, "0\n");
    }
    for queue in ["queues/rx-0", "queues/tx-0", "power"] {
        dir.make_dirs(queue);
    }
    dir.add_link("subsystem", "../../../../class/net");
    dir
}

/// `EINVAL`: `lo` has no such thing.
fn not_of_loopback(interface: &Interface, text: &str) -> Result<String> {
    if interface.is_loopback() { Err(Errno::EINVAL) } else { Ok(text.into()) }
}

fn link_address(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
