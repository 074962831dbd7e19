//! The kernel: tasks, memory, signals and the system calls.

pub mod boot;
pub mod creds;
pub mod futex;
pub mod mm;
pub mod signal;
pub mod time;
