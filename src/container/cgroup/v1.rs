//! The files of cgroup v1: <https://docs.kernel.org/admin-guide/cgroup-v1/>.
//!
//! As in runc, a value of 0 means that the field is not set, except where 0 is a choice (`swappiness`, `idle`).

use std::io;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxThrottleDevice};

use super::files::{Dir, refusal};
use crate::container::error::Result;

/// A number that is set.
pub(super) fn given<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// `memory`.
pub(super) fn memory(dir: Dir<'_>, memory: &LinuxMemory) -> Result<()> {
    limit_and_swap(dir, memory)?;
    if let Some(reservation) = given(memory.reservation()) {
        dir.set("memory.reservation", "memory.soft_limit_in_bytes", reservation)?;
    }
    if let Some(limit) = given(memory.kernel_tcp()) {
        dir.set("memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", limit)?;
    }
    if memory.disable_oom_killer() == Some(true) {
        dir.set("memory.disableOOMKiller", "memory.oom_control", 1)?;
    }
    match memory.swappiness() {
        // "Not set", as some callers say it.
        None | Some(u64::MAX) => Ok(()),
        Some(percent @ 0..=100) => dir.set("memory.swappiness", "memory.swappiness", percent),
        Some(percent) => Err(refusal("memory.swappiness", format!("{percent} is not between 0 and 100"))),
    }
}

/// The kernel keeps `memory.limit_in_bytes` at or below `memory.memsw.limit_in_bytes`: which one goes first depends on
/// whether they grow.
fn limit_and_swap(dir: Dir<'_>, memory: &LinuxMemory) -> Result<()> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    let limit = given(memory.limit());
    // Without a limit there is none with swap either, unless it was asked for.
    let swap = given(memory.swap()).or_else(|| limit.filter(|&limit| limit == -1 && dir.has(SWAP)));
    let set_limit = |limit: i64| {
        dir.write(LIMIT, limit).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => {
                let usage = dir.number("memory.usage_in_bytes").unwrap_or(0);
                refusal("memory.limit", format!("{limit} is below what is in use: {usage} bytes"))
            }
            _ => dir.refused("memory.limit", LIMIT, &limit.to_string(), &error),
        })
    };
    let set_swap = |swap: i64| dir.set("memory.swap", SWAP, swap);
    match (limit, swap) {
        (None, None) => Ok(()),
        (Some(limit), None) => set_limit(limit),
        (None, Some(swap)) => set_swap(swap),
        (Some(limit), Some(swap)) => {
            let current = dir.number(LIMIT).unwrap_or(u64::MAX);
            if swap == -1 || u64::try_from(swap).is_ok_and(|swap| swap > current) {
                set_swap(swap)?;
                set_limit(limit)
            } else {
                set_limit(limit)?;
                set_swap(swap)
            }
        }
    }
}

/// `cpu`.
pub(super) fn cpu(dir: Dir<'_>, cpu: &LinuxCpu) -> Result<()> {
    if let Some(shares) = given(cpu.shares()) {
        dir.set("cpu.shares", "cpu.shares", shares)?;
    }
    if let Some(period) = given(cpu.realtime_period()) {
        dir.set("cpu.realtimePeriod", "cpu.rt_period_us", period)?;
    }
    if let Some(runtime) = given(cpu.realtime_runtime()) {
        dir.set("cpu.realtimeRuntime", "cpu.rt_runtime_us", runtime)?;
    }
    let quota = given(cpu.quota());
    // A period or burst may be out of bounds with the old quota, yet fine with the new one: tried before and after.
    let period = before(dir, "cpu.period", "cpu.cfs_period_us", given(cpu.period()), quota.is_some())?;
    let burst = before(dir, "cpu.burst", "cpu.cfs_burst_us", burst(dir, cpu, "cpu.cfs_burst_us"), quota.is_some())?;
    if let Some(quota) = quota {
        dir.set("cpu.quota", "cpu.cfs_quota_us", quota)?;
    }
    if let Some(period) = period {
        dir.set("cpu.period", "cpu.cfs_period_us", period)?;
    }
    if let Some(burst) = burst {
        dir.set("cpu.burst", "cpu.cfs_burst_us", burst)?;
    }
    match cpu.idle() {
        Some(idle) => dir.set("cpu.idle", "cpu.idle", idle),
        None => Ok(()),
    }
}

/// The burst that is asked for; none is what a kernel without bursts gives anyway.
pub(super) fn burst(dir: Dir<'_>, cpu: &LinuxCpu, file: &str) -> Option<u64> {
    cpu.burst().filter(|&burst| burst > 0 || dir.has(file))
}

