//! Pausing a container: the freezer of `cgroup-v2`, "cgroup.freeze".
//!
//! Every task has [`Attention::FREEZE`] set and rests before it runs user code again. Calls that wait go on waiting, timers
//! run on, signals become pending; only being killed ends a task meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::errno::{Errno, Result};
use crate::sentry::kernel::Kernel;
use crate::sentry::task::{Attention, Current, Task, TaskState};

/// How long all tasks may take to come to rest: one that moves much data does so for a while.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often tasks are looked at that fall asleep instead of coming to rest, which tell nobody.
const LOOK: Duration = Duration::from_millis(5);

/// Whether the container is paused.
#[derive(Default)]
pub struct Freezer {
    /// Changed with the tree locked, so that a new task cannot miss it.
    frozen: AtomicBool,
    /// Who pauses waits here for tasks that come to rest; leaf lock.
    waiting: Mutex<()>,
    rested: Condvar,
}

impl Kernel {
    /// Whether the container is paused.
    pub fn is_frozen(&self) -> bool {
        self.freezer.frozen.load(Ordering::SeqCst)
    }

    /// Stops all user code of the container. `EBUSY` when a task does not come to rest in time; all go on then.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true);
        let deadline = Instant::now() + PATIENCE;
        while !self.all_rest() {
            if Instant::now() >= deadline {
                self.thaw();
                return Err(Errno::EBUSY);
            }
            self.freezer.rested.wait_for(&mut self.freezer.waiting.lock(), LOOK);
        }
        Ok(())
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.set_frozen(false);
    }

    fn set_frozen(&self, frozen: bool) {
        let tree = self.tree.lock();
        self.freezer.frozen.store(frozen, Ordering::SeqCst);
        for task in tree.tasks().filter(|task| self.owns(&task.group)) {
            if frozen {
                task.notify(Attention::FREEZE);
            } else {
                task.clear_attention(Attention::FREEZE);
                task.parker.unpark();
            }
        }
    }

    /// Whether no task can be running user code.
    fn all_rest(&self) -> bool {
        let tree = self.tree.lock();
        let mut own = tree.tasks().filter(|task| self.owns(&task.group));
        own.all(|task| task.rests.load(Ordering::SeqCst) || task.state() != TaskState::Running)
    }
}

impl Task {
    /// A task that is being made in a paused container begins with a rest. With the tree locked.
    pub(in crate::sentry) fn freeze_if_paused(&self) {
        if self.kernel.is_frozen() {
            self.notify(Attention::FREEZE);
        }
    }
}

impl Current {
    /// Rests while the container is paused, unless the thread must end.
    pub(super) fn freeze(&mut self) {
        let rests = || self.attention().intersection(Attention::FREEZE | Attention::KILL) == Attention::FREEZE;
        self.rests.store(true, Ordering::SeqCst);
        self.kernel.freezer.rested.notify_all();
        while rests() {
            let blocking = crate::platform::placement::blocking();
            self.task.parker.park(None);
            drop(blocking);
        }
        self.rests.store(false, Ordering::SeqCst);
    }
}
