//! `docker exec`.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use super::engine::{engine, until};

#[test]
fn flags_and_exit_codes() {
    let engine = engine();
    let container = engine.start_container(&["-e=BASE=1", "--hostname=box"], &["sleep", "1000"]);
    let name = container.name.as_str();
    let script = "echo $BASE $MORE $(pwd) $(id -u):$(id -g) $(hostname)";
    let flags = ["exec", "-e=MORE=2", "-w=/srv", "-u=33:44", name, "sh", "-c", script];
    assert_eq!(engine.docker(flags).success(), "1 2 /srv 33:44 box\n");
    container.exec(&["sh", "-c", "exit 42"]).code(42);
    container.exec(&["sh", "-c", "kill -KILL $$"]).code(137);
    let missing = container.exec(&["no-such-program"]);
    assert!(missing.code == 127 || missing.code == 126, "{missing}");
    assert!((missing.stdout.clone() + &missing.stderr).contains("executable file not found in $PATH"), "{missing}");
    container.exec(&["/etc/passwd"]).code(126);
    // Processes of the container are seen, and the other way round.
    assert!(container.exec(&["ps", "-e", "-o", "args"]).success().contains("sleep 1000"));
    assert_eq!(container.exec(&["sh", "-c", "kill -9 1; echo still here"]).success(), "still here\n");
}

#[test]
fn standard_input_of_a_process() {
    let engine = engine();
    let container = engine.start_container(&[], &["sleep", "1000"]);
    let mut command = engine.client();
    command.args(["exec", "-i", &container.name, "sh", "-c", "tr a-z A-Z; echo end >&2; exit 3"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the client starts");
    child.stdin.take().expect("it was asked for").write_all(b"some words\n").expect("it reads");
    let ran = engine.finish_child("exec -i", child, Duration::from_secs(30));
    assert_eq!(ran.code(3), "SOME WORDS\n");
    assert_eq!(ran.stderr, "end\n");
}

#[test]
fn detached_processes_go_on_and_end_with_the_container() {
    let engine = engine();
    let container = engine.start_container(&[], &["sleep", "1000"]);
    let detached = ["exec", "-d", &container.name, "sh", "-c", "echo started >/tmp/file; exec sleep 2000"];
    engine.docker(detached).success();
    until("it runs", || (container.exec(&["cat", "/tmp/file"]).stdout == "started\n").then_some(()));
    until("docker top shows it", || {
        let top = container.docker(&["top"]);
        top.success().contains("sleep 2000").then_some(())
    });
    container.docker(&["stop", "--time=0"]).success();
    let stopped = container.exec(&["true"]);
    assert!(stopped.code == 1 && stopped.stderr.contains("is not running"), "{stopped}");
}

#[test]
fn a_container_s_health_is_checked() {
    let engine = engine();
    let flags = ["--health-cmd=test -e /tmp/healthy", "--health-interval=100ms", "--health-retries=1"];
    let container = engine.start_container(&flags, &["sleep", "1000"]);
    let health = || container.inspect("/State/Health/Status");
    until("it is unhealthy", || (health() == "unhealthy").then_some(()));
    container.exec(&["touch", "/tmp/healthy"]).success();
    until("it is healthy", || (health() == "healthy").then_some(()));
}

#[test]
fn many_processes_at_once() {
    let engine = engine();
    let container = engine.start_container(&[], &["sleep", "1000"]);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let container = &container;
            scope.spawn(move || {
                let script = format!("head -c 300000 /dev/zero | wc -c; exit {number}");
                let ran = container.exec(&["sh", "-c", &script]);
                assert_eq!(ran.code(number), "300000\n");
            });
        }
    });
}
