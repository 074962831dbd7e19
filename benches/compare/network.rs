//! What is measured over the cable, with the client in another network namespace.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::common::nginx::NGINX;
use super::common::{Cable, Network, OUTSIDE, Runtime, SANDBOX, Sandbox};
use super::table::Figures;

/// A program in a namespace of its own, as the native case; ended when dropped.
struct Native(Child);

impl Native {
    /// Over the files of `NGINX`'s root if `root` is set.
    fn start(network: &Network, root: Option<&str>, words: &[&str]) -> Native {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", network.bundle_namespace().display()));
        if let Some(root) = root {
            command.args(["chroot", root]);
        }
        Native(command.args(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"))
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), nix::sys::signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn network(runtime: Option<&Runtime>) -> Network {
    Network::new(runtime.map_or(Cable::Veth, |runtime| runtime.cable)).expect("root may make a network")
}

/// Requests a second and latency with wrk.
pub fn nginx(runtime: Option<&Runtime>) -> Figures {
    let network = network(runtime);
    let root = NGINX.root();
    let mut figures = Figures::new();
    let mut measure = || {
        for name in ["1k", "1m"] {
            let url = format!("http://{SANDBOX}:8080/{name}");
            let output = network.command("wrk").args(["-t2", "-c32", "-d5", "--latency", &url]).output().expect("wrk");
            let printed = String::from_utf8_lossy(&output.stdout);
            let value = |label: &str| {
                let line = printed.lines().find_map(|line| line.trim().strip_prefix(label));
                line.map(str::trim).unwrap_or_else(|| panic!("wrk: {printed}")).to_owned()
            };
            figures.push((format!("{name}, requests a second"), value("Requests/sec:").parse().expect("a number")));
            figures.push((format!("{name}, median latency, ms"), milliseconds(&value("50%"))));
            figures.push((format!("{name}, 99 % latency, ms"), milliseconds(&value("99%"))));
        }
    };
    match runtime {
        None => {
            // The log goes where a container's would: into memory.
            let root = root.to_str().expect("UTF-8");
            let _native = Native::start(&network, Some(root), &["/usr/sbin/nginx", "-g", "daemon off;"]);
            answers(&network);
            measure();
        }
        Some(runtime) => {
            let mut running = NGINX.sandbox(&network).runtime(runtime).quiet().start();
            running.until("nginx answers", || reachable(&network).then_some(()));
            measure();
        }
    }
    figures
}

fn reachable(network: &Network) -> bool {
    let url = format!("http://{SANDBOX}:8080/1k");
    let curl = network.command("curl").args(["-sf", "-m5", "-o", "/dev/null", &url]).status();
    curl.expect("curl starts").success()
}

fn answers(network: &Network) {
    for _ in 0..200 {
        if reachable(network) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("nginx does not answer");
}

/// Reads wrk's `1.23ms`.
fn milliseconds(text: &str) -> f64 {
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    let parse = |&(unit, factor): &(&str, f64)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor);
    units.iter().find_map(parse).unwrap_or(f64::NAN)
}

/// Throughput into the sandbox and out of it, as the end outside counts it. A runtime in which iperf3 does not get to its
/// end has no figure.
pub fn iperf3(runtime: Option<&Runtime>) -> Figures {
    // A network for each: a runtime that takes over an interface of the namespace (gVisor does) leaves it without addresses.
    let mut figures = vec![("into the sandbox".to_owned(), into(runtime, &network(runtime)))];
    figures.extend(out_of(runtime, &network(runtime)).map(|speed| ("out of the sandbox".to_owned(), speed)));
    figures
}

fn into(runtime: Option<&Runtime>, network: &Network) -> f64 {
    let client = || {
        let output = network.command("timeout").args(["12", "iperf3", "-c", SANDBOX, "-t4", "-J"]).output();
        speed(&output.expect("iperf3 starts").stdout, "sum_sent")
    };
    match runtime {
        None => {
            let _native = Native::start(network, None, &["iperf3", "-s"]);
            let attempt = || {
                std::thread::sleep(Duration::from_millis(20));
                client()
            };
            (0..100).find_map(|_| attempt()).expect("iperf3 answers")
        }
        Some(runtime) => {
            let mut running = Sandbox::new(["iperf3", "-s"]).runtime(runtime).network(network).quiet().start();
            running.until("iperf3 answers", client)
        }
    }
}

fn out_of(runtime: Option<&Runtime>, network: &Network) -> Option<f64> {
    let mut server = network.command("timeout");
    server.args(["20", "iperf3", "-s", "-1", "-J"]).stdout(Stdio::piped());
    let server = server.spawn().expect("iperf3 starts");
    // It listens long before a sandbox is up; the native client tries again.
    let script = format!("until iperf3 -c {OUTSIDE} -t4 >/dev/null 2>&1; do sleep 0.1; done");
    let words = ["timeout", "10", "sh", "-c", &script];
    match runtime {
        None => drop(Native::start(network, None, &words).0.wait()),
        Some(runtime) => drop(Sandbox::new(words).runtime(runtime).network(network).quiet().run()),
    }
    speed(&server.wait_with_output().expect("iperf3 ends").stdout, "sum_received")
}

/// Gbit/s from iperf3's report.
fn speed(report: &[u8], end: &str) -> Option<f64> {
    let report: Value = serde_json::from_slice(report).ok()?;
    Some(report["end"][end]["bits_per_second"].as_f64()? / 1e9)
}
