//! `/proc/PID` and `/proc/PID/task/TID`: one table of what there is, and the inode that an entry becomes.

mod fd;
mod fdinfo;
mod links;
pub mod memory;
pub mod settings;
pub mod status;

use std::any::Any;
use std::sync::Arc;

use super::number;
use super::subject::Subject;
use crate::errno::{Errno, Result};
use crate::sentry::task::Task;
use crate::vfs::Path;
use crate::vfs::file::{DirEntry, File};
use crate::vfs::inode::{Attr, Inode, NewNode, NodeType, SetAttr};
use crate::vfs::kernfs::{Content, EmitEntry, open_content};

/// When the caller's right to look into the task is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guard {
    /// Never.
    Public,
    /// When the file is opened.
    AtOpen,
    /// When it is read.
    AtRead,
}

type Read = fn(&Subject, &Arc<Task>) -> Result<Vec<u8>>;
type Write = fn(&Subject, &Arc<Task>, &[u8]) -> Result<()>;

#[derive(Clone, Copy)]
enum What {
    Text(Guard, Read),
    Settable(Read, Write),
    Memory,
    Link(links::Link),
    /// `task`.
    Threads,
    /// `fd`.
    Fds,
    /// `fdinfo`.
    FdInfos,
    /// `ns`.
    Namespaces,
    /// `attr`: no security module.
    Empty,
    /// `net`.
    Net,
}

/// One name of the table.
struct Entry {
    name: &'static str,
    perm: u32,
    what: What,
}

const fn text(name: &'static str, read: Read) -> Entry {
    Entry { name, perm: 0o444, what: What::Text(Guard::Public, read) }
}

const fn secret(name: &'static str, perm: u32, guard: Guard, read: Read) -> Entry {
    Entry { name, perm, what: What::Text(guard, read) }
}

const fn settable(name: &'static str, perm: u32, read: Read, write: Write) -> Entry {
    Entry { name, perm, what: What::Settable(read, write) }
}

const fn link(name: &'static str, link: links::Link) -> Entry {
    Entry { name, perm: 0o777, what: What::Link(link) }
}

const fn dir(name: &'static str, perm: u32, what: What) -> Entry {
    Entry { name, perm, what }
}

/// What a directory holds; see [`PROCESS_ONLY`] and [`THREAD_ONLY`].
static ENTRIES: &[Entry] = &[
    dir("attr", 0o555, What::Empty),
    secret("auxv", 0o400, Guard::AtOpen, memory::auxv),
    text("cgroup", |_, _| Ok(b"0::/\n".to_vec())),
    text("children", status::children),
    text("cmdline", memory::cmdline),
    settable("comm", 0o644, settings::comm, settings::set_comm),
    link("cwd", links::Link::Cwd),
    secret("environ", 0o400, Guard::AtOpen, memory::environ),
    link("exe", links::Link::Exe),
    dir("fd", 0o500, What::Fds),
    dir("fdinfo", 0o555, What::FdInfos),
    text("gid_map", settings::id_map),
    secret("io", 0o400, Guard::AtRead, status::io),
    text("limits", settings::limits),
    text("loginuid", |_, _| Ok(b"4294967295".to_vec())),
    secret("maps", 0o444, Guard::AtOpen, memory::maps),
    Entry { name: "mem", perm: 0o600, what: What::Memory },
    text("mountinfo", settings::mountinfo),
    text("mounts", settings::mounts),
    secret("mountstats", 0o400, Guard::Public, settings::mountstats),
    dir("net", 0o555, What::Net),
    dir("ns", 0o511, What::Namespaces),
    settable("oom_adj", 0o644, settings::oom_adj, settings::set_oom_adj),
    text("oom_score", settings::oom_score),
    settable("oom_score_adj", 0o644, settings::oom_score_adj, settings::set_oom_score_adj),
    secret("personality", 0o400, Guard::AtRead, |_, _| Ok(b"00000000\n".to_vec())),
    link("root", links::Link::Root),
    text("schedstat", status::schedstat),
    text("sessionid", |_, _| Ok(b"4294967295".to_vec())),
    text("setgroups", |_, _| Ok(b"allow\n".to_vec())),
    secret("smaps", 0o444, Guard::AtOpen, memory::smaps),
    secret("smaps_rollup", 0o444, Guard::AtOpen, memory::smaps_rollup),
    text("stat", status::stat),
    text("statm", status::statm),
    text("status", status::status),
    dir("task", 0o555, What::Threads),
    settable("timerslack_ns", 0o666, settings::timer_slack, settings::set_timer_slack),
    text("uid_map", settings::id_map),
    text("wchan", |_, _| Ok(b"0".to_vec())),
];

