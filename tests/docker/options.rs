//! Options of `docker run` beyond the everyday ones: each works, or is refused by name.

use std::fs;

use super::engine::engine;

#[test]
fn a_seccomp_profile_of_the_user_s() {
    let engine = engine();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("profile.json");
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"#;
    fs::write(&file, profile).expect("a file");
    let script =
        "mkdir /srv/x 2>&1 | sed 's/.*: //'; grep ^Seccomp: /proc/self/status | cut -f2; touch /srv/y && echo made";
    let flag = format!("--security-opt=seccomp={}", file.display());
    assert_eq!(engine.script(&[&flag], script), "Operation not supported\n2\nmade\n");
    let none = engine.script(&["--security-opt=seccomp=unconfined"], script);
    assert_eq!(none, "0\nmade\n");
}

/// Whether the host gives this test everything.
fn all_capabilities() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("it is Linux");
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").expect("/proc is mounted");
    u64::from_str_radix(bounding.trim(), 16) == Ok((2 << last.trim().parse::<u32>().expect("a number")) - 1)
}

#[test]
fn all_privileges() {
    let engine = engine();
    if !engine.is_sandboxed() && !all_capabilities() {
        // runc gives what it has itself, and refuses when that is not all.
        return;
    }
    // Everything that the sandbox has, and the devices' names; mounting is possible, and nothing is masked.
    let script =
        "grep CapEff /proc/self/status | cut -f2 | grep -c '^0*1f*$'; grep ^Seccomp: /proc/self/status | cut -f2
                  mkdir /srv/m && mount -t tmpfs none /srv/m && echo word >/srv/m/file && cat /srv/m/file
                  mount --bind /srv/m /mnt && cat /mnt/file; hostname other && hostname
                  test -c /dev/null && echo x >/dev/null && echo device";
    let printed = engine.script(&["--privileged"], script);
    assert!(printed.ends_with("0\nword\nword\nother\ndevice\n"), "{printed}");
    let refused = engine.run(&[], &["mount", "-t", "tmpfs", "none", "/mnt"]);
    assert!(refused.code != 0 && refused.stderr.contains("permission denied"), "{refused}");
}

#[test]
fn devices() {
    let engine = engine();
    let script = "stat -c '%F %t:%T' /dev/nothing; echo x >/dev/nothing; cat /dev/nothing; echo end";
    let printed = engine.script(&["--device=/dev/null:/dev/nothing"], script);
    assert_eq!(printed, "character special file 1:3\nend\n");
    if engine.is_sandboxed() {
        // One that a sandbox has not got is a name only, as documented.
        let ran = engine.run(&["--device=/dev/loop-control"], &["bash", "-c", "exec 3</dev/loop-control"]);
        assert!(ran.code == 1 && ran.stderr.contains("No such device or address"), "{ran}");
    }
}

#[test]
fn parameters_of_the_kernel() {
    let engine = engine();
    let flags = ["--sysctl=net.ipv4.ip_local_port_range=20000 20100", "--sysctl=net.core.somaxconn=77"];
    let script = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/net/core/somaxconn | tr '\\t' ' '";
    assert_eq!(engine.script(&flags, script), "20000 20100\n77\n");
    // Docker itself takes those of a namespace only.
    let host = engine.run(&["--sysctl=vm.swappiness=10"], &["true"]);
    assert_eq!(host.code, 125, "{host}");
    if engine.is_sandboxed() {
        let unknown = engine.run(&["--sysctl=net.ipv4.tcp_congestion_control=bbr"], &["true"]);
        assert!(
            unknown.code == 125 && unknown.stderr.contains("linux.sysctl.net.ipv4.tcp_congestion_control"),
            "{unknown}"
        );
    }
}

#[test]
fn the_signal_that_stops_it() {
    let engine = engine();
    let script = "trap 'echo quit; exit 8' QUIT; trap 'echo term' TERM; echo ready; while :; do sleep 0.05; done";
    let container = engine.start_container(&["--stop-signal=QUIT", "--stop-timeout=60"], &["bash", "-c", script]);
    container.wait_for_output("ready");
    container.docker(&["stop"]).success();
    assert_eq!(container.inspect("/State/ExitCode"), 8);
    assert_eq!(container.docker(&["logs"]).stdout, "ready\nquit\n");
}

