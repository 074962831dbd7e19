//! The files of `/proc` that are about the whole machine: `proc(5)`.

use std::any::Any;
use std::fmt::Write;
use std::sync::{Arc, Weak};

use super::cpuinfo;
use super::pid::status::TICK_NS;
use crate::errno::{Errno, Result};
use crate::platform::placement;
use crate::sentry::counters::HostCounters;
use crate::sentry::ipc::Perm;
use crate::sentry::kernel::Kernel;
use crate::sentry::syscalls::misc::{RELEASE, VERSION};
use crate::sentry::task::usage::Usage;
use crate::sentry::task::{TaskState, boottime_ns};
use crate::vfs::dev::kmsg::Kmsg;
use crate::vfs::file::File;
use crate::vfs::inode::{Attr, Inode, NodeType};
use crate::vfs::kernfs::{Content, Dir};

/// Content that is made from the kernel. `EIO` once that is gone.
struct FromKernel<F>(Weak<Kernel>, F);

impl<F: Fn(&Kernel) -> String + Send + Sync> Content for FromKernel<F> {
    fn read(&self) -> Result<Vec<u8>> {
        let kernel = self.0.upgrade().ok_or(Errno::EIO)?;
        Ok((self.1)(&kernel).into_bytes())
    }
}

/// A read-only file whose content is made from the kernel.
pub fn from_kernel(
    show: impl Fn(&Kernel) -> String + Send + Sync + 'static,
    kernel: &Weak<Kernel>,
) -> Arc<dyn Content> {
    Arc::new(FromKernel(kernel.clone(), show))
}

/// File systems, as `/proc/filesystems` has them; all but those on a device say `nodev`.
const FILE_SYSTEMS: [&str; 9] =
    ["sysfs", "tmpfs", "proc", "devtmpfs", "sockfs", "pipefs", "ramfs", "devpts", "overlay"];

/// The controllers whose limits `/sys/fs/cgroup` shows, all in the one hierarchy of version 2.
const CGROUPS: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
    cpuset\t0\t1\t1\ncpu\t0\t1\t1\ncpuacct\t0\t1\t1\nmemory\t0\t1\t1\npids\t0\t1\t1\n";

/// Adds the files to the root.
pub fn fill(root: &Arc<Dir>, kernel: &Weak<Kernel>) {
    root.add_text("cgroups", 0o444, CGROUPS);
    root.add_text("cmdline", 0o444, "BOOT_IMAGE=/vmlinuz-4.4.0 quiet\n");
    root.add_text("devices", 0o444, DEVICES);
    root.add_text("misc", 0o444, "");
    for name in ["consoles", "diskstats", "modules"] {
        root.add_text(name, 0o444, "");
    }
    let listed: String = FILE_SYSTEMS.iter().map(|name| format!("nodev\t{name}\n")).collect();
    root.add_text("filesystems", 0o444, &listed);
    root.add_text("partitions", 0o444, "major minor  #blocks  name\n\n");
    root.add_text("swaps", 0o444, "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
    root.add_text("version", 0o444, &format!("Linux version {RELEASE} (root@localhost) (gcc) {VERSION}\n"));
    let clock = cpuinfo::Clock::start();
    root.add_file("cpuinfo", 0o444, move || cpuinfo::text(placement::count(), clock.mhz()).into_bytes());
    root.add_file("interrupts", 0o444, || interrupts(placement::count()).into_bytes());
    root.add_content("meminfo", 0o444, from_kernel(|kernel| meminfo(&Memory::of(kernel)), kernel));
    root.add_content("vmstat", 0o444, from_kernel(|kernel| vmstat(&Memory::of(kernel)), kernel));
    root.add_content("locks", 0o444, from_kernel(super::locks::text, kernel));
    root.add_content("loadavg", 0o444, from_kernel(loadavg, kernel));
    root.add_content("stat", 0o444, from_kernel(stat, kernel));
    root.add_content("uptime", 0o444, from_kernel(uptime, kernel));
    let attr = root.tree().attr(NodeType::Regular, 0o400);
    root.add("kmsg", Arc::new(KmsgNode { attr, kernel: kernel.clone() }));
    let ipc = root.make_dirs("sysvipc");
    ipc.add_text("msg", 0o444, MSG_HEADER);
    ipc.add_content("sem", 0o444, from_kernel(semaphores, kernel));
    ipc.add_content("shm", 0o444, from_kernel(shared_memory, kernel));
}

/// What the sandbox has device nodes of.
const DEVICES: &str = "Character devices:\n  1 mem\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n 10 misc\n128 ptm\n\
                       136 pts\n\nBlock devices:\n";

/// There are no System V message queues.
const MSG_HEADER: &str = "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      \
                          rtime      ctime\n";

/// `/proc/sysvipc/sem`.
fn semaphores(kernel: &Kernel) -> String {
    let mut text =
        String::from("       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n");
    for (id, perm, count, [operated, changed]) in kernel.ipc.sem.list() {
        let Perm { key, uid, gid, cuid, cgid, mode } = perm;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{key:10} {id:10}  {mode:4o} {count:10} {uid:5} {gid:5} {cuid:5} {cgid:5} {operated:10} {changed:10}"
        );
    }
    text
}

