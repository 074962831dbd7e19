//! The control socket: how commands talk to a running sentry.
//!
//! A UNIX stream socket in the container's state directory. The client sends one JSON [`Request`] a line and gets one
//! JSON [`Response`] a line, in order, on the same connection. Descriptors travel as `SCM_RIGHTS` with the line's first
//! byte. The server's side is the sentry's.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Context, Error, Result};

/// The socket's name in the state directory.
pub const SOCKET: &str = "control.sock";

/// Longest line either side accepts, in bytes.
pub const MAX_LINE: u64 = 16 * 1024 * 1024;

/// What a command asks of the sentry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How the container is: [`State`].
    State {
        /// The container.
        id: String,
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
}

/// Who gets a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The container's first process.
    #[default]
    Init,
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
    /// `created`, `running` or `stopped`.
    pub status: oci_spec::runtime::ContainerState,
    /// How many processes it has.
    pub processes: u32,
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
    /// The name of its program.
    pub command: String,
}

/// A connection to a sentry.
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path` (see [`StateDir::short_path`](super::state::StateDir::short_path)).
    pub fn connect(path: &Path) -> Result<Client> {
        let stream = UnixStream::connect(path).doing(|| "connect to the sentry")?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// How long an answer may take; for ever when `None`, which is the default.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        self.stream.get_ref().set_read_timeout(timeout).doing(|| "set a timeout")
    }

    /// Asks and waits for the answer.
    pub fn call<T: for<'de> Deserialize<'de>>(&mut self, request: &Request) -> Result<T> {
        let doing = || "talk to the sentry";
        let mut line = serde_json::to_vec(request).map_err(io::Error::from).doing(doing)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).doing(doing)?;
        let answer = read_line(&mut self.stream).doing(doing)?;
        let answer = answer.ok_or(io::ErrorKind::UnexpectedEof).doing(doing)?;
        match serde_json::from_slice(&answer).map_err(io::Error::from).doing(doing)? {
            Response::Ok(value) => serde_json::from_value(value).map_err(io::Error::from).doing(doing),
            Response::Error(problem) => Err(Error::Process { process: "sentry", problem }),
        }
    }
}

/// Reads a line of at most [`MAX_LINE`] bytes; `None` at the end of the stream.
pub fn read_line(stream: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    io::Read::take(&mut *stream, MAX_LINE).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        let mut client = Client { stream: BufReader::new(ours) };
        let server = std::thread::spawn(move || {
            let mut stream = BufReader::new(theirs);
            for answer in [json!({"ok": {"status": 3}}), json!({"error": "no such process"})] {
                read_line(&mut stream).unwrap().unwrap();
                writeln!(stream.get_mut(), "{answer}").unwrap();
            }
        });
        let wait = Request::Wait { id: "a".into(), pid: None };
        assert_eq!(client.call::<Exit>(&wait).unwrap(), Exit { status: 3 });
        assert_eq!(client.call::<Exit>(&wait).unwrap_err().to_string(), "sentry: no such process");
        server.join().unwrap();
        assert!(client.call::<Exit>(&wait).is_err(), "the server is gone");
    }

    #[test]
    fn lines_end_with_a_newline() {
        assert_eq!(read_line(&mut &b"ab\ncd"[..]).unwrap(), Some(b"ab".to_vec()));
        assert_eq!(read_line(&mut &b""[..]).unwrap(), None);
        assert!(read_line(&mut &b"cd"[..]).is_err());
    }
}
