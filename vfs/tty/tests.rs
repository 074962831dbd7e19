//! What goes in and comes out here is what Linux 6.18 shows on a pseudoterminal.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::io::SliceSink;
use crate::timer::TimerQueue;
use crate::vfs::file::IoctlMemory;
use crate::vfs::inode::FileSystem;

/// Session 10 with its leader (group 10) and groups 11 and 12; session 20 is another.
struct World {
    caller: Mutex<Caller>,
    signals: Mutex<Vec<(i32, i32)>>,
    ignores: AtomicBool,
    orphaned: AtomicBool,
}

impl JobControl for World {
    fn caller(&self) -> Option<Caller> {
        Some(*self.caller.lock())
    }
    fn signal_group(&self, group: i32, signal: i32) {
        self.signals.lock().push((group, signal));
    }
    fn signal_process(&self, pid: i32, signal: i32) {
        self.signals.lock().push((-pid, signal));
    }
    fn session_of(&self, group: i32) -> Option<i32> {
        [10, 11, 12, 20].contains(&group).then_some(group / 10 * 10)
    }
    fn is_orphaned(&self, _group: i32) -> bool {
        self.orphaned.load(Ordering::Relaxed)
    }
    fn caller_ignores(&self, _signal: i32) -> bool {
        self.ignores.load(Ordering::Relaxed)
    }
}

/// A page of memory at address 0.
struct Memory(Mutex<[u8; 64]>);

impl IoctlMemory for Memory {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        let memory = self.0.lock();
        buf.copy_from_slice(memory.get(addr as usize..addr as usize + buf.len()).ok_or(Errno::EFAULT)?);
        Ok(())
    }
    fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        let mut memory = self.0.lock();
        memory.get_mut(addr as usize..addr as usize + bytes.len()).ok_or(Errno::EFAULT)?.copy_from_slice(bytes);
        Ok(())
    }
    fn caller(&self) -> &dyn std::any::Any {
        &()
    }
}

struct Pair {
    world: Arc<World>,
    fs: DevPts,
    master: Arc<dyn File>,
    slave: Arc<dyn File>,
    memory: Memory,
}

const NONBLOCK: i32 = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;

fn pair() -> Pair {
    let caller = Caller { pid: 10, group: 10, session: 10, uid: 1000, privileged: false };
    let world = Arc::new(World {
        caller: Mutex::new(caller),
        signals: Mutex::default(),
        ignores: AtomicBool::new(false),
        orphaned: AtomicBool::new(false),
    });
    let fs = DevPts::new(0x1a, DevPtsOptions::default(), Terminals::new(world.clone(), TimerQueue::new()));
    let master = fs.open_ptmx().expect("room");
    let tty = master.as_any().downcast_ref::<Master>().expect("a master").tty().clone();
    assert_eq!(tty.open_slave(NONBLOCK).err(), Some(Errno::EIO), "locked");
    tty.state.lock().locked = false;
    let slave = tty.open_slave(NONBLOCK).expect("unlocked");
    Pair { world, fs, master, slave, memory: Memory(Mutex::new([0; 64])) }
}

fn read(file: &Arc<dyn File>, room: usize) -> Result<String> {
    let mut buf = vec![0; room];
    let n = file.read(0, &mut SliceSink::new(&mut buf))?;
    Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
}

impl Pair {
    fn tty(&self) -> Arc<Tty> {
        self.master.as_any().downcast_ref::<Master>().expect("a master").tty().clone()
    }

    fn set(&self, change: impl FnOnce(&mut Termios)) {
        let tty = self.tty();
        let mut state = tty.state.lock();
        let mut termios = *state.disc.termios();
        change(&mut termios);
        let fx = state.disc.set_termios(termios);
        drop(state);
        tty.carry_out(fx);
    }

    fn type_in(&self, text: &str) {
        assert_eq!(self.master.write(0, &mut text.as_bytes()), Ok(text.len()));
    }

    fn write(&self, text: &str) -> Result<usize> {
        self.slave.write(0, &mut text.as_bytes())
    }

    fn shown(&self) -> Result<String> {
        read(&self.master, 9999)
    }

    fn got(&self) -> Result<String> {
        read(&self.slave, 9999)
    }

