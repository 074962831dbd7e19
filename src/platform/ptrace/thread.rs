//! A user thread: one stub thread, traced by the sentry thread that attached it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use crate::errno::{Errno, Result};
use crate::platform::placement::{self, Place};
use crate::platform::ptrace::factory::Factory;
use crate::platform::ptrace::space::{Space, StubProcess};
use crate::platform::ptrace::stub::{CALL_ADDR, CLONE_ADDR, COMPARE_EXCHANGE_ADDR, WAIT_ADDR};
use crate::platform::ptrace::title;
use crate::platform::ptrace::trace::{self, KICK, Stop};
use crate::platform::{
    AddressSpace, Backing, Event, Interrupter, MapRequest, Regs, Seed, SeedThread, SigInfo, Title, UserThread,
};
use crate::seccomp::stub::{CLONE_PROCESS, CLONE_THREAD};

/// Not running container code.
pub const IDLE: u8 = 0;
/// Running it, traced.
const RUNNING: u8 = 1;
/// To be stopped.
pub const KICKED: u8 = 2;
/// Running it without a tracer: the waker stops it.
pub const FREE: u8 = 3;

/// Stops a stub thread. A token: an interruption that comes while the thread is not running ends its next run.
pub struct Kicker {
    /// One of the values above.
    pub state: AtomicU8,
    pid: i32,
    tid: i32,
    /// How one stops it that runs without a tracer.
    pub waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Kicker {
    fn new(state: u8, pid: i32, tid: i32) -> Arc<Kicker> {
        Arc::new(Kicker { state: AtomicU8::new(state), pid, tid, waker: OnceLock::new() })
    }
}

impl Interrupter for Kicker {
    fn interrupt(&self) {
        match self.state.swap(KICKED, Ordering::SeqCst) {
            RUNNING => {
                // SAFETY: no pointers. The thread is running container code for its tracer, so the id is its own; a signal
                // that comes late is swallowed.
                unsafe { libc::syscall(libc::SYS_tgkill, self.pid, self.tid, KICK) };
            }
            FREE => self.waker.get().into_iter().for_each(|wake| wake()),
            _ => {}
        }
    }
}

/// A stub thread that waits to be attached.
pub struct StubSeed {
    process: Option<Arc<StubProcess>>,
    tid: i32,
    regs: Regs,
    vdso: (Range<u64>, u64),
    /// The space, when it is shared with who made the seed.
    space: Option<Arc<Space>>,
    factory: Arc<Factory>,
    near: Option<usize>,
    /// The host's number of the CPU that the thread is pinned to.
    pinned: Option<usize>,
}

impl StubSeed {
    /// The first thread of `process`.
    pub fn first(process: Arc<StubProcess>, factory: Arc<Factory>) -> StubSeed {
        StubSeed {
            tid: process.pid,
            process: Some(process),
            regs: zero_regs(),
            vdso: factory.vdso(),
            space: None,
            factory,
            near: placement::here(),
            pinned: None,
        }
    }
}

/// Registers of a program that has not started.
pub fn zero_regs() -> Regs {
    // SAFETY: a structure of integers.
    unsafe { std::mem::zeroed() }
}

/// Waits until a traced thread that is ending is gone; returns at once for one that is not the caller's to wait for.
fn reap(tid: i32) {
    while trace::wait(tid) != Stop::Gone {
        let _gone = trace::resume(libc::PTRACE_CONT, tid);
    }
}

impl StubSeed {
    /// Makes the calling thread its owner: [`SeedThread::attach`].
    pub fn attach_thread(mut self) -> Result<StubThread> {
        let process = self.process.take().ok_or(Errno::ESRCH)?;
        let mut base = zero_regs();
        let traced = trace::seize(self.tid).and_then(|()| trace::get_regs(self.tid, &mut base));
        if let Err(error) = traced {
            // Killed meanwhile: see `StubThread::leave`.
            if self.tid != process.pid {
                reap(self.tid);
            }
            self.process = Some(process);
            return Err(error);
        }
        if self.regs.cs == 0 {
            self.regs = Regs { cs: base.cs, ss: base.ss, eflags: 0x202, ..self.regs };
        }
        Ok(self.into_thread(process))
    }

