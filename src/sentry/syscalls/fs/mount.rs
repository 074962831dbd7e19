//! `mount(2)`, `umount2(2)`, `pivot_root(2)`.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::boot::mounts::{next_dev, ram};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::UserStr;
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::inode::FileSystem;
use crate::vfs::mount::UmountFlags;
use crate::vfs::tmpfs::{TmpFs, TmpfsOptions};
use crate::vfs::tty::{DevPts, DevPtsOptions};
use crate::vfs::{LookupFlags, MountFlags, Propagation};

/// What a `mount(2)` call is to do, besides [`MountFlags`].
const REMOUNT: u64 = libc::MS_REMOUNT;
const BIND: u64 = libc::MS_BIND;
const MOVE: u64 = libc::MS_MOVE;
const REC: u64 = libc::MS_REC;
const PROPAGATION: u64 = libc::MS_SHARED | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE;

const CWD: Fd = Fd(libc::AT_FDCWD);
/// The longest type, source or options.
const PAGE: usize = 4096;

/// A string that may be left out. `EINVAL`: too long.
fn text(cur: &Current, text: UserStr) -> Result<Option<String>> {
    if text.is_null() {
        return Ok(None);
    }
    let bytes = text.read(cur.space(), PAGE)?.ok_or(Errno::EINVAL)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The flags of a mount, of which relative access times are the default.
fn mount_flags(raw: u64) -> MountFlags {
    let mut flags = MountFlags::from_bits_truncate(raw);
    if !flags.intersects(MountFlags::NOATIME | MountFlags::STRICTATIME) {
        flags |= MountFlags::RELATIME;
    }
    flags
}

/// `mount(2)`. `EPERM` without `CAP_SYS_ADMIN`; `ENODEV`: no such file system; and as [`MountNamespace`] says.
///
/// [`MountNamespace`]: crate::vfs::MountNamespace
pub fn mount(cur: &mut Current, source: UserStr, at: UserStr, kind: UserStr, flags: u64, data: UserStr) -> SysResult {
    // What old programs put into the upper half.
    let flags = if flags & 0xffff_0000 == 0xc0ed_0000 { flags & 0xffff } else { flags };
    let kind = text(cur, kind)?;
    let at = cur.lookup(CWD, at, LookupFlags::FOLLOW)?;
    cur.require(Caps::SYS_ADMIN)?;
    let namespace = cur.namespaces().mounts.clone();
    if flags & REMOUNT != 0 {
        let bind = flags & BIND != 0;
        if !bind && let Some(options) = text(cur, data)? {
            at.mount.fs().remount(&options)?;
        }
        namespace.remount(&at, mount_flags(flags), bind)?;
    } else if flags & (BIND | MOVE) != 0 {
        let from = cur.lookup(CWD, source, LookupFlags::FOLLOW)?;
        if flags & BIND != 0 {
            namespace.bind(&from, &at, flags & REC != 0)?;
        } else {
            namespace.move_mount(&from, &at)?;
        }
    } else if flags & PROPAGATION != 0 {
        let (to, recursive) = propagation(flags)?;
        namespace.set_propagation(&at, to, recursive)?;
    } else {
        let kind = kind.ok_or(Errno::EINVAL)?;
        let source = text(cur, source)?.unwrap_or_else(|| "none".into());
        let fs = file_system(cur, &kind, &text(cur, data)?.unwrap_or_default())?;
        namespace.mount(&fs, &at, mount_flags(flags), &source)?;
    }
    Ok(0)
}

/// The type of propagation to change to, and whether for all beneath. `EINVAL`: more than one type, other flags.
fn propagation(flags: u64) -> Result<(Propagation, bool)> {
    if flags & !(PROPAGATION | REC | libc::MS_SILENT) != 0 {
        return Err(Errno::EINVAL);
    }
    let to = match flags & PROPAGATION {
        libc::MS_SHARED => Propagation::Shared,
        libc::MS_SLAVE => Propagation::Slave,
        libc::MS_PRIVATE => Propagation::Private,
        libc::MS_UNBINDABLE => Propagation::Unbindable,
        _ => return Err(Errno::EINVAL),
    };
    Ok((to, flags & REC != 0))
}

/// A file system that a container may mount. Of `proc` and `sysfs` there is one in a sandbox, which must be mounted already.
fn file_system(cur: &Current, kind: &str, data: &str) -> Result<Arc<dyn FileSystem>> {
    Ok(match kind {
        "tmpfs" | "ramfs" => TmpFs::new(next_dev(), &TmpfsOptions::parse(data, ram())?, ram()),
        "devpts" => Arc::new(DevPts::new(next_dev(), DevPtsOptions::parse(data)?, cur.kernel.terminals.clone())),
        "proc" | "sysfs" => {
            let mounts = cur.namespaces().mounts.clone();
            let there = mounts.list(&mounts.root());
            let found = there.iter().find(|info| info.mount.fs().type_name() == kind);
            found.ok_or(Errno::EPERM)?.mount.fs().clone()
        }
        _ => {
            log::debug!("a container asks for file system {kind:?}, which is not there");
            return Err(Errno::ENODEV);
        }
    })
}

/// `umount2(2)`.
pub fn umount2(cur: &mut Current, target: UserStr, flags: u32) -> SysResult {
    let flags = UmountFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
    let mut lookup = LookupFlags::empty();
    lookup.set(LookupFlags::FOLLOW, !flags.contains(UmountFlags::NOFOLLOW));
    let target = cur.lookup(CWD, target, lookup)?;
    cur.require(Caps::SYS_ADMIN)?;
    cur.namespaces().mounts.umount(target, flags)?;
    Ok(0)
}

/// `pivot_root(2)`. Tasks whose root or working directory was the old root get the new one.
pub fn pivot_root(cur: &mut Current, new_root: UserStr, put_old: UserStr) -> SysResult {
    let lookup = LookupFlags::FOLLOW | LookupFlags::DIRECTORY;
    cur.require(Caps::SYS_ADMIN)?;
    let new_root = cur.lookup(CWD, new_root, lookup)?;
    let put_old = cur.lookup(CWD, put_old, lookup)?;
    let old_root = cur.fs().get().root;
    cur.namespaces().mounts.pivot_root(&new_root, &put_old, &old_root)?;
    for (group, _) in cur.kernel.processes() {
        for task in group.threads() {
            task.fs().update(|state| {
                for path in [&mut state.root, &mut state.cwd] {
                    if *path == old_root {
                        *path = new_root.clone();
                    }
                }
            });
        }
    }
    Ok(0)
}
