//! Filters of system calls: `seccomp(2)`, and the profile of an OCI specification ([`oci`]), which is a filter like any.
//!
//! A task has a mode and the last filter that was installed, which knows the one before it. `fork(2)` and `clone(2)` pass
//! them on, `execve(2)` keeps them, nothing takes them away. A task without filters pays one relaxed load a call. A filter
//! also knows the calls that it and all before it allow whatever their arguments are: those cost a look into a bitmap.
//!
//! Lock order: the filter's lock is a leaf. `TSYNC` takes it beneath `ThreadGroup::signals`.

pub mod bpf;
mod names;
pub mod oci;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use parking_lot::RwLock;

use self::bpf::{Data, Program};
use crate::errno::{Errno, Result};

/// How many instructions all filters of a task may have, each filter counting four more than it has.
const MAX_TOTAL: usize = 32_768;

/// Numbers above are none of x86_64's.
const CALLS: usize = 512;

/// `SECCOMP_RET_*`, the actions: the upper half of what a program returns, the lower half being data.
pub mod action {
    #![allow(missing_docs, reason = "the names are the kernel's")]
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    pub const KILL_THREAD: u32 = 0;
    pub const TRAP: u32 = 0x0003_0000;
    pub const ERRNO: u32 = 0x0005_0000;
    pub const USER_NOTIF: u32 = 0x7fc0_0000;
    pub const TRACE: u32 = 0x7ff0_0000;
    pub const LOG: u32 = 0x7ffc_0000;
    pub const ALLOW: u32 = 0x7fff_0000;
    /// The bits of the action.
    pub const FULL: u32 = 0xffff_0000;
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is answered.
    Allow,
    /// It fails so; 0 is a success.
    Errno(i32),
    /// It is not answered: SIGSYS, with this as `si_errno`.
    Trap(i32),
    /// The thread ends as if killed by SIGSYS; with no other thread, the process does.
    KillThread,
    /// The process is killed by SIGSYS.
    KillProcess,
    /// Strict mode: the thread is killed by SIGKILL.
    Strict,
}

/// A filter and those before it.
pub struct Filter {
    program: Program,
    /// `SECCOMP_FILTER_FLAG_LOG`: what is not allowed is logged.
    log: bool,
    previous: Option<Arc<Filter>>,
    /// Calls that all of them allow, whatever the arguments.
    allowed: [u64; CALLS / 64],
    /// How many they are.
    depth: u32,
    /// Their instructions, with what is added for each.
    total: usize,
}

impl Filter {
    /// Puts a program on top of `previous`. `ENOMEM`: they are too long together.
    pub fn new(program: Program, log: bool, previous: Option<Arc<Filter>>) -> Result<Arc<Filter>> {
        let before = previous.as_ref().map_or(0, |filter| filter.total);
        let total = before + program.len();
        if total > MAX_TOTAL {
            return Err(Errno::ENOMEM);
        }
        let mut allowed = previous.as_ref().map_or([u64::MAX; CALLS / 64], |filter| filter.allowed);
        for nr in 0..CALLS as u32 {
            if program.constant(nr) != Some(action::ALLOW) {
                allowed[nr as usize / 64] &= !(1 << (nr % 64));
            }
        }
        let depth = previous.as_ref().map_or(0, |filter| filter.depth) + 1;
        Ok(Arc::new(Filter { program, log, previous, allowed, depth, total: total + 4 }))
    }

    /// How many filters there are, with those before.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    fn allows_always(&self, nr: u32) -> bool {
        self.allowed.get(nr as usize / 64).is_some_and(|word| word & 1 << (nr % 64) != 0)
    }

    /// Runs all of them. The strictest action wins, and of equal ones the last that was installed, with its data.
    fn decide(&self, data: &Data) -> (u32, &Filter) {
        let mut winner = (action::ALLOW, self);
        let mut next = Some(self);
        while let Some(filter) = next {
            let value = filter.program.run(data);
            // As signed numbers: KILL_PROCESS is below all others.
            if ((value & action::FULL) as i32) < (winner.0 & action::FULL) as i32 {
                winner = (value, filter);
            }
            next = filter.previous.as_deref();
        }
        winner
    }

    /// Whether `self` is `other` or among those before it.
    fn is_ancestor_of(&self, other: &Filter) -> bool {
        let mut next = Some(other);
        while let Some(filter) = next {
            if std::ptr::eq(filter, self) {
                return true;
            }
            next = filter.previous.as_deref();
        }
        false
    }
}

impl Drop for Filter {
    /// In a loop: there may be thousands, each the last owner of the one before.
    fn drop(&mut self) {
        let mut next = self.previous.take();
        while let Some(mut filter) = next.and_then(Arc::into_inner) {
            next = filter.previous.take();
        }
    }
}

