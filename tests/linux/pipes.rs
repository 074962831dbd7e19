//! Pipes, FIFOs, and what reports readiness: `poll`, `select`, `epoll`, `eventfd`, `signalfd`.

use std::ptr;
use std::time::Duration;

use libc::{c_int, c_short};

use crate::common::*;

fn poll_with(fd: c_int, events: c_short) -> c_short {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one valid entry.
    ok(unsafe { libc::poll(&mut entry, 1, 0) });
    entry.revents
}

#[test]
fn pipe_delivers_in_order_and_ends() {
    isolated(|| {
        let (reader, writer) = pipe();
        write(writer, b"ab");
        write(writer, b"cd");
        assert_eq!(read_some(reader, 3), b"abc");
        close(writer);
        assert_eq!(read_some(reader, 3), b"d");
        assert_eq!(read_some(reader, 3), b"");
        fails(write(reader, b"x"), libc::EBADF);
    });
}

#[test]
fn pipe_without_reader_signals_and_gives_epipe() {
    isolated(|| unsafe {
        let pid = child(|| {
            let (reader, writer) = pipe();
            close(reader);
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            fails(write(writer, b"x"), libc::EPIPE);
            assert_eq!(poll_with(writer, libc::POLLOUT), libc::POLLOUT | libc::POLLERR);
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            write(writer, b"x");
            0
        });
        assert_eq!(wait(pid), Status::Killed(libc::SIGPIPE));
    });
}

#[test]
fn pipe_holds_65536_bytes() {
    isolated(|| unsafe {
        let (reader, writer) = pipe_with(libc::O_NONBLOCK);
        fails(read(reader, &mut [0]), libc::EAGAIN);
        assert_eq!(ok(libc::fcntl(writer, libc::F_GETPIPE_SZ)), 65536);
        assert_eq!(write(writer, &[1; 100_000]), 65536);
        fails(write(writer, b"x"), libc::EAGAIN);
        assert_eq!(poll_with(writer, libc::POLLOUT), 0);
        read_some(reader, PAGE);
        assert_eq!(poll_with(writer, libc::POLLOUT), libc::POLLOUT);
    });
}

#[test]
fn pipe_write_up_to_pipe_buf_is_all_or_nothing() {
    isolated(|| {
        let (reader, writer) = pipe_with(libc::O_NONBLOCK);
        assert_eq!(write(writer, &[1; 65536 - 100]), 65436);
        fails(write(writer, &[1; PAGE]), libc::EAGAIN);
        read_some(reader, 2 * PAGE);
        assert_eq!(write(writer, &[1; PAGE]), PAGE as isize);
    });
}

#[test]
fn pipewriters_do_not_mix_small_writes() {
    isolated(|| {
        let (reader, writer) = pipe();
        let pids = [1u8, 2, 3].map(|letter| {
            child(|| {
                (0..100).for_each(|_| assert_eq!(write(writer, &[letter; 1000]), 1000));
                0
            })
        });
        close(writer);
        let mut all = Vec::new();
        loop {
            let part = read_some(reader, 5000);
            if part.is_empty() {
                break;
            }
            all.extend(part);
        }
        assert_eq!(all.len(), 300_000);
        assert!(all.chunks(1000).all(|chunk| chunk.iter().all(|byte| *byte == chunk[0])));
        pids.into_iter().for_each(|pid| assert_eq!(wait(pid), Status::Exited(0)));
    });
}

#[test]
fn pipe_size_can_be_changed() {
    isolated(|| unsafe {
        let (reader, writer) = pipe_with(libc::O_NONBLOCK);
        assert_eq!(ok(libc::fcntl(writer, libc::F_SETPIPE_SZ, 5000)), 8192);
        assert_eq!(write(writer, &[1; 100_000]), 8192);
        fails(libc::fcntl(reader, libc::F_SETPIPE_SZ, PAGE), libc::EBUSY);
        assert_eq!(ok(libc::fcntl(reader, libc::F_SETPIPE_SZ, 1 << 20)), 1 << 20);
        fails(libc::fcntl(open_new(c"f"), libc::F_GETPIPE_SZ), libc::EBADF);
    });
}

