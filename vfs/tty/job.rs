//! Job control: which session a terminal controls, and who may read, write and change it meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Tty;
use crate::errno::{Errno, Result};
use crate::timer::TimerQueue;

/// Who makes a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Process id.
    pub pid: i32,
    /// Process group.
    pub group: i32,
    /// Session; its leader's process id.
    pub session: i32,
    /// File-system user id.
    pub uid: u32,
    /// Whether it has `CAP_SYS_ADMIN`.
    pub privileged: bool,
}

/// What terminals need to know of processes. The sentry implements it, once for each space of process ids. Called without
/// the terminal's locks.
pub trait JobControl: Send + Sync {
    /// The process of the calling thread; `None` on a thread that runs no task.
    fn caller(&self) -> Option<Caller>;
    /// Sends a signal from the kernel (`SI_KERNEL`) to every process of a group.
    fn signal_group(&self, group: i32, signal: i32);
    /// Sends a signal from the kernel to a process.
    fn signal_process(&self, pid: i32, signal: i32);
    /// The session that a process group is in; `None` when there is no such group.
    fn session_of(&self, group: i32) -> Option<i32>;
    /// Whether a group is orphaned: nobody in its session could continue it.
    fn is_orphaned(&self, group: i32) -> bool;
    /// Whether the calling thread blocks or ignores a signal.
    fn caller_ignores(&self, signal: i32) -> bool;
}

/// The terminals of one space of process ids.
pub struct Terminals {
    /// Processes.
    pub processes: Arc<dyn JobControl>,
    /// For `VTIME`.
    pub timers: Arc<TimerQueue>,
    /// Which terminal controls a session; leaf lock.
    controlling: Mutex<HashMap<i32, Weak<Tty>>>,
}

/// The session that a terminal controls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Job {
    pub session: Option<i32>,
    /// The foreground process group.
    pub foreground: Option<i32>,
}

impl Terminals {
    /// With no terminal controlling anything.
    pub fn new(processes: Arc<dyn JobControl>, timers: Arc<TimerQueue>) -> Arc<Terminals> {
        Arc::new(Terminals { processes, timers, controlling: Mutex::default() })
    }

    /// The terminal that controls `session`: for `/dev/tty`, and `tty_nr` in `/proc/PID/stat`.
    pub fn controlling(&self, session: i32) -> Option<Arc<Tty>> {
        self.controlling.lock().get(&session).and_then(Weak::upgrade)
    }

    /// The leader of `session` ends: its terminal controls nothing any more, and the foreground group is told. (Only
    /// terminals with a line are hung up then.)
    pub fn session_ended(&self, session: i32) {
        let tty = self.controlling.lock().remove(&session).and_then(|tty| tty.upgrade());
        if let Some(tty) = tty {
            let job = std::mem::take(&mut *tty.job.lock());
            if let Some(group) = job.foreground {
                self.processes.signal_group(group, libc::SIGHUP);
            }
        }
    }

    fn set(&self, session: i32, tty: Weak<Tty>) {
        self.controlling.lock().insert(session, tty);
    }

    fn clear(&self, session: i32, tty: &Tty) {
        let mut controlling = self.controlling.lock();
        if controlling.get(&session).is_some_and(|held| std::ptr::eq(held.as_ptr(), tty)) {
            controlling.remove(&session);
        }
    }
}

impl Tty {
    /// The caller, if this terminal controls its session.
    fn controlled_caller(&self) -> Option<Caller> {
        let caller = self.terminals.processes.caller()?;
        (self.job().session == Some(caller.session)).then_some(caller)
    }

    /// Whether the caller may go on with what `signal` (SIGTTIN, SIGTTOU) guards. A background group is signalled, and the
    /// call to be restarted; `EIO` when the signal would do nothing.
    pub(super) fn check_foreground(&self, signal: i32) -> Result<()> {
        let processes = &self.terminals.processes;
        let Some(caller) = self.controlled_caller() else { return Ok(()) };
        let in_front = self.job().foreground.is_none_or(|group| group == caller.group);
        if in_front {
            Ok(())
        } else if processes.caller_ignores(signal) {
            if signal == libc::SIGTTIN { Err(Errno::EIO) } else { Ok(()) }
        } else if processes.is_orphaned(caller.group) {
            Err(Errno::EIO)
        } else {
            processes.signal_group(caller.group, signal);
            Err(Errno::ERESTARTSYS)
        }
    }

