//! What a container sees of its limits.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use super::common::{Running, Sandbox};
use super::place::{Place, done, printed};

/// A container that prints the outcome of `script` whenever it is asked, with its cgroup mounted.
struct Shown {
    running: Running,
    seen: usize,
}

impl Shown {
    fn start(sandbox: Sandbox<'_>) -> Shown {
        let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"});
        Shown { running: sandbox.mount(mount).start(), seen: 0 }
    }

    /// Runs a command in the container.
    fn shows(&mut self, script: &str) -> String {
        let mut exec = self.running.about(&["exec"]);
        done(exec.args(["/bin/sh", "-c", script]).output().expect("the runtime starts")).trim().to_owned()
    }

    /// What `/proc/meminfo` says of a row, in KiB.
    fn memory(&mut self, row: &str) -> u64 {
        let text = self.shows("cat /proc/meminfo");
        let line = text.lines().find_map(|line| line.strip_prefix(row)?.strip_prefix(':'));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        number.unwrap_or_else(|| panic!("no {row}: {text}"))
    }

    fn number(&mut self, file: &str) -> u64 {
        let text = self.shows(&format!("cat /sys/fs/cgroup/{file}"));
        text.parse().unwrap_or_else(|_| panic!("{file}: {text}"))
    }

    fn until_printed(&mut self, wanted: &str) {
        self.seen += 1;
        printed(&mut self.running, wanted);
    }

    fn end(self) {
        self.running.signal(Signal::SIGKILL);
        self.running.wait_or_kill(Duration::from_secs(30));
    }
}

#[test]
fn the_machines_memory_is_the_limit() {
    let place = Place::new("memory-view");
    let script = "head -c 60M /dev/zero > /dev/shm/file; echo full; while :; do sleep 1; done";
    let mut shown = Shown::start(place.sandbox(script, json!({"memory": {"limit": 256 << 20}})));
    shown.until_printed("full");
    assert_eq!(shown.memory("MemTotal"), 256 << 10);
    // What sysinfo(2) says.
    let free = shown.shows("busybox free");
    let row: Vec<&str> = free.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(row[1], (256 << 10).to_string(), "{free}");
    let left: u64 = row[3].parse().unwrap_or_else(|_| panic!("{free}"));
    assert!(left < 196 << 10, "60 MiB are in files: {free}");
    let (free, available, cached) = (shown.memory("MemFree"), shown.memory("MemAvailable"), shown.memory("Cached"));
    assert!(free < 196 << 10 && available < 200 << 10, "{free} {available}");
    assert!(cached >= 60 << 10, "{cached}");

    // The host's own counts.
    let (limit, current) = (shown.number("memory.max"), shown.number("memory.current"));
    assert_eq!(limit, 256 << 20);
    let host: u64 = place.read("memory", "memory.usage_in_bytes", "memory.current").parse().unwrap();
    assert!(current > 60 << 20 && current.abs_diff(host) < 32 << 20, "{current} {host}");
    assert!(shown.number("memory.peak") >= 60 << 20);
    let stat = shown.shows("cat /sys/fs/cgroup/memory.stat");
    let shmem = stat.lines().find_map(|line| line.strip_prefix("shmem ")).map(|number| number.parse::<u64>());
    assert!(matches!(shmem, Some(Ok(bytes)) if bytes >= 60 << 20), "{stat}");
    assert!(shown.shows("cat /sys/fs/cgroup/memory.events").contains("oom_kill 0"));

    done(shown.running.command(&["update", "--memory=512m"]));
    assert_eq!(shown.memory("MemTotal"), 512 << 10);
    assert_eq!(shown.number("memory.max"), 512 << 20);
    shown.end();
}

#[test]
fn without_a_limit_it_is_the_machines_own() {
    let place = Place::new("memory-all");
    let output = place.sandbox("grep MemTotal /proc/meminfo", json!({})).run();
    let host = fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
    assert_eq!(output.success().trim(), host.lines().next().unwrap_or_default());
    // A limit above all there is bounds nothing.
    let output = place.sandbox("grep MemTotal /proc/meminfo", json!({"memory": {"limit": 1u64 << 50}})).run();
    assert_eq!(output.success().trim(), host.lines().next().unwrap_or_default());
    place.is_gone();
}

