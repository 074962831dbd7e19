//! Who is told of a file's readiness by a signal: `F_SETOWN`, `F_SETSIG`, `O_ASYNC` of `fcntl(2)`.

use std::sync::{Arc, Weak};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::errno::{Errno, Result};
use crate::sentry::creds::Credentials;
use crate::sentry::kernel::Kernel;
use crate::sentry::mm::user::UserPtr;
use crate::sentry::signal::{SigInfo, Signal};
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::signals::Origin;
use crate::sentry::task::{Current, Task, ThreadGroup};
use crate::vfs::fasync::{Owner, Reason};
use crate::vfs::file::OpenFile;
use crate::vfs::tty::{Master, Slave};

// What the libc crate does not name: `asm-generic/fcntl.h`.
pub(super) const F_SETSIG: i32 = 10;
pub(super) const F_GETSIG: i32 = 11;
pub(super) const F_SETOWN_EX: i32 = 15;
pub(super) const F_GETOWN_EX: i32 = 16;
const F_OWNER_TID: i32 = 0;
const F_OWNER_PID: i32 = 1;
const F_OWNER_PGRP: i32 = 2;

/// `struct f_owner_ex`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct OwnerEx {
    kind: i32,
    id: i32,
}

/// A thread, process or process group, and in whose name it is told.
struct SignalOwner {
    who: Who,
    uid: u32,
    euid: u32,
}

enum Who {
    Thread(Weak<Task>),
    Process(Weak<ThreadGroup>),
    Group(Weak<Kernel>, i32),
}

impl SignalOwner {
    /// Whether who set the owner might send it signals: the rule of `kill(2)` without its capability, so that nobody is told
    /// through a file that a privileged process passes on.
    fn may_tell(&self, target: &Credentials) -> bool {
        let ids = [target.suid, target.ruid];
        self.euid == 0 || ids.contains(&self.euid) || ids.contains(&self.uid)
    }

    fn tell(&self, group: &ThreadGroup, thread: Option<&Arc<Task>>, signal: i32, reason: Reason, fd: i32) {
        let target = thread.cloned().or_else(|| group.leader());
        if !target.is_some_and(|target| self.may_tell(&target.creds())) {
            return;
        }
        // When the details cannot be queued, a plain SIGIO says at least that there is something.
        let told = Signal::new(signal)
            .and_then(|signal| group.try_send(readiness(signal, reason, fd), thread, Origin::Inside));
        if told.is_err() {
            group.send(SigInfo::kernel(Signal::IO), thread);
        }
    }
}

/// `SI_SIGIO` stands in for a code that would mean something else of this signal.
fn readiness(signal: Signal, reason: Reason, fd: i32) -> SigInfo {
    const SI_SIGIO: i32 = -5;
    const OWN_CODES: [Signal; 7] =
        [Signal::ILL, Signal::FPE, Signal::SEGV, Signal::BUS, Signal::TRAP, Signal::CHLD, Signal::SYS];
    let code = if OWN_CODES.contains(&signal) { SI_SIGIO } else { reason.code };
    SigInfo::poll(signal, code, i64::from(reason.band.bits()), fd)
}

impl Owner for SignalOwner {
    fn id(&self) -> Option<(i32, i32)> {
        match &self.who {
            Who::Thread(task) => task.upgrade().filter(|task| !task.is_exiting()).map(|task| (F_OWNER_TID, task.tid())),
            Who::Process(group) => group.upgrade().map(|group| (F_OWNER_PID, group.pid())),
            Who::Group(kernel, id) => {
                let kernel = kernel.upgrade()?;
                let any = kernel.tree.lock().members(*id).next().is_some();
                any.then_some((F_OWNER_PGRP, *id))
            }
        }
    }

