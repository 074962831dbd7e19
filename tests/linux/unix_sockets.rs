//! UNIX sockets: kinds, names, passing of descriptors and credentials.

use std::mem::{size_of, zeroed};
use std::ptr;

use libc::{c_int, c_void, sockaddr_un, socklen_t};

use crate::common::*;

/// An address; a name that begins with a zero byte is abstract.
fn address(name: &[u8]) -> (sockaddr_un, socklen_t) {
    // SAFETY: an all-zero address is valid.
    let mut address: sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    for (to, from) in address.sun_path.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let zero = usize::from(name.first().is_some_and(|byte| *byte != 0));
    (address, (2 + name.len() + zero) as socklen_t)
}

unsafe fn socket(kind: c_int) -> c_int {
    ok(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })
}

unsafe fn bind(fd: c_int, name: &[u8]) -> c_int {
    let (address, length) = address(name);
    unsafe { libc::bind(fd, (&raw const address).cast(), length) }
}

unsafe fn connect(fd: c_int, name: &[u8]) -> c_int {
    let (address, length) = address(name);
    unsafe { libc::connect(fd, (&raw const address).cast(), length) }
}

unsafe fn accept(fd: c_int) -> c_int {
    unsafe { libc::accept(fd, ptr::null_mut(), ptr::null_mut()) }
}

unsafe fn send(fd: c_int, bytes: &[u8], flags: c_int) -> isize {
    unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) }
}

unsafe fn receive(fd: c_int, size: usize, flags: c_int) -> Vec<u8> {
    let mut buffer = vec![0u8; size];
    let count = ok(unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), size, flags) });
    buffer.truncate(count as usize);
    buffer
}

unsafe fn option<T>(fd: c_int, name: c_int) -> T {
    unsafe {
        let (mut value, mut length): (T, _) = (zeroed(), size_of::<T>() as socklen_t);
        ok(libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &mut length));
        value
    }
}

unsafe fn set_option(fd: c_int, name: c_int, value: c_int) {
    ok(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, name, (&raw const value).cast(), 4) });
}

/// Sends a byte with control data of one kind.
unsafe fn send_control(fd: c_int, kind: c_int, data: &[u8]) -> isize {
    unsafe {
        let mut control = [0u64; 64];
        let mut part = libc::iovec { iov_base: b"x".as_ptr() as *mut c_void, iov_len: 1 };
        let mut message: libc::msghdr = zeroed();
        (message.msg_iov, message.msg_iovlen) = (&mut part, 1);
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(data.len() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&message);
        ((*header).cmsg_level, (*header).cmsg_type) = (libc::SOL_SOCKET, kind);
        (*header).cmsg_len = libc::CMSG_LEN(data.len() as u32) as usize;
        ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(header), data.len());
        libc::sendmsg(fd, &message, 0)
    }
}

/// Control data of a message: its kind and bytes.
type Control = (c_int, Vec<u8>);

/// Receives a message of up to 16 bytes: its bytes, its first control data with the kind, its flags.
unsafe fn receive_control(fd: c_int, space: usize) -> (Vec<u8>, Option<Control>, c_int) {
    unsafe {
        let (mut control, mut buffer) = ([0u64; 64], [0u8; 16]);
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 16 };
        let mut message: libc::msghdr = zeroed();
        (message.msg_iov, message.msg_iovlen) = (&mut part, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), space);
        let count = ok(libc::recvmsg(fd, &mut message, 0)) as usize;
        let header = libc::CMSG_FIRSTHDR(&message);
        let found = (!header.is_null()).then(|| {
            let length = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
            ((*header).cmsg_type, std::slice::from_raw_parts(libc::CMSG_DATA(header), length).to_vec())
        });
        (buffer[..count].to_vec(), found, message.msg_flags)
    }
}

fn bytes_of(fds: &[c_int]) -> Vec<u8> {
    fds.iter().flat_map(|fd| fd.to_ne_bytes()).collect()
}

