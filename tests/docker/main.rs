//! Docker and containerd run containers with this runtime, as a user would: the commands, their output, their exit codes.
//!
//! Each test holds with `runc` too, which shows that what it expects is what Docker's users get on Linux:
//!
//! ```sh
//! ENGINE_RUNTIME=runc cargo test --test docker
//! ENGINE_DEBUG=1 cargo test --test docker -- --nocapture name     # with the runtime's logs
//! ```
//!
//! They need root and what `scripts/setup` installs. See [`engine`] for where the daemons run.

#[path = "../common/mod.rs"]
mod common;

#[allow(dead_code, reason = "the benchmarks use the rest of it")]
mod engine;
mod leftovers;
mod terminal;

mod containerd;
mod crashes;
mod exec;
mod files;
mod flags;
mod install;
mod joined;
mod life;
mod limits;
mod networks;
mod options;
mod terminals;
mod transcript;
