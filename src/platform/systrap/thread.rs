//! A user thread that is traced or free: see the module above.

mod deputy;
mod events;
mod follow;
mod rest;
mod xstate;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use deputy::Deputy;

use super::arena::Arena;
use super::context::{self, Context, Stop, state};
use super::patch::{Patches, Poke, ROOM};
use super::seat::{Looked, Seat};
use super::space::{self, Contexts, TrapSpace, futex};
use crate::errno::{Errno, Result};
use crate::platform::placement::Scheduling;
use crate::platform::ptrace::space::StubProcess;
use crate::platform::ptrace::stub::{STUB, USER_RANGE};
use crate::platform::ptrace::thread::{FREE, IDLE, KICKED, StubSeed, StubThread};
use crate::platform::ptrace::trace;
use crate::platform::{
    AddressSpace, Answer, Backing, Event, Interrupter, MapRequest, Regs, Seed, SeedThread, Title, UserThread,
};

/// Plain calls in a row after which a thread is set free: it costs about what four ptrace stops do.
const QUIET: u32 = 8;

/// A thread that is called back soon is set free later.
const MOST_QUIET: u32 = 512;

/// The processor traps after each instruction.
const TRAP_FLAG: u64 = 0x100;

/// How many rooms for slots one memory has.
const ROOMS: u32 = 8;

/// How often a sleeping sentry thread looks for another CPU when its stub shares one.
const CROWDED: Duration = Duration::from_millis(1);

/// How often a sleeping sentry thread asks whether its stub is still there.
const ALIVE: Duration = Duration::from_millis(300);

/// A stub thread that waits to be attached.
pub struct TrapSeed {
    inner: StubSeed,
    arena: Arc<Arena>,
    from: From,
}

/// What a new thread has of its parent's.
enum From {
    /// Nothing.
    Nothing,
    /// A copy of its memory, with the sites rewritten in it, and the extended state if its deputy has made the thread.
    Copy(Box<Patches>, Option<Vec<u8>>),
    /// Its memory, and that state.
    Shared(Arc<TrapSpace>, Option<Vec<u8>>),
    /// Its memory, and a stub thread that rests, with the extended state that it is to begin with.
    Resting(Arc<TrapSpace>, rest::Called, Vec<u8>),
}

impl TrapSeed {
    /// A fresh process's.
    pub fn first(inner: StubSeed, arena: Arc<Arena>) -> TrapSeed {
        TrapSeed { inner, arena, from: From::Nothing }
    }
}

impl SeedThread for TrapSeed {
    fn attach(self: Box<Self>) -> Result<Box<dyn UserThread>> {
        if let From::Resting(memory, called, xstate) = self.from {
            let inner = self.inner.attach_untraced()?;
            return Ok(Box::new(TrapThread::new(inner, memory, self.arena).get_up(called, xstate)));
        }
        let inner = self.inner.attach_thread()?;
        let (memory, xstate) = match self.from {
            From::Nothing => (TrapSpace::new(inner.space.clone(), Patches::default()), None),
            From::Copy(patches, xstate) => (TrapSpace::new(inner.space.clone(), *patches), xstate),
            From::Shared(memory, xstate) => (memory, xstate),
            From::Resting(memory, ..) => (memory, None),
        };
        if let Some(image) = xstate {
            // One that the container has made nonsense of stays as it is.
            let _nonsense = trace::set_xstate(inner.tid, &image);
        }
        Ok(Box::new(TrapThread::new(inner, memory, self.arena)))
    }
}

enum Mode {
    Traced,
    /// Without a tracer; the stub waits for an answer, having stopped for this.
    Waiting(Stop),
}

