//! Containers that share something with another: its network, its process numbers, its memory, its volumes.

use super::engine::{engine, until};

/// Answers each connection to port 7000 of loopback with a line.
const SERVER: &str = "import socket
server = socket.create_server(('127.0.0.1', 7000))
print('listening', flush=True)
while True:
    peer, _ = server.accept()
    peer.sendall(b'over loopback\\n')
    peer.close()";

#[test]
fn the_network_of_another_container() {
    let engine = engine();
    let server = engine.start_container(&["--hostname=box"], &["python3", "-c", SERVER]);
    server.wait_for_output("listening");
    let flag = format!("--network=container:{}", server.name);
    // Loopback, addresses and the host's name are the other's; files and processes are not.
    let script =
        "cat </dev/tcp/127.0.0.1/7000; hostname; hostname -I; ps -e -o comm= | grep -c python3; touch /srv/file";
    let ran = engine.run(&[&flag], &["bash", "-c", script]);
    let lines: Vec<&str> = ran.success().lines().map(str::trim).collect();
    assert_eq!((lines[0], lines[1], lines[3]), ("over loopback", "box", "0"), "{ran}");
    assert!(lines[2].split(' ').any(|word| word == server.address()), "{ran}");
    server.exec(&["ls", "/srv/file"]).code(2);

    // One that stays: it has its own life, and its commands are its own.
    let other = engine.start_container(&[&flag], &["sleep", "1000"]);
    assert_eq!(other.exec(&["bash", "-c", "cat </dev/tcp/127.0.0.1/7000"]).success(), "over loopback\n");
    other.docker(&["pause"]).success();
    assert_eq!(server.exec(&["bash", "-c", "cat </dev/tcp/127.0.0.1/7000"]).success(), "over loopback\n");
    other.docker(&["unpause"]).success();
    other.docker(&["restart", "--time=0"]).success();
    assert_eq!(other.exec(&["bash", "-c", "cat </dev/tcp/127.0.0.1/7000"]).success(), "over loopback\n");
    other.docker(&["kill"]).success();
    assert_eq!(other.docker(&["wait"]).success(), "137\n");
    assert_eq!(server.inspect("/State/Running"), true);
}

#[test]
fn the_process_numbers_and_the_memory_of_another_container() {
    let engine = engine();
    let first = engine.start_container(&["--ipc=shareable"], &["sleep", "1234"]);
    let [network, pid, ipc] = ["network", "pid", "ipc"].map(|kind| format!("--{kind}=container:{}", first.name));
    let flags = [network.as_str(), pid.as_str(), ipc.as_str()];
    let script = "tr '\\0' ' ' </proc/1/cmdline; echo; ipcmk -S 1 >/dev/null; ipcs -s | grep -c 0x
                  echo shared >/dev/shm/file";
    assert_eq!(engine.script(&flags, script), "sleep 1234 \n1\n");
    assert_eq!(first.exec(&["sh", "-c", "ipcs -s | grep -c 0x; cat /dev/shm/file"]).success(), "1\nshared\n");
    // Signals reach the other's processes.
    let stopped = first.exec(&["sh", "-c", "sleep 2000 & echo $!"]);
    let sleeper = stopped.success().trim().to_owned();
    engine.script(&flags, &format!("kill {sleeper}"));
    until("it has ended", || (first.exec(&["test", "-e", &format!("/proc/{sleeper}/exe")]).code == 1).then_some(()));
}

#[test]
fn what_cannot_be_shared_alone_is_refused_by_name() {
    let engine = engine();
    if !engine.is_sandboxed() {
        // Linux has namespaces of each kind to join.
        return;
    }
    let first = engine.start_container(&["--ipc=shareable"], &["sleep", "1000"]);
    for kind in ["pid", "ipc"] {
        let ran = engine.run(&[&format!("--{kind}=container:{}", first.name)], &["true"]);
        let text =
            format!("the {kind} namespace of container \"{}\" can be joined only along with its network", first.id());
        assert!(ran.code == 125 && ran.stderr.contains(&text), "{ran}");
    }
    let network = format!("--network=container:{}", first.name);
    // Its programs are in a cgroup of its own.
    engine.run(&[&network, "--memory=64m", "--cpus=0.5", "--pids-limit=50"], &["true"]).success();
}

#[test]
fn the_volumes_of_another_container() {
    let engine = engine();
    let directory = tempfile::tempdir().expect("a directory");
    let bind = format!("{}:/bound:ro", directory.path().to_str().expect("UTF-8"));
    std::fs::write(directory.path().join("file"), "from the host\n").expect("a file");
    let first =
        engine.start_container(&["-v=/data", "-v", &bind], &["sh", "-c", "echo kept >/data/file; exec sleep 1000"]);
    until("it has written", || (first.exec(&["cat", "/data/file"]).stdout == "kept\n").then_some(()));
    let flag = format!("--volumes-from={}", first.name);
    let script = "cat /data/file /bound/file; echo more >>/data/file; touch /bound/x 2>/dev/null || echo read-only";
    assert_eq!(engine.script(&[&flag], script), "kept\nfrom the host\nread-only\n");
    assert_eq!(first.exec(&["cat", "/data/file"]).success(), "kept\nmore\n");
}
