//! Where memory is on the machine: `mbind(2)`, `set_mempolicy(2)`, `get_mempolicy(2)`. There is one node, number 0, so every
//! policy that can be asked for is the one in force; the calls check what they are given.

use super::MemoryManager;
use super::user::PAGE;
use crate::errno::{Errno, Result};

const MPOL_DEFAULT: i32 = 0;
const MPOL_PREFERRED: i32 = 1;
const MPOL_LOCAL: i32 = 4;
const MPOL_PREFERRED_MANY: i32 = 5;
const MPOL_WEIGHTED_INTERLEAVE: i32 = 6;
const MPOL_MODE_FLAGS: i32 = (1 << 15) | (1 << 14) | (1 << 13);

const MPOL_F_NODE: u32 = 1;
const MPOL_F_ADDR: u32 = 2;
const MPOL_F_MEMS_ALLOWED: u32 = 4;

const MPOL_MF_VALID: u32 = 7;
const MPOL_MF_MOVE_ALL: u32 = 4;

/// Checks a policy. `nodes` is the first word of the mask, 0 when it is absent. `EINVAL`.
pub fn check_policy(mode: i32, nodes: u64) -> Result<()> {
    let (flags, mode) = (mode & MPOL_MODE_FLAGS, mode & !MPOL_MODE_FLAGS);
    let valid = match mode {
        MPOL_DEFAULT => flags == 0 && nodes == 0,
        MPOL_LOCAL => flags == 0 && nodes == 0,
        MPOL_PREFERRED => nodes & !1 == 0 && !(nodes == 0 && flags != 0),
        MPOL_PREFERRED_MANY..=MPOL_WEIGHTED_INTERLEAVE | 2 | 3 => nodes & 1 != 0,
        _ => false,
    };
    if valid { Ok(()) } else { Err(Errno::EINVAL) }
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
        check_policy(mode, nodes)?;
        let range = self.checked_range(addr, len).ok_or(Errno::EINVAL)?;
        let covered = range.is_empty() || self.lock().map.is_covered(&range);
        if covered { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// `get_mempolicy(2)`: the mode (or node) and the first word of the mask. `EINVAL`, `EFAULT`.
    pub fn get_mempolicy(&self, addr: u64, flags: u32) -> Result<(i32, u64)> {
        let known = MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED;
        if flags & !known != 0 {
            return Err(Errno::EINVAL);
        }
        if flags & MPOL_F_MEMS_ALLOWED != 0 {
            let alone = flags & (MPOL_F_NODE | MPOL_F_ADDR) == 0;
            return if alone { Ok((MPOL_DEFAULT, 1)) } else { Err(Errno::EINVAL) };
        }
        if flags & MPOL_F_ADDR != 0 {
            let mapped = self.lock().map.find(addr).is_some();
            return if mapped { Ok((MPOL_DEFAULT, 0)) } else { Err(Errno::EFAULT) };
        }
        // Without interleaving there is no next node to tell.
        if addr != 0 || flags & MPOL_F_NODE != 0 { Err(Errno::EINVAL) } else { Ok((MPOL_DEFAULT, 0)) }
    }
}
