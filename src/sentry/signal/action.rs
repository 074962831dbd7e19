//! What a process does about each signal: `sigaction(2)`.

use parking_lot::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{DefaultAction, NSIG, SigSet, Signal};
use crate::errno::{Errno, Result};

/// The default action.
pub const SIG_DFL: u64 = 0;
/// Ignore.
pub const SIG_IGN: u64 = 1;

/// `struct sigaction` as the kernel's system call has it on x86_64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SigAction {
    /// A function of the container's, [`SIG_DFL`] or [`SIG_IGN`].
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// What the handler returns to.
    pub restorer: u64,
    /// Blocked while the handler runs, besides the signal itself.
    pub mask: u64,
}

impl SigAction {
    /// `SA_NOCLDSTOP`: no SIGCHLD for stopped children.
    pub const NOCLDSTOP: u64 = 1;
    /// `SA_NOCLDWAIT`: children do not become zombies.
    pub const NOCLDWAIT: u64 = 2;
    /// `SA_SIGINFO`: the handler takes three arguments.
    pub const SIGINFO: u64 = 4;
    /// `SA_RESTORER`: `restorer` is valid.
    pub const RESTORER: u64 = 0x0400_0000;
    /// `SA_ONSTACK`: runs on the alternate stack.
    pub const ONSTACK: u64 = 0x0800_0000;
    /// `SA_RESTART`: interrupted calls are made again.
    pub const RESTART: u64 = 0x1000_0000;
    /// `SA_NODEFER`: the signal itself is not blocked.
    pub const NODEFER: u64 = 0x4000_0000;
    /// `SA_RESETHAND`: once.
    pub const RESETHAND: u64 = 0x8000_0000;
    /// `SA_EXPOSE_TAGBITS`.
    pub const EXPOSE_TAGBITS: u64 = 0x800;

    /// All flags that there are: others read back as 0, which is how programs find out.
    const KNOWN: u64 = Self::NOCLDSTOP
        | Self::NOCLDWAIT
        | Self::SIGINFO
        | Self::EXPOSE_TAGBITS
        | Self::RESTORER
        | Self::ONSTACK
        | Self::RESTART
        | Self::NODEFER
        | Self::RESETHAND;

    /// Whether a flag is set.
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Whether a function of the container's is to be called.
    pub fn is_caught(&self) -> bool {
        self.handler != SIG_DFL && self.handler != SIG_IGN
    }

    /// Whether `signal` does nothing at all: it need not even become pending, unless it is blocked. SIGCONT is not
    /// ignored by default: it continues.
    pub fn ignores(&self, signal: Signal) -> bool {
        !signal.is_unstoppable()
            && (self.handler == SIG_IGN || self.handler == SIG_DFL && signal.default_action() == DefaultAction::Ignore)
    }

    /// What is blocked while the handler of `signal` runs, on top of what is blocked already.
    pub fn handler_mask(&self, signal: Signal) -> SigSet {
        let own = if self.has(SigAction::NODEFER) { SigSet::EMPTY } else { signal.set() };
        (SigSet(self.mask) | own).blockable()
    }
}

/// The actions of a process, or of several (`CLONE_SIGHAND`).
pub struct SignalHandlers {
    actions: Mutex<[SigAction; NSIG as usize]>,
}

impl Default for SignalHandlers {
    fn default() -> Self {
        SignalHandlers { actions: Mutex::new([SigAction::default(); NSIG as usize]) }
    }
}

fn index(signal: Signal) -> usize {
    signal.number() as usize - 1
}

impl SignalHandlers {
    /// All signals do what they do by default.
    pub fn new() -> SignalHandlers {
        SignalHandlers::default()
    }

    /// The action for `signal`.
    pub fn get(&self, signal: Signal) -> SigAction {
        self.actions.lock()[index(signal)]
    }

    /// `sigaction(2)`: returns what was set before. `EINVAL` for SIGKILL and SIGSTOP. The caller then flushes pending
    /// signals that have become ignored ([`SigAction::ignores`]).
    pub fn set(&self, signal: Signal, action: SigAction) -> Result<SigAction> {
        if signal.is_unstoppable() {
            return Err(Errno::EINVAL);
        }
        let mask = SigSet(action.mask).blockable().0;
        let action = SigAction { flags: action.flags & SigAction::KNOWN, mask, ..action };
        Ok(std::mem::replace(&mut self.actions.lock()[index(signal)], action))
    }

