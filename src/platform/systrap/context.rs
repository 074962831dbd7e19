//! A context: the memory that one container thread's stub and its sentry thread share.
//!
//! ```text
//! 0x0000  state, registers, orders, answers        written by both
//! 0x1000  buffer for copies that the sentry orders
//! 0x2000  what a call brings with it; what it takes back   (see `hint`)
//! 0x3000  extended state that the sentry asks for or gives (see `thread::xstate`)
//! 0x4000  the stub's signal stack                   up to SIZE
//! ```
//!
//! The container can write to all of it at any time. The sentry reads each value once, believes nothing, and indexes with
//! nothing from here without a check; the worst that a false value does is to give the container thread other registers,
//! which it could have had anyway.
//!
//! # States
//!
//! One word says whose turn it is, and each change is one atomic exchange:
//!
//! ```text
//!            stub: xchg                      sentry: cmpxchg
//! RUN ───────────────────▶ TRAP ◀──────────────────────────▶ COPY, … (an order: the stub does it and says TRAP again)
//!  │ ▲                      │ ▲
//!  ▼ │ sentry sleeps        ▼ │ stub sleeps
//! RUN_ASLEEP               TRAP_ASLEEP ─ sentry: xchg ─▶ RUN or RUN_ASLEEP
//! ```

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::arena::Slab;
use crate::platform::{Answer, Regs};

/// Bytes of a context: a power of two, which is what contexts are aligned to. The signal stack must hold a frame with all
/// extended state that the processor has: 11 KiB and some with AMX.
pub const SIZE: u64 = 0x8000;

/// Contexts are at these addresses of a stub, which the container may not map.
pub const WINDOW: u64 = 0x7fff_0000_0000;

/// The window's end: that of the lower half, less a page that Linux never maps.
pub const WINDOW_END: u64 = 0x7fff_ffff_f000;

/// How many contexts one process can have.
pub const MOST: usize = ((WINDOW_END - WINDOW) / SIZE) as usize;

/// Where the buffer is in a context.
pub const BUFFER: u64 = 0x1000;

/// Bytes in the buffer.
pub const BUFFER_LEN: usize = 0x1000;

/// Where what a call brings with it is in a context.
pub const BROUGHT: u64 = 0x2000;

/// How much that can be.
pub const BROUGHT_LEN: usize = 0x400;

/// Where what a call takes back is in a context.
pub const TAKEN: u64 = BROUGHT + BROUGHT_LEN as u64;

/// How much that can be.
pub const TAKEN_LEN: usize = 0xc00;

/// How many pieces that can be.
pub const PIECES: usize = 4;

/// Where extended state is in a context: an XSAVE area in standard format.
pub const XSTATE: u64 = 0x3000;

/// How much that can be.
pub const XSTATE_LEN: usize = 0x1000;

/// Where the signal stack is in a context.
pub const STACK: u64 = 0x4000;

/// How many system-call numbers can have an answer.
pub const ANSWERS: usize = 440;

/// What the stub stopped for: a call through a rewritten site.
pub const KIND_CALL: u32 = 0;
/// What the stub stopped for: a signal.
pub const KIND_SIGNAL: u32 = 1;

/// Whose turn it is.
pub mod state {
    /// The container runs; the sentry looks.
    pub const RUN: u32 = 0;
    /// The container runs; the sentry sleeps and must be woken.
    pub const RUN_ASLEEP: u32 = 1;
    /// The stub waits, looking.
    pub const TRAP: u32 = 2;
    /// The stub waits asleep and must be woken.
    pub const TRAP_ASLEEP: u32 = 3;
    /// The stub is to copy.
    pub const COPY: u32 = 4;
    /// The stub is to compare and exchange.
    pub const EXCHANGE: u32 = 5;
    /// The stub is to store its extended state.
    pub const STORE: u32 = 6;
}

