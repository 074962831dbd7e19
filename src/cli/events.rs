//! `runsc events`: what a container uses, in runc's words, and processes that are killed for want of memory.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::args::Globals;
use super::limit_args::EventsArgs;
use crate::container::cgroup::oom::OomEvents;
use crate::container::cgroup::stats::Stats;
use crate::container::control::Request;
use crate::container::state::{Record, Status};
use crate::container::{Context, Error, Result, state};

/// Prints one line an event until the container ends, or once with `--stats`.
pub fn run(globals: &Globals, args: &EventsArgs) -> Result<i32> {
    let interval = parse_duration(&args.interval)
        .filter(|interval| !interval.is_zero())
        .ok_or_else(|| Error::Usage(format!("--interval={}: not a duration like 5s or 500ms", args.interval)))?;
    let record = state::load(&globals.state_root(), &args.id)?;
    if record.status() == Status::Stopped {
        return Err(Error::Usage(format!("container with id {} is not running", args.id)));
    }
    if args.stats {
        print(&args.id, "stats", Some(stats(globals, &record)?))?;
        return Ok(0);
    }
    follow(globals, &record, interval)
}

fn follow(globals: &Globals, record: &Record, interval: Duration) -> Result<i32> {
    let Some(process) = record.process().and_then(|process| pidfd(process.pid)) else { return Ok(0) };
    // It may have ended, and its number been taken, before it was held on to.
    if record.status() == Status::Stopped {
        return Ok(0);
    }
    let mut kills = OomEvents::watch(&record.cgroup)?;
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next {
            next = Instant::now() + interval;
            match stats(globals, record) {
                Ok(stats) => print(&record.id, "stats", Some(stats))?,
                Err(_) if record.status() == Status::Stopped => return Ok(0),
                Err(error) => return Err(error),
            }
        }
        let ended = wait(&process, kills.as_ref(), next)?;
        if let Some(kills) = &mut kills {
            for _ in 0..kills.take(&record.cgroup) {
                print(&record.id, "oom", None)?;
            }
        }
        if ended {
            return Ok(0);
        }
    }
}

/// Sleeps until something may have happened, `next` at the latest. Whether the container has ended.
fn wait(process: &OwnedFd, kills: Option<&OomEvents>, next: Instant) -> Result<bool> {
    let mut fds = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    fds.extend(kills.map(|kills| PollFd::new(kills.as_fd(), PollFlags::POLLIN | PollFlags::POLLPRI)));
    // Rounded up: waking early would only mean to wait again.
    let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let left = kills.and_then(OomEvents::again_in).map_or(left, |again| again.min(left));
    match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(std::io::Error::from(error)).doing(|| "wait for events"),
    }
    Ok(fds[0].any() == Some(true))
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: no memory is passed; the result is a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: a descriptor that was just made.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The host's numbers; the sentry's where the host has none or counts threads of its own.
fn stats(globals: &Globals, record: &Record) -> Result<Stats> {
    let mut stats = record.cgroup.stats();
    let mut client = state::connect(&globals.state_root(), record)?;
    let own: Value = client.call(&Request::Events { id: record.id.clone() })?;
    let number = |pointer: &str| own.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    stats.pids.current = number("/pids/current");
    if stats.cpu.usage.total == 0 {
        let ns = number("/cpu/usage_us").saturating_mul(1000);
        (stats.cpu.usage.total, stats.cpu.usage.user) = (ns, ns);
    }
    Ok(stats)
}

fn print(id: &str, kind: &str, data: Option<Stats>) -> Result<()> {
    let mut event = json!({"type": kind, "id": id});
    if let Some(data) = data {
        event["data"] = serde_json::to_value(data).map_err(std::io::Error::from).doing(|| "encode an event")?;
    }
    super::print(&format!("{event}\n"))
}

/// A duration in Go's spelling: `1m30s`, `500ms`, `0.5h`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[end..];
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_in_gos_spelling() {
        let durations = ["5s", "500ms", "1m30s", "0.5h"].map(|text| parse_duration(text).map(|d| d.as_millis()));
        assert_eq!(durations, [5000, 500, 90_000, 1_800_000].map(Some));
        for bad in ["", "5", "s", "5x", "-1s", "1e99h"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
