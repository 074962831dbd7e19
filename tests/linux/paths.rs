//! Names: links, renaming, directories, lookup, attributes, permissions.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::ptr;

use libc::{c_int, c_long};

use crate::common::*;

unsafe fn mkdir(path: &CStr) -> c_int {
    unsafe { libc::mkdir(path.as_ptr(), 0o755) }
}

unsafe fn symlink(target: &CStr, path: &CStr) -> c_int {
    unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) }
}

unsafe fn rename(from: &CStr, to: &CStr) -> c_int {
    unsafe { libc::rename(from.as_ptr(), to.as_ptr()) }
}

unsafe fn renameat2(from: &CStr, to: &CStr, flags: u32) -> c_long {
    unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) }
}

fn long_name(length: usize) -> CString {
    CString::new("n".repeat(length)).unwrap()
}

#[test]
fn rename_replaces_a_file() {
    isolated(|| unsafe {
        file(c"a", b"a");
        file(c"b", b"b");
        let inode = stat(c"a").st_ino;
        ok(rename(c"a", c"b"));
        assert_eq!((fs::read("b").unwrap(), stat(c"b").st_ino), (b"a".to_vec(), inode));
        fails(rename(c"a", c"b"), libc::ENOENT);
    });
}

#[test]
fn rename_errors() {
    isolated(|| unsafe {
        file(c"f", b"");
        ok(mkdir(c"d"));
        ok(mkdir(c"full"));
        ok(mkdir(c"full/sub"));
        fails(rename(c"f", c"d"), libc::EISDIR);
        fails(rename(c"d", c"f"), libc::ENOTDIR);
        fails(rename(c"d", c"full"), libc::ENOTEMPTY);
        fails(rename(c"full", c"full/sub/x"), libc::EINVAL);
        fails(rename(c"full/sub", c"full"), libc::ENOTEMPTY);
        fails(rename(c"missing", c"x"), libc::ENOENT);
        fails(rename(c"f", c"missing/x"), libc::ENOENT);
        fails(rename(c"f/", c"x"), libc::ENOTDIR);
        fails(rename(c"f", c"x/"), libc::ENOTDIR);
        fails(rename(c"d/.", c"x"), libc::EBUSY);
        fails(rename(c"f", &long_name(256)), libc::ENAMETOOLONG);
        ok(rename(c"d", c"e/"));
        ok(rename(c"full", c"e"));
    });
}

#[test]
fn rename_of_two_names_of_one_file_does_nothing() {
    isolated(|| unsafe {
        file(c"a", b"a");
        ok(libc::link(c"a".as_ptr(), c"b".as_ptr()));
        ok(rename(c"a", c"b"));
        assert_eq!((stat(c"a").st_nlink, stat(c"b").st_nlink), (2, 2));
    });
}

#[test]
fn renameat2_noreplace_and_exchange() {
    isolated(|| unsafe {
        file(c"a", b"a");
        ok(mkdir(c"d"));
        fails(renameat2(c"a", c"d", libc::RENAME_NOREPLACE), libc::EEXIST);
        ok(renameat2(c"a", c"b", libc::RENAME_NOREPLACE));
        ok(renameat2(c"b", c"d", libc::RENAME_EXCHANGE));
        assert!(fs::metadata("b").unwrap().is_dir() && fs::metadata("d").unwrap().is_file());
        fails(renameat2(c"b", c"missing", libc::RENAME_EXCHANGE), libc::ENOENT);
        fails(renameat2(c"b", c"d", libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE), libc::EINVAL);
        fails(renameat2(c"b", c"d", 0x100), libc::EINVAL);
    });
}

#[test]
fn renaming_a_directory_changes_its_parent() {
    isolated(|| unsafe {
        ok(mkdir(c"a"));
        ok(mkdir(c"b"));
        ok(mkdir(c"a/sub"));
        let links = |path| stat(path).st_nlink;
        ok(rename(c"a/sub", c"b/sub"));
        assert_eq!(stat(c"b/sub/..").st_ino, stat(c"b").st_ino);
        if links(c"b/sub") == 2 {
            assert_eq!((links(c"a"), links(c"b")), (2, 3));
        }
    });
}

