//! Faults of the processor as signals, and the processor's state across handlers and switches.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t};

use crate::common::*;

// Codes of `siginfo_t` from `asm-generic/siginfo.h` that the libc crate lacks.
const SEGV_MAPERR: c_int = 1;
const SEGV_ACCERR: c_int = 2;
const FPE_INTDIV: c_int = 1;
const FPE_FLTDIV: c_int = 3;
const ILL_ILLOPN: c_int = 2;

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    #[link_name = "__sigsetjmp"]
    fn sigsetjmp(buffer: *mut [u64; 25], save: c_int) -> c_int;
    fn siglongjmp(buffer: *mut [u64; 25], value: c_int) -> !;
}

static mut JUMP: [u64; 25] = [0; 25];

extern "C" fn jump(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a valid structure; the frame of `fault` that is jumped to is still alive.
    unsafe {
        SIGNAL.store(signal, Ordering::SeqCst);
        CODE.store((*info).si_code, Ordering::SeqCst);
        ADDRESS.store((*info).si_addr() as usize, Ordering::SeqCst);
        siglongjmp(&raw mut JUMP, 1)
    }
}

/// Does something that faults; returns the signal, its code and its address.
#[inline(never)]
fn fault(cause: extern "C" fn(usize), argument: usize) -> (c_int, c_int, usize) {
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
        handle_info(signal, jump, 0);
    }
    SIGNAL.store(0, Ordering::SeqCst);
    // SAFETY: this frame outlives the jump, and nothing with a destructor is skipped.
    unsafe {
        if sigsetjmp(&raw mut JUMP, 1) == 0 {
            cause(argument);
        }
    }
    (SIGNAL.load(Ordering::SeqCst), CODE.load(Ordering::SeqCst), ADDRESS.load(Ordering::SeqCst))
}

extern "C" fn load(address: usize) {
    // SAFETY: faults, which is the point.
    unsafe { asm!("mov al, [{}]", in(reg) address, out("al") _) };
}

extern "C" fn store(address: usize) {
    // SAFETY: faults, which is the point.
    unsafe { asm!("mov byte ptr [{}], 1", in(reg) address) };
}

extern "C" fn call(address: usize) {
    // SAFETY: faults, which is the point.
    unsafe { asm!("call {}", in(reg) address, clobber_abi("C")) };
}

#[test]
fn unmapped_memory_is_maperr_at_its_address() {
    isolated(|| unsafe {
        let page = anonymous(PAGE, libc::MAP_PRIVATE);
        ok(libc::munmap(page.cast(), PAGE));
        let at = page as usize + 123;
        assert_eq!(fault(load, at), (libc::SIGSEGV, SEGV_MAPERR, at));
        assert_eq!(fault(store, at), (libc::SIGSEGV, SEGV_MAPERR, at));
        assert_eq!(fault(call, at), (libc::SIGSEGV, SEGV_MAPERR, at));
        assert_eq!(fault(load, 8), (libc::SIGSEGV, SEGV_MAPERR, 8));
    });
}

#[test]
fn forbidden_access_is_accerr_at_its_address() {
    isolated(|| unsafe {
        let page = anonymous(PAGE, libc::MAP_PRIVATE);
        let at = page as usize + 5;
        page.write(1);
        ok(libc::mprotect(page.cast(), PAGE, libc::PROT_READ));
        assert_eq!(fault(load, at).0, 0);
        assert_eq!(fault(store, at), (libc::SIGSEGV, SEGV_ACCERR, at));
        assert_eq!(fault(call, at), (libc::SIGSEGV, SEGV_ACCERR, at));
        ok(libc::mprotect(page.cast(), PAGE, libc::PROT_NONE));
        assert_eq!(fault(load, at), (libc::SIGSEGV, SEGV_ACCERR, at));
    });
}

#[test]
fn address_that_no_page_can_have_is_a_kernel_code() {
    isolated(|| {
        let (signal, code, address) = fault(load, 0x8000_0000_0000_0000);
        assert_eq!((signal, code, address), (libc::SIGSEGV, libc::SI_KERNEL, 0));
    });
}

#[test]
fn mapping_beyond_the_end_of_its_file_is_a_bus_error() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        write(fd, b"x");
        let access = libc::PROT_READ | libc::PROT_WRITE;
        for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
            let map = ok(libc::mmap(ptr::null_mut(), 3 * PAGE, access, flags, fd, 0)) as usize;
            assert_eq!(fault(load, map + PAGE - 1).0, 0);
            let at = map + PAGE + 9;
            assert_eq!(fault(load, at), (libc::SIGBUS, libc::BUS_ADRERR, at));
            assert_eq!(fault(store, at), (libc::SIGBUS, libc::BUS_ADRERR, at));
        }
    });
}

