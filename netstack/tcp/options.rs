//! Options of TCP sockets: `tcp(7)`, and `TCP_INFO`.

use std::time::Duration;

use super::conn::Conn;
use super::{Phase, TcpSocket};
use crate::errno::{Errno, Result};
use crate::netstack::options::IpOptions;
use crate::netstack::stack::settings::{Number, Settings};
use smoltcp::socket::tcp::{CongestionControl, State as Machine};

/// What a connection's own options are.
#[derive(Clone)]
pub struct TcpOptions {
    /// `TCP_NODELAY`.
    pub no_delay: bool,
    /// `TCP_CORK`.
    pub cork: bool,
    /// `TCP_QUICKACK`, when set.
    pub quick_ack: Option<bool>,
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
    /// `TCP_CONGESTION`.
    pub congestion: CongestionControl,
    /// `TCP_SYNCNT`.
    pub syn_count: u32,
    /// How long data may stay unacknowledged, without `TCP_USER_TIMEOUT`.
    pub retransmit_timeout: Duration,
    /// `TCP_LINGER2`: how long the peer's end is waited for after `close`; `None` not at all.
    pub linger2: Option<Duration>,
    /// `TCP_WINDOW_CLAMP`, bytes; 0 for none.
    pub window_clamp: u32,
    /// `TCP_NOTSENT_LOWAT`, bytes; 0 for none.
    pub not_sent_low_water: u32,
    /// `TCP_FASTOPEN`: how many connections may wait that came with data. As `tcp_fastopen` is 0, none comes so.
    pub fast_open: i32,
    /// `SO_RCVLOWAT`.
    pub low_water: usize,
    /// IP's options.
    pub ip: IpOptions,
    /// `SO_RCVBUF`, when set.
    pub receive_ring: Option<usize>,
    /// `SO_SNDBUF`, when set.
    pub send_ring: Option<usize>,
}

/// `TCP_FIN_TIMEOUT_MAX`, seconds.
const MAX_FIN_TIMEOUT: i32 = 120;
/// `SOCK_MIN_RCVBUF / 2`.
const MIN_WINDOW_CLAMP: u32 = 1152;
/// From `linux/tcp.h`.
const TCP_FASTOPEN_CONNECT: i32 = 30;

/// Congestion controls by name. The first is what connections start with: it sends what the peer's window allows.
const CONGESTION: [(&str, CongestionControl); 3] =
    [("none", CongestionControl::None), ("reno", CongestionControl::Reno), ("cubic", CongestionControl::Cubic)];

/// The names of the congestion controls that there are, the default first: `tcp_available_congestion_control`.
pub fn congestion_controls() -> impl Iterator<Item = &'static str> {
    CONGESTION.iter().map(|(name, _)| *name)
}

impl TcpOptions {
    /// What `settings` have new sockets start with.
    pub fn new(settings: &Settings) -> TcpOptions {
        TcpOptions {
            no_delay: false,
            cork: false,
            quick_ack: None,
            defer_accept: false,
            defer_seconds: 0,
            keep_alive: false,
            keep_idle: settings.get(Number::KeepaliveTime),
            keep_interval: settings.get(Number::KeepaliveInterval),
            keep_count: settings.get(Number::KeepaliveProbes),
            user_timeout: None,
            max_segment: None,
            congestion: CONGESTION[0].1,
            syn_count: settings.get(Number::SynRetries),
            linger2: Some(settings.seconds(Number::FinTimeout)),
            retransmit_timeout: settings.retransmit_timeout(),
            window_clamp: 0,
            not_sent_low_water: 0,
            fast_open: 0,
            low_water: 1,
            ip: IpOptions::default(),
            receive_ring: None,
            send_ring: None,
        }
    }

    /// How long a connection is tried to be made: the time of `TCP_SYNCNT` retransmissions.
    pub fn connect_timeout(&self) -> Duration {
        let all = retry_time(self.syn_count);
        self.user_timeout.map_or(all, |limit| limit.min(all))
    }
}

/// How long it takes to send a SYN and `retries` more, and to wait for the answer to the last: each after twice the time of
/// that before, of a second to begin with and two minutes at most.
pub fn retry_time(retries: u32) -> Duration {
    Duration::from_secs((0..=retries).map(|n| if n < 7 { 1u64 << n } else { 120 }).sum())
}

/// What `TCP_DEFER_ACCEPT` makes of a time: that of as many retransmissions as it takes, `secs_to_retrans`.
fn deferred(seconds: i32) -> i32 {
    let mut period = 0;
    let mut wait = 1;
    while period < seconds {
        period += wait;
        wait = (wait * 2).min(120);
    }
    period
}