#[test]
fn packet_pipe_keeps_boundaries() {
    isolated(|| {
        let (reader, writer) = pipe_with(libc::O_DIRECT);
        write(writer, b"abc");
        write(writer, b"de");
        assert_eq!(read_some(reader, 9), b"abc");
        assert_eq!(read_some(reader, 1), b"d");
        write(writer, b"f");
        assert_eq!(read_some(reader, 9), b"f");
    });
}

#[test]
fn pipe2_flags() {
    isolated(|| unsafe {
        let (reader, writer) = pipe_with(libc::O_CLOEXEC | libc::O_NONBLOCK);
        for fd in [reader, writer] {
            assert_eq!(libc::fcntl(fd, libc::F_GETFD), libc::FD_CLOEXEC);
            assert_ne!(libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK, 0);
        }
        fails(libc::pipe2([0; 2].as_mut_ptr(), libc::O_APPEND), libc::EINVAL);
        fails(libc::syscall(libc::SYS_pipe2, 8, 0), libc::EFAULT);
        assert_eq!(fstat(reader).st_mode & libc::S_IFMT, libc::S_IFIFO);
    });
}

#[test]
fn fifo_open_waits_for_the_other_side() {
    isolated(|| unsafe {
        ok(libc::mkfifo(c"p".as_ptr(), 0o600));
        fails(open(c"p", libc::O_WRONLY | libc::O_NONBLOCK), libc::ENXIO);
        let pid = child(|| {
            let fd = ok(open(c"p", libc::O_WRONLY));
            write(fd, b"hello");
            0
        });
        until_asleep(pid);
        let fd = ok(open(c"p", libc::O_RDONLY));
        assert_eq!(read_some(fd, 9), b"hello");
        assert_eq!(wait(pid), Status::Exited(0));
        assert_eq!(read_some(fd, 9), b"");
        let early = ok(open(c"p", libc::O_RDONLY | libc::O_NONBLOCK));
        assert_eq!(read_some(early, 9), b"", "no writer");
        close(ok(open(c"p", libc::O_RDWR)));
    });
}

#[test]
fn poll_events_of_a_pipe() {
    isolated(|| {
        let (reader, writer) = pipe();
        assert_eq!(poll_with(reader, libc::POLLIN), 0);
        assert_eq!(poll_with(writer, libc::POLLOUT | libc::POLLIN), libc::POLLOUT);
        write(writer, b"x");
        assert_eq!(poll_with(reader, libc::POLLIN | libc::POLLRDNORM), libc::POLLIN | libc::POLLRDNORM);
        close(writer);
        assert_eq!(poll_with(reader, libc::POLLIN), libc::POLLIN | libc::POLLHUP);
        read_some(reader, 1);
        assert_eq!(poll_with(reader, 0), libc::POLLHUP);
        assert_eq!(poll_with(77, libc::POLLIN), libc::POLLNVAL);
        assert_eq!(poll_with(-1, libc::POLLIN), 0);
        assert_eq!(poll_with(open_new(c"f"), libc::POLLIN | libc::POLLOUT), libc::POLLIN | libc::POLLOUT);
    });
}

#[test]
fn poll_waits_and_times_out() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        let start = std::time::Instant::now();
        let mut entry = libc::pollfd { fd: reader, events: libc::POLLIN, revents: 5 };
        assert_eq!(ok(libc::poll(&mut entry, 1, 10)), 0);
        assert!(start.elapsed() >= Duration::from_millis(10));
        assert_eq!(entry.revents, 0);
        let pid = child(|| ok(libc::poll(&mut libc::pollfd { fd: reader, events: libc::POLLIN, revents: 0 }, 1, -1)));
        until_asleep(pid);
        write(writer, b"x");
        assert_eq!(wait(pid), Status::Exited(1));
        let bad = libc::timespec { tv_sec: -1, tv_nsec: 0 };
        fails(libc::ppoll(&mut entry, 1, &bad, ptr::null()), libc::EINVAL);
        fails(libc::poll(8 as *mut _, 1, 0), libc::EFAULT);
    });
}

