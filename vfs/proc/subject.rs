//! The process or thread that a directory is about, found again at each use.

use std::sync::{Arc, Weak};

use crate::errno::{Errno, Result};
use crate::sentry::kernel::Kernel;
use crate::sentry::task::{self, Task, ThreadGroup};
use crate::vfs::kernfs::{Dir, Tree};

/// What all directories of one mount share.
pub struct Shared {
    kernel: Weak<Kernel>,
    /// Device number and inode numbers.
    pub tree: Arc<Tree>,
    /// `/proc/PID/net`: there is one network namespace.
    pub net: Arc<Dir>,
}

impl Shared {
    /// For a mount of `kernel`'s tasks.
    pub fn new(kernel: &Weak<Kernel>, tree: &Arc<Tree>, net: Arc<Dir>) -> Arc<Shared> {
        Arc::new(Shared { kernel: kernel.clone(), tree: tree.clone(), net })
    }

    /// The kernel. `ESRCH` once it is gone.
    pub fn kernel(&self) -> Result<Arc<Kernel>> {
        self.kernel.upgrade().ok_or(Errno::ESRCH)
    }
}

/// The inode number of a node of process or thread `id`: `slot` 0 is its directory.
pub fn ino(id: i32, thread: bool, slot: u32) -> u64 {
    // The fixed part of the tree counts from 1 and stays below 2^32.
    (id as u64) << 32 | u64::from(thread) << 31 | u64::from(slot & 0x7fff_ffff)
}

/// A process, or one thread of it.
#[derive(Clone)]
pub struct Subject {
    /// What it has in common with others.
    pub shared: Arc<Shared>,
    id: i32,
    group: Weak<ThreadGroup>,
    /// Only for `/proc/PID/task/TID`: a process's leading thread may be replaced by `execve(2)`.
    thread: Option<Weak<Task>>,
}

impl Subject {
    /// The process that `task` belongs to.
    pub fn process(shared: &Arc<Shared>, task: &Arc<Task>) -> Subject {
        let group = Arc::downgrade(&task.group);
        Subject { shared: shared.clone(), id: task.pid(), group, thread: None }
    }

    /// One thread.
    pub fn thread(shared: &Arc<Shared>, task: &Arc<Task>) -> Subject {
        let group = Arc::downgrade(&task.group);
        Subject { shared: shared.clone(), id: task.tid(), group, thread: Some(Arc::downgrade(task)) }
    }

    /// The id that its directory has.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Whether it is about one thread only.
    pub fn is_thread(&self) -> bool {
        self.thread.is_some()
    }

    /// The inode number of its node `slot`.
    pub fn ino(&self, slot: u32) -> u64 {
        ino(self.id, self.is_thread(), slot)
    }

    /// The thread, or the process's leader, a zombie included. `ESRCH`.
    pub fn task(&self) -> Result<Arc<Task>> {
        let kernel = self.shared.kernel()?;
        let task = match &self.thread {
            Some(thread) => thread.upgrade().filter(|task| {
                let tree = kernel.tree.lock();
                tree.thread(task.tid()).is_some_and(|known| Arc::ptr_eq(known, task))
            }),
            None => kernel.tree.lock().thread(self.id).cloned(),
        };
        task.filter(|task| std::ptr::eq(Arc::as_ptr(&task.group), self.group.as_ptr())).ok_or(Errno::ESRCH)
    }

    /// The task, if the caller may look into it. `ESRCH`, `EACCES`.
    pub fn traceable(&self) -> Result<Arc<Task>> {
        let task = self.task()?;
        if may_look_into(&task) { Ok(task) } else { Err(Errno::EACCES) }
    }
}

/// Whether the calling task may look into `task`: `ptrace(2)`, `PTRACE_MODE_READ_FSCREDS`. The sentry's own threads may.
pub fn may_look_into(task: &Task) -> bool {
    task::current().is_none_or(|caller| caller.may_look_into(task).is_ok())
}
