//! Where log lines go: the debug log (`--debug-log`) and the user's log (`--log`).
//!
//! One line is one `write(2)` to a file opened with `O_APPEND`, so that the processes of a sandbox can share a file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::{Deserialize, Serialize};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `time level [command pid] message`.
    #[default]
    Text,
    /// One JSON object a line with `time`, `level`, `msg`, `command` and `pid`: what containerd and Docker read.
    Json,
}

/// One destination.
pub struct Sink {
    /// The file, opened for appending.
    pub file: File,
    /// How lines look there.
    pub format: Format,
    /// The least important level that is written.
    pub level: LevelFilter,
}

struct Logger {
    command: String,
    pid: u32,
    sinks: Vec<Sink>,
}

/// Sends the `log` crate's records to `sinks` from now on. `command` names the process in each line. Only the first call
/// in a process has an effect.
pub fn init(command: &str, sinks: Vec<Sink>) {
    let level = sinks.iter().map(|sink| sink.level).max().unwrap_or(LevelFilter::Off);
    let logger = Logger { command: command.to_owned(), pid: std::process::id(), sinks };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.sinks.iter().any(|sink| metadata.level() <= sink.level)
    }

    fn log(&self, record: &Record<'_>) {
        for sink in self.sinks.iter().filter(|sink| record.level() <= sink.level) {
            let line = self.line(sink.format, SystemTime::now(), record.level(), &record.args().to_string());
            // A full disk or a closed pipe must not stop the sandbox, and there is nowhere left to complain.
            let _ = (&sink.file).write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

impl Logger {
    fn line(&self, format: Format, time: SystemTime, level: Level, message: &str) -> String {
        let time = rfc3339(time);
        match format {
            // A message may hold what a container chose: it must not look like a line of its own.
            Format::Text => {
                let message = message.trim_end().replace('\n', "\\n");
                format!("{time} {level:5} [{} {}] {message}\n", self.command, self.pid)
            }
            Format::Json => {
                #[derive(Serialize)]
                struct Line<'a> {
                    time: &'a str,
                    level: &'a str,
                    msg: &'a str,
                    command: &'a str,
                    pid: u32,
                }
                let level = match level {
                    Level::Error => "error",
                    Level::Warn => "warning",
                    Level::Info => "info",
                    Level::Debug | Level::Trace => "debug",
                };
                let line = Line { time: &time, level, msg: message.trim_end(), command: &self.command, pid: self.pid };
                serde_json::to_string(&line).map(|line| line + "\n").unwrap_or_default()
            }
        }
    }
}

/// Opens a log file for appending, making the directories that lead to it.
pub fn open(path: &Path) -> std::io::Result<File> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// The file that `--debug-log=PATTERN` means for one command: `%COMMAND%`, `%ID%` and `%TIMESTAMP%` are replaced, and a
/// trailing slash stands for a directory with one file a command.
pub fn expand(pattern: &str, command: &str, id: &str, time: SystemTime) -> PathBuf {
    let pattern = match pattern.strip_suffix('/') {
        Some(directory) => format!("{directory}/runsc.log.%TIMESTAMP%.%COMMAND%.txt"),
        None => pattern.to_owned(),
    };
    let stamp: String = rfc3339(time).chars().map(|c| if c == 'T' { '-' } else { c }).filter(|c| *c != ':').collect();
    let stamp = stamp.trim_end_matches('Z');
    pattern.replace("%COMMAND%", command).replace("%ID%", id).replace("%TIMESTAMP%", stamp).into()
}

/// A time as RFC 3339 wants it, in UTC with microseconds: `2024-02-29T23:59:59.000001Z`.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_micros()
    )
}

/// The Gregorian date of a day counted from 1970-01-01.
fn civil(mut days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    // Whole 400-year cycles first, so that the loop below is short whatever the clock says.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let lengths = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for (month, length) in lengths.into_iter().enumerate() {
        if days < length {
            return (year, month + 1, days + 1);
        }
        days -= length;
    }
    (year, 12, 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, micros: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, micros * 1000)
    }

    #[test]
    fn times_are_gregorian() {
        assert_eq!(rfc3339(at(0, 0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(at(1_709_251_199, 1)), "2024-02-29T23:59:59.000001Z");
        assert_eq!(rfc3339(at(1_709_251_200, 0)), "2024-03-01T00:00:00.000000Z");
        assert_eq!(rfc3339(at(4_102_444_800, 0)), "2100-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(at(4_107_542_400, 0)), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn patterns_name_the_command() {
        let time = at(1_709_251_199, 1);
        let expected = Path::new("/l/runsc.log.2024-02-29-235959.000001.boot.txt");
        assert_eq!(expand("/l/", "boot", "c", time), expected);
        assert_eq!(expand("/l/%ID%.%COMMAND%", "run", "web", time), Path::new("/l/web.run"));
        assert_eq!(expand("/l/one.log", "run", "web", time), Path::new("/l/one.log"));
    }

    #[test]
    fn a_message_cannot_forge_a_json_line() {
        let logger = Logger { command: "boot".into(), pid: 7, sinks: Vec::new() };
        let line = logger.line(Format::Json, at(0, 0), Level::Warn, "a\n{\"level\":\"error\"}");
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "warning");
        assert_eq!(value["msg"], "a\n{\"level\":\"error\"}");
    }
}
