//! `mmap(2)` and `munmap(2)`.

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::area::{Area, AreaFlags, Backing, FileBacking, PROT_ALL};
use super::map::GUARD_GAP;
use super::user::PAGE;
use super::{Inner, MAX_MAP_COUNT, MMAP_MIN_ADDR, MemLimits, MemoryManager, page_down, page_up};
use crate::errno::{Errno, Result};
use crate::platform::{self, Room, UserThread};
use crate::vfs::file::OpenFile;

/// The arguments of `mmap(2)`, with what the caller knows of the file.
pub struct MmapArgs {
    /// Where, or a hint.
    pub addr: u64,
    /// How many bytes.
    pub len: u64,
    /// `PROT_*`.
    pub prot: i32,
    /// `MAP_*`.
    pub flags: i32,
    /// The file of a mapping without `MAP_ANONYMOUS`: `None` then is `EBADF`. Ignored with `MAP_ANONYMOUS`.
    pub file: Option<Arc<OpenFile>>,
    /// Whether the file's mount is `noexec`.
    pub noexec: bool,
    /// Where in the file.
    pub offset: u64,
    /// The `READ_IMPLIES_EXEC` bit of `personality(2)`.
    pub read_implies_exec: bool,
    /// The caller's limits.
    pub limits: MemLimits,
}

impl MmapArgs {
    /// Private anonymous memory anywhere.
    pub fn anonymous(len: u64, prot: i32, limits: MemLimits) -> MmapArgs {
        MmapArgs {
            addr: 0,
            len,
            prot,
            flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            file: None,
            noexec: false,
            offset: 0,
            read_implies_exec: false,
            limits,
        }
    }
}

/// The flags that `MAP_SHARED_VALIDATE` knows; `MAP_SYNC` is none of them here: no file is on persistent memory.
const VALIDATED: i32 = libc::MAP_TYPE
    | libc::MAP_FIXED
    | libc::MAP_ANONYMOUS
    | libc::MAP_DENYWRITE
    | libc::MAP_EXECUTABLE
    | libc::MAP_GROWSDOWN
    | libc::MAP_LOCKED
    | libc::MAP_NORESERVE
    | libc::MAP_POPULATE
    | libc::MAP_NONBLOCK
    | libc::MAP_STACK
    | libc::MAP_HUGETLB
    | libc::MAP_32BIT
    | libc::MAP_FIXED_NOREPLACE
    | HUGE_MASK;

const HUGE_MASK: i32 = libc::MAP_HUGE_MASK << libc::MAP_HUGE_SHIFT;

/// Where `MAP_32BIT` puts mappings.
const LOW: Range<u64> = 0x4000_0000..0x8000_0000;

