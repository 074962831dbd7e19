//! What is kept of a container under `--root`: one directory a container.
//!
//! ```text
//! ROOT/ID/              made with mkdir(2), which claims the ID; flock(2) on it is the container's lock, held while the
//!                       container is made, changed or removed, not while it runs
//! ROOT/ID/state.json    replaced by rename(2), so that a reader sees the old or the new one
//! ROOT/ID/control.sock  the sentry's control socket
//! ```

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use oci_spec::runtime::{ContainerState, StateBuilder};
use serde::{Deserialize, Serialize};

use super::error::{Context, Error, Result};

/// A host process, told apart from a later one with the same number by when it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProcess {
    /// Its process number.
    pub pid: i32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/PID/stat`, `proc_pid_stat(5)`.
    pub start_time: u64,
}

impl HostProcess {
    /// The running process `pid`.
    pub fn of(pid: i32) -> Option<HostProcess> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold spaces and parentheses itself: count fields behind its end.
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        let state = fields.next()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        (state != "Z" && state != "X").then_some(HostProcess { pid, start_time })
    }

    /// Whether it still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        HostProcess::of(self.pid) == Some(*self)
    }
}

/// The content of `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The container's name.
    pub id: String,
    /// `ociVersion` of its specification.
    pub oci_version: String,
    /// How far it has come, as of the last command that changed it. See [`Record::status`].
    pub status: ContainerState,
    /// Its bundle's directory.
    pub bundle: PathBuf,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Who made it: a user number.
    pub owner: u32,
    /// The sentry.
    pub sentry: Option<HostProcess>,
    /// The gofer.
    pub gofer: Option<HostProcess>,
    /// Annotations of its specification.
    pub annotations: std::collections::HashMap<String, String>,
}

impl Record {
    /// The status as it is now: a container whose sentry is gone is stopped, whatever the file says.
    pub fn status(&self) -> ContainerState {
        match (self.status, self.sentry) {
            (ContainerState::Stopped, _) => ContainerState::Stopped,
            (_, Some(sentry)) if !sentry.is_alive() => ContainerState::Stopped,
            (status, _) => status,
        }
    }

    /// The OCI state document, <https://github.com/opencontainers/runtime-spec/blob/main/runtime.md#state>. The process
    /// number is the sentry's, as no process of the container exists on the host.
    pub fn oci(&self) -> Result<oci_spec::runtime::State> {
        let status = self.status();
        let mut state = StateBuilder::default()
            .version(self.oci_version.clone())
            .id(self.id.clone())
            .status(status)
            .bundle(self.bundle.clone());
        if let Some(sentry) = self.sentry.filter(|_| status != ContainerState::Stopped) {
            state = state.pid(sentry.pid);
        }
        if !self.annotations.is_empty() {
            state = state.annotations(self.annotations.clone());
        }
        state.build().map_err(|error| Error::Usage(error.to_string()))
    }
}

/// The state directory of one container, locked at first: nobody else changes it until [`StateDir::unlock`].
pub struct StateDir {
    path: PathBuf,
    /// The open directory.
    directory: File,
    /// The lock on it.
    lock: Option<Flock<File>>,
}

impl StateDir {
    /// Claims `id` under `root`, which is made if need be.
    pub fn create(root: &Path, id: &str) -> Result<StateDir> {
        check_id(id)?;
        DirBuilder::new().recursive(true).mode(0o711).create(root).doing(|| format!("make {}", root.display()))?;
        let path = root.join(id);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Exists(id.into())),
            Err(source) => return Err(Error::Io { doing: format!("make {}", path.display()), source }),
        }
        StateDir::lock(path, id)
    }

    /// The directory of an existing container, once its lock is free.
    pub fn open(root: &Path, id: &str) -> Result<StateDir> {
        check_id(id)?;
        StateDir::lock(root.join(id), id)
    }

    fn lock(path: PathBuf, id: &str) -> Result<StateDir> {
        let directory = File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound(id.to_owned()),
            _ => Error::Io { doing: format!("open {}", path.display()), source },
        })?;
        let mut state = StateDir { path, directory, lock: None };
        if state.relock()? { Ok(state) } else { Err(Error::NotFound(id.to_owned())) }
    }

    /// Lets others change and remove the container. It is still removed by [`StateDir::remove`] if it is there then.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    /// Waits for the lock. False when the directory has been removed by then, and maybe another made by its name.
    fn relock(&mut self) -> Result<bool> {
        let doing = || format!("lock {}", self.path.display());
        if self.lock.is_none() {
            // The same open file, so the lock is that of `directory` too.
            let directory = self.directory.try_clone().doing(doing)?;
            let lock = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| io::Error::from(error));
            self.lock = Some(lock.doing(doing)?);
        }
        let ours = self.directory.metadata().doing(doing)?;
        Ok(fs::metadata(&self.path).is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path to `name` in this directory that is short whatever `--root` is: socket addresses hold 108 bytes.
    pub fn short_path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()).into()
    }

    /// Writes `state.json`.
    pub fn save(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::from).doing(|| "encode the state")?;
        let file = self.path.join("state.json");
        let new = self.path.join("state.json.new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &file)).doing(|| format!("write {}", file.display()))
    }

    /// Reads `state.json`.
    pub fn load(&self) -> Result<Record> {
        read(&self.path)
    }

    /// Removes the directory, and with it the container's name, unless somebody else has.
    pub fn remove(mut self) -> Result<()> {
        if !self.relock()? {
            return Ok(());
        }
        fs::remove_dir_all(&self.path).doing(|| format!("remove {}", self.path.display()))
    }
}

