//! `runsc gofer`: from a freshly executed process to one that sees the container's own mounts and nothing else.
//!
//! Each tree is cloned out of the host's mounts with `open_tree(2)`, with the mounts beneath it, and made read-only there
//! if that is all the container may do. The clones are attached nowhere; when the root is gone they are all there is. But one
//! that follows what the host mounts must be mounted somewhere: on a directory of the empty root.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use super::boot::{LogTarget, hold, read_config, take};
use super::error::{Context, Error, Result};
use super::isolate::{self, Capability};
use super::report;
use crate::gofer::{Export, RootFile, serve};
use crate::seccomp;

/// Everything the gofer is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct GoferConfig {
    /// What to serve; the first is the root file system.
    pub trees: Vec<Tree>,
    /// Places in the root that the sentry mounts its own file systems on (`/proc`, `/dev`): what the host has mounted
    /// there is not served.
    pub covered: Vec<PathBuf>,
    /// Where [`report`] writes.
    pub report_fd: RawFd,
    /// Says when to begin; see [`hold`].
    pub hold_fd: RawFd,
    /// Where the `log` crate's records go, if anywhere.
    pub log: Option<LogTarget>,
    /// Whether the gofer ends with the command that made it.
    pub attached: bool,
}

/// A host directory or file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tree {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Whether the mounts beneath it belong to it.
    pub recursive: bool,
    /// Whether it may be changed.
    pub writable: bool,
    /// Whether what the host mounts there later belongs to it: `rslave`.
    pub follows: bool,
    /// Whether programs in it may be run even if its file system on the host forbids that.
    pub executable: bool,
    /// The connection to the sentry.
    pub socket: RawFd,
}

/// The process behind `runsc gofer`; returns its exit status.
pub fn main(config_fd: RawFd) -> i32 {
    isolate::save_memory();
    match prepare(config_fd) {
        Ok(exports) => {
            report::started();
            serve(exports);
            0
        }
        Err(error) => {
            report::failed(&error.to_string());
            128
        }
    }
}

fn prepare(config_fd: RawFd) -> Result<Vec<Export>> {
    let config: GoferConfig = read_config(config_fd)?;
    report::init(take(config.report_fd));
    if let Some(log) = config.log {
        log.init("gofer");
    }
    let _files = hold(config.hold_fd)?; // none are passed
    // The container's input and output are none of the gofer's business, nor is the end of what others read from them.
    isolate::silence(if config.attached { &[0, 1] } else { &[0, 1, 2] })?;
    isolate::raise_limits()?;
    let (root, binds) = config.trees.split_first().ok_or_else(|| Error::Usage("no root to serve".into()))?;
    // The bind mounts first: their sources may lie beneath what is taken away from the root. They are copies of the host's
    // mounts, and follow them, before all is made private.
    let clones = binds.iter().map(clone).collect::<Result<Vec<_>>>()?;
    isolate::private_mounts()?;
    let mut exports = Vec::with_capacity(config.trees.len());
    for (tree, root) in binds.iter().zip(clones) {
        exports.push(export(tree, root)?);
    }
    for place in &config.covered {
        uncover(&root.source, place);
    }
    exports.insert(0, export(root, clone(root)?)?);
    let following: Vec<BorrowedFd<'_>> =
        exports.iter().filter(|export| export.follows).map(|export| export.root.as_fd()).collect();
    isolate::empty_root(following.len())?;
    following.iter().enumerate().try_for_each(|(index, root)| attach(*root, index))?;
    // SAFETY: no memory is passed. The container's umask was applied by the sentry.
    unsafe { libc::umask(0) };
    let writable = config.trees.iter().any(|tree| tree.writable);
    let follows = config.trees.iter().any(|tree| tree.follows);
    isolate::keep_capabilities(match (writable, follows) {
        (false, _) => FOR_READING,
        // Mounts that come later may allow devices: there must be none of the container's making.
        (true, true) => FOR_WRITING.strip_suffix(&[Capability::Mknod]).unwrap_or(FOR_READING),
        (true, false) => FOR_WRITING,
    })?;
    if config.attached {
        isolate::die_with_parent()?;
    }
    seccomp::gofer::install()?;
    isolate::give_back_memory();
    Ok(exports)
}

