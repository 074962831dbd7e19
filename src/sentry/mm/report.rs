//! What `/proc/PID` shows of memory: `maps`, `smaps`, `statm`, `cmdline`, `environ`, `auxv`.

use std::io::Write;

use super::area::{Area, AreaFlags, Backing};
use super::map::Totals;
use super::user::PAGE;
use super::{Inner, MemoryManager};
use crate::vfs::file::OpenFile;

/// How files are shown: the name as the reader's root sees it, and the device and inode number.
pub trait FileNames {
    /// The name, device number and inode number of a mapped file.
    fn describe(&self, file: &OpenFile) -> (Vec<u8>, u64, u64);
}

/// The column that names start in.
const NAME_COLUMN: usize = 73;

/// The longest `cmdline` or `environ` that is read.
const ARGS_MAX: u64 = 2 << 20;

/// Sizes in bytes, for `/proc/PID/status`, `statm` and `stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// `VmSize`.
    pub total: u64,
    /// `VmPeak`.
    pub peak: u64,
    /// `VmRSS`: an upper bound, what is mapped and accessible without the untouched part of big reservations being known.
    /// The host's count of the process's pages is out of reach from an empty root.
    pub resident: u64,
    /// `ru_maxrss` of `getrusage(2)`: the most that [`Sizes::resident`] was.
    pub peak_resident: u64,
    /// `RssFile` and `RssShmem` in it.
    pub shared: u64,
    /// `VmData`.
    pub data: u64,
    /// `VmStk`.
    pub stack: u64,
    /// `VmExe`.
    pub exe: u64,
    /// `VmLib`.
    pub lib: u64,
    /// `VmLck`.
    pub locked: u64,
}

/// See [`Sizes::resident`].
pub(super) fn resident(totals: Totals) -> u64 {
    totals.total.min(totals.data.saturating_add(totals.exec))
}

/// Not what is lent to the platform.
fn is_shown(area: &&Area) -> bool {
    !area.flags.contains(AreaFlags::LENT)
}

impl MemoryManager {
    /// Gives the areas in order to `emit`, from the first that ends above `from` on, until it returns `false`. The lock is
    /// held meanwhile.
    pub fn for_each_area(&self, from: u64, emit: &mut dyn FnMut(&Area) -> bool) {
        let inner = self.lock();
        for area in inner.map.overlapping(&(from..u64::MAX)).filter(is_shown) {
            if !emit(area) {
                break;
            }
        }
    }

    /// Whether the page at `addr` is private memory that may be read and written.
    pub fn is_private_writable(&self, addr: u64) -> bool {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        self.lock().map.find(addr).is_some_and(|area| !area.shared && area.prot == access)
    }

    /// `/proc/PID/maps`.
    pub fn maps(&self, names: &dyn FileNames) -> Vec<u8> {
        let mut text = Vec::new();
        let (areas, tell) = self.snapshot();
        for area in &areas {
            line(&mut text, area, &tell, names);
        }
        text
    }

    /// `/proc/PID/smaps`. What the host alone knows (dirty, referenced, swapped) is 0; see [`Sizes::resident`].
    pub fn smaps(&self, names: &dyn FileNames) -> Vec<u8> {
        let mut text = Vec::new();
        let (areas, tell) = self.snapshot();
        for area in &areas {
            line(&mut text, area, &tell, names);
            details(&mut text, area);
        }
        text
    }

    /// The areas, so that names are found without the lock.
    fn snapshot(&self) -> (Vec<Area>, Places) {
        let inner = self.lock();
        (inner.map.iter().filter(is_shown).cloned().collect(), Places::of(&inner))
    }

    /// Sizes.
    pub fn sizes(&self) -> Sizes {
        let inner = self.lock();
        let totals = inner.map.totals();
        let exe = inner.layout.end_code.saturating_sub(inner.layout.start_code).next_multiple_of(PAGE).min(totals.exec);
        Sizes {
            total: totals.total,
            peak: inner.peak.max(totals.total),
            resident: resident(totals),
            peak_resident: inner.peak_resident.max(resident(totals)),
            shared: totals.exec,
            data: totals.data,
            stack: totals.stack,
            exe,
            lib: totals.exec - exe,
            locked: totals.locked,
        }
    }

    /// `/proc/PID/cmdline`: the argument strings as they are in memory now. A program that has written past their end
    /// (`setproctitle`) is followed into the environment, as on Linux.
    pub fn cmdline(&self) -> Vec<u8> {
        let layout = self.layout();
        let mut text = self.read_range(layout.arg_start, layout.arg_end);
        if text.last().is_some_and(|&last| last != 0) && layout.env_end > layout.arg_end {
            let whole = self.read_range(layout.arg_start, layout.env_end);
            let end = whole.iter().position(|&byte| byte == 0).unwrap_or(whole.len());
            text = whole[..end].to_vec();
        }
        text
    }

    /// `/proc/PID/environ`.
    pub fn environ(&self) -> Vec<u8> {
        let layout = self.layout();
        self.read_range(layout.env_start, layout.env_end)
    }

