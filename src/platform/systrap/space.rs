//! The memory of a container process whose threads may run free: copies go through the stub when it waits and looks.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::arena::{Arena, Slab};
use super::context::{self, BUFFER_LEN, Context, Luggage, PIECES, TAKEN_LEN, state};
use super::patch::Patches;
use crate::errno::{Errno, Result};
use crate::platform::AddressSpace;
use crate::platform::ptrace::space::{Space, StubProcess};
use crate::platform::ptrace::stub;
use crate::platform::ptrace::trace;

/// The contexts of one stub process. A piece of memory stays with the process until that is gone, since it stays mapped.
#[derive(Default)]
pub struct Contexts {
    idle: Mutex<Idle>,
    /// Those of threads that have ended.
    pub resting: Bench<Resting>,
    /// Those that were deputies: untraced, by their ids.
    pub deputies: Bench<i32>,
    /// Held while one is mapped, and while the process is copied: the copy must have none, but a mapping can be told so only
    /// once it is there. A lock of the platform's own, after all others.
    pub mapping: Mutex<()>,
}

#[derive(Default)]
struct Idle {
    returned: Vec<(Slab, usize, bool)>,
    fresh: usize,
    /// Where each context says where the clock is.
    clocks: Vec<Word>,
}

/// A word in a piece of memory that stays with the process.
struct Word(*const AtomicU64);

// SAFETY: an atomic word that is mapped as long as the arena is, which outlives the contexts.
unsafe impl Send for Word {}

impl Contexts {
    /// A context. `EAGAIN` when there are no more.
    pub fn take(&self, arena: &Arc<Arena>) -> Result<Context> {
        let mut idle = self.idle.lock();
        if let Some((slab, index, mapped)) = idle.returned.pop() {
            return Ok(Context::new(slab, index, mapped));
        }
        if idle.fresh >= context::MOST {
            return Err(Errno::EAGAIN);
        }
        let slab = arena.take()?;
        idle.fresh += 1;
        let context = Context::new(slab, idle.fresh - 1, false);
        idle.clocks.push(Word(context.clock()));
        Ok(context)
    }

    /// Tells a context's stub where its process has the vDSO's clock, unless that has been changed.
    pub fn tell_clock(&self, context: &Context, process: &StubProcess, vdso: u64) {
        let _others = self.idle.lock();
        let is_there = !process.vdso_changed.load(Ordering::Relaxed);
        context.set_clock(stub::vdso_clock().filter(|_| is_there).map_or(0, |clock| vdso + clock));
    }

    /// The vDSO is about to be changed, as its process says by now: no stub looks for a clock there.
    pub fn forget_clock(&self) {
        for word in &self.idle.lock().clocks {
            // SAFETY: see `Word`.
            unsafe { &*word.0 }.store(0, Ordering::SeqCst);
        }
    }

    /// Gives it back, for another thread of the process.
    pub fn give_back(&self, context: Context) {
        self.idle.lock().returned.push(context.into_slab());
    }
}

/// Threads of a process that wait to be used again.
pub struct Bench<T>(Mutex<Vec<T>>);

impl<T> Default for Bench<T> {
    fn default() -> Bench<T> {
        Bench(Mutex::default())
    }
}

impl<T> Bench<T> {
    /// How many there are at most, but for those that come at the same time.
    const PLACES: usize = 16;

    /// Whether there is room for another.
    pub fn has_room(&self) -> bool {
        self.0.lock().len() < Bench::<T>::PLACES
    }

    /// One more waits.
    pub fn put(&self, thread: T) {
        self.0.lock().push(thread);
    }

    /// Takes one, the last that came.
    pub fn take(&self) -> Option<T> {
        self.0.lock().pop()
    }
}

/// A stub thread without a container thread: it waits, untraced, for registers to go on with. To make one costs some 50 us, to
/// end one as much.
pub struct Resting {
    /// Its context.
    pub context: Context,
    /// Its id.
    pub tid: i32,
    /// The host's number of the CPU that it is pinned to.
    pub pinned: Option<usize>,
}

