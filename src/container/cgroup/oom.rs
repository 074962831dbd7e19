//! Want of memory: who is killed for it, and how it is noticed.
//!
//! The host's OOM killer takes the process with the highest score, `proc_pid_oom_score_adj(5)`. The sentry and the gofer are
//! kept out of its way as far as possible, since the container could not go on without them; a stub that it takes is a
//! process of the container that was killed by SIGKILL, as on Linux.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::processes::family;
use super::{Cgroup, Place};
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
    set_stubs(sentry, adjustment, |now, wanted| now != wanted)
}

/// As [`expose_stubs`], for those that would go later.
pub fn raise_stubs(sentry: i32, adjustment: Option<i32>) -> Result<()> {
    set_stubs(sentry, adjustment, |now, wanted| now < wanted)
}

fn set_stubs(sentry: i32, adjustment: Option<i32>, is_due: impl Fn(i32, i32) -> bool) -> Result<()> {
    let adjustment = match adjustment {
        Some(adjustment) => adjustment,
        None => get("self").doing(|| "read oom_score_adj")?,
    };
    // As for moving a family into a cgroup: until a pass finds nothing to do.
    loop {
        let stubs = family(sentry).into_iter().skip(1);
        let other: Vec<i32> =
            stubs.filter(|pid| get(&pid.to_string()).is_ok_and(|now| is_due(now, adjustment))).collect();
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

/// How long after v1's notification the kill may be counted.
const GRACE: Duration = Duration::from_secs(1);

/// Notices kills for want of memory.
pub struct OomEvents {
    /// An eventfd (v1) or an inotify descriptor (v2).
    fd: OwnedFd,
    /// v1's control file, held open as its notification asks.
    control: Option<File>,
    /// The kills that have been told.
    told: u64,
    /// A notification of v1, which comes before the kill, is still without one; until when it is waited for.
    awaited: Option<Instant>,
}

impl OomEvents {
    /// Starts watching; `None` without a memory controller. v1: `cgroup.event_control` with `memory.oom_control`; v2:
    /// changes of `memory.events`.
    pub fn watch(cgroup: &Cgroup) -> Result<Option<OomEvents>> {
        let doing = || "watch for processes killed for want of memory";
        let (fd, control) = match cgroup.place("memory") {
            None => return Ok(None),
            Some(Place::V1(dir)) => {
                let event: OwnedFd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                    .map_err(io::Error::from)
                    .doing(doing)?
                    .into();
                let control = File::open(dir.0.join("memory.oom_control")).doing(doing)?;
                let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
                dir.write("cgroup.event_control", line).doing(doing)?;
                (event, Some(control))
            }
            Some(Place::V2(dir)) => (inotify(&dir.0.join("memory.events")).doing(doing)?, None),
        };
        let told = cgroup.oom_count().unwrap_or(0);
        Ok(Some(OomEvents { fd, control, told, awaited: None }))
    }

    /// What becomes readable when there may be some.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// When to look again, though nothing may be readable.
    pub fn again_in(&self) -> Option<Duration> {
        self.awaited.map(|_| Duration::from_millis(1))
    }

    /// How many there were since the last time. In v1 a cgroup that is out of memory and whose OOM killer is off counts too,
    /// as with runc.
    pub fn take(&mut self, cgroup: &Cgroup) -> u64 {
        let notified = self.drain();
        let Some(count) = cgroup.oom_count() else {
            // It went before its kill was seen. (Its end is notified too, when there is no count any more.)
            return u64::from(self.awaited.take().is_some());
        };
        let new = count.saturating_sub(self.told);
        self.told = count;
        if new > 0 {
            self.awaited = None;
            return new;
        }
        if notified && self.control.is_some() {
            self.awaited.get_or_insert_with(|| Instant::now() + GRACE);
        }
        match self.awaited.take_if(|until| Instant::now() >= *until) {
            Some(_) => u64::from(cgroup.is_under_oom()),
            None => 0,
        }
    }

    /// Whether there was a notification.
    fn drain(&self) -> bool {
        let mut buffer = [0u8; 4096];
        let mut any = false;
        while nix::unistd::read(&self.fd, &mut buffer).is_ok_and(|n| n > 0) {
            any = true;
        }
        any
    }
}

impl Cgroup {
    fn is_under_oom(&self) -> bool {
        match self.place("memory") {
            Some(Place::V1(dir)) => dir.entry("memory.oom_control", "under_oom") == Some(1),
            _ => false,
        }
    }
}

fn inotify(file: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(file.as_os_str().as_bytes())?;
    // SAFETY: the result is a new descriptor or -1.
    let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the path is NUL-terminated.
    match unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), libc::IN_MODIFY) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(fd),
    }
}