    /// Types `text`; what the program gets and what is shown.
    fn both(&self, text: &str) -> (String, String) {
        self.type_in(text);
        let none = |error| format!("{error:?}");
        (self.got().unwrap_or_else(none), self.shown().unwrap_or_else(none))
    }

    fn check(&self, text: &str, got: &str, shown: &str) {
        assert_eq!(self.both(text), (got.into(), shown.into()), "{text:?}");
    }

    fn ioctl(&self, file: &Arc<dyn File>, cmd: u64, arg: u64) -> Result<u64> {
        file.ioctl(&self.memory, cmd as u32, arg)
    }

    fn int(&self, file: &Arc<dyn File>, cmd: u64) -> Result<i32> {
        self.ioctl(file, cmd, 0)?;
        Ok(i32::from_ne_bytes(*self.memory.0.lock().first_chunk().expect("4 bytes")))
    }

    fn set_int(&self, file: &Arc<dyn File>, cmd: u64, value: i32) -> Result<u64> {
        self.memory.0.lock()[..4].copy_from_slice(&value.to_ne_bytes());
        self.ioctl(file, cmd, 0)
    }

    fn be(&self, pid: i32, group: i32) {
        *self.world.caller.lock() = Caller { pid, group, session: group / 10 * 10, uid: 1000, privileged: false };
    }

    fn signals(&self) -> Vec<(i32, i32)> {
        std::mem::take(&mut *self.world.signals.lock())
    }
}

const AGAIN: &str = "EAGAIN(11)";

#[test]
fn lines_are_edited() {
    let pair = pair();
    pair.check("abc\r", "abc\n", "abc\r\n");
    pair.check("abc\x7f\x7fx\n", "ax\n", "abc\x08 \x08\x08 \x08x\r\n");
    pair.check("ab\tc\x7f\x7f\x7fz\n", "az\n", "ab\tc\x08 \x08\x08\x08\x08\x08\x08\x08\x08 \x08z\r\n");
    let word = "\x08 \x08".repeat(8);
    pair.check("foo bar.baz \x17\x17x\n", "foo x\n", &format!("foo bar.baz {word}x\r\n"));
    pair.check("hello\x15yo\n", "yo\n", &format!("hello{}yo\r\n", "\x08 \x08".repeat(5)));
    pair.check("a\x16\x03b\n", "a\x03b\n", "a^\x08^Cb\r\n");
    pair.check("re\x12p\n", "rep\n", "re^R\r\nrep\r\n");
    pair.check("a\x01b\x7f\x7f\n", "a\n", "a^Ab\x08 \x08\x08 \x08\x08 \x08\r\n");
    pair.set(|termios| termios.local &= !(libc::ECHOE | libc::ECHOK | libc::ECHOKE));
    pair.check("ab\x7f\x15q\n", "q\n", "ab^?^Uq\r\n");
    pair.set(|termios| termios.local |= libc::ECHOK);
    pair.check("ab\x15q\n", "q\n", "ab^U\r\nq\r\n");
    pair.set(|termios| termios.local |= libc::ECHOPRT | libc::ECHOE);
    pair.check("abc\x7f\x7fq\n", "aq\n", "abc\\cb/q\r\n");
}

#[test]
fn utf8_is_erased_by_the_character() {
    let pair = pair();
    pair.set(|termios| termios.input |= libc::IUTF8);
    pair.check("aä\x7f\n", "a\n", "aä\x08 \x08\r\n");
    pair.set(|termios| termios.input &= !libc::IUTF8);
    pair.type_in("aä\x7f\n");
    assert_eq!(pair.got().map(|line| line.len()), Ok("a\u{fffd}\n".len()), "half of it is left");
}

#[test]
fn end_of_file_ends_a_line_without_being_in_it() {
    let pair = pair();
    pair.check("abc\x04", "abc", "abc");
    pair.check("\x04", "", AGAIN);
    pair.check("part", AGAIN, "part");
    assert_eq!(pair.int(&pair.slave, libc::FIONREAD), Ok(0));
    pair.check("ial\n", "partial\n", "ial\r\n");
    pair.type_in("line\nmore");
    assert_eq!(
        (read(&pair.slave, 4), pair.got(), pair.got()),
        (Ok("line".into()), Ok("\n".into()), Err(Errno::EAGAIN))
    );
    pair.type_in("\x04");
    assert_eq!((read(&pair.slave, 4), pair.got()), (Ok("more".into()), Err(Errno::EAGAIN)), "read to the very end");
}

