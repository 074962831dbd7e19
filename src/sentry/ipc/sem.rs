//! Semaphores: `semop(2)`.
//!
//! Those who wait are on their set's queue and look again at each change of the set: what they wait for may need several
//! semaphores at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Ids, Perm, Want, look_up, now, wanted};
use crate::errno::{Errno, Result};
use crate::sentry::creds::Credentials;
use crate::wait::{Events, WaitQueue};

/// `SEMMNI`: sets.
pub const SEMMNI: usize = 32_000;
/// `SEMMSL`: semaphores in a set.
pub const SEMMSL: i32 = 32_000;
/// `SEMOPM`: operations in a call.
pub const SEMOPM: usize = 500;
/// `SEMVMX`: the highest value.
pub const SEMVMX: i32 = 32_767;
/// `SEMMNS`: semaphores of all sets. Linux allows more, which nobody would notice but in the sandbox's memory.
const SEMMNS: usize = 1 << 22;
/// `SEM_UNDO`.
const UNDO: i16 = 0x1000;

/// `struct sembuf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Which.
    pub num: u16,
    /// What is added; 0 waits for zero.
    pub delta: i16,
    /// `IPC_NOWAIT`, `SEM_UNDO`.
    pub flags: i16,
}

/// Who has something to undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The container's [`serial`](crate::sentry::kernel::Kernel::serial): containers that share semaphores may each have
    /// process numbers of their own.
    pub container: u64,
    /// The process.
    pub pid: i32,
}

/// One semaphore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sem {
    /// Its value.
    pub value: i32,
    /// Who changed it last.
    pub pid: i32,
    /// How many wait for it to grow.
    pub waiting: u32,
    /// How many wait for zero.
    pub waiting_zero: u32,
}

/// What changes of a set.
pub struct State {
    /// Who may do what.
    pub perm: Perm,
    /// The semaphores.
    pub sems: Vec<Sem>,
    /// Last `semop(2)`, last change: seconds since 1970.
    pub times: [i64; 2],
    removed: bool,
    /// What is added to each semaphore when a process ends.
    undo: HashMap<Owner, HashMap<u16, i32>>,
}

/// A set.
pub struct Set {
    id: i32,
    state: Mutex<State>,
    /// Woken at each change.
    pub queue: WaitQueue,
}

/// Why operations cannot be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    num: u16,
    zero: bool,
    /// `IPC_NOWAIT`.
    pub nowait: bool,
}

impl State {
    /// The values after all of `ops`, or what they wait for. `EFBIG`, `ERANGE`.
    fn after(&self, ops: &[Op]) -> Result<std::result::Result<Vec<(u16, i32)>, Blocked>> {
        if ops.iter().any(|op| usize::from(op.num) >= self.sems.len()) {
            return Err(Errno::EFBIG);
        }
        let mut values: Vec<(u16, i32)> = Vec::with_capacity(ops.len());
        for op in ops {
            let earlier = values.iter().rev().find(|(num, _)| *num == op.num).map(|(_, value)| *value);
            let value = earlier.unwrap_or(self.sems[usize::from(op.num)].value);
            let next = value + i32::from(op.delta);
            if next > SEMVMX {
                return Err(Errno::ERANGE);
            }
            if next < 0 || (op.delta == 0 && value != 0) {
                let nowait = i32::from(op.flags) & libc::IPC_NOWAIT != 0;
                return Ok(Err(Blocked { num: op.num, zero: op.delta == 0, nowait }));
            }
            values.push((op.num, next));
        }
        Ok(Ok(values))
    }

    fn count(&mut self, blocked: Blocked, more: bool) {
        let Some(sem) = self.sems.get_mut(usize::from(blocked.num)) else { return };
        let count = if blocked.zero { &mut sem.waiting_zero } else { &mut sem.waiting };
        *count = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
    }
}

impl Set {
    /// Looks at or changes the state, if `want` is allowed. `EIDRM`, `EACCES`, `EPERM`.
    pub fn with<T>(&self, creds: &Credentials, want: Want, f: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.state.lock();
        if state.removed {
            return Err(Errno::EIDRM);
        }
        state.perm.check(creds, want)?;
        f(&mut state)
    }

