//! Limits of the specification on this host's real cgroups, whichever version has the controllers.

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::{Running, Sandbox};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A controller's directory on this host, and whether it is version 2's.
fn mounted(controller: &str) -> (PathBuf, bool) {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let point = PathBuf::from(fields[1]);
        match fields[2] {
            "cgroup" if fields[3].split(',').any(|option| option == controller) => return (point, false),
            "cgroup2" => {
                let offered = fs::read_to_string(point.join("cgroup.controllers")).expect("cgroup2 has it");
                if offered.split_whitespace().any(|one| one == controller) {
                    return (point, true);
                }
            }
            _ => {}
        }
    }
    panic!("this host has no cgroup controller {controller}: these tests need it");
}

/// A cgroup for one test.
struct Place(String);

impl Place {
    fn new(name: &str) -> Place {
        Place(format!("/runsc-test-{}-{name}/c1", std::process::id()))
    }

    fn dir(&self, controller: &str) -> PathBuf {
        mounted(controller).0.join(&self.0[1..])
    }

    /// A control file, by its names in both versions.
    fn read(&self, controller: &str, v1: &str, v2: &str) -> String {
        let name = if mounted(controller).1 { v2 } else { v1 };
        let path = self.dir(controller).join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
    }

    fn sandbox<'a>(&self, script: &str, resources: Value) -> Sandbox<'a> {
        Sandbox::new(["sh", "-c", script]).with("/linux/cgroupsPath", json!(self.0)).with("/linux/resources", resources)
    }

    #[track_caller]
    fn is_gone(&self) {
        for controller in ["memory", "cpu", "pids"] {
            let dir = self.dir(controller);
            assert!(!dir.exists() && !dir.parent().unwrap().exists(), "{} is left", dir.display());
        }
    }
}

fn printed(running: &mut Running, wanted: &str) {
    let file = running.printed();
    running.until(wanted, || fs::read_to_string(&file).ok()?.contains(wanted).then_some(()));
}

#[track_caller]
fn done(output: std::process::Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn limits_are_set_changed_counted_and_removed() {
    let place = Place::new("limits");
    let resources = json!({
        "memory": {"limit": 256 << 20}, "cpu": {"quota": 50_000, "period": 100_000}, "pids": {"limit": 20},
    });
    let mut running = place.sandbox("echo up; while :; do sleep 1; done", resources).start();
    printed(&mut running, "up");
    assert_eq!(place.read("memory", "memory.limit_in_bytes", "memory.max"), (256 << 20).to_string());
    assert_eq!(place.read("cpu", "cpu.cfs_quota_us", "cpu.max").split(' ').next(), Some("50000"));
    // The sentry, the gofer and at least the template of stubs and the shell's.
    assert!(place.read("memory", "cgroup.procs", "cgroup.procs").lines().count() >= 4);

    done(running.command(&["update", "--memory=128m", "--pids-limit", "9"]));
    assert_eq!(place.read("memory", "memory.limit_in_bytes", "memory.max"), (128 << 20).to_string());
    let bad = running.command(&["update", "--cpu-period", "1"]);
    assert!(String::from_utf8_lossy(&bad.stderr).contains("linux.resources.cpu."), "{bad:?}");

    let event: Value = serde_json::from_str(&done(running.command(&["events", "--stats"]))).expect("JSON");
    assert_eq!((event["type"].as_str(), event["id"].as_str()), (Some("stats"), Some("c1")));
    let data = &event["data"];
    assert_eq!(data["memory"]["usage"]["limit"], 128 << 20);
    assert!(data["memory"]["usage"]["usage"].as_u64() > Some(0), "{data}");
    assert!(data["cpu"]["usage"]["total"].as_u64() > Some(0), "{data}");
    assert_eq!(data["pids"], json!({"current": 2, "limit": 9}));

    running.signal(Signal::SIGKILL);
    running.wait_or_kill(Duration::from_secs(30));
    place.is_gone();
}

#[test]
fn the_container_counts_its_own_threads() {
    let place = Place::new("pids");
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 30 & done; echo all";
    let output = place.sandbox(script, json!({"pids": {"limit": 6}})).run();
    assert!(!output.stdout.contains("all") && output.stderr.contains("fork"), "{}", output.report());
    let output = place.sandbox("for i in 1 2 3 4 5; do sleep 0 & done; echo all", json!({"pids": {"limit": 6}})).run();
    assert_eq!(output.success(), "all\n");
    place.is_gone();
}

#[test]
fn a_process_that_the_host_kills_for_memory_is_killed_in_the_container() {
    let place = Place::new("oom");
    // `tail` keeps the line that never ends.
    let script = "head -c 300M /dev/zero | tail -n 1 > /dev/null; echo $?; while :; do sleep 1; done";
    let mut running = place.sandbox(script, json!({"memory": {"limit": 64 << 20}})).start();
    printed(&mut running, "\n");
    assert_eq!(fs::read_to_string(running.printed()).unwrap(), "137\n");
    let event: Value = serde_json::from_str(&done(running.command(&["events", "--stats"]))).expect("JSON");
    assert_eq!(event["data"]["memory"]["raw"]["oom_kill"], 1, "{event}");
    running.signal(Signal::SIGTERM);
    running.wait_or_kill(Duration::from_secs(30));
}

#[test]
fn what_cannot_be_limited_is_refused_and_nothing_is_left() {
    let place = Place::new("refused");
    let output =
        place.sandbox("true", json!({"memory": {"limit": 64 << 20}, "rdma": {"mlx": {"hcaHandles": 1}}})).run();
    assert_eq!(output.code(), 128);
    assert!(output.stderr.contains("linux.resources.rdma"), "{}", output.report());
    place.is_gone();
}
