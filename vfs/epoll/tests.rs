use std::time::Instant;

use super::*;
use crate::io::SliceSink;
use crate::vfs::eventfd::EventFd;
use crate::vfs::pipe::{Pipe, PipeEnd};
use crate::wait::Parker;

const IN: u32 = Events::IN.bits();
const OUT: u32 = Events::OUT.bits();

fn event() -> Arc<OpenFile> {
    OpenFile::anonymous(Arc::new(EventFd::new(0, false)), libc::O_RDWR)
}

fn signal(file: &OpenFile) {
    file.write(&mut &1u64.to_ne_bytes()[..]).expect("no overflow");
}

fn clear(file: &OpenFile) {
    file.read(&mut SliceSink::new(&mut [0; 8])).expect("signalled");
}

fn wait(epoll: &Epoll, max: usize) -> Vec<(u32, u64)> {
    let mut found = Vec::new();
    let n = epoll.wait(max, &mut |events, data| found.push((events, data)));
    assert_eq!(n, found.len());
    found
}

fn open(epoll: &Arc<Epoll>) -> Arc<OpenFile> {
    OpenFile::anonymous(epoll.clone(), libc::O_RDWR)
}

#[test]
fn level_triggered_files_are_reported_until_they_are_not_ready() {
    let (epoll, file) = (Epoll::new(), event());
    epoll.add(3, &file, IN, 7).expect("add");
    assert_eq!(wait(&epoll, 9), []);
    signal(&file);
    assert_eq!(wait(&epoll, 9), [(IN, 7)]);
    assert_eq!(wait(&epoll, 9), [(IN, 7)]);
    clear(&file);
    assert_eq!(wait(&epoll, 9), []);
    assert_eq!(epoll.core.ready.places(), 0);
}

#[test]
fn edge_triggered_files_are_reported_once_a_change() {
    let (epoll, file) = (Epoll::new(), event());
    signal(&file);
    epoll.add(3, &file, IN | EPOLLET, 7).expect("add");
    assert_eq!(wait(&epoll, 9), [(IN, 7)], "ready when it was added");
    assert_eq!(wait(&epoll, 9), []);
    signal(&file);
    assert_eq!(wait(&epoll, 9), [(IN, 7)], "a further write is a change, though it was readable before");
}

#[test]
fn one_shot_files_are_silent_until_modified() {
    let (epoll, file) = (Epoll::new(), event());
    epoll.add(3, &file, IN | EPOLLONESHOT, 7).expect("add");
    signal(&file);
    assert_eq!(wait(&epoll, 9), [(IN, 7)]);
    signal(&file);
    assert_eq!(wait(&epoll, 9), []);
    epoll.modify(3, &file, IN | EPOLLONESHOT, 8).expect("mod");
    assert_eq!(wait(&epoll, 9), [(IN, 8)]);
}

#[test]
fn errors_are_those_of_linux() {
    let (epoll, file) = (Epoll::new(), event());
    assert_eq!(epoll.modify(3, &file, IN, 0), Err(Errno::ENOENT));
    assert_eq!(epoll.delete(3, &file), Err(Errno::ENOENT));
    epoll.add(3, &file, IN, 0).expect("add");
    assert_eq!(epoll.add(3, &file, IN, 0), Err(Errno::EEXIST));
    epoll.add(4, &file, IN, 0).expect("another descriptor for it");
    epoll.delete(3, &file).expect("del");
    assert_eq!(epoll.add(5, &open(&epoll), IN, 0), Err(Errno::EINVAL));
    assert_eq!(epoll.modify(4, &file, IN | EPOLLEXCLUSIVE, 0), Err(Errno::EINVAL));
    assert_eq!(epoll.add(6, &file, IN | EPOLLEXCLUSIVE | EPOLLONESHOT, 0), Err(Errno::EINVAL));
    assert_eq!(epoll.add(6, &open(&Epoll::new()), IN | EPOLLEXCLUSIVE, 0), Err(Errno::EINVAL));
    epoll.add(6, &file, IN | EPOLLEXCLUSIVE, 0).expect("add");
    assert_eq!(epoll.modify(6, &file, IN, 0), Err(Errno::EINVAL));
}