/// The next number for an object of shared anonymous memory.
fn next_shared() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl MemoryManager {
    /// `mmap(2)`. Errors as there; `EOPNOTSUPP` for `MAP_SYNC`.
    pub fn mmap(&self, thread: &mut dyn UserThread, args: MmapArgs) -> Result<u64> {
        let anonymous = args.flags & libc::MAP_ANONYMOUS != 0;
        if !args.offset.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let file = match &args.file {
            _ if anonymous => None,
            Some(file) if !file.is_path_only() => Some(file.clone()),
            _ => return Err(Errno::EBADF),
        };
        if args.flags & libc::MAP_HUGETLB != 0 {
            return Err(huge_pages(&args, anonymous));
        }
        if args.len == 0 {
            return Err(Errno::EINVAL);
        }
        let len = page_up(args.len).ok_or(Errno::ENOMEM)?;
        let most = if file.is_some() { i64::MAX as u64 } else { u64::MAX };
        if args.offset.checked_add(len).is_none_or(|end| end > most) {
            return Err(Errno::EOVERFLOW);
        }
        let mut prot = args.prot & PROT_ALL;
        if args.read_implies_exec && prot & libc::PROT_READ != 0 && !(file.is_some() && args.noexec) {
            prot |= libc::PROT_EXEC;
        }
        let range = self.fixed_range(&args, len)?;
        if args.flags & libc::MAP_LOCKED != 0 && args.limits.memlock == 0 && !args.limits.ipc_lock {
            return Err(Errno::EPERM);
        }
        let mut area = match file {
            None => anonymous_area(&args, prot)?,
            Some(file) => file_area(&args, file, prot)?,
        };
        (area.start, area.end) = (0, len);
        self.map_area(thread, area, range, &args)
    }

    /// The range of a fixed mapping.
    fn fixed_range(&self, args: &MmapArgs, len: u64) -> Result<Option<Range<u64>>> {
        if len > self.range.end {
            return Err(Errno::ENOMEM);
        }
        if args.flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) == 0 {
            return Ok(None);
        }
        if args.addr > self.range.end - len {
            return Err(Errno::ENOMEM);
        }
        if !args.addr.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        // The platform's own page lies above Linux's limit, and is as forbidden.
        if args.addr < self.range.start.max(MMAP_MIN_ADDR) {
            return Err(Errno::EPERM);
        }
        Ok(Some(args.addr..args.addr + len))
    }

    /// Places and maps `area`, whose addresses are `0..len` so far.
    fn map_area(
        &self,
        thread: &mut dyn UserThread,
        mut area: Area,
        fixed: Option<Range<u64>>,
        args: &MmapArgs,
    ) -> Result<u64> {
        let len = area.end;
        let mut inner = self.lock();
        if inner.map.count() >= MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        let range = match fixed {
            Some(range) => {
                let lent = |area: &Area| area.flags.contains(AreaFlags::LENT);
                if args.flags & libc::MAP_FIXED_NOREPLACE != 0 && !inner.map.overlapping(&range).all(lent) {
                    return Err(Errno::EEXIST);
                }
                range
            }
            None => inner.place(len, args.addr, args.flags & libc::MAP_32BIT != 0, &self.range)?,
        };
        if inner.lock_future || args.flags & libc::MAP_LOCKED != 0 {
            if !inner.check_lock(len, &args.limits) {
                return Err(Errno::EAGAIN);
            }
            area.flags |= AreaFlags::LOCKED;
        }
        let replaced: u64 = inner.map.overlapping(&range).map(|old| old.part(&range).len()).sum();
        inner.check_expand(len - replaced.min(len), area.is_data(), &args.limits)?;
        (area.start, area.end) = (range.start, range.end);
        let populate = match args.flags & (libc::MAP_POPULATE | libc::MAP_NONBLOCK) {
            libc::MAP_POPULATE => libc::MAP_POPULATE,
            _ if area.flags.contains(AreaFlags::LOCKED) => libc::MAP_POPULATE,
            _ => 0,
        };
        inner.map_over(thread, area, populate)?;
        Ok(range.start)
    }

    /// Lends the platform [`Room::LEN`] bytes within 2 GiB of `near`, which the container neither sees nor misses: what it
    /// maps there replaces them. `ENOMEM` when nothing is free.
    pub fn lend(&self, thread: &mut dyn UserThread, near: &Range<u64>) -> Result<()> {
        /// A jump's reach, less what else must be within it.
        const REACH: u64 = (1 << 31) - (1 << 20);
        let mut inner = self.lock();
        let lowest = near.end.saturating_sub(REACH).max(self.range.start.max(MMAP_MIN_ADDR));
        let highest = near.start.saturating_add(REACH).min(self.range.end);
        // Below the code, as `mmap` goes; above it for a program at the bottom of memory, clear of its heap.
        let below = inner.map.place(Room::LEN, &(lowest..near.start));
        let at = below.or_else(|| inner.map.place(Room::LEN, &(near.end..highest))).ok_or(Errno::ENOMEM)?;
        thread.take_room(at)?;
        let range = at..at + Room::LEN;
        let backing = Backing::Special("");
        let area = Area::anonymous(range, 0, AreaFlags::LENT | AreaFlags::DONTEXPAND);
        inner.map.insert(Area { backing, max_prot: 0, ..area });
        Ok(())
    }

    /// `munmap(2)`. `EINVAL`; `ENOMEM` when the host cannot split a mapping.
    pub fn munmap(&self, thread: &mut dyn UserThread, addr: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let range = self.checked_range(addr, len).ok_or(Errno::EINVAL)?;
        self.lock().unmap(thread, &range)
    }
}