/// Two CPUs that this test may use.
fn two_cpus() -> [String; 2] {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("Linux 2.6.26");
    let cpus = runsc::container::cgroup::cpu_list(list);
    match cpus.as_slice() {
        [first, second, ..] => [first.to_string(), second.to_string()],
        _ => panic!("this test needs two CPUs: there is {list}"),
    }
}

/// What counts CPUs: by affinity, by `/proc/cpuinfo`, in the container's cgroup, and by the task itself.
const CPUS: &str = "nproc; grep -c ^processor /proc/cpuinfo; cat /sys/fs/cgroup/cpuset.cpus.effective; \
                    sed -n 's/^Cpus_allowed_list:\\t//p' /proc/self/status";

#[test]
fn cpus_are_those_of_the_cpuset() {
    let place = Place::new("cpus");
    let [first, second] = two_cpus();
    let resources = json!({"cpu": {"cpus": format!("{first},{second}")}});
    // Two that are always running.
    let script = "(while :; do :; done) & (while :; do :; done) & echo up; wait";
    let mut shown = Shown::start(place.sandbox(script, resources));
    shown.until_printed("up");
    assert_eq!(shown.shows(CPUS), "2\n2\n0-1\n0-1");
    // One less: whichever is left, it is the container's first. Those that are there are as many as at first.
    for left in [&second, &first] {
        done(shown.running.command(&["update", "--cpuset-cpus", left]));
        assert_eq!(shown.shows(CPUS), "1\n2\n0\n0");
        assert_eq!(place.read("cpuset", "cpuset.cpus", "cpuset.cpus"), *left);
        // Who asks for one that is gone is refused, as on Linux.
        assert_eq!(shown.shows("taskset -c 1 true 2>/dev/null; echo $?; taskset -c 0 nproc"), "1\n1");
    }
    done(shown.running.command(&["update", "--cpuset-cpus", &format!("{first},{second}")]));
    assert_eq!(shown.shows(CPUS), "2\n2\n0-1\n0-1");
    assert_eq!(shown.shows("taskset -c 1 nproc"), "1");
    // A quota is not a number of CPUs.
    done(shown.running.command(&["update", "--cpu-quota", "50000"]));
    assert_eq!(shown.shows("nproc; cat /sys/fs/cgroup/cpu.max"), "2\n50000 100000");
    shown.end();
    place.is_gone();
}

#[test]
fn threads_go_where_they_may_be() {
    let place = Place::new("cpus-moved");
    let [first, second] = two_cpus();
    let resources = json!({"cpu": {"cpus": format!("{first},{second}")}});
    // Both print a number whenever they have counted far enough, so that they are seen to go on.
    let script = "for name in a b; do
        (i=0; while :; do i=$((i + 1)); [ $((i % 2000)) = 0 ] && echo $name$i; done) &
    done; wait";
    let mut shown = Shown::start(place.sandbox(script, resources));
    shown.until_printed("a2000");
    for list in [second.clone(), first.clone(), format!("{first},{second}")] {
        done(shown.running.command(&["update", "--cpuset-cpus", &list]));
        let last = |text: &str, name: char| text.lines().rfind(|line| line.starts_with(name)).map(str::to_owned);
        let file = shown.running.printed();
        let read = || fs::read_to_string(&file).unwrap_or_default();
        let before = read();
        let went_on = |name: char| last(&read(), name) != last(&before, name);
        shown.running.until("both go on", || (went_on('a') && went_on('b')).then_some(()));
    }
    shown.end();
}

#[test]
fn one_cpu_from_the_start() {
    let place = Place::new("cpus-one");
    let [_, second] = two_cpus();
    let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"});
    let output = place.sandbox(CPUS, json!({"cpu": {"cpus": second}})).mount(mount).run();
    assert_eq!(output.success().trim(), "1\n1\n0\n0");
    place.is_gone();
}
