//! The call of a signal handler and its return: the x86_64 `rt_sigframe` on the container's stack.
//!
//! ```text
//! higher   interrupted stack, or the top of the alternate one
//!          128 bytes that leaf functions may use below their stack pointer (not on a fresh alternate stack)
//!          XSAVE image, 64-byte aligned, with a magic number behind it       ◀─ uc_mcontext.fpstate
//!          siginfo                                                           ◀─ rsi
//!          ucontext                                                          ◀─ rdx
//! lower    restorer's address                                                ◀─ rsp, which is 8 modulo 16, as after a call
//! ```
//!
//! Delivery costs one host call for the extended state and one for the whole frame; `rt_sigreturn` one for the frame, when
//! the image is where we put it, and one for the state. Both move the image, 2.7 KiB with AVX-512.
//!
//! All that comes back is the container's to choose. Values are taken over only as far as `iretq` to user mode lets them
//! do no harm: arithmetic flags, the selectors of 64-bit code, an image that the host's kernel accepts.

use std::sync::OnceLock;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{AltStack, SigAction, SigInfo, SigSet, Signal, StackT};
use crate::errno::{Errno, Result};
use crate::platform::{AddressSpace, Regs, UserThread};
use crate::sentry::mm::user;

/// `struct sigcontext`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SigContext {
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    eflags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    err: u64,
    trapno: u64,
    oldmask: u64,
    cr2: u64,
    fpstate: u64,
    reserved: [u64; 8],
}

/// `struct ucontext` as the kernel makes it: its mask has 8 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct UContext {
    flags: u64,
    link: u64,
    stack: StackT,
    mcontext: SigContext,
    sigmask: u64,
}

/// `struct rt_sigframe`, without the image behind it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RtSigFrame {
    restorer: u64,
    uc: UContext,
    info: SigInfo,
}

const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;

const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;

/// Where the software's bytes are in the image, and where the XSAVE header is.
const SW_RESERVED: usize = 464;
const HEADER: usize = 512;
/// The smallest XSAVE image: the legacy area and the header.
const MIN_IMAGE: usize = 576;
/// x87 and SSE: what an image without a valid description holds.
const XFEATURE_FPSSE: u64 = 3;
/// Protection keys, which a handler starts with as they are.
const XFEATURE_PKRU: u64 = 1 << 9;
/// AMX tiles: a program gets them on request (`ARCH_REQ_XCOMP_PERM`), and no request is granted.
const XFEATURE_XTILEDATA: u64 = 1 << 18;

/// The x87 control word and MXCSR that a program and a handler start with.
const INITIAL_FCW: u16 = 0x37f;
const INITIAL_MXCSR: u32 = 0x1f80;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const TF: u64 = 1 << 8;
const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const RF: u64 = 1 << 16;
const AC: u64 = 1 << 18;
/// What `rt_sigreturn` restores of the flags.
const RESTORED_FLAGS: u64 = CF | PF | AF | ZF | SF | TF | DF | OF | RF | AC;

/// The part of the stack below the pointer that functions may use: System V ABI, "red zone".
const RED_ZONE: u64 = 128;

/// What the processor said of a thread's last fault: `trapno`, `err` and `cr2` of `sigcontext`. Kept by the thread, since
/// every later frame repeats it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trap {
    /// The exception's vector.
    pub number: u64,
    /// Its error code.
    pub error: u64,
    /// The address of a page fault.
    pub address: u64,
}

impl Trap {
    /// From a fault's signal. The host does not tell the error code: of a page fault it says that user code made it, and
    /// that the page was there when protection was the reason; not whether it was a write.
    pub fn from_fault(info: &SigInfo, previous: Trap) -> Trap {
        const USER: u64 = 4;
        const PRESENT: u64 = 1;
        const SI_KERNEL: i32 = 0x80;
        const SEGV_ACCERR: i32 = 2;
        let number = match (info.signal(), info.code()) {
            (Signal::SEGV, SI_KERNEL) => 13,
            (Signal::SEGV, code) => {
                let error = USER | if code == SEGV_ACCERR { PRESENT } else { 0 };
                return Trap { number: 14, error, address: info.addr() };
            }
            (Signal::BUS, libc::BUS_ADRALN) => 17,
            (Signal::BUS, _) => return Trap { number: 14, error: USER, address: info.addr() },
            (Signal::FPE, 1) => 0,
            (Signal::FPE, _) => 19,
            (Signal::ILL, _) => 6,
            (Signal::TRAP, libc::TRAP_TRACE) => 1,
            _ => 3,
        };
        Trap { number, error: 0, ..previous }
    }
}

