//! What is broken or hostile gets one clear line or is dropped: no panic, and nothing is left behind.
//!
//! The tests of this file run one at a time, since each looks at what this process has left.

mod common;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::http::Connection;
use common::leftovers::Watch;
use common::nginx::{NGINX, pattern, server};
use common::{Network, Output, Runtime, Sandbox};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use serde_json::{Value, json};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test on a thread of its own, whose mount namespace is watched, and checks that nothing is left.
fn watched(test: impl FnOnce(&Watch) + Send) {
    let _one = ONE_AT_A_TIME.lock();
    watched_alone(test);
}

/// As [`watched`], for a test that holds the lock because it makes what the others would find.
fn watched_alone(test: impl FnOnce(&Watch) + Send) {
    let run = || {
        let watch = Watch::new();
        test(&watch);
        watch.nothing_is_left();
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Runs a bundle that must be refused in one line; returns the line.
#[track_caller]
fn refused(watch: &Watch, bundle: &Path) -> String {
    let state = tempfile::tempdir().expect("a directory");
    let mut command = Runtime::under_test().command(state.path());
    command.args(["--network=none", "run", "--bundle"]).arg(bundle).arg("c1");
    let output = watch.command(&mut command).output().expect("runsc starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(128), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    no_state(state.path());
    stderr
}

#[track_caller]
fn no_state(state: &Path) {
    let left: Vec<_> = fs::read_dir(state).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "state is left: {left:?}");
}

#[track_caller]
fn no_panic(output: &Output) {
    assert!(!output.report().contains("panicked"), "{}", output.report());
}

/// A bundle with a specification that is right but for what the test changes.
fn bundle(change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = Sandbox::new(["/bin/true"]).config();
    config["process"]["cwd"] = json!("/");
    change(&mut config);
    fs::write(directory.path().join("config.json"), config.to_string()).expect("a file");
    directory
}

#[test]
fn bundles_that_are_not_there_or_broken() {
    watched(|watch| {
        assert!(refused(watch, Path::new("/no/such/bundle")).contains("/no/such/bundle"));
        let text = bundle(|_| {});
        let whole = fs::read(text.path().join("config.json")).expect("a file");
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(text.path().join("config.json"), &whole[..length]).expect("a file");
            refused(watch, text.path());
        }
        fs::write(text.path().join("config.json"), pattern(5, 4096)).expect("a file");
        refused(watch, text.path());
        fs::write(text.path().join("config.json"), "[".repeat(100_000)).expect("a file");
        refused(watch, text.path());
    });
}

#[test]
fn specifications_that_cannot_be_met() {
    watched(|watch| {
        let set = |pointer: &'static str, value: Value| {
            bundle(move |config| *config.pointer_mut(pointer).expect("it is there") = value)
        };
        let line = refused(watch, set("/root/path", json!("/no/such/root")).path());
        assert!(line.contains("/no/such/root"), "{line}");
        let file = tempfile::NamedTempFile::new().expect("a file");
        refused(watch, set("/root/path", json!(file.path())).path());
        let line = refused(watch, set("/process/args", json!(["/no/such/program"])).path());
        assert!(line.contains("/no/such/program"), "{line}");
        refused(watch, set("/process/args", json!(["/etc/passwd"])).path());
        refused(watch, set("/process/args", json!(["/etc"])).path());
        refused(watch, set("/process/args", json!([])).path());
        refused(watch, set("/process/cwd", json!("/etc/passwd/under")).path());
        let bind = json!([{"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]}]);
        let line = refused(watch, set("/mounts", bind).path());
        assert!(line.contains("/no/such/source"), "{line}");
    });
}

/// An ELF program that is run as it is, as a check of the test itself, and then damaged.
fn program() -> Vec<u8> {
    fs::read("/bin/busybox").expect("busybox-static is installed")
}

/// Runs bytes as the container's first program.
fn run_bytes(bytes: &[u8]) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("busybox");
    fs::write(&path, bytes).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the owner may");
    let args = [path.to_str().expect("UTF-8"), "true"];
    // A damaged program may well loop for ever.
    Sandbox::new(args).start().wait_or_kill(Duration::from_secs(10))
}

#[test]
fn truncated_programs() {
    watched(|_| {
        let whole = program();
        run_bytes(&whole).success();
        for length in [0, 1, 4, 16, 52, 63, 64, 65, 120, 500, 4096, whole.len() / 2] {
            let output = run_bytes(&whole[..length]);
            assert_ne!(output.code(), 0, "of {length} bytes");
            no_panic(&output);
        }
    });
}

#[test]
fn mutated_programs() {
    watched(|_| {
        let whole = program();
        // The header and the table of segments, where every field is something that a loader believes.
        let believed = 64 + 56 * usize::from(whole[56]);
        for seed in 0..30 {
            let mut bytes = whole.clone();
            for pair in pattern(seed, 24).chunks_exact(3) {
                // The magic number stays, or nothing would be tried.
                let place = 4 + usize::from(u16::from_le_bytes([pair[0], pair[1]])) % (believed - 4);
                bytes[place] = pair[2];
            }
            no_panic(&run_bytes(&bytes));
        }
    });
}

#[test]
fn a_shell_survives_the_programs_that_it_cannot_run() {
    watched(|_| {
        let whole = program();
        let sandbox = Sandbox::new([
            "/bin/bash",
            "-c",
            "for f in ./mutated-*; do timeout -s KILL 1 $f true >/dev/null 2>&1 </dev/null; done; echo survived",
        ]);
        let work = sandbox.work();
        for seed in 100..130 {
            let mut bytes = whole.clone();
            for pair in pattern(seed, 12).chunks_exact(3) {
                let place = 4 + usize::from(u16::from_le_bytes([pair[0], pair[1]])) % 400;
                bytes[place] = pair[2];
            }
            let path = work.join(format!("mutated-{seed}"));
            fs::write(&path, bytes).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the owner may");
        }
        let output = sandbox.deadline(Duration::from_secs(200)).run();
        assert!(output.success().ends_with("survived\n"));
        no_panic(&output);
    });
}

#[test]
fn a_killed_command_takes_its_sandbox_with_it() {
    watched(|_| {
        let mut running = Sandbox::new(["/bin/sh", "-c", "echo ready; sleep 1000"]).start();
        let printed = running.printed();
        running.until("it runs", || fs::read_to_string(&printed).ok()?.contains("ready").then_some(()));
        running.signal(Signal::SIGKILL);
        assert_eq!(running.wait(Duration::from_secs(10)).code(), 128 + 9);
    });
}

#[test]
fn garbage_on_the_cable() {
    let _one = ONE_AT_A_TIME.lock();
    // Its name must be mounted where others see it, and so outside of what is watched.
    let network = Network::new(Runtime::under_test().cable).expect("root may make a network");
    watched_alone(|_| {
        let mut running = NGINX.start(&network);
        network.outside(|| {
            let cable = Raw::new("tap0").expect("root may send frames");
            let neighbour = neighbour();
            for round in 0..200u64 {
                for frame in 0..50 {
                    cable.send(&garbage(round * 50 + frame, neighbour));
                }
                if round % 20 == 0 {
                    let mut client = Connection::new(server()).expect("nginx accepts");
                    client.get_expecting("/1m", NGINX.content("1m")).expect("every byte is right");
                }
            }
        });
        // It is still there, and has not complained.
        network.outside(|| running.until("nginx answers", || Connection::new(server()).ok()));
        assert!(!running.report().contains("panicked"), "{}", running.report());
    });
}

/// A frame to the sandbox: random, or an IPv4, IPv6 or ARP packet whose fields are damaged.
fn garbage(seed: u64, to: [u8; 6]) -> Vec<u8> {
    let random = pattern(seed, 1514);
    let length = 14 + usize::from(u16::from_le_bytes([random[0], random[1]])) % 1500;
    let mut frame = random[..length].to_vec();
    frame[..6].copy_from_slice(if seed % 5 == 4 { &[0xff; 6] } else { &to });
    let sandbox = [192, 168, 10, 2];
    let put = |frame: &mut Vec<u8>, offset: usize, bytes: &[u8]| {
        if let Some(place) = frame.get_mut(offset..offset + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    match seed % 4 {
        0 => {}
        1 => {
            // IPv4 to the sandbox, with a header length, a total length and options that may lie.
            put(&mut frame, 12, &[8, 0]);
            put(&mut frame, 14, &[if seed % 8 == 1 { 0x45 } else { 0x40 | (random[40] & 15) }]);
            put(&mut frame, 23, &[[1, 2, 6, 17, 41, 0][seed as usize / 4 % 6]]);
            put(&mut frame, 30, &sandbox);
            checksum(&mut frame);
        }
        2 => put(&mut frame, 12, &[0x86, 0xdd, 0x60]),
        _ => {
            put(&mut frame, 12, &[8, 6, 0, 1, 8, 0, 6, 4]);
            put(&mut frame, 38, &sandbox);
        }
    }
    frame
}

/// Makes the checksum of an IPv4 header right, so that what follows it is looked at.
fn checksum(frame: &mut [u8]) {
    let length = usize::from(frame.get(14).map_or(0, |byte| byte & 15)) * 4;
    let Some(header) = frame.get_mut(14..14 + length).filter(|header| header.len() >= 20) else { return };
    header[10..12].fill(0);
    let sum: u32 = header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    header[10..12].copy_from_slice(&(!folded as u16).to_be_bytes());
}

/// The sandbox's Ethernet address, from the neighbour table.
fn neighbour() -> [u8; 6] {
    let output = Command::new("ip").args(["neighbour", "show", common::SANDBOX]).output().expect("ip starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let text = printed.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next()).expect("it has answered");
    let mut address = [0; 6];
    for (byte, digits) in address.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16).expect("an Ethernet address");
    }
    address
}

/// A packet socket, `packet(7)`, that sends whole frames.
struct Raw {
    socket: OwnedFd,
    to: libc::sockaddr_ll,
}

impl Raw {
    fn new(interface: &str) -> io::Result<Raw> {
        let index = nix::net::if_::if_nametoindex(interface)?;
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has; all-zero is a valid address.
        let (socket, mut to) = unsafe { (OwnedFd::from_raw_fd(fd), std::mem::zeroed::<libc::sockaddr_ll>()) };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = index as i32;
        Ok(Raw { socket, to })
    }

    /// Sends a frame. One that the device has no room for is lost, as frames are.
    fn send(&self, frame: &[u8]) {
        // SAFETY: the frame and the address outlive the call.
        unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const self.to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            );
        }
    }
}
