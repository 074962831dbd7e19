//! Container memory: the sentry's map of areas, and what the memory system calls do to it.
//!
//! The pages are the host kernel's. A [`MemoryManager`] decides what is mapped where, by Linux's rules, and has the stub of
//! the calling task carry it out:
//!
//! ```text
//! mmap(2) ─▶ MemoryManager::mmap ── rules, placement ──▶ UserThread::map (one host call in the stub)
//!                    │                                          │
//!                    └──────── AreaMap changed ◀──── succeeded ─┘
//! ```
//!
//! The map is changed only after the host has done its part, so that a host failure (no memory, or the host's own limit of
//! 65530 mappings) leaves the two equal; where a host call may fail half-way, what it may have done is undone or the range
//! is removed from both.
//!
//! # Locks
//!
//! One lock a [`MemoryManager`]. It is held while the stub makes a mapping call, which does not wait for anything but the
//! host's memory management; it is never held while container code runs or while a file is written back. It comes after
//! every lock of a task or a thread group, and before those of files ([`crate::vfs::file::File::mapping`] is called without
//! it). Faults are the host's business and take no lock, but for stacks that grow ([`MemoryManager::handle_fault`]).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::errno::{Errno, Result};
use crate::platform::{AddressSpace, UserThread};
use crate::vfs::file::OpenFile;

pub mod advise;
pub mod area;
pub mod brk;
pub mod fault;
mod gaps;
pub mod lock;
pub mod map;
pub mod mmap;
pub mod policy;
pub mod prctl;
pub mod protect;
pub mod remap;
pub mod report;
pub mod user;

#[cfg(test)]
pub(crate) mod tests;

use area::{Area, AreaFlags, Backing};
use map::{AreaMap, Totals};
use user::PAGE;

/// The lowest address that may be mapped without `CAP_SYS_RAWIO`: `/proc/sys/vm/mmap_min_addr`.
pub const MMAP_MIN_ADDR: u64 = 0x1_0000;

/// How many areas an address space may have: `/proc/sys/vm/max_map_count`. The host's own limit is the same, and its own
/// pages take a few.
pub const MAX_MAP_COUNT: usize = 65530;

/// `RLIM_INFINITY`.
pub const UNLIMITED: u64 = u64::MAX;

/// The caller's limits (soft, in bytes) that concern memory: `getrlimit(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemLimits {
    /// `RLIMIT_AS`.
    pub address_space: u64,
    /// `RLIMIT_DATA`.
    pub data: u64,
    /// `RLIMIT_STACK`.
    pub stack: u64,
    /// `RLIMIT_MEMLOCK`.
    pub memlock: u64,
    /// Whether the caller has `CAP_IPC_LOCK`, which lifts the last one.
    pub ipc_lock: bool,
}

impl Default for MemLimits {
    /// What Linux gives a first process.
    fn default() -> MemLimits {
        MemLimits { address_space: UNLIMITED, data: UNLIMITED, stack: 8 << 20, memlock: 8 << 20, ipc_lock: false }
    }
}

/// Where the parts of a program are: `PR_SET_MM` and `/proc/PID/stat`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are prctl(2)'s")]
pub struct Layout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// What one lock guards.
#[derive(Clone)]
struct Inner {
    map: AreaMap,
    layout: Layout,
    /// Mappings without a hint go below this.
    mmap_base: u64,
    /// The auxiliary vector, as pairs of words with the terminating pair.
    auxv: Vec<u64>,
    /// `/proc/PID/exe`.
    exe: Option<Arc<OpenFile>>,
    /// `mlockall(MCL_FUTURE)`.
    lock_future: bool,
    /// The most that `VmSize` was.
    peak: u64,
    /// The most that `VmRSS` was.
    peak_resident: u64,
    /// `PR_SET_DUMPABLE`'s state: 0, 1 or 2.
    dumpable: u8,
}

