//! Memory: mappings, protection, moving, advice, sharing, limits.

use std::fs;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, c_void};

use crate::common::*;

const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

unsafe fn map_at(address: *mut u8, size: usize, flags: c_int) -> *mut c_void {
    unsafe { libc::mmap(address.cast(), size, READ_WRITE, flags, -1, 0) }
}

unsafe fn map_file(fd: c_int, size: usize, flags: c_int) -> *mut u8 {
    unsafe { ok(libc::mmap(ptr::null_mut(), size, READ_WRITE, flags, fd, 0)).cast() }
}

/// Whether reading a byte works, found without a fault.
fn readable(address: *const u8) -> bool {
    let (reader, writer) = pipe();
    // SAFETY: the kernel checks the address.
    let result = unsafe { libc::write(writer, address.cast(), 1) };
    close(reader);
    close(writer);
    result == 1
}

/// The line of `/proc/self/maps` that holds an address.
fn line_of(address: *const u8) -> Option<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let bound = |text| usize::from_str_radix(text, 16).unwrap();
        (bound(start)..bound(end)).contains(&(address as usize))
    });
    line.map(str::to_owned)
}

#[test]
fn anonymous_memory_is_zero() {
    isolated(|| unsafe {
        let memory = anonymous(64 * PAGE, libc::MAP_PRIVATE);
        assert_eq!(memory as usize % PAGE, 0);
        assert!(std::slice::from_raw_parts(memory, 64 * PAGE).iter().all(|byte| *byte == 0));
    });
}

#[test]
fn mmap_errors() {
    isolated(|| unsafe {
        let none = ptr::null_mut();
        fails(map_at(none, 0, ANONYMOUS), libc::EINVAL);
        fails(map_at(none, PAGE, libc::MAP_ANONYMOUS), libc::EINVAL);
        fails(map_at(none, PAGE, libc::MAP_PRIVATE), libc::EBADF);
        fails(map_at(none, usize::MAX, ANONYMOUS), libc::ENOMEM);
        fails(map_at(none, 1 << 47, ANONYMOUS), libc::ENOMEM);
        fails(map_at(123 as *mut u8, PAGE, ANONYMOUS | libc::MAP_FIXED), libc::EINVAL);
        fails(map_at((1usize << 47) as *mut u8, PAGE, ANONYMOUS | libc::MAP_FIXED), libc::ENOMEM);
        let fd = open_new(c"f");
        fails(libc::mmap(ptr::null_mut(), PAGE, READ_WRITE, libc::MAP_PRIVATE, fd, 1), libc::EINVAL);
        let (reader, _) = pipe();
        fails(libc::mmap(ptr::null_mut(), PAGE, READ_WRITE, libc::MAP_PRIVATE, reader, 0), libc::ENODEV);
    });
}

#[test]
fn mapping_needs_the_files_access_mode() {
    isolated(|| unsafe {
        file(c"f", b"x");
        let read_only = ok(open(c"f", libc::O_RDONLY));
        let map = |fd, access, flags| libc::mmap(ptr::null_mut(), PAGE, access, flags, fd, 0);
        fails(map(read_only, READ_WRITE, libc::MAP_SHARED), libc::EACCES);
        ok(map(read_only, READ_WRITE, libc::MAP_PRIVATE));
        let shared = ok(map(read_only, libc::PROT_READ, libc::MAP_SHARED));
        fails(libc::mprotect(shared, PAGE, READ_WRITE), libc::EACCES);
        let write_only = ok(open(c"f", libc::O_WRONLY));
        fails(map(write_only, libc::PROT_READ, libc::MAP_PRIVATE), libc::EACCES);
        fails(map(write_only, libc::PROT_WRITE, libc::MAP_SHARED), libc::EACCES);
    });
}

#[test]
fn fixed_mapping_replaces() {
    isolated(|| unsafe {
        let memory = anonymous(3 * PAGE, libc::MAP_PRIVATE);
        memory.write_bytes(7, 3 * PAGE);
        let middle = memory.add(PAGE);
        assert_eq!(ok(map_at(middle, PAGE, ANONYMOUS | libc::MAP_FIXED)).cast(), middle);
        assert_eq!((memory.read(), middle.read(), memory.add(2 * PAGE).read()), (7, 0, 7));
    });
}

