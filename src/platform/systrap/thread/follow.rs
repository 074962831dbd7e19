//! A free thread that is stopped where it may not stay: in the stub's code.

use std::sync::atomic::Ordering;

use super::{Mode, TRAP_FLAG, TrapThread};
use crate::errno::Result;
use crate::platform::ptrace::thread::{IDLE, KICKED};
use crate::platform::ptrace::trace;
use crate::platform::systrap::context::{self, Context, Stop, state};
use crate::platform::systrap::{code, space};
use crate::platform::{AddressSpace, Event, Regs, UserThread};

/// How many instructions a thread is followed through the stub's code when it is stopped there.
const STEPS: usize = 400;

/// A stopped thread goes one instruction further in our code, but for what raises a fault, and for host calls: waiting, with
/// nothing that anybody waits for, giving the CPU away, which can be done without, and returning from signals. `regs` are its own,
/// and are not kept up; `signal`, if not 0, it gets first.
fn step_inside(tid: i32, regs: &mut Regs, signal: i32) -> Result<Step> {
    const EINTR: u64 = -(libc::EINTR as i64) as u64;
    let waits = |rip: u64| code::futexes().contains(&rip) || rip == code::yielding();
    if regs.orig_rax as i64 >= 0 || waits(regs.rip + 2) {
        // The call was interrupted, or is about to be made: not again, as it could take for ever.
        let rip = if waits(regs.rip + 2) { regs.rip + 2 } else { regs.rip };
        *regs = Regs { rip, rax: EINTR, orig_rax: u64::MAX, ..*regs };
        return trace::set_regs(tid, regs).map(|()| Step::Further);
    }
    if regs.rip == code::popping() && signal == 0 {
        // The host takes the trap flag for the program's own from the step behind a `popf` on.
        let flags = trace::peek(tid, regs.rsp)?;
        *regs = Regs { rip: regs.rip + 1, rsp: regs.rsp.wrapping_add(8), eflags: flags, orig_rax: u64::MAX, ..*regs };
        return trace::set_regs(tid, regs).map(|()| Step::Further);
    }
    if regs.rip + 2 == code::sigreturn() && signal == 0 {
        return Ok(Step::Returning);
    }
    Ok(trace::step(tid, signal)?.map_or(Step::Further, Step::Raised))
}

/// What a step came to.
enum Step {
    Further,
    /// It has raised a fault, whose signal it has not got yet.
    Raised(i32),
    /// It is about to return from a signal.
    Returning,
}

impl TrapThread {
    /// Stops a free stub wherever it is, and traces it from then on.
    pub(super) fn stop_running(&mut self) -> Event {
        space::nobody_waits();
        self.inner.place.join();
        let kicked = self.inner.kicker.state.swap(IDLE, Ordering::SeqCst) == KICKED;
        self.mode = Mode::Traced;
        self.quiet = 0;
        let Ok(pending) = self.halt() else { return Event::Lost };
        let event = match pending {
            Some(signal) => self.caught(signal, true),
            None if trace::has_raised(self.inner.tid) => self.catch(),
            None => self.follow_out(0),
        };
        self.inner.dirty = true;
        let event = event.unwrap_or(Event::Interrupted);
        if kicked && !matches!(event, Event::Interrupted) {
            // For the next run.
            self.inner.kicker.state.store(KICKED, Ordering::SeqCst);
        }
        event
    }

    /// It has raised a signal, by a call above all. Not to take that now would be to lose it: the thread's registers may be
    /// others by the time it is delivered, or the stub in the middle of a call that the sentry has it make.
    fn catch(&mut self) -> Option<Event> {
        if trace::resume(libc::PTRACE_CONT, self.inner.tid).is_err() {
            return Some(Event::Lost);
        }
        match trace::wait(self.inner.tid) {
            trace::Stop::Signal(signal) => self.caught(signal, false),
            trace::Stop::Gone => Some(Event::Lost),
            trace::Stop::Event | trace::Stop::Syscall => self.follow_out(0),
        }
    }

    /// It was about to get a signal. `asked`: the stop that was asked for comes next, before any instruction.
    fn caught(&mut self, signal: i32, asked: bool) -> Option<Event> {
        if trace::get_regs(self.inner.tid, &mut self.inner.regs).is_err() {
            return Some(Event::Lost);
        }
        if self.is_the_stubs() && self.inner.regs.rip != code::slow() {
            // A fault of the stub's own copies, which its handler knows what to do about.
            return self.follow_out(signal);
        }
        let event = self.inner.stopped_by_signal(signal);
        if asked && trace::resume(libc::PTRACE_CONT, self.inner.tid).is_ok() {
            trace::wait(self.inner.tid);
        }
        self.outside();
        match event {
            Event::Fault(info) => self.signalled(info.si_signo, &info),
            event => Some(event),
        }
    }

