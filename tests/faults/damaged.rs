//! State that another hand has changed.

use std::fs;

use serde_json::{Value, json};

use crate::common::leftovers::cgroups_named;
use crate::place::{Place, is_alive, until};
use crate::watched;

#[test]
fn a_record_that_cannot_be_read() {
    watched(|watch| {
        let name = format!("faults-{}-damaged", std::process::id());
        let place = Place::with(|config| {
            config["process"]["args"] = json!(["/bin/sleep", "100"]);
            config["linux"] = json!({"resources": {"pids": {"limit": 50}}});
        });
        place.run(&["run", "--detach", "healthy"]);
        for damage in ["", "{", "\0\0\0\0", "[]", "null", r#"{"id": "c1", "version": 99}"#, "half"] {
            place.run(&["run", "--detach", &name]);
            let pid = place.state(&name)["pid"].as_i64().unwrap();
            let file = place.root().join(&name).join("state.json");
            let whole = fs::read_to_string(&file).unwrap();
            fs::write(&file, if damage == "half" { &whole[..whole.len() / 2] } else { damage }).unwrap();
            for command in ["state", "start", "kill", "delete", "wait", "pause", "ps"] {
                let problem = place.refused(&[command, &name]);
                assert!(problem.contains("state.json"), "{command}: {problem}");
            }
            assert_eq!(place.run(&["list", "-q"]), "healthy\n");
            assert!(is_alive(pid), "nobody has harmed it");
            place.run(&["delete", "--force", &name]);
            until("it has ended", || !is_alive(pid));
            assert_eq!(cgroups_named(&name), Vec::<std::path::PathBuf>::new());
        }
        assert_eq!(place.status("healthy"), "running");
        place.run(&["delete", "--force", "healthy"]);
        place.is_empty();
        watch.nothing_is_left();
    });
}

#[test]
fn a_record_of_a_later_version_with_more_in_it() {
    watched(|_| {
        let place = Place::new("sleep 100");
        place.run(&["run", "--detach", "c1"]);
        let file = place.root().join("c1/state.json");
        let mut record: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        record["what is not known"] = json!({"now": [1]});
        fs::write(&file, record.to_string()).unwrap();
        assert_eq!(place.status("c1"), "running");
        place.run(&["delete", "--force", "c1"]);
        place.is_empty();
    });
}

#[test]
fn a_specification_that_cannot_be_read() {
    watched(|_| {
        let place = Place::new("sleep 100");
        place.run(&["create", "c1"]);
        fs::write(place.root().join("c1/spec.json"), "{").unwrap();
        assert!(place.refused(&["start", "c1"]).contains("spec.json"));
        assert_eq!(place.status("c1"), "created");
        place.run(&["delete", "--force", "c1"]);
        place.is_empty();
    });
}

#[test]
fn a_control_socket_that_is_gone() {
    watched(|_| {
        let place = Place::new("sleep 100");
        place.run(&["run", "--detach", "c1"]);
        fs::remove_file(place.root().join("c1/control.sock")).unwrap();
        assert_eq!(place.status("c1"), "running");
        for command in [&["kill", "c1", "TERM"][..], &["exec", "c1", "true"], &["pause", "c1"]] {
            let problem = place.refused(command);
            assert!(problem.contains("connect to the sentry"), "{command:?}: {problem}");
        }
        let mut waits = place.start(&["wait", "c1"]);
        assert_eq!(place.status("c1"), "running");
        assert_eq!(waits.try_wait().unwrap(), None, "it runs still");
        place.run(&["kill", "c1", "KILL"]);
        assert!(!waits.wait().unwrap().success(), "nobody knows how it ended");
        assert_eq!(place.status("c1"), "stopped");
        place.run(&["delete", "c1"]);
        place.is_empty();
    });
}
