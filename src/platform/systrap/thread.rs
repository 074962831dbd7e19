//! A user thread that is traced or free: see the module above.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::arena::Arena;
use super::code;
use super::context::{self, Context, Stop, state};
use super::patch::{Patches, Poke, ROOM};
use super::seat::{Looked, Seat};
use super::space::{self, Contexts, TrapSpace};
use crate::errno::{Errno, Result};
use crate::platform::placement::Scheduling;
use crate::platform::ptrace::space::StubProcess;
use crate::platform::ptrace::stub::STUB;
use crate::platform::ptrace::thread::{FREE, IDLE, KICKED, StubSeed, StubThread, from_kernel};
use crate::platform::ptrace::trace;
use crate::platform::{
    AddressSpace, Backing, Event, Interrupter, MapRequest, Regs, Seed, SeedThread, SigInfo, Title, UserThread,
};

/// Plain calls in a row after which a thread is set free: it costs about what four ptrace stops do.
const QUIET: u32 = 8;

/// A thread that is called back soon is set free later.
const MOST_QUIET: u32 = 512;

/// Calls of one site after which it is rewritten.
const HITS: u32 = 3;

/// Calls after which that is tried again: its memory may be another by then.
const AGAIN: u32 = 256;

/// How many sites are counted at a time.
const SITES: usize = 512;

/// How many instructions a thread is followed through the stub's code when it is stopped there.
const STEPS: usize = 400;

/// The processor traps after each instruction.
const TRAP_FLAG: u64 = 0x100;

/// How many rooms for slots one memory has.
const ROOMS: u32 = 8;

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
    /// A copy of its memory, with the sites rewritten in it.
    Copy(Box<Patches>),
    /// Its memory.
    Shared(Arc<TrapSpace>),
}

impl TrapSeed {
    /// A fresh process's.
    pub fn first(inner: StubSeed, arena: Arc<Arena>) -> TrapSeed {
        TrapSeed { inner, arena, from: From::Nothing }
    }
}

