//! Tests on the real platform: what the sentry notes is compared with a model and with what the host has mapped.

use std::any::Any;
use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use super::fault::FutexKey;
use super::mmap::MmapArgs;
use super::remap::MremapArgs;
use super::*;
use crate::io::{Sink, host_read};
use crate::platform::Platform;
use crate::platform::ptrace::PtracePlatform;
use crate::vfs::file::{File, Mapping};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANON: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const FIXED: i32 = ANON | libc::MAP_FIXED;
const BASE: u64 = 0x10_0000_0000;

/// A file in the host's memory.
pub struct HostFile(Arc<OwnedFd>);

impl HostFile {
    pub fn open(bytes: &[u8], flags: i32) -> Arc<OpenFile> {
        // SAFETY: a new descriptor, owned from here on.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) };
        crate::io::host_write(std::os::fd::AsFd::as_fd(&fd), bytes, Some(0)).unwrap();
        OpenFile::new(Arc::new(HostFile(Arc::new(fd))), None, flags)
    }
}

impl File for HostFile {
    fn read(&self, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        let mut buf = vec![0u8; sink.room()];
        let n = host_read(std::os::fd::AsFd::as_fd(&*self.0), &mut buf, Some(offset))?;
        sink.put(&buf[..n])
    }

    fn seekable(&self) -> bool {
        true
    }

