//! The system-call table of x86_64: number, name, handler, how far it goes, and what is to be known of it. Dispatch, traces
//! and `docs/compatibility.md` come from here. What is not listed gives `ENOSYS`.

use std::sync::LazyLock;

use super::args::{Handler, IntoHandler};
use super::{fs, futex, ipc, memory, misc, net, poll, process, signal, time};

/// How far a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// As on Linux.
    Full,
    /// With the limits that the note tells.
    Partial,
    /// Answers as a Linux that is configured without it, or as the note tells.
    Refused,
}

/// One call.
pub struct Entry {
    /// Its number.
    pub number: u64,
    /// Its name.
    pub name: &'static str,
    /// How far it goes.
    pub support: Support,
    /// What is to be known of it.
    pub note: &'static str,
    /// What answers it.
    pub handler: Box<dyn Handler + Send>,
}

/// No call of x86_64 has a higher number.
const MOST: usize = 512;

/// Calls by number.
pub struct Table(Vec<Option<Entry>>);

impl Table {
    fn add<A>(
        &mut self,
        number: u64,
        name: &'static str,
        support: Support,
        note: &'static str,
        function: impl IntoHandler<A>,
    ) {
        let entry = Entry { number, name, support, note, handler: function.into_handler() };
        let place = &mut self.0[number as usize];
        debug_assert!(place.is_none(), "{name} is in the table twice");
        *place = Some(entry);
    }

    /// All calls, in order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().flatten()
    }
}

/// The table.
pub static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table((0..MOST).map(|_| None).collect());
    files(&mut table);
    memory_calls(&mut table);
    processes(&mut table);
    signals(&mut table);
    waiting(&mut table);
    sockets(&mut table);
    clocks(&mut table);
    others(&mut table);
    table
});

/// The call with this number.
pub fn find(number: u64) -> Option<&'static Entry> {
    TABLE.0.get(usize::try_from(number).ok()?)?.as_ref()
}

macro_rules! rows {
    ($table:ident; $($number:literal $name:ident $support:ident $note:literal $handler:path;)*) => {
        $($table.add($number, stringify!($name), Support::$support, $note, $handler);)*
    };
}

/// Files, directories, descriptors.
fn files(table: &mut Table) {
    descriptors(table);
    names(table);
    attributes(table);
}

/// Reading, writing and what else is done to an open file.
fn descriptors(table: &mut Table) {
    rows! { table;
        0 read Full "" fs::io::read;
        1 write Full "" fs::io::write;
        2 open Full "" fs::open::open;
        3 close Full "" fs::fd::close;
        5 fstat Full "" fs::stat::fstat;
        8 lseek Full "" fs::io::lseek;
        16 ioctl Partial "what the file at hand knows" fs::ioctl::ioctl;
        17 pread64 Full "" fs::io::pread64;
        18 pwrite64 Full "" fs::io::pwrite64;
        19 readv Full "" fs::io::readv;
        20 writev Full "" fs::io::writev;
        22 pipe Full "" fs::pipe::pipe;
        32 dup Full "" fs::fd::dup;
        33 dup2 Full "" fs::fd::dup2;
        40 sendfile Full "" fs::sendfile::sendfile;
        72 fcntl Partial "no leases (F_SETLEASE: EINVAL, as on a file system without them), no directory notifications" fs::fcntl::fcntl;
        73 flock Partial "only of files in a file system" fs::locks::flock;
        74 fsync Full "" fs::sync::fsync;
        75 fdatasync Full "" fs::sync::fdatasync;
        77 ftruncate Full "" fs::size::ftruncate;
        78 getdents Full "" fs::dir::getdents;
        85 creat Full "" fs::open::creat;
        138 fstatfs Full "" fs::statfs::fstatfs;
        162 sync Full "" fs::sync::sync;
        187 readahead Full "" fs::sync::readahead;
        217 getdents64 Full "" fs::dir::getdents64;
        221 fadvise64 Full "" fs::sync::fadvise64;
        253 inotify_init Full "" fs::inotify::inotify_init;
        254 inotify_add_watch Full "" fs::inotify::inotify_add_watch;
        255 inotify_rm_watch Full "" fs::inotify::inotify_rm_watch;
        257 openat Full "" fs::open::openat;
        275 splice Full "" fs::splice::splice;
        276 tee Full "" fs::splice::tee;
        277 sync_file_range Full "" fs::sync::sync_file_range;
        278 vmsplice Full "copies" fs::splice::vmsplice;
        285 fallocate Partial "what the file system at hand knows" fs::size::fallocate;
        292 dup3 Full "" fs::fd::dup3;
        293 pipe2 Partial "no notification pipes" fs::pipe::pipe2;
        294 inotify_init1 Full "" fs::inotify::inotify_init1;
        295 preadv Full "" fs::io::preadv;
        296 pwritev Full "" fs::io::pwritev;
        306 syncfs Full "" fs::sync::syncfs;
        319 memfd_create Partial "no huge pages" fs::pipe::memfd_create;
        326 copy_file_range Full "" fs::sendfile::copy_file_range;
        327 preadv2 Partial "no RWF_ATOMIC, no RWF_DONTCACHE" fs::io::preadv2;
        328 pwritev2 Partial "no RWF_ATOMIC, no RWF_DONTCACHE" fs::io::pwritev2;
        436 close_range Full "" fs::fd::close_range;
        437 openat2 Full "" fs::open::openat2;
    }
}

