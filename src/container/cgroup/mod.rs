//! The container's cgroups on the host: what `linux.cgroupsPath` and `linux.resources` ask for, in cgroup v1, v2 or both
//! (`cgroups(7)`).
//!
//! ```text
//! make ── directories, controllers enabled on the way down ──▶ apply ── limits ──▶ add ── sentry, gofer
//! stats, update, oom_events                                    while it runs
//! destroy ── kills what is left, removes the directories that were made
//! ```
//!
//! The sentry and the gofer are put there, and the stubs with them, as children of the sentry: so the limits hold for
//! everything that the container makes the host do, the sentry's own needs included. A controller that both versions offer
//! is always v1's, as the kernel binds it to one of them.
//!
//! `linux.resources.devices` is told to systemd alone: no device of the host can be reached from the sandbox, so its rules
//! apply to nothing. `linux.resources.pids` limits the host's threads, of which each container thread needs two; see
//! [`host_threads`].

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use super::error::{Context, Error, Result};

mod files;
mod hierarchy;
mod make;
mod merge;
pub mod oom;
mod processes;
mod remove;
pub mod stats;
mod systemd;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

pub use make::{Held, Plan};
pub use systemd::ANNOTATION_PREFIX;
pub use v2::weight_of_shares;

use files::{Dir, refusal};
use hierarchy::Hierarchies;
use systemd::{Controllers, Manager, Unit};

/// The cgroups of a container; kept with its state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// The directory of each controller of cgroup v1, or of each named hierarchy as `name=NAME`.
    v1: BTreeMap<String, PathBuf>,
    /// The directory in cgroup v2.
    v2: Option<PathBuf>,
    /// Directories that were made for the container, outermost first: these are removed again.
    made: Vec<PathBuf>,
    /// Directories that are about to be made: these are removed if they are empty, should the command be killed.
    #[serde(default)]
    planned: Vec<PathBuf>,
    /// systemd's unit, whose cgroups these are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<Unit>,
    /// The limits as of now.
    resources: LinuxResources,
}

