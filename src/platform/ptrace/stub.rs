//! The stub: the only code of ours in a container's address space, and the first process that holds it.
//!
//! One page, readable and executable, at a fixed address below everything the container may map. It has no data and holds
//! no secret; container code that jumps into it reaches instructions that trap, like any of its own.

use std::ops::Range;
use std::sync::OnceLock;

use seccompiler::BpfProgram;

use crate::errno::{Errno, Result, check};
use crate::platform::systrap::code;

/// Where the stub's page is: the lowest address that Linux lets programs map (`vm.mmap_min_addr`).
pub const STUB: u64 = 0x1_0000;

/// What the container may map: all above the stub's page, less the last page of the lower half.
pub const USER_RANGE: Range<u64> = STUB + 0x1000..0x7fff_ffff_f000;

/// Waits for ever: `1: mov $SYS_pause,%eax; syscall; jmp 1b`.
const WAIT: [u8; 9] = [0xb8, 0x22, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xeb, 0xf7];

/// One call chosen by the sentry: `syscall; int3`.
const CALL: [u8; 3] = [0x0f, 0x05, 0xcc];

/// `clone`, whose child sees to it that it does not outlive the sentry, forgets the call's sixth argument, and goes on to
/// wait: `syscall; test %rax,%rax; jnz 1f; mov $SYS_prctl,%eax; mov $PR_SET_PDEATHSIG,%edi; mov $SIGKILL,%esi; syscall;
/// xor %r9d,%r9d; jmp WAIT; 1: int3`.
const CLONE: [u8; 30] = [
    0x0f, 0x05, 0x48, 0x85, 0xc0, 0x75, 0x16, 0xb8, 0x9d, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0xbe, 9, 0, 0, 0, 0x0f, 0x05,
    0x45, 0x31, 0xc9, 0xeb, 0, 0xcc,
];

/// `lock cmpxchg %edx,(%rdi); int3`, comparing with `eax`.
const COMPARE_EXCHANGE: [u8; 5] = [0xf0, 0x0f, 0xb1, 0x17, 0xcc];

/// Two calls in one go, the second only when the first succeeds. The second's number is in `rbx`, its arguments are in
/// `rbp`, `r12` to `r15`: `syscall; test %rax,%rax; js 1f; mov %rbx,%rax; mov %rbp,%rdi; mov %r12,%rsi; mov %r13,%rdx;
/// mov %r14,%r10; mov %r15,%r8; syscall; 1: int3`.
const TWO_CALLS: [u8; 28] = [
    0x0f, 0x05, 0x48, 0x85, 0xc0, 0x78, 0x14, 0x48, 0x89, 0xd8, 0x48, 0x89, 0xef, 0x4c, 0x89, 0xe6, 0x4c, 0x89, 0xea,
    0x4d, 0x89, 0xf2, 0x4d, 0x89, 0xf8, 0x0f, 0x05, 0xcc,
];

const CALL_AT: usize = 0x10;
const COMPARE_EXCHANGE_AT: usize = 0x30;
const TWO_CALLS_AT: usize = 0x40;
const CLONE_AT: usize = 0x60;

/// Address of the waiting loop.
pub const WAIT_ADDR: u64 = STUB;
/// Address of the code that makes one call.
pub const CALL_ADDR: u64 = STUB + CALL_AT as u64;
/// Address of the code that clones.
pub const CLONE_ADDR: u64 = STUB + CLONE_AT as u64;
/// Address of the code that compares and exchanges.
pub const COMPARE_EXCHANGE_ADDR: u64 = STUB + COMPARE_EXCHANGE_AT as u64;
/// Address of the code that makes two calls.
pub const TWO_CALLS_ADDR: u64 = STUB + TWO_CALLS_AT as u64;

/// Behind the waiting loop's call.
pub const PAUSE_END: u64 = STUB + 7;

/// Behind each `syscall` that the sentry has stopped stubs make.
pub fn sealed_calls() -> Vec<u64> {
    let ends = |code: &[u8]| -> Vec<u64> {
        let calls = code.windows(2).enumerate().filter(|(_, pair)| *pair == [0x0f, 0x05]);
        calls.map(|(at, _)| at as u64 + 2).collect()
    };
    let gadgets: [(u64, &[u8]); 3] = [(CALL_ADDR, &CALL), (CLONE_ADDR, &CLONE), (TWO_CALLS_ADDR, &TWO_CALLS)];
    gadgets.iter().flat_map(|(at, code)| ends(code).into_iter().map(move |end| at + end)).collect()
}

