//! Kernel parameters that can be set: by `linux.sysctl` of the specification and by writing to `/proc/sys`.
//!
//! A parameter that `/proc/sys` shows and nothing here can change may be "set" to the value that it has. Any other value is
//! refused, and so is what is not there: nothing is taken that has no effect.

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::netstack::stack::settings::{Buffer, Number, Settings};
use crate::sentry::kernel::Kernel;
use crate::sentry::namespaces::UtsNamespace;
use crate::vfs::proc::sysctl::{fixed, v6_off};

/// A parameter of the network that can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// One number.
    Number(Number),
    /// `net.ipv4.ip_local_port_range`.
    Ports,
    /// `net.ipv4.ip_local_reserved_ports`.
    ReservedPorts,
    /// `net.ipv4.ping_group_range`.
    PingGroups,
    /// `net.ipv4.tcp_rmem` and `net.ipv4.tcp_wmem`.
    Buffer(Buffer),
}

impl Net {
    /// All, with their paths beneath `/proc/sys`.
    pub fn all() -> impl Iterator<Item = (Net, &'static str)> {
        let others = [
            (Net::Ports, "net/ipv4/ip_local_port_range"),
            (Net::ReservedPorts, "net/ipv4/ip_local_reserved_ports"),
            (Net::PingGroups, "net/ipv4/ping_group_range"),
            (Net::Buffer(Buffer::Receive), "net/ipv4/tcp_rmem"),
            (Net::Buffer(Buffer::Send), "net/ipv4/tcp_wmem"),
        ];
        Number::all().map(|(number, path)| (Net::Number(number), path)).chain(others)
    }

    /// As `/proc/sys` shows it, without the end of the line.
    pub fn show(self, settings: &Settings) -> String {
        match self {
            Net::Number(number) => settings.get(number).to_string(),
            Net::Ports => format!("{}\t{}", settings.ports().start(), settings.ports().end()),
            Net::ReservedPorts => settings.reserved_ports(),
            Net::PingGroups => {
                let (first, last) = settings.ping_groups();
                format!("{first}\t{last}")
            }
            Net::Buffer(which) => settings.buffer(which).map(|size| size.to_string()).join("\t"),
        }
    }

    /// Sets it from text. `EINVAL`.
    pub fn set(self, settings: &Settings, text: &str) -> Result<()> {
        if self == Net::ReservedPorts {
            return settings.set_reserved_ports(text);
        }
        match (self, numbers(text)?.as_slice()) {
            (Net::Number(number), &[value]) => settings.set(number, value),
            (Net::Ports, &[first, last]) => settings.set_ports(first, last),
            (Net::PingGroups, &[first, last]) => {
                settings.set_ping_groups(first, last);
                Ok(())
            }
            (Net::Buffer(which), &[least, first, most]) => settings.set_buffer(which, [least, first, most]),
            _ => Err(Errno::EINVAL),
        }
    }
}

fn numbers(text: &str) -> Result<Vec<u32>> {
    text.split_whitespace().map(|word| word.parse().map_err(|_| Errno::EINVAL)).collect()
}

/// Checks one entry of `linux.sysctl`; what is wrong with it, in words.
pub fn check(name: &str, value: &str) -> std::result::Result<(), String> {
    match place(name)? {
        Place::Net(which) => which.set(&Settings::default(), value).map_err(|_| format!("{value:?} is no value of it")),
        Place::V6Off(_) => v6_is_off(value).map(drop).map_err(|_| format!("{value:?} is no value of it")),
        Place::DomainName if value.len() > 64 => Err("is longer than 64 bytes".into()),
        Place::DomainName => Ok(()),
        Place::Fixed(has) if has.split_whitespace().eq(value.split_whitespace()) => Ok(()),
        Place::Fixed(has) => Err(format!("cannot be set to {value:?}: in a sandbox it is always {has:?}")),
    }
}

/// What a value of `disable_ipv6` says. `EINVAL`.
fn v6_is_off(value: &str) -> Result<bool> {
    value.trim().parse::<i32>().map(|value| value != 0).map_err(|_| Errno::EINVAL)
}

