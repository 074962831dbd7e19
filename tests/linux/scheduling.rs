//! Scheduling: processors, nice values and policies, and what they do.

use std::mem::{size_of, zeroed};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libc::c_int;

use crate::common::*;

#[test]
fn affinity_is_kept_and_inherited() {
    isolated(|| unsafe {
        let mut all: libc::cpu_set_t = zeroed();
        ok(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut all));
        let count = libc::CPU_COUNT(&all);
        assert!(count >= 1);
        let first = (0..1024).find(|cpu| libc::CPU_ISSET(*cpu, &all)).unwrap();
        let mut one: libc::cpu_set_t = zeroed();
        fails(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one), libc::EINVAL);
        libc::CPU_SET(first, &mut one);
        ok(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one));
        in_child(|| {
            let mut own: libc::cpu_set_t = zeroed();
            ok(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut own));
            assert_eq!(libc::CPU_COUNT(&own), 1);
        });
        // It binds: every processor in turn, and another thread from outside.
        for cpu in (0..1024).filter(|cpu| libc::CPU_ISSET(*cpu, &all)) {
            let mut one: libc::cpu_set_t = zeroed();
            libc::CPU_SET(cpu, &mut one);
            ok(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one));
            for _ in 0..100 {
                assert_eq!(ok(libc::sched_getcpu()), cpu as i32);
            }
            let there = shared::<std::sync::atomic::AtomicI32>();
            there.store(-1, std::sync::atomic::Ordering::SeqCst);
            let spinner = child(|| {
                loop {
                    there.store(libc::sched_getcpu(), std::sync::atomic::Ordering::SeqCst);
                }
            });
            for cpu in (0..1024).filter(|cpu| libc::CPU_ISSET(*cpu, &all)) {
                let mut one: libc::cpu_set_t = zeroed();
                libc::CPU_SET(cpu, &mut one);
                ok(libc::sched_setaffinity(spinner, size_of::<libc::cpu_set_t>(), &one));
                eventually(|| there.load(std::sync::atomic::Ordering::SeqCst) == cpu as i32);
            }
            ok(libc::kill(spinner, libc::SIGKILL));
            wait(spinner);
        }
        fails(libc::sched_getaffinity(0x3f_ffff, size_of::<libc::cpu_set_t>(), &mut one), libc::ESRCH);
        fails(libc::sched_getaffinity(0, 1, &mut one), libc::EINVAL);
    });
}

#[test]
fn scheduling_policies_and_priorities() {
    ordinary(|| unsafe {
        assert_eq!(ok(libc::sched_getscheduler(0)), libc::SCHED_OTHER);
        assert_eq!(ok(libc::sched_get_priority_max(libc::SCHED_FIFO)), 99);
        assert_eq!(ok(libc::sched_get_priority_min(libc::SCHED_RR)), 1);
        assert_eq!(ok(libc::sched_get_priority_max(libc::SCHED_OTHER)), 0);
        fails(libc::sched_get_priority_max(99), libc::EINVAL);
        let mut parameters: libc::sched_param = zeroed();
        ok(libc::sched_getparam(0, &mut parameters));
        assert_eq!(parameters.sched_priority, 0);
        parameters.sched_priority = 5;
        fails(libc::sched_setscheduler(0, libc::SCHED_OTHER, &parameters), libc::EINVAL);
        fails(libc::sched_getscheduler(0x3f_ffff), libc::ESRCH);
        parameters.sched_priority = 0;
        in_child(|| {
            ok(libc::sched_setscheduler(0, libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK, &parameters));
            assert_eq!(ok(libc::sched_getscheduler(0)), libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK);
            in_child(|| assert_eq!(ok(libc::sched_getscheduler(0)), libc::SCHED_BATCH));
        });
        ok(libc::sched_yield());
        ok(libc::setpriority(libc::PRIO_PROCESS, 0, 5));
        assert_eq!(ok(libc::getpriority(libc::PRIO_PROCESS, 0)), 5);
        in_child(|| assert_eq!(ok(libc::getpriority(libc::PRIO_PROCESS, 0)), 5));
        fails(libc::getpriority(9, 0), libc::EINVAL);
        as_user(1234, || fails(libc::setpriority(libc::PRIO_PROCESS, 0, 0), libc::EACCES));
    });
}

#[test]
fn getcpu_names_an_allowed_processor() {
    isolated(|| unsafe {
        let (mut cpu, mut node) = (u32::MAX, u32::MAX);
        ok(libc::syscall(libc::SYS_getcpu, &mut cpu, &mut node, 0));
        assert!(cpu < 4096 && node < 1024);
        assert!(ok(libc::sched_getcpu()) >= 0);
    });
}