/// Offsets.
#[allow(missing_docs, reason = "the registers' names")]
pub mod field {
    pub const STATE: usize = 0x00;
    pub const KIND: usize = 0x08;
    /// How often the stub looks before it sleeps.
    pub const PATIENCE: usize = 0x0c;
    pub const SIGNAL: usize = 0x10;
    pub const FAULTED: usize = 0x14;
    pub const INFO: usize = 0x18;
    pub const FRAME: usize = 0x20;
    pub const TARGET: usize = 0x28;
    pub const SOURCE: usize = 0x30;
    pub const LENGTH: usize = 0x38;
    pub const R15: usize = 0x40;
    pub const R14: usize = 0x48;
    pub const R13: usize = 0x50;
    pub const R12: usize = 0x58;
    pub const RBP: usize = 0x60;
    pub const RBX: usize = 0x68;
    pub const R10: usize = 0x70;
    pub const R9: usize = 0x78;
    pub const R8: usize = 0x80;
    pub const RDX: usize = 0x88;
    pub const RSI: usize = 0x90;
    pub const RDI: usize = 0x98;
    pub const RSP: usize = 0xa0;
    pub const RIP: usize = 0xa8;
    pub const RAX: usize = 0xb0;
    /// `lahf` and `seto` above the call's number.
    pub const PACKED: usize = 0xb8;
    pub const FS_BASE: usize = 0xc0;
    pub const GS_BASE: usize = 0xc8;
    /// What `pushfq` stored, true but for the arithmetic flags.
    pub const FLAGS: usize = 0xd0;
    /// Registers that a call through a site changes: for a return that restores all of them.
    pub const RCX: usize = 0xd8;
    pub const R11: usize = 0xe0;
    pub const EFLAGS: usize = 0xe8;
    /// Whether the return is such a one.
    pub const FULL: usize = 0xf0;
    /// Whether it restores extended state too.
    pub const RESTORE: usize = 0xf4;
    /// Which components of that: the lower half, the upper one being zero.
    pub const COMPONENTS: usize = 0xf8;
    /// What the call has brought: bytes from this address on are at [`super::BROUGHT`].
    pub const BROUGHT_AT: usize = 0x100;
    pub const BROUGHT_COUNT: usize = 0x108;
    /// Set while the stub touches the container's memory of its own accord.
    pub const PROBING: usize = 0x10c;
    /// Where the call's result may be stored: the stub has found it writable.
    pub const WRITABLE_AT: usize = 0x110;
    pub const WRITABLE_COUNT: usize = 0x118;
    /// How many pieces the stub is to store before it goes on, and these: address, place in the context, length.
    pub const PIECES: usize = 0x11c;
    pub const PIECE: usize = 0x120;
    /// Where the vDSO's `clock_gettime` is; 0: nowhere.
    pub const CLOCK: usize = 0x180;
    /// Whether the sentry sleeps until an order is carried out.
    pub const WAKES: usize = 0xfc;
    pub const ANSWERS: usize = 0x200;
}

const _: () = assert!(field::ANSWERS + super::context::ANSWERS * 8 <= BUFFER as usize);
const _: () = assert!(field::PIECE + PIECES * 24 <= field::CLOCK);

/// Arithmetic flags, which `lahf` and `seto` tell: CF, PF, AF, ZF, SF; OF.
const LOW_FLAGS: u64 = 0xd5;
const OVERFLOW: u64 = 0x800;

/// One context, as the sentry sees it.
pub struct Context {
    slab: Slab,
    /// Which of its process's contexts it is.
    index: usize,
    /// Whether its process has it mapped.
    pub mapped: bool,
    /// Set when its thread has been stopped since it did not do as told.
    pub halted: Cell<bool>,
    /// Whether its thread looks for a while when it waits: it has a CPU to itself then. One that does not may be found before it
    /// sleeps, but cannot do anything as long as the sentry thread has its CPU.
    looks: Cell<bool>,
}

impl Context {
    /// The context at `index` of a process, in the memory `slab`.
    pub fn new(slab: Slab, index: usize, mapped: bool) -> Context {
        Context { slab, index, mapped, halted: Cell::new(false), looks: Cell::new(false) }
    }

    /// Takes away all that a thread or program before may have left: answers above all.
    pub fn clear(&self) {
        (0..BUFFER as usize).step_by(8).for_each(|offset| self.set(offset, 0));
    }