#[test]
fn long_lines_lose_what_is_too_much() {
    let pair = pair();
    pair.type_in(&"k".repeat(5000));
    pair.type_in("\n");
    assert_eq!(pair.got().map(|line| line.len()), Ok(4096));
    assert_eq!(pair.shown().map(|echo| echo.len()), Ok(4095 + 2));
    let lines = (0..).take_while(|_| pair.master.write(0, &mut &b"ab\n"[..]) == Ok(3)).count();
    assert!(lines < 4096, "a program that does not read makes the master wait");
    assert_eq!(pair.master.poll() & Events::OUT, Events::empty());
}

#[test]
fn signal_characters_flush_and_signal() {
    let pair = pair();
    pair.tty().set_controlling(false).expect("a leader without a terminal");
    pair.check("x\x03y\n", "y\n", "^Cy\r\n");
    assert_eq!(pair.signals(), [(10, libc::SIGINT)]);
    pair.set(|termios| termios.local |= libc::NOFLSH);
    pair.check("x\x1a\x1cy\n", "xy\n", "x^Z^\\y\r\n");
    assert_eq!(pair.signals(), [(10, libc::SIGTSTP), (10, libc::SIGQUIT)]);
    pair.set(|termios| termios.local &= !libc::ISIG);
    pair.check("\x03\n", "\x03\n", "^C\r\n");
    assert_eq!(pair.signals(), []);
}

#[test]
fn flow_control_holds_output_and_echo() {
    let pair = pair();
    pair.check("\x13z\n", "z\n", AGAIN);
    assert_eq!((pair.write("stopped"), pair.slave.poll()), (Err(Errno::EAGAIN), Events::empty()));
    pair.check("\x11", AGAIN, "z\r\n");
    assert_eq!((pair.write("go\ton\n"), pair.shown()), (Ok(6), Ok("go\ton\r\n".into())));
    pair.set(|termios| termios.input |= libc::IXANY);
    pair.check("\x13a\n", "a\n", "a\r\n");
}

#[test]
fn output_is_processed() {
    let pair = pair();
    pair.set(|termios| termios.output |= libc::XTABS);
    assert_eq!((pair.write("a\tb\n"), pair.shown()), (Ok(4), Ok("a       b\r\n".into())));
    pair.set(|termios| termios.output = libc::OPOST | libc::OCRNL | libc::ONOCR | libc::OLCUC);
    assert_eq!((pair.write("\rab\rc\n"), pair.shown()), (Ok(6), Ok("AB\nC\n".into())));
    pair.set(|termios| termios.output = 0);
    assert_eq!((pair.write("a\n\r"), pair.shown()), (Ok(3), Ok("a\n\r".into())));
    let total: usize = std::iter::from_fn(|| pair.write(&"x".repeat(1000)).ok()).sum();
    assert_eq!((total, pair.slave.poll()), (output::OUTPUT_MAX, Events::empty()));
    pair.shown().expect("full");
    assert_eq!(pair.slave.poll(), Events::WRITE);
}

#[test]
fn input_is_translated() {
    let pair = pair();
    pair.set(|termios| termios.local &= !libc::ECHO);
    pair.set(|termios| termios.input = libc::IGNCR | libc::ISTRIP);
    pair.master.write(0, &mut &b"a\rb\xe1\n"[..]).expect("room");
    assert_eq!(pair.got(), Ok("aba\n".into()));
    pair.set(|termios| termios.input = libc::INLCR);
    pair.set(|termios| termios.chars[libc::VEOL] = b';');
    pair.check("x\ny;", "x\ry;", AGAIN);
}

#[test]
fn changing_between_lines_and_bytes_keeps_the_input() {
    let pair = pair();
    pair.set(|termios| termios.local &= !(libc::ICANON | libc::ECHO));
    pair.check("raw\r\x7f\x04", "raw\n\x7f\x04", AGAIN);
    pair.set(|termios| termios.local |= libc::ICANON);
    pair.type_in("1\n2\n3");
    assert_eq!(read(&pair.slave, 1), Ok("1".into()));
    pair.set(|termios| termios.local &= !libc::ICANON);
    assert_eq!(pair.got(), Ok("\n2\n3".into()));
    pair.type_in("later");
    pair.set(|termios| termios.local |= libc::ICANON);
    assert_eq!(pair.got(), Ok("later".into()));
}

