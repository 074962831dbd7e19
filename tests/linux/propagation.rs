//! Shared mounts: what happens on one happens on its peers and slaves.

use std::ffi::CStr;
use std::{fs, ptr};

use libc::c_int;

use crate::common::*;

unsafe fn mount(source: &CStr, at: &CStr, kind: &CStr, flags: u64) -> c_int {
    unsafe { libc::mount(source.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, ptr::null()) }
}

unsafe fn tmpfs(at: &CStr) {
    ok(unsafe { mount(c"none", at, c"tmpfs", 0) });
}

unsafe fn bind(source: &CStr, at: &CStr) {
    ok(unsafe { mount(source, at, c"", libc::MS_BIND) });
}

/// Changes the propagation type.
unsafe fn make(at: &CStr, kind: u64) {
    ok(unsafe { mount(c"none", at, c"", kind) });
}

unsafe fn umount(at: &CStr) -> c_int {
    unsafe { libc::umount2(at.as_ptr(), 0) }
}

fn mkdir(path: &str) {
    fs::create_dir(path).unwrap();
}

/// Whether something is mounted at `path`: its device is not its directory's.
fn is_mounted(path: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    let parent = std::path::Path::new(path).parent().unwrap();
    fs::metadata(path).unwrap().dev() != fs::metadata(parent).unwrap().dev()
}

/// The optional fields of the mount at `path` in this directory.
fn fields(path: &str) -> Vec<String> {
    let at = std::env::current_dir().unwrap().join(path);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == at.to_str()).expect("mounted");
    line.split(' ').skip(6).take_while(|field| *field != "-").map(str::to_owned).collect()
}

/// Runs `body` in a mount namespace of its own, in which everything is private, with directories `a` to `d` on a tmpfs.
fn in_namespace(body: impl FnOnce()) {
    isolated(|| unsafe {
        ok(libc::unshare(libc::CLONE_NEWNS));
        make(c"/", libc::MS_REC | libc::MS_PRIVATE);
        tmpfs(c".");
        let here = std::env::current_dir().unwrap();
        std::env::set_current_dir(here).unwrap();
        ["a", "b", "c", "d"].into_iter().for_each(mkdir);
        body();
    });
}

#[test]
fn mounts_are_private_by_default() {
    in_namespace(|| unsafe {
        tmpfs(c"a");
        mkdir("a/x");
        bind(c"a", c"b");
        assert!(fields("a").is_empty() && fields("b").is_empty());
        tmpfs(c"a/x");
        assert!(!is_mounted("b/x"));
    });
}

#[test]
fn peers_share_what_is_mounted_on_them() {
    in_namespace(|| unsafe {
        tmpfs(c"a");
        mkdir("a/x");
        make(c"a", libc::MS_SHARED);
        bind(c"a", c"b");
        assert!(fields("a")[0].starts_with("shared:"));
        assert_eq!(fields("a"), fields("b"));
        tmpfs(c"b/x");
        file(c"b/x/f", b"");
        assert!(fs::exists("a/x/f").unwrap());
        assert_eq!(fields("a/x"), fields("b/x"), "what was mounted is shared as well");
        mkdir("a/x/y");
        tmpfs(c"a/x/y");
        assert!(is_mounted("b/x/y"));
        // In use in the peer: nothing is unmounted.
        let used = ok(open(c"b/x/y", libc::O_RDONLY));
        fails(umount(c"a/x/y"), libc::EBUSY);
        close(used);
        ok(umount(c"a/x/y"));
        assert!(!is_mounted("b/x/y"));
        ok(libc::umount2(c"b/x".as_ptr(), libc::MNT_DETACH));
        assert!(!is_mounted("a/x"));
    });
}

#[test]
fn slaves_receive_and_do_not_send() {
    in_namespace(|| unsafe {
        tmpfs(c"a");
        ["a/x", "a/y"].into_iter().for_each(mkdir);
        make(c"a", libc::MS_SHARED);
        bind(c"a", c"b");
        make(c"b", libc::MS_SLAVE);
        let shared = fields("a")[0].clone();
        assert_eq!(fields("b"), [shared.replace("shared", "master")]);
        tmpfs(c"a/x");
        assert!(is_mounted("b/x"));
        assert_eq!(fields("b/x"), [fields("a/x")[0].replace("shared", "master")]);
        tmpfs(c"b/y");
        assert!(!is_mounted("a/y"));
        ok(umount(c"a/x"));
        assert!(!is_mounted("b/x"));
        // A slave with peers of its own hands on to them.
        make(c"b", libc::MS_SHARED);
        bind(c"b", c"c");
        assert_eq!(fields("b").len(), 2);
        assert_eq!(fields("b"), fields("c"));
        tmpfs(c"a/x");
        assert!(is_mounted("b/x") && is_mounted("c/x"));
        assert_eq!(fields("b/x"), fields("c/x"));
        // Without its master's group it stays what it is to its peers.
        make(c"a", libc::MS_PRIVATE);
        assert!(fields("a").is_empty());
        assert_eq!((fields("b").len(), fields("c").len()), (1, 1));
        // The only member of a group has nobody to be a slave of.
        tmpfs(c"d");
        make(c"d", libc::MS_SHARED);
        make(c"d", libc::MS_SLAVE);
        assert!(fields("d").is_empty());
    });
}

