//! Control files: one value a line, one write a change.

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::container::error::{Error, Result};
use crate::errno::describe;

/// The directory of a cgroup in one hierarchy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dir<'a>(pub &'a Path);

impl Dir<'_> {
    /// Whether the kernel offers `file` here.
    pub fn has(self, file: &str) -> bool {
        self.0.join(file).exists()
    }

    /// Writes `value` in one `write(2)`, as the kernel wants it. Never makes the file.
    pub fn write(self, file: &str, value: impl Display) -> io::Result<()> {
        let mut opened = OpenOptions::new().write(true).truncate(true).open(self.0.join(file))?;
        opened.write_all(value.to_string().as_bytes())
    }

    /// Writes what `linux.resources.FIELD` asks for.
    pub fn set(self, field: &str, file: &str, value: impl Display) -> Result<()> {
        let value = value.to_string();
        self.write(file, &value).map_err(|error| self.refused(field, file, &value, &error))
    }

    /// The error of a write that failed.
    pub fn refused(self, field: &str, file: &str, value: &str, error: &io::Error) -> Error {
        let path = self.0.join(file);
        let problem = match error.kind() {
            io::ErrorKind::NotFound => format!("this host's kernel does not offer {file}"),
            _ => format!("write {value:?} to {}: {}", path.display(), describe(error)),
        };
        refusal(field, problem)
    }

    /// The content of a file.
    pub fn read(self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.0.join(file))
    }

    /// A file with one number; `None` when it is not there. `max` is the largest number.
    pub fn number(self, file: &str) -> Option<u64> {
        let text = self.read(file).ok()?;
        match text.trim() {
            "max" => Some(u64::MAX),
            // -1 in cgroup v1 means no limit.
            "-1" => Some(u64::MAX),
            number => number.parse().ok(),
        }
    }

    /// A file of `NAME NUMBER` lines.
    pub fn table(self, file: &str) -> Vec<(String, u64)> {
        let text = self.read(file).unwrap_or_default();
        let row = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        text.lines().filter_map(row).collect()
    }

    /// One number of a file of `NAME NUMBER` lines.
    pub fn entry(self, file: &str, name: &str) -> Option<u64> {
        self.table(file).into_iter().find_map(|(found, value)| (found == name).then_some(value))
    }

    /// The processes in it.
    pub fn processes(self) -> io::Result<Vec<i32>> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

/// `linux.resources.FIELD: PROBLEM`.
pub(super) fn refusal(field: &str, problem: impl Display) -> Error {
    Error::Usage(format!("linux.resources.{field}: {problem}"))
}