    /// Where is it? In the stub's code it is followed until it says what it wants or is out of there. `signal`: what it is to
    /// get first.
    pub(super) fn follow_out(&mut self, mut signal: i32) -> Option<Event> {
        for _ in 0..STEPS {
            if trace::get_regs(self.inner.tid, &mut self.inner.regs).is_err() {
                return Some(Event::Lost);
            }
            let context = self.context.as_ref()?;
            if matches!(context.state().load(Ordering::Acquire), state::TRAP | state::TRAP_ASLEEP) {
                return self.capture_traced();
            }
            if !self.is_inside() || self.is_back_at_the_call() {
                break;
            }
            let is_the_stubs = self.is_the_stubs();
            if signal == 0 && self.copies_by_hand() {
                continue;
            }
            match step_inside(self.inner.tid, &mut self.inner.regs, signal) {
                Ok(Step::Further) => signal = 0,
                // Its handler has it. A fault in a slot, whose stack is gone, comes again at the next run.
                Ok(Step::Raised(raised)) if is_the_stubs => signal = raised,
                Ok(Step::Returning) if self.is_returning() => return self.return_traced(),
                Ok(Step::Returning) if self.return_inside() => signal = 0,
                Ok(Step::Raised(_) | Step::Returning) => break,
                Err(_) => return Some(Event::Lost),
            }
        }
        self.inner.regs.orig_rax = u64::MAX;
        self.outside();
        Some(Event::Interrupted)
    }

    /// A copy, each byte of which would be a step: what a call brings is done without, and what it takes back is stored by the
    /// sentry. Or a look at a clock, which begins anew when the host changes what is read, and that may be often for one who goes
    /// in steps: the sentry is asked instead. Whether the thread is at one.
    fn copies_by_hand(&mut self) -> bool {
        let [bring, brought] = code::bringing();
        let regs = self.inner.regs;
        let next = if regs.rip == bring {
            Regs { rip: brought, ..regs }
        } else if regs.rip == code::storing() {
            self.store_piece(regs.rdi, regs.rsi, regs.rcx);
            Regs { rip: regs.rip + 2, rcx: 0, ..regs }
        } else if let Some(context) = self.context.as_ref().filter(|_| self.is_in_the_vdso()) {
            Regs { rip: brought, rbx: context.address(), ..regs }
        } else {
            return false;
        };
        self.inner.regs = Regs { orig_rax: u64::MAX, ..next };
        trace::set_regs(self.inner.tid, &self.inner.regs).is_ok()
    }

    fn store_piece(&self, target: u64, source: u64, len: u64) {
        let Some(context) = &self.context else { return };
        let offset = source.wrapping_sub(context.address() + context::TAKEN);
        if offset.saturating_add(len) > context::TAKEN_LEN as u64 {
            return;
        }
        let mut bytes = vec![0; len as usize];
        context.read_taken(offset as usize, &mut bytes);
        // The memory may be gone by now: then nobody sees it.
        let _ = AddressSpace::write(&*self.inner.space, target, &bytes);
    }

    /// Whether the thread is about to return from the signal that it was last answered for.
    fn is_returning(&self) -> bool {
        let frame = self.context.as_ref().and_then(|context| context.load_signal());
        self.inner.regs.rip + 2 == code::sigreturn()
            && frame.is_some_and(|frame| frame.address() == self.inner.regs.rsp)
    }

    /// It returns, by the sentry's hand, from a fault of the stub's own copies.
    fn return_inside(&mut self) -> bool {
        let Some(context) = &self.context else { return false };
        let Some(frame) = context.nested_frame(self.inner.regs.rsp) else { return false };
        let (fs_base, gs_base) = (self.inner.regs.fs_base, self.inner.regs.gs_base);
        let mut regs = self.inner.regs;
        frame.load(&mut regs);
        if !code::range().contains(&regs.rip) {
            return false;
        }
        let Ok(mut image) = trace::get_xstate(self.inner.tid) else { return false };
        frame.load_xstate(&mut image);
        let regs = Regs { fs_base, gs_base, orig_rax: u64::MAX, ..regs };
        trace::set_xstate(self.inner.tid, &image).is_ok() && trace::set_regs(self.inner.tid, &regs).is_ok()
    }

    /// It returns from there by the sentry's hand. The host's way would block signals if the container has written to the frame.
    fn return_traced(&mut self) -> Option<Event> {
        self.context.as_ref()?.load_signal()?.load(&mut self.inner.regs);
        if self.restore_xstate().is_err() {
            return Some(Event::Lost);
        }
        self.outside();
        Some(Event::Interrupted)
    }

