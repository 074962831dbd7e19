//! Descriptor tables: `open(2)`'s "lowest-numbered descriptor not in use".

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::vfs::file::OpenFile;

/// `/proc/sys/fs/nr_open`: no table grows beyond this.
pub const NR_OPEN: u64 = 1 << 20;

#[derive(Clone)]
struct Entry {
    file: Arc<OpenFile>,
    cloexec: bool,
}

#[derive(Clone, Default)]
struct Entries {
    slots: Vec<Option<Entry>>,
    /// No free slot lies below this.
    lowest_free: usize,
    /// Free slots that calls which are under way will fill.
    reserved: Vec<usize>,
}

/// The descriptors that the tasks of one table share. Its lock is a leaf; what is closed is dropped without it.
///
/// The table is also what POSIX record locks belong to: closing any descriptor of a file lets go of all that the table holds
/// on it (`fcntl(2)`), and so does the end of the table with its last task.
pub struct FdTable {
    entries: Mutex<Entries>,
    /// Unique in the sandbox: the owner of its record locks.
    id: u64,
    /// Whether it ever held a record lock: else closing has none to look for.
    locked: AtomicBool,
}

impl Default for FdTable {
    fn default() -> FdTable {
        FdTable::with_entries(Entries::default())
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        let slots = std::mem::take(&mut self.entries.get_mut().slots);
        for entry in slots.into_iter().flatten() {
            let _ = self.closed(&entry.file);
        }
    }
}

impl Entries {
    fn first_free(&self, from: usize) -> usize {
        let mut from = from.max(self.lowest_free);
        loop {
            let rest = self.slots.get(from..).unwrap_or(&[]);
            let at = rest.iter().position(Option::is_none).map_or(from.max(self.slots.len()), |at| from + at);
            if !self.reserved.contains(&at) {
                return at;
            }
            from = at + 1;
        }
    }

    fn put(&mut self, fd: usize, entry: Entry) -> Option<Entry> {
        if fd >= self.slots.len() {
            self.slots.resize_with(fd + 1, || None);
        }
        if fd == self.lowest_free {
            self.lowest_free = fd + 1;
        }
        self.slots[fd].replace(entry)
    }

    fn take(&mut self, fd: usize) -> Option<Entry> {
        let entry = self.slots.get_mut(fd)?.take()?;
        self.lowest_free = self.lowest_free.min(fd);
        Some(entry)
    }
}

impl FdTable {
    fn with_entries(entries: Entries) -> FdTable {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        FdTable { entries: Mutex::new(entries), id, locked: AtomicBool::new(false) }
    }

    /// An empty table.
    pub fn new() -> Arc<FdTable> {
        Arc::default()
    }

    /// Its number, unique in the sandbox: the owner of its record locks.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Notes that it takes a record lock, which is then let go when the file is closed. Call before taking the lock.
    pub fn note_lock(&self) {
        self.locked.store(true, Ordering::Relaxed);
    }

    /// What every closing of a descriptor does besides taking it off the table: lets go of the table's record locks on the
    /// file and flushes it. Returns what flushing did.
    pub fn closed(&self, file: &OpenFile) -> Result<()> {
        if self.locked.load(Ordering::Relaxed)
            && let Some(locks) = file.known_locks()
        {
            locks.process_closed(self.id);
        }
        if file.is_path_only() { Ok(()) } else { file.object().flush() }
    }

    /// The file behind `fd`. `EBADF`.
    pub fn get(&self, fd: i32) -> Result<Arc<OpenFile>> {
        self.get_with_flags(fd).map(|(file, _)| file)
    }

    /// The file behind `fd` and whether it is closed on `execve(2)`. `EBADF`.
    pub fn get_with_flags(&self, fd: i32) -> Result<(Arc<OpenFile>, bool)> {
        let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let entries = self.entries.lock();
        let entry = entries.slots.get(fd).and_then(Option::as_ref).ok_or(Errno::EBADF)?;
        Ok((entry.file.clone(), entry.cloexec))
    }

    /// Gives `file` the lowest free descriptor from `from` on and below `limit` (`RLIMIT_NOFILE`). `EMFILE`.
    pub fn add(&self, file: Arc<OpenFile>, cloexec: bool, from: u64, limit: u64) -> Result<i32> {
        let mut entries = self.entries.lock();
        let fd = entries.first_free(usize::try_from(from).map_err(|_| Errno::EMFILE)?);
        if fd as u64 >= limit.min(NR_OPEN) {
            return Err(Errno::EMFILE);
        }
        entries.put(fd, Entry { file, cloexec });
        Ok(fd as i32)
    }

