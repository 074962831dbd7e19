//! Containers as the operator knows them: bundles, state on disk, the sandbox's processes and how to talk to them.
//!
//! ```text
//! runsc run ──clone──▶ runsc gofer   own mounts only, no network, serves host files      (gofer)
//!     │     ──clone──▶ runsc boot    empty root, no capabilities, seccomp: the sentry    (boot)
//!     │                   └─ stubs
//!     ├── report pipes ◀─ "started", "failed: …", "exited: 3"                            (report)
//!     └── control socket ─▶ signals, state                                               (control)
//! ```
//!
//! `create` leaves the sandbox with its program loaded and waiting, `start` lets it go; `run` is both (`sandbox`, `life`).
//! A container of a Kubernetes pod joins the sandbox of the pod's first one (`pod`).
//!
//! The command line does what needs the host's privileges (opening the bundle, the TAP device, the control socket, the
//! logs) and hands descriptors to the two processes, which then give up everything else.

pub mod boot;
pub mod cgroup;
pub mod control;
pub mod dbus;
pub mod error;
pub mod files;
pub mod gofer;
pub mod hooks;
pub mod isolate;
pub mod life;
pub mod mount;
pub mod network;
pub mod pod;
pub mod report;
pub mod sandbox;
pub mod spawn;
pub mod spec;
pub mod stand_in;
pub mod state;
pub mod terminal;
pub mod view;
mod watch;

pub use error::{Context, Error, Result};
