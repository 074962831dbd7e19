//! Resource limits: `getrlimit(2)`.

use crate::errno::{Errno, Result};

/// A soft and a hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is enforced.
    pub soft: u64,
    /// How far the soft one may be raised.
    pub hard: u64,
}

/// `RLIM_INFINITY`.
pub const INFINITY: u64 = u64::MAX;

/// How many there are.
pub const COUNT: usize = 16;

/// The limits of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits([Limit; COUNT]);

impl Default for Limits {
    /// What Linux gives its first process, on a machine of middling size.
    fn default() -> Limits {
        let mut limits = [Limit { soft: INFINITY, hard: INFINITY }; COUNT];
        let mut set = |which: u32, soft, hard| limits[which as usize] = Limit { soft, hard };
        set(libc::RLIMIT_STACK, 8 << 20, INFINITY);
        set(libc::RLIMIT_CORE, 0, INFINITY);
        set(libc::RLIMIT_NPROC, 16384, 16384);
        set(libc::RLIMIT_NOFILE, 1024, 1 << 20);
        set(libc::RLIMIT_MEMLOCK, 8 << 20, 8 << 20);
        set(libc::RLIMIT_SIGPENDING, 16384, 16384);
        set(libc::RLIMIT_MSGQUEUE, 819_200, 819_200);
        set(libc::RLIMIT_NICE, 0, 0);
        set(libc::RLIMIT_RTPRIO, 0, 0);
        Limits(limits)
    }
}

impl Limits {
    /// One, by its `RLIMIT_*`. `EINVAL`.
    pub fn get(&self, which: u32) -> Result<Limit> {
        self.0.get(which as usize).copied().ok_or(Errno::EINVAL)
    }

    /// The soft limit of a `RLIMIT_*` constant.
    pub fn soft(&self, which: libc::__rlimit_resource_t) -> u64 {
        self.0[which as usize].soft
    }

    /// Changes one. `EINVAL`: no such limit, soft beyond hard. `EPERM`: a hard limit raised without `privileged`
    /// (`CAP_SYS_RESOURCE`), or `RLIMIT_NOFILE` beyond what any table holds.
    pub fn set(&mut self, which: u32, limit: Limit, privileged: bool) -> Result<()> {
        let old = self.0.get_mut(which as usize).ok_or(Errno::EINVAL)?;
        if limit.soft > limit.hard {
            return Err(Errno::EINVAL);
        }
        if limit.hard > old.hard && !privileged {
            return Err(Errno::EPERM);
        }
        if which == libc::RLIMIT_NOFILE && limit.hard > super::fdtable::NR_OPEN {
            return Err(Errno::EPERM);
        }
        *old = limit;
        Ok(())
    }
}
