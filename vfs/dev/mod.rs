//! `/dev`: what the memory devices, terminals and `/dev/kmsg` open, and the names that a container's `/dev` begins with.
//!
//! `/dev` itself is an ordinary file system in memory, since containers make nodes and links there: [`register`] fills the
//! device table, [`populate`] makes the names in whatever is mounted.

pub mod kmsg;
mod memory;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::errno::{Errno, Result};
use crate::sentry::bootlog::BootLog;
use crate::vfs::devices::DeviceTable;
use crate::vfs::file::File;
use crate::vfs::inode::NodeType;
use crate::vfs::tty::{DevPts, Terminals, Tty};
use crate::vfs::walk::{LookupFlags, Walk};

pub use self::kmsg::Kmsg;
pub use self::memory::{Full, Null, Random, Zero};

/// Finds what `/dev/tty` opens: the terminal of the calling task's session. `ENXIO` without one.
pub type ControllingTerminal = Arc<dyn Fn(i32) -> Result<Arc<dyn File>> + Send + Sync>;

/// Registers the memory devices (1:3 to 1:11), `/dev/tty` (5:0), `/dev/console` (5:1) and `/dev/ptmx` (5:2). Slaves
/// (136:*) are opened by devpts itself.
///
/// `console` is the container's terminal, where it has one.
pub fn register(
    devices: &DeviceTable,
    log: &Arc<BootLog>,
    ptys: &Arc<DevPts>,
    controlling: ControllingTerminal,
    console: Option<Arc<Tty>>,
) {
    let memory = |minor: u32, open: fn() -> Arc<dyn File>| {
        devices.register(false, 1, minor..=minor, Arc::new(move |_, _| Ok(open())));
    };
    memory(3, || Arc::new(Null));
    memory(5, || Arc::new(Zero));
    memory(7, || Arc::new(Full));
    memory(8, || Arc::new(Random));
    memory(9, || Arc::new(Random));
    let log = log.clone();
    devices.register(false, 1, 11..=11, Arc::new(move |_, _| Ok(Arc::new(Kmsg::new(log.clone())))));
    devices.register(false, 5, 0..=0, Arc::new(move |_, flags| controlling(flags)));
    let console_opener = move |_, flags| console.as_ref().ok_or(Errno::ENXIO)?.open_slave(flags);
    devices.register(false, 5, 1..=1, Arc::new(console_opener));
    let ptys = ptys.clone();
    devices.register(false, 5, 2..=2, Arc::new(move |_, _| ptys.open_ptmx()));
}

/// The usual [`ControllingTerminal`]: asks the table of terminals.
pub fn controlling_terminal(terminals: &Arc<Terminals>) -> ControllingTerminal {
    let terminals = terminals.clone();
    Arc::new(move |flags| {
        let session = terminals.processes.caller().ok_or(Errno::ENXIO)?.session;
        terminals.controlling(session).ok_or(Errno::ENXIO)?.open_slave(flags)
    })
}

/// Nodes: name, major and minor number, permissions. The log is the sandbox's own, so that `dmesg(1)` may read it where an
/// engine's seccomp profile denies `syslog(2)`.
const NODES: [(&str, u32, u32, u32); 7] = [
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("kmsg", 1, 11, 0o644),
    ("tty", 5, 0, 0o666),
];

/// Symbolic links.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Makes the names of a container's `/dev` in directory `dir` (`/dev` as `walk` sees it): what is there already stays. `pts`
/// and `shm` are directories to mount on.
pub fn populate(walk: &Walk<'_>, dir: &[u8]) -> Result<()> {
    let dir = walk.lookup(dir, LookupFlags::FOLLOW | LookupFlags::DIRECTORY)?;
    // Permissions are exactly those given.
    let walk = Walk { start: &dir, umask: 0, ..*walk };
    for (name, major, minor, mode) in NODES {
        let device = libc::makedev(major, minor);
        tolerate(walk.mknod(name.as_bytes(), NodeType::CharDevice, mode, device).map(drop))?;
    }
    for (name, target) in LINKS {
        tolerate(walk.symlink(target.as_bytes(), name.as_bytes()))?;
    }
    for (name, mode) in [("pts", 0o755), ("shm", 0o1777)] {
        tolerate(walk.mkdir(name.as_bytes(), mode).map(drop))?;
    }
    Ok(())
}

fn tolerate(result: Result<()>) -> Result<()> {
    match result {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}
