//! Numbers and errors here are what Linux 6.18 gives.

use super::*;
use crate::io::SliceSink;
use crate::vfs::eventfd::EventFd;
use crate::vfs::file::OpenFile;

const CRED: Cred = Cred { pid: pid(7), uid: 1000, gid: 100 };

const fn pid(number: i32) -> Pid {
    Pid { number, namespace: 1 }
}

fn pair(kind: Kind) -> (Arc<UnixSocket>, Arc<UnixSocket>) {
    UnixSocket::pair(kind, &Arc::<UnixNamespace>::default(), CRED)
}

fn send(socket: &UnixSocket, bytes: &[u8]) -> Result<usize> {
    socket.send(&mut &bytes[..], None, Ancillary::default(), 0)
}

fn send_to(socket: &UnixSocket, name: &[u8], bytes: &[u8]) -> Result<usize> {
    socket.send(&mut &bytes[..], Some(&SockAddr::Unix(name.to_vec())), Ancillary::default(), 0)
}

fn send_files(socket: &UnixSocket, bytes: &[u8], files: &[&Arc<OpenFile>]) -> Result<usize> {
    let files = files.iter().map(|file| Arc::clone(file)).collect();
    socket.send(&mut &bytes[..], None, Ancillary { files, ..Ancillary::default() }, 0)
}

fn recv_message(socket: &UnixSocket, room: usize, flags: RecvFlags) -> Result<(Vec<u8>, Message)> {
    let mut buf = vec![0; room];
    let mut sink = SliceSink::new(&mut buf);
    let message = socket.recv(&mut sink, flags)?;
    let filled = sink.filled();
    buf.truncate(filled);
    Ok((buf, message))
}

fn recv(socket: &UnixSocket, room: usize) -> Result<Vec<u8>> {
    recv_message(socket, room, RecvFlags::empty()).map(|(bytes, _)| bytes)
}

fn open(socket: &Arc<UnixSocket>) -> Arc<OpenFile> {
    OpenFile::anonymous(socket.clone(), libc::O_RDWR)
}

fn event() -> Arc<OpenFile> {
    OpenFile::anonymous(Arc::new(EventFd::new(0, false)), libc::O_RDWR)
}

fn poll(socket: &UnixSocket) -> u32 {
    socket.poll().bits()
}

fn abstract_name(name: &str) -> SockAddr {
    SockAddr::Unix(format!("\0{name}").into_bytes())
}

fn int(socket: &UnixSocket, name: i32) -> i32 {
    let value = socket.get_option(SocketOption { level: libc::SOL_SOCKET, name }, 4).expect("known");
    i32::from_ne_bytes(value.try_into().expect("an int"))
}

fn set(socket: &UnixSocket, name: i32, value: i32) {
    socket.set_option(SocketOption { level: libc::SOL_SOCKET, name }, &value.to_ne_bytes()).expect("known");
}

#[test]
fn a_stream_joins_what_was_written() {
    let (a, b) = pair(Kind::Stream);
    send(&a, b"one").expect("room");
    send(&a, b"two").expect("room");
    assert_eq!(recv_message(&b, 9, RecvFlags::PEEK).map(|(bytes, _)| bytes), Ok(b"onetwo".to_vec()));
    assert_eq!(b.readable_bytes(), Ok(6));
    assert_eq!(recv(&b, 4), Ok(b"onet".to_vec()));
    assert_eq!(recv(&b, 9), Ok(b"wo".to_vec()));
    assert_eq!(recv(&b, 9), Err(Errno::EAGAIN));
    assert_eq!(send(&a, b""), Ok(0));
    assert_eq!(recv(&b, 9), Err(Errno::EAGAIN));
}

#[test]
fn many_small_writes_come_with_one_read() {
    let (a, b) = pair(Kind::Stream);
    for i in 0..100 {
        send(&a, &[i]).expect("room");
    }
    assert_eq!(recv(&b, 1000), Ok((0..100).collect()));
}

