//! Sending signals and acting on them.
//!
//! A signal is queued under the group's lock, for the group or for one thread, and a thread that does not block it is told
//! to look ([`Attention::SIGNAL`]). That thread takes it off before it runs user code again, and acts.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::signal::{
    AltStack, DefaultAction, PendingQueue, Restart, SigAction, SigInfo, SigSet, Signal, frame, restart_decision,
};
use crate::sentry::task::stop::Stop;
use crate::sentry::task::tree::ExitStatus;
use crate::sentry::task::{Attention, Current, Task, ThreadGroup};
use crate::vfs::signalfd::{RECORD, SignalSource};
use crate::wait::{Events, WaitQueue};

/// What concerns a whole thread group.
#[derive(Default)]
pub struct GroupSignals {
    /// Signals that any thread may take.
    pub shared: PendingQueue,
    /// The threads that have not ended.
    pub threads: Vec<Arc<Task>>,
    /// Set once the group is to end.
    pub ending: Option<ExitStatus>,
    /// A thread is replacing the program and has the others end.
    pub execing: bool,
    /// Set while the group is stopped.
    pub stop: Option<Stop>,
    /// How often it was stopped.
    pub stops: u64,
    /// The group was continued, and its parent is to be told by the first thread that runs.
    pub continued: bool,
}

/// What concerns one thread.
#[derive(Default)]
pub struct TaskSignals {
    /// Signals for this thread alone.
    pub pending: PendingQueue,
    /// The mask.
    pub blocked: SigSet,
    /// Blocked signals that `sigtimedwait(2)` waits for.
    pub waited: SigSet,
    /// A stop signal was taken off, and no SIGCONT was sent since.
    pub stop_taken: bool,
}

/// Who sends a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A process of the container, or its kernel: the first process is protected from what it does not handle.
    Inside,
    /// A process outside the container, by way of the runtime: of what the first process does not handle only `SIGKILL` and
    /// `SIGSTOP` reach it, as from an ancestor's PID namespace (`pid_namespaces(7)`).
    Outside,
    /// The container's runtime itself: nobody is spared.
    Runtime,
}

impl ThreadGroup {
    /// Sends a signal to the group or one of its threads. `EAGAIN` when the user has too many pending and the signal would
    /// be lost.
    pub fn try_send(&self, info: SigInfo, target: Option<&Arc<Task>>, origin: Origin) -> Result<()> {
        let signal = info.signal();
        let handlers = self.handlers();
        let mut signals = self.signals.lock();
        let Some(first) = target.or(signals.threads.first()).cloned() else { return Ok(()) };
        if signals.ending.is_some() {
            return Ok(());
        }
        let action = handlers.get(signal);
        let reaches = match origin {
            Origin::Inside => false,
            Origin::Outside => matches!(signal, Signal::KILL | Signal::STOP),
            Origin::Runtime => true,
        };
        let spared = self.pid() == 1 && !reaches && action.handler == crate::sentry::signal::SIG_DFL;
        if signal == Signal::KILL {
            if !spared {
                signals.ending = Some(ExitStatus::Killed { signal: libc::SIGKILL, core: false });
                signals.threads.iter().for_each(|task| task.notify(Attention::KILL));
            }
            return Ok(());
        }
        self.flush_opposite(&mut signals, signal);
        let (blocked, waited) = {
            let own = first.signals.lock();
            (own.blocked, own.waited)
        };
        let wanted_blocked = blocked.contains(signal) || waited.contains(signal);
        if !wanted_blocked && (action.ignores(signal) || spared) {
            return Ok(());
        }
        let limit = self.limits.lock().soft(libc::RLIMIT_SIGPENDING);
        let count = self.kernel.pending_signals(self.uid());
        match target {
            Some(task) => task.signals.lock().pending.enqueue(info, &count, limit)?,
            None => signals.shared.enqueue(info, &count, limit)?,
        };
        self.tell(&signals, signal, target);
        drop(signals);
        self.signal_queue.wake(Events::READ);
        Ok(())
    }

    /// Sends a signal from inside the sandbox.
    pub fn send(&self, info: SigInfo, target: Option<&Arc<Task>>) {
        if let Err(error) = self.try_send(info, target, Origin::Inside) {
            log::debug!("{} for process {} is lost: {error}", info.signal(), self.pid());
        }
    }

