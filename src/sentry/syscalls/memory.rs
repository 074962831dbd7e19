//! Memory: the rules are the memory manager's; here arguments are decoded.

use crate::errno::{Errno, Result};
use crate::sentry::mm::mmap::MmapArgs;
use crate::sentry::mm::prctl::copy_between;
use crate::sentry::mm::remap::MremapArgs;
use crate::sentry::mm::user::{IOV_MAX, UserPtr};
use crate::sentry::mm::{MemoryManager, page_down};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::MountFlags;

/// `mmap(2)`.
pub fn mmap(cur: &mut Current, addr: u64, len: u64, prot: i32, flags: i32, fd: Fd, offset: u64) -> SysResult {
    if !offset.is_multiple_of(4096) {
        return Err(Errno::EINVAL);
    }
    let file = match flags & libc::MAP_ANONYMOUS {
        0 => Some(cur.io_file(fd)?),
        _ => None,
    };
    let mount = file.as_ref().and_then(|file| file.path()).map(|path| path.mount.flags());
    let noexec = mount.is_some_and(|flags| flags.contains(MountFlags::NOEXEC));
    let limits = cur.mem_limits();
    let args = MmapArgs { addr, len, prot, flags, file, noexec, offset, read_implies_exec: false, limits };
    cur.mm()?.mmap(&mut *cur.user, args)
}

/// `munmap(2)`.
pub fn munmap(cur: &mut Current, addr: u64, len: u64) -> SysResult {
    cur.mm()?.munmap(&mut *cur.user, addr, len).map(|()| 0)
}

/// `mprotect(2)`.
pub fn mprotect(cur: &mut Current, addr: u64, len: u64, prot: i32) -> SysResult {
    let limits = cur.mem_limits();
    cur.mm()?.mprotect(&mut *cur.user, addr, len, prot, false, &limits).map(|()| 0)
}

/// `pkey_mprotect(2)`: only with no key, as without protection keys.
pub fn pkey_mprotect(cur: &mut Current, addr: u64, len: u64, prot: i32, key: i32) -> SysResult {
    if key != -1 {
        return Err(Errno::EINVAL);
    }
    mprotect(cur, addr, len, prot)
}

/// `pkey_alloc(2)`: `ENOSPC`, as without protection keys.
pub fn pkey_alloc(cur: &mut Current, flags: u64, rights: u64) -> SysResult {
    cur.mm()?.pkey_alloc(flags, rights).map(|key| key as u64)
}

/// `pkey_free(2)`: `EINVAL`.
pub fn pkey_free(cur: &mut Current, key: i32) -> SysResult {
    cur.mm()?.pkey_free(key).map(|()| 0)
}

/// `mremap(2)`.
pub fn mremap(cur: &mut Current, old: u64, old_len: u64, new_len: u64, flags: i32, new: u64) -> SysResult {
    let limits = cur.mem_limits();
    cur.mm()?.mremap(&mut *cur.user, MremapArgs { old, old_len, new_len, flags, new }, &limits)
}

/// `brk(2)`.
pub fn brk(cur: &mut Current, addr: u64) -> SysResult {
    let limits = cur.mem_limits();
    Ok(cur.mm()?.brk(&mut *cur.user, addr, &limits))
}

/// `madvise(2)`.
pub fn madvise(cur: &mut Current, addr: u64, len: u64, advice: i32) -> SysResult {
    cur.mm()?.madvise(&mut *cur.user, addr, len, advice).map(|()| 0)
}

/// `msync(2)`.
pub fn msync(cur: &mut Current, addr: u64, len: u64, flags: i32) -> SysResult {
    cur.mm()?.msync(&mut *cur.user, addr, len, flags).map(|()| 0)
}

/// `mincore(2)`.
pub fn mincore(cur: &mut Current, addr: u64, len: u64, vec: UserPtr<u8>) -> SysResult {
    cur.mm()?.mincore(addr, len, vec.addr()).map(|()| 0)
}

/// `mlock(2)`.
pub fn mlock(cur: &mut Current, addr: u64, len: u64) -> SysResult {
    mlock2(cur, addr, len, 0)
}

/// `mlock2(2)`.
pub fn mlock2(cur: &mut Current, addr: u64, len: u64, flags: i32) -> SysResult {
    let limits = cur.mem_limits();
    cur.mm()?.mlock(&mut *cur.user, addr, len, flags, &limits).map(|()| 0)
}

/// `munlock(2)`.
pub fn munlock(cur: &mut Current, addr: u64, len: u64) -> SysResult {
    cur.mm()?.munlock(addr, len).map(|()| 0)
}

/// `mlockall(2)`.
pub fn mlockall(cur: &mut Current, flags: i32) -> SysResult {
    let limits = cur.mem_limits();
    cur.mm()?.mlockall(flags, &limits).map(|()| 0)
}

/// `munlockall(2)`.
pub fn munlockall(cur: &mut Current) -> SysResult {
    cur.mm()?.munlockall();
    Ok(0)
}

/// The first word of a node mask of `max` bits, which must name no node but the one there is.
fn node_mask(cur: &Current, mask: UserPtr<u64>, max: u64) -> Result<u64> {
    if mask.is_null() || max <= 1 {
        return Ok(0);
    }
    if max > 8 * 4096 {
        return Err(Errno::EINVAL);
    }
    let bits = max - 1;
    let mut words = mask.read_array(cur.space(), bits.div_ceil(64) as usize)?;
    if let Some(last) = words.last_mut().filter(|_| !bits.is_multiple_of(64)) {
        *last &= (1 << (bits % 64)) - 1;
    }
    if words.iter().skip(1).any(|&word| word != 0) { Err(Errno::EINVAL) } else { Ok(words[0]) }
}

