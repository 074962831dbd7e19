//! What the commands print and return.

use std::fs;

use oci_spec::runtime::{ContainerState, State};
use serde_json::{Value, json};

use crate::place::{Place, is_alive, until};

#[test]
fn a_life_in_steps() {
    let place = Place::new("echo begins > /proc/1/fd/1; exit 7");
    let pid_file = place.file("pid");
    assert_eq!(place.run(&["create", "--pid-file", pid_file.to_str().unwrap(), "c1"]), "");
    let pid: i64 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert!(!place.file("pid.new").exists());
    assert!(is_alive(pid));
    let state = place.state("c1");
    assert_eq!((&state["status"], &state["pid"]), (&json!("created"), &json!(pid)));
    assert_eq!(place.run(&["start", "c1"]), "");
    assert_eq!(place.wait("c1"), 7);
    let state = place.state("c1");
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(0)));
    assert_eq!(place.wait("c1"), 7, "it is remembered");
    assert_eq!(place.run(&["delete", "c1"]), "");
    place.is_empty();
}

#[test]
fn the_program_waits_for_start_and_has_the_descriptors_of_create() {
    let place = Place::new("cat; echo to stderr >&2");
    let (input, output, errors) = (place.file("in"), place.file("out"), place.file("err"));
    fs::write(&input, "from create\n").unwrap();
    let mut create = place.command(&["create", "c1"]);
    create.stdin(fs::File::open(&input).unwrap());
    create.stdout(fs::File::create(&output).unwrap()).stderr(fs::File::create(&errors).unwrap());
    assert!(create.status().unwrap().success());
    assert_eq!(fs::read_to_string(&output).unwrap(), "", "it has not begun");
    place.run(&["start", "c1"]);
    assert_eq!(place.wait("c1"), 0);
    assert_eq!(fs::read_to_string(&output).unwrap(), "from create\n");
    assert_eq!(fs::read_to_string(&errors).unwrap(), "to stderr\n");
    place.run(&["delete", "c1"]);
}

#[test]
fn create_keeps_no_pipe_open_beyond_the_containers_end() {
    use std::io::Read;
    let place = Place::new("echo out");
    let mut create = place.command(&["create", "c1"]);
    let mut child = create.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    assert!(child.wait().unwrap().success());
    place.run(&["start", "c1"]);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "out\n");
    place.run(&["delete", "--force", "c1"]);
}

#[test]
fn state_and_list_are_what_the_specification_says() {
    let place = Place::new("sleep 100");
    place.run(&["run", "--detach", "c1"]);
    let text = place.run(&["state", "c1"]);
    let state: State = serde_json::from_str(&text).unwrap();
    assert_eq!((state.id().as_str(), *state.status()), ("c1", ContainerState::Running));
    assert_eq!(state.bundle(), &place.bundle().canonicalize().unwrap());
    assert_eq!(state.annotations().as_ref().unwrap()["an.annotation"], "its value");
    assert_eq!(state.version(), "1.0.2");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&document["rootfs"], &document["owner"]), (&json!("/"), &json!("root")));
    let list: Vec<Value> = serde_json::from_str(&place.run(&["list", "--format=json"])).unwrap();
    assert_eq!(list, [document]);
    assert_eq!(place.run(&["list", "-q"]), "c1\n");
    let table = place.run(&["list"]);
    assert!(table.starts_with("ID ") && table.contains("running"), "{table}");
    place.run(&["delete", "--force", "c1"]);
    assert_eq!(place.run(&["list", "--format=json"]), "null\n");
}

#[test]
fn signals_by_every_name() {
    let place = Place::new("trap 'exit 3' TERM; trap 'exit 4' USR1; touch /tmp/ready; while :; do sleep 0.01; done");
    for (word, status) in [("TERM", 3), ("SIGUSR1", 4), ("sigterm", 3), ("10", 4), ("KILL", 137), ("9", 137)] {
        place.run(&["run", "--detach", "c1"]);
        until("its traps are set", || place.try_run(&["exec", "c1", "test", "-e", "/tmp/ready"]).status.success());
        place.run(&["kill", "c1", word]);
        assert_eq!(place.wait("c1"), status, "{word}");
        place.run(&["delete", "c1"]);
    }
    place.run(&["run", "--detach", "c1"]);
    assert_eq!(place.refused(&["kill", "c1", "NOSUCH"]), "unknown signal \"NOSUCH\"");
    place.run(&["kill", "--all", "c1", "KILL"]);
    assert_eq!(place.wait("c1"), 137);
    place.run(&["delete", "c1"]);
}

#[test]
fn a_signal_ends_a_container_that_has_not_begun() {
    let place = Place::new("exit 1");
    place.run(&["create", "c1"]);
    place.run(&["kill", "c1"]);
    assert_eq!(place.wait("c1"), 143);
    place.run(&["delete", "c1"]);
}