    /// Sets the lowest free descriptor below `limit` aside for a file that is to be made: so a call that has none to give
    /// makes and takes nothing. `EMFILE`.
    pub fn reserve(self: &Arc<Self>, limit: u64) -> Result<FdSlot> {
        let mut entries = self.entries.lock();
        let fd = entries.first_free(0);
        if fd as u64 >= limit.min(NR_OPEN) {
            return Err(Errno::EMFILE);
        }
        entries.reserved.push(fd);
        drop(entries);
        Ok(FdSlot { table: self.clone(), fd, filled: false })
    }

    /// Gives `file` the descriptor `fd`, and returns what it was before. `EBADF` from `limit` on, `EBUSY` when a call of another
    /// thread is about to return it.
    pub fn replace(&self, fd: i32, file: Arc<OpenFile>, cloexec: bool, limit: u64) -> Result<Option<Arc<OpenFile>>> {
        let at = usize::try_from(fd).ok().filter(|&at| (at as u64) < limit.min(NR_OPEN)).ok_or(Errno::EBADF)?;
        let mut entries = self.entries.lock();
        if entries.reserved.contains(&at) {
            return Err(Errno::EBUSY);
        }
        let old = entries.put(at, Entry { file, cloexec });
        drop(entries);
        Ok(old.map(|entry| entry.file))
    }

    /// Takes `fd` off the table. `EBADF`.
    pub fn remove(&self, fd: i32) -> Result<Arc<OpenFile>> {
        let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        self.entries.lock().take(fd).map(|entry| entry.file).ok_or(Errno::EBADF)
    }

    /// `FD_CLOEXEC`. `EBADF`.
    pub fn set_cloexec(&self, fd: i32, cloexec: bool) -> Result<()> {
        let fd = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let mut entries = self.entries.lock();
        entries.slots.get_mut(fd).and_then(Option::as_mut).ok_or(Errno::EBADF)?.cloexec = cloexec;
        Ok(())
    }

    /// `FD_CLOEXEC` of all from `first` to `last`, those that are open.
    pub fn set_cloexec_range(&self, first: u32, last: u32) {
        let mut entries = self.entries.lock();
        for entry in entries.slots.iter_mut().take(last as usize + 1).skip(first as usize).flatten() {
            entry.cloexec = true;
        }
    }

    /// Takes all from `first` to `last` off.
    pub fn remove_range(&self, first: u32, last: u32) -> Vec<Arc<OpenFile>> {
        let mut entries = self.entries.lock();
        let end = entries.slots.len().min(last as usize + 1);
        (first as usize..end).filter_map(|fd| entries.take(fd).map(|entry| entry.file)).collect()
    }

    /// Takes off what `execve(2)` closes.
    pub fn remove_cloexec(&self) -> Vec<Arc<OpenFile>> {
        let mut entries = self.entries.lock();
        let doomed = |entry: &Option<Entry>| entry.as_ref().is_some_and(|entry| entry.cloexec);
        let fds: Vec<_> = (0..entries.slots.len()).filter(|&fd| doomed(&entries.slots[fd])).collect();
        fds.into_iter().filter_map(|fd| entries.take(fd).map(|entry| entry.file)).collect()
    }

    /// A table of its own with the same files: `fork(2)`.
    pub fn fork(&self) -> Arc<FdTable> {
        let entries = Entries { reserved: Vec::new(), ..self.entries.lock().clone() };
        Arc::new(FdTable::with_entries(entries))
    }

    /// The open descriptors: for `/proc/PID/fd`.
    pub fn list(&self) -> Vec<i32> {
        let entries = self.entries.lock();
        (0..entries.slots.len()).filter(|&fd| entries.slots[fd].is_some()).map(|fd| fd as i32).collect()
    }
}

/// A descriptor that is set aside, free again when this is dropped unused.
pub struct FdSlot {
    table: Arc<FdTable>,
    fd: usize,
    filled: bool,
}

impl FdSlot {
    /// The descriptor, which now is `file`.
    pub fn fill(mut self, file: Arc<OpenFile>, cloexec: bool) -> i32 {
        self.filled = true;
        let mut entries = self.table.entries.lock();
        entries.reserved.retain(|&fd| fd != self.fd);
        entries.put(self.fd, Entry { file, cloexec });
        drop(entries);
        self.fd as i32
    }
}

impl Drop for FdSlot {
    fn drop(&mut self) {
        if !self.filled {
            self.table.entries.lock().reserved.retain(|&fd| fd != self.fd);
        }
    }
}
