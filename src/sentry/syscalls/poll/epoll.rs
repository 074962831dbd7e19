//! `epoll(7)`, and the descriptors made for waiting: `eventfd(2)`, `timerfd_create(2)`.
//!
//! `epoll_wait(2)` is every event loop's hot path: one look at the descriptor table, the ready files, one write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{UserPtr, write_all};
use crate::sentry::signal::SigSet;
use crate::sentry::syscalls::signal::{deadline_after, timespec};
use crate::sentry::syscalls::time::Time;
use crate::sentry::syscalls::time::timers::{Itimer, from_itimerspec, to_itimerspec};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::Current;
use crate::sentry::time::ClockId;
use crate::vfs::epoll::Epoll;
use crate::vfs::eventfd::EventFd;
use crate::vfs::file::{File, OpenFile};
use crate::vfs::timerfd::TimerFd;
use crate::wait::Events;

/// `struct epoll_event`, which is packed on x86_64.
type Event = [u8; 12];

fn add_anonymous(cur: &Current, object: Arc<dyn File>, access: i32, flags: i32) -> SysResult {
    let file = OpenFile::anonymous(object, access | (flags & libc::O_NONBLOCK));
    cur.add_file(file, flags & libc::O_CLOEXEC != 0)
}

/// `epoll_create(2)`: the size means nothing, but must be positive. `EINVAL`, `EMFILE`.
pub fn epoll_create(cur: &mut Current, size: i32) -> SysResult {
    if size <= 0 {
        return Err(Errno::EINVAL);
    }
    epoll_create1(cur, 0)
}

/// `epoll_create1(2)`. `EINVAL`, `EMFILE`.
pub fn epoll_create1(cur: &mut Current, flags: i32) -> SysResult {
    if flags & !libc::EPOLL_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    add_anonymous(cur, Epoll::new(), libc::O_RDWR, flags)
}

/// `epoll_ctl(2)`. `EBADF`, `EINVAL`, `EPERM`, `EEXIST`, `ENOENT`, `ELOOP`, `ENOSPC`, `EFAULT`.
pub fn epoll_ctl(cur: &mut Current, epfd: Fd, op: i32, fd: Fd, event: UserPtr<Event>) -> SysResult {
    let (events, data) = match op {
        libc::EPOLL_CTL_DEL => (0, 0),
        _ => split(event.read(cur.space())?),
    };
    let (instance, file) = (cur.io_file(epfd)?, cur.io_file(fd)?);
    if file.object().wait_queue().is_none() {
        return Err(Errno::EPERM);
    }
    let epoll = instance.downcast::<Epoll>().ok_or(Errno::EINVAL)?;
    match op {
        libc::EPOLL_CTL_ADD => epoll.add(fd.0, &file, events, data),
        libc::EPOLL_CTL_MOD => epoll.modify(fd.0, &file, events, data),
        libc::EPOLL_CTL_DEL => epoll.delete(fd.0, &file),
        _ => Err(Errno::EINVAL),
    }
    .map(|()| 0)
}

fn split(event: Event) -> (u32, u64) {
    let [e0, e1, e2, e3, data @ ..] = event;
    (u32::from_ne_bytes([e0, e1, e2, e3]), u64::from_ne_bytes(data))
}

/// How long to wait: not at all, or until then (`None`: for ever).
#[derive(Clone, Copy)]
enum Patience {
    No,
    Until(Option<Instant>),
}

impl Patience {
    fn millis(timeout: i32) -> Patience {
        match u64::try_from(timeout) {
            Err(_) => Patience::Until(None),
            Ok(0) => Patience::No,
            Ok(millis) => Patience::Until(deadline_after(Duration::from_millis(millis))),
        }
    }

    fn span(span: Option<Duration>) -> Patience {
        match span {
            None => Patience::Until(None),
            Some(Duration::ZERO) => Patience::No,
            Some(span) => Patience::Until(deadline_after(span)),
        }
    }
}

fn wait(cur: &Current, epfd: Fd, events: UserPtr<Event>, max: i32, patience: Patience) -> SysResult {
    let max = usize::try_from(max).ok().filter(|&max| (1..=i32::MAX as usize / size_of::<Event>()).contains(&max));
    let max = max.ok_or(Errno::EINVAL)?;
    let file = cur.io_file(epfd)?;
    let epoll = file.downcast::<Epoll>().ok_or(Errno::EINVAL)?;
    let mut ready = Vec::with_capacity(max.min(64) * size_of::<Event>());
    let mut look = || match epoll.wait(max, &mut |events, data| {
        ready.extend_from_slice(&events.to_ne_bytes());
        ready.extend_from_slice(&data.to_ne_bytes());
    }) {
        0 => Err(Errno::EAGAIN),
        n => Ok(n),
    };
    let (nonblocking, deadline) = match patience {
        Patience::No => (true, None),
        Patience::Until(deadline) => (false, deadline),
    };
    match cur.wait_file(epoll, Events::READ, nonblocking, deadline, &mut look) {
        Ok(n) => give(cur, epoll, events, &ready).map(|()| n as u64),
        // A time without events; a signal that came in before shows.
        Err(Errno::EAGAIN) if nonblocking && cur.interrupted() => Err(Errno::EINTR),
        Err(Errno::EAGAIN) => Ok(0),
        Err(Errno::ERESTARTSYS) => Err(Errno::EINTR),
        Err(error) => Err(error),
    }
}

