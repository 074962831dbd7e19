//! Classic BPF as `seccomp(2)` allows it: what may be in a program, and running it over `struct seccomp_data`.
//!
//! A program is checked once, when it is made ([`Program::new`]): after that every jump leads forward and into it, and every
//! access is in range, so that it ends after at most as many steps as it has instructions.

use crate::errno::{Errno, Result};

/// The longest program: `BPF_MAXINSNS`.
pub const MAX_LEN: usize = 4096;

/// `AUDIT_ARCH_X86_64`.
pub const ARCH: u32 = 0xc000_003e;

/// Words of scratch memory: `BPF_MEMWORDS`.
const MEMORY: usize = 16;

/// One instruction: `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// The operation.
    pub code: u16,
    /// How many instructions to skip if a comparison holds.
    pub jt: u8,
    /// And if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

impl Insn {
    /// From the eight bytes of a `struct sock_filter`.
    pub fn from_bytes(bytes: [u8; 8]) -> Insn {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = bytes;
        Insn { code: u16::from_ne_bytes([c0, c1]), jt, jf, k: u32::from_ne_bytes([k0, k1, k2, k3]) }
    }
}

/// Operations by name: `linux/filter.h`, `linux/bpf_common.h`. `_X` takes the index register as operand.
pub mod code {
    #![allow(missing_docs, reason = "the names are the kernel's")]
    pub const LD_ABS: u16 = 0x20;
    pub const LD_LEN: u16 = 0x80;
    pub const LD_IMM: u16 = 0x00;
    pub const LD_MEM: u16 = 0x60;
    pub const LDX_LEN: u16 = 0x81;
    pub const LDX_IMM: u16 = 0x01;
    pub const LDX_MEM: u16 = 0x61;
    pub const ST: u16 = 0x02;
    pub const STX: u16 = 0x03;
    pub const ADD: u16 = 0x04;
    pub const SUB: u16 = 0x14;
    pub const MUL: u16 = 0x24;
    pub const DIV: u16 = 0x34;
    pub const OR: u16 = 0x44;
    pub const AND: u16 = 0x54;
    pub const LSH: u16 = 0x64;
    pub const RSH: u16 = 0x74;
    pub const NEG: u16 = 0x84;
    pub const XOR: u16 = 0xa4;
    pub const JA: u16 = 0x05;
    pub const JEQ: u16 = 0x15;
    pub const JGT: u16 = 0x25;
    pub const JGE: u16 = 0x35;
    pub const JSET: u16 = 0x45;
    pub const RET_K: u16 = 0x06;
    pub const RET_A: u16 = 0x16;
    pub const TAX: u16 = 0x07;
    pub const TXA: u16 = 0x87;
    /// `BPF_X`.
    pub const X: u16 = 0x08;
}
use code::*;

/// What a filter decides on: `struct seccomp_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// The call's number.
    pub nr: u32,
    /// Where the instruction after it is.
    pub ip: u64,
    /// Its arguments.
    pub args: [u64; 6],
}

impl Data {
    /// `sizeof(struct seccomp_data)`.
    const SIZE: u32 = 64;

    /// The 32-bit word at byte `offset`, a multiple of four below [`Data::SIZE`].
    fn word(&self, offset: u32) -> u32 {
        let half = |value: u64| if offset & 4 == 0 { value as u32 } else { (value >> 32) as u32 };
        match offset {
            0 => self.nr,
            4 => ARCH,
            8 | 12 => half(self.ip),
            _ => self.args.get((offset as usize - 16) / 8).map_or(0, |&arg| half(arg)),
        }
    }
}

/// A checked program.
#[derive(Debug)]
pub struct Program(Box<[Insn]>);

impl Program {
    /// Checks a program as `bpf_check_classic` and `seccomp_check_filter` do. `EINVAL`.
    pub fn new(insns: Vec<Insn>) -> Result<Program> {
        if insns.is_empty() || insns.len() > MAX_LEN {
            return Err(Errno::EINVAL);
        }
        for (at, insn) in insns.iter().enumerate() {
            if !is_allowed(*insn, insns.len() - at - 1) {
                return Err(Errno::EINVAL);
            }
        }
        let last = insns.last().map_or(0, |insn| insn.code);
        if !matches!(last, RET_K | RET_A) || !loads_what_was_stored(&insns) {
            return Err(Errno::EINVAL);
        }
        Ok(Program(insns.into()))
    }

