//! What the sandbox's processes tell the command line that made them: one JSON line each on a pipe of their own.
//!
//! The pipe and not the exit status, since a sentry that dies of a fault or is killed must not look like a container
//! that exited.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Report {
    /// The process is set up; for the sentry: the container's program is loaded and about to run.
    Started,
    /// It could not be set up, for this reason. Nothing ran.
    Failed(String),
    /// The container's first process ended: its exit status, or 128 plus the signal that killed it.
    Exited(i32),
}

static PIPE: OnceLock<File> = OnceLock::new();

/// Makes `pipe` the one that this process reports to. Later calls do nothing.
pub fn init(pipe: OwnedFd) {
    let _ = PIPE.set(File::from(pipe));
}

/// Tells the command line that the container's program is about to run.
pub fn started() {
    send(&Report::Started);
}

/// Tells the command line why the container could not be started: "exec /bin/x: no such file". The command line prints
/// it and exits with 128.
pub fn failed(problem: &str) {
    log::error!("{problem}");
    send(&Report::Failed(problem.to_owned()));
}

/// Tells the command line the container's exit status.
pub fn exited(status: i32) {
    send(&Report::Exited(status));
}

/// Whether anybody still reads the reports.
pub fn is_heard() -> bool {
    let Some(pipe) = PIPE.get() else { return false };
    // POLLERR, which need not be asked for, says that the reading end is closed: pipe(7), poll(2).
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

/// The pipe's number, for a signal handler that writes a line itself.
pub fn raw_fd() -> Option<RawFd> {
    PIPE.get().map(AsRawFd::as_raw_fd)
}

fn send(report: &Report) {
    let Some(mut pipe) = PIPE.get() else { return };
    let Ok(mut line) = serde_json::to_vec(report) else { return };
    line.push(b'\n');
    // Nobody listens once the command line has detached.
    let _ = pipe.write_all(&line);
}

/// The command line's end of a process's pipe.
pub struct Reader {
    pipe: File,
    pending: Vec<u8>,
}

impl Reader {
    /// Reads from `pipe`.
    pub fn new(pipe: OwnedFd) -> Reader {
        Reader { pipe: pipe.into(), pending: Vec::new() }
    }

    /// What to poll for input.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// The reports that have come, after one `read(2)`; `None` when the process has closed its end.
    pub fn read(&mut self) -> io::Result<Option<Vec<Report>>> {
        /// A process of ours says a few short lines; one that says more has been taken over.
        const LIMIT: usize = 64 * 1024;
        let mut buffer = [0; 4096];
        let len = self.pipe.read(&mut buffer)?;
        if len == 0 {
            return Ok(None);
        }
        self.pending.extend_from_slice(&buffer[..len]);
        let Some(end) = self.pending.iter().rposition(|&byte| byte == b'\n') else {
            let bounded = self.pending.len() <= LIMIT;
            return if bounded { Ok(Some(Vec::new())) } else { Err(io::ErrorKind::InvalidData.into()) };
        };
        let lines: Vec<u8> = self.pending.drain(..=end).collect();
        let reports = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        reports.map(|line| serde_json::from_slice(line).map_err(io::Error::from)).collect::<io::Result<_>>().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_whole_whatever_the_pieces() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let mut reader = Reader::new(read);
        let mut write = File::from(write);
        write.write_all(b"\"started\"\n{\"exi").unwrap();
        assert_eq!(reader.read().unwrap(), Some(vec![Report::Started]));
        write.write_all(b"ted\":3}\n{\"failed\":\"no\\nway\"}\n").unwrap();
        assert_eq!(reader.read().unwrap(), Some(vec![Report::Exited(3), Report::Failed("no\nway".into())]));
        drop(write);
        assert_eq!(reader.read().unwrap(), None);
    }

    #[test]
    fn garbage_and_endless_lines_are_errors() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let mut reader = Reader::new(read);
        let mut write = File::from(write);
        write.write_all(b"garbage\n").unwrap();
        assert!(reader.read().is_err());
        let outcome = (0..17).try_for_each(|_| {
            write.write_all(&[b'x'; 4096]).unwrap();
            reader.read().map(|_| ())
        });
        assert!(outcome.is_err());
    }
}