/// What is done to names.
fn names(table: &mut Table) {
    rows! { table;
        79 getcwd Full "" fs::dir::getcwd;
        80 chdir Full "" fs::dir::chdir;
        81 fchdir Full "" fs::dir::fchdir;
        82 rename Full "" fs::link::rename;
        83 mkdir Full "" fs::dir::mkdir;
        84 rmdir Full "" fs::dir::rmdir;
        86 link Full "" fs::link::link;
        87 unlink Full "" fs::link::unlink;
        88 symlink Full "" fs::link::symlink;
        89 readlink Full "" fs::link::readlink;
        95 umask Full "" fs::dir::umask;
        133 mknod Full "" fs::link::mknod;
        155 pivot_root Full "" fs::mount::pivot_root;
        161 chroot Full "" fs::dir::chroot;
        163 acct Refused "not configured" fs::handle::acct;
        165 mount Partial "tmpfs, ramfs, devpts, proc, sysfs; bind, move, remount, propagation types" fs::mount::mount;
        166 umount2 Partial "no MNT_EXPIRE" fs::mount::umount2;
        167 swapon Refused "not configured" fs::handle::swap;
        168 swapoff Refused "not configured" fs::handle::swap;
        258 mkdirat Full "" fs::dir::mkdirat;
        259 mknodat Full "" fs::link::mknodat;
        263 unlinkat Full "" fs::link::unlinkat;
        264 renameat Full "" fs::link::renameat;
        265 linkat Full "" fs::link::linkat;
        266 symlinkat Full "" fs::link::symlinkat;
        267 readlinkat Full "" fs::link::readlinkat;
        303 name_to_handle_at Refused "EOPNOTSUPP" fs::handle::name_to_handle_at;
        304 open_by_handle_at Refused "there are no handles" fs::handle::open_by_handle_at;
        316 renameat2 Full "" fs::link::renameat2;
    }
}

/// What is told of nodes and changed of them.
fn attributes(table: &mut Table) {
    rows! { table;
        4 stat Full "" fs::stat::stat;
        6 lstat Full "" fs::stat::lstat;
        21 access Full "" fs::attr::access;
        76 truncate Full "" fs::size::truncate;
        90 chmod Full "" fs::attr::chmod;
        91 fchmod Full "" fs::attr::fchmod;
        92 chown Full "" fs::attr::chown;
        93 fchown Full "" fs::attr::fchown;
        94 lchown Full "" fs::attr::lchown;
        132 utime Full "" fs::times::utime;
        137 statfs Full "" fs::statfs::statfs;
        188 setxattr Full "" fs::xattr::setxattr;
        189 lsetxattr Full "" fs::xattr::lsetxattr;
        190 fsetxattr Full "" fs::xattr::fsetxattr;
        191 getxattr Full "" fs::xattr::getxattr;
        192 lgetxattr Full "" fs::xattr::lgetxattr;
        193 fgetxattr Full "" fs::xattr::fgetxattr;
        194 listxattr Full "" fs::xattr::listxattr;
        195 llistxattr Full "" fs::xattr::llistxattr;
        196 flistxattr Full "" fs::xattr::flistxattr;
        197 removexattr Full "" fs::xattr::removexattr;
        198 lremovexattr Full "" fs::xattr::lremovexattr;
        199 fremovexattr Full "" fs::xattr::fremovexattr;
        235 utimes Full "" fs::times::utimes;
        260 fchownat Full "" fs::attr::fchownat;
        261 futimesat Full "" fs::times::futimesat;
        262 newfstatat Full "" fs::stat::newfstatat;
        268 fchmodat Full "" fs::attr::fchmodat;
        269 faccessat Full "" fs::attr::faccessat;
        280 utimensat Full "" fs::times::utimensat;
        332 statx Full "" fs::stat::statx;
        439 faccessat2 Full "" fs::attr::faccessat2;
        452 fchmodat2 Full "" fs::attr::fchmodat2;
    }
}