/// `/proc/sysvipc/shm`. What of a segment is in memory is not known: all of it.
fn shared_memory(kernel: &Kernel) -> String {
    let mut text = String::from(
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      \
         dtime      ctime                   rss                  swap\n",
    );
    for (id, size, state) in kernel.ipc.shm.list() {
        let Perm { key, uid, gid, cuid, cgid, mode } = state.perm;
        let ([attached, detached, changed], [maker, last], count) = (state.times, state.pids, state.attached);
        let resident = size.next_multiple_of(4096);
        let _ = writeln!(
            text,
            "{key:10} {id:10}  {mode:4o} {size:21} {maker:5} {last:5}  {count:5} {uid:5} {gid:5} {cuid:5} {cgid:5} \
             {attached:10} {detached:10} {changed:10} {resident:21} {:21}",
            0
        );
    }
    text
}

/// `/proc/kmsg`, which reads as `/dev/kmsg` does.
struct KmsgNode {
    attr: Attr,
    kernel: Weak<Kernel>,
}

impl Inode for KmsgNode {
    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }

    fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
        let kernel = self.kernel.upgrade().ok_or(Errno::EIO)?;
        Ok(Arc::new(Kmsg::new(kernel.boot_log.clone())))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Memory in KiB, of the machine or of a container with a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All there is.
    pub total_kib: u64,
    /// Used for nothing.
    pub free_kib: u64,
    /// Used for buffers.
    pub buffers_kib: u64,
    /// Used for pages of files, shared memory included.
    pub cached_kib: u64,
    /// Shared.
    pub shared_kib: u64,
    /// Swap in all and free.
    pub swap_kib: (u64, u64),
    /// Load averages, in 1/65536.
    pub loads: [u64; 3],
}

impl Memory {
    /// Of the machine now, with its load. Its page cache is not told apart from what its programs use: what is cached is at
    /// least what is shared.
    pub fn of_machine() -> Memory {
        // SAFETY: a plain structure of numbers, which the call fills.
        let info = unsafe {
            let mut info: libc::sysinfo = std::mem::zeroed();
            if libc::sysinfo(&mut info) != 0 {
                return Memory::default();
            }
            info
        };
        let kib = |units: libc::c_ulong| units.saturating_mul(u64::from(info.mem_unit)) / 1024;
        Memory {
            total_kib: kib(info.totalram),
            free_kib: kib(info.freeram),
            buffers_kib: kib(info.bufferram),
            cached_kib: kib(info.sharedram),
            shared_kib: kib(info.sharedram),
            swap_kib: (kib(info.totalswap), kib(info.freeswap)),
            loads: info.loads,
        }
    }

    /// As a container sees it: the machine's, or what its limit leaves it, as gVisor shows.
    pub fn of(kernel: &Kernel) -> Memory {
        let machine = Memory::of_machine();
        match kernel.memory_limit().map(|limit| limit / 1024) {
            Some(limit) if limit < machine.total_kib => machine.bounded(limit, kernel),
            _ => machine,
        }
    }

