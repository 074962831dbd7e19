//! How `runsc mount` looks at a container's files: what it asks of the sentry, and how.
//!
//! Requests and answers are messages on a `SOCK_SEQPACKET` connection that comes with [`control::Request::Files`], in the
//! notation of the gofer's protocol. Files are named by their paths from the container's root, of which no component is a
//! symbolic link: the sentry keeps nothing for whoever looks but what is open.
//!
//! ```text
//! request  operation u8, its fields               Close has no answer, everything else has one
//! answer   errno u32, and with errno 0 its fields
//! ```
//!
//! [`control::Request::Files`]: super::control::Request::Files

use std::os::fd::{AsFd, OwnedFd};

use crate::errno::{Errno, Result};
use crate::gofer::codec::{Decoded, Get, MAX_NAME, MAX_PATH, Malformed, Put, Stat, is_name};
use crate::gofer::wire::{self, MAX_MESSAGE};
use crate::vfs::file::DirEntry;
use crate::vfs::inode::NodeType;

/// The most bytes of content in one answer.
pub const MAX_CONTENT: usize = MAX_MESSAGE - 8;

/// The largest number that a program can see: `EHWPOISON`.
const MAX_ERRNO: u32 = 133;

/// How many files whoever looks may have open.
pub const MAX_OPEN: usize = 1024;

