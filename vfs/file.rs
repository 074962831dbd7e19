//! Open files: what a descriptor refers to, and what the object behind it must be able to do.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::sentry::creds::Credentials;
use crate::vfs::Path;
use crate::vfs::deny::{WriteAccess, WriteDenied};
use crate::vfs::fasync::Fasync;
use crate::vfs::inode::{Attachments, Attr, NodeType, SetAttr};
use crate::vfs::locks::FileLocks;
use crate::vfs::{inotify, ops, path};
use crate::wait::{Events, WaitQueue};

/// What can be mapped of a file: a host descriptor whose pages are the file's.
#[derive(Clone)]
pub struct Mapping {
    /// The host file; the file's bytes at offset `o` are the host file's at `o`.
    pub fd: Arc<OwnedFd>,
    /// Whether stores to a shared mapping are allowed to reach it.
    pub writable: bool,
}

/// One entry of a directory, as `getdents64(2)` gives it.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Its inode number.
    pub ino: u64,
    /// Its type.
    pub kind: NodeType,
    /// The position of the entry that follows (`d_off`), to go on from.
    pub next: u64,
}

/// The object behind an open file description. Nothing here blocks for an unbounded time: what cannot proceed returns
/// `EAGAIN` and announces the change on [`File::wait_queue`]; the system-call layer does the waiting.
///
/// The defaults are what Linux answers for a file that does not implement the operation.
pub trait File: Send + Sync + Any {
    /// Reads at `offset` (ignored by what is not seekable). 0 is end of file.
    fn read(&self, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        let _ = (offset, sink);
        Err(Errno::EINVAL)
    }

    /// Writes at `offset` (ignored by what is not seekable).
    fn write(&self, offset: u64, source: &mut dyn Source) -> Result<usize> {
        let _ = (offset, source);
        Err(Errno::EINVAL)
    }

    /// Writes at the end, atomically with respect to other writers (`O_APPEND`). Returns where it began and how much.
    fn append(&self, source: &mut dyn Source) -> Result<(u64, usize)> {
        let n = self.write(0, source)?;
        Ok((0, n))
    }

    /// Whether it has a position (regular files, directories, block devices); pipes, sockets and terminals do not.
    fn seekable(&self) -> bool {
        false
    }

    /// The size that `SEEK_END` counts from.
    fn size(&self) -> Result<u64> {
        Ok(0)
    }

    /// `SEEK_DATA` (`data` true) and `SEEK_HOLE`: the next offset of that sort. `ENXIO` past the end.
    fn seek_data(&self, offset: u64, data: bool) -> Result<u64> {
        let size = self.size()?;
        match (offset >= size, data) {
            (true, _) => Err(Errno::ENXIO),
            (false, true) => Ok(offset),
            (false, false) => Ok(size),
        }
    }

    /// What it is ready for now.
    fn poll(&self) -> Events {
        Events::READ | Events::WRITE
    }

    /// Where changes of [`File::poll`] are announced; `None` for what never changes (regular files: always ready, and
    /// `epoll_ctl(2)` refuses them with `EPERM`).
    fn wait_queue(&self) -> Option<&WaitQueue> {
        None
    }

    /// `ioctl(2)`. Memory behind `arg` is reached through `mem`.
    fn ioctl(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        let _ = (mem, cmd, arg);
        Err(Errno::ENOTTY)
    }

    /// Gives entries from position `pos` on to `emit` until that returns `false` or there are no more. `.` and `..` are
    /// included (the caller's mount decides what `..` is; its `ino` may be the directory's own).
    fn read_dir(&self, pos: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let _ = (pos, emit);
        Err(Errno::ENOTDIR)
    }

    /// What `mmap(2)` of it maps. `ENODEV` when it cannot be mapped.
    fn mapping(&self, shared: bool, writable: bool) -> Result<Mapping> {
        let _ = (shared, writable);
        Err(Errno::ENODEV)
    }

    /// `fsync(2)`, `fdatasync(2)`.
    fn sync(&self, data_only: bool) -> Result<()> {
        let _ = data_only;
        Err(Errno::EINVAL)
    }

