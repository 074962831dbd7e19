use super::*;

const END: u64 = i64::MAX as u64;

fn lock(kind: LockKind, process: u64, start: u64, last: u64) -> RecordLock {
    RecordLock { kind, start, last, owner: LockOwner::Process(process), pid: Some(pid(process)) }
}

fn pid(number: u64) -> Pid {
    Pid { number: number as i32, namespace: 0 }
}

fn held(locks: &FileLocks) -> Vec<(LockKind, u64, u64)> {
    let records = locks.show().into_iter().filter_map(|(lock, _)| match lock {
        Lock::Record(lock) => Some((lock.kind, lock.start, lock.last)),
        Lock::Whole { .. } => None,
    });
    records.collect()
}

use LockKind::{Exclusive, Shared};

#[test]
fn a_lock_in_the_middle_cuts_and_neighbours_merge() {
    let locks = FileLocks::default();
    locks.lock(&lock(Exclusive, 1, 0, 99)).unwrap();
    locks.lock(&lock(Shared, 1, 40, 59)).unwrap();
    assert_eq!(held(&locks), [(Exclusive, 0, 39), (Shared, 40, 59), (Exclusive, 60, 99)]);
    locks.lock(&lock(Exclusive, 1, 40, 59)).unwrap();
    assert_eq!(held(&locks), [(Exclusive, 0, 99)]);
    locks.unlock(LockOwner::Process(1), 50, END).unwrap();
    assert_eq!(held(&locks), [(Exclusive, 0, 49)]);
}

#[test]
fn readers_share_and_writers_do_not() {
    let locks = FileLocks::default();
    locks.lock(&lock(Shared, 1, 0, 9)).unwrap();
    locks.lock(&lock(Shared, 2, 5, END)).unwrap();
    assert_eq!(locks.lock(&lock(Exclusive, 2, 9, 9)), Err(Errno::EAGAIN));
    assert_eq!(locks.conflict(&lock(Exclusive, 2, 9, 9)).map(|lock| lock.pid_seen_from(0)), Some(1));
    assert_eq!(
        locks.conflict(&lock(Exclusive, 2, 9, 9)).map(|lock| lock.pid_seen_from(1)),
        Some(0),
        "not one of theirs"
    );
    locks.lock(&lock(Exclusive, 2, 10, END)).unwrap();
    locks.process_closed(1);
    locks.lock(&lock(Exclusive, 2, 0, END)).unwrap();
}

#[test]
fn a_circle_of_waiting_processes_is_refused() {
    let (one, two) = (FileLocks::default(), FileLocks::default());
    one.lock(&lock(Exclusive, 101, 0, END)).unwrap();
    two.lock(&lock(Exclusive, 102, 0, END)).unwrap();
    let first = one.begin_wait(&lock(Exclusive, 102, 0, 0)).unwrap().expect("it conflicts");
    assert_eq!(two.begin_wait(&lock(Shared, 101, 0, 0)).unwrap_err(), Errno::EDEADLK);
    drop(first);
    assert!(two.begin_wait(&lock(Shared, 101, 0, 0)).unwrap().is_some());
    assert!(one.begin_wait(&lock(Shared, 101, 0, 0)).unwrap().is_none());
}

#[test]
fn flock_conversion_gives_the_old_lock_up_first() {
    let locks = FileLocks::default();
    locks.flock(1, Shared, pid(1)).unwrap();
    locks.flock(2, Shared, pid(1)).unwrap();
    assert_eq!(locks.flock(1, Exclusive, pid(1)), Err(Errno::EAGAIN));
    locks.flock(2, Exclusive, pid(1)).unwrap();
    locks.description_closed(2);
    locks.flock(3, Exclusive, pid(1)).unwrap();
}
