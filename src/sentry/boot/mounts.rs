//! The container's mounts, from its specification.

pub mod options;
mod special;
pub mod volumes;

use std::collections::VecDeque;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use oci_spec::runtime::Mount as MountSpec;

use self::options::MountOptions;
use self::volumes::Volumes;
use super::create::{GoferConnection, NewContainer};
use super::{Doing, Outcome};
use crate::container::spec::is_bind;
use crate::errno::{Errno, Result};
use crate::overlay::OverlayFs;
use crate::sentry::creds::Credentials;
use crate::sentry::kernel::Kernel;
use crate::vfs::gofer::GoferFs;
use crate::vfs::inode::{Caching, FileSystem, NodeType};
use crate::vfs::kernfs::KernFs;
use crate::vfs::mount::{MountFlags, MountNamespace};
use crate::vfs::propagation::Propagation;
use crate::vfs::tmpfs::{TmpFs, TmpfsOptions};
use crate::vfs::tty::DevPtsOptions;
use crate::vfs::walk::{LookupFlags, Walk};
use crate::vfs::{Path, cgroup, dev, proc, sysfs};

/// The device number of a file system that has no device of its own.
pub fn next_dev() -> u64 {
    static NEXT: AtomicU32 = AtomicU32::new(0x30);
    libc::makedev(0, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The machine's memory in bytes: what tmpfs's default limits are half of.
pub fn ram() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(1 << 30, |info| info.ram_total())
}

/// All mounts of the container. Takes the gofer's connections.
pub fn build(kernel: &Arc<Kernel>, new: &mut NewContainer, volumes: &Volumes) -> Outcome<Arc<MountNamespace>> {
    let mut gofers = std::mem::take(&mut new.gofers);
    let spec = &new.spec;
    if gofers.is_empty() {
        return Err("the gofer serves no root".into());
    }
    let root = gofers.remove(0);
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    // The mount points that a read-only root lacks are made in memory too: the host's directory stays as it is.
    let overlay = new.overlay || read_only;
    let root_fs = root_file_system(root, overlay).doing(|| "mount the root file system".into())?;
    // Mount points are made before the root becomes read-only.
    let namespace =
        MountNamespace::new(&root_fs, MountFlags::empty(), "none").doing(|| "mount the root file system".into())?;
    let builder = Builder { kernel, namespace: &namespace, volumes };
    let mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mounts {
        let what =
            || format!("mount {} on {}", mount.typ().as_deref().unwrap_or("bind"), mount.destination().display());
        let parsed = builder.options(mount)?;
        builder.mount(mount, parsed, &mut gofers).doing(what)?;
    }
    builder.fill_dev().doing(|| "fill /dev".into())?;
    if let Some(process) = spec.process() {
        // As runc does.
        let cwd = process.cwd();
        let made = builder.mount_point(cwd.as_os_str().as_bytes(), NodeType::Directory);
        made.doing(|| format!("process.cwd: {}", cwd.display()))?;
    }
    if let Some(linux) = spec.linux() {
        builder.devices(linux)?;
        builder.read_only_paths(linux.readonly_paths().as_deref().unwrap_or_default())?;
        builder.masked_paths(linux.masked_paths().as_deref().unwrap_or_default())?;
    }
    let propagation = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    if let Some(kind) = propagation.filter(|kind| !kind.is_empty()) {
        builder.propagate(&namespace.root(), kind).doing(|| format!("linux.rootfsPropagation: {kind}"))?;
    }
    if read_only {
        let root = namespace.root();
        namespace.remount(&root, MountFlags::RDONLY, true).doing(|| "make the root read-only".into())?;
    }
    Ok(namespace)
}

fn root_file_system(root: GoferConnection, overlay: bool) -> Result<Arc<dyn FileSystem>> {
    // Beneath an overlay nobody changes it; otherwise the host may, by `docker cp` and the like.
    let caching = if overlay || root.read_only { Caching::Forever } else { Caching::Lease };
    let lower = GoferFs::connect(root.socket, root.read_only, caching)?;
    if !overlay {
        return Ok(lower);
    }
    let upper = TmpFs::new(next_dev(), &TmpfsOptions::parse("mode=755", ram())?, ram());
    Ok(OverlayFs::new(lower, upper)?)
}

/// Most symbolic links on the way to a mount point: `path_resolution(7)`.
const MAX_LINKS: usize = 40;

/// The names of a path, but for `.`.
fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.map(<[u8]>::to_vec)
}

/// `MQUEUE_MAGIC`.
const MQUEUE_MAGIC: i64 = 0x1980_0202;

struct Builder<'a> {
    kernel: &'a Arc<Kernel>,
    namespace: &'a Arc<MountNamespace>,
    volumes: &'a Volumes,
}

