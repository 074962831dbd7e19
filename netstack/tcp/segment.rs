//! TCP headers, as far as the flow table and the device need them: RFC 9293, 3.1.

use crate::netstack::stack::packet::be16;

/// Flags.
pub const FIN: u8 = 1;
/// Opens a connection.
pub const SYN: u8 = 2;
/// Ends one at once.
pub const RST: u8 = 4;
/// The acknowledgement counts.
pub const ACK: u8 = 16;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Ports.
    pub source: u16,
    /// Ports.
    pub destination: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement.
    pub ack: u32,
    /// [`SYN`] and others.
    pub flags: u8,
    /// The window as it stands there.
    pub window: u16,
    /// Where the data begins.
    pub header_len: usize,
    /// How much data there is.
    pub len: usize,
}

impl Segment {
    /// Of a TCP packet; `None` when it is malformed.
    pub fn parse(bytes: &[u8]) -> Option<Segment> {
        let header: &[u8; 20] = bytes.first_chunk()?;
        let header_len = usize::from(header[12] >> 4) * 4;
        if header_len < 20 || header_len > bytes.len() {
            return None;
        }
        let word = |at: usize| u32::from(be16(header, at)) << 16 | u32::from(be16(header, at + 2));
        Some(Segment {
            source: be16(header, 0),
            destination: be16(header, 2),
            seq: word(4),
            ack: word(8),
            flags: header[13],
            window: be16(header, 14),
            header_len,
            len: bytes.len() - header_len,
        })
    }

    /// Whether it has `flag`.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The sequence number after it.
    pub fn end(&self) -> u32 {
        let flags = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        self.seq.wrapping_add(self.len as u32).wrapping_add(flags)
    }
}

/// The maximum segment size option of a header, which may be changed.
pub fn mss_option(header: &mut [u8]) -> Option<&mut [u8; 2]> {
    let mut at = 20;
    loop {
        match *header.get(at)? {
            OPTION_END => return None,
            OPTION_NOP => at += 1,
            OPTION_MSS if *header.get(at + 1)? == 4 => return header.get_mut(at + 2..)?.first_chunk_mut(),
            _ => {
                let len = usize::from(*header.get(at + 1)?);
                if len < 2 {
                    return None;
                }
                at += len;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_found_among_others() {
        let mut header = vec![0; 20];
        header.extend([1, 3, 3, 7, 2, 4, 5, 180, 0]);
        assert_eq!(mss_option(&mut header), Some(&mut [5, 180]));
        for options in [&[2][..], &[2, 4], &[2, 4, 1], &[3, 0, 2, 4, 1, 1], &[3, 1], &[0, 2, 4, 1, 1], &[]] {
            let mut header = vec![0; 20];
            header.extend(options);
            assert_eq!(mss_option(&mut header), None, "{options:?}");
        }
    }

    #[test]
    fn offsets_outside_are_refused() {
        let mut bytes = [0; 24];
        assert_eq!(Segment::parse(&bytes), None);
        bytes[12] = 7 << 4;
        assert_eq!(Segment::parse(&bytes), None);
        bytes[12] = 6 << 4;
        assert_eq!(Segment::parse(&bytes).map(|segment| segment.len), Some(0));
        assert_eq!(Segment::parse(&bytes[..19]), None);
    }
}