    fn send(&self, signal: i32, reason: Reason, fd: i32) {
        match &self.who {
            Who::Thread(task) => {
                if let Some(task) = task.upgrade() {
                    self.tell(&task.group, Some(&task), signal, reason, fd);
                }
            }
            Who::Process(group) => {
                if let Some(group) = group.upgrade() {
                    self.tell(&group, None, signal, reason, fd);
                }
            }
            Who::Group(kernel, id) => {
                let Some(kernel) = kernel.upgrade() else { return };
                let members: Vec<_> = kernel.tree.lock().members(*id).map(|node| node.group.clone()).collect();
                members.iter().for_each(|group| self.tell(group, None, signal, reason, fd));
            }
        }
    }
}

/// `F_GETOWN`, `F_SETOWN`, their `_EX` forms, `F_GETSIG`, `F_SETSIG`. `EINVAL`, `ESRCH` (there is nobody of that number),
/// `EFAULT`.
pub(super) fn owner(cur: &Current, file: &OpenFile, cmd: i32, arg: u64) -> SysResult {
    match cmd {
        libc::F_GETOWN => Ok(match file.known_fasync().and_then(|fasync| fasync.owner()) {
            Some((F_OWNER_PGRP, id)) => i64::from(-id) as u64,
            Some((_, id)) => id as u64,
            None => 0,
        }),
        libc::F_SETOWN => match arg as i32 {
            i32::MIN => Err(Errno::EINVAL),
            id @ 0.. => set_owner(cur, file, (F_OWNER_PID, id)),
            id => set_owner(cur, file, (F_OWNER_PGRP, -id)),
        },
        F_GETOWN_EX => {
            let known = file.known_fasync().and_then(|fasync| fasync.owner());
            let (kind, id) = known.unwrap_or((F_OWNER_PID, 0));
            UserPtr::new(arg).write(cur.space(), &OwnerEx { kind, id }).map(|()| 0)
        }
        F_SETOWN_EX => {
            let raw = UserPtr::<OwnerEx>::new(arg).read(cur.space())?;
            if !(F_OWNER_TID..=F_OWNER_PGRP).contains(&raw.kind) {
                return Err(Errno::EINVAL);
            }
            set_owner(cur, file, (raw.kind, raw.id))
        }
        F_GETSIG => Ok(file.known_fasync().map_or(0, |fasync| fasync.signal()) as u64),
        _ => {
            let signal = i32::try_from(arg).ok().filter(|signal| (0..=64).contains(signal)).ok_or(Errno::EINVAL)?;
            file.fasync().set_signal(signal);
            Ok(0)
        }
    }
}

fn set_owner(cur: &Current, file: &OpenFile, (kind, id): (i32, i32)) -> SysResult {
    if id == 0 {
        file.fasync().set_owner(None);
        return Ok(0);
    }
    let found = {
        let tree = cur.kernel.tree.lock();
        match kind {
            F_OWNER_PGRP => tree.members(id).next().map(|_| Who::Group(Arc::downgrade(&cur.kernel), id)),
            F_OWNER_TID => tree.thread(id).map(|task| Who::Thread(Arc::downgrade(task))),
            _ => tree.node(id).map(|node| Who::Process(Arc::downgrade(&node.group))),
        }
    };
    let who = found.ok_or(Errno::ESRCH)?;
    let creds = cur.creds();
    file.fasync().set_owner(Some(Arc::new(SignalOwner { who, uid: creds.ruid, euid: creds.euid })));
    Ok(0)
}

/// Turns signals on readiness on or off: `O_ASYNC` of the descriptor `fd`. Returns whether the file knows them at all. A
/// terminal that nobody owns yet is owned by its foreground process group from then on. `ENOMEM`.
pub(super) fn set_async(cur: &Current, file: &OpenFile, fd: i32, on: bool) -> Result<bool> {
    let known = file.set_async(on, fd)?;
    let foreground = match (file.downcast::<Slave>(), file.downcast::<Master>()) {
        (Some(slave), _) => slave.tty().foreground(),
        (_, Some(_)) => None,
        _ => return Ok(known),
    };
    if on && known && !file.fasync().has_owner() {
        let owner = foreground.map_or((F_OWNER_PID, cur.pid()), |pgid| (F_OWNER_PGRP, pgid));
        // A group that has just gone is nobody to tell.
        let _ = set_owner(cur, file, owner);
    }
    Ok(known)
}
