//! TCP and UDP over the loopback, for both versions of IP.

use std::io::{Read, Write};
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

use libc::{c_int, sockaddr_in, sockaddr_in6, socklen_t};

use crate::common::*;

const LOCAL: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
const LOCAL6: (Ipv6Addr, u16) = (Ipv6Addr::LOCALHOST, 0);

fn v4(address: [u8; 4], port: u16) -> sockaddr_in {
    // SAFETY: an all-zero address is valid.
    let mut result: sockaddr_in = unsafe { zeroed() };
    result.sin_family = libc::AF_INET as u16;
    result.sin_port = port.to_be();
    result.sin_addr.s_addr = u32::from_ne_bytes(address);
    result
}

unsafe fn bind(fd: c_int, address: &sockaddr_in) -> c_int {
    unsafe { libc::bind(fd, ptr::from_ref(address).cast(), size_of::<sockaddr_in>() as socklen_t) }
}

unsafe fn connect(fd: c_int, address: &sockaddr_in) -> c_int {
    unsafe { libc::connect(fd, ptr::from_ref(address).cast(), size_of::<sockaddr_in>() as socklen_t) }
}

unsafe fn socket(kind: c_int) -> c_int {
    ok(unsafe { libc::socket(libc::AF_INET, kind, 0) })
}

unsafe fn option(fd: c_int, level: c_int, name: c_int) -> c_int {
    unsafe {
        let (mut value, mut length) = (0, 4);
        ok(libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut length));
        value
    }
}

unsafe fn set_option<T>(fd: c_int, level: c_int, name: c_int, value: T) -> c_int {
    unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<T>() as socklen_t) }
}

unsafe fn receive(fd: RawFd, size: usize, flags: c_int) -> isize {
    let mut buffer = vec![0u8; size];
    unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), size, flags) }
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn until(fd: RawFd, events: i16) -> i16 {
    let mut poll = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one valid entry.
    assert_eq!(ok(unsafe { libc::poll(&mut poll, 1, 20_000) }), 1, "not ready");
    poll.revents
}

/// A port of the loopback that nobody listens on.
fn closed_port(kind: c_int) -> u16 {
    match kind {
        libc::SOCK_STREAM => TcpListener::bind(LOCAL).unwrap().local_addr().unwrap().port(),
        _ => UdpSocket::bind(LOCAL).unwrap().local_addr().unwrap().port(),
    }
}

#[test]
fn tcp_names_of_both_ends_match() {
    isolated(|| {
        let (client, server) = tcp_pair();
        assert_eq!(client.local_addr().unwrap(), server.peer_addr().unwrap());
        assert_eq!(client.peer_addr().unwrap(), server.local_addr().unwrap());
        assert!(client.local_addr().unwrap().ip().is_loopback());
    });
}

#[test]
fn tcp_carries_a_megabyte_each_way() {
    isolated(|| {
        let (mut client, mut server) = tcp_pair();
        let data: Vec<u8> = (0..1_000_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
        let echo = std::thread::spawn(move || {
            let mut all = Vec::new();
            server.read_to_end(&mut all).unwrap();
            server.write_all(&all).unwrap();
        });
        client.write_all(&data).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        echo.join().unwrap();
        assert!(back == data);
    });
}

#[test]
fn tcp_connect_to_a_closed_port_is_refused() {
    isolated(|| unsafe {
        let port = closed_port(libc::SOCK_STREAM);
        fails(connect(socket(libc::SOCK_STREAM), &v4([127, 0, 0, 1], port)), libc::ECONNREFUSED);
        let error = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    });
}

#[test]
fn tcp_nonblocking_connect_completes() {
    isolated(|| unsafe {
        let listener = TcpListener::bind(LOCAL).unwrap();
        let address = v4([127, 0, 0, 1], listener.local_addr().unwrap().port());
        let fd = socket(libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
        fails(connect(fd, &address), libc::EINPROGRESS);
        assert_eq!(until(fd, libc::POLLOUT), libc::POLLOUT);
        assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_ERROR), 0);
        ok(connect(fd, &address));
        fails(connect(fd, &address), libc::EISCONN);
    });
}

