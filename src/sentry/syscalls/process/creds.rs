//! Users, groups and capabilities: `credentials(7)`, `capabilities(7)`.

use crate::errno::{Errno, Result};
use crate::sentry::creds::{Caps, Credentials};
use crate::sentry::mm::user::UserPtr;
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::Current;

/// `SECBIT_NOROOT`.
pub const NOROOT: u32 = 1;
/// `SECBIT_NO_SETUID_FIXUP`.
pub const NO_SETUID_FIXUP: u32 = 4;
/// `SECBIT_KEEP_CAPS`.
pub const KEEP_CAPS: u32 = 16;
/// `SECBIT_NO_CAP_AMBIENT_RAISE`.
pub const NO_CAP_AMBIENT_RAISE: u32 = 64;

/// "Leave it as it is", in the calls that take several ids.
const UNCHANGED: u32 = u32::MAX;

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident = $field:ident;)*) => {
        $($(#[$doc])*
        pub fn $name(cur: &mut Current) -> SysResult {
            Ok(cur.creds().$field.into())
        })*
    };
}

getters! {
    /// `getuid(2)`.
    getuid = ruid;
    /// `geteuid(2)`.
    geteuid = euid;
    /// `getgid(2)`.
    getgid = rgid;
    /// `getegid(2)`.
    getegid = egid;
}

/// `getresuid(2)`. `EFAULT`.
pub fn getresuid(cur: &mut Current, real: UserPtr<u32>, effective: UserPtr<u32>, saved: UserPtr<u32>) -> SysResult {
    let creds = cur.creds();
    real.write(cur.space(), &creds.ruid)?;
    effective.write(cur.space(), &creds.euid)?;
    saved.write(cur.space(), &creds.suid).map(|()| 0)
}

/// `getresgid(2)`. `EFAULT`.
pub fn getresgid(cur: &mut Current, real: UserPtr<u32>, effective: UserPtr<u32>, saved: UserPtr<u32>) -> SysResult {
    let creds = cur.creds();
    real.write(cur.space(), &creds.rgid)?;
    effective.write(cur.space(), &creds.egid)?;
    saved.write(cur.space(), &creds.sgid).map(|()| 0)
}

/// Puts new user ids in force, with what that does to capabilities: `capabilities(7)`, "Effect of user ID changes".
fn commit_uids(cur: &Current, old: &Credentials, mut new: Credentials) -> SysResult {
    if new.securebits & NO_SETUID_FIXUP == 0 {
        let ids = |creds: &Credentials| [creds.ruid, creds.euid, creds.suid];
        if ids(old).contains(&0) && !ids(&new).contains(&0) {
            if new.securebits & KEEP_CAPS == 0 {
                (new.permitted, new.effective) = (Caps::empty(), Caps::empty());
            }
            new.ambient = Caps::empty();
        }
        if old.euid == 0 && new.euid != 0 {
            new.effective = Caps::empty();
        } else if old.euid != 0 && new.euid == 0 {
            new.effective = new.permitted;
        }
    }
    commit(cur, old, new)
}

fn commit(cur: &Current, old: &Credentials, new: Credentials) -> SysResult {
    let gained = !old.permitted.contains(new.permitted);
    if gained || (old.euid, old.egid, old.fsuid, old.fsgid) != (new.euid, new.egid, new.fsuid, new.fsgid) {
        cur.mm()?.set_dumpable(0);
    }
    cur.set_creds(new);
    Ok(0)
}

/// `setuid(2)`. `EPERM`, `EINVAL`.
pub fn setuid(cur: &mut Current, uid: u32) -> SysResult {
    if uid == UNCHANGED {
        return Err(Errno::EINVAL);
    }
    let old = cur.creds();
    let mut new = (*old).clone();
    if old.has(Caps::SETUID) {
        (new.ruid, new.suid) = (uid, uid);
    } else if uid != old.ruid && uid != old.suid {
        return Err(Errno::EPERM);
    }
    (new.euid, new.fsuid) = (uid, uid);
    commit_uids(cur, &old, new)
}

/// `setgid(2)`. `EPERM`, `EINVAL`.
pub fn setgid(cur: &mut Current, gid: u32) -> SysResult {
    if gid == UNCHANGED {
        return Err(Errno::EINVAL);
    }
    let old = cur.creds();
    let mut new = (*old).clone();
    if old.has(Caps::SETGID) {
        (new.rgid, new.sgid) = (gid, gid);
    } else if gid != old.rgid && gid != old.sgid {
        return Err(Errno::EPERM);
    }
    (new.egid, new.fsgid) = (gid, gid);
    commit(cur, &old, new)
}

