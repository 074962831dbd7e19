//! What a file system may use: pages and inodes, and for the whole sentry the host descriptors behind file contents.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::errno::{Errno, Result, check};

/// Bytes of a page, the unit of accounting.
pub const PAGE: u64 = 4096;

/// How many pages hold `bytes`.
pub fn pages_of(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE)
}

/// A count with a ceiling.
struct Meter {
    used: AtomicU64,
    max: AtomicU64,
}

impl Meter {
    fn take(&self, n: u64) -> Result<()> {
        let max = self.max.load(Ordering::Relaxed);
        let grow = |used: u64| used.checked_add(n).filter(|&used| n == 0 || used <= max);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow);
        taken.map(drop).map_err(|_| Errno::ENOSPC)
    }

    fn force(&self, n: u64) {
        self.used.fetch_add(n, Ordering::Relaxed);
    }

    fn give(&self, n: u64) {
        self.used.fetch_sub(n, Ordering::Relaxed);
    }
}

/// The pages and inodes of one file system.
pub struct Space {
    pages: Meter,
    inodes: Meter,
}

impl Space {
    /// With ceilings; `None` is no ceiling.
    pub fn new(pages: Option<u64>, inodes: Option<u64>) -> Space {
        let meter = |max: Option<u64>| Meter { used: AtomicU64::new(0), max: max.unwrap_or(u64::MAX).into() };
        Space { pages: meter(pages), inodes: meter(inodes) }
    }

    /// Sets other ceilings. `EINVAL` when more is in use, and to set one where there was none or the reverse.
    pub fn limit(&self, pages: Option<u64>, inodes: Option<u64>) -> Result<()> {
        let changes = [(&self.pages, pages), (&self.inodes, inodes)];
        let changes = changes.map(|(meter, max)| (meter, max.unwrap_or(u64::MAX)));
        for (meter, max) in changes {
            let unlimited = meter.max.load(Ordering::Relaxed) == u64::MAX;
            if meter.used.load(Ordering::Relaxed) > max || unlimited != (max == u64::MAX) {
                return Err(Errno::EINVAL);
            }
        }
        changes.iter().for_each(|(meter, max)| meter.max.store(*max, Ordering::Relaxed));
        Ok(())
    }

    /// Takes `n` pages. `ENOSPC`.
    pub fn take_pages(&self, n: u64) -> Result<()> {
        self.pages.take(n)
    }

    /// Takes `n` pages that are in use already, above the ceiling or not.
    pub fn force_pages(&self, n: u64) {
        self.pages.force(n);
    }

    /// Gives back `n` pages.
    pub fn give_pages(&self, n: u64) {
        self.pages.give(n);
    }

    /// Takes an inode. `ENOSPC`.
    pub fn take_inode(&self) -> Result<()> {
        self.inodes.take(1)
    }

    /// Takes an inode, above the ceiling or not.
    pub fn force_inode(&self) {
        self.inodes.force(1);
    }

    /// Gives an inode back.
    pub fn give_inode(&self) {
        self.inodes.give(1);
    }

    /// Pages: the ceiling (0 for none) and how many are free.
    pub fn pages(&self) -> (u64, u64) {
        meter_view(&self.pages)
    }

    /// Inodes: the ceiling (0 for none) and how many are free.
    pub fn inodes(&self) -> (u64, u64) {
        meter_view(&self.inodes)
    }
}

fn meter_view(meter: &Meter) -> (u64, u64) {
    match meter.max.load(Ordering::Relaxed) {
        u64::MAX => (0, 0),
        max => (max, max.saturating_sub(meter.used.load(Ordering::Relaxed))),
    }
}

/// How many memfds hold contents now.
static MEMFDS: AtomicUsize = AtomicUsize::new(0);

/// At most half of the descriptors that the sentry may have.
fn memfd_limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap_or((1024, 0));
        usize::try_from(soft / 2).unwrap_or(usize::MAX)
    })
}

/// A new, empty memfd, counted until [`forget_memfd`]. `ENOSPC` when there are as many as there may be. Sealing is always
/// allowed on the host's: which seals the container may add is decided above it.
pub fn new_memfd() -> Result<OwnedFd> {
    if MEMFDS.fetch_add(1, Ordering::Relaxed) >= memfd_limit() {
        forget_memfd();
        log::warn!("tmpfs: no host descriptor left for another file of more than a few pages");
        return Err(Errno::ENOSPC);
    }
    // SAFETY: the name is a constant C string.
    let fd = unsafe { libc::memfd_create(c"runsc".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        let error = Errno::last();
        forget_memfd();
        log::warn!("tmpfs: memfd_create: {error}");
        return Err(Errno::ENOSPC);
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A memfd's file is gone. (What still maps it holds the descriptor a while longer.)
pub fn forget_memfd() {
    MEMFDS.fetch_sub(1, Ordering::Relaxed);
}

/// `ftruncate(2)` of a host file.
pub fn host_truncate(fd: &OwnedFd, size: u64) -> Result<()> {
    let size = libc::off_t::try_from(size).map_err(|_| Errno::EFBIG)?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), size) }.into()).map(drop)
}

/// `fallocate(2)` of a host file.
pub fn host_allocate(fd: &OwnedFd, mode: i32, offset: u64, len: u64) -> Result<()> {
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let len = libc::off_t::try_from(len).map_err(|_| Errno::EFBIG)?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset, len) }.into()).map(drop)
}

/// `lseek(2)` of a host file whose position nobody uses.
pub fn host_seek(fd: &OwnedFd, offset: u64, whence: i32) -> Result<u64> {
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::ENXIO)?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) })
}

/// Pages that a host file has, by `fstat(2)`.
pub fn host_pages(fd: &OwnedFd) -> Result<u64> {
    let stat = nix::sys::stat::fstat(fd)?;
    Ok(pages_of(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)))
}
