//! What tests and benchmarks share: a sandbox to run things in, networks, and a client.
#![allow(dead_code, unused_imports, reason = "every target uses its own part of this")]

pub mod http;
pub mod leftovers;
pub mod nginx;
pub mod runtime;
pub mod sandbox;

#[path = "../../examples/support/mod.rs"]
pub mod support;

pub use runtime::Runtime;
pub use sandbox::{Output, Running, Sandbox};
pub use support::network::{Cable, Namespace, Network, OUTSIDE, OUTSIDE6, SANDBOX, SANDBOX6};
