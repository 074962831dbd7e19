//! Who a task is: `credentials(7)`, `capabilities(7)`.
//!
//! A set of credentials never changes: a task that changes its own makes another set, as Linux does. What was opened or
//! queued in a task's name keeps the set of that moment.

use std::sync::Arc;

use bitflags::bitflags;

bitflags! {
    /// Capabilities, bit by number: `capabilities(7)`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    #[allow(missing_docs, reason = "the names are capabilities(7)'s")]
    pub struct Caps: u64 {
        const CHOWN = 1 << 0;
        const DAC_OVERRIDE = 1 << 1;
        const DAC_READ_SEARCH = 1 << 2;
        const FOWNER = 1 << 3;
        const FSETID = 1 << 4;
        const KILL = 1 << 5;
        const SETGID = 1 << 6;
        const SETUID = 1 << 7;
        const SETPCAP = 1 << 8;
        const LINUX_IMMUTABLE = 1 << 9;
        const NET_BIND_SERVICE = 1 << 10;
        const NET_BROADCAST = 1 << 11;
        const NET_ADMIN = 1 << 12;
        const NET_RAW = 1 << 13;
        const IPC_LOCK = 1 << 14;
        const IPC_OWNER = 1 << 15;
        const SYS_MODULE = 1 << 16;
        const SYS_RAWIO = 1 << 17;
        const SYS_CHROOT = 1 << 18;
        const SYS_PTRACE = 1 << 19;
        const SYS_PACCT = 1 << 20;
        const SYS_ADMIN = 1 << 21;
        const SYS_BOOT = 1 << 22;
        const SYS_NICE = 1 << 23;
        const SYS_RESOURCE = 1 << 24;
        const SYS_TIME = 1 << 25;
        const SYS_TTY_CONFIG = 1 << 26;
        const MKNOD = 1 << 27;
        const LEASE = 1 << 28;
        const AUDIT_WRITE = 1 << 29;
        const AUDIT_CONTROL = 1 << 30;
        const SETFCAP = 1 << 31;
        const MAC_OVERRIDE = 1 << 32;
        const MAC_ADMIN = 1 << 33;
        const SYSLOG = 1 << 34;
        const WAKE_ALARM = 1 << 35;
        const BLOCK_SUSPEND = 1 << 36;
        const AUDIT_READ = 1 << 37;
        const PERFMON = 1 << 38;
        const BPF = 1 << 39;
        const CHECKPOINT_RESTORE = 1 << 40;
    }
}

/// The number of the last capability: `/proc/sys/kernel/cap_last_cap`.
pub const LAST_CAP: u32 = 40;

/// One set of credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Real user id.
    pub ruid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Saved set-user-id.
    pub suid: u32,
    /// User id for files; the effective one unless `setfsuid(2)` said otherwise.
    pub fsuid: u32,
    /// Real group id.
    pub rgid: u32,
    /// Effective group id.
    pub egid: u32,
    /// Saved set-group-id.
    pub sgid: u32,
    /// Group id for files.
    pub fsgid: u32,
    /// Supplementary groups, sorted.
    pub groups: Arc<[u32]>,
    /// Capabilities in force.
    pub effective: Caps,
    /// What may be put in force.
    pub permitted: Caps,
    /// What `execve(2)` may keep, with the file's consent.
    pub inheritable: Caps,
    /// What can ever be gained.
    pub bounding: Caps,
    /// What `execve(2)` of an unprivileged program keeps.
    pub ambient: Caps,
    /// `PR_SET_SECUREBITS`.
    pub securebits: u32,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
}

impl Credentials {
    /// User 0 with every capability.
    pub fn root() -> Credentials {
        Credentials::new(0, 0, &[], Caps::all())
    }

    /// A user with groups, and `caps` permitted, in force and bounding.
    pub fn new(uid: u32, gid: u32, groups: &[u32], caps: Caps) -> Credentials {
        let mut groups = groups.to_vec();
        groups.sort_unstable();
        Credentials {
            ruid: uid,
            euid: uid,
            suid: uid,
            fsuid: uid,
            rgid: gid,
            egid: gid,
            sgid: gid,
            fsgid: gid,
            groups: groups.into(),
            effective: caps,
            permitted: caps,
            inheritable: Caps::empty(),
            bounding: caps,
            ambient: Caps::empty(),
            securebits: 0,
            no_new_privs: false,
        }
    }

    /// Whether all of `caps` are in force.
    pub fn has(&self, caps: Caps) -> bool {
        self.effective.contains(caps)
    }

    /// Whether `gid` is the file-system group or a supplementary one.
    pub fn in_group(&self, gid: u32) -> bool {
        self.fsgid == gid || self.groups.binary_search(&gid).is_ok()
    }

    /// Whether `gid` is the effective group or a supplementary one.
    pub fn in_effective_group(&self, gid: u32) -> bool {
        self.egid == gid || self.groups.binary_search(&gid).is_ok()
    }
}
