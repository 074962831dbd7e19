//! What an example needs around the sandbox: a root file system, and a network to reach it by.

pub mod debian;
pub mod network;
