//! Handlers that run, on the real platform.

use super::*;
use crate::platform::ptrace::PtracePlatform;
use crate::platform::{Backing, Event, MapRequest, Platform};

const CODE: u64 = 0x40_0000;
const HANDLER: u64 = CODE + 0x100;
const RESTORER: u64 = CODE + 0x200;
const DATA: u64 = 0x50_0000;
const STACK: u64 = 0x60_0000;
const STACK_SIZE: u64 = 0x1_0000;
const TOP: u64 = STACK + STACK_SIZE - 0x108;
const ALT: u64 = 0x70_0000;

/// `mov $39,%eax; syscall; vmovdqu %ymm5,(DATA+64); syscall`: interrupted behind the first call.
const PROGRAM: &[u8] = &[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc5, 0xfe, 0x7f, 0x2c, 0x25, 64, 0, 0x50, 0, 0x0f, 0x05];
/// `vpxor %ymm5,%ymm5,%ymm5; ret`.
const CLEARS_YMM5: &[u8] = &[0xc5, 0xd5, 0xef, 0xed, 0xc3];
/// `mov $15,%eax; syscall`.
const RETURNS: &[u8] = &[0xb8, 15, 0, 0, 0, 0x0f, 0x05];

fn thread(platform: &PtracePlatform) -> Box<dyn UserThread> {
    let mut user = platform.spawn().unwrap().attach().unwrap();
    let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    for (addr, len) in [(CODE, 0x1000), (DATA, 0x1000), (STACK, STACK_SIZE), (ALT, STACK_SIZE)] {
        let request = MapRequest { addr, len, prot: rwx, shared: false, flags: 0, backing: Backing::Anonymous };
        user.map(&request).unwrap();
    }
    for (addr, code) in [(CODE, PROGRAM), (HANDLER, CLEARS_YMM5), (RESTORER, RETURNS)] {
        user.space().write(addr, code).unwrap();
    }
    let regs = user.regs_mut();
    (regs.rip, regs.rsp, regs.rbx) = (CODE, TOP, 0x1234_5678_9abc);
    assert_eq!(syscall(&mut *user), 39);
    user.regs_mut().rax = 7;
    let mut image = user.xstate().unwrap();
    let header = u64_at(&image, HEADER) | 7;
    put(&mut image, HEADER, &header.to_ne_bytes());
    put(&mut image, 24, &0x1f80u32.to_ne_bytes());
    put(&mut image, 160 + 5 * 16, b"the lower half..");
    put(&mut image, 576 + 5 * 16, b"the upper half..");
    user.set_xstate(&image).unwrap();
    user
}

fn event(user: &mut dyn UserThread) -> Event {
    loop {
        match user.run() {
            Event::Interrupted => {}
            event => return event,
        }
    }
}

fn syscall(user: &mut dyn UserThread) -> u64 {
    match event(user) {
        Event::Syscall => user.regs().orig_rax,
        Event::Fault(info) => panic!("fault {} at {:#x}", info.si_signo, user.regs().rip),
        _ => panic!("no system call"),
    }
}

fn action(flags: u64) -> SigAction {
    SigAction { handler: HANDLER, flags: flags | SigAction::RESTORER, restorer: RESTORER, mask: 0 }
}

fn deliver(user: &mut dyn UserThread, flags: u64, altstack: &mut AltStack) -> Result<()> {
    let action = action(flags);
    let info = SigInfo::user(Signal::USR1, 5, 6);
    let mask = Signal::HUP.set() | Signal::KILL.set();
    build(user, &Delivery { action: &action, info: &info, mask, trap: Trap::default() }, altstack)
}

fn ymm5(user: &dyn UserThread) -> [u8; 32] {
    let mut stored = [0; 32];
    user.space().read(DATA + 64, &mut stored).unwrap();
    stored
}

