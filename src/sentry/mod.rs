//! The kernel: tasks, memory, signals and the system calls.

pub mod boot;