/// The memory of one program.
pub struct TrapSpace {
    inner: Arc<Space>,
    /// Its rewritten sites. A lock of the platform's own, after all others.
    pub patches: Mutex<Patches>,
}

/// A range of the container's memory.
#[derive(Clone, Copy)]
struct Span {
    at: u64,
    len: usize,
}

impl Span {
    /// Where `addr..addr + len` is in it, if it is.
    fn find(self, addr: u64, len: usize) -> Option<usize> {
        let offset = usize::try_from(addr.checked_sub(self.at)?).ok()?;
        (offset.checked_add(len)? <= self.len).then_some(offset)
    }

    fn overlaps(self, addr: u64, len: usize) -> bool {
        addr < self.at.saturating_add(self.len as u64) && self.at < addr.saturating_add(len as u64)
    }
}

/// A piece that the stub is to store: where, and its place among what is taken back.
#[derive(Clone, Copy)]
struct Piece {
    span: Span,
    offset: usize,
}

/// The calling thread's stub, while it waits for an answer.
#[derive(Clone, Copy)]
struct Waiting {
    context: *const Context,
    memory: *const TrapSpace,
    /// The stub's thread.
    tid: i32,
    /// What the call has brought with it.
    brought: Span,
    /// Whether that is a string.
    is_string: bool,
    /// Where its results may be left.
    writable: Span,
    pieces: [Piece; PIECES],
    count: usize,
}

thread_local! {
    static WAITING: Cell<Option<Waiting>> = const { Cell::new(None) };
}

/// The calling thread's stub, the thread `tid`, waits, and copies for it until [`nobody_waits`]. `call`: it has stopped for a call through a
/// rewritten site, and has brought what that needs.
pub fn waits(context: &Context, space: &Arc<TrapSpace>, tid: i32, call: bool) {
    let nothing = || Luggage { brought: (0, 0), is_string: false, writable: (0, 0) };
    let Luggage { brought, is_string, writable } = if call { context.luggage() } else { nothing() };
    let span = |(at, len): (u64, usize)| Span { at, len: if space.allows(at, len) { len } else { 0 } };
    let none = Piece { span: Span { at: 0, len: 0 }, offset: 0 };
    let (brought, writable) = (span(brought), span(writable));
    let pieces = [none; PIECES];
    let memory = Arc::as_ptr(space);
    WAITING.set(Some(Waiting { context, memory, tid, brought, is_string, writable, pieces, count: 0 }));
}

/// The calling thread's stub goes on, and stores what was left for it.
pub fn goes_on() {
    if let Some(waiting) = WAITING.take() {
        // SAFETY: see `Waiting::context`.
        unsafe { &*waiting.context }.set_pieces(waiting.count);
    }
}

/// The calling thread's stub waits no more, and does not go on by itself: what was left for it is stored now.
pub fn nobody_waits() {
    if let Some(waiting) = WAITING.take() {
        waiting.flush();
    }
}

impl Waiting {
    fn context(&self) -> &Context {
        // SAFETY: set by this thread for a context that it owns and that lives until `goes_on` or `nobody_waits`.
        unsafe { &*self.context }
    }

    /// Stores the pieces by a host call each.
    fn flush(&self) {
        // SAFETY: as for the context: its thread holds the memory.
        let memory = unsafe { &*self.memory };
        for piece in &self.pieces[..self.count] {
            let mut bytes = vec![0; piece.span.len];
            self.context().read_taken(piece.offset, &mut bytes);
            // It was writable when the call was made; if it no longer is, nobody can tell that from a later change.
            let _ = memory.inner.write(piece.span.at, &bytes);
        }
    }

