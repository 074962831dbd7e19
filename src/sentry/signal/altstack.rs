//! The alternate signal stack: `sigaltstack(2)`.

use std::sync::OnceLock;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::errno::{Errno, Result};

/// `stack_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StackT {
    /// Its lowest address.
    pub sp: u64,
    /// `SS_*`.
    pub flags: i32,
    /// Not used.
    pub pad: u32,
    /// Its length in bytes.
    pub size: u64,
}

const SS_ONSTACK: i32 = 1;
const SS_DISABLE: i32 = 2;
const SS_AUTODISARM: i32 = 1 << 31;

/// `MINSIGSTKSZ`: what `sigaltstack(2)` insists on. A frame with today's registers needs more: [`min_signal_stack`].
const MINSIGSTKSZ: u64 = 2048;

/// `AT_MINSIGSTKSZ`: the largest frame that delivery of a signal makes, in bytes. That of the host, whose registers and
/// layout the frames have.
pub fn min_signal_stack() -> u64 {
    const AT_MINSIGSTKSZ: u64 = 51;
    static SIZE: OnceLock<u64> = OnceLock::new();
    // SAFETY: getauxval only reads the auxiliary vector.
    *SIZE.get_or_init(|| match unsafe { libc::getauxval(AT_MINSIGSTKSZ) } {
        0 => MINSIGSTKSZ,
        size => size,
    })
}

/// The alternate stack of a thread. A child inherits it, except with `CLONE_VM` and not `CLONE_VFORK`; `execve(2)` disables
/// it, by putting `AltStack::default()` in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AltStack {
    sp: u64,
    size: u64,
    /// As given: the mode and `SS_AUTODISARM`.
    flags: i32,
}

impl Default for AltStack {
    fn default() -> AltStack {
        AltStack { sp: 0, size: 0, flags: SS_DISABLE }
    }
}

impl AltStack {
    /// What `sigaltstack(2)` tells to a thread whose stack pointer is `sp`.
    pub fn get(&self, sp: u64) -> StackT {
        let mode = match (self.size, self.contains(sp)) {
            (0, _) => SS_DISABLE,
            (_, true) => SS_ONSTACK,
            (_, false) => 0,
        };
        StackT { sp: self.sp, flags: mode | self.flags & SS_AUTODISARM, pad: 0, size: self.size }
    }

    /// `sigaltstack(2)`. `EPERM` while `sp` is on it; `EINVAL` for flags; `ENOMEM` when it is too small.
    pub fn set(&mut self, new: StackT, sp: u64) -> Result<()> {
        if self.contains(sp) {
            return Err(Errno::EPERM);
        }
        let mode = new.flags & !SS_AUTODISARM;
        if ![0, SS_ONSTACK, SS_DISABLE].contains(&mode) {
            return Err(Errno::EINVAL);
        }
        if mode == SS_DISABLE {
            *self = AltStack { sp: 0, size: 0, flags: new.flags };
            return Ok(());
        }
        if new.size < MINSIGSTKSZ {
            return Err(Errno::ENOMEM);
        }
        *self = AltStack { sp: new.sp, size: new.size, flags: new.flags };
        Ok(())
    }

    /// Whether a thread with this stack pointer runs on it. With `SS_AUTODISARM` none does, since it is disarmed then.
    pub fn contains(&self, sp: u64) -> bool {
        self.flags & SS_AUTODISARM == 0 && self.spans(sp)
    }

    /// Whether a stack pointer lies in it.
    pub(super) fn spans(&self, sp: u64) -> bool {
        // A stack pointer at its very top has not used any of it, and is on it all the same.
        sp.checked_sub(self.sp).is_some_and(|used| used > 0 && used <= self.size)
    }

    /// Where a handler with `SA_ONSTACK` starts that is called from `sp`: its top, unless it is disabled or in use.
    pub(super) fn top_for(&self, sp: u64) -> Option<u64> {
        (self.size > 0 && !self.contains(sp)).then(|| self.sp.wrapping_add(self.size))
    }

    /// As a signal frame saves it.
    pub(super) fn saved(&self) -> StackT {
        StackT { sp: self.sp, flags: self.flags, pad: 0, size: self.size }
    }

    /// After a frame was made: `SS_AUTODISARM` disables it until `sigreturn`.
    pub(super) fn disarm(&mut self) {
        if self.flags & SS_AUTODISARM != 0 {
            *self = AltStack::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: StackT = StackT { sp: 0x1_0000, flags: 0, pad: 0, size: 0x4000 };

    #[test]
    fn it_is_not_changed_while_in_use() {
        let mut stack = AltStack::default();
        assert_eq!(stack.get(0x1_1000), StackT { flags: SS_DISABLE, ..StackT::default() });
        stack.set(STACK, 0x1_1000).unwrap();
        assert_eq!(stack.get(0x1_1000).flags, SS_ONSTACK);
        assert_eq!(stack.set(STACK, 0x1_4000), Err(Errno::EPERM));
        assert_eq!(stack.set(STACK, 0x1_4001), Ok(()));
        assert_eq!(stack.set(STACK, 0x1_0000), Ok(()), "below its lowest byte nothing is on it");
        assert_eq!(stack.top_for(0x5000), Some(0x1_4000));
        assert_eq!(stack.top_for(0x1_2000), None);
    }

    #[test]
    fn flags_and_sizes_are_checked() {
        let mut stack = AltStack::default();
        assert_eq!(stack.set(StackT { flags: 3, ..STACK }, 0), Err(Errno::EINVAL));
        assert_eq!(stack.set(StackT { size: 2047, ..STACK }, 0), Err(Errno::ENOMEM));
        stack.set(StackT { flags: SS_AUTODISARM | SS_ONSTACK, ..STACK }, 0).unwrap();
        assert!(!stack.contains(0x1_1000));
        assert_eq!(stack.get(0x1_1000).flags, SS_AUTODISARM);
        stack.disarm();
        assert_eq!(stack, AltStack::default());
        stack.set(STACK, 0).unwrap();
        stack.set(StackT { flags: SS_DISABLE, ..STACK }, 0).unwrap();
        assert_eq!(stack.get(0), StackT { flags: SS_DISABLE, ..StackT::default() });
        assert!(min_signal_stack() >= MINSIGSTKSZ);
    }
}
