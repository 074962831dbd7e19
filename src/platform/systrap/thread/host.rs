//! Host calls of a stub that waits without a tracer: what any program may do to its own memory without anybody's leave.
//!
//! The filter lets these pass from one place of the stub's code, whoever comes there ([`crate::seccomp::trap`]): anonymous
//! private memory that is not executable, and the end of memory. What the sentry has written down of the memory may be wrong
//! after a program has made one of them itself, to its own harm alone.

use super::{Mode, TrapThread};
use crate::platform::systrap::context::{Context, Given};
use crate::platform::systrap::space;
use crate::platform::{Backing, MapRequest};
use crate::seccomp::trap;

impl TrapThread {
    /// Has the stub, which waits, do what `give` orders. Whether it has.
    pub(super) fn ordered(&self, give: impl FnOnce(&Context) -> Given) -> bool {
        let (Mode::Waiting(_), Some(context)) = (&self.mode, &self.context) else { return false };
        let tid = self.inner.tid;
        match give(context) {
            Given::Not => false,
            Given::Awake => space::finished(context, tid),
            Given::Asleep(order) => {
                let pid = self.inner.space.process.pid;
                space::finished_asleep(context, order, || super::has_ended(pid, tid), tid)
            }
        }
    }

    /// Whether the call was made and succeeded. If not, it is made again with a tracer, which can do no harm.
    fn call_free(&mut self, number: i64, args: [u64; 6]) -> bool {
        let range = args[0]..args[0].saturating_add(args[1]);
        if !matches!(self.mode, Mode::Waiting(_)) || !trap::is_open(&range, &self.inner.space.vdso.0) {
            return false;
        }
        if !self.memory.patches.lock().leave_alone(&range) {
            return false;
        }
        space::mapping_changes();
        let made = self.ordered(|context| context.order_call(number, args));
        made && self.context.as_ref().is_some_and(|context| context.returned() as i64 >= 0 && context.succeeded())
    }

    /// [`crate::platform::UserThread::map`].
    pub(super) fn map_free(&mut self, request: &MapRequest) -> bool {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | request.flags;
        let plain = matches!(request.backing, Backing::Anonymous)
            && !request.shared
            && request.prot & !(libc::PROT_READ | libc::PROT_WRITE) == 0
            && request.flags & !libc::MAP_NORESERVE == 0;
        let args = [request.addr, request.len, request.prot as u64, flags as u64, u64::from(u32::MAX), 0];
        plain && self.call_free(libc::SYS_mmap, args)
    }

    /// [`crate::platform::UserThread::unmap`].
    pub(super) fn unmap_free(&mut self, addr: u64, len: u64) -> bool {
        self.call_free(libc::SYS_munmap, [addr, len, 0, 0, 0, 0])
    }

    /// [`crate::platform::UserThread::advise`].
    pub(super) fn advise_free(&mut self, addr: u64, len: u64, advice: i32) -> bool {
        advice == libc::MADV_DONTNEED && self.call_free(libc::SYS_madvise, [addr, len, advice as u64, 0, 0, 0])
    }
}
