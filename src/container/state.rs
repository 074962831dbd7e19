//! What is kept of a container under `--root`: one directory a container.
//!
//! ```text
//! ROOT/ID/              made with mkdir(2), which claims the ID; flock(2) on it is the container's lock, held while the
//!                       container is made, changed or removed, not while it runs
//! ROOT/ID/state.json    replaced by rename(2), so that a reader sees the old or the new one
//! ROOT/ID/control.sock  the sentry's control socket
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
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

/// How far a container has come: the OCI specification's statuses, and `paused` as all runtimes have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// A command is making it, or was killed while it did.
    Creating,
    /// Its program is loaded and has not begun.
    Created,
    /// It runs.
    Running,
    /// It is stopped by the runtime.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.pad(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
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
    pub status: Status,
    /// Its bundle's directory.
    pub bundle: PathBuf,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// The name of the user who made it, or the number when there is none.
    pub owner: String,
    /// The sentry.
    pub sentry: Option<HostProcess>,
    /// The gofer.
    pub gofer: Option<HostProcess>,
    /// Annotations of its specification.
    pub annotations: BTreeMap<String, String>,
    /// Its cgroups on the host.
    #[serde(default)]
    pub cgroup: Cgroup,
}

impl Record {
    /// The status as it is now: a container whose sentry is gone is stopped, whatever the file says.
    pub fn status(&self) -> Status {
        match (self.status, self.sentry) {
            (Status::Stopped, _) => Status::Stopped,
            (_, Some(sentry)) if !sentry.is_alive() => Status::Stopped,
            (status, _) => status,
        }
    }

    /// The state document that `state` prints and hooks get. The process number is the sentry's, as no process of the
    /// container exists on the host.
    pub fn document(&self) -> Document {
        let status = self.status();
        Document {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            pid: self.sentry.filter(|_| status != Status::Stopped).map_or(0, |sentry| sentry.pid),
            status,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.annotations.clone(),
            owner: self.owner.clone(),
        }
    }
}

/// The OCI state document, <https://github.com/opencontainers/runtime-spec/blob/main/runtime.md#state>, with what runc adds:
/// `rootfs`, `created` and `owner`; `pid` is 0 when there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// `ociVersion` of the specification.
    #[serde(rename = "ociVersion")]
    pub oci_version: String,
    /// The container's name.
    pub id: String,
    /// The process on the host that stands for the first one.
    pub pid: i32,
    /// How far it has come.
    pub status: Status,
    /// Its bundle's directory.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Those of the specification.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The name of the user who made it, or the number when there is none.
    pub owner: String,
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

impl AsFd for StateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
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
            status: Status::Running,
            bundle: "/b".into(),
            created: "2024-02-29T23:59:59.000001Z".into(),
            rootfs: "/b/rootfs".into(),
            owner: "root".into(),
            sentry,
            gofer: None,
            annotations: Default::default(),
            cgroup: Default::default(),
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
        assert_eq!(record("a", Some(me)).status(), Status::Running);
        let earlier = HostProcess { start_time: me.start_time - 1, ..me };
        assert_eq!(record("a", Some(earlier)).status(), Status::Stopped);
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let gone = HostProcess { pid: child.id() as i32, start_time: 1 };
        child.wait().unwrap();
        assert_eq!(record("a", Some(gone)).status(), Status::Stopped);
        assert_eq!(record("a", Some(gone)).document().pid, 0);
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
