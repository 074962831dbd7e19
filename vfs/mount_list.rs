//! The mounts of a namespace as `/proc/PID/mounts` and `/proc/PID/mountinfo` show them: `proc_pid_mountinfo(5)`.

use std::sync::Arc;

use crate::vfs::mount::{Mount, MountFlags, MountNamespace};
use crate::vfs::path::{Path, path_string};

/// One mount, as a process sees it.
pub struct MountInfo {
    /// The mount.
    pub mount: Arc<Mount>,
    /// The number of the mount it sits on; its own for the root.
    pub parent: u64,
    /// Device number of the file system.
    pub dev: u64,
    /// What of the file system is mounted, from its root.
    pub root: Vec<u8>,
    /// Where, from the process's root.
    pub mountpoint: Vec<u8>,
    /// The fields of propagation types, each with a space before it.
    pub propagation: String,
}

impl MountNamespace {
    /// The mounts that lie beneath `root`, a process's root, in the order in which they were made.
    pub fn list(&self, root: &Path) -> Vec<MountInfo> {
        let mut infos = Vec::new();
        for mount in self.mounts() {
            let top = Path::root_of(mount.clone());
            let mountpoint = path_string(root, &top);
            if mountpoint.starts_with(b"(unreachable)") {
                continue;
            }
            let parent = mount.mountpoint().map_or(mount.id(), |at| at.mount.id());
            let dev = top.attr().map_or(0, |attr| attr.dev);
            let propagation = self.propagation_fields(&mount, root);
            infos.push(MountInfo { parent, dev, root: root_in_fs(&mount), mountpoint, propagation, mount });
        }
        infos
    }

    fn propagation_fields(&self, mount: &Mount, root: &Path) -> String {
        let mut text = String::new();
        let (group, master) = mount.peer_groups();
        if let Some(group) = group {
            text.push_str(&format!(" shared:{group}"));
        }
        if let Some(master) = master {
            text.push_str(&format!(" master:{master}"));
            let is_visible = |member: &Arc<Mount>| {
                member.namespace_id() == self.id()
                    && !path_string(root, &Path::root_of(member.clone())).starts_with(b"(unreachable)")
            };
            if let Some(from) = mount.dominating_group(is_visible).filter(|&from| from != master) {
                text.push_str(&format!(" propagate_from:{from}"));
            }
        }
        if mount.is_unbindable() {
            text.push_str(" unbindable");
        }
        text
    }
}

/// The path of a mount's root within its file system.
fn root_in_fs(mount: &Mount) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = mount.root().clone();
    while let (Some(parent), name) = at.place() {
        names.push(name);
        at = parent;
    }
    let mut text: Vec<u8> = names.iter().rev().flat_map(|name| [&b"/"[..], name].concat()).collect();
    if text.is_empty() {
        text.push(b'/');
    }
    text
}

impl MountInfo {
    /// A line of `/proc/PID/mounts`, with its end.
    pub fn mounts_line(&self) -> Vec<u8> {
        let mut line = self.source();
        line.push(b' ');
        escape(&self.mountpoint, &mut line);
        let mode = if self.mount.is_read_only() { "ro" } else { "rw" };
        let fs = self.mount.fs();
        let rest = format!(" {} {mode}{}{} 0 0\n", fs.type_name(), options(self.mount.flags()), fs.options());
        line.extend_from_slice(rest.as_bytes());
        line
    }

    /// A line of `/proc/PID/mountinfo`, with its end.
    pub fn mountinfo_line(&self) -> Vec<u8> {
        let numbers = (self.mount.id(), self.parent, libc::major(self.dev), libc::minor(self.dev));
        let mut line = format!("{} {} {}:{} ", numbers.0, numbers.1, numbers.2, numbers.3).into_bytes();
        escape(&self.root, &mut line);
        line.push(b' ');
        escape(&self.mountpoint, &mut line);
        let mode = |read_only: bool| if read_only { "ro" } else { "rw" };
        let flags = self.mount.flags();
        let fs = self.mount.fs();
        let own = mode(flags.contains(MountFlags::RDONLY));
        line.extend_from_slice(
            format!(" {own}{}{} - {} ", options(flags), self.propagation, fs.type_name()).as_bytes(),
        );
        line.extend_from_slice(&self.source());
        let whole = mode(self.mount.superblock().is_read_only());
        line.extend_from_slice(format!(" {whole}{}\n", fs.options()).as_bytes());
        line
    }

    fn source(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let source = if self.mount.source().is_empty() { "none" } else { self.mount.source() };
        escape(source.as_bytes(), &mut text);
        text
    }
}

/// The flags of a mount, each with a comma before it. `relatime` is what Linux gives when nothing else was asked for.
fn options(flags: MountFlags) -> String {
    let names = [
        (MountFlags::SYNCHRONOUS, ",sync"),
        (MountFlags::DIRSYNC, ",dirsync"),
        (MountFlags::NOSUID, ",nosuid"),
        (MountFlags::NODEV, ",nodev"),
        (MountFlags::NOEXEC, ",noexec"),
        (MountFlags::NOATIME, ",noatime"),
        (MountFlags::NODIRATIME, ",nodiratime"),
        (MountFlags::NOSYMFOLLOW, ",nosymfollow"),
    ];
    let mut text: String = names.iter().filter(|(flag, _)| flags.contains(*flag)).map(|&(_, name)| name).collect();
    if !flags.intersects(MountFlags::NOATIME | MountFlags::STRICTATIME) {
        text.push_str(",relatime");
    }
    text
}

/// Octal escapes for what separates fields and lines.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => out.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
            _ => out.push(byte),
        }
    }
}
