//! Giving up what the sandbox's processes must not have: the host's files, capabilities, identity.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chdir, mkdir, pivot_root, setgroups, setresgid, setresuid};

use super::error::{Context, Error, Result};

/// The unprivileged user and group that the sentry runs as: `nobody`.
const NOBODY: u32 = 65534;

/// A capability's number, `capabilities(7)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Capability {
    /// Give files away.
    Chown = 0,
    /// Ignore permission bits.
    DacOverride = 1,
    /// Ignore permission bits for reading.
    DacReadSearch = 2,
    /// Act on files of others.
    Fowner = 3,
    /// Keep set-id bits.
    Fsetid = 4,
    /// Be less nice.
    SysNice = 23,
    /// Make device nodes.
    Mknod = 27,
}

/// Gives memory that was used on the way back to the host: configurations and filters leave a third of a mebibyte of free
/// heap, which glibc keeps.
pub fn give_back_memory() {
    // SAFETY: the allocator's own function, which takes a number; nothing that is in use changes.
    unsafe { libc::malloc_trim(0) };
}

/// Has the allocator of a process that serves many connections at leisure save memory: one arena for all threads, and
/// buffers that get pages when they are used and not before. (An arena of a thread's own clears the first buffer of 128 KiB.)
pub fn save_memory() {
    const BUFFER: libc::c_int = 64 << 10;
    // SAFETY: the allocator's own function, which takes numbers; there is no other thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, BUFFER);
    }
}

/// Makes the mount namespace's changes its own: nothing propagates to the host.
pub fn private_mounts() -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(io::Error::from)
        .doing(|| "make mounts private")
}

/// The path of a directory of the empty root: see [`empty_root`].
pub fn place(index: usize) -> String {
    format!("/{index}")
}

/// Replaces the root by a read-only directory and detaches everything else. In it are so many empty directories to mount
/// something on, and nothing more. Descriptors that are open stay good. Call [`private_mounts`] first.
pub fn empty_root(places: usize) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Over /proc, as it is there on any host that got this far.
    let options = format!("size=4k,nr_inodes={},mode=0555", places + 2);
    mount(Some("none"), "/proc", Some("tmpfs"), flags, Some(options.as_str()))
        .and_then(|()| chdir("/proc"))
        // Both arguments the same: the old root ends up on top of the new one, and is unmounted from there. See NOTES
        // in pivot_root(2).
        .and_then(|()| pivot_root(".", "."))
        .and_then(|()| umount2(".", MntFlags::MNT_DETACH))
        .and_then(|()| (0..places).try_for_each(|index| mkdir(place(index).as_str(), Mode::from_bits_truncate(0o555))))
        .and_then(|()| {
            let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>)
        })
        .and_then(|()| chdir("/"))
        .map_err(io::Error::from)
        .doing(|| "make an empty root")
}

/// Becomes `nobody`, with the capabilities `keep` as far as the host has given them, as a rule none. The process stays
/// dumpable, which is what `ptrace(2)` asks of its children.
pub fn become_nobody(keep: &[Capability]) -> Result<()> {
    limit_capabilities(keep)?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    prctl(libc::PR_SET_KEEPCAPS, u64::from(!keep.is_empty())).doing(|| "keep capabilities")?;
    setgroups(&[])
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid))
        .map_err(io::Error::from)
        .doing(|| "become nobody")?;
    set_capabilities(keep).or_else(|_| set_capabilities(&[]))?;
    prctl(libc::PR_SET_KEEPCAPS, 0).doing(|| "keep capabilities no longer")?;
    prctl(libc::PR_SET_DUMPABLE, 1).doing(|| "stay dumpable")?;
    no_new_privs()
}

/// Whether a process of this user may become less nice without a capability: `RLIMIT_NICE`.
pub fn may_be_less_nice() -> bool {
    getrlimit(Resource::RLIMIT_NICE).is_ok_and(|(soft, _)| soft >= 40)
}

/// Keeps the user, and of its capabilities `keep` alone.
pub fn keep_capabilities(keep: &[Capability]) -> Result<()> {
    limit_capabilities(keep)?;
    set_capabilities(keep)?;
    no_new_privs()
}

/// Promises the kernel that no program run from here gains privileges; needed before a seccomp filter too.
fn no_new_privs() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).doing(|| "set no_new_privs")
}

/// Drops everything but `keep` from the bounding set, and all ambient capabilities.
fn limit_capabilities(keep: &[Capability]) -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64).doing(|| "clear ambient capabilities")?;
    for number in 0..64 {
        if keep.iter().any(|&kept| kept as u32 == number) {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, u64::from(number)) {
            Ok(()) => {}
            // Past the last capability that this kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && number > 0 => break,
            Err(source) => return Err(Error::Io { doing: format!("drop capability {number}"), source }),
        }
    }
    Ok(())
}

/// Sets the permitted and effective sets; the inheritable set becomes empty.
fn set_capabilities(keep: &[Capability]) -> Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`: two words a set.
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let low = keep.iter().fold(0, |set, &capability| set | 1 << capability as u32);
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [Data { effective: low, permitted: low, inheritable: 0 }, Data::default()];
    // SAFETY: capset(2) reads one header and, with version 3, two data structures.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(Error::last_os("set capabilities")),
    }
}

/// Lifts the limits that would count against the container as a whole: it has its own, kept by the sentry.
pub fn raise_limits() -> Result<()> {
    let files = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    raise_limit(Resource::RLIMIT_NOFILE, files.unwrap_or(1 << 20))?;
    let unlimited = [
        Resource::RLIMIT_AS,
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_MEMLOCK,
        // Or a thread that was made nice once could not be made less so.
        Resource::RLIMIT_NICE,
        Resource::RLIMIT_NPROC,
        Resource::RLIMIT_SIGPENDING,
    ];
    unlimited.into_iter().try_for_each(|resource| raise_limit(resource, libc::RLIM_INFINITY))?;
    // A core file would hold the container's memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(io::Error::from).doing(|| "set RLIMIT_CORE")
}

/// Sets both limits to `wanted`, or, where root has been denied CAP_SYS_RESOURCE, the soft one to the hard one.
fn raise_limit(resource: Resource, wanted: u64) -> Result<()> {
    let raised = setrlimit(resource, wanted, wanted).or_else(|_| {
        let (_, hard) = getrlimit(resource)?;
        setrlimit(resource, hard, hard)
    });
    raised.map_err(io::Error::from).doing(|| format!("raise {resource:?}"))
}

/// Has the kernel kill this process when the thread that made it ends. After changes of identity, which undo it, and
/// after [`report::init`](super::report::init).
pub fn die_with_parent() -> Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64).doing(|| "set the parent-death signal")?;
    // It may have ended before. Its number cannot be asked for, as it is in another namespace.
    if super::report::is_heard() {
        Ok(())
    } else {
        Err(Error::Usage("the command that made this process is gone".into()))
    }
}

/// Points the descriptors at /dev/null. From 0 to 2, so that nothing else can take their place.
pub fn silence(descriptors: &[RawFd]) -> Result<()> {
    let doing = || "open /dev/null";
    let null = File::options().read(true).write(true).open("/dev/null").doing(doing)?;
    for &fd in descriptors {
        // SAFETY: replaces a descriptor by another; no memory is passed.
        if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
            return Err(Error::last_os(doing()));
        }
    }
    Ok(())
}

/// `prctl(2)` for the operations that take one number.
fn prctl(operation: i32, argument: u64) -> io::Result<()> {
    // SAFETY: the operations used here take numbers, no memory.
    match unsafe { libc::prctl(operation, argument, 0u64, 0u64, 0u64) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
