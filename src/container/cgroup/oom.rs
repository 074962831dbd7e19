//! Want of memory: who is killed for it, and how it is noticed.
//!
//! The host's OOM killer takes the process with the highest score, `proc_pid_oom_score_adj(5)`. The sentry and the gofer are
//! kept out of its way as far as possible, since the container could not go on without them; a stub that it takes is a
//! process of the container that was killed by SIGKILL, as on Linux.

use std::fs;
use std::io;

use super::processes::family;
use crate::container::error::{Context, Error, Result};

/// The sentry's and the gofer's: the last to be taken. At -1000 they never would be, though a container can fill memory
/// that belongs to no stub (files in memory), and the host must be able to get it back.
const OURS: i32 = -999;

/// Protects a process of the sandbox's own. Where root may not (no CAP_SYS_RESOURCE), it is left as it is.
pub fn protect(pid: i32) -> Result<()> {
    match set(pid, OURS) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
            log::warn!("the sandbox is not protected from the host's OOM killer: {error}");
            Ok(())
        }
        done => done.doing(|| format!("set oom_score_adj of process {pid}")),
    }
}

/// Gives the stubs of `sentry`, which hold the container's memory, `process.oomScoreAdj`, or else this process's own. To be
/// called once the first one is there and before it runs: those that are made later inherit it.
pub fn expose_stubs(sentry: i32, adjustment: Option<i32>) -> Result<()> {
    let adjustment = match adjustment {
        Some(adjustment) => adjustment,
        None => get("self").doing(|| "read oom_score_adj")?,
    };
    // As for moving a family into a cgroup: until a pass finds nothing to do.
    loop {
        let stubs = family(sentry).into_iter().skip(1);
        let other: Vec<i32> = stubs.filter(|pid| get(&pid.to_string()).is_ok_and(|now| now != adjustment)).collect();
        if other.is_empty() {
            return Ok(());
        }
        for pid in other {
            match set(pid, adjustment) {
                Err(error) if is_gone(&error) => {}
                done => done.map_err(|error| refused(adjustment, &error))?,
            }
        }
    }
}

fn refused(adjustment: i32, error: &io::Error) -> Error {
    Error::Usage(format!("process.oomScoreAdj: {adjustment}: {}", crate::errno::describe(error)))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn get(pid: &str) -> io::Result<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn set(pid: i32, adjustment: i32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), adjustment.to_string())
}
