//! `/proc/sys`: `proc_sys(5)`.
//!
//! What may be written takes effect; what has no effect here cannot be written (mode 0444), so that a program that sets it
//! hears so rather than believes it.

mod conf;

use std::sync::{Arc, Weak};

use super::{caller, system};
use crate::errno::{Errno, Result};
use crate::netstack::tcp::congestion_controls;
use crate::sentry::creds::{Caps, LAST_CAP};
use crate::sentry::fdtable::NR_OPEN;
use crate::sentry::kernel::Kernel;
use crate::sentry::mm::MAX_MAP_COUNT;
use crate::sentry::namespaces::UtsNamespace;
use crate::sentry::syscalls::misc::{RELEASE, VERSION};
use crate::sentry::sysctl::Net;
use crate::sentry::task::tree::PID_MAX;
use crate::vfs::inotify;
use crate::vfs::kernfs::{Content, Dir};
use crate::vfs::pipe::PIPE_MAX_SIZE;

/// Adds the tree to `sys`.
pub fn fill(sys: &Arc<Dir>, kernel: &Weak<Kernel>) {
    let add = |path: &str, value: &str| {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        sys.make_dirs(dir).add_text(name, 0o444, &format!("{value}\n"));
    };
    for (path, value) in FIXED {
        add(path, value);
    }
    for (path, value) in limits() {
        add(path, &value.to_string());
    }
    conf::add(sys, kernel);
    for (which, path) in Net::all() {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        sys.make_dirs(dir).add_content(name, 0o644, Arc::new(NetSetting { kernel: kernel.clone(), which }));
    }
    let controls: Vec<&str> = congestion_controls().collect();
    add("net/ipv4/tcp_congestion_control", controls.first().unwrap_or(&""));
    add("net/ipv4/tcp_available_congestion_control", &controls.join(" "));
    add("net/ipv4/tcp_allowed_congestion_control", &controls.join(" "));
    let names = sys.make_dirs("kernel");
    add("kernel/osrelease", RELEASE);
    add("kernel/version", VERSION);
    names.add_content("hostname", 0o644, Arc::new(UtsName { kernel: kernel.clone(), host: true }));
    names.add_content("domainname", 0o644, Arc::new(UtsName { kernel: kernel.clone(), host: false }));
    let random = sys.make_dirs("kernel/random");
    let boot_id = uuid();
    random.add_file("boot_id", 0o444, move || format!("{boot_id}\n").into_bytes());
    random.add_file("uuid", 0o444, || format!("{}\n", uuid()).into_bytes());
    let files = sys.make_dirs("fs");
    files.add_content("file-nr", 0o444, system::from_kernel(|_| format!("0\t0\t{}\n", i64::MAX), kernel));
}

pub use self::conf::v6_off;

/// The value of a parameter that never changes, by its path beneath `/proc/sys`.
pub fn fixed(path: &str) -> Option<&'static str> {
    let value = |table: &'static [(&str, &str)], path: &str| {
        table.iter().find(|(known, _)| *known == path).map(|(_, value)| *value)
    };
    value(FIXED, path).or_else(|| conf::fixed(path))
}

/// A parameter of the network that can be set.
struct NetSetting {
    kernel: Weak<Kernel>,
    which: Net,
}

impl Content for NetSetting {
    fn read(&self) -> Result<Vec<u8>> {
        let kernel = self.kernel.upgrade().ok_or(Errno::EIO)?;
        Ok(format!("{}\n", self.which.show(kernel.net.settings())).into_bytes())
    }

    /// `EINVAL`. Who may write is told by the file's mode, as Linux has it for root.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        // As with sysctl_writes_strict: a write that does not begin at 0 changes nothing.
        if offset > 0 {
            return Ok(());
        }
        let kernel = self.kernel.upgrade().ok_or(Errno::EIO)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Errno::EINVAL)?;
        self.which.set(kernel.net.settings(), text)
    }
}

