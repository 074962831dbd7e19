//! A state directory that is full or read-only.

use std::fs::{self, File};
use std::io::Write;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::place::{FAILURE, Place, until};
use crate::watched;

/// The file that takes the room. It is no container's name.
const FILLER: &str = ".filler";

/// A small file system as state directory of a place, in the calling thread's mount namespace.
struct Disk<'a>(&'a Place);

impl Disk<'_> {
    fn new(place: &Place) -> Disk<'_> {
        fs::create_dir(place.root()).expect("it is new");
        mount(Some("disk"), &place.root(), Some("tmpfs"), MsFlags::empty(), Some("size=256k,nr_inodes=32"))
            .expect("root may");
        Disk(place)
    }

    fn set_inodes(&self, most: u32) {
        let options = format!("nr_inodes={most}");
        mount(None::<&str>, &self.0.root(), None::<&str>, MsFlags::MS_REMOUNT, Some(&*options)).expect("root may");
    }

    /// Covers it by a read-only view of itself: it cannot become read-only where a sentry has a file open.
    fn lock(&self) {
        let (root, nothing) = (self.0.root(), None::<&str>);
        mount(Some(&root), &root, nothing, MsFlags::MS_BIND, nothing).expect("root may");
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(nothing, &root, nothing, read_only, nothing).expect("nobody writes there yet");
    }

    fn unlock(&self) {
        umount2(&self.0.root(), MntFlags::MNT_DETACH).expect("it was locked");
    }

    /// Takes all the room but for so many pages.
    fn fill_but(&self, pages: u64) {
        const PAGE: u64 = 4096;
        let path = self.0.root().join(FILLER);
        let mut file = File::create(&path).expect("a file needs no room");
        while file.write(&[1; PAGE as usize]).is_ok_and(|n| n > 0) {}
        let size = file.metadata().expect("it is there").len();
        file.set_len(size.saturating_sub(pages * PAGE)).expect("it becomes shorter");
    }

    fn free(&self) {
        fs::remove_file(self.0.root().join(FILLER)).expect("it was made");
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = umount2(&self.0.root(), MntFlags::MNT_DETACH);
    }
}

/// `create`, on a disk on which it must fail with one line or succeed. Whether it did; nothing is left then.
fn tried(place: &Place) -> bool {
    let output = place.try_run(&["create", "c1"]);
    if output.status.success() {
        place.run(&["delete", "c1"]);
    } else {
        let problem = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), problem.matches('\n').count()), (Some(FAILURE), 1), "{problem}");
        assert!(problem.contains("No space left on device"), "{problem}");
    }
    output.status.success()
}

#[test]
fn create_finds_no_room_at_any_point() {
    watched(|_| {
        let place = Place::new("sleep 100");
        let disk = Disk::new(&place);
        let enough = (0..20).find(|&pages| {
            disk.fill_but(pages);
            let enough = tried(&place);
            disk.free();
            place.is_empty();
            enough
        });
        assert!(enough > Some(1), "{enough:?}");
    });
}

#[test]
fn create_finds_no_inode_at_any_point() {
    watched(|_| {
        let place = Place::new("sleep 100");
        let disk = Disk::new(&place);
        let enough = (1..20).find(|inodes| {
            disk.set_inodes(*inodes);
            let enough = tried(&place);
            place.is_empty();
            enough
        });
        assert!(enough > Some(3), "{enough:?}");
    });
}

#[test]
fn a_container_lives_and_dies_though_the_disk_is_full() {
    watched(|_| {
        let place = Place::new("trap 'exit 6' TERM; echo > /tmp/set; while :; do sleep 0.01; done");
        let disk = Disk::new(&place);
        place.run(&["create", "c1"]);
        disk.fill_but(0);
        place.run(&["start", "c1"]);
        assert_eq!(place.status("c1"), "running");
        assert_eq!(place.refused(&["start", "c1"]), "cannot start an already running container");
        until("its trap is set", || place.try_run(&["exec", "c1", "test", "-e", "/tmp/set"]).status.success());
        place.run(&["pause", "c1"]);
        assert_eq!(place.status("c1"), "paused");
        place.run(&["resume", "c1"]);
        assert_eq!(place.status("c1"), "running");
        assert!(place.refused(&["create", "c2"]).contains("No space left on device"));
        place.run(&["kill", "c1", "TERM"]);
        assert_eq!(place.wait("c1"), 6);
        until("it has ended", || place.status("c1") == "stopped");
        assert_eq!(place.wait("c1"), 6, "there was room for its status");
        place.run(&["delete", "c1"]);
        disk.free();
        place.is_empty();
    });
}

#[test]
fn what_cannot_be_removed_now_is_removed_later() {
    watched(|_| {
        let place = Place::new("sleep 100");
        let disk = Disk::new(&place);
        disk.lock();
        let problem = place.refused(&["create", "c1"]);
        assert!(problem.contains("Read-only file system"), "{problem}");
        disk.unlock();
        place.run(&["create", "c1"]);
        disk.lock();
        place.run(&["start", "c1"]);
        assert_eq!(place.status("c1"), "running");
        let problem = place.refused(&["delete", "--force", "c1"]);
        assert!(problem.contains("Read-only file system"), "{problem}");
        assert_eq!(place.status("c1"), "stopped");
        disk.unlock();
        place.run(&["delete", "--force", "c1"]);
        place.is_empty();
    });
}
