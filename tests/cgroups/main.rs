//! Limits of the specification on this host's real cgroups, whichever version has the controllers.

#[path = "../common/mod.rs"]
mod common;

mod events;
mod limits;
mod place;
mod systemd;
mod unified;
mod view;
