//! The kernel's log: what `dmesg(1)`, `syslog(2)` and `/dev/kmsg` show.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::Mutex;

/// How many lines are kept; older ones go.
const LINES_MAX: usize = 1024;
/// The longest line that is kept; the rest is cut.
const LINE_MAX: usize = 976;
/// Facility 0 (kernel), level 6 (informational).
pub const KERNEL_INFO: u8 = 6;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number, from 0.
    pub sequence: u64,
    /// Facility times 8, plus level: `syslog(3)`.
    pub priority: u8,
    /// Microseconds since the log began.
    pub micros: u64,
    /// The text, without a line end.
    pub text: String,
}

impl Record {
    /// As `syslog(2)` gives it: `<6>[    0.001234] text` and a line end.
    pub fn syslog_line(&self) -> String {
        let (secs, micros) = (self.micros / 1_000_000, self.micros % 1_000_000);
        format!("<{}>[{secs:5}.{micros:06}] {}\n", self.priority, self.text)
    }

    /// As `/dev/kmsg` gives it: `6,0,1234,-;text` and a line end. Bytes that are no text are escaped.
    pub fn kmsg_line(&self) -> String {
        let mut line = format!("{},{},{},-;", self.priority, self.sequence, self.micros);
        for byte in self.text.bytes() {
            match byte {
                b'\\' | 0..0x20 | 0x7f.. => line.push_str(&format!("\\x{byte:02x}")),
                _ => line.push(char::from(byte)),
            }
        }
        line.push('\n');
        line
    }
}

#[derive(Default)]
struct State {
    records: VecDeque<Record>,
    next: u64,
}

/// The log. Leaf lock.
pub struct BootLog {
    start: Instant,
    state: Mutex<State>,
}

impl Default for BootLog {
    fn default() -> BootLog {
        BootLog { start: Instant::now(), state: Mutex::default() }
    }
}

impl BootLog {
    /// An empty log that begins now.
    pub fn new() -> BootLog {
        BootLog::default()
    }

    /// Adds a line of the kernel's.
    pub fn push(&self, line: &str) {
        self.push_with(KERNEL_INFO, line);
    }

    /// Adds a line with its priority.
    pub fn push_with(&self, priority: u8, line: &str) {
        let mut end = line.len().min(LINE_MAX);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        let text = line[..end].trim_end_matches('\n').to_owned();
        let micros = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut state = self.state.lock();
        let sequence = state.next;
        state.next += 1;
        if state.records.len() >= LINES_MAX {
            state.records.pop_front();
        }
        state.records.push_back(Record { sequence, priority, micros, text });
    }

    /// The first record whose number is at least `sequence`.
    pub fn from(&self, sequence: u64) -> Option<Record> {
        let state = self.state.lock();
        let first = state.records.front()?.sequence;
        let at = usize::try_from(sequence.saturating_sub(first)).ok()?;
        state.records.get(at).cloned()
    }

    /// The number that the next record will have.
    pub fn next_sequence(&self) -> u64 {
        self.state.lock().next
    }

    /// The whole log as `SYSLOG_ACTION_READ_ALL` gives it.
    pub fn text(&self) -> String {
        self.state.lock().records.iter().map(Record::syslog_line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_lines_go_and_numbers_stay() {
        let log = BootLog::new();
        for line in 0..LINES_MAX + 2 {
            log.push(&format!("line {line}\n"));
        }
        assert_eq!(log.from(0).map(|record| (record.sequence, record.text)), Some((2, "line 2".into())));
        assert_eq!(log.from(log.next_sequence()), None);
        let long = "é".repeat(LINE_MAX);
        log.push(&long);
        assert!(log.from(log.next_sequence() - 1).unwrap().kmsg_line().contains("\\xc3\\xa9"));
    }
}
