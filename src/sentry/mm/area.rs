//! One area of an address space: a range of pages with the same backing and attributes (`vm_area_struct`).

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use bitflags::bitflags;

use crate::platform;
use crate::vfs::file::{Mapping, OpenFile};

bitflags! {
    /// What is noted of an area beside its protection: `VmFlags` in `proc_pid_smaps(5)`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct AreaFlags: u32 {
        /// Grows downwards when the page below is touched.
        const GROWSDOWN = 1 << 0;
        /// No swap space is reserved.
        const NORESERVE = 1 << 1;
        /// `mlock(2)`.
        const LOCKED = 1 << 2;
        /// `MADV_DONTFORK`.
        const DONTFORK = 1 << 3;
        /// `MADV_WIPEONFORK`.
        const WIPEONFORK = 1 << 4;
        /// `MADV_DONTDUMP`.
        const DONTDUMP = 1 << 5;
        /// Cannot be resized by `mremap(2)`.
        const DONTEXPAND = 1 << 6;
        /// Lent to the platform: the container does not see it.
        const LENT = 1 << 7;
    }
}

/// A file that is mapped.
pub struct FileBacking {
    /// The description it was mapped through; kept for its name and for `msync(2)`.
    pub file: Arc<OpenFile>,
    /// The host's descriptor of the pages.
    pub mapping: Mapping,
    /// The host file's device and inode number, which say whether two shared mappings have the same pages.
    pub host_file: (u64, u64),
}

/// Where an area's pages come from. The offset is the area's.
#[derive(Clone)]
pub enum Backing {
    /// Private zero-filled memory.
    Anonymous,
    /// Memory shared with forked children; the number tells one object from another.
    SharedAnonymous(u64),
    /// A file.
    File(Arc<FileBacking>),
    /// The kernel's: `[vdso]`, `[vvar]`.
    Special(&'static str),
}

/// An area.
#[derive(Clone)]
pub struct Area {
    /// First byte, page-aligned.
    pub start: u64,
    /// Behind the last byte, page-aligned.
    pub end: u64,
    /// `PROT_READ | PROT_WRITE | PROT_EXEC` in force.
    pub prot: i32,
    /// What `mprotect(2)` may put in force.
    pub max_prot: i32,
    /// Whether stores are shared (`MAP_SHARED`).
    pub shared: bool,
    /// The rest.
    pub flags: AreaFlags,
    /// Where the pages come from.
    pub backing: Backing,
    /// Where the area starts in its backing, in bytes; 0 for private anonymous memory.
    pub offset: u64,
    /// `PR_SET_VMA_ANON_NAME`.
    pub name: Option<Arc<[u8]>>,
    /// `mbind(2)`: mode and nodes; `None` is the task's.
    pub policy: Option<(i32, u64)>,
}

/// All protections.
pub const PROT_ALL: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

impl Area {
    /// Private anonymous memory.
    pub fn anonymous(range: Range<u64>, prot: i32, flags: AreaFlags) -> Area {
        Area {
            start: range.start,
            end: range.end,
            prot,
            max_prot: PROT_ALL,
            shared: false,
            flags,
            backing: Backing::Anonymous,
            offset: 0,
            name: None,
            policy: None,
        }
    }

    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it is empty, which no area of a map is.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// The file that is mapped, if one is.
    pub fn file(&self) -> Option<&Arc<FileBacking>> {
        match &self.backing {
            Backing::File(file) => Some(file),
            _ => None,
        }
    }

    /// Whether it is the kernel's.
    pub fn is_special(&self) -> bool {
        matches!(self.backing, Backing::Special(_))
    }

    /// Whether it counts against `RLIMIT_DATA`: private, writable and not a stack.
    pub fn is_data(&self) -> bool {
        !self.shared && self.prot & libc::PROT_WRITE != 0 && !self.flags.contains(AreaFlags::GROWSDOWN)
    }

    /// The offset of `addr`, which lies in the area, in its backing.
    pub fn offset_of(&self, addr: u64) -> u64 {
        match self.backing {
            Backing::Anonymous => 0,
            _ => self.offset.wrapping_add(addr.wrapping_sub(self.start)),
        }
    }

    /// The part within `range`, which it overlaps.
    pub fn part(&self, range: &Range<u64>) -> Area {
        let start = self.start.max(range.start);
        Area { start, end: self.end.min(range.end), offset: self.offset_of(start), ..self.clone() }
    }

    /// Whether `next`, which starts where this one ends, could be its continuation.
    pub fn continues_in(&self, next: &Area) -> bool {
        self.end == next.start
            && self.prot == next.prot
            && self.max_prot == next.max_prot
            && self.shared == next.shared
            && self.flags == next.flags
            && self.name == next.name
            && self.policy == next.policy
            && self.offset_of(self.end) == next.offset
            && match (&self.backing, &next.backing) {
                (Backing::Anonymous, Backing::Anonymous) => true,
                (Backing::SharedAnonymous(one), Backing::SharedAnonymous(other)) => one == other,
                (Backing::File(one), Backing::File(other)) => {
                    Arc::ptr_eq(&one.file, &other.file) && one.host_file == other.host_file
                }
                _ => false,
            }
    }

    /// What the platform is to map for it; `None` for the kernel's own areas.
    pub fn request(&self) -> Option<platform::MapRequest> {
        let backing = match &self.backing {
            Backing::Anonymous | Backing::SharedAnonymous(_) => platform::Backing::Anonymous,
            Backing::File(file) => platform::Backing::File { fd: file.mapping.fd.as_raw_fd(), offset: self.offset },
            Backing::Special(_) => return None,
        };
        let flags = if self.flags.contains(AreaFlags::NORESERVE) { libc::MAP_NORESERVE } else { 0 };
        Some(platform::MapRequest {
            addr: self.start,
            len: self.len(),
            prot: self.prot,
            shared: self.shared,
            flags,
            backing,
        })
    }
}
