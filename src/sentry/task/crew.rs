//! Sentry threads, each of which answers for one task at a time.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::errno::{Errno, Result};
use crate::platform::placement;

/// Host memory for a sentry thread's stack. Only what is touched is used.
const STACK: usize = 512 << 10;

/// How many of them wait for work at most.
const IDLE: usize = 16;

/// What a sentry thread does, from the beginning of a task to its end.
pub type Work = Box<dyn FnOnce() + Send>;

/// A thread that waits for work.
#[derive(Default)]
struct Seat {
    work: Mutex<Option<Work>>,
    given: Condvar,
}

/// Those that wait, last come first. A leaf lock.
static WAITING: Mutex<Vec<Arc<Seat>>> = Mutex::new(Vec::new());

/// Has a sentry thread do this. `EAGAIN` when the host gives none.
///
/// To make one costs some 30 us, most of it waking it on another CPU and setting up its stack: one that has done its work
/// waits for more.
pub fn employ(work: Work) -> Result<()> {
    if let Some(seat) = WAITING.lock().pop() {
        *seat.work.lock() = Some(work);
        seat.given.notify_one();
        return Ok(());
    }
    let main = || {
        work();
        go_on();
    };
    std::thread::Builder::new().name("task".into()).stack_size(STACK).spawn(main).map(drop).map_err(|_| Errno::EAGAIN)
}

/// Waits for work and does it, for as long as there are not too many who do.
fn go_on() {
    let seat = Arc::new(Seat::default());
    loop {
        {
            let mut waiting = WAITING.lock();
            if waiting.len() >= IDLE || !placement::is_reusable() {
                return;
            }
            waiting.push(seat.clone());
        }
        let work = {
            let mut work = seat.work.lock();
            loop {
                match work.take() {
                    Some(work) => break work,
                    None => seat.given.wait(&mut work),
                }
            }
        };
        work();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn work_is_done_by_few_threads_however_much_there_is() {
        let (done, outcomes) = mpsc::channel();
        let mut threads = std::collections::HashSet::new();
        for turn in 0..200 {
            let done = done.clone();
            employ(Box::new(move || done.send((turn, std::thread::current().id())).unwrap())).unwrap();
            let (number, thread) = outcomes.recv().unwrap();
            assert_eq!(number, turn);
            threads.insert(thread);
        }
        // Who has just answered may not be back in the seat yet.
        assert!(threads.len() < 100, "{}", threads.len());
    }

    #[test]
    fn all_work_at_once() {
        let (done, outcomes) = mpsc::channel();
        let barrier = Arc::new(std::sync::Barrier::new(IDLE * 2));
        for _ in 0..IDLE * 2 {
            let (done, barrier) = (done.clone(), barrier.clone());
            employ(Box::new(move || {
                barrier.wait();
                done.send(()).unwrap();
            }))
            .unwrap();
        }
        drop(done);
        assert_eq!(outcomes.iter().count(), IDLE * 2);
    }
}
