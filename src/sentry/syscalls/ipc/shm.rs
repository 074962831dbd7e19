//! `shmget(2)`, `shmat(2)`, `shmdt(2)`, `shmctl(2)`.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::ipc::shm::{Attachment, SHMMNI, Segment};
use crate::sentry::ipc::{Perm, Want};
use crate::sentry::mm::area::Backing;
use crate::sentry::mm::mmap::MmapArgs;
use crate::sentry::mm::page_down;
use crate::sentry::mm::user::{PAGE, UserPtr};
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::Current;
use crate::vfs::file::OpenFile;

/// `struct shmid64_ds`.
type Ds = [u64; 14];

/// `IPC_64`: glibc passes it along, and there is no other layout on x86_64.
pub(super) const IPC_64: i32 = 0x100;
/// `IPC_INFO`.
pub(super) const IPC_INFO: i32 = 3;
const SHM_LOCK: i32 = 11;
const SHM_UNLOCK: i32 = 12;
const SHM_STAT: i32 = 13;
const SHM_INFO: i32 = 14;
const SHM_STAT_ANY: i32 = 15;

/// `shmget(2)`. `EEXIST`, `ENOENT`, `ENOSPC`, `EINVAL`, `EACCES`, `ENOMEM`.
pub fn shmget(cur: &mut Current, key: i32, size: u64, flags: i32) -> SysResult {
    if flags & libc::SHM_HUGETLB != 0 {
        return Err(Errno::ENOMEM); // as with none set aside
    }
    cur.kernel.ipc.shm.get(key, size, flags, &cur.creds(), cur.pid()).map(|id| id as u64)
}

/// `shmat(2)`. `EINVAL`, `EACCES`, `ENOMEM`.
pub fn shmat(cur: &mut Current, id: i32, addr: u64, flags: i32) -> SysResult {
    let segments = &cur.kernel.ipc.shm;
    let segment = segments.find(id)?;
    let place = match addr {
        0 if flags & libc::SHM_REMAP != 0 => return Err(Errno::EINVAL),
        0 => 0,
        _ if flags & libc::SHM_RND != 0 => page_down(addr),
        _ if !addr.is_multiple_of(PAGE) => return Err(Errno::EINVAL),
        _ => addr,
    };
    let fixed = match place {
        0 => 0,
        _ if flags & libc::SHM_REMAP != 0 => libc::MAP_FIXED,
        _ => libc::MAP_FIXED_NOREPLACE,
    };
    let writable = flags & libc::SHM_RDONLY == 0;
    let mut prot = libc::PROT_READ;
    if writable {
        prot |= libc::PROT_WRITE;
    }
    if flags & libc::SHM_EXEC != 0 {
        prot |= libc::PROT_EXEC;
    }
    let file = segments.attach(&segment, &cur.creds(), writable, cur.pid())?;
    let args = MmapArgs {
        addr: place,
        len: segment.size(),
        prot,
        flags: libc::MAP_SHARED | fixed,
        file: Some(file),
        noexec: false,
        offset: 0,
        read_implies_exec: false,
        limits: cur.mem_limits(),
    };
    cur.mm()?.mmap(&mut *cur.user, args).map_err(|error| match error {
        Errno::EEXIST => Errno::EINVAL,
        error => error,
    })
}

/// `shmdt(2)`: unmaps what is left of the attachment that was made at `addr`. `EINVAL`.
pub fn shmdt(cur: &mut Current, addr: u64) -> SysResult {
    let mm = cur.mm()?;
    let mut attachment: Option<Arc<OpenFile>> = None;
    let mut parts = Vec::new();
    mm.for_each_area(addr, &mut |area| {
        let begins_there = area.start.checked_sub(area.offset) == Some(addr);
        if let Backing::File(backing) = &area.backing
            && begins_there
            && backing.file.downcast::<Attachment>().is_some()
            && attachment.as_ref().is_none_or(|first| Arc::ptr_eq(first, &backing.file))
        {
            attachment = Some(backing.file.clone());
            parts.push((area.start, area.end - area.start));
        }
        // What remains of it lies within its length.
        attachment.as_ref().is_none_or(|file| area.end < addr.saturating_add(file.object().size().unwrap_or(0)))
            && (attachment.is_some() || area.start <= addr)
    });
    let attachment = attachment.ok_or(Errno::EINVAL)?;
    if let Some(attachment) = attachment.downcast::<Attachment>() {
        attachment.detached_by(cur.pid());
    }
    parts.into_iter().try_for_each(|(start, len)| mm.munmap(&mut *cur.user, start, len))?;
    Ok(0)
}

fn stat(cur: &Current, segment: &Segment, at: UserPtr<Ds>) -> Result<()> {
    const SHM_DEST: u32 = 0o1000;
    let mut state = segment.state();
    if state.removed {
        state.perm.mode |= SHM_DEST;
    }
    let mut ds = [0; 14];
    ds[..6].copy_from_slice(&state.perm.words());
    ds[6] = segment.size();
    for (word, time) in ds[7..10].iter_mut().zip(state.times) {
        *word = time as u64;
    }
    ds[10] = u64::from(state.pids[0] as u32) | u64::from(state.pids[1] as u32) << 32;
    ds[11] = state.attached;
    at.write(cur.space(), &ds)
}

/// `shmctl(2)`. `EINVAL`, `EACCES`, `EPERM`, `EFAULT`.
pub fn shmctl(cur: &mut Current, id: i32, command: i32, at: UserPtr<Ds>) -> SysResult {
    let segments = &cur.kernel.ipc.shm;
    let creds = cur.creds();
    match command & !IPC_64 {
        libc::IPC_STAT => {
            let segment = segments.find(id)?;
            segment.state().perm.check(&creds, Want::Bits(4))?;
            stat(cur, &segment, at).map(|()| 0)
        }
        libc::IPC_SET => {
            let words = at.cast::<[u64; 6]>().read(cur.space())?;
            segments.find(id)?.set(&creds, Perm::from_words(&words)).map(|()| 0)
        }
        libc::IPC_RMID => segments.remove(&*segments.find(id)?, &creds).map(|()| 0),
        IPC_INFO => {
            let most = u64::MAX - (1 << 24);
            let info = [most, 1, SHMMNI as u64, SHMMNI as u64, most, 0, 0, 0, 0];
            at.cast::<[u64; 9]>().write(cur.space(), &info).map(|()| segments.len().saturating_sub(1) as u64)
        }
        // Pages of segments stay where the host has them.
        SHM_LOCK | SHM_UNLOCK | SHM_STAT | SHM_INFO | SHM_STAT_ANY => {
            log::warn!("shmctl: command {command} is not there");
            Err(Errno::EINVAL)
        }
        _ => Err(Errno::EINVAL),
    }
}