/// Reads a container's record without its lock: the file is always whole.
pub fn load(root: &Path, id: &str) -> Result<Record> {
    check_id(id)?;
    let path = root.join(id);
    if !path.is_dir() {
        return Err(Error::NotFound(id.to_owned()));
    }
    read(&path)
}

fn read(directory: &Path) -> Result<Record> {
    let file = directory.join("state.json");
    let text = fs::read(&file).doing(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).map_err(io::Error::from).doing(|| format!("read {}", file.display()))
}

/// All containers under `root`, by name. One whose record cannot be read (it is just being made or removed) is left out.
pub fn list(root: &Path) -> Result<Vec<Record>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(|| format!("read {}", root.display()))?,
    };
    let mut records: Vec<Record> = entries.flatten().filter_map(|entry| read(&entry.path()).ok()).collect();
    records.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(records)
}

/// Container names become file names: letters, digits and `_+-.`, at most 255, not starting with a dot or dash.
pub fn check_id(id: &str) -> Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id.len() > 255 || !id.chars().all(legal) || id.starts_with(['.', '-']) {
        return Err(Error::Usage(format!(
            "invalid container id {id:?}: 1 to 255 letters, digits and any of _+-. with neither a dot nor a dash first"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, sentry: Option<HostProcess>) -> Record {
        Record {
            id: id.into(),
            oci_version: "1.0.2".into(),
            status: ContainerState::Running,
            bundle: "/b".into(),
            created: "2024-02-29T23:59:59.000001Z".into(),
            owner: 0,
            sentry,
            gofer: None,
            annotations: Default::default(),
        }
    }

    #[test]
    fn a_name_is_claimed_once() {
        let root = tempfile::tempdir().unwrap();
        let claimed = StateDir::create(root.path(), "a").unwrap();
        assert!(matches!(StateDir::create(root.path(), "a"), Err(Error::Exists(_))));
        claimed.remove().unwrap();
        StateDir::create(root.path(), "a").unwrap();
    }

    #[test]
    fn the_lock_excludes_and_a_removed_container_is_not_found() {
        let root = tempfile::tempdir().unwrap();
        let held = StateDir::create(root.path(), "a").unwrap();
        let path = root.path().to_owned();
        let (tried, waiting) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            let directory = File::open(path.join("a")).unwrap();
            let free = Flock::lock(directory, FlockArg::LockExclusiveNonblock).is_ok();
            tried.send(free).unwrap();
            StateDir::open(&path, "a").map(|_| ())
        });
        assert!(!waiting.recv().unwrap(), "locked twice");
        held.remove().unwrap();
        assert!(matches!(other.join().unwrap(), Err(Error::NotFound(_))));
    }

    #[test]
    fn an_unlocked_container_can_be_removed_and_its_name_taken() {
        let root = tempfile::tempdir().unwrap();
        let mut running = StateDir::create(root.path(), "a").unwrap();
        running.unlock();
        StateDir::open(root.path(), "a").unwrap().remove().unwrap();
        let _other = StateDir::create(root.path(), "a").unwrap();
        running.remove().unwrap();
        assert!(root.path().join("a").exists(), "the other's was removed");
    }

    #[test]
    fn a_reader_never_sees_half_a_record() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::create(root.path(), "a").unwrap();
        directory.save(&record("a", None)).unwrap();
        std::thread::scope(|scope| {
            let path = root.path();
            let reader = scope.spawn(move || (0..500).all(|_| load(path, "a").is_ok()));
            for n in 0..200 {
                let mut longer = record("a", None);
                longer.bundle = "/b".repeat(n * 10 + 1).into();
                directory.save(&longer).unwrap();
            }
            assert!(reader.join().unwrap());
        });
        assert_eq!(list(root.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_dead_sentry_means_stopped() {
        let me = HostProcess::of(std::process::id() as i32).unwrap();
        assert_eq!(record("a", Some(me)).status(), ContainerState::Running);
        let earlier = HostProcess { start_time: me.start_time - 1, ..me };
        assert_eq!(record("a", Some(earlier)).status(), ContainerState::Stopped);
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let gone = HostProcess { pid: child.id() as i32, start_time: 1 };
        child.wait().unwrap();
        assert_eq!(record("a", Some(gone)).status(), ContainerState::Stopped);
        assert_eq!(record("a", Some(gone)).oci().unwrap().pid(), &None);
    }

    #[test]
    fn names_cannot_leave_the_root() {
        for bad in ["", ".", "..", "a/b", "/a", "-x", "a b", "a\n", &"x".repeat(256)] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "web-1.2_x+y", &"x".repeat(255)] {
            check_id(good).unwrap();
        }
    }
}
