//! ptrace requests on one stub thread, by the sentry thread that traces it: `ptrace(2)`.

use std::cell::Cell;

use crate::errno::{Errno, Result, check};
use crate::platform::{Regs, SigInfo};

/// Sent to a stub thread to make it stop. Its default action is to be ignored, and container signals never use the host's.
pub const KICK: i32 = libc::SIGURG;

const OPTIONS: i32 = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;

/// Why a stub thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At a system call.
    Syscall,
    /// A signal is about to be delivered; it never is.
    Signal(i32),
    /// `PTRACE_INTERRUPT`, or a group stop.
    Event,
    /// It is gone.
    Gone,
}

/// # Safety
///
/// `addr` and `data` must be what `request` wants.
unsafe fn ptrace(request: libc::c_uint, tid: i32, addr: u64, data: u64) -> Result<()> {
    // SAFETY: the caller's promise.
    let ret = unsafe { libc::ptrace(request, tid, addr, data) };
    check(ret).map(drop)
}

/// Becomes the tracer of a stub thread that waits in its loop, and stops it there.
pub fn seize(tid: i32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe {
        ptrace(libc::PTRACE_SEIZE, tid, 0, OPTIONS as u64)?;
        ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0)?;
    }
    until_event(tid)
}

/// Lets a stopped stub thread go on to its waiting loop and stops it there.
pub fn interrupt(tid: i32) -> Result<()> {
    resume(libc::PTRACE_CONT, tid)?;
    // SAFETY: no pointers.
    unsafe { ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0)? };
    until_event(tid)
}

fn until_event(tid: i32) -> Result<()> {
    loop {
        match wait(tid) {
            Stop::Event => return Ok(()),
            Stop::Gone => return Err(Errno::ESRCH),
            Stop::Signal(_) | Stop::Syscall => resume(libc::PTRACE_CONT, tid)?,
        }
    }
}

/// Becomes the tracer of a stub thread wherever it is, and stops it there. A signal that was just about to be delivered is
/// not, and returned. Nothing is blocked from then on: a thread without a tracer can block signals by returning from one,
/// [`KICK`] included.
pub fn halt(tid: i32) -> Result<Option<i32>> {
    // SAFETY: no pointers.
    unsafe {
        ptrace(libc::PTRACE_SEIZE, tid, 0, OPTIONS as u64)?;
        ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0)?;
    }
    let signal = match wait(tid) {
        Stop::Event => None,
        Stop::Gone => return Err(Errno::ESRCH),
        Stop::Signal(signal) => Some(signal),
        Stop::Syscall => return Err(Errno::EPROTO),
    };
    let nothing = 0u64;
    // SAFETY: the kernel reads a mask of the size given.
    unsafe { ptrace(SET_SIGMASK, tid, size_of_val(&nothing) as u64, std::ptr::from_ref(&nothing) as u64)? };
    Ok(signal)
}

/// `PTRACE_SETSIGMASK`.
const SET_SIGMASK: libc::c_uint = 0x420b;

/// Whether an instruction has raised a signal that has not been delivered to the stopped thread yet. It comes before the thread
/// runs on.
pub fn has_raised(tid: i32) -> bool {
    const PEEKSIGINFO: libc::c_uint = 0x4209;
    /// `struct ptrace_peeksiginfo_args`, of the thread's own queue.
    #[repr(C)]
    struct Args {
        from: u64,
        flags: u32,
        count: i32,
    }
    // SAFETY: a siginfo_t of zeros is a value.
    let mut queue: [SigInfo; 8] = unsafe { std::mem::zeroed() };
    let args = Args { from: 0, flags: 0, count: queue.len() as i32 };
    // SAFETY: the kernel reads the arguments and fills as many entries as they say at most.
    let found = unsafe { libc::ptrace(PEEKSIGINFO, tid, std::ptr::from_ref(&args) as u64, queue.as_mut_ptr() as u64) };
    let found = usize::try_from(found).unwrap_or(0).min(queue.len());
    queue[..found].iter().any(|info| info.si_code > 0 && info.si_signo != KICK)
}

/// One instruction further, having got `signal` if that is not 0. The fault that it raises, if it does; signals that somebody
/// sends meanwhile are swallowed.
pub fn step(tid: i32, signal: i32) -> Result<Option<i32>> {
    // SAFETY: no pointers.
    unsafe { ptrace(libc::PTRACE_SINGLESTEP, tid, 0, signal as u64)? };
    match wait(tid) {
        Stop::Signal(fault @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGSYS)) => {
            Ok(Some(fault))
        }
        Stop::Gone => Err(Errno::ESRCH),
        Stop::Signal(_) | Stop::Event | Stop::Syscall => Ok(None),
    }
}

