//! `stat`, `statm`, `status` and their like: `proc_pid_stat(5)`, `proc_pid_status(5)`.
//!
//! Page faults are handled by the host, which also decides when a thread is preempted, on which CPU it runs and what goes to
//! a disk, and tells the sentry none of it: those counts are 0.

use std::fmt::Write;
use std::sync::Arc;

use crate::errno::Result;
use crate::platform::placement;
use crate::sentry::mm::report::Sizes;
use crate::sentry::mm::{Layout, UNLIMITED};
use crate::sentry::signal::SigSet;
use crate::sentry::task::usage::{IoCounts, Usage};
use crate::sentry::task::{Task, TaskState};
use crate::vfs::proc::subject::{Subject, may_look_into};

/// Nanoseconds of a clock tick: `sysconf(_SC_CLK_TCK)` is 100.
pub const TICK_NS: u64 = 10_000_000;

/// A page in bytes.
const PAGE: u64 = 4096;

/// The task's place among others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    parent: i32,
    pgid: i32,
    sid: i32,
    exit_signal: i32,
    exit_status: i32,
    children: Usage,
}

impl Place {
    fn of(task: &Task) -> Place {
        let tree = task.kernel.tree.lock();
        tree.node(task.pid()).map_or(Place::default(), |node| Place {
            parent: node.parent,
            pgid: node.pgid,
            sid: node.sid,
            exit_signal: node.exit_signal,
            exit_status: node.zombie.map_or(0, |status| status.wait_status()),
            children: node.children_usage,
        })
    }
}

fn state(task: &Task) -> (char, &'static str) {
    match task.state() {
        TaskState::Running => ('R', "R (running)"),
        TaskState::Sleeping => ('S', "S (sleeping)"),
        TaskState::Stopped => ('T', "T (stopped)"),
        TaskState::Zombie => ('Z', "Z (zombie)"),
    }
}

fn usage(subject: &Subject, task: &Task) -> Usage {
    if subject.is_thread() { task.usage() } else { task.group.usage() }
}

/// The controlling terminal's device number as `stat` shows it, and its foreground process group.
fn terminal(task: &Task, sid: i32) -> (u64, i32) {
    match task.kernel.terminals.controlling(sid) {
        Some(tty) => {
            let rdev = crate::vfs::tty::slave_rdev(tty.index());
            let (major, minor) = (u64::from(libc::major(rdev)), u64::from(libc::minor(rdev)));
            (minor & 0xff | major << 8 | (minor & !0xff) << 12, tty.foreground().unwrap_or(-1))
        }
        None => (0, -1),
    }
}

/// `stat`.
pub fn stat(subject: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    let place = Place::of(task);
    let (tty, foreground) = terminal(task, place.sid);
    let used = usage(subject, task);
    let mm = task.mm().ok();
    let sizes = mm.as_ref().map(|mm| mm.sizes()).unwrap_or_default();
    let permitted = may_look_into(task);
    let layout = mm.as_ref().map(|mm| mm.layout()).unwrap_or_default();
    let (ignored, caught) = task.group.handlers().ignored_and_caught();
    let (pending, blocked) = (task.pending_parts().0, task.blocked());
    let nice = task.scheduling.nice();
    let since = if subject.is_thread() { task.start_ns } else { task.group.start_ns };
    let low = |set: SigSet| set.0 & 0x7fff_ffff;

    let mut text = format!("{} (", subject.id()).into_bytes();
    text.extend_from_slice(&task.name());
    let mut rest = String::from(")");
    let mut put = |value: &dyn std::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = write!(rest, " {value}");
    };
    put(&state(task).0);
    for number in [place.parent, place.pgid, place.sid] {
        put(&number);
    }
    put(&tty);
    put(&foreground);
    put(&0x0040_0000); // flags: PF_RANDOMIZE
    for _faults in 0..4 {
        put(&0);
    }
    for ns in [used.user_ns, used.system_ns, place.children.user_ns, place.children.system_ns] {
        put(&(ns / TICK_NS));
    }
    put(&(20 + nice));
    put(&nice);
    put(&task.group.threads().len().max(1));
    put(&0); // itrealvalue
    put(&(since.saturating_sub(task.kernel.boot_ns) / TICK_NS));
    put(&sizes.total);
    put(&(sizes.resident / PAGE));
    put(&task.limit(libc::RLIMIT_RSS));
    let code = |addr: u64| {
        if mm.is_none() {
            0
        } else if permitted {
            addr
        } else {
            1
        }
    };
    let data = |addr: u64| if permitted { addr } else { 0 };
    put(&code(layout.start_code));
    put(&code(layout.end_code));
    put(&data(layout.start_stack));
    put(&0); // kstkesp, kstkeip: only of what dumps core
    put(&0);
    for set in [pending, blocked, ignored, caught] {
        put(&low(set));
    }
    put(&u8::from(permitted && task.state() == TaskState::Sleeping)); // wchan
    put(&0); // nswap, cnswap
    put(&0);
    put(&if subject.is_thread() && task.tid() != task.pid() { -1 } else { place.exit_signal });
    put(&0); // processor
    put(&0); // rt_priority
    put(&(task.scheduling.policy() & !libc::SCHED_RESET_ON_FORK));
    for _unknown in ["delayacct_blkio_ticks", "guest_time", "cguest_time"] {
        put(&0);
    }
    let Layout { start_data, end_data, start_brk, arg_start, arg_end, env_start, env_end, .. } = layout;
    for addr in [start_data, end_data, start_brk, arg_start, arg_end, env_start, env_end] {
        put(&data(addr));
    }
    put(&if permitted { place.exit_status } else { 0 });
    rest.push('\n');
    text.extend_from_slice(rest.as_bytes());
    Ok(text)
}

