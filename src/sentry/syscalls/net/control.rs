//! Control messages: `cmsg(3)`.

use crate::errno::{Errno, Result};

/// The size of `struct cmsghdr`.
const HEADER: usize = 16;

fn align(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// One control message.
#[derive(Debug, PartialEq, Eq)]
pub struct Control<'a> {
    /// `SOL_SOCKET`, `IPPROTO_IP`, …
    pub level: i32,
    /// `SCM_RIGHTS`, …
    pub kind: i32,
    /// What follows the header.
    pub data: &'a [u8],
}

/// Splits a control buffer. `EINVAL` when a message says that it is longer than the buffer or shorter than its header; a rest
/// that has no room for a header is left alone.
pub fn decode(mut bytes: &[u8]) -> Result<Vec<Control<'_>>> {
    let mut all = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, l4, l5, l6, l7, v0, v1, v2, v3, k0, k1, k2, k3] = *header;
        let len = u64::from_ne_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        let len = usize::try_from(len).ok().filter(|len| (HEADER..=bytes.len()).contains(len)).ok_or(Errno::EINVAL)?;
        let (level, kind) = (i32::from_ne_bytes([v0, v1, v2, v3]), i32::from_ne_bytes([k0, k1, k2, k3]));
        all.push(Control { level, kind, data: &bytes[HEADER..len] });
        bytes = bytes.get(align(len)..).unwrap_or_default();
    }
    Ok(all)
}

/// Builds a control buffer of limited length.
pub struct ControlWriter {
    room: usize,
    bytes: Vec<u8>,
    /// Something did not fit: `MSG_CTRUNC`.
    pub truncated: bool,
}

impl ControlWriter {
    /// For a buffer of `room` bytes.
    pub fn new(room: usize) -> ControlWriter {
        ControlWriter { room, bytes: Vec::new(), truncated: false }
    }

    fn left(&self) -> usize {
        self.room - self.bytes.len()
    }

    /// How many descriptors fit into one more message.
    pub fn room_for_fds(&self) -> usize {
        self.left().saturating_sub(HEADER) / size_of::<i32>()
    }

    /// Adds a message, cut where the buffer ends; none at all when there is no room for the header.
    pub fn put(&mut self, level: i32, kind: i32, data: &[u8]) {
        let left = self.left();
        if left < HEADER {
            self.truncated = true;
            return;
        }
        self.truncated |= left < HEADER + data.len();
        let len = (HEADER + data.len()).min(left);
        let end = self.bytes.len() + align(len).min(left);
        self.bytes.extend_from_slice(&(len as u64).to_ne_bytes());
        self.bytes.extend_from_slice(&level.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&data[..len - HEADER]);
        self.bytes.resize(end, 0);
    }

    /// What was built.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        let mut writer = ControlWriter::new(100);
        writer.put(1, 2, &[9; 12]);
        writer.put(1, 1, &[7; 4]);
        assert_eq!(writer.bytes().len(), 32 + 24);
        let two = [Control { level: 1, kind: 2, data: &[9; 12] }, Control { level: 1, kind: 1, data: &[7; 4] }];
        assert_eq!(decode(writer.bytes()).as_deref(), Ok(&two[..]));
        assert!(!writer.truncated);
    }

    #[test]
    fn what_does_not_fit_is_cut() {
        let mut writer = ControlWriter::new(22);
        assert_eq!(writer.room_for_fds(), 1);
        writer.put(1, 1, &[7; 8]);
        assert_eq!((writer.bytes().len(), writer.truncated), (22, true));
        assert_eq!(decode(writer.bytes()).unwrap()[0].data, [7; 6]);
        writer.put(1, 1, &[]);
        assert_eq!(writer.bytes().len(), 22);
        assert_eq!(ControlWriter::new(3).room_for_fds(), 0);
    }

    #[test]
    fn lengths_are_checked() {
        let mut bytes = vec![0; 24];
        bytes[0] = 25;
        assert_eq!(decode(&bytes), Err(Errno::EINVAL));
        bytes[0] = 15;
        assert_eq!(decode(&bytes), Err(Errno::EINVAL));
        bytes[..8].fill(0xff);
        assert_eq!(decode(&bytes), Err(Errno::EINVAL));
        bytes[..8].copy_from_slice(&17u64.to_ne_bytes());
        assert_eq!(decode(&bytes).map(|all| all.len()), Ok(1));
        assert_eq!(decode(&bytes[..15]), Ok(Vec::new()));
    }
}
