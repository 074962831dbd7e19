//! The life of containers as engines drive it: one command after another, in order and out of order, killed half way.

#[path = "../common/mod.rs"]
mod common;

mod commands;
mod interrupted;
mod late_network;
mod many;
mod mount;
mod order;
mod place;
mod pods;
