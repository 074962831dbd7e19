//! What of a network namespace can be set through `/proc/sys/net` and `linux.sysctl`.

use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// The settings of a stack.
pub struct Settings {
    /// `net.ipv4.ip_unprivileged_port_start`: ports from here on need no `CAP_NET_BIND_SERVICE`.
    port_start: AtomicU32,
    /// `net.ipv4.ping_group_range`: whose members may make ping sockets; none where the first is above the last.
    ping_groups: Mutex<(u32, u32)>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { port_start: AtomicU32::new(1024), ping_groups: Mutex::new((0, i32::MAX as u32)) }
    }
}

impl Settings {
    /// The first port that anybody may bind to.
    pub fn port_start(&self) -> u32 {
        self.port_start.load(Ordering::Relaxed)
    }

    /// Sets it: up to 65536, which no port reaches.
    pub fn set_port_start(&self, port: u32) {
        self.port_start.store(port, Ordering::Relaxed);
    }

    /// Whether binding to `port` needs `CAP_NET_BIND_SERVICE`.
    pub fn is_privileged(&self, port: u16) -> bool {
        port != 0 && u32::from(port) < self.port_start()
    }

    /// The first and the last group whose members may make ping sockets.
    pub fn ping_groups(&self) -> (u32, u32) {
        *self.ping_groups.lock()
    }

    /// Sets them.
    pub fn set_ping_groups(&self, first: u32, last: u32) {
        *self.ping_groups.lock() = (first, last);
    }

    /// Whether a member of one of `groups` may make a ping socket.
    pub fn may_ping(&self, mut groups: impl Iterator<Item = u32>) -> bool {
        let (first, last) = self.ping_groups();
        groups.any(|group| (first..=last).contains(&group))
    }
}
