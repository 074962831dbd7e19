//! What a specification asks for is what the container finds.

mod common;

use std::fs;

use common::Sandbox;
use serde_json::{Value, json};

/// A container that runs a script of the shell.
fn shell<'a>(script: &str) -> Sandbox<'a> {
    Sandbox::new(["/bin/bash", "-c", script])
}

fn python<'a>(script: &str) -> Sandbox<'a> {
    Sandbox::new(["/usr/bin/python3", "-c", script])
}

#[test]
fn masked_and_read_only_paths() {
    let script = "
        cat /etc/passwd | wc -c; ls -A /usr/share/doc | wc -l; cat /proc/cpuinfo | wc -c; ls /proc/acpi 2>&1 | wc -l
        touch /var/lib/x 2>&1 | grep -o 'Read-only file system'; touch /var/y && echo written
        touch /usr/share/doc/x 2>&1 | grep -o 'Read-only file system'
        echo x > /proc/sys/kernel/domainname; cat /proc/sys/kernel/ostype
        grep -c ' /etc/passwd ' /proc/self/mountinfo";
    let output = shell(script)
        .with("/linux/maskedPaths", json!(["/etc/passwd", "/usr/share/doc", "/proc/cpuinfo", "/no/such/path"]))
        .with("/linux/readonlyPaths", json!(["/var/lib", "/proc/sys", "/no/such/path"]))
        .run();
    let expected = "0\n0\n0\n1\nRead-only file system\nwritten\nRead-only file system\nLinux\n1\n";
    assert_eq!(output.stdout, expected, "{}", output.report());
    assert!(output.stderr.contains("Read-only file system"), "/proc/sys: {}", output.report());
}

#[test]
fn devices_are_made_and_what_is_not_there_fails_at_open() {
    let devices = json!([
        {"path": "/dev/my/null", "type": "c", "major": 1, "minor": 3, "fileMode": 432, "uid": 5, "gid": 6},
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
        {"path": "/dev/pipe", "type": "p", "major": 0, "minor": 0, "fileMode": 420},
        {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 384},
    ]);
    let script = "
        stat -c '%F %t:%T %a %u:%g' /dev/my/null /dev/fuse /dev/pipe /dev/zero
        echo x > /dev/my/null && echo null; cat /dev/fuse 2>&1 | grep -o 'No such device or address'
        stat -c '%N' /dev/fd /dev/stdin /dev/stdout /dev/stderr /dev/ptmx | tr -d \"'\"
        stat -c '%F %a' /dev/full /dev/random /dev/urandom /dev/tty";
    let output = shell(script).with("/linux/devices", devices).run();
    let expected = "character special file 1:3 660 5:6\ncharacter special file a:e5 666 0:0\nfifo 0:0 644 0:0\n\
        character special file 1:5 600 0:0\nnull\nNo such device or address\n\
        /dev/fd -> /proc/self/fd\n/dev/stdin -> /proc/self/fd/0\n/dev/stdout -> /proc/self/fd/1\n\
        /dev/stderr -> /proc/self/fd/2\n/dev/ptmx -> pts/ptmx\n";
    let nodes = "character special file 666\n".repeat(4);
    assert_eq!(output.stdout, format!("{expected}{nodes}"), "{}", output.report());
}

#[test]
fn mount_options_have_their_effect() {
    let tmpfs = json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs",
        "options": ["nosuid", "noexec", "mode=700", "size=1m", "uid=7", "gid=8", "nr_inodes=3"]});
    let script = "
        stat -c '%a %u:%g' /scratch; touch /scratch/a /scratch/b && ! touch /scratch/c 2>/dev/null && echo inodes
        head -c 2m /dev/zero > /scratch/a 2>/dev/null; stat -c %s /scratch/a
        cp /bin/true /scratch/b 2>/dev/null; chmod 755 /scratch/b; /scratch/b 2>&1 | grep -o 'Permission denied'
        grep -o '/scratch rw,nosuid,noexec' /proc/self/mountinfo; ls -A /dev/mqueue | wc -l";
    let mqueue = json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid"]});
    let output = shell(script).mount(tmpfs).mount(mqueue).run();
    let expected = "700 7:8\ninodes\n1048576\nPermission denied\n/scratch rw,nosuid,noexec\n0\n";
    assert_eq!(output.stdout, expected, "{}", output.report());
}

