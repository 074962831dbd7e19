//! Running a program in a sandbox, with a deadline and with the sandbox's logs at hand when something goes wrong.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Cable, Network, Runtime};

/// The longest that a program may take unless it says otherwise.
const DEADLINE: Duration = Duration::from_secs(90);

/// The container's name: every sandbox has a state directory to itself.
const ID: &str = "c1";

/// A sandbox to be started.
pub struct Sandbox<'a> {
    runtime: Runtime,
    directory: TempDir,
    args: Vec<String>,
    root: PathBuf,
    env: Vec<String>,
    mounts: Vec<Value>,
    changes: Vec<(String, Value)>,
    network: Option<&'a Network>,
    namespace: Option<PathBuf>,
    deadline: Duration,
    quiet: bool,
}

impl<'a> Sandbox<'a> {
    /// Will run a program over the host's files, whose changes are discarded.
    pub fn new<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Sandbox<'a> {
        Sandbox {
            runtime: Runtime::under_test(),
            directory: tempfile::tempdir().expect("a temporary directory"),
            args: args.into_iter().map(Into::into).collect(),
            root: "/".into(),
            env: vec![
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
                "HOME=/root".into(),
                "LC_ALL=C.UTF-8".into(),
            ],
            mounts: Vec::new(),
            changes: Vec::new(),
            network: None,
            namespace: None,
            deadline: DEADLINE,
            quiet: false,
        }
    }

    /// In this runtime and not in the one that tests test.
    pub fn runtime(mut self, runtime: &Runtime) -> Self {
        self.runtime = runtime.clone();
        self
    }

    /// Over this root file system.
    pub fn root(mut self, root: &Path) -> Self {
        self.root = root.to_owned();
        self
    }

    /// With this network; otherwise with loopback alone.
    pub fn network(mut self, network: &'a Network) -> Self {
        self.network = Some(network);
        self
    }

    /// With what is in this network namespace.
    pub fn namespace(mut self, path: PathBuf) -> Self {
        self.namespace = Some(path);
        self
    }

    /// With a file or directory of the host mounted read-only.
    pub fn bind(mut self, source: &Path, destination: &str) -> Self {
        self.mounts.push(json!({
            "destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"],
        }));
        self
    }

    /// With a mount of the specification.
    pub fn mount(mut self, mount: Value) -> Self {
        self.mounts.push(mount);
        self
    }

    /// With another value in the specification, at a JSON pointer: `/linux/sysctl`.
    pub fn with(mut self, at: &str, value: Value) -> Self {
        self.changes.push((at.to_owned(), value));
        self
    }

    /// With this much time.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Without logs, whose cost a benchmark must not measure.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// The directory that is its working directory; files for the program go here.
    pub fn work(&self) -> PathBuf {
        let work = self.directory.path().join("work");
        fs::create_dir_all(&work).expect("a directory");
        work
    }

    /// Where the state of its containers is kept.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The specification that will be run.
    pub fn config(&self) -> Value {
        const CAPABILITIES: &[&str] = &[
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_FSETID",
            "CAP_KILL",
            "CAP_MKNOD",
            "CAP_NET_BIND_SERVICE",
            "CAP_NET_RAW",
            "CAP_SETGID",
            "CAP_SETPCAP",
            "CAP_SETUID",
            "CAP_SYS_CHROOT",
        ];
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
                   "options": ["nosuid", "noexec", "nodev", "ro"]}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts"}),
            json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}),
        ];
        mounts.extend(self.mounts.iter().cloned());
        let namespace = self.network.map(Network::bundle_namespace).or_else(|| self.namespace.clone());
        let network = match namespace {
            Some(path) => json!({"type": "network", "path": path}),
            None => json!({"type": "network"}),
        };
        let cwd = if self.root == Path::new("/") { self.work() } else { "/".into() };
        let mut config = json!({
            "ociVersion": "1.0.0",
            "hostname": "sandbox",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": self.args,
                "env": self.env,
                "cwd": cwd,
                "capabilities": {
                    "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
                },
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 4096, "hard": 65536}],
            },
            "root": {"path": self.root},
            "mounts": mounts,
            "linux": {"namespaces": [
                {"type": "pid"}, network, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
            ]},
        });
        for (at, value) in &self.changes {
            let (parent, name) = at.rsplit_once('/').expect("a JSON pointer");
            config.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}"))[name] = value.clone();
        }
        config
    }

    /// Runs it to its end, which must come in time.
    pub fn run(self) -> Output {
        let deadline = self.deadline;
        self.start().wait(deadline)
    }

    /// Starts it.
    pub fn start(self) -> Running {
        let bundle = self.directory.path().join("bundle");
        fs::create_dir_all(&bundle).expect("a directory");
        fs::write(bundle.join("config.json"), self.config().to_string()).expect("a file");
        let mut command = self.command();
        match self.network {
            Some(network) => command.args(network.flags()),
            None if self.namespace.is_some() => command.arg("--network=sandbox"),
            None => command.arg("--network=none"),
        };
        if self.runtime.cable == Cable::Tap && !self.quiet {
            command.arg("--debug").arg(format!("--debug-log={}/", self.log().display()));
        }
        command.arg("run").arg("--bundle").arg(&bundle).arg(ID);
        self.spawn(command)
    }

    /// The runtime, with its state in this sandbox's directory.
    pub fn command(&self) -> Command {
        self.runtime.command(&self.state())
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn spawn(self, mut command: Command) -> Running {
        let file = |name| File::create_new(self.directory.path().join(name)).expect("a file");
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = Pid::from_raw(child.id() as i32);
        Running { pid, child: Some(child), runtime: self.runtime, directory: self.directory }
    }
}

