//! What the host counts for the container in its cgroup: files that the command line has opened, since the sentry can open
//! none. Told in the words of cgroup v2, whichever version the host has.
//!
//! The host counts all of the sandbox: the container's memory, its files in memory, and the sentry's own.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// More than any of the files has.
const LONGEST: usize = 64 << 10;

/// Rows of `memory.stat` in v2, with what v1 calls them: of the cgroup and those below it, then of itself.
const STAT: [(&str, &str, &str); 13] = [
    ("anon", "total_rss", "rss"),
    ("file", "total_cache", "cache"),
    ("shmem", "total_shmem", "shmem"),
    ("file_mapped", "total_mapped_file", "mapped_file"),
    ("file_dirty", "total_dirty", "dirty"),
    ("file_writeback", "total_writeback", "writeback"),
    ("anon_thp", "total_rss_huge", "rss_huge"),
    ("inactive_anon", "total_inactive_anon", "inactive_anon"),
    ("active_anon", "total_active_anon", "active_anon"),
    ("inactive_file", "total_inactive_file", "inactive_file"),
    ("active_file", "total_active_file", "active_file"),
    ("unevictable", "total_unevictable", "unevictable"),
    ("pgfault", "total_pgfault", "pgfault"),
];

/// The open files.
#[derive(Debug, Default)]
pub struct HostCounters {
    files: Vec<(String, File)>,
}

impl HostCounters {
    /// From files by their names, of either version.
    pub fn new(files: Vec<(String, OwnedFd)>) -> HostCounters {
        HostCounters { files: files.into_iter().map(|(name, fd)| (name, fd.into())).collect() }
    }

    /// A file as it is now; `None` when there is none, or nothing can be read any more.
    fn read(&self, name: &str) -> Option<String> {
        let (_, file) = self.files.iter().find(|(own, _)| own == name)?;
        let mut text = vec![0; LONGEST];
        let mut len = 0;
        while len < text.len() {
            match file.read_at(&mut text[len..], len as u64) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        text.truncate(len);
        String::from_utf8(text).ok()
    }

    fn number(&self, v2: &str, v1: &str) -> Option<u64> {
        self.read(v2).or_else(|| self.read(v1))?.trim().parse().ok()
    }

    /// Memory in use, in bytes.
    pub fn memory(&self) -> Option<u64> {
        self.number("memory.current", "memory.usage_in_bytes")
    }

    /// The most that was in use.
    pub fn memory_peak(&self) -> Option<u64> {
        self.number("memory.peak", "memory.max_usage_in_bytes")
    }

    /// `memory.stat`, with the rows that both versions have.
    pub fn memory_stat(&self) -> Option<Vec<(&'static str, u64)>> {
        let rows = table(&self.read("memory.stat")?);
        let find = |name: &str| rows.iter().find(|(own, _)| own == name).map(|&(_, number)| number);
        let row = |&(v2, all, own): &(&'static str, &str, &str)| {
            Some((v2, find(v2).filter(|_| find("anon").is_some()).or_else(|| find(all)).or_else(|| find(own))?))
        };
        Some(STAT.iter().filter_map(row).collect())
    }

    /// How often the limit of memory was hit, and how many processes were killed for it.
    pub fn memory_events(&self) -> Option<(u64, u64)> {
        let (file, max) = match self.read("memory.events") {
            Some(text) => (table(&text), None),
            None => (table(&self.read("memory.oom_control")?), self.number("memory.failcnt", "memory.failcnt")),
        };
        let find = |name: &str| file.iter().find(|(own, _)| own == name).map(|&(_, number)| number);
        Some((max.or_else(|| find("max")).unwrap_or(0), find("oom_kill").unwrap_or(0)))
    }

    /// Periods of CPU time, those in which there was none left, and microseconds that were waited for it.
    pub fn throttling(&self) -> Option<[(&'static str, u64); 3]> {
        let rows = table(&self.read("cpu.stat")?);
        let find = |name: &str| rows.iter().find(|(own, _)| own == name).map_or(0, |&(_, number)| number);
        // v1 counts nanoseconds.
        let micros = find("throttled_usec").max(find("throttled_time") / 1000);
        Some([("nr_periods", find("nr_periods")), ("nr_throttled", find("nr_throttled")), ("throttled_usec", micros)])
    }
}

/// `NAME NUMBER` lines.
fn table(text: &str) -> Vec<(String, u64)> {
    let row = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(files: &[(&str, &str)]) -> HostCounters {
        let open = |&(name, text): &(&str, &str)| {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            (name.to_owned(), file.into())
        };
        HostCounters::new(files.iter().map(open).collect())
    }

    #[test]
    fn both_versions_are_told_alike() {
        let v2 = counters(&[
            ("memory.current", "4096\n"),
            ("memory.peak", "8192\n"),
            ("memory.stat", "anon 1000\nfile 2000\nkernel 9\nshmem 500\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n"),
            ("cpu.stat", "usage_usec 9\nnr_periods 4\nnr_throttled 2\nthrottled_usec 7\n"),
        ]);
        let v1 = counters(&[
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.max_usage_in_bytes", "8192\n"),
            ("memory.stat", "cache 1\nrss 1\nshmem 1\ntotal_cache 2000\ntotal_rss 1000\ntotal_shmem 500\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("memory.failcnt", "3\n"),
            ("cpu.stat", "nr_periods 4\nnr_throttled 2\nthrottled_time 7000\n"),
        ]);
        for counters in [v2, v1] {
            assert_eq!((counters.memory(), counters.memory_peak()), (Some(4096), Some(8192)));
            assert_eq!(counters.memory_stat().unwrap(), [("anon", 1000), ("file", 2000), ("shmem", 500)]);
            assert_eq!(counters.memory_events(), Some((3, 2)));
            let throttling = [("nr_periods", 4), ("nr_throttled", 2), ("throttled_usec", 7)];
            assert_eq!(counters.throttling(), Some(throttling));
        }
    }

    #[test]
    fn without_files_nothing_is_known() {
        let none = HostCounters::default();
        assert_eq!((none.memory(), none.memory_peak(), none.memory_events()), (None, None, None));
        assert!(none.memory_stat().is_none() && none.throttling().is_none());
        assert_eq!(counters(&[("memory.current", "max\n")]).memory(), None);
    }
}