#[test]
fn noreplace_refuses_and_hint_moves_aside() {
    isolated(|| unsafe {
        let memory = anonymous(3 * PAGE, libc::MAP_PRIVATE);
        fails(map_at(memory, PAGE, ANONYMOUS | libc::MAP_FIXED_NOREPLACE), libc::EEXIST);
        assert_ne!(ok(map_at(memory, PAGE, ANONYMOUS)).cast(), memory);
        ok(libc::munmap(memory.add(PAGE).cast(), PAGE));
        assert_eq!(ok(map_at(memory.add(PAGE), PAGE, ANONYMOUS)).cast(), memory.add(PAGE));
        ok(libc::munmap(memory.add(PAGE).cast(), PAGE));
        ok(map_at(memory.add(PAGE), PAGE, ANONYMOUS | libc::MAP_FIXED_NOREPLACE));
    });
}

#[test]
fn munmap_makes_a_hole() {
    isolated(|| unsafe {
        let memory = anonymous(3 * PAGE, libc::MAP_PRIVATE);
        ok(libc::munmap(memory.add(PAGE).cast(), 1));
        assert_eq!([0, 1, 2].map(|page| readable(memory.add(page * PAGE))), [true, false, true]);
        ok(libc::munmap(memory.cast(), 3 * PAGE));
        ok(libc::munmap(memory.cast(), 3 * PAGE));
        fails(libc::munmap(memory.add(1).cast(), PAGE), libc::EINVAL);
        fails(libc::munmap(memory.cast(), 0), libc::EINVAL);
    });
}

#[test]
fn mprotect_changes_part_of_a_mapping() {
    isolated(|| unsafe {
        let memory = anonymous(3 * PAGE, libc::MAP_PRIVATE);
        ok(libc::mprotect(memory.add(PAGE).cast(), PAGE, libc::PROT_NONE));
        assert_eq!([0, 1, 2].map(|page| readable(memory.add(page * PAGE))), [true, false, true]);
        assert!(line_of(memory.add(PAGE)).unwrap().contains(" ---p "));
        ok(libc::mprotect(memory.cast(), 3 * PAGE, libc::PROT_READ));
        assert!(line_of(memory).unwrap().contains(" r--p "));
    });
}

#[test]
fn mprotect_errors() {
    isolated(|| unsafe {
        let memory = anonymous(3 * PAGE, libc::MAP_PRIVATE);
        fails(libc::mprotect(memory.add(1).cast(), PAGE, libc::PROT_READ), libc::EINVAL);
        fails(libc::mprotect(memory.cast(), PAGE, 0x1000), libc::EINVAL);
        ok(libc::munmap(memory.add(PAGE).cast(), PAGE));
        fails(libc::mprotect(memory.cast(), 3 * PAGE, libc::PROT_READ), libc::ENOMEM);
        ok(libc::mprotect(memory.cast(), 0, libc::PROT_READ));
    });
}

#[test]
fn system_calls_into_forbidden_memory_give_efault() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        let memory = anonymous(2 * PAGE, libc::MAP_PRIVATE);
        ok(libc::mprotect(memory.cast(), PAGE, libc::PROT_READ));
        ok(libc::mprotect(memory.add(PAGE).cast(), PAGE, libc::PROT_NONE));
        write(writer, b"abc");
        fails(libc::read(reader, memory.cast(), 3), libc::EFAULT);
        fails(libc::write(writer, memory.add(PAGE).cast(), 1), libc::EFAULT);
        fails(libc::open(memory.add(PAGE).cast(), libc::O_RDONLY), libc::EFAULT);
        fails(libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_REALTIME, memory), libc::EFAULT);
    });
}

#[test]
fn private_file_mapping_keeps_writes_to_itself() {
    isolated(|| unsafe {
        file(c"f", b"hello");
        let fd = ok(open(c"f", libc::O_RDWR));
        let map = map_file(fd, PAGE, libc::MAP_PRIVATE);
        assert_eq!(std::slice::from_raw_parts(map, 6), b"hello\0");
        map.write(b'J');
        assert_eq!(fs::read("f").unwrap(), b"hello");
        close(fd);
        assert_eq!(map.read(), b'J');
    });
}

