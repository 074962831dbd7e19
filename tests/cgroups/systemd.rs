//! `--systemd-cgroup` with a systemd of the test's own.
//!
//! ```text
//!   this process ── pipe ──▶ sh, in a mount and a network namespace ── unshare ──▶ systemd, process 1 of a PID namespace
//!                            (removes the cgroups at the end)                      and root of a cgroup namespace
//! ```
//!
//! It has two units, so that nothing is started, and a `/run` and `/dev/console` of its own; `/proc/sys` is read-only. When
//! this process ends, however it ends, the pipe is closed, and systemd is killed.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::common::leftovers::descendants;
use super::common::{Runtime, Sandbox};
use super::place::{done, end, printed};

/// Makes cgroups, starts the second shell in them, and removes them when the pipe is closed.
const OUTER: &str = r#"
set -eu
mount --make-rslave /
groups=
for point in $(awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/self/mounts); do
    # One may be mounted twice, or under another.
    mkdir "$point/$GROUP" 2>/dev/null || continue
    if [ -e "$point/$GROUP/cpuset.cpus" ] && [ ! -e "$point/cgroup.controllers" ]; then
        cat "$point/cpuset.cpus" >"$point/$GROUP/cpuset.cpus"
        cat "$point/cpuset.mems" >"$point/$GROUP/cpuset.mems"
    fi
    groups="$groups $point/$GROUP"
    for controller in $(cat "$point/cgroup.controllers" 2>/dev/null); do
        echo "+$controller" >"$point/cgroup.subtree_control" || true
    done
done
export groups
sh -c 'for group in $groups; do echo $$ >"$group/cgroup.procs"; done
       exec unshare --mount --pid --cgroup --uts --ipc --fork --kill-child sh -c "$INNER"' </dev/null &
while read -r _; do :; done
kill -KILL $! 2>/dev/null || true
wait
for _ in $(seq 100); do
    find $groups -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -n "$(ls -d $groups 2>/dev/null)" ] || break
    sleep 0.1
done
"#;

/// Becomes systemd.
const INNER: &str = r#"
set -eu
mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount --bind /dev/null /dev/console
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock /run/units
echo 0123456789abcdef0123456789abcdef >/run/machine-id
mount --bind /run/machine-id /etc/machine-id
printf '[Unit]\nDescription=Nothing\n' >/run/units/default.target
names=$(awk -F: '$2 != "" { print $2 }' /proc/self/cgroup)
umount -R /sys/fs/cgroup
case $VERSION in
v1)
    mount -t tmpfs tmpfs /sys/fs/cgroup
    for name in $names; do
        mkdir "/sys/fs/cgroup/${name#name=}"
        case $name in name=*) options=none,$name ;; *) options=$name ;; esac
        mount -t cgroup -o "$options" cgroup "/sys/fs/cgroup/${name#name=}"
    done
    if [ ! -e /sys/fs/cgroup/systemd ]; then
        mkdir /sys/fs/cgroup/systemd
        mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    fi
    mkdir /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified ;;
v2) mount -t cgroup2 cgroup2 /sys/fs/cgroup ;;
esac
export SYSTEMD_UNIT_PATH=/run/units:/run/systemd/system.control:/run/systemd/transient
export container=test SYSTEMD_LOG_TARGET=null
exec /lib/systemd/systemd --system --unit=default.target --show-status=false
"#;

/// Which version of cgroups it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A systemd. There is one at a time.
struct Systemd {
    shell: Child,
    pipe: Option<ChildStdin>,
    /// Process 1, as the host counts.
    init: u32,
    group: String,
    _alone: MutexGuard<'static, ()>,
}

static ONE: Mutex<()> = Mutex::new(());

