//! Futexes: `futex(2)`, `futex_waitv(2)`, `set_robust_list(2)`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::signal::{deadline_after, timespec};
use crate::errno::{Errno, Result};
use crate::sentry::futex::op::WakeOp;
use crate::sentry::futex::pi::{Locker, PiLock};
use crate::sentry::futex::robust::{HEAD_SIZE, exit_robust_list};
use crate::sentry::futex::{FutexKey, FutexTable, FutexWaiter, MATCH_ANY, ThreadWord, first_woken};
use crate::sentry::mm::MemoryManager;
use crate::sentry::mm::user::UserPtr;
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::block::Woken;
use crate::sentry::task::{Current, Task};
use crate::timer::clock::Clock;

const CMD_MASK: i32 = !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
const FUTEX_LOCK_PI2: i32 = 13;

/// `futex(2)`. `timeout` is a count for the operations that requeue.
pub fn futex(cur: &mut Current, addr: u64, op: i32, value: u32, timeout: u64, addr2: u64, value3: u32) -> SysResult {
    let private = op & libc::FUTEX_PRIVATE_FLAG != 0;
    let realtime = op & libc::FUTEX_CLOCK_REALTIME != 0;
    let command = op & CMD_MASK;
    let timed = [libc::FUTEX_WAIT_BITSET, libc::FUTEX_WAIT_REQUEUE_PI, libc::FUTEX_LOCK_PI, FUTEX_LOCK_PI2];
    if realtime && !timed.contains(&command) {
        return Err(Errno::ENOSYS);
    }
    let count = i32::try_from(timeout as i64).unwrap_or(timeout as i32);
    match command {
        libc::FUTEX_WAIT => wait(cur, addr, private, value, MATCH_ANY, relative(cur, timeout)?),
        libc::FUTEX_WAIT_BITSET => {
            let deadline = absolute(cur, timeout, realtime)?;
            wait(cur, addr, private, value, value3, deadline)
        }
        libc::FUTEX_WAKE => wake(cur, addr, private, value, MATCH_ANY),
        libc::FUTEX_WAKE_BITSET => wake(cur, addr, private, value, value3),
        libc::FUTEX_REQUEUE => requeue(cur, addr, addr2, private, (value, count), None),
        libc::FUTEX_CMP_REQUEUE => requeue(cur, addr, addr2, private, (value, count), Some(value3)),
        libc::FUTEX_WAKE_OP => wake_op(cur, addr, addr2, private, (value, count), value3),
        libc::FUTEX_LOCK_PI => lock_pi(cur, addr, private, absolute(cur, timeout, true)?),
        FUTEX_LOCK_PI2 => lock_pi(cur, addr, private, absolute(cur, timeout, realtime)?),
        libc::FUTEX_TRYLOCK_PI => {
            let (key, locker) = (key(cur, addr, private)?, locker(cur));
            let word = &mut ThreadWord { thread: &mut *cur.user, addr };
            cur.task.kernel.futexes.trylock_pi(key, word, locker).map(|()| 0)
        }
        libc::FUTEX_UNLOCK_PI => {
            let (key, locker) = (key(cur, addr, private)?, locker(cur));
            let word = &mut ThreadWord { thread: &mut *cur.user, addr };
            cur.task.kernel.futexes.unlock_pi(key, word, locker).map(|()| 0)
        }
        libc::FUTEX_WAIT_REQUEUE_PI => {
            let deadline = absolute(cur, timeout, realtime)?;
            wait_requeue_pi(cur, (addr, addr2), private, value, value3, deadline)
        }
        libc::FUTEX_CMP_REQUEUE_PI => cmp_requeue_pi(cur, (addr, addr2), private, (value, count), value3),
        _ => Err(Errno::ENOSYS),
    }
}

fn key(cur: &Current, addr: u64, private: bool) -> Result<FutexKey> {
    cur.mm()?.futex_key(addr, private)
}

fn locker(cur: &Current) -> Locker {
    // Thread ids are given out again; where the task is in memory is not, while anything refers to it.
    Locker { tid: cur.tid(), thread: Arc::as_ptr(&cur.task) as u64 }
}

