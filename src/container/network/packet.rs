//! Packet sockets: a link of the namespace as a device for the sentry. `packet(7)`.
//!
//! A frame a call with a virtio-net header in front, as with a TAP device, so that a veth peer's long segments arrive and
//! leave whole. The socket is bound to its link and has a filter, both for good: it sees no other link's packets, none of the
//! namespace's own, and none of a VLAN on the link, whose tag the kernel has taken off.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{Link, VnetHeader, check};
use crate::container::error::{Context, Result};

/// Of `linux/if_packet.h`.
const PACKET_ADD_MEMBERSHIP: libc::c_int = 1;
const PACKET_MR_ALLMULTI: libc::c_ushort = 2;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_VNET_HDR_SZ: libc::c_int = 24;
/// What `PACKET_VNET_HDR_SZ` is told.
const FULL_HEADER: libc::c_int = 12;
/// Room for what arrives before the sentry looks: the kernel counts what it has allocated, not what it received.
const RECEIVE_BUFFER: libc::c_int = 32 << 20;
/// Room for what waits to be sent.
const SEND_BUFFER: libc::c_int = 8 << 20;

/// `struct packet_mreq`.
#[repr(C)]
struct Membership {
    index: libc::c_int,
    kind: libc::c_ushort,
    len: libc::c_ushort,
    address: [u8; 8],
}

/// Opens a device on `link`, which is in the thread's network namespace, and says what precedes its frames.
pub fn open(link: &Link) -> Result<(OwnedFd, VnetHeader)> {
    open_socket(link).doing(|| format!("open a packet socket on {}", link.name))
}

fn open_socket(link: &Link) -> io::Result<(OwnedFd, VnetHeader)> {
    // Without a protocol nothing arrives until it is bound.
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: makes a descriptor that is owned from here on; no memory is passed.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, kind, 0);
        check(fd)?;
        OwnedFd::from_raw_fd(fd)
    };
    filter(&socket)?;
    set(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1)?;
    let header = match set(&socket, libc::SOL_PACKET, PACKET_VNET_HDR_SZ, &FULL_HEADER) {
        Ok(()) => VnetHeader::Full,
        // Before Linux 6.6.
        Err(_) => {
            set(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, &1)?;
            VnetHeader::Short
        }
    };
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER)?;
    let index = link.index as libc::c_int;
    // The groups that the container joins are not the namespace's, so the link must take all.
    let all_groups = Membership { index, kind: PACKET_MR_ALLMULTI, len: 0, address: [0; 8] };
    set(&socket, libc::SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all_groups)?;
    // SAFETY: all-zero is a valid sockaddr_ll: integers.
    let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    addr.sll_family = libc::AF_PACKET as libc::c_ushort;
    addr.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    addr.sll_ifindex = index;
    // SAFETY: the kernel reads an address of the given length, which lives on.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const addr).cast(), size_of::<libc::sockaddr_ll>() as u32) })?;
    Ok((socket, header))
}

/// Lets through what is for this host or for everybody and has no VLAN tag but that of a mere priority, and locks that.
fn filter(socket: &OwnedFd) -> io::Result<()> {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const JUMP_IF: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    /// `SKF_AD_OFF` and offsets from it: `SKF_AD_PKTTYPE`, `SKF_AD_VLAN_TAG`, `SKF_AD_VLAN_TAG_PRESENT`.
    const ANCILLARY: u32 = 0xffff_f000;
    const PACKET_TYPE: u32 = ANCILLARY + 4;
    const VLAN_TAG: u32 = ANCILLARY + 44;
    const VLAN_PRESENT: u32 = ANCILLARY + 48;
    /// `PACKET_OTHERHOST`.
    const OTHER_HOST: u32 = 3;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(LOAD, 0, 0, VLAN_PRESENT),
        step(JUMP_IF, 3, 0, 0),
        step(LOAD, 0, 0, VLAN_TAG),
        step(AND, 0, 0, 0xfff),
        step(JUMP_IF, 0, 3, 0),
        step(LOAD, 0, 0, PACKET_TYPE),
        step(JUMP_IF, 1, 0, OTHER_HOST),
        step(RETURN, 0, 0, 1 << 18),
        step(RETURN, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    set(socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &1)
}

/// `setsockopt(2)` with a plain value, which the kernel only reads.
fn set<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let (value, len) = (std::ptr::from_ref(value), size_of::<T>() as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes of the value, and for a filter the steps that it points to; both live on.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), len) })
}