/// Length of the stub's page, in bytes.
pub const PAGE: usize = 4096;

fn page_image() -> [u8; PAGE] {
    let mut page = [0xcc; PAGE];
    let mut put = |at: usize, code: &[u8]| page[at..at + code.len()].copy_from_slice(code);
    put(0, &WAIT);
    put(CALL_AT, &CALL);
    put(CLONE_AT, &CLONE);
    put(COMPARE_EXCHANGE_AT, &COMPARE_EXCHANGE);
    put(TWO_CALLS_AT, &TWO_CALLS);
    put(code::AT, &code::image());
    // The displacement of `jmp` counts from behind it.
    page[CLONE_AT + CLONE.len() - 2] = (-((CLONE_AT + CLONE.len() - 1) as i8)) as u8;
    page
}

/// Puts the stub's page into the sentry itself, from where the first stub process inherits it. Idempotent.
fn map_page() -> Result<()> {
    static DONE: std::sync::Mutex<bool> = std::sync::Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *done {
        return Ok(());
    }
    // SAFETY: MAP_FIXED_NOREPLACE maps only where nothing is; the page is ours from then on, and is filled before it
    // becomes executable.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let at = libc::mmap(STUB as *mut _, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if at as u64 != STUB {
            return Err(Errno::last());
        }
        std::ptr::copy_nonoverlapping(page_image().as_ptr(), at.cast(), PAGE);
        check(libc::mprotect(at, PAGE, libc::PROT_READ | libc::PROT_EXEC).into())?;
    }
    *done = true;
    Ok(())
}

/// Where the host's vDSO image and the data pages before it are in this process: `(pages and image, image)`.
///
/// Found once, since it needs `/proc`: a sentry calls this before it gives that up.
pub fn vdso_range() -> Result<(Range<u64>, u64)> {
    static FOUND: OnceLock<(Range<u64>, u64)> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found.clone());
    }
    let found = find_vdso()?;
    Ok(FOUND.get_or_init(|| found).clone())
}

/// The mappings that make up [`vdso_range`].
pub fn vdso_parts() -> Result<Vec<Range<u64>>> {
    static FOUND: OnceLock<Vec<Range<u64>>> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found.clone());
    }
    let found = find_parts()?;
    Ok(FOUND.get_or_init(|| found).clone())
}

/// Where in the vDSO's image `clock_gettime` is, if it has that.
pub fn vdso_clock() -> Option<u64> {
    static FOUND: OnceLock<Option<u64>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: strings that end; the image is loaded already, as part of every process.
        let (image, clock) = unsafe {
            let image = libc::getauxval(libc::AT_SYSINFO_EHDR);
            let handle = libc::dlopen(c"linux-vdso.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
            if image == 0 || handle.is_null() {
                return None;
            }
            (image, libc::dlsym(handle, c"__vdso_clock_gettime".as_ptr()) as u64)
        };
        clock.checked_sub(image).filter(|_| clock != 0)
    })
}

/// Where the vDSO goes when the container may map only what is below `end`.
pub fn place_below(here: &(Range<u64>, u64), end: u64) -> (Range<u64>, u64) {
    let (range, image) = here;
    if range.end <= end {
        return here.clone();
    }
    /// Far enough below for a stack above it.
    const ROOM: u64 = 1 << 30;
    let start = end - ROOM - (range.end - range.start);
    (start..end - ROOM, image - range.start + start)
}

fn find_vdso() -> Result<(Range<u64>, u64)> {
    // SAFETY: getauxval only reads the process's auxiliary vector.
    let image = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    let parts = vdso_parts()?;
    let (start, end) = (parts.iter().map(|part| part.start).min(), parts.iter().map(|part| part.end).max());
    let range = start.zip(end).map(|(start, end)| start..end);
    let range = range.filter(|range| range.contains(&image)).ok_or(Errno::ENODEV)?;
    Ok((range, image))
}

fn find_parts() -> Result<Vec<Range<u64>>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut parts = Vec::new();
    for line in maps.lines().filter(|line| line.contains("[vvar") || line.ends_with("[vdso]")) {
        let span = line.split(' ').next().and_then(|span| span.split_once('-'));
        let Some((start, end)) = span else { continue };
        let parse = |text| u64::from_str_radix(text, 16).map_err(|_| Errno::EIO);
        parts.push(parse(start)?..parse(end)?);
    }
    Ok(parts)
}

