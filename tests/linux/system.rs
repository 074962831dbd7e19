//! Credentials, capabilities, limits, and what the system tells about itself.

use std::ffi::CStr;
use std::fs;
use std::mem::zeroed;
use std::ptr;

use libc::c_int;

use crate::common::*;
use crate::programs::output_of;

unsafe fn uids() -> (u32, u32, u32) {
    unsafe {
        let (mut real, mut effective, mut saved) = (0, 0, 0);
        ok(libc::getresuid(&mut real, &mut effective, &mut saved));
        (real, effective, saved)
    }
}

/// A field of `/proc/self/status`.
fn status(field: &str) -> String {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
}

#[test]
fn user_ids_change_by_the_rules() {
    isolated(|| unsafe {
        assert_eq!(uids(), (0, 0, 0));
        ok(libc::setresuid(1, 2, 3));
        assert_eq!(uids(), (1, 2, 3));
        ok(libc::seteuid(3));
        assert_eq!(uids(), (1, 3, 3));
        fails(libc::seteuid(2), libc::EPERM);
        fails(libc::setresuid(u32::MAX, 0, u32::MAX), libc::EPERM);
        fails(libc::setuid(0), libc::EPERM);
        ok(libc::setreuid(3, 1));
        assert_eq!(uids(), (3, 1, 1));
        assert_eq!((libc::getuid(), libc::geteuid()), (3, 1));
        assert_eq!(status("Uid"), "3\t1\t1\t1");
    });
}

#[test]
fn root_setuid_changes_all_three_for_good() {
    isolated(|| unsafe {
        ok(libc::setuid(1234));
        assert_eq!(uids(), (1234, 1234, 1234));
        fails(libc::setuid(0), libc::EPERM);
    });
}

#[test]
fn groups_are_set_and_checked() {
    isolated(|| unsafe {
        ok(libc::setgroups(3, [5, 7, 6].as_ptr()));
        let mut groups = [0; 8];
        assert_eq!(ok(libc::getgroups(8, groups.as_mut_ptr())), 3);
        groups[..3].sort_unstable();
        assert_eq!(groups[..3], [5, 6, 7]);
        assert_eq!(ok(libc::getgroups(0, ptr::null_mut())), 3);
        fails(libc::getgroups(2, groups.as_mut_ptr()), libc::EINVAL);
        fails(libc::setgroups(65_537, groups.as_ptr()), libc::EINVAL);
        ok(libc::setresgid(1, 2, 3));
        ok(libc::setresuid(9, 9, 9));
        fails(libc::setgroups(0, ptr::null()), libc::EPERM);
        ok(libc::setegid(3));
        fails(libc::setegid(0), libc::EPERM);
        assert_eq!(status("Gid"), "1\t3\t3\t3");
    });
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

const VERSION_3: u32 = 0x2008_0522;

/// Effective, permitted and inheritable sets, low words first.
unsafe fn capget() -> [[u32; 3]; 2] {
    unsafe {
        let mut sets = [[0u32; 3]; 2];
        ok(libc::syscall(libc::SYS_capget, &CapabilityHeader { version: VERSION_3, pid: 0 }, &mut sets));
        sets
    }
}

unsafe fn capset(sets: [[u32; 3]; 2]) -> libc::c_long {
    unsafe { libc::syscall(libc::SYS_capset, &CapabilityHeader { version: VERSION_3, pid: 0 }, &sets) }
}

#[test]
fn capabilities_can_be_dropped_and_not_regained() {
    isolated(|| unsafe {
        let full = capget();
        assert_ne!(full[0][0], 0);
        let kill = 1 << 5;
        ok(capset([[0, full[0][1], 0], [0, full[1][1], 0]]));
        assert_eq!(capget()[0][0], 0);
        ok(capset([[full[0][1] & kill, full[0][1], 0], [0, full[1][1], 0]]));
        ok(capset([[0; 3]; 2]));
        fails(capset([[0, kill, 0], [0; 3]]), libc::EPERM);
        fails(capset([[kill, 0, 0], [0; 3]]), libc::EPERM);
        assert_eq!(status("CapEff"), "0000000000000000");
        fails(libc::setresuid(5, 5, 5), libc::EPERM);
    });
}

#[test]
fn capability_version_is_checked_and_told() {
    isolated(|| unsafe {
        let mut header = CapabilityHeader { version: 1, pid: 0 };
        let mut sets = [[0u32; 3]; 2];
        fails(libc::syscall(libc::SYS_capget, &mut header, &mut sets), libc::EINVAL);
        assert_eq!(header.version, VERSION_3);
        header.pid = 0x3f_ffff;
        fails(libc::syscall(libc::SYS_capget, &mut header, &mut sets), libc::ESRCH);
    });
}

#[test]
fn leaving_root_clears_capabilities_unless_kept() {
    isolated(|| unsafe {
        in_child(|| {
            ok(libc::setresuid(5, 5, 5));
            assert_eq!(capget(), [[0; 3]; 2]);
        });
        in_child(|| {
            ok(libc::prctl(libc::PR_SET_KEEPCAPS, 1));
            ok(libc::setresuid(5, 5, 5));
            assert_eq!(capget()[0][0], 0);
            assert_ne!(capget()[0][1], 0);
        });
    });
}

#[test]
fn bounding_set_shrinks() {
    isolated(|| unsafe {
        assert_eq!(libc::prctl(libc::PR_CAPBSET_READ, 0), 1);
        ok(libc::prctl(libc::PR_CAPBSET_DROP, 0));
        assert_eq!(libc::prctl(libc::PR_CAPBSET_READ, 0), 0);
        fails(libc::prctl(libc::PR_CAPBSET_READ, 99), libc::EINVAL);
    });
}

#[test]
fn no_new_privileges_stays() {
    isolated(|| unsafe {
        fails(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0), libc::EINVAL);
        ok(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        in_child(|| assert_eq!(libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1));
        assert_eq!(status("NoNewPrivs"), "1");
    });
}

#[test]
fn resource_limits() {
    isolated(|| unsafe {
        let mut limit: libc::rlimit = zeroed();
        ok(libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: 600, rlim_max: 700 }));
        ok(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit));
        assert_eq!((limit.rlim_cur, limit.rlim_max), (600, 700));
        fails(libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: 8, rlim_max: 7 }), libc::EINVAL);
        fails(libc::getrlimit(99, &mut limit), libc::EINVAL);
        ok(libc::prlimit(0, libc::RLIMIT_NOFILE, ptr::null(), &mut limit));
        assert_eq!(limit.rlim_max, 700);
        fails(libc::prlimit(0x3f_ffff, libc::RLIMIT_NOFILE, ptr::null(), &mut limit), libc::ESRCH);
        let text = fs::read_to_string("/proc/self/limits").unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["Max", "open", "files", "600", "700", "files"]);
        as_user(1234, || {
            fails(libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: 600, rlim_max: 800 }), libc::EPERM);
            ok(libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: 600, rlim_max: 650 }));
        });
    });
}