/// Sets one, which [`check`] has accepted. `EINVAL`.
pub fn apply(kernel: &Kernel, uts: &Arc<UtsNamespace>, name: &str, value: &str) -> Result<()> {
    match place(name).map_err(|_| Errno::EINVAL)? {
        Place::Net(which) => which.set(kernel.net.settings(), value)?,
        Place::V6Off(interface) => kernel.net.interfaces().set_v6_off(&interface, v6_is_off(value)?),
        Place::DomainName => uts.set_domain(value.as_bytes()),
        Place::Fixed(_) => {}
    }
    Ok(())
}

enum Place {
    Net(Net),
    /// `net.ipv6.conf.*.disable_ipv6`, of an interface that may be one to come.
    V6Off(String),
    DomainName,
    Fixed(&'static str),
}

/// Finds a parameter by its name: `net.ipv4.ip_forward` or `net/ipv4/ip_forward`. One that is not of a namespace is the
/// host's, or all containers': those runc refuses too.
fn place(name: &str) -> std::result::Result<Place, String> {
    let path = name.replace('.', "/");
    if path == "kernel/domainname" {
        return Ok(Place::DomainName);
    }
    let ipc = ["kernel/sem", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni"];
    let namespaced = path.starts_with("net/")
        || path.starts_with("kernel/shm")
        || path.starts_with("fs/mqueue/")
        || ipc.contains(&path.as_str());
    if !namespaced {
        return Err("is not in a separate kernel namespace".into());
    }
    if let Some((which, _)) = Net::all().find(|(_, known)| *known == path) {
        return Ok(Place::Net(which));
    }
    if let Some(interface) = v6_off(&path) {
        return Ok(Place::V6Off(interface.to_owned()));
    }
    fixed(&path).map(Place::Fixed).ok_or_else(|| "is not there in a sandbox".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_sets_is_taken() {
        assert_eq!(check("net.ipv4.ip_unprivileged_port_start", "0"), Ok(()));
        assert_eq!(check("net.ipv4.ping_group_range", "0 2147483647"), Ok(()));
        assert_eq!(check("kernel.domainname", "example.org"), Ok(()));
        assert_eq!(check("net.ipv4.ip_forward", "0"), Ok(()));
        for value in ["0", "1"] {
            assert_eq!(check("net.ipv6.conf.all.disable_ipv6", value), Ok(()));
            assert_eq!(check("net/ipv6/conf/eth1/disable_ipv6", value), Ok(()));
        }
        assert_eq!(check("net.ipv4.tcp_syncookies", "1"), Ok(()));
        assert_eq!(check("net.core.rmem_max", "16777216"), Ok(()));
        assert_eq!(check("net.ipv4.tcp_rmem", "4096 87380 16777216"), Ok(()));
        for name in ["net.core.somaxconn", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout"] {
            assert_eq!(check(name, "30"), Ok(()), "{name}");
        }
    }

    #[test]
    fn what_has_no_effect_is_refused() {
        for (name, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv4.ip_unprivileged_port_start", "65536"),
            ("net.ipv4.tcp_syncookies", "3"),
            ("net.ipv4.tcp_rmem", "4096 87380"),
            ("net.core.somaxconn", "-1"),
            ("net.ipv6.conf.all.disable_ipv6", "yes"),
            ("net.ipv4.ping_group_range", "0"),
            ("net.ipv4.no_such", "0"),
            ("vm.swappiness", "60"),
            ("kernel.hostname", "x"),
            ("kernel.shmmax", "1"),
        ] {
            assert!(check(name, value).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn settings_take_effect() {
        let settings = Settings::default();
        assert!(settings.is_privileged(80) && !settings.is_privileged(0) && !settings.is_privileged(1024));
        Net::Number(Number::PortStart).set(&settings, "80\n").unwrap();
        assert!(settings.is_privileged(79) && !settings.is_privileged(80));
        Net::PingGroups.set(&settings, "5\t6").unwrap();
        assert_eq!([4, 5, 6, 7].map(|group| settings.may_ping([group].into_iter())), [false, true, true, false]);
        assert_eq!(Net::PingGroups.show(&settings), "5\t6");
        Net::PingGroups.set(&settings, "1 0").unwrap();
        assert!(!settings.may_ping([0, 1].into_iter()));
    }
}
