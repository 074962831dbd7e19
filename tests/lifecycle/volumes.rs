//! Volumes that the containers of a pod share.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::place::{Place, text, until};
use crate::pod::{KIND, Pod};

#[test]
fn five_containers_see_each_others_changes_of_a_volume() {
    let pod = Pod::new();
    let names = ["c0", "c1", "c2", "c3", "c4"];
    for name in names {
        let script = format!(
            "echo {name} >> /mnt/log; touch /mnt/{name}; until [ $(ls /mnt/c? | wc -l) = 5 ]; do sleep 0.05; done; exit 7"
        );
        pod.make(&["run", "--detach"], &pod.with_volume(name, &script), name);
    }
    for name in names {
        assert_eq!(pod.place.wait(name), 7, "{name}");
    }
    let log = fs::read_to_string(pod.place.file("volume/log")).expect("a file");
    assert_eq!(log.lines().count(), 5, "{log}");
    pod.delete_all(&["c0", "c1", "c2", "c3", "c4", "pod"]);
}

#[test]
fn a_shared_mapping_of_a_volumes_file_is_one_between_containers() {
    let pod = Pod::new();
    let script = |own: usize, other: usize| {
        format!(
            "exec python3 -c \"
import mmap, os, time
file = os.open('/mnt/map', os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 4096)
shared = mmap.mmap(file, 4096)
shared[{own}] = 1
while not shared[{other}]: time.sleep(0.01)\""
        )
    };
    pod.make(&["run", "--detach"], &pod.with_volume("a", &script(0, 1)), "a");
    pod.make(&["run"], &pod.with_volume("b", &script(1, 0)), "b");
    assert_eq!(pod.place.wait("a"), 0);
    pod.delete_all(&["a", "pod"]);
}

/// A script of Python that ends with the container.
fn python(script: &str) -> String {
    format!("exec python3 -c \"{script}\"")
}

/// Waits until the first container has made a file of the volume.
fn wait_for(pod: &Pod, name: &str) {
    until("the other container is ready", || pod.place.file("volume").join(name).exists());
}

#[test]
fn a_socket_in_a_volume_is_reached_from_other_containers() {
    let pod = Pod::new();
    let server = python(
        "
import os, socket
server = socket.socket(socket.AF_UNIX)
os.makedirs('/mnt/sub', exist_ok=True)
server.bind('/mnt/sub/socket')
server.listen()
os.mknod('/mnt/ready')
while True:
    peer, _ = server.accept()
    peer.sendall(b'hello')
    peer.close()",
    );
    pod.make(&["run", "--detach"], &pod.with_volume("server", &server), "server");
    wait_for(&pod, "ready");
    let client = |path: &str| {
        python(&format!(
            "
import socket, struct
client = socket.socket(socket.AF_UNIX)
client.connect('{path}')
print(client.recv(9).decode(), *struct.unpack('iII', client.getsockopt(1, socket.SO_PEERCRED, 12)))"
        ))
    };
    // Read-only, elsewhere, and only a part of it: the socket is the same. The server has no number among the client's.
    for (volume, path) in [
        (("", "/mnt", "rw"), "/mnt/sub/socket"),
        (("", "/other/place", "ro"), "/other/place/sub/socket"),
        (("sub", "/part", "ro"), "/part/socket"),
    ] {
        let bundle = pod.with_part_of_volume("client", &client(path), volume);
        assert_eq!(pod.make(&["run"], &bundle, "client"), "hello 0 0 0\n", "{path}");
    }
    // What may not be written stays so.
    let bundle = pod.with_part_of_volume("client", "touch /mnt/x; echo $?", ("", "/mnt", "ro"));
    assert!(pod.make(&["run"], &bundle, "client").ends_with("1\n"));
    // Nobody listens when the server has gone.
    pod.place.run(&["delete", "--force", "server"]);
    let bundle = pod.with_volume("client", &client("/mnt/sub/socket"));
    let output = pod.place.try_run(&["run", "--bundle", bundle.to_str().expect("text"), "client"]);
    assert!(text(&output.stderr).contains("ConnectionRefusedError"), "{}", text(&output.stderr));
    pod.delete_all(&["pod"]);
}