    /// Its address in the stub.
    pub fn address(&self) -> u64 {
        WINDOW + self.index as u64 * SIZE
    }

    /// Where its memory is in the arena's file.
    pub fn offset(&self) -> u64 {
        self.slab.offset()
    }

    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < SIZE as usize);
        // SAFETY: within the slab, which is mapped as long as this lives.
        unsafe { self.slab.start().add(offset) }
    }

    /// Copies from `offset` on, `room` bytes at most.
    fn copy_out(&self, offset: usize, room: usize, bytes: &mut [u8]) {
        let len = bytes.len().min(room).min((SIZE as usize).saturating_sub(offset));
        if len > 0 {
            // SAFETY: within the slab; a container that writes meanwhile changes which bytes arrive, nothing else.
            unsafe { std::ptr::copy_nonoverlapping(self.at(offset), bytes.as_mut_ptr(), len) };
        }
    }

    /// Copies to `offset`, `room` bytes at most.
    fn copy_in(&self, offset: usize, room: usize, bytes: &[u8]) {
        let len = bytes.len().min(room).min((SIZE as usize).saturating_sub(offset));
        if len > 0 {
            // SAFETY: within the slab.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(offset), len) };
        }
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: aligned, mapped, and never accessed but atomically.
        unsafe { &*self.at(offset).cast() }
    }

    fn quad(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as for `word`.
        unsafe { &*self.at(offset).cast() }
    }

    /// The word that says whose turn it is.
    pub fn state(&self) -> &AtomicU32 {
        self.word(field::STATE)
    }

    /// How often the stub looks for its answer before it sleeps.
    pub fn set_patience(&self, looks: u32) {
        self.looks.set(looks > 0);
        self.word(field::PATIENCE).store(looks, Ordering::Relaxed);
    }

    fn get(&self, offset: usize) -> u64 {
        self.quad(offset).load(Ordering::Relaxed)
    }

    fn set(&self, offset: usize, value: u64) {
        self.quad(offset).store(value, Ordering::Relaxed);
    }

    /// Leaves the answer to a call for the stub, which then does not ask; `None` takes it back.
    pub fn set_answer(&self, number: usize, answer: Option<Answer>) {
        if number < ANSWERS {
            let entry = match answer {
                Some(Answer::Is(value)) => 1 << 63 | u64::from(value),
                // Without the highest bit: the stub's code for this very call looks.
                Some(Answer::Platforms) => 1,
                None => 0,
            };
            self.set(field::ANSWERS + number * 8, entry);
        }
    }

    /// Where the stub finds the vDSO's `clock_gettime`; 0: nowhere.
    pub fn set_clock(&self, address: u64) {
        self.set(field::CLOCK, address);
    }

    /// The same, to be changed by another thread than the one whose context this is.
    pub fn clock(&self) -> *const AtomicU64 {
        self.quad(field::CLOCK)
    }

    /// The result of a call through a rewritten site.
    pub fn set_result(&self, rax: u64) {
        self.set(field::RAX, rax);
    }

    /// What the stub stopped for.
    pub fn stop(&self) -> Stop {
        match self.word(field::KIND).load(Ordering::Relaxed) {
            KIND_CALL => Stop::Call,
            _ => Stop::Signal,
        }
    }

    /// Takes over the registers of a call through a rewritten site. `rip` is where the stub is to go on.
    pub fn load_call(&self, regs: &mut Regs) {
        (regs.r15, regs.r14, regs.r13, regs.r12) =
            (self.get(field::R15), self.get(field::R14), self.get(field::R13), self.get(field::R12));
        (regs.rbp, regs.rbx, regs.r10, regs.r9) =
            (self.get(field::RBP), self.get(field::RBX), self.get(field::R10), self.get(field::R9));
        (regs.r8, regs.rdx, regs.rsi, regs.rdi) =
            (self.get(field::R8), self.get(field::RDX), self.get(field::RSI), self.get(field::RDI));
        (regs.rsp, regs.rip) = (self.get(field::RSP), self.get(field::RIP));
        let packed = self.get(field::PACKED);
        let (overflow, low) = (packed >> 32 & 1, packed >> 40);
        let known = self.get(field::FLAGS) & !(LOW_FLAGS | OVERFLOW);
        regs.eflags = known | low & LOW_FLAGS | if overflow == 0 { 0 } else { OVERFLOW };
        regs.r11 = regs.eflags;
        regs.rcx = regs.rip;
        regs.fs_base = self.get(field::FS_BASE);
        regs.gs_base = 0;
        regs.orig_rax = u64::from(packed as u32);
        regs.rax = (-i64::from(libc::ENOSYS)) as u64;
    }

    /// Has the stub go on at `rip` after a call through a rewritten site.
    pub fn set_resume(&self, rip: u64) {
        self.set(field::RIP, rip);
    }

    /// Whether the stub, when it goes on, takes what [`Context::set_registers`] and [`Context::set_bases`] have left for it.
    pub fn set_full(&self, full: bool) {
        self.word(field::FULL).store(full.into(), Ordering::Relaxed);
    }

    /// Has the stub go on with these registers and no other `%gs` than its context. The trap flag must not be set.
    pub fn set_registers(&self, regs: &Regs) {
        let words = [
            (field::R15, regs.r15),
            (field::R14, regs.r14),
            (field::R13, regs.r13),
            (field::R12, regs.r12),
            (field::RBP, regs.rbp),
            (field::RBX, regs.rbx),
            (field::R11, regs.r11),
            (field::R10, regs.r10),
            (field::R9, regs.r9),
            (field::R8, regs.r8),
            (field::RAX, regs.rax),
            (field::RCX, regs.rcx),
            (field::RDX, regs.rdx),
            (field::RSI, regs.rsi),
            (field::RDI, regs.rdi),
            (field::RSP, regs.rsp),
            (field::RIP, regs.rip),
            (field::EFLAGS, regs.eflags),
            (field::FS_BASE, regs.fs_base),
        ];
        for (field, value) in words {
            self.set(field, value);
        }
    }

    /// Has the stub return from its signal with these bases.
    pub fn set_bases(&self, fs: u64, gs: u64) {
        self.set(field::FS_BASE, fs);
        self.set(field::GS_BASE, gs);
    }

    /// Makes it look as if the stub had stopped for a call, so that it goes on without returning from a signal.
    pub fn set_called(&self) {
        self.word(field::KIND).store(KIND_CALL, Ordering::Relaxed);
    }

    /// Which components of extended state the stub stores and restores.
    pub fn set_components(&self, components: u32) {
        self.word(field::COMPONENTS).store(components, Ordering::Relaxed);
    }

    /// Whether the stub restores extended state when it goes on with other registers.
    pub fn set_restores(&self, restores: bool) {
        self.word(field::RESTORE).store(restores.into(), Ordering::Relaxed);
    }

    /// Copies from where extended state is.
    pub fn read_xstate(&self, image: &mut [u8]) {
        self.copy_out(XSTATE as usize, XSTATE_LEN, image);
    }

    /// Copies to where extended state is.
    pub fn write_xstate(&self, image: &[u8]) {
        self.copy_in(XSTATE as usize, XSTATE_LEN, image);
    }

    /// What the call has brought with it, and where its result may be stored: addresses and lengths, in bounds.
    pub fn luggage(&self) -> Luggage {
        let word = |field| self.word(field).load(Ordering::Relaxed);
        let count = word(field::BROUGHT_COUNT);
        Luggage {
            brought: (self.get(field::BROUGHT_AT), (count as u16 as usize).min(BROUGHT_LEN)),
            is_string: count & STRING != 0,
            writable: (self.get(field::WRITABLE_AT), (word(field::WRITABLE_COUNT) as usize).min(BUFFER_LEN)),
        }
    }

    /// Nothing is under way.
    pub fn begin(&self) {
        for field in
            [field::PROBING, field::PIECES, field::BROUGHT_COUNT, field::WRITABLE_COUNT, field::FULL, field::RESTORE]
        {
            self.word(field).store(0, Ordering::Relaxed);
        }
    }

    /// Copies from what the call has brought, from `offset` on.
    pub fn read_brought(&self, offset: usize, bytes: &mut [u8]) {
        self.copy_out(BROUGHT as usize + offset, BROUGHT_LEN.saturating_sub(offset), bytes);
    }

    /// Leaves `bytes` for the stub to store at `address` when it goes on, as piece `index`, at `offset` of what is taken back.
    pub fn leave_piece(&self, index: usize, address: u64, offset: usize, bytes: &[u8]) {
        debug_assert!(index < PIECES && offset + bytes.len() <= TAKEN_LEN);
        let place = TAKEN as usize + offset;
        self.copy_in(place, TAKEN_LEN.saturating_sub(offset), bytes);
        let piece = field::PIECE + index * 24;
        self.set(piece, address);
        self.set(piece + 8, self.address() + place as u64);
        self.set(piece + 16, bytes.len() as u64);
    }

    /// Copies a piece back.
    pub fn read_taken(&self, offset: usize, bytes: &mut [u8]) {
        self.copy_out(TAKEN as usize + offset, TAKEN_LEN.saturating_sub(offset), bytes);
    }

    /// How many pieces the stub is to store.
    pub fn set_pieces(&self, count: usize) {
        self.word(field::PIECES).store(count as u32, Ordering::Relaxed);
    }

    /// What the stub's handler was told. `None` when it makes no sense: the container has written here.
    pub fn load_signal(&self) -> Option<Frame<'_>> {
        let (frame, info) = (self.get(field::FRAME), self.get(field::INFO));
        Frame::new(self, frame, info, self.word(field::SIGNAL).load(Ordering::Relaxed) as i32)
    }

    /// The frame at `address`, of a signal within the stub's own code. Only its registers and extended state are told.
    pub fn nested_frame(&self, address: u64) -> Option<Frame<'_>> {
        Frame::new(self, address, address, 0)
    }

    fn inside(&self, address: u64, len: u64) -> Option<usize> {
        let offset = address.checked_sub(self.address()).filter(|&offset| offset >= STACK)?;
        (offset.checked_add(len)? <= SIZE && address.is_multiple_of(8)).then_some(offset as usize)
    }

    /// Orders a copy of `len` bytes from `source` to `target`, addresses of the stub, and says whether it may be waited for:
    /// not when the stub sleeps, or has no CPU.
    pub fn order_copy(&self, target: u64, source: u64, len: usize) -> bool {
        self.set_operands(target, source, len as u64);
        self.give_awake(state::COPY)
    }

    /// Orders to compare and exchange the word at `address`.
    pub fn order_exchange(&self, address: u64, expected: u32, new: u32) -> Given {
        self.set_operands(address, expected.into(), new.into());
        self.give(state::EXCHANGE)
    }

    /// Orders to store the extended state.
    pub fn order_store(&self) -> Given {
        self.give(state::STORE)
    }

    fn exchange(&self, from: u32, to: u32) -> bool {
        self.state().compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn prepare(&self, asleep: bool) {
        self.word(field::WAKES).store(asleep.into(), Ordering::Relaxed);
        self.word(field::FAULTED).store(0, Ordering::Relaxed);
    }

    fn set_operands(&self, target: u64, source: u64, length: u64) {
        self.set(field::TARGET, target);
        self.set(field::SOURCE, source);
        self.set(field::LENGTH, length);
    }

    /// Gives an order to a stub that looks. Whether it has taken it.
    fn give_awake(&self, order: u32) -> bool {
        if self.halted.get() || !self.looks.get() || self.state().load(Ordering::Relaxed) != state::TRAP {
            return false;
        }
        self.prepare(false);
        self.exchange(state::TRAP, order)
    }

    /// Gives an order to a stub that looks, or to one that sleeps, which is to be woken then.
    fn give(&self, order: u32) -> Given {
        if self.give_awake(order) {
            return Given::Awake;
        }
        if self.halted.get() {
            return Given::Not;
        }
        self.prepare(true);
        let given = self.exchange(state::TRAP_ASLEEP, order) || self.exchange(state::TRAP, order);
        if given { Given::Asleep(order) } else { Given::Not }
    }

    /// Whether the order was carried out without a fault.
    pub fn succeeded(&self) -> bool {
        self.word(field::FAULTED).load(Ordering::Relaxed) == 0
    }

    /// How much of a copy was left over.
    pub fn copy_left(&self) -> u64 {
        self.get(field::LENGTH)
    }

    /// What a compare-and-exchange found; `None` when it faulted.
    pub fn exchanged(&self) -> Option<u32> {
        self.succeeded().then(|| self.get(field::SOURCE) as u32)
    }

    /// The buffer's address in the stub.
    pub fn buffer_address(&self) -> u64 {
        self.address() + BUFFER
    }

    /// Copies from the buffer.
    pub fn read_buffer(&self, bytes: &mut [u8]) {
        self.copy_out(BUFFER as usize, BUFFER_LEN, bytes);
    }

    /// Copies to the buffer.
    pub fn write_buffer(&self, bytes: &[u8]) {
        self.copy_in(BUFFER as usize, BUFFER_LEN, bytes);
    }

    /// Gives the memory back, for another thread of the same process.
    pub fn into_slab(self) -> (Slab, usize, bool) {
        (self.slab, self.index, self.mapped)
    }
}

