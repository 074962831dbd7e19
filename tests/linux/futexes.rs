//! `futex`, and the locks of the C library and of std that stand on it.

use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::{Duration, Instant};

use libc::{c_int, c_long, timespec as Timespec};

use crate::common::*;

const PRIVATE: c_int = libc::FUTEX_PRIVATE_FLAG;

unsafe fn futex(word: &AtomicU32, operation: c_int, value: u32, timeout: *const Timespec) -> c_long {
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, timeout, 0, 0) }
}

unsafe fn futex2(
    word: &AtomicU32,
    operation: c_int,
    value: u32,
    value2: u32,
    other: &AtomicU32,
    value3: u32,
) -> c_long {
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, u64::from(value2), other.as_ptr(), value3)
    }
}

fn wake(word: &AtomicU32, count: u32) -> c_long {
    // SAFETY: the word is valid.
    ok(unsafe { futex(word, libc::FUTEX_WAKE | PRIVATE, count, ptr::null()) })
}

/// A thread that waits for a wake on `word`, known to be asleep.
fn waiter(word: &'static AtomicU32, operation: c_int, mask: u32) -> std::thread::JoinHandle<c_long> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        // SAFETY: the word is valid.
        unsafe {
            sender.send(libc::gettid()).unwrap();
            let value = word.load(Ordering::SeqCst);
            libc::syscall(libc::SYS_futex, word.as_ptr(), operation | PRIVATE, value, 0, 0, mask)
        }
    });
    let tid = receiver.recv().unwrap();
    let path = format!("/proc/self/task/{tid}/syscall");
    // The state alone may be that of the channel's lock: a waiter is inside the futex call with this very word.
    let address = format!("{:#x}", word.as_ptr() as usize);
    let stat = format!("/proc/self/task/{tid}/stat");
    eventually(|| match std::fs::read_to_string(&path) {
        Ok(text) => text.starts_with("202 ") && text.contains(&address),
        Err(_) => std::fs::read_to_string(&stat).unwrap().contains(") S "),
    });
    thread
}

#[test]
fn wait_with_another_value_gives_eagain() {
    isolated(|| unsafe {
        let word = AtomicU32::new(5);
        fails(futex(&word, libc::FUTEX_WAIT | PRIVATE, 4, ptr::null()), libc::EAGAIN);
        fails(futex(&word, libc::FUTEX_WAIT, 4, ptr::null()), libc::EAGAIN);
    });
}

#[test]
fn wait_times_out() {
    isolated(|| unsafe {
        let word = AtomicU32::new(5);
        let start = Instant::now();
        let timeout = timespec(Duration::from_millis(10));
        fails(futex(&word, libc::FUTEX_WAIT | PRIVATE, 5, &timeout), libc::ETIMEDOUT);
        assert!(start.elapsed() >= Duration::from_millis(10));
        let zero = timespec(Duration::ZERO);
        fails(futex(&word, libc::FUTEX_WAIT, 5, &zero), libc::ETIMEDOUT);
    });
}

#[test]
fn errors_of_futex() {
    isolated(|| unsafe {
        let words = [0u32; 2];
        let raw = |address: usize, operation: c_int, timeout: *const Timespec| {
            libc::syscall(libc::SYS_futex, address, operation, 0, timeout, 0, 0)
        };
        let address = words.as_ptr() as usize;
        fails(raw(address + 1, libc::FUTEX_WAIT, ptr::null()), libc::EINVAL);
        fails(raw(8, libc::FUTEX_WAIT, ptr::null()), libc::EFAULT);
        fails(raw(address, 99, ptr::null()), libc::ENOSYS);
        let bad = Timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
        fails(raw(address, libc::FUTEX_WAIT, &bad), libc::EINVAL);
        fails(raw(address, libc::FUTEX_WAIT, 16 as *const Timespec), libc::EFAULT);
        fails(raw(address, libc::FUTEX_WAIT_BITSET, ptr::null()), libc::EINVAL);
        fails(raw(address, libc::FUTEX_WAKE_BITSET, ptr::null()), libc::EINVAL);
        assert_eq!(ok(raw(address, libc::FUTEX_WAKE | PRIVATE, ptr::null())), 0);
    });
}