/// Limits that others define.
fn limits() -> [(&'static str, u64); 12] {
    [
        ("kernel/cap_last_cap", u64::from(LAST_CAP)),
        ("kernel/pid_max", PID_MAX as u64),
        ("kernel/threads-max", PID_MAX as u64),
        ("kernel/ngroups_max", 65_536),
        ("vm/max_map_count", MAX_MAP_COUNT as u64),
        ("vm/mmap_min_addr", 65_536),
        ("fs/file-max", i64::MAX as u64),
        ("fs/nr_open", NR_OPEN),
        ("fs/pipe-max-size", PIPE_MAX_SIZE as u64),
        ("fs/inotify/max_queued_events", inotify::MAX_QUEUED_EVENTS as u64),
        ("fs/inotify/max_user_watches", inotify::MAX_WATCHES as u64),
        ("fs/epoll/max_user_watches", crate::vfs::epoll::MAX_WATCHES as u64),
    ]
}

/// Paths and what they show.
const FIXED: &[(&str, &str)] = &[
    ("fs/aio-max-nr", "65536"),
    ("fs/aio-nr", "0"),
    ("fs/inotify/max_user_instances", "128"),
    ("fs/lease-break-time", "45"),
    ("fs/leases-enable", "1"),
    ("fs/overflowgid", "65534"),
    ("fs/overflowuid", "65534"),
    ("fs/pipe-user-pages-hard", "0"),
    ("fs/pipe-user-pages-soft", "16384"),
    ("fs/protected_fifos", "0"),
    ("fs/protected_hardlinks", "0"),
    ("fs/protected_regular", "0"),
    ("fs/protected_symlinks", "0"),
    ("fs/suid_dumpable", "0"),
    ("kernel/auto_msgmni", "0"),
    ("kernel/core_pattern", "core"),
    ("kernel/core_pipe_limit", "0"),
    ("kernel/core_uses_pid", "0"),
    ("kernel/dmesg_restrict", "0"),
    ("kernel/hung_task_timeout_secs", "0"),
    ("kernel/kptr_restrict", "1"),
    ("kernel/msgmax", "8192"),
    ("kernel/msgmnb", "16384"),
    ("kernel/msgmni", "32000"),
    ("kernel/ostype", "Linux"),
    ("kernel/overflowgid", "65534"),
    ("kernel/overflowuid", "65534"),
    ("kernel/panic", "0"),
    ("kernel/panic_on_oops", "0"),
    ("kernel/perf_event_paranoid", "2"),
    ("kernel/printk", "4\t4\t1\t7"),
    ("kernel/random/entropy_avail", "256"),
    ("kernel/random/poolsize", "256"),
    ("kernel/random/urandom_min_reseed_secs", "60"),
    ("kernel/random/write_wakeup_threshold", "256"),
    ("kernel/randomize_va_space", "2"),
    ("kernel/sched_autogroup_enabled", "0"),
    ("kernel/sched_child_runs_first", "0"),
    ("kernel/sched_rr_timeslice_ms", "100"),
    ("kernel/sched_rt_period_us", "1000000"),
    ("kernel/sched_rt_runtime_us", "950000"),
    ("kernel/sem", "32000\t4194304\t500\t32000"),
    ("kernel/shm_rmid_forced", "0"),
    ("kernel/shmall", "18446744073692774399"),
    ("kernel/shmmax", "18446744073692774399"),
    ("kernel/shmmni", "4096"),
    ("kernel/sysctl_writes_strict", "1"),
    ("kernel/sysrq", "0"),
    ("kernel/tainted", "0"),
    ("kernel/unprivileged_bpf_disabled", "2"),
    ("net/core/default_qdisc", "pfifo_fast"),
    ("net/core/netdev_max_backlog", "1000"),
    ("net/core/optmem_max", "131072"),
    ("net/ipv4/icmp_echo_ignore_broadcasts", "1"),
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv4/tcp_abort_on_overflow", "0"),
    ("net/ipv4/tcp_dsack", "0"),
    ("net/ipv4/tcp_ecn", "0"),
    ("net/ipv4/tcp_fastopen", "0"),
    ("net/ipv4/tcp_max_syn_backlog", "4096"),
    ("net/ipv4/tcp_max_tw_buckets", "16384"),
    ("net/ipv4/tcp_mem", "1048576\t1048576\t2097152"),
    ("net/ipv4/tcp_moderate_rcvbuf", "0"),
    ("net/ipv4/tcp_retries1", "3"),
    ("net/ipv4/tcp_rfc1337", "0"),
    ("net/ipv4/tcp_sack", "1"),
    ("net/ipv4/tcp_slow_start_after_idle", "0"),
    ("net/ipv4/tcp_timestamps", "0"),
    ("net/ipv4/tcp_tw_reuse", "0"),
    ("net/ipv4/tcp_window_scaling", "1"),
    ("net/ipv4/udp_rmem_min", "4096"),
    ("net/ipv4/udp_wmem_min", "4096"),
    ("net/unix/max_dgram_qlen", "10"),
    ("vm/dirty_background_bytes", "0"),
    ("vm/dirty_background_ratio", "10"),
    ("vm/dirty_bytes", "0"),
    ("vm/dirty_expire_centisecs", "3000"),
    ("vm/dirty_ratio", "20"),
    ("vm/dirty_writeback_centisecs", "500"),
    ("vm/min_free_kbytes", "67584"),
    ("vm/nr_hugepages", "0"),
    ("vm/nr_overcommit_hugepages", "0"),
    ("vm/oom_dump_tasks", "1"),
    ("vm/oom_kill_allocating_task", "0"),
    ("vm/overcommit_kbytes", "0"),
    ("vm/overcommit_memory", "0"),
    ("vm/overcommit_ratio", "50"),
    ("vm/page-cluster", "3"),
    ("vm/panic_on_oom", "0"),
    ("vm/swappiness", "60"),
    ("vm/vfs_cache_pressure", "100"),
    ("vm/zone_reclaim_mode", "0"),
];

/// A random (version 4) UUID.
fn uuid() -> String {
    let mut bytes = [0u8; 16];
    // SAFETY: the buffer is valid for writes of its length. So few bytes are never cut short.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    format_uuid(bytes)
}

/// Random bytes as a UUID: RFC 4122, section 4.4.
fn format_uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// `kernel/hostname` and `kernel/domainname` of the caller's namespace.
struct UtsName {
    kernel: Weak<Kernel>,
    host: bool,
}

/// `__NEW_UTS_LEN`.
const NAME_MAX: usize = 64;

impl UtsName {
    /// The caller's namespace; the first process's when the sentry itself looks.
    fn namespace(&self) -> Result<Arc<UtsNamespace>> {
        let kernel = self.kernel.upgrade().ok_or(Errno::EIO)?;
        let task = caller(&self.kernel).map_or_else(|| kernel.thread(1), Ok)?;
        Ok(task.namespaces().uts.clone())
    }
}

impl Content for UtsName {
    fn read(&self) -> Result<Vec<u8>> {
        let names = self.namespace()?;
        let mut text = if self.host { names.host() } else { names.domain() };
        text.push(b'\n');
        Ok(text)
    }

    /// `EPERM` without `CAP_SYS_ADMIN`.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if let Some(caller) = caller(&self.kernel) {
            caller.require(Caps::SYS_ADMIN)?;
        }
        // As with sysctl_writes_strict: a write that does not begin at 0 changes nothing.
        if offset > 0 {
            return Ok(());
        }
        let names = self.namespace()?;
        let end = bytes.iter().position(|byte| matches!(byte, b'\n' | 0)).unwrap_or(bytes.len());
        let name = &bytes[..end.min(NAME_MAX)];
        if self.host {
            names.set_host(name)
        } else {
            names.set_domain(name)
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_uuid_says_so() {
        assert_eq!(format_uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_ne!(uuid(), uuid());
    }
}