/// One container thread.
struct TrapThread {
    inner: StubThread,
    arena: Arc<Arena>,
    memory: Arc<TrapSpace>,
    /// The same, as the trait hands it out.
    shared: Arc<dyn AddressSpace>,
    context: Option<Box<Context>>,
    /// Whether the context is as this program may have it, and the stub's signal stack is in it.
    ready: bool,
    mode: Mode,
    /// The registers as captured: what differs has been changed by the sentry.
    seen: Regs,
    /// Where the stub was to go on after a call through a rewritten site, which is not always where the container is.
    resume: u64,
    /// Plain calls since the last thing that needed the tracer.
    quiet: u32,
    /// How many there must be.
    enough: u32,
    /// Calls since it was last set free.
    stint: u32,
    seat: Seat,
    /// Sites that have not been rewritten, and how often they were met.
    hits: HashMap<u64, u32>,
    wish: Option<Range<u64>>,
    rooms: u32,
    answers: Vec<(usize, Answer)>,
    /// Extended state to go on with, when it has stopped for a call.
    pending: Option<Vec<u8>>,
    deputy: Option<Deputy>,
    /// Changes of its memory, towards a deputy.
    changes: u32,
    /// Whether its process goes on without it.
    retired: bool,
}

/// Whether a thread of the process `pid`, which is not reaped, has ended: it has no memory any more. (That the process can be
/// reaped says it later: not before the tracers of its other threads, which may be busy, have seen them end.)
fn has_ended(pid: i32, tid: i32) -> bool {
    let mut byte = 0u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: STUB as *mut _, iov_len: 1 };
    // SAFETY: no pointers; one byte that is ours, and one of another process.
    unsafe {
        libc::syscall(libc::SYS_tgkill, pid, tid, 0) != 0
            || libc::process_vm_readv(tid, &local, 1, &remote, 1, 0) < 0 && Errno::last() == Errno::ESRCH
    }
}

impl Poke for StubThread {
    fn poke(&mut self, addr: u64, bytes: [u8; 8]) -> Result<()> {
        trace::poke(self.caller(), addr, bytes)
    }

    fn peek(&mut self, addr: u64, bytes: &mut [u8]) -> usize {
        AddressSpace::read(&*self.space, addr, bytes).unwrap_or(0)
    }

    fn is_shared(&self) -> bool {
        self.space.process.threads.load(Ordering::SeqCst) > 1
    }
}

impl TrapThread {
    fn new(inner: StubThread, memory: Arc<TrapSpace>, arena: Arc<Arena>) -> TrapThread {
        TrapThread {
            seen: inner.regs,
            resume: 0,
            inner,
            arena,
            shared: memory.clone(),
            memory,
            context: None,
            ready: false,
            mode: Mode::Traced,
            quiet: 0,
            enough: QUIET,
            stint: 0,
            seat: Seat::new(),
            hits: HashMap::new(),
            wish: None,
            rooms: 0,
            answers: Vec::new(),
            pending: None,
            deputy: None,
            changes: 0,
            retired: false,
        }
    }

    /// A context, mapped in the stub and with the stub's signal stack in it. Costs four calls in the stub, once a thread, of
    /// which two are made again for each program.
    fn make_context(&mut self) -> Result<()> {
        if self.ready {
            return Ok(());
        }
        self.map_context()?;
        // Nobody else ends a stub that is not traced when the sentry is gone.
        let death = [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0, 0];
        self.inner.call(libc::SYS_prctl, death)?;
        let Some(context) = &self.context else { return Err(Errno::EINVAL) };
        context.clear();
        context.set_components(xstate::components(self.inner.tid));
        let stack: [u64; 3] = [context.address() + context::STACK, 0, context::SIZE - context::STACK];
        let bytes: Vec<u8> = stack.iter().flat_map(|word| word.to_ne_bytes()).collect();
        context.write_buffer(&bytes);
        let place = context.buffer_address();
        self.inner.call(libc::SYS_sigaltstack, [place, 0, 0, 0, 0, 0])?;
        self.set_waker();
        self.fill_answers();
        if let (Some(contexts), Some(context)) = (kept(&self.inner.space.process), &self.context) {
            contexts.tell_clock(context, &self.inner.space.process, self.inner.space.vdso.1);
        }
        self.ready = true;
        Ok(())
    }

