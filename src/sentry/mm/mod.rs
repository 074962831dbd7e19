//! Container memory.

pub mod user;
