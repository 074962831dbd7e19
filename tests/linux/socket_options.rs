//! Options of Internet sockets, and what they do: `socket(7)`, `ip(7)`, `ipv6(7)`, `tcp(7)`.

use std::io::{Read, Write};
use std::mem::{size_of_val, zeroed};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use libc::{c_int, socklen_t};

use crate::common::*;

const LOCAL: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
const TCP: c_int = libc::IPPROTO_TCP;
const IP: c_int = libc::IPPROTO_IP;
const IPV6: c_int = libc::IPPROTO_IPV6;
const SOCKET: c_int = libc::SOL_SOCKET;

fn socket(domain: c_int, kind: c_int) -> RawFd {
    // SAFETY: no memory is involved.
    ok(unsafe { libc::socket(domain, kind, 0) })
}

fn set(fd: RawFd, level: c_int, name: c_int, value: &[u8]) -> Result<(), c_int> {
    // SAFETY: the pointer and the length are those of `value`.
    let result = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), value.len() as socklen_t) };
    if result == 0 { Ok(()) } else { Err(errno()) }
}

fn get(fd: RawFd, level: c_int, name: c_int) -> Result<c_int, c_int> {
    let (mut value, mut len): (c_int, socklen_t) = (0, 4);
    // SAFETY: both are valid.
    let result = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &mut len) };
    if result == 0 { Ok(value) } else { Err(errno()) }
}

