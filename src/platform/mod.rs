//! How container code is run and its system calls are captured.
//!
//! A [`Platform`] makes user threads. A [`UserThread`] is one container thread; the sentry thread that attached it is the
//! only one that may use it, runs it until the next [`Event`], and answers. An [`AddressSpace`] is the memory that one or
//! more user threads share; the pages are the host kernel's, the decision what is mapped where is the sentry's alone.
//!
//! ```text
//! sentry thread ── UserThread::run ──▶ stub thread runs container code
//!               ◀─ Event::Syscall ───  (stopped; registers in UserThread::regs)
//!               ── UserThread::map… ─▶ stub performs this one host call, which the sentry chose
//! ```
//!
//! Nothing above this trait may know which platform runs.

use std::ops::Range;
use std::sync::Arc;

use crate::errno::Result;

pub mod placement;
pub mod ptrace;
pub mod systrap;

/// General registers, in the layout of `PTRACE_GETREGS` on x86_64 (`fs_base` and `gs_base` included).
pub type Regs = libc::user_regs_struct;

/// A `siginfo_t` as the host's kernel wrote it: for a fault, `si_signo`, `si_code` and `si_addr` are what Linux says.
pub type SigInfo = libc::siginfo_t;

/// Why container code stopped running.
#[derive(Clone, Copy)]
pub enum Event {
    /// A system call instruction was reached. `regs.orig_rax` is its number; `rip` is behind the instruction; the
    /// result goes to `regs.rax`.
    Syscall,
    /// The code raised a signal itself: SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP.
    Fault(SigInfo),
    /// [`Interrupter::interrupt`] was called, or nothing that concerns the container happened.
    Interrupted,
    /// The host thread is gone (killed by the host, for want of memory say): the container thread cannot go on.
    Lost,
}

/// What a call comes to: see [`UserThread::set_answers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This.
    Is(u32),
    /// What the platform says, which knows as much of it as the sentry: for `sched_yield(2)`, and for `clock_gettime(2)` of
    /// clocks that the vDSO tells.
    Platforms,
}

/// Makes user threads. One for the sandbox.
pub trait Platform: Send + Sync {
    /// The name that `--platform` takes.
    fn name(&self) -> &'static str;

    /// A thread in a fresh address space that holds nothing the container can use but the vDSO
    /// (see [`AddressSpace::vdso`]).
    fn spawn(&self) -> Result<Seed>;
}

/// A user thread that has been made and waits for the sentry thread that is to own it.
pub trait SeedThread: Send {
    /// Makes the calling thread its owner. The registers are those of its parent, with `rax` 0; a fresh thread's are 0.
    fn attach(self: Box<Self>) -> Result<Box<dyn UserThread>>;
}

/// A boxed [`SeedThread`].
pub type Seed = Box<dyn SeedThread>;

/// Stops a user thread from another sentry thread.
pub trait Interrupter: Send + Sync {
    /// Makes the current or the next [`UserThread::run`] return [`Event::Interrupted`] soon. Cheap when the thread is
    /// not in `run` (one atomic operation). Spurious interruptions are allowed.
    fn interrupt(&self);
}

/// Where a mapping's pages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Zero-filled memory.
    Anonymous,
    /// A host file that the sentry holds open as `fd`, from `offset` (bytes, page-aligned).
    File {
        /// The descriptor, valid for the duration of the call only.
        fd: i32,
        /// Where the mapping starts in the file.
        offset: u64,
    },
}

/// A mapping to make at a fixed place, over whatever is there.
#[derive(Clone, Copy, Debug)]
pub struct MapRequest {
    /// First byte, page-aligned.
    pub addr: u64,
    /// Length in bytes, a multiple of the page size.
    pub len: u64,
    /// `PROT_*` of `mmap(2)`.
    pub prot: i32,
    /// Whether stores are shared (`MAP_SHARED`) or private.
    pub shared: bool,
    /// Further flags of `mmap(2)`: `MAP_NORESERVE`, `MAP_POPULATE`, `MAP_LOCKED` and the like; never `MAP_FIXED`.
    pub flags: i32,
    /// What is mapped.
    pub backing: Backing,
}

/// The memory of a container process. Copies work whatever the threads of the space are doing.
pub trait AddressSpace: Send + Sync {
    /// The addresses that the container may map. Outside, and nowhere else, are the platform's own pages.
    fn range(&self) -> Range<u64>;

    /// Where the vDSO image (with its data pages just before it) lies: `(data pages and image, image start)`. The sentry
    /// enters it in its map of areas; the container may unmap or move it like any other.
    fn vdso(&self) -> (Range<u64>, u64);

    /// Copies out of the space. Returns how many bytes were readable from `addr` on, which is less than `buf.len()` when
    /// a page in between is not readable; `EFAULT` if none.
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<usize>;

    /// Copies into the space. Returns how many bytes could be stored; `EFAULT` if none. Write protection is honoured.
    fn write(&self, addr: u64, buf: &[u8]) -> Result<usize>;