/// When a wait ends that has a timeout.
type Deadline = Option<Instant>;

fn relative(cur: &Current, timeout: u64) -> Result<Deadline> {
    let Some(at) = UserPtr::<[i64; 2]>::new(timeout).non_null() else { return Ok(None) };
    Ok(deadline_after(timespec(at.read(cur.space())?)?))
}

fn absolute(cur: &Current, timeout: u64, realtime: bool) -> Result<Deadline> {
    let Some(at) = UserPtr::<[i64; 2]>::new(timeout).non_null() else { return Ok(None) };
    let target = timespec(at.read(cur.space())?)?;
    let clock = if realtime { Clock::Realtime } else { Clock::Monotonic };
    let now = std::time::Duration::from_nanos(clock.now());
    Ok(deadline_after(target.saturating_sub(now)))
}

/// Sleeps until woken. `ETIMEDOUT`, `ERESTARTSYS`.
fn park(task: &Arc<Task>, waiter: FutexWaiter, deadline: Deadline) -> Result<()> {
    loop {
        if waiter.is_woken() {
            return Ok(());
        }
        let error = match task.sleep(deadline) {
            Woken::Event => {
                task.parker.reset();
                continue;
            }
            Woken::Deadline => Errno::ETIMEDOUT,
            Woken::Signal => Errno::ERESTARTSYS,
        };
        // A wake-up that was spent on this wait must not be lost.
        return if waiter.cancel() { Ok(()) } else { Err(error) };
    }
}

