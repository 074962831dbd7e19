//! TCP out of the sandbox over a path that is slow and long, has a short queue and loses packets: what each congestion control
//! makes of it, and how soon a short message is there.
//!
//! ```text
//!  sandbox ── tap0 ── bridge ── near ══ forwarder (here) ══ far, 192.168.10.1
//! ```
//!
//! The forwarder's devices take no long segments, so that the host cuts those of the sandbox before them: what is lost is
//! one packet, as on a wire.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use serde_json::Value;
use tun_tap::{Iface, Mode};

use super::common::{Cable, Namespace, Network, OUTSIDE, Runtime, Sandbox};

/// What a path does to packets.
#[derive(Clone, Copy)]
struct Path {
    name: &'static str,
    /// Bits a second.
    rate: f64,
    /// One way.
    delay: Duration,
    /// Bytes that wait for their turn.
    queue: f64,
    /// How many of a thousand packets with data are lost for no reason.
    lost: f64,
}

const fn path(name: &'static str, megabits: f64, delay_ms: u64, queue: f64, lost: f64) -> Path {
    Path { name, rate: megabits * 1e6, delay: Duration::from_millis(delay_ms), queue, lost }
}

const PATHS: [Path; 4] = [
    path("100 Mbit/s, 20 ms, queue of 250 KB", 100.0, 10, 250e3, 0.0),
    path("100 Mbit/s, 20 ms, queue of 50 KB", 100.0, 10, 50e3, 0.0),
    path("100 Mbit/s, 20 ms, 1 of 1000 lost", 100.0, 10, 250e3, 1.0),
    path("10 Mbit/s, 100 ms, queue of 60 KB", 10.0, 50, 60e3, 0.0),
];

/// Takes packets from one device to the other until it is stopped.
fn forward(from: &Iface, to: &Iface, path: &Path, lossy: bool, stop: &AtomicBool) {
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut free = Instant::now();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut frame = [0; 2048];
    // SAFETY: the device is open as long as this runs.
    let ready = unsafe { BorrowedFd::borrow_raw(from.as_raw_fd()) };
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        while waiting.front().is_some_and(|(due, _)| *due <= now) {
            let sent = waiting.pop_front().map(|(_, frame)| to.send(&frame));
            debug_assert!(sent.is_some());
        }
        let rest = waiting.front().map_or(Duration::from_millis(50), |(due, _)| due.saturating_duration_since(now));
        let mut poll = [PollFd::new(ready, PollFlags::POLLIN)];
        if ppoll(&mut poll, Some(TimeSpec::from_duration(rest)), None).unwrap_or(0) == 0 {
            continue;
        }
        while let Ok(len) = from.recv(&mut frame) {
            let now = Instant::now();
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let unlucky = lossy && len > 200 && (random >> 11) as f64 / (1u64 << 53) as f64 * 1000.0 < path.lost;
            free = free.max(now);
            let queued = (free - now).as_secs_f64() * path.rate / 8.0;
            if unlucky || queued + len as f64 > path.queue {
                continue;
            }
            free += Duration::from_secs_f64(len as f64 * 8.0 / path.rate);
            waiting.push_back((free + path.delay, frame[..len].to_vec()));
        }
    }
}

/// A sandbox's network whose other end is behind a path.
struct Wan {
    network: Network,
    far: Namespace,
    devices: [Iface; 2],
}

