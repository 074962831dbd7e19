//! `prctl(2)`, `personality(2)`.

use std::sync::atomic::Ordering;

use super::creds::{KEEP_CAPS, NO_CAP_AMBIENT_RAISE};
use crate::errno::{Errno, Result};
use crate::sentry::creds::{Caps, Credentials, LAST_CAP};
use crate::sentry::mm::user::{UserPtr, UserSlice, UserStr};
use crate::sentry::signal::Signal;
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::Current;

const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_GET_AUXV: i32 = 0x4155_5856;
/// All securebits and their locks.
const SECUREBITS: u32 = 0xff;

/// `prctl(2)`. `EINVAL` for operations that there are not, and those of hardware that there is not; others as there.
pub fn prctl(cur: &mut Current, op: i32, a2: u64, a3: u64, a4: u64, a5: u64) -> SysResult {
    let unused = |args: &[u64]| if args.iter().all(|&arg| arg == 0) { Ok(()) } else { Err(Errno::EINVAL) };
    match op {
        libc::PR_SET_NAME => {
            let name = UserStr::new(a2).read(cur.space(), 16)?;
            let name = match name {
                Some(name) => name,
                None => UserSlice::new(a2, 15).read(cur.space())?,
            };
            cur.set_name(&name);
            Ok(0)
        }
        libc::PR_GET_NAME => {
            let mut name = [0u8; 16];
            let own = cur.name();
            name[..own.len()].copy_from_slice(&own);
            UserPtr::new(a2).write(cur.space(), &name).map(|()| 0)
        }
        libc::PR_SET_PDEATHSIG => {
            if a2 != 0 {
                Signal::new(a2 as i32)?;
            }
            with_node(cur, |node| node.death_signal = a2 as i32)
        }
        libc::PR_GET_PDEATHSIG => {
            let signal = cur.kernel.tree.lock().node(cur.pid()).map_or(0, |node| node.death_signal);
            UserPtr::new(a2).write(cur.space(), &signal).map(|()| 0)
        }
        libc::PR_SET_DUMPABLE if a2 <= 1 => {
            cur.mm()?.set_dumpable(a2 as u8);
            Ok(0)
        }
        libc::PR_GET_DUMPABLE => Ok(cur.mm()?.dumpable().into()),
        libc::PR_SET_CHILD_SUBREAPER => with_node(cur, |node| node.subreaper = a2 != 0),
        libc::PR_GET_CHILD_SUBREAPER => {
            let is = cur.kernel.tree.lock().node(cur.pid()).is_some_and(|node| node.subreaper);
            UserPtr::new(a2).write(cur.space(), &i32::from(is)).map(|()| 0)
        }
        libc::PR_SET_NO_NEW_PRIVS => {
            unused(&[a3, a4, a5])?;
            if a2 != 1 {
                return Err(Errno::EINVAL);
            }
            change(cur, |creds| creds.no_new_privs = true)
        }
        libc::PR_GET_NO_NEW_PRIVS => {
            unused(&[a2, a3, a4, a5])?;
            Ok(cur.creds().no_new_privs.into())
        }
        libc::PR_SET_KEEPCAPS if a2 <= 1 => change(cur, |creds| {
            creds.securebits = (creds.securebits & !KEEP_CAPS) | if a2 == 1 { KEEP_CAPS } else { 0 };
        }),
        libc::PR_GET_KEEPCAPS => Ok((cur.creds().securebits & KEEP_CAPS != 0).into()),
        libc::PR_SET_SECUREBITS => set_securebits(cur, a2),
        libc::PR_GET_SECUREBITS => Ok(cur.creds().securebits.into()),
        libc::PR_CAPBSET_READ => Ok(cur.creds().bounding.contains(cap(a2)?).into()),
        libc::PR_CAPBSET_DROP => {
            cur.require(Caps::SETPCAP)?;
            let dropped = cap(a2)?;
            change(cur, |creds| creds.bounding &= !dropped)
        }
        libc::PR_CAP_AMBIENT => ambient(cur, a2, a3, a4, a5),
        libc::PR_SET_TIMERSLACK => {
            cur.timer_slack.store(if a2 == 0 { 50_000 } else { a2 }, Ordering::Relaxed);
            Ok(0)
        }
        libc::PR_GET_TIMERSLACK => Ok(cur.timer_slack.load(Ordering::Relaxed)),
        libc::PR_SET_THP_DISABLE | libc::PR_GET_THP_DISABLE => {
            unused(&[a3, a4, a5])?;
            Ok(0)
        }
        libc::PR_MCE_KILL_GET => Ok(2), // PR_MCE_KILL_DEFAULT
        libc::PR_GET_TSC => UserPtr::new(a2).write(cur.space(), &libc::PR_TSC_ENABLE).map(|()| 0),
        libc::PR_GET_TIMING => Ok(0),
        PR_SET_VMA => set_vma(cur, a2, a3, a4, a5),
        libc::PR_SET_MM => set_mm(cur, a2 as i32, a3, a4),
        PR_GET_AUXV => {
            let auxv = cur.mm()?.auxv();
            UserSlice::new(a2, a3 as usize).write_truncated(cur.space(), &auxv)?;
            Ok(auxv.len() as u64)
        }
        libc::PR_GET_SECCOMP => Ok(cur.seccomp.mode().into()),
        libc::PR_SET_SECCOMP => super::seccomp::prctl(cur, a2, a3),
        _ => {
            log::debug!("prctl {op} is not supported");
            Err(Errno::EINVAL)
        }
    }
}