/// `statm`.
pub fn statm(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    let sizes = task.mm().map(|mm| mm.sizes()).unwrap_or_default();
    let pages = |bytes: u64| bytes / PAGE;
    let Sizes { total, resident, shared, exe, data, stack, .. } = sizes;
    let text = format!(
        "{} {} {} {} 0 {} 0\n",
        pages(total),
        pages(resident),
        pages(shared),
        exe.div_ceil(PAGE),
        pages(data.saturating_add(stack))
    );
    Ok(text.into_bytes())
}

/// `schedstat`: time on a CPU, time waiting for one (not known), turns.
pub fn schedstat(subject: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    let used = usage(subject, task);
    let turns = used.voluntary_switches.saturating_add(1);
    Ok(format!("{} 0 {turns}\n", used.user_ns.saturating_add(used.system_ns)).into_bytes())
}

/// `children`: those that the thread made or took over, zombies included.
pub fn children(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    let tree = task.kernel.tree.lock();
    let own = tree.node(task.pid()).map(|node| node.children.iter()).into_iter().flatten();
    let made = own.filter(|&&pid| tree.node(pid).is_some_and(|child| child.parent_tid == task.tid()));
    Ok(made.map(|pid| format!("{pid} ")).collect::<String>().into_bytes())
}

/// `io`. What of it went to or came from a disk is the host's to know.
pub fn io(subject: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    let IoCounts { read_bytes, written_bytes, reads, writes } = usage(subject, task).io;
    let rows = [
        ("rchar", read_bytes),
        ("wchar", written_bytes),
        ("syscr", reads),
        ("syscw", writes),
        ("read_bytes", 0),
        ("write_bytes", 0),
        ("cancelled_write_bytes", 0),
    ];
    Ok(rows.iter().map(|(name, value)| format!("{name}: {value}\n")).collect::<String>().into_bytes())
}

/// `status`.
pub fn status(subject: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    let place = Place::of(task);
    let mut text = b"Name:\t".to_vec();
    escape_name(&task.name(), &mut text);
    let mut rest = String::from("\n");
    identity(&mut rest, subject, task, &place);
    if let Ok(mm) = task.mm() {
        memory(&mut rest, &mm.sizes());
    }
    signals(&mut rest, task);
    privileges(&mut rest, task);
    processors(&mut rest, subject, task);
    text.extend_from_slice(rest.as_bytes());
    Ok(text)
}

/// The name, with what would break the line escaped.
fn escape_name(name: &[u8], text: &mut Vec<u8>) {
    for &byte in name {
        match byte {
            b'\n' => text.extend_from_slice(b"\\n"),
            b'\\' => text.extend_from_slice(b"\\\\"),
            _ => text.push(byte),
        }
    }
}

// In what follows `write!` goes to a String and cannot fail.

fn identity(text: &mut String, subject: &Subject, task: &Task, place: &Place) {
    let creds = task.creds();
    let mut row = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{name}:\t{value}");
    };
    // The umask goes with the file-system context that an ended task has let go of.
    if task.mm().is_ok() {
        row("Umask", &format_args!("{:04o}", task.fs().get().umask));
    }
    row("State", &state(task).1);
    row("Tgid", &task.pid());
    row("Ngid", &0);
    row("Pid", &subject.id());
    row("PPid", &place.parent);
    row("TracerPid", &0);
    row("Uid", &format_args!("{}\t{}\t{}\t{}", creds.ruid, creds.euid, creds.suid, creds.fsuid));
    row("Gid", &format_args!("{}\t{}\t{}\t{}", creds.rgid, creds.egid, creds.sgid, creds.fsgid));
    row("FDSize", &task.files().map_or(0, |files| table_size(files.list().last().copied())));
    let groups: Vec<String> = creds.groups.iter().map(u32::to_string).collect();
    row("Groups", &format_args!("{} ", groups.join(" ")));
    row("NStgid", &task.pid());
    row("NSpid", &subject.id());
    row("NSpgid", &place.pgid);
    row("NSsid", &place.sid);
    row("Kthread", &0);
}