#[test]
fn shared_file_mapping_and_file_are_one() {
    isolated(|| unsafe {
        file(c"f", b"hello");
        let fd = ok(open(c"f", libc::O_RDWR));
        let (map, other) = (map_file(fd, PAGE, libc::MAP_SHARED), map_file(fd, PAGE, libc::MAP_SHARED));
        map.write(b'J');
        assert_eq!(fs::read("f").unwrap(), b"Jello");
        assert_eq!(other.read(), b'J');
        ok(libc::pwrite(fd, c"p".as_ptr().cast(), 1, 4));
        assert_eq!(map.add(4).read_volatile(), b'p');
        map.add(5).write(b'!');
        assert_eq!(fs::read("f").unwrap(), b"Jellp", "beyond the end nothing is written");
        ok(libc::msync(map.cast(), PAGE, libc::MS_SYNC));
    });
}

#[test]
fn file_mapping_at_an_offset() {
    isolated(|| unsafe {
        let mut contents = vec![1u8; PAGE];
        contents.extend([2; PAGE]);
        file(c"f", &contents);
        let fd = ok(open(c"f", libc::O_RDWR));
        let map: *mut u8 = ok(libc::mmap(ptr::null_mut(), PAGE, READ_WRITE, libc::MAP_SHARED, fd, PAGE as i64)).cast();
        assert_eq!(map.read(), 2);
        map.add(10).write(9);
        assert_eq!(fs::read("f").unwrap()[PAGE + 10], 9);
        let line = line_of(map).unwrap();
        assert!(line.contains(" rw-s 00001000 ") && line.ends_with("/f"), "{line}");
    });
}

#[test]
fn mapping_survives_unlinking() {
    isolated(|| unsafe {
        file(c"f", b"hello");
        let fd = ok(open(c"f", libc::O_RDWR));
        let map = map_file(fd, PAGE, libc::MAP_SHARED);
        ok(libc::unlink(c"f".as_ptr()));
        close(fd);
        assert_eq!(std::slice::from_raw_parts(map, 5), b"hello");
        assert!(line_of(map).unwrap().ends_with("/f (deleted)"));
    });
}

#[test]
fn mremap_grows_moves_and_shrinks() {
    isolated(|| unsafe {
        let memory = anonymous(4 * PAGE, libc::MAP_PRIVATE);
        for page in 0..4 {
            memory.add(page * PAGE).write(page as u8 + 1);
        }
        ok(libc::mremap(memory.cast(), 4 * PAGE, 2 * PAGE, 0));
        assert!(!readable(memory.add(2 * PAGE)));
        ok(map_at(memory.add(2 * PAGE), PAGE, ANONYMOUS | libc::MAP_FIXED));
        fails(libc::mremap(memory.cast(), 2 * PAGE, 8 * PAGE, 0), libc::ENOMEM);
        let moved: *mut u8 = ok(libc::mremap(memory.cast(), 2 * PAGE, 8 * PAGE, libc::MREMAP_MAYMOVE)).cast();
        assert_ne!(moved, memory);
        assert!(!readable(memory));
        assert_eq!((moved.read(), moved.add(PAGE).read(), moved.add(7 * PAGE).read()), (1, 2, 0));
    });
}

#[test]
fn mremap_to_a_fixed_place() {
    isolated(|| unsafe {
        let (from, to) = (anonymous(PAGE, libc::MAP_PRIVATE), anonymous(PAGE, libc::MAP_PRIVATE));
        from.write(5);
        to.write(6);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let target: *mut c_void = to.cast();
        assert_eq!(ok(libc::mremap(from.cast(), PAGE, PAGE, flags, target)), target);
        assert_eq!(to.read(), 5);
        assert!(!readable(from));
        fails(libc::mremap(to.cast(), PAGE, PAGE, libc::MREMAP_FIXED, from), libc::EINVAL);
        fails(libc::mremap(to.cast(), 2 * PAGE, PAGE, flags, to.add(PAGE)), libc::EINVAL);
    });
}

#[test]
fn mremap_dontunmap_leaves_an_empty_mapping() {
    isolated(|| unsafe {
        let from = anonymous(PAGE, libc::MAP_PRIVATE);
        from.write(5);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
        let to: *mut u8 = ok(libc::mremap(from.cast(), PAGE, PAGE, flags, ptr::null_mut::<c_void>())).cast();
        assert_ne!(to, from);
        assert_eq!((from.read_volatile(), to.read()), (0, 5));
    });
}

