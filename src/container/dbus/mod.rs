//! A small client of D-Bus, for talking to systemd: calls with an answer, and signals that are waited for.
//!
//! A bus crate would bring an executor and dozens of crates for the six methods that are called ([`wire`] is what they
//! need). Descriptors are not passed.
//!
//! ```text
//! connect ── "\0AUTH EXTERNAL 30\r\nBEGIN\r\n" ─▶ "OK …" ─▶ messages; on a bus "Hello" first
//! ```

#[cfg(test)]
pub(super) mod peer;
pub mod text;
pub mod value;
pub mod wire;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

pub use value::Value;
pub use wire::{Kind, Message};

/// Signals that are kept until somebody waits for them. The oldest go.
const KEPT: usize = 1024;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The connection.
    #[error("{}", crate::errno::describe(.0))]
    Io(#[from] io::Error),
    /// What came cannot be understood.
    #[error("{0}")]
    Protocol(String),
    /// The peer's own answer.
    #[error("{text}")]
    Refused {
        /// The error: `org.freedesktop.systemd1.NoSuchUnit`.
        name: String,
        /// What it says of it.
        text: String,
    },
}

impl Failure {
    /// Whether the peer has answered with this error.
    pub fn is(&self, wanted: &str) -> bool {
        matches!(self, Failure::Refused { name, .. } if name == wanted)
    }
}

impl From<wire::Damaged> for Failure {
    fn from(damaged: wire::Damaged) -> Failure {
        Failure::Protocol(damaged.to_string())
    }
}

/// What is called: an object's method.
#[derive(Clone, Copy, Debug)]
pub struct Method<'a> {
    /// Whose object it is.
    pub destination: &'a str,
    /// The object.
    pub path: &'a str,
    /// The method's interface.
    pub interface: &'a str,
    /// The method.
    pub member: &'a str,
}

/// The methods of the bus itself.
const fn bus(member: &str) -> Method<'_> {
    Method {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member,
    }
}

/// A connection to a peer, or to a bus.
pub struct Connection {
    stream: UnixStream,
    serial: u32,
    /// How long an answer, or a signal that is waited for, may take.
    patience: Duration,
    /// The one kind of signal that is kept.
    listens_to: &'static str,
    signals: VecDeque<Message>,
}

impl Connection {
    /// Connects and says who this is: the effective user, whom the socket's other end knows by `SO_PEERCRED`.
    pub fn connect(socket: &Path, patience: Duration, listens_to: &'static str) -> Result<Connection, Failure> {
        let stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(patience))?;
        let mut connection = Connection { stream, serial: 0, patience, listens_to, signals: VecDeque::new() };
        connection.authenticate()?;
        Ok(connection)
    }

    /// On a bus: gets a name, without which nothing is passed on, and asks for the signals of `sender` that are listened to.
    pub fn join_bus(&mut self, sender: &str, interface: &str) -> Result<(), Failure> {
        self.call(bus("Hello"), vec![])?;
        let member = self.listens_to;
        let rule = format!("type='signal',sender='{sender}',interface='{interface}',member='{member}'");
        self.call(bus("AddMatch"), vec![Value::Str(rule)]).map(drop)
    }

    /// The `EXTERNAL` mechanism: the user's number in hexadecimal digits of its decimal ones. All is said at once, as
    /// systemd's own library does: a systemd that reads `BEGIN` and a message in one go does not see the message before the
    /// next one.
    fn authenticate(&mut self) -> Result<(), Failure> {
        let uid = nix::unistd::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let answer = self.read_line()?;
        if answer.split(' ').next() != Some("OK") {
            return Err(Failure::Protocol(format!("it does not let this user in: {answer:?}")));
        }
        Ok(())
    }

    /// A line of the authentication. Byte by byte, as messages may follow.
    fn read_line(&mut self) -> Result<String, Failure> {
        const LONGEST: usize = 4096;
        let deadline = Instant::now() + self.patience;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.read_exact(&mut byte, deadline)?;
            line.push(byte[0]);
            if line.len() > LONGEST {
                return Err(Failure::Protocol("it does not speak D-Bus".into()));
            }
        }
        Ok(String::from_utf8_lossy(&line[..line.len() - 2]).into_owned())
    }

    fn read_exact(&mut self, mut buffer: &mut [u8], deadline: Instant) -> Result<(), Failure> {
        while !buffer.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => buffer = &mut buffer[n..],
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Calls a method and waits for its answer: what it returns.
    pub fn call(&mut self, method: Method<'_>, body: Vec<Value>) -> Result<Vec<Value>, Failure> {
        self.serial += 1;
        let message = Message {
            kind: Kind::Call,
            serial: self.serial,
            path: method.path.into(),
            interface: method.interface.into(),
            member: method.member.into(),
            destination: method.destination.into(),
            body,
            ..Message::default()
        };
        self.stream.write_all(&message.encode())?;
        let deadline = Instant::now() + self.patience;
        loop {
            let answer = self.receive(deadline)?;
            match answer.kind {
                Kind::Return if answer.reply_to == self.serial => return Ok(answer.body),
                Kind::Error if answer.reply_to == self.serial => {
                    let text = answer.body.first().and_then(Value::as_str).unwrap_or(&answer.error);
                    return Err(Failure::Refused { text: text.replace('\n', " "), name: answer.error.clone() });
                }
                _ => self.keep(answer),
            }
        }
    }

    /// Waits for a signal of the kind that is listened to; one may have come before.
    pub fn wait_signal(&mut self, wanted: impl Fn(&Message) -> bool) -> Result<Message, Failure> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(at) = self.signals.iter().position(&wanted)
                && let Some(signal) = self.signals.remove(at)
            {
                return Ok(signal);
            }
            let message = self.receive(deadline)?;
            self.keep(message);
        }
    }

    fn keep(&mut self, message: Message) {
        if message.kind == Kind::Signal && message.member == self.listens_to {
            if self.signals.len() == KEPT {
                self.signals.pop_front();
            }
            self.signals.push_back(message);
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message, Failure> {
        let mut prefix = [0; wire::PREFIX];
        self.read_exact(&mut prefix, deadline)?;
        let mut bytes = prefix.to_vec();
        bytes.resize(Message::total(&prefix)?, 0);
        self.read_exact(&mut bytes[wire::PREFIX..], deadline)?;
        Ok(Message::decode(&bytes)?)
    }
}

#[cfg(test)]
mod tests;