impl Systemd {
    fn start(version: Version) -> Systemd {
        let alone = ONE.lock().unwrap_or_else(|error| error.into_inner());
        let group = format!("runsc-systemd-{}", std::process::id());
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--net", "sh", "-c", OUTER]).env("INNER", INNER).env("GROUP", &group);
        shell.env("VERSION", format!("{version:?}").to_lowercase()).stdin(Stdio::piped());
        let mut shell = shell.spawn().expect("unshare");
        let pipe = shell.stdin.take();
        let is_systemd =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "systemd\n");
        let init = until("systemd", || {
            let ended = shell.try_wait().expect("a child");
            assert!(ended.is_none(), "the shell has ended: {ended:?}");
            descendants(shell.id()).into_iter().find(is_systemd)
        });
        let systemd = Systemd { shell, pipe, init, group, _alone: alone };
        systemd.leave_it_alone();
        until("systemd is up", || {
            let state = systemd.systemctl(&["is-system-running"]);
            (String::from_utf8_lossy(&state.stdout).trim() == "running").then_some(())
        });
        systemd
    }

    /// Takes the process that waits for it out of the cgroup, whose controllers could not be enabled otherwise.
    fn leave_it_alone(&self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.init)).expect("it runs");
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("it has a parent");
        for directory in self.directories("") {
            let above = directory.parent().expect("the root of a hierarchy").join("cgroup.procs");
            fs::write(&above, parent.trim()).unwrap_or_else(|error| panic!("{}: {error}", above.display()));
        }
    }

    /// Words that run a command in its namespaces, and where systemd itself is: on a host whose cgroup namespaces are
    /// borders (`nsdelegate`), it could not move a process from elsewhere.
    fn within(&self) -> Vec<String> {
        let enter = "for dir in $DIRS; do echo $$ 2>/dev/null >$dir/cgroup.procs; done
                     exec nsenter --target $INIT --mount --net --pid --cgroup --uts --ipc -- \"$@\"";
        let directories: Vec<String> =
            self.directories("init.scope").iter().map(|path| path.display().to_string()).collect();
        let (directories, init) = (format!("DIRS={}", directories.join(" ")), format!("INIT={}", self.init));
        ["env", &directories, &init, "sh", "-c", enter, "sh"].map(str::to_owned).into()
    }

    fn systemctl(&self, words: &[&str]) -> Output {
        let within = self.within();
        let mut command = Command::new(&within[0]);
        command.args(&within[1..]).arg("systemctl").args(words);
        command.output().expect("nsenter")
    }

    fn runtime(&self) -> Runtime {
        let mut runtime = Runtime::ours();
        runtime.flags.push("--systemd-cgroup".into());
        runtime.within = self.within();
        runtime
    }

    fn sandbox<'a>(&self, script: &str, path: &str, resources: Value) -> Sandbox<'a> {
        let sandbox = Sandbox::new(["sh", "-c", script]).runtime(&self.runtime());
        sandbox.with("/linux/cgroupsPath", json!(path)).with("/linux/resources", resources)
    }

    /// A property of a unit.
    #[track_caller]
    fn show(&self, unit: &str, property: &str) -> String {
        done(self.systemctl(&["show", "--value", "--property", property, unit])).trim().to_owned()
    }

    /// The directories of a cgroup of its, in every hierarchy.
    fn directories(&self, cgroup: &str) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let points = fields.filter(|fields| fields[2].starts_with("cgroup")).map(|fields| PathBuf::from(fields[1]));
        points.map(|point| point.join(&self.group).join(cgroup)).filter(|path| path.exists()).collect()
    }

    /// A control file of a cgroup of its, in whichever hierarchy has it.
    #[track_caller]
    fn read(&self, cgroup: &str, file: &str) -> String {
        let paths = self.directories(cgroup).into_iter().map(|path| path.join(file));
        let texts: Vec<String> = paths.filter_map(|path| fs::read_to_string(path).ok()).collect();
        assert!(!texts.is_empty(), "no {cgroup}/{file}");
        texts[0].trim().to_owned()
    }

    #[track_caller]
    fn is_gone(&self, unit: &str, cgroup: &str) {
        until("the unit is gone", || (self.show(unit, "LoadState") == "not-found").then_some(()));
        let left = self.directories(cgroup);
        assert!(left.is_empty(), "left: {left:?}");
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}

fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within a minute");
        thread::sleep(Duration::from_millis(20));
    }
}

const PATH: &str = "runsc-test.slice:docker:c1";
const UNIT: &str = "docker-c1.scope";
const CGROUP: &str = "runsc.slice/runsc-test.slice/docker-c1.scope";

/// What a test asks of limits, and where that is to be found: the unit's property, then the file of its cgroup.
struct Limits {
    memory: (&'static str, &'static str),
    /// Of 512 shares.
    shares: (&'static str, &'static str),
    /// Of 33333 us in each 100000.
    quota: (&'static str, &'static str),
}

impl Version {
    /// Those that this host lets a systemd have: without a v1 of its own it makes none.
    fn all() -> Vec<Version> {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        let has_v1 = mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup"));
        if has_v1 { vec![Version::V1, Version::V2] } else { vec![Version::V2] }
    }

    fn limits(self) -> Limits {
        match self {
            Version::V1 => Limits {
                memory: ("MemoryLimit", "memory.limit_in_bytes"),
                shares: ("CPUShares", "512"),
                quota: ("cpu.cfs_quota_us", "33333"),
            },
            Version::V2 => Limits {
                memory: ("MemoryMax", "memory.max"),
                shares: ("CPUWeight", "59"),
                quota: ("cpu.max", "33333 100000"),
            },
        }
    }
}

/// The version whose controllers are this host's: the other can be asked for nothing.
fn has_controllers(systemd: &Systemd, version: Version) -> bool {
    version == Version::V1 || !systemd.directories("memory.max").is_empty()
}

#[test]
fn a_scope_is_made_for_the_container() {
    for version in Version::all() {
        let systemd = Systemd::start(version);
        let devices = json!([
            {"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw"},
        ]);
        let sandbox = systemd.sandbox("echo up; while :; do sleep 1; done", PATH, json!({"devices": devices}));
        let annotations = json!({"org.systemd.property.TimeoutStopSec": "uint64 7"});
        let mut running = sandbox.with("/annotations", annotations).start();
        printed(&mut running, "up");

        let show = |property| systemd.show(UNIT, property);
        assert_eq!((show("ActiveState"), show("SubState")), ("active".into(), "running".into()));
        assert_eq!((show("Slice"), show("ControlGroup")), ("runsc-test.slice".into(), format!("/{CGROUP}")));
        assert_eq!((show("Description"), show("Delegate")), ("runsc container c1".into(), "yes".into()));
        assert_eq!((show("Transient"), show("DefaultDependencies")), ("yes".into(), "no".into()));
        assert_eq!((show("TimeoutStopUSec"), show("DevicePolicy")), ("7s".into(), "strict".into()));
        assert!(show("DeviceAllow").contains("/dev/char/10:200 rw"), "{}", show("DeviceAllow"));
        // Every process of the sandbox's is there, in every hierarchy.
        let everywhere = systemd.directories(CGROUP);
        assert!(!everywhere.is_empty());
        for directory in &everywhere {
            let count = fs::read_to_string(directory.join("cgroup.procs")).unwrap().lines().count();
            assert!(count >= 3, "{}: {count} processes", directory.display());
        }
        end(running);
        systemd.is_gone(UNIT, CGROUP);
    }
}

#[test]
fn a_scope_has_the_containers_limits() {
    let mut done_for = Vec::new();
    for version in Version::all() {
        let systemd = Systemd::start(version);
        if has_controllers(&systemd, version) {
            has_limits(&systemd, version.limits());
            done_for.push(version);
        }
    }
    assert!(!done_for.is_empty(), "no version has a controller of memory");
}