/// The memory of a process; tasks made with `CLONE_VM` share it.
pub struct MemoryManager {
    space: Arc<dyn AddressSpace>,
    id: u64,
    /// What the container may map.
    range: Range<u64>,
    inner: Mutex<Inner>,
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl MemoryManager {
    /// Of a fresh space, which holds the vDSO and nothing else.
    pub fn new(space: Arc<dyn AddressSpace>) -> Arc<MemoryManager> {
        let range = space.range();
        let mut map = AreaMap::new(range.clone());
        let (pages, image) = space.vdso();
        enter_vdso(&mut map, pages, image);
        let inner = Inner {
            map,
            layout: Layout::default(),
            mmap_base: range.end,
            auxv: Vec::new(),
            exe: None,
            lock_future: false,
            peak: 0,
            peak_resident: 0,
            dumpable: 1,
        };
        Arc::new(MemoryManager { space, id: next_id(), range, inner: Mutex::new(inner) })
    }

    /// A copy for a forked child, whose stub has a copy of the pages. The child calls
    /// [`MemoryManager::after_fork_in_child`] before it runs.
    ///
    /// For a space that no other thread shares: otherwise [`MemoryManager::fork_with`] keeps map and pages together.
    pub fn fork(&self, child_space: Arc<dyn AddressSpace>) -> Arc<MemoryManager> {
        MemoryManager::from_image(self.image(), child_space)
    }

    /// Copies the map and has `fork` copy the pages, with no mapping call of another thread between the two.
    pub fn fork_with<T>(&self, fork: impl FnOnce() -> Result<T>) -> Result<(ForkImage, T)> {
        let inner = self.lock();
        let forked = fork()?;
        Ok((ForkImage(Box::new(inner.clone())), forked))
    }

    /// A copy of the map.
    fn image(&self) -> ForkImage {
        ForkImage(Box::new(self.lock().clone()))
    }

    /// The child's memory, once its space is known.
    pub fn from_image(image: ForkImage, space: Arc<dyn AddressSpace>) -> Arc<MemoryManager> {
        let mut inner = *image.0;
        // Locks are not inherited: mlock(2).
        inner.lock_future = false;
        let locked = inner.map.totals().locked > 0;
        if locked {
            let all = space.range();
            inner.map.update(&all, |area| area.flags.remove(AreaFlags::LOCKED));
        }
        let range = space.range();
        Arc::new(MemoryManager { space, id: next_id(), range, inner: Mutex::new(inner) })
    }

    /// Carries out `MADV_DONTFORK` and `MADV_WIPEONFORK` in the child: its own thread calls this first. Costs nothing when
    /// no area asks for it.
    pub fn after_fork_in_child(&self, thread: &mut dyn UserThread) -> Result<()> {
        let mut inner = self.lock();
        if !inner.map.has_fork_special() {
            return Ok(());
        }
        let special: Vec<Area> = inner
            .map
            .iter()
            .filter(|area| area.flags.intersects(AreaFlags::DONTFORK | AreaFlags::WIPEONFORK))
            .cloned()
            .collect();
        for area in special {
            if area.flags.contains(AreaFlags::DONTFORK) {
                thread.unmap(area.start, area.len())?;
                inner.map.remove(&area.range());
            } else {
                thread.advise(area.start, area.len(), libc::MADV_DONTNEED)?;
            }
        }
        Ok(())
    }

    /// The memory itself, for copies.
    pub fn space(&self) -> &Arc<dyn AddressSpace> {
        &self.space
    }

    /// Tells this memory from any other there was or will be.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What the container may map.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Sums over the areas.
    pub fn totals(&self) -> Totals {
        self.lock().map.totals()
    }

    /// Where the parts of the program are.
    pub fn layout(&self) -> Layout {
        self.lock().layout.clone()
    }

    /// The program's file.
    pub fn exe(&self) -> Option<Arc<OpenFile>> {
        self.lock().exe.clone()
    }

    /// `PR_SET_MM_EXE_FILE`, and the loader. Returns the one before, for the caller to let go of without locks held.
    pub fn set_exe(&self, exe: Option<Arc<OpenFile>>) -> Option<Arc<OpenFile>> {
        std::mem::replace(&mut self.lock().exe, exe)
    }

    /// `PR_GET_DUMPABLE`.
    pub fn dumpable(&self) -> u8 {
        self.lock().dumpable
    }

    /// `PR_SET_DUMPABLE` and changes of credentials: 0, 1 or 2.
    pub fn set_dumpable(&self, dumpable: u8) {
        self.lock().dumpable = dumpable;
    }

    /// Sets what the loader knows: places, the auxiliary vector, the program's file, the top of the mapping area.
    pub fn set_program(&self, layout: Layout, auxv: Vec<u64>, exe: Option<Arc<OpenFile>>) {
        let mut inner = self.lock();
        inner.layout = layout;
        inner.auxv = auxv;
        inner.exe = exe;
    }

    /// Mappings without a hint go below `base`.
    pub fn set_mmap_base(&self, base: u64) {
        self.lock().mmap_base = base.min(self.range.end);
    }

    /// Whether nothing is mapped in `range`.
    pub fn is_free(&self, range: &Range<u64>) -> bool {
        self.lock().map.is_free(range)
    }

    /// A place for `len` bytes as `mmap(2)` without a hint would choose it. For the loader, whose space nobody else uses yet.
    pub(crate) fn find_place(&self, len: u64) -> Result<u64> {
        self.lock().place(len, 0, false, &self.range).map(|range| range.start)
    }

    /// Maps `area` without looking at limits. For the loader.
    pub(crate) fn load_area(&self, thread: &mut dyn UserThread, area: Area) -> Result<()> {
        if area.start < self.range.start || area.end > self.range.end || area.is_empty() {
            return Err(Errno::EINVAL);
        }
        self.lock().map_over(thread, area, 0)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// `start..start + len`, `len` rounded up to pages, if the container may map there.
    fn checked_range(&self, start: u64, len: u64) -> Option<Range<u64>> {
        let end = start.checked_add(page_up(len)?)?;
        (start.is_multiple_of(PAGE) && end <= self.range.end).then_some(start..end)
    }
}

/// A copy of a map of areas, on its way to a child.
pub struct ForkImage(Box<Inner>);

/// `len` rounded up to whole pages; `None` when it does not fit.
pub fn page_up(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(PAGE)
}

/// `addr` rounded down to its page.
pub fn page_down(addr: u64) -> u64 {
    addr & !(PAGE - 1)
}

/// Enters the vDSO and its data pages.
fn enter_vdso(map: &mut AreaMap, pages: Range<u64>, image: u64) {
    let special = |range: Range<u64>, prot, max_prot, name| Area {
        prot,
        max_prot,
        flags: AreaFlags::DONTEXPAND,
        backing: Backing::Special(name),
        ..Area::anonymous(range, 0, AreaFlags::empty())
    };
    let (read, exec) = (libc::PROT_READ, libc::PROT_EXEC);
    if pages.start < image {
        map.insert(special(pages.start..image, read, read, "[vvar]"));
    }
    if image < pages.end {
        map.insert(special(image..pages.end, read | exec, area::PROT_ALL, "[vdso]"));
    }
}

impl Inner {
    /// Whether `len` more bytes may be mapped; `data` as for [`Area::is_data`].
    fn check_expand(&self, len: u64, data: bool, limits: &MemLimits) -> Result<()> {
        let totals = self.map.totals();
        let fits = |used: u64, limit: u64| used.checked_add(len).is_some_and(|sum| sum <= limit);
        if fits(totals.total, limits.address_space) && (!data || fits(totals.data, limits.data)) {
            Ok(())
        } else {
            Err(Errno::ENOMEM)
        }
    }

    /// Whether `len` more bytes may be locked.
    fn check_lock(&self, len: u64, limits: &MemLimits) -> bool {
        limits.ipc_lock || self.map.totals().locked.checked_add(len).is_some_and(|sum| sum <= limits.memlock)
    }

    fn note_peak(&mut self) {
        let totals = self.map.totals();
        self.peak = self.peak.max(totals.total);
        self.peak_resident = self.peak_resident.max(report::resident(totals));
    }

    /// After a host call that may have done a part of its work on `range`: nothing is left there, on either side.
    fn give_up(&mut self, thread: &mut dyn UserThread, range: &Range<u64>) {
        if self.map.is_free(range) {
            return;
        }
        match thread.unmap(range.start, range.end - range.start) {
            Ok(()) => self.map.remove(range),
            // Nothing could be split, so nothing was changed before either.
            Err(error) => log::debug!("unmapping {range:x?} after a failure: {error}"),
        }
    }
}
