//! The operation of `FUTEX_WAKE_OP`.

use crate::errno::{Errno, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Set,
    Add,
    Or,
    AndNot,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// A change of a word and a comparison with what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeOp {
    op: Op,
    operand: u32,
    cmp: Cmp,
    compared: i32,
}

impl WakeOp {
    /// From `val3` of `futex(2)`. `ENOSYS`: an operation or comparison that does not exist.
    pub fn decode(encoded: u32) -> Result<WakeOp> {
        let signed12 = |value: u32| ((value << 20) as i32) >> 20;
        let operand = signed12(encoded >> 12) as u32;
        // FUTEX_OP_OPARG_SHIFT; shifts are taken modulo 32.
        let operand = if encoded >> 31 != 0 { 1 << (operand & 31) } else { operand };
        let op = match encoded >> 28 & 7 {
            0 => Op::Set,
            1 => Op::Add,
            2 => Op::Or,
            3 => Op::AndNot,
            4 => Op::Xor,
            _ => return Err(Errno::ENOSYS),
        };
        let cmp = match encoded >> 24 & 15 {
            0 => Cmp::Eq,
            1 => Cmp::Ne,
            2 => Cmp::Lt,
            3 => Cmp::Le,
            4 => Cmp::Gt,
            5 => Cmp::Ge,
            _ => return Err(Errno::ENOSYS),
        };
        Ok(WakeOp { op, operand, cmp, compared: signed12(encoded) })
    }

    /// What the word becomes.
    pub fn apply(self, value: u32) -> u32 {
        match self.op {
            Op::Set => self.operand,
            Op::Add => value.wrapping_add(self.operand),
            Op::Or => value | self.operand,
            Op::AndNot => value & !self.operand,
            Op::Xor => value ^ self.operand,
        }
    }

    /// Whether the word's old value compares.
    pub fn compares(self, old: u32) -> bool {
        let old = old as i32;
        match self.cmp {
            Cmp::Eq => old == self.compared,
            Cmp::Ne => old != self.compared,
            Cmp::Lt => old < self.compared,
            Cmp::Le => old <= self.compared,
            Cmp::Gt => old > self.compared,
            Cmp::Ge => old >= self.compared,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(op: u32, cmp: u32, operand: i32, compared: i32) -> u32 {
        op << 28 | cmp << 24 | (operand as u32 & 0xfff) << 12 | compared as u32 & 0xfff
    }

    #[test]
    fn operands_are_signed_and_shifts_are_taken() {
        let op = WakeOp::decode(encode(1, 2, -3, -1)).unwrap();
        assert_eq!(op.apply(10), 7);
        assert!(op.compares(-2i32 as u32) && !op.compares(0));
        let op = WakeOp::decode(encode(3 | 8, 5, 4, 7)).unwrap();
        assert_eq!(op.apply(0xff), 0xef);
        assert!(op.compares(7) && !op.compares(6));
        assert_eq!(WakeOp::decode(encode(5, 0, 0, 0)), Err(Errno::ENOSYS));
        assert_eq!(WakeOp::decode(encode(0, 6, 0, 0)), Err(Errno::ENOSYS));
    }
}
