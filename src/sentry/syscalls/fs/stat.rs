//! `stat(2)`, `statx(2)`.

use zerocopy::{Immutable, IntoBytes};

use crate::errno::Errno;
use crate::sentry::mm::user::{UserPtr, UserStr};
use crate::sentry::syscalls::fs::path::{Target, attr_of, lookup_flags};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::inode::{Attr, TimeSpec};

/// `struct stat` of x86_64.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct Stat {
    dev: u64,
    ino: u64,
    nlink: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    pad: u32,
    rdev: u64,
    size: u64,
    blksize: u64,
    blocks: u64,
    atime: [i64; 2],
    mtime: [i64; 2],
    ctime: [i64; 2],
    unused: [u64; 3],
}

impl From<&Attr> for Stat {
    fn from(attr: &Attr) -> Stat {
        let time = |time: TimeSpec| [time.sec, i64::from(time.nsec)];
        Stat {
            dev: attr.dev,
            ino: attr.ino,
            nlink: attr.nlink.into(),
            mode: attr.mode(),
            uid: attr.uid,
            gid: attr.gid,
            pad: 0,
            rdev: attr.rdev,
            size: attr.size,
            blksize: attr.blksize.into(),
            blocks: attr.blocks,
            atime: time(attr.atime),
            mtime: time(attr.mtime),
            ctime: time(attr.ctime),
            unused: [0; 3],
        }
    }
}

/// `stat(2)`.
pub fn stat(cur: &mut Current, path: UserStr, buf: UserPtr<Stat>) -> SysResult {
    newfstatat(cur, Fd(libc::AT_FDCWD), path, buf, 0)
}

/// `lstat(2)`.
pub fn lstat(cur: &mut Current, path: UserStr, buf: UserPtr<Stat>) -> SysResult {
    newfstatat(cur, Fd(libc::AT_FDCWD), path, buf, libc::AT_SYMLINK_NOFOLLOW)
}

/// `fstat(2)`.
pub fn fstat(cur: &mut Current, fd: Fd, buf: UserPtr<Stat>) -> SysResult {
    let attr = attr_of(&*cur.file(fd)?)?;
    buf.write(cur.space(), &Stat::from(&attr)).map(|()| 0)
}

/// `newfstatat(2)`.
pub fn newfstatat(cur: &mut Current, dir: Fd, path: UserStr, buf: UserPtr<Stat>, flags: i32) -> SysResult {
    let lookup = lookup_flags(flags, libc::AT_NO_AUTOMOUNT)?;
    let attr = cur.target(dir, path, lookup)?.attr()?;
    buf.write(cur.space(), &Stat::from(&attr)).map(|()| 0)
}

/// `struct statx_timestamp`.
#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct StatxTime {
    sec: i64,
    nsec: u32,
    pad: u32,
}

impl From<TimeSpec> for StatxTime {
    fn from(time: TimeSpec) -> StatxTime {
        StatxTime { sec: time.sec, nsec: time.nsec, pad: 0 }
    }
}

/// `struct statx`.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct Statx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    pad: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: StatxTime,
    btime: StatxTime,
    ctime: StatxTime,
    mtime: StatxTime,
    rdev: [u32; 2],
    dev: [u32; 2],
    mnt_id: u64,
    /// Alignment of direct I/O, subvolume, atomic writes: none of them is known.
    rest: [u64; 13],
}

/// `STATX_ATTR_MOUNT_ROOT`.
const ATTR_MOUNT_ROOT: u64 = 0x2000;
/// `STATX_MNT_ID_UNIQUE`.
const MNT_ID_UNIQUE: u32 = 0x4000;
/// `STATX__RESERVED`.
const RESERVED: u32 = 1 << 31;

impl Statx {
    fn new(attr: &Attr) -> Statx {
        let device = |dev: u64| [libc::major(dev), libc::minor(dev)];
        let born = if attr.btime.is_some() { libc::STATX_BTIME } else { 0 };
        Statx {
            mask: libc::STATX_BASIC_STATS | born,
            blksize: attr.blksize,
            attributes: 0,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.mode() as u16,
            pad: 0,
            ino: attr.ino,
            size: attr.size,
            blocks: attr.blocks,
            attributes_mask: 0,
            atime: attr.atime.into(),
            btime: attr.btime.unwrap_or_default().into(),
            ctime: attr.ctime.into(),
            mtime: attr.mtime.into(),
            rdev: device(attr.rdev),
            dev: device(attr.dev),
            mnt_id: 0,
            rest: [0; 13],
        }
    }
}

