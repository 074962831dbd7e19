//! The other side of a connection, for tests that play it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use super::value::Value;
use super::wire::{Kind, Message, PREFIX};

/// One connection that was accepted.
pub struct Peer {
    stream: UnixStream,
    serial: u32,
}

impl Peer {
    /// Lets the client in.
    pub fn accept(mut stream: UnixStream) -> io::Result<Peer> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        if !line.starts_with(b"\0AUTH EXTERNAL ") {
            return Err(io::Error::other(format!("not EXTERNAL: {}", line.escape_ascii())));
        }
        let mut begin = [0; 7];
        stream.read_exact(&mut begin)?;
        stream.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n")?;
        if &begin != b"BEGIN\r\n" {
            return Err(io::Error::other(format!("no BEGIN: {}", begin.escape_ascii())));
        }
        Ok(Peer { stream, serial: 0 })
    }

    /// The next message; `None` at the end.
    pub fn receive(&mut self) -> io::Result<Option<Message>> {
        let mut prefix = [0; PREFIX];
        match self.stream.read_exact(&mut prefix) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let mut bytes = prefix.to_vec();
        bytes.resize(Message::total(&prefix).map_err(io::Error::other)?, 0);
        self.stream.read_exact(&mut bytes[PREFIX..])?;
        Message::decode(&bytes).map(Some).map_err(io::Error::other)
    }

    /// Sends a message, with the next number.
    pub fn send(&mut self, message: Message) -> io::Result<()> {
        self.serial += 1;
        self.stream.write_all(&Message { serial: self.serial, ..message }.encode())
    }

    /// Answers a call.
    pub fn answer(&mut self, call: &Message, body: Vec<Value>) -> io::Result<()> {
        self.send(Message { kind: Kind::Return, reply_to: call.serial, body, ..Message::default() })
    }

    /// Answers a call with an error.
    pub fn refuse(&mut self, call: &Message, name: &str, text: &str) -> io::Result<()> {
        let body = vec![Value::str(text)];
        self.send(Message { kind: Kind::Error, reply_to: call.serial, error: name.into(), body, ..Message::default() })
    }
}
