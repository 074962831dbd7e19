//! Making the namespace's own stack silent, so that it does not refuse connections that are the sentry's.
//!
//! The addresses stay where CNI and Docker have put them: those ask for them later, an ipvlan is told apart by them, and
//! another sandbox may be started in the namespace. Instead, routing rules make packets that arrive on the taken links end
//! nowhere, while what processes of the host send in the namespace goes its way (`ip-rule(8)`):
//!
//! ```text
//!    1  from all iif lo ipproto icmp blackhole             only with Docker's name server
//!    2  from all iif eth0 ipproto udp sport 53 lookup local  "
//!   10  from all iif eth0 blackhole
//!  100  from all lookup local                              was the first rule, 0
//! 32766 from all lookup main                               as it was
//! ```
//!
//! Docker's name server, `dockerd`, listens and asks its own servers within the namespace, so with it their answers are let
//! through. They are the container's too; for those that the namespace knows nothing of, it does not complain (rule 1).
//! A blackhole is silent: neither resets nor ICMP, and no answers to ARP or neighbour solicitations.

use std::io;

use super::namespace::unless_unknown;
use super::rtnetlink::{Netlink, put};
use crate::container::error::{Context, Result};

/// `RTM_NEWRULE`, `RTM_DELRULE` and attributes of `linux/fib_rules.h`.
const NEW: u16 = 32;
const DELETE: u16 = 33;
const INPUT: u16 = 3;
const PRIORITY: u16 = 6;
const TABLE: u16 = 15;
const PROTOCOL: u16 = 22;
const SOURCE_PORTS: u16 = 23;

const TO_TABLE: u8 = 1;
const BLACKHOLE: u8 = 6;
const TABLE_LOCAL: u8 = 255;

#[derive(Clone, Copy)]
struct Rule<'a> {
    priority: u32,
    input: Option<&'a str>,
    protocol: Option<i32>,
    source_port: Option<u16>,
    /// The table to look into; none to drop.
    table: Option<u8>,
}

/// Makes the stack of the thread's network namespace ignore what arrives on `links`; with `dns` it takes answers to
/// questions about names.
pub fn silence(links: &[&str], dns: bool) -> Result<()> {
    if links.is_empty() {
        return Ok(());
    }
    let doing = || "make the network namespace's own stack silent with routing rules";
    let mut netlink = Netlink::open().doing(doing)?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let done = set_rules(&mut netlink, family as u8, links, dns);
        // A kernel without IPv6 has nothing to say in it.
        let done = if family == libc::AF_INET6 { done.or_else(|error| unless_unknown(error, ())) } else { done };
        done.doing(doing)?;
    }
    Ok(())
}

fn set_rules(netlink: &mut Netlink, family: u8, links: &[&str], dns: bool) -> io::Result<()> {
    let local = Rule { priority: 100, input: None, protocol: None, source_port: None, table: Some(TABLE_LOCAL) };
    add(netlink, family, local)?;
    if dns && i32::from(family) == libc::AF_INET {
        let (input, protocol) = (Some("lo"), Some(libc::IPPROTO_ICMP));
        add(netlink, family, Rule { priority: 1, input, protocol, table: None, ..local })?;
        for link in links {
            let (input, protocol) = (Some(*link), Some(libc::IPPROTO_UDP));
            add(netlink, family, Rule { priority: 2, input, protocol, source_port: Some(53), ..local })?;
        }
    }
    for link in links {
        add(netlink, family, Rule { priority: 10, input: Some(link), table: None, ..local })?;
    }
    match netlink.change(DELETE, 0, &message(family, Rule { priority: 0, ..local })) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()), // done before
        done => done,
    }
}

fn add(netlink: &mut Netlink, family: u8, rule: Rule<'_>) -> io::Result<()> {
    let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    match netlink.change(NEW, flags, &message(family, rule)) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        done => done,
    }
}

fn message(family: u8, rule: Rule<'_>) -> Vec<u8> {
    let action = if rule.table.is_some() { TO_TABLE } else { BLACKHOLE };
    let mut message = vec![family, 0, 0, 0, rule.table.unwrap_or(0), 0, 0, action, 0, 0, 0, 0];
    put(&mut message, PRIORITY, &rule.priority.to_ne_bytes());
    if let Some(table) = rule.table {
        put(&mut message, TABLE, &u32::from(table).to_ne_bytes());
    }
    if let Some(input) = rule.input {
        put(&mut message, INPUT, &[input.as_bytes(), &[0]].concat());
    }
    if let Some(protocol) = rule.protocol {
        put(&mut message, PROTOCOL, &[protocol as u8]);
    }
    if let Some(port) = rule.source_port {
        put(&mut message, SOURCE_PORTS, &[port.to_ne_bytes(), port.to_ne_bytes()].concat());
    }
    message
}
