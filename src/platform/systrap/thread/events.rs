//! What container code has stopped for: its calls, its faults, and what only we know of, since we have written over its code.

use std::sync::atomic::Ordering;

use super::{Mode, QUIET, ROOMS, TrapThread};
use crate::platform::ptrace::thread::from_kernel;
use crate::platform::ptrace::trace;
use crate::platform::systrap::code;
use crate::platform::systrap::context::{self, Context, state};
use crate::platform::{AddressSpace, Event, Regs, SigInfo};

/// Calls of one site after which it is rewritten.
const HITS: u32 = 3;

/// Calls after which that is tried again: its memory may be another by then.
const AGAIN: u32 = 256;

/// How many sites are counted at a time.
const SITES: usize = 512;

impl TrapThread {
    /// The registers as the container sees them.
    pub(super) fn outside(&mut self) {
        let regs = &mut self.inner.regs;
        if self.context.as_ref().is_some_and(|context| regs.gs_base == context.address()) {
            regs.gs_base = 0;
        }
        // Slots are in rooms, of which there are none as long as nothing is rewritten.
        let patches = self.memory.patches.lock();
        if !patches.is_empty() {
            let rip = patches.seen_from_outside(regs.rip);
            if rip != regs.rip {
                (regs.rip, regs.rcx) = (rip, rip);
            }
        }
    }

    pub(super) fn capture_signal(&mut self) -> Option<Event> {
        let loaded = self.context.as_ref().and_then(|context| {
            let frame = context.load_signal()?;
            frame.load(&mut self.inner.regs);
            Some((frame.signal, frame.info()))
        });
        let Some((signal, info)) = loaded else {
            // The container has written over its context. Its registers are whatever they are.
            return Some(self.stop_running());
        };
        self.outside();
        self.signalled(signal, &info)
    }

    /// What a signal means that container code has raised, the registers being those at that moment.
    pub(super) fn signalled(&mut self, signal: i32, info: &SigInfo) -> Option<Event> {
        let signal = if signal == info.si_signo { signal } else { info.si_signo };
        match signal {
            libc::SIGSYS => {
                let event = self.inner.trapped_call(info);
                if matches!(event, Event::Syscall) {
                    self.note_site();
                }
                Some(event)
            }
            libc::SIGTRAP if self.inner.regs.rip == code::slow() => {
                self.called_without_context();
                Some(Event::Syscall)
            }
            libc::SIGTRAP if self.is_ours() => None,
            libc::SIGTRAP if self.is_stale(info) => None,
            libc::SIGTRAP if self.is_inside() => self.stepped_inside(),
            libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGTRAP if from_kernel(info) => {
                Some(Event::Fault(*info))
            }
            _ => Some(Event::Interrupted),
        }
    }

    /// Whether the trap behind which the thread stopped was there for as long as the site was put back only. Then the thread
    /// is sent to what is there now.
    fn is_stale(&mut self, info: &SigInfo) -> bool {
        const SI_KERNEL: i32 = 0x80;
        let rip = self.inner.regs.rip;
        let before = |distance: u64| {
            let mut byte = [0];
            let read = AddressSpace::read(&*self.inner.space, rip.wrapping_sub(distance), &mut byte);
            read.is_ok().then_some(byte[0])
        };
        // `int3` is one byte; `int $3` is two.
        let is_trap = |byte| byte == 0xcc || byte == 3 && before(2) == Some(0xcd);
        let stale = info.si_code == SI_KERNEL && before(1).is_some_and(|byte| !is_trap(byte));
        if stale {
            self.inner.regs.rip = rip - 1;
            self.inner.dirty = true;
        }
        stale
    }

    /// Whether the thread is in a slot or in the stub's code, where the container does not know that it is.
    pub(super) fn is_inside(&self) -> bool {
        self.is_the_stubs() || self.memory.patches.lock().is_slot(self.inner.regs.rip)
    }

    /// Whether it is in the stub's code, or in the vDSO on behalf of that.
    pub(super) fn is_the_stubs(&self) -> bool {
        code::range().contains(&self.inner.regs.rip) || self.is_in_the_vdso()
    }

    /// Whether it is in the vDSO on the context's stack.
    pub(super) fn is_in_the_vdso(&self) -> bool {
        let regs = &self.inner.regs;
        let in_context = |context: &Context| regs.rsp.wrapping_sub(context.address()) <= context::SIZE;
        self.inner.space.vdso.0.contains(&regs.rip) && self.context.as_deref().is_some_and(in_context)
    }

    /// A program that lets the processor trap after each instruction has come to our code by one of its own. What it sees is
    /// the next of its own instructions, or its call.
    fn stepped_inside(&mut self) -> Option<Event> {
        if matches!(self.mode, Mode::Traced) {
            return Some(self.out_of_the_slot());
        }
        if self.retrace().is_err() {
            return Some(Event::Lost);
        }
        let context = self.context.as_ref()?;
        // It waits for no answer any more.
        context.state().store(state::RUN, Ordering::SeqCst);
        let gs_base = if self.inner.regs.gs_base == 0 { context.address() } else { self.inner.regs.gs_base };
        if trace::set_regs(self.inner.tid, &Regs { gs_base, orig_rax: u64::MAX, ..self.inner.regs }).is_err() {
            return Some(Event::Lost);
        }
        let event = self.follow_out(0);
        self.inner.dirty = true;
        event
    }

    /// A rewritten site, of a thread whose `%gs` is not its context: the slot has left in `rcx` where to go on.
    pub(super) fn called_without_context(&mut self) {
        let regs = &mut self.inner.regs;
        regs.rip = regs.rcx;
        regs.r11 = regs.eflags;
        regs.orig_rax = regs.rax & 0xffff_ffff;
        regs.rax = (-i64::from(libc::ENOSYS)) as u64;
        self.inner.dirty = true;
        self.outside();
        self.inner.regs.rcx = self.inner.regs.rip;
    }

    /// Whether the trap behind which the thread stopped is one of a rewritten site. It is sent where it belongs.
    fn is_ours(&mut self) -> bool {
        let to = self.memory.patches.lock().trapped(self.inner.regs.rip);
        if let Some(to) = to {
            self.inner.regs.rip = to;
            self.inner.dirty = true;
        }
        to.is_some()
    }

    /// Counts a call that came by a signal or a ptrace stop, and rewrites its site when it is met often.
    pub(super) fn note_site(&mut self) {
        // A program that starts maps its libraries, and is over soon perhaps: a room and a few sites would cost it 100 us.
        if matches!(self.mode, Mode::Traced) && self.quiet < QUIET / 2 {
            return;
        }
        let rip = self.inner.regs.rip;
        if self.hits.len() >= SITES && !self.hits.contains_key(&rip) {
            self.hits.clear();
        }
        let hits = self.hits.entry(rip).or_default();
        *hits = hits.wrapping_add(1);
        if *hits % AGAIN == HITS {
            self.rewrite(rip);
        }
    }

    fn rewrite(&mut self, back: u64) {
        if !self.memory.patches.lock().may_rewrite(back) {
            return;
        }
        let was_free = matches!(self.mode, Mode::Waiting(_));
        // Pokes are a tracer's.
        if self.retrace().is_err() {
            return;
        }
        if was_free {
            self.quiet = self.enough;
        }
        let mut patches = self.memory.patches.lock();
        let number = self.inner.regs.orig_rax;
        let outcome = patches.rewrite(&mut self.inner, back, number);
        self.wish = patches.take_wish().filter(|_| self.rooms < ROOMS);
        if let Err(error) = outcome {
            log::debug!("the call before {back:#x} is not rewritten: {error}");
        }
    }
}
