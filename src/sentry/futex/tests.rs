//! Futexes over an array of words, with host threads as tasks.

use std::sync::atomic::{AtomicU32, AtomicUsize};

use super::pi::{Locker, OWNER_DIED, PiLock, WAITERS};
use super::*;

fn key(addr: u64) -> FutexKey {
    FutexKey::Private { mm: 1, addr }
}

/// A word of the array.
struct Host<'a>(&'a AtomicU32);

impl Word for Host<'_> {
    fn load(&mut self) -> Result<u32> {
        Ok(self.0.load(Ordering::SeqCst))
    }

    fn compare_exchange(&mut self, expected: u32, new: u32) -> Result<u32> {
        let result = self.0.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst);
        Ok(result.unwrap_or_else(|found| found))
    }
}

fn wait(table: &Arc<FutexTable>, at: u64, bitset: u32) -> FutexWaiter {
    table.wait(key(at), bitset, 0, &Arc::new(Parker::new()), &mut || Ok(0)).unwrap()
}

#[test]
fn waits_check_the_word_and_wakes_choose_by_bits_in_order() {
    let table = FutexTable::new();
    let parker = Arc::new(Parker::new());
    assert_eq!(table.wait(key(4), 1, 1, &parker, &mut || Ok(2)).err(), Some(Errno::EAGAIN));
    assert_eq!(table.wait(key(4), 0, 1, &parker, &mut || Ok(1)).err(), Some(Errno::EINVAL));
    assert_eq!(table.wait(key(4), 1, 1, &parker, &mut || Err(Errno::EFAULT)).err(), Some(Errno::EFAULT));
    let waiters = [1, 2, 3].map(|bits| wait(&table, 4, bits));
    assert_eq!(table.wake(key(8), 9, MATCH_ANY), Ok(0));
    assert_eq!(table.wake(key(4), 1, 2), Ok(1));
    assert_eq!(waiters.each_ref().map(FutexWaiter::is_woken), [false, true, false]);
    let [first, second, third] = waiters;
    assert!(second.cancel(), "the wake-up was spent");
    assert!(!first.cancel());
    drop(third);
    assert_eq!((table.waiters(key(4)), table.wake(key(4), 9, MATCH_ANY)), (0, Ok(0)));
}

#[test]
fn requeued_waiters_are_woken_where_they_went() {
    let table = FutexTable::new();
    let waiters: Vec<_> = (0..5).map(|_| wait(&table, 4, MATCH_ANY)).collect();
    let mut load = || Ok(7);
    assert_eq!(table.requeue(key(4), key(8), 1, 2, Some((6, &mut load))), Err(Errno::EAGAIN));
    let done = table.requeue(key(4), key(8), 1, 2, Some((7, &mut load)));
    assert_eq!(done, Ok(Requeued { woken: 1, moved: 2 }));
    assert_eq!((table.waiters(key(4)), table.waiters(key(8))), (2, 2));
    assert_eq!(table.wake(key(8), 1, MATCH_ANY), Ok(1));
    assert_eq!(waiters.iter().map(FutexWaiter::is_woken).collect::<Vec<_>>(), [true, true, false, false, false]);
    drop(waiters);
    assert_eq!((table.waiters(key(4)), table.waiters(key(8))), (0, 0));
    assert!(table.buckets.iter().all(|bucket| bucket.lock().queues.is_empty()));
}

#[test]
fn wake_op_changes_one_word_and_wakes_at_two() {
    let table = FutexTable::new();
    let (a, b) = (wait(&table, 4, MATCH_ANY), wait(&table, 8, MATCH_ANY));
    let word = AtomicU32::new(5);
    let op = WakeOp::decode(1 << 28 | 1 << 12 | 4).unwrap(); // add 1; was it 4?
    assert_eq!(table.wake_op((key(4), 1), (key(8), 1), op, &mut Host(&word)), Ok(1));
    assert_eq!((word.swap(4, Ordering::SeqCst), a.is_woken(), b.is_woken()), (6, true, false));
    assert_eq!(table.wake_op((key(4), 1), (key(8), 1), op, &mut Host(&word)), Ok(1));
    assert!(b.is_woken());
}

#[test]
fn waiting_for_several_ends_with_any() {
    let table = FutexTable::new();
    let parker = Arc::new(Parker::new());
    let futexes = [(key(4), 0), (key(8), 1)];
    let waiters = table.wait_all(&futexes, &parker, &mut |index| Ok(index as u32)).unwrap();
    assert_eq!(first_woken(&waiters), None);
    table.wake(key(8), 1, MATCH_ANY).unwrap();
    assert_eq!(first_woken(&waiters), Some(1));
    drop(waiters);
    let refused = table.wait_all(&futexes, &parker, &mut |_| Ok(0));
    assert_eq!(refused.err(), Some(Errno::EAGAIN));
    assert_eq!(table.waiters(key(4)), 0);
}