/// Clones the calling process into a first stub, which waits with a copy of the whole sentry still mapped: its tracer
/// removes that before anything else. The filter is in force when this returns a process that has reached its loop.
pub fn spawn_template(filter: &BpfProgram, handler: Option<u64>) -> Result<i32> {
    map_page()?;
    let rseq = rseq_area();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr() as *mut libc::sock_filter };
    // SAFETY: a fork without CLONE_VM. The child makes raw system calls on its copy of this stack and then jumps to the
    // stub's page, whose loop uses no memory; it never returns into Rust code.
    unsafe {
        let flags = (libc::CLONE_FILES | libc::SIGCHLD) as libc::c_long;
        let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
        if pid != 0 {
            return check(pid).map(|pid| pid as i32);
        }
        become_stub(&program, rseq, handler)
    }
}

/// # Safety
///
/// Only in a freshly forked child that nobody waits for.
unsafe fn become_stub(program: &libc::sock_fprog, rseq: Option<u64>, handler: Option<u64>) -> ! {
    // SAFETY: raw calls that touch only this process, which then stays in the stub's loop for good.
    unsafe {
        if let Some(area) = rseq {
            forget_rseq(area);
        }
        let filtered = libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) == 0
            // Until a program gives it another.
            && libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, c"runsc-stub".as_ptr(), 0, 0, 0) == 0
            && libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && set_signals(handler)
            && libc::syscall(libc::SYS_prctl, libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, program, 0, 0) == 0;
        if !filtered {
            loop {
                libc::syscall(libc::SYS_exit_group, 1);
            }
        }
        std::arch::asm!("jmp {}", in(reg) WAIT_ADDR, options(noreturn));
    }
}

/// The calling thread's area for restartable sequences, which the C library has registered: `rseq(2)`.
fn rseq_area() -> Option<u64> {
    // SAFETY: the symbol, where the C library has it, is an `isize` that counts from the thread pointer, which is stored
    // at its own address (x86_64 TLS).
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
        let thread: u64;
        std::arch::asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, readonly));
        (!offset.is_null()).then(|| thread.wrapping_add_signed(*offset as i64))
    }
}

/// Has the host's kernel forget the area: it would write there on every switch, when the memory is gone.
///
/// # Safety
///
/// As for [`become_stub`].
unsafe fn forget_rseq(area: u64) {
    const UNREGISTER: i32 = 1;
    const SIGNATURE: u32 = 0x5305_3053;
    // The length must be the one that was registered: 32 bytes at first, more in later C libraries.
    for len in (32..=256).step_by(4) {
        // SAFETY: the area is this thread's own.
        if unsafe { libc::syscall(libc::SYS_rseq, area, len, UNREGISTER, SIGNATURE) } == 0 {
            return;
        }
    }
}

/// Nothing blocked, no handlers; or the one for what container code raises itself, and nothing else heard: whoever sends a
/// stub a signal on the host means to end it no more than with a tracer.
///
/// # Safety
///
/// As for [`become_stub`].
unsafe fn set_signals(handler: Option<u64>) -> bool {
    const RESTORER: u64 = 0x400_0000;
    const FLAGS: u64 = RESTORER | (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER) as u64;
    let empty = 0u64;
    // SAFETY: the kernel's structure: handler, flags, restorer (which must be there, and is not used), mask.
    unsafe {
        for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
            let action = match (handler, signal) {
                (
                    Some(at),
                    libc::SIGSYS | libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGTRAP,
                ) => [at, FLAGS, at, 0],
                (Some(_), _) => [libc::SIG_IGN as u64, 0, 0, 0],
                (None, _) => [libc::SIG_DFL as u64, 0, 0, 0],
            };
            libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), 0, 8);
        }
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &empty, 0, 8) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clone_gadget_jumps_to_the_loop() {
        let page = page_image();
        let jump = CLONE_AT + CLONE.len() - 3;
        assert_eq!(page[jump], 0xeb);
        assert_eq!(jump as i32 + 2 + i32::from(page[jump + 1] as i8), 0);
        // The parent's `jnz`.
        assert_eq!((CLONE[5], 7 + usize::from(CLONE[6])), (0x75, CLONE.len() - 1));
    }

    #[test]
    fn a_first_call_that_fails_is_the_last() {
        let (at, displacement) = (5, 6);
        assert_eq!(TWO_CALLS[at], 0x78);
        let target = at + 2 + usize::from(TWO_CALLS[displacement]);
        assert_eq!((target, TWO_CALLS[target]), (TWO_CALLS.len() - 1, 0xcc));
    }
}