/// Sets an option to each value in turn, and what it reads back or why it was refused.
#[track_caller]
fn turns(domain: c_int, kind: c_int, (level, name): (c_int, c_int), expected: &[(c_int, Result<c_int, c_int>)]) {
    for &(value, expected) in expected {
        let fd = socket(domain, kind);
        let found = set(fd, level, name, &value.to_ne_bytes()).and_then(|()| get(fd, level, name));
        assert_eq!(found, expected, "level {level} option {name} set to {value}");
        // SAFETY: it is this function's own.
        ok(unsafe { libc::close(fd) });
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn gettid() -> libc::pid_t {
    // SAFETY: no memory is involved.
    unsafe { libc::gettid() }
}

fn ready(fd: RawFd, events: i16, millis: c_int) -> bool {
    let mut poll = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one valid entry.
    ok(unsafe { libc::poll(&mut poll, 1, millis) }) == 1
}

#[test]
fn tcp_options_keep_what_linux_keeps() {
    isolated(|| {
        let invalid = Err(libc::EINVAL);
        let tcp = |name, expected: &[_]| turns(libc::AF_INET, libc::SOCK_STREAM, (TCP, name), expected);
        tcp(libc::TCP_SYNCNT, &[(0, invalid), (1, Ok(1)), (127, Ok(127)), (128, invalid)]);
        tcp(libc::TCP_LINGER2, &[(-5, Ok(-1)), (0, Ok(60)), (5, Ok(5)), (1000, Ok(120))]);
        tcp(libc::TCP_WINDOW_CLAMP, &[(0, Ok(0)), (1, Ok(1152)), (2303, Ok(2303)), (65_536, Ok(65_536))]);
        tcp(libc::TCP_NOTSENT_LOWAT, &[(0, Ok(0)), (1, Ok(1)), (-1, Ok(-1)), (70_000, Ok(70_000))]);
        tcp(libc::TCP_FASTOPEN, &[(-1, invalid), (0, Ok(0)), (5, Ok(5))]);
        tcp(libc::TCP_DEFER_ACCEPT, &[(-1, Ok(0)), (1, Ok(1)), (2, Ok(3)), (5, Ok(7)), (60, Ok(63))]);
        tcp(libc::TCP_MAXSEG, &[(87, invalid), (88, Ok(88)), (32_767, Ok(32_767)), (32_768, invalid)]);
        tcp(libc::TCP_QUICKACK, &[(0, Ok(0)), (1, Ok(1))]);
        tcp(libc::TCP_KEEPIDLE, &[(0, invalid), (1, Ok(1)), (32_767, Ok(32_767)), (32_768, invalid)]);
        tcp(libc::TCP_KEEPINTVL, &[(0, invalid), (32_767, Ok(32_767)), (32_768, invalid)]);
        tcp(libc::TCP_KEEPCNT, &[(0, invalid), (127, Ok(127)), (128, invalid)]);
        tcp(libc::TCP_USER_TIMEOUT, &[(-1, invalid), (500, Ok(500))]);
        turns(libc::AF_INET, libc::SOCK_DGRAM, (TCP, libc::TCP_NODELAY), &[(1, Err(libc::ENOPROTOOPT))]);
    });
}

#[test]
fn tcp_congestion_control_is_one_that_there_is() {
    isolated(|| {
        let fd = socket(libc::AF_INET, libc::SOCK_STREAM);
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap();
        assert!(text.split_whitespace().any(|name| name == "reno"), "{text}");
        let name = || {
            let (mut name, mut len) = ([0u8; 16], 16);
            // SAFETY: both are valid.
            ok(unsafe { libc::getsockopt(fd, TCP, libc::TCP_CONGESTION, name.as_mut_ptr().cast(), &mut len) });
            String::from_utf8_lossy(&name).trim_end_matches('\0').to_string()
        };
        let default = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
        assert_eq!(name(), default.trim());
        assert_eq!(set(fd, TCP, libc::TCP_CONGESTION, b"reno"), Ok(()));
        assert_eq!(name(), "reno");
        assert_eq!(set(fd, TCP, libc::TCP_CONGESTION, b"nope"), Err(libc::ENOENT));
        assert_eq!(set(fd, TCP, libc::TCP_CONGESTION, b""), Err(libc::EINVAL));
        assert_eq!(name(), "reno");
    });
}

#[test]
fn ip_options_are_checked_as_linux_does() {
    isolated(|| {
        let invalid = Err(libc::EINVAL);
        let (missing, tcp, udp) = (Err(libc::ENOPROTOOPT), libc::SOCK_STREAM, libc::SOCK_DGRAM);
        let v4 = |kind, name, expected: &[_]| turns(libc::AF_INET, kind, (IP, name), expected);
        let v6 = |kind, name, expected: &[_]| turns(libc::AF_INET6, kind, (IPV6, name), expected);
        for kind in [tcp, udp] {
            v4(kind, libc::IP_HDRINCL, &[(1, missing)]);
            v4(kind, libc::IP_MTU_DISCOVER, &[(0, Ok(0)), (5, Ok(5)), (6, invalid), (-1, invalid)]);
            v4(kind, libc::IP_TTL, &[(0, invalid), (1, Ok(1)), (255, Ok(255)), (256, invalid), (-1, Ok(64))]);
            v6(kind, libc::IPV6_MTU_DISCOVER, &[(0, Ok(0)), (5, Ok(5)), (6, invalid)]);
            v6(
                kind,
                libc::IPV6_UNICAST_HOPS,
                &[(0, Ok(0)), (255, Ok(255)), (256, invalid), (-1, Ok(64)), (-2, invalid)],
            );
            v6(kind, libc::IPV6_MULTICAST_LOOP, &[(0, Ok(0)), (1, Ok(1)), (2, invalid)]);
            turns(libc::AF_INET, kind, (SOCKET, libc::SO_PRIORITY), &[(0, Ok(0)), (6, Ok(6)), (7, Ok(7))]);
        }
        v4(tcp, libc::IP_TOS, &[(0x10, Ok(0x10)), (0xff, Ok(0xfc)), (3, Ok(0))]);
        v4(udp, libc::IP_TOS, &[(0x10, Ok(0x10)), (0xff, Ok(0xff)), (3, Ok(3))]);
        v6(tcp, libc::IPV6_TCLASS, &[(0xff, Ok(0xfc)), (256, invalid), (-1, Ok(0)), (-2, invalid)]);
        v4(tcp, libc::IP_MULTICAST_TTL, &[(5, invalid)]);
        v4(udp, libc::IP_MULTICAST_TTL, &[(5, Ok(5)), (-1, Ok(1)), (256, invalid)]);
        v4(tcp, libc::IP_MULTICAST_IF, &[(0, invalid)]);
        v6(tcp, libc::IPV6_MULTICAST_HOPS, &[(5, missing)]);
        v6(tcp, libc::IPV6_MULTICAST_IF, &[(0, missing)]);
        v6(udp, libc::IPV6_MULTICAST_HOPS, &[(0, Ok(0)), (255, Ok(255)), (256, invalid), (-1, Ok(1))]);
        v6(udp, libc::IPV6_MULTICAST_IF, &[(0, Ok(0)), (1, Ok(1)), (99, Err(libc::ENODEV)), (-1, Err(libc::ENODEV))]);
        let fd = socket(libc::AF_INET, udp);
        assert_eq!(set(fd, IP, libc::IP_MULTICAST_IF, &[127, 0, 0, 1]), Ok(()));
        assert_eq!(get(fd, IP, libc::IP_MULTICAST_IF), Ok(i32::from_ne_bytes([127, 0, 0, 1])));
        assert_eq!(set(fd, IP, libc::IP_MULTICAST_IF, &[1, 1, 1, 1]), Err(libc::EADDRNOTAVAIL));
        for (tos, priority) in [(0, 0), (2, 0), (8, 2), (0x10, 6), (0x18, 4), (0xff, 4)] {
            assert_eq!(set(fd, IP, libc::IP_TOS, &i32::to_ne_bytes(tos)), Ok(()));
            assert_eq!(get(fd, SOCKET, libc::SO_PRIORITY), Ok(priority), "of type of service {tos}");
        }
    });
}

#[test]
fn ip_options_of_an_ipv6_socket_are_apart() {
    isolated(|| {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let fd = socket(libc::AF_INET6, kind);
            assert_eq!(set(fd, IP, libc::IP_TTL, &9i32.to_ne_bytes()), Ok(()));
            assert_eq!((get(fd, IP, libc::IP_TTL), get(fd, IPV6, libc::IPV6_UNICAST_HOPS)), (Ok(9), Ok(64)));
            assert_eq!(set(fd, IPV6, libc::IPV6_UNICAST_HOPS, &7i32.to_ne_bytes()), Ok(()));
            assert_eq!((get(fd, IP, libc::IP_TTL), get(fd, IPV6, libc::IPV6_UNICAST_HOPS)), (Ok(9), Ok(7)));
            assert_eq!(set(fd, IP, libc::IP_TOS, &16i32.to_ne_bytes()), Ok(()));
            assert_eq!((get(fd, IP, libc::IP_TOS), get(fd, IPV6, libc::IPV6_TCLASS)), (Ok(16), Ok(0)));
        }
    });
}

#[test]
fn binding_to_a_device_keeps_to_it() {
    isolated(|| {
        let bind = |fd, name: &[u8]| set(fd, SOCKET, libc::SO_BINDTODEVICE, name);
        let socket = UdpSocket::bind(LOCAL).unwrap();
        let fd = socket.as_raw_fd();
        assert_eq!(bind(fd, b"nope"), Err(libc::ENODEV));
        assert_eq!(bind(fd, b"lo\0\0"), Ok(()));
        let (mut name, mut len) = ([0u8; 16], 16);
        // SAFETY: both are valid.
        ok(unsafe { libc::getsockopt(fd, SOCKET, libc::SO_BINDTODEVICE, name.as_mut_ptr().cast(), &mut len) });
        assert_eq!((&name[..3], len), (&b"lo\0"[..], 3));
        len = 2;
        // SAFETY: both are valid.
        let result = unsafe { libc::getsockopt(fd, SOCKET, libc::SO_BINDTODEVICE, name.as_mut_ptr().cast(), &mut len) };
        fails(result, libc::EINVAL);
        // Within it all is as before; elsewhere what is sent is gone.
        let address = socket.local_addr().unwrap();
        let other = UdpSocket::bind(LOCAL).unwrap();
        other.send_to(b"in", address).unwrap();
        let mut buffer = [0; 10];
        assert_eq!(socket.recv(&mut buffer).unwrap(), 2);
        socket.send_to(b"out", "192.0.2.1:9").unwrap();
        let six = self::socket(libc::AF_INET6, libc::SOCK_DGRAM);
        assert_eq!(bind(six, b"lo\0\0"), Ok(()));
        let listener = TcpListener::bind(LOCAL).unwrap();
        assert_eq!(bind(listener.as_raw_fd(), b"lo\0\0"), Ok(()));
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    });
}

#[test]
fn multicast_goes_by_the_interface_that_was_chosen() {
    isolated(|| {
        let receiver = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let group = Ipv4Addr::new(239, 1, 2, 3);
        receiver.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        let to = (group, receiver.local_addr().unwrap().port());
        let sender = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        assert_eq!(set(sender.as_raw_fd(), IP, libc::IP_MULTICAST_IF, &[127, 0, 0, 1]), Ok(()));
        sender.send_to(b"hello", to).unwrap();
        let mut buffer = [0; 10];
        let (len, from) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from.ip()), (&b"hello"[..], Ipv4Addr::LOCALHOST.into()));
    });
}