    /// How many instructions it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none, which a checked one never is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What it returns for `data`. A division by zero returns 0.
    pub fn run(&self, data: &Data) -> u32 {
        let (mut a, mut x) = (0u32, 0u32);
        let mut memory = [0u32; MEMORY];
        let mut pc = 0;
        while let Some(&Insn { code, jt, jf, k }) = self.0.get(pc) {
            pc += 1;
            let operand = if code & X != 0 { x } else { k };
            let slot = k as usize % MEMORY;
            match code {
                LD_ABS => a = data.word(k),
                LD_LEN => a = Data::SIZE,
                LD_IMM => a = k,
                LD_MEM => a = memory[slot],
                LDX_LEN => x = Data::SIZE,
                LDX_IMM => x = k,
                LDX_MEM => x = memory[slot],
                ST => memory[slot] = a,
                STX => memory[slot] = x,
                TAX => x = a,
                TXA => a = x,
                RET_K => return k,
                RET_A => return a,
                JA => pc += k as usize,
                NEG => a = a.wrapping_neg(),
                _ if code & 7 == JA & 7 => {
                    let holds = compare(code & !X, a, operand);
                    pc += usize::from(if holds { jt } else { jf });
                }
                _ => match calculate(code & !X, a, operand) {
                    Some(value) => a = value,
                    None => return 0,
                },
            }
        }
        0 // not reached: the last instruction returns, and jumps stay inside
    }

    /// What it returns for call `nr` if that depends on nothing but the number (and the architecture, of which there is
    /// one). Follows the operations that such a decision is made of, as Linux does for its cache; `None` at any other.
    pub fn constant(&self, nr: u32) -> Option<u32> {
        let mut a = 0u32;
        let mut pc = 0;
        loop {
            let Insn { code, jt, jf, k } = *self.0.get(pc)?;
            pc += 1;
            match code {
                RET_K => return Some(k),
                LD_ABS if k == 0 => a = nr,
                LD_ABS if k == 4 => a = ARCH,
                JA => pc += k as usize,
                JEQ | JGT | JGE | JSET => pc += usize::from(if compare(code, a, k) { jt } else { jf }),
                AND => a &= k,
                _ => return None,
            }
        }
    }
}

fn compare(code: u16, a: u32, operand: u32) -> bool {
    match code {
        JEQ => a == operand,
        JGT => a > operand,
        JGE => a >= operand,
        _ => a & operand != 0, // JSET
    }
}

/// `None`: a division by zero.
fn calculate(code: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match code {
        ADD => a.wrapping_add(operand),
        SUB => a.wrapping_sub(operand),
        MUL => a.wrapping_mul(operand),
        DIV => a.checked_div(operand)?,
        OR => a | operand,
        AND => a & operand,
        XOR => a ^ operand,
        // The kernel's interpreter takes a shift's distance modulo 32.
        LSH => a.wrapping_shl(operand),
        _ => a.wrapping_shr(operand), // RSH
    })
}

/// Whether an instruction with `after` others behind it may be there.
fn is_allowed(insn: Insn, after: usize) -> bool {
    let k = insn.k as usize;
    match insn.code {
        LD_ABS => insn.k < Data::SIZE && insn.k.is_multiple_of(4),
        LD_LEN | LDX_LEN | LD_IMM | LDX_IMM | RET_K | RET_A | TAX | TXA | NEG => true,
        LD_MEM | LDX_MEM | ST | STX => k < MEMORY,
        JA => k < after,
        DIV => k != 0,
        LSH | RSH => k < 32,
        code => match code & !X {
            ADD | SUB | MUL | DIV | OR | AND | XOR | LSH | RSH => true,
            JEQ | JGT | JGE | JSET => usize::from(insn.jt) < after && usize::from(insn.jf) < after,
            _ => false,
        },
    }
}

