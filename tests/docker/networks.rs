//! Docker's networks: published ports, names, addresses, and the way out.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use super::engine::{Container, Engine, engine, until};

/// A server in the foreground on Debian's own configuration.
const NGINX: &[&str] = &["nginx", "-g", "daemon off;"];

/// Answers one connection after the other on port `$1` with the sum of what it has read, and with what `$2` bytes sum up
/// to, all of which it sends first.
const SUMS: &str = "import sys, socket, zlib
server = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print('listening', flush=True)
while True:
    peer, _ = server.accept()
    sum = 0
    while data := peer.recv(1 << 16):
        sum = zlib.crc32(data, sum)
    peer.sendall(b'%d\\n' % sum)
    peer.close()";

/// Sends bytes to the server above and compares the sums.
const SEND: &str = "import sys, socket, zlib, random
data = random.Random(7).randbytes(8 << 20)
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30)
peer.sendall(data)
peer.shutdown(socket.SHUT_WR)
answer = int(peer.makefile().readline())
print('same' if answer == zlib.crc32(data) else 'different')";

/// A network that is removed when this is dropped.
struct UserNetwork<'a> {
    engine: &'a Engine,
    name: String,
}

impl<'a> UserNetwork<'a> {
    fn new(engine: &'a Engine, flags: &[&str]) -> UserNetwork<'a> {
        let name = format!("net-{}", Container::fresh_name());
        let network = UserNetwork { engine, name };
        let words = ["network", "create"].iter().chain(flags).copied().chain([network.name.as_str()]);
        engine.docker(words).success();
        network
    }

    fn flag(&self) -> String {
        format!("--network={}", self.name)
    }
}

impl Drop for UserNetwork<'_> {
    fn drop(&mut self) {
        let ran = self.engine.docker(["network", "rm", &self.name]);
        assert!(ran.code == 0 || thread::panicking(), "{ran}");
    }
}

/// Gets a page from the daemon's network namespace.
fn page(engine: &Engine, url: &str) -> Option<String> {
    let mut curl = engine.command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "10", url]);
    let ran = engine.finish(curl);
    (ran.code == 0).then_some(ran.stdout)
}

#[test]
fn nginx_is_reached_on_a_published_port() {
    let engine = engine();
    let container = engine.start_container(&["-p=127.0.0.1:8081:80"], NGINX);
    let welcome = until("nginx answers", || page(&engine, "http://127.0.0.1:8081/"));
    assert!(welcome.contains("Welcome to nginx"), "{welcome}");
    // And on its own address.
    let url = format!("http://{}/", container.address());
    assert!(page(&engine, &url).is_some_and(|page| page.contains("Welcome to nginx")));
    let port = container.docker(&["port"]);
    assert_eq!(port.success(), "80/tcp -> 127.0.0.1:8081\n");
    // After a restart, too.
    container.docker(&["restart"]).success();
    until("nginx answers again", || page(&engine, "http://127.0.0.1:8081/"));
}

#[test]
fn no_network_is_loopback_alone() {
    let engine = engine();
    let script = "ip -o link | cut -d: -f2; ping -c1 -W2 127.0.0.1 >/dev/null && echo loopback
                  ip route; ping -c1 -W1 10.1.1.1 2>&1 | grep -c unreachable";
    let printed = engine.script(&["--network=none"], script);
    let words: Vec<&str> = printed.split_whitespace().filter(|word| !word.contains("0@NONE")).collect();
    assert!(words.ends_with(&["loopback", "1"]) && words[0] == "lo", "{printed}");
}

