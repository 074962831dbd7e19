//! The systrap platform: system calls are trapped inside the stub and handed over through shared memory.
//!
//! A stub thread is in one of two modes:
//!
//! ```text
//!            ┌──────── TRACED ────────┐  many plain calls in a row   ┌────────── FREE ───────────┐
//! start ───▶ │ as on the ptrace       │ ───────────────────────────▶ │ no tracer: a filter makes │
//!            │ platform               │ ◀─────────────────────────── │ every call a SIGSYS       │
//!            └────────────────────────┘  a kick; exec; mapping, fork └───────────────────────────┘
//! ```
//!
//! Free, a call costs no ptrace stop. The stub's code ([`code`]) saves the registers in a [`context`] that the sentry maps
//! too, says so in one word, and waits there for the answer: looking at it while the sentry thread is on another CPU and
//! looks as well (0.06 us each way), else asleep on a futex (6 us there and back on one CPU, where a ptrace stop takes 8 to
//! 10). A signal costs 2.3 us more; call sites that are met often are rewritten ([`patch`]) and need none.
//!
//! Whatever is rare or needs the host's word goes back to the traced mode, where the sentry has the thread's true registers
//! and nobody can act for the stub: mapping memory, forking. The filter lets such calls pass only with a seal that container
//! code never sees ([`crate::seccomp::trap`]). A thread that was free is so again right after.
//!
//! Stub threads outlive their container threads: they rest until their process has another one.
//!
//! Where a sentry thread is: with its stub on one CPU, unless calls come quickly and another CPU is free; then it goes
//! there, and comes back when calls get rare, when somebody else needs that CPU, or when it must sleep.

pub mod arena;
pub mod code;
pub mod context;
mod hint;
pub mod patch;
mod seat;
mod shape;
mod space;
mod thread;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::platform::ptrace::factory::{Factory, Kind};
use crate::platform::ptrace::stub;
use crate::platform::ptrace::thread::StubSeed;
use crate::platform::{Platform, Seed, placement};
use crate::seccomp::trap::{self, Places, Seal};
use arena::Arena;
use thread::TrapSeed;

/// The platform.
pub struct SystrapPlatform {
    factory: Arc<Factory>,
    arena: Arc<Arena>,
}

/// Whether the processor and the host let programs read and write the bases of `%fs` and `%gs`, which the stub's code does.
pub fn is_possible() -> bool {
    const FSGSBASE: u64 = 2;
    // SAFETY: getauxval only reads the process's auxiliary vector.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & FSGSBASE != 0 }
}

impl SystrapPlatform {
    /// Forks the template of all stubs. Called early, while the sentry is small: the template begins as a copy of it.
    /// `ENOSYS` where the host cannot ([`is_possible`]).
    pub fn new() -> Result<SystrapPlatform> {
        if !is_possible() {
            return Err(Errno::ENOSYS);
        }
        placement::count();
        placement::best_nice();
        let seal = Seal::new()?;
        stub::vdso_clock();
        let calls = stub::sealed_calls();
        let pause = stub::PAUSE_END;
        let window = (context::WINDOW >> 32) as u32;
        let range = stub::USER_RANGE.start..context::WINDOW;
        let (futexes, sigreturn, yielding) = (code::futexes(), code::sigreturn(), code::yielding());
        let filter = trap::filter(seal, &Places { futexes, sigreturn, yielding, calls, pause, window })?;
        let factory = Factory::start(Kind::Free { seal, filter, handler: code::handler(), range })?;
        // After the template is made, which need not inherit it.
        Ok(SystrapPlatform { factory, arena: Arena::new()? })
    }
}

impl Platform for SystrapPlatform {
    fn name(&self) -> &'static str {
        "systrap"
    }

    fn spawn(&self) -> Result<Seed> {
        let seed = StubSeed::first(self.factory.take()?, self.factory.clone());
        Ok(Box::new(TrapSeed::first(seed, self.arena.clone())))
    }
}

impl Drop for SystrapPlatform {
    fn drop(&mut self) {
        self.factory.close();
    }
}
