//! What Docker's users wait for, and what containers that do nothing cost.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::common::Runtime;
use super::engine::{Container, Engine};
use super::start::{median, share};
use super::table::Figures;

/// How many containers do nothing at a time.
const IDLE: usize = 50;

/// `docker run`, `docker exec`, memory. Without a runtime: with `runc`.
pub fn docker(runtime: Option<&Runtime>) -> Figures {
    let engine = match runtime {
        None => Engine::with("runc", &Runtime::ours()),
        Some(runtime) => {
            // Changes of files go where the runtime puts them by default.
            let flags = runtime.flags.iter().filter(|flag| !flag.starts_with("--overlay")).cloned();
            Engine::with("runsc", &Runtime { flags: flags.collect(), ..runtime.clone() })
        }
    };
    let run = median(|| milliseconds(|| drop(engine.run(&[], &["true"]).success().to_owned())));
    let container = engine.start_container(&[], &["sleep", "100000"]);
    let exec = median(|| milliseconds(|| drop(container.exec(&["true"]).success().to_owned())));
    drop(container);
    let figures = vec![
        ("docker run --rm IMAGE true, ms".to_owned(), run),
        ("docker exec CONTAINER true, ms".to_owned(), exec),
        (format!("memory of one of {IDLE} idle containers, MiB"), idle(&engine)),
    ];
    engine.end();
    figures
}

fn milliseconds(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64() * 1e3
}

/// The proportional share of memory (`Pss`) of all processes of a container, without containerd's shim, which any runtime
/// has. Of many containers, since they share the program.
fn idle(engine: &Engine) -> f64 {
    let before: BTreeSet<u32> = engine.processes().into_iter().map(|(pid, _)| pid).collect();
    let containers: Vec<Container<'_>> = (0..IDLE).map(|_| engine.start_container(&[], &["sleep", "100000"])).collect();
    let all = || -> f64 {
        let processes = engine.processes().into_iter();
        let own = processes.filter(|(pid, line)| !before.contains(pid) && !line.contains("containerd-shim"));
        own.map(|(pid, _)| share(pid)).sum()
    };
    // It has settled when two looks see nearly the same.
    let mut last = all();
    for _ in 0..60 {
        thread::sleep(Duration::from_millis(500));
        let now = all();
        if (now - last).abs() < last / 1000.0 {
            break;
        }
        last = now;
    }
    drop(containers);
    last / 1024.0 / IDLE as f64
}
