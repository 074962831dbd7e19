//! A `config.json` as Docker makes it (of the shape of releases 20 to 26), which must be accepted.

use serde_json::{Value, json};

use super::{Bundle, Leniency, parse};

/// A part of the default profile: what it has kinds of.
fn seccomp() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["accept", "accept4", "access", "arch_prctl", "bind", "brk", "clock_gettime", "clock_gettime64",
                "close", "execve", "exit", "exit_group", "fork", "futex", "futex_time64", "getpid", "ioctl", "mmap",
                "mmap2", "munmap", "newfstatat", "open", "openat", "read", "rt_sigreturn", "sendfile64", "socketcall",
                "wait4", "write", "landlock_create_ruleset", "futex_waitv", "_llseek", "io_uring_setup"],
                "action": "SCMP_ACT_ALLOW"},
            {"names": ["process_vm_readv", "process_vm_writev", "ptrace"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 4294967295_u64, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 131080, "op": "SCMP_CMP_EQ"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["chroot"], "action": "SCMP_ACT_ALLOW"},
        ],
    })
}

fn capabilities() -> Value {
    json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ])
}

fn mounts(files: &str) -> Value {
    let bind = |name: &str| {
        json!({"destination": format!("/etc/{name}"), "type": "bind", "source": format!("{files}/{name}"),
            "options": ["rbind", "rprivate"]})
    };
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["ro", "nosuid", "noexec", "nodev"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]},
        bind("resolv.conf"), bind("hostname"), bind("hosts"),
    ])
}

fn rule(allow: bool, kind: Option<&str>, numbers: [Option<i64>; 2], access: &str) -> Value {
    let mut rule = json!({"allow": allow, "access": access});
    for (name, value) in [("major", numbers[0]), ("minor", numbers[1])] {
        if let Some(value) = value {
            rule[name] = json!(value);
        }
    }
    if let Some(kind) = kind {
        rule["type"] = json!(kind);
    }
    rule
}

fn linux() -> Value {
    let allowed = [(1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1)];
    let devices: Vec<Value> = std::iter::once(rule(false, None, [None, None], "rwm"))
        .chain(allowed.map(|(major, minor)| rule(true, Some("c"), [Some(major), Some(minor)], "rwm")))
        .chain([rule(false, Some("c"), [Some(10), Some(229)], "rwm")])
        .collect();
    json!({
        "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
        "resources": {"devices": devices, "memory": {}, "cpu": {"shares": 0}, "pids": {"limit": 0},
            "blockIO": {"weight": 0}},
        "cgroupsPath": "/docker/0123456789abcdef",
        "namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "pid"}, {"type": "ipc"},
            {"type": "cgroup"}],
        "seccomp": seccomp(),
        "maskedPaths": ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            "/sys/devices/virtual/powercap"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    })
}

/// The whole document; binds are from directory `files`.
pub fn config(files: &str) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "args": ["/docker-entrypoint.sh", "nginx", "-g", "daemon off;"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=0123456789ab"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities(), "effective": capabilities(), "permitted": capabilities()},
            "apparmorProfile": "docker-default",
            "oomScoreAdj": 0,
        },
        "root": {"path": files},
        "hostname": "0123456789ab",
        "domainname": "",
        "mounts": mounts(files),
        "hooks": {"prestart": [{"path": "/proc/1234/exe",
            "args": ["libnetwork-setkey", "-exec-root=/var/run/docker", "0123456789abcdef", "fedcba98"]}]},
        "linux": linux(),
    })
}

#[test]
fn what_docker_writes_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["resolv.conf", "hostname", "hosts"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let text = serde_json::to_vec(&config(&dir.path().display().to_string())).unwrap();
    let spec = parse(&text).unwrap();
    // Whether the limits can be honoured is another question than whether the document can be read.
    let bundle = Bundle::new(dir.path().to_owned(), spec, Leniency { ignore_cgroups: true }).unwrap();
    assert_eq!(bundle.spec.mounts().as_ref().unwrap().len(), 10);
}
