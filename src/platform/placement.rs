//! Which CPU each pair of sentry thread and stub thread runs on.
//!
//! The two never run at once, so they share one CPU: a hand-over then costs a context switch, some 2 us, where waking the
//! other on another CPU costs 25 us in a VM. The counts are of pairs that run, not of those that sleep.
//!
//! A new pair begins where its parent is, since the parent of a process usually waits for it next; a pair that has shared
//! its CPU with another running one for a while, with a CPU idle elsewhere, moves there.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a pair shares a CPU before it looks for another: longer than a parent needs to get from `fork` to `wait`.
const PATIENCE: Duration = Duration::from_micros(300);

struct Cpu {
    /// The host's number of it.
    id: AtomicUsize,
    /// Pairs placed here that are not asleep.
    running: AtomicUsize,
}

fn cpus() -> &'static [Cpu] {
    static CPUS: OnceLock<Vec<Cpu>> = OnceLock::new();
    let cpu = |id| Cpu { id: AtomicUsize::new(id), running: AtomicUsize::new(0) };
    CPUS.get_or_init(|| allowed().into_iter().map(cpu).collect())
}

/// How many of the CPUs, the first ones, the host leaves to the sandbox now.
static AVAILABLE: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The CPUs that the calling thread is allowed, which must not be pinned: that is so when first asked, at start.
fn allowed() -> Vec<usize> {
    // SAFETY: a cpu_set_t is plain data; the call fills it.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return vec![0];
        }
        set
    };
    // SAFETY: the indices are within the set.
    let ids: Vec<_> = (0..libc::CPU_SETSIZE as usize).filter(|&id| unsafe { libc::CPU_ISSET(id, &set) }).collect();
    if ids.is_empty() { vec![0] } else { ids }
}

/// How many CPUs the sandbox has: those that it might use when it began.
pub fn count() -> usize {
    cpus().len()
}

/// How many of these it may use now, the first ones.
pub fn available() -> usize {
    AVAILABLE.load(Ordering::Relaxed).clamp(1, count())
}

/// The host may have changed which CPUs the sandbox may use (`cpuset`). They are numbered from 0 whichever they are, and
/// there are never more than at first. Must be called by a thread that is not pinned; whoever calls it changes the
/// [`Affinity`] of all others, so that they go where they may be.
pub fn refresh() {
    let ids = allowed();
    for (cpu, &id) in cpus().iter().zip(&ids) {
        cpu.id.store(id, Ordering::Relaxed);
    }
    AVAILABLE.store(ids.len(), Ordering::Relaxed);
}

