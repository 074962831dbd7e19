//! Error numbers: what a container's system call fails with.

use std::fmt;
use std::io;

/// A Linux error number, `errno(3)`, or one of the kernel-internal restart codes that never leave the sentry.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

/// The result of everything that a container can observe.
pub type Result<T> = std::result::Result<T, Errno>;

macro_rules! errnos {
    ($($name:ident)*) => {
        #[allow(missing_docs, reason = "the names are errno(3)'s")]
        impl Errno {
            $(pub const $name: Errno = Errno(libc::$name);)*

            /// The symbolic name, `"ENOENT"`.
            pub fn name(self) -> &'static str {
                match self.0 {
                    $(libc::$name => stringify!($name),)*
                    512 => "ERESTARTSYS",
                    513 => "ERESTARTNOINTR",
                    514 => "ERESTARTNOHAND",
                    516 => "ERESTART_RESTARTBLOCK",
                    _ => "E?",
                }
            }
        }
    };
}

errnos! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY EEXIST EXDEV
    ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK
    ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENOMSG EIDRM ENODATA ETIME ENOSR EPROTO EBADMSG EOVERFLOW EILSEQ EUSERS
    ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT
    EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN
    ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EDQUOT ECANCELED
    EOWNERDEAD ENOTRECOVERABLE ENOKEY ELIBBAD
}

impl Errno {
    /// Interrupted by a signal: restart when the handler has SA_RESTART, else `EINTR`.
    pub const ERESTARTSYS: Errno = Errno(512);
    /// Interrupted by a signal: always restart.
    pub const ERESTARTNOINTR: Errno = Errno(513);
    /// Interrupted by a signal: restart only when no handler ran, else `EINTR`.
    pub const ERESTARTNOHAND: Errno = Errno(514);
    /// Interrupted by a signal: when no handler ran, go on through `restart_syscall(2)` with the time that is left.
    pub const ERESTART_RESTARTBLOCK: Errno = Errno(516);

    /// An errno by number, as the host or a file system gave it.
    pub const fn from_raw(raw: i32) -> Errno {
        Errno(raw)
    }

    /// The positive number.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// The calling thread's `errno`, after a host call made directly through `libc` failed.
    pub fn last() -> Errno {
        io::Error::last_os_error().into()
    }

    /// Whether the call was interrupted by a signal and may be restarted.
    pub fn is_restart(self) -> bool {
        matches!(
            self,
            Errno::ERESTARTSYS | Errno::ERESTARTNOINTR | Errno::ERESTARTNOHAND | Errno::ERESTART_RESTARTBLOCK
        )
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), describe(&io::Error::from_raw_os_error(self.0)))
    }
}

/// The text of an I/O error without Rust's "(os error 2)", which tells an operator nothing.
pub fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for io::Error {
    fn from(error: Errno) -> io::Error {
        io::Error::from_raw_os_error(error.0)
    }
}

impl From<io::Error> for Errno {
    /// Host I/O errors keep their number; one without a number (a short read, say) is `EIO`.
    fn from(error: io::Error) -> Errno {
        error.raw_os_error().map_or(Errno::EIO, Errno)
    }
}

impl From<nix::errno::Errno> for Errno {
    fn from(error: nix::errno::Errno) -> Errno {
        Errno(error as i32)
    }
}

/// Turns a host call's `-1` into the errno it left, for calls made directly through `libc`.
pub fn check(ret: i64) -> Result<u64> {
    if ret < 0 { Err(Errno::last()) } else { Ok(ret as u64) }
}
