//! Removing a container's cgroups.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Cgroup;
use super::files::Dir;
use super::systemd::{Manager, Unit};
use crate::container::error::{Context, Result};

impl Cgroup {
    /// Kills what is left in it and removes the directories that were made for it, or has systemd do so. One that is gone is
    /// fine.
    pub fn destroy(&self) -> Result<()> {
        let leaves: Vec<&PathBuf> = self.directories().collect();
        if let Some(unit) = &self.unit {
            self.stop(unit)?;
        }
        let mut outcome = Ok(());
        for path in self.made.iter().rev() {
            let removed = if leaves.contains(&path) { remove_leaf(path) } else { remove(path) };
            match removed {
                Ok(()) => {}
                // Above the container's own, others may have theirs.
                Err(error) if !leaves.contains(&path) && is_busy(&error) => {}
                Err(error) => {
                    outcome = outcome.and(Err(error).doing(|| format!("remove the cgroup {}", path.display())))
                }
            }
        }
        for path in self.planned.iter().rev() {
            // Another's, if it is in use.
            match remove(path) {
                Err(error) if !is_busy(&error) => log::warn!("remove the cgroup {}: {error}", path.display()),
                _ => {}
            }
        }
        outcome
    }

    /// Stops the unit. Its processes go first: systemd would ask them to end, and give them time. Without systemd its
    /// cgroups are removed as any others.
    fn stop(&self, unit: &Unit) -> Result<()> {
        if unit.made {
            self.directories().for_each(|leaf| kill_all(Dir(leaf)));
        }
        let problem = match Manager::connect() {
            Ok(mut manager) => return manager.stop(unit),
            Err(problem) => problem,
        };
        log::warn!("{problem}");
        for leaf in self.directories() {
            remove_leaf(leaf).doing(|| format!("remove the cgroup {}", leaf.display()))?;
        }
        Ok(())
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Removes a cgroup with whatever processes it still has. They are gone a moment after they were killed.
fn remove_leaf(path: &Path) -> io::Result<()> {
    /// The longest that it may take: 1 ms, 2 ms, … 1 s.
    const TRIES: u32 = 11;
    for attempt in 0..TRIES {
        match remove(path) {
            Err(error) if is_busy(&error) => {}
            done => return done,
        }
        kill_all(Dir(path));
        std::thread::sleep(Duration::from_millis(1 << attempt));
    }
    remove(path)
}

fn kill_all(dir: Dir<'_>) {
    if !dir.has("cgroup.kill") || dir.write("cgroup.kill", 1).is_err() {
        for pid in dir.processes().unwrap_or_default() {
            // SAFETY: no memory is passed. The process is in the container's cgroup.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}