#[test]
fn tcp_nonblocking_connect_reports_refusal() {
    isolated(|| unsafe {
        let fd = socket(libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
        let address = v4([127, 0, 0, 1], closed_port(libc::SOCK_STREAM));
        fails(connect(fd, &address), libc::EINPROGRESS);
        let events = until(fd, libc::POLLOUT);
        assert_eq!(events & (libc::POLLERR | libc::POLLHUP), libc::POLLERR | libc::POLLHUP);
        assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_ERROR), libc::ECONNREFUSED);
        assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_ERROR), 0, "read once");
    });
}

#[test]
fn tcp_accept_queue_holds_connections() {
    isolated(|| unsafe {
        let listener = TcpListener::bind(LOCAL).unwrap();
        let address = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
        until(listener.as_raw_fd(), libc::POLLIN);
        for client in &clients {
            assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        }
        listener.set_nonblocking(true).unwrap();
        fails(libc::accept(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut()), libc::EAGAIN);
        let _client = TcpStream::connect(address).unwrap();
        until(listener.as_raw_fd(), libc::POLLIN);
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let fd = ok(libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags));
        assert_eq!(libc::fcntl(fd, libc::F_GETFD), libc::FD_CLOEXEC);
        assert_ne!(libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK, 0);
    });
}

#[test]
fn tcp_half_close() {
    isolated(|| unsafe {
        let (mut client, mut server) = tcp_pair();
        client.write_all(b"ask").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ask");
        assert_ne!(until(server.as_raw_fd(), libc::POLLRDHUP) & libc::POLLRDHUP, 0);
        server.write_all(b"answer").unwrap();
        drop(server);
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "askanswer");
        fails(libc::send(client.as_raw_fd(), b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL), libc::EPIPE);
    });
}

#[test]
fn tcp_close_with_unread_data_resets() {
    isolated(|| unsafe {
        let (mut client, server) = tcp_pair();
        client.write_all(b"unread").unwrap();
        until(server.as_raw_fd(), libc::POLLIN);
        drop(server);
        assert_ne!(until(client.as_raw_fd(), libc::POLLIN) & libc::POLLIN, 0);
        fails(receive(client.as_raw_fd(), 1, 0), libc::ECONNRESET);
        assert_eq!(receive(client.as_raw_fd(), 1, 0), 0);
    });
}

#[test]
fn tcp_linger_of_zero_resets() {
    isolated(|| unsafe {
        let (client, server) = tcp_pair();
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        ok(set_option(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, linger));
        drop(server);
        until(client.as_raw_fd(), libc::POLLIN);
        fails(receive(client.as_raw_fd(), 1, 0), libc::ECONNRESET);
    });
}

#[test]
fn tcp_write_after_a_reset_gives_epipe() {
    isolated(|| unsafe {
        let (client, server) = tcp_pair();
        ok(set_option(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, libc::linger { l_onoff: 1, l_linger: 0 }));
        drop(server);
        until(client.as_raw_fd(), libc::POLLIN);
        let send = || libc::send(client.as_raw_fd(), b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL);
        fails(send(), libc::ECONNRESET);
        fails(send(), libc::EPIPE);
    });
}

#[test]
fn tcp_receive_flags() {
    isolated(|| unsafe {
        let (mut client, server) = tcp_pair();
        let fd = server.as_raw_fd();
        fails(receive(fd, 1, libc::MSG_DONTWAIT), libc::EAGAIN);
        client.write_all(b"abcd").unwrap();
        until(fd, libc::POLLIN);
        assert_eq!(receive(fd, 2, libc::MSG_PEEK), 2);
        let rest = std::thread::spawn(move || {
            client.write_all(b"efgh").unwrap();
            client
        });
        assert_eq!(receive(fd, 8, libc::MSG_WAITALL), 8);
        drop(rest.join().unwrap());
        assert_eq!(receive(fd, 8, libc::MSG_WAITALL), 0);
    });
}

#[test]
fn tcp_receive_timeout_gives_eagain() {
    isolated(|| unsafe {
        let (_client, server) = tcp_pair();
        server.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let start = Instant::now();
        fails(receive(server.as_raw_fd(), 1, 0), libc::EAGAIN);
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert_eq!(server.read_timeout().unwrap(), Some(Duration::from_millis(20)));
    });
}