impl Inner {
    /// A place for `len` bytes: at the hint if that is free, else as high as possible below the mapping area's top, else
    /// anywhere.
    pub(super) fn place(&self, len: u64, hint: u64, low: bool, all: &Range<u64>) -> Result<Range<u64>> {
        let all = all.start.max(MMAP_MIN_ADDR)..all.end;
        if low {
            return self.map.place(len, &LOW).map(|at| at..at + len).ok_or(Errno::ENOMEM);
        }
        let hint = page_down(hint);
        if hint != 0 {
            let hint = hint.max(all.start);
            if let Some(end) = hint.checked_add(len).filter(|&end| end <= all.end)
                && self.clear_of_guards(&(hint..end))
            {
                return Ok(hint..end);
            }
        }
        let at = self
            .map
            .place(len, &(all.start..self.mmap_base))
            .or_else(|| self.map.place(len, &all))
            .ok_or(Errno::ENOMEM)?;
        Ok(at..at + len)
    }

    /// Whether `range` is free and no stack above it comes too near.
    fn clear_of_guards(&self, range: &Range<u64>) -> bool {
        self.map.find_from(range.start).is_none_or(|next| {
            let guard = if next.flags.contains(AreaFlags::GROWSDOWN) { GUARD_GAP } else { 0 };
            range.end <= next.start.saturating_sub(guard)
        })
    }

    /// Maps `area`, over whatever is there.
    pub(super) fn map_over(&mut self, thread: &mut dyn UserThread, area: Area, populate: i32) -> Result<()> {
        let range = area.range();
        let mut request = area.request().ok_or(Errno::EINVAL)?;
        request.flags |= populate;
        if let Err(error) = thread.map(&request).or_else(|error| copy_instead(thread, &area, error)) {
            self.give_up(thread, &range);
            return Err(error);
        }
        self.map.remove(&range);
        self.map.insert(area);
        self.note_peak();
        Ok(())
    }

    /// Unmaps what is in `range`.
    pub(super) fn unmap(&mut self, thread: &mut dyn UserThread, range: &Range<u64>) -> Result<()> {
        if self.map.is_free(range) {
            return Ok(());
        }
        thread.unmap(range.start, range.end - range.start)?;
        self.map.remove(range);
        Ok(())
    }
}

/// What asking for huge pages gives where none are reserved: a file that is not on hugetlbfs cannot have them; sizes that
/// the processor does not have are `EINVAL`.
fn huge_pages(args: &MmapArgs, anonymous: bool) -> Errno {
    let size = (args.flags >> libc::MAP_HUGE_SHIFT) & libc::MAP_HUGE_MASK;
    match (anonymous, size) {
        (true, 0 | 21 | 30) if args.len > 0 => Errno::ENOMEM,
        _ => Errno::EINVAL,
    }
}

fn area_flags(args: &MmapArgs) -> AreaFlags {
    let mut flags = AreaFlags::empty();
    flags.set(AreaFlags::GROWSDOWN, args.flags & libc::MAP_GROWSDOWN != 0);
    flags.set(AreaFlags::NORESERVE, args.flags & libc::MAP_NORESERVE != 0);
    flags
}

fn anonymous_area(args: &MmapArgs, prot: i32) -> Result<Area> {
    let area = Area::anonymous(0..0, prot, area_flags(args));
    match args.flags & libc::MAP_TYPE {
        libc::MAP_PRIVATE => Ok(area),
        libc::MAP_SHARED if args.flags & libc::MAP_GROWSDOWN != 0 => Err(Errno::EINVAL),
        libc::MAP_SHARED => Ok(Area { shared: true, backing: Backing::SharedAnonymous(next_shared()), ..area }),
        _ => Err(Errno::EINVAL),
    }
}

