//! Waiting: the one place where a task sleeps.
//!
//! A wait has a condition (an attempt that gives `EAGAIN` until it succeeds), queues that announce that it may have changed,
//! a deadline, and ends early for a signal. Sleeping and being woken costs a host futex call each, and 25 us when the waker
//! is on another CPU; an attempt that succeeds at once costs nothing here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::errno::{Errno, Result};
use crate::platform::placement;
use crate::sentry::task::{Attention, Current, Task, TaskState};
use crate::vfs::epoll::Epoll;
use crate::vfs::file::File;
use crate::wait::{Events, WaitKey, WaitQueue};

/// How long a task that sleeps looks for its wake-up before it gives its CPU away.
const PATIENCE: Duration = Duration::from_micros(40);

/// Looks between two glances at the clock.
const LOOKS: u32 = 64;

/// Whether looking for a wake-up pays: it did lately. What nobody answers at once (a terminal, a timer) is looked for less and
/// less often.
#[derive(Default)]
pub struct Looks {
    /// Sleeps until the next look.
    wait: AtomicU32,
    /// How many there are to be between two.
    gap: AtomicU32,
}

impl Looks {
    const LONGEST_GAP: u32 = 256;

    /// Only the task's own thread asks.
    fn is_worth_it(&self) -> bool {
        let wait = self.wait.load(Ordering::Relaxed);
        if wait > 0 {
            self.wait.store(wait - 1, Ordering::Relaxed);
        }
        wait == 0
    }

    fn count(&self, seen: bool) {
        let gap = self.gap.load(Ordering::Relaxed);
        let gap = if seen { gap / 4 } else { (gap * 2 + 1).min(Looks::LONGEST_GAP) };
        self.gap.store(gap, Ordering::Relaxed);
        self.wait.store(gap, Ordering::Relaxed);
    }
}

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Something was announced, perhaps.
    Event,
    /// The deadline has passed.
    Deadline,
    /// There is a signal to handle, or the thread must stop or end.
    Signal,
}

