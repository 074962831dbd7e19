//! What programs do with a terminal: jobs, sessions, terminals of their own, the whole screen.

use std::process::Stdio;

use super::container::{Container, ID, status_of};
use super::terminal::Socket;
use super::terminals::{SHELL, exec_on_terminal};

/// How many terminals are asked for at once.
const MANY: usize = 10;

#[test]
fn jobs_stop_for_the_terminal_and_go_on() {
    let container = Container::idle();
    let (pid, mut master) = exec_on_terminal(&container, &SHELL);
    master.expect("ready> ");
    // Reading in the background: SIGTTIN.
    master.type_in("cat & sleep 0.3\r");
    master.expect("Stopped");
    master.expect("ready> ");
    master.type_in("fg\r");
    master.expect("fg\r\ncat\r\n");
    master.type_in("line\r");
    master.expect("line\r\nline\r\n");
    master.type_in("\x04");
    master.expect("ready> ");
    // Writing there, when the terminal is told to object: SIGTTOU.
    master.type_in("stty tostop; echo hid''den & sleep 0.3\r");
    assert!(!master.expect("Stopped").contains("hidden"));
    master.expect("ready> ");
    master.type_in("stty -tostop; fg\r");
    master.expect("\r\nhidden\r\n");
    master.expect("ready> ");
    master.type_in("sh -c 'echo wait''ing; exec sleep 100'\r");
    master.expect("waiting\r\n");
    master.type_in("\x1a");
    master.expect("Stopped");
    master.expect("ready> ");
    master.type_in("bg; jobs\r");
    master.expect("Running");
    master.type_in("kill %%; wait; echo do''ne\r");
    master.expect("done\r\n");
    master.type_in("exit 3\r");
    assert_eq!(status_of(pid), 3);
}

#[test]
fn the_terminal_does_as_it_is_told() {
    let container = Container::idle();
    let (pid, mut master) = exec_on_terminal(&container, &SHELL);
    master.expect("ready> ");
    master.type_in("read -t 0.2 x; echo status $?\r");
    master.expect("status 142\r\n");
    master.expect("ready> ");
    master.type_in("read -s -n 1 key; echo key=$key\r");
    master.expect("key=$key\r\n");
    master.type_in("k");
    master.expect("key=k\r\n");
    master.expect("ready> ");
    master.type_in("stty -echo\r");
    master.expect("ready> ");
    master.type_in("echo se''cret\r");
    assert_eq!(master.expect("ready> "), "secret\r\nready> ");
    master.type_in("stty echo\r");
    master.expect("ready> ");
    // A session of its own has no terminal until it opens one.
    master.type_in("setsid -w sh -c 'exec 3</dev/tty; echo still he''re'\r");
    assert!(!master.expect("ready> ").contains("still here"));
    master.type_in("exit 5\r");
    assert_eq!(status_of(pid), 5);
}

#[test]
fn terminals_within_terminals() {
    let container = Container::idle();
    let script = "import os, pty; status = pty.spawn(['sh', '-c', 'tty; stty -a | head -1; exit 3']); \
                  print('ended', os.waitstatus_to_exitcode(status))";
    let (pid, mut master) = exec_on_terminal(&container, &["python3", "-c", script]);
    master.expect("/dev/pts/1\r\n");
    master.expect("ended 3\r\n");
    assert_eq!(status_of(pid), 0);
    let (pid, mut master) = exec_on_terminal(&container, &["script", "-qec", "tty; exit 4", "/dev/null"]);
    master.expect("/dev/pts/1\r\n");
    assert_eq!(status_of(pid), 4);
}

#[test]
fn programs_that_draw_on_the_whole_screen() {
    let container = Container::idle();
    let (pid, mut master) = exec_on_terminal(&container, &["top"]);
    master.resize(24, 80);
    master.expect("load average");
    master.type_in("q");
    master.rest();
    assert_eq!(status_of(pid), 0);
    let (pid, mut master) = exec_on_terminal(&container, &["htop"]);
    master.resize(24, 80);
    master.expect("Quit");
    master.type_in("q");
    master.rest();
    assert_eq!(status_of(pid), 0);
}

#[test]
fn a_multiplexer_has_its_own_sessions() {
    let container = Container::idle();
    // By default it takes keys that come within a millisecond for pasted text, in which none is a command.
    let option = ["set", "assume-paste-time", "0"];
    let tmux = [&["env", "LC_ALL=C.UTF-8", "tmux", "-f", "/dev/null", "new", "sh", ";"], &option[..]].concat();
    let (pid, mut master) = exec_on_terminal(&container, &tmux);
    master.resize(24, 80);
    // What is typed before it has set the terminal up is thrown away.
    master.expect("0:sh*");
    master.type_in("echo first $((6*7))\r");
    master.expect("first 42");
    master.type_in("\x02\"");
    master.type_in("echo second $((6*7)) $(tty)\r");
    master.expect("second 42 /dev/pts/2");
    master.type_in("\x02d");
    master.expect("[detached");
    assert_eq!(status_of(pid), 0);
    assert_eq!(container.prints(&[], &["tmux", "list-panes", "-F", "#{pane_tty}"]), "/dev/pts/1\n/dev/pts/2\n");
    container.prints(&[], &["tmux", "kill-server"]);
}

#[test]
fn many_at_once() {
    let container = Container::idle();
    let start = |n: usize| {
        let socket = Socket::new(&container.path(&format!("console{n}")));
        let mut command = container.command("exec");
        command.args(["--detach", "--tty", "--console-socket"]).arg(&socket.path);
        command.arg("--pid-file").arg(container.path(&format!("pid{n}")));
        let script = format!("tty; read line; echo got $line; exit {n}");
        command.args([ID, "sh", "-c", &script]).stdout(Stdio::null());
        (socket, command.spawn().expect("timeout(1) is installed"))
    };
    let started: Vec<_> = (0..MANY).map(start).collect();
    let running = started.into_iter().enumerate().map(|(n, (socket, mut command))| {
        let master = socket.receive();
        assert!(command.wait().expect("our child").success());
        (n, container.read_pid(&format!("pid{n}")), master)
    });
    let mut terminals = std::collections::BTreeSet::new();
    for (n, pid, mut master) in running.collect::<Vec<_>>() {
        terminals.insert(master.expect("\r\n"));
        master.type_in(&format!("line {n}\r"));
        master.expect(&format!("got line {n}\r\n"));
        master.rest();
        assert_eq!(status_of(pid), n as i32);
    }
    assert_eq!(terminals.len(), MANY, "{terminals:?}");
}