/// Memory.
fn memory_calls(table: &mut Table) {
    rows! { table;
        9 mmap Full "" memory::mmap;
        10 mprotect Full "" memory::mprotect;
        11 munmap Full "" memory::munmap;
        12 brk Full "" memory::brk;
        25 mremap Full "" memory::mremap;
        26 msync Full "" memory::msync;
        27 mincore Full "" memory::mincore;
        28 madvise Partial "advice about huge pages and merging is taken and does nothing" memory::madvise;
        149 mlock Full "" memory::mlock;
        150 munlock Full "" memory::munlock;
        151 mlockall Full "" memory::mlockall;
        152 munlockall Full "" memory::munlockall;
        237 mbind Partial "one memory node" memory::mbind;
        238 set_mempolicy Partial "one memory node" memory::set_mempolicy;
        239 get_mempolicy Partial "one memory node" memory::get_mempolicy;
        310 process_vm_readv Full "" memory::process_vm_readv;
        311 process_vm_writev Full "" memory::process_vm_writev;
        324 membarrier Partial "without restartable sequences and the choice of one CPU" memory::membarrier;
        325 mlock2 Full "" memory::mlock2;
        329 pkey_mprotect Full "" memory::pkey_mprotect;
        330 pkey_alloc Refused "as on a processor without protection keys" memory::pkey_alloc;
        331 pkey_free Refused "as pkey_alloc" memory::pkey_free;
    }
}

