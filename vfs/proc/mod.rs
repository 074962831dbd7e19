//! `/proc`: `proc(5)`.
//!
//! ```text
//! /proc ── fixed: cpuinfo, meminfo, sys/, ... (a kernfs tree, made once for a mount)
//!       └─ PID ── looked up each time in the kernel's task tree; a Subject finds the task again at each use
//!            ├─ files and links of one table (pid/mod.rs)
//!            ├─ fd, fdinfo, ns, attr: directories of their own
//!            └─ task/TID: the same table
//! ```
//!
//! Nothing here keeps a task, its memory or the kernel alive: a file that outlives its process fails with `ESRCH`. What a
//! file shows is made at a description's first read at offset 0 and kept by the description, so that a reader in small
//! pieces sees one state.
//!
//! Locks: none of its own. The task tree's lock is held only to find tasks and to copy numbers out of it.

mod anonymous;
mod cpuinfo;
pub mod locks;
mod namespace;
mod net;
mod pid;
mod subject;
pub mod sysctl;
pub mod system;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::{Arc, Weak};

use self::pid::Node;
use self::subject::{Shared, Subject};
use crate::errno::{Errno, Result};
use crate::sentry::kernel::Kernel;
use crate::sentry::task::{self, Task};
use crate::vfs::file::File;
use crate::vfs::inode::{Attr, Caching, FileSystem, Inode, NodeType};
use crate::vfs::kernfs::{EmitEntry, Entries, KernFs, Tree};

/// `PROC_SUPER_MAGIC`.
const MAGIC: i64 = 0x9fa0;

/// A `/proc` with device number `dev` that shows the tasks of `kernel`.
pub fn new(dev: u64, kernel: &Arc<Kernel>) -> Arc<dyn FileSystem> {
    let weak = Arc::downgrade(kernel);
    // Processes come and go by themselves, so no name here may be cached.
    let fs = KernFs::with_entries("proc", MAGIC, dev, Caching::Never, |tree| {
        let net = net::dir(tree, &weak);
        Arc::new(Processes(Shared::new(&weak, tree, net)))
    });
    let root = fs.dir();
    root.add("self", Arc::new(SelfLink::new(root.tree(), &weak, false)));
    root.add("thread-self", Arc::new(SelfLink::new(root.tree(), &weak, true)));
    root.add_link("mounts", "self/mounts");
    root.add_link("net", "self/net");
    system::fill(root, &weak);
    sysctl::fill(&root.make_dirs("sys"), &weak);
    Arc::new(fs)
}

/// The directories of processes.
struct Processes(Arc<Shared>);

impl Entries for Processes {
    /// A thread's id is found as well, though it is not listed.
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let id = number(name).ok_or(Errno::ENOENT)?;
        let kernel = self.0.kernel().map_err(|_| Errno::ENOENT)?;
        let task = kernel.thread(id).map_err(|_| Errno::ENOENT)?;
        let subject = match task.pid() == id {
            true => Subject::process(&self.0, &task),
            false => Subject::thread(&self.0, &task),
        };
        Ok(Node::root(subject))
    }

    fn list(&self, from: u64, emit: &mut EmitEntry<'_>) {
        let Ok(kernel) = self.0.kernel() else { return };
        let mut pids: Vec<i32> = kernel.tree.lock().nodes().map(|(pid, _)| pid).collect();
        pids.retain(|&pid| pid as u64 >= from);
        pids.sort_unstable();
        for pid in pids {
            let ino = subject::ino(pid, false, 0);
            if !emit(pid.to_string().as_bytes(), ino, NodeType::Directory, pid as u64 + 1) {
                return;
            }
        }
    }
}

/// A decimal number as a directory's name shows it: no sign, no leading zero.
fn number(name: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(name).ok()?;
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// The calling task, if it is one of `kernel`'s.
fn caller(kernel: &Weak<Kernel>) -> Option<Arc<Task>> {
    task::current().filter(|task| std::ptr::eq(Arc::as_ptr(&task.kernel), kernel.as_ptr()))
}

/// `/proc/self` and `/proc/thread-self`.
struct SelfLink {
    attr: Attr,
    kernel: Weak<Kernel>,
    thread: bool,
}

impl SelfLink {
    fn new(tree: &Tree, kernel: &Weak<Kernel>, thread: bool) -> SelfLink {
        SelfLink { attr: tree.attr(NodeType::Symlink, 0o777), kernel: kernel.clone(), thread }
    }
}

impl Inode for SelfLink {
    fn attr(&self) -> Result<Attr> {
        Ok(self.attr)
    }

    fn read_link(&self) -> Result<Vec<u8>> {
        let task = caller(&self.kernel).ok_or(Errno::ENOENT)?;
        Ok(match self.thread {
            true => format!("{}/task/{}", task.pid(), task.tid()),
            false => task.pid().to_string(),
        }
        .into_bytes())
    }

    fn open(self: Arc<Self>, _flags: i32) -> Result<Arc<dyn File>> {
        Err(Errno::ELOOP)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