/// What a thread's directory has not.
const PROCESS_ONLY: [&str; 3] = ["mountstats", "task", "timerslack_ns"];

/// What only a thread's directory has.
const THREAD_ONLY: [&str; 1] = ["children"];

/// The entry of the directory itself; its slot is 0, so those of the table count from 1.
static ROOT: Entry = Entry { name: "", perm: 0o555, what: What::Empty };

/// A node of a process or thread.
pub struct Node {
    subject: Subject,
    entry: &'static Entry,
    slot: u32,
}

impl Node {
    /// The directory of a process or thread.
    pub fn root(subject: Subject) -> Arc<dyn Inode> {
        Arc::new(Node { subject, entry: &ROOT, slot: 0 })
    }

    fn is_root(&self) -> bool {
        self.slot == 0
    }

    fn kind(&self) -> NodeType {
        match self.entry.what {
            What::Text(..) | What::Settable(..) | What::Memory => NodeType::Regular,
            What::Link(_) => NodeType::Symlink,
            _ => NodeType::Directory,
        }
    }

    /// The names of the directory's own table, with their slots.
    fn entries(&self) -> impl Iterator<Item = (u32, &'static Entry)> {
        let thread = self.subject.is_thread();
        let all = (1u32..).zip(ENTRIES);
        let not_here: &[&str] = if thread { &PROCESS_ONLY } else { &THREAD_ONLY };
        all.filter(move |(_, entry)| !not_here.contains(&entry.name))
    }
}

/// The owner that a node shows: the task's effective ids; user 0 where its memory must not be looked at.
fn owner(task: &Task, kind: NodeType, perm: u32) -> (u32, u32) {
    let creds = task.creds();
    let public = kind == NodeType::Directory && perm == 0o555;
    if public || task.mm().is_ok_and(|mm| mm.dumpable() == 1) { (creds.euid, creds.egid) } else { (0, 0) }
}

/// Attributes of a node of `subject`, made when they are asked for.
fn attr_of(subject: &Subject, slot: u32, kind: NodeType, perm: u32) -> Result<Attr> {
    let task = subject.task().map_err(|_| Errno::ENOENT)?;
    let mut attr = Attr::new(subject.shared.tree.dev(), subject.ino(slot), kind, perm);
    (attr.uid, attr.gid) = owner(&task, kind, perm);
    attr.btime = None;
    attr.blksize = 1024;
    Ok(attr)
}

impl Inode for Node {
    fn attr(&self) -> Result<Attr> {
        let mut attr = attr_of(&self.subject, self.slot, self.kind(), self.entry.perm)?;
        if self.is_root() {
            // Five directories of their own, and for a process `task`.
            attr.nlink = if self.subject.is_thread() { 7 } else { 9 };
        }
        if let What::Fds = self.entry.what {
            // How many there are: Linux 6.2.
            let files = self.subject.task().and_then(|task| task.files());
            attr.size = files.map_or(0, |files| files.list().len() as u64);
        }
        if let What::Threads = self.entry.what {
            attr.nlink = 2 + self.subject.task().map_or(0, |task| task.group.threads().len() as u32);
        }
        Ok(attr)
    }

    fn create(&self, _name: &[u8], _node: &NewNode<'_>) -> Result<Arc<dyn Inode>> {
        Err(Errno::ENOENT)
    }

