//! A stub process: the memory of one or more user threads.

use std::any::Any;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::errno::{Errno, Result};
use crate::platform::AddressSpace;

/// A host process that holds container memory. It is killed and reaped with its last user.
pub struct StubProcess {
    /// Its id.
    pub pid: i32,
    /// User threads in it; the host threads of those that left first may remain, waiting.
    pub threads: AtomicUsize,
    /// Set when the container has touched the vDSO's mapping: the process cannot be used for another program.
    pub vdso_changed: AtomicBool,
    /// Set for good when it has host threads that are no user thread's but may become one.
    pub has_resting: AtomicBool,
    /// What another platform keeps for as long as the process may run.
    pub kept: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl StubProcess {
    /// Takes charge of a process with one thread.
    pub fn new(pid: i32) -> Arc<StubProcess> {
        let (vdso_changed, has_resting) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(StubProcess { pid, threads: AtomicUsize::new(1), vdso_changed, has_resting, kept: OnceLock::new() })
    }
}

impl Drop for StubProcess {
    fn drop(&mut self) {
        // SAFETY: the process is our child and nobody else reaps it, so the id is still its own. The tracer of a thread
        // other than the first has reaped that one already; see `UserThread`'s drop.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            while libc::wait4(self.pid, std::ptr::null_mut(), libc::__WALL, std::ptr::null_mut()) < 0
                && Errno::last() == Errno::EINTR
            {}
        }
    }
}

/// What one program has of a stub process: a program that is replaced by `execve(2)` leaves a space that nobody can use.
pub struct Space {
    /// The process.
    pub process: Arc<StubProcess>,
    /// Cleared when another program takes the process over.
    pub alive: AtomicBool,
    /// The vDSO's pages and image.
    pub vdso: (Range<u64>, u64),
    /// What the container may map.
    pub range: Range<u64>,
}

impl Space {
    /// The part of `addr..addr + len` that the container may use: `EFAULT` if its first byte is not.
    fn clamp(&self, addr: u64, len: usize) -> Result<usize> {
        if !self.range.contains(&addr) || !self.alive.load(Ordering::Acquire) {
            return Err(Errno::EFAULT);
        }
        Ok(len.min((self.range.end - addr) as usize))
    }

    /// The parts that may be used, up to the first that may not.
    fn clamp_all(&self, parts: &[(u64, usize)]) -> Result<Vec<libc::iovec>> {
        let mut remote = Vec::with_capacity(parts.len());
        for &(addr, len) in parts.iter().filter(|part| part.1 > 0) {
            match self.clamp(addr, len) {
                Ok(n) => {
                    remote.push(libc::iovec { iov_base: addr as *mut _, iov_len: n });
                    if n < len {
                        break;
                    }
                }
                Err(error) if remote.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(remote)
    }
}

/// How many parts one host call takes: `IOV_MAX`.
const MAX_PARTS: usize = 1024;

/// Reads or writes; `EFAULT` only when not a byte could be moved. The host stops exactly at the first page that it cannot
/// reach.
fn transfer(pid: i32, local: &libc::iovec, remote: &[libc::iovec], write: bool) -> Result<usize> {
    if remote.is_empty() {
        return Ok(0);
    }
    let remote = &remote[..remote.len().min(MAX_PARTS)];
    // SAFETY: `local` describes a slice that the caller borrows for the call, mutably when it is written to; `remote` is
    // another process's memory, which the host checks.
    let n = unsafe {
        let count = remote.len() as u64;
        match write {
            true => libc::process_vm_writev(pid, local, 1, remote.as_ptr(), count, 0),
            false => libc::process_vm_readv(pid, local, 1, remote.as_ptr(), count, 0),
        }
    };
    // A process that is gone has no memory to reach.
    usize::try_from(n).map_err(|_| Errno::EFAULT)
}

fn local_mut(buf: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() }
}

fn local_ref(buf: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: buf.as_ptr() as *mut _, iov_len: buf.len() }
}

impl AddressSpace for Space {
    fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    fn vdso(&self) -> (Range<u64>, u64) {
        self.vdso.clone()
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let n = self.clamp(addr, buf.len())?;
        let remote = libc::iovec { iov_base: addr as *mut _, iov_len: n };
        transfer(self.process.pid, &local_mut(buf), &[remote], false)
    }

    fn write(&self, addr: u64, buf: &[u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let n = self.clamp(addr, buf.len())?;
        let remote = libc::iovec { iov_base: addr as *mut _, iov_len: n };
        transfer(self.process.pid, &local_ref(buf), &[remote], true)
    }

    fn read_vectored(&self, parts: &[(u64, usize)], buf: &mut [u8]) -> Result<usize> {
        transfer(self.process.pid, &local_mut(buf), &self.clamp_all(parts)?, false)
    }

    fn write_vectored(&self, parts: &[(u64, usize)], buf: &[u8]) -> Result<usize> {
        transfer(self.process.pid, &local_ref(buf), &self.clamp_all(parts)?, true)
    }

    fn host_pid(&self) -> i32 {
        self.process.pid
    }
}
