//! Seccomp filters: what each of the sandbox's processes may ask of the host's kernel.

pub mod gofer;
pub mod sentry;
pub mod stub;
pub mod trap;