/// Whether an order was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// The stub does not wait.
    Not,
    /// It looks, and has taken it.
    Awake,
    /// It sleeps, or is about to, and must be woken and waited for: its state is this until it is done.
    Asleep(u32),
}

/// In the count of what a call has brought: a string.
const STRING: u32 = 1 << 31;

/// See [`Context::luggage`].
pub struct Luggage {
    /// Address and length.
    pub brought: (u64, usize),
    /// Whether what matters of it ends at the first zero.
    pub is_string: bool,
    /// Address and length.
    pub writable: (u64, usize),
}

/// What the stub stopped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A call through a rewritten site.
    Call,
    /// A signal's frame is on the context's stack.
    Signal,
}

/// A signal frame on a context's stack: `struct ucontext` and `siginfo_t` as the host's kernel wrote them.
pub struct Frame<'a> {
    context: &'a Context,
    ucontext: usize,
    info: usize,
    /// The signal's number.
    pub signal: i32,
}

/// Where the FXSAVE area leaves room for software: `struct _fpx_sw_bytes`.
const SOFTWARE: std::ops::Range<usize> = 464..512;

/// `FP_XSTATE_MAGIC1`: there is more than that area.
const MAGIC: u32 = 0x4650_5853;

/// Where the registers are in `struct ucontext`, and how many words of them there are (`struct sigcontext`).
const GREGS: usize = 40;
const WORDS: usize = 32;

