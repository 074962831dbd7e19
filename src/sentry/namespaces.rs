//! Namespaces of a task: `namespaces(7)`. One sandbox has one space of process ids, users and time.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::errno::Result;
use crate::netstack::unix::UnixNamespace;
use crate::sentry::fs::FsContext;
use crate::vfs::anon;
use crate::vfs::mount::MountNamespace;

/// A process number, and in which PID namespace it counts: the containers of a pod may each count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pid {
    /// The number; 0 for no process.
    pub number: i32,
    /// The namespace: [`TaskTree::namespace`](crate::sentry::task::tree::TaskTree::namespace).
    pub namespace: u64,
}

impl Pid {
    /// The number that processes of `namespace` see: 0 when it is not theirs, `pid_namespaces(7)`.
    pub fn seen_from(self, namespace: u64) -> i32 {
        if self.namespace == namespace { self.number } else { 0 }
    }
}

/// Host and domain name: `uname(2)`.
pub struct UtsNamespace {
    /// Its inode number below `/proc/PID/ns`.
    pub ino: u64,
    names: RwLock<(Vec<u8>, Vec<u8>)>,
}

impl UtsNamespace {
    /// With these names.
    pub fn new(host: &[u8], domain: &[u8]) -> Arc<UtsNamespace> {
        Arc::new(UtsNamespace { ino: anon::next_ino(), names: RwLock::new((host.to_vec(), domain.to_vec())) })
    }

    /// A copy of its own: `CLONE_NEWUTS`.
    pub fn fork(&self) -> Arc<UtsNamespace> {
        let (host, domain) = self.names.read().clone();
        UtsNamespace::new(&host, &domain)
    }

    /// `gethostname(2)`.
    pub fn host(&self) -> Vec<u8> {
        self.names.read().0.clone()
    }

    /// `getdomainname(2)`.
    pub fn domain(&self) -> Vec<u8> {
        self.names.read().1.clone()
    }

    /// `sethostname(2)`.
    pub fn set_host(&self, name: &[u8]) {
        self.names.write().0 = name.to_vec();
    }

    /// `setdomainname(2)`.
    pub fn set_domain(&self, name: &[u8]) {
        self.names.write().1 = name.to_vec();
    }
}

/// The namespaces that a task can have of its own.
#[derive(Clone)]
pub struct Namespaces {
    /// Mounts.
    pub mounts: Arc<MountNamespace>,
    /// Host and domain name.
    pub uts: Arc<UtsNamespace>,
    /// Names of abstract UNIX sockets, which belong to the network namespace.
    pub unix: Arc<UnixNamespace>,
}

impl Namespaces {
    /// A set with some of its own: `CLONE_NEWNS` (root and working directory of `fs` move along), `CLONE_NEWUTS`.
    pub fn fork(&self, mounts: bool, uts: bool, fs: &FsContext) -> Result<Namespaces> {
        let mut own = self.clone();
        if uts {
            own.uts = self.uts.fork();
        }
        if mounts {
            let mut state = fs.get();
            own.mounts = self.mounts.copy(&mut [&mut state.root, &mut state.cwd])?;
            fs.update(|now| (now.root, now.cwd) = (state.root, state.cwd));
        }
        Ok(own)
    }
}