    /// Makes the calling thread the owner of one that runs without a tracer.
    pub fn attach_untraced(mut self) -> Result<StubThread> {
        let process = self.process.take().ok_or(Errno::ESRCH)?;
        Ok(self.into_thread(process))
    }

    fn into_thread(mut self, process: Arc<StubProcess>) -> StubThread {
        let place = Place::new(self.tid, self.near, self.pinned);
        let space = self.space.take().unwrap_or_else(|| {
            let vdso = self.vdso.clone();
            let range = self.factory.range();
            Arc::new(Space { process: process.clone(), alive: AtomicBool::new(true), vdso, range })
        });
        let kicker = Kicker::new(IDLE, process.pid, self.tid);
        StubThread {
            shared: space.clone(),
            space,
            process: Some(process),
            tid: self.tid,
            regs: Regs { rax: 0, orig_rax: u64::MAX, ..self.regs },
            dirty: true,
            kicker,
            place,
            factory: self.factory.clone(),
            deputy: None,
        }
    }
}

impl SeedThread for StubSeed {
    fn attach(self: Box<Self>) -> Result<Box<dyn UserThread>> {
        Ok(Box::new(self.attach_thread()?))
    }
}

impl Drop for StubSeed {
    fn drop(&mut self) {
        // Never attached: a thread of a process that others use stays in its loop until they end it.
        if let Some(process) = self.process.take() {
            process.threads.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// One container thread and the stub thread that it runs in, traced by the thread that owns this.
pub struct StubThread {
    /// Its memory.
    pub space: Arc<Space>,
    /// The same, as the trait hands it out.
    shared: Arc<dyn AddressSpace>,
    /// Taken when dropped.
    process: Option<Arc<StubProcess>>,
    /// The stub thread's id.
    pub tid: i32,
    /// The container's registers.
    pub regs: Regs,
    /// Whether the stub's registers are not `regs`.
    pub dirty: bool,
    /// What stops it.
    pub kicker: Arc<Kicker>,
    /// Where the pair runs.
    pub place: Place,
    /// Where it is from.
    pub factory: Arc<Factory>,
    /// Another thread of the process, traced too, that makes the calls instead of this one.
    pub deputy: Option<i32>,
}

impl StubThread {
    /// Which thread makes calls of the sentry's.
    pub fn caller(&self) -> i32 {
        self.deputy.unwrap_or(self.tid)
    }

    fn will_call(&mut self) -> i32 {
        self.dirty |= self.deputy.is_none();
        self.caller()
    }

    /// Has the stub make one system call.
    pub fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64> {
        let tid = self.will_call();
        let mut kicked = false;
        let args = self.factory.mark(number, args);
        let result = trace::syscall(tid, &self.regs, number, args, &mut kicked);
        self.note_kick(kicked);
        result
    }

    /// Has the stub make two, the second if the first succeeds.
    fn two_calls(&mut self, calls: [(i64, [u64; 5]); 2]) -> Result<u64> {
        let tid = self.will_call();
        let mut kicked = false;
        let [.., sixth] = self.factory.mark(calls[0].0, [0; 6]);
        let result = trace::two_syscalls(tid, &self.regs, calls, sixth, &mut kicked);
        self.note_kick(kicked);
        result
    }

    fn note_kick(&self, kicked: bool) {
        if kicked {
            self.kicker.state.store(KICKED, Ordering::SeqCst);
        }
    }

    fn clone_stub(&mut self, flags: u64) -> Result<i32> {
        let tid = self.will_call();
        let args = self.factory.mark(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]);
        let regs = trace::call_regs(&self.regs, CLONE_ADDR, libc::SYS_clone, args);
        let mut kicked = false;
        let pid = trace::call(tid, &regs, &mut kicked).and_then(trace::result);
        self.note_kick(kicked);
        // The host's limits show as EAGAIN, which is what clone(2) says.
        pid.map(|pid| pid as i32).map_err(|error| if error == Errno::ENOMEM { error } else { Errno::EAGAIN })
    }

    /// Notes a change of `addr..addr + len`, if that has pages of the vDSO. Whether it has.
    pub fn touches_vdso(&self, addr: u64, len: u64) -> bool {
        let pages = &self.space.vdso.0;
        let touches = addr < pages.end && pages.start < addr.saturating_add(len);
        if touches {
            self.space.process.vdso_changed.store(true, Ordering::Relaxed);
        }
        touches
    }

    /// What `int $0x80` and `sysenter` do on an x86_64 kernel without 32-bit emulation: a general protection fault at the
    /// instruction. (Where `sysenter` was the processor does not say: the code goes on where the host would have returned.)
    fn refused_entry(&mut self) -> Event {
        const SI_KERNEL: i32 = 0x80;
        const INT_0X80: [u8; 2] = [0xcd, 0x80];
        let mut code = [0; 2];
        let before = self.regs.rip.wrapping_sub(code.len() as u64);
        if self.space.read(before, &mut code) == Ok(code.len()) && code == INT_0X80 {
            self.regs.rip = before;
        }
        self.regs.rax = self.regs.orig_rax;
        self.regs.orig_rax = u64::MAX;
        self.dirty = true;
        // SAFETY: a siginfo_t of zeros is a value.
        let mut info: SigInfo = unsafe { std::mem::zeroed() };
        (info.si_signo, info.si_code) = (libc::SIGSEGV, SI_KERNEL);
        Event::Fault(info)
    }

    /// What the signal means that the stub has stopped for.
    pub fn stopped_by_signal(&mut self, signal: i32) -> Event {
        if trace::get_regs(self.tid, &mut self.regs).is_err() {
            return Event::Lost;
        }
        self.regs.orig_rax = u64::MAX;
        if signal == libc::SIGSYS {
            return self.stopped_by_filter();
        }
        if !matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGTRAP) {
            return Event::Interrupted;
        }
        match trace::get_siginfo(self.tid) {
            Ok(info) if from_kernel(&info) => Event::Fault(info),
            Ok(_) => Event::Interrupted,
            Err(_) => Event::Lost,
        }
    }
}

impl StubThread {
    /// The filter of a stub without a tracer has turned a call into a signal, which was about to be delivered.
    fn stopped_by_filter(&mut self) -> Event {
        match trace::get_siginfo(self.tid) {
            Ok(info) if from_kernel(&info) => self.trapped_call(&info),
            Ok(_) => Event::Interrupted,
            Err(_) => Event::Lost,
        }
    }

