//! Limits of memory, CPU and processes, and running out of them.

use super::engine::{Container, engine, until};

/// Allocates and touches `$1` MiB in a process that the shell starts.
const ALLOCATE: &str = "import sys; x = bytearray(int(sys.argv[1]) << 20); print(len(x))";

fn value(container: &Container<'_>, names: &[&str]) -> String {
    container.cgroup_value(names).unwrap_or_else(|| panic!("none of {names:?} in the cgroup of {}", container.name))
}

#[test]
fn limits_are_those_of_the_cgroup_and_can_be_updated() {
    let engine = engine();
    let flags = ["--memory=64m", "--cpus=0.5", "--pids-limit=77"];
    let container = engine.start_container(&flags, &["sleep", "1000"]);
    assert_eq!(value(&container, &["memory.limit_in_bytes", "memory.max"]), (64 << 20).to_string());
    // The sentry counts the container's threads itself; on the host each is two, and the sentry has its own.
    let pids = |limit: u32| if engine.is_sandboxed() { 2 * limit + 64 } else { limit }.to_string();
    assert_eq!(value(&container, &["pids.max"]), pids(77));
    let quota = value(&container, &["cpu.cfs_quota_us", "cpu.max"]);
    assert_eq!(quota.split(' ').next(), Some("50000"));
    // Its processes are there.
    let processes = value(&container, &["cgroup.procs"]);
    let pid = container.inspect("/State/Pid").to_string();
    assert!(processes.lines().count() >= 1, "no process is in the cgroup of {pid}");

    let memory = ["update", "--memory=96m", "--memory-swap=-1"];
    container.docker(&memory).success();
    assert_eq!(value(&container, &["memory.limit_in_bytes", "memory.max"]), (96 << 20).to_string());
    container.docker(&["update", "--pids-limit=99"]).success();
    assert_eq!(value(&container, &["pids.max"]), pids(99));
}

#[test]
fn the_first_process_runs_out_of_memory() {
    let engine = engine();
    let container = engine.start_container(&["--memory=64m"], &["python3", "-c", ALLOCATE, "200"]);
    assert_eq!(container.docker(&["wait"]).success(), "137\n");
    until("it was killed for want of memory", || (container.inspect("/State/OOMKilled") == true).then_some(()));
}

#[test]
fn another_process_runs_out_of_memory_and_the_first_goes_on() {
    let engine = engine();
    let script = format!("python3 -c '{ALLOCATE}' 200; echo code $?; python3 -c '{ALLOCATE}' 5; echo code $?");
    let ran = engine.run(&["--memory=64m"], &["bash", "-c", &script]);
    assert_eq!(ran.success(), format!("code 137\n{}\ncode 0\n", 5 << 20), "{ran}");
}

#[test]
fn a_limit_of_processes_is_an_error_of_fork() {
    let engine = engine();
    let script = "import os, signal
children = []
try:
    while len(children) < 500:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
    print('no limit')
except BlockingIOError:
    print('limit' if len(children) > 4 else len(children))
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
child = os.fork()
if child == 0:
    os._exit(0)
print('again', os.waitpid(child, 0)[1])";
    let ran = engine.run(&["--pids-limit=100"], &["python3", "-c", script]);
    assert_eq!(ran.success(), "limit\nagain 0\n", "{ran}");
}

#[test]
fn stats_show_memory_and_processes() {
    let engine = engine();
    let script = format!(
        "sleep 1000 & {}; sleep 1000",
        "python3 -c 'x = bytearray(20 << 20); print(\"ready\", flush=True); \
                          import time; time.sleep(1000)' &"
    );
    let script = script.replace("&;", "&");
    let container = engine.start_container(&["--memory=256m"], &["bash", "-c", &script]);
    container.wait_for_output("ready");
    let format = "{{.MemUsage}} {{.PIDs}}";
    let ran = container.docker(&["stats", "--no-stream", "--format", format]);
    let words: Vec<&str> = ran.success().split_whitespace().collect();
    let memory: f64 = words[0].trim_end_matches("MiB").parse().unwrap_or_else(|_| panic!("{words:?}"));
    assert!(memory > 20.0 && memory < 256.0, "{words:?}");
    assert_eq!(words[1..3], ["/", "256MiB"], "{words:?}");
    let processes: u32 = words[3].parse().unwrap_or_else(|_| panic!("{words:?}"));
    assert!(processes >= 4, "{words:?}");
}