#[test]
fn link_counts_and_errors() {
    isolated(|| unsafe {
        file(c"f", b"x");
        ok(mkdir(c"d"));
        let link = |from: &CStr, to: &CStr| libc::link(from.as_ptr(), to.as_ptr());
        ok(link(c"f", c"g"));
        assert_eq!((stat(c"f").st_nlink, stat(c"g").st_ino), (2, stat(c"f").st_ino));
        fails(link(c"f", c"g"), libc::EEXIST);
        fails(link(c"d", c"e"), libc::EPERM);
        fails(link(c"missing", c"x"), libc::ENOENT);
        fails(link(c"f", c"missing/x"), libc::ENOENT);
        ok(symlink(c"f", c"s"));
        ok(link(c"s", c"t"));
        assert!(fs::symlink_metadata("t").unwrap().is_symlink());
        ok(libc::unlink(c"g".as_ptr()));
        assert_eq!(stat(c"f").st_nlink, 1);
    });
}

#[test]
fn symbolic_links_resolve() {
    isolated(|| unsafe {
        ok(mkdir(c"d"));
        file(c"d/f", b"x");
        ok(symlink(c"d", c"to-d"));
        ok(symlink(c"../d/f", c"d/up"));
        assert_eq!(fs::read("to-d/up").unwrap(), b"x");
        ok(symlink(c"nowhere", c"dangling"));
        fails(open(c"dangling", libc::O_RDONLY), libc::ENOENT);
        fails(open(c"dangling", libc::O_CREAT | libc::O_EXCL | libc::O_RDWR), libc::EEXIST);
        close(ok(open(c"dangling", libc::O_CREAT | libc::O_RDWR)));
        assert_eq!(stat(c"nowhere").st_size, 0);
        fails(open(c"dangling", libc::O_NOFOLLOW), libc::ELOOP);
        fails(symlink(c"x", c"dangling"), libc::EEXIST);
        fails(symlink(c"", c"empty"), libc::ENOENT);
    });
}

#[test]
fn symbolic_link_loops_give_eloop() {
    isolated(|| unsafe {
        ok(symlink(c"b", c"a"));
        ok(symlink(c"a", c"b"));
        fails(open(c"a", libc::O_RDONLY), libc::ELOOP);
        fails(open(c"a/x", libc::O_RDONLY), libc::ELOOP);
        file(c"l0", b"x");
        for n in 1..=41 {
            std::os::unix::fs::symlink(format!("l{}", n - 1), format!("l{n}")).unwrap();
        }
        ok(open(c"l40", libc::O_RDONLY));
        fails(open(c"l41", libc::O_RDONLY), libc::ELOOP);
    });
}

#[test]
fn readlink_cuts_without_a_zero() {
    isolated(|| unsafe {
        ok(symlink(c"target", c"l"));
        let mut buffer = [b'#'; 8];
        let at = buffer.as_mut_ptr().cast();
        assert_eq!(libc::readlink(c"l".as_ptr(), at, 3), 3);
        assert_eq!(&buffer[..4], b"tar#");
        assert_eq!(libc::readlink(c"l".as_ptr(), at, 8), 6);
        assert_eq!(fs::symlink_metadata("l").unwrap().size(), 6);
        fails(libc::readlink(c".".as_ptr(), at, 8), libc::EINVAL);
        fails(libc::readlink(c"l".as_ptr(), at, 0), libc::EINVAL);
        fails(libc::readlink(c"missing".as_ptr(), at, 8), libc::ENOENT);
    });
}

#[test]
fn unlink_and_rmdir_errors() {
    isolated(|| unsafe {
        file(c"f", b"");
        ok(mkdir(c"d"));
        ok(mkdir(c"d/sub"));
        let unlink = |path: &CStr| libc::unlink(path.as_ptr());
        let rmdir = |path: &CStr| libc::rmdir(path.as_ptr());
        fails(unlink(c"d"), libc::EISDIR);
        fails(unlink(c"missing"), libc::ENOENT);
        fails(unlink(c"f/"), libc::ENOTDIR);
        fails(rmdir(c"f"), libc::ENOTDIR);
        fails(rmdir(c"d"), libc::ENOTEMPTY);
        fails(rmdir(c"d/sub/."), libc::EINVAL);
        fails(rmdir(c"d/sub/.."), libc::ENOTEMPTY);
        fails(rmdir(c"missing"), libc::ENOENT);
        fails(rmdir(c"/"), libc::EBUSY);
        fails(libc::unlinkat(libc::AT_FDCWD, c"f".as_ptr(), 0x4000), libc::EINVAL);
        fails(libc::unlinkat(libc::AT_FDCWD, c"f".as_ptr(), libc::AT_REMOVEDIR), libc::ENOTDIR);
        ok(symlink(c"d/sub", c"s"));
        fails(rmdir(c"s"), libc::ENOTDIR);
        ok(rmdir(c"d/sub/"));
        ok(unlink(c"s"));
    });
}

