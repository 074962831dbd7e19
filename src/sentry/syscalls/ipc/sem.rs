//! `semget(2)`, `semop(2)`, `semctl(2)`.

use std::time::Instant;

use super::shm::{IPC_64, IPC_INFO};
use crate::errno::{Errno, Result};
use crate::sentry::ipc::sem::{Op, SEMMNI, SEMMSL, SEMOPM, SEMVMX, Sem, Set};
use crate::sentry::ipc::{Perm, Want};
use crate::sentry::mm::user::UserPtr;
use crate::sentry::syscalls::SysResult;
use crate::sentry::syscalls::signal::{deadline_after, timespec};
use crate::sentry::syscalls::time::Time;
use crate::sentry::task::Current;
use crate::wait::Events;

/// `semget(2)`. `EEXIST`, `ENOENT`, `ENOSPC`, `EINVAL`, `EACCES`.
pub fn semget(cur: &mut Current, key: i32, count: i32, flags: i32) -> SysResult {
    cur.kernel.ipc.sem.get(key, count, flags, &cur.creds()).map(|id| id as u64)
}

fn read_ops(cur: &Current, at: UserPtr<[u8; 6]>, count: usize) -> Result<Vec<Op>> {
    match count {
        0 => return Err(Errno::EINVAL),
        1..=SEMOPM => {}
        _ => return Err(Errno::E2BIG),
    }
    let op = |[n0, n1, d0, d1, f0, f1]: [u8; 6]| Op {
        num: u16::from_ne_bytes([n0, n1]),
        delta: i16::from_ne_bytes([d0, d1]),
        flags: i16::from_ne_bytes([f0, f1]),
    };
    Ok(at.read_array(cur.space(), count)?.into_iter().map(op).collect())
}

fn operate(cur: &Current, id: i32, ops: &[Op], deadline: Option<Instant>) -> SysResult {
    let sets = &cur.kernel.ipc.sem;
    let set = sets.find(id)?;
    let changes = ops.iter().any(|op| op.delta != 0);
    set.with(&cur.creds(), Want::Bits(if changes { 2 } else { 4 }), |_| Ok(()))?;
    sets.note_undo(&set, ops, cur.group.sem_owner());
    let mut was = None;
    let mut attempt = || match set.attempt(ops, cur.group.sem_owner(), &mut was)? {
        true => Ok(true),
        false if was.is_some_and(|blocked| blocked.nowait) => Ok(false),
        false => Err(Errno::EAGAIN),
    };
    let result = match attempt() {
        Err(Errno::EAGAIN) => cur.task.wait_on(&set.queue, Events::READ, deadline, &mut attempt),
        result => result,
    };
    match result {
        Ok(true) => Ok(0),
        Ok(false) => Err(Errno::EAGAIN),
        Err(error) => {
            set.give_up(was);
            Err(if error == Errno::ERESTARTSYS { Errno::EINTR } else { error })
        }
    }
}

/// `semop(2)`. `EINVAL`, `E2BIG`, `EFBIG`, `ERANGE`, `EACCES`, `EAGAIN`, `EIDRM`, `EFAULT`, `EINTR`.
pub fn semop(cur: &mut Current, id: i32, at: UserPtr<[u8; 6]>, count: usize) -> SysResult {
    let ops = read_ops(cur, at, count)?;
    operate(cur, id, &ops, None)
}

/// `semtimedop(2)`. As `semop`; `EAGAIN` when the time is over.
pub fn semtimedop(cur: &mut Current, id: i32, at: UserPtr<[u8; 6]>, count: usize, timeout: UserPtr<Time>) -> SysResult {
    let ops = read_ops(cur, at, count)?;
    let span = timeout.non_null().map(|at| at.read(cur.space()).and_then(timespec)).transpose()?;
    operate(cur, id, &ops, span.and_then(deadline_after))
}

const GETPID: i32 = 11;
const GETVAL: i32 = 12;
const GETALL: i32 = 13;
const GETNCNT: i32 = 14;
const GETZCNT: i32 = 15;
const SETVAL: i32 = 16;
const SETALL: i32 = 17;

/// `semctl(2)`. `EINVAL`, `EACCES`, `EPERM`, `ERANGE`, `EIDRM`, `EFAULT`.
pub fn semctl(cur: &mut Current, id: i32, num: i32, command: i32, arg: u64) -> SysResult {
    let sets = &cur.kernel.ipc.sem;
    let creds = cur.creds();
    let command = command & !IPC_64;
    if command == IPC_INFO {
        let (sets_most, in_set) = (SEMMNI as i32, SEMMSL);
        let info = [sets_most, sets_most, in_set.saturating_mul(sets_most), sets_most, in_set, SEMOPM as i32, 500, 20];
        UserPtr::<[i32; 10]>::new(arg).write(
            cur.space(),
            &[info[0], info[1], info[2], info[3], info[4], info[5], info[6], info[7], SEMVMX, SEMVMX],
        )?;
        return Ok(sets.len().saturating_sub(1) as u64);
    }
    let set = sets.find(id)?;
    let one = |tell: fn(&Sem) -> u64| {
        let at = usize::try_from(num).map_err(|_| Errno::EINVAL)?;
        set.with(&creds, Want::Bits(4), |state| state.sems.get(at).map(tell).ok_or(Errno::EINVAL))
    };
    match command {
        GETPID => one(|sem| sem.pid as u64),
        GETVAL => one(|sem| sem.value as u64),
        GETNCNT => one(|sem| sem.waiting.into()),
        GETZCNT => one(|sem| sem.waiting_zero.into()),
        GETALL => {
            let values = set.with(&creds, Want::Bits(4), |state| Ok(all_values(&state.sems)))?;
            UserPtr::<u16>::new(arg).write_array(cur.space(), &values).map(|()| 0)
        }
        SETVAL => {
            let at = usize::try_from(num).map_err(|_| Errno::EINVAL)?;
            set.set_values(&creds, at, &[arg as i32], cur.pid()).map(|()| 0)
        }
        SETALL => {
            let count = set.with(&creds, Want::Bits(2), |state| Ok(state.sems.len()))?;
            let values = UserPtr::<u16>::new(arg).read_array(cur.space(), count)?;
            let values: Vec<i32> = values.into_iter().map(i32::from).collect();
            set.set_values(&creds, 0, &values, cur.pid()).map(|()| 0)
        }
        libc::IPC_STAT => stat(cur, &set, UserPtr::new(arg)).map(|()| 0),
        libc::IPC_SET => {
            let (uid, gid, mode) = Perm::from_words(&UserPtr::new(arg).read(cur.space())?);
            set.with(&creds, Want::Own, |state| {
                state.perm.set(uid, gid, mode);
                Ok(0)
            })
        }
        libc::IPC_RMID => sets.remove(&set, &creds).map(|()| 0),
        _ => Err(Errno::EINVAL),
    }
}

fn all_values(sems: &[Sem]) -> Vec<u16> {
    sems.iter().map(|sem| sem.value as u16).collect()
}

/// `struct semid64_ds`.
fn stat(cur: &Current, set: &Set, at: UserPtr<[u64; 13]>) -> Result<()> {
    let mut ds = [0; 13];
    set.with(&cur.creds(), Want::Bits(4), |state| {
        ds[..6].copy_from_slice(&state.perm.words());
        (ds[6], ds[8], ds[10]) = (state.times[0] as u64, state.times[1] as u64, state.sems.len() as u64);
        Ok(())
    })?;
    at.write(cur.space(), &ds)
}
