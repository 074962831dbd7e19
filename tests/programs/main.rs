//! Real programs in a sandbox. What they print there is what they print on Linux.

#[path = "../common/mod.rs"]
mod common;
mod network;
mod sites;
mod writeback;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use common::Sandbox;
use nix::pty::{Winsize, openpty};

/// Runs a script of `scripts/` on the host and in a sandbox, each time in an empty directory of the same name.
#[track_caller]
fn same_as_on_linux(script: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/scripts").join(script);
    let interpreter = if script.ends_with(".py") { "/usr/bin/python3" } else { "/bin/bash" };
    let sandbox = Sandbox::new([interpreter, path.to_str().expect("UTF-8")]);
    let work = sandbox.work();
    let inside = sandbox.run();
    // Nothing of what it did is to be seen here.
    let left: Vec<_> = fs::read_dir(work).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "the host's files were changed: {left:?}");

    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let native = Command::new(interpreter)
        .arg(&path)
        .current_dir(elsewhere.path())
        .env_clear()
        .envs([("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C.UTF-8")])
        .env("HOME", "/root")
        .output()
        .expect("the interpreter is installed");
    let expected = String::from_utf8_lossy(&native.stdout);
    assert_eq!(native.status.code(), Some(0), "on Linux: {}", String::from_utf8_lossy(&native.stderr));
    assert_eq!(inside.stdout, expected, "{}", inside.report());
    assert_eq!(inside.code(), 0, "{}", inside.report());
}

/// A test for each script.
macro_rules! scripts {
    ($($name:ident: $file:literal,)*) => {
        $(#[test]
        fn $name() {
            same_as_on_linux($file);
        })*

        #[test]
        fn every_script_is_run() {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/scripts");
            for entry in fs::read_dir(directory).expect("it is in the repository").flatten() {
                let name = entry.file_name();
                assert!([$($file),*].iter().any(|&file| name == file), "{name:?} is not in the list");
            }
        }
    };
}

scripts! {
    busybox: "busybox.sh",
    files: "files.sh",
    git: "git.sh",
    globbing: "globbing.sh",
    go: "go.sh",
    here_documents: "here_documents.sh",
    job_control: "job_control.sh",
    pipelines: "pipelines.sh",
    postgres: "postgres.sh",
    proc: "proc.sh",
    processes: "processes.sh",
    python_asyncio: "python_asyncio.py",
    python_http: "python_http.py",
    python_memory: "python_memory.py",
    python_multiprocessing: "python_multiprocessing.py",
    python_sockets: "python_sockets.py",
    python_sqlite: "python_sqlite.py",
    python_subprocess: "python_subprocess.py",
    python_threads: "python_threads.py",
    redis: "redis.sh",
    terminal: "terminal.py",
    traps: "traps.sh",
}

#[test]
fn the_status_is_the_programs() {
    assert_eq!(Sandbox::new(["/bin/sh", "-c", "exit 42"]).run().code(), 42);
    assert_eq!(Sandbox::new(["/bin/sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).run().code(), 128 + 9);
    // No signal from inside a PID namespace ends its first process, but its own mistakes do.
    assert_eq!(Sandbox::new(["/bin/sh", "-c", "kill -9 $$; exit 42"]).run().code(), 42);
    let fault = "import ctypes; ctypes.string_at(0)";
    assert_eq!(Sandbox::new(["/usr/bin/python3", "-c", fault]).run().code(), 128 + 11);
}

#[test]
fn the_kernel_is_not_the_hosts() {
    let output = Sandbox::new(["/bin/sh", "-c", "hostname; dmesg; cat /proc/version"]).run();
    let host = fs::read_to_string("/proc/version").expect("/proc is mounted");
    let printed = output.success();
    assert!(printed.starts_with("sandbox\n"), "{printed}");
    assert!(!printed.contains(host.trim()), "{printed}");
}

#[test]
fn a_terminal_has_job_control() {
    let window = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = openpty(&window, None).expect("a pseudoterminal");
    let stdio = || Stdio::from(pair.slave.try_clone().expect("a descriptor"));
    let sandbox = Sandbox::new(["unused"]);
    let mut command = sandbox.command();
    command.args(["--network=none", "do", "timeout", "--foreground", "20", "bash", "-c"]);
    command.arg("tty; stty size; set -m; sleep 0.1 & fg; exit 3").stdin(stdio()).stdout(stdio()).stderr(stdio());
    let mut child = command.spawn().expect("runsc starts");
    drop(command);
    drop(pair.slave);
    let mut printed = Vec::new();
    // It ends with EIO, when nobody has the other end any more.
    let _ = fs::File::from(pair.master).read_to_end(&mut printed);
    assert_eq!(String::from_utf8_lossy(&printed), "/dev/pts/0\r\n30 100\r\nsleep 0.1\r\n");
    assert_eq!(child.wait().expect("a child").code(), Some(3));
}

#[test]
fn do_sees_the_hosts_files_and_changes_none() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("file"), "before").expect("a file");
    let sandbox = Sandbox::new(["unused"]);
    let mut command = sandbox.command();
    command.args(["--network=none", "do", "--cwd"]).arg(directory.path());
    command.args(["sh", "-c", "cat file; echo after > file; cat file; rm -r /usr/share; ls /usr/share 2>&1; exit 3"]);
    let output = command.output().expect("runsc starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.starts_with("beforeafter\n"), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("No such file"), "{printed}");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(fs::read_to_string(directory.path().join("file")).expect("a file"), "before");
    assert!(Path::new("/usr/share").is_dir());
}
