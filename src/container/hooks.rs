//! The programs that the specification has run at points of a container's life: OCI runtime specification, "POSIX-platform
//! Hooks" and "Lifecycle".
//!
//! | hook | where it runs | a failure |
//! | --- | --- | --- |
//! | `prestart`, `createRuntime` | on the host, in the runtime's namespaces | the command fails |
//! | `createContainer` | on the host, in the sandbox's network namespace; see below | the command fails |
//! | `startContainer` | a process of the sandbox: `src/sentry/boot/hooks.rs` | the command fails |
//! | `poststart`, `poststop` | on the host, in the runtime's namespaces | a logged warning |
//!
//! The mounts, process ids and host name of a sandbox exist in the sentry alone. What `createContainer` can be run in of
//! the container's is therefore its network namespace; it keeps the runtime's view of files, where its path must be found
//! anyway.
//!
//! Each gets the container's state as JSON on its standard input, the bundle as working directory, the environment that it
//! lists and no other, and a process group of its own that is killed when its time is up.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{ContainerState, Hook, Hooks, Spec, State, StateBuilder};

use super::error::{Context, Error, Result};
use super::state::Record;

/// When hooks are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Deprecated by the specification, used by Docker: as [`Point::CreateRuntime`], before it.
    Prestart,
    /// The sandbox is there, the program is not.
    CreateRuntime,
    /// After [`Point::CreateRuntime`].
    CreateContainer,
    /// Before the program runs.
    StartContainer,
    /// The program runs.
    Poststart,
    /// The container is gone.
    Poststop,
}

impl Point {
    /// All, in the order of a container's life.
    pub const ALL: [Point; 6] = [
        Point::Prestart,
        Point::CreateRuntime,
        Point::CreateContainer,
        Point::StartContainer,
        Point::Poststart,
        Point::Poststop,
    ];

    /// Its name in the specification.
    pub fn name(self) -> &'static str {
        match self {
            Point::Prestart => "prestart",
            Point::CreateRuntime => "createRuntime",
            Point::CreateContainer => "createContainer",
            Point::StartContainer => "startContainer",
            Point::Poststart => "poststart",
            Point::Poststop => "poststop",
        }
    }

    /// The hooks of this point.
    pub fn of(self, hooks: &Hooks) -> &[Hook] {
        let list = match self {
            Point::Prestart => hooks.prestart(),
            Point::CreateRuntime => hooks.create_runtime(),
            Point::CreateContainer => hooks.create_container(),
            Point::StartContainer => hooks.start_container(),
            Point::Poststart => hooks.poststart(),
            Point::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }

    /// The status that the container is said to have.
    fn status(self) -> ContainerState {
        match self {
            Point::Prestart | Point::CreateRuntime | Point::CreateContainer => ContainerState::Creating,
            Point::StartContainer => ContainerState::Created,
            Point::Poststart => ContainerState::Running,
            Point::Poststop => ContainerState::Stopped,
        }
    }

    fn failure_ends(self) -> bool {
        !matches!(self, Point::Poststart | Point::Poststop)
    }
}

/// The state document that hooks of `point` are given: `state` with the status that holds at that point.
pub fn document(point: Point, state: &State) -> Result<Vec<u8>> {
    let mut state = state.clone();
    state.set_status(point.status());
    if point == Point::Poststop {
        state.set_pid(None);
    }
    serde_json::to_vec(&state).map_err(io::Error::from).doing(|| format!("state for the {} hooks", point.name()))
}

/// What the hooks of a container are told, but for its status.
pub fn state(record: &Record) -> Result<State> {
    let annotations = record.annotations.iter().map(|(name, value)| (name.clone(), value.clone()));
    let mut state = StateBuilder::default()
        .version(record.oci_version.clone())
        .id(record.id.clone())
        .status(ContainerState::Creating)
        .bundle(record.bundle.clone())
        .annotations(annotations.collect::<HashMap<String, String>>());
    if let Some(process) = record.process() {
        state = state.pid(process.pid);
    }
    state.build().map_err(|error| Error::Usage(error.to_string()))
}

