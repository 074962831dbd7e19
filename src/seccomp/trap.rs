//! The filter of stubs that run without a tracer: every system call of container code becomes `SIGSYS`.
//!
//! What passes is told apart by where the instruction is: the stub's page holds one for each purpose. Container code can jump
//! there with any registers, so each of them is worth no more than what everybody may do:
//!
//! - `futex`, waiting and waking, on words within contexts;
//! - `rt_sigreturn`, which gives a thread registers that it could have loaded;
//! - `sched_yield`, which takes nothing and changes nothing;
//! - what the sentry makes a stopped stub do (mapping, cloning) only with a **seal**: 64 random bits in parts of the argument
//!   registers that the call does not look at. The sentry sets registers by ptrace and takes them back before container
//!   code runs, so the seal is never in memory that the container can read; a guess costs a process.

use libc::{sock_filter, sock_fprog};
use seccompiler::BpfProgram;

use super::stub::{CLONE_PROCESS, CLONE_THREAD, TITLE_MAP_SIZE};
use crate::errno::{Errno, Result};

/// 64 bits that only the sentry and the host's kernel know.
#[derive(Clone, Copy)]
pub struct Seal(u64);

impl Seal {
    /// A new one. `EAGAIN`, `ENOSYS` when the host gives no randomness.
    pub fn new() -> Result<Seal> {
        let mut bytes = [0u8; 8];
        // SAFETY: the buffer is valid for the call.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got != bytes.len() as isize {
            return Err(Errno::last());
        }
        Ok(Seal(u64::from_ne_bytes(bytes)))
    }

    /// The arguments with the seal: `mmap` ignores the upper halves of protection and flags, the others their sixth argument.
    pub fn mark(self, number: i64, args: [u64; 6]) -> [u64; 6] {
        let [a, b, c, d, e, f] = args;
        match number {
            libc::SYS_mmap => {
                let (low, high) = (self.0 << 32, self.0 & !0xffff_ffff);
                [a, b, c & 0xffff_ffff | low, d & 0xffff_ffff | high, e, f]
            }
            _ => [a, b, c, d, e, self.0],
        }
    }

    fn halves(self) -> [u32; 2] {
        [self.0 as u32, (self.0 >> 32) as u32]
    }
}

/// Where the stub's page has which instruction: the address behind each `syscall`.
pub struct Places {
    /// `futex`.
    pub futexes: [u64; 2],
    /// `rt_sigreturn`.
    pub sigreturn: u64,
    /// `sched_yield`.
    pub yielding: u64,
    /// What the sentry has a stopped stub do.
    pub calls: Vec<u64>,
    /// The waiting loop's `pause`.
    pub pause: u64,
    /// Where contexts are: all addresses with these upper 32 bits.
    pub window: u32,
}

// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const IP: u32 = 8;
const fn arg(index: u32) -> u32 {
    16 + 8 * index
}

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// Jumps are forward, to labels that are resolved when the program is done.
#[derive(Default)]
struct Assembler {
    code: Vec<sock_filter>,
    /// Places where a jump's target is a label: (instruction, whether on equality, label).
    open: Vec<(usize, bool, &'static str)>,
    labels: Vec<(&'static str, usize)>,
}

impl Assembler {
    fn push(&mut self, code: u32, k: u32) {
        self.code.push(sock_filter { code: code as u16, jt: 0, jf: 0, k });
    }

    fn load(&mut self, offset: u32) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    }

    fn jump(&mut self, k: u32, equal: Option<&'static str>, other: Option<&'static str>) {
        let at = self.code.len();
        self.push(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k);
        self.open.extend(equal.map(|label| (at, true, label)));
        self.open.extend(other.map(|label| (at, false, label)));
    }

    fn label(&mut self, label: &'static str) {
        self.labels.push((label, self.code.len()));
    }

    fn answer(&mut self, action: u32) {
        self.push(libc::BPF_RET | libc::BPF_K, action);
    }

    /// The word at `offset` must be `value`, or the call traps.
    fn require(&mut self, offset: u32, value: u32) {
        self.load(offset);
        self.jump(value, None, Some("trap"));
    }

    /// `EOVERFLOW` when a label is too far.
    fn finish(mut self) -> Result<BpfProgram> {
        for (at, equal, label) in std::mem::take(&mut self.open) {
            let target = self.labels.iter().find(|(name, _)| *name == label).ok_or(Errno::EINVAL)?.1;
            let distance = u8::try_from(target - at - 1).map_err(|_| Errno::EOVERFLOW)?;
            match equal {
                true => self.code[at].jt = distance,
                false => self.code[at].jf = distance,
            }
        }
        let convert =
            |line: sock_filter| seccompiler::sock_filter { code: line.code, jt: line.jt, jf: line.jf, k: line.k };
        Ok(self.code.into_iter().map(convert).collect())
    }
}

/// Builds the filter.
pub fn filter(seal: Seal, places: &Places) -> Result<BpfProgram> {
    let mut asm = Assembler::default();
    asm.require(ARCH, AUDIT_ARCH_X86_64);
    asm.require(IP + 4, 0);
    asm.load(IP);
    for place in places.futexes {
        asm.jump(place as u32, Some("futex"), None);
    }
    asm.jump(places.sigreturn as u32, Some("sigreturn"), None);
    asm.jump(places.yielding as u32, Some("yield"), None);
    asm.jump(places.pause as u32, Some("pause"), None);
    for place in &places.calls {
        asm.jump(*place as u32, Some("call"), None);
    }
    asm.label("trap");
    asm.answer(libc::SECCOMP_RET_TRAP);
    asm.label("futex");
    asm.load(NR);
    asm.jump(libc::SYS_futex as u32, None, Some("refuse"));
    asm.load(arg(0) + 4);
    asm.jump(places.window, None, Some("refuse"));
    asm.load(arg(1));
    asm.jump(libc::FUTEX_WAIT as u32, Some("allow"), None);
    asm.jump(libc::FUTEX_WAKE as u32, Some("allow"), Some("refuse"));
    asm.label("sigreturn");
    asm.load(NR);
    asm.jump(libc::SYS_rt_sigreturn as u32, Some("allow"), Some("refuse"));
    asm.label("yield");
    asm.load(NR);
    asm.jump(libc::SYS_sched_yield as u32, Some("allow"), Some("refuse"));
    asm.label("pause");
    asm.load(NR);
    asm.jump(libc::SYS_restart_syscall as u32, Some("allow"), None);
    asm.jump(libc::SYS_pause as u32, Some("allow"), Some("refuse"));
    asm.label("call");
    sealed(&mut asm, seal);
    asm.label("allow");
    asm.answer(libc::SECCOMP_RET_ALLOW);
    asm.label("refuse");
    asm.answer(libc::SECCOMP_RET_KILL_PROCESS);
    asm.finish()
}

/// What the sentry has a stopped stub do.
fn sealed(asm: &mut Assembler, seal: Seal) {
    let [low, high] = seal.halves();
    let free = [
        libc::SYS_munmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_msync,
        libc::SYS_sigaltstack,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    asm.load(NR);
    asm.jump(libc::SYS_mmap as u32, Some("mmap"), None);
    asm.jump(libc::SYS_clone as u32, Some("clone"), None);
    asm.jump(libc::SYS_prctl as u32, Some("prctl"), None);
    for call in free {
        asm.jump(call as u32, Some("sixth"), None);
    }
    asm.answer(libc::SECCOMP_RET_KILL_PROCESS);
    asm.label("mmap");
    asm.load(arg(2) + 4);
    asm.jump(low, None, Some("refuse"));
    asm.load(arg(3) + 4);
    asm.jump(high, Some("allow"), Some("refuse"));
    asm.label("clone");
    asm.load(arg(0) + 4);
    asm.jump(0, None, Some("refuse"));
    asm.load(arg(0));
    asm.jump(CLONE_PROCESS as u32, Some("sixth"), None);
    asm.jump(CLONE_THREAD as u32, Some("sixth"), Some("refuse"));
    asm.label("prctl");
    asm.load(arg(0));
    asm.jump(libc::PR_SET_NAME as u32, Some("sixth"), None);
    asm.jump(libc::PR_SET_PDEATHSIG as u32, Some("sixth"), None);
    asm.jump(libc::PR_SET_MM as u32, None, Some("refuse"));
    asm.load(arg(1));
    asm.jump(libc::PR_SET_MM_MAP as u32, None, Some("refuse"));
    asm.load(arg(3));
    asm.jump(TITLE_MAP_SIZE as u32, Some("sixth"), Some("refuse"));
    asm.label("sixth");
    asm.load(arg(5));
    asm.jump(low, None, Some("refuse"));
    asm.load(arg(5) + 4);
    asm.jump(high, Some("allow"), Some("refuse"));
}

/// As the host's kernel takes it.
pub fn program(filter: &BpfProgram) -> sock_fprog {
    sock_fprog { len: filter.len() as u16, filter: filter.as_ptr() as *mut sock_filter }
}
