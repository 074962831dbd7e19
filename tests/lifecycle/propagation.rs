//! Mounts that the host makes in a directory that a container has: `rslave`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::place::{Place, alone, until};

/// A shared mount of the host's, with what is mounted on it. It goes when dropped.
struct Shared(PathBuf);

impl Shared {
    fn new(at: PathBuf) -> Shared {
        fs::create_dir(&at).expect("a directory");
        mount(&["-t", "tmpfs", "none"], &at);
        mount(&["--make-shared"], &at);
        for name in ["before", "later"] {
            fs::create_dir(at.join(name)).expect("a directory");
        }
        mount(&["-t", "tmpfs", "none"], &at.join("before"));
        fs::write(at.join("before/file"), "from before\n").expect("a file");
        Shared(at)
    }

    fn unmount(&self, name: &str) -> bool {
        let umount = Command::new("umount").arg(self.0.join(name)).stderr(Stdio::null()).status();
        umount.expect("umount starts").success()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--recursive").arg(&self.0).status();
    }
}

#[track_caller]
fn mount(words: &[&str], at: &Path) {
    assert!(Command::new("mount").args(words).arg(at).status().expect("mount starts").success(), "{words:?}");
}

/// Says what is in the directory as it comes and goes.
const SCRIPT: &str = "cat /mnt/before/file
until cat /mnt/later/file 2>/dev/null; do sleep 0.02; done
touch /mnt/later/x 2>/dev/null && rm /mnt/later/x && echo written; ls /mnt/later/dir
while [ -e /mnt/later/file ]; do sleep 0.02; done
ls /mnt/later; echo gone; while [ -e /mnt/before/file ]; do sleep 0.02; done; echo all gone";

fn place(options: &[&str]) -> (Place, Shared) {
    let place = Place::with(|config| config["process"]["args"] = json!(["/bin/sh", "-c", SCRIPT]));
    let shared = Shared::new(place.file("source"));
    let path = place.bundle().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    let bind = json!({"destination": "/mnt", "type": "bind", "source": shared.0, "options": options});
    config["mounts"].as_array_mut().expect("a list").push(bind);
    fs::write(path, config.to_string()).expect("a file");
    (place, shared)
}

#[test]
fn what_the_host_mounts_later_is_seen_and_can_be_unmounted_again() {
    let _alone = alone();
    for (option, said) in [("rw", "written\n"), ("ro", "")] {
        let (place, shared) = place(&["rbind", "rslave", option]);
        let out = place.file("out");
        let mut run = place.command(&["run", "c1"]);
        let mut run = run.stdout(fs::File::create(&out).expect("a file")).spawn().expect("runsc starts");
        let out = || fs::read_to_string(&out).expect("a file");
        until("it has begun", || out() == "from before\n");
        mount(&["-t", "tmpfs", "none"], &shared.0.join("later"));
        fs::create_dir(shared.0.join("later/dir")).expect("a directory");
        fs::write(shared.0.join("later/dir/inner"), "").expect("a file");
        fs::write(shared.0.join("later/file"), "from later\n").expect("a file");
        until("it has looked", || out() == format!("from before\nfrom later\n{said}inner\n"));
        // Nothing that it has seen is kept.
        until("the host has its mount back", || shared.unmount("later"));
        until("it sees that", || out().ends_with("inner\ngone\n"));
        until("the host has its mount back", || shared.unmount("before"));
        assert!(run.wait().expect("a child").success(), "{}", out());
        assert!(out().ends_with("all gone\n"));
    }
}

#[test]
fn a_private_mount_stays_as_it_was() {
    let _alone = alone();
    let (place, shared) = place(&["rbind", "rprivate", "rw"]);
    place.run(&["create", "c1"]);
    mount(&["-t", "tmpfs", "none"], &shared.0.join("later"));
    fs::write(shared.0.join("later/file"), "").expect("a file");
    place.run(&["start", "c1"]);
    assert_eq!(place.run(&["exec", "c1", "/bin/ls", "/mnt/later"]), "");
    place.run(&["delete", "--force", "c1"]);
}
