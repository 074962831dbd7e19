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
    id: usize,
    /// Pairs placed here that are not asleep.
    running: AtomicUsize,
}

fn cpus() -> &'static [Cpu] {
    static CPUS: OnceLock<Vec<Cpu>> = OnceLock::new();
    CPUS.get_or_init(|| allowed().into_iter().map(|id| Cpu { id, running: AtomicUsize::new(0) }).collect())
}

/// The CPUs that the process was allowed when first asked: at start, before anything was pinned.
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

/// How many CPUs the sandbox may use.
pub fn count() -> usize {
    cpus().len()
}

thread_local! {
    /// The index of the calling thread's CPU, while it has a pair.
    static PLACE: Cell<Option<usize>> = const { Cell::new(None) };
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

    /// Changes that mask, which must name a CPU of the sandbox.
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

/// The calling thread works for the whole sandbox, though the thread of a pair may have started it: it runs on every CPU
/// and with the sandbox's nice value.
pub fn serve_all() {
    let cpus: Vec<usize> = cpus().iter().map(|cpu| cpu.id).collect();
    pin_thread(0, &cpus);
    if WEIGHED.load(Ordering::SeqCst) {
        set_nice(0, ordinary_nice());
    }
}

/// Where a pair runs. Owned by its sentry thread.
pub struct Place {
    index: usize,
    stub: i32,
    since: Instant,
    scheduling: Arc<Scheduling>,
    /// Which version of it is in force.
    version: u32,
    mask: Vec<u8>,
}

impl Place {
    /// Places the calling thread and the stub thread `stub`, by preference on the CPU `near`.
    pub fn new(stub: i32, near: Option<usize>) -> Place {
        let all = cpus();
        let near = near.filter(|&index| index < all.len());
        let index = match near {
            // The parent itself is one; with nobody else there, the child may take its CPU.
            Some(index) if all[index].running.load(Ordering::Relaxed) <= 1 => index,
            _ => idlest(&[]).0,
        };
        all[index].running.fetch_add(1, Ordering::Relaxed);
        PLACE.set(Some(index));
        let since = Instant::now();
        let place = Place { index, stub, since, scheduling: Arc::default(), version: 0, mask: Vec::new() };
        place.pin();
        place
    }

    /// Another stub thread takes the place of the old one.
    pub fn replace_stub(&mut self, stub: i32) {
        self.stub = stub;
        pin_thread(stub, &[cpus()[self.index].id]);
        self.weigh();
    }

    fn pin(&self) {
        let cpu = cpus()[self.index].id;
        pin_thread(0, &[cpu]);
        pin_thread(self.stub, &[cpu]);
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
        if !allows(&self.mask, self.index) {
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
        let all = cpus();
        all[index].running.fetch_add(1, Ordering::Relaxed);
        all[self.index].running.fetch_sub(1, Ordering::Relaxed);
        self.index = index;
        PLACE.set(Some(index));
        self.pin();
    }

    /// Moves the pair if it may not be where it is, or if it has company and another CPU has nobody. Costs two loads when it
    /// may and has none.
    pub fn consider_moving(&mut self) {
        let version = self.scheduling.version.load(Ordering::Acquire);
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
        cpus()[self.index].running.fetch_sub(1, Ordering::Relaxed);
        PLACE.set(None);
    }
}

/// Whether a mask allows a CPU.
fn allows(mask: &[u8], index: usize) -> bool {
    mask.is_empty() || mask.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 != 0)
}

/// The index of the CPU with the fewest running pairs, of those that `mask` allows, and how many those are.
fn idlest(mask: &[u8]) -> (usize, usize) {
    let counts = cpus().iter().map(|cpu| cpu.running.load(Ordering::Relaxed)).enumerate();
    let counts = counts.filter(|&(index, _)| allows(mask, index));
    counts.min_by_key(|&(_, running)| running).unwrap_or((0, 0))
}

fn pin_thread(tid: i32, to: &[usize]) {
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

/// Held by a sentry thread while it sleeps: its CPU counts as free.
pub struct Blocking {
    index: Option<usize>,
}

/// The calling thread is about to sleep.
pub fn blocking() -> Blocking {
    let index = PLACE.get();
    if let Some(index) = index {
        cpus()[index].running.fetch_sub(1, Ordering::Relaxed);
    }
    Blocking { index }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        if let Some(index) = self.index {
            cpus()[index].running.fetch_add(1, Ordering::Relaxed);
        }
    }
}