#[test]
fn mkdir_errors_and_mode() {
    isolated(|| unsafe {
        file(c"f", b"");
        ok(mkdir(c"d"));
        fails(mkdir(c"d"), libc::EEXIST);
        fails(mkdir(c"f"), libc::EEXIST);
        fails(mkdir(c"."), libc::EEXIST);
        fails(mkdir(c"/"), libc::EEXIST);
        fails(mkdir(c"f/x"), libc::ENOTDIR);
        fails(mkdir(c"missing/x"), libc::ENOENT);
        fails(mkdir(c""), libc::ENOENT);
        ok(mkdir(c"slash/"));
        libc::umask(0o027);
        ok(libc::mkdir(c"m".as_ptr(), 0o1777));
        assert_eq!(stat(c"m").st_mode & 0o7777, 0o1750);
    });
}

#[test]
fn removed_working_directory() {
    isolated(|| unsafe {
        ok(mkdir(c"d"));
        ok(libc::chdir(c"d".as_ptr()));
        ok(libc::rmdir(c"../d".as_ptr()));
        fails(libc::syscall(libc::SYS_getcwd, [0u8; 4096].as_mut_ptr(), 4096), libc::ENOENT);
        fails(open(c"x", libc::O_CREAT | libc::O_RDWR), libc::ENOENT);
        ok(libc::chdir(c"..".as_ptr()));
    });
}

#[test]
fn too_long_names_and_paths() {
    isolated(|| unsafe {
        file(&long_name(255), b"x");
        fails(open(&long_name(256), libc::O_RDONLY), libc::ENAMETOOLONG);
        let path = |length: usize| CString::new("./".repeat(length / 2) + &"f"[..length % 2]).unwrap();
        file(c"f", b"x");
        ok(open(&path(4095), libc::O_RDONLY));
        fails(open(&path(4097), libc::O_RDONLY), libc::ENAMETOOLONG);
        fails(mkdir(&long_name(256)), libc::ENAMETOOLONG);
        fails(symlink(&path(4097), c"l"), libc::ENAMETOOLONG);
    });
}

#[test]
fn names_are_bytes() {
    isolated(|| {
        let name = c"\xff \t\n\\";
        file_bytes(name);
        let entry = fs::read_dir(".").unwrap().next().unwrap().unwrap();
        assert_eq!(entry.file_name().as_encoded_bytes(), name.to_bytes());
        assert_eq!(stat(name).st_size, 0);
    });
}

fn file_bytes(path: &CStr) {
    close(ok(open(path, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR)));
}

#[test]
fn dots_and_slashes_in_paths() {
    isolated(|| unsafe {
        ok(mkdir(c"d"));
        file(c"d/f", b"x");
        for path in [c"d//f", c"./d/./f", c"d/../d/f", c"d/../../../../../../../../../../tmp/../proc/self/cwd/d/f"] {
            assert_eq!(stat(path).st_size, 1);
        }
        assert_eq!(stat(c"/..").st_ino, stat(c"/").st_ino);
        fails(open(c"d/f/..", libc::O_RDONLY), libc::ENOTDIR);
        fails(open(c"d/f/.", libc::O_RDONLY), libc::ENOTDIR);
        fails(open(c"d/missing/..", libc::O_RDONLY), libc::ENOENT);
    });
}