impl Wan {
    fn new(cable: Cable) -> Wan {
        let network = Network::new(cable).expect("root may make a network");
        let far = Namespace::new().expect("root may make a namespace");
        let ip = |words: &str| {
            let status = network.command("ip").args(words.split(' ')).status().expect("ip");
            assert!(status.success(), "ip {words}");
        };
        ip("address flush dev tap0");
        ip("link add bridge0 type bridge");
        ip("link set tap0 master bridge0");
        ip("link set bridge0 up");
        let open = |name: &str| {
            let device = Iface::without_packet_info(name, Mode::Tap).expect("a TAP device");
            // SAFETY: the device is open, and the call takes no memory.
            let flags = unsafe { libc::fcntl(device.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
            assert_eq!(flags, 0, "it does not block");
            device
        };
        let near = network.outside(|| open("near"));
        ip("link set near master bridge0");
        ip("link set near up");
        let other = far.enter(|| open("far"));
        far.ip(&format!("address add {OUTSIDE}/24 dev far")).expect("an address");
        far.ip("link set far up").expect("it is up");
        Wan { network, far, devices: [near, other] }
    }

    /// Runs `work` while packets are forwarded.
    fn with<T>(&self, path: &Path, work: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        let [near, far] = &self.devices;
        std::thread::scope(|scope| {
            scope.spawn(|| forward(near, far, path, true, &stop));
            scope.spawn(|| forward(far, near, path, false, &stop));
            let result = work();
            stop.store(true, Ordering::Relaxed);
            result
        })
    }

    fn far(&self, words: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new("ip");
        command.args(["netns", "exec", self.far.name()]).args(words);
        command
    }

    /// What a program that runs in the sandbox, or natively in its place, prints.
    fn run(&self, runtime: Option<&Runtime>, words: &[&str]) -> String {
        match runtime {
            Some(runtime) => {
                let sandbox = Sandbox::new(words.iter().copied()).runtime(runtime).network(&self.network);
                sandbox.quiet().run().stdout
            }
            None => {
                let mut command = std::process::Command::new("nsenter");
                command.arg(format!("--net={}", self.network.bundle_namespace().display())).args(words);
                String::from_utf8_lossy(&command.output().expect("it starts").stdout).into_owned()
            }
        }
    }
}

/// Mbit/s that arrive and segments that were sent again, with iperf3 for some seconds.
fn bulk(wan: &Wan, path: &Path, runtime: Option<&Runtime>, control: &str) -> Option<(f64, f64)> {
    wan.with(path, || {
        let mut server = wan.far(&["timeout", "40", "iperf3", "-s", "-1"]);
        let mut server = server.stdout(Stdio::null()).spawn().expect("iperf3");
        let script = format!(
            "for n in 1 2 3 4 5 6 7 8 9; do timeout 25 iperf3 -c {OUTSIDE} -t10 -O2 -C {control} -J > /tmp/wan && break; \
             sleep 0.3; done; cat /tmp/wan"
        );
        let printed = wan.run(runtime, &["timeout", "30", "sh", "-c", &script]);
        let _ = server.kill();
        let _ = server.wait();
        let report: Value = serde_json::from_str(&printed).ok()?;
        let end = &report["end"];
        let speed = end["sum_received"]["bits_per_second"].as_f64()? / 1e6;
        Some((speed, end["sum_sent"]["retransmits"].as_f64().unwrap_or(f64::NAN)))
    })
}

const SHORT_SERVER: &str = "
import socket
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('', 5300)); s.listen()
while True:
    c, _ = s.accept(); left = int.from_bytes(c.recv(4), 'big')
    while left: left -= len(c.recv(1 << 16))
    c.sendall(b'.'); c.close()
";

/// Milliseconds until a message on a fresh connection is answered, the median of nine, for messages of these lengths.
fn short(wan: &Wan, path: &Path, runtime: Option<&Runtime>, control: &str, lengths: [usize; 3]) -> Option<[f64; 3]> {
    wan.with(path, || {
        let mut server = wan.far(&["python3", "-c", SHORT_SERVER]).spawn().expect("python3");
        let script = format!(
            "
import socket, time
def once(length):
    s = socket.socket(); s.setsockopt(socket.IPPROTO_TCP, 13, b'{control}')
    s.connect(('{OUTSIDE}', 5300)); start = time.monotonic()
    s.sendall(length.to_bytes(4, 'big') + bytes(length)); assert s.recv(1) == b'.'
    return (time.monotonic() - start) * 1000
while True:
    try: once(1); break
    except ConnectionRefusedError: time.sleep(0.1)
print(*[sorted(once(length) for n in range(9))[4] for length in {lengths:?}])
"
        );
        let printed = wan.run(runtime, &["timeout", "60", "python3", "-c", &script]);
        let _ = server.kill();
        let _ = server.wait();
        let all: Vec<f64> = printed.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        all.try_into().ok()
    })
}

/// Prints everything.
pub fn run(runtime: &Runtime) {
    const LENGTHS: [usize; 3] = [4_000, 14_000, 100_000];
    println!("\n## A long path, Mbit/s (segments sent again in ten seconds); milliseconds for 4, 14 and 100 kB\n");
    println!("| path | | bulk | 4 kB | 14 kB | 100 kB |\n| --- | --- | ---: | ---: | ---: | ---: |");
    let cases = [(None, "cubic"), (None, "reno"), (Some(runtime), "cubic"), (Some(runtime), "reno")];
    for path in &PATHS {
        for (runtime, control) in cases {
            let wan = Wan::new(if runtime.is_some() { Cable::Tap } else { Cable::Veth });
            let who = if runtime.is_some() { "this" } else { "native" };
            let bulk = bulk(&wan, path, runtime, control);
            let bulk = bulk.map_or("–".to_owned(), |(speed, again)| format!("{speed:.1} ({again})"));
            let short = short(&wan, path, runtime, control, LENGTHS);
            let short = short.map_or(["–".to_owned(), "–".into(), "–".into()], |all| all.map(|ms| format!("{ms:.0}")));
            println!("| {} | {who}, {control} | {bulk} | {} |", path.name, short.join(" | "));
        }
    }
}
