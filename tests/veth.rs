//! Sandboxes whose network is what CNI plugins and Docker leave in a namespace: veth pairs, addresses, routes, a name server.
//!
//! ```text
//!  namespace "inside" (a sandbox)      namespace "outside"
//!  eth0 192.168.20.N, fd00:20::N  ──────  br0 192.168.20.1, fd00:20::1
//! ```

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::http::Connection;
use common::nginx::pattern;
use common::support::network::run;
use common::{Namespace, Sandbox};

/// A bridge in a namespace, and as many namespaces at it as are plugged in.
struct Bridge(Namespace);

impl Bridge {
    fn new() -> Bridge {
        let outside = Namespace::new().expect("root may make a namespace");
        for words in [
            "link set lo up",
            "link add br0 type bridge",
            "address add 192.168.20.1/24 dev br0",
            "address add fd00:20::1/64 dev br0 nodad",
            "link set br0 up",
        ] {
            outside.ip(words).unwrap();
        }
        Bridge(outside)
    }

    /// A namespace with an interface at the bridge.
    fn plug(&self, host: u8, mtu: u32) -> Namespace {
        let inside = Namespace::new().unwrap();
        let port = format!("p{host}");
        let ip = |words: &str| inside.ip(words).unwrap_or_else(|error| panic!("{error}"));
        self.0
            .ip(&format!("link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", inside.name()))
            .unwrap();
        self.0.ip(&format!("link set {port} master br0 up")).unwrap();
        ip("link set lo up");
        ip("link set eth0 up");
        ip(&format!("address add 192.168.20.{host}/24 dev eth0"));
        ip(&format!("address add fd00:20::{host}/64 dev eth0 nodad"));
        ip("route add default via 192.168.20.1");
        ip("-6 route add default via fd00:20::1");
        inside
    }
}

fn shell(script: &str) -> Sandbox<'static> {
    Sandbox::new(["sh", "-c", script])
}

/// Serves HTTP in the thread's namespace: answers GET with `content` and PUT with the checksum of what came. Ends with the
/// test's process.
fn serve(addr: &str, content: Vec<u8>) {
    let listener = TcpListener::bind(addr).expect("the address is ours");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let content = content.clone();
            thread::spawn(move || answer(stream.expect("a connection"), &content));
        }
    });
}

fn answer(mut stream: TcpStream, content: &[u8]) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).is_ok_and(|n| n == 0) {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    if head.contains("expect: 100-continue") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").expect("the client is there");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("the body is as long as announced");
    let content = if head.starts_with("put") { checksum(&body).into_bytes() } else { content.to_vec() };
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len());
    let _ = stream.write_all(&content);
}

/// What sha256sum(1) says.
fn checksum(bytes: &[u8]) -> String {
    use std::process::Stdio;
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("coreutils");
    child.stdin.take().expect("a pipe").write_all(bytes).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}

/// A counter of the namespace's own stack, as in /proc/net/snmp.
fn counter(namespace: &Namespace, protocol: &str, name: &str) -> u64 {
    let snmp = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/snmp")).expect("proc is mounted");
    let mut lines = snmp.lines().filter(|line| line.starts_with(&format!("{protocol}: ")));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let at = names.split(' ').position(|known| known == name).expect("a known counter");
    values.split(' ').nth(at).and_then(|value| value.parse().ok()).expect("a number")
}

