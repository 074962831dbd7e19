//! Extended attributes kept in memory: `xattr(7)`.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::space::{Space, pages_of};
use crate::errno::{Errno, Result};

/// `XATTR_NAME_MAX`.
const NAME_MAX: usize = 255;
/// `XATTR_SIZE_MAX`.
const VALUE_MAX: usize = 64 << 10;
/// What the names and values of one inode may add up to.
const TOTAL_MAX: usize = 128 << 10;

/// The attributes of one inode. Leaf lock.
pub struct Xattrs {
    space: Arc<Space>,
    map: Mutex<Map>,
}

#[derive(Default)]
struct Map {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
}

impl Xattrs {
    /// None yet.
    pub fn new(space: Arc<Space>) -> Xattrs {
        Xattrs { space, map: Mutex::default() }
    }

    /// Their names.
    pub fn list(&self) -> Vec<Vec<u8>> {
        self.map.lock().values.keys().cloned().collect()
    }

    /// One value. `ENODATA`; `EOPNOTSUPP` for a namespace that is not kept.
    pub fn get(&self, name: &[u8]) -> Result<Vec<u8>> {
        check_name(name)?;
        self.map.lock().values.get(name).cloned().ok_or(Errno::ENODATA)
    }

    /// Sets one. `EEXIST` (`XATTR_CREATE`), `ENODATA` (`XATTR_REPLACE`), `E2BIG`, `ENOSPC`.
    pub fn set(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        check_name(name)?;
        if value.len() > VALUE_MAX {
            return Err(Errno::E2BIG);
        }
        let mut map = self.map.lock();
        let old = map.values.get(name).map(|value| name.len() + value.len());
        match (old, flags) {
            (Some(_), libc::XATTR_CREATE) => return Err(Errno::EEXIST),
            (None, libc::XATTR_REPLACE) => return Err(Errno::ENODATA),
            _ => {}
        }
        let bytes = map.bytes - old.unwrap_or(0) + name.len() + value.len();
        if bytes > TOTAL_MAX {
            return Err(Errno::ENOSPC);
        }
        self.account(&mut map, bytes)?;
        map.values.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    /// Removes one. `ENODATA`.
    pub fn remove(&self, name: &[u8]) -> Result<()> {
        check_name(name)?;
        let mut map = self.map.lock();
        let value = map.values.remove(name).ok_or(Errno::ENODATA)?;
        let bytes = map.bytes - name.len() - value.len();
        self.account(&mut map, bytes)
    }

    fn account(&self, map: &mut Map, bytes: usize) -> Result<()> {
        let (before, after) = (pages_of(map.bytes as u64), pages_of(bytes as u64));
        if after > before {
            self.space.take_pages(after - before)?;
        } else {
            self.space.give_pages(before - after);
        }
        map.bytes = bytes;
        Ok(())
    }
}

impl Drop for Xattrs {
    fn drop(&mut self) {
        self.space.give_pages(pages_of(self.map.get_mut().bytes as u64));
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    let kept: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let Some(prefix) = kept.into_iter().find(|prefix| name.starts_with(prefix)) else {
        return Err(Errno::EOPNOTSUPP);
    };
    match name.len() {
        len if len > NAME_MAX => Err(Errno::ERANGE),
        len if len == prefix.len() => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}
