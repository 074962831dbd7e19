//! The files of cgroup v2, <https://docs.kernel.org/admin-guide/cgroup-v2.html>, and how the fields of the specification,
//! which are those of v1, are converted for them.

use std::collections::HashMap;
use std::io;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory};

use super::files::{Dir, refusal};
use super::v1::{before, burst, given, hugepage_files, throttles};
use crate::container::error::Result;

/// `max` for "no limit".
pub(super) fn bounded(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

/// `memory`. What v2 has not is said in the log.
pub(super) fn memory(dir: Dir<'_>, memory: &LinuxMemory) -> Result<()> {
    if let Some(swap) = swap(memory)? {
        let text = bounded(swap);
        match dir.write("memory.swap.max", &text) {
            Ok(()) => {}
            // A kernel that does not account swap lets none be used by a limit, and has none to lift.
            Err(error) if error.kind() == io::ErrorKind::NotFound && swap <= 0 => {}
            Err(error) => return Err(dir.refused("memory.swap", "memory.swap.max", &text, &error)),
        }
    }
    if let Some(limit) = given(memory.limit()) {
        dir.set("memory.limit", "memory.max", bounded(limit))?;
    }
    if let Some(reservation) = given(memory.reservation()) {
        dir.set("memory.reservation", "memory.low", bounded(reservation))?;
    }
    for (field, set) in [
        ("swappiness", memory.swappiness().is_some_and(|percent| percent != u64::MAX)),
        ("disableOOMKiller", memory.disable_oom_killer() == Some(true)),
        ("kernelTCP", given(memory.kernel_tcp()).is_some()),
    ] {
        if set {
            log::warn!("linux.resources.memory.{field}: cgroup v2 has nothing like it: it has no effect");
        }
    }
    Ok(())
}

/// `memory.swap.max` counts swap alone where `memory.swap` counts memory and swap: -1 is no limit, `None` leaves it.
pub(super) fn swap(memory: &LinuxMemory) -> Result<Option<i64>> {
    let refuse = |problem: String| Err(refusal("memory.swap", problem));
    match (given(memory.limit()), given(memory.swap())) {
        (Some(-1), None) => Ok(Some(-1)),
        (_, None) => Ok(None),
        (_, Some(-1)) => Ok(Some(-1)),
        (_, Some(swap)) if swap < 0 => refuse(format!("{swap} is neither a size nor -1")),
        (None | Some(-1), Some(_)) => refuse("limits memory and swap together, without memory.limit".into()),
        (Some(limit), Some(swap)) if swap < limit => refuse(format!("{swap} is below memory.limit, {limit}")),
        (Some(limit), Some(swap)) => Ok(Some(swap - limit)),
    }
}

/// `cpu`.
pub(super) fn cpu(dir: Dir<'_>, cpu: &LinuxCpu) -> Result<()> {
    for (field, set) in [
        ("cpu.realtimePeriod", given(cpu.realtime_period()).is_some()),
        ("cpu.realtimeRuntime", given(cpu.realtime_runtime()).is_some()),
    ] {
        if set {
            return Err(refusal(field, "cgroup v2 has nothing like it"));
        }
    }
    if let Some(idle) = cpu.idle() {
        dir.set("cpu.idle", "cpu.idle", idle)?;
    }
    // An idle cgroup has the least weight of all and takes no other.
    if let Some(shares) = given(cpu.shares()).filter(|_| cpu.idle() != Some(1)) {
        dir.set("cpu.shares", "cpu.weight", weight_of_shares(shares))?;
    }
    let (quota, period) = (given(cpu.quota()), given(cpu.period()));
    let limited = quota.is_some() || period.is_some();
    let burst = before(dir, "cpu.burst", "cpu.max.burst", burst(dir, cpu, "cpu.max.burst"), limited)?;
    if limited {
        /// The kernel's own, which must be said when the quota is.
        const PERIOD: u64 = 100_000;
        let quota = quota.map_or("max".into(), bounded);
        dir.set("cpu.quota", "cpu.max", format!("{quota} {}", period.unwrap_or(PERIOD)))?;
    }
    match burst {
        Some(burst) => dir.set("cpu.burst", "cpu.max.burst", burst),
        None => Ok(()),
    }
}

/// `cpu.weight` (1 to 10000, 100 being usual) of `cpu.shares` (2 to 262144, 1024 being usual): the curve through these
/// three points that runc and crun use, `10 ^ ((l² + 125 l) / 612 − 7 / 34)` with `l = log₂ shares`.
pub fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            // 1024 must give 100, whatever the last bit of the logarithm is.
            (10f64.powf(exponent) - 1e-9).ceil() as u64
        }
    }
}

