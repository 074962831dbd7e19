//! The command line as its callers see it: output, exit status, and nothing left behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

const RUNSC: &str = env!("CARGO_BIN_EXE_runsc");

/// The exit status of what the runtime itself cannot do.
const FAILURE: i32 = 128;

fn runsc(args: &[&str]) -> Output {
    Command::new(RUNSC).args(args).output().expect("runsc starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// Asserts a failure of the runtime: status 128, nothing on standard output, one line on standard error. Returns it.
fn one_line(output: &Output) -> &str {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(FAILURE), "{stderr}");
    assert_eq!(text(&output.stdout), "");
    assert_eq!(stderr.matches('\n').count(), 1, "{stderr}");
    assert!(stderr.starts_with("runsc: "), "{stderr}");
    stderr
}

/// A bundle and a state directory.
struct Bundle {
    directory: tempfile::TempDir,
}

impl Bundle {
    fn new(config: &Value) -> Bundle {
        Bundle::with_text(&config.to_string())
    }

    fn with_text(config: &str) -> Bundle {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("rootfs")).unwrap();
        fs::write(directory.path().join("config.json"), config).unwrap();
        Bundle { directory }
    }

    fn state(&self) -> std::path::PathBuf {
        self.directory.path().join("state")
    }

    fn run(&self) -> Output {
        let bundle = self.directory.path().to_str().unwrap();
        runsc(&["--root", self.state().to_str().unwrap(), "run", "--bundle", bundle, "c1"])
    }

    /// Runs it, expecting a refusal that leaves no state.
    fn refused(&self) -> String {
        let output = self.run();
        let line = one_line(&output).to_owned();
        assert!(is_empty(&self.state()), "state is left");
        line
    }
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

fn config() -> Value {
    json!({
        "ociVersion": "1.0.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/hello"], "cwd": "/"},
        "root": {"path": "rootfs"},
    })
}

#[test]
fn version_is_the_form_that_docker_reads() {
    for flag in ["--version", "-version"] {
        let output = runsc(&[flag]);
        assert!(output.status.success());
        let lines: Vec<&str> = text(&output.stdout).lines().collect();
        assert_eq!(lines, [concat!("runsc version ", env!("CARGO_PKG_VERSION")), "spec: 1.1.0"]);
    }
}

#[test]
fn help_lists_commands_and_flags() {
    let help = runsc(&["help"]);
    assert!(help.status.success());
    for command in ["run", "do", "spec", "state", "list", "delete", "help"] {
        assert!(text(&help.stdout).lines().any(|line| line.trim_start().starts_with(command)), "{command}");
    }
    assert!(!text(&help.stdout).contains("gofer "), "internal commands are hidden");
    assert!(text(&runsc(&["help", "run"]).stdout).contains("--bundle"));
    assert!(text(&runsc(&["flags"]).stdout).contains("--debug-log"));
}

/// Whether `ours` has every key of `theirs`, with values of the same kind. Annotations are everybody's own.
fn has_the_shape(at: &str, ours: &Value, theirs: &Value) {
    match (ours, theirs) {
        (Value::Object(own), Value::Object(fields)) => {
            for (name, value) in fields.iter().filter(|(name, _)| *name != "annotations") {
                let here = format!("{at}/{name}");
                has_the_shape(&here, own.get(name).unwrap_or_else(|| panic!("no {here}")), value);
            }
        }
        (Value::Array(own), Value::Array(list)) => {
            assert!(!own.is_empty(), "{at}");
            own.iter().for_each(|one| has_the_shape(at, one, &list[0]));
        }
        _ => assert_eq!(std::mem::discriminant(ours), std::mem::discriminant(theirs), "{at}: {ours} {theirs}"),
    }
}

