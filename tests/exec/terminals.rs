//! Terminals that the runtime makes for a container's processes, and the operator's own.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use serde_json::json;

use super::container::{Container, ID, status_of, until};
use super::terminal::{Master, Socket};

/// A shell without the user's settings that does not colour what it shows.
pub const SHELL: [&str; 3] = ["bash", "--norc", "--noediting"];

/// A program of a container on a new terminal: by `exec`.
pub fn exec_on_terminal(container: &Container, program: &[&str]) -> (Pid, Master) {
    let socket = Socket::new(&container.path("console.sock"));
    let path = socket.path.clone();
    let flags = ["--tty", "-e", "TERM=xterm", "-e", "PS1=ready> ", "--console-socket", path.to_str().unwrap()];
    let pid = container.detached(&flags, program);
    let master = socket.receive();
    std::fs::remove_file(path).unwrap();
    (pid, master)
}

/// A container whose first process is a program on a new terminal.
fn run_on_terminal(program: [&str; 3]) -> (Container, Pid, Master) {
    let container = Container::new();
    let socket = Socket::new(&container.path("console.sock"));
    let (console, pid) = (socket.path.clone(), container.path("first"));
    let flags = ["--console-socket", console.to_str().unwrap(), "--pid-file", pid.to_str().unwrap()];
    let change = |config: &mut serde_json::Value| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 21, "width": 43});
        config["process"]["env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm", "PS1=ready> "]);
    };
    let output = container.run(program, change, &flags);
    assert!(output.status.success(), "{output:?}");
    let pid = container.read_pid("first");
    (container, pid, socket.receive())
}

/// What a shell on a terminal can do, with every key that makes a signal.
fn use_shell(master: &mut Master) {
    master.expect("ready> ");
    master.type_in("tty; echo $((6*7))\r");
    assert!(master.expect("42\r\n").contains("/dev/pts/0\r\n"));
    master.expect("ready> ");
    master.type_in("cat\r");
    master.expect("cat\r\n");
    master.type_in("edixx\x7f\x7fted\r");
    assert!(master.expect("\r\nedited\r\n").starts_with("edixx"), "lines are edited and echoed");
    master.type_in("\x04");
    master.expect("ready> ");
    let ready = "sh -c 'echo waiting; exec sleep 100'";
    master.type_in(&format!("{ready}\r"));
    master.expect("waiting\r\n");
    master.type_in("\x1a");
    master.expect("Stopped");
    master.expect("ready> ");
    master.type_in("kill %%; wait\r");
    master.expect("ready> ");
    // The shell names a job before it gives it the terminal, and continues it after that.
    // (Not a shell that waits in vfork(2) for a child that the key stops: that would not stop, on Linux neither.)
    let script = "import os, signal as s, time; s.signal(s.SIGINT, s.SIG_DFL); \
                  s.signal(s.SIGCONT, lambda *_: os.write(1, b'contin'b'ued\\n')); \
                  os.write(1, b'wait'b'ing\\n'); time.sleep(100)";
    master.type_in(&format!("python3 -c \"{script}\"\r"));
    master.expect("waiting\r\n");
    master.type_in("\x1a");
    master.expect("Stopped");
    master.expect("ready> ");
    master.type_in("fg\r");
    master.expect("continued\r\n");
    master.type_in("\x03");
    master.expect("ready> ");
    master.type_in("echo status $?\r");
    master.expect("status 130\r\n");
    master.type_in(&format!("{ready}\r"));
    master.expect("waiting\r\n");
    master.type_in("\x1c");
    master.expect("Quit");
    master.expect("ready> ");
    master.resize(31, 99);
    master.type_in("trap 'echo got winch' WINCH; stty size\r");
    // A new size is on its way for as long as it takes to be told of it, and a trap runs between two commands.
    let shows = |master: &mut Master, command: &str, text: &str| {
        until(text, || {
            master.type_in(&format!("{command}; echo $((6*7)) now\r"));
            master.expect("42 now\r\n").contains(text)
        });
    };
    shows(master, "stty size", "31 99\r\n");
    master.resize(32, 98);
    // The signal is the foreground's: no other program may be that when it comes.
    shows(master, ":", "got winch\r\n");
    shows(master, "stty size", "32 98\r\n");
    master.expect("ready> ");
}

#[test]
fn a_shell_by_exec() {
    let container = Container::idle();
    let (pid, mut master) = exec_on_terminal(&container, &SHELL);
    use_shell(&mut master);
    master.type_in("exit 9\r");
    assert!(master.rest().ends_with("exit\r\n"));
    assert_eq!(status_of(pid), 9);
}

#[test]
fn a_shell_as_the_first_process() {
    let (_container, pid, mut master) = run_on_terminal(SHELL);
    master.type_in("stty size\r");
    master.expect("21 43\r\n");
    use_shell(&mut master);
    master.type_in("test /dev/console -ef $(tty) && echo shown > /dev/console\r");
    master.expect("\r\nshown\r\n");
    master.type_in("exit 9\r");
    assert!(master.rest().ends_with("exit\r\n"));
    assert_eq!(status_of(pid), 9);
}

