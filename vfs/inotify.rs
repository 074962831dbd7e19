//! `inotify(7)`: reports of what happens to files.
//!
//! ```text
//! a VFS operation ── notify(inode, mask, name) ──> Watches (on the inode) ──> Inotify: its queue of events ──> read
//! ```
//!
//! A watch hangs on its inode (in the [`Attachments`](crate::vfs::inode::Attachments)) and knows its instance weakly; the
//! instance keeps the inode. While there is no watch in the whole sandbox, a notification costs one atomic load.
//!
//! Lock order: an inode's `Watches` > an instance's `state` > its wait queue.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::io::Sink;
use crate::vfs::anon;
use crate::vfs::file::{File, IoctlMemory};
use crate::vfs::inode::{Attr, Inode, NodeType};
use crate::wait::{Events, WaitQueue};

/// `/proc/sys/fs/inotify/max_queued_events`: more are dropped, and `IN_Q_OVERFLOW` says so.
pub const MAX_QUEUED_EVENTS: usize = 16_384;
/// `/proc/sys/fs/inotify/max_user_watches`, here for the sandbox.
pub const MAX_WATCHES: usize = 65_536;

/// The header of `struct inotify_event`; names are padded to multiples of it.
const HEADER: usize = 16;

static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// The watches on one inode. Attached to it.
#[derive(Default)]
pub struct Watches {
    list: Mutex<Vec<Watch>>,
}

struct Watch {
    wd: i32,
    mask: u32,
    instance: Weak<Inotify>,
}

struct Event {
    wd: i32,
    mask: u32,
    cookie: u32,
    name: Box<[u8]>,
}

impl Event {
    /// Bytes that the name takes: at least one NUL behind it, and padding; none without a name.
    fn name_len(&self) -> usize {
        if self.name.is_empty() { 0 } else { (self.name.len() + 1).next_multiple_of(HEADER) }
    }

    fn len(&self) -> usize {
        HEADER + self.name_len()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.len();
        out.extend_from_slice(&self.wd.to_ne_bytes());
        for word in [self.mask, self.cookie, self.name_len() as u32] {
            out.extend_from_slice(&word.to_ne_bytes());
        }
        out.extend_from_slice(&self.name);
        out.resize(end, 0);
    }

    /// Whether a second one would say nothing new.
    fn same(&self, wd: i32, mask: u32, cookie: u32, name: &[u8]) -> bool {
        (self.wd, self.mask, self.cookie) == (wd, mask, cookie) && *self.name == *name
    }
}

#[derive(Default)]
struct State {
    /// What each watch descriptor means.
    watched: BTreeMap<i32, Arc<dyn Inode>>,
    /// Descriptors are not used again until they are used up: readers may still hold events of old ones.
    last_wd: i32,
    events: VecDeque<Event>,
    /// The encoded length of all events.
    bytes: usize,
}

impl State {
    fn push(&mut self, wd: i32, mask: u32, cookie: u32, name: &[u8]) {
        if self.events.back().is_some_and(|last| last.same(wd, mask, cookie, name)) {
            return;
        }
        let event = match self.events.len() {
            ..MAX_QUEUED_EVENTS => Event { wd, mask, cookie, name: name.into() },
            MAX_QUEUED_EVENTS => Event { wd: -1, mask: libc::IN_Q_OVERFLOW, cookie: 0, name: Box::default() },
            _ => return,
        };
        self.bytes += event.len();
        self.events.push_back(event);
    }

    fn next_wd(&mut self) -> i32 {
        loop {
            self.last_wd = self.last_wd.checked_add(1).unwrap_or(1);
            if !self.watched.contains_key(&self.last_wd) {
                return self.last_wd;
            }
        }
    }
}

/// An inotify instance.
pub struct Inotify {
    me: Weak<Inotify>,
    state: Mutex<State>,
    queue: WaitQueue,
}

impl Inotify {
    /// `inotify_init1(2)`.
    pub fn new() -> Arc<Inotify> {
        Arc::new_cyclic(|me| Inotify { me: me.clone(), state: Mutex::default(), queue: WaitQueue::new() })
    }