    fn map_context(&mut self) -> Result<()> {
        let process = self.inner.space.process.clone();
        let contexts = kept(&process).ok_or(Errno::EINVAL)?;
        let context = match self.context.take() {
            Some(context) => context,
            None => Box::new(contexts.take(&self.arena)?),
        };
        let (at, offset, fd, mapped) = (context.address(), context.offset(), self.arena.fd(), context.mapped);
        let context = self.context.insert(context);
        if mapped {
            return Ok(());
        }
        let access = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
        let _no_fork = contexts.mapping.lock();
        self.inner.call(libc::SYS_mmap, [at, context::SIZE, access, flags, fd as u64, offset])?;
        // A child must not have its parent's.
        self.inner.call(libc::SYS_madvise, [at, context::SIZE, libc::MADV_DONTFORK as u64, 0, 0, 0])?;
        context.mapped = true;
        Ok(())
    }

    fn set_waker(&self) {
        let Some(context) = &self.context else { return };
        let (arena, address) = (self.arena.clone(), context.state().as_ptr() as usize);
        let wake = move || {
            // The arena keeps the word mapped, whosever it is by now.
            let _mapped = &arena;
            // SAFETY: aligned, mapped, only accessed atomically.
            let word = unsafe { &*(address as *const AtomicU32) };
            let asleep = word.compare_exchange(state::RUN_ASLEEP, state::RUN, Ordering::SeqCst, Ordering::SeqCst);
            if asleep.is_ok() {
                futex(word, libc::FUTEX_WAKE, 1, None);
            }
        };
        let _first = self.inner.kicker.waker.set(Box::new(wake));
    }

    fn fill_answers(&self) {
        if let Some(context) = &self.context {
            for &(number, answer) in &self.answers {
                context.set_answer(number, Some(answer));
            }
        }
    }

    fn take_answers_back(&self, context: &Context) {
        for &(number, _) in &self.answers {
            context.set_answer(number, None);
        }
    }

    fn may_go_free(&self) -> bool {
        self.quiet >= self.enough && self.inner.kicker.state.load(Ordering::Relaxed) != KICKED
    }

    /// Lets the stub go on without a tracer. `None`: it goes on traced.
    fn go_free(&mut self) -> Option<Event> {
        if let Err(error) = self.make_context() {
            log::debug!("a thread stays traced: {error}");
            self.quiet = 0;
            self.enough = MOST_QUIET;
            return None;
        }
        let Some(context) = &self.context else { return None };
        let base = if self.inner.regs.gs_base == 0 { context.address() } else { self.inner.regs.gs_base };
        let rip = self.memory.patches.lock().seen_from_inside(self.inner.regs.rip);
        let regs = Regs { gs_base: base, rip, orig_rax: u64::MAX, ..self.inner.regs };
        self.inner.dirty = true;
        self.stint = 0;
        context.begin();
        context.set_patience(0);
        context.state().store(state::RUN_ASLEEP, Ordering::SeqCst);
        if trace::set_regs(self.inner.tid, &regs).is_err() {
            return Some(Event::Lost);
        }
        if !self.begin_free() {
            return Some(Event::Interrupted);
        }
        self.seat.settle(&mut self.inner.place, false, false);
        if trace::detach(self.inner.tid).is_err() {
            return Some(Event::Lost);
        }
        self.await_stub(false)
    }