fn locker(tid: i32) -> Locker {
    Locker { tid, thread: tid as u64 }
}

fn lock(table: &Arc<FutexTable>, word: &AtomicU32, tid: i32) -> Result<PiLock> {
    table.lock_pi(key(4), &mut Host(word), locker(tid), &Arc::new(Parker::new()), &|tid| {
        (tid < 100).then_some(tid as u64)
    })
}

#[test]
fn pi_locks_are_handed_over() {
    let (table, word) = (FutexTable::new(), AtomicU32::new(0));
    assert!(matches!(lock(&table, &word, 1), Ok(PiLock::Acquired)));
    assert_eq!(lock(&table, &word, 1).err(), Some(Errno::EDEADLK));
    assert_eq!(table.trylock_pi(key(4), &mut Host(&word), locker(2)), Err(Errno::EAGAIN));
    assert_eq!(word.load(Ordering::SeqCst), 1);
    let Ok(PiLock::Waiting(second)) = lock(&table, &word, 2) else { panic!("it is owned") };
    let Ok(PiLock::Waiting(third)) = lock(&table, &word, 3) else { panic!("it is owned") };
    assert_eq!(word.load(Ordering::SeqCst), 1 | WAITERS);
    assert_eq!(table.wake(key(4), 1, MATCH_ANY), Err(Errno::EINVAL));
    assert_eq!(table.unlock_pi(key(4), &mut Host(&word), locker(2)), Err(Errno::EPERM));
    table.unlock_pi(key(4), &mut Host(&word), locker(1)).unwrap();
    assert_eq!((word.load(Ordering::SeqCst), second.is_woken(), third.is_woken()), (2 | WAITERS, true, false));
    table.exit_pi(2);
    assert!(third.is_woken());
    word.store(OWNER_DIED, Ordering::SeqCst); // as the robust list leaves it
    assert_eq!(table.trylock_pi(key(4), &mut Host(&word), locker(4)), Err(Errno::EAGAIN));
    let Ok(PiLock::Waiting(fourth)) = lock(&table, &word, 4) else { panic!("the heir has it") };
    third.own(&mut Host(&word)).unwrap();
    assert_eq!(word.load(Ordering::SeqCst), 3 | WAITERS | OWNER_DIED);
    table.unlock_pi(key(4), &mut Host(&word), locker(3)).unwrap();
    assert!(fourth.is_woken());
    table.unlock_pi(key(4), &mut Host(&word), locker(4)).unwrap();
    assert_eq!(word.load(Ordering::SeqCst), 0);
    word.store(1000, Ordering::SeqCst);
    assert_eq!(lock(&table, &word, 1).err(), Some(Errno::ESRCH));
    assert!(table.owners.lock().is_empty());
}

#[test]
fn condition_variables_move_waiters_to_the_lock() {
    let (table, word) = (FutexTable::new(), AtomicU32::new(0));
    let find = |tid: i32| Some(tid as u64);
    let wait = |tid| {
        let parker = Arc::new(Parker::new());
        table.wait_requeue_pi(key(8), MATCH_ANY, 5, key(4), locker(tid), &parker, &mut || Ok(5)).unwrap()
    };
    let (first, second) = (wait(1), wait(2));
    let keys = (key(8), key(4));
    let refused = table.cmp_requeue_pi(keys, 9, 6, &mut || Ok(5), &mut Host(&word), &find);
    assert_eq!(refused, Err(Errno::EAGAIN));
    assert_eq!(table.wake(key(8), 1, MATCH_ANY), Err(Errno::EINVAL));
    let wrong = table.cmp_requeue_pi((key(8), key(12)), 9, 5, &mut || Ok(5), &mut Host(&word), &find);
    assert_eq!(wrong, Err(Errno::EINVAL));
    let done = table.cmp_requeue_pi(keys, 9, 5, &mut || Ok(5), &mut Host(&word), &find);
    assert_eq!(done, Ok(Requeued { woken: 1, moved: 1 }));
    assert_eq!((first.is_woken(), second.is_woken()), (true, false));
    assert_eq!(word.load(Ordering::SeqCst), 1 | WAITERS);
    table.unlock_pi(key(4), &mut Host(&word), locker(1)).unwrap();
    assert!(second.is_woken());
}

