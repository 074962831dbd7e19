//! Starting the sandbox's processes: this program again, in fresh namespaces, with chosen descriptors.
//!
//! `clone(2)` and `execve(2)` rather than a bare fork: the new process then shares no memory with the command line, and
//! what it uses is what it needs. The child's side of [`spawn_in`] runs between the two and may only make system calls.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use super::error::{Context, Error, Result};
use super::state::HostProcess;

/// The namespaces that each process of a sandbox has to itself.
pub const NAMESPACES: i32 = libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// A process of the sandbox. Killed and reaped when dropped, unless [`Child::release`]d or already reaped.
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
    finished: bool,
}

/// How a process is started.
pub struct Manner {
    /// `CLONE_NEW*`: the namespaces that it has to itself.
    pub namespaces: i32,
    /// The namespaces that it joins, each with its `CLONE_NEW*`.
    pub joined: Vec<(RawFd, i32)>,
    /// The signals that it begins with blocked.
    pub blocked: SigSet,
    /// Whether its standard descriptors are `/dev/null`: whoever reads the caller's output sees its end, not the process's.
    pub silent: bool,
}

/// Runs this program as `argv` in new [`NAMESPACES`], but for those that are there to be joined. Of the caller's descriptors it gets 0 to 2 and `inherited`, under
/// the same numbers. Must be called while the process has one thread only.
pub fn spawn_in(joined: Vec<(RawFd, i32)>, argv: &[&str], inherited: &[RawFd]) -> Result<Child> {
    let namespaces = joined.iter().fold(NAMESPACES, |all, (_, joined)| all & !joined);
    // The command line has blocked the signals that it forwards.
    spawn_as(&Manner { namespaces, joined, blocked: SigSet::empty(), silent: false }, argv, inherited)
}

/// As [`spawn_in`], in another manner.
pub fn spawn_as(manner: &Manner, argv: &[&str], inherited: &[RawFd]) -> Result<Child> {
    let words: Vec<CString> = argv.iter().filter_map(|word| CString::new(*word).ok()).collect();
    let mut argv: Vec<*const libc::c_char> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(ptr::null());
    // The container's environment is in its specification; the runtime's processes need none of the operator's.
    let backtrace = std::env::var("RUST_BACKTRACE").ok().and_then(|v| CString::new(format!("RUST_BACKTRACE={v}")).ok());
    let envp = [backtrace.as_ref().map_or(ptr::null(), |entry| entry.as_ptr()), ptr::null()];

    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid clone_args, whose fields are integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = manner.namespaces as u64 | libc::CLONE_PIDFD as u64;
    if manner.silent {
        // Not before it has let go of the caller's descriptors does the caller go on.
        args.flags |= libc::CLONE_VFORK as u64;
    }
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM this is fork(2): the child has its own copy of everything, and the caller's only thread.
    // The child runs `become_program`, which does not return.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(Error::last_os("make the sandbox's namespaces")),
        // SAFETY: the pointers are to NUL-terminated strings and arrays that end with a null pointer.
        0 => unsafe { become_program(&argv, &envp, inherited, manner) },
        // SAFETY: the kernel has stored a new descriptor there, which nobody else knows.
        pid => Ok(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) }, finished: false }),
    }
}

/// The child's side of [`spawn_in`].
///
/// # Safety
/// `argv` and `envp` hold pointers to C strings and end with a null pointer. Only system calls are made.
unsafe fn become_program(
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
    inherited: &[RawFd],
    manner: &Manner,
) -> ! {
    // SAFETY: plain system calls on integers and on memory that lives until execve or _exit.
    unsafe {
        // A terminal's ^C goes to the command line alone, which passes it on.
        libc::setsid();
        for &(fd, kind) in &manner.joined {
            if libc::setns(fd, kind) < 0 {
                libc::_exit(126);
            }
        }
        if manner.silent {
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            if (0..3).any(|number| libc::dup2(null, number) < 0) {
                libc::_exit(126);
            }
        }
        libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32);
        for &fd in inherited {
            libc::fcntl(fd, libc::F_SETFD, 0);
        }
        libc::sigprocmask(libc::SIG_SETMASK, manner.blocked.as_ref(), ptr::null_mut());
        libc::execve(c"/proc/self/exe".as_ptr(), argv.as_ptr(), envp.as_ptr());
        libc::_exit(127)
    }
}

impl Child {
    /// Its process number in the caller's namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// What becomes readable when it ends.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Kills it; no error if it is gone.
    pub fn kill(&self) {
        // SAFETY: no memory is passed.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), libc::SIGKILL, 0usize, 0) };
    }

    /// Waits for its end and says how it ended, in words.
    pub fn wait(&mut self) -> Result<String> {
        let status = loop {
            match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED) {
                Err(nix::errno::Errno::EINTR) => {}
                status => break status.map_err(io::Error::from).doing(|| format!("wait for process {}", self.pid))?,
            }
        };
        self.finished = true;
        Ok(match status {
            WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
            WaitStatus::Exited(_, status) => format!("exited with status {status}"),
            other => format!("{other:?}"),
        })
    }

    /// Lets it live on without the caller.
    pub fn release(mut self) {
        self.finished = true;
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.finished {
            self.kill();
            let _ = self.wait();
        }
    }
}

/// A descriptor for a process that an earlier command started; `None` when it is gone.
fn open(process: HostProcess) -> Option<OwnedFd> {
    // SAFETY: no memory is passed; the result is a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.pid, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: a descriptor that was just made.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    // The descriptor holds on to the process; only now is it known to be the right one.
    process.is_alive().then_some(pidfd)
}

/// Waits for the end of a process that an earlier command started.
pub fn wait_for(process: HostProcess) -> Result<()> {
    open(process).map_or(Ok(()), |pidfd| wait_on(&pidfd).doing(|| format!("wait for process {}", process.pid)))
}

fn wait_on(pidfd: &OwnedFd) -> io::Result<()> {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            ended => return Ok(ended.map(drop)?),
        }
    }
}

/// Kills a process that an earlier command started, and waits for its end. No error if it is gone.
pub fn kill_and_wait(process: HostProcess) -> Result<()> {
    let doing = || format!("kill process {}", process.pid);
    let Some(pidfd) = open(process) else { return Ok(()) };
    // SAFETY: no memory is passed.
    if unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, 0usize, 0) } < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error).doing(doing) };
    }
    wait_on(&pidfd).doing(doing)
}