    /// A call that has become the signal `info`: the registers are those at the call.
    pub fn trapped_call(&mut self, info: &SigInfo) -> Event {
        self.regs.orig_rax = self.regs.rax;
        self.dirty = true;
        if is_foreign_call(info) {
            return self.refused_entry();
        }
        self.regs.rax = (-i64::from(libc::ENOSYS)) as u64;
        Event::Syscall
    }
}

/// Whether a `SIGSYS` is of a call through an entry for 32-bit programs.
fn is_foreign_call(info: &SigInfo) -> bool {
    // `AUDIT_ARCH_X86_64`: linux/audit.h. The structure's second half begins with the call's address, its number, this.
    const X86_64: u32 = 0xc000_003e;
    const ARCH: usize = 28;
    // SAFETY: within the structure, aligned for a u32; any value is one.
    let arch = unsafe { std::ptr::from_ref(info).cast::<u8>().add(ARCH).cast::<u32>().read() };
    arch != X86_64
}

/// Whether an instruction raised the signal, not somebody on the host.
pub fn from_kernel(info: &SigInfo) -> bool {
    info.si_code > 0
}

impl UserThread for StubThread {
    fn space(&self) -> &Arc<dyn AddressSpace> {
        &self.shared
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.kicker.clone()
    }

    fn follow(&mut self, scheduling: Arc<placement::Scheduling>) {
        self.place.follow(scheduling);
    }

