//! `docker run` with its flags, and its exit codes.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use super::engine::{IMAGE, engine};

#[test]
fn environment_directory_user_and_names() {
    let engine = engine();
    let flags = [
        "-e=WORD=two words",
        "--env=EMPTY=",
        "-w=/srv",
        "-u=33:44",
        "--group-add=55",
        "--hostname=box",
        "--add-host=db:10.1.2.3",
        "--dns=10.9.9.9",
        "--dns-search=example.org",
    ];
    let script = "echo \"$WORD|${EMPTY-unset}|$(pwd)|$(id -u) $(id -g) $(id -G)|$(hostname)|$(cat /etc/hostname)\"
                  grep db /etc/hosts
                  grep -v '^#' /etc/resolv.conf";
    let printed = engine.script(&flags, script);
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(printed.lines().next(), Some("two words||/srv|33 44 44 55|box|box"), "{printed}");
    assert!(lines.contains(&vec!["10.1.2.3", "db"]), "{printed}");
    assert!(lines.contains(&vec!["nameserver", "10.9.9.9"]), "{printed}");
    assert!(lines.contains(&vec!["search", "example.org"]), "{printed}");
}

#[test]
fn a_user_by_name_and_a_directory_that_is_not_there() {
    let engine = engine();
    let printed = engine.script(&["-u=www-data", "-w=/not/there/yet"], "id -un; pwd; echo $HOME");
    assert_eq!(printed, "www-data\n/not/there/yet\n/var/www\n");
}

#[test]
fn an_entrypoint_takes_the_arguments() {
    let engine = engine();
    let ran = engine.run(&["--entrypoint=/bin/echo"], &["a b", "c"]);
    assert_eq!(ran.success(), "a b c\n");
}

#[test]
fn capabilities_are_docker_s_and_can_be_dropped_and_added() {
    let engine = engine();
    let effective = "grep CapEff /proc/self/status | cut -f2";
    assert_eq!(engine.script(&[], effective), "00000000a80425fb\n");
    assert_eq!(engine.script(&["--cap-drop=ALL"], effective), "0000000000000000\n");
    assert_eq!(engine.script(&["--cap-drop=ALL", "--cap-add=NET_BIND_SERVICE"], effective), "0000000000000400\n");
    assert_eq!(engine.script(&["--cap-add=NET_ADMIN"], effective), "00000000a80435fb\n");
    let chown = engine.run(&["--cap-drop=CHOWN"], &["chown", "33", "/srv"]);
    assert!(chown.code == 1 && chown.stderr.contains("Operation not permitted"), "{chown}");
    // Another user has none.
    assert_eq!(engine.script(&["-u=33"], effective), "0000000000000000\n");
}

#[test]
fn no_new_privileges_reaches_the_program() {
    let engine = engine();
    let script = "grep NoNewPrivs /proc/self/status | cut -f2";
    assert_eq!(engine.script(&["--security-opt=no-new-privileges"], script), "1\n");
    assert_eq!(engine.script(&[], script), "0\n");
}

#[test]
fn init_is_docker_s_and_reaps() {
    let engine = engine();
    // The orphan is process 1's to wait for.
    let script = "cat /proc/1/comm; (sleep 0.01 & echo $! >/tmp/orphan); orphan=$(cat /tmp/orphan)
                  for _ in $(seq 200); do [ -e /proc/$orphan ] || exit 0; sleep 0.05; done; exit 1";
    let printed = engine.script(&["--init"], script);
    assert_eq!(printed, "docker-init\n");
}

#[test]
fn ulimits_and_shm_size() {
    let engine = engine();
    let flags = ["--ulimit=nofile=123:456", "--ulimit=core=0", "--shm-size=3m"];
    let printed = engine.script(&flags, "ulimit -Sn; ulimit -Hn; ulimit -c; df -k --output=size /dev/shm | tail -1");
    let words: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(words, ["123", "456", "0", "3072"]);
}

#[test]
fn a_container_restarts_until_it_has_failed_often_enough() {
    let engine = engine();
    let container = engine.start_container(&["--restart=on-failure:2"], &["sh", "-c", "echo again; exit 3"]);
    super::engine::until("it has restarted twice", || {
        let count = container.inspect("/RestartCount").as_i64();
        let running = container.inspect("/State/Running").as_bool();
        let restarting = container.inspect("/State/Restarting").as_bool();
        (count == Some(2) && running == Some(false) && restarting == Some(false)).then_some(())
    });
    assert_eq!(container.inspect("/State/ExitCode"), 3);
    assert_eq!(container.docker(&["logs"]).success(), "again\nagain\nagain\n");
}

#[test]
fn standard_streams_are_three() {
    let engine = engine();
    let bytes: Vec<u8> =
        (0..1 << 20).map(|index: u32| b'a' + (index.wrapping_mul(2_654_435_761) >> 24) as u8 % 26).collect();
    let mut command = engine.run_command(&["--rm", "-i"], &["sh", "-c", "cat; echo end >&2"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the client starts");
    let mut stdin = child.stdin.take().expect("it was asked for");
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&bytes).expect("it reads");
            drop(stdin);
        });
        engine.finish_child("run -i cat", child, Duration::from_secs(60))
    });
    assert!(ran.success().as_bytes() == bytes, "{} of {} bytes", ran.stdout.len(), bytes.len());
    assert_eq!(ran.stderr, "end\n");
}

#[test]
fn exit_codes() {
    let engine = engine();
    engine.run(&[], &["true"]).code(0);
    engine.run(&[], &["sh", "-c", "exit 42"]).code(42);
    let flag = engine.docker(["run", "--no-such-flag", IMAGE, "true"]);
    assert_eq!(flag.code, 125, "{flag}");
    let directory = engine.run(&[], &["/etc"]);
    assert_eq!(directory.code, 126, "{directory}");
    let no_program = engine.run(&[], &["/etc/passwd"]);
    assert!(no_program.code == 126 && no_program.stderr.contains("permission denied"), "{no_program}");
    let missing = engine.run(&[], &["no-such-program"]);
    assert!(missing.code == 127, "{missing}");
    assert!(missing.stderr.contains("\"no-such-program\": executable file not found in $PATH"), "{missing}");
    let path = engine.run(&[], &["/no/such/program"]);
    assert!(path.code == 127 && path.stderr.contains("no such file or directory"), "{path}");
}

#[test]
fn exit_codes_of_signals() {
    let engine = engine();
    let killed = engine.start_container(&[], &["sleep", "1000"]);
    killed.docker(&["kill"]).success();
    assert_eq!(killed.docker(&["wait"]).success(), "137\n");
    // Process 1 of a container has no default action; that of docker-init is to pass the signal on.
    let terminated = engine.start_container(&["--init"], &["sleep", "1000"]);
    terminated.docker(&["kill", "--signal=TERM"]).success();
    assert_eq!(terminated.docker(&["wait"]).success(), "143\n");
    let ignored = engine.start_container(&[], &["sleep", "1000"]);
    ignored.docker(&["kill", "--signal=USR1"]).success();
    assert_eq!(ignored.inspect("/State/Running"), true);
    engine.run(&[], &["sh", "-c", "sh -c 'kill -SEGV $$'"]).code(139);
}

#[test]
fn what_is_removed_at_its_end_is_gone() {
    let engine = engine();
    engine.run(&["--name=gone"], &["true"]).success();
    let all = engine.docker(["ps", "--all", "--quiet", "--filter", "name=gone"]);
    assert_eq!(all.success(), "");
}