/// Of two processes that count on one processor: how often `second` got as far as `first`, in hundredths, once the first
/// has counted long enough. Each begins with its own preparation.
fn share_of_the_second(first: impl Fn(), second: impl Fn()) -> u64 {
    const FAR: u64 = 300_000_000;
    let counts = shared::<[AtomicU64; 2]>();
    let go = shared::<AtomicBool>();
    one_processor();
    let count = |own: &AtomicU64, prepare: &dyn Fn()| {
        prepare();
        own.store(1, Ordering::SeqCst);
        while !go.load(Ordering::SeqCst) {
            // SAFETY: no memory is involved.
            unsafe { libc::usleep(100) };
        }
        while own.fetch_add(1, Ordering::Relaxed) < FAR {}
    };
    let counting = |index: usize, prepare: &dyn Fn()| {
        count(&counts[index], prepare);
        0
    };
    let pids = [child(|| counting(0, &first)), child(|| counting(1, &second))];
    eventually(|| counts.iter().all(|count| count.load(Ordering::SeqCst) == 1));
    go.store(true, Ordering::SeqCst);
    assert_eq!(wait(pids[0]), Status::Exited(0));
    let far = counts[1].load(Ordering::SeqCst);
    // SAFETY: no memory is involved.
    unsafe { libc::kill(pids[1], libc::SIGKILL) };
    wait(pids[1]);
    far * 100 / FAR
}

/// Keeps the calling process and its children to come on one processor.
fn one_processor() {
    // SAFETY: the sets are valid, and the processor is of the first.
    unsafe {
        let (mut all, mut one): (libc::cpu_set_t, libc::cpu_set_t) = (zeroed(), zeroed());
        ok(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut all));
        libc::CPU_SET((0..1024).find(|cpu| libc::CPU_ISSET(*cpu, &all)).unwrap(), &mut one);
        ok(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one));
    }
}

fn set_nice(nice: c_int) {
    // SAFETY: no memory is involved.
    ok(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) });
}

/// [`isolated`], from the ordinary nice value, whatever that is which the tests were started with.
fn ordinary(test: impl FnOnce()) {
    isolated(|| {
        set_nice(0);
        test();
    });
}

fn set_policy(policy: c_int) -> c_int {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are valid.
    unsafe { libc::sched_setscheduler(0, policy, &none) }
}

#[test]
fn a_nice_process_gets_what_others_leave() {
    ordinary(|| {
        let share = share_of_the_second(|| (), || set_nice(19));
        assert!(share < 25, "{share} % of what the other got");
    });
}

#[test]
fn a_process_that_is_nice_no_more_gets_its_share_again() {
    ordinary(|| {
        set_nice(19);
        let again = || {
            set_nice(19);
            set_nice(0);
        };
        let share = share_of_the_second(again, || ());
        assert!(share < 25, "{share} % of what the other got");
    });
}

#[test]
fn an_idle_process_gets_what_others_leave() {
    ordinary(|| {
        let idle = || {
            ok(set_policy(libc::SCHED_IDLE));
        };
        let share = share_of_the_second(|| (), idle);
        assert!(share < 25, "{share} % of what the other got");
    });
}

#[test]
fn another_thread_is_made_nice_while_it_runs() {
    ordinary(|| unsafe {
        one_processor();
        let counts = shared::<[AtomicU64; 2]>();
        let count = |own: &AtomicU64| loop {
            own.fetch_add(1, Ordering::Relaxed);
        };
        let pids = [child(|| count(&counts[0])), child(|| count(&counts[1]))];
        let now = || [counts[0].load(Ordering::Relaxed), counts[1].load(Ordering::Relaxed)];
        ok(libc::setpriority(libc::PRIO_PROCESS, pids[1] as u32, 19));
        assert_eq!(ok(libc::getpriority(libc::PRIO_PROCESS, pids[1] as u32)), 19);
        let start = now();
        eventually(|| now()[0] > start[0] + 200_000_000);
        let gained = [now()[0] - start[0], now()[1] - start[1]];
        assert!(gained[1] < gained[0] / 4, "{gained:?}");
        for pid in pids {
            libc::kill(pid, libc::SIGKILL);
            wait(pid);
        }
    });
}