#[test]
fn at_calls_start_from_their_directory() {
    isolated(|| unsafe {
        ok(mkdir(c"d"));
        let fd = ok(open(c"d", libc::O_RDONLY | libc::O_DIRECTORY));
        let new = ok(libc::openat(fd, c"f".as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600));
        assert_eq!(stat(c"d/f").st_ino, fstat(new).st_ino);
        ok(libc::mkdirat(fd, c"sub".as_ptr(), 0o700));
        ok(libc::renameat(fd, c"f".as_ptr(), libc::AT_FDCWD, c"g".as_ptr()));
        fails(libc::openat(new, c"x".as_ptr(), libc::O_RDONLY), libc::ENOTDIR);
        fails(libc::openat(77, c"x".as_ptr(), libc::O_RDONLY), libc::EBADF);
        ok(libc::openat(77, c"/".as_ptr(), libc::O_RDONLY));
        ok(libc::unlinkat(fd, c"sub".as_ptr(), libc::AT_REMOVEDIR));
    });
}

unsafe fn openat2(path: &CStr, flags: c_int, resolve: u64) -> c_long {
    let how = [flags as u64, 0, resolve];
    unsafe { libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, path.as_ptr(), how.as_ptr(), 24) }
}

#[test]
fn openat2_limits_the_walk() {
    isolated(|| unsafe {
        ok(mkdir(c"d"));
        file(c"d/f", b"x");
        ok(symlink(c"f", c"d/l"));
        ok(symlink(c"/etc", c"d/out"));
        ok(openat2(c"d/f", libc::O_RDONLY, libc::RESOLVE_BENEATH));
        fails(openat2(c"../x", libc::O_RDONLY, libc::RESOLVE_BENEATH), libc::EXDEV);
        fails(openat2(c"/", libc::O_RDONLY, libc::RESOLVE_BENEATH), libc::EXDEV);
        fails(openat2(c"d/out", libc::O_RDONLY, libc::RESOLVE_BENEATH), libc::EXDEV);
        fails(openat2(c"d/l", libc::O_RDONLY, libc::RESOLVE_NO_SYMLINKS), libc::ELOOP);
        ok(openat2(c"/d/../../d/f", libc::O_RDONLY, libc::RESOLVE_IN_ROOT));
        fails(openat2(c"d/out", libc::O_RDONLY, libc::RESOLVE_IN_ROOT), libc::ENOENT);
        fails(openat2(c"/proc/self/exe", libc::O_RDONLY, libc::RESOLVE_NO_MAGICLINKS), libc::ELOOP);
        fails(openat2(c"/proc/self", libc::O_RDONLY, libc::RESOLVE_NO_XDEV), libc::EXDEV);
    });
}

#[test]
fn openat2_checks_its_structure() {
    isolated(|| unsafe {
        fails(openat2(c".", libc::O_RDONLY, 0x8000), libc::EINVAL);
        fails(openat2(c".", 1 << 30, 0), libc::EINVAL);
        let how = [0u64, 0, 0, 1];
        let raw = |size: usize| libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, c".".as_ptr(), how.as_ptr(), size);
        fails(raw(16), libc::EINVAL);
        fails(raw(32), libc::E2BIG);
        let mode = [0u64, 0o600, 0];
        let result = libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, c".".as_ptr(), mode.as_ptr(), 24);
        fails(result, libc::EINVAL);
    });
}

/// All names of a directory by `getdents64` with a small buffer, with `each` called after every part.
unsafe fn names(fd: c_int, mut each: impl FnMut(&[String])) -> Vec<String> {
    let mut all = Vec::new();
    let mut buffer = [0u8; 1000];
    loop {
        let count = ok(unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len()) }) as usize;
        if count == 0 {
            return all;
        }
        let (mut at, start) = (0, all.len());
        while at < count {
            let length = u16::from_ne_bytes([buffer[at + 16], buffer[at + 17]]) as usize;
            let name = CStr::from_bytes_until_nul(&buffer[at + 19..at + length]).unwrap();
            all.push(name.to_str().unwrap().to_owned());
            at += length;
        }
        each(&all[start..]);
    }
}

#[test]
fn getdents_gives_every_name_of_thousands_once() {
    isolated(|| unsafe {
        ok(mkdir(c"d"));
        let expected: BTreeSet<String> = (0..5000).map(|n| format!("name-{n}")).collect();
        expected.iter().for_each(|name| drop(fs::File::create(format!("d/{name}")).unwrap()));
        let fd = ok(open(c"d", libc::O_RDONLY));
        let found = names(fd, |_| ());
        assert_eq!(found.len(), 5002);
        let found: BTreeSet<String> = found.into_iter().filter(|name| !name.starts_with('.')).collect();
        assert_eq!(found, expected);
        assert!(names(fd, |_| ()).is_empty());
        ok(libc::lseek(fd, 0, libc::SEEK_SET));
        assert_eq!(names(fd, |_| ()).len(), 5002);
    });
}