fn has_limits(systemd: &Systemd, limits: Limits) {
    let resources = json!({
        "memory": {"limit": 256 << 20}, "cpu": {"shares": 512, "quota": 33_333, "period": 100_000},
        "pids": {"limit": 20},
    });
    let mut running = systemd.sandbox("echo up; while :; do sleep 1; done", PATH, resources).start();
    printed(&mut running, "up");
    let show = |property| systemd.show(UNIT, property);
    let (memory, memory_file) = limits.memory;
    assert_eq!(show(memory), (256 << 20).to_string());
    assert_eq!((show("TasksMax"), show(limits.shares.0)), ("104".into(), limits.shares.1.into()));
    // In hundredths; the file is exact.
    assert_eq!(show("CPUQuotaPerSecUSec"), "340ms");
    assert_eq!(systemd.read(CGROUP, limits.quota.0), limits.quota.1);
    assert_eq!(systemd.read(CGROUP, memory_file), (256 << 20).to_string());
    assert_eq!(systemd.read(CGROUP, "pids.max"), "104");

    done(running.command(&["update", "--memory=128m", "--cpu-quota=50000", "--pids-limit=9"]));
    assert_eq!((show(memory), show("TasksMax")), ((128 << 20).to_string(), "82".into()));
    assert_eq!(show("CPUQuotaPerSecUSec"), "500ms");
    assert_eq!(systemd.read(CGROUP, limits.quota.0), limits.quota.1.replace("33333", "50000"));
    // systemd knows of all that there is: it writes nothing else when it looks at its units again.
    done(systemd.systemctl(&["daemon-reload"]));
    assert_eq!(systemd.read(CGROUP, memory_file), (128 << 20).to_string());
    assert_eq!(systemd.read(CGROUP, "pids.max"), "82");
    let event: Value = serde_json::from_str(&done(running.command(&["events", "--stats"]))).expect("JSON");
    assert_eq!(event["data"]["memory"]["usage"]["limit"], 128 << 20);
    let bad = running.command(&["update", "--cpu-period", "1"]);
    assert_eq!(String::from_utf8_lossy(&bad.stderr).lines().count(), 1, "{bad:?}");
    end(running);
    systemd.is_gone(UNIT, CGROUP);
}

#[test]
fn a_unit_has_one_container() {
    let systemd = Systemd::start(Version::V2);
    let mut running = systemd.sandbox("echo up; while :; do sleep 1; done", PATH, json!({})).start();
    printed(&mut running, "up");
    let other = systemd.sandbox("true", PATH, json!({})).run();
    assert_eq!(other.code(), 128, "{}", other.report());
    assert!(
        other.stderr.contains("linux.cgroupsPath: the systemd unit docker-c1.scope exists already"),
        "{}",
        other.stderr
    );
    // The refusal has not touched it.
    assert_eq!(systemd.show(UNIT, "ActiveState"), "active");
    end(running);
    systemd.is_gone(UNIT, CGROUP);
    // It can be had again, at once and without a path.
    for (path, unit, cgroup) in [(PATH, UNIT, CGROUP), ("", "runsc-c1.scope", "system.slice/runsc-c1.scope")] {
        for _ in 0..3 {
            assert_eq!(systemd.sandbox("echo ran", path, json!({})).run().success(), "ran\n");
        }
        systemd.is_gone(unit, cgroup);
    }
}

#[test]
fn what_systemd_refuses_is_one_line_and_leaves_nothing() {
    let systemd = Systemd::start(Version::V2);
    let refused = |path: &str, annotations: Value| {
        let output = systemd.sandbox("true", path, json!({})).with("/annotations", annotations.clone()).run();
        assert_eq!(output.code(), 128, "{path} {annotations}: {}", output.report());
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
        systemd.is_gone(UNIT, CGROUP);
        output.stderr
    };
    assert!(refused("/docker/c1", json!({})).contains("slice:prefix:name"));
    assert!(refused("a--b.slice:docker:c1", json!({})).contains("a--b.slice"));
    let line = refused(PATH, json!({"org.systemd.property.NoSuchThing": "true"}));
    assert!(line.contains("docker-c1.scope") && line.contains("NoSuchThing"), "{line}");
    let line = refused(PATH, json!({"org.systemd.property.CollectMode": "always"}));
    assert!(line.contains("annotations[\"org.systemd.property.CollectMode\"]"), "{line}");
}

