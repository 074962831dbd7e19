//! The kernel: tasks, memory, signals and the system calls.

pub mod boot;
pub mod bootlog;
pub mod creds;
pub mod mm;