#[test]
fn mremap_errors() {
    isolated(|| unsafe {
        let memory = anonymous(PAGE, libc::MAP_PRIVATE);
        fails(libc::mremap(memory.add(1).cast(), PAGE, PAGE, 0), libc::EINVAL);
        fails(libc::mremap(memory.cast(), PAGE, 0, 0), libc::EINVAL);
        fails(libc::mremap(memory.cast(), PAGE, PAGE, 0x100), libc::EINVAL);
        ok(libc::munmap(memory.cast(), PAGE));
        fails(libc::mremap(memory.cast(), PAGE, 2 * PAGE, libc::MREMAP_MAYMOVE), libc::EFAULT);
    });
}

#[test]
fn dontneed_drops_private_pages() {
    isolated(|| unsafe {
        let memory = anonymous(2 * PAGE, libc::MAP_PRIVATE);
        memory.write_bytes(7, 2 * PAGE);
        ok(libc::madvise(memory.cast(), PAGE, libc::MADV_DONTNEED));
        assert_eq!((memory.read_volatile(), memory.add(PAGE).read()), (0, 7));
        file(c"f", b"file");
        let map = map_file(ok(open(c"f", libc::O_RDWR)), PAGE, libc::MAP_PRIVATE);
        map.write(b'x');
        ok(libc::madvise(map.cast(), PAGE, libc::MADV_DONTNEED));
        assert_eq!(map.read_volatile(), b'f');
    });
}

#[test]
fn dontneed_keeps_shared_pages() {
    isolated(|| unsafe {
        let memory = anonymous(PAGE, libc::MAP_SHARED);
        memory.write(7);
        ok(libc::madvise(memory.cast(), PAGE, libc::MADV_DONTNEED));
        assert_eq!(memory.read_volatile(), 7);
        ok(libc::madvise(memory.cast(), PAGE, libc::MADV_REMOVE));
        assert_eq!(memory.read_volatile(), 0);
    });
}

#[test]
fn madvise_free_allows_new_writes() {
    isolated(|| unsafe {
        let memory = anonymous(PAGE, libc::MAP_PRIVATE);
        memory.write(7);
        ok(libc::madvise(memory.cast(), PAGE, libc::MADV_FREE));
        assert!([0, 7].contains(&memory.read_volatile()));
        memory.write(8);
        assert_eq!(memory.read_volatile(), 8);
        fails(libc::madvise(anonymous(PAGE, libc::MAP_SHARED).cast(), PAGE, libc::MADV_FREE), libc::EINVAL);
    });
}

#[test]
fn madvise_errors() {
    isolated(|| unsafe {
        let memory = anonymous(2 * PAGE, libc::MAP_PRIVATE);
        fails(libc::madvise(memory.add(1).cast(), PAGE, libc::MADV_NORMAL), libc::EINVAL);
        fails(libc::madvise(memory.cast(), PAGE, 9999), libc::EINVAL);
        ok(libc::munmap(memory.add(PAGE).cast(), PAGE));
        fails(libc::madvise(memory.cast(), 2 * PAGE, libc::MADV_DONTNEED), libc::ENOMEM);
        ok(libc::madvise(memory.cast(), 0, libc::MADV_NORMAL));
    });
}

#[test]
fn dontfork_and_wipeonfork() {
    isolated(|| unsafe {
        let (gone, wiped) = (anonymous(PAGE, libc::MAP_PRIVATE), anonymous(PAGE, libc::MAP_PRIVATE));
        gone.write(1);
        wiped.write(1);
        ok(libc::madvise(gone.cast(), PAGE, libc::MADV_DONTFORK));
        ok(libc::madvise(wiped.cast(), PAGE, libc::MADV_WIPEONFORK));
        in_child(|| {
            assert!(!readable(gone));
            assert_eq!(wiped.read(), 0);
        });
        assert_eq!((gone.read(), wiped.read()), (1, 1));
    });
}

