//! A bundle, a state directory and the commands on them.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use serde_json::{Value, json};
use tempfile::TempDir;

const RUNSC: &str = env!("CARGO_BIN_EXE_runsc");

/// The exit status of what the runtime itself cannot do.
pub const FAILURE: i32 = 128;

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Held for reading by every test that has a place, for writing by those that count processes.
static COMPANY: RwLock<()> = RwLock::new(());

thread_local!(static ALONE: Cell<bool> = const { Cell::new(false) });

/// Everything that a test has on disk.
pub struct Place {
    directory: TempDir,
    /// None in a test that is alone.
    _company: Option<RwLockReadGuard<'static, ()>>,
}

impl Place {
    /// With a bundle whose container runs `script` in a shell, over the host's files.
    pub fn new(script: &str) -> Place {
        Place::with(|config| config["process"]["args"] = json!(["/bin/sh", "-c", script]))
    }

    /// With a bundle whose configuration is changed first.
    pub fn with(change: impl FnOnce(&mut Value)) -> Place {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(directory.path().join("bundle")).expect("the directory is new");
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/", "env": ["PATH=/usr/bin:/bin"],
            },
            "root": {"path": "/", "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc"}, {"destination": "/tmp", "type": "tmpfs"}],
            "annotations": {"an.annotation": "its value"},
        });
        change(&mut config);
        fs::write(directory.path().join("bundle/config.json"), config.to_string()).expect("the directory is new");
        // Recursively: a test may have several.
        let company = (!ALONE.get()).then(|| COMPANY.read_recursive());
        Place { directory, _company: company }
    }

    pub fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command with these words. Its output is not a pipe, which a container that lives on would keep open.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(RUNSC);
        command.arg("--root").arg(self.root()).args(words).stdin(Stdio::null());
        if words.first().is_some_and(|word| ["create", "run"].contains(word)) {
            command.current_dir(self.bundle());
        }
        command
    }

    /// Its end, and what it and a container of its own making have written by then.
    pub fn try_run(&self, words: &[&str]) -> Output {
        let (out, err) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let mut command = self.command(words);
        command.stdout(out.try_clone().expect("a descriptor")).stderr(err.try_clone().expect("a descriptor"));
        let status = command.status().expect("runsc starts");
        Output { status, stdout: content(out), stderr: content(err) }
    }

    /// Its standard output; it must succeed.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.try_run(words);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{words:?}: {}: {stdout}{stderr}", output.status);
        stdout
    }

    /// What it complains of; it must fail as the runtime does, with one line.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) -> String {
        let output = self.try_run(words);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(FAILURE), "{words:?}: {stderr}");
        assert_eq!(stderr.matches('\n').count(), 1, "{words:?}: {stderr}");
        stderr.strip_prefix("runsc: ").expect("the program's name").trim_end().to_owned()
    }

    pub fn start(&self, words: &[&str]) -> Child {
        self.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runsc starts")
    }

    /// The state document.
    #[track_caller]
    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.run(&["state", id])).expect("JSON")
    }

    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().expect("a status").to_owned()
    }

    /// The exit status that `wait` tells.
    #[track_caller]
    pub fn wait(&self, id: &str) -> i64 {
        let document: Value = serde_json::from_str(&self.run(&["wait", id])).expect("JSON");
        assert_eq!(document["id"], id);
        document["exitStatus"].as_i64().expect("a number")
    }

    /// Nothing may be left in the state directory.
    #[track_caller]
    pub fn is_empty(&self) {
        let left: Vec<_> =
            fs::read_dir(self.root()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Tests that count processes, or wait for those of others, do so alone. Before they make a place.
pub fn alone() -> Alone {
    let company = COMPANY.write();
    ALONE.set(true);
    Alone { _company: company }
}

pub struct Alone {
    _company: RwLockWriteGuard<'static, ()>,
}

impl Drop for Alone {
    fn drop(&mut self) {
        ALONE.set(false);
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn content(mut file: fs::File) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("a regular file");
    bytes
}

/// Looks again and again until it is so.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn is_alive(pid: i64) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}
