//! Mount options of tmpfs.

use super::space::{PAGE, pages_of};
use crate::errno::{Errno, Result};

/// Mount options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TmpfsOptions {
    /// `size=` or `nr_blocks=`, in bytes; 0 is no limit. `None`: half of the memory.
    pub size: Option<u64>,
    /// `nr_inodes=`; 0 is no limit. `None`: half of the memory's pages.
    pub inodes: Option<u64>,
    /// `mode=` of the root.
    pub mode: u32,
    /// `uid=` of the root.
    pub uid: u32,
    /// `gid=` of the root.
    pub gid: u32,
}

impl Default for TmpfsOptions {
    fn default() -> Self {
        TmpfsOptions { size: None, inodes: None, mode: 0o1777, uid: 0, gid: 0 }
    }
}

/// The ceilings that options mean; `None` is none.
pub(super) struct Limits {
    pub(super) pages: Option<u64>,
    pub(super) inodes: Option<u64>,
}

impl TmpfsOptions {
    /// From the data of `mount(2)`: `size=64k,mode=755`. `ram` is what a percentage is of. `EINVAL` for what is unknown or
    /// has no such value.
    pub fn parse(data: &str, ram: u64) -> Result<TmpfsOptions> {
        TmpfsOptions::default().changed_by(data, ram)
    }

    /// What a remount with `data` makes of it: what `data` does not name stays.
    pub fn changed_by(self, data: &str, ram: u64) -> Result<TmpfsOptions> {
        let mut options = self;
        for option in data.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match name {
                "size" => options.size = Some(parse_size(value, ram)?),
                "nr_blocks" => {
                    let bytes = parse_suffixed(value)?.checked_mul(PAGE).ok_or(Errno::EINVAL)?;
                    options.size = Some(bytes);
                }
                "nr_inodes" => options.inodes = Some(parse_suffixed(value)?),
                "mode" => {
                    options.mode = u32::from_str_radix(value, 8).map_err(|_| Errno::EINVAL)? & 0o7777;
                }
                "uid" => options.uid = value.parse().map_err(|_| Errno::EINVAL)?,
                "gid" => options.gid = value.parse().map_err(|_| Errno::EINVAL)?,
                // How the host keeps it: nothing that the container sees.
                "huge" | "mpol" | "inode32" | "inode64" | "noswap" => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        Ok(options)
    }

    pub(super) fn limits(&self, ram: u64) -> Limits {
        let half = (ram / 2 / PAGE).max(1);
        let ceiling = |given: Option<u64>| match given {
            Some(0) => None,
            Some(n) => Some(n),
            None => Some(half),
        };
        Limits { pages: ceiling(self.size.map(pages_of)), inodes: ceiling(self.inodes) }
    }

    /// As `/proc/mounts` shows them: what is not the default.
    pub(super) fn show(&self, ram: u64) -> String {
        let (given, default) = (self.limits(ram), TmpfsOptions::default().limits(ram));
        let mut text = String::new();
        if given.pages != default.pages {
            text += &format!(",size={}k", given.pages.unwrap_or(0).saturating_mul(PAGE / 1024));
        }
        if given.inodes != default.inodes {
            text += &format!(",nr_inodes={}", given.inodes.unwrap_or(0));
        }
        if self.mode != TmpfsOptions::default().mode {
            text += &format!(",mode={:03o}", self.mode);
        }
        for (name, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id != 0 {
                text += &format!(",{name}={id}");
            }
        }
        text + ",inode64"
    }
}

fn parse_size(value: &str, ram: u64) -> Result<u64> {
    let Some(percent) = value.strip_suffix('%') else { return parse_suffixed(value) };
    let percent: u64 = percent.parse().map_err(|_| Errno::EINVAL)?;
    u64::try_from(u128::from(ram) * u128::from(percent) / 100).map_err(|_| Errno::EINVAL)
}

/// A number with `k`, `m`, `g`, `t`, `p`, `e` for powers of 1024.
fn parse_suffixed(value: &str) -> Result<u64> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match value[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        "e" => 6,
        _ => return Err(Errno::EINVAL),
    };
    let number: u64 = digits.parse().map_err(|_| Errno::EINVAL)?;
    number.checked_mul(1 << (10 * power)).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parsed_and_shown_again() {
        let ram = 1 << 30;
        let options = TmpfsOptions::parse("size=64k,mode=755,uid=5,nr_inodes=1k", ram).unwrap();
        assert_eq!(options.show(ram), ",size=64k,nr_inodes=1024,mode=755,uid=5,inode64");
        assert_eq!(TmpfsOptions::parse("size=25%", ram).unwrap().size, Some(ram / 4));
        assert_eq!(TmpfsOptions::parse("", ram).unwrap().show(ram), ",inode64");
        for bad in ["size=", "size=1q", "size=99999999999e", "mode=9", "nonsense", "uid=-1"] {
            assert_eq!(TmpfsOptions::parse(bad, ram), Err(Errno::EINVAL), "{bad}");
        }
    }
}
