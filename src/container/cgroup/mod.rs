//! The container's cgroups on the host: what `linux.cgroupsPath` and `linux.resources` ask for, in cgroup v1, v2 or both
//! (`cgroups(7)`).
//!
//! ```text
//! create ── directories, controllers enabled on the way down ──▶ apply ── limits ──▶ add ── sentry, gofer
//! stats, update, oom_events                                      while it runs
//! destroy ── kills what is left, removes the directories that were made
//! ```
//!
//! The sentry and the gofer are put there, and the stubs with them, as children of the sentry: so the limits hold for
//! everything that the container makes the host do, the sentry's own needs included. A controller that both versions offer
//! is always v1's, as the kernel binds it to one of them.
//!
//! `linux.resources.devices` is not looked at: no device of the host can be reached from the sandbox, so its rules apply to
//! nothing. `linux.resources.pids` limits the host's threads, of which each container thread needs two; see
//! [`host_threads`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, Spec};
use serde::{Deserialize, Serialize};

use super::error::{Context, Error, Result};

mod files;
mod hierarchy;
mod merge;
pub mod oom;
mod processes;
pub mod stats;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

pub use v2::weight_of_shares;

use files::{Dir, refusal};
use hierarchy::{Hierarchies, check_path};

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
    /// The limits as of now.
    resources: LinuxResources,
}