    fn bounded(self, limit_kib: u64, kernel: &Kernel) -> Memory {
        let rows = kernel.counters.get().and_then(HostCounters::memory_stat).unwrap_or_default();
        let row = |wanted: &str| rows.iter().find(|(name, _)| *name == wanted).map_or(0, |(_, bytes)| bytes / 1024);
        let used_kib = (kernel.memory_in_use() / 1024).min(limit_kib);
        let swap_kib = kernel.swap_limit().map_or(u64::MAX, |limit| limit / 1024);
        Memory {
            total_kib: limit_kib,
            free_kib: limit_kib - used_kib,
            buffers_kib: 0,
            cached_kib: row("file").min(used_kib),
            shared_kib: row("shmem").min(used_kib),
            swap_kib: (self.swap_kib.0.min(swap_kib), self.swap_kib.1.min(swap_kib)),
            loads: self.loads,
        }
    }

    /// What programs can have before something must be written to swap: pages of files that are on a disk make room.
    fn available_kib(&self) -> u64 {
        let clean = self.cached_kib.saturating_sub(self.shared_kib);
        self.free_kib.saturating_add(self.buffers_kib).saturating_add(clean).min(self.total_kib)
    }
}

/// `/proc/meminfo`.
pub fn meminfo(memory: &Memory) -> String {
    let Memory { total_kib: total, free_kib: free, buffers_kib: buffers, shared_kib: shared, swap_kib, .. } = *memory;
    let used = total.saturating_sub(free).saturating_sub(buffers);
    let cached = memory.cached_kib;
    let anonymous = used.saturating_sub(cached);
    let rows = [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", memory.available_kib()),
        ("Buffers", buffers),
        ("Cached", cached),
        ("SwapCached", 0),
        ("Active", anonymous),
        ("Inactive", buffers.saturating_add(cached)),
        ("Active(anon)", anonymous),
        ("Inactive(anon)", 0),
        ("Active(file)", 0),
        ("Inactive(file)", buffers.saturating_add(cached)),
        ("Unevictable", 0),
        ("Mlocked", 0),
        ("SwapTotal", swap_kib.0),
        ("SwapFree", swap_kib.1),
        ("Zswap", 0),
        ("Zswapped", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", anonymous),
        ("Mapped", shared),
        ("Shmem", shared),
        ("KReclaimable", 0),
        ("Slab", 0),
        ("SReclaimable", 0),
        ("SUnreclaim", 0),
        ("KernelStack", 0),
        ("PageTables", 0),
        ("SecPageTables", 0),
        ("NFS_Unstable", 0),
        ("Bounce", 0),
        ("WritebackTmp", 0),
        ("CommitLimit", total / 2 + swap_kib.0),
        ("Committed_AS", anonymous),
        ("VmallocTotal", 34_359_738_367),
        ("VmallocUsed", 0),
        ("VmallocChunk", 0),
        ("Percpu", 0),
        ("AnonHugePages", 0),
        ("ShmemHugePages", 0),
        ("ShmemPmdMapped", 0),
        ("FileHugePages", 0),
        ("FilePmdMapped", 0),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<16}{value:8} kB", format!("{name}:"));
    }
    for name in ["HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp"] {
        let _ = writeln!(text, "{:<16}{:8}", format!("{name}:"), 0);
    }
    text.push_str("Hugepagesize:       2048 kB\nHugetlb:               0 kB\n");
    text
}

/// `/proc/vmstat`: the lines that are known.
fn vmstat(memory: &Memory) -> String {
    let pages = |kib: u64| kib / 4;
    let rows = [
        ("nr_free_pages", pages(memory.free_kib)),
        ("nr_anon_pages", pages(memory.total_kib.saturating_sub(memory.free_kib))),
        ("nr_mapped", pages(memory.shared_kib)),
        ("nr_file_pages", pages(memory.buffers_kib.saturating_add(memory.cached_kib))),
        ("nr_dirty", 0),
        ("nr_writeback", 0),
        ("nr_shmem", pages(memory.shared_kib)),
        ("pgpgin", 0),
        ("pgpgout", 0),
        ("pswpin", 0),
        ("pswpout", 0),
        ("pgfault", 0),
        ("pgmajfault", 0),
        ("oom_kill", 0),
    ];
    rows.iter().map(|(name, value)| format!("{name} {value}\n")).collect()
}