#[test]
fn stream_pair_carries_bytes_both_ways() {
    isolated(|| {
        let (left, right) = socket_pair(libc::SOCK_STREAM);
        write(left, b"ab");
        write(left, b"cd");
        assert_eq!(read_some(right, 9), b"abcd");
        write(right, b"x");
        assert_eq!(read_some(left, 9), b"x");
        close(left);
        assert_eq!(read_some(right, 9), b"");
        // SAFETY: no memory is involved.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        fails(write(right, b"x"), libc::EPIPE);
    });
}

#[test]
fn nosignal_gives_epipe_alone() {
    isolated(|| unsafe {
        let (left, right) = socket_pair(libc::SOCK_STREAM);
        close(left);
        fails(send(right, b"x", libc::MSG_NOSIGNAL), libc::EPIPE);
    });
}

#[test]
fn datagrams_and_packets_keep_boundaries() {
    isolated(|| unsafe {
        for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            let (left, right) = socket_pair(kind);
            send(left, b"abc", 0);
            send(left, b"", 0);
            send(left, b"defg", 0);
            assert_eq!(receive(right, 9, 0), b"abc");
            assert_eq!(receive(right, 9, 0), b"");
            assert_eq!(receive(right, 2, libc::MSG_PEEK), b"de");
            let mut buffer = [0u8; 2];
            assert_eq!(libc::recv(right, buffer.as_mut_ptr().cast(), 2, libc::MSG_TRUNC), 4);
            fails(libc::recv(right, buffer.as_mut_ptr().cast(), 2, libc::MSG_DONTWAIT), libc::EAGAIN);
        }
    });
}

#[test]
fn bound_stream_accepts_connections() {
    isolated(|| unsafe {
        let listener = socket(libc::SOCK_STREAM);
        let client = socket(libc::SOCK_STREAM);
        fails(connect(client, b"s"), libc::ENOENT);
        ok(bind(listener, b"s"));
        assert_eq!(stat(c"s").st_mode & libc::S_IFMT, libc::S_IFSOCK);
        fails(connect(client, b"s"), libc::ECONNREFUSED);
        ok(libc::listen(listener, 5));
        ok(connect(client, b"s"));
        let server = ok(accept(listener));
        write(client, b"hello");
        assert_eq!(read_some(server, 9), b"hello");
        let (mut peer, mut length): (sockaddr_un, _) = (zeroed(), 110);
        ok(libc::getpeername(client, (&raw mut peer).cast(), &mut length));
        assert_eq!((length, peer.sun_path[0], peer.sun_path[1]), (4, b's' as i8, 0));
        length = 110;
        ok(libc::getpeername(server, (&raw mut peer).cast(), &mut length));
        assert_eq!(length, 2);
        fails(open(c"s", libc::O_RDWR), libc::ENXIO);
    });
}

#[test]
fn stream_name_errors() {
    isolated(|| unsafe {
        let fd = socket(libc::SOCK_STREAM);
        ok(bind(fd, b"s"));
        fails(bind(fd, b"t"), libc::EINVAL);
        fails(bind(socket(libc::SOCK_STREAM), b"s"), libc::EADDRINUSE);
        fails(bind(socket(libc::SOCK_STREAM), b"missing/s"), libc::ENOENT);
        file(c"f", b"");
        fails(connect(socket(libc::SOCK_STREAM), b"f"), libc::ECONNREFUSED);
        fails(connect(socket(libc::SOCK_DGRAM), b"s"), libc::EPROTOTYPE);
        fails(accept(fd), libc::EINVAL);
        fails(accept(socket(libc::SOCK_DGRAM)), libc::EOPNOTSUPP);
        fails(write(socket(libc::SOCK_STREAM), b"x"), libc::ENOTCONN);
        fails(libc::listen(pipe().0, 1), libc::ENOTSOCK);
        fails(libc::socket(libc::AF_UNIX, 77, 0), libc::EINVAL);
        fails(libc::socket(libc::AF_UNIX, libc::SOCK_RDM, 0), libc::ESOCKTNOSUPPORT);
        fails(libc::socket(99, libc::SOCK_STREAM, 0), libc::EAFNOSUPPORT);
        fails(libc::socketpair(libc::AF_INET, libc::SOCK_STREAM, 0, [0; 2].as_mut_ptr()), libc::EOPNOTSUPP);
    });
}