#[test]
fn closing_the_last_descriptor_ends_the_registration() {
    let (epoll, file) = (Epoll::new(), event());
    let object = file.object().clone();
    epoll.add(3, &file, IN, 7).expect("add");
    let again = file.clone();
    signal(&file);
    drop(file);
    assert_eq!(wait(&epoll, 9), [(IN, 7)], "a duplicate is still open");
    drop(again);
    assert_eq!(wait(&epoll, 9), []);
    assert!(epoll.watched().is_empty());
    assert!(object.wait_queue().expect("has one").is_empty());
}

#[test]
fn closing_the_epoll_leaves_nothing_with_the_files() {
    let (epoll, file) = (Epoll::new(), event());
    epoll.add(3, &file, IN, 7).expect("add");
    drop(epoll);
    assert!(file.object().wait_queue().expect("has one").is_empty());
    assert!(file.extra().lock().watchers.is_empty());
}

#[test]
fn everybody_gets_a_turn() {
    let epoll = Epoll::new();
    let files: Vec<_> = (0..5).map(|_| event()).collect();
    for (fd, file) in files.iter().enumerate() {
        epoll.add(fd as i32, file, IN, fd as u64).expect("add");
        signal(file);
    }
    let seen: Vec<u64> = (0..5).flat_map(|_| wait(&epoll, 2)).map(|(_, data)| data).collect();
    assert_eq!(seen, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
}

#[test]
fn adding_and_deleting_ready_files_leaves_no_trace() {
    let (epoll, file) = (Epoll::new(), event());
    signal(&file);
    for _ in 0..1000 {
        epoll.add(3, &file, IN, 0).expect("add");
        epoll.delete(3, &file).expect("del");
    }
    assert!(epoll.core.ready.places() <= 17, "{} places", epoll.core.ready.places());
    assert_eq!(wait(&epoll, 9), []);
    assert!(file.extra().lock().watchers.is_empty());
}

#[test]
fn an_epoll_is_ready_when_one_of_its_files_is() {
    let (inner, outer, file) = (Epoll::new(), Epoll::new(), event());
    inner.add(3, &file, IN, 1).expect("add");
    let inner_file = open(&inner);
    outer.add(4, &inner_file, IN, 2).expect("add");
    assert_eq!(wait(&outer, 9), []);
    signal(&file);
    assert_eq!(wait(&outer, 9), [(IN, 2)]);
    clear(&file);
    assert_eq!(wait(&outer, 9), []);
    assert_eq!(inner.poll(), Events::empty());
}

/// Which additions fail is what Linux 6.18 says.
#[test]
fn chains_are_bounded_and_have_no_cycles() {
    let epolls: Vec<_> = (0..8).map(|_| Epoll::new()).collect();
    let files: Vec<_> = epolls.iter().map(open).collect();
    let add = |outer: usize, inner: usize| epolls[outer].add(inner as i32, &files[inner], IN, 0);
    let up: Vec<bool> = (0..7).map(|i| add(i + 1, i).is_ok()).collect();
    assert_eq!(up, [true, true, true, true, false, true, true]);
    assert_eq!(add(0, 4), Err(Errno::ELOOP));
    epolls[1].delete(0, &files[0]).expect("del");
    epolls[6].delete(5, &files[5]).expect("del");
    assert_eq!(add(5, 4), Ok(()), "room again");

    let epolls: Vec<_> = (0..8).map(|_| Epoll::new()).collect();
    let files: Vec<_> = epolls.iter().map(open).collect();
    let add = |outer: usize, inner: usize| epolls[outer].add(inner as i32, &files[inner], IN, 0);
    let down: Vec<bool> = (1..8).rev().map(|i| add(i - 1, i).is_ok()).collect();
    assert_eq!(down, [true, true, true, true, false, true, true]);
    assert_eq!(add(7, 6), Err(Errno::ELOOP));
}

#[test]
fn an_exclusive_wake_up_reaches_one_waiting_epoll() {
    let file = event();
    let epolls: Vec<_> = (0..3).map(|_| Epoll::new()).collect();
    let parkers: Vec<_> = (0..3).map(|_| Arc::new(Parker::new())).collect();
    for (epoll, parker) in epolls.iter().zip(&parkers) {
        epoll.add(3, &file, IN | EPOLLEXCLUSIVE, 0).expect("add");
        epoll.core.queue.add(parker.clone(), Events::IN, false);
    }
    signal(&file);
    let woken = parkers.iter().filter(|parker| parker.park(Some(Instant::now()))).count();
    assert_eq!(woken, 1);
}

/// Threads that sleep in one epoll, as the task layer registers them.
fn sleepers(epoll: &Epoll, count: usize) -> Vec<Arc<Parker>> {
    let parkers: Vec<_> = (0..count).map(|_| Arc::new(Parker::new())).collect();
    for parker in &parkers {
        epoll.core.queue.add(parker.clone(), Events::READ, true);
    }
    parkers
}

fn woken(parkers: &[Arc<Parker>]) -> usize {
    parkers.iter().filter(|parker| parker.has_token()).count()
}

#[test]
fn one_event_wakes_one_of_several_threads() {
    let epoll = Epoll::new();
    let files: Vec<_> = (0..2).map(|_| event()).collect();
    for (fd, file) in files.iter().enumerate() {
        epoll.add(fd as i32, file, IN | EPOLLET, fd as u64).expect("add");
    }
    let parkers = sleepers(&epoll, 3);
    signal(&files[0]);
    assert_eq!(woken(&parkers), 1);
    signal(&files[1]);
    assert_eq!(woken(&parkers), 2, "another event, another thread");
    // Who takes one of two wakes the next, who leaves nothing wakes nobody.
    parkers.iter().for_each(|parker| parker.reset());
    assert_eq!(wait(&epoll, 1).len(), 1);
    assert_eq!(woken(&parkers), 1);
    parkers.iter().for_each(|parker| parker.reset());
    assert_eq!(wait(&epoll, 1).len(), 1);
    assert_eq!(woken(&parkers), 0);
}

#[test]
fn a_level_that_stays_wakes_the_next_thread() {
    let (epoll, file) = (Epoll::new(), event());
    epoll.add(3, &file, IN, 0).expect("add");
    let parkers = sleepers(&epoll, 2);
    signal(&file);
    assert_eq!(woken(&parkers), 1);
    assert_eq!(wait(&epoll, 1).len(), 1);
    assert_eq!(woken(&parkers), 2);
}

#[test]
fn an_epoll_whose_thread_is_awake_leaves_an_exclusive_wake_up_to_others() {
    let file = event();
    let epolls: Vec<_> = (0..2).map(|_| Epoll::new()).collect();
    let parkers: Vec<_> = epolls.iter().flat_map(|epoll| sleepers(epoll, 1)).collect();
    for epoll in &epolls {
        epoll.add(3, &file, IN | EPOLLEXCLUSIVE, 0).expect("add");
    }
    signal(&file);
    assert_eq!(woken(&parkers), 1);
    signal(&file);
    assert_eq!(woken(&parkers), 2);
}

#[test]
fn both_ends_of_a_pipe_are_told_apart() {
    let epoll = Epoll::new();
    let (reader, writer): (Arc<PipeEnd>, Arc<PipeEnd>) = Pipe::create((0, 0), 0);
    let reader = OpenFile::anonymous(reader, libc::O_RDONLY);
    let writer = OpenFile::anonymous(writer, libc::O_WRONLY);
    epoll.add(3, &reader, IN, 3).expect("add");
    epoll.add(4, &writer, OUT, 4).expect("add");
    assert_eq!(wait(&epoll, 9), [(OUT, 4)]);
    writer.write(&mut &b"x"[..]).expect("room");
    let mut both = wait(&epoll, 9);
    both.sort();
    assert_eq!(both, [(IN, 3), (OUT, 4)]);
    drop(writer);
    assert_eq!(wait(&epoll, 9), [(IN | Events::HUP.bits(), 3)]);
}

#[test]
fn threads_do_not_miss_or_double_one_shot_events() {
    let (epoll, file) = (Epoll::new(), event());
    epoll.add(3, &file, IN | EPOLLONESHOT, 0).expect("add");
    let rounds = 2000;
    let reports = AtomicUsize::new(0);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    epoll.wait(1, &mut |_, _| {
                        reports.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }
        for round in 1..=rounds {
            signal(&file);
            while reports.load(Ordering::Relaxed) < round {
                std::hint::spin_loop();
            }
            clear(&file);
            epoll.modify(3, &file, IN | EPOLLONESHOT, 0).expect("mod");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(reports.into_inner(), rounds);
}