#[test]
fn vmin_and_vtime() {
    let pair = pair();
    let raw = |min, time| {
        pair.set(|termios| {
            termios.local &= !(libc::ICANON | libc::ECHO);
            (termios.chars[libc::VMIN], termios.chars[libc::VTIME]) = (min, time);
        });
    };
    pair.slave.flags_changed(0).expect("blocking");
    raw(3, 0);
    pair.type_in("ab");
    assert_eq!((pair.got(), pair.slave.poll() & Events::IN), (Err(Errno::EAGAIN), Events::empty()));
    assert_eq!(read(&pair.slave, 2), Ok("ab".into()), "no more is wanted");
    pair.type_in("abc");
    assert_eq!((pair.slave.poll() & Events::IN, pair.got()), (Events::IN, Ok("abc".into())));
    raw(0, 0);
    assert_eq!(pair.got(), Ok(String::new()));

    let parker = Arc::new(crate::wait::Parker::new());
    pair.tty().slave_queue.add(parker.clone(), Events::IN, false);
    let wait = || loop {
        match pair.got() {
            Err(Errno::EAGAIN) => assert!(parker.park(None)),
            other => return other,
        }
    };
    raw(0, 1);
    let start = std::time::Instant::now();
    assert_eq!(wait(), Ok(String::new()));
    assert!(start.elapsed() >= std::time::Duration::from_millis(100));
    raw(9, 1);
    pair.type_in("x");
    assert_eq!(wait(), Ok("x".into()), "nothing has followed for a tenth of a second");
    assert!(start.elapsed() >= std::time::Duration::from_millis(200));
}

#[test]
fn packet_mode_tells_what_happens() {
    let pair = pair();
    pair.set_int(&pair.master, libc::TIOCPKT, 1).expect("a master");
    pair.write("hi").expect("room");
    assert_eq!(pair.shown(), Ok("\0hi".into()));
    pair.ioctl(&pair.slave, libc::TCFLSH, libc::TCOFLUSH as u64).expect("in front");
    assert_eq!(pair.master.poll().bits(), 0x147);
    assert_eq!(pair.shown(), Ok("\x02".into()));
    for (cmd, arg, told) in [
        (libc::TCXONC, libc::TCOOFF, "\x04"),
        (libc::TCXONC, libc::TCOON, "\x08"),
        (libc::TCFLSH, libc::TCIFLUSH, "\x01"),
    ] {
        pair.ioctl(&pair.slave, cmd, arg as u64).expect("in front");
        assert_eq!(pair.shown(), Ok(told.into()));
    }
    pair.set(|termios| termios.input &= !libc::IXON);
    assert_eq!(pair.shown(), Ok("\x10".into()));
    pair.set(|termios| termios.input |= libc::IXON);
    assert_eq!(pair.shown(), Ok("\x20".into()));
}

#[test]
fn closing_shows_at_the_other_side() {
    let Pair { master, slave, world, fs, .. } = pair();
    let tty = master.as_any().downcast_ref::<Master>().expect("a master").tty().clone();
    drop(slave);
    assert_eq!(master.poll().bits(), 0x114);
    assert_eq!((read(&master, 1), master.write(0, &mut &b"x\n"[..])), (Err(Errno::EIO), Ok(2)));
    assert_eq!(read(&master, 9), Ok("x\r\n".into()));
    let slave = tty.open_slave(NONBLOCK).expect("not gone");
    assert_eq!((master.poll().bits(), read(&slave, 9)), (0x104, Ok("x\n".into())));
    tty.set_controlling(false).expect("a leader without a terminal");
    drop(master);
    assert_eq!(slave.poll().bits(), 0x15d);
    assert_eq!((read(&slave, 1), slave.write(0, &mut &b"x"[..])), (Ok(String::new()), Err(Errno::EIO)));
    assert_eq!(*world.signals.lock(), [(-10, libc::SIGHUP), (-10, libc::SIGCONT)]);
    assert_eq!(fs.root().lookup(b"0").err(), Some(Errno::ENOENT));
    assert_eq!(tty.open_slave(NONBLOCK).err(), Some(Errno::EIO));
    assert_eq!(tty.terminals.controlling(10).map(|tty| tty.index()), None);
}

