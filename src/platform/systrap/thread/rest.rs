//! Stub threads that outlive their container threads, and wait for others of the same process.
//!
//! The host's price for a thread is paid once: cloning, attaching, mapping a context, ending and reaping. A thread that rests
//! waits in the stub's code as one that has called does; whoever gets it answers with all registers at once.
//!
//! It has nobody who watches it: container code that has written to its context can have it run. That is a thread that the
//! container has without the sentry knowing, all of whose calls wait for ever, and it ends with its process. A process that
//! has had such threads is not used for another program.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{From, Mode, TrapSeed, TrapThread, kept};
use crate::platform::placement;
use crate::platform::ptrace::space::StubProcess;
use crate::platform::ptrace::trace;
use crate::platform::systrap::code;
use crate::platform::systrap::context::{self, Stop, state};
use crate::platform::systrap::space::{self, Resting};
use crate::platform::{Regs, Seed};

/// A thread that has rested and was called up. It goes back to rest when nobody attaches it.
pub struct Called {
    thread: Option<Resting>,
    process: Arc<StubProcess>,
}

impl Drop for Called {
    fn drop(&mut self) {
        if let (Some(thread), Some(contexts)) = (self.thread.take(), kept(&self.process)) {
            contexts.resting.put(thread);
        }
    }
}

impl TrapThread {
    /// A new thread, if one rests.
    pub(super) fn call_up(&mut self) -> Option<Seed> {
        let process = self.inner.space.process.clone();
        let thread = kept(&process)?.resting.take()?;
        let (tid, pinned) = (thread.tid, thread.pinned);
        let called = Called { thread: Some(thread), process };
        let xstate = match self.mode {
            Mode::Waiting(_) => self.xstate_free()?,
            Mode::Traced => trace::get_xstate(self.inner.tid).ok()?,
        };
        let from = From::Resting(self.memory.clone(), called, xstate);
        Some(Box::new(TrapSeed { inner: self.inner.resting_seed(tid, pinned), arena: self.arena.clone(), from }))
    }

    /// Goes on in the stub thread that was called up.
    pub(super) fn get_up(mut self, mut called: Called, xstate: Vec<u8>) -> TrapThread {
        let Some(Resting { context, .. }) = called.thread.take() else { return self };
        context.begin();
        context.set_called();
        self.context = Some(Box::new(context));
        self.ready = true;
        self.mode = Mode::Waiting(Stop::Call);
        // No answer to a call: it gets all registers.
        self.seen = Regs { rip: 0, orig_rax: 0, ..self.inner.regs };
        self.pending = Some(xstate);
        self.set_waker();
        self
    }

    /// The container thread has ended: its stub thread rests, if there is a bed.
    pub(super) fn lie_down(&mut self) -> bool {
        let process = self.inner.space.process.clone();
        let Some(contexts) = kept(&process).filter(|contexts| self.retired && contexts.resting.has_room()) else {
            return false;
        };
        if !placement::is_reusable() || !self.is_at_rest() {
            return false;
        }
        let Some(context) = self.context.take() else { return false };
        self.take_answers_back(&context);
        process.has_resting.store(true, Ordering::SeqCst);
        contexts.resting.put(Resting { context: *context, tid: self.inner.tid, pinned: self.inner.place.pinned() });
        self.inner.let_go();
        true
    }

    /// Whether its stub waits without a tracer. A traced one is sent there.
    fn is_at_rest(&mut self) -> bool {
        if let (Mode::Waiting(_), Some(context)) = (&self.mode, &self.context) {
            space::nobody_waits();
            let waits = matches!(context.state().load(Ordering::Acquire), state::TRAP | state::TRAP_ASLEEP);
            return waits && !context.halted.get();
        }
        if !matches!(self.mode, Mode::Traced) || self.make_context().is_err() {
            return false;
        }
        let Some(context) = &self.context else { return false };
        context.begin();
        context.set_called();
        context.set_patience(0);
        context.state().store(state::TRAP, Ordering::SeqCst);
        let regs = Regs {
            rip: code::rest(),
            rbx: context.address(),
            rsp: context.address() + context::SIZE,
            gs_base: context.address(),
            fs_base: 0,
            eflags: 0x202,
            orig_rax: u64::MAX,
            ..self.inner.regs
        };
        trace::set_regs(self.inner.tid, &regs).and_then(|()| trace::detach(self.inner.tid)).is_ok()
    }
}
