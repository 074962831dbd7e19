//! `madvise(2)`, `msync(2)` and `mincore(2)`.

use std::ops::Range;

use super::area::{Area, AreaFlags, Backing};
use super::user::{PAGE, write_all};
use super::{Inner, MemoryManager, page_up};
use crate::errno::{Errno, Result};
use crate::platform::UserThread;

const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// What is done with an advice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Nothing: it is about speed alone.
    Ignore,
    /// The host does it.
    Host,
    /// The sentry notes a flag.
    Set(AreaFlags),
    /// The sentry drops a flag.
    Clear(AreaFlags),
}

impl MemoryManager {
    /// `madvise(2)`. Holes give `ENOMEM`, after everything that is mapped has been advised.
    pub fn madvise(&self, thread: &mut dyn UserThread, addr: u64, len: u64, advice: i32) -> Result<()> {
        let doing = doing(advice)?;
        if !addr.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let end = page_up(len).and_then(|len| addr.checked_add(len)).ok_or(Errno::EINVAL)?;
        if end == addr {
            return Ok(());
        }
        let range = addr..end;
        let mut inner = self.lock();
        let (reached, refused) = inner.advisable(&range, advice, doing);
        let allowed = addr..reached;
        let holes = !inner.map.is_covered(&range);
        match doing {
            Doing::Ignore => {}
            Doing::Set(flag) => inner.map.update(&allowed, |area| area.flags.insert(flag)),
            Doing::Clear(flag) => inner.map.update(&allowed, |area| area.flags.remove(flag)),
            Doing::Host => inner.advise_runs(thread, &allowed, advice)?,
        }
        refused?;
        if holes { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// `msync(2)`. The host writes back what of the range is dirty, with no lock held here.
    pub fn msync(&self, thread: &mut dyn UserThread, addr: u64, len: u64, flags: i32) -> Result<()> {
        let known = libc::MS_ASYNC | libc::MS_INVALIDATE | libc::MS_SYNC;
        let both = libc::MS_ASYNC | libc::MS_SYNC;
        if flags & !known != 0 || flags & both == both || !addr.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let end = page_up(len).and_then(|len| addr.checked_add(len)).ok_or(Errno::ENOMEM)?;
        if end == addr {
            return Ok(());
        }
        let mut dirty: Vec<Range<u64>> = Vec::new();
        let (mut reached, mut holes) = (addr, false);
        let mut busy = false;
        for area in self.lock().map.overlapping(&(addr..end)) {
            holes |= area.start > reached;
            reached = area.end;
            if flags & libc::MS_INVALIDATE != 0 && area.flags.contains(AreaFlags::LOCKED) {
                busy = true;
                break;
            }
            if flags & libc::MS_SYNC == 0 || !area.shared || area.file().is_none() {
                continue;
            }
            let part = area.start.max(addr)..area.end.min(end);
            match dirty.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => dirty.push(part),
            }
        }
        for part in dirty {
            thread.sync(part.start, part.end - part.start, libc::MS_SYNC)?;
        }
        match (busy, holes || reached < end) {
            (true, _) => Err(Errno::EBUSY),
            (_, true) => Err(Errno::ENOMEM),
            _ => Ok(()),
        }
    }

    /// `mincore(2)`: what is mapped counts as resident. The answer goes to `vec`. `EINVAL`, `ENOMEM`, `EFAULT`.
    pub fn mincore(&self, addr: u64, len: u64, vec: u64) -> Result<()> {
        if !addr.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let range = self.checked_range(addr, len).ok_or(Errno::ENOMEM)?;
        let covered = self.lock().map.covered_prefix(&range);
        let ones = [1u8; PAGE as usize];
        let (mut to, mut left) = (vec, (covered - addr) / PAGE);
        while left > 0 {
            let n = left.min(PAGE);
            write_all(&*self.space, to, &ones[..n as usize])?;
            to = to.wrapping_add(n);
            left -= n;
        }
        if covered < range.end { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}

/// `EINVAL` for what is not known; `MADV_HWPOISON` and its like are not configured.
fn doing(advice: i32) -> Result<Doing> {
    Ok(match advice {
        libc::MADV_NORMAL | libc::MADV_RANDOM | libc::MADV_SEQUENTIAL | libc::MADV_WILLNEED => Doing::Ignore,
        libc::MADV_MERGEABLE | libc::MADV_UNMERGEABLE => Doing::Ignore,
        libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_REMOVE | libc::MADV_HUGEPAGE | libc::MADV_NOHUGEPAGE => {
            Doing::Host
        }
        libc::MADV_COLD | libc::MADV_PAGEOUT | libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE => Doing::Host,
        libc::MADV_DONTNEED_LOCKED | libc::MADV_COLLAPSE | MADV_GUARD_INSTALL | MADV_GUARD_REMOVE => Doing::Host,
        libc::MADV_DONTFORK => Doing::Set(AreaFlags::DONTFORK),
        libc::MADV_DOFORK => Doing::Clear(AreaFlags::DONTFORK),
        libc::MADV_WIPEONFORK => Doing::Set(AreaFlags::WIPEONFORK),
        libc::MADV_KEEPONFORK => Doing::Clear(AreaFlags::WIPEONFORK),
        libc::MADV_DONTDUMP => Doing::Set(AreaFlags::DONTDUMP),
        libc::MADV_DODUMP => Doing::Clear(AreaFlags::DONTDUMP),
        _ => return Err(Errno::EINVAL),
    })
}

/// Whether `area` can take the advice.
fn accepts(area: &Area, advice: i32) -> Result<()> {
    let locked = area.flags.contains(AreaFlags::LOCKED);
    let anonymous = matches!(area.backing, Backing::Anonymous);
    let refused = match advice {
        libc::MADV_DONTNEED => locked || area.is_special(),
        libc::MADV_DONTNEED_LOCKED => area.is_special(),
        libc::MADV_FREE => !anonymous || locked,
        libc::MADV_COLD | libc::MADV_PAGEOUT => locked || area.is_special(),
        libc::MADV_WIPEONFORK => !anonymous,
        libc::MADV_DOFORK | libc::MADV_HUGEPAGE | libc::MADV_NOHUGEPAGE => area.is_special(),
        libc::MADV_DODUMP => area.flags.contains(AreaFlags::DONTEXPAND),
        libc::MADV_REMOVE => {
            if locked || anonymous || area.is_special() {
                true
            } else if !area.shared || area.prot & libc::PROT_WRITE == 0 {
                return Err(Errno::EACCES);
            } else {
                false
            }
        }
        _ => false,
    };
    if refused { Err(Errno::EINVAL) } else { Ok(()) }
}

impl Inner {
    /// How far into `range` the advice may be followed, and the error there. Holes are no obstacle.
    fn advisable(&self, range: &Range<u64>, advice: i32, doing: Doing) -> (u64, Result<()>) {
        if doing == Doing::Ignore {
            return (range.end, Ok(()));
        }
        for area in self.map.overlapping(range) {
            if let Err(error) = accepts(area, advice) {
                return (area.start.max(range.start), Err(error));
            }
        }
        (range.end, Ok(()))
    }

    /// Has the host advise each run of areas without a hole.
    fn advise_runs(&mut self, thread: &mut dyn UserThread, range: &Range<u64>, advice: i32) -> Result<()> {
        let mut run: Option<Range<u64>> = None;
        for area in self.map.overlapping(range) {
            let part = area.part(range);
            match &mut run {
                Some(run) if run.end == part.start => run.end = part.end,
                _ => {
                    if let Some(done) = run.replace(part.range()) {
                        thread.advise(done.start, done.end - done.start, advice)?;
                    }
                }
            }
        }
        run.map_or(Ok(()), |run| thread.advise(run.start, run.end - run.start, advice))
    }
}