fn check_ids(wanted: &[u32], held: &[u32], privileged: bool) -> Result<()> {
    let allowed = |id: &u32| *id == UNCHANGED || privileged || held.contains(id);
    if wanted.iter().all(allowed) { Ok(()) } else { Err(Errno::EPERM) }
}

fn or_old(new: u32, old: u32) -> u32 {
    if new == UNCHANGED { old } else { new }
}

/// `setreuid(2)`. `EPERM`.
pub fn setreuid(cur: &mut Current, real: u32, effective: u32) -> SysResult {
    let old = cur.creds();
    let privileged = old.has(Caps::SETUID);
    check_ids(&[real], &[old.ruid, old.euid], privileged)?;
    check_ids(&[effective], &[old.ruid, old.euid, old.suid], privileged)?;
    let mut new = (*old).clone();
    (new.ruid, new.euid) = (or_old(real, old.ruid), or_old(effective, old.euid));
    if real != UNCHANGED || (effective != UNCHANGED && effective != old.ruid) {
        new.suid = new.euid;
    }
    new.fsuid = new.euid;
    commit_uids(cur, &old, new)
}

/// `setregid(2)`. `EPERM`.
pub fn setregid(cur: &mut Current, real: u32, effective: u32) -> SysResult {
    let old = cur.creds();
    let privileged = old.has(Caps::SETGID);
    check_ids(&[real], &[old.rgid, old.egid], privileged)?;
    check_ids(&[effective], &[old.rgid, old.egid, old.sgid], privileged)?;
    let mut new = (*old).clone();
    (new.rgid, new.egid) = (or_old(real, old.rgid), or_old(effective, old.egid));
    if real != UNCHANGED || (effective != UNCHANGED && effective != old.rgid) {
        new.sgid = new.egid;
    }
    new.fsgid = new.egid;
    commit(cur, &old, new)
}

/// `setresuid(2)`. `EPERM`.
pub fn setresuid(cur: &mut Current, real: u32, effective: u32, saved: u32) -> SysResult {
    let old = cur.creds();
    check_ids(&[real, effective, saved], &[old.ruid, old.euid, old.suid], old.has(Caps::SETUID))?;
    let mut new = (*old).clone();
    new.ruid = or_old(real, old.ruid);
    new.euid = or_old(effective, old.euid);
    new.suid = or_old(saved, old.suid);
    new.fsuid = new.euid;
    commit_uids(cur, &old, new)
}

/// `setresgid(2)`. `EPERM`.
pub fn setresgid(cur: &mut Current, real: u32, effective: u32, saved: u32) -> SysResult {
    let old = cur.creds();
    check_ids(&[real, effective, saved], &[old.rgid, old.egid, old.sgid], old.has(Caps::SETGID))?;
    let mut new = (*old).clone();
    new.rgid = or_old(real, old.rgid);
    new.egid = or_old(effective, old.egid);
    new.sgid = or_old(saved, old.sgid);
    new.fsgid = new.egid;
    commit(cur, &old, new)
}

/// The capabilities that `setfsuid(2)` from and to 0 takes and gives.
const FOR_FILES: Caps = Caps::CHOWN
    .union(Caps::DAC_OVERRIDE)
    .union(Caps::DAC_READ_SEARCH)
    .union(Caps::FOWNER)
    .union(Caps::FSETID)
    .union(Caps::LINUX_IMMUTABLE)
    .union(Caps::MAC_OVERRIDE)
    .union(Caps::MKNOD);

/// `setfsuid(2)`: returns the old one, whatever happens.
pub fn setfsuid(cur: &mut Current, uid: u32) -> SysResult {
    let old = cur.creds();
    let held = [old.ruid, old.euid, old.suid, old.fsuid];
    if uid != UNCHANGED && (held.contains(&uid) || old.has(Caps::SETUID)) {
        let mut new = Credentials { fsuid: uid, ..(*old).clone() };
        if new.securebits & NO_SETUID_FIXUP == 0 {
            if old.fsuid == 0 && uid != 0 {
                new.effective &= !FOR_FILES;
            } else if old.fsuid != 0 && uid == 0 {
                new.effective |= new.permitted & FOR_FILES;
            }
        }
        commit(cur, &old, new)?;
    }
    Ok(old.fsuid.into())
}