    /// Queues a timer's signal, of which there is one at most.
    pub fn send_hooked(
        &self,
        info: SigInfo,
        target: Option<&Arc<Task>>,
        hook: Arc<dyn crate::sentry::signal::DeliveryHook>,
    ) {
        let signal = info.signal();
        let handlers = self.handlers();
        let mut signals = self.signals.lock();
        let Some(first) = target.or(signals.threads.first()).cloned() else { return hook.discarded() };
        let ignored = handlers.get(signal).ignores(signal) && !first.signals.lock().blocked.contains(signal);
        if ignored || signals.ending.is_some() {
            drop(signals);
            return hook.discarded();
        }
        match target {
            Some(task) => task.signals.lock().pending.enqueue_hooked(info, hook),
            None => signals.shared.enqueue_hooked(info, hook),
        };
        self.tell(&signals, signal, target);
        drop(signals);
        self.signal_queue.wake(Events::READ);
    }

    /// SIGCONT undoes stops that are pending and continues the group, whatever becomes of the signal; stops undo SIGCONT.
    fn flush_opposite(&self, signals: &mut GroupSignals, signal: Signal) {
        if signal != Signal::CONT && !SigSet::STOPS.contains(signal) {
            return;
        }
        signals.shared.flush_opposite(signal);
        for task in &signals.threads {
            let mut own = task.signals.lock();
            own.pending.flush_opposite(signal);
            own.stop_taken &= signal != Signal::CONT;
        }
        if signal == Signal::CONT {
            signals.resume();
        }
    }

    /// Has a thread that may take the signal look.
    fn tell(&self, signals: &GroupSignals, signal: Signal, target: Option<&Arc<Task>>) {
        let takes = |task: &&Arc<Task>| {
            let own = task.signals.lock();
            !own.blocked.contains(signal) || own.waited.contains(signal)
        };
        let chosen = match target {
            Some(task) => Some(task).filter(takes),
            None => signals.threads.iter().find(takes),
        };
        if let Some(task) = chosen {
            task.notify(Attention::SIGNAL);
        }
    }

    /// Drops pending signals that have become ignored.
    pub fn flush_ignored(&self, signal: Signal) {
        let mut signals = self.signals.lock();
        signals.shared.flush(signal.set());
        for task in &signals.threads {
            task.signals.lock().pending.flush(signal.set());
        }
    }
}

impl GroupSignals {
    /// Takes a thread off that has ended. Returns the signal of a stop that is complete now, for the parent.
    pub(super) fn leave(&mut self, task: &Arc<Task>) -> Option<i32> {
        self.threads.retain(|other| !Arc::ptr_eq(other, task));
        self.retarget(self.shared.set(), task);
        let threads = self.threads.len();
        self.stop.as_mut().and_then(|stop| stop.complete(threads))
    }

    /// Has other threads look at shared signals of `which`, which `task` was perhaps told of and will not take.
    fn retarget(&self, which: SigSet, task: &Task) {
        let which = which & self.shared.set();
        if which.is_empty() {
            return;
        }
        for other in self.threads.iter().filter(|other| !std::ptr::eq(&***other, task)) {
            let takes = {
                let own = other.signals.lock();
                which.without(own.blocked) | (which & own.waited)
            };
            if !takes.is_empty() {
                other.notify(Attention::SIGNAL);
            }
        }
    }

    /// Lets a stopped group go on.
    pub fn resume(&mut self) {
        if let Some(stop) = self.stop.take() {
            self.continued |= stop.reported;
            for task in &self.threads {
                task.clear_attention(Attention::STOP);
                task.parker.unpark();
            }
        }
    }
}

impl Task {
    /// The signals that are blocked.
    pub fn blocked(&self) -> SigSet {
        self.signals.lock().blocked
    }

    /// Replaces the mask, and looks for signals that are no longer blocked.
    pub fn set_blocked(&self, blocked: SigSet) {
        let signals = self.group.signals.lock();
        let mut own = self.signals.lock();
        let before = std::mem::replace(&mut own.blocked, blocked.blockable());
        let refused = own.blocked.without(before) & signals.shared.set();
        if !refused.is_empty() {
            drop(own);
            signals.retarget(refused, self);
            own = self.signals.lock();
        }
        if (own.pending.set() | signals.shared.set()).without(own.blocked).is_empty() {
            return;
        }
        self.attention.fetch_or(Attention::SIGNAL.bits(), std::sync::atomic::Ordering::SeqCst);
    }

