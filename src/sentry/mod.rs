//! The kernel: tasks, memory, signals and the system calls.

pub mod boot;
pub mod creds;
pub mod loader;
pub mod mm;