#[test]
fn groups_of_others_are_heard_unless_one_says_otherwise() {
    isolated(|| {
        let group = Ipv4Addr::new(239, 7, 7, 7);
        let receiver = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let fd = receiver.as_raw_fd();
        assert_eq!(get(fd, IP, libc::IP_MULTICAST_ALL), Ok(1));
        let port = receiver.local_addr().unwrap().port();
        let sender = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        assert_eq!(set(sender.as_raw_fd(), IP, libc::IP_MULTICAST_IF, &[127, 0, 0, 1]), Ok(()));
        let heard = || {
            sender.send_to(b"group", (group, port)).unwrap();
            sender.send_to(b"own", (Ipv4Addr::LOCALHOST, port)).unwrap();
            let mut buffer = [0; 10];
            let group = receiver.recv(&mut buffer).unwrap() == 5;
            group && receiver.recv(&mut buffer).unwrap() == 3
        };
        assert!(!heard(), "nobody here is in the group");
        let member = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        member.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        let again = member.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap_err();
        assert_eq!(again.raw_os_error(), Some(libc::EADDRINUSE));
        assert!(heard());
        assert_eq!(set(fd, IP, libc::IP_MULTICAST_ALL, &0i32.to_ne_bytes()), Ok(()));
        assert!(!heard(), "not in the group itself");
        receiver.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        drop(member);
        assert!(heard());
        receiver.leave_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap();
        assert!(!heard());
        let left = receiver.leave_multicast_v4(&group, &Ipv4Addr::LOCALHOST).unwrap_err();
        assert_eq!(left.raw_os_error(), Some(libc::EADDRNOTAVAIL));
        let nowhere = [239, 7, 7, 7, 0, 0, 0, 0, 77, 0, 0, 0];
        assert_eq!(set(fd, IP, libc::IP_ADD_MEMBERSHIP, &nowhere), Err(libc::ENODEV));
    });
}

