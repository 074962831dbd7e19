//! The sandbox's interfaces, as the command line hands them over.

use std::os::fd::OwnedFd;

use super::{Doing, Outcome};
use crate::container::network::Link;
use crate::sentry::kernel::Kernel;

/// Gives the stack its interfaces, whose devices come first, and Docker's name server, which comes last if there is one.
///
/// A command that was killed may have done so before: the same ones again are no error, and those of the first time stay.
pub fn attach_late(kernel: &Kernel, links: Vec<Link>, dns: bool, mut fds: Vec<OwnedFd>) -> Outcome<()> {
    if fds.len() != links.len() + usize::from(dns) {
        return Err(format!("{} descriptors for {} interfaces", fds.len(), links.len()));
    }
    if kernel.gate.is_open() {
        return Err("the container's program runs already".into());
    }
    let names: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
    let mut attached = kernel.attached.lock();
    if let Some(earlier) = &*attached {
        let same = *earlier == (names.clone(), dns);
        return if same { Ok(()) } else { Err(format!("the interfaces are {} already", earlier.0.join(", "))) };
    }
    let server = if dns { fds.pop() } else { None };
    if !names.is_empty() {
        kernel.boot_log.push(&format!("Network: interfaces: {}", names.join(", ")));
    }
    kernel.net.attach(links.into_iter().zip(fds).collect()).doing(|| "attach the network interfaces".into())?;
    server.map_or(Ok(()), |server| kernel.net.relay_dns(server)).doing(|| "attach the name server".into())?;
    *attached = Some((names, dns));
    Ok(())
}