/// `mbind(2)`: one node.
pub fn mbind(cur: &mut Current, addr: u64, len: u64, mode: i32, mask: UserPtr<u64>, max: u64, flags: u32) -> SysResult {
    let nodes = node_mask(cur, mask, max)?;
    cur.mm()?.mbind(addr, len, mode, nodes, flags).map(|()| 0)
}

/// `set_mempolicy(2)`: kept and shown; with one node all policies have the same effect. `EINVAL`, `EFAULT`.
pub fn set_mempolicy(cur: &mut Current, mode: i32, mask: UserPtr<u64>, max: u64) -> SysResult {
    let nodes = node_mask(cur, mask, max)?;
    let policy = crate::sentry::mm::policy::check_policy(mode, nodes)?;
    *cur.task.memory_policy.lock() = policy;
    Ok(0)
}

/// `get_mempolicy(2)`.
pub fn get_mempolicy(
    cur: &mut Current,
    mode: UserPtr<i32>,
    mask: UserPtr<u64>,
    max: u64,
    addr: u64,
    flags: u32,
) -> SysResult {
    if !mask.is_null() && max < 1 {
        return Err(Errno::EINVAL);
    }
    let own = *cur.task.memory_policy.lock();
    let (found, nodes) = cur.mm()?.get_mempolicy(own, addr, flags)?;
    mode.write_if(cur.space(), &found)?;
    mask.write_if(cur.space(), &nodes).map(|()| 0)
}

fn parts(cur: &Current, addr: u64, count: u64) -> Result<Vec<(u64, usize)>> {
    if count > IOV_MAX as u64 {
        return Err(Errno::EINVAL);
    }
    let raw = UserPtr::<[u64; 2]>::new(addr).read_array(cur.space(), count as usize)?;
    let bounded = |[addr, len]: [u64; 2]| match isize::try_from(len) {
        Ok(len) => Ok((addr, len as usize)),
        Err(_) => Err(Errno::EINVAL),
    };
    raw.into_iter().map(bounded).collect()
}

fn transfer(cur: &Current, pid: i32, local: (u64, u64), remote: (u64, u64), flags: u64, write: bool) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let (local, remote) = (parts(cur, local.0, local.1)?, parts(cur, remote.0, remote.1)?);
    let other = cur.kernel.thread(pid)?;
    cur.may_trace(&other)?;
    let (own, other): (_, std::sync::Arc<MemoryManager>) = (cur.mm()?, other.mm()?);
    match write {
        true => copy_between(&own, &local, &other, &remote),
        false => copy_between(&other, &remote, &own, &local),
    }
}

/// `process_vm_readv(2)`. `EINVAL`, `EFAULT`, `ESRCH`, `EPERM`.
pub fn process_vm_readv(
    cur: &mut Current,
    pid: i32,
    local: u64,
    local_count: u64,
    remote: u64,
    remote_count: u64,
    flags: u64,
) -> SysResult {
    transfer(cur, pid, (local, local_count), (remote, remote_count), flags, false)
}

/// `process_vm_writev(2)`. `EINVAL`, `EFAULT`, `ESRCH`, `EPERM`.
pub fn process_vm_writev(
    cur: &mut Current,
    pid: i32,
    local: u64,
    local_count: u64,
    remote: u64,
    remote_count: u64,
    flags: u64,
) -> SysResult {
    transfer(cur, pid, (local, local_count), (remote, remote_count), flags, true)
}

/// `membarrier(2)`: the commands that order memory are carried out by stopping every thread of the process once.
pub fn membarrier(cur: &mut Current, command: i32, flags: u32, _cpu: i32) -> SysResult {
    const GLOBAL: i32 = 1;
    const GLOBAL_EXPEDITED: i32 = 2;
    const REGISTER_GLOBAL_EXPEDITED: i32 = 4;
    const PRIVATE_EXPEDITED: i32 = 8;
    const REGISTER_PRIVATE_EXPEDITED: i32 = 16;
    const ALL: i32 =
        GLOBAL | GLOBAL_EXPEDITED | REGISTER_GLOBAL_EXPEDITED | PRIVATE_EXPEDITED | REGISTER_PRIVATE_EXPEDITED;
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    match command {
        0 => Ok(ALL as u64),
        REGISTER_GLOBAL_EXPEDITED | REGISTER_PRIVATE_EXPEDITED => Ok(0),
        // Container memory is shared by the threads of one process, or by files between processes. A host barrier in this
        // process orders nothing in a stub; protecting a page there does, as the host interrupts every CPU that runs it.
        GLOBAL | GLOBAL_EXPEDITED | PRIVATE_EXPEDITED => barrier(cur).map(|()| 0),
        _ => Err(Errno::EINVAL),
    }
}

fn barrier(cur: &mut Current) -> Result<()> {
    let stack = page_down(cur.user.regs().rsp);
    let limits = cur.mem_limits();
    // Changing a page's protection for nothing would be skipped by the host: take the right to write, and give it back.
    let mm = cur.mm()?;
    let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
    if cur.group.threads().len() == 1 || !mm.is_private_writable(stack) {
        return Ok(());
    }
    mm.mprotect(&mut *cur.user, stack, 4096, read, false, &limits)?;
    mm.mprotect(&mut *cur.user, stack, 4096, write, false, &limits)
}