#[test]
fn getdents_while_deleting_misses_nothing() {
    isolated(|| unsafe {
        ok(mkdir(c"d"));
        (0..1000).for_each(|n| drop(fs::File::create(format!("d/{n}")).unwrap()));
        let fd = ok(open(c"d", libc::O_RDONLY));
        names(fd, |part| {
            part.iter()
                .filter(|name| !name.starts_with('.'))
                .for_each(|name| fs::remove_file(format!("d/{name}")).unwrap());
        });
        ok(libc::rmdir(c"d".as_ptr()));
        fails(libc::syscall(libc::SYS_getdents64, fd, [0u8; 100].as_mut_ptr(), 100), libc::ENOENT);
    });
}

#[test]
fn getdents_errors_and_types() {
    isolated(|| unsafe {
        let getdents = |fd: c_int, size: usize| libc::syscall(libc::SYS_getdents64, fd, [0u8; 1000].as_mut_ptr(), size);
        fails(getdents(open_new(c"f"), 1000), libc::ENOTDIR);
        fails(getdents(ok(open(c".", libc::O_RDONLY)), 8), libc::EINVAL);
        fails(getdents(77, 1000), libc::EBADF);
        ok(mkdir(c"d"));
        ok(symlink(c"x", c"l"));
        ok(libc::mkfifo(c"p".as_ptr(), 0o600));
        for entry in fs::read_dir(".").unwrap() {
            let entry = entry.unwrap();
            let (by_entry, by_stat) = (entry.file_type().unwrap(), fs::symlink_metadata(entry.path()).unwrap());
            assert_eq!(by_entry, by_stat.file_type());
            use std::os::unix::fs::DirEntryExt;
            assert_eq!(entry.ino(), by_stat.ino());
        }
    });
}

#[test]
fn stat_fields_of_a_new_file() {
    isolated(|| unsafe {
        let fd = ok(libc::open(c"f".as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o666));
        write(fd, &[1; 5000]);
        let stat = stat(c"f");
        assert_eq!(stat.st_mode, libc::S_IFREG | 0o644);
        assert_eq!((stat.st_nlink, stat.st_uid, stat.st_gid, stat.st_size), (1, 0, 0, 5000));
        assert!(stat.st_blksize >= 512 && stat.st_ino != 0);
        assert!(stat.st_mtime > 1_600_000_000 && stat.st_ctime >= stat.st_mtime);
        let mut other: libc::stat = std::mem::zeroed();
        fails(libc::stat(c"missing".as_ptr(), &mut other), libc::ENOENT);
        fails(libc::stat(c"".as_ptr(), &mut other), libc::ENOENT);
        fails(libc::stat(c"f/".as_ptr(), &mut other), libc::ENOTDIR);
        fails(libc::fstat(77, &mut other), libc::EBADF);
        ok(libc::fstatat(fd, c"".as_ptr(), &mut other, libc::AT_EMPTY_PATH));
        assert_eq!(other.st_ino, stat.st_ino);
    });
}

#[test]
fn statx_agrees_with_stat() {
    isolated(|| unsafe {
        file(c"f", b"hello");
        let (stat, mut statx): (_, libc::statx) = (stat(c"f"), std::mem::zeroed());
        let at = libc::AT_FDCWD;
        ok(libc::statx(at, c"f".as_ptr(), 0, libc::STATX_BASIC_STATS, &mut statx));
        assert_eq!(statx.stx_mask & libc::STATX_BASIC_STATS, libc::STATX_BASIC_STATS);
        assert_eq!((statx.stx_ino, statx.stx_size, statx.stx_nlink), (stat.st_ino, 5, 1));
        assert_eq!(u32::from(statx.stx_mode), stat.st_mode);
        assert_eq!((statx.stx_mtime.tv_sec, i64::from(statx.stx_mtime.tv_nsec)), (stat.st_mtime, stat.st_mtime_nsec));
        assert_eq!(libc::makedev(statx.stx_dev_major, statx.stx_dev_minor), stat.st_dev);
        fails(libc::statx(at, c"f".as_ptr(), 0x10_0000, 0, &mut statx), libc::EINVAL);
        fails(libc::statx(at, c"f".as_ptr(), 0, 0x8000_0000, &mut statx), libc::EINVAL);
        fails(libc::statx(at, c"missing".as_ptr(), 0, 0, &mut statx), libc::ENOENT);
    });
}