#[test]
fn abstract_names_leave_no_file() {
    isolated(|| unsafe {
        let name = format!("\0linux-test-{}", libc::getpid());
        let listener = socket(libc::SOCK_STREAM);
        ok(bind(listener, name.as_bytes()));
        ok(libc::listen(listener, 1));
        fails(bind(socket(libc::SOCK_STREAM), name.as_bytes()), libc::EADDRINUSE);
        ok(connect(socket(libc::SOCK_STREAM), name.as_bytes()));
        let (mut own, mut length): (sockaddr_un, _) = (zeroed(), 110);
        ok(libc::getsockname(listener, (&raw mut own).cast(), &mut length));
        assert_eq!((length as usize, own.sun_path[0], own.sun_path[1]), (2 + name.len(), 0, b'l' as i8));
        assert_eq!(std::fs::read_dir(".").unwrap().count(), 0);
        close(listener);
        fails(connect(socket(libc::SOCK_STREAM), name.as_bytes()), libc::ECONNREFUSED);
    });
}

#[test]
fn autobind_gives_an_abstract_name() {
    isolated(|| unsafe {
        let fd = socket(libc::SOCK_DGRAM);
        ok(bind(fd, b""));
        let (mut own, mut length): (sockaddr_un, _) = (zeroed(), 110);
        ok(libc::getsockname(fd, (&raw mut own).cast(), &mut length));
        assert_eq!((length, own.sun_path[0]), (8, 0));
    });
}

#[test]
fn datagram_names_its_sender() {
    isolated(|| unsafe {
        let (left, right) = (socket(libc::SOCK_DGRAM), socket(libc::SOCK_DGRAM));
        ok(bind(left, b"left"));
        ok(bind(right, b"right"));
        let (to, length) = address(b"right");
        ok(libc::sendto(left, b"hi".as_ptr().cast(), 2, 0, (&raw const to).cast(), length));
        let (mut from, mut size): (sockaddr_un, _) = (zeroed(), 110);
        let mut buffer = [0u8; 9];
        let count = libc::recvfrom(right, buffer.as_mut_ptr().cast(), 9, 0, (&raw mut from).cast(), &mut size);
        assert_eq!((count, size), (2, 7));
        assert_eq!(&from.sun_path[..5], b"left\0".map(|byte| byte as i8));
        ok(connect(left, b"right"));
        close(right);
        fails(send(left, b"x", 0), libc::ECONNREFUSED);
    });
}

#[test]
fn descriptors_travel() {
    isolated(|| unsafe {
        let (left, right) = socket_pair(libc::SOCK_STREAM);
        let fd = open_new(c"f");
        write(fd, b"hello");
        let (reader, writer) = pipe();
        ok(send_control(left, libc::SCM_RIGHTS, &bytes_of(&[fd, writer])));
        close(writer);
        let (bytes, control, flags) = receive_control(right, 64);
        let (kind, data) = control.unwrap();
        assert_eq!((bytes, kind, data.len(), flags), (b"x".to_vec(), libc::SCM_RIGHTS, 8, 0));
        let received: Vec<c_int> = data.chunks(4).map(|part| c_int::from_ne_bytes(part.try_into().unwrap())).collect();
        assert_eq!(libc::lseek(received[0], 0, libc::SEEK_CUR), 5);
        assert_eq!(libc::fcntl(received[0], libc::F_GETFD), 0);
        write(received[1], b"via");
        assert_eq!(read_some(reader, 9), b"via");
        fails(send_control(left, libc::SCM_RIGHTS, &bytes_of(&[77])), libc::EBADF);
    });
}

