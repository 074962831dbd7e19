//! What is kept of a container under `--root`: one directory a container.
//!
//! ```text
//! ROOT/ID/              comes with its content, by rename(2), which claims the ID; flock(2) on it is the container's
//!                       lock, held while the container is made, changed or removed, not while it runs
//! ROOT/ID/state.json    replaced by rename(2), so that a reader sees the old or the new one
//! ROOT/ID/spec.json     its specification, as checked
//! ROOT/ID/exit          how its first process ended: written by the sentry, over blanks, as the disk may be full by then
//! ROOT/ID/control.sock  the sentry's control socket
//! ROOT/.new-…, .old-…   directories that are just being made or removed, or were when a command was killed
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::control::{Client, SOCKET};
use super::error::{Context, Error, Result};

/// The file that has the exit status.
const EXIT: &str = "exit";

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
    /// The container whose sandbox it is in; its own when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// For a container in the sandbox of another: the process that stands for its first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stand_in: Option<HostProcess>,
    /// Whether the interfaces in the sentry's network namespace become the sandbox's when it is started.
    #[serde(default)]
    pub takes_interfaces: bool,
    /// Whether it was made for the other containers of its sandbox, and goes with the last of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub infra: bool,
    /// Annotations of its specification.
    pub annotations: BTreeMap<String, String>,
    /// Its cgroups on the host.
    #[serde(default)]
    pub cgroup: Cgroup,
}

impl Record {
    /// The process on the host that stands for the container's first one, as of when it was made: the sentry, or the
    /// stand-in of a container in the sandbox of another, as soon as there is one.
    pub fn process(&self) -> Option<HostProcess> {
        self.stand_in.or(self.sentry)
    }

    /// The status as it is now, as far as processes tell: a container whose process is gone is stopped, whatever the file
    /// says.
    pub fn status(&self) -> Status {
        match (self.status, self.process()) {
            (Status::Stopped, _) => Status::Stopped,
            (_, Some(process)) if !process.is_alive() => Status::Stopped,
            (status, _) => status,
        }
    }

    /// The state document that `state` prints. The process number is the sentry's, as no process of the
    /// container exists on the host.
    pub fn document(&self) -> Document {
        let status = self.status();
        Document {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            pid: self.process().filter(|_| status != Status::Stopped).map_or(0, |process| process.pid),
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
    /// Claims the record's name under `root`, which is made if need be. Commands that were killed may have left something
    /// there; what nobody works on is removed.
    pub fn create(root: &Path, record: &Record) -> Result<StateDir> {
        check_id(&record.id)?;
        DirBuilder::new().recursive(true).mode(0o711).create(root).doing(|| format!("make {}", root.display()))?;
        sweep(root);
        let path = root.join(&record.id);
        loop {
            let new = beside(root, ".new");
            let doing = || format!("make {}", path.display());
            DirBuilder::new().mode(0o700).create(&new).doing(doing)?;
            // Another command may sweep it away until it is locked.
            let mut state = match StateDir::at(new.clone()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                state => state.doing(doing)?,
            };
            if !state.relock()? {
                continue;
            }
            if let Err(error) = state.save(record) {
                state.remove()?;
                return Err(error);
            }
            return match renameat2(AT_FDCWD, &new, AT_FDCWD, &path, RenameFlags::RENAME_NOREPLACE) {
                Ok(()) => {
                    state.path = path;
                    Ok(state)
                }
                Err(error) => {
                    state.remove()?;
                    match error {
                        nix::errno::Errno::EEXIST => Err(Error::Exists(record.id.clone())),
                        error => Err(io::Error::from(error)).doing(doing),
                    }
                }
            };
        }
    }

    /// The directory of an existing container, once its lock is free.
    pub fn open(root: &Path, id: &str) -> Result<StateDir> {
        check_id(id)?;
        StateDir::lock(root.join(id), id)
    }

    /// As [`StateDir::open`], unless somebody has the lock: `None` then.
    pub fn open_idle(root: &Path, id: &str) -> Result<Option<StateDir>> {
        let path = root.join(id);
        let doing = || format!("lock {}", path.display());
        let mut state = match StateDir::at(path.clone()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            state => state.doing(doing)?,
        };
        match Flock::lock(state.directory.try_clone().doing(doing)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => state.lock = Some(lock),
            Err(_) => return Ok(None),
        }
        Ok(state.is_named()?.then_some(state))
    }

    fn at(path: PathBuf) -> io::Result<StateDir> {
        Ok(StateDir { directory: File::open(&path)?, path, lock: None })
    }

    fn lock(path: PathBuf, id: &str) -> Result<StateDir> {
        let mut state = StateDir::at(path.clone()).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound(id.to_owned()),
            _ => Error::Io { doing: format!("open {}", path.display()), source },
        })?;
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
        self.is_named()
    }