#[test]
fn background_groups_are_stopped() {
    let pair = pair();
    assert_eq!(pair.int(&pair.slave, libc::TIOCGPGRP), Err(Errno::ENOTTY));
    assert_eq!(pair.int(&pair.master, libc::TIOCGPGRP), Ok(0));
    pair.ioctl(&pair.slave, libc::TIOCSCTTY, 0).expect("a leader without a terminal");
    assert_eq!((pair.int(&pair.slave, libc::TIOCGPGRP), pair.int(&pair.slave, libc::TIOCGSID)), (Ok(10), Ok(10)));
    assert_eq!(pair.set_int(&pair.slave, libc::TIOCSPGRP, 99), Err(Errno::ESRCH));
    assert_eq!(pair.set_int(&pair.slave, libc::TIOCSPGRP, 20), Err(Errno::EPERM));
    assert_eq!(pair.set_int(&pair.slave, libc::TIOCSPGRP, -1), Err(Errno::EINVAL));
    pair.set_int(&pair.slave, libc::TIOCSPGRP, 11).expect("of this session");
    pair.type_in("x\n");
    assert_eq!((pair.got(), pair.signals()), (Err(Errno::ERESTARTSYS), vec![(10, libc::SIGTTIN)]));
    assert_eq!((pair.write("free"), pair.signals()), (Ok(4), vec![]));
    pair.set(|termios| termios.local |= libc::TOSTOP);
    assert_eq!((pair.write("held"), pair.signals()), (Err(Errno::ERESTARTSYS), vec![(10, libc::SIGTTOU)]));
    assert_eq!(pair.ioctl(&pair.slave, libc::TCSETS, 0), Err(Errno::ERESTARTSYS));
    pair.signals();
    pair.world.ignores.store(true, Ordering::Relaxed);
    assert_eq!((pair.got(), pair.write("let")), (Err(Errno::EIO), Ok(3)));
    pair.world.ignores.store(false, Ordering::Relaxed);
    pair.world.orphaned.store(true, Ordering::Relaxed);
    assert_eq!((pair.got(), pair.write("no")), (Err(Errno::EIO), Err(Errno::EIO)));
    pair.be(15, 11);
    assert_eq!(pair.got(), Ok("x\n".into()));
    pair.be(20, 20);
    assert_eq!(pair.int(&pair.slave, libc::TIOCGPGRP), Err(Errno::ENOTTY), "not its terminal");
    assert_eq!(pair.ioctl(&pair.slave, libc::TIOCSCTTY, 0), Err(Errno::EPERM));
}

#[test]
fn a_session_gives_its_terminal_up_or_ends() {
    let pair = pair();
    let terminals = pair.tty().terminals.clone();
    let open = || pair.fs.root().lookup(b"0").expect("there").open(libc::O_RDWR).expect("unlocked");
    open();
    assert_eq!(terminals.controlling(10).map(|tty| tty.index()), Some(0), "by opening it");
    pair.be(15, 11);
    assert_eq!(pair.ioctl(&pair.slave, libc::TIOCNOTTY, 0), Ok(0));
    assert!(terminals.controlling(10).is_some(), "only the leader gives it up for all");
    pair.be(10, 10);
    pair.ioctl(&pair.slave, libc::TIOCNOTTY, 0).expect("its terminal");
    assert_eq!(pair.signals(), [(10, libc::SIGHUP), (10, libc::SIGCONT)]);
    assert_eq!(
        (terminals.controlling(10).is_none(), pair.ioctl(&pair.slave, libc::TIOCNOTTY, 0)),
        (true, Err(Errno::ENOTTY))
    );
    open();
    pair.set_int(&pair.slave, libc::TIOCSPGRP, 12).expect("of this session");
    terminals.session_ended(10);
    assert_eq!(pair.signals(), [(12, libc::SIGHUP)]);
    assert_eq!((pair.got(), pair.tty().job()), (Err(Errno::EAGAIN), Job::default()), "it goes on without a session");
}