#[test]
fn descriptors_without_room_are_closed_and_told() {
    isolated(|| unsafe {
        let (left, right) = socket_pair(libc::SOCK_DGRAM);
        let (reader, writer) = pipe();
        ok(send_control(left, libc::SCM_RIGHTS, &bytes_of(&[writer])));
        close(writer);
        let (_, control, flags) = receive_control(right, 0);
        assert!(control.is_none());
        assert_eq!(flags & libc::MSG_CTRUNC, libc::MSG_CTRUNC);
        assert_eq!(read_some(reader, 1), b"");
    });
}

#[test]
fn descriptors_in_flight_close_with_the_socket() {
    isolated(|| unsafe {
        let (left, right) = socket_pair(libc::SOCK_STREAM);
        let (reader, writer) = pipe();
        ok(send_control(left, libc::SCM_RIGHTS, &bytes_of(&[writer])));
        close(writer);
        close(left);
        close(right);
        assert_eq!(read_some(reader, 1), b"");
    });
}

#[test]
fn read_stops_at_a_message_with_descriptors() {
    isolated(|| unsafe {
        let (left, right) = socket_pair(libc::SOCK_STREAM);
        write(left, b"ab");
        ok(send_control(left, libc::SCM_RIGHTS, &bytes_of(&[0])));
        write(left, b"cd");
        let (first, control, _) = receive_control(right, 64);
        let (first, control) = if control.is_none() {
            assert_eq!(first, b"ab");
            let (second, control, _) = receive_control(right, 64);
            (second, control)
        } else {
            (first, control)
        };
        assert!(first.ends_with(b"x"), "{first:?}");
        assert!(control.is_some());
        assert_eq!(read_some(right, 9), b"cd");
    });
}

#[test]
fn credentials_travel_when_asked_for() {
    isolated(|| unsafe {
        let (left, right) = socket_pair(libc::SOCK_STREAM);
        set_option(right, libc::SO_PASSCRED, 1);
        let pid = child(|| c_int::from(write(left, b"x") != 1));
        wait(pid);
        let (_, control, _) = receive_control(right, 64);
        let (kind, data) = control.unwrap();
        assert_eq!(kind, libc::SCM_CREDENTIALS);
        let sent: libc::ucred = ptr::read_unaligned(data.as_ptr().cast());
        assert_eq!((sent.pid, sent.uid, sent.gid), (pid, 0, 0));
        as_user(1234, || {
            let lie = libc::ucred { pid: libc::getpid(), uid: 0, gid: 0 };
            let bytes = std::slice::from_raw_parts((&raw const lie).cast(), size_of::<libc::ucred>());
            fails(send_control(left, libc::SCM_CREDENTIALS, bytes), libc::EPERM);
        });
    });
}

#[test]
fn peer_credentials_are_those_of_connecting() {
    isolated(|| unsafe {
        let listener = socket(libc::SOCK_STREAM);
        ok(bind(listener, b"s"));
        ok(libc::chmod(c"s".as_ptr(), 0o777));
        ok(libc::listen(listener, 1));
        let (reader, writer) = pipe();
        let pid = child(|| {
            ok(libc::setresuid(1234, 1234, 1234));
            ok(connect(socket(libc::SOCK_STREAM), b"s"));
            read(reader, &mut [0]) as c_int
        });
        let server = ok(accept(listener));
        let peer: libc::ucred = option(server, libc::SO_PEERCRED);
        assert_eq!((peer.pid, peer.uid, peer.gid), (pid, 1234, 0));
        write(writer, b"x");
        wait(pid);
    });
}

#[test]
fn shutdown_closes_one_direction() {
    isolated(|| unsafe {
        let (left, right) = socket_pair(libc::SOCK_STREAM);
        ok(libc::shutdown(left, libc::SHUT_WR));
        assert_eq!(read_some(right, 1), b"");
        fails(send(left, b"x", libc::MSG_NOSIGNAL), libc::EPIPE);
        write(right, b"back");
        assert_eq!(read_some(left, 9), b"back");
        let mut poll = libc::pollfd { fd: right, events: libc::POLLIN | libc::POLLRDHUP, revents: 0 };
        ok(libc::poll(&mut poll, 1, 0));
        assert_eq!(poll.revents, libc::POLLIN | libc::POLLRDHUP);
        ok(libc::shutdown(right, libc::SHUT_WR));
        ok(libc::poll(&mut poll, 1, 0));
        assert_eq!(poll.revents, libc::POLLIN | libc::POLLRDHUP | libc::POLLHUP);
        fails(libc::shutdown(left, 9), libc::EINVAL);
    });
}