/// `/proc/interrupts`: the columns, with no line.
fn interrupts(cpus: usize) -> String {
    let columns: String = (0..cpus).map(|cpu| format!("CPU{cpu:<8}")).collect();
    format!("           {columns}\n")
}

/// What all tasks have used, those that ended and were waited for included, and how many run. For `/proc/stat` and the
/// like, which programs that watch the whole machine read: the only places that look at every task.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    used: Usage,
    running: usize,
    tasks: usize,
    last_id: i32,
}

impl Totals {
    fn of(kernel: &Kernel) -> Totals {
        let (groups, ended, tasks, last_id) = {
            let tree = kernel.tree.lock();
            let groups: Vec<_> = tree.nodes().map(|(_, node)| node.group.clone()).collect();
            let ended = tree.nodes().fold(Usage::default(), |sum, (_, node)| sum.plus(node.children_usage));
            let last_id = tree.last_id();
            (groups, ended, tree.thread_count(), last_id)
        };
        let used = groups.iter().fold(ended, |sum, group| sum.plus(group.usage()));
        let threads = groups.iter().flat_map(|group| group.threads());
        let running = threads.filter(|task| task.state() == TaskState::Running).count();
        Totals { used, running, tasks, last_id }
    }
}

fn uptime_ns(kernel: &Kernel) -> u64 {
    boottime_ns().saturating_sub(kernel.boot_ns)
}

/// CPU time that nobody used, over all CPUs.
fn idle_ns(kernel: &Kernel, used: &Usage) -> u64 {
    let all = uptime_ns(kernel).saturating_mul(placement::count() as u64);
    all.saturating_sub(used.user_ns).saturating_sub(used.system_ns)
}

fn hundredths(ns: u64) -> String {
    let hundredths = ns / 10_000_000;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// `/proc/uptime`: since the sandbox began.
fn uptime(kernel: &Kernel) -> String {
    let idle = idle_ns(kernel, &Totals::of(kernel).used);
    format!("{} {}\n", hundredths(uptime_ns(kernel)), hundredths(idle))
}

/// `/proc/loadavg`: the averages are the machine's, the rest the sandbox's.
fn loadavg(kernel: &Kernel) -> String {
    let totals = Totals::of(kernel);
    let load = |load: u64| hundredths(load.saturating_mul(1_000_000_000) >> 16);
    let [one, five, fifteen] = Memory::of_machine().loads;
    let Totals { running, tasks, last_id, .. } = totals;
    format!("{} {} {} {running}/{tasks} {last_id}\n", load(one), load(five), load(fifteen))
}

/// `/proc/stat`. Time is spread over the CPUs evenly.
fn stat(kernel: &Kernel) -> String {
    let totals = Totals::of(kernel);
    let idle = idle_ns(kernel, &totals.used);
    let cpus = placement::count().max(1) as u64;
    let line = |share: u64| {
        let ticks = |ns: u64| ns / TICK_NS / share;
        let Usage { user_ns, system_ns, .. } = totals.used;
        format!("{} 0 {} {} 0 0 0 0 0 0\n", ticks(user_ns), ticks(system_ns), ticks(idle))
    };
    let mut text = format!("cpu  {}", line(1));
    for cpu in 0..cpus {
        let _ = write!(text, "cpu{cpu} {}", line(cpus));
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let began = now.as_nanos().saturating_sub(u128::from(uptime_ns(kernel))) / 1_000_000_000;
    let _ = write!(
        text,
        "intr 0\nctxt {}\nbtime {began}\nprocesses {}\nprocs_running {}\nprocs_blocked 0\n\
         softirq 0 0 0 0 0 0 0 0 0 0 0\n",
        totals.used.voluntary_switches, totals.last_id, totals.running
    );
    text
}