/// Stores eight bytes, whatever the protection of the page: `PTRACE_POKEDATA`.
pub fn poke(tid: i32, addr: u64, bytes: [u8; 8]) -> Result<()> {
    // SAFETY: the address is another process's, which the kernel checks.
    unsafe { ptrace(libc::PTRACE_POKEDATA, tid, addr, u64::from_ne_bytes(bytes)) }
}

/// Reads eight bytes: `PTRACE_PEEKDATA`.
pub fn peek(tid: i32, addr: u64) -> Result<u64> {
    let mut word = 0u64;
    // The kernel's own request, unlike the C library's function, stores the word.
    // SAFETY: the address is another process's, which the kernel checks; the word is valid for writes.
    let ret = unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKDATA, tid, addr, &mut word) };
    check(ret).map(|_| word)
}

thread_local! {
    /// The process of whose threads the calling thread traces a deputy; 0: none.
    static DEPUTY_OF: Cell<i32> = const { Cell::new(0) };
}

/// The calling thread traces a deputy in this process, besides what else it traces there; 0: none any more.
pub fn set_deputy_of(pid: i32) {
    DEPUTY_OF.set(pid);
}

/// Waits for the next stop.
///
/// The host does not tell that a process's first thread has ended before its others are reaped: a deputy's end, the only thing
/// that one can have to tell meanwhile, is taken when it comes.
pub fn wait(tid: i32) -> Stop {
    let mut status = 0;
    let whom = if DEPUTY_OF.get() == tid { -1 } else { tid };
    loop {
        // SAFETY: `status` is valid for writes.
        let got = unsafe { libc::wait4(whom, &mut status, libc::__WALL | libc::__WNOTHREAD, std::ptr::null_mut()) };
        if got == tid {
            break;
        }
        if got < 0 && Errno::last() != Errno::EINTR {
            return Stop::Gone;
        }
    }
    if !libc::WIFSTOPPED(status) {
        return Stop::Gone;
    }
    match (status >> 16, libc::WSTOPSIG(status)) {
        (libc::PTRACE_EVENT_STOP, _) => Stop::Event,
        (_, signal) if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        (_, signal) => Stop::Signal(signal),
    }
}

/// Lets a stopped stub thread go on, with no signal: `PTRACE_SYSEMU` for container code, `PTRACE_CONT` for a call of ours.
pub fn resume(how: libc::c_uint, tid: i32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { ptrace(how, tid, 0, 0) }
}

/// Lets a stopped stub thread go untraced.
pub fn detach(tid: i32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { ptrace(libc::PTRACE_DETACH, tid, 0, 0) }
}

/// Reads the general registers.
pub fn get_regs(tid: i32, regs: &mut Regs) -> Result<()> {
    // SAFETY: the structure is the kernel's.
    unsafe { ptrace(libc::PTRACE_GETREGS, tid, 0, std::ptr::from_mut(regs) as u64) }
}

/// Writes the general registers. Bases that the host refuses, since they are not of user memory, become zero: programs can
/// load them with `wrfsbase`, but nothing is there.
pub fn set_regs(tid: i32, regs: &Regs) -> Result<()> {
    // SAFETY: the structure is the kernel's, and only read.
    let set = |regs: &Regs| unsafe { ptrace(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(regs) as u64) };
    let end = super::stub::USER_RANGE.end;
    match set(regs) {
        Err(Errno::EIO) => {
            let base = |base: u64| if base < end { base } else { 0 };
            set(&Regs { fs_base: base(regs.fs_base), gs_base: base(regs.gs_base), ..*regs })
        }
        outcome => outcome,
    }
}

/// What is known of the signal that stopped it.
pub fn get_siginfo(tid: i32) -> Result<SigInfo> {
    // SAFETY: a siginfo_t of zeros is a value; the kernel fills it.
    unsafe {
        let mut info: SigInfo = std::mem::zeroed();
        ptrace(libc::PTRACE_GETSIGINFO, tid, 0, std::ptr::from_mut(&mut info) as u64)?;
        Ok(info)
    }
}

