//! The cgroup on the host that a container has to itself, apart from its sandbox's.
//!
//! Stubs begin as copies of one that is in the sandbox's cgroup. Those of a further container of a pod are moved to the
//! container's own before they run a program, and what they fork is there from the start. So the memory and the CPU time of
//! its programs count there, and when there is no more memory it is one of its processes that is killed.
//!
//! The sentry could not open the cgroup's files. It is given them open, and the kernel looks at who opened them.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// The files that a process is put into the cgroup by, `cgroups(7)`: one a hierarchy.
pub struct Home {
    procs: Vec<File>,
    failed: AtomicBool,
}

impl Home {
    /// By its `cgroup.procs`, open for writing.
    pub fn new(procs: Vec<File>) -> Home {
        Home { procs, failed: AtomicBool::new(false) }
    }

    /// Puts a host process there, by its number in the sentry's PID namespace. One that cannot be stays in the sandbox's, whose
    /// limits hold for it then; that is said once.
    pub fn take_in(&self, pid: i32) {
        let line = format!("{pid}\n");
        let moved = self.procs.iter().try_for_each(|mut procs| procs.write_all(line.as_bytes()));
        match moved {
            // It has been killed meanwhile.
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) && !self.failed.swap(true, Ordering::Relaxed) => {
                log::warn!("a container's processes stay in the cgroup of its pod's first one: {error}");
            }
            _ => {}
        }
    }
}
