//! `fork(2)`, `vfork(2)`, `clone(2)`, `clone3(2)`, `exit_group(2)`, `unshare(2)`.

use crate::errno::Errno;
use crate::sentry::creds::Caps;
use crate::sentry::mm::user::{UserPtr, UserSlice};
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::Current;
use crate::sentry::task::clone::{CLEAR_SIGHAND, CloneArgs, clone as make};
use crate::sentry::task::tree::ExitStatus;

/// `CSIGNAL`: the exit signal within the flags of `clone(2)`.
const SIGNAL_BITS: u64 = 0xff;

/// `fork(2)`.
pub fn fork(cur: &mut Current) -> SysResult {
    make(cur, &CloneArgs { exit_signal: libc::SIGCHLD, ..CloneArgs::default() })
}

/// `vfork(2)`.
pub fn vfork(cur: &mut Current) -> SysResult {
    let flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
    make(cur, &CloneArgs { flags, exit_signal: libc::SIGCHLD, ..CloneArgs::default() })
}

/// `clone(2)`, with x86_64's order of arguments.
pub fn clone(
    cur: &mut Current,
    flags: u64,
    stack: u64,
    parent_tid: UserPtr<i32>,
    child_tid: UserPtr<i32>,
    tls: u64,
) -> SysResult {
    let flags = flags & 0xffff_ffff;
    let pidfd = flags & libc::CLONE_PIDFD as u64 != 0;
    if pidfd && flags & libc::CLONE_PARENT_SETTID as u64 != 0 {
        return Err(Errno::EINVAL); // both would be stored there
    }
    make(
        cur,
        &CloneArgs {
            flags: flags & !SIGNAL_BITS,
            pidfd: parent_tid.addr(),
            child_tid: child_tid.addr(),
            parent_tid: parent_tid.addr(),
            exit_signal: (flags & SIGNAL_BITS) as i32,
            stack_top: stack,
            tls,
        },
    )
}

/// The size of the first `struct clone_args`, and of the one that is known here.
const ARGS_SIZES: [usize; 2] = [64, 88];

/// `clone3(2)`. `E2BIG` when the structure has more than is known and that is not zero; `set_tid` and `cgroup` are refused.
pub fn clone3(cur: &mut Current, args: UserSlice) -> SysResult {
    if args.len() < ARGS_SIZES[0] {
        return Err(Errno::EINVAL);
    }
    if args.len() > 4096 {
        return Err(Errno::E2BIG);
    }
    let bytes = args.read(cur.space())?;
    if bytes.iter().skip(ARGS_SIZES[1]).any(|&byte| byte != 0) {
        return Err(Errno::E2BIG);
    }
    let mut words = [0u64; 11];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk.try_into().map_or(0, u64::from_ne_bytes);
    }
    let [flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, _cgroup] =
        words;
    const INTO_CGROUP: u64 = 1 << 33;
    let known = 0xffff_ffff | CLEAR_SIGHAND;
    if flags & !(known | INTO_CGROUP) != 0 || flags & (SIGNAL_BITS | libc::CLONE_DETACHED as u64) & !0x80 != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & INTO_CGROUP != 0 {
        return Err(Errno::EBADF); // there is no cgroup file system to have a descriptor of
    }
    if (set_tid == 0) != (set_tid_size == 0) || exit_signal > 64 || (stack == 0) != (stack_size == 0) {
        return Err(Errno::EINVAL);
    }
    if flags & (libc::CLONE_THREAD | libc::CLONE_PARENT) as u64 != 0 && exit_signal != 0 {
        return Err(Errno::EINVAL);
    }
    if set_tid != 0 {
        log::warn!("clone3 with a chosen thread id is not supported");
        return Err(Errno::EPERM); // as without CAP_CHECKPOINT_RESTORE
    }
    make(
        cur,
        &CloneArgs {
            flags,
            pidfd,
            child_tid,
            parent_tid,
            exit_signal: exit_signal as i32,
            stack_top: stack.wrapping_add(stack_size),
            tls,
        },
    )
}

/// `exit_group(2)`.
pub fn exit_group(cur: &mut Current, code: i32) -> SysResult {
    cur.group.end(ExitStatus::Exited(code));
    Ok(0)
}

/// `unshare(2)`. `EINVAL` for namespaces that the sandbox has one of; `EPERM`.
pub fn unshare(cur: &mut Current, flags: u64) -> SysResult {
    let has = |flag: i32| flags & flag as u32 as u64 != 0;
    let known = libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_SYSVSEM;
    let alone = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND;
    if has(alone) && cur.group.threads().len() > 1 {
        return Err(Errno::EINVAL);
    }
    if flags & !((known | alone) as u32 as u64) != 0 {
        log::warn!("unshare with {flags:#x} is not supported");
        return Err(Errno::EINVAL);
    }
    let namespaces = has(libc::CLONE_NEWNS | libc::CLONE_NEWUTS);
    if namespaces {
        cur.require(Caps::SYS_ADMIN)?;
    }
    if has(libc::CLONE_FS | libc::CLONE_NEWNS) {
        cur.task.replace_fs(cur.fs().fork());
    }
    if has(libc::CLONE_FILES) {
        cur.task.replace_files(cur.files()?.fork());
    }
    if namespaces {
        let own = cur.namespaces().fork(has(libc::CLONE_NEWNS), has(libc::CLONE_NEWUTS), &cur.fs())?;
        cur.task.replace_namespaces(own);
    }
    Ok(0)
}
