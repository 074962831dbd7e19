//! The stub's code for system calls without ptrace: what runs in the container's address space.
//!
//! It is copied into the stub's page ([`crate::platform::ptrace::stub`]), has no data of its own, and never returns into
//! Rust. Two roads lead into it:
//!
//! ```text
//! a call site that was rewritten ─▶ slot ─▶ ENTRY ─┐ (registers saved in the context that %gs points to)
//!                                                  ├─▶ POST: the context's state says "trap"; wait for the answer
//! SIGSYS, SIGSEGV, … ───────────▶ HANDLER ─────────┘ (registers are in the signal frame, on the context's own stack)
//! ```
//!
//! While it waits it copies memory for the sentry ([`COPY`](super::context::state::COPY)). Everything it reads and writes
//! can be changed by other threads of the container process: a program that does so harms itself alone, since nothing here
//! may do anything that its process must not. The host calls that the filter lets it make are `futex` on contexts,
//! `sched_yield` and `rt_sigreturn` ([`crate::seccomp::trap`]).

use std::arch::global_asm;
use std::ops::Range;

use super::context::{self, field, state};
use super::hint;
use crate::platform::ptrace::stub::{PAGE, STUB};

/// Where in the stub's page the code begins: behind the ptrace platform's.
pub const AT: usize = 0x100;

/// The clocks that the vDSO tells, a bit each: `CLOCK_REALTIME`, `CLOCK_MONOTONIC`, `CLOCK_MONOTONIC_RAW`, the coarse two,
/// `CLOCK_BOOTTIME`, `CLOCK_TAI`. Those of CPU time are the sentry's.
const CLOCKS: u32 = 0b1000_1111_0011;

