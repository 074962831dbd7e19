//! What containers might leave behind: processes, mounts, namespaces, links, cgroups, files of state.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::engine::{Engine, until};

/// What there is at a time, one line each.
#[derive(Debug, PartialEq)]
pub struct Census(BTreeSet<String>);

impl Census {
    /// Counts.
    pub fn take(engine: &Engine) -> Census {
        let mut found = BTreeSet::new();
        for (pid, line) in engine.processes() {
            found.insert(format!("process {pid} {line}"));
        }
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", engine.init())).expect("/proc is mounted");
        for line in mounts.lines() {
            found.insert(format!("mount {}", line.split(' ').nth(4).unwrap_or_default()));
        }
        let mut links = engine.command("ip");
        links.args(["-oneline", "link"]);
        for line in engine.finish(links).success().lines() {
            found.insert(format!("link {}", line.split(' ').nth(1).unwrap_or_default()));
        }
        found.extend(engine.cgroups().iter().map(|path| format!("cgroup {}", path.display())));
        names(&engine.path("/run"), &mut found);
        Census(found)
    }

    /// Fails unless there is again no more than at the time of this census.
    #[track_caller]
    pub fn nothing_is_left(&self, engine: &Engine) {
        let mut left = Vec::new();
        // Daemons clean up after they have answered.
        let gone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("nothing is left", || {
                let now = Census::take(engine);
                left = now.0.difference(&self.0).cloned().collect();
                left.is_empty().then_some(())
            });
        }));
        assert!(gone.is_ok(), "left behind: {left:#?}\n{}", engine.log("dockerd.log"));
    }
}

/// Files of the daemons' and the runtimes' state, without images and logs.
fn names(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let image = ["data", "content", "runsc"].iter().any(|skip| name == *skip && directory.ends_with("engine"));
        let log = name.to_string_lossy().ends_with(".log");
        // Docker removes the files that namespaces were mounted on once a minute, containerd never the sockets of shims that
        // were killed.
        let later = ["exec/netns", "containerd/s"].iter().any(|end| directory.ends_with(end));
        // What is mounted there is no file of state.
        if image || log || later || name == "rootfs" {
            continue;
        }
        found.insert(format!("file {}", path.display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names(&path, found);
        }
    }
}
