//! A Docker of its own for a program that tests or measures: containerd and dockerd in namespaces of theirs.
//!
//! ```text
//!   this process ── pipe ──▶ sh, in a mount and a network namespace ── unshare ──▶ bash, process 1 of a PID namespace
//!                            (removes the cgroups at the end)                      containerd, dockerd, shims, containers
//! ```
//!
//! Nothing of the host's network, of its `/run` or of another Docker is seen or changed. Process 1 reads the pipe: when
//! this process ends, however it ends, process 1 does too, and Linux takes all others of the PID namespace with it, then
//! the mounts and the network. Only cgroups are the host's; they are removed by the shell that waits.

use std::collections::BTreeSet;
use std::env;
use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::common::leftovers::descendants;
use super::common::runtime::HIDE_NET;
use super::common::support::debian;
use super::common::{Cable, Runtime};

/// The image's name.
pub const IMAGE: &str = "debian-test";

/// Longest time for a command of the client, unless it says otherwise.
const DEADLINE: Duration = Duration::from_secs(60);

/// Counts the changes of what [`image_root`] makes: one that was kept from before is not taken for the present one.
const REVISION: u32 = 2;

/// What the image holds besides what these depend on.
const PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "curl",
    "dash",
    "findutils",
    "grep",
    "hostname",
    "iproute2",
    "iputils-ping",
    "libc-bin",
    "mount",
    "ncurses-base",
    "nginx",
    "procps",
    "python3-minimal",
    "sed",
    "util-linux",
];

/// The first shell: namespaces, file systems that hide the host's, cgroups if the machine has none mounted.
const OUTER: &str = r#"
set -eu
mount --make-rslave /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/engine/data /run/lock /etc/docker
mount -t tmpfs tmpfs /etc/docker
if ! grep -q ' - cgroup2\? ' /proc/self/mountinfo; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    if ! grep -q memory /sys/fs/cgroup/cgroup.controllers; then
        umount /sys/fs/cgroup
        mount -t tmpfs tmpfs /sys/fs/cgroup
        awk '$1 !~ /#/ && $4 == 1 { print $1 }' /proc/cgroups | while read -r name; do
            mkdir "/sys/fs/cgroup/$name"
            mount -t cgroup -o "$name" cgroup "/sys/fs/cgroup/$name"
        done
    fi
fi
ip link set lo up
unshare --fork --pid --mount-proc bash -c "$INNER" || true
# The processes are gone; what they were counted in may take a moment to notice.
for _ in $(seq 100); do
    find /sys/fs/cgroup -depth -type d -path "*/$GROUP*" -exec rmdir {} + 2>/dev/null || true
    [ -n "$(find /sys/fs/cgroup -type d -name "$GROUP" 2>/dev/null)" ] || break
    sleep 0.1
done
"#;

/// The second shell, process 1: the daemons when a line tells that their configuration is there, and waiting for the end of standard input.
/// Bash waits for whatever process it adopts. The runtime is started by containerd's children: with `HIDE_NET`, which is a
/// script, they have no `/proc/sys/net`, and dockerd has.
const INNER: &str = r#"
read -r _ || exit
# As on a host: what the daemon mounts is seen in the namespaces that are made from its own.
mount --make-rshared /
hide=()
[ -z "$HIDE_NET" ] || hide=(unshare --mount --propagation=slave sh -c "$HIDE_NET")
"${hide[@]}" containerd --config /dev/null --root /run/engine/content --state /run/engine/containerd \
    --address /run/engine/containerd.sock >/run/engine/containerd.log 2>&1 </dev/null &
dockerd --config-file /run/engine/daemon.json --containerd /run/engine/containerd.sock \
    -H unix:///run/docker.sock >/run/engine/dockerd.log 2>&1 </dev/null &
while read -r _; do :; done
"#;

/// The daemons of this process.
static ENGINE: LazyLock<RwLock<Engine>> = LazyLock::new(|| RwLock::new(Engine::start()));

/// They, shared with other tests.
pub fn engine() -> RwLockReadGuard<'static, Engine> {
    // A test that fails leaves the engine as usable as before.
    ENGINE.read().unwrap_or_else(|error| error.into_inner())
}

/// They, without any other test's containers: for counting what is left behind.
pub fn engine_alone() -> RwLockWriteGuard<'static, Engine> {
    ENGINE.write().unwrap_or_else(|error| error.into_inner())
}

/// containerd and dockerd.
pub struct Engine {
    /// Process 1 of their PID namespace, as the host counts.
    init: u32,
    /// What `docker run --runtime` is given.
    runtime: &'static str,
    /// The program of that runtime.
    program: PathBuf,
    /// The name of the cgroup above all containers.
    group: String,
    /// The image's root file system.
    root: PathBuf,
    shell: Child,
    /// When this is closed, everything ends.
    pipe: ChildStdin,
}

