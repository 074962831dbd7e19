//! Host files that several trees show: the volumes that containers of a pod share, and a directory that one container has in
//! two places.
//!
//! Each tree has a gofer connection, nodes and mount options of its own. What a file carries *inside* the sandbox (locks,
//! the pipe of a FIFO, the socket that is bound to it, watches, who runs it) belongs to the file, whichever tree it is reached
//! through: an [`Identity`], by the host's device and inode number. So is its device number in the sandbox one for all trees.
//!
//! Trees that may change only. Their nodes hold the file open on the host, so that its number is not another's meanwhile; in an
//! immutable tree nothing does, and nobody else has it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

use super::Key;
use crate::vfs::inode::Attachments;

/// What belongs to a host file. Kept by its nodes once somebody has asked for it.
pub struct Identity {
    /// `None` for a file of an immutable tree, which is nobody else's.
    key: Option<Key>,
    pub(super) attachments: Attachments,
    /// Held over each write at the end.
    pub(super) append: Mutex<()>,
}

/// Those that are kept by anybody. Leaf lock; nothing is dropped under it.
static ALL: LazyLock<Mutex<HashMap<Key, Weak<Identity>>>> = LazyLock::new(Mutex::default);

impl Identity {
    /// The one of a file that its caller has open on the host.
    pub(super) fn of(key: Key) -> Arc<Identity> {
        let mut all = ALL.lock();
        if let Some(known) = all.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let made = Identity::new(Some(key));
        all.insert(key, Arc::downgrade(&made));
        made
    }

    /// One that nobody else has.
    pub(super) fn alone() -> Arc<Identity> {
        Identity::new(None)
    }

    fn new(key: Option<Key>) -> Arc<Identity> {
        Arc::new(Identity { key, attachments: Attachments::default(), append: Mutex::default() })
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut all = ALL.lock();
        // Another may have taken the place since this one was given up.
        if all.get(&key).is_some_and(|known| known.strong_count() == 0) {
            all.remove(&key);
        }
    }
}

/// The first device number of gofer file systems, which have no device: `makedev(0, …)`.
static NEXT_DEVICE: AtomicU32 = AtomicU32::new(0x60);

/// The device number in the sandbox of a device of the host's. There are as many as the operator lets containers see.
pub(super) fn device(host: u64) -> u64 {
    static ALL: LazyLock<Mutex<HashMap<u64, u64>>> = LazyLock::new(Mutex::default);
    let next = || libc::makedev(0, NEXT_DEVICE.fetch_add(1, Ordering::Relaxed));
    *ALL.lock().entry(host).or_insert_with(next)
}
