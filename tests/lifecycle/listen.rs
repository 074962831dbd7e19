//! Sockets that whoever starts the runtime hands to the container: `sd_listen_fds(3)`, as runc passes them on.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::json;

use crate::place::{Place, text};
use crate::pod::Pod;

/// Answers each connection on descriptor 3 with what it was told of it.
const SERVER: &str = "exec python3 -c \"
import os, socket
server = socket.socket(fileno=3)
server.listen(5)
while True:
    peer, _ = server.accept()
    told = [os.environ.get(name, '-') for name in ('LISTEN_FDS', 'LISTEN_PID', 'WORD')]
    peer.sendall(' '.join(told).encode())
    peer.close()\"";

/// The command with `listener` as its descriptor 3, told of as by systemd; `extra` are further words for the shell.
fn activated(command: &Command, listener: &TcpListener, extra: &str) -> Command {
    fcntl(listener.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).expect("it is open");
    let script = format!("exec env LISTEN_PID=$$ LISTEN_FDS=1 \"$0\" \"$@\" 3<&{} {extra}", listener.as_raw_fd());
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        shell.current_dir(directory);
    }
    shell.stdin(Stdio::null()).stdout(Stdio::null());
    shell
}

fn ask(listener: &TcpListener) -> String {
    let mut answer = String::new();
    let mut stream = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    stream.read_to_string(&mut answer).expect("text");
    answer
}

#[test]
fn a_container_accepts_on_the_socket_that_the_runtime_was_started_with() {
    let place = Place::with(|config| {
        config["process"]["args"] = json!(["/bin/sh", "-c", SERVER]);
        config["process"]["env"] = json!(["PATH=/usr/bin:/bin", "LISTEN_FDS=7", "WORD=own"]);
    });
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let status = activated(&place.command(&["run", "--detach", "c1"]), &listener, "").status();
    assert!(status.expect("sh starts").success());
    for _ in 0..3 {
        assert_eq!(ask(&listener), "1 1 own");
    }
    // It is the first process's alone.
    assert_eq!(place.run(&["exec", "c1", "/bin/sh", "-c", "echo $LISTEN_FDS $LISTEN_PID"]), "7\n");
    place.run(&["delete", "--force", "c1"]);
}

#[test]
fn a_container_of_a_pod_is_handed_sockets_too() {
    let pod = Pod::new();
    let bundle = pod.bundle("web", SERVER);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let command = pod.place.command(&["run", "--detach", "--bundle", bundle.to_str().expect("text"), "web"]);
    assert!(activated(&command, &listener, "").status().expect("sh starts").success());
    assert_eq!(ask(&listener), "1 1 -");
    pod.delete_all(&["web", "pod"]);
}

#[test]
fn further_descriptors_come_behind_the_sockets() {
    let place = Place::new("cat <&4; echo $LISTEN_FDS >&5");
    let files = ["four", "five"].map(|name| place.file(name));
    fs::write(&files[0], "from four\n").expect("a file");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let more = format!("4<{} 5>{}", files[0].display(), files[1].display());
    let output = activated(&place.command(&["run", "--preserve-fds=2", "c1"]), &listener, &more)
        .stdout(Stdio::piped())
        .output()
        .expect("sh starts");
    assert_eq!(text(&output.stdout), "from four\n", "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(&files[1]).expect("a file"), "1\n");
}

#[test]
fn sockets_for_another_process_are_not_the_containers() {
    let place = Place::new("echo \"[$LISTEN_FDS]\"; ls /proc/self/fd | wc -l");
    let mut command = place.command(&["run", "c1"]);
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    assert_eq!(text(&command.output().expect("runsc starts").stdout), "[]\n4\n");
    let script = "exec env LISTEN_PID=$$ LISTEN_FDS=900 \"$0\" \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(command.get_program()).args(command.get_args()).current_dir(place.bundle());
    let output = shell.output().expect("sh starts");
    let problem = text(&output.stderr);
    assert!(
        problem.starts_with("runsc: LISTEN_FDS=900: descriptor") && problem.ends_with("is not open\n"),
        "{problem}"
    );
    place.is_empty();
}
