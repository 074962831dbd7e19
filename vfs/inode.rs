//! What a file system must be able to do.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use bitflags::bitflags;

use crate::errno::{Errno, Result};
use crate::vfs::file::File;
use crate::vfs::lease::Leases;

/// File types, with the values of `d_type` in `getdents64(2)` and, shifted left by 12, of `st_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are inode(7)'s")]
pub enum NodeType {
    /// An anonymous inode, of which `stat(2)` tells no type; never in a file system.
    Anonymous = 0,
    Fifo = 1,
    CharDevice = 2,
    Directory = 4,
    BlockDevice = 6,
    Regular = 8,
    Symlink = 10,
    Socket = 12,
}

impl NodeType {
    /// The `S_IFMT` bits.
    pub fn mode_bits(self) -> u32 {
        (self as u32) << 12
    }

    /// From the `S_IFMT` bits of a mode; `None` when they name no type.
    pub fn from_mode(mode: u32) -> Option<NodeType> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFIFO => NodeType::Fifo,
            libc::S_IFCHR => NodeType::CharDevice,
            libc::S_IFDIR => NodeType::Directory,
            libc::S_IFBLK => NodeType::BlockDevice,
            libc::S_IFREG => NodeType::Regular,
            libc::S_IFLNK => NodeType::Symlink,
            libc::S_IFSOCK => NodeType::Socket,
            _ => return None,
        })
    }
}

/// A time stamp: since the epoch, seconds may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpec {
    /// Seconds since 1970-01-01.
    pub sec: i64,
    /// Nanoseconds, below 10^9.
    pub nsec: u32,
}

impl TimeSpec {
    /// The wall clock's time now.
    pub fn now() -> TimeSpec {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        TimeSpec { sec: now.as_secs() as i64, nsec: now.subsec_nanos() }
    }
}

/// What `stat(2)` tells of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The file system's device number (`makedev`).
    pub dev: u64,
    /// Inode number, unique in the file system.
    pub ino: u64,
    /// Type.
    pub kind: NodeType,
    /// Permission bits, set-id and sticky bits: the low 12 bits of `st_mode`.
    pub perm: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, of device nodes.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Preferred block size.
    pub blksize: u32,
    /// 512-byte blocks in use.
    pub blocks: u64,
    /// Last access.
    pub atime: TimeSpec,
    /// Last change of the content.
    pub mtime: TimeSpec,
    /// Last change of the inode.
    pub ctime: TimeSpec,
    /// Creation, where known.
    pub btime: Option<TimeSpec>,
}

impl Attr {
    /// `st_mode`.
    pub fn mode(&self) -> u32 {
        self.kind.mode_bits() | self.perm
    }

    /// A new node's attributes: now, one link (two for a directory), empty.
    pub fn new(dev: u64, ino: u64, kind: NodeType, perm: u32) -> Attr {
        let now = TimeSpec::now();
        let nlink = if kind == NodeType::Directory { 2 } else { 1 };
        Attr {
            dev,
            ino,
            kind,
            perm: perm & 0o7777,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blksize: 4096,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: Some(now),
        }
    }
}

/// Which attributes to change; `ctime` changes with any of them. The caller has checked the right to do so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission, set-id and sticky bits.
    pub perm: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: `truncate(2)`.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<TimeSpec>,
    /// Last change of the content.
    pub mtime: Option<TimeSpec>,
}

/// A node to make: `open(O_CREAT)`, `mkdir`, `mknod`, `symlink`.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    /// Its type.
    pub kind: NodeType,
    /// Its permission bits, the umask already applied.
    pub perm: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group (a set-group-ID directory's rule already applied).
    pub gid: u32,
    /// For device nodes.
    pub rdev: u64,
    /// For symbolic links; empty otherwise.
    pub target: &'a [u8],
}

bitflags! {
    /// `renameat2(2)`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        /// Fail with `EEXIST` when the new name exists.
        const NOREPLACE = 1;
        /// Swap the two.
        const EXCHANGE = 2;
        /// Leave a whiteout at the old name (overlay upper layers).
        const WHITEOUT = 4;
    }
}

