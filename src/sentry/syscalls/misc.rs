//! The machine as a whole: its names, memory and randomness; and what a container may not do to it.

use crate::errno::{Errno, Result};
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{MAX_RW, UserPtr, UserSlice, write_all};
use crate::sentry::syscalls::{Fd, SysResult};
use crate::sentry::task::{Current, boottime_ns};
use crate::vfs::proc::system::Memory;

/// The size of each field of `struct utsname`, the NUL included.
const UTS_FIELD: usize = 65;
/// The longest name.
const UTS_MAX: usize = 64;

/// The kernel's release, as `uname(2)` and `/proc/version` show it.
pub const RELEASE: &str = "4.4.0";
/// The kernel's version.
pub const VERSION: &str = "#1 SMP Sun Jan 10 15:06:54 PST 2016";

/// `uname(2)`. `EFAULT`.
pub fn uname(cur: &mut Current, at: UserPtr<[u8; 6 * UTS_FIELD]>) -> SysResult {
    let uts = &cur.namespaces().uts;
    let (host, domain) = (uts.host(), uts.domain());
    let fields = [&b"Linux"[..], &host, RELEASE.as_bytes(), VERSION.as_bytes(), b"x86_64", &domain];
    at.write(cur.space(), &uts_fields(fields)).map(|()| 0)
}

fn uts_fields(fields: [&[u8]; 6]) -> [u8; 6 * UTS_FIELD] {
    let mut all = [0; 6 * UTS_FIELD];
    for (place, field) in all.chunks_exact_mut(UTS_FIELD).zip(fields) {
        let len = field.len().min(UTS_MAX);
        place[..len].copy_from_slice(&field[..len]);
    }
    all
}

fn uts_name(cur: &Current, at: u64, len: i32) -> Result<Vec<u8>> {
    cur.require(Caps::SYS_ADMIN)?;
    let len = usize::try_from(len).ok().filter(|&len| len <= UTS_MAX).ok_or(Errno::EINVAL)?;
    let mut name = UserSlice::new(at, len).read(cur.space())?;
    if let Some(end) = name.iter().position(|&byte| byte == 0) {
        name.truncate(end);
    }
    Ok(name)
}

/// `sethostname(2)`. `EPERM`, `EINVAL`, `EFAULT`.
pub fn sethostname(cur: &mut Current, at: u64, len: i32) -> SysResult {
    let name = uts_name(cur, at, len)?;
    cur.namespaces().uts.set_host(&name);
    Ok(0)
}

/// `setdomainname(2)`. `EPERM`, `EINVAL`, `EFAULT`.
pub fn setdomainname(cur: &mut Current, at: u64, len: i32) -> SysResult {
    let name = uts_name(cur, at, len)?;
    cur.namespaces().uts.set_domain(&name);
    Ok(0)
}

/// `sysinfo(2)`: memory as far as the container's limit goes, the host's load, the sandbox's time and tasks. `EFAULT`.
pub fn sysinfo(cur: &mut Current, at: UserPtr<[u64; 14]>) -> SysResult {
    let host = Memory::of(&cur.kernel);
    let bytes = |kib: u64| kib.saturating_mul(1024);
    let uptime = boottime_ns().saturating_sub(cur.kernel.boot_ns) / 1_000_000_000;
    let threads = cur.kernel.tree.lock().thread_count();
    let words = [
        uptime,
        host.loads[0],
        host.loads[1],
        host.loads[2],
        bytes(host.total_kib),
        bytes(host.free_kib),
        bytes(host.shared_kib),
        bytes(host.buffers_kib),
        bytes(host.swap_kib.0),
        bytes(host.swap_kib.1),
        threads.min(usize::from(u16::MAX)) as u64,
        0,
        0,
        1,
    ];
    at.write(cur.space(), &words).map(|()| 0)
}

