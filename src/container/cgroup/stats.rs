//! What a container uses, in the words of runc's `events`, which containerd and others read.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

use super::files::Dir;
use super::{Cgroup, Place};

/// The `data` of a `stats` event.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// CPU time.
    pub cpu: Cpu,
    /// Where it may run.
    pub cpuset: CpuSet,
    /// Memory.
    pub memory: Memory,
    /// Processes.
    pub pids: Pids,
    /// Reads from and writes to devices.
    pub blkio: BlockIo,
    /// By page size.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    /// Nothing: there is no support for it.
    pub intel_rdt: IntelRdt,
    /// Nothing, as with runc: the interfaces are in the sandbox.
    pub network_interfaces: Option<Vec<()>>,
}

/// An empty object.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct IntelRdt {}

fn zero(value: &u64) -> bool {
    *value == 0
}

/// `cpu`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Time used.
    pub usage: CpuUsage,
    /// Time denied.
    pub throttling: Throttling,
    /// Time waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuUsage {
    /// In all.
    #[serde(skip_serializing_if = "zero")]
    pub total: u64,
    /// On each CPU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// On each CPU, in the host's kernel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// On each CPU, outside of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the host's kernel.
    pub kernel: u64,
    /// Outside of it.
    pub user: u64,
}

/// How often the quota was used up.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods with something to run.
    #[serde(skip_serializing_if = "zero")]
    pub periods: u64,
    /// Of these, those in which it was.
    #[serde(skip_serializing_if = "zero")]
    pub throttled_periods: u64,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "zero")]
    pub throttled_time: u64,
}

/// `cpuset`: cgroup v1 only.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cpus: Vec<u16>,
    cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mems: Vec<u16>,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

/// Bytes of one kind of memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemoryEntry {
    /// The most that is allowed.
    pub limit: u64,
    /// In use.
    #[serde(skip_serializing_if = "zero")]
    pub usage: u64,
    /// The most that was in use.
    #[serde(skip_serializing_if = "zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// `memory`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Pages of files, bytes.
    #[serde(skip_serializing_if = "zero")]
    pub cache: u64,
    /// Memory.
    pub usage: MemoryEntry,
    /// Memory and swap.
    pub swap: MemoryEntry,
    /// The host kernel's own, for the container.
    pub kernel: MemoryEntry,
    /// Buffers of the host's TCP.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// `memory.stat`, and `oom_kill`: how many processes were killed for want of memory.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Time waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// `pids`: the container's own threads, as the sentry counts them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pids {
    /// How many there are.
    #[serde(skip_serializing_if = "zero")]
    pub current: u64,
    /// How many there may be.
    #[serde(skip_serializing_if = "zero")]
    pub limit: u64,
}

/// A number for one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BlockIoEntry {
    #[serde(skip_serializing_if = "zero")]
    major: u64,
    #[serde(skip_serializing_if = "zero")]
    minor: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    op: String,
    #[serde(skip_serializing_if = "zero")]
    value: u64,
}

/// `blkio`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIo {
    /// Bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlockIoEntry>,
    /// Operations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlockIoEntry>,
    /// Time waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Bytes in huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Hugetlb {
    #[serde(skip_serializing_if = "zero")]
    usage: u64,
    #[serde(skip_serializing_if = "zero")]
    max: u64,
    failcnt: u64,
}

/// Pressure stall information, <https://docs.kernel.org/accounting/psi.html>.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Some tasks waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub some: Option<PressureLine>,
    /// All did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<PressureLine>,
}

/// Percentages of the last 10, 60 and 300 seconds; microseconds in all.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PressureLine {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