/// Where a controller's files are.
enum Place<'a> {
    V1(Dir<'a>),
    V2(Dir<'a>),
}

impl Cgroup {
    /// Plans the container's cgroups. Without a path and without limits there are none: the container stays where the
    /// command is. A path that is not absolute is taken from there, and a container without a path gets its name for one, as
    /// runc has it.
    pub fn plan(spec: &Spec, id: &str, systemd: bool) -> Result<Plan> {
        Cgroup::plan_in(Hierarchies::detect()?, spec, id, systemd)
    }

    fn plan_in(host: Hierarchies, spec: &Spec, id: &str, systemd: bool) -> Result<Plan> {
        if systemd {
            return Err(Error::Usage(
                "--systemd-cgroup: cgroups are made without systemd: use the cgroupfs driver".into(),
            ));
        }
        let Some(path) = path_of(spec, id)? else {
            return Ok(Plan { host, path: None, cgroup: Cgroup::default() });
        };
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
        let mut cgroup = Cgroup { resources, ..Cgroup::default() };
        for mounted in host.v1.values() {
            cgroup.plan_one(&mounted.point, &mounted.leaf(&path, false));
        }
        if let Some(mounted) = &host.v2 {
            cgroup.plan_one(&mounted.point, &mounted.leaf(&path, host.unified()));
        }
        Ok(Plan { host, path: Some(path), cgroup })
    }

    /// Notes what is missing of `leaf`, below `point`.
    fn plan_one(&mut self, point: &Path, leaf: &Path) {
        let mut path = point.to_owned();
        for part in leaf.strip_prefix(point).unwrap_or(Path::new("")) {
            path.push(part);
            if !path.exists() && !self.planned.contains(&path) {
                self.planned.push(path.clone());
            }
        }
    }

    /// Those that a container without a readable record has left: what it had to itself.
    pub fn left_by(spec: &Spec, id: &str) -> Result<Cgroup> {
        let host = Hierarchies::detect()?;
        let Some(path) = path_of(spec, id)? else { return Ok(Cgroup::default()) };
        let mut cgroup = Cgroup::default();
        for (controller, mounted) in &host.v1 {
            cgroup.v1.insert(controller.clone(), mounted.leaf(&path, false));
        }
        cgroup.v2 = host.v2.as_ref().map(|mounted| mounted.leaf(&path, host.unified()));
        cgroup.made = cgroup.directories().cloned().collect();
        Ok(cgroup)
    }

    fn make_all(&mut self, host: &Hierarchies, path: &Path) -> Result<()> {
        for (controller, mounted) in &host.v1 {
            let leaf = mounted.leaf(path, false);
            // Controllers that are mounted together share the directory.
            if !self.v1.values().any(|made| *made == leaf) {
                self.make(&mounted.point, &leaf, |parent, dir| match controller.as_str() {
                    "cpuset" => inherit_cpuset(parent, dir),
                    _ => Ok(()),
                })?;
            }
            self.v1.insert(controller.clone(), leaf);
        }
        if let Some(mounted) = &host.v2 {
            let leaf = mounted.leaf(path, host.unified());
            // Beside v1, what v2 has left is enabled only when it is needed: that asks for parents without processes.
            let enable =
                host.unified() || self.resources.hugepage_limits().is_some() || self.resources.rdma().is_some();
            self.make(&mounted.point, &leaf, |parent, _| {
                if enable {
                    enable_controllers(parent);
                }
                Ok(())
            })?;
            self.v2 = Some(leaf);
        }
        Ok(())
    }

    /// Makes `leaf` and what is missing above it, below `point`. `prepare` is called with each parent and child.
    fn make(&mut self, point: &Path, leaf: &Path, prepare: impl Fn(Dir<'_>, Dir<'_>) -> io::Result<()>) -> Result<()> {
        /// The end of another container may remove a directory that both need, between two steps.
        const TRIES: usize = 10;
        let mut outcome = Ok(());
        for _ in 0..TRIES {
            outcome = self.make_once(point, leaf, &prepare);
            match &outcome {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                _ => break,
            }
        }
        outcome?;
        let processes = Dir(leaf).processes().doing(|| format!("cgroup {}", leaf.display()))?;
        match processes.len() {
            0 => Ok(()),
            // Limits of one container would hold for the other, and its end would be the other's.
            count => Err(Error::Usage(format!("linux.cgroupsPath: {} has {count} processes already", leaf.display()))),
        }
    }

    fn make_once(
        &mut self,
        point: &Path,
        leaf: &Path,
        prepare: &impl Fn(Dir<'_>, Dir<'_>) -> io::Result<()>,
    ) -> Result<()> {
        let mut path = point.to_owned();
        for part in leaf.strip_prefix(point).unwrap_or(Path::new("")) {
            let parent = path.clone();
            path.push(part);
            let doing = || format!("make the cgroup {}", path.display());
            match fs::create_dir(&path) {
                Ok(()) => self.made.push(path.clone()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).doing(doing),
            }
            prepare(Dir(&parent), Dir(&path)).doing(doing)?;
        }
        Ok(())
    }

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
        self.set(&changed)?;
        self.resources = merged;
        Ok(())
    }

    /// The limits as of now.
    pub fn resources(&self) -> &LinuxResources {
        &self.resources
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

    /// Kills what is left in it and removes the directories that were made for it. One that is gone is fine.
    pub fn destroy(&self) -> Result<()> {
        let leaves: Vec<&PathBuf> = self.directories().collect();
        let mut outcome = Ok(());
        for path in self.made.iter().rev() {
            let removed = if leaves.contains(&path) { remove_leaf(path) } else { remove(path) };
            match removed {
                Ok(()) => {}
                // Above the container's own, others may have theirs.
                Err(error) if !leaves.contains(&path) && is_busy(&error) => {}
                Err(error) => {
                    outcome = outcome.and(Err(error).doing(|| format!("remove the cgroup {}", path.display())))
                }
            }
        }
        for path in self.planned.iter().rev() {
            // Another's, if it is in use.
            match remove(path) {
                Err(error) if !is_busy(&error) => log::warn!("remove the cgroup {}: {error}", path.display()),
                _ => {}
            }
        }
        outcome
    }
}

/// `linux.cgroupsPath`; the container's name when that is not given and there are limits; `None` without either.
fn path_of(spec: &Spec, id: &str) -> Result<Option<PathBuf>> {
    let linux = spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().clone()).filter(|path| !path.as_os_str().is_empty());
    let limits = linux.and_then(|linux| linux.resources().as_ref()).is_some_and(merge::limits_anything);
    let path = path.or_else(|| limits.then(|| id.into()));
    path.as_deref().map_or(Ok(()), check_path)?;
    Ok(path)
}