#[test]
fn mapping_of_a_file_cut_short_is_a_bus_error() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        ok(libc::ftruncate(fd, 2 * PAGE as i64));
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let map = ok(libc::mmap(ptr::null_mut(), 2 * PAGE, access, libc::MAP_SHARED, fd, 0)) as usize;
        assert_eq!(fault(store, map + PAGE).0, 0);
        ok(libc::ftruncate(fd, 1));
        assert_eq!(fault(load, map + PAGE), (libc::SIGBUS, libc::BUS_ADRERR, map + PAGE));
        ok(libc::ftruncate(fd, 2 * PAGE as i64));
        assert_eq!(fault(load, map + PAGE).0, 0);
    });
}

#[test]
fn division_by_zero_is_fpe() {
    isolated(|| {
        extern "C" fn divide(by: usize) {
            // SAFETY: faults, which is the point.
            unsafe { asm!("div {}", in(reg) by, inout("rax") 1u64 => _, inout("rdx") 0u64 => _) };
        }
        let (signal, code, address) = fault(divide, 0);
        assert_eq!((signal, code), (libc::SIGFPE, FPE_INTDIV));
        assert_ne!(address, 0);
    });
}

#[test]
fn sse_exception_is_fpe_with_its_kind() {
    isolated(|| {
        extern "C" fn divide(_: usize) {
            let mut control = 0x1f80u32 & !(1 << 9);
            // SAFETY: faults, which is the point.
            unsafe {
                asm!("ldmxcsr [{0}]", "divss {1}, {2}", in(reg) &mut control,
                    inout(xmm_reg) 1.0f32 => _, in(xmm_reg) 0.0f32);
            }
        }
        let (signal, code, _) = fault(divide, 0);
        assert_eq!((signal, code), (libc::SIGFPE, FPE_FLTDIV));
    });
}

#[test]
fn illegal_instruction_is_ill_where_it_stands() {
    isolated(|| {
        static AT: AtomicUsize = AtomicUsize::new(0);
        extern "C" fn illegal(_: usize) {
            // SAFETY: faults, which is the point.
            unsafe { asm!("lea {0}, [rip + 2f]", "mov [{1}], {0}", "2: ud2", out(reg) _, in(reg) AT.as_ptr()) };
        }
        let (signal, code, address) = fault(illegal, 0);
        assert_eq!((signal, code), (libc::SIGILL, ILL_ILLOPN));
        assert_eq!(address, AT.load(Ordering::SeqCst));
    });
}

#[test]
fn breakpoint_is_trap() {
    isolated(|| {
        extern "C" fn trap(_: usize) {
            // SAFETY: faults, which is the point.
            unsafe { asm!("int3") };
        }
        let (signal, code, _) = fault(trap, 0);
        assert_eq!((signal, code), (libc::SIGTRAP, libc::SI_KERNEL));
    });
}

#[test]
fn privileged_instruction_is_segv() {
    isolated(|| {
        extern "C" fn halt(_: usize) {
            // SAFETY: faults, which is the point.
            unsafe { asm!("hlt") };
        }
        let (signal, code, address) = fault(halt, 0);
        assert_eq!((signal, code, address), (libc::SIGSEGV, libc::SI_KERNEL, 0));
    });
}

#[test]
fn single_step_traps() {
    isolated(|| {
        extern "C" fn step(_: usize) {
            // SAFETY: faults, which is the point.
            unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop") };
        }
        let (signal, code, _) = fault(step, 0);
        assert_eq!((signal, code), (libc::SIGTRAP, libc::TRAP_TRACE));
    });
}

#[test]
fn blocked_or_ignored_fault_kills() {
    isolated(|| unsafe {
        let pid = child(|| {
            block(&[libc::SIGSEGV]);
            handle_info(libc::SIGSEGV, jump, 0);
            load(8);
            0
        });
        assert_eq!(wait(pid), Status::Killed(libc::SIGSEGV));
        let pid = child(|| {
            libc::signal(libc::SIGSEGV, libc::SIG_IGN);
            load(8);
            0
        });
        assert_eq!(wait(pid), Status::Killed(libc::SIGSEGV));
    });
}

#[test]
fn handler_without_room_on_the_stack_kills() {
    isolated(|| {
        let pid = child(|| {
            handle_info(libc::SIGUSR1, jump, 0);
            // SAFETY: the process does not survive it.
            unsafe {
                asm!(
                    "mov rsp, 64",
                    "mov eax, 39",
                    "syscall",
                    "mov edi, eax",
                    "mov esi, 10",
                    "mov eax, 62",
                    "syscall",
                    options(noreturn)
                )
            };
        });
        assert_eq!(wait(pid), Status::Killed(libc::SIGSEGV));
    });
}

