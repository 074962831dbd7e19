//! The memory of a container process whose threads may run free: copies go through the stub when it waits and looks.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::arena::{Arena, Slab};
use super::context::{self, BUFFER_LEN, Context, state};
use super::patch::Patches;
use crate::errno::{Errno, Result};
use crate::platform::AddressSpace;
use crate::platform::ptrace::space::Space;
use crate::platform::ptrace::trace;

/// The contexts of one stub process. A piece of memory stays with the process until that is gone, since it stays mapped.
#[derive(Default)]
pub struct Contexts {
    idle: Mutex<Idle>,
    /// Held while one is mapped, and while the process is copied: the copy must have none, but a mapping can be told so only
    /// once it is there. A lock of the platform's own, after all others.
    pub mapping: Mutex<()>,
}

#[derive(Default)]
struct Idle {
    returned: Vec<(Slab, usize, bool)>,
    fresh: usize,
}

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
        Ok(Context::new(slab, idle.fresh - 1, false))
    }

    /// Gives it back, for another thread of the process.
    pub fn give_back(&self, context: Context) {
        self.idle.lock().returned.push(context.into_slab());
    }
}

/// The memory of one program.
pub struct TrapSpace {
    inner: Arc<Space>,
    /// Its rewritten sites. A lock of the platform's own, after all others.
    pub patches: Mutex<Patches>,
}

thread_local! {
    /// The calling thread's stub, while it waits for an answer.
    static WAITING: Cell<Option<Waiting>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Waiting {
    context: *const Context,
    space: *const TrapSpace,
    /// The stub's thread.
    tid: i32,
}

/// The calling thread's stub, the thread `tid`, waits, and copies for it until that is taken back with [`nobody_waits`].
pub fn waits(context: &Context, space: &Arc<TrapSpace>, tid: i32) {
    WAITING.set(Some(Waiting { context, space: Arc::as_ptr(space), tid }));
}

/// The calling thread's stub goes on.
pub fn nobody_waits() {
    WAITING.set(None);
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
                state::COPY | state::EXCHANGE => std::hint::spin_loop(),
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

    /// Has the calling thread's own stub copy, if it waits. `None` when it does not.
    ///
    /// That costs two looks of one processor at what the other has written, 0.1 us; a host call of the sentry's own costs
    /// more than ten times as much.
    fn copy(&self, addr: u64, len: usize, order: impl FnOnce(&Context) -> bool) -> Option<(usize, &Context)> {
        let Waiting { context, space, tid } = WAITING.get()?;
        if !std::ptr::eq(space, self) || len == 0 || len > BUFFER_LEN || !self.allows(addr, len) {
            return None;
        }
        // SAFETY: set by this thread for a context that it owns and that lives until `nobody_waits`.
        let context = unsafe { &*context };
        if !order(context) {
            return None;
        }
        if !finished(context, tid) {
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
        let len = buf.len();
        match self.copy(addr, len, |context| context.order_copy(context.buffer_address(), addr, len)) {
            Some((done, context)) => {
                context.read_buffer(&mut buf[..done]);
                outcome(done)
            }
            None => self.inner.read(addr, buf),
        }
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<usize> {
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
        self.inner.read_vectored(parts, buf)
    }

    fn write_vectored(&self, parts: &[(u64, usize)], buf: &[u8]) -> Result<usize> {
        self.inner.write_vectored(parts, buf)
    }

    fn host_pid(&self) -> i32 {
        self.inner.host_pid()
    }
}
