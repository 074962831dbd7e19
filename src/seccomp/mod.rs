//! Seccomp filters: what each of the sandbox's processes may ask of the host's kernel.

pub mod sentry;
pub mod stub;
