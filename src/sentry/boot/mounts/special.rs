//! What `linux` of the specification says of files: devices, masked and read-only paths.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType};

use super::{Builder, next_dev, ram};
use crate::errno::{Errno, Result};
use crate::sentry::boot::{Doing, Outcome};
use crate::sentry::creds::Credentials;
use crate::vfs::inode::{FileSystem, NodeType};
use crate::vfs::mount::{Mount, MountFlags};
use crate::vfs::tmpfs::{TmpFs, TmpfsOptions};
use crate::vfs::walk::{LookupFlags, Walk};
use crate::vfs::{DeviceTable, Path, ops};

impl Builder<'_> {
    /// Makes the nodes of `linux.devices`. One that the sandbox has no driver for can be made as well as on Linux; opening
    /// it fails with `ENXIO`.
    pub(super) fn devices(&self, linux: &Linux) -> Outcome<()> {
        for device in linux.devices().iter().flatten() {
            let path = device.path();
            self.device(device).doing(|| format!("linux.devices: make {}", path.display()))?;
            let (kind, rdev) = node(device);
            let served = matches!(kind, NodeType::Fifo) || self.kernel.devices.is_served(kind, rdev);
            if !served {
                log::warn!(
                    "linux.devices: {} is a device that a sandbox has not got: opening it fails",
                    path.display()
                );
            }
        }
        Ok(())
    }

    fn device(&self, device: &LinuxDevice) -> Result<()> {
        let path = device.path().as_os_str().as_bytes();
        let parent = device.path().parent().map_or(&b"/"[..], |parent| parent.as_os_str().as_bytes());
        self.mount_point(parent, NodeType::Directory)?;
        let root = self.namespace.root();
        let creds = Credentials::root();
        let walk = self.walk(&root, &creds);
        let (kind, rdev) = node(device);
        let mode = device.file_mode().unwrap_or(0o666) & 0o7777;
        let made = match walk.mknod(path, kind, mode, rdev) {
            Err(Errno::EEXIST) => {
                let there = walk.lookup(path, LookupFlags::empty())?;
                let attr = there.attr()?;
                if (attr.kind, attr.rdev) == (kind, rdev) {
                    there
                } else {
                    walk.unlink(path)?;
                    walk.mknod(path, kind, mode, rdev)?
                }
            }
            made => made?,
        };
        ops::chown(&made, &creds, Some(device.uid().unwrap_or(0)), Some(device.gid().unwrap_or(0)))?;
        ops::chmod(&made, &creds, mode)
    }

    /// `linux.readonlyPaths`: each is mounted on itself, read-only. One that is not there needs nothing.
    pub(super) fn read_only_paths(&self, paths: &[String]) -> Outcome<()> {
        for path in paths {
            self.read_only_path(path.as_bytes()).doing(|| format!("linux.readonlyPaths: {path}"))?;
        }
        Ok(())
    }

    fn read_only_path(&self, path: &[u8]) -> Result<()> {
        let Some(there) = self.find(path)? else { return Ok(()) };
        let mount = self.namespace.bind(&there, &there, true)?;
        let flags = mount.flags() | MountFlags::RDONLY;
        self.namespace.remount(&Path::root_of(mount), flags, true)
    }

    /// `linux.maskedPaths`: an empty directory or `/dev/null` in the place of each. One that is not there needs nothing.
    pub(super) fn masked_paths(&self, paths: &[String]) -> Outcome<()> {
        if paths.is_empty() {
            return Ok(());
        }
        let null = null_node(&self.kernel.devices).doing(|| "linux.maskedPaths: make a null device".into())?;
        for path in paths {
            self.masked_path(path.as_bytes(), &null).doing(|| format!("linux.maskedPaths: {path}"))?;
        }
        Ok(())
    }

    fn masked_path(&self, path: &[u8], null: &Path) -> Result<()> {
        let Some(there) = self.find(path)? else { return Ok(()) };
        if there.attr()?.kind == NodeType::Directory {
            let empty: Arc<dyn FileSystem> = TmpFs::new(next_dev(), &TmpfsOptions::parse("mode=755", ram())?, ram());
            return self.namespace.mount(&empty, &there, MountFlags::RDONLY, "tmpfs").map(drop);
        }
        self.namespace.bind_own(null, &there).map(drop)
    }

    fn find(&self, path: &[u8]) -> Result<Option<Path>> {
        let root = self.namespace.root();
        let creds = Credentials::root();
        match self.walk(&root, &creds).lookup(path, LookupFlags::FOLLOW) {
            Ok(there) => Ok(Some(there)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn node(device: &LinuxDevice) -> (NodeType, u64) {
    let rdev = libc::makedev(device.major() as u32, device.minor() as u32);
    match device.typ() {
        LinuxDeviceType::B => (NodeType::BlockDevice, rdev),
        LinuxDeviceType::P => (NodeType::Fifo, 0),
        _ => (NodeType::CharDevice, rdev),
    }
}

/// A null device in a file system that is mounted nowhere.
fn null_node(devices: &DeviceTable) -> Result<Path> {
    let fs: Arc<dyn FileSystem> = TmpFs::new(next_dev(), &TmpfsOptions::parse("mode=755", ram())?, ram());
    let root = Path::root_of(Mount::detached(&fs, MountFlags::empty(), "tmpfs")?);
    let creds = Credentials::root();
    let walk = Walk { root: &root, start: &root, creds: &creds, umask: 0, devices };
    walk.mknod(b"null", NodeType::CharDevice, 0o666, libc::makedev(1, 3))
}
