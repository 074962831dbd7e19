//! Pods as CRI-O makes them: namespaces that are pinned to files before the pod is there, and often no first container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::leftovers::Watch;
use crate::place::{Place, alone, until};

const KIND: &str = "io.kubernetes.cri-o.ContainerType";
const POD: &str = "io.kubernetes.cri-o.SandboxID";

/// Namespaces that are pinned, as by `pinns`. They go when dropped.
struct Pins {
    directory: tempfile::TempDir,
}

impl Pins {
    fn new() -> Pins {
        let pins = Pins { directory: tempfile::tempdir().expect("a directory") };
        for kind in ["net", "ipc", "uts"] {
            fs::write(pins.file(kind), "").expect("a file");
        }
        let flag = |kind: &str| format!("--{kind}={}", pins.file(kind).display());
        let made = Command::new("unshare")
            .args([flag("net"), flag("ipc"), flag("uts")])
            .args(["sh", "-c", "hostname pinned && ip link set lo up"])
            .status();
        assert!(made.expect("unshare starts").success());
        pins
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.directory.path().join(kind)
    }

    fn namespaces(&self) -> Value {
        let of = |typ: &str, kind: &str| json!({"type": typ, "path": self.file(kind)});
        json!([{"type": "pid"}, {"type": "mount"}, of("network", "net"), of("ipc", "ipc"), of("uts", "uts")])
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for kind in ["net", "ipc", "uts"] {
            let _ = Command::new("umount").arg(self.file(kind)).status();
        }
    }
}

/// A pod, with the state directory of a place.
struct Crio {
    place: Place,
    pins: Pins,
}

impl Crio {
    fn new() -> Crio {
        Crio { place: Place::new("true"), pins: Pins::new() }
    }

    fn bundle(&self, id: &str, kind: &str, script: &str) -> PathBuf {
        self.bundle_with(id, kind, script, |_| ())
    }

    fn bundle_with(&self, id: &str, kind: &str, script: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let directory = self.place.file(&format!("bundle-{id}"));
        fs::create_dir_all(&directory).expect("a directory");
        let text = fs::read_to_string(self.place.bundle().join("config.json")).expect("a file");
        let mut config: Value = serde_json::from_str(&text).expect("JSON");
        config["process"]["args"] = json!(["/bin/bash", "-c", script]);
        config["annotations"] = json!({KIND: kind, POD: "pod"});
        config["linux"] = json!({"namespaces": self.pins.namespaces()});
        change(&mut config);
        fs::write(directory.join("config.json"), config.to_string()).expect("a file");
        directory
    }

    #[track_caller]
    fn run(&self, words: &[&str], bundle: &Path, id: &str) -> String {
        self.place.run(&[words, &["--bundle", bundle.to_str().expect("text"), id]].concat())
    }

    #[track_caller]
    fn start(&self, id: &str, script: &str) {
        self.run(&["run", "--detach"], &self.bundle(id, "container", script), id);
    }

    #[track_caller]
    fn refused(&self, bundle: &Path) -> String {
        self.place.refused(&["create", "--bundle", bundle.to_str().expect("text"), "c"])
    }
}

/// Makes a semaphore set, or prints the value of its first semaphore.
fn semaphore(call: &str) -> String {
    format!("python3 -c \"import ctypes; libc = ctypes.CDLL(None); {call}\"")
}

const SET: &str = "assert libc.semctl(libc.semget(77, 1, 0o1600), 0, 16, 5) == 0";
const GET: &str = "print(libc.semctl(libc.semget(77, 1, 0o600), 0, 12))";

#[test]
fn the_sandbox_is_in_the_pinned_namespaces_and_their_paths_lead_to_it() {
    let crio = Crio::new();
    let infra = crio.bundle("pod", "sandbox", "sleep 1000");
    crio.run(&["run", "--detach"], &infra, "pod");
    let pid = crio.place.state("pod")["pid"].as_i64().expect("a number");
    for kind in ["net", "ipc", "uts"] {
        let own = fs::metadata(format!("/proc/{pid}/ns/{kind}")).expect("it is there").ino();
        assert_eq!(own, fs::metadata(crio.pins.file(kind)).expect("it is there").ino(), "{kind}");
    }
    crio.start("a", &format!("{}; exec sleep 1000", semaphore(SET)));
    let look = format!("until {} 2>/dev/null | grep 5; do sleep 0.05; done; hostname", semaphore(GET));
    let said = crio.run(&["run"], &crio.bundle("b", "container", &look), "b");
    assert_eq!(said, "5\npinned\n");
    // What the specification says goes before.
    let named = crio.bundle_with("b", "container", "hostname", |config| config["hostname"] = json!("named"));
    assert_eq!(crio.run(&["run"], &named, "b"), "named\n");
    for id in ["a", "pod"] {
        crio.place.run(&["delete", "--force", id]);
    }
    crio.place.is_empty();
}

