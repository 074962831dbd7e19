//! Extended attributes: `xattr(7)`, the rules of the name spaces.

use crate::errno::{Errno, Result};
use crate::sentry::creds::Credentials;
use crate::vfs::path::Path;

/// `getxattr(2)`. `ENODATA`, `EOPNOTSUPP`, `ERANGE` is the caller's.
pub fn get(path: &Path, creds: &Credentials, name: &[u8]) -> Result<Vec<u8>> {
    let _ = (path, creds, name);
    Err(Errno::ENOSYS)
}

/// `setxattr(2)`: `flags` are `XATTR_CREATE`, `XATTR_REPLACE`.
pub fn set(path: &Path, creds: &Credentials, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
    let _ = (path, creds, name, value, flags);
    Err(Errno::ENOSYS)
}

/// `removexattr(2)`.
pub fn remove(path: &Path, creds: &Credentials, name: &[u8]) -> Result<()> {
    let _ = (path, creds, name);
    Err(Errno::ENOSYS)
}

/// `listxattr(2)`: the names that `creds` may see.
pub fn list(path: &Path, creds: &Credentials) -> Result<Vec<Vec<u8>>> {
    let _ = (path, creds);
    Err(Errno::ENOSYS)
}