#[test]
fn cpu_limit_signals() {
    isolated(|| unsafe {
        let pid = child(|| {
            ok(libc::setrlimit(libc::RLIMIT_CPU, &libc::rlimit { rlim_cur: 1, rlim_max: 3 }));
            loop {
                std::hint::spin_loop();
            }
        });
        assert_eq!(wait(pid), Status::Killed(libc::SIGXCPU));
    });
}

#[test]
fn uname_names_linux() {
    isolated(|| unsafe {
        let mut name: libc::utsname = zeroed();
        ok(libc::uname(&mut name));
        assert_eq!(CStr::from_ptr(name.sysname.as_ptr()), c"Linux");
        assert_eq!(CStr::from_ptr(name.machine.as_ptr()), c"x86_64");
        let release = CStr::from_ptr(name.release.as_ptr()).to_str().unwrap();
        assert_eq!(fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim(), release);
        let mut host = [0; 65];
        ok(libc::gethostname(host.as_mut_ptr(), 65));
        assert_eq!(CStr::from_ptr(host.as_ptr()), CStr::from_ptr(name.nodename.as_ptr()));
        fails(libc::syscall(libc::SYS_uname, 8), libc::EFAULT);
        as_user(1234, || fails(libc::sethostname(c"x".as_ptr(), 1), libc::EPERM));
    });
}

#[test]
fn sysinfo_agrees_with_proc() {
    isolated(|| unsafe {
        let mut info: libc::sysinfo = zeroed();
        ok(libc::sysinfo(&mut info));
        assert!(info.totalram > 0 && info.freeram <= info.totalram && info.procs > 0 && info.uptime >= 0);
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
        let kibibytes: u64 = total.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        assert_eq!(kibibytes, info.totalram * u64::from(info.mem_unit) / 1024);
    });
}

#[test]
fn getrandom_fills() {
    isolated(|| unsafe {
        let (mut first, mut second) = ([0u8; 64], [0u8; 64]);
        assert_eq!(ok(libc::getrandom(first.as_mut_ptr().cast(), 64, 0)), 64);
        assert_eq!(ok(libc::getrandom(second.as_mut_ptr().cast(), 64, libc::GRND_NONBLOCK)), 64);
        assert_ne!(first, second);
        fails(libc::getrandom(first.as_mut_ptr().cast(), 1, 0x100), libc::EINVAL);
        fails(libc::syscall(libc::SYS_getrandom, 8, 16, 0), libc::EFAULT);
    });
}

