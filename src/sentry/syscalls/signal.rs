//! Signals: `sigaction(2)`, `kill(2)` and their kin.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::errno::{Errno, Result};
use crate::sentry::mm::user::UserPtr;
use crate::sentry::signal::{SigAction, SigInfo, SigSet, Signal, StackT};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::block::Woken;
use crate::sentry::task::signals::{CallersSignals, Origin};
use crate::sentry::task::{Attention, Current, Task, ThreadGroup};
use crate::vfs::file::OpenFile;
use crate::vfs::signalfd::SignalFd;

/// The size of the kernel's signal set, which every call insists on.
const SET: usize = 8;

fn check_size(size: usize) -> Result<()> {
    if size == SET { Ok(()) } else { Err(Errno::EINVAL) }
}

/// `rt_sigaction(2)`. `EINVAL`, `EFAULT`.
pub fn rt_sigaction(
    cur: &mut Current,
    signal: i32,
    new: UserPtr<SigAction>,
    old: UserPtr<SigAction>,
    size: usize,
) -> SysResult {
    check_size(size)?;
    let signal = Signal::new(signal)?;
    let handlers = cur.group.handlers();
    let before = match new.non_null() {
        None => handlers.get(signal),
        Some(new) => {
            let action = new.read(cur.space())?;
            let before = handlers.set(signal, action)?;
            if action.ignores(signal) {
                cur.group.flush_ignored(signal);
            }
            before
        }
    };
    old.write_if(cur.space(), &before).map(|()| 0)
}

/// `rt_sigprocmask(2)`. `EINVAL`, `EFAULT`.
pub fn rt_sigprocmask(cur: &mut Current, how: i32, new: UserPtr<u64>, old: UserPtr<u64>, size: usize) -> SysResult {
    check_size(size)?;
    let before = cur.blocked();
    if let Some(new) = new.non_null() {
        let set = SigSet(new.read(cur.space())?);
        cur.set_blocked(match how {
            libc::SIG_BLOCK => before | set,
            libc::SIG_UNBLOCK => before.without(set),
            libc::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        });
    }
    old.write_if(cur.space(), &before.0).map(|()| 0)
}

/// `rt_sigpending(2)`. `EINVAL`, `EFAULT`.
pub fn rt_sigpending(cur: &mut Current, set: UserPtr<u64>, size: usize) -> SysResult {
    if size > SET {
        return Err(Errno::EINVAL);
    }
    let pending = cur.pending() & cur.blocked();
    crate::sentry::mm::user::write_all(cur.space(), set.addr(), &pending.0.to_ne_bytes()[..size]).map(|()| 0)
}

/// `rt_sigsuspend(2)`. `EINTR`, `EINVAL`, `EFAULT`.
pub fn rt_sigsuspend(cur: &mut Current, set: UserPtr<u64>, size: usize) -> SysResult {
    check_size(size)?;
    let mask = SigSet(set.read(cur.space())?);
    cur.set_temporary_mask(mask);
    pause(cur)
}

/// `pause(2)`. `EINTR`.
pub fn pause(cur: &mut Current) -> SysResult {
    // It has no end but a signal, and a handler's return does not restart it, whatever SA_RESTART says.
    let _ = cur.task.sleep_until(None);
    Err(Errno::ERESTARTNOHAND)
}

/// A time span that a container gave. `EINVAL`.
pub fn timespec(value: [i64; 2]) -> Result<Duration> {
    match (u64::try_from(value[0]), u32::try_from(value[1])) {
        (Ok(sec), Ok(nsec)) if nsec < 1_000_000_000 => Ok(Duration::new(sec, nsec)),
        _ => Err(Errno::EINVAL),
    }
}

/// The moment that is `span` from now; `None` when it is beyond all clocks.
pub fn deadline_after(span: Duration) -> Option<Instant> {
    Instant::now().checked_add(span)
}

/// `rt_sigtimedwait(2)`. `EAGAIN`, `EINTR`, `EINVAL`, `EFAULT`.
pub fn rt_sigtimedwait(
    cur: &mut Current,
    set: UserPtr<u64>,
    info: UserPtr<[u8; 128]>,
    timeout: UserPtr<[i64; 2]>,
    size: usize,
) -> SysResult {
    check_size(size)?;
    let wanted = SigSet(set.read(cur.space())?).blockable();
    let timeout = timeout.non_null().map(|at| at.read(cur.space()).and_then(timespec)).transpose()?;
    let deadline = timeout.map(deadline_after);
    let found = wait_for_signal(&cur.task, wanted, deadline)?;
    info.write_if(cur.space(), found.as_bytes())?;
    Ok(found.signal().number() as u64)
}

