//! Further processes: what each flag does to them, how they end, what is wrong with a command.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use super::container::{Container, ID};

#[test]
fn it_runs_in_the_container_with_the_standard_descriptors_of_the_command() {
    let container = Container::idle();
    let mut command = container.command("exec");
    command.args([ID, "sh", "-c", "cat; hostname; echo wrong >&2; exit 7"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "typed\nsandbox\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "wrong\n");
    let signalled = container.exec::<&str>(&[], &["sh", "-c", "kill -TERM $$"]);
    assert_eq!(signalled.status.code(), Some(128 + 15));
}

#[test]
fn it_has_no_parent_and_a_session_of_its_own() {
    let container = Container::idle();
    let printed = container.prints(&[], &["sh", "-c", "ps -o pid=,ppid=,sid=,pgid= -p $$"]);
    let ids: Vec<i32> = printed.split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert!(ids[0] > 1, "{printed}");
    assert_eq!(ids, [ids[0], 0, ids[0], ids[0]], "pid, parent, session, group");
    assert_eq!(
        container
            .prints(&[], &["sh", "-c", "readlink /proc/1/ns/mnt; readlink /proc/self/ns/mnt"])
            .lines()
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        1
    );
    // Children that it leaves behind are the first process's.
    container.prints(&[], &["sh", "-c", "sleep 12345 >/dev/null 2>&1 &"]);
    assert!(container.prints(&[], &["sh", "-c", "ps -eo ppid=,args="]).contains("1 sleep 12345"));
}

#[test]
fn flags_make_the_process() {
    let container = Container::idle();
    assert_eq!(container.prints(&["--cwd", "/usr/bin"], &["pwd"]), "/usr/bin\n");
    assert_eq!(container.prints(&["-e", "A=b", "--env", "HOME=/x"], &["sh", "-c", "echo $A $HOME"]), "b /x\n");
    assert_eq!(container.prints(&["--user", "7:8", "-g", "9"], &["sh", "-c", "id -u; id -G"]), "7\n8 9\n");
    assert_eq!(container.prints(&["-u", "7"], &["sh", "-c", "id -u; id -g"]), "7\n0\n");
    let status = |flags: &[&str], field: &str| container.prints(flags, &["grep", field, "/proc/self/status"]);
    assert_eq!(status(&["--no-new-privs"], "NoNewPrivs"), "NoNewPrivs:\t1\n");
    assert_eq!(status(&[], "NoNewPrivs"), "NoNewPrivs:\t0\n");
    let bounding = |flags: &[&str]| {
        let line = status(flags, "CapBnd");
        u64::from_str_radix(line.trim_start_matches("CapBnd:").trim(), 16).unwrap()
    };
    const SYS_TIME: u32 = 25;
    assert_eq!(bounding(&["--cap", "CAP_SYS_TIME"]) ^ bounding(&[]), 1 << SYS_TIME);
}

#[test]
fn a_file_describes_the_process() {
    let container = Container::idle();
    let run = |process: &Value| {
        let file = container.path("process.json");
        fs::write(&file, process.to_string()).unwrap();
        container.exec(&["--process", file.to_str().unwrap()], &[])
    };
    let script = "umask; ulimit -n; id -u; id -G; cat /proc/self/oom_score_adj; pwd; echo $A";
    let process = json!({
        "user": {"uid": 5, "gid": 6, "additionalGids": [7, 8], "umask": 0o27}, "cwd": "/usr", "env": ["A=b", "PATH=/bin"],
        "args": ["sh", "-c", script], "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 78}], "oomScoreAdj": 300,
    });
    let output = run(&process);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0027\n77\n5\n6 7 8\n300\n/usr\nb\n", "{output:?}");
    let bad = run(&json!({"user": {"uid": 0, "gid": 0}, "cwd": "usr", "args": ["true"]}));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("process.json: process.cwd"), "{bad:?}");
}

#[test]
fn descriptors_are_preserved() {
    let container = Container::idle();
    let file = container.path("shared");
    let script = format!("exec 3>{}; exec \"$@\"", file.display());
    let exec = container.command("exec");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(exec.get_program()).args(exec.get_args());
    let output = command.args(["--preserve-fds", "1", ID, "sh", "-c", "echo through >&3"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "through\n");
    let none = container.exec(&["--preserve-fds", "900"], &["true"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("--preserve-fds=900: descriptor"), "{none:?}");
}

#[test]
fn what_cannot_be_run_is_said() {
    let container = Container::idle();
    let problem = |flags: &[&str], program: &[&str]| {
        let output = container.exec(flags, program);
        assert!(!output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    assert!(problem(&[], &["no-such"]).contains("exec: \"no-such\": executable file not found in $PATH"));
    assert!(problem(&[], &["/no/such"]).contains("exec: \"/no/such\": stat /no/such: no such file or directory"));
    assert!(problem(&[], &["/etc/passwd"]).contains("exec: \"/etc/passwd\": permission denied"));
    container.prints(
        &[],
        &["sh", "-c", "echo '#!/no/such' > /tmp/script; echo > /tmp/empty; chmod +x /tmp/script /tmp/empty"],
    );
    assert!(problem(&[], &["/tmp/script"]).contains("exec /tmp/script: no such file or directory"));
    assert!(problem(&[], &["/tmp/empty"]).contains("exec /tmp/empty: exec format error"));
    assert!(problem(&["--cwd", "/no/such"], &["true"]).contains("/no/such"));
    assert!(problem(&["--user", "root"], &["true"]).contains("bad uid"));
    assert!(problem(&["--tty", "--detach"], &["true"]).contains("without setting console socket"));
    assert!(problem(&["--console-socket", "/x"], &["true"]).contains("cannot use console socket"));
    assert!(problem(&[], &[]).contains("args cannot be empty"));
    assert_eq!(container.success("ps", &["--format", "json"]).matches(',').count(), 0, "nothing of them is left");
    let output = container.command("exec").args(["other", "true"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not exist"), "{output:?}");
}

#[test]
fn the_list_has_the_numbers_of_the_host() {
    let container = Container::idle();
    let pid = container.detached(&[], &["sleep", "4321"]);
    let table = container.success("ps", &[]);
    let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    assert!(container.runs("sleep 1000") && container.runs("sleep 4321"), "{table}");
    let json: Vec<i32> = serde_json::from_str(&container.success("ps", &["--format", "json"])).unwrap();
    assert_eq!(json.len(), 2);
    for (pid, line) in json.iter().zip(table.lines().skip(1)) {
        assert!(line.split_whitespace().nth(1) == Some(&pid.to_string()), "{line}");
        assert!(fs::exists(format!("/proc/{pid}")).unwrap());
    }
    // The host's own tools show what they are.
    let shown = |pid: i32, file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap();
    assert_eq!((shown(json[0], "comm"), shown(json[0], "cmdline")), (b"sleep\n".to_vec(), b"sleep\x001000\0".to_vec()));
    assert_eq!(shown(json[1], "cmdline"), b"sleep\x004321\0");
    assert!(!json.contains(&pid.as_raw()), "the stand-in is no process of the container's");
}
