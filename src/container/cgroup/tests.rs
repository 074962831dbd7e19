//! The files of hosts that have one version or the other, in a temporary directory.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::hierarchy::{Hierarchies, Mounted};
use super::*;

/// A host whose control files are ordinary files. They are made where the container's cgroup will be, since no kernel makes
/// them.
struct Host {
    directory: TempDir,
    hierarchies: Hierarchies,
}

const V1: &[(&str, &[&str])] = &[
    (
        "memory",
        &[
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.soft_limit_in_bytes",
            "memory.swappiness",
            "memory.oom_control",
            "memory.usage_in_bytes",
        ],
    ),
    ("cpu", &["cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.cfs_burst_us", "cpu.idle"]),
    ("cpuset", &["cpuset.cpus", "cpuset.mems"]),
    ("blkio", &["blkio.weight", "blkio.throttle.read_bps_device", "blkio.throttle.write_iops_device"]),
    ("pids", &["pids.max"]),
    ("hugetlb", &["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"]),
];

const V2: &[&str] = &[
    "cgroup.subtree_control",
    "memory.max",
    "memory.low",
    "memory.swap.max",
    "memory.high",
    "cpu.weight",
    "cpu.max",
    "cpuset.cpus",
    "pids.max",
    "io.bfq.weight",
    "io.max",
    "hugetlb.2MB.max",
    "memory.events",
    "memory.stat",
    "cpu.stat",
    "io.stat",
];

impl Host {
    fn v1() -> Host {
        let directory = tempfile::tempdir().unwrap();
        let mut hierarchies = Hierarchies::default();
        for (controller, files) in V1 {
            let point = directory.path().join(controller);
            for part in ["", "pod", "pod/c1"] {
                let dir = point.join(part);
                fs::create_dir_all(&dir).unwrap();
                files.iter().for_each(|file| fs::write(dir.join(file), "").unwrap());
                fs::write(dir.join("cgroup.procs"), "").unwrap();
            }
            if *controller == "cpuset" {
                fs::write(point.join("cpuset.cpus"), "0-3\n").unwrap();
                fs::write(point.join("cpuset.mems"), "0\n").unwrap();
            }
            hierarchies.v1.insert((*controller).to_owned(), Mounted { point, root: "/".into(), own: "self".into() });
        }
        Host { directory, hierarchies }
    }

    fn v2() -> Host {
        let directory = tempfile::tempdir().unwrap();
        for part in ["", "pod", "pod/c1"] {
            let dir = directory.path().join(part);
            fs::create_dir_all(&dir).unwrap();
            V2.iter().for_each(|file| fs::write(dir.join(file), "").unwrap());
            fs::write(dir.join("cgroup.procs"), "").unwrap();
            fs::write(dir.join("cgroup.controllers"), "cpuset cpu io memory hugetlb pids\n").unwrap();
        }
        let mounted = Mounted { point: directory.path().into(), root: "/".into(), own: "self/leaf".into() };
        Host { directory, hierarchies: Hierarchies { v2: Some(mounted), ..Hierarchies::default() } }
    }

    fn create(&self, resources: Value) -> Result<Cgroup> {
        let spec = json!({"ociVersion": "1.0.0", "linux": {"cgroupsPath": "/pod/c1", "resources": resources}});
        let held = Cgroup::plan_in(self.hierarchies.clone(), &serde_json::from_value(spec).unwrap(), "c1")?.make()?;
        let cgroup = held.cgroup();
        held.release();
        Ok(cgroup)
    }

    #[track_caller]
    fn has(&self, file: &str, content: &str) {
        assert_eq!(fs::read_to_string(self.directory.path().join(file)).unwrap(), content, "{file}");
    }
}

