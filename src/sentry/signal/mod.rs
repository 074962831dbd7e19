//! Signals: `signal(7)`.
//!
//! What is pending ([`PendingQueue`]: one for a process, one for each thread), what is done about it ([`SignalHandlers`]),
//! what is told to the handler ([`SigInfo`]) and how its call is made and undone ([`frame`]). Who gets a signal, and when,
//! is the task's affair.
//!
//! Lock order: the queues are plain data under the lock of their owner, who may hold that while a queue drops or delivers
//! the signal of a timer (see [`DeliveryHook`]): the owner's lock > a timer's lock > the timer queue's.
//! [`SignalHandlers`]' own lock is a leaf.

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Not};

use crate::errno::{Errno, Result};

mod action;
mod altstack;
pub mod frame;
mod info;
mod pending;
mod restart;

pub use action::{SIG_DFL, SIG_IGN, SigAction, SignalHandlers};
pub use altstack::{AltStack, StackT, min_signal_stack};
pub use info::{ChildExit, SigInfo};
pub use pending::{Charge, DeliveryHook, PendingCount, PendingQueue};
pub use restart::{Restart, restart_decision};

/// The highest signal number.
pub const NSIG: i32 = 64;

/// The first realtime signal, as the kernel counts.
pub const SIGRTMIN: i32 = 32;

/// A signal number, 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(u8);

macro_rules! signals {
    ($($name:ident = $number:literal)*) => {
        #[allow(missing_docs, reason = "the names are signal(7)'s")]
        impl Signal {
            $(pub const $name: Signal = Signal($number);)*

            /// `"SIGHUP"`; `None` for a realtime signal.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(concat!("SIG", stringify!($name))),)*
                    _ => None,
                }
            }
        }
    };
}

signals! {
    HUP = 1 INT = 2 QUIT = 3 ILL = 4 TRAP = 5 ABRT = 6 BUS = 7 FPE = 8 KILL = 9 USR1 = 10 SEGV = 11 USR2 = 12 PIPE = 13
    ALRM = 14 TERM = 15 STKFLT = 16 CHLD = 17 CONT = 18 STOP = 19 TSTP = 20 TTIN = 21 TTOU = 22 URG = 23 XCPU = 24
    XFSZ = 25 VTALRM = 26 PROF = 27 WINCH = 28 IO = 29 PWR = 30 SYS = 31
}

/// What a signal does that has neither a handler nor is ignored: `signal(7)`, "Signal dispositions".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultAction {
    /// Ends the process.
    Term,
    /// Ends the process, with a core dump.
    Core,
    /// Does nothing.
    Ignore,
    /// Stops the process.
    Stop,
    /// Continues the process if it is stopped.
    Continue,
}

impl Signal {
    /// `EINVAL` unless 1 to 64.
    pub fn new(number: i32) -> Result<Signal> {
        if (1..=NSIG).contains(&number) { Ok(Signal(number as u8)) } else { Err(Errno::EINVAL) }
    }

    /// The number.
    pub fn number(self) -> i32 {
        self.0.into()
    }

    /// Whether each sending counts, in order.
    pub fn is_realtime(self) -> bool {
        i32::from(self.0) >= SIGRTMIN
    }

    /// What it does by default.
    pub fn default_action(self) -> DefaultAction {
        match self {
            Signal::CHLD | Signal::URG | Signal::WINCH => DefaultAction::Ignore,
            Signal::CONT => DefaultAction::Continue,
            Signal::STOP | Signal::TSTP | Signal::TTIN | Signal::TTOU => DefaultAction::Stop,
            Signal::QUIT
            | Signal::ILL
            | Signal::TRAP
            | Signal::ABRT
            | Signal::BUS
            | Signal::FPE
            | Signal::SEGV
            | Signal::XCPU
            | Signal::XFSZ
            | Signal::SYS => DefaultAction::Core,
            _ => DefaultAction::Term,
        }
    }

    /// SIGKILL and SIGSTOP, which cannot be caught, blocked or ignored.
    pub fn is_unstoppable(self) -> bool {
        self == Signal::KILL || self == Signal::STOP
    }