    /// Signals pending for the thread or its group.
    pub fn pending(&self) -> SigSet {
        let signals = self.group.signals.lock();
        self.signals.lock().pending.set() | signals.shared.set()
    }

    /// Pending for the thread alone, and for its group.
    pub fn pending_parts(&self) -> (SigSet, SigSet) {
        let signals = self.group.signals.lock();
        (self.signals.lock().pending.set(), signals.shared.set())
    }

    /// Takes off a pending signal of `wanted`.
    pub fn dequeue(&self, wanted: SigSet) -> Option<SigInfo> {
        let mut signals = self.group.signals.lock();
        let mut own = self.signals.lock();
        own.pending.dequeue(wanted).or_else(|| signals.shared.dequeue(wanted))
    }

    /// Takes off a signal that is not blocked; with none there, the thread need not look again.
    fn take_signal(&self) -> Option<SigInfo> {
        let mut signals = self.group.signals.lock();
        let mut own = self.signals.lock();
        let wanted = !own.blocked;
        let info = own.pending.dequeue(wanted).or_else(|| signals.shared.dequeue(wanted));
        own.stop_taken |= info.is_some_and(|info| SigSet::STOPS.contains(info.signal()));
        if (own.pending.set() | signals.shared.set()).without(own.blocked).is_empty() {
            self.clear_attention(Attention::SIGNAL);
        }
        info
    }

    /// Sets what `sigtimedwait(2)` waits for besides what is not blocked; looks whether it is there.
    pub fn set_waited(&self, waited: SigSet) {
        let signals = self.group.signals.lock();
        let mut own = self.signals.lock();
        let before = std::mem::replace(&mut own.waited, waited);
        let refused = before.without(waited) & own.blocked & signals.shared.set();
        if !refused.is_empty() {
            drop(own);
            signals.retarget(refused, self);
            own = self.signals.lock();
        }
        let ready = (own.pending.set() | signals.shared.set()).without(own.blocked);
        if ready.is_empty() {
            self.clear_attention(Attention::SIGNAL);
        }
    }

    /// Sends the thread a signal that it cannot refuse: an instruction of its own raised it. Blocked or ignored, it ends
    /// the process.
    pub fn force(self: &Arc<Self>, info: SigInfo) {
        let signal = info.signal();
        let handlers = self.group.handlers();
        let _signals = self.group.signals.lock();
        let mut own = self.signals.lock();
        if own.blocked.contains(signal) || handlers.get(signal).handler == crate::sentry::signal::SIG_IGN {
            handlers.reset(signal);
            own.blocked.remove(signal);
        }
        let count = self.kernel.pending_signals(self.group.uid());
        // Without room the signal stays in the set: all that is lost is what is known of it.
        let _ = own.pending.enqueue(info, &count, u64::MAX);
        drop(own);
        self.notify(Attention::SIGNAL);
    }

    /// Whether this task may send `signal` to `target`: `kill(2)`. `EPERM`.
    pub fn may_signal(&self, target: &Task, signal: i32) -> Result<()> {
        let (own, other) = (self.creds(), target.creds());
        let same = [own.euid, own.ruid].iter().any(|uid| [other.suid, other.ruid].contains(uid));
        let in_session = || {
            signal == libc::SIGCONT && {
                let tree = self.kernel.tree.lock();
                let sid = |pid| tree.node(pid).map(|node| node.sid);
                sid(self.pid()) == sid(target.pid())
            }
        };
        let allowed = Arc::ptr_eq(&self.group, &target.group) || same || own.has(Caps::KILL) || in_session();
        if allowed { Ok(()) } else { Err(Errno::EPERM) }
    }
}

impl Current {
    /// Deals with all there is to look at. Returns whether the thread may run user code.
    pub(super) fn look_up(&mut self) -> bool {
        loop {
            let attention = self.task.attention();
            if attention.contains(Attention::KILL) {
                return false;
            }
            if attention.contains(Attention::FREEZE) {
                self.freeze();
                continue;
            }
            if attention.contains(Attention::STOP) {
                self.rest();
                continue;
            }
            match self.task.take_signal() {
                Some(info) => self.act_on(info),
                None => break,
            }
        }
        // No handler has run: a call that was interrupted goes on, with the mask it was made with.
        if let Some(errno) = self.restart.take() {
            self.apply_restart(restart_decision(errno, None));
        }
        if let Some(mask) = self.saved_mask.take() {
            self.task.set_blocked(mask);
            if !self.task.attention().is_empty() {
                return self.look_up();
            }
        }
        true
    }

