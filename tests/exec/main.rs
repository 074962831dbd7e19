//! What is done to a container while it runs: further processes, terminals, pausing, its end.

#[path = "../common/mod.rs"]
mod common;
mod container;
mod ends;
mod jobs;
mod pause;
mod processes;
mod stand_in;
mod terminal;
mod terminals;
