//! Commands in an order that makes no sense.

use crate::place::Place;

#[test]
fn what_cannot_be_is_refused_in_words_that_engines_know() {
    let place = Place::new("sleep 100");
    for command in ["state", "start", "kill", "delete", "wait"] {
        assert_eq!(place.refused(&[command, "c1"]), "container \"c1\" does not exist", "{command}");
    }
    place.run(&["delete", "--force", "c1"]);
    place.run(&["create", "c1"]);
    assert_eq!(place.refused(&["create", "c1"]), "container \"c1\" already exists");
    assert_eq!(place.status("c1"), "created", "the second did not harm the first");
    place.run(&["start", "c1"]);
    assert_eq!(place.refused(&["start", "c1"]), "cannot start an already running container");
    assert_eq!(place.refused(&["delete", "c1"]), "cannot delete container \"c1\" that is not stopped: running");
    assert_eq!(place.status("c1"), "running");
    place.run(&["kill", "c1", "KILL"]);
    assert_eq!(place.wait("c1"), 137);
    assert_eq!(place.refused(&["kill", "c1"]), "container not running");
    place.run(&["kill", "--all", "c1", "KILL"]);
    assert_eq!(place.refused(&["start", "c1"]), "cannot start a container that has stopped");
    place.run(&["delete", "c1"]);
    place.is_empty();
}

#[test]
fn a_created_container_can_be_deleted() {
    let place = Place::new("sleep 100");
    place.run(&["create", "c1"]);
    place.run(&["delete", "c1"]);
    place.is_empty();
}

#[test]
fn one_of_two_commands_at_once_wins() {
    let place = Place::new("sleep 100");
    let mut both: Vec<_> = (0..2).map(|_| place.start(&["create", "c1"])).collect();
    let won = both.iter_mut().map(|child| child.wait().unwrap().success()).filter(|&won| won).count();
    assert_eq!((won, place.status("c1").as_str()), (1, "created"));
    let mut both: Vec<_> = (0..2).map(|_| place.start(&["start", "c1"])).collect();
    let won = both.iter_mut().map(|child| child.wait().unwrap().success()).filter(|&won| won).count();
    assert_eq!((won, place.status("c1").as_str()), (1, "running"));
    let mut both: Vec<_> = (0..2).map(|_| place.start(&["delete", "--force", "c1"])).collect();
    both.iter_mut().for_each(|child| assert!(child.wait().unwrap().success()));
    place.is_empty();
}
