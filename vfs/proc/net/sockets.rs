//! Sockets: `tcp`, `udp`, `raw`, `unix`, `netlink`, `sockstat`.

use std::any::Any;
use std::collections::HashSet;
use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::errno::{Errno, Result};
use crate::netstack::{SockAddr, Socket, SocketOption};
use crate::sentry::kernel::Kernel;
use crate::vfs::file::{File, IoctlMemory};

// `write!` to a String cannot fail.

/// `TCP_ESTABLISHED`, `TCP_TIME_WAIT`, `TCP_CLOSE` and `TCP_LISTEN`.
const ESTABLISHED: u8 = 1;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// `TIOCOUTQ`: bytes sent and not acknowledged.
const TIOCOUTQ: u32 = 0x5411;

/// Every socket that a descriptor refers to, once each.
fn all(kernel: &Kernel) -> Vec<Arc<dyn File>> {
    let groups: Vec<_> = kernel.tree.lock().nodes().map(|(_, node)| node.group.clone()).collect();
    let mut tables = HashSet::new();
    let mut seen = HashSet::new();
    let mut sockets = Vec::new();
    for task in groups.iter().flat_map(|group| group.threads()) {
        let Ok(files) = task.files() else { continue };
        if !tables.insert(Arc::as_ptr(&files)) {
            continue;
        }
        for file in files.list().into_iter().filter_map(|fd| files.get(fd).ok()) {
            let object = file.object();
            if object.as_socket().is_some() && seen.insert(Arc::as_ptr(object).cast::<()>()) {
                sockets.push(object.clone());
            }
        }
    }
    sockets
}

/// What a socket's line says.
#[derive(Clone, Copy, Debug)]
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
    sending: u32,
    receiving: u32,
    uid: u32,
    ino: u64,
}

/// Where an `ioctl` puts its number.
struct Answer(Mutex<u32>);

impl IoctlMemory for Answer {
    fn read(&self, _addr: u64, _buf: &mut [u8]) -> Result<()> {
        Err(Errno::EFAULT)
    }

    fn write(&self, _addr: u64, bytes: &[u8]) -> Result<()> {
        *self.0.lock() = bytes.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        Ok(())
    }

    fn caller(&self) -> &dyn Any {
        self
    }
}

fn ask(file: &dyn File, command: u32) -> u32 {
    let answer = Answer(Mutex::new(0));
    // What a socket does not tell in its present state is 0.
    let _ = file.ioctl(&answer, command, 0);
    answer.0.into_inner()
}

fn option(socket: &dyn Socket, level: i32, name: i32) -> Option<Vec<u8>> {
    socket.get_option(SocketOption { level, name }, 256).ok()
}

fn inet(addr: Result<SockAddr>) -> Option<SocketAddr> {
    match addr.ok()? {
        SockAddr::V4(addr) => Some(addr.into()),
        SockAddr::V6(addr) => Some(addr.into()),
        _ => None,
    }
}

