//! A hostile sentry: messages that the client would not send.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::codec::{Get, Put, Stat};
use super::protocol::{Entry, NONE, New, Op, Place, ROOT, Request, Target, VERSION};
use super::{Export, server, wire};
use crate::errno::{Errno, Result};
use crate::vfs::inode::{NodeType, SetAttr};

/// A connection to a gofer of a directory.
struct Raw {
    socket: Option<OwnedFd>,
    server: Option<JoinHandle<Result<()>>>,
}

impl Raw {
    fn new(root: &Path, writable: bool) -> Raw {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let root = nix::fcntl::open(root, nix::fcntl::OFlag::O_PATH, nix::sys::stat::Mode::empty()).unwrap();
        let export = Export { socket: theirs, root, root_file: None, writable, follows: false };
        Raw { socket: Some(ours), server: Some(std::thread::spawn(|| server::serve(export))) }
    }

    fn send(&self, message: &[u8]) -> Result<()> {
        wire::send(self.socket.as_ref().unwrap().as_fd(), message, None)
    }

    fn receive(&self) -> Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut buf = vec![0; wire::MAX_MESSAGE];
        let (n, fd) = wire::receive(self.socket.as_ref().unwrap().as_fd(), &mut buf, true)?;
        buf.truncate(n);
        Ok((buf, fd))
    }

    /// The reply's fields and descriptor.
    fn ask(&self, request: &Request<'_>) -> Result<(Vec<u8>, Option<OwnedFd>)> {
        self.send(&request.encode()).unwrap();
        let (reply, fd) = self.receive().unwrap();
        let mut header = Get::new(&reply);
        assert_eq!((header.u8().unwrap(), header.u8().unwrap()), (VERSION, request.op() as u8));
        match header.u32().unwrap() {
            0 => Ok((reply[6..].to_vec(), fd)),
            errno => {
                assert!(fd.is_none());
                Err(Errno::from_raw(errno as i32))
            }
        }
    }

    /// What the server returned after the connection was closed.
    fn end(mut self) -> Result<()> {
        drop(self.socket.take());
        self.server.take().unwrap().join().unwrap()
    }
}

fn at(path: &[u8]) -> Target<'_> {
    Target { node: NONE, at: Place { node: ROOT, path } }
}

fn in_root(name: &[u8]) -> Entry<'_> {
    Entry { dir: Place { node: ROOT, path: b"" }, name }
}

/// A tree beside a secret, with links that lead to it.
fn tree() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::write(root.join("sub/file"), "content").unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", root.join("relative")).unwrap();
    std::os::unix::fs::symlink(dir.path(), root.join("absolute")).unwrap();
    std::os::unix::fs::symlink("/proc/self/root", root.join("magic")).unwrap();
    (dir, root)
}

#[test]
fn requests_survive_encoding() {
    let set = SetAttr { perm: Some(0o600), size: Some(7), ..SetAttr::default() };
    let new = New { kind: NodeType::Symlink, perm: 0o777, uid: 1, gid: 2, rdev: 3, target: b"to" };
    let requests = [
        Request::Walk { from: at(b"a").at, path: b"b/c", keep: true, open: false },
        Request::Open { target: at(b"a"), write: true },
        Request::Attr(at(b"")),
        Request::ReadDir { target: at(b"a"), cookie: u64::MAX },
        Request::ReadLink(at(b"l")),
        Request::StatFs,
        Request::GetXattr(at(b"a"), b"user.x"),
        Request::ListXattr(at(b"a")),
        Request::Forget(vec![1, 2, 3]),
        Request::Sync(None),
        Request::Sync(Some(at(b"a"))),
        Request::Create(in_root(b"n"), new),
        Request::Link(in_root(b"n"), at(b"a")),
        Request::Unlink(in_root(b"n"), true),
        Request::Rename(in_root(b"n"), in_root(b"m"), 2),
        Request::SetAttr(at(b"a"), set),
        Request::SetXattr { target: at(b"a"), name: b"user.x", value: b"v", flags: 1 },
        Request::RemoveXattr(at(b"a"), b"user.x"),
    ];
    for request in requests {
        let message = request.encode();
        assert_eq!(Request::decode(&message).as_ref(), Ok(&request));
        for len in 0..message.len() {
            let cut = Request::decode(&message[..len]);
            // Forget has no count: fewer nodes are a message too.
            assert!(cut.is_err() || matches!(cut, Ok(Request::Forget(_))), "{request:?} cut to {len}");
        }
        assert!(Request::decode(&[&message[..], b"x"].concat()).is_err());
    }
}