global_asm!(
    ".pushsection .rodata.runsc_trap_code, \"a\", @progbits",
    ".balign 16",
    ".globl runsc_trap_code",
    "runsc_trap_code:",
    // From a slot: rcx holds where to go on, r11 is free, rax is the call's number. Flags, stack and all else are the
    // container's, and must be preserved. r11 = flags << 32 | number, so that rax is free.
    ".globl runsc_trap_entry",
    "runsc_trap_entry:",
    "mov r11d, eax",
    "lahf",
    "seto al",
    "movzx eax, ax",
    "shl rax, 32",
    "or r11, rax",
    // Is there a context? Programs may set %gs themselves.
    "rdgsbase rax",
    "shr rax, 32",
    "cmp eax, {window}",
    "jne 8f",
    // An answer that the sentry has left here: bit 63 says that there is one.
    "mov eax, r11d",
    "cmp eax, {answers}",
    "jae 7f",
    "mov rax, gs:[rax * 8 + {answers_at}]",
    "test rax, rax",
    "jns 7f",
    "mov eax, eax",
    "mov gs:[{rax}], rax",
    "mov rax, r11",
    "shr rax, 32",
    "add al, 0x7f",
    "sahf",
    "mov rax, gs:[{rax}]",
    "jmp rcx",
    // No context: a trap that leaves rcx and r11 alone, unlike the instruction `syscall`.
    "8:",
    "mov rax, r11",
    "shr rax, 32",
    "add al, 0x7f",
    "sahf",
    "mov eax, r11d",
    ".globl runsc_trap_slow",
    "runsc_trap_slow:",
    "int3",
    "hlt",
    "7:",
    "mov gs:[{packed}], r11",
    "mov gs:[{rip}], rcx",
    "cmp r11d, {sched_yield}",
    "je 50f",
    "51:",
    "mov gs:[{r15}], r15",
    "mov gs:[{r14}], r14",
    "mov gs:[{r13}], r13",
    "mov gs:[{r12}], r12",
    "mov gs:[{rbp}], rbp",
    "mov gs:[{rbx}], rbx",
    "mov gs:[{r10}], r10",
    "mov gs:[{r9}], r9",
    "mov gs:[{r8}], r8",
    "mov gs:[{rdx}], rdx",
    "mov gs:[{rsi}], rsi",
    "mov gs:[{rdi}], rdi",
    "mov gs:[{rsp}], rsp",
    "rdgsbase rbx",
    "rdfsbase rax",
    "mov [rbx + {fs}], rax",
    // For what `lahf` does not tell: direction, alignment check.
    "lea rsp, [rbx + {scratch}]",
    "pushfq",
    "mov dword ptr [rbx + {kind}], {kind_call}",
    // What the call will want from the container's memory, and where its result goes, by its number.
    "mov dword ptr [rbx + {brought_count}], 0",
    "mov dword ptr [rbx + {writable_count}], 0",
    "mov dword ptr [rbx + {pieces}], 0",
    "mov eax, r11d",
    "cmp eax, {clock_gettime}",
    "je 60f",
    "61:",
    "cmp eax, {answers}",
    "jae 2f",
    "lea rcx, [rip + 40f]",
    "movzx ecx, byte ptr [rcx + rax]",
    "test ecx, ecx",
    "jz 2f",
    "mov dword ptr [rbx + {probing}], 1",
    "cld",
    "mov r12, rsi",
    "mov r13, rdi",
    "mov r14, rdx",
    "mov r8d, ecx",
    "and ecx, 15",
    "jz 24f",
    "mov r9, r13",
    "cmp ecx, {PATH_FIRST}",
    "je 20f",
    "cmp ecx, {HINT_XSTATE}",
    "jae 42f",
    "mov r9, r12",
    "cmp ecx, {PATH_SECOND}",
    "je 20f",
    "mov eax, 8",
    "cmp ecx, {SECOND_8}",
    "je 43f",
    "mov eax, 32",
    "cmp ecx, {SECOND_32}",
    "je 43f",
    // A buffer: its beginning.
    "mov rcx, r14",
    "mov eax, {brought_len}",
    "cmp rcx, rax",
    "cmova rcx, rax",
    "jmp 21f",
    // The extended state, for a new thread's, and what else there is to say of that.
    "42:",
    "mov eax, [rbx + {components}]",
    "xor edx, edx",
    "xsave64 [rbx + {xstate}]",
    "mov eax, {clone_args}",
    "cmp ecx, {CLONE_ARGS}",
    "jne 24f",
    // A few bytes, or none.
    "43:",
    "mov ecx, eax",
    "test r9, r9",
    "jz 24f",
    "jmp 21f",
    // A path: no further than its page.
    "20:",
    "mov rcx, r9",
    "or rcx, -4096",
    "neg rcx",
    "mov eax, 256",
    "cmp rcx, rax",
    "cmova rcx, rax",
    "mov r10, rcx",
    "bts r10, 31",
    "jmp 22f",
    "21:",
    "mov r10, rcx",
    "22:",
    "mov [rbx + {brought_at}], r9",
    "mov rsi, r9",
    "lea rdi, [rbx + {brought}]",
    ".globl runsc_trap_bring",
    "runsc_trap_bring:",
    "rep movsb",
    "mov [rbx + {brought_count}], r10d",
    // Where the result goes: at most two pages, both touched without changing anything.
    "24:",
    "shr r8d, 4",
    "jz 28f",
    "mov r9, r12",
    "mov eax, {stat}",
    "cmp r8d, {OUT_SECOND_STAT}",
    "je 26f",
    "mov eax, 16",
    "cmp r8d, {OUT_SECOND_16}",
    "je 26f",
    "mov rax, r14",
    "cmp r8d, {OUT_SECOND_LEN}",
    "je 25f",
    "lea rax, [r14 + r14 * 2]",
    "shl rax, 2",
    "cmp r8d, {OUT_SECOND_EVENTS}",
    "je 25f",
    "mov r9, r14",
    "mov eax, 8",
    "cmp r8d, {OUT_THIRD_8}",
    "je 26f",
    "mov eax, 32",
    "cmp r8d, {OUT_THIRD_32}",
    "je 26f",
    "mov eax, {stat}",
    "jmp 26f",
    "25:",
    "mov ecx, {buffer_len}",
    "cmp rax, rcx",
    "cmova rax, rcx",
    "test rax, rax",
    "jz 28f",
    "26:",
    "test r9, r9",
    "jz 28f",
    "mov [rbx + {writable_at}], r9",
    "lock or byte ptr [r9], 0",
    "lock or byte ptr [r9 + rax - 1], 0",
    "mov [rbx + {writable_count}], eax",
    "28:",
    ".globl runsc_trap_brought",
    "runsc_trap_brought:",
    "mov dword ptr [rbx + {probing}], 0",
    "jmp 2f",
    // The CPU is given to others, without a word to the sentry.
    "50:",
    "cmp qword ptr gs:[{answers_at} + 8 * {sched_yield}], 0",
    "je 51b",
    "mov eax, {sched_yield}",
    "syscall",
    ".globl runsc_trap_yield",
    "runsc_trap_yield:",
    "mov rax, gs:[{packed}]",
    "shr rax, 32",
    "add al, 0x7f",
    "sahf",
    "mov rcx, gs:[{rip}]",
    "mov eax, 0",
    "jmp rcx",
    // A clock, as the vDSO tells it. Whatever fails is the sentry's to answer.
    "60:",
    "cmp qword ptr [rbx + {answers_at} + 8 * {clock_gettime}], 0",
    "je 61b",
    "mov rcx, [rbx + {clock}]",
    "test rcx, rcx",
    "jz 61b",
    "cmp edi, 11",
    "ja 61b",
    "mov r8d, {CLOCKS}",
    "bt r8d, edi",
    "jnc 61b",
    "mov r12, rsi",
    "cld",
    "mov dword ptr [rbx + {probing}], 1",
    "lea rsp, [rbx + {size}]",
    "lea rsi, [rbx + {taken}]",
    "call rcx",
    "test eax, eax",
    "jnz 28b",
    "mov rax, [rbx + {taken}]",
    "mov rcx, [rbx + {taken} + 8]",
    "mov [r12], rax",
    "mov [r12 + 8], rcx",
    "mov dword ptr [rbx + {probing}], 0",
    "mov qword ptr [rbx + {rax}], 0",
    "jmp 36f",
    // A signal: rdi = number, rsi = siginfo, rdx = ucontext, all on the context's stack. All registers are free.
    ".balign 16",
    ".globl runsc_trap_handler",
    "runsc_trap_handler:",
    "mov rbx, rsp",
    "and rbx, {mask}",
    // A fault of the copies is an outcome of them.
    "lea rax, [rip + 28b]",
    "cmp dword ptr [rbx + {probing}], 1",
    "je 29f",
    "lea rax, [rip + 33f]",
    "cmp dword ptr [rbx + {probing}], 2",
    "je 29f",
    "mov eax, [rbx + {state}]",
    "cmp eax, {COPY}",
    "je 9f",
    "cmp eax, {EXCHANGE}",
    "je 9f",
    "cmp eax, {STORE}",
    "je 9f",
    "mov [rbx + {signal}], edi",
    "mov [rbx + {info}], rsi",
    "mov [rbx + {frame}], rdx",
    "rdfsbase rax",
    "mov [rbx + {fs}], rax",
    "rdgsbase rax",
    "mov [rbx + {gs}], rax",
    "mov dword ptr [rbx + {kind}], {kind_signal}",
    "jmp 2f",
    "9:",
    "lea rax, [rip + 5f]",
    // It may have been raised in the vDSO, which uses that register.
    "29:",
    "mov [rdx + {frame_rbx}], rbx",
    "mov [rdx + {frame_rip}], rax",
    "mov rsp, rdx",
    "jmp 6f",
    // POST. rbx is the context.
    "2:",
    "mov eax, {TRAP}",
    "xchg [rbx + {state}], eax",
    "cmp eax, {RUN_ASLEEP}",
    "jne 3f",
    "41:",
    "lea rdi, [rbx + {state}]",
    "mov esi, 1",
    "mov edx, 1",
    "mov eax, 202",
    "syscall",
    ".globl runsc_trap_wake",
    "runsc_trap_wake:",
    // Wait: for a while by looking, then asleep.
    ".globl runsc_trap_rest",
    "runsc_trap_rest:",
    "3:",
    "mov ecx, [rbx + {patience}]",
    "4:",
    "mov eax, [rbx + {state}]",
    "cmp eax, {TRAP}",
    "jne 12f",
    "pause",
    "dec ecx",
    "jg 4b",
    "mov eax, {TRAP}",
    "mov ecx, {TRAP_ASLEEP}",
    "lock cmpxchg [rbx + {state}], ecx",
    "jne 12f",
    "11:",
    "lea rdi, [rbx + {state}]",
    "xor esi, esi",
    "mov edx, {TRAP_ASLEEP}",
    "xor r10d, r10d",
    "mov eax, 202",
    "syscall",
    ".globl runsc_trap_wait",
    "runsc_trap_wait:",
    "mov eax, [rbx + {state}]",
    "cmp eax, {TRAP_ASLEEP}",
    "je 11b",
    // An order: go on, or do something first.
    "12:",
    "cmp eax, {COPY}",
    "je 13f",
    "cmp eax, {EXCHANGE}",
    "je 14f",
    "cmp eax, {RUN}",
    "je 15f",
    "cmp eax, {RUN_ASLEEP}",
    "je 15f",
    "cmp eax, {STORE}",
    "je 19f",
    "pause",
    "jmp 3b",
    // Copy, as far as it goes.
    "13:",
    "cld",
    "mov rdi, [rbx + {target}]",
    "mov rsi, [rbx + {source}]",
    "mov rcx, [rbx + {length}]",
    "rep movsb",
    "mov [rbx + {length}], rcx",
    "16:",
    "mov ecx, [rbx + {wakes}]",
    "mov eax, {TRAP}",
    "xchg [rbx + {state}], eax",
    "test ecx, ecx",
    "jz 3b",
    "jmp 41b",
    // Compare and exchange a word.
    "14:",
    "mov rdi, [rbx + {target}]",
    "mov eax, [rbx + {source}]",
    "mov edx, [rbx + {length}]",
    "lock cmpxchg [rdi], edx",
    "mov [rbx + {source}], eax",
    "jmp 16b",
    // Store the extended state.
    "19:",
    "mov eax, [rbx + {components}]",
    "xor edx, edx",
    "xsave64 [rbx + {xstate}]",
    "jmp 16b",
    // It has faulted: rcx is what is left of a copy.
    "5:",
    "mov [rbx + {length}], rcx",
    "mov dword ptr [rbx + {faulted}], 1",
    "jmp 16b",
    // Back to the container.
    "15:",
    "cmp dword ptr [rbx + {kind}], {kind_call}",
    "je 17f",
    "cmp dword ptr [rbx + {full}], 0",
    "je 37f",
    "mov rax, [rbx + {fs}]",
    "wrfsbase rax",
    "mov rax, [rbx + {gs}]",
    "wrgsbase rax",
    "37:",
    "mov rsp, [rbx + {frame}]",
    "6:",
    "mov eax, 15",
    "syscall",
    ".globl runsc_trap_return",
    "runsc_trap_return:",
    "hlt",
    // The call's results first. Somebody may have taken the memory away since it was touched: then nobody sees them.
    "17:",
    "mov edx, [rbx + {pieces}]",
    "test edx, edx",
    "jz 34f",
    "cld",
    "mov dword ptr [rbx + {probing}], 2",
    "lea r10, [rbx + {piece}]",
    "32:",
    "mov rdi, [r10]",
    "mov rsi, [r10 + 8]",
    "mov rcx, [r10 + 16]",
    ".globl runsc_trap_store",
    "runsc_trap_store:",
    "rep movsb",
    "add r10, 24",
    "dec edx",
    "jnz 32b",
    "33:",
    "mov dword ptr [rbx + {probing}], 0",
    "34:",
    "cmp dword ptr [rbx + {full}], 0",
    "jne 35f",
    "36:",
    "test dword ptr [rbx + {scratch} - 8], 0x400",
    "jz 18f",
    "std",
    "18:",
    "mov rax, gs:[{packed}]",
    "shr rax, 32",
    "add al, 0x7f",
    "sahf",
    "mov rcx, gs:[{rip}]",
    "mov r11, gs:[{flags}]",
    // All that either return restores.
    "45:",
    "mov rdx, gs:[{rdx}]",
    "mov rsi, gs:[{rsi}]",
    "mov rdi, gs:[{rdi}]",
    "mov r8, gs:[{r8}]",
    "mov r9, gs:[{r9}]",
    "mov r10, gs:[{r10}]",
    "mov r12, gs:[{r12}]",
    "mov r13, gs:[{r13}]",
    "mov r14, gs:[{r14}]",
    "mov rsp, gs:[{rsp}]",
    "mov rax, gs:[{rax}]",
    "mov rbx, gs:[{rbx}]",
    "jmp gs:[{rip}]",
    // With other registers than those that it came with.
    "35:",
    "cmp dword ptr [rbx + {restore}], 0",
    "je 38f",
    "mov eax, [rbx + {components}]",
    "xor edx, edx",
    "xrstor64 [rbx + {xstate}]",
    "38:",
    "mov rax, [rbx + {fs}]",
    "wrfsbase rax",
    "wrgsbase rbx",
    "lea rsp, [rbx + {eflags}]",
    ".globl runsc_trap_pop",
    "runsc_trap_pop:",
    "popfq",
    "mov rcx, gs:[{rcx}]",
    "mov r11, gs:[{r11}]",
    "mov rbp, gs:[{rbp}]",
    "mov r15, gs:[{r15}]",
    "jmp 45b",
    // What calls bring and take: see `hint`.
    "40:",
    ".fill {answers}, 1, 0",
    ".globl runsc_trap_code_end",
    "runsc_trap_code_end:",
    ".popsection",
    window = const context::WINDOW >> 32,
    brought = const context::BROUGHT,
    brought_len = const context::BROUGHT_LEN,
    brought_at = const field::BROUGHT_AT,
    brought_count = const field::BROUGHT_COUNT,
    writable_at = const field::WRITABLE_AT,
    writable_count = const field::WRITABLE_COUNT,
    probing = const field::PROBING,
    pieces = const field::PIECES,
    piece = const field::PIECE,
    buffer_len = const context::BUFFER_LEN,
    stat = const hint::STAT,
    PATH_FIRST = const hint::PATH_FIRST,
    PATH_SECOND = const hint::PATH_SECOND,
    SECOND_8 = const hint::SECOND_8,
    SECOND_32 = const hint::SECOND_32,
    HINT_XSTATE = const hint::XSTATE,
    CLONE_ARGS = const hint::CLONE_ARGS,
    clone_args = const hint::CLONE_ARGS_LEN,
    OUT_THIRD_8 = const hint::OUT_THIRD_8 >> 4,
    OUT_THIRD_32 = const hint::OUT_THIRD_32 >> 4,
    OUT_SECOND_STAT = const hint::OUT_SECOND_STAT >> 4,
    OUT_SECOND_16 = const hint::OUT_SECOND_16 >> 4,
    OUT_SECOND_LEN = const hint::OUT_SECOND_LEN >> 4,
    OUT_SECOND_EVENTS = const hint::OUT_SECOND_EVENTS >> 4,
    mask = const -(context::SIZE as i64),
    answers = const context::ANSWERS,
    answers_at = const field::ANSWERS,
    state = const field::STATE,
    kind = const field::KIND,
    patience = const field::PATIENCE,
    signal = const field::SIGNAL,
    info = const field::INFO,
    frame = const field::FRAME,
    target = const field::TARGET,
    source = const field::SOURCE,
    length = const field::LENGTH,
    faulted = const field::FAULTED,
    packed = const field::PACKED,
    flags = const field::FLAGS,
    scratch = const field::FLAGS + 8,
    fs = const field::FS_BASE,
    gs = const field::GS_BASE,
    rip = const field::RIP,
    rsp = const field::RSP,
    rax = const field::RAX,
    rbx = const field::RBX,
    rdx = const field::RDX,
    rsi = const field::RSI,
    rdi = const field::RDI,
    rbp = const field::RBP,
    r8 = const field::R8,
    r9 = const field::R9,
    r10 = const field::R10,
    r12 = const field::R12,
    r13 = const field::R13,
    r14 = const field::R14,
    r15 = const field::R15,
    rcx = const field::RCX,
    r11 = const field::R11,
    eflags = const field::EFLAGS,
    full = const field::FULL,
    restore = const field::RESTORE,
    components = const field::COMPONENTS,
    xstate = const context::XSTATE,
    wakes = const field::WAKES,
    STORE = const state::STORE,
    clock = const field::CLOCK,
    CLOCKS = const CLOCKS,
    size = const context::SIZE,
    taken = const context::TAKEN,
    sched_yield = const libc::SYS_sched_yield,
    clock_gettime = const libc::SYS_clock_gettime,
    kind_call = const context::KIND_CALL,
    kind_signal = const context::KIND_SIGNAL,
    // `ucontext.uc_mcontext.rip`: 40 bytes of ucontext before the registers, of which it is the seventeenth; `rbx` the twelfth.
    frame_rip = const 40 + 16 * 8,
    frame_rbx = const 40 + 11 * 8,
    RUN = const state::RUN,
    RUN_ASLEEP = const state::RUN_ASLEEP,
    TRAP = const state::TRAP,
    TRAP_ASLEEP = const state::TRAP_ASLEEP,
    COPY = const state::COPY,
    EXCHANGE = const state::EXCHANGE,
);

