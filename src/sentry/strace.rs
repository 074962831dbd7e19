//! `--strace`: one line a system call.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::errno::Result;
use crate::sentry::syscalls::args::ArgRegs;
use crate::sentry::syscalls::table::Entry;
use crate::sentry::task::Current;

/// Where the lines go.
pub struct Tracer(File);

impl Tracer {
    /// To a descriptor.
    pub fn new(fd: OwnedFd) -> Tracer {
        Tracer(fd.into())
    }

    /// The beginning of a line: the arguments are read before the call changes what they point to.
    pub fn begin(&self, cur: &Current, entry: Option<&Entry>, number: u64, regs: ArgRegs) -> String {
        let name = cur.name();
        let mut line = format!("[{:5}] {} ", cur.tid(), name.escape_ascii());
        match entry {
            Some(entry) => {
                line.push_str(entry.name);
                line.push('(');
                entry.handler.show(regs, cur.space(), &mut line);
                line.push(')');
            }
            None => line.push_str(&format!("syscall_{number}()")),
        }
        line
    }

    /// Writes the line with its result.
    pub fn end(&self, mut line: String, result: &Result<u64>, took: Duration) {
        let seconds = took.as_secs_f64();
        let end = match result {
            Ok(value) if (*value as i64) < 0 || *value > 0xffff => format!(" = {value:#x} <{seconds:.6}>\n"),
            Ok(value) => format!(" = {value} <{seconds:.6}>\n"),
            Err(errno) => format!(" = -1 {errno} <{seconds:.6}>\n"),
        };
        line.push_str(&end);
        // A trace that cannot be written must not stop the container.
        let _ = (&self.0).write_all(line.as_bytes());
    }

    /// Writes a line that is not a call.
    pub fn note(&self, cur: &Current, text: &str) {
        let line = format!("[{:5}] {} {text}\n", cur.tid(), cur.name().escape_ascii());
        let _ = (&self.0).write_all(line.as_bytes());
    }
}