    /// `/proc/PID/auxv`.
    pub fn auxv(&self) -> Vec<u8> {
        self.lock().auxv.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn read_range(&self, start: u64, end: u64) -> Vec<u8> {
        let len = end.saturating_sub(start).min(ARGS_MAX);
        let mut bytes = vec![0u8; len as usize];
        let n = self.space.read(start, &mut bytes).unwrap_or(0);
        bytes.truncate(n);
        bytes
    }
}

/// What names areas by where they are.
struct Places {
    brk: std::ops::Range<u64>,
    stack: u64,
}

impl Places {
    fn of(inner: &Inner) -> Places {
        Places { brk: inner.layout.start_brk..inner.layout.brk, stack: inner.layout.start_stack }
    }

    fn name(&self, area: &Area) -> Vec<u8> {
        match &area.backing {
            Backing::Special(name) => name.as_bytes().to_vec(),
            Backing::SharedAnonymous(_) => match &area.name {
                Some(name) => [b"[anon_shmem:", &name[..], b"]"].concat(),
                None => b"/dev/zero (deleted)".to_vec(),
            },
            Backing::Anonymous => match &area.name {
                Some(name) => [b"[anon:", &name[..], b"]"].concat(),
                None if area.start < self.brk.end && self.brk.start < area.end => b"[heap]".to_vec(),
                None if area.range().contains(&self.stack) => b"[stack]".to_vec(),
                None => Vec::new(),
            },
            Backing::File(_) => Vec::new(),
        }
    }
}

fn line(text: &mut Vec<u8>, area: &Area, tell: &Places, names: &dyn FileNames) {
    let letter = |bit: i32, letter: char| if area.prot & bit != 0 { letter } else { '-' };
    let (name, dev, ino) = match area.file() {
        Some(file) => names.describe(&file.file),
        None => (
            tell.name(area),
            0,
            match area.backing {
                Backing::SharedAnonymous(object) => object,
                _ => 0,
            },
        ),
    };
    let begin = text.len();
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    let _never_fails = write!(
        text,
        "{:08x}-{:08x} {}{}{}{} {:08x} {major:02x}:{minor:02x} {ino} ",
        area.start,
        area.end,
        letter(libc::PROT_READ, 'r'),
        letter(libc::PROT_WRITE, 'w'),
        letter(libc::PROT_EXEC, 'x'),
        if area.shared { 's' } else { 'p' },
        area.offset,
    );
    if !name.is_empty() {
        text.resize(text.len().max(begin + NAME_COLUMN), b' ');
        for byte in name {
            if byte == b'\n' { text.extend_from_slice(b"\\012") } else { text.push(byte) }
        }
    }
    text.push(b'\n');
}

fn details(text: &mut Vec<u8>, area: &Area) {
    let size = area.len() / 1024;
    let resident = if area.prot == 0 { 0 } else { size };
    let anonymous = if matches!(area.backing, Backing::Anonymous) { resident } else { 0 };
    let locked = if area.flags.contains(AreaFlags::LOCKED) { resident } else { 0 };
    let rows = [
        ("Size", size),
        ("KernelPageSize", 4),
        ("MMUPageSize", 4),
        ("Rss", resident),
        ("Pss", resident),
        ("Pss_Dirty", 0),
        ("Shared_Clean", 0),
        ("Shared_Dirty", 0),
        ("Private_Clean", resident),
        ("Private_Dirty", 0),
        ("Referenced", resident),
        ("Anonymous", anonymous),
        ("KSM", 0),
        ("LazyFree", 0),
        ("AnonHugePages", 0),
        ("ShmemPmdMapped", 0),
        ("FilePmdMapped", 0),
        ("Shared_Hugetlb", 0),
        ("Private_Hugetlb", 0),
        ("Swap", 0),
        ("SwapPss", 0),
        ("Locked", locked),
    ];
    for (name, value) in rows {
        let _never_fails = writeln!(text, "{:<16}{value:8} kB", format!("{name}:"));
    }
    let _never_fails = writeln!(text, "THPeligible:           0\nVmFlags: {}", vm_flags(area));
}

/// The two-letter flags of `proc_pid_smaps(5)`.
fn vm_flags(area: &Area) -> String {
    let has = |bits: i32, bit: i32| bits & bit != 0;
    let shared_store = area.shared && has(area.max_prot, libc::PROT_WRITE);
    let flags = [
        (has(area.prot, libc::PROT_READ), "rd "),
        (has(area.prot, libc::PROT_WRITE), "wr "),
        (has(area.prot, libc::PROT_EXEC), "ex "),
        (shared_store, "sh "),
        (has(area.max_prot, libc::PROT_READ), "mr "),
        (has(area.max_prot, libc::PROT_WRITE), "mw "),
        (has(area.max_prot, libc::PROT_EXEC), "me "),
        (area.shared, "ms "),
        (area.flags.contains(AreaFlags::GROWSDOWN), "gd "),
        (area.flags.contains(AreaFlags::LOCKED), "lo "),
        (area.flags.contains(AreaFlags::DONTFORK), "dc "),
        (area.flags.contains(AreaFlags::DONTEXPAND), "de "),
        (!area.shared && has(area.prot, libc::PROT_WRITE), "ac "),
        (area.flags.contains(AreaFlags::NORESERVE), "nr "),
        (area.flags.contains(AreaFlags::WIPEONFORK), "wf "),
        (area.flags.contains(AreaFlags::DONTDUMP), "dd "),
    ];
    flags.iter().filter(|(set, _)| *set).map(|(_, letters)| *letters).collect()
}