unsafe extern "C" {
    static runsc_trap_code: u8;
    static runsc_trap_entry: u8;
    static runsc_trap_slow: u8;
    static runsc_trap_handler: u8;
    static runsc_trap_wake: u8;
    static runsc_trap_wait: u8;
    static runsc_trap_rest: u8;
    static runsc_trap_return: u8;
    static runsc_trap_yield: u8;
    static runsc_trap_pop: u8;
    static runsc_trap_bring: u8;
    static runsc_trap_brought: u8;
    static runsc_trap_store: u8;
    static runsc_trap_code_end: u8;
}

/// The code, to be copied to [`AT`] in the stub's page, with the table of [`hint`] behind it.
pub fn image() -> Vec<u8> {
    let start = &raw const runsc_trap_code;
    let len = len();
    assert!(AT + len <= PAGE, "it fits the page");
    // SAFETY: the two symbols bound read-only bytes of this program.
    let mut image = unsafe { std::slice::from_raw_parts(start, len) }.to_vec();
    let table = len - context::ANSWERS;
    image[table..].copy_from_slice(&hint::table());
    image
}

fn len() -> usize {
    &raw const runsc_trap_code_end as usize - &raw const runsc_trap_code as usize
}

fn place(symbol: *const u8) -> u64 {
    STUB + (AT + (symbol as usize - &raw const runsc_trap_code as usize)) as u64
}

