//! The sandbox's network on the host's side: what the operator or the engine has set up, found, opened and handed over.
//!
//! ```text
//!  --tap, --ip …          NetConfig ─┐
//!  a namespace's veth …   namespace ─┴─> Link + device (a TAP device's descriptor, or a packet socket's) ──> the sentry
//!  127.0.0.11 in resolv.conf         ──> a connected UDP socket: Docker's name server                    ──> the sentry
//! ```
//!
//! The sentry's stack takes the place of the namespace's own, which from then on is silent (`quiet`).

mod config;
mod dns;
mod namespace;
mod packet;
mod quiet;
mod rtnetlink;
mod tap;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

pub use self::config::{Link, Mac, NetConfig, Prefix, Route, VnetHeader};
pub use self::tap::{Tap, find_tap, open_tap};
use super::error::{Context, Result};
use super::spec::Bundle;

/// What was taken over from a network namespace.
#[derive(Debug, Default)]
pub struct Taken {
    /// The interfaces, each with its device.
    pub links: Vec<(Link, OwnedFd)>,
    /// Docker's name server: a UDP socket connected to it.
    pub dns: Option<OwnedFd>,
}

/// Takes over the interfaces of the network namespace at `namespace`: reads links, addresses, routes and permanent
/// neighbours, opens a packet socket on each link, and makes the namespace's own stack silent. When the container's
/// `/etc/resolv.conf` names Docker's name server, that one is connected to.
///
/// Nothing is taken from the namespace that the host, or this command itself, lives in.
pub fn take_over(namespace: &Path, bundle: &Bundle) -> Result<Taken> {
    if is_hosts_own(namespace)? {
        log::info!("{} is the host's own network: the container has loopback alone", namespace.display());
        return Ok(Taken::default());
    }
    let wants_dns = dns::is_named(bundle);
    within(Some(namespace), || {
        let links = namespace::read()?;
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        // The sockets come first: if one cannot be made, nothing has been changed.
        let devices = links.iter().map(packet::open).collect::<Result<Vec<_>>>()?;
        let dns = if wants_dns { Some(dns::connect()?) } else { None };
        quiet::silence(&names, wants_dns)?;
        let with_header = |(link, (device, header)): (Link, _)| (Link { header, ..link }, device);
        Ok(Taken { links: links.into_iter().zip(devices).map(with_header).collect(), dns })
    })
}

/// Whether a namespace is this process's own or that of the host's first process.
pub fn is_hosts_own(namespace: &Path) -> Result<bool> {
    let identity = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino()));
    let asked = identity(namespace).doing(|| format!("look at network namespace {}", namespace.display()))?;
    let same = |path: &str| identity(Path::new(path)).is_ok_and(|own| own == asked);
    Ok(same("/proc/self/ns/net") || same("/proc/1/ns/net"))
}

/// Runs `work` in the network namespace at `path`, on a thread of its own since a thread cannot surely go back.
fn within<T: Send>(path: Option<&Path>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let Some(path) = path else { return work() };
    let namespace = File::open(path).doing(|| format!("open network namespace {}", path.display()))?;
    let enter_and_work = || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .doing(|| format!("enter network namespace {}", path.display()))?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter_and_work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn check(ret: libc::c_int) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
