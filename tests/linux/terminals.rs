//! Pseudoterminals: the line discipline and job control.

use std::ffi::{CStr, CString};
use std::mem::zeroed;

use libc::c_int;

use crate::common::*;

/// A master and its terminal, which is no one's controlling terminal.
unsafe fn pty() -> (c_int, c_int) {
    unsafe {
        let master = ok(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY));
        ok(libc::grantpt(master));
        ok(libc::unlockpt(master));
        (master, ok(open(&name(master), libc::O_RDWR | libc::O_NOCTTY)))
    }
}

unsafe fn name(master: c_int) -> CString {
    unsafe {
        let mut number: c_int = -1;
        ok(libc::ioctl(master, libc::TIOCGPTN, &raw mut number));
        CString::new(format!("/dev/pts/{number}")).unwrap()
    }
}

unsafe fn attributes(fd: c_int) -> libc::termios {
    unsafe {
        let mut termios = zeroed();
        ok(libc::tcgetattr(fd, &mut termios));
        termios
    }
}

unsafe fn change(fd: c_int, change: impl FnOnce(&mut libc::termios)) {
    unsafe {
        let mut termios = attributes(fd);
        change(&mut termios);
        ok(libc::tcsetattr(fd, libc::TCSANOW, &termios));
    }
}

/// Reads until `count` bytes have come.
fn read_all(fd: c_int, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(read_some(fd, count - all.len()));
    }
    all
}

/// Runs `body` as the leader of a session that has the terminal.
unsafe fn in_session(terminal: c_int, body: impl FnOnce() -> c_int) -> libc::pid_t {
    child(|| unsafe {
        ok(libc::setsid());
        ok(libc::ioctl(terminal, libc::TIOCSCTTY, 0));
        body()
    })
}

#[test]
fn terminal_has_a_name_and_is_one() {
    isolated(|| unsafe {
        let (master, terminal) = pty();
        assert_eq!(libc::isatty(terminal), 1);
        let mut buffer = [0; 64];
        assert_eq!(libc::ttyname_r(terminal, buffer.as_mut_ptr(), 64), 0);
        assert_eq!(CStr::from_ptr(buffer.as_ptr()), name(master).as_c_str());
        assert_eq!(libc::isatty(pipe().0), 0);
        assert_eq!(errno(), libc::ENOTTY);
    });
}

#[test]
fn locked_terminal_cannot_be_opened() {
    isolated(|| unsafe {
        let master = ok(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY));
        fails(open(&name(master), libc::O_RDWR | libc::O_NOCTTY), libc::EIO);
        ok(libc::unlockpt(master));
        ok(open(&name(master), libc::O_RDWR | libc::O_NOCTTY));
    });
}

#[test]
fn input_comes_by_lines_and_is_echoed() {
    isolated(|| unsafe {
        let (master, terminal) = pty();
        write(master, b"hel");
        assert_eq!(read_all(master, 3), b"hel");
        let mut poll = libc::pollfd { fd: terminal, events: libc::POLLIN, revents: 0 };
        assert_eq!(libc::poll(&mut poll, 1, 0), 0);
        write(master, b"lo\rnext\n");
        assert_eq!(read_some(terminal, 99), b"hello\n");
        assert_eq!(read_some(terminal, 99), b"next\n");
        assert_eq!(read_all(master, 10), b"lo\r\nnext\r\n");
    });
}

#[test]
fn erase_kill_and_end_of_file_edit_the_line() {
    isolated(|| unsafe {
        let (master, terminal) = pty();
        write(master, b"abx\x7fc\n");
        assert_eq!(read_some(terminal, 99), b"abc\n");
        write(master, b"wrong\x15right\n");
        assert_eq!(read_some(terminal, 99), b"right\n");
        write(master, b"part\x04");
        assert_eq!(read_some(terminal, 99), b"part");
        write(master, b"\x04");
        assert_eq!(read_some(terminal, 99), b"");
    });
}

#[test]
fn output_newlines_become_two_bytes() {
    isolated(|| unsafe {
        let (master, terminal) = pty();
        write(terminal, b"a\nb");
        assert_eq!(read_all(master, 4), b"a\r\nb");
        change(terminal, |termios| termios.c_oflag &= !libc::OPOST);
        write(terminal, b"a\nb");
        assert_eq!(read_all(master, 3), b"a\nb");
    });
}

#[test]
fn raw_mode_passes_bytes_at_once() {
    isolated(|| unsafe {
        let (master, terminal) = pty();
        change(terminal, |termios| libc::cfmakeraw(termios));
        assert_eq!(attributes(terminal).c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG), 0);
        write(master, b"\x03\x7f\r");
        assert_eq!(read_all(terminal, 3), b"\x03\x7f\r");
        change(terminal, |termios| {
            termios.c_cc[libc::VMIN] = 0;
            termios.c_cc[libc::VTIME] = 0;
        });
        assert_eq!(read_some(terminal, 9), b"");
    });
}

#[test]
fn closing_one_side_is_seen_by_the_other() {
    isolated(|| unsafe {
        let (master, terminal) = pty();
        write(terminal, b"last");
        close(terminal);
        assert_eq!(read_all(master, 4), b"last");
        fails(read(master, &mut [0]), libc::EIO);
        let (master, terminal) = pty();
        close(master);
        assert_eq!(read_some(terminal, 1), b"");
        fails(write(terminal, b"x"), libc::EIO);
    });
}