#[test]
fn the_bridge_s_address_routes_and_mtu() {
    let engine = engine();
    let container = engine.start_container(&["--mac-address=02:42:ac:11:00:99"], &["sleep", "1000"]);
    let address = container.address();
    let shown = container.exec(&["ip", "-4", "-o", "address", "show", "dev", "eth0"]);
    assert!(shown.success().contains(&format!("inet {address}/16")), "{shown}");
    let routes = container.exec(&["ip", "route"]);
    assert!(routes.success().contains("default via 172.17.0.1 dev eth0"), "{routes}");
    let link = container.exec(&["ip", "link", "show", "eth0"]);
    assert!(link.success().contains("mtu 1500") && link.stdout.contains("02:42:ac:11:00:99"), "{link}");
    container.exec(&["ping", "-c2", "-i0.2", "-W5", "172.17.0.1"]).success();
    let ipv6 = container.inspect("/NetworkSettings/GlobalIPv6Address");
    let ipv6 = ipv6.as_str().expect("a text");
    let shown = container.exec(&["ip", "-6", "-o", "address", "show", "dev", "eth0"]);
    assert!(shown.success().contains(ipv6), "{shown}");
    container.exec(&["ping", "-c1", "-W5", "fd00:20::1"]).success();
    // From the other side.
    let mut ping = engine.command("ping");
    ping.args(["-c1", "-W5", &address]);
    engine.finish(ping).success();
}

#[test]
fn containers_reach_each_other() {
    let engine = engine();
    let server = engine.start_container(&[], &["python3", "-c", SUMS, "7000"]);
    server.wait_for_output("listening");
    let ipv6 = server.inspect("/NetworkSettings/GlobalIPv6Address");
    for address in [server.address().as_str(), ipv6.as_str().expect("a text")] {
        let ran = engine.run(&[], &["python3", "-c", SEND, address, "7000"]);
        assert_eq!(ran.success(), "same\n", "{ran}");
    }
}

#[test]
fn names_on_a_network_of_the_user_s() {
    let engine = engine();
    let network = UserNetwork::new(&engine, &["--ipv6", "--subnet=fd00:30::/64"]);
    let flag = network.flag();
    let server = engine.start_container(&[&flag, "--network-alias=pages"], NGINX);
    let client = engine.start_container(&[&flag], &["sleep", "1000"]);
    let server_name = server.name.as_str();
    let resolver = client.exec(&["cat", "/etc/resolv.conf"]);
    assert!(resolver.success().contains("nameserver 127.0.0.11"), "{resolver}");
    let address = server.inspect(&format!("/NetworkSettings/Networks/{}/IPAddress", network.name));
    let found = client.exec(&["getent", "ahostsv4", server_name]);
    assert!(found.success().contains(address.as_str().expect("a text")), "{found}");
    for name in [server_name, "pages"] {
        let url = format!("http://{name}/");
        let page = until("nginx answers", || {
            let ran = client.exec(&["curl", "--silent", "--max-time", "5", &url]);
            (ran.code == 0).then_some(ran.stdout)
        });
        assert!(page.contains("Welcome to nginx"), "{page}");
    }
    client.exec(&["ping", "-6", "-c1", "-W5", server_name]).success();
}

#[test]
fn a_container_on_two_networks() {
    let engine = engine();
    let first = UserNetwork::new(&engine, &["--subnet=10.77.1.0/24"]);
    let second = UserNetwork::new(&engine, &["--subnet=10.77.2.0/24"]);
    let far = engine.start_container(&[&second.flag()], NGINX);
    let name = Container::fresh_name();
    let between = Container::named(&engine, name.clone());
    let mut create = engine.client();
    create.args(["create", "--runtime", engine.runtime(), "--name", &name, &first.flag()]);
    create.args([super::engine::IMAGE, "sleep", "1000"]);
    engine.finish(create).success();
    engine.docker(["network", "connect", &second.name, &name]).success();
    between.docker(&["start"]).success();
    let addresses = between.exec(&["ip", "-4", "-o", "address"]);
    assert!(addresses.success().contains("10.77.1.") && addresses.stdout.contains("10.77.2."), "{addresses}");
    until("nginx answers on the second", || {
        let url = format!("http://{}/", far.name);
        (between.exec(&["curl", "--silent", "--max-time", "5", &url]).code == 0).then_some(())
    });
}

