//! The parts of `linux` and of `process` that are Linux's own: what the sandbox does not have is refused by its name.
//!
//! AppArmor: a profile confines what the calls of a container do on the host's kernel, which none of them reaches. The
//! engines' own default profiles deny what the sandbox has not got in the first place (the host's `/proc` and `/sys`,
//! mounts and traces across containers), and are taken as honoured by it. A profile of the operator's own has rules that
//! nobody would enforce, and is refused.

use std::path::Path;

use oci_spec::runtime::{
    Hook, Linux, LinuxDeviceType, LinuxPersonalityDomain, LinuxSchedulerFlag, Process, Scheduler, Spec,
};

use super::{Check, Problem};
use crate::container::hooks::Point;
use crate::sentry::seccomp::oci;
use crate::sentry::sysctl;

/// Profiles whose denials hold in every sandbox.
const DEFAULT_PROFILES: [&str; 5] =
    ["unconfined", "docker-default", "cri-containerd.apparmor.d", "crio-default", "containers-default"];

/// What `linux.rootfsPropagation` may be: `mount_namespaces(7)`. The container's mounts are the sentry's, so that none can
/// be shared with the host.
const PROPAGATIONS: [&str; 9] =
    ["", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];

/// Checks what of `process` concerns Linux beyond identity and limits.
pub fn check_process(process: &Process) -> Check {
    if let Some(profile) = process.apparmor_profile().as_deref().filter(|profile| !profile.is_empty()) {
        let known = |name: &str| name == profile || profile.starts_with(&format!("{name}-"));
        if !DEFAULT_PROFILES.iter().any(|name| known(name)) {
            let text = format!("profile {profile:?} cannot be enforced: a sandbox has no AppArmor");
            return Err(Problem::new("process.apparmorProfile", text));
        }
    }
    refuse_text("process.selinuxLabel", process.selinux_label(), "a sandbox has no SELinux")?;
    if process.io_priority().is_some() {
        return Err(Problem::new("process.ioPriority", "is not supported"));
    }
    process.scheduler().as_ref().map_or(Ok(()), check_scheduler)?;
    if process.exec_cpu_affinity().is_some() {
        return Err(Problem::new("process.execCPUAffinity", "is not supported"));
    }
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(Problem::new("process.oomScoreAdj", format!("{score} is not between -1000 and 1000")))
        }
        _ => Ok(()),
    }
}

/// Checks how a process is to be scheduled: as an ordinary one, which takes no privilege that the sentry lacks.
fn check_scheduler(scheduler: &Scheduler) -> Check {
    use oci_spec::runtime::LinuxSchedulerPolicy as Policy;
    if !matches!(scheduler.policy(), Policy::SchedOther | Policy::SchedBatch | Policy::SchedIdle) {
        return Err(Problem::new("process.scheduler.policy", "is not supported"));
    }
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(Problem::new("process.scheduler.nice", format!("{nice} is not between -20 and 19")));
    }
    if scheduler.priority().unwrap_or(0) != 0 {
        return Err(Problem::new("process.scheduler.priority", "is of realtime policies only"));
    }
    for (field, time) in
        [("runtime", scheduler.runtime()), ("deadline", scheduler.deadline()), ("period", scheduler.period())]
    {
        if time.unwrap_or(0) != 0 {
            return Err(Problem::new(format!("process.scheduler.{field}"), "is of SCHED_DEADLINE only"));
        }
    }
    match scheduler.flags().iter().flatten().find(|flag| **flag != LinuxSchedulerFlag::SchedResetOnFork) {
        Some(flag) => Err(Problem::new("process.scheduler.flags", format!("{flag} is not supported"))),
        None => Ok(()),
    }
}