/// Cgroups that are about to be made.
pub struct Plan {
    host: Hierarchies,
    /// None when the container gets none.
    path: Option<PathBuf>,
    cgroup: Cgroup,
}

impl Plan {
    /// For the container's record: by it, what a command that is killed has made can be removed.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Makes them. An error leaves nothing behind.
    pub fn make(self) -> Result<Cgroup> {
        let Plan { host, path, mut cgroup } = self;
        let Some(path) = path else { return Ok(cgroup) };
        cgroup.planned.clear();
        match cgroup.make_all(&host, &path) {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                // The first failure is the one to tell.
                let _ = cgroup.destroy();
                Err(error)
            }
        }
    }
}

/// Cgroups of a container that is being made: destroyed again when dropped, unless released.
pub struct Held(Option<Cgroup>);

impl Held {
    /// Makes them and sets the limits.
    pub fn make(plan: Plan) -> Result<Held> {
        let held = Held(Some(plan.make()?));
        held.cgroup().apply()?;
        Ok(held)
    }

    /// For the container's record.
    pub fn cgroup(&self) -> Cgroup {
        self.0.clone().unwrap_or_default()
    }

    /// Puts the sandbox's processes there, before they begin; they are out of the OOM killer's way too.
    pub fn enter(&self, processes: &[i32]) -> Result<()> {
        for &pid in processes {
            self.cgroup().add(pid)?;
            oom::protect(pid)?;
        }
        Ok(())
    }

    /// Leaves them to whoever deletes the container.
    pub fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(cgroup) = self.0.take()
            && let Err(error) = cgroup.destroy()
        {
            log::warn!("{error}");
        }
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

/// A cpuset without CPUs or memory nodes takes no process: what the parent has is the default.
fn inherit_cpuset(parent: Dir<'_>, dir: Dir<'_>) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if dir.read(file)?.trim().is_empty() {
            dir.write(file, parent.read(file)?.trim())?;
        }
    }
    Ok(())
}

/// Lets the children of `dir` use all controllers that it has itself. One that cannot be enabled is missed, by name, when a
/// limit needs it.
fn enable_controllers(dir: Dir<'_>) {
    const CONTROL: &str = "cgroup.subtree_control";
    let offered = dir.read("cgroup.controllers").unwrap_or_default();
    let enabled = dir.read(CONTROL).unwrap_or_default();
    let missing: Vec<&str> =
        offered.split_whitespace().filter(|one| !enabled.split_whitespace().any(|other| other == *one)).collect();
    let all: Vec<String> = missing.iter().map(|one| format!("+{one}")).collect();
    if all.is_empty() || dir.write(CONTROL, all.join(" ")).is_ok() {
        return;
    }
    for one in all {
        if let Err(error) = dir.write(CONTROL, &one) {
            log::debug!("{one} in {}/{CONTROL}: {error}", dir.0.display());
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Removes a cgroup with whatever processes it still has. They are gone a moment after they were killed.
fn remove_leaf(path: &Path) -> io::Result<()> {
    /// The longest that it may take: 1 ms, 2 ms, … 1 s.
    const TRIES: u32 = 11;
    for attempt in 0..TRIES {
        match remove(path) {
            Err(error) if is_busy(&error) => {}
            done => return done,
        }
        let dir = Dir(path);
        if !dir.has("cgroup.kill") || dir.write("cgroup.kill", 1).is_err() {
            for pid in dir.processes().unwrap_or_default() {
                // SAFETY: no memory is passed. The process is in the container's cgroup.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        std::thread::sleep(Duration::from_millis(1 << attempt));
    }
    remove(path)
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