    /// `TIOCGPGRP`: 0 without one. `ENOTTY` when it is not the caller's terminal, which the master need not be.
    pub(super) fn foreground_group(&self, master: bool) -> Result<i32> {
        if !master && self.controlled_caller().is_none() {
            return Err(Errno::ENOTTY);
        }
        Ok(self.job().foreground.unwrap_or(0))
    }

    /// `TIOCSPGRP`: `ENOTTY`, `EINVAL`, `ESRCH`, `EPERM` (a group of another session).
    pub(super) fn set_foreground_group(&self, group: i32) -> Result<()> {
        self.check_foreground(libc::SIGTTOU)
            .map_err(|error| if error == Errno::EIO { Errno::ENOTTY } else { error })?;
        let caller = self.controlled_caller().ok_or(Errno::ENOTTY)?;
        if group < 0 {
            return Err(Errno::EINVAL);
        }
        let session = self.terminals.processes.session_of(group).ok_or(Errno::ESRCH)?;
        if session != caller.session {
            return Err(Errno::EPERM);
        }
        self.job.lock().foreground = Some(group);
        Ok(())
    }

    /// `TIOCGSID`: `ENOTTY`.
    pub(super) fn session_id(&self, master: bool) -> Result<i32> {
        if !master && self.controlled_caller().is_none() {
            return Err(Errno::ENOTTY);
        }
        self.job().session.ok_or(Errno::ENOTTY)
    }

    /// `TIOCSCTTY`: makes it the caller's controlling terminal. `EPERM` when the caller leads no session, has a terminal,
    /// or this one controls another session, unless `steal` and privileged.
    pub(super) fn set_controlling(self: &Arc<Self>, steal: bool) -> Result<()> {
        let caller = self.terminals.processes.caller().ok_or(Errno::EPERM)?;
        let leads = caller.pid == caller.session;
        let mut job = self.job.lock();
        if leads && job.session == Some(caller.session) {
            return Ok(());
        }
        if !leads || self.terminals.controlling(caller.session).is_some() {
            return Err(Errno::EPERM);
        }
        if let Some(old) = job.session {
            if !(steal && caller.privileged) {
                return Err(Errno::EPERM);
            }
            self.terminals.clear(old, self);
        }
        *job = Job { session: Some(caller.session), foreground: Some(caller.group) };
        self.terminals.set(caller.session, Arc::downgrade(self));
        Ok(())
    }

    /// Makes it the controlling terminal of a session that has none yet, whose leader's group is in front.
    pub fn give_to(self: &Arc<Self>, session: i32) {
        *self.job.lock() = Job { session: Some(session), foreground: Some(session) };
        self.terminals.set(session, Arc::downgrade(self));
    }

    /// An open without `O_NOCTTY`: a session leader without a terminal gets this one if it is free.
    pub(super) fn become_controlling(self: &Arc<Self>) {
        if self.job().session.is_none() {
            // What does not apply to the caller is not an error of its open.
            let _ = self.set_controlling(false);
        }
    }

    /// `TIOCNOTTY`: the session gives it up when its leader does, and the foreground group is told. (What another process
    /// gives up is only its own use of it, of which nothing is kept.)
    pub(super) fn give_up(&self) -> Result<()> {
        let caller = self.controlled_caller().ok_or(Errno::ENOTTY)?;
        if caller.pid != caller.session {
            return Ok(());
        }
        let job = std::mem::take(&mut *self.job.lock());
        self.terminals.clear(caller.session, self);
        if let Some(group) = job.foreground {
            self.terminals.processes.signal_group(group, libc::SIGHUP);
            self.terminals.processes.signal_group(group, libc::SIGCONT);
        }
        Ok(())
    }

    /// The terminal is gone for its session: the leader is told.
    pub(super) fn abandon_session(&self) {
        let job = std::mem::take(&mut *self.job.lock());
        if let Some(session) = job.session {
            self.terminals.clear(session, self);
            self.terminals.processes.signal_process(session, libc::SIGHUP);
            self.terminals.processes.signal_process(session, libc::SIGCONT);
        }
    }

    /// Sends `signal` to the foreground group, if there is one.
    pub(super) fn signal_foreground(&self, signal: i32) {
        if let Some(group) = self.job().foreground {
            self.terminals.processes.signal_group(group, signal);
        }
    }

    /// The foreground process group, if a session has the terminal.
    pub fn foreground(&self) -> Option<i32> {
        self.job().foreground
    }

    pub(super) fn job(&self) -> Job {
        *self.job.lock()
    }
}
