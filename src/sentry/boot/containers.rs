//! The containers of a sandbox, by name. The first, the root container, is what the sandbox was made for: when it ends,
//! the sandbox does. The others are those of a Kubernetes pod.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::peer::wait_for;
use super::{Outcome, Shared};
use crate::container::state::Status;
use crate::platform::placement;
use crate::sentry::kernel::Kernel;
use crate::sentry::namespaces::UtsNamespace;

/// How long the sandbox's end waits for commands to take their answers, and for containers to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// One container.
pub struct Container {
    /// Its name.
    pub id: String,
    /// Its kernel.
    pub kernel: Arc<Kernel>,
    /// Host and domain name of its first process.
    pub uts: Arc<UtsNamespace>,
    /// Whether it is the root container.
    root: bool,
    /// Where its exit status goes.
    exit: Mutex<Option<File>>,
}

impl Container {
    /// How it is. Whoever hears that it has stopped finds its exit status written down.
    pub fn status(&self) -> Status {
        if let Some(status) = self.kernel.ended() {
            self.note(status.shell_status());
            Status::Stopped
        } else if !self.kernel.gate.is_open() {
            Status::Created
        } else if self.kernel.is_frozen() {
            Status::Paused
        } else {
            Status::Running
        }
    }

    /// Whether the sandbox ends with it.
    pub fn is_root(&self) -> bool {
        self.root
    }

    /// Waits for its end, writes the status down for later commands and returns it.
    pub fn wait_ended(&self) -> i32 {
        let status = self.kernel.wait_ended().shell_status();
        self.note(status);
        status
    }

    /// As [`Container::wait_ended`], and until what it has written to its terminal is shown. `None` when `peer` closes its
    /// end first.
    pub fn wait(&self, peer: BorrowedFd<'_>) -> Option<i32> {
        if !wait_for(&self.kernel.ended_queue, || self.kernel.ended().is_some(), Some(peer)) {
            return None;
        }
        if let Some(console) = self.kernel.console.get() {
            console.finish();
        }
        Some(self.wait_ended())
    }

    /// Writes its status down. Whoever else waits goes on when it is written.
    fn note(&self, status: i32) {
        let mut exit = self.exit.lock();
        if let Some(mut file) = exit.take()
            && let Err(error) = writeln!(file, "{status}")
        {
            log::warn!("write down the exit status of {}: {error}", self.id);
        }
    }

    /// Kills it, if it still runs, and waits for its end as long as can be expected.
    pub fn end(&self) {
        self.kernel.kill();
        match self.kernel.wait_ended_until(Some(Instant::now() + PATIENCE)) {
            Some(status) => self.note(status.shell_status()),
            None => log::warn!("container {:?} does not end", self.id),
        }
    }
}

/// All containers of the sandbox. Its locks are leaves.
pub struct Containers {
    /// What they share.
    pub(super) shared: Shared,
    list: Mutex<HashMap<String, Arc<Container>>>,
    /// How many commands are just being told of an end.
    telling: Mutex<usize>,
    told: Condvar,
}

impl Containers {
    /// A sandbox without containers.
    pub(super) fn new(shared: Shared) -> Containers {
        Containers { shared, list: Mutex::default(), telling: Mutex::default(), told: Condvar::new() }
    }

    /// Adds one; the first is the root container. Fails when the name is taken.
    pub fn add(&self, id: &str, kernel: Arc<Kernel>, uts: Arc<UtsNamespace>, exit: OwnedFd) -> Outcome<Arc<Container>> {
        let exit = Mutex::new(Some(File::from(exit)));
        let mut list = self.list.lock();
        if list.contains_key(id) {
            return Err(format!("container {id:?} already exists"));
        }
        let container = Arc::new(Container { id: id.to_owned(), kernel, uts, root: list.is_empty(), exit });
        list.insert(id.to_owned(), container.clone());
        Ok(container)
    }

    /// Ends one and forgets it, unless another has its name by now.
    pub fn remove(&self, container: &Arc<Container>) {
        container.kernel.kill();
        if container.kernel.first_process().is_ok() {
            container.end();
        }
        if let Some(console) = container.kernel.console.get() {
            console.hang_up();
        }
        let mut list = self.list.lock();
        if list.get(&container.id).is_some_and(|named| Arc::ptr_eq(named, container)) {
            list.remove(&container.id);
        }
        drop(list);
        container.kernel.forget_processes();
    }

    /// The host may have changed which CPUs the sandbox may use: its threads go where they may be.
    pub fn cpus_changed(&self) {
        placement::refresh();
        let all: Vec<Arc<Container>> = self.list.lock().values().cloned().collect();
        for (group, _) in all.iter().flat_map(|container| container.kernel.processes()) {
            group
                .threads()
                .iter()
                .for_each(|task| task.reschedule(|scheduling| scheduling.set_affinity(scheduling.affinity())));
        }
    }

    /// The container of that name.
    pub fn get(&self, id: &str) -> Outcome<Arc<Container>> {
        self.list.lock().get(id).cloned().ok_or_else(|| format!("container {id:?} does not exist"))
    }

    /// As [`Containers::get`], for one that has not ended.
    pub fn live(&self, id: &str) -> Outcome<Arc<Container>> {
        let container = self.get(id)?;
        if container.kernel.ended().is_some() { Err(format!("container {id:?} has stopped")) } else { Ok(container) }
    }

    /// The root container.
    pub fn root(&self) -> Option<Arc<Container>> {
        self.list.lock().values().find(|container| container.root).cloned()
    }

    /// Ends all but the root container, which has ended.
    pub fn end_others(&self) {
        let others: Vec<_> = self.list.lock().values().filter(|container| !container.root).cloned().collect();
        others.iter().for_each(|container| container.kernel.kill());
        others.iter().for_each(|container| container.end());
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