#[test]
fn tcp_full_window_blocks_until_read() {
    isolated(|| unsafe {
        let (client, mut server) = tcp_pair();
        client.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = (&client).write(&[7; 65536]) {
            sent += count;
            assert!(sent < 1 << 30);
        }
        assert_eq!(errno(), libc::EAGAIN);
        let mut received = 0;
        while received < sent {
            received += server.read(&mut [0; 65536]).unwrap();
        }
        assert_eq!(received, sent);
        assert_eq!(until(client.as_raw_fd(), libc::POLLOUT), libc::POLLOUT);
        fails(receive(server.as_raw_fd(), 1, libc::MSG_DONTWAIT), libc::EAGAIN);
    });
}

#[test]
fn tcp_options_are_kept() {
    isolated(|| unsafe {
        let fd = socket(libc::SOCK_STREAM);
        for (level, name) in [
            (libc::IPPROTO_TCP, libc::TCP_NODELAY),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            (libc::SOL_SOCKET, libc::SO_REUSEADDR),
            (libc::SOL_SOCKET, libc::SO_REUSEPORT),
            (libc::SOL_SOCKET, libc::SO_BROADCAST),
        ] {
            assert_eq!(option(fd, level, name), 0, "{level} {name}");
            ok(set_option(fd, level, name, 1));
            assert_eq!(option(fd, level, name), 1, "{level} {name}");
        }
        ok(set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77));
        assert_eq!(option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE), 77);
        ok(set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, 20_000));
        assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF), 40_000);
        assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_TYPE), libc::SOCK_STREAM);
        assert_eq!(option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL), libc::IPPROTO_TCP);
        fails(set_option(fd, libc::SOL_SOCKET, 9999, 1), libc::ENOPROTOOPT);
        fails(set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1u8), libc::EINVAL);
        let (_client, server) = tcp_pair();
        assert!(option(server.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_MAXSEG) >= 536);
    });
}

#[test]
fn tcp_state_is_told() {
    isolated(|| unsafe {
        let info = |fd: RawFd| {
            let (mut info, mut length): ([u8; 104], _) = ([0; 104], 104);
            ok(libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length));
            info[0]
        };
        let (client, server) = tcp_pair();
        assert_eq!(info(client.as_raw_fd()), 1);
        drop(client);
        until(server.as_raw_fd(), libc::POLLIN);
        assert_eq!(info(server.as_raw_fd()), 8);
        assert_eq!(info(TcpListener::bind(LOCAL).unwrap().as_raw_fd()), 10);
        assert_eq!(info(socket(libc::SOCK_STREAM)), 7);
    });
}

#[test]
fn tcp_unconnected_errors() {
    isolated(|| unsafe {
        let fd = socket(libc::SOCK_STREAM);
        fails(receive(fd, 1, 0), libc::ENOTCONN);
        fails(libc::send(fd, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL), libc::EPIPE);
        let (mut address, mut length): (sockaddr_in, _) = (zeroed(), 16);
        fails(libc::getpeername(fd, (&raw mut address).cast(), &mut length), libc::ENOTCONN);
        fails(libc::shutdown(fd, libc::SHUT_WR), libc::ENOTCONN);
        fails(libc::accept(fd, ptr::null_mut(), ptr::null_mut()), libc::EINVAL);
        ok(libc::getsockname(fd, (&raw mut address).cast(), &mut length));
        assert_eq!((address.sin_port, address.sin_addr.s_addr), (0, 0));
        fails(libc::recv(pipe().0, ptr::null_mut(), 0, 0), libc::ENOTSOCK);
        fails(libc::recv(77, ptr::null_mut(), 0, 0), libc::EBADF);
    });
}

#[test]
fn bind_errors() {
    isolated(|| unsafe {
        let listener = TcpListener::bind(LOCAL).unwrap();
        let taken = v4([127, 0, 0, 1], listener.local_addr().unwrap().port());
        fails(bind(socket(libc::SOCK_STREAM), &taken), libc::EADDRINUSE);
        ok(bind(socket(libc::SOCK_DGRAM), &taken));
        fails(bind(socket(libc::SOCK_STREAM), &v4([192, 0, 2, 77], 0)), libc::EADDRNOTAVAIL);
        let fd = socket(libc::SOCK_STREAM);
        ok(bind(fd, &v4([127, 0, 0, 1], 0)));
        fails(bind(fd, &v4([127, 0, 0, 1], 0)), libc::EINVAL);
        let mut wrong = v4([127, 0, 0, 1], 0);
        wrong.sin_family = 99;
        fails(bind(socket(libc::SOCK_STREAM), &wrong), libc::EAFNOSUPPORT);
        fails(libc::bind(socket(libc::SOCK_STREAM), (&raw const wrong).cast(), 3), libc::EINVAL);
        as_user(1234, || {
            let unprivileged = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
            if unprivileged.is_ok_and(|text| text.trim() == "1024") {
                fails(bind(socket(libc::SOCK_STREAM), &v4([127, 0, 0, 1], 81)), libc::EACCES);
            }
        });
    });
}

