//! `runsc mount`: a container's files, seen from the host.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use serde_json::json;

use crate::common::leftovers::Watch;
use crate::place::{Alone, Place, alone, until};

/// A container that has made some files, and the directory where they are shown.
struct Shown {
    place: Place,
    watch: Watch,
    _alone: Alone,
}

/// Makes files of every sort, all of them in memory.
const SCRIPT: &str = "cd /srv; umask 022
mkdir -p dir/below; echo content >dir/file; ln -s /etc/passwd link; ln dir/file hard; mkfifo fifo
mknod null c 1 3; chmod 640 dir/file; chown 33:44 dir/file; touch -d @1234567890.5 dir/file
seq 1 200000 >large; mkdir many; cd many; seq 1 3000 | xargs touch; cd ..
/usr/bin/python3 -c \"import os; os.setxattr('dir/file', 'user.word', b'value')\"
rm /etc/issue; echo 'in a tmpfs' >/tmp/file; echo ready >/srv/ready; exec sleep 1000";

impl Shown {
    fn new() -> Shown {
        let alone = alone();
        let watch = Watch::new();
        let place = Place::with(|config| {
            config["root"] = json!({"path": "/"});
            let mounts = config["mounts"].as_array_mut().expect("a list");
            mounts.push(json!({"destination": "/sys", "type": "sysfs"}));
            mounts.push(json!({"destination": "/dev", "type": "tmpfs"}));
            config["process"]["args"] = json!(["/bin/sh", "-c", SCRIPT]);
            let capabilities = ["CAP_MKNOD", "CAP_CHOWN", "CAP_FOWNER", "CAP_DAC_OVERRIDE"];
            config["process"]["capabilities"] =
                json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
        });
        place.run(&["--overlay2=root:memory", "run", "--detach", "--bundle", text(&place.bundle()), "c1"]);
        fs::create_dir(place.file("shown here")).expect("a directory");
        let shown = Shown { place, watch, _alone: alone };
        until("the container is ready", || {
            shown.place.try_run(&["exec", "c1", "test", "-e", "/srv/ready"]).status.success()
        });
        shown
    }

    fn mount(&self) {
        self.place.run(&["mount", "c1", text(&self.point())]);
    }

    fn point(&self) -> PathBuf {
        self.place.file("shown here")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.point().join(name)
    }

    /// Whether anything is mounted there, for this thread.
    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("/proc is mounted");
        table.contains("shown\\040here")
    }

    fn finish(self) {
        if self.is_mounted() {
            umount2(&self.point(), MntFlags::empty()).expect("nobody is in it");
        }
        self.place.run(&["delete", "--force", "c1"]);
        self.place.is_empty();
        self.watch.nothing_is_left();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// An extended attribute.
fn attribute(path: &Path, name: &str) -> Option<String> {
    let (path, name) = (CString::new(text(path)).expect("no NUL"), CString::new(name).expect("no NUL"));
    let mut value = [0u8; 100];
    // SAFETY: two C strings, and a buffer of the length given.
    let n = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    usize::try_from(n).ok().map(|n| String::from_utf8_lossy(&value[..n]).into_owned())
}

#[test]
fn what_is_in_memory_is_seen_as_the_container_sees_it() {
    let shown = Shown::new();
    assert!(!Path::new("/srv/dir/file").exists(), "it is on the host");
    shown.mount();
    let file = shown.path("srv/dir/file");
    assert_eq!(fs::read_to_string(&file).expect("it is shown"), "content\n");
    let meta = fs::symlink_metadata(&file).expect("it is shown");
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.nlink(), meta.len()), (0o640, 33, 44, 2, 8));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_234_567_890, 500_000_000));
    assert_eq!(attribute(&file, "user.word").as_deref(), Some("value"));
    assert_eq!(attribute(&file, "user.other"), None);
    // What was deleted is not there, what is the image's is; other file systems of the container are where they belong.
    assert!(fs::symlink_metadata(shown.path("etc/issue")).is_err());
    assert_eq!(fs::read(shown.path("etc/passwd")).expect("it is shown"), fs::read("/etc/passwd").expect("a file"));
    assert_eq!(fs::read_to_string(shown.path("tmp/file")).expect("it is shown"), "in a tmpfs\n");
    let status = fs::read_to_string(shown.path("proc/1/status")).expect("it is shown");
    assert!(status.starts_with("Name:\tsleep\n"), "{status}");
    // More than one message holds, of content and of names.
    let numbers: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(fs::read_to_string(shown.path("srv/large")).expect("it is shown") == numbers);
    let names: BTreeSet<String> = fs::read_dir(shown.path("srv/many"))
        .expect("it is shown")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    assert_eq!(names, (1..=3000).map(|number| number.to_string()).collect());
    // It is now that is seen.
    shown.place.run(&[
        "exec",
        "c1",
        "sh",
        "-c",
        "echo longer content >/srv/dir/file; rm -r /srv/many; mkfifo /srv/many",
    ]);
    assert_eq!(fs::read_to_string(&file).expect("it is shown"), "longer content\n");
    assert!(fs::symlink_metadata(shown.path("srv/many")).expect("it is shown").file_type().is_fifo());
    // In a container that stands still, too.
    shown.place.run(&["pause", "c1"]);
    assert_eq!(fs::read_to_string(&file).expect("it is shown"), "longer content\n");
    shown.place.run(&["resume", "c1"]);
    shown.finish();
}

