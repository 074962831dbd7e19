//! The sentry's side of the control socket.

use std::io::{BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use oci_spec::runtime::ContainerState;
use serde_json::{Value, json};

use super::Outcome;
use crate::container::control::{Exit, Process, Request, Response, State, Target, read_line};
use crate::sentry::kernel::Kernel;
use crate::vfs::lease::Leases;

/// Host memory for the stack of a thread that answers commands.
const STACK: usize = 128 << 10;

/// Starts answering. One thread a connection: commands are few, and a wait may take long.
pub fn serve(kernel: &Arc<Kernel>, socket: OwnedFd, id: &str) -> Outcome<()> {
    let listener = UnixListener::from(socket);
    let (kernel, id) = (kernel.clone(), id.to_owned());
    let main = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let (kernel, id) = (kernel.clone(), id.clone());
            let serving = move || answer_all(&kernel, &id, stream);
            if let Err(error) = std::thread::Builder::new().name("command".into()).stack_size(STACK).spawn(serving) {
                log::warn!("no thread for a command: {error}");
            }
        }
    };
    let started = std::thread::Builder::new().name("control".into()).stack_size(STACK).spawn(main);
    started.map(drop).map_err(|error| format!("start answering commands: {error}"))
}

fn answer_all(kernel: &Arc<Kernel>, id: &str, stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    while let Ok(Some(line)) = read_line(&mut stream) {
        let response = match serde_json::from_slice(&line) {
            Ok(request) => match answer(kernel, id, request) {
                Ok(value) => Response::Ok(value),
                Err(problem) => Response::Error(problem),
            },
            Err(error) => Response::Error(format!("request: {error}")),
        };
        let Ok(mut line) = serde_json::to_vec(&response) else { return };
        line.push(b'\n');
        if stream.get_mut().write_all(&line).is_err() {
            return;
        }
    }
}

/// Whether a request only looks: whoever makes it does not expect to see, from inside, what was changed outside before.
fn only_looks(request: &Request) -> bool {
    matches!(request, Request::State { .. } | Request::Wait { .. } | Request::Ps { .. } | Request::Events { .. })
}

fn answer(kernel: &Arc<Kernel>, own: &str, request: Request) -> Outcome<Value> {
    if !only_looks(&request) {
        Leases::sandbox().new_epoch();
    }
    let (Request::State { id }
    | Request::Wait { id, .. }
    | Request::Signal { id, .. }
    | Request::Ps { id }
    | Request::Events { id }) = &request;
    if id != own {
        return Err(format!("there is no container {id} here"));
    }
    let value = match request {
        Request::State { .. } => {
            let status = if kernel.ended().is_some() { ContainerState::Stopped } else { ContainerState::Running };
            serde_json::to_value(State { status, processes: kernel.processes().len() as u32 })
        }
        Request::Wait { pid: None | Some(1), .. } => {
            serde_json::to_value(Exit { status: kernel.wait_ended().shell_status() })
        }
        Request::Wait { pid: Some(pid), .. } => return Err(format!("waiting for process {pid} is not supported")),
        Request::Signal { signal, target, .. } => {
            deliver(kernel, signal, target)?;
            Ok(Value::Null)
        }
        Request::Ps { .. } => serde_json::to_value(list(kernel)),
        Request::Events { .. } => {
            let processes = list(kernel);
            let cpu: u64 = processes.iter().map(|process| process.cpu_time).sum();
            Ok(json!({"cpu": {"usage_us": cpu}, "pids": {"current": processes.len()}}))
        }
    };
    value.map_err(|error| error.to_string())
}

fn deliver(kernel: &Arc<Kernel>, signal: i32, target: Target) -> Outcome<()> {
    let sent = match target {
        Target::Init => kernel.signal_container(signal, false),
        Target::All => kernel.signal_container(signal, true),
        Target::Foreground => kernel.signal_foreground(signal),
        Target::Process(pid) => kernel.signal_process(pid, signal),
    };
    sent.map_err(|error| format!("signal {signal}: {error}"))
}

fn list(kernel: &Arc<Kernel>) -> Vec<Process> {
    let mut list: Vec<Process> = kernel
        .processes()
        .into_iter()
        .map(|(group, ppid)| {
            let usage = group.usage();
            let threads = group.threads();
            let name = threads.first().map(|task| task.name()).unwrap_or_default();
            Process {
                uid: group.uid(),
                pid: group.pid(),
                ppid,
                threads: threads.len() as u32,
                cpu_time: (usage.user_ns + usage.system_ns) / 1000,
                command: String::from_utf8_lossy(&name).into_owned(),
            }
        })
        .collect();
    list.sort_by_key(|process| process.pid);
    list
}
