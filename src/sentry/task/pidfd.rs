//! `pidfd_open(2)`: a descriptor that stands for a process.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sentry::task::ThreadGroup;
use crate::vfs::anon;
use crate::vfs::file::File;
use crate::vfs::inode::Attr;
use crate::wait::{Events, WaitQueue};

/// Readable once the process has ended.
pub struct PidFd {
    group: Arc<ThreadGroup>,
}

impl PidFd {
    /// Of a process.
    pub fn new(group: Arc<ThreadGroup>) -> Arc<PidFd> {
        Arc::new(PidFd { group })
    }

    /// The process.
    pub fn group(&self) -> &Arc<ThreadGroup> {
        &self.group
    }
}

impl File for PidFd {
    fn poll(&self) -> Events {
        if self.group.exited.load(Ordering::SeqCst) { Events::READ } else { Events::empty() }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.group.exit_queue)
    }

    fn anonymous_attr(&self) -> Option<Attr> {
        Some(anon::shared_attr())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some("anon_inode:[pidfd]".into())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
