//! Options of UNIX sockets: `unix(7)` and those of `socket(7)` that mean something here.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::side::Phase;
use super::{Cred, UnixSocket};
use crate::errno::{Errno, Result};
use crate::netstack::SocketOption;
use crate::netstack::options::{timeout, timeval};
use crate::sentry::namespaces::Pid;

/// Switches that are kept and read back, and have no effect here as they have none on Linux.
const SWITCHES: [i32; 8] = [
    libc::SO_REUSEADDR,
    libc::SO_KEEPALIVE,
    libc::SO_BROADCAST,
    libc::SO_DONTROUTE,
    libc::SO_OOBINLINE,
    libc::SO_REUSEPORT,
    libc::SO_DEBUG,
    libc::SO_NO_CHECK,
];

/// What options set.
pub(super) struct Options {
    pub receive_timeout: Option<Duration>,
    pub send_timeout: Option<Duration>,
    receive_buf: usize,
    /// `SO_RCVLOWAT`: what a read that blocks waits for; `poll` looks at one byte alone, as on Linux.
    pub low_water: i32,
    priority: i32,
    linger: [u8; 8],
    /// Bit n is [`SWITCHES`]`[n]`.
    switches: u32,
}

impl Options {
    /// Those of a new socket, with `SO_RCVBUF`.
    pub fn new(receive_buf: usize) -> Options {
        Options {
            receive_timeout: None,
            send_timeout: None,
            receive_buf,
            low_water: 1,
            priority: 0,
            linger: [0; 8],
            switches: 0,
        }
    }
}

impl UnixSocket {
    pub(super) fn option(&self, option: SocketOption) -> Result<Vec<u8>> {
        if option.level != libc::SOL_SOCKET {
            return Err(Errno::EOPNOTSUPP);
        }
        let options = self.options.lock();
        let value = match option.name {
            libc::SO_ERROR => self.side().take_error().map_or(0, Errno::raw),
            libc::SO_ACCEPTCONN => i32::from(matches!(self.side().state.lock().phase, Phase::Listening { .. })),
            libc::SO_PASSCRED => i32::from(self.pass_cred.load(Ordering::Relaxed)),
            libc::SO_SNDBUF => self.side().send_buf.load(Ordering::Relaxed) as i32,
            libc::SO_RCVBUF => options.receive_buf as i32,
            libc::SO_RCVLOWAT => options.low_water,
            libc::SO_SNDLOWAT => 1,
            libc::SO_PRIORITY => options.priority,
            libc::SO_LINGER => return Ok(options.linger.to_vec()),
            libc::SO_RCVTIMEO => return Ok(timeval(options.receive_timeout)),
            libc::SO_SNDTIMEO => return Ok(timeval(options.send_timeout)),
            name => {
                let bit = SWITCHES.iter().position(|&switch| switch == name).ok_or(Errno::ENOPROTOOPT)?;
                (options.switches >> bit & 1) as i32
            }
        };
        Ok(value.to_ne_bytes().to_vec())
    }

    pub(super) fn change_option(&self, option: SocketOption, value: &[u8]) -> Result<()> {
        if option.level != libc::SOL_SOCKET {
            return Err(Errno::EOPNOTSUPP);
        }
        let int = i32::from_ne_bytes(*value.first_chunk().ok_or(Errno::EINVAL)?);
        let mut options = self.options.lock();
        match option.name {
            libc::SO_PASSCRED => self.pass_cred.store(int != 0, Ordering::Relaxed),
            libc::SO_SNDBUF | libc::SO_SNDBUFFORCE => {
                let size = self.ns.settings.buffer_size(true, int, option.name == libc::SO_SNDBUFFORCE);
                self.side().send_buf.store(size, Ordering::Relaxed);
                drop(options);
                self.side().queue.wake(super::WRITE);
            }
            libc::SO_RCVBUF | libc::SO_RCVBUFFORCE => {
                options.receive_buf = self.ns.settings.buffer_size(false, int, option.name == libc::SO_RCVBUFFORCE);
            }
            libc::SO_RCVLOWAT => options.low_water = if int < 0 { i32::MAX } else { int.max(1) },
            libc::SO_PRIORITY => options.priority = int,
            libc::SO_LINGER => options.linger = *value.first_chunk().ok_or(Errno::EINVAL)?,
            libc::SO_RCVTIMEO => options.receive_timeout = timeout(value)?,
            libc::SO_SNDTIMEO => options.send_timeout = timeout(value)?,
            libc::SO_ERROR | libc::SO_ACCEPTCONN | libc::SO_PEERCRED | libc::SO_SNDLOWAT => {
                return Err(Errno::ENOPROTOOPT);
            }
            name => {
                let bit = SWITCHES.iter().position(|&switch| switch == name).ok_or(Errno::ENOPROTOOPT)?;
                options.switches = options.switches & !(1 << bit) | u32::from(int != 0) << bit;
            }
        }
        Ok(())
    }

    /// `SO_PEERCRED`: who connected, or whom it connected to.
    pub fn peer_cred(&self) -> Cred {
        let nobody = Cred { pid: Pid::default(), uid: u32::MAX, gid: u32::MAX };
        self.side().state.lock().peer_cred.unwrap_or(nobody)
    }
}
