//! The Linux interface as programs see it: tests that hold on Linux and in the sandbox alike.
//!
//! Run natively, they show that Linux behaves as they say; [`the_same_in_the_sandbox`] then runs this very executable
//! on the kernel in user space, where every one of them must pass too. To run some of them in the sandbox:
//!
//! ```sh
//! LINUX_TESTS="signals:: --nocapture" cargo test --test linux the_same_in_the_sandbox -- --nocapture
//! CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="target/debug/runsc do --" cargo test --test linux signals::
//! ```
//!
//! They need root, no network but the loopback, and nothing of the host but `/bin/sh`. The tests call the C library
//! directly, so their bodies are `unsafe` as a whole: what is unsafe about a call is its arguments, and those are the
//! test's subject. See [`common`] for the process each of them runs in.

mod common;
mod programs;

mod async_io;
mod counters;
mod epoll_threads;
mod exec;
mod faults;
mod files;
mod futexes;
mod locks;
mod memory;
mod network;
mod paths;
mod pipes;
mod privileges;
mod processes;
mod propagation;
mod scheduling;
mod seccomp;
mod signals;
mod socket_options;
mod system;
mod terminals;
mod timers;
mod unix_sockets;
mod waiting;

use std::process::Command;

/// The name of the test below.
const SANDBOX: &str = "the_same_in_the_sandbox";

/// Runs all other tests of this executable in one sandbox: all pass, and none is missing.
#[test]
fn the_same_in_the_sandbox() {
    let this = std::env::current_exe().unwrap();
    let chosen = std::env::var("LINUX_TESTS").unwrap_or_default();
    let arguments: Vec<&str> = ["--skip", SANDBOX].into_iter().chain(chosen.split_whitespace()).collect();

    let list = Command::new(&this).args(&arguments).arg("--list").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let count = list.lines().filter(|line| line.ends_with(": test")).count();

    let sandbox = ["--network=sandbox", "do", "--"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_runsc"));
    let output = command.args(sandbox).arg(&this).args(&arguments).arg("--test-threads=4").output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    println!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "in the sandbox: {}", output.status);
    assert!(stdout.contains(&format!("test result: ok. {count} passed; 0 failed")), "not all {count} passed");
}
