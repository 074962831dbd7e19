//! A task's view of the file system: root, working directory, umask. Shared by tasks made with `CLONE_FS`.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::vfs::Path;

/// The parts, copied together.
#[derive(Clone)]
pub struct FsState {
    /// `/` of the task.
    pub root: Path,
    /// The working directory.
    pub cwd: Path,
    /// `umask(2)`.
    pub umask: u32,
}

/// `fs_struct`; leaf lock.
pub struct FsContext(Mutex<FsState>);

impl FsContext {
    /// With this state.
    pub fn new(state: FsState) -> Arc<FsContext> {
        Arc::new(FsContext(Mutex::new(state)))
    }

    /// A copy of the state.
    pub fn get(&self) -> FsState {
        self.0.lock().clone()
    }

    /// Changes it.
    pub fn update(&self, change: impl FnOnce(&mut FsState)) {
        change(&mut self.0.lock());
    }

    /// One of its own: `fork(2)`.
    pub fn fork(&self) -> Arc<FsContext> {
        FsContext::new(self.get())
    }
}
