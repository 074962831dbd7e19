//! A sandbox with nothing to do.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::common::leftovers::descendants;
use crate::common::sandbox::Sandbox;

/// Threads that have called often enough for any platform to have found its pace, and then wait, each in another way; a few
/// have ended.
const PROGRAM: &str = r#"
import os, select, signal, socket, threading, time

def busy():
    for _ in range(300):
        os.stat("/")

def wait_in(what):
    def thread():
        busy()
        barrier.wait()
        what()
    threading.Thread(target=thread, daemon=True).start()

waits = [
    lambda: time.sleep(1000),
    lambda: threading.Event().wait(),
    lambda: select.poll().poll(),
    lambda: select.epoll().poll(),
    lambda: os.read(os.pipe()[0], 1),
    lambda: socket.socketpair()[0].recv(1),
    lambda: signal.sigwait([signal.SIGUSR1]),
]
listener = socket.create_server(("127.0.0.1", 0))
waits.append(listener.accept)
child = os.fork()
if child == 0:
    busy()
    signal.pause()
waits.append(lambda: os.waitpid(child, 0))
for _ in range(5):
    thread = threading.Thread(target=busy)
    thread.start()
    thread.join()
barrier = threading.Barrier(len(waits) + 1)
for what in waits:
    wait_in(what)
barrier.wait()
print("up", flush=True)
signal.pause()
"#;

/// The nanoseconds that each thread of the sandbox has run for.
fn used(command: Pid) -> BTreeMap<String, u64> {
    let mut used = BTreeMap::new();
    let mut processes = descendants(command.as_raw() as u32);
    processes.insert(command.as_raw() as u32);
    for pid in processes {
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let time = read("schedstat").split(' ').next().and_then(|word| word.parse().ok());
            if let Some(time) = time {
                used.insert(format!("{} {}", task.path().display(), read("comm").trim()), time);
            }
        }
    }
    used
}

#[test]
fn an_idle_sandbox_uses_no_cpu() {
    let mut running = Sandbox::new(["python3", "-c", PROGRAM]).quiet().start();
    let (printed, command) = (running.printed(), running.pid());
    running.until("up", || fs::read_to_string(&printed).ok()?.contains("up").then_some(()));
    // What was begun comes to its end.
    let mut before = used(command);
    running.until("the sandbox comes to rest", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = used(command);
        let rests = now == before;
        before = now;
        rests.then_some(())
    });
    assert!(before.len() > 20, "sentry threads and stub threads are there: {before:?}");
    std::thread::sleep(Duration::from_secs(10));
    let after = used(command);
    let differing: Vec<_> = after.iter().filter(|(thread, time)| before.get(*thread) != Some(time)).collect();
    assert!(differing.is_empty() && after.len() == before.len(), "{differing:?}\n{before:?}");
    running.signal(Signal::SIGKILL);
    running.wait_or_kill(Duration::from_secs(10));
}
