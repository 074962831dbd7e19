//! Several threads in `epoll_wait`: each event reaches somebody, and not everybody.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::{ptr, thread};

use libc::{c_int, pid_t};

use crate::common::*;

const IN: u32 = libc::EPOLLIN as u32;
const HUP: u32 = libc::EPOLLHUP as u32;
const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;

fn watch(epoll: c_int, fd: c_int, events: u32) {
    let mut event = libc::epoll_event { events, u64: 0 };
    // SAFETY: a valid event.
    ok(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) });
}

fn new_epoll() -> c_int {
    // SAFETY: no memory is involved.
    ok(unsafe { libc::epoll_create1(0) })
}

/// One `epoll_wait` for one event: its bits, 0 for none, -1 for EINTR.
fn wait_one(epoll: c_int, timeout: c_int) -> i64 {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: room for one event.
    match unsafe { libc::epoll_wait(epoll, &mut event, 1, timeout) } {
        1 => i64::from(event.events),
        0 => 0,
        _ => {
            assert_eq!(errno(), libc::EINTR);
            -1
        }
    }
}

fn gettid() -> pid_t {
    // SAFETY: no memory is involved.
    unsafe { libc::gettid() }
}

extern "C" fn nothing(_: c_int) {}

/// Bytes one at a time for threads some of which look at the clock, and all of which are interrupted now and then.
#[test]
fn no_event_is_lost_among_threads() {
    isolated(|| unsafe {
        const BYTES: usize = 3000;
        handle(libc::SIGUSR1, nothing, 0);
        let (reader, writer) = pipe_with(libc::O_NONBLOCK);
        let epoll = new_epoll();
        watch(epoll, reader, IN);
        let taken = AtomicUsize::new(0);
        let tids = [const { AtomicI32::new(0) }; 4];
        thread::scope(|scope| {
            for (index, tid) in tids.iter().enumerate() {
                let taken = &taken;
                scope.spawn(move || {
                    tid.store(gettid(), Ordering::SeqCst);
                    loop {
                        let events = wait_one(epoll, if index % 2 == 0 { -1 } else { 1 });
                        if events > 0 && events as u32 & IN != 0 {
                            taken.fetch_add(read(reader, &mut [0]).max(0) as usize, Ordering::SeqCst);
                        } else if events > 0 && events as u32 & HUP != 0 {
                            break;
                        }
                    }
                });
            }
            eventually(|| tids.iter().all(|tid| tid.load(Ordering::SeqCst) != 0));
            for sent in 1..=BYTES {
                assert_eq!(write(writer, b"x"), 1);
                if sent % 7 == 0 {
                    let tid = tids[sent % tids.len()].load(Ordering::SeqCst);
                    ok(libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGUSR1));
                }
                if sent % 3 == 0 {
                    eventually(|| taken.load(Ordering::SeqCst) == sent);
                }
            }
            eventually(|| taken.load(Ordering::SeqCst) == BYTES);
            close(writer);
        });
    });
}

/// A connection for each: of two epolls with a sleeper each, one event wakes one, and a second event the other.
#[test]
fn exclusive_epolls_share_events_out() {
    isolated(|| unsafe {
        let event = ok(libc::eventfd(0, libc::EFD_NONBLOCK));
        let woken = AtomicUsize::new(0);
        let tids = [const { AtomicI32::new(0) }; 2];
        thread::scope(|scope| {
            for tid in &tids {
                let woken = &woken;
                scope.spawn(move || {
                    let epoll = new_epoll();
                    watch(epoll, event, IN | EXCLUSIVE);
                    tid.store(gettid(), Ordering::SeqCst);
                    assert_eq!(wait_one(epoll, -1), i64::from(IN));
                    woken.fetch_add(1, Ordering::SeqCst);
                });
            }
            eventually(|| tids.iter().all(|tid| tid.load(Ordering::SeqCst) != 0));
            tids.iter().for_each(|tid| until_asleep(tid.load(Ordering::SeqCst)));
            for count in 1..=2 {
                assert_eq!(write(event, &1u64.to_ne_bytes()), 8);
                eventually(|| woken.load(Ordering::SeqCst) >= count);
                assert_eq!(woken.load(Ordering::SeqCst), count);
            }
        });
    });
}

/// Whoever leaves something ready wakes the next: one event that stays reaches all.
#[test]
fn a_level_reaches_all_threads() {
    isolated(|| unsafe {
        let event = ok(libc::eventfd(0, 0));
        let epoll = new_epoll();
        watch(epoll, event, IN);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(move || assert_eq!(wait_one(epoll, -1), i64::from(IN)));
            }
            assert_eq!(write(event, &1u64.to_ne_bytes()), 8);
        });
        ok(libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, event, ptr::null_mut()));
    });
}