fn with_node(cur: &Current, change: impl FnOnce(&mut crate::sentry::task::tree::Node)) -> SysResult {
    let mut tree = cur.kernel.tree.lock();
    change(tree.node_mut(cur.pid()).ok_or(Errno::ESRCH)?);
    Ok(0)
}

fn change(cur: &Current, change: impl FnOnce(&mut Credentials)) -> SysResult {
    let mut creds = (*cur.creds()).clone();
    change(&mut creds);
    cur.set_creds(creds);
    Ok(0)
}

fn cap(number: u64) -> Result<Caps> {
    if number > LAST_CAP.into() { Err(Errno::EINVAL) } else { Ok(Caps::from_bits_truncate(1 << number)) }
}

/// `PR_SET_SECUREBITS`: locks are never undone, and what is locked does not change.
fn set_securebits(cur: &Current, bits: u64) -> SysResult {
    let old = cur.creds().securebits;
    let new = u32::try_from(bits).map_err(|_| Errno::EPERM)?;
    // Each bit's lock is the next one up.
    let locked = (old & 0xaa) >> 1;
    let locks_kept = (old & 0xaa) & !new == 0;
    if new & !SECUREBITS != 0 || (old ^ new) & locked != 0 || !locks_kept || !cur.has_cap(Caps::SETPCAP) {
        return Err(Errno::EPERM);
    }
    change(cur, |creds| creds.securebits = new)
}

fn ambient(cur: &Current, op: u64, number: u64, a4: u64, a5: u64) -> SysResult {
    if a4 != 0 || a5 != 0 {
        return Err(Errno::EINVAL);
    }
    if op == libc::PR_CAP_AMBIENT_CLEAR_ALL as u64 {
        if number != 0 {
            return Err(Errno::EINVAL);
        }
        return change(cur, |creds| creds.ambient = Caps::empty());
    }
    let cap = cap(number)?;
    let creds = cur.creds();
    if op == libc::PR_CAP_AMBIENT_IS_SET as u64 {
        Ok(creds.ambient.contains(cap).into())
    } else if op == libc::PR_CAP_AMBIENT_LOWER as u64 {
        change(cur, |creds| creds.ambient &= !cap)
    } else if op == libc::PR_CAP_AMBIENT_RAISE as u64 {
        let held = creds.permitted.contains(cap) && creds.inheritable.contains(cap);
        if !held || creds.securebits & NO_CAP_AMBIENT_RAISE != 0 {
            return Err(Errno::EPERM);
        }
        change(cur, |creds| creds.ambient |= cap)
    } else {
        Err(Errno::EINVAL)
    }
}

/// The longest name of a mapping, its NUL included.
const NAME_MAX: usize = 80;

fn set_vma(cur: &Current, op: u64, addr: u64, len: u64, name: u64) -> SysResult {
    if op != libc::PR_SET_VMA_ANON_NAME as u64 {
        return Err(Errno::EINVAL);
    }
    let name = match name {
        0 => None,
        name => Some(UserStr::new(name).read(cur.space(), NAME_MAX)?.ok_or(Errno::EINVAL)?),
    };
    cur.mm()?.set_name(addr, len, name.as_deref()).map(|()| 0)
}

fn set_mm(cur: &Current, op: i32, addr: u64, len: u64) -> SysResult {
    cur.require(Caps::SYS_RESOURCE)?;
    match op {
        libc::PR_SET_MM_AUXV => {
            if len > 512 {
                return Err(Errno::EINVAL);
            }
            let words = UserPtr::<u64>::new(addr).read_array(cur.space(), len as usize / 8)?;
            cur.mm()?.set_auxv(&words).map(|()| 0)
        }
        libc::PR_SET_MM_EXE_FILE => {
            let file = cur.file(crate::sentry::syscalls::Fd(addr as i32))?;
            let old = cur.mm()?.set_exe(Some(file));
            drop(old);
            Ok(0)
        }
        _ => cur.mm()?.set_place(op, addr).map(|()| 0),
    }
}

/// `personality(2)`: only the personality of Linux itself. `EINVAL`.
pub fn personality(_cur: &mut Current, persona: u32) -> SysResult {
    const ADDR_NO_RANDOMIZE: u32 = 0x004_0000;
    match persona {
        0 | u32::MAX => Ok(0),
        _ if persona & !ADDR_NO_RANDOMIZE == 0 => {
            log::debug!("personality {persona:#x}: addresses stay random");
            Err(Errno::EINVAL)
        }
        _ => Err(Errno::EINVAL),
    }
}
