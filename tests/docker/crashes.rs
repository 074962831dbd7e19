//! What is left behind: nothing, whatever ends and however.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::engine::{Container, Engine, engine_alone, until};
use super::leftovers::Census;

fn kill_now(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("it runs");
}

/// The process whose command line has all these words.
#[track_caller]
fn find(engine: &Engine, words: &[&str]) -> u32 {
    let all = engine.processes();
    let found = all.iter().find(|(_, line)| words.iter().all(|word| line.contains(word)));
    found.unwrap_or_else(|| panic!("{words:?} in {all:#?}")).0
}

/// The process that Docker takes for the container's, as the host counts.
fn first_process(engine: &Engine, container: &Container<'_>) -> u32 {
    let inside = container.inspect("/State/Pid").to_string();
    let counted = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find(|line| line.starts_with("NSpid:")).unwrap_or_default();
        // The host's number comes first, then that in the daemons' namespace.
        numbers.split_whitespace().nth(2) == Some(&inside)
    };
    let mut all = engine.processes().into_iter().map(|(pid, _)| pid);
    all.find(counted).unwrap_or_else(|| panic!("no process {inside}"))
}

/// The census is taken after a first container has made what Docker keeps.
fn census(engine: &Engine) -> Census {
    engine.run(&["--tmpfs=/t"], &["true"]).success();
    let mut last = Census::take(engine);
    until("the daemons have settled", || {
        let now = Census::take(engine);
        let same = now == last;
        last = now;
        same.then_some(())
    });
    last
}

#[test]
fn ordinary_lives_leave_nothing() {
    let engine = engine_alone();
    let before = census(&engine);
    engine.run(&[], &["no-such-program"]).code(127);
    engine.run(&["-v=/tmp:/host:ro", "--memory=64m"], &["sh", "-c", "exit 3"]).code(3);
    let container = engine.start_container(&["-p=127.0.0.1:8099:80"], &["sleep", "1000"]);
    engine.docker(["exec", "-d", &container.name, "sleep", "1000"]).success();
    container.exec(&["sh", "-c", "sleep 1000 & sleep 0"]).success();
    container.docker(&["restart", "--time=0"]).success();
    container.docker(&["kill"]).success();
    drop(container);
    before.nothing_is_left(&engine);
}

#[test]
fn twenty_containers_at_once() {
    let engine = engine_alone();
    let before = census(&engine);
    std::thread::scope(|scope| {
        for number in 0..20 {
            let engine = &engine;
            scope.spawn(move || {
                let container = engine.start_container(&[], &["sleep", "1000"]);
                let ran = container.exec(&["sh", "-c", &format!("echo {number}")]);
                assert_eq!(ran.success(), format!("{number}\n"));
            });
        }
    });
    before.nothing_is_left(&engine);
}

#[test]
fn a_first_process_that_is_killed() {
    let engine = engine_alone();
    let before = census(&engine);
    let container = engine.start_container(&[], &["sh", "-c", "sleep 1000 & sleep 1000"]);
    kill_now(first_process(&engine, &container));
    assert_eq!(container.docker(&["wait"]).success(), "137\n");
    container.docker(&["start"]).success();
    container.docker(&["rm", "--force"]).success();
    before.nothing_is_left(&engine);
}

#[test]
fn a_gofer_that_is_killed() {
    let engine = engine_alone();
    if !engine.is_sandboxed() {
        // There is no such process with runc: nothing to compare with.
        return;
    }
    let before = census(&engine);
    let container = engine.start_container(&[], &["sleep", "1000"]);
    kill_now(find(&engine, &["runsc", "gofer", &container.id()]));
    // The container ends at once or goes on without files; it can be removed either way.
    container.docker(&["rm", "--force"]).success();
    before.nothing_is_left(&engine);
}

#[test]
fn a_shim_that_is_killed() {
    let engine = engine_alone();
    let before = census(&engine);
    let container = engine.start_container(&[], &["sleep", "1000"]);
    kill_now(find(&engine, &["containerd-shim-runc-v2", &container.id()]));
    until("Docker has noticed", || (container.inspect("/State/Running") == false).then_some(()));
    container.docker(&["rm", "--force"]).success();
    before.nothing_is_left(&engine);
}

#[test]
fn clients_that_are_killed() {
    let engine = engine_alone();
    let before = census(&engine);
    let name = Container::fresh_name();
    let container = Container::named(&engine, name.clone());
    let mut command = engine.run_command(&["--rm", "-i", "--name", &name], &["sh", "-c", "echo up; sleep 1000"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let client = command.spawn().expect("the client starts");
    until("it runs", || container.docker(&["logs"]).stdout.contains("up").then_some(()));
    let mut command = engine.client();
    command.args(["exec", "-i", &name, "sleep", "2000"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut exec = command.spawn().expect("the client starts");
    until("the other process runs", || container.docker(&["top"]).stdout.contains("sleep 2000").then_some(()));
    kill_now(client.id());
    kill_now(exec.id());
    engine.finish_child("the client", client, Duration::from_secs(10)).code(137);
    exec.wait().expect("a child");
    container.docker(&["rm", "--force"]).success();
    before.nothing_is_left(&engine);
}
