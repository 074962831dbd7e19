//! The other end of a terminal: what a person, or who makes terminals for them, has.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::container::DEADLINE;

/// Where masters come in: `--console-socket`.
pub struct Socket {
    listener: UnixListener,
    pub path: PathBuf,
}

impl Socket {
    pub fn new(path: &Path) -> Socket {
        Socket { listener: UnixListener::bind(path).expect("a fresh path"), path: path.to_owned() }
    }

    /// The master that has been sent.
    pub fn receive(self) -> Master {
        let (stream, _) = self.listener.accept().expect("the runtime connects");
        let (mut name, mut space) = ([0; 256], nix::cmsg_space!(RawFd));
        let mut data = [std::io::IoSliceMut::new(&mut name)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
        let message = message.expect("a message");
        let fd = message.cmsgs().expect("whole messages").find_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        // SAFETY: a descriptor that was just received.
        Master::new(unsafe { File::from_raw_fd(fd.expect("a descriptor")) })
    }
}

/// A master.
pub struct Master {
    file: File,
    /// What has been shown and not been expected yet.
    shown: Vec<u8>,
}

impl Master {
    pub fn new(file: File) -> Master {
        Master { file, shown: Vec::new() }
    }

    /// Types.
    pub fn type_in(&mut self, text: &str) {
        self.file.write_all(text.as_bytes()).expect("the terminal takes it");
    }

    /// Waits until `text` is shown; all that came up to then.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(seen) = self.take(text) {
                return seen;
            }
            let open = self.more(deadline);
            assert!(open, "{text:?} is not shown: {:?}", String::from_utf8_lossy(&self.shown));
        }
    }

    /// All that was shown up to `text`, if that was.
    fn take(&mut self, text: &str) -> Option<String> {
        let at = self.shown.windows(text.len()).position(|window| window == text.as_bytes())?;
        let seen: Vec<u8> = self.shown.drain(..at + text.len()).collect();
        Some(String::from_utf8_lossy(&seen).into_owned())
    }

    /// Whether `text` is shown within this time; what came up to it is done with then.
    pub fn sees(&mut self, text: &str, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            if self.take(text).is_some() {
                return true;
            }
            if self.more_by(deadline) != Some(true) {
                return false;
            }
        }
    }

    /// Everything up to the terminal's end.
    pub fn rest(&mut self) -> String {
        let deadline = Instant::now() + DEADLINE;
        while self.more(deadline) {}
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// False at the terminal's end. A program that goes on drawing does not put the deadline off.
    fn more(&mut self, deadline: Instant) -> bool {
        let more = self.more_by(deadline);
        more.unwrap_or_else(|| panic!("not in time: {:?}", String::from_utf8_lossy(&self.shown)))
    }

    /// The same; nothing when the deadline passes.
    fn more_by(&mut self, deadline: Instant) -> Option<bool> {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = poll(&mut fds, PollTimeout::try_from(left).expect("a minute")).expect("poll");
        if ready != 1 || Instant::now() >= deadline {
            return None;
        }
        let mut buffer = [0; 4096];
        Some(match self.file.read(&mut buffer) {
            Ok(len) if len > 0 => {
                self.shown.extend_from_slice(&buffer[..len]);
                true
            }
            // Nobody has the slave open any more.
            _ => false,
        })
    }

    /// Gives it a size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the kernel reads a structure that lives through the call.
        assert_eq!(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
    }
}