#[test]
fn a_pod_without_a_first_container_has_a_sandbox_as_long_as_it_has_containers() {
    let _alone = alone();
    let crio = Crio::new();
    let watch = Watch::new();
    let server = "exec python3 -c \"
import socket
server = socket.create_server(('127.0.0.1', 7000))
while True:
    peer, _ = server.accept()
    peer.sendall(b'from the pod')
    peer.close()\"";
    crio.start("server", &format!("{}; {server}", semaphore(SET)));
    assert_eq!(crio.place.status("pod"), "running");
    let look = format!(
        "until exec 3<>/dev/tcp/127.0.0.1/7000; do sleep 0.05; done 2>/dev/null; cat <&3; echo; hostname; {}",
        semaphore(GET)
    );
    let said = crio.run(&["run"], &crio.bundle("client", "container", &look), "client");
    assert_eq!(said, "from the pod\npinned\n5\n");
    assert!(crio.place.run(&["ps", "pod"]).contains("/pause"));
    // One container's end is not the pod's; the last one's is, and the next one makes it anew.
    crio.place.run(&["kill", "server", "KILL"]);
    assert_eq!(crio.place.wait("server"), 137);
    crio.start("other", "sleep 1000");
    crio.place.run(&["delete", "server"]);
    assert_eq!((crio.place.status("pod"), crio.place.status("other")), ("running".into(), "running".into()));
    crio.place.run(&["delete", "--force", "other"]);
    crio.place.is_empty();
    watch.nothing_is_left();
    crio.start("again", "sleep 1000");
    // A sandbox that has died is replaced.
    let sentry = crio.place.state("pod")["pid"].to_string();
    assert!(Command::new("kill").args(["-KILL", &sentry]).status().expect("kill starts").success());
    until("it is stopped", || crio.place.status("again") == "stopped");
    crio.start("more", "sleep 1000");
    crio.place.run(&["delete", "again"]);
    assert_eq!(crio.place.status("more"), "running");
    crio.place.run(&["delete", "--force", "more"]);
    crio.place.is_empty();
    watch.nothing_is_left();
}

#[test]
fn containers_that_are_made_at_once_share_one_sandbox() {
    let crio = Crio::new();
    let names = ["a", "b", "c", "d"];
    let bundles = names.map(|id| crio.bundle(id, "container", "sleep 1000"));
    let children: Vec<_> = names
        .iter()
        .zip(&bundles)
        .map(|(id, bundle)| crio.place.start(&["run", "--detach", "--bundle", bundle.to_str().expect("text"), id]))
        .collect();
    for mut child in children {
        assert!(child.wait().expect("a child").success());
    }
    assert_eq!(crio.place.run(&["list", "-q"]), "a\nb\nc\nd\npod\n");
    let deleting: Vec<_> = names.iter().map(|id| crio.place.start(&["delete", "--force", id])).collect();
    for mut child in deleting {
        assert!(child.wait().expect("a child").success());
    }
    crio.place.is_empty();
}

#[test]
fn a_create_that_is_killed_leaves_nothing_that_deleting_it_does_not_take() {
    let _alone = alone();
    let crio = Crio::new();
    let watch = Watch::new();
    let bundle = crio.bundle("c", "container", "sleep 1000");
    for step in 0..16 {
        let mut child = crio.place.start(&["create", "--bundle", bundle.to_str().expect("text"), "c"]);
        std::thread::sleep(std::time::Duration::from_millis(4 * step));
        child.kill().expect("it is a child");
        child.wait().expect("it is a child");
        crio.place.run(&["delete", "--force", "c"]);
        assert_eq!(crio.place.run(&["list", "-q"]), "", "step {step}");
    }
    crio.start("c", "sleep 1000");
    crio.place.run(&["delete", "--force", "c"]);
    crio.place.is_empty();
    watch.nothing_is_left();
}

#[test]
fn what_is_not_the_pods_to_have_is_refused_by_its_field() {
    let crio = Crio::new();
    for kind in ["sandbox", "container"] {
        let with = |index: usize, path: &str| {
            crio.bundle_with("c", kind, "true", |config| config["linux"]["namespaces"][index]["path"] = json!(path))
        };
        let host = crio.place.file("host");
        fs::write(&host, "").expect("a file");
        let bind = Command::new("mount").args(["--bind", "/proc/self/ns/ipc"]).arg(&host).status();
        assert!(bind.expect("mount starts").success());
        let problem = crio.refused(&with(3, host.to_str().expect("text")));
        let unbind = Command::new("umount").arg(&host).status();
        assert!(unbind.expect("umount starts").success());
        assert!(problem.contains("linux.namespaces[3].path: ") && problem.contains("is the host's own"), "{problem}");
        let uts = crio.pins.file("uts");
        let problem = crio.refused(&with(3, uts.to_str().expect("text")));
        assert!(problem.ends_with("is not a namespace of type ipc"), "{problem}");
        let problem = crio.refused(&with(4, "/no such"));
        assert!(problem.ends_with("linux.namespaces[4].path: /no such: No such file or directory"), "{problem}");
        let problem = crio.refused(&with(3, "/proc/self/ns/ipc"));
        assert!(problem.contains("joining another ipc namespace is not supported"), "{problem}");
        crio.place.is_empty();
    }
    // Another pod's.
    crio.start("a", "sleep 1000");
    let other = Crio::new();
    let bundle = crio.bundle_with("c", "container", "true", |config| {
        config["linux"]["namespaces"][3]["path"] = json!(other.pins.file("ipc"));
    });
    let problem = crio.refused(&bundle);
    assert!(problem.ends_with("linux.namespaces: of another pod than \"pod\""), "{problem}");
    crio.place.run(&["delete", "--force", "a"]);
    crio.place.is_empty();
}
