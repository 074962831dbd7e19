//! Moving bytes between a pipe and something else, or between two pipes, without container memory: `splice(2)`, `tee(2)`.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::{Pipe, State};
use crate::errno::{Errno, Result};
use crate::wait::Events;

impl Pipe {
    /// Shows up to `limit` of the first bytes to `f` and drops as many as it says it used: the pipe's side of a splice
    /// out of it. `Ok(0)` at the end of file (`f` is not called), `EAGAIN` when it is empty. `f` runs under the pipe's
    /// lock and must not touch a pipe.
    pub fn splice_out(&self, limit: usize, f: &mut dyn FnMut(&[&[u8]]) -> Result<usize>) -> Result<usize> {
        let mut state = self.state.lock();
        if let Some(end) = nothing_to_read(&state) {
            return end;
        }
        let was_full = state.buffer.is_full();
        let n = state.buffer.take_with(limit, f);
        let freed = was_full && !state.buffer.is_full();
        drop(state);
        if freed {
            self.queue.wake(Events::WRITE);
        }
        n
    }

    /// How many bytes [`Pipe::splice_in`] would take now. `EPIPE` without readers, `EAGAIN` when it is full.
    pub fn splice_room(&self) -> Result<usize> {
        let state = self.state.lock();
        room(&state)
    }

    /// Puts bytes in that another file gave, at most `limit`: `f` is told how much fits and returns them. Nothing is put
    /// in, and `Ok(0)` returned, when `f` has none. `f` runs under the pipe's lock and must not touch a pipe.
    pub fn splice_in(&self, limit: usize, f: &mut dyn FnMut(usize) -> Result<Vec<u8>>) -> Result<usize> {
        let mut state = self.state.lock();
        let fits = room(&state)?.min(limit);
        let mut data = f(fits)?;
        data.truncate(fits);
        let n = data.len();
        state.buffer.push(data, false);
        drop(state);
        if n > 0 {
            self.queue.wake(Events::READ);
        }
        Ok(n)
    }

    /// `tee(2)` (with `keep`) and `splice(2)` between two pipes: copies or moves up to `limit` bytes to `to`. `Ok(0)` at the
    /// end of file, `EAGAIN` when this is empty or `to` full, `EPIPE` when `to` has no readers, `EINVAL` when both are one.
    pub fn transfer(self: &Arc<Self>, to: &Arc<Pipe>, limit: usize, keep: bool) -> Result<usize> {
        if Arc::ptr_eq(self, to) {
            return Err(Errno::EINVAL);
        }
        if limit == 0 {
            return Ok(0);
        }
        let (mut source, mut target) = lock_both(self, to);
        if let Some(end) = nothing_to_read(&source) {
            return end;
        }
        room(&target)?;
        let was_full = source.buffer.is_full();
        let mut done = 0;
        for (mut data, packet) in source.buffer.copy(limit) {
            let fits = target.buffer.room();
            if fits == 0 {
                break;
            }
            data.truncate(fits);
            done += data.len();
            target.buffer.push(data, packet);
        }
        if !keep {
            source.buffer.consume(done);
        }
        let freed = was_full && !source.buffer.is_full();
        drop((source, target));
        to.queue.wake(Events::READ);
        if freed {
            self.queue.wake(Events::WRITE);
        }
        Ok(done)
    }
}

fn nothing_to_read(state: &State) -> Option<Result<usize>> {
    match (state.buffer.is_empty(), state.writers) {
        (false, _) => None,
        (true, 0) => Some(Ok(0)),
        (true, _) => Some(Err(Errno::EAGAIN)),
    }
}

fn room(state: &State) -> Result<usize> {
    if state.readers == 0 {
        return Err(Errno::EPIPE);
    }
    match state.buffer.room() {
        0 => Err(Errno::EAGAIN),
        room => Ok(room),
    }
}

/// Locks two different pipes in the order of their addresses and returns them in the order given.
fn lock_both<'a>(one: &'a Arc<Pipe>, two: &'a Arc<Pipe>) -> (MutexGuard<'a, State>, MutexGuard<'a, State>) {
    if Arc::as_ptr(one) < Arc::as_ptr(two) {
        let first = one.state.lock();
        (first, two.state.lock())
    } else {
        let first = two.state.lock();
        (one.state.lock(), first)
    }
}