/// `SECCOMP_MODE_DISABLED`.
const DISABLED: u8 = 0;
/// `SECCOMP_MODE_STRICT`.
const STRICT: u8 = 1;
/// `SECCOMP_MODE_FILTER`.
const FILTER: u8 = 2;

/// What of this a task has.
#[derive(Default)]
pub struct Seccomp {
    mode: AtomicU8,
    /// Counts what is put in force.
    changes: AtomicU32,
    filter: RwLock<Option<Arc<Filter>>>,
    /// Another thread has set `PR_SET_NO_NEW_PRIVS` for this one, with `TSYNC`. Never unset.
    pub(in crate::sentry) no_new_privs: AtomicBool,
}

impl Seccomp {
    /// The mode, as `PR_GET_SECCOMP` and `/proc/PID/status` tell it.
    pub fn mode(&self) -> u8 {
        self.mode.load(Ordering::Relaxed)
    }

    /// How many filters there are.
    pub fn filters(&self) -> u32 {
        self.filter.read().as_ref().map_or(0, |filter| filter.depth())
    }

    /// The last filter.
    pub fn filter(&self) -> Option<Arc<Filter>> {
        self.filter.read().clone()
    }

    /// Puts `filter`, made on top of the present one, in force.
    pub fn install(&self, filter: Arc<Filter>) {
        let old = self.filter.write().replace(filter);
        self.mode.store(FILTER, Ordering::Release);
        self.changes.fetch_add(1, Ordering::SeqCst);
        drop(old);
    }

    /// `SECCOMP_SET_MODE_STRICT`. `EINVAL` when there are filters.
    pub fn set_strict(&self) -> Result<()> {
        if self.mode() == FILTER {
            return Err(Errno::EINVAL);
        }
        self.mode.store(STRICT, Ordering::Release);
        self.changes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Whether filters may be installed: not in strict mode.
    pub fn takes_filters(&self) -> bool {
        self.mode() != STRICT
    }

    /// What a new task has from its maker.
    pub fn inherit(&self, from: &Seccomp) {
        let filter = from.filter();
        let old = std::mem::replace(&mut *self.filter.write(), filter);
        drop(old);
        self.no_new_privs.store(from.no_new_privs.load(Ordering::SeqCst), Ordering::SeqCst);
        self.mode.store(from.mode(), Ordering::Release);
    }

    /// Whether `TSYNC` from a thread with filter `callers` may give this task the same filters: what it has now is among
    /// those.
    pub fn may_sync(&self, callers: Option<&Filter>) -> bool {
        match (self.mode(), &*self.filter.read(), callers) {
            (DISABLED, ..) => true,
            (FILTER, Some(own), Some(callers)) => own.is_ancestor_of(callers),
            _ => false,
        }
    }

    /// Another number whenever something has been put in force.
    pub fn changes(&self) -> u32 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Whether a call with this number is allowed whatever its arguments.
    pub fn allows_always(&self, nr: u32) -> bool {
        match self.mode() {
            DISABLED => true,
            FILTER => self.filter.read().as_ref().is_none_or(|filter| filter.allows_always(nr)),
            _ => false,
        }
    }

    /// Whether there is anything to ask of a call.
    pub fn is_active(&self) -> bool {
        self.mode() != DISABLED
    }

    /// Decides on a call.
    pub fn check(&self, data: impl FnOnce() -> Data, nr: u64) -> Verdict {
        if self.mode() == STRICT {
            return if is_strict(nr) { Verdict::Allow } else { Verdict::Strict };
        }
        let nr = nr as u32;
        let filter = {
            let filter = self.filter.read();
            match &*filter {
                Some(filter) if !filter.allows_always(nr) => filter.clone(),
                _ => return Verdict::Allow,
            }
        };
        let (value, by) = filter.decide(&data());
        verdict(value, nr, by.log)
    }
}

/// The calls of strict mode.
fn is_strict(nr: u64) -> bool {
    [libc::SYS_read, libc::SYS_write, libc::SYS_exit, libc::SYS_rt_sigreturn].contains(&(nr as i64))
}

/// The longest `errno`: `MAX_ERRNO`.
const MAX_ERRNO: u32 = 4095;

fn verdict(value: u32, nr: u32, log: bool) -> Verdict {
    let data = value & !action::FULL;
    let kind = value & action::FULL;
    let kills = matches!(kind, action::KILL_PROCESS | action::KILL_THREAD);
    if kind == action::LOG || kills || (log && kind != action::ALLOW) {
        log::info!("seccomp: system call {nr}: {value:#x}");
    }
    match kind {
        action::ALLOW | action::LOG => Verdict::Allow,
        action::ERRNO => Verdict::Errno(data.min(MAX_ERRNO) as i32),
        action::TRAP => Verdict::Trap(data as i32),
        // Nobody traces, and nobody listens.
        action::TRACE | action::USER_NOTIF => Verdict::Errno(libc::ENOSYS),
        action::KILL_THREAD => Verdict::KillThread,
        _ => Verdict::KillProcess,
    }
}

#[cfg(test)]
mod tests {
    use super::bpf::{Insn, code};
    use super::*;