impl Builder<'_> {
    /// A mount's options, which have been checked with the specification, but for what its volume allows.
    fn options(&self, mount: &MountSpec) -> Outcome<MountOptions> {
        let options = mount.options().iter().flatten().map(String::as_str);
        let kind = if is_bind(mount) { None } else { mount.typ().as_deref() };
        let parsed = options::parse(kind, options)?;
        self.volumes.check(mount, parsed.flags)?;
        Ok(parsed)
    }

    fn mount(&self, mount: &MountSpec, parsed: MountOptions, gofers: &mut Vec<GoferConnection>) -> Result<()> {
        let (flags, data) = (parsed.flags, parsed.data);
        let destination = mount.destination().as_os_str().as_bytes();
        let source = mount.source().as_ref().map_or("none".into(), |source| source.display().to_string());
        let (fs, flags): (Arc<dyn FileSystem>, _) = if is_bind(mount) {
            let index =
                gofers.iter().position(|gofer| gofer.destination == *mount.destination()).ok_or(Errno::ENOENT)?;
            let gofer = gofers.remove(index);
            let flags = if gofer.read_only { flags | MountFlags::RDONLY } else { flags };
            let caching = self.volumes.caching(mount.source().as_deref());
            match gofer.follows {
                true => (GoferFs::connect_following(gofer.socket, gofer.read_only)?, flags),
                false => (GoferFs::connect(gofer.socket, gofer.read_only, caching)?, flags),
            }
        } else if let Some(fs) = self.volumes.file_system(mount)? {
            (fs, flags)
        } else {
            (self.file_system(mount.typ().as_deref().unwrap_or(""), &data)?, flags)
        };
        let kind = fs.root().attr()?.kind;
        let at = self.mount_point(destination, kind)?;
        let mount = self.namespace.mount(&fs, &at, flags, &source)?;
        match parsed.propagation {
            Some(kind) => self.propagate(&Path::root_of(mount), &kind),
            None => Ok(()),
        }
    }

    fn file_system(&self, kind: &str, data: &str) -> Result<Arc<dyn FileSystem>> {
        Ok(match kind {
            "proc" => proc::new(next_dev(), self.kernel),
            "sysfs" => Arc::new(sysfs::new(next_dev(), crate::platform::placement::count() as u32, &self.kernel.net)),
            "devpts" => {
                // The instance that /dev/ptmx belongs to.
                self.kernel.ptys.set_options(DevPtsOptions::parse(data)?);
                self.kernel.ptys.clone()
            }
            "tmpfs" | "ramfs" | "devtmpfs" => TmpFs::new(next_dev(), &TmpfsOptions::parse(data, ram())?, ram()),
            // An empty directory: there are no message queues.
            "mqueue" => Arc::new(KernFs::new("mqueue", MQUEUE_MAGIC, next_dev(), Caching::Forever)),
            "cgroup" | "cgroup2" => cgroup::new(next_dev(), self.kernel),
            _ => return Err(Errno::ENODEV),
        })
    }

    /// The directory (or file) to mount on, made if it is not there.
    fn mount_point(&self, path: &[u8], kind: NodeType) -> Result<Path> {
        let root = self.namespace.root();
        let creds = Credentials::root();
        let walk = self.walk(&root, &creds);
        match walk.lookup(path, LookupFlags::FOLLOW) {
            Err(Errno::ENOENT) => {}
            found => return found,
        }
        // Name by name: where a symbolic link of the image leads nowhere, what it names is made, as by runc.
        let mut made = Vec::new();
        let mut names: VecDeque<Vec<u8>> = split(path).collect();
        let mut links = 0;
        while let Some(name) = names.pop_front() {
            if name == b".." {
                made.truncate(made.iter().rposition(|&byte| byte == b'/').unwrap_or(0));
                continue;
            }
            let above = made.len();
            made.push(b'/');
            made.extend_from_slice(&name);
            match walk.lookup(&made, LookupFlags::empty()) {
                Err(Errno::ENOENT) if names.is_empty() && kind != NodeType::Directory => {
                    walk.mknod(&made, NodeType::Regular, 0o644, 0).map(drop)?;
                }
                Err(Errno::ENOENT) => walk.mkdir(&made, 0o755).map(drop)?,
                found => {
                    let found = found?;
                    if found.attr()?.kind != NodeType::Symlink {
                        continue;
                    }
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::ELOOP);
                    }
                    let target = found.inode()?.read_link()?;
                    made.truncate(if target.starts_with(b"/") { 0 } else { above });
                    split(&target).rev().for_each(|name| names.push_front(name));
                }
            }
        }
        walk.lookup(if made.is_empty() { b"/" } else { &made }, LookupFlags::empty())
    }

    /// Gives a mount its propagation type: `private`, or `rprivate` with what is mounted beneath.
    fn propagate(&self, at: &Path, kind: &str) -> Result<()> {
        let (to, recursive) = Propagation::from_option(kind).ok_or(Errno::EINVAL)?;
        self.namespace.set_propagation(at, to, recursive)
    }

    /// The container's names as its root sees them.
    fn walk<'a>(&'a self, root: &'a Path, creds: &'a Credentials) -> Walk<'a> {
        Walk { root, start: root, creds, umask: 0, devices: &self.kernel.devices }
    }

    /// Device nodes and links, where /dev is in memory.
    fn fill_dev(&self) -> Result<()> {
        let root = self.namespace.root();
        let creds = Credentials::root();
        let walk = self.walk(&root, &creds);
        let dev_dir = match walk.lookup(b"/dev", LookupFlags::FOLLOW) {
            Err(Errno::ENOENT) => return Ok(()),
            found => found?,
        };
        // What the host has in the place of /dev is left as it is.
        if !matches!(dev_dir.mount.fs().type_name(), "tmpfs" | "overlay") {
            return Ok(());
        }
        dev::populate(&walk, b"/dev")
    }
}
