//! From a configuration to a running container.

use crate::container::boot::BootConfig;
use crate::container::report;

/// Runs the container until its first process ends; its exit status, or 128 plus the signal that killed it.
pub fn run(config: BootConfig) -> i32 {
    report::failed(&format!("running {} is not implemented", config.id));
    128
}
