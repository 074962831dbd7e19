//! What is measured of a whole sandbox with loopback alone.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::common::leftovers::descendants;
use super::common::{Runtime, Sandbox};
use super::micro;
use super::table::Figures;

/// The command natively or in a sandbox.
pub fn command(runtime: Option<&Runtime>, state: &Path, words: &[&str]) -> Command {
    match runtime {
        None => {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        }
        Some(runtime) => {
            let mut command = runtime.do_command(state);
            command.args(words);
            command
        }
    }
}

/// The operations of [`micro`].
pub fn micro(runtime: Option<&Runtime>) -> Figures {
    let state = tempfile::tempdir().expect("a directory");
    let this = std::env::current_exe().expect("this program has a path");
    let mut command = command(runtime, state.path(), &[this.to_str().expect("UTF-8"), micro::FLAG]);
    let output = command.stderr(Stdio::inherit()).output().expect("it starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let figure = |line: &str| line.split_once('\t').and_then(|(name, value)| Some((name.into(), value.parse().ok()?)));
    printed.lines().filter_map(figure).collect()
}

/// Programs that talk to each other within one sandbox: iperf3, redis.
pub fn programs(runtime: Option<&Runtime>) -> Figures {
    // Whether it was a success, iperf3's status does not say.
    const IPERF3: &str = "iperf3 -s >/dev/null 2>&1 & n=0; \
        until iperf3 -c 127.0.0.1 -t3 -J 2>/dev/null | grep -A8 '\"sum_received\"'; do \
        n=$((n + 1)); [ $n -gt 50 ] && break; sleep 0.1; done; kill $!";
    const REDIS: &str = "redis-server --save '' --port 7777 >/dev/null & \
        until redis-cli -p 7777 ping >/dev/null 2>&1; do sleep 0.1; done; \
        redis-benchmark -p 7777 --csv -n 60000 -t set,get; echo; \
        redis-benchmark -p 7777 --csv -n 200000 -P 16 -t set,get; redis-cli -p 7777 shutdown nosave";
    let state = tempfile::tempdir().expect("a directory");
    let run = |script: &str| {
        let output = command(runtime, state.path(), &["timeout", "60", "sh", "-c", script]).output();
        String::from_utf8_lossy(&output.expect("it starts").stdout).into_owned()
    };
    let printed = run(IPERF3);
    let speed = printed.split_once("\"bits_per_second\":").and_then(|(_, rest)| rest.split(',').next());
    let speed = speed.and_then(|word| word.trim().parse::<f64>().ok()).map(|speed| speed / 1e9);
    let mut figures: Figures =
        speed.map(|speed| ("iperf3 over loopback, Gbit/s".to_owned(), speed)).into_iter().collect();
    let printed = run(REDIS);
    for (lines, how) in printed.split("\n\n").zip(["", ", 16 at a time"]) {
        for line in lines.lines() {
            // "SET","107719.93",…
            let mut words = line.split(',').map(|word| word.trim_matches('"'));
            if let (Some(name @ ("SET" | "GET")), Some(Ok(count))) = (words.next(), words.next().map(str::parse)) {
                figures.push((format!("redis {name}{how}, requests a second"), count));
            }
        }
    }
    figures
}

/// Start-up, memory, a walk over 10,000 names.
pub fn start(runtime: Option<&Runtime>) -> Figures {
    let state = tempfile::tempdir().expect("a directory");
    let mut figures = vec![(
        "do true, ms".to_owned(),
        median(|| {
            let begun = Instant::now();
            let status = command(runtime, state.path(), &["/bin/true"]).status().expect("it starts");
            assert!(status.success(), "do true: {status}");
            begun.elapsed().as_secs_f64() * 1e3
        }),
    )];
    figures.push((
        "to the first output, ms".into(),
        median(|| {
            let begun = Instant::now();
            let mut command = command(runtime, state.path(), &["/bin/echo", "x"]);
            let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
            let mut byte = [0];
            std::io::Read::read_exact(child.stdout.as_mut().expect("it was asked for"), &mut byte).expect("a byte");
            let time = begun.elapsed().as_secs_f64() * 1e3;
            child.wait().expect("it ends");
            time
        }),
    ));
    if let Some(runtime) = runtime {
        figures.push(("memory with sleep, MB".into(), memory(runtime)));
    }
    figures.push(("find over 10,000 names, warm, ms".into(), find(runtime, state.path())));
    figures
}

/// Of eleven.
pub fn median(measure: impl FnMut() -> f64) -> f64 {
    let mut values: Vec<f64> = std::iter::repeat_with(measure).take(11).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The proportional share of memory (`Pss`) of all processes of a sandbox that holds `sleep`, without the command that
/// started it.
fn memory(runtime: &Runtime) -> f64 {
    let mut running = Sandbox::new(["/bin/sh", "-c", "exec sleep 4242"]).runtime(runtime).quiet().start();
    let command = running.pid().as_raw() as u32;
    // It has settled when three looks in a row see the same.
    let (mut last, mut same) = (0.0, 0);
    running.until("memory settles", || {
        let now: f64 = descendants(command).into_iter().map(share).sum();
        same = if now > 0.0 && (now - last).abs() < 64.0 { same + 1 } else { 0 };
        last = now;
        (same > 20).then_some(now / 1024.0)
    })
}

/// The proportional share of memory of a process, in KiB; nothing of one that has ended.
pub fn share(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0)
}

/// `find` within the sandbox, the second of two walks.
fn find(runtime: Option<&Runtime>, state: &Path) -> f64 {
    let tree = tempfile::tempdir().expect("a directory");
    for directory in 0..100 {
        let directory = tree.path().join(format!("directory-{directory}"));
        fs::create_dir(&directory).expect("a directory");
        for file in 0..99 {
            File::create(directory.join(format!("file-{file}"))).expect("a file");
        }
    }
    let script = "find \"$0\" -xdev >/dev/null; a=$(date +%s%N); find \"$0\" -xdev | wc -l >&2; b=$(date +%s%N); \
                  echo $(((b - a) / 1000))";
    let path = tree.path().to_str().expect("UTF-8");
    let mut command = command(runtime, state, &["/bin/sh", "-c", script, path]);
    let output = command.stderr(Stdio::null()).output().expect("it starts");
    let micros: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number");
    micros / 1e3
}
