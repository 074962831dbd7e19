//! Host descriptors that the container was given: standard input, output and error, and more that the command line names.
//!
//! What never waits (regular files, `/dev/null`) is read and written directly, at the host's own shared position. All
//! else is asked with `poll(2)` first, so that a read or write never waits on the host: `EAGAIN` then, and the
//! descriptor is watched by one thread `stdio` from the first time somebody had to wait. It watches for one event at a
//! time and only when asked again, so a descriptor that stays ready costs nothing.
//!
//! A pipe may take part of what is offered and then wait, so no more than `PIPE_BUF` bytes, which a ready pipe is certain
//! to take at once, are written to it in one go.
//!
//! Of a socket the host never waits whatever was asked before: `socket`.
//!
//! Lock order: the watcher's table is a leaf.

mod socket;

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use parking_lot::Mutex;

use crate::errno::{Errno, Result, check};
use crate::io::{Limited, Sink, Source, host_write};
use crate::netstack::{Ancillary, RecvFlags, Socket};
use crate::vfs::anon::next_ino;
use crate::vfs::file::{File, IoctlMemory, Mapping};
use crate::vfs::inode::{Attr, NodeType, SetAttr, TimeSpec};
use crate::wait::{Events, WaitQueue};

/// What a ready pipe takes without waiting.
const PIPE_BUF: usize = 4096;
/// How much is moved at once.
const CHUNK: usize = 256 << 10;

/// A host descriptor.
pub struct HostFile {
    fd: OwnedFd,
    ino: u64,
    kind: NodeType,
    terminal: bool,
    /// Set if it is a socket.
    socket: Option<socket::Known>,
    queue: WaitQueue,
    me: Weak<HostFile>,
    /// Attributes that the container changed, which the host does not hear of.
    changed: Mutex<SetAttr>,
}

impl HostFile {
    /// Wraps a descriptor.
    pub fn new(fd: OwnedFd) -> Result<Arc<HostFile>> {
        let stat = nix::sys::stat::fstat(&fd)?;
        let kind = NodeType::from_mode(stat.st_mode).unwrap_or(NodeType::Regular);
        // SAFETY: isatty(3) only asks about a descriptor that we own.
        let terminal = kind == NodeType::CharDevice && unsafe { libc::isatty(fd.as_raw_fd()) } == 1;
        let socket = socket::Known::of(&fd, kind);
        Ok(Arc::new_cyclic(|me| HostFile {
            fd,
            ino: next_ino(),
            kind,
            terminal,
            socket,
            queue: WaitQueue::new(),
            me: me.clone(),
            changed: Mutex::default(),
        }))
    }

    /// Whether it is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether reads and writes can wait on the host.
    fn waits(&self) -> bool {
        self.terminal || matches!(self.kind, NodeType::Fifo | NodeType::Socket)
    }

    fn ready(&self) -> Events {
        if !self.waits() {
            return Events::READ | Events::WRITE;
        }
        let mask = libc::POLLIN | libc::POLLOUT | libc::POLLPRI | libc::POLLRDHUP;
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: mask, revents: 0 };
        // SAFETY: one valid entry, and no time to wait.
        if unsafe { libc::poll(&mut poll, 1, 0) } < 0 {
            return Events::ERR;
        }
        let events = Events::from_bits_truncate(u32::from(poll.revents as u16));
        let normal = |events: Events, bit, pair| if events.contains(bit) { events | pair } else { events };
        normal(normal(events, Events::IN, Events::READ), Events::OUT, Events::WRITE)
    }

    /// `EAGAIN` unless it is ready for one of `events`, having it watched then. A hang-up or error counts as ready: the
    /// operation itself says what it is.
    fn need(&self, events: Events) -> Result<()> {
        if !self.waits() || self.ready().intersects(events | Events::ALWAYS) {
            return Ok(());
        }
        self.watch();
        // It may have become ready before it was watched.
        if self.ready().intersects(events | Events::ALWAYS) { Ok(()) } else { Err(Errno::EAGAIN) }
    }

    fn watch(&self) {
        if let (Some(watcher), Some(me)) = (Watcher::get(), self.me.upgrade()) {
            watcher.watch(&me);
        }
    }

    fn wait_mask(&self) -> EpollFlags {
        EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET
    }
}

