//! Extended attributes: `xattr(7)`, the rules of the name spaces.

use crate::errno::{Errno, Result};
use crate::sentry::creds::{Caps, Credentials};
use crate::vfs::inode::NodeType;
use crate::vfs::ops::privileges_given;
use crate::vfs::path::{Path, notify_at};
use crate::vfs::perm::{Access, may, owner, writable_mount};

/// `XATTR_NAME_MAX`.
pub const NAME_MAX: usize = 255;
/// `XATTR_SIZE_MAX`.
pub const SIZE_MAX: usize = 64 << 10;

/// Whether `creds` may read or, with `write`, change attribute `name`.
fn check(path: &Path, creds: &Credentials, name: &[u8], write: bool) -> Result<()> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(Errno::ERANGE);
    }
    if write {
        writable_mount(path)?;
    }
    let attr = path.attr()?;
    let has_body = |space: &[u8]| if name.len() > space.len() { Ok(()) } else { Err(Errno::EINVAL) };
    // Elsewhere user attributes would escape quotas; reading finds none.
    let refused = if write { Errno::EPERM } else { Errno::ENODATA };
    if name.starts_with(b"user.") {
        has_body(b"user.")?;
        if !matches!(attr.kind, NodeType::Regular | NodeType::Directory) {
            return Err(refused);
        }
        if write && attr.kind == NodeType::Directory && attr.perm & libc::S_ISVTX != 0 {
            owner(&attr, creds)?;
        }
        may(&attr, creds, if write { Access::WRITE } else { Access::READ })
    } else if name.starts_with(b"trusted.") {
        has_body(b"trusted.")?;
        if creds.has(Caps::SYS_ADMIN) { Ok(()) } else { Err(refused) }
    } else if name.starts_with(b"security.") {
        has_body(b"security.")?;
        let needed = if name == b"security.capability" { Caps::SETFCAP } else { Caps::SYS_ADMIN };
        if !write || creds.has(needed) { Ok(()) } else { Err(Errno::EPERM) }
    } else {
        // `system.` holds POSIX access lists, which are not supported; other spaces do not exist.
        Err(Errno::EOPNOTSUPP)
    }
}

/// `getxattr(2)`. `ENODATA`, `EOPNOTSUPP`; `ERANGE` for a buffer too small is the caller's.
pub fn get(path: &Path, creds: &Credentials, name: &[u8]) -> Result<Vec<u8>> {
    check(path, creds, name, false)?;
    path.inode()?.get_xattr(name)
}

/// `setxattr(2)`: `flags` are `XATTR_CREATE`, `XATTR_REPLACE`.
pub fn set(path: &Path, creds: &Credentials, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
    if flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) != 0 {
        return Err(Errno::EINVAL);
    }
    if value.len() > SIZE_MAX {
        return Err(Errno::E2BIG);
    }
    check(path, creds, name, true)?;
    path.inode()?.set_xattr(name, value, flags)?;
    if name == b"security.capability" {
        privileges_given();
    }
    notify_at(path, libc::IN_ATTRIB);
    Ok(())
}

/// `removexattr(2)`.
pub fn remove(path: &Path, creds: &Credentials, name: &[u8]) -> Result<()> {
    check(path, creds, name, true)?;
    path.inode()?.remove_xattr(name)?;
    notify_at(path, libc::IN_ATTRIB);
    Ok(())
}

/// `listxattr(2)`: the names that `creds` may see.
pub fn list(path: &Path, creds: &Credentials) -> Result<Vec<Vec<u8>>> {
    let mut names = match path.inode()?.list_xattr() {
        Err(Errno::EOPNOTSUPP) => Vec::new(),
        other => other?,
    };
    names.retain(|name| !name.starts_with(b"trusted.") || creds.has(Caps::SYS_ADMIN));
    Ok(names)
}
