//! A sentry that does not answer: what is known of its containers is told soon all the same, and no command waits for ever but one
//! that waits for an end.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;

use crate::place::{FAILURE, Place, is_alive, until};
use crate::pod::Pod;

/// What a look at silent sentries may take: what is waited for one of them, and something for a busy machine.
const SOON: Duration = Duration::from_secs(8);

fn stop(place: &Place, id: &str) -> i64 {
    let pid = place.state(id)["pid"].as_i64().expect("a number");
    kill(Pid::from_raw(pid as i32), Signal::SIGSTOP).expect("it is there");
    pid
}

#[test]
fn silent_sentries_are_not_waited_for() {
    let place = Place::new("sleep 1000");
    for id in ["a", "b", "c", "d", "e", "f"] {
        place.run(&["run", "--detach", id]);
        if id == "b" {
            place.run(&["pause", id]);
        }
        stop(&place, id);
    }
    let begin = Instant::now();
    assert_eq!((place.status("a"), place.status("b")), ("running".into(), "paused".into()));
    assert!(begin.elapsed() < 2 * SOON, "{:?}", begin.elapsed());
    let begin = Instant::now();
    let listed = place.run(&["list"]);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_eq!((listed.matches("running").count(), listed.matches("paused").count()), (5, 1), "{listed}");
    for id in ["a", "b", "c", "d", "e", "f"] {
        place.run(&["delete", "--force", id]);
    }
    place.is_empty();
}

#[test]
fn a_sentry_whose_queue_of_connections_is_full_is_not_waited_for() {
    let place = Place::new("sleep 1000");
    place.run(&["run", "--detach", "c1"]);
    let pid = stop(&place, "c1");
    // Those that have closed their ends stay there until they are taken.
    let address = UnixAddr::new(&place.root().join("c1/control.sock")).expect("a short path");
    loop {
        let one = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).expect("a socket");
        match connect(one.as_raw_fd(), &address) {
            Ok(()) => {}
            Err(Errno::EAGAIN) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let begin = Instant::now();
    assert_eq!(place.status("c1"), "running");
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    kill(Pid::from_raw(pid as i32), Signal::SIGCONT).expect("it is there");
    place.run(&["kill", "c1", "KILL"]);
    until("it has ended", || !is_alive(pid));
    assert_eq!(place.status("c1"), "stopped");
    place.run(&["delete", "c1"]);
}

#[test]
fn commands_to_a_silent_sentry_fail_in_one_line() {
    // Twice what an answer is waited for, as another question is asked in between, and something for a busy machine.
    const LATE: Duration = Duration::from_secs(60);
    let place = Place::new("trap 'exit 9' TERM; echo > /tmp/ready; sleep 1000 & wait");
    let commands: [&[&str]; 5] = [
        &["exec", "a", "/bin/true"],
        &["ps", "b"],
        &["pause", "c"],
        &["kill", "d", "TERM"],
        &["events", "--stats", "e"],
    ];
    let ids = ["a", "b", "c", "d", "e"];
    let pids = ids.map(|id| {
        place.run(&["run", "--detach", id]);
        until("it is ready", || place.try_run(&["exec", id, "/usr/bin/test", "-e", "/tmp/ready"]).status.success());
        stop(&place, id)
    });
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for words in commands {
            let place = &place;
            scope.spawn(move || assert_eq!(place.refused(words), "talk to the sentry: timed out", "{words:?}"));
        }
    });
    assert!(begin.elapsed() < LATE, "{:?}", begin.elapsed());
    // What was asked may come late; nothing is broken by it.
    pids.iter().for_each(|&pid| kill(Pid::from_raw(pid as i32), Signal::SIGCONT).expect("it is there"));
    assert_eq!(place.wait("d"), 9);
    until("it is paused", || place.status("c") == "paused");
    assert_eq!(place.run(&["exec", "a", "/bin/echo", "answered"]), "answered\n");
    for id in ids {
        place.run(&["delete", "--force", id]);
    }
    place.is_empty();
}

#[test]
fn a_stopped_sentry_has_not_ended() {
    let place = Place::new("sleep 1000");
    place.run(&["run", "--detach", "c1"]);
    let pid = stop(&place, "c1");
    let mut wait = place.start(&["wait", "c1"]);
    // Longer than any answer is waited for: time itself is what is tested.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(25) {
        assert!(wait.try_wait().expect("a child").is_none(), "it has not waited");
        std::thread::sleep(Duration::from_millis(100));
    }
    kill(Pid::from_raw(pid as i32), Signal::SIGCONT).expect("it is there");
    place.run(&["kill", "c1", "KILL"]);
    assert!(wait.wait().expect("a child").success());
    assert_eq!(place.wait("c1"), 128 + 9);
    place.run(&["delete", "c1"]);
    place.is_empty();
}

#[test]
fn a_created_container_whose_sentry_is_silent_is_ended_by_start() {
    let place = Place::new("sleep 1000");
    place.run(&["create", "c1"]);
    let pid = stop(&place, "c1");
    assert_eq!(place.refused(&["start", "c1"]), "talk to the sentry: timed out");
    until("it has ended", || !is_alive(pid));
    assert_eq!(place.status("c1"), "stopped");
    place.run(&["delete", "c1"]);
    place.is_empty();
}

#[test]
fn a_container_of_a_pod_whose_sentry_is_silent_can_be_deleted() {
    let pod = Pod::new();
    for id in ["a", "b"] {
        pod.start(id, "sleep 1000");
    }
    kill(Pid::from_raw(pod.process("pod", "sentry")), Signal::SIGSTOP).expect("it is there");
    let stand_in = pod.process("a", "stand_in");
    let late = pod.place.try_run(&["exec", "b", "/bin/true"]);
    assert_eq!(late.status.code(), Some(FAILURE));
    pod.place.run(&["delete", "--force", "a"]);
    assert!(!is_alive(stand_in.into()));
    // The others are there still, and in order once it goes on.
    kill(Pid::from_raw(pod.process("pod", "sentry")), Signal::SIGCONT).expect("it is there");
    assert_eq!(pod.place.run(&["exec", "b", "/bin/echo", "answered"]), "answered\n");
    assert!(!pod.place.root().join("a").exists());
    // Its name is free in the sandbox, too.
    until("it is made again", || {
        let bundle = pod.bundle("a", "sleep 1000");
        let words = ["run", "--detach", "--bundle", bundle.to_str().expect("text"), "a"];
        pod.place.try_run(&words).status.success()
    });
    pod.delete_all(&["a", "b", "pod"]);
}