#[test]
fn window_size_is_shared_and_signals() {
    isolated(|| unsafe {
        let (master, terminal) = pty();
        let (told, tell) = pipe();
        let pid = in_session(terminal, || {
            block(&[libc::SIGWINCH]);
            write(tell, b"x");
            c_int::from(ok(libc::sigwaitinfo(&set(&[libc::SIGWINCH]), std::ptr::null_mut())) != libc::SIGWINCH)
        });
        read_some(told, 1);
        let size = libc::winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
        ok(libc::ioctl(master, libc::TIOCSWINSZ, &size));
        assert_eq!(wait(pid), Status::Exited(0));
        let mut seen: libc::winsize = zeroed();
        ok(libc::ioctl(master, libc::TIOCGWINSZ, &mut seen));
        assert_eq!((seen.ws_row, seen.ws_col), (33, 99));
    });
}

#[test]
fn interrupt_key_signals_the_foreground_group() {
    isolated(|| unsafe {
        let (master, terminal) = pty();
        for (key, signal) in [(b"\x03", libc::SIGINT), (b"\x1c", libc::SIGQUIT)] {
            let (told, tell) = pipe();
            let pid = in_session(terminal, || {
                let pid = child(|| {
                    ok(libc::setpgid(0, 0));
                    block(&[libc::SIGTTOU]);
                    ok(libc::tcsetpgrp(terminal, libc::getpid()));
                    write(tell, b"x");
                    libc::pause()
                });
                match wait(pid) {
                    Status::Killed(signal) => signal,
                    _ => 0,
                }
            });
            read_some(told, 1);
            write(master, key);
            assert_eq!(wait(pid), Status::Exited(signal));
        }
    });
}

#[test]
fn background_reader_stops() {
    isolated(|| unsafe {
        let (_master, terminal) = pty();
        let pid = in_session(terminal, || {
            let pid = child(|| {
                ok(libc::setpgid(0, 0));
                read(terminal, &mut [0]) as c_int
            });
            let status = wait_for(pid, libc::WUNTRACED);
            libc::kill(pid, libc::SIGKILL);
            c_int::from(status != Status::Stopped(libc::SIGTTIN))
        });
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn background_reader_that_ignores_the_stop_gets_eio() {
    isolated(|| unsafe {
        let (_master, terminal) = pty();
        let pid = in_session(terminal, || {
            in_child(|| {
                ok(libc::setpgid(0, 0));
                libc::signal(libc::SIGTTIN, libc::SIG_IGN);
                fails(read(terminal, &mut [0]), libc::EIO);
            });
            0
        });
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn background_writer_stops_only_with_tostop() {
    isolated(|| unsafe {
        let (_master, terminal) = pty();
        let pid = in_session(terminal, || {
            in_child(|| {
                ok(libc::setpgid(0, 0));
                assert_eq!(write(terminal, b"x"), 1);
            });
            change(terminal, |termios| termios.c_lflag |= libc::TOSTOP);
            let pid = child(|| {
                ok(libc::setpgid(0, 0));
                write(terminal, b"x") as c_int
            });
            let status = wait_for(pid, libc::WUNTRACED);
            libc::kill(pid, libc::SIGKILL);
            c_int::from(status != Status::Stopped(libc::SIGTTOU))
        });
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn controlling_terminal_is_dev_tty() {
    isolated(|| unsafe {
        let (master, terminal) = pty();
        let pid = in_session(terminal, || {
            let own = ok(open(c"/dev/tty", libc::O_RDWR));
            write(own, b"hi");
            assert_eq!(ok(libc::tcgetsid(own)), libc::getpid());
            assert_eq!(ok(libc::tcgetpgrp(own)), libc::getpid());
            ok(libc::ioctl(own, libc::TIOCNOTTY));
            fails(open(c"/dev/tty", libc::O_RDWR), libc::ENXIO);
            0
        });
        // Giving the terminal up as its leader sends a hangup to the foreground group, which is the leader itself.
        assert_eq!(wait(pid), Status::Killed(libc::SIGHUP));
        assert_eq!(read_all(master, 2), b"hi");
    });
}

#[test]
fn end_of_the_session_leader_hangs_up() {
    isolated(|| unsafe {
        let (_master, terminal) = pty();
        let (reader, writer) = pipe();
        let pid = in_session(terminal, || {
            if libc::fork() == 0 {
                WRITER.store(writer, std::sync::atomic::Ordering::SeqCst);
                handle(libc::SIGHUP, note_hangup, 0);
                write(writer, b"r");
                libc::pause();
                libc::_exit(0);
            }
            read_some(reader, 1);
            0
        });
        wait(pid);
        assert_eq!(read_some(reader, 1), b"h");
    });
}

static WRITER: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(-1);

extern "C" fn note_hangup(_: c_int) {
    write(WRITER.load(std::sync::atomic::Ordering::SeqCst), b"h");
    // SAFETY: no memory is involved.
    unsafe { libc::_exit(0) };
}