/// Whether every word of memory that is loaded was stored before, on every way that leads there.
fn loads_what_was_stored(insns: &[Insn]) -> bool {
    // What is surely stored when an instruction is reached by a jump.
    let mut at_target = vec![u16::MAX; insns.len()];
    let mut stored = 0u16;
    for (at, insn) in insns.iter().enumerate() {
        stored &= at_target[at];
        let mut reaches = |skip: usize| {
            if let Some(mask) = at_target.get_mut(at + 1 + skip) {
                *mask &= stored;
            }
        };
        match insn.code {
            JA => {
                reaches(insn.k as usize);
                stored = u16::MAX;
            }
            code if code & 7 == JA & 7 => {
                reaches(insn.jt.into());
                reaches(insn.jf.into());
                stored = u16::MAX;
            }
            ST | STX => stored |= 1 << insn.k,
            LD_MEM | LDX_MEM if stored & 1 << insn.k == 0 => return false,
            _ => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;

    fn insn(code: u16, jt: u8, jf: u8, k: u32) -> Insn {
        Insn { code, jt, jf, k }
    }

    fn plain(code: u16, k: u32) -> Insn {
        insn(code, 0, 0, k)
    }

    fn run(insns: &[Insn]) -> u32 {
        let data = Data { nr: 7, ip: 0x1_0000_0002, args: [3, 0x4_0000_0005, 0, 0, 0, 6] };
        Program::new(insns.to_vec()).unwrap().run(&data)
    }

    fn refused(insns: &[Insn]) {
        assert!(Program::new(insns.to_vec()).is_err(), "{insns:?}");
    }

    #[test]
    fn loads_see_the_fields() {
        for (offset, value) in [(0, 7), (4, ARCH), (8, 2), (12, 1), (16, 3), (24, 5), (28, 4), (56, 6), (60, 0)] {
            assert_eq!(run(&[plain(LD_ABS, offset), plain(RET_A, 0)]), value, "at {offset}");
        }
        assert_eq!(run(&[plain(LD_LEN, 0), plain(RET_A, 0)]), 64);
        assert_eq!(run(&[plain(LDX_LEN, 0), plain(TXA, 0), plain(RET_A, 0)]), 64);
    }

    #[test]
    fn arithmetic_is_of_32_bits() {
        let with = |code, a, k| run(&[plain(LD_IMM, a), plain(code, k), plain(RET_A, 0)]);
        let with_x = |code, a, x| {
            let values = (run(&[plain(LD_IMM, a), plain(LDX_IMM, x), plain(code | X, 0), plain(RET_A, 0)]), ());
            values.0
        };
        assert_eq!(with(ADD, u32::MAX, 2), 1);
        assert_eq!(with(SUB, 1, 2), u32::MAX);
        assert_eq!(with(MUL, 1 << 31, 2), 0);
        assert_eq!(with(DIV, 7, 2), 3);
        assert_eq!(with_x(DIV, 7, 0), 0, "a division by zero ends the program");
        assert_eq!((with(OR, 5, 2), with(AND, 5, 4), with(XOR, 5, 4)), (7, 4, 1));
        assert_eq!((with(LSH, 1, 31), with(RSH, 1 << 31, 31)), (1 << 31, 1));
        assert_eq!((with_x(LSH, 1, 33), with_x(RSH, 4, 33)), (2, 2));
        assert_eq!(run(&[plain(LD_IMM, 1), plain(NEG, 0), plain(RET_A, 0)]), u32::MAX);
        let through_memory =
            [plain(LD_IMM, 9), plain(ST, 15), plain(LDX_MEM, 15), plain(STX, 0), plain(LD_MEM, 0), plain(RET_A, 0)];
        assert_eq!(run(&through_memory), 9);
    }

    #[test]
    fn comparisons_jump_forward() {
        let jump = |code, k| run(&[plain(LD_IMM, 6), insn(code, 1, 0, k), plain(RET_K, 0), plain(RET_K, 1)]);
        assert_eq!((jump(JEQ, 6), jump(JEQ, 5)), (1, 0));
        assert_eq!((jump(JGT, 5), jump(JGT, 6)), (1, 0));
        assert_eq!((jump(JGE, 6), jump(JGE, 7)), (1, 0));
        assert_eq!((jump(JSET, 2), jump(JSET, 1)), (1, 0));
        assert_eq!(run(&[plain(JA, 1), plain(RET_K, 0), plain(RET_K, 5)]), 5);
    }

    #[test]
    fn bad_programs_are_refused() {
        let end = plain(RET_K, ALLOW);
        refused(&[]);
        refused(&vec![end; MAX_LEN + 1]);
        assert!(Program::new(vec![end; MAX_LEN]).is_ok());
        refused(&[plain(LD_IMM, 0)]);
        refused(&[plain(LD_ABS, 64), end]);
        refused(&[plain(LD_ABS, 2), end]);
        refused(&[plain(0x28, 0), end]); // a half-word
        refused(&[plain(0x40, 0), end]); // relative to the index register
        refused(&[plain(0x94, 1), end]); // the remainder
        refused(&[plain(DIV, 0), end]);
        refused(&[plain(LSH, 32), end]);
        refused(&[plain(ST, 16), end]);
        refused(&[plain(JA, 1), end]);
        refused(&[plain(JA, u32::MAX), end]);
        refused(&[insn(JEQ, 1, 0, 0), end]);
        refused(&[insn(JEQ, 0, 1, 0), end]);
        refused(&[plain(LD_MEM, 0), end]);
        // Stored on one way only.
        refused(&[insn(JEQ, 0, 1, 0), plain(ST, 0), plain(LD_MEM, 0), end]);
        assert!(Program::new(vec![insn(JEQ, 0, 0, 0), plain(ST, 0), plain(LD_MEM, 0), end]).is_ok());
        refused(&[plain(0xffff, 0), end]);
    }

    #[test]
    fn what_depends_on_the_number_alone_is_found() {
        let program = Program::new(vec![
            plain(LD_ABS, 4),
            insn(JEQ, 0, 3, ARCH),
            plain(LD_ABS, 0),
            insn(JEQ, 2, 0, 10),
            insn(JEQ, 2, 0, 11),
            plain(RET_K, 1),
            plain(RET_K, ALLOW),
            plain(LD_ABS, 16),
            plain(RET_A, 0),
        ])
        .unwrap();
        assert_eq!([9, 10, 11].map(|nr| program.constant(nr)), [Some(1), Some(ALLOW), None]);
    }
}
