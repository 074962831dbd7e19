//! TCP/IP and the other sockets, in process.

mod addr;
pub mod device;
mod dns;
mod ioctl;
pub mod netlink;
pub mod options;
pub mod raw;
mod socket;
pub mod stack;
pub mod tcp;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod udp;
pub mod unix;

pub(crate) use socket::Endpoint;
pub use socket::{Ancillary, Message, RecvFlags, SockAddr, Socket, SocketOption};
pub use stack::{SocketCred, Stack};