#[test]
fn locks_on_a_file_of_a_volume_hold_between_containers() {
    let pod = Pod::new();
    let hold = python(
        "
import fcntl, os, time
whole, part = open('/mnt/whole', 'w'), open('/mnt/part', 'w')
fcntl.flock(whole, fcntl.LOCK_EX)
fcntl.lockf(part, fcntl.LOCK_EX, 10, 5)
os.mknod('/mnt/ready')
time.sleep(1000)",
    );
    pod.make(&["run", "--detach"], &pod.with_volume("holder", &hold), "holder");
    wait_for(&pod, "ready");
    let look = python(
        "
import fcntl, struct
whole, part = open('/mnt/whole', 'r+'), open('/mnt/part', 'r+')
def free(lock):
    try: lock()
    except BlockingIOError: return False
    return True
print(free(lambda: fcntl.flock(whole, fcntl.LOCK_SH | fcntl.LOCK_NB)))
print(free(lambda: fcntl.lockf(part, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 0)))
print(free(lambda: fcntl.lockf(part, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 8)))
found = fcntl.fcntl(part, fcntl.F_GETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))
print(*struct.unpack('hhqqi4x', found))
print(sum(line.split()[1] == 'FLOCK' for line in open('/proc/locks')))",
    );
    // Its holder has no number here, and is not in the table.
    let said = pod.make(&["run"], &pod.with_volume("other", &look), "other");
    assert_eq!(said, "False\nTrue\nFalse\n1 0 5 10 0\n0\n");
    let wait = "flock /mnt/whole echo mine >> /mnt/log; echo done";
    pod.make(&["run", "--detach"], &pod.with_volume("waiter", &format!("touch /mnt/waits; {wait}")), "waiter");
    wait_for(&pod, "waits");
    pod.place.run(&["kill", "holder", "KILL"]);
    assert_eq!(pod.place.wait("waiter"), 0, "the lock goes with its holder");
    assert_eq!(fs::read_to_string(pod.place.file("volume/log")).expect("a file"), "mine\n");
    pod.delete_all(&["waiter", "holder", "pod"]);
}

#[test]
fn a_fifo_in_a_volume_leads_from_one_container_to_another() {
    let pod = Pod::new();
    let script = "mkfifo /mnt/fifo; cat /mnt/fifo > /mnt/got";
    pod.make(&["run", "--detach"], &pod.with_volume("reader", script), "reader");
    wait_for(&pod, "fifo");
    pod.make(&["run"], &pod.with_volume("writer", "echo through > /mnt/fifo"), "writer");
    assert_eq!(pod.place.wait("reader"), 0);
    assert_eq!(fs::read_to_string(pod.place.file("volume/got")).expect("a file"), "through\n");
    pod.delete_all(&["reader", "pod"]);
}

#[test]
fn a_watch_sees_what_another_container_does() {
    let pod = Pod::new();
    let watch = python(
        "
import ctypes, os, struct
libc = ctypes.CDLL(None)
os.makedirs('/mnt/dir')
watch = libc.inotify_init1(0)
assert libc.inotify_add_watch(watch, b'/mnt/dir', 0x100 | 0x200 | 0x8) > 0
os.mknod('/mnt/ready')
seen = []
while len(seen) < 3:
    events = os.read(watch, 4096)
    while events:
        _, mask, _, length = struct.unpack_from('iIII', events)
        seen.append('%x %s' % (mask, events[16:16 + length].rstrip(bytes(1)).decode()))
        events = events[16 + length:]
print(*seen, sep=', ', file=open('/mnt/seen', 'w'))",
    );
    pod.make(&["run", "--detach"], &pod.with_volume("watcher", &watch), "watcher");
    wait_for(&pod, "ready");
    let bundle = pod.with_part_of_volume("other", "echo x > /part/file; rm /part/file", ("dir", "/part", "rw"));
    pod.make(&["run"], &bundle, "other");
    assert_eq!(pod.place.wait("watcher"), 0);
    let seen = fs::read_to_string(pod.place.file("volume/seen")).expect("a file");
    assert_eq!(seen, "100 file, 8 file, 200 file\n");
    pod.delete_all(&["watcher", "pod"]);
}

