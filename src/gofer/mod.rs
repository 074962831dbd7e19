//! The process that opens host files for the sentry.
//!
//! It serves trees of files, each on a connection of its own. What it is asked is not trusted, as the sentry may have been
//! taken over by its container: a connection reaches its own tree and nothing else. Paths are resolved by
//! `openat2(2)`, beneath the root and through no symbolic link; the sentry, which does the path walk, is given the text
//! of links. A message that does not follow the protocol ends its connection.
//!
//! ```text
//! sentry   vfs::gofer ──request──▶ server ──▶ tree    nodes, names, attributes   ──▶ host (openat2 beneath the root)
//!                     ◀──reply───         └─▶ change  what alters the tree
//!                        + descriptor of a regular file, which the sentry reads, writes and maps by itself
//! ```
//!
//! One thread serves a connection: what one process asks of one tree comes in order, and a tree on a slow disk delays no
//! other.

use std::os::fd::OwnedFd;

mod change;
pub mod codec;
mod host;
pub mod protocol;
mod server;
#[cfg(test)]
mod tests;
mod tree;
pub mod wire;

/// One tree of host files and the connection that it is served on.
pub struct Export {
    /// The connection to the sentry: `SOCK_SEQPACKET`.
    pub socket: OwnedFd,
    /// The tree's root, `O_PATH`; a file for a bind mount of one.
    pub root: OwnedFd,
    /// The root opened, if it is a regular file: there is no directory that it could be opened from later.
    pub root_file: Option<RootFile>,
    /// Whether changes are allowed.
    pub writable: bool,
    /// Whether mounts that the host makes in the tree come to be in it: these may be without the restrictions of the tree's own,
    /// and the host may want them back.
    pub follows: bool,
}

/// A regular file that is a tree by itself.
pub struct RootFile {
    /// Open for reading.
    pub read: OwnedFd,
    /// Open for reading and writing, if that is allowed.
    pub write: Option<OwnedFd>,
}

/// Serves until the sentry closes all connections.
pub fn serve(exports: Vec<Export>) {
    let threads: Vec<_> = exports.into_iter().enumerate().filter_map(|(index, export)| start(index, export)).collect();
    for thread in threads {
        // A panic has been printed, and has ended its own connection alone.
        let _ = thread.join();
    }
}

fn start(index: usize, export: Export) -> Option<std::thread::JoinHandle<()>> {
    let serve_one = move || match server::serve(export) {
        Ok(()) => log::debug!("tree {index}: the sentry has closed the connection"),
        Err(error) => log::error!("tree {index}: connection ended: {error}"),
    };
    let started = std::thread::Builder::new().name(format!("tree-{index}")).spawn(serve_one);
    started.inspect_err(|error| log::error!("tree {index}: cannot start its thread: {error}")).ok()
}