impl Cgroup {
    /// What the container uses, as far as the host counts it.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.cpu_stats(&mut stats.cpu);
        match self.place("memory") {
            Some(Place::V1(dir)) => stats.memory = memory_v1(dir),
            Some(Place::V2(dir)) => stats.memory = memory_v2(dir),
            None => {}
        }
        if let Some(kills) = self.oom_count() {
            stats.memory.raw.insert("oom_kill".into(), kills);
        }
        match self.place("blkio") {
            Some(Place::V1(dir)) => stats.blkio = block_io_v1(dir),
            Some(Place::V2(dir)) => stats.blkio = block_io_v2(dir),
            None => {}
        }
        if let Some(Place::V1(dir)) = self.place("cpuset") {
            stats.cpuset = cpuset(dir);
        }
        if let Some(place) = self.place("hugetlb") {
            stats.hugetlb = hugetlb(&place);
        }
        if let Some(Place::V1(dir) | Place::V2(dir)) = self.place("pids") {
            stats.pids.current = dir.number("pids.current").unwrap_or(0);
        }
        // The host's limit has room for the sandbox itself.
        stats.pids.limit = self.resources.pids().map_or(0, |pids| u64::try_from(pids.limit()).unwrap_or(0));
        stats
    }

    /// How many processes the host has killed for want of memory, where it counts that.
    pub fn oom_count(&self) -> Option<u64> {
        match self.place("memory")? {
            Place::V1(dir) => dir.entry("memory.oom_control", "oom_kill"),
            Place::V2(dir) => dir.entry("memory.events", "oom_kill"),
        }
    }

    fn cpu_stats(&self, cpu: &mut Cpu) {
        if let Some(Place::V1(dir)) = self.place("cpuacct") {
            cpu.usage = cpu_usage_v1(dir);
        }
        // v2 counts time without the controller too.
        let own = self.v2.as_deref().filter(|_| !self.v1.contains_key("cpuacct")).map(|dir| Place::V2(Dir(dir)));
        match self.place("cpu").or(own) {
            Some(Place::V1(dir)) => cpu.throttling = throttling(dir, "throttled_time", 1),
            Some(Place::V2(dir)) => {
                let micros = |name| dir.entry("cpu.stat", name).unwrap_or(0).saturating_mul(1000);
                cpu.usage.total = micros("usage_usec");
                cpu.usage.user = micros("user_usec");
                cpu.usage.kernel = micros("system_usec");
                cpu.throttling = throttling(dir, "throttled_usec", 1000);
                cpu.psi = pressure(dir, "cpu.pressure");
            }
            None => {}
        }
    }
}

fn throttling(dir: Dir<'_>, time: &str, unit_ns: u64) -> Throttling {
    let entry = |name| dir.entry("cpu.stat", name).unwrap_or(0);
    Throttling {
        periods: entry("nr_periods"),
        throttled_periods: entry("nr_throttled"),
        throttled_time: entry(time).saturating_mul(unit_ns),
    }
}

fn cpu_usage_v1(dir: Dir<'_>) -> CpuUsage {
    let numbers = |file: &str| -> Vec<u64> {
        let text = dir.read(file).unwrap_or_default();
        text.split_whitespace().filter_map(|number| number.parse().ok()).collect()
    };
    // `CPU USER SYSTEM`, below a headline.
    let all = dir.read("cpuacct.usage_all").unwrap_or_default();
    let column = |at: usize| -> Vec<u64> {
        all.lines().skip(1).filter_map(|line| line.split_whitespace().nth(at)?.parse().ok()).collect()
    };
    CpuUsage {
        total: dir.number("cpuacct.usage").unwrap_or(0),
        percpu: numbers("cpuacct.usage_percpu"),
        percpu_user: column(1),
        percpu_kernel: column(2),
        kernel: dir.number("cpuacct.usage_sys").unwrap_or(0),
        user: dir.number("cpuacct.usage_user").unwrap_or(0),
    }
}

fn memory_v1(dir: Dir<'_>) -> Memory {
    let entry = |prefix: &str| MemoryEntry {
        limit: dir.number(&format!("{prefix}.limit_in_bytes")).unwrap_or(0),
        usage: dir.number(&format!("{prefix}.usage_in_bytes")).unwrap_or(0),
        max: dir.number(&format!("{prefix}.max_usage_in_bytes")).unwrap_or(0),
        failcnt: dir.number(&format!("{prefix}.failcnt")).unwrap_or(0),
    };
    let raw: BTreeMap<String, u64> = dir.table("memory.stat").into_iter().collect();
    Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: entry("memory"),
        swap: entry("memory.memsw"),
        kernel: entry("memory.kmem"),
        kernel_tcp: entry("memory.kmem.tcp"),
        raw,
        psi: None,
    }
}

