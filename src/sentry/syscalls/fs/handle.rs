//! File handles, and administration of what a sandbox does not have.

use crate::errno::Errno;
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{UserPtr, UserStr};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::LookupFlags;

/// `name_to_handle_at(2)`: no file system here has handles that outlive its names.
pub fn name_to_handle_at(
    cur: &mut Current,
    dir: Fd,
    path: UserStr,
    handle: UserPtr<[u32; 2]>,
    _mount_id: u64,
    flags: i32,
) -> SysResult {
    let mut lookup = LookupFlags::empty();
    lookup.set(LookupFlags::FOLLOW, flags & libc::AT_SYMLINK_FOLLOW != 0);
    lookup.set(LookupFlags::EMPTY_PATH, flags & libc::AT_EMPTY_PATH != 0);
    cur.target(dir, path, lookup)?;
    handle.read(cur.space())?;
    Err(Errno::EOPNOTSUPP)
}

/// `open_by_handle_at(2)`: there are none.
pub fn open_by_handle_at(cur: &mut Current, _mount: Fd, handle: UserPtr<[u32; 2]>, _flags: i32) -> SysResult {
    cur.require(Caps::DAC_READ_SEARCH)?;
    handle.read(cur.space())?;
    Err(Errno::ESTALE)
}

/// `swapon(2)`, `swapoff(2)`: `EPERM`; `ENOSYS` to who would be allowed to.
pub fn swap(cur: &mut Current) -> SysResult {
    cur.require(Caps::SYS_ADMIN)?;
    Err(Errno::ENOSYS)
}

/// `acct(2)`: `EPERM`; `ENOSYS` to who would be allowed to.
pub fn acct(cur: &mut Current) -> SysResult {
    cur.require(Caps::SYS_PACCT)?;
    Err(Errno::ENOSYS)
}