    /// Copies from several places at once: one host call. `parts` are `(address, length)`. Stops at the first byte that
    /// cannot be read.
    fn read_vectored(&self, parts: &[(u64, usize)], buf: &mut [u8]) -> Result<usize>;

    /// Copies to several places at once, as [`AddressSpace::read_vectored`].
    fn write_vectored(&self, parts: &[(u64, usize)], buf: &[u8]) -> Result<usize>;

    /// The host process that holds the memory, for accounting. Not for copying.
    fn host_pid(&self) -> i32;
}

/// What `ps(1)` and `top(1)` on the host show of a program. The places are in its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Title<'a> {
    /// Its name; 15 bytes count.
    pub name: &'a [u8],
    /// Its arguments.
    pub args: Range<u64>,
    /// Its environment.
    pub env: Range<u64>,
    /// The stack's pointer when it starts. What lies below may be overwritten, as far as [`Title::ROOM`].
    pub stack: u64,
}

impl Title<'_> {
    /// Bytes below the stack's pointer that must be writable.
    pub const ROOM: u64 = 256;
}

/// Address space that a platform borrows from the container.
pub struct Room;

impl Room {
    /// Bytes of it.
    pub const LEN: u64 = systrap::patch::ROOM;
}

/// One container thread, owned by the sentry thread that attached it.
pub trait UserThread {
    /// The memory it runs in.
    fn space(&self) -> &Arc<dyn AddressSpace>;

    /// What stops it from elsewhere.
    fn interrupter(&self) -> Arc<dyn Interrupter>;

    /// Runs on the CPUs and with the share of them that `scheduling` tells, now and whenever it changes.
    fn follow(&mut self, scheduling: Arc<placement::Scheduling>);

    /// Runs container code from the current registers until something happens.
    fn run(&mut self) -> Event;

    /// The registers as of the last event, with the changes made since.
    fn regs(&self) -> &Regs;

    /// The registers, to change before the next `run`.
    fn regs_mut(&mut self) -> &mut Regs;

    /// The extended state in XSAVE's standard (not compacted) format, as signal frames hold it.
    fn xstate(&mut self) -> Result<Vec<u8>>;

    /// Replaces the extended state; `EINVAL` when the host refuses the image.
    fn set_xstate(&mut self, image: &[u8]) -> Result<()>;

    /// Makes a mapping, replacing what is there.
    fn map(&mut self, request: &MapRequest) -> Result<()>;

    /// Removes mappings.
    fn unmap(&mut self, addr: u64, len: u64) -> Result<()>;

    /// Changes protection: `PROT_*`.
    fn protect(&mut self, addr: u64, len: u64, prot: i32) -> Result<()>;

    /// Moves or resizes: the pages at `old` of `old_len` bytes end up at `new` with `new_len` (`MREMAP_MAYMOVE |
    /// MREMAP_FIXED` when `new` differs from `old`, plus `flags`, such as `MREMAP_DONTUNMAP`).
    fn remap(&mut self, old: u64, old_len: u64, new: u64, new_len: u64, flags: i32) -> Result<()>;

    /// `madvise(2)` on the container's own pages; the sentry has checked the advice.
    fn advise(&mut self, addr: u64, len: u64, advice: i32) -> Result<()>;

    /// `msync(2)` without `MS_INVALIDATE` of shared files.
    fn sync(&mut self, addr: u64, len: u64, flags: i32) -> Result<()>;

    /// A thread in a copy of the space (copy-on-write, as `fork(2)`).
    fn fork(&mut self) -> Result<Seed>;

    /// A further thread in the same space.
    fn spawn_thread(&mut self) -> Result<Seed>;

    /// Gives this thread a fresh address space (`execve(2)`), reusing the host process when no other thread shares it.
    /// The old space goes with its last thread.
    fn renew(&mut self) -> Result<()>;

    /// Has the host show the program that is about to start under its own name and arguments. A host that cannot shows
    /// something else: nothing depends on it.
    fn entitle(&mut self, title: &Title<'_>);

    /// Atomically: if the word at `addr` is `expected` it becomes `new`. Returns what was there. `EFAULT` when it cannot
    /// be written.
    fn compare_exchange(&mut self, addr: u64, expected: u32, new: u32) -> Result<u32>;

    /// The answers that calls have until this is called again, by their numbers: the platform may give them without asking.
    fn set_answers(&mut self, _answers: &[(usize, Answer)]) {}

    /// The container thread has ended, and its process goes on: the platform may keep what it has of it, for another thread.
    fn retire(&mut self) {}

    /// Whether the platform would like [`Room::LEN`] bytes of address space that the container does not use, within 2 GiB of
    /// this range.
    fn wants_room(&mut self) -> Option<Range<u64>> {
        None
    }

    /// Gives it that, at `addr`. It is the platform's until the container maps something over it.
    fn take_room(&mut self, _addr: u64) -> Result<()> {
        Ok(())
    }
}
