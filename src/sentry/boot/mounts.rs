//! The container's mounts, from its specification.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use oci_spec::runtime::Mount as MountSpec;

use super::{Doing, Outcome};
use crate::container::boot::{ContainerConfig, GoferMount, take};
use crate::container::spec::is_bind;
use crate::errno::{Errno, Result};
use crate::overlay::OverlayFs;
use crate::sentry::creds::Credentials;
use crate::sentry::kernel::Kernel;
use crate::vfs::gofer::GoferFs;
use crate::vfs::inode::{Caching, FileSystem, NodeType};
use crate::vfs::mount::{MountFlags, MountNamespace};
use crate::vfs::tmpfs::{TmpFs, TmpfsOptions};
use crate::vfs::tty::{DevPts, DevPtsOptions};
use crate::vfs::walk::{LookupFlags, Walk};
use crate::vfs::{Path, dev, proc, sysfs};

/// The device number of a file system that has no device of its own.
pub fn next_dev() -> u64 {
    static NEXT: AtomicU32 = AtomicU32::new(0x30);
    libc::makedev(0, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The options of a mount: its flags, and those of the file system.
pub fn parse_options<'a>(options: impl Iterator<Item = &'a str>) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        let (flag, on) = match option {
            "ro" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "noatime" => (MountFlags::NOATIME, true),
            "atime" => (MountFlags::NOATIME, false),
            "nodiratime" => (MountFlags::NODIRATIME, true),
            "diratime" => (MountFlags::NODIRATIME, false),
            "relatime" => (MountFlags::RELATIME, true),
            "norelatime" => (MountFlags::RELATIME, false),
            "strictatime" => (MountFlags::STRICTATIME, true),
            "sync" => (MountFlags::SYNCHRONOUS, true),
            "nosymfollow" => (MountFlags::NOSYMFOLLOW, true),
            "bind" | "rbind" | "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable"
            | "defaults" | "async" => continue,
            other => {
                data.push(other);
                continue;
            }
        };
        flags.set(flag, on);
    }
    (flags, data.join(","))
}

/// The machine's memory in bytes: what tmpfs's default limits are half of.
pub fn ram() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(1 << 30, |info| info.ram_total())
}

/// All mounts of the container. Takes the gofer's connections out of the configuration.
pub fn build(kernel: &Arc<Kernel>, config: &mut ContainerConfig, ptys: &Arc<DevPts>) -> Outcome<Arc<MountNamespace>> {
    let mut gofers = std::mem::take(&mut config.gofer_fds);
    if gofers.is_empty() {
        return Err("the gofer serves no root".into());
    }
    let root = gofers.remove(0);
    let root_fs = root_file_system(&root, config.overlay).doing(|| "mount the root file system".into())?;
    let read_only = config.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    // Mount points are made before the root becomes read-only.
    let namespace =
        MountNamespace::new(&root_fs, MountFlags::empty(), "none").doing(|| "mount the root file system".into())?;
    let builder = Builder { kernel, namespace: &namespace, ptys };
    let mounts = config.spec.mounts().clone().unwrap_or_default();
    for mount in &mounts {
        let what =
            || format!("mount {} on {}", mount.typ().as_deref().unwrap_or("bind"), mount.destination().display());
        builder.mount(mount, &mut gofers).doing(what)?;
    }
    builder.fill_dev().doing(|| "fill /dev".into())?;
    if read_only {
        let root = namespace.root();
        namespace.remount(&root, MountFlags::RDONLY, true).doing(|| "make the root read-only".into())?;
    }
    Ok(namespace)
}

fn root_file_system(root: &GoferMount, overlay: bool) -> Result<Arc<dyn FileSystem>> {
    // Beneath an overlay nobody changes it; otherwise the host may.
    let caching = if overlay || root.read_only { Caching::Forever } else { Caching::Revalidate };
    let lower = GoferFs::connect(take(root.fd), root.read_only, caching)?;
    if !overlay {
        return Ok(lower);
    }
    let upper = TmpFs::new(next_dev(), &TmpfsOptions::parse("mode=755", ram())?, ram());
    Ok(OverlayFs::new(lower, upper)?)
}