#[test]
fn a_stream_fills_as_on_linux() {
    let (a, b) = pair(Kind::Stream);
    let count = (0..).take_while(|_| send(&a, b"x").is_ok()).count();
    assert_eq!(count, 278);
    assert_eq!((poll(&a), a.side.sent.load(Ordering::Relaxed)), (0, 213_504));
    let reads = (1..).take_while(|_| recv(&b, 1).is_ok() && a.poll().is_empty()).count() + 1;
    assert_eq!((reads, poll(&a)), (209, 0x304));
    let (a, _b) = pair(Kind::Stream);
    assert_eq!(send(&a, &vec![0; 1 << 20]), Ok(219_264));
    let (a, _b) = pair(Kind::Stream);
    assert_eq!((0..).take_while(|_| send(&a, &[0; 4096]).is_ok()).count() * 4096, 180_224);
}

#[test]
fn datagrams_fill_as_on_linux() {
    for kind in [Kind::Dgram, Kind::SeqPacket] {
        let (a, b) = pair(kind);
        assert_eq!((0..).take_while(|_| send(&a, &[0; 100]).is_ok()).count(), 278);
        assert_eq!(poll(&a), 0);
        assert_eq!(b.readable_bytes(), Ok(if kind == Kind::Dgram { 100 } else { 27_800 }));
        assert_eq!(send(&b, &[0; 212_961]), Err(Errno::EMSGSIZE));
        assert_eq!(send(&b, &[0; 212_960]), Ok(212_960));
        assert_eq!(send(&b, b""), Err(Errno::EAGAIN));
        let (bytes, message) = recv_message(&a, 1, RecvFlags::TRUNC).expect("one");
        assert_eq!((bytes.len(), message.len, message.flags), (1, 212_960, libc::MSG_TRUNC));
        assert_eq!(recv(&a, 100), Err(Errno::EAGAIN), "the rest of the message is lost");
        send(&b, b"").expect("room again");
        assert_eq!(recv(&a, 100), Ok(vec![]));
    }
}

#[test]
fn closing_tells_the_peer() {
    let (a, b) = pair(Kind::Stream);
    send(&a, b"unread").expect("room");
    drop(b);
    assert_eq!(poll(&a), 0x235d);
    assert_eq!(recv(&a, 1), Err(Errno::ECONNRESET));
    assert_eq!((recv(&a, 1), send(&a, b"x"), int(&a, libc::SO_ERROR)), (Ok(vec![]), Err(Errno::EPIPE), 0));
    let (a, b) = pair(Kind::SeqPacket);
    send(&b, b"last").expect("room");
    drop(b);
    assert_eq!(poll(&a), 0x2355);
    assert_eq!((recv(&a, 9), recv(&a, 9)), (Ok(b"last".to_vec()), Ok(vec![])));
    assert_eq!(send(&a, b"x"), Err(Errno::EPIPE));
    assert_eq!(a.peer_name(), Ok(SockAddr::Unix(vec![])), "still known");
}

#[test]
fn half_closing() {
    let (a, b) = pair(Kind::Stream);
    a.shutdown(libc::SHUT_WR).expect("connected");
    assert_eq!((poll(&a), poll(&b)), (0x304, 0x2345));
    assert_eq!((send(&a, b"x"), recv(&b, 1), send(&b, b"y")), (Err(Errno::EPIPE), Ok(vec![]), Ok(1)));
    a.shutdown(libc::SHUT_RD).expect("connected");
    assert_eq!((poll(&a), poll(&b)), (0x2355, 0x2355));
    assert_eq!((send(&b, b"z"), recv(&a, 5)), (Err(Errno::EPIPE), Ok(b"y".to_vec())));
    assert_eq!(a.shutdown(3), Err(Errno::EINVAL));
}

#[test]
fn a_closed_datagram_peer_refuses_once() {
    let (a, b) = pair(Kind::Dgram);
    send(&b, b"old").expect("room");
    drop(b);
    assert_eq!(poll(&a), 0x345);
    assert_eq!(send(&a, b"x"), Err(Errno::ECONNREFUSED));
    assert_eq!(send(&a, b"x"), Err(Errno::ENOTCONN));
    assert_eq!(recv(&a, 9), Err(Errno::EAGAIN), "what it had sent is gone with it");
    assert_eq!(a.peer_name(), Err(Errno::ENOTCONN));
}

