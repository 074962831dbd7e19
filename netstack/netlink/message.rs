//! Netlink messages: `struct nlmsghdr` and attributes, `netlink(7)`.

use std::net::IpAddr;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const F_REQUEST: u16 = 1;
const F_MULTI: u16 = 2;
const F_ACK: u16 = 4;
const F_DUMP: u16 = 0x300;
/// The lowest type of a family's own.
const FIRST_TYPE: u16 = 16;

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `RTM_GETLINK` and others.
    pub kind: u16,
    flags: u16,
    seq: u32,
    header: [u8; HEADER],
    /// What follows the header.
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// The first message of `bytes`, and the rest.
    pub fn parse(bytes: &'a [u8]) -> Option<(Request<'a>, &'a [u8])> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let len = usize::try_from(word(0)).ok()?;
        let body = bytes.get(HEADER..len)?;
        let rest = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        Some((Request { kind, flags, seq: word(8), header: *header, body }, rest))
    }

    /// Whether it asks for something.
    pub fn is_for_kernel(&self) -> bool {
        self.flags & F_REQUEST != 0 && self.kind >= FIRST_TYPE
    }

    /// Whether it asks for all there is.
    pub fn is_dump(&self) -> bool {
        self.flags & F_DUMP == F_DUMP
    }

    /// Whether it asks for an acknowledgement.
    pub fn wants_ack(&self) -> bool {
        self.flags & F_ACK != 0
    }

    /// `NLMSG_ERROR`; with `error` 0 an acknowledgement.
    pub fn error(&self, port: u32, error: i32) -> Vec<u8> {
        let mut all = Vec::new();
        let mut message = Builder::new(&mut all, NLMSG_ERROR, 0, self.seq, port);
        message.put(&error.to_ne_bytes());
        message.put(&self.header);
        if error != 0 {
            message.put(self.body);
        }
        message.finish();
        all
    }

    /// The end of a dump.
    pub fn done(&self, port: u32) -> Vec<u8> {
        let mut all = Vec::new();
        let mut message = Builder::new(&mut all, NLMSG_DONE, F_MULTI, self.seq, port);
        message.put(&0i32.to_ne_bytes());
        message.finish();
        all
    }

    /// Begins an answer at the end of `all`.
    pub fn reply<'b>(&self, all: &'b mut Vec<u8>, kind: u16, port: u32) -> Builder<'b> {
        Builder::new(all, kind, if self.is_dump() { F_MULTI } else { 0 }, self.seq, port)
    }

    /// The attribute `wanted` behind a family header of `skip` bytes.
    pub fn attribute(&self, skip: usize, wanted: u16) -> Option<&'a [u8]> {
        attributes(self.body.get(skip..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }
}

/// The attributes in `bytes`: type and value. What is cut off ends them.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// `NLA_TYPE_MASK`.
    const TYPE: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let head: &[u8; 4] = bytes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & TYPE;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// An address of either family, by its length.
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|octets| (*octets).into()),
        16 => bytes.first_chunk::<16>().map(|octets| (*octets).into()),
        _ => None,
    }
}

/// A message in the making.
pub struct Builder<'a> {
    all: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Builder<'a> {
    fn new(all: &'a mut Vec<u8>, kind: u16, flags: u16, seq: u32, port: u32) -> Builder<'a> {
        let start = all.len();
        all.extend_from_slice(&[0; 4]);
        all.extend_from_slice(&kind.to_ne_bytes());
        all.extend_from_slice(&flags.to_ne_bytes());
        all.extend_from_slice(&seq.to_ne_bytes());
        all.extend_from_slice(&port.to_ne_bytes());
        Builder { all, start }
    }

    /// Appends bytes as they are.
    pub fn put(&mut self, bytes: &[u8]) {
        self.all.extend_from_slice(bytes);
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.align();
        self.all.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.all.extend_from_slice(&kind.to_ne_bytes());
        self.all.extend_from_slice(value);
        self.align();
    }

    fn align(&mut self) {
        self.all.resize(self.all.len().next_multiple_of(4), 0);
    }

    /// Writes the length.
    pub fn finish(mut self) {
        let len = (self.all.len() - self.start) as u32;
        self.all[self.start..self.start + 4].copy_from_slice(&len.to_ne_bytes());
        self.align();
    }
}