#[test]
fn select_sets_only_ready_ones() {
    isolated(|| unsafe {
        let (reader, writer) = pipe();
        let (mut reads, mut writes): (libc::fd_set, libc::fd_set) = std::mem::zeroed();
        libc::FD_SET(reader, &mut reads);
        libc::FD_SET(writer, &mut writes);
        let mut none = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let null = ptr::null_mut();
        assert_eq!(ok(libc::select(writer + 1, &mut reads, &mut writes, null, &mut none)), 1);
        assert!(!libc::FD_ISSET(reader, &reads) && libc::FD_ISSET(writer, &writes));
        libc::FD_SET(77, &mut reads);
        fails(libc::select(78, &mut reads, null, null, &mut none), libc::EBADF);
        fails(libc::select(-1, null, null, null, &mut none), libc::EINVAL);
        none.tv_sec = -1;
        fails(libc::select(0, null, null, null, &mut none), libc::EINVAL);
    });
}

unsafe fn control(epoll: c_int, operation: c_int, fd: c_int, events: c_int) -> c_int {
    let mut event = libc::epoll_event { events: events as u32, u64: fd as u64 };
    unsafe { libc::epoll_ctl(epoll, operation, fd, &mut event) }
}

/// The ready descriptors with their events.
unsafe fn ready(epoll: c_int) -> Vec<(c_int, c_int)> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
    let count = ok(unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), 16, 0) });
    events[..count as usize].iter().map(|event| (event.u64 as c_int, event.events as c_int)).collect()
}

const ADD: c_int = libc::EPOLL_CTL_ADD;
const IN: c_int = libc::EPOLLIN;

#[test]
fn epoll_level_reports_until_drained() {
    isolated(|| unsafe {
        let epoll = ok(libc::epoll_create1(0));
        let (reader, writer) = pipe();
        ok(control(epoll, ADD, reader, IN));
        assert_eq!(ready(epoll), []);
        write(writer, b"xy");
        for _ in 0..2 {
            assert_eq!(ready(epoll), [(reader, IN)]);
        }
        read_some(reader, 2);
        assert_eq!(ready(epoll), []);
        close(writer);
        assert_eq!(ready(epoll), [(reader, libc::EPOLLHUP)]);
    });
}

#[test]
fn epoll_edge_reports_each_arrival_once() {
    isolated(|| unsafe {
        let epoll = ok(libc::epoll_create1(0));
        let (reader, writer) = pipe();
        write(writer, b"x");
        ok(control(epoll, ADD, reader, IN | libc::EPOLLET));
        assert_eq!(ready(epoll).len(), 1);
        assert_eq!(ready(epoll).len(), 0);
        write(writer, b"y");
        assert_eq!(ready(epoll).len(), 1);
        ok(control(epoll, libc::EPOLL_CTL_MOD, reader, IN | libc::EPOLLET));
        assert_eq!(ready(epoll).len(), 1, "changing it looks again");
    });
}

#[test]
fn epoll_oneshot_needs_rearming() {
    isolated(|| unsafe {
        let epoll = ok(libc::epoll_create1(0));
        let (reader, writer) = pipe();
        ok(control(epoll, ADD, reader, IN | libc::EPOLLONESHOT));
        write(writer, b"x");
        assert_eq!(ready(epoll).len(), 1);
        write(writer, b"y");
        assert_eq!(ready(epoll).len(), 0);
        ok(control(epoll, libc::EPOLL_CTL_MOD, reader, IN | libc::EPOLLONESHOT));
        assert_eq!(ready(epoll).len(), 1);
    });
}

