//! What a task has used: `getrusage(2)`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::sentry::task::{Task, ThreadGroup};
use crate::sentry::time::CpuUsage;
use crate::timer::clock::{ticks, ticks_to_ns};

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
    /// What it has read and written.
    pub io: IoCounts,
}

/// What calls have read and written, whatever the files: `proc_pid_io(5)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounts {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Calls that read.
    pub reads: u64,
    /// Calls that write.
    pub writes: u64,
}

impl IoCounts {
    fn plus(self, other: IoCounts) -> IoCounts {
        IoCounts {
            read_bytes: self.read_bytes.saturating_add(other.read_bytes),
            written_bytes: self.written_bytes.saturating_add(other.written_bytes),
            reads: self.reads.saturating_add(other.reads),
            writes: self.writes.saturating_add(other.writes),
        }
    }
}

impl Usage {
    /// The sum; the larger of the two sizes.
    pub fn plus(self, other: Usage) -> Usage {
        Usage {
            user_ns: self.user_ns.saturating_add(other.user_ns),
            system_ns: self.system_ns.saturating_add(other.system_ns),
            max_rss_kib: self.max_rss_kib.max(other.max_rss_kib),
            voluntary_switches: self.voluntary_switches.saturating_add(other.voluntary_switches),
            io: self.io.plus(other.io),
        }
    }
}

/// What a task has used: its code's time is what it spent running (the host does not tell the CPU clock of one thread of
/// another process, so time that the host gave to others meanwhile counts too), the system's is its sentry thread's.
#[derive(Default)]
pub struct TaskClocks {
    system_tid: AtomicI32,
    /// What the code has used, in ticks. While it runs, with [`RUNNING`], less the moment at which it began: one word, so that who
    /// reads never counts a stretch twice or not at all.
    user: AtomicU64,
    /// What the sentry thread had used when the task began: it may have answered for others.
    began_system_ns: AtomicU64,
    /// What it had used for the task when that ended.
    ended_system_ns: AtomicU64,
    switches: AtomicU64,
    reads: Moved,
    writes: Moved,
}

/// Calls, and the bytes that they moved.
#[derive(Default)]
struct Moved {
    calls: AtomicU64,
    bytes: AtomicU64,
}

impl Moved {
    /// Only the task's own thread counts, so no other's count can be lost.
    fn count(&self, bytes: u64) {
        self.calls.store(self.calls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.bytes.store(self.bytes.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
    }
}

/// In [`TaskClocks::user`]: the code runs.
const RUNNING: u64 = 1 << 63;

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
        let tid = unsafe { libc::gettid() };
        self.began_system_ns.store(cpu_time(tid), Ordering::Relaxed);
        self.system_tid.store(tid, Ordering::Relaxed);
    }

    /// The calling thread answers no more.
    pub fn ended(&self) {
        let tid = self.system_tid.swap(0, Ordering::Relaxed);
        self.ended_system_ns.store(self.since_begun(tid), Ordering::Relaxed);
    }

    fn since_begun(&self, tid: i32) -> u64 {
        cpu_time(tid).saturating_sub(self.began_system_ns.load(Ordering::Relaxed))
    }

    /// The task's code is about to run. Only the task's own thread calls this and [`TaskClocks::stops`].
    pub fn runs(&self) {
        let used = self.user.load(Ordering::Relaxed);
        self.user.store(used.wrapping_sub(ticks()) | RUNNING, Ordering::Relaxed);
    }

    /// The task's code has stopped.
    pub fn stops(&self) {
        self.user.store(self.user_ticks(), Ordering::Relaxed);
    }

    fn user_ns(&self) -> u64 {
        ticks_to_ns(self.user_ticks())
    }

    fn user_ticks(&self) -> u64 {
        match self.user.load(Ordering::Relaxed) {
            since if since & RUNNING != 0 => since.wrapping_add(ticks()) & !RUNNING,
            used => used,
        }
    }

    /// Counts a sleep.
    pub fn slept(&self) {
        self.switches.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a call that has read so many bytes.
    pub fn has_read(&self, bytes: u64) {
        self.reads.count(bytes);
    }

    /// Counts a call that has written so many bytes.
    pub fn has_written(&self, bytes: u64) {
        self.writes.count(bytes);
    }

    /// Used so far.
    pub fn usage(&self) -> Usage {
        let tid = self.system_tid.load(Ordering::Relaxed);
        let running = if tid == 0 { 0 } else { self.since_begun(tid) };
        Usage {
            user_ns: self.user_ns(),
            system_ns: running.max(self.ended_system_ns.load(Ordering::Relaxed)),
            max_rss_kib: 0,
            voluntary_switches: self.switches.load(Ordering::Relaxed),
            io: IoCounts {
                read_bytes: self.reads.bytes.load(Ordering::Relaxed),
                written_bytes: self.writes.bytes.load(Ordering::Relaxed),
                reads: self.reads.calls.load(Ordering::Relaxed),
                writes: self.writes.calls.load(Ordering::Relaxed),
            },
        }
    }
}

/// The clocks of a process's threads. Apart from the list of threads, as timers on CPU time ask with the locks of signals
/// held; leaf lock.
#[derive(Default)]
pub struct GroupClocks(Mutex<Clocks>);

#[derive(Default)]
struct Clocks {
    running: Vec<Arc<TaskClocks>>,
    /// What ended threads have used.
    ended: Usage,
}

impl GroupClocks {
    /// A thread begins.
    pub fn enter(&self, clocks: &Arc<TaskClocks>) {
        self.0.lock().running.push(clocks.clone());
    }

    /// A thread has ended, and has used so much.
    pub fn leave(&self, clocks: &Arc<TaskClocks>, used: Usage) {
        let mut all = self.0.lock();
        all.running.retain(|other| !Arc::ptr_eq(other, clocks));
        all.ended = all.ended.plus(used);
    }

    /// What all threads have used so far.
    pub fn usage(&self) -> Usage {
        let all = self.0.lock();
        all.running.iter().fold(all.ended, |sum, clocks| sum.plus(clocks.usage()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timer::clock::monotonic;

    #[test]
    fn code_that_runs_is_counted_before_it_stops() {
        // The rate of ticks is known exactly once the process has run for a while.
        let settled = monotonic() + 100_000_000;
        while monotonic() < settled {
            ticks_to_ns(1);
        }
        let clocks = Arc::new(TaskClocks::default());
        let group = GroupClocks::default();
        group.enter(&clocks);
        clocks.runs();
        let begun = group.usage().user_ns;
        let until = monotonic() + 1_000_000;
        while monotonic() < until {}
        let running = group.usage().user_ns;
        assert!(running >= begun + 900_000);
        clocks.stops();
        let stopped = group.usage().user_ns;
        assert!(stopped >= running);
        assert_eq!(group.usage().user_ns, stopped);
        group.leave(&clocks, clocks.usage());
        assert_eq!(group.usage().user_ns, stopped);
    }
}
