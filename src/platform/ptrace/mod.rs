//! The ptrace platform: system calls are captured by `PTRACE_SYSEMU`.
//!
//! ```text
//! sentry process                          stub process (one address space)
//!   factory thread ──── traces ────────── template: stopped, only ever cloned
//!   sentry thread of a container thread ─ stub thread: container code, or one call that the sentry chose
//! ```
//!
//! A stub process is a clone of an emptied copy of the sentry: it holds one page of code of ours (`stub`) and the vDSO.
//! It shares the sentry's descriptor table (`CLONE_FILES`), so that the sentry can have it map a file without passing the
//! descriptor; nothing else can be done with one, since every system call of container code stops before the host's
//! kernel sees it, and a seccomp filter behind that allows only what the sentry itself makes a stub do.
//!
//! A system call costs four host calls (`PTRACE_SYSEMU`, `wait4`, `PTRACE_GETREGS`, `PTRACE_SETREGS`) and two switches
//! between the pair on one CPU: about 6 us where this was measured.

pub(super) mod factory;
pub(super) mod space;
pub(super) mod stub;
pub(super) mod thread;
mod title;
pub(super) mod trace;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::errno::Result;
use crate::platform::{Platform, Seed};
use factory::{Factory, Kind};
use thread::StubSeed;

/// The platform.
pub struct PtracePlatform {
    factory: Arc<Factory>,
}

/// Finds what needs the host's `/proc`, before the process gives that up.
pub fn prepare() -> Result<()> {
    stub::vdso_range().map(drop)
}

impl PtracePlatform {
    /// Forks the template of all stubs. Called early, while the sentry is small: the template begins as a copy of it.
    pub fn new() -> Result<PtracePlatform> {
        crate::platform::placement::count();
        crate::platform::placement::best_nice();
        Ok(PtracePlatform { factory: Factory::start(Kind::Traced)? })
    }
}

impl Platform for PtracePlatform {
    fn name(&self) -> &'static str {
        "ptrace"
    }

    fn spawn(&self) -> Result<Seed> {
        Ok(Box::new(StubSeed::first(self.factory.take()?, self.factory.clone())))
    }
}

impl Drop for PtracePlatform {
    fn drop(&mut self) {
        self.factory.close();
    }
}
