//! containerd's own client, and pods as Kubernetes makes them: two containers in one sandbox.

use std::process::Stdio;

use super::engine::{Engine, Ran, engine, until};
use super::terminal::Terminal;

/// A root file system without an image tells no environment.
const PATH: &str = "--env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A container of `ctr`, over a root file system that is removed with it.
struct Task<'a> {
    engine: &'a Engine,
    id: String,
}

impl<'a> Task<'a> {
    /// Mounts the root file system.
    fn new(engine: &'a Engine, id: &str) -> Task<'a> {
        let task = Task { engine, id: id.to_owned() };
        let script = "mkdir -p \"$0/upper\" \"$0/work\" \"$0/root\"
                      exec mount -t overlay -o \"lowerdir=$1,upperdir=$0/upper,workdir=$0/work\" overlay \"$0/root\"";
        let mut mount = engine.command("sh");
        mount.args(["-c", script, &task.directory()]).arg(engine.root());
        engine.finish(mount).success();
        task
    }

    fn directory(&self) -> String {
        format!("/run/engine/ctr/{}", self.id)
    }

    /// `ctr run` with these flags.
    fn run_command(&self, flags: &[&str], words: &[&str]) -> std::process::Command {
        let mut ctr = ctr(self.engine);
        ctr.args(["run", "--runtime=io.containerd.runc.v2", "--runc-binary"]).arg(self.engine.program());
        ctr.arg(format!("--cgroup=/{}/ctr-{}", self.engine.group(), self.id)).arg(PATH).args(flags);
        ctr.arg("--rootfs").arg(format!("{}/root", self.directory())).arg(&self.id).args(words).stdin(Stdio::null());
        ctr
    }

    #[track_caller]
    fn run(&self, flags: &[&str], words: &[&str]) -> Ran {
        self.engine.finish(self.run_command(flags, words))
    }

    /// `ctr task` and a command, then the container's name and more words.
    #[track_caller]
    fn task(&self, words: &[&str], more: &[&str]) -> Ran {
        let mut ctr = ctr(self.engine);
        ctr.arg("task").args(words).arg(&self.id).args(more).stdin(Stdio::null());
        self.engine.finish(ctr)
    }

    /// Runs a command in it. The client may drop the last output when the command ends at once.
    #[track_caller]
    fn exec(&self, words: &[&str]) -> Ran {
        let name = super::engine::Container::fresh_name();
        self.task(&["exec", "--exec-id", &name], words)
    }

    /// The state that `ctr task list` shows, and the process number.
    #[track_caller]
    fn state(&self) -> Option<(String, String)> {
        let mut ctr = ctr(self.engine);
        ctr.args(["task", "list"]);
        let printed = self.engine.finish(ctr);
        let lines = printed.success().lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.into_iter().find(|line| line[0] == self.id)?;
        Some((line[2].to_owned(), line[1].to_owned()))
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        let mut remove = ctr(self.engine);
        remove.args(["task", "rm", "--force", &self.id]).stdin(Stdio::null());
        self.engine.finish(remove);
        let mut remove = ctr(self.engine);
        remove.args(["container", "rm", &self.id]).stdin(Stdio::null());
        self.engine.finish(remove);
        let mut unmount = self.engine.command_among_processes("umount");
        unmount.arg(format!("{}/root", self.directory()));
        let unmounted = self.engine.finish(unmount);
        assert!(unmounted.code == 0 || std::thread::panicking(), "{unmounted}");
        std::fs::remove_dir_all(self.engine.path(&self.directory())).expect("it is not in use");
    }
}

fn ctr(engine: &Engine) -> std::process::Command {
    // It opens its pipes by way of /proc.
    let mut command = engine.command_among_processes("ctr");
    command.args(["--address", "/run/engine/containerd.sock"]);
    command
}

#[test]
fn a_container_runs_to_its_end() {
    let engine = engine();
    let task = Task::new(&engine, "ctr-plain");
    let ran = task.run(&["--rm", "--env=WORD=1", "--cwd=/srv"], &["sh", "-c", "echo $WORD $PWD; echo err >&2; exit 3"]);
    assert_eq!(ran.code(3), "1 /srv\n", "{ran}");
    assert!(ran.stderr.contains("err"), "{ran}");
}

/// Names its terminal, waits for the size that `ctr` sets once the container runs, and answers a line.
const SCRIPT: &str =
    r#"tty; until [ "$(stty size)" = "31 71" ]; do sleep 0.05; done; echo sized; read -r line; echo "[$line]"; exit 4"#;

#[test]
fn a_terminal_of_ctr() {
    let engine = engine();
    let task = Task::new(&engine, "ctr-terminal");
    let command = task.run_command(&["--rm", "--tty"], &["bash", "-c", SCRIPT]);
    let mut terminal = Terminal::start(command, 31, 71);
    terminal.expect("/dev/pts/0");
    terminal.expect("sized");
    terminal.send("typed\r");
    terminal.expect("[typed]");
    assert_eq!(terminal.end().0, 4);
}

#[test]
fn exec_pause_signals_and_metrics() {
    let engine = engine();
    let task = Task::new(&engine, "ctr-life");
    task.run(&["--detach"], &["sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.05; done"]).success();
    until("output of a command", || {
        (task.exec(&["sh", "-c", "echo inside; exit 5"]).code(5) == "inside\n").then_some(())
    });
    let state = || task.state().map(|(state, _)| state).unwrap_or_default();
    assert_eq!(state(), "RUNNING");
    task.task(&["pause"], &[]).success();
    assert_eq!(state(), "PAUSED");
    task.task(&["resume"], &[]).success();
    assert_eq!(state(), "RUNNING");
    let processes = task.task(&["ps"], &[]);
    assert!(processes.success().lines().count() >= 2, "{processes}");
    let metrics = task.task(&["metrics"], &[]);
    assert!(metrics.success().contains("pids.current") || metrics.stdout.contains("memory"), "{metrics}");
    task.task(&["kill", "--signal=TERM"], &[]).success();
    until("it has stopped", || (state() == "STOPPED").then_some(()));
    task.task(&["rm"], &[]).success();
}

#[test]
fn two_containers_of_a_pod() {
    let engine = engine();
    let pod = Task::new(&engine, "pod");
    let annotation = |name: &str, value: &str| format!("--annotation=io.kubernetes.cri.{name}={value}");
    let sandbox = [annotation("container-type", "sandbox"), annotation("sandbox-id", "pod")];
    let flags = ["--detach", &sandbox[0], &sandbox[1]];
    pod.run(&flags, &["sleep", "1000"]).success();
    let (_, pid) = pod.state().expect("it runs");

    let server = Task::new(&engine, "pod-server");
    let member = [annotation("container-type", "container"), annotation("sandbox-id", "pod")];
    let spaces = ["network:net", "ipc:ipc", "uts:uts"].map(|pair| {
        let (kind, file) = pair.split_once(':').expect("a pair");
        format!("--with-ns={kind}:/proc/{pid}/ns/{file}")
    });
    let mut flags = vec!["--detach"];
    flags.extend(member.iter().chain(&spaces).map(String::as_str));
    let script = "import socket
server = socket.create_server(('127.0.0.1', 7000))
while True:
    peer, _ = server.accept()
    peer.sendall(b'from the pod\\n')
    peer.close()";
    server.run(&flags, &["python3", "-c", script]).success();

    // Loopback is shared, files and processes are not.
    let client = Task::new(&engine, "pod-client");
    let script =
        "for _ in $(seq 100); do exec 3<>/dev/tcp/127.0.0.1/7000 && break; sleep 0.1; done 2>/dev/null; cat <&3
                  ls /srv/file 2>/dev/null; ps -e -o comm= | sort | tr '\\n' ' '";
    server.exec(&["touch", "/srv/file"]).success();
    flags.remove(0);
    flags.push("--rm");
    let ran = client.run(&flags, &["bash", "-c", script]);
    let words: Vec<&str> = ran.success().split_whitespace().collect();
    assert_eq!(words[..3], ["from", "the", "pod"], "{ran}");
    assert!(words.contains(&"bash") && !words.contains(&"python3"), "{ran}");

    // The end of one is not that of the other.
    server.task(&["kill", "--signal=KILL"], &[]).success();
    until("the server has stopped", || (server.state()?.0 == "STOPPED").then_some(()));
    server.task(&["rm"], &[]).success();
    assert_eq!(pod.state().expect("it runs").0, "RUNNING");
    until("output of the pod", || (pod.exec(&["echo", "alive"]).success() == "alive\n").then_some(()));
    drop(server);
    drop(client);
    drop(pod);
    until("no shim is left", || {
        let shim = |line: &String| line.contains("shim") && line.contains("pod");
        (!engine.processes().iter().any(|(_, line)| shim(line))).then_some(())
    });
}
