//! What is known of a signal: `siginfo_t`, `sigaction(2)`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Signal;
use crate::errno::{Errno, Result};
use crate::platform;
use crate::vfs::signalfd;

/// A `siginfo_t` as the container sees it: 128 bytes, x86_64. Its signal number is always valid.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct SigInfo {
    bytes: [u8; 128],
}

// Offsets in siginfo_t; the union starts at 16.
const SIGNO: usize = 0;
const ERRNO: usize = 4;
const CODE: usize = 8;
const PID: usize = 16;
const UID: usize = 20;
const TIMER_ID: usize = 16;
const OVERRUN: usize = 20;
const VALUE: usize = 24;
const STATUS: usize = 24;
const UTIME: usize = 32;
const STIME: usize = 40;
const ADDR: usize = 16;
const BAND: usize = 16;
const FD: usize = 24;
const CALL_ADDR: usize = 16;
const SYSCALL: usize = 24;
const ARCH: usize = 28;

/// `SI_KERNEL`.
const SI_KERNEL: i32 = 0x80;

/// What SIGCHLD tells about a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildExit {
    /// `CLD_EXITED`, `CLD_KILLED`, `CLD_DUMPED`, `CLD_TRAPPED`, `CLD_STOPPED` or `CLD_CONTINUED`.
    pub code: i32,
    /// In the receiver's PID namespace.
    pub pid: i32,
    /// In the receiver's user namespace.
    pub uid: u32,
    /// The exit status or the signal.
    pub status: i32,
    /// CPU time, in clock ticks.
    pub utime: i64,
    /// CPU time, in clock ticks.
    pub stime: i64,
}

impl SigInfo {
    fn new(signal: Signal, code: i32) -> SigInfo {
        let mut info = SigInfo { bytes: [0; 128] };
        info.put(SIGNO, signal.number());
        info.put(CODE, code);
        info
    }

    fn with_sender(signal: Signal, code: i32, pid: i32, uid: u32) -> SigInfo {
        let mut info = SigInfo::new(signal, code);
        info.put(PID, pid);
        info.put(UID, uid as i32);
        info
    }

    /// `kill(2)`: `SI_USER`.
    pub fn user(signal: Signal, pid: i32, uid: u32) -> SigInfo {
        SigInfo::with_sender(signal, libc::SI_USER, pid, uid)
    }

    /// `tgkill(2)`: `SI_TKILL`.
    pub fn tkill(signal: Signal, pid: i32, uid: u32) -> SigInfo {
        SigInfo::with_sender(signal, libc::SI_TKILL, pid, uid)
    }

    /// From the kernel itself: `SI_KERNEL`.
    pub fn kernel(signal: Signal) -> SigInfo {
        SigInfo::new(signal, SI_KERNEL)
    }

    /// A fault at `addr` with the signal's own code: `SEGV_MAPERR`, `BUS_ADRERR` and their like.
    pub fn fault(signal: Signal, code: i32, addr: u64) -> SigInfo {
        let mut info = SigInfo::new(signal, code);
        info.put_u64(ADDR, addr);
        info
    }

    /// A fault as the platform reports it. `EINVAL` unless it is one.
    pub fn from_fault(host: &platform::SigInfo) -> Result<SigInfo> {
        let signal = Signal::new(host.si_signo)?;
        if !super::SigSet::SYNCHRONOUS.contains(signal) {
            return Err(Errno::EINVAL);
        }
        // SAFETY: of a fault's siginfo the address is set, or zero for those without one.
        let addr = unsafe { host.si_addr() } as u64;
        Ok(SigInfo::fault(signal, host.si_code, addr))
    }

    /// The same under another number: what a child made with another exit signal sends.
    pub fn with_signal(mut self, signal: Signal) -> SigInfo {
        self.put(SIGNO, signal.number());
        self
    }

    /// SIGCHLD.
    pub fn child(exit: &ChildExit) -> SigInfo {
        let mut info = SigInfo::with_sender(Signal::CHLD, exit.code, exit.pid, exit.uid);
        info.put(STATUS, exit.status);
        info.put_u64(UTIME, exit.utime as u64);
        info.put_u64(STIME, exit.stime as u64);
        info
    }

    /// The expiry of a POSIX timer: `SI_TIMER`. `value` is `sigev_value`.
    pub fn timer(signal: Signal, timer_id: i32, value: u64) -> SigInfo {
        let mut info = SigInfo::new(signal, libc::SI_TIMER);
        info.put(TIMER_ID, timer_id);
        info.put_u64(VALUE, value);
        info
    }

    /// The notification of a message queue: `SI_MESGQ`, and what else carries a value: `SI_QUEUE`, `SI_ASYNCIO`.
    pub fn queued(signal: Signal, code: i32, pid: i32, uid: u32, value: u64) -> SigInfo {
        let mut info = SigInfo::with_sender(signal, code, pid, uid);
        info.put_u64(VALUE, value);
        info
    }

    /// `F_SETSIG`: readiness `band` of a file (`POLL_*` as `code`).
    pub fn poll(signal: Signal, code: i32, band: i64, fd: i32) -> SigInfo {
        let mut info = SigInfo::new(signal, code);
        info.put_u64(BAND, band as u64);
        info.put(FD, fd);
        info
    }

    /// SIGSYS of a seccomp filter: `SYS_SECCOMP`; `errno` is the filter's data.
    pub fn seccomp(call_addr: u64, syscall: i32, arch: u32, errno: i32) -> SigInfo {
        let mut info = SigInfo::new(Signal::SYS, 1);
        info.put(ERRNO, errno);
        info.put_u64(CALL_ADDR, call_addr);
        info.put(SYSCALL, syscall);
        info.put(ARCH, arch as i32);
        info
    }

