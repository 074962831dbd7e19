//! A container that runs on its own, to do things to.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::common::{Runtime, Sandbox};

/// The container's name: each has a state directory to itself.
pub const ID: &str = "c1";

/// The longest that anything may take.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A container. Deleted when dropped.
pub struct Container {
    runtime: Runtime,
    directory: TempDir,
}

impl Container {
    /// One whose first process does nothing.
    pub fn idle() -> Container {
        let container = Container::new();
        let output = container.run(["sleep", "1000"], |_| {}, &[]);
        assert!(output.status.success(), "{output:?}");
        container
    }

    /// One that is to be [run](Container::run).
    pub fn new() -> Container {
        // Processes that a command leaves behind become children of this one, as of containerd's shim.
        nix::sys::prctl::set_child_subreaper(true).expect("Linux 3.4");
        Container { runtime: Runtime::under_test(), directory: tempfile::tempdir().expect("a temporary directory") }
    }

    /// Runs it detached with this program, after a change of its specification.
    pub fn run<const N: usize>(&self, args: [&str; N], change: impl FnOnce(&mut Value), flags: &[&str]) -> Output {
        let mut config = Sandbox::new(args).config();
        config["process"]["cwd"] = json!("/");
        change(&mut config);
        let bundle = self.path("bundle");
        fs::create_dir_all(&bundle).expect("a directory");
        fs::write(bundle.join("config.json"), config.to_string()).expect("a file");
        let mut command = self.command("run");
        command.args(["--detach", "--bundle"]).arg(&bundle).args(flags).arg(ID);
        // What is left running must not hold on to the test's pipes.
        let errors = self.path("errors");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors).expect("a file"));
        let status = command.status().expect("timeout(1) is installed");
        Output { status, stdout: Vec::new(), stderr: fs::read(errors).expect("it was made above") }
    }

    /// A file in the container's directory on the host.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The runtime with a command, under a deadline.
    pub fn command(&self, word: &str) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "60"]).arg(&self.runtime.program).arg("--root").arg(self.path("state"));
        command.args(&self.runtime.flags).args(["--network=none", word]).stdin(Stdio::null());
        command
    }

    /// Does something with the container that must succeed; what was printed.
    #[track_caller]
    pub fn success(&self, word: &str, flags: &[&str]) -> String {
        let output = self.command(word).args(flags).arg(ID).output().expect("timeout(1) is installed");
        assert!(output.status.success(), "{word} {flags:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a program in it.
    pub fn exec<S: AsRef<OsStr>>(&self, flags: &[S], program: &[&str]) -> Output {
        self.command("exec").args(flags).arg(ID).args(program).output().expect("timeout(1) is installed")
    }

    /// What a program prints that is run in it and must succeed.
    #[track_caller]
    pub fn prints(&self, flags: &[&str], program: &[&str]) -> String {
        let output = self.exec(flags, program);
        assert!(output.status.success(), "{flags:?} {program:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Leaves a program running in it; the stand-in.
    #[track_caller]
    pub fn detached(&self, flags: &[&str], program: &[&str]) -> Pid {
        let file = self.path("pid");
        let path = file.to_str().expect("UTF-8");
        let mut command = self.command("exec");
        command.args(["--detach", "--pid-file", path]).args(flags).arg(ID).args(program);
        let status = command.stdout(Stdio::null()).status().expect("timeout(1) is installed");
        assert!(status.success(), "{flags:?} {program:?}: {status}");
        self.read_pid("pid")
    }

    /// The number in a file.
    pub fn read_pid(&self, name: &str) -> Pid {
        let text = fs::read_to_string(self.path(name)).expect("the command has written it");
        Pid::from_raw(text.parse().expect("a number"))
    }

    /// Whether a process of the container has these arguments.
    pub fn runs(&self, arguments: &str) -> bool {
        self.success("ps", &[]).lines().any(|line| line.ends_with(arguments))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.command("delete").args(["--force", ID]).stderr(Stdio::null()).status();
    }
}

/// What a shell has as the status of an adopted process.
pub fn status_of(pid: Pid) -> i32 {
    match waitpid(pid, None).expect("orphans are adopted") {
        WaitStatus::Exited(_, status) => status,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        other => panic!("{other:?}"),
    }
}

/// Repeats `attempt` until it holds.
#[track_caller]
pub fn until(what: &str, mut attempt: impl FnMut() -> bool) {
    let start = Instant::now();
    while !attempt() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}
