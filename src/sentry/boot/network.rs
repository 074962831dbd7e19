//! The sandbox's interfaces, as the command line hands them over.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Doing, Outcome};
use crate::container::network::Link;
use crate::netstack::Stack;

/// Gives the stack its interfaces, each with its device, and Docker's name server, before any program runs.
pub fn attach(net: &Arc<Stack>, links: Vec<(Link, OwnedFd)>, dns: Option<OwnedFd>) -> Outcome<()> {
    net.attach(links).doing(|| "attach the network interfaces".into())?;
    dns.map_or(Ok(()), |server| net.relay_dns(server)).doing(|| "attach the name server".into())
}