    /// The action that a signal about to be delivered has; with `SA_RESETHAND` a caught signal's is the default from now on.
    pub fn take(&self, signal: Signal) -> SigAction {
        let mut actions = self.actions.lock();
        let slot = &mut actions[index(signal)];
        let action = *slot;
        if action.is_caught() && action.has(SigAction::RESETHAND) {
            slot.handler = SIG_DFL;
        }
        action
    }

    /// For a signal that the kernel forces (a fault that is blocked or ignored): back to the default action.
    pub fn reset(&self, signal: Signal) {
        self.actions.lock()[index(signal)].handler = SIG_DFL;
    }

    /// A table of its own for a new process: `fork(2)`.
    pub fn fork(&self) -> SignalHandlers {
        SignalHandlers { actions: Mutex::new(*self.actions.lock()) }
    }

    /// `execve(2)`, and `CLONE_CLEAR_SIGHAND` on a copy: what was caught is the default, what was ignored stays so.
    pub fn reset_for_exec(&self) {
        for action in self.actions.lock().iter_mut() {
            let handler = if action.handler == SIG_IGN { SIG_IGN } else { SIG_DFL };
            *action = SigAction { handler, ..SigAction::default() };
        }
    }

    /// Which signals are ignored and which are caught: `SigIgn` and `SigCgt` of `/proc/PID/status`.
    pub fn ignored_and_caught(&self) -> (SigSet, SigSet) {
        let (mut ignored, mut caught) = (SigSet::EMPTY, SigSet::EMPTY);
        let actions = self.actions.lock();
        for (signal, action) in SigSet::ALL.iter().zip(actions.iter()) {
            match action.handler {
                SIG_DFL => {}
                SIG_IGN => ignored.insert(signal),
                _ => caught.insert(signal),
            }
        }
        (ignored, caught)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_keeps_only_what_is_ignored() {
        let handlers = SignalHandlers::new();
        let caught = SigAction { handler: 0x1000, flags: SigAction::RESTART | 0x400, mask: !0, restorer: 7 };
        handlers.set(Signal::HUP, caught).unwrap();
        handlers.set(Signal::INT, SigAction { handler: SIG_IGN, ..SigAction::default() }).unwrap();
        assert_eq!(handlers.set(Signal::KILL, caught), Err(Errno::EINVAL));
        let stored = handlers.get(Signal::HUP);
        assert_eq!((stored.flags, stored.mask), (SigAction::RESTART, SigSet::ALL.blockable().0));
        let copy = handlers.fork();
        assert_eq!(copy.ignored_and_caught(), (Signal::INT.set(), Signal::HUP.set()));
        copy.reset_for_exec();
        assert_eq!(copy.ignored_and_caught(), (Signal::INT.set(), SigSet::EMPTY));
        assert_eq!(copy.get(Signal::HUP), SigAction::default());
        assert_eq!(handlers.get(Signal::HUP), stored, "a copy is a copy");
    }

    #[test]
    fn once_means_once() {
        let handlers = SignalHandlers::new();
        let action = SigAction { handler: 0x1000, flags: SigAction::RESETHAND, ..SigAction::default() };
        handlers.set(Signal::USR1, action).unwrap();
        assert_eq!(handlers.take(Signal::USR1), action);
        assert_eq!(handlers.take(Signal::USR1).handler, SIG_DFL);
    }

    #[test]
    fn ignoring_knows_the_defaults() {
        let default = SigAction::default();
        assert!(default.ignores(Signal::CHLD) && default.ignores(Signal::WINCH));
        assert!(!default.ignores(Signal::CONT) && !default.ignores(Signal::TERM));
        assert!(SigAction { handler: SIG_IGN, ..default }.ignores(Signal::CONT));
        assert_eq!(default.handler_mask(Signal::USR1), Signal::USR1.set());
        assert_eq!(SigAction { flags: SigAction::NODEFER, ..default }.handler_mask(Signal::USR1), SigSet::EMPTY);
    }
}