/// Whether the system call that a stub thread has stopped at was made through an entry for 32-bit programs (`int $0x80`,
/// `sysenter`), as `PTRACE_GET_SYSCALL_INFO` tells. A host that does not know that request is taken to have no such entry.
pub fn is_32_bit_call(tid: i32) -> bool {
    const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
    // `AUDIT_ARCH_X86_64`: linux/audit.h.
    const X86_64: u32 = 0xc000_003e;
    // The beginning of `struct ptrace_syscall_info`: what it is (u8), three bytes of padding, the architecture (u32).
    let mut head = [0u32; 2];
    // SAFETY: the kernel fills as many bytes as it is told that there are.
    let told = unsafe { ptrace(GET_SYSCALL_INFO, tid, size_of_val(&head) as u64, head.as_mut_ptr() as u64) };
    told.is_ok() && head[1] != X86_64
}

const NT_X86_XSTATE: u64 = 0x202;

/// Reads the extended state: an XSAVE image in standard format.
pub fn get_xstate(tid: i32) -> Result<Vec<u8>> {
    let mut image = vec![0u8; 16384];
    let mut iov = libc::iovec { iov_base: image.as_mut_ptr().cast(), iov_len: image.len() };
    // SAFETY: the vector describes `image`, which outlives the call.
    unsafe { ptrace(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, std::ptr::from_mut(&mut iov) as u64)? };
    image.truncate(iov.iov_len);
    Ok(image)
}

/// Writes the extended state.
pub fn set_xstate(tid: i32, image: &[u8]) -> Result<()> {
    let mut iov = libc::iovec { iov_base: image.as_ptr() as *mut _, iov_len: image.len() };
    // SAFETY: the vector describes `image`, which the kernel only reads.
    unsafe { ptrace(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, std::ptr::from_mut(&mut iov) as u64) }
}

/// Makes a stopped stub thread run code of the stub's page with the registers given, until its `int3`. Returns `rax`.
///
/// Costs two switches on one CPU and four host calls. A kick that arrives meanwhile is noted in `kicked`.
pub fn call(tid: i32, regs: &Regs, kicked: &mut bool) -> Result<u64> {
    set_regs(tid, regs)?;
    loop {
        resume(libc::PTRACE_CONT, tid)?;
        match wait(tid) {
            Stop::Signal(libc::SIGTRAP) => break,
            Stop::Signal(KICK) => *kicked = true,
            // Only the gadgets that touch container memory can fault.
            Stop::Signal(libc::SIGSEGV | libc::SIGBUS) => return Err(Errno::EFAULT),
            // A filter forbids the call, which the tracer could hush up. Then `rax` is its number.
            Stop::Signal(libc::SIGSYS) => return Err(Errno::EPERM),
            Stop::Signal(_) | Stop::Event | Stop::Syscall => {}
            Stop::Gone => return Err(Errno::ESRCH),
        }
    }
    // SAFETY: PTRACE_PEEKUSER reads a word of the register area; libc returns it, with errno for errors.
    let rax = unsafe {
        *libc::__errno_location() = 0;
        libc::ptrace(libc::PTRACE_PEEKUSER, tid, std::mem::offset_of!(Regs, rax) as u64, 0)
    };
    if rax == -1 && Errno::last().raw() != 0 {
        return Err(Errno::ESRCH);
    }
    Ok(rax as u64)
}

/// As [`call`], for a system call: its result or errno.
pub fn syscall(tid: i32, base: &Regs, number: i64, args: [u64; 6], kicked: &mut bool) -> Result<u64> {
    call(tid, &call_regs(base, super::stub::CALL_ADDR, number, args), kicked).and_then(result)
}

/// As [`syscall`] for two calls of up to five arguments and one common sixth, in little more than the time of one: the result of the second, or
/// the error of the first, after which the second is not made.
pub fn two_syscalls(tid: i32, base: &Regs, calls: [(i64, [u64; 5]); 2], sixth: u64, kicked: &mut bool) -> Result<u64> {
    let [(first, [a, b, c, d, e]), (second, [rbp, r12, r13, r14, r15])] = calls;
    let base = Regs { rbx: second as u64, rbp, r12, r13, r14, r15, ..*base };
    call(tid, &call_regs(&base, super::stub::TWO_CALLS_ADDR, first, [a, b, c, d, e, sixth]), kicked).and_then(result)
}

/// Registers for a system call at `rip`.
pub fn call_regs(base: &Regs, rip: u64, number: i64, args: [u64; 6]) -> Regs {
    let [rdi, rsi, rdx, r10, r8, r9] = args;
    Regs { rip, rax: number as u64, orig_rax: u64::MAX, rdi, rsi, rdx, r10, r8, r9, eflags: 0x202, ..*base }
}

/// A raw result as the kernel returns it.
pub fn result(rax: u64) -> Result<u64> {
    let value = rax as i64;
    if (-4095..0).contains(&value) { Err(Errno::from_raw(-value as i32)) } else { Ok(rax) }
}