/// Which word of them is which register.
#[rustfmt::skip]
mod word {
    pub const R8: usize = 0; pub const R9: usize = 1; pub const R10: usize = 2; pub const R11: usize = 3;
    pub const R12: usize = 4; pub const R13: usize = 5; pub const R14: usize = 6; pub const R15: usize = 7;
    pub const RDI: usize = 8; pub const RSI: usize = 9; pub const RBP: usize = 10; pub const RBX: usize = 11;
    pub const RDX: usize = 12; pub const RAX: usize = 13; pub const RCX: usize = 14; pub const RSP: usize = 15;
    pub const RIP: usize = 16; pub const EFLAGS: usize = 17; pub const FPSTATE: usize = 23;
}

impl<'a> Frame<'a> {
    fn new(context: &'a Context, ucontext: u64, info: u64, signal: i32) -> Option<Frame<'a>> {
        let ucontext = context.inside(ucontext, (GREGS + WORDS * 8) as u64)?;
        let info = context.inside(info, size_of::<libc::siginfo_t>() as u64)?;
        Some(Frame { context, ucontext, info, signal })
    }

    /// Where it is in the stub: what `rt_sigreturn` finds at the stack's pointer.
    pub fn address(&self) -> u64 {
        self.context.address() + self.ucontext as u64
    }

    fn register(&self, word: usize) -> &AtomicU64 {
        self.context.quad(self.ucontext + GREGS + word * 8)
    }

    /// Takes over the registers.
    pub fn load(&self, regs: &mut Regs) {
        let get = |word| self.register(word).load(Ordering::Relaxed);
        (regs.r8, regs.r9, regs.r10, regs.r11) = (get(word::R8), get(word::R9), get(word::R10), get(word::R11));
        (regs.r12, regs.r13, regs.r14, regs.r15) = (get(word::R12), get(word::R13), get(word::R14), get(word::R15));
        (regs.rdi, regs.rsi, regs.rbp, regs.rbx) = (get(word::RDI), get(word::RSI), get(word::RBP), get(word::RBX));
        (regs.rdx, regs.rax, regs.rcx, regs.rsp) = (get(word::RDX), get(word::RAX), get(word::RCX), get(word::RSP));
        (regs.rip, regs.eflags) = (get(word::RIP), get(word::EFLAGS));
        regs.fs_base = self.context.get(field::FS_BASE);
        regs.gs_base = self.context.get(field::GS_BASE);
        regs.orig_rax = u64::MAX;
    }

    /// Has `rt_sigreturn` restore these.
    pub fn store(&self, regs: &Regs) {
        let set = |word, value| self.register(word).store(value, Ordering::Relaxed);
        let words = [
            (word::R8, regs.r8),
            (word::R9, regs.r9),
            (word::R10, regs.r10),
            (word::R11, regs.r11),
            (word::R12, regs.r12),
            (word::R13, regs.r13),
            (word::R14, regs.r14),
            (word::R15, regs.r15),
            (word::RDI, regs.rdi),
            (word::RSI, regs.rsi),
            (word::RBP, regs.rbp),
            (word::RBX, regs.rbx),
            (word::RDX, regs.rdx),
            (word::RAX, regs.rax),
            (word::RCX, regs.rcx),
            (word::RSP, regs.rsp),
            (word::RIP, regs.rip),
            (word::EFLAGS, regs.eflags),
        ];
        for (word, value) in words {
            set(word, value);
        }
    }

    /// What the host said of the signal.
    pub fn info(&self) -> libc::siginfo_t {
        // SAFETY: within the slab and aligned; integers, read once.
        unsafe { std::ptr::read_volatile(self.context.at(self.info).cast()) }
    }

    /// Puts `image` in the place of the saved extended state, if that has room for it. The frame's own words about its
    /// format stay.
    pub fn store_xstate(&self, image: &[u8]) -> bool {
        let Some((at, len)) = self.saved() else { return false };
        if image.len() > len || image.len() < SOFTWARE.end {
            return false;
        }
        for range in [0..SOFTWARE.start, SOFTWARE.end..image.len()] {
            self.context.copy_in(at + range.start, range.len(), &image[range]);
        }
        true
    }

    /// Where the extended state is, and its length.
    fn saved(&self) -> Option<(usize, usize)> {
        let address = self.register(word::FPSTATE).load(Ordering::Relaxed);
        let at = self.context.inside(address, SOFTWARE.end as u64)?;
        let word = |offset: usize| self.context.word(at + SOFTWARE.start + offset).load(Ordering::Relaxed);
        let room = SIZE as usize - at;
        Some((at, if word(0) == MAGIC { (word(16) as usize).clamp(SOFTWARE.end, room) } else { SOFTWARE.end }))
    }

    /// Copies the saved extended state over `image`, an XSAVE image in standard format of the host's full size, as far as
    /// the frame has it.
    pub fn load_xstate(&self, image: &mut [u8]) {
        let Some((at, len)) = self.saved() else { return };
        let len = len.min(image.len());
        if len < SOFTWARE.end {
            return;
        }
        for range in [0..SOFTWARE.start, SOFTWARE.end..len] {
            self.context.copy_out(at + range.start, range.len(), &mut image[range]);
        }
        if len > SOFTWARE.end {
            image[len..].fill(0);
        } else if let Some(header) = image.get_mut(512..520) {
            // x87 and SSE are there.
            header.copy_from_slice(&3u64.to_ne_bytes());
        }
    }
}
