//! runsc: runs Linux containers on a kernel in user space.
//!
//! The pieces, from the container's side inwards: a [`platform`] runs container code and reports its system calls; the
//! [`sentry`] answers them; files come from [`vfs`], whose root is an [`overlay`] over what the [`gofer`] process serves;
//! sockets come from [`netstack`]. `docs/architecture.md` has the whole picture.

pub mod cli;
pub mod container;
pub mod errno;
pub mod gofer;
pub mod io;
pub mod logging;
pub mod platform;
pub mod seccomp;
pub mod sentry;
pub mod timer;
pub mod wait;

#[path = "../netstack/mod.rs"]
pub mod netstack;
#[path = "../overlay/mod.rs"]
pub mod overlay;
#[path = "../vfs/mod.rs"]
pub mod vfs;