#[test]
fn buffers_are_no_longer_than_the_parameters_say() {
    isolated(|| {
        let parameter = |name: &str| -> i32 {
            let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap();
            text.trim().parse().unwrap()
        };
        for (domain, kind) in [(libc::AF_INET, libc::SOCK_DGRAM), (libc::AF_UNIX, libc::SOCK_STREAM)] {
            let fd = socket(domain, kind);
            assert_eq!(get(fd, SOCKET, libc::SO_RCVBUF), Ok(parameter("rmem_default")));
            assert_eq!(get(fd, SOCKET, libc::SO_SNDBUF), Ok(parameter("wmem_default")));
            for (option, name) in [(libc::SO_RCVBUF, "rmem_max"), (libc::SO_SNDBUF, "wmem_max")] {
                assert_eq!(set(fd, SOCKET, option, &i32::MAX.to_ne_bytes()), Ok(()));
                assert_eq!(get(fd, SOCKET, option), Ok(parameter(name) * 2));
                assert_eq!(set(fd, SOCKET, option, &100_000i32.to_ne_bytes()), Ok(()));
                assert_eq!(get(fd, SOCKET, option), Ok(200_000));
            }
            let most = parameter("rmem_max") + 10_000;
            assert_eq!(set(fd, SOCKET, libc::SO_RCVBUFFORCE, &most.to_ne_bytes()), Ok(()));
            assert_eq!(get(fd, SOCKET, libc::SO_RCVBUF), Ok(most * 2));
            as_user(1234, || {
                let fd = socket(domain, kind);
                let refused = Err(libc::EPERM);
                assert_eq!(set(fd, SOCKET, libc::SO_RCVBUFFORCE, &100_000i32.to_ne_bytes()), refused);
                assert_eq!(set(fd, SOCKET, libc::SO_PRIORITY, &7i32.to_ne_bytes()), refused);
                assert_eq!(set(fd, SOCKET, libc::SO_PRIORITY, &6i32.to_ne_bytes()), Ok(()));
                assert_eq!(get(fd, SOCKET, libc::SO_PRIORITY), Ok(6));
            });
        }
    });
}

