//! Containers on terminals.

use std::time::Duration;

use super::engine::{Container, Engine, IMAGE, engine};
use super::terminal::Terminal;

fn run(engine: &Engine, flags: &[&str], words: &[&str]) -> Terminal {
    let mut command = engine.client();
    command.args(["run", "--runtime", engine.runtime(), "-it"]).args(flags).arg(IMAGE).args(words);
    Terminal::start(command, 33, 77)
}

#[test]
fn dmesg_shows_the_kernel_that_runs_it() {
    let engine = engine();
    let (code, printed) = run(&engine, &["--rm"], &["dmesg"]).end();
    if engine.is_sandboxed() {
        assert_eq!(code, 0, "{printed}");
        assert!(printed.contains("Starting runsc"), "{printed}");
    } else {
        // The host's log is not for containers.
        assert_eq!(code, 1, "{printed}");
        assert!(printed.contains("Operation not permitted"), "{printed}");
    }
}

/// Asks a shell until its terminal has a size, which the client sets some time after the start.
fn has_size(terminal: &mut Terminal, size: &str) {
    super::engine::until("the size", || {
        terminal.send("stty size\r");
        terminal.expect("stty size\r\n");
        let shown = terminal.expect("\r\n");
        terminal.expect("# ");
        shown.contains(size).then_some(())
    });
}

#[test]
fn a_shell_with_job_control() {
    let engine = engine();
    let container = engine.start_container(&[], &["sleep", "1000"]);
    let mut command = engine.client();
    command.args(["exec", "-it", &container.name, "bash", "--norc"]);
    let mut terminal = Terminal::start(command, 24, 80);
    terminal.expect("# ");
    has_size(&mut terminal, "24 80");
    terminal.send("sleep 1001\r");
    terminal.expect("sleep 1001");
    // The interrupt must find the program running.
    super::engine::until("it runs", || container.exec(&["pgrep", "-f", "sleep 1001"]).stdout.lines().next().map(drop));
    terminal.send("\x1a");
    terminal.expect("Stopped");
    terminal.expect("# ");
    terminal.send("jobs\r");
    terminal.expect("[1]+  Stopped                 sleep 1001");
    terminal.expect("# ");
    terminal.send("bg; jobs\r");
    terminal.expect("Running");
    terminal.expect("# ");
    terminal.send("fg\r");
    terminal.expect("sleep 1001");
    terminal.interrupt();
    terminal.send("echo code $?\r");
    terminal.expect("code 130");
    terminal.expect("# ");
    terminal.send("tty; test -t 0 -a -t 1 -a -t 2 && echo three\r");
    terminal.expect("/dev/pts/");
    terminal.expect("three");
    terminal.expect("# ");
    terminal.resize(50, 132);
    has_size(&mut terminal, "50 132");
    terminal.send("exit 9\r");
    assert_eq!(terminal.end().0, 9);
}

#[test]
fn the_first_process_has_a_terminal_and_is_told_of_its_size() {
    let engine = engine();
    let script = "trap 'echo new size $(stty size)' WINCH; trap 'echo interrupted' INT; trap 'echo quit; exit 4' QUIT
                  tty; cat /proc/self/mounts | grep -c ' /dev/console '; echo ready; while :; do sleep 0.05; done";
    let mut terminal = run(&engine, &["--rm"], &["bash", "-c", script]);
    terminal.expect("/dev/pts/0");
    terminal.expect("1\r\n");
    terminal.expect("ready");
    // The client may not listen for changes yet: another change is another chance.
    let mut rows = 40;
    super::engine::until("the size is the new one", || {
        rows += 1;
        terminal.resize(rows, 100);
        terminal.sees(&format!("new size {rows} 100"), Duration::from_secs(2)).then_some(())
    });
    terminal.send("\x03");
    terminal.expect("interrupted");
    terminal.send("\x1c");
    terminal.expect("quit");
    assert_eq!(terminal.end().0, 4);
}

#[test]
fn a_client_detaches_and_attaches_again() {
    let engine = engine();
    let name = Container::fresh_name();
    let container = Container::named(&engine, name.clone());
    let mut terminal = run(&engine, &["--name", &name], &["bash", "--norc"]);
    terminal.expect("# ");
    terminal.send("word=kept\r");
    terminal.expect("# ");
    terminal.send("\x10\x11");
    assert_eq!(terminal.end().0, 0);
    assert_eq!(container.inspect("/State/Running"), true);
    let mut command = engine.client();
    command.args(["attach", &name]);
    let mut terminal = Terminal::start(command, 33, 77);
    // The prompt was printed to the other client.
    terminal.send("\recho [$word]\r");
    terminal.expect("[kept]");
    terminal.send("exit 3\r");
    assert_eq!(terminal.end().0, 3);
}

#[test]
fn all_output_arrives_before_the_end() {
    let engine = engine();
    let (code, printed) = run(&engine, &["--rm"], &["bash", "-c", "seq 20000; echo end"]).end();
    assert_eq!(code, 0);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!((lines.len(), lines.last()), (20001, Some(&"end")), "{}", lines.len());
}