#[test]
fn drivers_of_logs() {
    let engine = engine();
    let script = "for n in $(seq 200); do echo \"line $n\"; done; echo err >&2";
    for driver in ["local", "json-file"] {
        let flags = [&format!("--log-driver={driver}"), "--log-opt=max-size=1m", "--log-opt=max-file=2"];
        let container = engine.start_container(&flags, &["bash", "-c", script]);
        container.docker(&["wait"]).success();
        let logs = container.docker(&["logs"]);
        assert_eq!((logs.success().lines().count(), logs.stderr.as_str()), (200, "err\n"), "{driver}: {logs}");
        let tail = container.docker(&["logs", "--tail=2"]);
        assert!(tail.success().ends_with("line 200\n"), "{driver}: {tail}");
    }
    let container = engine.start_container(&["--log-driver=none"], &["echo", "unseen"]);
    container.docker(&["wait"]).success();
    let logs = container.docker(&["logs"]);
    assert!(logs.code == 1 && logs.stderr.contains("does not support reading"), "{logs}");
}

#[test]
fn one_cpu_of_several() {
    let engine = engine();
    let script = "nproc; grep Cpus_allowed_list /proc/self/status | cut -f2";
    let printed = engine.script(&["--cpuset-cpus=0"], script);
    assert_eq!(printed, "1\n0\n");
    let container = engine.start_container(&["--cpuset-cpus=0", "--cpu-shares=512"], &["sleep", "1000"]);
    assert_eq!(container.cgroup_value(&["cpuset.cpus"]).as_deref(), Some("0"));
    // What shares of 1024 are in v2: `1 + (shares - 2) * 9999 / 262142`.
    let shares = container.cgroup_value(&["cpu.shares", "cpu.weight"]);
    assert!(matches!(shares.as_deref(), Some("512" | "20" | "59")), "{shares:?}");
}

#[test]
fn weights_and_rates_of_block_devices() {
    let engine = engine();
    // A kernel that has no such weights has Docker say so and leave them out.
    let container = engine.start_container(&["--blkio-weight=300"], &["sleep", "1000"]);
    let weight = container.cgroup_value(&["blkio.weight", "blkio.bfq.weight", "io.bfq.weight", "io.weight"]);
    let warned = container.inspect("/HostConfig/BlkioWeight") == 0;
    assert!(warned || weight.is_some_and(|weight| weight.contains("300")), "{}", container.inspect("/HostConfig"));
}

#[test]
fn the_killer_for_want_of_memory_can_be_off() {
    let engine = engine();
    let container = engine.start_container(&["--memory=64m", "--oom-kill-disable"], &["sleep", "1000"]);
    // Of cgroup v1; with v2 Docker warns and leaves it out.
    match container.cgroup_value(&["memory.oom_control"]) {
        Some(control) => assert!(control.contains("oom_kill_disable 1"), "{control}"),
        None => assert_ne!(container.inspect("/HostConfig/OomKillDisable"), true),
    }
}

#[test]
fn a_cgroup_above_it() {
    let engine = engine();
    let parent = format!("/{}/above", engine.group());
    let container = engine.start_container(&["--cgroup-parent", &parent], &["sleep", "1000"]);
    let id = container.id();
    assert!(engine.cgroups().iter().any(|path| path.ends_with(format!("above/{id}"))), "{:?}", engine.cgroups());
}

#[test]
fn namespaces_of_the_host() {
    let engine = engine();
    let script = "id -u; tr -s ' ' </proc/self/uid_map";
    assert_eq!(engine.script(&["--userns=host"], script), "0\n 0 0 4294967295\n");
    if !engine.is_sandboxed() {
        return;
    }
    // A sandbox has its own of these.
    let script = "ps -e -o comm= | grep -c -E 'dockerd|containerd'; hostname";
    let printed = engine.script(&["--pid=host", "--ipc=host", "--uts=host"], script);
    assert!(printed.starts_with("0\n"), "{printed}");
    // The host's network is not given, and nothing else in its place.
    let network = engine.run(&["--network=host"], &["true"]);
    assert!(network.code == 125 && network.stderr.contains("config.json: linux.namespaces"), "{network}");
    assert!(network.stderr.contains("the host's own network, which a sandbox cannot have"), "{network}");
}

#[test]
fn private_and_no_memory_to_share() {
    let engine = engine();
    assert_eq!(engine.script(&["--ipc=private"], "findmnt -n -o FSTYPE /dev/shm"), "tmpfs\n");
    let printed = engine.script(&["--ipc=none"], "findmnt -n -o FSTYPE /dev/shm || echo none");
    assert_eq!(printed, "none\n");
}
