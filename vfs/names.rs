//! What is done to names: `mkdir(2)`, `link(2)`, `unlink(2)`, `rename(2)` and their kin.

use crate::errno::{Errno, Result};
use crate::vfs::inode::{NodeType, RenameFlags};
use crate::vfs::path::Path;
use crate::vfs::walk::Walk;

impl Walk<'_> {
    /// `mkdir(2)`.
    pub fn mkdir(&self, path: &[u8], mode: u32) -> Result<Path> {
        let _ = (path, mode);
        Err(Errno::ENOSYS)
    }

    /// `mknod(2)`, and the node of a socket that is bound to a path.
    pub fn mknod(&self, path: &[u8], kind: NodeType, mode: u32, rdev: u64) -> Result<Path> {
        let _ = (path, kind, mode, rdev);
        Err(Errno::ENOSYS)
    }

    /// `symlink(2)`.
    pub fn symlink(&self, target: &[u8], path: &[u8]) -> Result<()> {
        let _ = (target, path);
        Err(Errno::ENOSYS)
    }

    /// `linkat(2)`: another name, `path`, for `source`, which is resolved.
    pub fn link(&self, source: &Path, path: &[u8]) -> Result<()> {
        let _ = (source, path);
        Err(Errno::ENOSYS)
    }

    /// `unlink(2)`.
    pub fn unlink(&self, path: &[u8]) -> Result<()> {
        let _ = path;
        Err(Errno::ENOSYS)
    }

    /// `rmdir(2)`.
    pub fn rmdir(&self, path: &[u8]) -> Result<()> {
        let _ = path;
        Err(Errno::ENOSYS)
    }

    /// `renameat2(2)`: `old` from here to `new` as seen from `to`, a walk of the same process with another start.
    pub fn rename(&self, old: &[u8], to: &Walk<'_>, new: &[u8], flags: RenameFlags) -> Result<()> {
        let _ = (old, to, new, flags);
        Err(Errno::ENOSYS)
    }
}
