//! The sandbox's interfaces, as the command line hands them over.

use std::os::fd::OwnedFd;

use super::{Doing, Outcome};
use crate::container::network::Link;
use crate::errno::{Errno, Result};
use crate::sentry::kernel::Kernel;

/// Gives the stack its interfaces, whose devices come first, and Docker's name server, which comes last if there is one.
pub fn attach_late(kernel: &Kernel, links: Vec<Link>, dns: bool, mut fds: Vec<OwnedFd>) -> Outcome<()> {
    if fds.len() != links.len() + usize::from(dns) {
        return Err(format!("{} descriptors for {} interfaces", fds.len(), links.len()));
    }
    if kernel.gate.is_open() {
        return Err("the container's program runs already".into());
    }
    let server = if dns { fds.pop() } else { None };
    let names: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
    if !names.is_empty() {
        kernel.boot_log.push(&format!("Network: interfaces: {}", names.join(", ")));
    }
    let attached = kernel.net.attach(links.into_iter().zip(fds).collect());
    unless_done(attached).doing(|| "attach the network interfaces".into())?;
    let relayed = server.map_or(Ok(()), |server| kernel.net.relay_dns(server));
    unless_done(relayed).doing(|| "attach the name server".into())
}

/// A `start` that was killed may have handed the same over before.
fn unless_done(done: Result<()>) -> Result<()> {
    if done == Err(Errno::EBUSY) { Ok(()) } else { done }
}