/// What `statfs(2)` tells.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatFs {
    /// The magic number: `statfs(2)`.
    pub magic: i64,
    /// Block size.
    pub bsize: i64,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub bfree: u64,
    /// Blocks free to ordinary users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Inodes free.
    pub ffree: u64,
    /// Longest name.
    pub namelen: i64,
}

/// How long what the name cache knows of a directory's names holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Nobody changes it but this sentry: names and their absence may be kept for ever (tmpfs, overlay, an immutable
    /// lower layer).
    Forever,
    /// It may change behind the sentry's back (a shared bind mount): ask [`Inode::revalidate`] before using a cached name.
    Revalidate,
    /// It may change behind the sentry's back, but rarely does (a container's writable root): names, their absence and
    /// attributes are believed as long as [`FileSystem::leases`] says, then asked about as with [`Caching::Revalidate`].
    Lease,
    /// Names come and go by themselves (`/proc`): never cache.
    Never,
}

/// A mounted file system.
pub trait FileSystem: Send + Sync {
    /// The type that `/proc/mounts` shows.
    fn type_name(&self) -> &'static str;
    /// Its root directory.
    fn root(&self) -> Arc<dyn Inode>;
    /// `statfs(2)`.
    fn statfs(&self) -> Result<StatFs>;
    /// How names of it may be cached.
    fn caching(&self) -> Caching {
        Caching::Forever
    }
    /// Whether names that nobody uses are let go of at once, so that what is kept of them elsewhere is too: the host may want to
    /// unmount what they are on.
    fn forgets(&self) -> bool {
        false
    }
    /// How long what is known of it is believed, with [`Caching::Lease`].
    fn leases(&self) -> &Arc<Leases> {
        Leases::sandbox()
    }
    /// Its own options in `/proc/mounts`, with a leading comma, such as `,size=64k`.
    fn options(&self) -> String {
        String::new()
    }
    /// `mount(2)` with `MS_REMOUNT`: changes its own options to what `data` says. `EINVAL`.
    fn remount(&self, data: &str) -> Result<()> {
        let _ = data;
        Ok(())
    }
    /// `syncfs(2)`.
    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

/// A file, directory or other node of a file system. Permissions are the caller's business (the path walk's); what is
/// here checks only what the file system itself must (`ENOTEMPTY`, `EEXIST`, `EROFS`).
///
/// The defaults are what Linux answers for a node of another type.
pub trait Inode: Send + Sync + Any {
    /// Attributes.
    fn attr(&self) -> Result<Attr>;

    /// Changes attributes. `EPERM` where the file system has none to change.
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        let _ = set;
        Err(Errno::EPERM)
    }