    /// `sync_file_range(2)` of a regular file: passed on where a host file is behind it.
    fn sync_range(&self, offset: i64, len: i64, flags: u32) -> Result<()> {
        let _ = (offset, len, flags);
        Ok(())
    }

    /// `posix_fadvise(2)`, `readahead(2)`: passed on where a host file is behind it.
    fn advise(&self, offset: i64, len: i64, advice: i32) -> Result<()> {
        let _ = (offset, len, advice);
        Ok(())
    }

    /// `fallocate(2)`.
    fn allocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        let _ = (mode, offset, len);
        Err(Errno::ENODEV)
    }

    /// Attributes of a file that has no inode in a file system (pipe, socket, anonymous inode); `None` for others.
    fn anonymous_attr(&self) -> Option<Attr> {
        None
    }

    /// Where record locks of a file are kept that has no inode in a file system; `None` for others.
    fn attachments(&self) -> Option<&Attachments> {
        None
    }

    /// Changes attributes of a file that has no inode in a file system.
    fn set_anonymous_attr(&self, set: &SetAttr) -> Result<()> {
        let _ = set;
        Err(Errno::EPERM)
    }

    /// What `/proc/self/fd/N` shows for a file that has no path: `pipe:[5]`, `anon_inode:[eventpoll]`.
    fn anonymous_name(&self) -> Option<String> {
        None
    }

    /// Called on every `close(2)` of a descriptor for it (record locks, `flush`).
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Which events SIGIO tells of, with `O_ASYNC`: with `ERR` and `HUP` among them these are told apart, else they count as
    /// readiness. `None` where Linux knows no such signals.
    fn async_events(&self) -> Option<Events> {
        let all = Events::READ | Events::WRITE | Events::PRI | Events::ALWAYS | Events::RDHUP;
        self.as_socket().map(|_| all)
    }

    /// Flags that `fcntl(F_SETFL)` changed: for what needs to know (`O_DIRECT` on a pipe, `O_NONBLOCK` on a terminal).
    fn flags_changed(&self, flags: i32) -> Result<()> {
        let _ = flags;
        Ok(())
    }

    /// The socket, if it is one.
    fn as_socket(&self) -> Option<&dyn crate::netstack::Socket> {
        None
    }

    /// The object's own type, for calls that concern one type only (`epoll_ctl`, `timerfd_settime`, `splice`).
    fn as_any(&self) -> &dyn Any;
}

/// The caller's memory and identity, as an `ioctl` needs them.
pub trait IoctlMemory {
    /// Copies in exactly `buf.len()` bytes; `EFAULT` otherwise.
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<()>;
    /// Copies out all of `bytes`; `EFAULT` otherwise.
    fn write(&self, addr: u64, bytes: &[u8]) -> Result<()>;
    /// The calling task: for what depends on its session, process group, credentials or signals (terminals, sockets).
    /// Downcast by who needs it, so that the VFS does not depend on the sentry.
    fn caller(&self) -> &dyn Any;
}

/// An open file description (`open(2)`): what descriptors share after `dup(2)` and `fork(2)`.
pub struct OpenFile {
    object: Arc<dyn File>,
    /// The name it was opened by; `None` for pipes, sockets and other anonymous files.
    path: Option<Path>,
    /// `O_*` without the creation flags. The access mode never changes; the rest through `fcntl(F_SETFL)`.
    flags: AtomicU32,
    /// Held over each read or write that uses it, so that two threads' reads do not get the same bytes.
    position: Mutex<u64>,
    /// What few need; leaf lock.
    extra: Mutex<Extra>,
    /// Unique in the sandbox.
    id: u64,
    /// The epoch of privileges in which the file was found to have none.
    plain_since: AtomicU64,
    /// Whether it ever took a lock of its own (`flock(2)`, `F_OFD_SETLK`), which ends with it.
    locked: AtomicBool,
    /// Keeps a program file from being run while it is open for writing.
    _write: Option<WriteAccess>,
    /// Keeps a program file that is being run from being opened for writing.
    _denied: Option<WriteDenied>,
}