#[test]
fn limits_in_v1() {
    let host = Host::v1();
    host.create(json!({
        "memory": {"limit": 1 << 26, "reservation": 1 << 25, "swap": 1 << 27, "swappiness": 0, "disableOOMKiller": true},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "burst": 1000, "idle": 0, "cpus": "0-1"},
        "pids": {"limit": 10},
        "blockIO": {
            "weight": 300,
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 5}],
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
    }))
    .unwrap();
    host.has("memory/pod/c1/memory.limit_in_bytes", "67108864");
    host.has("memory/pod/c1/memory.memsw.limit_in_bytes", "134217728");
    host.has("memory/pod/c1/memory.soft_limit_in_bytes", "33554432");
    host.has("memory/pod/c1/memory.swappiness", "0");
    host.has("memory/pod/c1/memory.oom_control", "1");
    host.has("cpu/pod/c1/cpu.shares", "512");
    host.has("cpu/pod/c1/cpu.cfs_quota_us", "50000");
    host.has("cpu/pod/c1/cpu.cfs_period_us", "100000");
    host.has("cpu/pod/c1/cpu.cfs_burst_us", "1000");
    host.has("cpu/pod/c1/cpu.idle", "0");
    host.has("cpuset/pod/cpuset.cpus", "0-3");
    host.has("cpuset/pod/c1/cpuset.cpus", "0-1");
    host.has("cpuset/pod/c1/cpuset.mems", "0");
    host.has("pids/pod/c1/pids.max", "84");
    host.has("blkio/pod/c1/blkio.weight", "300");
    host.has("blkio/pod/c1/blkio.throttle.read_bps_device", "8:0 1000");
    host.has("blkio/pod/c1/blkio.throttle.write_iops_device", "8:16 5");
    host.has("hugetlb/pod/c1/hugetlb.2MB.limit_in_bytes", "4194304");
    host.has("hugetlb/pod/c1/hugetlb.2MB.rsvd.limit_in_bytes", "4194304");
}

#[test]
fn limits_in_v2() {
    let host = Host::v2();
    host.create(json!({
        "memory": {"limit": 1 << 26, "reservation": 1 << 25, "swap": 1 << 27},
        "cpu": {"shares": 1024, "quota": 50000, "cpus": "0-1"},
        "pids": {"limit": -1},
        "blockIO": {"weight": 300, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
        "unified": {"memory.high": "60000000"},
    }))
    .unwrap();
    host.has("pod/cgroup.subtree_control", "+cpuset +cpu +io +memory +hugetlb +pids");
    host.has("cgroup.subtree_control", "+cpuset +cpu +io +memory +hugetlb +pids");
    host.has("pod/c1/cgroup.subtree_control", "");
    host.has("pod/c1/memory.max", "67108864");
    host.has("pod/c1/memory.low", "33554432");
    host.has("pod/c1/memory.swap.max", "67108864");
    host.has("pod/c1/memory.high", "60000000");
    host.has("pod/c1/cpu.weight", "100");
    host.has("pod/c1/cpu.max", "50000 100000");
    host.has("pod/c1/cpuset.cpus", "0-1");
    host.has("pod/c1/pids.max", "max");
    host.has("pod/c1/io.bfq.weight", "300");
    host.has("pod/c1/io.max", "8:0 rbps=1000");
    host.has("pod/c1/hugetlb.2MB.max", "4194304");
}

#[test]
fn an_update_keeps_what_it_does_not_name() {
    let host = Host::v2();
    let mut cgroup = host.create(json!({"memory": {"limit": 1 << 26, "swap": 1 << 27}})).unwrap();
    let change = json!({"memory": {"limit": 1 << 25}, "cpu": {"quota": -1, "period": 50000}});
    cgroup.update(&serde_json::from_value(change).unwrap()).unwrap();
    host.has("pod/c1/memory.max", "33554432");
    host.has("pod/c1/memory.swap.max", "100663296");
    host.has("pod/c1/cpu.max", "max 50000");
    assert_eq!(cgroup.resources().memory().unwrap().swap(), Some(1 << 27));
    // A failure changes nothing that is remembered.
    let bad = json!({"memory": {"limit": 1 << 28}});
    assert!(cgroup.update(&serde_json::from_value(bad).unwrap()).is_err(), "swap is below");
    assert_eq!(cgroup.resources().memory().unwrap().limit(), Some(1 << 25));
}

#[test]
fn what_a_host_has_not_is_named() {
    let refused = |host: &Host, resources: Value| host.create(resources).unwrap_err().to_string();
    let v1 = Host::v1();
    let rdma = refused(&v1, json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}));
    assert_eq!(rdma, "linux.resources.rdma[\"mlx5_1\"]: the cgroup controller rdma is not available on this host");
    assert!(refused(&v1, json!({"unified": {"memory.high": "1"}})).starts_with("linux.resources.unified: "));
    assert!(refused(&v1, json!({"network": {"classID": 5}})).starts_with("linux.resources.network.classID: "));
    assert!(refused(&v1, json!({"memory": {"swappiness": 101}})).starts_with("linux.resources.memory.swappiness: "));
    let v2 = Host::v2();
    assert!(refused(&v2, json!({"cpu": {"idle": 1}})).contains("linux.resources.cpu.idle: this host's kernel"));
    assert!(refused(&v2, json!({"cpu": {"realtimePeriod": 1}})).starts_with("linux.resources.cpu.realtimePeriod: "));
    assert!(refused(&v2, json!({"unified": {"misc.max": "x"}})).contains("unified[\"misc.max\"]: the controller misc"));
    assert!(refused(&v2, json!({"unified": {"../x": "x"}})).contains("not the name of a control file"));
    let none = Host { directory: tempfile::tempdir().unwrap(), hierarchies: Hierarchies::default() };
    assert!(refused(&none, json!({"pids": {"limit": 1}})).starts_with("linux.resources.pids: "));
    none.create(json!({})).unwrap();
}