#[test]
fn unconnected_sockets_refuse() {
    let ns = Arc::<UnixNamespace>::default();
    let none = b"\0none";
    let [stream, dgram, packet] = [Kind::Stream, Kind::Dgram, Kind::SeqPacket].map(|k| UnixSocket::new(k, &ns, CRED));
    assert_eq!([poll(&stream), poll(&dgram), poll(&packet)], [0x314, 0x304, 0x314]);
    for socket in [&stream, &dgram, &packet] {
        assert_eq!(send(socket, b"x"), Err(Errno::ENOTCONN));
        assert_eq!(socket.connect(&SockAddr::Unix(none.to_vec())), Err(Errno::ECONNREFUSED));
        assert_eq!(socket.peer_cred(), Cred { pid: Pid::default(), uid: u32::MAX, gid: u32::MAX });
    }
    assert_eq!(recv(&stream, 1), Err(Errno::EINVAL));
    assert_eq!(recv(&dgram, 1), Err(Errno::EAGAIN));
    assert_eq!(recv(&packet, 1), Err(Errno::ENOTCONN));
    assert_eq!(send_to(&stream, none, b"x"), Err(Errno::EOPNOTSUPP));
    assert_eq!(send_to(&dgram, none, b"x"), Err(Errno::ECONNREFUSED));
    assert_eq!(send_to(&packet, none, b"x"), Err(Errno::ENOTCONN));
    assert_eq!(stream.listen(1), Err(Errno::EINVAL));
    assert_eq!(dgram.listen(1), Err(Errno::EOPNOTSUPP));
    assert_eq!(stream.accept().err(), Some(Errno::EINVAL));
    assert_eq!(dgram.accept().err(), Some(Errno::EOPNOTSUPP));
    stream.shutdown(libc::SHUT_RDWR).expect("always");
    assert_eq!(poll(&stream), 0x2355);
}

#[test]
fn listening_and_connecting() {
    let ns = Arc::<UnixNamespace>::default();
    let new = |kind| UnixSocket::new(kind, &ns, CRED);
    let name = abstract_name("abcd");
    let listener = new(Kind::Stream);
    listener.bind(&name).expect("free");
    assert_eq!(listener.bind(&abstract_name("other")), Err(Errno::EINVAL));
    new(Kind::Dgram).bind(&name).expect("another type, another name");
    let client = new(Kind::Stream);
    assert_eq!(client.bind(&name), Err(Errno::EADDRINUSE));
    assert_eq!(client.connect(&name), Err(Errno::ECONNREFUSED), "not listening yet");
    listener.set_cred(Cred { pid: pid(1), ..CRED });
    listener.listen(1).expect("bound");
    assert_eq!((poll(&listener), int(&listener, libc::SO_ACCEPTCONN)), (0, 1));
    client.connect(&name).expect("listens");
    assert_eq!(client.connect(&name), Err(Errno::EISCONN));
    assert_eq!(client.listen(1), Err(Errno::EINVAL));
    let second = new(Kind::Stream);
    second.connect(&name).expect("one more than the backlog");
    let third = new(Kind::Stream);
    assert_eq!(third.connect(&name), Err(Errno::EAGAIN));
    assert_eq!((poll(&second), poll(&listener)), (0x304, 0x41));
    send(&client, b"early").expect("not accepted yet");

    let parker = Arc::new(crate::wait::Parker::new());
    third.side.queue.add(parker.clone(), Events::OUT, false);
    let accepted = listener.accept_one().expect("pending");
    assert!(parker.park(Some(std::time::Instant::now())), "there is room now");
    assert_eq!(recv(&accepted, 9), Ok(b"early".to_vec()));
    assert_eq!((accepted.local_name(), client.peer_name()), (Ok(name.clone()), Ok(name.clone())));
    assert_eq!(accepted.peer_name(), Ok(SockAddr::Unix(vec![])));
    let peer_pid = |socket: &UnixSocket| socket.side.state.lock().peer_cred.map(|cred| cred.pid);
    assert_eq!((peer_pid(&client), peer_pid(&accepted)), (Some(pid(1)), Some(pid(7))));

    listener.shutdown(libc::SHUT_RD).expect("always");
    assert_eq!((poll(&listener), third.connect(&name)), (0x2041, Err(Errno::ECONNREFUSED)));
    drop(listener);
    assert_eq!((poll(&client), poll(&second)), (0x304, 0x235d), "who was not accepted is reset");
    assert_eq!(third.connect(&name), Err(Errno::ECONNREFUSED));
    third.bind(&name).expect("free again");
}

