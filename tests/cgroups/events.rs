//! `events`: what is told, when, and in whose words.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::{Value, json};

use super::common::Running;
use super::place::{Place, done, end, printed};

/// How long a line may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// `events`, whose lines come in as they are printed.
struct Followed {
    child: Child,
    lines: Receiver<Value>,
}

impl Followed {
    fn start(running: &Running, flags: &[&str]) -> Followed {
        let mut command = running.about(&[&["events"], flags].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the runtime starts");
        let output = BufReader::new(child.stdout.take().expect("it was asked for"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines() {
                let line = line.expect("UTF-8");
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Followed { child, lines }
    }

    #[track_caller]
    fn next(&self) -> Value {
        self.lines.recv_timeout(PATIENCE).expect("another event")
    }

    /// Its end by itself, and the events until then.
    #[track_caller]
    fn ended(mut self) -> Vec<Value> {
        let rest: Vec<Value> = std::iter::from_fn(|| self.lines.recv_timeout(PATIENCE).ok()).collect();
        assert!(self.child.wait().expect("a child").success());
        rest
    }
}

#[test]
fn lines_come_at_the_interval_until_the_end() {
    let place = Place::new("follow");
    let mut running = place.sandbox("echo up; exec sleep 1000", json!({"memory": {"limit": 128 << 20}})).start();
    printed(&mut running, "up");
    let followed = Followed::start(&running, &["--interval=50ms"]);
    let mut used = 0;
    for _ in 0..5 {
        let event = followed.next();
        assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("c1")), "{event}");
        let total = event["data"]["cpu"]["usage"]["total"].as_u64().unwrap_or_else(|| panic!("{event}"));
        assert!(total >= used, "time goes on");
        used = total;
    }
    // One interval is over after five of them, another is not: the first line comes at once.
    let seldom = Followed::start(&running, &["--interval=1h"]);
    assert_eq!(seldom.next()["type"], "stats");
    assert_eq!(end(running).code(), 137);
    assert!(seldom.ended().is_empty());
    assert!(followed.ended().iter().all(|event| event["type"] == "stats"));
}

#[test]
fn a_process_that_is_killed_for_memory_is_a_line() {
    let place = Place::new("follow-oom");
    // `tail` keeps a line that never ends; whenever the file is there.
    let script = "echo up; while :; do
        if [ -e go ]; then rm go; head -c 300M /dev/zero | tail -n 1 > /dev/null; echo status $?; fi; sleep 0.05
    done";
    let sandbox = place.sandbox(script, json!({"memory": {"limit": 64 << 20}}));
    let work = sandbox.work();
    let mount = json!({"destination": work, "type": "bind", "source": work, "options": ["rbind", "rw"]});
    let mut running = sandbox.mount(mount).start();
    printed(&mut running, "up");
    let followed = Followed::start(&running, &["--interval=1h"]);
    assert_eq!(followed.next()["type"], "stats");
    for count in 1..=2 {
        fs::write(work.join("go"), "").unwrap();
        assert_eq!(followed.next(), json!({"type": "oom", "id": "c1"}));
        printed(&mut running, &"status 137\n".repeat(count));
    }
    end(running);
    assert!(followed.ended().is_empty(), "each is told once");
}

#[test]
fn the_first_process_killed_for_memory_is_a_line_too() {
    let place = Place::new("follow-oom-first");
    let script = "echo up; while [ ! -e go ]; do sleep 0.05; done; exec tail -n 1 /dev/zero";
    let sandbox = place.sandbox(script, json!({"memory": {"limit": 64 << 20}}));
    let work = sandbox.work();
    let mount = json!({"destination": work, "type": "bind", "source": work, "options": ["rbind", "rw"]});
    let mut running = sandbox.mount(mount).start();
    printed(&mut running, "up");
    let followed = Followed::start(&running, &["--interval=1h"]);
    assert_eq!(followed.next()["type"], "stats");
    fs::write(work.join("go"), "").unwrap();
    assert_eq!(running.wait(PATIENCE).code(), 137);
    assert_eq!(followed.ended(), [json!({"type": "oom", "id": "c1"})]);
}

/// A container of the real runc, with the same limits. It is deleted when dropped.
struct Runc {
    directory: tempfile::TempDir,
}

impl Runc {
    fn start(group: &str, resources: &Value) -> Runc {
        let runc = Runc { directory: tempfile::tempdir().unwrap() };
        let root = runc.directory.path().join("bundle/rootfs");
        for name in ["bin", "proc", "dev"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        let config = json!({
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": ["/bin/busybox", "sleep", "1000"], "cwd": "/",
                "env": ["PATH=/bin"],
            },
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": group,
                "resources": resources,
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "network"}],
            },
        });
        fs::write(runc.directory.path().join("bundle/config.json"), config.to_string()).unwrap();
        let bundle = runc.directory.path().join("bundle");
        let mut run = runc.command(&["run", "--detach", "--bundle"]);
        // What it leaves running would keep a pipe open.
        let errors = runc.directory.path().join("stderr");
        run.arg(bundle).arg("c1").stdout(Stdio::null()).stderr(fs::File::create(&errors).unwrap());
        let status = run.status().expect("runc is installed");
        assert!(status.success(), "{}", fs::read_to_string(errors).unwrap());
        runc
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.directory.path().join("state")).args(words).stdin(Stdio::null());
        command
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        let _ = self.command(&["delete", "--force", "c1"]).output();
    }
}