/// Checks `linux` but for namespaces and resources.
pub fn check(linux: &Linux) -> Check {
    for (field, mappings) in [("linux.uidMappings", linux.uid_mappings()), ("linux.gidMappings", linux.gid_mappings())]
    {
        if mappings.as_ref().is_some_and(|mappings| !mappings.is_empty()) {
            return Err(Problem::new(field, "user namespaces are not supported"));
        }
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(Problem::new("linux.netDevices", "host devices are not moved into a sandbox"));
    }
    refuse_text("linux.mountLabel", linux.mount_label(), "a sandbox has no SELinux")?;
    if linux.intel_rdt().is_some() {
        return Err(Problem::new("linux.intelRdt", "is not supported"));
    }
    if linux.memory_policy().is_some() {
        return Err(Problem::new("linux.memoryPolicy", "is not supported"));
    }
    if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) {
        return Err(Problem::new("linux.timeOffsets", "clocks with offsets are not supported"));
    }
    if let Some(personality) = linux.personality() {
        if personality.domain() != LinuxPersonalityDomain::PerLinux {
            return Err(Problem::new("linux.personality.domain", "there is no other than LINUX"));
        }
        if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
            return Err(Problem::new("linux.personality.flags", "are not supported"));
        }
    }
    if let Some(kind) = linux.rootfs_propagation()
        && !PROPAGATIONS.contains(&kind.as_str())
    {
        return Err(Problem::new("linux.rootfsPropagation", format!("{kind:?} is not known")));
    }
    absolute("linux.maskedPaths", linux.masked_paths())?;
    absolute("linux.readonlyPaths", linux.readonly_paths())?;
    check_devices(linux)?;
    for (name, value) in linux.sysctl().iter().flatten() {
        sysctl::check(name, value).map_err(|text| Problem::new(format!("linux.sysctl.{name}"), text))?;
    }
    match linux.seccomp() {
        Some(profile) => oci::compile(profile)
            .map(drop)
            .map_err(|(field, text)| Problem::new(format!("linux.seccomp.{field}"), text)),
        None => Ok(()),
    }
}

fn refuse_text(field: &str, value: &Option<String>, why: &str) -> Check {
    match value.as_deref() {
        Some(value) if !value.is_empty() => Err(Problem::new(field, format!("{value:?} cannot be honoured: {why}"))),
        _ => Ok(()),
    }
}

fn absolute(field: &str, paths: &Option<Vec<String>>) -> Check {
    match paths.iter().flatten().position(|path| !path.starts_with('/') || path.contains('\0')) {
        Some(index) => Err(Problem::new(format!("{field}[{index}]"), "is not an absolute path")),
        None => Ok(()),
    }
}

fn check_devices(linux: &Linux) -> Check {
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let field = |what: &str| format!("linux.devices[{index}].{what}");
        if !device.path().is_absolute() || device.path() == Path::new("/") {
            return Err(Problem::new(field("path"), format!("{} is not an absolute path", device.path().display())));
        }
        if device.typ() == LinuxDeviceType::A {
            return Err(Problem::new(field("type"), "\"a\" is no type of a node"));
        }
        let number = |value: i64, most: i64| device.typ() == LinuxDeviceType::P || (0..=most).contains(&value);
        if !number(device.major(), 0xfff) {
            return Err(Problem::new(field("major"), format!("{} is no major number", device.major())));
        }
        if !number(device.minor(), 0xf_ffff) {
            return Err(Problem::new(field("minor"), format!("{} is no minor number", device.minor())));
        }
    }
    Ok(())
}

/// Checks `hooks`: what could only fail once the container is half made.
pub fn check_hooks(spec: &Spec) -> Check {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    for point in Point::ALL {
        for (index, hook) in point.of(hooks).iter().enumerate() {
            check_hook(hook)
                .map_err(|(what, text)| Problem::new(format!("hooks.{}[{index}].{what}", point.name()), text))?;
        }
    }
    Ok(())
}

fn check_hook(hook: &Hook) -> Result<(), (String, String)> {
    if !hook.path().is_absolute() {
        return Err(("path".into(), format!("{:?} is not an absolute path", hook.path())));
    }
    if let Some(index) = hook.args().iter().flatten().position(|word| word.contains('\0')) {
        return Err((format!("args[{index}]"), "contains a NUL byte".into()));
    }
    let bad = |entry: &String| !entry.contains('=') || entry.starts_with('=') || entry.contains('\0');
    if let Some(index) = hook.env().iter().flatten().position(bad) {
        return Err((format!("env[{index}]"), "is not NAME=VALUE".into()));
    }
    match hook.timeout() {
        Some(seconds) if seconds <= 0 => Err(("timeout".into(), format!("{seconds} is not greater than zero"))),
        _ => Ok(()),
    }
}