/// The checks of a file mapping, in Linux's order.
fn file_area(args: &MmapArgs, file: Arc<OpenFile>, prot: i32) -> Result<Area> {
    let shared = match args.flags & libc::MAP_TYPE {
        libc::MAP_SHARED => true,
        libc::MAP_SHARED_VALIDATE if args.flags & !VALIDATED != 0 => return Err(Errno::EOPNOTSUPP),
        libc::MAP_SHARED_VALIDATE => true,
        libc::MAP_PRIVATE => false,
        _ => return Err(Errno::EINVAL),
    };
    let mut max_prot = PROT_ALL;
    let store = shared && file.writable();
    if shared && !store {
        if prot & libc::PROT_WRITE != 0 {
            return Err(Errno::EACCES);
        }
        max_prot &= !libc::PROT_WRITE;
    }
    if !file.readable() {
        return Err(Errno::EACCES);
    }
    if args.noexec {
        if prot & libc::PROT_EXEC != 0 {
            return Err(Errno::EPERM);
        }
        max_prot &= !libc::PROT_EXEC;
    }
    let mapping = file.object().mapping(shared, store)?;
    if args.flags & libc::MAP_GROWSDOWN != 0 {
        return Err(Errno::EINVAL);
    }
    if shared && !mapping.writable {
        if prot & libc::PROT_WRITE != 0 {
            return Err(Errno::EACCES);
        }
        max_prot &= !libc::PROT_WRITE;
    }
    // Which pages they are matters for shared mappings only.
    let host_file = if shared { host_identity(mapping.fd.as_raw_fd())? } else { (0, 0) };
    Ok(Area {
        shared,
        max_prot,
        offset: args.offset,
        backing: Backing::File(Arc::new(FileBacking { file, mapping, host_file })),
        ..Area::anonymous(0..0, prot, area_flags(args))
    })
}

impl MemoryManager {
    /// A private mapping of a file, to be given addresses, offset and protection. For the loader.
    pub(crate) fn private_backing(&self, file: &Arc<OpenFile>) -> Result<Area> {
        let mapping = file.object().mapping(false, false)?;
        let backing = FileBacking { file: file.clone(), mapping, host_file: (0, 0) };
        Ok(Area { backing: Backing::File(Arc::new(backing)), ..Area::anonymous(0..0, 0, AreaFlags::empty()) })
    }
}

/// Device and inode number of a host file.
fn host_identity(fd: i32) -> Result<(u64, u64)> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is valid for writes; it is read only after the call has filled it.
    let stat = unsafe {
        if libc::fstat(fd, stat.as_mut_ptr()) != 0 {
            return Err(Errno::last());
        }
        stat.assume_init()
    };
    Ok((stat.st_dev, stat.st_ino))
}

/// How much is copied at a time when a file cannot be mapped.
const COPY: usize = 256 << 10;

/// When the host refuses to map a file in private (its mount is `noexec`, say), the pages are filled by reading it: what
/// the sandbox allows is the sentry's decision, not the host's mount's.
fn copy_instead(thread: &mut dyn UserThread, area: &Area, error: Errno) -> Result<()> {
    let refused = matches!(error, Errno::EPERM | Errno::EACCES | Errno::ENODEV);
    let Some(file) = area.file().filter(|_| refused && !area.shared) else { return Err(error) };
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    let request = area.request().ok_or(error)?;
    thread.map(&platform::MapRequest { prot: writable, backing: platform::Backing::Anonymous, ..request })?;
    let mut buf = vec![0u8; COPY.min(area.len() as usize)];
    let mut done = 0;
    while done < area.len() {
        let want = (area.len() - done).min(COPY as u64) as usize;
        let mut sink = crate::io::SliceSink::new(&mut buf[..want]);
        let n = file.file.object().read(area.offset + done, &mut sink)?;
        if n == 0 {
            break;
        }
        super::user::write_all(&**thread.space(), area.start + done, &buf[..n])?;
        done += n as u64;
    }
    if area.prot == writable { Ok(()) } else { thread.protect(area.start, area.len(), area.prot) }
}