    /// Container code is about to run free; false when somebody wants it not to.
    fn begin_free(&self) -> bool {
        let state = &self.inner.kicker.state;
        let begun = state.compare_exchange(IDLE, FREE, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if !begun {
            state.store(IDLE, Ordering::SeqCst);
        }
        begun
    }

    /// Gives the stub its answer and waits for the next event. `None`: to be tried again, in another mode perhaps.
    fn run_free(&mut self, stop: Stop) -> Option<Event> {
        self.inner.place.consider_moving();
        if !self.answer(stop) {
            return self.retrace().err().map(|_| Event::Lost);
        }
        if !self.begin_free() {
            return Some(Event::Interrupted);
        }
        space::goes_on();
        self.pending = None;
        let Some(context) = &self.context else { return Some(Event::Lost) };
        let slept = context.state().load(Ordering::Acquire) == state::TRAP_ASLEEP;
        let together = self.deputy.as_mut().is_some_and(Deputy::was_busy);
        self.seat.settle(&mut self.inner.place, slept, together);
        let spread = self.inner.place.is_spread();
        context.set_patience(Seat::stub_patience(&self.inner.place));
        let next = if spread { state::RUN } else { state::RUN_ASLEEP };
        if context.state().swap(next, Ordering::AcqRel) == state::TRAP_ASLEEP {
            futex(context.state(), libc::FUTEX_WAKE, 1, None);
        }
        self.await_stub(spread)
    }

    /// Stores what the sentry has changed where the stub takes it from. False when that cannot be done without a tracer.
    fn answer(&mut self, stop: Stop) -> bool {
        let Some(context) = &self.context else { return false };
        if context.halted.get() || !matches!(context.state().load(Ordering::Acquire), state::TRAP | state::TRAP_ASLEEP)
        {
            return false;
        }
        let (now, seen) = (&self.inner.regs, &self.seen);
        if now.gs_base != seen.gs_base || now.cs != seen.cs {
            return false;
        }
        match stop {
            Stop::Call => self.answer_call(context, now, seen),
            Stop::Signal => {
                let rip = self.memory.patches.lock().seen_from_inside(now.rip);
                let Some(frame) = context.load_signal() else { return false };
                let other_base = now.fs_base != seen.fs_base;
                if other_base {
                    let gs_base = if now.gs_base == 0 { context.address() } else { now.gs_base };
                    context.set_bases(now.fs_base, gs_base);
                }
                context.set_full(other_base);
                frame.store(&Regs { rip, ..*now });
                is_user(now.fs_base)
            }
        }
    }

    /// The answer to a call through a rewritten site. All registers cost a dozen loads more than the result alone.
    fn answer_call(&self, context: &Context, now: &Regs, seen: &Regs) -> bool {
        /// What `popfq` restores without further effects: CF, PF, AF, ZF, SF, DF, OF; bit 1 and IF are always set, and what RF
        /// does is over when a call is.
        const FLAGS: u64 = 0xcd5 | 0x10202;
        let same = Regs { rax: seen.rax, orig_rax: seen.orig_rax, ..*now };
        if is_same(&same, seen) && self.pending.is_none() {
            context.set_full(false);
            context.set_result(now.rax);
            if self.resume != seen.rip {
                // In a slot, which may be gone by now.
                context.set_resume(self.memory.patches.lock().seen_from_inside(seen.rip));
            }
            return true;
        }
        if now.eflags & !FLAGS != 0 || now.gs_base != 0 || !is_user(now.rip) || !is_user(now.fs_base) {
            return false;
        }
        let rip = self.memory.patches.lock().seen_from_inside(now.rip);
        context.set_registers(&Regs { rip, ..*now });
        if let Some(image) = &self.pending {
            context.write_xstate(image);
        }
        context.set_restores(self.pending.is_some());
        context.set_full(true);
        true
    }

    /// Waits until the stub has something to say. `None`: nothing that concerns the sentry.
    fn await_stub(&mut self, mut looking: bool) -> Option<Event> {
        loop {
            let Some(context) = &self.context else { return Some(Event::Lost) };
            let word = context.state();
            let kicked = || self.inner.kicker.state.load(Ordering::SeqCst) == KICKED;
            if looking && self.seat.look(&self.inner.place, word, kicked) == Looked::Enough {
                looking = false;
            }
            match word.load(Ordering::Acquire) {
                state::TRAP | state::TRAP_ASLEEP => break,
                _ if kicked() => return Some(self.stop_running()),
                state::RUN if looking => continue,
                _ => {}
            }
            self.seat.gives_up(&mut self.inner.place);
            let asleep = word.compare_exchange(state::RUN, state::RUN_ASLEEP, Ordering::SeqCst, Ordering::SeqCst);
            match asleep {
                Ok(_) | Err(state::RUN_ASLEEP) if !kicked() => {
                    let crowded = self.inner.place.has_company();
                    futex(word, libc::FUTEX_WAIT, state::RUN_ASLEEP, Some(if crowded { CROWDED } else { ALIVE }));
                    let still = word.load(Ordering::Acquire) == state::RUN_ASLEEP;
                    if still && crowded {
                        // Its code computes: perhaps there is a CPU for it.
                        self.inner.place.consider_moving();
                    }
                    if still && has_ended(self.inner.space.process.pid, self.inner.tid) {
                        return Some(Event::Lost);
                    }
                }
                Ok(_) | Err(state::RUN | state::RUN_ASLEEP | state::TRAP | state::TRAP_ASLEEP) => {}
                // The container has written there: what it does is seen with a tracer only.
                Err(_) => return Some(self.stop_running()),
            }
        }
        if self.inner.kicker.state.swap(IDLE, Ordering::SeqCst) == KICKED {
            // For the next run.
            self.inner.kicker.state.store(KICKED, Ordering::SeqCst);
        }
        self.seat.called(&self.inner.place);
        self.stint = self.stint.saturating_add(1);
        self.capture()
    }

    /// Takes over what the stub has stopped for. `None`: it only has to go on.
    fn capture(&mut self) -> Option<Event> {
        let Some(context) = &self.context else { return Some(Event::Lost) };
        let stop = context.stop();
        self.mode = Mode::Waiting(stop);
        let event = match stop {
            Stop::Call => {
                context.load_call(&mut self.inner.regs);
                self.resume = self.inner.regs.rip;
                self.outside();
                Some(Event::Syscall)
            }
            Stop::Signal => self.capture_signal(),
        };
        self.seen = self.inner.regs;
        if let (Mode::Waiting(_), Some(context)) = (&self.mode, &self.context) {
            space::waits(context, &self.memory, self.inner.tid, stop == Stop::Call);
        }
        event
    }

    /// From free to traced, while the stub waits for its answer. Costs some 12 us.
    fn retrace(&mut self) -> Result<()> {
        let Mode::Waiting(stop) = self.mode else { return Ok(()) };
        space::nobody_waits();
        self.mode = Mode::Traced;
        self.inner.dirty = true;
        self.inner.place.join();
        self.quiet = 0;
        self.enough = if self.stint < self.enough { (self.enough * 2).min(MOST_QUIET) } else { QUIET };
        self.halt()?;
        match (stop, self.pending.take()) {
            (Stop::Signal, _) => self.restore_xstate(),
            (Stop::Call, Some(image)) => trace::set_xstate(self.inner.tid, &image),
            (Stop::Call, None) => Ok(()),
        }
    }

    /// Stops the free stub, unless that has been done.
    fn halt(&mut self) -> Result<Option<i32>> {
        self.inner.deputy = None;
        let Some(context) = &self.context else { return trace::halt(self.inner.tid) };
        if context.halted.take() { Ok(None) } else { trace::halt(self.inner.tid) }
    }

    /// The extended state is in the signal's frame: the handler runs with a fresh one, which the thread keeps when the
    /// container has made nonsense of the frame.
    fn restore_xstate(&mut self) -> Result<()> {
        let mut image = trace::get_xstate(self.inner.tid)?;
        if let Some(frame) = self.context.as_ref().and_then(|context| context.load_signal()) {
            frame.load_xstate(&mut image);
        }
        match trace::set_xstate(self.inner.tid, &image) {
            Err(Errno::ESRCH) => Err(Errno::ESRCH),
            _ => Ok(()),
        }
    }

    /// Has the thread traced for something that only a tracer can have done. It goes free again right after, if it has made
    /// enough calls since it last did: both ways cost some 20 us, and a call on one CPU is 2 us cheaper free, on two 5.
    fn call_back(&mut self) -> Result<()> {
        let (was_free, enough, stint) = (matches!(self.mode, Mode::Waiting(_)), self.enough, self.stint);
        self.retrace()?;
        if was_free && stint >= QUIET {
            (self.quiet, self.enough) = (enough, enough);
        } else if self.quiet < self.enough {
            self.quiet = 0;
        }
        Ok(())
    }

    /// The container is about to change what is mapped in `range`.
    fn change(&mut self, range: Range<u64>, gone: bool) -> Result<()> {
        if self.inner.touches_vdso(range.start, range.end - range.start) {
            kept(&self.inner.space.process).ok_or(Errno::EINVAL)?.forget_clock();
        }
        self.lend_a_hand()?;
        self.memory.patches.lock().leave(&mut self.inner, &range, gone);
        Ok(())
    }

    /// The context, before the thread goes to another process or ends.
    fn give_context_back(&mut self) {
        if let Some(context) = self.context.take() {
            self.take_answers_back(&context);
            if let Some(contexts) = kept(&self.inner.space.process) {
                contexts.give_back(*context);
            }
        }
    }
}

/// The contexts of a process.
fn kept(process: &StubProcess) -> Option<&Contexts> {
    process.kept.get_or_init(|| Box::new(Contexts::default())).downcast_ref()
}

/// Whether a program may jump there, or have its thread's data there.
fn is_user(addr: u64) -> bool {
    addr < USER_RANGE.end
}

/// Whether two sets of registers are equal.
fn is_same(a: &Regs, b: &Regs) -> bool {
    const WORDS: usize = size_of::<Regs>() / 8;
    // SAFETY: a structure of `WORDS` integers of 64 bits without padding.
    unsafe { *std::ptr::from_ref(a).cast::<[u64; WORDS]>() == *std::ptr::from_ref(b).cast::<[u64; WORDS]>() }
}

impl UserThread for TrapThread {
    fn space(&self) -> &Arc<dyn AddressSpace> {
        &self.shared
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.inner.interrupter()
    }