#[test]
fn interfaces_are_those_of_the_namespace() {
    let bridge = Bridge::new();
    let inside = bridge.plug(5, 1400);
    bridge.0.ip(&format!("link add second type veth peer name net1 netns {}", inside.name())).unwrap();
    bridge.0.ip("address add 192.168.21.1/24 dev second").unwrap();
    bridge.0.ip("link set second up").unwrap();
    for words in [
        "link set net1 address 02:00:00:00:21:05 up",
        "address add 192.168.21.5/24 dev net1",
        "route add 203.0.113.0/24 via 192.168.21.1 metric 50",
        "neighbour add 192.168.20.77 lladdr 02:00:00:00:00:77 nud permanent dev eth0",
    ] {
        inside.ip(words).unwrap();
    }
    let script = "ip -o address; ip route; ip -6 route; ip neighbour; ip -o link; cat /proc/net/route; \
                  ping -c 1 -W 5 192.168.21.1 && ping -c 1 -W 5 192.168.20.1 && ping -c 1 -W 5 fd00:20::1";
    let output = shell(script).namespace(inside.path()).run();
    let shown = output.success();
    for part in [
        "eth0    inet 192.168.20.5/24 brd 192.168.20.255",
        "eth0    inet6 fd00:20::5/64",
        "net1    inet 192.168.21.5/24",
        "default via 192.168.20.1 dev eth0",
        "192.168.21.0/24 dev net1",
        "203.0.113.0/24 via 192.168.21.1 dev net1",
        "metric 50",
        "default via fd00:20::1 dev eth0",
        "192.168.20.77 dev eth0 lladdr 02:00:00:00:00:77 PERMANENT",
        "mtu 1400",
        "link/ether 02:00:00:00:21:05",
        "net1\t007100CB\t0115A8C0\t0003\t0\t0\t50\t00FFFFFF",
    ] {
        assert!(shown.contains(part), "{part:?} is missing in:\n{shown}");
    }
    // The namespace is as it was, for whoever looks at it, and a second sandbox finds the same.
    inside.ip("route get 192.168.20.1").unwrap();
    shell("ip -o address show dev eth0 | grep 192.168.20.5/24").namespace(inside.path()).run().success();
}

#[test]
fn large_transfers_arrive_whole_both_ways() {
    let bridge = Bridge::new();
    let content = pattern(3, 30 << 20);
    let sum = checksum(&content);
    bridge.0.enter(|| ["192.168.20.1:8000", "[fd00:20::1]:8000"].map(|addr| serve(addr, content.clone())));
    for mtu in [1500, 1400] {
        let inside = bridge.plug(if mtu == 1500 { 6 } else { 7 }, mtu);
        let script = "set -e
            curl -sS http://192.168.20.1:8000/ -o got && sha256sum <got
            curl -sS 'http://[fd00:20::1]:8000/' -o got6 && sha256sum <got6
            curl -sS -T got http://192.168.20.1:8000/ && echo
            curl -sS -T got6 'http://[fd00:20::1]:8000/'";
        let output = shell(script).namespace(inside.path()).run();
        let sums: Vec<&str> = output.success().lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
        assert_eq!(sums, [&sum; 4], "MTU {mtu}");
    }
}

/// Serves files over HTTP on port 8080, and takes them with PUT.
const SERVER: &str = "
import http.server, shutil, socket
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_PUT(self):
        with open(self.translate_path(self.path), 'wb') as file:
            file.write(self.rfile.read(int(self.headers['Content-Length'])))
        self.send_response(201)
        self.send_header('Content-Length', '0')
        self.end_headers()
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
Server(('::', 8080), Handler).serve_forever()
";

/// A sandbox with a web server, and what its file `big` holds.
fn web_server() -> (Sandbox<'static>, Vec<u8>) {
    let sandbox = Sandbox::new(["/usr/bin/python3", "-c", SERVER]);
    let content = pattern(5, 30 << 20);
    fs::write(sandbox.work().join("big"), &content).unwrap();
    (sandbox, content)
}

/// Counters of what the kernel's own stack of a namespace has sent.
const SENT: [(&str, &str); 3] = [("Tcp", "OutRsts"), ("Tcp", "OutSegs"), ("Icmp", "OutMsgs")];