/// Runs the hooks of several points in order, for a container that `record` tells of.
pub fn run_all(spec: &Spec, points: &[Point], record: &Record) -> Result<()> {
    if spec.hooks().is_none() {
        return Ok(());
    }
    let state = state(record)?;
    points.iter().try_for_each(|point| run(spec.hooks().as_ref(), *point, &state))
}

/// Runs the hooks of `point` that run on the host, one after the other; those of [`Point::StartContainer`] are the
/// sentry's to run. `state` tells the container's id, bundle and process number; its status is set here.
///
/// The first failure ends the list and is returned; of `poststart` and `poststop` it is logged, and the others still run.
pub fn run(hooks: Option<&Hooks>, point: Point, state: &State) -> Result<()> {
    let Some(list) = hooks.map(|hooks| point.of(hooks)).filter(|list| !list.is_empty()) else { return Ok(()) };
    debug_assert_ne!(point, Point::StartContainer, "run by the sentry");
    let document = document(point, state)?;
    let network = match (point, state.pid()) {
        (Point::CreateContainer, Some(pid)) => {
            let path = format!("/proc/{pid}/ns/net");
            Some(File::open(&path).doing(|| format!("open {path}"))?)
        }
        _ => None,
    };
    for (index, hook) in list.iter().enumerate() {
        let done = run_one(hook, state, &document, network.as_ref());
        let Err(problem) = done else { continue };
        let error = Error::Hook { point: point.name(), index, path: hook.path().clone(), problem };
        if point.failure_ends() {
            return Err(error);
        }
        log::warn!("{error}");
    }
    Ok(())
}

