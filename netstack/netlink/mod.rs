//! Netlink sockets (`netlink(7)`): the `NETLINK_ROUTE` family's questions (`rtnetlink(7)`), as `ip`, `getifaddrs(3)` and
//! `getaddrinfo(3)` ask them. Interfaces and routes do not change here: a request to change them is refused.

pub(crate) mod message;
mod route;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use self::message::Request;
use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::netstack::options::Common;
use crate::netstack::stack::{SocketCred, Stack};
use crate::netstack::{Ancillary, Endpoint, Message, RecvFlags, SockAddr, Socket, SocketOption};
use crate::vfs::anon::{AnonAttr, DEV_SOCKET};
use crate::vfs::file::IoctlMemory;
use crate::vfs::inode::NodeType;
use crate::wait::{Events, WaitQueue};

/// The longest request that is looked at.
const MAX_REQUEST: usize = 64 << 10;

#[derive(Default)]
struct State {
    port: u32,
    groups: u32,
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    /// An answer found no room: `ENOBUFS`, once.
    overrun: bool,
}

/// A netlink socket of the route family.
pub struct NetlinkSocket {
    stack: Arc<Stack>,
    cred: SocketCred,
    kind: i32,
    attr: AnonAttr,
    waiters: WaitQueue,
    state: Mutex<State>,
    /// Leaf lock.
    options: Mutex<Common>,
}

impl NetlinkSocket {
    /// `socket(2)`. `EPROTONOSUPPORT` for other families than `NETLINK_ROUTE`.
    pub fn new(stack: &Arc<Stack>, kind: i32, protocol: i32, cred: SocketCred) -> Result<Arc<NetlinkSocket>> {
        if !matches!(kind, libc::SOCK_RAW | libc::SOCK_DGRAM) {
            return Err(Errno::ESOCKTNOSUPPORT);
        }
        if protocol != libc::NETLINK_ROUTE {
            log::warn!("socket: netlink family {protocol} is not implemented");
            return Err(Errno::EPROTONOSUPPORT);
        }
        Ok(Arc::new(NetlinkSocket {
            stack: stack.clone(),
            cred,
            kind,
            attr: AnonAttr::new(DEV_SOCKET, NodeType::Socket, 0o777, (cred.uid, cred.gid)),
            waiters: WaitQueue::new(),
            state: Mutex::default(),
            options: Mutex::new(Common::new(stack.settings(), stack.settings().default_buffers())),
        }))
    }

    /// The port id, chosen now if it has none: the process's for its first socket, then others.
    fn port(&self) -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut state = self.state.lock();
        if state.port == 0 {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let pid = u32::try_from(self.cred.pid).unwrap_or(1);
            state.port = if n == 0 { pid } else { u32::MAX - 4096 - n % (1 << 20) };
        }
        state.port
    }

    fn answer(&self, datagram: Vec<u8>) {
        let room = self.options.lock().receive_buf;
        let mut state = self.state.lock();
        if state.queued + datagram.len() > room && !state.queue.is_empty() {
            state.overrun = true;
        } else {
            state.queued += datagram.len();
            state.queue.push_back(datagram);
        }
        drop(state);
        self.waiters.wake(Events::READ);
    }

    fn handle(&self, request: &Request<'_>) {
        let port = self.port();
        match route::answer(&self.stack, request, port) {
            Ok(datagrams) => {
                datagrams.into_iter().for_each(|datagram| self.answer(datagram));
                if request.wants_ack() && !request.is_dump() {
                    self.answer(request.error(port, 0));
                }
            }
            Err(error) => self.answer(request.error(port, -error.raw())),
        }
    }
}

impl Endpoint for NetlinkSocket {
    fn attr(&self) -> &AnonAttr {
        &self.attr
    }

    fn waiters(&self) -> &WaitQueue {
        &self.waiters
    }

    fn readiness(&self) -> Events {
        let state = self.state.lock();
        let mut events = Events::WRITE;
        if !state.queue.is_empty() {
            events |= Events::READ;
        }
        events.set(Events::ERR, state.overrun);
        events
    }

    fn control(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        let first = self.state.lock().queue.front().map_or(0, Vec::len);
        crate::netstack::ioctl::ioctl(&self.stack, mem, cmd, arg, (first, 0))
    }
}

