//! Signals on readiness: `O_ASYNC`, `F_SETOWN`, `F_SETSIG`.

use std::mem::zeroed;
use std::ptr;
use std::time::Duration;

use libc::{c_int, c_short};

use crate::common::*;

const F_SETSIG: c_int = 10;
const F_GETSIG: c_int = 11;
const F_SETOWN_EX: c_int = 15;
const F_GETOWN_EX: c_int = 16;
const OWNER_TID: c_int = 0;
const OWNER_PGRP: c_int = 2;
const POLL_IN: c_int = 1;
const POLL_OUT: c_int = 2;
const POLL_HUP: c_int = 6;

/// A realtime signal.
const TOLD: c_int = 40;

unsafe fn set_flags(fd: c_int, flags: c_int) {
    unsafe { ok(libc::fcntl(fd, libc::F_SETFL, flags)) };
}

/// Has the caller told of `fd`, by a blocked signal.
unsafe fn watch(fd: c_int, signal: c_int) {
    unsafe {
        block(&[if signal == 0 { libc::SIGIO } else { signal }]);
        ok(libc::fcntl(fd, libc::F_SETOWN, libc::getpid()));
        ok(libc::fcntl(fd, F_SETSIG, signal));
        set_flags(fd, ok(libc::fcntl(fd, libc::F_GETFL)) | libc::O_ASYNC);
    }
}

/// Code, band and descriptor of the next `signal`; `None` when none is pending.
unsafe fn told(signal: c_int) -> Option<(c_int, c_short, c_int)> {
    unsafe { told_within(signal, Duration::ZERO) }
}

unsafe fn told_within(signal: c_int, time: Duration) -> Option<(c_int, c_short, c_int)> {
    unsafe {
        let mut info: libc::siginfo_t = zeroed();
        if libc::sigtimedwait(&set(&[signal]), &mut info, &timespec(time)) != signal {
            assert_eq!(errno(), libc::EAGAIN);
            return None;
        }
        // si_band is a long at 16, si_fd an int at 24.
        let words = ptr::from_ref(&info).cast::<i64>();
        Some((info.si_code, words.add(2).read() as c_short, words.add(3).cast::<c_int>().read()))
    }
}

const IN: c_short = libc::POLLIN | libc::POLLRDNORM;
const OUT: c_short = libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND;

#[test]
fn pipe_tells_its_reader_and_its_writer() {
    isolated(|| unsafe {
        let (reader, writer) = pipe_with(libc::O_NONBLOCK);
        watch(reader, TOLD);
        assert_eq!(told(TOLD), None);
        assert_eq!(write(writer, b"x"), 1);
        assert_eq!(told(TOLD), Some((POLL_IN, IN, reader)));
        assert_eq!(told(TOLD), None);
        set_flags(reader, libc::O_NONBLOCK);
        assert_eq!(ok(libc::fcntl(reader, libc::F_GETFL)) & libc::O_ASYNC, 0);
        assert_eq!(write(writer, b"x"), 1);
        assert_eq!(told(TOLD), None);
        while write(writer, &[0; PAGE]) > 0 {}
        watch(writer, TOLD);
        read_some(reader, 16 * PAGE);
        assert_eq!(told(TOLD), Some((POLL_OUT, OUT, writer)));
        set_flags(writer, libc::O_NONBLOCK);
        watch(reader, TOLD);
        close(writer);
        assert_eq!(told(TOLD), Some((POLL_IN, IN, reader)), "the end is readiness");
    });
}

#[test]
fn plain_sigio_comes_from_the_kernel() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        watch(reader, 0);
        assert_eq!(write(writer, b"x"), 1);
        let mut info: libc::siginfo_t = zeroed();
        assert_eq!(libc::sigtimedwait(&set(&[libc::SIGIO]), &mut info, &timespec(Duration::ZERO)), libc::SIGIO);
        assert_eq!((info.si_code, info.si_pid()), (libc::SI_KERNEL, 0));
    });
}

#[test]
fn sockets_tell_of_data_room_and_the_end() {
    isolated(|| unsafe {
        let (one, two) = socket_pair(libc::SOCK_STREAM);
        watch(one, TOLD);
        assert_eq!(write(two, b"x"), 1);
        assert_eq!(told(TOLD), Some((POLL_IN, IN, one)));
        assert_eq!(write(one, b"y"), 1);
        read_some(two, 1);
        assert_eq!(told(TOLD), None, "there was room all the time");
        close(two);
        assert_eq!(told(TOLD).map(|told| told.0), Some(POLL_HUP));
    });
}

#[test]
fn tcp_tells_of_connections_and_data() {
    isolated(|| unsafe {
        let listener = ok(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0));
        let mut name: libc::sockaddr_in = zeroed();
        name.sin_family = libc::AF_INET as u16;
        name.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        let mut len = size_of::<libc::sockaddr_in>() as u32;
        ok(libc::bind(listener, (&raw const name).cast(), len));
        ok(libc::listen(listener, 1));
        ok(libc::getsockname(listener, (&raw mut name).cast(), &mut len));
        watch(listener, TOLD);
        let client = ok(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0));
        ok(libc::connect(client, (&raw const name).cast(), len));
        let limit = Duration::from_secs(20);
        assert_eq!(told_within(TOLD, limit), Some((POLL_IN, IN, listener)));
        let server = ok(libc::accept(listener, ptr::null_mut(), ptr::null_mut()));
        watch(server, TOLD);
        assert_eq!(write(client, b"x"), 1);
        assert_eq!(told_within(TOLD, limit), Some((POLL_IN, IN, server)));
    });
}