    /// Whether the path still leads to this directory.
    fn is_named(&self) -> Result<bool> {
        let ours = self.directory.metadata().doing(|| format!("look at {}", self.path.display()))?;
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
        self.replace("state.json", record)
    }

    /// Writes `spec.json`.
    pub fn save_spec(&self, spec: &Spec) -> Result<()> {
        self.replace("spec.json", spec)
    }

    fn replace(&self, name: &str, content: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec_pretty(content).map_err(io::Error::from).doing(|| "encode the state")?;
        let (file, new) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &file));
        if written.is_err() {
            // The half of it takes room that may be needed.
            let _ = fs::remove_file(&new);
        }
        written.doing(|| format!("write {}", file.display()))
    }

    /// The specification, as it was checked when the container was made.
    pub fn spec(&self) -> Result<Spec> {
        read(&self.path, "spec.json")
    }

    /// Makes the file that the sentry writes the exit status to.
    pub fn make_exit(&self) -> Result<File> {
        let path = self.path.join(EXIT);
        let make = || {
            let file = File::create(&path)?;
            file.write_all_at(b"    ", 0)?;
            Ok::<File, io::Error>(file)
        };
        make().doing(|| format!("make {}", path.display()))
    }

    /// The processes that have the file of the exit status open for writing: the sentry, and stubs that were made with it.
    /// For when the record does not tell.
    pub fn users(&self) -> Result<Vec<HostProcess>> {
        let path = self.path.join(EXIT);
        let file = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            found => found.doing(|| format!("look at {}", path.display()))?,
        };
        let is_it = |open: &fs::DirEntry| {
            // The link's own mode tells how the file is open, `proc_pid_fd(5)`; through it is the file itself.
            let for_writing = open.path().symlink_metadata().is_ok_and(|link| link.mode() & 0o200 != 0);
            let is_file = |open: fs::Metadata| (open.dev(), open.ino()) == (file.dev(), file.ino());
            for_writing && fs::metadata(open.path()).is_ok_and(is_file)
        };
        let uses = |pid: &i32| {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            open.into_iter().any(|one| is_it(&one))
        };
        let all = fs::read_dir("/proc").doing(|| "read /proc")?.flatten();
        let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(numbers.filter(uses).filter_map(HostProcess::of).collect())
    }

    /// How the first process of a container ended, if that is known: its exit status, or 128 plus the signal that killed
    /// it.
    pub fn exit_status_in(root: &Path, id: &str) -> Option<i32> {
        fs::read_to_string(root.join(id).join(EXIT)).ok()?.trim().parse().ok()
    }

    /// Reads `state.json`.
    pub fn load(&self) -> Result<Record> {
        read(&self.path, "state.json")
    }

    /// Removes the directory, and with it the container's name, unless somebody else has.
    pub fn remove(mut self) -> Result<()> {
        if !self.relock()? {
            return Ok(());
        }
        let doing = || format!("remove {}", self.path.display());
        // In one step for whoever looks.
        let root = self.path.parent().unwrap_or(Path::new("."));
        let old = beside(root, ".old");
        fs::rename(&self.path, &old).and_then(|()| fs::remove_dir_all(&old)).doing(doing)
    }
}

