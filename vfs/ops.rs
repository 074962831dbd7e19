//! What is done to a node that is resolved already, whether by a path or through a descriptor.

use crate::errno::{Errno, Result};
use crate::sentry::creds::Credentials;
use crate::vfs::inode::{StatFs, TimeSpec};
use crate::vfs::mount::MountFlags;
use crate::vfs::path::Path;
use crate::vfs::perm::Access;

/// A time to set: `utimensat(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// `UTIME_OMIT`.
    Omit,
    /// `UTIME_NOW`.
    Now,
    /// A time.
    At(TimeSpec),
}

/// `chmod(2)`. `EPERM`, `EROFS`; `EOPNOTSUPP` for a symbolic link.
pub fn chmod(path: &Path, creds: &Credentials, mode: u32) -> Result<()> {
    let _ = (path, creds, mode);
    Err(Errno::ENOSYS)
}

/// `chown(2)`; `None` leaves an id as it is. Clears set-id bits. `EPERM`, `EROFS`.
pub fn chown(path: &Path, creds: &Credentials, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let _ = (path, creds, uid, gid);
    Err(Errno::ENOSYS)
}

/// `utimensat(2)`. `EPERM`, `EACCES`, `EROFS`.
pub fn set_times(path: &Path, creds: &Credentials, atime: SetTime, mtime: SetTime) -> Result<()> {
    let _ = (path, creds, atime, mtime);
    Err(Errno::ENOSYS)
}

/// `truncate(2)`, with its permission check. `EISDIR`, `EINVAL`, `ETXTBSY`, `EACCES`, `EROFS`.
pub fn truncate(path: &Path, creds: &Credentials, len: u64) -> Result<()> {
    let _ = (path, creds, len);
    Err(Errno::ENOSYS)
}

/// `access(2)`: with [`perm::real_credentials`](super::perm::real_credentials) unless `AT_EACCESS`.
pub fn access(path: &Path, creds: &Credentials, access: Access) -> Result<()> {
    let _ = (path, creds, access);
    Err(Errno::ENOSYS)
}

/// `statfs(2)`: with the mount's flags, of which `f_flags` is made.
pub fn statfs(path: &Path) -> Result<(StatFs, MountFlags)> {
    let _ = path;
    Err(Errno::ENOSYS)
}