#[test]
fn terminal_tells_its_foreground_or_who_asked() {
    isolated(|| unsafe {
        let master = ok(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY));
        ok(libc::unlockpt(master));
        let mut number: c_int = -1;
        ok(libc::ioctl(master, libc::TIOCGPTN, &raw mut number));
        let path = std::ffi::CString::new(format!("/dev/pts/{number}")).unwrap();
        let slave = ok(open(&path, libc::O_RDWR | libc::O_NOCTTY));
        block(&[TOLD]);
        ok(libc::fcntl(slave, F_SETSIG, TOLD));
        let mut on: c_int = 1;
        ok(libc::ioctl(slave, libc::FIOASYNC, &raw mut on));
        assert_eq!(ok(libc::fcntl(slave, libc::F_GETOWN)), libc::getpid());
        assert_eq!(write(master, b"line\n"), 5);
        assert_eq!(told_within(TOLD, Duration::from_secs(20)).map(|told| told.2), Some(slave));
        while told(TOLD).is_some() {}
        assert_eq!(read_some(slave, 9), b"line\n");
    });
}

#[test]
fn what_has_no_signals_says_so() {
    isolated(|| unsafe {
        let mut on: c_int = 1;
        let event = ok(libc::eventfd(0, 0));
        for fd in [event, open_new(c"f")] {
            fails(libc::ioctl(fd, libc::FIOASYNC, &raw mut on), libc::ENOTTY);
            let before = ok(libc::fcntl(fd, libc::F_GETFL));
            set_flags(fd, libc::O_ASYNC);
            assert_eq!(ok(libc::fcntl(fd, libc::F_GETFL)) & libc::O_ASYNC, 0, "{before:#o}");
        }
    });
}

#[test]
fn owners_are_remembered_until_they_are_gone() {
    isolated(|| unsafe {
        let (reader, _writer) = pipe();
        assert_eq!(ok(libc::fcntl(reader, libc::F_GETOWN)), 0);
        assert_eq!(ok(libc::fcntl(reader, F_GETSIG)), 0);
        fails(libc::fcntl(reader, F_SETSIG, 65), libc::EINVAL);
        fails(libc::fcntl(reader, libc::F_SETOWN, 0x3fff_ffff), libc::ESRCH);
        let mut owner = [OWNER_TID, libc::gettid()];
        ok(libc::fcntl(reader, F_SETOWN_EX, owner.as_ptr()));
        ok(libc::fcntl(reader, F_GETOWN_EX, owner.as_mut_ptr()));
        assert_eq!(owner, [OWNER_TID, libc::gettid()]);
        owner = [OWNER_PGRP, libc::getpgrp()];
        ok(libc::fcntl(reader, F_SETOWN_EX, owner.as_ptr()));
        assert_eq!(libc::syscall(libc::SYS_fcntl, reader, F_GETOWN_EX, owner.as_mut_ptr()), 0);
        assert_eq!(owner, [OWNER_PGRP, libc::getpgrp()]);
        fails(libc::fcntl(reader, F_SETOWN_EX, [7, 1].as_ptr()), libc::EINVAL);
        let (_, ended) = pipe();
        let pid = child(|| 0);
        ok(libc::fcntl(ended, libc::F_SETOWN, pid));
        wait(pid);
        assert_eq!(ok(libc::fcntl(ended, libc::F_GETOWN)), 0);
    });
}

#[test]
fn nobody_is_told_by_one_who_could_not_send_signals() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        block(&[TOLD]);
        let parent = libc::getpid();
        as_user(1234, || {
            ok(libc::fcntl(reader, libc::F_SETOWN, parent));
            ok(libc::fcntl(reader, F_SETSIG, TOLD));
            set_flags(reader, libc::O_ASYNC);
            assert_eq!(write(writer, b"x"), 1);
        });
        assert_eq!(told(TOLD), None);
        // The same settings in root's name.
        ok(libc::fcntl(reader, libc::F_SETOWN, parent));
        in_child(|| assert_eq!(write(writer, b"x"), 1));
        assert_eq!(told(TOLD), Some((POLL_IN, IN, reader)));
    });
}

#[test]
fn no_signal_after_the_last_close() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        let other = ok(libc::dup(reader));
        let kept = ok(open(c"/proc/self/fd/3", libc::O_RDONLY));
        assert_eq!(reader, 3);
        watch(reader, TOLD);
        close(reader);
        assert_eq!(write(writer, b"x"), 1);
        assert_eq!(told(TOLD).map(|told| told.2), Some(reader), "the descriptor by which it was set");
        close(other);
        assert_eq!(write(writer, b"x"), 1);
        assert_eq!(told(TOLD), None);
        close(kept);
    });
}
