//! Namespaces as files: `namespaces(7)`, "The /proc/pid/ns/ directory".

use std::any::Any;
use std::sync::Arc;

use crate::errno::Result;
use crate::sentry::namespaces::UtsNamespace;
use crate::sentry::task::Task;
use crate::vfs::file::File;
use crate::vfs::inode::{Attr, NodeType};
use crate::vfs::mount::MountNamespace;

/// A sort of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are namespaces(7)'s")]
pub enum Kind {
    Cgroup,
    Ipc,
    Mount,
    Net,
    Pid,
    Time,
    User,
    Uts,
}

/// The names in `/proc/PID/ns`, and what they are.
pub const KINDS: [(&str, Kind); 10] = [
    ("cgroup", Kind::Cgroup),
    ("ipc", Kind::Ipc),
    ("mnt", Kind::Mount),
    ("net", Kind::Net),
    ("pid", Kind::Pid),
    ("pid_for_children", Kind::Pid),
    ("time", Kind::Time),
    ("time_for_children", Kind::Time),
    ("user", Kind::User),
    ("uts", Kind::Uts),
];

/// Where Linux begins to number namespaces; its first ones have the eight numbers from [`FIRST_INO`].
const BASE_INO: u64 = 0xf000_0000;
const FIRST_INO: u64 = 0xefff_fff8;

/// A task's namespace.
#[derive(Clone)]
pub enum Namespace {
    /// Mounts.
    Mount(Arc<MountNamespace>),
    /// Host and domain name.
    Uts(Arc<UtsNamespace>),
    /// One that there is only one of.
    Only(Kind),
}

impl Namespace {
    /// The one of `task`.
    pub fn of(kind: Kind, task: &Task) -> Namespace {
        let all = task.namespaces();
        match kind {
            Kind::Mount => Namespace::Mount(all.mounts.clone()),
            Kind::Uts => Namespace::Uts(all.uts.clone()),
            kind => Namespace::Only(kind),
        }
    }

    /// Its sort.
    pub fn kind(&self) -> Kind {
        match self {
            Namespace::Mount(_) => Kind::Mount,
            Namespace::Uts(_) => Kind::Uts,
            Namespace::Only(kind) => *kind,
        }
    }

    /// Its inode number, which tells it from any other namespace.
    pub fn ino(&self) -> u64 {
        match self {
            // Numbers of the two are counted separately: even and odd keep them apart.
            Namespace::Mount(mounts) => BASE_INO + 2 * mounts.id(),
            Namespace::Uts(uts) => BASE_INO + 2 * uts.ino + 1,
            Namespace::Only(kind) => match kind {
                Kind::Cgroup => FIRST_INO + 3,
                Kind::Ipc => FIRST_INO + 7,
                Kind::Mount => FIRST_INO,
                Kind::Net => FIRST_INO + 1,
                Kind::Pid => FIRST_INO + 4,
                Kind::Time => FIRST_INO + 2,
                Kind::User => FIRST_INO + 5,
                Kind::Uts => FIRST_INO + 6,
            },
        }
    }

    /// What its link shows: `mnt:[4026531832]`.
    pub fn name(&self) -> String {
        let kind = match self.kind() {
            Kind::Cgroup => "cgroup",
            Kind::Ipc => "ipc",
            Kind::Mount => "mnt",
            Kind::Net => "net",
            Kind::Pid => "pid",
            Kind::Time => "time",
            Kind::User => "user",
            Kind::Uts => "uts",
        };
        format!("{kind}:[{}]", self.ino())
    }

    /// Attributes of its file.
    pub fn attr(&self) -> Attr {
        /// `st_dev` of `nsfs`.
        const DEV: u64 = 0x4;
        let mut attr = Attr::new(DEV, self.ino(), NodeType::Regular, 0o444);
        attr.btime = None;
        attr
    }
}

/// An open namespace: for `setns(2)` and to keep it alive.
pub struct NamespaceFile(pub Namespace);

impl File for NamespaceFile {
    fn anonymous_attr(&self) -> Option<Attr> {
        Some(self.0.attr())
    }

    fn anonymous_name(&self) -> Option<String> {
        Some(self.0.name())
    }

    fn seekable(&self) -> bool {
        false
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
