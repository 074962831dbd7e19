//! As `calls.c`, with the calls that Rust's standard library makes.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex};
use std::time::Duration;
use std::{env, fs, process, slice, thread};

const TURNS: usize = 1000;

/// A file's code as it is in memory, and as it is in the file.
struct Text {
    memory: &'static [u8],
    file: Vec<u8>,
}

fn texts() -> Vec<Text> {
    let maps = fs::read_to_string("/proc/self/maps").expect("it is mounted");
    let mut texts = Vec::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [range, "r-xp", offset, _, _, path] = fields[..] else { continue };
        if !path.starts_with('/') {
            continue;
        }
        let number = |digits| usize::from_str_radix(digits, 16).expect("a number");
        let (start, end) = range.split_once('-').map(|(start, end)| (number(start), number(end))).expect("a range");
        // The last page may be longer than the file.
        let mut file = vec![0; end - start];
        let opened = File::open(path).expect("the program");
        let whole = opened.metadata().expect("the program").len() as usize - number(offset);
        let len = whole.min(file.len());
        opened.read_exact_at(&mut file[..len], number(offset) as u64).expect("the code");
        // SAFETY: mapped, readable, and nothing of this program unmaps it.
        texts.push(Text { memory: unsafe { slice::from_raw_parts(start as *const u8, end - start) }, file });
    }
    assert!(!texts.is_empty());
    texts
}

/// How many places are other than in the files.
fn changed(texts: &[Text]) -> usize {
    let mut places = 0;
    for text in texts {
        let mut last = None;
        for at in 0..text.file.len() {
            // SAFETY: within the slice. What is there changes while this program runs.
            let byte = unsafe { (&raw const text.memory[at]).read_volatile() };
            if byte != text.file[at] {
                places += usize::from(last.is_none_or(|last| at - last > 8));
                last = Some(at);
            }
        }
    }
    places
}

/// Makes a call often.
fn often(name: &str, mut call: impl FnMut() -> usize) {
    let texts = texts();
    let before = changed(&texts);
    let sum: usize = (0..TURNS).map(|_| call()).sum();
    let places = changed(&texts) - before;
    println!("{name}: {sum}\nrewritten for {name}: {places}");
}

fn yields(name: &str) {
    often(name, || {
        thread::yield_now();
        1
    });
}

fn numbers(name: &str) {
    often(name, || usize::from(process::id() > 0));
}

fn metadata(name: &str) {
    often(name, || usize::from(fs::metadata("/dev/null").is_ok_and(|metadata| !metadata.is_file())));
}

fn files(name: &str) {
    let mut null = File::options().write(true).open("/dev/null").expect("a device");
    often(name, || null.write(b"some").expect("it takes everything"));
}

fn tcp(name: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let mut here = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let mut there = listener.accept().expect("a connection").0;
    often(name, || {
        let mut bytes = [0; 4];
        here.write_all(b"some").expect("room");
        there.read_exact(&mut bytes).expect("what was sent");
        usize::from(bytes == *b"some")
    });
}

/// Who asks has the lock until it waits: so it does wait, each time.
fn condition(name: &str) {
    let (asked, moved) = (&Mutex::new(false), &Condvar::new());
    let lock = || asked.lock().expect("nobody panics");
    let until = |asked, wanted| moved.wait_while(asked, |asked| *asked != wanted).expect("nobody panics");
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..TURNS {
                *until(lock(), true) = false;
                moved.notify_one();
            }
        });
        often(name, || {
            let mut asked = lock();
            *asked = true;
            moved.notify_one();
            usize::from(!*until(asked, false))
        });
    });
}

fn parks(name: &str) {
    often(name, || {
        thread::park_timeout(Duration::from_nanos(1));
        1
    });
}

fn threads(name: &str) {
    often(name, || thread::spawn(|| 1).join().expect("it ends"));
}

const KINDS: [(&str, fn(&str)); 8] = [
    ("yield", yields),
    ("id", numbers),
    ("metadata", metadata),
    ("write", files),
    ("TCP", tcp),
    ("condition", condition),
    ("park", parks),
    ("thread", threads),
];

/// Each kind is a process of its own, whose argument it is.
fn main() {
    if let Some(name) = env::args().nth(1) {
        let (name, kind) = KINDS.iter().find(|(kind, _)| *kind == name).expect("a kind");
        return kind(name);
    }
    for (kind, _) in KINDS {
        let this = env::current_exe().expect("it has a path");
        assert!(process::Command::new(this).arg(kind).status().expect("it starts").success());
    }
}
