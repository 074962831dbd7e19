//! Host calls beneath a directory descriptor. Every path goes through [`open`], which the kernel keeps inside the tree.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::errno::{Errno, Result, check};

/// Flags for a descriptor that stands for a file and cannot read it.
pub const PATH: i32 = libc::O_PATH | libc::O_NOFOLLOW;

/// Flags for what is meant to be a regular file or a directory. Should it be a FIFO, opening it must not wait.
pub const CONTENT: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;

/// `struct open_how` of openat2(2).
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// `openat2(2)` from `dir` on, which the path cannot leave: not by `..`, not by an absolute name, and symbolic links are
/// not followed. One at the end opens as itself with [`PATH`]. `ELOOP` when there is a link, `EXDEV` when it led out.
pub fn open(dir: BorrowedFd<'_>, path: &[u8], flags: i32, mode: u32) -> Result<OwnedFd> {
    let path = c_string(if path.is_empty() { b"." } else { path })?;
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: mode.into(),
        resolve: libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS,
    };
    let (how, size) = (&raw const how, size_of::<OpenHow>());
    let mut tries = 0;
    loop {
        // SAFETY: the path is NUL-terminated, the structure's size is given.
        let fd = unsafe { libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), how, size) };
        match check(fd) {
            // SAFETY: a descriptor that was just made.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
            // EAGAIN: something was renamed meanwhile, so that the kernel could not tell whether the path stayed inside;
            // or, with O_NONBLOCK, somebody on the host has a lease on the file.
            Err(Errno::EINTR | Errno::EAGAIN) if tries < 64 => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// The text of a symbolic link that is open with `O_PATH`.
pub fn read_link(link: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut text = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: readlinkat(2) with an empty name reads the link itself; the buffer is as long as said.
    let n = unsafe { libc::readlinkat(link.as_raw_fd(), c"".as_ptr(), text.as_mut_ptr().cast(), text.len()) };
    text.truncate(check(n as i64)? as usize);
    Ok(text)
}

/// A name or path for the kernel. `EINVAL` for a NUL in it, which decoding has excluded.
pub fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

/// The result of a host call that returns 0 or -1.
pub fn done(ret: impl Into<i64>) -> Result<()> {
    check(ret.into()).map(drop)
}
