//! Who may do what to a node: `path_resolution(7)`, `capabilities(7)`, `access(2)`.

use bitflags::bitflags;

use crate::errno::{Errno, Result};
use crate::sentry::creds::{Caps, Credentials};
use crate::vfs::inode::{Attr, NodeType};
use crate::vfs::path::Path;

bitflags! {
    /// What is asked for: the bits of `access(2)`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Access: u32 {
        /// Execute, or search a directory.
        const EXEC = 1;
        /// Write, or change a directory's names.
        const WRITE = 2;
        /// Read, or list a directory.
        const READ = 4;
    }
}

/// Whether `creds` may do `access` to a node with attributes `attr`, by its permission bits and the capabilities that
/// override them. `EACCES`.
pub fn may(attr: &Attr, creds: &Credentials, access: Access) -> Result<()> {
    let shift = if creds.fsuid == attr.uid {
        6
    } else if creds.in_group(attr.gid) {
        3
    } else {
        0
    };
    if access.bits() & !(attr.perm >> shift) & 7 == 0 {
        return Ok(());
    }
    let directory = attr.kind == NodeType::Directory;
    let harmless = if directory { Access::READ | Access::EXEC } else { Access::READ };
    let overridden = if harmless.contains(access) && creds.has(Caps::DAC_READ_SEARCH) {
        true
    } else {
        // Executing needs at least one execute bit, whoever asks.
        let executable = directory || !access.contains(Access::EXEC) || attr.perm & 0o111 != 0;
        executable && creds.has(Caps::DAC_OVERRIDE)
    };
    if overridden { Ok(()) } else { Err(Errno::EACCES) }
}

/// [`may`] for the node at `path`, and for writing that neither mount nor file system is read-only (`EROFS`; device nodes,
/// FIFOs and sockets may be written to nevertheless).
pub fn may_at(path: &Path, creds: &Credentials, access: Access) -> Result<()> {
    let attr = path.attr()?;
    let stored = matches!(attr.kind, NodeType::Regular | NodeType::Directory | NodeType::Symlink);
    if access.contains(Access::WRITE) && stored {
        writable_mount(path)?;
    }
    may(&attr, creds, access)
}

/// `EROFS` when nothing may be changed through this mount.
pub fn writable_mount(path: &Path) -> Result<()> {
    if path.mount.is_read_only() { Err(Errno::EROFS) } else { Ok(()) }
}

/// Whether `creds` own the node or may act as if. `EPERM`.
pub fn owner(attr: &Attr, creds: &Credentials) -> Result<()> {
    if creds.fsuid == attr.uid || creds.has(Caps::FOWNER) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Whether a name may be taken from a directory: write and search permission, and, where the sticky bit is set, that
/// `creds` own the directory or the victim (`EPERM`).
pub fn may_delete(dir: &Attr, victim: &Attr, creds: &Credentials) -> Result<()> {
    may(dir, creds, Access::WRITE | Access::EXEC)?;
    let sticky = dir.perm & libc::S_ISVTX != 0;
    if sticky && creds.fsuid != victim.uid && creds.fsuid != dir.uid && !creds.has(Caps::FOWNER) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

/// The credentials that `access(2)` checks with: the real ids, and capabilities as `execve` of a program would give them
/// (all that are permitted for user 0, none for others, unless `SECBIT_NO_SETUID_FIXUP` is set).
pub fn real_credentials(creds: &Credentials) -> Credentials {
    const SECBIT_NO_SETUID_FIXUP: u32 = 1 << 2;
    let mut real = creds.clone();
    real.fsuid = creds.ruid;
    real.fsgid = creds.rgid;
    if creds.securebits & SECBIT_NO_SETUID_FIXUP == 0 {
        real.effective = if creds.ruid == 0 { creds.permitted } else { Caps::empty() };
    }
    real
}