#[test]
fn nothing_can_be_changed_opened_or_followed_to_the_host() {
    let shown = Shown::new();
    shown.mount();
    let read_only = |result: std::io::Result<()>| {
        assert_eq!(result.expect_err("it was changed").kind(), ErrorKind::ReadOnlyFilesystem);
    };
    read_only(fs::write(shown.path("srv/dir/file"), "x"));
    read_only(fs::write(shown.path("srv/new"), "x"));
    read_only(fs::remove_file(shown.path("srv/dir/file")));
    read_only(fs::set_permissions(shown.path("srv/dir/file"), fs::Permissions::from_mode(0o777)));
    // A link of the container's would be one of the host's.
    let link = shown.path("srv/link");
    assert_eq!(fs::read_link(&link).expect("it is a link"), Path::new("/etc/passwd"));
    assert_eq!(fs::read(&link).expect_err("it was followed").raw_os_error(), Some(libc::ELOOP));
    let null = shown.path("srv/null");
    let kind = fs::symlink_metadata(&null).expect("it is shown");
    assert!(kind.file_type().is_char_device() && kind.rdev() == libc::makedev(1, 3), "{kind:?}");
    assert_eq!(fs::read(&null).expect_err("it was opened").kind(), ErrorKind::PermissionDenied);
    shown.finish();
}

#[test]
fn every_file_of_proc_and_sys_can_be_looked_at() {
    let shown = Shown::new();
    shown.mount();
    let mut queue = vec![shown.path("proc"), shown.path("sys"), shown.path("dev")];
    let mut seen = 0;
    while let Some(directory) = queue.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            // A process may have ended since.
            let Ok(meta) = entry.metadata() else { continue };
            seen += 1;
            if meta.is_dir() {
                queue.push(entry.path());
            } else if meta.is_file() {
                let _ = fs::read(entry.path());
            } else if meta.is_symlink() {
                let _ = fs::read_link(entry.path());
            }
        }
    }
    assert!((100..10_000).contains(&seen), "{seen}");
    assert_eq!(shown.place.status("c1"), "running");
    shown.finish();
}

#[test]
fn it_ends_with_the_mount_or_with_the_container() {
    let shown = Shown::new();
    shown.mount();
    // Twice, and over each other.
    shown.mount();
    umount2(&shown.point(), MntFlags::empty()).expect("nobody is in it");
    assert!(shown.path("srv/ready").exists());
    umount2(&shown.point(), MntFlags::empty()).expect("nobody is in it");
    assert!(!shown.path("srv").exists());
    shown.mount();
    let open = fs::File::open(shown.path("srv/large")).expect("it is shown");
    shown.place.run(&["kill", "c1", "KILL"]);
    until("it is unmounted", || !shown.is_mounted());
    drop(open);
    assert_eq!(shown.place.status("c1"), "stopped");
    shown.finish();
}

#[test]
fn what_cannot_be_shown_is_refused() {
    let shown = Shown::new();
    let refused = |id: &str, directory: &Path| shown.place.refused(&["mount", id, text(directory)]);
    assert_eq!(refused("c2", &shown.point()), "container \"c2\" does not exist");
    let missing = shown.place.file("missing");
    assert_eq!(refused("c1", &missing), format!("{}: No such file or directory", missing.display()));
    let file = shown.place.file("file");
    fs::write(&file, "").expect("a file");
    assert_eq!(refused("c1", &file), format!("{} is not a directory", file.display()));
    shown.place.run(&["kill", "c1", "KILL"]);
    until("it has stopped", || shown.place.status("c1") == "stopped");
    assert_eq!(refused("c1", &shown.point()), "container not running: \"c1\" is stopped");
    assert!(!shown.is_mounted());
    shown.finish();
}