/// Processes, threads, credentials, limits.
fn processes(table: &mut Table) {
    rows! { table;
        322 execveat Full "" process::exec::execveat;
        24 sched_yield Full "" process::sched::sched_yield;
        39 getpid Full "" process::ids::getpid;
        56 clone Partial "not every namespace" process::clone::clone;
        57 fork Full "" process::clone::fork;
        58 vfork Full "" process::clone::vfork;
        59 execve Full "a program that a signal ends leaves no core, whatever RLIMIT_CORE says" process::exec::execve;
        61 wait4 Full "" process::wait::wait4;
        97 getrlimit Full "" process::limits::getrlimit;
        98 getrusage Full "" process::wait::getrusage;
        100 times Full "" process::wait::times;
        102 getuid Full "" process::creds::getuid;
        104 getgid Full "" process::creds::getgid;
        105 setuid Full "" process::creds::setuid;
        106 setgid Full "" process::creds::setgid;
        107 geteuid Full "" process::creds::geteuid;
        108 getegid Full "" process::creds::getegid;
        109 setpgid Full "" process::ids::setpgid;
        110 getppid Full "" process::ids::getppid;
        111 getpgrp Full "" process::ids::getpgrp;
        112 setsid Full "" process::ids::setsid;
        113 setreuid Full "" process::creds::setreuid;
        114 setregid Full "" process::creds::setregid;
        115 getgroups Full "" process::creds::getgroups;
        116 setgroups Full "" process::creds::setgroups;
        117 setresuid Full "" process::creds::setresuid;
        118 getresuid Full "" process::creds::getresuid;
        119 setresgid Full "" process::creds::setresgid;
        120 getresgid Full "" process::creds::getresgid;
        121 getpgid Full "" process::ids::getpgid;
        122 setfsuid Full "" process::creds::setfsuid;
        123 setfsgid Full "" process::creds::setfsgid;
        124 getsid Full "" process::ids::getsid;
        125 capget Full "" process::creds::capget;
        126 capset Full "" process::creds::capset;
        135 personality Partial "only the Linux persona" process::prctl::personality;
        140 getpriority Full "" process::priority::getpriority;
        141 setpriority Full "what the host lets the sandbox have: without CAP_SYS_RESOURCE there, a worse nice value stays" process::priority::setpriority;
        142 sched_setparam Partial "as sched_setscheduler" process::sched::sched_setparam;
        143 sched_getparam Full "" process::sched::sched_getparam;
        144 sched_setscheduler Partial "only the normal policies; realtime ones: EPERM" process::sched::sched_setscheduler;
        145 sched_getscheduler Full "" process::sched::sched_getscheduler;
        146 sched_get_priority_max Full "" process::sched::sched_get_priority_max;
        147 sched_get_priority_min Full "" process::sched::sched_get_priority_min;
        148 sched_rr_get_interval Full "" process::sched::sched_rr_get_interval;
        157 prctl Partial "what a container can use of it" process::prctl::prctl;
        158 arch_prctl Full "" process::ids::arch_prctl;
        160 setrlimit Full "" process::limits::setrlimit;
        186 gettid Full "" process::ids::gettid;
        203 sched_setaffinity Full "" process::sched::sched_setaffinity;
        204 sched_getaffinity Full "" process::sched::sched_getaffinity;
        218 set_tid_address Full "" process::ids::set_tid_address;
        231 exit_group Full "" process::clone::exit_group;
        247 waitid Full "" process::wait::waitid;
        272 unshare Partial "not every namespace" process::clone::unshare;
        251 ioprio_set Partial "kept and shown; the host's devices serve the sandbox as one" process::priority::ioprio_set;
        252 ioprio_get Full "" process::priority::ioprio_get;
        302 prlimit64 Full "" process::limits::prlimit;
        314 sched_setattr Partial "as sched_setscheduler; no clamped utilisation" process::sched::sched_setattr;
        315 sched_getattr Full "" process::sched::sched_getattr;
        309 getcpu Full "" process::sched::getcpu;
        424 pidfd_send_signal Full "" process::pidfd::pidfd_send_signal;
        434 pidfd_open Full "" process::pidfd::pidfd_open;
        435 clone3 Partial "as clone; no set_tid, no cgroup" process::clone::clone3;
        438 pidfd_getfd Full "" process::pidfd::pidfd_getfd;
    }
}

/// Signals and futexes.
fn signals(table: &mut Table) {
    rows! { table;
        13 rt_sigaction Full "" signal::rt_sigaction;
        14 rt_sigprocmask Full "" signal::rt_sigprocmask;
        15 rt_sigreturn Full "" signal::rt_sigreturn;
        34 pause Full "" signal::pause;
        62 kill Full "" signal::kill;
        127 rt_sigpending Full "" signal::rt_sigpending;
        128 rt_sigtimedwait Full "" signal::rt_sigtimedwait;
        129 rt_sigqueueinfo Full "" signal::rt_sigqueueinfo;
        130 rt_sigsuspend Full "" signal::rt_sigsuspend;
        131 sigaltstack Full "" signal::sigaltstack;
        200 tkill Full "" signal::tkill;
        202 futex Full "" futex::futex;
        219 restart_syscall Full "" signal::restart_syscall;
        234 tgkill Full "" signal::tgkill;
        273 set_robust_list Full "" futex::set_robust_list;
        274 get_robust_list Full "" futex::get_robust_list;
        282 signalfd Full "" signal::signalfd;
        289 signalfd4 Full "" signal::signalfd4;
        297 rt_tgsigqueueinfo Full "" signal::rt_tgsigqueueinfo;
        449 futex_waitv Full "" futex::futex_waitv;
    }
}