#[test]
fn paths_that_could_lead_out_are_malformed() {
    let (_dir, root) = tree();
    let long = [b'a'; 256];
    let paths: [&[u8]; 10] =
        [b"..", b"sub/../..", b"/", b"/etc", b"sub//file", b"sub/", b".", b"sub/./file", b"a\0b", &long];
    for path in paths {
        let raw = Raw::new(&root, true);
        raw.send(&Request::Attr(at(path)).encode()).unwrap();
        assert!(raw.receive().is_ok_and(|(reply, _)| reply.is_empty()), "{path:?}: the connection is closed");
        assert_eq!(raw.end(), Err(Errno::EPROTO));
    }
    for name in [&b".."[..], b".", b"", b"a/b"] {
        let raw = Raw::new(&root, true);
        raw.send(&Request::Unlink(in_root(name), false).encode()).unwrap();
        assert_eq!(raw.end(), Err(Errno::EPROTO));
    }
}

#[test]
fn links_are_read_and_never_followed() {
    let (_dir, root) = tree();
    let raw = Raw::new(&root, true);
    for path in [&b"relative"[..], b"absolute", b"magic"] {
        for write in [false, true] {
            assert_eq!(raw.ask(&Request::Open { target: at(path), write }).unwrap_err(), Errno::ELOOP);
        }
        let (reply, _) = raw.ask(&Request::Attr(at(path))).unwrap();
        assert_eq!(Stat::get(&mut Get::new(&reply)).unwrap().kind, NodeType::Symlink);
        assert_eq!(raw.ask(&Request::ReadDir { target: at(path), cookie: 0 }).unwrap_err(), Errno::ENOTDIR);
        let truncate = SetAttr { size: Some(0), ..SetAttr::default() };
        assert_eq!(raw.ask(&Request::SetAttr(at(path), truncate)).unwrap_err(), Errno::ELOOP);
    }
    for path in [&b"absolute/secret"[..], b"magic/etc"] {
        assert_eq!(raw.ask(&Request::Open { target: at(path), write: false }).unwrap_err(), Errno::ELOOP);
        let entry = Entry { dir: Place { node: ROOT, path: b"absolute" }, name: b"made" };
        let new = New { kind: NodeType::Regular, perm: 0o644, uid: 0, gid: 0, rdev: 0, target: b"" };
        assert!(raw.ask(&Request::Create(entry, new)).is_err());
    }
    // A link kept as a node leads nowhere either.
    let (reply, _) = raw.ask(&Request::Walk { from: at(b"").at, path: b"absolute", keep: true, open: true }).unwrap();
    let mut fields = Get::new(&reply);
    assert_eq!(fields.u32(), Ok(1));
    Stat::get(&mut fields).unwrap();
    Stat::get(&mut fields).unwrap();
    assert_eq!((fields.u32(), fields.u32()), (Ok(0), Ok(1)), "it ends there, and is kept");
    let link = fields.u32().unwrap();
    let through = Place { node: link, path: b"secret" };
    assert_eq!(raw.ask(&Request::Attr(Target { node: NONE, at: through })).unwrap_err(), Errno::ENOTDIR);
    let itself = Target { node: link, at: Place { node: link, path: b"" } };
    assert!(raw.ask(&Request::Open { target: itself, write: false }).is_err());
    raw.end().unwrap();
}

#[test]
fn bad_node_numbers_are_refused() {
    let (_dir, root) = tree();
    let raw = Raw::new(&root, true);
    for node in [1, 77, u32::MAX - 1, NONE] {
        let place = Place { node, path: b"sub" };
        assert_eq!(raw.ask(&Request::Attr(Target { node: NONE, at: place })).unwrap_err(), Errno::EBADF);
    }
    raw.send(&Request::Forget(vec![ROOT, 1, 1, u32::MAX]).encode()).unwrap();
    assert!(raw.ask(&Request::Attr(at(b""))).is_ok(), "the root cannot be given back");
    raw.end().unwrap();
}

