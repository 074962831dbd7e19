//! Abstract names, and what hangs on the nodes of named sockets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Kind, UnixSocket};
use crate::errno::{Errno, Result};
use crate::netstack::stack::settings::Settings;
use crate::vfs::Path;

type Key = (Kind, Arc<[u8]>);

/// What UNIX sockets have of one network namespace: abstract names, and settings. Sockets of different types may have the same
/// name, as on Linux.
#[derive(Default)]
pub struct UnixNamespace {
    names: Mutex<HashMap<Key, Weak<UnixSocket>>>,
    next_auto: AtomicU32,
    /// The namespace's.
    pub(super) settings: Arc<Settings>,
}

impl UnixNamespace {
    /// One without names.
    pub fn new(settings: &Arc<Settings>) -> Arc<UnixNamespace> {
        Arc::new(UnixNamespace { settings: settings.clone(), ..UnixNamespace::default() })
    }

    /// The socket with this abstract name (leading NUL included).
    pub(super) fn find(&self, kind: Kind, name: &[u8]) -> Option<Arc<UnixSocket>> {
        let key = (kind, Arc::from(name));
        self.names.lock().get(&key).and_then(Weak::upgrade)
    }

    /// `EADDRINUSE` when a living socket has it.
    fn insert(&self, socket: &UnixSocket, name: &Arc<[u8]>) -> Result<()> {
        let mut names = self.names.lock();
        let key = (socket.kind(), name.clone());
        if names.get(&key).is_some_and(|holder| holder.strong_count() > 0) {
            return Err(Errno::EADDRINUSE);
        }
        names.insert(key, socket.me.clone());
        Ok(())
    }

    /// Takes the name of a socket that goes.
    pub(super) fn forget(&self, socket: &UnixSocket) {
        let Some(name) = socket.side().name.get().filter(|name| name[0] == 0) else { return };
        let key = (socket.kind(), name.clone());
        let mut names = self.names.lock();
        // An accepted connection has its listener's name, and somebody else may have taken a name that became free.
        if names.get(&key).is_some_and(|holder| holder.ptr_eq(&socket.me)) {
            names.remove(&key);
        }
    }
}

/// A socket that is bound to a path: hangs on the inode, which may outlive it.
pub struct BoundSocket {
    socket: Weak<UnixSocket>,
}

impl BoundSocket {
    /// The socket, unless it is closed.
    pub fn socket(&self) -> Option<Arc<UnixSocket>> {
        self.socket.upgrade()
    }
}

impl UnixSocket {
    /// `bind(2)` to a path. The caller has made the node and attaches what this returns to it
    /// (`attachments.set(bound)`); when this fails it removes the node again. `EINVAL` when the socket has a name.
    pub fn bind_path(&self, path: &[u8]) -> Result<Arc<BoundSocket>> {
        if path.is_empty() || path[0] == 0 {
            return Err(Errno::EINVAL);
        }
        self.side().name.set(path.into()).map_err(|_| Errno::EINVAL)?;
        Ok(Arc::new(BoundSocket { socket: self.me.clone() }))
    }

    /// Keeps the node that it is bound to as long as it is there itself, as on Linux.
    pub fn keep_node(&self, node: Path) {
        let _ = self.node.set(node); // it is bound once
    }

    pub(super) fn bind_abstract(&self, name: &[u8]) -> Result<()> {
        let name: Arc<[u8]> = name.into();
        if self.side().name.get().is_some() {
            return Err(Errno::EINVAL);
        }
        self.ns.insert(self, &name)?;
        if self.side().name.set(name.clone()).is_err() {
            // Another thread named it meanwhile.
            self.ns.names.lock().remove(&(self.kind(), name));
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// Gives it a free abstract name of five hexadecimal digits; does nothing when it has a name. `ENOSPC` when a million
    /// are taken.
    pub(super) fn autobind(&self) -> Result<()> {
        const NAMES: u32 = 1 << 20;
        for _ in 0..NAMES {
            if self.side().name.get().is_some() {
                return Ok(());
            }
            let number = self.ns.next_auto.fetch_add(1, Ordering::Relaxed) % NAMES;
            match self.bind_abstract(format!("\0{number:05x}").as_bytes()) {
                Err(Errno::EADDRINUSE) => {}
                other => return other,
            }
        }
        Err(Errno::ENOSPC)
    }
}
