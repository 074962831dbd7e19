//! `linux` of the specification, but for files: what holds for all processes of the container.

use std::sync::Arc;

use oci_spec::runtime::Spec;

use super::hooks::StartHooks;
use super::{Doing, Outcome};
use crate::sentry::kernel::Kernel;
use crate::sentry::namespaces::UtsNamespace;
use crate::sentry::seccomp::oci;
use crate::sentry::sysctl;

/// Puts it in force. Must come before the first task is made.
pub fn apply(kernel: &Kernel, spec: &Spec, uts: &Arc<UtsNamespace>) -> Outcome<()> {
    if let Some(hooks) = StartHooks::of(spec) {
        let _ = kernel.start_hooks.set(hooks); // a kernel is set up once
    }
    let Some(linux) = spec.linux() else { return Ok(()) };
    for (name, value) in linux.sysctl().iter().flatten() {
        sysctl::apply(kernel, uts, name, value).doing(|| format!("linux.sysctl.{name}"))?;
    }
    if let Some(profile) = linux.seccomp() {
        let filter = oci::compile(profile).map_err(|(field, text)| format!("linux.seccomp.{field}: {text}"))?;
        let _ = kernel.seccomp_profile.set(filter);
    }
    if let Some(resources) = linux.resources() {
        kernel.set_resources(resources.clone());
    }
    Ok(())
}
