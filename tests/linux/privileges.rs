//! What a file loses when it is changed, and what is not made when no descriptor is free.

use std::ffi::CStr;

use libc::c_int;

use crate::common::*;

unsafe fn mode(path: &CStr) -> u32 {
    stat(path).st_mode & 0o7777
}

/// A file of user and group 1234 with these bits.
unsafe fn owned(path: &CStr, mode: u32) {
    unsafe {
        file(path, b"content");
        ok(libc::chown(path.as_ptr(), 1234, 1234));
        ok(libc::chmod(path.as_ptr(), mode));
    }
}

/// `cap_net_raw` as the kernel stores it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

unsafe fn give_capability(path: &CStr) {
    unsafe {
        let name = c"security.capability";
        ok(libc::setxattr(path.as_ptr(), name.as_ptr(), CAPABILITY.as_ptr().cast(), CAPABILITY.len(), 0));
        assert!(has_capability(path));
    }
}

unsafe fn has_capability(path: &CStr) -> bool {
    unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

#[test]
fn writing_takes_set_id_bits() {
    isolated(|| unsafe {
        owned(c"f", 0o6755);
        ok(libc::chmod(c".".as_ptr(), 0o755));
        as_user(1234, || {
            let fd = ok(open(c"f", libc::O_RDWR));
            assert_eq!(write(fd, b""), 0);
            assert_eq!(mode(c"f"), 0o6755, "nothing was written");
            assert_eq!(write(fd, b"x"), 1);
            assert_eq!(mode(c"f"), 0o755);
            // Given again while it is open.
            ok(libc::fchmod(fd, 0o4711));
            assert_eq!(ok(libc::pwrite(fd, c"x".as_ptr().cast(), 1, 0)), 1);
            assert_eq!(mode(c"f"), 0o711);
            ok(libc::fchmod(fd, 0o4711));
            ok(libc::ftruncate(fd, 3));
            assert_eq!(mode(c"f"), 0o711);
            ok(libc::fchmod(fd, 0o4711));
            ok(libc::fallocate(fd, 0, 0, 100));
            assert_eq!(mode(c"f"), 0o711);
            ok(libc::fchmod(fd, 0o4711));
            close(ok(open(c"f", libc::O_WRONLY | libc::O_TRUNC)));
            assert_eq!(mode(c"f"), 0o711);
            // Without the right to execute set-group-ID is no privilege, for a member of the group.
            ok(libc::fchmod(fd, 0o2644));
            assert_eq!(write(fd, b"x"), 1);
            assert_eq!(mode(c"f"), 0o2644);
        });
    });
}

#[test]
fn the_privileged_keep_set_id_bits_and_others_on_the_same_description_do_not() {
    isolated(|| unsafe {
        owned(c"f", 0o4755);
        let fd = ok(open(c"f", libc::O_RDWR));
        assert_eq!(write(fd, b"x"), 1);
        assert_eq!(mode(c"f"), 0o4755);
        as_user(1234, || assert_eq!(write(fd, b"x"), 1));
        assert_eq!(mode(c"f"), 0o755);
        // Changing the owner takes them whoever does it.
        ok(libc::chmod(c"f".as_ptr(), 0o6755));
        ok(libc::chown(c"f".as_ptr(), u32::MAX, 7));
        assert_eq!(mode(c"f"), 0o755);
    });
}

#[test]
fn every_change_takes_capabilities() {
    isolated(|| unsafe {
        file(c"f", b"content");
        let fd = ok(open(c"f", libc::O_RDWR));
        assert_eq!(write(fd, b"x"), 1);
        give_capability(c"f");
        assert_eq!(write(fd, b"x"), 1);
        assert!(!has_capability(c"f"), "a write, by root");
        give_capability(c"f");
        ok(libc::ftruncate(fd, 2));
        assert!(!has_capability(c"f"), "truncation");
        give_capability(c"f");
        ok(libc::chown(c"f".as_ptr(), 0, 0));
        assert!(!has_capability(c"f"), "an owner");
        give_capability(c"f");
        ok(libc::chmod(c"f".as_ptr(), 0o755));
        assert!(has_capability(c"f"), "permissions are no content");
    });
}

/// Leaves the process without a free descriptor.
unsafe fn use_up() -> c_int {
    unsafe {
        let first = ok(libc::dup(0));
        let limit = libc::rlimit { rlim_cur: first as u64 + 1, rlim_max: 4096 };
        ok(libc::setrlimit(libc::RLIMIT_NOFILE, &limit));
        first
    }
}

#[test]
fn without_a_free_descriptor_nothing_is_made() {
    isolated(|| unsafe {
        let last = use_up();
        fails(open(c"new", libc::O_RDWR | libc::O_CREAT), libc::EMFILE);
        fails(libc::access(c"new".as_ptr(), libc::F_OK), libc::ENOENT);
        file_without_descriptors();
        fails(libc::syscall(libc::SYS_memfd_create, c"m".as_ptr(), 0), libc::EMFILE);
        let mut ends = [-7; 2];
        fails(libc::pipe(ends.as_mut_ptr()), libc::EMFILE);
        assert_eq!(ends, [-7; 2]);
        close(last);
        fails(libc::pipe(ends.as_mut_ptr()), libc::EMFILE);
        assert_eq!(ok(open(c"new", libc::O_RDWR | libc::O_CREAT)), last, "one is free, as before");
    });
}

/// What is there is not truncated, either.
unsafe fn file_without_descriptors() {
    unsafe {
        ok(libc::mknod(c"old".as_ptr(), libc::S_IFREG | 0o644, 0));
        ok(libc::truncate(c"old".as_ptr(), 5));
        fails(open(c"old", libc::O_RDWR | libc::O_TRUNC), libc::EMFILE);
        assert_eq!(stat(c"old").st_size, 5);
    }
}

#[test]
fn without_a_free_descriptor_no_connection_is_taken() {
    isolated(|| unsafe {
        let listener = ok(libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0));
        let mut name: libc::sockaddr_un = std::mem::zeroed();
        name.sun_family = libc::AF_UNIX as u16;
        name.sun_path[0] = b's' as libc::c_char;
        let len = size_of::<libc::sockaddr_un>() as u32;
        ok(libc::bind(listener, (&raw const name).cast(), len));
        ok(libc::listen(listener, 1));
        let client = ok(libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0));
        ok(libc::connect(client, (&raw const name).cast(), len));
        let accept = || libc::accept(listener, std::ptr::null_mut(), std::ptr::null_mut());
        let last = use_up();
        fails(accept(), libc::EMFILE);
        close(last);
        let server = ok(accept());
        assert_eq!(write(client, b"x"), 1);
        assert_eq!(read_some(server, 2), b"x");
    });
}
