//! TCP/IP and the other sockets, in process.

mod socket;
pub mod unix;

pub use socket::{Ancillary, Message, RecvFlags, SockAddr, Socket, SocketOption};