struct Builder<'a> {
    kernel: &'a Arc<Kernel>,
    namespace: &'a Arc<MountNamespace>,
    ptys: &'a Arc<DevPts>,
}

impl Builder<'_> {
    fn mount(&self, mount: &MountSpec, gofers: &mut Vec<GoferMount>) -> Result<()> {
        let options = mount.options().iter().flatten().map(String::as_str);
        let (flags, data) = parse_options(options);
        let destination = mount.destination().as_os_str().as_bytes();
        let source = mount.source().as_ref().map_or("none".into(), |source| source.display().to_string());
        let (fs, flags): (Arc<dyn FileSystem>, _) = if is_bind(mount) {
            let index =
                gofers.iter().position(|gofer| gofer.destination == *mount.destination()).ok_or(Errno::ENOENT)?;
            let gofer = gofers.remove(index);
            let flags = if gofer.read_only { flags | MountFlags::RDONLY } else { flags };
            (GoferFs::connect(take(gofer.fd), gofer.read_only, Caching::Revalidate)?, flags)
        } else {
            (self.file_system(mount.typ().as_deref().unwrap_or(""), &data)?, flags)
        };
        let kind = fs.root().attr()?.kind;
        let at = self.mount_point(destination, kind)?;
        self.namespace.mount(&fs, &at, flags, &source).map(drop)
    }

    fn file_system(&self, kind: &str, data: &str) -> Result<Arc<dyn FileSystem>> {
        Ok(match kind {
            "proc" => proc::new(next_dev(), self.kernel),
            "sysfs" => Arc::new(sysfs::new(next_dev(), crate::platform::placement::count() as u32, None)),
            "devpts" => {
                // The instance that /dev/ptmx belongs to.
                self.ptys.set_options(DevPtsOptions::parse(data)?);
                self.ptys.clone()
            }
            "tmpfs" | "ramfs" | "devtmpfs" => TmpFs::new(next_dev(), &TmpfsOptions::parse(data, ram())?, ram()),
            // An empty directory: there is no message queue file system, and no cgroup of the host's is shown.
            "mqueue" | "cgroup" | "cgroup2" => {
                TmpFs::new(next_dev(), &TmpfsOptions::parse("mode=555,size=4k", ram())?, ram())
            }
            _ => return Err(Errno::ENODEV),
        })
    }

    /// The directory (or file) to mount on, made if it is not there.
    fn mount_point(&self, path: &[u8], kind: NodeType) -> Result<Path> {
        let root = self.namespace.root();
        let creds = Credentials::root();
        let walk = Walk { root: &root, start: &root, creds: &creds, umask: 0, devices: &self.kernel.devices };
        match walk.lookup(path, LookupFlags::FOLLOW) {
            Err(Errno::ENOENT) => {}
            found => return found,
        }
        let mut made = Vec::new();
        let mut names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            made.push(b'/');
            made.extend_from_slice(name);
            let result = match names.peek().is_none() && kind != NodeType::Directory {
                true => walk.mknod(&made, NodeType::Regular, 0o644, 0).map(drop),
                false => walk.mkdir(&made, 0o755).map(drop),
            };
            match result {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error),
            }
        }
        walk.lookup(path, LookupFlags::FOLLOW)
    }

    /// Device nodes and links, where /dev is a file system of the sandbox's.
    fn fill_dev(&self) -> Result<()> {
        let root = self.namespace.root();
        let creds = Credentials::root();
        let walk = Walk { root: &root, start: &root, creds: &creds, umask: 0, devices: &self.kernel.devices };
        let dev_dir = walk.lookup(b"/dev", LookupFlags::FOLLOW)?;
        if dev_dir.mount.fs().type_name() != "tmpfs" {
            return Ok(());
        }
        dev::populate(&walk, b"/dev")
    }
}