    fn run(&mut self) -> Event {
        self.place.consider_moving();
        if self.kicker.state.compare_exchange(IDLE, RUNNING, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            self.kicker.state.store(IDLE, Ordering::SeqCst);
            return Event::Interrupted;
        }
        if self.dirty {
            // The host must never restart a call of its own: none was made.
            self.regs.orig_rax = u64::MAX;
            if trace::set_regs(self.tid, &self.regs).is_err() {
                return Event::Lost;
            }
        }
        self.dirty = false;
        if trace::resume(libc::PTRACE_SYSEMU, self.tid).is_err() {
            return Event::Lost;
        }
        let stop = trace::wait(self.tid);
        // A kick that was sent but has not arrived yet ends a later run, which is allowed.
        self.kicker.state.swap(IDLE, Ordering::SeqCst);
        match stop {
            Stop::Syscall => {
                if trace::get_regs(self.tid, &mut self.regs).is_err() {
                    return Event::Lost;
                }
                // The `syscall` instruction leaves the address behind it in rcx, so that this costs nothing. A program
                // that stores it there itself before another entry makes an x86_64 call, as it could anyway.
                if self.regs.rcx != self.regs.rip && trace::is_32_bit_call(self.tid) {
                    return self.refused_entry();
                }
                Event::Syscall
            }
            Stop::Signal(signal) => self.stopped_by_signal(signal),
            Stop::Event => match trace::get_regs(self.tid, &mut self.regs) {
                Ok(()) => Event::Interrupted,
                Err(_) => Event::Lost,
            },
            Stop::Gone => Event::Lost,
        }
    }

    fn regs(&self) -> &Regs {
        &self.regs
    }

    fn regs_mut(&mut self) -> &mut Regs {
        self.dirty = true;
        &mut self.regs
    }

    fn xstate(&mut self) -> Result<Vec<u8>> {
        trace::get_xstate(self.tid)
    }

    fn set_xstate(&mut self, image: &[u8]) -> Result<()> {
        trace::set_xstate(self.tid, image).map_err(|_| Errno::EINVAL)
    }

    fn map(&mut self, request: &MapRequest) -> Result<()> {
        let mut flags = request.flags | libc::MAP_FIXED;
        flags |= if request.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let (fd, offset) = match request.backing {
            Backing::Anonymous => {
                flags |= libc::MAP_ANONYMOUS;
                (-1, 0)
            }
            Backing::File { fd, offset } => (fd, offset),
        };
        self.touches_vdso(request.addr, request.len);
        let args = [request.addr, request.len, request.prot as u64, flags as u64, fd as i64 as u64, offset];
        self.call(libc::SYS_mmap, args).map(drop)
    }

    fn unmap(&mut self, addr: u64, len: u64) -> Result<()> {
        self.touches_vdso(addr, len);
        self.call(libc::SYS_munmap, [addr, len, 0, 0, 0, 0]).map(drop)
    }

    fn protect(&mut self, addr: u64, len: u64, prot: i32) -> Result<()> {
        self.touches_vdso(addr, len);
        self.call(libc::SYS_mprotect, [addr, len, prot as u64, 0, 0, 0]).map(drop)
    }

    fn remap(&mut self, old: u64, old_len: u64, new: u64, new_len: u64, flags: i32) -> Result<()> {
        self.touches_vdso(old, old_len);
        self.touches_vdso(new, new_len);
        let mut flags = flags;
        if old != new {
            flags |= libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        }
        self.call(libc::SYS_mremap, [old, old_len, new_len, flags as u64, new, 0]).map(drop)
    }

    fn advise(&mut self, addr: u64, len: u64, advice: i32) -> Result<()> {
        self.call(libc::SYS_madvise, [addr, len, advice as u64, 0, 0, 0]).map(drop)
    }

    fn sync(&mut self, addr: u64, len: u64, flags: i32) -> Result<()> {
        self.call(libc::SYS_msync, [addr, len, flags as u64, 0, 0, 0]).map(drop)
    }

    fn fork(&mut self) -> Result<Seed> {
        Ok(Box::new(self.fork_seed()?))
    }

    fn spawn_thread(&mut self) -> Result<Seed> {
        Ok(Box::new(self.thread_seed()?))
    }

    fn renew(&mut self) -> Result<()> {
        let process = self.space.process.clone();
        if self.is_alone() && !process.vdso_changed.load(Ordering::Relaxed) {
            self.space.alive.store(false, Ordering::Release);
            let vdso = self.space.vdso.0.clone();
            let unmap = |gap: Range<u64>| (libc::SYS_munmap, [gap.start, gap.end - gap.start, 0, 0, 0]);
            let range = self.factory.range();
            self.two_calls([unmap(range.start..vdso.start), unmap(vdso.end..range.end)])?;
            let vdso = self.space.vdso.clone();
            let space = Arc::new(Space { process, alive: AtomicBool::new(true), vdso, range });
            self.shared = space.clone();
            self.space = space;
        } else {
            self.move_to(self.factory.take()?)?;
        }
        let selectors = (self.regs.cs, self.regs.ss);
        self.regs = Regs { cs: selectors.0, ss: selectors.1, eflags: 0x202, orig_rax: u64::MAX, ..zero_regs() };
        self.dirty = true;
        self.reset_xstate()
    }

