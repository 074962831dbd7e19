//! Processes and threads: making, ending and naming them, who they are and what they may use.

pub mod clone;
pub mod creds;
pub mod exec;
pub mod ids;
pub mod limits;
pub mod pidfd;
pub mod prctl;
pub mod priority;
pub mod sched;
pub mod seccomp;
pub mod wait;
