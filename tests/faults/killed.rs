//! Processes of a sandbox, and the commands on it, that are killed.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::Namespace;
use crate::place::{Place, is_alive, until};
use crate::watched;

/// Of a container whose state is there.
fn recorded(place: &Place, process: &str) -> Pid {
    let text = fs::read_to_string(place.root().join("c1/state.json")).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    Pid::from_raw(record[process]["pid"].as_i64().expect("a number") as i32)
}

fn processes(place: &Place) -> usize {
    serde_json::from_str::<Vec<i32>>(&place.run(&["ps", "-f", "json", "c1"])).unwrap().len()
}

#[test]
fn the_gofer_at_each_step() {
    watched(|watch| {
        let place = Place::new("while :; do cat /etc/passwd > /dev/null; done");
        for started in [false, true] {
            place.run(if started { &["run", "--detach", "c1"] } else { &["create", "c1"] });
            kill(recorded(&place, "gofer"), Signal::SIGKILL).unwrap();
            until("the sandbox ends with it", || place.status("c1") == "stopped");
            assert_eq!(place.refused(&["start", "c1"]), "cannot start a container that has stopped");
            assert_eq!(place.wait("c1"), 137, "it was killed");
            place.run(&["delete", "c1"]);
            place.is_empty();
            watch.nothing_is_left();
        }
        let mut run = place.start(&["run", "c1"]);
        until("it runs", || place.try_run(&["list"]).stdout.windows(7).any(|word| word == b"running"));
        kill(recorded(&place, "gofer"), Signal::SIGKILL).unwrap();
        assert_eq!(run.wait().unwrap().code(), Some(crate::place::FAILURE));
        place.is_empty();
    });
}

#[test]
fn the_sentry_of_a_created_container() {
    watched(|_| {
        let place = Place::new("true");
        place.run(&["create", "c1"]);
        kill(recorded(&place, "sentry"), Signal::SIGKILL).unwrap();
        until("it is stopped", || place.status("c1") == "stopped");
        assert_eq!(place.refused(&["start", "c1"]), "cannot start a container that has stopped");
        assert_eq!(place.refused(&["kill", "c1"]), "container not running");
        place.run(&["delete", "c1"]);
        place.is_empty();
    });
}

#[test]
fn start_at_any_point_can_be_repeated() {
    watched(|_| {
        let namespace = Namespace::new().unwrap();
        for words in
            ["link add eth0 type veth peer name peer", "address add 192.168.77.2/24 dev eth0", "link set eth0 up"]
        {
            namespace.ip(words).unwrap();
        }
        let place = Place::with(|config| {
            config["process"]["args"] = json!(["/bin/sleep", "100"]);
            config["linux"] = json!({"namespaces": [{"type": "network", "path": namespace.path()}]});
        });
        for step in 0..20 {
            place.run(&["create", "c1"]);
            let mut start = place.start(&["start", "c1"]);
            std::thread::sleep(Duration::from_micros(500 * step));
            start.kill().unwrap();
            start.wait().unwrap();
            // The first may have come through, even just now.
            let _ = place.try_run(&["start", "c1"]);
            assert_eq!(place.status("c1"), "running", "step {step}");
            let interfaces = place.run(&["exec", "c1", "cat", "/proc/net/dev"]);
            assert!(interfaces.contains("eth0:"), "step {step}: {interfaces}");
            place.run(&["delete", "--force", "c1"]);
            place.is_empty();
        }
    });
}

#[test]
fn exec_at_any_point_takes_its_process_along() {
    watched(|_| {
        let place = Place::with(|config| config["process"]["args"] = json!(["/bin/sleep", "100"]));
        place.run(&["run", "--detach", "c1"]);
        for step in 0..20 {
            let mut exec = place.start(&["exec", "c1", "sleep", "100"]);
            std::thread::sleep(Duration::from_millis(step));
            exec.kill().unwrap();
            exec.wait().unwrap();
        }
        until("only the first is left", || processes(&place) == 1);
        place.run(&["delete", "--force", "c1"]);
        place.is_empty();
    });
}

#[test]
fn a_stand_in_takes_its_process_along_and_nothing_else() {
    watched(|_| {
        let place = Place::with(|config| config["process"]["args"] = json!(["/bin/sleep", "100"]));
        place.run(&["run", "--detach", "c1"]);
        let file = place.file("pid");
        for _ in 0..3 {
            place.run(&["exec", "--detach", "--pid-file", file.to_str().unwrap(), "c1", "sleep", "100"]);
            assert_eq!(processes(&place), 2);
            let stand_in = Pid::from_raw(fs::read_to_string(&file).unwrap().parse().unwrap());
            kill(stand_in, Signal::SIGKILL).unwrap();
            until("its process is gone", || processes(&place) == 1);
        }
        assert_eq!(place.status("c1"), "running");
        place.run(&["delete", "--force", "c1"]);
        place.is_empty();
    });
}

/// A hook on the host, once: a second one finds that it has run.
fn hook(place: &str, script: &str) -> Value {
    let script = format!("[ -e {place} ] && exit; echo $$ > {place}; {script}");
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
}

#[test]
fn commands_by_their_own_hooks() {
    watched(|watch| {
        for point in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            let directory = tempfile::tempdir().unwrap();
            let ran = directory.path().join("ran");
            let place = Place::with(|config| {
                config["process"]["args"] = json!(["/bin/sleep", "100"]);
                config["hooks"] = json!({point: hook(ran.to_str().unwrap(), "kill -9 $PPID; exec sleep 100")});
            });
            let steps: [&[&str]; 3] = [&["create", "c1"], &["start", "c1"], &["delete", "--force", "c1"]];
            let at = match point {
                "poststart" => 1,
                "poststop" => 2,
                _ => 0,
            };
            steps[..at].iter().for_each(|step| drop(place.run(step)));
            assert_eq!(place.try_run(steps[at]).status.code(), None, "{point}");
            assert!(ran.exists(), "{point}");
            let expected = ["creating", "running", "stopped"][at];
            until(point, || [expected, "stopped"].contains(&place.status("c1").as_str()));
            place.run(&["delete", "--force", "c1"]);
            place.is_empty();
            // The hook has ended with the command.
            watch.nothing_is_left();
        }
    });
}

#[test]
fn hooks_that_hang() {
    watched(|watch| {
        let directory = tempfile::tempdir().unwrap();
        let ran = directory.path().join("ran");
        for point in ["prestart", "createRuntime", "createContainer"] {
            let place = Place::with(|config| {
                let mut hook = hook(ran.to_str().unwrap(), "sleep 100 & sleep 100");
                hook[0]["timeout"] = json!(1);
                config["hooks"] = json!({point: hook});
            });
            let problem = place.refused(&["create", "c1"]);
            assert!(problem.contains(point) && problem.contains("timeout of 1 s"), "{problem}");
            place.is_empty();
            watch.nothing_is_left();
            fs::remove_file(&ran).unwrap();
        }
        // Without a timeout it goes with the command.
        let place =
            Place::with(|config| config["hooks"] = json!({"prestart": hook(ran.to_str().unwrap(), "exec sleep 100")}));
        let mut create = place.start(&["create", "c1"]);
        let number = || fs::read_to_string(&ran).ok()?.trim().parse::<i64>().ok();
        until("the hook runs", || number().is_some());
        create.kill().unwrap();
        create.wait().unwrap();
        until("the hook has ended", || !number().is_some_and(is_alive));
        place.run(&["delete", "--force", "c1"]);
        place.is_empty();
    });
}
