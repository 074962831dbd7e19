//! The client with a peer that answers by the byte.

use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use super::*;

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(30);

/// A socket at which one connection is served by `serve`.
struct Peer {
    directory: TempDir,
    server: JoinHandle<()>,
}

impl Peer {
    fn new(serve: impl FnOnce(UnixStream) + Send + 'static) -> Peer {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("bus")).unwrap();
        let server = thread::spawn(move || serve(listener.accept().unwrap().0));
        Peer { directory, server }
    }

    fn connect(&self, patience: Duration) -> Result<Connection, Failure> {
        Connection::connect(&self.directory.path().join("bus"), patience, "JobRemoved")
    }
}

/// Takes exactly these bytes.
#[track_caller]
fn take(stream: &mut UnixStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, expected, "{}", got.escape_ascii());
}

fn let_in(stream: &mut UnixStream) {
    let uid = nix::unistd::geteuid().as_raw().to_string();
    let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
    take(stream, format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes());
    stream.write_all(b"OK 0123456789abcdef0123456789abcdef\r\n").unwrap();
}

fn take_message(stream: &mut UnixStream) -> Message {
    let mut prefix = [0; wire::PREFIX];
    stream.read_exact(&mut prefix).unwrap();
    let mut bytes = prefix.to_vec();
    bytes.resize(Message::total(&prefix).unwrap(), 0);
    stream.read_exact(&mut bytes[wire::PREFIX..]).unwrap();
    Message::decode(&bytes).unwrap()
}

const METHOD: Method<'_> = Method { destination: "a.b", path: "/a", interface: "a.b.C", member: "Do" };

fn signal(member: &str, number: u32) -> Vec<u8> {
    let body = vec![Value::U32(number)];
    Message { kind: Kind::Signal, serial: 9, path: "/a".into(), member: member.into(), body, ..Message::default() }
        .encode()
}

#[test]
fn a_call_and_the_signal_that_came_before_its_answer() {
    let peer = Peer::new(|mut stream| {
        let_in(&mut stream);
        let call = take_message(&mut stream);
        assert_eq!((call.path.as_str(), call.member.as_str(), call.body), ("/a", "Do", vec![Value::str("x")]));
        stream.write_all(&signal("JobNew", 1)).unwrap();
        stream.write_all(&signal("JobRemoved", 2)).unwrap();
        let other = Message { kind: Kind::Return, serial: 1, reply_to: 77, ..Message::default() };
        stream.write_all(&other.encode()).unwrap();
        let body = vec![Value::Path("/job/1".into())];
        let answer = Message { kind: Kind::Return, serial: 2, reply_to: call.serial, body, ..Message::default() };
        // In two pieces.
        let bytes = answer.encode();
        stream.write_all(&bytes[..20]).unwrap();
        stream.write_all(&bytes[20..]).unwrap();
        stream.write_all(&signal("JobRemoved", 3)).unwrap();
    });
    let mut connection = peer.connect(LONG).unwrap();
    assert_eq!(connection.call(METHOD, vec![Value::str("x")]).unwrap(), [Value::Path("/job/1".into())]);
    for number in [3, 2] {
        let signal = connection.wait_signal(|signal| signal.body == [Value::U32(number)]).unwrap();
        assert_eq!(signal.member, "JobRemoved");
    }
    peer.server.join().unwrap();
}

#[test]
fn an_error_is_the_peers_own_words() {
    let peer = Peer::new(|mut stream| {
        let_in(&mut stream);
        let serial = take_message(&mut stream).serial;
        let answer = Message {
            kind: Kind::Error,
            serial: 1,
            reply_to: serial,
            error: "org.freedesktop.systemd1.NoSuchUnit".into(),
            body: vec![Value::str("Unit a.scope not loaded.")],
            ..Message::default()
        };
        stream.write_all(&answer.encode()).unwrap();
    });
    let error = peer.connect(LONG).unwrap().call(METHOD, vec![]).unwrap_err();
    assert!(error.is("org.freedesktop.systemd1.NoSuchUnit"));
    assert_eq!(error.to_string(), "Unit a.scope not loaded.");
    peer.server.join().unwrap();
}

#[test]
fn who_is_not_let_in_is_told() {
    let peer = Peer::new(|mut stream| {
        stream.write_all(b"REJECTED EXTERNAL\r\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = peer.connect(LONG).err().unwrap().to_string();
    assert!(error.contains("REJECTED"), "{error}");
    peer.server.join().unwrap();
}

#[test]
fn a_peer_that_talks_nonsense_or_ends_is_an_error() {
    for (answer, problem) in [(&b"HTTP/1.1 400\r\n\r\n"[..], "let this user in"), (b"", "end of file")] {
        let peer = Peer::new(|mut stream| {
            stream.read_exact(&mut [0; 16]).unwrap();
            let _ = stream.write_all(answer);
        });
        let error = peer.connect(LONG).err().unwrap().to_string();
        assert!(error.contains(problem) || error.contains("reset"), "{error}");
        peer.server.join().unwrap();
    }
    let peer = Peer::new(|mut stream| {
        let_in(&mut stream);
        take_message(&mut stream);
        stream.write_all(&[0xff; 64]).unwrap();
    });
    let error = peer.connect(LONG).unwrap().call(METHOD, vec![]).unwrap_err();
    assert!(error.to_string().contains("damaged D-Bus message"), "{error}");
    peer.server.join().unwrap();
}

#[test]
fn nobody_is_waited_for_for_ever() {
    let peer = Peer::new(|mut stream| {
        let_in(&mut stream);
        take_message(&mut stream);
        // Until the client has given up.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut connection = peer.connect(SHORT).unwrap();
    let error = connection.call(METHOD, vec![]).unwrap_err();
    assert!(matches!(&error, Failure::Io(io) if io.kind() == io::ErrorKind::TimedOut), "{error}");
    drop(connection);
    peer.server.join().unwrap();
}