#[test]
fn proc_stat_fields_of_this_process() {
    isolated(|| unsafe {
        ok(libc::prctl(libc::PR_SET_NAME, c"a) b (c".as_ptr()));
        let text = fs::read_to_string("/proc/self/stat").unwrap();
        let (head, tail) = text.trim_end().rsplit_once(") ").unwrap();
        assert_eq!(head, format!("{} (a) b (c", libc::getpid()));
        let fields: Vec<&str> = tail.split(' ').collect();
        assert_eq!(fields.len(), 50);
        assert_eq!(fields[0], "R");
        assert_eq!(fields[1].parse(), Ok(libc::getppid()));
        assert_eq!(fields[2].parse(), Ok(libc::getpgrp()));
        assert_eq!(fields[3].parse(), Ok(libc::getsid(0)));
        assert_eq!(fields[17], "1");
    });
}

#[test]
fn proc_status_fields_of_this_process() {
    isolated(|| unsafe {
        assert_eq!(status("Pid"), libc::getpid().to_string());
        assert_eq!(status("Tgid"), libc::getpid().to_string());
        assert_eq!(status("PPid"), libc::getppid().to_string());
        assert_eq!(status("State"), "R (running)");
        assert_eq!(status("Threads"), "1");
        assert_eq!(status("Umask"), "0022");
        assert!(status("VmRSS").ends_with(" kB"));
        block(&[libc::SIGUSR1]);
        libc::raise(libc::SIGUSR1);
        libc::signal(libc::SIGUSR2, libc::SIG_IGN);
        assert_eq!(status("SigBlk"), "0000000000000200");
        assert_eq!(status("SigPnd"), "0000000000000200");
        assert_ne!(u64::from_str_radix(&status("SigIgn"), 16).unwrap() & 0x800, 0);
    });
}

#[test]
fn proc_cmdline_and_environ() {
    isolated(|| {
        let arguments = [c"sh", c"-c", c"cat /proc/$$/cmdline /proc/$$/environ; exit 0", c"x y"];
        let (text, _) = output_of(c"/bin/sh", &arguments, &[c"PATH=/usr/bin:/bin", c"A=b"]);
        let script = "cat /proc/$$/cmdline /proc/$$/environ; exit 0";
        assert_eq!(text, format!("sh\0-c\0{script}\0x y\0PATH=/usr/bin:/bin\0A=b\0"));
    });
}

#[test]
fn proc_lists_processes_and_threads() {
    isolated(|| unsafe {
        let pid = child(|| libc::pause());
        let listed = |pid: c_int| fs::read_dir("/proc").unwrap().any(|e| e.unwrap().file_name() == *pid.to_string());
        assert!(listed(libc::getpid()) && listed(pid));
        libc::kill(pid, libc::SIGKILL);
        wait(pid);
        assert!(!listed(pid));
        fails(open(c"/proc/999999999/stat", libc::O_RDONLY), libc::ENOENT);
        assert_eq!(fs::read_link("/proc/self").unwrap().to_str().unwrap(), libc::getpid().to_string());
        let own = format!("{0}/task/{0}", libc::getpid());
        assert_eq!(fs::read_link("/proc/thread-self").unwrap().to_str().unwrap(), own);
        fails(open(c"/proc/new", libc::O_CREAT | libc::O_RDWR), libc::ENOENT);
    });
}

#[test]
fn proc_of_the_system() {
    isolated(|| {
        let read = |path: &str| fs::read_to_string(path).unwrap();
        let uptime: Vec<f64> = read("/proc/uptime").split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!(uptime.len(), 2);
        assert_eq!(read("/proc/loadavg").split_whitespace().count(), 5);
        assert!(read("/proc/stat").starts_with("cpu  ") && read("/proc/stat").contains("\nbtime "));
        let processors = read("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor\t:")).count();
        // SAFETY: no memory is involved.
        assert_eq!(processors as i64, unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) });
        assert!(read("/proc/cpuinfo").contains("\nflags\t\t:"));
        assert!(read("/proc/version").starts_with("Linux version "));
        assert!(read("/proc/filesystems").contains("nodev\tproc\n"));
        assert!(read("/proc/sys/kernel/pid_max").trim().parse::<u32>().unwrap() >= 32768);
        assert_eq!(read("/proc/sys/kernel/ostype"), "Linux\n");
        assert!(read("/proc/sys/vm/overcommit_memory").trim().parse::<u32>().is_ok());
    });
}