    /// Leaves `bytes` for the stub, if they go where it has found the memory writable.
    fn leave(&mut self, addr: u64, bytes: &[u8]) -> bool {
        let used = self.pieces[..self.count].last().map_or(0, |last| last.offset + last.span.len);
        let fits = self.count < PIECES && used + bytes.len() <= TAKEN_LEN;
        if !fits || self.writable.find(addr, bytes.len()).is_none() {
            return false;
        }
        self.context().leave_piece(self.count, addr, used, bytes);
        self.pieces[self.count] = Piece { span: Span { at: addr, len: bytes.len() }, offset: used };
        self.count += 1;
        true
    }

    fn has_left(&self, addr: u64, len: usize) -> bool {
        self.pieces[..self.count].iter().any(|piece| piece.span.overlaps(addr, len))
    }
}

/// How long the sentry looks for the end of a copy, which takes less than 1 us unless the host runs somebody else.
const LIMIT: Duration = Duration::from_millis(2);

/// How often it looks between two glances at the clock.
const LOOKS: u32 = 256;

/// Waits for the stub, the thread `tid`, to have done what it was told. False when it does not: then it has been stopped, as
/// its context's `halted` tells, so that it does nothing behind the sentry's back.
pub fn finished(context: &Context, tid: i32) -> bool {
    let mut end = None;
    loop {
        for _ in 0..LOOKS {
            match context.state().load(Ordering::Acquire) {
                state::COPY | state::EXCHANGE | state::STORE => std::hint::spin_loop(),
                _ => return true,
            }
        }
        let now = Instant::now();
        if now > *end.get_or_insert(now + LIMIT) {
            break;
        }
    }
    nobody_waits();
    // A thread that cannot be stopped is gone: whoever wants to use it finds out.
    context.halted.set(trace::halt(tid).is_ok());
    false
}

/// As [`finished`], for a stub that sleeps and is woken for the order `order`: on one CPU that costs two futex hand-overs,
/// 6 us.
pub fn finished_asleep(context: &Context, order: u32, tid: i32) -> bool {
    let word = context.state();
    futex(word, libc::FUTEX_WAKE, 1, None);
    let mut late = false;
    while word.load(Ordering::Acquire) == order {
        if late {
            nobody_waits();
            context.halted.set(trace::halt(tid).is_ok());
            return false;
        }
        futex(word, libc::FUTEX_WAIT, order, Some(NIGHT));
        late = true;
    }
    true
}

/// How long the sentry sleeps for that. On a busy host it may take a while until the stub gets to run.
const NIGHT: Duration = Duration::from_millis(100);

/// `futex(2)` on a word that several processes share.
pub fn futex(word: &AtomicU32, op: i32, value: u32, timeout: Option<Duration>) {
    let time = timeout
        .map(|timeout| libc::timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word is mapped; the time, if any, lives until the call returns.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, value, time) };
}

impl TrapSpace {
    /// Of a program in `inner`, with the sites that it has inherited.
    pub fn new(inner: Arc<Space>, patches: Patches) -> Arc<TrapSpace> {
        Arc::new(TrapSpace { inner, patches: Mutex::new(patches) })
    }

    /// Whether `addr..addr + len` may be the container's.
    fn allows(&self, addr: u64, len: usize) -> bool {
        let range = &self.inner.range;
        addr >= range.start && addr < range.end && len as u64 <= range.end - addr
    }

    /// The calling thread's stub, if it waits and holds this memory.
    fn waiting(&self) -> Option<Waiting> {
        WAITING.get().filter(|waiting| std::ptr::eq(waiting.memory, self))
    }

    /// Stores now what was left for the stub, if that touches `addr..addr + len`; what the call has brought may be out of
    /// date from then on, if the sentry is about to store something there.
    fn settle(&self, addr: u64, len: usize, store: bool) {
        let Some(mut waiting) = self.waiting() else { return };
        if waiting.has_left(addr, len) {
            waiting.flush();
            waiting.count = 0;
        }
        if store && waiting.brought.overlaps(addr, len) {
            waiting.brought.len = 0;
        }
        WAITING.set(Some(waiting));
    }