#[test]
fn wake_wakes_as_many_as_asked_for() {
    isolated(|| {
        static WORD: AtomicU32 = AtomicU32::new(0);
        let threads: Vec<_> = (0..3).map(|_| waiter(&WORD, libc::FUTEX_WAIT, 0)).collect();
        assert_eq!(wake(&WORD, 2), 2);
        assert_eq!(wake(&WORD, 9), 1);
        assert_eq!(wake(&WORD, 9), 0);
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), 0));
    });
}

#[test]
fn bitset_selects_waiters() {
    isolated(|| unsafe {
        static WORD: AtomicU32 = AtomicU32::new(0);
        let first = waiter(&WORD, libc::FUTEX_WAIT_BITSET, 0b01);
        let second = waiter(&WORD, libc::FUTEX_WAIT_BITSET, 0b10);
        let wake =
            |mask: u32| libc::syscall(libc::SYS_futex, WORD.as_ptr(), libc::FUTEX_WAKE_BITSET | PRIVATE, 9, 0, 0, mask);
        assert_eq!(wake(0b100), 0);
        assert_eq!(wake(0b110), 1);
        assert_eq!(second.join().unwrap(), 0);
        assert_eq!(wake(u32::MAX), 1);
        assert_eq!(first.join().unwrap(), 0);
    });
}

#[test]
fn bitset_timeout_is_absolute() {
    isolated(|| unsafe {
        let word = AtomicU32::new(1);
        let wait = |clock: c_int, timeout: &Timespec| {
            let operation = libc::FUTEX_WAIT_BITSET | PRIVATE | clock;
            libc::syscall(libc::SYS_futex, word.as_ptr(), operation, 1, timeout, 0, u32::MAX)
        };
        fails(wait(0, &timespec(Duration::from_nanos(1))), libc::ETIMEDOUT);
        fails(wait(libc::FUTEX_CLOCK_REALTIME, &timespec(Duration::from_secs(1000))), libc::ETIMEDOUT);
        let mut time: Timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        let end = Duration::new(time.tv_sec as u64, time.tv_nsec as u32) + Duration::from_millis(5);
        fails(wait(0, &timespec(end)), libc::ETIMEDOUT);
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        assert!(Duration::new(time.tv_sec as u64, time.tv_nsec as u32) >= end);
    });
}

#[test]
fn requeue_moves_waiters() {
    isolated(|| unsafe {
        static FROM: AtomicU32 = AtomicU32::new(0);
        static TO: AtomicU32 = AtomicU32::new(0);
        let threads: Vec<_> = (0..3).map(|_| waiter(&FROM, libc::FUTEX_WAIT, 0)).collect();
        assert_eq!(ok(futex2(&FROM, libc::FUTEX_REQUEUE | PRIVATE, 1, 1, &TO, 0)), 2);
        assert_eq!(wake(&FROM, 9), 1);
        assert_eq!(wake(&TO, 9), 1);
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), 0));
    });
}

#[test]
fn cmp_requeue_compares_first() {
    isolated(|| unsafe {
        static FROM: AtomicU32 = AtomicU32::new(7);
        static TO: AtomicU32 = AtomicU32::new(0);
        let thread = waiter(&FROM, libc::FUTEX_WAIT, 0);
        fails(futex2(&FROM, libc::FUTEX_CMP_REQUEUE | PRIVATE, 0, 1, &TO, 6), libc::EAGAIN);
        assert_eq!(ok(futex2(&FROM, libc::FUTEX_CMP_REQUEUE | PRIVATE, 0, 1, &TO, 7)), 1);
        assert_eq!(wake(&FROM, 1), 0);
        assert_eq!(wake(&TO, 1), 1);
        thread.join().unwrap();
    });
}

#[test]
fn wake_op_changes_the_second_word_and_wakes_both() {
    isolated(|| unsafe {
        static FIRST: AtomicU32 = AtomicU32::new(0);
        static SECOND: AtomicU32 = AtomicU32::new(5);
        let threads = [waiter(&FIRST, libc::FUTEX_WAIT, 0), waiter(&SECOND, libc::FUTEX_WAIT, 0)];
        // FUTEX_OP_ADD 3, and wake the second word's waiters when the old value was FUTEX_OP_CMP_EQ 5.
        let operation = 1 << 28 | 3 << 12 | 5;
        assert_eq!(ok(futex2(&FIRST, libc::FUTEX_WAKE_OP | PRIVATE, 1, 1, &SECOND, operation)), 2);
        assert_eq!(SECOND.load(Ordering::SeqCst), 8);
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), 0));
        assert_eq!(ok(futex2(&FIRST, libc::FUTEX_WAKE_OP | PRIVATE, 1, 1, &SECOND, operation)), 0);
        assert_eq!(SECOND.load(Ordering::SeqCst), 11);
    });
}

