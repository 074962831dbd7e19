//! `linux.resources` in the words of systemd: `systemd.resource-control(5)` by their names on D-Bus,
//! `org.freedesktop.systemd1(5)`.
//!
//! systemd writes a unit's control files again whenever it likes (`daemon-reload`), so that it must know of the limits. The
//! files are written all the same, as its values are coarser and it does not know all of them.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::super::files::refusal;
use super::super::v1::given;
use super::super::v2::{io_weight, swap, weight_of_shares};
use super::super::{cpu_list, host_threads};
use crate::container::dbus::Value;
use crate::container::error::Result;

/// A property's name and value.
pub type Property = (String, Value);

/// Which controllers the container has in cgroup v2, by their names in v1; the others are v1's.
pub trait Controllers {
    /// Whether `controller` is v2's.
    fn is_v2(&self, controller: &str) -> bool;
}

/// "No limit".
const INFINITY: u64 = u64::MAX;

/// The release of systemd that has a property.
const PERIOD_SINCE: u32 = 242;
const CPUSET_SINCE: u32 = 244;
const IDLE_SINCE: u32 = 252;

/// What systemd is to know of `resources`.
pub(super) fn of(resources: &LinuxResources, version: u32, controllers: &impl Controllers) -> Result<Vec<Property>> {
    let mut all = Properties { version, list: Vec::new() };
    if let Some(memory) = resources.memory() {
        all.memory(&memory, controllers.is_v2("memory"))?;
    }
    if let Some(cpu) = resources.cpu() {
        all.cpu(cpu, controllers.is_v2("cpu"));
        if controllers.is_v2("cpuset") {
            all.cpuset(cpu.cpus().as_deref(), cpu.mems().as_deref());
        }
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|&limit| limit != 0) {
        all.add("TasksMax", bounded(host_threads(limit)));
    }
    let weight = resources.block_io().as_ref().and_then(|io| given(io.weight()));
    match weight {
        Some(weight) if controllers.is_v2("blkio") => all.add("IOWeight", io_weight(weight)),
        Some(weight) => all.add("BlockIOWeight", u64::from(weight)),
        None => {}
    }
    if let Some(files) = resources.unified() {
        all.unified(files)?;
    }
    Ok(all.list)
}

fn bounded(limit: i64) -> u64 {
    u64::try_from(limit).unwrap_or(INFINITY)
}

struct Properties {
    version: u32,
    list: Vec<Property>,
}

impl Properties {
    fn add(&mut self, name: &str, number: u64) {
        self.list.push((name.into(), Value::U64(number)));
    }

