//! Port numbers: who is bound to which, `bind(2)` conflicts, and free ones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Weak;

use parking_lot::Mutex;

use super::Stack;
use crate::errno::{Errno, Result};

/// TCP's and UDP's ports are apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a socket is bound to, and on what terms it shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// `None` for all addresses.
    pub addr: Option<IpAddr>,
    /// Takes IPv4.
    pub v4: bool,
    /// Takes IPv6.
    pub v6: bool,
    /// `SO_REUSEADDR`.
    pub reuse_addr: bool,
    /// `SO_REUSEPORT`.
    pub reuse_port: bool,
    /// Owner: reuse of ports is within one user.
    pub uid: u32,
    /// A TCP listener.
    pub listening: bool,
    /// `SO_BINDTODEVICE`: an interface's index.
    pub device: Option<u32>,
}

impl Binding {
    fn overlaps(&self, other: &Binding) -> bool {
        if self.device.is_some() && other.device.is_some() && self.device != other.device {
            return false;
        }
        match (self.addr, other.addr) {
            (Some(one), Some(two)) => one == two,
            _ => (self.v4 && other.v4) || (self.v6 && other.v6),
        }
    }

    fn conflicts(&self, other: &Binding, protocol: Protocol) -> bool {
        if !self.overlaps(other) {
            return false;
        }
        let listening = protocol == Protocol::Tcp && (self.listening || other.listening);
        let share_addr = self.reuse_addr && other.reuse_addr && !listening;
        let share_port = self.reuse_port && other.reuse_port && self.uid == other.uid;
        !share_addr && !share_port
    }

    /// Whether it takes packets to `addr`.
    pub fn takes(&self, addr: IpAddr) -> bool {
        match self.addr {
            Some(own) => own == addr,
            None => {
                if addr.is_ipv4() {
                    self.v4
                } else {
                    self.v6
                }
            }
        }
    }
}

type Bound = HashMap<u16, Vec<(u64, Binding)>>;

#[derive(Default)]
struct State {
    tcp: Bound,
    udp: Bound,
    next_id: u64,
}

impl State {
    fn of(&mut self, protocol: Protocol) -> &mut Bound {
        match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
        }
    }

    fn is_free(&mut self, protocol: Protocol, port: u16, binding: &Binding) -> bool {
        let holders = self.of(protocol).get(&port);
        holders.is_none_or(|all| !all.iter().any(|(_, held)| held.conflicts(binding, protocol)))
    }
}

/// The ports in use. Leaf lock.
#[derive(Default)]
pub struct Ports(Mutex<State>);

/// The right to a port; gone with its owner.
pub struct Lease {
    stack: Weak<Stack>,
    protocol: Protocol,
    id: u64,
    /// The port.
    pub port: u16,
    /// What was bound.
    pub binding: Binding,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(stack) = self.stack.upgrade() else { return };
        let mut state = stack.ports.0.lock();
        let bound = state.of(self.protocol);
        if let Some(all) = bound.get_mut(&self.port) {
            all.retain(|(id, _)| *id != self.id);
            if all.is_empty() {
                bound.remove(&self.port);
            }
        }
    }
}

impl Stack {
    /// Binds to `port`, or with 0 to a free one. `EADDRINUSE`.
    pub fn lease(&self, protocol: Protocol, port: u16, binding: Binding) -> Result<Lease> {
        self.lease_where(protocol, port, binding, |_| true)
    }

    /// As [`Stack::lease`]; a free port must also satisfy `fits`. `EADDRNOTAVAIL` when there is none.
    pub fn lease_where(
        &self,
        protocol: Protocol,
        port: u16,
        binding: Binding,
        fits: impl Fn(u16) -> bool,
    ) -> Result<Lease> {
        let mut state = self.ports.0.lock();
        let port = if port != 0 {
            if !state.is_free(protocol, port, &binding) {
                return Err(Errno::EADDRINUSE);
            }
            port
        } else {
            // A free port is nobody else's, whatever sharing is allowed.
            let alone = Binding { reuse_addr: false, reuse_port: false, ..binding };
            let ports = self.settings.ports();
            let (low, count) = (u32::from(*ports.start()), u32::from(ports.end() - ports.start()) + 1);
            let start = (super::random_u64() % u64::from(count)) as u32;
            let candidates = (0..count).map(|n| (low + (start + n) % count) as u16);
            let open = candidates.filter(|&port| !self.settings.is_reserved(port));
            let mut free = open.filter(|&port| state.is_free(protocol, port, &alone) && fits(port));
            free.next().ok_or(Errno::EADDRINUSE)?
        };
        let id = state.next_id;
        state.next_id += 1;
        state.of(protocol).entry(port).or_default().push((id, binding));
        Ok(Lease { stack: self.me.clone(), protocol, id, port, binding })
    }

