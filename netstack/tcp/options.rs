//! Options of TCP sockets: `tcp(7)`, and `TCP_INFO`.

use std::time::Duration;

use super::conn::Conn;
use super::{Phase, TcpSocket};
use crate::errno::{Errno, Result};
use smoltcp::socket::tcp::State as Machine;

/// What a connection's own options are.
#[derive(Clone)]
pub struct TcpOptions {
    /// `TCP_NODELAY`.
    pub no_delay: bool,
    /// `TCP_CORK`.
    pub cork: bool,
    /// `TCP_QUICKACK`.
    pub quick_ack: bool,
    /// `TCP_DEFER_ACCEPT`.
    pub defer_accept: bool,
    /// Its value.
    pub defer_seconds: i32,
    /// `SO_KEEPALIVE`.
    pub keep_alive: bool,
    /// `TCP_KEEPIDLE`, seconds.
    pub keep_idle: u32,
    /// `TCP_KEEPINTVL`, seconds.
    pub keep_interval: u32,
    /// `TCP_KEEPCNT`.
    pub keep_count: u32,
    /// `TCP_USER_TIMEOUT`.
    pub user_timeout: Option<Duration>,
    /// `TCP_MAXSEG`.
    pub max_segment: Option<u16>,
    /// `IP_TTL`.
    pub ttl: u8,
    /// `IP_TOS`.
    pub tos: u8,
    /// `SO_RCVBUF`, when set.
    pub receive_ring: Option<usize>,
    /// `SO_SNDBUF`, when set.
    pub send_ring: Option<usize>,
    /// `TCP_LINGER2`, `TCP_SYNCNT`, `TCP_WINDOW_CLAMP`, `TCP_NOTSENT_LOWAT`, `TCP_FASTOPEN`: kept and read back.
    pub kept: [i32; 5],
}

impl Default for TcpOptions {
    fn default() -> TcpOptions {
        TcpOptions {
            no_delay: false,
            cork: false,
            quick_ack: false,
            defer_accept: false,
            defer_seconds: 0,
            keep_alive: false,
            keep_idle: 7200,
            keep_interval: 75,
            keep_count: 9,
            user_timeout: None,
            max_segment: None,
            ttl: 64,
            tos: 0,
            receive_ring: None,
            send_ring: None,
            kept: [60, 6, 0, 0, 0],
        }
    }
}

/// In the order of [`TcpOptions::kept`].
const KEPT: [i32; 5] =
    [libc::TCP_LINGER2, libc::TCP_SYNCNT, libc::TCP_WINDOW_CLAMP, libc::TCP_NOTSENT_LOWAT, libc::TCP_FASTOPEN];

/// The one congestion control there is: smoltcp's sends what the window allows.
const CONGESTION: &[u8] = b"cubic";

impl TcpSocket {
    pub(super) fn tcp_option(&self, name: i32) -> Result<Vec<u8>> {
        let options = self.options.lock();
        let tcp = &options.tcp;
        let value = match name {
            libc::TCP_NODELAY => tcp.no_delay.into(),
            libc::TCP_CORK => tcp.cork.into(),
            libc::TCP_QUICKACK => 1,
            libc::TCP_DEFER_ACCEPT => tcp.defer_seconds,
            libc::TCP_KEEPIDLE => tcp.keep_idle as i32,
            libc::TCP_KEEPINTVL => tcp.keep_interval as i32,
            libc::TCP_KEEPCNT => tcp.keep_count as i32,
            libc::TCP_USER_TIMEOUT => tcp.user_timeout.map_or(0, |limit| limit.as_millis() as i32),
            libc::TCP_MAXSEG => {
                let set = tcp.max_segment;
                drop(options);
                i32::from(set.unwrap_or(self.with_wire(|conn| conn.lock().sizes().2).unwrap_or(536)))
            }
            libc::TCP_CONGESTION => return Ok([CONGESTION, &[0; 11]].concat()),
            libc::TCP_INFO => {
                drop(options);
                return Ok(self.info());
            }
            name => {
                let at = KEPT.iter().position(|&kept| kept == name).ok_or(Errno::ENOPROTOOPT)?;
                tcp.kept[at]
            }
        };
        Ok(value.to_ne_bytes().to_vec())
    }