#[test]
fn faulting_store_continues_after_the_handler_repairs_it() {
    isolated(|| unsafe {
        static REPAIRED: AtomicU32 = AtomicU32::new(0);
        extern "C" fn repair(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
            // SAFETY: the kernel passes a valid structure, and the page is the test's own.
            unsafe {
                let page = ((*info).si_addr() as usize & !(PAGE - 1)) as *mut c_void;
                libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE);
            }
            REPAIRED.fetch_add(1, Ordering::SeqCst);
        }
        handle_info(libc::SIGSEGV, repair, 0);
        let memory = anonymous(10 * PAGE, libc::MAP_PRIVATE);
        ok(libc::mprotect(memory.cast(), 10 * PAGE, libc::PROT_NONE));
        for page in 0..10 {
            memory.add(page * PAGE).write_volatile(page as u8);
        }
        assert_eq!(REPAIRED.load(Ordering::SeqCst), 10);
        assert_eq!(memory.add(7 * PAGE).read(), 7);
    });
}

#[test]
fn registers_arrive_in_the_context() {
    isolated(|| unsafe {
        static R12: AtomicUsize = AtomicUsize::new(0);
        static TRAP: AtomicUsize = AtomicUsize::new(0);
        extern "C" fn note(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
            // SAFETY: the kernel passes a valid context.
            let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
            R12.store(registers[libc::REG_R12 as usize] as usize, Ordering::SeqCst);
            TRAP.store(registers[libc::REG_TRAPNO as usize] as usize, Ordering::SeqCst);
            registers[libc::REG_RIP as usize] += 2;
        }
        handle_info(libc::SIGILL, note, 0);
        asm!("ud2", in("r12") 0x1234_5678_9abcu64);
        assert_eq!(R12.load(Ordering::SeqCst), 0x1234_5678_9abc);
        assert_eq!(TRAP.load(Ordering::SeqCst), 6);
    });
}

extern "C" fn spoil(_: c_int) {
    // SAFETY: the registers are declared as changed.
    unsafe {
        asm!("pcmpeqd xmm0, xmm0", "pcmpeqd xmm7, xmm7", "pcmpeqd xmm15, xmm15", "fninit", "fldpi",
            out("xmm0") _, out("xmm7") _, out("xmm15") _, out("st(0)") _, out("st(1)") _, out("st(2)") _,
            out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _);
        if is_x86_feature_detected!("avx2") {
            spoil_avx();
        }
    }
}

#[target_feature(enable = "avx2")]
fn spoil_avx() {
    std::hint::black_box(_mm256_set1_epi32(-1));
}

#[test]
fn sse_registers_survive_a_handler() {
    isolated(|| unsafe {
        handle(libc::SIGUSR1, spoil, 0);
        let (low, middle, high): (u64, u64, u64);
        asm!("movq xmm0, {a}", "movq xmm7, {b}", "movq xmm15, {c}", "syscall",
            "movq {a}, xmm0", "movq {b}, xmm7", "movq {c}, xmm15",
            a = inout(reg) 0x1111_2222_3333_4444u64 => low,
            b = inout(reg) 0x5555_6666_7777_8888u64 => middle,
            c = inout(reg) 0x9999_aaaa_bbbb_ccccu64 => high,
            inout("rax") libc::SYS_kill => _, in("rdi") i64::from(libc::getpid()),
            in("rsi") i64::from(libc::SIGUSR1), out("rcx") _, out("r11") _,
            out("xmm0") _, out("xmm7") _, out("xmm15") _);
        assert_eq!((low, middle, high), (0x1111_2222_3333_4444, 0x5555_6666_7777_8888, 0x9999_aaaa_bbbb_cccc));
    });
}

#[target_feature(enable = "avx")]
fn avx_across_kill() -> [u64; 4] {
    let mut value = [1u64, 2, 3, 4];
    // SAFETY: `value` has 32 bytes.
    unsafe {
        asm!("vmovdqu ymm9, [{v}]", "syscall", "vmovdqu [{v}], ymm9", v = in(reg) value.as_mut_ptr(),
            inout("rax") libc::SYS_kill => _, in("rdi") i64::from(libc::getpid()),
            in("rsi") i64::from(libc::SIGUSR1), out("rcx") _, out("r11") _, out("ymm9") _);
    }
    value
}

#[test]
fn avx_registers_survive_a_handler() {
    isolated(|| {
        if is_x86_feature_detected!("avx2") {
            handle(libc::SIGUSR1, spoil, 0);
            // SAFETY: the processor has it.
            assert_eq!(unsafe { avx_across_kill() }, [1, 2, 3, 4]);
        }
    });
}

