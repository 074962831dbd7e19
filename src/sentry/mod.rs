//! The kernel: tasks, memory, signals and the system calls.

pub mod boot;
pub mod bootlog;
pub mod counters;
pub mod creds;
pub mod fdtable;
pub mod fs;
pub mod futex;
pub mod home;
pub mod ipc;
pub mod kernel;
pub mod limits;
pub mod loader;
pub mod mm;
pub mod namespaces;
pub mod seccomp;
pub mod signal;
pub mod strace;
pub mod syscalls;
pub mod sysctl;
pub mod task;
pub mod time;