impl File for HostFile {
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        if self.socket.is_some() {
            return self.recv(sink, RecvFlags::empty()).map(|message| message.len);
        }
        self.need(Events::IN)?;
        sink.put_from_fd(self.fd.as_fd(), None, CHUNK)
    }

    fn write(&self, _offset: u64, source: &mut dyn Source) -> Result<usize> {
        if self.socket.is_some() {
            return self.send(source, None, Ancillary::default(), 0);
        }
        let chunk = if self.waits() { PIPE_BUF } else { CHUNK };
        let mut done = 0;
        while source.left() > 0 {
            let result = self.need(Events::OUT).and_then(|()| {
                let bytes = Limited::new(source, chunk).take_vec(chunk)?;
                host_write(self.fd.as_fd(), &bytes, None).map(|n| (n, bytes.len()))
            });
            match result {
                Ok((n, wanted)) => {
                    done += n;
                    if n < wanted || n == 0 {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn poll(&self) -> Events {
        let ready = self.ready();
        if self.waits() && !self.queue.is_empty() {
            self.watch(); // somebody polls and will wait
            return self.ready();
        }
        ready
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        self.waits().then_some(&self.queue)
    }

    /// What concerns a terminal's settings and size, and how much can be read. The caller's job-control rules are the
    /// system-call layer's.
    fn ioctl(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        const TERMIOS: usize = 36; // struct termios as the kernel has it
        let fd = self.fd.as_raw_fd();
        let request = libc::c_ulong::from(cmd);
        let (size, to_host) = match request {
            libc::FIONREAD => (4, false),
            _ if !self.terminal => return Err(Errno::ENOTTY),
            libc::TCGETS => (TERMIOS, false),
            libc::TCSETS | libc::TCSETSW | libc::TCSETSF => (TERMIOS, true),
            libc::TIOCGWINSZ => (8, false),
            libc::TIOCSWINSZ => (8, true),
            libc::TIOCOUTQ => (4, false),
            libc::TCFLSH | libc::TCSBRK | libc::TCXONC => {
                // SAFETY: these take their argument by value.
                return check(unsafe { libc::ioctl(fd, request, arg) }.into());
            }
            _ => return Err(Errno::ENOTTY),
        };
        let mut buf = [0u8; 64];
        if to_host {
            mem.read(arg, &mut buf[..size])?;
        }
        // SAFETY: the kernel reads or writes `size` bytes of `buf`, which is longer.
        check(unsafe { libc::ioctl(fd, request, buf.as_mut_ptr()) }.into())?;
        if !to_host {
            mem.write(arg, &buf[..size])?;
        }
        Ok(0)
    }

    fn mapping(&self, shared: bool, writable: bool) -> Result<Mapping> {
        if self.kind != NodeType::Regular {
            return Err(Errno::ENODEV);
        }
        let fd = Arc::new(self.fd.try_clone()?);
        Ok(Mapping { fd, writable: shared && writable })
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: acts on a descriptor that we own.
        check(unsafe { if data_only { libc::fdatasync(fd) } else { libc::fsync(fd) } }.into()).map(drop)
    }

    fn sync_range(&self, offset: i64, len: i64, flags: u32) -> Result<()> {
        // SAFETY: takes numbers alone.
        check(unsafe { libc::sync_file_range(self.fd.as_raw_fd(), offset, len, flags) }.into()).map(drop)
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        let stat = nix::sys::stat::fstat(&self.fd).ok()?;
        let time = |sec, nsec: i64| TimeSpec { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
        let changed = *self.changed.lock();
        Some(Attr {
            dev: crate::vfs::anon::DEV_ANON,
            ino: self.ino,
            kind: self.kind,
            perm: changed.perm.unwrap_or(stat.st_mode & 0o7777),
            nlink: 1,
            uid: changed.uid.unwrap_or(0),
            gid: changed.gid.unwrap_or(0),
            rdev: if self.terminal { libc::makedev(136, 0) } else { stat.st_rdev },
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blksize: 4096,
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            atime: changed.atime.unwrap_or(time(stat.st_atime, stat.st_atime_nsec)),
            mtime: changed.mtime.unwrap_or(time(stat.st_mtime, stat.st_mtime_nsec)),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            btime: None,
        })
    }

    /// Seen by the container alone, but for the size of a regular file.
    fn set_anonymous_attr(&self, set: &SetAttr) -> Result<()> {
        if let Some(size) = set.size {
            if self.kind != NodeType::Regular {
                return Err(Errno::EINVAL);
            }
            nix::unistd::ftruncate(&self.fd, i64::try_from(size).map_err(|_| Errno::EINVAL)?)?;
        }
        let mut changed = self.changed.lock();
        changed.perm = set.perm.or(changed.perm);
        changed.uid = set.uid.or(changed.uid);
        changed.gid = set.gid.or(changed.gid);
        changed.atime = set.atime.or(changed.atime);
        changed.mtime = set.mtime.or(changed.mtime);
        Ok(())
    }

    fn anonymous_name(&self) -> Option<String> {
        let kind = match self.kind {
            NodeType::Fifo => "pipe",
            NodeType::Socket => "socket",
            _ => "host",
        };
        Some(format!("{kind}:[{}]", self.ino))
    }

    fn as_socket(&self) -> Option<&dyn Socket> {
        self.socket.is_some().then_some(self as &dyn Socket)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        if let Some(watcher) = WATCHER.get().and_then(Option::as_ref) {
            watcher.forget(self);
        }
    }
}

/// The thread `stdio` and what it watches.
struct Watcher {
    epoll: Epoll,
    watched: Mutex<HashMap<u64, Weak<HostFile>>>,
}

static WATCHER: OnceLock<Option<Arc<Watcher>>> = OnceLock::new();

impl Watcher {
    /// The one there is, started on first use. `None` when the host refused it, which is logged: waits then end by their
    /// deadlines and signals only.
    fn get() -> Option<&'static Arc<Watcher>> {
        let start = || {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(Errno::from)?;
            let watcher = Arc::new(Watcher { epoll, watched: Mutex::default() });
            let runner = watcher.clone();
            std::thread::Builder::new().name("stdio".into()).spawn(move || runner.run()).map_err(Errno::from)?;
            Ok(watcher)
        };
        let watcher = WATCHER.get_or_init(|| {
            let started: Result<_> = start();
            started.inspect_err(|error| log::warn!("standard input and output cannot be waited for: {error}")).ok()
        });
        watcher.as_ref()
    }

    /// Watches `file` from now on: each change from not ready to ready is announced once (edge-triggered).
    fn watch(&self, file: &Arc<HostFile>) {
        let mut watched = self.watched.lock();
        let event = EpollEvent::new(file.wait_mask(), file.ino);
        if watched.insert(file.ino, Arc::downgrade(file)).is_none()
            && let Err(error) = self.epoll.add(&file.fd, event)
        {
            log::warn!("a given descriptor cannot be waited for: {error}");
        }
    }

    fn forget(&self, file: &HostFile) {
        if self.watched.lock().remove(&file.ino).is_some() {
            // It is closed next, which may leave the file open elsewhere: the entry must not stay.
            let _ = self.epoll.delete(&file.fd);
        }
    }

    fn run(&self) {
        crate::platform::placement::serve_all();
        let mut events = [EpollEvent::empty(); 16];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => {
                    log::error!("the thread that waits for standard input and output ends: {error}");
                    return;
                }
            };
            for event in events.iter().take(count) {
                let file = self.watched.lock().get(&event.data()).and_then(Weak::upgrade);
                if let Some(file) = file {
                    file.queue.wake(Events::READ | Events::WRITE | Events::ALWAYS | Events::RDHUP);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::io::SliceSink;
    use crate::wait::Parker;

    #[test]
    fn an_empty_pipe_is_waited_for_without_blocking() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (reader, writer) = (HostFile::new(reader).unwrap(), HostFile::new(writer).unwrap());
        let mut buf = [0; 10];
        let parker = Arc::new(Parker::new());
        let key = reader.queue.add(parker.clone(), Events::IN, false);
        assert_eq!(reader.read(0, &mut SliceSink::new(&mut buf)), Err(Errno::EAGAIN));
        writer.write(0, &mut &b"hello"[..]).unwrap();
        while reader.poll() & Events::IN == Events::empty() {
            assert!(parker.park(Some(Instant::now() + Duration::from_secs(10))), "the thread announces it");
        }
        assert_eq!(reader.read(0, &mut SliceSink::new(&mut buf)), Ok(5));
        reader.queue.remove(key);
        assert!(reader.anonymous_name().unwrap().starts_with("pipe:["));
    }

    #[test]
    fn a_full_pipe_takes_what_it_can() {
        let (_reader, writer) = nix::unistd::pipe().unwrap();
        let writer = HostFile::new(writer).unwrap();
        let much = vec![1u8; 1 << 20];
        let taken = writer.write(0, &mut &much[..]).unwrap();
        assert!(taken > 0 && taken < much.len());
        assert_eq!(writer.write(0, &mut &much[..]), Err(Errno::EAGAIN));
    }
}