impl SeedThread for TrapSeed {
    fn attach(self: Box<Self>) -> Result<Box<dyn UserThread>> {
        let inner = self.inner.attach_thread()?;
        let memory = match self.from {
            From::Nothing => TrapSpace::new(inner.space.clone(), Patches::default()),
            From::Copy(patches) => TrapSpace::new(inner.space.clone(), *patches),
            From::Shared(memory) => memory,
        };
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
    answers: Vec<(usize, u32)>,
}

fn futex(word: &AtomicU32, op: i32, value: u32, timeout: Option<Duration>) {
    let time = timeout
        .map(|timeout| libc::timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word is mapped; the time, if any, lives until the call returns.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, value, time) };
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

/// A stopped thread goes one instruction further in our code, but for what raises a fault, and for host calls that only the
/// container can have led it to: waiting, with nothing that anybody waits for, and returning from signals. `regs` are its own,
/// and are not kept up; `signal`, if not 0, it gets first.
fn step_inside(tid: i32, regs: &mut Regs, signal: i32) -> Result<Step> {
    const EINTR: u64 = -(libc::EINTR as i64) as u64;
    let waits = |rip: u64| code::futexes().contains(&rip);
    if regs.orig_rax as i64 >= 0 || waits(regs.rip + 2) {
        // The call was interrupted, or is about to be made: not again, as it could take for ever.
        let rip = if waits(regs.rip + 2) { regs.rip + 2 } else { regs.rip };
        *regs = Regs { rip, rax: EINTR, orig_rax: u64::MAX, ..*regs };
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

impl Poke for StubThread {
    fn poke(&mut self, addr: u64, bytes: [u8; 8]) -> Result<()> {
        trace::poke(self.tid, addr, bytes)
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
        let stack: [u64; 3] = [context.address() + context::STACK, 0, context::SIZE - context::STACK];
        let bytes: Vec<u8> = stack.iter().flat_map(|word| word.to_ne_bytes()).collect();
        context.write_buffer(&bytes);
        let place = context.buffer_address();
        self.inner.call(libc::SYS_sigaltstack, [place, 0, 0, 0, 0, 0])?;
        self.set_waker();
        self.fill_answers();
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
        self.seat.settle(&mut self.inner.place, false);
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
        let Some(context) = &self.context else { return Some(Event::Lost) };
        let slept = context.state().load(Ordering::Acquire) == state::TRAP_ASLEEP;
        self.seat.settle(&mut self.inner.place, slept);
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
        let same_bases = now.fs_base == seen.fs_base && now.gs_base == seen.gs_base && now.cs == seen.cs;
        if !same_bases {
            return false;
        }
        match stop {
            Stop::Call => {
                let same = Regs { rax: seen.rax, orig_rax: seen.orig_rax, ..*now };
                context.set_result(now.rax);
                if self.resume != seen.rip {
                    // In a slot, which may be gone by now.
                    context.set_resume(self.memory.patches.lock().seen_from_inside(seen.rip));
                }
                is_same(&same, seen)
            }
            Stop::Signal => {
                let rip = self.memory.patches.lock().seen_from_inside(now.rip);
                let Some(frame) = context.load_signal() else { return false };
                frame.store(&Regs { rip, ..*now });
                true
            }
        }
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
                    futex(word, libc::FUTEX_WAIT, state::RUN_ASLEEP, Some(ALIVE));
                    let still = word.load(Ordering::Acquire) == state::RUN_ASLEEP;
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

    /// The registers as the container sees them.
    fn outside(&mut self) {
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

    fn capture_signal(&mut self) -> Option<Event> {
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
    fn signalled(&mut self, signal: i32, info: &SigInfo) -> Option<Event> {
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
            libc::SIGTRAP if self.is_inside(self.inner.regs.rip) => self.stepped_inside(),
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

    /// Whether `rip` is in a slot or in the stub's code, where the container does not know that it is.
    fn is_inside(&self, rip: u64) -> bool {
        code::range().contains(&rip) || self.memory.patches.lock().is_slot(rip)
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
    fn called_without_context(&mut self) {
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
    fn note_site(&mut self) {
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
        if stop == Stop::Signal {
            self.restore_xstate()?;
        }
        Ok(())
    }

    /// Stops the free stub, unless that has been done.
    fn halt(&self) -> Result<Option<i32>> {
        match &self.context {
            Some(context) if context.halted.take() => Ok(None),
            _ => trace::halt(self.inner.tid),
        }
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

    /// Stops a free stub wherever it is, and traces it from then on.
    fn stop_running(&mut self) -> Event {
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
        if code::range().contains(&self.inner.regs.rip) && self.inner.regs.rip != code::slow() {
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
    fn follow_out(&mut self, mut signal: i32) -> Option<Event> {
        for _ in 0..STEPS {
            if trace::get_regs(self.inner.tid, &mut self.inner.regs).is_err() {
                return Some(Event::Lost);
            }
            let context = self.context.as_ref()?;
            if matches!(context.state().load(Ordering::Acquire), state::TRAP | state::TRAP_ASLEEP) {
                return self.capture_traced();
            }
            let rip = self.inner.regs.rip;
            // The trap of a thread without a context is the next run's.
            if !self.is_inside(rip) || rip == code::slow() - 1 {
                break;
            }
            if signal == 0 && self.copies_by_hand() {
                continue;
            }
            match step_inside(self.inner.tid, &mut self.inner.regs, signal) {
                Ok(Step::Further) => signal = 0,
                // Its handler has it; in a slot there is nothing that could fault.
                Ok(Step::Raised(raised)) if code::range().contains(&rip) => signal = raised,
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
    /// sentry. Whether the thread is at one.
    fn copies_by_hand(&mut self) -> bool {
        let [bring, brought] = code::bringing();
        let regs = self.inner.regs;
        let next = if regs.rip == bring {
            Regs { rip: brought, ..regs }
        } else if regs.rip == code::storing() {
            self.store_piece(regs.rdi, regs.rsi, regs.rcx);
            Regs { rip: regs.rip + 2, rcx: 0, ..regs }
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

    /// One stretch with a tracer. `None`: nothing that concerns the sentry.
    fn run_traced(&mut self) -> Option<Event> {
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

    /// Stopped in a slot or in the stub's code, a thread is followed out of there.
    fn out_of_the_slot(&mut self) -> Event {
        for _ in 0..STEPS {
            let rip = self.inner.regs.rip;
            if !self.is_inside(rip) {
                break;
            }
            self.inner.dirty = true;
            if rip == code::slow() - 1 {
                // The trap itself: the next run has it.
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

    /// The thread was stopped while it was to compare and exchange: it must not do that twice. Whether it has done it.
    fn exchanges_traced(&self, context: &Context) -> bool {
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

    /// The container is about to change what is mapped in `range`.
    fn change(&mut self, range: Range<u64>, gone: bool) -> Result<()> {
        self.retrace()?;
        self.quiet = 0;
        self.memory.patches.lock().leave(&mut self.inner, &range, gone);
        Ok(())
    }

    /// The context, before the thread goes to another process or ends.
    fn give_context_back(&mut self) {
        if let Some(context) = self.context.take() {
            for &(number, _) in &self.answers {
                context.set_answer(number, None);
            }
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
        self.retrace()?;
        self.inner.xstate()
    }

    fn set_xstate(&mut self, image: &[u8]) -> Result<()> {
        self.retrace()?;
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
        self.retrace()?;
        self.inner.sync(addr, len, flags)
    }

    fn fork(&mut self) -> Result<Seed> {
        self.retrace()?;
        let process = self.inner.space.process.clone();
        // No site is rewritten between the copy of the memory and that of what is known of it.
        let patches = self.memory.patches.lock();
        let inner = {
            let _no_mapping = kept(&process).map(|contexts| contexts.mapping.lock());
            self.inner.fork_seed()?
        };
        let patches = Box::new(patches.clone());
        Ok(Box::new(TrapSeed { inner, arena: self.arena.clone(), from: From::Copy(patches) }))
    }

    fn spawn_thread(&mut self) -> Result<Seed> {
        self.retrace()?;
        let inner = self.inner.thread_seed()?;
        Ok(Box::new(TrapSeed { inner, arena: self.arena.clone(), from: From::Shared(self.memory.clone()) }))
    }

    fn renew(&mut self) -> Result<()> {
        self.retrace()?;
        let before = self.inner.space.process.clone();
        let alone = before.threads.load(Ordering::SeqCst) == 1;
        if !alone || before.vdso_changed.load(Ordering::Relaxed) {
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
        if let (Mode::Waiting(_), Some(context)) = (&self.mode, &self.context)
            && context.order_exchange(addr, expected, new)
            && (space::finished(context, self.inner.tid) || self.exchanges_traced(context))
        {
            return context.exchanged().ok_or(Errno::EFAULT);
        }
        self.retrace()?;
        self.inner.compare_exchange(addr, expected, new)
    }

    fn set_answers(&mut self, answers: &[(usize, u32)]) {
        if let Some(context) = &self.context {
            for &(number, _) in &self.answers {
                context.set_answer(number, None);
            }
        }
        self.answers = answers.to_vec();
        self.fill_answers();
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
