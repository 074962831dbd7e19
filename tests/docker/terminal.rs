//! A command on a terminal, as a person would use it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};

/// Longest time that a text is waited for.
const DEADLINE: Duration = Duration::from_secs(30);

/// The command and this side of its terminal.
pub struct Terminal {
    master: File,
    child: Child,
    /// What it has printed and no expectation has used up.
    unread: String,
    /// All that it has printed.
    all: String,
}

nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, Winsize);

impl Terminal {
    /// Starts a command whose controlling terminal has this size.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Terminal {
        let pair = openpty(&size(rows, columns), None).expect("a terminal");
        let end = |fd: &OwnedFd| fd.try_clone().expect("a descriptor");
        command.stdin(end(&pair.slave)).stdout(end(&pair.slave)).stderr(end(&pair.slave)).env("TERM", "xterm");
        let become_leader = || {
            nix::unistd::setsid()?;
            // SAFETY: it takes a number, and standard input is the terminal.
            nix::errno::Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
            Ok(())
        };
        // SAFETY: two system calls, which may be made between fork and exec.
        unsafe { command.pre_exec(become_leader) };
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Terminal { master: File::from(pair.master), child, unread: String::new(), all: String::new() }
    }

    /// Types.
    pub fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal is open");
    }

    /// Presses the interrupt key until a shell's prompt is back. A shell names the job that it brings to the foreground before the
    /// terminal is the job's: a key in between reaches the shell alone.
    #[track_caller]
    pub fn interrupt(&mut self) {
        for _ in 0..DEADLINE.as_secs() {
            self.send("\x03");
            if self.sees("# ", Duration::from_secs(1)) {
                return;
            }
        }
        panic!("no prompt within {DEADLINE:?}:\n{}", self.all);
    }

    /// Waits for a text in what is printed from the last expectation on; returns what came before it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(place) = self.unread.find(text) {
                let before = self.unread[..place].to_owned();
                self.unread.drain(..place + text.len());
                return before;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.read(left) {
                panic!("{text:?} was not printed in {DEADLINE:?} or before the end:\n{}", self.all);
            }
        }
    }

    /// Whether a text is printed in time. What came before it is used up if so.
    pub fn sees(&mut self, text: &str, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            if let Some(place) = self.unread.find(text) {
                self.unread.drain(..place + text.len());
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.read(left) {
                return false;
            }
        }
    }

    /// Gives the terminal another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        // SAFETY: the structure is the one that the call reads.
        unsafe { set_size(self.master.as_raw_fd(), &size(rows, columns)) }.expect("a terminal has a size");
    }

    /// Waits for the command's end: its exit code, and what it has printed from the last expectation on.
    #[track_caller]
    pub fn end(mut self) -> (i32, String) {
        let end = Instant::now() + DEADLINE;
        let status = loop {
            self.read(Duration::from_millis(20));
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < end, "no end in {DEADLINE:?}:\n{}", self.all);
        };
        while self.read(Duration::ZERO) {}
        (status.code().unwrap_or(-1), std::mem::take(&mut self.unread))
    }

    /// Reads what comes in time. False at the end, or when nothing came.
    fn read(&mut self, time: Duration) -> bool {
        let mut ready = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        if poll(&mut ready, timeout) != Ok(1) {
            return false;
        }
        let mut bytes = [0; 4096];
        // When the other side is closed, reading is an error.
        let Ok(length @ 1..) = self.master.read(&mut bytes) else { return false };
        let text = String::from_utf8_lossy(&bytes[..length]);
        self.unread.push_str(&text);
        self.all.push_str(&text);
        true
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
