//! The control socket: how commands talk to a running sentry.
//!
//! A UNIX stream socket in the state directory of the sandbox's first container. The client sends one JSON [`Request`] a
//! line and gets one JSON [`Response`] a line, and sends nothing more until it has it. Descriptors travel as `SCM_RIGHTS`
//! with the line's first byte. The server's side is the sentry's.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, sendmsg,
    socket,
};
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec, Spec};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Context, Error, Result};
use super::network::Link;
use super::state::socket_in;

/// The socket's name in the state directory.
pub const SOCKET: &str = "control.sock";

/// Longest line either side accepts, in bytes.
pub const MAX_LINE: usize = 16 * 1024 * 1024;

/// Most descriptors with one line: `SCM_MAX_FD`, `unix(7)`.
pub const MAX_FDS: usize = 253;

/// What a command asks of the sentry. Each names the container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How the container is: [`State`].
    State {
        /// The container.
        id: String,
    },
    /// Runs the `startContainer` hooks of a created container, each of which may take its time. To be asked before `Start`
    /// of every container; there may be none. The answer has no content.
    StartHooks {
        /// The container.
        id: String,
        /// Its state.
        state: Box<oci_spec::runtime::State>,
    },
    /// Lets the program of a created container go. The answer has no content.
    Start {
        /// The container.
        id: String,
    },
    /// Gives the sandbox its interfaces, once, before its first container is started. Descriptors: one device for each, in
    /// order, then with `dns` a UDP socket connected to Docker's name server. All are non-blocking. The answer has no
    /// content.
    Network {
        /// The sandbox's first container.
        id: String,
        /// The interfaces.
        links: Vec<Link>,
        /// Whether there is a name server.
        dns: bool,
    },
    /// Makes a further container in the sandbox, whose program is loaded and not let go. Descriptors: standard input,
    /// output and error (with `process.terminal` the one host terminal three times), the file that gets the exit status, one
    /// connection to the gofer for each of `mounts`, `cgroups` files that put a process into the container's own cgroup, then
    /// those that become 3, 4 and so on. When the connection is closed
    /// before the container has ended, it is killed. The answer has no content.
    Create {
        /// The new container.
        id: String,
        /// What to run, checked.
        spec: Box<Spec>,
        /// What its gofer serves; the first is the root.
        mounts: Vec<Served>,
        /// How many files there are for the container's cgroup; none when it has no cgroup of its own.
        #[serde(default)]
        cgroups: usize,
        /// Whether the root gets a writable layer in memory.
        overlay: bool,
        /// What it shares with another container of the sandbox.
        #[serde(default)]
        shares: Shares,
    },
    /// Starts a further process: [`Started`]. Descriptors: standard input, output and error, then those that become 3, 4
    /// and so on. When the connection is closed before the process has ended, the process is killed.
    Exec {
        /// The container.
        id: String,
        /// What to run.
        process: Box<ProcessSpec>,
        /// Start it in a paused container too, to run when that is resumed.
        #[serde(default)]
        ignore_paused: bool,
    },
    /// Waits for a process of the container to end: [`Exit`]. The answer comes when it has.
    Wait {
        /// The container.
        id: String,
        /// Its number inside the container; the first process when not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
    },
    /// Sends a signal. The answer has no content.
    Signal {
        /// The container.
        id: String,
        /// The signal's number, 1 to 64.
        signal: i32,
        /// Who gets it.
        #[serde(default)]
        target: Target,
    },
    /// The container's processes: a list of [`Process`].
    Ps {
        /// The container.
        id: String,
    },
    /// What the container has used: memory, CPU time, processes.
    Events {
        /// The container.
        id: String,
    },
    /// Shows its files to whoever asks on a connection, as in [`files`](super::files), as long as it runs. Descriptor: the
    /// connection. The answer has no content.
    Files {
        /// The container.
        id: String,
    },
    /// Tells the container its limits, which have been set on the host. The answer has no content.
    Limit {
        /// The container.
        id: String,
        /// All of them, `linux.resources`.
        resources: Box<LinuxResources>,
    },
    /// Stops every process of the container, without its notice. The answer has no content and comes when all stand still.
    Pause {
        /// The container.
        id: String,
    },
    /// Undoes [`Request::Pause`]. The answer has no content.
    Resume {
        /// The container.
        id: String,
    },
    /// Sets the size of a process's terminal. The answer has no content.
    Resize {
        /// The container.
        id: String,
        /// The process that was started on the terminal; the first process when not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
        /// Lines; with `columns` 0, the size that the host's terminal has now.
        rows: u16,
        /// Characters a line.
        columns: u16,
    },
    /// Kills what is left of a container and forgets it. The answer has no content. The first container's goes with the
    /// sandbox.
    Destroy {
        /// The container.
        id: String,
    },
}