#[test]
fn utimensat_sets_times() {
    isolated(|| unsafe {
        file(c"f", b"");
        let time = |sec, nsec| libc::timespec { tv_sec: sec, tv_nsec: nsec };
        let set = |times: [libc::timespec; 2]| libc::utimensat(libc::AT_FDCWD, c"f".as_ptr(), times.as_ptr(), 0);
        ok(set([time(1000, 5), time(2000, 6)]));
        let now = stat(c"f");
        assert_eq!((now.st_atime, now.st_atime_nsec, now.st_mtime, now.st_mtime_nsec), (1000, 5, 2000, 6));
        assert!(now.st_ctime > 1_600_000_000);
        ok(set([time(0, libc::UTIME_OMIT), time(0, libc::UTIME_NOW)]));
        assert_eq!(stat(c"f").st_atime, 1000);
        assert!(stat(c"f").st_mtime > 1_600_000_000);
        fails(set([time(0, 1_000_000_000), time(0, 0)]), libc::EINVAL);
        fails(libc::utimensat(libc::AT_FDCWD, c"missing".as_ptr(), ptr::null(), 0), libc::ENOENT);
    });
}

#[test]
fn writing_and_changing_move_the_times() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        let old = [libc::timespec { tv_sec: 1000, tv_nsec: 0 }; 2];
        ok(libc::futimens(fd, old.as_ptr()));
        write(fd, b"x");
        assert!(fstat(fd).st_mtime > 1000);
        ok(libc::futimens(fd, old.as_ptr()));
        ok(libc::fchmod(fd, 0o600));
        assert_eq!(fstat(fd).st_mtime, 1000);
        ok(mkdir(c"d"));
        ok(libc::utimensat(libc::AT_FDCWD, c"d".as_ptr(), old.as_ptr(), 0));
        file(c"d/f", b"");
        assert!(stat(c"d").st_mtime > 1000);
    });
}

#[test]
fn chmod_and_umask() {
    isolated(|| unsafe {
        file(c"f", b"");
        ok(libc::chmod(c"f".as_ptr(), 0o4751));
        assert_eq!(stat(c"f").st_mode & 0o7777, 0o4751);
        assert_eq!(libc::umask(0o077), 0o022);
        close(open_new(c"g"));
        assert_eq!(stat(c"g").st_mode & 0o777, 0o600);
        assert_eq!(libc::umask(0o7777), 0o077);
        assert_eq!(libc::umask(0), 0o777);
        fails(libc::chmod(c"missing".as_ptr(), 0o600), libc::ENOENT);
        as_user(1234, || fails(libc::chmod(c"f".as_ptr(), 0o777), libc::EPERM));
    });
}

#[test]
fn chown_rules() {
    isolated(|| unsafe {
        file(c"f", b"");
        ok(libc::chmod(c"f".as_ptr(), 0o6755));
        ok(libc::chown(c"f".as_ptr(), 1234, u32::MAX));
        let now = stat(c"f");
        assert_eq!((now.st_uid, now.st_gid, now.st_mode & 0o7777), (1234, 0, 0o755));
        as_user(1234, || {
            fails(libc::chown(c"f".as_ptr(), 5678, u32::MAX), libc::EPERM);
            fails(libc::chown(c"f".as_ptr(), u32::MAX, 5678), libc::EPERM);
            ok(libc::chown(c"f".as_ptr(), u32::MAX, 1234));
            ok(libc::chmod(c"f".as_ptr(), 0o600));
        });
        ok(symlink(c"f", c"l"));
        ok(libc::lchown(c"l".as_ptr(), 77, 88));
        assert_eq!((fs::symlink_metadata("l").unwrap().uid(), stat(c"f").st_uid), (77, 1234));
    });
}

