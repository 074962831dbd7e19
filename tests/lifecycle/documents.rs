//! The JSON that engines read, key by key beside the real runc's: `state`, `list`, `ps`, `events`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::place::{Place, text, until};

/// What runc leaves out while it is nothing or empty, and one key that is this runtime's own.
const OPTIONAL: &[&str] = &[
    "data.blkio.",
    "data.cpu.psi",
    "data.cpu.throttling.",
    "data.memory.cache",
    "data.memory.psi",
    "data.memory.raw.",
    "data.pids.limit",
    "data.hugetlb.",
];

/// A container in a cgroup that both runtimes can make, with the host's programs bound into an empty root.
struct Compared {
    place: Place,
    group: String,
}

impl Compared {
    fn new(name: &str) -> Compared {
        let group = format!("runsc-test-{}-{name}", std::process::id());
        let place = Place::with(|config| {
            config["process"]["args"] = json!(["/bin/sh", "-c", "sleep 1000 & wait"]);
            config["root"] = json!({"path": "rootfs"});
            let mut mounts = vec![json!({"destination": "/proc", "type": "proc", "source": "proc"})];
            for name in ["/usr", "/bin", "/lib", "/lib64"] {
                mounts.push(json!({"destination": name, "type": "bind", "source": name, "options": ["rbind", "ro"]}));
            }
            config["mounts"] = json!(mounts);
            let kinds = ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({"type": kind}));
            config["linux"] = json!({"namespaces": kinds, "cgroupsPath": format!("/{group}")});
        });
        for name in ["usr", "bin", "lib", "lib64", "proc"] {
            fs::create_dir_all(place.bundle().join("rootfs").join(name)).expect("a directory");
        }
        Compared { place, group }
    }

    /// What `runc` prints.
    #[track_caller]
    fn runc(&self, words: &[&str]) -> String {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.runc_root()).args(words).current_dir(self.place.bundle()).stdin(Stdio::null());
        if words.contains(&"--detach") {
            let status = runc.stdout(Stdio::null()).stderr(Stdio::null()).status();
            assert!(status.expect("runc is installed").success(), "{words:?}");
            return String::new();
        }
        let output = runc.output().expect("runc is installed");
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn runc_root(&self) -> PathBuf {
        self.place.file("runc")
    }

    /// What both print while the container's two processes run, one runtime after the other, as they use one cgroup.
    fn both(&self, words: &[&[&str]]) -> Vec<(Value, Value)> {
        let theirs = printed_by(&|words| self.runc(words), words);
        let ours = printed_by(&|words| self.place.run(words), words);
        theirs.into_iter().zip(ours).collect()
    }
}

fn printed_by(runtime: &dyn Fn(&[&str]) -> String, words: &[&[&str]]) -> Vec<Value> {
    let parse = |printed: String| serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    runtime(&["run", "--detach", "c1"]);
    let processes = || -> Value { parse(runtime(&["ps", "--format=json", "c1"])) };
    until("it has two processes", || processes().as_array().map(Vec::len) == Some(2));
    let documents = words.iter().map(|words| parse(runtime(words))).collect();
    runtime(&["delete", "--force", "c1"]);
    documents
}

impl Drop for Compared {
    fn drop(&mut self) {
        for directory in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(directory.path().join(&self.group));
        }
        let _ = fs::remove_dir(PathBuf::from("/sys/fs/cgroup").join(&self.group));
    }
}

/// Every key with its path and the type of what is there.
fn shape(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                shape(value, &format!("{path}.{key}"), into);
            }
            "object"
        }
        Value::Array(items) => {
            items.iter().for_each(|item| shape(item, &format!("{path}[]"), into));
            "array"
        }
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "bool",
        Value::Null => "null",
    };
    into.insert(format!("{}: {kind}", path.trim_start_matches('.')));
}

#[track_caller]
fn same(what: &str, theirs: &Value, ours: &Value) {
    let shape_of = |value| {
        let mut all = BTreeSet::new();
        shape(value, "", &mut all);
        all
    };
    let (theirs, ours) = (shape_of(theirs), shape_of(ours));
    let is_optional = |key: &&String| OPTIONAL.iter().any(|optional| key.starts_with(optional));
    let missing: Vec<&String> = theirs.difference(&ours).filter(|key| !is_optional(key)).collect();
    let more: Vec<&String> = ours.difference(&theirs).filter(|key| !is_optional(key)).collect();
    assert!(missing.is_empty() && more.is_empty(), "{what}: missing {missing:#?}, more {more:#?}");
}

#[test]
fn documents_have_the_keys_of_runcs() {
    let compared = Compared::new("documents");
    let words: [&[&str]; 4] =
        [&["state", "c1"], &["list", "--format=json"], &["ps", "--format=json", "c1"], &["events", "--stats", "c1"]];
    for (words, (theirs, ours)) in words.iter().zip(compared.both(&words)) {
        same(words[0], &theirs, &ours);
        // What does not depend on who runs it.
        for pointer in
            ["/id", "/status", "/bundle", "/rootfs", "/annotations", "/type", "/0/id", "/0/status", "/0/owner"]
        {
            assert_eq!(theirs.pointer(pointer), ours.pointer(pointer), "{}: {pointer}", words[0]);
        }
        if words[0] == "ps" {
            assert_eq!(theirs.as_array().map(Vec::len), ours.as_array().map(Vec::len));
        }
    }
}

#[test]
fn an_empty_list_is_runcs() {
    let compared = Compared::new("empty");
    assert_eq!(compared.place.run(&["list", "--format=json"]).trim(), compared.runc(&["list", "--format=json"]).trim());
}

#[test]
fn a_container_that_has_ended_is_told_as_by_runc() {
    let compared = Compared::new("ended");
    let mut states = Vec::new();
    compared.runc(&["run", "--detach", "c1"]);
    compared.runc(&["kill", "c1", "KILL"]);
    until("it has ended", || compared.runc(&["state", "c1"]).contains("stopped"));
    states.push(compared.runc(&["state", "c1"]));
    compared.runc(&["delete", "c1"]);
    compared.place.run(&["run", "--detach", "c1"]);
    compared.place.run(&["kill", "c1", "KILL"]);
    compared.place.wait("c1");
    until("it has ended", || compared.place.status("c1") == "stopped");
    states.push(compared.place.run(&["state", "c1"]));
    compared.place.run(&["delete", "c1"]);
    let [theirs, ours] = [0, 1].map(|index| serde_json::from_str::<Value>(&states[index]).expect("JSON"));
    same("state", &theirs, &ours);
    assert_eq!((&theirs["pid"], &theirs["status"]), (&ours["pid"], &ours["status"]));
}
