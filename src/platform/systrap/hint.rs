//! What the stub knows of calls: which memory they read and where their results go.
//!
//! It copies the first into the context and touches the second when a call is made, so that the sentry needs nothing from the
//! container's memory for a common call: what it reads is there, and what it stores is left in the context for the stub to
//! store when it goes on. A hint that does not hold costs time only: the sentry believes the addresses and lengths, not the
//! call's number.

use super::context::ANSWERS;

/// The first argument is a path.
pub const PATH_FIRST: u8 = 1;
/// The second argument is a path.
pub const PATH_SECOND: u8 = 2;
/// The second argument is a buffer, the third its length.
pub const BUFFER_SECOND: u8 = 3;
/// The second argument is the address of eight bytes, or null.
pub const SECOND_8: u8 = 4;
/// The second argument is the address of 32 bytes, or null.
pub const SECOND_32: u8 = 5;
/// Whoever answers will want the extended state.
pub const XSTATE: u8 = 6;
/// The same, and the first argument is the address of a `struct clone_args`.
pub const CLONE_ARGS: u8 = 7;

/// The result goes to the second argument, whose length is the third.
pub const OUT_SECOND_LEN: u8 = 1 << 4;
/// A `struct stat` goes to the second argument.
pub const OUT_SECOND_STAT: u8 = 2 << 4;
/// A `struct stat` goes to the third argument.
pub const OUT_THIRD_STAT: u8 = 3 << 4;
/// As many `struct epoll_event` as the third argument says go to the second.
pub const OUT_SECOND_EVENTS: u8 = 4 << 4;
/// Sixteen bytes go to the second argument.
pub const OUT_SECOND_16: u8 = 5 << 4;
/// Eight bytes go to the third argument, if that is not null.
pub const OUT_THIRD_8: u8 = 6 << 4;
/// 32 bytes go to the third argument, if that is not null.
pub const OUT_THIRD_32: u8 = 7 << 4;

/// `sizeof(struct stat)`.
pub const STAT: usize = 144;

/// `sizeof(struct clone_args)`.
pub const CLONE_ARGS_LEN: usize = 88;

const HINTS: &[(i64, u8)] = &[
    (libc::SYS_read, OUT_SECOND_LEN),
    (libc::SYS_pread64, OUT_SECOND_LEN),
    (libc::SYS_recvfrom, OUT_SECOND_LEN),
    (libc::SYS_getdents64, OUT_SECOND_LEN),
    (libc::SYS_write, BUFFER_SECOND),
    (libc::SYS_pwrite64, BUFFER_SECOND),
    (libc::SYS_sendto, BUFFER_SECOND),
    (libc::SYS_open, PATH_FIRST),
    (libc::SYS_access, PATH_FIRST),
    (libc::SYS_unlink, PATH_FIRST),
    (libc::SYS_openat, PATH_SECOND),
    (libc::SYS_faccessat, PATH_SECOND),
    (libc::SYS_unlinkat, PATH_SECOND),
    (libc::SYS_stat, PATH_FIRST | OUT_SECOND_STAT),
    (libc::SYS_lstat, PATH_FIRST | OUT_SECOND_STAT),
    (libc::SYS_fstat, OUT_SECOND_STAT),
    (libc::SYS_newfstatat, PATH_SECOND | OUT_THIRD_STAT),
    (libc::SYS_epoll_wait, OUT_SECOND_EVENTS),
    (libc::SYS_clock_gettime, OUT_SECOND_16),
    (libc::SYS_rt_sigprocmask, SECOND_8 | OUT_THIRD_8),
    (libc::SYS_rt_sigaction, SECOND_32 | OUT_THIRD_32),
    (libc::SYS_clone, XSTATE),
    (libc::SYS_clone3, CLONE_ARGS),
];

/// Whether a stub that has stopped for this call has stored its extended state.
pub fn stores_xstate(number: u64) -> bool {
    [libc::SYS_clone, libc::SYS_clone3].contains(&(number as i64))
}

/// A byte for each call's number.
pub fn table() -> [u8; ANSWERS] {
    let mut table = [0; ANSWERS];
    for &(number, hint) in HINTS {
        table[number as usize] = hint;
    }
    table
}