#[test]
fn paths_lead_to_sockets_through_what_hangs_on_the_inode() {
    let ns = Arc::<UnixNamespace>::default();
    let (listener, client) = (UnixSocket::new(Kind::Stream, &ns, CRED), UnixSocket::new(Kind::Stream, &ns, CRED));
    let bound = listener.bind_path(b"/run/x").expect("no name yet");
    assert_eq!(listener.bind_path(b"/run/y").err(), Some(Errno::EINVAL));
    listener.listen(5).expect("bound");
    assert_eq!(UnixSocket::new(Kind::Dgram, &ns, CRED).connect_to(&bound), Err(Errno::EPROTOTYPE));
    client.connect_to(&bound).expect("listens");
    assert_eq!(client.peer_name(), Ok(SockAddr::Unix(b"/run/x".to_vec())));
    drop(listener);
    assert_eq!(UnixSocket::new(Kind::Stream, &ns, CRED).connect_to(&bound), Err(Errno::ECONNREFUSED));

    let (receiver, sender) = (UnixSocket::new(Kind::Dgram, &ns, CRED), UnixSocket::new(Kind::Dgram, &ns, CRED));
    let bound = receiver.bind_path(b"/run/d").expect("no name yet");
    assert_eq!(sender.send_to(&bound, &mut &b"hi"[..], Ancillary::default(), 0), Ok(2));
    assert_eq!(recv(&receiver, 9), Ok(b"hi".to_vec()));
}

#[test]
fn datagram_receivers_choose_their_senders() {
    let ns = Arc::<UnixNamespace>::default();
    let new = || UnixSocket::new(Kind::Dgram, &ns, CRED);
    let (name, raw) = (abstract_name("dg"), b"\0dg");
    let (receiver, sender, other) = (new(), new(), new());
    receiver.bind(&name).expect("free");
    sender.connect(&name).expect("there");
    assert_eq!((0..).take_while(|_| send(&sender, b"x").is_ok()).count(), 11);
    assert_eq!((poll(&sender), poll(&other)), (0, 0x304));
    assert_eq!(send_to(&other, raw, b"x"), Err(Errno::EAGAIN));
    let parker = Arc::new(crate::wait::Parker::new());
    other.side.queue.add(parker.clone(), Events::OUT, false);
    recv(&receiver, 1).expect("full");
    assert!(parker.park(Some(std::time::Instant::now())), "a sender is woken though none of its messages was read");
    while recv(&receiver, 1).is_ok() {}

    sender.bind(&SockAddr::Unix(vec![])).expect("autobind");
    let SockAddr::Unix(auto) = sender.local_name().expect("bound") else { panic!("a UNIX name") };
    assert_eq!((auto.len(), auto[0]), (6, 0));
    send(&sender, b"q").expect("room");
    let (_, message) = recv_message(&receiver, 9, RecvFlags::empty()).expect("one");
    assert_eq!(message.from, Some(SockAddr::Unix(auto.clone())));

    receiver.connect(&SockAddr::Unix(auto)).expect("there");
    assert_eq!(send_to(&other, raw, b"x"), Err(Errno::EPERM));
    assert_eq!(other.connect(&name), Err(Errno::EPERM));
    send(&sender, b"zz").expect("its own peer");
    receiver.connect(&SockAddr::Unspecified).expect("datagram");
    assert_eq!(recv(&receiver, 1), Err(Errno::EAGAIN));
    assert_eq!(poll(&sender), 0x30c);
    assert_eq!((send(&sender, b"x"), send(&sender, b"x")), (Err(Errno::ECONNRESET), Ok(1)));
    sender.shutdown(libc::SHUT_WR).expect("always");
    assert_eq!(send(&sender, b"x"), Err(Errno::EPIPE));
    receiver.shutdown(libc::SHUT_RD).expect("always");
    assert_eq!((poll(&receiver), send_to(&other, raw, b"x")), (0x2345, Err(Errno::EPIPE)));
}