/// Where slots jump to.
pub fn entry() -> u64 {
    place(&raw const runsc_trap_entry)
}

/// Where a trap of a thread without a context is found: behind its `int3`.
pub fn slow() -> u64 {
    place(&raw const runsc_trap_slow) + 1
}

/// The signal handler.
pub fn handler() -> u64 {
    place(&raw const runsc_trap_handler)
}

/// Behind the `futex` calls: waking, waiting.
pub fn futexes() -> [u64; 2] {
    [place(&raw const runsc_trap_wake), place(&raw const runsc_trap_wait)]
}

/// Where a thread waits for an answer, its context in `rbx`.
pub fn rest() -> u64 {
    place(&raw const runsc_trap_rest)
}

/// Behind the call of `sched_yield`.
pub fn yielding() -> u64 {
    place(&raw const runsc_trap_yield)
}

/// Where it takes the flags from the stack, by an instruction of one byte.
pub fn popping() -> u64 {
    place(&raw const runsc_trap_pop)
}

/// Behind the call of `rt_sigreturn`.
pub fn sigreturn() -> u64 {
    place(&raw const runsc_trap_return)
}

/// Where it copies what a call brings, and where it goes on without that.
pub fn bringing() -> [u64; 2] {
    [place(&raw const runsc_trap_bring), place(&raw const runsc_trap_brought)]
}

/// Where it stores a piece of what a call takes back: from `rsi` to `rdi`, `rcx` bytes, by an instruction of two.
pub fn storing() -> u64 {
    place(&raw const runsc_trap_store)
}

/// Where the code is.
pub fn range() -> Range<u64> {
    let start = STUB + AT as u64;
    start..start + len() as u64
}