/// `deadline`: none waits for ever, as does one beyond all clocks.
fn wait_for_signal(task: &Arc<Task>, wanted: SigSet, deadline: Option<Option<Instant>>) -> Result<SigInfo> {
    if let Some(info) = task.dequeue(wanted) {
        return Ok(info);
    }
    task.set_waited(wanted);
    task.parker.reset();
    let result = loop {
        if let Some(info) = task.dequeue(wanted) {
            break Ok(info);
        }
        if deadline.is_some_and(|deadline| deadline.is_some_and(|at| at <= Instant::now())) {
            break Err(Errno::EAGAIN);
        }
        match task.sleep(deadline.flatten()) {
            Woken::Event => task.parker.reset(),
            Woken::Deadline => break task.dequeue(wanted).ok_or(Errno::EAGAIN),
            Woken::Signal => break task.dequeue(wanted).ok_or(Errno::EINTR),
        }
    };
    task.set_waited(SigSet::EMPTY);
    result
}

/// `sigaltstack(2)`. `EINVAL`, `ENOMEM`, `EPERM`, `EFAULT`.
pub fn sigaltstack(cur: &mut Current, new: UserPtr<StackT>, old: UserPtr<StackT>) -> SysResult {
    let sp = cur.user.regs().rsp;
    let before = cur.altstack().get(sp);
    if let Some(new) = new.non_null() {
        let stack = new.read(cur.space())?;
        cur.altstack().set(stack, sp)?;
    }
    old.write_if(cur.space(), &before).map(|()| 0)
}

/// `rt_sigreturn(2)`.
pub fn rt_sigreturn(cur: &mut Current) -> SysResult {
    cur.sigreturn();
    Ok(0)
}

/// Sends to a process: `EPERM`; signal 0 only checks.
fn send(cur: &Current, group: &Arc<ThreadGroup>, signal: i32, info: Option<SigInfo>) -> Result<()> {
    if let Some(task) = group.leader() {
        cur.may_signal(&task, signal)?;
    }
    match info {
        Some(info) => group.try_send(info, None, Origin::Inside),
        None => Ok(()),
    }
}

fn number(signal: i32) -> Result<Option<Signal>> {
    if signal == 0 { Ok(None) } else { Signal::new(signal).map(Some) }
}

/// `kill(2)`. `EINVAL`, `EPERM`, `ESRCH`.
pub fn kill(cur: &mut Current, pid: i32, signal: i32) -> SysResult {
    let info = number(signal)?.map(|signal| SigInfo::user(signal, cur.pid(), cur.creds().ruid));
    if pid > 0 {
        let group = {
            let tree = cur.kernel.tree.lock();
            let process = tree.node(pid).map(|node| node.group.clone());
            process.or_else(|| tree.thread(pid).map(|task| task.group.clone())).ok_or(Errno::ESRCH)?
        };
        return send(cur, &group, signal, info).map(|()| 0);
    }
    let targets: Vec<Arc<ThreadGroup>> = {
        let tree = cur.kernel.tree.lock();
        match pid {
            -1 => {
                let others = tree.nodes().filter(|&(pid, _)| pid != 1 && pid != cur.pid());
                others.map(|(_, node)| node.group.clone()).collect()
            }
            i32::MIN => return Err(Errno::ESRCH),
            _ => {
                let own = tree.node(cur.pid()).map_or(0, |node| node.pgid);
                tree.members(if pid == 0 { own } else { -pid }).map(|node| node.group.clone()).collect()
            }
        }
    };
    if targets.is_empty() {
        return Err(Errno::ESRCH);
    }
    let results: Vec<_> = targets.iter().map(|group| send(cur, group, signal, info)).collect();
    // One that was sent is a success; otherwise the reason is told.
    results.iter().find(|result| result.is_ok()).or(results.first()).copied().unwrap_or(Ok(())).map(|()| 0)
}