    /// `inotify_add_watch(2)`, the path being resolved (following `IN_DONT_FOLLOW`) and read permission checked: the watch
    /// descriptor. `EINVAL`, `ENOTDIR` (`IN_ONLYDIR`), `EEXIST` (`IN_MASK_CREATE`), `ENOSPC` (too many).
    pub fn add_watch(&self, inode: &Arc<dyn Inode>, mask: u32) -> Result<i32> {
        let both = libc::IN_MASK_ADD | libc::IN_MASK_CREATE;
        if mask & libc::IN_ALL_EVENTS == 0 || mask & both == both {
            return Err(Errno::EINVAL);
        }
        if mask & libc::IN_ONLYDIR != 0 && inode.attr()?.kind != NodeType::Directory {
            return Err(Errno::ENOTDIR);
        }
        let kept = mask & (libc::IN_ALL_EVENTS | libc::IN_ONESHOT | libc::IN_EXCL_UNLINK);
        // A file system that attaches nothing has no operations that would notify either: the watch stays silent.
        let Some(attachments) = inode.attachments() else { return self.add_silent(inode) };
        let watches = attachments.get_or_insert(Watches::default);
        let mut list = watches.list.lock();
        if let Some(watch) = list.iter_mut().find(|watch| watch.instance.ptr_eq(&self.me)) {
            if mask & libc::IN_MASK_CREATE != 0 {
                return Err(Errno::EEXIST);
            }
            watch.mask = if mask & libc::IN_MASK_ADD != 0 { watch.mask | kept } else { kept };
            return Ok(watch.wd);
        }
        let wd = self.register(inode)?;
        list.push(Watch { wd, mask: kept, instance: self.me.clone() });
        Ok(wd)
    }

    fn add_silent(&self, inode: &Arc<dyn Inode>) -> Result<i32> {
        let known = self.state.lock().watched.iter().find(|(_, known)| Arc::ptr_eq(known, inode)).map(|(&wd, _)| wd);
        known.map_or_else(|| self.register(inode), Ok)
    }

    fn register(&self, inode: &Arc<dyn Inode>) -> Result<i32> {
        let within = |count: usize| (count < MAX_WATCHES).then_some(count + 1);
        WATCHES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).map_err(|_| Errno::ENOSPC)?;
        let mut state = self.state.lock();
        let wd = state.next_wd();
        state.watched.insert(wd, inode.clone());
        Ok(wd)
    }

    /// `inotify_rm_watch(2)`: `EINVAL` when there is no such watch.
    pub fn remove_watch(&self, wd: i32) -> Result<()> {
        let inode = self.forget(wd).ok_or(Errno::EINVAL)?;
        detach(&inode, &self.me);
        self.push(wd, libc::IN_IGNORED, 0, &[]);
        Ok(())
    }

    /// Watches as (descriptor, inode), for `/proc/PID/fdinfo`.
    pub fn watched(&self) -> Vec<(i32, Arc<dyn Inode>)> {
        self.state.lock().watched.iter().map(|(&wd, inode)| (wd, inode.clone())).collect()
    }

    fn forget(&self, wd: i32) -> Option<Arc<dyn Inode>> {
        let inode = self.state.lock().watched.remove(&wd)?;
        WATCHES.fetch_sub(1, Ordering::Relaxed);
        Some(inode)
    }

    fn push(&self, wd: i32, mask: u32, cookie: u32, name: &[u8]) {
        self.state.lock().push(wd, mask, cookie, name);
        self.queue.wake(Events::READ);
    }
}

/// Takes an instance's watch off an inode.
fn detach(inode: &Arc<dyn Inode>, instance: &Weak<Inotify>) {
    if let Some(watches) = inode.attachments().and_then(|attachments| attachments.get::<Watches>()) {
        watches.list.lock().retain(|watch| !watch.instance.ptr_eq(instance));
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        for inode in std::mem::take(&mut self.state.get_mut().watched).into_values() {
            WATCHES.fetch_sub(1, Ordering::Relaxed);
            detach(&inode, &self.me);
        }
    }
}

/// A cookie that ties `IN_MOVED_FROM` to its `IN_MOVED_TO`; never 0.
pub fn next_cookie() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    loop {
        let cookie = NEXT.fetch_add(1, Ordering::Relaxed);
        if cookie != 0 {
            return cookie;
        }
    }
}

/// Whether there is a watch in the sandbox: one load, for callers that would have to find names first.
pub fn is_active() -> bool {
    WATCHES.load(Ordering::Relaxed) != 0
}