#[test]
fn proc_mounts_name_root_and_proc() {
    isolated(|| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let has = |point: &str, kind: &str| {
            mounts.lines().any(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                fields.len() == 6 && fields[1] == point && (kind.is_empty() || fields[2] == kind)
            })
        };
        assert!(has("/", "") && has("/proc", "proc"), "{mounts}");
        let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(info.lines().all(|line| line.contains(" - ")));
    });
}

#[test]
fn reading_proc_in_small_parts_gives_the_whole() {
    isolated(|| {
        let whole = fs::read("/proc/self/limits").unwrap();
        let fd = ok(open(c"/proc/self/limits", libc::O_RDONLY));
        let mut parts = Vec::new();
        loop {
            let part = read_some(fd, 7);
            if part.is_empty() {
                break;
            }
            parts.extend(part);
        }
        assert_eq!(parts, whole);
        assert_eq!(fstat(fd).st_size, 0);
    });
}

#[test]
fn privileged_calls_of_a_user_give_eperm() {
    isolated(|| {
        as_user(1234, || unsafe {
            let none = ptr::null();
            fails(libc::mount(none, c"/".as_ptr(), none, 0, ptr::null()), libc::EPERM);
            fails(libc::umount2(c"/".as_ptr(), 0), libc::EPERM);
            fails(libc::unshare(libc::CLONE_NEWNS), libc::EPERM);
            let now = libc::timespec { tv_sec: 1, tv_nsec: 0 };
            fails(libc::clock_settime(libc::CLOCK_REALTIME, &now), libc::EPERM);
        });
    });
}

#[test]
fn io_priority_is_kept_and_passed_on() {
    isolated(|| unsafe {
        let get = |who: c_int| libc::syscall(libc::SYS_ioprio_get, 1, who);
        let set = |who: c_int, priority: c_int| libc::syscall(libc::SYS_ioprio_set, 1, who, priority);
        let best_effort = 2 << 13;
        ok(set(0, best_effort | 6));
        assert_eq!(ok(get(libc::getpid())), i64::from(best_effort | 6));
        in_child(|| assert_eq!(ok(get(0)), i64::from(best_effort | 6)));
        fails(set(0, 1), libc::EINVAL);
        fails(set(0, 5 << 13), libc::EINVAL);
        fails(set(0x3fff_ffff, best_effort), libc::ESRCH);
        fails(libc::syscall(libc::SYS_ioprio_get, 9, 0), libc::EINVAL);
        let parent = libc::getpid();
        as_user(1234, || {
            fails(set(0, 1 << 13), libc::EPERM);
            fails(set(parent, best_effort), libc::EPERM);
            ok(set(0, 3 << 13));
        });
    });
}

#[test]
fn proc_io_counts_what_is_read_and_written() {
    isolated(|| {
        let counts = || {
            let text = fs::read_to_string("/proc/self/io").unwrap();
            let value = |name: &str| -> u64 {
                let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                line.trim_start_matches(": ").parse().unwrap()
            };
            ["rchar", "wchar", "syscr", "syscw"].map(value)
        };
        let (reader, writer) = pipe();
        let before = counts();
        assert_eq!(write(writer, &[0; 1000]), 1000);
        assert_eq!(write(writer, &[0; 500]), 500);
        let after = counts();
        assert_eq!((after[1] - before[1], after[3] - before[3]), (1500, 2));
        read_some(reader, PAGE);
        assert!(counts()[0] >= after[0] + 1500 && counts()[2] > after[2]);
    });
}

#[test]
fn memory_policy_of_a_range_is_remembered() {
    const PREFERRED: c_int = 1;
    const BIND: c_int = 2;
    const OF_ADDRESS: c_int = 2;
    isolated(|| unsafe {
        let memory = anonymous(3 * PAGE, libc::MAP_PRIVATE);
        let mbind = |at: usize, mode: c_int, nodes: u64| {
            let at = memory.add(at * PAGE);
            libc::syscall(libc::SYS_mbind, at, PAGE, mode, &raw const nodes, 64, 0)
        };
        let policy = |at: usize| {
            let (mut mode, mut nodes) = (-1, [0u64; 16]);
            let at = memory.add(at * PAGE);
            ok(libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, nodes.as_mut_ptr(), 1024, at, OF_ADDRESS));
            (mode, nodes[0])
        };
        assert_eq!(policy(1), (0, 0));
        ok(mbind(1, BIND, 1));
        assert_eq!([policy(0), policy(1), policy(2)], [(0, 0), (BIND, 1), (0, 0)]);
        ok(mbind(2, PREFERRED, 1));
        assert_eq!(policy(2), (PREFERRED, 1));
        ok(mbind(1, 0, 0));
        assert_eq!(policy(1), (0, 0));
    });
}