#[test]
fn sysctls_that_docker_sets() {
    let script = "
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range
        cat /proc/sys/kernel/domainname
        python3 - <<'END'
import socket
s = socket.socket(); s.bind(('127.0.0.1', 80)); print('bound')
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP); print('ping')
except PermissionError: print('no ping')
END";
    let run = |range: &str, port: &str| {
        let sysctl = json!({"net.ipv4.ip_unprivileged_port_start": port, "net.ipv4.ping_group_range": range,
            "kernel.domainname": "example.org"});
        let user = json!({"uid": 1000, "gid": 1000});
        shell(script).with("/linux/sysctl", sysctl).with("/process/user", user).with("/process/cwd", json!("/")).run()
    };
    let output = run("0 2147483647", "0");
    assert_eq!(output.stdout, "0\n0\t2147483647\nexample.org\nbound\nping\n", "{}", output.report());
    let output = run("1 0", "80");
    assert_eq!(output.stdout, "80\n1\t0\nexample.org\nbound\nno ping\n", "{}", output.report());
}

#[test]
fn sysctls_of_the_network_take_effect() {
    let script = "
        cd /proc/sys/net; cat core/somaxconn ipv4/ip_local_port_range ipv4/ip_local_reserved_ports ipv4/tcp_rmem
        echo 9 > ipv4/ip_default_ttl; cat ipv4/ip_default_ttl; 
        echo 256 | dd conv=notrunc of=ipv4/ip_default_ttl 2>&1 | grep -o 'Invalid argument'
        (echo 1 > ipv4/ip_forward) 2>&1 | grep -o 'Permission denied'
        python3 - <<'END'
import socket, struct
s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(1000)
print(s.getsockname()[1], struct.unpack('8I', s.getsockopt(6, 11, 32))[7])
print(s.getsockopt(6, 4), s.getsockopt(6, 5), s.getsockopt(6, 6), s.getsockopt(6, 8), s.getsockopt(1, 8), s.getsockopt(0, 2))
END";
    let sysctl = json!({"net.core.somaxconn": "77", "net.ipv4.ip_local_port_range": "5000 5001",
        "net.ipv4.ip_local_reserved_ports": "5000", "net.ipv4.tcp_keepalive_time": "600",
        "net.ipv4.tcp_keepalive_intvl": "60", "net.ipv4.tcp_keepalive_probes": "3", "net.ipv4.tcp_fin_timeout": "15",
        "net.ipv4.tcp_rmem": "4096 87380 6291456", "net.ipv6.conf.all.disable_ipv6": "0"});
    let output = shell(script).with("/linux/sysctl", sysctl).with("/linux/readonlyPaths", json!([])).run();
    let expected = "77\n5000\t5001\n5000\n4096\t87380\t6291456\n9\nInvalid argument\nPermission denied\n5001 77\n\
                    600 60 3 15 87380 9\n";
    assert_eq!(output.stdout, expected, "{}", output.report());
}

#[test]
fn the_cgroup_is_seen() {
    let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["ro", "nosuid", "noexec", "nodev"]});
    let script = "
        cd /sys/fs/cgroup; cat memory.max cpu.max pids.max cgroup.controllers; grep -c . cgroup.procs
        grep -o 'cgroup2 cgroup' /proc/self/mountinfo; mkdir x 2>&1 | grep -o 'Read-only file system'";
    let output = shell(script).mount(cgroup).run();
    let expected = "max\nmax 100000\nmax\ncpuset cpu memory pids\n2\ncgroup2 cgroup\nRead-only file system\n";
    assert_eq!(output.stdout, expected, "{}", output.report());
}

#[test]
fn the_profile_of_system_calls_holds() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    });
    let script = "
        grep -E '^(Seccomp|NoNewPrivs)' /proc/self/status | tr -s '\\t\\n' ' '; echo
        mkdir /tmp/x 2>&1 | grep -o 'Operation not permitted'; chroot / true 2>&1 | grep -o 'Function not implemented'
        ln -s a /tmp/y; echo $?";
    let output = shell(script).with("/linux/seccomp", profile).with("/process/noNewPrivileges", json!(true)).run();
    let expected =
        "NoNewPrivs: 1 Seccomp: 2 Seccomp_filters: 1 \nOperation not permitted\nFunction not implemented\n159\n";
    assert_eq!(output.stdout, expected, "{}", output.report());
}

#[test]
fn user_umask_groups_and_scores() {
    let user = json!({"uid": 1000, "gid": 1001, "umask": 0o77, "additionalGids": [5, 1002]});
    let script = "id -u; id -g; id -G; umask; cat /proc/self/oom_score_adj; hostname; cat /proc/sys/kernel/domainname";
    let output = shell(script)
        .with("/process/user", user)
        .with("/process/cwd", json!("/"))
        .with("/process/oomScoreAdj", json!(300))
        .with("/hostname", json!("there"))
        .with("/domainname", json!("example.net"))
        .run();
    assert_eq!(output.stdout, "1000\n1001\n1001 5 1002\n0077\n300\nthere\nexample.net\n", "{}", output.report());
}