#[test]
fn nothing_that_was_written_last_is_lost() {
    let container = Container::idle();
    let (pid, mut master) = exec_on_terminal(&container, &["sh", "-c", "seq 1 20000; exit 5"]);
    assert_eq!(master.rest().lines().count(), 20000);
    assert_eq!(status_of(pid), 5);
    let (_container, pid, mut master) = run_on_terminal(["sh", "-c", "seq 1 20000; exit 6"]);
    assert!(master.rest().ends_with("\r\n20000\r\n"));
    assert_eq!(status_of(pid), 6);
}

#[test]
fn a_terminal_that_goes_hangs_its_processes_up() {
    let container = Container::idle();
    let script = "trap 'read line; echo $? > /tmp/read; echo x; echo $? > /tmp/written; exit 3' HUP; echo set; while :; do sleep 0.05; done";
    let (pid, mut master) = exec_on_terminal(&container, &["bash", "-c", script]);
    master.expect("set\r\n");
    drop(master);
    assert_eq!(status_of(pid), 3);
    assert_eq!(container.prints(&[], &["cat", "/tmp/read", "/tmp/written"]), "1\n1\n");
    let (_container, pid, mut master) =
        run_on_terminal(["bash", "-c", "trap 'exit 4' HUP; echo set; while :; do sleep 0.05; done"]);
    master.expect("set\r\n");
    drop(master);
    assert_eq!(status_of(pid), 4);
}

#[test]
fn several_terminals_are_told_apart() {
    let container = Container::idle();
    let (first, mut one) = exec_on_terminal(&container, &SHELL);
    let (second, mut two) = exec_on_terminal(&container, &SHELL);
    one.expect("ready> ");
    two.expect("ready> ");
    one.type_in("tty\r");
    two.type_in("tty\r");
    one.expect("/dev/pts/0\r\n");
    two.expect("/dev/pts/1\r\n");
    let table = container.success("ps", &[]);
    assert!(table.contains(" pts/0 ") && table.contains(" pts/1 "), "{table}");
    one.type_in("exit 1\r");
    two.type_in("exit 2\r");
    assert_eq!((status_of(first), status_of(second)), (1, 2));
}

#[test]
fn full_screen_programs() {
    let container = Container::idle();
    let (pid, mut master) = exec_on_terminal(&container, &["python3", "-q"]);
    master.expect(">>> ");
    master.type_in("print(6*7)\r");
    master.expect("42\r\n");
    master.type_in("exit(4)\r");
    assert_eq!(status_of(pid), 4);
    let (pid, mut master) = exec_on_terminal(&container, &["less", "/etc/services"]);
    master.expect("/etc/services");
    master.type_in("G");
    master.expect("(END)");
    // It draws anew, and its last line may be another then. A size that comes just before it waits for a key it looks at with the
    // key, on Linux too: it is told another.
    let draws_anew = (10..40).any(|rows| {
        master.resize(rows, 80);
        master.sees("\x1b[2J", Duration::from_secs(2))
    });
    assert!(draws_anew);
    master.type_in("q");
    assert_eq!(status_of(pid), 0);
    let (pid, mut master) = exec_on_terminal(&container, &["vim", "-u", "NONE", "/tmp/text"]);
    master.expect("/tmp/text");
    master.type_in("iwritten\x1b:wq\r");
    master.rest();
    assert_eq!(status_of(pid), 0);
    assert_eq!(container.prints(&[], &["cat", "/tmp/text"]), "written\n");
}

/// A command whose standard descriptors and controlling terminal are this one.
fn on_terminal(mut command: Command, slave: &OwnedFd) -> std::process::Child {
    let own = || Stdio::from(slave.try_clone().expect("a descriptor"));
    command.stdin(own()).stdout(own()).stderr(own());
    // SAFETY: two system calls without memory.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        })
    };
    command.spawn().expect("timeout(1) is installed")
}

#[test]
fn the_operators_own_terminal_is_used_and_left_as_it_was() {
    let container = Container::idle();
    let pair = openpty(None, None).unwrap();
    let before = tcgetattr(&pair.slave).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_runsc"));
    command.arg("--root").arg(container.path("state")).args(["exec", "-t", "-e", "PS1=ready> ", ID]).args(SHELL);
    let mut child = on_terminal(command, &pair.slave);
    let mut master = Master::new(File::from(pair.master));
    use_shell(&mut master);
    assert!(!tcgetattr(&pair.slave).unwrap().local_flags.contains(LocalFlags::ICANON), "raw while it runs");
    master.type_in("exit 8\r");
    assert_eq!(child.wait().unwrap().code(), Some(8));
    assert_eq!(tcgetattr(&pair.slave).unwrap(), before);
    assert!(pair.slave.as_raw_fd() > 2);
}
