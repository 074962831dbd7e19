//! `/sys/fs/cgroup`: what a container sees of its cgroup, as the root of a cgroup namespace of version 2 (`cgroups(7)`).
//!
//! The limits are those that the runtime was given, and which it has set on the host; counts are the sentry's own. Nothing
//! can be written and no group be made: a container does not manage the host's resources. Language runtimes read here how
//! many processors and how much memory are theirs.

use std::sync::{Arc, Weak};

use crate::container::cgroup::weight_of_shares;
use crate::platform::placement;
use crate::sentry::kernel::Kernel;
use crate::vfs::inode::{Caching, FileSystem};
use crate::vfs::kernfs::KernFs;

/// `CGROUP2_SUPER_MAGIC`.
const MAGIC: i64 = 0x6367_7270;

/// What a file shows.
type Show = fn(&Kernel) -> String;

/// All files.
const FILES: &[(&str, Show)] = &[
    ("cgroup.controllers", |_| "cpuset cpu memory pids\n".into()),
    ("cgroup.events", |_| "populated 1\nfrozen 0\n".into()),
    ("cgroup.max.depth", |_| "0\n".into()),
    ("cgroup.max.descendants", |_| "0\n".into()),
    ("cgroup.procs", |kernel| lines(kernel.processes().iter().map(|(group, _)| group.pid()))),
    ("cgroup.subtree_control", |_| String::new()),
    ("cgroup.threads", threads),
    ("cgroup.type", |_| "domain\n".into()),
    ("cpu.max", cpu_max),
    ("cpu.stat", cpu_stat),
    ("cpu.weight", cpu_weight),
    ("cpuset.cpus", |kernel| cpuset(kernel).unwrap_or_default() + "\n"),
    ("cpuset.cpus.effective", |kernel| cpuset(kernel).unwrap_or_else(all_cpus) + "\n"),
    ("cpuset.mems", |_| "\n".into()),
    ("cpuset.mems.effective", |_| "0\n".into()),
    ("memory.current", |kernel| format!("{}\n", resident(kernel))),
    ("memory.high", |_| "max\n".into()),
    ("memory.low", |kernel| format!("{}\n", memory(kernel).2.unwrap_or(0))),
    ("memory.max", |kernel| or_max(memory(kernel).0)),
    ("memory.min", |_| "0\n".into()),
    ("memory.swap.max", |kernel| or_max(memory(kernel).1)),
    ("pids.current", |kernel| format!("{}\n", kernel.thread_count())),
    ("pids.max", |kernel| or_max(kernel.resources.lock().pids().map(|pids| pids.limit()).filter(|&limit| limit > 0))),
];

/// A view with device number `dev` of the cgroup of `kernel`'s container.
pub fn new(dev: u64, kernel: &Arc<Kernel>) -> Arc<dyn FileSystem> {
    let fs = KernFs::new("cgroup2", MAGIC, dev, Caching::Forever);
    for &(name, show) in FILES {
        let kernel: Weak<Kernel> = Arc::downgrade(kernel);
        fs.dir().add_file(name, 0o444, move || kernel.upgrade().map(|kernel| show(&kernel)).unwrap_or_default().into());
    }
    Arc::new(fs)
}

fn lines(numbers: impl Iterator<Item = i32>) -> String {
    numbers.map(|number| format!("{number}\n")).collect()
}

fn or_max(limit: Option<i64>) -> String {
    limit.map_or_else(|| "max\n".into(), |limit| format!("{limit}\n"))
}

fn threads(kernel: &Kernel) -> String {
    let groups = kernel.processes();
    lines(groups.iter().flat_map(|(group, _)| group.threads()).map(|task| task.tid()))
}

/// The limits of memory, of swap and the reservation, in bytes; `None` is no limit. The specification counts swap with the
/// memory, as version 1 did.
fn memory(kernel: &Kernel) -> (Option<i64>, Option<i64>, Option<i64>) {
    let resources = kernel.resources.lock();
    let Some(memory) = resources.memory() else { return (None, None, None) };
    let limit = memory.limit().filter(|&limit| limit > 0);
    let both = memory.swap().filter(|&both| both > 0);
    let swap = both.map(|both| (both - limit.unwrap_or(0)).max(0));
    (limit, swap, memory.reservation().filter(|&bytes| bytes > 0))
}

fn resident(kernel: &Kernel) -> u64 {
    let groups = kernel.processes();
    let memories = groups.iter().filter_map(|(group, _)| group.leader()?.mm().ok());
    memories.map(|mm| mm.sizes().resident).sum()
}

fn cpu_max(kernel: &Kernel) -> String {
    let resources = kernel.resources.lock();
    let cpu = resources.cpu().clone().unwrap_or_default();
    let period = cpu.period().filter(|&period| period > 0).unwrap_or(100_000);
    match cpu.quota().filter(|&quota| quota > 0) {
        Some(quota) => format!("{quota} {period}\n"),
        None => format!("max {period}\n"),
    }
}

/// Shares of version 1 (2 to 262144) as a weight (1 to 10000), as runtimes convert them.
fn cpu_weight(kernel: &Kernel) -> String {
    let resources = kernel.resources.lock();
    let shares = resources.cpu().as_ref().and_then(|cpu| cpu.shares()).filter(|&shares| shares > 0);
    let weight = shares.map_or(100, weight_of_shares);
    format!("{weight}\n")
}

fn cpuset(kernel: &Kernel) -> Option<String> {
    let resources = kernel.resources.lock();
    resources.cpu().as_ref()?.cpus().clone().filter(|cpus| !cpus.is_empty())
}

fn all_cpus() -> String {
    match placement::count() {
        0 | 1 => "0".into(),
        count => format!("0-{}", count - 1),
    }
}

/// What the processes that have not ended have used.
fn cpu_stat(kernel: &Kernel) -> String {
    let usages = kernel.processes().into_iter().map(|(group, _)| group.usage());
    let (user, system) = usages.fold((0, 0), |sum, one| (sum.0 + one.user_ns / 1000, sum.1 + one.system_ns / 1000));
    format!("usage_usec {}\nuser_usec {user}\nsystem_usec {system}\n", user + system)
}
