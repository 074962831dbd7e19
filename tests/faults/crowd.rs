//! Many containers at once, some of whose processes are killed.

use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use crate::common::leftovers::{cgroups_named, interfaces};
use crate::place::Place;
use crate::watched;

const CONTAINERS: usize = 50;

/// How many commands are given at a time.
const HANDS: usize = 8;

#[test]
fn fifty_containers_leave_nothing() {
    watched(|watch| {
        // Interfaces of others come and go.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let before = interfaces();
        let place = Place::with(|config| {
            config["process"]["args"] = json!(["/bin/sh", "-c", "sleep 0.05; exit 3"]);
            config["linux"] = json!({
                "namespaces": [{"type": "network"}, {"type": "pid"}, {"type": "mount"}],
                "resources": {"pids": {"limit": 50}},
            });
        });
        let prefix = format!("faults-{}-crowd", std::process::id());
        std::thread::scope(|scope| {
            for hand in 0..HANDS {
                let (place, prefix) = (&place, &prefix);
                scope.spawn(move || {
                    for number in (hand..CONTAINERS).step_by(HANDS) {
                        life(place, &format!("{prefix}-{number}"), number);
                    }
                });
            }
        });
        place.is_empty();
        assert_eq!(cgroups_named(&prefix), Vec::<PathBuf>::new());
        assert_eq!(interfaces(), before);
        watch.nothing_is_left();
    });
}

/// One of several lives, each of which ends with `delete`.
fn life(place: &Place, name: &str, number: usize) {
    match number % 6 {
        0 => assert_eq!(place.try_run(&["run", name]).status.code(), Some(3)),
        1 => {
            place.run(&["create", name]);
            place.run(&["start", name]);
            assert_eq!(place.wait(name), 3);
        }
        2 => {
            place.run(&["create", name]);
            place.run(&["kill", name, "KILL"]);
            assert_eq!(place.wait(name), 137);
        }
        3 => {
            place.run(&["run", "--detach", name]);
            let _ = place.try_run(&["exec", name, "true"]);
        }
        // Commands that are killed half way.
        4 => killed(place, &["create", name], number),
        _ => killed(place, &["run", name], number),
    }
    place.run(&["delete", "--force", name]);
}

fn killed(place: &Place, words: &[&str], number: usize) {
    let mut child = place.start(words);
    std::thread::sleep(Duration::from_millis(3 * number as u64));
    // It may have ended.
    let _ = child.kill();
    child.wait().unwrap();
}