    fn follow(&mut self, scheduling: Arc<Scheduling>) {
        self.inner.follow(scheduling);
    }

    fn run(&mut self) -> Event {
        loop {
            let event = match self.mode {
                Mode::Waiting(stop) => self.run_free(stop),
                Mode::Traced if self.may_go_free() => self.go_free(),
                Mode::Traced => self.run_traced(),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    fn regs(&self) -> &Regs {
        &self.inner.regs
    }

    fn regs_mut(&mut self) -> &mut Regs {
        self.inner.regs_mut()
    }

    fn xstate(&mut self) -> Result<Vec<u8>> {
        if let Some(image) = self.xstate_free() {
            return Ok(image);
        }
        self.call_back()?;
        self.inner.xstate()
    }

    fn set_xstate(&mut self, image: &[u8]) -> Result<()> {
        if self.set_xstate_free(image) {
            return Ok(());
        }
        self.call_back()?;
        self.inner.set_xstate(image)
    }

    fn map(&mut self, request: &MapRequest) -> Result<()> {
        let range = request.addr..request.addr.saturating_add(request.len);
        self.change(range.clone(), true)?;
        self.inner.map(request)?;
        let file = matches!(request.backing, Backing::File { .. });
        let (exec, write) = (request.prot & libc::PROT_EXEC != 0, request.prot & libc::PROT_WRITE != 0);
        if file && exec && !write && !request.shared {
            self.memory.patches.lock().enter_text(range);
        }
        Ok(())
    }

    fn unmap(&mut self, addr: u64, len: u64) -> Result<()> {
        self.change(addr..addr.saturating_add(len), true)?;
        self.inner.unmap(addr, len)
    }

    fn protect(&mut self, addr: u64, len: u64, prot: i32) -> Result<()> {
        self.change(addr..addr.saturating_add(len), false)?;
        self.inner.protect(addr, len, prot)
    }

    fn remap(&mut self, old: u64, old_len: u64, new: u64, new_len: u64, flags: i32) -> Result<()> {
        self.change(old..old.saturating_add(old_len), false)?;
        self.change(new..new.saturating_add(new_len), true)?;
        self.inner.remap(old, old_len, new, new_len, flags)
    }

    fn advise(&mut self, addr: u64, len: u64, advice: i32) -> Result<()> {
        self.change(addr..addr.saturating_add(len), false)?;
        self.inner.advise(addr, len, advice)
    }

    fn sync(&mut self, addr: u64, len: u64, flags: i32) -> Result<()> {
        self.lend_a_hand()?;
        self.inner.sync(addr, len, flags)
    }

    fn fork(&mut self) -> Result<Seed> {
        let xstate = self.prepare_clone()?;
        let process = self.inner.space.process.clone();
        // No site is rewritten between the copy of the memory and that of what is known of it.
        let patches = self.memory.patches.lock();
        let inner = {
            let _no_mapping = kept(&process).map(|contexts| contexts.mapping.lock());
            self.inner.fork_seed()?
        };
        let patches = Box::new(patches.clone());
        Ok(Box::new(TrapSeed { inner, arena: self.arena.clone(), from: From::Copy(patches, xstate) }))
    }

    fn spawn_thread(&mut self) -> Result<Seed> {
        if let Some(seed) = self.call_up() {
            return Ok(seed);
        }
        let xstate = self.prepare_clone()?;
        let inner = self.inner.thread_seed()?;
        Ok(Box::new(TrapSeed { inner, arena: self.arena.clone(), from: From::Shared(self.memory.clone(), xstate) }))
    }

    fn renew(&mut self) -> Result<()> {
        self.retrace()?;
        self.dismiss(false);
        let before = self.inner.space.process.clone();
        if !self.inner.is_alone() || before.vdso_changed.load(Ordering::Relaxed) {
            self.give_context_back();
        }
        self.inner.renew()?;
        if !Arc::ptr_eq(&before, &self.inner.space.process) {
            // Only when it was given back above, or is of a process that is gone.
            self.context = None;
        }
        // The program before may have written there, and may have gone to another signal stack.
        self.ready = false;
        self.memory = TrapSpace::new(self.inner.space.clone(), Patches::default());
        self.shared = self.memory.clone();
        (self.quiet, self.enough, self.rooms, self.wish) = (0, QUIET, 0, None);
        self.hits.clear();
        Ok(())
    }

    fn entitle(&mut self, title: &Title<'_>) {
        if self.retrace().is_ok() {
            self.inner.entitle(title);
        }
    }

    fn compare_exchange(&mut self, addr: u64, expected: u32, new: u32) -> Result<u32> {
        if !self.inner.space.range.contains(&addr) {
            return Err(Errno::EFAULT);
        }
        self.memory.before_exchange(addr);
        let is_halted = || self.context.as_ref().is_some_and(|context| context.halted.get());
        let was_halted = is_halted();
        let mut done = self.ordered(|context| context.order_exchange(addr, expected, new));
        if let Some(context) = &self.context {
            // Stopped on its way.
            done |= !was_halted && is_halted() && self.exchanges_traced(context);
            if done {
                return context.exchanged().ok_or(Errno::EFAULT);
            }
        }
        self.call_back()?;
        self.inner.compare_exchange(addr, expected, new)
    }

    fn set_answers(&mut self, answers: &[(usize, Answer)]) {
        if let Some(context) = &self.context {
            self.take_answers_back(context);
        }
        self.answers = answers.to_vec();
        self.fill_answers();
    }

    fn retire(&mut self) {
        self.retired = true;
    }

    fn wants_room(&mut self) -> Option<Range<u64>> {
        self.wish.take()
    }

    fn take_room(&mut self, addr: u64) -> Result<()> {
        self.retrace()?;
        self.rooms += 1;
        let backing = Backing::Anonymous;
        let prot = libc::PROT_READ | libc::PROT_EXEC;
        self.inner.map(&MapRequest { addr, len: ROOM, prot, shared: false, flags: libc::MAP_NORESERVE, backing })?;
        self.memory.patches.lock().enter_room(addr);
        // The sites that wanted it are met again.
        self.hits.clear();
        self.quiet = self.enough;
        Ok(())
    }
}

impl Drop for TrapThread {
    fn drop(&mut self) {
        self.dismiss(self.retired);
        if self.lie_down() {
            return;
        }
        let last = self.inner.space.process.threads.load(Ordering::SeqCst) <= 1;
        if last {
            space::nobody_waits();
        } else {
            // A thread that others outlive ends by a call of its own.
            let _gone = self.retrace();
        }
        self.give_context_back();
    }
}