#[test]
fn a_handler_runs_and_nothing_is_lost() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform);
    let before = *user.regs();
    user.regs_mut().eflags |= DF;
    let mut altstack = AltStack::default();
    deliver(&mut *user, 0, &mut altstack).unwrap();
    let regs = *user.regs();
    assert_eq!((regs.rdi, regs.rax, regs.rip, regs.rsp % 16), (10, 0, HANDLER, 8));
    assert_eq!(regs.eflags & DF, 0);
    assert!(regs.rsp < TOP - RED_ZONE);
    let mut info = [0; 128];
    user.space().read(regs.rsi, &mut info).unwrap();
    assert_eq!(&info, SigInfo::user(Signal::USR1, 5, 6).as_bytes());
    assert_eq!(syscall(&mut *user), 15);
    assert_eq!(user.regs().rsp, regs.rsp + 8);
    assert_eq!(sigreturn(&mut *user, &mut altstack), Ok(Signal::HUP.set()));
    let after = *user.regs();
    assert_eq!((after.rip, after.rsp, after.rax, after.rbx), (before.rip, before.rsp, 7, 0x1234_5678_9abc));
    assert_eq!(after.eflags & DF, DF);
    assert_eq!(after.orig_rax, u64::MAX, "nothing to restart");
    user.regs_mut().eflags &= !DF;
    syscall(&mut *user);
    assert_eq!(&ymm5(&*user), b"the lower half..the upper half..");
}

#[test]
fn the_frame_is_laid_out_as_the_hosts() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform);
    deliver(&mut *user, 0, &mut AltStack::default()).unwrap();
    let frame = user.regs().rsp;
    assert_eq!((user.regs().rdx - frame, user.regs().rsi - frame), (8, 312));
    let mut uc = [0; 304];
    user.space().read(user.regs().rdx, &mut uc).unwrap();
    assert_eq!((u64_at(&uc, 0), u64_at(&uc, 296)), (7, 1 | 1 << 8));
    let fpstate = u64_at(&uc, 224);
    assert_eq!(fpstate % 64, 0);
    let mut words = [0; 48];
    user.space().read(fpstate + 464, &mut words).unwrap();
    let (extended, size) = (u32_at(&words, 4), u32_at(&words, 16));
    assert_eq!((u32_at(&words, 0), extended), (FP_XSTATE_MAGIC1, size + 4));
    let mut magic = [0; 4];
    user.space().read(fpstate + u64::from(size), &mut magic).unwrap();
    assert_eq!(u32::from_ne_bytes(magic), FP_XSTATE_MAGIC2);
    assert!((440 + extended as u64) <= super::super::min_signal_stack());
}

#[test]
fn the_alternate_stack_is_used_once_and_guarded() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform);
    let mut altstack = AltStack::default();
    let on = StackT { sp: ALT, flags: 0, pad: 0, size: STACK_SIZE };
    altstack.set(on, TOP).unwrap();
    deliver(&mut *user, SigAction::ONSTACK, &mut altstack).unwrap();
    let outer = user.regs().rsp;
    assert!((ALT..ALT + STACK_SIZE).contains(&outer));
    deliver(&mut *user, SigAction::ONSTACK, &mut altstack).unwrap();
    assert!((ALT..outer - RED_ZONE).contains(&user.regs().rsp), "nested, below what is in use");
    user.regs_mut().rsp = ALT + 512;
    let before = *user.regs();
    assert_eq!(deliver(&mut *user, SigAction::ONSTACK, &mut altstack), Err(Errno::EFAULT));
    assert_eq!(user.regs().rip, before.rip);

    user.regs_mut().rsp = TOP;
    altstack.set(StackT { flags: i32::MIN, ..on }, TOP).unwrap();
    let armed = altstack;
    deliver(&mut *user, SigAction::ONSTACK, &mut altstack).unwrap();
    assert_eq!(altstack, AltStack::default(), "SS_AUTODISARM");
    assert_eq!(syscall(&mut *user), 15);
    sigreturn(&mut *user, &mut altstack).unwrap();
    assert_eq!(altstack, armed);
}

#[test]
fn what_cannot_be_stored_changes_nothing() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform);
    for rsp in [0, 100, 0x1000, STACK + 64, u64::MAX, 0xffff_8000_0000_0000] {
        user.regs_mut().rsp = rsp;
        assert_eq!(deliver(&mut *user, 0, &mut AltStack::default()), Err(Errno::EFAULT), "{rsp:#x}");
    }
    user.regs_mut().rsp = TOP;
    let action = SigAction { flags: 0, ..action(0) };
    let info = SigInfo::kernel(Signal::HUP);
    let delivery = Delivery { action: &action, info: &info, mask: SigSet::EMPTY, trap: Trap::default() };
    assert_eq!(build(&mut *user, &delivery, &mut AltStack::default()), Err(Errno::EFAULT), "no SA_RESTORER");
    assert_eq!(user.regs().rip, CODE + 7);
}