/// Sends until there is no more room, and returns how much that was.
fn fill(stream: &TcpStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (mut sent, bytes) = (0, vec![7u8; 1 << 16]);
    let mut out: &TcpStream = stream;
    // The receiver's window may open once more.
    for _ in 0..100 {
        while let Ok(n) = out.write(&bytes) {
            sent += n;
        }
        // SAFETY: no memory is involved.
        unsafe { libc::usleep(1000) };
    }
    stream.set_nonblocking(false).unwrap();
    sent
}

/// `SO_LINGER` with so many seconds.
fn linger(fd: c_int, seconds: i32) {
    assert_eq!(set(fd, SOCKET, libc::SO_LINGER, &[1i32.to_ne_bytes(), seconds.to_ne_bytes()].concat()), Ok(()));
}

/// How long `close` takes with a peer that does not read and with so many seconds to linger.
fn lingering(seconds: i32, close: impl FnOnce(c_int)) -> Duration {
    let (client, server) = pair();
    fill(&client);
    let fd = client.into_raw_fd();
    linger(fd, seconds);
    let start = Instant::now();
    close(fd);
    let took = start.elapsed();
    drop(server);
    took
}

#[test]
fn however_a_socket_is_closed_it_lingers() {
    isolated(|| unsafe {
        let second = Duration::from_millis(900)..Duration::from_secs(20);
        let other = ok(libc::dup(0));
        let took = [
            lingering(1, close),
            lingering(1, |fd| {
                ok(libc::dup2(other, fd));
            }),
            lingering(1, |fd| {
                ok(libc::dup3(other, fd, libc::O_CLOEXEC));
            }),
            lingering(1, |fd| {
                ok(libc::syscall(libc::SYS_close_range, fd, fd, 0));
            }),
            // The last of two descriptors.
            lingering(1, |fd| {
                let more = ok(libc::dup(fd));
                close(fd);
                close(more);
            }),
        ];
        assert!(took.iter().all(|took| second.contains(took)), "{took:?}");
        let stays = lingering(30, |fd| {
            ok(libc::dup(fd));
            close(fd);
        });
        assert!(stays < Duration::from_secs(20), "{stays:?}");
    });
}

