//! What is measured from inside: each figure is the time of one operation, in microseconds.
//!
//! The benchmark's own program is started inside the sandbox with [`FLAG`] and prints `NAME VALUE` lines.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The argument that makes this program the one inside.
pub const FLAG: &str = "--measure-inside";

/// How long one figure is measured.
const TIME: Duration = Duration::from_millis(400);

/// Measures everything and prints it.
pub fn main() {
    let directory = std::env::temp_dir().join(format!("runsc-micro-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let path = directory.join("file");
    fs::write(&path, vec![1; 1 << 20]).expect("a file");
    let file = File::options().read(true).write(true).open(&path).expect("it is there");
    let mut block = vec![0; 64 << 10];
    // SAFETY: a mapping of its own, which nobody else uses.
    let idle = unsafe {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), 64 << 10, access, flags, -1, 0)
    };

    report("getpid", || {
        // SAFETY: getpid takes nothing and cannot fail.
        unsafe { libc::syscall(libc::SYS_getpid) };
    });
    report("open+close", || drop(File::open(&path).expect("it is there")));
    report("stat", || {
        fs::metadata(&path).expect("it is there");
    });
    let zero = File::open("/dev/zero").expect("it is there");
    report("read 1 B of /dev/zero", || {
        (&zero).read_exact(&mut block[..1]).expect("it has no end");
    });
    report("read 1 B", || file.read_exact_at(&mut block[..1], 0).expect("it has a byte"));
    report("read 64 KiB", || file.read_exact_at(&mut block, 0).expect("it is long enough"));
    report("write 1 B", || file.write_all_at(&[1], 0).expect("it can be written"));
    report("write 64 KiB", || file.write_all_at(&block, 0).expect("it can be written"));
    report("map and touch 1 MiB", touch);
    report("clock_gettime without the vDSO", || {
        // SAFETY: room for the time.
        unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, [0u64; 2].as_mut_ptr()) };
    });
    report("sched_yield", thread::yield_now);
    report("20 calls and a madvise", || {
        for _ in 0..20 {
            // SAFETY: getppid takes nothing and cannot fail.
            unsafe { libc::getppid() };
        }
        // SAFETY: that mapping.
        unsafe { libc::madvise(idle, 64 << 10, libc::MADV_DONTNEED) };
    });
    report("fork+exit+wait", fork);
    report("spawn /bin/true", || {
        Command::new("/bin/true").status().expect("it is there");
    });
    report("exec sh -c true", || {
        // A closure before exec makes the standard library fork where it would have vforked.
        let mut command = Command::new("/bin/sh");
        // SAFETY: the closure does nothing.
        unsafe { command.pre_exec(|| Ok(())) };
        command.args(["-c", ":"]).status().expect("it is there");
    });
    report("thread+join", || thread::spawn(|| ()).join().expect("it does nothing"));
    ping_pong("pipe", io::pipe().expect("pipe"), io::pipe().expect("pipe"));
    let (mut a, mut b) = UnixStream::pair().expect("a pair");
    report("UNIX socket, write and read 1 B", || {
        a.write_all(&[1]).and_then(|()| b.read_exact(&mut block[..1])).expect("there is room, then a byte");
    });
    ping_pong_both("UNIX socket", a, b);
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
    let a = TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
    let (b, _) = listener.accept().expect("it has connected");
    a.set_nodelay(true).and(b.set_nodelay(true)).expect("TCP");
    ping_pong_both("TCP loopback", a.try_clone().expect("dup"), b.try_clone().expect("dup"));
    stream("TCP stream of 64 KiB", a, b);
    futex("futex handover");
    let _ = fs::remove_dir_all(directory);
}

/// Repeats an operation for [`TIME`], looking at the clock seldom; prints the mean.
fn report(name: &str, mut operation: impl FnMut()) {
    operation();
    let begun = Instant::now();
    let (mut done, mut batch) = (0u32, 1u32);
    while begun.elapsed() < TIME {
        (0..batch).for_each(|_| operation());
        done += batch;
        batch = (done / 8).clamp(1, 1000);
    }
    println!("{name}\t{}", begun.elapsed().as_secs_f64() * 1e6 / f64::from(done));
}

fn touch() {
    const SIZE: usize = 1 << 20;
    // SAFETY: a new private mapping, touched within its bounds, then removed.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let start = libc::mmap(std::ptr::null_mut(), SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        libc::madvise(start, SIZE, libc::MADV_NOHUGEPAGE);
        for offset in (0..SIZE).step_by(4096) {
            start.cast::<u8>().add(offset).write_volatile(1);
        }
        libc::munmap(start, SIZE);
    }
}

fn fork() {
    // SAFETY: the child only ends; there is one thread at this point.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(0),
            child => assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child),
        }
    }
}

/// A byte there and back between two threads.
fn ping_pong<R: Read + Send, W: Write + Send>(name: &str, there: (R, W), back: (R, W)) {
    let ((mut from_us, mut to_them), (mut from_them, mut to_us)) = (there, back);
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut byte = [0];
            while from_us.read_exact(&mut byte).is_ok() && to_us.write_all(&byte).is_ok() {}
        });
        report(&format!("{name}, 1 B there and back"), || {
            to_them.write_all(&[1]).expect("the other reads");
            from_them.read_exact(&mut [0]).expect("the other answers");
        });
        drop(to_them);
    });
}

fn ping_pong_both<S: Read + Write + Send>(name: &str, mut a: S, mut b: S) {
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut byte = [0];
            // A zero is the end.
            while b.read_exact(&mut byte).is_ok() && byte != [0] && b.write_all(&byte).is_ok() {}
        });
        report(&format!("{name}, 1 B there and back"), || {
            a.write_all(&[1]).expect("the other reads");
            a.read_exact(&mut [0]).expect("the other answers");
        });
        a.write_all(&[0]).expect("the other reads");
    });
}

fn stream(name: &str, mut a: TcpStream, mut b: TcpStream) {
    thread::scope(|scope| {
        scope.spawn(move || io::copy(&mut b, &mut io::sink()).expect("the other writes"));
        let block = vec![0; 64 << 10];
        report(name, || a.write_all(&block).expect("the other reads"));
        a.shutdown(std::net::Shutdown::Write).expect("it is connected");
    });
}

/// Two threads that wake each other through a futex.
fn futex(name: &str) {
    static TURN: AtomicU32 = AtomicU32::new(0);
    const END: u32 = 2;
    let call = |operation: libc::c_int, value: u32| {
        // SAFETY: the word is static; no timeout.
        unsafe { libc::syscall(libc::SYS_futex, TURN.as_ptr(), operation, value, 0usize) };
    };
    let hand_over = |to| {
        TURN.store(to, Ordering::Release);
        call(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1);
    };
    let wait_while = |value| {
        while TURN.load(Ordering::Acquire) == value {
            call(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, value);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                wait_while(0);
                if TURN.load(Ordering::Acquire) == END {
                    break;
                }
                hand_over(0);
            }
        });
        report(name, || {
            hand_over(1);
            wait_while(1);
        });
        hand_over(END);
    });
}