/// Makes a frame, lets `change` at the bytes from the ucontext on, and returns from it.
fn hostile(user: &mut dyn UserThread, change: impl FnOnce(&mut Vec<u8>, usize)) -> Result<SigSet> {
    user.regs_mut().rsp = TOP;
    deliver(user, 0, &mut AltStack::default()).unwrap();
    let uc = user.regs().rdx;
    let mut bytes = vec![0; 304 + 128 + 64 + 2816];
    let n = user.space().read(uc, &mut bytes).unwrap();
    bytes.truncate(n);
    let image = (u64_at(&bytes, 224) - uc) as usize;
    change(&mut bytes, image);
    user.space().write(uc, &bytes).unwrap();
    user.regs_mut().rsp = uc;
    sigreturn(user, &mut AltStack::default())
}

#[test]
fn hostile_frames_do_no_harm() {
    const FLAGS: usize = 40 + 17 * 8;
    const SELECTORS: usize = FLAGS + 8;
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform);
    let user = &mut *user;
    // IOPL, IF, NT, VM, VIF, VIP, ID.
    hostile(user, |uc, _| put(uc, FLAGS, &(!DF & !TF).to_ne_bytes())).unwrap();
    assert_eq!(user.regs().eflags & 0x1a_7200, 0x200);
    assert_eq!(user.regs().eflags & AC, AC);
    user.regs_mut().eflags &= !AC;
    let code32 = 0x23u16.to_ne_bytes();
    assert!(hostile(user, |uc, _| put(uc, SELECTORS, &code32)).is_err());
    assert!(hostile(user, |uc, _| put(uc, SELECTORS + 6, &[0, 0])).is_err());
    let mxcsr = |uc: &mut Vec<u8>, image: usize| put(uc, image + 24, &u32::MAX.to_ne_bytes());
    assert!(hostile(user, mxcsr).is_err(), "reserved bits of MXCSR");
    let compacted = |uc: &mut Vec<u8>, image: usize| put(uc, image + HEADER + 8, &(1u64 << 63).to_ne_bytes());
    assert!(hostile(user, compacted).is_err());
    let unknown = |uc: &mut Vec<u8>, image: usize| put(uc, image + HEADER, &u64::MAX.to_ne_bytes());
    assert!(hostile(user, unknown).is_err());
    for wild in [1, u64::MAX - 100, 0xffff_8000_0000_0000, DATA + 0xffe] {
        assert!(hostile(user, |uc, _| put(uc, 224, &wild.to_ne_bytes())).is_err(), "{wild:#x}");
    }
    // Without a valid description the legacy area counts.
    hostile(user, |uc, image| put(uc, image + SW_RESERVED, &[0; 4])).unwrap();
    hostile(user, |uc, image| put(uc, image + SW_RESERVED + 4, &[0xff; 16])).unwrap();
    // No image: the initial state.
    hostile(user, |uc, _| put(uc, 224, &[0; 8])).unwrap();
    let rip = |uc: &mut Vec<u8>, _: usize| put(uc, 40 + 16 * 8, &0x8000_0000_0000_0000u64.to_ne_bytes());
    if hostile(user, rip).is_ok() {
        let Event::Fault(info) = event(user) else { panic!("it cannot run there") };
        assert_eq!(info.si_signo, libc::SIGSEGV);
    }
}

#[test]
fn handlers_start_with_clean_floating_point() {
    let platform = PtracePlatform::new().unwrap();
    let mut user = thread(&platform);
    let mut image = user.xstate().unwrap();
    put(&mut image, 24, &0x9fc0u32.to_ne_bytes()); // flush to zero, denormals are zero
    user.set_xstate(&image).unwrap();
    let mut altstack = AltStack::default();
    deliver(&mut *user, 0, &mut altstack).unwrap();
    assert_eq!(u32_at(&user.xstate().unwrap(), 24), INITIAL_MXCSR);
    assert_eq!(syscall(&mut *user), 15);
    sigreturn(&mut *user, &mut altstack).unwrap();
    assert_eq!(u32_at(&user.xstate().unwrap(), 24), 0x9fc0);
}