    /// The set that holds just it.
    pub fn set(self) -> SigSet {
        SigSet(1 << (self.0 - 1))
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "SIGRT{}", i32::from(self.0) - SIGRTMIN),
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A set of signals, in the kernel's layout: signal n is bit n - 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SigSet(pub u64);

impl SigSet {
    /// No signal.
    pub const EMPTY: SigSet = SigSet(0);
    /// All signals.
    pub const ALL: SigSet = SigSet(!0);
    /// SIGKILL and SIGSTOP.
    pub const UNSTOPPABLE: SigSet = SigSet(1 << 8 | 1 << 18);
    /// What stops a process by default.
    pub const STOPS: SigSet = SigSet(1 << 18 | 1 << 19 | 1 << 20 | 1 << 21);
    /// What an instruction raises: delivered before all others.
    pub const SYNCHRONOUS: SigSet = SigSet(1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 30);

    /// Whether `signal` is in it.
    pub fn contains(self, signal: Signal) -> bool {
        self.0 & signal.set().0 != 0
    }

    /// Adds a signal.
    pub fn insert(&mut self, signal: Signal) {
        self.0 |= signal.set().0;
    }

    /// Takes a signal out.
    pub fn remove(&mut self, signal: Signal) {
        self.0 &= !signal.set().0;
    }

    /// Whether there is no signal in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the two have a signal in common.
    pub fn intersects(self, other: SigSet) -> bool {
        self.0 & other.0 != 0
    }

    /// Its signals that are not in `other`.
    pub fn without(self, other: SigSet) -> SigSet {
        SigSet(self.0 & !other.0)
    }

    /// As a mask: without SIGKILL and SIGSTOP, which cannot be blocked.
    pub fn blockable(self) -> SigSet {
        self.without(SigSet::UNSTOPPABLE)
    }

    /// The lowest signal in it.
    pub fn lowest(self) -> Option<Signal> {
        (self.0 != 0).then(|| Signal(self.0.trailing_zeros() as u8 + 1))
    }

    /// Its signals, lowest first.
    pub fn iter(self) -> impl Iterator<Item = Signal> {
        let mut left = self;
        std::iter::from_fn(move || {
            let signal = left.lowest()?;
            left.remove(signal);
            Some(signal)
        })
    }
}

impl BitOr for SigSet {
    type Output = SigSet;
    fn bitor(self, other: SigSet) -> SigSet {
        SigSet(self.0 | other.0)
    }
}

impl BitOrAssign for SigSet {
    fn bitor_assign(&mut self, other: SigSet) {
        self.0 |= other.0;
    }
}

impl BitAnd for SigSet {
    type Output = SigSet;
    fn bitand(self, other: SigSet) -> SigSet {
        SigSet(self.0 & other.0)
    }
}

impl Not for SigSet {
    type Output = SigSet;
    fn not(self) -> SigSet {
        SigSet(!self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_the_kernels_layout() {
        let mut set = SigSet::EMPTY;
        for signal in [libc::SIGKILL, libc::SIGSTOP, libc::SIGTERM, 64] {
            set.insert(Signal::new(signal).unwrap());
        }
        assert_eq!(set.0, 1 << 8 | 1 << 18 | 1 << 14 | 1 << 63);
        assert_eq!(set.blockable().iter().map(Signal::number).collect::<Vec<_>>(), [15, 64]);
        assert_eq!(SigSet::EMPTY.lowest(), None);
        let all = SigSet::ALL.iter();
        let stops = all.filter(|signal| signal.default_action() == DefaultAction::Stop);
        assert_eq!(stops.fold(SigSet::EMPTY, |set, signal| set | signal.set()), SigSet::STOPS);
    }

    #[test]
    fn numbers_are_those_of_the_host() {
        assert_eq!(Signal::SEGV.number(), libc::SIGSEGV);
        assert_eq!(Signal::SYS.number(), libc::SIGSYS);
        assert_eq!(Signal::CHLD.number(), libc::SIGCHLD);
        assert_eq!(Signal::new(0), Err(Errno::EINVAL));
        assert_eq!(Signal::new(65), Err(Errno::EINVAL));
        assert_eq!(format!("{} {}", Signal::HUP, Signal::new(34).unwrap()), "SIGHUP SIGRT2");
        let sync = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGFPE, libc::SIGSYS];
        assert_eq!(sync.iter().fold(0, |set, signal| set | 1u64 << (signal - 1)), SigSet::SYNCHRONOUS.0);
    }
}