#[test]
fn the_scheduler_is_as_asked_for() {
    let scheduler = json!({"policy": "SCHED_BATCH", "nice": 7, "flags": ["SCHED_RESET_ON_FORK"]});
    // Nice value and policy of the shell, then of its child.
    let script = "cut -d' ' -f19,41 /proc/$$/stat; cat /proc/self/stat | cut -d' ' -f19,41";
    let output = shell(script).with("/process/scheduler", scheduler).run();
    assert_eq!(output.stdout, "7 3\n7 3\n", "{}", output.report());
}

/// What becomes of sockets where there is no IPv6, as Linux has it in a network namespace of its own.
#[test]
fn ipv6_can_be_turned_off() {
    let script = r#"
import errno, socket
def attempt(work):
    try:
        return work() or "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
six = lambda kind=socket.SOCK_STREAM: socket.socket(socket.AF_INET6, kind)
def all():
    return [
        attempt(lambda: six().connect(("::1", 9))),
        attempt(lambda: six().connect(("2001:db8::1", 9))),
        attempt(lambda: six().connect(("::ffff:127.0.0.1", 9))),
        attempt(lambda: six().bind(("::1", 0))),
        attempt(lambda: six().bind(("::", 0))),
        attempt(lambda: six(socket.SOCK_DGRAM).connect(("::1", 9))),
        attempt(lambda: str(six(socket.SOCK_DGRAM).sendto(b"x", ("::1", 9)))),
    ]
conf = "/proc/sys/net/ipv6/conf/"
off = lambda: [open(conf + name + "/disable_ipv6").read().strip() for name in ("all", "default", "lo")]
addresses = lambda: len(open("/proc/net/if_inet6").readlines())
print(off(), addresses(), all())
open(conf + "lo/disable_ipv6", "w").write("0")
print(off(), addresses(), all())
"#;
    let output = python(script).with("/linux/sysctl", json!({"net.ipv6.conf.all.disable_ipv6": "1"})).run();
    let expected = "['1', '1', '1'] 0 ['EADDRNOTAVAIL', 'EADDRNOTAVAIL', 'ECONNREFUSED', 'EADDRNOTAVAIL', 'ok', \
                    'EADDRNOTAVAIL', 'EADDRNOTAVAIL']\n\
                    ['1', '1', '0'] 1 ['ECONNREFUSED', 'ENETUNREACH', 'ECONNREFUSED', 'ok', 'ok', 'ok', '1']\n";
    assert_eq!(output.stdout, expected, "{}", output.report());
}

#[test]
fn socket_buffers_are_as_asked_for() {
    let script = "import socket\n\
        for family in (socket.AF_INET, socket.AF_UNIX):\n    \
            s = socket.socket(family, socket.SOCK_DGRAM)\n    \
            first = s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)\n    \
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)\n    \
            print(first, s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))\n";
    let sysctl = json!({"net.core.rmem_default": "100000", "net.core.rmem_max": "16777216"});
    let output = python(script).with("/linux/sysctl", sysctl).run();
    assert_eq!(output.stdout, "100000 33554432\n100000 33554432\n", "{}", output.report());
}

