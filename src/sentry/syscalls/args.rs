//! System-call arguments: registers become typed values once, before a handler sees them.

use std::fmt::Write;

use crate::errno::Result;
use crate::platform::{AddressSpace, Regs};
use crate::sentry::mm::user::{UserPtr, UserSlice, UserStr};
use crate::sentry::task::Current;

/// What a handler returns: the value for `rax`.
pub type SysResult = Result<u64>;

/// A file descriptor: any number that a container passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd(pub i32);

/// The argument registers of one call, taken from the front.
#[derive(Clone, Copy)]
pub struct ArgRegs {
    regs: [u64; 6],
    next: usize,
}

impl ArgRegs {
    /// Those of the call that `regs` has stopped at.
    pub fn new(regs: &Regs) -> ArgRegs {
        ArgRegs { regs: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9], next: 0 }
    }

    fn take(&mut self) -> u64 {
        let value = self.regs.get(self.next).copied().unwrap_or(0);
        self.next += 1;
        value
    }
}

/// An argument: made of one register or several, and shown in a trace.
pub trait Arg: Sized {
    /// Takes its registers.
    fn take(regs: &mut ArgRegs) -> Self;

    /// How `--strace` shows it.
    fn show(&self, space: &dyn AddressSpace, out: &mut String);
}

macro_rules! integers {
    ($($int:ty),*) => {
        $(impl Arg for $int {
            fn take(regs: &mut ArgRegs) -> $int {
                regs.take() as $int
            }

            fn show(&self, _space: &dyn AddressSpace, out: &mut String) {
                let value = *self;
                let _ = if (-4096..4096).contains(&(value as i64)) {
                    write!(out, "{value}")
                } else {
                    write!(out, "{value:#x}")
                };
            }
        })*
    };
}

integers!(i32, u32, i64, u64, usize);

impl Arg for Fd {
    fn take(regs: &mut ArgRegs) -> Fd {
        Fd(regs.take() as i32)
    }

    fn show(&self, _space: &dyn AddressSpace, out: &mut String) {
        let _ = match self.0 {
            libc::AT_FDCWD => write!(out, "AT_FDCWD"),
            fd => write!(out, "{fd}"),
        };
    }
}

impl<T> Arg for UserPtr<T> {
    fn take(regs: &mut ArgRegs) -> UserPtr<T> {
        UserPtr::new(regs.take())
    }

    fn show(&self, _space: &dyn AddressSpace, out: &mut String) {
        let _ = match self.is_null() {
            true => write!(out, "NULL"),
            false => write!(out, "{:#x}", self.addr()),
        };
    }
}

/// How much of a string a trace shows.
const SHOWN: usize = 128;

impl Arg for UserStr {
    fn take(regs: &mut ArgRegs) -> UserStr {
        UserStr::new(regs.take())
    }

    fn show(&self, space: &dyn AddressSpace, out: &mut String) {
        if self.is_null() {
            return out.push_str("NULL");
        }
        let mut text = vec![0; SHOWN];
        let _ = match space.read(self.addr(), &mut text) {
            Ok(n) => {
                let end = text[..n].iter().position(|&byte| byte == 0);
                let dots = if end.is_some() { "" } else { "..." };
                write!(out, "\"{}\"{dots}", text[..end.unwrap_or(n)].escape_ascii())
            }
            Err(_) => write!(out, "{:#x}", self.addr()),
        };
    }
}

impl Arg for UserSlice {
    fn take(regs: &mut ArgRegs) -> UserSlice {
        let addr = regs.take();
        UserSlice::new(addr, regs.take() as usize)
    }

    fn show(&self, _space: &dyn AddressSpace, out: &mut String) {
        let _ = write!(out, "{:#x}, {}", self.addr(), self.len());
    }
}

/// A system call's implementation, its argument types erased.
pub trait Handler: Sync {
    /// Decodes the registers and answers the call.
    fn call(&self, cur: &mut Current, regs: ArgRegs) -> SysResult;

    /// Appends the decoded arguments to a trace line.
    fn show(&self, regs: ArgRegs, space: &dyn AddressSpace, out: &mut String);
}

/// Ties a function to the types of its arguments.
pub struct Typed<F, A> {
    function: F,
    args: std::marker::PhantomData<fn() -> A>,
}

impl<F, A> Typed<F, A> {
    /// A handler that calls `function`.
    pub const fn new(function: F) -> Typed<F, A> {
        Typed { function, args: std::marker::PhantomData }
    }
}

macro_rules! handlers {
    ($(($($arg:ident),*))*) => {
        $(impl<F, $($arg: Arg),*> Handler for Typed<F, ($($arg,)*)>
        where
            F: Fn(&mut Current, $($arg),*) -> SysResult + Sync,
        {
            #[allow(non_snake_case, unused_mut, unused_variables, reason = "a macro for zero to six arguments")]
            fn call(&self, cur: &mut Current, mut regs: ArgRegs) -> SysResult {
                $(let $arg = $arg::take(&mut regs);)*
                (self.function)(cur, $($arg),*)
            }

            #[allow(non_snake_case, unused_mut, unused_variables, unused_assignments, reason = "as above")]
            fn show(&self, mut regs: ArgRegs, space: &dyn AddressSpace, out: &mut String) {
                let mut separator = "";
                $(
                    out.push_str(separator);
                    $arg::take(&mut regs).show(space, out);
                    separator = ", ";
                )*
            }
        })*
    };
}

handlers! { () (A) (A, B) (A, B, C) (A, B, C, D) (A, B, C, D, E) (A, B, C, D, E, G) }

/// A function that can be a [`Handler`]; `A` is the tuple of its arguments.
pub trait IntoHandler<A> {
    /// Erases its type.
    fn into_handler(self) -> Box<dyn Handler + Send>;
}

macro_rules! into_handlers {
    ($(($($arg:ident),*))*) => {
        $(impl<F, $($arg: Arg + 'static),*> IntoHandler<($($arg,)*)> for F
        where
            F: Fn(&mut Current, $($arg),*) -> SysResult + Send + Sync + 'static,
        {
            fn into_handler(self) -> Box<dyn Handler + Send> {
                Box::new(Typed::<F, ($($arg,)*)>::new(self))
            }
        })*
    };
}

into_handlers! { () (A) (A, B) (A, B, C) (A, B, C, D) (A, B, C, D, E) (A, B, C, D, E, G) }