#[test]
fn a_server_is_reached_and_the_namespaces_own_stack_is_silent() {
    let bridge = Bridge::new();
    let inside = bridge.plug(10, 1500);
    let (sandbox, content) = web_server();
    let mut running = sandbox.namespace(inside.path()).start();
    // Published as engines do it.
    let publish =
        "iptables -t nat -A OUTPUT -p tcp -d 192.168.20.1 --dport 9000 -j DNAT --to-destination 192.168.20.10:8080";
    run(Command::new("ip").args(["netns", "exec", bridge.0.name()]).args(publish.split(' '))).unwrap();
    let mut before = Vec::new();
    bridge.0.enter(|| {
        running.until("the server answers", || TcpStream::connect("192.168.20.10:8080").ok());
        // Until the sandbox was started the namespace has refused connections.
        before = SENT.map(|(protocol, name)| counter(&inside, protocol, name)).to_vec();
        let body = pattern(78, 20 << 20);
        for server in ["192.168.20.10:8080", "[fd00:20::10]:8080", "192.168.20.1:9000"] {
            let mut client = Connection::new(server.parse().unwrap()).expect("the server accepts");
            client.get_expecting("/big", &content).expect("every byte is right");
            let head = client.request("PUT", "/upload", Some(&body)).expect("a response");
            assert_eq!(head.status, 201, "{head:?}");
            client.get_expecting("/upload", &body).expect("what was sent");
        }
        for addr in ["192.168.20.10:81", "[fd00:20::10]:81"] {
            let refused = TcpStream::connect(addr).expect_err("nobody listens");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{addr}");
        }
        let socket = UdpSocket::bind("192.168.20.1:0").unwrap();
        socket.connect("192.168.20.10:81").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.send(b"nobody").unwrap();
        let refused = socket.recv(&mut [0; 8]).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        for addr in ["192.168.20.10", "fd00:20::10"] {
            run(Command::new("ping").args(["-c", "1", "-W", "5", addr])).unwrap();
        }
    });
    let after = SENT.map(|(protocol, name)| counter(&inside, protocol, name)).to_vec();
    assert_eq!(after, before, "{SENT:?}");
}

#[test]
fn two_sandboxes_talk_over_a_bridge() {
    let bridge = Bridge::new();
    let (one, two) = (bridge.plug(11, 1500), bridge.plug(12, 1500));
    let (sandbox, content) = web_server();
    let _serving = sandbox.namespace(two.path()).start();
    let script = "while ! curl -sS --connect-timeout 1 http://192.168.20.12:8080/big -o got 2>/dev/null; do :; done
                  curl -sS 'http://[fd00:20::12]:8080/big' -o got6 && cat got got6 | sha256sum";
    let output = shell(script).namespace(one.path()).run();
    let expected = checksum(&[&content[..], &content[..]].concat());
    assert_eq!(output.success().split(' ').next(), Some(expected.as_str()));
}

#[test]
fn dockers_name_server_is_asked() {
    let bridge = Bridge::new();
    let inside = bridge.plug(9, 1500);
    // A name server that knows one name.
    let socket = inside.enter(|| UdpSocket::bind("127.0.0.11:53").unwrap());
    thread::spawn(move || {
        let mut buf = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buf) {
            let end = 12 + buf[12..len].iter().position(|&byte| byte == 0).unwrap_or(0);
            let known = &buf[12..end] == b"\x02db\x04test" && buf[end + 1..end + 3] == [0, 1];
            let mut answer = buf[..end + 5].to_vec();
            answer[2..12].copy_from_slice(&[0x81, if known { 0x80 } else { 0x83 }, 0, 1, 0, known.into(), 0, 0, 0, 0]);
            if known {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 168, 20, 77]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    let sandbox = shell("for n in 1 2 3; do getent ahostsv4 db.test; done; getent ahostsv4 no.test; echo $?");
    let resolv_conf = sandbox.work().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 127.0.0.11\noptions ndots:0\n").unwrap();
    let output = sandbox.bind(&resolv_conf, "/etc/resolv.conf").namespace(inside.path()).run();
    let shown = output.success();
    assert_eq!(shown.matches("192.168.20.77").count(), 9, "{shown}\n{}", output.report());
    assert!(shown.ends_with("\n2\n"), "an unknown name is an answer too: {shown}");
}