/// Rarely used state of an open file description.
#[derive(Default)]
pub struct Extra {
    /// `O_ASYNC`, `F_SETOWN`, `F_SETSIG`.
    fasync: Option<Arc<Fasync>>,
    /// Its locks, where the file has no place for them.
    pub locks: Option<Arc<FileLocks>>,
    /// Who wants to know when the last descriptor is gone.
    pub watchers: Vec<Weak<dyn CloseWatcher>>,
}

/// Something that must let go of an open file description when its last descriptor is closed: an epoll instance's entry.
pub trait CloseWatcher: Send + Sync {
    /// The description ends; `object` is what it referred to. Called without locks held.
    fn closed(&self, object: &Arc<dyn File>);
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if self.locked.load(Ordering::Relaxed)
            && let Some(locks) = self.known_locks()
        {
            locks.description_closed(self.id);
        }
        if !self.is_path_only() {
            self.notify(if self.writable() { libc::IN_CLOSE_WRITE } else { libc::IN_CLOSE_NOWRITE });
        }
        if let Some(fasync) = self.extra.get_mut().fasync.take()
            && let Some(queue) = self.object.wait_queue()
        {
            fasync.disarm(queue);
        }
        for watcher in std::mem::take(&mut self.extra.get_mut().watchers) {
            if let Some(watcher) = watcher.upgrade() {
                watcher.closed(&self.object);
            }
        }
    }
}

/// The flags that `fcntl(F_SETFL)` may change, besides `O_ASYNC`: see [`OpenFile::set_async`].
pub const SETTABLE_FLAGS: i32 = libc::O_APPEND | libc::O_DIRECT | libc::O_NOATIME | libc::O_NONBLOCK;

/// Flags that count at `open` only and are not kept.
const CREATION_FLAGS: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY | libc::O_TRUNC | libc::O_CLOEXEC;

impl OpenFile {
    /// A description of a named file.
    pub fn new(object: Arc<dyn File>, path: Option<Path>, flags: i32) -> Arc<OpenFile> {
        OpenFile::with_write_access(object, path, flags, None)
    }

    /// A description of a named file that holds the right to write to it.
    pub fn with_write_access(
        object: Arc<dyn File>,
        path: Option<Path>,
        flags: i32,
        write: Option<WriteAccess>,
    ) -> Arc<OpenFile> {
        Arc::new(OpenFile::build(object, path, flags, write, None))
    }

    /// A description of a program that is to be run: while it lives, the file cannot be opened for writing.
    pub fn executable(object: Arc<dyn File>, path: Path, denied: WriteDenied) -> Arc<OpenFile> {
        Arc::new(OpenFile::build(object, Some(path), libc::O_RDONLY, None, Some(denied)))
    }

    fn build(
        object: Arc<dyn File>,
        path: Option<Path>,
        flags: i32,
        write: Option<WriteAccess>,
        denied: Option<WriteDenied>,
    ) -> OpenFile {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        OpenFile {
            object,
            path,
            flags: AtomicU32::new((flags & !CREATION_FLAGS) as u32),
            position: Mutex::new(0),
            extra: Mutex::default(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            plain_since: AtomicU64::new(0),
            locked: AtomicBool::new(false),
            _write: write,
            _denied: denied,
        }
    }

    /// A description of a pipe, socket or other anonymous file.
    pub fn anonymous(object: Arc<dyn File>, flags: i32) -> Arc<OpenFile> {
        OpenFile::new(object, None, flags)
    }

    /// What it refers to.
    pub fn object(&self) -> &Arc<dyn File> {
        &self.object
    }

    /// Its number, unique in the sandbox: the owner of its locks.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Notes that it takes a lock of its own, which is then let go when it ends. Call before taking the lock.
    pub fn note_lock(&self) {
        self.locked.store(true, Ordering::Relaxed);
    }

    fn attachments(&self) -> Option<&Attachments> {
        let of_inode = self.path.as_ref().and_then(|path| path.inode().ok()?.attachments());
        of_inode.or_else(|| self.object.attachments())
    }

    /// The locks of what it refers to. Anonymous inodes and the like have no place for them: there they are the
    /// description's own.
    pub fn locks(&self) -> Arc<FileLocks> {
        match self.attachments() {
            Some(attachments) => attachments.get_or_insert(FileLocks::default),
            None => self.extra.lock().locks.get_or_insert_default().clone(),
        }
    }

    /// The locks, if ever there were any.
    pub fn known_locks(&self) -> Option<Arc<FileLocks>> {
        match self.attachments() {
            Some(attachments) => attachments.get(),
            None => self.extra.lock().locks.clone(),
        }
    }

    /// Reports what was done through it to those that watch the file or its directory: one load when nobody watches.
    pub fn notify(&self, mask: u32) {
        if inotify::is_active()
            && let Some(path) = &self.path
        {
            path::notify_at(path, mask);
        }
    }

    /// The object as its own type, if it is a `T`.
    pub fn downcast<T: File>(&self) -> Option<&T> {
        self.object.as_any().downcast_ref()
    }

    /// The name it was opened by.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_ref()
    }

