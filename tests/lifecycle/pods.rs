//! Containers of a Kubernetes pod: several in one sandbox, as containerd asks for them by annotations.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::leftovers::Watch;
use crate::place::{alone, is_alive, until};
use crate::pod::{KIND, POD, Pod};

fn kill_now(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it is there");
}

#[test]
fn the_network_and_the_host_name_are_shared_and_files_and_processes_are_not() {
    let pod = Pod::new();
    let script = "touch /tmp/file; exec python3 -c \"
import socket
server = socket.create_server(('127.0.0.1', 7000))
while True:
    peer, _ = server.accept()
    peer.sendall(b'from the pod')
    peer.close()\"";
    pod.start("server", script);
    let said = pod.run(
        "client",
        "until exec 3<>/dev/tcp/127.0.0.1/7000; do sleep 0.05; done 2>/dev/null; cat <&3; echo; hostname; ls /tmp
         echo $$; ls -d /proc/[0-9]* | wc -l",
    );
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["from the pod", "podhost", "1"], "{said}");
    assert!(lines[3].parse::<u32>().is_ok_and(|count| count <= 4), "of this container alone: {said}");
    pod.delete_all(&["server", "pod"]);
}

#[test]
fn semaphores_are_shared_and_undone_for_the_process_that_changed_them() {
    // Both containers' first process is number 1: the end of one must not undo what the other has done.
    let pod = Pod::new();
    let script = |work: &str| {
        format!(
            "exec python3 -c \"
import ctypes
libc = ctypes.CDLL(None)
UNDO = 0x1000
def change(by, flags):
    op = (ctypes.c_short * 3)(0, by, flags)
    assert libc.semop(libc.semget(77, 1, 0o1600), op, 1) == 0
{work}\""
        )
    };
    let hold = "change(5, UNDO)\nprint('held', flush=True)\nimport time\ntime.sleep(1000)";
    let bundle = pod.with_volume("a", &format!("{} > /mnt/held", script(hold)));
    pod.make(&["run", "--detach"], &bundle, "a");
    until("it holds", || fs::read_to_string(pod.place.file("volume/held")).is_ok_and(|text| text == "held\n"));
    pod.run("b", &script("change(1, UNDO)"));
    let value = script("print(libc.semctl(libc.semget(77, 1, 0o1600), 0, 12))");
    assert_eq!(pod.run("c", &value), "5\n");
    pod.place.run(&["kill", "a", "KILL"]);
    assert_eq!(pod.place.wait("a"), 137);
    assert_eq!(pod.run("c", &value), "0\n");
    pod.delete_all(&["a", "pod"]);
}

#[test]
fn process_numbers_are_shared_where_the_specification_says_so() {
    let pod = Pod::new();
    let share = |pid: i64| {
        move |config: &mut Value| {
            config["linux"]["namespaces"][3] = json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")});
        }
    };
    let all = pod.bundle_with("all", "sleep 1000 & wait", share(pod.pid));
    pod.make(&["run", "--detach"], &all, "all");
    // The pod's first process, this container's shell and its child.
    let look = "until [ $(cat /proc/[0-9]*/comm | grep -c sleep) = 2 ]; do sleep 0.05; done; cat /proc/1/comm; echo $$";
    let said = pod.make(&["run"], &pod.bundle_with("look", look, share(pod.pid)), "look");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "sleep", "{said}");
    assert_ne!(lines[1], "1", "{said}");
    // By the process that stands for a container whose numbers are its own: a debug container of Kubernetes.
    pod.start("own", "exec -a marked sleep 1000");
    let stand_in = i64::from(pod.process("own", "stand_in"));
    let look = "tr '\\0' ' ' < /proc/1/cmdline; ls -d /proc/[0-9]* | wc -l";
    let said = pod.make(&["run"], &pod.bundle_with("debug", look, share(stand_in)), "debug");
    assert!(said.starts_with("marked 1000 "), "{said}");
    // Each has only its own to list, to stop and to kill.
    let listed = |id: &str| pod.place.run(&["ps", id]).lines().count() - 1;
    assert_eq!((listed("pod"), listed("all")), (1, 2));
    pod.place.run(&["pause", "all"]);
    assert_eq!((pod.place.status("all"), pod.place.status("pod")), ("paused".into(), "running".into()));
    pod.place.run(&["resume", "all"]);
    pod.place.run(&["kill", "--all", "all", "KILL"]);
    assert_eq!(pod.place.wait("all"), 137);
    assert_eq!((pod.place.status("pod"), listed("pod")), ("running".into(), 1));
    // The end of the first one is the end of all who share its numbers, and of the sandbox.
    pod.place.run(&["delete", "all"]);
    pod.make(&["run", "--detach"], &all, "all");
    pod.place.run(&["kill", "pod", "KILL"]);
    assert_eq!((pod.place.wait("pod"), pod.place.wait("all"), pod.place.wait("own")), (137, 137, 137));
    pod.delete_all(&["pod", "own", "all"]);
}