    /// It had posted something: that is what it stopped for.
    fn capture_traced(&mut self) -> Option<Event> {
        let stop = self.context.as_ref()?.stop();
        // While a tracer steps, what `pushf` stores says so: the true flag is what the tracer is told.
        let trapping = self.inner.regs.eflags & TRAP_FLAG;
        self.inner.regs.orig_rax = u64::MAX;
        match stop {
            Stop::Call => {
                let regs = &mut self.inner.regs;
                self.context.as_ref()?.load_call(regs);
                regs.eflags = regs.eflags & !TRAP_FLAG | trapping;
                regs.r11 = regs.eflags;
                self.outside();
                Some(Event::Syscall)
            }
            Stop::Signal => {
                let (signal, info) = {
                    let frame = self.context.as_ref()?.load_signal()?;
                    frame.load(&mut self.inner.regs);
                    (frame.signal, frame.info())
                };
                self.inner.regs.eflags &= !TRAP_FLAG;
                if self.restore_xstate().is_err() {
                    return Some(Event::Lost);
                }
                self.outside();
                self.signalled(signal, &info)
            }
        }
    }

    /// The thread was stopped while it was to compare and exchange: it must not do that twice. Whether it has done it.
    pub(super) fn exchanges_traced(&self, context: &Context) -> bool {
        let mut regs = self.inner.regs;
        let tid = self.inner.tid;
        for _ in 0..STEPS {
            if context.state().load(Ordering::Acquire) != state::EXCHANGE {
                return true;
            }
            let stepped = trace::get_regs(tid, &mut regs).is_ok()
                && code::range().contains(&regs.rip)
                && matches!(step_inside(tid, &mut regs, 0), Ok(Step::Further));
            if !stepped {
                break;
            }
        }
        false
    }

    /// One stretch with a tracer. `None`: nothing that concerns the sentry.
    pub(super) fn run_traced(&mut self) -> Option<Event> {
        let outside = self.inner.regs.rip;
        let inside = self.memory.patches.lock().seen_from_inside(outside);
        if inside != outside {
            self.inner.regs.rip = inside;
            self.inner.dirty = true;
        }
        match self.inner.run() {
            // The stub's own: it was stopped on its way to say something, and has said it now.
            Event::Syscall if code::range().contains(&self.inner.regs.rip) => Some(self.posted_traced()),
            Event::Syscall => {
                self.quiet = self.quiet.saturating_add(1);
                self.note_site();
                Some(Event::Syscall)
            }
            Event::Fault(info) if info.si_signo == libc::SIGTRAP => {
                let event = self.signalled(libc::SIGTRAP, &info);
                self.quiet = self.quiet.saturating_add(u32::from(matches!(event, Some(Event::Syscall))));
                event
            }
            // It has not run at all: the stub's registers are others than these.
            Event::Interrupted if self.inner.dirty => {
                self.inner.regs.rip = outside;
                Some(Event::Interrupted)
            }
            Event::Interrupted => Some(self.out_of_the_slot()),
            event => Some(event),
        }
    }

    /// A traced stub has come to a call of its own code.
    fn posted_traced(&mut self) -> Event {
        let state = self.context.as_ref().map(|context| context.state().load(Ordering::Acquire));
        let event = match state {
            Some(state::TRAP | state::TRAP_ASLEEP) => self.capture_traced(),
            // The container's, whatever it means by that.
            _ => return Event::Syscall,
        };
        self.inner.dirty = true;
        event.unwrap_or(Event::Interrupted)
    }

    /// A thread without a context that has come to the trap which makes its call is sent back to where it calls: all that it has
    /// lost since is what the call would take. Whether it was there.
    fn is_back_at_the_call(&mut self) -> bool {
        let regs = &mut self.inner.regs;
        let is_there = regs.rip == code::slow() - 1;
        // One that steps itself would come here again for ever: it is about to make its call.
        if is_there && regs.eflags & TRAP_FLAG == 0 {
            // A program that has jumped there traps.
            regs.rip = self.memory.patches.lock().call_before(regs.rcx).unwrap_or(regs.rip);
        }
        is_there
    }

    /// Stopped in a slot or in the stub's code, a thread is followed out of there.
    pub(super) fn out_of_the_slot(&mut self) -> Event {
        for _ in 0..STEPS {
            if !self.is_inside() {
                break;
            }
            self.inner.dirty = true;
            if self.is_back_at_the_call() {
                break;
            }
            let stepped = step_inside(self.inner.tid, &mut self.inner.regs, 0);
            if trace::get_regs(self.inner.tid, &mut self.inner.regs).is_err() {
                return Event::Lost;
            }
            if !matches!(stepped, Ok(Step::Further)) {
                break;
            }
        }
        self.inner.regs.orig_rax = u64::MAX;
        Event::Interrupted
    }
}