#[test]
fn brk_grows_and_shrinks() {
    isolated(|| unsafe {
        let brk = |address: usize| libc::syscall(libc::SYS_brk, address) as usize;
        let start = brk(0);
        assert_eq!(brk(start + 3 * PAGE), start + 3 * PAGE);
        let memory = start as *mut u8;
        memory.write_bytes(7, 3 * PAGE);
        assert_eq!(brk(start), start);
        assert_eq!(brk(start + PAGE), start + PAGE);
        if start.is_multiple_of(PAGE) {
            assert_eq!(memory.add(PAGE - 1).read(), 0, "what was given back comes as zeros");
        }
        assert_eq!(brk(1), start + PAGE, "a refusal returns the present end");
        assert_eq!(brk(usize::MAX), start + PAGE);
        assert!(line_of((start - 1) as *const u8).is_none_or(|line| line.contains("[heap]")));
    });
}

#[test]
fn copy_on_write_after_fork() {
    isolated(|| unsafe {
        let memory = anonymous(100 * PAGE, libc::MAP_PRIVATE);
        memory.write_bytes(1, 100 * PAGE);
        let (reader, writer) = pipe();
        let pid = child(|| {
            read_some(reader, 1);
            let bytes = std::slice::from_raw_parts_mut(memory, 100 * PAGE);
            assert!(bytes.iter().all(|byte| *byte == 1));
            bytes.fill(3);
            0
        });
        memory.write_bytes(2, 50 * PAGE);
        write(writer, b"x");
        assert_eq!(wait(pid), Status::Exited(0));
        assert_eq!((memory.read(), memory.add(99 * PAGE).read()), (2, 1));
    });
}

#[test]
fn shared_memory_stays_shared_across_fork() {
    isolated(|| {
        let word: &AtomicU32 = shared();
        let pids: Vec<_> = (0..4)
            .map(|_| {
                child(|| {
                    (0..1000).for_each(|_| _ = word.fetch_add(1, Ordering::SeqCst));
                    0
                })
            })
            .collect();
        pids.into_iter().for_each(|pid| assert_eq!(wait(pid), Status::Exited(0)));
        assert_eq!(word.load(Ordering::SeqCst), 4000);
    });
}

#[test]
fn msync_errors() {
    isolated(|| unsafe {
        let memory = anonymous(2 * PAGE, libc::MAP_SHARED);
        fails(libc::msync(memory.cast(), PAGE, libc::MS_SYNC | libc::MS_ASYNC), libc::EINVAL);
        fails(libc::msync(memory.add(1).cast(), PAGE, libc::MS_SYNC), libc::EINVAL);
        fails(libc::msync(memory.cast(), PAGE, 0x100), libc::EINVAL);
        ok(libc::munmap(memory.add(PAGE).cast(), PAGE));
        fails(libc::msync(memory.cast(), 2 * PAGE, libc::MS_SYNC), libc::ENOMEM);
    });
}

#[test]
fn msync_goes_past_holes_and_over_several_files() {
    isolated(|| unsafe {
        file(c"f", &[1; 4 * PAGE]);
        file(c"g", &[2; 4 * PAGE]);
        let map = map_file(ok(open(c"f", libc::O_RDWR)), 4 * PAGE, libc::MAP_SHARED);
        let over = libc::MAP_SHARED | libc::MAP_FIXED;
        let other = ok(open(c"g", libc::O_RDWR));
        ok(libc::mmap(map.add(2 * PAGE).cast(), PAGE, READ_WRITE, over, other, 0));
        (0..4).for_each(|page| map.add(page * PAGE).write(9));
        ok(libc::msync(map.cast(), 4 * PAGE, libc::MS_SYNC));
        ok(libc::munmap(map.add(PAGE).cast(), PAGE));
        fails(libc::msync(map.cast(), 4 * PAGE, libc::MS_SYNC), libc::ENOMEM);
        assert_eq!((fs::read("f").unwrap()[3 * PAGE], fs::read("g").unwrap()[0]), (9, 9));
    });
}

#[test]
fn mincore_tells_resident_pages() {
    isolated(|| unsafe {
        let memory = anonymous(3 * PAGE, libc::MAP_PRIVATE);
        memory.add(PAGE).write(1);
        let mut pages = [0u8; 3];
        ok(libc::mincore(memory.cast(), 3 * PAGE, pages.as_mut_ptr()));
        assert_eq!(pages[1] & 1, 1);
        fails(libc::mincore(memory.add(1).cast(), PAGE, pages.as_mut_ptr()), libc::EINVAL);
        fails(libc::mincore(memory.cast(), PAGE, 8 as *mut u8), libc::EFAULT);
        ok(libc::munmap(memory.cast(), 3 * PAGE));
        fails(libc::mincore(memory.cast(), PAGE, pages.as_mut_ptr()), libc::ENOMEM);
    });
}