#[test]
fn commands_work_on_a_further_container() {
    let pod = Pod::new();
    let script = "trap 'exit 6' TERM; touch /tmp/ready; while :; do sleep 0.02; done";
    let bundle = pod.bundle("web", script);
    let pid_file = pod.place.file("web.pid");
    pod.make(&["create", "--pid-file", pid_file.to_str().expect("text")], &bundle, "web");
    let state = pod.place.state("web");
    assert_eq!(
        (&state["status"], state["pid"].to_string()),
        (&json!("created"), fs::read_to_string(&pid_file).unwrap())
    );
    pod.place.run(&["start", "web"]);
    assert_eq!(pod.place.refused(&["start", "web"]), "cannot start an already running container");
    pod.place.run(&["exec", "web", "/bin/sh", "-c", "until [ -e /tmp/ready ]; do sleep 0.02; done"]);
    assert_eq!(pod.place.run(&["exec", "web", "/bin/hostname"]), "podhost\n");
    assert_eq!(pod.place.try_run(&["exec", "pod", "/bin/ls", "/tmp/ready"]).status.code(), Some(2), "another's file");
    let events: Value = serde_json::from_str(&pod.place.run(&["events", "--stats", "web"])).expect("JSON");
    assert!(events["data"]["pids"]["current"].as_u64().is_some_and(|count| (1..=3).contains(&count)), "{events}");
    pod.place.run(&["pause", "web"]);
    assert_eq!((pod.place.status("web"), pod.place.status("pod")), ("paused".into(), "running".into()));
    pod.place.run(&["resume", "web"]);
    let standing = state["pid"].as_i64().expect("a number");
    kill(Pid::from_raw(standing as i32), Signal::SIGTERM).expect("it is there");
    assert_eq!(pod.place.wait("web"), 6, "what stands for it passes signals on");
    until("what stands for it ends too", || !is_alive(standing));
    assert_eq!(pod.place.refused(&["kill", "web"]), "container not running");
    assert_eq!(pod.place.status("pod"), "running");
    pod.delete_all(&["web", "pod"]);
}

#[test]
fn they_end_and_are_deleted_in_any_order() {
    let _alone = alone();
    let watch = Watch::new();
    for order in [["pod", "a", "b"], ["a", "pod", "b"], ["b", "a", "pod"]] {
        for force in [true, false] {
            let pod = Pod::new();
            pod.start("a", "sleep 1000");
            pod.make(&["create"], &pod.bundle("b", "sleep 1000"), "b");
            for id in order {
                if force {
                    pod.place.run(&["delete", "--force", id]);
                } else {
                    let _ = pod.place.try_run(&["kill", id, "KILL"]);
                    assert_eq!(pod.place.wait(id), 137, "{order:?}: {id}");
                    pod.place.run(&["delete", id]);
                }
            }
            pod.place.is_empty();
            watch.nothing_is_left();
        }
    }
}

#[test]
fn a_process_of_one_container_that_is_killed_ends_that_container() {
    let _alone = alone();
    let watch = Watch::new();
    let pod = Pod::new();
    for process in ["stand_in", "gofer"] {
        pod.start("other", "sleep 1000");
        // It waits without any more of its files: without a gofer it could not begin another program.
        pod.start("web", "mkfifo /tmp/fifo; exec 3<>/tmp/fifo; echo >/tmp/ready; read -r _ <&3");
        until("it waits", || pod.place.try_run(&["exec", "web", "test", "-e", "/tmp/ready"]).status.success());
        kill_now(pod.process("web", process));
        until("it is stopped", || pod.place.status("web") == "stopped");
        until("its end is known", || pod.place.try_run(&["wait", "web"]).status.success());
        assert_eq!(pod.place.wait("web"), 137, "{process}");
        assert_eq!(pod.place.run(&["exec", "other", "/bin/hostname"]), "podhost\n", "{process}");
        pod.place.run(&["delete", "web"]);
        pod.place.run(&["delete", "--force", "other"]);
    }
    pod.delete_all(&["pod"]);
    watch.nothing_is_left();
}