    /// The word at `addr` is about to be changed by other means.
    pub fn before_exchange(&self, addr: u64) {
        self.settle(addr, 4, true);
    }

    /// What the call has brought.
    fn brought(&self, addr: u64, buf: &mut [u8]) -> Option<usize> {
        let waiting = self.waiting()?;
        if let Some(offset) = waiting.brought.find(addr, buf.len()) {
            waiting.context().read_brought(offset, buf);
            return Some(buf.len());
        }
        // A string that ends in it is all that is wanted, whatever the reader has room for.
        if !waiting.is_string {
            return None;
        }
        let rest = waiting.brought.len.checked_sub(waiting.brought.find(addr, 1)?)?;
        let (head, _) = buf.split_at_mut_checked(rest)?;
        waiting.context().read_brought(waiting.brought.len - rest, head);
        head.contains(&0).then_some(rest)
    }

    /// Leaves `bytes` for the stub to store.
    fn leave(&self, addr: u64, bytes: &[u8]) -> bool {
        let Some(mut waiting) = self.waiting() else { return false };
        let left = waiting.leave(addr, bytes);
        WAITING.set(Some(waiting));
        left
    }

    /// Has the calling thread's own stub copy, if it waits. `None` when it does not.
    ///
    /// That costs two looks of one processor at what the other has written, 0.1 us; a host call of the sentry's own costs
    /// more than ten times as much.
    fn copy(&self, addr: u64, len: usize, order: impl FnOnce(&Context) -> bool) -> Option<(usize, &Context)> {
        let waiting = self.waiting()?;
        if len == 0 || len > BUFFER_LEN || !self.allows(addr, len) {
            return None;
        }
        // SAFETY: as for `Waiting::context`.
        let context = unsafe { &*waiting.context };
        if !order(context) {
            return None;
        }
        if !finished(context, waiting.tid) {
            return None;
        }
        let left = usize::try_from(context.copy_left()).unwrap_or(len).min(len);
        Some((len - left, context))
    }
}

fn outcome(done: usize) -> Result<usize> {
    if done == 0 { Err(Errno::EFAULT) } else { Ok(done) }
}

impl AddressSpace for TrapSpace {
    fn range(&self) -> Range<u64> {
        self.inner.range()
    }

    fn vdso(&self) -> (Range<u64>, u64) {
        self.inner.vdso()
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<usize> {
        if let Some(n) = self.brought(addr, buf) {
            return Ok(n);
        }
        let len = buf.len();
        self.settle(addr, len, false);
        match self.copy(addr, len, |context| context.order_copy(context.buffer_address(), addr, len)) {
            Some((done, context)) => {
                context.read_buffer(&mut buf[..done]);
                outcome(done)
            }
            None => self.inner.read(addr, buf),
        }
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<usize> {
        self.settle(addr, buf.len(), true);
        if self.leave(addr, buf) {
            return Ok(buf.len());
        }
        let order = |context: &Context| {
            context.write_buffer(buf);
            context.order_copy(addr, context.buffer_address(), buf.len())
        };
        match self.copy(addr, buf.len(), order) {
            Some((done, _)) => outcome(done),
            None => self.inner.write(addr, buf),
        }
    }

    fn read_vectored(&self, parts: &[(u64, usize)], buf: &mut [u8]) -> Result<usize> {
        parts.iter().for_each(|&(addr, len)| self.settle(addr, len, false));
        self.inner.read_vectored(parts, buf)
    }

    fn write_vectored(&self, parts: &[(u64, usize)], buf: &[u8]) -> Result<usize> {
        parts.iter().for_each(|&(addr, len)| self.settle(addr, len, true));
        self.inner.write_vectored(parts, buf)
    }

    fn host_pid(&self) -> i32 {
        self.inner.host_pid()
    }
}
