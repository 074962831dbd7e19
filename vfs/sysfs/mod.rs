//! `/sys`: what programs look at to find out about processors, memory and network interfaces.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::vfs::inode::{Caching, Inode, NodeType};
use crate::vfs::kernfs::{Dir, EmitEntry, Entries, KernFs, Tree};

/// `SYSFS_MAGIC`.
const MAGIC: i64 = 0x6265_6572;

/// One network interface, as `/sys/class/net` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetInterface {
    /// `ifindex`.
    pub index: u32,
    /// `address`: six bytes of link-layer address.
    pub address: [u8; 6],
    /// `mtu`.
    pub mtu: u32,
    /// `flags`: `IFF_*`.
    pub flags: u32,
    /// `type`: `ARPHRD_*`.
    pub kind: u16,
}

/// The interfaces of the network namespace that a `/sys` was mounted in.
pub trait NetInterfaces: Send + Sync {
    /// Their names.
    fn names(&self) -> Vec<String>;
    /// One by name.
    fn get(&self, name: &str) -> Option<NetInterface>;
}

/// Builds a `/sys` with device number `dev` for a machine with `cpus` processors (at least one).
pub fn new(dev: u64, cpus: u32, interfaces: Option<Arc<dyn NetInterfaces>>) -> KernFs {
    // Names are never cached: interfaces come and go, and the rest is found in one table here.
    let fs = KernFs::new("sysfs", MAGIC, dev, Caching::Never);
    let root = fs.dir();
    for path in [
        "block",
        "bus",
        "class/net",
        "dev/block",
        "dev/char",
        "devices/virtual",
        "firmware",
        "fs/cgroup",
        "hypervisor",
        "kernel/debug",
        "kernel/tracing",
        "module",
        "power",
    ] {
        root.make_dirs(path);
    }
    add_cpus(root, cpus.max(1));
    add_kernel(root);
    if let Some(interfaces) = interfaces {
        let net = Dir::new(root.tree(), 0o555, Some(NetEntries::entries(root.tree(), interfaces)));
        root.make_dirs("class").add("net", net);
    }
    fs
}

fn add_cpus(root: &Arc<Dir>, cpus: u32) {
    let dir = root.make_dirs("devices/system/cpu");
    let all = if cpus == 1 { "0\n".to_owned() } else { format!("0-{}\n", cpus - 1) };
    for name in ["online", "possible", "present"] {
        dir.add_text(name, 0o444, &all);
    }
    for name in ["offline", "isolated"] {
        dir.add_text(name, 0o444, "\n");
    }
    dir.add_text("kernel_max", 0o444, "8191\n");
    for cpu in 0..cpus {
        let one = dir.make_dirs(&format!("cpu{cpu}"));
        let topology = one.make_dirs("topology");
        for name in ["physical_package_id", "die_id"] {
            topology.add_text(name, 0o444, "0\n");
        }
        topology.add_text("core_id", 0o444, &format!("{cpu}\n"));
        for name in ["thread_siblings_list", "core_cpus_list"] {
            topology.add_text(name, 0o444, &format!("{cpu}\n"));
        }
        for name in ["thread_siblings", "core_cpus"] {
            topology.add_text(name, 0o444, &cpu_mask(cpu..cpu + 1, cpus));
        }
        for name in ["core_siblings_list", "package_cpus_list"] {
            topology.add_text(name, 0o444, &all);
        }
        for name in ["core_siblings", "package_cpus"] {
            topology.add_text(name, 0o444, &cpu_mask(0..cpus, cpus));
        }
    }
    let node = root.make_dirs("devices/system/node");
    for name in ["online", "possible", "has_cpu", "has_memory", "has_normal_memory"] {
        node.add_text(name, 0o444, "0\n");
    }
    let node = node.make_dirs("node0");
    node.add_text("cpulist", 0o444, &all);
    node.add_text("cpumap", 0o444, &cpu_mask(0..cpus, cpus));
    node.add_text("distance", 0o444, "10\n");
}