#[test]
fn execve_lingers_and_the_end_of_a_process_does_not() {
    isolated(|| {
        let ended = |seconds: i32, body: &dyn Fn(c_int)| {
            let (client, server) = pair();
            fill(&client);
            let fd = client.into_raw_fd();
            linger(fd, seconds);
            let (gate, own) = pipe();
            let pid = child(|| {
                close(own);
                read(gate, &mut [0]);
                body(fd);
                0
            });
            close(fd);
            let start = Instant::now();
            close(own);
            assert_eq!(wait(pid), Status::Exited(0));
            drop(server);
            start.elapsed()
        };
        let took = ended(30, &|_| ());
        assert!(took < Duration::from_secs(20), "{took:?}");
        let took = ended(1, &|fd| unsafe {
            ok(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC));
            let arguments = [c"true".as_ptr(), std::ptr::null()];
            libc::execv(c"/bin/true".as_ptr(), arguments.as_ptr());
        });
        assert!(took >= Duration::from_millis(900), "{took:?}");
    });
}

#[test]
fn lingering_ends_when_all_is_read() {
    isolated(|| {
        let (client, mut server) = pair();
        let sent = fill(&client);
        let fd = client.into_raw_fd();
        linger(fd, 30);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            server.read_to_end(&mut all).map(|_| all.len())
        });
        let start = Instant::now();
        close(fd);
        assert!(start.elapsed() < Duration::from_secs(20));
        assert_eq!(reader.join().unwrap().unwrap(), sent);
        // What little there is the peer's kernel takes at once.
        let (mut client, _server) = pair();
        client.write_all(b"hello").unwrap();
        let fd = client.into_raw_fd();
        linger(fd, 30);
        let start = Instant::now();
        close(fd);
        assert!(start.elapsed() < Duration::from_secs(20));
    });
}

#[test]
fn a_deferred_connection_is_accepted_when_it_has_said_something() {
    isolated(|| {
        let listener = TcpListener::bind(LOCAL).unwrap();
        let fd = listener.as_raw_fd();
        assert_eq!(set(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &60i32.to_ne_bytes()), Ok(()));
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        assert!(!ready(fd, libc::POLLIN, 50), "it has said nothing");
        let mut second = TcpStream::connect(address).unwrap();
        second.write_all(b"second").unwrap();
        let mut buffer = [0; 6];
        listener.accept().unwrap().0.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"second");
        client.write_all(b"first").unwrap();
        listener.accept().unwrap().0.read_exact(&mut buffer[..5]).unwrap();
        assert_eq!(&buffer[..5], b"first");
        // Its end says something, too; a reset takes it away.
        drop(TcpStream::connect(address).unwrap());
        assert_eq!(listener.accept().unwrap().0.read(&mut buffer).unwrap(), 0);
        let reset = TcpStream::connect(address).unwrap();
        linger(reset.as_raw_fd(), 0);
        drop(reset);
        assert!(!ready(fd, libc::POLLIN, 50));
    });
}

#[test]
fn a_deferred_connection_is_accepted_in_the_end() {
    isolated(|| {
        let listener = TcpListener::bind(LOCAL).unwrap();
        let fd = listener.as_raw_fd();
        assert_eq!(set(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &1i32.to_ne_bytes()), Ok(()));
        let start = Instant::now();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let took = start.elapsed();
        assert!((Duration::from_millis(900)..Duration::from_secs(20)).contains(&took), "{took:?}");
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
    });
}

