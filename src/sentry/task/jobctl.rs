//! What terminals ask of processes.

use std::sync::{Arc, OnceLock, Weak};

use crate::sentry::creds::Caps;
use crate::sentry::kernel::Kernel;
use crate::sentry::signal::{SIG_IGN, SigInfo, Signal};
use crate::sentry::task::{ThreadGroup, current};
use crate::vfs::tty::{Caller, JobControl};

/// The processes of a sandbox. Terminals are made before the kernel that refers to them, so it is told later.
#[derive(Default)]
pub struct Processes {
    kernel: OnceLock<Weak<Kernel>>,
}

impl Processes {
    /// Says whose processes they are.
    pub fn set_kernel(&self, kernel: &Arc<Kernel>) {
        let _ = self.kernel.set(Arc::downgrade(kernel));
    }

    fn kernel(&self) -> Option<Arc<Kernel>> {
        self.kernel.get()?.upgrade()
    }
}

impl JobControl for Processes {
    fn caller(&self) -> Option<Caller> {
        let task = current()?;
        let creds = task.creds();
        let tree = task.kernel.tree.lock();
        let node = tree.node(task.pid())?;
        Some(Caller {
            pid: task.pid(),
            group: node.pgid,
            session: node.sid,
            uid: creds.fsuid,
            privileged: creds.has(Caps::SYS_ADMIN),
        })
    }

    fn signal_group(&self, group: i32, signal: i32) {
        let (Some(kernel), Ok(signal)) = (self.kernel(), Signal::new(signal)) else { return };
        let members: Vec<Arc<ThreadGroup>> = kernel.tree.lock().members(group).map(|node| node.group.clone()).collect();
        for member in members {
            member.send(SigInfo::kernel(signal), None);
        }
    }

    fn signal_process(&self, pid: i32, signal: i32) {
        let (Some(kernel), Ok(signal)) = (self.kernel(), Signal::new(signal)) else { return };
        if let Ok(group) = kernel.process(pid) {
            group.send(SigInfo::kernel(signal), None);
        }
    }

    fn session_of(&self, group: i32) -> Option<i32> {
        self.kernel()?.tree.lock().session_of(group)
    }

    fn is_orphaned(&self, group: i32) -> bool {
        self.kernel().is_none_or(|kernel| kernel.tree.lock().is_orphaned(group, None))
    }

    fn caller_ignores(&self, signal: i32) -> bool {
        let (Some(task), Ok(signal)) = (current(), Signal::new(signal)) else { return false };
        task.blocked().contains(signal) || task.group.handlers().get(signal).handler == SIG_IGN
    }
}