fn send_thread(cur: &Current, tgid: Option<i32>, tid: i32, signal: i32, info: Option<SigInfo>) -> SysResult {
    let task = cur.kernel.thread(tid)?;
    if tgid.is_some_and(|tgid| tgid != task.pid()) {
        return Err(Errno::ESRCH);
    }
    cur.may_signal(&task, signal)?;
    if let Some(info) = info {
        task.group.try_send(info, Some(&task), Origin::Inside)?;
    }
    Ok(0)
}

/// `tkill(2)`. `EINVAL`, `EPERM`, `ESRCH`.
pub fn tkill(cur: &mut Current, tid: i32, signal: i32) -> SysResult {
    if tid <= 0 {
        return Err(Errno::EINVAL);
    }
    let info = number(signal)?.map(|signal| SigInfo::tkill(signal, cur.pid(), cur.creds().ruid));
    send_thread(cur, None, tid, signal, info)
}

/// `tgkill(2)`. `EINVAL`, `EPERM`, `ESRCH`.
pub fn tgkill(cur: &mut Current, tgid: i32, tid: i32, signal: i32) -> SysResult {
    if tgid <= 0 || tid <= 0 {
        return Err(Errno::EINVAL);
    }
    let info = number(signal)?.map(|signal| SigInfo::tkill(signal, cur.pid(), cur.creds().ruid));
    send_thread(cur, Some(tgid), tid, signal, info)
}

/// `rt_sigqueueinfo(2)`. `EAGAIN`, `EINVAL`, `EPERM`, `ESRCH`, `EFAULT`.
pub fn rt_sigqueueinfo(cur: &mut Current, pid: i32, signal: i32, info: UserPtr<[u8; 128]>) -> SysResult {
    let bytes = info.read(cur.space())?;
    let to_self = pid == cur.pid();
    let info = number(signal)?.map(|signal| SigInfo::from_user(bytes, signal, to_self)).transpose()?;
    let group = cur.kernel.process(pid)?;
    send(cur, &group, signal, info).map(|()| 0)
}

/// `rt_tgsigqueueinfo(2)`. `EAGAIN`, `EINVAL`, `EPERM`, `ESRCH`, `EFAULT`.
pub fn rt_tgsigqueueinfo(cur: &mut Current, tgid: i32, tid: i32, signal: i32, info: UserPtr<[u8; 128]>) -> SysResult {
    if tgid <= 0 || tid <= 0 {
        return Err(Errno::EINVAL);
    }
    let bytes = info.read(cur.space())?;
    let to_self = tgid == cur.pid();
    let info = number(signal)?.map(|signal| SigInfo::from_user(bytes, signal, to_self)).transpose()?;
    send_thread(cur, Some(tgid), tid, signal, info)
}

/// `restart_syscall(2)`: what a signal without a handler has interrupted. `EINTR` when nothing was.
pub fn restart_syscall(cur: &mut Current) -> SysResult {
    match cur.restart_block.take() {
        Some(go_on) => go_on(cur),
        None => Err(Errno::EINTR),
    }
}

/// `signalfd(2)`.
pub fn signalfd(cur: &mut Current, fd: Fd, mask: UserPtr<u64>, size: usize) -> SysResult {
    signalfd4(cur, fd, mask, size, 0)
}

/// `signalfd4(2)`. `EBADF`, `EINVAL`, `EMFILE`, `EFAULT`.
pub fn signalfd4(cur: &mut Current, fd: Fd, mask: UserPtr<u64>, size: usize, flags: i32) -> SysResult {
    check_size(size)?;
    let mask = mask.read(cur.space())?;
    if flags & !(libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    if fd.0 != -1 {
        let file = cur.file(fd)?;
        file.downcast::<SignalFd>().ok_or(Errno::EINVAL)?.set_mask(mask);
        return Ok(fd.0 as u64);
    }
    let signals = SignalFd::new(Arc::new(CallersSignals(cur.group.clone())), mask);
    let file = OpenFile::anonymous(Arc::new(signals), libc::O_RDWR | (flags & libc::O_NONBLOCK));
    cur.add_file(file, flags & libc::SFD_CLOEXEC != 0)
}

impl Task {
    /// Whether the thread has been told to end.
    pub fn is_killed(&self) -> bool {
        self.attention().contains(Attention::KILL)
    }
}