/// What a command has done.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    what: String,
    log: String,
}

impl Engine {
    /// Starts the daemons with the runtime that `ENGINE_RUNTIME` names: `runsc` (the default), this project's; or `runc`,
    /// which shows what a test expects is what Linux does. With `ENGINE_DEBUG=1` the runtime writes logs.
    fn start() -> Engine {
        let runtime = match env::var("ENGINE_RUNTIME").as_deref() {
            Err(_) | Ok("runsc") => "runsc",
            Ok("runc") => "runc",
            Ok(other) => panic!("ENGINE_RUNTIME={other}: runc or runsc"),
        };
        let debug = ["--debug", "--strace", "--debug-log=/run/engine/runsc/"];
        let flags = debug.iter().filter(|_| env::var_os("ENGINE_DEBUG").is_some()).map(|&flag| flag.to_owned());
        Engine::with(runtime, &Runtime { flags: flags.collect(), ..Runtime::ours() })
    }

    /// Starts the daemons with `runc`, or with another one under the name `runsc`, which gets its flags.
    pub fn with(runtime: &'static str, runsc: &Runtime) -> Engine {
        let root = image_root();
        let group = format!("runsc-engine-{}", std::process::id());
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--net", "sh", "-c", OUTER]).env("INNER", INNER).env("GROUP", &group);
        // Only gVisor needs that, as it needs another cable.
        shell.env("HIDE_NET", if runsc.cable == Cable::Veth { HIDE_NET } else { "" });
        shell.stdin(Stdio::piped()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        let mut shell = shell.spawn().expect("unshare");
        let pipe = shell.stdin.take().expect("it was asked for");
        let init = until("process 1 of the engine", || {
            let status = shell.try_wait().expect("a child");
            assert!(status.is_none(), "the engine's shell has ended: {status:?}");
            descendants(shell.id()).into_iter().find(|&pid| is_first(pid))
        });
        let program = if runtime == "runc" { on_path("runc") } else { runsc.program.clone() };
        let mut engine = Engine { init, runtime, program, group, root, shell, pipe };
        engine.configure(runsc);
        writeln!(engine.pipe, "go").expect("the shell reads");
        until("the daemon answers", || {
            let ended = engine.shell.try_wait().expect("a child");
            assert!(ended.is_none(), "the engine has ended: {ended:?}");
            let answer = engine.client().arg("version").output().expect("the client starts");
            if !answer.status.success() && !engine.has_process("dockerd") {
                panic!("the daemon has ended: {}", engine.log("dockerd.log"));
            }
            answer.status.success().then_some(())
        });
        engine.import();
        engine
    }

    /// Ends everything and waits until it is gone.
    pub fn end(mut self) {
        drop(self.pipe);
        self.shell.wait().expect("a child");
    }

    /// Writes the daemon's configuration; `runsc install` adds its runtime.
    fn configure(&self, runsc: &Runtime) {
        let file = "/run/engine/daemon.json";
        let configuration = json!({
            "data-root": "/run/engine/data",
            "exec-root": "/run/engine/exec",
            "pidfile": "/run/engine/docker.pid",
            "cgroup-parent": format!("/{}", self.group),
            "ipv6": true,
            "fixed-cidr-v6": "fd00:20::/64",
        });
        fs::write(self.path(file), configuration.to_string()).expect("a file");
        if !self.is_sandboxed() {
            // Docker brings it.
            return;
        }
        // It finds its own path by way of /proc.
        let mut install = self.command_among_processes(&runsc.program);
        install.arg("install").arg(format!("--config_file={file}")).arg("--runtime=runsc");
        if !runsc.flags.is_empty() {
            install.arg("--").args(&runsc.flags);
        }
        let output = install.output().expect("runsc starts");
        assert!(output.status.success(), "{install:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Makes the image of the root file system.
    fn import(&self) {
        let mut archive = Command::new("tar");
        archive.arg("-C").arg(&self.root).args(["--numeric-owner", "-c", "."]).stdout(Stdio::piped());
        let mut archive = archive.spawn().expect("tar");
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut import = self.client();
        import.args(["import", "--change", &format!("ENV {path}"), "--change", "CMD [\"bash\"]", "-", IMAGE]);
        import.stdin(archive.stdout.take().expect("it was asked for"));
        self.finish(import).success();
        assert!(archive.wait().expect("a child").success(), "tar");
    }

    /// Whether containers run in the kernel in user space.
    pub fn is_sandboxed(&self) -> bool {
        self.runtime != "runc"
    }

    /// What `docker run --runtime` is given.
    pub fn runtime(&self) -> &'static str {
        self.runtime
    }

    /// The runtime's program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The image's root file system on the host. It must not be changed.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Process 1 of the daemons' namespaces.
    pub fn init(&self) -> u32 {
        self.init
    }

    /// The name of the cgroup above all containers.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The host's name for a path among the daemons.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// A command in the mount and network namespaces of the daemons. It is replaced, not forked, so that signals reach it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init)).args(["--mount", "--net", "--"]).arg(program);
        command.current_dir("/").env("HOME", "/run/engine").env("DOCKER_HOST", "unix:///run/docker.sock");
        command
    }

    /// A command that sees the daemons' processes in `/proc`, too: a child of what is started here.
    pub fn command_among_processes(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.init)).args(["--mount", "--net", "--pid", "--"]).arg(program);
        command.current_dir("/");
        command
    }

    /// Docker's client: that which came with the daemon, rather than another one on `PATH`.
    pub fn client(&self) -> Command {
        static CLIENT: LazyLock<PathBuf> = LazyLock::new(|| {
            let daemon = on_path("dockerd");
            let beside = daemon.ancestors().skip(1).take(2).flat_map(|at| [at.join("docker"), at.join("bin/docker")]);
            beside.into_iter().find(|path| path.is_file()).unwrap_or_else(|| "docker".into())
        });
        self.command(&*CLIENT)
    }

    /// Runs a command with a deadline.
    #[track_caller]
    pub fn finish(&self, mut command: Command) -> Ran {
        let what = format!("{:?}", command.get_args().skip(3).collect::<Vec<_>>());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        self.finish_child(&what, child, DEADLINE)
    }

    /// Waits for a command whose output is piped; kills it and fails after the deadline.
    #[track_caller]
    pub fn finish_child(&self, what: &str, child: Child, deadline: Duration) -> Ran {
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        let (sender, receiver) = mpsc::channel();
        let waiter = thread::spawn(move || sender.send(child.wait_with_output()));
        let output = match receiver.recv_timeout(deadline) {
            Ok(output) => output.expect("a child can be waited for"),
            Err(_) => {
                // It has not been waited for: the waiter has not answered.
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                let output = receiver.recv().map(|output| format!("{output:?}"));
                panic!("{what}: no end within {deadline:?}: {output:?}\n{}", self.log("dockerd.log"));
            }
        };
        let _ = waiter.join();
        self.ran(what, output)
    }

    fn ran(&self, what: &str, output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            what: what.to_owned(),
            log: self.log("dockerd.log"),
        }
    }

    /// Runs a command of the client.
    #[track_caller]
    pub fn docker<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ran {
        let mut client = self.client();
        client.args(words).stdin(Stdio::null());
        self.finish(client)
    }

    /// `docker run` with the runtime under test: flags, then the command in the image.
    pub fn run_command(&self, flags: &[&str], words: &[&str]) -> Command {
        let mut client = self.client();
        client.args(["run", "--runtime", self.runtime]).args(flags).arg(IMAGE).args(words).stdin(Stdio::null());
        client
    }

    /// Runs a command in a container that is removed afterwards.
    #[track_caller]
    pub fn run(&self, flags: &[&str], words: &[&str]) -> Ran {
        let flags: Vec<&str> = ["--rm"].iter().chain(flags).copied().collect();
        self.finish(self.run_command(&flags, words))
    }

    /// Runs a shell script in a container that is removed afterwards; it must succeed.
    #[track_caller]
    pub fn script(&self, flags: &[&str], script: &str) -> String {
        self.run(flags, &["bash", "-c", script]).success().to_owned()
    }

    /// Starts a container that lasts until it is dropped.
    #[track_caller]
    pub fn start_container(&self, flags: &[&str], words: &[&str]) -> Container<'_> {
        let name = Container::fresh_name();
        let flags: Vec<&str> = ["-d", "--name", &name].iter().chain(flags).copied().collect();
        // Whatever comes of it is removed.
        let container = Container { engine: self, name: name.clone() };
        self.finish(self.run_command(&flags, words)).success();
        container
    }

    /// The processes of the daemons and of all containers: numbers as the host counts, and command lines.
    pub fn processes(&self) -> Vec<(u32, String)> {
        // An orphan becomes a child of process 1 or of its shim: the tree below process 1 is all of them.
        descendants(self.init).into_iter().map(|pid| (pid, command_line(pid))).collect()
    }

    /// Whether a process of this name runs.
    fn has_process(&self, name: &str) -> bool {
        self.processes().iter().any(|(_, line)| line.starts_with(name))
    }

    /// The directories of cgroups of all containers.
    pub fn cgroups(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.init)).expect("/proc is mounted");
        for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
            let point = line.split(' ').nth(4).unwrap_or_default();
            let mut queue = vec![self.path(point).join(&self.group)];
            while let Some(directory) = queue.pop() {
                for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        found.insert(entry.path());
                        queue.push(entry.path());
                    }
                }
            }
        }
        found
    }

    /// The end of a log of the daemons.
    pub fn log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path("/run/engine").join(name)).unwrap_or_default();
        let start = text.len().saturating_sub(3000);
        text.get(start..).unwrap_or(&text).to_owned()
    }
}

