//! What an operator does who has added one line to Docker's configuration, in this order, with one container.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use super::engine::{Container, Engine, IMAGE, engine, until};
use super::terminal::Terminal;

fn page(engine: &Engine) -> Option<String> {
    let mut curl = engine.command("curl");
    curl.args(["--silent", "--max-time", "10", "http://127.0.0.1:8080/"]);
    let ran = engine.finish(curl);
    (ran.code == 0).then_some(ran.stdout)
}

/// A client that goes on for ever; ended when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A shell in the container: job control, the interrupt key, another size.
fn in_a_shell(engine: &Engine, name: &str) {
    let mut command = engine.client();
    command.args(["exec", "-it", name, "bash", "--norc"]);
    let mut shell = Terminal::start(command, 24, 80);
    shell.expect("# ");
    shell.send("sleep 3000\r");
    shell.expect("sleep 3000");
    until("it runs", || engine.docker(["top", name]).stdout.contains("sleep 3000").then_some(()));
    shell.send("\x1a");
    shell.expect("Stopped");
    shell.expect("# ");
    shell.send("fg\r");
    shell.expect("sleep 3000");
    shell.interrupt();
    shell.resize(40, 120);
    until("the size", || {
        shell.send("stty size\r");
        shell.expect("stty size\r\n");
        let shown = shell.expect("# ");
        shown.contains("40 120").then_some(())
    });
    shell.send("echo shell >>/srv/file; exit 3\r");
    assert_eq!(shell.end().0, 3);
}

#[test]
fn from_the_first_run_to_the_last_event() {
    let engine = engine();
    let runtimes = engine.docker(["info", "--format", "{{json .Runtimes}}"]);
    assert!(runtimes.success().contains(&format!("\"{}\"", engine.runtime())), "{runtimes}");

    let name = Container::fresh_name();
    let web = Container::named(&engine, name.clone());
    let name = name.as_str();
    let mut watch = engine.client();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs_f64().to_string();
    watch.args(["events", "--since", &now, "--filter", &format!("container={name}"), "--format", "{{.Action}}"]);
    let mut watch = Ended(watch.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the client starts"));
    let mut events = BufReader::new(watch.0.stdout.take().expect("it was asked for")).lines();
    let run = ["run", "--runtime", engine.runtime(), "-d", "-p", "127.0.0.1:8080:80", "--name", name];
    engine.docker(run.iter().chain(&[IMAGE, "nginx", "-g", "daemon off;"])).success();
    let welcome = until("nginx answers", || page(&engine));
    assert!(welcome.contains("Welcome to nginx"), "{welcome}");

    let mut dmesg = engine.client();
    dmesg.args(["run", "--runtime", engine.runtime(), "--rm", "-it", IMAGE, "dmesg"]);
    let (code, printed) = Terminal::start(dmesg, 24, 80).end();
    if engine.is_sandboxed() {
        assert!(code == 0 && printed.contains("Starting runsc"), "{printed}");
    }

    in_a_shell(&engine, name);
    assert!(
        engine
            .docker(["ps", "--format", "{{.Names}} {{.Ports}}"])
            .success()
            .contains(&format!("{name} 127.0.0.1:8080"))
    );
    let mut logs = engine.client();
    logs.args(["logs", "-f", name]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut logs = logs.spawn().expect("the client starts");
    assert!(web.docker(&["top"]).success().contains("nginx: master"));
    let stats = web.docker(&["stats", "--no-stream", "--format", "{{.PIDs}} {{.NetIO}}"]);
    assert!(stats.success().split(' ').next().and_then(|pids| pids.parse::<u32>().ok()) > Some(1), "{stats}");
    // As nginx reads its configuration anew.
    web.docker(&["kill", "--signal=HUP"]).success();
    web.docker(&["pause"]).success();
    assert_eq!(web.inspect("/State/Status"), "paused");
    web.docker(&["unpause"]).success();
    until("nginx answers", || page(&engine));

    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    engine.docker(["cp", &format!("{name}:/srv/file"), file.to_str().expect("UTF-8")]).success();
    assert_eq!(std::fs::read_to_string(&file).expect("it was copied"), "shell\n");
    std::fs::write(&file, "copied in\n").expect("a file");
    engine.docker(["cp", file.to_str().expect("UTF-8"), &format!("{name}:/var/www/html/index.html")]).success();
    // What was changed behind the sentry's back is seen within a second.
    until("the new page", || (page(&engine)? == "copied in\n").then_some(()));
    let diff = web.docker(&["diff"]);
    assert!(diff.success().contains("A /srv/file") && diff.stdout.contains("C /var/www/html"), "{diff}");

    web.docker(&["restart"]).success();
    assert_eq!(until("nginx answers after the restart", || page(&engine)), "copied in\n");
    let mut wait = engine.client();
    wait.args(["wait", name]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut wait = wait.spawn().expect("the client starts");
    web.docker(&["stop"]).success();
    let mut line = String::new();
    BufReader::new(wait.stdout.take().expect("it was asked for")).read_line(&mut line).expect("it prints");
    assert_eq!((line.as_str(), wait.wait().expect("a child").success()), ("0\n", true));
    // What follows the log sees its end.
    assert!(logs.wait().expect("a child").success());
    assert_eq!(web.inspect("/State/ExitCode"), 0);
    web.docker(&["rm"]).success();
    let gone = web.docker(&["inspect"]);
    assert!(gone.code == 1 && gone.stderr.contains("No such"), "{gone}");

    let mut expected =
        ["create", "start", "kill", "pause", "unpause", "restart", "stop", "destroy"].into_iter().peekable();
    while expected.peek().is_some() {
        let line = events.next().expect("events until it is removed").expect("text");
        expected.next_if(|&action| line == action);
    }
}