impl Request {
    /// The container that it concerns.
    pub fn id(&self) -> &str {
        match self {
            Request::State { id }
            | Request::StartHooks { id, .. }
            | Request::Start { id }
            | Request::Network { id, .. }
            | Request::Create { id, .. }
            | Request::Exec { id, .. }
            | Request::Wait { id, .. }
            | Request::Signal { id, .. }
            | Request::Ps { id }
            | Request::Events { id }
            | Request::Files { id }
            | Request::Limit { id, .. }
            | Request::Pause { id }
            | Request::Resume { id }
            | Request::Resize { id, .. }
            | Request::Destroy { id } => id,
        }
    }
}

/// A tree of files of [`Request::Create`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Where it is mounted in the container; `/` for the root.
    pub destination: PathBuf,
    /// Whether the gofer refuses every change.
    pub read_only: bool,
    /// Whether what the host mounts there later is served too.
    #[serde(default)]
    pub follows: bool,
}

/// Of which container a further one of a sandbox shares what, beyond the network that all share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// The container whose process numbers it joins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<String>,
    /// The container whose System V IPC it joins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipc: Option<String>,
    /// The container whose host name it joins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uts: Option<String>,
}

/// Who gets a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The container's first process. What it does not handle does not reach it, but for `SIGKILL` and `SIGSTOP`, as with
    /// any first process of a PID namespace.
    #[default]
    Init,
    /// The first process, which is not spared: whoever ends the command that runs a container means the container.
    Attached,
    /// Every process of the container.
    All,
    /// The foreground process group of the first process's terminal, or the first process's own group when it has no
    /// terminal: what the terminal's interrupt key means.
    Foreground,
    /// One process, by its number inside the container.
    Process(i32),
}

/// The sentry's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// It was done; what was asked for.
    Ok(Value),
    /// It was not, and why, in words for the operator.
    Error(String),
}

/// The answer to [`Request::State`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `created`, `running`, `paused` or `stopped`.
    pub status: super::state::Status,
    /// How many processes it has.
    pub processes: u32,
}

/// The answer to [`Request::Exec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The process's number inside the container.
    pub pid: i32,
}

/// The answer to [`Request::Wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status, or 128 plus the signal that killed it.
    pub status: i32,
}

/// A line of [`Request::Ps`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its user.
    pub uid: u32,
    /// Its number inside the container.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// How many threads it has.
    pub threads: u32,
    /// CPU time used, in microseconds.
    pub cpu_time: u64,
    /// How long it has run, in microseconds.
    pub running_time: u64,
    /// The number of its controlling terminal in `/dev/pts`.
    pub terminal: Option<u32>,
    /// The number of the host process that holds its memory, in the sentry's PID namespace; 0 when it has none any more.
    pub stub: i32,
    /// Its arguments, or its name in brackets when they cannot be read.
    pub command: String,
}

/// How long a sentry may take to accept a connection, and to answer what it can answer at once.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to a sentry.
pub struct Client {
    channel: Channel,
    /// The directory of the control socket, where to ask whether the sentry is there still while an answer is awaited.
    directory: Option<File>,
}