/// Sets a value; gives it back if it is to be tried again once the quota is set.
pub(super) fn before(dir: Dir<'_>, field: &str, file: &str, value: Option<u64>, again: bool) -> Result<Option<u64>> {
    let Some(value) = value else { return Ok(None) };
    match dir.write(file, value) {
        Ok(()) => Ok(None),
        Err(error) if again && error.kind() == io::ErrorKind::InvalidInput => Ok(Some(value)),
        Err(error) => Err(dir.refused(field, file, &value.to_string(), &error)),
    }
}

/// `cpuset`: the same files in both versions.
pub(super) fn cpuset(dir: Dir<'_>, cpu: &LinuxCpu) -> Result<()> {
    for (field, file, list) in [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            dir.set(field, file, list)?;
        }
    }
    Ok(())
}

/// `blkio`.
pub(super) fn block_io(dir: Dir<'_>, io: &LinuxBlockIo) -> Result<()> {
    // BFQ has its own name for it, and kernels since 5.0 have BFQ alone.
    let weight = if dir.has("blkio.weight") { "blkio.weight" } else { "blkio.bfq.weight" };
    let device = if dir.has("blkio.weight_device") { "blkio.weight_device" } else { "blkio.bfq.weight_device" };
    if let Some(value) = given(io.weight()) {
        dir.set("blockIO.weight", weight, value)?;
    }
    if let Some(value) = given(io.leaf_weight()) {
        dir.set("blockIO.leafWeight", "blkio.leaf_weight", value)?;
    }
    for (index, one) in io.weight_device().iter().flatten().enumerate() {
        let field = |name| format!("blockIO.weightDevice[{index}].{name}");
        let line = |weight| format!("{}:{} {weight}", one.major(), one.minor());
        if let Some(value) = given(one.weight()) {
            dir.set(&field("weight"), device, line(value))?;
        }
        if let Some(value) = given(one.leaf_weight()) {
            dir.set(&field("leafWeight"), "blkio.leaf_weight_device", line(value))?;
        }
    }
    for (field, file, devices) in throttles(io) {
        for (index, one) in devices.iter().enumerate() {
            let line = format!("{}:{} {}", one.major(), one.minor(), one.rate());
            dir.set(&format!("blockIO.{field}[{index}]"), &format!("blkio.throttle.{file}_device"), line)?;
        }
    }
    Ok(())
}

/// The four kinds of throttles: the field, the part of the file's name in v1, the devices.
pub(super) fn throttles(io: &LinuxBlockIo) -> [(&'static str, &'static str, &[LinuxThrottleDevice]); 4] {
    fn slice(devices: &Option<Vec<LinuxThrottleDevice>>) -> &[LinuxThrottleDevice] {
        devices.as_deref().unwrap_or_default()
    }
    [
        ("throttleReadBpsDevice", "read_bps", slice(io.throttle_read_bps_device())),
        ("throttleWriteBpsDevice", "write_bps", slice(io.throttle_write_bps_device())),
        ("throttleReadIOPSDevice", "read_iops", slice(io.throttle_read_iops_device())),
        ("throttleWriteIOPSDevice", "write_iops", slice(io.throttle_write_iops_device())),
    ]
}

/// `hugetlb`: what may be used and, where the kernel counts them, what may be reserved.
pub(super) fn hugepages(dir: Dir<'_>, limits: &[LinuxHugepageLimit]) -> Result<()> {
    hugepage_files(dir, limits, "limit_in_bytes")
}

/// The files are named alike in both versions but for their end.
pub(super) fn hugepage_files(dir: Dir<'_>, limits: &[LinuxHugepageLimit], end: &str) -> Result<()> {
    for (index, limit) in limits.iter().enumerate() {
        let size = limit.page_size();
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(refusal(&format!("hugepageLimits[{index}].pageSize"), format!("{size:?} is not a size")));
        }
        let field = format!("hugepageLimits[{index}].limit");
        dir.set(&field, &format!("hugetlb.{size}.{end}"), limit.limit())?;
        let reserved = format!("hugetlb.{size}.rsvd.{end}");
        if dir.has(&reserved) {
            dir.set(&field, &reserved, limit.limit())?;
        }
    }
    Ok(())
}

/// `net_cls`.
pub(super) fn class_id(dir: Dir<'_>, network: &LinuxNetwork) -> Result<()> {
    match given(network.class_id()) {
        Some(class) => dir.set("network.classID", "net_cls.classid", class),
        None => Ok(()),
    }
}

/// `net_prio`.
pub(super) fn priorities(dir: Dir<'_>, network: &LinuxNetwork) -> Result<()> {
    for (index, one) in network.priorities().iter().flatten().enumerate() {
        let line = format!("{} {}", one.name(), one.priority());
        dir.set(&format!("network.priorities[{index}]"), "net_prio.ifpriomap", line)?;
    }
    Ok(())
}