    /// `rt_sigqueueinfo(2)`: what the container wrote, for `signal`, whatever number it wrote. `to_self` is whether the
    /// target is the caller's own thread group. `EPERM` when the code is one of the kernel's or of `kill` and `tgkill` and
    /// the target is another process.
    pub fn from_user(bytes: [u8; 128], signal: Signal, to_self: bool) -> Result<SigInfo> {
        let mut info = SigInfo { bytes };
        info.put(SIGNO, signal.number());
        if (info.code() >= 0 || info.code() == libc::SI_TKILL) && !to_self {
            return Err(Errno::EPERM);
        }
        Ok(info)
    }

    /// Its bytes, as they go to the container.
    pub fn as_bytes(&self) -> &[u8; 128] {
        &self.bytes
    }

    /// As `signalfd(2)` tells it.
    pub fn signalfd_record(&self) -> [u8; signalfd::RECORD] {
        signalfd::record(&self.bytes)
    }

    /// The signal.
    pub fn signal(&self) -> Signal {
        // Every constructor has put a valid number there.
        Signal::new(self.int(SIGNO)).unwrap_or(Signal::KILL)
    }

    /// `si_code`.
    pub fn code(&self) -> i32 {
        self.int(CODE)
    }

    /// `si_errno`.
    pub fn errno(&self) -> i32 {
        self.int(ERRNO)
    }

    /// `si_pid`, for those that have one.
    pub fn pid(&self) -> i32 {
        self.int(PID)
    }

    /// `si_uid`, for those that have one.
    pub fn uid(&self) -> u32 {
        self.int(UID) as u32
    }

    /// Changes the sender: to what the receiver's namespaces call it.
    pub fn set_sender(&mut self, pid: i32, uid: u32) {
        self.put(PID, pid);
        self.put(UID, uid as i32);
    }

    /// `si_addr`, of a fault.
    pub fn addr(&self) -> u64 {
        self.u64(ADDR)
    }

    /// `si_value`.
    pub fn value(&self) -> u64 {
        self.u64(VALUE)
    }

    /// `si_status`, of SIGCHLD.
    pub fn status(&self) -> i32 {
        self.int(STATUS)
    }

    /// `si_overrun`.
    pub fn overrun(&self) -> i32 {
        self.int(OVERRUN)
    }

    /// Sets `si_overrun`.
    pub fn set_overrun(&mut self, overrun: i32) {
        self.put(OVERRUN, overrun);
    }

    /// Whether the kernel made it, not a program: then neither permission nor RLIMIT_SIGPENDING is in its way.
    pub fn is_from_kernel(&self) -> bool {
        self.code() > 0
    }

    fn put(&mut self, at: usize, value: i32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }

    fn int(&self, at: usize) -> i32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes[at..at + 4]);
        i32::from_ne_bytes(word)
    }

    fn u64(&self, at: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    }
}

impl std::fmt::Debug for SigInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigInfo").field("signal", &self.signal()).field("code", &self.code()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the same bytes through the C library's view of the structure.
    fn host(info: &SigInfo) -> libc::siginfo_t {
        // SAFETY: both are 128 bytes without invalid values.
        unsafe { std::mem::transmute_copy(info) }
    }

    #[test]
    fn fields_are_where_the_c_library_looks() {
        let exit = ChildExit { code: libc::CLD_KILLED, pid: 7, uid: 8, status: 9, utime: 10, stime: 11 };
        let child = host(&SigInfo::child(&exit));
        // SAFETY: the fields of SIGCHLD are set.
        let fields = unsafe { (child.si_pid(), child.si_uid(), child.si_status(), child.si_utime(), child.si_stime()) };
        assert_eq!(fields, (7, 8, 9, 10, 11));
        let fault = SigInfo::fault(Signal::BUS, libc::BUS_ADRERR, 0x1234);
        // SAFETY: the address is set.
        assert_eq!(unsafe { host(&fault).si_addr() } as u64, 0x1234);
        assert_eq!(SigInfo::from_fault(&host(&fault)), Ok(fault));
        assert_eq!(SigInfo::from_fault(&host(&SigInfo::kernel(Signal::TERM))), Err(Errno::EINVAL));
        let queued = host(&SigInfo::queued(Signal::USR1, libc::SI_QUEUE, 3, 4, 0x55));
        // SAFETY: the value is set.
        let value = unsafe { queued.si_value().sival_ptr } as u64;
        assert_eq!((queued.si_signo, queued.si_code, value), (10, libc::SI_QUEUE, 0x55));
    }

    #[test]
    fn programs_cannot_speak_for_the_kernel() {
        let bytes = *SigInfo::kernel(Signal::TERM).as_bytes();
        assert_eq!(SigInfo::from_user(bytes, Signal::HUP, false), Err(Errno::EPERM));
        assert_eq!(SigInfo::from_user(bytes, Signal::HUP, true).map(|info| info.signal()), Ok(Signal::HUP));
        let tkill = *SigInfo::tkill(Signal::TERM, 1, 1).as_bytes();
        assert_eq!(SigInfo::from_user(tkill, Signal::HUP, false), Err(Errno::EPERM));
        let queue = *SigInfo::queued(Signal::TERM, libc::SI_QUEUE, 1, 2, 3).as_bytes();
        assert_eq!(SigInfo::from_user(queue, Signal::HUP, false).map(|info| info.value()), Ok(3));
    }
}
