//! Files, directories and descriptors.
//!
//! A call takes one of two ways: through a descriptor to an open file ([`io`], [`fd`], [`fcntl`]), or through a
//! path to a node ([`path`] resolves it, and what is done then is the VFS's: [`ops`](crate::vfs::ops), `Walk`). Waiting is
//! done here, by `Current::wait_file`; files only say `EAGAIN`.

pub mod attr;
pub mod dir;
pub mod fcntl;
pub mod fd;
pub mod handle;
pub mod inotify;
pub mod io;
pub mod ioctl;
pub mod link;
pub mod locks;
pub mod mount;
pub mod open;
mod owner;
pub mod path;
pub mod pipe;
pub mod sendfile;
pub mod size;
pub mod splice;
pub mod stat;
pub mod statfs;
pub mod sync;
pub mod times;
pub mod xattr;