#[test]
fn permissions_for_another_user() {
    isolated(|| unsafe {
        file(c"secret", b"x");
        ok(libc::chmod(c"secret".as_ptr(), 0o640));
        ok(mkdir(c"closed"));
        file(c"closed/f", b"x");
        ok(libc::chmod(c"closed".as_ptr(), 0o700));
        ok(mkdir(c"sticky"));
        file(c"sticky/f", b"x");
        ok(libc::chmod(c"sticky".as_ptr(), 0o1777));
        as_user(1234, || {
            fails(open(c"secret", libc::O_RDONLY), libc::EACCES);
            fails(open(c"closed/f", libc::O_RDONLY), libc::EACCES);
            fails(open(c"closed", libc::O_RDONLY), libc::EACCES);
            fails(libc::chdir(c"closed".as_ptr()), libc::EACCES);
            fails(open(c"new", libc::O_CREAT | libc::O_RDWR), libc::EACCES);
            fails(libc::unlink(c"secret".as_ptr()), libc::EACCES);
            fails(libc::unlink(c"sticky/f".as_ptr()), libc::EPERM);
            fails(rename(c"sticky/f", c"sticky/g"), libc::EPERM);
            file(c"sticky/own", b"x");
            ok(libc::unlink(c"sticky/own".as_ptr()));
        });
        ok(open(c"closed/f", libc::O_RDWR));
    });
}

#[test]
fn group_permission_counts_before_others() {
    isolated(|| unsafe {
        file(c"f", b"x");
        ok(libc::chown(c"f".as_ptr(), 1, 77));
        ok(libc::chmod(c"f".as_ptr(), 0o604));
        in_child(|| {
            ok(libc::setgroups(1, [77].as_ptr()));
            ok(libc::setresgid(5, 5, 5));
            ok(libc::setresuid(5, 5, 5));
            fails(open(c"f", libc::O_RDONLY), libc::EACCES);
        });
        as_user(5, || close(ok(open(c"f", libc::O_RDONLY))));
    });
}

#[test]
fn set_group_directory_passes_its_group() {
    isolated(|| unsafe {
        ok(mkdir(c"d"));
        ok(libc::chown(c"d".as_ptr(), 0, 77));
        ok(libc::chmod(c"d".as_ptr(), 0o2755));
        file(c"d/f", b"");
        ok(mkdir(c"d/sub"));
        assert_eq!((stat(c"d/f").st_gid, stat(c"d/sub").st_gid), (77, 77));
        assert_ne!(stat(c"d/sub").st_mode & 0o2000, 0);
    });
}

#[test]
fn access_asks_for_the_real_user() {
    isolated(|| unsafe {
        file(c"f", b"");
        ok(libc::chmod(c"f".as_ptr(), 0o600));
        let access = |mode| libc::access(c"f".as_ptr(), mode);
        ok(access(libc::R_OK | libc::W_OK));
        fails(access(libc::X_OK), libc::EACCES);
        fails(access(8), libc::EINVAL);
        fails(libc::access(c"missing".as_ptr(), libc::F_OK), libc::ENOENT);
        in_child(|| {
            ok(libc::setresuid(1234, 0, 0));
            ok(access(libc::F_OK));
            fails(access(libc::R_OK), libc::EACCES);
            let effective =
                |flags: c_int| libc::syscall(libc::SYS_faccessat2, libc::AT_FDCWD, c"f".as_ptr(), libc::R_OK, flags);
            ok(effective(libc::AT_EACCESS));
            fails(effective(0x8000), libc::EINVAL);
        });
    });
}

