//! What files without a name have in common: inode numbers, device numbers and attributes that `fchmod(2)` may change.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::vfs::inode::{Attr, NodeType, SetAttr, TimeSpec};

/// `st_dev` of sockets: the first anonymous devices are the kernel's own mounts, in the order of their making.
pub const DEV_SOCKET: u64 = 0x9;
/// `st_dev` of pipes.
pub const DEV_PIPE: u64 = 0xf;
/// `st_dev` of anonymous inodes: eventfd, epoll, timerfd and the like.
pub const DEV_ANON: u64 = 0x10;

/// The next inode number for a file that no file system numbers; unique in the sandbox.
pub fn next_ino() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Attributes of one anonymous file.
pub struct AnonAttr {
    /// Its number, as `pipe:[5]` shows it.
    pub ino: u64,
    /// Leaf lock.
    attr: Mutex<Attr>,
}

impl AnonAttr {
    /// Of a new file that belongs to `owner` (user, group).
    pub fn new(dev: u64, kind: NodeType, perm: u32, owner: (u32, u32)) -> AnonAttr {
        let ino = next_ino();
        let mut attr = Attr::new(dev, ino, kind, perm);
        (attr.uid, attr.gid) = owner;
        attr.btime = None;
        AnonAttr { ino, attr: Mutex::new(attr) }
    }

    /// A copy.
    pub fn get(&self) -> Attr {
        *self.attr.lock()
    }

    /// `fchmod(2)`, `fchown(2)`, `futimens(3)`. A size is not changed: these files have none.
    pub fn set(&self, set: &SetAttr) {
        let mut attr = self.attr.lock();
        attr.perm = set.perm.map_or(attr.perm, |perm| perm & 0o7777);
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        attr.atime = set.atime.unwrap_or(attr.atime);
        attr.mtime = set.mtime.unwrap_or(attr.mtime);
        attr.ctime = TimeSpec::now();
    }
}

/// Attributes that all anonymous inodes share: on Linux they are one inode, of user 0, mode 0600 and no type.
pub fn shared_attr() -> Attr {
    static SHARED: std::sync::OnceLock<Attr> = std::sync::OnceLock::new();
    *SHARED.get_or_init(|| {
        let mut attr = Attr::new(DEV_ANON, next_ino(), NodeType::Anonymous, 0o600);
        attr.btime = None;
        attr
    })
}