impl Socket for NetlinkSocket {
    fn domain(&self) -> (i32, i32, i32) {
        (libc::AF_NETLINK, self.kind, libc::NETLINK_ROUTE)
    }

    fn bind(&self, addr: &SockAddr) -> Result<()> {
        let SockAddr::Netlink { port, groups } = addr else { return Err(Errno::EINVAL) };
        let mut state = self.state.lock();
        if state.port != 0 && *port != 0 && *port != state.port {
            return Err(Errno::EINVAL);
        }
        if *port != 0 {
            state.port = *port;
        }
        state.groups = *groups;
        drop(state);
        self.port();
        Ok(())
    }

    fn connect(&self, addr: &SockAddr) -> Result<()> {
        match addr {
            // The kernel is whom one talks to anyway.
            SockAddr::Netlink { port: 0, .. } | SockAddr::Unspecified => Ok(()),
            SockAddr::Netlink { .. } => Err(Errno::EPERM),
            _ => Err(Errno::EINVAL),
        }
    }

    fn shutdown(&self, _how: i32) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    fn local_name(&self) -> Result<SockAddr> {
        let state = self.state.lock();
        Ok(SockAddr::Netlink { port: state.port, groups: state.groups })
    }

    fn peer_name(&self) -> Result<SockAddr> {
        Ok(SockAddr::Netlink { port: 0, groups: 0 })
    }

    fn send(&self, source: &mut dyn Source, to: Option<&SockAddr>, _ancillary: Ancillary, flags: i32) -> Result<usize> {
        if flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match to {
            None | Some(SockAddr::Netlink { port: 0, .. }) => {}
            Some(SockAddr::Netlink { .. }) => return Err(Errno::ECONNREFUSED),
            Some(_) => return Err(Errno::EINVAL),
        }
        let len = source.left();
        if len > MAX_REQUEST {
            return Err(Errno::EMSGSIZE);
        }
        let bytes = source.take_vec(len)?;
        if bytes.len() < len {
            return Err(Errno::EFAULT);
        }
        let mut rest = &bytes[..];
        while let Some((request, after)) = Request::parse(rest) {
            if request.is_for_kernel() {
                self.handle(&request);
            }
            rest = after;
        }
        Ok(len)
    }

    fn recv(&self, sink: &mut dyn Sink, flags: RecvFlags) -> Result<Message> {
        if flags.contains(RecvFlags::OOB) {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut state = self.state.lock();
        if std::mem::take(&mut state.overrun) {
            return Err(Errno::ENOBUFS);
        }
        let bytes = if flags.contains(RecvFlags::PEEK) {
            state.queue.front().cloned()
        } else {
            let first = state.queue.pop_front();
            state.queued -= first.as_ref().map_or(0, Vec::len);
            first
        };
        drop(state);
        let bytes = bytes.ok_or(Errno::EAGAIN)?;
        let len = bytes.len().min(sink.room());
        if len > 0 && sink.put(&bytes[..len])? < len {
            return Err(Errno::EFAULT);
        }
        Ok(Message {
            len: if flags.contains(RecvFlags::TRUNC) { bytes.len() } else { len },
            from: Some(SockAddr::Netlink { port: 0, groups: 0 }),
            flags: if len < bytes.len() { libc::MSG_TRUNC } else { 0 },
            ..Message::default()
        })
    }

    fn get_option(&self, option: SocketOption, _room: usize) -> Result<Vec<u8>> {
        match (option.level, option.name) {
            (libc::SOL_SOCKET, libc::SO_ERROR | libc::SO_ACCEPTCONN) => Ok(vec![0; 4]),
            (libc::SOL_NETLINK, _) => Err(Errno::ENOPROTOOPT),
            _ => self.options.lock().get(option),
        }
    }

    fn set_option(&self, option: SocketOption, value: &[u8]) -> Result<()> {
        match (option.level, option.name) {
            // Extended acknowledgements, strict checks, memberships of groups that never say anything.
            (libc::SOL_NETLINK, 1 | 2 | 3 | 4 | 5 | 10 | 11 | 12) => Ok(()),
            (libc::SOL_NETLINK, _) => Err(Errno::ENOPROTOOPT),
            _ => self.options.lock().set_on(&self.stack, &self.cred, self.kind, option, value),
        }
    }

    fn timeout(&self, send: bool) -> Option<Duration> {
        let options = self.options.lock();
        if send { options.send_timeout } else { options.receive_timeout }
    }
}