fn row(file: &dyn File, socket: &dyn Socket, domain: i32, stream: bool) -> Option<Row> {
    let any: IpAddr = if domain == libc::AF_INET { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let local = inet(socket.local_name()).unwrap_or(SocketAddr::new(any, 0));
    let peer = inet(socket.peer_name());
    let state = match stream {
        true => option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?.first().copied()?,
        false if peer.is_some() => ESTABLISHED,
        false => CLOSE,
    };
    let attr = file.anonymous_attr()?;
    Some(Row {
        local,
        remote: peer.unwrap_or(SocketAddr::new(any, 0)),
        state,
        sending: ask(file, TIOCOUTQ),
        receiving: ask(file, libc::FIONREAD as u32),
        uid: attr.uid,
        ino: attr.ino,
    })
}

/// The rows of one family and type, in the order of their inode numbers.
fn rows(kernel: &Kernel, domain: i32, kind: i32) -> Vec<Row> {
    let sockets = all(kernel);
    let rows = sockets.iter().filter_map(|file| {
        let socket = file.as_socket()?;
        let (family, socket_type, _) = socket.domain();
        let wanted = family == domain && socket_type == kind;
        if wanted { row(&**file, socket, domain, kind == libc::SOCK_STREAM) } else { None }
    });
    let mut rows: Vec<Row> = rows.collect();
    rows.sort_unstable_by_key(|row| row.ino);
    rows
}

/// An end of a connection: the words of the address as the machine reads them.
fn end(addr: SocketAddr) -> String {
    let words: String = match addr.ip() {
        IpAddr::V4(ip) => format!("{:08X}", u32::from_ne_bytes(ip.octets())),
        IpAddr::V6(ip) => {
            let words = ip.octets();
            words
                .chunks_exact(4)
                .map(|word| format!("{:08X}", word.iter().rev().fold(0u32, |sum, &byte| sum << 8 | u32::from(byte))))
                .collect()
        }
    };
    format!("{words}:{:04X}", addr.port())
}

/// What the lines of all protocols begin with.
fn beginning(row: &Row) -> String {
    let Row { local, remote, state, sending, receiving, uid, ino } = *row;
    let (local, remote) = (end(local), end(remote));
    format!("{local} {remote} {state:02X} {sending:08X}:{receiving:08X} 00:00000000 00000000 {uid:5}        0 {ino}")
}

const HEADER_V6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue \
                         tr tm->when retrnsmt   uid  timeout inode";
const HEADER: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";

/// `tcp` and `tcp6`. A socket that is neither connected nor listens is not shown.
pub fn streams(kernel: &Kernel, domain: i32) -> String {
    let mut shown = rows(kernel, domain, libc::SOCK_STREAM);
    shown.retain(|row| row.state != CLOSE);
    shown.extend(unowned(kernel, domain));
    stream_lines(shown.iter(), domain == libc::AF_INET)
}

/// Connections of the stack that no descriptor refers to: not accepted yet, closed and not over, `TIME_WAIT`.
fn unowned(kernel: &Kernel, domain: i32) -> Vec<Row> {
    let ends = |local: SocketAddr, remote: SocketAddr| {
        let plain = |addr: SocketAddr| (addr.ip().to_canonical(), addr.port());
        (plain(local), plain(remote))
    };
    let both = [libc::AF_INET, libc::AF_INET6].into_iter().flat_map(|family| rows(kernel, family, libc::SOCK_STREAM));
    let owned: HashSet<_> = both.map(|row| ends(row.local, row.remote)).collect();
    let table = kernel.net.tcp_table().into_iter();
    let left = table.filter(|row| row.state != LISTEN && row.local.is_ipv4() == (domain == libc::AF_INET));
    left.filter(|row| !owned.contains(&ends(row.local, row.remote)))
        .map(|row| Row {
            local: row.local,
            remote: row.remote,
            state: row.state,
            sending: u32::try_from(row.sending).unwrap_or(u32::MAX),
            receiving: u32::try_from(row.receiving).unwrap_or(u32::MAX),
            uid: 0,
            ino: 0,
        })
        .collect()
}

fn stream_lines<'a>(rows: impl Iterator<Item = &'a Row>, v4: bool) -> String {
    let width = if v4 { 149 } else { 0 };
    let mut text = format!("{:<width$}\n", if v4 { HEADER } else { HEADER_V6 });
    for (at, row) in rows.enumerate() {
        // Timeouts in ticks, the congestion window, the slow start threshold; none of a connection that is over.
        let rest = match row.state {
            LISTEN => " 100 0 0 10 0",
            TIME_WAIT => "",
            _ => " 20 4 30 10 -1",
        };
        let line = format!("{at:4}: {} 1 0000000000000000{rest}", beginning(row));
        let _ = writeln!(text, "{line:<width$}");
    }
    text
}

/// `udp`, `raw` and those of IPv6.
pub fn datagrams(kernel: &Kernel, domain: i32, kind: i32) -> String {
    let rows = rows(kernel, domain, kind);
    let (v4, raw) = (domain == libc::AF_INET, kind == libc::SOCK_RAW);
    let width = if v4 && !raw { 127 } else { 0 };
    let indent = if v4 && !raw { " " } else { "" };
    let header = format!("{indent}{} ref pointer drops", if v4 { HEADER } else { HEADER_V6 });
    let mut text = format!("{header:<width$}\n");
    for (at, row) in rows.iter().enumerate() {
        let digits = if raw { 4 } else { 5 };
        let line = format!("{at:digits$}: {} 2 0000000000000000 0", beginning(row));
        let _ = writeln!(text, "{line:<width$}");
    }
    text
}