#[test]
fn a_limit_tells_how_much_less_nice_one_may_become() {
    ordinary(|| {
        set_nice(10);
        as_user(1234, || unsafe {
            fails(libc::setpriority(libc::PRIO_PROCESS, 0, 9), libc::EACCES);
            fails(libc::setpriority(libc::PRIO_PROCESS, 1, 19), libc::EPERM);
        });
        let limit = libc::rlimit { rlim_cur: 15, rlim_max: 15 };
        // SAFETY: the limit is valid. A host may deny its root CAP_SYS_RESOURCE: then the limit is what it was.
        let best = if unsafe { libc::setrlimit(libc::RLIMIT_NICE, &limit) } == 0 { 5 } else { 10 };
        as_user(1234, || unsafe {
            set_nice(best);
            fails(libc::setpriority(libc::PRIO_PROCESS, 0, best - 1), libc::EACCES);
            set_nice(100);
            assert_eq!(ok(libc::getpriority(libc::PRIO_PROCESS, 0)), 19);
        });
    });
}

#[test]
fn one_who_may_not_does_not_keep_the_others_from_it() {
    ordinary(|| unsafe {
        ok(libc::setpgid(0, 0));
        let root = child(|| libc::pause());
        as_user(1234, || {
            fails(libc::setpriority(libc::PRIO_PGRP, 0, 7), libc::EPERM);
            assert_eq!(ok(libc::getpriority(libc::PRIO_PROCESS, 0)), 7);
        });
        assert_eq!(ok(libc::getpriority(libc::PRIO_PROCESS, root as u32)), 0);
        libc::kill(root, libc::SIGKILL);
        wait(root);
    });
}

#[test]
fn leaving_a_policy_takes_what_a_better_nice_value_takes() {
    ordinary(|| {
        as_user(1234, || {
            ok(set_policy(libc::SCHED_IDLE));
            fails(set_policy(libc::SCHED_OTHER), libc::EPERM);
        });
        as_user(1234, || {
            ok(set_policy(libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK));
            fails(set_policy(libc::SCHED_BATCH), libc::EPERM);
        });
        in_child(|| unsafe {
            ok(set_policy(libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK));
            set_nice(-5);
            in_child(|| assert_eq!(ok(libc::getpriority(libc::PRIO_PROCESS, 0)), 0));
        });
        ok(set_policy(libc::SCHED_IDLE));
        ok(set_policy(libc::SCHED_OTHER));
    });
}

/// `struct sched_attr`, as Linux knows it since 5.3.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Attr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    deadline: [u64; 3],
    util: [u32; 2],
}

unsafe fn set_attr(attr: &Attr) -> libc::c_long {
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attr, 0) }
}

#[test]
fn attributes_set_policy_and_nice_value_at_once() {
    ordinary(|| unsafe {
        let mut own = Attr::default();
        let get = |to: &mut Attr, size: u32| libc::syscall(libc::SYS_sched_getattr, 0, to, size, 0);
        ok(set_attr(&Attr { size: 48, policy: 3, flags: 1, nice: 4, ..Attr::default() }));
        ok(get(&mut own, 48));
        // Newer kernels tell of a time slice besides.
        own.deadline = [0; 3];
        assert_eq!(own, Attr { size: 48, policy: 3, flags: 1, nice: 4, ..Attr::default() });
        assert_eq!(ok(libc::getpriority(libc::PRIO_PROCESS, 0)), 4);
        // Keeping the policy, then the parameters, of which that is one.
        ok(set_attr(&Attr { size: 48, flags: 8, nice: 6, ..Attr::default() }));
        ok(set_attr(&Attr { size: 48, flags: 16, nice: 9, ..Attr::default() }));
        ok(get(&mut own, 48));
        assert_eq!((own.policy, own.flags, own.nice), (3, 0, 6));
        fails(set_attr(&Attr { size: 20, ..Attr::default() }), libc::E2BIG);
        fails(set_attr(&Attr { size: 48, policy: 77, ..Attr::default() }), libc::EINVAL);
        fails(set_attr(&Attr { size: 48, flags: 0x100, ..Attr::default() }), libc::EINVAL);
        fails(set_attr(&Attr { size: 48, priority: 3, ..Attr::default() }), libc::EINVAL);
        fails(libc::syscall(libc::SYS_sched_setattr, 0, 0, 0), libc::EINVAL);
        fails(get(&mut own, 47), libc::EINVAL);
        fails(libc::syscall(libc::SYS_sched_getattr, 0x3f_ffff, &mut own, 48, 0), libc::ESRCH);
    });
}