/// Answers HTTP requests on port 8000 with a file of a volume, which it writes first.
const SERVICE: &str = "import socket
open('/data/page', 'w').write('from the service behind\\n')
server = socket.create_server(('', 8000))
while True:
    peer, _ = server.accept()
    peer.recv(65536)
    page = open('/data/page').read()
    peer.sendall(f'HTTP/1.0 200 OK\\r\\nContent-Length: {len(page)}\\r\\n\\r\\n{page}'.encode())
    peer.close()";

#[test]
fn a_group_of_services() {
    // What `docker compose up` makes: a network, a volume, a service that is waited for, and one in front of it.
    let engine = engine();
    let network = UserNetwork::new(&engine, &["--label=com.docker.compose.project=group"]);
    let flag = network.flag();
    let flags = [
        flag.as_str(),
        "--network-alias=app",
        "--health-cmd=curl -sf http://localhost:8000/",
        "--health-interval=100ms",
        "--volume=/data",
        "--restart=unless-stopped",
    ];
    let app = engine.start_container(&flags, &["python3", "-c", SERVICE]);
    until("it is healthy", || (app.inspect("/State/Health/Status") == "healthy").then_some(()));
    let configuration = "events {} http { server { listen 80; location / { proxy_pass http://app:8000/; } } }";
    let script = format!("echo '{configuration}' >/etc/nginx/nginx.conf; exec nginx -g 'daemon off;'");
    let front = engine.start_container(&[&flag, "--network-alias=front"], &["sh", "-c", &script]);
    let get = |container: &Container<'_>| {
        let ran = container.exec(&["curl", "-sf", "--max-time", "5", "http://front/"]);
        (ran.code == 0).then_some(ran.stdout)
    };
    assert_eq!(until("the service in front answers", || get(&app)), "from the service behind\n");
    // The one behind is replaced, and found again under its name.
    app.docker(&["restart", "--time=0"]).success();
    assert_eq!(until("it answers again", || get(&front)), "from the service behind\n");
}

/// A host beyond the daemon's: 203.0.113.2, connected with the daemon's 203.0.113.1.
struct Outside {
    namespace: File,
}

impl Outside {
    fn new(engine: &Engine) -> Outside {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may");
            let this = nix::unistd::gettid().to_string();
            let within = |words: &str| {
                let mut ip = engine.command("ip");
                ip.args(words.split(' '));
                engine.finish(ip).success();
            };
            within(&format!("link add out0 type veth peer name out1 netns {this}"));
            within("address add 203.0.113.1/24 dev out0");
            within("link set out0 up");
            for words in ["link set lo up", "address add 203.0.113.2/24 dev out1", "link set out1 up"] {
                let status = std::process::Command::new("ip").args(words.split(' ')).status();
                assert!(status.expect("ip starts").success(), "ip {words}");
            }
            File::open("/proc/thread-self/ns/net").expect("/proc is mounted")
        };
        let namespace = thread::scope(|scope| scope.spawn(make).join()).expect("a network can be made");
        Outside { namespace }
    }

    /// Does some work there.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter_and_work = || {
            setns(&self.namespace, CloneFlags::CLONE_NEWNET).expect("root may");
            work()
        };
        thread::scope(|scope| scope.spawn(enter_and_work).join()).expect("the work is done")
    }
}

#[test]
fn out_through_address_translation_and_in_through_a_published_port() {
    let engine = engine();
    let outside = Outside::new(&engine);
    let server = outside.run(|| TcpListener::bind("203.0.113.2:7000").expect("an address"));
    let answer = thread::spawn(move || {
        let (mut peer, from) = server.accept().expect("a connection");
        writeln!(peer, "{}", from.ip()).expect("the peer reads");
    });
    let script = "exec 3<>/dev/tcp/203.0.113.2/7000; cat <&3";
    // It is the daemon's host that is seen.
    assert_eq!(engine.script(&[], script), "203.0.113.1\n");
    answer.join().expect("it has answered");

    let _container = engine.start_container(&["-p=8082:80"], NGINX);
    let get = || {
        let mut stream = TcpStream::connect("203.0.113.1:8082").ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        (!page.is_empty()).then_some(page)
    };
    let page = outside.run(|| until("nginx answers", get));
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("Welcome to nginx"), "{page}");
}