#[test]
fn a_read_only_root_has_its_mount_points_made_and_nothing_written() {
    let root = tempfile::tempdir().unwrap();
    for name in ["proc", "sys", "dev", "tmp", "usr"] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    for name in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.path().join(name)).unwrap();
    }
    let before = fs::read_dir(root.path()).unwrap().count();
    let usr = json!({"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]});
    let data = json!({"destination": "/new/place", "type": "tmpfs", "source": "tmpfs"});
    let script = "touch /new/place/x && echo mounted; touch /x 2>&1 | grep -o 'Read-only file system'";
    let output = shell(script)
        .with("/root/readonly", json!(true))
        .with("/root/path", json!(root.path()))
        .with("/process/cwd", json!("/"))
        .mount(usr)
        .mount(data)
        .run();
    assert_eq!(output.stdout, "mounted\nRead-only file system\n", "{}", output.report());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), before, "the host's directory was changed");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let refused = |at: &str, value: Value| {
        let output = shell("echo ran").with(at, value).run();
        assert_eq!((output.code(), output.stdout.as_str()), (128, ""), "{}", output.report());
        assert_eq!(output.stderr.lines().count(), 1, "{}", output.report());
        output.stderr
    };
    for (at, value, field) in [
        ("/process/apparmorProfile", json!("my-own"), "process.apparmorProfile"),
        ("/process/selinuxLabel", json!("system_u:x"), "process.selinuxLabel"),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0}), "process.ioPriority"),
        ("/process/scheduler", json!({"policy": "SCHED_FIFO", "priority": 5}), "process.scheduler.policy"),
        ("/process/scheduler", json!({"policy": "SCHED_OTHER", "nice": 20}), "process.scheduler.nice"),
        ("/process/oomScoreAdj", json!(2000), "process.oomScoreAdj"),
        ("/linux/sysctl", json!({"vm.swappiness": "1"}), "linux.sysctl.vm.swappiness"),
        ("/linux/timeOffsets", json!({"boottime": {"secs": 5}}), "linux.timeOffsets"),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        ("/linux/rootfsPropagation", json!("sideways"), "linux.rootfsPropagation"),
        ("/linux/maskedPaths", json!(["relative"]), "linux.maskedPaths[0]"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp.defaultAction"),
        ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 1000, "size": 1}]), "linux.uidMappings"),
    ] {
        let line = refused(at, value);
        assert!(line.contains(field), "{field}: {line}");
    }
}

#[test]
fn hooks_run_around_the_program() {
    let told = tempfile::tempdir().unwrap();
    let host = |name: &str| {
        let script = format!("cat > {0}/{name}; echo {name} >> {0}/order", told.path().display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"], "timeout": 60}])
    };
    let inside = json!([{"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/told; echo $A >> /tmp/told"],
        "env": ["A=in", "PATH=/bin:/usr/bin"], "timeout": 60}]);
    let hooks = json!({"prestart": host("prestart"), "createRuntime": host("createRuntime"),
        "createContainer": host("createContainer"), "startContainer": inside, "poststart": host("poststart")});
    let output = shell("cat /tmp/told").with("/hooks", hooks).run();
    let (state, word) = output.success().trim().rsplit_once('}').expect("the state and a word");
    let state: Value = serde_json::from_str(&format!("{state}}}")).unwrap();
    assert_eq!((&state["status"], &state["pid"], word.trim()), (&json!("created"), &json!(1), "in"));
    let order = fs::read_to_string(told.path().join("order")).unwrap();
    assert_eq!(order, "prestart\ncreateRuntime\ncreateContainer\npoststart\n");
    for (name, status) in [("createRuntime", "creating"), ("poststart", "running")] {
        let state: Value = serde_json::from_slice(&fs::read(told.path().join(name)).unwrap()).unwrap();
        assert_eq!(state["status"], status);
        assert!(state["pid"].as_i64().is_some_and(|pid| pid > 1), "{state}");
    }
}

#[test]
fn a_failing_hook_keeps_the_program_from_running() {
    for (point, timeout) in [("createRuntime", None), ("startContainer", None), ("startContainer", Some(1))] {
        let script = if timeout.is_some() { "while :; do :; done" } else { "echo reason >&2; exit 3" };
        let mut hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        if let Some(seconds) = timeout {
            hook["timeout"] = json!(seconds);
        }
        let output = shell("echo ran").with("/hooks", json!({point: [hook]})).run();
        assert_eq!((output.code(), output.stdout.as_str()), (128, ""), "{}", output.report());
        let why = if timeout.is_some() { "timeout of 1 s" } else { "exit status 3: reason" };
        let named = format!("running {point} hook #0 (/bin/sh)");
        assert!(output.stderr.contains(&named) && output.stderr.contains(why), "{}", output.report());
    }
}

/// What changes in the root goes to the host's directory, as with any runtime, unless `--overlay2` says otherwise.
#[test]
fn changes_of_the_root_are_seen_on_the_host() {
    let root = tempfile::tempdir().unwrap();
    for name in ["proc", "sys", "dev", "tmp", "usr"] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    for name in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.path().join(name)).unwrap();
    }
    let usr = json!({"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]});
    let mut runtime = common::Runtime::ours();
    runtime.flags.clear();
    let output = shell("mkdir /made; echo text > /made/file; chmod 640 /made/file; chown 7:8 /made/file")
        .runtime(&runtime)
        .root(root.path())
        .mount(usr)
        .run();
    output.success();
    assert_eq!(fs::read_to_string(root.path().join("made/file")).unwrap(), "text\n");
    use std::os::unix::fs::MetadataExt;
    let made = fs::metadata(root.path().join("made/file")).unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o640, 7, 8));
}