#[test]
fn only_what_was_made_is_removed() {
    let host = Host::v1();
    let spec = json!({"ociVersion": "1.0.0", "linux": {"resources": {"pids": {"limit": 10}}}});
    let spec: Spec = serde_json::from_value(spec).unwrap();
    // No path: the container's name, below the runtime's own cgroup. There are no control files in a new directory here.
    assert!(Cgroup::plan_in(host.hierarchies.clone(), &spec, "c1").and_then(Plan::make).is_err());
    let left: Vec<PathBuf> = ["memory/self", "pids/self"].map(|part| host.directory.path().join(part)).into();
    assert!(left.iter().all(|path| !path.exists()), "a failure left something");
    let cgroup = host.create(json!({"pids": {"limit": 10}})).unwrap();
    cgroup.destroy().unwrap();
    assert!(host.directory.path().join("pids/pod/c1").exists(), "it was there before");
}

#[test]
fn a_cgroup_in_use_is_refused() {
    let host = Host::v1();
    fs::write(host.directory.path().join("pids/pod/c1/cgroup.procs"), "1\n2\n").unwrap();
    assert!(host.create(json!({"pids": {"limit": 10}})).unwrap_err().to_string().contains("has 2 processes already"));
}

#[test]
fn no_limits_and_no_path_mean_no_cgroup() {
    let spec: Spec =
        serde_json::from_value(json!({"ociVersion": "1.0.0", "linux": {"resources": {"cpu": {}}}})).unwrap();
    let cgroup = Cgroup::plan_in(Host::v1().hierarchies.clone(), &spec, "c1").and_then(Plan::make).unwrap().cgroup();
    assert_eq!(cgroup, Cgroup::default());
    cgroup.add(std::process::id() as i32).unwrap();
}

#[test]
fn statistics_of_v2() {
    let host = Host::v2();
    let cgroup = host.create(json!({"pids": {"limit": 7}})).unwrap();
    let write = |file: &str, text: &str| fs::write(host.directory.path().join("pod/c1").join(file), text).unwrap();
    write("memory.current", "4096\n");
    write("memory.max", "max\n");
    write("memory.stat", "anon 1\nfile 2048\n");
    write("memory.events", "low 0\nmax 3\noom 2\noom_kill 1\n");
    write("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 2\nthrottled_usec 5\n");
    write("io.stat", "8:0 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=0 dios=0\n");
    write(
        "memory.pressure",
        "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    );
    let stats = serde_json::to_value(cgroup.stats()).unwrap();
    assert_eq!(cgroup.oom_count(), Some(1));
    assert_eq!(stats["cpu"]["usage"], json!({"total": 30000, "user": 20000, "kernel": 10000}));
    assert_eq!(stats["cpu"]["throttling"], json!({"periods": 4, "throttledPeriods": 2, "throttledTime": 5000}));
    assert_eq!(stats["memory"]["usage"], json!({"limit": u64::MAX, "usage": 4096, "failcnt": 3}));
    assert_eq!(stats["memory"]["cache"], 2048);
    assert_eq!(stats["memory"]["raw"]["oom_kill"], 1);
    assert_eq!(stats["memory"]["psi"]["some"]["avg10"], 1.5);
    assert_eq!(stats["pids"], json!({"limit": 7}));
    let bytes = &stats["blkio"]["ioServiceBytesRecursive"];
    assert_eq!(bytes[0], json!({"major": 8, "op": "Read", "value": 100}));
    assert_eq!(bytes[1], json!({"major": 8, "op": "Write", "value": 200}));
    assert_eq!(stats["network_interfaces"], Value::Null);
}

#[test]
fn lists_of_cpus() {
    assert_eq!(cpu_list("0-2,7\n"), [0, 1, 2, 7]);
    assert_eq!(cpu_list("\n"), [0u16; 0]);
}

#[test]
fn it_is_kept_with_the_state() {
    let mut cgroup = Cgroup { v2: Some("/x".into()), made: vec!["/x".into()], ..Cgroup::default() };
    cgroup.v1.insert("memory".into(), Path::new("/m").into());
    let text = serde_json::to_vec(&cgroup).unwrap();
    assert_eq!(serde_json::from_slice::<Cgroup>(&text).unwrap(), cgroup);
}
