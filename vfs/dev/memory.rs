//! `null(4)`, `zero(4)`, `full(4)`, `random(4)`.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::errno::{Errno, Result};
use crate::io::{Sink, Source};
use crate::vfs::file::{File, IoctlMemory, Mapping};

/// How much is handed over at once.
const CHUNK: usize = 64 << 10;

static ZEROES: [u8; CHUNK] = [0; CHUNK];

/// Fills the whole sink with zeroes.
fn put_zeroes(sink: &mut dyn Sink) -> Result<usize> {
    let mut done = 0;
    while sink.room() > 0 {
        let want = sink.room().min(CHUNK);
        match sink.put(&ZEROES[..want]) {
            Ok(n) => {
                done += n;
                if n < want {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Takes all bytes of the source for read, without looking: as on Linux even bad pointers do not matter.
fn swallow(source: &mut dyn Source) -> usize {
    let all = source.left();
    source.skip(all);
    all
}

/// `/dev/null`.
pub struct Null;

impl File for Null {
    fn read(&self, _offset: u64, _sink: &mut dyn Sink) -> Result<usize> {
        Ok(0)
    }

    fn write(&self, _offset: u64, source: &mut dyn Source) -> Result<usize> {
        Ok(swallow(source))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `/dev/zero`.
pub struct Zero;

impl File for Zero {
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        put_zeroes(sink)
    }

    fn write(&self, _offset: u64, source: &mut dyn Source) -> Result<usize> {
        Ok(swallow(source))
    }

    fn seekable(&self) -> bool {
        true
    }

    /// Each shared mapping is memory of its own; private ones share one empty file, of which nothing can be written.
    fn mapping(&self, shared: bool, _writable: bool) -> Result<Mapping> {
        if shared {
            return Ok(Mapping { fd: Arc::new(zero_file()?), writable: true });
        }
        static PRIVATE: OnceLock<Arc<OwnedFd>> = OnceLock::new();
        let fd = match PRIVATE.get() {
            Some(fd) => fd.clone(),
            None => {
                let made = Arc::new(zero_file()?);
                PRIVATE.get_or_init(|| made).clone()
            }
        };
        Ok(Mapping { fd, writable: false })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A sparse file, as long as any mapping can be.
fn zero_file() -> Result<OwnedFd> {
    let fd = memfd_create(c"zero", MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::ftruncate(&fd, 1 << 46)?;
    Ok(fd)
}

/// `/dev/full`.
pub struct Full;

impl File for Full {
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        put_zeroes(sink)
    }

    fn write(&self, _offset: u64, _source: &mut dyn Source) -> Result<usize> {
        Err(Errno::ENOSPC)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// `/dev/random` and `/dev/urandom`, which differ only before the host has gathered entropy.
pub struct Random;

/// `RNDGETENTCNT`.
const RNDGETENTCNT: u32 = 0x8004_5200;
/// What Linux reports since its generator never runs dry.
const ENTROPY_BITS: i32 = 256;
/// How much one read gives at most, as on Linux.
const RANDOM_MAX: usize = 32 << 20;

impl File for Random {
    fn read(&self, _offset: u64, sink: &mut dyn Sink) -> Result<usize> {
        let mut buf = [0u8; 4096];
        let mut done = 0;
        while sink.room() > 0 && done < RANDOM_MAX {
            let want = sink.room().min(buf.len());
            // SAFETY: `buf` is valid for writes of `want` bytes, no more than its length.
            let n = unsafe { libc::getrandom(buf.as_mut_ptr().cast(), want, 0) };
            let n = usize::try_from(n).map_err(|_| Errno::last())?;
            match sink.put(&buf[..n]) {
                Ok(put) => {
                    done += put;
                    if put < want {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Accepted as a seed, and not needed.
    fn write(&self, _offset: u64, source: &mut dyn Source) -> Result<usize> {
        let mut done = 0;
        while source.left() > 0 {
            match source.take_vec(CHUNK) {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => done += bytes.len(),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn ioctl(&self, mem: &dyn IoctlMemory, cmd: u32, arg: u64) -> Result<u64> {
        match cmd {
            RNDGETENTCNT => mem.write(arg, &ENTROPY_BITS.to_ne_bytes()).map(|()| 0),
            _ => Err(Errno::EINVAL),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