    /// Does all of `ops` or none. `was` is what an earlier attempt of the same call was blocked by. `EIDRM`, `EFBIG`, `ERANGE`.
    pub fn attempt(&self, ops: &[Op], who: Owner, was: &mut Option<Blocked>) -> Result<bool> {
        let mut state = self.state.lock();
        if let Some(was) = was.take() {
            state.count(was, false);
        }
        if state.removed {
            return Err(Errno::EIDRM);
        }
        let values = match state.after(ops)? {
            Ok(values) => values,
            Err(blocked) => {
                if !blocked.nowait {
                    state.count(blocked, true);
                }
                *was = Some(blocked);
                return Ok(false);
            }
        };
        for (num, value) in values {
            let sem = &mut state.sems[usize::from(num)];
            (sem.value, sem.pid) = (value, who.pid);
        }
        for op in ops.iter().filter(|op| op.flags & UNDO != 0 && op.delta != 0) {
            *state.undo.entry(who).or_default().entry(op.num).or_default() -= i32::from(op.delta);
        }
        state.times[0] = now();
        drop(state);
        if ops.iter().any(|op| op.delta != 0) {
            self.queue.wake(Events::READ);
        }
        Ok(true)
    }

    /// A call has given up waiting.
    pub fn give_up(&self, was: Option<Blocked>) {
        if let Some(was) = was.filter(|was| !was.nowait) {
            self.state.lock().count(was, false);
        }
    }

    /// `SETVAL`, `SETALL`: values from `first` on. What processes would undo of them is forgotten. `ERANGE`, `EINVAL`.
    pub fn set_values(&self, creds: &Credentials, first: usize, values: &[i32], pid: i32) -> Result<()> {
        if values.iter().any(|value| !(0..=SEMVMX).contains(value)) {
            return Err(Errno::ERANGE);
        }
        self.with(creds, Want::Bits(2), |state| {
            let sems = state.sems.get_mut(first..first.saturating_add(values.len())).ok_or(Errno::EINVAL)?;
            for (sem, value) in sems.iter_mut().zip(values) {
                (sem.value, sem.pid) = (*value, pid);
            }
            let changed = first..first + values.len();
            for undo in state.undo.values_mut() {
                undo.retain(|num, _| !changed.contains(&usize::from(*num)));
            }
            state.times[1] = now();
            Ok(())
        })?;
        self.queue.wake(Events::READ);
        Ok(())
    }

    /// Undoes what an ended process has left undone.
    fn undo(&self, who: Owner) {
        let mut state = self.state.lock();
        let Some(undo) = state.undo.remove(&who) else { return };
        for (num, delta) in undo {
            if let Some(sem) = state.sems.get_mut(usize::from(num)) {
                sem.value = sem.value.saturating_add(delta).clamp(0, SEMVMX);
                sem.pid = who.pid;
            }
        }
        drop(state);
        self.queue.wake(Events::READ);
    }
}

/// All sets.
#[derive(Default)]
pub struct Sets {
    ids: Mutex<Ids<Set>>,
    /// Sets that a process has something to undo in; leaf lock.
    undo: Mutex<HashMap<Owner, BTreeSet<i32>>>,
}

impl Sets {
    /// `semget(2)`. `EEXIST`, `ENOENT`, `ENOSPC`, `EINVAL`, `EACCES`.
    pub fn get(&self, key: i32, count: i32, flags: i32, creds: &Credentials) -> Result<i32> {
        let count = usize::try_from(count).ok().filter(|_| count <= SEMMSL).ok_or(Errno::EINVAL)?;
        let mut ids = self.ids.lock();
        if let Some((id, set)) = look_up(&ids, key, flags, SEMMNI)? {
            let there = set.with(creds, wanted(flags), |state| Ok(state.sems.len()))?;
            return if count > there { Err(Errno::EINVAL) } else { Ok(id) };
        }
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        // Only making a set looks at all of them, and only once there are enough for the limit to be near.
        if ids.len() >= SEMMNS / SEMMSL as usize {
            let all: usize = ids.objects.values().map(|set| set.state.lock().sems.len()).sum();
            if all + count > SEMMNS {
                return Err(Errno::ENOSPC);
            }
        }
        let state = State {
            perm: Perm::new(key, creds, flags as u32),
            sems: vec![Sem::default(); count],
            times: [0, now()],
            removed: false,
            undo: HashMap::new(),
        };
        Ok(ids.add(key, |id| Set { id, state: Mutex::new(state), queue: WaitQueue::new() }))
    }

