//! Namespaces that were made and pinned to a file before the pod was there, as CRI-O does with `pinns`: the sentry is in them,
//! so that they are the pod's for whoever looks, and stand for what the sentry itself has of their kind.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::Found;
use crate::container::spec::Problem;

/// Namespaces that a sandbox's sentry joins, besides the network's.
#[derive(Debug, Default)]
pub struct Pinned {
    ipc: Option<OwnedFd>,
    uts: Option<OwnedFd>,
    /// The network's, whoever pinned it. It stays in the specification.
    net: Option<OwnedFd>,
}

impl Pinned {
    /// Takes pinned namespaces out of a specification, which has the host's name of the pinned one then unless it names
    /// another. Those of processes are left there.
    pub fn take(spec: &mut Spec) -> Found<Pinned> {
        let mut pinned = Pinned::default();
        let Some(linux) = spec.linux_mut() else { return Ok(pinned) };
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        for (index, namespace) in namespaces.iter_mut().enumerate() {
            let path = namespace.path().clone().filter(|path| !path.as_os_str().is_empty());
            let (place, flag) = match namespace.typ() {
                LinuxNamespaceType::Network => {
                    // One that is not there is refused with the specification.
                    pinned.net = path.and_then(|path| File::open(path).ok()).map(OwnedFd::from);
                    continue;
                }
                LinuxNamespaceType::Ipc => (&mut pinned.ipc, CloneFlags::CLONE_NEWIPC),
                LinuxNamespaceType::Uts => (&mut pinned.uts, CloneFlags::CLONE_NEWUTS),
                _ => continue,
            };
            let Some(path) = path.filter(|path| !path.starts_with("/proc")) else { continue };
            let wrong = |text: String| Problem::new(format!("linux.namespaces[{index}].path"), text);
            *place = Some(open(&path, flag).map_err(wrong)?);
            namespace.set_path(None);
        }
        linux.set_namespaces(Some(namespaces));
        if let Some(uts) = &pinned.uts {
            let (host, domain) = names(uts).map_err(|error| Problem::new("hostname", error.to_string()))?;
            if spec.hostname().is_none() {
                spec.set_hostname(Some(host));
            }
            if spec.domainname().is_none() && domain != "(none)" {
                spec.set_domainname(Some(domain));
            }
        }
        Ok(pinned)
    }

    /// Their descriptors, each with its `CLONE_NEW*`.
    pub fn namespaces(&self) -> impl Iterator<Item = (RawFd, i32)> {
        let of = |fd: &Option<OwnedFd>, flag| fd.as_ref().map(|fd| (fd.as_raw_fd(), flag));
        [of(&self.ipc, libc::CLONE_NEWIPC), of(&self.uts, libc::CLONE_NEWUTS)].into_iter().flatten()
    }

    /// Whether there is one for System V IPC.
    pub fn has_ipc(&self) -> bool {
        self.ipc.is_some()
    }

    /// Whether there is one for the host's name.
    pub fn has_uts(&self) -> bool {
        self.uts.is_some()
    }

    /// Whether a process is in all of them, and in the network that the specification names.
    pub fn are_of(&self, pid: i32) -> bool {
        let is_of = |fd: &Option<OwnedFd>, file: &str| {
            let Some(fd) = fd else { return true };
            let pinned = identity(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())));
            pinned.is_some() && pinned == identity(Path::new(&format!("/proc/{pid}/ns/{file}")))
        };
        is_of(&self.ipc, "ipc") && is_of(&self.uts, "uts") && is_of(&self.net, "net")
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// A namespace of that type which is not the host's. What is wrong, in words.
fn open(path: &Path, flag: CloneFlags) -> Result<OwnedFd, String> {
    /// `NS_GET_NSTYPE`, ioctl_ns(2).
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    let file = if flag == CloneFlags::CLONE_NEWIPC { "ipc" } else { "uts" };
    let opened = File::open(path).map_err(|error| format!("{}: {}", path.display(), crate::errno::describe(&error)))?;
    // SAFETY: takes no argument.
    if unsafe { libc::ioctl(opened.as_raw_fd(), NS_GET_NSTYPE) } != flag.bits() {
        return Err(format!("{} is not a namespace of type {file}", path.display()));
    }
    let own = ["self", "1"].map(|pid| identity(Path::new(&format!("/proc/{pid}/ns/{file}"))));
    if own.contains(&identity(path)) {
        return Err(format!("{} is the host's own: a sandbox cannot share it", path.display()));
    }
    Ok(opened.into())
}

/// Host and domain name of a namespace, as a thread in it sees them.
fn names(uts: &OwnedFd) -> io::Result<(String, String)> {
    let look = || {
        setns(uts, CloneFlags::CLONE_NEWUTS)?;
        let names = nix::sys::utsname::uname()?;
        let text = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
        Ok((text(names.nodename()), text(names.domainname())))
    };
    std::thread::scope(|scope| scope.spawn(look).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