#[test]
fn mlock_and_its_limit() {
    isolated(|| unsafe {
        let memory = anonymous(8 * PAGE, libc::MAP_PRIVATE);
        ok(libc::mlock(memory.cast(), 2 * PAGE));
        ok(libc::munlock(memory.cast(), 2 * PAGE));
        fails(libc::mlockall(0x80), libc::EINVAL);
        as_user(1234, || {
            let limit = libc::rlimit { rlim_cur: PAGE as u64, rlim_max: PAGE as u64 };
            ok(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit));
            ok(libc::mlock(memory.cast(), PAGE));
            fails(libc::mlock(memory.cast(), 8 * PAGE), libc::ENOMEM);
        });
        ok(libc::munmap(memory.cast(), 8 * PAGE));
        fails(libc::mlock(memory.cast(), PAGE), libc::ENOMEM);
    });
}

#[test]
fn memfd_is_a_file_without_name() {
    isolated(|| unsafe {
        let fd = ok(libc::memfd_create(c"name".as_ptr(), libc::MFD_CLOEXEC));
        assert_eq!(write(fd, b"hello"), 5);
        let link = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
        assert_eq!(link.to_str().unwrap(), "/memfd:name (deleted)");
        assert_eq!((fstat(fd).st_nlink, fstat(fd).st_size), (0, 5));
        let map = map_file(fd, PAGE, libc::MAP_SHARED);
        map.write(b'J');
        assert_eq!(fs::read(format!("/proc/self/fd/{fd}")).unwrap(), b"Jello");
        fails(libc::memfd_create(c"x".as_ptr(), 0x100), libc::EINVAL);
        fails(libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_WRITE), libc::EPERM);
    });
}

#[test]
fn memfd_seals_hold() {
    isolated(|| unsafe {
        let fd = ok(libc::memfd_create(c"name".as_ptr(), libc::MFD_ALLOW_SEALING));
        ok(libc::ftruncate(fd, PAGE as i64));
        assert_eq!(ok(libc::fcntl(fd, libc::F_GET_SEALS)), 0);
        ok(libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_GROW | libc::F_SEAL_SHRINK));
        fails(libc::ftruncate(fd, 0), libc::EPERM);
        fails(libc::ftruncate(fd, 2 * PAGE as i64), libc::EPERM);
        assert_eq!(write(fd, b"x"), 1);
        let map = map_file(fd, PAGE, libc::MAP_SHARED);
        fails(libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_WRITE), libc::EBUSY);
        ok(libc::munmap(map.cast(), PAGE));
        ok(libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_WRITE | libc::F_SEAL_SEAL));
        fails(write(fd, b"x"), libc::EPERM);
        fails(libc::mmap(ptr::null_mut(), PAGE, READ_WRITE, libc::MAP_SHARED, fd, 0), libc::EPERM);
        fails(libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_GROW), libc::EPERM);
        fails(libc::fcntl(open_new(c"f"), libc::F_GET_SEALS), libc::EINVAL);
    });
}

#[test]
fn growsdown_mapping_grows() {
    isolated(|| unsafe {
        let space = anonymous(1024 * PAGE, libc::MAP_PRIVATE);
        ok(libc::munmap(space.cast(), 1024 * PAGE));
        let top = space.add(1022 * PAGE);
        ok(map_at(top, 2 * PAGE, ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_GROWSDOWN));
        for page in 1..100 {
            top.sub(page * PAGE).write_volatile(page as u8);
        }
        assert_eq!(top.sub(50 * PAGE).read(), 50);
    });
}

#[test]
fn address_space_limit_is_kept() {
    isolated(|| unsafe {
        let limit = libc::rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
        in_child(|| {
            ok(libc::setrlimit(libc::RLIMIT_AS, &limit));
            fails(map_at(ptr::null_mut(), 1 << 30, ANONYMOUS), libc::ENOMEM);
            ok(map_at(ptr::null_mut(), 1 << 20, ANONYMOUS));
        });
    });
}