#[test]
fn a_count_beyond_the_message_is_malformed() {
    let (_dir, root) = tree();
    for len in [u32::MAX, 1 << 20, 5] {
        let mut message = vec![VERSION, Op::Attr as u8];
        message.u32(NONE);
        message.u32(ROOT);
        message.u32(len);
        message.raw(b"sub");
        let raw = Raw::new(&root, true);
        raw.send(&message).unwrap();
        assert_eq!(raw.end(), Err(Errno::EPROTO));
    }
    for message in [&[][..], &[VERSION], &[VERSION + 1, Op::StatFs as u8], &[VERSION, 255]] {
        // An empty packet is how the end of a connection reads.
        let expected = if message.is_empty() { Ok(()) } else { Err(Errno::EPROTO) };
        let raw = Raw::new(&root, true);
        raw.send(message).unwrap();
        assert_eq!(raw.end(), expected);
    }
    let raw = Raw::new(&root, true);
    raw.send(&vec![VERSION; wire::MAX_MESSAGE + 1]).unwrap();
    assert_eq!(raw.end(), Err(Errno::EMSGSIZE));
}

#[test]
fn a_read_only_tree_refuses_changes() {
    let (_dir, root) = tree();
    let raw = Raw::new(&root, false);
    let new = New { kind: NodeType::Regular, perm: 0o644, uid: 0, gid: 0, rdev: 0, target: b"" };
    let changes = [
        Request::Open { target: at(b"sub/file"), write: true },
        Request::Create(in_root(b"n"), new),
        Request::Link(in_root(b"n"), at(b"sub/file")),
        Request::Unlink(in_root(b"relative"), false),
        Request::Rename(in_root(b"relative"), in_root(b"m"), 0),
        Request::SetAttr(at(b"sub/file"), SetAttr { size: Some(0), ..SetAttr::default() }),
        Request::SetXattr { target: at(b"sub/file"), name: b"user.x", value: b"v", flags: 0 },
        Request::RemoveXattr(at(b"sub/file"), b"user.x"),
    ];
    for change in changes {
        assert_eq!(raw.ask(&change).unwrap_err(), Errno::EROFS, "{change:?}");
    }
    raw.end().unwrap();
    assert_eq!(fs::read(root.join("sub/file")).unwrap(), b"content");
}

#[test]
fn a_fifo_does_not_hold_the_gofer_up() {
    let (_dir, root) = tree();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let raw = Raw::new(&root, true);
    for write in [false, true] {
        assert_eq!(raw.ask(&Request::Open { target: at(b"fifo"), write }).unwrap_err(), Errno::ENXIO);
    }
    assert_eq!(raw.ask(&Request::Open { target: at(b"sub"), write: false }).unwrap_err(), Errno::ENXIO);
    raw.end().unwrap();
}

/// xorshift64, for messages that are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn random_messages_neither_crash_it_nor_leave_the_tree() {
    let (dir, root) = tree();
    let mut random = Random(0x5eed);
    let seeds = [
        Request::Walk { from: at(b"sub").at, path: b"file", keep: true, open: true }.encode(),
        Request::Rename(in_root(b"sub"), in_root(b"m"), 0).encode(),
        Request::Link(in_root(b"hard"), at(b"absolute")).encode(),
        Request::SetAttr(at(b"sub/file"), SetAttr { size: Some(9), ..SetAttr::default() }).encode(),
        Request::ReadDir { target: at(b"sub"), cookie: 3 }.encode(),
        Request::Unlink(in_root(b"sub"), true).encode(),
    ];
    let mut answered = 0;
    for round in 0..2000u64 {
        let message = if round % 4 == 0 {
            (0..random.next() % 64).map(|_| random.next() as u8).collect()
        } else {
            let mut message = seeds[random.next() as usize % seeds.len()].clone();
            for _ in 0..=random.next() % 3 {
                let place = random.next() as usize % message.len();
                message[place] = b"\0\x01\xff./a"[random.next() as usize % 6];
            }
            message
        };
        // One connection a message: whatever it did to the last one, the next gofer is in order.
        let raw = Raw::new(&root, true);
        raw.send(&message).unwrap();
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(raw.socket.as_ref().unwrap()),
            nix::sys::socket::Shutdown::Write,
        )
        .unwrap();
        answered += u32::from(raw.receive().is_ok_and(|(reply, _)| !reply.is_empty()));
        assert!(matches!(raw.end(), Ok(()) | Err(Errno::EPROTO)));
    }
    assert!(answered > 100, "{answered} messages were good enough for an answer");
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
}