/// Where a controller's files are.
enum Place<'a> {
    V1(Dir<'a>),
    V2(Dir<'a>),
}

impl Cgroup {
    /// Sets the limits of the specification. Errors name the field that this host cannot heed.
    pub fn apply(&self) -> Result<()> {
        self.set(&self.resources)
    }

    /// Changes the limits that `changes` has; the others stay. Those that were set before a failure stay set.
    pub fn update(&mut self, changes: &LinuxResources) -> Result<()> {
        if let Some(limit) = changes
            .memory()
            .and_then(|memory| memory.limit().filter(|&limit| limit > 0 && memory.check_before_update() == Some(true)))
        {
            let used = self.memory_in_use();
            if used >= limit as u64 {
                return Err(refusal("memory.limit", format!("{limit} is not above what is in use: {used} bytes")));
            }
        }
        let (merged, changed) = merge::merge(&self.resources, changes);
        if let Some(unit) = &self.unit {
            let mut manager = Manager::connect()?;
            let properties = systemd::limits(&changed, manager.version, self)?;
            manager.set(&unit.name, properties)?;
        }
        self.set(&changed)?;
        self.resources = merged;
        Ok(())
    }

    /// The limits as of now.
    pub fn resources(&self) -> &LinuxResources {
        &self.resources
    }

    /// Files that tell what the container uses, for its own eyes. What cannot be opened is left out.
    pub fn counters(&self) -> Vec<(&'static str, File)> {
        let mut open = Vec::new();
        let mut add = |dir: Dir<'_>, names: &[&'static str]| {
            let files = names.iter().filter_map(|name| Some((*name, File::open(dir.0.join(name)).ok()?)));
            open.extend(files);
        };
        match self.place("memory") {
            Some(Place::V1(dir)) => add(
                dir,
                &[
                    "memory.usage_in_bytes",
                    "memory.max_usage_in_bytes",
                    "memory.stat",
                    "memory.oom_control",
                    "memory.failcnt",
                ],
            ),
            Some(Place::V2(dir)) => add(dir, &["memory.current", "memory.peak", "memory.stat", "memory.events"]),
            None => {}
        }
        if let Some(Place::V1(dir) | Place::V2(dir)) = self.place("cpu") {
            add(dir, &["cpu.stat"]);
        }
        open
    }

    fn memory_in_use(&self) -> u64 {
        let used = match self.place("memory") {
            Some(Place::V1(dir)) => dir.number("memory.usage_in_bytes"),
            Some(Place::V2(dir)) => dir.number("memory.current"),
            None => None,
        };
        used.unwrap_or(0)
    }

    fn set(&self, wanted: &LinuxResources) -> Result<()> {
        if let Some(memory) = wanted.memory().filter(|memory| *memory != Default::default()) {
            match self.required("memory", "memory")? {
                Place::V1(dir) => v1::memory(dir, &memory)?,
                Place::V2(dir) => v2::memory(dir, &memory)?,
            }
        }
        if let Some(cpu) = wanted.cpu() {
            self.set_cpu(cpu)?;
        }
        if let Some(limit) = wanted.pids().map(|pids| pids.limit()).filter(|&limit| limit != 0) {
            let (Place::V1(dir) | Place::V2(dir)) = self.required("pids", "pids")?;
            dir.set("pids.limit", "pids.max", v2::bounded(host_threads(limit)))?;
        }
        if let Some(io) = wanted.block_io().as_ref().filter(|io| **io != Default::default()) {
            match self.required("blkio", "blockIO")? {
                Place::V1(dir) => v1::block_io(dir, io)?,
                Place::V2(dir) => v2::block_io(dir, io)?,
            }
        }
        if let Some(limits) = wanted.hugepage_limits().as_ref().filter(|limits| !limits.is_empty()) {
            match self.required("hugetlb", "hugepageLimits")? {
                Place::V1(dir) => v1::hugepages(dir, limits)?,
                Place::V2(dir) => v2::hugepages(dir, limits)?,
            }
        }
        self.set_rare(wanted)
    }

    fn set_cpu(&self, cpu: &oci_spec::runtime::LinuxCpu) -> Result<()> {
        let plain = merge::without_cpuset(cpu);
        if merge::limits_cpu(&plain) {
            match self.required("cpu", "cpu")? {
                Place::V1(dir) => v1::cpu(dir, &plain)?,
                Place::V2(dir) => v2::cpu(dir, &plain)?,
            }
        }
        for (field, list) in [("cpu.cpus", cpu.cpus()), ("cpu.mems", cpu.mems())] {
            if list.as_ref().is_some_and(|list| !list.is_empty()) {
                let (Place::V1(dir) | Place::V2(dir)) = self.required("cpuset", field)?;
                return v1::cpuset(dir, cpu);
            }
        }
        Ok(())
    }

    fn set_rare(&self, wanted: &LinuxResources) -> Result<()> {
        for (device, limit) in wanted.rdma().iter().flatten() {
            let field = format!("rdma[{device:?}]");
            let (Place::V1(dir) | Place::V2(dir)) = self.required("rdma", &field)?;
            let part = |name: &str, value: Option<u32>| value.map_or(String::new(), |value| format!(" {name}={value}"));
            let line = format!(
                "{device}{}{}",
                part("hca_handle", limit.hca_handles()),
                part("hca_object", limit.hca_objects())
            );
            dir.set(&field, "rdma.max", line)?;
        }
        if let Some(network) = wanted.network() {
            if v1::given(network.class_id()).is_some() {
                v1::class_id(self.required_v1("net_cls", "network.classID")?, network)?;
            }
            if network.priorities().as_ref().is_some_and(|list| !list.is_empty()) {
                v1::priorities(self.required_v1("net_prio", "network.priorities")?, network)?;
            }
        }
        match (wanted.unified().as_ref().filter(|files| !files.is_empty()), &self.v2) {
            (None, _) => Ok(()),
            (Some(files), Some(dir)) if self.v1.is_empty() => v2::unified(Dir(dir), files),
            (Some(_), _) => Err(refusal("unified", "cannot be used with cgroup v1, which this host has")),
        }
    }

    /// Where `controller`, by its name in v1, has its files, if this host has it.
    fn place(&self, controller: &str) -> Option<Place<'_>> {
        if let Some(path) = self.v1.get(controller) {
            return Some(Place::V1(Dir(path)));
        }
        let name = match controller {
            "blkio" => "io",
            "cpuacct" => "cpu",
            same => same,
        };
        let dir = Dir(self.v2.as_ref()?);
        let offered = dir.read("cgroup.controllers").ok()?;
        offered.split_whitespace().any(|one| one == name).then_some(Place::V2(dir))
    }

    fn required(&self, controller: &str, field: &str) -> Result<Place<'_>> {
        self.place(controller).ok_or_else(|| missing(controller, field))
    }

    fn required_v1(&self, controller: &str, field: &str) -> Result<Dir<'_>> {
        self.v1.get(controller).map(|path| Dir(path)).ok_or_else(|| missing(controller, field))
    }

    /// Puts a process there, with its children and theirs.
    pub fn add(&self, pid: i32) -> Result<()> {
        if self.directories().next().is_none() {
            return Ok(());
        }
        // Those that a process makes after it was moved are there from the start. So nobody is missed when a pass over all
        // has found nobody to move: who was made meanwhile was made by one who had been moved before.
        let mut moved = std::collections::BTreeSet::new();
        loop {
            let new: Vec<i32> = processes::family(pid).into_iter().filter(|pid| !moved.contains(pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for one in new {
                self.add_one(one, one == pid)?;
                moved.insert(one);
            }
        }
    }

    fn add_one(&self, pid: i32, must_exist: bool) -> Result<()> {
        for directory in self.directories() {
            match Dir(directory).write("cgroup.procs", pid) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) && !must_exist => return Ok(()),
                Err(error) => return Err(error).doing(|| format!("put process {pid} into {}", directory.display())),
            }
        }
        Ok(())
    }

    /// The files by which a process is put there, for who cannot open them: one for each directory.
    pub fn entrances(&self) -> Result<Vec<fs::File>> {
        let open = |directory: &PathBuf| {
            let file = directory.join("cgroup.procs");
            fs::OpenOptions::new().write(true).open(&file).doing(|| format!("open {}", file.display()))
        };
        self.directories().map(open).collect()
    }

    /// Each directory once.
    fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        let v1: std::collections::BTreeSet<&PathBuf> = self.v1.values().collect();
        v1.into_iter().chain(&self.v2)
    }
}

impl Controllers for Cgroup {
    fn is_v2(&self, controller: &str) -> bool {
        self.v2.is_some() && !self.v1.contains_key(controller)
    }
}

impl Controllers for Hierarchies {
    fn is_v2(&self, controller: &str) -> bool {
        self.v2.is_some() && !self.v1.contains_key(controller)
    }
}

/// A container thread is a thread of the sentry's and one of a stub; the sentry and the gofer have some for themselves.
/// The container's own limit is kept by the sentry: this one is for the host's sake.
pub fn host_threads(limit: i64) -> i64 {
    /// Of the sentry, the gofer, and stubs that wait ready.
    const OWN: i64 = 64;
    if limit < 0 { limit } else { limit.saturating_mul(2).saturating_add(OWN) }
}

fn missing(controller: &str, field: &str) -> Error {
    refusal(field, format!("the cgroup controller {controller} is not available on this host"))
}

/// The numbers of a list like `0-2,7`. What is not a list of CPUs or nodes is left out.
pub fn cpu_list(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let bounds: Option<(u16, u16)> = first.trim().parse().ok().zip(last.trim().parse().ok());
        bounds.map(|(first, last)| first..=last)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}
