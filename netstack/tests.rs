//! The stack against the host's kernel, over a TAP device in a network namespace of the test's own; against garbage; and
//! with many connections.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket as HostUdp};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use crate::container::network::open_tap;
use crate::errno::Errno;
use crate::netstack::stack::packet::{Header, TCP, UDP};
use crate::netstack::testing::*;
use crate::netstack::{SockAddr, Stack};
use crate::timer::TimerQueue;
use crate::wait::{Events, Parker};

/// Runs `test` in a new network namespace that has the TAP device, with 10.0.0.1 and fd00::1 on the host's side.
fn with_host(test: impl FnOnce(Arc<Stack>) + Send) {
    let enter = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("run as root");
        for command in [
            "link set lo up",
            "tuntap add dev tap0 mode tap vnet_hdr",
            "link set tap0 up",
            "addr add 10.0.0.1/24 dev tap0",
            "addr add fd00::1/64 dev tap0 nodad",
        ] {
            let status = Command::new("ip").args(command.split(' ')).status().expect("ip(8)");
            assert!(status.success(), "ip {command}");
        }
        let tap = open_tap("tap0", None).unwrap();
        test(Stack::new(&config(2, true), Some(tap.fd), TimerQueue::new()));
    };
    std::thread::scope(|scope| scope.spawn(enter).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn the_host_connects_in() {
    with_host(|stack| {
        for address in ["10.0.0.2:80", "[fd00::2]:80"] {
            let listening = listener(&stack, address, 5);
            let mut host = TcpStream::connect(address).unwrap();
            let inside = accept(&listening);
            let bytes = pattern(8 << 20);
            let copy = bytes.clone();
            let mut clone = host.try_clone().unwrap();
            let writer = std::thread::spawn(move || clone.write_all(&copy).unwrap());
            assert!(read_exact(&inside, bytes.len()) == bytes, "in by {address}");
            writer.join().unwrap();
            let copy = bytes.clone();
            let writer = std::thread::spawn(move || write_all(&inside, &copy).map(|()| drop(inside)));
            let mut got = Vec::new();
            host.read_to_end(&mut got).unwrap();
            assert!(got == bytes, "out by {address}");
            writer.join().unwrap().unwrap();
        }
    });
}

#[test]
fn the_inside_connects_out() {
    with_host(|stack| {
        let host = TcpListener::bind("10.0.0.1:80").unwrap();
        let inside = tcp(&stack);
        connect(&inside, &at("10.0.0.1:80")).unwrap();
        let (mut accepted, peer) = host.accept().unwrap();
        assert_eq!(SockAddr::from(peer), inside.sock().local_name().unwrap());
        accepted.write_all(b"hello").unwrap();
        assert_eq!(read(&inside, 10).unwrap(), b"hello");
        drop(accepted);
        assert_eq!(read(&inside, 10).unwrap(), b"");
        assert_eq!(connect(&tcp(&stack), &at("10.0.0.1:81")), Err(Errno::ECONNREFUSED));
        assert_eq!(TcpStream::connect("10.0.0.2:81").unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    });
}

impl From<std::net::SocketAddr> for SockAddr {
    fn from(addr: std::net::SocketAddr) -> SockAddr {
        at(&addr.to_string())
    }
}

#[test]
fn datagrams_and_echoes() {
    with_host(|stack| {
        let host = HostUdp::bind("10.0.0.1:53").unwrap();
        let inside = udp(&stack);
        inside.sock().bind(&at("10.0.0.2:53")).unwrap();
        let bytes = pattern(20_000);
        host.send_to(&bytes, "10.0.0.2:53").unwrap();
        assert!(read(&inside, 30_000).unwrap() == bytes, "from the host, in fragments");
        inside.sock().connect(&at("10.0.0.1:53")).unwrap();
        inside.write(0, &mut &bytes[..]).unwrap();
        let mut got = vec![0; 30_000];
        let n = host.recv(&mut got).unwrap();
        assert!(got[..n] == bytes, "to the host");
        // A refusal, as the host's kernel tells it and hears it.
        drop(host);
        inside.write(0, &mut &b"x"[..]).unwrap();
        wait(&inside, Events::ERR);
        assert_eq!(error(&inside), libc::ECONNREFUSED);
        let host = HostUdp::bind("10.0.0.1:0").unwrap();
        host.connect("10.0.0.2:9").unwrap();
        host.send(b"x").unwrap();
        assert_eq!(host.recv(&mut got).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
        let ping = Command::new("ping").args(["-c1", "-W2", "10.0.0.2"]).output();
        if let Ok(ping) = ping {
            assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
        }
    });
}

/// A tiny generator: the same packets in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A frame with plausible headers, then damaged in places.
fn mutated(random: &mut Random, mac: [u8; 6], flow: Option<(u16, u16)>) -> Vec<u8> {
    let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let protocol = [TCP, UDP, 1, 6, 6, 6][random.below(6)];
    let header = Header { source, destination, protocol, ttl: 64, tos: 0, id: 0, whole: false };
    let mut packet: Vec<u8> = (0..20 + random.below(100)).map(|_| random.next() as u8).collect();
    packet.resize(packet.len() + 20, 0);
    if protocol == TCP {
        let (from, to) = flow.unwrap_or((random.next() as u16, 80));
        packet[20..22].copy_from_slice(&from.to_be_bytes());
        packet[22..24].copy_from_slice(&to.to_be_bytes());
        packet[32] = (5 + random.below(4) as u8) << 4;
        packet[33] = [2, 16, 18, 4, 17, 24][random.below(6)];
    }
    header.write(&mut packet);
    let mut frame = [&mac[..], &[2, 0, 0, 0, 0, 9], &[8, 0]].concat();
    frame.extend(packet);
    for _ in 0..random.below(3) {
        let at = random.below(frame.len());
        frame[at] = random.next() as u8;
    }
    if random.below(8) == 0 {
        frame.truncate(random.below(frame.len()));
    }
    frame
}

#[test]
fn garbage_does_no_harm() {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut config = config(2, true);
    let mac = [2, 0, 0, 0, 0, 1];
    config.mac = Some(crate::container::network::Mac(mac));
    let stack = Stack::new(&config, Some(theirs.into()), TimerQueue::new());
    let _listening = listener(&stack, "0.0.0.0:80", 64);
    let datagrams = udp(&stack);
    datagrams.sock().bind(&at("0.0.0.0:53")).unwrap();
    let drain = std::thread::spawn({
        let ours = ours.try_clone().unwrap();
        move || while ours.recv(&mut [0; 70_000]).is_ok_and(|n| n > 0) {}
    });
    let mut random = Random(0x1234_5678_9abc_def1);
    for n in 0..100_000 {
        // The host says of all that its checksums are right, so that nothing is kept from the code behind.
        let frame = if n % 4 == 0 {
            (0..random.below(200)).map(|_| random.next() as u8).collect()
        } else {
            mutated(&mut random, mac, (n % 2 == 0).then_some((7, 80)))
        };
        let mut bytes = vec![2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(frame);
        stack.inject(&mut bytes[12..]);
    }
    // It still works.
    let client = tcp(&stack);
    connect(&client, &at("127.0.0.1:80")).unwrap();
    ours.shutdown(std::net::Shutdown::Both).unwrap();
    drain.join().unwrap();
}

#[test]
fn idle_connections_cost_nothing() {
    let (one, two) = pair(true);
    let listening = listener(&two, "10.0.0.2:80", 4096);
    let rounds = 200;
    let looks = || {
        let of = |stack: &Stack| stack.tcp.engines.looks.load(std::sync::atomic::Ordering::Relaxed);
        of(&one) + of(&two)
    };
    // How often connections were looked at for some round trips on one of them.
    let echo = |client: &_, server: &_| {
        let before = looks();
        for _ in 0..rounds {
            write_all(client, b"ping").unwrap();
            assert_eq!(read(server, 10).unwrap(), b"ping");
        }
        looks() - before
    };
    let open = || {
        let client = tcp(&one);
        connect(&client, &at("10.0.0.2:80")).unwrap();
        set(&client, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1).unwrap();
        let server = accept(&listening);
        (client, server)
    };
    let (client, server) = open();
    let alone = echo(&client, &server);
    let idle: Vec<_> = (0..2000).map(|_| open()).collect();
    let among_many = echo(&client, &server);
    // A delayed acknowledgement here and there makes a difference; one look at each idle connection would make a greater one.
    assert!(among_many < alone * 2 + idle.len() / 2, "{alone} looks alone, {among_many} among {}", idle.len());
}

/// `IP_MTU_DISCOVER`, `IP_MTU`, `IP_TTL`, `IP_TOS` and their like, on a link with an MTU of 1500.
#[test]
fn ip_options_reach_the_wire() {
    let (one, two) = pair(true);
    for (address, level, discover, mtu, headers) in [
        ("10.0.0.2:7", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_MTU, 28),
        ("[fd00::2]:7", libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_MTU, 48),
    ] {
        let domain = if level == libc::IPPROTO_IP { libc::AF_INET } else { libc::AF_INET6 };
        let make = |stack: &Arc<Stack>| stack.socket(domain, libc::SOCK_DGRAM, 0, ROOT).unwrap();
        let (from, to) = (make(&one), make(&two));
        to.sock().bind(&at(address)).unwrap();
        from.sock().connect(&at(address)).unwrap();
        let option = crate::netstack::SocketOption { level, name: mtu };
        assert_eq!(from.sock().get_option(option, 4).unwrap(), 1500i32.to_ne_bytes());
        let send = |len: usize| from.write(0, &mut &pattern(len)[..]);
        for (value, whole) in [(0, false), (1, false), (2, true), (3, true), (4, true), (5, false)] {
            set(&from, level, discover, value).unwrap();
            assert_eq!(send(1500 - headers), Ok(1500 - headers), "{address} {value}");
            assert_eq!(read(&to, 5000).unwrap().len(), 1500 - headers);
            let longer = 1501 - headers;
            assert_eq!(send(longer), if whole { Err(Errno::EMSGSIZE) } else { Ok(longer) }, "{address} {value}");
            if !whole {
                assert!(read(&to, 5000).unwrap() == pattern(longer), "{address} {value}");
            }
        }
    }
    // What a raw socket sees of a datagram.
    let watcher = two.socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP, ROOT).unwrap();
    let from = one.socket(libc::AF_INET6, libc::SOCK_DGRAM, 0, ROOT).unwrap();
    set(&from, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 7).unwrap();
    set(&from, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0x20).unwrap();
    set(&from, libc::IPPROTO_IP, libc::IP_TTL, 9).unwrap();
    set(&from, libc::IPPROTO_IP, libc::IP_TOS, 0x10).unwrap();
    let seen = |discover: i32| {
        set(&from, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover).unwrap();
        from.sock().send(&mut &b"x"[..], Some(&at("10.0.0.2:7")), Default::default(), 0).unwrap();
        let packet = read(&watcher, 100).unwrap();
        (packet[1], packet[8], packet[6] & 0x40 != 0)
    };
    assert_eq!(seen(1), (0x10, 9, true), "IPv4's own options, also in an IPv6 socket");
    assert_eq!(seen(0), (0x10, 9, false));
}

/// A socket that is bound to a device takes nothing from others, and sends by no other.
#[test]
fn devices_are_kept_apart() {
    let (one, two) = pair(true);
    let bound = |device: &[u8]| {
        let socket = udp(&two);
        let option = crate::netstack::SocketOption { level: libc::SOL_SOCKET, name: libc::SO_BINDTODEVICE };
        socket.sock().set_option(option, device).unwrap();
        socket.sock().bind(&at("0.0.0.0:7")).unwrap();
        socket
    };
    let (inner, outer) = (bound(b"lo\0\0"), bound(b"eth0"));
    let from = udp(&one);
    from.sock().send(&mut &b"wire"[..], Some(&at("10.0.0.2:7")), Default::default(), 0).unwrap();
    assert_eq!(read(&outer, 10).unwrap(), b"wire");
    let from = udp(&two);
    from.sock().send(&mut &b"loop"[..], Some(&at("127.0.0.1:7")), Default::default(), 0).unwrap();
    assert_eq!(read(&inner, 10).unwrap(), b"loop");
    assert_eq!(read_now(&inner, 10), Err(Errno::EAGAIN));
    assert_eq!(read_now(&outer, 10), Err(Errno::EAGAIN));
    inner.sock().send(&mut &b"gone"[..], Some(&at("10.0.0.1:7")), Default::default(), 0).unwrap();
    assert_eq!(
        outer.sock().send(&mut &b"x"[..], Some(&at("[::1]:7")), Default::default(), 0),
        Err(Errno::EAFNOSUPPORT)
    );
}

/// A round trip with this thread as the poller, and how long it takes: printed with `--nocapture`.
#[test]
fn a_waiting_task_polls_the_device() {
    with_host(|stack| {
        let host = TcpListener::bind("10.0.0.1:80").unwrap();
        let inside = tcp(&stack);
        connect(&inside, &at("10.0.0.1:80")).unwrap();
        let (mut accepted, _) = host.accept().unwrap();
        accepted.set_nodelay(true).unwrap();
        let rounds = 2000;
        let echo = std::thread::spawn(move || {
            let mut buf = [0; 4];
            for _ in 0..rounds {
                accepted.read_exact(&mut buf).unwrap();
                accepted.write_all(&buf).unwrap();
            }
        });
        let parker = Arc::new(Parker::new());
        inside.wait_queue().unwrap().add(parker.clone(), Events::IN, false);
        let start = Instant::now();
        for _ in 0..rounds {
            write_all(&inside, b"ping").unwrap();
            while !inside.poll().contains(Events::IN) {
                assert!(stack.park(&parker, Some(Instant::now() + Duration::from_secs(20))));
            }
            assert_eq!(read_now(&inside, 10).unwrap(), b"ping");
        }
        println!("round trip with the poller hook: {:?}", start.elapsed() / rounds);
        echo.join().unwrap();
    });
}

/// How fast bytes go both ways between the host's kernel and a task that polls the device: run with
/// `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    const TOTAL: usize = 4 << 30;
    with_host(|stack| {
        let host = TcpListener::bind("10.0.0.1:80").unwrap();
        let inside = tcp(&stack);
        connect(&inside, &at("10.0.0.1:80")).unwrap();
        let (mut accepted, _) = host.accept().unwrap();
        let (quiet, _other) = UnixDatagram::pair().unwrap();
        let wait_for = |events: Events| {
            let ready = || inside.poll().intersects(events);
            while !ready() {
                if let Some(guard) = stack.try_become_poller() {
                    guard.wait(&ready, std::os::fd::AsFd::as_fd(&quiet), None);
                }
            }
        };
        let peer = std::thread::spawn(move || {
            let mut buf = vec![0; 256 << 10];
            let (mut got, mut sent) = (0, 0);
            while got < TOTAL {
                got += accepted.read(&mut buf).unwrap();
            }
            while sent < TOTAL {
                sent += accepted.write(&buf).unwrap();
            }
        });
        let rate = |start: Instant| TOTAL as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9;
        let mut buf = vec![0; 256 << 10];
        let (mut sent, start) = (0, Instant::now());
        while sent < TOTAL {
            match inside.write(0, &mut &buf[..(TOTAL - sent).min(256 << 10)]) {
                Ok(n) => sent += n,
                Err(_) => wait_for(Events::OUT),
            }
        }
        println!("out: {:.1} Gbit/s", rate(start));
        let (mut got, start) = (0, Instant::now());
        while got < TOTAL {
            match inside.read(0, &mut crate::io::SliceSink::new(&mut buf)) {
                Ok(n) => got += n,
                Err(_) => wait_for(Events::IN),
            }
        }
        println!("in: {:.1} Gbit/s", rate(start));
        peer.join().unwrap();
    });
}