    fn act_on(&mut self, info: SigInfo) {
        let signal = info.signal();
        let action = self.task.group.handlers().take(signal);
        if action.is_caught() {
            return self.call_handler(&action, &info);
        }
        if action.ignores(signal) {
            return;
        }
        match signal.default_action() {
            DefaultAction::Ignore | DefaultAction::Continue => {}
            DefaultAction::Stop => {
                let orphaned = || {
                    let tree = self.kernel.tree.lock();
                    tree.node(self.pid()).is_none_or(|node| tree.is_orphaned(node.pgid, None))
                };
                if signal == Signal::STOP || !orphaned() {
                    self.task.group.stop(&self.task, signal.number());
                }
            }
            // No core is written, so the status does not say that one was.
            DefaultAction::Term | DefaultAction::Core => {
                self.task.group.end(ExitStatus::Killed { signal: signal.number(), core: false });
            }
        }
    }

    fn call_handler(&mut self, action: &SigAction, info: &SigInfo) {
        if let Some(errno) = self.restart.take() {
            self.apply_restart(restart_decision(errno, Some(action)));
        }
        let mask = self.saved_mask.take().unwrap_or_else(|| self.task.blocked());
        let delivery = frame::Delivery { action, info, mask, trap: self.trap };
        match frame::build(&mut *self.user, &delivery, &mut self.altstack) {
            Ok(()) => {
                let blocked = self.task.blocked() | action.handler_mask(info.signal());
                self.task.set_blocked(blocked);
            }
            Err(_) => {
                // The stack is of no use: a handler for SIGSEGV would need it too, unless it has one of its own.
                if info.signal() == Signal::SEGV {
                    self.task.group.handlers().reset(Signal::SEGV);
                }
                self.task.force(SigInfo::kernel(Signal::SEGV));
            }
        }
    }

    fn apply_restart(&mut self, restart: Option<Restart>) {
        let number = self.call_number;
        let regs = self.user.regs_mut();
        match restart {
            None | Some(Restart::Eintr) => regs.rax = (-i64::from(libc::EINTR)) as u64,
            Some(Restart::Again) => {
                regs.rip = regs.rip.wrapping_sub(2);
                regs.rax = number;
            }
            Some(Restart::RestartBlock) => {
                regs.rip = regs.rip.wrapping_sub(2);
                regs.rax = libc::SYS_restart_syscall as u64;
            }
        }
    }

    /// Replaces the mask for the duration of a call; the signals that end it see it, and are returned from with the old
    /// one.
    pub fn set_temporary_mask(&mut self, mask: SigSet) {
        self.saved_mask = Some(self.task.blocked());
        self.task.set_blocked(mask);
    }

    /// After a call with a temporary mask that no signal ended.
    pub fn drop_temporary_mask(&mut self) {
        if let Some(mask) = self.saved_mask.take() {
            self.task.set_blocked(mask);
        }
    }

    /// `rt_sigreturn(2)`.
    pub fn sigreturn(&mut self) {
        match frame::sigreturn(&mut *self.user, &mut self.altstack) {
            Ok(mask) => self.task.set_blocked(mask),
            Err(_) => self.task.force(SigInfo::kernel(Signal::SEGV)),
        }
        self.registers_set = true;
    }

    /// The alternate stack: `sigaltstack(2)`.
    pub fn altstack(&mut self) -> &mut AltStack {
        &mut self.altstack
    }
}

/// What a signalfd reads: the signals of whoever reads it.
pub struct CallersSignals(pub Arc<ThreadGroup>);

impl SignalSource for CallersSignals {
    fn dequeue(&self, mask: u64) -> Option<[u8; RECORD]> {
        let task = super::current()?;
        task.dequeue(SigSet(mask)).map(|info| info.signalfd_record())
    }

    fn pending(&self, mask: u64) -> bool {
        let pending = match super::current() {
            Some(task) if Arc::ptr_eq(&task.group, &self.0) => task.pending(),
            _ => self.0.signals.lock().shared.set(),
        };
        pending.intersects(SigSet(mask))
    }

    fn wait_queue(&self) -> &WaitQueue {
        &self.0.signal_queue
    }
}