#[test]
fn window_changes_are_told_once() {
    let pair = pair();
    pair.tty().set_controlling(false).expect("a leader without a terminal");
    pair.memory.0.lock()[..8].copy_from_slice(&[24, 0, 80, 0, 0, 0, 0, 0]);
    pair.ioctl(&pair.master, libc::TIOCSWINSZ, 0).expect("valid");
    pair.ioctl(&pair.slave, libc::TIOCSWINSZ, 0).expect("valid");
    assert_eq!(pair.signals(), [(10, libc::SIGWINCH)]);
    pair.ioctl(&pair.slave, libc::TIOCGWINSZ, 16).expect("valid");
    assert_eq!(pair.memory.0.lock()[16..20], [24, 0, 80, 0]);
}

#[test]
fn settings_are_read_and_written() {
    let pair = pair();
    pair.ioctl(&pair.slave, libc::TCGETS, 0).expect("valid");
    let words = |memory: &Memory| {
        let memory = memory.0.lock();
        [0, 4, 8, 12].map(|at| u32::from_ne_bytes(memory[at..at + 4].try_into().expect("4 bytes")))
    };
    assert_eq!(words(&pair.memory), [0x500, 0x5, 0xbf, 0x8a3b]);
    pair.memory.0.lock()[12] &= !(libc::ECHO as u8);
    pair.ioctl(&pair.slave, libc::TCSETSF, 0).expect("valid");
    pair.check("quiet\n", "quiet\n", AGAIN);
    assert_eq!(pair.ioctl(&pair.slave, libc::TCGETS, 60), Err(Errno::EFAULT));
    assert_eq!(pair.ioctl(&pair.slave, 0x1234, 0), Err(Errno::ENOTTY));
    assert_eq!((pair.int(&pair.master, 0x8004_5430), pair.int(&pair.slave, 0x8004_5430)), (Ok(0), Err(Errno::ENOTTY)));
}

#[test]
fn the_file_system_lists_what_is_open() {
    let pair = pair();
    let second = pair.fs.open_ptmx().expect("room");
    let names = || {
        let mut names = Vec::new();
        let root = pair.fs.root().open(libc::O_RDONLY).expect("a directory");
        root.read_dir(2, &mut |entry| {
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            true
        })
        .expect("listed");
        names
    };
    assert_eq!(names(), ["ptmx", "0", "1"]);
    let attr = pair.fs.root().lookup(b"1").and_then(|node| node.attr()).expect("there");
    assert_eq!((attr.rdev, attr.mode(), attr.uid, attr.ino), (0x8801, 0o20600, 1000, 4));
    for wrong in [&b"01"[..], b"+1", b"7", b"x", b"\xff"] {
        assert_eq!(pair.fs.root().lookup(wrong).err(), Some(Errno::ENOENT));
    }
    drop(pair.slave);
    drop(pair.master);
    let attr = second.as_any().downcast_ref::<Master>().expect("a master").tty().index();
    assert_eq!(attr, 1);
}

/// Whatever is typed and however it is set, what is counted stays what is there.
#[test]
fn random_input_keeps_the_books_right() {
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut disc = LineDiscipline::default();
    for _ in 0..200_000 {
        let value = random();
        match value % 50 {
            0 => {
                let mut termios = *disc.termios();
                (termios.input, termios.output) = (random() as u32, random() as u32);
                termios.local = random() as u32;
                termios.chars = std::array::from_fn(|_| (random() % 128) as u8);
                disc.set_termios(termios);
            }
            1 => disc.flush_input(),
            2 => drop(disc.stop_or_start(value & 64 != 0)),
            3..10 => {
                let before = disc.readable_bytes();
                let room = (value >> 8) as usize % 20;
                let mut taken = 0;
                let read = disc.read(room, &mut |bytes| {
                    taken = bytes.len();
                    Ok::<_, Errno>(taken)
                });
                assert!(taken <= room && disc.readable_bytes() == before - taken);
                assert!(read.is_some() || before == 0);
            }
            10 => drop(disc.output.read(4000, &mut |bytes| Ok::<_, Errno>(bytes.len()))),
            _ => {
                let bytes = value.to_ne_bytes();
                let room = disc.input_room().min(bytes.len());
                disc.receive(&bytes[..room], &mut Effects::default());
            }
        }
        assert!(disc.readable_bytes() <= 2 * 4096 && disc.output.len() <= 4 * output::OUTPUT_MAX);
    }
}