/// `unix`.
pub fn unix(kernel: &Kernel) -> String {
    let mut text = String::from("Num       RefCount Protocol Flags    Type St Inode Path\n");
    for file in all(kernel) {
        let Some(socket) = file.as_socket().filter(|socket| socket.domain().0 == libc::AF_UNIX) else { continue };
        let Some(attr) = file.anonymous_attr() else { continue };
        let listens =
            option(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).is_some_and(|value| value.first() == Some(&1));
        // SS_UNCONNECTED, SS_CONNECTED; __SO_ACCEPTCON.
        let state = if socket.peer_name().is_ok() { 3 } else { 1 };
        let flags = if listens { 0x0001_0000 } else { 0 };
        let kind = socket.domain().1;
        let _ = write!(text, "0000000000000000: 00000002 00000000 {flags:08X} {kind:04X} {state:02X} {:5}", attr.ino);
        if let Ok(SockAddr::Unix(name)) = socket.local_name()
            && !name.is_empty()
        {
            let name: Vec<u8> = name.iter().map(|&byte| if byte == 0 { b'@' } else { byte }).collect();
            let _ = write!(text, " {}", String::from_utf8_lossy(&name));
        }
        text.push('\n');
    }
    text
}

/// `netlink`.
pub fn netlink(kernel: &Kernel) -> String {
    let mut text =
        String::from("sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n");
    for file in all(kernel) {
        let Some(socket) = file.as_socket() else { continue };
        let (Ok(SockAddr::Netlink { port, groups }), Some(attr)) = (socket.local_name(), file.anonymous_attr()) else {
            continue;
        };
        let protocol = socket.domain().2;
        let _ = writeln!(
            text,
            "0000000000000000 {protocol:<3} {port:<10} {groups:08x} {:<8} {:<8} {:<5} {:<8} {:<8} {:<8}",
            0, 0, 0, 2, 0, attr.ino
        );
    }
    text
}

fn count(kernel: &Kernel, domain: i32, kind: i32) -> usize {
    let of = |file: &Arc<dyn File>| file.as_socket().map(|socket| socket.domain());
    all(kernel)
        .iter()
        .filter_map(of)
        .filter(|&(family, socket_type, _)| family == domain && socket_type == kind)
        .count()
}

/// `sockstat`.
pub fn sockstat(kernel: &Kernel) -> String {
    let (tcp, udp, raw) = (
        count(kernel, libc::AF_INET, libc::SOCK_STREAM),
        count(kernel, libc::AF_INET, libc::SOCK_DGRAM),
        count(kernel, libc::AF_INET, libc::SOCK_RAW),
    );
    let waiting = kernel.net.tcp_table().iter().filter(|row| row.state == TIME_WAIT).count();
    format!(
        "sockets: used {}\nTCP: inuse {tcp} orphan 0 tw {waiting} alloc {tcp} mem 0\nUDP: inuse {udp} mem 0\nUDPLITE: inuse 0\n\
         RAW: inuse {raw}\nFRAG: inuse 0 memory 0\n",
        all(kernel).len()
    )
}

/// `sockstat6`.
pub fn sockstat6(kernel: &Kernel) -> String {
    let of = |kind| count(kernel, libc::AF_INET6, kind);
    let (tcp, udp, raw) = (of(libc::SOCK_STREAM), of(libc::SOCK_DGRAM), of(libc::SOCK_RAW));
    format!("TCP6: inuse {tcp}\nUDP6: inuse {udp}\nUDPLITE6: inuse 0\nRAW6: inuse {raw}\nFRAG6: inuse 0 memory 0\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_has_linuxs_line() {
        let any = "0.0.0.0:0".parse().unwrap();
        let local = "127.0.0.1:2024".parse().unwrap();
        let row = Row { local, remote: any, state: LISTEN, sending: 0, receiving: 0, uid: 0, ino: 635 };
        let text = stream_lines([row].iter(), true);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[1].trim_end(),
            "   0: 0100007F:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 635 1 \
             0000000000000000 100 0 0 10 0"
        );
        assert!(lines.iter().all(|line| line.len() == 149));
        assert_eq!(end("[::1]:80".parse().unwrap()), "00000000000000000000000001000000:0050");
    }
}