/// Runs one hook to its end; what went wrong, in words.
fn run_one(hook: &Hook, state: &State, document: &[u8], network: Option<&File>) -> std::result::Result<(), String> {
    let failed = |doing: &str, error: io::Error| format!("{doing}: {}", crate::errno::describe(&error));
    // Files in memory rather than pipes: neither side can wait for the other, nor can what the hook leaves behind.
    let mut input = memory_file().map_err(|error| failed("pass the state", error))?;
    let mut output = memory_file().map_err(|error| failed("take its output", error))?;
    let passed = input.write_all(document).and_then(|()| input.rewind());
    passed.map_err(|error| failed("pass the state", error))?;
    let mut command = command(hook, state, network);
    let outputs = output.try_clone().and_then(|out| Ok((out, output.try_clone()?)));
    let (stdout, stderr) = outputs.map_err(|error| failed("take its output", error))?;
    command.stdin(Stdio::from(input)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
    let mut child = command.spawn().map_err(|error| failed("start it", error))?;
    let limit = hook.timeout().map(|seconds| Duration::from_secs(seconds.max(0) as u64));
    let problem = match wait(&mut child, limit) {
        Ok(Some(status)) if status.success() => return Ok(()),
        Ok(Some(status)) => describe(status),
        Ok(None) => format!("killed after its timeout of {} s", limit.unwrap_or_default().as_secs()),
        Err(error) => failed("wait for it", error),
    };
    match tail(&mut output) {
        said if said.is_empty() => Err(problem),
        said => Err(format!("{problem}: {said}")),
    }
}

fn command(hook: &Hook, state: &State, network: Option<&File>) -> Command {
    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    let variables = hook.env().iter().flatten().filter_map(|entry| entry.split_once('='));
    command.args(args).env_clear().envs(variables).current_dir(state.bundle()).process_group(0);
    if let Some(network) = network {
        let fd = network.as_raw_fd();
        let enter = move || {
            // SAFETY: setns(2) takes no memory; the descriptor lives as long as the command.
            let done = unsafe { libc::setns(fd, libc::CLONE_NEWNET) };
            if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        };
        // SAFETY: between fork and execve one system call is made, and no memory is taken.
        unsafe { command.pre_exec(enter) };
    }
    command
}

/// Waits for the end; `None` when `limit` is over: the process and its group are killed by then.
fn wait(child: &mut Child, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    let Some(limit) = limit else { return child.wait().map(Some) };
    let ended = pidfd(child.id())?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: a poll of 0 ms before the deadline would spin.
        let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let mut fds = [PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
            Ok(0) if Instant::now() >= deadline => break,
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return child.wait().map(Some),
            Err(error) => return Err(error.into()),
        }
    }
    // SAFETY: no memory is passed; the group is that of a child that has not been waited for, so the number is its own.
    unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
    child.wait().map(|_| None)
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; the result is a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn memory_file() -> io::Result<File> {
    Ok(memfd_create("hook", MFdFlags::MFD_CLOEXEC)?.into())
}

/// How much of what a failed hook wrote is told.
const TOLD: u64 = 2048;

/// The end of what was written to `output`, as one line.
fn tail(output: &mut File) -> String {
    let mut text = Vec::new();
    let read = output.seek(SeekFrom::End(0)).and_then(|end| {
        output.seek(SeekFrom::Start(end.saturating_sub(TOLD)))?;
        output.take(TOLD).read_to_end(&mut text)
    });
    if read.is_err() {
        return String::new();
    }
    one_line(&text)
}

/// What a hook wrote, as one line.
pub fn one_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn state(bundle: &std::path::Path) -> State {
        let state = StateBuilder::default().version("1.0.2").id("c1").status(ContainerState::Creating).pid(7);
        state.bundle(bundle.to_owned()).build().unwrap()
    }

    fn hooks(point: Point, list: serde_json::Value) -> Hooks {
        serde_json::from_value(json!({point.name(): list})).unwrap()
    }

    fn shell(script: &str) -> serde_json::Value {
        json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"]})
    }

    #[test]
    fn a_hook_gets_state_environment_and_bundle() {
        let dir = tempfile::tempdir().unwrap();
        for point in [Point::Prestart, Point::CreateRuntime, Point::Poststart, Point::Poststop] {
            let list = json!([shell("cat > state; env > env; echo more >> order"), shell("echo last >> order")]);
            run(Some(&hooks(point, list)), point, &state(dir.path())).unwrap();
            let written = std::fs::read(dir.path().join("state")).unwrap();
            let written: serde_json::Value = serde_json::from_slice(&written).unwrap();
            assert_eq!(written["status"], point.status().to_string(), "{point:?}");
            assert_eq!(written["id"], "c1");
            assert_eq!(written.get("pid").is_some(), point != Point::Poststop);
        }
        let env = std::fs::read_to_string(dir.path().join("env")).unwrap();
        assert!(env.lines().any(|line| line == "A=b") && !env.contains("CARGO"), "{env}");
        let order = std::fs::read_to_string(dir.path().join("order")).unwrap();
        assert_eq!(order, "more\nlast\n".repeat(4));
    }

    #[test]
    fn a_failure_names_the_hook_and_ends_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let list = json!([shell("true"), shell("echo this is why >&2; exit 3"), shell("touch third")]);
        let failing = hooks(Point::CreateRuntime, list.clone());
        let error = run(Some(&failing), Point::CreateRuntime, &state(dir.path())).unwrap_err().to_string();
        assert_eq!(error, "error running createRuntime hook #1 (/bin/sh): exit status 3: this is why");
        assert!(!dir.path().join("third").exists());

        run(Some(&hooks(Point::Poststop, list)), Point::Poststop, &state(dir.path())).unwrap();
        assert!(dir.path().join("third").exists(), "a failing poststop hook stopped the others");

        let missing = hooks(Point::Prestart, json!([{"path": "/no/such/hook"}]));
        let error = run(Some(&missing), Point::Prestart, &state(dir.path())).unwrap_err().to_string();
        assert!(error.starts_with("error running prestart hook #0 (/no/such/hook): start it: No such file"), "{error}");
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let mut slow = shell("sleep 1000 & echo $! > child; wait");
        slow["timeout"] = json!(1);
        let begun = Instant::now();
        let error = run(Some(&hooks(Point::Prestart, json!([slow]))), Point::Prestart, &state(dir.path()));
        assert!(error.unwrap_err().to_string().contains("killed after its timeout of 1 s"));
        assert!(begun.elapsed() < Duration::from_secs(60));
        let child = std::fs::read_to_string(dir.path().join("child")).unwrap();
        let running = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
        };
        // The signal was sent to both at once; each dies when it next runs.
        while running() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the hook's child outlives it");
            std::thread::yield_now();
        }
    }
}
