//! Who may look into whom: `ptrace(2)`, "Ptrace access mode checking".

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::task::Task;

impl Task {
    /// Whether the task may look into another, by its real ids (`PTRACE_MODE_REALCREDS`). `EPERM`.
    pub fn may_trace(&self, target: &Task) -> Result<()> {
        let own = self.creds();
        self.may_access(target, (own.ruid, own.rgid), own.permitted)
    }

    /// Whether the task may look into another through files, by its file-system ids (`PTRACE_MODE_FSCREDS`). `EPERM`.
    pub fn may_look_into(&self, target: &Task) -> Result<()> {
        let own = self.creds();
        self.may_access(target, (own.fsuid, own.fsgid), own.effective)
    }

    fn may_access(&self, target: &Task, (uid, gid): (u32, u32), caps: Caps) -> Result<()> {
        if Arc::ptr_eq(&self.group, &target.group) || self.has_cap(Caps::SYS_PTRACE) {
            return Ok(());
        }
        let other = target.creds();
        let same_user = [other.ruid, other.euid, other.suid].iter().all(|&id| id == uid)
            && [other.rgid, other.egid, other.sgid].iter().all(|&id| id == gid);
        // Nothing is left to hide of memory that is gone.
        let dumpable = target.mm().map_or(true, |mm| mm.dumpable() == 1);
        let allowed = same_user && dumpable && caps.contains(other.permitted);
        if allowed { Ok(()) } else { Err(Errno::EPERM) }
    }
}
