//! What a task has used: `getrusage(2)`.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::sentry::task::{Task, ThreadGroup};
use crate::sentry::time::CpuUsage;

/// Resources used, in nanoseconds and counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of the container's code.
    pub user_ns: u64,
    /// CPU time of the sentry on its behalf.
    pub system_ns: u64,
    /// Largest resident size, in KiB.
    pub max_rss_kib: u64,
    /// Times it slept.
    pub voluntary_switches: u64,
}

impl Usage {
    /// The sum; the larger of the two sizes.
    pub fn plus(self, other: Usage) -> Usage {
        Usage {
            user_ns: self.user_ns.saturating_add(other.user_ns),
            system_ns: self.system_ns.saturating_add(other.system_ns),
            max_rss_kib: self.max_rss_kib.max(other.max_rss_kib),
            voluntary_switches: self.voluntary_switches.saturating_add(other.voluntary_switches),
        }
    }
}

/// What a task has used: its code's time is what it spent running (the host does not tell the CPU clock of one thread of
/// another process, so time that the host gave to others meanwhile counts too), the system's is its sentry thread's.
#[derive(Default)]
pub struct TaskClocks {
    system_tid: AtomicI32,
    user_ns: AtomicU64,
    /// What the sentry thread had used when the task ended.
    ended_system_ns: AtomicU64,
    switches: AtomicU64,
}

/// The CPU time of one of this process's threads, in nanoseconds: `pthread_getcpuclockid(3)`, without a thread handle.
fn cpu_time(tid: i32) -> u64 {
    let clock = (!tid << 3) | 6;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid for the call.
    let done = unsafe { libc::clock_gettime(clock, &mut time) };
    if done == 0 { time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64 } else { 0 }
}

impl TaskClocks {
    /// The calling thread answers for the task from now on.
    pub fn started(&self) {
        // SAFETY: takes no memory.
        self.system_tid.store(unsafe { libc::gettid() }, Ordering::Relaxed);
    }

    /// The calling thread answers no more.
    pub fn ended(&self) {
        let tid = self.system_tid.swap(0, Ordering::Relaxed);
        self.ended_system_ns.store(cpu_time(tid), Ordering::Relaxed);
    }

    /// The task's code has run for so long.
    pub fn ran(&self, ns: u64) {
        // Only the task's own thread adds.
        self.user_ns.store(self.user_ns.load(Ordering::Relaxed).saturating_add(ns), Ordering::Relaxed);
    }

    /// Counts a sleep.
    pub fn slept(&self) {
        self.switches.fetch_add(1, Ordering::Relaxed);
    }

    /// Used so far.
    pub fn usage(&self) -> Usage {
        let tid = self.system_tid.load(Ordering::Relaxed);
        let running = if tid == 0 { 0 } else { cpu_time(tid) };
        Usage {
            user_ns: self.user_ns.load(Ordering::Relaxed),
            system_ns: running.max(self.ended_system_ns.load(Ordering::Relaxed)),
            max_rss_kib: 0,
            voluntary_switches: self.switches.load(Ordering::Relaxed),
        }
    }
}

impl CpuUsage for Task {
    fn cpu_time(&self) -> (u64, u64) {
        let usage = self.usage();
        (usage.user_ns, usage.system_ns)
    }
}

impl CpuUsage for ThreadGroup {
    fn cpu_time(&self) -> (u64, u64) {
        let usage = self.usage();
        (usage.user_ns, usage.system_ns)
    }
}