#[test]
fn full_stream_blocks_and_says_so() {
    isolated(|| {
        let (left, right) = socket_pair(libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
        let mut total = 0;
        loop {
            let count = write(left, &[7; 10_000]);
            if count < 0 {
                break;
            }
            total += count;
        }
        assert_eq!(errno(), libc::EAGAIN);
        assert!(total >= 50_000, "{total}");
        let mut received = 0;
        while received < total {
            received += ok(read(right, &mut [0; 7000]));
        }
        fails(read(right, &mut [0]), libc::EAGAIN);
        assert!(write(left, b"x") == 1);
    });
}

#[test]
fn socket_options_of_identity() {
    isolated(|| unsafe {
        let (fd, _) = socket_pair(libc::SOCK_SEQPACKET);
        assert_eq!(option::<c_int>(fd, libc::SO_TYPE), libc::SOCK_SEQPACKET);
        assert_eq!(option::<c_int>(fd, libc::SO_DOMAIN), libc::AF_UNIX);
        assert_eq!(option::<c_int>(fd, libc::SO_ACCEPTCONN), 0);
        assert_eq!(option::<c_int>(fd, libc::SO_ERROR), 0);
        let mut length = 4;
        let mut value = 0;
        let at = (&raw mut value).cast();
        fails(libc::getsockopt(fd, libc::SOL_SOCKET, 9999, at, &mut length), libc::ENOPROTOOPT);
    });
}

#[test]
fn full_backlog_gives_eagain() {
    isolated(|| unsafe {
        let listener = socket(libc::SOCK_STREAM);
        ok(bind(listener, b"s"));
        ok(libc::listen(listener, 1));
        let connected =
            (0..10).take_while(|_| connect(socket(libc::SOCK_STREAM | libc::SOCK_NONBLOCK), b"s") == 0).count();
        assert_eq!(connected, 2);
        fails(connect(socket(libc::SOCK_STREAM | libc::SOCK_NONBLOCK), b"s"), libc::EAGAIN);
        ok(accept(listener));
        ok(connect(socket(libc::SOCK_STREAM | libc::SOCK_NONBLOCK), b"s"));
    });
}

#[test]
fn a_read_that_waits_waits_for_the_low_water_mark() {
    isolated(|| unsafe {
        let low_water = |fd: c_int| {
            let value: c_int = 5;
            ok(libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, (&raw const value).cast(), 4));
        };
        let (sender, receiver) = socket_pair(libc::SOCK_STREAM);
        low_water(receiver);
        ok(write(sender, b"abc"));
        let mut poll = libc::pollfd { fd: receiver, events: libc::POLLIN, revents: 0 };
        assert_eq!(ok(libc::poll(&mut poll, 1, 0)), 1, "poll(2) does not look at it");
        for receive in [false, true] {
            let mut buffer = [0u8; 10];
            let pid = child(|| match receive {
                false => read(receiver, &mut buffer) as c_int,
                true => libc::recv(receiver, buffer.as_mut_ptr().cast(), 10, 0) as c_int,
            });
            until_asleep(pid);
            ok(write(sender, b"de"));
            assert_eq!(wait(pid), Status::Exited(5));
            ok(write(sender, b"abc"));
        }
        // Who does not wait gets what there is, and packets are whole.
        let mut buffer = [0u8; 10];
        assert_eq!(ok(libc::recv(receiver, buffer.as_mut_ptr().cast(), 10, libc::MSG_DONTWAIT)), 3);
        let (sender, receiver) = socket_pair(libc::SOCK_SEQPACKET);
        low_water(receiver);
        ok(write(sender, b"abc"));
        assert_eq!(read_some(receiver, 10), b"abc");
    });
}