impl Client {
    /// Connects to the control socket in `directory`. An answer may take as long as it needs, if only the sentry answers other
    /// questions within [`PATIENCE`]; otherwise [`Error::Io`].
    pub fn connect(directory: &File) -> Result<Client> {
        Client::connect_patiently(directory, PATIENCE)
    }

    fn connect_patiently(directory: &File, patience: Duration) -> Result<Client> {
        let mut client = Client::connect_within(&socket_in(directory), patience)?;
        client.directory = Some(directory.try_clone().doing(|| "connect to the sentry")?);
        Ok(client)
    }

    /// Connects to the socket at `path` (see [`StateDir::short_path`](super::state::StateDir::short_path)). So long may it take,
    /// and so long each answer: a sentry that is stopped takes no connections from its queue, and once that is full there is none
    /// to be had.
    pub fn connect_within(path: &Path, timeout: Duration) -> Result<Client> {
        let doing = || "connect to the sentry";
        let connect = || -> io::Result<UnixStream> {
            let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            let stream = UnixStream::from(socket);
            // `connect(2)` heeds it, too: `socket(7)`.
            stream.set_write_timeout(Some(timeout))?;
            stream.set_read_timeout(Some(timeout))?;
            nix::sys::socket::connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
            Ok(stream)
        };
        Ok(Client::from_stream(connect().map_err(too_late).doing(doing)?))
    }

    /// Over a connection that another process has made.
    pub fn from_stream(stream: UnixStream) -> Client {
        Client { channel: Channel::new(stream), directory: None }
    }

    /// The connection, for another process. No answer may be on its way.
    pub fn into_stream(self) -> Result<UnixStream> {
        self.wait_for_ever()?;
        Ok(self.channel.stream)
    }

    /// Lets an answer take as long as it may, whatever becomes of the sentry.
    pub fn wait_for_ever(&self) -> Result<()> {
        let stream = &self.channel.stream;
        stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None)).doing(|| "remove a timeout")
    }

    /// Asks and waits for the answer.
    pub fn call<T: for<'de> Deserialize<'de>>(&mut self, request: &Request) -> Result<T> {
        self.call_with_fds(request, &[])
    }

    /// As [`Client::call`], with descriptors, which the sentry gets copies of.
    pub fn call_with_fds<T>(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<T>
    where
        T: for<'de> Deserialize<'de>,
    {
        self.send(request, fds)?;
        self.answer()
    }

    /// Asks without waiting for the answer.
    pub fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let doing = || "talk to the sentry";
        let line = serde_json::to_vec(request).map_err(io::Error::from).doing(doing)?;
        self.channel.send(line, fds).map_err(too_late).doing(doing)
    }

    /// Waits for the answer to [`Client::send`]. [`Error::Io`] when the sentry has gone, or answers nothing any more.
    pub fn answer<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T> {
        let doing = || "talk to the sentry";
        let answer = loop {
            match self.channel.receive() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.is_there() => {}
                answer => break answer.map_err(too_late).doing(doing)?,
            }
        };
        let (answer, _) = answer.ok_or(io::ErrorKind::UnexpectedEof).doing(doing)?;
        match serde_json::from_slice(&answer).map_err(io::Error::from).doing(doing)? {
            Response::Ok(value) => serde_json::from_value(value).map_err(io::Error::from).doing(doing),
            Response::Error(problem) => Err(Error::Process { process: "sentry", problem }),
        }
    }
}

impl Client {
    /// Whether the sentry answers on another connection: of no container, so that it need not look far.
    fn is_there(&self) -> bool {
        let Some(directory) = &self.directory else { return false };
        let patience = self.channel.stream.read_timeout().ok().flatten().unwrap_or(PATIENCE);
        let asked = Client::connect_within(&socket_in(directory), patience)
            .and_then(|mut other| other.call::<State>(&Request::State { id: String::new() }));
        matches!(asked, Ok(_) | Err(Error::Process { .. }))
    }
}