#[test]
fn x87_state_and_control_words_survive_a_handler() {
    isolated(|| unsafe {
        handle(libc::SIGUSR1, spoil, 0);
        let (mut result, mut control) = (0.0f64, 0x5f80u32);
        let value = 2.5f64;
        asm!("ldmxcsr [{c}]", "fninit", "fld qword ptr [{v}]", "syscall", "fstp qword ptr [{r}]", "stmxcsr [{c}]",
            c = in(reg) &raw mut control, v = in(reg) &raw const value, r = in(reg) &raw mut result,
            inout("rax") libc::SYS_kill => _, in("rdi") i64::from(libc::getpid()),
            in("rsi") i64::from(libc::SIGUSR1), out("rcx") _, out("r11") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _,
            out("st(6)") _, out("st(7)") _);
        asm!("ldmxcsr [{}]", in(reg) &0x1f80u32);
        assert_eq!((result, control & 0xffc0), (2.5, 0x5f80));
    });
}

#[test]
fn floating_point_state_belongs_to_its_thread() {
    isolated(|| {
        let threads: Vec<_> = (0..6u32)
            .map(|n| {
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        let value: u64;
                        // SAFETY: sched_yield touches no memory.
                        unsafe {
                            asm!("movq xmm11, {v}", "syscall", "movq {v}, xmm11", v = inout(reg) u64::from(n) => value,
                                inlateout("rax") libc::SYS_sched_yield => _, out("rcx") _, out("r11") _,
                                out("xmm11") _);
                        }
                        assert_eq!(value, u64::from(n));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn fork_copies_floating_point_state() {
    isolated(|| unsafe {
        let (value, pid): (u64, i64);
        asm!("movq xmm12, {v}", "syscall", "movq {v}, xmm12", v = inout(reg) 0xfeed_beefu64 => value,
            inlateout("rax") libc::SYS_fork => pid, out("rcx") _, out("r11") _, out("xmm12") _);
        if pid == 0 {
            libc::_exit(c_int::from(value != 0xfeed_beef));
        }
        assert_eq!(wait(pid as c_int), Status::Exited(0));
    });
}

#[test]
fn syscall_keeps_all_registers_but_three() {
    isolated(|| unsafe {
        let (mut rdi, mut rsi, mut rdx, mut r8, mut r9, mut r10) = (1u64, 2u64, 3u64, 4u64, 5u64, 6u64);
        asm!("syscall", inlateout("rax") libc::SYS_getppid => _, inout("rdi") rdi, inout("rsi") rsi,
            inout("rdx") rdx, inout("r8") r8, inout("r9") r9, inout("r10") r10, out("rcx") _, out("r11") _);
        assert_eq!([rdi, rsi, rdx, r8, r9, r10], [1, 2, 3, 4, 5, 6]);
    });
}

#[test]
fn unknown_system_call_gives_enosys() {
    isolated(|| unsafe {
        fails(libc::syscall(9999), libc::ENOSYS);
        fails(libc::syscall(-5), libc::ENOSYS);
        fails(libc::syscall(i64::from(u32::MAX)), libc::ENOSYS);
    });
}

#[test]
fn core_bit_of_the_status_follows_the_limit() {
    isolated(|| unsafe {
        let mut status = 0;
        let pid = child(|| {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &none);
            libc::raise(libc::SIGQUIT)
        });
        ok(libc::waitpid(pid, &mut status, 0));
        assert_eq!((libc::WTERMSIG(status), libc::WCOREDUMP(status)), (libc::SIGQUIT, false));
    });
}

/// `int $0x80` is an entry for 32-bit programs: a call with their numbers where there is one, SIGSEGV where not, and never a
/// call of x86-64.
#[test]
fn int_0x80_is_no_call_of_x86_64() {
    extern "C" fn cause(_: usize) {
        let result: i64;
        // getpid in i386's table, writev in this one's.
        // SAFETY: neither touches memory, with these arguments.
        unsafe {
            asm!("push rbx", "xor ebx, ebx", "int 0x80", "pop rbx", inlateout("rax") 20i64 => result, out("rcx") _,
                out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
            assert_eq!(result, i64::from(libc::getpid()));
        }
    }
    isolated(|| {
        const SI_KERNEL: c_int = 0x80;
        let (signal, code, address) = fault(cause, 0);
        assert!(
            signal == 0 || (signal, code, address) == (libc::SIGSEGV, SI_KERNEL, 0),
            "{signal} {code} {address:#x}"
        );
    });
}