/// `statx(2)`. `EINVAL`: flags, a reserved bit of `mask`.
pub fn statx(cur: &mut Current, dir: Fd, path: UserStr, flags: i32, mask: u32, buf: UserPtr<Statx>) -> SysResult {
    const SYNC_TYPE: i32 = libc::AT_STATX_FORCE_SYNC | libc::AT_STATX_DONT_SYNC;
    if mask & RESERVED != 0 || flags & SYNC_TYPE == SYNC_TYPE {
        return Err(Errno::EINVAL);
    }
    let lookup = lookup_flags(flags, libc::AT_NO_AUTOMOUNT | SYNC_TYPE)?;
    let target = cur.target(dir, path, lookup)?;
    let mut statx = Statx::new(&target.attr()?);
    if let Target::Node(path) = &target {
        // Both sorts of mount id are the same number here, which is never used again.
        statx.mask |= if mask & MNT_ID_UNIQUE != 0 { MNT_ID_UNIQUE } else { libc::STATX_MNT_ID };
        statx.mnt_id = path.mount.id();
        statx.attributes_mask = ATTR_MOUNT_ROOT;
        if std::sync::Arc::ptr_eq(&path.dentry, path.mount.root()) {
            statx.attributes = ATTR_MOUNT_ROOT;
        }
    }
    buf.write(cur.space(), &statx).map(|()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::inode::NodeType;

    fn attr() -> Attr {
        let mut attr = Attr::new(libc::makedev(8, 300), 1 << 40, NodeType::CharDevice, 0o2640);
        (attr.uid, attr.gid, attr.nlink, attr.rdev) = (11, 12, 13, libc::makedev(136, 5));
        (attr.size, attr.blksize, attr.blocks) = (1 << 33, 512, 77);
        attr.atime = TimeSpec { sec: -5, nsec: 6 };
        attr.mtime = TimeSpec { sec: 7, nsec: 8 };
        attr.ctime = TimeSpec { sec: 9, nsec: 10 };
        attr.btime = Some(TimeSpec { sec: 14, nsec: 15 });
        attr
    }

    #[test]
    fn stat_is_laid_out_as_the_c_library_reads_it() {
        let ours = Stat::from(&attr());
        assert_eq!(size_of::<Stat>(), size_of::<libc::stat>());
        // SAFETY: both are of one size, and every bit pattern is a value.
        let host: libc::stat = unsafe { std::mem::transmute(ours) };
        assert_eq!((host.st_dev, host.st_ino, host.st_nlink), (libc::makedev(8, 300), 1 << 40, 13));
        assert_eq!((host.st_mode, host.st_uid, host.st_gid), (libc::S_IFCHR | 0o2640, 11, 12));
        assert_eq!((host.st_rdev, host.st_size), (libc::makedev(136, 5), 1 << 33));
        assert_eq!((host.st_blksize, host.st_blocks), (512, 77));
        assert_eq!((host.st_atime, host.st_atime_nsec), (-5, 6));
        assert_eq!((host.st_mtime, host.st_mtime_nsec, host.st_ctime, host.st_ctime_nsec), (7, 8, 9, 10));
    }

    #[test]
    fn statx_is_laid_out_as_the_c_library_reads_it() {
        let ours = Statx::new(&attr());
        assert_eq!(size_of::<Statx>(), size_of::<libc::statx>());
        // SAFETY: both are of one size, and every bit pattern is a value.
        let host: libc::statx = unsafe { std::mem::transmute(ours) };
        assert_eq!((host.stx_mask, host.stx_blksize), (libc::STATX_BASIC_STATS | libc::STATX_BTIME, 512));
        assert_eq!((host.stx_mode, host.stx_ino, host.stx_nlink), (0o022640, 1 << 40, 13));
        assert_eq!((host.stx_uid, host.stx_gid, host.stx_size, host.stx_blocks), (11, 12, 1 << 33, 77));
        let times = [host.stx_atime, host.stx_mtime, host.stx_ctime, host.stx_btime];
        assert_eq!(times.map(|time| (time.tv_sec, time.tv_nsec)), [(-5, 6), (7, 8), (9, 10), (14, 15)]);
        let devices = [host.stx_dev_major, host.stx_dev_minor, host.stx_rdev_major, host.stx_rdev_minor];
        assert_eq!(devices, [8, 300, 136, 5]);
    }
}