/// A path in `root` that nobody else uses, and that is not a container's.
fn beside(root: &Path, kind: &str) -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    root.join(format!("{kind}-{}-{}", std::process::id(), now.as_nanos()))
}

/// Removes what commands that were killed have left half made or half removed.
fn sweep(root: &Path) {
    let names =
        fs::read_dir(root).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| name.starts_with(".new-") || name.starts_with(".old-")) {
        match StateDir::open_idle(root, &name) {
            Ok(Some(state)) => drop(fs::remove_dir_all(&state.path)),
            Ok(None) => {}
            Err(error) => log::warn!("{error}"),
        }
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
    read(&path, "state.json")
}

fn read<T: for<'de> Deserialize<'de>>(directory: &Path, name: &str) -> Result<T> {
    let file = directory.join(name);
    let text = fs::read(&file).doing(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).map_err(io::Error::from).doing(|| format!("read {}", file.display()))
}

/// The state directory of the first container of a container's sandbox, open.
pub fn sandbox_directory(root: &Path, record: &Record) -> Result<File> {
    let path = root.join(record.sandbox.as_ref().unwrap_or(&record.id));
    File::open(&path).doing(|| format!("open {}", path.display()))
}

/// A path to the control socket in such a directory, good while that is open: socket addresses hold 108 bytes.
pub fn socket_in(sandbox: &File) -> PathBuf {
    format!("/proc/self/fd/{}/{SOCKET}", sandbox.as_raw_fd()).into()
}

/// Connects to the sentry that a container runs in.
pub fn connect(root: &Path, record: &Record) -> Result<Client> {
    Client::connect(&sandbox_directory(root, record)?)
}

/// As [`connect`], and so long at most for that and for each answer.
pub fn connect_within(root: &Path, record: &Record, timeout: Duration) -> Result<Client> {
    let directory = sandbox_directory(root, record)?;
    Client::connect_within(&socket_in(&directory), timeout)
}

/// All containers under `root`, by name. One whose record cannot be read is left out, with a warning unless it is just
/// being removed.
pub fn list(root: &Path) -> Result<Vec<Record>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(|| format!("read {}", root.display()))?,
    };
    let named = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(|name| check_id(name).is_ok()));
    let record = |entry: fs::DirEntry| match read(&entry.path(), "state.json") {
        Ok(record) => Some(record),
        Err(error) => {
            if entry.path().is_dir() {
                log::warn!("{error}");
            }
            None
        }
    };
    let mut records: Vec<Record> = named.filter_map(record).collect();
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
            sandbox: None,
            stand_in: None,
            takes_interfaces: false,
            infra: false,
            annotations: Default::default(),
            cgroup: Default::default(),
        }
    }

    #[test]
    fn a_name_is_claimed_once() {
        let root = tempfile::tempdir().unwrap();
        let claimed = StateDir::create(root.path(), &record("a", None)).unwrap();
        assert!(matches!(StateDir::create(root.path(), &record("a", None)), Err(Error::Exists(_))));
        claimed.remove().unwrap();
        StateDir::create(root.path(), &record("a", None)).unwrap();
    }

    #[test]
    fn the_lock_excludes_and_a_removed_container_is_not_found() {
        let root = tempfile::tempdir().unwrap();
        let held = StateDir::create(root.path(), &record("a", None)).unwrap();
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
        let mut running = StateDir::create(root.path(), &record("a", None)).unwrap();
        running.unlock();
        StateDir::open(root.path(), "a").unwrap().remove().unwrap();
        let _other = StateDir::create(root.path(), &record("a", None)).unwrap();
        running.remove().unwrap();
        assert!(root.path().join("a").exists(), "the other's was removed");
    }

    #[test]
    fn a_reader_never_sees_half_a_record() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::create(root.path(), &record("a", None)).unwrap();
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