#[test]
fn bind_to_a_specific_and_the_wildcard_address_collide() {
    isolated(|| unsafe {
        let listener = TcpListener::bind(LOCAL).unwrap();
        let port = listener.local_addr().unwrap().port();
        fails(bind(socket(libc::SOCK_STREAM), &v4([0; 4], port)), libc::EADDRINUSE);
        ok(bind(socket(libc::SOCK_STREAM), &v4([127, 0, 0, 2], port)));
    });
}

#[test]
fn reuse_port_shares_a_port() {
    isolated(|| unsafe {
        let (first, second) = (socket(libc::SOCK_DGRAM), socket(libc::SOCK_DGRAM));
        for fd in [first, second] {
            ok(set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1));
        }
        ok(bind(first, &v4([127, 0, 0, 1], 0)));
        let port = UdpSocket::from_raw_fd(ok(libc::dup(first))).local_addr().unwrap().port();
        ok(bind(second, &v4([127, 0, 0, 1], port)));
        fails(bind(socket(libc::SOCK_DGRAM), &v4([127, 0, 0, 1], port)), libc::EADDRINUSE);
    });
}

#[test]
fn whole_loopback_network_answers() {
    isolated(|| {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 9, 8, 7), 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(client.peer_addr().unwrap().ip(), Ipv4Addr::new(127, 9, 8, 7));
    });
}

#[test]
fn udp_keeps_boundaries_and_names_senders() {
    isolated(|| {
        let (first, second) = (UdpSocket::bind(LOCAL).unwrap(), UdpSocket::bind(LOCAL).unwrap());
        let to = second.local_addr().unwrap();
        for text in [&b"abc"[..], b"", b"de"] {
            assert_eq!(first.send_to(text, to).unwrap(), text.len());
        }
        let mut buffer = [0; 9];
        for text in [&b"abc"[..], b"", b"de"] {
            let (count, from) = second.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..count], from), (text, first.local_addr().unwrap()));
        }
    });
}

#[test]
fn udp_truncates_and_tells_the_length() {
    isolated(|| unsafe {
        let (first, second) = (UdpSocket::bind(LOCAL).unwrap(), UdpSocket::bind(LOCAL).unwrap());
        let to = second.local_addr().unwrap();
        first.send_to(b"abcdef", to).unwrap();
        first.send_to(b"ghi", to).unwrap();
        let fd = second.as_raw_fd();
        assert_eq!(receive(fd, 2, libc::MSG_PEEK | libc::MSG_TRUNC), 6);
        let mut buffer = [0u8; 2];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 2 };
        let mut message: libc::msghdr = zeroed();
        (message.msg_iov, message.msg_iovlen) = (&mut part, 1);
        assert_eq!(ok(libc::recvmsg(fd, &mut message, 0)), 2);
        assert_eq!((&buffer, message.msg_flags & libc::MSG_TRUNC), (b"ab", libc::MSG_TRUNC));
        assert_eq!(receive(fd, 9, 0), 3);
        fails(receive(fd, 9, libc::MSG_DONTWAIT), libc::EAGAIN);
    });
}

#[test]
fn udp_connected_socket_hears_only_its_peer_and_refusals() {
    isolated(|| unsafe {
        let (first, second) = (UdpSocket::bind(LOCAL).unwrap(), UdpSocket::bind(LOCAL).unwrap());
        let other = UdpSocket::bind(LOCAL).unwrap();
        first.connect(second.local_addr().unwrap()).unwrap();
        other.send_to(b"other", first.local_addr().unwrap()).unwrap();
        second.send_to(b"peer", first.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 9];
        assert_eq!(first.recv(&mut buffer).unwrap(), 4);
        fails(receive(first.as_raw_fd(), 9, libc::MSG_DONTWAIT), libc::EAGAIN);
        drop(second);
        first.send(b"x").unwrap();
        until(first.as_raw_fd(), libc::POLLIN);
        fails(receive(first.as_raw_fd(), 9, 0), libc::ECONNREFUSED);
        fails(receive(first.as_raw_fd(), 9, libc::MSG_DONTWAIT), libc::EAGAIN);
    });
}

