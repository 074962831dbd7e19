//! `pipe(2)`, `memfd_create(2)`.

use crate::errno::Errno;
use crate::sentry::mm::user::{UserPtr, UserStr};
use crate::sentry::syscalls::SysResult;
use crate::sentry::syscalls::fs::fd::add_two;
use crate::sentry::syscalls::fs::open::O_LARGEFILE;
use crate::sentry::task::Current;
use crate::vfs::file::OpenFile;
use crate::vfs::pipe::Pipe;
use crate::vfs::tmpfs;

/// The longest name of a memfd: `NAME_MAX` without `memfd:`.
const MEMFD_NAME_MAX: usize = 249;

/// `pipe(2)`.
pub fn pipe(cur: &mut Current, fds: UserPtr<[i32; 2]>) -> SysResult {
    pipe2(cur, fds, 0)
}

/// `pipe2(2)`. `EINVAL`, `EMFILE`, `EFAULT`. Notification pipes (`O_EXCL`) are not configured.
pub fn pipe2(cur: &mut Current, fds: UserPtr<[i32; 2]>, flags: i32) -> SysResult {
    if flags & !(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_DIRECT) != 0 {
        return Err(Errno::EINVAL);
    }
    let creds = cur.creds();
    let (read, write) = Pipe::create((creds.fsuid, creds.fsgid), flags & libc::O_DIRECT);
    let kept = flags & (libc::O_NONBLOCK | libc::O_DIRECT);
    let read = OpenFile::anonymous(read, libc::O_RDONLY | kept);
    let write = OpenFile::anonymous(write, libc::O_WRONLY | kept);
    add_two(cur, read, write, flags & libc::O_CLOEXEC != 0, |numbers| fds.write(cur.space(), &numbers))
}

/// `memfd_create(2)`. `EINVAL`: flags, a name too long. `EFAULT`. `ENOSYS`: huge pages.
pub fn memfd_create(cur: &mut Current, name: UserStr, flags: u32) -> SysResult {
    const KNOWN: u32 =
        libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB | libc::MFD_NOEXEC_SEAL | libc::MFD_EXEC;
    // With huge pages the upper bits are their size.
    let sizes = if flags & libc::MFD_HUGETLB != 0 { 0x3f << 26 } else { 0 };
    let both = libc::MFD_NOEXEC_SEAL | libc::MFD_EXEC;
    if flags & !(KNOWN | sizes) != 0 || flags & both == both {
        return Err(Errno::EINVAL);
    }
    let name = name.read(cur.space(), MEMFD_NAME_MAX + 1)?.ok_or(Errno::EINVAL)?;
    if flags & libc::MFD_HUGETLB != 0 {
        return Err(Errno::ENOSYS);
    }
    let noexec = flags & libc::MFD_NOEXEC_SEAL != 0;
    let creds = cur.creds();
    let perm = if noexec { 0o666 } else { 0o777 };
    let sealing = noexec || flags & libc::MFD_ALLOW_SEALING != 0;
    let name = String::from_utf8_lossy(&name);
    let file = tmpfs::anonymous(&name, (creds.fsuid, creds.fsgid), perm, sealing)?;
    if noexec {
        file.node().add_seals(tmpfs::F_SEAL_EXEC)?;
    }
    let file = OpenFile::anonymous(file, libc::O_RDWR | O_LARGEFILE);
    cur.add_file(file, flags & libc::MFD_CLOEXEC != 0)
}
