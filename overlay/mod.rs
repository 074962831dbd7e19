//! The copy-up file system.
