//! Whether interfaces take part in IPv6: `net.ipv6.conf.*.disable_ipv6`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};

use super::iface::is_link_local;

/// What IPv6 there is on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum State {
    /// The addresses that it was attached with.
    On = 0,
    /// None.
    Off = 1,
    /// It was off, and is on again: as on Linux with the addresses that it gives itself alone.
    Again = 2,
}

/// An interface's.
#[derive(Debug)]
pub struct V6Switch(AtomicU8);

impl V6Switch {
    /// Of an interface that is attached.
    pub fn new(disabled: bool) -> V6Switch {
        V6Switch(AtomicU8::new(if disabled { State::Off } else { State::On } as u8))
    }

    fn state(&self) -> State {
        match self.0.load(Ordering::Relaxed) {
            0 => State::On,
            1 => State::Off,
            _ => State::Again,
        }
    }

    /// Whether it takes no part.
    pub fn is_off(&self) -> bool {
        self.state() == State::Off
    }

    /// Changes that.
    pub fn set_off(&self, off: bool) {
        let next = match (self.state(), off) {
            (_, true) => State::Off,
            (State::Off, false) => State::Again,
            (state, false) => state,
        };
        self.0.store(next as u8, Ordering::Relaxed);
    }

    /// Whether the interface has an address that it was attached with, or a route to it or by way of it.
    pub fn allows(&self, addr: IpAddr) -> bool {
        let IpAddr::V6(v6) = addr else { return true };
        match self.state() {
            State::On => true,
            State::Off => false,
            State::Again => v6.is_loopback() || is_link_local(addr),
        }
    }
}

/// What was set by name, before there was an interface of that name.
#[derive(Debug, Default)]
pub struct V6Settings {
    /// `all`: what was last said to all.
    pub all: bool,
    /// `default`: of interfaces to come.
    pub default: bool,
    /// Of interfaces to come, by name.
    pub named: HashMap<String, bool>,
}

impl V6Settings {
    /// What an interface of that name begins with.
    pub fn of(&self, name: &str) -> bool {
        self.named.get(name).copied().unwrap_or(self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_what_an_interface_gives_itself() {
        let switch = V6Switch::new(false);
        let addrs: [IpAddr; 4] = ["10.0.0.1", "fd00::1", "fe80::1", "::1"].map(|addr| addr.parse().unwrap());
        let allowed = || addrs.map(|addr| switch.allows(addr));
        assert_eq!(allowed(), [true; 4]);
        switch.set_off(false);
        assert_eq!(allowed(), [true; 4]);
        switch.set_off(true);
        assert_eq!(allowed(), [true, false, false, false]);
        switch.set_off(false);
        assert_eq!(allowed(), [true, false, true, true]);
    }
}
