//! The sentry's allow-list. Stubs inherit it, and narrow it further with their own filter.
//!
//! Nothing here opens a path, makes a socket, starts a program or changes identity: a sentry that has been taken over by
//! its container holds its descriptors and its stubs, and that is all.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::container::{Context, Result};

/// Calls that are allowed whatever their arguments.
const ALLOWED: &[libc::c_long] = &[];

/// Installs the filter in the calling thread, and so in all threads and processes made from it. `no_new_privs` must be
/// set.
pub fn install() -> Result<()> {
    if ALLOWED.is_empty() {
        return Ok(());
    }
    let program = program().map_err(io::Error::other).doing(|| "build the sentry's seccomp filter")?;
    seccompiler::apply_filter_all_threads(&program)
        .map_err(io::Error::other)
        .doing(|| "install the sentry's seccomp filter")
}

fn program() -> std::result::Result<BpfProgram, seccompiler::BackendError> {
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        ALLOWED.iter().map(|&number| (number, Vec::new())).collect();
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}