    /// Each one's id, permissions, how many semaphores it has, and times: `/proc/sysvipc/sem`.
    pub fn list(&self) -> Vec<(i32, Perm, usize, [i64; 2])> {
        // A set's lock is not taken under the table's.
        let sets: Vec<_> = self.ids.lock().iter().map(|(id, set)| (id, set.clone())).collect();
        let show = |(id, set): (i32, Arc<Set>)| {
            let state = set.state.lock();
            (id, state.perm, state.sems.len(), state.times)
        };
        sets.into_iter().map(show).collect()
    }

    /// A set. `EINVAL`.
    pub fn find(&self, id: i32) -> Result<Arc<Set>> {
        self.ids.lock().get(id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `IPC_RMID`: those who wait get `EIDRM`. `EPERM`.
    pub fn remove(&self, set: &Set, creds: &Credentials) -> Result<()> {
        set.with(creds, Want::Own, |state| {
            state.removed = true;
            Ok(())
        })?;
        let gone = self.ids.lock().remove(set.id);
        set.queue.wake(Events::READ);
        drop(gone);
        Ok(())
    }

    /// Notes that a process may have something to undo in a set: before its operations are done.
    pub fn note_undo(&self, set: &Set, ops: &[Op], who: Owner) {
        if ops.iter().any(|op| op.flags & UNDO != 0) {
            self.undo.lock().entry(who).or_default().insert(set.id);
        }
    }

    /// A process has ended.
    pub fn process_ended(&self, who: Owner) {
        let sets = self.undo.lock().remove(&who);
        for id in sets.into_iter().flatten() {
            if let Ok(set) = self.find(id) {
                set.undo(who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(pid: i32) -> Owner {
        Owner { container: 0, pid }
    }

    fn op(num: u16, delta: i16, flags: i16) -> Op {
        Op { num, delta, flags }
    }

    fn values(set: &Set) -> Vec<i32> {
        set.state.lock().sems.iter().map(|sem| sem.value).collect()
    }

    #[test]
    fn operations_are_done_together_or_not_at_all() {
        let (sets, root) = (Sets::default(), Credentials::root());
        let id = sets.get(libc::IPC_PRIVATE, 2, 0o600, &root).expect("made");
        let set = sets.find(id).expect("found");
        let mut was = None;
        assert_eq!(set.attempt(&[op(0, 1, 0), op(1, -1, 0)], who(1), &mut was), Ok(false));
        assert_eq!((values(&set), set.state.lock().sems[1].waiting), (vec![0, 0], 1));
        set.set_values(&root, 1, &[1], 1).expect("set");
        assert_eq!(set.attempt(&[op(0, 1, 0), op(1, -1, 0)], who(1), &mut was), Ok(true));
        assert_eq!((values(&set), set.state.lock().sems[1].waiting), (vec![1, 0], 0));
        assert_eq!(set.attempt(&[op(0, 0, 0)], who(1), &mut was), Ok(false), "not zero");
        set.give_up(was.take());
        assert_eq!(set.state.lock().sems[0].waiting_zero, 0);
        assert_eq!(set.attempt(&[op(0, -1, 0), op(0, 0, 0)], who(1), &mut was), Ok(true), "one sees what the last did");
        assert_eq!(set.attempt(&[op(2, 1, 0)], who(1), &mut was), Err(Errno::EFBIG));
        assert_eq!(set.attempt(&[op(0, i16::MAX, 0), op(0, 1, 0)], who(1), &mut was), Err(Errno::ERANGE));
        sets.remove(&set, &root).expect("removed");
        assert_eq!(set.attempt(&[op(0, 1, 0)], who(1), &mut was), Err(Errno::EIDRM));
    }

    #[test]
    fn the_end_of_a_process_undoes() {
        let (sets, root) = (Sets::default(), Credentials::root());
        let id = sets.get(3, 1, libc::IPC_CREAT | 0o600, &root).expect("made");
        let set = sets.find(id).expect("found");
        set.set_values(&root, 0, &[5], 1).expect("set");
        let ops = [op(0, -2, UNDO)];
        sets.note_undo(&set, &ops, who(9));
        assert_eq!(set.attempt(&ops, who(9), &mut None), Ok(true));
        assert_eq!(values(&set), [3]);
        sets.process_ended(who(8));
        assert_eq!(values(&set), [3]);
        sets.process_ended(who(9));
        assert_eq!(values(&set), [5]);
        sets.process_ended(who(9));
        assert_eq!(values(&set), [5]);
    }
}