fn memory_v2(dir: Dir<'_>) -> Memory {
    let number = |file: &str| dir.number(file).unwrap_or(0);
    let raw: BTreeMap<String, u64> = dir.table("memory.stat").into_iter().collect();
    let usage = MemoryEntry {
        limit: number("memory.max"),
        usage: number("memory.current"),
        max: number("memory.peak"),
        failcnt: dir.entry("memory.events", "max").unwrap_or(0),
    };
    // Readers expect memory and swap together, as v1 has it.
    let swap = MemoryEntry {
        limit: number("memory.swap.max").saturating_add(usage.limit),
        usage: number("memory.swap.current").saturating_add(usage.usage),
        ..MemoryEntry::default()
    };
    Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap,
        raw,
        psi: pressure(dir, "memory.pressure"),
        ..Memory::default()
    }
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn block_io_v1(dir: Dir<'_>) -> BlockIo {
    let entries = |name: &str| -> Vec<BlockIoEntry> {
        let text = [format!("blkio.bfq.{name}_recursive"), format!("blkio.throttle.{name}_recursive")]
            .iter()
            .filter_map(|file| dir.read(file).ok())
            .find(|text| text.lines().any(|line| line.contains(':')))
            .unwrap_or_default();
        let entry = |line: &str| {
            let mut words = line.split_whitespace();
            let (major, minor) = device(words.next()?)?;
            Some(BlockIoEntry { major, minor, op: words.next()?.to_owned(), value: words.next()?.parse().ok()? })
        };
        text.lines().filter_map(entry).collect()
    };
    BlockIo {
        io_service_bytes_recursive: entries("io_service_bytes"),
        io_serviced_recursive: entries("io_serviced"),
        psi: None,
    }
}

fn block_io_v2(dir: Dir<'_>) -> BlockIo {
    let mut io = BlockIo { psi: pressure(dir, "io.pressure"), ..BlockIo::default() };
    for line in dir.read("io.stat").unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(device) else { continue };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            let (list, op) = match name {
                "rbytes" => (&mut io.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut io.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut io.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut io.io_serviced_recursive, "Read"),
                "wios" => (&mut io.io_serviced_recursive, "Write"),
                "dios" => (&mut io.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            list.push(BlockIoEntry { major, minor, op: op.into(), value });
        }
    }
    io
}

fn cpuset(dir: Dir<'_>) -> CpuSet {
    let number = |name: &str| dir.number(&format!("cpuset.{name}")).unwrap_or(0);
    let list = |name: &str| super::cpu_list(&dir.read(&format!("cpuset.{name}")).unwrap_or_default());
    let level = dir.read("cpuset.sched_relax_domain_level").unwrap_or_default();
    CpuSet {
        cpus: list("cpus"),
        cpu_exclusive: number("cpu_exclusive"),
        mems: list("mems"),
        mem_hardwall: number("mem_hardwall"),
        mem_exclusive: number("mem_exclusive"),
        memory_migrate: number("memory_migrate"),
        memory_spread_page: number("memory_spread_page"),
        memory_spread_slab: number("memory_spread_slab"),
        memory_pressure: number("memory_pressure"),
        sched_load_balance: number("sched_load_balance"),
        sched_relax_domain_level: level.trim().parse().unwrap_or(-1),
    }
}

fn hugetlb(place: &Place<'_>) -> BTreeMap<String, Hugetlb> {
    let (dir, end) = match place {
        Place::V1(dir) => (dir, ".usage_in_bytes"),
        Place::V2(dir) => (dir, ".current"),
    };
    let names =
        fs::read_dir(dir.0).into_iter().flatten().flatten().filter_map(|one| one.file_name().into_string().ok());
    let sizes = names.filter_map(|name| Some(name.strip_prefix("hugetlb.")?.strip_suffix(end)?.to_owned()));
    let one = |size: &String| {
        let number = |file: &str| dir.number(&format!("hugetlb.{size}{file}")).unwrap_or(0);
        match place {
            Place::V1(_) => {
                Hugetlb { usage: number(end), max: number(".max_usage_in_bytes"), failcnt: number(".failcnt") }
            }
            Place::V2(_) => {
                let failcnt = dir.entry(&format!("hugetlb.{size}.events"), "max").unwrap_or(0);
                Hugetlb { usage: number(end), max: 0, failcnt }
            }
        }
    };
    sizes.filter(|size| !size.ends_with(".rsvd")).map(|size| (size.clone(), one(&size))).collect()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn pressure(dir: Dir<'_>, file: &str) -> Option<Pressure> {
    let text = dir.read(file).ok()?;
    let line = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let average = |name: &str| value(name).and_then(|value| value.parse().ok()).unwrap_or(0.0);
        let total = value("total").and_then(|value| value.parse().ok()).unwrap_or(0);
        Some(PressureLine { avg10: average("avg10"), avg60: average("avg60"), avg300: average("avg300"), total })
    };
    Some(Pressure { some: line("some "), full: line("full ") })
}