    /// Status flags and access mode, as `fcntl(F_GETFL)` returns them.
    pub fn flags(&self) -> i32 {
        self.flags.load(Ordering::Relaxed) as i32
    }

    /// `fcntl(F_SETFL)`: replaces the settable flags by those in `flags`.
    pub fn set_flags(&self, flags: i32) -> Result<()> {
        self.object.flags_changed(flags & SETTABLE_FLAGS)?;
        let kept = self.flags() & !SETTABLE_FLAGS;
        self.flags.store((kept | (flags & SETTABLE_FLAGS)) as u32, Ordering::Relaxed);
        Ok(())
    }

    /// `O_ASYNC`: turns signals on readiness on or off, where the file knows them; `fd` is what the signal tells. Returns
    /// whether it does: else the flag stays as it is. `ENOMEM`.
    pub fn set_async(&self, on: bool, fd: i32) -> Result<bool> {
        if self.object.async_events().is_none() {
            return Ok(false);
        }
        if on != (self.flags() & libc::O_ASYNC != 0) {
            let fasync = self.fasync();
            match self.object.wait_queue() {
                Some(queue) if on => fasync.arm(queue, fd)?,
                Some(queue) => fasync.disarm(queue),
                None => {}
            }
            let flag = libc::O_ASYNC as u32;
            if on {
                self.flags.fetch_or(flag, Ordering::Relaxed)
            } else {
                self.flags.fetch_and(!flag, Ordering::Relaxed)
            };
        }
        Ok(true)
    }

    /// A write found no room: with `O_ASYNC`, room is told of.
    pub fn note_full(&self) {
        if self.flags() & libc::O_ASYNC != 0
            && let Some(fasync) = self.known_fasync()
        {
            fasync.note_full();
        }
    }

    /// Who is told of readiness and how, made when there is none.
    pub fn fasync(&self) -> Arc<Fasync> {
        self.extra.lock().fasync.get_or_insert_with(|| Fasync::new(&self.object)).clone()
    }

    /// Who is told of readiness and how, if that was ever set.
    pub fn known_fasync(&self) -> Option<Arc<Fasync>> {
        self.extra.lock().fasync.clone()
    }

    /// Whether it was opened for reading.
    pub fn readable(&self) -> bool {
        self.flags() & (libc::O_ACCMODE | libc::O_PATH) != libc::O_WRONLY && !self.is_path_only()
    }

    /// Whether it was opened for writing.
    pub fn writable(&self) -> bool {
        matches!(self.flags() & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR) && !self.is_path_only()
    }

    /// Whether it was opened with `O_PATH`.
    pub fn is_path_only(&self) -> bool {
        self.flags() & libc::O_PATH != 0
    }

    /// Whether it must not block.
    pub fn nonblocking(&self) -> bool {
        self.flags() & libc::O_NONBLOCK != 0
    }

    /// The rarely used state.
    pub fn extra(&self) -> &Mutex<Extra> {
        &self.extra
    }

    /// Reads at the position and moves it. `EBADF` when not open for reading.
    pub fn read(&self, sink: &mut dyn Sink) -> Result<usize> {
        if !self.readable() {
            return Err(Errno::EBADF);
        }
        if !self.object.seekable() {
            return self.object.read(0, sink).inspect(|_| self.notify(libc::IN_ACCESS));
        }
        let mut position = self.position.lock();
        let n = self.object.read(*position, sink)?;
        *position += n as u64;
        drop(position);
        self.notify(libc::IN_ACCESS);
        Ok(n)
    }