impl TcpSocket {
    pub(super) fn tcp_option(&self, name: i32) -> Result<Vec<u8>> {
        let options = self.options.lock();
        let tcp = &options.tcp;
        let value = match name {
            libc::TCP_NODELAY => tcp.no_delay.into(),
            libc::TCP_CORK => tcp.cork.into(),
            libc::TCP_QUICKACK => tcp.quick_ack.unwrap_or(true).into(),
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
            libc::TCP_CONGESTION => {
                let found = CONGESTION.iter().find(|(_, control)| *control == tcp.congestion);
                let mut name = found.map_or("", |(name, _)| name).as_bytes().to_vec();
                name.resize(16, 0);
                return Ok(name);
            }
            libc::TCP_SYNCNT => tcp.syn_count as i32,
            libc::TCP_LINGER2 => tcp.linger2.map_or(-1, |time| time.as_secs() as i32),
            libc::TCP_WINDOW_CLAMP => tcp.window_clamp as i32,
            libc::TCP_NOTSENT_LOWAT => tcp.not_sent_low_water as i32,
            libc::TCP_FASTOPEN => tcp.fast_open,
            TCP_FASTOPEN_CONNECT => 0,
            libc::TCP_INFO => {
                drop(options);
                return Ok(self.info());
            }
            name => {
                log::debug!("getsockopt: TCP option {name} is not known");
                return Err(Errno::ENOPROTOOPT);
            }
        };
        Ok(value.to_ne_bytes().to_vec())
    }

    pub(super) fn set_tcp_option(&self, name: i32, value: &[u8]) -> Result<()> {
        if name == libc::TCP_CONGESTION {
            if value.is_empty() {
                return Err(Errno::EINVAL);
            }
            let asked = value.split(|&byte| byte == 0).next().unwrap_or_default();
            let found = CONGESTION.iter().find(|(name, _)| name.as_bytes() == asked);
            self.options.lock().tcp.congestion = found.ok_or(Errno::ENOENT)?.1;
            self.push_options();
            return Ok(());
        }
        // Only what has no connection can be told how to make one.
        if name == libc::TCP_FASTOPEN
            && !matches!(*self.phase.lock(), Phase::Idle | Phase::Failed | Phase::Listening(_))
        {
            return Err(Errno::EINVAL);
        }
        let int = value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL)?;
        let within = |most: i32| if (1..=most).contains(&int) { Ok(int as u32) } else { Err(Errno::EINVAL) };
        let fin_timeout = self.stack.settings().seconds(Number::FinTimeout);
        {
            let mut options = self.options.lock();
            let tcp = &mut options.tcp;
            match name {
                libc::TCP_NODELAY => tcp.no_delay = int != 0,
                libc::TCP_CORK => tcp.cork = int != 0,
                libc::TCP_QUICKACK => tcp.quick_ack = Some(int != 0),
                libc::TCP_DEFER_ACCEPT => (tcp.defer_accept, tcp.defer_seconds) = (int > 0, deferred(int)),
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
                libc::TCP_SYNCNT => tcp.syn_count = within(127)?,
                libc::TCP_LINGER2 => {
                    tcp.linger2 = match int {
                        ..0 => None,
                        0 => Some(fin_timeout),
                        seconds => Some(Duration::from_secs(seconds.min(MAX_FIN_TIMEOUT) as u64)),
                    };
                }
                libc::TCP_WINDOW_CLAMP if int == 0 => tcp.window_clamp = 0,
                libc::TCP_WINDOW_CLAMP => tcp.window_clamp = (int as u32).max(MIN_WINDOW_CLAMP),
                libc::TCP_NOTSENT_LOWAT => tcp.not_sent_low_water = int as u32,
                libc::TCP_FASTOPEN if int < 0 => return Err(Errno::EINVAL),
                libc::TCP_FASTOPEN => tcp.fast_open = int,
                TCP_FASTOPEN_CONNECT => {
                    // `tcp_fastopen` is 0.
                    return Err(if (0..=1).contains(&int) { Errno::EOPNOTSUPP } else { Errno::EINVAL });
                }
                name => {
                    log::debug!("setsockopt: TCP option {name} is not known");
                    return Err(Errno::ENOPROTOOPT);
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
            Phase::Wire { conn, .. } => conn.set_options(tcp),
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

    /// `struct tcp_info` of `linux/tcp.h`. What is not known here is 0: smoltcp tells neither its congestion window nor its
    /// retransmission timer.
    fn info(&self) -> Vec<u8> {
        let mut info = vec![0u8; 248];
        let mut put32 = |at: usize, value: usize| {
            info[at..at + 4].copy_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_ne_bytes());
        };
        let mut bytes = (0, 0);
        let mut state = 7;
        // The acknowledgement timeout, us.
        put32(12, 40_000);
        match &*self.phase.lock() {
            Phase::Wire { conn, .. } => {
                let conn = conn.lock();
                let (window, _, mss) = conn.sizes();
                (state, bytes) = (tcp_state(conn.tcp_phase()), conn.bytes);
                put32(16, mss.into());
                put32(20, mss.into());
                put32(24, conn.unsent() / usize::from(mss).max(1));
                put32(68, conn.meter.smoothed_us() as usize);
                put32(72, conn.meter.variation_us() as usize);
                put32(84, mss.into());
                put32(96, window);
                put32(100, conn.meter.resent_segments as usize);
                put32(144, conn.not_sent());
                put32(136, conn.segments.1 as usize);
                put32(140, conn.segments.0 as usize);
            }
            Phase::Local { end, .. } => {
                (state, bytes) = (end.tcp_state(), end.bytes());
                put32(16, 32_768);
                put32(20, 32_768);
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