/// Every key of a document, as a path; an element of a list is `[]`. Types go with them.
fn shape(at: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| shape(&format!("{at}/{name}"), value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| shape(&format!("{at}[]"), value, found)),
        Value::Number(_) => drop(found.insert(format!("{at} number"))),
        Value::String(_) => drop(found.insert(format!("{at} text"))),
        Value::Bool(_) => drop(found.insert(format!("{at} bool"))),
        Value::Null => drop(found.insert(format!("{at} null"))),
    }
}

#[test]
fn statistics_are_told_in_runcs_words() {
    let place = Place::new("words");
    let resources = json!({
        "memory": {"limit": 128 << 20}, "cpu": {"quota": 50_000, "period": 100_000, "cpus": "0"}, "pids": {"limit": 20},
    });
    let mut running = place.sandbox("echo up; exec sleep 1000", resources.clone()).start();
    printed(&mut running, "up");
    let runc = Runc::start(&format!("/runsc-test-{}-words-runc", std::process::id()), &resources);
    let ours: Value = serde_json::from_str(&done(running.command(&["events", "--stats"]))).expect("JSON");
    let theirs = runc.command(&["events", "--stats", "c1"]).output().expect("runc is installed");
    let theirs: Value = serde_json::from_str(&done(theirs)).expect("JSON");

    let shapes = [&ours, &theirs].map(|document| {
        let mut found = BTreeSet::new();
        shape("", document, &mut found);
        found
    });
    let [mut ours_only, theirs_only] =
        [(0, 1), (1, 0)].map(|(this, that)| shapes[this].difference(&shapes[that]).cloned().collect::<BTreeSet<_>>());
    // Later releases of runc have it.
    ours_only.retain(|key| !key.contains("/psi/"));
    ours_only.remove("/data/memory/raw/oom_kill number");
    // What is left out when it is 0, and what a device has that one of them has not used.
    let may_be_zero = |key: &String| {
        ["/throttling/", "/blkio/", "/cache", "/max number", "/usage number", "/percpu", "/kernel"]
            .iter()
            .any(|part| key.contains(part))
    };
    ours_only.retain(|key| !may_be_zero(key));
    let theirs_only: Vec<&String> = theirs_only.iter().filter(|key| !may_be_zero(key)).collect();
    assert!(theirs_only.is_empty(), "only runc tells {theirs_only:?}\n{ours:#}\n{theirs:#}");
    assert!(ours_only.is_empty(), "only runsc tells {ours_only:?}\n{ours:#}\n{theirs:#}");
    for pointer in ["/type", "/id", "/data/memory/usage/limit", "/data/pids/limit", "/data/cpuset/cpus"] {
        assert_eq!(ours.pointer(pointer), theirs.pointer(pointer), "{pointer}");
    }
    drop(runc);
    end(running);
    place.is_gone();
}