/// `setfsgid(2)`: returns the old one, whatever happens.
pub fn setfsgid(cur: &mut Current, gid: u32) -> SysResult {
    let old = cur.creds();
    let held = [old.rgid, old.egid, old.sgid, old.fsgid];
    if gid != UNCHANGED && (held.contains(&gid) || old.has(Caps::SETGID)) {
        commit(cur, &old, Credentials { fsgid: gid, ..(*old).clone() })?;
    }
    Ok(old.fsgid.into())
}

/// `NGROUPS_MAX`.
const GROUPS_MAX: i32 = 65536;

/// `getgroups(2)`. `EINVAL`, `EFAULT`.
pub fn getgroups(cur: &mut Current, size: i32, list: UserPtr<u32>) -> SysResult {
    let groups = cur.creds().groups.clone();
    if size < 0 || (size != 0 && (size as usize) < groups.len()) {
        return Err(Errno::EINVAL);
    }
    if size != 0 {
        list.write_array(cur.space(), &groups)?;
    }
    Ok(groups.len() as u64)
}

/// `setgroups(2)`. `EPERM`, `EINVAL`, `EFAULT`.
pub fn setgroups(cur: &mut Current, size: i32, list: UserPtr<u32>) -> SysResult {
    cur.require(Caps::SETGID)?;
    if !(0..=GROUPS_MAX).contains(&size) {
        return Err(Errno::EINVAL);
    }
    let mut groups = list.read_array(cur.space(), size as usize)?;
    groups.sort_unstable();
    let creds = Credentials { groups: groups.into(), ..(*cur.creds()).clone() };
    cur.set_creds(creds);
    Ok(0)
}

const VERSION_1: u32 = 0x1998_0330;
const VERSION_2: u32 = 0x2007_1026;
const VERSION_3: u32 = 0x2008_0522;

/// How many words of each set a version has; an unknown version is answered with the one preferred, and `EINVAL`.
fn caps_words(cur: &Current, header: UserPtr<[u32; 2]>) -> Result<(i32, usize)> {
    let [version, pid] = header.read(cur.space())?;
    let words = match version {
        VERSION_1 => 1,
        VERSION_2 | VERSION_3 => 2,
        _ => {
            header.write(cur.space(), &[VERSION_3, pid])?;
            return Err(Errno::EINVAL);
        }
    };
    Ok((pid as i32, words))
}

/// `capget(2)`. `EINVAL`, `ESRCH`, `EFAULT`.
pub fn capget(cur: &mut Current, header: UserPtr<[u32; 2]>, data: UserPtr<[u32; 3]>) -> SysResult {
    let (pid, words) = match caps_words(cur, header) {
        // A probe for the version.
        Err(Errno::EINVAL) if data.is_null() => return Ok(0),
        known => known?,
    };
    if pid < 0 {
        return Err(Errno::EINVAL);
    }
    let creds = if pid == 0 { cur.creds() } else { cur.kernel.thread(pid)?.creds() };
    if data.is_null() {
        return Ok(0);
    }
    let sets = [creds.effective, creds.permitted, creds.inheritable].map(|caps| caps.bits());
    for word in 0..words {
        data.index(word).write(cur.space(), &sets.map(|set| (set >> (32 * word)) as u32))?;
    }
    Ok(0)
}

/// `capset(2)`. `EINVAL`, `EPERM`, `EFAULT`.
pub fn capset(cur: &mut Current, header: UserPtr<[u32; 2]>, data: UserPtr<[u32; 3]>) -> SysResult {
    let (pid, words) = caps_words(cur, header)?;
    if pid != 0 && pid != cur.tid() {
        return Err(Errno::EPERM);
    }
    let mut sets = [0u64; 3];
    for (word, values) in data.read_array(cur.space(), words)?.into_iter().enumerate() {
        for (set, value) in sets.iter_mut().zip(values) {
            *set |= u64::from(value) << (32 * word);
        }
    }
    let [effective, permitted, inheritable] = sets.map(Caps::from_bits_truncate);
    let old = cur.creds();
    let may_inherit = match old.has(Caps::SETPCAP) {
        true => old.inheritable | old.bounding,
        false => old.inheritable | old.permitted,
    };
    let kept = old.permitted.contains(permitted) && permitted.contains(effective);
    let bounded = (old.inheritable | old.bounding).contains(inheritable);
    if !kept || !may_inherit.contains(inheritable) || !bounded {
        return Err(Errno::EPERM);
    }
    let ambient = old.ambient & permitted & inheritable;
    commit(cur, &old, Credentials { effective, permitted, inheritable, ambient, ..(*old).clone() })
}