/// `io`.
pub(super) fn block_io(dir: Dir<'_>, io: &LinuxBlockIo) -> Result<()> {
    // BFQ takes the weights of v1; the kernel's cost model has its own scale.
    let bfq = dir.has("io.bfq.weight");
    let file = if bfq { "io.bfq.weight" } else { "io.weight" };
    let scaled = |weight: u16| if bfq { weight.into() } else { io_weight(weight) };
    if let Some(weight) = given(io.weight()) {
        dir.set("blockIO.weight", file, scaled(weight))?;
    }
    if given(io.leaf_weight()).is_some() {
        log::warn!("linux.resources.blockIO.leafWeight: cgroup v2 has nothing like it: it has no effect");
    }
    for (index, one) in io.weight_device().iter().flatten().enumerate() {
        if let Some(weight) = given(one.weight()) {
            let line = format!("{}:{} {}", one.major(), one.minor(), scaled(weight));
            dir.set(&format!("blockIO.weightDevice[{index}].weight"), file, line)?;
        }
    }
    let keys = ["rbps", "wbps", "riops", "wiops"];
    for ((field, _, devices), key) in throttles(io).into_iter().zip(keys) {
        for (index, one) in devices.iter().enumerate() {
            // 0 lifts the limit in v1.
            let rate = if one.rate() == 0 { "max".into() } else { one.rate().to_string() };
            let line = format!("{}:{} {key}={rate}", one.major(), one.minor());
            dir.set(&format!("blockIO.{field}[{index}]"), "io.max", line)?;
        }
    }
    Ok(())
}

/// 10 to 1000 in v1 is 1 to 10000 in v2.
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight).saturating_sub(10) * 9999 / 990
}

/// `hugetlb`.
pub(super) fn hugepages(dir: Dir<'_>, limits: &[LinuxHugepageLimit]) -> Result<()> {
    hugepage_files(dir, limits, "max")
}

/// `unified`: files by name, as they are.
pub(super) fn unified(dir: Dir<'_>, files: &HashMap<String, String>) -> Result<()> {
    let mut names: Vec<&String> = files.keys().collect();
    names.sort();
    for name in names {
        let field = format!("unified[{name:?}]");
        if name.is_empty() || name.contains('/') || !name.contains('.') {
            return Err(refusal(&field, "is not the name of a control file"));
        }
        for line in files[name].lines() {
            dir.write(name, line).map_err(|error| {
                let controller = name.split('.').next().unwrap_or_default();
                let offered = dir.read("cgroup.controllers").unwrap_or_default();
                match offered.split_whitespace().any(|one| one == controller) || controller == "cgroup" {
                    true => dir.refused(&field, name, line, &error),
                    false => refusal(&field, format!("the controller {controller} is not available in cgroup v2 here")),
                }
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxMemoryBuilder;

    #[test]
    fn weights_go_through_the_three_points() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight_of_shares), [1, 1, 100, 10_000, 10_000]);
        assert!([3, 100, 512, 1024, 2048, 100_000].map(weight_of_shares).is_sorted());
        assert_eq!([10, 500, 1000].map(io_weight), [1, 4950, 10_000]);
    }

    #[test]
    fn swap_is_what_goes_beyond_memory() {
        let of = |limit: i64, both: i64| {
            swap(&LinuxMemoryBuilder::default().limit(limit).swap(both).build().unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(of(100, 150), Ok(Some(50)));
        assert_eq!(of(100, 100), Ok(Some(0)));
        assert_eq!(of(100, -1), Ok(Some(-1)));
        assert_eq!(of(100, 0), Ok(None));
        assert_eq!(of(-1, 0), Ok(Some(-1)));
        assert!(of(100, 50).unwrap_err().starts_with("linux.resources.memory.swap: "));
        assert!(of(0, 50).unwrap_err().contains("without memory.limit"));
    }
}
