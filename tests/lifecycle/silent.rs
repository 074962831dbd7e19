//! A sentry that does not answer: what is known of its containers is told soon all the same.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;

use crate::place::{Place, is_alive, until};

/// What a look at silent sentries may take: what is waited for one of them, and something for a busy machine.
const SOON: Duration = Duration::from_secs(4);

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