#[test]
fn udp_disconnects_with_an_unspecified_family() {
    isolated(|| unsafe {
        let (first, second) = (UdpSocket::bind(LOCAL).unwrap(), UdpSocket::bind(LOCAL).unwrap());
        first.connect(second.local_addr().unwrap()).unwrap();
        let mut none = v4([0; 4], 0);
        none.sin_family = libc::AF_UNSPEC as u16;
        ok(connect(first.as_raw_fd(), &none));
        assert_eq!(first.peer_addr().unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
        fails(libc::send(first.as_raw_fd(), b"x".as_ptr().cast(), 1, 0), libc::EDESTADDRREQ);
    });
}

#[test]
fn udp_size_limits() {
    isolated(|| {
        let (first, second) = (UdpSocket::bind(LOCAL).unwrap(), UdpSocket::bind(LOCAL).unwrap());
        let to = second.local_addr().unwrap();
        assert_eq!(first.send_to(&[7; 65507], to).unwrap(), 65507);
        assert_eq!(second.recv(&mut [0; 70_000]).unwrap(), 65507);
        assert_eq!(first.send_to(&[7; 65508], to).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
        let error = first.send_to(b"x", (Ipv4Addr::LOCALHOST, 0)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    });
}

#[test]
fn messages_gather_and_scatter() {
    isolated(|| unsafe {
        let (client, server) = tcp_pair();
        let mut parts = [*b"abc", *b"def"];
        let vectors = |parts: &mut [[u8; 3]; 2]| {
            parts.each_mut().map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: 3 })
        };
        let mut list = vectors(&mut parts);
        let mut message: libc::msghdr = zeroed();
        (message.msg_iov, message.msg_iovlen) = (list.as_mut_ptr(), 2);
        assert_eq!(ok(libc::sendmsg(client.as_raw_fd(), &message, 0)), 6);
        let mut received = [[0; 3]; 2];
        let mut list = vectors(&mut received);
        message.msg_iov = list.as_mut_ptr();
        assert_eq!(ok(libc::recvmsg(server.as_raw_fd(), &mut message, libc::MSG_WAITALL)), 6);
        assert_eq!(received, [*b"abc", *b"def"]);
        message.msg_iovlen = 1025;
        fails(libc::sendmsg(client.as_raw_fd(), &message, 0), libc::EMSGSIZE);
    });
}

#[test]
fn several_messages_in_one_call() {
    isolated(|| unsafe {
        let (first, second) = (UdpSocket::bind(LOCAL).unwrap(), UdpSocket::bind(LOCAL).unwrap());
        first.connect(second.local_addr().unwrap()).unwrap();
        let mut bytes = [*b"ab", *b"cd", *b"ef"];
        let mut list = bytes.each_mut().map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: 2 });
        let mut messages: [libc::mmsghdr; 3] = zeroed();
        for (message, part) in messages.iter_mut().zip(&mut list) {
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
        }
        assert_eq!(ok(libc::sendmmsg(first.as_raw_fd(), messages.as_mut_ptr(), 3, 0)), 3);
        assert_eq!(messages[2].msg_len, 2);
        bytes = [[0; 2]; 3];
        let flags = libc::MSG_WAITFORONE;
        let count = ok(libc::recvmmsg(second.as_raw_fd(), messages.as_mut_ptr(), 3, flags, ptr::null_mut()));
        assert_eq!((count, std::hint::black_box(bytes)), (3, [*b"ab", *b"cd", *b"ef"]));
    });
}

#[test]
fn ipv6_streams_and_datagrams() {
    isolated(|| {
        let listener = TcpListener::bind(LOCAL6).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        client.write_all(b"six").unwrap();
        let mut buffer = [0; 3];
        server.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"six");
        let (first, second) = (UdpSocket::bind(LOCAL6).unwrap(), UdpSocket::bind(LOCAL6).unwrap());
        first.send_to(b"x", second.local_addr().unwrap()).unwrap();
        assert_eq!(second.recv_from(&mut buffer).unwrap(), (1, first.local_addr().unwrap()));
    });
}