#[test]
fn only_what_is_seen_through_a_peer_spreads() {
    in_namespace(|| unsafe {
        tmpfs(c"a");
        ["a/x", "a/x/in", "a/out"].into_iter().for_each(mkdir);
        make(c"a", libc::MS_SHARED);
        bind(c"a/x", c"b");
        tmpfs(c"a/out");
        tmpfs(c"a/x/in");
        assert!(is_mounted("b/in"));
        ok(umount(c"b/in"));
        assert!(!is_mounted("a/x/in"));
    });
}

#[test]
fn namespaces_are_peers() {
    in_namespace(|| unsafe {
        tmpfs(c"a");
        ["a/x", "a/y"].into_iter().for_each(mkdir);
        make(c"a", libc::MS_SHARED);
        let (reader, writer) = pipe();
        let (answer, answers) = pipe();
        let other = child(|| {
            ok(libc::unshare(libc::CLONE_NEWNS));
            write(answers, b"1");
            read_some(reader, 1);
            assert!(is_mounted("a/x"));
            tmpfs(c"a/y");
            write(answers, b"2");
            read_some(reader, 1);
            assert!(!is_mounted("a/x"));
            0
        });
        assert_eq!(read_some(answer, 1), b"1");
        tmpfs(c"a/x");
        write(writer, b"x");
        assert_eq!(read_some(answer, 1), b"2");
        assert!(is_mounted("a/y"));
        ok(umount(c"a/x"));
        write(writer, b"x");
        assert_eq!(wait(other), Status::Exited(0));
    });
}

#[test]
fn what_cannot_be_moved_or_bound() {
    in_namespace(|| unsafe {
        tmpfs(c"a");
        ["a/x", "a/y"].into_iter().for_each(mkdir);
        tmpfs(c"a/x");
        make(c"a", libc::MS_SHARED);
        fails(mount(c"a/x", c"b", c"", libc::MS_MOVE), libc::EINVAL);
        make(c"a", libc::MS_PRIVATE);
        ok(mount(c"a/x", c"b", c"", libc::MS_MOVE));
        make(c"b", libc::MS_UNBINDABLE);
        assert_eq!(fields("b"), ["unbindable"]);
        fails(mount(c"b", c"c", c"", libc::MS_BIND), libc::EINVAL);
        make(c"a", libc::MS_SHARED);
        fails(mount(c"b", c"a/x", c"", libc::MS_MOVE), libc::EINVAL);
        make(c"a", libc::MS_PRIVATE);
        ok(mount(c"b", c"a/x", c"", libc::MS_MOVE));
        // A recursive bind leaves out what is unbindable.
        tmpfs(c"a/y");
        ok(mount(c"a", c"d", c"", libc::MS_BIND | libc::MS_REC));
        assert!(is_mounted("d/y") && !is_mounted("d/x"));
        fails(mount(c"none", c"a", c"", libc::MS_SHARED | libc::MS_SLAVE), libc::EINVAL);
        fails(mount(c"none", c"c", c"", libc::MS_SHARED), libc::EINVAL);
    });
}

#[test]
fn what_is_moved_to_a_shared_mount_appears_on_its_peers() {
    in_namespace(|| unsafe {
        tmpfs(c"a");
        mkdir("a/x");
        make(c"a", libc::MS_SHARED);
        bind(c"a", c"b");
        tmpfs(c"c");
        mkdir("c/in");
        tmpfs(c"c/in");
        ok(mount(c"c", c"a/x", c"", libc::MS_MOVE));
        assert!(is_mounted("b/x") && is_mounted("b/x/in"));
        assert_eq!(fields("a/x/in"), fields("b/x/in"));
    });
}

#[test]
fn anonymous_inodes_have_no_type() {
    isolated(|| unsafe {
        let event = ok(libc::eventfd(0, 0));
        let epoll = ok(libc::epoll_create1(0));
        assert_eq!((fstat(event).st_mode, fstat(epoll).st_mode), (0o600, 0o600));
    });
}