impl Ran {
    /// Asserts success; returns what was printed.
    #[track_caller]
    pub fn success(&self) -> &str {
        self.code(0)
    }

    /// Asserts the exit code; returns what was printed.
    #[track_caller]
    pub fn code(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self}");
        &self.stdout
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}\n{}\n{}", self.what, self.code, self.stdout, self.stderr)?;
        if self.code != 0 {
            write!(formatter, "--- dockerd\n{}", self.log)?;
        }
        Ok(())
    }
}

/// A container that is removed when this is dropped.
pub struct Container<'a> {
    engine: &'a Engine,
    pub name: String,
}

impl Container<'_> {
    /// A name that no other container has.
    pub fn fresh_name() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Something made by other commands, to be removed.
    pub fn named(engine: &Engine, name: String) -> Container<'_> {
        Container { engine, name }
    }

    /// A command of the client with this container as last word.
    #[track_caller]
    pub fn docker(&self, words: &[&str]) -> Ran {
        self.engine.docker(words.iter().copied().chain([self.name.as_str()]))
    }

    /// Runs a command in it.
    #[track_caller]
    pub fn exec(&self, words: &[&str]) -> Ran {
        self.engine.docker(["exec", &self.name].iter().chain(words))
    }

    /// A part of `docker inspect`.
    #[track_caller]
    pub fn inspect(&self, pointer: &str) -> Value {
        let printed = self.docker(&["inspect"]);
        let all: Value = serde_json::from_str(printed.success()).expect("JSON");
        all[0].pointer(pointer).unwrap_or_else(|| panic!("{pointer} in {all}")).clone()
    }

    /// Its whole name.
    #[track_caller]
    pub fn id(&self) -> String {
        self.inspect("/Id").as_str().expect("a text").to_owned()
    }

    /// An address of it.
    #[track_caller]
    pub fn address(&self) -> String {
        self.inspect("/NetworkSettings/IPAddress").as_str().expect("a text").to_owned()
    }

    /// Waits for a text in what it has printed.
    #[track_caller]
    pub fn wait_for_output(&self, text: &str) {
        until(text, || {
            let ran = self.docker(&["logs"]);
            (ran.stdout.contains(text) || ran.stderr.contains(text)).then_some(())
        });
    }

    /// The value of a file of its cgroup, by its names in cgroup v1 and v2; none where no such file is.
    pub fn cgroup_value(&self, names: &[&str]) -> Option<String> {
        let id = self.id();
        let groups = self.engine.cgroups();
        let group = groups.iter().filter(|path| path.ends_with(&id));
        group.flat_map(|path| names.iter().map(|name| path.join(name))).find_map(|path| {
            let text = fs::read_to_string(path).ok()?;
            Some(text.trim().to_owned())
        })
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let ran = self.engine.docker(["rm", "--force", "--volumes", &self.name]);
        // One that has removed itself is no longer there.
        if ran.code != 0 && !ran.stderr.contains("No such container") && !thread::panicking() {
            panic!("{ran}");
        }
    }
}

