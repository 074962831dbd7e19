//! Programs that use the network: a sandbox at one end of the cable, the host's tools at the other.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::common::{Network, OUTSIDE, OUTSIDE6, Runtime, SANDBOX, SANDBOX6, Sandbox};

fn network() -> Network {
    Network::new(Runtime::under_test().cable).expect("root may make a network")
}

#[test]
fn ping_from_inside() {
    let network = network();
    for address in [OUTSIDE, OUTSIDE6] {
        let output = Sandbox::new(["ping", "-c3", "-i0.2", "-W5", address]).network(&network).run();
        assert!(output.success().contains("3 received"), "{}", output.report());
    }
}

#[test]
fn ping_from_outside() {
    let network = network();
    let _running = Sandbox::new(["sleep", "60"]).network(&network).start();
    for address in [SANDBOX, SANDBOX6] {
        // The first may be sent before the sandbox is up.
        let output = network.command("ping").args(["-c5", "-i0.2", "-w20", address]).output().expect("ping starts");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{printed}");
    }
}

#[test]
fn names_are_resolved_over_dns() {
    let network = network();
    let configuration = tempfile::NamedTempFile::new().expect("a file");
    fs::write(configuration.path(), format!("nameserver {OUTSIDE}\noptions timeout:5\n")).expect("a file");
    let (ready, is_ready) = mpsc::channel();
    thread::scope(|scope| {
        let network = &network;
        scope.spawn(move || {
            network.outside(|| {
                let socket = UdpSocket::bind((OUTSIDE, 53)).expect("nobody else is in the namespace");
                socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a valid time");
                ready.send(()).expect("the test waits");
                // One question for each family, in any order.
                let mut asked = BTreeSet::new();
                while asked.len() < 2 {
                    let mut packet = [0; 512];
                    let (length, from) = socket.recv_from(&mut packet).expect("a question");
                    let (kind, answer) = answer(&packet[..length]);
                    asked.insert(kind);
                    socket.send_to(&answer, from).expect("an answer can be sent");
                }
            });
        });
        is_ready.recv().expect("the server is up");
        let program = "import socket; print(sorted({a[4][0] for a in socket.getaddrinfo('name.example', 80)}))";
        let output = Sandbox::new(["/usr/bin/python3", "-c", program])
            .bind(configuration.path(), "/etc/resolv.conf")
            .network(network)
            .run();
        assert_eq!(output.success(), "['192.0.2.7', '2001:db8::7']\n");
    });
}

/// Answers a question (RFC 1035, section 4) with an address of documentation; returns its type too.
fn answer(question: &[u8]) -> (u8, Vec<u8>) {
    const AAAA: u8 = 28;
    // After the header of 12 bytes the name, whose last label is empty, then the type and the class.
    let end = 12 + question[12..].iter().position(|&byte| byte == 0).expect("a name") + 5;
    let kind = question[end - 3];
    let address: &[u8] = match kind {
        AAAA => &[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
        _ => &[192, 0, 2, 7],
    };
    // The same id; a response, recursion available; one question, one answer.
    let mut packet = vec![question[0], question[1], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    packet.extend_from_slice(&question[12..end]);
    // The name is the one at byte 12; class IN; to be kept for a minute.
    packet.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, address.len() as u8]);
    packet.extend_from_slice(address);
    (kind, packet)
}

#[test]
fn iperf3_both_ways() {
    let network = network();
    for address in [SANDBOX, SANDBOX6] {
        let mut running = Sandbox::new(["iperf3", "-s", "-1"]).network(&network).start();
        for reverse in [false, true] {
            if reverse {
                running = Sandbox::new(["iperf3", "-s", "-1"]).network(&network).start();
            }
            let report = running.until("iperf3 answers", || {
                let mut client = network.command("timeout");
                client.args(["20", "iperf3", "-c", address, "-t2", "-J"]).args(reverse.then_some("-R"));
                let output = client.output().expect("iperf3 starts");
                // With -J its status is 0 even if it could not connect.
                let report: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
                report["error"].is_null().then_some(report)
            });
            let bits = report["end"]["sum_sent"]["bits_per_second"].as_f64().unwrap_or(0.0);
            assert!(bits > 1e6, "{bits} bits a second to {address}, reverse {reverse}");
        }
    }
}

#[test]
fn curl_and_python_talk_to_the_outside() {
    let network = network();
    let listener = network.outside(|| TcpListener::bind((OUTSIDE, 8000)).expect("nobody else is in the namespace"));
    // Nobody waits for this thread: it ends with the test, also if no client comes.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let mut line = String::new();
            while stream.read_line(&mut line).expect("a request") > 2 {
                line.clear();
            }
            let response = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n";
            stream.get_mut().write_all(response.as_bytes()).expect("the client reads");
        }
    });
    let url = format!("http://{OUTSIDE}:8000/");
    let get = format!("import urllib.request as r; print(r.urlopen('{url}', timeout=20).read())");
    assert_eq!(Sandbox::new(["curl", "-sf", "-m20", &url]).network(&network).run().success(), "hello\n");
    assert_eq!(Sandbox::new(["/usr/bin/python3", "-c", &get]).network(&network).run().success(), "b'hello\\n'\n");
}

#[test]
fn the_interface_is_to_be_seen() {
    let network = network();
    let output = Sandbox::new(["ip", "-o", "address"]).network(&network).run();
    let printed = output.success();
    assert!(printed.contains(&format!("{SANDBOX}/24")) && printed.contains(&format!("{SANDBOX6}/64")), "{printed}");
    let output = Sandbox::new(["ip", "route"]).network(&network).run();
    assert!(output.success().contains(&format!("default via {OUTSIDE}")), "{}", output.stdout);
}