#[test]
fn a_scope_goes_with_a_create_that_was_killed() {
    for version in Version::all() {
        killed_at_any_point(&Systemd::start(version));
    }
}

fn killed_at_any_point(systemd: &Systemd) {
    let sandbox = systemd.sandbox("sleep 1000", PATH, json!({}));
    let bundle = sandbox.work().join("bundle");
    fs::create_dir(&bundle).unwrap();
    fs::write(bundle.join("config.json"), sandbox.config().to_string()).unwrap();
    let errors = sandbox.work().join("errors");
    for step in 0..25 {
        let mut create = sandbox.command();
        create.args(["--network=none", "create", "--bundle"]).arg(&bundle).arg("c1");
        create.stdout(Stdio::null()).stderr(fs::File::create(&errors).unwrap());
        let mut create = create.spawn().expect("nsenter");
        thread::sleep(Duration::from_millis(2 * step));
        // nsenter waits for its child, the command itself.
        for pid in descendants(create.id()) {
            if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "runsc\n") {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
        }
        let _ = create.kill();
        create.wait().expect("a child");
        done(sandbox.command().args(["delete", "--force", "c1"]).output().expect("nsenter"));
        systemd.is_gone(UNIT, CGROUP);
    }
    assert_eq!(systemd.sandbox("echo ran", PATH, json!({})).run().success(), "ran\n");
}

#[test]
fn a_scope_of_a_damaged_container_is_found_by_its_specification() {
    let systemd = Systemd::start(Version::V2);
    let sandbox = systemd.sandbox("sleep 1000", PATH, json!({}));
    let bundle = sandbox.work().join("bundle");
    fs::create_dir(&bundle).unwrap();
    fs::write(bundle.join("config.json"), sandbox.config().to_string()).unwrap();
    let mut create = sandbox.command();
    create.args(["--network=none", "create", "--bundle"]).arg(&bundle).arg("c1").stdin(Stdio::null());
    assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("nsenter").success());
    assert_eq!(systemd.show(UNIT, "ActiveState"), "active");
    let mut record = fs::File::create(sandbox.state().join("c1/state.json")).unwrap();
    record.write_all(b"{").unwrap();
    done(sandbox.command().args(["delete", "--force", "c1"]).output().expect("nsenter"));
    systemd.is_gone(UNIT, CGROUP);
}

#[test]
fn containers_go_though_systemd_does_not_answer() {
    let systemd = Systemd::start(Version::V2);
    let mut running = systemd.sandbox("echo up; while :; do sleep 1; done", PATH, json!({})).start();
    printed(&mut running, "up");
    let within = systemd.within();
    let hide = Command::new(&within[0]).args(&within[1..]).args(["mv", "/run/systemd/private", "/run/hidden"]).status();
    assert!(hide.expect("nsenter").success());
    let update = running.command(&["update", "--pids-limit=9"]);
    let line = String::from_utf8_lossy(&update.stderr).into_owned();
    assert!(!update.status.success() && line.contains("systemd does not run here"), "{line}");
    end(running);
    let left = systemd.directories(CGROUP);
    assert!(left.is_empty(), "left: {left:?}");
}

#[test]
fn without_systemd_it_is_one_line() {
    let mut runtime = Runtime::ours();
    runtime.flags.push("--systemd-cgroup".into());
    let hidden = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && exec \"$@\"";
    runtime.within = ["unshare", "--mount", "sh", "-c", hidden, "sh"].map(str::to_owned).into();
    let output = Sandbox::new(["true"]).runtime(&runtime).with("/linux/cgroupsPath", json!(PATH)).run();
    assert_eq!(output.code(), 128);
    let expected = "runsc: --systemd-cgroup: systemd does not run here, or does not answer: /run/systemd/private: No such \
                    file or directory\n";
    assert_eq!(output.stderr, expected);
}
