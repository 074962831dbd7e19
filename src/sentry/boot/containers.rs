//! The containers of a sandbox, by name. The first, the root container, is what the sandbox was made for: when it ends,
//! the sandbox does.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Outcome;
use crate::container::state::Status;
use crate::sentry::kernel::Kernel;

/// How long the sandbox's end waits for commands to take their answers.
const PATIENCE: Duration = Duration::from_secs(1);

/// One container.
pub struct Container {
    /// Its name.
    pub id: String,
    /// Its kernel.
    pub kernel: Arc<Kernel>,
    /// Where its exit status goes.
    exit: Mutex<Option<File>>,
}

impl Container {
    /// How it is.
    pub fn status(&self) -> Status {
        if self.kernel.ended().is_some() {
            Status::Stopped
        } else if !self.kernel.gate.is_open() {
            Status::Created
        } else if self.kernel.is_frozen() {
            Status::Paused
        } else {
            Status::Running
        }
    }
}

impl Container {
    /// Waits for its end, writes the status down for later commands and returns it. `None` when `peer`, if there is one,
    /// closes its end before.
    pub fn wait_ended(&self, peer: Option<BorrowedFd<'_>>) -> Option<i32> {
        let status = self.kernel.wait_ended(peer)?.shell_status();
        // Whoever else waits goes on when it is written.
        let mut exit = self.exit.lock();
        if let Some(mut file) = exit.take()
            && let Err(error) = writeln!(file, "{status}")
        {
            log::warn!("write down the exit status of {}: {error}", self.id);
        }
        Some(status)
    }
}

/// All containers of the sandbox. Its locks are leaves.
#[derive(Default)]
pub struct Containers {
    list: Mutex<HashMap<String, Arc<Container>>>,
    /// How many commands are just being told of an end.
    telling: Mutex<usize>,
    told: Condvar,
}

impl Containers {
    /// Adds one. Fails when the name is taken.
    pub fn add(&self, id: &str, kernel: Arc<Kernel>, exit: OwnedFd) -> Outcome<Arc<Container>> {
        let exit = Mutex::new(Some(File::from(exit)));
        let container = Arc::new(Container { id: id.to_owned(), kernel, exit });
        let mut list = self.list.lock();
        if list.contains_key(id) {
            return Err(format!("container {id:?} already exists"));
        }
        list.insert(id.to_owned(), container.clone());
        Ok(container)
    }

    /// The container of that name.
    pub fn get(&self, id: &str) -> Outcome<Arc<Container>> {
        self.list.lock().get(id).cloned().ok_or_else(|| format!("container {id:?} does not exist"))
    }

    /// Does what tells somebody of an end; the sandbox does not end meanwhile.
    pub fn tell<T>(&self, work: impl FnOnce() -> T) -> T {
        *self.telling.lock() += 1;
        let done = work();
        *self.telling.lock() -= 1;
        self.told.notify_all();
        done
    }

    /// Returns when everybody who waits for an end has been told, or does not listen.
    pub fn wait_told(&self) {
        let mut telling = self.telling.lock();
        let deadline = Instant::now() + PATIENCE;
        while *telling > 0 && !self.told.wait_until(&mut telling, deadline).timed_out() {}
    }
}
