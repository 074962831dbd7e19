//! The virtual file system: mounts, names, inodes and open files.
//!
//! ```text
//! Walk (root, start, credentials) ── lookup, open, mkdir, rename ... ──> Path { Mount, Dentry } ──> Inode ──> File
//!                                     a name in the cache: Dentry        a file system mounted: Mount, Superblock
//! ```
//!
//! [`Walk`] resolves names and does what needs a name; [`ops`] does what needs only a node (`chmod`, `truncate`,
//! extended attributes), so that descriptors and paths take the same way. Nothing here blocks for an unbounded time.
//!
//! Lock order: a superblock's rename lock > directory locks (an ancestor before its descendants, else by address) > a
//! dentry's `children` > a dentry's `place`; the lock of all mount trees > a mount's `children` > its `place` > its
//! `role` and a peer group's lists. The
//! cache's list of used names is a leaf. File systems are called with a directory lock held, so they take no dentry lock.

pub mod anon;
pub mod cgroup;
pub mod dentry;
pub mod deny;
pub mod dev;
pub mod devices;
pub mod epoll;
pub mod eventfd;
pub mod fasync;
pub mod file;
pub mod gofer;
pub mod host;
pub mod inode;
pub mod inotify;
pub mod kernfs;
pub mod lease;
pub mod locks;
pub mod mount;
pub mod mount_list;
pub mod names;
pub mod open;
pub mod ops;
pub mod path;
pub mod perm;
pub mod pipe;
pub mod proc;
pub mod propagation;
pub mod signalfd;
pub mod sysfs;
pub mod timerfd;
pub mod tmpfs;
pub mod tty;
pub mod walk;
pub mod xattr;

pub use self::dentry::{Dentry, Superblock};
pub use self::devices::DeviceTable;
pub use self::mount::{Mount, MountFlags, MountNamespace};
pub use self::mount_list::MountInfo;
pub use self::open::{OpenHow, Opened};
pub use self::path::{Path, path_string};
pub use self::propagation::Propagation;
pub use self::walk::{LookupFlags, Walk};

#[cfg(test)]
mod tests;