#[test]
fn a_file_of_a_volume_is_one_file_in_all_containers() {
    let pod = Pod::new();
    let identity = |id: &str| pod.make(&["run"], &pod.with_volume(id, "touch /mnt/f; stat -c '%d %i' /mnt/f"), id);
    let (a, b) = (identity("a"), identity("b"));
    assert_eq!(a, b);
    pod.delete_all(&["pod"]);
}

const HINT: &str = "dev.gvisor.spec.mount.cache";

/// A pod with a volume in memory, at `source`.
fn with_memory(source: &str, options: &str) -> Pod {
    Pod::with(|config| {
        for (field, value) in [("source", source), ("type", "tmpfs"), ("share", "pod"), ("options", options)] {
            config["annotations"][format!("{HINT}.{field}")] = json!(value);
        }
    })
}

/// A bundle with that volume on `/mnt`.
fn on_memory(pod: &Pod, id: &str, script: &str, source: &str, options: &[&str]) -> PathBuf {
    pod.bundle_with(id, script, |config| {
        let mount = json!({"destination": "/mnt", "type": "tmpfs", "source": source, "options": options});
        config["mounts"].as_array_mut().expect("a list").push(mount);
    })
}

#[test]
fn a_volume_in_memory_is_shared_and_stays_as_long_as_the_pod() {
    let source = "/var/lib/kubelet/pods/x/volumes/kubernetes.io~empty-dir/cache";
    let pod = with_memory(source, "rw,size=64k");
    let run = |id: &str, script: &str, options: &[&str]| {
        pod.make(&["run"], &on_memory(&pod, id, script, source, options), id)
    };
    let said = run("a", "echo kept > /mnt/file; stat -c %a /mnt; mkfifo /mnt/fifo; cat /proc/mounts", &["rw"]);
    assert!(said.starts_with("777\n"), "{said}");
    assert!(said.contains(" /mnt tmpfs rw,relatime,size=64k,mode=777,"), "{said}");
    // Its own options of tmpfs are the volume's; what its mount may do is its own.
    let said =
        run("b", "cat /mnt/file; echo x > /mnt/file; head -c 100000 /dev/zero > /mnt/big; true", &["ro", "size=1m"]);
    assert_eq!(said.lines().next(), Some("kept"), "{said}");
    assert!(!said.contains("No space"), "{said}");
    let bundle = on_memory(&pod, "c", "cat /mnt/fifo > /mnt/got", source, &[]);
    pod.make(&["run", "--detach"], &bundle, "c");
    run("d", "echo through > /mnt/fifo", &[]);
    assert_eq!(pod.place.wait("c"), 0);
    assert_eq!(run("d", "cat /mnt/got; head -c 100000 /dev/zero > /mnt/big || echo full", &[]), "through\nfull\n");
    // Another source is another file system.
    let bundle = on_memory(&pod, "d", "ls /mnt | wc -l", "/other", &[]);
    assert_eq!(pod.make(&["run"], &bundle, "d"), "0\n");
    pod.delete_all(&["c", "pod"]);
}

#[test]
fn a_mount_may_not_go_beyond_its_volume_in_memory() {
    let pod = with_memory("/cache", "noexec");
    let refused = |id: &str, options: &[&str]| {
        let bundle = on_memory(&pod, id, "true", "/cache", options);
        pod.place.refused(&["create", "--bundle", bundle.to_str().expect("text"), id])
    };
    let problem = refused("a", &["rw"]);
    assert!(problem.contains("mount tmpfs on /mnt: is not \"noexec\", as the pod's volume \"cache\" is"), "{problem}");
    pod.make(&["run"], &on_memory(&pod, "a", "touch /mnt/x", "/cache", &["noexec"]), "a");
    pod.delete_all(&["pod"]);
    let place = Place::with(|config| {
        config["annotations"] = json!({KIND: "sandbox", format!("{HINT}.source"): "/c", format!("{HINT}.type"): "tmpfs",
                                       format!("{HINT}.share"): "pod", format!("{HINT}.options"): "size=much"});
    });
    let problem = place.refused(&["create", "pod"]);
    assert!(
        problem.contains("annotations[\"dev.gvisor.spec.mount.cache.options\"]: \"mode=777,size=much\""),
        "{problem}"
    );
    place.is_empty();
}
