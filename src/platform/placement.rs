//! How the host schedules each pair of sentry thread and stub thread: on which CPU, and with what share of it.
//!
//! The two never run at once, so they share one CPU: a hand-over then costs a context switch, some 2 us, where waking the
//! other on another CPU costs 25 us in a VM. The counts are of pairs that run, not of those that sleep.
//!
//! A new pair begins where its parent is, since the parent of a process usually waits for it next; a pair that has shared
//! its CPU with another running one for a while, with a CPU idle elsewhere, moves there.
//!
//! Both threads of a pair get the nice value that the container gave the thread. Its policy (`SCHED_BATCH`, `SCHED_IDLE`)
//! the stub thread alone gets: a sentry thread takes locks that everybody needs, and one that runs only when nothing else
//! does would hold them meanwhile.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};
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

impl Cpu {
    fn id(&self) -> usize {
        self.id.load(Ordering::Relaxed)
    }
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
/// [`Scheduling`] of all others, so that they go where they may be.
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

/// The nice value of the sandbox: what its processes begin with, as those of a host's container begin with the engine's.
pub fn ordinary_nice() -> i32 {
    static NICE: OnceLock<i32> = OnceLock::new();
    // SAFETY: no memory is passed. It cannot fail for the caller itself; -1 is a nice value like others.
    *NICE.get_or_init(|| unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) })
}

/// The best nice value that the host lets the sandbox's threads have again once they are worse. 20 where it lets them have
/// none. To be asked first on a thread that is as nice as the sandbox.
pub fn best_nice() -> i32 {
    static BEST: OnceLock<i32> = OnceLock::new();
    *BEST.get_or_init(|| {
        const LEAST: i32 = -20;
        let ordinary = ordinary_nice();
        // Neither the limit nor the capability says for certain what the host answers.
        if set_nice(0, LEAST) {
            set_nice(0, ordinary);
            return LEAST;
        }
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NICE).unwrap_or_default();
        20 - i32::try_from(soft).unwrap_or(40).min(40)
    })
}

/// How a thread asks to be scheduled. Whoever changes it stops the thread's user code, which then goes on as it says.
pub struct Scheduling {
    /// Counts changes.
    version: AtomicU32,
    /// A bit a CPU, the first the lowest of the first byte; empty: all.
    mask: Mutex<Vec<u8>>,
    nice: AtomicI32,
    policy: AtomicI32,
}

impl Default for Scheduling {
    fn default() -> Scheduling {
        Scheduling {
            version: AtomicU32::new(0),
            mask: Mutex::default(),
            nice: AtomicI32::new(ordinary_nice()),
            policy: AtomicI32::new(libc::SCHED_OTHER),
        }
    }
}

/// Whether any thread was ever given another nice value or another policy than it began with.
static WEIGHED: AtomicBool = AtomicBool::new(false);

impl Scheduling {
    /// On which of the sandbox's CPUs it may run, with a bit a CPU; empty for all: `sched_setaffinity(2)`.
    pub fn affinity(&self) -> Vec<u8> {
        self.mask.lock().clone()
    }

