//! System calls: from registers to the handlers and back.
//!
//! One [`table`] lists every call. A handler takes the [`Current`] task and typed arguments ([`args`]) and returns the value
//! for `rax` or an errno; the restart codes are decided when signals are looked at, before user code runs again.

pub mod args;
pub mod table;

pub mod fs;
pub mod ipc;
pub mod memory;
pub mod misc;
pub mod process;
pub mod signal;

pub mod futex;
pub mod net;
pub mod poll;
pub mod time;

use std::time::Instant;

use self::args::ArgRegs;
pub use self::args::{Fd, SysResult};
use crate::errno::Errno;
use crate::sentry::task::Current;

/// `__X32_SYSCALL_BIT`: those calls are not there.
const X32: u64 = 0x4000_0000;

/// Answers the call that the task has stopped at. Returns the exit code if the thread is to end.
pub fn dispatch(cur: &mut Current) -> Option<i32> {
    let regs = cur.user.regs();
    let number = regs.orig_rax;
    let args = ArgRegs::new(regs);
    if number == libc::SYS_exit as u64 {
        return Some(regs.rdi as i32);
    }
    cur.begin_call(number);
    let entry = if number & X32 == 0 { table::find(number) } else { None };
    let trace = cur.kernel.tracer.as_ref().map(|tracer| (tracer.begin(cur, entry, number, args), Instant::now()));
    let result = match entry {
        Some(entry) => entry.handler.call(cur, args),
        None => {
            log::warn!("system call {number} is not there");
            Err(Errno::ENOSYS)
        }
    };
    if let (Some((line, begun)), Some(tracer)) = (trace, &cur.task.kernel.tracer) {
        tracer.end(line, &result, begun.elapsed());
    }
    cur.end_call(result);
    None
}

impl Current {
    fn begin_call(&mut self, number: u64) {
        self.set_call(number);
        self.registers_set = false;
    }

    /// Stores the result, unless the call has set the registers itself.
    fn end_call(&mut self, result: SysResult) {
        if std::mem::take(&mut self.registers_set) {
            return;
        }
        let value = match result {
            Ok(value) => value,
            Err(errno) => {
                if errno.is_restart() {
                    self.set_restart(errno);
                }
                (-i64::from(errno.raw())) as u64
            }
        };
        self.user.regs_mut().rax = value;
    }
}