/// Reports that `mask` (`IN_*`, with `IN_ISDIR` where the subject is a directory) happened to `inode`, or, with a `name`,
/// to that name in this directory. `IN_DELETE_SELF` and `IN_UNMOUNT` end the watches. Call without locks of the file
/// system held.
pub fn notify(inode: &dyn Inode, mask: u32, name: &[u8], cookie: u32) {
    if WATCHES.load(Ordering::Relaxed) == 0 {
        return;
    }
    let Some(watches) = inode.attachments().and_then(|attachments| attachments.get::<Watches>()) else { return };
    let ends = mask & (libc::IN_DELETE_SELF | libc::IN_UNMOUNT) != 0;
    // Instances and inodes that are let go here are dropped after the lock: their destructors may take it.
    let mut instances = Vec::new();
    let mut ended = Vec::new();
    watches.list.lock().retain(|watch| {
        let Some(instance) = watch.instance.upgrade() else { return false };
        let wanted = watch.mask & mask & libc::IN_ALL_EVENTS != 0 || mask & libc::IN_UNMOUNT != 0;
        if wanted {
            instance.push(watch.wd, mask, cookie, name);
        }
        let over = ends || (wanted && watch.mask & libc::IN_ONESHOT != 0);
        if over {
            ended.push((instance.clone(), watch.wd));
        }
        instances.push(instance);
        !over
    });
    for (instance, wd) in &ended {
        if instance.forget(*wd).is_some() {
            instance.push(*wd, libc::IN_IGNORED, 0, &[]);
        }
    }
}

/// Reports to the directory that holds `name` and to the inode itself, in Linux's order: opens, reads, writes, changes of
/// attributes, closes.
pub fn notify_both(parent: Option<(&dyn Inode, &[u8])>, inode: &dyn Inode, mask: u32) {
    if let Some((parent, name)) = parent {
        notify(parent, mask, name, 0);
    }
    notify(inode, mask, &[], 0);
}

