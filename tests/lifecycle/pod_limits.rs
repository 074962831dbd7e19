//! Limits of the containers of a pod: each has its own cgroup, where its processes are.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::place::until;
use crate::pod::Pod;

/// The directory of a controller on this host, whichever version of cgroups has it.
fn mounted(controller: &str) -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let found = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let point = PathBuf::from(fields[1]);
        let has = match fields[2] {
            "cgroup" => fields[3].split(',').any(|option| option == controller),
            "cgroup2" => fs::read_to_string(point.join("cgroup.controllers"))
                .is_ok_and(|offered| offered.split_whitespace().any(|one| one == controller)),
            _ => false,
        };
        has.then_some(point)
    });
    found.unwrap_or_else(|| panic!("this host has no cgroup controller {controller}: this test needs it"))
}

/// A pod with a cgroup for each of its containers, below one.
struct Limited {
    pod: Pod,
    group: String,
}

impl Limited {
    fn new(name: &str) -> Limited {
        let group = format!("runsc-test-{}-{name}", std::process::id());
        let pod = Pod::with(|config| config["linux"]["cgroupsPath"] = json!(format!("/{group}/pod")));
        Limited { pod, group }
    }

    fn start(&self, id: &str, script: &str, resources: Value) {
        let bundle = self.pod.bundle_with(id, script, |config| {
            config["linux"]["cgroupsPath"] = json!(format!("/{}/{id}", self.group));
            config["linux"]["resources"] = resources;
        });
        self.pod.make(&["run", "--detach"], &bundle, id);
    }

    /// The host's numbers of a container's processes, as the runtime has them.
    fn processes(&self, id: &str) -> BTreeSet<i32> {
        let list: Vec<i32> = serde_json::from_str(&self.pod.place.run(&["ps", "--format=json", id])).expect("JSON");
        list.into_iter().collect()
    }

    /// Those that are in a container's cgroup.
    fn inside(&self, controller: &str, id: &str) -> BTreeSet<i32> {
        let file = mounted(controller).join(&self.group).join(id).join("cgroup.procs");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.lines().map(|line| line.parse().expect("a number")).collect()
    }

    #[track_caller]
    fn is_gone(&self) {
        for controller in ["memory", "cpu"] {
            let directory = mounted(controller).join(&self.group);
            assert!(!directory.exists(), "{} is left", directory.display());
        }
    }
}

#[test]
fn the_processes_of_a_container_are_in_its_own_cgroup() {
    let limited = Limited::new("processes");
    // One that is forked, one that a shell starts, one by `posix_spawn`, which takes a fresh stub.
    let script = "sleep 1000 & exec python3 -c \"
import os, time
if os.fork() == 0: time.sleep(1000)
os.posix_spawn('/bin/sleep', ['sleep', '1000'], {})
time.sleep(1000)\"";
    limited.start("web", script, json!({}));
    limited.start("other", "sleep 1000", json!({}));
    until("all have been started", || limited.processes("web").len() == 4);
    limited.pod.place.run(&["exec", "--detach", "web", "/bin/sleep", "1000"]);
    let (web, other, pod) = (limited.processes("web"), limited.processes("other"), limited.processes("pod"));
    assert_eq!((web.len(), other.len(), pod.len()), (5, 1, 1));
    for controller in ["memory", "cpu"] {
        let inside = limited.inside(controller, "web");
        assert!(web.is_subset(&inside), "{controller}: {web:?}, not {inside:?}");
        assert!(other.is_subset(&limited.inside(controller, "other")), "{controller}");
        assert!(pod.is_subset(&limited.inside(controller, "pod")), "{controller}");
    }
    limited.pod.delete_all(&["web", "other", "pod"]);
    limited.is_gone();
}

#[test]
fn want_of_memory_is_the_containers_own() {
    let limited = Limited::new("memory");
    limited.start("other", "sleep 1000", json!({"memory": {"limit": 64 << 20}}));
    let hungry = "until [ -e /tmp/go ]; do sleep 0.02; done; head -c 300M /dev/zero | tail -n 1 > /dev/null; exit $?";
    limited.start("hungry", hungry, json!({"memory": {"limit": 64 << 20}}));
    let told = limited.pod.place.file("events");
    let mut events = limited.pod.place.command(&["events", "--interval=1h", "hungry"]);
    let mut events = events.stdout(fs::File::create(&told).expect("a file")).spawn().expect("runsc starts");
    let told = || fs::read_to_string(&told).expect("a file");
    until("events are watched", || told().contains("\"type\":\"stats\""));
    limited.pod.place.run(&["exec", "hungry", "/bin/touch", "/tmp/go"]);
    assert_eq!(limited.pod.place.wait("hungry"), 137);
    assert!(events.wait().expect("a child").success());
    assert!(told().contains("\"type\":\"oom\""), "{}", told());
    let stats: Value = serde_json::from_str(&limited.pod.place.run(&["events", "--stats", "other"])).expect("JSON");
    assert_eq!(stats["data"]["memory"]["raw"]["oom_kill"], 0, "{stats}");
    assert!(stats["data"]["memory"]["usage"]["usage"].as_u64() > Some(0), "{stats}");
    assert_eq!(limited.pod.place.status("other"), "running");
    assert_eq!(limited.pod.place.status("pod"), "running");
    limited.pod.delete_all(&["hungry", "other", "pod"]);
    limited.is_gone();
}