    /// Writes at the position (or the end, with `O_APPEND`) and moves it. `EBADF` when not open for writing.
    pub fn write(&self, source: &mut dyn Source) -> Result<usize> {
        if !self.writable() {
            return Err(Errno::EBADF);
        }
        if !self.object.seekable() {
            return self.object.write(0, source).inspect(|_| self.notify(libc::IN_MODIFY));
        }
        let mut position = self.position.lock();
        let (start, n) = if self.flags() & libc::O_APPEND != 0 {
            self.object.append(source)?
        } else {
            (*position, self.object.write(*position, source)?)
        };
        *position = start + n as u64;
        drop(position);
        self.notify(libc::IN_MODIFY);
        Ok(n)
    }

    /// `pread(2)`. `ESPIPE` when there is no position.
    pub fn read_at(&self, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        self.positional()?;
        if !self.readable() {
            return Err(Errno::EBADF);
        }
        self.object.read(offset, sink).inspect(|_| self.notify(libc::IN_ACCESS))
    }

    /// `pwrite(2)`. `ESPIPE` when there is no position. As on Linux, `O_APPEND` wins over the offset.
    pub fn write_at(&self, offset: u64, source: &mut dyn Source) -> Result<usize> {
        self.positional()?;
        if !self.writable() {
            return Err(Errno::EBADF);
        }
        if self.flags() & libc::O_APPEND != 0 {
            return self.object.append(source).map(|(_, n)| n).inspect(|_| self.notify(libc::IN_MODIFY));
        }
        self.object.write(offset, source).inspect(|_| self.notify(libc::IN_MODIFY))
    }

    /// `EBADF` for `O_PATH`, `ESPIPE` when there is no position.
    fn positional(&self) -> Result<()> {
        match self.object.seekable() {
            _ if self.is_path_only() => Err(Errno::EBADF),
            true => Ok(()),
            false => Err(Errno::ESPIPE),
        }
    }

    /// What comes before `creds` write to a file: it loses set-id bits and capabilities. One load when there are none.
    pub fn remove_privileges(&self, creds: &Credentials) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let epoch = ops::privileges_epoch();
        if self.plain_since.load(Ordering::Relaxed) != epoch && !ops::remove_privileges(path, creds)? {
            self.plain_since.store(epoch, Ordering::Relaxed);
        }
        Ok(())
    }

    /// `lseek(2)`.
    pub fn seek(&self, offset: i64, whence: i32) -> Result<u64> {
        if self.is_path_only() {
            return Err(Errno::EBADF);
        }
        if !(libc::SEEK_SET..=libc::SEEK_HOLE).contains(&whence) {
            return Err(Errno::EINVAL);
        }
        if !self.object.seekable() {
            return Err(Errno::ESPIPE);
        }
        let mut position = self.position.lock();
        let base = match whence {
            libc::SEEK_SET => 0,
            libc::SEEK_CUR => *position,
            libc::SEEK_END => self.object.size()?,
            libc::SEEK_DATA | libc::SEEK_HOLE => {
                let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
                *position = self.object.seek_data(from, whence == libc::SEEK_DATA)?;
                return Ok(*position);
            }
            _ => return Err(Errno::EINVAL),
        };
        let target = i64::try_from(base).ok().and_then(|base| base.checked_add(offset)).ok_or(Errno::EINVAL)?;
        *position = u64::try_from(target).map_err(|_| Errno::EINVAL)?;
        Ok(*position)
    }

    /// `getdents64(2)`: gives entries from the position on, and moves it behind the last one that `emit` took.
    pub fn read_dir(&self, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        if !self.readable() {
            return Err(Errno::EBADF);
        }
        let mut position = self.position.lock();
        let mut reached = *position;
        self.object.read_dir(*position, &mut |entry| {
            let taken = emit(entry);
            if taken {
                reached = entry.next;
            }
            taken
        })?;
        *position = reached;
        Ok(())
    }

    /// The position, locked: for what moves bytes between two files (`sendfile`, `splice`).
    pub fn position(&self) -> parking_lot::MutexGuard<'_, u64> {
        self.position.lock()
    }
}
