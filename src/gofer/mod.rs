//! The process that opens host files for the sentry.

use std::os::fd::OwnedFd;

/// One tree of host files and the connection that it is served on.
pub struct Export {
    /// The connection to the sentry: `SOCK_SEQPACKET`.
    pub socket: OwnedFd,
    /// The tree's root, `O_PATH`; a file for a bind mount of one.
    pub root: OwnedFd,
    /// Whether changes are allowed.
    pub writable: bool,
}

/// Serves until the sentry closes all connections.
pub fn serve(exports: Vec<Export>) {
    log::error!("serving {} trees is not implemented", exports.len());
}
