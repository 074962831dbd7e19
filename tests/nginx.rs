//! Debian's nginx in a sandbox, and clients that check every byte of what it serves.

mod common;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::http::Connection;
use common::nginx::{NGINX, pattern, server};
use common::{Network, Runtime, SANDBOX6};
use nix::sys::signal::Signal;

fn network() -> Network {
    Network::new(Runtime::under_test().cable).expect("root may make a network")
}

fn get(path: &str) -> io::Result<Vec<u8>> {
    Connection::new(server())?.get(path).map(|(_, body)| body)
}

/// Runs `clients` threads for `time`, each repeating `request`; returns how many requests were answered.
fn load(clients: usize, time: Duration, request: impl Fn(&mut Connection) -> io::Result<()> + Sync) -> u64 {
    let end = Instant::now() + time;
    let answered = AtomicU64::new(0);
    let client = || {
        let mut connection = Connection::new(server()).expect("nginx accepts");
        while Instant::now() < end {
            request(&mut connection).expect("every response is right");
            answered.fetch_add(1, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("every response is right"));
    });
    answered.into_inner()
}

#[test]
fn sixty_four_connections_are_served_for_ten_seconds() {
    let network = network();
    let running = NGINX.start(&network);
    let expected = NGINX.content("1k");
    let answered =
        network.outside(|| load(64, Duration::from_secs(10), |client| client.get_expecting("/1k", expected).map(drop)));
    assert!(answered > 64, "{answered} requests\n{}", running.report());

    // Each of them is in the log, which nginx writes line by line.
    let log = network.outside(|| get("/log/access.log")).expect("the log is served");
    let lines = String::from_utf8_lossy(&log).lines().filter(|line| line.contains("\"GET /1k HTTP/1.1\" 200")).count();
    assert_eq!(lines as u64, answered);
}

#[test]
fn large_files_arrive_whole_side_by_side() {
    let network = network();
    let _running = NGINX.start(&network);
    network.outside(|| {
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut client = Connection::new(server()).expect("nginx accepts");
                    client.get_expecting("/100m", NGINX.content("100m")).expect("every byte is right");
                    client.get_expecting("/1k", NGINX.content("1k")).expect("the connection goes on");
                });
            }
        });
    });
}

#[test]
fn clients_that_leave_half_way_do_no_harm() {
    let network = network();
    let _running = NGINX.start(&network);
    network.outside(|| {
        for length in [0, 1, 100, 70_000, 5_000_000] {
            let mut client = Connection::new(server()).expect("nginx accepts");
            let head = client.request("GET", "/100m", None).expect("a response");
            assert_eq!(head.status, 200);
            client.skip(length).expect("the beginning arrives");
            // The connection is closed with data unread: a reset.
            drop(client);
            assert_eq!(get("/1k").expect("others are served"), NGINX.content("1k"));
        }
    });
}

#[test]
fn an_upload_can_be_fetched_again() {
    let network = network();
    let _running = NGINX.start(&network);
    let body = pattern(77, 20 << 20);
    network.outside(|| {
        let mut client = Connection::new(server()).expect("nginx accepts");
        let head = client.request("PUT", "/upload/file", Some(&body)).expect("a response");
        assert_eq!(head.status, 201, "{head:?}");
        client.get_expecting("/upload/file", &body).expect("what was sent");
    });
}

#[test]
fn a_reload_loses_no_request() {
    let network = network();
    let mut running = NGINX.start(&network);
    let ask = || {
        let (head, _) = Connection::new(server()).ok()?.get("/1k").ok()?;
        head.header("x-worker").map(str::to_owned)
    };
    // A worker that ends may close a connection whose request it has not read yet; clients then ask again.
    let worker = || ask().or_else(ask);
    network.outside(|| {
        let first = worker().expect("a worker");
        running.signal(Signal::SIGHUP);
        // Each attempt is a request that must be answered, also while workers change.
        running.until("another worker answers", || {
            let now = worker().expect("a response at any time");
            (now != first).then_some(())
        });
    });
}

#[test]
fn it_is_reached_over_ipv6_and_on_debians_own_port() {
    let network = network();
    let _running = NGINX.start(&network);
    network.outside(|| {
        let address = std::net::SocketAddr::new(SANDBOX6.parse().expect("an address"), 8080);
        let mut client = Connection::new(address).expect("nginx accepts");
        client.get_expecting("/1k", NGINX.content("1k")).expect("every byte is right");
        let mut debian = Connection::new((server().ip(), 80).into()).expect("nginx accepts");
        let (head, page) = debian.get("/").expect("a page");
        assert_eq!(head.status, 200);
        assert!(String::from_utf8_lossy(&page).contains("Welcome to nginx"));
    });
}

#[test]
fn it_ends_when_told_to() {
    let network = network();
    let running = NGINX.start(&network);
    running.signal(Signal::SIGTERM);
    running.wait(Duration::from_secs(20)).success();
}
