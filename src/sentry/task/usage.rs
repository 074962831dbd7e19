//! What a task has used: `getrusage(2)`.

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

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// The CPU clocks of the two host threads of a task: one runs its code, the other answers its calls.
#[derive(Default)]
pub struct TaskClocks {
    user_tid: AtomicI32,
    system_tid: AtomicI32,
    /// What earlier user threads used, which `execve(2)` has replaced.
    earlier_user_ns: AtomicU64,
    switches: AtomicU64,
}

/// The CPU time of a host thread, in nanoseconds: `pthread_getcpuclockid(3)`, without a thread handle.
fn cpu_time(tid: i32) -> u64 {
    if tid == 0 {
        return 0;
    }
    let clock = (!tid << 3) | 6;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid for the call.
    let done = unsafe { libc::clock_gettime(clock, &mut time) };
    if done == 0 { time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64 } else { 0 }
}

impl TaskClocks {
    /// The calling thread answers for the user thread `user_tid` from now on.
    pub fn started(&self, user_tid: i32) {
        // SAFETY: takes no memory.
        self.system_tid.store(unsafe { libc::gettid() }, Ordering::Relaxed);
        self.user_tid.store(user_tid, Ordering::Relaxed);
    }

    /// Another user thread is about to take the place of the old one.
    pub fn user_ending(&self) {
        let used = cpu_time(self.user_tid.swap(0, Ordering::Relaxed));
        self.earlier_user_ns.fetch_add(used, Ordering::Relaxed);
    }

    /// Counts a sleep.
    pub fn slept(&self) {
        self.switches.fetch_add(1, Ordering::Relaxed);
    }

    /// Used so far.
    pub fn usage(&self) -> Usage {
        let user = cpu_time(self.user_tid.load(Ordering::Relaxed));
        Usage {
            user_ns: user.saturating_add(self.earlier_user_ns.load(Ordering::Relaxed)),
            system_ns: cpu_time(self.system_tid.load(Ordering::Relaxed)),
            max_rss_kib: 0,
            voluntary_switches: self.switches.load(Ordering::Relaxed),
        }
    }
}
