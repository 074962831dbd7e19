//! The sentry's side of the control socket.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use serde_json::{Value, json};

use super::Outcome;
use super::containers::{Container, Containers};
use super::create::{self, NewContainer};
use super::exec::{self, Owner};
use crate::container::control::{Channel, Exit, Process, Request, Response, Started, State, Target};
use crate::container::state::Status;
use crate::sentry::kernel::Kernel;
use crate::sentry::signal::{DefaultAction, Signal};
use crate::sentry::task::ThreadGroup;
use crate::sentry::task::signals::Origin;
use crate::sentry::task::tree::ExitStatus;
use crate::vfs::lease::Leases;

/// Host memory for the stack of a thread that answers commands.
const STACK: usize = 128 << 10;

/// What is said to nobody.
const NOBODY: &str = "nobody waits any more";

/// Starts answering. One thread a connection: commands are few, and a wait may take long.
pub fn serve(containers: &Arc<Containers>, socket: OwnedFd) -> Outcome<()> {
    let listener = UnixListener::from(socket);
    let containers = containers.clone();
    let main = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let containers = containers.clone();
            let serving = move || answer_all(&containers, stream);
            if let Err(error) = std::thread::Builder::new().name("command".into()).stack_size(STACK).spawn(serving) {
                log::warn!("no thread for a command: {error}");
            }
        }
    };
    let started = std::thread::Builder::new().name("control".into()).stack_size(STACK).spawn(main);
    started.map(drop).map_err(|error| format!("start answering commands: {error}"))
}

/// One connection.
fn answer_all(containers: &Arc<Containers>, stream: UnixStream) {
    let mut channel = Channel::new(stream);
    let mut owned = Vec::new();
    while let Ok(Some((line, fds))) = channel.receive() {
        let answered = containers.tell(|| {
            let response = match serde_json::from_slice(&line) {
                Ok(request) => match answer(containers, request, fds, &channel, &mut owned) {
                    Ok(value) => Response::Ok(value),
                    Err(problem) => Response::Error(problem),
                },
                Err(error) => Response::Error(format!("request: {error}")),
            };
            channel.send(serde_json::to_vec(&response)?, &[])
        });
        if answered.is_err() {
            return;
        }
    }
}

/// Whether a request only looks: whoever makes it does not expect to see, from inside, what was changed outside before.
fn only_looks(request: &Request) -> bool {
    matches!(request, Request::State { .. } | Request::Wait { .. } | Request::Ps { .. } | Request::Events { .. })
}

/// `owned`: the processes that were started on this connection, which do not outlive it.
fn answer(
    containers: &Arc<Containers>,
    request: Request,
    fds: Vec<OwnedFd>,
    channel: &Channel,
    owned: &mut Vec<Owned>,
) -> Outcome<Value> {
    if !only_looks(&request) {
        Leases::sandbox().new_epoch();
    }
    let request = match request {
        Request::Create { id, spec, mounts, cgroups, overlay, shares } => {
            let new = NewContainer::further(id, *spec, (mounts, cgroups), overlay, fds)?;
            owned.push(Owned::Container(create::create(containers, new, &shares)?));
            return Ok(Value::Null);
        }
        request => request,
    };
    let container = containers.get(request.id())?;
    let kernel = &container.kernel;
    let value = match request {
        Request::State { .. } => {
            serde_json::to_value(State { status: container.status(), processes: kernel.processes().len() as u32 })
        }
        Request::StartHooks { state, .. } => {
            super::hooks::run(kernel, &state)?;
            Ok(Value::Null)
        }
        Request::Start { .. } => {
            start(containers, &container)?;
            Ok(Value::Null)
        }
        Request::Wait { pid, .. } if pid.is_none_or(|pid| pid == kernel.first_pid()) => {
            let status = container.wait(channel.as_fd()).ok_or(NOBODY)?;
            serde_json::to_value(Exit { status })
        }
        Request::Wait { pid, .. } => {
            let pid = pid.unwrap_or_default();
            let process = kernel.further.get(pid).ok_or_else(|| format!("process {pid} was not started by exec"))?;
            let status = process.wait(channel.as_fd()).ok_or(NOBODY)?;
            serde_json::to_value(Exit { status: status.shell_status() })
        }
        Request::Signal { signal, target, .. } => {
            deliver(&container, signal, target)?;
            Ok(Value::Null)
        }
        Request::Ps { .. } => serde_json::to_value(list(kernel)),
        Request::Events { .. } => {
            let processes = list(kernel);
            let cpu: u64 = processes.iter().map(|process| process.cpu_time).sum();
            Ok(json!({"cpu": {"usage_us": cpu}, "pids": {"current": kernel.thread_count()}}))
        }
        Request::Files { .. } => {
            let connection = fds.into_iter().next().ok_or("files: the connection is missing")?;
            super::files::serve(container.clone(), connection)?;
            Ok(Value::Null)
        }
        Request::Limit { resources, .. } => {
            kernel.set_resources(*resources);
            if container.is_root() {
                containers.cpus_changed();
            }
            Ok(Value::Null)
        }
        Request::Network { links, dns, .. } => {
            super::network::attach_late(kernel, links, dns, fds)?;
            Ok(Value::Null)
        }
        Request::Create { .. } => Ok(Value::Null), // above
        Request::Exec { process, ignore_paused, .. } => {
            if container.status() == Status::Paused && !ignore_paused {
                return Err("cannot exec in a paused container (use --ignore-paused to override)".into());
            }
            let started = exec::start(kernel, &process, fds)?;
            let pid = started.process().pid();
            owned.push(Owned::Process { _owner: started });
            serde_json::to_value(Started { pid })
        }
        Request::Pause { .. } => {
            kernel.freeze().map_err(|error| format!("unable to freeze: {error}"))?;
            Ok(Value::Null)
        }
        Request::Resume { .. } => {
            kernel.thaw();
            Ok(Value::Null)
        }
        Request::Resize { pid, rows, columns, .. } => {
            exec::resize(kernel, pid, rows, columns).map_err(|error| format!("resize the terminal: {error}"))?;
            Ok(Value::Null)
        }
        Request::Destroy { .. } => {
            if container.is_root() {
                return Err("the root container ends with its sandbox".into());
            }
            containers.remove(&container);
            Ok(Value::Null)
        }
    };
    value.map_err(|error| error.to_string())
}

