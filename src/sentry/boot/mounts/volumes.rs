//! Volumes that the pod's annotations describe: those in memory are one file system for all containers of the sandbox.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use oci_spec::runtime::Mount as MountSpec;

use super::{next_dev, options, ram};
use crate::container::spec::volumes::{Kind, Share, Volume};
use crate::errno::{Errno, Result};
use crate::sentry::boot::Outcome;
use crate::vfs::inode::{Caching, FileSystem};
use crate::vfs::mount::MountFlags;
use crate::vfs::tmpfs::{TmpFs, TmpfsOptions};

/// The volumes of a sandbox, as its first container's specification describes them.
#[derive(Default)]
pub struct Volumes(Vec<Known>);

struct Known {
    name: String,
    source: PathBuf,
    kind: Kind,
    share: Share,
    /// What no mount of it may go beyond.
    flags: MountFlags,
    /// tmpfs's own options.
    data: String,
    /// Made with the first mount, kept as long as the sandbox: a container that is started again finds it as it was.
    fs: OnceLock<Arc<dyn FileSystem>>,
}

/// Flags that forbid: a mount of a volume that has one must have it too.
const FORBIDDING: [(MountFlags, &str); 4] = [
    (MountFlags::RDONLY, "ro"),
    (MountFlags::NOEXEC, "noexec"),
    (MountFlags::NOSUID, "nosuid"),
    (MountFlags::NOATIME, "noatime"),
];

impl Volumes {
    /// As the command line has found and checked them.
    pub fn new(volumes: Vec<Volume>) -> Outcome<Volumes> {
        let known = |volume: Volume| {
            let kind = if volume.kind == Kind::Tmpfs { Some("tmpfs") } else { None };
            let parsed = options::parse(kind, volume.options.iter().map(String::as_str))
                .map_err(|text| format!("volume {:?}: {text}", volume.name))?;
            let Volume { name, source, kind, share, .. } = volume;
            Ok(Known { name, source, kind, share, flags: parsed.flags, data: parsed.data, fs: OnceLock::new() })
        };
        volumes.into_iter().map(known).collect::<Outcome<_>>().map(Volumes)
    }

    fn find(&self, source: &Path, kind: Kind) -> Option<&Known> {
        self.0.iter().find(|volume| volume.kind == kind && volume.source == source)
    }

    /// The volume in memory that a mount is of.
    fn in_memory(&self, mount: &MountSpec) -> Option<&Known> {
        let tmpfs = mount.typ().as_deref() == Some("tmpfs");
        let volume = mount.source().as_ref().filter(|_| tmpfs).and_then(|source| self.find(source, Kind::Tmpfs));
        volume.filter(|volume| volume.share != Share::Shared)
    }

    /// Whether a mount goes beyond what its volume allows.
    pub fn check(&self, mount: &MountSpec, flags: MountFlags) -> Outcome<()> {
        let Some(volume) = self.in_memory(mount) else { return Ok(()) };
        let lacking = FORBIDDING.iter().find(|(flag, _)| volume.flags.contains(*flag) && !flags.contains(*flag));
        match lacking {
            Some((_, option)) => Err(format!(
                "mount tmpfs on {}: is not {option:?}, as the pod's volume {:?} is",
                mount.destination().display(),
                volume.name
            )),
            None => Ok(()),
        }
    }

    /// The file system of a mount of a volume in memory; `None` for other mounts.
    pub fn file_system(&self, mount: &MountSpec) -> Result<Option<Arc<dyn FileSystem>>> {
        let Some(volume) = self.in_memory(mount) else { return Ok(None) };
        if let Some(fs) = volume.fs.get() {
            return Ok(Some(fs.clone()));
        }
        let options = TmpfsOptions::parse(&volume.data, ram()).map_err(|_| Errno::EINVAL)?;
        let made: Arc<dyn FileSystem> = TmpFs::new(next_dev(), &options, ram());
        // Another container's may have come first.
        Ok(Some(volume.fs.get_or_init(|| made).clone()))
    }

    /// What may be believed of a host directory that a container mounts: a volume that is described as this container's alone
    /// is changed by nobody else.
    pub fn caching(&self, source: Option<&Path>) -> Caching {
        let volume = source.and_then(|source| self.find(source, Kind::Bind));
        let own = volume.is_some_and(|volume| volume.share == Share::Container);
        if own { Caching::Lease } else { Caching::Revalidate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volumes() -> Volumes {
        let volume = |name: &str, kind, share, options: &str| Volume {
            name: name.into(),
            source: format!("/{name}").into(),
            kind,
            share,
            options: vec![options.into()],
        };
        Volumes::new(vec![
            volume("memory", Kind::Tmpfs, Share::Pod, "noexec"),
            volume("own", Kind::Bind, Share::Container, ""),
            volume("pod", Kind::Bind, Share::Pod, ""),
            volume("outside", Kind::Tmpfs, Share::Shared, ""),
        ])
        .unwrap()
    }

    fn mount(kind: &str, source: &str) -> MountSpec {
        serde_json::from_value(json!({"destination": "/d", "type": kind, "source": source})).unwrap()
    }

    #[test]
    fn mounts_of_one_volume_in_memory_are_one_file_system() {
        let volumes = volumes();
        let of = |kind: &str, source: &str| volumes.file_system(&mount(kind, source)).unwrap();
        let (one, two) = (of("tmpfs", "/memory").unwrap(), of("tmpfs", "/memory").unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        for (kind, source) in [("bind", "/memory"), ("tmpfs", "/other"), ("tmpfs", "/own"), ("tmpfs", "/outside")] {
            assert!(of(kind, source).is_none(), "{kind} {source}");
        }
    }

    #[test]
    fn a_mount_does_not_go_beyond_its_volume() {
        let volumes = volumes();
        let (memory, other) = (mount("tmpfs", "/memory"), mount("tmpfs", "/other"));
        let problem = volumes.check(&memory, MountFlags::RDONLY).unwrap_err();
        assert_eq!(problem, "mount tmpfs on /d: is not \"noexec\", as the pod's volume \"memory\" is");
        volumes.check(&memory, MountFlags::NOEXEC | MountFlags::RDONLY).unwrap();
        volumes.check(&other, MountFlags::empty()).unwrap();
    }

    #[test]
    fn what_one_container_has_alone_is_believed_for_a_while() {
        let volumes = volumes();
        assert_eq!(volumes.caching(Some(Path::new("/own"))), Caching::Lease);
        for source in ["/pod", "/other", "/memory"] {
            assert_eq!(volumes.caching(Some(Path::new(source))), Caching::Revalidate, "{source}");
        }
        assert_eq!(volumes.caching(None), Caching::Revalidate);
    }
}