#[test]
fn extended_attributes() {
    isolated(|| unsafe {
        file(c"f", b"");
        let set = |name: &CStr, value: &[u8], flags| {
            libc::setxattr(c"f".as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
        };
        let get = |name: &CStr, buffer: &mut [u8]| {
            libc::getxattr(c"f".as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        };
        ok(set(c"user.a", b"value", 0));
        assert_eq!(ok(get(c"user.a", &mut [])), 5);
        let mut buffer = [0; 9];
        assert_eq!(ok(get(c"user.a", &mut buffer)), 5);
        assert_eq!(&buffer[..5], b"value");
        fails(get(c"user.a", &mut [0; 2]), libc::ERANGE);
        fails(get(c"user.b", &mut []), libc::ENODATA);
        fails(set(c"user.a", b"", libc::XATTR_CREATE), libc::EEXIST);
        fails(set(c"user.b", b"", libc::XATTR_REPLACE), libc::ENODATA);
        fails(set(c"other.x", b"", 0), libc::EOPNOTSUPP);
        let mut list = [0u8; 64];
        let count = ok(libc::listxattr(c"f".as_ptr(), list.as_mut_ptr().cast(), 64)) as usize;
        assert!(list[..count].split(|byte| *byte == 0).any(|name| name == b"user.a"));
        ok(libc::removexattr(c"f".as_ptr(), c"user.a".as_ptr()));
        fails(libc::removexattr(c"f".as_ptr(), c"user.a".as_ptr()), libc::ENODATA);
        ok(symlink(c"f", c"l"));
        let none = ptr::null();
        fails(libc::lsetxattr(c"l".as_ptr(), c"user.a".as_ptr(), none, 0, 0), libc::EPERM);
    });
}

#[test]
fn working_directory() {
    isolated(|| unsafe {
        let start = std::env::current_dir().unwrap();
        ok(mkdir(c"d"));
        ok(symlink(c"d", c"l"));
        ok(libc::chdir(c"l".as_ptr()));
        assert_eq!(std::env::current_dir().unwrap(), start.join("d"));
        let fd = ok(open(c"..", libc::O_RDONLY));
        ok(libc::fchdir(fd));
        assert_eq!(std::env::current_dir().unwrap(), start);
        assert_eq!(fs::read_link("/proc/self/cwd").unwrap(), start);
        file(c"f", b"");
        fails(libc::chdir(c"f".as_ptr()), libc::ENOTDIR);
        fails(libc::chdir(c"missing".as_ptr()), libc::ENOENT);
        fails(libc::fchdir(ok(open(c"f", libc::O_RDONLY))), libc::ENOTDIR);
        fails(libc::syscall(libc::SYS_getcwd, [0u8; 2].as_mut_ptr(), 2), libc::ERANGE);
        let length = ok(libc::syscall(libc::SYS_getcwd, [0u8; 4096].as_mut_ptr(), 4096));
        assert_eq!(length as usize, start.as_os_str().len() + 1);
    });
}

#[test]
fn chroot_confines() {
    isolated(|| unsafe {
        ok(mkdir(c"d"));
        file(c"d/f", b"x");
        ok(symlink(c"/f", c"d/l"));
        in_child(|| {
            ok(libc::chroot(c"d".as_ptr()));
            ok(libc::chdir(c"/".as_ptr()));
            assert_eq!(fs::read("/l").unwrap(), b"x");
            assert_eq!(stat(c"/../../..").st_ino, stat(c"/").st_ino);
            fails(open(c"/etc", libc::O_RDONLY), libc::ENOENT);
            assert_eq!(std::env::current_dir().unwrap().to_str(), Some("/"));
        });
        fails(libc::chroot(c"d/f".as_ptr()), libc::ENOTDIR);
        as_user(1234, || fails(libc::chroot(c"d".as_ptr()), libc::EPERM));
    });
}

#[test]
fn statfs_tells_limits() {
    isolated(|| unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        ok(libc::statfs(c".".as_ptr(), &mut stat));
        assert!(stat.f_bsize >= 512 && stat.f_namelen == 255 && stat.f_type != 0);
        ok(libc::statfs(c"/proc".as_ptr(), &mut stat));
        assert_eq!(stat.f_type, libc::PROC_SUPER_MAGIC);
        fails(libc::statfs(c"missing".as_ptr(), &mut stat), libc::ENOENT);
        fails(libc::fstatfs(77, &mut stat), libc::EBADF);
    });
}

#[test]
fn mknod_makes_files_and_fifos() {
    isolated(|| unsafe {
        ok(libc::mknod(c"f".as_ptr(), libc::S_IFREG | 0o640, 0));
        assert_eq!(stat(c"f").st_mode, libc::S_IFREG | 0o640);
        ok(libc::mknod(c"p".as_ptr(), libc::S_IFIFO | 0o600, 0));
        assert_eq!(stat(c"p").st_mode, libc::S_IFIFO | 0o600);
        fails(libc::mknod(c"p".as_ptr(), libc::S_IFIFO | 0o600, 0), libc::EEXIST);
        fails(libc::mknod(c"d".as_ptr(), libc::S_IFDIR | 0o600, 0), libc::EPERM);
        as_user(1234, || {
            fails(libc::mknod(c"/dev/shm/linux-test-device".as_ptr(), libc::S_IFCHR | 0o600, 0x103), libc::EPERM);
        });
    });
}
