//! `/sys`: what programs look at to find out about processors, memory and network interfaces.

mod net;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use crate::netstack::Stack;
use crate::vfs::inode::Caching;
use crate::vfs::kernfs::{Dir, KernFs};

/// `SYSFS_MAGIC`.
const MAGIC: i64 = 0x6265_6572;

/// Builds a `/sys` with device number `dev` for a machine with `cpus` processors (at least one) and the interfaces of `net`.
pub fn new(dev: u64, cpus: u32, net: &Arc<Stack>) -> KernFs {
    // Names are never cached: interfaces are attached later, and the rest is found in one table here.
    let fs = KernFs::new("sysfs", MAGIC, dev, Caching::Never);
    let root = fs.dir();
    for path in [
        "block",
        "bus",
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
    net::add(root, net);
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
