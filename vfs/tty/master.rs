//! The master: what a terminal emulator holds.

use std::any::Any;
use std::sync::Arc;

use super::devpts::Instance;
use super::ldisc::{Effects, Packet};
use super::{Tty, ioctl};
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::timer::clock;
use crate::vfs::file::{File, IoctlMemory};
use crate::wait::{Events, WaitQueue};

/// An open master.
pub struct Master {
    tty: Arc<Tty>,
    instance: Arc<Instance>,
}

impl Master {
    pub(super) fn new(tty: Arc<Tty>, instance: Arc<Instance>) -> Master {
        Master { tty, instance }
    }

    /// The pair.
    pub fn tty(&self) -> &Arc<Tty> {
        &self.tty
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.instance.release(self.tty.index);
        self.tty.state.lock().master_closed = true;
        self.tty.hang_up();
    }
}

impl File for Master {
    /// What the slave wrote and the echo. In packet mode one byte comes first: 0, or alone with what happened. `EIO` when
    /// the slave was open and is not now.
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        if sink.room() == 0 {
            return Ok(0);
        }
        let mut state = self.tty.state.lock();
        if state.packet && !state.packet_events.is_empty() {
            let event = std::mem::take(&mut state.packet_events);
            return sink.put(&[event.bits()]);
        }
        if state.disc.output.is_empty() {
            return Err(if state.was_open && state.slaves == 0 { Errno::EIO } else { Errno::EAGAIN });
        }
        let packet = state.packet;
        let n = if packet {
            // One copy for the mark and the data.
            state.disc.output.read(sink.room() - 1, &mut |bytes| {
                let marked = [&[Packet::empty().bits()], bytes].concat();
                sink.put(&marked).map(|n| n.saturating_sub(1))
            })? + 1
        } else {
            state.disc.output.read(sink.room(), &mut |bytes| sink.put(bytes))?
        };
        drop(state);
        self.tty.slave_queue.wake(Events::WRITE);
        Ok(n)
    }

    /// Typed input.
    fn write(&self, _offset: u64, source: &mut dyn Source) -> Result<usize> {
        let mut fx = Effects::default();
        let mut done = 0;
        let mut state = self.tty.state.lock();
        while source.left() > 0 {
            let room = state.disc.input_room();
            if room == 0 {
                break;
            }
            match source.take_vec(room) {
                Ok(bytes) => {
                    done += bytes.len();
                    state.disc.receive(&bytes, &mut fx);
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        if done > 0 {
            state.last_input = clock::monotonic();
        }
        let empty = source.left() == 0;
        drop(state);
        self.tty.carry_out(fx);
        if done == 0 && !empty { Err(Errno::EAGAIN) } else { Ok(done) }
    }

    fn poll(&self) -> Events {
        let state = self.tty.state.lock();
        let mut events = Events::empty();
        if state.packet && !state.packet_events.is_empty() {
            events |= Events::READ | Events::PRI;
        }
        if !state.disc.output.is_empty() {
            events |= Events::READ;
        }
        if state.disc.input_room() > 0 {
            events |= Events::WRITE;
        }
        if state.was_open && state.slaves == 0 {
            events |= Events::HUP;
        }
        events
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.tty.master_queue)
    }

    fn ioctl(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        ioctl::master(&self.tty, mem, cmd, arg)
    }

    fn async_events(&self) -> Option<Events> {
        Some(Events::READ)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
