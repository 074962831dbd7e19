//! The virtual file system: mounts, names, inodes and open files.

use std::sync::Arc;

pub mod anon;
pub mod epoll;
pub mod eventfd;
pub mod file;
pub mod gofer;
pub mod inode;
pub mod inotify;
pub mod pipe;
pub mod signalfd;
pub mod timerfd;
pub mod tty;

/// A place in the tree of mounts.
#[derive(Clone)]
pub struct Path {
    /// The mount.
    pub mount: Arc<Mount>,
    /// The name in it.
    pub dentry: Arc<Dentry>,
}

/// A mounted file system. (The VFS core's; to be filled in.)
pub struct Mount {}

/// A cached name. (The VFS core's; to be filled in.)
pub struct Dentry {}