/// What a timeout of a socket is told as.
fn too_late(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl AsFd for Client {
    /// What to poll: readable when an answer, or the connection's end, has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.stream.as_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// One side of a connection: whole lines and the descriptors that come with them.
///
/// Descriptors travel with a line's end. One `recvmsg(2)` may return several lines, but nothing behind the bytes that bring
/// descriptors, `unix(7)`: those that it brings are the last line's.
pub struct Channel {
    stream: UnixStream,
    /// What has been read beyond the last line.
    pending: Vec<u8>,
    /// The descriptors of the line that ends `pending`.
    fds: Vec<OwnedFd>,
}

impl Channel {
    /// Over a connected socket.
    pub fn new(stream: UnixStream) -> Channel {
        Channel { stream, pending: Vec::new(), fds: Vec::new() }
    }

    /// Sends a line (without its end) and copies of descriptors, at most [`MAX_FDS`].
    pub fn send(&self, mut line: Vec<u8>, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if fds.is_empty() {
            line.push(b'\n');
            return self.send_all(&line, &[]);
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        self.send_all(&line, &[])?;
        self.send_all(b"\n", &[ControlMessage::ScmRights(&raw)])
    }

    /// The control message goes with the first byte.
    fn send_all(&self, mut rest: &[u8], mut rights: &[ControlMessage<'_>]) -> io::Result<()> {
        while !rest.is_empty() {
            let data = [IoSlice::new(rest)];
            match sendmsg::<()>(self.stream.as_raw_fd(), &data, rights, MsgFlags::MSG_NOSIGNAL, None) {
                Err(nix::errno::Errno::EINTR) => {}
                sent => {
                    rest = &rest[sent?..];
                    rights = &[];
                }
            }
        }
        Ok(())
    }

    /// The next line and the descriptors that came with it; `None` at the end of the stream. `InvalidData` for a line
    /// above [`MAX_LINE`], for one that the end cuts off and for more than [`MAX_FDS`] descriptors.
    pub fn receive(&mut self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let mut looked_at = 0;
        loop {
            if let Some(at) = self.pending[looked_at..].iter().position(|&byte| byte == b'\n') {
                let rest = self.pending.split_off(looked_at + at + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                let fds = if self.pending.is_empty() { std::mem::take(&mut self.fds) } else { Vec::new() };
                return Ok(Some((line, fds)));
            }
            looked_at = self.pending.len();
            if looked_at > MAX_LINE || self.fds.len() > MAX_FDS {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.receive_some()? == 0 {
                return if looked_at == 0 { Ok(None) } else { Err(io::ErrorKind::InvalidData.into()) };
            }
        }
    }

    /// One `recvmsg(2)`.
    fn receive_some(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut data = [IoSliceMut::new(&mut buffer)];
        let socket = self.stream.as_raw_fd();
        let len = loop {
            match recvmsg::<()>(socket, &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(nix::errno::Errno::EINTR) => {}
                received => {
                    let message = received?;
                    for control in message.cmsgs()? {
                        if let ControlMessageOwned::ScmRights(received) = control {
                            // SAFETY: the kernel has just made these descriptors for this process.
                            self.fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                        }
                    }
                    break message.bytes;
                }
            }
        };
        self.pending.extend_from_slice(&buffer[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::{Read, Write};

    #[test]
    fn requests_on_the_wire() {
        let signal = Request::Signal { id: "a".into(), signal: 15, target: Target::Process(7) };
        let text = json!({"method": "signal", "id": "a", "signal": 15, "target": {"process": 7}});
        assert_eq!(serde_json::to_value(&signal).unwrap(), text);
        let wait: Request = serde_json::from_value(json!({"method": "wait", "id": "a"})).unwrap();
        assert_eq!(wait, Request::Wait { id: "a".into(), pid: None });
        assert!(serde_json::from_value::<Request>(json!({"method": "reboot"})).is_err());
    }

    #[test]
    fn a_client_gets_answers_and_errors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut client = Client::from_stream(ours);
        let server = std::thread::spawn(move || {
            let mut channel = Channel::new(theirs);
            for answer in [json!({"ok": {"status": 3}}), json!({"error": "no such process"})] {
                channel.receive().unwrap().unwrap();
                channel.send(answer.to_string().into_bytes(), &[]).unwrap();
            }
        });
        let wait = Request::Wait { id: "a".into(), pid: None };
        assert_eq!(client.call::<Exit>(&wait).unwrap(), Exit { status: 3 });
        assert_eq!(client.call::<Exit>(&wait).unwrap_err().to_string(), "sentry: no such process");
        server.join().unwrap();
        assert!(client.call::<Exit>(&wait).is_err(), "the server is gone");
    }

    /// A sentry that answers nothing on the first connection before `others` have been answered on further ones.
    fn slow_sentry(others: usize) -> (tempfile::TempDir, File, std::thread::JoinHandle<()>) {
        let place = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(place.path().join(SOCKET)).unwrap();
        let server = std::thread::spawn(move || {
            let accept = || Channel::new(listener.accept().unwrap().0);
            let mut first = accept();
            first.receive().unwrap().unwrap();
            for _ in 0..others {
                let mut other = accept();
                other.receive().unwrap().unwrap();
                other.send(json!({"error": "no such container"}).to_string().into_bytes(), &[]).unwrap();
            }
            if others == 0 {
                // It neither answers nor goes before the client does.
                assert!(first.receive().unwrap().is_none());
            } else {
                first.send(json!({"ok": {"status": 3}}).to_string().into_bytes(), &[]).unwrap();
            }
        });
        let directory = File::open(place.path()).unwrap();
        (place, directory, server)
    }

    #[test]
    fn what_takes_long_is_waited_for_while_the_sentry_is_there() {
        let wait = Request::Wait { id: "a".into(), pid: None };
        let patience = Duration::from_millis(500);
        let (_place, directory, server) = slow_sentry(2);
        let mut client = Client::connect_patiently(&directory, patience).unwrap();
        assert_eq!(client.call::<Exit>(&wait).unwrap(), Exit { status: 3 });
        server.join().unwrap();

        let (_place, directory, server) = slow_sentry(0);
        let mut client = Client::connect_patiently(&directory, patience).unwrap();
        assert_eq!(client.call::<Exit>(&wait).unwrap_err().to_string(), "talk to the sentry: timed out");
        drop(client);
        server.join().unwrap();
    }

    #[test]
    fn descriptors_come_with_their_line() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, mut theirs) = (Channel::new(ours), Channel::new(theirs));
        let (read, write) = nix::unistd::pipe().unwrap();
        let long = vec![b'x'; 100_000];
        let sent = long.clone();
        // One line at a time, as the protocol has it: the descriptors of the next could come with the end of this one.
        ours.send(b"none".to_vec(), &[]).unwrap();
        assert_eq!(theirs.receive().unwrap().map(|(line, fds)| (line, fds.len())), Some((b"none".to_vec(), 0)));
        let sender = std::thread::spawn(move || ours.send(sent, &[write.as_fd()]).unwrap());
        let (line, mut fds) = theirs.receive().unwrap().unwrap();
        sender.join().unwrap();
        assert_eq!(line, long);
        std::fs::File::from(fds.pop().unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through", "the copy is the only one left");
    }

    #[test]
    fn lines_end_with_a_newline() {
        let received = |bytes: &[u8]| {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(bytes).unwrap();
            drop(ours);
            Channel::new(theirs).receive().map(|line| line.map(|(line, _)| line))
        };
        assert_eq!(received(b"ab\ncd").unwrap(), Some(b"ab".to_vec()));
        assert_eq!(received(b"").unwrap(), None);
        assert!(received(b"cd").is_err());
    }
}