    pub(super) fn set_tcp_option(&self, name: i32, value: &[u8]) -> Result<()> {
        if name == libc::TCP_CONGESTION {
            let asked = value.split(|&byte| byte == 0).next().unwrap_or_default();
            return if asked == CONGESTION { Ok(()) } else { Err(Errno::ENOENT) };
        }
        let int = value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL)?;
        let within = |most: i32| if (1..=most).contains(&int) { Ok(int as u32) } else { Err(Errno::EINVAL) };
        {
            let mut options = self.options.lock();
            let tcp = &mut options.tcp;
            match name {
                libc::TCP_NODELAY => tcp.no_delay = int != 0,
                libc::TCP_CORK => tcp.cork = int != 0,
                libc::TCP_QUICKACK => tcp.quick_ack = int != 0,
                libc::TCP_DEFER_ACCEPT => (tcp.defer_accept, tcp.defer_seconds) = (int > 0, int.max(0)),
                libc::TCP_KEEPIDLE => tcp.keep_idle = within(32_767)?,
                libc::TCP_KEEPINTVL => tcp.keep_interval = within(32_767)?,
                libc::TCP_KEEPCNT => tcp.keep_count = within(127)?,
                libc::TCP_USER_TIMEOUT => {
                    let millis = u64::try_from(int).map_err(|_| Errno::EINVAL)?;
                    tcp.user_timeout = (millis > 0).then(|| Duration::from_millis(millis));
                }
                libc::TCP_MAXSEG => {
                    let most = u16::try_from(int).ok().filter(|&most| most == 0 || (88..=32_767).contains(&most));
                    tcp.max_segment = most.map(|most| (most > 0).then_some(most)).ok_or(Errno::EINVAL)?;
                }
                name => {
                    let Some(at) = KEPT.iter().position(|&kept| kept == name) else {
                        log::debug!("setsockopt: TCP option {name} is not known");
                        return Err(Errno::ENOPROTOOPT);
                    };
                    tcp.kept[at] = int;
                }
            }
        }
        self.push_options();
        Ok(())
    }

    /// Lets a connection or a listener know of the socket's options.
    pub(super) fn push_options(&self) {
        let tcp = self.options.lock().for_connection();
        match &*self.phase.lock() {
            Phase::Wire { conn, .. } => {
                let mut state = conn.lock();
                state.options = tcp;
                conn.step(&mut state, |state| state.apply_options());
            }
            Phase::Listening(listener) => *listener.options.lock() = tcp,
            Phase::Local { end, .. } => {
                if let Some(limit) = tcp.send_ring {
                    end.set_limit(limit);
                }
            }
            Phase::Idle | Phase::Failed | Phase::Waiting(_) => {}
        }
    }

    fn with_wire<R>(&self, work: impl FnOnce(&Conn) -> R) -> Option<R> {
        let conn = match &*self.phase.lock() {
            Phase::Wire { conn, .. } => conn.clone(),
            _ => return None,
        };
        Some(work(&conn))
    }

    /// `struct tcp_info` of `linux/tcp.h`.
    fn info(&self) -> Vec<u8> {
        let mut info = vec![0u8; 248];
        let mut put32 = |at: usize, value: usize| {
            info[at..at + 4].copy_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_ne_bytes());
        };
        let mut bytes = (0, 0);
        let mut state = 7;
        // Retransmission timeout, acknowledgement timeout (us), segment sizes.
        put32(8, 200_000);
        put32(12, 40_000);
        match &*self.phase.lock() {
            Phase::Wire { conn, .. } => {
                let conn = conn.lock();
                let (window, _, mss) = conn.sizes();
                (state, bytes) = (tcp_state(conn.tcp_phase()), conn.bytes);
                put32(16, mss.into());
                put32(20, mss.into());
                put32(24, conn.unsent() / usize::from(mss).max(1));
                put32(68, 1000);
                put32(80, 10);
                put32(84, mss.into());
                put32(96, window);
                put32(136, conn.segments.1 as usize);
                put32(140, conn.segments.0 as usize);
            }
            Phase::Local { end, .. } => {
                (state, bytes) = (end.tcp_state(), end.bytes());
                put32(16, 32_768);
                put32(20, 32_768);
                put32(68, 10);
                put32(80, 10);
                put32(84, 32_768);
                put32(96, 65_536);
            }
            Phase::Listening(listener) => {
                state = 10;
                let (ready, backlog) = listener.waiting();
                put32(24, ready); // unacked: the queue's length
                put32(28, backlog); // sacked: the backlog
            }
            Phase::Idle | Phase::Failed | Phase::Waiting(_) => {}
        }
        info[0] = state;
        info[120..128].copy_from_slice(&bytes.1.to_ne_bytes());
        info[128..136].copy_from_slice(&bytes.0.to_ne_bytes());
        info
    }
}

/// Linux's number for a state.
pub fn tcp_state(state: Machine) -> u8 {
    match state {
        Machine::Established => 1,
        Machine::SynSent => 2,
        Machine::SynReceived => 3,
        Machine::FinWait1 => 4,
        Machine::FinWait2 => 5,
        Machine::TimeWait => 6,
        Machine::Closed => 7,
        Machine::CloseWait => 8,
        Machine::LastAck => 9,
        Machine::Listen => 10,
        Machine::Closing => 11,
    }
}