/// The sentry has checked permissions; the gofer must be able to read what root inside the container may.
const FOR_READING: &[Capability] = &[Capability::DacOverride, Capability::DacReadSearch];

/// To make files in the names of the container's users.
const FOR_WRITING: &[Capability] = &[
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Mknod,
];

/// A copy of the host's mounts.
fn clone(tree: &Tree) -> Result<OwnedFd> {
    let doing = || format!("open {}", tree.source.display());
    let path = CString::new(tree.source.as_os_str().as_bytes()).map_err(io::Error::from).doing(doing)?;
    let recursive = if tree.recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | recursive;
    // SAFETY: the path is NUL-terminated; the result is a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(Error::last_os(doing()));
    }
    // SAFETY: a descriptor that was just made.
    let root = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    restrict(&root, tree).doing(doing)?;
    Ok(root)
}

fn export(tree: &Tree, root: OwnedFd) -> Result<Export> {
    let doing = || format!("open {}", tree.source.display());
    let root_file = open_root_file(&root, tree.writable).doing(doing)?;
    let follows = tree.follows && root_file.is_none();
    Ok(Export { socket: take(tree.socket), root, root_file, writable: tree.writable, follows })
}

/// Mounts a copy on a directory of the empty root: what is mounted nowhere is told of no mounts.
fn attach(root: BorrowedFd<'_>, index: usize) -> Result<()> {
    let path = CString::new(isolate::place(index)).map_err(io::Error::from).doing(|| "name a mount")?;
    let (fd, flags) = (root.as_raw_fd(), libc::MOVE_MOUNT_F_EMPTY_PATH);
    // SAFETY: both paths are NUL-terminated.
    let moved = unsafe { libc::syscall(libc::SYS_move_mount, fd, c"".as_ptr(), libc::AT_FDCWD, path.as_ptr(), flags) };
    if moved < 0 { Err(Error::last_os("follow the host's mounts")) } else { Ok(()) }
}

/// Opens a tree that is one regular file, as long as /proc is there to open it by descriptor: no directory of the tree
/// holds its name.
fn open_root_file(root: &OwnedFd, writable: bool) -> io::Result<Option<RootFile>> {
    // Asked of the descriptor: of the container's root the host's /proc has been taken away already.
    let mode = nix::sys::stat::fstat(root)?.st_mode;
    if mode & libc::S_IFMT != libc::S_IFREG {
        return Ok(None);
    }
    let link = format!("/proc/self/fd/{}", root.as_raw_fd());
    let read = File::open(&link)?.into();
    let write = if writable { Some(File::options().read(true).write(true).open(&link)?.into()) } else { None };
    Ok(Some(RootFile { read, write }))
}

/// Has the kernel itself refuse devices and set-id programs, and changes unless they are allowed.
fn restrict(root: &OwnedFd, tree: &Tree) -> io::Result<()> {
    let read_only = if tree.writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only,
        attr_clr: if tree.executable { libc::MOUNT_ATTR_NOEXEC } else { 0 },
        propagation: if tree.follows { libc::MS_SLAVE } else { libc::MS_PRIVATE },
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: mount_setattr(2) reads an empty C string and the structure, whose size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            root.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Unmounts what is mounted at `place` beneath `root`, in this process's own mounts, if anything is. A path through a
/// symbolic link is left alone: it may lead anywhere.
fn uncover(root: &Path, place: &Path) {
    let Ok(relative) = place.strip_prefix("/") else { return };
    if relative.as_os_str().is_empty() {
        return;
    }
    let mut path = root.to_owned();
    for part in relative {
        path.push(part);
        if !path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            return;
        }
    }
    match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: nothing is mounted there.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
        Err(error) => log::warn!("unmount {}: {error}", path.display()),
    }
}