#[test]
fn shared_futex_works_between_processes() {
    isolated(|| unsafe {
        let word: &AtomicU32 = shared();
        let pid = child(|| {
            while word.load(Ordering::SeqCst) == 0 {
                futex(word, libc::FUTEX_WAIT, 0, ptr::null());
            }
            word.load(Ordering::SeqCst) as c_int
        });
        until_asleep(pid);
        word.store(6, Ordering::SeqCst);
        assert_eq!(ok(futex(word, libc::FUTEX_WAKE, 1, ptr::null())), 1);
        assert_eq!(wait(pid), Status::Exited(6));
    });
}

#[test]
fn shared_futex_of_a_file_is_one_at_two_addresses() {
    isolated(|| unsafe {
        let fd = open_new(c"f");
        ok(libc::ftruncate(fd, PAGE as i64));
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let map = || {
            let map = ok(libc::mmap(ptr::null_mut(), PAGE, access, libc::MAP_SHARED, fd, 0));
            &*map.cast::<AtomicU32>()
        };
        let (here, there) = (map(), map());
        let pid = child(|| futex(here, libc::FUTEX_WAIT, 0, ptr::null()) as c_int);
        until_asleep(pid);
        assert_eq!(ok(futex(there, libc::FUTEX_WAKE, 1, ptr::null())), 1);
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn private_futex_does_not_leave_the_process() {
    isolated(|| unsafe {
        let word: &AtomicU32 = shared();
        let pid = child(|| futex(word, libc::FUTEX_WAIT | PRIVATE, 0, ptr::null()) as c_int);
        until_asleep(pid);
        assert_eq!(wake(word, 9), 0);
        libc::kill(pid, libc::SIGKILL);
        wait(pid);
    });
}

#[test]
fn wait_is_interrupted_by_a_handler() {
    isolated(|| unsafe {
        extern "C" fn nothing(_: c_int) {}
        let pid = child(|| {
            handle(libc::SIGUSR1, nothing, 0);
            let word = AtomicU32::new(0);
            fails(futex(&word, libc::FUTEX_WAIT | PRIVATE, 0, ptr::null()), libc::EINTR);
            0
        });
        until_asleep(pid);
        libc::kill(pid, libc::SIGUSR1);
        assert_eq!(wait(pid), Status::Exited(0));
    });
}

#[test]
fn robust_list_marks_the_lock_of_a_dead_owner() {
    isolated(|| unsafe {
        #[repr(C)]
        struct Shared {
            mutex: std::cell::UnsafeCell<libc::pthread_mutex_t>,
        }
        let shared = &*anonymous(PAGE, libc::MAP_SHARED).cast::<Shared>();
        let mutex = shared.mutex.get();
        let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
        libc::pthread_mutexattr_init(&mut attributes);
        libc::pthread_mutexattr_setpshared(&mut attributes, libc::PTHREAD_PROCESS_SHARED);
        libc::pthread_mutexattr_setrobust(&mut attributes, libc::PTHREAD_MUTEX_ROBUST);
        assert_eq!(libc::pthread_mutex_init(mutex, &attributes), 0);
        assert_eq!(wait(child(|| libc::pthread_mutex_lock(mutex))), Status::Exited(0));
        assert_eq!(libc::pthread_mutex_lock(mutex), libc::EOWNERDEAD);
        assert_eq!(libc::pthread_mutex_consistent(mutex), 0);
        assert_eq!(libc::pthread_mutex_unlock(mutex), 0);
        assert_eq!(libc::pthread_mutex_lock(mutex), 0);
    });
}

#[test]
fn robust_list_is_kept_for_the_thread() {
    isolated(|| unsafe {
        let mut head = [0usize; 3];
        ok(libc::syscall(libc::SYS_set_robust_list, &mut head, 24));
        fails(libc::syscall(libc::SYS_set_robust_list, &mut head, 23), libc::EINVAL);
        let (mut at, mut size) = (0usize, 0usize);
        ok(libc::syscall(libc::SYS_get_robust_list, 0, &mut at, &mut size));
        assert_eq!((at, size), (head.as_ptr() as usize, 24));
        fails(libc::syscall(libc::SYS_get_robust_list, 0x3f_ffff, &mut at, &mut size), libc::ESRCH);
    });
}

#[test]
fn priority_inheriting_lock_names_its_owner() {
    isolated(|| unsafe {
        static WORD: AtomicU32 = AtomicU32::new(0);
        let tid = libc::gettid() as u32;
        ok(futex(&WORD, libc::FUTEX_LOCK_PI | PRIVATE, 0, ptr::null()));
        assert_eq!(WORD.load(Ordering::SeqCst), tid);
        fails(futex(&WORD, libc::FUTEX_LOCK_PI | PRIVATE, 0, ptr::null()), libc::EDEADLK);
        let thread = std::thread::spawn(|| {
            fails(futex(&WORD, libc::FUTEX_TRYLOCK_PI | PRIVATE, 0, ptr::null()), libc::EAGAIN);
            fails(futex(&WORD, libc::FUTEX_UNLOCK_PI | PRIVATE, 0, ptr::null()), libc::EPERM);
            ok(futex(&WORD, libc::FUTEX_LOCK_PI | PRIVATE, 0, ptr::null()));
            assert_eq!(WORD.load(Ordering::SeqCst) & 0x3fff_ffff, libc::gettid() as u32);
            ok(futex(&WORD, libc::FUTEX_UNLOCK_PI | PRIVATE, 0, ptr::null()));
        });
        eventually(|| WORD.load(Ordering::SeqCst) == tid | 0x8000_0000);
        ok(futex(&WORD, libc::FUTEX_UNLOCK_PI | PRIVATE, 0, ptr::null()));
        thread.join().unwrap();
        assert_eq!(WORD.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn mutex_excludes_under_contention() {
    isolated(|| {
        let sum = Arc::new(Mutex::new(0u64));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let sum = sum.clone();
                std::thread::spawn(move || (0..5000).for_each(|_| *sum.lock().unwrap() += 1))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*sum.lock().unwrap(), 40_000);
    });
}

#[test]
fn condition_variable_hands_over_thousands_of_times() {
    isolated(|| {
        let turn = Arc::new((Mutex::new(0u32), Condvar::new()));
        let threads: Vec<_> = (0..3u32)
            .map(|own| {
                let turn = turn.clone();
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        let mut number =
                            turn.1.wait_while(turn.0.lock().unwrap(), |number| *number % 3 != own).unwrap();
                        *number += 1;
                        turn.1.notify_all();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*turn.0.lock().unwrap(), 3000);
    });
}

#[test]
fn barrier_keeps_threads_together() {
    isolated(|| {
        static ROUND: AtomicU32 = AtomicU32::new(0);
        let barrier = Arc::new(Barrier::new(4));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let barrier = barrier.clone();
                std::thread::spawn(move || {
                    for round in 0..200 {
                        assert_eq!(ROUND.load(Ordering::SeqCst), round);
                        if barrier.wait().is_leader() {
                            ROUND.fetch_add(1, Ordering::SeqCst);
                        }
                        barrier.wait();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn process_shared_semaphore_passes_tokens() {
    isolated(|| unsafe {
        let memory = anonymous(PAGE, libc::MAP_SHARED);
        let (ping, pong) = (memory.cast::<libc::sem_t>(), memory.add(256).cast::<libc::sem_t>());
        ok(libc::sem_init(ping, 1, 0));
        ok(libc::sem_init(pong, 1, 0));
        let pid = child(|| {
            for _ in 0..500 {
                ok(libc::sem_wait(ping));
                ok(libc::sem_post(pong));
            }
            0
        });
        for _ in 0..500 {
            ok(libc::sem_post(ping));
            ok(libc::sem_wait(pong));
        }
        assert_eq!(wait(pid), Status::Exited(0));
        fails(libc::sem_trywait(pong), libc::EAGAIN);
    });
}
