//! `runsc ps`: the processes of a container, as the host's `ps` would show them.
//!
//! A process of the container is known to the host by its stub, whose number is what is shown: whoever has the list (Docker's
//! `top`) looks those numbers up on the host.

use std::fs;
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::args::{Globals, PsArgs};
use super::list::table;
use crate::container::control::{Process, Request};
use crate::container::state::{self, StateDir, Status};
use crate::container::{Context, Error, Result};

/// Prints a table, or a JSON list of numbers.
pub fn run(globals: &Globals, args: &PsArgs) -> Result<i32> {
    let root = globals.state_root();
    let record = StateDir::open(&root, &args.id)?.load()?;
    let sentry = record.sentry.filter(|_| record.status() != Status::Stopped);
    let sentry = sentry.ok_or_else(|| Error::Usage(format!("container not running: {:?} is stopped", args.id)))?;
    let processes: Vec<Process> = state::connect(&root, &record)?.call(&Request::Ps { id: args.id.clone() })?;
    let stubs = Stubs::of(sentry.pid)?;
    let text = if args.format == "json" {
        let pids: Vec<i32> = processes.iter().filter_map(|process| stubs.on_host(process.stub)).collect();
        format!("{}\n", json!(pids))
    } else {
        let header = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"].map(str::to_owned);
        let row = |process| row(process, &processes, &stubs, sentry.pid);
        table(std::iter::once(header).chain(processes.iter().filter_map(row)).collect())
    };
    super::print(&text)?;
    Ok(0)
}

/// One line; nothing for a process that has ended meanwhile.
fn row(process: &Process, all: &[Process], stubs: &Stubs, sentry: i32) -> Option<[String; 8]> {
    let parent = all.iter().find(|other| other.pid == process.ppid).and_then(|parent| stubs.on_host(parent.stub));
    let running = Duration::from_micros(process.running_time);
    let share = if running.is_zero() { 0 } else { process.cpu_time * 100 / process.running_time };
    Some([
        user_name(process.uid),
        stubs.on_host(process.stub)?.to_string(),
        parent.unwrap_or(sentry).to_string(),
        share.to_string(),
        start_time(running),
        process.terminal.map_or("?".into(), |index| format!("pts/{index}")),
        clock(process.cpu_time / 1_000_000),
        process.command.clone(),
    ])
}

fn user_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

/// When it started: the time of day within a day, else the date: `ps(1)`, `STIME`.
fn start_time(running: Duration) -> String {
    let day = Duration::from_secs(24 * 60 * 60);
    let started = crate::logging::rfc3339(SystemTime::now() - running);
    let part = if running < day { started.get(11..16) } else { started.get(5..10) };
    part.unwrap_or("?").to_owned()
}

fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The stub processes of a sandbox: each its number in the sandbox's namespace and in the host's.
struct Stubs(Vec<(i32, i32)>);

impl Stubs {
    /// Those of a sentry: they are its children.
    fn of(sentry: i32) -> Result<Stubs> {
        let tasks = format!("/proc/{sentry}/task");
        let threads = fs::read_dir(&tasks).doing(|| format!("read {tasks}"))?;
        let mut stubs = Vec::new();
        for thread in threads.flatten() {
            // A thread or child that has ended meanwhile has nothing to tell.
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
            stubs.extend(pids.filter_map(|pid: i32| Some((number_in_namespace(pid)?, pid))));
        }
        Ok(Stubs(stubs))
    }

    fn on_host(&self, stub: i32) -> Option<i32> {
        self.0.iter().find(|(own, _)| *own == stub).map(|(_, host)| *host)
    }
}

/// The number of a process in its own namespace: the last of `NSpid` in `/proc/PID/status`, `proc_pid_status(5)`.
fn number_in_namespace(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_among_the_children_of_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let stubs = Stubs::of(std::process::id() as i32).unwrap();
        let pid = child.id() as i32;
        let found = stubs.on_host(number_in_namespace(pid).unwrap());
        child.kill().and_then(|()| child.wait()).unwrap();
        assert_eq!(found, Some(pid));
        assert_eq!(stubs.on_host(-1), None);
    }

    #[test]
    fn times_as_ps_prints_them() {
        assert_eq!(clock(3 * 3600 + 62), "03:01:02");
        assert_eq!(start_time(Duration::ZERO).len(), 5);
        assert_eq!(&start_time(Duration::from_secs(90_000))[2..3], "-");
    }
}