/// Repeats `attempt` until it gives a value; fails after half a minute.
#[track_caller]
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < end, "not within half a minute: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The image's root file system, made once and kept for the next time.
fn image_root() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let root = directory.join(format!("docker-image-{REVISION}"));
    if root.exists() {
        return root;
    }
    let unfinished = directory.join(format!("docker-image-{REVISION}-{}", std::process::id()));
    debian::packages_root(&unfinished, PACKAGES, &directory.join("debian")).expect("Debian's packages can be had");
    debian::configure_nginx(&unfinished).expect("nginx can be set up");
    let shell = unfinished.join("usr/bin/sh");
    if fs::symlink_metadata(&shell).is_err() {
        std::os::unix::fs::symlink("dash", shell).expect("a link");
    }
    // What nobody reads.
    for name in ["doc", "man", "locale", "info"] {
        let _ = fs::remove_dir_all(unfinished.join("usr/share").join(name));
    }
    match fs::rename(&unfinished, &root) {
        Err(_) if root.exists() => fs::remove_dir_all(&unfinished).expect("the owner may"),
        renamed => renamed.expect("a directory can be renamed"),
    }
    root
}

fn on_path(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("there is no {name}: scripts/setup"))
}

/// Whether a process is the first of a PID namespace, and has become a shell.
fn is_first(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find(|line| line.starts_with("NSpid:")).unwrap_or_default();
    numbers.split_whitespace().count() > 2 && numbers.ends_with("\t1") && command_line(pid).starts_with("bash ")
}

/// The words of a process, with spaces between.
pub fn command_line(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned()
}