#[test]
fn features_are_told_as_runc_tells_them() {
    let of = |output: Output| -> Value {
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let ours = of(runsc(&["features"]));
    let theirs = of(Command::new("runc").arg("features").output().expect("runc is installed"));
    has_the_shape("", &ours, &theirs);
    // What is told of is what is taken, by the same names.
    let names = |document: &Value| -> Vec<String> {
        let list = document["mountOptions"].as_array().expect("a list");
        list.iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
    };
    let (own, others) = (names(&ours), names(&theirs));
    assert!(own.is_sorted() && own.iter().all(|name| others.contains(name)), "{own:?} {others:?}");
    for name in ["bind", "ro", "nosymfollow", "rslave", "dirsync", "defaults"] {
        assert!(own.iter().any(|one| one == name), "{name}");
    }
    for kind in ["namespaces", "capabilities"] {
        let list = |document: &Value| document["linux"][kind].as_array().expect("a list").clone();
        assert!(list(&ours).iter().all(|name| list(&theirs).contains(name)), "{kind}");
    }
    assert_eq!(ours["linux"]["cgroup"]["systemd"], true);
}

#[test]
fn bad_command_lines_are_one_line() {
    assert!(one_line(&runsc(&["-no-such-flag", "run", "x"])).contains("--no-such-flag"));
    assert!(one_line(&runsc(&["frobnicate"])).contains("frobnicate"));
    assert!(one_line(&runsc(&[])).contains("command"));
    assert!(one_line(&runsc(&["--network=host", "do", "true"])).contains("host"));
    assert!(one_line(&runsc(&["--rootless", "do", "true"])).contains("--rootless"));
    assert!(one_line(&runsc(&["--ip=10.0.0.1", "do", "true"])).contains("--ip"));
    assert!(one_line(&runsc(&["--ip=10.0.0.1/8", "do", "true"])).contains("--tap"));
    assert!(one_line(&runsc(&["run", "../x"])).contains("container id"));
}

#[test]
fn spec_writes_a_bundle_once() {
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().to_str().unwrap();
    let output = runsc(&["spec", "-bundle", bundle, "--", "/bin/echo", "a b"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written: Value = serde_json::from_slice(&fs::read(directory.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(written["process"]["args"], json!(["/bin/echo", "a b"]));
    assert_eq!(written["root"], json!({"path": "rootfs", "readonly": true}));
    assert!(one_line(&runsc(&["spec", "-bundle", bundle])).contains("exists"));
}

#[test]
fn a_missing_bundle_is_named() {
    assert!(one_line(&runsc(&["run", "--bundle", "/no/such/bundle", "c1"])).contains("/no/such/bundle"));
    let empty = tempfile::tempdir().unwrap();
    let output = runsc(&["run", "--bundle", empty.path().to_str().unwrap(), "c1"]);
    assert!(one_line(&output).contains("config.json: No such file"));
}

#[test]
fn a_broken_document_is_named_by_field() {
    assert!(Bundle::with_text("{").refused().contains("config.json: "));
    assert!(Bundle::with_text("").refused().contains("config.json: document: EOF"));
    let mut wrong_type = config();
    wrong_type["process"]["user"]["uid"] = json!("root");
    assert!(Bundle::new(&wrong_type).refused().contains("config.json: process.user.uid: invalid type"));
    let mut no_root = config();
    no_root["root"]["path"] = json!("no such");
    assert!(Bundle::new(&no_root).refused().contains("config.json: root.path: "));
    let mut newline = config();
    newline["process"]["cwd"] = json!("a\nb");
    assert!(Bundle::new(&newline).refused().contains("process.cwd"));
}

#[test]
fn containers_that_are_not_there_are_named() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    assert!(one_line(&runsc(&["--root", root, "state", "c1"])).contains("\"c1\" does not exist"));
    assert!(one_line(&runsc(&["--root", root, "delete", "c1"])).contains("\"c1\" does not exist"));
    assert!(runsc(&["--root", root, "delete", "--force", "c1"]).status.success());
    assert_eq!(text(&runsc(&["--root", root, "list", "--quiet"]).stdout), "");
}

#[test]
fn errors_reach_the_callers_log_as_json() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log.json");
    let log_flag = format!("-log={}", log.display());
    one_line(&runsc(&[&log_flag, "-log-format=json", "run", "--bundle", "/no/such", "c1"]));
    let line: Value = serde_json::from_str(fs::read_to_string(&log).unwrap().trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("/no/such"));
}

#[test]
fn a_program_that_is_not_there_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let output = runsc(&["--root", root.path().to_str().unwrap(), "do", "/no/such/program"]);
    one_line(&output);
    assert!(is_empty(root.path()), "state is left");
}

#[test]
fn a_tap_that_is_not_there_is_named() {
    let root = tempfile::tempdir().unwrap();
    let output = runsc(&["--root", root.path().to_str().unwrap(), "--tap=no-such-tap", "do", "true"]);
    assert!(one_line(&output).contains("no-such-tap"));
    assert!(is_empty(root.path()), "state is left");
}