/// A sandbox that runs. It is ended when dropped.
pub struct Running {
    pid: Pid,
    child: Option<Child>,
    runtime: Runtime,
    directory: TempDir,
}

impl Running {
    /// Waits for its end. After the deadline it is killed and the test fails.
    pub fn wait(mut self, deadline: Duration) -> Output {
        match self.end_within(deadline) {
            (status, true) => self.output(status),
            (_, false) => panic!("no end within {deadline:?}\n{}", self.report()),
        }
    }

    /// Waits for its end. After the deadline it is killed, which is an end too.
    pub fn wait_or_kill(mut self, deadline: Duration) -> Output {
        let (status, _) = self.end_within(deadline);
        self.output(status)
    }

    fn output(&self, status: ExitStatus) -> Output {
        let text = |name: &str| {
            let bytes = fs::read(self.directory.path().join(name)).expect("it was made at the start");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Output { status, stdout: text("stdout"), stderr: text("stderr"), report: self.report() }
    }

    /// Sends a signal to the command that runs the container, which passes it on.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("it has not been waited for");
    }

    /// The file that its standard output goes to.
    pub fn printed(&self) -> PathBuf {
        self.directory.path().join("stdout")
    }

    /// Repeats `attempt` until it gives a value. Fails the test when the container ends first, or after the deadline.
    pub fn until<T>(&mut self, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
        for _ in 0..DEADLINE.as_millis() / 20 {
            if let Some(value) = attempt() {
                return value;
            }
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                panic!("{what}: the container has ended: {status}\n{}", self.report());
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("{what}: not within {DEADLINE:?}\n{}", self.report());
    }

    /// Gives another command about it to the runtime: `args` and the container's name.
    pub fn command(&self, args: &[&str]) -> std::process::Output {
        self.about(args).output().expect("the runtime starts")
    }

    /// Such a command, to be started.
    pub fn about(&self, args: &[&str]) -> Command {
        let mut command = self.runtime.plain();
        command.arg("--root").arg(self.directory.path().join("state")).args(args).arg(ID);
        command
    }

    /// The process number of the command that runs it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, and whether it did so in time and was not killed.
    fn end_within(&mut self, deadline: Duration) -> (ExitStatus, bool) {
        let mut child = self.child.take().expect("it is waited for once");
        let (sender, receiver) = mpsc::channel();
        let waiter = thread::spawn(move || {
            let status = child.wait().expect("a child can be waited for");
            // Nobody listens any more after the deadline.
            let _ = sender.send(());
            status
        });
        let in_time = receiver.recv_timeout(deadline).is_ok();
        if !in_time {
            // It is still a child of this process: the waiter has not come back.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        (waiter.join().expect("a child can be waited for"), in_time)
    }

    /// What it has printed, and the ends of the sandbox's logs.
    pub fn report(&self) -> String {
        let mut report = String::new();
        let log = fs::read_dir(self.directory.path().join("log")).into_iter().flatten().flatten();
        let printed = ["stdout", "stderr"].map(|name| self.directory.path().join(name));
        for path in printed.into_iter().chain(log.map(|entry| entry.path())) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            report.push_str(&format!("--- {name}\n{}\n", tail(&path, 4000)));
        }
        report
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(Ok(None)) = self.child.as_mut().map(Child::try_wait) {
            let _ = kill(self.pid, Signal::SIGTERM);
            self.end_within(Duration::from_secs(5));
        }
        let state = self.directory.path().join("state");
        if fs::read_dir(&state).map_or(true, |mut entries| entries.next().is_none()) {
            return;
        }
        // Its command was killed. A runtime may wait for processes that this one has adopted and not waited for yet, so the
        // deletion is given a few seconds.
        let mut delete = self.runtime.plain();
        delete.arg("--root").arg(state).args(["delete", "--force", ID]).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = delete.spawn() else { return };
        self.pid = Pid::from_raw(child.id() as i32);
        self.child = Some(child);
        self.end_within(Duration::from_secs(5));
    }
}

/// How a program in a sandbox ended.
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    report: String,
}

impl Output {
    /// Asserts that the program was successful; returns what it printed.
    #[track_caller]
    pub fn success(&self) -> &str {
        assert!(self.status.success(), "{}\n{}", self.status, self.report);
        &self.stdout
    }

    /// The exit status as a shell has it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Everything printed and logged.
    pub fn report(&self) -> &str {
        &self.report
    }
}

/// The last `most` bytes of a file.
fn tail(path: &Path, most: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(std::io::SeekFrom::Start(length.saturating_sub(most)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_or_else(|error| error.to_string(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}
