//! A container that ends while commands are at work in it.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use super::container::{Container, ID, status_of, until};

/// How often the race is run.
const ROUNDS: u32 = 20;

/// An idle container, and its process on the host.
fn idle() -> (Container, nix::unistd::Pid) {
    let container = Container::new();
    let file = container.path("first");
    let output = container.run(["sleep", "1000"], |_| {}, &["--pid-file", file.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{output:?}");
    let pid = container.read_pid("first");
    (container, pid)
}

fn kill(container: &Container, flags: &[&str], signal: &str) -> std::process::Output {
    container.command("kill").args(flags).args([ID, signal]).output().expect("timeout(1) is installed")
}

#[test]
fn one_that_is_paused_can_be_killed() {
    let (container, pid) = idle();
    let further = container.detached(&[], &["sleep", "222"]);
    container.success("pause", &[]);
    let killed = kill(&container, &[], "KILL");
    assert!(killed.status.success(), "{killed:?}");
    assert_eq!((status_of(pid), status_of(further)), (137, 137));
    assert!(container.success("state", &[]).contains("\"stopped\""));
}

#[test]
fn killing_what_has_ended() {
    let (container, pid) = idle();
    assert!(kill(&container, &[], "KILL").status.success());
    assert_eq!(status_of(pid), 137);
    let again = kill(&container, &[], "KILL");
    assert!(String::from_utf8_lossy(&again.stderr).contains("container not running"), "{again:?}");
    let all = kill(&container, &["--all"], "KILL");
    assert!(all.status.success(), "nothing is left: {all:?}");
    let exec = container.exec::<&str>(&[], &["true"]);
    assert!(String::from_utf8_lossy(&exec.stderr).contains("cannot exec in a stopped container"), "{exec:?}");
}

/// Whichever comes first: the process has run, has been killed with the container, or finds it stopped.
#[test]
fn a_process_that_is_started_as_the_container_ends() {
    for round in 0..ROUNDS {
        let (container, pid) = idle();
        let mut exec = container.command("exec");
        exec.args([ID, "sh", "-c", "sleep 0.05 & wait"]).stderr(Stdio::piped());
        let exec = exec.spawn().expect("timeout(1) is installed");
        std::thread::sleep(Duration::from_millis(u64::from(round) * 4));
        let killed = kill(&container, &[], "KILL");
        assert!(killed.status.success(), "round {round}: {killed:?}");
        assert_eq!(status_of(pid), 137);
        let output = exec.wait_with_output().expect("our child");
        let errors = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0 | 137) => assert_eq!(errors, "", "round {round}"),
            Some(128) => assert_eq!(errors.lines().count(), 1, "round {round}: {errors}"),
            other => panic!("round {round}: {other:?} {errors}"),
        }
    }
}

#[test]
fn nothing_is_kept_for_a_command_that_waits_no_more() {
    let (container, pid) = idle();
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        let named = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("comm")).ok();
        tasks.filter_map(named).filter(|name| name == "command\n").count()
    };
    until("no other command is answered", || threads() == 0);
    let mut command = container.command("wait");
    // Without timeout(1) between, so that it is the command itself that is killed.
    let args: Vec<_> = command.get_args().skip(3).map(ToOwned::to_owned).collect();
    command = std::process::Command::new(&args[0]);
    let mut waiting = command.args(&args[1..]).arg(ID).stdout(Stdio::null()).spawn().expect("the runtime is there");
    until("it waits", || threads() == 1);
    waiting.kill().and_then(|()| waiting.wait()).expect("our child");
    until("its thread is gone", || threads() == 0);
}