    /// Changes that mask.
    pub fn set_affinity(&self, mask: Vec<u8>) {
        *self.mask.lock() = mask;
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Its nice value, -20 to 19: `setpriority(2)`.
    pub fn nice(&self) -> i32 {
        self.nice.load(Ordering::Relaxed)
    }

    /// Changes that; one that the host does not let it have ([`best_nice`]) leaves the host's threads as they are.
    pub fn set_nice(&self, nice: i32) {
        self.nice.store(nice, Ordering::Relaxed);
        self.weighed();
    }

    /// `SCHED_OTHER`, `SCHED_BATCH` or `SCHED_IDLE`, perhaps with `SCHED_RESET_ON_FORK`: `sched_setscheduler(2)`.
    pub fn policy(&self) -> i32 {
        self.policy.load(Ordering::Relaxed)
    }

    /// Changes that.
    pub fn set_policy(&self, policy: i32) {
        self.policy.store(policy, Ordering::Relaxed);
        self.weighed();
    }

    /// What a child of `parent` begins with.
    pub fn inherit(&self, parent: &Scheduling) {
        self.set_affinity(parent.affinity());
        let (policy, nice) = (parent.policy(), parent.nice());
        let reset = policy & libc::SCHED_RESET_ON_FORK != 0;
        // The flag is for one generation.
        self.policy.store(policy & !libc::SCHED_RESET_ON_FORK, Ordering::Relaxed);
        self.nice.store(if reset { nice.max(0) } else { nice }, Ordering::Relaxed);
    }

    fn weighed(&self) {
        WEIGHED.store(true, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// Whether a thread that has worked for one task can do so for another: it may have been given a nice value or a policy that
/// the host does not let it leave again.
pub fn is_reusable() -> bool {
    !WEIGHED.load(Ordering::SeqCst) || best_nice() <= ordinary_nice()
}

/// The calling thread works for the whole sandbox, though the thread of a pair may have started it: it runs on every CPU
/// and with the sandbox's nice value.
pub fn serve_all() {
    let cpus: Vec<usize> = cpus().iter().map(Cpu::id).collect();
    pin_thread(0, &cpus);
    PINNED.set(None);
    if WEIGHED.load(Ordering::SeqCst) {
        set_nice(0, ordinary_nice());
    }
}

/// Where a pair runs. Owned by its sentry thread.
pub struct Place {
    index: usize,
    stub: i32,
    /// The host's number of the CPU that the stub thread is pinned to.
    pinned: Option<usize>,
    /// When another pair was found on its CPU that has been there each time since.
    company_since: Option<Instant>,
    scheduling: Arc<Scheduling>,
    /// Which version of it is in force.
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
            // The parent itself is one, and the child that it had before may not be gone yet. Who stays longer than those is moved.
            Some(index) if all[index].running.load(Ordering::Relaxed) <= 2 => index,
            _ => idlest(&[]).0,
        };
        all[index].running.fetch_add(1, Ordering::Relaxed);
        PLACE.set(Some(index));
        let (scheduling, mask) = (Arc::default(), Vec::new());
        let mut place = Place { index, stub, pinned, company_since: None, scheduling, version: 0, mask, apart: None };
        place.pin();
        place
    }

    /// Another stub thread takes the place of the old one.
    pub fn replace_stub(&mut self, stub: i32) {
        self.stub = stub;
        self.pinned = None;
        self.pin();
        self.weigh();
    }

    fn pin(&mut self) {
        let cpu = cpus()[self.index].id();
        pin_self(cpu);
        if self.pinned.replace(cpu) != Some(cpu) {
            pin_thread(self.stub, &[cpu]);
        }
    }

    /// The host's number of the CPU that the stub thread is pinned to.
    pub fn pinned(&self) -> Option<usize> {
        self.pinned
    }

    /// Is scheduled so from now on.
    pub fn follow(&mut self, scheduling: Arc<Scheduling>) {
        self.version = scheduling.version.load(Ordering::Acquire);
        self.scheduling = scheduling;
        self.obey();
    }

    /// Goes to a CPU that it may be on, and takes the share that it is to have.
    fn obey(&mut self) {
        self.mask = self.scheduling.affinity();
        if allows(&self.mask, self.index) {
            // It may be another one of the host's.
            self.pin();
        } else {
            self.move_to(idlest(&self.mask).0);
        }
        self.weigh();
    }

    /// Gives the threads their nice value and their policy, whatever those have that they were made by.
    fn weigh(&self) {
        if !WEIGHED.load(Ordering::SeqCst) {
            return;
        }
        let (nice, policy) = (self.scheduling.nice(), self.scheduling.policy() & !libc::SCHED_RESET_ON_FORK);
        set_nice(0, nice);
        set_nice(self.stub, nice);
        set_policy(self.stub, policy);
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
        pin_self(all[index].id());
        true
    }

    /// Brings the sentry thread back to its stub.
    pub fn join(&mut self) {
        if let Some(index) = self.apart.take() {
            APART.set(None);
            cpus()[index].running.fetch_sub(1, Ordering::Relaxed);
            pin_self(cpus()[self.index].id());
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
        let version = self.scheduling.version.load(Ordering::Acquire);
        if version != self.version {
            self.version = version;
            self.obey();
        }
        if !self.has_company() {
            self.company_since = None;
            return;
        }
        // One that comes and goes, like a child that its parent waits for, is no reason.
        if self.company_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            return;
        }
        self.company_since = None;
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
        pin_thread(0, &[cpu]);
    }
}

/// The host's number of the CPU that the calling thread is pinned to.
pub fn pinned() -> Option<usize> {
    PINNED.get()
}

/// Pins a thread of the sandbox to CPUs, given by the host's numbers.
pub fn pin_thread(tid: i32, to: &[usize]) {
    // SAFETY: a set with bits that are within it, valid for the call. Failing leaves the thread where it is, which is only
    // slower.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        to.iter().for_each(|&cpu| libc::CPU_SET(cpu, &mut set));
        libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// Whether the host did it. What it does not let a thread have is refused before ([`best_nice`]).
fn set_nice(tid: i32, nice: i32) -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, tid as libc::id_t, nice) == 0 }
}

/// As [`set_nice`], for one of the ordinary policies.
fn set_policy(tid: i32, policy: i32) {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are valid for the call.
    unsafe { libc::sched_setscheduler(tid, policy, &none) };
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