/// Some of `cpus` processors as sysfs writes a mask: words of 32 bits in hexadecimal, the highest first.
fn cpu_mask(which: Range<u32>, cpus: u32) -> String {
    let words: Vec<String> = (0..cpus.div_ceil(32))
        .rev()
        .map(|word| {
            let bits = (0..32).filter(|bit| which.contains(&(word * 32 + bit)));
            let width = (cpus - word * 32).min(32).div_ceil(4) as usize;
            format!("{:0width$x}", bits.fold(0u32, |mask, bit| mask | 1 << bit))
        })
        .collect();
    words.join(",") + "\n"
}

fn add_kernel(root: &Arc<Dir>) {
    let huge = root.make_dirs("kernel/mm/transparent_hugepage");
    huge.add_text("enabled", 0o444, "always madvise [never]\n");
    huge.add_text("defrag", 0o444, "always defer defer+madvise madvise [never]\n");
    huge.add_text("shmem_enabled", 0o444, "always within_size advise [never] deny force\n");
    huge.add_text("hpage_pmd_size", 0o444, "2097152\n");
    root.make_dirs("kernel/mm/hugepages");
}

/// The interfaces, as directories.
struct NetEntries {
    tree: Arc<Tree>,
    interfaces: Arc<dyn NetInterfaces>,
}

impl NetEntries {
    fn entries(tree: &Arc<Tree>, interfaces: Arc<dyn NetInterfaces>) -> Arc<dyn Entries> {
        Arc::new(NetEntries { tree: tree.clone(), interfaces })
    }
}

impl Entries for NetEntries {
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let name = std::str::from_utf8(name).map_err(|_| Errno::ENOENT)?;
        let interface = self.interfaces.get(name).ok_or(Errno::ENOENT)?;
        let dir = Dir::new(&self.tree, 0o555, None);
        // What changes is read anew; an interface that went away reads as it last was.
        let fresh = {
            let (interfaces, name, last) = (self.interfaces.clone(), name.to_owned(), interface.clone());
            move || interfaces.get(&name).unwrap_or_else(|| last.clone())
        };
        let add = |file: &str, show: fn(&NetInterface) -> String| {
            let fresh = fresh.clone();
            dir.add_file(file, 0o444, move || show(&fresh()).into_bytes());
        };
        add("address", |interface| format!("{}\n", link_address(interface.address)));
        add("broadcast", |interface| {
            let loopback = interface.flags & libc::IFF_LOOPBACK as u32 != 0;
            format!("{}\n", link_address(if loopback { [0; 6] } else { [0xff; 6] }))
        });
        add("addr_len", |_| "6\n".into());
        add("dev_id", |_| "0x0\n".into());
        add("flags", |interface| format!("{:#x}\n", interface.flags));
        add("ifindex", |interface| format!("{}\n", interface.index));
        add("iflink", |interface| format!("{}\n", interface.index));
        add("mtu", |interface| format!("{}\n", interface.mtu));
        add("type", |interface| format!("{}\n", interface.kind));
        add("carrier", |interface| format!("{}\n", u32::from(interface.flags & libc::IFF_RUNNING as u32 != 0)));
        add("operstate", |interface| {
            let up = interface.flags & libc::IFF_UP as u32 != 0;
            let loopback = interface.flags & libc::IFF_LOOPBACK as u32 != 0;
            let state = if loopback {
                "unknown"
            } else if up {
                "up"
            } else {
                "down"
            };
            format!("{state}\n")
        });
        add("uevent", |_| String::new());
        Ok(dir)
    }

    fn list(&self, from: u64, emit: &mut EmitEntry<'_>) {
        for (at, name) in (0u64..).zip(self.interfaces.names()).skip_while(|(at, _)| *at < from) {
            let index = self.interfaces.get(&name).map_or(0, |interface| interface.index);
            if !emit(name.as_bytes(), u64::from(index), NodeType::Directory, at + 1) {
                return;
            }
        }
    }
}

fn link_address(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
