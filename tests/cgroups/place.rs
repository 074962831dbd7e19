//! A cgroup for one test, and what a sandbox in it shows.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::common::{Output, Running, Sandbox};

/// A controller's directory on this host, and whether it is version 2's.
pub fn mounted(controller: &str) -> (PathBuf, bool) {
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
pub struct Place(String);

impl Place {
    pub fn new(name: &str) -> Place {
        Place(format!("/runsc-test-{}-{name}/c1", std::process::id()))
    }

    pub fn dir(&self, controller: &str) -> PathBuf {
        mounted(controller).0.join(&self.0[1..])
    }

    /// A control file, by its names in both versions.
    pub fn read(&self, controller: &str, v1: &str, v2: &str) -> String {
        let name = if mounted(controller).1 { v2 } else { v1 };
        let path = self.dir(controller).join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
    }

    pub fn sandbox<'a>(&self, script: &str, resources: Value) -> Sandbox<'a> {
        Sandbox::new(["sh", "-c", script]).with("/linux/cgroupsPath", json!(self.0)).with("/linux/resources", resources)
    }

    #[track_caller]
    pub fn is_gone(&self) {
        for controller in ["memory", "cpu", "pids"] {
            let dir = self.dir(controller);
            assert!(!dir.exists() && !dir.parent().unwrap().exists(), "{} is left", dir.display());
        }
    }
}

/// Waits until it has printed this.
pub fn printed(running: &mut Running, wanted: &str) {
    let file = running.printed();
    running.until(wanted, || fs::read_to_string(&file).ok()?.contains(wanted).then_some(()));
}

#[track_caller]
pub fn done(output: std::process::Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Kills the container; by the time that the command which runs it has ended, nothing is left.
pub fn end(running: Running) -> Output {
    let mut kill = running.about(&["kill"]);
    done(kill.arg("KILL").output().expect("the runtime starts"));
    running.wait(Duration::from_secs(60))
}
