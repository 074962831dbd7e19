//! SYN cookies: how a listener whose handshakes are too many answers without remembering them. RFC 4987, 3.6.
//!
//! The sequence number of the answer says all that the peer's acknowledgement must bring back: when it was made, the peer's
//! segment size (one of four), and a hash of both ends and the peer's number with a secret. What the peer's other options said
//! is lost: such a connection has no window scaling and no selective acknowledgements.
//!
//! ```text
//!   31..27 minute   26..25 size   24..0 hash of (ends, peer's number, minute, size)      all of it masked by another hash
//! ```
//!
//! smoltcp makes its own sequence numbers. So a connection that comes of a cookie is made by giving a fresh machine a SYN like
//! the one that is forgotten, and its numbers are [shifted](super::conn::State) on their way from then on.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use super::conn::Tuple;

/// How long a cookie counts, in units of [`PERIOD`], beside that in which it was made.
const MAX_AGE: u64 = 1;
const PERIOD: Duration = Duration::from_secs(64);
/// How long after the last cookie acknowledgements are looked at for one.
pub const VALID: Duration = Duration::from_secs(2 * PERIOD.as_secs());

/// Segment sizes that a cookie can tell, of IPv4 and of IPv6: those of Linux.
const SIZES: [[u16; 4]; 2] = [[536, 1300, 1440, 1460], [1220, 1420, 1440, 8940]];

const MINUTE_BITS: u32 = 5;
const HASH_BITS: u32 = 25;

/// Makes cookies and knows them again.
pub struct Cookies {
    start: Instant,
    secrets: [RandomState; 2],
}

impl Default for Cookies {
    fn default() -> Cookies {
        Cookies { start: Instant::now(), secrets: [RandomState::new(), RandomState::new()] }
    }
}

impl Cookies {
    fn minute(&self) -> u64 {
        self.start.elapsed().as_secs() / PERIOD.as_secs()
    }

    fn hash(&self, tuple: &Tuple, seq: u32, minute: u64, size: u32) -> u32 {
        self.secrets[0].hash_one((tuple, seq, minute, size)) as u32 & ((1 << HASH_BITS) - 1)
    }

    fn mask(&self, tuple: &Tuple, seq: u32) -> u32 {
        self.secrets[1].hash_one((tuple, seq)) as u32
    }

    /// A cookie for a peer whose SYN has the number `seq` and which takes segments of `mss` bytes.
    pub fn make(&self, tuple: &Tuple, seq: u32, mss: u16) -> u32 {
        self.make_at(self.minute(), tuple, seq, mss)
    }

    fn make_at(&self, minute: u64, tuple: &Tuple, seq: u32, mss: u16) -> u32 {
        let sizes = SIZES[usize::from(tuple.remote.is_ipv6())];
        let size = sizes.iter().rposition(|&size| size <= mss).unwrap_or(0) as u32;
        let plain = (minute as u32) << (32 - MINUTE_BITS) | size << HASH_BITS | self.hash(tuple, seq, minute, size);
        plain ^ self.mask(tuple, seq)
    }

    /// The peer's segment size, if `cookie` was made for a SYN with the number `seq` lately.
    pub fn check(&self, tuple: &Tuple, seq: u32, cookie: u32) -> Option<u16> {
        self.check_at(self.minute(), tuple, seq, cookie)
    }

    fn check_at(&self, now: u64, tuple: &Tuple, seq: u32, cookie: u32) -> Option<u16> {
        let plain = cookie ^ self.mask(tuple, seq);
        let age = now.wrapping_sub(u64::from(plain >> (32 - MINUTE_BITS))) & ((1 << MINUTE_BITS) - 1);
        let minute = now.checked_sub(age).filter(|_| age <= MAX_AGE)?;
        let size = plain >> HASH_BITS & 3;
        let right = self.hash(tuple, seq, minute, size) == plain & ((1 << HASH_BITS) - 1);
        right.then(|| SIZES[usize::from(tuple.remote.is_ipv6())][size as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_good_for_whom_it_was_made_and_for_a_while() {
        let cookies = Cookies::default();
        let tuple = |port: u16| Tuple {
            local: "10.0.0.2:80".parse().unwrap(),
            remote: std::net::SocketAddr::new("10.0.0.1".parse().unwrap(), port),
        };
        for (mss, told) in [(1, 536), (536, 536), (1380, 1300), (1460, 1460), (9000, 1460)] {
            let cookie = cookies.make_at(100, &tuple(5), 7, mss);
            assert_eq!(cookies.check_at(100, &tuple(5), 7, cookie), Some(told));
            assert_eq!(cookies.check_at(101, &tuple(5), 7, cookie), Some(told));
            assert_eq!(cookies.check_at(102, &tuple(5), 7, cookie), None, "too old");
            assert_eq!(cookies.check_at(99, &tuple(5), 7, cookie), None, "not made yet");
            assert_eq!(cookies.check_at(100, &tuple(6), 7, cookie), None, "another peer");
            assert_eq!(cookies.check_at(100, &tuple(5), 8, cookie), None, "another SYN");
            assert_eq!(cookies.check_at(100, &tuple(5), 7, cookie ^ 1), None);
        }
    }
}