/// Stores a report. When that fails nothing was reported: edges and one-shots are for the next call.
fn give(cur: &Current, epoll: &Epoll, events: UserPtr<Event>, ready: &[u8]) -> Result<()> {
    write_all(cur.space(), events.addr(), ready).inspect_err(|_| {
        let (reports, _) = ready.as_chunks::<{ size_of::<Event>() }>();
        for (events, data) in reports.iter().map(|report| split(*report)) {
            epoll.unreport(events, data);
        }
    })
}

/// `epoll_wait(2)`. `EBADF`, `EINVAL`, `EFAULT`, `EINTR`.
pub fn epoll_wait(cur: &mut Current, epfd: Fd, events: UserPtr<Event>, max: i32, timeout: i32) -> SysResult {
    wait(cur, epfd, events, max, Patience::millis(timeout))
}

fn wait_masked(cur: &mut Current, mask: (UserPtr<u64>, usize), call: impl FnOnce(&Current) -> SysResult) -> SysResult {
    if let Some(set) = mask.0.non_null() {
        if mask.1 != size_of::<u64>() {
            return Err(Errno::EINVAL);
        }
        let set = SigSet(set.read(cur.space())?);
        cur.set_temporary_mask(set);
    }
    let result = call(cur);
    if result != Err(Errno::EINTR) {
        cur.drop_temporary_mask();
    }
    result
}

/// `epoll_pwait(2)`. As `epoll_wait`.
pub fn epoll_pwait(
    cur: &mut Current,
    epfd: Fd,
    events: UserPtr<Event>,
    max: i32,
    timeout: i32,
    mask: UserPtr<u64>,
    size: usize,
) -> SysResult {
    wait_masked(cur, (mask, size), |cur| wait(cur, epfd, events, max, Patience::millis(timeout)))
}

/// `epoll_pwait2(2)`. As `epoll_wait`.
pub fn epoll_pwait2(
    cur: &mut Current,
    epfd: Fd,
    events: UserPtr<Event>,
    max: i32,
    timeout: UserPtr<Time>,
    mask: UserPtr<u64>,
    size: usize,
) -> SysResult {
    let span = timeout.non_null().map(|at| at.read(cur.space()).and_then(timespec)).transpose()?;
    wait_masked(cur, (mask, size), |cur| wait(cur, epfd, events, max, Patience::span(span)))
}

/// `eventfd(2)`. `EMFILE`.
pub fn eventfd(cur: &mut Current, initial: u32) -> SysResult {
    eventfd2(cur, initial, 0)
}

/// `eventfd2(2)`. `EINVAL`, `EMFILE`.
pub fn eventfd2(cur: &mut Current, initial: u32, flags: i32) -> SysResult {
    if flags & !(libc::EFD_SEMAPHORE | libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let event = EventFd::new(initial, flags & libc::EFD_SEMAPHORE != 0);
    add_anonymous(cur, Arc::new(event), libc::O_RDWR, flags)
}

/// `timerfd_create(2)`. `EINVAL`, `EPERM`, `EMFILE`.
pub fn timerfd_create(cur: &mut Current, clock: i32, flags: i32) -> SysResult {
    if flags & !(libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let clock = match ClockId::decode(clock)? {
        ClockId::Plain(clock) => clock,
        ClockId::Alarm(clock) => {
            cur.require(Caps::WAKE_ALARM)?;
            clock
        }
        _ => return Err(Errno::EINVAL),
    };
    add_anonymous(cur, TimerFd::new(clock, cur.kernel.timers.clone()), libc::O_RDWR, flags)
}

fn with_timer<T>(cur: &Current, fd: Fd, f: impl FnOnce(&TimerFd) -> Result<T>) -> Result<T> {
    f(cur.io_file(fd)?.downcast::<TimerFd>().ok_or(Errno::EINVAL)?)
}

/// `timerfd_settime(2)`. `EBADF`, `EINVAL`, `EFAULT`, `ECANCELED`.
pub fn timerfd_settime(cur: &mut Current, fd: Fd, flags: i32, new: UserPtr<Itimer>, old: UserPtr<Itimer>) -> SysResult {
    let spec = from_itimerspec(new.read(cur.space())?)?;
    let before = with_timer(cur, fd, |timer| timer.set(flags, spec))?;
    old.write_if(cur.space(), &to_itimerspec(before)).map(|()| 0)
}

/// `timerfd_gettime(2)`. `EBADF`, `EINVAL`, `EFAULT`.
pub fn timerfd_gettime(cur: &mut Current, fd: Fd, spec: UserPtr<Itimer>) -> SysResult {
    let now = with_timer(cur, fd, |timer| Ok(timer.get()))?;
    spec.write(cur.space(), &to_itimerspec(now)).map(|()| 0)
}
