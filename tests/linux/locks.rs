//! Locks on files, and `inotify`.

use std::mem::zeroed;

use libc::{c_int, c_short};

use crate::common::*;

unsafe fn lock(fd: c_int, command: c_int, kind: c_int, start: i64, length: i64) -> c_int {
    unsafe {
        let mut lock: libc::flock = zeroed();
        (lock.l_type, lock.l_whence) = (kind as c_short, libc::SEEK_SET as c_short);
        (lock.l_start, lock.l_len) = (start, length);
        libc::fcntl(fd, command, &raw mut lock)
    }
}

/// What stands in the way of a lock: its kind, start, length and holder.
unsafe fn obstacle(fd: c_int, command: c_int, kind: c_int) -> (c_int, i64, i64, c_int) {
    unsafe {
        let mut lock: libc::flock = zeroed();
        lock.l_type = kind as c_short;
        ok(libc::fcntl(fd, command, &raw mut lock));
        (c_int::from(lock.l_type), lock.l_start, lock.l_len, lock.l_pid)
    }
}

#[test]
fn flock_excludes_other_opens() {
    isolated(|| unsafe {
        let first = open_new(c"f");
        let second = ok(open(c"f", libc::O_RDONLY));
        ok(libc::flock(first, libc::LOCK_EX));
        fails(libc::flock(second, libc::LOCK_SH | libc::LOCK_NB), libc::EAGAIN);
        ok(libc::flock(libc::dup(first), libc::LOCK_SH | libc::LOCK_NB));
        ok(libc::flock(second, libc::LOCK_SH | libc::LOCK_NB));
        fails(libc::flock(first, libc::LOCK_EX | libc::LOCK_NB), libc::EAGAIN);
        ok(libc::flock(second, libc::LOCK_UN));
        fails(libc::flock(first, 0), libc::EINVAL);
        fails(libc::flock(77, libc::LOCK_EX), libc::EBADF);
    });
}

#[test]
fn flock_waits_for_the_last_copy() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        ok(libc::flock(fd, libc::LOCK_EX));
        let pid = child(|| {
            close(fd);
            ok(libc::flock(ok(open(c"f", libc::O_RDONLY)), libc::LOCK_EX))
        });
        until_asleep(pid);
        close(fd);
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn posix_locks_conflict_by_range_and_kind() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        ok(lock(fd, libc::F_SETLK, libc::F_WRLCK, 10, 10));
        ok(lock(fd, libc::F_SETLK, libc::F_RDLCK, 30, 0));
        let own = libc::getpid();
        in_child(|| {
            fails(lock(fd, libc::F_SETLK, libc::F_RDLCK, 19, 1), libc::EAGAIN);
            ok(lock(fd, libc::F_SETLK, libc::F_WRLCK, 0, 10));
            ok(lock(fd, libc::F_SETLK, libc::F_WRLCK, 20, 10));
            ok(lock(fd, libc::F_SETLK, libc::F_RDLCK, 1000, 5));
            fails(lock(fd, libc::F_SETLK, libc::F_WRLCK, 1000, 5), libc::EAGAIN);
            assert_eq!(obstacle(fd, libc::F_GETLK, libc::F_WRLCK), (libc::F_WRLCK, 10, 10, own));
        });
        assert_eq!(obstacle(fd, libc::F_GETLK, libc::F_WRLCK).0, libc::F_UNLCK, "own locks are no obstacle");
    });
}

#[test]
fn posix_locks_split_and_upgrade() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        ok(lock(fd, libc::F_SETLK, libc::F_WRLCK, 0, 100));
        ok(lock(fd, libc::F_SETLK, libc::F_UNLCK, 40, 20));
        in_child(|| {
            ok(lock(fd, libc::F_SETLK, libc::F_WRLCK, 40, 20));
            fails(lock(fd, libc::F_SETLK, libc::F_WRLCK, 39, 1), libc::EAGAIN);
            fails(lock(fd, libc::F_SETLK, libc::F_WRLCK, 60, 1), libc::EAGAIN);
        });
    });
}

#[test]
fn closing_any_descriptor_drops_posix_locks() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        ok(lock(fd, libc::F_SETLK, libc::F_WRLCK, 0, 0));
        close(ok(open(c"f", libc::O_RDONLY)));
        in_child(|| _ = ok(lock(fd, libc::F_SETLK, libc::F_WRLCK, 0, 0)));
    });
}