    fn memory(&mut self, memory: &LinuxMemory, v2: bool) -> Result<()> {
        let limit = given(memory.limit()).map(bounded);
        if !v2 {
            limit.into_iter().for_each(|limit| self.add("MemoryLimit", limit));
            return Ok(());
        }
        limit.into_iter().for_each(|limit| self.add("MemoryMax", limit));
        if let Some(reservation) = given(memory.reservation()) {
            self.add("MemoryLow", bounded(reservation));
        }
        if let Some(swap) = swap(memory)? {
            self.add("MemorySwapMax", bounded(swap));
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu, v2: bool) {
        let shares = given(cpu.shares());
        match (shares, v2) {
            (_, true) if cpu.idle() == Some(1) && self.version >= IDLE_SINCE => self.add("CPUWeight", 0),
            (Some(shares), true) => self.add("CPUWeight", weight_of_shares(shares)),
            (Some(shares), false) => self.add("CPUShares", shares),
            (None, _) => {}
        }
        self.quota(given(cpu.quota()), given(cpu.period()));
    }

    /// systemd counts in hundredths of a CPU. It is given the next larger one, so that the file can be set to the exact value.
    fn quota(&mut self, quota: Option<i64>, period: Option<u64>) {
        /// The kernel's own.
        const PERIOD: u64 = 100_000;
        const HUNDREDTH: u64 = 10_000;
        if let Some(period) = period.filter(|_| self.version >= PERIOD_SINCE) {
            self.add("CPUQuotaPeriodUSec", period);
        }
        if quota.is_none() && period.is_none() {
            return;
        }
        let per_second = match quota.and_then(|quota| u64::try_from(quota).ok()).filter(|&quota| quota > 0) {
            Some(quota) => {
                let exact = u128::from(quota) * 1_000_000 / u128::from(period.unwrap_or(PERIOD));
                u64::try_from(exact).ok().and_then(|exact| exact.checked_next_multiple_of(HUNDREDTH))
            }
            None => None,
        };
        self.add("CPUQuotaPerSecUSec", per_second.unwrap_or(INFINITY));
    }

    fn cpuset(&mut self, cpus: Option<&str>, mems: Option<&str>) {
        for (name, list) in [("AllowedCPUs", cpus), ("AllowedMemoryNodes", mems)] {
            if let Some(list) = list.filter(|list| !list.is_empty() && self.version >= CPUSET_SINCE) {
                self.list.push((name.into(), Value::bytes(mask(list))));
            }
        }
    }

    /// Files of v2 that systemd has a property for. It lets the others be.
    fn unified(&mut self, files: &HashMap<String, String>) -> Result<()> {
        let mut names: Vec<&String> = files.keys().collect();
        names.sort();
        for name in names {
            let value = files[name].trim();
            let wrong = || refusal(&format!("unified[{name:?}]"), format!("{value:?} is not a value of it"));
            let limit = || if value == "max" { Some(INFINITY) } else { value.parse().ok() };
            let property = match name.as_str() {
                "memory.max" => "MemoryMax",
                "memory.high" => "MemoryHigh",
                "memory.low" => "MemoryLow",
                "memory.min" => "MemoryMin",
                "memory.swap.max" => "MemorySwapMax",
                "pids.max" => "TasksMax",
                "cpu.weight" => "CPUWeight",
                "cpu.idle" if value == "1" && self.version >= IDLE_SINCE => {
                    self.add("CPUWeight", 0);
                    continue;
                }
                "cpu.max" => {
                    let mut words = value.split_whitespace();
                    let quota = words.next().ok_or_else(wrong)?;
                    let quota = if quota == "max" { -1 } else { quota.parse().map_err(|_| wrong())? };
                    let period = words.next().map(str::parse).transpose().map_err(|_| wrong())?;
                    self.quota(Some(quota), period.filter(|&period| period > 0));
                    continue;
                }
                "cpuset.cpus" => {
                    self.cpuset(Some(value), None);
                    continue;
                }
                "cpuset.mems" => {
                    self.cpuset(None, Some(value));
                    continue;
                }
                _ => continue,
            };
            self.add(property, limit().ok_or_else(wrong)?);
        }
        Ok(())
    }
}

/// The bit mask of a list of CPUs, the first one the lowest bit of the first byte.
fn mask(list: &str) -> Vec<u8> {
    let mut mask = Vec::new();
    for cpu in cpu_list(list) {
        let byte = usize::from(cpu / 8);
        if mask.len() <= byte {
            mask.resize(byte + 1, 0);
        }
        mask[byte] |= 1 << (cpu % 8);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    struct All(bool);

    impl Controllers for All {
        fn is_v2(&self, _controller: &str) -> bool {
            self.0
        }
    }

    fn of(resources: Json, version: u32, v2: bool) -> Vec<(String, Value)> {
        super::of(&serde_json::from_value(resources).unwrap(), version, &All(v2)).unwrap()
    }

    fn numbers(properties: Vec<(String, Value)>) -> Vec<(String, u64)> {
        let number = |(name, value)| match value {
            Value::U64(number) => (name, number),
            other => panic!("{name}: {other:?}"),
        };
        properties.into_iter().map(number).collect()
    }

    fn resources() -> Json {
        json!({
            "memory": {"limit": 1 << 26, "reservation": 1 << 25, "swap": 1 << 27},
            "cpu": {"shares": 1024, "quota": 33_333, "period": 50_000, "cpus": "0-2,9"},
            "pids": {"limit": 10},
            "blockIO": {"weight": 500},
        })
    }

    #[test]
    fn limits_in_v2() {
        let mut properties = of(resources(), 252, true);
        let cpus = properties.iter().position(|(name, _)| name == "AllowedCPUs").unwrap();
        assert_eq!(properties.remove(cpus).1, Value::bytes([0b111, 0b10]));
        let expected = [
            ("MemoryMax", 1 << 26),
            ("MemoryLow", 1 << 25),
            ("MemorySwapMax", 1 << 26),
            ("CPUWeight", 100),
            ("CPUQuotaPeriodUSec", 50_000),
            // 666_660, in whole hundredths.
            ("CPUQuotaPerSecUSec", 670_000),
            ("TasksMax", 84),
            ("IOWeight", 4950),
        ];
        assert_eq!(numbers(properties), expected.map(|(name, number)| (name.to_owned(), number)));
    }

    #[test]
    fn limits_in_v1() {
        let expected = [
            ("MemoryLimit", 1 << 26),
            ("CPUShares", 1024),
            ("CPUQuotaPeriodUSec", 50_000),
            ("CPUQuotaPerSecUSec", 670_000),
            ("TasksMax", 84),
            ("BlockIOWeight", 500),
        ];
        let properties = numbers(of(resources(), 252, false));
        assert_eq!(properties, expected.map(|(name, number)| (name.to_owned(), number)));
    }

    #[test]
    fn no_limit_and_old_releases() {
        let none = json!({"memory": {"limit": -1}, "cpu": {"quota": -1, "period": 50_000}, "pids": {"limit": -1}});
        let properties = numbers(of(none, 230, true));
        let expected = ["MemoryMax", "MemorySwapMax", "CPUQuotaPerSecUSec", "TasksMax"];
        assert_eq!(properties, expected.map(|name| (name.to_owned(), u64::MAX)));
        let idle = json!({"cpu": {"shares": 2048, "idle": 1}});
        assert_eq!(numbers(of(idle.clone(), 252, true)), [("CPUWeight".to_owned(), 0)]);
        assert_eq!(numbers(of(idle, 251, true)), [("CPUWeight".to_owned(), weight_of_shares(2048))]);
        assert_eq!(of(json!({"cpu": {"cpus": "0"}}), 243, true), []);
        assert_eq!(of(json!({}), 252, true), []);
    }

    #[test]
    fn files_of_v2_that_systemd_knows() {
        let files = json!({"unified": {
            "cpu.max": "max 20000", "memory.high": "1000", "memory.swap.max": "max", "misc.max": "x", "cpuset.mems": "0",
        }});
        let properties = of(files, 252, true);
        assert_eq!(properties[0], ("CPUQuotaPeriodUSec".into(), Value::U64(20_000)));
        assert_eq!(properties[1], ("CPUQuotaPerSecUSec".into(), Value::U64(u64::MAX)));
        assert_eq!(properties[2], ("AllowedMemoryNodes".into(), Value::bytes([1])));
        assert_eq!(properties[3], ("MemoryHigh".into(), Value::U64(1000)));
        assert_eq!(properties[4], ("MemorySwapMax".into(), Value::U64(u64::MAX)));
        let bad = serde_json::from_value(json!({"unified": {"pids.max": "many"}})).unwrap();
        let error = super::of(&bad, 252, &All(true)).unwrap_err().to_string();
        assert!(error.contains("unified[\"pids.max\"]"), "{error}");
    }
}
