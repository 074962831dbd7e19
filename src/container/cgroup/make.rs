//! Making a container's cgroups: planned and written down first, so that what a command that is killed has made is found.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Spec};

use super::files::Dir;
use super::hierarchy::{Hierarchies, Mounted, check_path};
use super::systemd::{self, Manager, Unit};
use super::{Cgroup, merge, oom};
use crate::container::error::{Context, Error, Result};

impl Cgroup {
    /// Plans the container's cgroups. Without a path and without limits there are none: the container stays where the
    /// command is. A path that is not absolute is taken from there, and a container without a path gets its name for one, as
    /// runc has it. With `systemd` there is always a unit.
    pub fn plan(spec: &Spec, id: &str, systemd: bool) -> Result<Plan> {
        let host = Hierarchies::detect()?;
        if systemd { Cgroup::plan_unit(host, spec, id, Manager::connect()?) } else { Cgroup::plan_in(host, spec, id) }
    }

    pub(super) fn plan_in(host: Hierarchies, spec: &Spec, id: &str) -> Result<Plan> {
        let Some(path) = path_of(spec, id)? else {
            return Ok(Plan { host, cgroup: Cgroup::default(), by: By::Nobody });
        };
        let at = At::Path(path);
        let mut cgroup = Cgroup { resources: resources_of(spec), ..Cgroup::default() };
        cgroup.plan_all(&host, &at);
        Ok(Plan { host, cgroup, by: By::Command(at) })
    }

    pub(super) fn plan_unit(host: Hierarchies, spec: &Spec, id: &str, mut manager: Manager) -> Result<Plan> {
        let name = unit_name(spec, id)?;
        if manager.is_in_use(&name.unit)? {
            return Err(Error::Usage(format!("linux.cgroupsPath: the systemd unit {} exists already", name.unit)));
        }
        let mut unit = Unit::planned(&name, id);
        let properties = systemd::properties(&mut unit, &name.slice, spec, manager.version, &host)?;
        let mut cgroup = Cgroup { resources: resources_of(spec), unit: Some(unit), ..Cgroup::default() };
        cgroup.plan_all(&host, &At::Group(Path::new(&format!("{}/", manager.root)).join(name.cgroup())));
        Ok(Plan { host, cgroup, by: By::Systemd { manager, properties } })
    }

    /// Notes what is missing in each hierarchy.
    fn plan_all(&mut self, host: &Hierarchies, at: &At) {
        for mounted in host.v1.values() {
            self.plan_one(&mounted.point, &at.leaf(mounted, false));
        }
        if let Some(mounted) = &host.v2 {
            self.plan_one(&mounted.point, &at.leaf(mounted, host.unified()));
        }
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
    pub fn left_by(spec: &Spec, id: &str, systemd: bool) -> Result<Cgroup> {
        let host = Hierarchies::detect()?;
        let mut cgroup = Cgroup::default();
        if systemd {
            cgroup.unit = Some(Unit::planned(&unit_name(spec, id)?, id));
            return Ok(cgroup);
        }
        let Some(path) = path_of(spec, id)? else { return Ok(cgroup) };
        for (controller, mounted) in &host.v1 {
            cgroup.v1.insert(controller.clone(), mounted.leaf(&path, false));
        }
        cgroup.v2 = host.v2.as_ref().map(|mounted| mounted.leaf(&path, host.unified()));
        cgroup.made = cgroup.directories().cloned().collect();
        Ok(cgroup)
    }

    fn make_all(&mut self, host: &Hierarchies, at: &At) -> Result<()> {
        for (controller, mounted) in &host.v1 {
            let leaf = at.leaf(mounted, false);
            // Controllers that are mounted together share the directory.
            if !self.v1.values().any(|made| *made == leaf) {
                self.make(&mounted.point, &leaf, |parent, dir| match controller.as_str() {
                    "cpuset" => inherit_cpuset(parent, dir),
                    _ => Ok(()),
                })?;
                at.check_free(&leaf)?;
            }
            self.v1.insert(controller.clone(), leaf);
        }
        if let Some(mounted) = &host.v2 {
            let leaf = at.leaf(mounted, host.unified());
            // Beside v1, what v2 has left is enabled only when it is needed: that asks for parents without processes.
            let enable =
                host.unified() || self.resources.hugepage_limits().is_some() || self.resources.rdma().is_some();
            self.make(&mounted.point, &leaf, |parent, _| {
                if enable {
                    enable_controllers(parent);
                }
                Ok(())
            })?;
            at.check_free(&leaf)?;
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
        outcome
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
}

/// `linux.cgroupsPath`, if it is given.
fn given_path(spec: &Spec) -> Option<PathBuf> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    path.filter(|path| !path.as_os_str().is_empty())
}

/// `linux.cgroupsPath`; the container's name when that is not given and there are limits; `None` without either.
fn path_of(spec: &Spec, id: &str) -> Result<Option<PathBuf>> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let limits = resources.is_some_and(merge::limits_anything);
    let path = given_path(spec).or_else(|| limits.then(|| id.into()));
    path.as_deref().map_or(Ok(()), check_path)?;
    Ok(path)
}

fn unit_name(spec: &Spec, id: &str) -> Result<systemd::Name> {
    let wrong = |problem| Error::Usage(format!("linux.cgroupsPath: {problem}"));
    systemd::Name::parse(given_path(spec).as_deref(), id).map_err(wrong)
}

fn resources_of(spec: &Spec) -> LinuxResources {
    spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default()
}

/// Where the container's cgroup is in every hierarchy.
enum At {
    /// `linux.cgroupsPath`.
    Path(PathBuf),
    /// That of a unit, counted from the root of the hierarchy.
    Group(PathBuf),
}

impl At {
    fn leaf(&self, mounted: &Mounted, beside: bool) -> PathBuf {
        match self {
            At::Path(path) => mounted.leaf(path, beside),
            At::Group(group) => mounted.of_group(group),
        }
    }

