//! The slave: what programs have as their terminal.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{State, Tty, ioctl};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::timer::{TimerId, TimerTarget, clock};
use crate::vfs::file::{File, IoctlMemory};
use crate::wait::{Events, WaitQueue};

/// The most bytes that one step of a write post-processes.
const STEP: usize = 2048;

/// An open slave.
pub struct Slave {
    tty: Arc<Tty>,
    /// How often the terminal had been hung up when this was opened.
    hang_ups: u64,
    nonblocking: AtomicBool,
    /// A reader's time limit: `VTIME`. Lock order: after the terminal's state.
    limit: Mutex<Option<Limit>>,
}

/// When a read that began earlier is to return with what there is.
struct Limit {
    deadline: u64,
    timer: TimerId,
}

impl Slave {
    pub(super) fn new(tty: Arc<Tty>, hang_ups: u64, flags: i32) -> Slave {
        let nonblocking = AtomicBool::new(flags & libc::O_NONBLOCK != 0);
        Slave { tty, hang_ups, nonblocking, limit: Mutex::default() }
    }

    /// The pair.
    pub fn tty(&self) -> &Arc<Tty> {
        &self.tty
    }

    fn is_dead(&self, state: &State) -> bool {
        self.hang_ups != state.hang_ups
    }

    /// Whether a read of `room` bytes is to return now, when lines are not edited: `termios(3)`, "Canonical and
    /// noncanonical mode". Otherwise a timer is armed where one is needed.
    fn enough(&self, state: &State, room: usize) -> bool {
        let chars = &state.disc.termios().chars;
        let (min, time) = (usize::from(chars[libc::VMIN]), u64::from(chars[libc::VTIME]) * 100_000_000);
        let held = state.disc.readable_bytes();
        if self.nonblocking.load(Ordering::Relaxed) {
            return held > 0;
        }
        match (min, time) {
            (0, 0) => true,
            (0, _) => held > 0 || self.is_late(None, time),
            (_, 0) => held >= min.min(room),
            _ => held >= min.min(room) || (held > 0 && self.is_late(Some(state.last_input), time)),
        }
    }

    /// Whether `time` has passed since `start`, or since this was first asked. If not, the queue is woken when it has.
    fn is_late(&self, start: Option<u64>, time: u64) -> bool {
        let now = clock::monotonic();
        let mut limit = self.limit.lock();
        let deadline = match (start, &*limit) {
            (Some(start), _) => start.saturating_add(time),
            (None, Some(limit)) => limit.deadline,
            (None, None) => now.saturating_add(time),
        };
        if now >= deadline {
            return true;
        }
        if limit.as_ref().is_none_or(|limit| limit.deadline != deadline) {
            let timer = self.tty.terminals.timers.add(deadline, Arc::new(Wake(Arc::downgrade(&self.tty))));
            if let Some(old) = limit.replace(Limit { deadline, timer }) {
                self.tty.terminals.timers.cancel(old.timer);
            }
        }
        false
    }

    /// A read has ended: the next has its own limit.
    fn end_limit(&self) {
        if let Some(limit) = self.limit.lock().take() {
            self.tty.terminals.timers.cancel(limit.timer);
        }
    }
}

/// Wakes readers to look at the time.
struct Wake(Weak<Tty>);

impl TimerTarget for Wake {
    fn expired(&self, _id: TimerId) {
        if let Some(tty) = self.0.upgrade() {
            tty.slave_queue.wake(Events::READ);
        }
    }
}

impl Drop for Slave {
    fn drop(&mut self) {
        self.end_limit();
        let mut state = self.tty.state.lock();
        if !self.is_dead(&state) {
            state.slaves -= 1;
            if state.slaves == 0 {
                state.exclusive = false; // settings and unread input stay for whoever opens it next
            }
        }
        let last = state.slaves == 0;
        drop(state);
        if last {
            self.tty.wake_all();
        }
    }
}

impl File for Slave {
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        if self.is_dead(&self.tty.state.lock()) {
            return Ok(0);
        }
        self.tty.check_foreground(libc::SIGTTIN)?;
        if sink.room() == 0 {
            return Ok(0);
        }
        let mut state = self.tty.state.lock();
        if self.is_dead(&state) {
            return Ok(0);
        }
        let canonical = state.disc.termios().canonical();
        if !canonical && !self.enough(&state, sink.room()) {
            return Err(Errno::EAGAIN);
        }
        let room = sink.room();
        let read = state.disc.read(room, &mut |bytes| sink.put(bytes));
        drop(state);
        self.end_limit();
        self.tty.master_queue.wake(Events::WRITE);
        match read {
            Some(n) => n,
            None if canonical || self.nonblocking.load(Ordering::Relaxed) => Err(Errno::EAGAIN),
            None => Ok(0), // VMIN is 0, and the time over
        }
    }

    fn write(&self, _offset: u64, source: &mut dyn Source) -> Result<usize> {
        if self.is_dead(&self.tty.state.lock()) {
            return Err(Errno::EIO);
        }
        if self.tty.state.lock().disc.termios().l(libc::TOSTOP) {
            self.tty.check_foreground(libc::SIGTTOU)?;
        }
        let mut done = 0;
        let mut state = self.tty.state.lock();
        let result = loop {
            if self.is_dead(&state) {
                break Err(Errno::EIO);
            }
            let room = if state.disc.is_stopped() { 0 } else { state.disc.output.room().min(STEP) };
            if source.left() == 0 {
                break Ok(());
            }
            if room == 0 {
                break Err(Errno::EAGAIN);
            }
            match source.take_vec(room) {
                Ok(bytes) => {
                    done += bytes.len();
                    let termios = *state.disc.termios();
                    state.disc.output.write(&termios, &bytes);
                }
                Err(error) => break Err(error),
            }
        };
        drop(state);
        if done > 0 {
            self.tty.master_queue.wake(Events::READ);
            return Ok(done);
        }
        result.map(|()| 0)
    }

    fn poll(&self) -> Events {
        let state = self.tty.state.lock();
        if self.is_dead(&state) {
            return Events::READ | Events::WRITE | Events::ERR | Events::HUP;
        }
        let chars = &state.disc.termios().chars;
        let least = if chars[libc::VTIME] == 0 { usize::from(chars[libc::VMIN]) } else { 1 };
        let mut events = Events::empty();
        events.set(Events::READ, state.disc.is_readable(least));
        events.set(Events::WRITE, !state.disc.is_stopped() && state.disc.output.room() > 0);
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.tty.slave_queue)
    }

    fn ioctl(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        if self.is_dead(&self.tty.state.lock()) {
            return Err(if u64::from(cmd) == libc::TIOCSPGRP { Errno::ENOTTY } else { Errno::EIO });
        }
        ioctl::slave(&self.tty, mem, cmd, arg)
    }

    fn async_events(&self) -> Option<Events> {
        Some(Events::READ)
    }

    fn flags_changed(&self, flags: i32) -> Result<()> {
        self.nonblocking.store(flags & libc::O_NONBLOCK != 0, Ordering::Relaxed);
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
