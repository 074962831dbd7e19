//! What limits do on the host, and to the container's programs.

use std::fs;

use serde_json::{Value, json};

use super::place::{Place, done, end, printed};

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

    end(running);
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
    end(running);
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
