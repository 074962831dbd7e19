//! The commands of a container's life.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

use super::engine::{Container, engine, until};

/// Counts, and tells which signals it gets.
const COUNTER: &str = "trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM
                       n=0; echo ready; while :; do n=$((n + 1)); echo $n >/tmp/count; sleep 0.05; done";

fn count(container: &Container<'_>) -> i64 {
    // A read may meet the moment in which the file is empty.
    until("a count", || container.exec(&["cat", "/tmp/count"]).success().trim().parse().ok())
}

#[test]
fn it_is_listed_inspected_and_logged() {
    let engine = engine();
    let container =
        engine.start_container(&["--label=kind=listed"], &["sh", "-c", "echo out; echo err >&2; exec sleep 1234"]);
    let format = "{{.Names}} {{.State}}";
    let ps = engine.docker(["ps", "--filter", "label=kind=listed", "--format", format]);
    assert_eq!(ps.success(), format!("{} running\n", container.name));
    assert_eq!(container.inspect("/State/Status"), "running");
    assert!(container.inspect("/State/Pid").as_u64() > Some(0));
    container.wait_for_output("out");
    until("both streams", || {
        let logs = container.docker(&["logs"]);
        (logs.stdout == "out\n" && logs.stderr == "err\n").then_some(())
    });
    let top = container.docker(&["top"]);
    assert!(top.success().lines().next().is_some_and(|line| line.contains("PID") && line.contains("CMD")), "{top}");
    assert!(top.success().contains("sleep 1234"), "{top}");
    let running = container.docker(&["rm"]);
    assert!(running.code == 1 && running.stderr.contains("running"), "{running}");
}

#[test]
fn logs_are_followed_to_the_end() {
    let engine = engine();
    let script = "for n in 1 2 3; do echo line $n; sleep 0.2; done";
    let container = engine.start_container(&[], &["sh", "-c", script]);
    let logs = container.docker(&["logs", "--follow"]);
    assert_eq!(logs.success(), "line 1\nline 2\nline 3\n");
}

#[test]
fn it_is_paused_and_goes_on() {
    let engine = engine();
    let container = engine.start_container(&[], &["bash", "-c", COUNTER]);
    container.wait_for_output("ready");
    container.docker(&["pause"]).success();
    assert_eq!(container.inspect("/State/Status"), "paused");
    let exec = container.exec(&["true"]);
    assert!(exec.code == 1 && exec.stderr.contains("is paused"), "{exec}");
    container.docker(&["unpause"]).success();
    assert_eq!(container.inspect("/State/Status"), "running");
    let now = count(&container);
    until("it counts on", || (count(&container) > now).then_some(()));
    // One that is paused can be killed.
    container.docker(&["pause"]).success();
    container.docker(&["rm", "--force"]).success();
}

#[test]
fn a_paused_container_does_nothing() {
    let engine = engine();
    let directory = tempfile::tempdir().expect("a directory");
    let volume = format!("{}:/tmp", directory.path().to_str().expect("UTF-8"));
    let container = engine.start_container(&["-v", &volume], &["bash", "-c", COUNTER]);
    container.wait_for_output("ready");
    container.docker(&["pause"]).success();
    let file = directory.path().join("count");
    let before = std::fs::read(&file).expect("it counts");
    // What must not happen within some time can only be seen by waiting.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(std::fs::read(&file).expect("it counts"), before);
    container.docker(&["unpause"]).success();
    until("it counts on", || (std::fs::read(&file).ok()? != before).then_some(()));
}

#[test]
fn signals_stop_start_and_restart() {
    let engine = engine();
    let container = engine.start_container(&[], &["bash", "-c", COUNTER]);
    container.wait_for_output("ready");
    container.docker(&["kill", "--signal=USR1"]).success();
    container.wait_for_output("usr1");
    container.docker(&["stop"]).success();
    assert_eq!(container.inspect("/State/Status"), "exited");
    assert_eq!(container.inspect("/State/ExitCode"), 5);
    let stopped = container.docker(&["kill"]);
    assert!(stopped.code == 1 && stopped.stderr.contains("is not running"), "{stopped}");
    container.docker(&["start"]).success();
    until("it is ready again", || (container.docker(&["logs"]).stdout.matches("ready").count() == 2).then_some(()));
    let first = container.inspect("/State/Pid");
    container.docker(&["restart"]).success();
    assert_ne!(container.inspect("/State/Pid"), first);
    assert_eq!(container.inspect("/State/Running"), true);
    assert_eq!(container.docker(&["logs"]).stdout.matches("term").count(), 2);
    // One that does not listen is killed after the time that it is given.
    container.docker(&["stop", "--time=0"]).success();
    container.docker(&["rm"]).success();
}

#[test]
fn its_end_is_waited_for() {
    let engine = engine();
    let container = engine.start_container(&["-i"], &["sh", "-c", "read word; exit 7"]);
    let mut wait = engine.client();
    wait.args(["wait", &container.name]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let wait = wait.spawn().expect("the client starts");
    let mut attach = engine.client();
    attach.args(["attach", &container.name]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut attach = attach.spawn().expect("the client starts");
    attach.stdin.take().expect("it was asked for").write_all(b"end\n").expect("it reads");
    let attach = engine.finish_child("attach", attach, Duration::from_secs(30));
    attach.code(7);
    assert_eq!(engine.finish_child("wait", wait, Duration::from_secs(30)).success(), "7\n");
}

#[test]
fn an_attached_client_sees_what_is_printed() {
    let engine = engine();
    let container = engine.start_container(&["-i"], &["cat"]);
    let mut attach = engine.client();
    attach.args(["attach", &container.name]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut attach = attach.spawn().expect("the client starts");
    let mut stdin = attach.stdin.take().expect("it was asked for");
    let mut lines = BufReader::new(attach.stdout.take().expect("it was asked for")).lines();
    for word in ["one", "two"] {
        writeln!(stdin, "{word}").expect("it reads");
        assert_eq!(lines.next().expect("a line").expect("it prints"), word);
    }
    // The end of this client's standard input is not that of the container's, which `run -d` keeps open for others.
    drop(stdin);
    container.docker(&["kill"]).success();
    assert_eq!(attach.wait().expect("a child").code(), Some(137));
}

#[test]
fn events_tell_of_its_life() {
    let engine = engine();
    let container = engine.start_container(&[], &["sleep", "1000"]);
    container.exec(&["true"]).success();
    container.docker(&["pause"]).success();
    container.docker(&["unpause"]).success();
    container.docker(&["kill"]).success();
    container.docker(&["wait"]).success();
    let expected = "create start exec_create: true exec_start: true exec_die pause unpause kill die";
    let filter = format!("container={}", container.name);
    until("all events", || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later");
        let until = now.as_secs_f64().to_string();
        let words = ["events", "--since=0", "--until", &until, "--filter", &filter, "--format", "{{.Action}}"];
        let printed = engine.docker(words);
        // Attachments and networks are Docker's own affair, and the death comes in parallel with the killing.
        let mut seen: Vec<&str> = printed.success().lines().filter(|line| !line.contains("attach")).collect();
        if let [.., last, before] = seen.as_mut_slice()
            && *last == "die"
        {
            std::mem::swap(last, before);
        }
        let seen: Vec<&str> = seen.into_iter().flat_map(str::split_whitespace).collect();
        (seen.join(" ") == expected).then_some(())
    });
}