fn wait(cur: &mut Current, addr: u64, private: bool, expected: u32, bitset: u32, deadline: Deadline) -> SysResult {
    let mm = cur.mm()?;
    let key = mm.futex_key(addr, private)?;
    cur.parker.reset();
    let load = &mut || mm.load_u32(addr);
    let waiter = cur.kernel.futexes.wait(key, bitset, expected, &cur.parker, load)?;
    match park(&cur.task, waiter, deadline) {
        Ok(()) => Ok(0),
        // A relative timeout must not begin anew: the wait goes on until the same moment.
        Err(Errno::ERESTARTSYS) if deadline.is_some() => {
            cur.restart_block = Some(Box::new(move |cur| wait(cur, addr, private, expected, bitset, deadline)));
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
        Err(error) => Err(error),
    }
}

fn wake(cur: &Current, addr: u64, private: bool, count: u32, bitset: u32) -> SysResult {
    let key = key(cur, addr, private)?;
    cur.kernel.futexes.wake(key, at_least_one(count), bitset).map(|n| n as u64)
}

/// Linux wakes one also when asked for none or a negative number.
fn at_least_one(count: u32) -> usize {
    (count as i32).max(1) as usize
}

fn requeue(
    cur: &Current,
    addr: u64,
    addr2: u64,
    private: bool,
    (wake, move_count): (u32, i32),
    expected: Option<u32>,
) -> SysResult {
    let (wake, move_count) = match (usize::try_from(wake as i32), usize::try_from(move_count)) {
        (Ok(wake), Ok(move_count)) => (wake, move_count),
        _ => return Err(Errno::EINVAL),
    };
    let mm = cur.mm()?;
    let (from, to) = (mm.futex_key(addr, private)?, mm.futex_key(addr2, private)?);
    let mut load = || mm.load_u32(addr);
    let compare = expected.map(|expected| (expected, &mut load as &mut dyn FnMut() -> Result<u32>));
    let done = cur.kernel.futexes.requeue(from, to, wake, move_count, compare)?;
    Ok((done.woken + done.moved) as u64)
}

fn wake_op(
    cur: &mut Current,
    addr: u64,
    addr2: u64,
    private: bool,
    (count, count2): (u32, i32),
    encoded: u32,
) -> SysResult {
    let op = WakeOp::decode(encoded)?;
    let mm = cur.mm()?;
    let (first, second) = (mm.futex_key(addr, private)?, mm.futex_key(addr2, private)?);
    let counts = (at_least_one(count), at_least_one(count2 as u32));
    let word = &mut ThreadWord { thread: &mut *cur.user, addr: addr2 };
    let woken = cur.task.kernel.futexes.wake_op((first, counts.0), (second, counts.1), op, word)?;
    Ok(woken as u64)
}

/// Finds the threads of PI locks by their ids.
fn find_in(task: &Arc<Task>) -> impl Fn(i32) -> Option<u64> + use<> {
    let kernel = task.kernel.clone();
    move |tid| {
        let found = kernel.thread(tid).ok()?;
        (!found.is_exiting()).then_some(Arc::as_ptr(&found) as u64)
    }
}

fn lock_pi(cur: &mut Current, addr: u64, private: bool, deadline: Deadline) -> SysResult {
    let (key, locker) = (key(cur, addr, private)?, locker(cur));
    let find = find_in(&cur.task);
    cur.parker.reset();
    let futexes = cur.kernel.futexes.clone();
    let locked = {
        let parker = cur.task.parker.clone();
        let word = &mut ThreadWord { thread: &mut *cur.user, addr };
        futexes.lock_pi(key, word, locker, &parker, &find)?
    };
    match locked {
        PiLock::Acquired => Ok(0),
        PiLock::Waiting(waiter) => wait_pi(cur, waiter, addr, deadline),
    }
}

fn wait_pi(cur: &mut Current, waiter: FutexWaiter, addr: u64, deadline: Deadline) -> SysResult {
    loop {
        if waiter.is_woken() {
            break;
        }
        let error = match cur.task.sleep(deadline) {
            Woken::Event => {
                cur.task.parker.reset();
                continue;
            }
            Woken::Deadline => Errno::ETIMEDOUT,
            Woken::Signal => Errno::ERESTARTNOINTR,
        };
        if !waiter.cancel() {
            return Err(error);
        }
        return Ok(0);
    }
    waiter.own(&mut ThreadWord { thread: &mut *cur.user, addr }).map(|()| 0)
}

fn wait_requeue_pi(
    cur: &mut Current,
    (addr, addr2): (u64, u64),
    private: bool,
    expected: u32,
    bitset: u32,
    deadline: Deadline,
) -> SysResult {
    let mm = cur.mm()?;
    let (from, target) = (mm.futex_key(addr, private)?, mm.futex_key(addr2, private)?);
    if from == target {
        return Err(Errno::EINVAL);
    }
    cur.parker.reset();
    let load = &mut || mm.load_u32(addr);
    let locker = locker(cur);
    let waiter = cur.kernel.futexes.wait_requeue_pi(from, bitset, expected, target, locker, &cur.parker, load)?;
    match wait_pi(cur, waiter, addr2, deadline) {
        // The lock was not taken, and the mutex must be taken by the caller: futex(2).
        Err(Errno::ERESTARTNOINTR) => Err(Errno::EAGAIN),
        done => done,
    }
}

fn cmp_requeue_pi(
    cur: &mut Current,
    (addr, addr2): (u64, u64),
    private: bool,
    (wake, move_count): (u32, i32),
    expected: u32,
) -> SysResult {
    let move_count = usize::try_from(move_count).map_err(|_| Errno::EINVAL)?;
    if wake != 1 {
        return Err(Errno::EINVAL);
    }
    let mm = cur.mm()?;
    let (from, to) = (mm.futex_key(addr, private)?, mm.futex_key(addr2, private)?);
    let find = find_in(&cur.task);
    let load = &mut || mm.load_u32(addr);
    let futexes = cur.kernel.futexes.clone();
    let word = &mut ThreadWord { thread: &mut *cur.user, addr: addr2 };
    let done = futexes.cmp_requeue_pi((from, to), move_count, expected, load, word, &find)?;
    Ok((done.woken + done.moved) as u64)
}

/// `struct futex_waitv`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct FutexWaitv {
    value: u64,
    addr: u64,
    flags: u32,
    reserved: u32,
}

