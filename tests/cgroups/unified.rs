//! Cgroup v2 alone, as recent hosts have it: with the controllers that this host gives to v2. Those that v1 has are missing
//! there, and a limit that needs one is refused by its name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use super::common::{Runtime, Sandbox};
use super::place::{done, end, printed};

/// Runs the rest of the words where v2 is all there is.
const WITHIN: [&str; 5] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount --make-rprivate / && mount -t tmpfs tmpfs /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"",
];

/// The host's v2, mounted for this test's thread and what it starts.
struct V2 {
    point: tempfile::TempDir,
    path: String,
}

impl V2 {
    fn new(name: &str) -> V2 {
        let nothing = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).expect("root may");
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("root may");
        let point = tempfile::tempdir().unwrap();
        mount(Some("cgroup2"), point.path(), Some("cgroup2"), MsFlags::empty(), nothing).expect("Linux 4.5");
        V2 { point, path: format!("/runsc-test-{}-{name}/c1", std::process::id()) }
    }

    fn dir(&self) -> PathBuf {
        self.point.path().join(&self.path[1..])
    }

    fn read(&self, file: &str) -> String {
        let path = self.dir().join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
    }

    /// The controllers that v2 has here.
    fn controllers(&self) -> Vec<String> {
        let text = fs::read_to_string(self.point.path().join("cgroup.controllers")).unwrap();
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn sandbox<'a>(&self, script: &str, resources: Value) -> Sandbox<'a> {
        let mut runtime = Runtime::under_test();
        runtime.within = WITHIN.iter().chain(&["sh"]).map(|&word| word.to_owned()).collect();
        let sandbox = Sandbox::new(["sh", "-c", script]).runtime(&runtime);
        sandbox.with("/linux/cgroupsPath", json!(self.path)).with("/linux/resources", resources)
    }
}

impl Drop for V2 {
    fn drop(&mut self) {
        // Its directory goes, too.
        umount(self.point.path()).expect("it was mounted");
    }
}

/// For each controller: what a specification may ask of it, the file of v2 and what that has then.
fn limits() -> Vec<(&'static str, Value, &'static str, String)> {
    let huge = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let has_2m = huge.map(|entry| entry.file_name()).any(|name| name == "hugepages-2048kB");
    let page = if has_2m { "2MB" } else { "1GB" };
    let bytes: u64 = if has_2m { 8 << 20 } else { 2 << 30 };
    let file = if has_2m { "hugetlb.2MB.max" } else { "hugetlb.1GB.max" };
    vec![
        ("memory", json!({"memory": {"limit": 256 << 20}}), "memory.max", (256 << 20).to_string()),
        ("cpu", json!({"cpu": {"quota": 50_000, "period": 100_000}}), "cpu.max", "50000 100000".into()),
        ("cpuset", json!({"cpu": {"cpus": "0"}}), "cpuset.cpus", "0".into()),
        ("pids", json!({"pids": {"limit": 20}}), "pids.max", "104".into()),
        ("io", json!({"blockIO": {"weight": 500}}), "io.bfq.weight", "default 500".into()),
        ("hugetlb", json!({"hugepageLimits": [{"pageSize": page, "limit": bytes}]}), file, bytes.to_string()),
    ]
}

#[test]
fn controllers_that_are_there_are_used_and_others_named() {
    let v2 = V2::new("unified");
    let there = v2.controllers();
    for (controller, resources, file, value) in limits() {
        if there.iter().any(|one| one == controller) {
            let mut running = v2.sandbox("echo up; exec sleep 1000", resources).start();
            printed(&mut running, "up");
            // Without BFQ the kernel's own weights, which have another scale.
            let bfq = controller != "io" || v2.dir().join(file).exists();
            let (file, value) = if bfq { (file, value.as_str()) } else { ("io.weight", "default 4950") };
            assert_eq!(v2.read(file), value, "{controller}");
            assert_eq!(end(running).code(), 137);
        } else {
            let output = v2.sandbox("true", resources).run();
            assert_eq!(output.code(), 128, "{}", output.report());
            let name = if controller == "io" { "blkio" } else { controller };
            let expected = format!("the cgroup controller {name} is not available on this host\n");
            assert!(output.stderr.ends_with(&expected), "{}", output.stderr);
        }
        assert!(!v2.dir().exists() && !v2.dir().parent().unwrap().exists(), "{controller}: a cgroup is left");
    }
}

#[test]
fn time_and_processes_are_counted_without_controllers() {
    let v2 = V2::new("counted");
    let mut running = v2.sandbox("echo up; exec sleep 1000", json!({})).start();
    printed(&mut running, "up");
    assert!(v2.read("cgroup.procs").lines().count() >= 3, "sentry, gofer, stubs");
    let used: u64 = v2.read("cpu.stat").lines().next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let event: Value = serde_json::from_str(&done(running.command(&["events", "--stats"]))).expect("JSON");
    let total = event["data"]["cpu"]["usage"]["total"].as_u64().unwrap_or_else(|| panic!("{event}"));
    assert!(total >= used * 1000, "{used} {event}");
    end(running);
    assert!(!v2.dir().parent().unwrap().exists());
}

#[test]
fn what_is_left_in_it_is_killed() {
    let v2 = V2::new("left");
    let mut running = v2.sandbox("echo up; exec sleep 1000", json!({})).start();
    printed(&mut running, "up");
    // One that came there by itself.
    let mut stray = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(v2.dir().join("cgroup.procs"), stray.id().to_string()).unwrap();
    end(running);
    assert!(!stray.wait().unwrap().success());
    assert!(!Path::new(&v2.dir()).exists());
}