    fn mapping(&self, _shared: bool, writable: bool) -> Result<Mapping> {
        Ok(Mapping { fd: self.0.clone(), writable })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn start() -> (PtracePlatform, Box<dyn UserThread>, Arc<MemoryManager>) {
    let platform = PtracePlatform::new().unwrap();
    let user = platform.spawn().unwrap().attach().unwrap();
    let mm = MemoryManager::new(user.space().clone());
    mm.set_mmap_base(0x7000_0000_0000);
    (platform, user, mm)
}

fn anonymous(addr: u64, len: u64, prot: i32, flags: i32) -> MmapArgs {
    MmapArgs { addr, flags, ..MmapArgs::anonymous(len, prot, MemLimits::default()) }
}

fn mapped(addr: u64, len: u64, flags: i32, file: &Arc<OpenFile>, prot: i32) -> MmapArgs {
    MmapArgs { file: Some(file.clone()), ..anonymous(addr, len, prot, flags) }
}

/// Protections by page of what the host has mapped in the test's range.
fn host_pages(mm: &MemoryManager, within: &Range<u64>) -> BTreeMap<u64, i32> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", mm.space().host_pid())).unwrap();
    let mut pages = BTreeMap::new();
    for line in maps.lines() {
        let (span, rest) = line.split_once(' ').unwrap();
        let (start, end) = span.split_once('-').unwrap();
        let parse = |text| u64::from_str_radix(text, 16).unwrap();
        let bit = |at: usize, bit: i32| if rest.as_bytes()[at] == b'-' { 0 } else { bit };
        let prot = bit(0, libc::PROT_READ) | bit(1, libc::PROT_WRITE) | bit(2, libc::PROT_EXEC);
        for page in (parse(start).max(within.start)..parse(end).min(within.end)).step_by(4096) {
            pages.insert(page, prot);
        }
    }
    pages
}

fn noted_pages(mm: &MemoryManager, within: &Range<u64>) -> BTreeMap<u64, i32> {
    let mut pages = BTreeMap::new();
    let mut before: Option<Area> = None;
    mm.for_each_area(0, &mut |area| {
        assert!(before.as_ref().is_none_or(|before| before.end <= area.start && !before.continues_in(area)));
        before = Some(area.clone());
        for page in (area.start.max(within.start)..area.end.min(within.end)).step_by(4096) {
            pages.insert(page, area.prot);
        }
        true
    });
    pages
}

/// The next number of a fixed sequence: failures repeat.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

#[test]
fn random_calls_agree_with_a_model_and_the_host() {
    let (_platform, mut user, mm) = start();
    let user = &mut *user;
    let within = BASE..BASE + 64 * PAGE;
    let (mut model, mut state): (BTreeMap<u64, i32>, u64) = (BTreeMap::new(), 7);
    let limits = MemLimits::default();
    for step in 0..600 {
        let addr = BASE + next(&mut state) % 56 * PAGE;
        let pages = 1 + next(&mut state) % 8;
        let prot = [0, libc::PROT_READ, RW][next(&mut state) as usize % 3];
        let range = (addr..addr + pages * PAGE).step_by(4096);
        match next(&mut state) % 4 {
            0 => {
                mm.mmap(user, anonymous(addr, pages * PAGE, prot, FIXED)).unwrap();
                model.extend(range.map(|page| (page, prot)));
            }
            1 => {
                mm.munmap(user, addr, pages * PAGE).unwrap();
                model.retain(|page, _| !(addr..addr + pages * PAGE).contains(page));
            }
            2 => {
                let covered: Vec<u64> = range.take_while(|page| model.contains_key(page)).collect();
                let expected = if covered.len() as u64 == pages { Ok(()) } else { Err(Errno::ENOMEM) };
                assert_eq!(mm.mprotect(user, addr, pages * PAGE, prot, false, &limits), expected, "step {step}");
                model.extend(covered.into_iter().map(|page| (page, prot)));
            }
            _ => {
                let to = BASE + next(&mut state) % 56 * PAGE;
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                let len = pages * PAGE;
                let args = MremapArgs { old: addr, old_len: len, new_len: len, flags, new: to };
                // The host's areas may be cut more finely: what the sentry then does is tested by the comparison below.
                if mm.mremap(user, args, &limits).is_ok() {
                    let moved: Vec<i32> = range.map(|page| model.remove(&page).unwrap()).collect();
                    model.extend((to..to + len).step_by(4096).zip(moved));
                } else {
                    model = noted_pages(&mm, &within);
                }
            }
        }
        assert_eq!(noted_pages(&mm, &within), model, "step {step}");
        if step % 8 == 0 {
            assert_eq!(host_pages(&mm, &within), model, "step {step}");
        }
    }
    let all = mm.range();
    let vdso = mm.space().vdso().0;
    assert_eq!(mm.totals().total, model.len() as u64 * PAGE + (vdso.end - vdso.start));
    mm.munmap(user, BASE, 64 * PAGE).unwrap();
    assert_eq!(mm.lock().map.count(), 2, "nothing but the vDSO and its data is left");
    assert_eq!(mm.munmap(user, all.end, PAGE), Err(Errno::EINVAL));
}

#[test]
fn errors_of_mmap() {
    let (_platform, mut user, mm) = start();
    let user = &mut *user;
    let file = HostFile::open(&[1; 100], libc::O_RDONLY);
    let write_only = HostFile::open(&[1; 100], libc::O_WRONLY);
    let path_only = HostFile::open(&[1; 100], libc::O_PATH);
    let shared = libc::MAP_SHARED;
    let limited = MemLimits { address_space: 1 << 20, ..MemLimits::default() };
    let unlocked = MemLimits { memlock: 0, ..MemLimits::default() };
    let noreplace = ANON | libc::MAP_FIXED_NOREPLACE;
    mm.mmap(user, anonymous(BASE, PAGE, RW, FIXED)).unwrap();
    let cases = [
        (anonymous(0, 0, RW, ANON), Errno::EINVAL),
        (anonymous(0, u64::MAX, RW, ANON), Errno::ENOMEM),
        (anonymous(0, 1 << 47, RW, ANON), Errno::ENOMEM),
        (anonymous(BASE + 1, PAGE, RW, FIXED), Errno::EINVAL),
        (anonymous(0x1000, PAGE, RW, FIXED), Errno::EPERM),
        (anonymous(0x7fff_ffff_f000, PAGE, RW, FIXED), Errno::ENOMEM),
        (anonymous(BASE, PAGE, RW, noreplace), Errno::EEXIST),
        (anonymous(0, PAGE, RW, libc::MAP_ANONYMOUS), Errno::EINVAL),
        (anonymous(0, PAGE, RW, shared | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN), Errno::EINVAL),
        (anonymous(0, PAGE, RW, ANON | libc::MAP_HUGETLB), Errno::ENOMEM),
        (anonymous(0, PAGE, RW, ANON | libc::MAP_HUGETLB | 5 << libc::MAP_HUGE_SHIFT), Errno::EINVAL),
        (MmapArgs { limits: unlocked, ..anonymous(0, PAGE, RW, ANON | libc::MAP_LOCKED) }, Errno::EPERM),
        (MmapArgs { limits: limited, ..anonymous(0, 2 << 20, RW, ANON) }, Errno::ENOMEM),
        (anonymous(0, PAGE, RW, libc::MAP_PRIVATE), Errno::EBADF),
        (mapped(0, PAGE, libc::MAP_PRIVATE, &path_only, RW), Errno::EBADF),
        (mapped(0, PAGE, libc::MAP_PRIVATE, &write_only, RW), Errno::EACCES),
        (mapped(0, PAGE, shared, &file, RW), Errno::EACCES),
        (mapped(0, PAGE, 0, &file, RW), Errno::EINVAL),
        (mapped(0, PAGE, libc::MAP_PRIVATE | libc::MAP_GROWSDOWN, &file, RW), Errno::EINVAL),
        (mapped(0, PAGE, libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC, &file, libc::PROT_READ), Errno::EOPNOTSUPP),
        (MmapArgs { offset: 1, ..mapped(0, PAGE, shared, &file, libc::PROT_READ) }, Errno::EINVAL),
        (MmapArgs { offset: u64::MAX - 4095, ..mapped(0, PAGE, shared, &file, libc::PROT_READ) }, Errno::EOVERFLOW),
        (
            MmapArgs { offset: i64::MAX as u64 - 4095, ..mapped(0, PAGE, shared, &file, libc::PROT_READ) },
            Errno::EOVERFLOW,
        ),
        (MmapArgs { noexec: true, ..mapped(0, PAGE, libc::MAP_PRIVATE, &file, libc::PROT_EXEC) }, Errno::EPERM),
    ];
    for (index, (args, error)) in cases.into_iter().enumerate() {
        assert_eq!(mm.mmap(user, args), Err(error), "case {index}");
    }
}

#[test]
fn placement_follows_hints_and_limits() {
    let (_platform, mut user, mm) = start();
    let user = &mut *user;
    let first = mm.mmap(user, anonymous(0, PAGE, RW, ANON)).unwrap();
    assert_eq!(first, 0x7000_0000_0000 - PAGE);
    assert_eq!(mm.mmap(user, anonymous(0, PAGE, RW, ANON)).unwrap(), first - PAGE);
    assert_eq!(mm.mmap(user, anonymous(BASE + 123, PAGE, RW, ANON)).unwrap(), BASE);
    assert_eq!(mm.mmap(user, anonymous(BASE, PAGE, RW, ANON)).unwrap(), first - 2 * PAGE, "the hint is taken");
    let low = mm.mmap(user, anonymous(0, PAGE, RW, ANON | libc::MAP_32BIT)).unwrap();
    assert!(low < 1 << 31);
}

#[test]
fn a_stack_grows_within_its_limit() {
    let (_platform, mut user, mm) = start();
    let user = &mut *user;
    let limits = MemLimits { stack: 64 * PAGE, ..MemLimits::default() };
    mm.mmap(user, anonymous(BASE, PAGE, RW, FIXED | libc::MAP_GROWSDOWN)).unwrap();
    assert!(!mm.handle_fault(user, BASE - 64 * PAGE, true, &limits), "too deep");
    assert!(mm.handle_fault(user, BASE - 8, true, &limits));
    assert_eq!(mm.space().write(BASE - 8, &[1; 8]), Ok(8));
    assert_eq!(mm.totals().stack, 33 * PAGE);
    assert!(mm.handle_fault(user, BASE - 60 * PAGE, true, &limits));
    mm.mmap(user, anonymous(2 * BASE, PAGE, RW, FIXED | libc::MAP_GROWSDOWN)).unwrap();
    mm.mmap(user, anonymous(2 * BASE - 200 * PAGE, PAGE, RW, FIXED)).unwrap();
    assert!(!mm.handle_fault(user, 2 * BASE - 8, true, &limits), "the guard gap");
}

#[test]
fn the_break_moves_both_ways() {
    let (_platform, mut user, mm) = start();
    let user = &mut *user;
    let limits = MemLimits::default();
    mm.set_program(Layout { start_brk: BASE, brk: BASE, ..Layout::default() }, Vec::new(), None);
    assert_eq!(mm.brk(user, 0, &limits), BASE);
    assert_eq!(mm.brk(user, BASE + 100, &limits), BASE + 100);
    assert_eq!(mm.space().write(BASE, &[1; 200]), Ok(200));
    assert_eq!(mm.brk(user, BASE + 0x5000, &limits), BASE + 0x5000);
    assert_eq!(mm.brk(user, BASE + 0x800, &limits), BASE + 0x800);
    assert_eq!(mm.space().write(BASE + PAGE, &[1]), Err(Errno::EFAULT));
    mm.mmap(user, anonymous(BASE + 0x3000, PAGE, RW, FIXED)).unwrap();
    assert_eq!(mm.brk(user, BASE + 0x5000, &limits), BASE + 0x800, "something is in the way");
    let small = MemLimits { data: 0x1000, ..limits };
    assert_eq!(mm.brk(user, BASE + 0x2000, &small), BASE + 0x800);
}

#[test]
fn advice_and_fork() {
    let (_platform, mut user, mm) = start();
    let user = &mut *user;
    mm.mmap(user, anonymous(BASE, 3 * PAGE, RW, FIXED)).unwrap();
    mm.space().write(BASE, &[7; 3 * PAGE as usize]).unwrap();
    mm.madvise(user, BASE, PAGE, libc::MADV_DONTFORK).unwrap();
    mm.madvise(user, BASE + PAGE, PAGE, libc::MADV_WIPEONFORK).unwrap();
    let (image, seed) = mm.fork_with(|| user.fork()).unwrap();
    let checked = std::thread::spawn(move || {
        let mut child = seed.attach().unwrap();
        let mm = MemoryManager::from_image(image, child.space().clone());
        mm.after_fork_in_child(&mut *child).unwrap();
        let byte = |at: u64| {
            let mut byte = [9];
            mm.space().read(at, &mut byte).map(|_| byte[0])
        };
        (byte(BASE), byte(BASE + PAGE), byte(BASE + 2 * PAGE), mm.is_free(&(BASE..BASE + PAGE)))
    });
    assert_eq!(checked.join().unwrap(), (Err(Errno::EFAULT), Ok(0), Ok(7), true));
    mm.madvise(user, BASE, 3 * PAGE, libc::MADV_DONTNEED).unwrap();
    let mut byte = [9];
    mm.space().read(BASE + 2 * PAGE, &mut byte).unwrap();
    assert_eq!(byte, [0]);
    assert_eq!(mm.madvise(user, BASE, 4 * PAGE, libc::MADV_DONTNEED), Err(Errno::ENOMEM));
    assert_eq!(mm.madvise(user, BASE + 1, PAGE, libc::MADV_DONTNEED), Err(Errno::EINVAL));
    assert_eq!(mm.madvise(user, BASE, PAGE, 77), Err(Errno::EINVAL));
    assert_eq!(mm.madvise(user, BASE, PAGE, libc::MADV_REMOVE), Err(Errno::EINVAL));
}

#[test]
fn futexes_in_shared_memory_are_known_by_the_memory() {
    let (_platform, mut user, mm) = start();
    let user = &mut *user;
    let file = HostFile::open(&[1; 8192], libc::O_RDWR);
    let one = mm.mmap(user, mapped(0, 2 * PAGE, libc::MAP_SHARED, &file, RW)).unwrap();
    let other = mm.mmap(user, MmapArgs { offset: PAGE, ..mapped(0, PAGE, libc::MAP_SHARED, &file, RW) }).unwrap();
    assert_eq!(mm.futex_key(one + PAGE + 8, false), mm.futex_key(other + 8, false));
    assert_ne!(mm.futex_key(one + 8, false), mm.futex_key(other + 8, false));
    let shared = mm.mmap(user, anonymous(0, PAGE, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS)).unwrap();
    let flags = libc::MREMAP_MAYMOVE;
    let again = MremapArgs { old: shared, old_len: 0, new_len: PAGE, flags, new: 0 };
    let again = mm.mremap(user, again, &MemLimits::default()).unwrap();
    mm.space().write(again, &[5]).unwrap();
    assert_eq!(mm.load_u32(shared), Ok(5), "the same page");
    assert_eq!(mm.futex_key(shared, false), mm.futex_key(again, false));
    assert_eq!(mm.futex_key(shared, true), Ok(FutexKey::Private { mm: mm.id(), addr: shared }));
    assert_eq!(mm.futex_key(shared + 2, true), Err(Errno::EINVAL));
    assert_eq!(mm.futex_key(BASE, false), Err(Errno::EFAULT));
}

#[test]
fn locks_are_counted() {
    let (_platform, mut user, mm) = start();
    let user = &mut *user;
    let limits = MemLimits { memlock: 2 * PAGE, ..MemLimits::default() };
    mm.mmap(user, anonymous(BASE, 4 * PAGE, RW, FIXED)).unwrap();
    mm.mlock(user, BASE + 10, PAGE, 0, &limits).unwrap();
    assert_eq!(mm.totals().locked, 2 * PAGE);
    mm.mlock(user, BASE, 2 * PAGE, 0, &limits).unwrap();
    assert_eq!(mm.mlock(user, BASE, 3 * PAGE, 0, &limits), Err(Errno::ENOMEM));
    assert_eq!(mm.madvise(user, BASE, PAGE, libc::MADV_DONTNEED), Err(Errno::EINVAL));
    mm.munlock(BASE, PAGE).unwrap();
    assert_eq!(mm.totals().locked, PAGE);
    let none = MemLimits { memlock: 0, ..limits };
    assert_eq!(mm.mlock(user, BASE, PAGE, 0, &none), Err(Errno::EPERM));
    mm.munlockall();
    assert_eq!(mm.totals().locked, 0);
}