/// `getrandom(2)`. `EINVAL`, `EFAULT`; interrupted between pieces it returns what is there.
pub fn getrandom(cur: &mut Current, buf: UserSlice, flags: u32) -> SysResult {
    const PIECE: usize = 16 << 10;
    const INSECURE: u32 = 4;
    if flags & !(libc::GRND_NONBLOCK | libc::GRND_RANDOM | INSECURE) != 0
        || flags & (libc::GRND_RANDOM | INSECURE) == libc::GRND_RANDOM | INSECURE
    {
        return Err(Errno::EINVAL);
    }
    let len = buf.len().min(MAX_RW);
    let mut piece = [0; 256];
    let mut long = Vec::new();
    let bytes = if len <= piece.len() {
        &mut piece[..]
    } else {
        long.resize(len.min(PIECE), 0);
        &mut long[..]
    };
    let mut done = 0;
    while done < len {
        let n = fill_random(&mut bytes[..(len - done).min(PIECE)])?;
        match write_all(cur.space(), buf.addr().wrapping_add(done as u64), &bytes[..n]) {
            Err(_) if done > 0 => break,
            stored => stored?,
        }
        done += n;
        if cur.interrupted() {
            break;
        }
    }
    Ok(done as u64)
}

fn fill_random(bytes: &mut [u8]) -> Result<usize> {
    // SAFETY: `bytes` is valid for writes of its length.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    usize::try_from(n).map_err(|_| Errno::last())
}

/// `syslog(2)`: the boot log, which is never cleared; there is no console to set up. `EPERM`, `EINVAL`, `EFAULT`.
pub fn syslog(cur: &mut Current, action: i32, buf: u64, len: i32) -> SysResult {
    const READ_ALL: i32 = 3;
    const SIZE_BUFFER: i32 = 10;
    /// What a kernel with `CONFIG_LOG_BUF_SHIFT=17` says.
    const BUFFER: u64 = 1 << 17;
    match action {
        READ_ALL => {
            let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
            if buf == 0 {
                return Err(Errno::EINVAL);
            }
            let text = cur.kernel.boot_log.text();
            // The newest part, from the beginning of a line.
            let bytes = text.as_bytes();
            let mut start = bytes.len().saturating_sub(len);
            while start > 0 && start < bytes.len() && bytes[start - 1] != b'\n' {
                start += 1;
            }
            UserSlice::new(buf, len).write_truncated(cur.space(), &bytes[start..]).map(|n| n as u64)
        }
        SIZE_BUFFER => Ok(BUFFER),
        0..=9 => {
            cur.require(Caps::SYSLOG)?;
            log::debug!("syslog action {action} is not supported");
            Err(Errno::EINVAL)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `reboot(2)`: `EINVAL`, as in a namespace of processes that cannot be rebooted; `EPERM`.
pub fn reboot(cur: &mut Current, magic: i32, magic2: i32, _command: u32) -> SysResult {
    const MAGIC: i32 = 0xfee1_dead_u32 as i32;
    const MAGIC2: [i32; 4] = [672_274_793, 85_072_278, 369_367_448, 537_993_216];
    cur.require(Caps::SYS_BOOT)?;
    if magic == MAGIC && MAGIC2.contains(&magic2) {
        log::warn!("reboot: the sandbox ends with its first process only");
    }
    Err(Errno::EINVAL)
}

/// `setns(2)`: there is one of each namespace that can be entered. `EBADF`, `EINVAL`.
pub fn setns(cur: &mut Current, fd: Fd, _kind: i32) -> SysResult {
    cur.io_file(fd)?;
    Err(Errno::EINVAL)
}

/// What only the machine's administrator may do, who is not in a container: `iopl(2)`, `swapon(2)`, `acct(2)`, loading
/// modules. `EPERM`.
pub fn not_permitted(_cur: &mut Current) -> SysResult {
    Err(Errno::EPERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_fields_of_65_bytes() {
        let long = [b'h'; 80];
        let all = uts_fields([b"Linux", &long, b"r", b"v", b"m", b"d"]);
        assert_eq!(&all[..6], b"Linux\0");
        assert_eq!(all[65..65 + 64], long[..64]);
        assert_eq!((all[65 + 64], all[130]), (0, b'r'));
    }

    #[test]
    fn randomness_fills_what_it_is_given() {
        let mut bytes = [0; 64];
        assert_eq!(fill_random(&mut bytes), Ok(64));
        assert_ne!(bytes, [0; 64]);
    }
}
