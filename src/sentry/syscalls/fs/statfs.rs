//! `statfs(2)`.

use zerocopy::{Immutable, IntoBytes};

use crate::errno::Result;
use crate::sentry::mm::user::{UserPtr, UserStr};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::vfs::file::OpenFile;
use crate::vfs::inode::StatFs;
use crate::vfs::pipe::PipeEnd;
use crate::vfs::tmpfs::TmpFile;
use crate::vfs::{LookupFlags, MountFlags, Path, ops};

/// `struct statfs` of x86_64.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct RawStatFs {
    magic: i64,
    bsize: i64,
    blocks: u64,
    bfree: u64,
    bavail: u64,
    files: u64,
    ffree: u64,
    fsid: u64,
    namelen: i64,
    frsize: i64,
    flags: u64,
    spare: [u64; 4],
}

/// `ST_VALID`: the flags say something.
const ST_VALID: u64 = 0x20;

/// `f_flags`: the kernel's numbers are not those of `mount(2)` throughout.
fn flag_bits(flags: MountFlags) -> u64 {
    const BITS: [(MountFlags, u64); 9] = [
        (MountFlags::RDONLY, 1),
        (MountFlags::NOSUID, 2),
        (MountFlags::NODEV, 4),
        (MountFlags::NOEXEC, 8),
        (MountFlags::SYNCHRONOUS, 16),
        (MountFlags::NOATIME, 1024),
        (MountFlags::NODIRATIME, 2048),
        (MountFlags::RELATIME, 4096),
        (MountFlags::NOSYMFOLLOW, 8192),
    ];
    BITS.iter().filter(|(flag, _)| flags.contains(*flag)).fold(ST_VALID, |bits, (_, bit)| bits | bit)
}

fn raw(stat: &StatFs, flags: MountFlags, dev: u64) -> RawStatFs {
    RawStatFs {
        magic: stat.magic,
        bsize: stat.bsize,
        blocks: stat.blocks,
        bfree: stat.bfree,
        bavail: stat.bavail,
        files: stat.files,
        ffree: stat.ffree,
        // Any number that tells file systems apart.
        fsid: dev,
        namelen: stat.namelen,
        frsize: stat.bsize,
        flags: flag_bits(flags),
        spare: [0; 4],
    }
}

fn of_path(path: &Path) -> Result<RawStatFs> {
    let (stat, flags) = ops::statfs(path)?;
    Ok(raw(&stat, flags, path.attr()?.dev))
}

/// The kernel's own file systems, in which files without names are.
fn of_anonymous(file: &OpenFile) -> RawStatFs {
    let magic = if file.object().as_socket().is_some() {
        0x534f_434b
    } else if file.downcast::<PipeEnd>().is_some() {
        0x5049_5045
    } else if file.downcast::<TmpFile>().is_some() {
        0x0102_1994
    } else {
        0x0904_1934
    };
    let stat = StatFs { magic, bsize: 4096, namelen: 255, ..StatFs::default() };
    raw(&stat, MountFlags::empty(), file.object().anonymous_attr().map_or(0, |attr| attr.dev))
}

/// `statfs(2)`.
pub fn statfs(cur: &mut Current, path: UserStr, buf: UserPtr<RawStatFs>) -> SysResult {
    let path = cur.lookup(Fd(libc::AT_FDCWD), path, LookupFlags::FOLLOW)?;
    buf.write(cur.space(), &of_path(&path)?).map(|()| 0)
}

/// `fstatfs(2)`.
pub fn fstatfs(cur: &mut Current, fd: Fd, buf: UserPtr<RawStatFs>) -> SysResult {
    let file = cur.file(fd)?;
    let stat = match file.path() {
        Some(path) => of_path(path)?,
        None => of_anonymous(&file),
    };
    buf.write(cur.space(), &stat).map(|()| 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statfs_is_laid_out_as_the_c_library_reads_it() {
        let stat = StatFs { magic: 1, bsize: 2, blocks: 3, bfree: 4, bavail: 5, files: 6, ffree: 7, namelen: 8 };
        let ours = raw(&stat, MountFlags::RDONLY | MountFlags::RELATIME, 9);
        assert_eq!(size_of::<RawStatFs>(), size_of::<libc::statfs>());
        // SAFETY: both are of one size, and every bit pattern is a value.
        let host: libc::statfs = unsafe { std::mem::transmute(ours) };
        assert_eq!((host.f_type, host.f_bsize, host.f_blocks, host.f_bfree), (1, 2, 3, 4));
        assert_eq!((host.f_bavail, host.f_files, host.f_ffree, host.f_namelen, host.f_frsize), (5, 6, 7, 8, 2));
        assert_eq!(ours.flags, 0x20 | libc::ST_RDONLY | 4096);
    }
}