#[test]
fn epoll_control_errors() {
    isolated(|| unsafe {
        let epoll = ok(libc::epoll_create1(libc::EPOLL_CLOEXEC));
        let (reader, writer) = pipe();
        ok(control(epoll, ADD, reader, IN));
        fails(control(epoll, ADD, reader, IN), libc::EEXIST);
        fails(control(epoll, libc::EPOLL_CTL_MOD, writer, IN), libc::ENOENT);
        fails(control(epoll, libc::EPOLL_CTL_DEL, writer, 0), libc::ENOENT);
        fails(control(epoll, ADD, 77, IN), libc::EBADF);
        fails(control(77, ADD, reader, IN), libc::EBADF);
        fails(control(reader, ADD, writer, IN), libc::EINVAL);
        fails(control(epoll, ADD, epoll, IN), libc::EINVAL);
        fails(control(epoll, ADD, open_new(c"f"), IN), libc::EPERM);
        fails(control(epoll, 9, reader, IN), libc::EINVAL);
        fails(libc::epoll_create1(1), libc::EINVAL);
        fails(libc::epoll_create(0), libc::EINVAL);
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        fails(libc::epoll_wait(epoll, &mut event, 0, 0), libc::EINVAL);
        fails(libc::epoll_wait(reader, &mut event, 1, 0), libc::EINVAL);
        fails(libc::epoll_ctl(epoll, ADD, writer, ptr::null_mut()), libc::EFAULT);
    });
}

#[test]
fn epoll_nests_but_not_in_a_loop() {
    isolated(|| unsafe {
        let (outer, inner) = (ok(libc::epoll_create1(0)), ok(libc::epoll_create1(0)));
        let (reader, writer) = pipe();
        ok(control(outer, ADD, inner, IN));
        ok(control(inner, ADD, reader, IN));
        assert_eq!(ready(outer), []);
        write(writer, b"x");
        assert_eq!(ready(outer), [(inner, IN)]);
        assert_eq!(poll_with(outer, libc::POLLIN), libc::POLLIN);
        fails(control(inner, ADD, outer, IN), libc::ELOOP);
    });
}

#[test]
fn epoll_watches_the_file_and_not_the_number() {
    isolated(|| unsafe {
        let epoll = ok(libc::epoll_create1(0));
        let (reader, writer) = pipe();
        let copy = ok(libc::dup(reader));
        ok(control(epoll, ADD, reader, IN));
        ok(control(epoll, ADD, copy, IN));
        write(writer, b"x");
        assert_eq!(ready(epoll).len(), 2);
        close(reader);
        assert_eq!(ready(epoll).len(), 2, "the file is still open");
        fails(control(epoll, libc::EPOLL_CTL_DEL, reader, 0), libc::EBADF);
        close(copy);
        assert_eq!(ready(epoll), []);
    });
}

#[test]
fn epoll_wakes_a_sleeper() {
    isolated(|| unsafe {
        let epoll = ok(libc::epoll_create1(0));
        let (reader, writer) = pipe();
        ok(control(epoll, ADD, reader, IN));
        let pid = child(|| {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            ok(libc::epoll_wait(epoll, &mut event, 1, -1))
        });
        until_asleep(pid);
        write(writer, b"x");
        assert_eq!(wait(pid), Status::Exited(1));
    });
}

#[test]
fn epoll_takes_turns_when_asked_for_fewer() {
    isolated(|| unsafe {
        let epoll = ok(libc::epoll_create1(0));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..5 {
            let (reader, writer) = pipe();
            write(writer, b"x");
            ok(control(epoll, ADD, reader, IN));
        }
        for _ in 0..5 {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            assert_eq!(ok(libc::epoll_wait(epoll, &mut event, 1, 0)), 1);
            seen.insert(event.u64);
        }
        assert_eq!(seen.len(), 5);
    });
}

#[test]
fn epoll_exclusive_rules() {
    isolated(|| unsafe {
        let epoll = ok(libc::epoll_create1(0));
        let (reader, writer) = pipe();
        ok(control(epoll, ADD, reader, IN | libc::EPOLLEXCLUSIVE));
        fails(control(epoll, libc::EPOLL_CTL_MOD, reader, IN), libc::EINVAL);
        fails(control(epoll, ADD, writer, libc::EPOLLEXCLUSIVE | libc::EPOLLONESHOT), libc::EINVAL);
        write(writer, b"x");
        assert_eq!(ready(epoll).len(), 1);
    });
}