    /// Limits of one container would hold for the other, and its end would be the other's. A new unit has its own processes
    /// alone.
    fn check_free(&self, leaf: &Path) -> Result<()> {
        let At::Path(_) = self else { return Ok(()) };
        let processes = Dir(leaf).processes().doing(|| format!("cgroup {}", leaf.display()))?;
        match processes.len() {
            0 => Ok(()),
            count => Err(Error::Usage(format!("linux.cgroupsPath: {} has {count} processes already", leaf.display()))),
        }
    }
}

/// Who makes the cgroups.
enum By {
    /// There are to be none.
    Nobody,
    /// This command.
    Command(At),
    /// systemd, with these properties of the unit.
    Systemd { manager: Manager, properties: Vec<systemd::Property> },
}

/// Cgroups that are about to be made.
pub struct Plan {
    host: Hierarchies,
    cgroup: Cgroup,
    by: By,
}

impl Plan {
    /// For the container's record: by it, what a command that is killed has made can be removed.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Makes them and sets the limits. With systemd that is done as soon as there are processes.
    pub fn make(self) -> Result<Held> {
        let Plan { host, cgroup, by } = self;
        let mut held = Held { cgroup: Some(cgroup), pending: None };
        match by {
            By::Nobody => {}
            By::Command(at) => held.make(&host, &at)?,
            By::Systemd { manager, properties } => held.pending = Some(Pending { host, manager, properties }),
        }
        Ok(held)
    }
}

/// A unit that has no processes yet.
struct Pending {
    host: Hierarchies,
    manager: Manager,
    properties: Vec<systemd::Property>,
}

/// Cgroups of a container that is being made: destroyed again when dropped, unless released.
pub struct Held {
    /// `None` once they are somebody else's.
    cgroup: Option<Cgroup>,
    pending: Option<Pending>,
}

impl Held {
    fn make(&mut self, host: &Hierarchies, at: &At) -> Result<()> {
        let Some(cgroup) = &mut self.cgroup else { return Ok(()) };
        cgroup.planned.clear();
        cgroup.make_all(host, at)?;
        cgroup.apply()
    }

    fn start_unit(&mut self, pending: Pending, processes: &[i32]) -> Result<()> {
        let Pending { host, mut manager, properties } = pending;
        let Some(unit) = self.cgroup.as_mut().and_then(|cgroup| cgroup.unit.as_mut()) else { return Ok(()) };
        manager.start(&unit.name, &properties, processes)?;
        unit.made = true;
        let group = manager.control_group(&unit.name)?;
        self.make(&host, &At::Group(group))
    }

    /// For the container's record.
    pub fn cgroup(&self) -> Cgroup {
        self.cgroup.clone().unwrap_or_default()
    }

    /// Puts the sandbox's processes there, before they begin; they are out of the OOM killer's way too. [`Held::cgroup`] may
    /// be another one afterwards.
    pub fn enter(&mut self, processes: &[i32]) -> Result<()> {
        if let Some(pending) = self.pending.take() {
            self.start_unit(pending, processes)?;
        }
        for &pid in processes {
            self.cgroup().add(pid)?;
            oom::protect(pid)?;
        }
        Ok(())
    }

    /// Leaves them to whoever deletes the container.
    pub fn release(mut self) {
        self.cgroup = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(cgroup) = self.cgroup.take()
            && let Err(error) = cgroup.destroy()
        {
            log::warn!("{error}");
        }
    }
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