#[test]
fn run_returns_the_status_and_keeps_what_it_is_told_to() {
    let place = Place::new("exit 5");
    assert_eq!(place.try_run(&["run", "c1"]).status.code(), Some(5));
    place.is_empty();
    assert_eq!(place.try_run(&["run", "--keep", "c1"]).status.code(), Some(5));
    assert_eq!((place.status("c1").as_str(), place.wait("c1")), ("stopped", 5));
    place.run(&["delete", "c1"]);
    place.is_empty();
}

#[test]
fn the_sentrys_exit_status_is_the_containers() {
    use nix::sys::wait::{WaitStatus, waitpid};
    let _alone = crate::place::alone();
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let place = Place::new("exit 9");
    place.run(&["create", "c1"]);
    let pid = nix::unistd::Pid::from_raw(place.state("c1")["pid"].as_i64().unwrap() as i32);
    place.run(&["start", "c1"]);
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 9));
    place.run(&["delete", "c1"]);
}

#[test]
fn a_program_that_is_not_there_fails_create_in_the_words_of_runc() {
    let create = |program: &str| {
        let place = Place::with(|config| config["process"]["args"] = json!([program]));
        let problem = place.refused(&["create", "c1"]);
        place.is_empty();
        problem
    };
    assert!(create("nosuch").contains("exec: \"nosuch\": executable file not found in $PATH"));
    assert!(create("/nosuch").contains("exec: \"/nosuch\": stat /nosuch: no such file or directory"));
    assert!(create("/etc/passwd").contains("exec: \"/etc/passwd\": permission denied"));
}

#[test]
fn hooks_run_in_their_order_with_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let hook = |name: &str| {
        let script = format!("echo {name} $(grep -o '\"status\":\"[a-z]*\"') >> {}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
    };
    let place = Place::with(|config| {
        config["hooks"] = json!({
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
            "createContainer": hook("createContainer"), "poststart": hook("poststart"), "poststop": hook("poststop"),
        });
    });
    place.run(&["create", "c1"]);
    let creating = "\"status\":\"creating\"";
    let created = format!("prestart {creating}\ncreateRuntime {creating}\ncreateContainer {creating}\n");
    assert_eq!(fs::read_to_string(&log).unwrap(), created);
    place.run(&["start", "c1"]);
    assert_eq!(place.wait("c1"), 0);
    place.run(&["delete", "c1"]);
    let all = format!("{created}poststart \"status\":\"running\"\npoststop \"status\":\"stopped\"\n");
    assert_eq!(fs::read_to_string(&log).unwrap(), all);
}

#[test]
fn a_hook_that_fails_fails_create() {
    let place = Place::with(|config| {
        config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]}]});
    });
    let problem = place.refused(&["create", "c1"]);
    assert!(problem.contains("createRuntime") && problem.contains("why"), "{problem}");
    place.is_empty();
}

#[test]
fn descriptors_are_passed_on() {
    let place = Place::new("cat <&3; echo to four >&4");
    fs::write(place.file("three"), "from three\n").unwrap();
    let script = format!("exec \"$0\" \"$@\" 3<{} 4>{}", place.file("three").display(), place.file("four").display());
    let run = place.command(&["run", "--preserve-fds=2", "c1"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).arg(run.get_program()).args(run.get_args()).current_dir(place.bundle());
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(crate::place::text(&output.stdout), "from three\n");
    assert_eq!(fs::read_to_string(place.file("four")).unwrap(), "to four\n");
    let problem = place.refused(&["run", "--preserve-fds=900", "c1"]);
    assert!(problem.starts_with("--preserve-fds=900: descriptor") && problem.ends_with("is not open"), "{problem}");
    place.is_empty();
}

#[test]
fn a_missing_working_directory_is_made_in_the_container() {
    let place = Place::with(|config| {
        config["process"]["args"] = json!(["/bin/pwd"]);
        config["process"]["cwd"] = json!("/no/such/directory");
    });
    assert_eq!(place.run(&["run", "c1"]), "/no/such/directory\n");
    assert!(!std::path::Path::new("/no").exists(), "not on the host");
}

#[test]
fn exec_begins_from_what_the_container_was_made_from() {
    let place = Place::with(|config| {
        config["process"]["args"] = json!(["/bin/sleep", "100"]);
        config["process"]["env"] = json!(["PATH=/usr/bin:/bin", "WORD=first"]);
    });
    place.run(&["run", "--detach", "c1"]);
    fs::remove_file(place.bundle().join("config.json")).unwrap();
    assert_eq!(place.run(&["exec", "c1", "/bin/sh", "-c", "echo $WORD"]), "first\n");
    place.run(&["delete", "--force", "c1"]);
}