thread_local! {
    /// The index of the calling thread's CPU, while it has a pair.
    static PLACE: Cell<Option<usize>> = const { Cell::new(None) };

    /// The index of the CPU where the calling thread is without its stub.
    static APART: Cell<Option<usize>> = const { Cell::new(None) };

    /// The host's number of the CPU that the calling thread is pinned to.
    static PINNED: Cell<Option<usize>> = const { Cell::new(None) };

    /// Whether the calling thread has slept since it was last asked.
    static SLEPT: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread has slept ([`blocking`]) since this was last asked.
pub fn has_slept() -> bool {
    SLEPT.take()
}

/// On which of the sandbox's CPUs a thread may run: `sched_setaffinity(2)`. Whoever changes it stops the thread's user code,
/// which then goes on elsewhere if it must.
#[derive(Default)]
pub struct Affinity {
    /// Counts changes.
    version: AtomicU32,
    /// A bit a CPU, the first the lowest of the first byte; empty: all.
    mask: Mutex<Vec<u8>>,
}

impl Affinity {
    /// The mask, with a bit a CPU; empty for all.
    pub fn get(&self) -> Vec<u8> {
        self.mask.lock().clone()
    }

    /// Changes the mask.
    pub fn set(&self, mask: Vec<u8>) {
        *self.mask.lock() = mask;
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// Where a pair runs. Owned by its sentry thread.
pub struct Place {
    index: usize,
    stub: i32,
    /// The host's number of the CPU that the stub thread is pinned to.
    pinned: Option<usize>,
    since: Instant,
    affinity: Arc<Affinity>,
    /// Which version of it `mask` is.
    version: u32,
    mask: Vec<u8>,
    /// Where the sentry thread alone is, when it is not with its stub.
    apart: Option<usize>,
}

impl Place {
    /// Places the calling thread and the stub thread `stub`, by preference on the CPU `near`. `pinned`: the host's number of the
    /// CPU that the stub thread is pinned to already.
    pub fn new(stub: i32, near: Option<usize>, pinned: Option<usize>) -> Place {
        let all = cpus();
        let near = near.filter(|&index| index < available());
        let index = match near {
            // The parent itself is one; with nobody else there, the child may take its CPU.
            Some(index) if all[index].running.load(Ordering::Relaxed) <= 1 => index,
            _ => idlest(&[]).0,
        };
        all[index].running.fetch_add(1, Ordering::Relaxed);
        PLACE.set(Some(index));
        let since = Instant::now();
        let (affinity, mask) = (Arc::default(), Vec::new());
        let mut place = Place { index, stub, pinned, since, affinity, version: 0, mask, apart: None };
        place.pin();
        place
    }

    /// Another stub thread takes the place of the old one.
    pub fn replace_stub(&mut self, stub: i32) {
        self.stub = stub;
        self.pinned = None;
        self.pin();
    }

    fn pin(&mut self) {
        let cpu = cpus()[self.index].id.load(Ordering::Relaxed);
        pin_self(cpu);
        if self.pinned.replace(cpu) != Some(cpu) {
            pin_thread(self.stub, cpu);
        }
    }

    /// The host's number of the CPU that the stub thread is pinned to.
    pub fn pinned(&self) -> Option<usize> {
        self.pinned
    }

    /// Keeps to these CPUs from now on.
    pub fn follow(&mut self, affinity: Arc<Affinity>) {
        self.version = affinity.version.load(Ordering::Acquire);
        self.affinity = affinity;
        self.obey();
    }

    /// Goes to a CPU that it may be on.
    fn obey(&mut self) {
        self.mask = self.affinity.get();
        if allows(&self.mask, self.index) {
            // It may be another one of the host's.
            self.pin();
        } else {
            self.move_to(idlest(&self.mask).0);
        }
    }

    fn move_to(&mut self, index: usize) {
        self.join();
        let all = cpus();
        all[index].running.fetch_add(1, Ordering::Relaxed);
        all[self.index].running.fetch_sub(1, Ordering::Relaxed);
        self.index = index;
        PLACE.set(Some(index));
        self.pin();
    }

    /// Moves the sentry thread alone to a CPU where no pair runs, so that it can look for what its stub does. False when there
    /// is none.
    pub fn spread(&mut self) -> bool {
        let all = cpus();
        let free = |&index: &usize| index != self.index && all[index].running.load(Ordering::Relaxed) == 0;
        let Some(index) = (0..all.len()).filter(|&index| allows(&self.mask, index)).find(free) else { return false };
        all[index].running.fetch_add(1, Ordering::Relaxed);
        self.apart = Some(index);
        APART.set(Some(index));
        pin_self(all[index].id.load(Ordering::Relaxed));
        true
    }

    /// Brings the sentry thread back to its stub.
    pub fn join(&mut self) {
        if let Some(index) = self.apart.take() {
            APART.set(None);
            cpus()[index].running.fetch_sub(1, Ordering::Relaxed);
            pin_self(cpus()[self.index].id.load(Ordering::Relaxed));
        }
    }

    /// Whether the sentry thread is on another CPU than its stub.
    pub fn is_spread(&self) -> bool {
        self.apart.is_some()
    }

    /// Whether somebody has come to the CPU where the sentry thread is alone.
    pub fn is_in_the_way(&self) -> bool {
        self.apart.is_some_and(|index| cpus()[index].running.load(Ordering::Relaxed) > 1)
    }

    /// Whether other pairs run where this one does.
    pub fn has_company(&self) -> bool {
        cpus()[self.index].running.load(Ordering::Relaxed) > 1
    }

    /// Moves the pair if it may not be where it is, or if it has company and another CPU has nobody. Costs two loads when it
    /// may and has none.
    pub fn consider_moving(&mut self) {
        let version = self.affinity.version.load(Ordering::Acquire);
        if version != self.version {
            self.version = version;
            self.obey();
        }
        let all = cpus();
        if all[self.index].running.load(Ordering::Relaxed) <= 1 || self.since.elapsed() < PATIENCE {
            return;
        }
        self.since = Instant::now();
        let (index, running) = idlest(&self.mask);
        if running == 0 && index != self.index {
            self.move_to(index);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.join();
        cpus()[self.index].running.fetch_sub(1, Ordering::Relaxed);
        PLACE.set(None);
    }
}

/// Whether a thread with this mask may be on a CPU that the sandbox has now. One that has none of its own left may be on
/// any, as on Linux.
pub fn allows(mask: &[u8], index: usize) -> bool {
    let named = |index: usize| mask.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 != 0);
    let available = available();
    index < available && (mask.is_empty() || named(index) || !(0..available).any(named))
}

/// The index of the CPU with the fewest running pairs, of those that `mask` allows, and how many those are.
fn idlest(mask: &[u8]) -> (usize, usize) {
    let counts = cpus().iter().map(|cpu| cpu.running.load(Ordering::Relaxed)).enumerate();
    let counts = counts.filter(|&(index, _)| allows(mask, index));
    counts.min_by_key(|&(_, running)| running).unwrap_or((0, 0))
}

/// Pins the calling thread, if it is not pinned there.
fn pin_self(cpu: usize) {
    if PINNED.replace(Some(cpu)) != Some(cpu) {
        pin_thread(0, cpu);
    }
}

fn pin_thread(tid: i32, cpu: usize) {
    // SAFETY: a set with one bit, valid for the call. Failing leaves the thread where it is, which is only slower.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// The calling thread's CPU, to place a child near it.
pub fn here() -> Option<usize> {
    PLACE.get()
}

/// Whether no other pair runs on the calling thread's CPU, as far as is known: it may keep it for a while.
pub fn is_alone() -> bool {
    let cpus = cpus();
    cpus.len() > 1 && PLACE.get().is_some_and(|index| cpus[index].running.load(Ordering::Relaxed) <= 1)
}

/// Held by a sentry thread while it sleeps: its CPU counts as free.
pub struct Blocking {
    index: Option<usize>,
    apart: Option<usize>,
}

/// The calling thread is about to sleep.
pub fn blocking() -> Blocking {
    SLEPT.set(true);
    let (index, apart) = (PLACE.get(), APART.get());
    for index in [index, apart].into_iter().flatten() {
        cpus()[index].running.fetch_sub(1, Ordering::Relaxed);
    }
    Blocking { index, apart }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        for index in [self.index, self.apart].into_iter().flatten() {
            cpus()[index].running.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_without_cpus_may_be_on_any() {
        assert!(allows(&[], 0) && allows(&[1], 0));
        assert!(!allows(&[], count()), "there is no such CPU");
        // None of the sandbox's.
        let beyond: Vec<u8> = std::iter::repeat_n(0, count().div_ceil(8)).chain([0xff]).collect();
        assert!(allows(&beyond, 0));
        if count() > 1 {
            assert!(!allows(&[1], 1) && !allows(&[2], 0));
        }
    }
}