#[test]
fn posix_lock_errors() {
    isolated(|| unsafe {
        file(c"f", b"");
        let (reading, writing) = (ok(open(c"f", libc::O_RDONLY)), ok(open(c"f", libc::O_WRONLY)));
        fails(lock(reading, libc::F_SETLK, libc::F_WRLCK, 0, 0), libc::EBADF);
        fails(lock(writing, libc::F_SETLK, libc::F_RDLCK, 0, 0), libc::EBADF);
        fails(lock(writing, libc::F_SETLK, 99, 0, 0), libc::EINVAL);
        fails(lock(writing, libc::F_SETLK, libc::F_WRLCK, -1, 1), libc::EINVAL);
        fails(lock(77, libc::F_SETLK, libc::F_WRLCK, 0, 0), libc::EBADF);
        ok(lock(writing, libc::F_SETLK, libc::F_WRLCK, 10, -5));
    });
}

#[test]
fn blocking_lock_is_granted_or_interrupted() {
    isolated(|| unsafe {
        extern "C" fn nothing(_: c_int) {}
        let fd = open_new(c"f");
        ok(lock(fd, libc::F_SETLK, libc::F_WRLCK, 0, 0));
        let waiting = child(|| ok(lock(fd, libc::F_SETLKW, libc::F_RDLCK, 0, 0)));
        let interrupted = child(|| {
            handle(libc::SIGUSR1, nothing, 0);
            fails(lock(fd, libc::F_SETLKW, libc::F_WRLCK, 0, 0), libc::EINTR);
            0
        });
        until_asleep(waiting);
        until_asleep(interrupted);
        libc::kill(interrupted, libc::SIGUSR1);
        assert_eq!(wait(interrupted), Status::Exited(0));
        ok(lock(fd, libc::F_SETLK, libc::F_UNLCK, 0, 0));
        assert_eq!(wait(waiting), Status::Exited(0));
    });
}

#[test]
fn deadlock_is_refused() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        let (told, tell) = pipe();
        ok(lock(fd, libc::F_SETLK, libc::F_WRLCK, 0, 1));
        let pid = child(|| {
            ok(lock(fd, libc::F_SETLK, libc::F_WRLCK, 1, 1));
            write(tell, b"x");
            ok(lock(fd, libc::F_SETLKW, libc::F_WRLCK, 0, 1))
        });
        read_some(told, 1);
        until_asleep(pid);
        fails(lock(fd, libc::F_SETLKW, libc::F_WRLCK, 1, 1), libc::EDEADLK);
        ok(lock(fd, libc::F_SETLK, libc::F_UNLCK, 0, 1));
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn description_locks_belong_to_the_open_file() {
    isolated(|| unsafe {
        let (first, second) = (open_new(c"f"), ok(open(c"f", libc::O_RDWR)));
        ok(lock(first, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0));
        fails(lock(second, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0), libc::EAGAIN);
        fails(lock(second, libc::F_SETLK, libc::F_WRLCK, 0, 0), libc::EAGAIN);
        assert_eq!(obstacle(second, libc::F_OFD_GETLK, libc::F_WRLCK), (libc::F_WRLCK, 0, 0, -1));
        in_child(|| _ = ok(lock(first, libc::F_OFD_SETLK, libc::F_RDLCK, 0, 0)));
        ok(lock(second, libc::F_OFD_SETLK, libc::F_RDLCK, 0, 0));
        close(ok(open(c"f", libc::O_RDONLY)));
        fails(lock(second, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0), libc::EAGAIN);
        close(first);
        ok(lock(second, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0));
    });
}

/// The events that are waiting: watch, mask, cookie, name.
fn events(fd: c_int) -> Vec<(c_int, u32, u32, String)> {
    let bytes = read_some(fd, 4096);
    let (mut events, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let word = |index: usize| u32::from_ne_bytes(bytes[at + 4 * index..][..4].try_into().unwrap());
        let length = word(3) as usize;
        let name = bytes[at + 16..at + 16 + length].split(|byte| *byte == 0).next().unwrap();
        events.push((word(0) as c_int, word(1), word(2), String::from_utf8(name.to_vec()).unwrap()));
        at += 16 + length;
    }
    events
}

