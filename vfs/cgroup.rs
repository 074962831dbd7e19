//! `/sys/fs/cgroup`: what a container sees of its cgroup, as the root of a cgroup namespace of version 2 (`cgroups(7)`).
//!
//! The limits are those that the runtime was given, and which it has set on the host. Memory and waiting for CPU time are
//! what the host counts, where it does ([`HostCounters`]), other counts are the sentry's own. Nothing can be written and no group be made: a container does not manage the host's resources. Language runtimes read here how
//! many processors and how much memory are theirs.

use std::fmt::Write;
use std::sync::{Arc, Weak};

use crate::container::cgroup::weight_of_shares;
use crate::platform::placement;
use crate::sentry::counters::HostCounters;
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
    ("cpuset.cpus", |kernel| if has_cpuset(kernel) { cpus() + "\n" } else { "\n".into() }),
    ("cpuset.cpus.effective", |_| cpus() + "\n"),
    ("cpuset.mems", |_| "\n".into()),
    ("cpuset.mems.effective", |_| "0\n".into()),
    ("memory.current", |kernel| format!("{}\n", kernel.memory_in_use())),
    ("memory.events", memory_events),
    ("memory.high", |_| "max\n".into()),
    ("memory.low", |kernel| format!("{}\n", reservation(kernel))),
    ("memory.max", |kernel| or_max(kernel.memory_limit())),
    ("memory.min", |_| "0\n".into()),
    ("memory.peak", memory_peak),
    ("memory.stat", memory_stat),
    ("memory.swap.max", |kernel| or_max(kernel.swap_limit())),
    ("pids.current", |kernel| format!("{}\n", kernel.thread_count())),
    ("pids.max", |kernel| or_max(kernel.resources.lock().pids().and_then(|pids| u64::try_from(pids.limit()).ok()))),
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

/// No limit and one of 0, which is none in the specification, are `max`.
fn or_max(limit: Option<u64>) -> String {
    limit.filter(|&limit| limit > 0).map_or_else(|| "max\n".into(), |limit| format!("{limit}\n"))
}

fn threads(kernel: &Kernel) -> String {
    let groups = kernel.processes();
    lines(groups.iter().flat_map(|(group, _)| group.threads()).map(|task| task.tid()))
}

/// In bytes; 0 is none.
fn reservation(kernel: &Kernel) -> u64 {
    let reservation = kernel.resources.lock().memory().and_then(|memory| memory.reservation());
    reservation.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
}

fn memory_peak(kernel: &Kernel) -> String {
    let peak = kernel.counters.get().and_then(HostCounters::memory_peak);
    format!("{}\n", peak.unwrap_or_else(|| kernel.memory_in_use()))
}

/// As far as the host tells; otherwise all that is in use counts as `anon`.
fn memory_stat(kernel: &Kernel) -> String {
    let rows = kernel.counters.get().and_then(HostCounters::memory_stat);
    let rows = rows.unwrap_or_else(|| vec![("anon", kernel.memory_in_use()), ("file", 0)]);
    rows.iter().map(|(name, number)| format!("{name} {number}\n")).collect()
}

fn memory_events(kernel: &Kernel) -> String {
    let (max, kills) = kernel.counters.get().and_then(HostCounters::memory_events).unwrap_or_default();
    format!("low 0\nhigh 0\nmax {max}\noom {kills}\noom_kill {kills}\noom_group_kill 0\n")
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

/// Whether there is a limit of it.
fn has_cpuset(kernel: &Kernel) -> bool {
    let resources = kernel.resources.lock();
    resources.cpu().as_ref().and_then(|cpu| cpu.cpus().as_ref()).is_some_and(|cpus| !cpus.is_empty())
}

/// The sandbox's CPUs, whose numbers are its own: `sched_getaffinity(2)` and `/proc/cpuinfo` have them too.
fn cpus() -> String {
    match placement::available() {
        0 | 1 => "0".into(),
        count => format!("0-{}", count - 1),
    }
}

/// What the processes that have not ended have used, and how often they had to wait.
fn cpu_stat(kernel: &Kernel) -> String {
    let usages = kernel.processes().into_iter().map(|(group, _)| group.usage());
    let (user, system) = usages.fold((0, 0), |sum, one| (sum.0 + one.user_ns / 1000, sum.1 + one.system_ns / 1000));
    let mut text = format!("usage_usec {}\nuser_usec {user}\nsystem_usec {system}\n", user + system);
    for (name, number) in kernel.counters.get().and_then(HostCounters::throttling).into_iter().flatten() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} {number}");
    }
    text
}