#[test]
fn files_end_a_read_and_come_with_their_first_byte() {
    let (a, b) = pair(Kind::Stream);
    let file = event();
    let files_in = |room, flags| {
        let (bytes, message) = recv_message(&b, room, flags).expect("something");
        (bytes, message.ancillary.files.len())
    };
    let none = RecvFlags::empty();
    send(&a, b"a").expect("room");
    send_files(&a, b"b", &[&file]).expect("room");
    send(&a, b"c").expect("room");
    assert_eq!(files_in(10, none), (b"ab".to_vec(), 1));
    assert_eq!(files_in(10, none), (b"c".to_vec(), 0));
    send_files(&a, b"ab", &[&file]).expect("room");
    send_files(&a, b"cd", &[&file, &file]).expect("room");
    assert_eq!(files_in(1, RecvFlags::PEEK), (b"a".to_vec(), 1));
    assert_eq!(files_in(1, none), (b"a".to_vec(), 1));
    assert_eq!(files_in(1, none), (b"b".to_vec(), 0));
    assert_eq!(files_in(10, none), (b"cd".to_vec(), 2));
    assert_eq!(Arc::strong_count(&file), 1, "nothing is left in flight");
    assert_eq!(send_files(&a, b"x", &vec![&file; MAX_FILES + 1]), Err(Errno::EINVAL));
    send_files(&a, b"x", &[&file]).expect("room");
    drop(b);
    assert_eq!(Arc::strong_count(&file), 1);
}

#[test]
fn credentials_are_told_to_those_who_ask() {
    let (a, b) = pair(Kind::Stream);
    let other = |uid| Cred { pid: pid(9), uid, gid: 9 };
    let as_user = |uid| Ancillary { credentials: Some(other(uid)), ..Ancillary::default() };
    let creds = |room| {
        let (bytes, message) = recv_message(&b, room, RecvFlags::empty()).expect("something");
        (bytes, message.ancillary.credentials)
    };
    send(&a, b"x").expect("room");
    assert_eq!(creds(9), (b"x".to_vec(), None));
    for (uid, byte) in [(1, b"a"), (1, b"b"), (2, b"c")] {
        a.send(&mut &byte[..], None, as_user(uid), 0).expect("room");
    }
    send(&a, b"d").expect("room");
    set(&b, libc::SO_PASSCRED, 1);
    assert_eq!(creds(9), (b"ab".to_vec(), Some(other(1))), "another sender's bytes are apart");
    assert_eq!(creds(9), (b"c".to_vec(), Some(other(2))));
    assert_eq!(creds(9), (b"d".to_vec(), Some(CRED)));
}

#[test]
fn sockets_that_hold_each_other_are_found() {
    // One in its own peer's queue, closed; two that each hold the other; and a chain behind them.
    let watched = event();
    let (a, b) = pair(Kind::Stream);
    let (file_a, file_b) = (open(&a), open(&b));
    drop((a, b));
    let as_socket = |file: &Arc<OpenFile>| file.object().clone();
    let via = |from: &Arc<OpenFile>, files: &[&Arc<OpenFile>]| {
        let object = as_socket(from);
        let socket = object.as_any().downcast_ref::<UnixSocket>().expect("a socket");
        send_files(socket, b"x", files).expect("room");
    };
    via(&file_a, &[&file_a, &watched]);
    via(&file_b, &[&file_b, &watched]);
    drop((file_a, file_b));
    assert_eq!(Arc::strong_count(&watched), 3, "unreachable, not yet found");
    drop(pair(Kind::Stream)); // any socket that is closed looks
    // Other tests may hold the collector up for a moment: it gives way when a message is being received.
    for _ in 0..1000 {
        if Arc::strong_count(&watched) == 1 {
            return;
        }
        std::thread::yield_now();
        drop(pair(Kind::Stream));
    }
    panic!("{} references", Arc::strong_count(&watched));
}

#[test]
fn sockets_in_flight_that_can_still_be_received_are_kept() {
    let (a, b) = pair(Kind::Stream);
    let (c, d) = pair(Kind::Stream);
    // `c` is only in flight, and holds data and another socket; but `b` can be read.
    send(&d, b"data").expect("room");
    let inner = open(&UnixSocket::new(Kind::Dgram, &Arc::<UnixNamespace>::default(), CRED));
    send_files(&d, b"s", &[&inner]).expect("room");
    let file = open(&c);
    drop(c);
    send_files(&a, b"x", &[&file]).expect("room");
    drop((file, inner));
    drop(pair(Kind::Stream));
    let (_, message) = recv_message(&b, 1, RecvFlags::empty()).expect("there");
    let file = &message.ancillary.files[0];
    let socket = file.downcast::<UnixSocket>().expect("a socket");
    let (bytes, message) = recv_message(socket, 9, RecvFlags::empty()).expect("kept");
    assert_eq!((bytes, message.ancillary.files.len()), (b"datas".to_vec(), 1));
}