/// The queues a task is registered on, until dropped.
pub struct Waits<'a> {
    task: &'a Arc<Task>,
    queues: Vec<(&'a WaitQueue, WaitKey)>,
    /// The queue and the events for which no other exclusive waiter is woken.
    alone: Option<(&'a WaitQueue, Events)>,
}

impl<'a> Waits<'a> {
    /// On no queue yet. From here on no wake-up is missed.
    pub fn new(task: &'a Arc<Task>) -> Waits<'a> {
        task.parker.reset();
        Waits { task, queues: Vec::new(), alone: None }
    }

    /// Registers on `queue` for `events`.
    pub fn add(&mut self, queue: &'a WaitQueue, events: Events, exclusive: bool) {
        if exclusive {
            self.alone = Some((queue, events));
        }
        self.queues.push((queue, queue.add(self.task.parker.clone(), events, exclusive)));
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        for (queue, key) in self.queues.drain(..) {
            queue.remove(key);
        }
        // A wake-up that came after the last look was for whoever waits next.
        if let Some((queue, events)) = self.alone.filter(|_| self.task.parker.has_token()) {
            queue.pass_on(events);
        }
    }
}

impl Task {
    /// Whether a wait must end: there is a signal to handle, or the thread must stop or end.
    pub fn interrupted(&self) -> bool {
        !self.attention().difference(Attention::FREEZE).is_empty()
    }

    /// Sleeps until something is announced, `deadline` passes or a signal comes. Only on the task's own thread.
    pub fn sleep(&self, deadline: Option<Instant>) -> Woken {
        self.sleep_with(deadline, || self.parker.park(deadline))
    }

    /// As [`Task::sleep`], for a task that waits for packets among other things: it waits on the network device meanwhile,
    /// if no other task does, so that a packet for it wakes no other thread.
    pub fn sleep_for_packets(&self, deadline: Option<Instant>) -> Woken {
        self.sleep_with(deadline, || self.kernel.net.park(&self.parker, deadline))
    }

    fn sleep_with(&self, deadline: Option<Instant>, park: impl FnOnce() -> bool) -> Woken {
        if self.interrupted() {
            return Woken::Signal;
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Woken::Deadline;
        }
        self.clocks.slept();
        self.set_state(TaskState::Sleeping);
        if self.looks.is_worth_it() && placement::is_alone() {
            let seen = self.look();
            self.looks.count(seen);
            if seen {
                // Takes the token, which is there.
                self.parker.park(None);
                self.set_state(TaskState::Running);
                return if self.interrupted() { Woken::Signal } else { Woken::Event };
            }
        }
        let blocking = placement::blocking();
        let woken = park();
        drop(blocking);
        self.set_state(TaskState::Running);
        match woken {
            _ if self.interrupted() => Woken::Signal,
            true => Woken::Event,
            false => Woken::Deadline,
        }
    }

    /// Looks for a wake-up for as long as being woken on another CPU costs.
    fn look(&self) -> bool {
        let begun = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if self.parker.has_token() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if begun.elapsed() > PATIENCE {
                return false;
            }
        }
    }

    /// Makes `attempt` until it gives something other than `EAGAIN`, looking again whenever `queue` announces any of
    /// `events`. `EAGAIN` when `deadline` passes first, `ERESTARTSYS` for a signal.
    pub fn wait_on<T>(
        self: &Arc<Self>,
        queue: &WaitQueue,
        events: Events,
        deadline: Option<Instant>,
        attempt: &mut dyn FnMut() -> Result<T>,
    ) -> Result<T> {
        self.wait_in(queue, events, deadline, attempt, Task::sleep, false)
    }

    fn wait_in<T>(
        self: &Arc<Self>,
        queue: &WaitQueue,
        events: Events,
        deadline: Option<Instant>,
        attempt: &mut dyn FnMut() -> Result<T>,
        sleep: fn(&Task, Option<Instant>) -> Woken,
        exclusive: bool,
    ) -> Result<T> {
        let mut waits = Waits::new(self);
        waits.add(queue, events, exclusive);
        let mut last = false;
        loop {
            match attempt() {
                Err(Errno::EAGAIN) => {}
                done => return done,
            }
            match sleep(self, deadline) {
                // What an exclusive waiter is told of, nobody else is: it forgets no wake-up.
                Woken::Event if exclusive => {}
                Woken::Event => self.parker.reset(),
                // The wake-up may have come together with the end.
                Woken::Deadline | Woken::Signal if exclusive && !std::mem::replace(&mut last, true) => continue,
                Woken::Deadline => return Err(Errno::EAGAIN),
                Woken::Signal => return Err(Errno::ERESTARTSYS),
            }
        }
    }

    /// Sleeps until `deadline` or a signal: `Ok` at the deadline, `ERESTARTSYS` for a signal.
    pub fn sleep_until(self: &Arc<Self>, deadline: Option<Instant>) -> Result<()> {
        let _waits = Waits::new(self);
        loop {
            match self.sleep(deadline) {
                Woken::Event => self.parker.reset(),
                Woken::Deadline => return Ok(()),
                Woken::Signal => return Err(Errno::ERESTARTSYS),
            }
        }
    }
}

impl Current {
    /// Makes `attempt` on a file; while it gives `EAGAIN`, and unless `nonblocking`, waits for `events` of the file. The
    /// first attempt is made before anything is registered: the common case costs nothing.
    pub fn wait_file<T>(
        &self,
        file: &dyn File,
        events: Events,
        nonblocking: bool,
        deadline: Option<Instant>,
        attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        self.wait_for_file(file, events, nonblocking, deadline, attempt, false)
    }

    /// As [`Current::wait_file`], for what only one of several waiters can have, like a connection to accept: one wake-up
    /// wakes one of them.
    pub fn wait_file_alone<T>(
        &self,
        file: &dyn File,
        events: Events,
        nonblocking: bool,
        deadline: Option<Instant>,
        attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        self.wait_for_file(file, events, nonblocking, deadline, attempt, true)
    }

    fn wait_for_file<T>(
        &self,
        file: &dyn File,
        events: Events,
        nonblocking: bool,
        deadline: Option<Instant>,
        mut attempt: impl FnMut() -> Result<T>,
        exclusive: bool,
    ) -> Result<T> {
        match attempt() {
            Err(Errno::EAGAIN) if !nonblocking => {}
            done => return done,
        }
        // A ready item of an epoll is for one of the threads that wait.
        let is_epoll = file.as_any().is::<Epoll>();
        let exclusive = exclusive || is_epoll;
        match file.wait_queue() {
            Some(queue) if file.as_socket().is_some() || is_epoll => {
                self.task.wait_in(queue, events, deadline, &mut attempt, Task::sleep_for_packets, exclusive)
            }
            Some(queue) => self.task.wait_in(queue, events, deadline, &mut attempt, Task::sleep, exclusive),
            None => Err(Errno::EAGAIN),
        }
    }
}