/// `futex_waitv(2)`: returns the index of one that was woken. `EAGAIN`, `EINVAL`, `EFAULT`, `ETIMEDOUT`, `EINTR`.
pub fn futex_waitv(
    cur: &mut Current,
    waiters: UserPtr<FutexWaitv>,
    count: u32,
    flags: u32,
    timeout: u64,
    clock: i32,
) -> SysResult {
    const SIZE_U32: u32 = 2;
    const PRIVATE: u32 = 128;
    if flags != 0 || !(1..=128).contains(&count) {
        return Err(Errno::EINVAL);
    }
    let deadline = match clock {
        _ if timeout == 0 => None,
        libc::CLOCK_MONOTONIC => absolute(cur, timeout, false)?,
        libc::CLOCK_REALTIME => absolute(cur, timeout, true)?,
        _ => return Err(Errno::EINVAL),
    };
    let mm = cur.mm()?;
    let entries = waiters.read_array(cur.space(), count as usize)?;
    let mut futexes = Vec::with_capacity(entries.len());
    for entry in &entries {
        if entry.flags & !(SIZE_U32 | PRIVATE) != 0 || entry.flags & SIZE_U32 == 0 || entry.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        futexes.push((mm.futex_key(entry.addr, entry.flags & PRIVATE != 0)?, entry.value as u32));
    }
    cur.parker.reset();
    let load = &mut |index: usize| mm.load_u32(entries[index].addr);
    let waiting = cur.kernel.futexes.wait_all(&futexes, &cur.parker, load)?;
    loop {
        if let Some(index) = first_woken(&waiting) {
            return Ok(index as u64);
        }
        let error = match cur.task.sleep(deadline) {
            Woken::Event => {
                cur.task.parker.reset();
                continue;
            }
            Woken::Deadline => Errno::ETIMEDOUT,
            Woken::Signal => Errno::ERESTARTSYS,
        };
        let mut woken = None;
        for (index, waiter) in waiting.into_iter().enumerate() {
            if waiter.cancel() {
                woken = woken.or(Some(index as u64));
            }
        }
        return woken.ok_or(error);
    }
}

/// `set_robust_list(2)`. `EINVAL`.
pub fn set_robust_list(cur: &mut Current, head: u64, len: usize) -> SysResult {
    if len != HEAD_SIZE {
        return Err(Errno::EINVAL);
    }
    cur.robust_list.store(head, Ordering::Relaxed);
    Ok(0)
}

/// `get_robust_list(2)`. `ESRCH`, `EPERM`, `EFAULT`.
pub fn get_robust_list(cur: &mut Current, tid: i32, head: UserPtr<u64>, len: UserPtr<u64>) -> SysResult {
    let task = if tid == 0 { cur.task.clone() } else { cur.kernel.thread(tid)? };
    cur.may_trace(&task)?;
    len.write(cur.space(), &(HEAD_SIZE as u64))?;
    head.write(cur.space(), &task.robust_list.load(Ordering::Relaxed)).map(|()| 0)
}

fn wake_word(futexes: &FutexTable, mm: &MemoryManager, addr: u64, private: bool) {
    if let Ok(key) = mm.futex_key(addr, private) {
        // Nobody there, or only waiters for a lock of another kind: nothing to do for a thread that ends.
        let _ = futexes.wake(key, 1, MATCH_ANY);
    }
}

/// What the end of a thread, or of its program, means to futexes: robust locks are handed on, and
/// `CLONE_CHILD_CLEARTID` is carried out.
pub fn exit_thread(cur: &mut Current) {
    let Ok(mm) = cur.mm() else { return };
    let futexes = cur.kernel.futexes.clone();
    cur.task.set_exiting();
    let head = cur.robust_list.swap(0, Ordering::Relaxed);
    if head != 0 {
        let (space, tid) = (cur.user.space().clone(), cur.tid());
        let user = &mut cur.user;
        let exchange = &mut |addr: u64, old: u32, new: u32| user.compare_exchange(addr, old, new);
        exit_robust_list(head, tid, &*space, exchange, &mut |addr| wake_word(&futexes, &mm, addr, false));
    }
    futexes.exit_pi(Arc::as_ptr(&cur.task) as u64);
    let clear = cur.clear_child_tid.swap(0, Ordering::Relaxed);
    // Nobody else can look when the thread was the last user of the memory.
    if clear != 0 && Arc::strong_count(&mm) > 2 && UserPtr::new(clear).write(cur.space(), &0u32).is_ok() {
        wake_word(&futexes, &mm, clear, false);
        wake_word(&futexes, &mm, clear, true);
    }
}