/// One socket goes round between two threads, in flight most of the time and then held by messages only, while a third
/// makes the collector look all the time. What is in its queue must not be taken for garbage.
#[test]
fn the_collector_leaves_sockets_on_their_way_alone() {
    let (there, back) = (pair(Kind::Stream), pair(Kind::SeqPacket));
    let (carried, writer) = pair(Kind::Dgram);
    send(&writer, b"precious").expect("room");
    let pass_on = |from: &UnixSocket, to: &UnixSocket| loop {
        match recv_message(from, 1, RecvFlags::empty()) {
            Ok((_, message)) => {
                let file = message.ancillary.files.into_iter().next().expect("one each time");
                // Only the message refers to it once this returns.
                assert_eq!(send_files(to, b"x", &[&file]), Ok(1));
                return;
            }
            Err(error) => assert_eq!(error, Errno::EAGAIN),
        }
        std::thread::yield_now();
    };
    let file = open(&carried);
    drop(carried);
    send_files(&there.0, b"x", &[&file]).expect("room");
    drop(file);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..3000).for_each(|_| pass_on(&there.1, &back.0)));
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                drop(pair(Kind::Stream));
            }
        });
        (0..3000).for_each(|_| pass_on(&back.1, &there.0));
        done.store(true, Ordering::Relaxed);
    });
    let (_, message) = recv_message(&there.1, 1, RecvFlags::empty()).expect("where it began");
    let socket = message.ancillary.files[0].downcast::<UnixSocket>().expect("a socket");
    assert_eq!(recv(socket, 9), Ok(b"precious".to_vec()));
}

#[test]
fn a_deep_nest_is_closed_without_deep_recursion() {
    let mut inner = event();
    let watched = Arc::downgrade(&inner);
    for _ in 0..MAX_IN_FLIGHT / 2 {
        let (a, b) = pair(Kind::Stream);
        send_files(&a, b"x", &[&inner]).expect("room");
        inner = open(&b);
    }
    drop(inner);
    assert_eq!(watched.strong_count(), 0);
}

#[test]
fn options_are_bounded_and_read_back() {
    let (a, _b) = pair(Kind::Stream);
    for (name, asked, got) in [
        (libc::SO_SNDBUF, 1, 4608),
        (libc::SO_SNDBUF, i32::MAX, 8 << 20),
        (libc::SO_RCVBUF, 1, 2304),
        (libc::SO_RCVLOWAT, 0, 1),
        (libc::SO_REUSEADDR, 5, 1),
        (libc::SO_KEEPALIVE, 0, 0),
    ] {
        set(&a, name, asked);
        assert_eq!(int(&a, name), got, "{name}");
    }
    let timeout = |sec: i64, usec: i64| [sec.to_ne_bytes(), usec.to_ne_bytes()].concat();
    let option = SocketOption { level: libc::SOL_SOCKET, name: libc::SO_RCVTIMEO };
    assert_eq!(a.set_option(option, &timeout(0, 1_000_000)), Err(Errno::EDOM));
    a.set_option(option, &timeout(2, 500_000)).expect("valid");
    assert_eq!((a.timeout(false), a.timeout(true)), (Some(Duration::from_millis(2500)), None));
    assert_eq!(a.get_option(option, 16), Ok(timeout(2, 500_000)));
    let unknown = SocketOption { level: libc::SOL_SOCKET, name: 999 };
    assert_eq!(
        (a.get_option(unknown, 4), a.set_option(unknown, &[0; 4])),
        (Err(Errno::ENOPROTOOPT), Err(Errno::ENOPROTOOPT))
    );
}

#[test]
#[ignore = "a measurement, not a check"]
fn cost_of_one_byte() {
    for kind in [Kind::Stream, Kind::Dgram] {
        let (a, b) = pair(kind);
        let start = std::time::Instant::now();
        let rounds = 1_000_000u32;
        for _ in 0..rounds {
            a.write(0, &mut &b"x"[..]).expect("room");
            let mut buf = [0u8; 1];
            b.read(0, &mut SliceSink::new(&mut buf)).expect("a byte");
        }
        println!("{kind:?}: write + read of one byte: {:?}", start.elapsed() / rounds);
    }
}