/// How big Linux would have made a table whose highest descriptor is `last`.
fn table_size(last: Option<i32>) -> u32 {
    last.map_or(64, |last| (last as u32 + 1).next_power_of_two().max(64))
}

fn memory(text: &mut String, sizes: &Sizes) {
    let anonymous = sizes.resident.saturating_sub(sizes.shared);
    // A page of tables for each 2 MiB that are in use, and three above them.
    let tables = (sizes.resident.div_ceil(2 << 20) + 3) * PAGE;
    let rows = [
        ("VmPeak", sizes.peak),
        ("VmSize", sizes.total),
        ("VmLck", sizes.locked),
        ("VmPin", 0),
        ("VmHWM", sizes.resident),
        ("VmRSS", sizes.resident),
        ("RssAnon", anonymous),
        ("RssFile", sizes.resident - anonymous),
        ("RssShmem", 0),
        ("VmData", sizes.data),
        ("VmStk", sizes.stack),
        ("VmExe", sizes.exe),
        ("VmLib", sizes.lib),
        ("VmPTE", tables),
        ("VmSwap", 0),
        ("HugetlbPages", 0),
    ];
    for (name, bytes) in rows {
        let _ = writeln!(text, "{name}:\t{:8} kB", bytes / 1024);
    }
    text.push_str("CoreDumping:\t0\nTHP_enabled:\t1\nuntag_mask:\t0xffffffffffffffff\n");
}

fn signals(text: &mut String, task: &Task) {
    let (own, shared) = task.pending_parts();
    let (ignored, caught) = task.group.handlers().ignored_and_caught();
    let queued = task.kernel.pending_signals(task.creds().ruid).get();
    let _ = writeln!(text, "Threads:\t{}", task.group.threads().len().max(1));
    let limit = task.limit(libc::RLIMIT_SIGPENDING);
    let _ = writeln!(text, "SigQ:\t{queued}/{}", if limit == UNLIMITED { u64::MAX } else { limit });
    let sets =
        [("SigPnd", own), ("ShdPnd", shared), ("SigBlk", task.blocked()), ("SigIgn", ignored), ("SigCgt", caught)];
    for (name, set) in sets {
        let _ = writeln!(text, "{name}:\t{:016x}", set.0);
    }
}

fn privileges(text: &mut String, task: &Task) {
    let creds = task.creds();
    let sets = [
        ("CapInh", creds.inheritable),
        ("CapPrm", creds.permitted),
        ("CapEff", creds.effective),
        ("CapBnd", creds.bounding),
        ("CapAmb", creds.ambient),
    ];
    for (name, caps) in sets {
        let _ = writeln!(text, "{name}:\t{:016x}", caps.bits());
    }
    let _ = writeln!(text, "NoNewPrivs:\t{}", u8::from(creds.no_new_privs));
    let _ = writeln!(text, "Seccomp:\t{}\nSeccomp_filters:\t{}", task.seccomp.mode(), task.seccomp.filters());
    text.push_str("Speculation_Store_Bypass:\tunknown\n");
    text.push_str("SpeculationIndirectBranch:\tunknown\n");
}

fn processors(text: &mut String, subject: &Subject, task: &Task) {
    let affinity = task.scheduling.affinity();
    let count = placement::count();
    let allowed: Vec<usize> = (0..count).filter(|&cpu| placement::allows(&affinity, cpu)).collect();
    let _ = writeln!(text, "Cpus_allowed:\t{}", mask(&allowed, count));
    let _ = writeln!(text, "Cpus_allowed_list:\t{}", ranges(&allowed));
    text.push_str("Mems_allowed:\t00000000,00000001\nMems_allowed_list:\t0\n");
    let switches = usage(subject, task).voluntary_switches;
    let _ = writeln!(text, "voluntary_ctxt_switches:\t{switches}\nnonvoluntary_ctxt_switches:\t0");
}

/// A set of `count` CPUs in hexadecimal, in groups of 32, the highest first and no longer than it need be.
pub fn mask(set: &[usize], count: usize) -> String {
    let groups = count.div_ceil(32).max(1);
    let word =
        |group: usize| set.iter().filter(|&&cpu| cpu / 32 == group).fold(0u32, |word, cpu| word | 1 << (cpu % 32));
    let parts = (0..groups).rev().map(|group| {
        let bits = if group == groups - 1 { (count - group * 32).max(1) } else { 32 };
        format!("{:0width$x}", word(group), width = bits.div_ceil(4))
    });
    parts.collect::<Vec<_>>().join(",")
}

/// A sorted set as `0-3,5`.
pub fn ranges(set: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &cpu in set {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let show =
        |(first, last): &(usize, usize)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.iter().map(show).collect::<Vec<_>>().join(",")
}