#[test]
fn dual_stack_listener_sees_mapped_addresses() {
    isolated(|| unsafe {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let (_, from) = listener.accept().unwrap();
        let SocketAddr::V6(from) = from else { panic!("{from}") };
        assert_eq!(from.ip().to_ipv4_mapped(), Some(Ipv4Addr::LOCALHOST));
        assert_eq!(from.port(), client.local_addr().unwrap().port());
        let only = ok(libc::socket(libc::AF_INET6, libc::SOCK_STREAM, 0));
        ok(set_option(only, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1));
        let mut any: sockaddr_in6 = zeroed();
        any.sin6_family = libc::AF_INET6 as u16;
        ok(libc::bind(only, (&raw const any).cast(), 28));
        ok(libc::listen(only, 1));
        let port = TcpListener::from_raw_fd(only).local_addr().unwrap().port();
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
    });
}

#[test]
fn connections_of_many_processes() {
    isolated(|| {
        let listener = TcpListener::bind(LOCAL).unwrap();
        let address = listener.local_addr().unwrap();
        let pids: Vec<_> = (0..8u8)
            .map(|n| {
                child(|| {
                    for _ in 0..10 {
                        let mut stream = TcpStream::connect(address).unwrap();
                        stream.write_all(&[n]).unwrap();
                        let mut answer = [0];
                        stream.read_exact(&mut answer).unwrap();
                        assert_eq!(answer[0], n + 1);
                    }
                    0
                })
            })
            .collect();
        for _ in 0..80 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&[byte[0] + 1]).unwrap();
        }
        pids.into_iter().for_each(|pid| assert_eq!(wait(pid), Status::Exited(0)));
    });
}

#[test]
fn loopback_interface_is_up() {
    isolated(|| unsafe {
        let mut request: libc::ifreq = zeroed();
        request.ifr_name[..3].copy_from_slice(&[b'l' as i8, b'o' as i8, 0]);
        let fd = socket(libc::SOCK_DGRAM);
        ok(libc::ioctl(fd, libc::SIOCGIFFLAGS, &mut request));
        let flags = c_int::from(request.ifr_ifru.ifru_flags);
        assert_eq!(flags & (libc::IFF_UP | libc::IFF_LOOPBACK), libc::IFF_UP | libc::IFF_LOOPBACK);
        assert_eq!(libc::if_nametoindex(c"lo".as_ptr()), 1);
        request.ifr_name[0] = b'?' as i8;
        fails(libc::ioctl(fd, libc::SIOCGIFFLAGS, &mut request), libc::ENODEV);
    });
}

#[test]
fn sysfs_tells_of_interfaces() {
    isolated(|| {
        let read = |name: &str| std::fs::read_to_string(format!("/sys/class/net/lo/{name}"));
        let text = |name: &str| read(name).unwrap().trim().to_owned();
        let names: Vec<_> =
            std::fs::read_dir("/sys/class/net").unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().any(|name| name == "lo"), "{names:?}");
        let link = std::fs::read_link("/sys/class/net/lo").unwrap();
        assert_eq!(link.to_str(), Some("../../devices/virtual/net/lo"));
        for (name, expected) in [
            ("address", "00:00:00:00:00:00"),
            ("addr_len", "6"),
            ("broadcast", "00:00:00:00:00:00"),
            ("carrier", "1"),
            ("flags", "0x9"),
            ("ifindex", "1"),
            ("iflink", "1"),
            ("mtu", "65536"),
            ("operstate", "unknown"),
            ("tx_queue_len", "1000"),
            ("type", "772"),
            ("uevent", "INTERFACE=lo\nIFINDEX=1"),
        ] {
            assert_eq!(text(name), expected, "{name}");
        }
        assert_eq!(read("speed").unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(read("no_such").unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert!(std::fs::read_dir("/sys/class/net/lo/statistics").unwrap().count() >= 23);
        let bytes = || text("statistics/rx_bytes").parse::<u64>().unwrap();
        let before = bytes();
        let (mut client, mut server) = tcp_pair();
        client.write_all(&[7; 10_000]).unwrap();
        server.read_exact(&mut [0; 10_000]).unwrap();
        assert!(bytes() >= before + 10_000);
    });
}
