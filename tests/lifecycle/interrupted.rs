//! Commands that are killed half way: the next one understands what they have left, and removes it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::common::leftovers::Watch;
use crate::place::{Place, alone, is_alive, until};

/// `words` killed after each of some times, and `delete --force` after it.
fn killed_at_any_point(place: impl FnOnce() -> Place, words: &[&str], before: &[&str]) {
    let _alone = alone();
    let place = place();
    let watch = Watch::new();
    for step in 0..30 {
        if !before.is_empty() {
            place.run(before);
        }
        let mut child = place.start(words);
        std::thread::sleep(Duration::from_micros(700 * step));
        child.kill().unwrap();
        child.wait().unwrap();
        let known = place.try_run(&["state", "c1"]);
        let status = String::from_utf8_lossy(&known.stdout).into_owned();
        let sensible = ["creating", "created", "running", "stopped"].iter().any(|word| status.contains(word));
        assert!(sensible || !known.status.success(), "step {step}: {status}");
        place.run(&["delete", "--force", "c1"]);
        watch.nothing_is_left();
    }
    // What was left on the way to a name goes with the next one.
    place.run(&["create", "c1"]);
    place.run(&["delete", "c1"]);
    place.is_empty();
    watch.nothing_is_left();
}

#[test]
fn create() {
    killed_at_any_point(|| Place::new("sleep 100"), &["create", "c1"], &[]);
}

#[test]
fn create_with_a_cgroup() {
    let group = format!("runsc-test-{}-interrupted", std::process::id());
    let place = || {
        Place::with(|config| {
            config["process"]["args"] = json!(["/bin/sleep", "100"]);
            config["linux"] = json!({"cgroupsPath": format!("/{group}/c1")});
        })
    };
    killed_at_any_point(place, &["create", "c1"], &[]);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let points =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|fields| fields[2].starts_with("cgroup"));
    let left: Vec<_> = points.map(|fields| Path::new(fields[1]).join(&group)).filter(|path| path.exists()).collect();
    assert!(left.is_empty(), "cgroups are left: {left:?}");
}

#[test]
fn run() {
    killed_at_any_point(|| Place::new("sleep 100"), &["run", "c1"], &[]);
}

#[test]
fn start() {
    killed_at_any_point(|| Place::new("sleep 100"), &["start", "c1"], &["create", "c1"]);
}

#[test]
fn delete() {
    killed_at_any_point(|| Place::new("sleep 100"), &["delete", "--force", "c1"], &["run", "--detach", "c1"]);
}

#[test]
fn a_sentry_or_gofer_that_is_killed_stops_the_container() {
    let _alone = alone();
    let watch = Watch::new();
    let place = Place::new("while :; do cat /etc/passwd > /dev/null; done");
    place.run(&["run", "--detach", "c1"]);
    let pid = place.state("c1")["pid"].as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("it is stopped", || place.status("c1") == "stopped" && !is_alive(pid));
    assert!(place.refused(&["wait", "c1"]).contains("nobody knows how"));
    place.run(&["delete", "c1"]);
    place.is_empty();
    watch.nothing_is_left();
}

#[test]
fn do_removes_what_a_killed_do_has_left() {
    let _alone = alone();
    let watch = Watch::new();
    let place = Place::new("");
    let mut child = place.start(&["do", "sleep", "100"]);
    until("it runs", || place.run(&["list"]).contains("running"));
    child.kill().unwrap();
    child.wait().unwrap();
    watch.nothing_is_left();
    assert!(place.run(&["list"]).contains("stopped"));
    place.run(&["do", "true"]);
    place.is_empty();
}
