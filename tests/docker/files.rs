//! Volumes, mounts, and the commands that read and change a container's files from outside.

use std::fs;

use super::engine::{Container, engine};

#[test]
fn directories_of_the_host_are_shared_or_read_only() {
    let engine = engine();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("UTF-8");
    fs::write(directory.path().join("given"), "from outside\n").expect("a file");
    let rw = format!("{path}:/rw");
    let ro = format!("{path}:/ro:ro");
    let file = format!("{path}/given:/etc/given:ro");
    let script = "cat /rw/given; echo from inside >/rw/made; cat /ro/made; cat /etc/given; touch /ro/x";
    let ran = engine.run(&["-v", &rw, "-v", &ro, "-v", &file], &["bash", "-c", script]);
    assert_eq!(ran.code(1), "from outside\nfrom inside\nfrom outside\n", "{ran}");
    assert!(ran.stderr.contains("Read-only file system"), "{ran}");
    assert_eq!(fs::read_to_string(directory.path().join("made")).expect("it was made"), "from inside\n");
}

#[test]
fn what_the_host_changes_in_a_volume_is_seen() {
    let engine = engine();
    let directory = tempfile::tempdir().expect("a directory");
    let volume = format!("{}:/shared", directory.path().to_str().expect("UTF-8"));
    let container = engine.start_container(&["-v", &volume], &["sleep", "1000"]);
    container.exec(&["ls", "/shared/new"]).code(2);
    fs::write(directory.path().join("new"), "1\n").expect("a file");
    assert_eq!(container.exec(&["cat", "/shared/new"]).success(), "1\n");
    fs::write(directory.path().join("new"), "2 longer\n").expect("a file");
    assert_eq!(container.exec(&["cat", "/shared/new"]).success(), "2 longer\n");
    fs::remove_file(directory.path().join("new")).expect("a file");
    container.exec(&["cat", "/shared/new"]).code(1);
}

#[test]
fn mounts_are_not_shared_with_the_host() {
    let engine = engine();
    // What a container mounts cannot be seen on the host, so that it is not promised.
    let slave = engine.run(&["-v=/run/lock:/below:rslave"], &["ls", "/below"]);
    slave.success();
    if engine.is_sandboxed() {
        let shared = engine.run(&["-v=/run/lock:/below:rshared"], &["true"]);
        assert!(shared.code == 125 && shared.stderr.contains("].options: \"rshared\""), "{shared}");
    }
}

#[test]
fn a_named_volume_outlives_its_container() {
    let engine = engine();
    let volume = Container::fresh_name();
    let flag = format!("{volume}:/data");
    engine.script(&["-v", &flag], "echo kept >/data/file; ln -s file /data/link; chmod 600 /data/file");
    assert_eq!(engine.script(&["-v", &flag], "cat /data/link; stat -c %a /data/file"), "kept\n600\n");
    engine.docker(["volume", "rm", &volume]).success();
}

#[test]
fn tmpfs_has_its_size_and_options() {
    let engine = engine();
    let flags = [
        "--mount=type=tmpfs,destination=/small,tmpfs-size=1m,tmpfs-mode=1770",
        "--tmpfs=/other:rw,noexec,size=64k,mode=700",
    ];
    let script = "stat -c '%a %F' /small /other
                  head -c 2M /dev/zero >/small/file; stat -c %s /small/file
                  cp /bin/true /other/ 2>/dev/null || cp /bin/sync /other/true; /other/true; echo $?";
    let ran = engine.run(&flags, &["bash", "-c", script]);
    assert_eq!(ran.success(), "1770 directory\n700 directory\n1048576\n126\n", "{ran}");
    assert!(ran.stderr.contains("No space left on device"), "{ran}");
    assert!(ran.stderr.contains("Permission denied"), "{ran}");
}

#[test]
fn a_read_only_root() {
    let engine = engine();
    let script = "touch /file; touch /tmp/file && touch /run/file && echo fine; touch /etc/hosts-2";
    let ran = engine.run(&["--read-only", "--tmpfs=/tmp", "--tmpfs=/run"], &["bash", "-c", script]);
    assert_eq!(ran.code(1), "fine\n", "{ran}");
    assert_eq!(ran.stderr.matches("Read-only file system").count(), 2, "{ran}");
}

#[test]
fn files_are_copied_in_and_out() {
    let engine = engine();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let container = engine.start_container(&[], &["sleep", "1000"]);
    container.exec(&["sh", "-c", "mkdir /srv/out; echo made inside >/srv/out/file; echo more >>/etc/issue"]).success();
    let from = format!("{}:/srv/out", container.name);
    engine.docker(["cp", &from, &path("out")]).success();
    assert_eq!(fs::read_to_string(path("out/file")).expect("it was copied"), "made inside\n");

    fs::write(path("in"), "made outside\n").expect("a file");
    let to = format!("{}:/srv/in", container.name);
    engine.docker(["cp", &path("in"), &to]).success();
    assert_eq!(container.exec(&["cat", "/srv/in"]).success(), "made outside\n");
    // Over a file that the container knows.
    fs::write(path("in"), "made outside again\n").expect("a file");
    engine.docker(["cp", &path("in"), &to]).success();
    assert_eq!(container.exec(&["cat", "/srv/in"]).success(), "made outside again\n");

    let diff = container.docker(&["diff"]);
    let lines: Vec<&str> = diff.success().lines().collect();
    for line in ["A /srv/out", "A /srv/out/file", "C /etc/issue", "A /srv/in"] {
        assert!(lines.contains(&line), "{line} in {lines:?}");
    }
}

#[test]
fn files_of_a_container_are_there_after_a_restart() {
    let engine = engine();
    let script = "cat /srv/file 2>/dev/null; echo line >>/srv/file; exec sleep 1000";
    let container = engine.start_container(&[], &["sh", "-c", script]);
    container.exec(&["sh", "-c", "until [ -s /srv/file ]; do sleep 0.02; done"]).success();
    container.docker(&["restart", "--time=0"]).success();
    container.wait_for_output("line");
    // Of an image made from it, too.
    container.docker(&["kill"]).success();
    let image = format!("image-{}", container.name);
    engine.docker(["commit", &container.name, &image]).success();
    let ran = engine.docker(["run", "--rm", "--runtime", engine.runtime(), &image, "head", "-1", "/srv/file"]);
    assert_eq!(ran.success(), "line\n");
    engine.docker(["rmi", &image]).success();
}
