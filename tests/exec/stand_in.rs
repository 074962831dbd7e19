//! The host process that stands for one of a container.

use std::fs;

use nix::sys::signal::{Signal, kill};

use super::container::{Container, status_of, until};

#[test]
fn it_ends_as_the_process_does() {
    let container = Container::idle();
    assert_eq!(status_of(container.detached(&[], &["sh", "-c", "exit 42"])), 42);
    assert_eq!(status_of(container.detached(&[], &["sh", "-c", "kill -SEGV $$"])), 128 + 11);
    until("only the first is left", || container.success("ps", &["-f", "json"]).matches(',').count() == 0);
}

#[test]
fn signals_reach_the_process() {
    let container = Container::idle();
    let script =
        "trap 'exit 10' USR1; trap 'exit 11' HUP; trap 'exit 12' TERM; echo > /tmp/ready; while :; do sleep 0.05; done";
    for (signal, status) in [(Signal::SIGUSR1, 10), (Signal::SIGHUP, 11), (Signal::SIGTERM, 12), (Signal::SIGQUIT, 131)]
    {
        container.prints(&[], &["rm", "-f", "/tmp/ready"]);
        let pid = container.detached(&[], &["sh", "-c", script]);
        until("its traps are set", || container.exec::<&str>(&[], &["test", "-e", "/tmp/ready"]).status.success());
        kill(pid, signal).unwrap();
        assert_eq!(status_of(pid), status, "{signal}");
    }
    let pid = container.detached(&[], &["sleep", "777"]);
    kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(status_of(pid), 130);
}

#[test]
fn the_process_dies_with_it() {
    let container = Container::idle();
    let pid = container.detached(&[], &["sleep", "888"]);
    assert!(container.runs("sleep 888"));
    kill(pid, Signal::SIGKILL).unwrap();
    assert_eq!(status_of(pid), 137);
    until("it is gone", || !container.runs("sleep 888"));
}

#[test]
fn it_goes_when_the_container_does() {
    let container = Container::idle();
    let pid = container.detached(&[], &["sleep", "999"]);
    container.success("delete", &["--force"]);
    assert_eq!(status_of(pid), 137);
}

#[test]
fn it_is_small_and_holds_nothing_of_the_commands() {
    let container = Container::idle();
    let pid = container.detached(&[], &["sleep", "555"]);
    let smaps = format!("/proc/{pid}/smaps_rollup");
    let private = || {
        let text = fs::read_to_string(&smaps).unwrap_or_default();
        let sizes = text.lines().filter(|line| line.starts_with("Private_"));
        sizes.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>()
    };
    assert!(private() < 2048, "{} KiB", private());
    let is_null = |fd: i32| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap().as_os_str() == "/dev/null";
    assert!((0..3).all(is_null), "its standard descriptors are its own from the start");
    kill(pid, Signal::SIGKILL).unwrap();
    status_of(pid);
}