impl File for Inotify {
    /// As many whole events as fit. `EINVAL` when not even the first does.
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        let mut state = self.state.lock();
        let mut out = Vec::new();
        if state.events.is_empty() {
            return Err(Errno::EAGAIN);
        }
        while let Some(event) = state.events.pop_front_if(|event| out.len() + event.len() <= sink.room()) {
            state.bytes -= event.len();
            event.encode(&mut out);
        }
        drop(state);
        if out.is_empty() {
            return Err(Errno::EINVAL);
        }
        if sink.put(&out)? < out.len() { Err(Errno::EFAULT) } else { Ok(out.len()) }
    }

    fn poll(&self) -> Events {
        if self.state.lock().events.is_empty() { Events::empty() } else { Events::READ }
    }

    fn async_events(&self) -> Option<Events> {
        Some(Events::READ)
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn ioctl(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        if u64::from(cmd) != libc::FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let bytes = i32::try_from(self.state.lock().bytes).unwrap_or(i32::MAX);
        mem.write(arg, &bytes.to_ne_bytes())?;
        Ok(0)
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        Some(anon::shared_attr())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:inotify".into())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::SliceSink;
    use crate::vfs::inode::Attachments;

    struct Node(NodeType, Attachments);

    impl Inode for Node {
        fn attr(&self) -> Result<Attr> {
            Ok(Attr::new(0, 1, self.0, 0o755))
        }
        fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
            Err(Errno::ENXIO)
        }
        fn attachments(&self) -> Option<&Attachments> {
            Some(&self.1)
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    fn node(kind: NodeType) -> Arc<dyn Inode> {
        Arc::new(Node(kind, Attachments::default()))
    }

    /// Everything queued, as (wd, mask, cookie, name).
    fn read(inotify: &Inotify) -> Vec<(i32, u32, u32, String)> {
        let mut buf = vec![0; 4096];
        let Ok(n) = inotify.read(0, &mut SliceSink::new(&mut buf)) else { return Vec::new() };
        let mut events = Vec::new();
        let mut rest = &buf[..n];
        while !rest.is_empty() {
            let word = |i: usize| u32::from_ne_bytes(rest[i * 4..i * 4 + 4].try_into().expect("4 bytes"));
            let len = word(3) as usize;
            assert_eq!(len % 16, 0);
            let name = String::from_utf8_lossy(&rest[16..16 + len]).trim_end_matches('\0').to_string();
            events.push((word(0) as i32, word(1), word(2), name));
            rest = &rest[16 + len..];
        }
        events
    }

    #[test]
    fn events_carry_names_and_repetitions_are_merged() {
        let (inotify, dir) = (Inotify::new(), node(NodeType::Directory));
        let wd = inotify.add_watch(&dir, libc::IN_CREATE | libc::IN_MODIFY).expect("watch");
        notify(&*dir, libc::IN_CREATE, b"a", 0);
        notify(&*dir, libc::IN_MODIFY, b"a", 0);
        notify(&*dir, libc::IN_MODIFY, b"a", 0);
        notify(&*dir, libc::IN_OPEN, b"a", 0);
        assert_eq!(inotify.state.lock().bytes, 64);
        assert_eq!(inotify.read(0, &mut SliceSink::new(&mut [0; 31])), Err(Errno::EINVAL));
        assert_eq!(read(&inotify), [(wd, libc::IN_CREATE, 0, "a".into()), (wd, libc::IN_MODIFY, 0, "a".into())]);
        assert_eq!(inotify.poll(), Events::empty());
        assert_eq!(inotify.state.lock().bytes, 0);
    }

    #[test]
    fn masks_are_replaced_joined_or_refused() {
        let (inotify, dir) = (Inotify::new(), node(NodeType::Directory));
        assert_eq!(inotify.add_watch(&dir, 0), Err(Errno::EINVAL));
        let wd = inotify.add_watch(&dir, libc::IN_CREATE).expect("watch");
        assert_eq!(inotify.add_watch(&dir, libc::IN_DELETE), Ok(wd));
        notify(&*dir, libc::IN_CREATE, b"a", 0);
        assert_eq!(read(&inotify), []);
        assert_eq!(inotify.add_watch(&dir, libc::IN_CREATE | libc::IN_MASK_ADD), Ok(wd));
        notify(&*dir, libc::IN_CREATE, b"a", 0);
        notify(&*dir, libc::IN_DELETE, b"a", 0);
        assert_eq!(read(&inotify).len(), 2);
        assert_eq!(inotify.add_watch(&dir, libc::IN_CREATE | libc::IN_MASK_CREATE), Err(Errno::EEXIST));
        let file = node(NodeType::Regular);
        assert_eq!(inotify.add_watch(&file, libc::IN_ACCESS | libc::IN_ONLYDIR), Err(Errno::ENOTDIR));
    }

    #[test]
    fn watches_end_with_an_ignored_event() {
        let (inotify, file) = (Inotify::new(), node(NodeType::Regular));
        let wd = inotify.add_watch(&file, libc::IN_DELETE_SELF).expect("watch");
        notify(&*file, libc::IN_DELETE_SELF, b"", 0);
        assert_eq!(read(&inotify), [(wd, libc::IN_DELETE_SELF, 0, "".into()), (wd, libc::IN_IGNORED, 0, "".into())]);
        assert_eq!(inotify.remove_watch(wd), Err(Errno::EINVAL));
        let wd = inotify.add_watch(&file, libc::IN_ACCESS | libc::IN_ONESHOT).expect("watch");
        notify(&*file, libc::IN_ACCESS, b"", 0);
        notify(&*file, libc::IN_ACCESS, b"", 0);
        assert_eq!(read(&inotify).len(), 2, "once, and the end");
        let other = inotify.add_watch(&file, libc::IN_ACCESS).expect("watch");
        assert_ne!(wd, other, "numbers are not used again");
        inotify.remove_watch(other).expect("there");
        assert_eq!(read(&inotify), [(other, libc::IN_IGNORED, 0, "".into())]);
    }

    #[test]
    fn a_full_queue_says_so_once() {
        let (inotify, dir) = (Inotify::new(), node(NodeType::Directory));
        inotify.add_watch(&dir, libc::IN_CREATE).expect("watch");
        for i in 0..MAX_QUEUED_EVENTS + 10 {
            notify(&*dir, libc::IN_CREATE, i.to_string().as_bytes(), 0);
        }
        let state = inotify.state.lock();
        assert_eq!(state.events.len(), MAX_QUEUED_EVENTS + 1);
        assert_eq!(state.events.back().map(|event| event.mask), Some(libc::IN_Q_OVERFLOW));
    }

    #[test]
    fn closing_the_instance_leaves_nothing_on_inodes() {
        let (inotify, dir) = (Inotify::new(), node(NodeType::Directory));
        inotify.add_watch(&dir, libc::IN_CREATE).expect("watch");
        drop(inotify);
        let watches = dir.attachments().expect("has them").get::<Watches>().expect("was attached");
        assert!(watches.list.lock().is_empty());
    }
}