#[test]
fn type_of_service_and_time_to_live_arrive() {
    isolated(|| {
        let receiver = UdpSocket::bind(LOCAL).unwrap();
        for option in [libc::IP_RECVTOS, libc::IP_RECVTTL] {
            assert_eq!(set(receiver.as_raw_fd(), IP, option, &1i32.to_ne_bytes()), Ok(()));
        }
        let sender = UdpSocket::bind(LOCAL).unwrap();
        sender.set_ttl(9).unwrap();
        assert_eq!(set(sender.as_raw_fd(), IP, libc::IP_TOS, &0x28i32.to_ne_bytes()), Ok(()));
        sender.send_to(b"x", receiver.local_addr().unwrap()).unwrap();
        let (mut byte, mut control) = ([0u8; 1], [0u64; 16]);
        let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
        let mut found = Vec::new();
        // SAFETY: an all-zero message is valid; its pointers are to what lives here.
        unsafe {
            let mut message: libc::msghdr = zeroed();
            (message.msg_iov, message.msg_iovlen) = (&mut iov, 1);
            (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
            assert_eq!(ok(libc::recvmsg(receiver.as_raw_fd(), &mut message, 0) as c_int), 1);
            let mut at = libc::CMSG_FIRSTHDR(&message);
            while !at.is_null() {
                found.push(((*at).cmsg_type, *libc::CMSG_DATA(at)));
                at = libc::CMSG_NXTHDR(&message, at);
            }
        }
        found.sort_unstable();
        assert_eq!(found, [(libc::IP_TOS, 0x28), (libc::IP_TTL, 9)]);
    });
}

#[test]
fn the_low_water_mark_holds_readers_back() {
    isolated(|| {
        let (mut client, mut server) = pair();
        let fd = server.as_raw_fd();
        assert_eq!(set(fd, SOCKET, libc::SO_RCVLOWAT, &5i32.to_ne_bytes()), Ok(()));
        assert_eq!(get(fd, SOCKET, libc::SO_RCVLOWAT), Ok(5));
        client.write_all(b"abc").unwrap();
        assert!(!ready(fd, libc::POLLIN, 50), "too little");
        let mut buffer = [0u8; 100];
        // SAFETY: the buffer is as long as it says.
        let taken = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), 100, libc::MSG_DONTWAIT) };
        assert_eq!(taken, 3, "who does not wait gets what there is");
        let (sender, tid) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            sender.send(gettid()).unwrap();
            let n = server.read(&mut buffer).unwrap();
            (buffer[..n].to_vec(), server)
        });
        // Linux counts only what came since the reader waits, so all of it comes after that.
        let tid = tid.recv().unwrap();
        until_asleep(tid);
        client.write_all(b"abc").unwrap();
        // If that were enough it would be on its way out of the call, and never sleep again.
        until_asleep(tid);
        assert!(!reader.is_finished());
        client.write_all(b"de").unwrap();
        let (read, mut server) = reader.join().unwrap();
        assert_eq!(read, b"abcde");
        client.write_all(b"fghij").unwrap();
        assert!(ready(fd, libc::POLLIN, 20_000));
        assert_eq!(server.read(&mut [0; 3]).unwrap(), 3, "no more than there is room for");
        drop(client);
        assert_eq!(server.read(&mut [0; 9]).unwrap(), 2, "no more than comes");
    });
}

#[test]
fn urgent_data_is_told_apart() {
    isolated(|| {
        let (client, _server) = pair();
        let mut mark = 1;
        // SAFETY: `mark` is valid.
        ok(unsafe { libc::ioctl(client.as_raw_fd(), 0x8905, &mut mark) });
        assert_eq!(mark, 0);
        // SAFETY: one valid byte.
        let result = unsafe { libc::recv(client.as_raw_fd(), [0u8].as_mut_ptr().cast(), 1, libc::MSG_OOB) };
        fails(result as c_int, libc::EINVAL);
        let datagrams = socket(libc::AF_INET, libc::SOCK_DGRAM);
        // SAFETY: `mark` is valid.
        fails(unsafe { libc::ioctl(datagrams, 0x8905, &mut mark) }, libc::ENOTTY);
    });
}

