//! Numbers and names in messages: little-endian, lengths before bytes. A reader trusts nothing.

use crate::vfs::inode::{NodeType, TimeSpec};

/// A message that does not follow the protocol. Its sender is not listened to again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What reading a message gives.
pub type Decoded<T> = Result<T, Malformed>;

/// The longest path in a message, `PATH_MAX` without its NUL.
pub const MAX_PATH: usize = libc::PATH_MAX as usize - 1;

/// The longest name, `NAME_MAX`.
pub const MAX_NAME: usize = 255;

/// Appends to a message.
pub trait Put {
    /// Bytes as they are.
    fn raw(&mut self, bytes: &[u8]);

    /// One byte.
    fn u8(&mut self, value: u8) {
        self.raw(&[value]);
    }

    /// A truth value.
    fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    /// 32 bits.
    fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// 64 bits.
    fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    /// Bytes with their length before them.
    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.raw(bytes);
    }

    /// A value that may be missing.
    fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            put(self, value);
        }
    }

    /// A point in time.
    fn time(&mut self, time: TimeSpec) {
        self.u64(time.sec as u64);
        self.u32(time.nsec);
    }
}

impl Put for Vec<u8> {
    fn raw(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Takes a message apart.
pub struct Get<'a>(&'a [u8]);

impl<'a> Get<'a> {
    /// From its start.
    pub fn new(message: &'a [u8]) -> Get<'a> {
        Get(message)
    }

    /// The next `n` bytes.
    pub fn raw(&mut self, n: usize) -> Decoded<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        self.raw(N)?.try_into().map_err(|_| Malformed)
    }

    /// One byte.
    pub fn u8(&mut self) -> Decoded<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// A truth value: 0 or 1.
    pub fn bool(&mut self) -> Decoded<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    /// 32 bits.
    pub fn u32(&mut self) -> Decoded<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// 64 bits.
    pub fn u64(&mut self) -> Decoded<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Bytes with their length before them.
    pub fn bytes(&mut self) -> Decoded<&'a [u8]> {
        let len = self.u32()?;
        self.raw(len as usize)
    }

    /// A value that may be missing.
    pub fn option<T>(&mut self, get: impl FnOnce(&mut Self) -> Decoded<T>) -> Decoded<Option<T>> {
        if self.bool()? { get(self).map(Some) } else { Ok(None) }
    }

    /// A point in time.
    pub fn time(&mut self) -> Decoded<TimeSpec> {
        let (sec, nsec) = (self.u64()? as i64, self.u32()?);
        if nsec >= 1_000_000_000 { Err(Malformed) } else { Ok(TimeSpec { sec, nsec }) }
    }

    /// One name in a directory: not empty, no `/`, no NUL, neither `.` nor `..`.
    pub fn name(&mut self) -> Decoded<&'a [u8]> {
        let name = self.bytes()?;
        if is_name(name) { Ok(name) } else { Err(Malformed) }
    }

    /// Names with one `/` between them, or nothing.
    pub fn path(&mut self) -> Decoded<&'a [u8]> {
        let path = self.bytes()?;
        let fits = path.len() <= MAX_PATH && (path.is_empty() || path.split(|&byte| byte == b'/').all(is_name));
        if fits { Ok(path) } else { Err(Malformed) }
    }

    /// Ends the message: nothing may be left.
    pub fn end(self) -> Decoded<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether `name` may stand in a directory.
pub fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && name.len() <= MAX_NAME && !name.iter().any(|&b| b == b'/' || b == 0)
}

/// What `statx(2)` tells of a host file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are statx(2)'s")]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub kind: NodeType,
    pub perm: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    pub blksize: u32,
    pub blocks: u64,
    pub atime: TimeSpec,
    pub mtime: TimeSpec,
    pub ctime: TimeSpec,
    pub btime: Option<TimeSpec>,
}

impl Stat {
    /// The most that [`Stat::put`] appends.
    pub const MAX_LEN: usize = 128;

    /// What the host told; `None` for a type that no file has.
    pub fn from_host(host: &libc::statx) -> Option<Stat> {
        let time = |time: &libc::statx_timestamp| TimeSpec { sec: time.tv_sec, nsec: time.tv_nsec };
        let mode = u32::from(host.stx_mode);
        let has_btime = host.stx_mask & libc::STATX_BTIME != 0;
        Some(Stat {
            dev: libc::makedev(host.stx_dev_major, host.stx_dev_minor),
            ino: host.stx_ino,
            kind: NodeType::from_mode(mode)?,
            perm: mode & 0o7777,
            nlink: host.stx_nlink,
            uid: host.stx_uid,
            gid: host.stx_gid,
            rdev: libc::makedev(host.stx_rdev_major, host.stx_rdev_minor),
            size: host.stx_size,
            blksize: host.stx_blksize,
            blocks: host.stx_blocks,
            atime: time(&host.stx_atime),
            mtime: time(&host.stx_mtime),
            ctime: time(&host.stx_ctime),
            btime: has_btime.then(|| time(&host.stx_btime)),
        })
    }

    /// Which file it is, of all on the host.
    pub fn key(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// Appends it to a message.
    pub fn put(&self, message: &mut Vec<u8>) {
        message.u64(self.dev);
        message.u64(self.ino);
        message.u32(self.kind.mode_bits() | self.perm);
        message.u32(self.nlink);
        message.u32(self.uid);
        message.u32(self.gid);
        message.u64(self.rdev);
        message.u64(self.size);
        message.u32(self.blksize);
        message.u64(self.blocks);
        message.time(self.atime);
        message.time(self.mtime);
        message.time(self.ctime);
        message.option(self.btime, Put::time);
    }

    /// Takes it from a message.
    pub fn get(message: &mut Get<'_>) -> Decoded<Stat> {
        let (dev, ino, mode) = (message.u64()?, message.u64()?, message.u32()?);
        Ok(Stat {
            dev,
            ino,
            kind: NodeType::from_mode(mode).ok_or(Malformed)?,
            perm: mode & 0o7777,
            nlink: message.u32()?,
            uid: message.u32()?,
            gid: message.u32()?,
            rdev: message.u64()?,
            size: message.u64()?,
            blksize: message.u32()?,
            blocks: message.u64()?,
            atime: message.time()?,
            mtime: message.time()?,
            ctime: message.time()?,
            btime: message.option(Get::time)?,
        })
    }
}

/// `statx(2)` of the file behind a descriptor, `O_PATH` or open.
pub fn stat_fd(fd: std::os::fd::BorrowedFd<'_>) -> crate::errno::Result<Stat> {
    stat_at(fd, c"", libc::AT_EMPTY_PATH)
}

/// `statx(2)` without following a symbolic link at the end. `name` must not lead out of the directory.
pub fn stat_at(dir: std::os::fd::BorrowedFd<'_>, name: &std::ffi::CStr, flags: i32) -> crate::errno::Result<Stat> {
    use std::os::fd::AsRawFd;
    let flags = flags | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    let mut host = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the name is NUL-terminated, and the structure is the kernel's to fill.
    let done = unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask, host.as_mut_ptr()) };
    crate::errno::check(done.into())?;
    // SAFETY: zeroes are a valid value of this plain structure, and the call has filled it in.
    Stat::from_host(unsafe { host.assume_init_ref() }).ok_or(crate::errno::Errno::EIO)
}