/// What can be asked. `path` is as [`Get::path`] has it; empty for the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Answer: attributes, not following a symbolic link.
    Attr(&'a [u8]),
    /// Answer: a symbolic link's text.
    ReadLink(&'a [u8]),
    /// Opens a directory or regular file for reading; anything else is `ENXIO`. Answer: its number (u64).
    Open(&'a [u8]),
    /// Answer: entries of an open directory, from a position on, as many as fit: type (the `S_IFMT` bits, u32), where to
    /// go on behind it (u64), name. None at the end.
    ReadDir {
        /// The number of the open directory.
        file: u64,
        /// Where to go on, or 0.
        from: u64,
    },
    /// Answer: content of an open file; less than was asked for at its end, or when it is more than [`MAX_CONTENT`].
    Read {
        /// The number of the open file.
        file: u64,
        /// Where it begins.
        offset: u64,
        /// How much.
        len: u32,
    },
    /// Closes an open file. No answer.
    Close(u64),
    /// Answer: the seven numbers of `statfs(2)` and the longest name, u64 each.
    StatFs(&'a [u8]),
    /// Answer: the value of an extended attribute.
    GetXattr(&'a [u8], &'a [u8]),
    /// Answer: the names of the extended attributes, each with a NUL behind.
    ListXattr(&'a [u8]),
}

const ATTR: u8 = 1;
const READ_LINK: u8 = 2;
const OPEN: u8 = 3;
const READ_DIR: u8 = 4;
const READ: u8 = 5;
const CLOSE: u8 = 6;
const STAT_FS: u8 = 7;
const GET_XATTR: u8 = 8;
const LIST_XATTR: u8 = 9;

impl<'a> Request<'a> {
    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Vec::new();
        let mut with_path = |operation: u8, path: &[u8]| {
            message.u8(operation);
            message.bytes(path);
        };
        match *self {
            Request::Attr(path) => with_path(ATTR, path),
            Request::ReadLink(path) => with_path(READ_LINK, path),
            Request::Open(path) => with_path(OPEN, path),
            Request::StatFs(path) => with_path(STAT_FS, path),
            Request::ListXattr(path) => with_path(LIST_XATTR, path),
            Request::GetXattr(path, name) => {
                with_path(GET_XATTR, path);
                message.bytes(name);
            }
            Request::ReadDir { file, from } => {
                message.u8(READ_DIR);
                message.u64(file);
                message.u64(from);
            }
            Request::Read { file, offset, len } => {
                message.u8(READ);
                message.u64(file);
                message.u64(offset);
                message.u32(len);
            }
            Request::Close(file) => {
                message.u8(CLOSE);
                message.u64(file);
            }
        }
        message
    }

    /// From a message.
    pub fn decode(message: &'a [u8]) -> Decoded<Request<'a>> {
        let mut fields = Get::new(message);
        let request = match fields.u8()? {
            ATTR => Request::Attr(fields.path()?),
            READ_LINK => Request::ReadLink(fields.path()?),
            OPEN => Request::Open(fields.path()?),
            READ_DIR => Request::ReadDir { file: fields.u64()?, from: fields.u64()? },
            READ => Request::Read { file: fields.u64()?, offset: fields.u64()?, len: fields.u32()? },
            CLOSE => Request::Close(fields.u64()?),
            STAT_FS => Request::StatFs(fields.path()?),
            GET_XATTR => Request::GetXattr(fields.path()?, fields.bytes()?),
            LIST_XATTR => Request::ListXattr(fields.path()?),
            _ => return Err(Malformed),
        };
        fields.end()?;
        Ok(request)
    }
}

/// An entry of [`Request::ReadDir`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its type.
    pub kind: NodeType,
    /// Where to go on behind it.
    pub next: u64,
    /// Its name.
    pub name: Vec<u8>,
}

impl Entry {
    /// The most bytes that [`put_entry`] appends.
    pub const MAX_LEN: usize = 4 + 8 + 4 + MAX_NAME;

    fn get(fields: &mut Get<'_>) -> Decoded<Entry> {
        let (kind, next, name) = (fields.u32()?, fields.u64()?, fields.bytes()?);
        let kind = NodeType::from_mode(kind).ok_or(Malformed)?;
        let valid = is_name(name) || matches!(name, b"." | b"..");
        if valid { Ok(Entry { kind, next, name: name.to_vec() }) } else { Err(Malformed) }
    }
}

/// Appends an entry to an answer.
pub fn put_entry(answer: &mut Vec<u8>, entry: &DirEntry<'_>) {
    answer.u32(entry.kind.mode_bits());
    answer.u64(entry.next);
    answer.bytes(entry.name);
}

/// The asking side. What the sentry answers is not trusted: it may have been taken over by its container. Of a connection that
/// has ended or does not follow the protocol every answer is `EIO`.
pub struct Client {
    socket: OwnedFd,
    answer: Vec<u8>,
}

impl Client {
    /// Over a connection.
    pub fn new(socket: OwnedFd) -> Client {
        Client { socket, answer: vec![0; MAX_MESSAGE] }
    }

    fn send(&self, request: &Request<'_>) -> Result<()> {
        wire::send(self.socket.as_fd(), &request.encode(), None).map_err(|_| Errno::EIO)
    }

    fn call<T>(&mut self, request: &Request<'_>, get: impl FnOnce(&mut Get<'_>) -> Decoded<T>) -> Result<T> {
        self.send(request)?;
        let (n, _) = wire::receive(self.socket.as_fd(), &mut self.answer, false).map_err(|_| Errno::EIO)?;
        let mut fields = Get::new(&self.answer[..n]);
        match fields.u32().map_err(|Malformed| Errno::EIO)? {
            0 => {
                let value = get(&mut fields).map_err(|Malformed| Errno::EIO)?;
                fields.end().map_err(|Malformed| Errno::EIO)?;
                Ok(value)
            }
            error @ 1..=MAX_ERRNO => Err(Errno::from_raw(error as i32)),
            _ => Err(Errno::EIO),
        }
    }

    /// Attributes.
    pub fn attr(&mut self, path: &[u8]) -> Result<Stat> {
        self.call(&Request::Attr(path), |fields| Stat::get(fields))
    }

    /// The text of a symbolic link: not empty, shorter than `PATH_MAX`, without NUL.
    pub fn read_link(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        self.call(&Request::ReadLink(path), |fields| {
            let text = fields.bytes()?;
            let valid = (1..=MAX_PATH).contains(&text.len()) && !text.contains(&0);
            if valid { Ok(text.to_vec()) } else { Err(Malformed) }
        })
    }

    /// Opens a directory or regular file.
    pub fn open(&mut self, path: &[u8]) -> Result<u64> {
        self.call(&Request::Open(path), |fields| fields.u64())
    }

    /// Some entries of an open directory; none at its end.
    pub fn read_dir(&mut self, file: u64, from: u64) -> Result<Vec<Entry>> {
        self.call(&Request::ReadDir { file, from }, |fields| {
            let mut entries = Vec::new();
            while !fields.is_empty() {
                entries.push(Entry::get(fields)?);
            }
            Ok(entries)
        })
    }

    /// Content of an open file; less than was asked for at its end, or where the file gives no more at a time.
    pub fn read(&mut self, file: u64, offset: u64, len: u32) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        while content.len() < len as usize {
            let wanted = (len as usize - content.len()).min(MAX_CONTENT);
            let offset = offset.saturating_add(content.len() as u64);
            let part = self.call(&Request::Read { file, offset, len: wanted as u32 }, |fields| {
                let bytes = fields.bytes()?;
                if bytes.len() <= wanted { Ok(bytes.to_vec()) } else { Err(Malformed) }
            });
            match part {
                Ok(bytes) => {
                    content.extend_from_slice(&bytes);
                    if bytes.len() < wanted {
                        break;
                    }
                }
                Err(error) if content.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(content)
    }

    /// Closes an open file.
    pub fn close(&mut self, file: u64) {
        // There is nobody to be told; with the connection all are closed.
        let _ = self.send(&Request::Close(file));
    }

    /// `statfs(2)`.
    pub fn statfs(&mut self, path: &[u8]) -> Result<[u64; 8]> {
        self.call(&Request::StatFs(path), |fields| {
            let mut numbers = [0; 8];
            for number in &mut numbers {
                *number = fields.u64()?;
            }
            Ok(numbers)
        })
    }

    /// The value of an extended attribute.
    pub fn get_xattr(&mut self, path: &[u8], name: &[u8]) -> Result<Vec<u8>> {
        self.call(&Request::GetXattr(path, name), |fields| Ok(fields.bytes()?.to_vec()))
    }

    /// The names of extended attributes, each with a NUL behind.
    pub fn list_xattr(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        self.call(&Request::ListXattr(path), |fields| Ok(fields.bytes()?.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_back_as_they_were() {
        let all = [
            Request::Attr(b""),
            Request::ReadLink(b"a/b"),
            Request::Open(b"a"),
            Request::ReadDir { file: 1, from: 2 },
            Request::Read { file: 3, offset: u64::MAX, len: 4 },
            Request::Close(5),
            Request::StatFs(b"a"),
            Request::GetXattr(b"a", b"user.x"),
            Request::ListXattr(b"a"),
        ];
        for request in all {
            let message = request.encode();
            assert_eq!(Request::decode(&message), Ok(request));
            for len in 0..message.len() {
                assert_eq!(Request::decode(&message[..len]), Err(Malformed), "{request:?} cut at {len}");
            }
        }
    }

    #[test]
    fn paths_that_lead_elsewhere_are_no_requests() {
        for path in ["/a", "a/", "a//b", "..", "a/../b", ".", "a\0b"] {
            assert_eq!(Request::decode(&Request::Attr(path.as_bytes()).encode()), Err(Malformed), "{path:?}");
        }
    }

    /// What the client makes of a message in answer.
    fn answered<T>(message: &[u8], ask: impl FnOnce(&mut Client) -> Result<T>) -> Result<T> {
        let (ours, theirs) = nix::sys::socket::socketpair(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::SeqPacket,
            None,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        wire::send(theirs.as_fd(), message, None).unwrap();
        ask(&mut Client::new(ours))
    }

    #[test]
    fn answers_are_not_trusted() {
        let with = |fields: &[u8]| [&0u32.to_le_bytes(), fields].concat();
        let text = |text: &[u8]| [&(text.len() as u32).to_le_bytes(), text].concat();
        assert_eq!(answered(&with(&text(b"to")), |client| client.read_link(b"a")), Ok(b"to".to_vec()));
        assert_eq!(answered(&with(&text(b"")), |client| client.read_link(b"a")), Err(Errno::EIO));
        assert_eq!(answered(&with(&text(b"a\0")), |client| client.read_link(b"a")), Err(Errno::EIO));
        assert_eq!(answered(&with(&text(&[b'a'; 4096])), |client| client.read_link(b"a")), Err(Errno::EIO));
        // More than was asked for.
        assert_eq!(answered(&with(&text(b"abc")), |client| client.read(1, 0, 2)), Err(Errno::EIO));
        // Errors that no program may see.
        assert_eq!(answered(&2u32.to_le_bytes(), |client| client.open(b"a")), Err(Errno::ENOENT));
        for error in [134, 512, u32::MAX] {
            assert_eq!(answered(&error.to_le_bytes(), |client| client.open(b"a")), Err(Errno::EIO), "{error}");
        }
        let entry = |name: &[u8]| [&0o100_000u32.to_le_bytes()[..], &[0; 8], &text(name)].concat();
        assert_eq!(answered(&with(&entry(b"f")), |client| client.read_dir(1, 0)).unwrap().len(), 1);
        assert_eq!(answered(&with(&entry(b"a/b")), |client| client.read_dir(1, 0)), Err(Errno::EIO));
        assert_eq!(answered(b"", |client| client.open(b"a")), Err(Errno::EIO));
    }
}
