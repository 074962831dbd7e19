//! One message on a connection: bytes, and with some a descriptor.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::errno::{Errno, Result};

/// The longest message in either direction. A `SOCK_SEQPACKET` message must fit the socket's send buffer whole, whose
/// default is 208 KiB (`net.core.wmem_default`).
pub const MAX_MESSAGE: usize = 128 << 10;

/// Space for one descriptor in `SCM_RIGHTS`, aligned as `cmsghdr` must be.
#[repr(C, align(8))]
struct Control([MaybeUninit<u8>; 24]);

/// Sends `bytes`, with `fd` if there is one. Blocks while the peer is behind. `EPIPE` when it is gone.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let slices = [IoSlice::new(bytes)];
    let mut control = Control([MaybeUninit::zeroed(); 24]);
    // SAFETY: msghdr is plain data, for which zeroes are a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len();
    if let Some(fd) = fd {
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = control.0.len();
        // SAFETY: the control buffer is aligned, zeroed, and holds exactly CMSG_SPACE of one descriptor.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
        }
    }
    loop {
        // SAFETY: the message refers to buffers that outlive the call.
        let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        match Errno::last() {
            // A message goes whole or not at all.
            _ if n >= 0 => return Ok(()),
            Errno::EINTR => {}
            error => return Err(error),
        }
    }
}

/// Receives one message into `buf`: its length, 0 when the peer has closed, and the descriptor that came with it.
/// `EMSGSIZE` when it is longer than `buf`. Descriptors are accepted with `accept_fd` alone; the kernel closes others.
pub fn receive(socket: BorrowedFd<'_>, buf: &mut [u8], accept_fd: bool) -> Result<(usize, Option<OwnedFd>)> {
    let mut slices = [IoSliceMut::new(buf)];
    let mut control = Control([MaybeUninit::zeroed(); 24]);
    // SAFETY: msghdr is plain data, for which zeroes are a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = slices.as_mut_ptr().cast();
    message.msg_iovlen = slices.len();
    let n = loop {
        if accept_fd {
            message.msg_control = (&raw mut control).cast();
            message.msg_controllen = control.0.len();
        }
        // SAFETY: the message refers to buffers that outlive the call.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match Errno::last() {
            _ if n >= 0 => break n as usize,
            Errno::EINTR => {}
            error => return Err(error),
        }
    };
    let fd = received_fd(&message);
    if message.msg_flags & libc::MSG_TRUNC != 0 { Err(Errno::EMSGSIZE) } else { Ok((n, fd)) }
}

/// The descriptor in a received message; there is space for no more than one.
fn received_fd(message: &libc::msghdr) -> Option<OwnedFd> {
    // SAFETY: the kernel has filled in the control buffer, which CMSG_FIRSTHDR checks the length of.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        if header.is_null()
            || (*header).cmsg_level != libc::SOL_SOCKET
            || (*header).cmsg_type != libc::SCM_RIGHTS
            || (*header).cmsg_len < libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize
        {
            return None;
        }
        Some(OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()))
    }
}