    fn entitle(&mut self, title: &Title<'_>) {
        if !title::is_possible() {
            return;
        }
        let entitled = title::calls(title).and_then(|(at, bytes, calls)| {
            let written = self.space.write(at, &bytes)?;
            if written < bytes.len() {
                return Err(Errno::EFAULT);
            }
            self.two_calls(calls)
        });
        if let Err(error) = entitled {
            title::failed(error);
        }
    }

    fn compare_exchange(&mut self, addr: u64, expected: u32, new: u32) -> Result<u32> {
        if !self.space.range.contains(&addr) {
            return Err(Errno::EFAULT);
        }
        self.dirty = true;
        let base = Regs { rip: COMPARE_EXCHANGE_ADDR, rdi: addr, rax: expected.into(), rdx: new.into(), ..self.regs };
        let regs = Regs { orig_rax: u64::MAX, eflags: 0x202, ..base };
        let mut kicked = false;
        let found = trace::call(self.tid, &regs, &mut kicked);
        self.note_kick(kicked);
        found.map(|found| found as u32)
    }
}

impl StubThread {
    /// [`UserThread::fork`].
    pub fn fork_seed(&mut self) -> Result<StubSeed> {
        let pid = self.clone_stub(CLONE_PROCESS)?;
        let process = StubProcess::new(pid);
        process.vdso_changed.store(self.space.process.vdso_changed.load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(StubSeed {
            process: Some(process),
            tid: pid,
            regs: self.regs,
            vdso: self.space.vdso.clone(),
            space: None,
            factory: self.factory.clone(),
            near: placement::here(),
            pinned: None,
        })
    }

    /// [`UserThread::spawn_thread`].
    pub fn thread_seed(&mut self) -> Result<StubSeed> {
        let process = self.space.process.clone();
        process.threads.fetch_add(1, Ordering::SeqCst);
        let tid = self.clone_stub(CLONE_THREAD).inspect_err(|_| {
            process.threads.fetch_sub(1, Ordering::SeqCst);
        })?;
        Ok(self.sibling(process, tid, (None, None)))
    }

    /// A thread of the same process that is there already, without a tracer, and used by nobody.
    pub fn resting_seed(&self, tid: i32, pinned: Option<usize>) -> StubSeed {
        let process = self.space.process.clone();
        process.threads.fetch_add(1, Ordering::SeqCst);
        // Whoever makes a thread often waits for it next. One that computes is moved by its sentry thread, which looks.
        self.sibling(process, tid, (placement::here(), pinned))
    }

    fn sibling(&self, process: Arc<StubProcess>, tid: i32, (near, pinned): (Option<usize>, Option<usize>)) -> StubSeed {
        StubSeed {
            process: Some(process),
            tid,
            regs: self.regs,
            vdso: self.space.vdso.clone(),
            space: Some(self.space.clone()),
            factory: self.factory.clone(),
            near,
            pinned,
        }
    }

    /// Whether its process can be used for another program: no other thread is in it.
    pub fn is_alone(&self) -> bool {
        let process = &self.space.process;
        let alone = process.threads.load(Ordering::SeqCst) == 1 && self.tid == process.pid;
        alone && !process.has_resting.load(Ordering::SeqCst)
    }

    /// Gives the stub thread up without ending it: somebody else has it from now on. The last one takes its process with it.
    pub fn let_go(&mut self) {
        self.leave_process();
    }

    /// No user thread any more: its process, and whether this was the last one, which takes the process with it.
    fn leave_process(&mut self) -> Option<(Arc<StubProcess>, bool)> {
        let process = self.process.take()?;
        let last = process.threads.fetch_sub(1, Ordering::SeqCst) == 1;
        if last {
            // Its memory may be there for a moment still.
            self.space.alive.store(false, Ordering::Release);
            // SAFETY: no pointers; the process is ours and not reaped.
            unsafe { libc::kill(process.pid, libc::SIGKILL) };
        }
        Some((process, last))
    }

    /// Goes on in another, fresh stub process.
    fn move_to(&mut self, process: Arc<StubProcess>) -> Result<()> {
        trace::seize(process.pid)?;
        self.leave();
        self.tid = process.pid;
        self.place.replace_stub(process.pid);
        let kicked = self.kicker.state.load(Ordering::SeqCst) == KICKED;
        self.kicker = Kicker::new(if kicked { KICKED } else { IDLE }, process.pid, process.pid);
        let (vdso, range) = (self.factory.vdso(), self.factory.range());
        let space = Arc::new(Space { process: process.clone(), alive: AtomicBool::new(true), vdso, range });
        self.process = Some(process);
        self.shared = space.clone();
        self.space = space;
        Ok(())
    }

    /// The extended state that a program starts with: all in its initial state.
    fn reset_xstate(&mut self) -> Result<()> {
        let mut image = trace::get_xstate(self.tid)?;
        if let Some(header) = image.get_mut(512..576) {
            header[..8].fill(0);
        }
        // FXSAVE area: control words are not part of what an empty header resets.
        image[..2].copy_from_slice(&0x37fu16.to_ne_bytes());
        image[24..28].copy_from_slice(&0x1f80u32.to_ne_bytes());
        trace::set_xstate(self.tid, &image)
    }

    /// Gives the stub thread up. The last one takes its process with it.
    fn leave(&mut self) {
        let Some((process, last)) = self.leave_process() else { return };
        if last {
            // Threads other than the first are reaped by their tracer, which is this thread; the first by `StubProcess`'s drop.
            if self.tid != process.pid {
                reap(self.tid);
            }
        } else if self.tid == process.pid {
            // The first thread must outlive the others, or the host could not tell when the process is gone: it waits,
            // untraced, until the last one kills it.
            let regs = Regs { rip: WAIT_ADDR, orig_rax: u64::MAX, ..self.regs };
            let _gone = trace::set_regs(self.tid, &regs).and_then(|()| trace::detach(self.tid));
        } else {
            self.end_thread(self.tid);
        }
    }

    /// Ends a thread of the process, which is not the first and is stopped.
    fn end_thread(&self, tid: i32) {
        let args = self.factory.mark(libc::SYS_exit, [0; 6]);
        let regs = trace::call_regs(&self.regs, CALL_ADDR, libc::SYS_exit, args);
        // That fails when another thread has just killed the process. This one must be reaped all the same: as long as
        // it is not, the host keeps the process, and whoever waits for that (this thread, perhaps) waits for ever.
        let _gone = trace::set_regs(tid, &regs).and_then(|()| trace::resume(libc::PTRACE_CONT, tid));
        reap(tid);
    }

    /// Makes a thread of the process that runs no container code, traced and stopped: see [`StubThread::deputy`]. `waiting` is one
    /// that was [released](StubThread::release).
    pub fn hire(&mut self, waiting: Option<i32>) -> Result<i32> {
        let tid = match waiting {
            Some(tid) => tid,
            None => self.clone_stub(CLONE_THREAD)?,
        };
        trace::seize(tid)?;
        trace::set_deputy_of(self.space.process.pid);
        Ok(tid)
    }

    /// Lets that thread wait untraced, with nothing of the sentry's in its registers. False when it is gone.
    pub fn release(&mut self, tid: i32) -> bool {
        let regs = Regs { cs: self.regs.cs, ss: self.regs.ss, eflags: 0x202, rip: WAIT_ADDR, ..zero_regs() };
        let regs = Regs { orig_rax: u64::MAX, ..regs };
        let released = trace::set_regs(tid, &regs).and_then(|()| trace::detach(tid)).is_ok();
        if released {
            self.deputy = None;
            trace::set_deputy_of(0);
        }
        released
    }

    /// Ends that thread.
    pub fn dismiss(&mut self, tid: i32) {
        self.deputy = None;
        trace::set_deputy_of(0);
        self.end_thread(tid);
    }
}

impl Drop for StubThread {
    fn drop(&mut self) {
        self.leave();
    }
}
