//! Multicast groups: which sockets are in which, and on which interface. `ip(7)`, `ipv6(7)`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use parking_lot::RwLock;

use crate::errno::{Errno, Result};
use crate::netstack::stack::Interfaces;

/// How many groups one socket is in: `/proc/sys/net/ipv4/igmp_max_memberships`.
const MAX_GROUPS: usize = 20;

/// A group, and the index of the interface that it is on.
pub type Membership = (IpAddr, u32);

/// All memberships of a stack's sockets, each with the number of its sockets: what is sent to a group that nobody is in comes
/// to none of them. Leaf lock.
#[derive(Default)]
pub struct Groups(RwLock<HashMap<Membership, usize>>);

impl Groups {
    /// Whether any socket is in it.
    pub fn has(&self, membership: &Membership) -> bool {
        self.0.read().contains_key(membership)
    }

    /// Enters one for a socket that is in `own`. `EADDRINUSE` when it is in that already, `ENOBUFS` when in too many.
    pub fn join(&self, own: &mut Vec<Membership>, membership: Membership) -> Result<()> {
        if own.contains(&membership) {
            return Err(Errno::EADDRINUSE);
        }
        if own.len() >= MAX_GROUPS {
            return Err(Errno::ENOBUFS);
        }
        own.push(membership);
        *self.0.write().entry(membership).or_default() += 1;
        Ok(())
    }

    /// Takes a socket out of the first group of its own that `wanted` says. `EADDRNOTAVAIL` when there is none.
    pub fn leave(&self, own: &mut Vec<Membership>, wanted: impl Fn(&Membership) -> bool) -> Result<()> {
        let at = own.iter().position(wanted).ok_or(Errno::EADDRNOTAVAIL)?;
        let membership = own.swap_remove(at);
        let mut all = self.0.write();
        if let Some(count) = all.get_mut(&membership) {
            *count -= 1;
            if *count == 0 {
                all.remove(&membership);
            }
        }
        Ok(())
    }
}

/// What `IP_ADD_MEMBERSHIP` and its relatives are given.
pub struct Request {
    /// The group.
    pub group: IpAddr,
    /// The interface that was asked for, if one was.
    pub interface: Option<u32>,
}

impl Request {
    /// From a `struct ip_mreq`, `ip_mreqn` or `ipv6_mreq`. `EINVAL` when it names no group, `ENODEV` when it names an interface
    /// that is not there.
    pub fn parse(interfaces: &Interfaces, level: i32, value: &[u8]) -> Result<Request> {
        let octets = |at: usize| value.get(at..).and_then(|rest| rest.first_chunk::<4>()).copied();
        let index = |index: u32| (index != 0).then_some(index);
        let (group, addr, index): (IpAddr, _, _) = if level == libc::IPPROTO_IP {
            let (Some(group), Some(addr)) = (octets(0), octets(4)) else { return Err(Errno::EINVAL) };
            let asked = octets(8).map_or(0, u32::from_ne_bytes);
            let addr = Ipv4Addr::from(addr);
            (Ipv4Addr::from(group).into(), (!addr.is_unspecified()).then_some(addr), index(asked))
        } else {
            let group: [u8; 16] = *value.first_chunk().ok_or(Errno::EINVAL)?;
            (Ipv6Addr::from(group).into(), None, index(octets(16).map(u32::from_ne_bytes).ok_or(Errno::EINVAL)?))
        };
        if !group.is_multicast() {
            return Err(Errno::EINVAL);
        }
        let interface = match (index, addr) {
            (Some(index), _) => Some(interfaces.get(index).ok_or(Errno::ENODEV)?.index),
            (None, Some(addr)) => Some(interfaces.owner(addr.into()).ok_or(Errno::ENODEV)?),
            (None, None) => None,
        };
        Ok(Request { group, interface })
    }

    /// The membership to enter: where no interface was asked for, on that which packets to the group take. `ENODEV`.
    pub fn membership(&self, interfaces: &Interfaces) -> Result<Membership> {
        let interface = match self.interface {
            Some(interface) => interface,
            None => interfaces.route(self.group).map_err(|_| Errno::ENODEV)?.arrives,
        };
        Ok((self.group, interface))
    }

    /// Which memberships are to be left. Where no interface was asked for: of IPv4 that which would be entered, of IPv6 any.
    /// `ENODEV`.
    pub fn to_leave(&self, interfaces: &Interfaces) -> Result<impl Fn(&Membership) -> bool + use<>> {
        let (group, interface) = match self.group {
            IpAddr::V4(_) => self.membership(interfaces).map(|(group, interface)| (group, Some(interface)))?,
            IpAddr::V6(_) => (self.group, self.interface),
        };
        Ok(move |own: &Membership| own.0 == group && interface.is_none_or(|interface| interface == own.1))
    }
}