#[test]
fn epoll_pwait_swaps_the_mask() {
    isolated(|| unsafe {
        extern "C" fn nothing(_: c_int) {}
        handle(libc::SIGUSR1, nothing, 0);
        block(&[libc::SIGUSR1]);
        libc::raise(libc::SIGUSR1);
        let epoll = ok(libc::epoll_create1(0));
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        assert_eq!(libc::epoll_pwait(epoll, &mut event, 1, 0, ptr::null()), 0);
        fails(libc::epoll_pwait(epoll, &mut event, 1, -1, &set(&[])), libc::EINTR);
    });
}

#[test]
fn eventfd_counts() {
    isolated(|| unsafe {
        let fd = ok(libc::eventfd(3, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC));
        write(fd, &4u64.to_ne_bytes());
        assert_eq!(read_some(fd, 8), 7u64.to_ne_bytes());
        fails(read(fd, &mut [0; 8]), libc::EAGAIN);
        assert_eq!(poll_with(fd, libc::POLLIN | libc::POLLOUT), libc::POLLOUT);
        fails(write(fd, &u64::MAX.to_ne_bytes()), libc::EINVAL);
        write(fd, &(u64::MAX - 1).to_ne_bytes());
        fails(write(fd, &1u64.to_ne_bytes()), libc::EAGAIN);
        assert_eq!(poll_with(fd, libc::POLLIN | libc::POLLOUT), libc::POLLIN);
        fails(read(fd, &mut [0; 7]), libc::EINVAL);
        fails(write(fd, &[0; 7]), libc::EINVAL);
        fails(libc::eventfd(0, 0x10), libc::EINVAL);
    });
}

#[test]
fn eventfd_as_a_semaphore() {
    isolated(|| unsafe {
        let fd = ok(libc::eventfd(2, libc::EFD_NONBLOCK | libc::EFD_SEMAPHORE));
        for _ in 0..2 {
            assert_eq!(read_some(fd, 8), 1u64.to_ne_bytes());
        }
        fails(read(fd, &mut [0; 8]), libc::EAGAIN);
    });
}

#[test]
fn signalfd_reads_pending_signals() {
    isolated(|| unsafe {
        block(&[libc::SIGUSR1, libc::SIGUSR2]);
        let fd = ok(libc::signalfd(-1, &set(&[libc::SIGUSR1]), libc::SFD_NONBLOCK));
        fails(read(fd, &mut [0; 128]), libc::EAGAIN);
        libc::raise(libc::SIGUSR2);
        assert_eq!(poll_with(fd, libc::POLLIN), 0);
        ok(libc::kill(libc::getpid(), libc::SIGUSR1));
        assert_eq!(poll_with(fd, libc::POLLIN), libc::POLLIN);
        let bytes = read_some(fd, 300);
        assert_eq!(bytes.len(), 128);
        let info: libc::signalfd_siginfo = ptr::read_unaligned(bytes.as_ptr().cast());
        assert_eq!((info.ssi_signo, info.ssi_pid), (libc::SIGUSR1 as u32, libc::getpid() as u32));
        fails(read(fd, &mut [0; 127]), libc::EINVAL);
        assert_eq!(ok(libc::signalfd(fd, &set(&[libc::SIGUSR2]), 0)), fd);
        assert_eq!(read_some(fd, 128).len(), 128);
        fails(libc::signalfd(0, &set(&[]), 0), libc::EINVAL);
    });
}

#[test]
fn epoll_report_that_cannot_be_stored_is_not_lost() {
    isolated(|| unsafe {
        for mode in [libc::EPOLLET, libc::EPOLLONESHOT] {
            let epoll = ok(libc::epoll_create1(0));
            let event = ok(libc::eventfd(1, 0));
            let mut wanted = libc::epoll_event { events: (libc::EPOLLIN | mode) as u32, u64: 9 };
            ok(libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, event, &mut wanted));
            fails(libc::epoll_wait(epoll, 16 as *mut libc::epoll_event, 4, 0), libc::EFAULT);
            let mut found: libc::epoll_event = std::mem::zeroed();
            assert_eq!(ok(libc::epoll_wait(epoll, &mut found, 1, 0)), 1);
            assert_eq!({ found.u64 }, 9);
            assert_eq!(ok(libc::epoll_wait(epoll, &mut found, 1, 0)), 0);
        }
    });
}