    /// Finds a name (never `.` or `..`). `ENOENT`; `ENOTDIR` when this is no directory.
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        let _ = name;
        Err(Errno::ENOTDIR)
    }

    /// Tells that these names, each within the one before, the first in this directory, are about to be looked up, or to be
    /// asked about where they are `known`: a file system that asks another process can do it in one go. Nothing needs to
    /// happen.
    fn prefetch(&self, components: &[&[u8]], known: bool) {
        let _ = (components, known);
    }

    /// Whether `child`, found earlier under `name`, is still what that name means. Asked only with
    /// [`Caching::Revalidate`] and [`Caching::Lease`]; attributes of `child` are refreshed on the way.
    fn revalidate(&self, name: &[u8], child: &Arc<dyn Inode>) -> bool {
        let _ = (name, child);
        true
    }

    /// Makes a node. `EEXIST` when the name is there. What has no names to give refuses regular files with `EACCES` and
    /// others with `EPERM`.
    fn create(&self, name: &[u8], node: &NewNode<'_>) -> Result<Arc<dyn Inode>> {
        let _ = name;
        Err(if node.kind == NodeType::Regular { Errno::EACCES } else { Errno::EPERM })
    }

    /// Makes another name for `target`, a node of the same file system.
    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let _ = (name, target);
        Err(Errno::EPERM)
    }

    /// Removes the name of something that is not a directory (`EISDIR`).
    fn unlink(&self, name: &[u8]) -> Result<()> {
        let _ = name;
        Err(Errno::EPERM)
    }

    /// Removes an empty directory (`ENOTDIR`, `ENOTEMPTY`).
    fn rmdir(&self, name: &[u8]) -> Result<()> {
        let _ = name;
        Err(Errno::EPERM)
    }

    /// Tells a node that the caller has removed or replaced one of its names: what is known of its links is out of date.
    fn unlinked(&self) {}

    /// Renames `old` in this directory to `new` in `new_dir`, of the same file system. The caller has excluded that a
    /// directory is moved beneath itself, and holds the file system's rename order.
    fn rename(&self, old: &[u8], new_dir: &Arc<dyn Inode>, new: &[u8], flags: RenameFlags) -> Result<()> {
        let _ = (old, new_dir, new, flags);
        Err(Errno::EPERM)
    }

    /// A file without a name in this directory: `O_TMPFILE`.
    fn create_unnamed(&self, node: &NewNode<'_>) -> Result<Arc<dyn Inode>> {
        let _ = node;
        Err(Errno::EOPNOTSUPP)
    }

    /// A symbolic link's text. `EINVAL` for others.
    fn read_link(&self) -> Result<Vec<u8>> {
        Err(Errno::EINVAL)
    }

    /// A link that leads somewhere without a text to walk (`/proc/self/exe`, `/proc/self/fd/3`); `None` for others.
    /// The walker is handed the destination itself.
    fn magic_link(&self) -> Option<Result<crate::vfs::Path>> {
        None
    }

    /// Opens it. `flags` are those of `open(2)`; creation and truncation were done by the caller. FIFOs, sockets and
    /// device nodes are opened by the caller through their own tables, unless this returns something else than `ENXIO`.
    fn open(self: Arc<Self>, flags: i32) -> Result<Arc<dyn File>>;

    /// Names of the extended attributes.
    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        Err(Errno::EOPNOTSUPP)
    }

    /// One extended attribute. `ENODATA`.
    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        let _ = name;
        Err(Errno::EOPNOTSUPP)
    }

    /// Whether it has `security.capability`, for writes, which take it off.
    fn has_capability(&self) -> bool {
        self.get_xattr(b"security.capability").is_ok()
    }

    /// Sets an extended attribute: `flags` are `XATTR_CREATE`, `XATTR_REPLACE`.
    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let _ = (name, value, flags);
        Err(Errno::EOPNOTSUPP)
    }

    /// Removes an extended attribute.
    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        let _ = name;
        Err(Errno::EOPNOTSUPP)
    }

    /// An object that belongs to the inode and that the file system does not know: the pipe of a FIFO, the socket bound
    /// here, record locks. Made on first use.
    fn attachments(&self) -> Option<&Attachments> {
        None
    }

    /// The inode's own type.
    fn as_any(&self) -> &dyn Any;
}

/// Objects that other parts of the sentry hang on an inode, one a type.
#[derive(Default)]
pub struct Attachments(parking_lot::Mutex<Vec<Arc<dyn Any + Send + Sync>>>);

impl Attachments {
    /// The attached `T`, made by `make` when there is none.
    pub fn get_or_insert<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut all = self.0.lock();
        if let Some(found) = all.iter().find_map(|object| object.clone().downcast::<T>().ok()) {
            return found;
        }
        let made = Arc::new(make());
        all.push(made.clone());
        made
    }

    /// The attached `T`, if any.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.0.lock().iter().find_map(|object| object.clone().downcast::<T>().ok())
    }

    /// Attaches `object`, replacing an earlier one of its type.
    pub fn set<T: Any + Send + Sync>(&self, object: Arc<T>) {
        let mut all = self.0.lock();
        all.retain(|object| !object.is::<T>());
        all.push(object);
    }
}