#[test]
fn process_vm_readv_and_writev() {
    isolated(|| unsafe {
        let memory = anonymous(PAGE, libc::MAP_PRIVATE);
        let (reader, writer) = pipe();
        let pid = child(|| {
            memory.write(42);
            write(writer, b"x");
            while memory.read_volatile() != 43 {
                libc::sched_yield();
            }
            0
        });
        read_some(reader, 1);
        let mut byte = 0u8;
        let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let remote = libc::iovec { iov_base: memory.cast(), iov_len: 1 };
        assert_eq!(ok(libc::process_vm_readv(pid, &local, 1, &remote, 1, 0)), 1);
        assert_eq!((byte, memory.read()), (42, 0));
        (&raw mut byte).write(43);
        assert_eq!(ok(libc::process_vm_writev(pid, &local, 1, &remote, 1, 0)), 1);
        assert_eq!(wait(pid), Status::Exited(0));
        fails(libc::process_vm_readv(pid, &local, 1, &remote, 1, 0), libc::ESRCH);
        let nowhere = libc::iovec { iov_base: 8 as *mut c_void, iov_len: 1 };
        fails(libc::process_vm_readv(libc::getpid(), &local, 1, &nowhere, 1, 0), libc::EFAULT);
        fails(libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 1), libc::EINVAL);
    });
}

#[test]
fn maps_show_protection_sharing_and_names() {
    isolated(|| unsafe {
        let private = line_of(anonymous(PAGE, libc::MAP_PRIVATE)).unwrap();
        assert!(private.contains(" rw-p 00000000 00:00 0"), "{private}");
        let shared = line_of(anonymous(PAGE, libc::MAP_SHARED)).unwrap();
        assert!(shared.contains(" rw-s ") && shared.contains("/dev/zero (deleted)"), "{shared}");
        let code = line_of(line_of as fn(*const u8) -> Option<String> as *const u8).unwrap();
        let this = std::env::current_exe().unwrap();
        assert!(code.contains(" r-xp ") && code.ends_with(this.to_str().unwrap()), "{code}");
        let vdso = line_of(libc::getauxval(libc::AT_SYSINFO_EHDR) as *const u8).unwrap();
        assert!(vdso.contains(" r-xp ") && vdso.ends_with("[vdso]"), "{vdso}");
        assert!(fs::read_to_string("/proc/self/maps").unwrap().contains("[stack]"));
    });
}

#[test]
fn many_small_mappings() {
    isolated(|| unsafe {
        let memory = anonymous(2000 * PAGE, libc::MAP_PRIVATE);
        for page in (0..2000).step_by(2) {
            memory.add(page * PAGE).write(page as u8);
            ok(libc::mprotect(memory.add(page * PAGE).cast(), PAGE, libc::PROT_READ));
        }
        for page in (0..2000).step_by(2) {
            assert_eq!(memory.add(page * PAGE).read(), page as u8);
        }
        ok(libc::munmap(memory.cast(), 2000 * PAGE));
    });
}

#[test]
fn code_written_at_run_time_runs() {
    isolated(|| unsafe {
        let memory = anonymous(PAGE, libc::MAP_PRIVATE);
        for value in [7u8, 9] {
            ok(libc::mprotect(memory.cast(), PAGE, READ_WRITE));
            let code = [0xb8, value, 0, 0, 0, 0xc3];
            ptr::copy_nonoverlapping(code.as_ptr(), memory, code.len());
            ok(libc::mprotect(memory.cast(), PAGE, libc::PROT_READ | libc::PROT_EXEC));
            let function: extern "C" fn() -> u32 = std::mem::transmute(memory);
            assert_eq!(function(), u32::from(value));
        }
    });
}

#[test]
fn proc_self_mem_reads_and_writes() {
    isolated(|| unsafe {
        let memory = anonymous(PAGE, libc::MAP_PRIVATE);
        memory.write(5);
        let fd = ok(open(c"/proc/self/mem", libc::O_RDWR));
        let mut byte = [0u8];
        assert_eq!(ok(libc::pread(fd, byte.as_mut_ptr().cast(), 1, memory as i64)), 1);
        assert_eq!(byte, [5]);
        assert_eq!(ok(libc::pwrite(fd, [6u8].as_ptr().cast(), 1, memory as i64)), 1);
        assert_eq!(memory.read_volatile(), 6);
        ok(libc::munmap(memory.cast(), PAGE));
        fails(libc::pread(fd, byte.as_mut_ptr().cast(), 1, memory as i64), libc::EIO);
    });
}
