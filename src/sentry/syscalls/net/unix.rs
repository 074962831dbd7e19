//! UNIX sockets with names in the file system: `unix(7)`, "Pathname socket ownership and permissions".

use std::sync::Arc;
use std::time::Instant;

use crate::errno::{Errno, Result};
use crate::netstack::unix::{BoundSocket, UnixSocket};
use crate::netstack::{SockAddr, Socket};
use crate::sentry::task::Current;
use crate::vfs::file::OpenFile;
use crate::vfs::inode::NodeType;
use crate::vfs::perm::Access;
use crate::vfs::{LookupFlags, Walk, ops};
use crate::wait::Events;

/// Whether a name is a path: neither empty nor abstract.
pub(super) fn is_path(name: &[u8]) -> bool {
    name.first().is_some_and(|&byte| byte != 0)
}

fn with_walk<T>(cur: &Current, f: impl FnOnce(&Walk<'_>) -> Result<T>) -> Result<T> {
    let fs = cur.fs().get();
    let creds = cur.creds();
    let devices = &cur.kernel.devices;
    f(&Walk { root: &fs.root, start: &fs.cwd, creds: &creds, umask: fs.umask, devices })
}

/// Makes the node and names the socket. `EADDRINUSE`; `EINVAL` when it has a name; those of `mknod(2)`.
pub(super) fn bind(cur: &Current, socket: &UnixSocket, path: &[u8]) -> Result<()> {
    if socket.local_name()? != SockAddr::Unix(Vec::new()) {
        return Err(Errno::EINVAL);
    }
    with_walk(cur, |walk| {
        let made = walk.mknod(path, NodeType::Socket, 0o777, 0).map_err(|error| match error {
            Errno::EEXIST => Errno::EADDRINUSE,
            error => error,
        })?;
        let attached = || {
            let attachments = made.inode()?.attachments().ok_or(Errno::EOPNOTSUPP)?;
            attachments.set(socket.bind_path(path)?);
            socket.keep_node(made.clone());
            Ok(())
        };
        attached().inspect_err(|_| {
            // Nobody listens there: if it cannot be removed, connecting to it is refused.
            let _ = walk.unlink(path);
        })
    })
}

/// The socket with a path. `ECONNREFUSED` (no socket, or nobody has it open), `EACCES`, those of lookups.
pub(super) fn find(cur: &Current, path: &[u8]) -> Result<Arc<BoundSocket>> {
    with_walk(cur, |walk| {
        let found = walk.lookup(path, LookupFlags::FOLLOW)?;
        ops::access(&found, walk.creds, Access::WRITE)?;
        if found.dentry.kind() != Some(NodeType::Socket) {
            return Err(Errno::ECONNREFUSED);
        }
        found.inode()?.attachments().and_then(|all| all.get::<BoundSocket>()).ok_or(Errno::ECONNREFUSED)
    })
}

/// `connect(2)`: waits while the backlog is full.
pub(super) fn connect(
    cur: &Current,
    file: &OpenFile,
    socket: &UnixSocket,
    name: &SockAddr,
    deadline: Option<Instant>,
) -> Result<()> {
    cur.wait_file(&**file.object(), Events::WRITE, file.nonblocking(), deadline, || match name {
        // Looked up each time: while this one waits, another may have taken the name over.
        SockAddr::Unix(path) if is_path(path) => socket.connect_to(&*find(cur, path)?),
        name => socket.connect(name),
    })
}
