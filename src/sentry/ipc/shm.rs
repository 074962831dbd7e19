//! Shared memory: `shmget(2)`. A segment is a file without a name; an attachment is an open file of it that mappings hold, so
//! it ends with its last mapping, however that goes.

use std::any::Any;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Ids, Perm, Want, look_up, now, wanted};
use crate::errno::{Errno, Result};
use crate::sentry::creds::Credentials;
use crate::vfs::file::{File, Mapping, OpenFile};
use crate::vfs::inode::{Attr, SetAttr};
use crate::vfs::tmpfs;

/// `/proc/sys/kernel/shmmni`.
pub const SHMMNI: usize = 4096;

/// All segments.
#[derive(Default)]
pub struct Segments {
    ids: Mutex<Ids<Segment>>,
}

/// What changes of a segment.
#[derive(Clone, Copy)]
pub struct State {
    /// Who may do what.
    pub perm: Perm,
    /// Attached, detached, changed: seconds since 1970.
    pub times: [i64; 3],
    /// Maker, and who attached or detached last.
    pub pids: [i32; 2],
    /// Attachments. Those that a child has from its parent count as one with the parent's.
    pub attached: u64,
    /// Removed, and there only as long as somebody has it attached.
    pub removed: bool,
}

/// A segment.
pub struct Segment {
    id: i32,
    size: u64,
    file: Arc<dyn File>,
    state: Mutex<State>,
}

impl Segment {
    /// Its size as it was asked for.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What is to be told of it.
    pub fn state(&self) -> State {
        *self.state.lock()
    }

    /// `IPC_SET`. `EPERM`.
    pub fn set(&self, creds: &Credentials, (uid, gid, mode): (u32, u32, u32)) -> Result<()> {
        let mut state = self.state.lock();
        state.perm.check(creds, Want::Own)?;
        state.perm.set(uid, gid, mode);
        state.times[2] = now();
        Ok(())
    }
}

impl Segments {
    /// `shmget(2)`. `EEXIST`, `ENOENT`, `ENOSPC`, `EINVAL`, `EACCES`, `ENOMEM`.
    pub fn get(&self, key: i32, size: u64, flags: i32, creds: &Credentials, pid: i32) -> Result<i32> {
        let mut ids = self.ids.lock();
        if let Some((id, segment)) = look_up(&ids, key, flags, SHMMNI)? {
            segment.state().perm.check(creds, wanted(flags))?;
            return if size > segment.size { Err(Errno::EINVAL) } else { Ok(id) };
        }
        let whole = size.checked_next_multiple_of(4096).filter(|&whole| whole > 0 && whole <= i64::MAX as u64);
        let whole = whole.ok_or(Errno::EINVAL)?;
        let file = tmpfs::anonymous(&format!("SYSV{key:08x}"), (creds.euid, creds.egid), flags as u32 & 0o777, false)?;
        file.set_anonymous_attr(&SetAttr { size: Some(whole), ..SetAttr::default() })?;
        let state = State {
            perm: Perm::new(key, creds, flags as u32),
            times: [0, 0, now()],
            pids: [pid, 0],
            attached: 0,
            removed: false,
        };
        Ok(ids.add(key, |id| Segment { id, size, file, state: Mutex::new(state) }))
    }

    /// A segment. `EINVAL`.
    pub fn find(&self, id: i32) -> Result<Arc<Segment>> {
        self.ids.lock().get(id)
    }

    /// Each one's id, size and state: `/proc/sysvipc/shm`.
    pub fn list(&self) -> Vec<(i32, u64, State)> {
        self.ids.lock().iter().map(|(id, segment)| (id, segment.size, segment.state())).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `IPC_RMID`: it goes with its last attachment. `EPERM`.
    pub fn remove(&self, segment: &Segment, creds: &Credentials) -> Result<()> {
        let mut ids = self.ids.lock();
        let mut state = segment.state.lock();
        state.perm.check(creds, Want::Own)?;
        state.removed = true;
        state.perm.key = libc::IPC_PRIVATE;
        let unused = state.attached == 0;
        drop(state);
        ids.forget_key(segment.id);
        let gone = if unused { ids.remove(segment.id) } else { None };
        drop(ids);
        drop(gone);
        Ok(())
    }

    /// An open file to be mapped: the attachment lasts as long as that. `EACCES`.
    pub fn attach(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        creds: &Credentials,
        writable: bool,
        pid: i32,
    ) -> Result<Arc<OpenFile>> {
        let mut state = segment.state.lock();
        state.perm.check(creds, Want::Bits(if writable { 6 } else { 4 }))?;
        state.attached += 1;
        state.times[0] = now();
        state.pids[1] = pid;
        drop(state);
        let attachment = Attachment { segment: segment.clone(), segments: Arc::downgrade(self) };
        Ok(OpenFile::anonymous(Arc::new(attachment), if writable { libc::O_RDWR } else { libc::O_RDONLY }))
    }
}

/// What mappings of a segment hold.
pub struct Attachment {
    segment: Arc<Segment>,
    segments: Weak<Segments>,
}

impl Attachment {
    /// `shmdt(2)` by this process.
    pub fn detached_by(&self, pid: i32) {
        self.segment.state.lock().pids[1] = pid;
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let Some(segments) = self.segments.upgrade() else { return };
        let mut ids = segments.ids.lock();
        let mut state = self.segment.state.lock();
        state.attached -= 1;
        state.times[1] = now();
        let unused = state.removed && state.attached == 0;
        drop(state);
        if unused {
            ids.remove(self.segment.id); // never the last reference: this has one
        }
    }
}

impl File for Attachment {
    fn seekable(&self) -> bool {
        true
    }

    fn size(&self) -> Result<u64> {
        self.segment.file.size()
    }

    fn mapping(&self, shared: bool, writable: bool) -> Result<Mapping> {
        self.segment.file.mapping(shared, writable)
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        self.segment.file.anonymous_attr()
    }

    /// As `/proc/PID/maps` shows it.
    fn anonymous_name(&self) -> Option<String> {
        Some(format!("/SYSV{:08x} (deleted)", self.segment.state().perm.key))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_segment_lives_until_it_is_detached() {
        let segments = Arc::new(Segments::default());
        let root = Credentials::root();
        let id = segments.get(5, 100, libc::IPC_CREAT | 0o600, &root, 1).expect("made");
        assert_eq!(segments.get(5, 100, 0, &root, 1), Ok(id));
        assert_eq!(segments.get(5, 101, 0, &root, 1), Err(Errno::EINVAL));
        assert_eq!(segments.get(6, 0, libc::IPC_CREAT, &root, 1), Err(Errno::EINVAL));
        let segment = segments.find(id).expect("found");
        let file = segments.attach(&segment, &root, true, 1).expect("attached");
        assert_eq!((segment.state().attached, file.object().size()), (1, Ok(4096)));
        segments.remove(&segment, &root).expect("removed");
        assert_eq!(segments.get(5, 100, 0, &root, 1), Err(Errno::ENOENT));
        assert!(segments.find(id).is_ok(), "still attached");
        drop(file);
        assert_eq!(segments.find(id).err(), Some(Errno::EINVAL));
    }
}
