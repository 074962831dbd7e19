//! Where memory is on the machine: `mbind(2)`, `set_mempolicy(2)`, `get_mempolicy(2)`. There is one node, number 0, so every
//! policy that can be asked for is the one in force; the calls check what they are given, and it is remembered: a task's own, and
//! that of each area.

use super::MemoryManager;
use super::user::PAGE;
use crate::errno::{Errno, Result};

const MPOL_DEFAULT: i32 = 0;
const MPOL_PREFERRED: i32 = 1;
const MPOL_INTERLEAVE: i32 = 3;
const MPOL_LOCAL: i32 = 4;
const MPOL_PREFERRED_MANY: i32 = 5;
const MPOL_WEIGHTED_INTERLEAVE: i32 = 6;
const MPOL_MODE_FLAGS: i32 = (1 << 15) | (1 << 14) | (1 << 13);

const MPOL_F_NODE: u32 = 1;
const MPOL_F_ADDR: u32 = 2;
const MPOL_F_MEMS_ALLOWED: u32 = 4;

const MPOL_MF_VALID: u32 = 7;
const MPOL_MF_MOVE_ALL: u32 = 4;

/// Checks a policy: mode and nodes as they are shown. `nodes` is the first word of the mask, 0 when it is absent. `EINVAL`.
pub fn check_policy(raw: i32, nodes: u64) -> Result<(i32, u64)> {
    let (flags, mode) = (raw & MPOL_MODE_FLAGS, raw & !MPOL_MODE_FLAGS);
    let valid = match mode {
        MPOL_DEFAULT => flags == 0 && nodes == 0,
        MPOL_LOCAL => flags == 0 && nodes == 0,
        MPOL_PREFERRED => nodes & !1 == 0 && !(nodes == 0 && flags != 0),
        MPOL_PREFERRED_MANY..=MPOL_WEIGHTED_INTERLEAVE | 2 | MPOL_INTERLEAVE => nodes & 1 != 0,
        _ => false,
    };
    match mode {
        _ if !valid => Err(Errno::EINVAL),
        // Without a node to prefer it is the local one.
        MPOL_PREFERRED if nodes == 0 => Ok((MPOL_LOCAL, 0)),
        MPOL_DEFAULT | MPOL_LOCAL => Ok((mode, 0)),
        _ => Ok((raw, nodes & 1)),
    }
}

impl MemoryManager {
    /// `mbind(2)`. `EINVAL`, `EFAULT` (a hole), `EPERM`.
    pub fn mbind(&self, addr: u64, len: u64, mode: i32, nodes: u64, flags: u32) -> Result<()> {
        if flags & !MPOL_MF_VALID != 0 || !addr.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        if flags & MPOL_MF_MOVE_ALL != 0 {
            return Err(Errno::EPERM);
        }
        let policy = Some(check_policy(mode, nodes)?).filter(|policy| policy.0 != MPOL_DEFAULT);
        let range = self.checked_range(addr, len).ok_or(Errno::EINVAL)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut inner = self.lock();
        if !inner.map.is_covered(&range) {
            return Err(Errno::EFAULT);
        }
        inner.map.update(&range, |area| {
            if !area.is_special() {
                area.policy = policy;
            }
        });
        Ok(())
    }

    /// `get_mempolicy(2)` of a task with policy `own`: the mode (or node) and the first word of the mask. `EINVAL`, `EFAULT`.
    pub fn get_mempolicy(&self, own: (i32, u64), addr: u64, flags: u32) -> Result<(i32, u64)> {
        let known = MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED;
        if flags & !known != 0 {
            return Err(Errno::EINVAL);
        }
        if flags & MPOL_F_MEMS_ALLOWED != 0 {
            let alone = flags & (MPOL_F_NODE | MPOL_F_ADDR) == 0;
            return if alone { Ok((MPOL_DEFAULT, 1)) } else { Err(Errno::EINVAL) };
        }
        if flags & MPOL_F_ADDR != 0 {
            let policy = self.lock().map.find(addr).map(|area| area.policy).ok_or(Errno::EFAULT)?.unwrap_or(own);
            return Ok(if flags & MPOL_F_NODE != 0 { (0, policy.1) } else { policy });
        }
        let interleaves = matches!(own.0 & !MPOL_MODE_FLAGS, MPOL_INTERLEAVE | MPOL_WEIGHTED_INTERLEAVE);
        match flags & MPOL_F_NODE != 0 {
            _ if addr != 0 => Err(Errno::EINVAL),
            // The node that is next.
            true if interleaves => Ok((0, own.1)),
            true => Err(Errno::EINVAL),
            false => Ok(own),
        }
    }
}