/// That of this host, once a frame was made.
static FORMAT: OnceLock<Format> = OnceLock::new();

/// The extended state's extent in a frame.
#[derive(Clone, Copy, Debug)]
struct Format {
    /// The state components that a frame holds.
    features: u64,
    /// How long the image in a frame is.
    size: usize,
    /// How long the host's image is.
    host_size: usize,
}

impl Format {
    /// From an image of the host's, which notes its components (XCR0) in the first of the software's bytes.
    fn from_image(image: &[u8]) -> Result<Format> {
        if image.len() < MIN_IMAGE {
            return Err(Errno::EINVAL);
        }
        Ok(*FORMAT.get_or_init(|| {
            let features = u64_at(image, SW_RESERVED) & !XFEATURE_XTILEDATA | XFEATURE_FPSSE;
            let mut size = MIN_IMAGE;
            for component in (2..63).filter(|component| features & 1 << component != 0) {
                let leaf = std::arch::x86_64::__cpuid_count(0xd, component);
                size = size.max(leaf.ebx as usize + leaf.eax as usize);
            }
            Format { features, size: size.min(image.len()), host_size: image.len() }
        }))
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// What a handler is called for.
pub struct Delivery<'a> {
    /// The action, whose handler is a function of the container's.
    pub action: &'a SigAction,
    /// The signal and what is known of it.
    pub info: &'a SigInfo,
    /// The mask to return to.
    pub mask: SigSet,
    /// The thread's last fault.
    pub trap: Trap,
}

/// Makes the thread call a handler when it runs next. The registers must be those to return to (after the decision on a
/// restart). The caller then blocks [`SigAction::handler_mask`].
///
/// `EFAULT`: the frame cannot be stored (or overflows the alternate stack, or there is no `SA_RESTORER`): nothing has
/// changed and the caller forces SIGSEGV. Other errors: the host thread is gone.
pub fn build(thread: &mut dyn UserThread, delivery: &Delivery<'_>, altstack: &mut AltStack) -> Result<()> {
    let Delivery { action, info, .. } = delivery;
    if !action.has(SigAction::RESTORER) {
        return Err(Errno::EFAULT);
    }
    let image = thread.xstate()?;
    let format = Format::from_image(&image)?;
    let regs = *thread.regs();
    let place = Place::find(&regs, action, altstack, format).ok_or(Errno::EFAULT)?;

    let len = (place.image - place.frame) as usize + format.size + size_of::<u32>();
    let mut bytes = vec![0u8; len];
    let frame = frame(delivery, &regs, place, altstack);
    put(&mut bytes, 0, frame.as_bytes());
    let at = (place.image - place.frame) as usize;
    write_image(&mut bytes[at..], &image, format);
    user::write_all(&**thread.space(), place.frame, &bytes)?;

    reset_fpu(thread, image)?;
    altstack.disarm();
    let regs = thread.regs_mut();
    regs.rdi = info.signal().number() as u64;
    regs.rsi = place.frame + std::mem::offset_of!(RtSigFrame, info) as u64;
    regs.rdx = place.frame + std::mem::offset_of!(RtSigFrame, uc) as u64;
    regs.rax = 0;
    regs.rsp = place.frame;
    regs.rip = action.handler;
    regs.eflags &= !(DF | RF | TF);
    regs.orig_rax = u64::MAX;
    Ok(())
}

/// Where the parts of a frame go.
#[derive(Clone, Copy)]
struct Place {
    frame: u64,
    image: u64,
}

impl Place {
    /// `None` when there is no room in the address space or on the alternate stack.
    fn find(regs: &Regs, action: &SigAction, altstack: &AltStack, format: Format) -> Option<Place> {
        let entered = if action.has(SigAction::ONSTACK) { altstack.top_for(regs.rsp) } else { None };
        let top = match entered {
            Some(top) => top,
            None => regs.rsp.checked_sub(RED_ZONE)?,
        };
        let image = top.checked_sub((format.size + size_of::<u32>()) as u64)? & !63;
        let frame = (image.checked_sub(size_of::<RtSigFrame>() as u64)? & !15).checked_sub(8)?;
        let on_altstack = entered.is_some() || altstack.contains(regs.rsp);
        (!on_altstack || altstack.spans(frame)).then_some(Place { frame, image })
    }
}

fn frame(delivery: &Delivery<'_>, regs: &Regs, place: Place, altstack: &AltStack) -> RtSigFrame {
    let mcontext = SigContext {
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rdi: regs.rdi,
        rsi: regs.rsi,
        rbp: regs.rbp,
        rbx: regs.rbx,
        rdx: regs.rdx,
        rax: regs.rax,
        rcx: regs.rcx,
        rsp: regs.rsp,
        rip: regs.rip,
        eflags: regs.eflags,
        cs: regs.cs as u16,
        gs: 0,
        fs: 0,
        ss: regs.ss as u16,
        err: delivery.trap.error,
        trapno: delivery.trap.number,
        oldmask: delivery.mask.0,
        cr2: delivery.trap.address,
        fpstate: place.image,
        reserved: [0; 8],
    };
    let uc = UContext {
        flags: UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
        link: 0,
        stack: altstack.saved(),
        mcontext,
        sigmask: delivery.mask.0,
    };
    RtSigFrame { restorer: delivery.action.restorer, uc, info: *delivery.info }
}

/// Stores the host's image with the description that lets programs find its end.
fn write_image(out: &mut [u8], image: &[u8], format: Format) {
    put(out, 0, &image[..format.size]);
    out[SW_RESERVED..HEADER].fill(0);
    put(out, SW_RESERVED, &FP_XSTATE_MAGIC1.to_ne_bytes());
    put(out, SW_RESERVED + 4, &(format.size as u32 + 4).to_ne_bytes());
    put(out, SW_RESERVED + 8, &format.features.to_ne_bytes());
    put(out, SW_RESERVED + 16, &(format.size as u32).to_ne_bytes());
    put(out, HEADER, &(u64_at(image, HEADER) & format.features).to_ne_bytes());
    put(out, format.size, &FP_XSTATE_MAGIC2.to_ne_bytes());
}

/// A handler starts with floating point in its initial state. What it can tell of that is the control words and the x87
/// stack: as long as they are as they began, which is nearly always, the host call is saved.
fn reset_fpu(thread: &mut dyn UserThread, mut image: Vec<u8>) -> Result<()> {
    let (control, tags) = (u32_at(&image, 0) as u16, image[4]);
    if control == INITIAL_FCW && tags == 0 && u32_at(&image, 24) & 0xffff_ffc0 == INITIAL_MXCSR {
        return Ok(());
    }
    let kept = u64_at(&image, HEADER) & XFEATURE_PKRU;
    put(&mut image, HEADER, &kept.to_ne_bytes());
    reset_control(&mut image);
    thread.set_xstate(&image)
}

/// MXCSR is not part of what a header without components resets.
fn reset_control(image: &mut [u8]) {
    put(image, 0, &INITIAL_FCW.to_ne_bytes());
    put(image, 24, &INITIAL_MXCSR.to_ne_bytes());
}

/// `rt_sigreturn(2)`: undoes [`build`] with what is on the stack now. Returns the mask to restore; the alternate stack is
/// as the frame says, if it may be. On any error the caller forces SIGSEGV; nothing has changed then.
pub fn sigreturn(thread: &mut dyn UserThread, altstack: &mut AltStack) -> Result<SigSet> {
    let format = match FORMAT.get() {
        Some(format) => *format,
        None => Format::from_image(&thread.xstate()?)?,
    };
    let space = thread.space().clone();
    // The restorer's address was popped by the handler's return.
    let at = thread.regs().rsp;
    let tail = size_of::<RtSigFrame>() - std::mem::offset_of!(RtSigFrame, uc);
    let mut bytes = vec![0u8; tail + 64 + format.size + size_of::<u32>()];
    let n = space.read(at, &mut bytes)?;
    bytes.truncate(n);
    let (uc, _) = UContext::read_from_prefix(&bytes).map_err(|_| Errno::EFAULT)?;
    let regs = restored_regs(thread.regs(), &uc)?;
    let image = match uc.mcontext.fpstate {
        0 => initial_image(format),
        fpstate => read_image(&*space, fpstate, at, &bytes, format)?,
    };
    thread.set_xstate(&image)?;
    *thread.regs_mut() = regs;
    // An alternate stack that cannot be set is let go, as Linux does.
    let _ = altstack.set(uc.stack, regs.rsp);
    Ok(SigSet(uc.sigmask).blockable())
}

/// The frame's registers over the current ones. `EFAULT` for selectors that are not those of 64-bit user code, with which
/// the return to user mode would fault.
fn restored_regs(current: &Regs, uc: &UContext) -> Result<Regs> {
    let context = &uc.mcontext;
    if u64::from(context.cs | 3) != current.cs {
        return Err(Errno::EFAULT);
    }
    if uc.flags & UC_STRICT_RESTORE_SS != 0 && u64::from(context.ss | 3) != current.ss {
        return Err(Errno::EFAULT);
    }
    Ok(Regs {
        r8: context.r8,
        r9: context.r9,
        r10: context.r10,
        r11: context.r11,
        r12: context.r12,
        r13: context.r13,
        r14: context.r14,
        r15: context.r15,
        rdi: context.rdi,
        rsi: context.rsi,
        rbp: context.rbp,
        rbx: context.rbx,
        rdx: context.rdx,
        rax: context.rax,
        rcx: context.rcx,
        rsp: context.rsp,
        rip: context.rip,
        eflags: current.eflags & !RESTORED_FLAGS | context.eflags & RESTORED_FLAGS,
        orig_rax: u64::MAX,
        ..*current
    })
}

/// A frame without an image: all in the initial state.
fn initial_image(format: Format) -> Vec<u8> {
    let mut image = vec![0; format.host_size];
    reset_control(&mut image);
    image
}

/// The image at `fpstate`, as the host takes it: from `bytes`, which were read from `start` on, if it lies there.
fn read_image(space: &dyn AddressSpace, fpstate: u64, start: u64, bytes: &[u8], format: Format) -> Result<Vec<u8>> {
    let known = usize::try_from(fpstate.wrapping_sub(start)).ok().and_then(|at| bytes.get(at..));
    let mut own = Vec::new();
    let bytes = match known {
        Some(known) if known.len() >= format.size + size_of::<u32>() => known,
        _ => {
            own.resize(format.size + size_of::<u32>(), 0);
            let n = space.read(fpstate, &mut own)?;
            &own[..n]
        }
    };
    let (len, features) = described(bytes, format);
    let legacy = bytes.get(..len).ok_or(Errno::EFAULT)?;
    let mut image = vec![0; format.host_size];
    put(&mut image, 0, legacy);
    image[SW_RESERVED..HEADER].fill(0);
    let present = if len > HEADER { u64_at(legacy, HEADER) & features } else { features };
    if len > HEADER && u64_at(legacy, HEADER) & !format.features & !XFEATURE_XTILEDATA != 0 {
        return Err(Errno::EFAULT); // components that the processor does not have
    }
    put(&mut image, HEADER, &present.to_ne_bytes());
    Ok(image)
}

/// How much of an image is to be taken, and which components: without a valid description it is the legacy area alone.
fn described(bytes: &[u8], format: Format) -> (usize, u64) {
    let (size, extended) = (u32_at(bytes, SW_RESERVED + 16) as usize, u32_at(bytes, SW_RESERVED + 4) as usize);
    let valid = u32_at(bytes, SW_RESERVED) == FP_XSTATE_MAGIC1
        && (MIN_IMAGE..=format.size).contains(&size)
        && size <= extended
        && u32_at(bytes, size) == FP_XSTATE_MAGIC2;
    match valid {
        true => (size, u64_at(bytes, SW_RESERVED + 8) & format.features),
        false => (HEADER, XFEATURE_FPSSE),
    }
}

#[cfg(test)]
mod tests;
