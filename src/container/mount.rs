//! Making a container's files ([`view`](super::view)) appear in a directory of the host, and the process that answers for
//! them until they are unmounted or the container has ended.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use super::boot::{read_config, take};
use super::control::{Client, Request};
use super::error::{Context, Error, Result};
use super::spawn::{Child, Manner, spawn_as};
use super::state::{self, Status};
use super::view::View;
use super::{files, stand_in};

/// `mount(2)`, from Linux 5.10 on; not in every libc.
const MS_NOSYMFOLLOW: libc::c_ulong = 256;

/// What `/proc/self/mountinfo` shows as type.
const TYPE: &str = "fuse.runsc";

/// What the process that answers says when it is ready; anything else is why it is not.
const READY: &str = "ready";

/// What `runsc view` is told. Descriptors are numbers in its process; it owns them.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    id: String,
    point: Point,
    /// `/dev/fuse`, mounted.
    device: RawFd,
    /// Where files are asked about.
    files: RawFd,
    /// A connection to the control socket.
    connection: RawFd,
    /// Where it says that it is ready.
    ready: RawFd,
}

/// Shows the files of container `id` in the directory `point`. Returns once they can be seen there.
pub fn show(root: &Path, id: &str, point: &Path) -> Result<()> {
    let record = state::load(root, id)?;
    if matches!(record.status(), Status::Creating | Status::Stopped) {
        return Err(Error::Usage(format!("container not running: {id:?} is {}", record.status())));
    }
    let point = fs::canonicalize(point).doing(|| point.display().to_string())?;
    if !point.is_dir() {
        return Err(Error::Usage(format!("{} is not a directory", point.display())));
    }
    let device = File::options().read(true).write(true).open("/dev/fuse").doing(|| "open /dev/fuse")?;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(io::Error::from)
        .doing(|| "make a connection to the sentry")?;
    let mut connection = state::connect(root, &record)?;
    connection.call_with_fds::<()>(&Request::Files { id: id.to_owned() }, &[theirs.as_fd()])?;
    drop(theirs);
    let point = Point::mount(&device, &point, id)?;
    let started = start(id, &point, &device, &ours, connection);
    if started.is_err() {
        point.unmount();
    }
    started
}

/// Where the files are shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Point {
    directory: PathBuf,
    /// The mount's number and that of its file system, as in `/proc/self/mountinfo`.
    mount: String,
    device: String,
}

impl Point {
    /// Mounts the file system that `device` answers for.
    fn mount(device: &File, directory: &Path, id: &str) -> Result<Point> {
        let doing = || format!("mount {}", directory.display());
        let text = |text: &[u8]| CString::new(text).map_err(io::Error::from).doing(doing);
        let (source, target) = (text(format!("runsc:{id}").as_bytes())?, text(directory.as_os_str().as_bytes())?);
        let kind = text(TYPE.as_bytes())?;
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions", device.as_raw_fd()).into_bytes();
        let options = text(&options)?;
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | MS_NOSYMFOLLOW;
        // SAFETY: four C strings that outlive the call.
        let done =
            unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) };
        if done < 0 {
            return Err(Error::last_os(doing()));
        }
        let found = Point::find(directory)?;
        let Some((point, options)) = found else {
            let _ = umount2(directory, MntFlags::MNT_DETACH);
            return Err(Error::Usage(format!("{}: the mount cannot be found", directory.display())));
        };
        if !options.split(',').any(|option| option == "nosymfollow") {
            point.unmount();
            let text = "links of a container would lead into the host's files: this needs Linux 5.10";
            return Err(Error::Usage(text.into()));
        }
        Ok(point)
    }

    /// What is mounted uppermost at a directory, if it is of this type, and the mount's own options.
    fn find(directory: &Path) -> Result<Option<(Point, String)>> {
        let doing = || "read /proc/self/mountinfo";
        let table = fs::read_to_string("/proc/self/mountinfo").doing(doing)?;
        Ok(find_in(&table, directory))
    }

    /// Unmounts it, unless that has been done.
    fn unmount(&self) {
        match Point::find(&self.directory) {
            Ok(Some((point, _))) if point == *self => {
                let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
                if let Err(error) = umount2(&self.directory, flags) {
                    log::warn!("unmount {}: {error}", self.directory.display());
                }
            }
            Ok(_) => {}
            Err(error) => log::warn!("{error}"),
        }
    }
}

/// The line that [`Point::find`] looks for, in `proc_pid_mountinfo(5)`'s form.
fn find_in(table: &str, directory: &Path) -> Option<(Point, String)> {
    let at = |line: &&str| line.split(' ').nth(4).is_some_and(|point| unescape(point) == directory);
    let line = table.lines().rfind(at)?;
    let mut words = line.split(' ');
    let (mount, _, device) = (words.next()?, words.next()?, words.next()?);
    let options = words.nth(2)?;
    let kind = line.split_once(" - ")?.1.split(' ').next()?;
    let point = Point { directory: directory.to_owned(), mount: mount.into(), device: device.into() };
    (kind == TYPE).then(|| (point, options.to_owned()))
}