/// Waiting for several things: poll, select, epoll, and the descriptors made for it.
fn waiting(table: &mut Table) {
    rows! { table;
        7 poll Full "" poll::poll;
        23 select Full "" poll::select::select;
        213 epoll_create Full "" poll::epoll::epoll_create;
        232 epoll_wait Full "" poll::epoll::epoll_wait;
        233 epoll_ctl Full "" poll::epoll::epoll_ctl;
        270 pselect6 Full "" poll::select::pselect6;
        271 ppoll Full "" poll::ppoll;
        281 epoll_pwait Full "" poll::epoll::epoll_pwait;
        283 timerfd_create Full "" poll::epoll::timerfd_create;
        284 eventfd Full "" poll::epoll::eventfd;
        286 timerfd_settime Full "" poll::epoll::timerfd_settime;
        287 timerfd_gettime Full "" poll::epoll::timerfd_gettime;
        290 eventfd2 Full "" poll::epoll::eventfd2;
        291 epoll_create1 Full "" poll::epoll::epoll_create1;
        441 epoll_pwait2 Full "" poll::epoll::epoll_pwait2;
    }
}

/// Sockets.
fn sockets(table: &mut Table) {
    rows! { table;
        41 socket Full "" net::socket;
        42 connect Full "" net::connect;
        43 accept Full "" net::accept;
        44 sendto Full "" net::message::sendto;
        45 recvfrom Full "" net::message::recvfrom;
        46 sendmsg Full "" net::message::sendmsg;
        47 recvmsg Full "" net::message::recvmsg;
        48 shutdown Full "" net::shutdown;
        49 bind Full "" net::bind;
        50 listen Full "" net::listen;
        51 getsockname Full "" net::getsockname;
        52 getpeername Full "" net::getpeername;
        53 socketpair Full "" net::socketpair;
        54 setsockopt Full "SO_PRIORITY, SO_MARK: kept, as there are neither queues, nor rules nor filters that look at them; TCP_FASTOPEN_CONNECT: EOPNOTSUPP, as with tcp_fastopen = 0" net::option::setsockopt;
        55 getsockopt Full "TCP_INFO: congestion window and retransmission timeout are 0" net::option::getsockopt;
        288 accept4 Full "" net::accept4;
        299 recvmmsg Full "" net::message::recvmmsg;
        307 sendmmsg Full "" net::message::sendmmsg;
    }
}

/// Clocks and timers.
fn clocks(table: &mut Table) {
    rows! { table;
        35 nanosleep Full "" time::nanosleep;
        36 getitimer Full "" time::timers::getitimer;
        37 alarm Full "" time::timers::alarm;
        38 setitimer Full "" time::timers::setitimer;
        96 gettimeofday Full "" time::gettimeofday;
        159 adjtimex Partial "only to read" time::adjtimex;
        164 settimeofday Refused "as clock_settime" time::settimeofday;
        201 time Full "" time::time;
        222 timer_create Full "" time::timers::timer_create;
        223 timer_settime Full "" time::timers::timer_settime;
        224 timer_gettime Full "" time::timers::timer_gettime;
        225 timer_getoverrun Full "" time::timers::timer_getoverrun;
        226 timer_delete Full "" time::timers::timer_delete;
        227 clock_settime Refused "the clocks are the host's" time::clock_settime;
        228 clock_gettime Full "" time::clock_gettime;
        229 clock_getres Full "" time::clock_getres;
        230 clock_nanosleep Full "" time::clock_nanosleep;
        305 clock_adjtime Partial "only to read" time::clock_adjtime;
    }
}

/// The machine, System V IPC, and what is refused.
fn others(table: &mut Table) {
    rows! { table;
        29 shmget Full "" ipc::shm::shmget;
        30 shmat Partial "after fork, attachments of parent and child count as one" ipc::shm::shmat;
        31 shmctl Partial "without SHM_STAT, SHM_INFO and SHM_LOCK" ipc::shm::shmctl;
        63 uname Full "" misc::uname;
        64 semget Full "" ipc::sem::semget;
        65 semop Full "" ipc::sem::semop;
        66 semctl Partial "without SEM_STAT and SEM_INFO" ipc::sem::semctl;
        67 shmdt Full "" ipc::shm::shmdt;
        99 sysinfo Full "loads are the host's, and memory where the container has no limit" misc::sysinfo;
        103 syslog Partial "the boot log can be read, not cleared" misc::syslog;
        153 vhangup Refused "the host's affair" misc::not_permitted;
        169 reboot Refused "the sandbox ends with its first process" misc::reboot;
        170 sethostname Full "" misc::sethostname;
        171 setdomainname Full "" misc::setdomainname;
        172 iopl Refused "the host's affair" misc::not_permitted;
        173 ioperm Refused "the host's affair" misc::not_permitted;
        175 init_module Refused "the host's affair" misc::not_permitted;
        176 delete_module Refused "the host's affair" misc::not_permitted;
        179 quotactl Refused "the host's affair" misc::not_permitted;
        212 lookup_dcookie Refused "the host's affair" misc::not_permitted;
        220 semtimedop Full "" ipc::sem::semtimedop;
        246 kexec_load Refused "the host's affair" misc::not_permitted;
        308 setns Refused "no namespaces to enter yet" misc::setns;
        313 finit_module Refused "the host's affair" misc::not_permitted;
        317 seccomp Partial "no listeners: SECCOMP_FILTER_FLAG_NEW_LISTENER gives EINVAL" process::seccomp::seccomp;
        318 getrandom Full "" misc::getrandom;
        320 kexec_file_load Refused "the host's affair" misc::not_permitted;
    }
}