/// What was asked for on a connection, and does not outlive it.
enum Owned {
    Process { _owner: Owner },
    Container(Arc<Container>),
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Owned::Container(container) = self {
            // It can still be asked about until it is deleted.
            container.end();
        }
    }
}

/// Lets a created container go. The interfaces come with the first one.
fn start(containers: &Containers, container: &Container) -> Outcome<()> {
    let root = containers.root().filter(|root| !container.is_root() && !root.kernel.gate.is_open());
    if let Some(root) = root {
        return Err(format!("the first container of the pod, {:?}, has not been started", root.id));
    }
    match container.status() {
        Status::Created => {
            container.kernel.gate.open();
            Ok(())
        }
        status => Err(format!("container {:?} is {status}, not created", container.id)),
    }
}

fn deliver(container: &Container, signal: i32, target: Target) -> Outcome<()> {
    let kernel = &container.kernel;
    if container.status() == Status::Created && ends_what_waits(signal, target) {
        // As it ends runc's process that waits to become the program, which has no handlers.
        kernel.first_process().map_err(|error| error.to_string())?.end(ExitStatus::Killed { signal, core: false });
        return Ok(());
    }
    let sent = match target {
        Target::Init => kernel.signal_container(signal, false, Origin::Outside),
        Target::Attached => kernel.signal_container(signal, false, Origin::Runtime),
        Target::All => kernel.signal_container(signal, true, Origin::Outside),
        Target::Foreground => kernel.signal_foreground(signal),
        Target::Process(pid) => kernel.signal_process(pid, signal),
    };
    sent.map_err(|error| format!("signal {signal}: {error}"))
}

fn ends_what_waits(signal: i32, target: Target) -> bool {
    let deadly = |signal: Signal| matches!(signal.default_action(), DefaultAction::Term | DefaultAction::Core);
    target != Target::Foreground && Signal::new(signal).is_ok_and(deadly)
}

fn list(kernel: &Arc<Kernel>) -> Vec<Process> {
    let mut list: Vec<Process> =
        kernel.processes().into_iter().map(|(group, ppid)| describe(kernel, &group, ppid)).collect();
    list.sort_by_key(|process| process.pid);
    list
}

fn describe(kernel: &Kernel, group: &ThreadGroup, ppid: i32) -> Process {
    let usage = group.usage();
    let leader = group.leader();
    let memory = leader.as_ref().and_then(|task| task.mm().ok());
    let session = kernel.tree.lock().node(group.pid()).map(|node| node.sid);
    let terminal = session.and_then(|sid| kernel.terminals.controlling(sid));
    // As `ps(1)`: what is not printable could be anything to the reader's terminal.
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(char::is_control, " ").trim_end().to_owned();
    let arguments = memory.as_ref().map(|memory| shown(&memory.cmdline())).filter(|text| !text.is_empty());
    let name = || shown(&leader.as_ref().map(|task| task.name()).unwrap_or_default());
    Process {
        uid: group.uid(),
        pid: group.pid(),
        ppid,
        threads: group.threads().len() as u32,
        cpu_time: (usage.user_ns + usage.system_ns) / 1000,
        running_time: crate::sentry::task::boottime_ns().saturating_sub(group.start_ns) / 1000,
        terminal: terminal.map(|tty| tty.index()),
        stub: memory.as_ref().map_or(0, |memory| memory.space().host_pid()),
        command: arguments.unwrap_or_else(|| format!("[{}]", name())),
    }
}
