//! The life of containers as engines drive it: one command after another, in order and out of order, killed half way.

#[path = "../common/mod.rs"]
mod common;

mod commands;
mod crio;
mod documents;
mod idle;
mod interrupted;
mod late_network;
mod listen;
mod many;
mod mount;
mod order;
mod place;
mod pod;
mod pod_limits;
mod pods;
mod propagation;
mod silent;
mod volumes;