/// A lock of the simplest kind (0 free, 1 taken, 2 waited for), by several threads, some of which give waits up.
#[test]
fn no_wake_up_is_lost() {
    const ROUNDS: usize = 2000;
    const THREADS: usize = 4;
    let (table, word) = (FutexTable::new(), Arc::new(AtomicU32::new(0)));
    let inside = Arc::new(AtomicUsize::new(0));
    let run = |seed: usize| {
        let (table, word, inside) = (table.clone(), word.clone(), inside.clone());
        std::thread::spawn(move || {
            let parker = Arc::new(Parker::new());
            for round in 0..ROUNDS {
                let mut state = Host(&word).compare_exchange(0, 1).unwrap();
                while state != 0 {
                    if state == 2 || Host(&word).compare_exchange(1, 2).unwrap() != 0 {
                        let waiter = table.wait(key(4), MATCH_ANY, 2, &parker, &mut || Host(&word).load());
                        if let Ok(waiter) = waiter
                            && !(round + seed).is_multiple_of(7)
                        {
                            while !waiter.is_woken() {
                                parker.park(None);
                            }
                        } // else given up at once; the loop takes the lock with the mark that others may wait
                    }
                    state =
                        word.compare_exchange(0, 2, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|found| found);
                }
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                inside.fetch_sub(1, Ordering::SeqCst);
                if word.swap(0, Ordering::SeqCst) == 2 {
                    table.wake(key(4), 1, MATCH_ANY).unwrap();
                }
            }
        })
    };
    let threads: Vec<_> = (0..THREADS).map(run).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(table.waiters(key(4)), 0);
}

/// Memory of one page at an address.
struct Page(u64, Mutex<Vec<u8>>);

impl crate::platform::AddressSpace for Page {
    fn range(&self) -> std::ops::Range<u64> {
        self.0..self.0 + 4096
    }

    fn vdso(&self) -> (std::ops::Range<u64>, u64) {
        (0..0, 0)
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<usize> {
        let bytes = self.1.lock();
        let from = addr.checked_sub(self.0).and_then(|at| bytes.get(at as usize..)).ok_or(Errno::EFAULT)?;
        let n = buf.len().min(from.len());
        buf[..n].copy_from_slice(&from[..n]);
        if n == 0 { Err(Errno::EFAULT) } else { Ok(n) }
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<usize> {
        let at = addr.checked_sub(self.0).ok_or(Errno::EFAULT)? as usize;
        self.1.lock().get_mut(at..at + buf.len()).ok_or(Errno::EFAULT)?.copy_from_slice(buf);
        Ok(buf.len())
    }

    fn read_vectored(&self, parts: &[(u64, usize)], buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        for &(addr, len) in parts {
            done += self.read(addr, &mut buf[done..done + len])?;
        }
        Ok(done)
    }

    fn write_vectored(&self, _parts: &[(u64, usize)], _buf: &[u8]) -> Result<usize> {
        Err(Errno::EFAULT)
    }

    fn host_pid(&self) -> i32 {
        0
    }
}

/// The list `words` of `(entry's index, value)`; returns the addresses woken.
fn exit(page: &Page, head: [u64; 3]) -> Vec<u64> {
    for (at, value) in head.iter().enumerate() {
        crate::platform::AddressSpace::write(page, page.0 + 8 * at as u64, &value.to_ne_bytes()).unwrap();
    }
    let mut woken = Vec::new();
    let mut exchange = |addr, expected: u32, new: u32| {
        let pointer = UserPtr::<u32>::new(addr);
        let found = pointer.read(page)?;
        if found == expected {
            pointer.write(page, &new)?;
        }
        Ok(found)
    };
    robust::exit_robust_list(page.0, 9, page, &mut exchange, &mut |addr| woken.push(addr));
    woken
}

#[test]
fn robust_locks_tell_that_their_owner_died() {
    let page = Page(0x1000, Mutex::new(vec![0; 4096]));
    let put = |addr: u64, next: u64, value: u32| {
        UserPtr::<u64>::new(addr).write(&page, &next).unwrap();
        UserPtr::<u32>::new(addr + 16).write(&page, &value).unwrap();
    };
    let value = |addr: u64| UserPtr::<u32>::new(addr + 16).read(&page).unwrap();
    put(0x1100, 0x1200, 9 | WAITERS);
    put(0x1200, 0x1301, 8);
    put(0x1300, 0x1000, 9 | WAITERS);
    put(0x1400, 0, 0);
    assert_eq!(exit(&page, [0x1100, 16, 0x1400]), [0x1110, 0x1410]);
    assert_eq!([0x1100, 0x1200, 0x1300].map(value), [WAITERS | OWNER_DIED, 8, WAITERS | OWNER_DIED]);
    // A circle and a hole end; what can be reached is done.
    put(0x1100, 0x1100, 9);
    assert!(exit(&page, [0x1100, 16, 0]).is_empty());
    assert_eq!(value(0x1100), OWNER_DIED);
    put(0x1100, 0x9000, 9);
    exit(&page, [0x1100, 16, 0]);
    assert_eq!(value(0x1100), OWNER_DIED);
}
