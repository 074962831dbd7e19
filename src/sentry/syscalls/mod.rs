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
use crate::sentry::seccomp::Verdict;
use crate::sentry::seccomp::bpf::{ARCH, Data};
use crate::sentry::signal::SigInfo;
use crate::sentry::task::Current;
use crate::sentry::task::tree::ExitStatus;

/// `__X32_SYSCALL_BIT`: those calls are not there.
const X32: u64 = 0x4000_0000;

/// Answers the call that the task has stopped at. Returns how the thread ends, if it is to.
pub fn dispatch(cur: &mut Current) -> Option<ExitStatus> {
    let regs = cur.user.regs();
    let number = regs.orig_rax;
    let args = ArgRegs::new(regs);
    let exit_code = regs.rdi as i32;
    if cur.seccomp.is_active()
        && let Some(refusal) = refused(cur, number)
    {
        return refusal;
    }
    if number == libc::SYS_exit as u64 {
        return Some(ExitStatus::Exited(exit_code));
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
    crate::vfs::fasync::deliver();
    cur.end_call(result);
    None
}

/// Asks the task's filters. `None` when the call is to be answered; otherwise it has been, or ends the thread.
fn refused(cur: &mut Current, number: u64) -> Option<Option<ExitStatus>> {
    let regs = cur.user.regs();
    let (ip, args) = (regs.rip, [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]);
    let data = || Data { nr: number as u32, ip, args };
    let killed = |signal| ExitStatus::Killed { signal, core: false };
    let verdict = cur.seccomp.check(data, number);
    match verdict {
        Verdict::Allow => return None,
        Verdict::KillThread => return Some(Some(killed(libc::SIGSYS))),
        Verdict::KillProcess => return Some(Some(cur.group.end(killed(libc::SIGSYS)))),
        Verdict::Strict => return Some(Some(killed(libc::SIGKILL))),
        Verdict::Errno(_) | Verdict::Trap(_) => {}
    }
    cur.begin_call(number);
    let rax = match verdict {
        Verdict::Trap(data) => {
            cur.force(SigInfo::seccomp(ip, number as i32, ARCH, data));
            // The handler finds the registers as they were at the call.
            number
        }
        Verdict::Errno(errno) => (-i64::from(errno)) as u64,
        _ => number,
    };
    cur.user.regs_mut().rax = rax;
    Some(None)
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
