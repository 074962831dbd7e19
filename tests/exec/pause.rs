//! Pausing a container.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::container::{Container, status_of, until};

/// CPU time that the processes of a container have used, in clock ticks.
fn cpu_time(container: &Container) -> u64 {
    let pids: Vec<i32> = serde_json::from_str(&container.success("ps", &["-f", "json"])).unwrap();
    let of = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split_whitespace().collect();
        fields[12].parse::<u64>().unwrap()
    };
    pids.into_iter().map(of).sum()
}

fn status(container: &Container) -> String {
    let state: Value = serde_json::from_str(&container.success("state", &[])).unwrap();
    state["status"].as_str().unwrap().to_owned()
}

#[test]
fn nothing_runs_while_it_is_paused() {
    let container = Container::idle();
    let busy = "(while :; do :; done) & while :; do :; done";
    let pid = container.detached(&[], &["sh", "-c", busy]);
    until("it runs", || cpu_time(&container) > 5);
    container.success("pause", &[]);
    assert_eq!(status(&container), "paused");
    let before = cpu_time(&container);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(cpu_time(&container), before);
    container.success("resume", &[]);
    assert_eq!(status(&container), "running");
    until("it goes on", || cpu_time(&container) > before + 5);
    kill(pid, Signal::SIGKILL).unwrap();
    status_of(pid);
}

#[test]
fn a_paused_container_takes_no_further_processes_unless_told_to() {
    let container = Container::idle();
    container.success("pause", &[]);
    let refused = container.exec::<&str>(&[], &["true"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cannot exec in a paused container"), "{refused:?}");
    let pid = container.detached(&["--ignore-paused"], &["sh", "-c", "exit 6"]);
    assert!(container.runs("sh -c exit 6"), "it has not begun");
    container.success("resume", &[]);
    assert_eq!(status_of(pid), 6);
}

#[test]
fn signals_wait_but_for_the_one_that_kills() {
    let container = Container::idle();
    let pid =
        container.detached(&[], &["sh", "-c", "trap 'exit 4' TERM; echo > /tmp/set; while :; do sleep 0.05; done"]);
    until("its trap is set", || container.exec::<&str>(&[], &["test", "-e", "/tmp/set"]).status.success());
    let doomed = container.detached(&[], &["sleep", "600"]);
    container.success("pause", &[]);
    kill(pid, Signal::SIGTERM).unwrap();
    kill(doomed, Signal::SIGKILL).unwrap();
    status_of(doomed);
    until("it is gone", || !container.runs("sleep 600"));
    assert!(container.runs("done"), "the other still has its signal before it");
    container.success("resume", &[]);
    assert_eq!(status_of(pid), 4);
}

#[test]
fn who_waits_for_a_child_of_vfork_is_no_hindrance() {
    let container = Container::idle();
    let script = "import ctypes\n\
                  if ctypes.CDLL(None).vfork() == 0:\n\
                  \x20   open('/tmp/begun', 'w')\n\
                  \x20   while True: pass";
    let pid = container.detached(&[], &["python3", "-c", script]);
    until("the child runs", || container.exec::<&str>(&[], &["test", "-e", "/tmp/begun"]).status.success());
    container.success("pause", &[]);
    assert_eq!(status(&container), "paused");
    container.success("resume", &[]);
    kill(pid, Signal::SIGKILL).unwrap();
    assert_eq!(status_of(pid), 137);
}

#[test]
fn timers_run_on_and_calls_that_wait_are_not_interrupted() {
    let container = Container::idle();
    let script = "import os, time, select, sys\n\
                  p = select.epoll()\n\
                  start = time.monotonic()\n\
                  open('/tmp/begun', 'w')\n\
                  print(p.poll(0.5), flush=True)\n\
                  time.sleep(0.2)\n\
                  sys.exit(3 if time.monotonic() - start >= 0.7 else 1)";
    let pid = container.detached(&[], &["python3", "-c", script]);
    until("it has begun", || container.exec::<&str>(&[], &["test", "-e", "/tmp/begun"]).status.success());
    container.success("pause", &[]);
    thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    container.success("resume", &[]);
    assert_eq!(status_of(pid), 3);
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let container = Container::idle();
    let fails = |word: &str| {
        let output = container.command(word).arg(super::container::ID).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(fails("resume").contains("not paused"));
    container.success("pause", &[]);
    assert!(fails("pause").contains("not running"));
    container.success("delete", &["--force"]);
    assert!(fails("pause").contains("does not exist"));
}