#[test]
fn inotify_tells_what_happens_in_a_directory() {
    isolated(|| unsafe {
        ok(libc::mkdir(c"d".as_ptr(), 0o755));
        let fd = ok(libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC));
        let mask = libc::IN_CREATE | libc::IN_MODIFY | libc::IN_MOVE | libc::IN_DELETE | libc::IN_CLOSE_WRITE;
        let watch = ok(libc::inotify_add_watch(fd, c"d".as_ptr(), mask));
        fails(read(fd, &mut [0; 100]), libc::EAGAIN);
        let new = ok(open(c"d/f", libc::O_CREAT | libc::O_WRONLY));
        write(new, b"x");
        close(new);
        ok(libc::rename(c"d/f".as_ptr(), c"d/g".as_ptr()));
        ok(libc::unlink(c"d/g".as_ptr()));
        let events = events(fd);
        let kinds: Vec<(u32, &str)> = events.iter().map(|event| (event.1, event.3.as_str())).collect();
        assert_eq!(
            kinds,
            [
                (libc::IN_CREATE, "f"),
                (libc::IN_MODIFY, "f"),
                (libc::IN_CLOSE_WRITE, "f"),
                (libc::IN_MOVED_FROM, "f"),
                (libc::IN_MOVED_TO, "g"),
                (libc::IN_DELETE, "g")
            ]
        );
        assert!(events.iter().all(|event| event.0 == watch));
        assert!(events[3].2 != 0 && events[3].2 == events[4].2);
    });
}

#[test]
fn inotify_watch_ends_with_its_file() {
    isolated(|| unsafe {
        file(c"f", b"");
        let fd = ok(libc::inotify_init1(libc::IN_NONBLOCK));
        let watch = ok(libc::inotify_add_watch(fd, c"f".as_ptr(), libc::IN_DELETE_SELF));
        ok(libc::unlink(c"f".as_ptr()));
        let kinds: Vec<u32> = events(fd).iter().map(|event| event.1).collect();
        assert_eq!(kinds, [libc::IN_DELETE_SELF, libc::IN_IGNORED]);
        fails(libc::inotify_rm_watch(fd, watch), libc::EINVAL);
        fails(libc::inotify_add_watch(fd, c"f".as_ptr(), libc::IN_OPEN), libc::ENOENT);
        fails(libc::inotify_add_watch(fd, c".".as_ptr(), 0), libc::EINVAL);
        fails(libc::inotify_init1(1), libc::EINVAL);
        fails(read(fd, &mut [0; 100]), libc::EAGAIN);
    });
}

#[test]
fn proc_locks_tells_of_holders_and_waiters() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        let ino = fstat(fd).st_ino;
        let own = libc::getpid();
        ok(lock(fd, libc::F_SETLK, libc::F_WRLCK, 10, 10));
        ok(lock(fd, libc::F_OFD_SETLK, libc::F_RDLCK, 100, 0));
        ok(libc::flock(fd, libc::LOCK_EX));
        let pid = child(|| lock(fd, libc::F_SETLKW, libc::F_RDLCK, 15, 1));
        until_asleep(pid);
        let text = std::fs::read_to_string("/proc/locks").unwrap();
        // Without number and device.
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| line.contains(&format!(":{ino} ")))
            .map(|line| {
                let rest = line.split_once(": ").unwrap().1;
                let mut words: Vec<&str> = rest.split_whitespace().collect();
                words.retain(|word| !word.ends_with(&format!(":{ino}")));
                words.join(" ")
            })
            .collect();
        lines.sort();
        let mut expected = [
            format!("-> POSIX ADVISORY READ {pid} 15 15"),
            format!("FLOCK ADVISORY WRITE {own} 0 EOF"),
            "OFDLCK ADVISORY READ -1 100 EOF".to_owned(),
            format!("POSIX ADVISORY WRITE {own} 10 19"),
        ];
        expected.sort();
        assert_eq!(lines, expected, "{text}");
        ok(lock(fd, libc::F_SETLK, libc::F_UNLCK, 0, 0));
        assert_eq!(wait(pid), Status::Exited(0));
    });
}