/// A path as mountinfo shows it: blanks and backslashes are `\` and three octal digits.
fn unescape(shown: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = shown.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Starts the process that answers, and waits until it does.
fn start(id: &str, point: &Point, device: &File, files: &OwnedFd, connection: Client) -> Result<()> {
    let doing = || "start the process that shows the files";
    let connection = connection.into_stream()?;
    let (ready, says_ready) = pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).doing(doing)?;
    let config = Config {
        id: id.to_owned(),
        point: point.clone(),
        device: device.as_raw_fd(),
        files: files.as_raw_fd(),
        connection: connection.as_raw_fd(),
        ready: says_ready.as_raw_fd(),
    };
    let text = serde_json::to_vec(&config).map_err(io::Error::from).doing(doing)?;
    let memory = memfd_create("runsc-config", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from).doing(doing)?;
    let mut memory = File::from(memory);
    memory.write_all(&text).doing(doing)?;
    let inherited = [config.device, config.files, config.connection, config.ready, memory.as_raw_fd()];
    let descriptor = format!("--config-fd={}", memory.as_raw_fd());
    let manner = Manner { namespaces: 0, joined: Vec::new(), blocked: SigSet::all(), silent: true };
    let child = spawn_as(&manner, &["runsc-view", "view", &descriptor, "--id", id], &inherited)?;
    drop(says_ready);
    await_ready(ready)?;
    Child::release(child);
    Ok(())
}

fn await_ready(ready: OwnedFd) -> Result<()> {
    let mut said = String::new();
    File::from(ready).read_to_string(&mut said).doing(|| "wait for the process that shows the files")?;
    match said.as_str() {
        READY => Ok(()),
        "" => Err(Error::Usage("the process that shows the files has ended".into())),
        problem => Err(Error::Usage(problem.to_owned())),
    }
}

/// The process behind `runsc view`; returns its exit status.
pub fn main(config_fd: RawFd) -> i32 {
    let Ok(config) = read_config::<Config>(config_fd) else { return 128 };
    let mut ready = File::from(take(config.ready));
    match begin(&config) {
        Ok(showing) => {
            // Whoever has started it may have been killed.
            let _ = ready.write_all(READY.as_bytes());
            drop(ready);
            showing.until_the_end();
            0
        }
        Err(error) => {
            let _ = ready.write_all(error.to_string().as_bytes());
            128
        }
    }
}

/// Files that are shown.
struct Showing {
    point: Point,
    connection: Client,
    signals: SignalFd,
    /// Closed by the other side when they have been unmounted.
    unmounted: OwnedFd,
}

fn begin(config: &Config) -> Result<Showing> {
    let device = take(config.device);
    let view = View::new(files::Client::new(take(config.files)));
    let mut connection = Client::from_stream(take(config.connection).into());
    let signals = stand_in::take_all_signals()?;
    // Nobody's working directory is kept busy.
    nix::unistd::chdir("/").map_err(io::Error::from).doing(|| "change to /")?;
    let doing = || "show the files";
    let session = fuser::Session::from_fd(view, device, fuser::SessionACL::Owner, fuser::Config::default());
    let session = session.doing(doing)?;
    let (unmounted, shown) = pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).doing(doing)?;
    let answer = move || {
        let _shown = shown;
        if let Err(error) = session.run() {
            log::warn!("show files: {error}");
        }
    };
    std::thread::Builder::new().name("view".into()).spawn(answer).doing(doing)?;
    connection.send(&Request::Wait { id: config.id.clone(), pid: None }, &[])?;
    Ok(Showing { point: config.point.clone(), connection, signals, unmounted })
}

impl Showing {
    /// Returns when they have been unmounted: by the operator, or by this at the container's end or at a signal.
    fn until_the_end(self) {
        loop {
            let what = [self.connection.as_fd(), self.signals.as_fd(), self.unmounted.as_fd()];
            let mut fds = what.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => break,
            }
            let [ended, signalled, unmounted] = fds.map(|fd| fd.any() == Some(true));
            if unmounted {
                return;
            }
            if ended || signalled && self.is_told_to_end() {
                break;
            }
        }
        self.point.unmount();
    }

    fn is_told_to_end(&self) -> bool {
        let ends =
            |signal: u32| !matches!(signal as i32, libc::SIGCHLD | libc::SIGPIPE | libc::SIGCONT | libc::SIGWINCH);
        let mut told = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            told |= ends(info.ssi_signo);
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uppermost_mount_counts() {
        let table = "36 35 0:40 / /mnt\\040here ro,nosymfollow shared:1 - fuse.runsc runsc:a ro,user_id=0\n\
                     37 35 0:41 / /mnt rw - fuse.runsc runsc:b rw\n\
                     38 37 0:42 / /mnt rw - tmpfs none rw\n";
        let (point, options) = find_in(table, Path::new("/mnt here")).unwrap();
        assert_eq!((point.mount.as_str(), point.device.as_str(), options.as_str()), ("36", "0:40", "ro,nosymfollow"));
        assert_eq!(find_in(table, Path::new("/mnt")), None);
        assert_eq!(find_in(table, Path::new("/")), None);
        assert_eq!(unescape("/a\\134b\\x"), Path::new("/a\\b\\x"));
    }
}
