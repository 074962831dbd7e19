//! A pod and its containers' bundles, as containerd asks for them by annotations.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::place::Place;

pub const KIND: &str = "io.kubernetes.cri.container-type";
pub const POD: &str = "io.kubernetes.cri.sandbox-id";

/// A pod whose first container sleeps.
pub struct Pod {
    pub place: Place,
    pub pid: i64,
}

impl Pod {
    pub fn new() -> Pod {
        Pod::with(|_| ())
    }

    /// With another specification of the first container.
    pub fn with(change: impl FnOnce(&mut Value)) -> Pod {
        let place = Place::with(|config| {
            config["process"]["args"] = json!(["/bin/sleep", "1000"]);
            config["hostname"] = json!("podhost");
            config["annotations"] = json!({KIND: "sandbox", POD: "pod"});
            change(config);
        });
        place.run(&["run", "--detach", "pod"]);
        let pid = place.state("pod")["pid"].as_i64().expect("a number");
        Pod { place, pid }
    }

    /// The namespaces that Kubernetes has the containers of a pod share.
    pub fn namespaces(&self) -> Value {
        let of = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{file}", self.pid)});
        json!([of("network", "net"), of("ipc", "ipc"), of("uts", "uts"), {"type": "pid"}, {"type": "mount"}])
    }

    /// The bundle of a further container, which runs `script`.
    pub fn bundle_with(&self, id: &str, script: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let directory = self.place.file(&format!("bundle-{id}"));
        fs::create_dir_all(&directory).expect("a directory");
        let text = fs::read_to_string(self.place.bundle().join("config.json")).expect("a file");
        let mut config: Value = serde_json::from_str(&text).expect("JSON");
        config["process"]["args"] = json!(["/bin/bash", "-c", script]);
        config["annotations"] = json!({KIND: "container", POD: "pod"});
        config["linux"] = json!({"namespaces": self.namespaces()});
        config.as_object_mut().expect("an object").remove("hostname");
        change(&mut config);
        fs::write(directory.join("config.json"), config.to_string()).expect("a file");
        directory
    }

    pub fn bundle(&self, id: &str, script: &str) -> PathBuf {
        self.bundle_with(id, script, |_| ())
    }

    /// Runs a command that takes a bundle; it must succeed.
    #[track_caller]
    pub fn make(&self, words: &[&str], bundle: &Path, id: &str) -> String {
        let bundle = bundle.to_str().expect("text");
        self.place.run(&[words, &["--bundle", bundle, id]].concat())
    }

    /// Starts a container and leaves it.
    #[track_caller]
    pub fn start(&self, id: &str, script: &str) {
        self.make(&["run", "--detach"], &self.bundle(id, script), id);
    }

    /// Runs a container to its end; returns what it has written.
    #[track_caller]
    pub fn run(&self, id: &str, script: &str) -> String {
        self.make(&["run"], &self.bundle(id, script), id)
    }

    /// A host process of a container's record.
    pub fn process(&self, id: &str, name: &str) -> i32 {
        let text = fs::read_to_string(self.place.root().join(id).join("state.json")).expect("a file");
        let record: Value = serde_json::from_str(&text).expect("JSON");
        record[name]["pid"].as_i64().expect("a number") as i32
    }

    /// As [`Pod::bundle`], with the pod's volume on `/mnt`.
    pub fn with_volume(&self, id: &str, script: &str) -> PathBuf {
        self.with_part_of_volume(id, script, ("", "/mnt", "rw"))
    }

    /// With a directory of the volume at a place, and an option.
    pub fn with_part_of_volume(&self, id: &str, script: &str, (part, place, option): (&str, &str, &str)) -> PathBuf {
        let volume = self.place.file("volume").join(part);
        fs::create_dir_all(&volume).expect("a directory");
        self.bundle_with(id, script, |config| {
            let mount = json!({"destination": place, "type": "bind", "source": volume, "options": ["rbind", option]});
            config["mounts"].as_array_mut().expect("a list").push(mount);
        })
    }

    #[track_caller]
    pub fn delete_all(&self, ids: &[&str]) {
        for id in ids {
            self.place.run(&["delete", "--force", id]);
        }
        self.place.is_empty();
    }
}
