//! System V IPC: `sysvipc(7)`. There is one namespace in a sandbox.
//!
//! Lock order: a table's lock > an object's own. Files are made and dropped without them.

pub mod sem;
pub mod shm;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::creds::{Caps, Credentials};

/// All objects.
#[derive(Default)]
pub struct Ipc {
    /// Shared memory.
    pub shm: Arc<shm::Segments>,
    /// Semaphores.
    pub sem: sem::Sets,
}

/// What a caller wants to do to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Bits of a mode: 4 to read, 2 to change.
    Bits(u32),
    /// To remove it, or change whose it is.
    Own,
}

/// `struct ipc_perm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perm {
    /// `IPC_PRIVATE` or what it is found by.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Maker.
    pub cuid: u32,
    /// Its group.
    pub cgid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl Perm {
    /// Of an object that `creds` makes.
    pub fn new(key: i32, creds: &Credentials, mode: u32) -> Perm {
        let (uid, gid) = (creds.euid, creds.egid);
        Perm { key, uid, gid, cuid: uid, cgid: gid, mode: mode & 0o777 }
    }

    /// `EACCES`, or `EPERM` for what only owners may.
    pub fn check(&self, creds: &Credentials, want: Want) -> Result<()> {
        let owns = [self.uid, self.cuid].contains(&creds.euid);
        match want {
            Want::Own if owns || creds.has(Caps::SYS_ADMIN) => Ok(()),
            Want::Own => Err(Errno::EPERM),
            Want::Bits(bits) => {
                let in_group = |gid: u32| creds.in_effective_group(gid);
                let shift = match owns {
                    true => 6,
                    false if in_group(self.gid) || in_group(self.cgid) => 3,
                    false => 0,
                };
                let missing = bits & !(self.mode >> shift);
                if missing & 7 == 0 || creds.has(Caps::IPC_OWNER) { Ok(()) } else { Err(Errno::EACCES) }
            }
        }
    }

    /// `IPC_SET`.
    pub fn set(&mut self, uid: u32, gid: u32, mode: u32) {
        (self.uid, self.gid, self.mode) = (uid, gid, mode & 0o777);
    }

    /// The structure, six words long.
    pub fn words(&self) -> [u64; 6] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [pair(self.key as u32, self.uid), pair(self.gid, self.cuid), pair(self.cgid, self.mode), 0, 0, 0]
    }

    /// User, group and mode of the structure's words.
    pub fn from_words(words: &[u64; 6]) -> (u32, u32, u32) {
        ((words[0] >> 32) as u32, words[1] as u32, (words[2] >> 32) as u32)
    }
}

/// Objects by id and by key.
pub struct Ids<T> {
    objects: BTreeMap<i32, Arc<T>>,
    keys: HashMap<i32, i32>,
    next: i32,
}

impl<T> Default for Ids<T> {
    fn default() -> Ids<T> {
        Ids { objects: BTreeMap::new(), keys: HashMap::new(), next: 0 }
    }
}

impl<T> Ids<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// All, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (i32, &Arc<T>)> {
        self.objects.iter().map(|(&id, object)| (id, object))
    }

    /// By its id. `EINVAL`.
    pub fn get(&self, id: i32) -> Result<Arc<T>> {
        self.objects.get(&id).cloned().ok_or(Errno::EINVAL)
    }

    /// By its key.
    pub fn find(&self, key: i32) -> Option<(i32, Arc<T>)> {
        let id = *self.keys.get(&key)?;
        Some((id, self.objects.get(&id)?.clone()))
    }

    /// Adds what `make` makes of the new id. Ids come back late, so that a stale one seldom means another object.
    pub fn add(&mut self, key: i32, make: impl FnOnce(i32) -> T) -> i32 {
        while self.objects.contains_key(&self.next) {
            self.next = self.next.checked_add(1).unwrap_or(0);
        }
        let id = self.next;
        self.next = id.checked_add(1).unwrap_or(0);
        self.objects.insert(id, Arc::new(make(id)));
        if key != libc::IPC_PRIVATE {
            self.keys.insert(key, id);
        }
        id
    }

    /// From now on no key finds it.
    pub fn forget_key(&mut self, id: i32) {
        self.keys.retain(|_, of| *of != id);
    }

    /// Removes it.
    pub fn remove(&mut self, id: i32) -> Option<Arc<T>> {
        self.forget_key(id);
        self.objects.remove(&id)
    }
}

/// What `shmget(2)` and its kin do with key and flags: the object that is there, or `None` to make one. `EEXIST`, `ENOENT`,
/// `ENOSPC`.
fn look_up<T>(ids: &Ids<T>, key: i32, flags: i32, most: usize) -> Result<Option<(i32, Arc<T>)>> {
    if key != libc::IPC_PRIVATE {
        match ids.find(key) {
            Some(_) if flags & libc::IPC_CREAT != 0 && flags & libc::IPC_EXCL != 0 => return Err(Errno::EEXIST),
            Some(found) => return Ok(Some(found)),
            None if flags & libc::IPC_CREAT == 0 => return Err(Errno::ENOENT),
            None => {}
        }
    }
    if ids.len() >= most { Err(Errno::ENOSPC) } else { Ok(None) }
}

/// The bits of `flags` that a caller must have on an object that is there.
fn wanted(flags: i32) -> Want {
    let mode = flags as u32;
    Want::Bits((mode >> 6 | mode >> 3 | mode) & 7)
}

/// Seconds since 1970.
fn now() -> i64 {
    (crate::timer::clock::Clock::Realtime.now() / 1_000_000_000) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_ids_find_objects() {
        let mut ids = Ids::default();
        let one = ids.add(7, |id| id);
        assert_eq!(look_up(&ids, 7, libc::IPC_CREAT, 9).map(|found| found.map(|(id, _)| id)), Ok(Some(one)));
        assert_eq!(look_up(&ids, 7, libc::IPC_CREAT | libc::IPC_EXCL, 9).err(), Some(Errno::EEXIST));
        assert_eq!(look_up(&ids, 8, 0, 9).err(), Some(Errno::ENOENT));
        assert_eq!(look_up(&ids, 8, libc::IPC_CREAT, 1).err(), Some(Errno::ENOSPC));
        ids.forget_key(one);
        assert!(ids.find(7).is_none() && ids.get(one).is_ok());
        ids.remove(one);
        assert_eq!(ids.get(one).err(), Some(Errno::EINVAL));
        assert_ne!(ids.add(7, |id| id), one);
    }

    #[test]
    fn permissions_come_back_from_their_words() {
        let perm = Perm { key: -3, uid: 1, gid: 2, cuid: 3, cgid: 4, mode: 0o640 };
        assert_eq!(Perm::from_words(&perm.words()), (1, 2, 0o640));
        assert_eq!(wanted(0o600), Want::Bits(6));
    }
}