#[test]
fn each_connection_wakes_one_of_many_who_accept() {
    isolated(|| {
        let listener = TcpListener::bind(LOCAL).unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        listener.accept().unwrap();
                        accepted.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let clients: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
            drop(clients);
        });
        assert_eq!(accepted.into_inner(), 200, "none was forgotten");
    });
}

#[test]
fn the_end_of_a_listener_wakes_all_who_accept() {
    isolated(|| {
        let listener = TcpListener::bind(LOCAL).unwrap();
        let fd = listener.as_raw_fd();
        std::thread::scope(|scope| {
            let (sender, tids) = mpsc::channel();
            let waiting: Vec<_> = (0..8)
                .map(|_| {
                    let (sender, listener) = (sender.clone(), &listener);
                    scope.spawn(move || {
                        sender.send(gettid()).unwrap();
                        listener.accept().map(drop)
                    })
                })
                .collect();
            tids.iter().take(8).for_each(until_asleep);
            // SAFETY: no memory is involved.
            ok(unsafe { libc::shutdown(fd, libc::SHUT_RDWR) });
            for thread in waiting {
                assert_eq!(thread.join().unwrap().unwrap_err().raw_os_error(), Some(libc::EINVAL));
            }
        });
    });
}

/// How many signals were handled.
static HANDLED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_signal: c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

fn handle(flags: c_int) {
    // SAFETY: an all-zero action is valid, and the handler only counts.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = count as extern "C" fn(c_int) as usize;
        action.sa_flags = flags;
        ok(libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()));
    }
}

/// A `connect` that waits for room in a backlog: it goes on after a handler with `SA_RESTART`, and ends after another.
#[test]
fn connect_is_restarted_after_a_signal() {
    for (flags, expected) in [(0, Err(libc::EINTR)), (libc::SA_RESTART, Ok(()))] {
        isolated(|| {
            handle(flags);
            let listener = TcpListener::bind(LOCAL).unwrap();
            // SAFETY: no memory is involved.
            ok(unsafe { libc::listen(listener.as_raw_fd(), 0) });
            let address = listener.local_addr().unwrap();
            let first = TcpStream::connect(address).unwrap();
            // SAFETY: an all-zero address is valid.
            let mut name: libc::sockaddr_in = unsafe { zeroed() };
            name.sin_family = libc::AF_INET as u16;
            name.sin_port = address.port().to_be();
            name.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
            let fd = socket(libc::AF_INET, libc::SOCK_STREAM);
            // SAFETY: no memory is involved.
            let thread = unsafe { libc::pthread_self() };
            let (waiter, handled) = (gettid(), HANDLED.load(Ordering::SeqCst));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    until_asleep(waiter);
                    // SAFETY: that thread lives until it has joined this one.
                    unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                    while HANDLED.load(Ordering::SeqCst) == handled {
                        std::thread::yield_now();
                    }
                    // In the call again, or waiting for this thread after the end of it.
                    until_asleep(waiter);
                    listener.accept().unwrap();
                });
                // SAFETY: the address is as long as it says.
                let result = unsafe { libc::connect(fd, ptr::from_ref(&name).cast(), size_of_val(&name) as socklen_t) };
                let found = if result == 0 { Ok(()) } else { Err(errno()) };
                assert_eq!(found, expected);
            });
            drop(first);
        });
    }
}

#[test]
fn lingering_ends_when_the_peer_has_everything() {
    isolated(|| {
        let (mut client, mut server) = pair();
        let linger = [1i32.to_ne_bytes(), 30i32.to_ne_bytes()].concat();
        assert_eq!(set(client.as_raw_fd(), SOCKET, libc::SO_LINGER, &linger), Ok(()));
        client.write_all(b"last words").unwrap();
        let start = Instant::now();
        drop(client);
        assert!(start.elapsed() < Duration::from_secs(20));
        let mut all = Vec::new();
        server.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"last words");
    });
}