    const DATA: Data = Data { nr: 39, ip: 0, args: [0; 6] };

    /// A filter that answers call 39 with `value` and allows the others.
    fn answer(value: u32, previous: Option<Arc<Filter>>) -> Arc<Filter> {
        let insns = [
            (code::LD_ABS, 0, 0, 0),
            (code::JEQ, 0, 1, 39),
            (code::RET_K, 0, 0, value),
            (code::RET_K, 0, 0, action::ALLOW),
        ];
        let insns = insns.map(|(code, jt, jf, k)| Insn { code, jt, jf, k });
        Filter::new(Program::new(insns.to_vec()).unwrap(), false, previous).unwrap()
    }

    fn check(filter: &Arc<Filter>, nr: u64) -> Verdict {
        let seccomp = Seccomp::default();
        seccomp.install(filter.clone());
        seccomp.check(|| Data { nr: nr as u32, ..DATA }, nr)
    }

    #[test]
    fn the_strictest_of_several_wins() {
        let values = [
            (action::ALLOW, Verdict::Allow),
            (action::LOG, Verdict::Allow),
            (action::TRACE | 1, Verdict::Errno(libc::ENOSYS)),
            (action::USER_NOTIF, Verdict::Errno(libc::ENOSYS)),
            (action::ERRNO | 5, Verdict::Errno(5)),
            (action::TRAP | 6, Verdict::Trap(6)),
            (action::KILL_THREAD, Verdict::KillThread),
            (action::KILL_PROCESS, Verdict::KillProcess),
        ];
        for (weak, (weaker, _)) in values.iter().enumerate() {
            for (stronger, verdict) in &values[weak..] {
                let one = answer(*stronger, Some(answer(*weaker, None)));
                let other = answer(*weaker, Some(answer(*stronger, None)));
                assert_eq!([check(&one, 39), check(&other, 39)], [*verdict; 2], "{weaker:#x} {stronger:#x}");
                assert_eq!(check(&one, 40), Verdict::Allow);
            }
        }
        let last = answer(action::ERRNO | 2, Some(answer(action::ERRNO | 1, None)));
        assert_eq!(check(&last, 39), Verdict::Errno(2), "of equals the last installed tells the data");
        assert_eq!(check(&answer(action::ERRNO | 0xffff, None), 39), Verdict::Errno(4095));
        assert_eq!(check(&answer(0x1234_0000, None), 39), Verdict::KillProcess);
    }

    #[test]
    fn what_is_always_allowed_is_known() {
        let one = answer(action::ERRNO, None);
        assert!(one.allows_always(38) && !one.allows_always(39) && !one.allows_always(512));
        let two = answer(action::ALLOW, Some(one));
        assert!(!two.allows_always(39));
        assert_eq!(two.depth(), 2);
    }

    #[test]
    fn thousands_of_filters_are_limited_and_dropped() {
        let mut filter = answer(action::ALLOW, None);
        // Of four instructions and four more each.
        while let Ok(next) = Filter::new(
            Program::new(vec![Insn { code: code::RET_K, jt: 0, jf: 0, k: action::ALLOW }]).unwrap(),
            false,
            Some(filter.clone()),
        ) {
            filter = next;
        }
        assert!(filter.depth() > 6000, "{}", filter.depth());
        let small = std::thread::Builder::new().stack_size(64 << 10);
        small.spawn(move || drop(filter)).unwrap().join().unwrap();
    }

    #[test]
    fn threads_sync_from_ancestors_only() {
        let base = answer(action::ALLOW, None);
        let top = answer(action::ALLOW, Some(base.clone()));
        let has = |filter: &Arc<Filter>| {
            let seccomp = Seccomp::default();
            seccomp.install(filter.clone());
            seccomp
        };
        assert!(Seccomp::default().may_sync(None));
        assert!(has(&base).may_sync(Some(&top)) && has(&top).may_sync(Some(&top)));
        assert!(!has(&top).may_sync(Some(&base)) && !has(&base).may_sync(None));
        let strict = Seccomp::default();
        strict.set_strict().unwrap();
        assert!(!strict.may_sync(Some(&top)) && has(&top).set_strict().is_err());
    }

    #[test]
    fn strict_mode_has_four_calls() {
        let strict = Seccomp::default();
        strict.set_strict().unwrap();
        let allowed: Vec<u64> = (0..1000).filter(|&nr| strict.check(|| DATA, nr) == Verdict::Allow).collect();
        assert_eq!(allowed, [0, 1, 15, 60]);
    }
}