    /// Binds what has a lease to another device, or to none: `SO_BINDTODEVICE` after `bind(2)`. As on Linux nobody else who has
    /// the port is asked.
    pub fn rebind(&self, lease: &Lease, device: Option<u32>) {
        let mut state = self.ports.0.lock();
        let all = state.of(lease.protocol).get_mut(&lease.port);
        if let Some((_, held)) = all.and_then(|all| all.iter_mut().find(|(id, _)| *id == lease.id)) {
            held.device = device;
        }
    }

    /// Changes the terms of a lease. `EADDRINUSE` when others do not allow them.
    pub fn renew(&self, lease: &mut Lease, binding: Binding) -> Result<()> {
        let mut state = self.ports.0.lock();
        let protocol = lease.protocol;
        let all = state.of(protocol).entry(lease.port).or_default();
        if all.iter().any(|(id, held)| *id != lease.id && held.conflicts(&binding, protocol)) {
            return Err(Errno::EADDRINUSE);
        }
        if let Some((_, held)) = all.iter_mut().find(|(id, _)| *id == lease.id) {
            *held = binding;
        }
        lease.binding = binding;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netstack::stack::Stack;

    const ANY: Binding = Binding {
        addr: None,
        v4: true,
        v6: false,
        reuse_addr: false,
        reuse_port: false,
        uid: 0,
        listening: false,
        device: None,
    };

    #[test]
    fn conflicts_are_those_of_linux() {
        let stack = Stack::new(&Default::default(), None, crate::timer::TimerQueue::new());
        let local = Binding { addr: Some("127.0.0.1".parse().unwrap()), ..ANY };
        let first = stack.lease(Protocol::Tcp, 80, ANY).unwrap();
        let refused = |binding| stack.lease(Protocol::Tcp, 80, binding).err();
        assert_eq!(refused(ANY), Some(Errno::EADDRINUSE));
        assert_eq!(refused(local), Some(Errno::EADDRINUSE), "all addresses include that one");
        assert_eq!(refused(Binding { v4: false, v6: true, ..ANY }), None, "another family");
        assert_eq!(
            refused(Binding { device: Some(1), ..ANY }),
            Some(Errno::EADDRINUSE),
            "all devices include that one"
        );
        assert!(stack.lease(Protocol::Udp, 80, ANY).is_ok(), "another protocol");
        drop(first);
        let on_lo = stack.lease(Protocol::Tcp, 80, Binding { device: Some(1), ..ANY }).unwrap();
        assert_eq!(refused(Binding { device: Some(2), ..ANY }), None, "another device");
        stack.rebind(&on_lo, None);
        assert_eq!(refused(Binding { device: Some(2), ..ANY }), Some(Errno::EADDRINUSE), "all devices again");
        stack.rebind(&on_lo, Some(3));
        assert_eq!(refused(Binding { device: Some(2), ..ANY }), None, "another device, chosen later");
        drop(on_lo);
        let reusing = Binding { reuse_addr: true, ..ANY };
        let mut first = stack.lease(Protocol::Tcp, 80, reusing).unwrap();
        assert_eq!(refused(ANY), Some(Errno::EADDRINUSE), "both must want to share");
        assert_eq!(refused(reusing), None);
        stack.renew(&mut first, Binding { listening: true, ..reusing }).unwrap();
        assert_eq!(refused(reusing), Some(Errno::EADDRINUSE), "not beside a listener");
        drop(first);
        let shared = Binding { reuse_port: true, ..ANY };
        let _first = stack.lease(Protocol::Tcp, 80, Binding { listening: true, ..shared }).unwrap();
        assert_eq!(refused(Binding { listening: true, ..shared }), None);
        assert_eq!(refused(Binding { uid: 7, ..shared }), Some(Errno::EADDRINUSE), "of another user");
    }

    #[test]
    fn free_ports_end() {
        let stack = Stack::new(&Default::default(), None, crate::timer::TimerQueue::new());
        stack.settings().set_ports(40_000, 41_000).unwrap();
        stack.settings().set_reserved_ports("40000,40500-40509").unwrap();
        let leases: Vec<_> = (0..990).map(|_| stack.lease(Protocol::Tcp, 0, ANY).unwrap()).collect();
        assert!(leases.iter().all(|lease| (40_001..=41_000).contains(&lease.port)));
        assert_eq!(stack.lease(Protocol::Tcp, 0, ANY).err(), Some(Errno::EADDRINUSE));
    }
}
