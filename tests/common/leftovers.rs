//! What a sandbox might leave behind: processes, mounts, files.
//!
//! A thread that watches gets a mount namespace of its own, so that what it then starts cannot hide mounts among those of
//! others, and this process adopts orphans, so that a process left behind is among its descendants. Tests that use it must
//! not run side by side.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitPidFlag, waitpid};
use tempfile::TempDir;

/// Remembers what there was.
pub struct Watch {
    mounts: BTreeSet<String>,
    processes: BTreeSet<u32>,
    namespaces: BTreeSet<PathBuf>,
    /// Temporary files of what is watched go here.
    temporary: TempDir,
}

impl Watch {
    /// Starts watching on this thread.
    pub fn new() -> Watch {
        nix::sys::prctl::set_child_subreaper(true).expect("Linux 3.4");
        unshare(CloneFlags::CLONE_NEWNS).expect("root may");
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing).expect("root may");
        let temporary = tempfile::tempdir().expect("a temporary directory");
        Watch { mounts: mounts(), processes: descendants(std::process::id()), namespaces: namespaces(), temporary }
    }

    /// Lets a command keep its temporary files where they are watched.
    pub fn command<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("TMPDIR", self.temporary.path())
    }

    /// Fails if anything is left. Processes that have been told to end have two seconds for it.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        for _ in 0..200 {
            reap(&self.processes);
            if descendants(std::process::id()).is_subset(&self.processes) {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let processes: Vec<String> =
            descendants(std::process::id()).difference(&self.processes).map(|&pid| describe(pid)).collect();
        assert!(processes.is_empty(), "processes are left: {processes:#?}");
        let mounts = mounts();
        let mounts: Vec<&String> = mounts.difference(&self.mounts).collect();
        assert!(mounts.is_empty(), "mounts are left: {mounts:#?}");
        let namespaces = namespaces();
        let namespaces: Vec<&PathBuf> = namespaces.difference(&self.namespaces).collect();
        assert!(namespaces.is_empty(), "network namespaces are left: {namespaces:#?}");
        let files: Vec<_> = fs::read_dir(self.temporary.path()).expect("it is there").flatten().collect();
        assert!(files.is_empty(), "files are left: {files:?}");
    }
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").expect("/proc is mounted");
    // Named network namespaces of others come and go; those of this process are watched apart.
    text.lines().filter(|line| !line.contains("/netns")).map(str::to_owned).collect()
}

fn namespaces() -> BTreeSet<PathBuf> {
    let own = format!("runsc-{}-", std::process::id());
    let all = fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&own))).collect()
}

/// The cgroups of this host whose own name begins with `prefix`, in every hierarchy.
pub fn cgroups_named(prefix: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut queue: Vec<PathBuf> =
        fields.filter(|fields| fields[2].starts_with("cgroup")).map(|fields| PathBuf::from(fields[1])).collect();
    let mut found = Vec::new();
    while let Some(directory) = queue.pop() {
        // Others may remove theirs meanwhile.
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path());
            }
            queue.push(entry.path());
        }
    }
    found
}

/// The network interfaces in this thread's network namespace.
pub fn interfaces() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").expect("/proc is mounted");
    text.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

/// Children of a process, theirs, and so on.
pub fn descendants(root: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut queue = vec![root];
    while let Some(pid) = queue.pop() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = children.split_whitespace().filter_map(|word| word.parse().ok());
            queue.extend(children.filter(|&child| found.insert(child)));
        }
    }
    found
}

/// Waits for adopted processes that have ended.
fn reap(known: &BTreeSet<u32>) {
    for pid in descendants(std::process::id()).difference(known) {
        let _ = waitpid(nix::unistd::Pid::from_raw(*pid as i32), Some(WaitPidFlag::WNOHANG));
    }
}

fn describe(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
    format!("{pid} {state} {}", String::from_utf8_lossy(&words).replace('\0', " "))
}
