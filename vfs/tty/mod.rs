//! Terminals: pseudoterminal pairs (`pty(7)`) and the file system that names them.
//!
//! ```text
//! Master (ptmx) <──> Tty: state { LineDiscipline, window, packet mode } <──> Slave (/dev/pts/N)
//!                     └ job: session and foreground group ──> JobControl (the sentry) and Terminals
//! ```
//!
//! Lock order: `state` and `job` are never held together, and no call into [`JobControl`] is made under either; `job` > the
//! table of controlling terminals.

mod devpts;
mod ioctl;
mod job;
mod ldisc;
mod master;
mod output;
mod slave;
mod termios;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::Mutex;

pub use self::devpts::{DevPts, DevPtsOptions};
pub use self::job::{Caller, JobControl, Terminals};
pub use self::ldisc::{Effects, LineDiscipline, Packet};
pub use self::master::Master;
pub use self::slave::Slave;
pub use self::termios::Termios;

use self::job::Job;
use crate::errno::{Errno, Result};
use crate::vfs::file::File;
use crate::wait::{Events, WaitQueue};

/// `makedev(136, index)`: the device number of a slave.
pub fn slave_rdev(index: u32) -> u64 {
    libc::makedev(136 + (index >> 8), index & 0xff)
}

/// A pair of master and slave.
pub struct Tty {
    index: u32,
    terminals: Arc<Terminals>,
    state: Mutex<State>,
    job: Mutex<Job>,
    master_queue: WaitQueue,
    slave_queue: WaitQueue,
}

#[derive(Default)]
struct State {
    disc: LineDiscipline,
    /// Rows, columns and their pixels.
    window: [u16; 4],
    /// `TIOCPKT`.
    packet: bool,
    /// Events of packet mode that the master has not read.
    packet_events: Packet,
    /// `TIOCSPTLCK`: the slave cannot be opened.
    locked: bool,
    /// `TIOCEXCL`: nobody else may open the slave.
    exclusive: bool,
    /// Open slaves that are not hung up.
    slaves: usize,
    /// Whether the slave was open once: from then on the master sees when it is not.
    was_open: bool,
    /// How often it was hung up: slaves opened before that are dead.
    hang_ups: u64,
    master_closed: bool,
    /// When input last came, on the monotonic clock: for `VTIME` between bytes.
    last_input: u64,
}

impl Tty {
    fn new(index: u32, terminals: Arc<Terminals>) -> Arc<Tty> {
        Arc::new(Tty {
            index,
            terminals,
            state: Mutex::new(State { locked: true, ..State::default() }),
            job: Mutex::default(),
            master_queue: WaitQueue::new(),
            slave_queue: WaitQueue::new(),
        })
    }

    /// The number in `/dev/pts`.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Opens the slave: `/dev/pts/N`, `TIOCGPTPEER`, or `/dev/tty` of its session. `EIO` (locked, or the master is closed),
    /// `EBUSY` (exclusive).
    pub fn open_slave(self: &Arc<Self>, flags: i32) -> Result<Arc<dyn File>> {
        let mut state = self.state.lock();
        if state.locked || state.master_closed {
            return Err(Errno::EIO);
        }
        let privileged = || self.terminals.processes.caller().is_some_and(|caller| caller.privileged);
        if state.exclusive {
            drop(state);
            if !privileged() {
                return Err(Errno::EBUSY);
            }
            state = self.state.lock();
        }
        state.slaves += 1;
        state.was_open = true;
        let slave = Slave::new(self.clone(), state.hang_ups, flags);
        drop(state);
        if flags & libc::O_NOCTTY == 0 && flags & libc::O_ACCMODE != libc::O_WRONLY {
            self.become_controlling();
        }
        Ok(Arc::new(slave))
    }

    /// Makes everything that is open of the slave dead, and tells the session's leader.
    pub fn hang_up(&self) {
        let mut state = self.state.lock();
        state.hang_ups += 1;
        state.slaves = 0;
        state.exclusive = false;
        state.disc.flush_input();
        drop(state);
        self.abandon_session();
        self.wake_all();
    }

    fn wake_all(&self) {
        let all = Events::READ | Events::WRITE | Events::ALWAYS | Events::PRI;
        self.master_queue.wake(all);
        self.slave_queue.wake(all);
    }

    /// Carries out what the line discipline asks for. Without locks.
    fn carry_out(&self, fx: Effects) {
        for signal in fx.signals {
            self.signal_foreground(signal);
        }
        if !fx.packet.is_empty() {
            self.note_packet(fx.packet);
        }
        if fx.readable {
            self.slave_queue.wake(Events::READ);
        }
        if fx.output {
            self.master_queue.wake(Events::READ);
            self.slave_queue.wake(Events::WRITE);
        }
    }

    /// Notes packet-mode events for the master, if it wants them.
    fn note_packet(&self, events: Packet) {
        let mut state = self.state.lock();
        if !state.packet {
            return;
        }
        state.packet_events = state.packet_events.then(events);
        drop(state);
        self.master_queue.wake(Events::READ | Events::PRI);
    }
}
