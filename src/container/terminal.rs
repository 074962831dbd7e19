//! The host's side of a container's terminal.
//!
//! With `--console-socket` the runtime makes a pseudoterminal: whoever listens on the socket gets the master, the sentry the
//! slave, which it joins to a terminal of the sandbox's own. That one edits lines and makes signals of keys, so the host's is
//! raw. Without the socket the command's own terminal takes the slave's place.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, unlockpt};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use oci_spec::runtime::Process;

use super::error::{Context, Error, Result};

/// What the receiver of a master is told: the name of the file that it was opened from, as runc does.
const MASTER_NAME: &[u8] = b"/dev/ptmx";

/// Makes a pseudoterminal of the process's `consoleSize`, passes the master to whoever listens on `socket` and returns the
/// slave, raw and non-blocking.
pub fn make(process: &Process, socket: &Path) -> Result<OwnedFd> {
    let listener = UnixStream::connect(socket).doing(|| format!("--console-socket={}", socket.display()))?;
    let (master, slave) = open_pair().doing(|| "make a terminal")?;
    if let Some(size) = process.console_size() {
        let side = |length: u64| u16::try_from(length).unwrap_or(u16::MAX);
        resize(&master, side(size.height()), side(size.width())).doing(|| "process.consoleSize")?;
    }
    make_raw(&slave).doing(|| "make a terminal")?;
    let (fds, data) = ([master.as_raw_fd()], [IoSlice::new(MASTER_NAME)]);
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(listener.as_raw_fd(), &data, &rights, MsgFlags::MSG_NOSIGNAL, None)
        .map_err(io::Error::from)
        .doing(|| format!("--console-socket={}: pass the terminal on", socket.display()))?;
    Ok(slave)
}

fn open_pair() -> io::Result<(PtyMaster, OwnedFd)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // Not by its name, which another mount namespace may give to another terminal.
    // SAFETY: takes its argument by value and returns a new descriptor or -1.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else knows.
    Ok((master, unsafe { OwnedFd::from_raw_fd(slave) }))
}

fn resize(master: &PtyMaster, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads a structure that lives through the call.
    let done = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the terminal pass every byte on unchanged, both ways. Returns its settings from before.
fn make_raw(terminal: &impl AsFd) -> io::Result<Termios> {
    let before = tcgetattr(terminal)?;
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    tcsetattr(terminal, SetArg::TCSADRAIN, &raw)?;
    Ok(before)
}

/// Makes `terminal` the controlling one of this process's session, which it leads: the process gets SIGWINCH from then on.
pub fn control(terminal: RawFd) -> Result<()> {
    // SAFETY: takes its argument by value.
    match unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) } {
        0.. => Ok(()),
        _ => Err(Error::last_os("take control of the terminal")),
    }
}

/// The terminal on standard input passes every key on; as it was before when dropped.
pub struct Raw(Termios);

impl Raw {
    /// Before anything reads from it: an end of file that was typed by then would pass for the end of the terminal.
    pub fn new() -> Result<Raw> {
        make_raw(&io::stdin()).doing(|| "terminal on standard input").map(Raw)
    }

    /// If standard input is a terminal.
    pub fn if_terminal() -> Result<Option<Raw>> {
        if nix::unistd::isatty(io::stdin()) == Ok(true) { Raw::new().map(Some) } else { Ok(None) }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

/// Whether the flags suit the process, in runc's words: who leaves a container with a terminal behind must have said who gets
/// the terminal.
pub fn check(terminal: bool, detach: bool, socket: Option<&Path>) -> Result<()> {
    if detach && terminal && socket.is_none() {
        return Err(Error::Usage("cannot allocate tty if runsc will detach without setting console socket".into()));
    }
    if socket.is_some() && !(detach && terminal) {
        return Err(Error::Usage("cannot use console socket if runsc will not detach or allocate tty".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use oci_spec::runtime::BoxBuilder;

    use super::*;

    #[test]
    fn the_listener_gets_a_master_of_the_right_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut process = Process::default();
        process.set_console_size(Some(BoxBuilder::default().height(11u64).width(22u64).build().unwrap()));
        let slave = make(&process, &path).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let (mut name, mut space) = ([0; 64], nix::cmsg_space!(RawFd));
        let mut data = [io::IoSliceMut::new(&mut name)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::empty()).unwrap();
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
            panic!("no descriptor")
        };
        assert_eq!(message.bytes, MASTER_NAME.len());
        // SAFETY: a descriptor that was just received.
        let mut master = unsafe { File::from_raw_fd(fds[0]) };
        // SAFETY: a structure of integers, which the kernel fills.
        let size = unsafe {
            let mut size: libc::winsize = std::mem::zeroed();
            assert_eq!(libc::ioctl(master.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size), 0);
            size
        };
        assert_eq!((size.ws_row, size.ws_col), (11, 22));
        master.write_all(b"\x03\r").unwrap();
        let mut typed = [0; 2];
        File::from(slave).read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"\x03\r", "nothing is edited on the host");
    }

    #[test]
    fn flags_must_go_together() {
        let socket = Some(Path::new("/s"));
        assert!(
            check(true, true, socket).is_ok() && check(true, false, None).is_ok() && check(false, true, None).is_ok()
        );
        assert!(check(true, true, None).is_err());
        assert!(check(false, true, socket).is_err());
        assert!(check(true, false, socket).is_err());
    }
}
