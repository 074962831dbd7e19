//! `wait4(2)`, `waitid(2)`, `getrusage(2)`, `times(2)`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::errno::{Errno, Result};
use crate::sentry::mm::user::UserPtr;
use crate::sentry::signal::{ChildExit, SigInfo};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::pidfd::PidFd;
use crate::sentry::task::usage::Usage;
use crate::sentry::task::wait::{Waited, Which};
use crate::sentry::task::{Current, boottime_ns};

/// `struct rusage`.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Rusage {
    utime: [i64; 2],
    stime: [i64; 2],
    maxrss: i64,
    /// Not kept: the host's faults, swaps and signals are not the container's.
    rest: [i64; 11],
    nvcsw: i64,
    nivcsw: i64,
}

impl From<Usage> for Rusage {
    fn from(usage: Usage) -> Rusage {
        let timeval = |ns: u64| [(ns / 1_000_000_000) as i64, (ns / 1000 % 1_000_000) as i64];
        Rusage {
            utime: timeval(usage.user_ns),
            stime: timeval(usage.system_ns),
            maxrss: usage.max_rss_kib as i64,
            nvcsw: usage.voluntary_switches as i64,
            ..Rusage::default()
        }
    }
}

fn by_pid(cur: &Current, pid: i32) -> Result<Which> {
    Ok(match pid {
        -1 => Which::Any,
        0 => Which::Group(own_group(cur)?),
        i32::MIN => return Err(Errno::ESRCH),
        pid if pid < 0 => Which::Group(-pid),
        pid => Which::Process(pid),
    })
}

fn own_group(cur: &Current) -> Result<i32> {
    cur.kernel.tree.lock().node(cur.pid()).map(|node| node.pgid).ok_or(Errno::ESRCH)
}

/// `wait4(2)`. `EINVAL`, `ECHILD`, `ESRCH`, `EFAULT`, `ERESTARTSYS`.
pub fn wait4(cur: &mut Current, pid: i32, status: UserPtr<i32>, options: i32, usage: UserPtr<Rusage>) -> SysResult {
    let kinds = libc::__WNOTHREAD | libc::__WALL | libc::__WCLONE;
    if options & !(libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED | kinds) != 0 {
        return Err(Errno::EINVAL);
    }
    let which = by_pid(cur, pid)?;
    let Some(waited) = cur.wait_child(&which, options | libc::WEXITED)? else { return Ok(0) };
    status.write_if(cur.space(), &waited.what.wait_status())?;
    usage.write_if(cur.space(), &waited.usage.into())?;
    Ok(waited.pid as u64)
}

/// `P_PIDFD`.
const P_PIDFD: i32 = 3;

/// `waitid(2)`. Returns 0; `info` tells the rest. `EINVAL`, `EBADF`, `ECHILD`, `EFAULT`, `EAGAIN` (a nonblocking pidfd).
pub fn waitid(
    cur: &mut Current,
    kind: i32,
    id: i32,
    info: UserPtr<[u8; 128]>,
    options: i32,
    usage: UserPtr<Rusage>,
) -> SysResult {
    let wanted = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED;
    let kinds = libc::__WNOTHREAD | libc::__WALL | libc::__WCLONE;
    if options & !(libc::WNOHANG | libc::WNOWAIT | wanted | kinds) != 0 || options & wanted == 0 {
        return Err(Errno::EINVAL);
    }
    let mut options = options;
    let mut nonblocking = false;
    let which = match kind as u32 {
        libc::P_ALL => Which::Any,
        libc::P_PID if id > 0 => Which::Process(id),
        libc::P_PGID if id >= 0 => Which::Group(if id == 0 { own_group(cur)? } else { id }),
        _ if kind == P_PIDFD && id >= 0 => {
            let file = cur.file(Fd(id))?;
            nonblocking = file.nonblocking();
            Which::Process(file.downcast::<PidFd>().ok_or(Errno::EBADF)?.group().pid())
        }
        _ => return Err(Errno::EINVAL),
    };
    if nonblocking {
        options |= libc::WNOHANG;
    }
    let waited = cur.wait_child(&which, options)?;
    if waited.is_none() && nonblocking {
        return Err(Errno::EAGAIN);
    }
    if let Some(waited) = &waited {
        usage.write_if(cur.space(), &waited.usage.into())?;
    }
    info.write_if(cur.space(), &waited.map_or([0; 128], |waited| *child_info(&waited).as_bytes()))?;
    Ok(0)
}

/// What `waitid(2)` stores. It has no CPU times.
fn child_info(waited: &Waited) -> SigInfo {
    let (code, status) = waited.what.code_and_status();
    SigInfo::child(&ChildExit { code, pid: waited.pid, uid: waited.uid, status, utime: 0, stime: 0 })
}

/// `getrusage(2)`. `EINVAL`, `EFAULT`.
pub fn getrusage(cur: &mut Current, who: i32, usage: UserPtr<Rusage>) -> SysResult {
    let used = match who {
        libc::RUSAGE_SELF => cur.group.usage().plus(Usage { max_rss_kib: resident_kib(cur), ..Usage::default() }),
        libc::RUSAGE_THREAD => Usage { max_rss_kib: resident_kib(cur), ..cur.usage() },
        libc::RUSAGE_CHILDREN => children_usage(cur),
        _ => return Err(Errno::EINVAL),
    };
    usage.write(cur.space(), &used.into())?;
    Ok(0)
}

/// What the memory takes at most: the host's count is out of reach.
fn resident_kib(cur: &Current) -> u64 {
    cur.mm().map_or(0, |mm| mm.sizes().resident / 1024)
}

fn children_usage(cur: &Current) -> Usage {
    cur.kernel.tree.lock().node(cur.pid()).map(|node| node.children_usage).unwrap_or_default()
}

/// `times(2)`: clock ticks of 10 ms.
pub fn times(cur: &mut Current, buf: UserPtr<[i64; 4]>) -> SysResult {
    const NS_PER_TICK: u64 = 10_000_000;
    let (own, children) = (cur.group.usage(), children_usage(cur));
    let ticks = [own.user_ns, own.system_ns, children.user_ns, children.system_ns].map(|ns| (ns / NS_PER_TICK) as i64);
    buf.write_if(cur.space(), &ticks)?;
    Ok(boottime_ns() / NS_PER_TICK)
}
