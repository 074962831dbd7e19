//! What is read of a task's memory: `maps`, `smaps`, `mem`, `cmdline`, `environ`, `auxv`.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::links::{file_name, reader_root};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::sentry::mm::MemoryManager;
use crate::sentry::mm::report::FileNames;
use crate::sentry::task::Task;
use crate::vfs::Path;
use crate::vfs::file::{File, OpenFile};
use crate::vfs::proc::subject::Subject;

/// Names as the reader sees them.
struct Names(Path);

impl FileNames for Names {
    fn describe(&self, file: &OpenFile) -> (Vec<u8>, u64, u64) {
        let attr = file.path().and_then(|path| path.attr().ok()).or_else(|| file.object().anonymous_attr());
        let (dev, ino) = attr.map_or((0, 0), |attr| (attr.dev, attr.ino));
        (file_name(&self.0, file), dev, ino)
    }
}

/// Memory that is gone shows nothing.
fn of_memory(task: &Arc<Task>, show: impl FnOnce(&MemoryManager) -> Vec<u8>) -> Result<Vec<u8>> {
    Ok(task.mm().map(|mm| show(&mm)).unwrap_or_default())
}

/// `cmdline`.
pub fn cmdline(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    of_memory(task, MemoryManager::cmdline)
}

/// `environ`.
pub fn environ(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    of_memory(task, MemoryManager::environ)
}

/// `auxv`.
pub fn auxv(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    of_memory(task, MemoryManager::auxv)
}

/// `maps`.
pub fn maps(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    of_memory(task, |mm| mm.maps(&Names(reader_root(task))))
}

/// `smaps`.
pub fn smaps(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    of_memory(task, |mm| mm.smaps(&Names(reader_root(task))))
}

/// `smaps_rollup`.
pub fn smaps_rollup(_: &Subject, task: &Arc<Task>) -> Result<Vec<u8>> {
    of_memory(task, |mm| roll_up(&mm.smaps(&Names(reader_root(task)))))
}

/// The lines of `smaps_rollup`, in order.
const ROLLUP: [&str; 21] = [
    "Rss",
    "Pss",
    "Pss_Dirty",
    "Pss_Anon",
    "Pss_File",
    "Pss_Shmem",
    "Shared_Clean",
    "Shared_Dirty",
    "Private_Clean",
    "Private_Dirty",
    "Referenced",
    "Anonymous",
    "KSM",
    "LazyFree",
    "AnonHugePages",
    "ShmemPmdMapped",
    "FilePmdMapped",
    "Shared_Hugetlb",
    "Private_Hugetlb",
    "Swap",
    "SwapPss",
];

/// The sums over the areas of a `smaps` text.
pub fn roll_up(smaps: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(smaps);
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    let mut bounds: Option<(&str, &str)> = None;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), second) = (words.next(), words.next()) else { continue };
        if let Some(name) = first.strip_suffix(':') {
            let value = second.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
            let sum = sums.entry(name).or_default();
            *sum = sum.saturating_add(value);
        } else if let Some((start, end)) = first.split_once('-') {
            bounds = Some((bounds.map_or(start, |(first, _)| first), end));
        }
    }
    let Some((start, end)) = bounds else { return Vec::new() };
    let sum = |name: &str| sums.get(name).copied().unwrap_or(0);
    let mut out = format!("{:<73}[rollup]\n", format!("{start}-{end} ---p 00000000 00:00 0 "));
    for name in ROLLUP.into_iter().chain(["Locked"]) {
        let value = match name {
            "Pss_Anon" => sum("Anonymous"),
            "Pss_File" => sum("Pss").saturating_sub(sum("Anonymous")),
            name => sum(name),
        };
        out.push_str(&format!("{:<16}{value:8} kB\n", format!("{name}:")));
    }
    out.into_bytes()
}

/// Opens `mem`. The right to look is asked for now; the memory is that of now, as on Linux, even after `execve(2)`.
pub fn open(subject: &Subject) -> Result<Arc<dyn File>> {
    let task = subject.traceable()?;
    // A zombie's opens, and reads as empty.
    Ok(Arc::new(Memory(task.mm().ok())))
}

struct Memory(Option<Arc<MemoryManager>>);

/// How much is copied at once.
const CHUNK: usize = 64 << 10;

impl File for Memory {
    /// `EIO` where nothing is mapped.
    fn read(&self, offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        let Some(mm) = &self.0 else { return Ok(0) };
        let mut done = 0usize;
        while sink.room() > 0 {
            let mut buf = vec![0u8; sink.room().min(CHUNK)];
            let at = offset.checked_add(done as u64).ok_or(Errno::EIO);
            let n = match at.and_then(|at| mm.space().read(at, &mut buf).map_err(|_| Errno::EIO)) {
                Ok(n) => n,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            let stored = match sink.put(&buf[..n]) {
                Err(_) if done > 0 => break,
                stored => stored?,
            };
            done += stored;
            if stored < buf.len() {
                break;
            }
        }
        Ok(done)
    }

    /// `EIO` where nothing is mapped. Unlike Linux's, a write does not reach memory that the program itself may not write.
    fn write(&self, offset: u64, source: &mut dyn Source) -> Result<usize> {
        let Some(mm) = &self.0 else { return Ok(0) };
        let mut done = 0usize;
        while source.left() > 0 {
            let bytes = match source.take_vec(CHUNK) {
                Err(_) if done > 0 => break,
                bytes => bytes?,
            };
            let at = offset.checked_add(done as u64).ok_or(Errno::EIO);
            let n = match at.and_then(|at| mm.space().write(at, &bytes).map_err(|_| Errno::EIO)) {
                Ok(n) => n,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            done += n;
            if n < bytes.len() || n == 0 {
                break;
            }
        }
        Ok(done)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