#[test]
fn the_sentry_or_the_first_gofer_that_is_killed_ends_all() {
    let _alone = alone();
    let watch = Watch::new();
    for process in ["sentry", "gofer"] {
        let pod = Pod::new();
        pod.start("a", "sleep 1000");
        kill_now(pod.process("pod", process));
        until("all are stopped", || ["pod", "a"].iter().all(|id| pod.place.status(id) == "stopped"));
        pod.place.run(&["delete", "a"]);
        pod.place.run(&["delete", "pod"]);
        pod.place.is_empty();
        watch.nothing_is_left();
    }
}

#[test]
fn a_create_that_is_killed_leaves_the_pod_as_it_was() {
    let _alone = alone();
    let watch = Watch::new();
    let pod = Pod::new();
    let bundle = pod.bundle("web", "sleep 1000");
    for step in 0..12 {
        let mut child = pod.place.start(&["create", "--bundle", bundle.to_str().expect("text"), "web"]);
        std::thread::sleep(std::time::Duration::from_millis(2 * step));
        child.kill().expect("it is a child");
        child.wait().expect("it is a child");
        pod.place.run(&["delete", "--force", "web"]);
        assert_eq!(pod.place.run(&["list", "-q"]), "pod\n", "step {step}");
    }
    pod.start("web", "sleep 1000");
    pod.delete_all(&["web", "pod"]);
    watch.nothing_is_left();
}

#[test]
fn what_cannot_be_shared_is_refused_by_its_field() {
    let pod = Pod::new();
    let refused = |change: &dyn Fn(&mut Value)| {
        let bundle = pod.bundle_with("web", "true", change);
        let problem = pod.place.refused(&["create", "--bundle", bundle.to_str().expect("text"), "web"]);
        assert!(!pod.place.root().join("web").exists());
        problem
    };
    let problem = refused(&|config| config["annotations"] = json!({KIND: "container"}));
    assert!(problem.contains("annotations[\"io.kubernetes.cri.sandbox-id\"]: is missing"), "{problem}");
    let problem = refused(&|config| config["annotations"][POD] = json!("nosuch"));
    assert!(problem.contains("container \"nosuch\" does not exist"), "{problem}");
    let problem = refused(&|config| config["annotations"][KIND] = json!("other"));
    assert!(problem.contains("neither \"sandbox\" nor \"container\""), "{problem}");
    let problem = refused(&|config| config["linux"]["namespaces"][0] = json!({"type": "network"}));
    assert!(problem.contains("linux.namespaces[0].path: a container of a pod has the pod's network"), "{problem}");
    let problem = refused(&|config| config["linux"]["namespaces"][1]["path"] = json!("/proc/self/ns/ipc"));
    assert!(problem.contains("linux.namespaces[1].path: joining another ipc namespace is not supported"), "{problem}");
    let problem = refused(&|config| config["process"]["args"] = json!(["nosuch"]));
    assert!(problem.contains("exec: \"nosuch\": executable file not found in $PATH"), "{problem}");
    assert_eq!(pod.place.status("pod"), "running");
    pod.delete_all(&["pod"]);
}

#[test]
fn a_container_joins_the_network_of_another_by_a_path_alone() {
    let pod = Pod::new();
    let unnamed = |config: &mut Value| drop(config.as_object_mut().expect("an object").remove("annotations"));
    let server = "import socket
server = socket.create_server(('127.0.0.1', 7000))
open('/tmp/ready', 'w')
server.accept()[0].sendall(b'over loopback')";
    let first = pod.bundle_with("web", "", |config| {
        unnamed(config);
        config["process"]["args"] = json!(["/usr/bin/python3", "-c", server]);
    });
    pod.make(&["run", "--detach"], &first, "web");
    until("it listens", || pod.place.try_run(&["exec", "web", "test", "-e", "/tmp/ready"]).status.success());
    // Joined to one that has itself joined.
    let stand_in = pod.process("web", "stand_in");
    let second = pod.bundle_with("client", "cat </dev/tcp/127.0.0.1/7000; hostname", |config| {
        unnamed(config);
        let of = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{stand_in}/ns/{file}")});
        config["linux"]["namespaces"] = json!([of("network", "net"), of("uts", "uts"), {"type": "mount"}]);
    });
    assert_eq!(pod.make(&["run"], &second, "client"), "over loopbackpodhost\n");

    let refused = |change: &dyn Fn(&mut Value)| {
        let bundle = pod.bundle_with("other", "true", |config| {
            unnamed(config);
            change(config);
        });
        pod.place.refused(&["create", "--bundle", bundle.to_str().expect("text"), "other"])
    };
    let problem = refused(&|config| config["linux"]["namespaces"][0] = json!({"type": "network"}));
    assert!(problem.contains("linux.namespaces[1].path: the ipc namespace of container \"pod\" can be"), "{problem}");
    pod.delete_all(&["client", "web", "pod"]);
}