    /// Linux lets nobody change the mode of these; owner and times are accepted by none that stay.
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        let only_size = SetAttr { size: set.size, ..SetAttr::default() } == *set;
        if only_size { Ok(()) } else { Err(Errno::EPERM) }
    }

    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        if self.is_root() {
            let (slot, entry) = self.entries().find(|(_, entry)| entry.name.as_bytes() == name).ok_or(Errno::ENOENT)?;
            if let What::Net = entry.what {
                return Ok(self.subject.shared.net.clone());
            }
            return Ok(Arc::new(Node { subject: self.subject.clone(), entry, slot }));
        }
        match self.entry.what {
            What::Threads => {
                let tid = number(name).ok_or(Errno::ENOENT)?;
                let process = self.subject.task().map_err(|_| Errno::ENOENT)?;
                let thread = process.kernel.thread(tid).map_err(|_| Errno::ENOENT)?;
                if !Arc::ptr_eq(&thread.group, &process.group) {
                    return Err(Errno::ENOENT);
                }
                Ok(Node::root(Subject::thread(&self.subject.shared, &thread)))
            }
            What::Fds => fd::lookup(&self.subject, name),
            What::FdInfos => fdinfo::lookup(&self.subject, name),
            What::Namespaces => links::lookup_namespace(&self.subject, name),
            What::Empty => Err(Errno::ENOENT),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        match self.entry.what {
            What::Link(link) => link.text(&self.subject),
            _ => Err(Errno::EINVAL),
        }
    }

    fn magic_link(&self) -> Option<Result<Path>> {
        match self.entry.what {
            What::Link(link) => Some(link.destination(&self.subject)),
            _ => None,
        }
    }

    fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
        match self.entry.what {
            What::Memory => memory::open(&self.subject),
            What::Text(Guard::AtOpen, _) => {
                self.subject.traceable()?;
                Ok(open_content(self))
            }
            What::Text(..) | What::Settable(..) => Ok(open_content(self)),
            What::Link(_) => Err(Errno::ELOOP),
            _ => Ok(Arc::new(OpenDir(self))),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Content for Node {
    fn read(&self) -> Result<Vec<u8>> {
        let task = match self.entry.what {
            What::Text(Guard::AtRead, _) => self.subject.traceable()?,
            _ => self.subject.task()?,
        };
        match self.entry.what {
            What::Text(_, read) | What::Settable(read, _) => read(&self.subject, &task),
            _ => Err(Errno::EINVAL),
        }
    }

    fn write(&self, _offset: u64, bytes: &[u8]) -> Result<()> {
        match self.entry.what {
            What::Settable(_, write) => write(&self.subject, &self.subject.task()?, bytes),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl Node {
    /// Gives the names of a directory from position `from` (0 at first) on to `emit` until it returns `false`.
    fn list(&self, from: u64, emit: &mut EmitEntry<'_>) -> Result<()> {
        let task = self.subject.task().map_err(|_| Errno::ENOENT)?;
        match self.entry.what {
            _ if self.is_root() => self.list_table(from, emit),
            What::Threads => {
                let mut tids: Vec<i32> = task.group.threads().iter().map(|task| task.tid()).collect();
                tids.sort_unstable();
                let ino = |tid| super::subject::ino(tid, true, 0);
                emit_numbers(&tids, from, emit, |tid| (ino(tid), NodeType::Directory));
            }
            What::Fds | What::FdInfos => {
                let links = matches!(self.entry.what, What::Fds);
                let fds = task.files().map(|files| files.list()).unwrap_or_default();
                let kind = if links { NodeType::Symlink } else { NodeType::Regular };
                emit_numbers(&fds, from, emit, |fd| (self.subject.ino(fd::slot(fd, links)), kind));
            }
            What::Namespaces => links::list_namespaces(&self.subject, from, emit),
            _ => {}
        }
        Ok(())
    }

    fn list_table(&self, from: u64, emit: &mut EmitEntry<'_>) {
        for (slot, entry) in self.entries().filter(|(slot, _)| u64::from(*slot) > from) {
            let node = Node { subject: self.subject.clone(), entry, slot };
            let ino = match entry.what {
                What::Net => self.subject.shared.net.attr().map_or(0, |attr| attr.ino),
                _ => self.subject.ino(slot),
            };
            if !emit(entry.name.as_bytes(), ino, node.kind(), u64::from(slot)) {
                return;
            }
        }
    }
}

/// Gives sorted numbers as names; the position of one is the number after it.
fn emit_numbers(numbers: &[i32], from: u64, emit: &mut EmitEntry<'_>, of: impl Fn(i32) -> (u64, NodeType)) {
    for &number in numbers.iter().filter(|&&number| number as u64 >= from) {
        let (ino, kind) = of(number);
        if !emit(number.to_string().as_bytes(), ino, kind, number as u64 + 1) {
            return;
        }
    }
}

struct OpenDir(Arc<Node>);

/// Positions before are the two dots.
const FIRST: u64 = 2;

impl File for OpenDir {
    fn read(&self, _offset: u64, _sink: &mut dyn crate::io::Sink) -> Result<usize> {
        Err(Errno::EISDIR)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn read_dir(&self, pos: u64, emit: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let own = self.0.subject.ino(self.0.slot);
        for (at, name) in [(0, &b"."[..]), (1, b"..")].into_iter().filter(|(at, _)| *at >= pos) {
            if !emit(DirEntry { name, ino: own, kind: NodeType::Directory, next: at + 1 }) {
                return Ok(());
            }
        }
        self.0.list(pos.saturating_sub(FIRST), &mut |name, ino, kind, next| {
            emit(DirEntry { name, ino, kind, next: FIRST.saturating_add(next) })
        })
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