/// `docs/compatibility.md`.
pub fn compatibility_page() -> String {
    let count = |support| TABLE.entries().filter(|entry| entry.support == support).count();
    let mut page = format!(
        "# System calls\n\n\
        Made from the table in `src/sentry/syscalls/table.rs`: `RUNSC_WRITE_DOCS=1 cargo test --lib compatibility_page`.\n\n\
        Of x86_64's system calls {} are answered as Linux does, {} with the limits that the note tells, and {} are refused \
        as a Linux would that is configured without them. What is not listed fails with `ENOSYS` and a line in the debug \
        log.\n\n| number | call | support | note |\n| --- | --- | --- | --- |\n| 60 | exit | full | |\n",
        count(Support::Full) + 1,
        count(Support::Partial),
        count(Support::Refused),
    );
    for entry in TABLE.entries() {
        let support = match entry.support {
            Support::Full => "full",
            Support::Partial => "partial",
            Support::Refused => "refused",
        };
        let note = if entry.note.is_empty() { String::new() } else { format!(" {}", entry.note) };
        page.push_str(&format!("| {} | {} | {support} |{note} |\n", entry.number, entry.name));
    }
    page + NOTES
}

/// What is to be known beside the calls: the end of `docs/compatibility.md`.
const NOTES: &str = "
# Notes

## Network counters

`/proc/net/snmp`, `snmp6` and `netstat` have Linux's names in Linux's order. Within the sandbox, where bytes go from buffer to
buffer, each hand-over counts as a packet of `lo`. These are always 0, as what they count does not happen here:

- `Ip` and `Ip6`: `ForwDatagrams`, `InNoRoutes`, `InTooBigErrors`: nothing is forwarded, and what arrives for nobody is counted
  by `InAddrErrors`. `InDiscards` and `OutDiscards` count packets of an interface without IPv6 alone.
- `Icmp`: `OutErrors`, `OutRateLimitGlobal`, `OutRateLimitHost`.
- `Udp`: `SndbufErrors`, `MemErrors`; all of `UdpLite`.
- `TcpExt`: `PruneCalled`, `RcvPruned`, `OfoPruned`, `TCPRcvQDrop`: the window that is offered is there. Of the many others that
  Linux has since, none is shown.
- `/proc/net/dev` and `/sys/class/net/*/statistics`: errors of a wire, `multicast`, `compressed`.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compatibility_page_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/compatibility.md");
        if std::env::var_os("RUNSC_WRITE_DOCS").is_some() {
            std::fs::write(path, compatibility_page()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert!(page == compatibility_page(), "docs/compatibility.md is not what the table says: see its first lines");
    }

    #[test]
    fn calls_are_found_by_their_numbers() {
        let name = |number: i64| find(number as u64).map(|entry| entry.name);
        assert_eq!(name(libc::SYS_epoll_wait), Some("epoll_wait"));
        assert_eq!(name(libc::SYS_recvmsg), Some("recvmsg"));
        assert_eq!(name(libc::SYS_prlimit64), Some("prlimit64"));
        assert_eq!(find(u64::MAX).map(|entry| entry.name), None);
        assert!(TABLE.entries().all(|entry| name(entry.number as i64) == Some(entry.name)));
    }
}
